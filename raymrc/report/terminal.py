"""Tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymrc.planning.devices import GIB
from raymrc.planning.plan import Plan
from raymrc.quantities import in_time, in_usd, short_count

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from raymrc.costs.forecast import CellForecast, Forecast


def render_plan(plan: Plan, forecast: Forecast | None = None) -> RenderableType:
    """The plan as a table for the terminal.

    Args:
        forecast: what it will cost; each figure has its 90 % interval below.
    """
    from rich.box import SIMPLE
    from rich.table import Table

    remarks = (*plan.remarks, *(forecast.said if forecast is not None else ()))
    table = Table(
        title=f"{plan.study}: {plan.task}, {plan.folds} folds, {plan.algorithm} search",
        caption="; ".join(remarks) or None,
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("corpus / backbone / strategy", overflow="fold")
    if forecast is not None:
        return _with_costs(table, plan, forecast)
    for heading in ("fold-runs", "done", "trained", "saved"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("where", max_width=16)
    table.add_column("memory", justify="right", no_wrap=True)
    for cell in plan.cells:
        known, placement = cell.parameters, cell.placement
        table.add_row(
            cell.cell.name,
            f"{cell.num_configurations} x {plan.folds}",
            "-" if cell.done is None else str(cell.done),
            f"{short_count(known.trained)}, {100 * known.share:.3g} %" if known else "?",
            f"{short_count(cell.adapter_bytes or 0)}B" if known else "?",
            str(placement) if placement else "?",
            f"{placement.peak_bytes / GIB:.1f} GiB" if placement else "?",
        )
    table.add_section()
    table.add_row(
        "in total",
        str(plan.num_fold_runs),
        "-" if plan.done is None else str(plan.done),
        *[""] * 4,
    )
    return table


def _with_costs(table: Table, plan: Plan, forecast: Forecast) -> Table:
    """Two lines a cell, so that intervals have room beside names."""
    for heading in ("fold-\nruns", "trained", "where", "memory", "device\ntime", "USD"):
        if heading == "where":
            table.add_column(heading, max_width=11)
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    for cell, cost in zip(plan.cells, forecast.cells, strict=True):
        known, placement = cell.parameters, cell.placement
        table.add_row(
            cell.cell.name,
            f"{cell.num_configurations} x {plan.folds}{_done(cell.done)}",
            f"{short_count(known.trained)}\n{100 * known.share:.3g} %" if known else "?",
            str(placement) if placement else "?",
            f"{placement.peak_bytes / GIB:.1f} GiB" if placement else "?",
            *_cost_columns(cost),
        )
    table.add_section()
    total = f"{plan.num_fold_runs}{_done(plan.done)}"
    table.add_row("in total", total, "", "", "", *_cost_columns(forecast))
    return table


def _done(number: int | None) -> str:
    return f"\n{number} done" if number else ""


def _cost_columns(cost: CellForecast | Forecast | None) -> tuple[str, str]:
    """Device time and dollars, each with its interval on a line of its own."""
    if cost is None:
        return "?", "?"
    return cost.shown("device_seconds", in_time), cost.shown("usd", in_usd)
