"""Promise: operations, bytes and prices follow the formulas stated in the docstrings.

It would break without anyone noticing: a wrong factor changes every cost by the same ratio.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from raymrc.model.shapes import SHAPES, Shape
from raymrc.planning.arithmetic import (
    forward_flops,
    lane_bytes,
    layer_bytes,
    match_flops,
    pair_bytes,
    price,
    training_flops,
)

TINY = Shape("bert", num_layers=3, hidden=32, num_heads=4, ffn=48, vocab=60, positions=64)


def test_forward_flops_equal_the_count_of_torch():
    """The expected count comes from torch's own counter, which counts each matrix product."""
    torch = pytest.importorskip("torch")
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
                        intermediate_size=48, max_position_embeddings=64)  # fmt: skip
    model = BertModel(config, add_pooling_layer=False).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(input_ids=torch.ones(2, 10, dtype=torch.long))
    assert counter.get_total_flops() == forward_flops(TINY, tokens=20, row_length=10)


def test_training_the_backbone_adds_the_cost_of_one_forward_pass_through_its_weights():
    kept = training_flops(TINY, tokens=100, row_length=10, trains_backbone=False)
    trained = training_flops(TINY, tokens=100, row_length=10, trains_backbone=True)
    weights = 4 * 32 * 32 + 2 * 32 * 48
    assert trained - kept == 100 * 3 * 2 * weights


def test_full_training_takes_about_six_operations_per_weight_and_token():
    shape = SHAPES["bert-large"]
    weights = shape.num_layers * (4 * shape.hidden**2 + 2 * shape.hidden * shape.ffn)
    flops = training_flops(shape, tokens=1000, row_length=1, trains_backbone=True)
    assert flops == pytest.approx(6 * weights * 1000, rel=1e-3)


def test_a_frozen_backbone_needs_no_backward_pass_below_its_first_prompted_layer():
    def cost(first_layer: int, trains_backbone: bool) -> float:
        return training_flops(
            TINY, tokens=10, row_length=10, trains_backbone=trains_backbone, first_layer=first_layer
        )

    forward = forward_flops(TINY, tokens=10, row_length=10)
    assert cost(3, False) == forward
    assert cost(0, False) - forward == pytest.approx(3 * (cost(2, False) - forward))
    assert cost(2, True) == cost(0, True)


def test_a_longer_prompt_adds_only_attention_work():
    short = forward_flops(TINY, tokens=10, row_length=10, prompt_length=0)
    long = forward_flops(TINY, tokens=10, row_length=10, prompt_length=16)
    assert long - short == 10 * 3 * 4 * 32 * 16


@pytest.mark.parametrize("depth", ["deep", "input"])
@pytest.mark.parametrize("first_layer", [0, 2])
def test_prompted_forward_flops_equal_the_count_of_torch(depth, first_layer):
    """Input vectors join the row and pass through the layers; deep keys and values are only attended to."""
    torch = pytest.importorskip("torch")
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from raymrc.model.encoder import Encoder
    from raymrc.model.prompts import SoftPrompt
    from tests.model.tiny import random_inputs

    encoder = Encoder(TINY).eval()
    inputs = random_inputs(60, rows=2, pieces=10, padded=False)
    prefix = SoftPrompt(3, 6, TINY, depth, first_layer)(inputs.label_B)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        encoder(inputs, prefix)
    assert counter.get_total_flops() == forward_flops(
        TINY, tokens=20, row_length=10, prompt_length=6, prompt_depth=depth, first_layer=first_layer
    )


def test_match_head_flops_equal_the_count_of_torch():
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from raymrc.model.heads import SpanHeads

    heads = SpanHeads(32, 16)
    hidden = torch.randn(2, 10, 32, requires_grad=True)
    pairs = torch.tensor([[0, 1, 2], [0, 4, 5], [1, 3, 7]])
    with FlopCounterMode(display=False) as counter:
        heads.match(hidden, pairs)
    assert counter.get_total_flops() == match_flops(32, 16, 3)
    with FlopCounterMode(display=False) as counter:
        heads.match(hidden, pairs).sum().backward()
    assert counter.get_total_flops() == match_flops(32, 16, 3, trains=True)


def test_doubling_the_layers_doubles_the_training_work():
    shallow, deep = (
        training_flops(replace(TINY, num_layers=n), tokens=7, row_length=5, trains_backbone=True)
        for n in (2, 4)
    )
    assert deep == 2 * shallow


def test_prices_are_per_hour():
    assert price(1800, 2.5) == 1.25


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize(("prompt", "trains"), [(6, False), (0, True), (6, True)])
def test_layer_bytes_match_the_tensors_that_autograd_saves(pre_norm, prompt, trains):
    """The test sums each storage that autograd saves for the backward pass once, and leaves out weights."""
    torch = pytest.importorskip("torch")
    from torch.autograd.graph import saved_tensors_hooks

    from raymrc.model.encoder import Layer

    shape = Shape("bert", 1, hidden=128, num_heads=2, ffn=512, vocab=60, pre_norm=pre_norm)
    rows, pieces = 4, 32
    layer = Layer(shape).requires_grad_(trains)
    prefix = None
    if prompt:
        prefix = tuple(torch.randn(rows, 2, prompt, 64, requires_grad=True) for _ in range(2))
    weights = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hidden = torch.randn(rows, pieces, 128, requires_grad=True)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(hidden, None, prefix, dropout=0.1 if trains else 0.0)
    expected = layer_bytes(
        shape, rows * pieces, rows * prompt if prompt else None,
        trains_backbone=trains, drops=trains,
    )  # fmt: skip
    # The formula leaves out the norms' means and deviations and the softmax's sums.
    assert sum(kept.values()) == pytest.approx(expected, rel=0.02)


def test_a_layer_holds_the_bytes_of_its_activations():
    shape = SHAPES["minilm"]
    assert layer_bytes(shape, 100, 0) == 100 * (8 * 384 + 1536) * 4
    assert layer_bytes(shape, 100, 0, 2) == layer_bytes(shape, 100, 0) / 2


def test_a_gpu_lane_does_not_keep_its_best_epoch_on_the_device():
    assert (lane_bytes(10), lane_bytes(10, "gpu")) == (200, 160)


def test_pairs_hold_several_copies_of_their_hidden_layer():
    unit = 4 * 1000 * 64
    assert pair_bytes(1000, 64, asks=True) == pair_bytes(1000, 64) == 4 * unit
    assert pair_bytes(1000, 64, drops=True) == 6 * unit
    assert pair_bytes(1000, 64, is_stacked=True) == 6 * unit
    assert pair_bytes(1000, 64, is_stacked=True, drops=True) == 7 * unit
