"""note -> pieces -> sentence groups -> windows with exact character offsets.

A context is a window around a mention, with some sentences on both sides.

A note is tokenized once, as a whole, and sliced, so a piece has the same offsets in every window that holds
it. docs/decisions/0003 says what makes a good slice and which window answers for a span.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from raymrc.corpora.note import Note
from raymrc.errors import SpecError

Offsets = tuple[tuple[int, int], ...]


class Tokenizer(Protocol):
    """A fast tokenizer of transformers, or a light one."""

    @property
    def is_fast(self) -> bool: ...

    def __call__(self, text: str, **options: Any) -> Any:
        """The options are those of transformers; the result has "input_ids" and "offset_mapping"."""


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a note that fits the encoder.

    Pieces stay out of `repr`: they are the note's text in another alphabet.

    Args:
        index: its place among the note's windows, from 0.
        piece_ids: vocabulary ids, without special pieces.
        offsets: characters of each piece in the note, half-open, ascending. Whitespace is trimmed, so a
            piece of whitespace alone is empty.
        piece_start: position of its first piece among the note's pieces.
        word_starts: positions in the window at which words begin, ascending, from 0; no word begins between
            two letters or digits.
    """

    note_id: str
    index: int
    piece_ids: tuple[int, ...] = field(repr=False)
    offsets: Offsets = field(repr=False)
    piece_start: int = 0
    word_starts: tuple[int, ...] = field(default=(), repr=False)

    @property
    def piece_end(self) -> int:
        return self.piece_start + len(self.piece_ids)


@dataclass(frozen=True, slots=True)
class Pieces:
    """A note as a tokenizer reads it; see `Window` for `ids` and `offsets`.

    Args:
        edges: the first piece of each sentence, ascending, from 0; empty without pieces.
        word_starts: the first piece of each word, ascending, from 0; see `Window`.
    """

    note_id: str
    ids: tuple[int, ...] = field(repr=False)
    offsets: Offsets = field(repr=False)
    edges: tuple[int, ...] = field(repr=False)
    word_starts: tuple[int, ...] = field(default=(), repr=False)

    def cut(self, index: int, begin: int, end: int) -> Window:
        """Pieces `begin` to `end`, half-open, as a window."""
        starts = self.word_starts
        inner = starts[bisect_right(starts, begin) : bisect_left(starts, end)]
        return Window(
            self.note_id,
            index,
            self.ids[begin:end],
            self.offsets[begin:end],
            begin,
            (0, *(start - begin for start in inner)),
        )


def read_pieces(note: Note, tokenizer: Tokenizer) -> Pieces:
    """Tokenizes a note as a whole.

    Raises:
        SpecError: the tokenizer is slow, and only fast ones know offsets.
    """
    if not tokenizer.is_fast:
        raise SpecError(
            f"tokenizer {type(tokenizer).__name__} does not know character offsets; "
            f"use a backbone folder that holds a tokenizer.json"
        )
    ids, offsets = _tokenize(note.text, tokenizer) if note.text.strip() else ((), ())
    if not ids:
        return Pieces(note.id, (), (), ())
    starts = [start for start, _ in offsets]
    edges = sorted({0, *(bisect_left(starts, char) for char in sentence_starts(note.text))})
    if edges[-1] == len(ids):  # the tokenizer drops all characters of the last sentence
        edges.pop()
    return Pieces(note.id, ids, offsets, tuple(edges), _word_starts(note.text, offsets))


def cut_windows(pieces: Pieces, window: int, overlap: int) -> list[Window]:
    """The windows of a note, in order; together they hold every piece of it.

    Windows of at most `window` pieces begin and end at sentences where they can. Neighbours share at least
    `overlap` pieces, so every stretch of up to `overlap + 1` pieces, and every sentence of up to `window`
    pieces, lies wholly in one of them. A note without pieces has no windows.

    Raises:
        SpecError: `overlap` is not below `window`.
    """
    if not 0 <= overlap < window:
        raise SpecError(
            f"windows of {window} pieces cannot share {overlap} with their neighbours; "
            f"set window to 1 or more and overlap to a whole number from 0 to below window"
        )
    if not pieces.ids:
        return []
    bounds = window_bounds(pieces.edges, len(pieces.ids), window, overlap)
    return [pieces.cut(index, begin, end) for index, (begin, end) in enumerate(bounds)]


def context_bounds(
    edges: Sequence[int], num_pieces: int, first: int, last: int, sentences: int, window: int
) -> tuple[int, int]:
    """The pieces around a mention, half-open: its own sentences and up to `sentences` on either side.

    Whole sentences are taken while they fit into `window` pieces, nearer ones first. Where the mention's own
    sentences do not fit, the pieces nearest to it are taken; a mention wider than `window` keeps its first
    pieces. The mention's `first` and `last` piece are inclusive; see `Pieces` for `edges`.
    """
    bounds = [*edges, num_pieces]
    low = bisect_right(edges, first) - 1
    high = bisect_right(edges, last)  # of the sentence behind
    begin, end = bounds[low], bounds[high]
    if end - begin > window:
        room = max(0, window - (last + 1 - first))
        begin = max(begin, min(first - room // 2, end - window))
        return begin, min(begin + window, end)
    for _ in range(sentences):
        if low > 0 and end - bounds[low - 1] <= window:
            low -= 1
            begin = bounds[low]
        if high < len(edges) and bounds[high + 1] - begin <= window:
            high += 1
            end = bounds[high]
    return begin, end


def window_bounds(
    sentences: Sequence[int], num_pieces: int, window: int, overlap: int
) -> list[tuple[int, int]]:
    """The pieces of each window, half-open; begins and ends strictly ascend.

    See `cut_windows`, and `Pieces.edges` for `sentences`. The note has at least one piece.
    """
    edges = [*sentences, num_pieces]
    bounds: list[tuple[int, int]] = []
    begin = end = 0
    while True:
        limit = begin + window
        # End at a sentence, unless that leaves the window half empty or makes no progress.
        at_sentence = edges[bisect_right(edges, limit) - 1]
        worthwhile = at_sentence > max(end, begin + overlap, begin + window // 2 - 1)
        end = min(at_sentence if worthwhile else limit, num_pieces)
        bounds.append((begin, end))
        if end == num_pieces:
            return bounds

        # The sentence that the cut falls into, or just before, must be whole in a later window.
        cut = bisect_right(edges, end) - 1
        head, tail = edges[cut], edges[cut + 1]
        latest = end - overlap
        # At most half of the next window's new part may repeat pieces that were read before.
        earliest = max(begin + 1, latest - (window - overlap) // 2)
        if tail - head <= window:
            latest = min(latest, head)
            earliest = max(begin + 1, tail - window, latest - (window - overlap) // 2)
        at_sentence = edges[bisect_right(edges, latest) - 1]
        begin = at_sentence if at_sentence >= earliest else latest


_SENTENCE_START = re.compile(
    r"""
      \n [^\S\n]* \n \s* (?=\S)                       # after a blank line
    | \n [^\S\n]* (?= [-*+\u2022\u00b7] [^\S\n]       # a list item: bullet,
                    | \d{1,2} [.)] [^\S\n]            # number
                    | [A-Z] [\w /&,()-]{1,50} : )     # or a section's heading
    | [.!?]                                         # after a full stop that is not
      (?<! [\s.(][A-Z\d]\. ) (?<! \n\d\d\. )        # an initial's or a list's
      (?<! \bDr\. ) (?<! \bMr\. ) (?<! \bMs\. ) (?<! \bMrs\. )
      ["')\]\u201d]* \s+ (?= ["'(\[\u201c]? [A-Z0-9] )
    """,
    re.VERBOSE,
)


def sentence_starts(text: str) -> list[int]:
    """Characters at which a sentence, list item or section begins, without the first.

    A line break alone ends nothing, because clinical notes are hard-wrapped. The rule is rough: it only
    suggests where windows begin, so an error costs context and never a span.
    """
    return [match.end() for match in _SENTENCE_START.finditer(text)]


def owner(windows: Sequence[Window], start: int, end: int) -> int | None:
    """Index of the window that answers for characters [start, end); None if no window holds them.

    Among the note's windows that wholly hold them, the owner has the widest smaller margin to its edges, in
    pieces: it sees most around them. The note's edges are infinitely far; ties go to the first window.
    """
    touched = touched_pieces(windows, start, end)
    if touched is None:
        return None
    first, last = touched

    def margin(index: int) -> float:
        window = windows[index]
        before = first - window.piece_start if index > 0 else math.inf
        after = window.piece_end - 1 - last if index < len(windows) - 1 else math.inf
        return min(before, after)

    return max(holders(windows, first, last), key=margin, default=None)


def touched_pieces(windows: Sequence[Window], start: int, end: int) -> tuple[int, int] | None:
    """First and last piece of the note (inclusive) that share a character with [start, end)."""
    left = bisect_right(windows, start, key=lambda window: window.offsets[-1][1])
    right = bisect_left(windows, end, key=lambda window: window.offsets[0][0]) - 1
    if left == len(windows) or right < 0:
        return None
    ends, starts = windows[left].offsets, windows[right].offsets
    first = windows[left].piece_start + bisect_right(ends, start, key=lambda piece: piece[1])
    last = windows[right].piece_start + bisect_left(starts, end, key=lambda piece: piece[0]) - 1
    return (first, last) if first <= last else None


def holders(windows: Sequence[Window], first: int, last: int) -> range:
    """Indices of the windows that hold all of the note's pieces `first` to `last`, inclusive."""
    return range(
        bisect_right(windows, last, key=lambda window: window.piece_end),
        bisect_right(windows, first, key=lambda window: window.piece_start),
    )


def strip_blanks(text: str, start: int, end: int) -> tuple[int, int]:
    """[start, end) without blanks at its edges; start >= end where nothing is left."""
    stretch = text[start:end]
    return (
        start + len(stretch) - len(stretch.lstrip()),
        end - len(stretch) + len(stretch.rstrip()),
    )


def answered_characters(text: str, window: Window, first: int, last: int) -> tuple[int, int]:
    """The characters that two pieces of a window answer with: without blanks at the edges, and with the rest
    of the words in which they begin and end. Half-open; start >= end where only blanks are answered."""
    start, end = strip_blanks(text, window.offsets[first][0], window.offsets[last][1])
    while start < end and _is_inside_word(text, start):
        start -= 1
    while start < end and _is_inside_word(text, end):
        end += 1
    return start, end


def _is_inside_word(text: str, position: int) -> bool:
    """Whether the characters on both sides of a position are letters or digits."""
    return 0 < position < len(text) and text[position - 1].isalnum() and text[position].isalnum()


def _word_starts(text: str, offsets: Offsets) -> tuple[int, ...]:
    """The first piece of each word. Pieces that share a character, of several bytes, are one word."""
    found, last_end = [], 0
    for piece, (start, end) in enumerate(offsets):
        if piece == 0 or not (start < last_end or _is_inside_word(text, start)):
            found.append(piece)
        last_end = end
    return tuple(found)


def _tokenize(text: str, tokenizer: Tokenizer) -> tuple[tuple[int, ...], Offsets]:
    encoding = tokenizer(
        text,
        add_special_tokens=False,
        truncation=False,
        padding=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # no warning about notes longer than the encoder, which we slice
    )
    offsets = encoding["offset_mapping"]
    if not offsets:
        return (), ()
    starts_S, ends_S = np.asarray(offsets, dtype=np.int64).T
    blank = _blank(text)
    if blank[np.minimum(starts_S, len(text) - 1)].any() or blank[np.maximum(ends_S - 1, 0)].any():
        # Byte-level tokenizers may include the blank before a word; annotators do not.
        characters = np.arange(len(text))
        next_word = np.minimum.accumulate(np.where(blank, len(text), characters)[::-1])[::-1]
        last_word = np.maximum.accumulate(np.where(blank, 0, characters + 1))
        starts_S = np.minimum(np.append(next_word, len(text))[starts_S], ends_S)
        ends_S = np.maximum(np.append(0, last_word)[ends_S], starts_S)
        offsets = zip(starts_S.tolist(), ends_S.tolist(), strict=True)
    return tuple(encoding["input_ids"]), tuple(offsets)


_SPACES = np.array([chr(code).isspace() for code in range(0x3002)])
"""Which code points are whitespace; none is above U+3000."""


def _blank(text: str) -> np.ndarray:
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    return _SPACES[np.minimum(codes, len(_SPACES) - 1)]
