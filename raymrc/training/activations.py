"""Keeps the hidden states that a frozen backbone computes of each window below a late prompt.

    keys, rows -> windows not kept -> one pass below the first prompt -> store -> inputs with `entry_BSD`

Layers below the first prompt see no label, lane or fold, so their states depend on the window alone: all
lanes whose prompts enter one frozen backbone at one layer share them.
"""

# B rows, S pieces, D hidden, X pieces of several windows

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from raymrc.model.encoder import Encoder
from raymrc.model.inputs import Inputs
from raymrc.training.batching import share_out

BUILD_PIECES = 8192
"""Padded pieces of one pass below the prompt, which has no gradients."""

ADMITTED_SHARE = 0.125
"""Share of new windows that a full store admits. Epochs scan: they return to a window only after all others.
LRU would then keep no window until its next use, and admitting every new window keeps few (where half a
corpus fits: 20 % hits, against 47 % at one in eight). Admitting none would keep a corpus or window size that
the study no longer uses."""


class Activations:
    """The hidden states that enter `first_layer`, for the windows that have been asked for.

    A window is stored without padding, as rows of one table that need not be neighbours, so a window of any
    length fits wherever there is room. A full table makes room by dropping windows at random.

    Results equal the backbone's own within the tolerance of its dtype, whatever is stored.

    Args:
        encoder: frozen; its weights never change.
        first_layer: where the prompts enter, 1 to the last layer.
        max_bytes: of the table. A CPU takes the memory as the table fills, a GPU at once.
        seed: of the draw of windows to drop.
        build_pieces: padded pieces of one pass, at most; a window may be longer by itself.

    Attributes:
        hits, misses: different windows of each batch that were stored, and that were not.
        evictions: windows dropped to make room.
    """

    def __init__(
        self,
        encoder: Encoder,
        first_layer: int,
        max_bytes: int,
        *,
        seed: int = 0,
        build_pieces: int = BUILD_PIECES,
    ) -> None:
        assert not encoder.is_trained, "only states of a frozen backbone can be kept"
        assert 0 < first_layer < encoder.shape.num_layers
        self.encoder = encoder
        self.first_layer = first_layer
        self.build_pieces = build_pieces
        self.hits = self.misses = self.evictions = 0
        self._draw = random.Random(seed)
        hidden = encoder.shape.hidden
        self._piece_bytes = hidden * torch.float32.itemsize
        # Row 0 holds zeros, which padding reads.
        num_rows = max(1, max_bytes // self._piece_bytes)
        # Untouched memory is not taken, except on a GPU.
        self._table_XD = torch.empty(num_rows, hidden, device=self._device)
        self._table_XD[0] = 0
        self._rows: dict[Hashable, np.ndarray] = {}
        self._keys: list[Hashable] = []  # of `_rows`, to draw from
        self._place: dict[Hashable, int] = {}  # in `_keys`
        self._untouched = 1
        self._free: list[np.ndarray] = []  # rows of dropped windows
        self._num_free = num_rows - 1

    @property
    def bytes(self) -> int:
        """Memory that stored windows take now."""
        return (len(self._table_XD) - 1 - self._num_free) * self._piece_bytes

    def __len__(self) -> int:
        """Windows stored."""
        return len(self._rows)

    @torch.no_grad()
    def fill(self, keys: Sequence[Hashable], inputs: Inputs) -> Inputs:
        """The batch on the encoder's device, with the states that enter `first_layer`.

        Args:
            keys: one per row, equal for rows of equal pieces alone, whatever their label.
            inputs: without a question in words; on the CPU, where lengths are read without waiting for a
                device.
        """
        B, S = inputs.mask_BS.shape
        first: dict[Hashable, int] = {}
        for row, key in enumerate(keys):
            first.setdefault(key, row)
        missing = {key: row for key, row in first.items() if key not in self._rows}
        self.hits += len(first) - len(missing)
        self.misses += len(missing)

        fresh_XD, fresh = self._compute(inputs, missing)
        kept_BS = np.zeros((B, S), dtype=np.int64)
        targets, sources = [], []
        for row, (key, length) in enumerate(zip(keys, inputs.lengths, strict=True)):
            pieces = fresh[key] if key in missing else self._rows[key]
            assert len(pieces) == length, "one key names windows that differ"
            if key in missing:
                targets.append(row * S + np.arange(length))
                sources.append(pieces)
            else:
                kept_BS[row, :length] = pieces
        entry_XD = self._table_XD.index_select(0, self._index([kept_BS.ravel()]))
        entry_XD = entry_XD.to(self.encoder.word.weight.dtype)
        if missing:
            taken_XD = fresh_XD.index_select(0, self._index(sources))
            entry_XD.index_copy_(0, self._index(targets), taken_XD.to(entry_XD.dtype))
            # Last: storing these may drop windows that this batch has just read.
            self._keep(fresh_XD, fresh)
        return replace(
            inputs.to(self._device), entry_BSD=entry_XD.view(B, S, -1), entry_layer=self.first_layer
        )

    @property
    def _device(self) -> torch.device:
        return self.encoder.word.weight.device

    def _compute(
        self, inputs: Inputs, missing: dict[Hashable, int]
    ) -> tuple[Tensor, dict[Hashable, np.ndarray]]:
        """States of the missing windows in one table, (X, D), and the rows of each window."""
        parts, where, begin = [], {}, 0
        wanted = [(key, row, inputs.lengths[row]) for key, row in missing.items()]
        for share in share_out([(1, length) for *_, length in wanted], self.build_pieces):
            keys, chosen, lengths = zip(*(wanted[i] for i in share), strict=True)
            width = max(lengths)
            rows = inputs.take(torch.tensor(chosen), width)
            hidden_BSD = self.encoder.below(rows.to(self._device), self.first_layer)
            pieces = [row * width + np.arange(length) for row, length in enumerate(lengths)]
            flat_XD = hidden_BSD.flatten(0, 1).index_select(0, self._index(pieces))
            parts.append(flat_XD.to(self._table_XD.dtype))
            for key, length in zip(keys, lengths, strict=True):
                where[key] = np.arange(begin, begin + length)
                begin += length
        return torch.cat(parts) if parts else self._table_XD[:0], where

    def _keep(self, fresh_XD: Tensor, fresh: dict[Hashable, np.ndarray]) -> None:
        for key, source in fresh.items():
            length = len(source)
            if length > len(self._table_XD) - 1:
                continue  # larger than the table: computed every time
            if length > self._num_free and self._draw.random() >= ADMITTED_SHARE:
                continue
            while length > self._num_free:
                self._drop(self._keys[self._draw.randrange(len(self._keys))])
            self._rows[key] = self._take(length)
            self._place[key] = len(self._keys)
            self._keys.append(key)
        # Written at the end: a new window may have dropped another new one and taken its rows.
        kept = [key for key in fresh if key in self._rows]
        if kept:
            taken_XD = fresh_XD.index_select(0, self._index([fresh[key] for key in kept]))
            self._table_XD.index_copy_(0, self._index([self._rows[key] for key in kept]), taken_XD)

    def _drop(self, key: Hashable) -> None:
        rows = self._rows.pop(key)
        place, last = self._place.pop(key), self._keys.pop()
        if last != key:
            self._keys[place] = last
            self._place[last] = place
        self._free.append(rows)
        self._num_free += len(rows)
        self.evictions += 1

    def _take(self, length: int) -> np.ndarray:
        """Free rows: those of dropped windows first, so that untouched memory stays untouched."""
        self._num_free -= length
        parts = []
        while length and self._free:
            rows = self._free.pop()
            parts.append(rows[:length])
            if len(rows) > length:
                self._free.append(rows[length:])
            length -= len(parts[-1])
        if length:
            parts.append(np.arange(self._untouched, self._untouched + length))
            self._untouched += length
        return np.concatenate(parts)

    def _index(self, parts: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(self._device)
