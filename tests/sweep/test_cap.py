"""Promise: hosts never hold devices for longer than the budget pays, their lanes are saved, and all spending
is counted, even if a driver is killed or the storage is unavailable.

A failure would go unnoticed, because a study that spends too much ends like any other. These tests watch the
hosts' processes from outside and compare them with the journal.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from raymrc.configuration import FoldRun
from raymrc.costs.account import MIN_LEASE_SECONDS, Account
from raymrc.costs.budget import (
    Budget,
    Need,
)
from raymrc.costs.journal import Journal, JournalEntry, add_up
from raymrc.errors import LedgerError
from raymrc.ledger.ledger import Ledger
from raymrc.scheduling.allowance import Allowance
from raymrc.scheduling.orders import HostReport, Order
from raymrc.scheduling.state import StudyOutcome
from raymrc.sweep import session
from raymrc.sweep.coordinator import Coordinator, open_coordinator
from raymrc.sweep.hosts import HostTerms, process_age
from raymrc.sweep.session import HostResources
from tests.paths import ROOT
from tests.sweep.fake_cluster import FakeCluster
from tests.sweep.making import (
    Script,
    actors,
    fold_runs,
    make_plan,
    make_record,
    open_pool,
    train_script,
)
from tests.sweep.ray_warnings import RAY_WARNINGS

pytestmark = RAY_WARNINGS


def seconds(number: float, **limits: float) -> Budget:
    return Budget(device_hours=number / 3600, device_hour_usd=1.0, **limits)


# --- the coordinator, without Ray -----------------------------------------------------------------------


class Guarded:
    """A coordinator with a budget and hosts that this test plays."""

    def __init__(self, folder: Path, budget: Budget) -> None:
        terms = HostTerms(HostResources(save_seconds=0.0), str(folder))
        self.journal = Journal(str(folder))
        self.account = Account(budget, self.journal.entries(), time.time(), time.monotonic())
        self.cluster = FakeCluster()
        queue = {"lanes": 4, "max_devices": 2, "allowance": Allowance(), "idle_seconds": 1.0}
        self.coordinator = Coordinator(queue, terms, self.cluster, self.account)

    async def submit(self, runs: list[FoldRun], value: float) -> None:
        needs = {run.key: Need(value, value, value, saving_seconds=0.1) for run in runs}
        await self.coordinator.submit("t", runs, needs=needs)

    async def started(self, number: int) -> None:
        async with asyncio.timeout(20):
            while len(self.cluster.hosts) < number:
                await asyncio.sleep(0.05)

    async def exchange(self, host: str) -> Order:
        return await self.coordinator.exchange(host, ("node",), ())


def test_a_host_is_requested_only_after_its_lease_is_written(tmp_path, monkeypatch):
    async def study() -> None:
        guarded = Guarded(tmp_path, seconds(1000))
        writes = []
        write = Journal.write

        def write_slowly(journal: Journal, entry: JournalEntry) -> None:
            assert not guarded.cluster.hosts or writes, "a host came first"
            time.sleep(0.3)
            write(journal, entry)
            writes.append(entry.ahead_device_seconds)

        monkeypatch.setattr(Journal, "write", write_slowly)
        await guarded.submit(fold_runs(make_plan([0.1], ["fine_tune"])), 1.0)
        assert not guarded.cluster.hosts
        await guarded.started(2)
        assert max(writes) >= 2 * MIN_LEASE_SECONDS
        await guarded.coordinator.close()
        assert list(guarded.cluster.hosts) == ["host-1", "host-2"]

    asyncio.run(study())


def test_at_the_cap_hosts_save_and_leave_and_a_silent_host_is_killed(tmp_path):
    async def study() -> None:
        guarded = Guarded(tmp_path, seconds(14.0))
        await guarded.submit(fold_runs(make_plan([0.1], ["fine_tune"])), 5.0)
        await guarded.started(2)
        opened = []
        for name in ("host-1", "host-2"):
            await guarded.coordinator.arrive(name, 0.0)
            opened += (await guarded.exchange(name)).open
        began = time.monotonic()
        stopped = asyncio.create_task(guarded.coordinator.stopped())
        while not (await guarded.exchange("host-1")).drain:
            await asyncio.sleep(0.1)
        key = opened[0][0].key
        report = HostReport(key, checkpoint=f"{key}/000001")
        await guarded.coordinator.release("host-1", [report])
        guarded.cluster.hosts["host-1"].leave()
        why = await asyncio.wait_for(stopped, 20)  # host-2 is silent
        assert why.by_budget and guarded.cluster.ended == ["host-2"]
        assert 4 < time.monotonic() - began < 12
        closing = await guarded.coordinator.close()
        assert closing.stopped.by_budget and "the budget is exhausted" in closing.stopped.sentence
        assert closing.spent.device_seconds <= 14.0
        (entry,) = guarded.journal.entries()
        assert entry.has_ended and entry.device_seconds == closing.device_seconds
        assert list(entry.unfinished) == [key]
        with pytest.raises(TimeoutError):  # nothing is recorded, nothing lost
            await asyncio.wait_for(guarded.coordinator.listen("t"), 0.2)

    asyncio.run(study())


def test_a_study_ends_if_the_budget_left_is_too_small_for_a_host(tmp_path):
    """It may still suffice for a fold-run; trials would then wait for a host that is never requested."""

    async def study() -> None:
        Journal(str(tmp_path)).write(JournalEntry("before", 0.0, device_seconds=98.0))
        guarded = Guarded(tmp_path, seconds(100.0))
        await guarded.submit(fold_runs(make_plan([0.1], ["fine_tune"])), 0.5)
        why = await asyncio.wait_for(guarded.coordinator.stopped(), 20)
        assert why.by_budget and "the budget is exhausted" in why.sentence
        assert not guarded.cluster.hosts
        await guarded.coordinator.close()

    asyncio.run(study())


def test_a_storage_that_refuses_writes_ends_hosts_only_when_the_lease_runs_out(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("raymrc.costs.account.MIN_LEASE_SECONDS", 4.0)
    monkeypatch.setattr("raymrc.costs.account.MAX_LEASE_SECONDS", 4.0)
    for module in ("costs.account", "scheduling.budget_guard", "sweep.coordinator"):
        monkeypatch.setattr(f"raymrc.{module}.WRITE_SECONDS", 0.4)

    async def study() -> None:
        guarded = Guarded(tmp_path, seconds(1000.0))
        await guarded.submit(fold_runs(make_plan([0.1], ["fine_tune"]))[:1], 500.0)
        await guarded.started(1)
        await guarded.coordinator.arrive("host-1", 0.0)
        await guarded.exchange("host-1")

        async def is_drained(within: float) -> bool:
            until = time.monotonic() + within
            while time.monotonic() < until and not guarded.cluster.ended:
                if (await guarded.exchange("host-1")).drain:
                    return True
                await asyncio.sleep(0.1)
            return False

        spend = tmp_path / "spend"
        for number, outage in enumerate((1.5, 8.0)):
            spend.rename(tmp_path / f"away-{number}")
            spend.touch()  # a file in the folder's place
            was_drained = await is_drained(outage)
            assert was_drained == (outage > 4), "only a long outage ends hosts"
            spend.unlink()
            (tmp_path / f"away-{number}").rename(spend)
            if not was_drained:
                assert not await is_drained(1.0)
        spent = guarded.account.device_seconds(time.monotonic())
        (entry,) = Journal(str(tmp_path)).entries()
        assert not entry.has_ended and entry.charged >= spent, "the last lease covers it"
        await guarded.coordinator.release("host-1", [])
        guarded.cluster.hosts["host-1"].leave()
        why = await asyncio.wait_for(guarded.coordinator.stopped(), 10)
        assert not why.by_budget and "could not be written" in why.sentence
        await guarded.coordinator.close()

    asyncio.run(study())


def test_a_process_knows_its_age():
    code = "import time\ntime.sleep(1)\nfrom raymrc.sweep.hosts import process_age\nprint(process_age())"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert 1.0 <= float(run.stdout) < 120
    assert process_age() > 0


# --- on Ray ---------------------------------------------------------------------------------------


class Watch(threading.Thread):
    """Measures from outside how long processes of hosts exist: in device-seconds, at one core each."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: dict[int, tuple[float, float]] = {}
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.1):
            now = time.monotonic()
            for process in actors("Host"):
                first, _ = self.seen.get(process.pid, (now, now))
                self.seen[process.pid] = (first, now)

    @property
    def device_seconds(self) -> float:
        return sum(last - first for first, last in self.seen.values())

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        until = time.monotonic() + 30
        while actors("Host") and time.monotonic() < until:
            time.sleep(0.1)
        self.over.set()
        self.join()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with session.cluster(HostResources(max_hosts=2), tmp_path_factory.mktemp("cluster")):
        yield


@pytest.fixture
def script(tmp_path: Path) -> Script:
    (tmp_path / "trained").mkdir()
    return Script(tmp_path / "trained")


PLAN = make_plan([0.1, 0.2], ["frozen_soft_prompt"])


def run(folder: Path, script: Script, budget: Budget, **options: Any) -> StudyOutcome:
    options.setdefault("resources", HostResources(max_hosts=2, save_seconds=0.0))
    return train_script(PLAN, Ledger(str(folder)), script, folder, budget=budget, **options)


def wanted() -> dict[str, Any]:
    return {run.key: make_record(run) for run in fold_runs(PLAN)}


@dataclass(frozen=True)
class SlowToFetch:
    """Opens pools; unpickling it takes long, like an import of torch."""

    folder: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return _fetch_slowly, (self.folder,)


def _fetch_slowly(folder: Path) -> Any:
    (folder / "begun").touch()
    until = time.monotonic() + 30
    while not (folder / "go").exists() and time.monotonic() < until:
        time.sleep(0.05)
    return open_pool


@pytest.mark.ray
class TestOnRay:
    def test_a_host_is_charged_while_it_fetches_its_training_code(self, cluster, tmp_path, script):
        import ray

        terms = HostTerms(HostResources(save_seconds=0.0), str(tmp_path))
        account = Account(seconds(600), (), time.time(), time.monotonic())
        coordinator = open_coordinator(
            SlowToFetch(tmp_path),
            script,
            terms,
            account,
            lanes=4,
            max_devices=1,
        )
        try:
            coordinator.submit.remote("t", fold_runs(PLAN)[:1])
            until = time.monotonic() + 60
            while not (tmp_path / "begun").exists() and time.monotonic() < until:
                time.sleep(0.05)
            assert ray.get(coordinator.spent.remote(), timeout=10).device_seconds > 0
            (tmp_path / "go").touch()
            results, _ = ray.get(coordinator.listen.remote("t"), timeout=60)
            assert results, "it trains as usual"
        finally:
            ray.get(coordinator.close.remote())
            ray.kill(coordinator)

    def test_the_cap_holds_and_a_larger_budget_resumes_from_checkpoints(
        self, cluster, tmp_path, script
    ):
        # Each of two hosts has 24 seconds, from its start on: enough for an epoch, too few for a fold-run, so
        # that the cap comes in the middle of training.
        slow = replace(script, nap=27.0)
        one_lane = HostResources(max_hosts=2, lanes=1, save_seconds=0.0)
        with Watch() as watch:
            outcome = run(tmp_path, slow, seconds(48.0), resources=one_lane)
        assert outcome.out_of_budget.startswith("the budget is exhausted (0.0")
        assert not outcome.interrupted and outcome.done < 6
        (entry,) = Journal(str(tmp_path)).entries()
        assert entry.has_ended
        assert entry.device_seconds <= 48.0 * 1.01
        # From outside, processes are seen a little later, and each look takes time.
        assert watch.device_seconds <= entry.device_seconds + 1.0
        assert outcome.spent.device_seconds == pytest.approx(entry.device_seconds)

        again = run(tmp_path, slow, seconds(48.0))
        assert again.out_of_budget and again.done == 0, "what was spent is still spent"

        began = len(script.trained())
        saved = len(list((tmp_path / "saved").glob("*/*")))
        assert saved > 0
        outcome = run(tmp_path, replace(script, nap=1.0), seconds(500.0))
        assert (outcome.out_of_budget, outcome.done + outcome.reused) == ("", 6)
        assert {r.key: r for r in Ledger(str(tmp_path)).records()} == wanted()
        later = [path for path in script.folder.iterdir() if int(path.name.split("-")[2]) > 0]
        assert later, "some fold-runs resumed"
        assert len(script.trained()) - began == outcome.done, "each was trained once"
        total = add_up(Journal(str(tmp_path)).entries(), 1.0)
        assert total.device_seconds == pytest.approx(outcome.spent.device_seconds)

    def test_a_wall_clock_cap_ends_hosts_too(self, cluster, tmp_path, script):
        budget = Budget(wall_hours=20.0 / 3600)
        outcome = run(tmp_path, replace(script, nap=8.0), budget)
        assert outcome.out_of_budget and outcome.done < 6
        (entry,) = Journal(str(tmp_path)).entries()
        assert 10.0 < entry.seconds <= 20.0 * 1.01

    def test_fold_runs_that_do_not_fit_are_not_started_and_the_message_says_what_they_need(
        self, cluster, tmp_path, script
    ):
        def expect(fold_run: FoldRun) -> Need:
            value = 2.0 if fold_run.fold == 0 else 1e6
            return Need(value, value, value)

        outcome = run(tmp_path, script, seconds(400.0), expect=expect)
        assert outcome.done == 2 and not outcome.interrupted
        assert sorted(script.trained()) == sorted(r.key for r in fold_runs(PLAN) if r.fold == 0)
        assert "of the budget is left, but the cheapest fold-run needs about" in (
            outcome.out_of_budget
        )
        outcome = run(tmp_path, script, Budget(), expect=expect)
        assert outcome.done == 4 and not outcome.out_of_budget

    def test_spending_is_recorded_without_a_budget(self, cluster, tmp_path, script):
        outcome = run(tmp_path, replace(script, nap=1.0), Budget(device_hour_usd=3600.0))
        (entry,) = Journal(str(tmp_path)).entries()
        assert outcome.done == 6 and entry.has_ended and entry.device_seconds > 3
        assert outcome.spent.usd == pytest.approx(entry.device_seconds)

    @pytest.mark.chaos
    def test_all_spending_of_a_killed_driver_is_counted(self, cluster, tmp_path, script):
        budget = 100.0
        killed = subprocess.Popen(
            [sys.executable, "-m", "tests.sweep.making", str(tmp_path), "4.0", str(budget)],
            cwd=ROOT, env=dict(os.environ), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        with Watch() as watch:
            while len(script.trained()) < 3 and killed.poll() is None:
                time.sleep(0.1)
            time.sleep(3.0)
            killed.kill()
            killed.wait()
        (entry,) = Journal(str(tmp_path)).entries()
        assert not entry.has_ended
        assert entry.charged >= watch.device_seconds > 3
        with Watch() as second:
            outcome = run(tmp_path, replace(script, nap=4.0), seconds(budget))
        total = add_up(Journal(str(tmp_path)).entries(), 1.0).device_seconds
        assert total == pytest.approx(outcome.spent.device_seconds)
        assert total <= budget * 1.01
        assert watch.device_seconds + second.device_seconds <= budget * 1.01
        outcome = run(tmp_path, script, seconds(1000.0))
        assert outcome.done + outcome.reused == len(PLAN.cells[0].configurations) * 3

    @pytest.mark.chaos
    def test_a_study_that_loses_its_storage_ends_within_its_lease_and_can_be_resumed(
        self, cluster, tmp_path, script
    ):
        def take_away() -> None:
            while len(script.trained()) < 2:
                time.sleep(0.1)
            (tmp_path / "spend").rename(tmp_path / "away")
            (tmp_path / "spend").touch()

        thread = threading.Thread(target=take_away, daemon=True)
        thread.start()
        with Watch() as watch, pytest.raises(LedgerError, match="could not be written"):
            run(tmp_path, replace(script, nap=60.0), seconds(1000.0))
        thread.join()
        (tmp_path / "spend").unlink()
        (tmp_path / "away").rename(tmp_path / "spend")
        (entry,) = Journal(str(tmp_path)).entries()
        assert not entry.has_ended and entry.charged >= watch.device_seconds > 5
        outcome = run(tmp_path, script, seconds(1000.0))
        assert outcome.done + outcome.reused == 6
