"""gold spans, windows -> piece spans and tags; and which gold spans no answer can equal.

A discontinuous span is read by its envelope, first start to last end, as the 2018 scorer reads it. A span
that begins or ends inside a word is answered with whole words: a lenient match, never a strict one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymrc.corpora.note import Note, Span
from raymrc.reading.windows import (
    Window,
    answered_characters,
    holders,
    owner,
    strip_blanks,
    touched_pieces,
)

PieceSpan = tuple[int, int]
"""First and last piece, both inclusive, counted from the window's first piece."""

OUTSIDE, BEGIN, INSIDE, NO_TAG = 0, 1, 2, -1
"""Tags of one label's tagger."""


def find_answers(
    note: Note, windows: Sequence[Window]
) -> dict[tuple[int, str], tuple[PieceSpan, ...]]:
    """(window index, label) -> gold spans of the label that the window wholly holds, sorted, each once."""
    answers: dict[tuple[int, str], set[PieceSpan]] = {}
    for span in note.spans:
        touched = touched_pieces(windows, *strip_blanks(note.text, span.start, span.end))
        if touched is None:
            continue
        for index in holders(windows, *touched):
            answers.setdefault((index, span.label), set()).add(_within(windows[index], touched))
    return {key: tuple(sorted(spans)) for key, spans in answers.items()}


def tag_targets(spans: Sequence[Sequence[PieceSpan]], window: Window) -> NDArray[np.int8]:
    """Per label a column of 0 (outside), 1 (begin), 2 (inside): each label has its own tagger.

    The first piece of a word has the word's tag; its other pieces have `NO_TAG`.

    Different labels overlap freely. Among overlapping spans of one label the longest is kept (`taggable`);
    `untaggable` names the others.

    Shapes:
        result: (pieces of the window, number of labels)
    """
    num_pieces, starts = len(window.piece_ids), np.array(window.word_starts)
    tags = np.full((num_pieces, len(spans)), NO_TAG, dtype=np.int8)
    tags[starts] = OUTSIDE
    word_of = np.searchsorted(starts, np.arange(num_pieces), side="right") - 1
    for label, of_label in enumerate(spans):
        for first, last in taggable(of_label):
            words = starts[word_of[first] : word_of[last] + 1]
            tags[words, label] = INSIDE
            tags[words[0], label] = BEGIN
    return tags


def taggable(spans: Iterable[PieceSpan]) -> list[PieceSpan]:
    """The spans of one label that one tagger can mark, sorted; the longest win, then the leftmost."""
    kept: list[PieceSpan] = []
    for first, last in sorted(set(spans), key=lambda span: (span[0] - span[1], span)):
        if all(last < other_first or other_last < first for other_first, other_last in kept):
            kept.append((first, last))
    return sorted(kept)


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A gold span (or relation) that no answer of any model can equal.

    Args:
        reason: "no_piece" (only blanks or characters that the tokenizer drops), "not_on_piece_boundary",
            "not_on_word_boundary", "wider_than_window", "cut_by_windows" (wider than the overlap, across
            sentences, and at a cut), "duplicate" (label and envelope of an earlier span) or, where answers of
            one label never overlap, "same_label_overlap". For relations see `unreachable_relations`.
    """

    note_id: str
    span_id: str
    label: str
    reason: str


def unreachable(note: Note, windows: Sequence[Window]) -> list[Unreachable]:
    """Gold spans that no first and last piece can express, in the note's order."""
    seen: set[tuple[str, int, int]] = set()
    found: list[Unreachable] = []
    for span in note.spans:
        if (span.label, span.start, span.end) in seen:
            found.append(Unreachable(note.id, span.id, span.label, "duplicate"))
        elif reason := _why_unreachable(note, span, windows):
            found.append(Unreachable(note.id, span.id, span.label, reason))
        seen.add((span.label, span.start, span.end))
    return found


def untaggable(note: Note, windows: Sequence[Window]) -> list[Unreachable]:
    """`unreachable` spans, and those that overlap another one of their label and are not tagged."""
    kept = {key: taggable(spans) for key, spans in find_answers(note, windows).items()}
    return _not_kept(note, windows, unreachable(note, windows), kept)


def unreachable_apart(note: Note, windows: Sequence[Window]) -> list[Unreachable]:
    """`unreachable` spans, and as few others as must go so that no two of one label share a piece of a
    window."""
    lost = unreachable(note, windows)
    missing = {span.span_id for span in lost}
    by_window: dict[tuple[int, str], dict[PieceSpan, float]] = {}
    for span in note.spans:
        if span.id not in missing:
            index, pieces = _reached(note, span, windows)
            by_window.setdefault((index, span.label), {})[pieces] = 1.0
    kept = {key: surest_apart(spans) for key, spans in by_window.items()}
    return _not_kept(note, windows, lost, kept)


def _not_kept(
    note: Note,
    windows: Sequence[Window],
    lost: Sequence[Unreachable],
    kept: Mapping[tuple[int, str], Collection[PieceSpan]],
) -> list[Unreachable]:
    """The lost spans and, among the rest, those that are not kept in their windows, in the note's order."""
    by_id = {span.span_id: span for span in lost}

    def is_kept(span: Span) -> bool:
        index, pieces = _reached(note, span, windows)
        return pieces in kept[index, span.label]

    return [
        by_id.get(span.id) or Unreachable(note.id, span.id, span.label, "same_label_overlap")
        for span in note.spans
        if span.id in by_id or not is_kept(span)
    ]


def _reached(note: Note, span: Span, windows: Sequence[Window]) -> tuple[int, PieceSpan]:
    """The window that answers for a reachable span, and its pieces in this window."""
    touched, index = _place(note, span, windows)
    assert touched is not None and index is not None, "a reachable span has an owner"
    return index, _within(windows[index], touched)


def surest_apart(confidences: Mapping[PieceSpan, float]) -> list[PieceSpan]:
    """The spans, sorted, that share no piece and have the greatest sum of confidences; among equal sums the
    fewest pieces. Weighted interval scheduling.
    """
    ordered = sorted(confidences, key=lambda span: (span[1], span[0]))
    ends = [last for _, last in ordered]
    # The best choice among the first n spans: (sum, minus its pieces), and its spans as a linked list.
    best: list[tuple[tuple[float, int], Any]] = [((0.0, 0), None)]
    for first, last in ordered:
        (total, pieces), chain = best[bisect_left(ends, first)]
        with_it = (total + confidences[first, last], pieces - (last - first))
        best.append(max(best[-1], (with_it, ((first, last), chain)), key=lambda choice: choice[0]))
    found, chain = [], best[-1][1]
    while chain is not None:
        span, chain = chain
        found.append(span)
    return found[::-1]


def _within(window: Window, pieces: PieceSpan) -> PieceSpan:
    """The note's pieces, counted from the window's first."""
    return pieces[0] - window.piece_start, pieces[1] - window.piece_start


def _place(
    note: Note, span: Span, windows: Sequence[Window]
) -> tuple[tuple[int, int] | None, int | None]:
    """The note's pieces that a span touches, and the index of the window that answers for it."""
    chars = strip_blanks(note.text, span.start, span.end)
    return touched_pieces(windows, *chars), owner(windows, *chars)


def _why_unreachable(note: Note, span: Span, windows: Sequence[Window]) -> str | None:
    touched, index = _place(note, span, windows)
    if touched is None:
        return "no_piece"
    first, last = touched
    if index is None:
        widest = max(len(window.piece_ids) for window in windows)
        return "wider_than_window" if last - first >= widest else "cut_by_windows"
    window = windows[index]
    pieces = _within(window, touched)
    if answered_characters(note.text, window, *pieces) == (span.start, span.end):
        return None
    start, end = window.offsets[pieces[0]][0], window.offsets[pieces[1]][1]
    is_whole = (start, end) == (span.start, span.end)
    return "not_on_word_boundary" if is_whole else "not_on_piece_boundary"
