"""Promise: fold-runs in the ledger are never handed out, missing ones always are, and TPE learns only from
complete configurations. A search that breaks this fails no run; it wastes time.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from raymrc.ledger.record import Record
from raymrc.scheduling.search import StudySearch, TpeSearch, WorkItem
from raymrc.study.space import Distribution, Grid
from tests.sweep.making import fold_runs, make_plan, make_record

RATES = Distribution("log_uniform", (1e-4, 1e-1))


def worth(record: Record) -> Record:
    """Best at a learning rate of 0.01, and folds differ."""
    run = record.fold_run
    distance = abs(math.log10(run.configuration.learning_rate) + 2)
    return replace(record, validation_f1=max(0.0, 0.9 - 0.2 * distance - 0.01 * run.fold))


def drain(search: StudySearch, records: list[Record], until: int | None = None) -> list[WorkItem]:
    """Train one work item after another, at most until there are this many records."""
    works = []
    while (work := search.next()) is not None:
        works.append(work)
        for run in work.fold_runs:
            if until is not None and len(records) >= until:
                return works
            started_at = f"2026-01-01T00:{len(records) // 60:02d}:{len(records) % 60:02d}+00:00"
            records.append(worth(make_record(run, started_at=started_at)))
            search.learn(records[-1])
        search.settle(work)
    return works


def test_cells_are_handed_out_in_turn():
    plan = make_plan([0.1, 0.2, 0.3], ["fine_tune", "soft_prompt", "frozen_soft_prompt"])
    works = drain(StudySearch(plan), [])
    assert [work.cell for work in works] == [0, 1, 2] * 3
    assert [work.configuration.learning_rate for work in works[::3]] == [0.1, 0.2, 0.3]


def test_a_cell_with_fewer_configurations_advances_by_shares():
    plan = make_plan([0.1, 0.2, 0.3, 0.4], ["fine_tune", "soft_prompt"])
    short = plan.cells[1]
    assert short.configurations is not None
    short = replace(short, configurations=short.configurations[:2], num_configurations=2)
    works = drain(StudySearch(replace(plan, cells=(plan.cells[0], short))), [])
    assert [work.cell for work in works] == [0, 1, 0, 0, 1, 0]


def test_all_missing_fold_runs_are_handed_out_and_no_finished_one():
    plan = make_plan()
    runs = fold_runs(plan)
    done = [make_record(run) for run in runs[:4]]
    works = drain(StudySearch(plan, done), [])
    handed = [run.key for work in works for run in work.fold_runs]
    assert sorted(handed) == sorted(run.key for run in runs[4:])
    assert runs[0].configuration not in [work.configuration for work in works], "all folds done"
    assert drain(StudySearch(plan, [make_record(run) for run in runs]), []) == []


def test_a_failed_fold_run_is_handed_out_again():
    plan = make_plan()
    records = [make_record(run) for run in fold_runs(plan)]
    records[2] = replace(records[2], status="failed")
    works = drain(StudySearch(plan, records), [])
    assert [run.key for work in works for run in work.fold_runs] == [records[2].key]


def test_fold_runs_that_another_driver_finished_are_not_handed_out():
    plan = make_plan([0.1], ["fine_tune"])
    finished = {run.key: make_record(run) for run in fold_runs(plan)[:2]}
    search = StudySearch(plan, [], finished.get)
    work = search.next()
    assert work is not None
    assert [run.fold for run in work.fold_runs] == [2]
    assert search.done.keys() == finished.keys()


def test_records_of_other_notes_are_ignored():
    plan = make_plan()
    others = [make_record(replace(run, corpus_fingerprint="older")) for run in fold_runs(plan)]
    assert len(drain(StudySearch(plan, others), [])) == plan.num_configurations
    tpe = make_plan(RATES, tpe=4)
    found: list[Record] = []
    drain(StudySearch(tpe), found)
    others = [make_record(replace(record.fold_run, corpus_fingerprint="older")) for record in found]
    search = StudySearch(tpe, others)
    assert all(not p.tries for p in search._proposers if isinstance(p, TpeSearch))


@pytest.mark.parametrize("cut", [0, 1, 7, 20, 44])
def test_a_killed_tpe_search_continues_with_the_same_proposals(cut):
    plan = make_plan(RATES, ["fine_tune"], tpe=15)
    undisturbed: list[Record] = []
    drain(StudySearch(plan), undisturbed)
    resumed: list[Record] = []
    drain(StudySearch(plan), resumed, until=cut)
    assert len(resumed) == cut
    drain(StudySearch(plan, resumed), resumed)
    assert {r.key for r in resumed} == {r.key for r in undisturbed}
    assert len(resumed) == len(undisturbed) == 15 * 3


def test_tpe_searches_near_good_results():
    plan = make_plan(RATES, ["fine_tune"], tpe=40)
    works = drain(StudySearch(plan), [])
    late = [math.log10(work.configuration.learning_rate) for work in works[20:]]
    near = sum(abs(rate + 2) < 0.5 for rate in late)
    assert near > 12, "a third of the range, by chance 7 of 20"


def test_tpe_learns_the_mean_over_all_folds_and_nothing_from_half_a_configuration():
    plan = make_plan(RATES, ["fine_tune"], tpe=3)
    search = StudySearch(plan)
    (tpe,) = search._proposers
    assert isinstance(tpe, TpeSearch)
    first, second = search.next(), search.next()
    assert first is not None and second is not None
    records = [worth(make_record(run)) for run in first.fold_runs]
    for record in records[:2]:
        search.learn(record)
    assert [t.value for t in tpe.tries.values()] == [None, None], "two folds of three"
    search.learn(records[2])
    search.settle(first)
    mean = sum(record.validation_f1 for record in records) / 3
    assert tpe.tries[first.configuration.id].value == pytest.approx(mean)
    for run in second.fold_runs[:2]:
        search.learn(worth(make_record(run)))
    search.learn(replace(make_record(second.fold_runs[2]), status="failed"))
    search.settle(second)
    failed = tpe.tries[second.configuration.id]
    assert failed.failed and failed.value is None


def test_tpe_first_proposes_incomplete_configurations():
    plan = make_plan(RATES, ["fine_tune"], tpe=4)
    begun: list[Record] = []
    drain(StudySearch(plan), begun, until=4)
    work = StudySearch(plan, begun).next()
    assert work is not None
    assert work.configuration == begun[3].fold_run.configuration
    assert [run.fold for run in work.fold_runs] == [1, 2]


def test_tpe_never_repeats_a_proposal_and_ends_when_the_space_is_used_up():
    plan = make_plan(Grid((0.1, 0.2, 0.3, 0.4, 0.5)), ["fine_tune"], tpe=9)
    works = drain(StudySearch(plan), [])
    assert sorted(w.configuration.learning_rate for w in works) == [0.1, 0.2, 0.3, 0.4, 0.5]


def test_tpe_ignores_results_outside_a_narrowed_range():
    plan = make_plan(RATES, ["fine_tune"], tpe=6)
    records: list[Record] = []
    drain(StudySearch(plan), records)
    narrow = Distribution("log_uniform", (1e-3, 1e-2))
    search = StudySearch(make_plan(narrow, ["fine_tune"], tpe=6), records)
    (tpe,) = search._proposers
    assert isinstance(tpe, TpeSearch)
    rates = [record.fold_run.configuration.learning_rate for record in records[::3]]
    assert len(tpe.tries) == sum(1e-3 <= rate <= 1e-2 for rate in rates)
    assert 0 < len(tpe.tries) < 6


def test_a_longer_tpe_search_begins_with_the_proposals_of_a_shorter_one():
    few = drain(StudySearch(make_plan(RATES, ["fine_tune"], tpe=5)), [])
    more = drain(StudySearch(make_plan(RATES, ["fine_tune"], tpe=8)), [])
    assert more[:5] == few
    other = drain(StudySearch(make_plan(RATES, ["fine_tune"], tpe=5, seed=14)), [])
    assert other[0] != few[0]


def test_work_given_back_is_handed_out_first():
    search = StudySearch(make_plan())
    work = search.next()
    assert work is not None
    search.give_back(work)
    assert search.next() == work


def test_no_work_of_a_closed_cell_is_handed_out():
    plan = make_plan([0.1, 0.2, 0.3], ["fine_tune", "soft_prompt"])
    search = StudySearch(plan)
    first, second = search.next(), search.next()
    assert first is not None and second is not None
    search.give_back(first)
    search.give_back(second)
    search.close_cell(first.cell)
    left = drain(search, [])
    assert {work.cell for work in left} == {second.cell} and len(left) == 3


@pytest.mark.parametrize("jump", ["back", "stuck", "years ahead"])
def test_a_clock_that_jumps_changes_no_work(jump):
    """`started_at` comes from the clock of the machine that trained."""
    begun = {"back": lambda i: f"2026-01-01T00:00:{59 - i:02d}+00:00",
             "stuck": lambda i: "2026-01-01T00:00:00+00:00",
             "years ahead": lambda i: f"20{99 if i % 2 else 26}-01-01T00:00:00+00:00"}[jump]  # fmt: skip
    plan = make_plan()
    runs = fold_runs(plan)
    seen = [make_record(run, started_at=begun(i)) for i, run in enumerate(runs[:7])]
    handed = [run.key for work in drain(StudySearch(plan, seen), []) for run in work.fold_runs]
    assert sorted(handed) == sorted(run.key for run in runs[7:])
    tpe = make_plan(RATES, ["fine_tune"], tpe=8)
    found: list[Record] = []
    drain(StudySearch(tpe), found, until=14)
    found = [replace(record, started_at=begun(i)) for i, record in enumerate(found)]
    drain(StudySearch(tpe, found), found)
    assert len(found) == len({record.key for record in found}) == 8 * 3
