"""Shared by all benchmarks: command line, JSON lines, and timing in turn.

    python -m benchmarks.NAME [--quick] [--device cpu|cuda]

prints one JSON line per case and, without --quick, saves them in `benchmarks/results/NAME.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Options:
    """
    Args:
        quick: the same code on less data, in under a minute.
        device: "cpu" or "cuda".
        corpus: the folder of PHEE; None if the benchmark does not read it or it does not exist.
    """

    name: str
    quick: bool
    device: str
    corpus: Path | None = None


def read_options(
    name: str,
    doc: str | None,
    arguments: Sequence[str] | None = None,
    *,
    reads_phee: bool = False,
    devices: Sequence[str] = ("cpu", "cuda"),
) -> Options:
    """Parse the benchmark's command line; `doc` is its module's docstring."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="less data, under a minute")
    parser.add_argument("--device", choices=devices, default="cpu")
    if reads_phee:
        parser.add_argument("--corpus", type=Path, default=Path("corpora/phee"), help="PHEE folder")
    given = parser.parse_args(arguments)
    corpus = given.corpus if reads_phee else None
    if corpus is not None and not corpus.is_dir():
        print(f"no PHEE at {corpus}: skipping its cases; set --corpus", file=sys.stderr)
        corpus = None
    return Options(name, given.quick, given.device, corpus)


def start(options: Options) -> None:
    """Empty the results file, so that it holds one complete run."""
    if not options.quick:
        RESULTS.mkdir(exist_ok=True)
        _results_file(options).write_text("")


def json_line(
    options: Options,
    case: str,
    ours: float,
    peer: float | None,
    unit: str,
    ratio: float,
    goal: float,
    **more: Any,
) -> None:
    """Print one case, and save it.

    Args:
        ratio: higher is better for us, 1.0 equals the peer; without a peer, `ours` relative to the goal.
        goal: target of `ratio`; without a peer, of `ours`.
        more: what else a reader needs to judge the case: sizes, spreads, notes.
    """
    import torch  # deferred: Ray's workers import this module, and their start is timed

    from raymrc.training.meter import hardware, versions

    line = json.dumps(
        {
            "benchmark": options.name,
            "case": case,
            "ours": _round(ours),
            "peer": None if peer is None else _round(peer),
            "unit": unit,
            "ratio": _round(ratio),
            "goal": goal,
            **more,
            "hardware": hardware(torch.device(options.device)),
            "versions": versions(),
            "command": command(options),
        }
    )
    print(line, flush=True)
    if not options.quick:
        with _results_file(options).open("a") as file:
            file.write(line + "\n")


def time_in_turn(
    ours: Callable[[], object],
    peer: Callable[[], object],
    pairs: int,
    wait: Callable[[], object] = lambda: None,
    warm_up: bool = True,
) -> tuple[float, float, float]:
    """Median seconds of ours and of the peer, and the median of their ratio peer / ours.

    They run in turn and swap order with each pair, so that a busy machine slows both.

    Args:
        warm_up: run one uncounted pair first.
        wait: called before each reading of the clock, for devices that work asynchronously.
    """
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for pair in range(0 if warm_up else 1, pairs + 1):
        for is_ours in (True, False) if pair % 2 else (False, True):
            wait()
            begin = time.perf_counter()
            (ours if is_ours else peer)()
            wait()
            if pair:
                seconds[is_ours].append(time.perf_counter() - begin)
    ratios = [p / o for o, p in zip(seconds[True], seconds[False], strict=True)]
    return (
        statistics.median(seconds[True]),
        statistics.median(seconds[False]),
        statistics.median(ratios),
    )


def f1_of_both(ours: float, peer: float) -> dict[str, float]:
    """F1 of both sides, for a line that compares the time they train; warns if a side learned nothing."""
    for side, f1 in (("our side", ours), ("the peer", peer)):
        if not f1:
            print(
                f"{side} scored 0.0: the ratio compares models that learn nothing", file=sys.stderr
            )
    return {"mean_f1": round(ours, 4), "peer_mean_f1": round(peer, 4)}


def run_together(command: Sequence[str], size: int = 1) -> dict[str, Any]:
    """Run a command in `size` processes of one group; return the JSON that the first prints last.

    Raises:
        RuntimeError: a process failed.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        group = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
        group |= {"MASTER_PORT": str(listener.getsockname()[1])}
    processes = [
        subprocess.Popen(
            list(command),
            env=os.environ | group | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"{shlex.join(command)} failed")
    found: dict[str, Any] = json.loads(outputs[0].splitlines()[-1])
    return found


def command(options: Options) -> str:
    return shlex.join(["python", "-m", f"benchmarks.{options.name}", *sys.argv[1:]])


def _results_file(options: Options) -> Path:
    return RESULTS / f"{options.name}.jsonl"


def _round(value: float) -> float:
    """Four significant digits; more are noise."""
    return float(f"{value:.4g}")
