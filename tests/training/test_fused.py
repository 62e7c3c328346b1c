"""A lane learns the same no matter which lanes share its pass.

A bug here would be silent: a row that sees a neighbour's prompt, or a mean over another lane's pieces,
still trains to a plausible result.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from raymrc.errors import TrainingError
from raymrc.model.loading import Loaded
from raymrc.model.network import Model
from raymrc.training.fused import BatchPart, backward_together, clip_together, predict_together
from tests.model.tiny import (
    KINDS,
    random_inputs,
    random_span_targets,
    shared_inputs,
    tiny_configuration,
    tiny_loaded,
)

NUM_LABELS = 3

FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"seed": 14},
    {"prompt_length": 7},
    {"prompt_length": 2, "match_width": 24},
    {"first_layer": 2},
    {"first_layer": 2, "prompt_length": 6},
    {"prompt_depth": "input"},
    {"prompt_depth": "input", "prompt_length": 5},
    {"prompt_depth": "input", "first_layer": 1},
    {"reparametrisation": "mlp"},
    {"reparametrisation": "lstm"},
    {"reparametrisation": "lstm", "seed": 15},
    {"loss_weights": (1.0, 2.0, 0.5)},
)
"""These lanes differ where configurations can differ."""


@pytest.fixture(scope="module", params=KINDS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return tiny_loaded(request.param, tmp_path_factory.mktemp("tiny"))


def make_model(loaded: Loaded, **fields: Any) -> Model:
    configuration = tiny_configuration(loaded.backbone, "frozen_soft_prompt", **fields)
    model = Model(configuration, loaded, NUM_LABELS)
    # Zero biases mimic a model that already predicts; otherwise the match head sees only gold pairs.
    torch.nn.init.constant_(model.heads.start.bias, 0.0)
    torch.nn.init.constant_(model.heads.end.bias, 0.0)
    return model.train()


def make_part(
    loaded: Loaded,
    number: int,
    *,
    rows: int | None = None,
    pieces: int | None = None,
    **fields: Any,
) -> BatchPart:
    """Makes a lane with its own batch size."""
    model = make_model(loaded, **fields)
    inputs = random_inputs(
        loaded.shape.vocab,
        rows=rows or 1 + number % 4,
        pieces=pieces or 14 + number % 5,
        pad_id=loaded.shape.pad_id,
        seed=number,
    )
    generator = torch.Generator().manual_seed(number)
    return BatchPart(model, inputs, random_span_targets(inputs, seed=number), generator)


def gradients(model: Model) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_every_lane_in_a_shared_pass_gets_the_loss_and_gradients_it_has_alone(
    loaded: Loaded,
) -> None:
    parts = [make_part(loaded, i, dropout=0.0, **form) for i, form in enumerate(FORMS)]
    alone = []
    for part in parts:
        loss = part.model.loss(part.inputs, part.targets)
        loss.backward()
        alone.append((loss.detach(), gradients(part.model)))
        part.model.zero_grad(set_to_none=True)
    losses = backward_together(parts)
    for part, loss, (own_loss, own_gradients) in zip(parts, losses, alone, strict=True):
        # fp32 sums run in a different order over rows of a different width
        torch.testing.assert_close(loss, own_loss, rtol=1e-5, atol=1e-6)
        found = gradients(part.model)
        assert found.keys() == own_gradients.keys()
        for name, gradient in own_gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("depth", ["deep", "input"])
@pytest.mark.parametrize("first_layer", [1, 2])
def test_lanes_learn_the_same_with_shared_rows_or_precomputed_states(
    loaded: Loaded, depth: str, first_layer: int
) -> None:
    """Batches differ in width and size, and one lane has no rows to share."""

    def results(form: str) -> tuple[Tensor, list[dict[str, Tensor]], list[int]]:
        parts = []
        for number in range(3):
            model = make_model(loaded, prompt_depth=depth, first_layer=first_layer, seed=number)
            inputs = shared_inputs(
                loaded.shape.vocab, 2 + number, pad_id=loaded.shape.pad_id, seed=number
            )
            if number == 1:
                inputs = random_inputs(
                    loaded.shape.vocab, 4, 14, pad_id=loaded.shape.pad_id, seed=number
                )
            targets = random_span_targets(inputs, seed=number)
            if form == "plain":
                inputs = replace(inputs, share_B=None)
            if form == "entered" or (form == "some entered" and number):
                entry = loaded.encoder.below(inputs, first_layer) * inputs.mask_BS[..., None]
                inputs = replace(inputs, entry_BSD=entry, entry_layer=first_layer)
            parts.append(BatchPart(model, inputs, targets))
        seen = []
        hook = loaded.encoder.layer(0).register_forward_hook(
            lambda _m, given, _o: seen.append(len(given[0]))
        )
        losses = backward_together(parts)
        hook.remove()
        return losses, [gradients(part.model) for part in parts], seen

    losses, expected, seen = results("plain")
    assert seen == [5 + 4 + 9]
    distinct = [2 + 4 + 4]
    for form, rows in (("shared", distinct), ("entered", []), ("some entered", distinct)):
        own_losses, found, seen = results(form)
        assert seen == rows, form
        # fp32 products run over a different number of rows
        torch.testing.assert_close(own_losses, losses, rtol=1e-5, atol=1e-6)
        for mine, theirs in zip(found, expected, strict=True):
            for name, gradient in theirs.items():
                torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_a_lane_is_bit_equal_whatever_its_neighbours_contain(loaded: Loaded) -> None:
    """At equal shapes the neighbours do not change even the last bit of a lane."""

    def among(others: int) -> tuple[Tensor, dict[str, Tensor]]:
        mine = make_part(loaded, 1, rows=3, pieces=16, dropout=0.1)
        theirs = [
            make_part(loaded, others + i, rows=3, pieces=16, dropout=0.1, seed=others + i)
            for i in range(31)
        ]
        for part in theirs:  # neighbours predict nothing, so the pair tensors have equal shapes
            torch.nn.init.constant_(part.model.heads.start.bias, -50.0)
        losses = backward_together([*theirs[:7], mine, *theirs[7:]])
        return losses[7], gradients(mine.model)

    (loss, found), (other_loss, other_found) = among(100), among(200)
    assert torch.equal(loss, other_loss)
    assert all(torch.equal(found[name], other_found[name]) for name in found)


def test_a_lane_draws_the_same_dropout_alone_and_among_others(loaded: Loaded) -> None:
    alone = make_part(loaded, 2, dropout=0.3)
    loss = backward_together([alone])[0]
    mine = make_part(loaded, 2, dropout=0.3)
    others = [make_part(loaded, i, dropout=0.3, prompt_length=3 + i) for i in range(3, 6)]
    losses = backward_together([*others, mine])
    torch.testing.assert_close(losses[-1], loss, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients(alone.model).items():
        torch.testing.assert_close(gradients(mine.model)[name], gradient, rtol=1e-4, atol=1e-6)
    undropped = make_part(loaded, 2, dropout=0.0)
    assert not torch.allclose(backward_together([undropped])[0], loss)


def test_the_backbone_gets_no_gradient(loaded: Loaded) -> None:
    backward_together([make_part(loaded, i) for i in range(3)])
    assert all(p.grad is None for p in loaded.encoder.parameters())


def test_a_lane_without_answers_or_predictions_does_not_change_its_neighbours_loss(
    loaded: Loaded,
) -> None:
    silent = make_part(loaded, 3, dropout=0.0)
    for head in (silent.model.heads.start, silent.model.heads.end):
        torch.nn.init.constant_(head.bias, -50.0)
    none = torch.zeros_like(silent.targets.start_BS)
    no_pairs = torch.zeros(0, 3, dtype=torch.long)
    silent = BatchPart(silent.model, silent.inputs, type(silent.targets)(none, none, no_pairs))
    mine = make_part(loaded, 2, dropout=0.0)
    alone = mine.model.loss(mine.inputs, mine.targets)
    losses = backward_together([silent, mine])
    torch.testing.assert_close(losses[1], alone, rtol=1e-5, atol=1e-6)
    assert losses[0] < 1e-4
    assert not silent.model.heads.match_out.weight.grad.any()


def test_each_lane_is_clipped_to_its_own_norm(loaded: Loaded) -> None:
    parts = [make_part(loaded, i, dropout=0.0) for i in range(4)]
    largest = [0.01, 1e9, 0.1, 0.002]
    backward_together(parts)
    expected = []
    for part, most in zip(parts, largest, strict=True):
        found = gradients(part.model)
        norm = torch.stack([g.norm() for g in found.values()]).norm()
        expected.append({n: g * min(1.0, most / (float(norm) + 1e-6)) for n, g in found.items()})
    clip_together([part.model for part in parts], largest)
    for part, wanted in zip(parts, expected, strict=True):
        for name, gradient in gradients(part.model).items():
            torch.testing.assert_close(gradient, wanted[name])


def test_shared_prediction_gives_the_answers_of_each_model_alone(loaded: Loaded) -> None:
    parts = [make_part(loaded, i, **form) for i, form in enumerate(FORMS)]
    for part, answers in zip(parts, predict_together(parts), strict=True):
        alone = part.model.predict(part.inputs)
        assert len(answers) == len(alone) == len(part.inputs.label_B)
        for mine, theirs in zip(answers, alone, strict=True):
            assert mine[2].tolist() == theirs[2].tolist()
            for k in (0, 1, 3):
                torch.testing.assert_close(
                    torch.from_numpy(mine[k]), torch.from_numpy(theirs[k]), rtol=1e-4, atol=1e-5
                )


def test_lanes_may_share_a_pass_only_on_one_frozen_backbone(loaded: Loaded, tmp_path) -> None:
    other = tiny_loaded("bert", tmp_path, seed=1)
    with pytest.raises(TrainingError, match="one frozen backbone"):
        backward_together([make_part(loaded, 1), make_part(other, 2)])
    trained = tiny_configuration(loaded.backbone, "soft_prompt")
    part = make_part(loaded, 1)
    with pytest.raises(TrainingError, match="one frozen backbone"):
        backward_together(
            [BatchPart(Model(trained, loaded, NUM_LABELS), part.inputs, part.targets)]
        )
