"""Attention with trained keys and values in front of a row's own.

Padded rows use torch's fused kernel, rows without padding its variable-length kernel.

B rows, S pieces, P prompt positions, N heads, H head size, D hidden, T pieces of all rows,
X keys of all rows (prompt positions and pieces)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    queries_BNSH: Tensor,
    keys_BNSH: Tensor,
    values_BNSH: Tensor,
    mask: Tensor | Packing | None = None,
    prefix: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Softmax attention in which every piece also attends to the whole prefix.

    Args:
        mask: (B, 1, 1, P + S), bool, True where a key may be attended to; None if all may be. For
            packed rows their packing.
        prefix: keys and values (B, N, P, H) that precede the window's.

    Shapes:
        queries, keys, values: (B, N, S, H); packed rows (T, N, H)
        returns: (B, S, D); packed rows (T, D)
    """
    if prefix is not None:
        # A trained prefix is fp32, whatever the backbone computes in.
        keys, values = (part.to(keys_BNSH.dtype) for part in prefix)
    if isinstance(mask, Packing):
        if prefix is not None:
            keys_BNSH = mask.join(keys.transpose(1, 2), keys_BNSH)
            values_BNSH = mask.join(values.transpose(1, 2), values_BNSH)
        return _attend_packed(queries_BNSH, keys_BNSH, values_BNSH, mask).flatten(1)
    if prefix is not None:
        keys_BNSH = torch.cat([keys, keys_BNSH], dim=2)
        values_BNSH = torch.cat([values, values_BNSH], dim=2)
    # No dropout on attention weights: the fused CPU kernel has none, and the kernel that has it
    # materialises all S x S scores. A trained backbone drops out hidden states instead.
    context_BNSH = F.scaled_dot_product_attention(
        queries_BNSH, keys_BNSH, values_BNSH, attn_mask=mask
    )
    return context_BNSH.transpose(1, 2).flatten(2)


def key_mask(mask_BS: Tensor, prompt_BP: Tensor | None = None, *, behind: int = 0) -> Tensor:
    """The masks of rows and prompts joined, (B, 1, 1, P + S), for `attend`.

    Args:
        behind: number of row pieces before the prompt.
    """
    if prompt_BP is not None:
        mask_BS = torch.cat([mask_BS[:, :behind], prompt_BP, mask_BS[:, behind:]], dim=1)
    return mask_BS[:, None, None, :]


@dataclass(frozen=True, eq=False)
class Packing:
    """Indices that concatenate rows without their padding, and join them with their prompts.

    They are computed on the CPU from lengths known there, so that no pass waits for the device.

    Args:
        pieces_T: index of each piece in the flattened padded batch (B * S).
        keys_X: index of each key in the flattened prompts, padding included (B * P), followed by
            the packed pieces (T); see `join`.
        piece_keys_T: index of each piece among the keys.
        query_lengths, key_lengths: per row.
        query_offsets, key_offsets: start of each row and end of the last; int32, (B + 1,).
    """

    pieces_T: Tensor
    keys_X: Tensor
    piece_keys_T: Tensor
    query_lengths: tuple[int, ...]
    key_lengths: tuple[int, ...]
    query_offsets: Tensor
    key_offsets: Tensor

    def pack(self, padded_BSD: Tensor) -> Tensor:
        """(B, S, D) -> (T, D)"""
        return padded_BSD.flatten(0, 1).index_select(0, self.pieces_T)

    def unpack(self, packed_TD: Tensor, num_pieces: int) -> Tensor:
        """(T, D) -> (B, S, D), zeros at padding."""
        num_rows = len(self.query_lengths)
        padded = packed_TD.new_zeros(num_rows * num_pieces, *packed_TD.shape[1:])
        return padded.index_copy(0, self.pieces_T, packed_TD).unflatten(0, (num_rows, num_pieces))

    def join(self, prompt_BP: Tensor, pieces_T: Tensor) -> Tensor:
        """Each row's prompt positions and pieces: (B, P, ...) and (T, ...) -> (X, ...)"""
        return torch.cat([prompt_BP.flatten(0, 1), pieces_T]).index_select(0, self.keys_X)

    def joined(self) -> Packing:
        """The packing of rows whose prompt positions are queries, too."""
        return replace(self, query_lengths=self.key_lengths, query_offsets=self.key_offsets)


def make_packing(
    lengths: Sequence[int],
    num_pieces: int,
    device: torch.device,
    prompt_lengths: Sequence[int] | None = None,
    num_positions: int = 0,
    *,
    behind: int = 0,
) -> Packing:
    """
    Args:
        lengths: pieces per row, at least 1; num_pieces: S.
        prompt_lengths: prompt positions per row; num_positions: P.
        behind: number of row pieces before the prompt.
    """
    num_rows = len(lengths)
    if prompt_lengths is None:
        prompt_lengths = (0,) * num_rows
    is_piece_BS = torch.arange(num_pieces) < torch.tensor(lengths)[:, None]
    is_prompt_BP = torch.arange(num_positions) < torch.tensor(prompt_lengths)[:, None]
    num_prompt = is_prompt_BP.numel()
    prompt_BP = torch.arange(num_prompt).view_as(is_prompt_BP)
    piece_BS = is_piece_BS.flatten().cumsum(0).view_as(is_piece_BS) + (num_prompt - 1)

    def join(prompt: Tensor, piece: Tensor) -> Tensor:
        return torch.cat([piece[:, :behind], prompt, piece[:, behind:]], dim=1)

    keys_X = join(prompt_BP, piece_BS)[join(is_prompt_BP, is_piece_BS)]
    key_lengths = tuple(p + n for p, n in zip(prompt_lengths, lengths, strict=True))
    return Packing(
        pieces_T=_send(is_piece_BS.flatten().nonzero().squeeze(1), device),
        keys_X=_send(keys_X, device),
        piece_keys_T=_send((keys_X >= num_prompt).nonzero().squeeze(1), device),
        query_lengths=tuple(lengths),
        key_lengths=key_lengths,
        query_offsets=_offsets(lengths, device),
        key_offsets=_offsets(key_lengths, device),
    )


def has_packed_kernel(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether the variable-length kernel supports this: flash attention's rules, CUDA only."""
    half = dtype in (torch.bfloat16, torch.float16)
    return device.type == "cuda" and half and head_size % 8 == 0 and head_size <= 256


def _attend_packed(
    queries_TNH: Tensor, keys_XNH: Tensor, values_XNH: Tensor, packing: Packing
) -> Tensor:
    if queries_TNH.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        context = varlen_attn(
            queries_TNH, keys_XNH, values_XNH, packing.query_offsets, packing.key_offsets,
            max(packing.query_lengths), max(packing.key_lengths),
        )  # fmt: skip
        return cast(Tensor, context)
    # The kernel has no CPU version. This loop is slower than padding and serves the tests.
    rows = zip(
        queries_TNH.split(packing.query_lengths),
        keys_XNH.split(packing.key_lengths),
        values_XNH.split(packing.key_lengths),
        strict=True,
    )
    contexts = [
        F.scaled_dot_product_attention(*(part.transpose(0, 1)[None] for part in row))[0]
        for row in rows
    ]
    return torch.cat([context.transpose(0, 1) for context in contexts])


def _offsets(lengths: Sequence[int], device: torch.device) -> Tensor:
    return _send(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), device)


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies from pinned memory, because a copy from other memory blocks the host."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
