"""What sections share: how cells are named, advice is worded, and intervals are found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from raymrc.analysis.conclusions import (
    AHEAD,
    BEHIND,
    EQUIVALENT,
    UNKNOWN_INTERVAL,
    Conclusion,
    Judgement,
    ends,
)
from raymrc.analysis.findings import Findings
from raymrc.analysis.judging import over_folds
from raymrc.analysis.statistics import Interval, TooFewError
from raymrc.analysis.summary import CellSummary, ConfigurationSummary, describe_configuration
from raymrc.configuration import Cell
from raymrc.model.strategies import STRATEGIES
from raymrc.quantities import points
from raymrc.report.figures import Mark, in_points

_T = TypeVar("_T")

CELL_COLUMN = "cell"
"""Heads the names of cells in tables."""

FREEZE, TRAIN, UNSURE = "freeze", "train the backbone", "not enough data"
ADVICE = {EQUIVALENT: FREEZE, AHEAD: FREEZE, BEHIND: TRAIN}

ABOUT_INTERVALS = (
    "Intervals over folds are corrected for the training notes that folds share; with few folds they are "
    "wide."
)


def won(findings: Findings) -> list[CellSummary]:
    return [summary for summary in findings.summaries if summary.winner is not None]


def winner_of(summary: CellSummary) -> ConfigurationSummary:
    assert summary.winner is not None
    return summary.winner


def backbone_size(one: ConfigurationSummary) -> int:
    return one.total_parameters - one.trained_parameters or one.total_parameters


def has_events(findings: Findings) -> bool:
    return any(s.leader and s.leader.labels_events for s in findings.summaries)


def note_intervals(findings: Findings) -> dict[str, Interval]:
    return {winner.cell: winner.interval for winner in findings.conclusions.winners}


def fold_interval(one: ConfigurationSummary) -> Interval:
    try:
        return over_folds(one.fold_runs, one.fold_f1).interval()
    except TooFewError:
        return UNKNOWN_INTERVAL


def settings_of(one: ConfigurationSummary, summary: CellSummary) -> str:
    return describe_configuration(one.configuration, summary.configurations)


def plus_minus(one: ConfigurationSummary) -> str:
    sd = one.strict.sd
    mean = 100 * (one.strict.mean or 0.0)
    return f"{mean:.1f}" if sd is None else f"{mean:.1f} ± {100 * sd:.1f}"


def place_of(cell: Cell) -> str:
    shots = f"/{cell.shots} {cell.shots_of}" if cell.shots is not None else ""
    return f"{cell.corpus}/{cell.backbone.name}{shots}"


def shown_gap_name(one: Conclusion, findings: Findings) -> str:
    return without_corpus(one.gap.name, one.gap.corpus, findings)


def cell_names(findings: Findings) -> dict[Cell, str]:
    return {
        summary.cell: without_corpus(summary.cell.name, summary.cell.corpus, findings)
        for summary in findings.summaries
    }


def without_corpus(name: str, corpus: str, findings: Findings) -> str:
    """A cell's or gap's name by what tells it apart: a corpus that is the only one is left out."""
    alone = len({summary.cell.corpus for summary in findings.summaries}) == 1
    return name.removeprefix(f"{corpus}/") if alone else name


def in_order(by_strategy: Mapping[str, _T]) -> dict[str, _T]:
    """As the table of strategies has them, others last."""
    known = [name for name in STRATEGIES if name in by_strategy]
    return {name: by_strategy[name] for name in dict.fromkeys((*known, *by_strategy))}


def curve_mark(at: float | str, text: str, one: ConfigurationSummary, interval: Interval) -> Mark:
    said = f"{text}\nF1 {plus_minus(one)}, 95 % {ends(interval)}"
    return Mark(at, 100 * (one.strict.mean or 0.0), said, *in_points(interval), size=10)


def curve_row(one: ConfigurationSummary, interval: Interval) -> tuple[str, ...]:
    return points(one.strict.mean), points(one.strict.sd), ends(interval)


def advice_of(judged: Judgement) -> str:
    return ADVICE.get(judged.outcome, UNSURE)
