"""The study under fault injection: its plan, its training, and its drivers, each in its own process.

python -m tests.chaos.study      starts a driver per line of stdin: FOLDER ADDRESS NUMBER

Drivers are forked from one process that has imported everything, because imports take longer than the study.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from raymrc.configuration import Backbone, FoldRun
from raymrc.costs.budget import Budget, Need
from raymrc.ledger.ledger import Ledger
from raymrc.ledger.record import Epoch, LaneEvent, Record
from raymrc.planning.plan import Plan
from raymrc.racing.racing import Racing
from tests.sweep.making import Script, ScriptPool, make_plan

EPOCHS = 4
RATES = (0.1, 0.2, 0.3)
FOLDS = 2
REAL_RATES = (0.01, 0.02)
ANSWER = "drivers.log"


@dataclass(frozen=True)
class Terms:
    """The settings of a run that its drivers need.

    Args:
        storage: a folder or URL.
        tiny: the folder of a tiny backbone that is really trained; "" for a training that only sleeps.
        seconds: minimum duration of a fold-run.
        raced: configurations race.
        save_seconds: see `session.HostResources`.
        cap: device-seconds of the budget; None: no budget.
        expects: the cost of a fold-run is known beforehand.
        clock: per driver, the error of its clock in seconds, and a further error from ten seconds after its
            start.
    """

    storage: str
    tiny: str
    seconds: float
    raced: bool
    save_seconds: float
    cap: float | None
    expects: bool
    clock: tuple[tuple[float, float], ...] = ((0.0, 0.0),)

    def write(self, folder: Path) -> None:
        (folder / "terms.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Terms:
        return cls(**json.loads((folder / "terms.json").read_text()))

    @property
    def plan(self) -> Plan:
        if self.tiny:
            terms: dict[str, Any] = {
                "prompt_length": 4, "match_width": 16, "epochs": EPOCHS, "batch_size": 4,
                "window": 20, "overlap": 4, "dropout": 0.0,
            }  # fmt: skip
            strategies = ["frozen_soft_prompt", "soft_prompt"]
            backbone = Backbone("tiny", self.tiny)
            return make_plan(REAL_RATES, strategies, backbone=backbone, folds=3, **terms)
        strategies = ["frozen_soft_prompt", "fine_tune"]
        plan = make_plan(RATES, strategies, folds=FOLDS, epochs=EPOCHS)
        return replace(plan, racing=Racing(rungs=(0.25, 0.5, 1.0))) if self.raced else plan


def script(folder: Path, seconds: float) -> Script:
    return Script(folder / "trained", seconds, raced=True)


# --- training that writes a log -------------------------------------------------------------------


def shift_clock(first: float, later: float, at: float) -> None:
    """Make the clock of this process wrong, and let it jump.

    Args:
        at: true Unix time.
    """
    if (first, later) != (0.0, 0.0):
        time.time = lambda: true_time() + (first if true_time() < at else first + later)


def true_time() -> float:
    return time.clock_gettime(time.CLOCK_REALTIME)


@dataclass(frozen=True)
class Logged:
    """Opens pools that log what is opened and ended, and how long each epoch took.

    A process that unpickles it, such as a host, gets the driver's clock.
    """

    folder: Path
    seconds: float
    is_real: bool
    clock: tuple[float, float, float]

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (self.folder, self.seconds, self.is_real, self.clock)

    def __call__(self, backbone: Backbone, data: Any, ranks: Any = None) -> LoggedPool:
        if not self.is_real:
            return LoggedPool(ScriptPool(data), self.folder / "log")
        from raymrc.training.trainer import Trainer

        return LoggedPool(
            Trainer().open_pool(backbone, data, ranks), self.folder / "log", self.seconds
        )


def _unpickle(folder: Path, seconds: float, is_real: bool, clock: Any) -> Logged:
    shift_clock(*clock)
    return Logged(folder, seconds, is_real, clock)


class LoggedPool:
    """Wraps a pool and writes a line per event.

    Args:
        seconds: minimum duration of a fold-run, spread over its epochs.
    """

    def __init__(self, pool: Any, log: Path, seconds: float = 0.0) -> None:
        self._pool = pool
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._seconds = seconds
        self._spent: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._pool)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def open(self, fold_run: FoldRun, state: bytes | None = None) -> None:
        self._pool.open(fold_run, state)
        self._spent[fold_run.key] = 0.0
        self._note("open", fold_run.key, self._pool.epochs(fold_run.key))

    def close(self, key: str) -> None:
        self._pool.close(key)
        self._spent.pop(key, None)

    def pause(self, key: str) -> Record:
        record: Record = self._pool.pause(key)
        self._spent.pop(key, None)
        return record

    def step(self) -> Sequence[LaneEvent]:
        began = time.monotonic()
        events: Sequence[LaneEvent] = self._pool.step()
        if self._seconds:
            ended = sum(isinstance(event.what, Epoch) for event in events)
            time.sleep(ended * self._seconds / EPOCHS)
        took = time.monotonic() - began
        for key in self._spent:
            self._spent[key] += took / len(self._spent)
        for event in events:
            key, what = event.key, event.what
            if isinstance(what, Epoch):
                self._note("epoch", key, what.epoch)
                self._spent[key] = 0.0
            else:
                self._note("end" if isinstance(what, Record) else "fail", key, 0)
                del self._spent[key]
        return events

    def _note(self, what: str, key: str, epoch: int) -> None:
        """A single write, so that a killed process leaves no half line."""
        line = f"{true_time():.3f} {what} {key} {epoch} {self._spent[key]:.4f} {os.getpid()}\n"
        os.write(self._log, line.encode())


# --- a driver ---------------------------------------------------------------------------------------


def drive(folder: Path, number: int) -> int:
    """Run one driver; returns the exit code of `raymrc run`."""
    from raymrc.errors import RaymrcError
    from raymrc.scheduling.terms import RunTerms
    from raymrc.sweep.driver import Training, run_study
    from raymrc.sweep.session import HostResources
    from tests.training.test_lane import make_data, make_notes

    terms = Terms.read(folder)
    first, later = terms.clock[number % len(terms.clock)]
    clock = (first, later, true_time() + 10.0)
    shift_clock(*clock)
    plan = terms.plan
    hours = None if terms.cap is None else terms.cap / 3600
    needs = Need(1.1 * terms.seconds, 0.7 * terms.seconds, 2.0 * terms.seconds, saving_seconds=0.1)
    try:
        training = Training(
            Logged(folder, terms.seconds, bool(terms.tiny), clock),
            make_data(make_notes(), plan.folds) if terms.tiny else script(folder, terms.seconds),
            # Lanes that share passes give equal results, but not to the last digit.
            HostResources(
                max_hosts=2, lanes=1 if terms.tiny else 2, save_seconds=terms.save_seconds
            ),
        )
        outcome = run_study(
            plan,
            Ledger(terms.storage),
            training,
            folder / "study",
            RunTerms(
                Budget(device_hours=hours, device_hour_usd=1.0),
                (lambda run: needs) if terms.expects else None,
            ),
        )
    except RaymrcError as error:
        print(error, flush=True)
        return 2
    print(json.dumps(asdict(outcome)), flush=True)
    return (
        130 if outcome.interrupted
        else 3 if outcome.out_of_budget
        else 1 if outcome.failed or outcome.closed
        else 0
    )  # fmt: skip


def serve() -> None:
    """Start drivers, and print "PID CODE" when they end; a signal gives a negative code."""
    import torch  # noqa: F401

    import raymrc.sweep.driver  # noqa: F401
    import tests.training.test_lane  # noqa: F401

    def reap(*_: object) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            os.write(1, f"{pid} {os.waitstatus_to_exitcode(status)}\n".encode())

    signal.signal(signal.SIGCHLD, reap)
    os.write(1, b"ready\n")
    for line in sys.stdin:
        folder, address, number = line.split()
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            out = os.open(Path(folder) / ANSWER, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.environ["RAY_ADDRESS"] = address
            try:
                sys.exit(drive(Path(folder), int(number)))
            except KeyboardInterrupt:  # before the study has begun, as the command does
                sys.exit(130)
        os.write(1, f"{pid} started\n".encode())


if __name__ == "__main__":
    serve()
