"""Whatever the note, gold relations in are gold relations out, and each one lost has a name.

It could break unnoticed where a context cuts a mention, where a question is asked from the wrong side,
or where the signs that mark a mention shift its pieces.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from raymrc.corpora.formats import SHAC_JOINS, read_corpus
from raymrc.corpora.note import Corpus, Note, Relation, Span
from raymrc.corpora.splits import take_subset
from raymrc.corpora.synthetic import synthesize
from raymrc.errors import SpecError
from raymrc.reading.questions import SHAC_ARGUMENTS, build_questions
from raymrc.reading.relations import (
    Context,
    RelationQuestion,
    assemble_relations,
    build_contexts,
    find_questions,
    gold_answers,
    mentions_of,
    unreachable_relations,
)
from raymrc.reading.windows import context_bounds, read_pieces
from raymrc.scoring.counts import Counts, pool
from raymrc.scoring.n2c2_2018 import score_relations
from tests.paths import SHARED
from tests.reading.notes import LABELS, notes, quickly, thoroughly


def test_a_drug_is_asked_for_its_strength_and_not_the_other_way_round() -> None:
    corpus = synthesize("n2c2-2018", 30, "a", 13)
    questions = find_questions(corpus)
    assert [q.name for q in questions] == list(corpus.relation_labels)
    assert all(q.given == ("Drug",) and q.from_tail for q in questions)
    assert [q.answers for q in questions] == [
        (label.removesuffix("-Drug"),) for label in corpus.relation_labels
    ]
    words = build_questions((), {}, questions)
    assert words["Strength-Drug"] == "What is the strength of the marked medication?"


def test_an_events_arguments_are_asked_of_each_trigger() -> None:
    corpus = synthesize("n2c2-2022", 200, "a", 13)
    questions = find_questions(corpus)
    asked = {(q.given[0], q.relation) for q in questions}
    assert asked <= set(SHAC_ARGUMENTS) and len(asked) == len(questions) > 15
    assert all(len(q.given) == 1 and not q.from_tail for q in questions)
    assert "Alcohol.StatusTime" in {q.name for q in questions}
    assert {(trigger, argument) for argument, trigger, _ in SHAC_JOINS} == set(SHAC_ARGUMENTS)
    words = build_questions((), {}, questions)
    assert words["Tobacco.Amount"] == SHAC_ARGUMENTS["Tobacco", "Amount"]


def test_a_studys_own_words_go_before_ours_and_unknown_ones_are_named() -> None:
    questions = find_questions(synthesize("n2c2-2018", 30, "a", 13))
    words = build_questions(("Drug",), {"Route-Drug": "How does it get in?"}, questions)
    assert words["Route-Drug"] == "How does it get in?" and "Drug" in words
    with pytest.raises(SpecError, match=r"no label or relation 'Rute-Drug'.*Route-Drug"):
        build_questions(("Drug",), {"Rute-Drug": "?"}, questions)


@thoroughly
@given(st.data())
def test_a_context_is_whole_sentences_around_a_mention_and_never_too_long(
    data: st.DataObject,
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=8))
    edges = [sum(lengths[:i]) for i in range(len(lengths))]
    num_pieces = sum(lengths)
    first = data.draw(st.integers(0, num_pieces - 1))
    last = data.draw(st.integers(first, min(num_pieces - 1, first + 6)))
    sentences, window = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 30))
    begin, end = context_bounds(edges, num_pieces, first, last, sentences, window)
    assert 0 <= begin < end <= num_pieces and end - begin <= window
    own = [i for i, edge in enumerate(edges) if edge <= last and edge + lengths[i] > first]
    wanted = (
        edges[max(0, own[0] - sentences)],
        [*edges, num_pieces][min(len(edges), own[-1] + 1 + sentences)],
    )
    assert wanted[0] <= begin and end <= wanted[1]
    if wanted[1] - wanted[0] <= window:
        assert (begin, end) == wanted
    if last + 1 - first <= window:
        assert begin <= first and last < end
    if [*edges, num_pieces][own[-1] + 1] - edges[own[0]] <= window:
        assert begin in edges and end in [*edges, num_pieces]


@quickly
@given(data=st.data())
def test_gold_answers_give_the_gold_relations_back(
    data: st.DataObject, wordpiece: PreTrainedTokenizerFast
) -> None:
    note = data.draw(notes())
    ids = [span.id for span in note.spans]
    relations = []
    for number in range(data.draw(st.integers(0, 8)) if ids else 0):
        head, tail = data.draw(st.sampled_from(ids)), data.draw(st.sampled_from(ids))
        relations.append(Relation(f"R{number}", data.draw(st.sampled_from(["A", "B"])), head, tail))
    note = replace(note, relations=tuple(relations))
    questions = find_questions(Corpus((note,), LABELS, ("A", "B")))
    sentences, window = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 40))
    pieces = read_pieces(note, wordpiece)
    contexts = build_contexts(note, pieces, mentions_of(note.spans), questions, sentences, window)
    for context in contexts:
        held = context.window.offsets[context.pieces[0] : context.pieces[1] + 1]
        assert held[0][0] < context.given.end and context.given.start < held[-1][1]
    lost = unreachable_relations(note, contexts, questions)
    counts = score(note, contexts, questions)
    assert counts.fp == 0 and counts.fn == len(lost)


def score(note: Note, contexts: list[Context], questions: tuple[RelationQuestion, ...]) -> Counts:
    """Gold answers of every context, put together and counted strictly."""
    gold = gold_answers(note, questions)
    found = [
        (index, context.given, other)
        for context in contexts
        for index in range(len(questions))
        for other, _ in context.others
        if other in gold.get((context.given, index), ())
    ]
    spans, relations = assemble_relations(found, questions)
    return pool(score_relations(note.spans, note.relations, spans, relations, "strict").values())


CORPUS = {
    "phee": ("phee", "phee", None, 600, 1),
    "phee, drug-ade": ("phee", "phee", "drug-ade", 600, 1),
    "maccrobat, drug-ade": ("maccrobat", "maccrobat2020", "drug-ade", 60, 1),
    "maccrobat": ("maccrobat", "maccrobat2020", None, 30, 1),
}


@pytest.mark.parametrize("name", [*CORPUS, "n2c2-2018", "n2c2-2022"])
def test_real_gold_relations_come_back_and_what_is_lost_has_a_reason(
    name: str, minilm: PreTrainedTokenizerFast
) -> None:
    sentences = 1
    if name.startswith("n2c2"):
        corpus = synthesize(name, 40, "a", 13)
    elif not (SHARED / "corpora").is_dir():
        pytest.skip("the shared corpora are not here: real relations are not tried")
    else:
        reader, folder, labels, size, sentences = CORPUS[name]
        corpus = take_subset(read_corpus(SHARED / "corpora" / folder, reader, labels), size, 13)
    questions = find_questions(corpus)
    counts, reasons = [], Counter[str]()
    for note in corpus.notes:
        pieces = read_pieces(note, minilm)
        mentions = mentions_of(note.spans)
        contexts = build_contexts(note, pieces, mentions, questions, sentences, 384)
        counts.append(score(note, contexts, questions))
        reasons.update(one.reason for one in unreachable_relations(note, contexts, questions))
    total = pool(counts)
    assert total.fp == 0 and total.fn == sum(reasons.values()) and total.tp > 50
    assert set(reasons) <= {"duplicate", "beyond_context"}
    assert total.f1 >= (0.9 if name.startswith("maccrobat") else 0.97), reasons


def test_a_mention_without_a_piece_has_no_context(wordpiece: PreTrainedTokenizerFast) -> None:
    spans = (Span("T1", "Drug", ((0, 1),)), Span("T2", "ADE", ((2, 9),)))
    note = Note("n", "\u00ad aspirin", spans, (Relation("R1", "A", "T1", "T2"),))
    questions = (RelationQuestion("A", ("Drug",), ("ADE",), False, "A"),)
    pieces = read_pieces(note, wordpiece)
    contexts = build_contexts(note, pieces, mentions_of(spans), questions, 1, 40)
    assert contexts == []
    (lost,) = unreachable_relations(note, contexts, questions)
    assert (lost.span_id, lost.reason) == ("R1", "no_context")
