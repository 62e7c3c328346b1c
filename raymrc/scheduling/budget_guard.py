"""Decides when hosts have to leave so that a budget holds, and which fold-runs to defer.

account, queue, fleet -> BudgetGuard -> GuardDecision: hosts to kill, a lease to write
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from raymrc.costs.account import Account
from raymrc.costs.journal import WRITE_SECONDS, JournalEntry
from raymrc.scheduling.fleet import Fleet
from raymrc.scheduling.orders import SINGLE_DEVICE, HostKind, WorkerRange
from raymrc.scheduling.spending import Closing, Stopped
from raymrc.scheduling.work_queue import WorkQueue

KILL_SECONDS = {HostKind.HOST: 1.0, HostKind.GROUP: 3.0}
"""A host that is still there this long before the cap is killed; Ray takes part of the time."""

SAVING_MARGIN = 1.5
"""Factor on the duration of a host's last saves when time is set aside for the next ones."""

MAX_DEFERRED_TRIALS = 16
"""After this many consecutive trials of which nothing fits the budget, no further one is expected to fit."""


@dataclass(frozen=True, slots=True)
class GuardDecision:
    """
    Args:
        kill: names of hosts to kill; fleet and queue have them no more.
        has_news: trials and hosts that wait have something new.
        must_write: the journal has to be written now.
    """

    kill: tuple[str, ...] = ()
    has_news: bool = False
    must_write: bool = False


class BudgetGuard:
    """
    Args:
        storage: the study's folder or URL, for messages.

    Attributes:
        stopped: why the run ends early; None while it may go on.
        over_at: when the last host of a stopped run was gone.
        wanted_devices: devices that a lease has to cover before more hosts may start; 0 if it covers them.
    """

    def __init__(
        self, account: Account, queue: WorkQueue, fleet: Fleet, storage: str, now: float
    ) -> None:
        self.stopped: Stopped | None = None
        self.over_at: float | None = None
        self.wanted_devices = 0.0
        self._account = account
        self._queue = queue
        self._fleet = fleet
        self._storage = storage
        self._written_at = now
        self._pending: tuple[JournalEntry, float, float] | None = None
        self._deferred_trials = 0
        self._cheapest = math.inf

    def may_start(self, workers: WorkerRange, number: int, now: float) -> bool:
        """Whether the lease in force covers one more host. If not, the next one shall cover `number` more."""
        each, devices = self._charge(workers), self._fleet.devices
        if self._account.may_hold(devices + each, now):
            return True
        self.wanted_devices = max(self.wanted_devices, devices + number * each)
        return False

    def update_allowance(self, now: float) -> None:
        """Tell the queue what is left of the budget."""
        if self._queue.allowance is not None:
            left = self._account.left(now)
            device_seconds = left.device_seconds - self._account.reserved
            self._queue.allowance.set_left(device_seconds, left.wall_seconds)

    def check(self, now: float) -> GuardDecision:
        """The decision at this moment; to be called several times per second."""
        self.update_allowance(now)
        closing = self.closing_seconds()
        if self.stopped is not None:
            return self._kill_late_hosts(self._account.seconds_left(now), now)
        if self._account.limit_left(now) <= closing or self._is_too_late(now):
            return self._stop(self._budget_reached(now), now)
        if self._account.seconds_left(now) > closing:
            return self._defer(now)
        # The lease runs out, or hosts may just take longer to save than they did.
        if now - self._written_at <= 2 * WRITE_SECONDS:
            return GuardDecision(must_write=True)
        unwritten = (
            f"spending could not be written to {self._storage} for too long, so hosts were ended to keep "
            "the budget; run the study again"
        )
        return replace(self._stop(Stopped(unwritten, by_budget=False), now), must_write=True)

    def closing_seconds(self) -> float:
        """Expected seconds until all hosts have got the order to drain, have saved, and are gone."""
        return max(
            (
                KILL_SECONDS[host.kind]
                + host.longest_silence
                + SAVING_MARGIN * self._queue.saving_seconds(name)
                for name, host in self._fleet.hosts.items()
            ),
            default=0.0,
        )

    # --- the journal --------------------------------------------------------------------------------

    def lease(self, unix_time: float, now: float) -> JournalEntry:
        """The journal entry to write now."""
        devices, self.wanted_devices = max(self._fleet.devices, self.wanted_devices), 0.0
        open_runs, committed = len(self._queue.training), self._queue.committed
        entry = self._account.lease(
            unix_time, now, devices, open_runs, committed, self.closing_seconds()
        )
        self._pending = entry, now, devices
        return entry

    def confirm_lease(self, entries: Iterable[JournalEntry]) -> None:
        """Note that the last lease was written, and what the journal says of all runs since."""
        assert self._pending is not None
        entry, self._written_at, devices = self._pending
        self._account.confirm(entry, self._written_at, devices)
        self._account.update_others(entries)

    def close(self, unix_time: float, now: float) -> tuple[JournalEntry, Closing]:
        """The last journal entry, and the summary of the run."""
        moment = now if self.over_at is None else self.over_at
        last = self._account.final_entry(unix_time, moment, self._queue.unfinished_shares)
        stopped = self.stopped
        if stopped is None and self._cheapest < math.inf:
            stopped = self._too_little_left(now)
        elif stopped is not None and stopped.by_budget and not self._deferred_trials:
            stopped = self._budget_reached(moment)  # now that the figures are final
        return last, Closing(self._account.spent(moment), last.device_seconds, stopped)

    # --- decisions ----------------------------------------------------------------------------------

    def _stop(self, stopped: Stopped, now: float) -> GuardDecision:
        """Start nothing more. Hosts are drained at their next contact; those without one are killed."""
        self.stopped = stopped
        silent = [name for name, host in self._fleet.hosts.items() if not host.is_running]
        self._remove(silent)
        return replace(self._kill_late_hosts(math.inf, now), kill=tuple(silent), has_news=True)

    def _kill_late_hosts(self, seconds_left: float, now: float) -> GuardDecision:
        late = [n for n, h in self._fleet.hosts.items() if seconds_left <= KILL_SECONDS[h.kind]]
        self._remove(late)
        is_over = self.over_at is None and not self._fleet.hosts and not self._account.devices
        if is_over:
            self.over_at = now  # the time that Tune takes to stop is not charged
        return GuardDecision(tuple(late), has_news=is_over)

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            del self._fleet.hosts[name]
            self._queue.remove_host(name, count_death=False)

    def _is_too_late(self, now: float) -> bool:
        """Whether work would fit, but there is no host for it and none is worth starting."""
        wanted = () if self._fleet.devices else self._queue.wanted_hosts({})
        return bool(wanted) and not any(
            self._account.is_worth_starting(self._charge(workers), now) for workers in wanted
        )

    def _defer(self, now: float) -> GuardDecision:
        """Drop queued fold-runs that do not fit the budget, for trials that may."""
        if self._queue.training:
            self._deferred_trials = 0
        shortfall = self._queue.shortfall()
        if shortfall is None:
            return GuardDecision()
        self._cheapest = min(self._cheapest, shortfall)
        self._deferred_trials += self._queue.defer()
        if self._deferred_trials >= MAX_DEFERRED_TRIALS:
            return self._stop(self._too_little_left(now), now)
        return GuardDecision(has_news=True)

    def _budget_reached(self, now: float) -> Stopped:
        return Stopped(
            self._account.budget.exhausted_message(self._account.spent(now)), by_budget=True
        )

    def _too_little_left(self, now: float) -> Stopped:
        left, devices = self._account.left(now), self._charge(SINGLE_DEVICE)
        sentence = self._account.budget.insufficient_message(left, self._cheapest, devices)
        return Stopped(sentence, by_budget=True)

    def _charge(self, workers: WorkerRange) -> float:
        return self._fleet.charge(workers, workers.max_devices)
