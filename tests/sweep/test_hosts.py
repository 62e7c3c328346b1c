"""Promise: a host or a machine that goes costs time, never a digit of a result.

Real Ray, real training of a tiny backbone; hosts and nodes are killed at random moments.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from raymrc.ledger.ledger import Ledger
from raymrc.ledger.record import Record
from raymrc.scheduling.work_queue import MAX_HOST_DEATHS, SINGLE_DEVICE, WorkerRange
from raymrc.sweep.capacity import had_process
from raymrc.sweep.coordinator import _Asked
from raymrc.sweep.driver import run_study
from raymrc.sweep.hosts import HostTerms
from raymrc.sweep.session import HostResources
from tests.model.tiny import tiny_backbone, tiny_checkpoint
from tests.sweep.making import (
    Script,
    actors,
    fold_runs,
    make_plan,
    make_record,
    open_pool,
    warn_node,
)
from tests.sweep.rehearsal import free_port

pytestmark = [
    pytest.mark.ray,
    pytest.mark.chaos,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]


TERMS = HostTerms(cpus=1, gpus=0, num_threads=1, save_seconds=5.0, storage="nowhere")


def asked(name: str, ended: list[str] | None = None) -> _Asked:
    return _Asked(SINGLE_DEVICE, lambda: (ended if ended is not None else []).append(name))


def test_hosts_that_cannot_start_are_not_started_for_ever(monkeypatch: Any) -> None:
    from ray.exceptions import ActorDiedError

    from raymrc.sweep.coordinator import MAX_FAILED_STARTS, Coordinator

    reception = Coordinator({"lanes": 2, "max_devices": 2}, [], TERMS)
    monkeypatch.setattr(reception, "_scale", lambda: None)
    runs = fold_runs(make_plan([0.1], ["frozen_soft_prompt"]))

    async def die() -> None:
        raise ActorDiedError

    async def study() -> tuple[list[dict[str, Any]], bool]:
        await reception.submit("t", runs)
        await reception._watch("called-off", die())
        for number in range(MAX_FAILED_STARTS):
            reception._hosts[f"h{number}"] = asked(f"h{number}")
            await reception._watch(f"h{number}", die())
        return await reception.listen("t")

    results, is_over = asyncio.run(study())
    assert is_over and len(results) == len(runs)
    reasons = {Record.from_json(result["record"]).reason for result in results}
    assert all(reason.startswith("no host can be started (ray.exceptions") for reason in reasons)


def test_a_host_that_dies_while_it_waits_takes_no_work_with_it(monkeypatch: Any) -> None:
    from raymrc.sweep.coordinator import Coordinator

    reception = Coordinator({"lanes": 4, "max_devices": 1}, [], TERMS)
    monkeypatch.setattr(reception, "_scale", lambda: None)
    runs = fold_runs(make_plan([0.1], ["frozen_soft_prompt"]))

    async def end() -> None:
        pass

    async def study() -> list[str]:
        reception._hosts["a"] = asked("a")
        waiting = asyncio.create_task(reception.exchange("a", ("node",), ()))
        await asyncio.sleep(0.05)
        await reception._watch("a", end())
        await reception.submit("t", runs)
        order = await waiting
        assert order.leave and not order.open
        reception._hosts["b"] = asked("b")
        return [run.key for run, _ in (await reception.exchange("b", ("node",), ())).open]

    assert asyncio.run(study()) == [run.key for run in runs]


def test_hosts_and_groups_that_are_lost_or_taken_away_are_counted(monkeypatch: Any) -> None:
    """What the dashboard's panel of node churn and its alert are drawn from."""
    import ray
    from ray.exceptions import ActorDiedError

    from raymrc.sweep.coordinator import Coordinator
    from raymrc.sweep.metrics import EVICTIONS, HOST_DEATHS

    reception = Coordinator({"lanes": 4, "max_devices": 4}, [], TERMS)
    monkeypatch.setattr(reception, "_scale", lambda: None)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "node", "Alive": True}])
    told: list[tuple[str, str]] = []

    def tell(series: Any, value: float, *_: Any, kind: str = "", **__: Any) -> None:
        told.extend([(series.name, kind)] * int(value))

    monkeypatch.setattr(reception._metrics, "publish", tell)

    async def die() -> None:
        raise ActorDiedError

    async def go() -> None:
        pass

    async def study() -> None:
        reception._hosts |= {"h": asked("h"), "g": _Asked((1, 2), lambda: None), "i": asked("i")}
        for name in "hgi":
            reception._hosts[name].nodes = ("node",)
        reception._draining = {"gone"}
        for host in "hg":
            assert (await reception.exchange(host, ("gone",), ())).evacuate
        reception._hosts["g"].nodes = reception._hosts["h"].nodes = ("node",)
        await reception._watch("h", die())
        await reception._watch("g", die())
        await reception._watch("i", go())

    asyncio.run(study())
    assert told == [
        (EVICTIONS.name, "host"), (EVICTIONS.name, "group"),
        (HOST_DEATHS.name, "host"), (HOST_DEATHS.name, "group"),
    ], "who goes by itself is not lost"  # fmt: skip


def test_a_host_that_has_not_started_is_called_off_only_where_work_stays_away(
    monkeypatch: Any,
) -> None:
    from raymrc.sweep.coordinator import Coordinator

    board = {"lanes": 1, "max_devices": 2, "idle_seconds": 0.2}
    reception = Coordinator(board, [], TERMS)
    started: list[str] = []
    called_off: list[Any] = []

    def start(crew: WorkerRange) -> None:
        assert crew == SINGLE_DEVICE
        started.append(f"h{len(started)}")
        reception._hosts[started[-1]] = asked(started[-1], called_off)

    monkeypatch.setattr(reception, "_start", start)
    one, two, three = (
        fold_runs(make_plan([rate], ["frozen_soft_prompt"])) for rate in (0.1, 0.2, 0.3)
    )

    async def study() -> None:
        await reception.submit("one", one)
        await reception.exchange("h0", ("node",), ())  # the first has started, the second not yet
        await reception.withdraw("one")
        await asyncio.sleep(0.1)
        await reception.submit("two", two)  # soon enough
        await asyncio.sleep(0.2)
        assert (started, called_off) == (["h0", "h1"], [])
        await reception.withdraw("two")
        await asyncio.sleep(0.3)
        assert called_off == ["h1"]
        await reception.submit("three", three)
        assert started == ["h0", "h1", "h2"]

    asyncio.run(study())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without cores for hosts, and two machines with one core each."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "dashboard_port": free_port()}  # another cluster may run beside it
    made = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_host_that_has_left_does_not_hold_its_device_any_longer(cluster: Any) -> None:
    import ray

    from raymrc.sweep.coordinator import run_to_its_end

    @ray.remote(num_cpus=1)
    class Host:
        def run(self) -> int:
            return os.getpid()

    host = Host.remote()
    pid = ray.get(host.run.remote())
    asyncio.run(run_to_its_end(host, host.run.remote()))
    until = time.monotonic() + 10
    while psutil.pid_exists(pid):
        assert time.monotonic() < until, "it is still there, and so is who holds it"
        time.sleep(0.05)


def test_who_is_ended_before_the_first_word_is_charged_where_there_was_a_process(
    cluster: Any,
) -> None:
    import ray

    from raymrc.costs.account import Account
    from raymrc.costs.budget import Budget
    from raymrc.sweep.coordinator import Coordinator, run_to_its_end

    @ray.remote(num_cpus=1)
    class Host:
        def __init__(self) -> None:
            time.sleep(60)

        def run(self) -> None: ...

    async def end_after(seconds: float, host: Any) -> float:
        """Device-seconds that are charged."""
        account = Account(Budget(), (), time.time(), time.monotonic())
        reception = Coordinator({"lanes": 1, "max_devices": 9}, [], TERMS, account)
        account.ask("h", 1.0, time.monotonic())
        running = run_to_its_end(host, host.run.remote())
        watch = asyncio.create_task(reception._watch("h", running, host._actor_id.hex()))
        await asyncio.sleep(seconds)
        ray.kill(host)
        await watch
        assert not account.awaits("h")
        return account.device_seconds(time.monotonic())

    def there(hosts: list[Any]) -> list[Any]:
        return [host for host in hosts if had_process(host._actor_id.hex())]

    async def study() -> None:
        hosts = [Host.remote() for _ in range(3)]
        until = time.monotonic() + 60
        while len(there(hosts)) < 2:
            assert time.monotonic() < until
            await asyncio.sleep(0.1)
        first, second = there(hosts)  # on the two devices; Ray does not promise which two
        (queued,) = set(hosts) - {first, second}
        assert await end_after(1.0, queued) == 0.0, "there is no device for it"
        assert 1.0 <= await end_after(1.0, first) < 10.0
        assert 0.5 <= await end_after(0.5, second) < 10.0

    asyncio.run(study())


class Killer(threading.Thread):
    """Kills a random host every so often while a study runs, so many times."""

    def __init__(self, every: float, times: int) -> None:
        super().__init__(daemon=True)
        self.every, self.times, self.killed = every, times, 0
        self.over = threading.Event()

    def run(self) -> None:
        draw = random.Random(7)
        while self.killed < self.times and not self.over.wait(self.every * draw.uniform(0.5, 1.5)):
            if found := actors("Host"):
                draw.choice(found).kill()
                self.killed += 1


def test_killed_hosts_change_no_result(cluster: Any, tmp_path: Path) -> None:
    from raymrc.model.loading import load_backbone
    from raymrc.training.trainer import Trainer, train_fold_run
    from tests.training.test_lane import make_data, make_notes

    backbone = tiny_backbone(tiny_checkpoint("bert", tmp_path / "tiny"))
    data = make_data(make_notes())
    plan = make_plan(
        [0.01, 0.02, 0.03], ["frozen_soft_prompt"], backbone=backbone,
        prompt_length=4, match_width=16, epochs=18, batch_size=4, window=20, overlap=4,
    )  # fmt: skip
    killer = Killer(every=4.0, times=MAX_HOST_DEATHS - 1)  # more, and one of them may be given up
    killer.start()
    ledger = Ledger(str(tmp_path))
    outcome = run_study(
        plan, ledger, Trainer().open_pool, data,
        folder=tmp_path, resources=HostResources(max_hosts=2, lanes=3, save_seconds=0.0),
    )  # fmt: skip
    killer.over.set()
    assert (outcome.done, outcome.failed) == (9, 0)
    assert killer.killed >= 2
    records = {record.key: record for record in ledger.records()}
    loaded = load_backbone(backbone)
    for run in fold_runs(plan)[::4]:
        mine, alone = records[run.key], train_fold_run(run, data, loaded)
        assert mine.notes == alone.notes
        assert mine.tokens == alone.tokens
        for ours, theirs in zip(mine.epochs, alone.epochs, strict=True):
            assert ours.loss == pytest.approx(theirs.loss, rel=1e-3, abs=1e-5)


@pytest.fixture
def script(tmp_path: Path) -> Script:
    (tmp_path / "trained").mkdir()
    return Script(tmp_path / "trained", nap=3.0)


def test_lanes_of_a_lost_machine_go_on_on_another_from_their_last_epoch(
    cluster: Any, tmp_path: Path, script: Script
) -> None:
    plan = make_plan([0.1, 0.2], ["frozen_soft_prompt"])
    ledger = Ledger(str(tmp_path))

    def lose_and_replace() -> None:
        until = time.monotonic() + 60
        # What was saved first has been told of by the second time.
        while len(list(tmp_path.glob("saved/*/*2"))) < 6 and time.monotonic() < until:
            time.sleep(0.05)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    thread = threading.Thread(target=lose_and_replace, daemon=True)
    thread.start()
    outcome = run_study(
        plan, ledger, open_pool, script,
        folder=tmp_path, resources=HostResources(max_hosts=2, lanes=3, save_seconds=0.0),
    )  # fmt: skip
    thread.join()
    cluster.add_node(num_cpus=1)
    assert (outcome.done, outcome.failed) == (6, 0)
    assert {r.key: r for r in ledger.records()} == {r.key: make_record(r) for r in fold_runs(plan)}
    assert len(script.trained()) > 6 and max(script.begun_at()) > 0


def test_a_machine_with_a_notice_saves_what_is_open_at_that_moment(
    cluster: Any, tmp_path: Path, script: Script
) -> None:
    """Nothing is saved at epochs' ends here, so that what goes on from a state was saved by the notice."""
    plan = make_plan([0.1, 0.2], ["frozen_soft_prompt"])
    ledger = Ledger(str(tmp_path))

    def warn_and_take() -> None:
        until = time.monotonic() + 60
        while len(actors("Host.run")) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(1.5)
        node = next(iter(cluster.worker_nodes))
        warn_node(cluster.address, node.node_id, 6.0)
        time.sleep(6.0)
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=warn_and_take, daemon=True)
    thread.start()
    outcome = run_study(
        plan, ledger, open_pool, replace(script, nap=4.0),
        folder=tmp_path, resources=HostResources(max_hosts=2, lanes=3, save_seconds=1e9),
    )  # fmt: skip
    thread.join()
    cluster.add_node(num_cpus=1)
    assert (outcome.done, outcome.failed) == (6, 0)
    assert {r.key: r for r in ledger.records()} == {r.key: make_record(r) for r in fold_runs(plan)}
    assert max(script.begun_at()) > 0
    assert len(script.trained()) <= 9, "each went on once at most"


def test_hosts_go_when_there_is_nothing_to_do_and_come_again(
    cluster: Any, tmp_path: Path, script: Script
) -> None:
    """Between studies no core is held, so that a cluster can shrink."""
    import ray

    quick = replace(script, nap=0.0)
    plan = make_plan([0.1], ["frozen_soft_prompt"])
    for number in range(2):
        folder = tmp_path / str(number)
        outcome = run_study(plan, Ledger(str(folder)), open_pool, quick, folder=folder)
        assert outcome.done == 3
        until = time.monotonic() + 60
        whole = ray.cluster_resources()["CPU"]
        while time.monotonic() < until:
            free = ray.available_resources().get("CPU", 0)
            if free == whole and not actors("Host"):
                break
            time.sleep(0.2)
        assert free == whole and actors("Host") == []
