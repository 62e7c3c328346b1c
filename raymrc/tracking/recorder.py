"""The thread of the driver that keeps MLflow up with the ledger."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable

from raymrc.errors import RaymrcError
from raymrc.study.configuration import Configuration
from raymrc.study.record import Record
from raymrc.tracking.drawings import Figures, draw, read_figures
from raymrc.tracking.writers import DELETED, Standing, Writer, hide_password, open_writer

BATCH = 100
"""At most so many runs are written in one go."""

RETRY_SECONDS = 30.0
"""After a failure, MLflow is left alone for so long."""


class MlflowRecorder:
    """Draws records into MLflow from a thread of the driver, which never waits for it.

        with MlflowRecorder(uri, "demo", records=ledger.records()) as recorder:
            recorder.record(record)

    Args:
        tracking_uri: "sqlite:///path" or a server's URL.
        experiment: its name: the study's.
        records: what the ledger holds already; what of it is not drawn yet is drawn first.
        say: takes the one sentence that MLflow is away.
        may_win: which configurations a cell's figures may be of, such as `Plan.holds`; None: all.
    """

    def __init__(
        self,
        tracking_uri: str,
        experiment: str,
        *,
        records: Iterable[Record] = (),
        say: Callable[[str], None] | None = None,
        may_win: Callable[[Configuration], bool] | None = None,
    ) -> None:
        # Here and not in the thread: two threads that import big packages at once can meet.
        import mlflow.entities
        import mlflow.tracking  # noqa: F401

        self.tracking_uri = tracking_uri
        self.experiment = experiment
        self.behind = False
        """MLflow lacks something that the ledger has; `raymrc sync` catches up."""
        self.written = 0
        """Runs written or changed by this recorder."""
        self._say = say or (lambda sentence: None)
        self._may_win = may_win
        self._said = False
        # One that pauses is no run yet.
        self._records = {record.key: record for record in records if record.status != "paused"}
        self._figures: dict[str, Figures] = {}
        self._writer: Writer | None = None
        self._standing: dict[str, Standing] = {}
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
                self.behind = True
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
            self._writer = open_writer(self.tracking_uri, self.experiment)
            self._standing = self._writer.standing()
        drawings = [
            drawing
            for drawing in draw(list(self._figures.values()), touched, self._may_win)
            if (known := self._standing.get(drawing.key)) is None
            or known.digest not in (drawing.digest, DELETED)
        ]
        for start in range(0, len(drawings), BATCH):
            batch = drawings[start : start + BATCH]
            self._writer.write(batch, self._standing)
            self.written += len(batch)

    def _complain(self, error: Exception) -> None:
        if not self._said:
            self._said = True
            # The type alone: an error's text can hold a password of the address, or worse.
            self._say(
                f"MLflow at {hide_password(self.tracking_uri)} cannot be written "
                f"({type(error).__name__}); the study goes on, and 'raymrc sync' catches up later"
            )


def sync(
    records: Iterable[Record],
    tracking_uri: str,
    experiment: str,
    may_win: Callable[[Configuration], bool] | None = None,
) -> int:
    """Draw into MLflow what it lacks of the ledger, and nothing twice.

    Args:
        may_win: as in `MlflowRecorder`.

    Returns:
        How many runs were written or changed; 0 where MLflow had everything.

    Raises:
        RaymrcError: MLflow cannot be written.
    """
    said: list[str] = []
    with MlflowRecorder(
        tracking_uri, experiment, records=records, say=said.append, may_win=may_win
    ) as recorder:
        pass
    if recorder.behind:
        raise RaymrcError(
            f"MLflow at {hide_password(tracking_uri)} cannot be written; is the server running, "
            "and may this user write there?"
        )
    return recorder.written
