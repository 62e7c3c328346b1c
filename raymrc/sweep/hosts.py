"""Hosts: actors that hold one backbone and train the lanes of many fold-runs on it.

coordinator -> Order: close, open, hand over, leave -> Host -> HostReport -> coordinator
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import ray

from raymrc.configuration import Backbone, FoldRun
from raymrc.ledger.record import Epoch, LaneEvent, Record
from raymrc.ledger.storage import SAVED, open_files
from raymrc.scheduling.failures import record_error
from raymrc.scheduling.orders import SLICE_SECONDS, HostReport, Order
from raymrc.sweep.metrics import LaneMetrics, MetricPublisher
from raymrc.sweep.session import HostResources

MAX_SAVING_SHARE = 0.05
"""Share of a host's time that may go into saving lanes at the ends of epochs."""


class LanePool(Protocol):
    """Trains lanes: `training.pool.Pool`, or a stand-in."""

    def __len__(self) -> int: ...
    def fits(self, fold_run: FoldRun) -> bool: ...
    def open(self, fold_run: FoldRun, state: bytes | None = None) -> None: ...
    def save(self, key: str) -> bytes: ...
    def epochs(self, key: str) -> int: ...
    def tokens(self, key: str) -> int: ...
    def pause(self, key: str) -> Record: ...
    def close(self, key: str) -> None: ...
    def step(self) -> Sequence[LaneEvent]: ...


class OpenPool(Protocol):
    """Loads a backbone. Picklable.

    Args:
        ranks: `training.sharded.Ranks`, if several processes hold the backbone together.
    """

    def __call__(self, backbone: Backbone, data: Any, ranks: Any = None) -> LanePool: ...


Shared: TypeAlias = "list[ray.ObjectRef[tuple[OpenPool, Any]]]"
"""A reference to what all hosts of a study train with. Ray fetches no reference inside a list by itself."""


@dataclass(frozen=True, slots=True)
class HostTerms:
    """What a host gets and how it behaves.

    Args:
        storage: the study's; lanes are saved there.
        marker: name of a file that the driver has written, by which a host knows that it sees the storage.
        folder: the driver's working folder; a study's paths are relative to it.
        scratch: a folder on the driver's machine for what Ray Train writes.
        metrics_study: the study's name in metrics; "" publishes none.
    """

    resources: HostResources
    storage: str
    marker: str = ""
    folder: str = "."
    scratch: str = ""
    metrics_study: str = ""


@dataclass(eq=False, slots=True)
class _OpenLane:
    """
    Args:
        checkpoint: name of the last one.
        saved_at: when it was saved or opened.
        saving_seconds: how long the last save took.
        pause_epoch: the epoch after which it is saved and closed.
    """

    fold_run: FoldRun
    checkpoint: str | None
    saved_at: float
    saving_seconds: float = 0.0
    pause_epoch: float = math.inf


class Host:
    """A process that holds one backbone at a time.

    Args:
        shared: refers to an `OpenPool` and the study's data. They are fetched when the first fold-run is
            opened: importing torch with them takes seconds, and a host has to make contact before that.
    """

    def __init__(self, shared: Shared, terms: HostTerms) -> None:
        # More threads than the host's share of cores would slow down its neighbours.
        _set_threads(max(1, int(terms.resources.cpus_per_host)))
        self._shared = shared
        self._fetched: tuple[OpenPool, Any] | None = None
        self._ranks: Any = None  # see `OpenPool`
        self._terms = terms
        self._save_seconds = terms.resources.save_seconds
        self._files = open_files(terms.storage, SAVED)
        self._pool: LanePool | None = None
        self._backbone: Backbone | None = None
        self._lanes: dict[str, _OpenLane] = {}
        self._metrics = LaneMetrics(MetricPublisher(terms.metrics_study))

    @property
    def _leads(self) -> bool:
        """Whether this process speaks for its group."""
        return self._ranks is None or self._ranks.rank == 0

    def run(self, name: str, coordinator: Any) -> None:
        """Follow the coordinator's orders until it says to leave."""
        contact = partial(coordinator.exchange.remote, name, self._nodes())
        if self._leads:
            coordinator.arrive.remote(name, process_age())
        if not self._sees_storage():
            if self._leads:
                node = ray.util.get_node_ip_address()
                ray.get(coordinator.report_missing_storage.remote(name, node))
            return
        reports: list[HostReport] = []
        while not (order := self._exchange(contact, reports)).leave:
            if order.drain:
                reports = self._save_all()
                if self._leads:
                    ray.get(coordinator.release.remote(name, reports))
                return
            reports = self.obey(order)
            reports += self.train(reports)

    def _nodes(self) -> tuple[str, ...]:
        return (ray.get_runtime_context().get_node_id(),)

    def _exchange(self, contact: Callable[..., Any], reports: list[HostReport]) -> Order:
        order: Order = ray.get(contact(reports))
        return order

    def train(self, waiting: Sequence[HostReport] = ()) -> list[HostReport]:
        """Train for a slice of time, or until there is something to report; not at all if reports wait."""
        reports: list[HostReport] = []
        until = time.monotonic() + SLICE_SECONDS
        while self._goes_on(not waiting and not reports and time.monotonic() < until):
            assert self._pool is not None
            reports += map(self._report, self._pool.step())
        if self._pool is not None:
            self._metrics.publish(self._pool.tokens)
        return reports

    def _goes_on(self, has_time: bool) -> bool:
        return has_time and bool(self._lanes)

    def obey(self, order: Order) -> list[HostReport]:
        """Close, hand over and open lanes."""
        for key in order.close:
            if self._pool is not None:
                self._pool.close(key)
            self._forget(key)
        reports = [r for key in order.hand_over if (r := self._hand_over(key)) is not None]
        for fold_run, checkpoint in order.open:
            key = fold_run.key
            try:
                pool = self._pool_of(fold_run.configuration.cell.backbone)
                if len(pool) and not pool.fits(fold_run):
                    reports.append(HostReport(key, refused=True))
                    continue
                self._open(pool, fold_run, checkpoint)
            except Exception as error:
                failed = record_error(fold_run, error)
                reports.append(HostReport(key, record=failed.to_json()))
                continue
            lane = self._lanes[key] = _OpenLane(fold_run, checkpoint, time.monotonic())
            self._metrics.open(fold_run, pool.tokens(key))
            pause_epoch = order.pause_epochs.get(key, math.inf)
            if pause_epoch < fold_run.configuration.epochs:
                lane.pause_epoch = pause_epoch
                if pool.epochs(key) >= pause_epoch:  # for example after a driver's death
                    reports.append(self._pause(key))
        return reports

    def _open(self, pool: LanePool, fold_run: FoldRun, checkpoint: str | None) -> None:
        """Open a lane from its checkpoint, or from the beginning if that cannot be read."""
        if checkpoint is not None:
            try:
                pool.open(fold_run, self._files.read(checkpoint))
                return
            except Exception:
                pool.close(fold_run.key)
        pool.open(fold_run)

    def _pool_of(self, backbone: Backbone) -> LanePool:
        if self._pool is None or self._backbone != backbone:
            self._pool = None  # first, because memory may be too small for two
            if self._fetched is None:
                self._fetched = ray.get(self._shared[0])
            open_pool, data = self._fetched
            self._pool = open_pool(backbone, data, self._ranks)
            self._backbone = backbone
        return self._pool

    def _report(self, event: LaneEvent) -> HostReport:
        key, what, lane = event.key, event.what, self._lanes[event.key]
        if isinstance(what, Epoch):
            self._metrics.set_loss(key, what.loss)
            if what.epoch >= lane.pause_epoch:
                return self._pause(key)
            checkpoint = self._save(key)
            took = lane.saving_seconds if checkpoint else 0.0
            return HostReport(key, epoch=what, checkpoint=checkpoint, saving_seconds=took)
        if isinstance(what, Record):
            self._metrics.set_tokens(key, what.tokens)
        else:
            what = record_error(lane.fold_run, what, event.device_seconds)
        self._forget(key)
        return HostReport(key, record=what.to_json())

    def _pause(self, key: str) -> HostReport:
        """Save and close a lane. If it cannot be saved, it will resume from its last checkpoint."""
        assert self._pool is not None
        checkpoint, began = None, time.monotonic()
        with suppress(OSError):
            checkpoint = self._write(key)
        took = time.monotonic() - began
        record = self._pool.pause(key)
        self._metrics.set_tokens(key, record.tokens)
        self._forget(key)
        return HostReport(key, None, checkpoint, record.to_json(), pauses=True, saving_seconds=took)

    def _hand_over(self, key: str) -> HostReport | None:
        """Save and close a lane, for another host to resume. It stays open if it cannot be saved."""
        assert self._pool is not None
        began = time.monotonic()
        try:
            checkpoint = self._write(key)
        except OSError:
            return None
        took = time.monotonic() - began
        self._metrics.set_tokens(key, self._pool.tokens(key))
        self._pool.close(key)
        self._forget(key)
        return HostReport(key, checkpoint=checkpoint, handed_over=True, saving_seconds=took)

    def _forget(self, key: str) -> None:
        self._lanes.pop(key, None)
        self._metrics.close(key)

    # --- checkpoints --------------------------------------------------------------------------------

    def _sees_storage(self) -> bool:
        if not self._terms.marker:
            return True
        try:
            return self._files.exists(self._terms.marker)
        except OSError:
            return False

    def _save(self, key: str) -> str | None:
        """Save a lane at an epoch's end, unless it was saved a moment ago or cannot be written: training
        goes on, and the next epoch tries again."""
        lane, began = self._lanes[key], time.monotonic()
        if not self._is_due(lane):
            return None
        try:
            name = self._write(key)
        except OSError:
            return None
        lane.saved_at = time.monotonic()
        lane.saving_seconds = lane.saved_at - began
        return name

    def _save_all(self) -> list[HostReport]:
        """Save all open lanes, also within an epoch."""
        reports = []
        for key in self._lanes:
            with suppress(OSError):
                reports.append(HostReport(key, checkpoint=self._write(key)))
        return reports

    def _is_due(self, lane: _OpenLane) -> bool:
        if not self._save_seconds:
            return True
        interval = max(self._save_seconds, lane.saving_seconds / MAX_SAVING_SHARE)
        return time.monotonic() - lane.saved_at >= interval

    def _write(self, key: str) -> str:
        assert self._pool is not None
        name = self._next_name(key)
        self._files.write(name, self._pool.save(key), replace=True)
        self._replace_checkpoint(key, name)
        return name

    def _next_name(self, key: str) -> str:
        """Names of a fold-run's checkpoints sort by age."""
        before = self._lanes[key].checkpoint
        number = int(before.rsplit("/", 1)[1]) if before else 0
        return f"{key}/{number + 1:06d}"

    def _replace_checkpoint(self, key: str, name: str) -> None:
        lane = self._lanes[key]
        before, lane.checkpoint = lane.checkpoint, name
        if before is not None and self._leads:
            with suppress(OSError):
                self._remove(before)

    def _remove(self, checkpoint: str) -> None:
        self._files.remove(checkpoint)


def process_age() -> float:
    """Seconds since this process was started; 0 where that is not known."""
    try:  # Linux: proc(5), field 22, in clock ticks since the machine's start
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def _set_threads(num_threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(num_threads)  # in case torch is imported later
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != num_threads:
        torch.set_num_threads(num_threads)
