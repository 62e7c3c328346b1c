"""What a page is made of, as plain values: sections, plots and tables. `page.html` lays them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_ROWS_SHOWN = 30
"""A longer table is folded away on the screen; print has it whole."""


@dataclass(frozen=True)
class Table:
    """
    Args:
        align: a letter a column: "l" for words, "r" for figures.
        rows: what the cells say; the first column heads its row.
        note: a sentence under it.
    """

    caption: str
    headings: Sequence[str]
    align: str
    rows: Sequence[Sequence[str]]
    note: str = ""

    def __post_init__(self) -> None:
        assert len(self.align) == len(self.headings), self.caption
        assert all(len(row) == len(self.headings) for row in self.rows), self.caption

    @property
    def is_folded(self) -> bool:
        return len(self.rows) > MOST_ROWS_SHOWN


@dataclass(frozen=True)
class Plot:
    """
    Args:
        title: what is drawn.
        says: the same in a sentence, for those who cannot see it and for captions.
        figure: data and layout as plotly.js takes them.
        height: in CSS pixels.
        table: the figures that are drawn.
        is_wide: takes the page's whole width, where others stand beside each other.
    """

    title: str
    says: str
    figure: dict[str, Any] = field(repr=False)
    height: int
    table: Table | None = None
    is_wide: bool = True


@dataclass(frozen=True)
class Section:
    """
    Args:
        id: its anchor.
        lead: sentences above all else.
        folded: where all tables are folded away together, what they are.
    """

    id: str
    title: str
    lead: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    folded: str = ""


@dataclass(frozen=True)
class Fact:
    """One tile of the strip at the top.

    Args:
        mark: "freeze", "train" or "unsure" where it is a decision.
    """

    name: str
    value: str
    more: str = ""
    mark: str = ""
