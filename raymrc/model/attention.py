"""The attention paths, with trained keys and values in front: torch's fused kernel on padded rows,
and the variable-length one on rows without padding.

B rows, S pieces, P prompt positions, N heads, H head size, D hidden, T pieces of all rows,
X keys of all rows: prompt positions and pieces
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
    """Softmax attention; every piece also attends to all of the prefix.

    Args:
        mask: (B, 1, 1, S), bool, True where a key may be attended to, the prefix's positions
            included and in front; None where every key may be. Or, of packed rows, their packing.
        prefix: keys and values (B, N, P, H) that stand before the window's own.

    Shapes:
        queries, keys, values: (B, N, S, H); of packed rows (T, N, H)
        returns: (B, S, D); (T, D)
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
    # No dropout on the weights: the fused CPU kernel has none, and the path that has it writes
    # out all S x S scores. Hidden states are dropped out instead, where the backbone is trained.
    context_BNSH = F.scaled_dot_product_attention(
        queries_BNSH, keys_BNSH, values_BNSH, attn_mask=mask
    )
    return context_BNSH.transpose(1, 2).flatten(2)


def key_mask(mask_BS: Tensor, prompt_BP: Tensor | None = None, *, behind: int = 0) -> Tensor:
    """A row's mask and its prompt's, in the form that `attend` takes.

    Args:
        behind: how many of the row's pieces stand before the prompt.
    """
    if prompt_BP is not None:
        mask_BS = torch.cat([mask_BS[:, :behind], prompt_BP, mask_BS[:, behind:]], dim=1)
    return mask_BS[:, None, None, :]


@dataclass(frozen=True, eq=False)
class Packing:
    """Rows one behind the other without their padding, and what each of them attends to.

    Made on the CPU of lengths that are known there: no pass waits for the device.

    Args:
        pieces_T: where each piece is in the padded batch, its rows one behind the other (B * S).
        keys_X: where each key is in all prompt positions, padding included (B * P), and all pieces
            (T) behind them; see `join`.
        own_T: where each piece is among the keys.
        query_lengths, key_lengths: of each row.
        query_offsets, key_offsets: where each row begins, and where the last one ends; int32,
            (B + 1,).
    """

    pieces_T: Tensor
    keys_X: Tensor
    own_T: Tensor
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
        """Each row's own prompt positions with its pieces: (B, P, ...) and (T, ...) -> (X, ...)"""
        return torch.cat([prompt_BP.flatten(0, 1), pieces_T]).index_select(0, self.keys_X)

    def joined(self) -> Packing:
        """The packing of rows that their prompts have joined: all that is a key also asks."""
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
        lengths: of each row, 1 or more; num_pieces: S.
        prompt_lengths: of each row's prompt, 0 or more; num_positions: P.
        behind: how many of the row's pieces stand before the prompt.
    """
    num_rows = len(lengths)
    if prompt_lengths is None:
        prompt_lengths = (0,) * num_rows
    there_BS = torch.arange(num_pieces) < torch.tensor(lengths)[:, None]
    own_BP = torch.arange(num_positions) < torch.tensor(prompt_lengths)[:, None]
    # Places in prompt positions, padding included, with the packed pieces behind them.
    prompt_BP = torch.arange(own_BP.numel()).view_as(own_BP)
    piece_BS = there_BS.flatten().cumsum(0).view_as(there_BS) + (own_BP.numel() - 1)

    def join(prompt: Tensor, piece: Tensor) -> Tensor:
        return torch.cat([piece[:, :behind], prompt, piece[:, behind:]], dim=1)

    keys_X = join(prompt_BP, piece_BS)[join(own_BP, there_BS)]
    key_lengths = tuple(p + n for p, n in zip(prompt_lengths, lengths, strict=True))
    return Packing(
        pieces_T=_send(there_BS.flatten().nonzero().squeeze(1), device),
        keys_X=_send(keys_X, device),
        own_T=_send((keys_X >= own_BP.numel()).nonzero().squeeze(1), device),
        query_lengths=tuple(lengths),
        key_lengths=key_lengths,
        query_offsets=_offsets(lengths, device),
        key_offsets=_offsets(key_lengths, device),
    )


def has_packed_kernel(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether the variable-length kernel takes this: flash attention's rules, and no CPU."""
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
    # The kernel has no CPU form. Row by row is slower than padding; it is there for the tests.
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
    """From pinned memory, as a copy from any other makes the host wait."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
