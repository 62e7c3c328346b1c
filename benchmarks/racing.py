"""How much of a full grid does racing save, and does it find the same winner as the grid?

    python -m benchmarks.racing [--quick]
    python -m benchmarks.racing --keep STORAGE NAME     saves a study's full grids for later runs

Each method replays the same tables of `racing.simulate.WORLDS`, 8 fold-runs at a time; no rule or default was
chosen by "held-out". One line per method, setting and world: `ours` is the full grid's fold-epochs / the
method's (sums over studies), with the share of equal winners and the mean regret in F1 points (the full
grid's winner minus the method's, on the full grid), each with a 95 % bootstrap interval over studies. One
summary line per world compares the largest saving at a mean regret of at most 0.1 points with the best peer.

Peers, each at several settings:

    asha-folds, asha-epochs, asha-both
        Li et al. 2018, arXiv:1810.05934, as Ray Tune stops trials: at a rung a trial continues if it is among
        the best 1/eta of those that reached it. The resource is folds, epochs (all folds side by side), or
        epochs fold after fold.
    median
        Golovin et al. 2017, Vizier, as in Ray Tune: stop if the best so far is below the median of others'
        running means; epochs fold after fold, with a share of them as grace period.
    escv-aggressive, escv-forgiving
        Bergman et al. 2024, arXiv:2405.03389: stop after a fold if the mean is below the best configuration's
        mean, or below its worst fold.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Options, json_line, read_options, start
from raymrc.ledger.ledger import Ledger
from raymrc.racing.racing import Racing
from raymrc.racing.simulate import (
    WORLDS,
    Curves,
    generate,
    read_grids,
    reorder_folds,
    replay,
)

STUDIES, QUICK_STUDIES = 125, 1
SEED = 20261125
SLOTS = 8
ERROR_RATES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
ETAS = (2, 3, 4)
MOST_REGRET = 0.1
ORDERS = 25
"""Random orders of the folds of each recorded grid."""
RECORDED = Path(__file__).parent / "recorded"
GOAL = 6.0
TIMED, TIMED_RATE, REPLAYS_A_MINUTE = 20, 0.2, 1000.0

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One study: fold-epochs of grid and method, regret in points, whether the winner is the same."""

    grid: int
    spent: int
    regret: float
    same: bool


@dataclass(frozen=True, slots=True)
class Steps:
    """A table as a peer sees it: what a trial reports after each step.

    Args:
        values: (C, S), comparable between trials at each step.
        cost: fold-epochs of a step.
        folds: best validation F1 of each configuration and fold, (C, F).
    """

    values: Array
    cost: int
    folds: Array


def steps_of(table: Curves, resource: str) -> Steps:
    scores = np.array(table.courses)
    best = np.maximum.accumulate(scores, axis=2)
    num, num_folds, epochs = scores.shape
    folds = best[..., -1]
    if resource == "epochs":
        return Steps(best.mean(1), num_folds, folds)
    before = np.cumsum(folds, axis=1) - folds
    so_far = (before[..., None] + best) / np.arange(1, num_folds + 1)[:, None]
    if resource == "folds":
        return Steps(so_far[..., -1], epochs, folds)
    return Steps(so_far.reshape(num, -1), 1, folds)


Rule = Callable[[int, int, list[int]], bool]
"""(trial's index, step from 1, steps of each trial so far) -> whether the trial continues."""


def asha(steps: Steps, eta: int) -> Rule:
    num_steps = steps.values.shape[1]
    rungs = [eta**k for k in range(20) if eta**k < num_steps]
    seen: dict[int, list[float]] = {rung: [] for rung in rungs}

    def goes_on(c: int, step: int, done: list[int]) -> bool:
        if step not in seen:
            return True
        value = steps.values[c, step - 1]
        seen[step].append(value)
        return bool(value >= np.quantile(seen[step], 1 - 1 / eta))

    return goes_on


def median(steps: Steps, grace: float) -> Rule:
    first = max(1, round(grace * steps.values.shape[1]))
    running_mean = np.cumsum(steps.values, axis=1) / np.arange(1, steps.values.shape[1] + 1)

    def goes_on(c: int, step: int, done: list[int]) -> bool:
        others = [o for o, n in enumerate(done) if n >= step and o != c]
        if step < first or len(others) < 3:
            return True
        best = steps.values[c, :step].max()
        return bool(best >= np.median(running_mean[others, step - 1]))

    return goes_on


def early_stopped(steps: Steps, bound: str) -> Rule:
    num_folds = steps.folds.shape[1]

    def goes_on(c: int, step: int, done: list[int]) -> bool:
        complete = [o for o, n in enumerate(done) if n == num_folds]
        if not complete:
            return True
        incumbent = steps.folds[max(complete, key=lambda o: float(steps.folds[o].mean()))]
        least = incumbent.mean() if bound == "mean" else incumbent.min()
        return bool(steps.values[c, step - 1] >= least)

    return goes_on


PEERS: dict[str, tuple[str, Callable[[Steps, float], Rule], Sequence[float]]] = {
    "asha-folds": ("folds", asha, ETAS),  # type: ignore[dict-item]
    "asha-epochs": ("epochs", asha, ETAS),  # type: ignore[dict-item]
    "asha-both": ("both", asha, ETAS),  # type: ignore[dict-item]
    "median": ("both", median, (0.02, 0.1, 0.2, 0.4)),
    "escv-aggressive": ("folds", lambda steps, _: early_stopped(steps, "mean"), (0,)),
    "escv-forgiving": ("folds", lambda steps, _: early_stopped(steps, "worst"), (0,)),
}
"""Meaning of a step, the rule, and its settings."""


def run_peer(table: Curves, method: str, setting: float) -> Outcome:
    """Run trials side by side, one step at a time; a free slot takes the next configuration."""
    resource, make, _ = PEERS[method]
    steps = steps_of(table, resource)
    rule = make(steps, setting)
    num, num_steps = steps.values.shape
    # A method that trains all folds of a trial at once has fewer trials side by side.
    slots = max(1, SLOTS // steps.cost) if resource == "epochs" else SLOTS
    done, waiting, running = [0] * num, list(range(num)), list[int]()
    while waiting or running:
        while waiting and len(running) < slots:
            running.append(waiting.pop(0))
        for c in tuple(running):
            done[c] += 1
            if done[c] == num_steps or not rule(c, done[c], done):
                running.remove(c)
    worth = steps.folds.mean(1)
    complete = [c for c in range(num) if done[c] == num_steps] or [int(np.argmax(done))]
    winner = max(complete, key=lambda c: worth[c])
    regret = float(100 * (worth.max() - worth[winner]))
    return Outcome(table.fold_epochs, sum(done) * steps.cost, regret, regret == 0)


def run_ours(table: Curves, method: str, setting: float) -> Outcome:
    if method == "none":
        return Outcome(table.fold_epochs, table.fold_epochs, 0.0, True)
    result = replay(table, Racing(error_rate=setting), SLOTS)
    return Outcome(result.grid_fold_epochs, result.fold_epochs, 100 * result.regret, result.is_same)


def interval(values: Array, weights: Array | None = None) -> list[float]:
    """95 % interval of a mean, or of a ratio of sums, from 1000 bootstrap draws of studies."""
    generator = np.random.default_rng(SEED)
    draws = generator.integers(len(values), size=(1000, len(values)))
    below = np.ones_like(values) if weights is None else weights
    means = values[draws].sum(1) / below[draws].sum(1)
    return [float(f"{value:.4g}") for value in np.quantile(means, (0.025, 0.975))]


def recorded(orders: int, limit: int | None = None) -> dict[str, list[Curves]]:
    """Full grids of real studies, each replayed with its folds in other orders."""
    found: dict[str, list[Curves]] = {}
    for path in sorted(RECORDED.glob("*.json"))[:limit]:
        values = json.loads(path.read_text())
        table = Curves(
            path.stem,
            tuple(values["configurations"]),
            tuple(tuple(map(tuple, folds)) for folds in values["courses"]),
            tuple(values["trained_parameters"]),
        )
        found[path.stem] = reorder_folds(table, orders)
    return found


def keep_grids(storage: str, name: str) -> None:
    """Save the full grids of a study's ledger as files for `recorded`; they contain scores, no notes."""
    RECORDED.mkdir(exist_ok=True)
    for number, table in enumerate(read_grids(Ledger(storage, write=False).records())):
        path = RECORDED / f"{name}-{number + 1}.json"
        values = {"cell": table.name, **asdict(table)}
        del values["name"]
        path.write_text(json.dumps(values) + "\n")
        print(f"{path}: {len(table.configurations)} configurations", file=sys.stderr)


@dataclass(frozen=True, slots=True)
class Measured:
    """Outcomes of many studies, summarised for one line."""

    saving: float
    regret: float
    figures: dict[str, object]


def measure(outcomes: Sequence[Outcome]) -> Measured:
    grid = np.array([o.grid for o in outcomes], dtype=float)
    spent = np.array([o.spent for o in outcomes], dtype=float)
    regret = np.array([o.regret for o in outcomes])
    same = np.array([o.same for o in outcomes], dtype=float)
    figures = {
        "saving_interval": interval(grid, spent),
        "same_winner": float(same.mean()),
        "same_winner_interval": interval(same),
        "mean_regret_points": float(f"{regret.mean():.3g}"),
        "mean_regret_interval": interval(regret),
        "studies": len(outcomes),
    }
    return Measured(float(grid.sum() / spent.sum()), float(regret.mean()), figures)


UNIT = "grid's fold-epochs / trained"


def race(options: Options, name: str, tables: Sequence[Curves], pool: ProcessPoolExecutor) -> None:
    """Run every method and setting on the same tables, and compare the best of each side."""
    ours = [("full grid", run_ours, 0.0)] + [("paired", run_ours, rate) for rate in ERROR_RATES]
    peers = [(peer, run_peer, s) for peer, (_, _, settings) in PEERS.items() for s in settings]
    best: dict[bool, tuple[float, str]] = {}
    for method, run, setting in (*ours, *peers):
        called = "none" if method == "full grid" else method
        found = measure(
            list(pool.map(partial(run, method=called, setting=setting), tables, chunksize=5))
        )
        label = f"{method} {setting:g}" if setting else method
        json_line(
            options, f"{name}: {label}", found.saving, None, UNIT, found.saving / GOAL, GOAL,
            **found.figures,
        )  # fmt: skip
        if found.regret <= MOST_REGRET:
            side = run is run_ours
            best[side] = max(best.get(side, (0.0, "")), (found.saving, label))
    peer, peer_label = best.get(False, (1.0, "full grid"))
    json_line(
        options,
        f"{name}: at a mean regret of at most {MOST_REGRET} points",
        best[True][0],
        peer,
        UNIT,
        best[True][0] / peer,
        1.5,
        ours_setting=best[True][1],
        peer_setting=peer_label,
    )


def time_replays(options: Options, name: str, tables: Sequence[Curves]) -> None:
    """Replays per core and second, the median of three repetitions."""
    times = []
    for _ in range(3):
        begun = time.process_time()
        decisions = sum(
            replay(table, Racing(error_rate=TIMED_RATE), SLOTS).decisions for table in tables
        )
        times.append(time.process_time() - begun)
    seconds = float(np.median(times))
    each_minute = 60 * len(tables) / seconds
    json_line(
        options, f"{name}: replays", each_minute, None, "a minute on a core",
        each_minute / REPLAYS_A_MINUTE, REPLAYS_A_MINUTE,
        ms_a_decision=float(f"{1000 * seconds / decisions:.3g}"),
        decisions=decisions / len(tables),
    )  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--keep"]:
        keep_grids(*sys.argv[2:])
        return
    options = read_options("racing", __doc__, devices=("cpu",))
    start(options)
    count = QUICK_STUDIES if options.quick else STUDIES
    # --quick has one generated world and one recorded grid.
    limit = 1 if options.quick else None
    worlds = {
        name: list(generate(world, count, SEED)) for name, world in islice(WORLDS.items(), limit)
    }
    for name, tables in worlds.items():
        time_replays(options, name, tables[:TIMED])
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        grids = recorded(QUICK_STUDIES if options.quick else ORDERS, limit)
        for name, tables in (worlds | grids).items():
            race(options, name, tables, pool)


if __name__ == "__main__":
    main()
