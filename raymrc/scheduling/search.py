"""What to train next, over all cells of a study.

plan + records -> StudySearch.next() -> WorkItem -> (trained elsewhere) -> StudySearch.settle()

Without racing, a work item is all that the ledger lacks of a configuration. In a race (`race.Race`) it is a
leg: a configuration trains until a rung on one or several folds, and may come back for the next leg.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from raymrc.configuration import Cell, Configuration, FoldRun, hash_values
from raymrc.ledger.record import Record
from raymrc.planning.fold_runs import fold_run
from raymrc.planning.plan import CellPlan, Plan, build_configuration
from raymrc.racing.racing import Racing
from raymrc.scheduling.race import Race, Stop

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MAX_INITIAL_PROPOSALS = 10
"""TPE's first contenders in a race: Optuna draws this many at random before it uses any result."""

MAX_REPEATED_PROPOSALS = 20
"""After this many known proposals in a row TPE's space is nearly used up."""


@dataclass(frozen=True, slots=True)
class WorkItem:
    """Fold-runs of one configuration that the ledger lacks, for one trial.

    Args:
        cell: index into the plan's cells.
        until: by key, the epoch at which to pause; the others train to their end.
    """

    cell: int
    configuration: Configuration
    fold_runs: tuple[FoldRun, ...]
    until: Mapping[str, int] = field(default_factory=dict)


class ListSearch:
    """Grid and random search: the plan lists the configurations, whatever the results."""

    def __init__(self, configurations: Iterable[Configuration]) -> None:
        self._left = iter(configurations)

    def propose(self) -> Configuration | None:
        """The next configuration; None when all have been proposed."""
        return next(self._left, None)

    def learn(self, configuration: Configuration, value: float | None) -> None:
        """A proposal is settled; `value` is its mean validation F1, or None if a fold failed."""

    def learn_stop(self, stop: Stop) -> None:
        """A race has stopped a proposal."""


@dataclass(slots=True)
class _Try:
    """A proposal of TPE.

    Args:
        value: mean validation F1, once all folds are done.
        reached: epochs and validation F1 when a race stopped it.
    """

    params: Mapping[str, Any]
    value: float | None = None
    failed: bool = False
    reached: tuple[int, float] | None = None

    @property
    def state(self) -> str:
        """Name of Optuna's trial state."""
        if self.value is not None:
            return "COMPLETE"
        if self.reached is not None:
            return "PRUNED"
        return "FAIL" if self.failed else "RUNNING"


class TpeSearch:
    """Optuna's TPE over one cell, with the methods of `ListSearch`.

    Optuna sees configurations whose folds are all done as complete, and those that a race stopped as pruned,
    which it ranks below every complete one. The mean of a half-trained configuration never counts.

    A proposal depends only on the seed and the tries before it, because each one builds its sampler anew. So
    a killed study continues with the proposals that it would have made.

    Args:
        known: configurations in the ledger with their mean validation F1, in the order of training. Those
            with missing folds have none, and are proposed first. Those outside the cell's present space are
            ignored.
    """

    def __init__(
        self, plan: CellPlan, seed: int, known: Iterable[tuple[Configuration, float | None]]
    ) -> None:
        self.plan = plan
        self.seed = seed
        self.options = _options(plan)
        self.distributions = _optuna_distributions(plan)
        self.tries: dict[str, _Try] = {}
        self._again: deque[Configuration] = deque()
        for configuration, value in known:
            if not plan.holds(configuration):
                continue
            if value is None:
                self._again.append(configuration)
            else:
                self._add(configuration, value)

    def propose(self) -> Configuration | None:
        if len(self.tries) >= self.plan.num_configurations:
            return None
        configuration = self._again.popleft() if self._again else self._ask()
        if configuration is not None:
            self._add(configuration)
        return configuration

    def mark_incomplete_running(self) -> None:
        """Incomplete configurations are in a race already, so they are not proposed."""
        while self._again:
            self._add(self._again.popleft())

    def learn(self, configuration: Configuration, value: float | None) -> None:
        known = self.tries[configuration.id]
        known.value, known.failed = value, value is None

    def learn_stop(self, stop: Stop) -> None:
        known = self.tries.get(stop.configuration.id)
        if known is not None:
            known.reached = stop.epochs, stop.reached

    def _ask(self) -> Configuration | None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        cell, space = self.plan.cell, self.plan.space
        place = [self.seed, cell.name, len(self.tries)]
        seed = int(hash_values(place)[:8], 16)
        study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed)
        )
        study.add_trials(
            [
                optuna.trial.create_trial(
                    # Running tries keep TPE from proposing their neighbours (its "constant liar").
                    state=optuna.trial.TrialState[known.state],
                    params=dict(known.params),
                    distributions=self.distributions,
                    value=known.value,
                    intermediate_values=dict([known.reached] if known.reached else []),
                )
                for known in self.tries.values()
                if known.state != "FAIL"
            ]
        )
        for _ in range(MAX_REPEATED_PROPOSALS):
            params = study.ask(self.distributions).params
            configuration = build_configuration(cell, space, self._values(params))
            if configuration.id not in self.tries:
                return configuration
        generator = random.Random(seed)
        for _ in range(1000):
            configuration = build_configuration(cell, space, space.draw(generator))
            if configuration.id not in self.tries:
                return configuration
        return None

    def _values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {k: self.options[k][v] if k in self.options else v for k, v in params.items()}

    def _add(self, configuration: Configuration, value: float | None = None) -> None:
        values = {name: getattr(configuration, name) for name in self.distributions}
        point = {k: self.options[k].index(v) if k in self.options else v for k, v in values.items()}
        self.tries[configuration.id] = _Try(point, value)


def _options(plan: CellPlan) -> dict[str, tuple[Any, ...]]:
    """Fields with a few possible values. Optuna sees indices, because a value may be a tuple."""
    choices = {k: d.values for k, d in plan.space.distributions.items() if d.kind == "choice"}
    return {**plan.space.grids, **choices}


def _optuna_distributions(plan: CellPlan) -> dict[str, BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(tuple(range(len(values))))
        for name, values in _options(plan).items()
    }
    for name, distribution in plan.space.distributions.items():
        if distribution.kind == "int_uniform":
            low, high = distribution.values
            found[name] = IntDistribution(low, high)
        elif distribution.kind != "choice":
            low, high = distribution.values
            found[name] = FloatDistribution(low, high, log=distribution.kind == "log_uniform")
    return found


class StudySearch:
    """Hands out the missing work of a study, cells in turn.

    Args:
        plan: with fingerprints.
        records: the ledger's.
        look_up: the record of a key, if it is done by now; called before a fold-run is handed out, in case
            another driver has trained it.
    """

    def __init__(
        self,
        plan: Plan,
        records: Iterable[Record] = (),
        look_up: Callable[[str], Record | None] | None = None,
    ) -> None:
        assert plan.fingerprints is not None, "corpus and weights must be known before training"
        self.plan = plan
        self.done: dict[str, float] = {}
        """Key -> validation F1 of the fold-runs that are done."""
        self._fingerprints = plan.fingerprints
        self._fold_runs: dict[Configuration, dict[str, FoldRun]] = {}
        self._look_up = look_up or (lambda key: None)
        self._given_back: deque[WorkItem] = deque()
        self._races: list[Race | None] = [None] * len(plan.cells)
        self._cells = {cell.cell: index for index, cell in enumerate(plan.cells)}
        seen = sorted(records, key=lambda record: record.started_at)
        for record in seen:
            self.learn(record)
        self._started = [0] * len(plan.cells)
        self._exhausted = [False] * len(plan.cells)
        self._proposers: list[ListSearch | TpeSearch] = []
        for index, cell in enumerate(plan.cells):
            if cell.configurations is not None:
                self._proposers.append(ListSearch(cell.configurations))
            else:
                tpe = self._build_tpe(cell, seen)
                self._started[index] = len(tpe.tries)
                self._proposers.append(tpe)
            if plan.racing is not None and cell.num_configurations > 1:
                self._build_race(index, plan.racing, seen)

    def _build_tpe(self, cell: CellPlan, seen: Sequence[Record]) -> TpeSearch:
        known: dict[str, Configuration] = {}
        for record in seen:
            configuration = record.fold_run.configuration
            # Records on other notes or folds share configurations with this study.
            if configuration.cell == cell.cell and record.key in self.fold_runs(configuration):
                known.setdefault(configuration.id, configuration)
        return TpeSearch(cell, self.plan.seed, [(c, self.value(c)) for c in known.values()])

    def _build_race(self, index: int, racing: Racing, seen: Sequence[Record]) -> None:
        proposer = self._proposers[index]
        max_initial = math.inf if isinstance(proposer, ListSearch) else MAX_INITIAL_PROPOSALS
        race = Race(racing, self.plan.folds, proposer.propose, max_initial=max_initial)
        self._races[index] = race
        for record in seen:
            configuration = record.fold_run.configuration
            if self._race_of(record) is race and self.plan.cells[index].holds(configuration):
                race.enter(configuration)
                if not record.is_failed:  # failed fold-runs are tried again
                    self._update_race(record)
        if isinstance(proposer, TpeSearch):
            proposer.mark_incomplete_running()
            for stop in race.stopped:
                proposer.learn_stop(stop)

    def _race_of(self, record: Record) -> Race | None:
        """The race that a record belongs to, if its notes and folds are those of this study."""
        configuration = record.fold_run.configuration
        index = self._cells.get(configuration.cell)
        race = None if index is None else self._races[index]
        return race if race is not None and record.key in self.fold_runs(configuration) else None

    def _update_race(self, record: Record) -> None:
        run = record.fold_run
        race = self._race_of(record)
        if race is None or not race.holds(run.configuration):
            return
        if record.is_failed:
            race.fail(run.configuration, run.fold)
        else:
            race.learn(
                run.configuration,
                run.fold,
                [epoch.validation_f1 for epoch in record.epochs],
                trained_parameters=record.trained_parameters,
                stopped=record.is_stopped,
            )

    def fold_runs(self, configuration: Configuration) -> Mapping[str, FoldRun]:
        """All fold-runs of a configuration by ledger key, in fold order; computed once."""
        known = self._fold_runs.get(configuration)
        if known is None:
            runs = [fold_run(configuration, i, self._fingerprints) for i in range(self.plan.folds)]
            known = self._fold_runs[configuration] = {run.key: run for run in runs}
        return known

    def value(self, configuration: Configuration) -> float | None:
        """Mean validation F1 over all folds; None while a fold is missing."""
        keys = self.fold_runs(configuration)
        if not keys.keys() <= self.done.keys():
            return None
        return statistics.fmean(self.done[key] for key in keys)

    def learn(self, record: Record) -> None:
        """Take in a record. A failed fold-run stays missing; a paused one continues in its race."""
        if record.is_done:
            self.done[record.key] = record.validation_f1
        self._update_race(record)

    def next(
        self, lanes: int = 1, per_fold_run: Mapping[Cell, int] = MappingProxyType({})
    ) -> WorkItem | None:
        """The next work; None when nothing is left, or when races have nothing for now.

        Args:
            lanes: free for races.
            per_fold_run: lanes that a fold-run of a cell occupies; 1 for cells not listed.
        """
        if self._given_back:
            return self._given_back.popleft()
        waiting: set[int] = set()
        while (cell := self._most_behind(waiting)) is not None:
            race = self._races[cell]
            if race is not None:
                each = per_fold_run.get(self.plan.cells[cell].cell, 1)
                legs = self._next_legs(cell, race, max(1, lanes // each))
                if legs is not None:
                    return legs
                waiting.add(cell)
                self._exhausted[cell] = race.is_over
                continue
            configuration = self._proposers[cell].propose()
            if configuration is None:
                self._exhausted[cell] = True
                continue
            self._started[cell] += 1
            work = WorkItem(cell, configuration, tuple(self._missing(configuration)))
            if work.fold_runs:
                return work
            self.settle(work)
        return None

    def _next_legs(self, cell: int, race: Race, slots: int) -> WorkItem | None:
        while (legs := race.next(slots)) is not None:
            configuration, until = legs
            runs = tuple(
                run
                for run in self._missing(configuration, until)
                if not race.has_reached(configuration, run.fold, until[run.fold])
            )
            if runs:
                return WorkItem(cell, configuration, runs, {r.key: until[r.fold] for r in runs})
        return None

    def _missing(
        self, configuration: Configuration, folds: Collection[int] | None = None
    ) -> Iterator[FoldRun]:
        """Fold-runs without a record. With `folds`, only these are looked up."""
        for key, run in self.fold_runs(configuration).items():
            if key in self.done or (folds is not None and run.fold not in folds):
                continue
            record = self._look_up(key)
            if record is None:
                yield run
            else:
                self.learn(record)

    def _most_behind(self, waiting: Collection[int]) -> int | None:
        """The first cell with the smallest started share of its configurations, or in a race of its epochs;
        `waiting` cells have nothing to hand out now."""
        shares = [
            (self._share(index), index)
            for index in range(len(self.plan.cells))
            if not self._exhausted[index] and index not in waiting
        ]
        return min(shares)[1] if shares else None

    def _share(self, index: int) -> float:
        cell, race = self.plan.cells[index], self._races[index]
        if race is None:
            return self._started[index] / max(cell.num_configurations, 1)
        return race.share

    def is_settled(self, work: WorkItem, run: FoldRun) -> bool:
        """Whether a fold-run has reached its end, or the epoch at which it pauses."""
        race = self._races[work.cell]
        until = work.until.get(run.key)
        if run.key in self.done or race is None or until is None:
            return run.key in self.done
        return race.has_reached(work.configuration, run.fold, until)

    def settle(self, work: WorkItem) -> None:
        """All fold-runs of a work item have a record: done, failed or, in a race, paused."""
        value = self.value(work.configuration)
        race = self._races[work.cell]
        if race is None or value is not None or race.has_failed(work.configuration):
            self._proposers[work.cell].learn(work.configuration, value)

    def take_stops(self) -> list[Stop]:
        """Configurations that races have stopped since the last call."""
        stops = []
        for race, proposer in zip(self._races, self._proposers, strict=True):
            for stop in race.take_stops() if race is not None else ():
                proposer.learn_stop(stop)
                stops.append(stop)
        return stops

    @property
    def races(self) -> bool:
        """Whether configurations of any cell are raced."""
        return any(race is not None for race in self._races)

    @property
    def epochs(self) -> tuple[int, int]:
        """Epochs of all races that are done, and the most that may follow."""
        each = [race.epochs for race in self._races if race is not None]
        return sum(done for done, _ in each), sum(left for _, left in each)

    def num_spared(self, cell: int) -> int:
        """Fold-runs of a cell that its race will not train to their end."""
        race = self._races[cell]
        return 0 if race is None else race.num_spared

    def close_cell(self, cell: int) -> None:
        """Hand out nothing more of this cell."""
        self._exhausted[cell] = True
        self._given_back = deque(work for work in self._given_back if work.cell != cell)

    def give_back(self, work: WorkItem) -> None:
        """Hand this work out again, before any other."""
        self._given_back.append(work)
