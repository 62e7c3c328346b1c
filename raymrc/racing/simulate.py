"""Replays races on full grids of learning curves: what a race costs and whether it finds the same winner.

    records or a generator -> Curves -> replay (through racing.decide) -> Replay

There is no clock and no Ray: a replay fills the slots, lets the fold-run that finishes first report, and
repeats. All epochs take equally long.
"""

from __future__ import annotations

import heapq
import random
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from raymrc.configuration import Cell
from raymrc.ledger.rank import rank
from raymrc.ledger.record import Record
from raymrc.quantities import Estimate
from raymrc.racing.racing import Contender, Racing, Run, decide

# C configurations, F folds, E epochs

ERROR_RATES = (0.01, 0.05, 0.2)
"""Error rates that `raymrc simulate` shows."""

GENERATED_SEED = 20261127

GRIDS_PER_WORLD = 3
"""Generated grids of each world that `expected_share` replays."""

MAX_REPLAYED_CONFIGURATIONS = 40
"""Larger grids are replayed as if they had this many, which takes about a second. Of a larger grid a race
trains a smaller share."""


@dataclass(frozen=True, slots=True)
class Curves:
    """Validation F1 of every epoch of a cell's full grid.

    Args:
        configurations: C ids.
        courses: by configuration and fold, one F1 per epoch, 0 to 1. Configurations may differ in epochs, the
            folds of one configuration may not.
        trained_parameters: by configuration; the smaller number wins a tie.
    """

    name: str
    configurations: tuple[str, ...]
    courses: tuple[tuple[tuple[float, ...], ...], ...]
    trained_parameters: tuple[int, ...]

    @property
    def num_folds(self) -> int:
        return len(self.courses[0])

    @property
    def fold_epochs(self) -> int:
        """Fold-epochs of the full grid."""
        return sum(len(course) for folds in self.courses for course in folds)

    @property
    def worths(self) -> tuple[float, ...]:
        """Mean over folds of the best epoch's F1, by which the full grid chooses its winner."""
        return tuple(statistics.fmean(max(course) for course in folds) for folds in self.courses)

    @property
    def winner(self) -> str:
        places = zip(self.worths, self.trained_parameters, self.configurations, strict=True)
        return min(rank(self.num_folds, worth, size, name) for worth, size, name in places)[-1]


@dataclass(frozen=True, slots=True)
class Replay:
    """The outcome of a race on a full grid.

    Args:
        is_same: whether the full grid has the same winner.
        fold_epochs, grid_fold_epochs: trained by the race, and by the full grid.
        regret: mean validation F1 of the full grid's winner less that of the race's winner, 0 to 1.
        decisions: number of calls of `racing.decide`.
    """

    winner: str
    is_same: bool
    fold_epochs: int
    grid_fold_epochs: int
    regret: float
    decisions: int


def replay(grid: Curves, racing: Racing, slots: int = 8) -> Replay:
    """Run a race as a driver would.

    Args:
        slots: number of fold-runs that train at a time.
    """
    courses = dict(zip(grid.configurations, grid.courses, strict=True))
    contenders = {
        name: Contender(
            name, len(courses[name][0]), ((),) * grid.num_folds, trained_parameters=size
        )
        for name, size in zip(grid.configurations, grid.trained_parameters, strict=True)
    }
    running: list[tuple[int, int, Run]] = []  # (end, order of start, run)
    clock = began = spent = decisions = 0
    while True:
        busy = [run for _, _, run in running]
        decision = decide(contenders.values(), racing, slots - len(busy), busy)
        decisions += 1
        if decision.winner is not None:
            break
        for name in decision.stopped:
            contenders[name] = replace(contenders[name], stopped=True)
        for run in decision.run:
            epochs = run.until - len(contenders[run.configuration].courses[run.fold])
            spent += epochs
            began += 1
            heapq.heappush(running, (clock + epochs, began, run))
        assert running, "a race with nothing left to run has a winner"
        clock, _, run = heapq.heappop(running)
        reached = list(contenders[run.configuration].courses)
        reached[run.fold] = courses[run.configuration][run.fold][: run.until]
        contenders[run.configuration] = replace(
            contenders[run.configuration], courses=tuple(reached)
        )
    worths = dict(zip(grid.configurations, grid.worths, strict=True))
    return Replay(
        decision.winner,
        decision.winner == grid.winner,
        spent,
        grid.fold_epochs,
        worths[grid.winner] - worths[decision.winner],
        decisions,
    )


@dataclass(frozen=True, slots=True)
class World:
    """Distribution of generated grids; F1 in points, from 0 to 100.

    A configuration is a learning rate and one of a few other settings. Its worth falls with the square of the
    rate's distance from the best one, which is drawn for each grid. Rates far above the best one diverge on
    some folds or on all.

    Args:
        configurations, epochs: smallest and largest number; drawn for each grid.
        rate_spread: searched range of rates, in decades.
        rate_curvature: points lost at one decade from the best rate.
        setting_sd: of the other settings' effects.
        configuration_sd: of a configuration's own effect.
        fold_sd: of folds.
        interaction_sd: of a configuration on one fold.
        heavy_tails: draw interactions from Student's t with 3 degrees, with the same standard deviation.
        epoch_sd: noise of the last epoch; the first has twice as much, because rates decay to zero.
        speed: share of all epochs after which 37 % of the gain is left, at the best rate; at a tenth of the
            rate, curves are half as fast.
        speed_spread: standard deviation of log speed between configurations, so that curves cross.
        diverging: decades above the best rate from which runs diverge.
        power_law: curves approach their end by a power law instead of exponentially.
    """

    name: str = "ordinary"
    configurations: tuple[int, int] = (20, 60)
    epochs: tuple[int, int] = (10, 20)
    folds: int = 5
    top: float = 70.0
    rate_spread: float = 2.0
    rate_curvature: float = 30.0
    setting_sd: float = 1.0
    configuration_sd: float = 0.7
    fold_sd: float = 4.0
    interaction_sd: float = 1.0
    heavy_tails: bool = False
    epoch_sd: float = 0.6
    speed: float = 0.2
    speed_spread: float = 0.25
    diverging: float = 0.6
    power_law: bool = False


WORLDS = {
    world.name: world
    for world in (
        World(),
        # Few notes, like our samples of PHEE and BC5CDR: folds and epochs differ by points.
        World("small", interaction_sd=3.0, epoch_sd=2.0, fold_sd=6.0, top=55.0),
        # A grid near the best rate: most configurations are nearly as good as the best.
        World("near-ties", rate_curvature=8.0),
        # No setting of racing.py was chosen on this world.
        World(
            "held-out",
            configurations=(16, 48),
            epochs=(8, 16),
            top=80.0,
            rate_spread=1.6,
            rate_curvature=20.0,
            setting_sd=1.5,
            configuration_sd=0.5,
            fold_sd=3.0,
            interaction_sd=1.2,
            heavy_tails=True,
            epoch_sd=0.9,
            speed=0.12,
            speed_spread=0.4,
            diverging=0.4,
            power_law=True,
        ),
    )
}
"""Worlds by name. MiniLM on PHEE lost 18 points in 0.6 decades of the rate, which makes 50 points at a
decade for a parabola; these worlds assume at most 30."""


def generate(world: World, count: int, seed: int) -> Iterator[Curves]:
    """Draw `count` grids; equal seeds give equal grids."""
    for index in range(count):
        yield _generate(world, index, np.random.default_rng([seed, index]))


def _generate(world: World, index: int, generator: np.random.Generator) -> Curves:
    num = int(generator.integers(world.configurations[0], world.configurations[1] + 1))
    epochs = int(generator.integers(world.epochs[0], world.epochs[1] + 1))
    folds = world.folds
    num_settings = int(generator.integers(2, 7))
    setting = generator.integers(num_settings, size=num)
    best_rate = generator.uniform(0.25, 0.75) * world.rate_spread
    rate = generator.uniform(0, world.rate_spread, num) - best_rate
    worth = (
        world.top
        - world.rate_curvature * rate**2
        + generator.normal(0, world.setting_sd, num_settings)[setting]
        + generator.normal(0, world.configuration_sd, num)
    )
    interaction = (
        generator.standard_t(3, (num, folds)) / np.sqrt(3)
        if world.heavy_tails
        else generator.normal(0, 1, (num, folds))
    )
    end = worth[:, None] + generator.normal(0, world.fold_sd, folds)
    end = end + world.interaction_sd * interaction
    # Each fold-run has its own speed, around that of its configuration.
    speed = world.speed * 2.0 ** (-rate) * np.exp(generator.normal(0, world.speed_spread, num))
    speed = speed[:, None] * np.exp(generator.normal(0, world.speed_spread / 2, (num, folds)))
    share = np.arange(1, epochs + 1) / epochs
    if world.power_law:
        missing = (1 + share / speed[..., None]) ** -2.0
        missing = (missing - missing[..., -1:]) / (1 - missing[..., -1:])
    else:
        missing = np.exp(-share / speed[..., None])
    scores = end[..., None] * (1 - missing)
    noise = world.epoch_sd * (2.0 - share)
    scores = scores + noise * generator.normal(0, 1, scores.shape)
    # A diverged fold-run drops to almost zero at some epoch and stays there.
    too_high = np.clip((rate - world.diverging) / 0.4, 0, 1)
    diverges = generator.random((num, folds)) < too_high[:, None]
    falls = generator.integers(0, max(1, epochs // 2), (num, folds))
    lost = diverges[..., None] & (np.arange(epochs) >= falls[..., None])
    scores = np.where(lost, generator.uniform(0, 5, scores.shape), scores)
    scores = np.clip(scores, 0, 100) / 100
    return Curves(
        f"{world.name}-{index}",
        tuple(f"{c:03d}" for c in range(num)),
        tuple(tuple(map(tuple, folds)) for folds in scores.tolist()),
        (0,) * num,
    )


def generate_like(num_configurations: int, folds: int, epochs: int, per_world: int) -> list[Curves]:
    """Grids of a given size from each of `WORLDS`, because nobody knows in advance how much a study's
    configurations differ.

    Args:
        per_world: number of grids from each world.
    """
    size = (num_configurations, num_configurations)
    worlds = (
        replace(world, configurations=size, epochs=(epochs, epochs), folds=folds)
        for world in WORLDS.values()
    )
    return [grid for world in worlds for grid in generate(world, per_world, GENERATED_SEED)]


@lru_cache
def expected_share(num_configurations: int, folds: int, epochs: int, racing: Racing) -> Estimate:
    """Share of a full grid's fold-epochs that a race is expected to train, by replays of generated grids."""
    shares = []
    for grid in generate_like(num_configurations, folds, epochs, GRIDS_PER_WORLD):
        result = replay(grid, racing)
        shares.append(result.fold_epochs / result.grid_fold_epochs)
    low, value, high = np.quantile(shares, (0.05, 0.5, 0.95)).tolist()
    return Estimate(value, low, high)


def read_grids(records: Iterable[Record], num_folds: int | None = None) -> tuple[Curves, ...]:
    """One grid per cell of a ledger, made of the configurations with all folds done; at least two of them.

    Records on other notes, folds or weights form a grid of their own.

    Args:
        num_folds: None takes the number from the records.
    """
    by_cell: dict[tuple[Cell, tuple[str, ...]], dict[str, dict[int, Record]]] = {}
    for record in records:
        run = record.fold_run
        if record.is_done and not run.is_test and record.epochs:
            found = by_cell.setdefault((run.configuration.cell, run.basis), {})
            found.setdefault(run.configuration.id, {})[run.fold] = record
    grids = []
    for (cell, _), found in sorted(by_cell.items(), key=lambda item: (item[0][0].name, item[0][1])):
        folds = num_folds or 1 + max(map(max, found.values()))
        complete = {
            id_: [by_fold[fold] for fold in sorted(by_fold)]
            for id_, by_fold in sorted(found.items())
            if len(by_fold) == folds
        }
        if len(complete) > 1:
            courses = tuple(
                tuple(tuple(epoch.validation_f1 for epoch in record.epochs) for record in by_fold)
                for by_fold in complete.values()
            )
            sizes = tuple(by_fold[0].trained_parameters for by_fold in complete.values())
            grids.append(Curves(cell.name, tuple(complete), courses, sizes))
    return tuple(grids)


def reorder_folds(grid: Curves, orders: int) -> list[Curves]:
    """Copies of a grid with its folds in random orders; the grid's name is the seed."""
    generator = random.Random(grid.name)
    shuffled = []
    for _ in range(orders):
        order = generator.sample(range(grid.num_folds), grid.num_folds)
        courses = tuple(tuple(folds[f] for f in order) for folds in grid.courses)
        shuffled.append(replace(grid, courses=courses))
    return shuffled


def replay_all(
    cell: str, grids: Sequence[Curves], slots: int, racing: Racing | None = None
) -> list[dict[str, Any]]:
    """Replay a cell's grids at each of `ERROR_RATES`.

    Args:
        racing: all other settings of the race.

    Returns:
        Plain values: `saving` is the full grid's fold-epochs divided by those trained, `same_winner` a share,
        `regret` the mean validation F1 given away, 0 to 1.
    """
    outcomes = []
    for error_rate in ERROR_RATES:
        settings = replace(racing or Racing(), error_rate=error_rate)
        replays = [replay(grid, settings, slots) for grid in grids]
        outcomes.append(
            {
                "cell": cell,
                "configurations": len(grids[0].configurations),
                "folds": grids[0].num_folds,
                "replays": len(replays),
                "error_rate": error_rate,
                "saving": sum(r.grid_fold_epochs for r in replays)
                / sum(r.fold_epochs for r in replays),
                "same_winner": statistics.fmean(r.is_same for r in replays),
                "regret": statistics.fmean(r.regret for r in replays),
            }
        )
    return outcomes
