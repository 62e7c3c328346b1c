"""What one run of a study may spend and has spent, as the driver sees it; `sweep/coordinator.py` keeps it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from raymrc.configuration import FoldRun
from raymrc.costs.account import Account
from raymrc.costs.budget import (
    Budget,
    Need,
    Spent,
    overhead,
)
from raymrc.costs.journal import Journal, unfinished
from raymrc.errors import LedgerError, StudyError
from raymrc.ledger.record import Record
from raymrc.scheduling.only_run import (
    WHAT_TO_DO,
    at_work,
    this_process,
)


class Spending:
    """The account of this run, from its beginning to its end.

    Args:
        records: of the ledger.
        expect: what a fold-run is expected to cost.

    Raises:
        LedgerError: what was spent cannot be read.
    """

    def __init__(
        self,
        budget: Budget,
        storage: str,
        records: Sequence[Record],
        expect: Callable[[FoldRun], Need | None],
    ) -> None:
        self.budget = budget
        self.expect = expect
        self.stopped = ""
        self.spent: Spent | None = None
        self.device_seconds = 0.0
        self._storage = storage
        self._journal = Journal(storage)
        entries = self._journal.entries()
        self.account = Account(
            budget, entries, time.time(), time.monotonic(), process=this_process()
        )
        self._earlier = {entry.driver for entry in entries}
        self.unfinished = unfinished(entries)
        held = sum(entry.device_seconds for entry in entries)
        self.overhead = overhead(held, sum(record.device_seconds for record in records))
        self._is_shared = False

    @property
    def told(self) -> str:
        """What is spent of the budget; "" where there is none."""
        return self.budget.describe(self.spent) if self.budget and self.spent is not None else ""

    def may_begin(self) -> bool:
        moment = time.monotonic()
        if self.account.seconds_left_of_budget(moment) > 0:
            return True
        self.spent = self.account.spent(moment)
        self.stopped = self.budget.exhausted_message(self.spent)
        return False

    def __enter__(self) -> None:
        """Wall time counts from here on.

        Raises:
            LedgerError: it cannot be written down.
            StudyError: see `look_around`.
        """
        moment = time.monotonic()
        lease = self.account.lease(time.time(), moment, 0.0)
        self._journal.write(lease)
        self.account.paid(lease, moment, 0.0)
        self.look_around()

    def look_around(self) -> None:
        """Both write before they look, so of two that begin at once at least one sees the other.

        Raises:
            StudyError: another run has begun just now, that saw no lock.
        """
        entries = self._journal.entries()
        self.account.hear(entries)  # of those that were buried nothing is reserved any more
        for entry in entries:
            is_new = entry.driver not in self._earlier and entry.driver != self.account.driver
            if is_new and not entry.has_ended:
                self.__exit__()
                raise StudyError(f"{at_work(self._storage, entry.process)}; {WHAT_TO_DO}")

    def share(self) -> Account:
        """For the reception, which from now on writes what is spent."""
        self._is_shared = True
        return self.account

    def settle(self, closing: Closing) -> None:
        """The reception has told what it was, and written it."""
        self.spent, self.device_seconds = closing.spent, closing.device_seconds
        if closing.stopped is not None and closing.stopped.by_budget:
            self.stopped = closing.stopped.sentence

    def __exit__(self, *error: object) -> None:
        if not self._is_shared:  # no host was ever asked for
            with suppress(LedgerError):
                self._journal.write(self.account.last(time.time(), time.monotonic()))

    def needs(self, fold_runs: Sequence[FoldRun]) -> dict[str, Need]:
        """Of those of which something is known, by key."""
        if not self.budget:
            return {}
        found = {run.key: self.expect(run) for run in fold_runs}
        return {key: need for key, need in found.items() if need is not None}


@dataclass(frozen=True, slots=True)
class Stopped:
    """Why a run ends before its work does.

    Args:
        by_budget: whether a larger budget is what it wants.
    """

    sentence: str
    by_budget: bool


@dataclass(frozen=True, slots=True)
class Closing:
    """
    Args:
        spent: by the study, in all.
        device_seconds: that hosts of this run held.
        stopped: what ended it; None where it came to its end.
    """

    spent: Spent
    device_seconds: float
    stopped: Stopped | None
