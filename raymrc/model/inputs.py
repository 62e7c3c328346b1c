"""One batch in the form that the encoder takes, and the targets of its answers.

B rows, U distinct rows, S pieces, D hidden, L labels, K pairs
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class _Tensors:
    """Tensors that are sent to a device together."""

    def to(self, device: torch.device | str) -> Self:
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: v for name, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})


@dataclass(frozen=True, eq=False)
class Inputs(_Tensors):
    """Rows of pieces, padded on the right.

    Args:
        input_ids_BS: piece ids, long.
        type_ids_BS: segment types, long; a backbone with one type ignores them.
        mask_BS: bool, False on padding.
        window_BS: bool, True on pieces of the note that may begin or end an answer; False on question,
            special pieces and padding.
        label_B: index of the label that each row asks for, long; 0 where nothing is asked.
        lengths: pieces per row; () to compute them, which on an accelerator waits for the device.
        share_B: for each row the first row of the batch with the same ids and types; long, always on the CPU,
            so that the number of distinct rows is known without waiting for a device. None if all differ.
        entry_BSD: hidden states that enter layer `entry_layer`, zeros on padding; ids and types are then not
            read. The prompt's first layer must be `entry_layer`.
        entry_layer: the layer that `entry_BSD` was computed for.
        marks_B2: index of the first mark of each of a row's two mentions, long; None if the batch is not
            about pairs.
    """

    input_ids_BS: Tensor
    type_ids_BS: Tensor
    mask_BS: Tensor
    window_BS: Tensor
    label_B: Tensor
    lengths: tuple[int, ...] = ()
    share_B: Tensor | None = None
    entry_BSD: Tensor | None = None
    entry_layer: int | None = None
    marks_B2: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.lengths:
            object.__setattr__(self, "lengths", tuple(self.mask_BS.sum(1).tolist()))

    @property
    def is_padded(self) -> bool:
        """Whether `mask_BS` contains a False."""
        num_pieces = self.mask_BS.shape[1]
        return min(self.lengths, default=num_pieces) < num_pieces

    def to(self, device: torch.device | str) -> Self:
        return replace(super().to(device), share_B=self.share_B)

    def take(self, row_U: Tensor, width: int | None = None) -> Inputs:
        """Some of the rows, without `share_B`, `entry_BSD` and marks.

        Args:
            row_U: long, on the CPU.
            width: pieces that are kept of each row; None for all.
        """
        lengths = tuple(self.lengths[row] for row in row_U.tolist())
        row_U = row_U.to(self.input_ids_BS.device)
        wide = (self.input_ids_BS, self.type_ids_BS, self.mask_BS, self.window_BS)
        ids, types, mask, window = (t.index_select(0, row_U)[:, :width] for t in wide)
        return Inputs(ids, types, mask, window, self.label_B.index_select(0, row_U), lengths)


@dataclass(frozen=True, eq=False)
class SpanTargets(_Tensors):
    """Where answers start and end, and which start belongs to which end.

    Args:
        start_BS, end_BS: float, 1.0 on first and last pieces of answers.
        pairs_K3: long, (row, first piece, last piece) of each answer; the last piece is inclusive.
    """

    start_BS: Tensor
    end_BS: Tensor
    pairs_K3: Tensor


@dataclass(frozen=True, eq=False)
class TagTargets(_Tensors):
    """A tag per piece and label: `tags_BSL`, long, 0 outside, 1 begin, 2 inside; `IGNORED` where a piece
    continues a word."""

    tags_BSL: Tensor


@dataclass(frozen=True, eq=False)
class PairTargets(_Tensors):
    """The relation of a row's two marked mentions: `kind_B`, long, 0 for none."""

    kind_B: Tensor


Targets = SpanTargets | TagTargets | PairTargets
