"""Promise: hosts never hold devices for longer than the budget pays, what they had is saved, and what was
spent is counted, also where a driver was killed or the storage is away.

It would break without anyone noticing: a study that spends too much ends like any other. So processes of
hosts are watched from outside, and compared with what the journal says.
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
from raymrc.costs.account import Account
from raymrc.costs.budget import (
    LEAST_LEASE,
    Budget,
    Entry,
    Need,
    add_up,
)
from raymrc.costs.journal import Journal
from raymrc.errors import LedgerError
from raymrc.ledger.ledger import Ledger
from raymrc.scheduling.allowance import Allowance
from raymrc.scheduling.state import StudyOutcome
from raymrc.scheduling.work_queue import SINGLE_DEVICE, HostReport
from raymrc.sweep import coordinator as reception
from raymrc.sweep import session as workplace
from raymrc.sweep.driver import run_study
from raymrc.sweep.hosts import HostTerms, process_age
from raymrc.sweep.session import HostResources
from tests.paths import ROOT
from tests.sweep.making import Script, actors, fold_runs, make_plan, make_record, open_pool

pytestmark = [
    # Ray leaves sockets and processes to the garbage collector, also while other tests run.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]


def seconds(number: float, **limits: float) -> Budget:
    return Budget(device_hours=number / 3600, device_hour_usd=1.0, **limits)


# --- the reception, without Ray -------------------------------------------------------------------


class Guarded:
    """A reception with hosts that this test plays."""

    def __init__(self, folder: Path, budget: Budget, monkeypatch: pytest.MonkeyPatch) -> None:
        terms = HostTerms(cpus=1, gpus=0, num_threads=1, save_seconds=0.0, storage=str(folder))
        self.journal = Journal(str(folder))
        account = Account(budget, self.journal.entries(), time.time(), time.monotonic())
        board = {"lanes": 4, "max_devices": 2, "allowance": Allowance(), "idle_seconds": 1.0}
        self.reception = reception.Coordinator(board, [], terms, account)
        self.account = account
        self.started: list[str] = []
        self.ended: list[str] = []
        monkeypatch.setattr(self.reception, "_start", self._start)

    def _start(self, crew: Any) -> None:
        name = f"h{len(self.started)}"
        self.started.append(name)

        def end() -> None:
            self.ended.append(name)
            self.account.end(name, time.monotonic())

        self.reception._hosts[name] = reception._Asked(SINGLE_DEVICE, end)

    async def ask(self, host: str, *reports: HostReport) -> Any:
        return await self.reception.exchange(host, ("node",), reports)


def sure(runs: list[FoldRun], value: float) -> dict[str, Need]:
    return {run.key: Need(value, value, value, saving_seconds=0.1) for run in runs}


def test_no_host_is_asked_for_before_what_it_may_spend_is_written(tmp_path, monkeypatch):
    async def study() -> None:
        guarded = Guarded(tmp_path, seconds(1000), monkeypatch)
        runs = fold_runs(make_plan([0.1], ["fine_tune"]))
        writes = []
        write = guarded.reception._journal.write

        def slow(entry: Any) -> None:
            assert not guarded.started or writes, "a host came first"
            time.sleep(0.3)
            write(entry)
            writes.append(entry.ahead_device_seconds)

        monkeypatch.setattr(guarded.reception._journal, "write", slow)
        await guarded.reception.submit("t", runs, needs=sure(runs, 1.0))
        assert guarded.started == []
        until = time.monotonic() + 20
        while len(guarded.started) < 2 and time.monotonic() < until:
            await asyncio.sleep(0.05)
        assert guarded.started == ["h0", "h1"] and max(writes) >= 2 * LEAST_LEASE
        await guarded.reception.close()

    asyncio.run(study())


def test_at_the_cap_hosts_save_and_go_and_one_that_does_not_answer_is_ended(tmp_path, monkeypatch):
    async def study() -> None:
        guarded = Guarded(tmp_path, seconds(14.0), monkeypatch)
        runs = fold_runs(make_plan([0.1], ["fine_tune"]))
        await guarded.reception.submit("t", runs, needs=sure(runs, 5.0))
        while len(guarded.started) < 2:
            await asyncio.sleep(0.05)
        for name in ("h0", "h1"):
            await guarded.reception.arrive(name, 0.0)
            assert (await guarded.ask(name)).open
        began = time.monotonic()
        stopped = asyncio.create_task(guarded.reception.stopped())
        order = await guarded.ask("h0")
        while not order.evacuate:
            await asyncio.sleep(0.1)
            order = await guarded.ask("h0")
        key = next(iter(guarded.reception._board._hosts["h0"].wishes))
        await guarded.reception.release("h0", [HostReport(key, saved=f"{key}/000001")])
        guarded.account.end("h0", time.monotonic())  # as `_watch` says it
        why = await asyncio.wait_for(stopped, 20)  # h1 is silent
        assert why.by_budget and guarded.ended == ["h1"]
        assert 4 < time.monotonic() - began < 12
        closing = await guarded.reception.close()
        assert closing.stopped.by_budget and "the budget is used up" in closing.stopped.sentence
        assert closing.spent.device_seconds <= 14.0
        (entry,) = guarded.journal.entries()
        assert entry.has_ended and entry.device_seconds == closing.device_seconds
        assert list(entry.unfinished) == [key]
        assert guarded.reception._board.collect("t")[0] == [], "nothing is recorded, nothing lost"

    asyncio.run(study())


def test_a_study_ends_where_what_is_left_is_too_little_for_a_host(tmp_path, monkeypatch):
    """And not for its fold-runs: trials would wait for a host that nobody asks for."""

    async def study() -> None:
        Journal(str(tmp_path)).write(Entry("before", 0.0, device_seconds=98.0))
        guarded = Guarded(tmp_path, seconds(100.0), monkeypatch)
        runs = fold_runs(make_plan([0.1], ["fine_tune"]))
        await guarded.reception.submit("t", runs, needs=sure(runs, 0.5))
        why = await asyncio.wait_for(guarded.reception.stopped(), 20)
        assert why.by_budget and "the budget is used up" in why.sentence
        assert guarded.started == []
        await guarded.reception.close()

    asyncio.run(study())


def test_a_storage_that_refuses_ends_hosts_only_when_the_lease_does(tmp_path, monkeypatch):
    monkeypatch.setattr("raymrc.costs.account.LEAST_LEASE", 4.0)
    monkeypatch.setattr("raymrc.costs.account.MOST_LEASE", 4.0)
    monkeypatch.setattr("raymrc.costs.account.WRITE_SECONDS", 0.4)
    monkeypatch.setattr(reception, "WRITE_SECONDS", 0.4)

    async def study() -> None:
        guarded = Guarded(tmp_path, seconds(1000.0), monkeypatch)
        runs = fold_runs(make_plan([0.1], ["fine_tune"]))[:1]
        await guarded.reception.submit("t", runs, needs=sure(runs, 500.0))
        while not guarded.started:
            await asyncio.sleep(0.05)
        await guarded.reception.arrive("h0", 0.0)
        await guarded.ask("h0")

        async def wait(long: float) -> bool:
            until = time.monotonic() + long
            while time.monotonic() < until:
                if "h0" in guarded.reception._hosts and (await guarded.ask("h0")).evacuate:
                    return True
                await asyncio.sleep(0.1)
            return False

        spend = tmp_path / "spend"
        for number, long in enumerate((1.5, 8.0)):
            spend.rename(tmp_path / f"away-{number}")
            spend.touch()  # a file in the folder's place
            was_ended = await wait(long)
            assert was_ended == (long > 4), "a short outage ends nobody, a long one everybody"
            spend.unlink()
            (tmp_path / f"away-{number}").rename(spend)
            if not was_ended:
                assert not await wait(1.0)
        spent = guarded.account.device_seconds(time.monotonic())
        (entry,) = Journal(str(tmp_path)).entries()
        assert not entry.has_ended and entry.charged >= spent, "what is written covers it"
        await guarded.reception.release("h0", [])
        guarded.account.end("h0", time.monotonic())
        why = await asyncio.wait_for(guarded.reception.stopped(), 10)
        assert not why.by_budget and "could not be noted" in why.sentence
        await guarded.reception.close()

    asyncio.run(study())


def test_a_process_knows_how_old_it_is():
    code = "import time\ntime.sleep(1)\nfrom raymrc.sweep.hosts import process_age\nprint(process_age())"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert 1.0 <= float(run.stdout) < 120
    assert process_age() > 0


# --- on Ray ---------------------------------------------------------------------------------------


class Watch(threading.Thread):
    """How long processes of hosts are there, seen from outside; device-seconds, as each holds one core."""

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
    with workplace.cluster(HostResources(max_hosts=2), tmp_path_factory.mktemp("cluster")):
        yield


@pytest.fixture
def script(tmp_path: Path) -> Script:
    (tmp_path / "trained").mkdir()
    return Script(tmp_path / "trained")


PLAN = make_plan([0.1, 0.2], ["frozen_soft_prompt"])


def run(folder: Path, script: Script, budget: Budget, **options: Any) -> StudyOutcome:
    options.setdefault("resources", HostResources(max_hosts=2, save_seconds=0.0))
    return run_study(
        PLAN, Ledger(str(folder)), open_pool, script, folder=folder, budget=budget, **options
    )


def wanted() -> dict[str, Any]:
    return {run.key: make_record(run) for run in fold_runs(PLAN)}


@dataclass(frozen=True)
class SlowToFetch:
    """Opens pools, and takes its time to be unpickled, as torch takes to be imported."""

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
@pytest.mark.timed
class TestOnRay:
    def test_a_host_is_charged_before_it_has_what_it_trains_with(self, cluster, tmp_path, script):
        import ray

        terms = HostTerms(cpus=1, gpus=0, num_threads=1, save_seconds=0.0, storage=str(tmp_path))
        account = Account(seconds(600), (), time.time(), time.monotonic())
        desk = reception.open_coordinator(
            SlowToFetch(tmp_path),
            script,
            terms,
            account,
            lanes=4,
            max_devices=1,
        )
        try:
            desk.submit.remote("t", fold_runs(PLAN)[:1])
            until = time.monotonic() + 60
            while not (tmp_path / "begun").exists() and time.monotonic() < until:
                time.sleep(0.05)
            assert ray.get(desk.spent.remote(), timeout=10).device_seconds > 0
            (tmp_path / "go").touch()
            results, _ = ray.get(desk.listen.remote("t"), timeout=60)
            assert results, "and it trains, as it would have"
        finally:
            ray.get(desk.close.remote())
            ray.kill(desk)

    def test_the_cap_holds_and_a_larger_budget_goes_on_from_what_was_saved(
        self, cluster, tmp_path, script
    ):
        slow = replace(script, nap=6.0)
        with Watch() as watch:
            outcome = run(tmp_path, slow, seconds(24.0))
        assert outcome.out_of_budget.startswith("the budget is used up (0.0")
        assert not outcome.interrupted and outcome.done < 6
        (entry,) = Journal(str(tmp_path)).entries()
        assert entry.has_ended
        assert entry.device_seconds <= 24.0 * 1.01
        # From outside processes are seen a little later, and each look takes a while.
        assert watch.device_seconds <= entry.device_seconds + 1.0
        assert outcome.spent.device_seconds == pytest.approx(entry.device_seconds)

        again = run(tmp_path, slow, seconds(24.0))
        assert again.out_of_budget and again.done == 0, "what is spent stays spent"

        began = len(script.trained())
        saved = len(list((tmp_path / "saved").glob("*/*")))
        assert saved > 0
        outcome = run(tmp_path, replace(script, nap=1.0), seconds(500.0))
        assert (outcome.out_of_budget, outcome.done + outcome.reused) == ("", 6)
        assert {r.key: r for r in Ledger(str(tmp_path)).records()} == wanted()
        later = [path for path in script.folder.iterdir() if int(path.name.split("-")[2]) > 0]
        assert later, "some went on from where they were"
        assert len(script.trained()) - began == outcome.done, "each once"
        total = add_up(Journal(str(tmp_path)).entries(), 1.0)
        assert total.device_seconds == pytest.approx(outcome.spent.device_seconds)

    def test_a_wall_clock_cap_closes_hosts_too(self, cluster, tmp_path, script):
        budget = Budget(wall_hours=20.0 / 3600)
        outcome = run(tmp_path, replace(script, nap=8.0), budget)
        assert outcome.out_of_budget and outcome.done < 6
        (entry,) = Journal(str(tmp_path)).entries()
        assert 10.0 < entry.seconds <= 20.0 * 1.01

    def test_what_does_not_fit_is_not_begun_and_the_run_says_what_is_wanted(
        self, cluster, tmp_path, script
    ):
        def expect(fold_run: FoldRun) -> Need:
            value = 2.0 if fold_run.fold == 0 else 1e6
            return Need(value, value, value)

        outcome = run(tmp_path, script, seconds(400.0), expect=expect)
        assert outcome.done == 2 and not outcome.interrupted
        assert sorted(script.trained()) == sorted(r.key for r in fold_runs(PLAN) if r.fold == 0)
        assert "of the budget is left, and the cheapest fold-run to do wants about" in (
            outcome.out_of_budget
        )
        outcome = run(tmp_path, script, Budget(), expect=expect)
        assert outcome.done == 4 and not outcome.out_of_budget

    def test_without_a_budget_what_is_spent_is_written_down(self, cluster, tmp_path, script):
        outcome = run(tmp_path, replace(script, nap=1.0), Budget(device_hour_usd=3600.0))
        (entry,) = Journal(str(tmp_path)).entries()
        assert outcome.done == 6 and entry.has_ended and entry.device_seconds > 3
        assert outcome.spent.usd == pytest.approx(entry.device_seconds)

    @pytest.mark.chaos
    def test_a_driver_that_is_killed_leaves_nothing_uncounted(self, cluster, tmp_path, script):
        budget = 100.0
        killed = subprocess.Popen(
            [sys.executable, "-m", "tests.sweep.making", str(tmp_path), "4.0", str(budget)],
            cwd=ROOT, env=dict(os.environ), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        with Watch() as watch:
            until = time.monotonic() + 120
            while len(script.trained()) < 3 and time.monotonic() < until:
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
    def test_a_study_without_storage_ends_within_its_lease_and_goes_on_later(
        self, cluster, tmp_path, script
    ):
        def take_away() -> None:
            until = time.monotonic() + 60
            while len(script.trained()) < 2 and time.monotonic() < until:
                time.sleep(0.1)
            (tmp_path / "spend").rename(tmp_path / "away")
            (tmp_path / "spend").touch()

        thread = threading.Thread(target=take_away, daemon=True)
        thread.start()
        with Watch() as watch, pytest.raises(LedgerError, match="could not be noted"):
            run(tmp_path, replace(script, nap=60.0), seconds(1000.0))
        thread.join()
        (tmp_path / "spend").unlink()
        (tmp_path / "away").rename(tmp_path / "spend")
        (entry,) = Journal(str(tmp_path)).entries()
        assert not entry.has_ended and entry.charged >= watch.device_seconds > 5
        outcome = run(tmp_path, script, seconds(1000.0))
        assert outcome.done + outcome.reused == 6
