"""The attention path: torch's fused kernel on padded rows, with trained keys and values in front.

B rows, S pieces, P prompt positions, N heads, H head size, D hidden
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    queries_BNSH: Tensor,
    keys_BNSH: Tensor,
    values_BNSH: Tensor,
    mask_B11S: Tensor | None = None,
    prefix: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Softmax attention; every piece also attends to all of the prefix.

    Args:
        mask_B11S: bool, True where a key may be attended to, the prefix's positions included and
            in front; None where every key may be.
        prefix: keys and values (B, N, P, H) that stand before the window's own.

    Shapes:
        returns: (B, S, D)
    """
    if prefix is not None:
        keys_BNSH = torch.cat([prefix[0], keys_BNSH], dim=2)
        values_BNSH = torch.cat([prefix[1], values_BNSH], dim=2)
    # No dropout on the weights: the fused CPU kernel has none, and the path that has it writes
    # out all S x S scores. Hidden states are dropped out instead, where the backbone is trained.
    context_BNSH = F.scaled_dot_product_attention(
        queries_BNSH, keys_BNSH, values_BNSH, attn_mask=mask_B11S
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
