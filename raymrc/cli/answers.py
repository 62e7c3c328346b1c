"""Tables of a study's findings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymrc.cli.app import print_table

if TYPE_CHECKING:
    from raymrc.analysis.findings import Findings


def print_findings(findings: Findings) -> None:
    """The verdict and the tables behind it."""
    from raymrc.report.terminal import render_findings

    print_table(render_findings(findings))


def print_final(findings: Findings) -> None:
    """The final test's scores, if there are any."""
    from raymrc.report.terminal import render_final

    if findings.finals:
        print_table(render_final(findings))
