"""Shared by sections: intervals over folds, marks of plots, rows of curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from raymrc.analysis.conclusions import UNKNOWN_INTERVAL
from raymrc.analysis.findings import Findings
from raymrc.analysis.judging import over_folds
from raymrc.analysis.sentences import interval_text
from raymrc.analysis.statistics import Interval, TooFewError
from raymrc.analysis.summary import CellSummary, ConfigurationSummary, Spread
from raymrc.model.strategies import STRATEGIES
from raymrc.quantities import points
from raymrc.report.figures import Mark, in_points
from raymrc.report.table import Column, numbers

_T = TypeVar("_T")

ABOUT_INTERVALS = (
    "Intervals over folds are corrected for shared training notes; with few folds they are wide."
)


def won(findings: Findings) -> list[CellSummary]:
    return [summary for summary in findings.summaries if summary.winner is not None]


def fold_interval(configuration: ConfigurationSummary) -> Interval:
    try:
        return over_folds(configuration.fold_runs, configuration.fold_f1).interval()
    except TooFewError:
        return UNKNOWN_INTERVAL


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


def curve_mark(x: float | str, text: str, configuration: ConfigurationSummary) -> Mark:
    interval = fold_interval(configuration)
    says = f"{text}\nF1 {plus_minus(configuration)}, 95 % {interval_text(interval)}"
    mean = 100 * (configuration.strict.mean or 0.0)
    return Mark(x, mean, says, *in_points(interval), size=10)


def curve_columns() -> list[Column]:
    return [
        *numbers("strict F1", "sd", show=points),
        *numbers("95 % interval over folds", show=interval_text),
    ]


def curve_row(configuration: ConfigurationSummary) -> tuple[float | None, float | None, Interval]:
    return configuration.strict.mean, configuration.strict.sd, fold_interval(configuration)
