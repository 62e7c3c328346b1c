"""windows x questions -> rows -> batches.

A row is what one forward pass sees of one window: special pieces, the question in
words if the strategy asks in words, and the window. Batches are length-bucketed, so
that little of a batch is padding.
"""

# B rows, S pieces, L labels, K candidate pairs

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import torch

from raymrc.corpora.note import Corpus, Note
from raymrc.corpora.splits import Folds
from raymrc.errors import BackboneError
from raymrc.model.inputs import Inputs, SpanTargets, TagTargets
from raymrc.model.strategies import STRATEGIES, Strategy
from raymrc.reading.examples import build_examples, tag_targets
from raymrc.reading.windows import Window, build_windows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from raymrc.model.shapes import Shape
    from raymrc.study.configuration import Configuration

_Parts = TypeVar("_Parts", bound=tuple[object, ...])


@dataclass(frozen=True)
class StudyData:
    """What all fold-runs of a study share. Built once a process; windows are kept between them.

    Args:
        questions: label -> question in words, used where a strategy asks in words.
    """

    corpus: Corpus
    folds: Folds
    questions: Mapping[str, str]
    _windows: dict[tuple[object, ...], dict[str, list[Window]]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _rows: dict[tuple[object, ...], dict[str, list[Row]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __getstate__(self) -> dict[str, object]:
        # What was cached in one process is cheaper to build again than to send to another.
        return {"corpus": self.corpus, "folds": self.folds, "questions": self.questions}

    def __setstate__(self, state: dict[str, object]) -> None:
        for name, value in {**state, "_windows": {}, "_rows": {}}.items():
            object.__setattr__(self, name, value)

    def windows(
        self, tokenizer: PreTrainedTokenizerFast, source: str, window: int, overlap: int
    ) -> dict[str, list[Window]]:
        """Note id -> its windows, for every note of the corpus. `source` names the tokenizer."""
        key = (source, window, overlap)
        if key not in self._windows:
            self._windows[key] = {
                note.id: build_windows(note, tokenizer, window, overlap)
                for note in self.corpus.notes
            }
        return self._windows[key]

    def rows(
        self, tokenizer: PreTrainedTokenizerFast, shape: Shape, configuration: Configuration
    ) -> dict[str, list[Row]]:
        """Note id -> its rows, for every note of the corpus: what a configuration asks of it.

        Raises:
            BackboneError: a question and a window together exceed the backbone's positions.
        """
        strategy = STRATEGIES[configuration.cell.strategy]
        source, size = configuration.cell.backbone.source, configuration.window
        # What is asked in vectors, or not at all, is the same rows whatever is trained.
        key = (source, size, configuration.overlap, strategy.asks == "words", strategy.answers)
        if key not in self._rows:
            windows = self.windows(tokenizer, source, size, configuration.overlap)
            builder = RowBuilder(
                tokenizer, shape, self.corpus.labels, self.questions, strategy, size
            )
            self._rows[key] = {note.id: builder.rows([note], windows) for note in self.corpus.notes}
        return self._rows[key]


@dataclass(frozen=True, slots=True)
class Row:
    """One window under one question, or under all labels at once (`label` 0) for tagging.

    Args:
        ids, types: of all S pieces of the row.
        offset: position of the window's first piece in the row.
        spans: gold (first, last) pieces, relative to the window; for tagging, see `tags`.
        tags: (pieces, L) of 0/1/2, for tagging; None otherwise.
    """

    window: Window
    label: int
    ids: np.ndarray
    types: np.ndarray
    offset: int
    spans: tuple[tuple[int, int], ...] = ()
    tags: np.ndarray | None = None

    @property
    def has_answer(self) -> bool:
        return bool(self.spans) if self.tags is None else bool(self.tags.any())


class RowBuilder:
    """Turns windows into rows for one backbone and one way of asking.

    Args:
        strategy: what asks and what answers; tagging makes one row a window, all labels at once.

    Raises:
        BackboneError: a question and a window together exceed the backbone's positions.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        shape: Shape,
        labels: Sequence[str],
        questions: Mapping[str, str],
        strategy: Strategy,
        window: int,
    ) -> None:
        self.labels = tuple(labels)
        self.strategy = strategy
        in_words = strategy.asks == "words"
        self.cls, self.sep = _special_pieces(tokenizer)
        # RoBERTa puts two separators between a question and its text, and has one segment type.
        self.middle = [self.sep] * (2 if shape.kind == "roberta" else 1)
        self.window_type = 1 if in_words and shape.types > 1 else 0
        self.questions: list[list[int]] = [
            tokenizer(questions[label], add_special_tokens=False)["input_ids"] if in_words else []
            for label in self.labels
        ]
        longest = max(map(len, self.questions), default=0)
        specials = 2 + (len(self.middle) if in_words else 0)
        room = shape.max_pieces - specials - longest
        if window > room:
            raise BackboneError(
                f"a window of {window} pieces, a question of {longest} and {specials} special "
                f"pieces exceed the backbone's {shape.max_pieces} positions; "
                f"set window to {room} or less"
            )

    def rows(self, notes: Sequence[Note], windows: Mapping[str, list[Window]]) -> list[Row]:
        """Every window of every note under every question, in note order."""
        rows: list[Row] = []
        for note in notes:
            examples = build_examples([note], windows[note.id], self.labels)
            if self.strategy.answers == "spans":
                for e in examples:
                    asked = e.label if self.strategy.asks == "words" else None
                    # Asked in vectors, a window is the same pieces for every label: held once.
                    if asked is not None or not rows or rows[-1].window is not e.window:
                        ids, types, offset = self._pieces(e.window, asked)
                    rows.append(Row(e.window, e.label, ids, types, offset, tuple(e.spans)))
                continue
            by_window: dict[int, dict[int, Sequence[tuple[int, int]]]] = {}
            for e in examples:
                by_window.setdefault(e.window.index, {})[e.label] = e.spans
            for window in windows[note.id]:
                tags = tag_targets(by_window[window.index], len(window.piece_ids), len(self.labels))
                rows.append(Row(window, 0, *self._pieces(window), (), tags))
        return rows

    def _pieces(
        self, window: Window, asked: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Ids and types of a row, and where its window begins; with the question of a label."""
        head = [self.cls]
        if asked is not None:
            head += self.questions[asked] + self.middle
        ids = np.array([*head, *window.piece_ids, self.sep], dtype=np.int64)
        types = np.zeros_like(ids)
        types[len(head) :] = self.window_type
        return ids, types, len(head)


def _special_pieces(tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    cls = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    sep = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if cls is None or sep is None:
        raise BackboneError("the tokenizer has no first or separating piece; use an encoder's own")
    return int(cls), int(sep)


def collate(rows: Sequence[Row], pad: int) -> Inputs:
    """Rows of like length as one padded batch. Shapes: (B, S), label (B,).

    A window that is asked several questions as vectors is the same row each time: `share_B` says so.
    """
    B, S = len(rows), max(len(row.ids) for row in rows)
    ids_BS = np.full((B, S), pad, dtype=np.int64)
    types_BS = np.zeros((B, S), dtype=np.int64)
    mask_BS = np.zeros((B, S), dtype=bool)
    window_BS = np.zeros((B, S), dtype=bool)
    first: dict[tuple[bytes, bytes], int] = {}
    share = []
    for b, row in enumerate(rows):
        n = len(row.ids)
        ids_BS[b, :n], types_BS[b, :n], mask_BS[b, :n] = row.ids, row.types, True
        window_BS[b, row.offset : row.offset + len(row.window.piece_ids)] = True
        share.append(first.setdefault((row.ids.tobytes(), row.types.tobytes()), b))
    return Inputs(
        input_ids_BS=torch.from_numpy(ids_BS),
        type_ids_BS=torch.from_numpy(types_BS),
        mask_BS=torch.from_numpy(mask_BS),
        window_BS=torch.from_numpy(window_BS),
        label_B=torch.tensor([row.label for row in rows]),
        lengths=tuple(len(row.ids) for row in rows),
        share_B=torch.tensor(share) if len(first) < B else None,
    )


def collate_targets(rows: Sequence[Row], inputs: Inputs) -> SpanTargets | TagTargets:
    """The gold answers of `rows`, at the positions of `inputs`."""
    B, S = inputs.input_ids_BS.shape
    if rows[0].tags is not None:
        tags_BSL = np.zeros((B, S, rows[0].tags.shape[1]), dtype=np.int64)
        for b, row in enumerate(rows):
            assert row.tags is not None
            tags_BSL[b, row.offset : row.offset + len(row.tags)] = row.tags
        return TagTargets(tags_BSL=torch.from_numpy(tags_BSL))
    start_BS = np.zeros((B, S), dtype=np.float32)
    end_BS = np.zeros((B, S), dtype=np.float32)
    pairs: list[tuple[int, int, int]] = []
    for b, row in enumerate(rows):
        for first, last in row.spans:
            start_BS[b, row.offset + first] = end_BS[b, row.offset + last] = 1.0
            pairs.append((b, row.offset + first, row.offset + last))
    return SpanTargets(
        start_BS=torch.from_numpy(start_BS),
        end_BS=torch.from_numpy(end_BS),
        pairs_K3=torch.tensor(pairs, dtype=torch.long).reshape(-1, 3),
    )


def training_batches(
    rows: Sequence[Row], batch_size: int, negative_rate: float, generator: random.Random
) -> Iterator[list[Row]]:
    """One epoch: all rows with an answer, a sample of the others, shuffled, bucketed by length.

    Rows are sorted by length only within chunks of 16 batches, so that an epoch's
    order stays random.
    """
    kept = [r for r in rows if r.has_answer or generator.random() < negative_rate]
    generator.shuffle(kept)
    batches: list[list[Row]] = []
    for chunk in _slices(kept, 16 * batch_size):
        batches.extend(_slices(sorted(chunk, key=lambda row: len(row.ids)), batch_size))
    generator.shuffle(batches)
    yield from batches


def steps_per_epoch(rows: Sequence[Row], batch_size: int, negative_rate: float) -> int:
    """Expected optimiser steps of one epoch, at least 1."""
    answered = sum(row.has_answer for row in rows)
    expected = answered + negative_rate * (len(rows) - answered)
    return max(1, -(-round(expected) // batch_size))


def evaluation_batches(rows: Sequence[Row], pieces: int) -> Iterator[list[Row]]:
    """All rows, longest first (so that memory peaks at once), under a budget of padded pieces.

    Of one length a window's rows stay together: layers that see no prompt run once for them.
    """
    place: dict[tuple[str, int], int] = {}
    for row in rows:
        place.setdefault((row.window.note_id, row.window.index), len(place))

    def order(row: Row) -> tuple[int, int]:
        return -len(row.ids), place[row.window.note_id, row.window.index]

    batch: list[Row] = []
    for row in sorted(rows, key=order):
        if batch and (len(batch) + 1) * len(batch[0].ids) > pieces:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def prefetch(batches: Iterable[_Parts], device: torch.device) -> Iterator[_Parts]:
    """Batches on a device, each sent while the one before is worked on.

    On a CUDA device the next batch is collated, pinned and on its way before this one is handed out:
    the host does it while the device is still busy with steps that were launched before. The copy
    waits its turn among them; for some kilobytes of piece ids a stream of its own would win nothing.
    Elsewhere nothing is sent ahead, and on a CPU nothing is copied at all.

    Args:
        batches: tuples of what one step takes; inputs and targets in them are sent, the rest
            (rows, say) is handed through.
    """
    if device.type != "cuda":
        for batch in batches:
            yield _sent(batch, device, pin=False)
        return
    ahead: _Parts | None = None
    for batch in batches:
        sent = _sent(batch, device, pin=True)
        if ahead is not None:
            yield ahead
        ahead = sent
    if ahead is not None:
        yield ahead


def _sent(batch: _Parts, device: torch.device, *, pin: bool) -> _Parts:
    # Only from pinned memory a copy does not hold the host up.
    return cast(
        _Parts,
        tuple(
            (part.pin_memory() if pin else part).to(device)
            if isinstance(part, (Inputs, SpanTargets, TagTargets))
            else part
            for part in batch
        ),
    )


def _slices(rows: Sequence[Row], size: int) -> Iterator[list[Row]]:
    for begin in range(0, len(rows), size):
        yield list(rows[begin : begin + size])
