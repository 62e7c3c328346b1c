"""Limits of a study's spending, and what is left of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raymrc.planning.arithmetic import price
from raymrc.quantities import Estimate

if TYPE_CHECKING:
    from raymrc.study.spec import Spec


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits for all runs of a study together; None means no limit.

    Args:
        usd: US dollars of device time.
        device_hours: hours of GPUs, or of CPU cores, that hosts hold.
        wall_hours: hours in which some driver works on the study.
        device_hour_usd: present price of a device per hour.
    """

    usd: float | None = None
    device_hours: float | None = None
    wall_hours: float | None = None
    device_hour_usd: float = 0.0

    @classmethod
    def of(cls, spec: Spec) -> Budget:
        """The budget in a study file."""
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
        """The tightest limit in device-seconds; infinite without a limit."""
        return self.left(Spent()).device_seconds

    def left(self, spent: Spent) -> Left:
        """What is left; negative if more was spent."""
        seconds = [math.inf]
        if self.device_hours is not None:
            seconds.append(3600 * self.device_hours - spent.device_seconds)
        if self.usd is not None and self.device_hour_usd:
            seconds.append(3600 * (self.usd - spent.usd) / self.device_hour_usd)
        wall = math.inf if self.wall_hours is None else 3600 * self.wall_hours - spent.wall_seconds
        return Left(min(seconds), wall)

    def describe(self, spent: Spent) -> str:
        """Spending per limit: "0.31 of 0.5 USD, 1.2 of 2 device hours"."""
        limits = (
            (spent.usd, self.usd, "USD"),
            (spent.device_seconds / 3600, self.device_hours, "device hours"),
            (spent.wall_seconds / 3600, self.wall_hours, "wall hours"),
        )
        return ", ".join(
            f"{_figure(used)} of {limit:g} {unit}"
            for used, limit, unit in limits
            if limit is not None
        )

    def exhausted_message(self, spent: Spent) -> str:
        """The sentence for a run that stops at a limit."""
        return f"the budget is exhausted ({self.describe(spent)}); unfinished fold-runs are saved"

    def insufficient_message(self, left: Left, needed: float, devices: float) -> str:
        """The sentence for a run that stops because no remaining fold-run fits the budget.

        Args:
            needed: device-seconds of the cheapest fold-run.
            devices: of the host that would train it.
        """
        if needed > left.device_seconds:
            available, needed_time = map(self._device_time, (left.device_seconds, needed))
            return f"{available} of the budget is left, but the cheapest fold-run needs about {needed_time}"
        wall = needed / max(devices, 1e-9)
        return (
            f"{_figure(left.wall_seconds / 3600)} wall hours of the budget are left, but the shortest "
            f"fold-run needs about {_figure(wall / 3600)}"
        )

    def _device_time(self, seconds: float) -> str:
        """Device time in the budget's unit."""
        if self.usd is not None and self.device_hour_usd:
            return f"{_figure(price(max(0.0, seconds), self.device_hour_usd))} USD"
        return f"{_figure(max(0.0, seconds) / 3600)} device hours"


def _figure(number: float) -> str:
    """Four digits, which resolve a second of an hour."""
    return f"{number:.4g}"


@dataclass(frozen=True, slots=True)
class Spent:
    """Spending of a study.

    Args:
        device_seconds: device time that hosts held from start to end, idle or not, as a cloud bills it.
        usd: its price at the time.
        wall_seconds: time in which some driver worked on the study.
    """

    device_seconds: float = 0.0
    usd: float = 0.0
    wall_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Left:
    """What may still be spent at the present price; infinite without a limit."""

    device_seconds: float = math.inf
    wall_seconds: float = math.inf


@dataclass(frozen=True, slots=True)
class Need(Estimate):
    """Device-seconds that a whole fold-run is expected to need.

    Args:
        is_guess: no comparable fold-run was measured.
        saving_seconds: expected time to save its lane, until one was saved.
    """

    is_guess: bool = False
    saving_seconds: float = 1.0


def overhead(spent_device_seconds: float, recorded: float) -> float:
    """Device time that hosts held, relative to what records say fold-runs used; clipped to 1 to 3.

    Hosts also hold devices while idle, while loading, and for fold-runs that are not finished.
    """
    return min(3.0, max(1.0, spent_device_seconds / recorded)) if recorded else 1.0
