"""Hosts: actors that hold one backbone and train the lanes of many fold-runs on it.

    trials -> Reception (the board, one actor) <- hosts, as many as the work is worth

Hosts are asked for when there is work and go when there is none, so that a cluster's autoscaler
sees what is really needed.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import RayError

from raymrc.study.configuration import Backbone, FoldRun
from raymrc.study.record import Epoch, Event, Record
from raymrc.sweep.board import Board, Order, Report
from raymrc.sweep.failures import explain, failed_record

SLICE_SECONDS = 0.5
"""A host trains so long, or to the next event, before it asks what is new."""

PATIENCE_SECONDS = 1.0
"""A host without work asks again so often."""

STILLBORN = 10
"""After so many hosts in a row that died before they said a word, none will start."""


class LanePool(Protocol):
    """What trains: `training.pool.Pool`, or a stand-in."""

    def __len__(self) -> int: ...
    def fits(self, fold_run: FoldRun) -> bool: ...
    def open(self, fold_run: FoldRun, state: bytes | None = None) -> None: ...
    def save(self, key: str) -> bytes | None: ...
    def close(self, key: str) -> None: ...
    def step(self) -> Sequence[Event]: ...


class OpenPool(Protocol):
    """Loads a backbone. Picklable."""

    def __call__(self, backbone: Backbone, data: Any) -> LanePool: ...


@dataclass(frozen=True, slots=True)
class HostTerms:
    """What a host holds while it is there.

    Args:
        num_threads: for torch; more than the host's share would slow its neighbours.
        save_seconds: see `driver.Resources`.
    """

    cpus: float
    gpus: float
    num_threads: int
    save_seconds: float


class Host:
    """A process with one backbone at a time.

    Args:
        shared: holds the reference of the study's data, fetched once.
    """

    def __init__(
        self, open_pool: OpenPool, shared: list[ray.ObjectRef[Any]], terms: HostTerms
    ) -> None:
        _set_threads(terms.num_threads)
        self._open_pool = open_pool
        self._shared = shared
        self._save_seconds = terms.save_seconds
        self._data: Any = None
        self._pool: LanePool | None = None
        self._backbone: Backbone | None = None
        self._runs: dict[str, FoldRun] = {}
        self._saved_at: dict[str, float] = {}

    def run(self, name: str, reception: Any) -> None:
        """Trains what the reception has, until that says to go."""
        node = ray.get_runtime_context().get_node_id()
        reports: list[Report] = []
        while True:
            order: Order = ray.get(reception.exchange.remote(name, node, reports))
            if order.leave:
                return
            reports = self._obey(order)
            until = time.monotonic() + SLICE_SECONDS
            while self._runs and not reports and time.monotonic() < until:
                assert self._pool is not None
                for event in self._pool.step():
                    reports.append(self._report(event))

    def _obey(self, order: Order) -> list[Report]:
        for key in order.close:
            if self._pool is not None:
                self._pool.close(key)
            self._forget(key)
        reports = []
        for fold_run, state in order.open:
            try:
                pool = self._pool_of(fold_run.configuration.cell.backbone)
                if len(pool) and not pool.fits(fold_run):
                    reports.append(Report(fold_run.key, refused=True))
                    continue
                pool.open(fold_run, state)
            except Exception as error:
                failed = failed_record(fold_run, explain(error))
                reports.append(Report(fold_run.key, record=failed.to_json()))
            else:
                self._runs[fold_run.key] = fold_run
        return reports

    def _pool_of(self, backbone: Backbone) -> LanePool:
        if self._pool is None or self._backbone != backbone:
            self._pool = None  # before the next one is loaded: both may be too much
            if self._data is None:
                self._data = ray.get(self._shared[0])
            self._pool = self._open_pool(backbone, self._data)
            self._backbone = backbone
        return self._pool

    def _report(self, event: Event) -> Report:
        key, what = event.key, event.what
        if isinstance(what, Epoch):
            return Report(key, epoch=what, state=self._save(key))
        fold_run = self._runs[key]
        self._forget(key)
        if not isinstance(what, Record):
            what = failed_record(fold_run, explain(what), event.device_seconds)
        return Report(key, record=what.to_json())

    def _save(self, key: str) -> bytes | None:
        now = time.monotonic()
        if now - self._saved_at.get(key, -math.inf) < self._save_seconds:
            return None
        self._saved_at[key] = now
        assert self._pool is not None
        return self._pool.save(key)

    def _forget(self, key: str) -> None:
        self._runs.pop(key, None)
        self._saved_at.pop(key, None)


class Reception:
    """The board as an actor, and who starts and ends hosts.

    Args:
        board: the terms of `Board`.
        terms: of each host.
    """

    def __init__(
        self,
        board: dict[str, Any],
        open_pool: OpenPool,
        shared: list[ray.ObjectRef[Any]],
        terms: HostTerms,
    ) -> None:
        self._board = Board(**board)
        self._open_pool = open_pool
        self._shared = shared
        self._terms = terms
        self._hosts: dict[str, Any] = {}
        self._nodes: dict[str, str] = {}
        self._number = 0
        self._stillborn = 0
        self._closed = False
        self._calling_off: asyncio.TimerHandle | None = None
        self._news = asyncio.Condition()
        self._watching: set[asyncio.Task[None]] = set()

    async def submit(self, trial: str, fold_runs: Iterable[FoldRun]) -> None:
        self._board.submit(trial, fold_runs)
        await self._changed()

    async def listen(self, trial: str) -> tuple[list[dict[str, Any]], bool]:
        """Waits for something new of a trial; see `Board.collect`."""
        async with self._news:
            while True:
                results, is_over = self._board.collect(trial)
                if results or is_over:
                    return results, is_over
                await self._news.wait()

    async def withdraw(self, trial: str) -> None:
        self._board.withdraw(trial)
        await self._changed()

    async def exchange(self, host: str, node: str, reports: Sequence[Report]) -> Order:
        """See `Board.exchange`; a host that has nothing to do waits here."""
        until = time.monotonic() + PATIENCE_SECONDS
        while host in self._hosts:  # else it is lost, and this the last that is heard of it
            self._nodes[host] = node
            self._stillborn = 0
            order = self._board.exchange(host, reports, time.monotonic())
            if reports:
                await self._changed()
            reports = ()
            if order or not self._board.is_idle(host) or time.monotonic() >= until:
                return order
            async with self._news:
                try:
                    await asyncio.wait_for(self._news.wait(), until - time.monotonic())
                except TimeoutError:
                    pass
        return Order(leave=True)

    async def close(self) -> None:
        """Ends all hosts, whatever they are at."""
        self._closed = True
        for handle in self._hosts.values():
            ray.kill(handle)

    async def _changed(self) -> None:
        self._scale()
        async with self._news:
            self._news.notify_all()

    def _scale(self) -> None:
        if self._closed:
            return
        missing = self._board.num_wanted_hosts - len(self._hosts)
        for _ in range(missing):
            self._start()
        if missing >= 0 and self._calling_off is not None:
            self._calling_off.cancel()
            self._calling_off = None
        elif missing < 0 and self._calling_off is None:
            # Not at once: between two trials there is little work for a moment, and a start is dear.
            loop = asyncio.get_running_loop()
            self._calling_off = loop.call_later(self._board.idle_seconds, self._call_off)

    def _start(self) -> None:
        self._number += 1
        name = f"host-{self._number}"
        # Its process is new, and so are the threads that it may use.
        handle: Any = (
            ray.remote(Host)
            .options(num_cpus=self._terms.cpus, num_gpus=self._terms.gpus)
            .remote(self._open_pool, self._shared, self._terms)
        )
        self._hosts[name] = handle
        here = ray.get_runtime_context().current_actor
        task = asyncio.get_running_loop().create_task(
            self._watch(name, handle.run.remote(name, here))
        )
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    def _call_off(self) -> None:
        """Ends those that have not started and need not: a cluster would grow for nothing."""
        self._calling_off = None
        surplus = max(0, len(self._hosts) - self._board.num_wanted_hosts)
        waiting = [name for name in self._hosts if name not in self._nodes]
        for name in waiting[:surplus]:
            ray.kill(self._hosts.pop(name))

    async def _watch(self, name: str, running: Any) -> None:
        """Until a host goes, or is lost."""
        counts = False
        try:
            await running
        except RayError as error:
            counts = self._node_lives(name)
            # One that was called off has left the list.
            if name in self._hosts and name not in self._nodes:
                self._stillborn += 1
                if self._stillborn >= STILLBORN:
                    self._fail(self._board.queued, f"no host can be started ({explain(error)})")
        self._hosts.pop(name, None)
        self._nodes.pop(name, None)
        hopeless = self._board.lost(name, counts=counts)
        self._fail(hopeless, "its host died, as for want of memory")
        await self._changed()

    def _fail(self, fold_runs: Iterable[FoldRun], reason: str) -> None:
        self._board.fail([failed_record(run, reason) for run in fold_runs])

    def _node_lives(self, name: str) -> bool:
        its = self._nodes.get(name)
        return its is not None and any(n["NodeID"] == its and n["Alive"] for n in ray.nodes())


def open_reception(
    folder: Path,
    open_pool: OpenPool,
    data: Any,
    terms: HostTerms,
    **board: Any,
) -> Any:
    """The actor, on this machine: saved lanes are in its files.

    Args:
        folder: for saved lanes, on this machine.
        board: other terms of `Board`.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return (
        ray.remote(Reception)
        .options(num_cpus=0, scheduling_strategy=here, max_concurrency=1000)
        .remote({"folder": folder, **board}, open_pool, [ray.put(data)], terms)
    )


def _set_threads(num_threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(num_threads)  # for a torch that is yet to be imported
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != num_threads:
        torch.set_num_threads(num_threads)
