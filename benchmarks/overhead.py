"""Overhead of raymrc: a study whose fold-runs train nothing.

    python -m benchmarks.overhead [--quick]

100 configurations of 5 folds in four cells pass through search, Ray Tune, hosts, the ledger with its fsyncs,
and MLflow on SQLite, with records of realistic size (100 notes, 9 labels, 20 epochs). Milliseconds per
fold-run, from the call of `run_study` to the last MLflow run. A separate case measures the start of Ray and
MLflow. --quick has that case alone, with four configurations.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import raymrc.sweep  # noqa: F401  # sets Ray's switches before ray is imported

# isort: split
import ray

from benchmarks.common import Options, json_line, read_options, start
from raymrc.configuration import Backbone, Cell, FoldRun
from raymrc.ledger.ledger import Ledger
from raymrc.ledger.record import Epoch, LaneEvent, NoteCounts, Record
from raymrc.planning.fold_runs import Fingerprints
from raymrc.planning.plan import (
    CellPlan,
    Plan,
    build_configuration,
)
from raymrc.scheduling.state import StudyOutcome
from raymrc.scheduling.terms import Listeners
from raymrc.scoring.counts import Counts
from raymrc.study.space import Grid, build_space
from raymrc.sweep.driver import Training, run_study
from raymrc.sweep.session import HostResources, cluster
from raymrc.tracking import MlflowRecorder, TrackingPlace

GOAL_MS = 50.0
FOLDS = 5
STRATEGIES = ("fine_tune", "hard_prompt", "soft_prompt", "frozen_soft_prompt")
LABELS = "Drug Strength Form Dosage Frequency Route Duration Reason ADE".split()
NOTES = 100
EPOCHS = 20


class IdlePool:
    """Replaces `training.pool.Pool`; every fold-run ends at its first step."""

    def __init__(self) -> None:
        self.opened: list[FoldRun] = []

    def __len__(self) -> int:
        return len(self.opened)

    def fits(self, fold_run: FoldRun) -> bool:
        return True

    def open(self, fold_run: FoldRun, state: bytes | None = None) -> None:
        self.opened.append(fold_run)

    def save(self, key: str) -> bytes:
        return b""

    def epochs(self, key: str) -> int:
        return 0

    def tokens(self, key: str) -> int:
        return 0

    def pause(self, key: str) -> Record:
        raise NotImplementedError("no study of this benchmark races")

    def close(self, key: str) -> None:
        self.opened = [run for run in self.opened if run.key != key]

    def step(self) -> list[LaneEvent]:
        records, self.opened = [make_record(run) for run in self.opened], []
        return [event for r in records for event in _course(r)]


def _course(record: Record) -> Iterator[LaneEvent]:
    for epoch in record.epochs:
        yield LaneEvent(record.key, epoch)
    yield LaneEvent(record.key, record)


def open_idle(backbone: Backbone, data: object, ranks: object = None) -> IdlePool:
    return IdlePool()


def make_record(fold_run: FoldRun) -> Record:
    """A record as large as one of the 2018 corpus, without training."""
    # Called through its module: this function is sent to workers by value, which a cache cannot be.
    from benchmarks.overhead import make_notes

    draw = random.Random(fold_run.key)
    epochs = tuple(Epoch(e, 1.0 / e, draw.random(), 0.01) for e in range(1, EPOCHS + 1))
    return Record(
        key=fold_run.key,
        fold_run=fold_run,
        notes=make_notes(fold_run.fold),
        validation_f1=draw.random(),
        best_epoch=EPOCHS,
        epochs=epochs,
        trained_parameters=1_000_000,
        total_parameters=23_000_000,
        adapter_bytes=4_000_000,
        device_seconds=600.0,
        training_seconds=500.0,
        evaluation_seconds=100.0,
        tokens=5_000_000,
        flops=1e15,
        peak_bytes=10**9,
        cost_usd=0.1,
        versions={"torch": "2.13.0", "transformers": "5.23.0"},
        hardware="none",
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@lru_cache
def make_notes(fold: int) -> dict[str, NoteCounts]:
    """Counts of one scored fold, drawn once per process because that is not raymrc's overhead."""
    draw = random.Random(fold)
    return {f"note-{fold}-{i:03d}": NoteCounts(_counts(draw), _counts(draw)) for i in range(NOTES)}


def _counts(draw: random.Random) -> dict[str, Counts]:
    return {k: Counts(draw.randrange(30), draw.randrange(9), draw.randrange(9)) for k in LABELS}


def make_plan(num_configurations: int) -> Plan:
    """Configurations in four cells of one backbone."""
    cells = []
    for strategy in STRATEGIES:
        cell = Cell("concepts", "none", Backbone("minilm", "none"), strategy)
        rates = tuple(1e-4 * (i + 1) for i in range(num_configurations // len(STRATEGIES)))
        space = build_space({"learning_rate": Grid(rates)})
        configurations = tuple(build_configuration(cell, space, v) for v in space.grid())
        cells.append(CellPlan(cell, space, len(rates), len(rates) * FOLDS, configurations))
    return Plan(
        study="overhead",
        task="concepts",
        corpus="none",
        folds=FOLDS,
        algorithm="grid",
        seed=13,
        cells=tuple(cells),
        fingerprints=Fingerprints("c" * 64, "f" * 64, "q" * 64, {"minilm": "w" * 64}),
    )


def time_study(plan: Plan, folder: Path) -> tuple[float, float, int]:
    """Seconds until all is in the ledger and MLflow, the driver's CPU seconds, number of MLflow runs."""
    ledger = Ledger(str(folder))
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    began, began_cpu = time.perf_counter(), time.process_time()
    with MlflowRecorder(TrackingPlace(uri, plan.study), warn=_fail) as recorder:
        outcome: StudyOutcome = run_study(
            plan, ledger, Training(open_idle), folder, listeners=Listeners(recorder.record)
        )
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    assert outcome.done == plan.num_fold_runs == len(ledger.keys()), outcome
    return seconds, cpu_seconds, recorder.written


def time_warm(plan: Plan, place: Path) -> tuple[float, float, int]:
    """As `time_study`, on a cluster that has run a small study."""
    with cluster(HostResources(), _made(place / "cluster")):
        time_study(make_plan(4), place / "first")
        return time_study(plan, place / "warm")


def _fail(sentence: str) -> None:
    raise AssertionError(sentence)


def measure(options: Options) -> None:
    plan = make_plan(4 if options.quick else 100)
    # Record the load before the start, because figures from a busy machine mean little.
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="raymrc-overhead-") as place:
        # The first study of a process imports ray.tune and mlflow, as users experience it.
        found = {"all of it, with Ray's start and end": time_study(plan, Path(place, "cold"))}
        if not options.quick:
            found["Ray running"] = time_warm(plan, Path(place))
    assert not ray.is_initialized()
    for case, (seconds, cpu_seconds, written) in found.items():
        ours = 1000 * seconds / plan.num_fold_runs
        json_line(
            options, case, ours, None, "ms per fold-run", GOAL_MS / ours, GOAL_MS,
            driver_cpu_ms=round(1000 * cpu_seconds / plan.num_fold_runs, 1),
            fold_runs=plan.num_fold_runs,
            configurations=plan.num_configurations,
            mlflow_runs=written,
            wall_seconds=round(seconds, 1),
            load_average_before=round(load, 1),
        )  # fmt: skip


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options("overhead", __doc__, arguments)
    start(options)
    measure(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
