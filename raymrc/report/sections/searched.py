"""The search: heat maps over two settings, curves over each, and the configurations themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raymrc.analysis.findings import Findings
from raymrc.analysis.summary import (
    CellSummary,
    ConfigurationSummary,
    differing,
    settings_text,
    short_value,
)
from raymrc.quantities import points
from raymrc.report import figures
from raymrc.report.figures import Mark
from raymrc.report.parts import PageSection, Plot
from raymrc.report.results import CELL_COLUMN, cell_names, show_seconds, without_corpus
from raymrc.report.sections.marks import ABOUT_INTERVALS, F1_AXIS, F1Curves, in_order, plus_minus
from raymrc.report.table import Table, numbers, words

MAX_CONFIGURATIONS = 20
"""Listed per cell; the export has all."""

MAX_AXIS_VALUES = 12
"""With more values of a setting, a search is drawn as points instead of a heat map or a curve."""


def search(findings: Findings) -> PageSection | None:
    searched = [s for s in findings.summaries if len(s.configurations) > 1 and s.leader]
    if not searched:
        return None
    done = [c for s in searched for c in s.configurations if c.strict.mean is not None]
    f1 = [100 * (c.strict.mean or 0.0) for c in done]
    span = (min(f1), max(f1))
    names = cell_names(findings.summaries)
    plots = [plot for s in searched if (plot := _field_of(s, names[s.cell], span)) is not None]
    plots += _curves(findings, searched)
    tables = [*_luck(findings), *(_configurations(s, names[s.cell]) for s in searched)]
    lead = (
        "Strict F1 in points, mean over folds. Winners are chosen on validation notes, so a winner need not "
        f"have the best score here. {ABOUT_INTERVALS}",
    )
    folded = "Luck of the choice, and each cell's configurations, best on validation first"
    return PageSection("search", "The search", lead, plots, tables, folded)


def _luck(findings: Findings) -> list[Table]:
    by_name = {summary.cell.name: summary for summary in findings.summaries}
    names, rows = cell_names(findings.summaries), []
    for winner in findings.conclusions.winners:
        found, summary = winner.selection, by_name[winner.cell]
        if found is not None:
            tried = sum(c.is_complete for c in summary.configurations)
            rows.append((names[summary.cell], tried, found.scored, found.optimism, found.corrected))
    columns = [
        *CELL_COLUMN,
        *numbers("configurations"),
        *numbers("strict F1", "luck", "F1 without luck", show=points),
    ]
    caption = (
        "The choice is repeated without each fold in turn; luck is the chosen configuration's lead on the "
        "other folds that it does not have on the fold left out. For one cell this estimate is noisier than "
        "the luck itself and may be negative; look at many cells."
    )
    title = "Luck in the winners' F1 from choosing the best, in points"
    return [Table(title, columns, rows, caption)] if rows else []


def _varied(configurations: Sequence[ConfigurationSummary]) -> dict[str, list[Any]]:
    """Settings in which a cell's configurations differ, with their values, in the order of fields."""
    return {
        name: _distinct(_setting(c, name) for c in configurations)
        for name in differing(configurations)
    }


def _setting(summary: ConfigurationSummary, name: str) -> Any:
    return getattr(summary.configuration, name)


def _distinct(values: Iterable[Any]) -> list[Any]:
    found = {_value_key(value): value for value in values}
    return [found[key] for key in sorted(found)]


def _value_key(value: Any) -> tuple[bool, float, str]:
    """Identifies and sorts a setting's values: numbers before words."""
    is_number = _is_number(value)
    return not is_number, float(value) if is_number else 0.0, "" if is_number else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _spans_decades(values: Sequence[float]) -> bool:
    """Whether ascending values need a logarithmic axis."""
    return values[0] > 0 and values[-1] / values[0] > 8


def _word(name: str) -> str:
    return name.replace("_", " ")


def _field_of(summary: CellSummary, name: str, span: tuple[float, float]) -> Plot | None:
    """F1 over two settings, as a heat map or as points; the second is the first integer one, if any."""
    varied = {
        field: values
        for field, values in _varied(summary.configurations).items()
        if all(map(_is_number, values))
    }
    if len(varied) < 2:
        return None
    y, *others = varied
    x = next((f for f in others if all(isinstance(v, int) for v in varied[f])), others[0])
    # Configurations come best on validation first; at each place the first one counts.
    best: dict[tuple[Any, Any], ConfigurationSummary] = {}
    for configuration in summary.configurations:
        place = _setting(configuration, y), _setting(configuration, x)
        best.setdefault(place, configuration)
    is_sparse = 2 * len(best) < len(varied[x]) * len(varied[y])
    if is_sparse or max(len(varied[x]), len(varied[y])) > MAX_AXIS_VALUES:
        return _points_of(summary, name, x, y, varied, span)
    cells = [[best.get((row, column)) for column in varied[x]] for row in varied[y]]
    texts = [[_heat_text(configuration, summary) for configuration in row] for row in cells]
    rows, columns = ([short_value(v) for v in varied[f]] for f in (y, x))
    values = [
        [None if c is None or c.strict.mean is None else 100 * c.strict.mean for c in row]
        for row in cells
    ]
    return Plot(
        name,
        f"Strict F1 by {_word(y)} and {_word(x)}, with sd over folds. ★ marks the winner.",
        figures.heat(
            rows, columns, values, texts, _word(x), _word(y), value_range=span, measure="F1"
        ),
        130 + 44 * len(rows),
        Table(
            f"{name}: F1, sd, by {_word(y)} (down) and {_word(x)} (across)",
            numbers(_word(y), *columns),
            [(row, *line) for row, line in zip(rows, texts, strict=True)],
        ),
        is_wide=False,
    )


def _heat_text(configuration: ConfigurationSummary | None, summary: CellSummary) -> str:
    if configuration is None:
        return ""
    if configuration.strict.mean is None:
        return _state(configuration, summary) or "-"
    star = "★ " if configuration is summary.winner else ""
    return star + plus_minus(configuration)


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
            _setting(c, x), _setting(c, y),
            f"F1 {plus_minus(c)}\n{settings_text(c.configuration, names)}", ringed=c is summary.winner,
        )
        for c in shown
    ]  # fmt: skip
    values = [100 * (c.strict.mean or 0.0) for c in shown]
    log = (_spans_decades(varied[x]), _spans_decades(varied[y]))
    return Plot(
        name,
        f"Strict F1 by {_word(x)} and {_word(y)}, one point per configuration; the winner is ringed. The "
        "list of configurations has the numbers.",
        figures.field(marks, values, _word(x), _word(y), log, span),
        340,
        is_wide=False,
    )


def _curves(findings: Findings, searched: Sequence[CellSummary]) -> list[Plot]:
    """One plot per setting with few values: the best on validation at each value, one line per strategy."""
    groups: dict[tuple[str, str], dict[str, list[CellSummary]]] = {}
    for summary in searched:
        cell = summary.cell
        place = cell.name.replace(f"/{cell.strategy}", "", 1)
        where = without_corpus(place, cell.corpus, findings.summaries)
        varied = _varied(summary.configurations)
        for name, values in varied.items():
            # A drawn value belongs to a single configuration, which differs in its other settings too.
            is_drawn = len(varied) > 1 and len(values) == len(summary.configurations)
            if len(values) <= MAX_AXIS_VALUES and not is_drawn:
                groups.setdefault((name, where), {}).setdefault(cell.strategy, []).append(summary)
    plots = []
    for (name, where), by_strategy in groups.items():
        best: list[tuple[str, Any, ConfigurationSummary]] = []
        for strategy, (summary, *_) in in_order(by_strategy).items():
            for value in _varied(summary.configurations)[name]:
                at_value = (c for c in summary.configurations if _setting(c, name) == value)
                best += [(strategy, value, c) for c in at_value if c.folds][:1]
        values = _distinct(value for _, value, _ in best)
        if len(values) < 2:
            continue
        is_category = not all(map(_is_number, values))
        word, curves = _word(name), F1Curves()
        for strategy, value, configuration in best:
            shown = short_value(value)
            x = shown if is_category else value
            curves.add(strategy, x, f"{word} {shown}", configuration, (shown,))
        title = f"By {word}: {where}"
        plots.append(
            Plot(
                title,
                f"Strict F1 by {word}: at each value the configuration that is best on validation, with "
                "95 % intervals over folds.",
                figures.scatter(
                    curves.marks, word, F1_AXIS, lines=True,
                    ticks=list(map(short_value, values)) if is_category else values,
                    log=not is_category and _spans_decades(values),
                ),
                380,
                curves.table(title, numbers(word)),
                is_wide=False,
            )
        )  # fmt: skip
    return plots


def _configurations(summary: CellSummary, name: str) -> Table:
    shown = summary.configurations[:MAX_CONFIGURATIONS]
    names = differing(summary.configurations)
    left = len(summary.configurations) - len(shown)
    rows = []
    for c in shown:
        f1 = (c.validation.mean, c.strict.mean, c.strict.sd, c.lenient.mean)
        progress = (f"{len(c.folds)} of {c.num_folds}", c.device_seconds, _state(c, summary))
        rows.append((settings_text(c.configuration, names), *f1, *progress))
    return Table(
        f"{name}: configurations, best on validation first",
        [
            *words("configuration"),
            *numbers("validation F1", "strict F1", "sd", "lenient F1", show=points),
            *numbers("folds"),
            *numbers("device time", unit="s", show=show_seconds),
            *words(""),
        ],
        rows,
        f"'raymrc export' writes the other {left}." if left else "",
    )


def _state(configuration: ConfigurationSummary, summary: CellSummary) -> str:
    if configuration is summary.winner:
        return "winner"
    if configuration.stopped:
        return "stopped"
    return "failed" if configuration.failures else ""
