"""Forecast of one cell: time, money, memory, storage and energy, each with a 90 % interval.

CellPlan + Workload + measured fold-runs + DevicePrice -> CellForecast
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

from raymrc.configuration import Configuration
from raymrc.costs.history import FoldRunProgress, build_job
from raymrc.costs.prices import DevicePrice, energy_kwh
from raymrc.costs.rates import SPREADS, Job, Measured, Rates, fit_rates
from raymrc.costs.workload import Workload
from raymrc.model.strategies import count_parameters
from raymrc.planning.arithmetic import price
from raymrc.planning.devices import FILLED, GIB
from raymrc.planning.fold_runs import fold_run
from raymrc.planning.placement import Way, row_pieces
from raymrc.planning.plan import CellPlan, Plan, representatives
from raymrc.quantities import Estimate, Unit, format_estimate
from raymrc.racing.simulate import MAX_REPLAYED_CONFIGURATIONS, expected_share

PROCESS_BYTES = 0.6 * GIB
"""Memory of a CPU process without a backbone: Python, torch and their libraries."""

MALLOC_FACTOR = 1.5
"""On a CPU malloc keeps memory of earlier cells in the same process. Some processes needed this many times
the computed memory."""

PROBE_GROWTH = 1.1
"""On a CPU a process grows to this many times its memory during a probe: batches get fuller, and malloc keeps
some. Fitted on every second case of `benchmarks/plan.py`; all cases later had a median error of 5 %."""

MIN_SHARE_LEFT = 0.2
"""A race is expected to train at least this share of what it still could, however far it is."""

WATTS_SPREAD = 0.3
"""Standard deviation of the logarithm of drawn watts, relative to `prices.energy_kwh`."""

RECORD_BYTES = 3000
NOTE_BYTES = 60
LABEL_BYTES = 45
"""Size of a record: base, plus this much per scored note, plus this much per label and count scheme in a
note."""

FIGURES = (
    "device_seconds",
    "device_seconds_left",
    "usd",
    "usd_left",
    "device_seconds_raced",
    "device_seconds_raced_left",
    "usd_raced",
    "peak_memory_bytes",
    "storage_bytes",
    "energy_kwh",
)
"""Estimates of `CellForecast` that stand in JSON, each beside its interval."""


@dataclass(frozen=True)
class CellForecast:
    """Costs of one cell.

    Args:
        device_seconds: GPU-seconds held, or CPU core-seconds, of all its fold-runs.
        device_seconds_left: of the unfinished ones.
        longest_fold_run: device-seconds of the longest fold-run.
        usd, usd_left: price of all fold-runs, and of the unfinished ones.
        device_seconds_raced, device_seconds_raced_left, usd_raced: what a race is expected to train of them;
            without a race, equal to the figures above.
        flops: training operations, counted as in records.
        peak_memory_bytes: of one GPU, or of one CPU process.
        storage_bytes: records, and checkpoints of the fold-runs that are open at a time.
        energy_kwh: drawn by devices.
        rates: where the times come from.
    """

    device_seconds: Estimate
    device_seconds_left: Estimate
    longest_fold_run: Estimate
    usd: Estimate
    usd_left: Estimate
    device_seconds_raced: Estimate
    device_seconds_raced_left: Estimate
    usd_raced: Estimate
    flops: float
    peak_memory_bytes: Estimate
    storage_bytes: Estimate
    energy_kwh: Estimate
    rates: Rates

    def shown(self, name: str, unit: Unit) -> str:
        return format_estimate(getattr(self, name), unit)

    def to_json(self) -> dict[str, Any]:
        return figures_json({name: getattr(self, name) for name in FIGURES}) | {
            "flops": self.flops,
            "estimated_from": self.rates.source,
            "measured_fold_runs": self.rates.measured,
        }


def figures_json(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """Each figure by name, and its interval beside it."""
    values: dict[str, Any] = {}
    for name, estimate in estimates.items():
        values |= {name: estimate.value, f"{name}_interval": [estimate.low, estimate.high]}
    return values


def forecast_cell(
    cell: CellPlan,
    plan: Plan,
    workload: Workload,
    measured: Sequence[Measured],
    progress: Mapping[str, FoldRunProgress],
    device: DevicePrice,
) -> CellForecast:
    """
    Args:
        measured: finished fold-runs of any cell, all on one hardware.
        progress: by ledger key.
    """
    shape = cell.shape
    assert shape is not None
    kind, peak_flops = workload.kind, device.peak_flops
    rates = fit_rates((cell.cell.backbone.name, cell.cell.strategy), measured, kind, peak_flops)
    configurations = representatives(cell, plan.seed)
    weight = cell.num_configurations / len(configurations)
    seconds = seconds_left = seconds_trained = longest = flops = 0.0
    jobs = []
    for configuration in configurations:
        for fold in range(plan.folds):
            job = build_job(workload, cell, configuration, fold)
            fold_run_seconds = rates.seconds(job, kind, peak_flops)
            seconds += weight * fold_run_seconds
            longest = max(longest, fold_run_seconds)
            flops += weight * job.work.flops(configuration, shape, job.num_labels)[0]
            now = FoldRunProgress()
            if progress and plan.fingerprints is not None and cell.configurations is not None:
                now = progress.get(fold_run(configuration, fold, plan.fingerprints).key, now)
            seconds_left += weight * fold_run_seconds * now.left
            seconds_trained += weight * fold_run_seconds * now.trained
            jobs.append(job)
    if cell.configurations is None and cell.done:
        # The configurations that TPE has tried are unknown here; they count like the others.
        seconds_trained = seconds * cell.done / cell.num_fold_runs
        seconds_left = seconds - seconds_trained
    spread = rates.total_spread(workload.tokenizers[cell.cell.backbone.source])
    device_seconds = Estimate.of(seconds, spread)
    usd = Estimate.of(price(seconds, device.hour_usd), spread)
    left = Estimate.of(seconds_left, spread)
    raced, usd_raced, raced_left = device_seconds, usd, left
    share = _raced_share(cell, plan, configurations[0].epochs)
    if share is not None:
        raced, usd_raced = device_seconds.by(share), usd.by(share)
        least = MIN_SHARE_LEFT * seconds_left
        to_train = (max(least, s * seconds - seconds_trained) for s in astuple(share))
        expected = Estimate(*(min(seconds_left, number) for number in to_train))
        raced_left = Estimate.of(1.0, spread).by(expected)
    return CellForecast(
        device_seconds=device_seconds,
        device_seconds_left=left,
        longest_fold_run=Estimate.of(longest, spread),
        usd=usd,
        usd_left=Estimate.of(price(seconds_left, device.hour_usd), spread),
        device_seconds_raced=raced,
        device_seconds_raced_left=raced_left,
        usd_raced=usd_raced,
        flops=flops,
        peak_memory_bytes=_estimate_memory(cell, jobs, measured, kind),
        storage_bytes=_estimate_storage(cell, workload, jobs),
        energy_kwh=Estimate.of(energy_kwh(seconds, device.watts), math.hypot(spread, WATTS_SPREAD)),
        rates=rates,
    )


def _raced_share(cell: CellPlan, plan: Plan, epochs: int) -> Estimate | None:
    """Share of a cell's fold-epochs that its race is expected to train; None without a race."""
    if plan.racing is None or cell.num_configurations < 2:
        return None
    size = min(cell.num_configurations, MAX_REPLAYED_CONFIGURATIONS)
    share = expected_share(size, plan.folds, epochs, plan.racing)
    # TPE proposes configurations near the best, which are harder to tell apart than those of a grid.
    return replace(share, high=1.0) if cell.configurations is None else share


def _compute_memory(cell: CellPlan, job: Job, kind: str, *, all_pairs: bool) -> float:
    """Bytes by the formulas of `placement`, for the rows' real lengths.

    Args:
        all_pairs: the match head sees as many pairs as it ever takes; otherwise almost none.
    """
    configuration = job.configuration
    longest = max(job.work.training.longest, job.work.evaluation.longest, 1)
    beside_window = row_pieces(configuration, job.shape) - configuration.window
    placed = cell.placement
    assert placed is not None
    lanes = min(placed.lanes, cell.num_fold_runs)
    way = Way(
        replace(
            configuration,
            window=max(1, longest - beside_window),
            match_width=configuration.match_width if all_pairs else 1,
        ),
        job.shape,
        job.num_labels + job.num_relations,
        kind,
        mode=placed.mode,
        lanes=lanes,
        devices=placed.workers[0],
        checkpoints=placed.checkpoints,
    )
    total = way.peak_bytes()
    if not all_pairs:
        # A narrow match head has fewer parameters than the real one: add theirs back.
        asked = job.num_labels, job.num_relations
        real, narrow = (
            count_parameters(replace(configuration, match_width=width), job.shape, *asked).heads
            for width in (configuration.match_width, 1)
        )
        total += lanes * 4 * 4 * (real - narrow)
    return total


def _estimate_memory(
    cell: CellPlan, jobs: Sequence[Job], measured: Sequence[Measured], kind: str
) -> Estimate:
    """Largest memory of one process: measured on the cell's own fold-runs, else by a probe, else computed.

    The number of pairs that the match head sees early in training is unknown, between almost none and all
    that it takes. This makes up most of the interval.
    """
    on_cpu = kind == "cpu"
    base = PROCESS_BYTES if on_cpu else 0.0
    # The fold-run with the longest rows stands for its configuration: memory depends on nothing else.
    largest: dict[Configuration, Job] = {}
    for job in sorted(jobs, key=lambda job: -job.work.training.longest):
        largest.setdefault(job.configuration, job)
    few, all_ = (
        max(_compute_memory(cell, job, kind, all_pairs=all_pairs) for job in largest.values())
        for all_pairs in (False, True)
    )
    value = base + few
    high = base + all_ / FILLED[kind] * (MALLOC_FACTOR if on_cpu else 1.0)
    like = (cell.cell.backbone.name, cell.cell.strategy)
    of_cell = [m for m in measured if m.like == like and m.peak_bytes]
    peaks = [float(m.peak_bytes) for m in of_cell if m.source == "ledger"]
    if peaks:
        # Peaks of hosts that trained many fold-runs include what malloc keeps.
        return Estimate(max(peaks), min(peaks), max(high, 1.1 * max(peaks)))
    peaks = [
        m.peak_bytes * (PROBE_GROWTH if on_cpu else 1.0)
        + max(0.0, value - base - _compute_memory(cell, m.job, kind, all_pairs=False))
        for m in of_cell
    ]
    if peaks:
        return Estimate(statistics.median(peaks), 0.85 * min(peaks), max(high, 1.15 * max(peaks)))
    return Estimate(value, 0.7 * value, max(high, value))


def _estimate_storage(cell: CellPlan, workload: Workload, jobs: Sequence[Job]) -> Estimate:
    labels = max(1, jobs[0].num_labels + jobs[0].num_relations)
    scored_notes = len(workload.corpus.notes) / workload.folds.count
    scored_notes += sum(len(site.notes) for site in workload.transfer.values())
    record_bytes = RECORD_BYTES + scored_notes * (NOTE_BYTES + 2 * LABEL_BYTES * min(labels, 4))
    open_at_a_time = min(jobs[0].lanes, cell.num_fold_runs)
    # The trained numbers, their two moments and the best epoch's.
    checkpoint_bytes = 4 * (cell.adapter_bytes or 0)
    total = cell.num_fold_runs * record_bytes + open_at_a_time * checkpoint_bytes
    return Estimate.of(total, SPREADS["others"])
