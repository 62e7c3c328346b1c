"""The driver's thread that keeps MLflow up to date with the ledger."""

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
from raymrc.tracking.datasets import Dataset
from raymrc.tracking.experiment import TrackingPlace, quiet_loggers
from raymrc.tracking.mlflow_internals import import_machine_monitor
from raymrc.tracking.snapshots import (
    DELETED,
    ExistingRun,
    Figures,
    StudyHeader,
    build_snapshots,
    read_figures,
)
from raymrc.tracking.writers import Writer, open_writer

MAX_RUNS_PER_WRITE = 100
RETRY_SECONDS = 30.0
"""Pause after a failed write."""


class MlflowRecorder:
    """Writes records to MLflow from a thread of the driver, which never waits for it.

        with MlflowRecorder(TrackingPlace.of(spec), records=ledger.records()) as recorder:
            recorder.record(record)

    Args:
        records: the ledger's; those that MLflow lacks are written first.
        warn: takes one sentence, once, when MLflow cannot be written.
        may_win: which configurations a cell may show as its winner, such as `Plan.holds`.
        live: whether the study is running: its run then has that status, and MLflow monitors this machine.
    """

    def __init__(
        self,
        place: TrackingPlace,
        *,
        records: Iterable[Record] = (),
        warn: Callable[[str], object] = lambda sentence: None,
        may_win: Callable[[Configuration], bool] = lambda configuration: True,
        datasets: Sequence[Dataset] = (),
        live: bool = True,
    ) -> None:
        # Not in the thread: two threads that import large packages at once can deadlock.
        import mlflow.entities
        import mlflow.tracking  # noqa: F401

        self._new_monitor = import_machine_monitor()
        self.place = place
        self.study = StudyHeader(place.study_name, tuple(datasets), live)
        self.behind = False
        """MLflow lacks something that the ledger has; `raymrc sync` catches up."""
        self.error: Exception | None = None
        """Of the latest failed write."""
        self.written = 0
        """Runs created or changed by this recorder."""
        self._warn = warn
        self._may_win = may_win
        # A paused fold-run gets its MLflow run when it has ended.
        self._records = {record.key: record for record in records if not record.is_paused}
        self._figures: dict[str, Figures] = {}
        self._writer: Writer | None = None
        self._existing: dict[str, ExistingRun] = {}
        self._monitor: Any = None
        self._queue: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def __enter__(self) -> MlflowRecorder:
        return self

    def __exit__(self, *error: object) -> None:
        """Write what is left and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def record(self, record: Record) -> None:
        """Hand over a record; never waits, never raises."""
        self._queue.put(record)

    def _work(self) -> None:
        changed_keys = set(self._records)
        next_try = 0.0
        closing = False
        while not closing:
            for record in self._take(patient=not changed_keys):
                if record is None:
                    closing = True
                    if self._monitor is not None:
                        with quiet_loggers():
                            self._monitor.finish()
                    self.study = replace(self.study, is_running=False)
                    # Compare all runs once more: a configuration's name depends on the other ones.
                    changed_keys = {*self._figures, *self._records}
                else:
                    self._records[record.key] = record
                    changed_keys.add(record.key)
            if not changed_keys or (not closing and time.monotonic() < next_try):
                continue
            try:
                self._write(changed_keys)
                changed_keys.clear()
                self.behind = False
            except Exception as error:
                next_try = time.monotonic() + RETRY_SECONDS
                if self.error is None:
                    # MLflow's messages can hold a password of the URI, or worse; its type is enough.
                    reason = str(error) if isinstance(error, RaymrcError) else type(error).__name__
                    self._warn(
                        f"MLflow at {self.place.shown_uri} cannot be written ({reason}); "
                        "the study goes on, and 'raymrc sync' catches up later"
                    )
                self.behind, self.error = True, error

    def _take(self, *, patient: bool) -> list[Record | None]:
        """Queued records; waits for a first one if `patient`, else at most a second."""
        taken: list[Record | None] = []
        with contextlib.suppress(queue.Empty):
            taken.append(self._queue.get(timeout=None if patient else 1.0))
            while len(taken) < MAX_RUNS_PER_WRITE and taken[-1] is not None:
                # A short wait fills the batch: one transaction costs the same for one run.
                taken.append(self._queue.get(timeout=0.2))
        return taken

    def _write(self, changed_keys: set[str]) -> None:
        for key in list(self._records):
            self._figures[key] = read_figures(self._records[key])
            del self._records[key]  # a record takes a hundred times the memory of its figures
        if self._writer is None:
            self._writer = open_writer(self.place)
            self._existing = self._writer.find_runs()
        figures = self._figures.values()
        snapshots = [
            snapshot
            for snapshot in build_snapshots(figures, changed_keys, self._may_win, self.study)
            if (known := self._existing.get(snapshot.key)) is None
            or known.digest not in (snapshot.digest, DELETED)
        ]
        for start in range(0, len(snapshots), MAX_RUNS_PER_WRITE):
            batch = snapshots[start : start + MAX_RUNS_PER_WRITE]
            self._writer.write(batch, self._existing)
            self.written += len(batch)
        run = self._existing.get(self.study.key)
        if self.study.is_running and not self._monitor and run and run.digest != DELETED:
            with quiet_loggers():
                self._monitor = self._new_monitor(run.run_id, tracking_uri=self.place.tracking_uri)
                self._monitor.start()


def sync_study(
    records: Iterable[Record],
    place: TrackingPlace,
    may_win: Callable[[Configuration], bool] = lambda configuration: True,
    datasets: Sequence[Dataset] = (),
) -> int:
    """Write what MLflow lacks of the ledger, and nothing twice.

    Args:
        may_win, datasets: as in `MlflowRecorder`.

    Returns:
        How many runs were created or changed; 0 if MLflow had everything.

    Raises:
        RaymrcError: MLflow cannot be written.
    """
    with MlflowRecorder(
        place, records=records, may_win=may_win, datasets=datasets, live=False
    ) as recorder:
        pass
    if recorder.behind:
        if isinstance(recorder.error, RaymrcError):
            raise recorder.error
        raise RaymrcError(
            f"MLflow at {place.shown_uri} cannot be written; is the server running, "
            "and may this user write there?"
        )
    return recorder.written
