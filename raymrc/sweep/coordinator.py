"""Who starts hosts and worker groups, hears them, and ends them: the board as an actor.

    trials -> Reception <- hosts and worker groups, as many as the work is worth

They are asked for when there is work and go when there is none, so that a cluster's autoscaler
sees what is really needed.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from raymrc.configuration import Cell, FoldRun
from raymrc.costs.account import Account
from raymrc.costs.budget import (
    WRITE_SECONDS,
    Budget,
    Entry,
    Need,
    Spent,
)
from raymrc.costs.journal import Journal
from raymrc.errors import LedgerError
from raymrc.scheduling.failures import explain, failed_record
from raymrc.scheduling.spending import Closing, Stopped
from raymrc.scheduling.work_queue import SINGLE_DEVICE, HostReport, Order, WorkerRange, WorkQueue
from raymrc.sweep.capacity import count_devices, draining_nodes, had_process, why_never
from raymrc.sweep.hosts import SLICE_SECONDS, Host, HostTerms, OpenPool, Shared
from raymrc.sweep.metrics import (
    EVICTIONS,
    HOST_DEATHS,
    PUBLISH_SECONDS,
    MetricPublisher,
)
from raymrc.sweep.workers import end_group, on_this_node, start_group

IDLE_POLL_SECONDS = 1.0
"""A host without work asks again so often."""

MAX_FAILED_STARTS = 10
"""After so many hosts in a row that died before they said a word, none will start."""

NODE_POLL_SECONDS = 1.0
"""So often it is looked which machines will be taken away, and whether what waits can ever start."""

REFUSALS = 5
"""So many surveys in a row have to find that what waits can never start; one may come in a bad moment."""

MAX_WAITING_GROUPS = 2
"""So many groups of a size are asked for at once; the next when one has started."""


BUDGET_POLL_SECONDS = 0.2
"""So often it is looked what is left of the budget."""

KILL_SECONDS, KILL_GROUP_SECONDS = 1.0, 3.0
"""Before the cap: a host, or a group, that is still there then is ended as it is. Ray takes part of it."""

SILENCE_DECAY = 0.9
"""Of how long a host was ever silent, at each of its words."""

SAVING_MARGIN = 1.5
"""Lanes are given so many times what saving them took before."""

MAX_DEFERRED_TRIALS = 16
"""So many trials in a row of which nothing fits in what is left of the budget; then none is expected to."""

GONE_SECONDS, LAST_WRITE_SECONDS = 1.5, 1.5
"""At the end: hosts are waited for so long, to know when they were gone, and the storage, to note it."""


@dataclass(eq=False)
class _Asked:
    """A host or a group that was asked for.

    Args:
        end: ends it, whatever it is at.
        nodes: where it is; none until it has said a word.
        size: in devices.
        devices: that it is charged for.
        answered_at: when it was last told what to do; None while it is opening lanes, which takes its time.
        slowest: seconds that it was silent otherwise, at most, of late.
    """

    crew: WorkerRange
    end: Callable[[], None]
    since: float = field(default_factory=time.monotonic)
    nodes: tuple[str, ...] = ()
    size: int = 1
    devices: float = 1.0
    answered_at: float | None = None
    slowest: float = SLICE_SECONDS

    @property
    def kind(self) -> str:
        return "host" if self.crew == SINGLE_DEVICE else "group"


class Coordinator:
    """The board as an actor, and who starts and ends hosts and worker groups.

    Args:
        board: the terms of `WorkQueue`.
        terms: of each host.
        account: of this run of the driver; None where nobody counts.
    """

    def __init__(
        self,
        board: dict[str, Any],
        shared: Shared,
        terms: HostTerms,
        account: Account | None = None,
    ) -> None:
        self._board = WorkQueue(**board)
        self._shared = shared
        self._terms = terms
        self._hosts: dict[str, _Asked] = {}
        self._number = 0
        self._stillborn = 0
        self._closed = False
        self._verdict = ""
        self._draining: set[str] = set()
        self._started: set[WorkerRange] = set()
        self._calling_off: asyncio.TimerHandle | None = None
        self._news = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._metrics = MetricPublisher(terms.told)
        self._account = account or Account(Budget(), (), time.time(), time.monotonic())
        self._journal = Journal(terms.storage) if account is not None else None
        self._write_now = asyncio.Event()
        self._written_at = time.monotonic()
        self._wanted_devices = 0.0
        self._capped: Stopped | None = None
        self._over_at: float | None = None
        self._shelved = 0
        self._cheapest = math.inf

    async def submit(
        self,
        trial: str,
        fold_runs: Iterable[FoldRun],
        until: Mapping[str, int] | None = None,
        needs: Mapping[str, Need] | None = None,
        *,
        stays: bool = False,
        turn: int = 0,
    ) -> None:
        """See `WorkQueue.submit`."""
        if not self._tasks:
            if self._journal is not None:
                self._keep_task(self._keep_journal(self._journal), "journal")
            if self._account.budget:
                self._keep_task(self._guard(), "guard")
            if self._metrics:
                self._keep_task(self._tell(), "metrics")
        self._board.submit(trial, fold_runs, until, needs, stays=stays, turn=turn)
        self._allow()
        await self._changed()

    async def listen(self, trial: str) -> tuple[list[dict[str, Any]], bool]:
        """Waits for something new of a trial; see `WorkQueue.collect`."""
        async with self._news:
            while True:
                results, is_over = self._board.collect(trial)
                if results or is_over:
                    return results, is_over
                await self._news.wait()

    async def withdraw(self, trial: str) -> None:
        self._board.withdraw(trial)
        await self._changed()

    async def arrive(self, host: str, age: float) -> None:
        """A host is there: from now on it is charged, and for its process's start.

        Args:
            age: of its process, in seconds.
        """
        asked = self._hosts.get(host)
        if asked is not None:
            now = time.monotonic()
            since = max(asked.since, now - age)
            self._account.start(host, asked.devices, since, now - since)

    async def close_cell(self, cell: Cell) -> None:
        """See `WorkQueue.close_cell`."""
        self._board.close_cell(cell)
        await self._changed()

    async def exchange(
        self, host: str, nodes: tuple[str, ...], reports: Sequence[HostReport]
    ) -> Order:
        """See `WorkQueue.exchange`; a host that has nothing to do waits here."""
        until = time.monotonic() + IDLE_POLL_SECONDS
        while host in self._hosts and not self._closed:  # else this is the last that is heard of it
            asked = self._hosts[host]
            self._started.add(asked.crew)
            has_started = not asked.nodes
            asked.nodes = nodes
            self._stillborn = 0
            if has_started:
                self._scale()
            now = time.monotonic()
            if asked.answered_at is not None:
                # A first step reads and sorts the notes: what is long ago counts less and less.
                asked.slowest = max(
                    SILENCE_DECAY * asked.slowest, now - asked.answered_at, SLICE_SECONDS
                )
                asked.answered_at = None
            is_evicted = not self._draining.isdisjoint(nodes)
            if is_evicted or self._capped:
                if is_evicted:
                    self._metrics.publish(EVICTIONS, 1, kind=asked.kind)
                self._board.hear(host, reports, now)
                return Order(evacuate=True)
            self._allow()
            order = self._board.exchange(host, reports, now, asked.crew)
            if reports:
                await self._changed()
            reports = ()
            if order or not self._board.is_idle(host) or time.monotonic() >= until:
                is_busy = order.open or order.hand_over
                asked.answered_at = None if is_busy else time.monotonic()
                return order
            await self._wait_for_news(until - time.monotonic())
        return Order(leave=True)

    async def release(self, host: str, reports: Sequence[HostReport]) -> None:
        """See `WorkQueue.release`."""
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

    async def spent(self) -> Spent:
        """By the study until now."""
        return self._account.spent(time.monotonic())

    async def stopped(self) -> Stopped:
        """Waits until the budget has ended the run: hosts have saved what they had, and are gone."""
        async with self._news:
            while self._capped is None or self._over_at is None:
                await self._news.wait()
        return self._capped

    async def close(self) -> Closing:
        """Ends all hosts, whatever they are at. Groups are asked to go first: one that is killed
        may leave its claim on devices behind."""
        self._closed = True
        for asked in self._hosts.values():
            if asked.crew == SINGLE_DEVICE or not asked.nodes:
                asked.end()
        await self._changed()
        leaving = [task for task in self._tasks if task.get_name() == "group"]
        if leaving:
            await asyncio.wait(leaving, timeout=4 * SLICE_SECONDS)
        return await self._settle_account()

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
        if self._closed or self._capped:
            return
        there = Counter(asked.crew for asked in self._hosts.values())
        wanted = self._board.wanted(there)
        for crew, number in wanted.items():
            missing = number - there[crew]
            if crew != SINGLE_DEVICE:  # one that waits is already two processes on the head
                waiting = sum(a.crew == crew and not a.nodes for a in self._hosts.values())
                missing = min(missing, MAX_WAITING_GROUPS - waiting)
            for number in range(missing):
                if not self._may_start(crew, missing - number):
                    break
                self._start(crew)
        surplus = any(number > wanted[crew] for crew, number in there.items())
        if not surplus and self._calling_off is not None:
            self._calling_off.cancel()
            self._calling_off = None
        elif surplus and self._calling_off is None:
            # Not at once: between two trials there is little work for a moment, and a start is dear.
            loop = asyncio.get_running_loop()
            self._calling_off = loop.call_later(self._board.idle_seconds, self._call_off)

    def _start(self, crew: WorkerRange, size: int | None = None) -> None:
        """
        Args:
            size: of a group; None: the most devices.
        """
        self._number += 1
        kind = "host" if crew == SINGLE_DEVICE else "group"
        name = f"{kind}-{self._number}"
        here = ray.get_runtime_context().current_actor
        actor = ""
        if crew == SINGLE_DEVICE:
            # Its process is new, and so are the threads that it may use.
            handle: Any = (
                ray.remote(Host)
                .options(num_cpus=self._terms.cpus, num_gpus=self._terms.gpus)
                .remote(self._shared, self._terms)
            )
            running = run_to_its_end(handle, handle.run.remote(name, here))
            actor = handle._actor_id.hex()
            self._hosts[name] = _Asked(
                crew, lambda: ray.kill(handle), devices=self._terms.devices(crew)
            )
        else:
            size = size or crew[1]
            running = start_group(name, size, here, self._shared, self._terms)
            devices = self._terms.devices(crew, size)
            self._hosts[name] = _Asked(crew, lambda: end_group(running), size=size, devices=devices)
        self._account.ask(name, self._hosts[name].devices, self._hosts[name].since)
        if not any(task.get_name() == "survey" for task in self._tasks):
            self._keep_task(self._survey(), "survey")
        self._keep_task(self._watch(name, running, actor), kind)

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

    async def _watch(self, name: str, running: Any, actor: str = "") -> None:
        """Until a host goes, or is lost.

        Args:
            actor: id of a host of one; "" of a group.
        """
        died = False
        try:
            await running
        except RayError as error:
            died = True
            # One that was called off has left the list.
            if name in self._hosts and not self._hosts[name].nodes:
                self._stillborn += 1
                if self._stillborn >= MAX_FAILED_STARTS:
                    self._fail(self._board.queued, f"no host can be started ({explain(error)})")
        asked, moment = self._hosts.pop(name, None), time.monotonic()
        is_silent = bool(actor) and self._account.awaits(name)
        was_there = is_silent and await asyncio.to_thread(had_process, actor)
        self._account.end(name, moment, was_silent=was_there)
        if asked is not None:
            if died and asked.nodes and not self._closed:
                self._metrics.publish(HOST_DEATHS, 1, kind=asked.kind)
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

    async def _tell(self) -> None:
        """For dashboards."""
        while not self._closed:
            self._metrics.publish_work(self._board.crews, self._board.training, self._board.queued)
            hosts = [(a.kind, "there" if a.nodes else "asked for") for a in self._hosts.values()]
            self._metrics.publish_hosts(hosts, self._account.devices)
            self._metrics.publish_spending(
                self._account.spent(time.monotonic()), self._account.budget
            )
            await asyncio.sleep(PUBLISH_SECONDS)

    # --- what is spent ----------------------------------------------------------------------------

    @property
    def _devices(self) -> float:
        """That are held or were asked for."""
        return sum(asked.devices for asked in self._hosts.values()) + self._account.held_beside(
            self._hosts
        )

    def _may_start(self, crew: WorkerRange, number: int) -> bool:
        """Whether what one more host may spend is written down already; if not, it is asked for so many."""
        each, there = self._terms.devices(crew, crew[1]), self._devices
        if self._account.covers(there + each, time.monotonic()):
            return True
        self._wanted_devices = max(self._wanted_devices, there + number * each)
        self._write_now.set()
        return False

    def _allow(self) -> None:
        if self._board.allowance is not None:
            left = self._account.left(time.monotonic())
            self._board.allowance.allow(
                left.device_seconds - self._account.reserved, left.wall_seconds
            )

    async def _keep_journal(self, journal: Journal) -> None:
        """Writes ahead what is spent, and reads what others spend."""
        while not self._closed and self._over_at is None:
            moment, devices = time.monotonic(), max(self._devices, self._wanted_devices)
            self._wanted_devices = 0.0
            entry = self._account.lease(
                time.time(), moment, devices, self._board.num_open, self._board.committed,
                self._closing_seconds(),
            )  # fmt: skip
            try:
                entries = await asyncio.to_thread(_write_and_read, journal, entry)
            except LedgerError:
                pass  # nobody is ended for it while the last lease lasts
            else:
                self._written_at = moment
                self._account.paid(entry, moment, devices)
                self._account.hear(entries)
                self._scale()  # what had to wait for this
            with suppress(TimeoutError):
                await asyncio.wait_for(self._write_now.wait(), WRITE_SECONDS)
            self._write_now.clear()

    def _closing_seconds(self) -> float:
        """That it takes until hosts have heard that they are to go, have saved what they have, and left."""
        longest = 0.0
        for name, asked in self._hosts.items():
            saving = SAVING_MARGIN * self._board.saving_seconds(name)
            longest = max(longest, _kill_seconds(asked) + asked.slowest + saving)
        return longest

    async def _guard(self) -> None:
        """Closes hosts before the cap, and says when nothing fits any more."""
        while not self._closed:
            now = time.monotonic()
            self._allow()
            closing = self._closing_seconds()
            if self._capped is not None:
                await self._see_off(self._account.seconds_left(now))
            elif self._account.limit_left(now) <= closing or self._is_too_late(now):
                await self._cap(
                    Stopped(self._account.budget.reached(self._account.spent(now)), True)
                )
            elif self._account.seconds_left(now) <= closing:
                if now - self._written_at > 2 * WRITE_SECONDS:
                    await self._cap(Stopped(self._cannot_count(), False))
                self._write_now.set()  # closing may just take longer than it did
            else:
                await self._shelve()
            await asyncio.sleep(BUDGET_POLL_SECONDS)

    def _is_too_late(self, moment: float) -> bool:
        """Whether something would fit, and no host is there for it or worth starting."""
        wanted = () if self._devices else self._board.wanted({})
        return bool(wanted) and not any(
            self._account.is_worth_starting(self._terms.devices(crew, crew[1]), moment)
            for crew in wanted
        )

    async def _shelve(self) -> None:
        """Puts aside what does not fit in what is left, for trials that may."""
        if self._board.num_open:
            self._shelved = 0
        least = self._board.shortfall()
        if least is None:
            return
        self._cheapest = min(self._cheapest, least)
        self._shelved += self._board.shelve()
        if self._shelved >= MAX_DEFERRED_TRIALS:
            await self._cap(self._too_little())
        else:
            await self._changed()

    def _too_little(self) -> Stopped:
        left = self._account.left(time.monotonic())
        return Stopped(
            self._account.budget.too_little(
                left, self._cheapest, self._terms.devices(SINGLE_DEVICE)
            ),
            True,
        )

    def _cannot_count(self) -> str:
        return (
            f"what is spent could not be noted in {self._terms.storage} for too long, and the study has a "
            "budget; hosts were ended before it would be forgotten; run the study again"
        )

    async def _cap(self, stopped: Stopped) -> None:
        """Nothing is begun any more; hosts hear that they are to save what they have and go."""
        self._capped = stopped
        for name, asked in list(self._hosts.items()):
            if not asked.nodes:  # it has not said a word
                self._dismiss(name, asked)
        await self._changed()
        await self._see_off(math.inf)

    async def _see_off(self, seconds: float) -> None:
        """Ends those who are too slow.

        Args:
            seconds: until the cap.
        """
        for name, asked in list(self._hosts.items()):
            if seconds <= _kill_seconds(asked):
                self._dismiss(name, asked)
        if not self._hosts and not self._account.devices and self._over_at is None:
            self._over_at = time.monotonic()  # what Tune takes to stop is not the study's time
            await self._changed()

    def _dismiss(self, name: str, asked: _Asked) -> None:
        del self._hosts[name]
        self._board.lost(name, counts=False)
        asked.end()

    async def _settle_account(self) -> Closing:
        """Once hosts are gone: what it was."""
        tasks = [task for task in self._tasks if task.get_name() in ("host", "group")]
        if tasks:
            await asyncio.wait(tasks, timeout=GONE_SECONDS)
        moment = time.monotonic() if self._over_at is None else self._over_at
        last = self._account.last(time.time(), moment, self._board.left_saved)
        if self._journal is not None:
            writing = asyncio.to_thread(self._journal.write, last)
            with suppress(TimeoutError, LedgerError):  # then the lease stands
                await asyncio.wait_for(writing, LAST_WRITE_SECONDS)
        spent, stopped = self._account.spent(moment), self._capped
        if stopped is None and self._cheapest < math.inf:
            stopped = self._too_little()
        elif stopped is not None and stopped.by_budget and not self._shelved:
            stopped = Stopped(self._account.budget.reached(spent), True)  # by now it is known
        return Closing(spent, last.device_seconds, stopped)

    # --- machines that go, and those that never come ----------------------------------------------

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
            await asyncio.sleep(NODE_POLL_SECONDS)


def _kill_seconds(asked: _Asked) -> float:
    return KILL_SECONDS if asked.crew == SINGLE_DEVICE else KILL_GROUP_SECONDS


async def run_to_its_end(handle: Any, running: Any) -> None:
    """Until a host leaves or is lost, and ends its process: with torch in it that takes its time to go by
    itself, and holds its device meanwhile."""
    try:
        await running
    finally:
        ray.kill(handle)


def _write_and_read(journal: Journal, entry: Entry) -> tuple[Entry, ...]:
    """In this order, so that of two drivers that begin at once one sees the other."""
    journal.write(entry)
    return journal.entries()


def open_coordinator(
    open_pool: OpenPool,
    data: Any,
    terms: HostTerms,
    account: Account | None = None,
    **board: Any,
) -> Any:
    """The actor, on this machine, whose monotonic clock is the account's.

    Args:
        board: terms of `WorkQueue`.
    """
    return (
        ray.remote(Coordinator)
        .options(**on_this_node(), max_concurrency=1000)
        .remote(board, [ray.put((open_pool, data))], terms, account)
    )
