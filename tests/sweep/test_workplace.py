"""Promise: of the runs of a study that see each other one trains, and no lock outlives its process."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import tempfile
from contextlib import ExitStack, nullcontext

import pytest

from raymrc.errors import StudyError
from raymrc.study.budget import Entry, Journal
from raymrc.study.ledger import Ledger
from raymrc.sweep import workplace
from raymrc.sweep.driver import run_study
from raymrc.sweep.workplace import only_run
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
        Journal(str(tmp_path)).write(Entry("me", 0.0))
    assert [entry.driver for entry in Journal(str(tmp_path)).entries()] == ["me"]


def test_a_storage_that_takes_no_lock_keeps_nobody_from_training(tmp_path):
    (tmp_path / "spend").write_text("no folder")
    with only_run(str(tmp_path), print), only_run(str(tmp_path), print):
        pass


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
