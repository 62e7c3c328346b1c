"""Hosts: actors that hold one backbone and train the lanes of many fold-runs on it.

    trials -> Reception (the board, one actor) <- hosts and worker groups, as many as the work is worth

They are asked for when there is work and go when there is none, so that a cluster's autoscaler
sees what is really needed.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.exceptions import RayError

from raymrc.study.configuration import Backbone, FoldRun
from raymrc.study.files import open_files
from raymrc.study.record import Epoch, Event, Record
from raymrc.sweep.board import SOLO, Board, Crew, Order, Report
from raymrc.sweep.capacity import count_devices, draining_nodes, why_never
from raymrc.sweep.failures import explain, failed_record

SLICE_SECONDS = 0.5
"""A host trains so long, or to the next event, before it asks what is new."""

PATIENCE_SECONDS = 1.0
"""A host without work asks again so often."""

STILLBORN = 10
"""After so many hosts in a row that died before they said a word, none will start."""

SAVING_SHARE = 0.05
"""Of a host's time, what may go into saving its lanes at epochs' ends."""

SURVEY_SECONDS = 1.0
"""So often it is looked which machines will be taken away, and whether what waits can ever start."""

REFUSALS = 5
"""So many surveys in a row have to find that what waits can never start; one may come in a bad moment."""

MOST_WAITING_GROUPS = 2
"""So many groups of a size are asked for at once; the next when one has started."""

SAVED = "saved"
"""The room of a study's storage where lanes are saved, each below its key."""


class LanePool(Protocol):
    """What trains: `training.pool.Pool`, or a stand-in."""

    def __len__(self) -> int: ...
    def fits(self, fold_run: FoldRun) -> bool: ...
    def open(self, fold_run: FoldRun, state: bytes | None = None) -> None: ...
    def save(self, key: str) -> bytes: ...
    def close(self, key: str) -> None: ...
    def step(self) -> Sequence[Event]: ...


class OpenPool(Protocol):
    """Loads a backbone. Picklable.

    Args:
        ranks: where several processes hold it together, `training.sharded.Ranks`.
    """

    def __call__(self, backbone: Backbone, data: Any, ranks: Any = None) -> LanePool: ...


@dataclass(frozen=True, slots=True)
class HostTerms:
    """What a host holds while it is there.

    Args:
        cpus, gpus: of each device.
        num_threads: for torch; more than the host's share would slow its neighbours.
        save_seconds: see `driver.Resources`.
        storage: of the study; lanes are saved there.
        marker: a file that the driver has put there, for hosts to see whether they see it.
        device: "cpu" or "cuda", of worker groups.
        folder: that the driver runs in; paths of a study are relative to it.
        scratch: a folder on the driver's machine for what Ray Train writes.
        patience_seconds: a group that has waited so long for all its devices starts with fewer.
        together: a group's devices have to be of one machine.
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

    @property
    def resources(self) -> dict[str, float]:
        """Of one device of a worker group, which is a whole one."""
        wanted = {"CPU": self.cpus, "GPU": math.ceil(self.gpus)}
        return {name: amount for name, amount in wanted.items() if amount}


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
        self._terms = terms
        self._files = open_files(terms.storage, SAVED)
        self._data: Any = None
        self._pool: LanePool | None = None
        self._backbone: Backbone | None = None
        self._runs: dict[str, FoldRun] = {}
        self._saved: dict[str, str] = {}
        self._saved_at: dict[str, float] = {}
        self._saving_took: dict[str, float] = {}

    @property
    def _leads(self) -> bool:
        """Whether it speaks for its group; one alone does."""
        return True

    def run(self, name: str, reception: Any) -> None:
        """Trains what the reception has, until that says to go."""
        me = (name, self._nodes())
        if not self._sees_storage():
            if self._leads:
                ray.get(reception.blind.remote(name, ray.util.get_node_ip_address()))
            return
        reports: list[Report] = []
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

    def _nodes(self) -> tuple[str, ...]:
        """Where it is."""
        return (ray.get_runtime_context().get_node_id(),)

    def _ask(self, reception: Any, me: tuple[Any, ...], reports: Sequence[Report]) -> Order:
        order: Order = ray.get(reception.exchange.remote(*me, reports))
        return order

    def _goes_on(self, reports: Sequence[Report], until: float) -> bool:
        return bool(self._runs) and not reports and time.monotonic() < until

    def _obey(self, order: Order) -> list[Report]:
        for key in order.close:
            if self._pool is not None:
                self._pool.close(key)
            self._forget(key)
        reports = []
        for fold_run, saved in order.open:
            key = fold_run.key
            try:
                pool = self._pool_of(fold_run.configuration.cell.backbone)
                if len(pool) and not pool.fits(fold_run):
                    reports.append(Report(key, refused=True))
                    continue
                self._open(pool, fold_run, saved)
            except Exception as error:
                failed = failed_record(fold_run, explain(error))
                reports.append(Report(key, record=failed.to_json()))
            else:
                self._runs[key] = fold_run
                self._saved_at[key] = time.monotonic()
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
            if self._data is None:
                self._data = ray.get(self._shared[0])
            self._pool = self._load(backbone)
            self._backbone = backbone
        return self._pool

    def _load(self, backbone: Backbone) -> LanePool:
        return self._open_pool(backbone, self._data)

    def _report(self, event: Event) -> Report:
        key, what = event.key, event.what
        if isinstance(what, Epoch):
            return Report(key, epoch=what, saved=self._save(key))
        fold_run = self._runs[key]
        self._forget(key)
        if not isinstance(what, Record):
            what = failed_record(fold_run, explain(what), event.device_seconds)
        return Report(key, record=what.to_json())

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
        if before is not None:
            with suppress(OSError):
                self._files.remove(before)

    def _hand_over(self, reception: Any, name: str) -> None:
        """Saves all that is open, within an epoch too, for others to go on with."""
        reports = []
        for key in self._runs:
            with suppress(OSError):
                reports.append(Report(key, saved=self._write(key)))
        if self._leads:
            ray.get(reception.release.remote(name, reports))

    def _forget(self, key: str) -> None:
        for of in (self._runs, self._saved, self._saved_at, self._saving_took):
            of.pop(key, None)  # type: ignore[attr-defined]


@dataclass(eq=False)
class _Asked:
    """A host or a group that was asked for.

    Args:
        end: ends it, whatever it is at.
        nodes: where it is; none until it has said a word.
        size: in devices.
    """

    crew: Crew
    end: Callable[[], None]
    since: float = field(default_factory=time.monotonic)
    nodes: tuple[str, ...] = ()
    size: int = 1


class Reception:
    """The board as an actor, and who starts and ends hosts and worker groups.

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
        self._hosts: dict[str, _Asked] = {}
        self._number = 0
        self._stillborn = 0
        self._closed = False
        self._verdict = ""
        self._draining: set[str] = set()
        self._started: set[Crew] = set()
        self._calling_off: asyncio.TimerHandle | None = None
        self._news = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

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

    async def exchange(self, host: str, nodes: tuple[str, ...], reports: Sequence[Report]) -> Order:
        """See `Board.exchange`; a host that has nothing to do waits here."""
        until = time.monotonic() + PATIENCE_SECONDS
        while host in self._hosts and not self._closed:  # else this is the last that is heard of it
            asked = self._hosts[host]
            self._started.add(asked.crew)
            has_started = not asked.nodes
            asked.nodes = nodes
            self._stillborn = 0
            if has_started:
                self._scale()
            now = time.monotonic()
            if self._draining.intersection(nodes):
                self._board.hear(host, reports, now)
                return Order(evacuate=True)
            order = self._board.exchange(host, reports, now, asked.crew)
            if reports:
                await self._changed()
            reports = ()
            if order or not self._board.is_idle(host) or time.monotonic() >= until:
                return order
            await self._wait_for_news(until - time.monotonic())
        return Order(leave=True)

    async def release(self, host: str, reports: Sequence[Report]) -> None:
        """See `Board.release`."""
        self._board.release(host, reports, time.monotonic())
        self._hosts.pop(host, None)
        await self._changed()

    async def blind(self, host: str, where: str) -> None:
        """A host does not see the study's storage."""
        await self._give_up(
            f"{self._terms.storage} cannot be seen on node {where}, where lanes are to be saved; "
            "set storage to a folder that all nodes share, or to a URL such as s3://bucket/study "
            "that all may write to"
        )
        self._hosts.pop(host, None)

    async def verdict(self) -> str:
        """Waits for the sentence that ends the run: why the work can never be done here."""
        async with self._news:
            while not self._verdict:
                await self._news.wait()
        return self._verdict

    async def close(self) -> None:
        """Ends all hosts, whatever they are at. Groups are asked to go first: one that is killed
        may leave its claim on devices behind."""
        self._closed = True
        for asked in self._hosts.values():
            if asked.crew == SOLO or not asked.nodes:
                asked.end()
        await self._changed()
        leaving = [task for task in self._tasks if task.get_name() == "group"]
        if leaving:
            await asyncio.wait(leaving, timeout=4 * SLICE_SECONDS)

    async def _changed(self) -> None:
        self._scale()
        async with self._news:
            self._news.notify_all()

    async def _wait_for_news(self, seconds: float) -> None:
        async with self._news:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), seconds)

    async def _give_up(self, sentence: str) -> None:
        self._verdict = self._verdict or sentence
        await self._changed()

    # --- who is there -----------------------------------------------------------------------------

    def _scale(self) -> None:
        if self._closed:
            return
        there = Counter(asked.crew for asked in self._hosts.values())
        wanted = self._board.wanted(there)
        for crew, number in wanted.items():
            missing = number - there[crew]
            if crew != SOLO:  # one that waits is already two processes on the head
                waiting = sum(a.crew == crew and not a.nodes for a in self._hosts.values())
                missing = min(missing, MOST_WAITING_GROUPS - waiting)
            for _ in range(missing):
                self._start(crew)
        surplus = any(number > wanted[crew] for crew, number in there.items())
        if not surplus and self._calling_off is not None:
            self._calling_off.cancel()
            self._calling_off = None
        elif surplus and self._calling_off is None:
            # Not at once: between two trials there is little work for a moment, and a start is dear.
            loop = asyncio.get_running_loop()
            self._calling_off = loop.call_later(self._board.idle_seconds, self._call_off)

    def _start(self, crew: Crew, size: int | None = None) -> None:
        """
        Args:
            size: of a group; None: the most devices.
        """
        from raymrc.sweep.workers import end_group, start_group

        self._number += 1
        kind = "host" if crew == SOLO else "group"
        name = f"{kind}-{self._number}"
        here = ray.get_runtime_context().current_actor
        if crew == SOLO:
            # Its process is new, and so are the threads that it may use.
            handle: Any = (
                ray.remote(Host)
                .options(num_cpus=self._terms.cpus, num_gpus=self._terms.gpus)
                .remote(self._open_pool, self._shared, self._terms)
            )
            running = handle.run.remote(name, here)
            self._hosts[name] = _Asked(crew, lambda: ray.kill(handle))
        else:
            size = size or crew[1]
            running = start_group(name, size, here, self._open_pool, self._shared, self._terms)
            self._hosts[name] = _Asked(crew, lambda: end_group(running), size=size)
        if not self._tasks:
            self._keep_task(self._survey(), "survey")
        self._keep_task(self._watch(name, running), kind)

    def _keep_task(self, running: Any, kind: str) -> None:
        task = asyncio.get_running_loop().create_task(running, name=kind)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _call_off(self) -> None:
        """Ends those that have not started and need not: a cluster would grow for nothing."""
        self._calling_off = None
        there = Counter(asked.crew for asked in self._hosts.values())
        wanted = self._board.wanted(there)
        for name, asked in list(self._hosts.items()):
            if not asked.nodes and there[asked.crew] > wanted[asked.crew]:
                there[asked.crew] -= 1
                del self._hosts[name]
                asked.end()

    async def _watch(self, name: str, running: Any) -> None:
        """Until a host goes, or is lost."""
        died = False
        try:
            await running
        except RayError as error:
            died = True
            # One that was called off has left the list.
            if name in self._hosts and not self._hosts[name].nodes:
                self._stillborn += 1
                if self._stillborn >= STILLBORN:
                    self._fail(self._board.queued, f"no host can be started ({explain(error)})")
        asked = self._hosts.pop(name, None)
        if asked is not None:
            self._lose(name, asked, died=died)
        await self._changed()

    def _lose(self, name: str, asked: _Asked, *, died: bool) -> None:
        """What it had open goes back into the queue; where it died and all its machines live, one of its
        fold-runs may have been the cause."""
        counts = died and bool(asked.nodes)
        if counts:
            alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
            counts = alive.issuperset(asked.nodes)
        hopeless = self._board.lost(name, counts=counts)
        self._fail(hopeless, "its host died, as for want of memory")

    def _fail(self, fold_runs: Iterable[FoldRun], reason: str) -> None:
        self._board.fail([failed_record(run, reason) for run in fold_runs])

    def _shrink(self) -> None:
        """Groups that have waited long enough for all their devices start with those that there are."""
        now = time.monotonic()
        for name, asked in list(self._hosts.items()):
            least = asked.crew[0]
            waits = not asked.nodes and asked.size > least
            if waits and now - asked.since >= self._terms.patience_seconds:
                nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
                room = count_devices(nodes, self._terms.resources)
                del self._hosts[name]
                asked.end()
                self._start(asked.crew, max(least, min(asked.size - 1, room)))

    async def _survey(self) -> None:
        """Which machines will be taken away, which groups have to be smaller, and can what waits ever
        start?"""
        refusals = 0
        while not self._closed:
            draining = await asyncio.to_thread(draining_nodes)
            if draining - self._draining:
                self._draining |= draining
                await self._changed()  # those that wait are to hear of it
            self._shrink()
            # What has started once waits for a machine that comes back; what others do is done first.
            waiting = [a for a in self._hosts.values() if a.crew not in self._started]
            sentence = ""
            if waiting and not any(asked.nodes for asked in self._hosts.values()):
                least = min(asked.size for asked in waiting)
                waited = time.monotonic() - min(asked.since for asked in waiting)
                if all(asked.size == asked.crew[0] for asked in waiting):
                    sentence = await asyncio.to_thread(why_never, least, self._terms, waited)
            refusals = refusals + 1 if sentence else 0
            if refusals >= REFUSALS:
                await self._give_up(sentence)
            await asyncio.sleep(SURVEY_SECONDS)


def open_reception(
    open_pool: OpenPool,
    data: Any,
    terms: HostTerms,
    **board: Any,
) -> Any:
    """The actor, on this machine.

    Args:
        board: terms of `Board`.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return (
        ray.remote(Reception)
        .options(num_cpus=0, scheduling_strategy=here, max_concurrency=1000)
        .remote(board, open_pool, [ray.put(data)], terms)
    )


def _set_threads(num_threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(num_threads)  # for a torch that is yet to be imported
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != num_threads:
        torch.set_num_threads(num_threads)
