"""Promise: the outcome of a run adds up, whatever fails in which order. Tests play the trials; Ray is not
started."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raymrc.analysis.summary import summarise
from raymrc.configuration import FoldRun
from raymrc.errors import LedgerError
from raymrc.ledger.ledger import Ledger
from raymrc.ledger.record import Epoch, Record
from raymrc.planning.plan import Plan
from raymrc.racing.racing import Racing
from raymrc.scheduling.failures import failed_record
from raymrc.scheduling.state import StudyRun
from raymrc.scheduling.terms import Listeners, RunTerms
from tests.scheduling.test_race import grids
from tests.sweep.making import fold_runs, make_plan, make_record


class Played:
    """A run in which a test plays the trials."""

    def __init__(self, folder: Path, plan: Plan, failures: dict[str, Any]) -> None:
        self.ledger = Ledger(str(folder))
        self.received: list[Record] = []
        terms, listeners = RunTerms(**failures), Listeners(self.received.append)
        self.study = StudyRun(plan, self.ledger, terms, listeners)
        self.trials = 0

    def take(self) -> tuple[str, tuple[FoldRun, ...]] | None:
        self.trials += 1
        work = self.study.take(str(self.trials))
        return None if work is None else (str(self.trials), work.fold_runs)

    def report(self, trial: str, record: Record) -> None:
        self.study.receive(trial, {"record": record.to_json(), "fold": record.fold_run.fold})

    def close(self) -> dict[str, Record]:
        with self.study:
            pass
        return {record.key: record for record in self.ledger.records()}


@pytest.fixture
def play(tmp_path) -> Iterator[Any]:
    played: list[Played] = []

    def begin(plan: Plan, **terms: Any) -> Played:
        played.append(Played(tmp_path, plan, terms))
        return played[-1]

    yield begin
    for run in played:
        run.close()


def test_retries_of_a_closed_cell_are_cancelled_and_count_as_failed(play):
    plan = make_plan([0.1, 0.2, 0.3, 0.4], ["fine_tune"], folds=2)
    run = play(plan, close_cell_after=2)
    trial, (first, second) = run.take()
    run.report(trial, failed_record(first, "passing", 2.0, may_pass=True))
    run.report(trial, make_record(second))
    other, (third, _) = run.take()
    run.report(other, failed_record(third, "final"))
    again, (fifth, _) = run.take()
    run.report(again, failed_record(fifth, "final"))
    assert run.study.take_closed_cells() == [plan.cells[0].cell]
    for ended in (trial, other, again):
        run.study.end(ended)
    assert run.take() is None, "nothing more of it, not even what failed once"
    records = run.close()
    outcome = run.study.outcome()
    assert (outcome.done, outcome.failed) == (1, 3)
    assert outcome.closed == ((plan.cells[0].cell.name, 4),)
    assert records[first.key].reason == "passing"
    assert sorted(r.key for r in run.received) == sorted(
        r.key for r in (first, second, third, fifth)
    )


def test_a_finished_fold_run_keeps_a_cell_open(play):
    run = play(make_plan([0.1, 0.2, 0.3], ["fine_tune"], folds=2), close_cell_after=2)
    for _ in range(3):
        trial, (bad, good) = run.take()
        run.report(trial, failed_record(bad, "final"))
        run.report(trial, make_record(good))
        run.study.end(trial)
    assert run.study.take_closed_cells() == [] and run.study.outcome().closed == ()


def test_a_configuration_that_fails_on_every_fold_is_one_failure(play):
    run = play(make_plan([0.1, 0.2], ["fine_tune"], folds=5), close_cell_after=2)
    trial, folds = run.take()
    for bad in folds:
        run.report(trial, failed_record(bad, "final"))
    assert run.study.take_closed_cells() == []


def test_the_cost_of_every_try_is_kept_even_if_the_driver_is_killed_before_the_next(play):
    plan = make_plan([0.1], ["fine_tune"], folds=2)
    run = play(plan)
    trial, (first, _) = run.take()
    run.report(trial, failed_record(first, "passing", 2.0, may_pass=True))
    assert run.close()[first.key].device_seconds == 2.0, "as if killed here"

    run = play(plan)
    trial, (first, second) = run.take()
    run.report(trial, failed_record(first, "passing", 3.0, may_pass=True))
    run.report(trial, make_record(second))
    run.study.end(trial)
    trial, (again,) = run.take()
    assert again == first
    run.report(trial, make_record(first))
    run.study.end(trial)
    assert run.take() is None
    record = run.close()[first.key]
    assert record == replace(make_record(first), failed_device_seconds=5.0)
    assert run.study.outcome().failed == 0


def test_a_ledger_that_cannot_be_read_is_not_asked_again_at_once_and_stops_no_work(
    play, monkeypatch
):
    run = play(make_plan([0.1, 0.2], ["fine_tune"], folds=2))
    asked = []

    def refuse(key: str) -> bool:
        asked.append(key)
        raise LedgerError("the store refuses (no route)")

    monkeypatch.setattr(run.ledger, "has", refuse)
    first, second = run.take(), run.take()
    assert first is not None and second is not None and run.study.error is None
    assert len(asked) <= 1, "each answer may take minutes not to come"


@pytest.mark.parametrize("seed", [6, 9])
def test_work_of_races_never_exceeds_their_lanes(play, seed):
    """Work that waits was decided before its rivals reported; it may train a configuration beaten by then."""
    (grid,) = grids(1, seed)
    study, draw = play(grid.plan).study, random.Random(3)
    study.race_lanes, study.lanes_per_fold_run = 40, {grid.plan.cells[0].cell: 2}
    under_way: dict[str, tuple[str, FoldRun, int]] = {}
    trials = most_of_one = 0
    while True:
        while (work := study.take(str(trials))) is not None:
            for run in work.fold_runs:
                assert run.key not in under_way
                under_way[run.key] = (str(trials), run, work.until[run.key])
            trials += 1
            most_of_one = max(most_of_one, len(work.fold_runs))
            assert len(under_way) <= 20
        if not under_way:
            break
        trial, run, until = under_way.pop(draw.choice(sorted(under_way)))
        study.receive(
            trial,
            {
                "record": grid.record(run, until).to_json(),
                "fold": run.fold,
                "is_idle": all(owner != trial for owner, _, _ in under_way.values()),
            },
        )
    assert study.outcome().spared > 0 and study.outcome().failed == 0
    assert most_of_one > 1, "trials and fold-runs are not the same"


@pytest.mark.parametrize("raced", [True, False])
def test_a_stop_that_a_killed_driver_recorded_for_one_fold_is_recorded_for_all(
    play, raced, tmp_path
):
    plan = make_plan([0.1, 0.2], ["fine_tune"], folds=2)
    best, beaten = fold_runs(plan)[:2], fold_runs(plan)[2:]
    ledger = Ledger(str(tmp_path))
    for run in best:
        ledger.record(make_record(run))
    paused = [replace(make_record(run), status="paused") for run in beaten]
    ledger.record(replace(paused[0], status="stopped", reason="9 points below"))
    ledger.record(paused[1])
    run = play(replace(plan, racing=Racing()) if raced else plan)
    assert run.study.has_work is not raced, "without racing the grid is completed"
    other = run.close()[beaten[1].key]
    assert (other.status, other.reason) == (
        ("stopped", "9 points below") if raced else ("paused", "")
    )


def test_a_configuration_stopped_between_two_folds_has_a_record_of_its_stop(play):
    """One fold is done and none is paused: without a record of the stop the others would stay pending."""
    plan = make_plan([0.1, 0.2], ["fine_tune"], folds=3)
    plan = replace(plan, racing=Racing(rungs=(1.0,), error_rate=0.2))
    worth = {0.1: 0.9, 0.2: 0.1}

    def done(run: FoldRun) -> Record:
        value = worth[run.configuration.learning_rate]
        epochs = tuple(Epoch(e, 1.0, value, 1.0) for e in range(1, run.configuration.epochs + 1))
        return replace(make_record(run), validation_f1=value, epochs=epochs)

    run = play(plan)
    while (taken := run.take()) is not None:
        for fold_run in taken[1]:
            run.report(taken[0], done(fold_run))
        run.study.end(taken[0])
    records = run.close()
    stopped = [r for r in records.values() if r.status == "stopped"]
    assert [r.epochs for r in stopped] == [()] and stopped[0].reason
    begun = [r for r in records.values() if r.fold_run.configuration.learning_rate == 0.2]
    assert Counter(r.status for r in begun) == {"done": 1, "stopped": 1}
    summary = summarise(records.values(), 3, [plan.cells[0].cell])[0]
    assert (summary.num_done, summary.num_spared) == (4, 2)
    again = play(plan)
    assert not again.study.has_work and again.study.outcome().spared == 2
    whole = play(replace(plan, racing=None))
    assert whole.take() is not None, "without racing the grid is completed"
