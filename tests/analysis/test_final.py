"""Held-out notes are scored once, by winners that were chosen without them, and choose nothing after.

It could break unnoticed: a test score that counts as a fold's makes the winner better than it is.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from raymrc.analysis.final import (
    final_gaps,
    final_scores,
    plan_final_test,
    write_predictions,
)
from raymrc.analysis.judging import over_notes
from raymrc.analysis.sentences import final_sentence
from raymrc.analysis.summary import summarise
from raymrc.corpora.brat import write_brat
from raymrc.corpora.note import Note, Relation, Span
from raymrc.errors import SpecError, StudyError
from raymrc.ledger.record import Found, NoteCounts, Record
from raymrc.planning.fold_runs import fold_run
from raymrc.quantities import points
from raymrc.report.results import final_table
from raymrc.scheduling.search import StudySearch
from raymrc.scoring.counts import Counts
from raymrc.scoring.n2c2_2018 import score_2018_folders
from raymrc.scoring.n2c2_2022 import score_2022_folders as score_event_folders
from raymrc.study.notes import read_study_corpus, read_test
from tests.study.making import STUDY, plan_of, problems_of, spec_of

WEIGHTS = {"minilm": "w"}
SHARE = "final_test={share: 0.3, seeds: [4, 5]}"
GOOD, BAD = Counts(9, 1, 1), Counts(1, 9, 9)


@pytest.fixture
def study(tmp_path):
    """Spec, plan, test notes and a finished cross-validation's records."""
    spec = spec_of(tmp_path, overrides=[SHARE, "corpus.synthetic.notes=12"])
    corpus = read_study_corpus(spec)
    plan = plan_of(spec, corpus, WEIGHTS)
    test = read_test(spec, corpus)
    records = [
        made(fold_run(configuration, fold, plan.fingerprints), 0.6 if first else 0.5, 7 + fold)
        for cell in plan.cells
        for first, configuration in zip((True, False), cell.configurations, strict=True)
        for fold in range(plan.folds)
    ]
    return spec, plan, test, records


def made(run, validation_f1=0.0, best_epoch=9, counts=GOOD, **fields) -> Record:
    notes = {"n": NoteCounts({"Drug": counts}, {"Drug": counts})}
    return Record(
        run.key, run, notes=notes, validation_f1=validation_f1, best_epoch=best_epoch, **fields
    )


def final_plan(study, records=None):
    spec, plan, test, done = study
    records = done if records is None else records
    summaries = summarise(records, spec.num_folds, [cell.cell for cell in plan.cells])
    return plan_final_test(spec, plan, summaries, records, test)


def scored(study, counts=GOOD) -> list[Record]:
    plan = final_plan(study)
    return [
        made(fold_run(configuration, 0, plan.fingerprints), counts=counts)
        for cell in plan.cells
        for configuration in cell.configurations
    ]


def test_each_winner_is_retrained_once_per_seed_for_its_best_epochs(study):
    _, plan, test, _ = study
    final = final_plan(study)
    assert plan.remarks == (
        "raymrc test will train 4 more fold-runs, one per cell and seed, on all notes",
    )
    assert final.remarks == ()
    assert final.folds == 1 and final.num_fold_runs == 2 * len(plan.cells)
    assert final.fingerprints.test == test.fingerprint
    for cell, chosen in zip(plan.cells, final.cells, strict=True):
        winner = cell.configurations[0]
        assert chosen.configurations == tuple(
            replace(winner, epochs=8, duration="8 epochs, at least 240 steps", seed=seed)
            for seed in (4, 5)
        )
    run = fold_run(final.cells[0].configurations[0], 0, final.fingerprints)
    assert run.is_test and run.test_fingerprint == test.fingerprint


def test_cross_validation_comes_first(study):
    *_, records = study
    with pytest.raises(StudyError, match="1 of 4 fold-runs are not done; rerun 'raymrc run'"):
        final_plan(study, records[1:])
    failed = [replace(r, status="failed", reason="x") for r in records[:4]]
    with pytest.raises(StudyError, match="no configuration has all folds done"):
        final_plan(study, [*failed, *records[4:]])


def test_spared_fold_runs_do_not_block_the_final_test(study):
    *_, records = study
    stopped = [replace(r, status="stopped", reason="x", notes={}) for r in records[:1]]
    assert final_plan(study, [*stopped, *records[2:]]).num_fold_runs > 0
    paused = [replace(r, status="paused", notes={}) for r in records[:1]]
    with pytest.raises(StudyError, match="2 of 4 fold-runs are not done"):
        final_plan(study, [*paused, *records[2:]])


def test_test_scores_choose_nothing(study):
    spec, plan, _, records = study
    scores = scored(study)
    cells = [cell.cell for cell in plan.cells]
    # As good as they may be, with a validation score that they do not have.
    loud = [replace(r, validation_f1=1.0) for r in scores]
    assert summarise([*records, *loud], spec.num_folds, cells) == summarise(
        records, spec.num_folds, cells
    )
    search = StudySearch(plan, [*records, *loud])
    configurations = [c for cell in plan.cells for c in cell.configurations]
    assert {search.value(c) for c in configurations} == {0.6, 0.5}
    assert search.next() is None


def test_a_second_choice_is_not_scored_on_held_out_notes(study):
    _, plan, _, records = study
    scores = scored(study)
    again = final_plan(study, [*records, *scores])
    assert again == final_plan(study)
    # Another configuration has become the winner since.
    other = {
        run.key
        for run in (
            fold_run(plan.cells[0].configurations[1], fold, plan.fingerprints) for fold in (0, 1)
        )
    }
    moved = [replace(r, validation_f1=0.9) if r.key in other else r for r in records]
    with pytest.raises(StudyError, match="were already scored with another configuration"):
        final_plan(study, [*moved, *scores])
    # So have other training notes, or folds.
    changed = [made(replace(r.fold_run, folds_fingerprint="others")) for r in scores]
    with pytest.raises(StudyError, match="were already scored"):
        final_plan(study, [*records, *changed])
    # Scores of other held-out notes stand in nobody's way.
    elsewhere = [made(replace(r.fold_run, test_fingerprint="others")) for r in scores]
    assert final_plan(study, [*moved, *elsewhere]).num_fold_runs == 2 * len(plan.cells)


def test_scores_are_means_over_seeds_and_of_the_latest_held_out_notes(study):
    _, plan, *_ = study
    cells = [cell.cell for cell in plan.cells]
    earlier = [
        made(replace(r.fold_run, test_fingerprint="before"), counts=BAD, started_at="2026-01-01")
        for r in scored(study)
    ]
    lost = {"unreachable": 3, "unreachable_reasons": {"duplicate": 3}}
    now = [replace(r, started_at="2026-01-02", **lost) for r in scored(study)]
    scores = final_scores([*now, *earlier], cells)
    assert [score.cell for score in scores] == cells
    assert all(score.seeds == (4, 5) and score.unreachable == 3 for score in scores)
    assert all(score.strict.mean == pytest.approx(0.9) for score in scores)
    assert scores[0].to_json()["epochs"] == 8 and scores[0].to_json()["events_f1"]["mean"] is None
    over_folds = summarise(study[3], 2, cells)
    table = final_table(scores, over_folds)
    assert [row[1] for row in table.cells] == ["90.00"] * len(cells)
    assert table.cells[0][5] == points(over_folds[0].winner.strict.mean)
    assert "events F1" not in [column.name for column in table.columns]
    assert "counts as missed: fine_tune 3 of" in table.caption and "duplicate 3" in table.caption
    assert final_scores(study[3], cells) == ()


def test_held_out_notes_are_in_no_fold_and_in_no_other_corpus(tmp_path):
    spec = spec_of(tmp_path, overrides=[SHARE, "corpus.synthetic.notes=12"])
    whole = read_study_corpus(spec_of(tmp_path, overrides=["corpus.synthetic.notes=12"]))
    corpus = read_study_corpus(spec)
    test = read_test(spec, corpus)
    ids = {note.id for note in whole.notes}
    assert {n.id for n in corpus.notes} | {n.id for n in test.notes} == ids
    assert not {n.id for n in corpus.notes} & {n.id for n in test.notes}
    assert 2 <= len(test.notes) <= 6
    same = "final_test={corpus: {synthetic: {scheme: n2c2-2018, notes: 3}}}"
    with pytest.raises(SpecError, match="3 notes of synthetic-n2c2-2018 are in the study's corpus"):
        spec = spec_of(tmp_path, overrides=[same])
        read_test(spec, read_study_corpus(spec))
    assert read_test(spec_of(tmp_path), whole) is None


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("final_test: {seeds: [1]}", "a final test needs a corpus or a share"),
        (
            "final_test: {share: 0.2, seeds: [1, 1]}",
            "give at least one number, and none of them twice",
        ),
        ("final_test: {share: 0.2}\nfew_shot: {notes: [2]}", "remove one of them"),
    ],
)
def test_an_invalid_final_test_is_reported_with_its_line(given, sentence, tmp_path):
    (problem,) = problems_of(tmp_path, f"{STUDY}{given}\n")
    assert sentence in problem and problem.startswith("study.yaml:12:")


def test_predictions_are_brat_that_the_scorers_read(tmp_path, study):
    _, _, test, _ = study
    note = Note("a/1", "smokes now, drinks never", group="g")
    spans = (
        Span("T1", "Tobacco", ((0, 6),)),
        Span("T2", "StatusTime", ((7, 10),), (("StatusTimeVal", "current"),)),
        Span("T3", "Alcohol", ((12, 18),)),
    )
    relations = (Relation("R1", "StatusTime", "T1", "T2"),)
    corpus = replace(test, notes=(replace(note, spans=spans, relations=relations),))
    run = replace(scored(study)[0].fold_run, test_fingerprint=corpus.fingerprint)
    record = made(run, predictions={"a/1": Found(spans, relations)})
    assert Record.from_json(record.to_json()) == record
    triggers = frozenset({"Tobacco", "Alcohol"})
    (folder,) = write_predictions(
        [record, made(scored(study)[1].fold_run)], corpus, tmp_path, triggers
    )
    assert folder == tmp_path / run.configuration.cell.name / f"seed-4-{run.key[:8]}"
    assert folder == tmp_path / run.place
    write_brat(corpus.notes, tmp_path / "gold", triggers)
    assert score_event_folders(tmp_path / "gold", folder).overall.counts.f1 == 1.0
    assert score_2018_folders(tmp_path / "gold", folder).tallies["strict"]["entities"].micro.tp == 3
    # Asked for again, they are left as they are.
    assert write_predictions([record], corpus, tmp_path, triggers) == [folder]


def test_held_out_scores_and_gaps_have_intervals_over_notes_of_whole_patients(study):
    """Each seed of each cell scores the same notes; of one seed it is the interval that folds' notes have."""
    spec, plan, _, done = study
    cells = [cell.cell for cell in plan.cells]
    summaries = summarise(done, spec.num_folds, cells)

    def on_notes(record: Record) -> Record:
        frozen = "frozen" in record.fold_run.configuration.cell.strategy
        seed = record.fold_run.configuration.seed
        counts = [Counts(9 - 2 * frozen - (n + seed) % 3, 1 + n % 2, 1 + n % 3) for n in range(12)]
        return replace(
            record, notes={f"n{n}": NoteCounts({"Drug": c}, {}) for n, c in enumerate(counts)}
        )

    tests = [on_notes(record) for record in scored(study)]
    (gap,) = final_gaps(tests, summaries)
    trained, frozen = final_scores(tests, cells)
    assert gap.gap == pytest.approx(trained.strict.mean - frozen.strict.mean) and gap.gap > 0.01
    assert gap.interval.low < gap.gap < gap.interval.high
    for score in (trained, frozen):
        assert score.interval.low < score.strict.mean < score.interval.high
    pairs = {f"n{n}": f"patient-{n // 2}" for n in range(12)}
    assert final_gaps(tests, summaries, pairs)[0].interval != gap.interval
    one_seed = [r for r in tests if r.fold_run.configuration.seed == 4]
    by_cell = {r.fold_run.configuration.cell: r for r in one_seed}
    alone = over_notes([by_cell[cells[0]]], [by_cell[cells[1]]])
    (of_one,) = final_gaps(one_seed, summaries)
    assert (of_one.interval.low, of_one.interval.high) == pytest.approx((alone.low, alone.high))
    sentence = final_sentence(gap)
    assert "on held-out notes frozen_soft_prompt scored" in sentence
    assert "points lower (95 % interval" in sentence and sentence.endswith("than fine_tune.")
    # One side with other seeds, or scored on other notes, is no gap.
    assert not final_gaps([r for r in tests if r not in one_seed[:1]], summaries)
    # One note tells nothing about others.
    (score, _) = final_scores(scored(study), cells)
    assert score.interval.low is None
    assert final_gaps(scored(study), summaries)[0].interval.low is None
