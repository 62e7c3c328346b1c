"""Promise: plans count, without torch, the parameters of the real modules.

It could break unnoticed if a module gets a new weight that is missing in the formula.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from raymrc.model.encoder import Encoder
from raymrc.model.loading import Loaded
from raymrc.model.network import Model
from raymrc.model.prompts import SoftPrompt
from raymrc.model.shapes import SHAPES, prompt_parameters
from raymrc.model.strategies import STRATEGIES, count_parameters
from tests.model.tiny import tiny_configuration

PUBLISHED = {  # millions, from the model cards
    "bert-large": 335,
    "bert-large-mimic": 335,
    "roberta-large": 355,
    "roberta-large-mimic": 355,
    "gatortron-345m": 355,
    "gatortron-3.9b": 3910,
    "gatortron-8.9b": 8830,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_seven_backbones_have_the_published_number_of_parameters(name):
    shape = SHAPES[name]
    pooler = (
        shape.hidden * shape.hidden + shape.hidden
    )  # counted in published figures; ours has none
    digits = 10 if PUBLISHED[name] > 1000 else 1
    millions = (shape.num_parameters + pooler) / 1e6
    assert round(millions / digits) * digits == PUBLISHED[name]


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_counts_the_encoder_that_is_built_from_it(name):
    with torch.device("meta"):
        encoder = Encoder(SHAPES[name])
    assert SHAPES[name].num_parameters == sum(p.numel() for p in encoder.parameters())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_counted_parameters_are_those_of_the_built_model(tiny: Loaded, strategy):
    configuration = tiny_configuration(tiny.backbone, strategy)
    counts = count_parameters(configuration, tiny.shape, 3)
    statement = Model(configuration, tiny, 3).statement()
    assert (counts.trained, counts.total) == (statement.trained, statement.total)
    assert counts.share == statement.trained / statement.total


@pytest.mark.parametrize(
    ("depth", "first_layer", "reparametrisation"),
    list(itertools.product(("deep", "input"), (0, 2), ("none", "mlp", "lstm"))),
)
def test_prompts_of_every_form_are_counted_correctly(depth, first_layer, reparametrisation):
    shape = SHAPES["minilm"]
    prompt = SoftPrompt(4, 7, shape, depth, first_layer, reparametrisation)
    counted = prompt_parameters(shape, 4, 7, depth, first_layer, reparametrisation)
    assert counted == sum(p.numel() for p in prompt.parameters())
