"""What answers: start, end and match for a question's spans; begin and inside for tagging.

B rows, S pieces, D hidden, W match width, L labels, K candidate pairs
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymrc.model.inputs import SpanTargets, TagTargets

CALM = -3.0
"""First bias of what is rare (an answer starts here): training begins by predicting none of it."""

MAX_CANDIDATES = 1024
"""Candidate pairs per row that one loss uses; a row of 512 pieces has more only where a model
predicts far too much: above one piece in eleven as a start and as an end."""

PAIRS_AT_ONCE = 16384
"""Pairs that one prediction puts through the match head at a time: 128 MiB at width 2048."""

SpanAnswer = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Of one row: start_S and end_S logits, pairs_K2 (first, last piece), match_K logits."""


class SpanHeads(nn.Module):
    """Where does an answer start, where does it end, and which start belongs to which end?

    The match head of the published design is an MLP over [h_i; h_j] for every pair (i, j): a
    B x S x S x 2D tensor. Its first layer is additive in i and j, so it is two projections here,
    of starts and of ends, and only candidate pairs are put together: the same numbers.

    Args:
        match_width: W, of the match head's hidden layer.
        dropout: on the encoder's output and on the match head's hidden layer, in training.
        max_candidates: see `MAX_CANDIDATES`.

    Source: Li et al. 2020, A unified MRC framework for named entity recognition, arXiv:1910.11476.
    """

    def __init__(
        self,
        hidden: int,
        match_width: int,
        dropout: float = 0.0,
        max_candidates: int = MAX_CANDIDATES,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.max_candidates = max_candidates
        self.start = nn.Linear(hidden, 1)
        self.end = nn.Linear(hidden, 1)
        self.match_start = nn.Linear(hidden, match_width)
        self.match_end = nn.Linear(hidden, match_width, bias=False)
        self.match_out = nn.Linear(match_width, 1)
        nn.init.constant_(self.start.bias, CALM)
        nn.init.constant_(self.end.bias, CALM)

    def loss(
        self,
        hidden_BSD: Tensor,
        window_BS: Tensor,
        targets: SpanTargets,
        weights: Sequence[float] = (1.0, 1.0, 0.1),
    ) -> Tensor:
        """Binary cross-entropies of start and end over the note's pieces and of match over
        candidate pairs, each a mean, summed by normalised weights.

        Candidates are (predicted or gold starts) x (predicted or gold ends) of a row, start <= end.
        Where a row has more than `max_candidates` (an early model predicts nearly everything),
        gold pairs stay and the others are taken by start + end logit, best first; every row is
        bounded for itself, so that no row's loss depends on its neighbours.
        """
        hidden_BSD = self._drop(hidden_BSD)
        start_BS, end_BS = self.start_and_end(hidden_BSD)
        pairs_K3, gold_K = choose_candidates(
            start_BS, end_BS, window_BS, targets, self.max_candidates
        )
        match_K = self.match(hidden_BSD, pairs_K3)
        num_pieces = window_BS.sum().clamp(min=1)
        start_loss = entropies(start_BS, targets.start_BS, window_BS).sum() / num_pieces
        end_loss = entropies(end_BS, targets.end_BS, window_BS).sum() / num_pieces
        # Without candidates this is a zero that still reaches the match head's parameters.
        match_loss = F.binary_cross_entropy_with_logits(match_K, gold_K, reduction="sum") / max(
            len(gold_K), 1
        )
        start_weight, end_weight, match_weight = weights
        total = start_weight * start_loss + end_weight * end_loss + match_weight * match_loss
        return total / sum(weights)

    @torch.no_grad()
    def predict(self, hidden_BSD: Tensor, window_BS: Tensor) -> list[SpanAnswer]:
        """Logits of every row; pairs are predicted starts x predicted ends, start <= end.

        Start and end logits outside the window are -inf, so that nothing is read off there.
        """
        logits_2BS = torch.stack(self.start_and_end(hidden_BSD))
        logits_2BS = logits_2BS.masked_fill(~window_BS, -torch.inf)
        is_start_BS, is_end_BS = logits_2BS > 0
        pairs_K3 = _cross(is_start_BS, is_end_BS).nonzero()
        parts = [self.match(hidden_BSD, part) for part in pairs_K3.split(PAIRS_AT_ONCE)]
        match = torch.cat(parts).float().cpu().numpy()
        start, end = logits_2BS.float().cpu().numpy()
        pairs = pairs_K3.cpu().numpy()
        # nonzero lists pairs row by row, so a row's pairs are a slice.
        cuts = np.searchsorted(pairs[:, 0], np.arange(len(start) + 1))
        return [
            (start[row], end[row], pairs[low:high, 1:], match[low:high])
            for row, (low, high) in enumerate(pairwise(cuts))
        ]

    def start_and_end(self, hidden_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, each (B, S)."""
        return self.start(hidden_BSD).squeeze(-1), self.end(hidden_BSD).squeeze(-1)

    def match(self, hidden_BSD: Tensor, pairs_K3: Tensor) -> Tensor:
        """Logits of (row, first piece, last piece) triples, (K,)."""
        row_K, first_K, last_K = pairs_K3.unbind(1)
        num_pieces = hidden_BSD.shape[1]
        flat = hidden_BSD.flatten(0, 1)
        # A start has many ends: each is projected once, and only those that occur.
        first, first_of_K = (row_K * num_pieces + first_K).unique(return_inverse=True)
        last, last_of_K = (row_K * num_pieces + last_K).unique(return_inverse=True)
        starts = F.embedding(first_of_K, self.match_start(F.embedding(first, flat)))
        ends = F.embedding(last_of_K, self.match_end(F.embedding(last, flat)))
        return self.match_out(self._drop(F.gelu(starts + ends))).squeeze(-1)

    def _drop(self, hidden: Tensor) -> Tensor:
        return F.dropout(hidden, self.dropout, self.training) if self.dropout else hidden


class TaggingHeads(nn.Module):
    """Begin, inside or outside, for every label by itself: spans of different labels may overlap.

    Args:
        dropout: on the encoder's output, in training.
    """

    def __init__(self, hidden: int, num_labels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.num_labels = num_labels
        self.tags = nn.Linear(hidden, 3 * num_labels)

    def loss(
        self,
        hidden_BSD: Tensor,
        window_BS: Tensor,
        targets: TagTargets,
        weights: Sequence[float] = (),
    ) -> Tensor:
        """Cross-entropy of a piece's tags, summed over labels, mean over the note's pieces.

        `weights` (of start, end and match) have no meaning here and are not used.
        """
        hidden_BSD = F.dropout(hidden_BSD, self.dropout, self.training)
        logits = self.logits(hidden_BSD)[window_BS].flatten(0, 1)
        tags = targets.tags_BSL[window_BS].flatten()
        total = F.cross_entropy(logits, tags, reduction="sum")
        return total / window_BS.sum().clamp(min=1)

    @torch.no_grad()
    def predict(self, hidden_BSD: Tensor, window_BS: Tensor) -> list[np.ndarray]:
        """Tags (S, L) of every row: 0 outside, 1 begin, 2 inside; 0 off the window."""
        tags_BSL = self.logits(hidden_BSD).argmax(-1) * window_BS[..., None]
        return list(tags_BSL.to(torch.int8).cpu().numpy())

    def logits(self, hidden_BSD: Tensor) -> Tensor:
        """(B, S, L, 3)"""
        return self.tags(hidden_BSD).unflatten(-1, (self.num_labels, 3))


@torch.no_grad()
def choose_candidates(
    start_BS: Tensor,
    end_BS: Tensor,
    window_BS: Tensor,
    targets: SpanTargets,
    max_candidates: int = MAX_CANDIDATES,
) -> tuple[Tensor, Tensor]:
    """Pairs (K, 3) that the match loss looks at, row by row, and 1.0 for those that are gold (K,).

    See `SpanHeads.loss` for which they are.
    """
    starts_BS = ((start_BS > 0) | (targets.start_BS > 0)) & window_BS
    ends_BS = ((end_BS > 0) | (targets.end_BS > 0)) & window_BS
    chosen_BSS = _cross(starts_BS, ends_BS)
    gold_BSS = torch.zeros_like(chosen_BSS)
    gold_BSS[tuple(targets.pairs_K3.unbind(1))] = True
    full = (chosen_BSS.flatten(1).sum(1) > max_candidates).nonzero().squeeze(1)
    if len(full):
        score = (start_BS[full, :, None] + end_BS[full, None, :]).float()
        score = score.masked_fill(~chosen_BSS[full], -torch.inf)
        score = score.masked_fill(gold_BSS[full], torch.inf).flatten(1)
        best = score.topk(max_candidates, dim=1).indices
        kept = torch.zeros_like(score, dtype=torch.bool).scatter_(1, best, True)
        chosen_BSS[full] &= kept.view_as(chosen_BSS[full])
    chosen_BSS |= gold_BSS
    pairs_K3 = chosen_BSS.nonzero()
    return pairs_K3, gold_BSS[chosen_BSS].to(start_BS.dtype)


def _cross(starts_BS: Tensor, ends_BS: Tensor) -> Tensor:
    """True where a start meets an end at or behind it, (B, S, S)."""
    return (starts_BS[:, :, None] & ends_BS[:, None, :]).triu()


def entropies(logits_BS: Tensor, gold_BS: Tensor, window_BS: Tensor) -> Tensor:
    """Binary cross-entropy of every piece, zero off the window, (B, S)."""
    losses = F.binary_cross_entropy_with_logits(logits_BS, gold_BS, reduction="none")
    return losses.masked_fill(~window_BS, 0.0)
