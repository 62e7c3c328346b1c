"""Tables of a study before and while it runs: plan, status, and replayed races."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from raymrc.costs.status import Status
from raymrc.planning.devices import GIB
from raymrc.planning.plan import Plan
from raymrc.quantities import (
    Estimate,
    Unit,
    format_estimate,
    format_time,
    in_time,
    in_usd,
    percent,
    points,
    short_count,
)
from raymrc.report.table import Table, numbers, words

if TYPE_CHECKING:
    from raymrc.costs.forecast import CellForecast, Forecast


def plan_table(plan: Plan, forecast: Forecast | None = None) -> Table:
    """One row per cell.

    Args:
        forecast: adds device time and USD, each with its 90 % interval on a second line.
    """
    columns = [
        *words("corpus / backbone / strategy"),
        *numbers("fold-runs", "done", "trained", "saved"),
        *words("where"),
        *numbers("memory", "device time", "USD"),
    ]
    forecasts = (None,) * len(plan.cells) if forecast is None else forecast.cells
    between = ", " if forecast is None else "\n"
    rows: list[Sequence[object]] = []
    for cell, cost in zip(plan.cells, forecasts, strict=True):
        known, placement = cell.parameters, cell.placement
        rows.append(
            (
                cell.cell.name,
                f"{cell.num_configurations} x {plan.folds}",
                cell.done,
                f"{short_count(known.trained)}{between}{percent(known.share)}" if known else "?",
                f"{short_count(cell.adapter_bytes or 0)}B" if known else "?",
                textwrap.fill(str(placement), 11 if forecast else 16) if placement else "?",
                f"{placement.peak_bytes / GIB:.1f} GiB" if placement else "?",
                *_costs(cost),
            )
        )
    remarks = (*plan.remarks, *(forecast.notes if forecast is not None else ()))
    table = Table(
        f"{plan.study}: {plan.task}, {plan.folds} folds, {plan.algorithm} search",
        columns,
        rows,
        "; ".join(remarks),
        ("in total", plan.num_fold_runs, plan.done, *[""] * 4, *_costs(forecast)),
    )
    if forecast is None:
        return table.without("device time", "USD")
    return table.without("saved") if plan.done else table.without("saved", "done")


def _costs(cost: CellForecast | Forecast | None) -> tuple[str, ...]:
    if cost is None:
        return "?", "?"
    return cost.shown("device_seconds", in_time), cost.shown("usd", in_usd)


def status_parts(status: Status) -> list[Table | str]:
    """Fold-runs of each cell, costs, and remarks."""

    def row(name: str, total: int, done: int, failed: int) -> tuple[object, ...]:
        return name, total, done, failed or "", done / total if total else None

    columns = [
        *words("corpus / backbone / strategy"),
        *numbers("fold-runs", "done", "failed"),
        *numbers("progress", show=percent),
    ]
    cells = Table(
        f"{status.study}: {_state(status)}",
        columns,
        [row(cell.name, cell.total, cell.done, cell.failed) for cell in status.cells],
        total=row("total", status.total, status.done, status.failed),
    )
    costs = Table(
        "",
        [*words(""), *numbers("spent", "running", "remaining", "budget", "left")],
        _status_costs(status),
    )
    shown = costs if status.budget else costs.without("budget", "left")
    return [cells, shown, "; ".join(_remarks(status))]


def _state(status: Status) -> str:
    if status.drivers:
        drivers = f"{len(status.drivers)} drivers, " if len(status.drivers) > 1 else ""
        return f"{drivers}{status.running} fold-runs are training"
    if not status.to_do:
        return "done"
    return "not running" if status.done or status.spent.wall_seconds else "not started"


def _status_costs(status: Status) -> list[tuple[str, ...]]:
    """Device time, dollars and wall time: spent, committed, remaining, limit, left."""

    def estimate(value: Estimate | None, unit: Unit) -> str:
        return "?" if value is None else format_estimate(value, unit, " ")

    budget, spent, work = status.budget, status.spent, status.device_seconds_left
    device_limit = math.inf if budget.device_hours is None else 3600 * budget.device_hours
    wall_limit = math.inf if budget.wall_hours is None else 3600 * budget.wall_hours
    device_time = (
        "device time",
        format_time(spent.device_seconds),
        format_time(status.committed),
        estimate(work, in_time),
        format_time(device_limit),
        format_time(device_limit - spent.device_seconds),
    )
    usd = (
        "USD",
        f"{spent.usd:.4g}",
        f"{status.usd(status.committed):.4g}",
        estimate(work and work.times(status.usd(1.0)), in_usd),
        f"{budget.usd:g}" if budget.usd is not None else "-",
        f"{budget.usd - spent.usd:.4g}" if budget.usd is not None else "-",
    )
    wall_time = (
        "wall time",
        format_time(spent.wall_seconds),
        "",
        estimate(status.wall_seconds_left, in_time),
        format_time(wall_limit),
        format_time(status.left.wall_seconds),
    )
    has_usd = budget.device_hour_usd or budget.usd is not None or spent.usd
    return [device_time, usd, wall_time] if has_usd else [device_time, wall_time]


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


def replay_table(outcomes: Iterable[dict[str, Any]]) -> Table:
    """The outcomes of `racing.simulate.replay_all`, one row per cell and error rate."""
    names = ("cell", "configurations", "error_rate", "saving", "same_winner", "regret")
    return Table(
        "Savings by racing, compared with the full grid",
        [
            *words("cell"),
            *numbers("configurations"),
            *numbers("error rate", show="{:g}".format),
            *numbers("saving", show="{:.1f}x".format),
            *numbers("same winner", show=percent),
            *numbers("regret", unit="points", show=points),
        ],
        [[outcome[name] for name in names] for outcome in outcomes],
    )
