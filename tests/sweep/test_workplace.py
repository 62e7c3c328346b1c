"""Promise: of the runs of a study that see each other one trains, and no lock outlives its process."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import pytest

from raymrc.errors import StudyError
from raymrc.study.budget import Entry, Journal
from raymrc.sweep.workplace import only_run


@pytest.fixture(params=["folder", "URL"])
def storage(request, tmp_path, monkeypatch) -> str:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where the lock of a URL lies
    return "mock:///study" if request.param == "URL" else str(tmp_path / "study")


def test_a_second_run_is_refused_with_who_is_at_work_and_a_later_one_is_not(storage):
    with only_run(storage):
        told = re.escape(f"{storage}: another run of this study is at work (process {os.getpid()} ")
        with pytest.raises(StudyError, match=told), only_run(storage):
            pass
        with only_run(f"{storage}-2"):
            pass
    with only_run(storage), pytest.raises(StudyError, match=told), only_run(storage):
        pass


def test_the_lock_is_no_run_that_has_spent_anything(tmp_path):
    with only_run(str(tmp_path)):
        assert Journal(str(tmp_path)).entries() == ()
        Journal(str(tmp_path)).write(Entry("me", 0.0))
    assert [entry.driver for entry in Journal(str(tmp_path)).entries()] == ["me"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full disk at hand")
def test_a_storage_that_takes_no_lock_keeps_nobody_from_training(tmp_path):
    (tmp_path / "spend").write_text("no folder")
    with only_run(str(tmp_path)), only_run(str(tmp_path)):
        pass
    (tmp_path / "spend").unlink()
    (tmp_path / "spend").mkdir()
    (tmp_path / "spend" / ".lock").symlink_to("/dev/full")
    with only_run(str(tmp_path)):
        pass
