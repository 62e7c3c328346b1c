"""Numbers with intervals, and how times, sizes, shares and counts are written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


def in_time(seconds: float) -> tuple[float, str]:
    """The unit that suits a time: its length in seconds, and its name."""
    for least, size, unit in ((172800, 86400.0, "d"), (5400, 3600.0, "h"), (90, 60.0, "min")):
        if seconds >= least:
            return size, unit
    return 1.0, "s"


def in_usd(usd: float) -> tuple[float, str]:
    return 1.0, ""


Unit = Callable[[float], tuple[float, str]]
"""Chooses a unit for a value: its size and its name."""


def format_time(seconds: float) -> str:
    """1234.0 -> "20.6 min"; "-" if it is infinite."""
    if not math.isfinite(seconds):
        return "-"
    size, unit = in_time(abs(seconds))
    return f"{seconds / size:.3g} {unit}"


def short_count(number: float) -> str:
    """1234567 -> "1.23M"."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"


def points(value: float | None) -> str:
    """A share of 1 in points, "-" for None."""
    return "-" if value is None else f"{100 * value:.2f}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.3g} %"


def size_of(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"


QUANTILE = 1.645
"""Standard deviations from the mean of a normal distribution that enclose 90 %."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 90 % interval."""

    value: float = 0.0
    low: float = 0.0
    high: float = 0.0

    @classmethod
    def of(cls, value: float, spread: float) -> Estimate:
        """The value with its interval; `spread` is the standard deviation of its logarithm."""
        factor = math.exp(QUANTILE * spread)
        return cls(value, value / factor, value * factor)

    def __add__(self, other: Estimate) -> Estimate:
        """The sum if both errors have the same direction, which overstates the interval."""
        return Estimate(self.value + other.value, self.low + other.low, self.high + other.high)

    def times(self, number: float) -> Estimate:
        return Estimate(self.value * number, self.low * number, self.high * number)

    def by(self, other: Estimate) -> Estimate:
        """The product if both errors are independent."""
        if not self.value or not other.value:
            return Estimate()
        down, up = (
            math.exp(math.hypot(math.log(a / self.value), math.log(b / other.value)))
            for a, b in ((self.low, other.low), (self.high, other.high))
        )
        value = self.value * other.value
        return Estimate(value, value / down, value * up)


def format_estimate(estimate: Estimate, unit: Unit, between: str = "\n") -> str:
    """A figure and its interval, in the same unit and with two digits: "30 s (20-45)"."""
    size, name = unit(estimate.value)
    figures = (estimate.value, estimate.low, estimate.high)
    value, low, high = (_two_digits(figure / size) for figure in figures)
    suffix = f" {name}" if name else ""
    return f"{value}{suffix}" + (f"{between}({low}-{high})" if estimate.value else "")


def _two_digits(number: float) -> str:
    rounded = float(f"{number:.2g}")
    if rounded >= 10:
        return f"{rounded:.0f}"
    return f"{rounded:.4f}".rstrip("0").rstrip(".")
