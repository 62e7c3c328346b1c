"""Warnings about cells that will learn little: too few optimiser steps, or a rate far from a usual one."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from raymrc.costs.workload import Workload
from raymrc.model.strategies import STRATEGIES
from raymrc.planning.defaults import LEARNABLE, default_rates
from raymrc.planning.plan import CellPlan, Plan, representatives

MIN_STEPS = {"tags": 100, "spans": 300}
"""Optimiser steps that a fold-run should have, by what its strategy answers with: a rule of thumb from a few
runs on PHEE, not a measured limit."""


def learning_warnings(plan: Plan, workload: Workload) -> Iterator[str]:
    """At most one sentence about steps and one about rates for each cell whose shape is known."""
    for cell in plan.cells:
        if cell.shape is None or cell.cell.backbone.source not in workload.tokenizers:
            continue
        yield from _about_steps(cell, plan, workload)
        yield from _about_rates(cell, plan)


def _about_steps(cell: CellPlan, plan: Plan, workload: Workload) -> Iterator[str]:
    counted = [
        (statistics.fmean(workload.of(c, fold).training.passes for fold in range(plan.folds)), c)
        for c in representatives(cell, plan.seed)
        if c.limit.unit != "device-seconds"
    ]
    if not counted:
        return
    steps, fewest = min(counted, key=lambda pair: pair[0])
    strategy = STRATEGIES[cell.cell.strategy]
    wanted = MIN_STEPS[strategy.answers]
    if steps >= wanted:
        return
    times = wanted / max(1.0, steps)
    advice = [f"duration {wanted} steps"]
    if fewest.duration is None:
        advice = [f"epochs {round(times * fewest.epochs + 0.5)}"]
        if fewest.batch_size > 1:
            advice.insert(0, f"batch_size {max(1, int(fewest.batch_size / times))}")
    what = "prompts need" if strategy.asks else "a tagger needs"
    yield (
        f"{cell.cell.name}: {steps:,.0f} steps in a fold-run, and {what} {wanted} or more; set "
        f"{' or '.join(advice)}"
    )


def _about_rates(cell: CellPlan, plan: Plan) -> Iterator[str]:
    assert cell.shape is not None
    default = default_rates(cell.cell.strategy, cell.shape.hidden)["learning_rate"]
    rates = [c.learning_rate for c in representatives(cell, plan.seed)]
    learnable = [r for r in rates if default / LEARNABLE <= r <= default * LEARNABLE]
    if learnable:
        return
    nearest = min(rates, key=lambda rate: max(rate / default, default / rate))
    yield (
        f"{cell.cell.name}: no learning_rate is near {default:g}, at which a backbone of this size usually "
        f"learns; {nearest:g} is far {'above' if nearest > default else 'below'} it"
    )
