"""The progress of a study, and how it is shown.

Snapshot -> live table on a terminal, elsewhere a line every half minute
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

LINE_SECONDS = 30.0
"""Minimum time between two lines where there is no terminal."""


@dataclass(frozen=True, slots=True)
class CellProgress:
    """One cell, in fold-runs.

    Args:
        best: the searched fields of the best complete configuration so far.
        best_f1: its mean validation F1, 0 to 1; None while no configuration is complete.
        closed: abandoned after repeated failures.
    """

    name: str
    total: int
    done: int
    failed: int
    best: str = ""
    best_f1: float | None = None
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A study at one moment, in fold-runs.

    Args:
        done: in all runs.
        reused: the part of `done` that was in the ledger before.
        running: per trial, such as "minilm-l2/fine_tune fold 3 epoch 4".
        spared: not in `total`, because their configurations cannot win any more.
        spent: of the budget, in words; "" without a budget.
        waiting, trouble: number of finished fold-runs that the storage refuses, and its message.
        raced: in a study that races, the epochs that this run has trained, and the most that may follow.
    """

    total: int
    done: int
    reused: int
    failed: int
    running: tuple[str, ...]
    cells: tuple[CellProgress, ...]
    wall_seconds: float
    spared: int = 0
    spent: str = ""
    waiting: int = 0
    trouble: str = ""
    raced: tuple[int, int] | None = None

    @property
    def seconds_left(self) -> float | None:
        """Extrapolated from this run; None before its first fold-run. In a race, an upper bound from epochs,
        because most fold-runs are not trained to their end."""
        trained = self.done - self.reused + self.failed
        left = self.total - self.done - self.failed
        if self.raced is not None:
            trained, left = self.raced
        return self.wall_seconds / trained * left if trained else None

    @property
    def time_left(self) -> str:
        """The same in words; "" where it is unknown."""
        if not self.seconds_left:
            return ""
        return f"{'at most ' if self.raced is not None else ''}{duration(self.seconds_left)} left"


class ProgressDisplay:
    """Shows snapshots on stderr: a live table on a terminal, elsewhere lines."""

    def __init__(
        self, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = console or Console(stderr=True)
        self._clock = clock
        self._live: Live | None = None
        self._last_line = -LINE_SECONDS
        self._unshown: Snapshot | None = None

    def __enter__(self) -> ProgressDisplay:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
        elif self._unshown is not None:
            self._print_line(self._unshown)

    def __call__(self, snapshot: Snapshot) -> None:
        if self._live is not None:
            self._live.update(render_progress(snapshot))
        elif self._clock() - self._last_line >= LINE_SECONDS:
            self._last_line = self._clock()
            self._print_line(snapshot)
        else:
            self._unshown = snapshot

    def _print_line(self, snapshot: Snapshot) -> None:
        self._unshown = None
        self.console.print(line(snapshot), soft_wrap=True, highlight=False)


def line(snapshot: Snapshot) -> str:
    """One line for a log: how much is done, the time left, and the best configuration."""
    parts = [
        f"{snapshot.done} of {snapshot.total} fold-runs",
        f"{snapshot.failed} failed" if snapshot.failed else "",
        f"{snapshot.spared} spared by racing" if snapshot.spared else "",
        snapshot.time_left,
        f"spent {snapshot.spent}" if snapshot.spent else "",
        *_troubles(snapshot),
    ]
    known = [cell for cell in snapshot.cells if cell.best_f1 is not None]
    if known:
        best = max(known, key=lambda cell: cell.best_f1 or 0.0)
        percent = percent_cell(best.best_f1)
        parts.append(f"best on validation {percent}: {best.name} {best.best}".rstrip())
    return ", ".join(filter(None, parts))


def _troubles(snapshot: Snapshot) -> list[str]:
    troubles = []
    if snapshot.trouble:
        what = "fold-run waits" if snapshot.waiting == 1 else "fold-runs wait"
        troubles.append(f"{snapshot.waiting} finished {what} for the storage: {snapshot.trouble}")
    closed = [cell.name for cell in snapshot.cells if cell.closed]
    if closed:
        troubles.append(f"abandoned after failures: {', '.join(closed)}")
    return troubles


def render_progress(snapshot: Snapshot) -> RenderableType:
    """The live table."""
    table = Table(box=None, pad_edge=False)
    table.add_column("cell", overflow="fold")
    table.add_column("fold-runs", justify="right")
    table.add_column("", width=16)
    table.add_column("validation F1", justify="right")
    table.add_column("best so far", overflow="fold")
    for cell in snapshot.cells:
        failed = f" ({cell.failed} failed)" if cell.failed else ""
        table.add_row(
            cell.name,
            f"{cell.done}/{cell.total}{failed}",
            ProgressBar(total=max(cell.total, 1), completed=cell.done, width=16),
            percent_cell(cell.best_f1),
            cell.best,
        )
    summary = f"{snapshot.done}/{snapshot.total} fold-runs in {duration(snapshot.wall_seconds)}"
    if snapshot.reused:
        summary += f", {snapshot.reused} from the ledger"
    if snapshot.spared:
        summary += f", {snapshot.spared} more spared by racing"
    if snapshot.time_left:
        summary += f", {'about ' if snapshot.raced is None else ''}{snapshot.time_left}"
    if snapshot.spent:
        summary += f"; spent {snapshot.spent}"
    troubles = [Text(trouble, style="red") for trouble in _troubles(snapshot)]
    running = f"now: {'; '.join(snapshot.running)}" if snapshot.running else ""
    return Group(table, Text(summary), *troubles, Text(running, style="dim"))


def percent_cell(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def duration(seconds: float) -> str:
    """ "8 s", "3 min", "2 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
