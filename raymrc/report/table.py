"""One table, drawn alike on the terminal, on the page and in exports: columns, rows of values, a caption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any


@dataclass(frozen=True)
class Column:
    """
    Args:
        unit: appended to the heading.
        show: formats a value; None is shown as "-".
        align: "left" for words, "right" for numbers.
        arrow_type: in exported files; by default that of the values.
    """

    name: str
    unit: str = ""
    show: Callable[[Any], str] = str
    align: str = "right"
    arrow_type: Any = None

    @property
    def heading(self) -> str:
        return f"{self.name}, {self.unit}" if self.unit else self.name


def words(*names: str) -> list[Column]:
    return [Column(name, align="left") for name in names]


def numbers(*names: str, unit: str = "", show: Callable[[Any], str] = str) -> list[Column]:
    return [Column(name, unit, show) for name in names]


@dataclass(frozen=True)
class Table:
    """
    Args:
        rows: values, one per column; the first column names the row.
        caption: sentences below the table.
        total: a last row that is set apart; empty for none.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    total: Sequence[Any] = ()

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.title

    @property
    def cells(self) -> list[list[str]]:
        """The rows as text, without the total."""
        return [self.texts(row) for row in self.rows]

    def texts(self, row: Sequence[Any]) -> list[str]:
        return [
            "-" if value is None else column.show(value)
            for column, value in zip(self.columns, row, strict=True)
        ]

    def without(self, *names: str) -> Table:
        """The table without these columns."""
        kept = [column.name not in names for column in self.columns]
        return replace(
            self,
            columns=list(compress(self.columns, kept)),
            rows=[list(compress(row, kept)) for row in self.rows],
            total=list(compress(self.total, kept)),
        )
