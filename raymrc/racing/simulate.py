"""A race replayed on a table of scores that is known in full: what it costs, and who wins.

    records or a generator -> Table -> replay (through racing.decide) -> Replay

No clock and no Ray: slots are filled, the fold-run that is done first reports, and so on. An epoch takes as
long in every fold-run.
"""

from __future__ import annotations

import heapq
import random
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from raymrc.configuration import Cell
from raymrc.ledger.rank import rank
from raymrc.ledger.record import Record
from raymrc.quantities import Estimate
from raymrc.racing.racing import Contender, Prior, Racing, Run, decide

# C configurations, F folds, E epochs

if TYPE_CHECKING:
    from rich.console import RenderableType

ERROR_RATES = (0.01, 0.05, 0.2)
"""That `raymrc simulate` shows."""


MADE_UP_SEED = 20261127
"""Of grids that are made up."""

TABLES, MOST_CONFIGURATIONS = 3, 40
"""Tables of each world that `expected_share` replays, and configurations that are worth the time, about a
second. Of more of them a race trains a smaller share."""


@dataclass(frozen=True, slots=True)
class Curves:
    """Validation F1 of every epoch of a cell's full grid.

    Args:
        configurations: ids, C of them.
        courses: by configuration and fold, a value an epoch, 0 to 1; epochs may differ between
            configurations, not between folds of one.
        trained_parameters: of each; the smaller one wins a tie.
    """

    name: str
    configurations: tuple[str, ...]
    courses: tuple[tuple[tuple[float, ...], ...], ...]
    trained_parameters: tuple[int, ...] = ()

    @property
    def num_folds(self) -> int:
        return len(self.courses[0])

    @property
    def fold_epochs(self) -> int:
        """Of the full grid."""
        return sum(len(course) for folds in self.courses for course in folds)

    @property
    def worths(self) -> tuple[float, ...]:
        """Mean over folds of the best epoch's F1: what the full grid chooses by."""
        return tuple(statistics.fmean(max(course) for course in folds) for folds in self.courses)

    @property
    def winner(self) -> str:
        """Of the full grid, by the verdict's rule."""
        sizes = self.trained_parameters or (0,) * len(self.configurations)
        places = zip(self.worths, sizes, self.configurations, strict=True)
        return min(rank(self.num_folds, worth, size, name) for worth, size, name in places)[-1]


@dataclass(frozen=True, slots=True)
class Replay:
    """What a race on a table came to.

    Args:
        fold_epochs, grid_fold_epochs: trained, and of the full grid.
        regret: mean validation F1 of the full grid's winner less this one's, 0 to 1.
        wall_epochs: time, in epochs; the full grid's is about fold-epochs / slots.
        decisions: how often was decided.
    """

    table: str
    winner: str
    grid_winner: str
    fold_epochs: int
    grid_fold_epochs: int
    regret: float
    wall_epochs: int
    decisions: int

    @property
    def is_same(self) -> bool:
        return self.winner == self.grid_winner


def replay(table: Curves, racing: Racing, slots: int = 8, prior: Prior | None = None) -> Replay:
    """A race as a driver would hold it, with so many fold-runs at a time."""
    place = {name: c for c, name in enumerate(table.configurations)}
    sizes = table.trained_parameters or (0,) * len(place)
    done = [[0] * table.num_folds for _ in place]
    stopped: set[str] = set()

    def look_at(c: int) -> Contender:
        name, courses = table.configurations[c], table.courses[c]
        return Contender(
            name,
            len(courses[0]),
            tuple(course[:n] for course, n in zip(courses, done[c], strict=True)),
            name in stopped,
            sizes[c],
        )

    contenders = [look_at(c) for c in place.values()]
    running: list[tuple[int, int, Run]] = []  # when it reports, in which order it began, what
    clock = began = spent = decisions = 0
    winner = None
    while winner is None:
        busy = [run for _, _, run in running]
        decision = decide(contenders, racing, slots - len(busy), busy, prior)
        decisions += 1
        winner = decision.winner
        for stop in decision.stopped:
            stopped.add(stop.configuration)
            contenders[place[stop.configuration]] = look_at(place[stop.configuration])
        for run in decision.run:
            epochs = run.until - done[place[run.configuration]][run.fold]
            spent += epochs
            began += 1
            heapq.heappush(running, (clock + epochs, began, run))
        if not running:
            break
        clock, _, run = heapq.heappop(running)
        c = place[run.configuration]
        done[c][run.fold] = run.until
        contenders[c] = look_at(c)
    assert winner is not None, "a race that has nothing to run has a winner"
    worths = table.worths
    return Replay(
        table.name,
        winner,
        table.winner,
        spent,
        table.fold_epochs,
        worths[place[table.winner]] - worths[place[winner]],
        clock,
        decisions,
    )


@dataclass(frozen=True, slots=True)
class World:
    """What generated tables are like; F1 in points, from 0 to 100.

    A configuration is a learning rate and one of a few other settings; its worth falls off with the
    square of the rate's distance from the best one, whose place differs from table to table. Rates
    too far above it diverge on some folds or on all.

    Args:
        configurations, epochs: least and most; drawn for each table.
        rate_spread: how many decades of rates are searched.
        rate_curvature: points lost at a decade from the best rate.
        setting_sd: of the other settings' effects.
        configuration_sd: of what is left to a configuration.
        fold_sd: of folds.
        interaction_sd: of a configuration on a fold.
        heavy_tails: interactions by Student's t with 3 degrees, of the same standard deviation.
        epoch_sd: of an epoch, at the end; twice that at the start, as rates decay to nothing.
        speed: epochs to come within 37 % of the end, at the best rate and as a share of all; a tenth of
            the rate is twice as slow.
        speed_spread: of its logarithm, by configuration; so curves cross.
        diverging: decades above the best rate from where on runs diverge.
        power_law: curves end in a power of the epoch instead of an exponential.
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
        # As few notes as our samples of PHEE and BC5CDR: folds differ by points, epochs too.
        World("small", interaction_sd=3.0, epoch_sd=2.0, fold_sd=6.0, top=55.0),
        # A grid about the best rate, in which most configurations are nearly as good.
        World("near-ties", rate_curvature=8.0),
        # Nothing in racing.py was chosen by a look at this one.
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
"""By name. MiniLM on PHEE lost 18 points in 0.6 decades of the rate, 50 at a decade if that were a parabola;
30 and fewer are assumed here."""


def generate(world: World, count: int, seed: int) -> Iterator[Curves]:
    """So many tables; equal seeds give equal ones."""
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
    # Learning curves, each fold-run with its own speed about its configuration's.
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
    # A diverged fold-run falls to nearly nothing at some epoch and stays there.
    too_high = np.clip((rate - world.diverging) / 0.4, 0, 1)
    diverges = generator.random((num, folds)) < too_high[:, None]
    falls = generator.integers(0, max(1, epochs // 2), (num, folds))
    lost = diverges[..., None] & (np.arange(epochs) >= falls[..., None])
    scores = np.where(lost, generator.uniform(0, 5, scores.shape), scores)
    scores = np.clip(scores, 0, 100) / 100
    return Curves(
        f"{world.name}-{index}",
        tuple(f"{c:03d}" for c in range(num)),
        tuple(tuple(map(tuple, of)) for of in scores.tolist()),
    )


def make_up(num_configurations: int, folds: int, epochs: int, of_each: int) -> list[Curves]:
    """Grids of a study's size, so many of each of `WORLDS`: nobody knows beforehand how far apart a study's
    configurations are."""
    size = (num_configurations, num_configurations)
    worlds = (
        replace(world, configurations=size, epochs=(epochs, epochs), folds=folds)
        for world in WORLDS.values()
    )
    return [table for world in worlds for table in generate(world, of_each, MADE_UP_SEED)]


@lru_cache
def expected_share(num_configurations: int, folds: int, epochs: int, racing: Racing) -> Estimate:
    """Of a full grid's fold-epochs those that a race will train, by replays of made-up grids of its size."""
    replays = [
        replay(table, racing) for table in make_up(num_configurations, folds, epochs, TABLES)
    ]
    shares = [one.fold_epochs / one.grid_fold_epochs for one in replays]
    low, value, high = np.quantile(shares, (0.05, 0.5, 0.95)).tolist()
    return Estimate(value, low, high)


def read_tables(records: Iterable[Record], num_folds: int | None = None) -> tuple[Curves, ...]:
    """A table for each cell of a ledger, of the configurations with all folds done; at least two.

    Of a cell on other notes, folds or weights there is one table more: those are not mixed.

    Args:
        num_folds: as many as the records have where not given.
    """
    return tuple(
        Curves(
            cell.name,
            tuple(folds[0].fold_run.configuration.id for folds in whole),
            tuple(
                tuple(tuple(epoch.validation_f1 for epoch in record.epochs) for record in folds)
                for folds in whole
            ),
            tuple(folds[0].trained_parameters for folds in whole),
        )
        for cell, whole in _full_grids(records, num_folds)
        if len(whole) > 1
    )


def _full_grids(
    records: Iterable[Record], num_folds: int | None = None
) -> list[tuple[Cell, list[list[Record]]]]:
    """Of each cell the configurations with all folds done, by id, each with its records by fold.

    A cell on other notes, folds or weights is another one: those are not mixed.

    Args:
        num_folds: as many as the records have where not given.
    """
    found: dict[tuple[Cell, tuple[str, ...]], dict[str, dict[int, Record]]] = {}
    for record in records:
        run = record.fold_run
        if record.status == "done" and not run.is_test and record.epochs:
            of_cell = found.setdefault((run.configuration.cell, run.basis), {})
            of_cell.setdefault(run.configuration.id, {})[run.fold] = record
    grids = []
    for (cell, _), of_cell in sorted(found.items(), key=lambda item: (item[0][0].name, item[0][1])):
        folds = num_folds or 1 + max(max(of) for of in of_cell.values())
        whole = [
            [of[fold] for fold in sorted(of)]
            for _, of in sorted(of_cell.items())
            if len(of) == folds
        ]
        if whole:
            grids.append((cell, whole))
    return grids


def reorder(table: Curves, orders: int) -> list[Curves]:
    """With the folds in so many orders, drawn by the table's name."""
    generator = random.Random(table.name)
    shuffled = []
    for _ in range(orders):
        order = generator.sample(range(table.num_folds), table.num_folds)
        courses = tuple(tuple(folds[f] for f in order) for folds in table.courses)
        shuffled.append(replace(table, courses=courses))
    return shuffled


def replay_all(
    cell: str, tables: Sequence[Curves], slots: int, racing: Racing | None = None
) -> list[dict[str, Any]]:
    """For each of `ERROR_RATES`, means over replays of a cell's tables.

    Args:
        racing: what else a race goes by.

    Returns:
        Plain values: `saving` is the full grid's fold-epochs / those trained, `same_winner` a share, `regret`
        the mean validation F1 given away, 0 to 1.
    """
    return [
        {
            "cell": cell,
            "configurations": len(tables[0].configurations),
            "folds": tables[0].num_folds,
            "replays": len(tables),
            "error_rate": error_rate,
            **summarise_replays([replay(one, terms, slots) for one in tables]),
        }
        for error_rate in ERROR_RATES
        for terms in [replace(racing or Racing(), method="paired", error_rate=error_rate)]
    ]


def summarise_replays(replays: Sequence[Replay]) -> dict[str, float]:
    """Over all of them: fold-epochs saved as a ratio of sums, share of same winners, mean regret."""
    return {
        "saving": sum(r.grid_fold_epochs for r in replays) / sum(r.fold_epochs for r in replays),
        "same_winner": statistics.fmean(r.is_same for r in replays),
        "regret": statistics.fmean(r.regret for r in replays),
    }


def render_replays(outcomes: Iterable[dict[str, Any]]) -> RenderableType:
    """`replay_all` of some cells as a table for the terminal."""
    from rich.table import Table as Shown

    shown = Shown(title="What racing saves of the full grid")
    shown.add_column("cell", no_wrap=True)
    for heading in ("configurations", "error rate", "saving", "same winner", "regret, points"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for outcome in outcomes:
        shown.add_row(
            outcome["cell"],
            str(outcome["configurations"]),
            f"{outcome['error_rate']:g}",
            f"{outcome['saving']:.1f}x",
            f"{100 * outcome['same_winner']:.0f} %",
            f"{100 * outcome['regret']:.2f}",
        )
    return shown
