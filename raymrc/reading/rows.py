"""windows x questions -> rows -> batches of rows.

A row is what one forward pass sees of one window: special pieces, the question in words if the strategy asks
in words, and the window; marks stand around a given mention. A row knows its length as soon as it is built
and its piece ids when they are first read: a plan counts rows, training collates them.
"""

# S pieces of a row, W pieces of its window, L labels

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from raymrc.corpora.note import Note
from raymrc.errors import BackboneError
from raymrc.reading.questions import in_plain_words
from raymrc.reading.relations import (
    GIVEN_MARK,
    OTHER_MARK,
    TYPE_MARKS,
    Asked,
    Context,
    Mention,
    build_contexts,
    gold_answers,
    mentions_of,
)
from raymrc.reading.targets import PieceSpan, find_answers, tag_targets
from raymrc.reading.windows import Pieces, Window

BUCKET_BATCHES = 16
"""Batches of one epoch among which rows are sorted by length."""

MentionMark = tuple[int, int, Sequence[int], Sequence[int]]
"""First and last piece of a mention in its window, ids before it, ids behind it."""

Gold = Mapping[tuple[Mention, int], Sequence[Mention]]
"""(given mention, index of the relation question) -> answers."""


@dataclass(frozen=True, slots=True)
class RowForm:
    """How a configuration lays out its rows: equal forms make equal rows of equal questions.

    Args:
        window: pieces of a window, at most.
        overlap: pieces that neighbouring windows share, at least.
        context_sentences: read on each side of a given mention's own sentences.
        in_words: a question in words stands before the window.
        tags: one row per window tags all labels and one row per pair of mentions names their relation;
            otherwise there is one row per question.
        chooses: answers about a given mention are chosen among the other mentions in its context;
            otherwise they are spans of it.
        separators: special pieces between a question in words and its window.
        window_type: segment type of the window and of everything after it.
    """

    window: int
    overlap: int = 0
    context_sentences: int = 0
    in_words: bool = False
    tags: bool = False
    chooses: bool = True
    separators: int = 1
    window_type: int = 0


class RowPieces:
    """The S pieces of a row, counted at once and put together when they are first read. Rows that ask one
    window different things in vectors share them.

    Args:
        head: ids before the window.
        sep: id behind the window.
        window_type: segment type of the window and of everything behind it.

    Attributes:
        ids, types: vocabulary ids and segment types, (S,).
        places: position in the row of each piece of the window, ascending, (W,).
        mark_starts: position in the row of each mention's first mark.
    """

    def __init__(
        self,
        window: Window,
        head: Sequence[int],
        sep: int,
        window_type: int,
        marks: Sequence[MentionMark] = (),
    ) -> None:
        self.window = window
        self.length = len(head) + len(window.piece_ids) + 1
        for _, _, before, behind in marks:
            self.length += len(before) + len(behind)
        self._head, self._sep, self._window_type, self._marks = head, sep, window_type, marks

    @property
    def ids(self) -> np.ndarray:
        return self._built[0]

    @property
    def places(self) -> np.ndarray:
        return self._built[1]

    @property
    def mark_starts(self) -> tuple[int, ...]:
        return self._built[2]

    @cached_property
    def types(self) -> np.ndarray:
        types = np.zeros_like(self.ids)
        types[len(self._head) :] = self._window_type
        return types

    @cached_property
    def key(self) -> bytes:
        """Names these ids, wherever they come from: two sites may each have a note of one name."""
        return hashlib.blake2b(self.ids.tobytes(), digest_size=16).digest()

    @cached_property
    def _built(self) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
        window, marks, shift = self.window, self._marks, len(self._head)
        ids = [*self._head, *window.piece_ids, self._sep]
        places = np.arange(shift, shift + len(window.piece_ids))
        starts = [0] * len(marks)
        # At one place marks that close stand before those that open, and the inner ones inside.
        inserted = sorted(
            [(last + 1, 0, -first, number) for number, (first, last, *_) in enumerate(marks)]
            + [(first, 1, -last, number) for number, (first, last, *_) in enumerate(marks)]
        )
        for place, opens, _, number in inserted:
            _, _, before, behind = marks[number]
            mark, at = before if opens else behind, shift + place
            ids[at:at] = mark
            places[place:] += len(mark)
            shift += len(mark)
            if opens:
                starts[number] = at
        return np.array(ids, dtype=np.int64), places, tuple(starts)


@dataclass(eq=False)
class Row:
    """One window under one question, or under all labels at once (`label` 0) for tagging, or with a pair of
    mentions in it (`label` 0).

    Args:
        spans: gold (first, last) pieces, relative to the window; for tagging, see `tagged`.
        tagged: gold spans of each label, for tagging; None otherwise.
        context: surrounds the `given` mention that is marked, where a relation is asked for.
        other: index in `context.others` of the mention that is marked beside it, for a pair.
        kind: of the pair: 0 for no relation, else 1 + index of the relation question.
        chosen_from: (first, last) pieces, relative to the window, of the mentions to choose from; None
            where answers may be anywhere in the window.
    """

    pieces: RowPieces
    label: int
    spans: Sequence[PieceSpan] = ()
    tagged: Sequence[Sequence[PieceSpan]] | None = None
    context: Context | None = None
    other: int | None = None
    kind: int = 0
    chosen_from: Sequence[PieceSpan] | None = None

    @property
    def window(self) -> Window:
        return self.pieces.window

    @property
    def length(self) -> int:
        """Pieces of the row, known without its ids."""
        return self.pieces.length

    @property
    def num_answers(self) -> int:
        """Gold spans, of all labels for tagging; 1 for a pair that is related."""
        if self.tagged is not None:
            return sum(map(len, self.tagged))
        return len(self.spans) + (self.kind > 0)

    @property
    def has_answer(self) -> bool:
        return self.num_answers > 0

    @property
    def target_kind(self) -> str:
        """ "tags", "pairs" or "spans"."""
        if self.tagged is not None:
            return "tags"
        return "spans" if self.other is None else "pairs"

    @cached_property
    def tags(self) -> np.ndarray:
        """(W, L); see `tag_targets`."""
        assert self.tagged is not None
        return tag_targets(self.tagged, self.window)

    @cached_property
    def choices(self) -> np.ndarray | None:
        """Positions in the row where the mentions to choose from begin and end, ascending."""
        if self.chosen_from is None:
            return None
        return np.unique(self.pieces.places[np.array(self.chosen_from)])


class RowBuilder:
    """Turns windows into rows for one tokenizer and one way of asking.

    Args:
        tokenizer: of transformers, or a light one.
        questions: label or name of a relation question -> question in words, read where `form.in_words`.

    Raises:
        BackboneError: the tokenizer has no special pieces.
    """

    def __init__(
        self,
        tokenizer: Any,
        form: RowForm,
        asked: Asked,
        questions: Mapping[str, str],
    ) -> None:
        self.form = form
        self.asked = asked
        cls, self._sep = _special_pieces(tokenizer)

        def pieces_of(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])

        self._bare = [cls]
        between = [self._sep] * form.separators
        self._heads = [
            [cls, *pieces_of(questions[name]), *between] if form.in_words else self._bare
            for name in asked.names
        ]
        self._marks: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
        labels = {label for q in asked.relations for label in (*q.given, *q.answers)}
        for mark, type_mark in TYPE_MARKS.items():
            for label in labels:
                sign, typed = pieces_of(mark), []
                if form.tags:
                    typed = pieces_of(f"{type_mark} {in_plain_words(label)}{type_mark}")
                self._marks[mark, label] = (sign + typed, sign)

    def check_fits(self, max_pieces: int) -> None:
        """
        Raises:
            BackboneError: a question and a window together exceed a backbone's `max_pieces` positions.
        """
        form = self.form
        separators = form.separators if form.in_words else 0
        longest = max((len(head) - 1 - separators for head in self._heads), default=0)
        marks = max((len(a) + len(b) for a, b in self._marks.values()), default=0)
        specials = 2 + separators + marks * (2 if form.tags else 1)
        room = max_pieces - specials - longest
        if form.window > room:
            raise BackboneError(
                f"a window of {form.window} pieces, a question of {longest} and {specials} special "
                f"pieces exceed the backbone's {max_pieces} positions; "
                f"set window to {room} or less"
            )

    def gold_rows(self, note: Note, pieces: Pieces, windows: Sequence[Window]) -> list[Row]:
        """All rows of a note; relations are asked of its gold mentions.

        Args:
            windows: all windows of the note; read where labels are asked.
        """
        rows = self.label_rows(note, windows) if self.asked.labels else []
        if self.asked.relations:
            contexts = self.contexts(note, pieces, mentions_of(note.spans))
            rows += self.relation_rows(note, contexts)
        return rows

    def label_rows(self, note: Note, windows: Sequence[Window]) -> list[Row]:
        """Every window of a note under every label's question, in the order of `windows`."""
        labels, answers = self.asked.labels, find_answers(note, windows)
        rows: list[Row] = []
        for window in windows:
            gold = [answers.get((window.index, label), ()) for label in labels]
            if self.form.in_words:
                rows += [Row(self._pieces(window, i), i, spans) for i, spans in enumerate(gold)]
                continue
            bare = self._pieces(window)
            if self.form.tags:
                rows.append(Row(bare, 0, tagged=gold))
            else:
                rows += [Row(bare, label, spans) for label, spans in enumerate(gold)]
        return rows

    def contexts(self, note: Note, pieces: Pieces, mentions: Sequence[Mention]) -> list[Context]:
        """What is read around those mentions of a note that are asked for relations."""
        form = self.form
        return build_contexts(
            note, pieces, mentions, self.asked.relations, form.context_sentences, form.window
        )

    def relation_rows(self, note: Note, contexts: Iterable[Context]) -> list[Row]:
        """One row per given mention and question that its label is asked (where answers are chosen, only if
        its context holds a possible answer); or, where pairs are told apart, one row per given mention and
        possible answer.

        Args:
            note: its gold relations are the answers; mentions that nobody annotated have none.
        """
        gold = gold_answers(note, self.asked.relations)
        make = self._pair_rows if self.form.tags else self._question_rows
        return [row for context in contexts for row in make(context, gold)]

    def _question_rows(self, context: Context, gold: Gold) -> Iterator[Row]:
        marks = [(*context.pieces, *self._marks[GIVEN_MARK, context.given.label])]
        pieces_of = dict(context.others)
        bare = self._pieces(context.window, None, marks)
        for index, question in enumerate(self.asked.relations):
            if context.given.label not in question.given:
                continue
            choices = [at for other, at in context.others if other.label in question.answers]
            if self.form.chooses and not choices:
                continue
            label = len(self.asked.labels) + index
            in_words = self.form.in_words
            answers = gold.get((context.given, index), ())
            yield Row(
                self._pieces(context.window, label, marks) if in_words else bare, label,
                tuple(sorted({pieces_of[a] for a in answers if a in pieces_of})),
                context=context, chosen_from=choices if self.form.chooses else None,
            )  # fmt: skip

    def _pair_rows(self, context: Context, gold: Gold) -> Iterator[Row]:
        given = context.given
        given_mark = (*context.pieces, *self._marks[GIVEN_MARK, given.label])
        related = [gold.get((given, index), ()) for index in range(len(self.asked.relations))]
        for place, (other, pieces) in enumerate(context.others):
            marks = [given_mark, (*pieces, *self._marks[OTHER_MARK, other.label])]
            kinds = (kind for kind, answers in enumerate(related, start=1) if other in answers)
            yield Row(
                self._pieces(context.window, None, marks), 0,
                context=context, other=place, kind=next(kinds, 0),
            )  # fmt: skip

    def _pieces(
        self, window: Window, question: int | None = None, marks: Sequence[MentionMark] = ()
    ) -> RowPieces:
        head = self._bare if question is None else self._heads[question]
        return RowPieces(window, head, self._sep, self.form.window_type, marks)


def _special_pieces(tokenizer: Any) -> tuple[int, int]:
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    cls = tokenizer.bos_token_id if cls is None else cls
    sep = tokenizer.eos_token_id if sep is None else sep
    if cls is None or sep is None:
        raise BackboneError("the tokenizer has no first or separating piece; use an encoder's own")
    return int(cls), int(sep)


# --- batches --------------------------------------------------------------------------------------


def training_batches(
    rows: Sequence[Row], batch_size: int, negative_rate: float, generator: random.Random
) -> Iterator[list[Row]]:
    """One epoch: all rows with an answer, a sample of the others, shuffled, bucketed by length.

    Rows are sorted by length only within chunks of `BUCKET_BATCHES`, so that an epoch's order stays random.
    All rows of a batch have one kind of target.
    """
    kept = [r for r in rows if r.has_answer or generator.random() < negative_rate]
    generator.shuffle(kept)
    batches: list[list[Row]] = []
    for alike in _by_target_kind(kept):
        for chunk in _slices(alike, BUCKET_BATCHES * batch_size):
            batches.extend(_slices(sorted(chunk, key=lambda row: row.length), batch_size))
    generator.shuffle(batches)
    yield from batches


class TrainingOrder:
    """The batches that training takes, pass after pass over the rows; see `training_batches`.

    Args:
        generator: draws each pass anew.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        batch_size: int,
        negative_rate: float,
        generator: random.Random,
    ) -> None:
        self._rows, self._batch_size, self._negative_rate = rows, batch_size, negative_rate
        self._generator = generator
        self._before = generator.getstate()
        self._batches: list[list[Row]] = []
        self._num_taken = 0

    @property
    def is_at_end(self) -> bool:
        """Whether all batches of this pass are taken."""
        return self._num_taken == len(self._batches)

    def rest(self) -> Sequence[list[Row]]:
        """The batches that this pass has left; of the next pass, if it has none."""
        if self.is_at_end:
            self._draw()
        return self._batches[self._num_taken :]

    def advance(self) -> None:
        """The first batch of the rest was taken."""
        self._num_taken += 1

    @property
    def position(self) -> tuple[Any, int]:
        """The generator's state before this pass and the number of batches taken of it, for `restore`."""
        return (
            (self._generator.getstate(), 0) if self.is_at_end else (self._before, self._num_taken)
        )

    def restore(self, position: tuple[Any, int]) -> None:
        (version, internal, gauss), num_taken = position
        self._generator.setstate((version, tuple(internal), gauss))
        self._batches, self._num_taken = [], 0
        if num_taken:
            self._draw()
            self._num_taken = num_taken

    def _draw(self) -> None:
        self._before = self._generator.getstate()
        self._batches = list(
            training_batches(self._rows, self._batch_size, self._negative_rate, self._generator)
        )
        self._num_taken = 0


def steps_per_epoch(rows: Sequence[Row], batch_size: int, negative_rate: float) -> int:
    """Expected optimiser steps of one epoch, at least 1."""
    steps = 0
    for alike in _by_target_kind(rows):
        answered = sum(row.has_answer for row in alike)
        expected = answered + negative_rate * (len(alike) - answered)
        steps += max(1, -(-round(expected) // batch_size))
    return max(1, steps)


def evaluation_batches(rows: Sequence[Row], max_pieces: int) -> Iterator[list[Row]]:
    """All rows, longest first (so that memory peaks at once).

    Among rows of one length those of one window stay together: layers that see no prompt run once for them.

    Args:
        rows: of one kind of target.
        max_pieces: padded pieces of a batch; one row alone may have more.
    """
    place: dict[bytes, int] = {}
    for row in rows:
        place.setdefault(row.pieces.key, len(place))
    batch: list[Row] = []
    for row in sorted(rows, key=lambda row: (-row.length, place[row.pieces.key])):
        if batch and (len(batch) + 1) * batch[0].length > max_pieces:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _by_target_kind(rows: Iterable[Row]) -> Iterable[list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.target_kind, []).append(row)
    return groups.values()


def _slices(rows: Sequence[Row], size: int) -> Iterator[list[Row]]:
    for begin in range(0, len(rows), size):
        yield list(rows[begin : begin + size])
