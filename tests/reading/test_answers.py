"""The vectorised decoders agree with slow reference loops."""

from __future__ import annotations

import re
from itertools import combinations, pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from raymrc.corpora.note import Note, Span
from raymrc.reading.answers import assemble, decode_spans, decode_tags
from raymrc.reading.windows import Window
from tests.reading.notes import build_windows, quickly

SENTENCE = "The patient was given aspirin and heparin after the chest pain had come back again. "


@given(arrays.arrays(np.int8, st.integers(1, 30), elements=st.integers(0, 2)))
@quickly
def test_tag_decoding_matches_a_simple_loop(tags):
    spans, first = [], None
    for place, tag in enumerate([*tags.tolist(), 0]):
        if first is not None and tag != 2:
            spans.append((first, place - 1))
            first = None
        if tag == 1 or (tag == 2 and first is None):
            first = place
    pieces = tuple(range(len(tags)))
    window = Window("n", 0, pieces, tuple((p, p + 1) for p in pieces), word_starts=pieces)
    assert decode_tags(tags, window) == spans


logits = st.floats(-3, 3, width=32)


@given(st.data(), st.integers(1, 12))
@quickly
def test_pair_decoding_matches_a_simple_loop(data, pieces):
    start = data.draw(arrays.arrays(np.float32, pieces, elements=logits))
    end = data.draw(arrays.arrays(np.float32, pieces, elements=logits))
    place = st.integers(0, pieces - 1)
    pairs = np.array(data.draw(st.lists(st.tuples(place, place), max_size=30)), dtype=np.int64)
    match = data.draw(arrays.arrays(np.float32, len(pairs), elements=logits))
    expected = {
        (int(first), int(last))
        for (first, last), score in zip(pairs.reshape(-1, 2), match, strict=True)
        if start[first] > 0 and end[last] > 0 and score > 0 and first <= last
    }
    assert decode_spans(start, end, pairs, match) == sorted(expected)


def test_the_match_score_distinguishes_nested_from_crossing_answers():
    start, end = np.array([1.0, 1.0, -1.0, -1.0]), np.array([-1.0, -1.0, 1.0, 1.0])
    pairs = np.array([(0, 2), (0, 3), (1, 2), (1, 3)])
    assert decode_spans(start, end, pairs, np.array([-1.0, 1, 1, -1])) == [(0, 3), (1, 2)]
    assert decode_spans(start, end, pairs, np.array([1.0, -1, -1, 1])) == [(0, 2), (1, 3)]


def test_nan_logits_give_no_answers():
    broken = np.full(2, np.nan)
    assert decode_spans(broken, broken, np.array([(0, 1)]), broken[:1]) == []


@given(st.data())
def test_flat_answers_are_the_highest_scoring_disjoint_set_in_any_order(data):
    length = data.draw(st.integers(1, 6))
    logits = st.integers(-2, 4).map(float)
    start, end = (
        np.array(data.draw(st.lists(logits, min_size=length, max_size=length))) for _ in "se"
    )
    every = [(a, b) for a in range(length) for b in range(a, length)]
    pairs = data.draw(st.lists(st.sampled_from(every), unique=True, max_size=7))
    match = np.array(data.draw(st.lists(logits, min_size=len(pairs), max_size=len(pairs))))
    given_pairs = np.array(pairs).reshape(-1, 2)
    found = decode_spans(start, end, given_pairs, match, flat=True)
    sure = {pair: start[pair[0]] + end[pair[1]] + m for pair, m in zip(pairs, match, strict=True)}
    candidates = decode_spans(start, end, given_pairs, match)
    assert set(found) <= set(candidates) and found == sorted(found)
    assert all(left[1] < right[0] for left, right in pairwise(found))
    sets = (c for n in range(len(candidates) + 1) for c in combinations(candidates, n))
    apart = [c for c in sets if all(left[1] < right[0] for left, right in pairwise(sorted(c)))]
    assert sum(sure[s] for s in found) == max(sum(sure[s] for s in c) for c in apart)
    turned = decode_spans(start, end, given_pairs[::-1], match[::-1], flat=True)
    assert sum(b - a for a, b in turned) == sum(b - a for a, b in found)


def test_two_flat_answers_beat_a_single_answer_that_spans_both():
    start, end = np.array([3.0, -1, 1.0, -1]), np.array([-1, 1.0, -1, 3.0])
    pairs, match = np.array([(0, 1), (0, 3), (2, 3)]), np.array([0.1, 0.2, 0.1])
    assert decode_spans(start, end, pairs, match) == [(0, 1), (0, 3), (2, 3)]
    assert decode_spans(start, end, pairs, match, flat=True) == [(0, 1), (2, 3)]


def test_no_candidates_give_no_answers():
    assert decode_spans(np.ones(3), np.ones(3), np.empty((0, 2), int), np.empty(0)) == []


def test_an_answer_found_by_two_windows_counts_once_from_its_owner(wordpiece):
    note = Note("n", SENTENCE * 3)
    windows = build_windows(note, wordpiece, 40, 20)
    places = {}
    for window in windows:
        for place, (start, end) in enumerate(window.offsets):
            places.setdefault((start, end), []).append((window.index, place))
    shared = {chars: where for chars, where in places.items() if len(where) > 1}
    assert shared
    for chars, where in shared.items():
        everywhere = {index: [(0, place, place)] for index, place in where}
        word = whole_word(note.text, *chars)
        assert assemble(note, windows, everywhere, ["Drug"]) == (Span("T1", "Drug", (word,)),)
        alone = [
            assemble(note, windows, {index: [(0, place, place)]}, ["Drug"])
            for index, place in where
        ]
        assert sum(map(len, alone)) == 1


def whole_word(text, start, end):
    """The run of letters and digits around a stretch of one, or the stretch itself."""
    words = [match.span() for match in re.finditer(r"[A-Za-z0-9]+", text)]
    return next((w for w in words if w[0] <= start and end <= w[1]), (start, end))


def test_answers_are_sorted_numbered_and_stripped_of_whitespace(tokenizer):
    note = Note("n", "heparin  ,\n\n aspirin")
    (window,) = build_windows(note, tokenizer, 64, 8)
    last = len(window.piece_ids) - 1
    heparin = max(i for i, (start, _) in enumerate(window.offsets) if start < 7)
    comma = next(i for i, (_, end) in enumerate(window.offsets) if end == 10)
    found = {0: [(1, comma + 1, last), (0, 0, last), (0, 0, heparin), (0, 0, heparin)]}
    assert assemble(note, [window], found, ["Drug", "ADE"]) == (
        Span("T1", "Drug", ((0, 7),)),
        Span("T2", "Drug", ((0, 20),)),
        Span("T3", "ADE", ((13, 20),)),
    )
