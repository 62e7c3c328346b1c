"""Promise: every piece attends to a soft prompt, which learns and shifts nothing else.

It could break unnoticed: a prompt that is silently dropped trains to the F1 of no prompt.
"""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from raymrc.errors import PromptError
from raymrc.model.inputs import Inputs
from raymrc.model.loading import Loaded
from raymrc.model.prompts import MEASURED_WORDS, SavedPrompt, SoftPrompt, word_ids
from tests.model.tiny import random_inputs

FORMS = list(itertools.product(("deep", "input"), (0, 1, 2), ("none", "mlp", "lstm")))


def specials(loaded: Loaded) -> tuple[int, int]:
    return loaded.tokenizer.cls_token_id, loaded.tokenizer.sep_token_id


def slow_layer(layer, hidden_SD, prefix_keys=None, prefix_values=None):
    """One row through one layer, head by head, with an explicit softmax."""
    source = layer.attention_norm(hidden_SD) if layer.pre_norm else hidden_SD
    queries, keys, values = layer.qkv(source).chunk(3, dim=-1)
    size = queries.shape[-1] // layer.num_heads
    heads = []
    for head in range(layer.num_heads):
        cut = slice(head * size, (head + 1) * size)
        k, v = keys[:, cut], values[:, cut]
        if prefix_keys is not None:
            k, v = torch.cat([prefix_keys[head], k]), torch.cat([prefix_values[head], v])
        heads.append((queries[:, cut] @ k.T / size**0.5).softmax(-1) @ v)
    hidden_SD = hidden_SD + layer.attention_out(torch.cat(heads, dim=-1))
    if layer.pre_norm:
        return hidden_SD + layer.down(F.gelu(layer.up(layer.ffn_norm(hidden_SD))))
    hidden_SD = layer.attention_norm(hidden_SD)
    return layer.ffn_norm(hidden_SD + layer.down(F.gelu(layer.up(hidden_SD))))


@pytest.mark.parametrize("depth", ["deep", "input"])
@pytest.mark.parametrize("first_layer", [0, 2])
def test_a_prompt_equals_attention_written_out_row_by_row(tiny: Loaded, depth, first_layer):
    inputs = random_inputs(tiny.shape.vocab, pad_id=tiny.shape.pad_id)
    prompt = SoftPrompt(3, 5, tiny.shape, depth, first_layer)
    torch.nn.init.normal_(prompt.table)
    prefix = prompt(inputs.label_B)
    encoder = tiny.encoder
    fast = encoder(inputs, prefix)
    embedded = encoder.embed(inputs)
    for row, length in enumerate(inputs.mask_BS.sum(1).tolist()):
        hidden = embedded[row, :length]
        for layer in range(tiny.shape.num_layers):
            if depth == "input" and layer == first_layer:
                hidden = torch.cat([hidden[:1], prefix.vectors_BPD[row], hidden[1:]])
            states = prefix.at(layer)
            keys, values = (states[0][row], states[1][row]) if states else (None, None)
            hidden = slow_layer(encoder.layer(layer), hidden, keys, values)
        if depth == "input":
            hidden = torch.cat([hidden[:1], hidden[6:]])
        slow = encoder.final_norm(hidden)
        # fp32 softmax and sums in another order
        torch.testing.assert_close(fast[row, :length], slow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("depth", "first_layer", "reparametrisation"), FORMS)
def test_every_part_of_a_prompt_gets_a_gradient(tiny_bert, depth, first_layer, reparametrisation):
    prompt = SoftPrompt(3, 4, tiny_bert.shape, depth, first_layer, reparametrisation)
    inputs = random_inputs(tiny_bert.shape.vocab)
    # The square, because a LayerNorm's outputs have a constant sum
    tiny_bert.encoder(inputs, prompt(inputs.label_B))[:, 5].pow(3).sum().backward()
    for name, parameter in prompt.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_each_label_has_its_own_prompt(tiny: Loaded):
    prompt = SoftPrompt(3, 4, tiny.shape)
    inputs = random_inputs(tiny.shape.vocab, rows=2, pad_id=tiny.shape.pad_id)
    label_B = torch.tensor([2, 2])
    tiny.encoder(inputs, prompt(label_B)).pow(3).sum().backward()
    got = prompt.table.grad.view(3, -1).abs().sum(1) > 0
    assert got.tolist() == [False, False, True]


@pytest.mark.parametrize("depth", ["deep", "input"])
def test_layers_below_the_prompt_do_not_see_it(tiny: Loaded, depth):
    """Their outputs have no gradient, so nothing is kept for a backward pass."""
    seen = []
    handles = [
        layer.register_forward_hook(lambda _m, _i, out: seen.append(out.requires_grad))
        for layer in tiny.encoder.layers
    ]
    prompt = SoftPrompt(3, 4, tiny.shape, depth, first_layer=2)
    inputs = random_inputs(tiny.shape.vocab, pad_id=tiny.shape.pad_id)
    tiny.encoder(inputs, prompt(inputs.label_B))
    for handle in handles:
        handle.remove()
    assert seen == [False, False, True]


def states_of_words(tiny: Loaded, depth: str, seed: int) -> torch.Tensor:
    """The states that `initialise` measures with this seed, one row per word."""
    words = word_ids(tiny.tokenizer, tiny.shape.vocab)
    torch.manual_seed(seed)
    drawn = torch.tensor(words)[torch.randint(len(words), (MEASURED_WORDS,))]
    hidden, layered = tiny.encoder.word_states(drawn, specials(tiny), 1)
    return (hidden if depth == "input" else layered).flatten(1)


def started(tiny: Loaded, depth: str, form: str, seed: int, length: int = 64) -> torch.Tensor:
    """The vectors of a new prompt, one row per position, in the order of `states_of_words`."""
    torch.manual_seed(0)
    prompt = SoftPrompt(3, length, tiny.shape, depth, 1, form)
    torch.manual_seed(seed)
    prompt.initialise(tiny.encoder, word_ids(tiny.tokenizer, tiny.shape.vocab), specials(tiny))
    flat = prompt.vectors().detach()
    if depth == "input":
        return flat.view(3 * length, -1)
    grid = flat.view(3, -1, tiny.shape.num_heads, length, tiny.shape.head_size)
    return grid.permute(0, 3, 1, 2, 4).reshape(3 * length, -1)


@pytest.mark.parametrize("depth", ["deep", "input"])
def test_a_prompt_starts_with_the_mean_and_spread_of_words(tiny: Loaded, depth):
    real, made = states_of_words(tiny, depth, seed=1), started(tiny, depth, "none", seed=1)
    # Five standard errors of 192 draws, in every channel.
    assert ((made.mean(0) - real.mean(0)).abs() < 5 * real.std(0) / 192**0.5).all()
    assert ((made.std(0) / real.std(0) - 1).abs() < 5 / (2 * 192) ** 0.5).all()
    assert len(made.unique(dim=0)) == len(made)


@pytest.mark.parametrize("depth", ["deep", "input"])
@pytest.mark.parametrize("reparametrisation", ["mlp", "lstm"])
def test_a_reparametrised_prompt_starts_with_the_mean_and_spread_of_words(
    tiny: Loaded, depth, reparametrisation
):
    real, made = states_of_words(tiny, depth, seed=1), started(tiny, depth, reparametrisation, 1)
    torch.testing.assert_close(made.mean(0), real.mean(0), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(made.std(0), real.std(0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("reparametrisation", ["none", "mlp", "lstm"])
def test_a_prompt_of_one_vector_starts_with_numbers(tiny: Loaded, reparametrisation):
    """A single vector has no spread to divide by."""
    prompt = SoftPrompt(1, 1, tiny.shape, "deep", 1, reparametrisation)
    prompt.initialise(tiny.encoder, word_ids(tiny.tokenizer, tiny.shape.vocab), specials(tiny))
    assert prompt.vectors().isfinite().all()
    assert prompt.vectors().abs().max() < 10 * states_of_words(tiny, "deep", 0).abs().max()


def test_a_prompt_longer_than_the_position_table_can_be_initialised(tiny: Loaded):
    prompt = SoftPrompt(2, 100, tiny.shape)
    prompt.initialise(tiny.encoder, word_ids(tiny.tokenizer, tiny.shape.vocab), specials(tiny))
    assert prompt.table.isfinite().all()


@pytest.mark.parametrize("length", [0, -1, 513])
def test_a_prompt_length_outside_1_to_512_is_refused(tiny_bert: Loaded, length):
    with pytest.raises(PromptError, match=f"prompt_length: {length} is not a whole number from 1"):
        SoftPrompt(3, length, tiny_bert.shape)


@pytest.mark.parametrize("first_layer", [-1, 3])
def test_a_missing_first_layer_is_refused(tiny_bert: Loaded, first_layer):
    with pytest.raises(PromptError, match="is not a layer of this backbone; choose 0 to 2"):
        SoftPrompt(3, 4, tiny_bert.shape, first_layer=first_layer)


def test_unknown_forms_are_refused(tiny_bert: Loaded):
    with pytest.raises(PromptError, match="choose deep or input"):
        SoftPrompt(3, 4, tiny_bert.shape, depth="shallow")
    with pytest.raises(PromptError, match="choose none, mlp or lstm"):
        SoftPrompt(3, 4, tiny_bert.shape, reparametrisation="gru")


def test_a_prompt_on_another_device_is_refused(tiny_bert: Loaded):
    prompt = SoftPrompt(3, 4, tiny_bert.shape)
    inputs = random_inputs(tiny_bert.shape.vocab)
    with pytest.raises(PromptError, match="prompt is on cpu and the batch on meta"):
        prompt(inputs.label_B.to("meta"))
    elsewhere = SoftPrompt(3, 4, tiny_bert.shape).to("meta")
    with pytest.raises(PromptError, match="prompt is on meta and the backbone on cpu"):
        tiny_bert.encoder(inputs, elsewhere(inputs.label_B.to("meta")))


def questions(tiny: Loaded, *texts: str) -> list[list[int]]:
    return [tiny.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def row_of(tiny: Loaded, pieces: list[int]) -> Inputs:
    first, last = specials(tiny)
    ids = torch.tensor([[first, *pieces, last]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    return Inputs(ids, torch.zeros_like(ids), mask, mask, ids[:, 0])


@pytest.fixture
def asked(tiny: Loaded) -> list[list[int]]:
    """Questions shorter and longer than five pieces."""
    return questions(tiny, "the patient took", "was given aspirin daily for pain after warfarin")


@pytest.mark.parametrize("first_layer", [0, 2])
def test_input_vectors_start_as_the_embedded_question(tiny: Loaded, asked, first_layer):
    prompt = SoftPrompt(2, 5, tiny.shape, "input", first_layer)
    before = prompt.table.detach().clone().view(2, 5, -1)
    prompt.start_from_words(tiny.encoder, asked, specials(tiny))
    for made, drawn, pieces in zip(prompt.table.view(2, 5, -1), before, asked, strict=True):
        entering = tiny.encoder.below(row_of(tiny, pieces), first_layer)[0, 1:-1]
        length = min(len(pieces), 5)
        assert torch.equal(made[:length], entering[:length])
        assert torch.equal(made[length:], drawn[length:])
        if not first_layer and tiny.shape.embedding_norm is False and tiny.shape.types == 2:
            encoder = tiny.encoder
            around = encoder.position.weight[1 : 1 + length] + encoder.segment.weight[0]
            torch.testing.assert_close(made[:length] - around, encoder.word.weight[pieces[:length]])


@pytest.mark.parametrize("first_layer", [0, 2])
def test_deep_prompts_start_as_keys_and_values_of_the_question(tiny: Loaded, asked, first_layer):
    prompt = SoftPrompt(2, 5, tiny.shape, "deep", first_layer)
    before = prompt.arrange(prompt.table.detach().clone())
    prompt.start_from_words(tiny.encoder, asked, specials(tiny))
    prefix = prompt(torch.tensor([0, 1]))
    for label, pieces in enumerate(asked):
        inputs, length = row_of(tiny, pieces), min(len(pieces), 5)
        for layer in range(first_layer, tiny.shape.num_layers):
            entering = tiny.encoder.below(inputs, layer)
            wanted = tiny.encoder.layer(layer).keys_and_values(entering)
            for made, whole in zip(prefix.at(layer), wanted, strict=True):
                expected = whole[0, :, 1 : 1 + length]
                torch.testing.assert_close(made[label, :, :length], expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(
            prompt.arrange(prompt.table)[label, ..., length:, :], before[label, ..., length:, :]
        )


def test_the_first_layer_attends_to_the_same_keys_as_with_the_question_in_words(
    tiny: Loaded, asked
):
    """There the question has not attended to the window yet, so a prompt can replace it exactly."""
    prompt = SoftPrompt(2, 3, tiny.shape)
    prompt.start_from_words(tiny.encoder, asked, specials(tiny))
    window = questions(tiny, "no history of rash and nausea")[0]
    worded = row_of(tiny, [*asked[0], specials(tiny)[1], *window])
    layer = tiny.encoder.layer(0)
    wanted = layer.keys_and_values(tiny.encoder.embed(worded))
    for made, whole in zip(prompt(torch.tensor([0])).at(0), wanted, strict=True):
        torch.testing.assert_close(made[0], whole[0, :, 1:4], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("depth", "first_layer", "reparametrisation"), FORMS)
def test_a_prompt_starts_from_saved_vectors_by_name(
    tiny_bert: Loaded, depth, first_layer, reparametrisation
):
    trained = SoftPrompt(2, 4, tiny_bert.shape, depth, first_layer, reparametrisation)
    state = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    saved = SavedPrompt(("ADE", "Drug"), 4, depth, first_layer, reparametrisation, state)
    prompt = SoftPrompt(3, 4, tiny_bert.shape, depth, first_layer)
    before = prompt.table.detach().clone()
    drawn = torch.get_rng_state()
    prompt.start_from_saved(("Drug", "Dose", "ADE"), saved)
    assert torch.equal(torch.get_rng_state(), drawn)
    with torch.no_grad():  # an LSTM rounds differently while it records gradients
        vectors = trained.vectors()
    assert torch.equal(prompt.table[0], vectors[1])
    assert torch.equal(prompt.table[1], before[1])
    assert torch.equal(prompt.table[2], vectors[0])
