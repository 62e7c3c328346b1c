"""A plan and its costs as the plain values that `raymrc plan --json` prints."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from raymrc.costs.forecast import CellForecast, Forecast
from raymrc.planning.plan import CellPlan, Plan


def plan_json(plan: Plan, forecast: Forecast | None = None) -> dict[str, Any]:
    """The plan as plain values.

    Args:
        forecast: what the plan will cost; without one those figures are null.
    """
    costs = forecast.cells if forecast is not None else (None,) * len(plan.cells)
    cells = [_cell_json(c) | _cost_json(f) for c, f in zip(plan.cells, costs, strict=True)]
    remarks = (*plan.remarks, *(forecast.remarks if forecast is not None else ()))
    return {
        "study": plan.study,
        "task": plan.task,
        "corpus": plan.corpus,
        "labels": list(plan.labels) if plan.labels is not None else None,
        "notes": plan.num_notes,
        "folds": plan.folds,
        "algorithm": plan.algorithm,
        "configurations": plan.num_configurations,
        "fold_runs": plan.num_fold_runs,
        "fold_runs_done": plan.done,
        "done": plan.done,
        "remarks": list(remarks),
        **_cost_json(forecast),
        "cells": cells,
    }


def _cost_json(costs: Forecast | CellForecast | None) -> dict[str, Any]:
    if costs is None:
        return dict.fromkeys(("device_seconds", "usd", "peak_memory_bytes"))
    return costs.to_json()


def _cell_json(plan: CellPlan) -> dict[str, Any]:
    cell, parameters = plan.cell, plan.parameters
    return {
        "cell": cell.name,
        "task": cell.task,
        "corpus": cell.corpus,
        "backbone": asdict(cell.backbone),
        "strategy": cell.strategy,
        "configurations": plan.num_configurations,
        "fold_runs": plan.num_fold_runs,
        "fold_runs_done": plan.done,
        "done": plan.done,
        "trained_parameters": parameters.trained if parameters else None,
        "total_parameters": parameters.total if parameters else None,
        "trained_share": parameters.share if parameters else None,
        "adapter_bytes": plan.adapter_bytes,
        "placement": asdict(plan.placement) if plan.placement else None,
        "space": {
            "fixed": dict(plan.space.fixed),
            "grids": {name: list(values) for name, values in plan.space.grids.items()},
            "distributions": {
                name: {d.kind: list(d.values)} for name, d in plan.space.distributions.items()
            },
        },
        "configuration_ids": (
            None if plan.configurations is None else [c.id for c in plan.configurations]
        ),
    }
