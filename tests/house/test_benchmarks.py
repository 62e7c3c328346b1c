"""Promise: every benchmark runs with `--quick`, prints its lines, and leaves the recorded results alone.

Nobody would notice a broken benchmark before the next long measurement, because nothing else starts it.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec

import pytest

from tests.paths import ROOT, SHARED

FOLDER = ROOT / "benchmarks"
PHEE = SHARED / "corpora" / "phee"

STARTS_RAY = {"accuracy", "overhead", "sweep_vs_peer"}

SLOW = STARTS_RAY | {
    "ledger", "match_head", "mlflow_sync", "placement", "plan", "relations", "sharded", "throughput",
}  # fmt: skip
"""They take 10 to 30 CPU-seconds, mostly to start processes that import torch; the others take 4 to 10. CI
has no time for them: `make benchmarks` runs them."""

NEEDS = {"accuracy": "accelerate", "sweep_vs_peer": "accelerate"}
"""Packages of the benchmarks extra without which a benchmark cannot run at all."""

KEYS = {
    "benchmark", "case", "ours", "peer", "unit", "ratio", "goal", "hardware", "versions", "command",
}  # fmt: skip

COMPARES_LEARNING = {"sweep_vs_peer", "cost_ratio", "late_prompts"}
"""Benchmarks that compare the time of two ways to learn. Others compare equal computations or equal results
(fused_step, match_head, throughput, relations, sharded), or train nothing."""


def find_benchmarks() -> list[str]:
    """Modules with a `main`; the others are helpers."""
    names = []
    for path in sorted(FOLDER.glob("*.py")):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in body):
            names.append(path.stem)
    return names


BENCHMARKS = find_benchmarks()


def marks_of(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.benchmark] if name in SLOW else []


def read_results() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (FOLDER / "results").iterdir()}


def test_helpers_are_no_benchmarks():
    assert set(BENCHMARKS) >= SLOW | COMPARES_LEARNING
    assert not {"__init__", "common", "peft_peer", "selection_peers"} & set(BENCHMARKS)


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in BENCHMARKS])
def test_a_benchmark_runs_quickly_and_keeps_the_results(name: str):
    if name in NEEDS and find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed (the benchmarks extra)")
    reads_phee = "reads_phee=True" in (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    arguments = ["--quick"]
    if reads_phee and PHEE.is_dir():
        arguments += ["--corpus", str(PHEE)]
    before = read_results()
    # The paths of Ray's and Chromium's sockets must be short.
    with tempfile.TemporaryDirectory(prefix="raymrc-") as scratch:
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TMPDIR": scratch}
        run = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *arguments],
            cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=1000,
        )  # fmt: skip
    assert read_results() == before
    if run.returncode == 2 and reads_phee and not PHEE.is_dir():
        pytest.skip(f"{name} needs PHEE, which is not beside the project")
    assert run.returncode == 0, run.stderr[-3000:]
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert lines, run.stderr[-3000:]
    for line in lines:
        assert line.keys() >= KEYS and line["benchmark"] == name
    if name in COMPARES_LEARNING:
        compared = [line for line in lines if {"mean_f1", "peer_mean_f1"} <= line.keys()]
        assert compared
        assert all(0 <= line["peer_mean_f1"] <= 1 and line["ratio"] > 0 for line in compared)
