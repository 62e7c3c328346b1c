"""Promise: the factorised, sparse match head has the loss and gradients of the published dense one.

It could break unnoticed: a head that misses candidates still learns most of them.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raymrc.model.heads import (
    SpanHeads,
    TaggingHeads,
    distinct,
    find_candidates,
    tag_entropy,
)
from raymrc.model.inputs import SpanTargets, TagTargets
from raymrc.model.shapes import NUM_LENGTHS
from tests.model.dense_match_head import DenseSpanHeads
from tests.model.tiny import random_inputs, random_span_targets, random_tag_targets

TOLERANCE = 1e-5
HIDDEN, WIDTH = 24, 40


def twins(seed: int, bias: float, max_candidates: int = 10**6):
    """A sparse head, its dense twin, and a batch; `bias` controls how much is predicted."""
    torch.manual_seed(seed)
    sparse = SpanHeads(HIDDEN, WIDTH, max_candidates=max_candidates)
    torch.nn.init.constant_(sparse.start.bias, bias)
    torch.nn.init.constant_(sparse.end.bias, bias)
    torch.nn.init.normal_(sparse.match_length)
    dense = DenseSpanHeads(HIDDEN, WIDTH)
    dense.take(sparse)
    inputs = random_inputs(60, seed=seed)
    hidden = torch.randn(*inputs.mask_BS.shape, HIDDEN)
    return sparse, dense, hidden, inputs, random_span_targets(inputs, seed=seed)


@pytest.mark.parametrize("bias", [-9.0, -0.5, 0.0, 9.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_sparse_head_has_the_loss_and_gradients_of_the_dense_one(seed, bias):
    sparse, dense, hidden, inputs, targets = twins(seed, bias)
    weights = (1.0, 2.0, 0.5)
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    our_loss = sparse.loss(ours, inputs.window_BS, targets, weights)
    their_loss = dense.loss(theirs, inputs.window_BS, targets, weights)
    torch.testing.assert_close(our_loss, their_loss, rtol=0, atol=TOLERANCE)
    our_loss.backward()
    their_loss.backward()
    split = torch.cat([sparse.match_start.weight.grad, sparse.match_end.weight.grad], dim=1)
    for mine, twin in [
        (ours.grad, theirs.grad),
        (split, dense.match[0].weight.grad),
        (sparse.match_start.bias.grad, dense.match[0].bias.grad),
        (sparse.match_out.weight.grad, dense.match[2].weight.grad),
        (sparse.match_out.bias.grad, dense.match[2].bias.grad),
        (sparse.match_length.grad, dense.length.grad),
        (sparse.start.weight.grad, dense.start.weight.grad),
        (sparse.end.bias.grad, dense.end.bias.grad),
    ]:
        torch.testing.assert_close(mine, twin, rtol=0, atol=TOLERANCE)


def test_a_match_starts_from_the_odds_that_a_start_and_an_end_belong_together():
    heads = SpanHeads(HIDDEN, WIDTH)
    # Two spans of two pieces five apart: 2-8 is the only wrong pair. A span given twice counts once.
    heads.start_from_pairs([[(2, 3), (7, 8)], [], [(4, 5), (4, 5)], [(0, 99)], [(1, 1)] * 99])
    wanted = torch.full((NUM_LENGTHS,), 0.1).log()
    wanted[[0, 1, NUM_LENGTHS - 1]] = torch.tensor([1.1, 3.1, 1.1]).log()
    wanted[6] = torch.tensor(0.1 / 2).log()
    torch.testing.assert_close(heads.match_length.detach(), wanted)
    heads.start_from_pairs([[(1, 1)]] * 1000)
    assert heads.match_length[0] == 4, "training can still change it"
    heads.start_from_pairs([])
    torch.testing.assert_close(heads.match_length.detach(), torch.full((NUM_LENGTHS,), 0.1).log())


@pytest.mark.parametrize("seed", range(3))
def test_a_limit_that_is_not_reached_changes_nothing(seed):
    free, _, hidden, inputs, targets = twins(seed, 0.0)
    bounded, *_ = twins(seed, 0.0, max_candidates=20 * 20)
    assert torch.equal(
        free.loss(hidden, inputs.window_BS, targets),
        bounded.loss(hidden, inputs.window_BS, targets),
    )


def test_above_the_limit_gold_pairs_and_the_best_others_are_kept():
    sparse, _, hidden, inputs, targets = twins(0, 9.0, max_candidates=10)
    start, end = (logits.detach() for logits in sparse.start_and_end(hidden))
    found = find_candidates(start, end, inputs.window_BS, targets, sparse.max_candidates)
    pairs, gold = found.pairs_K3, found.gold_K
    chosen = set(map(tuple, pairs.tolist()))
    golden = set(map(tuple, targets.pairs_K3.tolist()))
    assert golden <= chosen
    assert {tuple(p) for p in pairs[gold == 1].tolist()} == golden
    for row, window in enumerate(inputs.window_BS.tolist()):
        places = [i for i, is_inside in enumerate(window) if is_inside]
        everything = {(row, i, j) for i in places for j in places if i <= j}
        score = {pair: float(start[row, pair[1]] + end[row, pair[2]]) for pair in everything}
        own_gold = {pair for pair in golden if pair[0] == row}
        ranked = sorted(everything - own_gold, key=score.__getitem__, reverse=True)
        expected = own_gold | set(ranked[: 10 - len(own_gold)])
        assert {pair for pair in chosen if pair[0] == row} == expected


def test_gold_pairs_above_the_limit_are_all_kept():
    sparse, _, hidden, inputs, targets = twins(0, 9.0, max_candidates=1)
    start, end = sparse.start_and_end(hidden)
    found = find_candidates(start, end, inputs.window_BS, targets, sparse.max_candidates)
    pairs = found.pairs_K3
    assert set(map(tuple, targets.pairs_K3.tolist())) <= set(map(tuple, pairs.tolist()))


def test_a_rows_candidates_do_not_depend_on_its_neighbours():
    sparse, _, hidden, inputs, targets = twins(0, 9.0, max_candidates=10)
    start, end = sparse.start_and_end(hidden)
    found = find_candidates(start, end, inputs.window_BS, targets, sparse.max_candidates)
    together = found.pairs_K3
    for row in range(len(start)):
        row_pairs = targets.pairs_K3[targets.pairs_K3[:, 0] == row].clone()
        row_pairs[:, 0] = 0
        alone = SpanTargets(targets.start_BS[row][None], targets.end_BS[row][None], row_pairs)
        pairs = find_candidates(
            start[row][None], end[row][None], inputs.window_BS[[row]], alone, 10
        ).pairs_K3
        assert pairs[:, 1:].tolist() == together[together[:, 0] == row][:, 1:].tolist()


@pytest.mark.parametrize("bias", [-9.0, 0.0, 9.0])
@pytest.mark.parametrize("max_candidates", [1, 10, 10**6])
@pytest.mark.parametrize("answers", [True, False])
def test_counting_first_finds_the_same_candidates(bias, max_candidates, answers):
    """A GPU reads all numbers that decide shapes at once."""
    sparse, _, hidden, inputs, targets = twins(1, bias)
    if not answers:
        nothing = torch.zeros(inputs.mask_BS.shape)
        targets = SpanTargets(nothing, nothing, torch.zeros(0, 3, dtype=torch.long))
    start, end = sparse.start_and_end(hidden)
    plain, counted = (
        find_candidates(start, end, inputs.window_BS, targets, max_candidates, counts=counts)
        for counts in (False, True)
    )
    assert torch.equal(counted.pairs_K3, plain.pairs_K3)
    assert torch.equal(counted.gold_K, plain.gold_K)
    pairs = plain.pairs_K3.tolist()
    assert counted.num_starts == len({(row, first) for row, first, _ in pairs})
    assert counted.num_ends == len({(row, last) for row, _, last in pairs})
    assert torch.equal(
        sparse.match(hidden, counted.pairs_K3, counted.num_starts, counted.num_ends),
        sparse.match(hidden, plain.pairs_K3),
    )


@pytest.mark.parametrize("counted", [True, False])
def test_distinct_is_unique_without_a_sort(counted):
    index = torch.tensor([7, 2, 2, 9, 0, 7])
    expected, back = index.unique(return_inverse=True)
    found, places = distinct(index, 10, 4 if counted else None)
    assert torch.equal(found, expected) and torch.equal(places, back)


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: its waits were not counted")
def test_a_loss_on_a_gpu_waits_once(recwarn):
    sparse, _, hidden, inputs, targets = twins(0, 0.0)
    sparse, hidden = sparse.cuda(), hidden.cuda().requires_grad_()
    inputs, targets = inputs.to("cuda"), targets.to("cuda")
    sparse.loss(hidden, inputs.window_BS, targets).backward()  # the first pass may wait
    recwarn.clear()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        sparse.loss(hidden, inputs.window_BS, targets).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [str(w.message).startswith("called a synchronizing") for w in recwarn] == [True]


def test_a_batch_without_answers_or_predictions_trains_start_and_end_only():
    sparse, dense, hidden, inputs, _ = twins(0, -9.0)
    nothing = torch.zeros(inputs.mask_BS.shape)
    targets = SpanTargets(nothing, nothing, torch.zeros(0, 3, dtype=torch.long))
    loss = sparse.loss(hidden, inputs.window_BS, targets)
    torch.testing.assert_close(loss, dense.loss(hidden, inputs.window_BS, targets))
    loss.backward()
    assert sparse.start.weight.grad.any()
    assert not sparse.match_out.weight.grad.any()  # not None, but zero


def test_pieces_outside_the_window_do_not_count():
    sparse, _, hidden, inputs, targets = twins(0, 0.0)
    loss = sparse.loss(hidden, inputs.window_BS, targets)
    other = hidden.clone()
    other[~inputs.window_BS] = 5.0
    assert torch.equal(sparse.loss(other, inputs.window_BS, targets), loss)


def test_the_published_loss_weights_are_normalised():
    sparse, _, hidden, inputs, targets = twins(0, 0.0)
    torch.testing.assert_close(
        sparse.loss(hidden, inputs.window_BS, targets, (1.0, 1.0, 0.1)),
        sparse.loss(hidden, inputs.window_BS, targets, (10.0, 10.0, 1.0)),
    )


def test_predictions_are_the_dense_heads_logits_at_predicted_starts_and_ends(monkeypatch):
    monkeypatch.setattr("raymrc.model.heads.PAIRS_AT_ONCE", 7)  # several parts
    sparse, dense, hidden, inputs, _ = twins(0, 0.0)
    match = dense.match_logits(hidden).detach().numpy()
    start_BS, end_BS = (logits.detach().numpy() for logits in sparse.start_and_end(hidden))
    answers = sparse.predict(hidden, inputs.window_BS)
    assert len(answers) == len(hidden)
    for row, (start, end, pairs, logits) in enumerate(answers):
        window = inputs.window_BS[row].numpy()
        np.testing.assert_array_equal(start[window], start_BS[row][window])
        assert np.isneginf(start[~window]).all() and np.isneginf(end[~window]).all()
        firsts, lasts = np.flatnonzero(start > 0), np.flatnonzero(end > 0)
        assert pairs.tolist() == [[i, j] for i in firsts for j in lasts if i <= j]
        np.testing.assert_allclose(logits, match[row][tuple(pairs.T)], atol=TOLERANCE)
        np.testing.assert_allclose(end[window], end_BS[row][window])


def test_an_untrained_head_predicts_nothing():
    torch.manual_seed(0)
    inputs = random_inputs(60)
    answers = SpanHeads(384, WIDTH).predict(
        F.layer_norm(torch.randn(4, 20, 384), (384,)), inputs.window_BS
    )
    assert all(len(pairs) == 0 and len(match) == 0 for _, _, pairs, match in answers)


def test_tags_are_learned_from_the_windows_pieces_alone():
    torch.manual_seed(0)
    heads = TaggingHeads(HIDDEN, 3)
    inputs = random_inputs(60)
    targets = random_tag_targets(inputs)
    hidden = torch.randn(*inputs.mask_BS.shape, HIDDEN)
    logits = heads.logits(hidden)
    expected = sum(
        F.cross_entropy(logits[row, piece, label], targets.tags_BSL[row, piece, label])
        for row, piece in inputs.window_BS.nonzero().tolist()
        for label in range(3)
    ) / int(inputs.window_BS.sum())
    torch.testing.assert_close(heads.loss(hidden, inputs.window_BS, targets), expected)
    elsewhere = targets.tags_BSL.masked_fill(~inputs.window_BS[..., None], 2)
    torch.testing.assert_close(
        heads.loss(hidden, inputs.window_BS, TagTargets(elsewhere)), expected
    )


def test_predicted_tags_are_the_likeliest_and_zero_outside_the_window():
    torch.manual_seed(0)
    heads = TaggingHeads(HIDDEN, 3)
    inputs = random_inputs(60)
    hidden = torch.randn(*inputs.mask_BS.shape, HIDDEN)
    for row, tags in enumerate(heads.predict(hidden, inputs.window_BS)):
        window = inputs.window_BS[row]
        assert tags.shape == (20, 3)
        assert not tags[~window.numpy()].any()
        best = heads.logits(hidden)[row].argmax(-1)
        assert torch.equal(torch.from_numpy(tags)[window].long(), best[window])


def test_tags_outside_the_window_are_ignored_when_all_pieces_are_computed():
    """A GPU computes all pieces, because selecting the window's pieces would wait."""
    inputs = random_inputs(60)
    targets = random_tag_targets(inputs)
    torch.manual_seed(0)
    results = []
    drawn = torch.randn(*targets.tags_BSL.shape, 3)
    for picks in (True, False):
        logits = drawn.clone().requires_grad_()
        total = tag_entropy(logits, targets.tags_BSL, inputs.window_BS, picks=picks)
        total.backward()
        results.append((total.detach(), logits.grad))
    # Sums in another order
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-6, atol=1e-5)
    assert torch.equal(results[0][1], results[1][1])
