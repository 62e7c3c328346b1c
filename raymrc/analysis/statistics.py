"""How sure a comparison is: tests, intervals, corrections and fits. Pure functions of numbers.

    F1 on folds        -> corrected t: interval, p-values, probability of practical equivalence -> Holm
    counts per note    -> cluster bootstrap: intervals of micro F1 and of differences
    many configurations -> what the best of them owes to luck
    F1 by size         -> a line in log parameters, and where it reaches parity

F1 and differences run from 0 to 1 throughout. scipy is loaded by what needs a distribution, not by import.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

# S systems (a model's answers to all notes), N notes, G groups of notes, B bootstrap draws,
# C configurations, F folds

Array = NDArray[np.float64]

LEVEL = 0.95
"""Of every interval, and of a claim of parity."""

GUARDED_CORRELATION = 0.3
"""Between the differences of two folds, the largest that verdicts guard against (docs/decisions/0024)."""

MIN_SIZES = 4
"""A line through three sizes leaves one degree of freedom, whose t is 12.7: an interval that says nothing."""

DRAWS = 10_000
"""Of a bootstrap: its intervals' ends then move by less than a tenth of their width from seed to seed."""

NO_SPREAD = 1e-12
"""Differences that vary by less are equal but for rounding: nothing says how far off they may be."""


class TooFewError(ValueError):
    """Too few folds, notes or sizes for what is asked; the message says how many there are and are needed."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Of `level`; None for an end that the data do not bound."""

    low: float | None
    high: float | None
    level: float = LEVEL

    def __contains__(self, value: float) -> bool:
        return (self.low is None or self.low <= value) and (self.high is None or value <= self.high)


# --- differences over folds -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Probabilities:
    """That a difference is below, within and above a region of practical equivalence; they sum to 1."""

    below: float
    within: float
    above: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A difference, and how sure it is: Student's t around it.

    The same t is the sampling distribution of a test and, with a flat prior, the posterior of the
    difference, so interval, p-values and probabilities cannot contradict each other.

    Args:
        difference: mean of F1 of A minus F1 of B, -1 to 1.
        scale: its standard error; 0 where all folds gave the same difference, and then nothing is claimed:
            there is no interval, no probability, and p-values are 1.
        degrees: of freedom.
        correlation: between folds, that was assumed.
    """

    difference: float
    scale: float
    degrees: float
    correlation: float = 0.0

    @property
    def has_spread(self) -> bool:
        return self.scale > 0

    @property
    def p_difference(self) -> float:
        """Two-sided, of the null hypothesis that there is no difference."""
        if not self.has_spread:
            return 1.0
        return float(2 * _t_below(-abs(self.difference) / self.scale, self.degrees))

    def p_equivalence(self, margin: float) -> float:
        """Of the null hypothesis that the difference is `margin` or more, either way.

        Two one-sided tests (Schuirmann 1987, J. Pharmacokinetics and Biopharmaceutics 15, 657-680).

        Raises:
            ValueError: the margin is not above 0.
        """
        _check_margin(margin)
        if not self.has_spread:
            return 1.0
        return float(_t_below((abs(self.difference) - margin) / self.scale, self.degrees))

    def interval(self, level: float = LEVEL) -> Interval:
        if not self.has_spread:
            return Interval(None, None, level)
        half = self.scale * _t_quantile(level, self.degrees)
        return Interval(self.difference - half, self.difference + half, level)

    def probabilities(self, margin: float) -> Probabilities | None:
        """Bayesian correlated t-test; None where there is no spread to tell by.

        Source: Corani and Benavoli 2015, Machine Learning 100, 285-304; Benavoli et al. 2017, JMLR 18 (77).

        Raises:
            ValueError: the margin is not above 0.
        """
        _check_margin(margin)
        if not self.has_spread:
            return None
        below = float(_t_below((-margin - self.difference) / self.scale, self.degrees))
        above = float(_t_below((self.difference - margin) / self.scale, self.degrees))
        return Probabilities(below, max(0.0, 1 - below - above), above)


def published_correlation(num_folds: int) -> float:
    """Between folds, as Nadeau and Bengio assume it: scored notes / all notes, 1/k.

    Raises:
        TooFewError: fewer than two folds.
    """
    if num_folds < 2:
        raise TooFewError(f"{num_folds} folds have no correlation; 2 are needed")
    return 1 / num_folds


def guarded_correlation(num_folds: int) -> float:
    """What verdicts assume: the published one, and at least `GUARDED_CORRELATION`.

    One cross-validation does not tell its own correlation (Bengio and Grandvalet 2004, JMLR 5, 1089-1105), so
    it has to be assumed; too small a one gives false wins, too large a one wide intervals.
    """
    return max(GUARDED_CORRELATION, published_correlation(num_folds))


def compare_folds(differences: ArrayLike, correlation: float | None = None) -> Comparison:
    """Corrected paired t-test over folds.

    Folds share training notes, so their differences are correlated and the plain test calls too many wins.
    With k differences of mean d and sample variance s2, each two of them correlated by r, the variance of
    d is estimated without bias by (1/k + r / (1 - r)) s2, and d over its root is exactly t with k - 1
    degrees of freedom where differences are Gaussian and d is 0 on average.

    Args:
        differences: F1 of A minus F1 of B on each fold, (F,).
        correlation: r, 0 to below 1; `guarded_correlation` where not given. 0 is the plain paired t-test.

    Raises:
        TooFewError: fewer than two folds.
        ValueError: a difference is not a number, or r is not in its range.

    Source: Nadeau and Bengio 2003, Machine Learning 52, 239-281.
    """
    values = _checked(differences)
    if correlation is None:
        correlation = guarded_correlation(len(values))
    variance = _fold_variance(values, correlation)
    return Comparison(
        float(values.mean()), math.sqrt(variance), float(len(values) - 1), correlation
    )


def compare_on_shared_notes(
    differences: ArrayLike,
    note_variance: float,
    num_groups: int,
    correlation: float | None = None,
) -> Comparison:
    """As `compare_folds`, where every fold's models are scored on the same notes, as at another site.

    What these notes happen to be is then the same luck for all folds and cannot be seen between them. It is
    added: variance = (1/k + r / (1 - r)) s2 + that over resampled notes, with Satterthwaite's degrees of
    freedom. Models are counted twice where notes and models interact, so intervals are rather too wide.

    Args:
        note_variance: of the mean difference over `bootstrap`'s draws.
        num_groups: that were drawn from.

    Raises:
        TooFewError: fewer than two folds or groups.
        ValueError: as in `compare_folds`; or the variance is negative.

    Source: Satterthwaite 1946, Biometrics Bulletin 2, 110-114.
    """
    values = _checked(differences)
    if num_groups < 2:
        raise TooFewError(f"{num_groups} group of notes cannot be resampled; 2 are needed")
    if not note_variance >= 0:
        raise ValueError(f"{note_variance} is no variance")
    if correlation is None:
        correlation = guarded_correlation(len(values))
    of_folds = _fold_variance(values, correlation)
    total = of_folds + note_variance
    if total <= NO_SPREAD**2:
        return Comparison(float(values.mean()), 0.0, float(len(values) - 1), correlation)
    degrees = total**2 / (of_folds**2 / (len(values) - 1) + note_variance**2 / (num_groups - 1))
    return Comparison(float(values.mean()), math.sqrt(total), degrees, correlation)


def holm(p_values: Sequence[float], most_true: int | None = None) -> tuple[float, ...]:
    """Adjusted p-values, in the order given: claims of those up to a are all true with probability 1 - a.

    Args:
        most_true: how many of the hypotheses can be true together; all, where that is not known. Of one gap
            "no difference" and "not equivalent" cannot both be true, so there it is half of them.

    Raises:
        ValueError: a p-value is not from 0 to 1.

    Source: Holm 1979, Scandinavian J. of Statistics 6, 65-70; with `most_true`, Shaffer 1986, JASA 81,
    826-831.
    """
    values = np.asarray(p_values, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("a p-value is from 0 to 1")
    count = len(values)
    order = np.argsort(values, kind="stable")
    left = np.minimum(count - np.arange(count), count if most_true is None else most_true)
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(left * values[order]))
    return tuple(float(value) for value in adjusted)


def _fold_variance(values: Array, correlation: float) -> float:
    if not 0 <= correlation < 1:
        raise ValueError(f"{correlation} is no correlation between folds: 0 to below 1")
    sd = float(values.std(ddof=1))
    if sd <= NO_SPREAD:
        return 0.0
    return (1 / len(values) + correlation / (1 - correlation)) * sd**2


def _checked(differences: ArrayLike) -> Array:
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise TooFewError(f"{values.size} fold has no spread; 2 are needed")
    if not np.isfinite(values).all():
        raise ValueError("a difference is not a number")
    return values


def _check_margin(margin: float) -> None:
    if not margin > 0:
        raise ValueError(f"a region of practical equivalence of {margin} holds nothing")


def _t_below(value: float, degrees: float) -> float:
    from scipy.special import stdtr

    return float(stdtr(degrees, value))


def _t_quantile(level: float, degrees: float) -> float:
    """Of the middle `level` of the distribution, its upper end."""
    from scipy.special import stdtrit

    if not 0 < level < 1:
        raise ValueError(f"a level of {level} is not between 0 and 1")
    return float(stdtrit(degrees, (1 + level) / 2))


# --- notes ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Micro F1 of systems, were other notes drawn like these. The trained models stay as they are.

    Args:
        f1: as scored, (S,).
        drawn: over resampled notes, the same ones for all systems, (B, S).
        without: with each group left out, (G, S).
    """

    f1: Array = field(repr=False)
    drawn: Array = field(repr=False)
    without: Array = field(repr=False)

    @property
    def num_groups(self) -> int:
        return len(self.without)

    def variance(self, weights: ArrayLike) -> float:
        """Of a sum of systems' F1 over draws; `weights` as in `interval`."""
        return float((self.drawn @ np.asarray(weights, dtype=np.float64)).var(ddof=1))

    def interval(self, weights: ArrayLike, level: float = LEVEL) -> Interval:
        """Bias-corrected and accelerated (BCa), its ends moved out as far as few groups ask for.

        Few groups scatter less than what they are drawn from, by (G - 1) / G in variance, and how much
        they scatter is unsure, so the normal's quantile gives way to Student's.

        Args:
            weights: (S,); of one system [1, 0 ...] for its F1, [1, -1, 0 ...] for a difference.

        Source: Hesterberg 2015, American Statistician 69, 371-386 (expanded percentiles); the
        rest as `bca_interval`.
        """
        from scipy.special import ndtr

        groups = self.num_groups
        reach = _t_quantile(level, groups - 1) * math.sqrt(groups / (groups - 1))
        return replace(self.bca_interval(weights, float(2 * ndtr(reach) - 1)), level=level)

    def bca_interval(self, weights: ArrayLike, level: float = LEVEL) -> Interval:
        """The textbook's BCa interval, as scipy computes it; with few groups it is too short.

        Source: Efron 1987, JASA 82, 171-185, with the half of ties counted as below.
        """
        from scipy.special import ndtr, ndtri

        weights = np.asarray(weights, dtype=np.float64)
        value, drawn, without = self.f1 @ weights, self.drawn @ weights, self.without @ weights
        if np.ptp(drawn) <= NO_SPREAD:
            # All notes say the same: nothing is known of others.
            return Interval(None, None, level)
        # Sums in another order differ in their last digits and are ties all the same.
        tied = np.abs(drawn - value) <= NO_SPREAD
        below = (((drawn < value) & ~tied).sum() + tied.sum() / 2) / len(drawn)
        bias = ndtri(np.clip(below, 0.5 / len(drawn), 1 - 0.5 / len(drawn)))
        pulls = without.mean() - without
        spread = (pulls**2).sum()
        acceleration = (pulls**3).sum() / (6 * spread**1.5) if spread > NO_SPREAD**2 else 0.0
        ends = bias + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
        low, high = np.quantile(drawn, ndtr(bias + ends / (1 - acceleration * ends)))
        return Interval(float(low), float(high), level)


def bootstrap(
    counts: ArrayLike,
    groups: Sequence[object] | None = None,
    draws: int = DRAWS,
    *,
    generator: np.random.Generator,
) -> Bootstrap:
    """Draws groups of notes with replacement, and counts micro F1 anew.

    Args:
        counts: matched, spurious and missed of each system and note, (S, N, 3), in the same order of notes.
        groups: of each note, (N,): notes of a patient or article are drawn together. Each note by itself
            where not given.

    Raises:
        TooFewError: fewer than two groups.
        ValueError: counts are not of this shape, or groups are not as many as notes.

    Source: Field and Welsh 2007, J. Royal Statistical Society B 69, 369-390 (clusters); Berg-Kirkpatrick
    et al. 2012, EMNLP (differences of F1).
    """
    by_group = _sum_groups(counts, groups)
    num_systems, num_groups, _ = by_group.shape
    total = by_group.sum(1)
    flat = by_group.transpose(1, 0, 2).reshape(num_groups, -1)
    drawn = np.empty((draws, num_systems))
    for start, weights in _resamples(num_groups, draws, generator):
        sums = (weights @ flat).reshape(len(weights), num_systems, 3)
        drawn[start : start + len(weights)] = micro_f1(sums)
    without = micro_f1(total[:, None] - by_group).T
    return Bootstrap(micro_f1(total), drawn, without)


def micro_f1(counts: ArrayLike) -> Array:
    """As `scoring.counts.Counts.f1`, of arrays whose last axis is matched, spurious, missed."""
    counts = np.asarray(counts, dtype=np.float64)
    found = 2 * counts[..., 0]
    below = found + counts[..., 1] + counts[..., 2]
    return np.divide(found, below, out=np.zeros_like(found), where=below > 0)


def _sum_groups(counts: ArrayLike, groups: Sequence[object] | None) -> Array:
    """(S, G, 3), groups in the order of their first note."""
    values = np.asarray(counts, dtype=np.float64)
    if values.ndim != 3 or values.shape[-1] != 3:
        raise ValueError(f"counts are (systems, notes, 3), not {values.shape}")
    if groups is not None:
        if len(groups) != values.shape[1]:
            raise ValueError(f"{values.shape[1]} notes have {len(groups)} groups")
        places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
        of_note = np.array([places[group] for group in groups], dtype=np.intp)
        summed = np.zeros((len(places), len(values), 3))
        np.add.at(summed, of_note, values.swapaxes(0, 1))
        values = summed.swapaxes(0, 1)
    if values.shape[1] < 2:
        raise TooFewError(f"{values.shape[1]} group of notes cannot be resampled; 2 are needed")
    return values


def _resamples(
    num_groups: int, draws: int, generator: np.random.Generator
) -> Iterator[tuple[int, Array]]:
    """How often each group is in a draw, some draws at a time: all of them would not fit for many notes."""
    size = max(1, 2_000_000 // num_groups)
    for start in range(0, draws, size):
        rows = min(size, draws - start)
        picked = generator.integers(num_groups, size=(rows, num_groups))
        picked += num_groups * np.arange(rows)[:, None]
        weights = np.bincount(picked.ravel(), minlength=rows * num_groups)
        yield start, weights.reshape(rows, num_groups).astype(np.float64)


# --- the best of many -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Selection:
    """The configuration that was chosen, and what it owes to having been chosen.

    Args:
        chosen: its place.
        scored: its F1 as reported.
        corrected: F1 without the luck that chose it.
    """

    chosen: int
    scored: float
    corrected: float

    @property
    def optimism(self) -> float:
        """F1 that is not to be expected again."""
        return self.scored - self.corrected


def leave_fold_out(
    choosing: ArrayLike, scored: ArrayLike, elsewhere: ArrayLike | None = None
) -> Selection:
    """Chooses on all folds but one, each in turn: what the chosen one is ahead of all configurations there,
    and not on the fold that is left out, is luck, and is taken off the winner.

    Not the chosen one's F1 on the fold left out: a fold less chooses worse, by up to 0.3 points where
    configurations differ, which is no luck of the winner.

    Args:
        choosing: what the winner has the best mean of, (C, F): validation F1, or `scored` itself.
        scored: F1 of each configuration and fold, (C, F).
        elsewhere: validation F1 of each configuration and fold-run on the notes that the fold which is left
            out does not score, (C, F, F). Without it those notes choose by whom they are reported.

    Raises:
        TooFewError: fewer than two folds.
        ValueError: the shapes do not fit.

    Source: the outer loop of nested cross-validation, on what is already trained (Varma and Simon 2006, BMC
    Bioinformatics 7 (91)), for the optimism rather than the error (Efron 1983, JASA 78, 316-331).
    """
    by, values = np.asarray(choosing, dtype=np.float64), np.asarray(scored, dtype=np.float64)
    if by.shape != values.shape or by.ndim != 2:
        raise ValueError(f"choosing and scored F1 are {by.shape} and {values.shape}")
    folds = by.shape[1]
    if folds < 2:
        raise TooFewError(f"{folds} fold cannot be left out; 2 are needed")
    left = by[:, :, None] if elsewhere is None else np.asarray(elsewhere, dtype=np.float64)
    left = np.broadcast_to(left, (*by.shape, folds))
    chosen = int(by.mean(1).argmax())
    chosen_without = (left.sum(1) - left.diagonal(axis1=1, axis2=2)).argmax(0)
    ahead = values - values.mean(0)
    there = ahead[chosen_without, np.arange(folds)]
    luck = (ahead[chosen_without].sum(1) - there) / (folds - 1) - there
    # A maximum over the noise of a fold less is larger. Validation that leaves out the fold's notes as well
    # shares fewer of them with the others, which comes to the same again.
    fewer = math.sqrt((folds - 1) / folds) if elsewhere is None else 1.0
    reported = float(values[chosen].mean())
    return Selection(chosen, reported, reported - fewer * float(luck.mean()))


def best_fold_bias(scored: ArrayLike) -> Selection:
    """What the best of each fold is ahead of the winner there, taken off the winner.

    Args:
        scored: F1 that also chooses, (C, F).

    Source: Tibshirani and Tibshirani 2009, Annals of Applied Statistics 3, 822-829.
    """
    values = np.asarray(scored, dtype=np.float64)
    chosen = int(values.mean(1).argmax())
    bias = float((values.max(0) - values[chosen]).mean())
    reported = float(values[chosen].mean())
    return Selection(chosen, reported, reported - bias)


def bootstrap_best(
    counts: ArrayLike,
    groups: Sequence[object] | None = None,
    draws: int = 1000,
    *,
    generator: np.random.Generator,
) -> tuple[Selection, Interval]:
    """Chooses by pooled F1 on drawn notes and reports those that were not drawn (BBC-CV).

    Args:
        counts: of each configuration, (C, N, 3), by which it is chosen; groups and errors as in `bootstrap`.

    Returns:
        The selection, and the interval of the corrected F1.

    Source: Tsamardinos, Greasidou and Borboudakis 2018, Machine Learning 107, 1895-1922.
    """
    by_group = _sum_groups(counts, groups)
    num, num_groups, _ = by_group.shape
    flat = by_group.transpose(1, 0, 2).reshape(num_groups, -1)
    found: list[Array] = []
    for _, weights in _resamples(num_groups, draws, generator):
        outside = (weights == 0).astype(np.float64)
        inside = micro_f1((weights @ flat).reshape(-1, num, 3))
        left = micro_f1((outside @ flat).reshape(-1, num, 3))
        # A draw of all groups leaves none to report on.
        some = outside.any(1)
        found.append(left[np.arange(len(left)), inside.argmax(1)][some])
    reported = np.concatenate(found)
    total = micro_f1(by_group.sum(1))
    chosen = int(total.argmax())
    low, high = np.quantile(reported, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    selection = Selection(chosen, float(total[chosen]), float(reported.mean()))
    return selection, Interval(float(low), float(high))


# --- size and price -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SizeFit:
    """A line: value = intercept + slope * log10(parameters), by least squares.

    Intervals are of the line, from how sizes scatter about it. What moves all sizes together, such as which
    notes there are, is not in them.

    Args:
        intercept_variance, slope_variance, covariance: of the two estimates.
        degrees: of freedom, sizes - 2.
        smallest, largest: parameters of what was fitted.
    """

    intercept: float
    slope: float
    intercept_variance: float
    slope_variance: float
    covariance: float
    degrees: int
    smallest: float
    largest: float

    def slope_interval(self, level: float = LEVEL) -> Interval:
        """What a tenfold of parameters changes."""
        half = _t_quantile(level, self.degrees) * math.sqrt(self.slope_variance)
        return Interval(self.slope - half, self.slope + half, level)

    def at(self, parameters: float, level: float = LEVEL) -> tuple[float, Interval]:
        """The line at a size, and the interval of the line there."""
        x = math.log10(parameters)
        value = self.intercept + self.slope * x
        variance = self.intercept_variance + 2 * x * self.covariance + x**2 * self.slope_variance
        half = _t_quantile(level, self.degrees) * math.sqrt(max(0.0, variance))
        return value, Interval(value - half, value + half, level)


@dataclass(frozen=True, slots=True)
class ParitySize:
    """
    Args:
        parameters: from which size on the line is within the margin; None where it does not fall with size.
        interval: of that size, in parameters; open at both ends where the slope may be none at all.
        is_extrapolated: it lies outside of the sizes that were fitted.
    """

    parameters: float | None
    interval: Interval
    is_extrapolated: bool = False


def fit_sizes(parameters: ArrayLike, values: ArrayLike) -> SizeFit:
    """F1, or the frozen gap, against the logarithm of the backbone's parameters.

    Args:
        parameters: of each backbone, above 0.
        values: of each, 0 to 1.

    Raises:
        TooFewError: fewer than `MIN_SIZES` different sizes.
        ValueError: they are not as many as each other, or not numbers.
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


def parity_size(fit: SizeFit, margin: float, level: float = LEVEL) -> ParitySize:
    """Where a gap that falls with size comes down to the margin.

    Args:
        fit: of gaps.
        margin: the gap that is parity, 0 to 1.

    Source: Fieller 1954, J. Royal Statistical Society B 16, 175-185: all sizes x at which the line's own
    interval holds the margin, |a + b x - margin| <= t * se(a + b x).
    """
    unknown = Interval(None, None, level)
    if not fit.slope < 0:
        return ParitySize(None, unknown)
    t2 = _t_quantile(level, fit.degrees) ** 2
    above = fit.intercept - margin
    where = -above / fit.slope
    size = _power_of_ten(where)
    square = fit.slope**2 - t2 * fit.slope_variance
    linear = above * fit.slope - t2 * fit.covariance
    constant = above**2 - t2 * fit.intercept_variance
    if square > 0:
        root = math.sqrt(max(0.0, linear**2 - square * constant))
        low, high = (-linear - root) / square, (-linear + root) / square
        unknown = Interval(_power_of_ten(low), _power_of_ten(high), level)
    outside = size is None or not fit.smallest <= size <= fit.largest
    return ParitySize(size, unknown, outside)


def _power_of_ten(exponent: float) -> float | None:
    """None for what no backbone can have: the line says so, the numbers end."""
    return 10**exponent if -300 < exponent < 300 else None


@dataclass(frozen=True, slots=True)
class CostPerPoint:
    """What one more point of F1 costs.

    Args:
        value: cost for a point; None where the dearer one is not ahead.
        interval: open above where the dearer one may not be ahead at all.
    """

    value: float | None
    interval: Interval


def cost_per_point(extra_cost: float, ahead: Interval, difference: float) -> CostPerPoint:
    """The incremental cost-effectiveness ratio: extra cost / extra points.

    Args:
        extra_cost: of the dearer one, above 0, in any unit.
        ahead: interval of its F1 minus the cheaper one's, 0 to 1; `difference` is its middle.

    Raises:
        ValueError: the extra cost is not above 0.
    """
    if not extra_cost > 0:
        raise ValueError(f"an extra cost of {extra_cost} buys nothing")

    def each(gain: float | None) -> float | None:
        return extra_cost / (100 * gain) if gain is not None and gain > 0 else None

    return CostPerPoint(each(difference), Interval(each(ahead.high), each(ahead.low), ahead.level))


def pareto(f1: ArrayLike, costs: ArrayLike) -> tuple[int, ...]:
    """Places of those that no other one beats: as good in all and better in something. Equals all stay.

    Args:
        f1: more is better, (n,).
        costs: less is better, such as money, memory, bytes and energy, (n, any).

    Raises:
        ValueError: they are not as many as each other, or not numbers.
    """
    gain = np.asarray(f1, dtype=np.float64)
    loss = np.asarray(costs, dtype=np.float64).reshape(len(gain), -1)
    values = np.column_stack([-gain, loss])
    if not np.isfinite(values).all():
        raise ValueError("a figure is not a number")
    as_good = (values[:, None] <= values[None]).all(-1)
    better = (values[:, None] < values[None]).any(-1)
    return tuple(int(place) for place in np.flatnonzero(~(as_good & better).any(0)))
