"""Promise: twice the records take twice the work, in every step from writing to the report.

A step that looks at all records once per record passes every test with ten records, and takes a day with
a hundred thousand. These tests count operations, not seconds.
"""

from __future__ import annotations

import pickle
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from raymrc.analysis.findings import summaries_json
from raymrc.analysis.judging import conclude
from raymrc.analysis.summary import summarise
from raymrc.errors import LedgerError
from raymrc.ledger.ledger import Ledger
from raymrc.ledger.record import NoteCounts, Record, SummedNotes
from raymrc.ledger.storage import MAX_READ_AHEAD, Folder, ObjectStore
from raymrc.planning.fold_runs import fold_run
from raymrc.report.results import winner_table
from raymrc.scheduling.search import StudySearch
from raymrc.scoring.counts import Counts
from tests.study.making import record
from tests.sweep.making import fold_runs, make_plan, make_record

PER_RECORD = {"write": 4, "read": 1}
"""Writing asks whether the record and a failed one are there, and reading takes one request."""


class CountedFiles(Folder):
    """Counts the calls of each method."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.calls: Counter[str] = Counter()

    def __getattribute__(self, name: str):
        found = super().__getattribute__(name)
        if name in ("names", "exists", "write", "remove", "remove_all", "try_to_write"):
            self.calls[name] += 1
        return found

    def read_many(self, names: Iterable[str]) -> Iterator[bytes | OSError]:
        return super().read_many(self._counted(names))

    def _counted(self, names: Iterable[str]) -> Iterator[str]:
        for name in names:
            self.calls["read"] += 1
            yield name


def count_lines(action: Callable[[], object]) -> int:
    """The number of raymrc's lines that run: it measures Python's work without a clock."""
    lines = 0

    def trace(frame, event, argument):
        nonlocal lines
        if "/raymrc/" not in frame.f_code.co_filename:
            return None
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return lines


def made(configurations: int) -> tuple[list[Record], object]:
    rates = [0.001 * (i + 1) for i in range(configurations)]
    plan = make_plan(rates, ["fine_tune", "frozen_soft_prompt"])
    return [make_record(run) for run in fold_runs(plan)], plan


@pytest.mark.parametrize("num_records", [30, 60])
def test_requests_per_record_do_not_grow_with_the_number_of_records(tmp_path, num_records):
    files = CountedFiles(tmp_path)
    ledger = Ledger(str(tmp_path), files=files)
    records = [record(fold) for fold in range(num_records)]
    files.calls.clear()
    for entry in records:
        ledger.record(entry)
    assert files.calls.total() <= PER_RECORD["write"] * num_records
    files.calls.clear()
    assert len(ledger.keys()) == num_records
    assert files.calls == {"names": 1}
    files.calls.clear()
    assert len(ledger.records()) == num_records
    assert files.calls == {"names": 1, "read": PER_RECORD["read"] * num_records}


def test_a_record_is_read_once_and_a_removed_record_disappears(tmp_path):
    files = CountedFiles(tmp_path / "ledger")
    ledger = Ledger(str(tmp_path), files=files)
    kept, gone, failed = record(0), record(1), record(2, status="failed")
    for entry in (kept, gone, failed):
        ledger.record(entry)
    ledger.check()
    files.calls.clear()
    other, new = Ledger(str(tmp_path)), record(3)
    other.record(new)
    other.record(replace(failed, reason="again"))
    (tmp_path / "ledger" / gone.key[:2] / f"{gone.key}.json").unlink()
    assert {r.key: r.reason for r in ledger.records()} == {
        kept.key: "", failed.key: "again", new.key: "",
    }  # fmt: skip
    assert files.calls == {"names": 1, "read": 2}, "the new one; the failed one may have changed"


STEPS: dict[str, Callable[[list[Record], object], object]] = {}


def step(action):
    STEPS[action.__name__] = action
    return action


@step
def resume(records, plan):
    search = StudySearch(plan, records[:-4])
    handed = []
    while (work := search.next()) is not None:
        handed += work.fold_runs
        for run in work.fold_runs:
            search.learn(make_record(run))
        search.settle(work)
    assert len(handed) == 4


@step
def report(records, plan):
    cells = [cell.cell for cell in plan.cells]
    held = [r for r in records if plan.holds(r.fold_run.configuration)]
    same = [fold_run(r.fold_run.configuration, r.fold_run.fold, plan.fingerprints) for r in held]
    summaries = summarise(held, plan.folds, cells, same)
    winner_table(summaries, conclude((), 0.01))
    assert summaries_json(summaries)["done"] == len(records)


@pytest.mark.parametrize("name", STEPS)
def test_twice_the_records_take_twice_the_steps(name):
    taken = []
    for configurations in (20, 40, 80):
        records, plan = made(configurations)
        taken.append(count_lines(lambda r=records, p=plan: STEPS[name](r, p)))
    # Differences cancel a study's constant cost: their ratio is 2 for linear steps, and 4 for quadratic.
    assert taken[2] - taken[1] <= 2.2 * (taken[1] - taken[0])


def test_reading_and_writing_take_twice_the_steps_for_twice_the_records(tmp_path):
    taken = []
    for num_records in (20, 40, 80):
        records = [record(fold) for fold in range(num_records)]
        ledger = Ledger(str(tmp_path / str(num_records)))

        def write_and_read(ledger=ledger, records=records) -> None:
            for entry in records:
                ledger.record(entry)
            assert len(ledger.records()) == len(records)
            assert len(ledger.records()) == len(records)

        taken.append(count_lines(write_and_read))
    assert taken[2] - taken[1] <= 2.2 * (taken[1] - taken[0])


def test_summed_counts_equal_the_counts_of_all_notes(tmp_path):
    notes = {
        f"note-{i}": NoteCounts(
            strict={"Drug": Counts(i, 1, 0), "ADE": Counts(0, 0, i)},
            lenient={"Drug": Counts(i, 0, 1)},
            events={"Alcohol": Counts(1, 0, 0)} if i % 2 else {},
            subsets={"any": Counts(0, i, 1)},
        )
        for i in range(7)
    }
    whole = replace(record(), notes=notes, transfer={"there": notes, "nowhere": {}})
    Ledger(str(tmp_path)).record(whole)
    ledger = Ledger(str(tmp_path))
    (read,) = ledger.records()
    assert isinstance(read.notes, SummedNotes) and isinstance(read.transfer["there"], SummedNotes)
    (tmp_path / "ledger" / whole.key[:2] / f"{whole.key}.json").rename(tmp_path / "away")
    for name in ("strict", "lenient", "events", "subsets"):
        assert getattr(read, name) == getattr(whole, name), "without a look at the file"
    for mode in ("strict", "lenient", "events"):
        for site in ("", "there", "nowhere"):
            assert read.per_label(mode, site) == whole.per_label(mode, site)
    assert len(read.notes) == 7 and [*read.notes] == [*notes], "which they are is known"
    with pytest.raises(LedgerError, match="cannot be read"):
        read.notes["note-3"]
    (tmp_path / "away").rename(tmp_path / "ledger" / whole.key[:2] / f"{whole.key}.json")
    assert read == whole and read.to_json() == whole.to_json()
    assert read.notes["note-3"] == notes["note-3"] and [*read.notes] == [*notes]
    copied = pickle.loads(pickle.dumps(read))
    assert copied == whole and type(copied.notes) is dict


def test_parallel_reads_keep_the_order_and_read_only_a_few_ahead():
    """Some reads take longer than later reads, as in a real store."""
    from pyarrow.fs import _MockFileSystem

    asked: list[str] = []

    class Slow(ObjectStore):
        def read(self, name: str) -> bytes:
            asked.append(name)
            time.sleep(0.002 * (int(name) % 3))
            if name == "5":
                raise FileNotFoundError(name)
            return name.encode()

    store = Slow(_MockFileSystem(), "b", "mem://b")
    names = [str(i) for i in range(3 * MAX_READ_AHEAD)]
    found = store.read_many(names)
    first = next(found)
    assert first == b"0" and len(asked) <= MAX_READ_AHEAD + 2
    rest = list(found)
    assert isinstance(rest[4], FileNotFoundError)
    assert [r for r in rest if isinstance(r, bytes)] == [n.encode() for n in names[1:] if n != "5"]


def test_equal_settings_that_are_written_differently_keep_their_keys(tmp_path):
    """1 and 1.0 are equal in Python but differ in JSON, from which keys are computed."""
    ledger = Ledger(str(tmp_path))
    keys = set()
    for number in (1, 1.0):
        run = record(learning_rate=number).fold_run
        kept = replace(record(), key=run.key, fold_run=run)
        ledger.record(kept)
        keys.add(kept.key)
    assert len(keys) == 2
    assert {r.key for r in Ledger(str(tmp_path)).records()} == keys


def test_a_record_on_s3_takes_few_requests(s3, tmp_path):
    """Each request costs money and takes a tenth of a second."""
    storage = s3.storage(tmp_path.name)
    ledger = Ledger(storage)
    before = s3.requests()
    ledger.record(record())
    assert s3.requests() - before == 4, "is it there, write it, is there a pause or a failed one"
    before = s3.requests()
    assert len(ledger.keys()) == 1
    assert s3.requests() - before <= 2, "a list of a thousand names each"
    before = s3.requests()
    assert len(ledger.records()) == 1 and len(ledger.records()) == 1
    assert s3.requests() - before <= 6, (
        "the list twice, and the record once: how long, and all of it"
    )


def test_an_unreachable_store_is_reported_and_later_accepts_the_record(s3, tmp_path):
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    impatient = S3FileSystem(  # opened by a URL, it retries for over a minute
        endpoint_override=f"http://127.0.0.1:{s3.port}",
        region="us-east-1",
        request_timeout=1,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=1),
    )
    root = s3.storage(f"{tmp_path.name}/ledger").removeprefix("s3://").partition("?")[0]
    ledger = Ledger("s3://it", files=ObjectStore(impatient, root, "s3://it"))
    s3.pause()
    try:
        with pytest.raises(LedgerError, match="the store refuses"):
            ledger.record(record())
    finally:
        s3.go_on()
    ledger.record(record())
    assert ledger.records() == (record(),) and ledger.read_all()[1] == ()
