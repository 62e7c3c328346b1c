"""What a run tells while it goes on. Each figure is declared here, once.

    driver, reception, hosts -> Ray's agent on their machine -> Prometheus -> dashboards/

Labels are names of the study, its cells, backbones and strategies: as many series as a plan has cells, times
a few. No fold-run, no note and no text is among them.
"""

from __future__ import annotations

import math
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from raymrc.errors import RaymrcError

if TYPE_CHECKING:
    from raymrc.configuration import Cell, FoldRun
    from raymrc.costs.budget import Budget, Spent
    from raymrc.ledger.record import Record
    from raymrc.planning.plan import CellPlan
    from raymrc.scheduling.progress import CellProgress

PUBLISH_SECONDS = 2.0
"""So often gauges are set: Ray drops one that was not for two of its reporting intervals of 10 s."""

STUDY = ("study",)
CELL_LABELS = ("study", "cell", "backbone", "strategy")


@dataclass(frozen=True, slots=True)
class Metric:
    """
    Args:
        kind: "gauge", "counter" or "histogram".
        unit: as Grafana names it.
        buckets: upper bounds, of a histogram. Ray guesses its sum from them: do not show it.
    """

    name: str
    kind: str
    unit: str
    labels: tuple[str, ...]
    description: str
    buckets: tuple[float, ...] = ()

    @property
    def exported(self) -> str:
        """What Prometheus knows it by."""
        return f"ray_{self.name}" + {"counter": "_total", "histogram": "_bucket"}.get(self.kind, "")


# --- by the driver -----------------------------------------------------------------------------------

FOLD_RUNS = Metric(
    "raymrc_fold_runs", "gauge", "short", (*CELL_LABELS, "state"),
    "Fold-runs of the plan: done, failed, left, closed (their cell was given up), spared (by racing).",
)  # fmt: skip
BEST_F1 = Metric(
    "raymrc_best_f1", "gauge", "percentunit", CELL_LABELS,
    "Mean validation F1 of the best configuration whose folds are all done, 0 to 1.",
)  # fmt: skip
ENDED = Metric(
    "raymrc_fold_runs_ended", "counter", "short", (*CELL_LABELS, "status"),
    "Tries of fold-runs that came to an end in this run: done, failed, paused or stopped (by a race).",
)  # fmt: skip
RETRIES = Metric(
    "raymrc_retries", "counter", "short", CELL_LABELS,
    "Fold-runs that failed and are tried again.",
)  # fmt: skip
DEVICE_SECONDS = Metric(
    "raymrc_device_seconds", "counter", "s", CELL_LABELS,
    "Device-seconds that finished fold-runs used, failed and stopped ones too; hosts are held for longer.",
)  # fmt: skip
COST_USD = Metric(
    "raymrc_cost_usd", "counter", "currencyUSD", CELL_LABELS,
    "The same at the study's price.",
)  # fmt: skip
FOLD_RUN_SECONDS = Metric(
    "raymrc_fold_run_seconds", "histogram", "s", CELL_LABELS,
    "Seconds by the clock from a fold-run's start to its end, of those that are done.",
    (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5),
)  # fmt: skip

# --- by the reception ----------------------------------------------------------------------------------

LANES_OPEN = Metric(
    "raymrc_lanes_open", "gauge", "short", CELL_LABELS, "Fold-runs that hosts are training now.",
)  # fmt: skip
QUEUE = Metric(
    "raymrc_queue", "gauge", "short", CELL_LABELS,
    "Fold-runs that wait for a host, of those that are handed in.",
)  # fmt: skip
HOSTS = Metric(
    "raymrc_hosts", "gauge", "short", (*STUDY, "kind", "state"),
    "Hosts of one device and worker groups of several: there, or asked for.",
)  # fmt: skip
DEVICES_HELD = Metric(
    "raymrc_devices_held", "gauge", "short", STUDY,
    "Devices that the study is charged for now: GPUs, else a CPU's cores.",
)  # fmt: skip
HOST_DEATHS = Metric(
    "raymrc_host_deaths", "counter", "short", (*STUDY, "kind"),
    "Hosts and worker groups that were lost without a word; their fold-runs go on elsewhere.",
)  # fmt: skip
EVICTIONS = Metric(
    "raymrc_evictions", "counter", "short", (*STUDY, "kind"),
    "Hosts and worker groups that saved what they had and went, since their machine is taken away.",
)  # fmt: skip
SPENT_USD = Metric(
    "raymrc_spent_usd", "gauge", "currencyUSD", STUDY,
    "Dollars of device time that the study has spent, in all its runs.",
)  # fmt: skip
SPENT_DEVICE_SECONDS = Metric(
    "raymrc_spent_device_seconds", "gauge", "s", STUDY,
    "Device-seconds that hosts were held for, idle or not, in all runs of the study.",
)  # fmt: skip
SPENT_WALL_SECONDS = Metric(
    "raymrc_spent_wall_seconds", "gauge", "s", STUDY,
    "Seconds in which a driver had the study in hand.",
)  # fmt: skip
BUDGET_USD = Metric(
    "raymrc_budget_usd", "gauge", "currencyUSD", STUDY, "The cap in dollars, where there is one.",
)  # fmt: skip
BUDGET_DEVICE_SECONDS = Metric(
    "raymrc_budget_device_seconds", "gauge", "s", STUDY,
    "The cap in device-seconds, where there is one.",
)  # fmt: skip
BUDGET_WALL_SECONDS = Metric(
    "raymrc_budget_wall_seconds", "gauge", "s", STUDY,
    "The cap in seconds by the clock, where there is one.",
)  # fmt: skip

# --- by hosts ------------------------------------------------------------------------------------------

TOKENS = Metric(
    "raymrc_tokens", "counter", "short", CELL_LABELS,
    "Real pieces that training passed through the encoder, questions included.",
)  # fmt: skip
TRAINING_LOSS = Metric(
    "raymrc_training_loss", "gauge", "short", CELL_LABELS,
    "Mean training loss of the latest epoch of the fold-runs that a host has open.",
)  # fmt: skip
GPU_RESERVED_BYTES = Metric(
    "raymrc_gpu_reserved_bytes", "gauge", "bytes", (*STUDY, "backbone"),
    "GPU memory that a host's process has taken; of a worker group, its first process.",
)  # fmt: skip

METRICS: tuple[Metric, ...] = tuple(v for v in list(globals().values()) if isinstance(v, Metric))

ENDS = ("done", "failed")
"""Of `ENDED`, what is there from the beginning, at 0."""


class Meters:
    """What one process tells of a study.

    Args:
        study: its name; "" for one that tells nothing.
    """

    def __init__(self, study: str = "") -> None:
        self._study = study
        self._found: dict[str, Any] = {}
        self._told_at = -math.inf

    def __bool__(self) -> bool:
        return bool(self._study)

    @property
    def is_due(self) -> bool:
        """Whether gauges are to be set now; once in `PUBLISH_SECONDS`."""
        now = time.monotonic()
        if not self or now - self._told_at < PUBLISH_SECONDS:
            return False
        self._told_at = now
        return True

    def tell(self, metric: Metric, value: float, cell: Cell | None = None, **labels: str) -> None:
        """Sets a gauge, adds to a counter, or counts a value into a histogram.

        Counters are told 0 at their beginning: Prometheus takes their first value for where they began.
        """
        if not self:
            return
        if metric.name not in self._found:
            self._found[metric.name] = _register(metric)
        of_cell = {} if cell is None else _labels(cell)
        # Not by `inc`, which refuses 0.
        self._found[metric.name]._record(value, {"study": self._study, **of_cell, **labels})


def _register(metric: Metric) -> Any:
    """As this process's core worker knows it; there has to be one."""
    from ray.util.metrics import Counter, Gauge, Histogram

    if metric.kind == "histogram":
        return Histogram(metric.name, metric.description, list(metric.buckets), metric.labels)
    kind = {"gauge": Gauge, "counter": Counter}[metric.kind]
    return kind(metric.name, metric.description, metric.labels)


@lru_cache(maxsize=4096)
def _labels(cell: Cell) -> dict[str, str]:
    return {"cell": cell.name, "backbone": cell.backbone.name, "strategy": cell.strategy}


# --- who tells what ------------------------------------------------------------------------------------


def publish_cells(meters: Meters, plans: Sequence[CellPlan], shown: Sequence[CellProgress]) -> None:
    """How far the cells of a plan are; by the driver."""
    for plan, progress in zip(plans, shown, strict=True):
        left = max(0, progress.total - progress.done - progress.failed)
        states = {
            "done": progress.done,
            "failed": progress.failed,
            "left": 0 if progress.closed else left,
            "closed": left if progress.closed else 0,
            "spared": plan.num_fold_runs - progress.total,
        }
        for state, number in states.items():
            meters.tell(FOLD_RUNS, number, plan.cell, state=state)
        if progress.best_f1 is not None:
            meters.tell(BEST_F1, progress.best_f1, plan.cell)
        for status in ENDS:
            meters.tell(ENDED, 0, plan.cell, status=status)
        for counter in (RETRIES, DEVICE_SECONDS, COST_USD):
            meters.tell(counter, 0, plan.cell)


def publish_end(
    meters: Meters, record: Record, device_hour_usd: float, *, tries_again: bool
) -> None:
    """What a fold-run has come to; by the driver."""
    from raymrc.planning.arithmetic import price

    cell = record.fold_run.configuration.cell
    meters.tell(ENDED, 1, cell, status=record.status)
    if tries_again:
        meters.tell(RETRIES, 1, cell)
    if record.status != "paused":  # it may go on, and is counted whole at its end
        meters.tell(DEVICE_SECONDS, record.device_seconds, cell)
        meters.tell(COST_USD, price(record.device_seconds, device_hour_usd), cell)
    if record.status == "done":
        meters.tell(FOLD_RUN_SECONDS, record.wall_seconds, cell)


def publish_work(
    meters: Meters,
    cells: Iterable[Cell],
    training: Iterable[FoldRun],
    queued: Iterable[FoldRun],
) -> None:
    """What hosts train and what waits for them; by the reception."""
    lanes = Counter(run.configuration.cell for run in training)
    waiting = Counter(run.configuration.cell for run in queued)
    for cell in cells:
        meters.tell(LANES_OPEN, lanes[cell], cell)
        meters.tell(QUEUE, waiting[cell], cell)


def publish_hosts(meters: Meters, hosts: Iterable[tuple[str, str]], devices: float) -> None:
    """
    Args:
        hosts: kind and state of each; see `HOSTS`.
        devices: that are held.
    """
    there = Counter(hosts)
    for kind in ("host", "group"):
        for state in ("there", "asked for"):
            meters.tell(HOSTS, there[kind, state], kind=kind, state=state)
        for counter in (HOST_DEATHS, EVICTIONS):
            meters.tell(counter, 0, kind=kind)
    meters.tell(DEVICES_HELD, devices)


def publish_spending(meters: Meters, spent: Spent, budget: Budget) -> None:
    """What is spent and what may be; by the reception."""
    meters.tell(SPENT_USD, spent.usd)
    meters.tell(SPENT_DEVICE_SECONDS, spent.device_seconds)
    meters.tell(SPENT_WALL_SECONDS, spent.wall_seconds)
    if budget.usd is not None:
        meters.tell(BUDGET_USD, budget.usd)
    if budget.device_hours is not None:
        meters.tell(BUDGET_DEVICE_SECONDS, 3600 * budget.device_hours)
    if budget.wall_hours is not None:
        meters.tell(BUDGET_WALL_SECONDS, 3600 * budget.wall_hours)


@dataclass(eq=False, slots=True)
class _Lane:
    cell: Cell
    tokens: int
    loss: float | None = None


@dataclass(eq=False)
class LaneMeters:
    """What a host tells of the lanes that it has open."""

    meters: Meters
    _lanes: dict[str, _Lane] = field(default_factory=dict)

    def open(self, fold_run: FoldRun, tokens: int) -> None:
        """
        Args:
            tokens: that it was trained on before, where it goes on from a saved state.
        """
        cell = fold_run.configuration.cell
        self._lanes[fold_run.key] = _Lane(cell, tokens)
        self.meters.tell(TOKENS, 0, cell)

    def learn(self, key: str, loss: float) -> None:
        """An epoch's mean."""
        if key in self._lanes:
            self._lanes[key].loss = loss

    def train(self, key: str, tokens: int) -> None:
        """So many in all."""
        lane = self._lanes.get(key)
        if lane is not None and tokens > lane.tokens:
            self.meters.tell(TOKENS, tokens - lane.tokens, lane.cell)
            lane.tokens = tokens

    def close(self, key: str) -> None:
        self._lanes.pop(key, None)

    def tell(self, tokens: Callable[[str], int]) -> None:
        """
        Args:
            tokens: that an open lane was trained on, by its key.
        """
        if not self.meters.is_due:
            return
        losses: dict[Cell, list[float]] = {}
        for key, lane in self._lanes.items():
            self.train(key, tokens(key))
            if lane.loss is not None:
                losses.setdefault(lane.cell, []).append(lane.loss)
        for cell, found in losses.items():
            self.meters.tell(TRAINING_LOSS, sum(found) / len(found), cell)
        torch = sys.modules.get("torch")
        if self._lanes and torch is not None and torch.cuda.is_initialized():
            backbone = next(iter(self._lanes.values())).cell.backbone.name
            self.meters.tell(GPU_RESERVED_BYTES, torch.cuda.memory_reserved(), backbone=backbone)


def check_port(port: int) -> None:
    """
    Raises:
        RaymrcError: somebody else listens there, and Ray would export nothing without a word.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError):
            raise RaymrcError(
                f"port {port} cannot be had for metrics on this machine; give --metrics-port another one"
            ) from None
