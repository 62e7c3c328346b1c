"""What a page says: findings -> sections of plots and tables. Whatever has nothing to show is left out.

Nothing is reckoned here that `study` has not: figures are chosen, named and put in order.
"""

from __future__ import annotations

from collections.abc import Callable

from raymrc.analysis.findings import Findings
from raymrc.report.parts import Section
from raymrc.report.sections import (
    compared,
    searched,
)
from raymrc.report.sections import (
    details as told,
)
from raymrc.report.sections.facts import build_facts

__all__ = ["build_facts", "build_sections"]

SECTIONS: tuple[Callable[[Findings], Section | None], ...] = (
    compared.winners,
    compared.gaps,
    compared.size_section,
    compared.few_examples,
    compared.other_sites,
    searched.search,
    told.by_label,
    told.events_and_subsets,
    told.trained_and_kept,
    told.final_test,
    told.stopped_early,
    told.failures,
    told.how_to_repeat,
)
"""In the order of the page."""


def build_sections(findings: Findings) -> tuple[Section, ...]:
    found = (make(findings) for make in SECTIONS)
    return tuple(section for section in found if section is not None)
