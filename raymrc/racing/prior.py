"""What earlier studies say of learning rates, for a race to begin with. Pure.

    records of other ledgers -> standings at each rung -> a parabola in the rate's logarithm -> expectations

What carries over from one corpus or backbone to another is where good rates lie, not how good they are; so
only differences within a cell are learnt from, and backbones of like size count most.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raymrc.configuration import Cell
from raymrc.corpora.note import Corpus
from raymrc.ledger.record import Record
from raymrc.racing.racing import Racing, without_far

# C configurations, F folds, R rungs

Array = NDArray[np.floating]

LIKE_SIZE = 0.5
"""Standard deviation, in decades of parameters, of the weight that a backbone of another size has."""

VAGUE = 4.0
"""Configurations' worth of doubt: with so many as evidence, half of `MOST_BELIEVED` is believed."""

MOST_BELIEVED = 0.5
"""Of what an earlier study says, however much there is. A race that believed all of it stopped who would have
won three times as often as stated where the best rate lay half a decade elsewhere."""

LEAST_RATES = 3
"""Different learning rates that a cell needs to say where good ones lie."""


@dataclass(frozen=True)
class Standings:
    """A cell of an earlier study.

    Args:
        rates: of its configurations, (C,).
        reached: mean over folds of the best validation F1 by each rung, (C, R), 0 to 1.
        weight: what it counts, 0 to 1.
    """

    rates: Array
    reached: Array
    weight: float = 1.0


@dataclass(frozen=True)
class RatePrior:
    """How a cell's learning rates are expected to stand to each other at each rung.

    Args:
        slopes, bends: of a parabola in log10 of the rate, less `centre`; by rung.
        low, high: log10 of the rates that were seen; beyond them the nearest is taken.
    """

    centre: float
    slopes: tuple[float, ...]
    bends: tuple[float, ...]
    low: float
    high: float

    def standings(self, learning_rate: float) -> tuple[float, ...]:
        """F1 above or below that at the centre, 0 to 1, by rung."""
        x = min(max(math.log10(learning_rate), self.low), self.high) - self.centre
        return tuple(s * x + b * x * x for s, b in zip(self.slopes, self.bends, strict=True))


def fit_prior(cells: Sequence[Standings]) -> RatePrior | None:
    """By weighted least squares, each cell with a level of its own; None where too few rates were tried."""
    cells = [cell for cell in cells if len(set(cell.rates.tolist())) >= LEAST_RATES]
    if not cells:
        return None
    logs = [np.log10(cell.rates) for cell in cells]
    every = np.concatenate(logs)
    centre = float(every.mean())
    weights = np.sqrt(np.concatenate([np.full(len(c.rates), c.weight) for c in cells]))
    terms, values = [], []
    for cell, log in zip(cells, logs, strict=True):
        x = np.stack([log - centre, (log - centre) ** 2], axis=1)
        terms.append(x - x.mean(0))
        values.append(cell.reached - cell.reached.mean(0))
    x, y = np.concatenate(terms) * weights[:, None], np.concatenate(values) * weights[:, None]
    found = np.linalg.lstsq(x, y, rcond=None)[0]
    # One that opens upwards says that the ends are best, which no optimiser has seen: then a line.
    line = (x[:, :1] * y).sum(0) / max(float((x[:, 0] ** 2).sum()), 1e-12)
    opens_down = found[1] <= 0
    slopes, bends = np.where(opens_down, found[0], line), np.where(opens_down, found[1], 0.0)
    evidence = float((weights**2).sum())
    believed = MOST_BELIEVED * evidence / (evidence + VAGUE)
    return RatePrior(
        centre,
        tuple((believed * slopes).tolist()),
        tuple((believed * bends).tolist()),
        float(every.min()),
        float(every.max()),
    )


def learn_rates(
    records: Iterable[Record], cell: Cell, parameters: float, racing: Racing
) -> RatePrior | None:
    """What other ledgers' full grids say of the learning rates of a cell.

    Args:
        records: of other studies; those of the same strategy count, whatever their notes.
        parameters: of the cell's backbone with what is trained beside it.

    Returns:
        None where no cell of this strategy was trained at three learning rates, all folds to their end.
    """
    cells = []
    for of, whole in full_grids(records):
        if of.strategy != cell.strategy:
            continue
        size = max(1, whole[0][0].total_parameters)
        apart = math.log10(size / max(1.0, parameters)) / LIKE_SIZE
        rates = [folds[0].fold_run.configuration.learning_rate for folds in whole]
        courses = [[course_of(record) for record in folds] for folds in whole]
        cells.append(stand(rates, courses, racing, math.exp(-0.5 * apart**2)))
    return fit_prior(cells)


def scored_earlier(records: Iterable[Record], name: str, corpus: Corpus) -> list[str]:
    """Ids of a corpus's notes that records of other studies have scored.

    Records know notes by their ids, and two hospitals number theirs alike: so it is a corpus of the same
    name, or most of the notes.

    Args:
        name: of the corpus, as cells call it.
    """
    own = {note.id for note in corpus.notes}
    by_name: dict[str, set[str]] = {}
    for record in records:
        scored = by_name.setdefault(record.fold_run.configuration.cell.corpus, set())
        scored |= own & record.notes.keys()
    return sorted(
        {
            note_id
            for of, scored in by_name.items()
            if of == name or 2 * len(scored) > len(own)
            for note_id in scored
        }
    )


def stand(
    rates: Sequence[float],
    courses: Sequence[Sequence[Sequence[float]]],
    racing: Racing,
    weight: float = 1.0,
) -> Standings:
    """Of a full grid.

    Args:
        courses: by configuration and fold, validation F1 of all epochs.
    """
    reached = np.array([[racing.reached(c, len(c)) for c in folds] for folds in courses])
    near = without_far(reached, np.ones(reached.shape, dtype=bool))
    return Standings(np.array(rates), near.mean(1), weight)


def course_of(record: Record) -> tuple[float, ...]:
    """Validation F1 of its epochs."""
    return tuple(epoch.validation_f1 for epoch in record.epochs)


def full_grids(
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
