"""What a frozen backbone makes of a window below a late prompt: computed once, and kept.

    keys, rows -> windows not kept -> one pass below the first prompt -> store -> inputs with `entry_BSD`

Layers below the first prompt see no label, no lane and no fold, so what they give depends on the window
alone: all lanes that enter one frozen backbone at one layer can share it.
"""

# B rows, S pieces, D hidden, X pieces of several windows

from __future__ import annotations

import mmap
import os
import random
import tempfile
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raymrc.errors import TrainingError
from raymrc.model.encoder import Encoder
from raymrc.model.inputs import Inputs

BUILD_PIECES = 8192
"""Padded pieces of one pass below the prompt; it has no gradients."""

ADMITTED = 0.125
"""Share of new windows that a full store takes in. Epochs scan: they come back to a window only after
all others. Of a scan, LRU keeps nothing that is asked again, and taking every new window in keeps little
(half a corpus fits: 20 % hits, at one in eight 47 %); taking none would never let go of a corpus or
window size that the study has left behind."""


class Activations:
    """The hidden states that enter `first_layer`, for each window that has been asked for.

    A window is kept without padding, as rows of one table, which need not be neighbours: so a window of
    any length fits wherever there is room. A full table makes room by dropping windows at random.

    Results are those of the backbone itself within the tolerance of its dtype, whatever is kept: what was
    just computed is rounded to `dtype` as what was kept is.

    Args:
        encoder: frozen; its weights do not change meanwhile.
        first_layer: where the prompts enter, 1 to the last layer.
        max_bytes: of the table. Memory is taken as it fills up, but on a GPU at once.
        dtype: float32, or bfloat16 for twice the windows.
        folder: keep the table in a file there instead, mapped into memory. It comes from private
            notes, so its name is gone before anything is in it, and it is gone with this process.
        device: of the table without a folder; None: the encoder's. On the CPU beside an encoder on a GPU it
            takes the host's memory instead.
        seed: of what is dropped.
        build_pieces: padded pieces of one pass, at most; a window may be longer by itself.

    Attributes:
        hits, misses: different windows of a batch that were kept, and that were not.
        evictions: windows dropped to make room.

    Raises:
        TrainingError: the folder cannot take `max_bytes`.
    """

    def __init__(
        self,
        encoder: Encoder,
        first_layer: int,
        max_bytes: int,
        *,
        dtype: torch.dtype = torch.float32,
        folder: Path | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
        build_pieces: int = BUILD_PIECES,
    ) -> None:
        assert not encoder.is_trained, "only what a frozen backbone computes stays true"
        assert 0 < first_layer < encoder.shape.num_layers
        self.encoder = encoder
        self.first_layer = first_layer
        self.build_pieces = build_pieces
        self.hits = self.misses = self.evictions = 0
        self._draw = random.Random(seed)
        hidden = encoder.shape.hidden
        self._piece_bytes = hidden * dtype.itemsize
        # Row 0 is a piece of zeros, which padding reads.
        num_rows = max(1, max_bytes // self._piece_bytes)
        if folder is not None:
            self._table_XD = _map_file(folder, num_rows, hidden, dtype)
        else:
            # Memory that is not written to is not taken, except on a GPU.
            self._table_XD = torch.empty(
                num_rows, hidden, dtype=dtype, device=self._device if device is None else device
            )
        self._table_XD[0] = 0
        self._rows: dict[Hashable, np.ndarray] = {}
        self._keys: list[Hashable] = []  # of `_rows`, to draw from
        self._place: dict[Hashable, int] = {}  # in `_keys`
        self._untouched = 1
        self._left: list[np.ndarray] = []  # rows of windows that were dropped
        self._num_free = num_rows - 1

    @property
    def bytes(self) -> int:
        """That kept windows take, now."""
        return (len(self._table_XD) - 1 - self._num_free) * self._piece_bytes

    def __len__(self) -> int:
        """Windows kept."""
        return len(self._rows)

    @torch.no_grad()
    def fill(self, keys: Sequence[Hashable], inputs: Inputs) -> Inputs:
        """The batch on the encoder's device, with what enters `first_layer`.

        Args:
            keys: what names each row's pieces, and no others. Rows of one window have one key, whatever
                their label.
            inputs: without a question in words; on the CPU, where its lengths are read without waiting
                for a device.
        """
        B, S = inputs.mask_BS.shape
        length_B = inputs.mask_BS.sum(1).tolist()
        first: dict[Hashable, int] = {}
        for row, key in enumerate(keys):
            first.setdefault(key, row)
        missing = {key: row for key, row in first.items() if key not in self._rows}
        self.hits += len(first) - len(missing)
        self.misses += len(missing)

        fresh_XD, fresh = self._compute(inputs, missing, length_B)
        kept_BS = np.zeros((B, S), dtype=np.int64)
        targets, sources = [], []
        for row, (key, length) in enumerate(zip(keys, length_B, strict=True)):
            pieces = fresh[key] if key in missing else self._rows[key]
            assert len(pieces) == length, "one key names windows that differ"
            if key in missing:
                targets.append(row * S + np.arange(length))
                sources.append(pieces)
            else:
                kept_BS[row, :length] = pieces
        entry_XD = self._read(kept_BS.ravel())
        if missing:
            taken_XD = fresh_XD.index_select(0, self._index(sources, self._device))
            entry_XD.index_copy_(0, self._index(targets, self._device), taken_XD.to(entry_XD.dtype))
            # Last: what makes room for these may be what this batch has just read.
            self._keep(fresh_XD, fresh)
        return replace(
            inputs.to(self._device),
            entry_BSD=entry_XD.view(B, S, -1),
            entry_layer=self.first_layer,
        )

    @property
    def _device(self) -> torch.device:
        return self.encoder.word.weight.device

    def _compute(
        self, inputs: Inputs, missing: dict[Hashable, int], length_B: Sequence[int]
    ) -> tuple[Tensor, dict[Hashable, np.ndarray]]:
        """Pieces of the missing windows one after the other, (X, D), and where each window's are."""
        parts, where, begin = [], {}, 0
        for keys in self._passes(missing, length_B):
            lengths = [length_B[missing[key]] for key in keys]
            width = max(lengths)
            rows = inputs.take(torch.tensor([missing[key] for key in keys]))
            hidden_BSD = self.encoder.below(
                Inputs(
                    rows.input_ids_BS[:, :width],
                    rows.type_ids_BS[:, :width],
                    rows.mask_BS[:, :width],
                    rows.window_BS[:, :width],
                    rows.label_B,
                    is_padded=min(lengths) < width,
                ).to(self._device),
                self.first_layer,
            )
            pieces = [row * width + np.arange(length) for row, length in enumerate(lengths)]
            flat_XD = hidden_BSD.flatten(0, 1).index_select(0, self._index(pieces, self._device))
            parts.append(flat_XD.to(self._table_XD.dtype))
            for key, length in zip(keys, lengths, strict=True):
                where[key] = np.arange(begin, begin + length)
                begin += length
        return torch.cat(parts) if parts else self._table_XD[:0], where

    def _passes(
        self, missing: dict[Hashable, int], length_B: Sequence[int]
    ) -> Iterator[list[Hashable]]:
        """Missing windows, like lengths together, under the budget of padded pieces."""
        chosen: list[Hashable] = []
        width = 0
        for key in sorted(missing, key=lambda key: -length_B[missing[key]]):
            if chosen and (len(chosen) + 1) * width > self.build_pieces:
                yield chosen
                chosen = []
            if not chosen:
                width = length_B[missing[key]]
            chosen.append(key)
        if chosen:
            yield chosen

    def _read(self, row_X: np.ndarray) -> Tensor:
        """Rows of the table, where and as the encoder takes them."""
        device, dtype = self._device, self.encoder.word.weight.dtype
        table_XD = self._table_XD
        index_X = torch.from_numpy(row_X)
        if table_XD.device.type != "cpu" or device.type != "cuda":
            return table_XD.index_select(0, index_X.to(table_XD.device)).to(device, dtype)
        # From page-locked memory the copy goes on behind our back.
        size = (len(row_X), table_XD.shape[1])
        host_XD = torch.empty(size, dtype=table_XD.dtype, pin_memory=True)
        torch.index_select(table_XD, 0, index_X, out=host_XD)
        return host_XD.to(device, non_blocking=True).to(dtype)

    def _keep(self, fresh_XD: Tensor, fresh: dict[Hashable, np.ndarray]) -> None:
        for key, source in fresh.items():
            length = len(source)
            if length > len(self._table_XD) - 1:
                continue  # larger than the table: computed each time
            if length > self._num_free and self._draw.random() >= ADMITTED:
                continue
            while length > self._num_free:
                self._drop(self._keys[self._draw.randrange(len(self._keys))])
            self._rows[key] = self._take(length)
            self._place[key] = len(self._keys)
            self._keys.append(key)
        # Written at the end: of two new windows the second may have dropped the first, and has its rows.
        kept = [key for key in fresh if key in self._rows]
        if kept:
            table_XD = self._table_XD
            taken_XD = fresh_XD.index_select(
                0, self._index([fresh[key] for key in kept], fresh_XD.device)
            )
            rows_X = self._index([self._rows[key] for key in kept], table_XD.device)
            table_XD.index_copy_(0, rows_X, taken_XD.to(table_XD.device))

    def _drop(self, key: Hashable) -> None:
        rows = self._rows.pop(key)
        place, last = self._place.pop(key), self._keys.pop()
        if last != key:
            self._keys[place] = last
            self._place[last] = place
        self._left.append(rows)
        self._num_free += len(rows)
        self.evictions += 1

    def _take(self, length: int) -> np.ndarray:
        """Free rows: those of dropped windows first, so that memory not yet taken stays so."""
        self._num_free -= length
        parts = []
        while length and self._left:
            rows = self._left.pop()
            parts.append(rows[:length])
            if len(rows) > length:
                self._left.append(rows[length:])
            length -= len(parts[-1])
        if length:
            parts.append(np.arange(self._untouched, self._untouched + length))
            self._untouched += length
        return np.concatenate(parts)

    @staticmethod
    def _index(parts: Sequence[np.ndarray], device: torch.device) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(device)


def _map_file(folder: Path, num_rows: int, hidden: int, dtype: torch.dtype) -> Tensor:
    """A table (num_rows, hidden) in a file without a name."""
    size = num_rows * hidden * dtype.itemsize
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            # Claimed now: a disk that fills up under a mapped file kills the process without a word.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            mapped = mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise TrainingError(
            f"{folder} cannot take {size:,} bytes of activations ({error.strerror}); "
            "choose another folder or keep less"
        ) from None
    return torch.frombuffer(mapped, dtype=dtype).view(num_rows, hidden)
