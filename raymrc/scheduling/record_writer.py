"""Writes finished records to the ledger from its own thread, and waits while the storage refuses them.

driver: put, put ... -> RecordWriter -> Ledger.record        written: what has reached the ledger
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from raymrc.errors import LedgerError
from raymrc.ledger.record import Record

OUTAGE_PATIENCE_SECONDS = 600.0
"""A full disk takes a person minutes to clear. Waiting records take little memory meanwhile."""

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 30.0
"""Between two tries; each wait is twice the one before."""


class RecordWriter:
    """Writes records in the order in which they came. It drops none while its patience lasts.

    Args:
        record: writes one; see `Ledger.record`.
        after_write: called in the writing thread with each record that is in the ledger.
        patience_seconds: counted from the first refusal; each success restores all of it.
        clock: monotonic seconds.
        pause: waits for a number of seconds.
    """

    def __init__(
        self,
        record: Callable[[Record, str | None], None],
        after_write: Callable[[Record], None],
        patience_seconds: float = OUTAGE_PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._record = record
        self._after_write = after_write
        self._patience = patience_seconds
        self._clock = clock
        self._pause = pause
        self._queue: queue.SimpleQueue[tuple[Record, str | None, bool] | None] = queue.SimpleQueue()
        self._written: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self._num_put = self._num_settled = 0
        self._reason = ""
        self.error: Exception | None = None
        """Why the writer gave up; it writes nothing after that."""
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)
        self._thread.start()

    def put(self, record: Record, text: str | None = None, *, quietly: bool = False) -> None:
        """Hand over a record; never waits.

        Args:
            text: `record.to_json()`, if the caller has it.
            quietly: leave it out of `written`, because another record will replace it.
        """
        self._num_put += 1
        self._queue.put((record, text, quietly))

    def written(self) -> list[Record]:
        """Records that have reached the ledger since the last call, in order."""
        found = []
        while not self._written.empty():
            found.append(self._written.get())
        return found

    @property
    def trouble(self) -> tuple[int, str]:
        """The number of records that the storage refuses, and its message; (0, "") while it takes them."""
        reason = self._reason
        return (self._num_put - self._num_settled, reason) if reason else (0, "")

    def close(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Wait until all is written or patience has ended; call `meanwhile` twice a second."""
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
            self._num_settled += 1

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
                        f"{error}; finished fold-runs could not be written for "
                        f"{self._patience / 60:.0f} minutes and will be trained again; repair the "
                        "storage and run the study again"
                    ) from None
                self._reason = str(error)
            self._pause(min(wait, self._patience - (now - refused_at)))
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)
        self._reason = ""
        self._after_write(record)
        if not quietly:
            self._written.put(record)
