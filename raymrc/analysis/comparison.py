"""Two studies' winners against each other: which cells are in both, and which differences are sure.

    findings of A and B -> cells in both -> paired on the same folds, or on the same notes -> Holm over all

Where both were scored on the same notes in the same folds, differences are taken fold by fold and tested as
frozen gaps are. On the same notes in other folds, models of one study have trained on what those of the other
are scored on: notes are resampled, which judges the models as trained. On other notes nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from raymrc.analysis.conclusions import UNKNOWN_INTERVAL
from raymrc.analysis.findings import Findings
from raymrc.analysis.judging import over_folds, over_notes
from raymrc.analysis.statistics import LEVEL, Comparison, Interval, TooFewError, holm
from raymrc.analysis.summary import CellSummary, ConfigurationSummary
from raymrc.configuration import Cell
from raymrc.quantities import points
from raymrc.study.space import Distribution, Fixed, Grid
from raymrc.study.spec import Spec

if TYPE_CHECKING:
    from rich.console import RenderableType

SAME_FOLDS, SAME_NOTES, OTHER_NOTES = "same folds", "same notes, other folds", "other notes"


@dataclass(frozen=True)
class CellComparison:
    """A cell's winner in A and in B.

    Args:
        paired: how the two can be set against each other; "" where one has no winner yet.
        difference: mean strict F1 of B minus that of A, -1 to 1; of pooled F1 on `SAME_NOTES`.
        interval: of it; open where nothing tells.
        p_value: Holm-adjusted over all cells; None but on `SAME_FOLDS`.
    """

    cell: Cell
    first: ConfigurationSummary | None
    second: ConfigurationSummary | None
    paired: str = ""
    difference: float | None = None
    interval: Interval = UNKNOWN_INTERVAL
    p_value: float | None = None

    @property
    def is_sure(self) -> bool:
        """Whether the two differ, at an error rate of 5 % over all cells."""
        return self.p_value is not None and self.p_value <= 1 - LEVEL

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
        only_first, only_second: cells that the other one lacks.
        settings: (field, A's, B's) of what their study files say differently.
    """

    first: str
    second: str
    both: tuple[CellComparison, ...]
    only_first: tuple[Cell, ...]
    only_second: tuple[Cell, ...]
    settings: tuple[tuple[str, str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values. F1 and differences run from 0 to 1."""
        return {
            "a": self.first,
            "b": self.second,
            "both": [one.to_json() for one in self.both],
            "only_a": [cell.name for cell in self.only_first],
            "only_b": [cell.name for cell in self.only_second],
            "settings": [{"field": f, "a": a, "b": b} for f, a, b in self.settings],
        }


def compare_studies(first: Findings, second: Findings) -> StudyComparison:
    """A and B, in the order of A's cells."""
    ours = {summary.cell: summary for summary in first.summaries}
    theirs = {summary.cell: summary for summary in second.summaries}
    both = [cell for cell in ours if cell in theirs]
    return StudyComparison(
        first=first.spec.study,
        second=second.spec.study,
        both=_compare_cells([(ours[cell], theirs[cell]) for cell in both]),
        only_first=tuple(cell for cell in ours if cell not in theirs),
        only_second=tuple(cell for cell in theirs if cell not in ours),
        settings=_differing(first.spec, second.spec),
    )


def _compare_cells(pairs: Sequence[tuple[CellSummary, CellSummary]]) -> tuple[CellComparison, ...]:
    found = [_compare_winners(*pair) for pair in pairs]
    tested = [place for place, (_, test) in enumerate(found) if test is not None]
    tests = [test for _, test in found if test is not None]
    adjusted = dict(zip(tested, holm([t.p_difference for t in tests]), strict=True))
    return tuple(replace(one, p_value=adjusted.get(place)) for place, (one, _) in enumerate(found))


def _compare_winners(
    first: CellSummary, second: CellSummary
) -> tuple[CellComparison, Comparison | None]:
    a, b, cell = first.winner, second.winner, first.cell
    if a is None or b is None:
        return CellComparison(cell, a, b), None
    notes_a, notes_b = ([frozenset(r.notes) for r in of.fold_runs] for of in (a, b))
    difference = (b.strict.mean or 0.0) - (a.strict.mean or 0.0)
    try:
        if notes_a == notes_b:
            steps = [y - x for x, y in zip(a.fold_f1, b.fold_f1, strict=True)]
            test = over_folds(b.fold_runs, steps)
            interval = test.interval()
            one = CellComparison(cell, a, b, SAME_FOLDS, difference, interval)
            return one, test if test.has_spread else None
        if frozenset().union(*notes_a) == frozenset().union(*notes_b):
            difference = b.pooled_strict.f1 - a.pooled_strict.f1
            interval = over_notes(b.fold_runs, a.fold_runs)
            return CellComparison(cell, a, b, SAME_NOTES, difference, interval), None
    except TooFewError:
        pass
    paired = SAME_FOLDS if notes_a == notes_b else OTHER_NOTES
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
    ours, theirs = dict(_flat("", first)), dict(_flat("", second))
    return tuple(
        (name, ours.get(name, "-"), theirs.get(name, "-"))
        for name in dict.fromkeys((*ours, *theirs))
        if ours.get(name) != theirs.get(name)
    )


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Fields by dotted name, as a study file writes them; what was not given is left out."""
    if isinstance(value, BaseModel):
        for field in type(value).model_fields:
            yield from _flat(f"{name}.{field}" if name else field, getattr(value, field))
    elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        for place, one in enumerate(value):
            yield from _flat(f"{name}[{place}]", one)
    elif isinstance(value, Fixed):
        yield name, str(value.value)
    elif isinstance(value, Grid):
        yield name, _listed(value.values)
    elif isinstance(value, Distribution):
        yield name, f"{value.kind} {_listed(value.values)}"
    elif value is not None:
        yield name, _listed(value) if isinstance(value, tuple) else str(value)


def _listed(values: Sequence[Any]) -> str:
    return f"[{', '.join(map(str, values))}]"


# --- shown ----------------------------------------------------------------------------------------


def render_comparison(found: StudyComparison) -> RenderableType:
    """As tables for the terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown: list[RenderableType] = []
    if found.both:
        table = Table(
            title=f"A: {found.first}, B: {found.second}; winners' strict F1 in points, cells of both",
            caption=_caption(found),
        )
        table.add_column("corpus / backbone / strategy", no_wrap=True)
        for heading in (
            "A", "B", "B - A", "95 % interval", "p", "A device s", "B device s", "A USD", "B USD",
        ):  # fmt: skip
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("paired by")
        for one in found.both:
            table.add_row(one.cell.name, *_row(one))
        shown.append(table)
    else:
        shown.append(Text("No cell is in both: task, corpus, backbone, strategy and shots differ."))
    for name, cells in ((found.first, found.only_first), (found.second, found.only_second)):
        if cells:
            shown.append(Text(f"\nonly in {name}: {', '.join(cell.name for cell in cells)}"))
    if found.settings:
        table = Table(title="What the study files say differently")
        for heading in ("field", found.first, found.second):
            table.add_column(heading, overflow="fold")
        for row in found.settings:
            table.add_row(*row)
        shown.append(table)
    return Group(*shown)


def _caption(found: StudyComparison) -> str | None:
    said = []
    ways = {one.paired for one in found.both}
    if SAME_FOLDS in ways:
        tested = sum(one.p_value is not None for one in found.both)
        said.append(
            "Same folds: corrected t-test over folds, p adjusted over "
            f"{tested} cell{'' if tested == 1 else 's'} (Holm)."
        )
    if SAME_NOTES in ways:
        said.append("Same notes: pooled F1, notes resampled; models as trained.")
    if OTHER_NOTES in ways:
        said.append("Other notes: nothing says whether a difference is of the notes.")
    return " ".join(said) or None


def _row(one: CellComparison) -> list[str]:
    sides = (one.first, one.second)
    low, high = one.interval.low, one.interval.high
    interval = "-" if low is None or high is None else f"{points(low)} to {points(high)}"
    return [
        *(points(side.strict.mean if side else None) for side in sides),
        points(one.difference),
        interval,
        "-" if one.p_value is None else f"{one.p_value:.2g}",
        *(f"{side.device_seconds:.0f}" if side else "-" for side in sides),
        *(f"{side.cost_usd:.4f}" if side else "-" for side in sides),
        one.paired or "no winner yet",
    ]
