"""What commands print: sentences and tables, drawn with rich."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from raymrc.analysis.comparison import StudyComparison
from raymrc.analysis.findings import Findings
from raymrc.analysis.sentences import final_sentence, size_verdict
from raymrc.report import results
from raymrc.report.table import Table
from raymrc.report.verdict import study_verdict

if TYPE_CHECKING:
    from rich.console import RenderableType

MIN_HEADING_WIDTH = 8
"""A heading breaks into lines of at least this many characters."""

TerminalPart = Table | str | None


def render_findings(findings: Findings) -> RenderableType:
    """The verdict, its table, and the tables behind it."""
    summaries, found = findings.summaries, findings.conclusions
    verdict = study_verdict(findings).verdict
    parts: list[TerminalPart] = [verdict.headline, *verdict.details]
    if found.compared:
        parts += [results.gap_table(summaries, found), results.cost_table(summaries, found)]
    for fitted in found.by_size:
        parts += [results.size_table(fitted, found), str(size_verdict(fitted, found.margin))]
    parts += [
        results.winner_table(summaries, found),
        results.rising_sentence(summaries, found.margin) or None,
        results.kept_table(summaries),
        *results.counts_tables(summaries),
        *results.site_tables(summaries, found).values(),
        results.race_table(summaries),
    ]
    return render(parts)


def render_final(findings: Findings) -> RenderableType:
    table = results.final_table(findings.finals, findings.summaries)
    return render([table, *map(final_sentence, findings.final_gaps)])


def render_comparison(found: StudyComparison) -> RenderableType:
    parts: list[TerminalPart] = []
    if not found.both:
        parts.append("No cell is in both: task, corpus, backbone, strategy and shots differ.")
    for name, cells in ((found.first, found.only_first), (found.second, found.only_second)):
        if cells:
            parts.append(f"Only in {name}: {', '.join(cell.name for cell in cells)}")
    return render([*results.comparison_tables(found), *parts])


def render(parts: Iterable[TerminalPart]) -> RenderableType:
    """One below the other; empty parts are left out."""
    from rich.console import Group
    from rich.text import Text

    shown = (part for part in parts if part)
    return Group(*(Text(part) if isinstance(part, str) else _draw(part) for part in shown))


def _draw(table: Table) -> RenderableType:
    from rich import table as rich_table
    from rich.box import SIMPLE
    from rich.markup import escape

    drawn = rich_table.Table(
        title=escape(table.title),
        caption=escape(table.caption) or None,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    rows = [*table.cells, *([table.texts(table.total)] if table.total else [])]
    for place, column in enumerate(table.columns):
        lines = [line for row in rows for line in row[place].split("\n")]
        width = max([MIN_HEADING_WIDTH, *map(len, lines)])
        heading = textwrap.fill(column.heading, width, break_long_words=False)
        is_number = column.align == "right"
        justify: rich_table.JustifyMethod = "right" if is_number else "left"
        drawn.add_column(escape(heading), justify=justify, no_wrap=is_number, overflow="fold")
    for place, row in enumerate(rows):
        if place == len(table.rows):
            drawn.add_section()
        drawn.add_row(*map(escape, row))
    return drawn
