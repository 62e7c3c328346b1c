"""One batch as the encoder takes it, and what its answers should be.

B rows, U different rows, S pieces, D hidden, L labels, K pairs
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Inputs:
    """Rows of pieces, padded at the right.

    Args:
        input_ids_BS: piece ids, long.
        type_ids_BS: segment types, long; a backbone with one type ignores them.
        mask_BS: bool, True where there is a piece, False on padding, which is right of all pieces.
        window_BS: bool, True on pieces of the note that may begin or end an answer; False on question,
            special pieces and padding.
        label_B: which label each row asks for, long; 0 where nothing is asked.
        lengths: pieces of each row, known without a look at the device.
        is_padded: whether `mask_BS` holds a False.
        share_B: for each row the first row of the batch with the same ids and types, itself where
            there is none before; long, on the CPU wherever the rest is, so that how many rows
            differ is known without waiting for a device. None where all differ.
        entry_BSD: hidden states that enter layer `entry_layer`, zeros on padding. A prompt of that
            first layer then starts from them, and ids and types are not read.
        entry_layer: the layer that `entry_BSD` was computed for.
        marks_B2: where the marks of a row's two mentions begin, long; None where no pairs are told apart.

    Lengths that are not given are found out; give them (or `is_padded=False`) for tensors on an
    accelerator, where finding out waits for the device.
    """

    input_ids_BS: Tensor
    type_ids_BS: Tensor
    mask_BS: Tensor
    window_BS: Tensor
    label_B: Tensor
    is_padded: bool | None = None
    lengths: tuple[int, ...] | None = None
    share_B: Tensor | None = None
    entry_BSD: Tensor | None = None
    entry_layer: int | None = None
    marks_B2: Tensor | None = None

    def __post_init__(self) -> None:
        num_rows, num_pieces = self.mask_BS.shape
        lengths = self.lengths
        if lengths is None and self.is_padded is False:
            lengths = (num_pieces,) * num_rows
        elif lengths is None:
            lengths = tuple(self.mask_BS.sum(1).tolist())
        object.__setattr__(self, "lengths", lengths)
        if self.is_padded is None:
            object.__setattr__(self, "is_padded", min(lengths, default=num_pieces) < num_pieces)

    def to(self, device: torch.device | str) -> Inputs:
        moved = _each(self, lambda tensor: tensor.to(device, non_blocking=True))
        return replace(moved, share_B=self.share_B)

    def pin_memory(self) -> Inputs:
        return _each(self, Tensor.pin_memory)

    def take(self, row_U: Tensor) -> Inputs:
        """Some of the rows, as wide as before and with nothing shared or entered.

        Args:
            row_U: long, on the CPU.
        """
        assert self.lengths is not None
        lengths = tuple(self.lengths[row] for row in row_U.tolist())
        row_U = row_U.to(self.input_ids_BS.device)
        return Inputs(
            self.input_ids_BS.index_select(0, row_U),
            self.type_ids_BS.index_select(0, row_U),
            self.mask_BS.index_select(0, row_U),
            self.window_BS.index_select(0, row_U),
            self.label_B.index_select(0, row_U),
            self.is_padded,
            lengths,
        )


@dataclass(frozen=True, eq=False)
class SpanTargets:
    """Where answers start and end, and which start belongs to which end.

    Args:
        start_BS, end_BS: float, 1.0 on first and on last pieces of answers.
        pairs_K3: long, (row, first piece, last piece) of each answer; the last piece is inclusive.
    """

    start_BS: Tensor
    end_BS: Tensor
    pairs_K3: Tensor

    def to(self, device: torch.device | str) -> SpanTargets:
        return _each(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> SpanTargets:
        return _each(self, Tensor.pin_memory)


@dataclass(frozen=True, eq=False)
class TagTargets:
    """A tag per piece and label: `tags_BSL`, long, 0 outside, 1 begin, 2 inside."""

    tags_BSL: Tensor

    def to(self, device: torch.device | str) -> TagTargets:
        return _each(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> TagTargets:
        return _each(self, Tensor.pin_memory)


@dataclass(frozen=True, eq=False)
class PairTargets:
    """How the two marked mentions of a row are related: `kind_B`, long, 0 for not at all."""

    kind_B: Tensor

    def to(self, device: torch.device | str) -> PairTargets:
        return _each(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> PairTargets:
        return _each(self, Tensor.pin_memory)


Targets = SpanTargets | TagTargets | PairTargets

_Batch = TypeVar("_Batch", Inputs, SpanTargets, TagTargets, PairTargets)


def _each(batch: _Batch, change: Callable[[Tensor], Tensor]) -> _Batch:
    changed: dict[str, Any] = {
        field.name: change(getattr(batch, field.name))
        for field in fields(batch)
        if isinstance(getattr(batch, field.name), Tensor)
    }
    return replace(batch, **changed)
