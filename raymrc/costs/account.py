"""TODO: say what this module holds."""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from raymrc.costs.budget import (
    HOST_START_SECONDS,
    LEASE_SHARE,
    LEAST_LEASE,
    MOST_LEASE,
    WRITE_SECONDS,
    Budget,
    Entry,
    Left,
    Spent,
    add_up,
)

if TYPE_CHECKING:
    pass


class Account:
    """What one run of a driver spends, and how long it may go on. Knows no clock and no files.

    Args:
        budget: of the study.
        others: the journal's entries, read before this run begins.
        now: Unix time.
        moment: seconds of a monotonic clock. All later moments are of the same one.
        process: see `Entry`.
    """

    def __init__(
        self,
        budget: Budget,
        others: Iterable[Entry],
        now: float,
        moment: float,
        driver: str | None = None,
        process: str = "",
    ) -> None:
        self.budget = budget
        self.process = process
        self.driver = driver or secrets.token_hex(8)
        self._others = tuple(others)
        # What the others had written was written before this moment, whatever clocks say.
        self.began = max([now, *(e.began + e.seconds for e in self._others)])
        self._began_at = moment
        self._held: dict[str, tuple[float, float]] = {}
        self._asked: dict[str, tuple[float, float]] = {}
        self._slowest_start = 0.0
        self._gone = 0.0
        self._paid_until = -math.inf
        self._paid_devices = self._paid_for = 0.0

    # --- hosts ------------------------------------------------------------------------------------

    def ask(self, host: str, devices: float, moment: float) -> None:
        """A host was asked for. Since when it holds devices is known when it has said a word; until then
        what it may hold already is kept free below the limits."""
        self._asked[host] = (devices, moment)

    def start(self, host: str, devices: float, moment: float, took: float = 0.0) -> None:
        """A host holds devices, since this moment.

        Args:
            took: seconds since then, until it could say so.
        """
        self._asked.pop(host, None)
        self._slowest_start = max(self._slowest_start, took)
        self._held.setdefault(host, (devices, moment))

    def awaits(self, host: str) -> bool:
        """Whether it was asked for, and has not said a word."""
        return host in self._asked

    def end(self, host: str, moment: float, *, was_silent: bool = False) -> None:
        """It is gone.

        Args:
            was_silent: it had a process, and has not said a word. Since when is not known, so it is charged
                for what was kept free for it.
        """
        asked = self._asked.pop(host, None)
        if asked is not None and was_silent:
            self._gone += _may_have_held(*asked, moment)
        devices, since = self._held.pop(host, (0.0, moment))
        self._gone += devices * max(0.0, moment - since)

    @property
    def devices(self) -> float:
        """That are held."""
        return sum(devices for devices, _ in self._held.values())

    def held_beside(self, hosts: Collection[str]) -> float:
        """Devices that others than these hosts hold."""
        return sum(devices for host, (devices, _) in self._held.items() if host not in hosts)

    def device_seconds(self, moment: float) -> float:
        """That its hosts have held until then."""
        held = sum(devices * max(0.0, moment - since) for devices, since in self._held.values())
        return self._gone + held

    # --- what is left -----------------------------------------------------------------------------

    def spent(self, moment: float) -> Spent:
        """By all runs: what others are charged, and what this one really has."""
        seconds = max(0.0, moment - self._began_at)
        mine = Entry(
            self.driver, self.began, seconds, self.device_seconds(moment),
            device_hour_usd=self.budget.device_hour_usd,
        )  # fmt: skip
        until = self.began + seconds
        return add_up((*self._others, mine), self.budget.device_hour_usd, until)

    def left(self, moment: float) -> Left:
        return self.budget.left(self.spent(moment))

    @property
    def reserved(self) -> float:
        """Device-seconds that other runs will want beyond what they are charged."""
        return sum(entry.reserved for entry in self._others)

    def seconds_left(self, moment: float) -> float:
        """How long all devices that are held may stay; infinite where nothing is limited.

        Until a limit is reached, or what the lease charges is used up and more would not be counted.
        """
        if not self.budget or not self.devices:
            return self.limit_left(moment)
        return min(self.limit_left(moment), self.lease_left(moment))

    def limit_left(self, moment: float) -> float:
        """The same, by the limits alone."""
        left = self.left(moment)
        seconds = left.device_seconds - self._coming_up(moment)
        devices = self.devices + sum(devices for devices, _ in self._asked.values())
        if devices:
            return min(left.wall_seconds, seconds / devices)
        return left.wall_seconds if seconds > 0 else seconds

    def _coming_up(self, moment: float) -> float:
        """Device-seconds that those which were asked for may have held by now."""
        return sum(_may_have_held(*asked, moment) for asked in self._asked.values())

    def seconds_left_of_budget(self, moment: float) -> float:
        """How long a device could be held before a limit is reached; 0 or less where one is."""
        left = self.left(moment)
        return min(left.device_seconds, left.wall_seconds)

    def lease_left(self, moment: float) -> float:
        """Seconds until what is spent is more than was written down."""
        left = self._paid_until - moment
        if self.devices:
            left = min(left, (self._paid_for - self.device_seconds(moment)) / self.devices)
        return left

    def is_counted(self, moment: float) -> bool:
        """Whether the lease is in force."""
        return moment <= self._paid_until

    def covers(self, devices: float, moment: float) -> bool:
        """Whether so many devices may be held: the lease was written for them, and for a while. Where nothing
        is limited nobody waits for a storage."""
        if not self.budget:
            return True
        charged = self._paid_for - self.device_seconds(moment)
        return (
            devices <= self._paid_devices + 1e-9
            and self.is_counted(moment)
            and charged >= WRITE_SECONDS * devices
            and self.is_worth_starting(devices, moment)
        )

    def is_worth_starting(self, devices: float, moment: float) -> bool:
        """Whether hosts with so many devices in all would not be closed before the last has started."""
        left = self.left(moment).device_seconds - self._coming_up(moment)
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
    ) -> Entry:
        """What to write now.

        Args:
            now: Unix time.
            devices: that are held or asked for.
            closing_seconds: that hosts take to save and go; the lease has to be longer by some writes.
        """
        seconds = self._lease_seconds(max(devices, self.devices))
        seconds = max(seconds, closing_seconds + 4 * WRITE_SECONDS)
        left = self.left(moment)
        ahead = seconds * max(devices, self.devices)
        return Entry(
            self.driver,
            self.began,
            max(0.0, moment - self._began_at),
            self.device_seconds(moment),
            # At the cap hosts are closed: nothing beyond it will be spent.
            ahead=max(0.0, min(seconds, left.wall_seconds)),
            ahead_device_seconds=max(0.0, min(ahead, left.device_seconds)),
            lease=seconds,
            device_hour_usd=self.budget.device_hour_usd,
            running=running,
            committed=committed,
            written_at=now,
            process=self.process,
        )

    def _lease_seconds(self, devices: float) -> float:
        share = LEASE_SHARE * self.budget.device_seconds
        return min(MOST_LEASE, max(LEAST_LEASE, share / devices if devices else math.inf))

    def paid(self, entry: Entry, moment: float, devices: float) -> None:
        """A lease was written.

        Args:
            moment: when it was made, however long its writing took.
        """
        self._paid_until = moment + entry.lease
        self._paid_devices = devices
        self._paid_for = entry.charged

    def hear(self, entries: Iterable[Entry]) -> None:
        """What the journal says of all runs."""
        self._others = tuple(entry for entry in entries if entry.driver != self.driver)

    def last(
        self, now: float, moment: float, unfinished: Mapping[str, float] | None = None
    ) -> Entry:
        """What to write at the end: what it was. A lease still, where a host may not be gone."""
        if self._held:
            return replace(self.lease(now, moment, self.devices), unfinished=dict(unfinished or {}))
        return Entry(
            self.driver,
            self.began,
            max(0.0, moment - self._began_at),
            self.device_seconds(moment),
            device_hour_usd=self.budget.device_hour_usd,
            unfinished=dict(unfinished or {}),
            written_at=now,
            process=self.process,
        )


def _may_have_held(devices: float, since: float, moment: float) -> float:
    """Device-seconds of a host that has not said a word, at most.

    Args:
        since: when it was asked for.
    """
    return devices * min(HOST_START_SECONDS, max(0.0, moment - since))
