"""F1 against size and cost: a line in log parameters, the size at parity, the price of a point, the frontier.

Pure functions of numbers. F1 and gaps run from 0 to 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from raymrc.analysis.statistics import LEVEL, Interval, TooFewError, t_quantile

MIN_SIZES = 4
"""A line through three sizes leaves one degree of freedom, whose t is 12.7: an interval that says nothing."""


@dataclass(frozen=True, slots=True)
class SizeFit:
    """A line: value = intercept + slope * log10(parameters), by least squares.

    Its intervals come from the scatter of sizes about the line. What moves all sizes together, such as the
    choice of notes, is not included.

    Args:
        intercept_variance, slope_variance, covariance: of the two estimates.
        degrees: degrees of freedom, sizes - 2.
        smallest, largest: of the fitted sizes, in parameters.
    """

    intercept: float
    slope: float
    intercept_variance: float
    slope_variance: float
    covariance: float
    degrees: int
    smallest: float
    largest: float

    def slope_interval(self) -> Interval:
        """Interval of the change per factor of ten in parameters."""
        half = t_quantile(LEVEL, self.degrees) * math.sqrt(self.slope_variance)
        return Interval(self.slope - half, self.slope + half)

    def at(self, parameters: float) -> tuple[float, Interval]:
        """The line's value and interval at a size."""
        x = math.log10(parameters)
        value = self.intercept + self.slope * x
        variance = self.intercept_variance + 2 * x * self.covariance + x**2 * self.slope_variance
        half = t_quantile(LEVEL, self.degrees) * math.sqrt(max(0.0, variance))
        return value, Interval(value - half, value + half)


@dataclass(frozen=True, slots=True)
class ParitySize:
    """The size from which on the gap is within the margin.

    Args:
        parameters: None if the gap does not fall with size.
        interval: in parameters; open at both ends if the slope may be 0.
        is_extrapolated: the size lies outside the fitted sizes.
    """

    parameters: float | None
    interval: Interval
    is_extrapolated: bool = False


def fit_sizes(parameters: ArrayLike, values: ArrayLike) -> SizeFit:
    """Fits F1, or the gap, against the logarithm of the backbone's parameters.

    Args:
        parameters, values: one per backbone; parameters are above 0.

    Raises:
        TooFewError: fewer than `MIN_SIZES` different sizes.
        ValueError: lengths differ, or a value is not a number.
    """
    sizes, y = np.asarray(parameters, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if sizes.shape != y.shape or sizes.ndim != 1:
        raise ValueError(f"{sizes.size} sizes have {y.size} values")
    if not (np.isfinite(sizes) & np.isfinite(y) & (sizes > 0)).all():
        raise ValueError("a size or a value is not a number, or no size")
    different = len(set(sizes.tolist()))
    if different < MIN_SIZES:
        raise TooFewError(f"{different} sizes are too few for a line; {MIN_SIZES} are needed")
    x = np.log10(sizes)
    centre, degrees = x.mean(), len(x) - 2
    squares = ((x - centre) ** 2).sum()
    slope = ((x - centre) * (y - y.mean())).sum() / squares
    intercept = y.mean() - slope * centre
    residual = ((y - intercept - slope * x) ** 2).sum() / degrees
    slope_variance = residual / squares
    return SizeFit(
        intercept=float(intercept),
        slope=float(slope),
        intercept_variance=float(residual / len(x) + centre**2 * slope_variance),
        slope_variance=float(slope_variance),
        covariance=float(-centre * slope_variance),
        degrees=degrees,
        smallest=float(sizes.min()),
        largest=float(sizes.max()),
    )


def parity_size(fit: SizeFit, margin: float) -> ParitySize:
    """The size at which a gap that falls with size reaches the margin.

    Args:
        fit: of gaps.
        margin: the gap that counts as parity, 0 to 1.

    Source: Fieller 1954, J. Royal Statistical Society B 16, 175-185: all sizes x at which the line's
    interval contains the margin, |a + b x - margin| <= t * se(a + b x).
    """
    interval = Interval(None, None)
    if not fit.slope < 0:
        return ParitySize(None, interval)
    t2 = t_quantile(LEVEL, fit.degrees) ** 2
    above = fit.intercept - margin
    size = _power_of_ten(-above / fit.slope)
    square = fit.slope**2 - t2 * fit.slope_variance
    linear = above * fit.slope - t2 * fit.covariance
    constant = above**2 - t2 * fit.intercept_variance
    if square > 0:
        root = math.sqrt(max(0.0, linear**2 - square * constant))
        low, high = (-linear - root) / square, (-linear + root) / square
        interval = Interval(_power_of_ten(low), _power_of_ten(high))
    outside = size is None or not fit.smallest <= size <= fit.largest
    return ParitySize(size, interval, outside)


def _power_of_ten(exponent: float) -> float | None:
    """None beyond the range of floats."""
    return 10**exponent if -300 < exponent < 300 else None


@dataclass(frozen=True, slots=True)
class CostPerPoint:
    """Cost of one more point of F1.

    Args:
        value: None if the more expensive side is not ahead.
        interval: open above if the more expensive side may not be ahead.
    """

    value: float | None
    interval: Interval


def cost_per_point(extra_cost: float, ahead: Interval, difference: float) -> CostPerPoint:
    """The incremental cost-effectiveness ratio: extra cost / extra points.

    Args:
        extra_cost: of the more expensive side, above 0, in any unit.
        ahead: interval of its F1 minus the cheaper side's; `difference` is its middle.

    Raises:
        ValueError: the extra cost is not above 0.
    """
    if not extra_cost > 0:
        raise ValueError(f"an extra cost of {extra_cost} buys nothing")

    def each(gain: float | None) -> float | None:
        return extra_cost / (100 * gain) if gain is not None and gain > 0 else None

    return CostPerPoint(each(difference), Interval(each(ahead.high), each(ahead.low)))


def pareto(f1: ArrayLike, costs: ArrayLike) -> tuple[int, ...]:
    """Indices of the rows that no other row beats (as good in all, better in one); ties all stay.

    Args:
        f1: more is better, (n,).
        costs: less is better, such as money, memory, bytes and energy, (n, any).

    Raises:
        ValueError: lengths differ, or a value is not a number.
    """
    gain = np.asarray(f1, dtype=np.float64)
    loss = np.asarray(costs, dtype=np.float64).reshape(len(gain), -1)
    values = np.column_stack([-gain, loss])
    if not np.isfinite(values).all():
        raise ValueError("a figure is not a number")
    as_good = (values[:, None] <= values[None]).all(-1)
    better = (values[:, None] < values[None]).any(-1)
    return tuple(int(place) for place in np.flatnonzero(~(as_good & better).any(0)))
