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


def print_findings(findings: Findings) -> None:
    """The verdict and the tables behind it."""
    from raymrc.report.terminal import render_findings

    print_table(render_findings(findings))


def print_final(findings: Findings) -> None:
    """The final test's scores, if there are any."""
    from raymrc.report.terminal import render_final

    if findings.finals:
        print_table(render_final(findings))
