"""What to train next, over all cells of a study. No Ray here: it proposes and is told.

plan + records -> StudySearch.next() -> Work -> (trained elsewhere) -> StudySearch.settle()

Without racing a trial is a configuration and trains all that it lacks. In a race (`scheduler.Race`) what is
handed out is a leg: a configuration goes on until a rung on one fold or several, and may be back for more.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from raymrc.configuration import Cell, Configuration, FoldRun, hash_values
from raymrc.ledger.record import Record
from raymrc.planning.fold_runs import fold_run
from raymrc.planning.plan import (
    CellPlan,
    Plan,
    build_configuration,
)
from raymrc.racing.racing import Racing
from raymrc.scheduling.race import Race, Stop

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

STARTERS = 10
"""So many of TPE's proposals race at once: as many as Optuna draws by chance before it looks at any."""

SAME_AGAIN = 20
"""After so many proposals in a row that were made before, TPE's space is nearly used up."""


@dataclass(frozen=True, slots=True)
class WorkItem:
    """What a trial is handed at a time: fold-runs of a configuration that the ledger lacks.

    Args:
        cell: index into the plan's cells.
        until: by key, the epoch at which to pause; others are trained to their end.
    """

    cell: int
    configuration: Configuration
    fold_runs: tuple[FoldRun, ...]
    until: Mapping[str, int] = field(default_factory=dict)


class Proposer(Protocol):
    """Chooses the configurations of one cell."""

    def propose(self) -> Configuration | None:
        """The next one; None when all have been proposed."""
        ...

    def tell(self, configuration: Configuration, value: float | None) -> None:
        """A proposed one is settled: mean validation F1 over all its folds; None if one failed."""
        ...

    def tell_stopped(self, stop: Stop) -> None:
        """A proposed one was stopped in a race."""
        ...


class ListSearch:
    """Grid and random: the plan has written the configurations down."""

    def __init__(self, configurations: Iterable[Configuration]) -> None:
        self._left = iter(configurations)

    def propose(self) -> Configuration | None:
        return next(self._left, None)

    def tell(self, configuration: Configuration, value: float | None) -> None:
        """The list stands, whatever comes out."""

    def tell_stopped(self, stop: Stop) -> None:
        """The list stands, whatever comes out."""


@dataclass(slots=True)
class _Try:
    """A proposal of TPE: its point, and its worth once that is known.

    Args:
        reached: where it was stopped: after so many epochs, at so much.
    """

    params: Mapping[str, Any]
    value: float | None = None
    settled: bool = False
    reached: tuple[int, float] | None = None

    @property
    def state(self) -> str:
        """As Optuna calls it."""
        if self.value is not None:
            return "COMPLETE"
        if self.reached is not None:
            return "PRUNED"
        return "FAIL" if self.settled else "RUNNING"


class TpeSearch:
    """Optuna's TPE over one cell, told of configurations whose folds are all done, and of those that were
    stopped that they were: to Optuna they are pruned, and none of them is as good as one that is done.

    A proposal is a function of the seed and of the tries before it: the sampler is made anew
    each time. So a study that was cut off goes on where it stood, and a running mean of a
    half-trained configuration never counts as its worth.

    Args:
        complete: configurations of the ledger with their mean validation F1, in the order in
            which they were trained. Those outside the cell's present space are left out.
        incomplete: those with some folds missing; they are proposed first.
    """

    def __init__(
        self,
        plan: CellPlan,
        seed: int,
        complete: Sequence[tuple[Configuration, float]] = (),
        incomplete: Sequence[Configuration] = (),
    ) -> None:
        self.plan = plan
        self.seed = seed
        self.options = _options(plan)
        self.distributions = _optuna_distributions(plan)
        self.tries: dict[str, _Try] = {}
        self._again: deque[Configuration] = deque()
        for configuration, value in complete:
            params = self._params(configuration)
            if params is not None:
                self.tries[configuration.id] = _Try(params, value, settled=True)
        for configuration in incomplete:
            if self._params(configuration) is not None:
                self._again.append(configuration)

    def propose(self) -> Configuration | None:
        if len(self.tries) >= self.plan.num_configurations:
            return None
        configuration = self._again.popleft() if self._again else self._ask()
        if configuration is not None:
            params = self._params(configuration)
            assert params is not None
            self.tries[configuration.id] = _Try(params)
        return configuration

    def take_up(self) -> None:
        """Those that were incomplete are being trained already."""
        while self._again:
            configuration = self._again.popleft()
            params = self._params(configuration)
            assert params is not None
            self.tries[configuration.id] = _Try(params)

    def tell(self, configuration: Configuration, value: float | None) -> None:
        known = self.tries[configuration.id]
        known.value, known.settled = value, True

    def tell_stopped(self, stop: Stop) -> None:
        known = self.tries.get(stop.configuration.id)
        if known is not None:
            known.reached, known.settled = (stop.epochs, stop.reached), True

    def _ask(self) -> Configuration | None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        place = [self.seed, self.plan.cell.name, len(self.tries)]
        seed = int(hash_values(place)[:8], 16)
        study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed)
        )
        study.add_trials(
            [
                optuna.trial.create_trial(
                    # Running ones keep TPE from proposing their neighbours (its "constant liar").
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
        for _ in range(SAME_AGAIN):
            params = study.ask(self.distributions).params
            configuration = build_configuration(self.plan, self._values(params))
            if configuration.id not in self.tries:
                return configuration
        generator = random.Random(seed)
        for _ in range(1000):
            configuration = build_configuration(self.plan, self.plan.space.draw(generator))
            if configuration.id not in self.tries:
                return configuration
        return None

    def _values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {k: self.options[k][v] if k in self.options else v for k, v in params.items()}

    def _params(self, configuration: Configuration) -> dict[str, Any] | None:
        """As Optuna knows it; None where it lies outside the cell's space."""
        if not self.plan.holds(configuration):
            return None
        values = {name: getattr(configuration, name) for name in self.distributions}
        return {k: self.options[k].index(v) if k in self.options else v for k, v in values.items()}


def _options(plan: CellPlan) -> dict[str, tuple[Any, ...]]:
    """Fields that take one of a few values. Optuna sees their indices: a value may be a tuple."""
    choices = {k: d.values for k, d in plan.space.distributions.items() if d.kind == "choice"}
    return {**plan.space.grids, **choices}


def _optuna_distributions(plan: CellPlan) -> dict[str, BaseDistribution]:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

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
        records: of the ledger.
        look: the done record of a key, if there is one by now. Asked before a fold-run is handed
            out, so that what a second driver has done is not done again.
    """

    def __init__(
        self,
        plan: Plan,
        records: Iterable[Record] = (),
        look: Callable[[str], Record | None] | None = None,
    ) -> None:
        assert plan.fingerprints is not None, "corpus and weights must be known before training"
        self.plan = plan
        self.done: dict[str, float] = {}
        """Key -> validation F1 of the fold-runs that are done."""
        self._fingerprints = plan.fingerprints
        self._fold_runs: dict[Configuration, dict[str, FoldRun]] = {}
        self._look = look or (lambda key: None)
        self._again: deque[WorkItem] = deque()
        self._races: list[Race | None] = [None] * len(plan.cells)
        self._cells = {cell.cell: index for index, cell in enumerate(plan.cells)}
        seen = sorted(records, key=lambda record: record.started_at)
        for record in seen:
            self.learn(record)
        self._started = [0] * len(plan.cells)
        self._exhausted = [False] * len(plan.cells)
        self._proposers: list[Proposer] = []
        for index, cell in enumerate(plan.cells):
            if cell.configurations is not None:
                self._proposers.append(ListSearch(cell.configurations))
            else:
                tpe = self._build_tpe(cell, seen)
                self._started[index] = len(tpe.tries)
                self._proposers.append(tpe)
            if plan.racing is not None and cell.num_configurations > 1:
                self._races[index] = self._build_race(index, plan.racing, seen)

    def _build_tpe(self, cell: CellPlan, seen: Sequence[Record]) -> TpeSearch:
        known: dict[str, Configuration] = {}
        for record in seen:
            configuration = record.fold_run.configuration
            # Records of other notes or folds are of the same configuration, and of no use.
            if configuration.cell == cell.cell and record.key in self.fold_runs(configuration):
                known.setdefault(configuration.id, configuration)
        complete, incomplete = [], []
        for configuration in known.values():
            value = self.value(configuration)
            if value is None:
                incomplete.append(configuration)
            else:
                complete.append((configuration, value))
        return TpeSearch(cell, self.plan.seed, complete, incomplete)

    def _build_race(self, index: int, racing: Racing, seen: Sequence[Record]) -> Race:
        proposer = self._proposers[index]
        starters = math.inf if isinstance(proposer, ListSearch) else STARTERS
        race = Race(racing, self.plan.folds, proposer.propose, starters=starters)
        self._races[index] = race
        for record in seen:
            configuration = record.fold_run.configuration
            if self._race_of(record) is race and self.plan.cells[index].holds(configuration):
                race.enter(configuration)
                if not record.is_failed:  # it is tried again
                    self._tell_race(record)
        if isinstance(proposer, TpeSearch):
            proposer.take_up()
            for stop in race.stopped:
                proposer.tell_stopped(stop)
        return race

    def _race_of(self, record: Record) -> Race | None:
        """The race that a record is part of, if there is one and it is of these notes and folds."""
        configuration = record.fold_run.configuration
        index = self._cells.get(configuration.cell)
        race = None if index is None else self._races[index]
        return race if race is not None and record.key in self.fold_runs(configuration) else None

    def _tell_race(self, record: Record) -> None:
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
        """All of a configuration by ledger key, in the order of folds. Hashed once."""
        known = self._fold_runs.get(configuration)
        if known is None:
            runs = [fold_run(configuration, i, self._fingerprints) for i in range(self.plan.folds)]
            known = self._fold_runs[configuration] = {run.key: run for run in runs}
        return known

    def value(self, configuration: Configuration) -> float | None:
        """Mean validation F1 over all folds; None while one is missing."""
        keys = self.fold_runs(configuration)
        if not keys.keys() <= self.done.keys():
            return None
        return statistics.fmean(self.done[key] for key in keys)

    def learn(self, record: Record) -> None:
        """A fold-run has a record; a failed one stays missing, and one that pauses goes on in its race."""
        if record.is_done:
            self.done[record.key] = record.validation_f1
        self._tell_race(record)

    def next(
        self, lanes: int = 1, takes: Mapping[Cell, int] = MappingProxyType({})
    ) -> WorkItem | None:
        """The next trial; None when nothing is left to hand out, or in races nothing for now.

        Args:
            lanes: that are free for races.
            takes: lanes that a fold-run of a cell takes; one where nothing is said.
        """
        if self._again:
            return self._again.popleft()
        waiting: set[int] = set()
        while (cell := self._most_behind(waiting)) is not None:
            race = self._races[cell]
            if race is not None:
                each = takes.get(self.plan.cells[cell].cell, 1)
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
            runs = [
                run
                for run in self._missing(legs.configuration, legs.until)
                if not race.has_reached(legs.configuration, run.fold, legs.until[run.fold])
            ]
            if runs:
                until = {run.key: legs.until[run.fold] for run in runs}
                return WorkItem(cell, legs.configuration, tuple(runs), until)
        return None

    def _missing(
        self, configuration: Configuration, folds: Collection[int] | None = None
    ) -> Iterator[FoldRun]:
        """
        Args:
            folds: only of these; the others are not looked for.
        """
        for key, run in self.fold_runs(configuration).items():
            if key in self.done or (folds is not None and run.fold not in folds):
                continue
            record = self._look(key)
            if record is None:
                yield run
            else:
                self.learn(record)

    def _most_behind(self, waiting: Collection[int] = ()) -> int | None:
        """The cell of which the smallest share was started, the first of equals: of its configurations, or
        in a race of its epochs.

        Args:
            waiting: cells that have nothing to hand out for now.
        """
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
        """Whether a fold-run of a trial has come as far as it was to."""
        race = self._races[work.cell]
        until = work.until.get(run.key)
        if run.key in self.done or race is None or until is None:
            return run.key in self.done
        return race.has_reached(work.configuration, run.fold, until)

    def settle(self, work: WorkItem) -> None:
        """All fold-runs of a trial have a record: done, failed or, in a race, paused."""
        value = self.value(work.configuration)
        race = self._races[work.cell]
        if race is None or value is not None or race.has_failed(work.configuration):
            self._proposers[work.cell].tell(work.configuration, value)

    def take_stops(self) -> list[Stop]:
        """Configurations that races have stopped since this was last asked."""
        stops = []
        for race, proposer in zip(self._races, self._proposers, strict=True):
            for stop in race.take_stops() if race is not None else ():
                proposer.tell_stopped(stop)
                stops.append(stop)
        return stops

    @property
    def races(self) -> bool:
        """Whether configurations of any cell are raced."""
        return any(race is not None for race in self._races)

    @property
    def epochs(self) -> tuple[int, int]:
        """Of all races together: those that are done, and those that are at most to come."""
        each = [race.epochs for race in self._races if race is not None]
        return sum(done for done, _ in each), sum(left for _, left in each)

    def num_spared(self, cell: int) -> int:
        """Fold-runs of a cell that its race makes needless."""
        race = self._races[cell]
        return 0 if race is None else race.num_spared

    def close_cell(self, cell: int) -> None:
        """Hand out nothing more of it."""
        self._exhausted[cell] = True
        self._again = deque(work for work in self._again if work.cell != cell)

    def give_back(self, work: WorkItem) -> None:
        """Hand this out again, before anything new."""
        self._again.append(work)
