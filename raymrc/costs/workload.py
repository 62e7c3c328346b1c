"""Counts what a fold-run passes through its backbone, before anything is trained.

    notes -> pieces -> rows (lengths only) -> steps and passes, padded and not -> FoldRunWork

It counts the rows that training collates, without torch and without their ids. Counts are exact where the
backbone's own tokenizer is on this machine and every row is trained on.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from operator import add
from typing import Any, NamedTuple

import numpy as np

from raymrc.configuration import Configuration
from raymrc.corpora.note import Corpus
from raymrc.corpora.splits import Folds, choose_split
from raymrc.model.shapes import Shape
from raymrc.model.strategies import STRATEGIES
from raymrc.planning.arithmetic import forward_flops, head_parameters, match_flops, training_flops
from raymrc.planning.placement import PASS_PIECES
from raymrc.planning.rows import row_form
from raymrc.reading.relations import Asked
from raymrc.reading.rows import BUCKET_BATCHES, Row, RowBuilder, RowForm
from raymrc.reading.windows import Pieces, cut_windows, read_pieces


@dataclass(frozen=True, slots=True)
class Passes:
    """A sum of passes through a backbone.

    Args:
        passes: optimiser steps, or batches that are evaluated.
        pieces, padded: without and with the padding of each pass to its longest row.
        answers: gold spans of all rows, which the match head scores.
        longest: pieces of the longest row.
    """

    passes: float = 0.0
    rows: float = 0.0
    pieces: float = 0.0
    padded: float = 0.0
    answers: float = 0.0
    longest: int = 0

    def __add__(self, other: Passes) -> Passes:
        sums = Passes(*map(add, astuple(self), astuple(other)))
        return replace(sums, longest=max(self.longest, other.longest))

    def times(self, number: float) -> Passes:
        """All passes, `number` times."""
        products = Passes(*(total * number for total in astuple(self)))
        return replace(products, longest=self.longest)


@dataclass(frozen=True, slots=True)
class FoldRunWork:
    """The passes of one fold-run.

    Args:
        training: all steps; where a duration in device-seconds decides them, as many passes over the rows as
            the duration has parts, which is only a stand-in.
        evaluation: validation after each epoch, the scored fold once, and each other site.
    """

    training: Passes
    evaluation: Passes

    def flops(
        self, configuration: Configuration, shape: Shape, num_labels: int, *, computed: str = ""
    ) -> tuple[float, float]:
        """Floating-point operations of training and of evaluation, match head included.

        Args:
            num_labels: labels that are tagged, where the strategy tags.
            computed: "cpu" or "gpu": what a device of this kind computes, with padding on a CPU and without
                the kept layers below a late prompt. "": what is needed, as in records.
        """
        strategy = STRATEGIES[configuration.cell.strategy]
        first_layer = configuration.first_layer
        if computed and first_layer and not strategy.trains_backbone:
            # These layers run once per window, which is next to nothing of a fold-run.
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


class RowCounts(NamedTuple):
    """One number per row, in the rows' order.

    Args:
        lengths: pieces, special ones and questions included.
        answers: gold spans (of all labels for tagging); 1 for a pair that is related.
        pairs: whether the row is of a pair of mentions.
        about: whether the row is about a given mention.
    """

    lengths: np.ndarray
    answers: np.ndarray
    pairs: np.ndarray
    about: np.ndarray

    def chosen(self, index: np.ndarray) -> RowCounts:
        return RowCounts(*(column[index] for column in self))


def count_rows(rows: Sequence[Row]) -> RowCounts:
    return RowCounts(
        np.array([row.length for row in rows], dtype=np.int64),
        np.array([row.num_answers for row in rows], dtype=np.int64),
        np.array([row.target_kind == "pairs" for row in rows], dtype=bool),
        np.array([row.context is not None for row in rows], dtype=bool),
    )


def join_counts(parts: Sequence[RowCounts]) -> RowCounts:
    return RowCounts(*map(np.concatenate, zip(count_rows([]), *parts, strict=True)))


# --- batches --------------------------------------------------------------------------------------


def training_passes(
    rows: RowCounts, batch_size: int, negative_rate: float, generator: random.Random
) -> Passes:
    """One epoch of `reading.rows.training_batches`, in expectation; exact where `negative_rate` is 1, except
    for padding, which depends on the order drawn.

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


def evaluation_passes(rows: RowCounts, pieces: int) -> Passes:
    """The batches of `reading.rows.evaluation_batches`, longest first.

    Args:
        pieces: padded pieces of one pass, at most.
    """
    lengths = np.sort(rows.lengths)[::-1].tolist()
    passes = padded = at = 0
    while at < len(lengths):
        batch = lengths[at : at + max(1, pieces // lengths[at])]
        padded += batch[0] * len(batch)
        passes += 1
        at += len(batch)
    return Passes(
        passes, len(lengths), float(sum(lengths)), padded, float(rows.answers.sum()),
        lengths[0] if lengths else 0,
    )  # fmt: skip


# --- rows -----------------------------------------------------------------------------------------


@dataclass
class Workload:
    """Counts the work of any fold-run of a study, and remembers it.

    Args:
        asked: the questions of the study's task.
        questions: in words, by name, as in `training.batching.StudyData`.
        transfer: notes of other sites, which are scored at the end.
        tokenizers: by the backbone's source; see `reading.light_tokenizers`.
        shapes: by the backbone's source; only kind and segment types are read.
        kind: of device, "cpu" or "gpu", which sets the size of a pass.
    """

    corpus: Corpus
    folds: Folds
    asked: Asked
    questions: Mapping[str, str]
    transfer: Mapping[str, Corpus]
    tokenizers: Mapping[str, Any]
    shapes: Mapping[str, Shape]
    kind: str = "cpu"
    _pieces: dict[Any, list[Pieces]] = field(default_factory=dict, repr=False)
    _rows: dict[Any, dict[str, RowCounts]] = field(default_factory=dict, repr=False)
    _work: dict[Any, FoldRunWork] = field(default_factory=dict, repr=False)

    def of(self, configuration: Configuration, fold: int) -> FoldRunWork:
        """The work of one fold-run.

        Args:
            fold: as in `FoldRun`, draws included.
        """
        c = configuration
        key = (
            c.cell.backbone.source, self._form(c), c.cell.shots, c.cell.shots_of, fold,
            c.epochs, c.duration, c.batch_size, c.negative_rate,
        )  # fmt: skip
        if key not in self._work:
            self._work[key] = self._count(configuration, fold)
        return self._work[key]

    def _count(self, configuration: Configuration, fold: int) -> FoldRunWork:
        c = configuration
        cell, rows = c.cell, self._rows_of(c, None)
        split = choose_split(self.folds, self.corpus.notes, fold, cell.shots, cell.shots_of)
        trained = join_counts([rows[note_id] for note_id in split.train])
        epoch = training_passes(trained, c.batch_size, c.negative_rate, random.Random(c.seed))
        asked = self._evaluation_of(c, rows, split.validation).times(c.epochs)
        asked += self._evaluation_of(c, rows, split.scored)
        for name, site in self.transfer.items():
            asked += self._evaluation_of(
                c, self._rows_of(c, name), [note.id for note in site.notes]
            )
        steps = c.limit.steps(epoch.passes) or c.epochs * epoch.passes
        return FoldRunWork(epoch.times(steps / max(1.0, epoch.passes)), asked)

    def _evaluation_of(
        self, configuration: Configuration, rows: Mapping[str, RowCounts], notes: Iterable[str]
    ) -> Passes:
        """One evaluation. End to end, as many mentions are taken to be predicted as are gold."""
        joined = join_counts([rows[note_id] for note_id in notes])
        rounds = [joined]
        if configuration.cell.task == "end_to_end":
            rounds = [joined.chosen(~joined.about), joined.chosen(joined.about)]
        pieces = PASS_PIECES[self.kind]
        return sum((evaluation_passes(part, pieces) for part in rounds), Passes())

    def _form(self, configuration: Configuration) -> RowForm:
        return row_form(configuration, self.shapes[configuration.cell.backbone.source])

    def _rows_of(self, configuration: Configuration, site: str | None) -> dict[str, RowCounts]:
        source, form = configuration.cell.backbone.source, self._form(configuration)
        key = (site, source, form)
        if key not in self._rows:
            corpus = self.corpus if site is None else self.transfer[site]
            tokenizer = self.tokenizers[source]
            if (site, source) not in self._pieces:
                self._pieces[site, source] = [read_pieces(n, tokenizer) for n in corpus.notes]
            builder = RowBuilder(tokenizer, form, self.asked, self.questions)
            counts: dict[str, RowCounts] = {}
            for note, pieces in zip(corpus.notes, self._pieces[site, source], strict=True):
                windows = cut_windows(pieces, form.window, form.overlap)
                counts[note.id] = count_rows(builder.gold_rows(note, pieces, windows))
            self._rows[key] = counts
        return self._rows[key]


def shortened(corpus: Corpus, characters: int) -> Corpus:
    """The first `characters` of each note, with the spans and relations that lie wholly in them."""
    notes = []
    for note in corpus.notes:
        spans = tuple(span for span in note.spans if span.end <= characters)
        known = {span.id for span in spans}
        relations = tuple(r for r in note.relations if r.head in known and r.tail in known)
        notes.append(replace(note, text=note.text[:characters], spans=spans, relations=relations))
    return replace(corpus, notes=tuple(notes))
