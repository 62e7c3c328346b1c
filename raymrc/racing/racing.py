"""Decides what a cell trains next and which configurations can no longer win. Pure functions.

    validation F1 so far -> posterior of each mean over all folds -> fold-runs to train, contenders to stop

A configuration's worth is what `ledger.rank.rank` goes by: the mean over all folds of each fold-run's best
validation F1. The best F1 that configuration c has reached at a share of its epochs (a rung) is modelled as

    y[c, fold, rung] = level[fold, rung] + effect[c, rung] + residual[c, fold, rung]

Every fold and rung has a free level, so the model compares only values from the same fold and the same share
of training. Effects and residuals are Gaussian and correlated over rungs; their covariances are fitted to the
race itself, starting from a prior. This gives each worth a mean and a variance, whatever is still missing.
Stopping beaten configurations does not bias the fit, because the observed values explain why the others are
missing (Rubin 1976, Biometrika 63, 581-592).

Sources: races over blocks, Birattari et al. 2002, GECCO; sampling where the posterior says that the best may
be, Russo 2020, Operations Research 68, 1625-1647; Gaussian models of learning curves, Swersky et al. 2014,
arXiv:1406.3896; REML by EM, Laird and Ware 1982, Biometrics 38, 963-974.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from raymrc.ledger.rank import rank

# C configurations, F folds, R rungs, L levels: the pairs of fold and rung

_Array = NDArray[np.floating]

PRIOR_EFFECT_SD, PRIOR_RESIDUAL_SD = 0.03, 0.015
"""Standard deviations expected before a race: of a configuration's worth over all folds, and of one fold-run
around its configuration's effect. F1 runs from 0 to 1."""

PRIOR_EFFECT_LAG_SD, PRIOR_RESIDUAL_LAG_SD, PRIOR_LAG_RATE = 0.08, 0.04, 3.0
"""How far the order at the very start may differ from the final one, in effects and in residuals, and how
fast that difference decays over a fold-run."""

PRIOR_EFFECT_WEIGHT, PRIOR_RESIDUAL_WEIGHT = 4.0, 4.0
"""Weight of the prior as evidence, in configurations and in fold-runs."""

EM_STEPS = 2
"""Later steps move the covariances by less than the uncertainty of the prior."""

MAX_GAP_MEDIANS = 3.0
"""A gap to the fold's best counts as at most this many times the median gap; otherwise a few diverged runs
would inflate the variance of all."""


@dataclass(frozen=True, slots=True)
class Racing:
    """Settings of a race between a cell's configurations.

    Args:
        error_rate: largest probability that the race stops the configuration that would have won, 0 to 1.
        rungs: shares of a fold-run's epochs at which it may pause, ascending; the last is 1.
        min_folds: a configuration is stopped only after it has reached the first rung on this many folds.

    Raises:
        ValueError: a setting is out of range.
    """

    error_rate: float = 0.05
    rungs: tuple[float, ...] = (0.1, 0.3, 0.6, 1.0)
    min_folds: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.error_rate < 1:
            raise ValueError("the error rate must lie between 0 and 1")
        ascending = all(a < b for a, b in zip((0.0, *self.rungs), self.rungs, strict=False))
        if not self.rungs or not ascending or self.rungs[-1] != 1.0:
            raise ValueError("rungs must be ascending shares of the epochs, the last of them 1")

    def epochs_at(self, epochs: int) -> tuple[int, ...]:
        """The epoch of each rung, from 1. Rungs of a short fold-run may share an epoch."""
        return tuple(max(1, math.ceil(share * epochs - 1e-9)) for share in self.rungs)


@dataclass(frozen=True)
class Contender:
    """A configuration of the cell and its results so far.

    Args:
        configuration: id of the configuration.
        epochs: length of each of its fold-runs.
        courses: by fold, validation F1 after each finished epoch, 0 to 1.
        stopped: an earlier decision stopped it; its results still count as evidence.
        trained_parameters: the smaller number wins a tie.
    """

    configuration: str
    epochs: int
    courses: tuple[Sequence[float], ...]
    stopped: bool = False
    trained_parameters: int = 0

    @cached_property
    def best(self) -> _Array:
        """Best validation F1 up to each finished epoch, (folds, epochs); 0 for later epochs."""
        best = np.zeros((len(self.courses), self.epochs))
        for fold, course in enumerate(self.courses):
            best[fold, : len(course)] = np.maximum.accumulate(course)
        return best


@dataclass(frozen=True, slots=True)
class Run:
    """Train a fold-run up to an epoch, from wherever it is now."""

    configuration: str
    fold: int
    until: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now.

    Args:
        run: fold-runs for the free slots, in this order.
        stopped: configurations that leave the race now, each with a sentence for the record.
        winner: set once no further run can change it.
    """

    run: tuple[Run, ...] = ()
    stopped: dict[str, str] = field(default_factory=dict)
    winner: str | None = None


def decide(
    contenders: Iterable[Contender],
    racing: Racing,
    slots: int,
    running: Collection[Run] = (),
) -> Decision:
    """Decide what to run and what to stop, whatever the contenders' order.

    Args:
        contenders: of one cell, with the same folds; leave out those with a failed fold-run.
        slots: number of fold-runs that may start now.
        running: runs of earlier decisions that have not reported yet.
    """
    contenders = sorted(contenders, key=attrgetter("configuration"))
    race = _Race(contenders, racing, running)
    first = race.first_rungs(slots)
    if len(first) == slots or not race.depth[:, 0].any():
        return Decision(first)
    fit = _fit(race.reached, race.depth, racing.rungs)
    return race.decide(fit, first, slots - len(first))


def _rank(complete: Contender) -> tuple[float, float, float, str]:
    folds = len(complete.courses)
    worth = sum(map(max, complete.courses)) / folds
    return rank(folds, worth, complete.trained_parameters, complete.configuration)


class _Race:
    """The contenders as arrays: the progress of each fold-run and its best F1 at each rung."""

    def __init__(
        self, contenders: Sequence[Contender], racing: Racing, running: Collection[Run]
    ) -> None:
        self.contenders, self.racing = contenders, racing
        ends = {epochs: racing.epochs_at(epochs) for epochs in {c.epochs for c in contenders}}
        self.epochs = np.array([ends[c.epochs] for c in contenders])
        self.is_stopped = np.array([c.stopped for c in contenders])
        done = np.array([[len(course) for course in c.courses] for c in contenders])
        self.depth = (done[..., None] >= self.epochs[:, None]).sum(2)
        best = np.zeros((*done.shape, max(ends)))
        for c, contender in enumerate(contenders):
            best[c, :, : contender.epochs] = contender.best
        self.reached = np.take_along_axis(best, self.epochs[:, None] - 1, 2)
        self.place = {contender.configuration: c for c, contender in enumerate(contenders)}
        self.busy = np.zeros(done.shape, dtype=bool)
        self.planned = self.depth.copy()
        """Rungs reached once all running fold-runs have reported."""
        for run in running:
            self.begin(run)

    def begin(self, run: Run) -> None:
        c = self.place[run.configuration]
        self.busy[c, run.fold] = True
        self.planned[c, run.fold] = np.searchsorted(self.epochs[c], run.until, "right")

    def first_rungs(self, slots: int) -> tuple[Run, ...]:
        """Every configuration starts on the first fold, so none is judged without evidence."""
        waiting = (self.planned[:, 0] == 0) & ~self.is_stopped
        return tuple(
            Run(self.contenders[c].configuration, 0, int(self.epochs[c, 0]))
            for c in np.flatnonzero(waiting)[:slots]
        )

    def decide(self, fit: _Fit, first: tuple[Run, ...], slots: int) -> Decision:
        num_rungs = len(self.racing.rungs)
        complete = (self.depth == num_rungs).all(1)
        stopped = self.is_stopped
        live = ~stopped | complete
        leader = int(np.argmax(np.where(live, _rounded(fit.worth), -np.inf)))
        ahead = _rounded(fit.ahead_of(leader))
        seen = (self.depth > 0).sum(1)
        ahead[(seen < min(self.racing.min_folds, self.depth.shape[1])) & ~stopped] = 1.0
        ahead[complete] = 0.0
        waiting = ~complete & ~stopped
        behind = waiting & (np.arange(len(waiting)) != leader)
        # The least likely contenders whose chances add up to at most the error rate get no further runs.
        # The race is over when only these are left behind a finished leader.
        share = self.racing.error_rate / len(self.contenders)
        left = self.racing.error_rate - share * (stopped & ~complete).sum()
        order = np.argsort(ahead, kind="stable")
        least_likely = order[behind[order]]
        hopeless = np.zeros_like(behind)
        hopeless[least_likely[np.cumsum(ahead[least_likely]) <= left]] = True
        # Only a finished configuration can stop others; until then they wait.
        finished = bool(complete[leader])
        is_over = finished and not (behind & ~hopeless).any()
        beaten = finished & behind & (is_over | (ahead <= share)) & ~self.busy.any(1)
        stops = {
            self.contenders[c].configuration: self._reason(c, leader, ahead[c], fit)
            for c in np.flatnonzero(beaten).tolist()
        }
        if is_over:
            best = min(_rank(self.contenders[c]) for c in np.flatnonzero(complete).tolist())
            return Decision((), stops, best[-1])
        for run in first:
            self.begin(run)
        ahead[leader] = 1.0
        order = np.argsort(-ahead, kind="stable")
        promising = order[(waiting & ~hopeless)[order]].tolist()
        return Decision((*first, *self._next_runs(promising, fit, slots)), stops)

    def _next_runs(self, left: list[int], fit: _Fit, slots: int) -> list[Run]:
        """
        Args:
            left: contenders that are worth a run, most likely winner first.
        """
        runs: list[Run] = []
        under_way = self.busy.sum(1).tolist()
        while left and len(runs) < slots:
            # The contender with the fewest runs under way goes first. Slots become free one by one: by
            # likelihood alone each would go to the current leader, which would train on all folds before the
            # others reach the rung at which it led.
            c = min(left, key=under_way.__getitem__)
            fold = fit.best_fold(self.planned[c], self.busy[c], self.epochs[c])
            if fold is None:
                left.remove(c)
                continue
            until = int(self.epochs[c, self.planned[c, fold]])
            runs.append(Run(self.contenders[c].configuration, fold, until))
            self.begin(runs[-1])
            under_way[c] += 1
        return runs

    def _reason(self, c: int, leader: int, probability: float, fit: _Fit) -> str:
        epochs = sum(map(len, self.contenders[c].courses))
        folds = int((self.depth[c] > 0).sum())
        gap = 100 * (fit.worth[leader] - fit.worth[c])
        return (
            f"after {epochs} epochs on {folds} of {self.depth.shape[1]} folds it is expected to end "
            f"{gap:.1f} points below {self.contenders[leader].configuration}; its probability of "
            f"winning is {probability:.2g}"
        )


def _rounded(values: _Array) -> _Array:
    """Drops the last digits, in which machines differ, so that ties go by name everywhere."""
    return np.round(values, 12)


@dataclass
class _Fit:
    """The posterior of every contender's worth.

    Args:
        worth: expected worth, (C,), up to a common constant; only differences have a meaning.
        variance: of each worth at known levels, (C,).
        slope: derivative of each worth by the levels, (C, L).
        level_covariance: (L, L).
        degrees: degrees of freedom of the residual variance, including the prior's weight.
        effects: fitted covariance of effects.
        residuals: tables from the fitted covariance of residuals.
    """

    worth: _Array
    variance: _Array
    slope: _Array
    level_covariance: _Array
    degrees: float
    effects: _Covariance
    residuals: _Residuals

    def ahead_of(self, leader: int) -> _Array:
        """Probability that each contender is worth more than the leader, (C,)."""
        slope = self.slope - self.slope[leader]
        variance = self.variance + self.variance[leader]
        variance = variance + ((slope @ self.level_covariance) * slope).sum(1)
        gap = self.worth - self.worth[leader]
        t = gap / np.sqrt(np.maximum(variance, 1e-14))
        # The variances are estimates, so t follows Student's distribution. As a normal deviate: Wallace 1959,
        # Annals of Mathematical Statistics 30, 1121-1130.
        n = self.degrees
        z = np.sign(t) * (8 * n + 1) / (8 * n + 3) * np.sqrt(n * np.log1p(t**2 / n))
        ahead = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z])
        ahead[leader] = 0.0
        return ahead

    def best_fold(self, planned: _Array, busy: _Array, epochs: _Array) -> int | None:
        """The fold whose next epochs say most about a contender's worth; None if no fold is free.

        Each fold is rated by how far the variance falls per epoch, at the best rung to train it to. Folds
        start in order, so that contenders meet on the same folds.
        """
        num_folds, num_rungs = len(planned), len(epochs)
        options = []
        for fold in range(num_folds):
            if busy[fold] or planned[fold] == num_rungs or (fold and not planned[fold - 1]):
                continue
            for depth in range(planned[fold] + 1, num_rungs + 1):
                then = planned.copy()
                then[fold] = depth
                begun = epochs[planned[fold] - 1] if planned[fold] else 0
                options.append((fold, max(1, epochs[depth - 1] - begun), then))
        if not options:
            return None
        depths = np.array([planned, *(then for _, _, then in options)])
        _, _, variance = _remaining(self.effects, self.residuals, depths)
        gains = (variance[0] - variance[1:]) / np.array([cost for _, cost, _ in options])
        # Ties go to the first fold, whatever the last digits are.
        return int(options[int(np.argmax(gains >= gains.max() * (1 - 1e-9)))][0])


@dataclass(frozen=True, slots=True)
class _Covariance:
    """A covariance over R rungs.

    Args:
        factor: lower triangular, (R, R). The sum of the outer products of its first k rows is the precision
            of the first k rungs.
    """

    matrix: _Array
    factor: _Array


@lru_cache
def _prior_covariances(rungs: tuple[float, ...]) -> tuple[_Covariance, _Covariance]:
    """Covariances of effects and of residuals over rungs, expected before a race."""
    decay = np.exp(-2 * PRIOR_LAG_RATE * np.asarray(rungs)) - math.exp(-2 * PRIOR_LAG_RATE)
    lag = np.minimum.outer(decay, decay)
    effects = PRIOR_EFFECT_SD**2 + PRIOR_EFFECT_LAG_SD**2 * lag
    residuals = PRIOR_RESIDUAL_SD**2 + PRIOR_RESIDUAL_LAG_SD**2 * lag
    return (
        _Covariance(effects, np.linalg.inv(np.linalg.cholesky(effects))),
        _Covariance(residuals, np.linalg.inv(np.linalg.cholesky(residuals))),
    )


class _Residuals:
    """Tables for fold-runs that have reached 0 to R rungs.

    Args:
        covariance: of residuals over rungs.

    Shapes:
        precision: of the rungs reached, (R + 1, R, R)
        weights: of these rungs in the prediction of the last one, (R + 1, R)
        variance_left: of the last rung, given these rungs, (R + 1,)
    """

    def __init__(self, covariance: _Covariance) -> None:
        self._factor = covariance.factor
        num_rungs = len(covariance.matrix)
        self.precision = np.zeros((num_rungs + 1, num_rungs, num_rungs))
        outer = covariance.factor[:, :, None] * covariance.factor[:, None]
        np.cumsum(outer, axis=0, out=self.precision[1:])
        with_end = covariance.matrix[:, -1]
        self.weights = self.precision @ with_end
        self.variance_left = np.maximum(with_end[-1] - self.weights @ with_end, 0.0)

    def weigh(self, values: _Array, seen: NDArray[np.bool_]) -> _Array:
        """Values of each fold-run, (C, F, R) and 0 where unseen, times the precision of the seen rungs."""
        return np.where(seen, values @ self._factor.T, 0.0) @ self._factor


def _remaining(
    effects: _Covariance, residuals: _Residuals, depths: NDArray[np.int64]
) -> tuple[_Array, _Array, _Array]:
    """What is left to learn about contenders at known levels.

    Args:
        depths: rungs reached by each fold-run, (C, F).

    Returns:
        The covariance of their effects (C, R, R), the derivative of their worth by the effect (C, R), and the
        variance of their worth (C,).
    """
    num_folds, num_rungs = depths.shape[1], len(effects.matrix)
    # Number of folds at each depth, so that sums over folds become matrix products.
    folds_at = (depths[..., None] == np.arange(num_rungs + 1)).sum(1).astype(float)
    within = folds_at @ residuals.precision.reshape(num_rungs + 1, -1)
    precision = effects.factor.T @ effects.factor
    covariance = np.linalg.inv(precision + within.reshape(-1, num_rungs, num_rungs))
    pull = folds_at @ residuals.weights / -num_folds
    pull[:, -1] += 1.0
    variance = ((pull[:, None] @ covariance)[:, 0] * pull).sum(1)
    return covariance, pull, variance + folds_at @ residuals.variance_left / num_folds**2


def _fit(reached: _Array, depth: NDArray[np.int64], rungs: tuple[float, ...]) -> _Fit:
    """Fit the covariances by a few EM steps from the prior, then compute the posterior of every worth.

    Args:
        reached: best validation F1 at each rung, (C, F, R); values beyond `depth` are ignored.
        depth: rungs reached, (C, F).
    """
    num, num_folds, num_rungs = reached.shape
    folds = np.arange(num_folds)
    seen = np.arange(num_rungs) < depth[:, :, None]
    y_CFR = _clip_outliers(reached, seen)
    run_c, run_f = np.nonzero(depth)  # the N fold-runs that have reached a rung
    # A level that no fold-run has reached gets precision 1 of its own, so that the matrix is invertible.
    unreached = np.diag((~seen.any(0)).reshape(-1).astype(float))
    prior_effects, prior_residuals = _prior_covariances(rungs)
    effects, residuals = prior_effects, prior_residuals
    for step in range(EM_STEPS + 1):
        tables = _Residuals(residuals)
        covariance, pull, variance = _remaining(effects, tables, depth)
        # Levels by generalised least squares, with the effects integrated out.
        precision = tables.precision[depth]  # C F R R
        wide = precision.transpose(0, 2, 1, 3).reshape(num, num_rungs, -1)  # C R L
        moves = -(covariance @ wide)  # derivative of the effects by the levels, C R L
        flat = moves.reshape(num * num_rungs, -1)
        blocks = np.zeros((num_folds, num_rungs, num_folds, num_rungs))
        blocks[folds, :, folds] = precision.sum(0)
        level_precision = blocks.reshape(unreached.shape) + unreached
        level_covariance = np.linalg.inv(level_precision + wide.reshape(flat.shape).T @ flat)
        py = tables.weigh(y_CFR, seen)
        right = py.sum(0).reshape(-1) + py.sum(1).reshape(-1) @ flat
        level = (level_covariance @ right).reshape(num_folds, num_rungs)
        off = np.where(seen, y_CFR - level, 0.0)
        effect = (tables.weigh(off, seen).sum(1)[:, None] @ covariance)[:, 0]
        if step == EM_STEPS:
            break
        with_levels = (flat @ level_covariance).reshape(moves.shape)
        spread = covariance + with_levels @ moves.swapaxes(1, 2)
        squares = effect[:, :, None] * effect[:, None] + spread
        effects = _fit_covariance(squares, depth.max(1), prior_effects.matrix, PRIOR_EFFECT_WEIGHT)
        # A residual is the value less its level and effect, whose errors are correlated.
        residual = off[run_c, run_f] - effect[run_c]
        both = with_levels.reshape(num, num_rungs, num_folds, num_rungs)[run_c, :, run_f]
        levels = level_covariance.reshape(num_folds, num_rungs, num_folds, num_rungs)
        squares = residual[:, :, None] * residual[:, None] + spread[run_c]
        squares += both + both.swapaxes(1, 2) + levels[folds, :, folds][run_f]
        residuals = _fit_covariance(
            squares, depth[run_c, run_f], prior_residuals.matrix, PRIOR_RESIDUAL_WEIGHT
        )
    ends = tables.weights[depth]  # C F R
    worth = (pull * effect).sum(1) + (ends * off).sum((1, 2)) / num_folds
    slope = (pull[:, None] @ moves)[:, 0] - ends.reshape(num, -1) / num_folds
    degrees = PRIOR_RESIDUAL_WEIGHT + float(len(run_c) - len(np.unique(run_c)))
    return _Fit(worth, variance, slope, level_covariance, degrees, effects, tables)


def _fit_covariance(
    squares: _Array, depth: NDArray[np.int64], prior: _Array, weight: float
) -> _Covariance:
    """A covariance over rungs from expected squares.

    Each rung is regressed on the earlier ones, over the fold-runs that have reached it. Fold-runs that have
    reached a rung have reached all earlier ones, so this maximises the likelihood in one step, where plain EM
    takes hundreds (Anderson 1957, Journal of the American Statistical Association 52, 200-203).

    Args:
        squares: (N, R, R); each is valid down to its depth.
        depth: rungs reached, (N,).
    """
    num_rungs = len(prior)
    rungs = np.arange(num_rungs)
    has_reached = (depth > rungs[:, None]).astype(float)
    sums = (has_reached @ squares.reshape(len(squares), -1)).reshape(-1, num_rungs, num_rungs)
    totals = (weight * prior + sums) / (weight + has_reached.sum(1))[:, None, None]
    before = rungs < rungs[:, None]  # of each rung
    # Rungs that are not earlier form an identity block, which the regression does not see.
    among = np.where(before[:, :, None] & before[:, None], totals, np.eye(num_rungs))
    with_rung = totals[rungs, :, rungs]
    slopes = np.linalg.solve(among, np.where(before, with_rung, 0.0)[..., None])[..., 0]
    left = with_rung[rungs, rungs] - (slopes * with_rung).sum(1)
    factor = (np.eye(num_rungs) - slopes) / np.sqrt(left)[:, None]
    root = np.linalg.inv(factor)
    return _Covariance(root @ root.T, factor)


def _clip_outliers(reached: _Array, seen: NDArray[np.bool_]) -> _Array:
    """The seen values, low outliers raised to `MAX_GAP_MEDIANS`; 0 where unseen."""
    values = np.sort(np.where(seen, reached, np.inf), axis=0)
    values[np.isinf(values)] = 0.0
    best = values.max(0)
    middle = np.maximum(seen.sum(0, keepdims=True) - 1, 0) // 2
    gap = best - np.take_along_axis(values, middle, 0)[0]
    return np.where(seen, np.maximum(reached, best - MAX_GAP_MEDIANS * gap), 0.0)
