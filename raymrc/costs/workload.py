"""What a fold-run passes through its backbone, counted before anything is trained.

    notes -> pieces -> rows (lengths only) -> steps and passes, padded and not -> Work

What `training.batching` makes, without torch and without the rows themselves: a test holds the two
together. Exact where the backbone's own tokenizer is at hand and every row is trained on.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from raymrc.configuration import Configuration
from raymrc.corpora.note import Corpus, Note
from raymrc.corpora.splits import Folds, choose_split
from raymrc.model.shapes import Shape
from raymrc.model.strategies import STRATEGIES
from raymrc.planning.arithmetic import forward_flops, head_parameters, match_flops, training_flops
from raymrc.planning.placement import PASS_PIECES, SPECIAL_PIECES
from raymrc.reading.examples import build_examples
from raymrc.reading.questions import in_plain_words
from raymrc.reading.relations import (
    TYPE_MARKS,
    Asked,
    Context,
    build_contexts,
    gold_answers,
    mentions_of,
)
from raymrc.reading.windows import Pieces, Window, cut_windows, read_pieces

BUCKET_BATCHES = 16
"""An epoch's rows are sorted by length within so many batches."""


@dataclass(frozen=True, slots=True)
class Passes:
    """Passes through a backbone, added up.

    Args:
        passes: optimiser steps, or batches that ask for answers.
        rows: of all passes.
        pieces: real ones; `padded`: with what fills rows up to the longest of their pass.
        answers: gold spans of all rows, which the match head looks at.
        longest: pieces of the longest row.
    """

    passes: float = 0.0
    rows: float = 0.0
    pieces: float = 0.0
    padded: float = 0.0
    answers: float = 0.0
    longest: int = 0

    def __add__(self, other: Passes) -> Passes:
        return Passes(
            self.passes + other.passes,
            self.rows + other.rows,
            self.pieces + other.pieces,
            self.padded + other.padded,
            self.answers + other.answers,
            max(self.longest, other.longest),
        )

    def times(self, number: float) -> Passes:
        """The same so often."""
        return Passes(
            self.passes * number,
            self.rows * number,
            self.pieces * number,
            self.padded * number,
            self.answers * number,
            self.longest,
        )


@dataclass(frozen=True, slots=True)
class FoldRunWork:
    """One fold-run.

    Args:
        training: all epochs.
        evaluation: validation after each epoch, the scored fold once, and each other site.
    """

    training: Passes
    evaluation: Passes

    def flops(
        self, configuration: Configuration, shape: Shape, num_labels: int, *, computed: str = ""
    ) -> tuple[float, float]:
        """Floating-point operations of training and of evaluation, match head included.

        Args:
            num_labels: that are tagged, where the strategy tags.
            computed: on a device of this kind, "cpu" or "gpu", what it computes: padding on a CPU, and
                layers below a late prompt only where the backbone is trained. "": what is needed, as
                records have it.
        """
        strategy = STRATEGIES[configuration.cell.strategy]
        first_layer = configuration.first_layer
        if computed and first_layer and not strategy.trains_backbone:
            # They run once a window, which is next to nothing of a fold-run.
            shape = shape.first(shape.num_layers - first_layer)
            first_layer = 0
        terms: dict[str, Any] = {
            "prompt_length": configuration.prompt_length,
            "prompt_depth": configuration.prompt_depth,
            "first_layer": first_layer,
            "head_parameters": head_parameters(strategy.answers, num_labels, shape.hidden),
        }

        def tokens(passes: Passes) -> dict[str, Any]:
            number = passes.padded if computed == "cpu" else passes.pieces
            return {"tokens": number, "row_length": number / max(1.0, passes.rows)}

        trained = training_flops(
            shape, **tokens(self.training), trains_backbone=strategy.trains_backbone, **terms
        )
        asked = forward_flops(shape, **tokens(self.evaluation), **terms)
        if strategy.answers == "spans":
            width = configuration.match_width
            trained += match_flops(shape.hidden, width, self.training.answers, trains=True)
            asked += match_flops(shape.hidden, width, self.evaluation.answers)
        return trained, asked


RowFacts = tuple[int, int, bool, bool]
"""Pieces, answers, whether a pair of mentions, whether about a given mention."""


@dataclass(frozen=True)
class NoteRows:
    """The rows of one note, or of many: one number a row, in the order of `training.batching`.

    Args:
        lengths: pieces, special ones and questions included.
        answers: gold spans (of a pair: 1 where it is related; of tags: of all labels).
        pairs: whether it is a pair of mentions.
        about: whether it is about a given mention.
    """

    lengths: np.ndarray
    answers: np.ndarray
    pairs: np.ndarray
    about: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def chosen(self, index: np.ndarray) -> NoteRows:
        return NoteRows(
            self.lengths[index], self.answers[index], self.pairs[index], self.about[index]
        )


def join_rows(parts: Sequence[NoteRows]) -> NoteRows:
    """One after the other."""
    none = make_rows([])
    return NoteRows(
        np.concatenate([none.lengths, *(part.lengths for part in parts)]),
        np.concatenate([none.answers, *(part.answers for part in parts)]),
        np.concatenate([none.pairs, *(part.pairs for part in parts)]),
        np.concatenate([none.about, *(part.about for part in parts)]),
    )


def make_rows(rows: Sequence[RowFacts]) -> NoteRows:
    lengths, answers, pairs, about = (
        np.array([row[column] for row in rows], dtype=np.int64) for column in range(4)
    )
    return NoteRows(lengths, answers, pairs.astype(bool), about.astype(bool))


# --- batches --------------------------------------------------------------------------------------


def training_passes(
    rows: NoteRows, batch_size: int, negative_rate: float, generator: random.Random
) -> Passes:
    """One epoch as `training.batching.training_batches` makes it: exactly where `negative_rate` is 1, padding
    aside, which depends on the order; else what is expected.

    Args:
        generator: draws an order, for the padding.
    """
    answered = rows.answers > 0
    total = Passes()
    for pairs in (False, True):
        alike = rows.pairs == pairs
        if not alike.any():
            continue
        gold = np.flatnonzero(alike & answered)
        others = np.flatnonzero(alike & ~answered)
        kept = negative_rate * len(others)
        drawn = generator.sample(list(others), round(kept)) if negative_rate < 1 else list(others)
        order = [*gold, *drawn]
        generator.shuffle(order)
        lengths = rows.lengths[np.array(order, dtype=np.int64)]
        padded = 0
        for at in range(0, len(lengths), BUCKET_BATCHES * batch_size):
            chunk = np.sort(lengths[at : at + BUCKET_BATCHES * batch_size])
            for first in range(0, len(chunk), batch_size):
                batch = chunk[first : first + batch_size]
                padded += len(batch) * int(batch[-1])
        total += Passes(
            passes=-(-len(order) // batch_size),
            rows=len(gold) + kept,
            pieces=float(rows.lengths[gold].sum() + negative_rate * rows.lengths[others].sum()),
            padded=padded,
            answers=float(rows.answers[gold].sum()),
            longest=int(lengths.max(initial=0)),
        )
    return total


def evaluation_passes(rows: NoteRows, pieces: int) -> Passes:
    """As `training.batching.evaluation_batches` makes them, longest first.

    Args:
        pieces: padded, of one pass, at most.
    """
    lengths = np.sort(rows.lengths)[::-1].tolist()
    passes = padded = at = 0
    while at < len(lengths):
        size = max(1, pieces // lengths[at])
        padded += lengths[at] * len(lengths[at : at + size])
        passes += 1
        at += size
    return Passes(
        passes, len(lengths), float(sum(lengths)), padded, float(rows.answers.sum()),
        lengths[0] if lengths else 0,
    )  # fmt: skip


# --- rows -----------------------------------------------------------------------------------------


@dataclass
class Workload:
    """Counts the work of any fold-run of a study; what it has counted it keeps.

    Args:
        asked: of the study's task.
        questions: in words, by name, as `training.batching.StudyData` has them.
        transfer: notes of other sites, which are scored at the end.
        tokenizers: by the backbone's source; see `reading.light_tokenizers`.
        shapes: by the backbone's source: only kind and positions are looked at.
        kind: of device, "cpu" or "gpu", which decides how much a pass takes.
    """

    corpus: Corpus
    folds: Folds
    asked: Asked
    questions: Mapping[str, str]
    transfer: Mapping[str, Corpus]
    tokenizers: Mapping[str, Any]
    shapes: Mapping[str, Shape]
    kind: str = "cpu"
    _pieces: dict[Any, dict[str, Pieces]] = field(default_factory=dict, repr=False)
    _rows: dict[Any, dict[str, NoteRows]] = field(default_factory=dict, repr=False)
    _work: dict[Any, FoldRunWork] = field(default_factory=dict, repr=False)

    def counts(self, configuration: Configuration) -> bool:
        """Whether the backbone's tokenizer is at hand, its own or a rough one."""
        return configuration.cell.backbone.source in self.tokenizers

    def of(self, configuration: Configuration, fold: int) -> FoldRunWork:
        """The work of one fold-run.

        Args:
            fold: as in `FoldRun`, draws included.
        """
        c = configuration
        key = (self._rows_key(c), c.cell.shots, c.cell.shots_of, fold, c.epochs, c.batch_size,
               c.negative_rate)  # fmt: skip
        if key not in self._work:
            self._work[key] = self._count(configuration, fold)
        return self._work[key]

    def _count(self, configuration: Configuration, fold: int) -> FoldRunWork:
        c = configuration
        cell, rows = c.cell, self._rows_of(c, None)
        split = choose_split(self.folds, self.corpus.notes, fold, cell.shots, cell.shots_of)
        trained = join_rows([rows[note_id] for note_id in split.train])
        epoch = training_passes(trained, c.batch_size, c.negative_rate, random.Random(c.seed))
        asked = self._asked_of(c, rows, split.validation).times(c.epochs)
        asked += self._asked_of(c, rows, split.scored)
        for name, site in self.transfer.items():
            asked += self._asked_of(c, self._rows_of(c, name), [note.id for note in site.notes])
        return FoldRunWork(epoch.times(c.epochs), asked)

    def _asked_of(
        self, configuration: Configuration, rows: Mapping[str, NoteRows], notes: Iterable[str]
    ) -> Passes:
        """One exam. End to end, as many mentions are taken to be found as there are."""
        joined = join_rows([rows[note_id] for note_id in notes])
        rounds = [joined]
        if configuration.cell.task == "end_to_end":
            rounds = [joined.chosen(~joined.about), joined.chosen(joined.about)]
        pieces = PASS_PIECES[self.kind]
        return sum((evaluation_passes(part, pieces) for part in rounds), Passes())

    def _rows_key(self, configuration: Configuration) -> tuple[object, ...]:
        c = configuration
        strategy = STRATEGIES[c.cell.strategy]
        return (
            c.cell.task, c.cell.backbone.source, c.window, c.overlap, c.context_sentences,
            c.relation_answers, strategy.asks == "words", strategy.answers,
        )  # fmt: skip

    def _rows_of(self, configuration: Configuration, site: str | None) -> dict[str, NoteRows]:
        key = (site, self._rows_key(configuration))
        if key not in self._rows:
            corpus = self.corpus if site is None else self.transfer[site]
            source = configuration.cell.backbone.source
            if (site, source) not in self._pieces:
                self._pieces[site, source] = {
                    note.id: read_pieces(note, self.tokenizers[source]) for note in corpus.notes
                }
            pieces = self._pieces[site, source]
            counter = _RowCounter(
                configuration,
                self.asked,
                self.questions,
                self.tokenizers[source],
                self.shapes[source],
            )
            self._rows[key] = {n.id: counter.rows(n, pieces[n.id]) for n in corpus.notes}
        return self._rows[key]


class _RowCounter:
    """The lengths of the rows that `training.batching.RowBuilder` makes."""

    def __init__(
        self,
        configuration: Configuration,
        asked: Asked,
        questions: Mapping[str, str],
        tokenizer: Any,
        shape: Shape,
    ) -> None:
        def length(text: str) -> int:
            return len(tokenizer(text, add_special_tokens=False)["input_ids"])

        self.configuration = configuration
        self.asked = asked
        self.strategy = STRATEGIES[configuration.cell.strategy]
        between = 2 if shape.kind == "roberta" else 1
        self.before = [
            length(questions[name]) + between if self.strategy.asks == "words" else 0
            for name in asked.names
        ]
        self.marks: dict[tuple[int, str], int] = {}
        labels = {label for q in asked.relations for label in (*q.given, *q.answers)}
        for place, (sign, kind) in enumerate(TYPE_MARKS.items()):
            for label in labels:
                typed = length(f"{kind} {in_plain_words(label)}{kind}")
                tells_types = self.strategy.answers == "tags"
                self.marks[place, label] = 2 * length(sign) + (typed if tells_types else 0)

    def rows(self, note: Note, pieces: Pieces) -> NoteRows:
        rows: list[RowFacts] = []
        if self.asked.labels:
            c = self.configuration
            rows += self._label_rows(note, cut_windows(pieces, c.window, c.overlap))
        if self.asked.relations:
            rows += self._relation_rows(note, pieces)
        return make_rows(rows)

    def _label_rows(self, note: Note, windows: Sequence[Window]) -> Iterator[RowFacts]:
        examples = build_examples([note], windows, self.asked.labels)
        per_window = len(self.asked.labels)
        for at in range(0, len(examples), per_window):
            of_window = examples[at : at + per_window]
            length = len(of_window[0].window.piece_ids) + SPECIAL_PIECES
            if self.strategy.answers == "tags":
                yield length, sum(len(e.spans) for e in of_window), False, False
                continue
            for e in of_window:
                yield length + self.before[e.label], len(e.spans), False, False

    def _relation_rows(self, note: Note, pieces: Pieces) -> Iterator[RowFacts]:
        c, relations = self.configuration, self.asked.relations
        contexts = build_contexts(
            note, pieces, mentions_of(note.spans), relations, c.context_sentences or 0, c.window
        )
        gold = gold_answers(note, relations)
        make = self._pair_rows if self.strategy.answers == "tags" else self._question_rows
        for context in contexts:
            yield from make(context, gold)

    def _question_rows(
        self, context: Context, gold: Mapping[Any, Sequence[Any]]
    ) -> Iterator[RowFacts]:
        length = len(context.window.piece_ids) + SPECIAL_PIECES
        length += self.marks[0, context.given.label]
        pieces_of = dict(context.others)
        for index, question in enumerate(self.asked.relations):
            if context.given.label not in question.given:
                continue
            if self.configuration.relation_answers != "spans" and not any(
                other.label in question.answers for other, _ in context.others
            ):
                continue
            before = self.before[len(self.asked.labels) + index]
            answers = gold.get((context.given, index), ())
            spans = {pieces_of[answer] for answer in answers if answer in pieces_of}
            yield length + before, len(spans), False, True

    def _pair_rows(self, context: Context, gold: Mapping[Any, Sequence[Any]]) -> Iterator[RowFacts]:
        given = context.given
        length = len(context.window.piece_ids) + SPECIAL_PIECES + self.marks[0, given.label]
        for other, _ in context.others:
            related = any(
                other in gold.get((given, index), ()) for index in range(len(self.asked.relations))
            )
            marked = length + self.marks[1, other.label]
            yield marked, int(related), True, True


def shortened(corpus: Corpus, characters: int) -> Corpus:
    """The beginning of each note, with what lies wholly in it.

    Args:
        characters: of a note, at most.
    """
    notes = []
    for note in corpus.notes:
        spans = tuple(span for span in note.spans if span.end <= characters)
        known = {span.id for span in spans}
        relations = tuple(r for r in note.relations if r.head in known and r.tail in known)
        notes.append(replace(note, text=note.text[:characters], spans=spans, relations=relations))
    return replace(corpus, notes=tuple(notes))
