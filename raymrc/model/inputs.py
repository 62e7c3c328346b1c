"""One batch as the encoder takes it, and what its answers should be.

B rows, S pieces, L labels, K pairs
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
        window_BS: bool, True on pieces of the note; False on question, special pieces and padding.
        label_B: which label each row asks for, long; 0 where nothing is asked.
        lengths: pieces of each row, known without a look at the device.
        is_padded: whether `mask_BS` holds a False.

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
        return _each(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Inputs:
        return _each(self, Tensor.pin_memory)


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


_Batch = TypeVar("_Batch", Inputs, SpanTargets, TagTargets)


def _each(batch: _Batch, change: Callable[[Tensor], Tensor]) -> _Batch:
    changed: dict[str, Any] = {
        field.name: change(getattr(batch, field.name))
        for field in fields(batch)
        if isinstance(getattr(batch, field.name), Tensor)
    }
    return replace(batch, **changed)
