"""The prompts of one batch, in the form that the encoder takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Prefix:
    """The prompts of one batch, a row each, as the encoder takes them.

    Args:
        first_layer: layers below see nothing of it.
        num_layers, hidden: of the backbone that it was made for.
        keys_and_values: for each layer from `first_layer` on, keys and values (B, N, P, H).
        vectors_BPD: or vectors that join the row at `first_layer`.
        mask_BP: bool, True on a row's own positions where prompts of several lengths share the
            batch, which are its first; None where all are.
        lengths: of each row's prompt, where `mask_BP` is given; known without a look at the device.
    """

    first_layer: int
    num_layers: int
    hidden: int
    keys_and_values: tuple[tuple[Tensor, Tensor], ...] = ()
    vectors_BPD: Tensor | None = None
    mask_BP: Tensor | None = None
    lengths: tuple[int, ...] | None = None

    def at(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values for this layer, counted from 0; None where it has none."""
        if not self.keys_and_values or layer < self.first_layer:
            return None
        return self.keys_and_values[layer - self.first_layer]

    @property
    def length(self) -> int:
        """P"""
        return int(self._any.shape[-2])

    @property
    def num_rows(self) -> int:
        """B"""
        return int(self._any.shape[0])

    @property
    def row_lengths(self) -> tuple[int, ...]:
        """Each row's own prompt positions; waits for the device where only it knows them."""
        if self.lengths is not None:
            return self.lengths
        if self.mask_BP is None:
            return (self.length,) * self.num_rows
        return tuple(self.mask_BP.sum(1).tolist())

    @property
    def device(self) -> torch.device:
        return self._any.device

    @property
    def _any(self) -> Tensor:
        return self.keys_and_values[0][0] if self.vectors_BPD is None else self.vectors_BPD
