"""Plans, and a fake training that takes no time, for the tests of the sweep.

python -m tests.sweep.making FOLDER NAP [DEVICE_SECONDS] [race] [lockless] [blind]

runs a small study in its own process: "lockless" imitates a file system without locks, "blind" a driver that
does not look for other drivers.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from raymrc.configuration import Backbone, Cell, FoldRun
from raymrc.errors import BackboneError, TrainingError
from raymrc.ledger.ledger import Ledger
from raymrc.ledger.record import Epoch, LaneEvent, NoteCounts, Record
from raymrc.planning.fold_runs import Fingerprints
from raymrc.planning.plan import (
    CellPlan,
    Plan,
    build_configuration,
)
from raymrc.racing.racing import Racing
from raymrc.scoring.counts import Counts
from raymrc.study.space import Distribution, Fixed, Grid, Setting, build_space

BACKBONE = Backbone("tiny", "nowhere")
DEVICE_SECONDS = 3.0
"""A made-up fold-run that fails costs this."""

MARKER = "Quixotril-77"
"""Stands for a note's text, which may appear nowhere."""


def make_plan(
    rates: Sequence[float] | Setting = (0.1, 0.2),
    strategies: Sequence[str] = ("fine_tune", "frozen_soft_prompt"),
    *,
    folds: int = 3,
    tpe: int | None = None,
    seed: int = 13,
    backbone: Backbone = BACKBONE,
    **fixed: Any,
) -> Plan:
    """Make a plan by hand: a grid over learning rates, or `tpe` configurations per cell chosen by TPE."""
    setting = rates if isinstance(rates, Grid | Distribution) else Grid(tuple(rates))
    cells = []
    for strategy in strategies:
        fields = {name: Fixed(value) for name, value in fixed.items()}
        space = build_space({"learning_rate": setting, **fields})  # type: ignore[dict-item]
        cell = CellPlan(Cell("concepts", "made-up", backbone, strategy), space, 0, 0, None)
        if tpe is None:
            configurations = tuple(build_configuration(cell.cell, space, v) for v in space.grid())
            cell = replace(cell, configurations=configurations)
        count = tpe or len(cell.configurations or ())
        cells.append(replace(cell, num_configurations=count, num_fold_runs=count * folds))
    return Plan(
        study="made-up",
        task="concepts",
        corpus="made-up",
        folds=folds,
        algorithm="grid" if tpe is None else "tpe",
        seed=seed,
        cells=tuple(cells),
        fingerprints=Fingerprints("c", "f", "q", {backbone.name: "w"}),
    )


def make_race(num: int = 5) -> Plan:
    """One cell with `num` learning rates, of which 0.1 is best, on two folds."""
    rates = [0.1 * (1 + i) for i in range(num)]
    plan = make_plan(rates, ["frozen_soft_prompt"], folds=2, epochs=10)
    return replace(plan, racing=Racing(rungs=(0.2, 1.0)))


def fold_runs(plan: Plan) -> list[FoldRun]:
    from raymrc.scheduling.search import StudySearch

    search = StudySearch(plan)
    return [
        run
        for cell in plan.cells
        for configuration in cell.configurations or ()
        for run in search.fold_runs(configuration).values()
    ]


def make_record(run: FoldRun, *, started_at: str = "2026-01-01T00:00:00+00:00") -> Record:
    """The record of training this fold-run; its values follow from its key."""
    draw = random.Random(run.key)
    return Record(
        key=run.key,
        fold_run=run,
        notes={
            f"note-{run.fold}-{i}": NoteCounts(
                strict={k: Counts(draw.randrange(1, 9), draw.randrange(4), 2) for k in "AB"},
                lenient={k: Counts(9, 1, draw.randrange(3)) for k in "AB"},
            )
            for i in range(3)
        },
        validation_f1=draw.random(),
        best_epoch=2,
        epochs=tuple(Epoch(e, 1 / e, e / 10, 0.5) for e in (1, 2, 3)),
        trained_parameters=1000 if "frozen" in run.configuration.cell.strategy else 22_000_000,
        total_parameters=22_000_000,
        adapter_bytes=4000,
        device_seconds=10.0,
        wall_seconds=10.0,
        cost_usd=0.01,
        tokens=1000,
        peak_bytes=10**9,
        versions={"torch": "2.13.0"},
        started_at=started_at,
    )


def actors(name: str) -> list[psutil.Process]:
    """Find the processes of an actor class, in clusters that these tests have started."""
    found = []
    for process in psutil.process_iter():
        try:
            is_of_us = process.environ().get("HOME") == os.environ["HOME"]  # see tests/conftest.py
            if is_of_us and any(f"ray::{name}" in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def warn_node(address: str, node: str, seconds: float) -> None:
    """Send a spot instance's notice, as Ray's own agents on clouds do."""
    from ray import _raylet
    from ray.core.generated import autoscaler_pb2

    messages: Any = autoscaler_pb2
    reason = messages.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline = int((time.time() + seconds) * 1000)
    client = _raylet.GcsClient(address=address)  # type: ignore[attr-defined]
    accepted = client.drain_node(node, reason, "spot reclaim", deadline)
    assert accepted[0], accepted


@dataclass(frozen=True)
class Script:
    """The data of a made-up study: how its training behaves. It waits while the file `hold` exists. While the
    file `idle` exists it trains nothing, but hosts go on.

    Args:
        folder: each training leaves a file there, named by its process and key.
        nap: seconds per fold-run.
        raises: (learning rate, fold) that raises an exception with `MARKER` in its text.
        raises_once: the same, at its first try only.
        mendable: the same, with one of raymrc's own errors.
        hopeless: fold-runs with this learning rate or a higher one raise such an error.
        dies, dies_once: (learning rate, fold) that ends its process.
        room: number of lanes that fit into a process.
        unloadable: no process can load the backbone.
        holds_after: number of ended or paused trainings after which processes make the file `hold`.
        raced: validation F1 falls with the distance of the learning rate from 0.1, and is random otherwise.
    """

    folder: Path
    nap: float = 0.0
    raises: tuple[float, int] | None = None
    raises_once: tuple[float, int] | None = None
    mendable: tuple[float, int] | None = None
    hopeless: float | None = None
    dies: tuple[float, int] | None = None
    dies_once: tuple[float, int] | None = None
    text: str = MARKER
    room: int = 1000
    unloadable: bool = False
    holds_after: int | None = None
    raced: bool = False

    @property
    def hold(self) -> Path:
        return self.folder.parent / "hold"

    @property
    def idle(self) -> Path:
        return self.folder.parent / "idle"

    @property
    def ended(self) -> Path:
        """A folder with a file per training that ended or paused, kept if `holds_after` is set."""
        return self.folder.parent / "ended"

    def note_end(self, key: str) -> None:
        if self.holds_after is not None:
            (self.ended / f"{key}-{time.monotonic_ns()}").touch()

    def wait(self) -> None:
        """Wait while there is a `hold`."""
        if self.holds_after is not None and len(list(self.ended.iterdir())) >= self.holds_after:
            self.hold.touch()
        while self.hold.exists():
            time.sleep(0.02)

    def record(self, run: FoldRun) -> Record:
        """The record of training this fold-run."""
        record = make_record(run)
        if not self.raced:
            return record
        num, rate = run.configuration.epochs, run.configuration.learning_rate
        top = 0.9 - abs(rate - 0.1) - 0.02 * run.fold + random.Random(run.key).gauss(0, 0.002)
        course = [top * (1 - 2.0 ** (-e)) for e in range(1, num + 1)]
        epochs = tuple(Epoch(e, 1 / e, f1, 0.5) for e, f1 in enumerate(course, 1))
        return replace(record, validation_f1=course[-1], best_epoch=num, epochs=epochs)

    def trained(self) -> list[str]:
        """Keys of the fold-runs that were opened, one per opening."""
        return sorted(path.name.split("-")[1] for path in self.folder.iterdir())

    def processes(self) -> set[str]:
        return {path.name.split("-")[0] for path in self.folder.iterdir()}

    def begun_at(self) -> list[int]:
        """The number of epochs that each fold-run had been trained for when it was opened."""
        return sorted(int(path.name.split("-")[2]) for path in self.folder.iterdir())

    def most_beside(self) -> int:
        """The largest number of other lanes that were open when a lane was opened."""
        return max(int(path.name.split("-")[3]) for path in self.folder.iterdir())


@dataclass
class _Course:
    """The progress of a made-up fold-run, in epochs."""

    fold_run: FoldRun
    seen: int
    epoch: int = 0


class ScriptPool:
    """Stands in for `training.pool.Pool`: one step is one epoch of every fold-run that is open.

    A process trains one backbone at a time. `Script.begun_at` shows which fold-runs resumed from a state.
    """

    def __init__(self, data: Script) -> None:
        self.data = data
        self.courses: dict[str, _Course] = {}

    def __len__(self) -> int:
        return len(self.courses)

    def fits(self, fold_run: FoldRun) -> bool:
        return len(self) < self.data.room

    def open(self, fold_run: FoldRun, state: bytes | None = None) -> None:
        seen = len([key for key in self.data.trained() if key == fold_run.key])
        begun_at = int(state or b"0")
        name = f"{os.getpid()}-{fold_run.key}-{begun_at}-{len(self)}-{time.monotonic_ns()}"
        (self.data.folder / name).touch()
        self.courses[fold_run.key] = _Course(fold_run, seen, begun_at)

    def save(self, key: str) -> bytes:
        return str(self.courses[key].epoch).encode()

    def epochs(self, key: str) -> int:
        return self.courses[key].epoch

    def tokens(self, key: str) -> int:
        course = self.courses[key]
        record = self.data.record(course.fold_run)
        return record.tokens * course.epoch // len(record.epochs)

    def pause(self, key: str) -> Record:
        course = self.courses.pop(key)
        self.data.note_end(key)
        record = self.data.record(course.fold_run)
        epochs = record.epochs[: course.epoch]
        return replace(
            record,
            status="paused",
            notes={},
            epochs=epochs,
            validation_f1=max(epoch.validation_f1 for epoch in epochs),
            device_seconds=float(course.epoch),
        )

    def close(self, key: str) -> None:
        self.courses.pop(key, None)

    def step(self) -> list[LaneEvent]:
        self.data.wait()
        if self.data.idle.exists():
            time.sleep(0.05)
            return []
        events = []
        for key, course in list(self.courses.items()):
            record = self.data.record(course.fold_run)
            if course.epoch < len(record.epochs):
                time.sleep(self.data.nap / len(record.epochs))
                events.append(LaneEvent(key, record.epochs[course.epoch]))
                course.epoch += 1
                continue
            del self.courses[key]
            self.data.note_end(key)
            events.append(LaneEvent(key, self._end(course, record), DEVICE_SECONDS))
        return events

    def _end(self, course: _Course, record: Record) -> Record | Exception:
        place = (course.fold_run.configuration.learning_rate, course.fold_run.fold)
        hopeless = self.data.hopeless
        if place == self.data.mendable or (hopeless is not None and place[0] >= hopeless):
            return TrainingError("the loss is not a number at step 12; lower the learning rate")
        if place == self.data.dies or (place == self.data.dies_once and not course.seen):
            os._exit(9)
        if place == self.data.raises or (place == self.data.raises_once and not course.seen):
            try:
                raise KeyError(self.data.text)
            except KeyError as error:
                return error
        return record


def open_pool(backbone: Backbone, data: Script, ranks: Any = None) -> ScriptPool:
    if data.unloadable:
        raise BackboneError("there are no weights here")
    return ScriptPool(data)


def train_script(
    plan: Plan,
    ledger: Ledger,
    script: Script,
    folder: Path,
    *,
    resources: Any = None,
    scheduler: Any = None,
    on_record: Callable[[Record], object] = lambda record: None,
    on_progress: Callable[[Any], object] | None = None,
    max_trials: int = 2,
    **terms: Any,
) -> Any:
    """Run a study whose training is a script; `terms` are fields of `RunTerms`.

    Each trial in flight is a process that imports Tune for seconds, so there are few, and without `resources`
    a host has few lanes.
    """
    from raymrc.scheduling.terms import Listeners, RunTerms
    from raymrc.sweep import driver
    from raymrc.sweep.driver import Training, run_study
    from raymrc.sweep.session import HostResources

    driver.MAX_TRIALS = max_trials
    return run_study(
        plan,
        ledger,
        Training(open_pool, script, resources or HostResources(lanes=3), scheduler),
        folder,
        RunTerms(**terms),
        Listeners(on_record, on_progress),
    )


def _refuse_lock(lock: int, what: int) -> None:
    raise OSError(errno.ENOSYS, "Function not implemented")


if __name__ == "__main__":
    from raymrc.costs.budget import Budget
    from raymrc.errors import StudyError
    from raymrc.sweep import driver
    from raymrc.sweep.session import HostResources

    folder, nap, flags = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    raced = "race" in flags
    if "blind" in flags:
        driver.only_run = lambda storage, log: nullcontext(lambda: False)  # type: ignore[assignment]
    if "lockless" in flags:
        fcntl.flock = _refuse_lock  # type: ignore[assignment]
    hours = [float(flag) / 3600 for flag in flags if flag[0].isdigit()]
    holds_after = next((int(f.removeprefix("hold-")) for f in flags if f.startswith("hold-")), None)
    script = Script(folder / "trained", nap, raced=raced, holds_after=holds_after)
    for made in (script.folder, script.ended):
        made.mkdir(parents=True, exist_ok=True)
    try:
        outcome = train_script(
            make_race(3) if raced else make_plan(), Ledger(str(folder)), script, folder,
            resources=HostResources(lanes=1 if raced else 3),
            budget=Budget(device_hours=hours[0] if hours else None),
        )  # fmt: skip
    except StudyError as error:
        print(error, flush=True)
        sys.exit(2)
    print("in the ledger", outcome.done + outcome.reused, flush=True)
    sys.exit(130 if outcome.interrupted else 3 if outcome.out_of_budget else 0)
