"""How certain a comparison is: tests, intervals and corrections. Pure functions of numbers.

    F1 on folds         -> corrected t: interval, p-values, probability of practical equivalence -> Holm
    counts per note     -> cluster bootstrap: intervals of micro F1 and of differences
    many configurations -> the luck in the best one's score

F1 and differences run from 0 to 1 throughout. scipy is imported by the functions that need it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

# S systems (a model's answers to all notes), N notes, G groups of notes, B bootstrap draws,
# C configurations, F folds

Array = NDArray[np.float64]

LEVEL = 0.95
"""Confidence level of every interval and every claim."""

GUARDED_CORRELATION = 0.3
"""Largest correlation between two folds' differences that claims guard against (docs/decisions/0024)."""

DRAWS = 10_000
"""Bootstrap resamples: interval ends then move by less than a tenth of the width from seed to seed."""

MAX_DRAWN_GROUPS = 2_000_000
"""Groups drawn at a time, so that they fit into memory."""

NO_SPREAD = 1e-12
"""Differences that vary by less are equal up to rounding; they have no interval."""


class TooFewError(ValueError):
    """Too few folds, notes or sizes; the message says how many there are and how many are needed."""


@dataclass(frozen=True, slots=True)
class Interval:
    """None for an end that the data do not bound."""

    low: float | None
    high: float | None
    level: float = LEVEL

    def __contains__(self, value: float) -> bool:
        return (self.low is None or self.low <= value) and (self.high is None or value <= self.high)


# --- differences over folds -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Probabilities:
    """How likely a difference is below, within or above the region of practical equivalence; the sum is 1."""

    below: float
    within: float
    above: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A difference with Student's t around it.

    The same t is the sampling distribution of a test and, with a flat prior, the posterior of the
    difference, so interval, p-values and probabilities cannot contradict each other.

    Args:
        difference: mean F1 of A minus F1 of B, -1 to 1.
        scale: standard error. 0 if all folds gave the same difference; then there is no interval, no
            probability, and p-values are 1.
        degrees, correlation: degrees of freedom; the correlation assumed between folds.
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
        """Two-sided, for the null hypothesis of no difference."""
        if not self.has_spread:
            return 1.0
        return 2 * _t_below(-abs(self.difference) / self.scale, self.degrees)

    def p_equivalence(self, margin: float) -> float:
        """For the null hypothesis that the difference is `margin` or more in either direction.

        Two one-sided tests (Schuirmann 1987, J. Pharmacokinetics and Biopharmaceutics 15, 657-680).

        Raises:
            ValueError: the margin is not above 0.
        """
        _check_margin(margin)
        if not self.has_spread:
            return 1.0
        return _t_below((abs(self.difference) - margin) / self.scale, self.degrees)

    def interval(self, level: float = LEVEL) -> Interval:
        if not self.has_spread:
            return Interval(None, None, level)
        half = self.scale * t_quantile(level, self.degrees)
        return Interval(self.difference - half, self.difference + half, level)

    def probabilities(self, margin: float) -> Probabilities | None:
        """Bayesian correlated t-test; None without spread.

        Source: Corani and Benavoli 2015, Machine Learning 100, 285-304; Benavoli et al. 2017, JMLR 18 (77).

        Raises:
            ValueError: the margin is not above 0.
        """
        _check_margin(margin)
        if not self.has_spread:
            return None
        below = _t_below((-margin - self.difference) / self.scale, self.degrees)
        above = _t_below((self.difference - margin) / self.scale, self.degrees)
        return Probabilities(below, max(0.0, 1 - below - above), above)


def published_correlation(num_folds: int) -> float:
    """Between folds, as Nadeau and Bengio assume: scored notes / all notes = 1/k.

    Raises:
        TooFewError: fewer than two folds.
    """
    if num_folds < 2:
        raise TooFewError(f"{num_folds} folds have no correlation; 2 are needed")
    return 1 / num_folds


def guarded_correlation(num_folds: int) -> float:
    """The correlation that claims assume: the published one, and at least `GUARDED_CORRELATION`.

    One cross-validation cannot estimate its own correlation (Bengio and Grandvalet 2004, JMLR 5, 1089-1105).
    Assuming too little gives false wins, assuming too much gives wide intervals.
    """
    return max(GUARDED_CORRELATION, published_correlation(num_folds))


def compare_folds(differences: ArrayLike, correlation: float | None = None) -> Comparison:
    """Corrected paired t-test over folds.

    Folds share training notes, so their differences are correlated and the plain test calls too many wins.
    Given k differences with mean d, sample variance s2 and pairwise correlation r, the variance of d is
    estimated without bias by (1/k + r / (1 - r)) s2. For Gaussian differences with mean 0, d over the root
    of that is exactly t with k - 1 degrees of freedom.

    Args:
        differences: F1 of A minus F1 of B on each fold, (F,).
        correlation: r, 0 to below 1; 0 is the plain paired t-test. Default: `guarded_correlation`.

    Raises:
        TooFewError: fewer than two folds.
        ValueError: a difference is not a number, or r is not in its range.

    Source: Nadeau and Bengio 2003, Machine Learning 52, 239-281.
    """
    mean, variance, degrees, correlation = _over_folds(differences, correlation)
    return Comparison(mean, math.sqrt(variance), degrees, correlation)


def compare_on_shared_notes(
    differences: ArrayLike, note_variance: float, num_groups: int
) -> Comparison:
    """As `compare_folds`, for models of all folds scored on the same notes, as at another site.

    The choice of notes is then the same luck for all folds and invisible between them, so its variance is
    added: (1/k + r / (1 - r)) s2 + variance over resampled notes, with Satterthwaite's degrees of freedom.
    Where notes and models interact, models count twice, so intervals err on the wide side.

    Args:
        note_variance: of the mean difference over `bootstrap`'s resamples.
        num_groups: groups of notes that were resampled.

    Raises:
        TooFewError: fewer than two folds or groups.
        ValueError: as in `compare_folds`, or the variance is negative.

    Source: Satterthwaite 1946, Biometrics Bulletin 2, 110-114.
    """
    mean, fold_variance, degrees, correlation = _over_folds(differences)
    if num_groups < 2:
        raise TooFewError(f"{num_groups} group of notes cannot be resampled; 2 are needed")
    if not note_variance >= 0:
        raise ValueError(f"{note_variance} is no variance")
    total = fold_variance + note_variance
    if total <= NO_SPREAD**2:
        return Comparison(mean, 0.0, degrees, correlation)
    degrees = total**2 / (fold_variance**2 / degrees + note_variance**2 / (num_groups - 1))
    return Comparison(mean, math.sqrt(total), degrees, correlation)


def holm(p_values: Sequence[float], max_true: int | None = None) -> tuple[float, ...]:
    """Adjusted p-values, in the given order: rejections at a are all right with probability 1 - a.

    Args:
        max_true: how many hypotheses can be true at once; by default all. "No difference" and "not
            equivalent" cannot both be true of one gap, so for gaps it is half of them.

    Raises:
        ValueError: a p-value is not from 0 to 1.

    Source: Holm 1979, Scandinavian J. of Statistics 6, 65-70; with `max_true`, Shaffer 1986, JASA 81,
    826-831.
    """
    values = np.asarray(p_values, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("a p-value is from 0 to 1")
    count = len(values)
    order = np.argsort(values, kind="stable")
    left = np.minimum(count - np.arange(count), count if max_true is None else max_true)
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(left * values[order]))
    return tuple(float(value) for value in adjusted)


def _over_folds(
    differences: ArrayLike, correlation: float | None = None
) -> tuple[float, float, float, float]:
    """Mean, its variance, degrees of freedom and correlation; see `compare_folds`."""
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise TooFewError(f"{values.size} fold has no spread; 2 are needed")
    if not np.isfinite(values).all():
        raise ValueError("a difference is not a number")
    if correlation is None:
        correlation = guarded_correlation(len(values))
    if not 0 <= correlation < 1:
        raise ValueError(f"{correlation} is no correlation between folds: 0 to below 1")
    sd = float(values.std(ddof=1))
    scale = 0.0 if sd <= NO_SPREAD else 1 / len(values) + correlation / (1 - correlation)
    return float(values.mean()), scale * sd**2, float(len(values) - 1), correlation


def _check_margin(margin: float) -> None:
    if not margin > 0:
        raise ValueError(f"a region of practical equivalence of {margin} holds nothing")


def _t_below(value: float, degrees: float) -> float:
    from scipy.special import stdtr

    return float(stdtr(degrees, value))


def t_quantile(level: float, degrees: float) -> float:
    """Upper end of the middle `level` of Student's t."""
    from scipy.special import stdtrit

    if not 0 < level < 1:
        raise ValueError(f"a level of {level} is not between 0 and 1")
    return float(stdtrit(degrees, (1 + level) / 2))


# --- notes ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Micro F1 of systems over resampled notes, models fixed.

    Args:
        f1: as scored, (S,).
        drawn: on each resample, the same resamples for all systems, (B, S).
        without: with each group left out, (G, S).
    """

    f1: Array = field(repr=False)
    drawn: Array = field(repr=False)
    without: Array = field(repr=False)

    @property
    def num_groups(self) -> int:
        return len(self.without)

    def variance(self, weights: ArrayLike) -> float:
        """Variance of a weighted sum of F1 over resamples; `weights` as in `interval`."""
        return float((self.drawn @ np.asarray(weights, dtype=np.float64)).var(ddof=1))

    def interval(self, weights: ArrayLike, level: float = LEVEL) -> Interval:
        """Bias-corrected and accelerated (BCa), widened for few groups.

        G groups vary less than their population, by (G - 1) / G in variance, and that variance is itself
        uncertain, so Student's quantile replaces the normal one.

        Args:
            weights: (S,); [1, 0 ...] for one system's F1, [1, -1, 0 ...] for a difference.

        Source: Hesterberg 2015, American Statistician 69, 371-386 (expanded percentiles); the
        rest as `bca_interval`.
        """
        from scipy.special import ndtr

        groups = self.num_groups
        reach = t_quantile(level, groups - 1) * math.sqrt(groups / (groups - 1))
        return replace(self.bca_interval(weights, float(2 * ndtr(reach) - 1)), level=level)

    def bca_interval(self, weights: ArrayLike, level: float = LEVEL) -> Interval:
        """The textbook BCa interval, as scipy computes it; too short with few groups.

        Source: Efron 1987, JASA 82, 171-185, with half of the ties counted as below.
        """
        from scipy.special import ndtr, ndtri

        weights = np.asarray(weights, dtype=np.float64)
        value, drawn, without = self.f1 @ weights, self.drawn @ weights, self.without @ weights
        if np.ptp(drawn) <= NO_SPREAD:
            # All notes score the same: they say nothing about other notes.
            return Interval(None, None, level)
        # Sums in another order differ in their last digits; these are ties as well.
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
    """Resamples groups of notes with replacement and recomputes micro F1.

    Args:
        counts: matched, spurious and missed items per system and note, (S, N, 3).
        groups: of each note, (N,): notes of one patient or article are drawn together. By default each note
            is its own group.

    Raises:
        TooFewError: fewer than two groups.
        ValueError: `counts` has another shape, or `groups` another length.

    Source: Field and Welsh 2007, J. Royal Statistical Society B 69, 369-390 (clusters); Berg-Kirkpatrick
    et al. 2012, EMNLP (differences of F1).
    """
    by_group = _sum_groups(counts, groups)
    num_systems, num_groups, _ = by_group.shape
    total = by_group.sum(1)
    flat = by_group.transpose(1, 0, 2).reshape(num_groups, -1)
    drawn = np.empty((draws, num_systems))
    size = max(1, MAX_DRAWN_GROUPS // num_groups)
    for start in range(0, draws, size):
        rows = min(size, draws - start)
        picked = generator.integers(num_groups, size=(rows, num_groups))
        picked += num_groups * np.arange(rows)[:, None]
        weights = np.bincount(picked.ravel(), minlength=rows * num_groups)
        sums = weights.reshape(rows, num_groups).astype(np.float64) @ flat
        drawn[start : start + rows] = micro_f1(sums.reshape(rows, num_systems, 3))
    without = micro_f1(total[:, None] - by_group).T
    return Bootstrap(micro_f1(total), drawn, without)


def micro_f1(counts: ArrayLike) -> Array:
    """As `scoring.counts.Counts.f1`, for arrays whose last axis is matched, spurious, missed."""
    counts = np.asarray(counts, dtype=np.float64)
    found = 2 * counts[..., 0]
    below = found + counts[..., 1] + counts[..., 2]
    f1: Array = np.divide(found, below, out=np.zeros_like(found), where=below > 0)
    return f1


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


# --- the best of many -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen configuration, and how much of its F1 is luck of the choice.

    Args:
        chosen: its index.
        scored: its F1 as reported.
        corrected: its F1 without that luck.
    """

    chosen: int
    scored: float
    corrected: float

    @property
    def optimism(self) -> float:
        """F1 that a repetition would not show."""
        return self.scored - self.corrected


def leave_fold_out(
    choosing: ArrayLike, scored: ArrayLike, elsewhere: ArrayLike | None = None
) -> Selection:
    """Repeats the choice without each fold in turn and takes its luck off the winner.

    Luck is by how much the configuration chosen without a fold leads the mean of all configurations on the
    other folds but not on the fold left out. The chosen one's own F1 on the fold left out is not used: with
    a fold less the choice is worse, by up to 0.3 points, and that is not the winner's luck.

    Args:
        choosing: what the winner has the best mean of, (C, F): validation F1, or `scored` itself.
        scored: F1 of each configuration and fold, (C, F).
        elsewhere: validation F1 of each configuration and fold-run on notes that the fold left out does not
            score, (C, F, F). Without it, those notes help to choose and are then scored.

    Raises:
        TooFewError: fewer than two folds.
        ValueError: the shapes do not fit.

    Source: the outer loop of nested cross-validation, on finished fold-runs (Varma and Simon 2006, BMC
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
    left_out = ahead[chosen_without, np.arange(folds)]
    luck = (ahead[chosen_without].sum(1) - left_out) / (folds - 1) - left_out
    # With a fold less, the maximum over noise is larger. Validation without the fold's notes shares fewer
    # notes with the others, which cancels this.
    fewer = math.sqrt((folds - 1) / folds) if elsewhere is None else 1.0
    reported = float(values[chosen].mean())
    return Selection(chosen, reported, reported - fewer * float(luck.mean()))
