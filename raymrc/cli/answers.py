"""What a study's ledger says: drawn up from what is at hand, and printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from raymrc.cli.app import print_table
from raymrc.cli.local import known_at_hand, load_study, read_ledger

if TYPE_CHECKING:
    from raymrc.analysis.findings import Findings


def read_findings(study: Path, changes: list[str] | None) -> tuple[Findings, bool]:
    """A study's findings, and whether there are records that cannot be read; those are said."""
    spec = load_study(study, changes)
    records, unreadable = read_ledger(spec)
    return known_at_hand(spec).find(spec, records), unreadable


def print_cells(findings: Findings) -> None:
    """Each cell's winner, and how sure that is."""
    from raymrc.analysis.conclusions import render_conclusions as render_conclusions
    from raymrc.analysis.summary import render_summaries

    print_table(render_summaries(findings.summaries))
    if findings.conclusions.winners:
        print_table(render_conclusions(findings.conclusions))


def print_final(findings: Findings) -> None:
    """The final test's scores, where there are any."""
    from raymrc.analysis.final import render_final

    if findings.finals:
        validated = {s.cell: s.winner.strict.mean if s.winner else None for s in findings.summaries}
        print_table(render_final(findings.finals, validated, findings.final_gaps))
