"""Forecast of a study's costs, in total and for each cell, each figure with a 90 % interval.

    Plan + Workload + measured fold-runs + prices -> Forecast

A forecast loads no weights and starts nothing. It needs the notes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from raymrc.costs.cell_forecast import FIGURES, CellForecast, figures_json, forecast_cell
from raymrc.costs.history import FoldRunProgress
from raymrc.costs.prices import Cluster, PriceTable, find_device_price
from raymrc.costs.rates import Measured, choose_hardware
from raymrc.costs.workload import Workload
from raymrc.planning.devices import GIB
from raymrc.planning.loaded import LoadedStudy
from raymrc.planning.plan import Plan, device_of
from raymrc.quantities import Estimate, Unit, format_estimate, in_time, in_usd

if TYPE_CHECKING:
    from raymrc.study.spec import Spec

FIRST_TRAINING_SECONDS = 60.0
"""Time until the first fold-runs train: Ray, hosts and backbones start. Machines that a cloud has to start
take minutes more."""

UTILISED_SHARE = 0.9
"""Share of wall time during which devices train: hosts idle at the end and between trials."""


@dataclass(frozen=True)
class Forecast:
    """Costs of a study.

    Args:
        cells: in the plan's order; None for a backbone of unknown shape.
        cluster: the machines, in words.
        devices: number of devices that train at a time.
        wall_seconds: until all remaining work is done; of races, the expected part.
        cluster_usd: price of the cluster for that time, on demand and spot; None without `--instances`.
        prices: their source, in words, with the date.
        hardware: where times were measured; "" if they are guesses.
        remarks: sentences that the reader has to know.
    """

    cells: tuple[CellForecast | None, ...]
    cluster: str
    devices: float
    wall_seconds: Estimate
    cluster_usd: tuple[Estimate, Estimate] | None
    prices: str
    hardware: str
    remarks: tuple[str, ...]

    def total(self, name: str) -> Estimate:
        """Sum of a figure over cells; the largest for memory."""
        estimates: list[Estimate] = [getattr(cell, name) for cell in self._known]
        if name == "peak_memory_bytes":
            return max(estimates, key=lambda estimate: estimate.value, default=Estimate())
        return reduce(add, estimates, Estimate())

    def shown(self, name: str, unit: Unit, between: str = "\n") -> str:
        return format_estimate(self.total(name), unit, between)

    @property
    def races(self) -> bool:
        return any(cell.device_seconds_raced != cell.device_seconds for cell in self._known)

    @property
    def _known(self) -> list[CellForecast]:
        return [cell for cell in self.cells if cell is not None]

    @property
    def notes(self) -> Iterator[str]:
        """Sentences below a table: totals that have no column, and remarks."""
        yield f"remaining work takes {format_estimate(self.wall_seconds, in_time, ' ')} on {self.cluster}"
        if self.races:
            raced = self.shown("device_seconds_raced", in_time, " ")
            usd = self.shown("usd_raced", in_usd, " ")
            yield f"racing is expected to train {raced} in total, for {usd} USD"
        if self.cluster_usd is not None:
            on_demand, spot = (format_estimate(usd, in_usd, " ") for usd in self.cluster_usd)
            yield f"the cluster costs {on_demand} USD on demand, {spot} USD spot"
        memory = self.shown("peak_memory_bytes", _in_gib, " ")
        storage, energy = self.total("storage_bytes").value / GIB, self.total("energy_kwh").value
        yield f"memory {memory}, storage {storage:.2g} GiB, energy {energy:.2g} kWh"
        yield f"prices: {self.prices}"
        yield from self.remarks

    def to_json(self) -> dict[str, Any]:
        """Figures of the study; those of cells are in `CellForecast.to_json`."""
        wall = {"wall_seconds": self.wall_seconds}
        figures = {name: self.total(name) for name in FIGURES} | wall
        cluster = {"cluster": self.cluster, "devices": self.devices} | figures_json(wall)
        if self.cluster_usd is not None:
            on_demand, spot = self.cluster_usd
            cluster |= figures_json({"usd_on_demand": on_demand, "usd_spot": spot})
        return figures_json(figures) | {
            "on_cluster": cluster,
            "prices": self.prices,
            "measured_on": self.hardware,
        }


def _in_gib(size: float) -> tuple[float, str]:
    return float(GIB), "GiB"


def build_workload(study: LoadedStudy, plan: Plan, tokenizers: Mapping[str, Any]) -> Workload:
    """The work of a study's fold-runs. Its corpus must be on this machine.

    Args:
        tokenizers: by the backbone's source; see `reading.light_tokenizers`.
    """
    shapes = {c.cell.backbone.source: c.shape for c in plan.cells if c.shape is not None}
    kind = device_of(study.spec.resources).kind
    return Workload(*study.inputs, tokenizers, shapes, kind)


def forecast(
    spec: Spec,
    plan: Plan,
    workload: Workload,
    measured: Sequence[Measured] = (),
    progress: Mapping[str, FoldRunProgress] | None = None,
    table: PriceTable | None = None,
    cluster: Cluster | None = None,
) -> Forecast:
    """Forecast the costs of a plan.

    Args:
        measured: finished fold-runs of a ledger (`history.read_history`) or a probe.
        progress: of fold-runs, by ledger key (`history.read_progress`).
        table: None uses the study's own price alone.
        cluster: machines to run on; None means this machine, or as many hosts as the study allows.

    Raises:
        SpecError: the cluster has no device of the kind that the study trains on.
    """
    kind, per_host = workload.kind, spec.resources.gpus_per_host or spec.resources.cpus_per_host
    device = find_device_price(spec, kind, table, cluster)
    gpu = cluster.machines[0][1].device if cluster is not None and kind == "gpu" else ""
    comparable = choose_hardware(measured, kind, gpu)
    cells = tuple(
        forecast_cell(cell, plan, workload, comparable, progress or {}, device)
        if cell.shape is not None and cell.cell.backbone.source in workload.tokenizers
        else None
        for cell in plan.cells
    )
    if cluster is not None:
        devices, machines = float(cluster.devices), str(cluster)
    else:
        devices = _count_devices(spec, kind, per_host)
        word = "GPU" if kind == "gpu" else "core"
        machines = f"{devices:g} {word if devices == 1 else f'{word}s'}"
    known = [cell for cell in cells if cell is not None]
    wall = _estimate_wall(known, devices, per_host)
    cluster_usd = None
    if cluster is not None:
        on_demand, spot = cluster.hour_usd(), cluster.hour_usd(spot=True)
        cluster_usd = (wall.times(on_demand / 3600), wall.times(spot / 3600))
    return Forecast(
        cells,
        machines,
        devices,
        wall,
        cluster_usd,
        device.source,
        comparable[0].hardware if comparable else "",
        tuple(_remarks(cells, workload, comparable)),
    )


def _count_devices(spec: Spec, kind: str, per_host: float) -> float:
    """Devices that train at a time on machines that are not named."""
    max_hosts = spec.resources.max_hosts
    if kind == "gpu":
        return (max_hosts or 1) * per_host
    cores = float(os.cpu_count() or 1)
    return cores if max_hosts is None else min(cores, max_hosts * per_host)


def _estimate_wall(cells: Sequence[CellForecast], devices: float, per_host: float) -> Estimate:
    """Wall seconds if all devices train until nothing is left; at least those of the longest fold-run."""
    left = reduce(add, (cell.device_seconds_raced_left for cell in cells), Estimate())
    if not left.value:
        return Estimate()
    longest = max(
        (cell.longest_fold_run for cell in cells if cell.device_seconds_left.value > 0),
        key=lambda estimate: estimate.value,
    )

    def seconds(total: float, fold_run: float, utilised: float) -> float:
        return FIRST_TRAINING_SECONDS + max(
            total / max(devices, 1e-9) / utilised, fold_run / max(per_host, 1.0)
        )

    return Estimate(
        seconds(left.value, longest.value, UTILISED_SHARE),
        seconds(left.low, longest.low, 1.0),
        seconds(left.high, longest.high, UTILISED_SHARE / 1.5),
    )


def _remarks(
    cells: Sequence[CellForecast | None], workload: Workload, measured: Sequence[Measured]
) -> Iterable[str]:
    sources = {cell.rates.source for cell in cells if cell is not None}
    if measured:
        yield f"times measured on {measured[0].hardware}"
    if "guess" in sources:
        yield "no measurements yet: times may be off by 4x; run with --probe to calibrate"
    elif "others" in sources:
        yield "some times are extrapolated from other cells; run with --probe to measure them"
    if any(not tokenizer.is_exact for tokenizer in workload.tokenizers.values()):
        yield "piece counts are estimates: a backbone's tokenizer is not on this machine"
    if None in cells:
        yield "totals leave out backbones of unknown shape"
