"""Which fold-runs of a cell are worth training on, and which configurations can no longer win. Pure.

    validation F1 so far -> what it says of the mean over all folds -> what to run next, who is stopped

A configuration's worth T is what `verdict.rank` goes by: over all folds, the mean of each fold-run's best
validation F1. What a fold-run has reached at a share of its epochs (a rung) is taken as

    y[c, fold, rung] = level[fold, rung] + effect[c, rung] + rest[c, fold, rung]

of configuration c, with a free level for every fold and rung, so that only what was measured on the
same fold at the same share of training is ever compared, and with Gaussian effects and rests,
correlated over rungs. This gives each T a mean and a variance, whatever is still missing;
covariances are fitted to the race itself, from a prior. That beaten configurations are not trained
on does not bias the fit: why they are missing can be read off what is there (Rubin 1976, Biometrika
63, 581-592).

Sources: races over blocks, Birattari et al. 2002, GECCO; going on where the posterior says that the
best may be, Russo 2020, Operations Research 68, 1625-1647; Gaussian models of learning curves, Swersky
et al. 2014, arXiv:1406.3896; REML by EM, Laird and Ware 1982, Biometrics 38, 963-974.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from raymrc.ledger.rank import rank

# C configurations, F folds, R rungs, L levels: the pairs of fold and rung

Array = NDArray[np.floating]

METHODS = ("none", "paired")

FIT_STEPS = 2
"""Of EM; later ones move the covariances by less than the prior's own vagueness."""

FAR = 3.0
"""What lies further below a fold's best than so many times its median does is as good as there: diverged runs
would otherwise pass for the spread of all."""


@dataclass(frozen=True, slots=True)
class Racing:
    """How a cell's configurations are raced.

    Args:
        method: "none" trains everything.
        error_rate: the configuration that would have won is stopped with at most this probability, 0 to 1,
            over the whole race.
        rungs: shares of a fold-run's epochs at which it may pause, ascending; the last is 1.
        min_folds: no configuration is stopped before it has reached the first rung on so many.

    Raises:
        ValueError: one of these is not so.
    """

    method: str = "paired"
    error_rate: float = 0.05
    rungs: tuple[float, ...] = (0.1, 0.3, 0.6, 1.0)
    min_folds: int = 1

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"racing is one of {', '.join(METHODS)}, not '{self.method}'")
        if not 0 < self.error_rate < 1:
            raise ValueError("the error rate lies between 0 and 1")
        ascending = all(a < b for a, b in zip((0.0, *self.rungs), self.rungs, strict=False))
        if not self.rungs or not ascending or self.rungs[-1] != 1.0:
            raise ValueError("rungs are shares of the epochs, ascending, and the last is 1")

    def epochs_at(self, epochs: int) -> tuple[int, ...]:
        """The epoch of each rung, from 1; of a fold-run with few epochs several may be the same."""
        return tuple(max(1, math.ceil(share * epochs - 1e-9)) for share in self.rungs)

    def reached(self, course: Sequence[float], epochs: int) -> list[float]:
        """The best validation F1 by each rung that a course has come to.

        Args:
            course: of the epochs that are done.
            epochs: of the whole fold-run.
        """
        return [max(course[:end]) for end in self.epochs_at(epochs) if end <= len(course)]


@dataclass(frozen=True)
class Contender:
    """A configuration of the cell, as far as it has been trained.

    Args:
        configuration: its id.
        epochs: of each of its fold-runs.
        courses: by fold, validation F1 after each finished epoch, 0 to 1.
        stopped: an earlier decision has stopped it; what it has reached still counts as evidence.
        trained_parameters: the smaller one wins a tie.
    """

    configuration: str
    epochs: int
    courses: tuple[Sequence[float], ...]
    stopped: bool = False
    trained_parameters: int = 0

    @cached_property
    def done(self) -> list[int]:
        """Epochs of each fold-run."""
        return [len(course) for course in self.courses]

    @cached_property
    def best(self) -> Array:
        """The best validation F1 by each epoch that is done, (folds, epochs); 0 beyond."""
        best = np.zeros((len(self.courses), self.epochs))
        for fold, course in enumerate(self.courses):
            best[fold, : len(course)] = np.maximum.accumulate(course)
        return best

    @property
    def is_complete(self) -> bool:
        return all(len(course) >= self.epochs for course in self.courses)

    @property
    def worth(self) -> float | None:
        """Mean over folds of the best validation F1; None while a fold-run is not done."""
        if not self.is_complete:
            return None
        return sum(max(course) for course in self.courses) / len(self.courses)


@dataclass(frozen=True, slots=True)
class Run:
    """Train this fold-run until so many of its epochs are done; it starts or goes on from where it is."""

    configuration: str
    fold: int
    until: int


@dataclass(frozen=True, slots=True)
class StoppedContender:
    """
    Args:
        probability: that it would have won against the leader, when it was stopped.
        reason: a sentence for the record.
    """

    configuration: str
    probability: float
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """
    Args:
        run: what free slots take, in this order.
        stopped: configurations that are stopped now.
        winner: once the race is over: nothing is left to run, or worth running.
    """

    run: tuple[Run, ...] = ()
    stopped: tuple[StoppedContender, ...] = ()
    winner: str | None = None


@dataclass(frozen=True)
class Prior:
    """What is believed before a race, and as how many configurations' worth of evidence.

    Args:
        effect_sd: of configurations' worth over all folds, F1 from 0 to 1.
        rest_sd: of a configuration on one fold, beside its effect.
        effect_lag_sd, rest_lag_sd: how far the standing at the very start may be from the one at the end.
        effect_weight, rest_weight: in configurations and in fold-runs.
    """

    effect_sd: float = 0.03
    rest_sd: float = 0.015
    effect_lag_sd: float = 0.08
    rest_lag_sd: float = 0.04
    lag_rate: float = 3.0
    effect_weight: float = 4.0
    rest_weight: float = 4.0

    def covariances(self, rungs: Sequence[float]) -> tuple[Array, Array]:
        """Of effects and of rests, (R, R) each: the end's, and what is still to come on the way."""
        share = np.asarray(rungs)
        to_come = np.exp(-2 * self.lag_rate * share) - math.exp(-2 * self.lag_rate)
        later = np.minimum.outer(to_come, to_come)
        return (
            self.effect_sd**2 + self.effect_lag_sd**2 * later,
            self.rest_sd**2 + self.rest_lag_sd**2 * later,
        )


def decide(
    contenders: Sequence[Contender],
    racing: Racing,
    slots: int,
    running: Collection[Run] = (),
    prior: Prior | None = None,
) -> Decision:
    """What is to happen now. A function of its arguments alone, and not of the contenders' order.

    Args:
        contenders: of one cell, with the same folds; without those of which a fold-run failed.
        slots: fold-runs that may start now.
        running: what earlier decisions gave out and is not reported yet.
    """
    contenders = sorted(contenders, key=attrgetter("configuration"))
    if racing.method == "none":
        return _everything(contenders, slots, running)
    race = _Race(contenders, racing, running)
    first = race.first_rungs(slots)
    if len(first) == slots or not race.has_evidence:
        return Decision(first)
    fit = _fit(race.reached, race.depth, prior or Prior(), racing.rungs)
    return race.decide(fit, first, slots - len(first))


def _everything(contenders: Sequence[Contender], slots: int, running: Collection[Run]) -> Decision:
    """The full grid, configuration by configuration."""
    busy = {(run.configuration, run.fold) for run in running}
    left = [
        Run(contender.configuration, fold, contender.epochs)
        for contender in contenders
        for fold, course in enumerate(contender.courses)
        if len(course) < contender.epochs and (contender.configuration, fold) not in busy
    ]
    return Decision(tuple(left[:slots]), (), None if left or busy else _winner(contenders))


def _winner(contenders: Sequence[Contender]) -> str | None:
    """By the verdict's rule, of those with all folds done."""
    complete = [contender for contender in contenders if contender.is_complete]
    ranked = min(
        (rank(len(c.courses), c.worth, c.trained_parameters, c.configuration) for c in complete),
        default=None,
    )
    return None if ranked is None else ranked[-1]


class _Race:
    """The contenders as arrays: how far each fold-run is, and the best it had reached by each rung."""

    def __init__(
        self, contenders: Sequence[Contender], racing: Racing, running: Collection[Run]
    ) -> None:
        self.contenders, self.racing = contenders, racing
        ends = {epochs: racing.epochs_at(epochs) for epochs in {c.epochs for c in contenders}}
        self.epochs = np.array([ends[c.epochs] for c in contenders])
        self.is_stopped = np.array([c.stopped for c in contenders])
        done = np.array([c.done for c in contenders])
        self.depth = (done[..., None] >= self.epochs[:, None]).sum(2)
        best = np.zeros((*done.shape, max(ends)))
        for c, contender in enumerate(contenders):
            best[c, :, : contender.epochs] = contender.best
        self.reached = np.take_along_axis(best, self.epochs[:, None] - 1, 2)
        self.place = {contender.configuration: c for c, contender in enumerate(contenders)}
        self.busy = np.zeros(done.shape, dtype=bool)
        self.planned = self.depth.copy()
        """How far each will be, once what is running has reported."""
        for run in running:
            self.begin(run)

    def begin(self, run: Run) -> None:
        """It is running from now on."""
        c = self.place[run.configuration]
        self.busy[c, run.fold] = True
        self.planned[c, run.fold] = np.searchsorted(self.epochs[c], run.until, "right")

    @property
    def has_evidence(self) -> bool:
        return bool((self.depth[:, 0] > 0).any())

    def first_rungs(self, slots: int) -> tuple[Run, ...]:
        """Everybody starts on the first fold; nobody is judged unseen."""
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
        # Who can be left as they are, all of them together, at the stated error rate: nothing is spent
        # on them, and when only they are behind a leader that is done, the race is over.
        share = self.racing.error_rate / len(self.contenders)
        left = self.racing.error_rate - share * (stopped & ~complete).sum()
        hopeless = np.zeros_like(behind)
        least = [c for c in np.argsort(ahead, kind="stable") if behind[c]]
        hopeless[
            [c for c, sum_ in zip(least, np.cumsum(ahead[least]), strict=True) if sum_ <= left]
        ] = True
        # Whoever is stopped is so by a configuration that is done; until then the others wait.
        finished = bool(complete[leader])
        is_over = finished and not (behind & ~hopeless).any()
        beaten = finished & behind & (is_over | (ahead <= share)) & ~self.busy.any(1)
        stops = tuple(self._stop(int(c), leader, ahead[c], fit) for c in np.flatnonzero(beaten))
        if is_over:
            return Decision((), stops, _winner(self.contenders))
        for run in first:
            self.begin(run)
        open_ = waiting & ~hopeless
        ahead[leader] = 1.0
        order = [c for c in np.argsort(-ahead, kind="stable") if open_[c]]
        return Decision((*first, *self._next_runs(order, fit, slots)), stops)

    def _next_runs(self, order: Sequence[int], fit: _Fit, slots: int) -> list[Run]:
        """
        Args:
            order: of contenders that are worth a run, the likeliest first.
        """
        runs: list[Run] = []
        left = list(order)
        under_way = self.busy.sum(1).tolist()
        while left and len(runs) < slots:
            # Who has the fewest under way, the likeliest of these. Slots get free one by one: by likelihood
            # alone each would go to who leads just then, who would be trained on all folds before the others
            # have come to the rung at which he led.
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

    def _stop(self, c: int, leader: int, probability: float, fit: _Fit) -> StoppedContender:
        epochs = sum(
            min(len(course), self.contenders[c].epochs) for course in self.contenders[c].courses
        )
        folds = int((self.depth[c] > 0).sum())
        gap = 100 * (fit.worth[leader] - fit.worth[c])
        return StoppedContender(
            self.contenders[c].configuration,
            float(probability),
            f"after {epochs} epochs on {folds} of {self.depth.shape[1]} folds it is expected to end "
            f"{gap:.1f} points below {self.contenders[leader].configuration}; to win, it has a "
            f"probability of {probability:.2g}",
        )


def _rounded(values: Array) -> Array:
    """Without the last digits, in which machines differ: who is as good goes by the order of names."""
    return np.round(values, 12)


@dataclass
class _Fit:
    """What is known of every contender's worth, given the race.

    Args:
        worth: expected, (C,); without what is common to all, so only differences mean something.
        variance: of each, were the levels known, (C,).
        slope: how each moves with the levels, (C, L).
        level_covariance: (L, L).
        degrees: of freedom of the rests' variance, the prior's weight included.
        effects: fitted covariance.
    """

    worth: Array
    variance: Array
    slope: Array
    level_covariance: Array
    degrees: float
    effects: _Covariance
    tables: _Rests

    def ahead_of(self, leader: int) -> Array:
        """Probability that each is worth more than the leader, (C,)."""
        slope = self.slope - self.slope[leader]
        variance = self.variance + self.variance[leader]
        variance = variance + ((slope @ self.level_covariance) * slope).sum(1)
        gap = self.worth - self.worth[leader]
        t = gap / np.sqrt(np.maximum(variance, 1e-14))
        # The variances are estimated: Student's t, as a normal deviate (Wallace 1959, Annals of
        # Mathematical Statistics 30, 1121-1130).
        n = self.degrees
        z = np.sign(t) * (8 * n + 1) / (8 * n + 3) * np.sqrt(n * np.log1p(t**2 / n))
        ahead = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z])
        ahead[leader] = 0.0
        return ahead

    def best_fold(self, planned: Array, busy: Array, epochs: Array) -> int | None:
        """Where the next epochs of a contender say most about its worth; None if there are none.

        By how much the variance falls for each epoch, of going on with a fold as far as is best for
        it. A fold is begun after the one before it, so that contenders meet on the same folds.
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
        _, _, variance = _remaining(self.effects, self.tables, depths)
        gains = (variance[0] - variance[1:]) / np.array([cost for _, cost, _ in options])
        # Of folds that say as much the first, whatever the last digits are.
        return int(options[int(np.argmax(gains >= gains.max() * (1 - 1e-9)))][0])


@dataclass(frozen=True, slots=True)
class _Covariance:
    """Of R rungs, by what each is expected to be, given those before it.

    Args:
        factor: lower triangular, (R, R): of its first k rows the sum of the outer products is the
            precision of the first k rungs.
    """

    matrix: Array
    factor: Array

    @classmethod
    def of(cls, matrix: Array) -> _Covariance:
        return cls(matrix, np.linalg.inv(np.linalg.cholesky(matrix)))


@lru_cache
def _believed(prior: Prior, rungs: tuple[float, ...]) -> tuple[_Covariance, _Covariance]:
    """Covariances of effects and of rests before a race."""
    effects, rests = prior.covariances(rungs)
    return _Covariance.of(effects), _Covariance.of(rests)


class _Rests:
    """Of each depth, from 0 rungs to all: precision, what it says of the end, and variance left."""

    def __init__(self, rests: _Covariance) -> None:
        self._factor = rests.factor
        num_rungs = len(rests.matrix)
        self.precision = np.zeros((num_rungs + 1, num_rungs, num_rungs))
        outer = rests.factor[:, :, None] * rests.factor[:, None]
        np.cumsum(outer, axis=0, out=self.precision[1:])
        with_end = rests.matrix[:, -1]
        self.weights = self.precision @ with_end
        self.left = np.maximum(with_end[-1] - self.weights @ with_end, 0.0)

    def weigh(self, values: Array, seen: NDArray[np.bool_]) -> Array:
        """Each fold-run's values, (C, F, R) and 0 beyond its depth, times the precision of what is seen."""
        return np.where(seen, values @ self._factor.T, 0.0) @ self._factor


def _remaining(
    effects: _Covariance, rests: _Rests, depths: NDArray[np.int64]
) -> tuple[Array, Array, Array]:
    """Of contenders with such depths (C, F): the effects' covariance (C, R, R), how their worth
    depends on the effect (C, R), and its variance, levels known (C,)."""
    num_folds, num_rungs = depths.shape[1], len(effects.matrix)
    # How many folds of each are so deep: sums over folds are products with this.
    folds_at = (depths[..., None] == np.arange(num_rungs + 1)).sum(1).astype(float)
    within = folds_at @ rests.precision.reshape(num_rungs + 1, -1)
    precision = effects.factor.T @ effects.factor
    covariance = np.linalg.inv(precision + within.reshape(-1, num_rungs, num_rungs))
    pull = folds_at @ rests.weights / -num_folds
    pull[:, -1] += 1.0
    variance = ((pull[:, None] @ covariance)[:, 0] * pull).sum(1)
    return covariance, pull, variance + folds_at @ rests.left / num_folds**2


def _fit(
    reached: Array,
    depth: NDArray[np.int64],
    prior: Prior,
    shares: tuple[float, ...],
) -> _Fit:
    """Covariances from the prior's by a few steps of EM, then what they say of every worth.

    Args:
        reached: best validation F1 by each rung, (C, F, R); what lies beyond `depth` is not looked at.
        depth: rungs reached, (C, F).
    """
    num, num_folds, num_rungs = reached.shape
    folds = np.arange(num_folds)
    seen = np.arange(num_rungs) < depth[:, :, None]
    y_CFR = without_far(reached, seen)
    of, on = np.nonzero(depth)  # fold-runs that have reached a rung, N
    # A level that nobody has reached is a block of its own, in which nothing is seen.
    nobody = np.diag((~seen.any(0)).reshape(-1).astype(float))
    prior_effects, prior_rests = effects, rests = _believed(prior, shares)
    for step in range(FIT_STEPS + 1):
        tables = _Rests(rests)
        covariance, pull, variance = _remaining(effects, tables, depth)
        # Levels by generalised least squares, the effects integrated out.
        precision = tables.precision[depth]  # C F R R
        wide = precision.transpose(0, 2, 1, 3).reshape(num, num_rungs, -1)  # C R L
        moves = -(covariance @ wide)  # of an effect with the levels, C R L
        flat = moves.reshape(num * num_rungs, -1)
        own = np.zeros((num_folds, num_rungs, num_folds, num_rungs))
        own[folds, :, folds] = precision.sum(0)
        own = own.reshape(nobody.shape) + nobody
        level_covariance = np.linalg.inv(own + wide.reshape(flat.shape).T @ flat)
        py = tables.weigh(y_CFR, seen)
        right = py.sum(0).reshape(-1) + py.sum(1).reshape(-1) @ flat
        level = (level_covariance @ right).reshape(num_folds, num_rungs)
        off = np.where(seen, y_CFR - level, 0.0)
        effect = (tables.weigh(off, seen).sum(1)[:, None] @ covariance)[:, 0]
        if step == FIT_STEPS:
            break
        with_levels = (flat @ level_covariance).reshape(moves.shape)
        spread = covariance + with_levels @ moves.swapaxes(1, 2)
        squares = effect[:, :, None] * effect[:, None] + spread
        effects = _of_squares(squares, depth.max(1), prior_effects.matrix, prior.effect_weight)
        # A rest is what is seen less level and effect, which err together.
        rest = off[of, on] - effect[of]
        both = with_levels.reshape(num, num_rungs, num_folds, num_rungs)[of, :, on]
        levels = level_covariance.reshape(num_folds, num_rungs, num_folds, num_rungs)
        squares = rest[:, :, None] * rest[:, None] + spread[of]
        squares += both + both.swapaxes(1, 2) + levels[folds, :, folds][on]
        rests = _of_squares(squares, depth[of, on], prior_rests.matrix, prior.rest_weight)
    ends = tables.weights[depth]  # C F R
    worth = (pull * effect).sum(1) + (ends * off).sum((1, 2)) / num_folds
    slope = (pull[:, None] @ moves)[:, 0] - ends.reshape(num, -1) / num_folds
    degrees = prior.rest_weight + float(len(of) - len(np.unique(of)))
    return _Fit(worth, variance, slope, level_covariance, degrees, effects, tables)


def _of_squares(
    squares: Array, depth: NDArray[np.int64], prior: Array, weight: float
) -> _Covariance:
    """A covariance over rungs, of expected squares (N, R, R) that mean something down to each depth.

    Rung after rung, regressed on those before it by whoever has reached it: where the deeper ones are
    some of those less deep, this is the maximum of the likelihood in one step, for which plain EM takes
    hundreds (Anderson 1957, Journal of the American Statistical Association 52, 200-203).
    """
    num_rungs = len(prior)
    rungs = np.arange(num_rungs)
    there = (depth > rungs[:, None]).astype(float)
    sums = (there @ squares.reshape(len(squares), -1)).reshape(-1, num_rungs, num_rungs)
    totals = (weight * prior + sums) / (weight + there.sum(1))[:, None, None]
    before = rungs < rungs[:, None]  # of each rung
    # What is not before it is a block of its own, which the regression does not see.
    among = np.where(before[:, :, None] & before[:, None], totals, np.eye(num_rungs))
    own = totals[rungs, :, rungs]
    slopes = np.linalg.solve(among, np.where(before, own, 0.0)[..., None])[..., 0]
    left = own[rungs, rungs] - (slopes * own).sum(1)
    factor = (np.eye(num_rungs) - slopes) / np.sqrt(left)[:, None]
    root = np.linalg.inv(factor)
    return _Covariance(root @ root.T, factor)


def without_far(reached: Array, seen: NDArray[np.bool_]) -> Array:
    """What is seen, raised to what is as good as hopeless; 0 elsewhere."""
    values = np.sort(np.where(seen, reached, np.inf), axis=0)
    count = seen.sum(0)[None]
    values[~np.isfinite(values)] = 0.0
    best = values.max(0)
    middle = np.take_along_axis(values, np.maximum(count - 1, 0) // 2, 0)[0]
    lowest = np.where(count[0], best - FAR * (best - np.minimum(middle, best)), 0.0)
    return np.where(seen, np.maximum(reached, np.where(count[0], lowest, 0.0)), 0.0)
