"""A row has exactly the length that was counted for it, and every piece and mark is in its place.

A bug here would be silent: a plan would count the wrong lengths, or a mark would surround the wrong word.
"""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from raymrc.reading.rows import RowPieces
from raymrc.reading.windows import Window
from tests.reading.notes import quickly

HEAD, SEP = [101, 7, 102], 102
OUTER, INNER = ([900, 901], [902]), ([910], [911, 912])


@st.composite
def marked(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """Draws the number of pieces in a window and up to two mentions that nest, touch or lie apart."""
    size = draw(st.integers(1, 12))
    spans: list[tuple[int, int]] = []
    for _ in range(draw(st.integers(0, 2))):
        first = draw(st.integers(0, size - 1))
        span = (first, draw(st.integers(first, size - 1)))
        if all((a <= span[0] and span[1] <= b) or (span[0] <= a and b <= span[1]) or span[1] < a
               or b < span[0] for a, b in spans if (a, b) != span) and span not in spans:  # fmt: skip
            spans.append(span)
    return size, spans


def written_out(piece_ids: list[int], marks: list[tuple]) -> tuple[list[int], list[int]]:
    """Builds the row's ids piece by piece and returns them with the positions of the window's pieces."""
    ids, places = list(HEAD), []
    for at, piece in enumerate(piece_ids):
        for _, _, before, _ in sorted((m for m in marks if m[0] == at), key=lambda m: -m[1]):
            ids += before
        places.append(len(ids))
        ids.append(piece)
        for _, _, _, behind in sorted((m for m in marks if m[1] == at), key=lambda m: -m[0]):
            ids += behind
    return [*ids, SEP], places


@given(marked())
@quickly
def test_the_length_counted_before_a_row_is_built_matches_the_built_row(given_marks):
    size, spans = given_marks
    piece_ids = list(range(1, size + 1))
    window = Window("n", 0, tuple(piece_ids), tuple((i, i + 1) for i in range(size)))
    marks = [(*span, *signs) for span, signs in zip(spans, (OUTER, INNER), strict=False)]
    pieces = RowPieces(window, HEAD, SEP, 1, marks)
    length = pieces.length
    assert not any(isinstance(value, np.ndarray) for value in vars(pieces).values())
    ids, places = written_out(piece_ids, marks)
    assert pieces.ids.tolist() == ids and length == len(ids)
    assert pieces.places.tolist() == places
    assert pieces.types.tolist() == [0] * len(HEAD) + [1] * (length - len(HEAD))
    assert [pieces.ids[start] for start in pieces.mark_starts] == [m[2][0] for m in marks]


def test_a_row_key_depends_on_its_pieces_but_not_on_its_window():
    offsets = ((0, 1), (1, 2))
    first, second = Window("n", 0, (5, 6), offsets), Window("m", 3, (5, 6), offsets)
    keys = {RowPieces(window, HEAD, SEP, 0).key for window in (first, second)}
    assert len(keys) == 1
    assert RowPieces(Window("n", 0, (5, 7), offsets), HEAD, SEP, 0).key not in keys
