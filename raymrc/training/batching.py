"""windows x questions -> rows -> batches.

A row is what one forward pass sees of one window: special pieces, the question in
words if the strategy asks in words, and the window. Around a given mention stand pieces that mark
it. Batches are length-bucketed, so that little of a batch is padding.
"""

# B rows, S pieces, W pieces of the window, L labels, K candidate pairs

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch

from raymrc.corpora.note import Corpus, Note
from raymrc.corpora.splits import Folds, Split, choose_split
from raymrc.errors import BackboneError
from raymrc.model.inputs import Inputs, PairTargets, SpanTargets, TagTargets, Targets
from raymrc.model.prompts import SavedPrompt, Start
from raymrc.model.strategies import STRATEGIES, Strategy
from raymrc.reading.examples import build_examples, tag_targets
from raymrc.reading.questions import in_plain_words
from raymrc.reading.relations import (
    GIVEN_MARK,
    OTHER_MARK,
    TYPE_MARKS,
    Asked,
    Context,
    Mention,
    build_contexts,
    find_asked,
    gold_answers,
    mentions_of,
)
from raymrc.reading.windows import Pieces, Window, cut_windows, read_pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from raymrc.configuration import Configuration, FoldRun
    from raymrc.model.shapes import Shape
from raymrc.costs.workload import BUCKET_BATCHES

_Parts = TypeVar("_Parts", bound=tuple[object, ...])


@dataclass(frozen=True)
class StudyData:
    """What all fold-runs of a study share. Built once a process; rows are kept between them.

    Args:
        questions: label or name of a relation question -> question in words, used where a strategy asks
            in words, or a prompt starts from them.
        transfer: notes of other sites by name, which are only ever scored.
        test: held-out notes, which a final test scores, and nothing else.
        initial_prompt: what prompts start from, where they start from a trained one.
    """

    corpus: Corpus
    folds: Folds
    questions: Mapping[str, str]
    transfer: Mapping[str, Corpus] = field(default_factory=dict)
    test: Corpus | None = None
    initial_prompt: SavedPrompt | None = None
    _asked: dict[str, Asked] = field(default_factory=dict, repr=False, compare=False)
    _sites: dict[str | None, StudyData] = field(default_factory=dict, repr=False, compare=False)
    _pieces: dict[str, dict[str, Pieces]] = field(default_factory=dict, repr=False, compare=False)
    _windows: dict[tuple[object, ...], dict[str, list[Window]]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _rows: dict[tuple[object, ...], dict[str, list[Row]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __getstate__(self) -> dict[str, object]:
        # What was cached in one process is cheaper to build again than to send to another.
        names = ("corpus", "folds", "questions", "transfer", "test", "initial_prompt")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, object]) -> None:
        empty = ("_asked", "_sites", "_pieces", "_windows", "_rows")
        for name, value in {**state, **{name: {} for name in empty}}.items():
            object.__setattr__(self, name, value)

    def split(self, fold_run: FoldRun) -> Split:
        """Who trains, who validates and who is scored."""
        if fold_run.is_test:
            return Split(tuple(note.id for note in self.corpus.notes), (), ())
        cell = fold_run.configuration.cell
        return choose_split(self.folds, self.corpus.notes, fold_run.fold, cell.shots, cell.shots_of)

    def asked(self, task: str) -> Asked:
        """What a task asks of this corpus."""
        if task not in self._asked:
            self._asked[task] = find_asked(task, self.corpus)
        return self._asked[task]

    def start(self, task: str) -> Start:
        """What the soft prompts of a task may start from."""
        return Start(self.asked(task).names, self.questions, self.initial_prompt)

    def site(self, name: str | None, task: str) -> StudyData:
        """The notes of another site, or the held-out ones (None), asked what this one's are."""
        if name not in self._sites:
            corpus = self.test if name is None else self.transfer[name]
            assert corpus is not None, "a final test needs held-out notes"
            self._sites[name] = StudyData(corpus, self.folds, self.questions)
        self._sites[name]._asked[task] = self.asked(task)
        return self._sites[name]

    def pieces(self, tokenizer: PreTrainedTokenizerFast, source: str) -> dict[str, Pieces]:
        """Note id -> its pieces, for every note of the corpus. `source` names the tokenizer."""
        if source not in self._pieces:
            self._pieces[source] = {
                note.id: read_pieces(note, tokenizer) for note in self.corpus.notes
            }
        return self._pieces[source]

    def windows(
        self, tokenizer: PreTrainedTokenizerFast, source: str, window: int, overlap: int
    ) -> dict[str, list[Window]]:
        """Note id -> its windows, for every note of the corpus. `source` names the tokenizer."""
        key = (source, window, overlap)
        if key not in self._windows:
            self._windows[key] = {
                note_id: cut_windows(pieces, window, overlap)
                for note_id, pieces in self.pieces(tokenizer, source).items()
            }
        return self._windows[key]

    def rows(
        self, tokenizer: PreTrainedTokenizerFast, shape: Shape, configuration: Configuration
    ) -> dict[str, list[Row]]:
        """Note id -> its rows, for every note of the corpus: what a configuration learns from. Relations are
        asked of gold mentions.

        Raises:
            BackboneError: a question and a window together exceed the backbone's positions.
        """
        task = configuration.cell.task
        strategy = STRATEGIES[configuration.cell.strategy]
        source, size = configuration.cell.backbone.source, configuration.window
        # What is asked in vectors, or not at all, is the same rows whatever is trained.
        key = (
            task, source, size, configuration.overlap, configuration.context_sentences,
            configuration.relation_answers, strategy.asks == "words", strategy.answers,
        )  # fmt: skip
        if key not in self._rows:
            builder = self.builder(tokenizer, shape, configuration)
            by_note: dict[str, list[Row]] = {note.id: [] for note in self.corpus.notes}
            if builder.asked.labels:
                windows = self.windows(tokenizer, source, size, configuration.overlap)
                for note in self.corpus.notes:
                    by_note[note.id] += builder.rows([note], windows)
            if builder.asked.relations:
                pieces = self.pieces(tokenizer, source)
                for note in self.corpus.notes:
                    mentions = mentions_of(note.spans)
                    contexts = builder.contexts(note, pieces[note.id], mentions)
                    by_note[note.id] += builder.relation_rows(note, contexts)
            self._rows[key] = by_note
        return self._rows[key]

    def builder(
        self, tokenizer: PreTrainedTokenizerFast, shape: Shape, configuration: Configuration
    ) -> RowBuilder:
        """Makes the rows of a configuration.

        Raises:
            BackboneError: see `RowBuilder`.
        """
        cell = configuration.cell
        return RowBuilder(
            tokenizer, shape, self.asked(cell.task), self.questions, STRATEGIES[cell.strategy],
            configuration.window, configuration.context_sentences or 0,
            chooses=configuration.relation_answers != "spans",
            flat=configuration.overlapping_answers == "surest",
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One window under one question, or under all labels at once (`label` 0) for tagging, or with a pair of
    mentions in it (`label` 0).

    Args:
        ids, types: of all S pieces of the row.
        places: position in the row of each of the window's W pieces, ascending.
        spans: gold (first, last) pieces, relative to the window; for tagging, see `tags`.
        tags: (W, L) of 0/1/2, for tagging; None otherwise.
        context: whose `given` mention is marked, where a relation is asked for.
        other: the mention that is marked beside it, where pairs are told apart; its index in
            `context.others`.
        marks: positions of the two mentions' first marks, for a pair.
        kind: of the pair: 0 for no relation, else 1 + index of the relation question.
        choices: positions in the row where the mentions to choose from begin and end; None where answers may
            be anywhere in the window.
    """

    window: Window
    label: int
    ids: np.ndarray
    types: np.ndarray
    places: np.ndarray
    spans: tuple[tuple[int, int], ...] = ()
    tags: np.ndarray | None = None
    context: Context | None = None
    other: int | None = None
    marks: tuple[int, int] | None = None
    kind: int = 0
    choices: np.ndarray | None = None

    @property
    def has_answer(self) -> bool:
        if self.tags is not None:
            return bool(self.tags.any())
        return bool(self.spans) or self.kind > 0

    @property
    def is_asked(self) -> str:
        """What targets it has: "tags", "pairs" or "spans"."""
        return "tags" if self.tags is not None else "pairs" if self.marks is not None else "spans"

    @property
    def key(self) -> bytes:
        """What names its pieces, wherever they come from: two sites may have a note of one name."""
        return hashlib.blake2b(self.ids.tobytes(), digest_size=16).digest()


class RowBuilder:
    """Turns windows into rows for one backbone and one way of asking.

    Args:
        asked: the task's questions.
        strategy: what asks and what answers; tagging makes one row a window, all labels at once, and
            one a pair of mentions.
        window: pieces of a window, at most.
        context_sentences: on each side of a given mention's own.
        chooses: whether answers about a given mention are chosen among the others in its context, or
            are spans of it.
        flat: whether answers to one question about a label never share text; see `decode_spans`.

    Raises:
        BackboneError: a question and a window together exceed the backbone's positions.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        shape: Shape,
        asked: Asked,
        questions: Mapping[str, str],
        strategy: Strategy,
        window: int,
        context_sentences: int = 0,
        *,
        chooses: bool = True,
        flat: bool = False,
    ) -> None:
        self.asked = asked
        self.chooses = chooses
        self.flat = flat
        self.strategy = strategy
        self.window = window
        self.context_sentences = context_sentences
        in_words = strategy.asks == "words"
        self.cls, self.sep = _special_pieces(tokenizer)
        # RoBERTa puts two separators between a question and its text, and has one segment type.
        self.middle = [self.sep] * (2 if shape.kind == "roberta" else 1)
        self.window_type = 1 if in_words and shape.types > 1 else 0

        def pieces_of(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])

        self.questions: list[list[int]] = [
            pieces_of(questions[name]) if in_words else [] for name in asked.names
        ]
        self.marks: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
        labels = {label for q in asked.relations for label in (*q.given, *q.answers)}
        for mark, of_type in TYPE_MARKS.items() if asked.relations else ():
            sign = pieces_of(mark)
            for label in sorted(labels):
                typed = pieces_of(f"{of_type} {in_plain_words(label)}{of_type}")
                tells_types = strategy.answers == "tags"
                self.marks[mark, label] = (sign + typed if tells_types else sign, sign)
        longest = max(map(len, self.questions), default=0)
        specials = 2 + (len(self.middle) if in_words else 0)
        marks = max((len(a) + len(b) for a, b in self.marks.values()), default=0)
        specials += marks * (2 if strategy.answers == "tags" else 1)
        room = shape.max_pieces - specials - longest
        if window > room:
            raise BackboneError(
                f"a window of {window} pieces, a question of {longest} and {specials} special "
                f"pieces exceed the backbone's {shape.max_pieces} positions; "
                f"set window to {room} or less"
            )

    def rows(self, notes: Sequence[Note], windows: Mapping[str, list[Window]]) -> list[Row]:
        """Every window of every note under every label's question, in note order."""
        labels = self.asked.labels
        rows: list[Row] = []
        for note in notes:
            examples = build_examples([note], windows[note.id], labels)
            if self.strategy.answers == "spans":
                for e in examples:
                    asked = e.label if self.strategy.asks == "words" else None
                    # Asked in vectors, a window is the same pieces for every label: held once.
                    if asked is not None or not rows or rows[-1].window is not e.window:
                        ids, types, places, _ = self._pieces(e.window, asked)
                    rows.append(Row(e.window, e.label, ids, types, places, tuple(e.spans)))
                continue
            by_window: dict[int, dict[int, Sequence[tuple[int, int]]]] = {}
            for e in examples:
                by_window.setdefault(e.window.index, {})[e.label] = e.spans
            for window in windows[note.id]:
                tags = tag_targets(by_window[window.index], len(window.piece_ids), len(labels))
                ids, types, places, _ = self._pieces(window)
                rows.append(Row(window, 0, ids, types, places, (), tags))
        return rows

    def contexts(self, note: Note, pieces: Pieces, mentions: Sequence[Mention]) -> list[Context]:
        """What is read around the mentions of a note that are asked for relations."""
        return build_contexts(
            note, pieces, mentions, self.asked.relations, self.context_sentences, self.window
        )

    def relation_rows(self, note: Note, contexts: Iterable[Context]) -> list[Row]:
        """Every given mention under every question that its label is asked (where answers are chosen: that
        anything in its context may answer), or with every such mention, where pairs are told apart.

        Args:
            note: its gold relations are the answers; of a mention that nobody annotated there are none.
        """
        gold = gold_answers(note, self.asked.relations)
        make = self._question_rows if self.strategy.answers == "spans" else self._pair_rows
        return [row for context in contexts for row in make(context, gold)]

    def _question_rows(self, context: Context, gold: Gold) -> Iterator[Row]:
        marks = [(*context.pieces, *self.marks[GIVEN_MARK, context.given.label])]
        pieces_of = dict(context.others)
        asked_before: tuple[Any, ...] = ()
        for index, question in enumerate(self.asked.relations):
            if context.given.label not in question.given:
                continue
            number = len(self.asked.labels) + index
            choices = [at for other, at in context.others if other.label in question.answers]
            if self.chooses and not choices:
                continue
            if self.strategy.asks == "words" or not asked_before:
                asked = number if self.strategy.asks == "words" else None
                asked_before = self._pieces(context.window, asked, marks)
            ids, types, places, _ = asked_before
            answers = gold.get((context.given, index), ())
            spans = {pieces_of[answer] for answer in answers if answer in pieces_of}
            yield Row(
                context.window, number, ids, types, places, tuple(sorted(spans)), context=context,
                choices=np.unique(places[np.array(choices)]) if self.chooses else None,
            )  # fmt: skip

    def _pair_rows(self, context: Context, gold: Gold) -> Iterator[Row]:
        given = context.given
        for place, (other, pieces) in enumerate(context.others):
            marks = [
                (*context.pieces, *self.marks[GIVEN_MARK, given.label]),
                (*pieces, *self.marks[OTHER_MARK, other.label]),
            ]
            ids, types, places, (first, second) = self._pieces(context.window, None, marks)
            kinds = (
                1 + index
                for index in range(len(self.asked.relations))
                if other in gold.get((given, index), ())
            )
            yield Row(
                context.window, 0, ids, types, places,
                context=context, other=place, marks=(first, second), kind=next(kinds, 0),
            )  # fmt: skip

    def _pieces(
        self,
        window: Window,
        asked: int | None = None,
        marks: Sequence[tuple[int, int, list[int], list[int]]] = (),
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
        """Ids and types of a row, where its window's pieces are, and where marks begin.

        Args:
            asked: with the question of this index before the window.
            marks: (first, last piece of the window, what stands before, what behind).
        """
        head = [self.cls]
        if asked is not None:
            head += self.questions[asked] + self.middle
        ids = np.array([*head, *window.piece_ids, self.sep], dtype=np.int64)
        places = np.arange(len(head), len(head) + len(window.piece_ids))
        begins = [0] * len(marks)
        if marks:
            # At one place marks that close stand before those that open, and the inner ones inside.
            inserted = sorted(
                [(last + 1, 0, -first, number) for number, (first, last, *_) in enumerate(marks)]
                + [(first, 1, -last, number) for number, (first, last, *_) in enumerate(marks)]
            )
            parts, done = [ids[: len(head)]], 0
            for at, opens, _, number in inserted:
                parts.append(ids[len(head) + done : len(head) + at])
                if opens:
                    begins[number] = sum(map(len, parts))
                parts.append(np.array(marks[number][3 - opens], dtype=np.int64))
                places[at:] += len(parts[-1])
                done = at
            parts.append(ids[len(head) + done :])
            ids = np.concatenate(parts)
        types = np.zeros_like(ids)
        types[len(head) :] = self.window_type
        return ids, types, places, begins


Gold = Mapping[tuple[Mention, int], Sequence[Mention]]


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
        window_BS[b, row.places if row.choices is None else row.choices] = True
        share.append(first.setdefault((row.ids.tobytes(), row.types.tobytes()), b))
    return Inputs(
        input_ids_BS=torch.from_numpy(ids_BS),
        type_ids_BS=torch.from_numpy(types_BS),
        mask_BS=torch.from_numpy(mask_BS),
        window_BS=torch.from_numpy(window_BS),
        label_B=torch.tensor([row.label for row in rows]),
        lengths=tuple(len(row.ids) for row in rows),
        share_B=torch.tensor(share) if len(first) < B else None,
        marks_B2=None if rows[0].marks is None else torch.tensor([row.marks for row in rows]),
    )


def collate_targets(rows: Sequence[Row], inputs: Inputs) -> Targets:
    """The gold answers of `rows`, which are all asked alike, at the positions of `inputs`."""
    B, S = inputs.input_ids_BS.shape
    if rows[0].marks is not None:
        return PairTargets(torch.tensor([row.kind for row in rows]))
    if rows[0].tags is not None:
        tags_BSL = np.zeros((B, S, rows[0].tags.shape[1]), dtype=np.int64)
        for b, row in enumerate(rows):
            assert row.tags is not None
            tags_BSL[b, row.places] = row.tags
        return TagTargets(tags_BSL=torch.from_numpy(tags_BSL))
    start_BS = np.zeros((B, S), dtype=np.float32)
    end_BS = np.zeros((B, S), dtype=np.float32)
    pairs: list[tuple[int, int, int]] = []
    for b, row in enumerate(rows):
        for first, last in row.spans:
            first, last = int(row.places[first]), int(row.places[last])
            start_BS[b, first] = end_BS[b, last] = 1.0
            pairs.append((b, first, last))
    return SpanTargets(
        start_BS=torch.from_numpy(start_BS),
        end_BS=torch.from_numpy(end_BS),
        pairs_K3=torch.tensor(pairs, dtype=torch.long).reshape(-1, 3),
    )


def training_batches(
    rows: Sequence[Row], batch_size: int, negative_rate: float, generator: random.Random
) -> Iterator[list[Row]]:
    """One epoch: all rows with an answer, a sample of the others, shuffled, bucketed by length.

    Rows are sorted by length only within chunks of `BUCKET_BATCHES`, so that an epoch's
    order stays random. A batch's rows are asked alike.
    """
    kept = [r for r in rows if r.has_answer or generator.random() < negative_rate]
    generator.shuffle(kept)
    batches: list[list[Row]] = []
    for alike in _asked_alike(kept):
        for chunk in _slices(alike, BUCKET_BATCHES * batch_size):
            batches.extend(_slices(sorted(chunk, key=lambda row: len(row.ids)), batch_size))
    generator.shuffle(batches)
    yield from batches


def steps_per_epoch(rows: Sequence[Row], batch_size: int, negative_rate: float) -> int:
    """Expected optimiser steps of one epoch, at least 1."""
    steps = 0
    for alike in _asked_alike(rows):
        answered = sum(row.has_answer for row in alike)
        expected = answered + negative_rate * (len(alike) - answered)
        steps += max(1, -(-round(expected) // batch_size))
    return max(1, steps)


def _asked_alike(rows: Iterable[Row]) -> Iterable[list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.is_asked, []).append(row)
    return groups.values()


def evaluation_batches(rows: Sequence[Row], pieces: int) -> Iterator[list[Row]]:
    """All rows, longest first (so that memory peaks at once), under a budget of padded pieces.

    Of one length a window's rows stay together: layers that see no prompt run once for them.

    Args:
        rows: all asked alike.
    """
    keys = [row.key for row in rows]
    place: dict[bytes, int] = {}
    for key in keys:
        place.setdefault(key, len(place))
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].ids), place[keys[i]]))

    batch: list[Row] = []
    for row in (rows[i] for i in order):
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
            if isinstance(part, (Inputs, SpanTargets, TagTargets, PairTargets))
            else part
            for part in batch
        ),
    )


def _slices(rows: Sequence[Row], size: int) -> Iterator[list[Row]]:
    for begin in range(0, len(rows), size):
        yield list(rows[begin : begin + size])
