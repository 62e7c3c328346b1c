"""The expected cost of single fold-runs, for a budget to decide what may start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from raymrc.configuration import FoldRun
from raymrc.costs.budget import Need
from raymrc.costs.history import build_job
from raymrc.costs.prices import find_device_price, read_prices
from raymrc.costs.rates import Measured, Rates, choose_hardware, fit_rates
from raymrc.costs.workload import Workload
from raymrc.planning.plan import Plan
from raymrc.quantities import Estimate

if TYPE_CHECKING:
    from raymrc.study.spec import Spec

MAX_FITTED_FOLD_RUNS = 60
"""The rates of a cell are fitted to at most this many of its latest fold-runs."""

SAVED_BYTES_PER_SECOND = 1e8
"""Assumed speed of saving a lane, until one was saved."""


class Expectations:
    """Expected costs of a study's fold-runs.

    Args:
        measured: finished fold-runs of a ledger (`history.read_history`) or a probe.
    """

    def __init__(
        self, spec: Spec, plan: Plan, workload: Workload, measured: Sequence[Measured] = ()
    ) -> None:
        self._workload = workload
        self._cells = {cell.cell: cell for cell in plan.cells}
        by_cell: dict[tuple[str, str], list[Measured]] = {}
        for fold_run in choose_hardware(measured, workload.kind):
            by_cell.setdefault(fold_run.like, []).append(fold_run)
        self._measured = [m for found in by_cell.values() for m in found[-MAX_FITTED_FOLD_RUNS:]]
        self._peak_flops = find_device_price(spec, workload.kind, read_prices()).peak_flops
        self._rates: dict[tuple[str, str], Rates] = {}

    def of(self, run: FoldRun) -> Need | None:
        """None if its cell's shape or tokenizer is unknown."""
        configuration = run.configuration
        cell = self._cells.get(configuration.cell)
        like = (configuration.cell.backbone.name, configuration.cell.strategy)
        source = configuration.cell.backbone.source
        if cell is None or cell.shape is None or source not in self._workload.tokenizers:
            return None
        kind, folds = self._workload.kind, self._workload.folds.count
        # A final test trains on all notes; each fold leaves one part out. Steps and seconds stay the same.
        is_longer = run.is_test and configuration.limit.unit == "epochs"
        share = folds / (folds - 1) if is_longer else 1.0
        fold = 0 if run.is_test else run.fold
        job = build_job(self._workload, cell, configuration, fold)
        if like not in self._rates:
            self._rates[like] = fit_rates(like, self._measured, kind, self._peak_flops)
        rates = self._rates[like]
        estimate = Estimate.of(
            share * rates.seconds(job, kind, self._peak_flops),
            rates.total_spread(self._workload.tokenizers[source]),
        )
        # Four numbers per trained one: itself, two moments, the best epoch's.
        saved_bytes = 4 * (cell.adapter_bytes or 0)
        return Need(
            estimate.value,
            estimate.low,
            estimate.high,
            is_guess=rates.source == "guess",
            saving_seconds=0.5 + saved_bytes / SAVED_BYTES_PER_SECOND,
        )
