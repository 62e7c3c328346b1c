"""Promise: a finished fold-run stays finished, complete and unchanged, whichever process dies or writes.

Nobody would notice a failure: half a record is read as no record, and days of training are repeated;
or one bad file hides a thousand good files.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from raymrc.costs.journal import Journal
from raymrc.errors import LedgerError
from raymrc.ledger.ledger import Ledger
from raymrc.ledger.storage import Files, Folder, ObjectStore
from raymrc.scoring.counts import Counts
from tests.paths import ROOT
from tests.study.making import record

Open = Callable[[], Ledger]


def in_folder(path: Path) -> Open:
    return lambda: Ledger(str(path / "runs" / "x"))


def at_file_url(path: Path) -> Open:
    return lambda: Ledger((path / "runs x").as_uri())


def in_object_store(path: Path) -> Open:
    """Use the code for S3 and GS with a store in memory."""
    from pyarrow.fs import _MockFileSystem

    filesystem = _MockFileSystem()
    return lambda: Ledger(
        "mem://b/x", files=ObjectStore(filesystem, "b/x/ledger", "mem://b/x/ledger")
    )


@pytest.fixture(params=[in_folder, at_file_url, in_object_store, "on S3"])
def open_ledger(request, tmp_path) -> Open:
    if request.param == "on S3":
        storage = request.getfixturevalue("s3").storage(f"{tmp_path.name}/runs")
        return lambda: Ledger(storage)
    return request.param(tmp_path)


@pytest.fixture
def files(open_ledger) -> Files:
    return open_ledger().files


def name_of(key: str, ending: str = ".json") -> str:
    return f"{key[:2]}/{key}{ending}"


def test_a_record_round_trips(open_ledger):
    validation = {"b": Counts(1, 0, 2), "a": Counts(0, 0, 70_000)}
    kept = replace(record(counts={"Drug": Counts(3, 1, 2)}), validation=validation)
    open_ledger().record(kept)
    ledger = open_ledger()
    (read,) = ledger.records()
    assert dict(read.validation.items()) == validation
    assert (read.validation["a"], "c" in read.validation) == (validation["a"], False)
    assert ledger.has(kept.key)
    assert ledger.get(kept.key) == kept
    assert ledger.keys() == {kept.key}
    assert ledger.records() == (kept,)
    assert ledger.read_all()[1] == ()


def test_a_record_without_subsets_is_read_and_written_unchanged(open_ledger):
    old = record(counts={"Drug": Counts(3, 1, 2)})
    (note_id,) = old.notes
    assert json.loads(old.to_json())["notes"][note_id].keys() == {"strict", "lenient"}
    nested = {"nested": Counts(1, 0, 2), "any": Counts(1, 2, 2)}
    new = replace(old, notes={note_id: replace(old.notes[note_id], subsets=nested)})
    values = json.loads(new.to_json())
    assert values["notes"][note_id].pop("subsets") == {"nested": [1, 0, 2], "any": [1, 2, 2]}
    assert json.dumps(values, sort_keys=True) == old.to_json()
    open_ledger().record(new)
    kept = open_ledger().get(old.key)
    assert (kept, kept.subsets) == (new, nested)
    assert old.subsets == {}


def test_an_empty_ledger_is_empty(open_ledger):
    ledger = open_ledger()
    assert (ledger.keys(), *ledger.read_all()) == (frozenset(), (), ())
    assert ledger.get("0" * 64) is None
    assert not ledger.has("0" * 64)


def test_a_done_record_is_never_overwritten(open_ledger):
    ledger, first = open_ledger(), record(validation_f1=0.5)
    ledger.record(first)
    ledger.record(replace(first, validation_f1=0.9))
    ledger.record(record(status="failed"))
    assert ledger.records() == (first,)


def test_a_failed_record_is_not_done_and_a_retry_replaces_it(open_ledger):
    ledger, failed = open_ledger(), record(status="failed")
    ledger.record(failed)
    assert not ledger.has(failed.key)
    assert ledger.get(failed.key) == failed
    assert ledger.keys() == frozenset()
    later = replace(failed, reason="again")
    ledger.record(later)
    assert ledger.records() == (later,)
    done = record()
    ledger.record(done)
    assert ledger.records() == (done,)
    assert ledger.get(done.key) == done


def test_a_later_record_replaces_a_paused_one(open_ledger):
    ledger = open_ledger()
    paused = replace(record(), status="paused", notes={})
    ledger.record(record(status="failed"))
    ledger.record(paused)
    assert ledger.records() == (paused,), "it was tried again and got so far"
    assert not ledger.has(paused.key) and ledger.keys() == frozenset()
    stopped = replace(paused, status="stopped", reason="it can no longer win", validation_f1=0.6)
    ledger.record(stopped)
    assert ledger.records() == (stopped,) and ledger.get(paused.key) == stopped
    failed = record(status="failed")
    ledger.record(failed)
    assert ledger.records() == (failed,)
    ledger.record(paused)
    ledger.record(record())
    assert ledger.records() == (record(),)
    ledger.record(paused)
    assert ledger.records() == (record(),), "a done one stays"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda text: text[: len(text) // 2],
            "is not a whole record, as if cut off; remove it, and",
        ),
        (lambda text: "", "is not a whole record, as if cut off"),
        (lambda text: "[]", "is not a record of this version"),
        (lambda text: json.dumps({**json.loads(text), "new_field": 1}), "is not a record of this"),
        (
            lambda text: text.replace('"learning_rate": 0.0001', '"learning_rate": 0.1'),
            "was changed",
        ),
        (lambda text: record(1).to_json(), "holds another record than its name says"),
    ],
)
def test_a_bad_record_is_reported_with_a_remedy_and_the_others_are_read(
    open_ledger, files, spoil, message
):
    good, bad = record(0, learning_rate=1e-3), record(0)
    ledger = open_ledger()
    ledger.record(good)
    files.write(name_of(bad.key), spoil(bad.to_json()).encode(), replace=True)
    assert ledger.records() == (good,)
    (problem,) = ledger.read_all()[1]
    assert message in problem
    assert problem.startswith(files.place(name_of(bad.key)))
    assert "it will be trained again" in problem or "its fold-run will be trained again" in problem
    with pytest.raises(LedgerError, match=bad.key):
        ledger.get(bad.key)
    with pytest.raises(LedgerError, match=bad.key):
        ledger.check()
    files.remove(name_of(bad.key))
    ledger.check()


def test_concurrent_writers_leave_one_complete_record(open_ledger):
    runs = [record(fold, validation_f1=0.1 * attempt) for fold in range(4) for attempt in range(4)]
    ledger = open_ledger()
    threads = [threading.Thread(target=ledger.record, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.records()) == 4
    assert ledger.read_all()[1] == ()


def test_other_files_are_ignored(open_ledger, files):
    ledger, kept = open_ledger(), record()
    ledger.record(kept)
    files.write(f"{kept.key[:2]}/.{kept.key}.abc.part", b"half", replace=True)
    files.write("README.txt", b"hello", replace=True)
    assert ledger.records() == (kept,)
    assert ledger.read_all()[1] == ()


def test_a_writer_killed_midway_leaves_no_record(tmp_path, monkeypatch):
    ledger, run = Ledger(str(tmp_path)), record()
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        ledger.record(run)
    assert not ledger.has(run.key)
    assert [p for p in (tmp_path / "ledger").rglob("*") if p.is_file()] == []


def test_a_file_system_without_hard_links_keeps_the_first_record_too(tmp_path, monkeypatch):
    def refuse(*_args: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr("os.link", refuse)
    ledger, first = Ledger(str(tmp_path)), record()
    ledger.record(first)
    ledger.record(replace(first, validation_f1=0.9))
    assert ledger.records() == (first,)


@pytest.mark.parametrize("storage", ["{}/a file/runs", "/proc/nowhere/runs", "file://{}/a file"])
def test_an_unwritable_storage_is_refused_before_anything_is_created(tmp_path, storage):
    (tmp_path / "a file").write_text("")
    with pytest.raises(
        LedgerError, match=r"cannot be written to .*; set storage to a place that can"
    ):
        Ledger(storage.format(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["a file"]


def test_folders_created_for_a_refusing_storage_are_removed(tmp_path, monkeypatch):
    def refuse(**_kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(LedgerError, match="Permission denied"):
        Ledger(str(tmp_path / "a" / "b"))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_reported_in_one_sentence(tmp_path, monkeypatch):
    def refuse(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    ledger = Ledger(str(tmp_path))
    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(LedgerError, match=r"the store refuses \(No space left on device\)"):
        ledger.record(record())
    monkeypatch.undo()
    assert ledger.read_all()[1] == ()


def test_reading_creates_nothing(tmp_path):
    ledger = Ledger(str(tmp_path / "runs"), write=False)
    assert (ledger.keys(), ledger.records()) == (frozenset(), ())
    assert not (tmp_path / "runs").exists()


def test_an_unreadable_folder_does_not_count_as_empty(tmp_path):
    """Otherwise everything would be trained again, and past spending forgotten."""
    for room in ("ledger", "spend"):
        (tmp_path / room).touch()  # a file in the folder's place
    with pytest.raises(LedgerError, match="the store refuses"):
        Ledger(str(tmp_path), write=False).records()
    with pytest.raises(LedgerError, match="the store refuses"):
        Journal(str(tmp_path)).entries()
    assert Ledger(str(tmp_path / "not-there"), write=False).records() == ()


def test_an_unknown_url_is_reported_in_one_sentence():
    with pytest.raises(LedgerError, match="nope://x: cannot be opened as a store"):
        Ledger("nope://x")


def test_records_are_spread_over_folders(tmp_path):
    ledger = Ledger(str(tmp_path))
    for fold in range(20):
        ledger.record(record(fold))
    assert isinstance(ledger.files, Folder)
    folders = [p for p in (tmp_path / "ledger").iterdir() if p.is_dir()]
    assert len(folders) > 10
    assert all(len(folder.name) == 2 for folder in folders)


def test_files_are_listed_and_removed_folder_by_folder(files):
    for name in ("a/1", "a/1.shards/x", "b/1"):
        files.write(name, b"x", replace=True)
    assert sorted(files.names()) == ["a/1", "a/1.shards/x", "b/1"]
    files.remove_all("a")
    files.remove_all("nowhere")
    assert list(files.names()) == ["b/1"]


WRITE = """
import sys
from dataclasses import replace
from raymrc.ledger.ledger import Ledger
from tests.study.making import record
ledger, mine = Ledger(sys.argv[1]), float(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for fold in range(200):
    ledger.record(record(fold, status="failed"))
    ledger.record(record(fold, validation_f1=mine))
"""


def test_two_processes_that_write_the_same_keys_leave_one_complete_record_per_key(tmp_path):
    """Two drivers of one study do this."""
    command = [sys.executable, "-c", WRITE, str(tmp_path)]
    both = [
        subprocess.Popen(
            [*command, mine], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for mine in ("0.25", "0.75")
    ]
    for process in both:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        process.communicate()
        assert process.returncode == 0
    ledger = Ledger(str(tmp_path))
    assert ledger.read_all()[1] == () and len(ledger.keys()) == 200
    values = {r.validation_f1 for r in ledger.records()}
    assert values <= {0.25, 0.75} and {r.status for r in ledger.records()} == {"done"}
    assert not list((tmp_path / "ledger").rglob(".*")), "nothing half-written"
