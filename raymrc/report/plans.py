"""Tables of a study before it has results: its plan."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raymrc.planning.devices import GIB
from raymrc.planning.plan import Plan
from raymrc.quantities import in_time, in_usd, percent, short_count
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
