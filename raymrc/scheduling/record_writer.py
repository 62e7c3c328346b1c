"""Finished records on their way into the ledger, by a thread that waits out a storage that refuses.

driver: put, put ... -> Keeper -> Ledger.record        written: what is in the ledger by now
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from raymrc.errors import LedgerError
from raymrc.ledger.record import Record

OUTAGE_PATIENCE_SECONDS = 600.0
"""A storage may refuse for so long: a full disk takes a person some minutes, and so does what clouds call a
short outage. Fold-runs take minutes each, so what waits meanwhile is little memory."""

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 30.0
"""Before it is asked again; twice as long each time."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why finished fold-runs wait.

    Args:
        waiting: how many.
        reason: what the storage says.
    """

    waiting: int
    reason: str


class RecordWriter:
    """Writes records in the order in which they came; none is dropped while there is patience.

    Args:
        record: writes one; see `Ledger.record`.
        kept: told in the writing thread of each that is in the ledger.
        patience_seconds: from the first refusal on; each success gives all of it back.
        clock, pause: seconds that only go forward; waits for some, or less when it is time to end.
    """

    def __init__(
        self,
        record: Callable[[Record, str | None], None],
        kept: Callable[[Record], None],
        patience_seconds: float = OUTAGE_PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._record = record
        self._kept = kept
        self._patience = patience_seconds
        self._clock = clock
        self._pause = pause
        self._queue: queue.SimpleQueue[tuple[Record, str | None, bool] | None] = queue.SimpleQueue()
        self._written: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self._given = self._settled = 0
        self._reason = ""
        self.error: Exception | None = None
        """Why it has given up; what came since is not written."""
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)
        self._thread.start()

    def put(self, record: Record, text: str | None = None, *, quietly: bool = False) -> None:
        """Hand over a record; never waits.

        Args:
            text: `record.to_json()`, where it is at hand.
            quietly: it is not one of those that are `written`: another one will take its place.
        """
        self._given += 1
        self._queue.put((record, text, quietly))

    def written(self) -> list[Record]:
        """Those that have come into the ledger since this was last asked, in order."""
        found = []
        while not self._written.empty():
            found.append(self._written.get())
        return found

    @property
    def trouble(self) -> Trouble | None:
        """None where the storage does as it is told."""
        reason = self._reason
        return Trouble(self._given - self._settled, reason) if reason else None

    def close(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Waits until all is written, or patience is at its end.

        Args:
            meanwhile: called now and then, to say so.
        """
        self._queue.put(None)
        while self._thread.is_alive():
            self._thread.join(0.5)
            meanwhile()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            if self.error is None:
                try:
                    self._write(*item)
                except Exception as error:
                    self.error = error
            self._settled += 1

    def _write(self, record: Record, text: str | None, quietly: bool) -> None:
        refused_at: float | None = None
        wait = FIRST_WAIT_SECONDS
        while True:
            try:
                self._record(record, text)
                break
            except LedgerError as error:
                now = self._clock()
                refused_at = now if refused_at is None else refused_at
                if now - refused_at >= self._patience:
                    raise LedgerError(
                        f"{error}; finished fold-runs could not be kept for "
                        f"{self._patience / 60:.0f} minutes and will be trained again; mend the "
                        "storage and run the study again"
                    ) from None
                self._reason = str(error)
            self._pause(min(wait, self._patience - (now - refused_at)))
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)
        self._reason = ""
        self._kept(record)
        if not quietly:
            self._written.put(record)
