"""windows x labels -> piece spans and tags; and which gold spans these cannot say.

A discontinuous span is read by its envelope, first start to last end, as the 2018
scorer reads it. A span that begins or ends inside a piece is widened to whole pieces:
still a lenient match and a fair lesson, though never a strict one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

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
    (see `taggable`); `unreachable` names the others.

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


Keep = Callable[[Iterable[PieceSpan]], list[PieceSpan]]
"""Which of one label's spans in a window can be said, where not all: `taggable`, `answers.most_apart`."""


def unreachable(
    note: Note, windows: Sequence[Window], keep: Keep | None = None
) -> list[Unreachable]:
    """Gold spans that no answer can be, in the note's order.

    Args:
        keep: of spans that share pieces, those that can be said together; None where answers may overlap.
    """
    kept = {key: keep(spans) for key, spans in _answers(note, windows).items()} if keep else None
    seen: set[tuple[str, int, int]] = set()
    found: list[Unreachable] = []
    for span in note.spans:
        if (span.label, span.start, span.end) in seen:
            reason = "duplicate"
        else:
            reason = _why_unreachable(note, span, windows, kept)
        if reason:
            found.append(Unreachable(note.id, span.id, span.label, reason))
        seen.add((span.label, span.start, span.end))
    return found


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
    keep: Keep | None = None,
) -> Reach:
    """The gold spans of a corpus that cannot be found.

    Args:
        windows: note id -> its windows.
        keep: see `unreachable`.
    """
    total = 0
    reasons: Counter[str] = Counter()
    for note in notes:
        total += len(note.spans)
        reasons.update(one.reason for one in unreachable(note, windows[note.id], keep))
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


def _why_unreachable(
    note: Note,
    span: Span,
    windows: Sequence[Window],
    kept: Mapping[tuple[int, str], Sequence[PieceSpan]] | None,
) -> str:
    """The reason; "" where it can be reached. See `_answers` for the keys of what is kept."""
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
    if (start, end) != (span.start, span.end):
        return "not_on_piece_boundary"
    is_kept = kept is None or _within(window, touched) in kept[index, span.label]
    return "" if is_kept else "same_label_overlap"
