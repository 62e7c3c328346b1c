"""Parts of a page, as plain values: sections, plots and facts. `page.html` lays them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from raymrc.report.table import Table


@dataclass(frozen=True)
class Plot:
    """
    Args:
        caption: one sentence on what the plot shows; screen readers read it, too.
        figure: data and layout for plotly.js.
        height: in CSS pixels.
        table: the plotted numbers.
        is_wide: spans the page; other plots stand side by side.
    """

    title: str
    caption: str
    figure: dict[str, Any] = field(repr=False)
    height: int
    table: Table | None = None
    is_wide: bool = True


@dataclass(frozen=True)
class PageSection:
    """
    Args:
        id: its anchor.
        lead: opening sentences.
        folded: heading under which all tables are folded; "" to show them.
    """

    id: str
    title: str
    lead: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    folded: str = ""


@dataclass(frozen=True)
class Fact:
    """One tile at the top of the page.

    Args:
        mark: on the decision's tile, "freeze", "train" or "unsure": chooses its colour.
    """

    name: str
    value: str
    more: str = ""
    mark: str = ""
