"""The thread of the driver that keeps MLflow up with the ledger."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from raymrc.configuration import Configuration
from raymrc.errors import RaymrcError
from raymrc.ledger.record import Record
from raymrc.ledger.storage import hide_password
from raymrc.tracking.datasets import Dataset
from raymrc.tracking.drawings import Figures, StudyHeader, build_snapshots, read_figures
from raymrc.tracking.writers import (
    DELETED,
    ExistingRun,
    TrackingPlace,
    Writer,
    open_writer,
    quiet_loggers,
)

BATCH = 100
"""At most so many runs are written in one go."""

RETRY_SECONDS = 30.0
"""After a failure, MLflow is left alone for so long."""


class MlflowRecorder:
    """Draws records into MLflow from a thread of the driver, which never waits for it.

        with MlflowRecorder(TrackingPlace.of(spec), records=ledger.records()) as recorder:
            recorder.record(record)

    Args:
        place: where the study is shown.
        records: what the ledger holds already; what of it is not drawn yet is drawn first.
        say: takes the one sentence that MLflow is away.
        may_win: which configurations a cell's figures may be of, such as `Plan.holds`; None: all.
        datasets: the study's notes.
        live: whether the study is running: its run says so, and MLflow watches this machine meanwhile.
    """

    def __init__(
        self,
        place: TrackingPlace,
        *,
        records: Iterable[Record] = (),
        say: Callable[[str], None] | None = None,
        may_win: Callable[[Configuration], bool] | None = None,
        datasets: Sequence[Dataset] = (),
        live: bool = True,
    ) -> None:
        # Here and not in the thread: two threads that import big packages at once can meet.
        import mlflow.entities
        import mlflow.system_metrics.system_metrics_monitor
        import mlflow.tracking  # noqa: F401

        self.place = place
        self.study = StudyHeader(place.study_name, tuple(datasets), live)
        self.behind = False
        """MLflow lacks something that the ledger has; `raymrc sync` catches up."""
        self.error: Exception | None = None
        """Why; of the latest try."""
        self.written = 0
        """Runs written or changed by this recorder."""
        self._say = say or (lambda sentence: None)
        self._may_win = may_win
        self._said = False
        # One that pauses is no run yet.
        self._records = {record.key: record for record in records if record.status != "paused"}
        self._figures: dict[str, Figures] = {}
        self._writer: Writer | None = None
        self._standing: dict[str, ExistingRun] = {}
        self._monitor: Any = None
        self._queue: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def __enter__(self) -> MlflowRecorder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def record(self, record: Record) -> None:
        """Hand over a record; never waits, never raises."""
        self._queue.put(record)

    def close(self) -> None:
        """Write what is left and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        waiting = set(self._records)
        next_try = 0.0
        closing = False
        while not closing:
            for record in self._take(patient=not waiting):
                if record is None:
                    closing = True
                    self._stop_watching()
                    self.study = replace(self.study, runs=False)
                    # A last look at all: what a configuration is called depends on the others.
                    waiting = {*self._figures, *self._records}
                else:
                    self._records[record.key] = record
                    waiting.add(record.key)
            if not waiting or (not closing and time.monotonic() < next_try):
                continue
            try:
                self._draw(waiting)
                waiting.clear()
                self.behind = False
            except Exception as error:
                self.behind, self.error = True, error
                next_try = time.monotonic() + RETRY_SECONDS
                self._complain(error)

    def _take(self, *, patient: bool) -> list[Record | None]:
        """What is in the queue; waits for a first item if `patient`, else at most a second."""
        taken: list[Record | None] = []
        with contextlib.suppress(queue.Empty):
            taken.append(self._queue.get(timeout=None if patient else 1.0))
            while len(taken) < BATCH and taken[-1] is not None:
                # A short breath lets a batch gather: a transaction for one run costs as much.
                taken.append(self._queue.get(timeout=0.2))
        return taken

    def _draw(self, touched: set[str]) -> None:
        while self._records:
            key, record = next(iter(self._records.items()))
            self._figures[key] = read_figures(record)
            del self._records[key]  # a record is a hundred times its figures
        if self._writer is None:
            self._writer = open_writer(self.place)
            self._standing = self._writer.standing()
        drawings = [
            drawing
            for drawing in build_snapshots(
                list(self._figures.values()), touched, self._may_win, self.study
            )
            if (known := self._standing.get(drawing.key)) is None
            or known.digest not in (drawing.digest, DELETED)
        ]
        for start in range(0, len(drawings), BATCH):
            batch = drawings[start : start + BATCH]
            self._writer.write(batch, self._standing)
            self.written += len(batch)
        self._watch()

    def _watch(self) -> None:
        """MLflow's own monitor of this machine, into the study's run, while that is running."""
        known = self._standing.get(self.study.key)
        if not self.study.runs or self._monitor or known is None or known.digest == DELETED:
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        with quiet_loggers():
            self._monitor = SystemMetricsMonitor(
                known.run_id, resume_logging=True, tracking_uri=self.place.tracking_uri
            )
            self._monitor.start()

    def _stop_watching(self) -> None:
        if self._monitor is not None:
            with quiet_loggers():
                self._monitor.finish()

    def _complain(self, error: Exception) -> None:
        if not self._said:
            self._said = True
            # Of others the type alone: an error's text can hold a password of the address, or worse.
            why = str(error) if isinstance(error, RaymrcError) else type(error).__name__
            self._say(
                f"MLflow at {hide_password(self.place.tracking_uri)} cannot be written "
                f"({why}); the study goes on, and 'raymrc sync' catches up later"
            )


def sync_study(
    records: Iterable[Record],
    place: TrackingPlace,
    may_win: Callable[[Configuration], bool] | None = None,
    datasets: Sequence[Dataset] = (),
) -> int:
    """Draw into MLflow what it lacks of the ledger, and nothing twice.

    Args:
        may_win, datasets: as in `MlflowRecorder`.

    Returns:
        How many runs were written or changed; 0 where MLflow had everything.

    Raises:
        RaymrcError: MLflow cannot be written.
    """
    said: list[str] = []
    with MlflowRecorder(
        place, records=records, say=said.append, may_win=may_win, datasets=datasets, live=False
    ) as recorder:
        pass
    if isinstance(recorder.error, RaymrcError):
        raise recorder.error
    if recorder.behind:
        raise RaymrcError(
            f"MLflow at {hide_password(place.tracking_uri)} cannot be written; is the server running, "
            "and may this user write there?"
        )
    return recorder.written
