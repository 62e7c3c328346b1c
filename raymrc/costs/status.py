"""The status of a study: what is done, what was spent, what is left, and when the study will end.

Plan + ledger + journal (+ Forecast) -> Status
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from datetime import UTC, datetime
from typing import Any

from raymrc.costs.budget import Budget, Left, Spent, overhead
from raymrc.costs.forecast import FIRST_TRAINING_SECONDS, Forecast
from raymrc.costs.journal import JournalEntry, spent_by
from raymrc.ledger.record import Record
from raymrc.planning.arithmetic import price
from raymrc.planning.plan import Plan
from raymrc.quantities import Estimate, format_time


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
        drivers: runs with a valid lease.
        device_seconds_left: expected for all remaining work; None without a forecast.
        wall_seconds_left: the same by the clock.
        now: Unix time.
    """

    study: str
    cells: tuple[CellStatus, ...]
    drivers: tuple[JournalEntry, ...]
    spent: Spent
    budget: Budget
    device_seconds_left: Estimate | None
    wall_seconds_left: Estimate | None
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
        """Includes failed fold-runs, which the next run retries."""
        return self.total - self.done

    @property
    def running(self) -> int:
        return sum(entry.running for entry in self.drivers)

    @property
    def committed(self) -> float:
        """Device-seconds that the running fold-runs are still expected to need."""
        return sum(entry.committed for entry in self.drivers)

    @property
    def left(self) -> Left:
        return self.budget.left(self.spent)

    def usd(self, device_seconds: float) -> float:
        return price(device_seconds, self.budget.device_hour_usd)

    @property
    def affordable(self) -> float | None:
        """Share of the remaining work that the budget is expected to cover, 0 to 1; None if unknown."""
        work, wall = self.device_seconds_left, self.wall_seconds_left
        if not self.budget or work is None or wall is None or not work.value:
            return None
        left = self.left
        shares = [left.device_seconds / work.value, left.wall_seconds / wall.value]
        return min(1.0, max(0.0, min(shares)))

    def to_json(self) -> dict[str, Any]:
        limits = {
            "usd": self.budget.usd,
            "gpu_hours": self.budget.device_hours,
            "wall_hours": self.budget.wall_hours,
        }
        usd_left = self.budget.usd - self.spent.usd if self.budget.usd is not None else None
        left = {k: v if math.isfinite(v) else None for k, v in asdict(self.left).items()}
        wall = self.wall_seconds_left
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
            "spent": asdict(self.spent),
            "committed": {
                "device_seconds": self.committed,
                "usd": self.usd(self.committed),
            },
            "budget": limits if self.budget else None,
            "left": left | {"usd": usd_left},
            "rest": {
                "device_seconds": _with_interval(self.device_seconds_left),
                "usd": _with_interval(self.device_seconds_left, self.usd(1.0)),
                "wall_seconds": _with_interval(wall),
            },
            "expected_end": _iso(self.now + wall.value) if wall is not None else None,
            "affordable_share": self.affordable,
            "cells": [
                {"cell": c.name, "fold_runs": c.total, "done": c.done, "failed": c.failed}
                for c in self.cells
            ],
        }


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")


def _with_interval(estimate: Estimate | None, factor: float = 1.0) -> list[float] | None:
    """Value, low, high."""
    return None if estimate is None else [factor * number for number in astuple(estimate)]


def read_status(
    plan: Plan,
    records: Sequence[Record],
    entries: Sequence[JournalEntry],
    budget: Budget,
    forecast: Forecast | None,
    now: float,
) -> Status:
    """
    Args:
        plan: with the ledger's counts, if corpus and weights are on this machine.
        records: of the ledger.
        entries: of the journal.
        forecast: None if this machine lacks the notes.
        now: Unix time.
    """
    planned = [
        r for r in records if plan.holds(r.fold_run.configuration) and not r.fold_run.is_test
    ]
    cells = []
    for cell in plan.cells:
        of_cell = [r for r in planned if r.fold_run.configuration.cell == cell.cell]
        done = sum(record.is_done for record in of_cell)
        failed = sum(record.is_failed for record in of_cell)
        number = cell.num_fold_runs - _count_spared(of_cell, plan.folds)
        counted = min(done, number) if cell.done is None else cell.done
        cells.append(CellStatus(cell.cell.name, number, counted, min(failed, number - counted)))
    work = wall = None
    is_finished = all(cell.done == cell.total for cell in cells)
    if is_finished:
        work = wall = Estimate()
    elif forecast is not None:
        # Hosts hold devices for longer than fold-runs use them.
        recorded = sum(record.device_seconds for record in records)
        overhead_factor = overhead(sum(entry.device_seconds for entry in entries), recorded)
        work = forecast.total("device_seconds_raced_left").times(overhead_factor)
        wall = forecast.wall_seconds.times(overhead_factor)
    alive = tuple(entry for entry in entries if entry.is_alive(now))
    if wall is not None and alive and not is_finished:  # no start-up time is left
        wall = Estimate(*(max(0.0, number - FIRST_TRAINING_SECONDS) for number in astuple(wall)))
    spent = spent_by(entries, budget.device_hour_usd, now)
    return Status(plan.study, tuple(cells), alive, spent, budget, work, wall, now)


def _count_spared(records: Sequence[Record], num_folds: int) -> int:
    """Fold-runs of a cell that a race does not finish because it has stopped their configuration."""
    stopped = {r.fold_run.configuration for r in records if r.is_stopped}
    done = sum(r.is_done and r.fold_run.configuration in stopped for r in records)
    return len(stopped) * num_folds - done


def over_budget_remark(budget: Budget, spent: Spent, forecast: Forecast) -> str:
    """A sentence if the remaining work is expected to cost more than the budget has left; otherwise ""."""
    if not budget:
        return ""
    left = budget.left(spent)
    work, wall = forecast.total("device_seconds_raced_left").value, forecast.wall_seconds.value
    if work > left.device_seconds:
        usd_left = math.inf if budget.usd is None else budget.usd - spent.usd
        if 3600 * usd_left <= left.device_seconds * budget.device_hour_usd + 1e-6:
            needed = f"{price(work, budget.device_hour_usd):.3g} USD"
            available = f"{max(0.0, usd_left):.3g} USD"
        else:
            needed = f"{format_time(work)} of device time"
            available = format_time(max(0.0, left.device_seconds))
    elif wall > left.wall_seconds:
        needed, available = format_time(wall), format_time(max(0.0, left.wall_seconds))
    else:
        return ""
    limit = "the budget has {} left" if spent.device_seconds else "the budget is {}"
    return f"remaining work is expected to need {needed}, but {limit.format(available)}"
