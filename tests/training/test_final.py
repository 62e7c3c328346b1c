"""A final test trains on every note of the study and learns nothing from the held-out notes.

A bug here could be silent: some notes may still be kept for validation, held-out notes may choose the epoch,
or the stored predictions may differ from the scored ones.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raymrc.configuration import FoldRun
from raymrc.corpora.labels import common_labels
from raymrc.corpora.note import Corpus, Note
from raymrc.errors import AdapterError
from raymrc.ledger.record import Record
from raymrc.model.loading import Loaded
from raymrc.reading.relations import Asked
from raymrc.scoring.counts import pool
from raymrc.scoring.n2c2_2018 import score_note, score_relations
from raymrc.training.batching import StudyData
from raymrc.training.evaluation import Evaluation
from raymrc.training.lane import Lane
from raymrc.training.pool import Pool
from raymrc.training.predictor import Predictor
from tests.training.fold_runs import train_fold_run
from tests.training.test_lane import make_data, make_notes, make_run
from tests.training.test_relations import CPU, make_relation_data, make_relation_notes
from tests.training.test_transfer import learnt


@pytest.fixture(scope="module")
def home() -> StudyData:
    return make_relation_data(make_relation_notes())


def held_out(home: StudyData, notes: tuple[Note, ...]) -> StudyData:
    test = common_labels(
        Corpus(notes, home.corpus.labels, home.corpus.relation_labels), home.corpus
    )
    return StudyData(home.corpus, home.folds, home.questions, {"elsewhere": test}, test)


def test_run(loaded: Loaded, task: str, strategy: str) -> FoldRun:
    return replace(learnt(loaded, task, strategy), test_fingerprint="held out")


test_run.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("task", "strategy"),
    [
        ("concepts", "frozen_soft_prompt"),
        ("relations", "fine_tune"),
        ("end_to_end", "soft_prompt"),
    ],
)
def test_held_out_notes_are_scored_and_do_not_affect_training(
    task: str, strategy: str, loaded: Loaded, home: StudyData
) -> None:
    notes = make_relation_notes(12, seed=5)
    run = test_run(loaded, task, strategy)
    record = train_fold_run(run, held_out(home, notes), loaded)
    assert set(record.notes) == set(record.predictions) == {note.id for note in notes}
    assert record.transfer == {} and record.validation_f1 == 0.0
    assert record.best_epoch == run.configuration.epochs
    assert record.strict.tp > 0
    # The stored predictions are the scored ones.
    counts = [
        score_note(note.spans, found.spans, "strict")
        if task == "concepts"
        else score_relations(note.spans, note.relations, found.spans, found.relations, "strict")
        for note in notes
        for found in (record.predictions[note.id],)
    ]
    assert pool(c for by_label in counts for c in by_label.values()) == record.strict
    assert Record.from_json(record.to_json()) == record
    if task != "relations":  # this task is given gold mentions
        bare = tuple(replace(note, spans=(), relations=()) for note in notes)
        blind = train_fold_run(run, held_out(home, bare), loaded)
        assert [e.loss for e in blind.epochs] == [e.loss for e in record.epochs]
        assert blind.predictions == record.predictions


def test_a_final_test_trains_on_every_note_of_the_study(loaded: Loaded, home: StudyData) -> None:
    data = held_out(home, make_relation_notes(6, seed=5))
    pool_of = Pool(loaded, data, "cpu")
    run = test_run(loaded, "concepts", "frozen_soft_prompt")
    pool_of.open(run)
    lane: Lane = pool_of._seats[run.key].lane
    learnt = {row.window.note_id for row in lane.rows}
    assert learnt == {note.id for note in home.corpus.notes}
    assert lane.split.validation == lane.split.scored == ()
    assert lane.device == CPU


def test_the_ledger_distinguishes_a_final_test_from_a_fold(loaded: Loaded) -> None:
    run = test_run(loaded, "concepts", "fine_tune")
    fold = replace(run, test_fingerprint="")
    assert run.is_test and not fold.is_test
    assert run.key != fold.key and run.basis != fold.basis
    assert replace(run, test_fingerprint="others").key != run.key


@pytest.mark.parametrize(
    ("task", "strategy"),
    [
        ("concepts", "fine_tune"),
        ("relations", "hard_prompt"),
        ("end_to_end", "frozen_soft_prompt"),
    ],
)
def test_a_saved_final_model_predicts_the_same_after_loading(
    task: str, strategy: str, loaded: Loaded, home: StudyData, tmp_path: Path
) -> None:
    data = held_out(home, make_relation_notes(6, seed=5))
    record = train_fold_run(
        test_run(loaded, task, strategy), data, loaded,
        on_done=lambda lane: lane.write_adapter(tmp_path),
    )  # fmt: skip
    assert data.test is not None
    notes = data.test.notes
    if task != "relations":
        notes = tuple(replace(note, spans=(), relations=()) for note in notes)
    predictor = Predictor(tmp_path, loaded, data.asked(task), data.questions)
    assert any(found.spans for found in record.predictions.values())
    assert predictor.find(notes) == record.predictions
    assert predictor.find([]) == {}
    with pytest.raises(AdapterError, match="was trained to answer"):
        Predictor(tmp_path, loaded, Asked(("Others",)), data.questions)


@pytest.mark.parametrize("kept", ["all", "surest"])
def test_scoring_and_a_saved_adapter_treat_overlapping_answers_alike(
    kept: str, loaded: Loaded, tmp_path: Path
) -> None:
    data = make_data(make_notes())
    run = make_run(loaded, "soft_prompt", epochs=1, overlapping_answers=kept)
    done: list[Lane] = []
    train_fold_run(run, data, loaded, on_done=done.append)
    lane = done[0]
    lane.write_adapter(tmp_path)
    predictor = Predictor(tmp_path, loaded, data.asked("concepts"), data.questions)
    note = data.corpus.notes[0]
    for asks in (lane, predictor):
        evaluation = Evaluation(
            asks.builder, [note], lane.note_rows, lane.windows, lane.pieces, asks.flat
        )
        row = evaluation.next_round()[0]
        start, end = np.full(row.length, -9.0), np.full(row.length, -9.0)
        first, second = row.pieces.places[:2]
        start[first], end[[first, second]] = 9.0, [2.0, 9.0]
        pairs = np.array([(first, first), (first, second)])
        evaluation.add_answer(row, (start, end, pairs, np.ones(2)))
        found = evaluation.found(note).spans
        assert len(found) == (2 if kept == "all" else 1)
        assert max(found, key=lambda span: span.end) == found[-1]
