"""Hosts: actors that hold one backbone and train the lanes of many fold-runs on it.

Reception -> Order: close, open, go -> Host -> Report: epochs, saved lanes, records -> Reception
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import ray

from raymrc.configuration import Backbone, FoldRun
from raymrc.ledger.record import Epoch, LaneEvent, Record
from raymrc.ledger.storage import SAVED, open_files
from raymrc.scheduling.failures import record_error
from raymrc.scheduling.work_queue import SINGLE_DEVICE, HostReport, Order, WorkerRange
from raymrc.sweep.metrics import LaneMetrics, MetricPublisher

SLICE_SECONDS = 0.5
"""A host trains so long, or to the next event, before it asks what is new."""

SAVING_SHARE = 0.05
"""Of a host's time, what may go into saving its lanes at epochs' ends."""


class LanePool(Protocol):
    """What trains: `training.pool.Pool`, or a stand-in."""

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
        ranks: where several processes hold it together, `training.sharded.Ranks`.
    """

    def __call__(self, backbone: Backbone, data: Any, ranks: Any = None) -> LanePool: ...


Shared: TypeAlias = "list[ray.ObjectRef[tuple[OpenPool, Any]]]"
"""What all hosts of a study train with: Ray fetches no reference that is in a list."""


@dataclass(frozen=True, slots=True)
class HostTerms:
    """What a host holds while it is there.

    Args:
        cpus, gpus: of each device.
        num_threads: for torch; more than the host's share would slow its neighbours.
        save_seconds: see `workplace.Resources`.
        storage: of the study; lanes are saved there.
        marker: a file that the driver has put there, for hosts to see whether they see it.
        device: "cpu" or "cuda", of worker groups.
        folder: that the driver runs in; paths of a study are relative to it.
        scratch: a folder on the driver's machine for what Ray Train writes.
        patience_seconds: a group that has waited so long for all its devices starts with fewer.
        together: a group's devices have to be of one machine.
        told: the study's name, by which metrics are told; "" where they are not.
    """

    cpus: float
    gpus: float
    num_threads: int
    save_seconds: float
    storage: str
    marker: str = ""
    device: str = "cpu"
    folder: str = "."
    scratch: str = ""
    patience_seconds: float = 60.0
    together: bool = False
    told: str = ""

    @property
    def resources(self) -> dict[str, float]:
        """Of one device of a worker group, which is a whole one."""
        wanted = {"CPU": self.cpus, "GPU": math.ceil(self.gpus)}
        return {name: amount for name, amount in wanted.items() if amount}

    def devices(self, crew: WorkerRange, size: int = 1) -> float:
        """That a host, or a group of so many, is charged for: GPUs, else a CPU's cores."""
        if crew == SINGLE_DEVICE:
            return self.gpus or self.cpus or 1.0
        return size * (math.ceil(self.gpus) or self.cpus or 1.0)


class Host:
    """A process with one backbone at a time.

    Args:
        shared: holds the reference of what it trains with, an `OpenPool` and the study's data. They are
            fetched when the first fold-run is opened: torch comes with them, which takes seconds, and a host
            has to say that it is there before them.
    """

    def __init__(self, shared: Shared, terms: HostTerms) -> None:
        _set_threads(terms.num_threads)
        self._shared = shared
        self._fetched: tuple[OpenPool, Any] | None = None
        self._terms = terms
        self._files = open_files(terms.storage, SAVED)
        self._pool: LanePool | None = None
        self._backbone: Backbone | None = None
        self._runs: dict[str, FoldRun] = {}
        self._until: dict[str, int] = {}
        self._saved: dict[str, str] = {}
        self._saved_at: dict[str, float] = {}
        self._saving_took: dict[str, float] = {}
        self._lane_metrics = LaneMetrics(MetricPublisher(terms.told))

    @property
    def _leads(self) -> bool:
        """Whether it speaks for its group; one alone does."""
        return True

    def run(self, name: str, reception: Any) -> None:
        """Trains what the reception has, until that says to go."""
        me = (name, self._nodes())
        if self._leads:
            reception.arrive.remote(name, process_age())
        if not self._sees_storage():
            if self._leads:
                ray.get(reception.blind.remote(name, ray.util.get_node_ip_address()))
            return
        reports: list[HostReport] = []
        while True:
            order = self._ask(reception, me, reports)
            if order.leave:
                return
            if order.evacuate:
                self._hand_over(reception, name)
                return
            reports = self._obey(order)
            until = time.monotonic() + SLICE_SECONDS
            while self._goes_on(reports, until):
                assert self._pool is not None
                for event in self._pool.step():
                    reports.append(self._report(event))
            if self._pool is not None:
                self._lane_metrics.publish(self._pool.tokens)

    def _nodes(self) -> tuple[str, ...]:
        """Where it is."""
        return (ray.get_runtime_context().get_node_id(),)

    def _ask(self, reception: Any, me: tuple[Any, ...], reports: Sequence[HostReport]) -> Order:
        order: Order = ray.get(reception.exchange.remote(*me, reports))
        return order

    def _goes_on(self, reports: Sequence[HostReport], until: float) -> bool:
        return bool(self._runs) and not reports and time.monotonic() < until

    def _obey(self, order: Order) -> list[HostReport]:
        for key in order.close:
            if self._pool is not None:
                self._pool.close(key)
            self._forget(key)
        reports = [r for key in order.hand_over if (r := self._hand_on(key)) is not None]
        for fold_run, saved in order.open:
            key = fold_run.key
            try:
                pool = self._pool_of(fold_run.configuration.cell.backbone)
                if len(pool) and not pool.fits(fold_run):
                    reports.append(HostReport(key, refused=True))
                    continue
                self._open(pool, fold_run, saved)
            except Exception as error:
                failed = record_error(fold_run, error)
                reports.append(HostReport(key, record=failed.to_json()))
            else:
                self._runs[key] = fold_run
                self._lane_metrics.open(fold_run, pool.tokens(key))
                self._saved_at[key] = time.monotonic()
                if key in order.until and order.until[key] < fold_run.configuration.epochs:
                    self._until[key] = order.until[key]
                    if pool.epochs(key) >= order.until[key]:  # as after a driver's death
                        reports.append(self._pause(key))
        return reports

    def _open(self, pool: LanePool, fold_run: FoldRun, saved: str | None) -> None:
        """From where it was saved; from its beginning where that cannot be read any more."""
        if saved is not None:
            self._saved[fold_run.key] = saved
            try:
                pool.open(fold_run, self._files.read(saved))
                return
            except Exception:
                pool.close(fold_run.key)
        pool.open(fold_run)

    def _pool_of(self, backbone: Backbone) -> LanePool:
        if self._pool is None or self._backbone != backbone:
            self._pool = None  # before the next one is loaded: both may be too much
            if self._fetched is None:
                self._fetched = ray.get(self._shared[0])
            self._pool = self._load(*self._fetched, backbone)
            self._backbone = backbone
        return self._pool

    def _load(self, open_pool: OpenPool, data: Any, backbone: Backbone) -> LanePool:
        return open_pool(backbone, data)

    def _report(self, event: LaneEvent) -> HostReport:
        key, what = event.key, event.what
        if isinstance(what, Epoch):
            self._lane_metrics.set_loss(key, what.loss)
            if key in self._until and what.epoch >= self._until[key]:
                return self._pause(key)
            saved = self._save(key)
            took = self._saving_took.get(key, 0.0) if saved else 0.0
            return HostReport(key, epoch=what, saved=saved, saving_seconds=took)
        fold_run = self._runs[key]
        if isinstance(what, Record):
            self._lane_metrics.set_tokens(key, what.tokens)
        self._forget(key)
        if not isinstance(what, Record):
            what = record_error(fold_run, what, event.device_seconds)
        return HostReport(key, record=what.to_json())

    def _pause(self, key: str) -> HostReport:
        """Saved and closed. Where it cannot be written, going on begins where it was saved before."""
        assert self._pool is not None
        saved, began = None, time.monotonic()
        with suppress(OSError):
            saved = self._write(key)
        took = time.monotonic() - began
        record = self._pool.pause(key)
        self._lane_metrics.set_tokens(key, record.tokens)
        self._forget(key)
        return HostReport(
            key, saved=saved, record=record.to_json(), pauses=True, saving_seconds=took
        )

    # --- saving -----------------------------------------------------------------------------------

    def _sees_storage(self) -> bool:
        if not self._terms.marker:
            return True
        try:
            return self._files.exists(self._terms.marker)
        except OSError:
            return False

    def _save(self, key: str) -> str | None:
        """At an epoch's end, unless it was just done. What cannot be written is not missed: training goes
        on, and the next epoch tries again."""
        if not self._is_due(key):
            return None
        began = time.monotonic()
        try:
            name = self._write(key)
        except OSError:
            return None
        self._saved_at[key] = time.monotonic()
        self._saving_took[key] = self._saved_at[key] - began
        return name

    def _is_due(self, key: str) -> bool:
        if not self._terms.save_seconds:
            return True
        took = self._saving_took.get(key, 0.0)
        every = max(self._terms.save_seconds, took / SAVING_SHARE)
        return time.monotonic() - self._saved_at[key] >= every

    def _write(self, key: str) -> str:
        assert self._pool is not None
        name = self._next_name(key)
        self._files.write(name, self._pool.save(key), replace=True)
        self._replace_saved(key, name)
        return name

    def _next_name(self, key: str) -> str:
        """Names of a key sort by age."""
        before = self._saved.get(key)
        number = int(before.rsplit("/", 1)[1]) if before else 0
        return f"{key}/{number + 1:06d}"

    def _replace_saved(self, key: str, name: str) -> None:
        before, self._saved[key] = self._saved.get(key), name
        if before is not None and self._leads:
            with suppress(OSError):
                self._drop(before)

    def _drop(self, saved: str) -> None:
        self._files.remove(saved)

    def _hand_on(self, key: str) -> HostReport | None:
        """One lane, for another host to go on with. Where it cannot be written it stays."""
        assert self._pool is not None
        began = time.monotonic()
        try:
            saved = self._write(key)
        except OSError:
            return None
        took = time.monotonic() - began
        self._lane_metrics.set_tokens(key, self._pool.tokens(key))
        self._pool.close(key)
        self._forget(key)
        return HostReport(key, saved=saved, hands_over=True, saving_seconds=took)

    def _hand_over(self, reception: Any, name: str) -> None:
        """Saves all that is open, within an epoch too, for others to go on with."""
        reports = []
        for key in self._runs:
            with suppress(OSError):
                reports.append(HostReport(key, saved=self._write(key)))
        if self._leads:
            ray.get(reception.release.remote(name, reports))

    def _forget(self, key: str) -> None:
        for of in (self._runs, self._until, self._saved, self._saved_at, self._saving_took):
            of.pop(key, None)  # type: ignore[attr-defined]
        self._lane_metrics.close(key)


def process_age() -> float:
    """Seconds since this process was started."""
    try:  # Linux: proc(5), field 22, in clock ticks since the machine's start
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def _set_threads(num_threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(num_threads)  # for a torch that is yet to be imported
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != num_threads:
        torch.set_num_threads(num_threads)
