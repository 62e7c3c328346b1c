"""One batch as the encoder takes it, and what its answers should be.

B rows, U different rows, S pieces, D hidden, L labels, K pairs
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

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
        is_padded: whether `mask_BS` holds a False; found out where it is not given (give it for
            tensors on an accelerator, where finding out waits for the device).
        share_B: for each row the first row of the batch with the same ids and types, itself where
            there is none before; long, on the CPU wherever the rest is, so that how many rows
            differ is known without waiting for a device. None where all differ.
        entry_BSD: hidden states that enter layer `entry_layer`, zeros on padding. A prompt of that
            first layer then starts from them, and ids and types are not read.
        entry_layer: the layer that `entry_BSD` was computed for.
    """

    input_ids_BS: Tensor
    type_ids_BS: Tensor
    mask_BS: Tensor
    window_BS: Tensor
    label_B: Tensor
    is_padded: bool | None = None
    share_B: Tensor | None = None
    entry_BSD: Tensor | None = None
    entry_layer: int | None = None

    def __post_init__(self) -> None:
        if self.is_padded is None:
            object.__setattr__(self, "is_padded", not bool(self.mask_BS.all()))

    def to(self, device: torch.device | str) -> Inputs:
        return replace(_to(self, device), share_B=self.share_B)

    def take(self, row_U: Tensor) -> Inputs:
        """Some of the rows, as wide as before and with nothing shared or entered.

        Args:
            row_U: long, on the CPU or where the rows are.
        """
        row_U = row_U.to(self.input_ids_BS.device)
        return Inputs(
            self.input_ids_BS.index_select(0, row_U),
            self.type_ids_BS.index_select(0, row_U),
            self.mask_BS.index_select(0, row_U),
            self.window_BS.index_select(0, row_U),
            self.label_B.index_select(0, row_U),
            self.is_padded,
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
        return _to(self, device)


@dataclass(frozen=True, eq=False)
class TagTargets:
    """A tag per piece and label: `tags_BSL`, long, 0 outside, 1 begin, 2 inside."""

    tags_BSL: Tensor

    def to(self, device: torch.device | str) -> TagTargets:
        return _to(self, device)


_Batch = TypeVar("_Batch", Inputs, SpanTargets, TagTargets)


def _to(batch: _Batch, device: torch.device | str) -> _Batch:
    moved = {
        field.name: getattr(batch, field.name).to(device, non_blocking=True)
        for field in fields(batch)
        if isinstance(getattr(batch, field.name), Tensor)
    }
    return replace(batch, **moved)
