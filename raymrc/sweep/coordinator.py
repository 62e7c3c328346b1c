"""The coordinator: a Ray actor that starts and ends hosts, hands out work, and passes on the results.

    trials -> Coordinator <- hosts and worker groups
                  |
                  +-- decided without Ray: WorkQueue, Fleet, BudgetGuard, ClusterSurvey

It requests hosts when there is work for them and lets them go when there is none, so that a cluster's
autoscaler sees the real demand.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError

from raymrc.configuration import Cell
from raymrc.costs.account import Account
from raymrc.costs.budget import Budget, Spent
from raymrc.costs.journal import WRITE_SECONDS, Journal, JournalEntry
from raymrc.errors import LedgerError
from raymrc.scheduling.budget_guard import BudgetGuard
from raymrc.scheduling.cluster_survey import ClusterSurvey, count_devices
from raymrc.scheduling.failures import explain
from raymrc.scheduling.fleet import Fleet, FleetHost, Scaling
from raymrc.scheduling.orders import HostKind, HostReport, Order
from raymrc.scheduling.spending import Closing, Stopped
from raymrc.scheduling.work_queue import WorkQueue
from raymrc.sweep.hosts import HostTerms, OpenPool
from raymrc.sweep.metrics import EVICTIONS, HOST_DEATHS, PUBLISH_SECONDS, MetricPublisher
from raymrc.sweep.ray_cluster import RayCluster, RayGroup
from raymrc.sweep.workers import on_this_node

IDLE_POLL_SECONDS = 1.0
"""A host without work gets an answer after this long at the latest."""

NODE_POLL_SECONDS = 1.0
"""Interval between two surveys of the cluster."""

BUDGET_POLL_SECONDS = 0.2
"""Interval between two checks of the budget."""

GROUP_SECONDS, LEAVE_SECONDS, LAST_WRITE_SECONDS = 8.0, 1.5, 1.5
"""At the end: time for groups to leave, for hosts to be gone, and for the journal's last entry to be written.
A group gives its devices back within a second, unless the machine is busy."""


class Coordinator:
    """
    Args:
        queue: arguments of `WorkQueue`.
        terms: what each host gets.
        cluster: starts hosts.
        account: the account of this run; without one nothing is written to the study's journal.
    """

    def __init__(
        self,
        queue: dict[str, Any],
        terms: HostTerms,
        cluster: RayCluster,
        account: Account | None = None,
    ) -> None:
        now = time.monotonic()
        self._terms = terms
        self._cluster = cluster
        self._journal = Journal(terms.storage) if account is not None else None
        self._account = account or Account(Budget(), (), time.time(), now)
        self._queue = WorkQueue(**queue)
        resources = terms.resources
        self._fleet = Fleet(
            self._account, self._queue, resources.charge, resources.patience_seconds
        )
        self._guard = BudgetGuard(self._account, self._queue, self._fleet, terms.storage, now)
        self._survey = ClusterSurvey(self._fleet, resources.per_device)
        self._metrics = MetricPublisher(terms.metrics_study)
        self._launched: dict[str, RayGroup] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = asyncio.Condition()
        self._write_now = asyncio.Event()
        self._rescaling: asyncio.TimerHandle | None = None
        self._verdict = ""
        self._trials_end = False
        self._is_closed = False

    # --- trials and the driver ----------------------------------------------------------------------

    async def submit(self, trial: str, *work: Any, **terms: Any) -> None:
        """See `WorkQueue.submit`."""
        if not self._tasks:
            self._start_tasks()
        self._queue.submit(trial, *work, **terms)
        self._guard.update_allowance(time.monotonic())
        await self._changed()

    async def listen(self, trial: str) -> tuple[list[dict[str, Any]], bool]:
        """Wait for new results of a trial; see `WorkQueue.collect`."""
        async with self._news:
            while True:
                results, is_over = self._queue.collect(trial)
                is_over = is_over or self._trials_end
                if results or is_over:
                    return results, is_over
                await self._news.wait()

    async def end_trials(self) -> None:
        """Let all trials end, whatever is left of their work, because the run is being stopped."""
        self._trials_end = True
        await self._changed()

    async def withdraw(self, trial: str) -> None:
        self._queue.withdraw(trial)
        await self._changed()

    async def close_cell(self, cell: Cell) -> None:
        self._queue.close_cell(cell)
        await self._changed()

    async def verdict(self) -> str:
        """Wait for the message that ends the run because its work can never be done here."""
        async with self._news:
            await self._news.wait_for(lambda: self._verdict)
        return self._verdict

    async def spent(self) -> Spent:
        """What the study has spent so far."""
        return self._account.spent(time.monotonic())

    async def stopped(self) -> Stopped:
        """Wait until the budget has ended the run: hosts have saved their lanes and are gone."""
        async with self._news:
            await self._news.wait_for(lambda: self._guard.over_at is not None)
        assert self._guard.stopped is not None
        return self._guard.stopped

    async def close(self) -> Closing:
        """End all hosts, whatever they are doing. Groups are first asked to leave, because a killed group may
        leave its claim on devices behind."""
        self._is_closed = True
        for host in self._fleet.hosts.values():
            if host.kind == HostKind.HOST or not host.is_running:
                self._launched[host.name].end()
        await self._changed()
        await self._wait_for_tasks({HostKind.GROUP}, GROUP_SECONDS)
        await self._wait_for_tasks(set(HostKind), LEAVE_SECONDS)
        last, closing = self._guard.close(time.time(), time.monotonic())
        if self._journal is not None:
            writing = asyncio.to_thread(self._journal.write, last)
            with suppress(TimeoutError, LedgerError):  # then the lease remains
                await asyncio.wait_for(writing, LAST_WRITE_SECONDS)
        return closing

    # --- hosts --------------------------------------------------------------------------------------

    async def arrive(self, host: str, age: float) -> None:
        """Note that a host's process has started, `age` seconds ago; it is charged from then on."""
        self._fleet.charge_from_start(host, age, time.monotonic())

    async def exchange(
        self, host: str, nodes: tuple[str, ...], reports: Sequence[HostReport]
    ) -> Order:
        """See `WorkQueue.exchange`. A host without work waits here for a while."""
        deadline = time.monotonic() + IDLE_POLL_SECONDS
        while host in self._fleet.hosts and not self._is_closed:
            now = time.monotonic()
            if self._fleet.contact(host, nodes, now):
                self._scale()
            fleet_host = self._fleet.hosts[host]
            is_evicted = self._survey.must_drain(nodes)
            if is_evicted or self._guard.stopped is not None:
                if is_evicted:
                    self._metrics.publish(EVICTIONS, 1, kind=fleet_host.kind)
                self._queue.handle_reports(host, reports, now)
                return Order(drain=True)
            self._guard.update_allowance(now)
            order = self._queue.exchange(host, reports, now, fleet_host.workers)
            if reports:
                await self._changed()
            reports = ()
            left = deadline - time.monotonic()
            if order or not self._queue.is_idle(host) or left <= 0:
                is_busy = bool(order.open or order.hand_over)
                self._fleet.answer(host, time.monotonic(), is_busy=is_busy)
                return order
            async with self._news:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), left)
        return Order(leave=True)

    async def release(self, host: str, reports: Sequence[HostReport]) -> None:
        """See `WorkQueue.release`."""
        self._queue.release(host, reports, time.monotonic())
        self._fleet.hosts.pop(host, None)
        await self._changed()

    async def report_missing_storage(self, host: str, node: str) -> None:
        """End the run, because a host cannot see the study's storage."""
        await self._give_up(
            f"{self._terms.storage} cannot be seen on node {node}, where lanes have to be saved; set "
            "storage to a folder that all nodes share, or to a URL that all can write to, such as "
            "s3://bucket/study"
        )
        self._fleet.hosts.pop(host, None)

    async def _watch(self, host: FleetHost, launched: RayGroup) -> None:
        """Wait until a host has left or died, and give its work back."""
        has_died = False
        try:
            await launched.wait()
        except RayError as error:
            has_died = True
            if self._fleet.fail_start(host.name):
                self._queue.fail(self._queue.queued, f"no host can be started ({explain(error)})")
        is_known, now = self._fleet.hosts.pop(host.name, None) is not None, time.monotonic()
        was_silent = self._account.is_requested(host.name) and await asyncio.to_thread(
            launched.had_process
        )
        self._account.end(host.name, now, was_silent=was_silent)
        del self._launched[host.name]
        if is_known:
            has_died = has_died and host.is_running
            if has_died and not self._is_closed:
                self._metrics.publish(HOST_DEATHS, 1, kind=host.kind)
            # If all its machines live, one of its fold-runs may have been the cause.
            count_death = has_died and self._cluster.nodes().keys() >= set(host.nodes)
            hopeless = self._queue.remove_host(host.name, count_death=count_death)
            self._queue.fail(hopeless, "its host died, possibly for lack of memory")
        await self._changed()

    # --- acting on decisions ------------------------------------------------------------------------

    async def _changed(self) -> None:
        self._scale()
        async with self._news:
            self._news.notify_all()

    async def _give_up(self, message: str) -> None:
        self._verdict = self._verdict or message
        await self._changed()

    def _scale(self) -> None:
        if self._is_closed or self._guard.stopped is not None:
            return
        scaling = self._fleet.scale(self._guard.may_start, time.monotonic())
        self._apply(scaling)
        if self._guard.wanted_devices:
            self._write_now.set()
        if self._rescaling is not None:
            self._rescaling.cancel()
            self._rescaling = None
        if scaling.recheck_seconds is not None:
            loop = asyncio.get_running_loop()
            self._rescaling = loop.call_later(scaling.recheck_seconds, self._scale)

    def _apply(self, scaling: Scaling) -> None:
        for name in scaling.cancel:
            self._launched[name].end()
        for host in scaling.start:
            launched = self._launched[host.name] = self._cluster.launch(host)
            self._start_task(self._watch(host, launched), host.kind)

    # --- tasks --------------------------------------------------------------------------------------

    def _start_tasks(self) -> None:
        self._start_task(self._survey_cluster(), "survey")
        if self._journal is not None:
            self._start_task(self._keep_journal(self._journal), "journal")
        if self._account.budget:
            self._start_task(self._guard_budget(), "guard")
        if self._metrics:
            self._start_task(self._publish_metrics(), "metrics")

    def _start_task(self, running: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(running, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _wait_for_tasks(self, names: Iterable[str], seconds: float) -> None:
        if tasks := [task for task in self._tasks if task.get_name() in names]:
            await asyncio.wait(tasks, timeout=seconds)

    async def _keep_journal(self, journal: Journal) -> None:
        """Write leases ahead of spending, and read what other runs spend."""
        while not self._is_closed and self._guard.over_at is None:
            entry = self._guard.lease(time.time(), time.monotonic())
            # A refusing storage ends no host while the last lease lasts.
            with suppress(LedgerError):
                self._guard.confirm_lease(await asyncio.to_thread(_write_and_read, journal, entry))
                self._scale()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._write_now.wait(), WRITE_SECONDS)
            self._write_now.clear()

    async def _guard_budget(self) -> None:
        while not self._is_closed:
            decision = self._guard.check(time.monotonic())
            for name in decision.kill:
                self._launched[name].end()
            if decision.must_write:
                self._write_now.set()
            if decision.has_news:
                await self._changed()
            await asyncio.sleep(BUDGET_POLL_SECONDS)

    async def _survey_cluster(self) -> None:
        while not self._is_closed:
            if self._survey.note_draining(await asyncio.to_thread(self._cluster.draining_nodes)):
                await self._changed()  # waiting hosts have to learn of it
            self._apply(self._fleet.shrink_groups(time.monotonic(), self._count_room))
            wait = self._survey.longest_wait(time.monotonic())
            status = await asyncio.to_thread(self._cluster.status) if wait is not None else None
            if message := self._survey.judge(wait, status):
                await self._give_up(message)
            await asyncio.sleep(NODE_POLL_SECONDS)

    def _count_room(self) -> int:
        return count_devices(self._cluster.nodes().values(), self._terms.resources.per_device)

    async def _publish_metrics(self) -> None:
        while not self._is_closed:
            queue, account = self._queue, self._account
            self._metrics.publish_work(queue.worker_ranges, queue.training, queue.queued)
            self._metrics.publish_hosts(self._fleet.hosts.values(), account.devices)
            self._metrics.publish_spending(account.spent(time.monotonic()), account.budget)
            await asyncio.sleep(PUBLISH_SECONDS)


def _write_and_read(journal: Journal, entry: JournalEntry) -> tuple[JournalEntry, ...]:
    """In this order, so that of two drivers that start at once, one sees the other."""
    journal.write(entry)
    return journal.entries()


def open_coordinator(
    open_pool: OpenPool,
    data: Any,
    terms: HostTerms,
    account: Account | None = None,
    **queue: Any,
) -> Any:
    """Start the actor on this machine, because the account uses this machine's monotonic clock.

    Args:
        queue: arguments of `WorkQueue`.
    """
    cluster = RayCluster([ray.put((open_pool, data))], terms)
    return (
        ray.remote(Coordinator)
        .options(**on_this_node(), max_concurrency=1000)
        .remote(queue, terms, cluster, account)
    )
