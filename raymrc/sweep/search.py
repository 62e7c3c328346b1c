"""What to train next, over all cells of a study. No Ray here: it proposes and is told.

plan + records -> StudySearch.next() -> Work -> (trained elsewhere) -> StudySearch.settle()
"""

from __future__ import annotations

import random
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from raymrc.study.configuration import Configuration, FoldRun, hash_values
from raymrc.study.plan import CellPlan, Plan, build_configuration, fold_run
from raymrc.study.record import Record

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

SAME_AGAIN = 20
"""After so many proposals in a row that were made before, TPE's space is nearly used up."""


@dataclass(frozen=True, slots=True)
class Work:
    """One trial: the fold-runs of a configuration that the ledger lacks.

    Args:
        cell: index into the plan's cells.
    """

    cell: int
    configuration: Configuration
    fold_runs: tuple[FoldRun, ...]


class Proposer(Protocol):
    """Chooses the configurations of one cell."""

    def propose(self) -> Configuration | None:
        """The next one; None when all have been proposed."""
        ...

    def tell(self, configuration: Configuration, value: float | None) -> None:
        """A proposed one is settled: mean validation F1 over all its folds; None if one failed."""
        ...


class ListSearch:
    """Grid and random: the plan has written the configurations down."""

    def __init__(self, configurations: Iterable[Configuration]) -> None:
        self._left = iter(configurations)

    def propose(self) -> Configuration | None:
        return next(self._left, None)

    def tell(self, configuration: Configuration, value: float | None) -> None:
        """The list stands, whatever comes out."""


@dataclass(slots=True)
class _Try:
    """A proposal of TPE: its point, and its worth once that is known."""

    params: Mapping[str, Any]
    value: float | None = None
    settled: bool = False


class TpeSearch:
    """Optuna's TPE over one cell, told only of configurations whose folds are all done.

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

    def tell(self, configuration: Configuration, value: float | None) -> None:
        known = self.tries[configuration.id]
        known.value, known.settled = value, True

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
                    state=optuna.trial.TrialState[
                        "COMPLETE" if known.value is not None else "RUNNING"
                    ],
                    params=dict(known.params),
                    distributions=self.distributions,
                    value=known.value,
                )
                for known in self.tries.values()
                if known.value is not None or not known.settled
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
        self._again: deque[Work] = deque()
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
        """A fold-run has a record; a failed one stays missing."""
        if record.status == "done":
            self.done[record.key] = record.validation_f1

    def next(self) -> Work | None:
        """The next trial; None when nothing is left to hand out."""
        if self._again:
            return self._again.popleft()
        while (cell := self._most_behind()) is not None:
            configuration = self._proposers[cell].propose()
            if configuration is None:
                self._exhausted[cell] = True
                continue
            self._started[cell] += 1
            work = Work(cell, configuration, tuple(self._missing(configuration)))
            if work.fold_runs:
                return work
            self.settle(work)
        return None

    def _missing(self, configuration: Configuration) -> Iterator[FoldRun]:
        for key, run in self.fold_runs(configuration).items():
            if key in self.done:
                continue
            record = self._look(key)
            if record is None:
                yield run
            else:
                self.learn(record)

    def _most_behind(self) -> int | None:
        """The cell with the smallest share of its configurations started, the first of equals."""
        shares = [
            (started / max(cell.num_configurations, 1), index)
            for index, (started, cell) in enumerate(
                zip(self._started, self.plan.cells, strict=True)
            )
            if not self._exhausted[index]
        ]
        return min(shares)[1] if shares else None

    def settle(self, work: Work) -> None:
        """All fold-runs of a trial have a record, done or failed."""
        self._proposers[work.cell].tell(work.configuration, self.value(work.configuration))

    def close_cell(self, cell: int) -> None:
        """Hand out nothing more of it."""
        self._exhausted[cell] = True
        self._again = deque(work for work in self._again if work.cell != cell)

    def give_back(self, work: Work) -> None:
        """Hand this out again, before anything new."""
        self._again.append(work)
