"""The hosts and worker groups that are requested or running, and what is charged for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from raymrc.costs.account import Account
from raymrc.scheduling.orders import SLICE_SECONDS, HostKind, WorkerRange

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


class Fleet:
    """
    Args:
        charge: devices that a host of this worker range and size is charged for.
    """

    def __init__(self, account: Account, charge: Callable[[WorkerRange, int], float]) -> None:
        self.hosts: dict[str, FleetHost] = {}
        self.started: set[WorkerRange] = set()
        """Worker ranges of which a host has ever run."""
        self.charge = charge
        self._account = account
        self._num_requested = 0
        self._failed_starts = 0

    @property
    def counts(self) -> Counter[WorkerRange]:
        return Counter(host.workers for host in self.hosts.values())

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

    def charge_from_start(self, name: str, age: float, now: float) -> None:
        """Charge a host from the start of its process on.

        Args:
            age: seconds since that start.
        """
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
        """Note that a host has got an order.

        Args:
            is_busy: it will open or save lanes, so its silence will say nothing.
        """
        self.hosts[name].answered_at = None if is_busy else now

    def fail_start(self, name: str) -> bool:
        """Count a host that has died, if it never made contact.

        Returns:
            Whether `MAX_FAILED_STARTS` have failed in a row.
        """
        if name not in self.hosts or self.hosts[name].is_running:  # cancelled requests do not count
            return False
        self._failed_starts += 1
        return self._failed_starts >= MAX_FAILED_STARTS
