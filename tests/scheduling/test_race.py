"""Promise: a race trains what its decisions say, pauses where it should, and ends with the grid's winner,
whatever is cut off on the way.

A race that trained everything, or stopped everybody, would end all the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from raymrc.configuration import Configuration, FoldRun
from raymrc.ledger.record import Epoch, Record
from raymrc.planning.plan import Plan
from raymrc.racing.racing import Racing
from raymrc.racing.simulate import WORLDS, Curves, generate
from raymrc.scheduling.search import StudySearch, TpeSearch, WorkItem
from raymrc.study.space import Distribution
from tests.sweep.making import make_plan, make_record

EPOCHS = 10
SMALL_GRID = replace(WORLDS["ordinary"], configurations=(12, 20), epochs=(EPOCHS, EPOCHS))


class Grid:
    """A study of one cell whose every score is known."""

    def __init__(self, table: Curves, racing: Racing | None) -> None:
        rates = [0.001 * (1 + c) for c in range(len(table.configurations))]
        plan = make_plan(rates, ["frozen_soft_prompt"], folds=table.num_folds, epochs=EPOCHS)
        self.plan = replace(plan, racing=racing)
        self.table = table
        self.courses = dict(zip(rates, table.courses, strict=True))
        configurations = plan.cells[0].configurations or ()
        self.worths = dict(zip(configurations, table.worths, strict=True))

    @property
    def winner(self) -> Configuration:
        return max(self.worths, key=lambda c: self.worths[c])

    def record(self, run: FoldRun, until: int) -> Record:
        course = self.courses[run.configuration.learning_rate][run.fold][:until]
        done = until == run.configuration.epochs
        return replace(
            make_record(run),
            status="done" if done else "paused",
            validation_f1=max(course),
            epochs=tuple(Epoch(e, 1.0, f1, 1.0) for e, f1 in enumerate(course, 1)),
        )


class Drive:
    """A driver without Ray: so many trials at once, an epoch a tick; what ends is kept like in a ledger."""

    def __init__(self, grid: Grid, kept: dict[str, Record] | None = None, slots: int = 4) -> None:
        self.grid = grid
        self.kept = kept if kept is not None else {}
        self.search = StudySearch(grid.plan, list(self.kept.values()))
        self.slots = slots
        self.running: dict[str, tuple[WorkItem, FoldRun, int]] = {}
        self.fold_epochs = 0
        self.legs: list[tuple[str, int]] = []

    def at(self, run: FoldRun) -> int:
        record = self.kept.get(run.key)
        return len(record.epochs) if record else 0

    def go(self, ticks: int | None = None) -> None:
        while ticks is None or ticks > 0:
            if not self.tick():
                return
            ticks = None if ticks is None else ticks - 1

    def tick(self) -> bool:
        """Whether there is more to do."""
        while len(self.running) < self.slots:
            work = self.search.next(self.slots - len(self.running))
            self.keep_stops()
            if work is None:
                break
            for run in work.fold_runs:
                until = work.until.get(run.key, run.configuration.epochs)
                assert run.key not in self.running, "handed out twice"
                assert until > self.at(run), "trained already"
                self.legs.append((run.key, until))
                self.running[run.key] = (work, run, self.at(run))
        is_busy = bool(self.running)
        for key, (work, run, epoch) in list(self.running.items()):
            self.fold_epochs += 1
            until = work.until.get(key, run.configuration.epochs)
            if epoch + 1 < until:
                self.running[key] = (work, run, epoch + 1)
                continue
            del self.running[key]
            self.kept[key] = self.grid.record(run, until)
            self.search.learn(self.kept[key])
            assert self.search.is_settled(work, run)
            if not any(owner is work for owner, _, _ in self.running.values()):
                self.search.settle(work)
        return is_busy

    def keep_stops(self) -> None:
        for stop in self.search.take_stops():
            for key in self.search.fold_runs(stop.configuration):
                if key in self.kept and self.kept[key].status == "paused":
                    self.kept[key] = replace(self.kept[key], status="stopped", reason=stop.reason)

    @property
    def complete(self) -> list[Configuration]:
        return [c for c in self.grid.worths if self.search.value(c) is not None]

    @property
    def winner(self) -> Configuration:
        return max(self.complete, key=lambda c: self.grid.worths[c])


def grids(count: int, seed: int, racing: Racing | None = None) -> Iterator[Grid]:
    for table in generate(SMALL_GRID, count, seed):
        yield Grid(table, racing or Racing())


def test_a_race_finds_the_winner_of_the_grid_and_trains_a_part_of_it():
    same, trained, whole = 0, 0, 0
    for grid in grids(12, 5):
        drive = Drive(grid)
        drive.go()
        same += drive.winner == grid.winner
        trained += drive.fold_epochs
        whole += grid.table.fold_epochs
        statuses = {record.status for record in drive.kept.values()}
        assert statuses <= {"done", "stopped"}, "at the end nothing is left waiting"
        left_out = grid.plan.num_fold_runs - sum(r.status == "done" for r in drive.kept.values())
        assert drive.search.num_spared(0) == left_out
    assert same >= 11
    assert trained < whole / 2


def test_what_is_told_to_be_left_is_never_less_than_what_is_trained():
    (grid,) = grids(1, 7)
    drive = Drive(grid)
    reports = []
    while drive.tick():
        reports.append((drive.fold_epochs, *drive.search.epochs))
    assert all(drive.fold_epochs - before <= left for before, _, left in reports)
    assert reports[0][2] == grid.table.fold_epochs - reports[0][1]
    assert drive.search.epochs == (drive.fold_epochs, 0)


def test_without_racing_the_full_grid_is_trained_configuration_by_configuration():
    grid = next(grids(1, 5))
    grid.plan = replace(grid.plan, racing=None)
    drive = Drive(grid, slots=1)
    drive.go()
    assert drive.fold_epochs == grid.table.fold_epochs
    assert {until for _, until in drive.legs} == {EPOCHS}
    assert not drive.search.races and drive.search.num_spared(0) == 0


def test_a_cell_with_one_configuration_is_no_race():
    plan = make_plan([0.1], ["fine_tune"], epochs=EPOCHS)
    search = StudySearch(replace(plan, racing=Racing()))
    work = search.next()
    assert work is not None and len(work.fold_runs) == plan.folds and not work.until
    assert search.next() is None and not search.races


@pytest.mark.parametrize("ticks", [1, 7, 20, 45])
def test_a_race_cut_off_anywhere_goes_on_with_what_was_kept(ticks):
    for grid in grids(4, 17):
        first = Drive(grid)
        first.go(ticks)
        before = dict(first.kept)
        again = Drive(grid, first.kept)
        again.go()
        assert again.winner == grid.winner
        for key, record in before.items():
            if record.status == "stopped":
                assert all(leg != key for leg, _ in again.legs), "who was stopped stays so"
            if record.status == "paused":
                resumed = [until for leg, until in again.legs if leg == key]
                assert all(until > len(record.epochs) for until in resumed)
        alone = Drive(grid)
        alone.go()
        lost = first.slots * EPOCHS  # what was running, at most
        assert first.fold_epochs + again.fold_epochs <= 1.5 * alone.fold_epochs + lost


def test_a_stop_has_a_reason_with_the_leader_and_a_probability_and_is_of_nobody_unseen():
    for grid in grids(4, 23):
        drive = Drive(grid)
        drive.go()
        stopped = [record for record in drive.kept.values() if record.status == "stopped"]
        assert stopped
        ids = {c.id for c in drive.complete}
        for record in stopped:
            assert any(name in record.reason for name in ids), record.reason
            assert "probability" in record.reason
            assert record.epochs


def test_one_that_fails_leaves_the_race_and_the_others_run_on():
    grid = next(grids(1, 31))
    drive = Drive(grid)
    bad = grid.winner
    search = drive.search
    legs: list[str] = []
    while drive.tick():
        for key, (work, run, _) in list(drive.running.items()):
            if run.configuration == bad:
                del drive.running[key]
                record = replace(make_record(run), status="failed", epochs=())
                drive.kept[key] = record
                search.learn(record)
                search.settle(work)
                legs = legs or [key for key, _ in drive.legs]
    assert legs and len(drive.legs) > len(legs)
    assert search.value(bad) is None
    assert drive.complete, "the others have a winner"
    failed = sum(record.status == "failed" for record in drive.kept.values())
    done = sum(record.status == "done" for record in drive.kept.values())
    assert failed >= 1
    assert drive.search.num_spared(0) == grid.plan.num_fold_runs - done - failed, "each counts once"
    later = [key for key, _ in drive.legs[len(legs) :]]
    assert not set(later) & search.fold_runs(bad).keys(), "nothing more of it is begun"


def test_only_what_is_handed_out_is_looked_for_in_the_ledger():
    plan = make_plan([0.1, 0.2, 0.3], ["fine_tune"], folds=5, epochs=EPOCHS)
    asked: list[str] = []
    search = StudySearch(replace(plan, racing=Racing()), look_up=asked.append)
    work = search.next(1)
    assert work is not None and asked == [run.key for run in work.fold_runs]


def test_cells_race_each_by_itself_and_in_turn():
    plan = make_plan([0.1, 0.2, 0.3], ["fine_tune", "soft_prompt"], epochs=EPOCHS)
    search = StudySearch(replace(plan, racing=Racing()))
    works = [search.next(6) for _ in range(6)]
    assert [work.cell for work in works if work] == [0, 1] * 3
    assert search.next(1) is None, "everybody's first rung is awaited"


# --- TPE ------------------------------------------------------------------------------------------


def tpe_plan(num: int) -> Plan:
    rates = Distribution("log_uniform", (1e-4, 1e-1))
    plan = make_plan(rates, ["frozen_soft_prompt"], folds=3, tpe=num, epochs=EPOCHS)
    return replace(plan, racing=Racing())


class TpeDrive(Drive):
    """Scores by the rate: best at 0.01."""

    def __init__(self, plan: Plan, kept: dict[str, Record] | None = None) -> None:
        self.plan = plan
        self.kept = kept if kept is not None else {}
        self.search = StudySearch(plan, list(self.kept.values()))
        self.slots = 3
        self.running = {}
        self.fold_epochs = 0
        self.legs = []
        self.grid = self  # type: ignore[assignment]

    def record(self, run: FoldRun, until: int) -> Record:
        import math

        draw = random.Random(run.key)
        top = 0.8 - 0.2 * abs(math.log10(run.configuration.learning_rate) + 2) - 0.02 * run.fold
        course = [
            max(0.0, top * (1 - 2.0 ** (-e)) + draw.gauss(0, 0.003)) for e in range(1, EPOCHS + 1)
        ][:until]
        return replace(
            make_record(run),
            status="done" if until == EPOCHS else "paused",
            validation_f1=max(course),
            epochs=tuple(Epoch(e, 1.0, f1, 1.0) for e, f1 in enumerate(course, 1)),
        )


def tries(search: StudySearch) -> dict[str, str]:
    (tpe,) = search._proposers
    assert isinstance(tpe, TpeSearch)
    return {name: known.state for name, known in tpe.tries.items()}


def test_tpe_is_told_who_was_stopped_and_where():
    plan = tpe_plan(24)
    drive = TpeDrive(plan)
    drive.go()
    states = list(tries(drive.search).values())
    assert len(states) == 24, "all are proposed"
    assert set(states) == {"COMPLETE", "PRUNED"}
    assert 1 <= states.count("COMPLETE") < 12
    (tpe,) = drive.search._proposers
    assert isinstance(tpe, TpeSearch)
    for name, known in tpe.tries.items():
        if known.state == "PRUNED":
            epochs, reached = known.reached or (0, 0.0)
            records = [r for r in drive.kept.values() if r.fold_run.configuration.id == name]
            assert epochs == sum(len(record.epochs) for record in records)
            mean = sum(record.validation_f1 for record in records) / len(records)
            assert reached == pytest.approx(mean)
    assert drive.fold_epochs < 24 * 3 * EPOCHS / 2


@pytest.mark.parametrize("ticks", [3, 12, 30])
def test_tpe_in_a_race_is_resumed_with_everything_that_was_begun(ticks):
    plan = tpe_plan(16)
    first = TpeDrive(plan)
    first.go(ticks)
    begun = {record.fold_run.configuration.id for record in first.kept.values()}
    again = TpeDrive(plan, first.kept)
    assert set(tries(again.search)) == begun
    again.go()
    states = tries(again.search)
    assert len(states) == 16 and set(states.values()) == {"COMPLETE", "PRUNED"}


def test_what_optuna_is_told_of_a_stopped_one_moves_its_next_proposal():
    """Of two searches with equal complete ones, the one that knows where others failed asks elsewhere."""
    plan = tpe_plan(40)
    drive = TpeDrive(plan)
    drive.go(60)
    (tpe,) = drive.search._proposers
    assert isinstance(tpe, TpeSearch)
    assert any(known.state == "PRUNED" for known in tpe.tries.values())
    proposed = tpe._ask()
    for known in tpe.tries.values():
        if known.state == "PRUNED":
            known.reached, known.failed = None, True
    assert tpe._ask() != proposed
