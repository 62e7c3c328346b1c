"""Promise: in bf16 a fold-run learns what it learns in fp32, and trained parameters stay fp32.

It could break unnoticed: a parameter kept in bf16 loses small steps and still trains a little.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from raymrc.errors import BackboneError
from raymrc.model import loading
from raymrc.model.loading import Loaded
from raymrc.model.network import Model
from raymrc.model.precision import precision
from raymrc.model.strategies import STRATEGIES
from tests.model.tiny import (
    random_inputs,
    random_span_targets,
    random_tag_targets,
    tiny_backbone,
    tiny_checkpoint,
    tiny_configuration,
)

FORMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("fine_tune", {}),
    ("hard_prompt", {}),
    ("soft_prompt", {}),
    ("soft_prompt", {"prompt_depth": "input"}),
    ("frozen_soft_prompt", {}),
    ("frozen_soft_prompt", {"prompt_depth": "input", "first_layer": 1}),
    ("frozen_soft_prompt", {"first_layer": 2, "reparametrisation": "mlp"}),
)


def make_model(loaded: Loaded, strategy: str, half: bool, **fields: Any) -> Model:
    """A model as on a GPU with bf16 (`half`), or in fp32."""
    dtype = torch.bfloat16 if half else torch.float32
    kept = loading.load_backbone(loaded.backbone, "cpu", dtype=dtype)
    model = Model(tiny_configuration(loaded.backbone, strategy, **fields), kept, 3)
    if half and STRATEGIES[strategy].trains_backbone:
        model.encoder.computes_in = torch.bfloat16
    return model.train()


def step(model: Model, strategy: str, loaded: Loaded) -> tuple[Tensor, dict[str, Tensor]]:
    inputs = random_inputs(loaded.shape.vocab, pad_id=loaded.shape.pad_id)
    is_tagging = strategy == "fine_tune"
    targets = random_tag_targets(inputs) if is_tagging else random_span_targets(inputs)
    loss = model.loss(inputs, targets)
    loss.backward()
    return loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize(("strategy", "fields"), FORMS)
def test_bf16_has_the_loss_and_gradients_of_fp32(tiny: Loaded, strategy, fields, packs):
    exact = make_model(tiny, strategy, half=False, **fields)
    rounded = make_model(tiny, strategy, half=True, **fields)
    if exact.prompt is not None:  # drawn from states of words, which bf16 changes a little
        rounded.prompt.load_state_dict(exact.prompt.state_dict())
    rounded.encoder.packs = packs
    loss, gradients = step(exact, strategy, tiny)
    loss_16, gradients_16 = step(rounded, strategy, tiny)
    assert loss_16.dtype == torch.float32
    # A bf16 number has an error of up to 1/256; a loss is a mean of many.
    torch.testing.assert_close(loss_16, loss, rtol=0.02, atol=0)
    assert gradients.keys() == gradients_16.keys()
    for owner in ("encoder.", "prompt.", "heads."):
        ours = [g.flatten() for n, g in gradients_16.items() if n.startswith(owner)]
        theirs = [g.flatten() for n, g in gradients.items() if n.startswith(owner)]
        if ours:
            ours, theirs = torch.cat(ours), torch.cat(theirs)
            assert ours.any()
            # A gradient passes all layers twice, which costs a few percent of its length.
            assert (ours - theirs).norm() < 0.1 * theirs.norm(), owner


@pytest.mark.parametrize(("strategy", "fields"), FORMS)
def test_what_is_trained_stays_fp32_and_moves(tiny_bert: Loaded, strategy, fields):
    model = make_model(tiny_bert, strategy, half=True, **fields)
    before = model.trained_state()
    assert {t.dtype for t in before.values()} == {torch.float32}
    optimiser = torch.optim.AdamW(model.parameter_groups(), fused=True)
    _, gradients = step(model, strategy, tiny_bert)
    assert {g.dtype for g in gradients.values()} == {torch.float32}
    optimiser.step()
    after = model.trained_state()
    assert {t.dtype for t in after.values()} == {torch.float32}
    assert all(not torch.equal(after[n], before[n]) for n in gradients if gradients[n].any())


def test_answers_in_bf16_are_decoded(tiny_bert: Loaded):
    inputs = random_inputs(tiny_bert.shape.vocab)
    model = make_model(tiny_bert, "frozen_soft_prompt", half=True)
    assert model.encoder(inputs).dtype == torch.float32
    assert all(answer[0].dtype == "float32" for answer in model.predict(inputs))


def test_a_cpu_keeps_and_computes_in_fp32(tiny_bert: Loaded):
    assert precision("cpu") == torch.float32
    kept = loading.load_backbone(tiny_bert.backbone, "cpu").encoder
    assert {p.dtype for p in kept.parameters()} == {torch.float32}
    model = Model(tiny_configuration(tiny_bert.backbone, "hard_prompt"), tiny_bert, 3)
    assert model.encoder.computes_in == torch.float32


def test_a_prompt_starts_alike_on_a_backbone_in_bf16(tiny: Loaded):
    exact = make_model(tiny, "frozen_soft_prompt", half=False).prompt.table
    rounded = make_model(tiny, "frozen_soft_prompt", half=True).prompt.table
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_a_backbone_kept_in_bf16_is_trained_from_its_unrounded_weights(tiny_bert: Loaded):
    kept = loading.load_backbone(tiny_bert.backbone, "cpu", dtype=torch.bfloat16)
    model = Model(tiny_configuration(tiny_bert.backbone, "soft_prompt"), kept, 3)
    for name, weight in tiny_bert.encoder.named_parameters():
        copy = model.encoder.get_parameter(name)
        assert torch.equal(copy, weight) and copy.requires_grad, name
    assert kept.encoder.word.weight.dtype == torch.bfloat16 and not kept.encoder.is_trained


def test_weights_that_changed_on_disk_are_not_trained(tmp_path):
    folder = tiny_checkpoint("bert", tmp_path)
    kept = loading.load_backbone(tiny_backbone(folder), "cpu", dtype=torch.bfloat16)
    tiny_checkpoint("bert", tmp_path, seed=1)
    with pytest.raises(BackboneError, match="backbone tiny: its files have changed"):
        Model(tiny_configuration(kept.backbone, "soft_prompt"), kept, 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: its precision was not asked")
def test_a_frozen_backbone_on_a_gpu_is_kept_in_its_precision(tiny_bert: Loaded):
    kept = loading.load_backbone(tiny_bert.backbone, "cuda").encoder
    assert {p.dtype for p in kept.parameters()} == {precision("cuda")}
