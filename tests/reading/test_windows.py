"""Windows cover a note with the required overlap and have exact offsets.

A bug here would be silent: a span lost at a cut lowers recall only slightly.
"""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymrc.corpora.note import Note
from raymrc.errors import RaymrcError
from raymrc.reading.windows import owner, sentence_starts, window_bounds
from tests.reading.notes import build_windows, notes, quickly, sizes

NOTE = (
    "Dr. Smith saw her. She was given\naspirin for chest\npain.\n\nDischarge Medications:\n"
    "1. Lisinopril 10 mg\n2. Metformin 500 mg b.i.d.\nwith food\n- insulin (see J. Doe)"
)


@st.composite
def layouts(draw):
    """Draws sentence starts, the number of pieces, a window and an overlap; sentence lengths vary."""
    lengths = draw(st.lists(st.integers(1, 60), min_size=1, max_size=25))
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    window = draw(st.integers(1, 40))
    return starts, sum(lengths), window, draw(st.integers(0, window - 1))


@given(layouts())
@quickly
def test_windows_cover_a_note_and_neighbours_share_at_least_the_overlap(layout):
    _, num_pieces, window, overlap = layout
    bounds = window_bounds(*layout)
    assert bounds[0][0] == 0 and bounds[-1][1] == num_pieces
    assert all(0 < end - begin <= window for begin, end in bounds)
    for (begin, end), (next_begin, next_end) in pairwise(bounds):
        assert begin < next_begin and end < next_end
        assert end - next_begin >= overlap


@given(layouts())
@quickly
def test_a_sentence_that_fits_a_window_lies_whole_in_some_window(layout):
    sentences, num_pieces, window, _ = layout
    bounds = window_bounds(*layout)
    for head, tail in pairwise([*sentences, num_pieces]):
        if tail - head <= window:
            assert any(begin <= head and tail <= end for begin, end in bounds)


@given(layouts())
@quickly
def test_any_stretch_one_piece_wider_than_the_overlap_lies_whole_in_some_window(layout):
    _, num_pieces, _, overlap = layout
    bounds = window_bounds(*layout)
    for first in range(num_pieces - overlap):
        assert any(begin <= first and first + overlap + 1 <= end for begin, end in bounds)


@given(layouts())
@quickly
def test_sentence_boundaries_cost_at_most_two_and_a_half_times_the_fewest_windows(layout):
    _, num_pieces, window, overlap = layout
    fewest = 1 + max(0, -(-(num_pieces - window) // (window - overlap)))
    # Each step adds at least half of the pieces it could add; 2.5 leaves room for rounding.
    assert len(window_bounds(*layout)) <= 2.5 * fewest


def test_a_short_note_becomes_one_window(tokenizer):
    windows = build_windows(Note("n", NOTE), tokenizer, 512, 64)
    assert [(window.index, window.piece_start) for window in windows] == [(0, 0)]
    assert (windows[0].offsets[0][0], windows[0].offsets[-1][1]) == (0, len(NOTE))


@pytest.mark.parametrize("text", ["", " \n\t\r\n \u00a0"])
def test_a_note_without_words_has_no_windows(tokenizer, text):
    assert build_windows(Note("n", text), tokenizer, 16, 4) == []


@given(note=notes(), size=sizes())
@quickly
def test_windows_are_slices_of_the_pieces_of_the_whole_note(tokenizer, note, size):
    windows = build_windows(note, tokenizer, *size)
    whole = tokenizer(note.text, add_special_tokens=False, verbose=False)["input_ids"]
    assert [window.index for window in windows] == list(range(len(windows)))
    for window in windows:
        assert window.note_id == note.id
        assert list(window.piece_ids) == whole[window.piece_start : window.piece_end]
    if note.text.strip() and whole:
        assert windows[0].piece_start == 0 and windows[-1].piece_end == len(whole)


@given(note=notes(), size=sizes())
@quickly
def test_offsets_ascend_and_exclude_surrounding_whitespace(tokenizer, note, size):
    for window in build_windows(note, tokenizer, *size):
        for (start, end), (next_start, next_end) in pairwise(window.offsets):
            assert start <= next_start and end <= next_end
        for start, end in window.offsets:
            text = note.text[start:end]
            assert 0 <= start <= end <= len(note.text) and text == text.strip()


@given(note=notes(), size=sizes(), data=st.data())
@quickly
def test_the_owner_is_the_window_with_the_most_context_around_a_span(tokenizer, note, size, data):
    windows = build_windows(note, tokenizer, *size)
    start = data.draw(st.integers(0, len(note.text)))
    end = data.draw(st.integers(start, len(note.text)))
    assert owner(windows, start, end) == slow_owner(windows, start, end)


def slow_owner(windows, start, end):
    """Finds the owner slowly, by checking every piece of every window."""
    touched = {
        window.piece_start + place
        for window in windows
        for place, (piece_start, piece_end) in enumerate(window.offsets)
        if piece_start < end and start < piece_end
    }
    best, widest = None, -1.0
    for window in windows:
        pieces = range(window.piece_start, window.piece_end)
        if touched and touched <= set(pieces):
            before = min(touched) - pieces[0] if window is not windows[0] else float("inf")
            after = pieces[-1] - max(touched) if window is not windows[-1] else float("inf")
            if min(before, after) > widest:
                best, widest = window.index, min(before, after)
    return best


def test_windows_begin_and_end_at_sentence_boundaries_when_possible(wordpiece):
    text = " ".join(f"Sentence number {number} is about aspirin." for number in range(40))
    windows = build_windows(Note("n", text), wordpiece, 100, 10)
    assert len(windows) > 3
    for window in windows:
        assert text[window.offsets[0][0] :].startswith("Sentence")
        assert text[: window.offsets[-1][1]].endswith("aspirin.")


def test_full_stops_blank_lines_and_items_start_a_sentence_but_line_breaks_do_not():
    starts = [0, *sentence_starts(NOTE)]
    sentences = [NOTE[start:end].strip() for start, end in pairwise([*starts, len(NOTE)])]
    assert sentences == [
        "Dr. Smith saw her.",
        "She was given\naspirin for chest\npain.",
        "Discharge Medications:",
        "1. Lisinopril 10 mg",
        "2. Metformin 500 mg b.i.d.\nwith food",
        "- insulin (see J. Doe)",
    ]


@pytest.mark.parametrize(("window", "overlap"), [(32, 32), (32, 40), (0, 0), (32, -1)])
def test_an_overlap_that_does_not_fit_the_window_is_refused(wordpiece, window, overlap):
    with pytest.raises(RaymrcError, match=f"windows of {window} pieces cannot share {overlap} "):
        build_windows(Note("n", NOTE), wordpiece, window, overlap)


def test_the_repr_of_a_window_does_not_show_note_text(wordpiece):
    shown = repr(build_windows(Note("n", NOTE), wordpiece, 16, 4)[0])
    assert shown == "Window(note_id='n', index=0, piece_start=0)"


def test_a_megabyte_of_notes_is_windowed_in_under_ten_seconds(minilm):
    note = Note("n", (NOTE + "\n\n") * 5)
    begun = time.perf_counter()
    for _ in range(200):
        build_windows(note, minilm, 384, 64)
    seconds_per_megabyte = (time.perf_counter() - begun) / (200 * len(note.text) / 1e6)
    # It took about 0.8 s on one idle core; an accidental quadratic loop would take minutes.
    assert seconds_per_megabyte < 10
