"""What a plan will cost, cell by cell and in total, each figure with a 90 % interval.

    Plan + Workload + what was measured + prices -> Forecast

Nothing is loaded and nothing is started for it. Without the notes there is no forecast.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import add
from typing import TYPE_CHECKING, Any

from raymrc.configuration import Configuration
from raymrc.corpora.note import Corpus
from raymrc.costs.prices import Cluster, DeviceType, PriceTable, energy_kwh
from raymrc.costs.rates import (
    SPREADS,
    Job,
    Measured,
    Rates,
    choose_hardware,
    fit_rates,
)
from raymrc.costs.workload import Workload
from raymrc.model.strategies import count_parameters
from raymrc.planning.arithmetic import adapter_bytes, price
from raymrc.planning.devices import (
    FILLED,
    GIB,
    device_of,
)
from raymrc.planning.fold_runs import fold_run
from raymrc.planning.placement import PlacementMode, peak_bytes, row_pieces
from raymrc.planning.plan import (
    CellPlan,
    Plan,
    representatives,
)
from raymrc.quantities import Estimate, in_time, in_usd
from raymrc.racing.simulate import MOST_CONFIGURATIONS, expected_share
from raymrc.reading.questions import build_questions
from raymrc.reading.relations import find_asked
from raymrc.study.notes import build_study_folds

if TYPE_CHECKING:
    from raymrc.ledger.record import Record
    from raymrc.model.shapes import Shape
    from raymrc.study.spec import Spec

ROUGH_SPREAD = 0.1
"""What counting pieces without the backbone's tokenizer adds; standard deviation of the logarithm."""

PROCESS_BYTES = 0.6 * GIB
"""Of a process on a CPU before it has a backbone: Python, torch and their libraries."""

KEPT = 1.5
"""On a CPU malloc keeps some of what cells before took in the same process: with it some needed so many times
the arithmetic."""

GROWS = 1.1
"""A process on a CPU comes to so many times what it had in a probe's seconds: fuller batches, and what malloc
keeps. Set on every other case of `benchmarks/plan.py`; a later run of all was off by 5 % in the median."""

FIRST_TRAINING_SECONDS = 60.0
"""Until the first fold-runs train: Ray, hosts, backbones. Machines that a cloud has to bring up take minutes
more."""

LEAST_LEFT = 0.2
"""Of what a race could still train, what it is expected to, however long it has gone on."""

BUSY = 0.9
"""Share of the time that devices train: hosts wait at the end, and when trials change."""

WATTS_SPREAD = 0.3
"""Of what is drawn, against what `prices.energy_kwh` says; standard deviation of the logarithm."""

RECORD_BYTES, NOTE_BYTES, COUNT_BYTES = 3000, 60, 45
"""Of a record: by itself, for each scored note, and for each label that occurs there, in two countings."""


@dataclass(frozen=True)
class CellForecast:
    """One cell.

    Args:
        device_seconds: of all its fold-runs: GPUs' seconds held, or a CPU's core-seconds.
        left: of those that are still to do.
        longest: of one fold-run, device-seconds.
        usd: of all; `left_usd` of those still to do.
        raced, raced_left: device-seconds of what is expected to be trained of all, and of those still to
            do, where configurations race; as of all where not. `raced_usd`: of all.
        flops: of all, in training, as records count them.
        peak_memory: bytes of one device, or of one process on a CPU.
        storage: bytes of records, and of what is saved of fold-runs that are open at once.
        energy: kWh of devices, of all its fold-runs.
        rates: where the time comes from.
    """

    name: str
    device_seconds: Estimate
    left: Estimate
    longest: Estimate
    usd: Estimate
    left_usd: Estimate
    raced: Estimate
    raced_left: Estimate
    raced_usd: Estimate
    flops: float
    peak_memory: Estimate
    storage: Estimate
    energy: Estimate
    rates: Rates

    def shown(self, name: str, unit: Unit) -> str:
        return shown(getattr(self, name), unit)

    def to_json(self) -> dict[str, Any]:
        return _figures(partial(getattr, self)) | {
            "flops": self.flops,
            "estimated_from": self.rates.source,
            "measured_fold_runs": self.rates.measured,
        }


@dataclass(frozen=True)
class Forecast:
    """A study.

    Args:
        cells: in the plan's order; None where a shape is not known.
        cluster: what it runs on, in words.
        devices: that train at once.
        wall: seconds until what is left is done, of races what is expected of them.
        cluster_usd: of the cluster for so long: on demand and spot; None without `--instances`.
        prices: in words, with the date.
        hardware: where rates were measured; "" where they are guessed.
        remarks: what a reader has to know, a sentence each.
    """

    cells: tuple[CellForecast | None, ...]
    cluster: str
    devices: float
    wall: Estimate
    cluster_usd: tuple[Estimate, Estimate] | None
    prices: str
    hardware: str
    remarks: tuple[str, ...]

    def total(self, name: str) -> Estimate:
        """Of a field of `CellForecast`; of memory the largest."""
        found: list[Estimate] = [getattr(cell, name) for cell in self.cells if cell is not None]
        if name == "peak_memory":
            return max(found, key=lambda estimate: estimate.value, default=Estimate())
        return reduce(add, found, Estimate())

    def shown(self, name: str, unit: Unit, between: str = "\n") -> str:
        return shown(self.total(name), unit, between)

    @property
    def races(self) -> bool:
        return any(cell is not None and cell.raced != cell.device_seconds for cell in self.cells)

    @property
    def said(self) -> Iterator[str]:
        """What stands under a table: sums that it has no column for, and remarks."""
        wall = shown(self.wall, in_time, " ")
        yield f"what is left is expected to take {wall} on {self.cluster}"
        if self.races:
            raced, usd = self.shown("raced", in_time, " "), self.shown("raced_usd", in_usd, " ")
            yield f"a race is expected to train {raced} of it all, for {usd} USD"
        if self.cluster_usd is not None:
            on_demand, spot = (shown(usd, in_usd, " ") for usd in self.cluster_usd)
            yield f"these cost {on_demand} USD on demand, {spot} spot"
        memory = shown(self.total("peak_memory"), in_gib, " ")
        storage, energy = self.total("storage").value / GIB, self.total("energy").value
        yield f"memory {memory}, storage {storage:.2g} GiB, energy {energy:.2g} kWh"
        yield f"prices: {self.prices}"
        yield from self.remarks

    def to_json(self) -> dict[str, Any]:
        """The study's figures; the cells' are `CellForecast.to_json`."""
        wall = _figure("wall_seconds", self.wall)
        cluster = {"cluster": self.cluster, "devices": self.devices} | wall
        for name, usd in zip(("on_demand", "spot"), self.cluster_usd or (), strict=False):
            cluster |= _figure(f"usd_{name}", usd)
        return (
            _figures(self.total)
            | wall
            | {"on_cluster": cluster, "prices": self.prices, "measured_on": self.hardware}
        )


FIGURES = {
    "device_seconds": "device_seconds",
    "left": "device_seconds_left",
    "usd": "usd",
    "left_usd": "usd_left",
    "raced": "device_seconds_raced",
    "raced_left": "device_seconds_raced_left",
    "raced_usd": "usd_raced",
    "peak_memory": "peak_memory_bytes",
    "storage": "storage_bytes",
    "energy": "energy_kwh",
}
"""Fields of `CellForecast` and their names in JSON; beside each stands its interval."""


Unit = Callable[[float], tuple[float, str]]
"""Of a value: what to divide by, and the unit's name behind it."""


def in_gib(size: float) -> tuple[float, str]:
    return float(GIB), "GiB"


def shown(estimate: Estimate, unit: Unit, between: str = "\n") -> str:
    """A figure and, behind it, its interval in the same unit."""
    size, name = unit(estimate.value)
    value, low, high = (
        _two_digits(number / size) for number in (estimate.value, estimate.low, estimate.high)
    )
    behind = f" {name}" if name else ""
    return f"{value}{behind}" + (f"{between}({low}-{high})" if estimate.value else "")


def _two_digits(number: float) -> str:
    rounded = float(f"{number:.2g}")
    if rounded >= 10:
        return f"{rounded:.0f}"
    # A tenth of a thousandth is as near to nothing as anyone looks.
    return f"{rounded:.4f}".rstrip("0").rstrip(".")


def _figures(estimate_of: Callable[[str], Estimate]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, shown in FIGURES.items():
        found |= _figure(shown, estimate_of(name))
    return found


def _figure(name: str, estimate: Estimate) -> dict[str, Any]:
    return {name: estimate.value, f"{name}_interval": [estimate.low, estimate.high]}


# --- from a study ---------------------------------------------------------------------------------


def build_workload(
    spec: Spec,
    plan: Plan,
    corpus: Corpus,
    transfer: Mapping[str, Corpus],
    tokenizers: Mapping[str, Any],
) -> Workload:
    """What counts the work of a study's fold-runs.

    Args:
        tokenizers: by the backbone's source; see `reading.light_tokenizers`.
    """
    asked = find_asked(spec.task, corpus)
    shapes = {c.cell.backbone.source: c.shape for c in plan.cells if c.shape is not None}
    return Workload(
        corpus,
        build_study_folds(spec, corpus),
        asked,
        build_questions(asked.labels, spec.questions, asked.relations),
        transfer,
        tokenizers,
        shapes,
        device_of(spec.resources).kind,
    )


def read_history(plan: Plan, workload: Workload, records: Iterable[Record]) -> list[Measured]:
    """A ledger's finished fold-runs on the same notes and folds, with the work that they had."""
    corpus, folds = workload.corpus.fingerprint, workload.folds.fingerprint
    planned = {cell.cell: cell for cell in plan.cells}
    found = []
    for record in records:
        run = record.fold_run
        configuration = run.configuration
        cell = planned.get(configuration.cell)
        if (
            record.status == "done"
            and not run.is_test
            and (run.corpus_fingerprint, run.folds_fingerprint) == (corpus, folds)
            and cell is not None
            and cell.shape is not None
        ):
            job = _job(workload, cell, configuration, run.fold, cell.shape)
            kind = "cpu" if record.device == "cpu" else "gpu"
            found.append(
                Measured(job, record.hardware, kind, record.device_seconds, record.peak_bytes)
            )
    return found


@dataclass(frozen=True, slots=True)
class FoldRunProgress:
    """Of a fold-run's epochs the share that is trained, and the share that is still needed; 0 to 1."""

    trained: float = 0.0
    left: float = 1.0


def read_progress(plan: Plan, records: Iterable[Record]) -> dict[str, FoldRunProgress]:
    """How far each fold-run is, by key; those of which nothing is known are left out.

    A race that goes on trains nothing more of a configuration that it has stopped.
    """
    if plan.fingerprints is None:
        return {}
    found: dict[str, FoldRunProgress] = {}
    for record in records:
        run = record.fold_run
        if record.status == "done":
            found[record.key] = FoldRunProgress(1.0, 0.0)
            continue
        trained = len(record.epochs) / run.configuration.epochs
        if record.status == "paused":
            found[record.key] = FoldRunProgress(trained, 1.0 - trained)
        elif record.status == "stopped" and plan.racing is not None:
            for fold in range(plan.folds):
                key = fold_run(run.configuration, fold, plan.fingerprints).key
                found.setdefault(key, FoldRunProgress(0.0, 0.0))
            found[record.key] = FoldRunProgress(trained, 0.0)
    return found


def forecast(
    spec: Spec,
    plan: Plan,
    workload: Workload,
    measured: Sequence[Measured] = (),
    progress: Mapping[str, FoldRunProgress] | None = None,
    table: PriceTable | None = None,
    cluster: Cluster | None = None,
) -> Forecast:
    """What a plan will cost.

    Args:
        measured: fold-runs that are finished, of a ledger (`read_history`) or a probe.
        progress: of fold-runs, by their ledger keys (`read_progress`).
        table: of prices; None: only the study's own price is known.
        cluster: that it is to run on; None: this machine, or as many hosts as the study allows.

    Raises:
        SpecError: the cluster has no device of the kind that the study trains on.
    """
    kind, per_host = workload.kind, spec.resources.gpus_per_host or spec.resources.cpus_per_host
    terms = _terms(spec, kind, table, cluster)
    named = terms.name if cluster is not None and kind == "gpu" else ""
    here = choose_hardware(measured, kind, named)
    cells = tuple(
        _forecast_cell(cell, spec, plan, workload, here, progress or {}, terms)
        if cell.shape is not None and cell.cell.backbone.source in workload.tokenizers
        else None
        for cell in plan.cells
    )
    devices = float(cluster.devices) if cluster is not None else _devices(spec, kind, per_host)
    left = reduce(add, (cell.raced_left for cell in cells if cell is not None), Estimate())
    longest = max(
        (cell.longest for cell in cells if cell is not None and cell.left.value > 0),
        key=lambda estimate: estimate.value,
        default=Estimate(),
    )
    wall = _wall(left, longest, devices, per_host)
    cluster_usd = None
    if cluster is not None:
        on_demand, spot = cluster.hour_usd(), cluster.hour_usd(spot=True)
        cluster_usd = (wall.times(on_demand / 3600), wall.times(spot / 3600))
    return Forecast(
        cells,
        str(cluster) if cluster is not None else f"{devices:g} {_many(kind, devices)}",
        devices,
        wall,
        cluster_usd,
        terms.said,
        here[0].hardware if here else "",
        tuple(_remarks(cells, workload, here)),
    )


@dataclass(frozen=True, slots=True)
class _Terms:
    """Of one device: its price by the hour, and what the table says of it."""

    hour_usd: float
    said: str
    name: str = ""
    device: DeviceType | None = None


def _terms(spec: Spec, kind: str, table: PriceTable | None, cluster: Cluster | None) -> _Terms:
    own = spec.prices.device_hour_usd
    if table is None:
        return _Terms(own, "the study's own")
    dated = f"{table.name}, of {table.date}"
    if cluster is not None:
        name, instance, _ = cluster.machines[0]
        device = table.devices[instance.device]
        if device.kind != kind:
            wants = "a GPU" if kind == "gpu" else "no GPU"
            has = "none" if kind == "gpu" else "them"
            raise spec.error(
                ("resources",),
                f"the study asks for {wants} (resources.gpus_per_host), and {name} is priced for "
                f"{has}; set one or the other",
            )
        hour = cluster.hour_usd() / cluster.devices
        return _Terms(hour, f"on demand, {dated}", instance.device, device)
    memory = device_of(spec.resources).total_bytes / GIB
    name = table.cheapest(kind, memory)
    if not name:
        return _Terms(own, "the study's own")
    instance = table.instances[name]
    device = table.devices[instance.device]
    if own:
        return _Terms(own, "the study's own (prices.device_hour_usd)", instance.device, device)
    hour = instance.on_demand / instance.devices
    return _Terms(hour, f"{name} on demand, {dated}", instance.device, device)


def _devices(spec: Spec, kind: str, per_host: float) -> float:
    """That train at once, where nobody said which machines there are."""
    most = spec.resources.max_hosts
    if kind == "gpu":
        return (most or 1) * per_host
    here = float(os.cpu_count() or 1)
    return here if most is None else min(here, most * per_host)


def _many(kind: str, number: float) -> str:
    word = "GPU" if kind == "gpu" else "core"
    return word if number == 1 else f"{word}s"


def _wall(left: Estimate, longest: Estimate, devices: float, per_host: float) -> Estimate:
    """All devices train until nothing is left, and no fold-run ends before its own time is over."""
    if not left.value:
        return Estimate()

    def seconds(total: float, one: float, busy: float) -> float:
        return FIRST_TRAINING_SECONDS + max(
            total / max(devices, 1e-9) / busy, one / max(per_host, 1.0)
        )

    return Estimate(
        seconds(left.value, longest.value, BUSY),
        seconds(left.low, longest.low, 1.0),
        seconds(left.high, longest.high, BUSY / 1.5),
    )


# --- single fold-runs -----------------------------------------------------------------------------


# --- probes --------------------------------------------------------------------------


# --- one cell -------------------------------------------------------------------------------------


def _job(
    workload: Workload,
    cell: CellPlan,
    configuration: Configuration,
    fold: int,
    shape: Shape,
) -> Job:
    return Job(
        configuration,
        workload.of(configuration, fold),
        shape,
        len(workload.asked.labels),
        len(workload.asked.relations),
        cell.placement.lanes if cell.placement is not None else 1,
    )


def _forecast_cell(
    cell: CellPlan,
    spec: Spec,
    plan: Plan,
    workload: Workload,
    measured: Sequence[Measured],
    progress: Mapping[str, FoldRunProgress],
    terms: _Terms,
) -> CellForecast:
    kind = workload.kind
    shape = cell.shape
    assert shape is not None
    peak_flops = None
    if kind == "gpu" and terms.device is not None:
        peak_flops = terms.device.peak_tflops * 1e12
    like = (cell.cell.backbone.name, cell.cell.strategy)
    rates = fit_rates(like, measured, kind, peak_flops)
    configurations = representatives(cell, plan.seed)
    weight = cell.num_configurations / len(configurations)
    seconds = to_do = trained = longest = flops = 0.0
    jobs = []
    for configuration in configurations:
        for fold in range(plan.folds):
            job = _job(workload, cell, configuration, fold, shape)
            one = rates.seconds(job.parts(kind, peak_flops))
            seconds += weight * one
            longest = max(longest, one)
            flops += weight * job.work.flops(configuration, shape, job.num_labels)[0]
            now = _progress(plan, cell, configuration, fold, progress)
            to_do += weight * one * now.left
            trained += weight * one * now.trained
            jobs.append(job)
    if cell.configurations is None and cell.done:
        # Which ones tpe has tried is not known here, so they are taken to be like the others.
        trained = seconds * cell.done / cell.num_fold_runs
        to_do = seconds - trained
    rough = 0.0 if _is_exact(workload, cell) else ROUGH_SPREAD
    spread = math.hypot(rates.spread, rough)
    watts = terms.device.watts if terms.device is not None else 0.0
    device_seconds, left = Estimate.of(seconds, spread), Estimate.of(to_do, spread)
    usd = Estimate.of(price(seconds, terms.hour_usd), spread)
    raced, raced_usd, raced_left = device_seconds, usd, left
    share = _raced_share(cell, plan, configurations[0].epochs)
    if share is not None:
        raced, raced_usd = device_seconds.by(share), usd.by(share)
        expected = (
            min(to_do, max(LEAST_LEFT * to_do, of * seconds - trained))
            for of in (share.value, share.low, share.high)
        )
        raced_left = Estimate.of(1.0, spread).by(Estimate(*expected))
    return CellForecast(
        name=cell.cell.name,
        device_seconds=device_seconds,
        left=left,
        raced_left=raced_left,
        longest=Estimate.of(longest, spread),
        usd=usd,
        left_usd=Estimate.of(price(to_do, terms.hour_usd), spread),
        raced=raced,
        raced_usd=raced_usd,
        flops=flops,
        peak_memory=_memory(cell, jobs, measured, kind),
        storage=_storage(cell, workload, jobs),
        energy=Estimate.of(energy_kwh(seconds, watts), math.hypot(spread, WATTS_SPREAD)),
        rates=rates,
    )


def _raced_share(cell: CellPlan, plan: Plan, epochs: int) -> Estimate | None:
    """Of a cell's fold-epochs those that are expected to be trained; None where nothing races."""
    if plan.racing is None or plan.racing.method == "none" or cell.num_configurations < 2:
        return None
    most = min(cell.num_configurations, MOST_CONFIGURATIONS)
    share = expected_share(most, plan.folds, epochs, plan.racing)
    # What TPE proposes lies near the best, and is harder to tell apart than a grid.
    return replace(share, high=1.0) if cell.configurations is None else share


def _is_exact(workload: Workload, cell: CellPlan) -> bool:
    return bool(workload.tokenizers[cell.cell.backbone.source].is_exact)


def _progress(
    plan: Plan,
    cell: CellPlan,
    configuration: Configuration,
    fold: int,
    progress: Mapping[str, FoldRunProgress],
) -> FoldRunProgress:
    if not progress or plan.fingerprints is None or cell.configurations is None:
        return FoldRunProgress()
    return progress.get(fold_run(configuration, fold, plan.fingerprints).key, FoldRunProgress())


def _arithmetic(cell: CellPlan, job: Job, kind: str, *, pairs: bool = True) -> float:
    """Bytes by `placement`, for rows as long as they are, not as they may be.

    Args:
        pairs: the match head sees as many as it ever does; else next to none.
    """
    configuration = job.configuration
    longest = max(job.work.training.longest, job.work.evaluation.longest, 1)
    beside = row_pieces(configuration, job.shape) - configuration.window
    width = configuration.match_width if pairs else 1
    placed = cell.placement
    lanes = min(placed.lanes, cell.num_fold_runs) if placed is not None else 1
    found = peak_bytes(
        replace(configuration, window=max(1, longest - beside), match_width=width),
        job.shape,
        job.num_labels + job.num_relations,
        kind,
        mode=placed.mode if placed is not None else PlacementMode.DEVICE,
        lanes=lanes,
        devices=placed.workers[0] if placed is not None else 1,
        checkpoints=placed.checkpoints if placed is not None else False,
    )
    if not pairs:
        asked = job.num_labels, job.num_relations
        heads = [
            count_parameters(replace(configuration, match_width=w), job.shape, *asked).heads
            for w in (configuration.match_width, 1)
        ]
        found += lanes * 4 * 4 * (heads[0] - heads[1])
    return found


def _memory(
    cell: CellPlan, jobs: Sequence[Job], measured: Sequence[Measured], kind: str
) -> Estimate:
    """The most of one process: as the cell's own fold-runs had it, or a probe's, or by arithmetic.

    How many pairs an early model's match head sees is not known before: between next to none and as many
    as it takes, which is by far the widest part of the arithmetic.
    """
    base = PROCESS_BYTES if kind == "cpu" else 0.0
    high = max(_arithmetic(cell, job, kind) for job in _largest(jobs)) / FILLED[kind]
    high = base + high * (KEPT if kind == "cpu" else 1.0)
    expected = base + max(_arithmetic(cell, job, kind, pairs=False) for job in _largest(jobs))
    like = (cell.cell.backbone.name, cell.cell.strategy)
    own = [m for m in measured if m.like == like and m.peak_bytes]
    found = [float(m.peak_bytes) for m in own if m.source == "ledger"]
    if found:
        # Of hosts that trained many: what malloc keeps and what models answered is in it.
        return Estimate(max(found), min(found), max(high, 1.1 * max(found)))
    found = [
        m.peak_bytes * (GROWS if kind == "cpu" else 1.0)
        + max(0.0, expected - base - _arithmetic(cell, m.job, kind, pairs=False))
        for m in own
    ]
    if found:
        value = statistics.median(found)
        return Estimate(value, 0.85 * min(found), max(high, 1.15 * max(found)))
    return Estimate(expected, 0.7 * expected, max(high, expected))


def _largest(jobs: Sequence[Job]) -> list[Job]:
    """One fold-run of each configuration, with the longest rows: all that memory depends on."""
    found: dict[Configuration, Job] = {}
    for job in jobs:
        known = found.get(job.configuration)
        if known is None or job.work.training.longest > known.work.training.longest:
            found[job.configuration] = job
    return list(found.values())


def _storage(cell: CellPlan, workload: Workload, jobs: Sequence[Job]) -> Estimate:
    labels = max(1, jobs[0].num_labels + jobs[0].num_relations)
    scored = len(workload.corpus.notes) / workload.folds.count
    scored += sum(len(site.notes) for site in workload.transfer.values())
    each = RECORD_BYTES + scored * (NOTE_BYTES + 2 * COUNT_BYTES * min(labels, 4))
    lanes = cell.placement.lanes if cell.placement is not None else 1
    open_at_once = min(lanes, cell.num_fold_runs)
    # What is trained, its two moments and the best epoch.
    saved = open_at_once * 4 * adapter_bytes(cell.trained_parameters or 0)
    return Estimate.of(cell.num_fold_runs * each + saved, SPREADS["others"])


def _remarks(
    cells: Sequence[CellForecast | None], workload: Workload, measured: Sequence[Measured]
) -> Iterable[str]:
    sources = {cell.rates.source for cell in cells if cell is not None}
    if measured:
        yield f"times as measured on {measured[0].hardware}"
    if "guess" in sources:
        yield "nothing like it was measured, so times are within four times either way; --probe measures"
    elif "others" in sources:
        yield "some times are taken from other cells; --probe measures them"
    if any(not tokenizer.is_exact for tokenizer in workload.tokenizers.values()):
        yield "pieces are guessed where the backbone's tokenizer is not here"
    if None in cells:
        yield "cells of an unknown shape are not in the sums"
