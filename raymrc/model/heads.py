"""Output heads: start, end and match of spans; begin and inside tags; the relation of two mentions.

On a GPU a training step waits for the device once: the numbers of candidate pairs and of their
distinct starts and ends decide shapes, and `find_candidates` reads them together. Rows with too many
pairs, which only an early model has, cost a second wait.

B rows, S pieces, D hidden, W match width, L labels, R kinds of relation, K candidate pairs,
U distinct starts or ends of pairs
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymrc.model.inputs import Inputs, PairTargets, SpanTargets, TagTargets
from raymrc.model.shapes import MAX_CANDIDATES, NUM_LENGTHS, PAIRS_AT_ONCE

RARE_EVENT_BIAS = -3.0
"""Initial bias of rare events (an answer starts here), so that training begins by predicting none."""

IGNORED = -100
"""A tag that the loss ignores."""

AddUp = Callable[[Tensor], Tensor]
"""Sums counts over all processes that hold rows of the batch. Means are taken over these sums, so the
losses of the processes add up to the loss of the batch."""

SpanAnswer = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""One row's start_S and end_S logits, pairs_K2 (first, last piece) and match_K logits."""


class SpanHeads(nn.Module):
    """Where does an answer start, where does it end, and which start belongs to which end?

    The published match head is an MLP over [h_i; h_j] for every pair (i, j), a B x S x S x 2D
    tensor. Its first layer is additive in i and j, so this one projects starts and ends separately
    and combines candidate pairs only. The numbers are the same, plus a trained bias for each length of
    a span: otherwise a few hundred steps do not teach the head that an answer ends near its start.

    Args:
        match_width: W, width of the match head's hidden layer.
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
        self.match_length = nn.Parameter(torch.zeros(NUM_LENGTHS))
        nn.init.constant_(self.start.bias, RARE_EVENT_BIAS)
        nn.init.constant_(self.end.bias, RARE_EVENT_BIAS)

    @torch.no_grad()
    def start_from_pairs(self, rows: Iterable[Sequence[tuple[int, int]]]) -> None:
        """Begin with the log odds, for each length, that a start and an end belong to one span.

        All pairs of a gold start and a gold end of one row are counted, start <= end: what the head would
        have to judge if starts and ends were perfect. One wrong pair and a tenth of a right one are added
        for each length; log odds are limited to 4 in size, which training can still change.

        Args:
            rows: gold (first, last) pieces of each row to learn from.
        """
        right, wrong = np.full(NUM_LENGTHS, 0.1), np.ones(NUM_LENGTHS)
        for spans in rows:
            if spans:
                first_I, last_J = map(np.unique, np.array(spans).T)
                lengths = np.subtract.outer(last_J, first_I)
                wrong += _count_lengths(lengths[lengths >= 0])
                answers = _count_lengths(np.array([last - first for first, last in set(spans)]))
                right, wrong = right + answers, wrong - answers
        self.match_length.copy_(torch.from_numpy(np.log(right / wrong).clip(-4, 4)))

    def loss(
        self,
        hidden_BSD: Tensor,
        window_BS: Tensor,
        targets: SpanTargets,
        weights: Sequence[float] = (1.0, 1.0, 0.1),
        generator: torch.Generator | None = None,
        add_up: AddUp | None = None,
    ) -> Tensor:
        """Weighted mean of three binary cross-entropies: start and end over the note's pieces, match
        over candidate pairs.

        Candidates are (predicted or gold starts) x (predicted or gold ends) of a row, start <= end.
        A row with more than `max_candidates` (an early model predicts nearly everything) keeps its
        gold pairs and those with the highest start + end logits. Each row is limited separately, so
        that its loss does not depend on its neighbours.

        Args:
            generator: draws the dropout; None for torch's default.
        """
        hidden_BSD = self._drop(hidden_BSD, generator)
        start_BS, end_BS = self.start_and_end(hidden_BSD)
        found = find_candidates(start_BS, end_BS, window_BS, targets, self.max_candidates)
        gold_K = found.gold_K
        match_K = self.match(
            hidden_BSD, found.pairs_K3, found.num_starts, found.num_ends, generator
        )
        num_pieces, num_pairs = window_BS.sum(), torch.tensor(len(gold_K))
        if add_up is not None:
            both = torch.stack([num_pieces, num_pairs.to(num_pieces.device)])
            num_pieces, num_pairs = add_up(both).unbind()
        num_pieces, num_pairs = num_pieces.clamp(min=1), num_pairs.clamp(min=1)
        start_loss = entropies(start_BS, targets.start_BS, window_BS).sum() / num_pieces
        end_loss = entropies(end_BS, targets.end_BS, window_BS).sum() / num_pieces
        # Without candidates this zero still gives the match head's parameters a gradient.
        match_loss = (
            F.binary_cross_entropy_with_logits(match_K, gold_K, reduction="sum") / num_pairs
        )
        start_weight, end_weight, match_weight = weights
        total = start_weight * start_loss + end_weight * end_loss + match_weight * match_loss
        return total / sum(weights)

    @torch.no_grad()
    def predict(self, hidden_BSD: Tensor, window_BS: Tensor) -> list[SpanAnswer]:
        """Logits of every row; pairs are predicted starts x predicted ends, start <= end.

        Start and end logits outside the window are -inf.
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

    def match(
        self,
        hidden_BSD: Tensor,
        pairs_K3: Tensor,
        num_starts: int | None = None,
        num_ends: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Logits of (row, first piece, last piece) triples, (K,).

        Args:
            num_starts, num_ends: numbers of distinct starts and ends, if known.
        """
        row_K, first_K, last_K = pairs_K3.unbind(1)
        num_pieces = hidden_BSD.shape[1]
        flat = hidden_BSD.flatten(0, 1)
        # A start has many ends; each distinct one is projected once.
        first, first_of_K = distinct(row_K * num_pieces + first_K, len(flat), num_starts)
        last, last_of_K = distinct(row_K * num_pieces + last_K, len(flat), num_ends)
        starts = F.embedding(first_of_K, self.match_start(F.embedding(first, flat)))
        ends = F.embedding(last_of_K, self.match_end(F.embedding(last, flat)))
        pairs_K = self.match_out(self._drop(F.gelu(starts + ends), generator)).squeeze(-1)
        return pairs_K + F.embedding(length_places(pairs_K3), self.match_length[:, None]).squeeze(
            -1
        )

    def _drop(self, hidden: Tensor, generator: torch.Generator | None) -> Tensor:
        if not (self.dropout and self.training):
            return hidden
        if generator is None:
            return F.dropout(hidden, self.dropout)
        return hidden * draw_kept(hidden.shape, self.dropout, hidden, generator)


class TaggingHeads(nn.Module):
    """Begin, inside or outside tags for each label separately: spans of different labels may overlap.

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
        add_up: AddUp | None = None,
    ) -> Tensor:
        """Cross-entropy of a word's tags, summed over labels, mean over the note's words."""
        hidden_BSD = F.dropout(hidden_BSD, self.dropout, self.training)
        logits_BSL3 = self.logits(hidden_BSD)
        total = tag_entropy(logits_BSL3, targets.tags_BSL, window_BS, picks=window_BS.is_cpu)
        num_words = (window_BS & (targets.tags_BSL[..., 0] != IGNORED)).sum()
        if add_up is not None:
            num_words = add_up(num_words)
        return total / num_words.clamp(min=1)

    @torch.no_grad()
    def predict(self, hidden_BSD: Tensor, window_BS: Tensor) -> list[np.ndarray]:
        """Tags (S, L) of every row: 0 outside, 1 begin, 2 inside; 0 outside the window."""
        tags_BSL = self.logits(hidden_BSD).argmax(-1) * window_BS[..., None]
        return list(tags_BSL.to(torch.int8).cpu().numpy())

    def logits(self, hidden_BSD: Tensor) -> Tensor:
        """(B, S, L, 3)"""
        return self.tags(hidden_BSD).unflatten(-1, (self.num_labels, 3))


class PairHeads(nn.Module):
    """Which relation do two marked mentions have, if any? The states at their first marks decide.

    Args:
        num_kinds: kinds of relation, "none" included.
        dropout: on the encoder's output, in training.

    Source: Zhong and Chen 2021, A frustratingly easy approach for entity and relation extraction,
    arXiv:2010.12812.
    """

    def __init__(self, hidden: int, num_kinds: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.kinds = nn.Linear(2 * hidden, num_kinds)

    def loss(
        self,
        hidden_BSD: Tensor,
        marks_B2: Tensor,
        targets: PairTargets,
        add_up: AddUp | None = None,
    ) -> Tensor:
        """Mean cross-entropy of the rows' kinds."""
        logits_BR = self.logits(hidden_BSD, marks_B2)
        num_rows = torch.tensor(float(len(logits_BR)), device=logits_BR.device)
        if add_up is not None:
            num_rows = add_up(num_rows)
        return F.cross_entropy(logits_BR, targets.kind_B, reduction="sum") / num_rows

    @torch.no_grad()
    def predict(self, hidden_BSD: Tensor, marks_B2: Tensor) -> list[np.ndarray]:
        """Logits (R,) of every row; the first is for no relation."""
        return list(self.logits(hidden_BSD, marks_B2).float().cpu().numpy())

    def logits(self, hidden_BSD: Tensor, marks_B2: Tensor) -> Tensor:
        """(B, R)"""
        index_B2D = marks_B2[..., None].expand(-1, -1, hidden_BSD.shape[-1])
        pairs_BX = hidden_BSD.gather(1, index_B2D).flatten(1)
        return self.kinds(F.dropout(pairs_BX, self.dropout, self.training))


class ClassifyingHeads(nn.Module):
    """A tagging head for labels and a pair head for relations, as far as the task has them.

    A batch is for one of the two.
    """

    def __init__(
        self, hidden: int, num_labels: int, num_relations: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.tagging = TaggingHeads(hidden, num_labels, dropout) if num_labels else None
        self.pairs = PairHeads(hidden, 1 + num_relations, dropout) if num_relations else None

    def loss(
        self,
        hidden_BSD: Tensor,
        inputs: Inputs,
        targets: TagTargets | PairTargets,
        add_up: AddUp | None = None,
    ) -> Tensor:
        """The loss of the batch's head."""
        if isinstance(targets, PairTargets):
            assert self.pairs is not None and inputs.marks_B2 is not None
            return self.pairs.loss(hidden_BSD, inputs.marks_B2, targets, add_up)
        assert self.tagging is not None
        return self.tagging.loss(hidden_BSD, inputs.window_BS, targets, add_up)

    def predict(self, hidden_BSD: Tensor, inputs: Inputs) -> list[np.ndarray]:
        """Tags (S, L) or logits of kinds (R,) of every row."""
        if inputs.marks_B2 is not None:
            assert self.pairs is not None
            return self.pairs.predict(hidden_BSD, inputs.marks_B2)
        assert self.tagging is not None
        return self.tagging.predict(hidden_BSD, inputs.window_BS)

    def others(self, targets: TagTargets | PairTargets) -> nn.Module | None:
        """The head that gets no gradient from such a batch, or None."""
        return self.tagging if isinstance(targets, PairTargets) else self.pairs


def _count_lengths(lengths: np.ndarray) -> np.ndarray:
    return np.bincount(lengths.clip(max=NUM_LENGTHS - 1), minlength=NUM_LENGTHS)


def length_places(pairs_K3: Tensor) -> Tensor:
    """The place of each pair's length among `NUM_LENGTHS`, (K,)."""
    return (pairs_K3[:, 2] - pairs_K3[:, 1]).clamp(max=NUM_LENGTHS - 1)


def draw_kept(
    shape: Sequence[int], dropout: float, like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Dropout's factors: 0, or 1 / (1 - dropout)."""
    kept = 1.0 - dropout
    made = torch.empty(tuple(shape), device=like.device, dtype=like.dtype)
    return made.bernoulli_(kept, generator=generator).div_(kept)


@dataclass(frozen=True, eq=False)
class Candidates:
    """The pairs over which a match loss is computed.

    Args:
        pairs_K3: long, (row, first piece, last piece), ascending.
        gold_K: 1.0 for gold pairs, in the logits' dtype.
        num_starts, num_ends: numbers of distinct (row, first piece) and (row, last piece); None on a
            CPU, where counting costs more than it saves.
    """

    pairs_K3: Tensor
    gold_K: Tensor
    num_starts: int | None = None
    num_ends: int | None = None


@torch.no_grad()
def find_candidates(
    start_BS: Tensor,
    end_BS: Tensor,
    window_BS: Tensor,
    targets: SpanTargets,
    max_candidates: int = MAX_CANDIDATES,
    *,
    counts: bool | None = None,
) -> Candidates:
    """The pairs for the match loss, by the rule in `SpanHeads.loss`.

    Args:
        counts: read all numbers that decide shapes from the device at once, instead of waiting for
            each; None for True except on a CPU.
    """
    counts = not start_BS.is_cpu if counts is None else counts
    starts_BS = ((start_BS > 0) | (targets.start_BS > 0)) & window_BS
    ends_BS = ((end_BS > 0) | (targets.end_BS > 0)) & window_BS
    chosen_BSS = _cross(starts_BS, ends_BS)
    row, first, last = targets.pairs_K3.unbind(1)
    num_pieces = start_BS.shape[1]
    gold_BSS = torch.zeros_like(chosen_BSS)
    gold_BSS.view(-1).index_fill_(0, (row * num_pieces + first) * num_pieces + last, True)
    is_full_B = chosen_BSS.flatten(1).sum(1) > max_candidates
    if not counts:
        if is_full_B.any():
            chosen_BSS = _bound(chosen_BSS, gold_BSS, is_full_B, start_BS, end_BS, max_candidates)
        chosen_BSS |= gold_BSS
        pairs_K3 = chosen_BSS.nonzero()
        return Candidates(pairs_K3, gold_BSS[tuple(pairs_K3.unbind(1))].to(start_BS.dtype))
    # Counted for the case that no row is full, together with whether one is.
    taken_BSS = chosen_BSS | gold_BSS
    num_full, *numbers = torch.stack([is_full_B.sum(), *_sizes(taken_BSS)]).tolist()
    if num_full:
        bounded = _bound(chosen_BSS, gold_BSS, is_full_B, start_BS, end_BS, max_candidates)
        taken_BSS = bounded | gold_BSS
        numbers = torch.stack(_sizes(taken_BSS)).tolist()
    num_pairs, num_starts, num_ends = numbers
    pairs_K3 = torch.nonzero_static(taken_BSS, size=num_pairs)
    gold_K = gold_BSS[tuple(pairs_K3.unbind(1))].to(start_BS.dtype)
    return Candidates(pairs_K3, gold_K, num_starts, num_ends)


def distinct(index_K: Tensor, size: int, number: int | None = None) -> tuple[Tensor, Tensor]:
    """The distinct indices in ascending order (U,), and the position of each index among them (K,).

    Args:
        size: upper bound of the indices, exclusive.
        number: U, if known; then this does not wait for the device.
    """
    seen = torch.zeros(size, dtype=torch.bool, device=index_K.device).index_fill(0, index_K, True)
    index_U = seen.nonzero() if number is None else torch.nonzero_static(seen, size=number)
    return index_U.squeeze(1), (seen.cumsum(0) - 1)[index_K]


def _bound(
    chosen_BSS: Tensor,
    gold_BSS: Tensor,
    is_full_B: Tensor,
    start_BS: Tensor,
    end_BS: Tensor,
    max_candidates: int,
) -> Tensor:
    """Limit full rows to their best pairs, gold ones first."""
    full = is_full_B.nonzero().squeeze(1)
    score = (start_BS[full, :, None] + end_BS[full, None, :]).float()
    score = score.masked_fill(~chosen_BSS[full], -torch.inf)
    score = score.masked_fill(gold_BSS[full], torch.inf).flatten(1)
    best = score.topk(max_candidates, dim=1).indices
    kept = torch.zeros_like(score, dtype=torch.bool).scatter_(1, best, True)
    kept = chosen_BSS[full] & kept.view_as(chosen_BSS[full])
    return chosen_BSS.index_copy(0, full, kept)


def _sizes(taken_BSS: Tensor) -> list[Tensor]:
    """Numbers of pairs, distinct starts and distinct ends."""
    return [taken_BSS.sum(), taken_BSS.any(2).sum(), taken_BSS.any(1).sum()]


def _cross(starts_BS: Tensor, ends_BS: Tensor) -> Tensor:
    """True where a start meets an end at or after it, (B, S, S)."""
    return (starts_BS[:, :, None] & ends_BS[:, None, :]).triu()


def tag_entropy(logits_BSL3: Tensor, tags_BSL: Tensor, window_BS: Tensor, *, picks: bool) -> Tensor:
    """Summed cross-entropy of all tags in the window, a scalar.

    Args:
        picks: select the window's pieces, which waits for the device to count them; otherwise
            compute all pieces and ignore those outside.
    """
    if picks:
        logits_BSL3, tags_BSL = logits_BSL3[window_BS], tags_BSL[window_BS]
    else:
        tags_BSL = tags_BSL.masked_fill(~window_BS[..., None], IGNORED)
    return F.cross_entropy(
        logits_BSL3.flatten(0, -2), tags_BSL.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def entropies(logits_BS: Tensor, gold_BS: Tensor, window_BS: Tensor) -> Tensor:
    """Binary cross-entropy of every piece, zero outside the window, (B, S)."""
    losses = F.binary_cross_entropy_with_logits(logits_BS, gold_BS, reduction="none")
    return losses.masked_fill(~window_BS, 0.0)
