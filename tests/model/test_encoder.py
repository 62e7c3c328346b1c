"""Promise: without a prompt our encoder's numbers equal Hugging Face's, for all three kinds.

It could break unnoticed, because a slightly wrong encoder still trains, to a slightly worse F1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from raymrc.configuration import Backbone
from raymrc.errors import BackboneError, PromptError
from raymrc.model import backbones, loading
from raymrc.model.encoder import Encoder
from raymrc.model.inputs import Inputs
from raymrc.model.loading import Loaded, Weights, from_hugging_face
from raymrc.model.prompts import SoftPrompt
from tests.model.tiny import (
    KINDS,
    random_inputs,
    shared_inputs,
    tiny_checkpoint,
    tiny_config,
    tiny_loaded,
    tiny_model,
)

TOLERANCE = 1e-5
"""fp32 sums of a few hundred terms in another order differ by about 1e-6."""


def hugging_face_hidden(model, inputs: Inputs) -> list[torch.Tensor]:
    """All hidden states, the embeddings' first."""
    with torch.no_grad():
        output = model(
            input_ids=inputs.input_ids_BS,
            token_type_ids=inputs.type_ids_BS,
            attention_mask=inputs.mask_BS.long(),
            output_hidden_states=True,
        )
    return list(output.hidden_states)


def loaded_from(model, kind: str, num_layers: int | None = None) -> Encoder:
    """Our encoder with a Hugging Face model's weights, without going through a folder."""
    import json
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(model.config.to_dict()))
        shape = backbones.read_shape(Path(folder), num_layers)
    return from_hugging_face(shape, Weights(Path(folder), model.state_dict()))


def assert_equal_on_pieces(ours, theirs, inputs: Inputs) -> None:
    """Compare all positions except padding, where values are undefined."""
    mask = inputs.mask_BS
    torch.testing.assert_close(ours[mask], theirs[mask], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_the_encoder_equals_hugging_face(kind, padded, seed):
    draw = torch.Generator().manual_seed(seed)
    heads = int(torch.randint(1, 5, (1,), generator=draw))
    hidden = heads * 8 * int(torch.randint(1, 4, (1,), generator=draw))
    config = tiny_config(kind, num_layers=1 + seed, hidden=hidden, num_heads=heads, ffn=40 + seed)
    model = tiny_model(config, seed=seed)
    inputs = random_inputs(60, padded=padded, pad_id=config.pad_token_id, seed=seed)
    assert inputs.is_padded == padded
    ours = loaded_from(model, kind)(inputs)
    assert_equal_on_pieces(ours, hugging_face_hidden(model, inputs)[-1], inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_longest_row_that_fits_equals_hugging_face(kind):
    model = tiny_model(tiny_config(kind, positions=16))
    inputs = random_inputs(60, pieces=16, pad_id=model.config.pad_token_id)
    encoder = loaded_from(model, kind)
    assert_equal_on_pieces(encoder(inputs), hugging_face_hidden(model, inputs)[-1], inputs)
    with pytest.raises(BackboneError, match="17 pieces exceeds the backbone's 16 positions"):
        encoder(random_inputs(60, pieces=17, pad_id=model.config.pad_token_id))


@pytest.mark.parametrize("activation", ["gelu_new", "relu", "gelu_pytorch_tanh"])
def test_other_activations_equal_hugging_face(activation):
    config = tiny_config("bert")
    config.hidden_act = activation
    model, inputs = tiny_model(config), random_inputs(60)
    ours = loaded_from(model, "bert")(inputs)
    assert_equal_on_pieces(ours, hugging_face_hidden(model, inputs)[-1], inputs)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_the_first_layers_equal_that_hidden_state_of_hugging_face(kind, num_layers):
    model = tiny_model(tiny_config(kind))
    inputs = random_inputs(60, pad_id=model.config.pad_token_id)
    ours = loaded_from(model, kind, num_layers)(inputs)
    assert_equal_on_pieces(ours, hugging_face_hidden(model, inputs)[num_layers], inputs)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_first_layers_of_a_pre_norm_encoder_end_with_its_final_norm(num_layers):
    model = tiny_model(tiny_config("megatron-bert"))
    inputs = random_inputs(60)
    raw = hugging_face_hidden(model, inputs)[num_layers]
    encoder = loaded_from(model, "megatron-bert", num_layers)
    assert_equal_on_pieces(encoder(inputs), model.encoder.ln(raw).detach(), inputs)
    layers_alone = encoder.run(
        encoder.embed(inputs), inputs.mask_BS[:, None, None, :], stop=num_layers
    )
    assert_equal_on_pieces(layers_alone, raw, inputs)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("layers", [2, 6])
def test_real_minilm_weights_equal_hugging_face(minilm_folder, padded, layers):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(minilm_folder, local_files_only=True).eval()
    inputs = random_inputs(30000, pieces=40, padded=padded)
    encoder = loading.load_backbone(Backbone("minilm", str(minilm_folder), layers=layers)).encoder
    assert_equal_on_pieces(encoder(inputs), hugging_face_hidden(model, inputs)[layers], inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_hugging_face(kind):
    model = tiny_model(tiny_config(kind))
    inputs = random_inputs(60, pad_id=model.config.pad_token_id)
    encoder = loaded_from(model, kind).requires_grad_(True)
    weights = torch.randn(inputs.mask_BS.shape).masked_fill(~inputs.mask_BS, 0.0)[..., None]
    (encoder(inputs) * weights).mean().backward()
    theirs = model(
        input_ids=inputs.input_ids_BS,
        token_type_ids=inputs.type_ids_BS,
        attention_mask=inputs.mask_BS.long(),
    ).last_hidden_state
    (theirs * weights).mean().backward()
    layer = model.encoder.layer[0]
    ours = encoder.layer(0)
    attention = layer.attention.self
    packed = torch.cat(
        [attention.query.weight.grad, attention.key.weight.grad, attention.value.weight.grad]
    )
    torch.testing.assert_close(ours.qkv.weight.grad, packed, rtol=1e-4, atol=TOLERANCE)
    torch.testing.assert_close(
        ours.down.weight.grad, layer.output.dense.weight.grad, rtol=1e-4, atol=TOLERANCE
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_head", [False, True])
def test_checkpoints_saved_with_and_without_a_head_give_the_same_encoder(kind, with_head, tmp_path):
    loaded = tiny_loaded(kind, tmp_path, with_head=with_head)
    from safetensors import safe_open

    names = list(safe_open(tmp_path / "model.safetensors", framework="pt").keys())
    assert any(name.startswith(("bert.", "roberta.")) for name in names) == with_head
    from transformers import AutoModel

    model = AutoModel.from_pretrained(tmp_path, local_files_only=True).eval()
    inputs = random_inputs(loaded.shape.vocab, pad_id=loaded.shape.pad_id)
    theirs = hugging_face_hidden(model, inputs)[-1]
    assert_equal_on_pieces(loaded.encoder(inputs), theirs, inputs)


def test_a_checkpoint_with_the_earliest_norm_names_is_read(tmp_path):
    model = tiny_model(tiny_config("bert"))
    old = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): weight
        for name, weight in model.state_dict().items()
    }
    encoder = from_hugging_face(loaded_from(model, "bert").shape, Weights(tmp_path, old))
    inputs = random_inputs(60)
    assert_equal_on_pieces(encoder(inputs), hugging_face_hidden(model, inputs)[-1], inputs)


def test_padding_on_the_right_changes_nothing(tiny: Loaded):
    inputs = random_inputs(tiny.shape.vocab, pad_id=tiny.shape.pad_id)
    together = tiny.encoder(inputs)
    for row, length in enumerate(inputs.mask_BS.sum(1).tolist()):
        cut = Inputs(
            inputs.input_ids_BS[row : row + 1, :length],
            inputs.type_ids_BS[row : row + 1, :length],
            inputs.mask_BS[row : row + 1, :length],
            inputs.window_BS[row : row + 1, :length],
            inputs.label_B[row : row + 1],
        )
        alone = tiny.encoder(cut)[0]
        torch.testing.assert_close(together[row, :length], alone, rtol=0, atol=TOLERANCE)


def test_a_loaded_encoder_is_frozen_and_has_no_dropout(tiny: Loaded):
    assert not any(p.requires_grad for p in tiny.encoder.parameters())
    assert not tiny.encoder.training
    inputs = random_inputs(tiny.shape.vocab, pad_id=tiny.shape.pad_id)
    assert not tiny.encoder(inputs).requires_grad
    tiny.encoder.train()
    assert torch.equal(tiny.encoder(inputs), tiny.encoder(inputs))
    tiny.encoder.eval()


def test_dropout_acts_in_training_only(tiny_bert: Loaded):
    encoder = Encoder(tiny_bert.shape, dropout=0.5)
    inputs = random_inputs(tiny_bert.shape.vocab)
    encoder.train()
    assert not torch.equal(encoder(inputs), encoder(inputs))
    encoder.eval()
    assert torch.equal(encoder(inputs), encoder(inputs))


def test_a_prompt_made_for_another_backbone_is_refused(tiny_bert: Loaded, tmp_path):
    other = backbones.read_shape(tiny_checkpoint("bert", tmp_path, num_layers=2))
    inputs = random_inputs(tiny_bert.shape.vocab)
    with pytest.raises(
        PromptError, match=r"fits 2 layers of size 32, and the backbone has 3 of size 32"
    ):
        tiny_bert.encoder(inputs, SoftPrompt(3, 4, other)(inputs.label_B))


def test_a_prompt_for_another_number_of_rows_is_refused(tiny_bert: Loaded):
    inputs = random_inputs(tiny_bert.shape.vocab)
    prompt = SoftPrompt(3, 4, tiny_bert.shape)
    with pytest.raises(PromptError, match="2 rows and the batch 4"):
        tiny_bert.encoder(inputs, prompt(inputs.label_B[:2]))


@contextmanager
def rows_counted(encoder: Encoder) -> Iterator[list[int]]:
    """Number of rows in each call of a layer inside the block."""
    counts = [0] * encoder.shape.num_layers

    def count(layer: int):
        def hook(_module, inputs, _output):
            counts[layer] += len(inputs[0])

        return hook

    handles = [encoder.layer(i).register_forward_hook(count(i)) for i in range(len(counts))]
    yield counts
    for handle in handles:
        handle.remove()


late = pytest.mark.parametrize("first_layer", [1, 2])
depths = pytest.mark.parametrize("depth", ["deep", "input"])


@late
@depths
def test_equal_rows_run_once_below_the_prompt(tiny: Loaded, depth, first_layer):
    inputs = shared_inputs(tiny.shape.vocab, pad_id=tiny.shape.pad_id)
    prompt = SoftPrompt(3, 4, tiny.shape, depth, first_layer)
    with rows_counted(tiny.encoder) as counts:
        together = tiny.encoder(inputs, prompt(inputs.label_B))
    assert counts == [3] * first_layer + [7] * (3 - first_layer)
    each = tiny.encoder(replace(inputs, share_B=None), prompt(inputs.label_B))
    assert_equal_on_pieces(together, each, inputs)


@late
@depths
def test_a_trained_backbone_gets_the_same_gradient_from_shared_rows(tiny, depth, first_layer):
    inputs = shared_inputs(tiny.shape.vocab, pad_id=tiny.shape.pad_id)
    prompt = SoftPrompt(3, 4, tiny.shape, depth, first_layer)
    # The loaded encoder is shared, so a copy is trained.
    encoder = Encoder(tiny.shape)
    encoder.load_state_dict(tiny.encoder.state_dict())
    gradients = []
    for given in (inputs, replace(inputs, share_B=None)):
        encoder.zero_grad()
        with rows_counted(encoder) as counts:
            hidden = encoder(given, prompt(given.label_B))
        assert counts[0] == (3 if given is inputs else 7)
        hidden[inputs.mask_BS].pow(3).mean().backward()
        gradients.append({name: p.grad.clone() for name, p in encoder.named_parameters()})
    for name, gradient in gradients[0].items():
        # fp32 sums over rows in another order
        torch.testing.assert_close(
            gradient, gradients[1][name], rtol=1e-4, atol=TOLERANCE, msg=name
        )
    assert gradients[0]["layers.0.up.weight"].any()


@late
@depths
def test_the_input_of_the_first_prompted_layer_can_be_given(tiny: Loaded, depth, first_layer):
    inputs = shared_inputs(tiny.shape.vocab, pad_id=tiny.shape.pad_id)
    prompt = SoftPrompt(3, 4, tiny.shape, depth, first_layer)
    prefix = prompt(inputs.label_B)
    entry = tiny.encoder.below(inputs, first_layer) * inputs.mask_BS[..., None]
    nowhere = torch.full_like(inputs.input_ids_BS, -1)  # looking these up would raise
    given = replace(
        inputs,
        input_ids_BS=nowhere,
        type_ids_BS=nowhere,
        entry_BSD=entry,
        entry_layer=first_layer,
    )
    with rows_counted(tiny.encoder) as counts:
        hidden = tiny.encoder(given, prefix)
    assert counts == [0] * first_layer + [7] * (3 - first_layer)
    assert_equal_on_pieces(hidden, tiny.encoder(inputs, prefix), inputs)


def test_hidden_states_of_another_layer_are_refused(tiny_bert: Loaded):
    inputs = random_inputs(tiny_bert.shape.vocab)
    given = replace(inputs, entry_BSD=tiny_bert.encoder.below(inputs, 1), entry_layer=1)
    prompt = SoftPrompt(3, 4, tiny_bert.shape, first_layer=2)
    with pytest.raises(AssertionError, match="another layer"):
        tiny_bert.encoder(given, prompt(inputs.label_B))


def test_without_layers_below_a_prompt_every_row_is_computed(tiny: Loaded):
    inputs = shared_inputs(tiny.shape.vocab, pad_id=tiny.shape.pad_id)
    plain = replace(inputs, share_B=None)
    given = replace(inputs, entry_BSD=torch.zeros(*inputs.mask_BS.shape, 32), entry_layer=2)
    prefix = SoftPrompt(3, 4, tiny.shape)(inputs.label_B)
    for prompt in (None, prefix):
        assert torch.equal(tiny.encoder(given, prompt), tiny.encoder(plain, prompt))


def test_moving_inputs_takes_hidden_states_along_and_leaves_shared_rows_on_the_cpu(
    tiny_bert: Loaded,
):
    inputs = shared_inputs(tiny_bert.shape.vocab)
    given = replace(inputs, entry_BSD=tiny_bert.encoder.below(inputs, 1), entry_layer=1)
    moved = given.to("meta")
    assert moved.entry_BSD.is_meta and moved.label_B.is_meta
    assert moved.share_B.tolist() == inputs.share_B.tolist()
    assert (moved.entry_layer, moved.is_padded) == (1, True)
    assert inputs.to("meta").entry_BSD is None
