"""Generates notes for property tests, with clinical formatting, odd characters and spans anywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st

from raymrc.corpora.note import Note, Span
from raymrc.reading.targets import PieceSpan, find_answers
from raymrc.reading.windows import Window, cut_windows, read_pieces

# There is no deadline, because a busy machine can be slow for reasons unrelated to the code.
quickly = settings(max_examples=80, deadline=None)
thoroughly = settings(max_examples=150, deadline=None)

LABELS = ("Drug", "ADE", "Reason")

_words = st.sampled_from(
    [
        "aspirin", "Heparin", "81", "mg", "p.o.", "thrombocytopenia", "Dr.", "chest pain",
        "naïve", "3°", "½", "µg/kg", "β-blocker", "😀", "日本", "e\u0301", "\u00ad", "\u200b",
        "ﬁne", "İ", "x\x00y", "-", "(", ")", "J.", "No",
    ]
)  # fmt: skip
_gaps = st.sampled_from(
    [
        " ", " ", " ", " ", "  ", ". ", "! ", "? ", "; ", "\n", "\r\n", "\n\n", "\n- ", "\n2. ",
        "\u00a0", "", "\nPlan: ",
    ]
)  # fmt: skip
_clinical = st.lists(st.tuples(_words, _gaps), max_size=60).map(
    lambda parts: "".join(word + gap for word, gap in parts)
)
_anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@st.composite
def notes(draw: st.DrawFn) -> Note:
    """Draws a note. Most spans cover whole words, some start anywhere or have two fragments; many overlap."""
    text = draw(st.one_of(_clinical, _clinical, _anything))
    words = [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]
    spans = []
    for number in range(draw(st.integers(0, 12)) if text else 0):
        if words and draw(st.integers(0, 3)):
            first = draw(st.integers(0, len(words) - 1))
            last = min(first + draw(st.integers(0, 12)), len(words) - 1)
            start, end = words[first][0], words[last][1]
        else:
            start = draw(st.integers(0, len(text) - 1))
            end = draw(st.integers(start + 1, len(text)))
        fragments: tuple[tuple[int, int], ...] = ((start, end),)
        if end - start > 2 and draw(st.integers(0, 4)) == 0:
            fragments = ((start, start + 1), (end - 1, end))
        spans.append(Span(f"T{number + 1}", draw(st.sampled_from(LABELS)), fragments))
    return Note("note", text, tuple(spans))


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int]:
    """Draws a window and an overlap small enough to cut short notes often."""
    window = draw(st.integers(1, 24))
    return window, draw(st.integers(0, window - 1))


def build_windows(note: Note, tokenizer: object, window: int, overlap: int) -> list[Window]:
    return cut_windows(read_pieces(note, tokenizer), window, overlap)


class Example(NamedTuple):
    """Holds one window under one label, with its gold spans."""

    window: Window
    label: int
    spans: tuple[PieceSpan, ...]


def build_examples(
    notes: Iterable[Note], windows: Iterable[Window], labels: Sequence[str]
) -> list[Example]:
    """Builds an example for each window of several notes and each label; windows are the outer loop."""
    by_id = {note.id: note for note in notes}
    examples = []
    for note_id, group in groupby(windows, key=lambda window: window.note_id):
        of_note = list(group)
        answers = find_answers(by_id[note_id], of_note)
        examples += [
            Example(window, index, answers.get((window.index, label), ()))
            for window in of_note
            for index, label in enumerate(labels)
        ]
    return examples
