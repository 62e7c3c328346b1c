"""The prompts of one batch, in the form that the encoder takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Prefix:
    """The prompts of one batch, one row each.

    Args:
        first_layer: layers below do not see it.
        num_layers, hidden: the backbone it was made for.
        keys_and_values: per layer from `first_layer` on, keys and values (B, N, P, H); empty where
            `vectors_BPD` is given.
        vectors_BPD: vectors that join the row at `first_layer`.
        lengths: prompt positions per row, which come first, where prompts of several lengths share the
            batch; None if all positions are used.
    """

    first_layer: int
    num_layers: int
    hidden: int
    keys_and_values: tuple[tuple[Tensor, Tensor], ...] = ()
    vectors_BPD: Tensor | None = None
    lengths: tuple[int, ...] | None = None

    def at(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values of a layer, counted from 0; None if it has none."""
        if not self.keys_and_values or layer < self.first_layer:
            return None
        return self.keys_and_values[layer - self.first_layer]

    @property
    def length(self) -> int:
        """P, padding included."""
        return int(self._any.shape[-2])

    @property
    def num_rows(self) -> int:
        """B"""
        return int(self._any.shape[0])

    @property
    def row_lengths(self) -> tuple[int, ...]:
        return self.lengths or (self.length,) * self.num_rows

    @property
    def mask_BP(self) -> Tensor:
        """bool, True on a row's prompt positions."""
        if self.lengths is None:
            return torch.ones(self.num_rows, self.length, dtype=torch.bool, device=self.device)
        length_B = torch.tensor(self.lengths).to(self.device)
        return torch.arange(self.length, device=self.device) < length_B[:, None]

    @property
    def device(self) -> torch.device:
        return self._any.device

    @property
    def _any(self) -> Tensor:
        return self.keys_and_values[0][0] if self.vectors_BPD is None else self.vectors_BPD
