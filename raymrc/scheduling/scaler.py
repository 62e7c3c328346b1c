"""Decides how many hosts and worker groups to start, and which requests to cancel.

queued work, existing hosts, budget -> Scaler -> Scaling: hosts to start, requests to cancel
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raymrc.scheduling.budget_guard import BudgetGuard
from raymrc.scheduling.fleet import Fleet, FleetHost
from raymrc.scheduling.orders import HostKind
from raymrc.scheduling.work_queue import WorkQueue

MAX_WAITING_GROUPS = 2
"""Maximum number of requested groups per worker range; the next is requested when one has started."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """
    Args:
        start: hosts to start; the fleet has them already.
        cancel: names of requested hosts to end; the fleet has them no more.
        recheck_seconds: scale again after this time, even if nothing happens until then.
    """

    start: tuple[FleetHost, ...] = ()
    cancel: tuple[str, ...] = ()
    recheck_seconds: float | None = None


class Scaler:
    """
    Args:
        patience_seconds: a group that has waited this long for all its devices starts with fewer.
    """

    def __init__(
        self, queue: WorkQueue, fleet: Fleet, guard: BudgetGuard, patience_seconds: float
    ) -> None:
        self._queue = queue
        self._fleet = fleet
        self._guard = guard
        self._patience_seconds = patience_seconds
        self._surplus_since: float | None = None

    def scale(self, now: float) -> Scaling:
        """Request hosts for which there is work, and cancel requests for which there has been none for
        `idle_seconds`: between two trials there is little work for a moment, and a start is expensive."""
        existing, wanted = self._fleet.counts, self._queue.wanted_hosts(self._fleet.counts)
        started = []
        for workers, number in wanted.items():
            missing = number - existing[workers]
            if workers.kind == HostKind.GROUP:  # a waiting group already needs two processes
                waiting = [h for h in self._fleet.hosts.values() if h.workers == workers]
                missing = min(missing, MAX_WAITING_GROUPS - sum(not h.is_running for h in waiting))
            while missing > 0 and self._guard.may_start(workers, missing, now):
                started.append(self._fleet.request(workers, workers.max_devices, now))
                missing -= 1
        if all(number <= wanted[workers] for workers, number in existing.items()):
            self._surplus_since = None
            return Scaling(tuple(started))
        if self._surplus_since is None:
            self._surplus_since = now
        left = self._surplus_since + self._queue.idle_seconds - now
        if left > 0:
            return Scaling(tuple(started), recheck_seconds=left)
        self._surplus_since = None
        cancelled = []
        for name, host in list(self._fleet.hosts.items()):
            if not host.is_running and existing[host.workers] > wanted[host.workers]:
                existing[host.workers] -= 1
                del self._fleet.hosts[name]
                cancelled.append(name)
        return Scaling(tuple(started), tuple(cancelled))

    def shrink_groups(self, now: float, count_room: Callable[[], int]) -> Scaling:
        """Request smaller groups instead of those that have waited too long for all their devices.

        Args:
            count_room: the number of devices that a group could have, at most.
        """
        started, cancelled = [], []
        for name, host in list(self._fleet.hosts.items()):
            least = host.workers.min_devices
            can_shrink = not host.is_running and host.size > least
            if can_shrink and now - host.requested_at >= self._patience_seconds:
                size = max(least, min(host.size - 1, count_room()))
                del self._fleet.hosts[name]
                cancelled.append(name)
                started.append(self._fleet.request(host.workers, size, now))
        return Scaling(tuple(started), tuple(cancelled))
