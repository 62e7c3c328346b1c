"""The status of a study, and replays of races, as tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from raymrc.costs.status import Status
from raymrc.quantities import format_estimate, format_time, in_time, in_usd

if TYPE_CHECKING:
    from rich.console import RenderableType


def render_status(status: Status) -> RenderableType:
    """Two tables: fold-runs of each cell, and costs."""
    from rich.box import SIMPLE
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    cells = Table(title=f"{status.study}: {_state(status)}", box=SIMPLE, padding=(0, 1, 0, 0))
    cells.add_column("corpus / backbone / strategy", overflow="fold")
    for heading in ("fold-runs", "done", "failed"):
        cells.add_column(heading, justify="right", no_wrap=True)
    cells.add_column("", width=16)

    def add(name: str, total: int, done: int, failed: int) -> None:
        bar = ProgressBar(total=max(total, 1), completed=done, width=16)
        cells.add_row(name, str(total), str(done), str(failed or ""), bar)

    for cell in status.cells:
        add(cell.name, cell.total, cell.done, cell.failed)
    cells.add_section()
    add("total", status.total, status.done, status.failed)

    costs = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    costs.add_column("")
    headings = ["spent", "running", "remaining"]
    if status.budget:
        headings += ["budget", "left"]
    for heading in headings:
        costs.add_column(heading, justify="right", no_wrap=True)
    for name, *values in _cost_rows(status):
        costs.add_row(name, *values[: len(headings)])
    return Group(cells, costs, Text("; ".join(_remarks(status))))


def _state(status: Status) -> str:
    if status.drivers:
        drivers = f"{len(status.drivers)} drivers, " if len(status.drivers) > 1 else ""
        return f"{drivers}{status.running} fold-runs are training"
    if not status.to_do:
        return "done"
    return "not running" if status.done or status.spent.wall_seconds else "not started"


def _cost_rows(status: Status) -> list[tuple[str, ...]]:
    """Device time, dollars and wall time: spent, committed, remaining, limit, left."""
    budget, spent = status.budget, status.spent
    work, wall = status.device_seconds_left, status.wall_seconds_left
    device_limit = math.inf if budget.device_hours is None else 3600 * budget.device_hours
    wall_limit = math.inf if budget.wall_hours is None else 3600 * budget.wall_hours
    rows: list[tuple[str, ...]] = [
        (
            "device time",
            format_time(spent.device_seconds),
            format_time(status.committed),
            format_estimate(work, in_time, " ") if work is not None else "?",
            format_time(device_limit),
            format_time(device_limit - spent.device_seconds),
        )
    ]
    if budget.device_hour_usd or budget.usd is not None or spent.usd:
        usd = work.times(status.usd(1.0)) if work is not None else None
        rows.append(
            (
                "USD",
                f"{spent.usd:.4g}",
                f"{status.usd(status.committed):.4g}",
                format_estimate(usd, in_usd, " ") if usd is not None else "?",
                f"{budget.usd:g}" if budget.usd is not None else "-",
                f"{budget.usd - spent.usd:.4g}" if budget.usd is not None else "-",
            )
        )
    rows.append(
        (
            "wall time",
            format_time(spent.wall_seconds),
            "",
            format_estimate(wall, in_time, " ") if wall is not None else "?",
            format_time(wall_limit),
            format_time(status.left.wall_seconds),
        )
    )
    return rows


def _remarks(status: Status) -> Iterable[str]:
    if status.wall_seconds_left is None:
        yield "the end is unknown: the notes are not on this machine"
    elif status.to_do:
        moment = status.now + status.wall_seconds_left.value
        end = datetime.fromtimestamp(moment).astimezone().strftime("%Y-%m-%d %H:%M")
        yield f"expected end {end}" if status.drivers else f"expected end {end} if started now"
    share = status.affordable
    if share is not None and share < 1.0:
        yield f"the budget is expected to cover {100 * share:.0f} % of the remaining work"
    if status.failed:
        yield "raymrc run retries failed fold-runs"


def render_replays(outcomes: Iterable[dict[str, Any]]) -> RenderableType:
    """The outcomes of `racing.simulate.replay_all`, one row per cell and error rate."""
    from rich.table import Table

    table = Table(title="Savings by racing, compared with the full grid")
    table.add_column("cell", no_wrap=True)
    for heading in ("configurations", "error rate", "saving", "same winner", "regret, points"):
        table.add_column(heading, justify="right", no_wrap=True)
    for outcome in outcomes:
        table.add_row(
            outcome["cell"],
            str(outcome["configurations"]),
            f"{outcome['error_rate']:g}",
            f"{outcome['saving']:.1f}x",
            f"{100 * outcome['same_winner']:.0f} %",
            f"{100 * outcome['regret']:.2f}",
        )
    return table
