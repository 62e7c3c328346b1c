"""Promise: one driver trains a study at a time, and a dead driver blocks others for at most one lease.

Two drivers would train the same fold-runs twice, and the ledger would look as if one driver had run. Only the
bill would show it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from raymrc.costs.budget import Budget
from raymrc.costs.journal import Journal, JournalEntry
from raymrc.errors import LedgerError, RaymrcError, StudyError
from raymrc.ledger.ledger import Ledger
from raymrc.ledger.storage import Folder, open_files
from raymrc.racing.racing import Racing
from raymrc.scheduling import only_run as only_run_module
from raymrc.scheduling.only_run import CLAIMS, only_run
from raymrc.scheduling.spending import Spending
from raymrc.scheduling.state import StudyRun
from raymrc.scheduling.terms import Listeners, RunTerms
from raymrc.sweep import driver, session
from raymrc.sweep.driver import Training, run_study
from raymrc.sweep.session import HostResources
from tests.sweep.making import fold_runs, make_plan, make_record, open_pool

TRAINING = Training(open_pool)
REFUSAL = r"another run is training this study \(process {} on "


@pytest.fixture(autouse=True)
def brief(monkeypatch) -> None:
    monkeypatch.setattr(only_run_module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(only_run_module, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(only_run_module, "LEASE_SECONDS", 2.0)


@pytest.fixture
def lockless(monkeypatch) -> None:
    def refuse(lock: int, what: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture(params=["folder", "folder without locks", "bucket"])
def storage(request, tmp_path) -> str:
    if request.param == "bucket":
        return request.getfixturevalue("s3").storage(f"only-run-{tmp_path.name}")
    if request.param == "folder without locks":
        request.getfixturevalue("lockless")
    return str(tmp_path / "study")


# --- a second driver ------------------------------------------------------------------------------


def test_a_second_run_is_refused_while_the_first_lives(storage):
    message = re.escape(storage) + ": " + REFUSAL.format(os.getpid())
    for _ in range(2):  # the next run can begin as soon as the first one ends
        with only_run(storage, print) as is_lost:
            with pytest.raises(StudyError, match=message), only_run(storage, print):
                pass
            assert not is_lost()


def test_a_lock_held_by_a_process_on_this_machine_refuses_a_run_without_waiting(tmp_path):
    with only_run(str(tmp_path), pytest.fail), pytest.raises(StudyError):
        with only_run(str(tmp_path), pytest.fail):
            pass


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_driver_waits_for_the_lock_of_another_machine_in_case_that_machine_was_lost(
    is_lost, tmp_path, monkeypatch
):
    monkeypatch.setattr(only_run_module, "LOST_MACHINE_SECONDS", 60.0 if is_lost else 0.2)
    monkeypatch.setattr(platform, "node", lambda: "elsewhere")
    with ExitStack() as elsewhere:
        elsewhere.enter_context(only_run(str(tmp_path), print))
        monkeypatch.setattr(platform, "node", lambda: "here")
        logged: list[str] = []

        def log(sentence: str) -> None:
            logged.append(sentence)
            if is_lost:
                elsewhere.close()

        refused = nullcontext() if is_lost else pytest.raises(StudyError, match="on elsewhere")
        with refused, only_run(str(tmp_path), log):
            pass
    (sentence,) = logged
    assert f"locked by process {os.getpid()} on elsewhere; waiting" in sentence


def test_a_lock_that_fails_for_another_reason_refuses_the_run(tmp_path, monkeypatch):
    """The lock file may belong to another user, whose driver may be training."""
    (tmp_path / "spend" / ".lock").mkdir(parents=True)
    with pytest.raises(LedgerError, match="cannot be written to"), only_run(str(tmp_path), print):
        pass

    def refuse(lock: int, what: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(LedgerError, match="No locks available"):
        with only_run(str(tmp_path / "other"), print):
            pass


def test_a_lock_is_not_written_through_a_symbolic_link(tmp_path):
    (tmp_path / "spend").mkdir()
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "spend" / ".lock").symlink_to(tmp_path / "theirs")
    with pytest.raises(LedgerError), only_run(str(tmp_path), print):
        pass
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_the_journal_ignores_the_lock_file(tmp_path):
    with only_run(str(tmp_path), print):
        assert Journal(str(tmp_path)).entries() == ()
        Journal(str(tmp_path)).write(JournalEntry("me", 0.0))
    assert [entry.driver for entry in Journal(str(tmp_path)).entries()] == ["me"]


# --- claims ---------------------------------------------------------------------------------------


def claims(folder: Path) -> list[str]:
    """Names of all claims; a renewal is first written under another name."""
    return sorted(n for n in open_files(str(folder), CLAIMS).names() if not n.startswith("."))


def write_claim(folder: Path, renewals: int = 0) -> None:
    claim = json.dumps({"process": "process 7 on gone", "renewals": renewals})
    Folder(folder / CLAIMS).write("dead.json", claim.encode(), replace=True)


def test_a_claim_that_nobody_renews_is_removed_after_one_lease(lockless, tmp_path):
    write_claim(tmp_path)
    logged: list[str] = []
    for _ in range(2):
        with only_run(str(tmp_path), logged.append):
            assert len(claims(tmp_path)) == 1 and claims(tmp_path) != ["dead.json"]
    assert claims(tmp_path) == []
    (sentence,) = logged
    assert "watching for 2 seconds whether it renews its claim" in sentence


@pytest.mark.parametrize("renews", [True, False])
def test_a_claim_that_is_renewed_late_refuses_a_run_and_a_withdrawn_claim_does_not(
    renews, lockless, tmp_path
):
    write_claim(tmp_path)

    def log(sentence: str) -> None:
        if renews:
            write_claim(tmp_path, renewals=1)
        else:
            Folder(tmp_path / CLAIMS).remove("dead.json")

    refused = pytest.raises(StudyError, match=REFUSAL.format(7)) if renews else nullcontext()
    with refused, only_run(str(tmp_path), log):
        pass
    assert claims(tmp_path) == (["dead.json"] if renews else [])


def test_at_most_one_of_two_simultaneous_claims_succeeds(lockless, tmp_path, monkeypatch):
    """Both write their claim before either looks for others."""
    both_wrote, outlive = threading.Barrier(2), only_run_module._outlive_others

    def look(*args: Any) -> None:
        both_wrote.wait(60)
        outlive(*args)

    monkeypatch.setattr(only_run_module, "_outlive_others", look)
    holders, refused = [], []

    def hold() -> None:
        try:
            with only_run(str(tmp_path), lambda sentence: None):
                holders.append(1)
        except StudyError:
            refused.append(1)

    threads = [threading.Thread(target=hold) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) >= 1 and len(holders) + len(refused) == 2
    assert claims(tmp_path) == []


def test_a_driver_whose_claim_was_removed_notices_it_and_does_not_claim_again(lockless, tmp_path):
    with only_run(str(tmp_path), print) as is_lost:
        (mine,) = claims(tmp_path)
        assert not is_lost()
        Folder(tmp_path / CLAIMS).remove(mine)
        wait_until(is_lost)
        assert claims(tmp_path) == []


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        threading.Event().wait(0.1)
    raise AssertionError("it never came")


# --- records of other drivers ---------------------------------------------------------------------


def test_fold_runs_recorded_by_another_driver_before_the_lock_are_not_trained_again(
    tmp_path, monkeypatch
):
    """The other driver ended just before this one took the lock; an earlier read would miss its records."""
    plan, ledger = make_plan(), Ledger(str(tmp_path))

    @contextmanager
    def ends_just_before(*args: Any) -> Iterator[Callable[[], bool]]:
        for run in fold_runs(plan):
            ledger.record(make_record(run))
        with only_run(*args) as is_lost:
            yield is_lost

    monkeypatch.setattr(driver, "only_run", ends_just_before)
    outcome = run_study(plan, ledger, TRAINING, tmp_path)
    assert (outcome.reused, outcome.done) == (12, 0)
    assert not ray.is_initialized()


def test_fold_runs_recorded_by_another_driver_during_the_wait_are_not_trained_again(
    lockless, tmp_path
):
    plan, ledger = make_plan(), Ledger(str(tmp_path))
    write_claim(tmp_path)

    def log(sentence: str) -> None:
        for run in fold_runs(plan):
            ledger.record(make_record(run))

    outcome = run_study(plan, ledger, TRAINING, tmp_path, listeners=Listeners(log=log))
    assert (outcome.reused, outcome.done) == (12, 0)
    assert not ray.is_initialized()


def test_the_budget_reserves_nothing_for_a_dead_driver(tmp_path):
    """The dead driver's clock does not matter, and its possible spending stays charged."""
    killed = JournalEntry(
        "killed", 1e9, 10.0, 20.0, 30.0, 60.0, 30.0,
        running=4, committed=500.0, process="process 7 on gone",
    )  # fmt: skip
    Journal(str(tmp_path)).write(killed)
    spending = Spending(Budget(device_hours=1.0), str(tmp_path), [])
    assert spending.account.reserved == killed.reserved == 440.0
    with spending:
        assert spending.account.reserved == 0.0
    (dead,) = [e for e in Journal(str(tmp_path)).entries() if e.driver == "killed"]
    assert (dead.charged, dead.began) == (killed.charged, killed.began)
    assert dead.seconds + dead.ahead == killed.seconds + killed.ahead
    assert dead.reserved == 0 and dead.has_ended


# --- leftovers of a killed run --------------------------------------------------------------------


def test_leftovers_of_a_killed_run_are_removed_even_if_nothing_is_left_to_train(tmp_path):
    plan, ledger = make_plan(), Ledger(str(tmp_path / "storage"))
    for run in fold_runs(plan):
        ledger.record(make_record(run))
    killed, alive = tmp_path / ".sweep-killed", tmp_path / ".sweep-alive"
    for place in (killed, alive):
        place.mkdir()
        (place / "lock").touch()
    with (alive / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = run_study(plan, ledger, TRAINING, tmp_path)
        assert (outcome.reused, outcome.done) == (12, 0)
        assert not killed.exists()
        assert alive.exists()


@pytest.mark.parametrize("raced", [True, False])
def test_checkpoints_of_a_stopped_configuration_are_removed_too(raced, tmp_path):
    """Its driver was killed between the record and the removal, or before it learned of the checkpoint."""
    plan = make_plan([0.1, 0.2], ["fine_tune"], folds=2)
    plan = replace(plan, racing=Racing()) if raced else plan
    best, beaten = fold_runs(plan)[:2], fold_runs(plan)[2:]
    ledger = Ledger(str(tmp_path))
    for run in best:
        ledger.record(make_record(run))
    ledger.record(replace(make_record(beaten[0]), status="stopped", reason="9 points below"))
    states = [tmp_path / "saved" / run.key / "000002" for run in beaten]
    for state in states:
        state.mkdir(parents=True)
        (state / "lane").touch()
    if raced:
        run_study(plan, ledger, TRAINING, tmp_path)
        assert not any(state.exists() for state in states)
    else:  # without racing, the grid is completed from them
        with StudyRun(plan, ledger, RunTerms(), Listeners()):
            pass
        assert all(state.exists() for state in states)


# --- Ray ------------------------------------------------------------------------------------------


def test_a_timeout_of_rays_start_is_reported_with_rays_reason_after_three_tries(
    monkeypatch, tmp_path
):
    tries = []

    def time_out(**options: Any) -> None:
        tries.append(options)
        raise Exception(
            "The current node timed out during startup. This could happen."
        )  # Ray's own message

    monkeypatch.setattr(session.ray, "init", time_out)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    message = (
        r"^Ray cannot be started on this machine: The current node timed out during startup\. This"
    )
    with pytest.raises(RaymrcError, match=message), session.cluster(HostResources(), tmp_path):
        pass
    assert len(tries) == 3


def test_a_cluster_that_cannot_be_reached_is_tried_once(monkeypatch, tmp_path):
    tries = []

    def refuse(**options: Any) -> None:
        tries.append(options)
        raise ConnectionError("ray client connection timeout")

    monkeypatch.setattr(session.ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(
        RaymrcError, match=r"^Ray cannot be started at 10\.0\.0\.1:6379: ray client"
    ):
        with session.cluster(HostResources(), tmp_path):
            pass
    assert len(tries) == 1
