"""windows x labels -> piece spans and tags; and which gold spans these cannot say.

A discontinuous span is read by its envelope, first start to last end, as the 2018
scorer reads it. A span that begins or ends inside a piece is widened to whole pieces:
still a lenient match and a fair lesson, though never a strict one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymrc.corpora.note import Note, Span
from raymrc.reading.windows import Window, holders, owner, strip_blanks, touched_pieces

PieceSpan = tuple[int, int]
"""First and last piece, both inclusive, counted from the window's first piece."""

OUTSIDE, BEGIN, INSIDE = 0, 1, 2
"""The tags of one label's tagger."""


@dataclass(frozen=True, slots=True)
class Example:
    """One window under one label, with its answers.

    Args:
        label: index into the label set.
        spans: gold spans of that label that lie wholly in the window, sorted, each once.
    """

    window: Window
    label: int
    spans: tuple[PieceSpan, ...]


def build_examples(
    notes: Iterable[Note], windows: Iterable[Window], labels: Sequence[str]
) -> list[Example]:
    """Every window under every label, windows outermost, in the order of `windows`.

    A span is an answer in each window that wholly holds it, and in no other.

    Args:
        windows: those of `notes`, a note's own in a row and complete.
    """
    by_id = {note.id: note for note in notes}
    examples: list[Example] = []
    for note_id, group in groupby(windows, key=lambda window: window.note_id):
        of_note = list(group)
        answers = _answers(by_id[note_id], of_note)
        for window in of_note:
            for index, label in enumerate(labels):
                spans = answers.get((window.index, label), ())
                examples.append(Example(window, index, tuple(sorted(set(spans)))))
    return examples


def tag_targets(
    spans: Mapping[int, Sequence[PieceSpan]], num_pieces: int, num_labels: int
) -> NDArray[np.int8]:
    """One row of 0 (outside), 1 (begin), 2 (inside) per label: each label has its own tagger.

    Different labels overlap freely. Of overlapping spans of one label the longest is kept
    (see `taggable`); `untaggable` names the others.

    Args:
        spans: label index -> piece spans.

    Shapes:
        result: (num_pieces, num_labels)
    """
    tags = np.zeros((num_pieces, num_labels), dtype=np.int8)
    for label, of_label in spans.items():
        for first, last in taggable(of_label):
            tags[first, label] = BEGIN
            tags[first + 1 : last + 1, label] = INSIDE
    return tags


def taggable(spans: Iterable[PieceSpan]) -> list[PieceSpan]:
    """The spans of one label that one tagger can say, sorted: longest first, then leftmost."""
    kept: list[PieceSpan] = []
    for first, last in sorted(set(spans), key=lambda span: (span[0] - span[1], span)):
        if all(last < other_first or other_last < first for other_first, other_last in kept):
            kept.append((first, last))
    return sorted(kept)


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A gold span that no answer can be equal to, whatever the model.

    Args:
        reason: "no_piece" (nothing but blanks or characters that the tokenizer drops),
            "not_on_piece_boundary", "wider_than_window", "cut_by_windows" (wider than the
            overlap, across sentences, and at a cut), "duplicate" (label and envelope of
            an earlier span) or, where one label's answers lie apart, "same_label_overlap".
    """

    note_id: str
    span_id: str
    label: str
    reason: str


def unreachable(note: Note, windows: Sequence[Window]) -> list[Unreachable]:
    """Gold spans that start and end positions of pieces cannot say, in the note's order."""
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
    """Gold spans that one BIO tagger per label is not taught: `unreachable`, and overlaps."""
    kept = {key: taggable(spans) for key, spans in _answers(note, windows).items()}

    def overlaps(span: Span) -> bool:
        touched, index = _place(note, span, windows)
        assert touched is not None and index is not None, "what is reachable has an owner"
        return _within(windows[index], touched) not in kept[index, span.label]

    return _with_overlaps(note, unreachable(note, windows), overlaps)


def unreachable_apart(note: Note, windows: Sequence[Window]) -> list[Unreachable]:
    """Gold spans that answers cannot be of which no two of one label share a piece: `unreachable`, and of
    those that share pieces and a window all but as many as possible."""
    lost = unreachable(note, windows)
    missing = {one.span_id for one in lost}
    rest = [span for span in note.spans if span.id not in missing]
    by_window: dict[tuple[int | None, str], list[PieceSpan]] = {}
    for span in rest:
        touched, index = _place(note, span, windows)
        assert touched is not None, "what is reachable has pieces"
        by_window.setdefault((index, span.label), []).append(touched)
    kept = {key: surest_apart(dict.fromkeys(spans, 1.0)) for key, spans in by_window.items()}

    def overlaps(span: Span) -> bool:
        touched, index = _place(note, span, windows)
        return touched not in kept[index, span.label]

    return _with_overlaps(note, lost, overlaps)


def _with_overlaps(
    note: Note, lost: Sequence[Unreachable], overlaps: Callable[[Span], bool]
) -> list[Unreachable]:
    """What is lost, and of the rest what overlaps, in the note's order."""
    by_id = {one.span_id: one for one in lost}
    named = (
        by_id.get(span.id)
        or (
            Unreachable(note.id, span.id, span.label, "same_label_overlap")
            if overlaps(span)
            else None
        )
        for span in note.spans
    )
    return [one for one in named if one is not None]


def surest_apart(sure: Mapping[PieceSpan, float]) -> list[PieceSpan]:
    """The spans that share nothing and are surest together, by the sum of how sure they are, and of equals
    those with fewest pieces; sorted. Weighted interval scheduling."""
    ordered = sorted(sure, key=lambda span: (span[1], span[0]))
    ends = [last for _, last in ordered]
    # The best of the first n: its sum, less its pieces, and who is in it, as a chain.
    best: list[tuple[tuple[float, int], Any]] = [((0.0, 0), None)]
    for first, last in ordered:
        (total, pieces), chain = best[bisect_left(ends, first)]
        with_it = (total + sure[first, last], pieces - (last - first))
        best.append(max(best[-1], (with_it, ((first, last), chain)), key=lambda of: of[0]))
    found, chain = [], best[-1][1]
    while chain is not None:
        span, chain = chain
        found.append(span)
    return found[::-1]


@dataclass(frozen=True, slots=True)
class Reach:
    """How many gold spans there are, and how many cannot be reached, by reason."""

    spans: int
    reasons: tuple[tuple[str, int], ...]

    @property
    def unreachable(self) -> int:
        return sum(count for _, count in self.reasons)

    @property
    def share(self) -> float:
        """Unreachable spans / spans, 0 to 1: what strict recall cannot win."""
        return self.unreachable / self.spans if self.spans else 0.0


def unreachable_share(
    notes: Iterable[Note],
    windows: Mapping[str, Sequence[Window]],
    find: Callable[[Note, Sequence[Window]], list[Unreachable]] = unreachable,
) -> Reach:
    """The gold spans of a corpus that cannot be found.

    Args:
        windows: note id -> its windows.
        find: `unreachable`, `unreachable_apart` or, for tags, `untaggable`.
    """
    total = 0
    reasons: Counter[str] = Counter()
    for note in notes:
        total += len(note.spans)
        reasons.update(one.reason for one in find(note, windows[note.id]))
    return Reach(total, tuple(sorted(reasons.items())))


def _answers(note: Note, windows: Sequence[Window]) -> dict[tuple[int, str], list[PieceSpan]]:
    """(window index, label) -> piece spans of the gold spans that the window holds."""
    answers: dict[tuple[int, str], list[PieceSpan]] = {}
    for span in note.spans:
        touched = touched_pieces(windows, *strip_blanks(note.text, span.start, span.end))
        if touched is None:
            continue
        for index in holders(windows, *touched):
            answers.setdefault((index, span.label), []).append(_within(windows[index], touched))
    return answers


def _within(window: Window, pieces: PieceSpan) -> PieceSpan:
    """The note's pieces, counted from the window's first."""
    return pieces[0] - window.piece_start, pieces[1] - window.piece_start


def _place(
    note: Note, span: Span, windows: Sequence[Window]
) -> tuple[tuple[int, int] | None, int | None]:
    """The note's pieces that a span touches, and the window that answers for it."""
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
    start = window.offsets[first - window.piece_start][0]
    end = window.offsets[last - window.piece_start][1]
    return None if (start, end) == (span.start, span.end) else "not_on_piece_boundary"
