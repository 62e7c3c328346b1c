"""Fault injection over many small studies: one JSON line per run, and a summary.

python -m tests.chaos --runs 200 --seed 1          seeds 1 to 200
python -m tests.chaos --runs 1 --seed 37           one of them by itself
python -m tests.chaos --summary LINES.jsonl ...    summary of earlier runs
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def summary(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Failures with their seeds, overspend and strikes of all runs; goodput of finished runs only, because
    checkpoints at a cap are neither lost nor in the ledger."""
    ended = [line for line in lines if line["codes"][-1:] == [0]]
    goodput = sorted(line["goodput"] for line in ended)
    over = [line["overspend"] for line in lines if line["overspend"] is not None]
    held = sum(line["held"] for line in ended)
    return {
        "runs": len(lines),
        "failed": {line["seed"]: line["wrong"] for line in lines if line["wrong"]},
        "studies": Counter(line["study"] for line in lines),
        "storages": Counter(line["storage"] for line in lines),
        "strikes": Counter(what for line in lines for _, what in line["struck"]),
        "drivers": sum(len(line["codes"]) for line in lines),
        "caps_reached": len(over),
        "overspend_most": max(over, default=None),
        "ended": {
            "runs": len(ended),
            "epochs": sum(line["epochs"] for line in ended),
            "epochs_trained_twice": sum(max(0, line["trained"] - line["epochs"]) for line in ended),
            "goodput": {
                "median": statistics.median(goodput),
                "least": goodput[0],
                "tenth": goodput[len(goodput) // 10],
                "most": goodput[-1],
                "of_all": round(sum(line["useful"] for line in ended) / held, 4),
            }
            if held
            else None,
        },
        "wall_seconds": {
            "median": statistics.median(line["wall_seconds"] for line in lines),
            "most": max(line["wall_seconds"] for line in lines),
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1, help="of the first run")
    parser.add_argument("--seconds", type=float, default=3.0, help="that a fold-run takes")
    parser.add_argument("--keep", type=Path, help="folder for runs in which something is wrong")
    parser.add_argument("--summary", type=Path, nargs="+", help="lines of earlier runs")
    given = parser.parse_args()
    if given.summary:
        lines = [json.loads(line) for p in given.summary for line in p.read_text().splitlines()]
        print(json.dumps(summary([line for line in lines if "seed" in line])))
        return 0

    # It uses its own home, like the tests: Ray may leave its token there.
    home = tempfile.mkdtemp(prefix="rr-", dir="/tmp")
    os.environ |= {"HOME": home, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"RAY_enable_metrics_collection": "0"}  # several of these share a machine
    import raymrc.sweep  # noqa: F401  # sets Ray's switches
    from tests.s3_server import ACCESS

    os.environ |= ACCESS
    from tests.chaos.battle import Battle, Draw, Ground, kinds_of_storage

    place = Path(home)
    ground = Ground(place / "ground")
    kinds = kinds_of_storage(place)
    lines = []
    try:
        for seed in range(given.seed, given.seed + given.runs):
            folder = place / f"run-{seed}"
            outcome = Battle(ground, Draw.from_seed(seed, given.seconds, kinds), folder).run()
            lines.append(outcome.line())
            print(json.dumps(lines[-1]), flush=True)
            if outcome.wrong and given.keep:
                shutil.copytree(folder, given.keep / folder.name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        ground.close()
        shutil.rmtree(home, ignore_errors=True)
    print(json.dumps(summary(lines)), flush=True)
    return 1 if any(line["wrong"] for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
