"""Promise: rows without padding give the same numbers as padded rows, whatever their prompts.

It could break unnoticed: a row that sees its neighbour's last pieces, or one prompt position too few, still
trains, and this happens on GPUs only.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from raymrc.model.attention import Packing, make_packing
from raymrc.model.encoder import Encoder
from raymrc.model.inputs import Inputs
from raymrc.model.loading import Loaded
from raymrc.model.prefix import Prefix
from raymrc.model.prompts import SoftPrompt
from tests.model.tiny import random_inputs

TOLERANCE = 1e-5
"""fp32 sums of a few hundred terms in another order differ by about 1e-6."""

LENGTHS = (20, 1, 13, 2, 20)
PROMPTS = (4, 7, 1, 7, 3)


def make_inputs(loaded: Loaded, lengths: Sequence[int] = LENGTHS) -> Inputs:
    """Random rows of these lengths, padded to the longest."""
    whole = random_inputs(loaded.shape.vocab, rows=len(lengths), pieces=max(lengths), padded=False)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Inputs(
        whole.input_ids_BS.masked_fill(~mask, loaded.shape.pad_id),
        whole.type_ids_BS * mask,
        mask,
        whole.window_BS & mask,
        whole.label_B,
    )


def make_prefix(
    loaded: Loaded, depth: str, first_layer: int, lengths: Sequence[int] | None = PROMPTS
) -> tuple[Prefix, Tensor]:
    """One prompt per row, and the leaf tensor behind them; None for prompts of length 5."""
    longest = 5 if lengths is None else max(lengths)
    prompt = SoftPrompt(len(LENGTHS), longest, loaded.shape, depth, first_layer)
    draw = torch.Generator().manual_seed(1)
    leaf = torch.randn(prompt.table.shape, generator=draw).requires_grad_()
    return prompt.prefix(prompt.arrange(leaf), lengths and tuple(lengths)), leaf


@contextmanager
def packed(encoder: Encoder, packs: bool = True) -> Iterator[None]:
    encoder.packs = packs
    try:
        yield
    finally:
        encoder.packs = None


def loss_of(hidden_BSD: Tensor, inputs: Inputs) -> Tensor:
    """Some function of the real pieces; cubic, because a LayerNorm's outputs have a constant sum."""
    return hidden_BSD[inputs.mask_BS].pow(3).mean()


def assert_close(ours: Tensor, theirs: Tensor, name: str = "") -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=TOLERANCE, msg=name or None)


@pytest.mark.parametrize("depth", ["deep", "input"])
@pytest.mark.parametrize("first_layer", [0, 2])
@pytest.mark.parametrize("prompts", [PROMPTS, None])
def test_packed_rows_with_prompts_equal_padded_ones(tiny: Loaded, depth, first_layer, prompts):
    inputs = make_inputs(tiny)
    results = []
    for packs in (False, True):
        prefix, leaf = make_prefix(tiny, depth, first_layer, prompts)
        with packed(tiny.encoder, packs):
            hidden = tiny.encoder(inputs, prefix)
        loss_of(hidden, inputs).backward()
        results.append((hidden.detach()[inputs.mask_BS], leaf.grad))
    (padded_hidden, padded_grad), (hidden, grad) = results
    assert_close(hidden, padded_hidden)
    assert_close(grad, padded_grad)
    assert grad.abs().max() > 1e-3


def test_packed_rows_without_a_prompt_equal_padded_ones(tiny: Loaded):
    inputs = make_inputs(tiny)
    padded_hidden = tiny.encoder(inputs)
    with packed(tiny.encoder):
        assert_close(tiny.encoder(inputs)[inputs.mask_BS], padded_hidden[inputs.mask_BS])


@pytest.mark.parametrize("depth", [None, "deep", "input"])
@pytest.mark.parametrize("first_layer", [0, 1])
def test_a_trained_backbone_gets_the_gradients_of_padded_rows(tiny: Loaded, depth, first_layer):
    inputs = make_inputs(tiny)
    results = []
    for packs in (False, True):
        encoder = copy.deepcopy(tiny.encoder).requires_grad_(True)
        prefix = None if depth is None else make_prefix(tiny, depth, first_layer)[0]
        with packed(encoder, packs):
            loss_of(encoder(inputs, prefix), inputs).backward()
        results.append({name: p.grad for name, p in encoder.named_parameters()})
    for name, padded_grad in results[0].items():
        if padded_grad is None:  # RoBERTa does not use one of its segments
            assert results[1][name] is None
            continue
        assert_close(results[1][name], padded_grad, name)


def test_layers_see_no_padding(tiny: Loaded):
    """Otherwise packing would save nothing."""
    seen = []
    handle = tiny.encoder.layers[-1].register_forward_hook(lambda _m, _i, out: seen.append(out))
    inputs = make_inputs(tiny)
    with packed(tiny.encoder):
        for depth in ("deep", "input"):
            tiny.encoder(inputs, make_prefix(tiny, depth, 0)[0])
    handle.remove()
    assert [len(out) for out in seen] == [sum(LENGTHS), sum(LENGTHS) + sum(PROMPTS)]


def test_packing_does_not_wait_for_the_device(tiny: Loaded):
    """Offsets and indices come from lengths known on the host, so the meta device suffices."""
    packing = make_packing(LENGTHS, 20, torch.device("meta"), PROMPTS, 7)
    assert packing.keys_X.is_meta and len(packing.keys_X) == sum(LENGTHS) + sum(PROMPTS)
    inputs = make_inputs(tiny)
    given = Inputs(
        *(torch.empty_like(t, device="meta") for t in (
            inputs.input_ids_BS, inputs.type_ids_BS, inputs.mask_BS, inputs.window_BS,
            inputs.label_B,
        )),
        lengths=LENGTHS,
    )  # fmt: skip
    assert given.is_padded and given.lengths == inputs.lengths == LENGTHS


def test_the_packing_of_two_rows_by_hand():
    packing: Packing = make_packing((3, 1), 3, torch.device("cpu"), (1, 2), 2, behind=1)
    # Prompt positions are 0 1 | 2 3, where 1 is padding; pieces are 4 5 6 | 7.
    assert packing.pieces_T.tolist() == [0, 1, 2, 3]
    assert packing.keys_X.tolist() == [4, 0, 5, 6, 7, 2, 3]
    assert packing.piece_keys_T.tolist() == [0, 2, 3, 4]
    assert packing.query_offsets.tolist() == [0, 3, 4]
    assert packing.key_offsets.tolist() == [0, 4, 7]
    assert packing.key_offsets.dtype == torch.int32
    in_front = make_packing((3, 1), 3, torch.device("cpu"), (1, 2), 2)
    assert in_front.keys_X.tolist() == [0, 4, 5, 6, 2, 3, 7]


def test_a_cpu_uses_padded_rows(tiny: Loaded, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("raymrc.model.encoder.make_packing", refuse)
    tiny.encoder(make_inputs(tiny), make_prefix(tiny, "deep", 0)[0])


def cuda_bf16(loaded: Loaded) -> tuple[Encoder, Inputs]:
    return copy.deepcopy(loaded.encoder).to("cuda", torch.bfloat16), make_inputs(loaded).to("cuda")


def to_cuda(prefix: Prefix) -> Prefix:
    from dataclasses import replace

    return replace(
        prefix,
        keys_and_values=tuple((k.cuda(), v.cuda()) for k, v in prefix.keys_and_values),
        vectors_BPD=None if prefix.vectors_BPD is None else prefix.vectors_BPD.cuda(),
    )


needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU: the variable-length kernel was not tried"
)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("depth", [None, "deep", "input"])
@pytest.mark.parametrize("first_layer", [0, 2])
def test_the_variable_length_kernel_equals_padded_rows(tiny: Loaded, depth, first_layer):
    encoder, inputs = cuda_bf16(tiny)
    encoder.requires_grad_(True)
    results = []
    for packs in (False, None):  # None: chosen automatically
        encoder.packs = packs
        encoder.zero_grad()
        leaf, prefix = None, None
        if depth is not None:
            prefix, leaf = make_prefix(tiny, depth, first_layer)
            prefix = to_cuda(prefix)
        assert encoder._packs(inputs, prefix) is (packs is None)
        hidden = encoder(inputs, prefix)
        assert hidden.dtype == torch.float32
        loss_of(hidden, inputs).backward()
        gradient = encoder.layer(2).qkv.weight.grad if leaf is None else leaf.grad
        results.append((hidden.detach()[inputs.mask_BS], gradient.float().clone()))
    (padded_hidden, padded_grad), (hidden, grad) = results
    # bf16 has 8 bits: three layers of two roundings each give errors of a few percent of the values'
    # spread, which is near 1 after the last LayerNorm.
    torch.testing.assert_close(hidden, padded_hidden, rtol=0, atol=0.1)
    assert (grad - padded_grad).norm() < 0.05 * padded_grad.norm()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("depth", ["deep", "input"])
def test_a_packed_pass_never_waits_for_the_device(tiny: Loaded, depth):
    encoder, inputs = cuda_bf16(tiny)
    prefix = to_cuda(make_prefix(tiny, depth, 0)[0])
    encoder(inputs, prefix)  # the first pass may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_of_all = encoder(inputs, prefix).pow(3).mean()
        loss_of_all.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
