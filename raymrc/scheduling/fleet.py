"""The hosts and worker groups that are requested or running, and how many of them to start and to cancel.

queued work, existing hosts, budget -> Fleet.scale -> Scaling: hosts to start, requests to cancel
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from raymrc.costs.account import Account
from raymrc.scheduling.orders import SLICE_SECONDS, HostKind, WorkerRange
from raymrc.scheduling.work_queue import WorkQueue

MAX_WAITING_GROUPS = 2
"""Maximum number of requested groups per worker range; the next is requested when one has started."""

SILENCE_DECAY = 0.9
"""Share of a host's longest silence that still counts at its next contact."""

MAX_FAILED_STARTS = 10
"""After this many consecutive hosts that died before their first contact, no host is expected to start."""


@dataclass(eq=False, slots=True)
class FleetHost:
    """A host or worker group.

    Args:
        size: number of devices that it was requested with.
        devices: what it is charged for, in the unit of the budget.
        nodes: ids of its machines; empty until its first contact.
        answered_at: time of its last order; None while it opens or saves lanes, which may take long.
        longest_silence: seconds between an order and the next contact, decayed.
    """

    name: str
    workers: WorkerRange
    size: int
    devices: float
    requested_at: float
    nodes: tuple[str, ...] = ()
    answered_at: float | None = None
    longest_silence: float = SLICE_SECONDS

    @property
    def kind(self) -> HostKind:
        return self.workers.kind

    @property
    def is_running(self) -> bool:
        return bool(self.nodes)


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


class Fleet:
    """
    Args:
        charge: devices that a host of this worker range and size is charged for.
        patience_seconds: a group that has waited this long for all its devices starts with fewer.
    """

    def __init__(
        self,
        account: Account,
        queue: WorkQueue,
        charge: Callable[[WorkerRange, int], float],
        patience_seconds: float,
    ) -> None:
        self.hosts: dict[str, FleetHost] = {}
        self.started: set[WorkerRange] = set()
        """Worker ranges of which a host has ever run."""
        self.charge = charge
        self._account = account
        self._queue = queue
        self._patience_seconds = patience_seconds
        self._surplus_since: float | None = None
        self._num_requested = 0
        self._failed_starts = 0

    @property
    def devices(self) -> float:
        """Devices that are held or requested, also by hosts that have not quite gone."""
        requested = sum(host.devices for host in self.hosts.values())
        return requested + self._account.held_by_others(self.hosts)

    def request(self, workers: WorkerRange, size: int, now: float) -> FleetHost:
        self._num_requested += 1
        name = f"{workers.kind}-{self._num_requested}"
        host = FleetHost(name, workers, size, self.charge(workers, size), requested_at=now)
        self.hosts[name] = host
        self._account.request(name, host.devices, now)
        return host

    def scale(self, may_start: Callable[[WorkerRange, int, float], bool], now: float) -> Scaling:
        """Request hosts for which there is work, and cancel requests for which there has been none for
        `idle_seconds`: between two trials there is little work for a moment, and a start is expensive.

        Args:
            may_start: see `BudgetGuard.may_start`.
        """
        existing = Counter(host.workers for host in self.hosts.values())
        wanted = self._queue.wanted_hosts(existing)
        started = []
        for workers, number in wanted.items():
            missing = number - existing[workers]
            if workers.kind == HostKind.GROUP:  # a waiting group already needs two processes
                waiting = [h for h in self.hosts.values() if h.workers == workers]
                missing = min(missing, MAX_WAITING_GROUPS - sum(not h.is_running for h in waiting))
            while missing > 0 and may_start(workers, missing, now):
                started.append(self.request(workers, workers.max_devices, now))
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
        for name, host in list(self.hosts.items()):
            if not host.is_running and existing[host.workers] > wanted[host.workers]:
                existing[host.workers] -= 1
                del self.hosts[name]
                cancelled.append(name)
        return Scaling(tuple(started), tuple(cancelled))

    def shrink_groups(self, now: float, count_room: Callable[[], int]) -> Scaling:
        """Request smaller groups instead of those that have waited too long for all their devices.
        `count_room` returns the largest number of devices that a group could have."""
        started, cancelled = [], []
        for name, host in list(self.hosts.items()):
            least = host.workers.min_devices
            can_shrink = not host.is_running and host.size > least
            if can_shrink and now - host.requested_at >= self._patience_seconds:
                size = max(least, min(host.size - 1, count_room()))
                del self.hosts[name]
                cancelled.append(name)
                started.append(self.request(host.workers, size, now))
        return Scaling(tuple(started), tuple(cancelled))

    # --- contact with hosts -------------------------------------------------------------------------

    def charge_from_start(self, name: str, age: float, now: float) -> None:
        """Charge a host from the start of its process on, `age` seconds ago."""
        host = self.hosts.get(name)
        if host is not None:
            since = max(host.requested_at, now - age)
            self._account.start(name, host.devices, since, now - since)

    def contact(self, name: str, nodes: tuple[str, ...], now: float) -> bool:
        """Note that a host asks for its next order; True at its first contact."""
        host = self.hosts[name]
        is_first = not host.is_running
        host.nodes = nodes
        self.started.add(host.workers)
        self._failed_starts = 0
        if host.answered_at is not None:
            # A host's first training step reads and sorts the notes, so long silences have to fade.
            silences = SILENCE_DECAY * host.longest_silence, now - host.answered_at, SLICE_SECONDS
            host.longest_silence = max(silences)
            host.answered_at = None
        return is_first

    def answer(self, name: str, now: float, *, is_busy: bool) -> None:
        """Note that a host has got an order. A busy one opens or saves lanes, so its silence says nothing."""
        self.hosts[name].answered_at = None if is_busy else now

    def fail_start(self, name: str) -> bool:
        """Count a host that died before its first contact; True if `MAX_FAILED_STARTS` did in a row."""
        if name not in self.hosts or self.hosts[name].is_running:  # cancelled requests do not count
            return False
        self._failed_starts += 1
        return self._failed_starts >= MAX_FAILED_STARTS
