"""Shared by sections: intervals over folds, marks of plots, curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from raymrc.analysis.conclusions import UNKNOWN_INTERVAL
from raymrc.analysis.judging import over_folds
from raymrc.analysis.sentences import interval_text
from raymrc.analysis.statistics import TooFewError
from raymrc.analysis.summary import ConfigurationSummary, Spread
from raymrc.model.strategies import STRATEGIES
from raymrc.quantities import points
from raymrc.report.figures import Mark, in_points
from raymrc.report.table import Column, Table, numbers, words

_T = TypeVar("_T")

F1_AXIS = "strict F1, points"

ABOUT_INTERVALS = (
    "Intervals over folds are corrected for shared training notes; with few folds they are wide."
)


def plus_minus(configuration: ConfigurationSummary) -> str:
    """Strict F1 in points, such as "81.2 ± 0.9"."""
    mean, sd = 100 * (configuration.strict.mean or 0.0), configuration.strict.sd
    return f"{mean:.1f}" if sd is None else f"{mean:.1f} ± {100 * sd:.1f}"


def spread_mark(spread: Spread, text: str, *, x: float | None = None, y: str = "") -> Mark:
    """F1 in points with its sd: up the y axis at `x`, or along the x axis at the name `y`."""
    f1, sd = 100 * (spread.mean or 0.0), 100 * (spread.sd or 0.0)
    low, high = (f1 - sd, f1 + sd) if sd else (None, None)
    return Mark(f1, y, text, low, high) if x is None else Mark(x, f1, text, low, high)


def in_order(by_strategy: Mapping[str, _T]) -> dict[str, _T]:
    """In the order of the table of strategies, unknown ones last."""
    known = [name for name in STRATEGIES if name in by_strategy]
    return {name: by_strategy[name] for name in dict.fromkeys((*known, *by_strategy))}


@dataclass
class F1Curves:
    """Strict F1 of configurations, with intervals over folds: the marks of a plot, and its table's rows."""

    marks: dict[str, list[Mark]] = field(default_factory=dict)
    rows: list[Sequence[Any]] = field(default_factory=list)

    def add(
        self,
        strategy: str,
        x: float | str,
        text: str,
        configuration: ConfigurationSummary,
        before: Sequence[Any],
        after: Sequence[Any] = (),
    ) -> None:
        """
        Args:
            before, after: the row's values on either side of F1; the strategy comes first.
        """
        strict, interval = configuration.strict, UNKNOWN_INTERVAL
        with suppress(TooFewError):
            interval = over_folds(configuration.fold_runs, configuration.fold_f1).interval()
        f1 = f"F1 {plus_minus(configuration)}, 95 % {interval_text(interval)}"
        hover, ends = f"{strategy}, {text}\n{f1}", in_points(interval)
        mark = Mark(x, 100 * (strict.mean or 0.0), hover, *ends, size=10)
        self.marks.setdefault(strategy, []).append(mark)
        self.rows.append((strategy, *before, strict.mean, strict.sd, interval, *after))

    def table(self, title: str, before: Iterable[Column], after: Iterable[Column] = ()) -> Table:
        f1 = numbers("strict F1", "sd", show=points)
        f1 += numbers("95 % interval over folds", show=interval_text)
        return Table(title, [*words("strategy"), *before, *f1, *after], self.rows)
