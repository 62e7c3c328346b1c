"""What a study has spent, what it may still spend, and the journal that forgets neither.

    <storage>/spend/<driver>.json      one file for each run of a driver, rewritten every few seconds

A file is written ahead, as a lease: it charges its driver for a little of the future too. So a driver that is
killed leaves nothing uncounted, and a second driver never sees less than the first one has spent. Who ends
in order writes down what it was. Durations come from a monotonic clock; the wall clock only labels them.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from raymrc.errors import LedgerError
from raymrc.ledger.storage import Files, open_files, said
from raymrc.planning.arithmetic import price

if TYPE_CHECKING:
    from raymrc.study.spec import Spec

ROOM = "spend"
"""Of a study's storage."""

WRITE_SECONDS = 3.0
"""A driver rewrites its file so often, and reads those of others."""

MOST_LEASE, LEAST_LEASE = 60.0, 30.0
"""Seconds that are charged ahead: what a killed driver is charged too much at most, and how long a storage
may refuse before hosts are closed. Between them a lease is `LEASE_SHARE` of the budget."""

LEASE_SHARE = 0.01

START_SECONDS = 20.0
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


class Journal:
    """The files of all drivers' runs.

    Args:
        storage: the study's folder or URL.
        files: instead of what `storage` names.
    """

    def __init__(self, storage: str, files: Files | None = None) -> None:
        self.files = files or open_files(storage, ROOM)
        self._ended: dict[str, Entry] = {}

    def entries(self) -> tuple[Entry, ...]:
        """Of all runs, in no order.

        Raises:
            LedgerError: one cannot be read. None is left out: what it spent would be forgotten.
        """
        return tuple(self._read(name) for name in self._names())

    def _names(self) -> list[str]:
        try:
            return [n for n in self.files.names() if n.endswith(".json") and not n.startswith(".")]
        except OSError as error:
            raise LedgerError(
                f"{self.files.place('')}: the store refuses ({said(error)})"
            ) from None

    def _read(self, name: str) -> Entry:
        if name in self._ended:
            return self._ended[name]
        place = self.files.place(name)
        try:
            values = json.loads(self.files.read(name))
            entry = Entry(**{**values, "driver": name.removesuffix(".json")})
            numbers = (entry.seconds, entry.device_seconds, entry.ahead, entry.ahead_device_seconds)
            if not all(math.isfinite(number) and number >= 0 for number in numbers):
                raise ValueError
        except OSError as error:
            raise LedgerError(f"{place}: cannot be read ({said(error)})") from None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise LedgerError(
                f"{place}: does not say what a run has spent, as this version of raymrc writes it; "
                "remove it, and what that run has spent is not counted"
            ) from None
        if entry.has_ended and not entry.ahead:  # it said so itself, and nobody writes it again
            self._ended[name] = entry
        return entry

    def write(self, entry: Entry) -> None:
        """Instead of what this driver's file said before.

        Raises:
            LedgerError: the store refuses.
        """
        values = asdict(entry)
        del values["driver"]
        name = f"{entry.driver}.json"
        try:
            self.files.write(name, json.dumps(values, indent=1).encode(), replace=True)
        except OSError as error:
            raise LedgerError(
                f"{self.files.place(name)}: the store refuses ({said(error)})"
            ) from None

    def bury(self, entry: Entry) -> None:
        """A run that is gone and has not said so: it stays charged for what it may have spent, and nothing is
        reserved for it any more. One that is there all the same writes its file again.

        Raises:
            LedgerError: the store refuses.
        """
        self.write(replace(entry, lease=0.0, running=0, committed=0.0))


# --- one run's account ----------------------------------------------------------------------------


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
    return devices * min(START_SECONDS, max(0.0, moment - since))


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
