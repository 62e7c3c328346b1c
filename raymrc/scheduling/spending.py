"""What one run of a study may spend and has spent, for the driver; `sweep/coordinator.py` keeps count."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from raymrc.configuration import FoldRun
from raymrc.costs.account import Account
from raymrc.costs.budget import Budget, Need, Spent, overhead
from raymrc.costs.journal import Journal, unfinished
from raymrc.errors import LedgerError
from raymrc.ledger.record import Record
from raymrc.scheduling.allowance import Allowance
from raymrc.scheduling.only_run import this_process


class Spending:
    """The account of this run. As a context it lasts as long as the run trains.

    Args:
        records: the ledger's.
        expect: the expected cost of a fold-run; None where it is unknown.

    Raises:
        LedgerError: the journal of earlier runs cannot be read.
    """

    def __init__(
        self,
        budget: Budget,
        storage: str,
        records: Sequence[Record],
        expect: Callable[[FoldRun], Need | None] | None = None,
    ) -> None:
        self.budget = budget
        self.stopped = ""
        self.spent: Spent | None = None
        self.device_seconds = 0.0
        self._expect = expect
        self._journal = Journal(storage)
        self._entries = self._journal.entries()
        self.account = Account(
            budget, self._entries, time.time(), time.monotonic(), process=this_process()
        )
        held = sum(entry.device_seconds for entry in self._entries)
        self._overhead = overhead(held, sum(record.device_seconds for record in records))
        self._is_shared = False

    @property
    def text(self) -> str:
        """What is spent of the budget; "" where there is none."""
        return self.budget.describe(self.spent) if self.budget and self.spent is not None else ""

    def may_begin(self) -> bool:
        moment = time.monotonic()
        left = self.account.left(moment)
        if left.device_seconds > 0 and left.wall_seconds > 0:
            return True
        self.spent = self.account.spent(moment)
        self.stopped = self.budget.exhausted_message(self.spent)
        return False

    def __enter__(self) -> None:
        """Wall time counts from now on. The caller is the only run: drivers that did not end are dead.

        Raises:
            LedgerError: the journal cannot be written.
        """
        dead = [entry for entry in self._entries if not entry.has_ended]
        for entry in dead:
            self._journal.mark_dead(entry)
        if dead:  # the budget keeps nothing for them any more
            self.account.update_others(self._journal.entries())
        moment = time.monotonic()
        lease = self.account.lease(time.time(), moment, 0.0)
        self._journal.write(lease)
        self.account.confirm(lease, moment, 0.0)

    def __exit__(self, *error: object) -> None:
        if not self._is_shared:  # no host was requested
            with suppress(LedgerError):
                self._journal.write(self.account.final_entry(time.time(), time.monotonic()))

    def share(self) -> Account:
        """For the coordinator, which writes the journal from now on."""
        self._is_shared = True
        return self.account

    def settle(self, closing: Closing) -> None:
        """The coordinator has ended, and has written what was spent."""
        self.spent, self.device_seconds = closing.spent, closing.device_seconds
        if closing.stopped is not None and closing.stopped.by_budget:
            self.stopped = closing.stopped.sentence

    def allowance(self, host_devices: float) -> Allowance | None:
        """What is left of the budget; None where there is none. See `Allowance`."""
        if not self.budget:
            return None
        return Allowance(host_devices, self._overhead, unfinished(self._entries))

    def needs(self, fold_runs: Sequence[FoldRun]) -> dict[str, Need]:
        """The known expected costs by key; empty without a budget."""
        if not self.budget or self._expect is None:
            return {}
        found = {run.key: self._expect(run) for run in fold_runs}
        return {key: need for key, need in found.items() if need is not None}


@dataclass(frozen=True, slots=True)
class Stopped:
    """Why a run ends before its work does.

    Args:
        by_budget: whether a larger budget would let it continue.
    """

    sentence: str
    by_budget: bool


@dataclass(frozen=True, slots=True)
class Closing:
    """How the coordinator ended.

    Args:
        spent: by the study, in all runs.
        device_seconds: held by hosts of this run.
        stopped: None where the run came to its end.
    """

    spent: Spent
    device_seconds: float
    stopped: Stopped | None
