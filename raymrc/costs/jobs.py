"""Fold-runs of a plan as jobs whose times can be predicted."""

from __future__ import annotations

import math

from raymrc.configuration import Configuration
from raymrc.costs.rates import Job, Rates
from raymrc.costs.workload import Workload
from raymrc.planning.plan import CellPlan

TOKENIZER_SPREAD = 0.1
"""Standard deviation of log time that estimated piece counts add, where the backbone's tokenizer is
missing."""


def build_job(workload: Workload, cell: CellPlan, configuration: Configuration, fold: int) -> Job:
    """One fold-run of a cell whose shape is known."""
    assert cell.shape is not None
    return Job(
        configuration,
        workload.of(configuration, fold),
        cell.shape,
        len(workload.asked.labels),
        len(workload.asked.relations),
        cell.placement.lanes if cell.placement is not None else 1,
    )


def total_spread(rates: Rates, workload: Workload, cell: CellPlan) -> float:
    """Standard deviation of the logarithm of a predicted time, including that of piece counts."""
    is_exact = workload.tokenizers[cell.cell.backbone.source].is_exact
    return math.hypot(rates.spread, 0.0 if is_exact else TOKENIZER_SPREAD)
