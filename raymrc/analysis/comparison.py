"""Compares two studies' winners, cell by cell.

    findings of A and B -> cells in both -> paired on the same folds, or on the same notes -> Holm over all

On the same folds, differences are taken fold by fold and tested like gaps. On the same notes in other folds,
one study's models trained on notes that the other's are scored on: then notes are resampled with the models
fixed. On other notes nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from raymrc.analysis.conclusions import UNKNOWN_INTERVAL
from raymrc.analysis.findings import Findings
from raymrc.analysis.judging import over_folds, over_notes
from raymrc.analysis.statistics import Comparison, Interval, TooFewError, holm
from raymrc.analysis.summary import CellSummary, ConfigurationSummary
from raymrc.configuration import Cell
from raymrc.study.flat import flatten
from raymrc.study.spec import Spec

SAME_FOLDS, SAME_NOTES, OTHER_NOTES = "same folds", "same notes, other folds", "other notes"


@dataclass(frozen=True)
class CellComparison:
    """A cell's winner in A and in B.

    Args:
        paired: `SAME_FOLDS`, `SAME_NOTES` or `OTHER_NOTES`; "" if a study has no winner yet.
        difference: strict F1 of B minus that of A, -1 to 1: mean over folds, or pooled on `SAME_NOTES`.
        interval: of the difference; open where it cannot be estimated.
        p_value: Holm-adjusted over all cells; only on `SAME_FOLDS`.
    """

    cell: Cell
    first: ConfigurationSummary | None
    second: ConfigurationSummary | None
    paired: str = ""
    difference: float | None = None
    interval: Interval = UNKNOWN_INTERVAL
    p_value: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "cell": self.cell.name,
            "a": _side(self.first),
            "b": _side(self.second),
            "paired": self.paired or None,
            "difference": self.difference,
            "interval": asdict(self.interval),
            "p_value": self.p_value,
        }


@dataclass(frozen=True)
class StudyComparison:
    """
    Args:
        first, second: names of the studies, A and B.
        only_first, only_second: cells that the other study lacks.
        settings: (field, A's value, B's value) where the study files differ.
    """

    first: str
    second: str
    both: tuple[CellComparison, ...]
    only_first: tuple[Cell, ...]
    only_second: tuple[Cell, ...]
    settings: tuple[tuple[str, str, str], ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "a": self.first,
            "b": self.second,
            "both": [comparison.to_json() for comparison in self.both],
            "only_a": [cell.name for cell in self.only_first],
            "only_b": [cell.name for cell in self.only_second],
            "settings": [{"field": f, "a": a, "b": b} for f, a, b in self.settings],
        }


def compare_studies(first: Findings, second: Findings) -> StudyComparison:
    """Cells in the order of A's."""
    first_cells = {summary.cell: summary for summary in first.summaries}
    second_cells = {summary.cell: summary for summary in second.summaries}
    both = [cell for cell in first_cells if cell in second_cells]
    return StudyComparison(
        first=first.spec.study,
        second=second.spec.study,
        both=_compare_cells([(first_cells[cell], second_cells[cell]) for cell in both]),
        only_first=tuple(cell for cell in first_cells if cell not in second_cells),
        only_second=tuple(cell for cell in second_cells if cell not in first_cells),
        settings=_differing(first.spec, second.spec),
    )


def _compare_cells(pairs: Sequence[tuple[CellSummary, CellSummary]]) -> tuple[CellComparison, ...]:
    found = [_compare_winners(*pair) for pair in pairs]
    tests = {place: test for place, (_, test) in enumerate(found) if test is not None}
    p_values = holm([test.p_difference for test in tests.values()])
    adjusted = dict(zip(tests, p_values, strict=True))
    return tuple(
        replace(comparison, p_value=adjusted.get(place))
        for place, (comparison, _) in enumerate(found)
    )


def _compare_winners(
    first: CellSummary, second: CellSummary
) -> tuple[CellComparison, Comparison | None]:
    a, b, cell = first.winner, second.winner, first.cell
    if a is None or b is None:
        return CellComparison(cell, a, b), None
    notes_a, notes_b = ([frozenset(r.notes) for r in w.fold_runs] for w in (a, b))
    difference = (b.strict.mean or 0.0) - (a.strict.mean or 0.0)
    paired = SAME_FOLDS if notes_a == notes_b else OTHER_NOTES
    with suppress(TooFewError):
        if paired == SAME_FOLDS:
            steps = [y - x for x, y in zip(a.fold_f1, b.fold_f1, strict=True)]
            test = over_folds(b.fold_runs, steps)
            comparison = CellComparison(cell, a, b, paired, difference, test.interval())
            return comparison, test if test.has_spread else None
        if frozenset().union(*notes_a) == frozenset().union(*notes_b):
            difference = b.pooled_strict.f1 - a.pooled_strict.f1
            interval = over_notes(b.fold_runs, a.fold_runs)
            return CellComparison(cell, a, b, SAME_NOTES, difference, interval), None
    return CellComparison(cell, a, b, paired, difference), None


def _side(winner: ConfigurationSummary | None) -> dict[str, Any] | None:
    if winner is None:
        return None
    return {
        "configuration": winner.configuration.id,
        "strict_f1": asdict(winner.strict),
        "lenient_f1": asdict(winner.lenient),
        "device_seconds": winner.device_seconds,
        "cost_usd": winner.cost_usd,
        "adapter_bytes": winner.adapter_bytes,
    }


def _differing(first: Spec, second: Spec) -> tuple[tuple[str, str, str], ...]:
    first_fields, second_fields = dict(flatten(first)), dict(flatten(second))
    return tuple(
        (name, first_fields.get(name, "-"), second_fields.get(name, "-"))
        for name in dict.fromkeys((*first_fields, *second_fields))
        if first_fields.get(name) != second_fields.get(name)
    )
