"""Where a study stands: what is done, what was spent, what is left, and when it will end.

Plan + ledger + journal (+ Forecast) -> Status
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from raymrc.costs.budget import Budget, Entry, Left, Spent, overhead, spent_by, values_of
from raymrc.costs.forecast import FIRST_TRAINING_SECONDS, Forecast, shown
from raymrc.ledger.record import Record
from raymrc.planning.arithmetic import price
from raymrc.planning.plan import Plan
from raymrc.quantities import Estimate, in_time, in_usd

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class CellStatus:
    """One cell, in fold-runs."""

    name: str
    total: int
    done: int
    failed: int


@dataclass(frozen=True)
class Status:
    """A study at one moment.

    Args:
        cells: in the plan's order.
        drivers: runs whose lease is fresh.
        committed: device-seconds that fold-runs which train now are still expected to need.
        rest: device-seconds of all that is to do, of races what is expected; None where there is no
            forecast. `wall`: seconds.
        now: Unix time.
    """

    study: str
    cells: tuple[CellStatus, ...]
    drivers: tuple[Entry, ...]
    spent: Spent
    budget: Budget
    rest: Estimate | None
    wall: Estimate | None
    now: float

    @property
    def total(self) -> int:
        return sum(cell.total for cell in self.cells)

    @property
    def done(self) -> int:
        return sum(cell.done for cell in self.cells)

    @property
    def failed(self) -> int:
        return sum(cell.failed for cell in self.cells)

    @property
    def to_do(self) -> int:
        """Failed ones with them: running the study again tries them again."""
        return self.total - self.done

    @property
    def running(self) -> int:
        return sum(entry.running for entry in self.drivers)

    @property
    def committed(self) -> float:
        return sum(entry.committed for entry in self.drivers)

    @property
    def left(self) -> Left:
        return self.budget.left(self.spent)

    def usd(self, device_seconds: float) -> float:
        return price(device_seconds, self.budget.device_hour_usd)

    @property
    def affordable(self) -> float | None:
        """Share of what is to do that the budget is expected to be enough for, 0 to 1; None where either is
        not known."""
        if not self.budget or self.rest is None or self.wall is None or not self.rest.value:
            return None
        left = self.left
        shares = [left.device_seconds / self.rest.value, left.wall_seconds / self.wall.value]
        return min(1.0, max(0.0, min(shares)))

    def to_json(self) -> dict[str, Any]:
        limits = {
            "usd": self.budget.usd,
            "gpu_hours": self.budget.device_hours,
            "wall_hours": self.budget.wall_hours,
        }
        left = values_of(self.left)
        usd_left = self.budget.usd - self.spent.usd if self.budget.usd is not None else None
        return {
            "study": self.study,
            "fold_runs": self.total,
            "fold_runs_done": self.done,
            "fold_runs_failed": self.failed,
            "fold_runs_left": self.to_do,
            "fold_runs_running": self.running,
            "is_running": bool(self.drivers),
            "drivers": [
                {"driver": e.driver, "began": _iso(e.began), "written_at": _iso(e.written_at)}
                for e in self.drivers
            ],
            "spent": values_of(self.spent),
            "committed": {
                "device_seconds": self.committed,
                "usd": self.usd(self.committed),
            },
            "budget": limits if self.budget else None,
            "left": left | {"usd": usd_left},
            "rest": {
                "device_seconds": _with_interval(self.rest),
                "usd": _with_interval(self.rest, self.usd(1.0)),
                "wall_seconds": _with_interval(self.wall),
            },
            "expected_end": _iso(self.now + self.wall.value) if self.wall is not None else None,
            "affordable_share": self.affordable,
            "cells": [
                {"cell": c.name, "fold_runs": c.total, "done": c.done, "failed": c.failed}
                for c in self.cells
            ],
        }


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")


def _with_interval(estimate: Estimate | None, times: float = 1.0) -> list[float] | None:
    """Value, low, high."""
    if estimate is None:
        return None
    return [times * number for number in (estimate.value, estimate.low, estimate.high)]


def read_status(
    plan: Plan,
    records: Sequence[Record],
    entries: Sequence[Entry],
    budget: Budget,
    forecast: Forecast | None,
    now: float,
) -> Status:
    """
    Args:
        plan: with what the ledger has counted, where corpus and weights are at hand.
        records: of the ledger.
        entries: of the journal.
        forecast: of the plan; None where it cannot be made here.
        now: Unix time.
    """
    held = [r for r in records if plan.holds(r.fold_run.configuration) and not r.fold_run.is_test]
    cells = []
    for cell in plan.cells:
        of_cell = [r for r in held if r.fold_run.configuration.cell == cell.cell]
        done = sum(record.status == "done" for record in of_cell)
        failed = sum(record.status == "failed" for record in of_cell)
        number = cell.num_fold_runs - _num_spared(of_cell, plan.folds)
        counted = min(done, number) if cell.done is None else cell.done
        cells.append(CellStatus(cell.cell.name, number, counted, min(failed, number - counted)))
    rest = wall = None
    to_do = sum(cell.total - cell.done for cell in cells)
    if not to_do:
        rest = wall = Estimate()
    elif forecast is not None:
        # Hosts are held for longer than fold-runs use them, as far as is known by now.
        recorded = sum(record.device_seconds for record in records)
        held_for = overhead(sum(entry.device_seconds for entry in entries), recorded)
        rest = forecast.total("raced_left").times(held_for)
        wall = forecast.wall.times(held_for)
    alive = tuple(entry for entry in entries if entry.is_alive(now))
    if wall is not None and alive and to_do:  # it has started already
        wall = Estimate(
            *(max(0.0, n - FIRST_TRAINING_SECONDS) for n in (wall.value, wall.low, wall.high))
        )
    spent = spent_by(entries, budget.device_hour_usd, now)
    return Status(plan.study, tuple(cells), alive, spent, budget, rest, wall, now)


def _num_spared(records: Sequence[Record], num_folds: int) -> int:
    """Fold-runs of a cell that are not trained to their end, since a race has stopped their configuration."""
    stopped = {r.fold_run.configuration for r in records if r.status == "stopped"}
    done = sum(r.status == "done" and r.fold_run.configuration in stopped for r in records)
    return len(stopped) * num_folds - done


# --- shown ----------------------------------------------------------------------------------------


def render_status(status: Status) -> RenderableType:
    """The status as two tables for the terminal: what is done, and what it costs."""
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
    rows = [(c.name, c.total, c.done, c.failed) for c in status.cells]
    for name, total, done, failed in rows:
        bar = ProgressBar(total=max(total, 1), completed=done, width=16)
        cells.add_row(name, str(total), str(done), str(failed or ""), bar)
    cells.add_section()
    whole = ProgressBar(total=max(status.total, 1), completed=status.done, width=16)
    cells.add_row("in total", str(status.total), str(status.done), str(status.failed or ""), whole)

    costs = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    costs.add_column("")
    headings = ["spent", "running wants", "to do"]
    if status.budget:
        headings += ["budget", "left"]
    for heading in headings:
        costs.add_column(heading, justify="right", no_wrap=True)
    for name, *values in _cost_rows(status):
        costs.add_row(name, *values[: len(headings)])
    return Group(cells, costs, Text("; ".join(_remarks(status))))


def _state(status: Status) -> str:
    if status.drivers:
        runs = f"{len(status.drivers)} drivers run" if len(status.drivers) > 1 else "runs"
        return f"{runs}, {status.running} fold-runs train"
    if not status.to_do:
        return "done"
    return "not running" if status.done or status.spent.wall_seconds else "not started"


def _cost_rows(status: Status) -> list[tuple[str, ...]]:
    """Device time, dollars and wall time: spent, committed, to do, limit, left."""
    budget, spent, left = status.budget, status.spent, status.left
    rest = shown(status.rest, in_time, " ") if status.rest is not None else "?"
    wall = shown(status.wall, in_time, " ") if status.wall is not None else "?"
    rows: list[tuple[str, ...]] = []
    hours_left = (
        3600 * budget.device_hours - spent.device_seconds
        if budget.device_hours is not None
        else math.inf
    )
    rows.append(
        (
            "device time",
            _time(spent.device_seconds),
            _time(status.committed),
            rest,
            _time(3600 * budget.device_hours) if budget.device_hours is not None else "-",
            _time(hours_left),
        )
    )
    if budget.device_hour_usd or budget.usd is not None or spent.usd:
        usd = status.rest.times(status.usd(1.0)) if status.rest is not None else None
        usd_left = f"{budget.usd - spent.usd:.4g}" if budget.usd is not None else "-"
        rows.append(
            (
                "USD",
                f"{spent.usd:.4g}",
                f"{status.usd(status.committed):.4g}",
                shown(usd, in_usd, " ") if usd is not None else "?",
                f"{budget.usd:g}" if budget.usd is not None else "-",
                usd_left,
            )
        )
    rows.append(
        (
            "wall time",
            _time(spent.wall_seconds),
            "",
            wall,
            _time(3600 * budget.wall_hours) if budget.wall_hours is not None else "-",
            _time(left.wall_seconds),
        )
    )
    return rows


def _time(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "-"
    size, unit = in_time(abs(seconds))
    return f"{seconds / size:.3g} {unit}"


def _remarks(status: Status) -> list[str]:
    found = []
    if status.wall is None:
        found.append("when it will end is not known without the notes")
    elif status.to_do:
        end = datetime.fromtimestamp(status.now + status.wall.value).astimezone()
        when = end.strftime("%Y-%m-%d %H:%M")
        found.append(
            f"expected end {when}"
            if status.drivers
            else f"if it were run now, it would be expected to end {when}"
        )
    share = status.affordable
    if share is not None and share < 1.0:
        found.append(
            f"the budget is expected to be enough for {100 * share:.0f} % of what is to do"
        )
    if status.failed:
        found.append("raymrc run tries failed fold-runs again")
    return found


def exceeds(budget: Budget, spent: Spent, forecast: Forecast) -> str:
    """The sentence of a plan that is expected to cost more than is left of its budget; "" where it is not."""
    if not budget:
        return ""
    left, rest, wall = budget.left(spent), forecast.total("raced_left"), forecast.wall
    of = "is left of the budget" if spent.device_seconds else "is the budget"
    if rest.value > left.device_seconds:
        if budget.usd is not None and 3600 * (budget.usd - spent.usd) <= (
            left.device_seconds * budget.device_hour_usd + 1e-6
        ):
            wants, has = price(rest.value, budget.device_hour_usd), budget.usd - spent.usd
            return f"what is to do is expected to cost {wants:.3g} USD, and {max(0.0, has):.3g} USD {of}"
        return (
            f"what is to do is expected to take {_time(rest.value)} of devices, and "
            f"{_time(max(0.0, left.device_seconds))} {of}"
        )
    if wall.value > left.wall_seconds:
        return (
            f"what is to do is expected to take {_time(wall.value)}, and "
            f"{_time(max(0.0, left.wall_seconds))} {of}"
        )
    return ""
