"""The published match head, an MLP over [h_i; h_j] for every pair (i, j), with our bias for lengths.

It creates a B x S x S x 2D tensor, which `raymrc.model.heads` avoids. Equality tests compare the two, and it
is the peer in `benchmarks.match_head`.

B rows, S pieces, D hidden, W match width
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymrc.model.heads import SpanHeads
from raymrc.model.inputs import SpanTargets
from raymrc.model.shapes import NUM_LENGTHS


class DenseSpanHeads(nn.Module):
    """Start, end and match heads of the published design, without dropout.

    Source: Li et al. 2020, A unified MRC framework for named entity recognition, arXiv:1910.11476.
    """

    def __init__(self, hidden: int, match_width: int) -> None:
        super().__init__()
        self.start = nn.Linear(hidden, 1)
        self.end = nn.Linear(hidden, 1)
        self.match = nn.Sequential(
            nn.Linear(2 * hidden, match_width), nn.GELU(), nn.Linear(match_width, 1)
        )
        self.length = nn.Parameter(torch.zeros(NUM_LENGTHS))

    @torch.no_grad()
    def take(self, heads: SpanHeads) -> None:
        """Copy the weights; the two projections of the factorised head are side by side here."""
        self.start.load_state_dict(heads.start.state_dict())
        self.end.load_state_dict(heads.end.state_dict())
        first, last = cast(nn.Linear, self.match[0]), cast(nn.Linear, self.match[2])
        first.weight.copy_(torch.cat([heads.match_start.weight, heads.match_end.weight], dim=1))
        first.bias.copy_(heads.match_start.bias)
        last.load_state_dict(heads.match_out.state_dict())
        self.length.copy_(heads.match_length)

    def match_logits(self, hidden_BSD: Tensor) -> Tensor:
        """Logits of every pair, (B, S, S)."""
        num_pieces = hidden_BSD.shape[1]
        starts = hidden_BSD[:, :, None].expand(-1, -1, num_pieces, -1)
        ends = hidden_BSD[:, None].expand(-1, num_pieces, -1, -1)
        places = torch.arange(num_pieces)
        lengths = (places[None] - places[:, None]).clamp(0, NUM_LENGTHS - 1)
        return self.match(torch.cat([starts, ends], dim=-1)).squeeze(-1) + self.length[lengths]

    def loss(
        self,
        hidden_BSD: Tensor,
        window_BS: Tensor,
        targets: SpanTargets,
        weights: Sequence[float] = (1.0, 1.0, 0.1),
    ) -> Tensor:
        start_BS = self.start(hidden_BSD).squeeze(-1)
        end_BS = self.end(hidden_BSD).squeeze(-1)
        match_BSS = self.match_logits(hidden_BSD)
        window = window_BS.float()
        start_loss = _mean(start_BS, targets.start_BS, window)
        end_loss = _mean(end_BS, targets.end_BS, window)

        may_start = ((start_BS > 0) | (targets.start_BS > 0)) & window_BS
        may_end = ((end_BS > 0) | (targets.end_BS > 0)) & window_BS
        candidates = torch.triu(may_start[:, :, None] & may_end[:, None, :]).float()
        gold = torch.zeros_like(match_BSS)
        for row, first, last in targets.pairs_K3.tolist():
            gold[row, first, last] = 1.0
        match_loss = _mean(match_BSS, gold, candidates)
        total = weights[0] * start_loss + weights[1] * end_loss + weights[2] * match_loss
        return total / sum(weights)


def _mean(logits: Tensor, gold: Tensor, mask: Tensor) -> Tensor:
    losses = F.binary_cross_entropy_with_logits(logits, gold, reduction="none")
    return (losses * mask).sum() / mask.sum().clamp(min=1)
