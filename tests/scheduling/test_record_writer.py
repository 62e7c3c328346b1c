"""Promise: a finished fold-run reaches the ledger, even if the storage is away for ten minutes.

One that is dropped would be trained again, days later, and nobody would ask why.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from raymrc.errors import LedgerError
from raymrc.ledger.ledger import Ledger
from raymrc.ledger.record import Record
from raymrc.scheduling.record_writer import (
    FIRST_WAIT_SECONDS,
    LONGEST_WAIT_SECONDS,
    RecordWriter,
)
from tests.sweep.making import fold_runs, make_plan, make_record

RECORDS = [make_record(run) for run in fold_runs(make_plan())]


class Outage:
    """A ledger on disk whose first writes fail, and a clock that its waits advance.

    Args:
        record: index of the record that is refused.
    """

    def __init__(self, folder: Path, refusals: int, record: int = 0) -> None:
        self.ledger = Ledger(str(folder))
        self.left = refusals
        self.refused = RECORDS[record].key
        self.now = 0.0
        self.waited: list[float] = []
        self.kept: list[str] = []

    def record(self, record: Record, text: str | None = None) -> None:
        if record.key == self.refused and self.left:
            self.left -= 1
            raise LedgerError("the store refuses (No space left on device)")
        self.ledger.record(record, text)
        self.kept.append(record.key)

    def pause(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.now += seconds

    def writer(self, **terms: float) -> RecordWriter:
        return RecordWriter(
            self.record, lambda record: None, clock=lambda: self.now, pause=self.pause, **terms
        )


def test_records_wait_for_the_storage_and_keep_their_order(tmp_path):
    outage = Outage(tmp_path, refusals=9, record=2)
    writer = outage.writer(patience_seconds=600)
    for record in RECORDS:
        writer.put(record, record.to_json())
    writer.close()
    assert writer.error is None and writer.trouble == (0, "")
    assert outage.kept == [record.key for record in RECORDS]
    assert writer.written() == RECORDS and writer.written() == []
    assert {r.key for r in Ledger(str(tmp_path)).records()} == set(outage.kept)
    assert outage.waited == [1, 2, 4, 8, 16, 30, 30, 30, 30]
    assert outage.waited[0] == FIRST_WAIT_SECONDS and outage.waited[-1] == LONGEST_WAIT_SECONDS


def test_patience_ends_with_an_error_and_written_records_stay(tmp_path):
    outage = Outage(tmp_path, refusals=10**6, record=2)
    writer = outage.writer(patience_seconds=600)
    for record in RECORDS:
        writer.put(record)
    writer.close()
    assert sum(outage.waited) == 600
    assert isinstance(writer.error, LedgerError)
    assert str(writer.error) == (
        "the store refuses (No space left on device); finished fold-runs could not be written for "
        "10 minutes and will be trained again; repair the storage and run the study again"
    )
    assert writer.written() == RECORDS[:2]
    assert {r.key for r in Ledger(str(tmp_path)).records()} == {r.key for r in RECORDS[:2]}


def test_each_written_record_restores_all_patience(tmp_path):
    outage = Outage(tmp_path, refusals=0)
    refused: set[str] = set()

    def record(entry: Record, text: str | None) -> None:
        if entry.key not in refused and outage.now < 30 * len(outage.kept) + 25:
            raise LedgerError("the store refuses (slow down)")
        refused.add(entry.key)
        outage.record(entry, text)

    writer = RecordWriter(record, print, 40.0, clock=lambda: outage.now, pause=outage.pause)
    for entry in RECORDS:
        writer.put(entry)
    writer.close()
    assert writer.error is None and len(outage.kept) == len(RECORDS)
    assert sum(outage.waited) > 40 * 3


def test_trouble_says_how_many_records_wait_and_why(tmp_path):
    refused, go_on = threading.Event(), threading.Event()
    outage = Outage(tmp_path, refusals=1)

    def pause(seconds: float) -> None:
        refused.set()
        assert go_on.wait(60)

    writer = RecordWriter(outage.record, lambda record: None, pause=pause)
    for record in RECORDS[:5]:
        writer.put(record)
    assert refused.wait(60)
    assert writer.trouble == (5, "the store refuses (No space left on device)")
    assert writer.written() == []
    go_on.set()
    writer.close()
    assert writer.trouble == (0, "") and writer.written() == RECORDS[:5]


def test_a_record_that_will_be_replaced_is_written_and_not_reported(tmp_path):
    outage = Outage(tmp_path, refusals=0)
    writer = outage.writer()
    writer.put(RECORDS[0], quietly=True)
    writer.put(RECORDS[1])
    writer.close()
    assert writer.written() == [RECORDS[1]] and len(outage.kept) == 2


def test_a_bug_is_not_waited_out(tmp_path):
    def broken(record: Record, text: str | None) -> None:
        raise AssertionError("a bug")

    writer = RecordWriter(broken, print, pause=pytest.fail)
    writer.put(RECORDS[0])
    writer.close()
    assert isinstance(writer.error, AssertionError)
