"""logits -> piece spans -> the note's spans, each once."""

# S pieces, K candidate pairs

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from raymrc.corpora.note import Note, Span
from raymrc.reading.targets import BEGIN, INSIDE, OUTSIDE, PieceSpan, surest_apart
from raymrc.reading.windows import Window, answered_characters, owner


def decode_spans(
    start: NDArray[np.floating],
    end: NDArray[np.floating],
    pairs: NDArray[np.integer],
    match: NDArray[np.floating],
    *,
    flat: bool = False,
) -> list[PieceSpan]:
    """Candidate pairs whose start, end and match logits are all above 0, sorted, each once.

    Answers may nest and cross: the match decides which start belongs to which end.

    Args:
        flat: no two answers share a piece; see `surest_apart`. Two answers are preferred to the one from the
            first one's start to the second one's end, which a head trained on few notes also proposes.

    Shapes:
        start, end: (S,); pairs: (K, 2), first and last piece, inclusive; match: (K,)
    """
    first, last = np.asarray(pairs, dtype=np.int64).reshape(-1, 2).T
    keep = (start[first] > 0) & (end[last] > 0) & (np.asarray(match) > 0) & (first <= last)
    if not flat:
        return sorted(set(zip(first[keep].tolist(), last[keep].tolist(), strict=True)))
    sure = (start[first] + end[last] + np.asarray(match))[keep].tolist()
    return surest_apart(
        dict(zip(zip(first[keep].tolist(), last[keep].tolist(), strict=True), sure, strict=True))
    )


def decode_tags(tags: NDArray[np.integer], window: Window) -> list[PieceSpan]:
    """Spans of one label's tags, in order. The first piece of a word decides for the whole word. An inside
    after an outside begins a span, as in conlleval.

    Shapes:
        tags: (S,) of the window's pieces, 0 outside, 1 begin, 2 inside
    """
    starts = np.array(window.word_starts)
    tags = np.asarray(tags)[starts]
    before = np.concatenate(([OUTSIDE], tags))[:-1]
    begins = (tags == BEGIN) | ((tags == INSIDE) & (before == OUTSIDE))
    continues = np.concatenate(((tags == INSIDE), [False]))[1:]
    ends = (tags != OUTSIDE) & ~continues
    firsts = starts[begins]
    lasts = np.append(starts[1:], len(window.piece_ids))[ends] - 1
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def assemble(
    note: Note,
    windows: Sequence[Window],
    found: Mapping[int, Iterable[tuple[int, int, int]]],
    labels: Sequence[str],
) -> tuple[Span, ...]:
    """The spans of a note from the answers in its windows, sorted by start, named T1, T2 ...

    An answer counts only in the window that owns its characters, so a span where two windows overlap counts
    once, by the window that sees more around it.

    Args:
        note: only its text is read, for blanks and words at the edges of answers.
        windows: all windows of the note, in order.
        found: window index -> (label index, first piece, last piece) of each answer.
    """
    answers: set[tuple[int, int, int]] = set()
    for index, in_window in found.items():
        for label, first, last in in_window:
            start, end = answered_characters(note.text, windows[index], first, last)
            if start < end and owner(windows, start, end) == index:
                answers.add((start, end, label))
    return tuple(
        Span(f"T{number}", labels[label], ((start, end),))
        for number, (start, end, label) in enumerate(sorted(answers), start=1)
    )
