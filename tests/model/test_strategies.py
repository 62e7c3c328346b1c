"""Promise: each strategy trains exactly what it states.

It could break unnoticed: an unfrozen backbone in a frozen run gives a better F1.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import save

from raymrc.errors import PromptError, TrainingError
from raymrc.model.loading import Loaded
from raymrc.model.network import Model
from raymrc.model.prompts import SavedPrompt, Start
from raymrc.model.strategies import STRATEGIES
from tests.model.tiny import (
    random_inputs,
    random_span_targets,
    random_tag_targets,
    tiny_configuration,
)


def batch(loaded: Loaded, strategy: str):
    inputs = random_inputs(loaded.shape.vocab, pad_id=loaded.shape.pad_id, types=loaded.shape.types)
    tags = STRATEGIES[strategy].answers == "tags"
    return inputs, (random_tag_targets if tags else random_span_targets)(inputs)


def train(model, inputs, targets, steps: int = 1) -> list[float]:
    optimiser = torch.optim.AdamW(model.parameter_groups())
    model.train()
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = model.loss(inputs, targets)
        loss.backward()
        model.check_gradients()
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_step_changes_what_is_stated_as_trained_and_nothing_else(tiny: Loaded, strategy):
    model = Model(tiny_configuration(tiny.backbone, strategy), tiny, 3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    pretrained = {name: p.clone() for name, p in tiny.encoder.named_parameters()}
    train(model, *batch(tiny, strategy), steps=3)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    stated = set(model.statement().counts)
    assert changed <= stated
    # The match head may still have no candidates.
    assert {name for name in stated - changed if "match" not in name} == set()
    if not STRATEGIES[strategy].trains_backbone:
        assert not any(name.startswith("encoder.") for name in stated)
        assert all(p.grad is None for p in model.encoder.parameters())
    for name, parameter in tiny.encoder.named_parameters():
        assert torch.equal(parameter, pretrained[name]), "the shared backbone was changed"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_training_lowers_the_loss(tiny: Loaded, strategy):
    model = Model(tiny_configuration(tiny.backbone, strategy), tiny, 3)
    losses = train(model, *batch(tiny, strategy), steps=30)
    assert losses[-1] < 0.7 * losses[0]


def test_a_frozen_strategy_uses_the_loaded_encoder_in_place(tiny_bert: Loaded):
    frozen = Model(tiny_configuration(tiny_bert.backbone, "frozen_soft_prompt"), tiny_bert, 3)
    trained = Model(tiny_configuration(tiny_bert.backbone, "soft_prompt"), tiny_bert, 3)
    assert frozen.encoder is tiny_bert.encoder
    assert trained.encoder is not tiny_bert.encoder
    assert not any(p.requires_grad for p in tiny_bert.encoder.parameters())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_parameter_is_in_one_optimiser_group_or_frozen(tiny_bert: Loaded, strategy):
    configuration = tiny_configuration(
        tiny_bert.backbone, strategy, prompt_learning_rate=0.5, head_learning_rate=0.25
    )
    model = Model(configuration, tiny_bert, 3)
    grouped = [p for group in model.parameter_groups() for p in group["params"]]
    assert len({id(p) for p in grouped}) == len(grouped)
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters() if p.requires_grad}
    rates = {group["name"].split(",")[0]: group["lr"] for group in model.parameter_groups()}
    expected = {"backbone": configuration.learning_rate, "prompt": 0.5, "heads": 0.25}
    assert rates == {name: expected[name] for name in rates}


def test_prompt_and_heads_use_the_learning_rate_unless_they_have_their_own(tiny_bert: Loaded):
    configuration = tiny_configuration(tiny_bert.backbone, "frozen_soft_prompt", learning_rate=0.03)
    groups = Model(configuration, tiny_bert, 3).parameter_groups()
    assert {group["lr"] for group in groups} == {0.03}


def test_biases_norms_and_prompts_do_not_decay(tiny_bert: Loaded):
    model = Model(tiny_configuration(tiny_bert.backbone, "soft_prompt"), tiny_bert, 3)
    decays = {
        id(p): group["weight_decay"] > 0 for g in [model.parameter_groups()] for group in g
        for p in group["params"]
    }  # fmt: skip
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (parameter.dim() > 1 and not name.startswith("prompt.")), (
            name
        )


def test_a_parameter_without_a_group_is_an_error(tiny_bert: Loaded):
    model = Model(tiny_configuration(tiny_bert.backbone, "hard_prompt"), tiny_bert, 3)
    model.stray = torch.nn.Linear(2, 2)
    with pytest.raises(AssertionError, match=r"stray\.weight is claimed by \[\]"):
        model._claim()


def test_a_parameter_under_two_names_is_an_error(tiny_bert: Loaded):
    model = Model(tiny_configuration(tiny_bert.backbone, "hard_prompt"), tiny_bert, 3)
    model.heads.end = model.heads.start
    with pytest.raises(AssertionError, match="claimed under two names"):
        model._claim()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_statement_has_the_size_of_the_saved_adapter(tiny: Loaded, strategy):
    model = Model(tiny_configuration(tiny.backbone, strategy), tiny, 3)
    statement = model.statement()
    state = model.trained_state()
    assert statement.adapter_bytes == len(save(state))
    assert (
        statement.trained
        == sum(t.numel() for t in state.values())
        == sum(statement.counts.values())
    )
    assert set(statement.counts) == set(state)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_saved_state_predicts_as_the_model_that_was_trained(tiny: Loaded, strategy):
    configuration = tiny_configuration(tiny.backbone, strategy)
    model = Model(configuration, tiny, 3)
    inputs, targets = batch(tiny, strategy)
    train(model, inputs, targets, steps=2)
    other = Model(dataclasses.replace(configuration, seed=99), tiny, 3)
    other.load_trained_state(model.trained_state())
    assert torch.equal(model.eval().loss(inputs, targets), other.eval().loss(inputs, targets))
    assert repr(model.predict(inputs)) == repr(other.predict(inputs))


def test_a_saved_state_is_a_copy(tiny_bert: Loaded):
    model = Model(tiny_configuration(tiny_bert.backbone, "frozen_soft_prompt"), tiny_bert, 3)
    state = model.trained_state()
    before = state["prompt.table"].clone()
    train(model, *batch(tiny_bert, "frozen_soft_prompt"))
    assert torch.equal(state["prompt.table"], before)


def test_a_state_of_another_configuration_is_refused(tiny_bert: Loaded):
    model = Model(tiny_configuration(tiny_bert.backbone, "frozen_soft_prompt"), tiny_bert, 3)
    longer = Model(
        tiny_configuration(tiny_bert.backbone, "frozen_soft_prompt", prompt_length=5), tiny_bert, 3
    )
    with pytest.raises(TrainingError, match=r"prompt\.table is \(3, 960\), not \(3, 768\)"):
        model.load_trained_state(longer.trained_state())
    hard = Model(tiny_configuration(tiny_bert.backbone, "hard_prompt"), tiny_bert, 3)
    with pytest.raises(TrainingError, match="is only in one"):
        model.load_trained_state(hard.trained_state())


def test_a_prompt_without_a_gradient_is_an_error(tiny_bert: Loaded):
    model = Model(tiny_configuration(tiny_bert.backbone, "frozen_soft_prompt"), tiny_bert, 3)
    inputs, targets = batch(tiny_bert, "frozen_soft_prompt")
    model.heads.loss(tiny_bert.encoder(inputs), inputs.window_BS, targets).backward()
    with pytest.raises(PromptError, match=r"prompt\.table is trained but got no gradient"):
        model.check_gradients()
    model.prompt.table.grad = torch.zeros_like(model.prompt.table)
    with pytest.raises(PromptError, match=r"prompt\.table is trained but its gradient is all zero"):
        model.check_gradients()


def test_a_batch_that_asks_one_label_only_passes_the_gradient_check(tiny_bert: Loaded):
    model = Model(tiny_configuration(tiny_bert.backbone, "frozen_soft_prompt"), tiny_bert, 3)
    inputs, targets = batch(tiny_bert, "frozen_soft_prompt")
    single_label = dataclasses.replace(inputs, label_B=torch.full_like(inputs.label_B, 1))
    model.loss(single_label, targets).backward()
    model.check_gradients()


@pytest.mark.parametrize("length", [0, 513])
def test_a_configuration_with_an_impossible_prompt_is_refused(tiny_bert: Loaded, length):
    configuration = tiny_configuration(tiny_bert.backbone, "soft_prompt", prompt_length=length)
    with pytest.raises(PromptError, match="prompt_length"):
        Model(configuration, tiny_bert, 3)


def test_the_seed_decides_the_start_and_leaves_other_random_numbers_alone(tiny_bert: Loaded):
    configuration = tiny_configuration(tiny_bert.backbone, "soft_prompt")
    torch.manual_seed(5)
    first = Model(configuration, tiny_bert, 3).trained_state()
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    second = Model(configuration, tiny_bert, 3).trained_state()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = Model(dataclasses.replace(configuration, seed=14), tiny_bert, 3).trained_state()
    assert not torch.equal(first["prompt.table"], other["prompt.table"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_prediction_uses_no_dropout_and_keeps_the_mode(tiny_bert: Loaded, strategy):
    model = Model(tiny_configuration(tiny_bert.backbone, strategy, dropout=0.5), tiny_bert, 3)
    inputs, _ = batch(tiny_bert, strategy)
    model.train()
    assert repr(model.predict(inputs)) == repr(model.predict(inputs))
    assert model.training


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_dropout_reaches_the_backbone_only_where_it_is_trained(tiny_bert: Loaded, strategy):
    model = Model(tiny_configuration(tiny_bert.backbone, strategy, dropout=0.5), tiny_bert, 3)
    inputs, _ = batch(tiny_bert, strategy)
    model.train()
    same = torch.equal(model.hidden(inputs), model.hidden(inputs))
    assert same != STRATEGIES[strategy].trains_backbone
    tiny_bert.encoder.eval()


def start_of(model) -> Start:
    """Questions in words, and a trained prompt for the second question and for an unused label."""
    form = model.configuration
    saved = SavedPrompt(
        ("ADE", "Route"), form.prompt_length, form.prompt_depth, form.first_layer, "none",
        {"table": model.prompt.table.detach()[:2] + 1},
    )  # fmt: skip
    words = {"Drug": "the patient took", "ADE": "no rash after aspirin", "Dose": "two mg daily"}
    return Start(("Drug", "ADE", "Dose"), words, saved)


@pytest.mark.parametrize("strategy", ["soft_prompt", "frozen_soft_prompt"])
@pytest.mark.parametrize("depth", ["deep", "input"])
def test_the_configured_start_changes_the_prompt_alone(tiny_bert, strategy, depth):
    def made(start: Start | None = None, **fields):
        configuration = tiny_configuration(
            tiny_bert.backbone, strategy, prompt_depth=depth, **fields
        )
        return Model(configuration, tiny_bert, 3, start=start)

    plain = made()
    start = start_of(plain)
    random = made(start).trained_state()
    worded = made(start, prompt_initialisation="question")
    adapted = made(start, prompt_initialisation="adapter").trained_state()
    before, asked = plain.trained_state(), worded.trained_state()
    assert all(torch.equal(random[name], before[name]) for name in before)
    for state in (asked, adapted):
        assert not torch.equal(state["prompt.table"], before["prompt.table"])
        assert all(torch.equal(state[n], before[n]) for n in before if n != "prompt.table")
    assert not (asked["prompt.table"] == before["prompt.table"]).all(1).any()
    assert start.saved is not None
    assert torch.equal(adapted["prompt.table"][1], start.saved.state["table"][0])
    assert torch.equal(adapted["prompt.table"][[0, 2]], before["prompt.table"][[0, 2]])
    train(worded, *batch(tiny_bert, strategy), steps=2)  # checks gradients
