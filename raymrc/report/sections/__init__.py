"""The page's sections: findings -> sections of plots and tables. A section with nothing to show is left out.

Numbers are computed in `analysis`; a section chooses, names and orders them. Enter at `build_sections`.
"""

from __future__ import annotations

from collections.abc import Callable

from raymrc.analysis.findings import Findings
from raymrc.report.parts import PageSection
from raymrc.report.sections import compared, details, searched
from raymrc.report.sections.facts import build_facts

__all__ = ["build_facts", "build_sections"]

SECTIONS: tuple[Callable[[Findings], PageSection | None], ...] = (
    compared.winner_section,
    compared.learning,
    compared.gaps,
    compared.size_section,
    compared.few_examples,
    compared.other_sites,
    searched.search,
    details.by_label,
    details.events_and_subsets,
    details.trained_and_kept,
    details.final_test,
    details.stopped_early,
    details.failures,
    details.how_to_repeat,
)
"""In the order of the page."""


def build_sections(findings: Findings) -> tuple[PageSection, ...]:
    return tuple(filter(None, (build(findings) for build in SECTIONS)))
