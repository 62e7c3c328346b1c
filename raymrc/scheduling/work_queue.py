"""The work queue: requested fold-runs, their assignment to hosts, and their results.

    trial: submit, then collect again and again        host: exchange(reports) -> order

A host holds one backbone at a time and trains the lanes of fold-runs on it. A worker group is a host of
several devices that hold one model together; it trains one fold-run at a time. When a host is lost, its
fold-runs go to another one and resume from their last checkpoints. A host without work takes over lanes of a
host that has more than its share.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raymrc.configuration import Backbone, Cell, FoldRun
from raymrc.costs.budget import Need
from raymrc.ledger.record import RecordStatus
from raymrc.model.strategies import STRATEGIES
from raymrc.scheduling.allowance import Allowance, Purse
from raymrc.scheduling.failures import failed_record
from raymrc.scheduling.orders import SINGLE_DEVICE, HostReport, Order, WorkerRange

MAX_HOST_DEATHS = 3
"""A fold-run fails when this many hosts have died under it. On the last of them it trains alone."""

EPOCH_REPORT_SECONDS = 1.0
"""Minimum interval between two reported epochs of a fold-run; each report is a round trip to the driver."""

SETTLING_SECONDS = 10.0
"""A host that has just opened or handed over lanes need not hand over more for this long: each handover
costs a save and a start."""

IDLE_SECONDS_BEFORE_HANDOVER = 2.0
"""A host takes over lanes only after this long without work: it is idle for a moment between two trials."""

FAILED_HANDOVER_SECONDS = 300.0
"""A host that could not save lanes for a handover is not asked again for this long."""


@dataclass(eq=False)
class _Request:
    """A fold-run that a trial wants trained.

    Args:
        pause_epoch: the epoch after which it pauses; None trains it to its end.
        was_refused: it was handed over to a host that had no room for it.
        published_at: when its last epoch was passed on to its trial.
    """

    fold_run: FoldRun
    key: str
    trial: str
    workers: WorkerRange
    pause_epoch: int | None
    turn: int
    host_deaths: int = 0
    was_refused: bool = False
    published_at: float = -math.inf

    @property
    def cell(self) -> Cell:
        return self.fold_run.configuration.cell

    @property
    def needs_own_host(self) -> bool:
        """Whether it trains the backbone, or may be what its hosts die of."""
        return (
            self.workers != SINGLE_DEVICE
            or STRATEGIES[self.cell.strategy].trains_backbone
            or self.host_deaths >= MAX_HOST_DEATHS - 1
        )

    def is_paid_by(self, purse: Purse) -> bool:
        return purse.pays_for(self.key, self.workers.max_devices)


@dataclass(eq=False)
class _Host:
    """
    Args:
        requests: what it trains, by key, in the order of opening.
        closing: keys of withdrawn lanes that it has not been told to close yet.
        max_lanes: the number at which it last refused a lane; None if it has not.
        handing_over: keys that its last order told it to hand over.
        settled_at: until then it is not asked to hand over lanes.
    """

    workers: WorkerRange = SINGLE_DEVICE
    backbone: Backbone | None = None
    requests: dict[str, _Request] = field(default_factory=dict)
    closing: set[str] = field(default_factory=set)
    max_lanes: int | None = None
    idle_since: float | None = None
    reported_at: float | None = None
    handing_over: tuple[str, ...] = ()
    settled_at: float = -math.inf

    @property
    def is_exclusive(self) -> bool:
        """Whether it trains one fold-run that needs the host for itself."""
        return any(request.needs_own_host for request in self.requests.values())

    @property
    def shares(self) -> bool:
        """Whether it may train several lanes."""
        return self.workers == SINGLE_DEVICE and not self.is_exclusive


class WorkQueue:
    """
    Args:
        lanes: maximum number of open lanes per host.
        max_devices: maximum number of devices of all hosts together.
        fill: number of waiting fold-runs that justify one more host.
        idle_seconds: a host without work for this long leaves.
        worker_ranges: by cell; cells that are missing train on a single device.
        checkpoints: names of checkpoints that an earlier run has left, by key.
        allowance: present if the study has a budget.
    """

    def __init__(
        self,
        *,
        lanes: int,
        max_devices: int,
        fill: int = 1,
        idle_seconds: float = 5.0,
        worker_ranges: Mapping[Cell, WorkerRange] | None = None,
        checkpoints: Mapping[str, str] | None = None,
        allowance: Allowance | None = None,
    ) -> None:
        self.lanes = lanes
        self.max_devices = max_devices
        self.fill = fill
        self.idle_seconds = idle_seconds
        self.worker_ranges = worker_ranges or {}
        self.allowance = allowance
        self._checkpoints = dict(checkpoints or {})
        self._queue: list[_Request] = []
        self._requests: dict[str, _Request] = {}
        self._hosts: dict[str, _Host] = {}
        self._results: dict[str, list[dict[str, Any]]] = {}
        self._over: set[str] = set()
        self._staying: set[str] = set()
        self._idle: set[str] = set()
        # Keys between two hosts. They count as training, although they may be queued for a moment.
        self._moving: set[str] = set()

    # --- trials -------------------------------------------------------------------------------------

    def submit(
        self,
        trial: str,
        fold_runs: Iterable[FoldRun],
        pause_epochs: Mapping[str, int] | None = None,
        needs: Mapping[str, Need] | None = None,
        *,
        stays: bool = False,
        turn: int = 0,
    ) -> None:
        """Add fold-runs to the queue, behind all of the same and earlier turns.

        Args:
            pause_epochs: by key, the epoch after which to pause; the others are trained to their end.
            needs: expected needs of whole fold-runs by key, as far as they are known.
            stays: whether the trial may submit more; then it is over only when it is withdrawn.
            turn: a count of the driver's submissions. Calls of an actor may overtake each other, and the
                process of the trial that was submitted last may not be there yet: finished fold-runs would
                wait for it.
        """
        self._results.setdefault(trial, [])
        self._idle.discard(trial)
        if stays:
            self._staying.add(trial)
        first = next((i for i, r in enumerate(self._queue) if r.turn > turn), len(self._queue))
        for place, run in enumerate(fold_runs, first):
            key = run.key  # hashed once
            workers = self.worker_ranges.get(run.configuration.cell, SINGLE_DEVICE)
            pause_epoch = (pause_epochs or {}).get(key)
            self._requests[key] = _Request(run, key, trial, workers, pause_epoch, turn)
            self._queue.insert(place, self._requests[key])
            if self.allowance is not None:
                need, has_checkpoint = (needs or {}).get(key), key in self._checkpoints
                self.allowance.expect(
                    run, need, has_checkpoint=has_checkpoint, pause_epoch=pause_epoch
                )
        if self.allowance is not None:  # started fold-runs go before new ones
            self._queue.sort(key=lambda request: request.key not in self._checkpoints)

    def collect(self, trial: str) -> tuple[list[dict[str, Any]], bool]:
        """A trial's new results, as they are reported to Tune, and whether the trial is over.

        A trial that stays is not over when its work is; its last result then says `is_idle`.
        """
        if trial not in self._results:  # over, or not submitted yet
            return [], trial in self._over
        results, self._results[trial] = self._results[trial], []
        has_work = any(request.trial == trial for request in self._requests.values())
        if has_work or trial in self._idle:
            return results, False
        if trial in self._staying:
            self._idle.add(trial)
            *before, last = results or [{}]
            return [*before, {**last, "is_idle": True}], False
        self._end(trial)
        return results, True

    def withdraw(self, trial: str) -> None:
        """End a trial: its open lanes are closed and its waiting fold-runs dropped."""
        self._queue = [request for request in self._queue if request.trial != trial]
        for host in self._hosts.values():
            for key in [key for key, r in host.requests.items() if r.trial == trial]:
                del host.requests[key]
                host.closing.add(key)
        self._requests = {key: r for key, r in self._requests.items() if r.trial != trial}
        self._moving &= self._requests.keys()
        self._end(trial)

    def close_cell(self, cell: Cell) -> None:
        """Drop a cell's waiting fold-runs; those that have started go on."""
        for request in [r for r in self._queue if r.cell == cell and r.key not in self._moving]:
            self._queue.remove(request)
            del self._requests[request.key]

    def _end(self, trial: str) -> None:
        self._results.pop(trial, None)
        self._staying.discard(trial)
        self._idle.discard(trial)
        self._over.add(trial)

    # --- hosts --------------------------------------------------------------------------------------

    def wanted_hosts(self, existing: Mapping[WorkerRange, int]) -> Counter[WorkerRange]:
        """The number of hosts of each worker range that the unfinished work justifies.

        Existing hosts keep their devices until they leave. Free devices go to the first in the queue. A group
        for which too few are free is not wanted: it would hold nothing and keep others waiting.

        Args:
            existing: hosts that are running or requested.
        """
        queue = self._affordable()
        requests = [*self._open.values(), *queue]
        needs = Counter(request.workers for request in requests if request.needs_own_host)
        sharing = sum(not request.needs_own_host for request in requests)
        needs[SINGLE_DEVICE] += math.ceil(sharing / self.fill)
        wanted = Counter({w: min(need, existing.get(w, 0)) for w, need in needs.items()})
        free = self.max_devices - sum(w.max_devices * number for w, number in existing.items())
        # Moving fold-runs have a host that waits for them.
        new = [request.workers for request in queue if request.key not in self._moving]
        for workers in dict.fromkeys(new):
            more = min(needs[workers] - wanted[workers], free // workers.max_devices)
            if more > 0:
                wanted[workers] += more
                free -= more * workers.max_devices
        return +wanted

    @property
    def queued(self) -> tuple[FoldRun, ...]:
        """Fold-runs that wait for a host."""
        return tuple(request.fold_run for request in self._queue)

    @property
    def training(self) -> tuple[FoldRun, ...]:
        """Fold-runs that hosts have open."""
        return tuple(request.fold_run for request in self._open.values())

    def exchange(
        self,
        name: str,
        reports: Sequence[HostReport],
        now: float,
        workers: WorkerRange = SINGLE_DEVICE,
    ) -> Order:
        """Take a host's reports and give it its next order; `now` is in seconds of any monotonic clock."""
        host = self._hosts.setdefault(name, _Host(workers))
        self.handle_reports(name, reports, now)
        if kept := [key for key in host.handing_over if key in host.requests]:
            host.settled_at = now + FAILED_HANDOVER_SECONDS
            self._moving.difference_update(kept)
        host.handing_over = ()
        close = tuple(host.closing)
        host.closing.clear()
        opened, pause_epochs = [], {}
        purse = self._purse(host)
        while (request := self._next_for(host, purse)) is not None:
            if purse is not None:
                purse.take(request.key)
            self._queue.remove(request)
            self._moving.discard(request.key)
            request.was_refused = False
            request.published_at = now
            host.backbone = request.cell.backbone
            host.requests[request.key] = request
            opened.append((request.fold_run, self._checkpoints.get(request.key)))
            if request.pause_epoch is not None:
                pause_epochs[request.key] = request.pause_epoch
        if host.requests:
            host.idle_since = None
        elif host.idle_since is None:
            host.idle_since = now
        if not opened and now >= host.settled_at:
            host.handing_over = self._surplus_lanes(host, now)
            self._moving.update(host.handing_over)
        if opened or host.handing_over:
            host.settled_at = max(host.settled_at, now + SETTLING_SECONDS)
        leave = (
            host.idle_since is not None
            and now - host.idle_since >= self.idle_seconds
            and not (host.workers == SINGLE_DEVICE and self._moving)
            and not any(request.workers == host.workers for request in self._affordable())
        )
        if leave:
            del self._hosts[name]
        return Order(close, tuple(opened), pause_epochs, host.handing_over, leave)

    def is_idle(self, host: str) -> bool:
        return host in self._hosts and not self._hosts[host].requests

    def release(self, host: str, reports: Sequence[HostReport], now: float) -> None:
        """Take the last reports of a host that has drained; its fold-runs return to the queue."""
        self.handle_reports(host, reports, now)
        self.remove_host(host, count_death=False)

    def handle_reports(self, name: str, reports: Sequence[HostReport], now: float) -> None:
        """Take a host's reports; those of removed hosts and withdrawn fold-runs are ignored."""
        host = self._hosts.get(name)
        if host is None:
            return
        if self.allowance is not None and host.reported_at is not None:
            devices = host.workers.max_devices * self.allowance.host_devices
            self.allowance.accrue(host.requests, (now - host.reported_at) * devices)
        host.reported_at = now
        for report in reports:
            request = host.requests.get(report.key)
            if request is not None:
                self._handle_report(host, request, report, now)

    def _handle_report(
        self, host: _Host, request: _Request, report: HostReport, now: float
    ) -> None:
        key, epoch, fold = report.key, report.epoch, request.fold_run.fold
        if report.refused:
            del host.requests[key]
            host.max_lanes = len(host.requests)
            request.was_refused = key in self._checkpoints
            self._queue.insert(0, request)
            return
        if report.checkpoint is not None:
            self._checkpoints[key] = report.checkpoint
        if report.handed_over:
            del host.requests[key]
            self._queue.insert(0, request)
        if self.allowance is not None:
            self.allowance.advance(report)
        if report.record is not None:
            self._settle(request, report.record, pauses=report.pauses)
            del host.requests[key]
            host.max_lanes = None
        elif epoch is not None and now - request.published_at >= EPOCH_REPORT_SECONDS:
            request.published_at = now
            news = {"fold": fold, "epoch": epoch.epoch, "f1": epoch.validation_f1}
            self._results[request.trial].append(news)

    def _settle(self, request: _Request, record: str, *, pauses: bool = False) -> None:
        key = request.key
        del self._requests[key]
        self._moving.discard(key)
        self._results[request.trial].append({"fold": request.fold_run.fold, "record": record})
        if not pauses:
            self._checkpoints.pop(key, None)
        if self.allowance is not None and pauses:
            self.allowance.pause(key)
        elif self.allowance is not None:
            self.allowance.settle(key, is_done=json.loads(record)["status"] == RecordStatus.DONE)

    def _next_for(self, host: _Host, purse: Purse | None) -> _Request | None:
        """The next request for this host to open; those for its present backbone go first."""
        candidates = (
            request
            for request in self._queue
            if request.workers == host.workers and (purse is None or request.is_paid_by(purse))
        )
        if not host.requests:
            first = next(candidates, None)
            if first is None or first.cell.backbone == host.backbone:
                return first
            same_backbone = (r for r in candidates if r.cell.backbone == host.backbone)
            return next(same_backbone, first)
        # Near the end of a study no host takes more than an even share.
        sharing = sum(not request.needs_own_host for request in self._requests.values())
        taken = sum(h.workers.max_devices for h in self._hosts.values() if not h.shares)
        hosts = min(self.max_devices - taken, math.ceil(sharing / self.fill))
        share = math.ceil(sharing / max(1, hosts)) + sum(r.was_refused for r in self._queue)
        max_lanes = self.lanes if host.max_lanes is None else host.max_lanes
        if len(host.requests) >= min(self.lanes, share, max_lanes) or host.is_exclusive:
            return None
        fitting = (
            r for r in candidates if r.cell.backbone == host.backbone and not r.needs_own_host
        )
        return next(fitting, None)

    def _surplus_lanes(self, host: _Host, now: float) -> tuple[str, ...]:
        """Lanes beyond an even share of this host, if another host has nothing to do.

        Without a handover all but one device may wait at the end of a study: the only host that was free
        while the others trained a backbone has taken all lanes.
        """
        if len(host.requests) < 2 or not host.shares:
            return ()
        hosts = [h for h in self._hosts.values() if h.shares]
        has_idle_host = any(
            h.idle_since is not None and now - h.idle_since >= IDLE_SECONDS_BEFORE_HANDOVER
            for h in hosts
        )
        # Queued work, of groups too, has a claim on an idle host's device.
        if not has_idle_host or self._affordable():
            return ()
        lanes = sum(len(h.requests) for h in hosts)
        share = math.ceil(lanes / min(len(hosts), math.ceil(lanes / self.fill)))
        # The last ones that were opened have most left to do.
        return tuple(key for key in list(host.requests)[share:] if self._can_restart(key))

    def _can_restart(self, key: str) -> bool:
        """Whether an open fold-run could start on what would be left of the budget without it."""
        if self.allowance is None:
            return True
        return self.allowance.purse([k for k in self._open if k != key]).pays_for(key, 1)

    # --- the rest of a budget -----------------------------------------------------------------------

    @property
    def _open(self) -> dict[str, _Request]:
        """What hosts train, by key."""
        return {key: r for host in self._hosts.values() for key, r in host.requests.items()}

    @property
    def committed(self) -> float:
        """Device-seconds that open fold-runs are expected to need still; 0 without a budget."""
        return 0.0 if self.allowance is None else self.allowance.committed(self._open)

    def saving_seconds(self, host: str) -> float:
        """Expected seconds for a host to save all its open lanes."""
        if host not in self._hosts or self.allowance is None:
            return 0.0
        return self.allowance.saving_seconds(self._hosts[host].requests)

    @property
    def unfinished_shares(self) -> dict[str, float]:
        """The share still to do, 0 to 1, by key of the fold-runs that have a checkpoint."""
        return {} if self.allowance is None else self.allowance.unfinished_shares(self._checkpoints)

    def _purse(self, host: _Host | None = None) -> Purse | None:
        """What is left for new fold-runs, on one host or on any; None without a budget."""
        if self.allowance is None:
            return None
        return self.allowance.purse(self._open, None if host is None else host.requests)

    def _affordable(self) -> list[_Request]:
        """The queued requests that the rest of the budget pays for together, in order."""
        purse = self._purse()
        if purse is None:
            return self._queue
        affordable = []
        for request in self._queue:
            if request.is_paid_by(purse):
                purse.take(request.key)
                affordable.append(request)
        return affordable

    def shortfall(self) -> float | None:
        """Device-seconds that the cheapest queued fold-run needs, if nothing is training and nothing fits;
        None otherwise."""
        if self.allowance is None or not self._queue or self._open or self._affordable():
            return None
        return min(self.allowance.remaining(request.key, "low") for request in self._queue)

    def defer(self) -> int:
        """Drop all queued fold-runs, for a later run of the study; returns the number of ended trials."""
        trials = {request.trial for request in self._queue}
        for request in self._queue:
            del self._requests[request.key]
        self._moving &= self._requests.keys()
        self._queue = []
        return len(trials - {request.trial for request in self._requests.values()})

    # --- losses -------------------------------------------------------------------------------------

    def remove_host(self, name: str, *, count_death: bool = True) -> list[FoldRun]:
        """Remove a host that is gone; its fold-runs return to the head of the queue.

        Args:
            count_death: whether one of its fold-runs may have been the cause; not so if its machine is gone.

        Returns:
            The fold-runs under which `MAX_HOST_DEATHS` hosts have died. The caller has to `fail` them.
        """
        host = self._hosts.pop(name, None)
        if host is None:
            return []
        # It may have been the host that moving fold-runs waited for.
        self._moving &= self._open.keys() - host.requests.keys()
        hopeless = []
        for request in reversed(host.requests.values()):
            request.host_deaths += count_death
            self._queue.insert(0, request)
            if request.host_deaths >= MAX_HOST_DEATHS:
                hopeless.append(request.fold_run)
        return hopeless

    def fail(self, fold_runs: Iterable[FoldRun], reason: str) -> None:
        """Settle queued fold-runs as failed."""
        for run in fold_runs:
            request = self._requests[run.key]
            self._queue.remove(request)
            self._settle(request, failed_record(run, reason).to_json())
