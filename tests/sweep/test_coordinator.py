"""Promise: the coordinator starts hosts, watches them and ends those that are not needed, whatever they do.

These tests run without Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from raymrc.configuration import FoldRun
from raymrc.ledger.record import Record
from raymrc.scheduling.fleet import MAX_FAILED_STARTS
from raymrc.scheduling.orders import WorkerRange
from raymrc.sweep.coordinator import Coordinator
from raymrc.sweep.hosts import HostTerms
from raymrc.sweep.metrics import EVICTIONS, HOST_DEATHS, MetricPublisher
from raymrc.sweep.session import HostResources
from tests.sweep.fake_cluster import FakeCluster
from tests.sweep.making import fold_runs, make_plan

TERMS = HostTerms(HostResources(), "nowhere")


def frozen(rate: float = 0.1) -> list[FoldRun]:
    return fold_runs(make_plan([rate], ["frozen_soft_prompt"]))


def open_coordinator(cluster: FakeCluster, **queue: Any) -> Coordinator:
    return Coordinator({"lanes": 4, "max_devices": 1, **queue}, TERMS, cluster)


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_true():
            await asyncio.sleep(0.01)


def test_the_coordinator_gives_up_on_hosts_after_repeated_failed_starts() -> None:
    async def study() -> list[dict[str, Any]]:
        cluster = FakeCluster(fails=True)
        coordinator = open_coordinator(cluster)
        await coordinator.submit("t", frozen())
        results, is_over = [], False
        while not is_over:
            more, is_over = await asyncio.wait_for(coordinator.listen("t"), 20)
            results += more
        assert len(cluster.hosts) == MAX_FAILED_STARTS
        await coordinator.close()
        return results

    reasons = {Record.from_json(result["record"]).reason for result in asyncio.run(study())}
    assert len(reasons) == 1
    assert reasons.pop().startswith("no host can be started (ray.exceptions")


def test_trials_end_at_once_when_a_run_is_stopped() -> None:
    """Tune waits ten seconds for trials that wait themselves."""

    async def study() -> None:
        coordinator = open_coordinator(FakeCluster())
        await coordinator.submit("t", frozen())
        waiting = asyncio.create_task(coordinator.listen("t"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await coordinator.end_trials()
        assert await asyncio.wait_for(waiting, 20) == ([], True)
        await coordinator.close()

    asyncio.run(study())


def test_a_host_that_dies_while_it_waits_loses_no_work() -> None:
    async def study() -> None:
        cluster, runs = FakeCluster(), frozen()
        coordinator = open_coordinator(cluster)
        await coordinator.submit("t", runs[:1])
        await coordinator.exchange("host-1", ("node",), ())
        await coordinator.withdraw("t")
        await coordinator.exchange("host-1", ("node",), ())
        waiting = asyncio.create_task(coordinator.exchange("host-1", ("node",), ()))
        await asyncio.sleep(0.05)
        cluster.hosts["host-1"].die()
        order = await waiting
        assert order.leave and not order.open
        await coordinator.submit("u", runs)
        await until(lambda: "host-2" in cluster.hosts)
        order = await coordinator.exchange("host-2", ("node",), ())
        assert [run.key for run, _ in order.open] == [run.key for run in runs]
        await coordinator.close()

    asyncio.run(study())


def test_lost_and_evicted_hosts_and_groups_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dashboard's panel of node churn and its alert use these counts."""
    published: list[tuple[str, str]] = []

    def publish(_: Any, metric: Any, value: float, *__: Any, kind: str) -> None:
        published.extend([(metric.name, kind)] * int(value))

    monkeypatch.setattr(MetricPublisher, "publish", publish)

    async def study() -> None:
        cluster, grouped = (
            FakeCluster(draining={"gone"}),
            fold_runs(make_plan([0.1], ["fine_tune"])),
        )
        ranges = {grouped[0].configuration.cell: WorkerRange(1, 2)}
        coordinator = open_coordinator(cluster, max_devices=4, worker_ranges=ranges)
        await coordinator.submit("t", [grouped[0], *frozen()[:2]])
        assert list(cluster.hosts) == ["group-1", "host-2", "host-3"]
        assert not (await coordinator.exchange("host-3", ("node",), ())).drain
        for name in ("host-2", "group-1"):
            async with asyncio.timeout(20):
                while not (await coordinator.exchange(name, ("gone",), ())).drain:
                    await asyncio.sleep(0.05)
        for name in ("host-2", "group-1"):
            cluster.hosts[name].die()
        cluster.hosts["host-3"].leave()
        await until(lambda: len(published) == 4)
        await coordinator.close()

    asyncio.run(study())
    assert published == [
        (EVICTIONS.name, "host"), (EVICTIONS.name, "group"),
        (HOST_DEATHS.name, "host"), (HOST_DEATHS.name, "group"),
    ], "a host that leaves is not lost"  # fmt: skip


def test_a_requested_host_is_cancelled_only_if_no_new_work_arrives() -> None:
    async def study() -> None:
        cluster = FakeCluster()
        coordinator = open_coordinator(cluster, lanes=1, max_devices=2, idle_seconds=0.2)
        await coordinator.submit("one", frozen(0.1))
        await coordinator.exchange("host-1", ("node",), ())  # host-2 has not started yet
        await coordinator.withdraw("one")
        await asyncio.sleep(0.1)
        await coordinator.submit("two", frozen(0.2))  # before the host is cancelled
        await asyncio.sleep(0.2)
        assert (list(cluster.hosts), cluster.ended) == (["host-1", "host-2"], [])
        await coordinator.withdraw("two")
        await until(lambda: cluster.ended == ["host-2"])
        await coordinator.submit("three", frozen(0.3))
        assert list(cluster.hosts) == ["host-1", "host-2", "host-3"]
        await coordinator.close()

    asyncio.run(study())


def test_a_host_without_the_storage_ends_the_run_with_a_message() -> None:
    async def study() -> str:
        coordinator = open_coordinator(FakeCluster())
        await coordinator.submit("t", frozen())
        await coordinator.report_missing_storage("host-1", "10.0.0.7")
        message = await asyncio.wait_for(coordinator.verdict(), 20)
        await coordinator.close()
        return message

    assert asyncio.run(study()).startswith("nowhere cannot be seen on node 10.0.0.7, ")
