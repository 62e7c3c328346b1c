"""What a study has spent, what it may still spend, and the journal that forgets neither.

    <storage>/spend/<driver>.json      one file for each run of a driver, rewritten every few seconds

A file is written ahead, as a lease: it charges its driver for a little of the future too. So a driver that is
killed leaves nothing uncounted, and a second driver never sees less than the first one has spent. Who ends
in order writes down what it was. Durations come from a monotonic clock; the wall clock only labels them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from raymrc.planning.arithmetic import price

if TYPE_CHECKING:
    from raymrc.study.spec import Spec


WRITE_SECONDS = 3.0
"""A driver rewrites its file so often, and reads those of others."""

MOST_LEASE, LEAST_LEASE = 60.0, 30.0
"""Seconds that are charged ahead: what a killed driver is charged too much at most, and how long a storage
may refuse before hosts are closed. Between them a lease is `LEASE_SHARE` of the budget."""

LEASE_SHARE = 0.01

HOST_START_SECONDS = 20.0
"""A host that was asked for may have been there for so long, at most, before it says its first word."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a study may spend in all; None where there is no limit.

    Args:
        usd: US dollars of device time.
        device_hours: of GPUs, or of a CPU's cores, that hosts hold.
        wall_hours: in which a driver has the study in hand.
        device_hour_usd: price of a device for an hour, now.
    """

    usd: float | None = None
    device_hours: float | None = None
    wall_hours: float | None = None
    device_hour_usd: float = 0.0

    @classmethod
    def of(cls, spec: Spec) -> Budget:
        """A study's."""
        price = spec.prices.device_hour_usd
        limits = spec.budget
        if limits is None:
            return cls(device_hour_usd=price)
        return cls(limits.usd, limits.hours, limits.wall_hours, price)

    def __bool__(self) -> bool:
        """Whether anything is limited."""
        return (self.usd, self.device_hours, self.wall_hours) != (None, None, None)

    @property
    def device_seconds(self) -> float:
        """The least of its limits, at its price; infinite where there is none."""
        return self.left(Spent()).device_seconds

    def left(self, spent: Spent) -> Left:
        """What it leaves; negative where more was spent."""
        seconds = [math.inf]
        if self.device_hours is not None:
            seconds.append(3600 * self.device_hours - spent.device_seconds)
        if self.usd is not None and self.device_hour_usd:
            seconds.append(3600 * (self.usd - spent.usd) / self.device_hour_usd)
        wall = math.inf if self.wall_hours is None else 3600 * self.wall_hours - spent.wall_seconds
        return Left(min(seconds), wall)

    def told(self, spent: Spent) -> str:
        """What was spent of each limit: "0.31 of 0.5 USD, 1.2 of 2 device hours"."""
        parts = []
        if self.usd is not None:
            parts.append(f"{_figure(spent.usd)} of {self.usd:g} USD")
        if self.device_hours is not None:
            hours = _figure(spent.device_seconds / 3600)
            parts.append(f"{hours} of {self.device_hours:g} device hours")
        if self.wall_hours is not None:
            parts.append(f"{_figure(spent.wall_seconds / 3600)} of {self.wall_hours:g} wall hours")
        return ", ".join(parts)

    def reached(self, spent: Spent) -> str:
        """The sentence for a run that is closed at the cap."""
        return f"the budget is used up ({self.told(spent)}); what was training is saved"

    def too_little(self, left: Left, wanted: float, devices: float) -> str:
        """The sentence where what is left is enough for nothing that is left to do.

        Args:
            wanted: device-seconds of the cheapest fold-run.
            devices: of the host that would train it.
        """
        if wanted > left.device_seconds:
            there = f"{_device_time(left.device_seconds, self)} of the budget is left"
            return (
                f"{there}, and the cheapest fold-run to do wants about {_device_time(wanted, self)}"
            )
        wall = wanted / max(devices, 1e-9) / 3600
        return (
            f"{_figure(left.wall_seconds / 3600)} wall hours of the budget are left, and the quickest "
            f"fold-run to do wants about {_figure(wall)}"
        )


def _figure(number: float) -> str:
    """Four digits: of a budget of hours that is a second."""
    return f"{number:.4g}"


def _device_time(seconds: float, budget: Budget) -> str:
    """In the unit that the budget is written in."""
    if budget.usd is not None and budget.device_hour_usd:
        return f"{_figure(price(max(0.0, seconds), budget.device_hour_usd))} USD"
    return f"{_figure(max(0.0, seconds) / 3600)} device hours"


@dataclass(frozen=True, slots=True)
class Spent:
    """
    Args:
        device_seconds: that hosts held devices, from their start until they were gone: what a cloud bills,
            idle or not.
        usd: of these, at the prices of their time.
        wall_seconds: in which some driver had the study in hand.
    """

    device_seconds: float = 0.0
    usd: float = 0.0
    wall_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Left:
    """What may still be spent, at the present price; infinite where nothing is limited."""

    device_seconds: float = math.inf
    wall_seconds: float = math.inf


@dataclass(frozen=True, slots=True)
class Entry:
    """One run of a driver, as its file has it.

    Args:
        driver: names the run and the file.
        began: Unix time, made later where needed, so that no run seems to begin before what those that it
            has read of had written: clocks that were set back overlap nothing.
        seconds: that it has had the study in hand.
        device_seconds: that its hosts have held.
        ahead, ahead_device_seconds: what is charged beside, for what may come before it writes again; 0 when
            it has ended.
        lease: seconds that the charge is good for; 0 when it has ended.
        device_hour_usd: its price.
        running: fold-runs that train.
        committed: device-seconds that these are still expected to need.
        unfinished: of fold-runs that it left saved, by key, the share that is still to do, 0 to 1; at
            its end.
        written_at: Unix time, for people and to see whether the lease is fresh.
        process: of the driver, "process 12 on node-a": for people, and to know those of this machine.
    """

    driver: str
    began: float
    seconds: float = 0.0
    device_seconds: float = 0.0
    ahead: float = 0.0
    ahead_device_seconds: float = 0.0
    lease: float = 0.0
    device_hour_usd: float = 0.0
    running: int = 0
    committed: float = 0.0
    unfinished: Mapping[str, float] = field(default_factory=dict)
    written_at: float = 0.0
    process: str = ""

    @property
    def has_ended(self) -> bool:
        return not self.lease

    def is_alive(self, now: float) -> bool:
        """Whether its lease is fresh.

        Args:
            now: Unix time. A clock that differs by up to a lease does not matter.
        """
        return not self.has_ended and abs(now - self.written_at) <= self.lease

    @property
    def charged(self) -> float:
        """Device-seconds, those ahead with them."""
        return self.device_seconds + self.ahead_device_seconds

    @property
    def interval(self) -> tuple[float, float]:
        """In which it has the study in hand, in Unix time."""
        return self.began, self.began + self.seconds + self.ahead

    @property
    def reserved(self) -> float:
        """Device-seconds that it will want beyond what it is charged."""
        return 0.0 if self.has_ended else max(0.0, self.committed - self.ahead_device_seconds)


def add_up(entries: Iterable[Entry], device_hour_usd: float, until: float = math.inf) -> Spent:
    """What runs have spent together.

    Args:
        device_hour_usd: the price of those that had none.
        until: Unix time; wall time after it is not counted.
    """
    seconds = usd = 0.0
    intervals = []
    for entry in entries:
        seconds += entry.charged
        usd += price(entry.charged, entry.device_hour_usd or device_hour_usd)
        intervals.append(entry.interval)
    return Spent(seconds, usd, union(intervals, until))


def union(intervals: Iterable[tuple[float, float]], until: float = math.inf) -> float:
    """Length of what at least one interval covers."""
    covered, reached = 0.0, -math.inf
    for start, end in sorted(intervals):
        start, end = max(start, reached), min(end, until)
        if end > start:
            covered += end - start
            reached = end
    return covered


def spent_by(entries: Sequence[Entry], device_hour_usd: float, now: float) -> Spent:
    """What a study has spent, as someone sees it who only looks.

    Args:
        now: Unix time.
    """
    # Leases are charged until now; what was really there counts, whatever this clock says.
    latest = max((e.began + e.seconds for e in entries), default=now)
    return add_up(entries, device_hour_usd, max(now, latest))


# --- the journal ----------------------------------------------------------------------------------


# --- one run's account ----------------------------------------------------------------------------


def unfinished(entries: Iterable[Entry]) -> dict[str, float]:
    """Of fold-runs that were left saved, the share that is still to do; the latest run has the last word."""
    found: dict[str, float] = {}
    for entry in sorted(entries, key=lambda entry: entry.began):
        found.update(entry.unfinished)
    return found


# --- what fold-runs want --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Need:
    """Device-seconds that a fold-run is expected to want of hosts, from its beginning.

    Args:
        value: what is expected.
        low, high: its 90 % interval.
        is_guess: nothing like it was measured.
        saving_seconds: that its lane is expected to take to be saved, before one was.
    """

    value: float
    low: float
    high: float
    is_guess: bool = False
    saving_seconds: float = 1.0


def overhead(spent_device_seconds: float, recorded: float) -> float:
    """Device time that hosts held, by what records say that fold-runs used: idle hosts, loading, neighbours.

    1 to 3: what was spent on fold-runs that are not finished is in it, too.
    """
    return min(3.0, max(1.0, spent_device_seconds / recorded)) if recorded else 1.0


def values_of(spent: Spent | Left) -> dict[str, Any]:
    """For JSON: infinite is null."""
    return {k: v if math.isfinite(v) else None for k, v in asdict(spent).items()}
