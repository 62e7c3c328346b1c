"""Gold spans become targets, and the targets decode to the same spans.

A bug here would be silent: training would continue towards spans one piece off, and the lower ceiling
on F1 would look like a weak model.
"""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given

from raymrc.corpora.formats import read_corpus
from raymrc.corpora.note import Note, Span
from raymrc.reading.answers import assemble, decode_spans, decode_tags
from raymrc.reading.targets import (
    NO_TAG,
    tag_targets,
    taggable,
    unreachable,
    unreachable_apart,
    untaggable,
)
from raymrc.reading.windows import Window, owner, strip_blanks, touched_pieces
from tests.paths import SHARED, needs_shared
from tests.reading.notes import (
    LABELS,
    build_examples,
    build_windows,
    notes,
    quickly,
    sizes,
    thoroughly,
)

WIDENED = {"not_on_piece_boundary", "not_on_word_boundary"}
"""Why whole words answer for a span."""


def perfect_spans(example, *, flat=False):
    """Decodes the logits of a perfect model; each pair of a start and an end is a candidate."""
    start, end = np.full((2, len(example.window.piece_ids)), -1.0)
    for first, last in example.spans:
        start[first] = end[last] = 1.0
    pairs = np.array([(s, e) for s in np.flatnonzero(start > 0) for e in np.flatnonzero(end > 0)])
    match = np.array([1.0 if tuple(pair) in example.spans else -1.0 for pair in pairs.tolist()])
    return decode_spans(start, end, pairs, match, flat=flat)


def found_by_spans(examples, *, flat=False):
    found = {}
    for example in examples:
        answers = found.setdefault(example.window.index, [])
        if example.spans:
            answers.extend((example.label, *pieces) for pieces in perfect_spans(example, flat=flat))
    return found


def found_by_tags(examples):
    by_window = {}
    for example in examples:
        by_window.setdefault(example.window.index, []).append(example.spans)
    windows = {example.window.index: example.window for example in examples}
    found = {}
    for index, spans in by_window.items():
        tags = tag_targets(spans, windows[index])
        found[index] = [
            (label, *pieces)
            for label in range(tags.shape[1])
            for pieces in decode_tags(tags[:, label], windows[index])
        ]
    return found


def is_inside_word(text, edge):
    return len(text[max(0, edge - 1) : edge + 1]) == 2 and text[edge - 1 : edge + 1].isalnum()


def words_of(*sizes):
    """A window whose words have these numbers of pieces."""
    starts = tuple(int(start) for start in np.cumsum([0, *sizes[:-1]]))
    pieces = tuple(range(sum(sizes)))
    return Window("n", 0, pieces, tuple((p, p + 1) for p in pieces), word_starts=starts)


def keys(spans):
    return {(span.label, span.start, span.end) for span in spans}


def check_round_trip(note, windows, labels):
    """Checks that all reachable gold spans come back and that any other answer is a widened gold span."""
    examples = build_examples([note], windows, labels)
    assert len(examples) == len(windows) * len(labels)
    for find, found in (
        (unreachable, found_by_spans(examples)),
        (untaggable, found_by_tags(examples)),
    ):
        lost = {miss.span_id: miss.reason for miss in find(note, windows)}
        answers = assemble(note, windows, found, labels)
        gold = keys(span for span in note.spans if span.id not in lost)
        assert gold <= keys(answers)
        twice = keys(span for span in note.spans if lost.get(span.id) == "duplicate")
        never = keys(span for span in note.spans if span.id in lost) - gold - twice
        assert not never & keys(answers)
        widened = [span for span in note.spans if lost.get(span.id) in WIDENED]
        for label, start, end in keys(answers) - gold - twice:
            assert any(
                span.label == label and start < span.end and span.start < end for span in widened
            )
        # No answer is counted twice, because each belongs to exactly one window.
        counted = sum(len(assemble(note, windows, {i: found[i]}, labels)) for i in found)
        assert counted == len(answers)


@given(note=notes(), size=sizes())
@thoroughly
def test_gold_spans_survive_the_round_trip_for_any_note(tokenizer, note, size):
    check_round_trip(note, build_windows(note, tokenizer, *size), LABELS)


@given(note=notes(), size=sizes())
@quickly
def test_a_span_of_whole_words_no_wider_than_the_overlap_is_always_reachable(tokenizer, note, size):
    windows = build_windows(note, tokenizer, *size)
    pieces = {
        window.piece_start + place: offsets
        for window in windows
        for place, offsets in enumerate(window.offsets)
    }
    words = {place: offsets for place, offsets in pieces.items() if offsets[0] < offsets[1]}
    spans = set()
    for first in words:
        start = words[first][0]
        for last in range(first, first + size[1] + 1):
            end = words.get(last, (0, 0))[1]
            touched = [i for i, (s, e) in words.items() if s < end and start < e]
            # If a character consists of several pieces, all of them must fit.
            fits = touched and touched[-1] - touched[0] <= size[1]
            if fits and not any(is_inside_word(note.text, edge) for edge in (start, end)):
                spans.add((start, end))
    gold = tuple(Span(f"T{i}", "Drug", (chars,)) for i, chars in enumerate(sorted(spans)))
    assert unreachable(Note("n", note.text, gold), windows) == []


CORPORA = {"maccrobat": "maccrobat2020", "phee": "phee", "pubtator": "bc5cdr"}


@needs_shared
@pytest.mark.parametrize("reader", CORPORA)
def test_gold_spans_survive_the_round_trip_in_heavily_cut_real_notes(reader, wordpiece):
    """With a small vocabulary and windows of 48, most words are many pieces and most notes are cut."""
    corpus = read_corpus(SHARED / "corpora" / CORPORA[reader], reader)
    for note in corpus.notes[::10]:
        windows = build_windows(note, wordpiece, 48, 16)
        check_round_trip(note, windows, corpus.labels)


def spans_of(text, *wanted):
    """Makes a span for each label and phrase, at the first occurrence of the phrase in the text."""
    return tuple(
        Span(f"T{i}", label, ((text.index(words), text.index(words) + len(words)),))
        for i, (label, words) in enumerate(wanted, start=1)
    )


def test_each_unreachable_span_gets_the_right_reason(wordpiece):
    text = (
        "Aspirin \u00ad daily for chest pain. Warfarin was stopped. Heparin was given after. "
        "No chest pain."
    )
    spans = spans_of(
        text,
        ("Drug", "spiri"),
        ("Drug", "\u00ad"),
        ("Reason", text),
        ("ADE", "pain. Warfarin was stopped. Heparin"),
        ("Drug", "Warfarin"),
        ("Drug", "Warfarin"),
        ("Reason", "Warfarin was stopped. Heparin"),
    )
    note = Note("n", text, spans)
    windows = build_windows(note, wordpiece, 11, 2)
    assert [(miss.span_id, miss.reason) for miss in unreachable(note, windows)] == [
        ("T1", "not_on_piece_boundary"),
        ("T2", "no_piece"),
        ("T3", "wider_than_window"),
        ("T4", "cut_by_windows"),
        ("T6", "duplicate"),
    ]


def test_for_overlapping_spans_tags_keep_the_longest_and_flat_answers_keep_the_most(wordpiece):
    text = "He had left chest pain and fever"
    note = Note(
        "n", text, spans_of(text, ("ADE", "chest pain"), ("ADE", "left chest"), ("ADE", "fever"),
                            ("Reason", "pain"), ("ADE", "left chest pain"))
    )  # fmt: skip
    windows = build_windows(note, wordpiece, 64, 8)
    assert unreachable(note, windows) == []
    assert [(miss.span_id, miss.reason) for miss in untaggable(note, windows)] == [
        ("T1", "same_label_overlap"),
        ("T2", "same_label_overlap"),
    ]
    # "left chest" and "chest pain" are equally good: one is dropped, and so is the span that holds both.
    apart = [miss.span_id for miss in unreachable_apart(note, windows)]
    assert len(apart) == 2 and "T5" in apart and apart[0] in ("T1", "T2")


@given(note=notes(), size=sizes())
@thoroughly
def test_flat_answers_can_express_all_reachable_spans_and_no_larger_set_exists(
    tokenizer, note, size
):
    windows = build_windows(note, tokenizer, *size)
    named = unreachable_apart(note, windows)
    overlaps = {miss.span_id for miss in named if miss.reason == "same_label_overlap"}
    assert [miss for miss in named if miss.span_id not in overlaps] == unreachable(note, windows)
    lost = {miss.span_id for miss in named}
    found, by_owner = {}, {}
    for span in note.spans:
        if span.id in lost - overlaps:
            continue
        chars = strip_blanks(note.text, span.start, span.end)
        index, (first, last) = owner(windows, *chars), touched_pieces(windows, *chars)
        by_owner.setdefault((index, span.label), []).append((first, last))
        if span.id not in lost:
            begin = windows[index].piece_start
            pieces = (LABELS.index(span.label), first - begin, last - begin)
            found.setdefault(index, []).append(pieces)
    reached = [span for span in note.spans if span.id not in lost]
    assert keys(assemble(note, windows, found, LABELS)) == keys(reached)
    most = 0
    for spans in by_owner.values():
        sets = (some for n in range(len(spans) + 1) for some in combinations(sorted(spans), n))
        most += max(len(s) for s in sets if all(a[1] < b[0] for a, b in pairwise(s)))
    assert most == len(reached)
    for index, answers in found.items():
        for label in range(len(LABELS)):
            of_label = sorted(pieces for number, *pieces in answers if number == label)
            assert all(a[1] < b[0] for a, b in pairwise(of_label)), (index, label)


def test_the_leftmost_of_equally_long_spans_is_kept_in_any_order():
    assert taggable([(2, 3), (1, 2), (4, 4), (3, 4)]) == taggable([(3, 4), (4, 4), (1, 2), (2, 3)])
    assert taggable([(2, 3), (1, 2), (4, 4), (3, 4)]) == [(1, 2), (3, 4)]


def test_tags_of_different_labels_may_overlap():
    window = words_of(1, 1, 1, 1)
    tags = tag_targets([[(0, 2)], [(1, 1), (2, 3)]], window)
    assert tags.dtype == np.int8
    assert tags.T.tolist() == [[1, 2, 2, 0], [0, 1, 1, 2]]


def test_the_first_piece_of_a_word_has_its_tag_and_the_others_are_ignored():
    window = words_of(1, 3, 2)
    (tags,) = tag_targets([[(1, 5)]], window).T.tolist()
    assert tags == [0, 1, NO_TAG, NO_TAG, 2, NO_TAG]
    assert decode_tags(np.array(tags), window) == [(1, 5)]
    whatever = np.array([0, 1, 0, 1, 2, 0])
    assert decode_tags(whatever, window) == [(1, 5)], "later pieces of a word decide nothing"
    (inside,) = tag_targets([[(2, 2)]], window).T.tolist()
    assert inside == [0, 1, NO_TAG, NO_TAG, 0, NO_TAG], "a span inside a word stands for the word"


def test_no_answer_begins_or_ends_inside_a_word(tokenizer):
    note = Note("n", "4-aminopyridine caused hypotension, not hyper-tension.")
    (window,) = build_windows(note, tokenizer, 64, 8)
    last = len(window.piece_ids)
    every = [(0, first, end) for first in range(last) for end in range(first, last)]
    for span in assemble(note, [window], {0: every}, ["ADE"]):
        assert not any(is_inside_word(note.text, edge) for edge in (span.start, span.end))


def test_a_discontinuous_span_is_read_as_its_envelope(wordpiece):
    text = "pain in chest and arm"
    note = Note("n", text, (Span("T1", "ADE", ((0, 4), (18, 21))),))
    windows = build_windows(note, wordpiece, 64, 8)
    answers = assemble(
        note, windows, found_by_spans(build_examples([note], windows, LABELS)), LABELS
    )
    assert keys(answers) == {("ADE", 0, 21)}


def test_a_span_that_begins_inside_a_piece_is_trained_as_whole_pieces(minilm):
    text = "with hyperkalemia today"
    inside = text.index("kalemia") + 1
    note = Note("n", text, (Span("T1", "ADE", ((inside, inside + 4),)),))
    windows = build_windows(note, minilm, 64, 8)
    answers = assemble(
        note, windows, found_by_spans(build_examples([note], windows, LABELS)), LABELS
    )
    ((_, start, end),) = keys(answers)
    assert start <= inside and inside + 4 <= end and text[start:end] in "hyperkalemia"


def test_each_window_is_asked_for_every_label_even_without_an_answer(wordpiece):
    text = "No known allergies. " * 30 + "Given aspirin."
    note = Note("n", text, spans_of(text, ("Drug", "aspirin")))
    windows = build_windows(note, wordpiece, 40, 10)
    examples = build_examples([note], windows, LABELS)
    assert [(e.window.index, e.label) for e in examples] == [
        (window.index, label) for window in windows for label in range(len(LABELS))
    ]
    assert sum(bool(e.spans) for e in examples) >= 1


def test_examples_contain_only_the_spans_of_their_own_note(wordpiece):
    texts = ("Given aspirin.", "", "Given heparin.")
    several = [
        Note(f"n{i}", text, spans_of(text, *[("Drug", text[6:13])][: bool(text)]))
        for i, text in enumerate(texts)
    ]
    windows = [w for note in several for w in build_windows(note, wordpiece, 64, 8)]
    examples = build_examples(several, windows, LABELS)
    assert [e.window.note_id for e in examples if e.spans] == ["n0", "n2"]
