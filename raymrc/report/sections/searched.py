"""The search: heat maps over two settings, curves over each, and the configurations themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raymrc.analysis.findings import Findings
from raymrc.analysis.summary import CellSummary, ConfigurationSummary, differing, say_settings
from raymrc.quantities import points
from raymrc.report import figures
from raymrc.report.figures import Mark
from raymrc.report.parts import Plot, Section, Table
from raymrc.report.sections.naming import (
    ABOUT_INTERVALS,
    CELL_COLUMN,
    cell_names,
    curve_mark,
    curve_row,
    fold_interval,
    in_order,
    place_of,
    plus_minus,
    without_corpus,
)

MOST_CONFIGURATIONS = 20
"""Of a cell that are listed; the export has all."""
MOST_VALUES = 12
"""Of a setting along an axis; where a search drew more, its configurations are points."""


def search(findings: Findings) -> Section | None:
    """Heat maps over two settings, curves over each, and the configurations themselves."""
    searched = [s for s in findings.summaries if len(s.configurations) > 1 and s.leader]
    if not searched:
        return None
    done = [c for s in searched for c in s.configurations if c.strict.mean is not None]
    low, high = (100 * of(c.strict.mean or 0.0 for c in done) for of in (min, max))
    span = (max(0.0, low), high)
    names = cell_names(findings)
    plots = [plot for s in searched if (plot := _field_of(s, names[s.cell], span)) is not None]
    plots += _curves(findings, searched)
    tables = [*_luck(findings), *(_configurations(s, names[s.cell]) for s in searched)]
    lead = (
        "Strict F1 in points, mean over folds. Winners are chosen on validation notes, so the "
        "one with the best "
        "score here need not be it. " + ABOUT_INTERVALS,
    )
    folded = (
        "What choosing owes to luck, and the configurations of each cell, best on validation first"
    )
    return Section("search", "The search", lead, plots, tables, folded)


def _luck(findings: Findings) -> list[Table]:
    """What the winners' F1 owes to their having been chosen among several."""
    by_name = {summary.cell.name: summary for summary in findings.summaries}
    names, rows = cell_names(findings), []
    for winner in findings.conclusions.winners:
        of, summary = winner.selection, by_name[winner.cell]
        if of is None:
            continue
        tried = sum(one.is_complete for one in summary.configurations)
        values = (of.scored, of.optimism, of.corrected)
        rows.append((names[summary.cell], str(tried), *map(points, values)))
    if not rows:
        return []
    return [
        Table(
            "What the winners owe to having been chosen, in points",
            (CELL_COLUMN, "configurations", "strict F1", "owed to luck", "F1 without it"),
            "lrrrr",
            rows,
            "Chosen on all folds but one, each in turn: what the chosen one is further ahead of all "
            "configurations there than on the fold left out. Of one cell this is unsure by more than itself, "
            "and may be below 0: look at many.",
        )
    ]


def _varied(configurations: Sequence[ConfigurationSummary]) -> dict[str, list[Any]]:
    """Settings in which a cell's configurations differ, with their values, in the order of fields."""
    found = {}
    for name in differing(configurations):
        values = {
            _value_key(value): value
            for value in (getattr(c.configuration, name) for c in configurations)
        }
        found[name] = [values[key] for key in sorted(values)]
    return found


def _value_key(value: Any) -> tuple[bool, float, str]:
    """By which values of a setting are told apart and sorted: numbers before words."""
    is_number = isinstance(value, int | float)
    return not is_number, float(value) if is_number else 0.0, "" if is_number else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _word(name: str) -> str:
    return name.replace("_", " ")


def _field_of(summary: CellSummary, name: str, span: tuple[float, float]) -> Plot | None:
    """Over two settings; the second is the first whole number, where there is one, such as a length."""
    varied = {
        field: values
        for field, values in _varied(summary.configurations).items()
        if all(map(_is_number, values))
    }
    if len(varied) < 2:
        return None
    y, *others = varied
    x = next((f for f in others if all(isinstance(v, int) for v in varied[f])), others[0])
    places = {_place_of(one, y, x) for one in summary.configurations}
    is_sparse = 2 * len(places) < len(varied[x]) * len(varied[y])
    if is_sparse or max(len(varied[x]), len(varied[y])) > MOST_VALUES:
        return _points_of(summary, name, x, y, varied, span)
    # Of several at one place the one that is best on validation: they come in that order.
    best: dict[tuple[Any, Any], ConfigurationSummary] = {}
    for one in summary.configurations:
        best.setdefault(_place_of(one, y, x), one)
    cells = [[best.get((row, column)) for column in varied[x]] for row in varied[y]]
    texts = [[_heat_text(one, summary) for one in row] for row in cells]
    rows, columns = ([_short(v) for v in varied[f]] for f in (y, x))
    values = [
        [None if c is None or c.strict.mean is None else 100 * c.strict.mean for c in row]
        for row in cells
    ]
    return Plot(
        name,
        f"Strict F1 by {_word(y)} and {_word(x)}, with sd over folds. ★ marks the winner.",
        figures.heat(rows, columns, values, texts, _word(x), _word(y), value_range=span, says="F1"),
        130 + 44 * len(rows),
        Table(
            f"{name}: F1, sd, by {_word(y)} (down) and {_word(x)} (across)",
            (_word(y), *columns),
            "r" * (1 + len(columns)),
            [(row, *texts_of) for row, texts_of in zip(rows, texts, strict=True)],
        ),
        is_wide=False,
    )


def _place_of(one: ConfigurationSummary, y: str, x: str) -> tuple[Any, Any]:
    return getattr(one.configuration, y), getattr(one.configuration, x)


def _heat_text(one: ConfigurationSummary | None, summary: CellSummary) -> str:
    if one is None:
        return ""
    if one.strict.mean is None:
        return "stopped" if one.stopped else "failed" if one.failures else "-"
    star = "★ " if one is summary.winner else ""
    return star + plus_minus(one)


def _points_of(
    summary: CellSummary,
    name: str,
    x: str,
    y: str,
    varied: Mapping[str, Sequence[Any]],
    span: tuple[float, float],
) -> Plot | None:
    shown = [c for c in summary.configurations if c.strict.mean is not None]
    if len(shown) < 2:
        return None
    names = differing(summary.configurations)
    marks = [
        Mark(
            getattr(c.configuration, x), getattr(c.configuration, y),
            f"F1 {plus_minus(c)}\n{say_settings(c.configuration, names)}", ringed=c is summary.winner,
        )
        for c in shown
    ]  # fmt: skip
    values = [100 * (c.strict.mean or 0.0) for c in shown]
    log = tuple(varied[f][0] > 0 and varied[f][-1] / varied[f][0] > 8 for f in (x, y))
    return Plot(
        name,
        f"Strict F1 by {_word(x)} and {_word(y)}, a point a configuration; the winner is ringed. "
        "The figures are in "
        "the list of configurations.",
        figures.field(marks, values, _word(x), _word(y), (log[0], log[1]), span),
        340,
        is_wide=False,
    )


def _curves(findings: Findings, searched: Sequence[CellSummary]) -> list[Plot]:
    """Of each setting that has a few values: the best on validation at each value, a line a strategy."""
    groups: dict[tuple[str, str], dict[str, list[CellSummary]]] = {}
    for summary in searched:
        cell = summary.cell
        where = without_corpus(place_of(cell), cell.corpus, findings)
        varied = _varied(summary.configurations)
        for name, values in varied.items():
            # Drawn values are each of one configuration, which differs in all else, too.
            is_drawn = len(varied) > 1 and len(values) == len(summary.configurations)
            if len(values) <= MOST_VALUES and not is_drawn:
                groups.setdefault((name, where), {}).setdefault(cell.strategy, []).append(summary)
    plots = []
    for (name, where), by_strategy in groups.items():
        marks: dict[str, list[Mark]] = {}
        rows, there = [], dict[tuple[bool, float, str], Any]()
        for strategy, (summary, *_) in in_order(by_strategy).items():
            for value in _varied(summary.configurations)[name]:
                best = next(
                    (c for c in summary.configurations
                     if getattr(c.configuration, name) == value and c.folds), None
                )  # fmt: skip
                if best is None:
                    continue
                there[_value_key(value)] = value
                interval = fold_interval(best)
                at = value if _is_number(value) else str(value)
                text = f"{strategy}, {_word(name)} {_short(value)}"
                marks.setdefault(strategy, []).append(curve_mark(at, text, best, interval))
                rows.append((strategy, _short(value), *curve_row(best, interval)))
        values = [there[key] for key in sorted(there)]
        if len(values) < 2:
            continue
        numbers = [v for v in values if _is_number(v)]
        is_words = len(numbers) < len(values)
        if is_words:  # an axis of names, numbers among them
            marks = {s: [_named(m) for m in of] for s, of in marks.items()}
            values = [_short(v) if _is_number(v) else str(v) for v in values]
        plots.append(
            Plot(
                f"By {_word(name)}: {where}",
                f"Strict F1 by {_word(name)}, at each value of the configuration that is best on "
                "validation there, "
                "with 95 % intervals over folds.",
                figures.scatter(
                    marks, _word(name), "strict F1, points", lines=True, ticks=values,
                    log=not is_words and values[0] > 0 and values[-1] / values[0] > 8,
                ),
                380,
                Table(
                    f"By {_word(name)}: {where}",
                    ("strategy", _word(name), "strict F1", "sd", "95 % interval over folds"),
                    "lrrrr",
                    rows,
                ),
                is_wide=False,
            )
        )  # fmt: skip
    return plots


def _named(mark: Mark) -> Mark:
    at = mark.x if isinstance(mark.x, str) else _short(mark.x)
    return Mark(at, mark.y, mark.says, mark.low, mark.high, mark.size, mark.ringed)


def _configurations(summary: CellSummary, name: str) -> Table:
    shown = summary.configurations[:MOST_CONFIGURATIONS]
    names = differing(summary.configurations)
    left = len(summary.configurations) - len(shown)
    return Table(
        f"{name}: configurations, best on validation first",
        (
            "configuration",
            "validation F1",
            "strict F1",
            "sd",
            "lenient F1",
            "folds",
            "device s",
            "",
        ),
        "lrrrrrrl",
        [
            (
                say_settings(one.configuration, names),
                points(one.validation.mean),
                points(one.strict.mean),
                points(one.strict.sd),
                points(one.lenient.mean),
                f"{len(one.folds)} of {one.num_folds}",
                f"{one.device_seconds:,.0f}",
                _state(one, summary),
            )
            for one in shown
        ],
        f"{left} more are in the table of fold-runs: raymrc export." if left else "",
    )


def _state(one: ConfigurationSummary, summary: CellSummary) -> str:
    if one is summary.winner:
        return "winner"
    if one.stopped:
        return "stopped"
    return "failed" if one.failures else ""
