"""The metrics that a running study publishes; each is declared here, once.

    driver, coordinator, hosts -> Ray's agent on their machine -> Prometheus -> dashboards/

Labels are the names of the study, its cells, backbones and strategies, so the number of series is a small
multiple of the number of cells. No label holds a fold-run's key, a note's id or text.
"""

from __future__ import annotations

import math
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from raymrc.errors import RaymrcError
from raymrc.planning.arithmetic import price
from raymrc.scheduling.orders import HostKind

if TYPE_CHECKING:
    from raymrc.configuration import Cell, FoldRun
    from raymrc.costs.budget import Budget, Spent
    from raymrc.ledger.record import Record
    from raymrc.planning.plan import CellPlan
    from raymrc.scheduling.fleet import FleetHost
    from raymrc.scheduling.progress import CellProgress

PUBLISH_SECONDS = 2.0
"""Interval between updates of gauges. Ray drops a gauge after two of its reporting intervals of 10 s."""

STUDY = ("study",)
CELL_LABELS = ("study", "cell", "backbone", "strategy")


@dataclass(frozen=True, slots=True)
class Metric:
    """
    Args:
        kind: "gauge", "counter" or "histogram".
        unit: Grafana's name of it.
        buckets: upper bounds of a histogram. Ray guesses a histogram's sum from them: do not show the sum.
    """

    name: str
    kind: str
    unit: str
    labels: tuple[str, ...]
    description: str
    buckets: tuple[float, ...] = ()

    @property
    def exported(self) -> str:
        """Its name in Prometheus."""
        return f"ray_{self.name}" + {"counter": "_total", "histogram": "_bucket"}.get(self.kind, "")


# fmt: off
# --- published by the driver
FOLD_RUNS = Metric("raymrc_fold_runs", "gauge", "short", (*CELL_LABELS, "state"),
    "Fold-runs of the plan: done, failed, left, closed (their cell is abandoned), spared (by a race).")
BEST_F1 = Metric("raymrc_best_f1", "gauge", "percentunit", CELL_LABELS,
    "Mean validation F1 of the best configuration with all folds done, 0 to 1.")
ENDED = Metric("raymrc_fold_runs_ended", "counter", "short", (*CELL_LABELS, "status"),
    "Tries of fold-runs that ended in this run: done, failed, paused or stopped (by a race).")
RETRIES = Metric("raymrc_retries", "counter", "short", CELL_LABELS,
    "Fold-runs that failed and are retried.")
DEVICE_SECONDS = Metric("raymrc_device_seconds", "counter", "s", CELL_LABELS,
    "Device-seconds of ended fold-runs, failed and stopped ones included; hosts are held for longer.")
COST_USD = Metric("raymrc_cost_usd", "counter", "currencyUSD", CELL_LABELS,
    "Cost of the device-seconds of ended fold-runs, at the study's price.")
FOLD_RUN_SECONDS = Metric("raymrc_fold_run_seconds", "histogram", "s", CELL_LABELS,
    "Wall-clock seconds from the start to the end of a fold-run that is done.",
    (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5))
# --- published by the coordinator
LANES_OPEN = Metric("raymrc_lanes_open", "gauge", "short", CELL_LABELS,
    "Fold-runs that hosts are training now.")
QUEUE = Metric("raymrc_queue", "gauge", "short", CELL_LABELS,
    "Submitted fold-runs that wait for a host.")
HOSTS = Metric("raymrc_hosts", "gauge", "short", (*STUDY, "kind", "state"),
    "Single-device hosts and worker groups that are running or requested.")
DEVICES_HELD = Metric("raymrc_devices_held", "gauge", "short", STUDY,
    "Devices that the study is charged for now: GPUs, or CPU cores where it has no GPU.")
HOST_DEATHS = Metric("raymrc_host_deaths", "counter", "short", (*STUDY, "kind"),
    "Hosts and worker groups that died; their fold-runs continue elsewhere.")
EVICTIONS = Metric("raymrc_evictions", "counter", "short", (*STUDY, "kind"),
    "Hosts and worker groups that saved their lanes and left because their machine is taken away.")
SPENT_USD = Metric("raymrc_spent_usd", "gauge", "currencyUSD", STUDY,
    "Dollars of device time spent in all runs of the study.")
SPENT_DEVICE_SECONDS = Metric("raymrc_spent_device_seconds", "gauge", "s", STUDY,
    "Device-seconds that hosts were held, idle or not, in all runs of the study.")
SPENT_WALL_SECONDS = Metric("raymrc_spent_wall_seconds", "gauge", "s", STUDY,
    "Wall-clock seconds during which a driver was running the study.")
BUDGET_USD = Metric("raymrc_budget_usd", "gauge", "currencyUSD", STUDY,
    "The cap in dollars, if there is one.")
BUDGET_DEVICE_SECONDS = Metric("raymrc_budget_device_seconds", "gauge", "s", STUDY,
    "The cap in device-seconds, if there is one.")
BUDGET_WALL_SECONDS = Metric("raymrc_budget_wall_seconds", "gauge", "s", STUDY,
    "The cap in wall-clock seconds, if there is one.")
# --- published by hosts
TOKENS = Metric("raymrc_tokens", "counter", "short", CELL_LABELS,
    "Pieces that training passed through the encoder, questions included and padding excluded.")
TRAINING_LOSS = Metric("raymrc_training_loss", "gauge", "short", CELL_LABELS,
    "Training loss of the latest epoch, averaged over a host's latest fold-runs.")
GPU_RESERVED_BYTES = Metric("raymrc_gpu_reserved_bytes", "gauge", "bytes", (*STUDY, "backbone"),
    "GPU memory reserved by a host's process; in a worker group, by its first process.")
# fmt: on

METRICS: tuple[Metric, ...] = tuple(v for v in list(globals().values()) if isinstance(v, Metric))


class MetricPublisher:
    """Publishes the metrics of one process.

    Counters start with an explicit 0, because Prometheus takes the first value that it sees for the start.

    Args:
        study: the study's name; "" publishes nothing.
    """

    def __init__(self, study: str = "") -> None:
        self._study = study
        self._recorders: dict[str, Callable[[float, dict[str, str]], None]] = {}
        self._published_at = -math.inf

    def __bool__(self) -> bool:
        return bool(self._study)

    @property
    def is_due(self) -> bool:
        """Whether gauges should be set now. True at most once per `PUBLISH_SECONDS`."""
        now = time.monotonic()
        if not self or now - self._published_at < PUBLISH_SECONDS:
            return False
        self._published_at = now
        return True

    def publish(
        self, metric: Metric, value: float, cell: Cell | None = None, **labels: str
    ) -> None:
        """Set a gauge, add to a counter, or count a value into a histogram."""
        if not self:
            return
        if metric.name not in self._recorders:
            self._recorders[metric.name] = _register(metric)
        cell_labels = {} if cell is None else _labels(cell)
        self._recorders[metric.name](value, {"study": self._study, **cell_labels, **labels})

    # --- by the driver ------------------------------------------------------------------------------

    def publish_cells(self, plans: Sequence[CellPlan], progress: Sequence[CellProgress]) -> None:
        """Publish each cell's progress; both sequences are in plan order."""
        for plan, cell in zip(plans, progress, strict=True):
            left = max(0, cell.total - cell.done - cell.failed)
            states = {
                "done": cell.done,
                "failed": cell.failed,
                "left": 0 if cell.closed else left,
                "closed": left if cell.closed else 0,
                "spared": plan.num_fold_runs - cell.total,
            }
            for state, number in states.items():
                self.publish(FOLD_RUNS, number, plan.cell, state=state)
            if cell.best_f1 is not None:
                self.publish(BEST_F1, cell.best_f1, plan.cell)
            for status in ("done", "failed"):
                self.publish(ENDED, 0, plan.cell, status=status)
            for counter in (RETRIES, DEVICE_SECONDS, COST_USD):
                self.publish(counter, 0, plan.cell)

    def publish_end(self, record: Record, device_hour_usd: float, *, will_retry: bool) -> None:
        """Publish the result of one try of a fold-run."""
        cell = record.fold_run.configuration.cell
        self.publish(ENDED, 1, cell, status=record.status)
        if will_retry:
            self.publish(RETRIES, 1, cell)
        if not record.is_paused:  # a later record of the same fold-run includes its costs
            self.publish(DEVICE_SECONDS, record.device_seconds, cell)
            self.publish(COST_USD, price(record.device_seconds, device_hour_usd), cell)
        if record.is_done:
            self.publish(FOLD_RUN_SECONDS, record.wall_seconds, cell)

    # --- by the coordinator -------------------------------------------------------------------------

    def publish_work(
        self, cells: Iterable[Cell], training: Iterable[FoldRun], queued: Iterable[FoldRun]
    ) -> None:
        lanes = Counter(run.configuration.cell for run in training)
        waiting = Counter(run.configuration.cell for run in queued)
        for cell in cells:
            self.publish(LANES_OPEN, lanes[cell], cell)
            self.publish(QUEUE, waiting[cell], cell)

    def publish_hosts(self, hosts: Iterable[FleetHost], devices: float) -> None:
        """Publish the fleet, and the number of devices that the study is charged for."""
        counts = Counter((host.kind, host.is_running) for host in hosts)
        for kind in HostKind:
            self.publish(HOSTS, counts[kind, True], kind=kind, state="there")
            self.publish(HOSTS, counts[kind, False], kind=kind, state="asked for")
            for counter in (HOST_DEATHS, EVICTIONS):
                self.publish(counter, 0, kind=kind)
        self.publish(DEVICES_HELD, devices)

    def publish_spending(self, spent: Spent, budget: Budget) -> None:
        self.publish(SPENT_USD, spent.usd)
        self.publish(SPENT_DEVICE_SECONDS, spent.device_seconds)
        self.publish(SPENT_WALL_SECONDS, spent.wall_seconds)
        for metric, limit, unit in (
            (BUDGET_USD, budget.usd, 1),
            (BUDGET_DEVICE_SECONDS, budget.device_hours, 3600),
            (BUDGET_WALL_SECONDS, budget.wall_hours, 3600),
        ):
            if limit is not None:
                self.publish(metric, unit * limit)


def _register(metric: Metric) -> Callable[[float, dict[str, str]], None]:
    """Needs a process with a Ray core worker."""
    from ray.util.metrics import Counter, Gauge, Histogram

    from raymrc.sweep.ray_internals import record_metric

    text, labels = metric.description, metric.labels
    if metric.kind == "histogram":
        return partial(record_metric, Histogram(metric.name, text, list(metric.buckets), labels))
    kind = {"gauge": Gauge, "counter": Counter}[metric.kind]
    return partial(record_metric, kind(metric.name, text, labels))


@lru_cache(maxsize=4096)
def _labels(cell: Cell) -> dict[str, str]:
    return {"cell": cell.name, "backbone": cell.backbone.name, "strategy": cell.strategy}


@dataclass(eq=False, slots=True)
class _LaneState:
    cell: Cell
    tokens: int
    loss: float | None = None


class LaneMetrics:
    """The metrics of a host's lanes that are open or closed since the last update: some train for less than
    `PUBLISH_SECONDS`."""

    def __init__(self, publisher: MetricPublisher) -> None:
        self._publisher = publisher
        self._lanes: dict[str, _LaneState] = {}
        self._closed: list[_LaneState] = []

    def open(self, fold_run: FoldRun, tokens: int) -> None:
        """Note a lane; `tokens` were trained before this host opened it."""
        cell = fold_run.configuration.cell
        self._lanes[fold_run.key] = _LaneState(cell, tokens)
        self._publisher.publish(TOKENS, 0, cell)

    def set_loss(self, key: str, loss: float) -> None:
        """Note the mean loss of the lane's latest epoch."""
        if key in self._lanes:
            self._lanes[key].loss = loss

    def set_tokens(self, key: str, tokens: int) -> None:
        """Publish what the lane's total has grown by."""
        lane = self._lanes.get(key)
        if lane is not None and tokens > lane.tokens:
            self._publisher.publish(TOKENS, tokens - lane.tokens, lane.cell)
            lane.tokens = tokens

    def close(self, key: str) -> None:
        lane = self._lanes.pop(key, None)
        if lane is not None and self._publisher:
            self._closed.append(lane)

    def publish(self, tokens: Callable[[str], int]) -> None:
        """Publish all lanes, if it is time; `tokens` returns the total of an open lane by its key."""
        if not self._publisher.is_due:
            return
        for key in self._lanes:
            self.set_tokens(key, tokens(key))
        losses: dict[Cell, list[float]] = {}
        for lane in (*self._lanes.values(), *self._closed):
            if lane.loss is not None:
                losses.setdefault(lane.cell, []).append(lane.loss)
        self._closed.clear()
        for cell, values in losses.items():
            self._publisher.publish(TRAINING_LOSS, sum(values) / len(values), cell)
        torch = sys.modules.get("torch")
        if self._lanes and torch is not None and torch.cuda.is_initialized():
            backbone = next(iter(self._lanes.values())).cell.backbone.name
            self._publisher.publish(
                GPU_RESERVED_BYTES, torch.cuda.memory_reserved(), backbone=backbone
            )


def check_port(port: int) -> None:
    """
    Raises:
        RaymrcError: the port is taken. Ray would export nothing and raise no error.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError):
            raise RaymrcError(
                f"port {port} is not free on this machine; give --metrics-port another one"
            ) from None
