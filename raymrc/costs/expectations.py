"""TODO: say what this module holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raymrc.configuration import FoldRun
from raymrc.costs.budget import Need
from raymrc.costs.forecast import ROUGH_SPREAD, _is_exact, _job, _terms
from raymrc.costs.prices import read_prices
from raymrc.costs.rates import (
    Measured,
    Rates,
    choose_hardware,
    fit_rates,
)
from raymrc.costs.workload import Workload
from raymrc.planning.arithmetic import adapter_bytes
from raymrc.planning.plan import (
    Plan,
)
from raymrc.quantities import Estimate

if TYPE_CHECKING:
    from raymrc.study.spec import Spec


MOST_FITTED = 60
"""Fold-runs of a cell that its rates are fitted to, where single fold-runs are to be told."""


SAVING_RATE = 1e8
"""Bytes a second that a lane is taken to be saved at, before one was."""


class Expectations:
    """What each of a study's fold-runs is expected to cost.

    Args:
        measured: fold-runs that are finished, of a ledger (`read_history`) or a probe.
    """

    def __init__(
        self, spec: Spec, plan: Plan, workload: Workload, measured: Sequence[Measured] = ()
    ) -> None:
        kind = workload.kind
        self._plan, self._workload = plan, workload
        self._cells = {cell.cell: cell for cell in plan.cells}
        here: dict[tuple[str, str], list[Measured]] = {}
        for one in choose_hardware(measured, kind):
            here.setdefault(one.like, []).append(one)
        self._measured = [one for of in here.values() for one in of[-MOST_FITTED:]]
        device = _terms(spec, kind, read_prices(), None).device
        is_known = kind == "gpu" and device is not None
        self._peak_flops = device.peak_tflops * 1e12 if is_known and device else None
        self._rates: dict[tuple[str, str], Rates] = {}

    def of(self, run: FoldRun) -> Need | None:
        """None where its cell's shape or tokenizer is not known."""
        configuration = run.configuration
        cell = self._cells.get(configuration.cell)
        if cell is None or cell.shape is None or not self._workload.counts(configuration):
            return None
        kind, folds = self._workload.kind, self._workload.folds.count
        # A final test trains on all notes, of which a fold leaves one part out.
        fold, share = (0, folds / (folds - 1)) if run.is_test else (run.fold, 1.0)
        job = _job(self._workload, cell, configuration, fold, cell.shape)
        like = (configuration.cell.backbone.name, configuration.cell.strategy)
        if like not in self._rates:
            self._rates[like] = fit_rates(like, self._measured, kind, self._peak_flops)
        rates = self._rates[like]
        rough = 0.0 if _is_exact(self._workload, cell) else ROUGH_SPREAD
        estimate = Estimate.of(
            share * rates.seconds(job.parts(kind, self._peak_flops)),
            math.hypot(rates.spread, rough),
        )
        # Four numbers for each that is trained: itself, its moments, the best epoch's.
        saved = 4 * adapter_bytes(cell.trained_parameters or 0)
        return Need(
            estimate.value, estimate.low, estimate.high, rates.source == "guess",
            0.5 + saved / SAVING_RATE,
        )  # fmt: skip
