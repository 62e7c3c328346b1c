"""What all fold-runs of a study share, and how their rows become tensors.

notes -> pieces -> windows -> rows -> batches on the device
"""

# B rows, S pieces of a row, L labels, K candidate pairs

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch

from raymrc.corpora.note import Corpus
from raymrc.corpora.splits import Folds, Split, choose_split
from raymrc.model.heads import IGNORED
from raymrc.model.inputs import Inputs, PairTargets, SpanTargets, TagTargets, Targets
from raymrc.model.prompts import SavedPrompt, Start
from raymrc.planning.rows import row_form
from raymrc.reading.relations import Asked, find_asked
from raymrc.reading.rows import Row, RowBuilder
from raymrc.reading.targets import NO_TAG
from raymrc.reading.windows import Pieces, Window, cut_windows, read_pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from raymrc.configuration import Configuration, FoldRun
    from raymrc.model.shapes import Shape

_Parts = TypeVar("_Parts", bound=tuple[object, ...])
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class StudyData:
    """What all fold-runs of a study share: built once per process, with caches of pieces, windows and rows.

    Args:
        questions: label or name of a relation question -> question in words, read where a strategy asks in
            words or a prompt starts from them.
        transfer: notes of other sites by name, which are only scored.
        test: held-out notes, which only a final test scores.
        initial_prompt: the trained prompt that prompts start from, if any.
    """

    corpus: Corpus
    folds: Folds
    questions: Mapping[str, str]
    transfer: Mapping[str, Corpus] = field(default_factory=dict)
    test: Corpus | None = None
    initial_prompt: SavedPrompt | None = None
    _cache: dict[tuple[object, ...], Any] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, object]:
        # The cache is cheaper to build again than to send to another process.
        return self.__dict__ | {"_cache": {}}

    def _once(self, key: tuple[object, ...], build: Callable[[], _Value]) -> _Value:
        if key not in self._cache:
            self._cache[key] = build()
        value: _Value = self._cache[key]
        return value

    def split(self, fold_run: FoldRun) -> Split:
        """The notes that train, validate and are scored."""
        if fold_run.is_test:
            return Split(tuple(note.id for note in self.corpus.notes), (), ())
        cell = fold_run.configuration.cell
        return choose_split(self.folds, self.corpus.notes, fold_run.fold, cell.shots, cell.shots_of)

    def asked(self, task: str) -> Asked:
        """The questions of a task about this corpus."""
        return self._once(("asked", task), lambda: find_asked(task, self.corpus))

    def start(self, task: str) -> Start:
        """What the soft prompts of a task may start from."""
        return Start(self.asked(task).names, self.questions, self.initial_prompt)

    def site(self, name: str | None, task: str) -> StudyData:
        """Another site's notes, or the held-out ones (None), with the questions of this corpus."""
        corpus = self.test if name is None else self.transfer[name]
        assert corpus is not None, "a final test needs held-out notes"
        site = self._once(("site", name), lambda: StudyData(corpus, self.folds, self.questions))
        site._cache["asked", task] = self.asked(task)
        return site

    def pieces(self, tokenizer: PreTrainedTokenizerFast, source: str) -> dict[str, Pieces]:
        """Note id -> its pieces. `source` names the tokenizer."""
        return self._once(
            ("pieces", source),
            lambda: {note.id: read_pieces(note, tokenizer) for note in self.corpus.notes},
        )

    def windows(
        self, tokenizer: PreTrainedTokenizerFast, source: str, window: int, overlap: int
    ) -> dict[str, list[Window]]:
        """Note id -> its windows. `source` names the tokenizer."""
        return self._once(
            ("windows", source, window, overlap),
            lambda: {
                note_id: cut_windows(pieces, window, overlap)
                for note_id, pieces in self.pieces(tokenizer, source).items()
            },
        )

    def rows(
        self, tokenizer: PreTrainedTokenizerFast, shape: Shape, configuration: Configuration
    ) -> dict[str, list[Row]]:
        """Note id -> its rows, from which a configuration learns. Relations are asked of gold mentions.

        Raises:
            BackboneError: a question and a window together exceed the backbone's positions.
        """
        builder = self.builder(tokenizer, shape, configuration)
        source, form = configuration.cell.backbone.source, builder.form

        def build() -> dict[str, list[Row]]:
            pieces = self.pieces(tokenizer, source)
            windows = self.windows(tokenizer, source, form.window, form.overlap)
            return {
                note.id: builder.gold_rows(note, pieces[note.id], windows[note.id])
                for note in self.corpus.notes
            }

        return self._once(("rows", configuration.cell.task, source, form), build)

    def builder(
        self, tokenizer: PreTrainedTokenizerFast, shape: Shape, configuration: Configuration
    ) -> RowBuilder:
        """Builds the rows of a configuration.

        Raises:
            BackboneError: a question and a window together exceed the backbone's positions.
        """
        asked = self.asked(configuration.cell.task)
        builder = RowBuilder(tokenizer, row_form(configuration, shape), asked, self.questions)
        builder.check_fits(shape.max_pieces)
        return builder


def collate(rows: Sequence[Row], pad: int) -> Inputs:
    """Rows of like length as one padded batch. Shapes: (B, S), label (B,).

    A window that is asked several questions as vectors is the same row each time: `share_B` says so.
    """
    B, S = len(rows), max(row.length for row in rows)
    ids_BS = np.full((B, S), pad, dtype=np.int64)
    types_BS = np.zeros((B, S), dtype=np.int64)
    mask_BS = np.zeros((B, S), dtype=bool)
    window_BS = np.zeros((B, S), dtype=bool)
    first: dict[tuple[bytes, bytes], int] = {}
    share = []
    for b, row in enumerate(rows):
        ids, types = row.pieces.ids, row.pieces.types
        n = row.length
        ids_BS[b, :n], types_BS[b, :n], mask_BS[b, :n] = ids, types, True
        window_BS[b, row.pieces.places if row.choices is None else row.choices] = True
        share.append(first.setdefault((ids.tobytes(), types.tobytes()), b))
    is_pairs = rows[0].target_kind == "pairs"
    return Inputs(
        input_ids_BS=torch.from_numpy(ids_BS),
        type_ids_BS=torch.from_numpy(types_BS),
        mask_BS=torch.from_numpy(mask_BS),
        window_BS=torch.from_numpy(window_BS),
        label_B=torch.tensor([row.label for row in rows]),
        lengths=tuple(row.length for row in rows),
        share_B=torch.tensor(share) if len(first) < B else None,
        marks_B2=torch.tensor([row.pieces.mark_starts for row in rows]) if is_pairs else None,
    )


def collate_targets(rows: Sequence[Row], inputs: Inputs) -> Targets:
    """The gold answers of `rows`, all of one kind, at the positions of `inputs`."""
    B, S = inputs.input_ids_BS.shape
    if rows[0].target_kind == "pairs":
        return PairTargets(torch.tensor([row.kind for row in rows]))
    if rows[0].target_kind == "tags":
        tags_BSL = np.zeros((B, S, rows[0].tags.shape[1]), dtype=np.int64)
        for b, row in enumerate(rows):
            tags_BSL[b, row.pieces.places] = row.tags
        tags_BSL[tags_BSL == NO_TAG] = IGNORED
        return TagTargets(tags_BSL=torch.from_numpy(tags_BSL))
    start_BS = np.zeros((B, S), dtype=np.float32)
    end_BS = np.zeros((B, S), dtype=np.float32)
    pairs: list[tuple[int, int, int]] = []
    for b, row in enumerate(rows):
        for first, last in row.spans:
            first, last = int(row.pieces.places[first]), int(row.pieces.places[last])
            start_BS[b, first] = end_BS[b, last] = 1.0
            pairs.append((b, first, last))
    return SpanTargets(
        start_BS=torch.from_numpy(start_BS),
        end_BS=torch.from_numpy(end_BS),
        pairs_K3=torch.tensor(pairs, dtype=torch.long).reshape(-1, 3),
    )


def share_out(
    sizes: Sequence[Sequence[int]], pieces: int, slack: float = math.inf
) -> list[list[int]]:
    """Indices of the parts of each pass: like lengths together, under a budget of padded pieces.

    Args:
        sizes: (rows, pieces of the longest row) of each part. A part stays whole, because a lane's loss is a
            mean over all of it.
        pieces: padded pieces of a pass, at most; a part may be larger by itself.
        slack: pieces of padding, over all its rows, that a part may get by joining a wider one.
    """
    shares: list[list[int]] = []
    rows = widest = 0
    for place in sorted(range(len(sizes)), key=lambda i: -sizes[i][1]):
        more, width = sizes[place]
        is_full = (rows + more) * widest > pieces
        if not shares or is_full or more * (widest - width) > slack:
            shares.append([])
            rows, widest = 0, width
        shares[-1].append(place)
        rows += more
    return shares


def prefetch(batches: Iterable[_Parts], device: torch.device) -> Iterator[_Parts]:
    """Batches on a device, each sent while the one before is worked on.

    For a CUDA device the next batch is collated, pinned and queued before this one is handed out, while the
    device is still busy with earlier steps. The copy shares their stream: for some kilobytes of piece ids a
    second stream would gain nothing. On a CPU nothing is sent ahead or copied.

    Args:
        batches: tuples of what one step takes; inputs and targets in them are sent, other parts (rows) are
            handed through.
    """
    is_cuda = device.type == "cuda"
    sent = (_send(batch, device, pin=is_cuda) for batch in batches)
    ahead = list(islice(sent, 1 if is_cuda else 0))
    for batch in sent:
        ahead.append(batch)
        yield ahead.pop(0)
    yield from ahead


def _send(batch: _Parts, device: torch.device, *, pin: bool) -> _Parts:
    # Only copies from pinned memory do not block the host.
    parts = (
        (part.pin_memory() if pin else part).to(device)
        if isinstance(part, (Inputs, SpanTargets, TagTargets, PairTargets))
        else part
        for part in batch
    )
    return cast(_Parts, tuple(parts))
