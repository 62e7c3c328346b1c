"""GatorTron with billions of parameters on one GPU: speed, and error of the predicted memory.

    python -m benchmarks.billions --device cuda [--quick]

The true shapes with random weights, created on the device: GatorTron-3.9B trained with soft prompts, 8.9B
frozen with lanes, and 8.9B trained if the GPU has room. Each case runs in a separate process, through the
pool that hosts use; rows are as long as the window. Steps are timed with heads that predict few answers,
like trained ones; then heads predict answers everywhere, for the peak memory.

A case prints three lines: tokens per second; the operations that training needs, per second, as a share of
the GPU's rate in a bf16 product of two 8192 x 8192 matrices (recomputation is not counted); and the error of
the predicted memory. A case that does not fit is reported on stderr and skipped.

Without a GPU it prints what it would run and the memory needed. --quick runs a tiny backbone once, on a CPU
too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field

import torch

from benchmarks.common import Options, json_line, read_options, start
from benchmarks.placement import (
    FROZEN,
    LABELS,
    TRAINED,
    Point,
    answers_everywhere,
    make_data,
    make_loaded,
)
from raymrc.configuration import FoldRun
from raymrc.model.strategies import count_parameters
from raymrc.planning.arithmetic import training_flops
from raymrc.planning.devices import GIB
from raymrc.training.pool import Pool

SHARE_GOAL = 0.4
"""Share of the matrix rate that well-tuned training of large models reaches."""

MEMORY_GOAL = 0.05

WARM_UP, STEPS = 2, 5

CARDS = {"A100 40 GB": 39.4, "H100 80 GB": 79.1, "H200": 139.8}
"""GiB available to a program."""

MATRIX = {"cuda": 8192, "cpu": 1024}


@dataclass(frozen=True, slots=True)
class Case:
    """
    Args:
        pass_pieces: maximum of padded pieces per pass; None for the pool's default.
        quick: a tiny point to check the code with; --quick runs the first.
    """

    point: Point
    pass_pieces: int | None = None
    quick: Point | None = field(default=None, kw_only=True)

    def at(self, is_quick: bool) -> Point:
        return self.quick if is_quick and self.quick is not None else self.point


CASES = (
    Case(
        Point("gatortron-3.9b", TRAINED, 384, 16, prompt_length=32, checkpoints=True),
        quick=Point("minilm", TRAINED, 30, 2, layers=1, checkpoints=True, match_width=64),
    ),
    Case(Point("gatortron-3.9b", TRAINED, 384, 2, prompt_length=32)),
    # One lane's batch is a pass.
    Case(Point("gatortron-8.9b", FROZEN, 384, 16, lanes=4, prompt_length=32), 6400),
    # Four lanes' batches are a pass.
    Case(
        Point("gatortron-8.9b", FROZEN, 384, 4, lanes=4, prompt_length=32), 6400,
        quick=Point("minilm", FROZEN, 30, 2, layers=1, lanes=2, match_width=64),
    ),
    Case(Point("gatortron-8.9b", TRAINED, 384, 16, prompt_length=32, checkpoints=True)),
)  # fmt: skip


def predicted(case: Case, point: Point, device: str) -> float:
    """Predicted peak memory in bytes."""
    return point.predicted(device, case.pass_pieces)


def run(case: Case, point: Point, device: str) -> dict[str, float]:
    """Seconds of a training step of all lanes, its tokens and operations, and peak bytes."""
    torch.manual_seed(0)
    began_with = torch.cuda.memory_allocated() if device == "cuda" else 0
    data = make_data(point, WARM_UP + STEPS + 2)
    pool = Pool(
        make_loaded(point.shape, device), data, device,
        memory_bytes=float("inf"), recomputes=point.recomputes, pass_pieces=case.pass_pieces,
    )  # fmt: skip
    models = []
    for number in range(point.lanes):
        fold_run = FoldRun(point.configuration(number), 0, "", "", "", "")
        pool.open(fold_run)
        models.append(pool._seats[fold_run.key].lane.model)
    seconds = [timed_step(pool, device) for _ in range(WARM_UP + STEPS)][WARM_UP:]
    calm_bytes = torch.cuda.max_memory_allocated() - began_with if device == "cuda" else 0
    for model in models:
        answers_everywhere(model)
    timed_step(pool, device)
    configuration, row = point.configuration(), point.window + 2
    tokens = point.lanes * point.batch_size * row
    counts = count_parameters(configuration, point.shape, len(LABELS))
    operations = training_flops(
        point.shape, tokens=tokens, row_length=row, trains_backbone=point.trains_backbone,
        prompt_length=configuration.prompt_length,
    )  # fmt: skip
    peak = torch.cuda.max_memory_allocated() - began_with if device == "cuda" else 0
    return {
        "seconds": statistics.median(seconds),
        "tokens": tokens,
        "operations": operations,
        "peak_bytes": peak,
        "calm_bytes": calm_bytes,
        "matrix_rate": matrix_rate(device),
        "trained": counts.trained,
    }


def timed_step(pool: Pool, device: str) -> float:
    began = time.perf_counter()
    for event in pool.step():
        if isinstance(event.what, Exception):
            raise event.what
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def matrix_rate(device: str) -> float:
    """Operations per second in a product of two square bf16 matrices; fp32 on a CPU."""
    size = MATRIX[device]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if device == "cuda":
        torch.cuda.empty_cache()
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    times = []
    for _ in range(12):
        began = time.perf_counter()
        torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(times[2:])


def report(options: Options, case: Case, found: dict[str, float]) -> None:
    point = case.at(options.quick)
    more = {
        "seconds_a_step": found["seconds"],
        "trained_parameters": int(found["trained"]),
        "pass_pieces": case.pass_pieces,
    }
    rate = found["tokens"] / found["seconds"]
    json_line(
        options, f"{point.case}, tokens", rate, None, "tokens/s", 1.0, 0.0,
        **more, matrix_operations_per_second=found["matrix_rate"],
    )  # fmt: skip
    share = found["operations"] / found["seconds"] / found["matrix_rate"]
    json_line(
        options, f"{point.case}, of the matrix rate", share, None, "share", share / SHARE_GOAL,
        SHARE_GOAL,
    )  # fmt: skip
    if found["peak_bytes"]:
        wanted = predicted(case, point, options.device)
        error = abs(wanted - found["peak_bytes"]) / found["peak_bytes"]
        json_line(
            options, f"{point.case}, memory", error, None,
            "relative error of the predicted memory", MEMORY_GOAL / max(error, 1e-4), MEMORY_GOAL,
            predicted_bytes=round(wanted), measured_bytes=int(found["peak_bytes"]),
            calm_bytes=int(found["calm_bytes"]),
        )  # fmt: skip


def print_needs(case: Case, point: Point, device: str) -> None:
    """Print the predicted memory, and which GPUs have it."""
    wanted = predicted(case, point, device) / GIB
    holds = [name for name, gib in CARDS.items() if wanted <= gib]
    fits = f"fits {', '.join(holds)}" if holds else "fits no single card that we know"
    print(f"{point.case}: {wanted:.1f} GiB predicted; {fits}", file=sys.stderr)


def main() -> int:
    if "--case" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--case", type=int)
        parser.add_argument("--device")
        parser.add_argument("--quick", action="store_true")
        given = parser.parse_args()
        case = CASES[given.case]
        print(json.dumps(run(case, case.at(given.quick), given.device)))
        return 0
    options = read_options("billions", __doc__)
    has_gpu = options.device == "cuda" and torch.cuda.is_available()
    if not has_gpu and not (options.quick and options.device == "cpu"):
        print("no GPU; set --device cuda on a machine with one to run:", file=sys.stderr)
        for case in CASES:
            print_needs(case, case.point, "cuda")
        return 0
    start(options)
    for number, case in enumerate(CASES[:1] if options.quick else CASES):
        point = case.at(options.quick)
        free = torch.cuda.mem_get_info()[0] if has_gpu else float("inf")
        if predicted(case, point, options.device) > free:
            print_needs(case, point, options.device)
            continue
        command = [
            sys.executable, "-m", "benchmarks.billions", "--case", str(number),
            "--device", options.device, *(["--quick"] if options.quick else []),
        ]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            print(f"{point.case} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
            continue
        report(options, case, json.loads(done.stdout.splitlines()[-1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
