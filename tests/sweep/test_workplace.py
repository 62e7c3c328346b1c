"""Promise: of the runs of a study that see each other one trains, and no lock outlives its process."""

from __future__ import annotations

import os
import platform
import re
import tempfile
from contextlib import ExitStack, nullcontext

import pytest

from raymrc.errors import StudyError
from raymrc.study.budget import Entry, Journal
from raymrc.sweep import workplace
from raymrc.sweep.workplace import only_run


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
