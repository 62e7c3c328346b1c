"""The account of one run of a driver: what it spends, and how long its hosts may stay."""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from raymrc.costs.budget import Budget, Left, Spent
from raymrc.costs.journal import WRITE_SECONDS, JournalEntry, add_up

MIN_LEASE_SECONDS, MAX_LEASE_SECONDS = 30.0, 60.0
"""Time that is charged in advance: at most what a killed driver is overcharged, at least how long a storage
may refuse before hosts are closed. Between them a lease is `LEASE_SHARE` of the budget."""

LEASE_SHARE = 0.01

MAX_SILENT_START_SECONDS = 20.0
"""A requested host may hold devices at most this long before its first message."""


class Account:
    """Spending of one run of a driver, and its limits. Uses neither clocks nor files.

    Args:
        budget: of the study.
        others: entries of the journal, read before this run begins.
        now: Unix time.
        moment: seconds of a monotonic clock, like all later moments.
        process: see `JournalEntry`.
    """

    def __init__(
        self,
        budget: Budget,
        others: Iterable[JournalEntry],
        now: float,
        moment: float,
        process: str = "",
    ) -> None:
        self.budget = budget
        self._process = process
        self._driver = secrets.token_hex(8)
        self._others = tuple(others)
        # The others wrote their entries before this moment, whatever the clocks say.
        self._began = max([now, *(e.began + e.seconds for e in self._others)])
        self._began_at = moment
        self._held: dict[str, tuple[float, float]] = {}
        self._requested: dict[str, tuple[float, float]] = {}
        self._slowest_start = 0.0
        self._ended_device_seconds = 0.0
        self._lease_end = -math.inf
        self._leased_devices = self._leased_device_seconds = 0.0

    # --- hosts ------------------------------------------------------------------------------------

    def request(self, host: str, devices: float, moment: float) -> None:
        """A host was requested. Only its first message says since when it holds devices; until then the
        account keeps free what the host may hold already."""
        self._requested[host] = (devices, moment)

    def start(self, host: str, devices: float, moment: float, took: float = 0.0) -> None:
        """A host holds devices since this moment.

        Args:
            took: seconds from then to its first message.
        """
        self._requested.pop(host, None)
        self._slowest_start = max(self._slowest_start, took)
        self._held.setdefault(host, (devices, moment))

    def is_requested(self, host: str) -> bool:
        """Whether the host was requested and has sent no message yet."""
        return host in self._requested

    def end(self, host: str, moment: float, *, was_silent: bool = False) -> None:
        """A host is gone.

        Args:
            was_silent: the host had a process and sent no message. Its start is unknown, so it is charged
                what was kept free for it.
        """
        request = self._requested.pop(host, None)
        if request is not None and was_silent:
            self._ended_device_seconds += _max_silent_device_seconds(*request, moment)
        devices, since = self._held.pop(host, (0.0, moment))
        self._ended_device_seconds += devices * max(0.0, moment - since)

    @property
    def devices(self) -> float:
        """Devices that hosts hold."""
        return sum(devices for devices, _ in self._held.values())

    def held_by_others(self, hosts: Collection[str]) -> float:
        """Devices that hosts other than these hold."""
        return sum(devices for host, (devices, _) in self._held.items() if host not in hosts)

    def device_seconds(self, moment: float) -> float:
        """Device time that its hosts have held until this moment."""
        held = sum(devices * max(0.0, moment - since) for devices, since in self._held.values())
        return self._ended_device_seconds + held

    # --- what is left -----------------------------------------------------------------------------

    def spent(self, moment: float) -> Spent:
        """Spending of all runs: the charges of the others, and what this run really spent."""
        this_run = self._entry(moment)
        until = self._began + this_run.seconds
        return add_up((*self._others, this_run), self.budget.device_hour_usd, until)

    def left(self, moment: float) -> Left:
        return self.budget.left(self.spent(moment))

    @property
    def reserved(self) -> float:
        """Device-seconds that the fold-runs of other runs will need beyond their charges."""
        return sum(entry.reserved for entry in self._others)

    def seconds_left(self, moment: float) -> float:
        """How long all held devices may stay: until a limit is reached or the lease is used up.

        Infinite without a limit.
        """
        limit = self.limit_left(moment)
        if not self.budget or not self.devices:
            return limit
        charged = self._leased_device_seconds - self.device_seconds(moment)
        return min(limit, self._lease_end - moment, charged / self.devices)

    def limit_left(self, moment: float) -> float:
        """The same by the limits alone."""
        left = self.left(moment)
        seconds = left.device_seconds - self._silent_device_seconds(moment)
        devices = self.devices + sum(devices for devices, _ in self._requested.values())
        if devices:
            return min(left.wall_seconds, seconds / devices)
        return left.wall_seconds if seconds > 0 else seconds

    def _silent_device_seconds(self, moment: float) -> float:
        """Device-seconds that requested hosts may have held by now."""
        return sum(
            _max_silent_device_seconds(*request, moment) for request in self._requested.values()
        )

    def may_hold(self, devices: float, moment: float) -> bool:
        """Whether this number of devices may be held: a lease covers them for some time. Always true without
        a limit, so that nothing waits for the storage."""
        if not self.budget:
            return True
        charged = self._leased_device_seconds - self.device_seconds(moment)
        return (
            devices <= self._leased_devices + 1e-9
            and moment <= self._lease_end
            and charged >= WRITE_SECONDS * devices
            and self.is_worth_starting(devices, moment)
        )

    def is_worth_starting(self, devices: float, moment: float) -> bool:
        """Whether hosts with this number of devices in all could all start before the budget closes them."""
        left = self.left(moment).device_seconds - self._silent_device_seconds(moment)
        return left >= max(WRITE_SECONDS, self._slowest_start) * devices

    # --- the journal ------------------------------------------------------------------------------

    def lease(
        self,
        now: float,
        moment: float,
        devices: float,
        running: int = 0,
        committed: float = 0.0,
        closing_seconds: float = 0.0,
    ) -> JournalEntry:
        """The journal entry to write now.

        Args:
            now: Unix time.
            devices: number that is held or requested.
            closing_seconds: time that hosts take to save and end; the lease is longer by a few writes.
        """
        devices = max(devices, self.devices)
        share = LEASE_SHARE * self.budget.device_seconds / devices if devices else math.inf
        seconds = min(MAX_LEASE_SECONDS, max(MIN_LEASE_SECONDS, share))
        seconds = max(seconds, closing_seconds + 4 * WRITE_SECONDS)
        left = self.left(moment)
        return replace(
            self._entry(moment),
            # Hosts are closed at the limit, so nothing is spent beyond it.
            ahead=max(0.0, min(seconds, left.wall_seconds)),
            ahead_device_seconds=max(0.0, min(seconds * devices, left.device_seconds)),
            lease=seconds,
            running=running,
            committed=committed,
            written_at=now,
        )

    def confirm(self, entry: JournalEntry, moment: float, devices: float) -> None:
        """A lease was written to the journal.

        Args:
            moment: when the entry was made, however long writing took.
        """
        self._lease_end = moment + entry.lease
        self._leased_devices = devices
        self._leased_device_seconds = entry.charged

    def update_others(self, entries: Iterable[JournalEntry]) -> None:
        """Take over the journal's entries."""
        self._others = tuple(entry for entry in entries if entry.driver != self._driver)

    def final_entry(
        self, now: float, moment: float, unfinished: Mapping[str, float] | None = None
    ) -> JournalEntry:
        """The journal entry at the end of a run; still a lease if a host may be alive."""
        entry = self.lease(now, moment, self.devices) if self._held else self._entry(moment)
        return replace(entry, unfinished=dict(unfinished or {}), written_at=now)

    def _entry(self, moment: float) -> JournalEntry:
        """What this run has spent until this moment."""
        return JournalEntry(
            self._driver,
            self._began,
            max(0.0, moment - self._began_at),
            self.device_seconds(moment),
            device_hour_usd=self.budget.device_hour_usd,
            process=self._process,
        )


def _max_silent_device_seconds(devices: float, since: float, moment: float) -> float:
    """Largest device time of a host that has sent no message.

    Args:
        since: moment of the request.
    """
    return devices * min(MAX_SILENT_START_SECONDS, max(0.0, moment - since))
