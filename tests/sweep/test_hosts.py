"""Promise: the loss of a host or a machine costs time, and changes no digit of a result.

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

from raymrc.costs.account import Account
from raymrc.costs.budget import Budget
from raymrc.ledger.ledger import Ledger
from raymrc.scheduling.fleet import FleetHost
from raymrc.scheduling.orders import Order
from raymrc.scheduling.work_queue import MAX_HOST_DEATHS
from raymrc.sweep.coordinator import Coordinator
from raymrc.sweep.driver import Training, run_study
from raymrc.sweep.hosts import Host, HostTerms
from raymrc.sweep.ray_cluster import RayHost
from raymrc.sweep.ray_internals import had_process
from raymrc.sweep.session import HostResources
from tests.model.tiny import tiny_backbone, tiny_checkpoint
from tests.sweep.fake_cluster import FakeCluster
from tests.sweep.making import (
    Script,
    actors,
    fold_runs,
    make_plan,
    make_record,
    open_pool,
    train_script,
    warn_node,
)
from tests.sweep.ray_warnings import RAY_WARNINGS
from tests.sweep.rehearsal import free_port

pytestmark = [
    pytest.mark.ray,
    pytest.mark.chaos,
    *RAY_WARNINGS,
]


TERMS = HostTerms(HostResources(), "nowhere")


def test_a_host_saves_and_closes_the_lanes_that_it_hands_over_and_another_host_resumes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both hosts run in this process and get their training without Ray."""
    import ray

    monkeypatch.setattr(ray, "get", lambda value: value)
    (tmp_path / "trained").mkdir()
    script = Script(tmp_path / "trained")
    terms = HostTerms(HostResources(save_seconds=1e9), str(tmp_path))
    shared: Any = [(open_pool, script)]
    first, second = Host(shared, terms), Host(shared, terms)
    stays, moves, _ = fold_runs(make_plan([0.1], ["frozen_soft_prompt"]))
    assert first.obey(Order(open=((stays, None), (moves, None)))) == []
    assert [report.key for report in first.train()] == [stays.key, moves.key]
    (tmp_path / "saved").touch()  # a file in the folder's place
    order = Order(hand_over=(moves.key,))
    assert first.obey(order) == [], "a lane that cannot be saved stays"
    (tmp_path / "saved").unlink()
    (report,) = first.obey(order)
    assert report.handed_over and report.checkpoint is not None
    assert [report.key for report in first.train()] == [stays.key]
    assert second.obey(Order(open=((moves, report.checkpoint),))) == []
    assert script.begun_at() == [0, 0, 1]


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


def test_a_host_that_has_left_no_longer_holds_its_device(cluster: Any) -> None:
    import ray

    @ray.remote(num_cpus=1)
    class Host:
        def run(self) -> int:
            return os.getpid()

    host = Host.remote()
    pid = ray.get(host.run.remote())
    asyncio.run(RayHost(host, host.run.remote()).wait())
    until = time.monotonic() + 10
    while psutil.pid_exists(pid):
        assert time.monotonic() < until, "its process is still there, and holds the device"
        time.sleep(0.05)


def test_a_host_that_is_killed_before_its_first_contact_is_charged_if_it_had_a_process(
    cluster: Any, tmp_path: Path
) -> None:
    import ray

    @ray.remote(num_cpus=1)
    class Host:
        def __init__(self) -> None:
            time.sleep(60)

        def run(self) -> None: ...

    class OneHost(FakeCluster):
        def __init__(self, host: Any) -> None:
            super().__init__()
            self.host = host

        def launch(self, _: FleetHost) -> Any:
            return RayHost(self.host, self.host.run.remote())

    async def end_after(seconds: float, host: Any) -> float:
        """Kill the host after this time; returns the charged device-seconds."""
        account = Account(Budget(), (), time.time(), time.monotonic())
        terms = replace(TERMS, storage=str(tmp_path))
        coordinator = Coordinator({"lanes": 1, "max_devices": 1}, terms, OneHost(host), account)
        await coordinator.submit("t", fold_runs(make_plan([0.1]))[:1])
        await coordinator.withdraw("t")  # so that no other host is started
        await asyncio.sleep(seconds)
        ray.kill(host)
        while account.is_requested("host-1"):
            await asyncio.sleep(0.01)
        charged = account.device_seconds(time.monotonic())
        await coordinator.close()
        return charged

    def with_process(hosts: list[Any]) -> list[Any]:
        return [host for host in hosts if had_process(host)]

    async def study() -> None:
        hosts = [Host.remote() for _ in range(3)]
        until = time.monotonic() + 60
        while len(with_process(hosts)) < 2:
            assert time.monotonic() < until
            await asyncio.sleep(0.1)
        first, second = with_process(hosts)  # on the two devices; Ray does not promise which two
        (queued,) = set(hosts) - {first, second}
        assert await end_after(1.0, queued) == 0.0, "there is no device for it"
        assert 1.0 <= await end_after(1.0, first) < 10.0
        assert 0.5 <= await end_after(0.5, second) < 10.0

    asyncio.run(study())


class Killer(threading.Thread):
    """Kills random hosts at random moments while a study runs.

    Args:
        every: mean seconds between two kills.
        times: number of kills.
    """

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
    from raymrc.training.trainer import Trainer
    from tests.training.fold_runs import train_fold_run
    from tests.training.test_lane import make_data, make_notes

    backbone = tiny_backbone(tiny_checkpoint("bert", tmp_path / "tiny"))
    data = make_data(make_notes())
    plan = make_plan(
        [0.01, 0.02, 0.03], ["frozen_soft_prompt"], backbone=backbone,
        prompt_length=4, match_width=16, epochs=18, batch_size=4, window=20, overlap=4,
    )  # fmt: skip
    killer = Killer(every=4.0, times=MAX_HOST_DEATHS - 1)  # one more, and a fold-run might fail
    killer.start()
    ledger = Ledger(str(tmp_path))
    resources = HostResources(max_hosts=2, lanes=3, save_seconds=0.0)
    outcome = run_study(plan, ledger, Training(Trainer().open_pool, data, resources), tmp_path)
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


def test_lanes_of_a_lost_machine_resume_on_another_machine_from_their_last_epoch(
    cluster: Any, tmp_path: Path, script: Script
) -> None:
    plan = make_plan([0.1, 0.2], ["frozen_soft_prompt"])
    ledger = Ledger(str(tmp_path))

    def lose_and_replace() -> None:
        until = time.monotonic() + 60
        # The coordinator knows of a lane's first checkpoint when the second one is written.
        while len(list(tmp_path.glob("saved/*/*2"))) < 6 and time.monotonic() < until:
            time.sleep(0.05)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    thread = threading.Thread(target=lose_and_replace, daemon=True)
    thread.start()
    resources = HostResources(max_hosts=2, lanes=3, save_seconds=0.0)
    outcome = train_script(plan, ledger, script, tmp_path, resources=resources)
    thread.join()
    cluster.add_node(num_cpus=1)
    assert (outcome.done, outcome.failed) == (6, 0)
    assert {r.key: r for r in ledger.records()} == {r.key: make_record(r) for r in fold_runs(plan)}
    assert len(script.trained()) > 6 and max(script.begun_at()) > 0


def test_a_machine_with_a_spot_notice_saves_its_open_lanes_at_that_moment(
    cluster: Any, tmp_path: Path, script: Script
) -> None:
    """No lane is saved at the end of an epoch here, so all lanes resume from checkpoints after the notice."""
    plan = make_plan([0.1, 0.2], ["frozen_soft_prompt"])
    ledger = Ledger(str(tmp_path))

    def warn_and_take() -> None:
        until = time.monotonic() + 60
        while len(script.begun_at()) < 6 and time.monotonic() < until:
            time.sleep(0.05)
        # All lanes are open on both machines now. An epoch takes one second.
        time.sleep(1.5)
        node = next(iter(cluster.worker_nodes))
        warn_node(cluster.address, node.node_id, 6.0)
        time.sleep(6.0)
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=warn_and_take, daemon=True)
    thread.start()
    resources = HostResources(max_hosts=2, lanes=3, save_seconds=1e9)
    outcome = train_script(plan, ledger, replace(script, nap=4.0), tmp_path, resources=resources)
    thread.join()
    cluster.add_node(num_cpus=1)
    assert (outcome.done, outcome.failed) == (6, 0)
    assert {r.key: r for r in ledger.records()} == {r.key: make_record(r) for r in fold_runs(plan)}
    assert max(script.begun_at()) > 0
    assert len(script.trained()) <= 9, "each lane resumed at most once"


def test_hosts_leave_when_there_is_no_work_and_start_again(
    cluster: Any, tmp_path: Path, script: Script
) -> None:
    """No core is held between two studies, so that a cluster can shrink."""
    import ray

    quick = replace(script, nap=0.0)
    plan = make_plan([0.1], ["frozen_soft_prompt"])
    for number in range(2):
        folder = tmp_path / str(number)
        outcome = train_script(plan, Ledger(str(folder)), quick, folder)
        assert outcome.done == 3
        until = time.monotonic() + 60
        whole = ray.cluster_resources()["CPU"]
        while time.monotonic() < until:
            free = ray.available_resources().get("CPU", 0)
            if free == whole and not actors("Host"):
                break
            time.sleep(0.2)
        assert free == whole and actors("Host") == []
