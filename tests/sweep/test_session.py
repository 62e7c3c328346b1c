"""Promise: of the runs of a study that see each other one trains, and no lock outlives its process."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import tempfile
from contextlib import ExitStack, nullcontext
from dataclasses import replace

import pytest
import ray

from raymrc.costs.budget import Budget
from raymrc.costs.journal import Journal, JournalEntry
from raymrc.errors import StudyError
from raymrc.ledger.ledger import Ledger
from raymrc.racing.racing import Racing
from raymrc.scheduling.checkpoints import Checkpoints
from raymrc.scheduling.only_run import only_run
from raymrc.scheduling.record_writer import RecordWriter
from raymrc.scheduling.spending import Spending
from raymrc.scheduling.state import StudyRun
from raymrc.sweep import session as workplace
from raymrc.sweep.driver import run_study
from tests.sweep.making import fold_runs, make_plan, make_record, open_pool


@pytest.fixture(params=["folder", "URL"])
def storage(request, tmp_path, monkeypatch) -> str:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where the lock of a URL lies
    return "mock:///study" if request.param == "URL" else str(tmp_path / "study")


def test_a_second_run_is_refused_with_who_is_at_work_and_a_later_one_is_not(storage):
    said: list[str] = []
    with only_run(storage, said.append):
        told = re.escape(f"{storage}: another run of this study is at work (process {os.getpid()} ")
        with pytest.raises(StudyError, match=told), only_run(storage, said.append):
            pass
        with only_run(f"{storage}-2", said.append):
            pass
    with only_run(storage, said.append), pytest.raises(StudyError, match=told):
        with only_run(storage, said.append):
            pass
    assert said == [], "nobody waits for a process that is there"


@pytest.mark.parametrize("is_lost", [True, False])
def test_another_machine_may_have_been_lost_and_is_waited_for(is_lost, tmp_path, monkeypatch):
    monkeypatch.setattr(workplace, "LOST_SECONDS", 60.0 if is_lost else 0.2)
    monkeypatch.setattr(workplace, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(platform, "node", lambda: "elsewhere")
    with ExitStack() as elsewhere:
        elsewhere.enter_context(only_run(str(tmp_path), print))
        monkeypatch.setattr(platform, "node", lambda: "here")
        said: list[str] = []

        def say(sentence: str) -> None:
            said.append(sentence)
            if is_lost:
                elsewhere.close()

        refused = nullcontext() if is_lost else pytest.raises(StudyError, match="on elsewhere")
        with refused, only_run(str(tmp_path), say):
            pass
    (sentence,) = said
    assert f"(process {os.getpid()} on elsewhere), or its machine was lost" in sentence


def test_the_lock_is_no_run_that_has_spent_anything(tmp_path):
    with only_run(str(tmp_path), print):
        assert Journal(str(tmp_path)).entries() == ()
        Journal(str(tmp_path)).write(JournalEntry("me", 0.0))
    assert [entry.driver for entry in Journal(str(tmp_path)).entries()] == ["me"]


def test_a_storage_that_takes_no_lock_keeps_nobody_from_training(tmp_path):
    (tmp_path / "spend" / ".lock").mkdir(parents=True)
    with only_run(str(tmp_path), print) as waited, only_run(str(tmp_path), print):
        assert not waited


# --- runs that have not said that they ended -------------------------------------------------------


KILLED = JournalEntry(
    "killed", 1e9, 10.0, 20.0, 30.0, 60.0, 30.0, running=4, committed=500.0, process="process 7 on gone"
)  # fmt: skip
"""Its clock was years behind ours."""


@pytest.fixture
def brief(monkeypatch) -> None:
    monkeypatch.setattr(workplace, "WATCH_SECONDS", 1.0)
    monkeypatch.setattr(workplace, "LOOK_SECONDS", 0.05)


def test_a_run_that_was_lost_is_waited_for_once_and_nothing_is_reserved_for_it(tmp_path, brief):
    storage = str(tmp_path)
    journal, said = Journal(storage), list[str]()
    journal.write(KILLED)
    assert KILLED.reserved == 440.0
    for expected in (True, False):
        with only_run(storage, said.append) as waited:
            assert waited is expected
    (sentence,) = said
    assert "(process 7 on gone), or has ended without a word" in sentence
    (buried,) = Journal(storage).entries()
    assert (buried.charged, buried.interval) == (KILLED.charged, KILLED.interval)
    assert buried.reserved == 0 and buried.has_ended


def test_a_run_of_this_machine_that_has_no_lock_any_more_is_gone(tmp_path, monkeypatch):
    storage = str(tmp_path)
    monkeypatch.setattr(workplace, "WATCH_SECONDS", 60.0)
    Journal(storage).write(replace(KILLED, process=f"process 7 on {platform.node()}"))
    spending = Spending(Budget(device_hours=1.0), storage, [], lambda run: None)
    assert spending.account.reserved == 440.0
    with only_run(storage, print) as waited, spending:
        assert not waited
        assert spending.account.reserved == 0.0, "else it would stop so far below its budget"


@pytest.mark.parametrize("change", [{"seconds": 13.0}, {"lease": 0.0, "ahead": 0.0}])
def test_a_run_elsewhere_is_at_work_while_it_writes(change, tmp_path, brief):
    """Whatever its clock says; one that ends meanwhile has ended."""
    storage = str(tmp_path)
    journal = Journal(storage)
    journal.write(KILLED)

    def say(sentence: str) -> None:
        journal.write(replace(KILLED, **change))

    at_work = pytest.raises(StudyError, match=r"at work \(process 7 on gone\); wait for it")
    with at_work if "seconds" in change else nullcontext():
        with only_run(storage, say) as waited:
            assert waited
    (entry,) = journal.entries()
    assert entry == replace(KILLED, **change), "it was not buried"


def test_where_two_begin_at_once_one_sees_the_other(tmp_path):
    first, second = (Spending(Budget(), str(tmp_path), [], lambda run: None) for _ in range(2))
    with first:
        told = rf"at work \(process {os.getpid()} on "
        with pytest.raises(StudyError, match=told), second:
            pass
        running = [e for e in Journal(str(tmp_path)).entries() if not e.has_ended]
        assert [entry.driver for entry in running] == [first.account.driver]
    with Spending(Budget(), str(tmp_path), [], lambda run: None):
        pass


def test_what_another_run_did_while_it_was_waited_for_is_not_done_again(tmp_path, brief):
    """The ledger is read again; here all was trained meanwhile."""
    plan, ledger = make_plan(), Ledger(str(tmp_path))
    Journal(str(tmp_path)).write(KILLED)

    def say(sentence: str) -> None:
        for run in fold_runs(plan):
            ledger.record(make_record(run))

    outcome = run_study(plan, ledger, open_pool, None, folder=tmp_path, say=say)
    assert (outcome.reused, outcome.done) == (12, 0)
    assert not ray.is_initialized()


def test_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / "spend").mkdir()
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "spend" / ".lock").symlink_to(tmp_path / "theirs")
    with only_run(str(tmp_path), print):
        assert (tmp_path / "theirs").read_text() == "theirs"


def test_what_a_killed_run_has_left_goes_also_where_nothing_is_left_to_train(tmp_path):
    plan, ledger = make_plan(), Ledger(str(tmp_path / "storage"))
    for run in fold_runs(plan):
        ledger.record(make_record(run))
    killed, alive = tmp_path / ".sweep-killed", tmp_path / ".sweep-alive"
    for place in (killed, alive):
        place.mkdir()
        (place / "lock").touch()
    with (alive / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = run_study(plan, ledger, open_pool, None, folder=tmp_path)
        assert (outcome.reused, outcome.done) == (12, 0)
        assert not killed.exists()
        assert alive.exists()


@pytest.mark.parametrize("raced", [True, False])
def test_what_hosts_had_saved_of_a_configuration_that_was_stopped_goes_too(raced, tmp_path):
    """Its driver was killed between the record and the removal, or before it heard of what was saved."""
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
        run_study(plan, ledger, open_pool, None, folder=tmp_path)
        assert not any(state.exists() for state in states)
    else:  # the grid is completed from them
        spending = Spending(Budget(), str(tmp_path), [], lambda run: None)
        keeper = RecordWriter(ledger.record, lambda record: None)
        saved = Checkpoints(str(tmp_path))
        study = StudyRun(plan, ledger, ledger.records(), None, None, saved, spending, keeper)
        keeper.close()
        saved.tidy(study.finished)
        assert all(state.exists() for state in states)
