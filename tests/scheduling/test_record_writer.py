"""Promise: a finished fold-run is kept, whatever the storage does for ten minutes.

Dropped in an outage it would be trained again, days later, and nobody would ask why.
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
    Trouble,
)
from tests.sweep.making import fold_runs, make_plan, make_record

RECORDS = [make_record(run) for run in fold_runs(make_plan())]


class Outage:
    """A ledger on disk that refuses at its first so many tries, and the time that passes meanwhile."""

    def __init__(self, folder: Path, refusals: int, of: int = 0) -> None:
        self.ledger = Ledger(str(folder))
        self.left = refusals
        self.of = of
        self.now = 0.0
        self.waited: list[float] = []
        self.kept: list[str] = []

    def record(self, record: Record, text: str | None = None) -> None:
        if record.key == RECORDS[self.of].key and self.left:
            self.left -= 1
            raise LedgerError("the store refuses (No space left on device)")
        self.ledger.record(record, text)
        self.kept.append(record.key)

    def pause(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.now += seconds

    def keeper(self, **terms: float) -> RecordWriter:
        return RecordWriter(
            self.record, lambda record: None, clock=lambda: self.now, pause=self.pause, **terms
        )


def test_records_wait_for_the_storage_in_the_order_in_which_they_came(tmp_path):
    outage = Outage(tmp_path, refusals=9, of=2)
    keeper = outage.keeper(patience_seconds=600)
    for record in RECORDS:
        keeper.put(record, record.to_json())
    keeper.close()
    assert keeper.error is None and keeper.trouble is None
    assert outage.kept == [record.key for record in RECORDS]
    assert keeper.written() == RECORDS and keeper.written() == []
    assert {r.key for r in Ledger(str(tmp_path)).records()} == set(outage.kept)
    assert outage.waited == [1, 2, 4, 8, 16, 30, 30, 30, 30]
    assert outage.waited[0] == FIRST_WAIT_SECONDS and outage.waited[-1] == LONGEST_WAIT_SECONDS


def test_patience_ends_with_a_sentence_and_what_was_kept_stays(tmp_path):
    outage = Outage(tmp_path, refusals=10**6, of=2)
    keeper = outage.keeper(patience_seconds=600)
    for record in RECORDS:
        keeper.put(record)
    keeper.close()
    assert sum(outage.waited) == 600
    assert isinstance(keeper.error, LedgerError)
    assert str(keeper.error) == (
        "the store refuses (No space left on device); finished fold-runs could not be kept for "
        "10 minutes and will be trained again; mend the storage and run the study again"
    )
    assert keeper.written() == RECORDS[:2]
    assert {r.key for r in Ledger(str(tmp_path)).records()} == {r.key for r in RECORDS[:2]}


def test_each_record_that_is_kept_gives_back_all_patience(tmp_path):
    outage = Outage(tmp_path, refusals=0)
    refused: set[str] = set()

    def record(one: Record, text: str | None) -> None:
        if one.key not in refused and outage.now < 30 * len(outage.kept) + 25:
            raise LedgerError("the store refuses (slow down)")
        refused.add(one.key)
        outage.record(one, text)

    keeper = RecordWriter(record, print, 40.0, clock=lambda: outage.now, pause=outage.pause)
    for one in RECORDS:
        keeper.put(one)
    keeper.close()
    assert keeper.error is None and len(outage.kept) == len(RECORDS)
    assert sum(outage.waited) > 40 * 3


def test_meanwhile_it_is_said_how_many_wait_and_why(tmp_path):
    refused, go_on = threading.Event(), threading.Event()
    outage = Outage(tmp_path, refusals=1)

    def pause(seconds: float) -> None:
        refused.set()
        assert go_on.wait(60)

    keeper = RecordWriter(outage.record, lambda record: None, pause=pause)
    for record in RECORDS[:5]:
        keeper.put(record)
    assert refused.wait(60)
    assert keeper.trouble == Trouble(5, "the store refuses (No space left on device)")
    assert keeper.written() == []
    go_on.set()
    keeper.close()
    assert keeper.trouble is None and keeper.written() == RECORDS[:5]


def test_what_another_one_will_replace_is_kept_and_not_told(tmp_path):
    outage = Outage(tmp_path, refusals=0)
    keeper = outage.keeper()
    keeper.put(RECORDS[0], quietly=True)
    keeper.put(RECORDS[1])
    keeper.close()
    assert keeper.written() == [RECORDS[1]] and len(outage.kept) == 2


def test_an_error_of_ours_is_not_waited_out(tmp_path):
    def broken(record: Record, text: str | None) -> None:
        raise AssertionError("a bug")

    keeper = RecordWriter(broken, print, pause=pytest.fail)
    keeper.put(RECORDS[0])
    keeper.close()
    assert isinstance(keeper.error, AssertionError)
