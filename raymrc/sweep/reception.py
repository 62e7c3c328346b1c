"""Who starts hosts and worker groups, hears them, and ends them: the board as an actor.

    trials -> Reception <- hosts and worker groups, as many as the work is worth

They are asked for when there is work and go when there is none, so that a cluster's autoscaler
sees what is really needed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from raymrc.study.configuration import Cell, FoldRun
from raymrc.sweep.board import SOLO, Board, Crew, Order, Report
from raymrc.sweep.capacity import count_devices, draining_nodes, why_never
from raymrc.sweep.failures import explain, failed_record
from raymrc.sweep.hosts import SLICE_SECONDS, Host, HostTerms, OpenPool
from raymrc.sweep.workers import end_group, on_this_node, start_group

PATIENCE_SECONDS = 1.0
"""A host without work asks again so often."""

STILLBORN = 10
"""After so many hosts in a row that died before they said a word, none will start."""

SURVEY_SECONDS = 1.0
"""So often it is looked which machines will be taken away, and whether what waits can ever start."""

REFUSALS = 5
"""So many surveys in a row have to find that what waits can never start; one may come in a bad moment."""

MOST_WAITING_GROUPS = 2
"""So many groups of a size are asked for at once; the next when one has started."""


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

    async def close_cell(self, cell: Cell) -> None:
        """See `Board.close_cell`."""
        self._board.close_cell(cell)
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
    return (
        ray.remote(Reception)
        .options(**on_this_node(), max_concurrency=1000)
        .remote(board, open_pool, [ray.put(data)], terms)
    )
