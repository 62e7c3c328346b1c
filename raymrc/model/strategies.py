"""Four ways to ask a backbone: what asks, what is trained, what answers; no torch.

`network.Model` builds the model of a configuration.
"""

from __future__ import annotations

from dataclasses import dataclass

from raymrc.configuration import Configuration
from raymrc.model.shapes import NUM_LENGTHS, Shape, prompt_parameters


@dataclass(frozen=True, slots=True)
class Strategy:
    """
    Args:
        asks: "" (no question: all labels are tagged at once), "words" (the question is part of the
            input) or "vectors" (a soft prompt).
        trains_backbone: whether the encoder's weights are trained, with dropout.
        answers: "tags" (`heads.ClassifyingHeads`) or "spans" (`heads.SpanHeads`).
    """

    asks: str
    trains_backbone: bool
    answers: str


STRATEGIES = {  # what asks the question     is the backbone trained   what answers
    "fine_tune": Strategy(asks="", trains_backbone=True, answers="tags"),
    "hard_prompt": Strategy(asks="words", trains_backbone=True, answers="spans"),
    "soft_prompt": Strategy(asks="vectors", trains_backbone=True, answers="spans"),
    "frozen_soft_prompt": Strategy(asks="vectors", trains_backbone=False, answers="spans"),
}


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """How many numbers a model has, and how many of them are trained."""

    backbone: int
    prompt: int
    heads: int
    trained: int

    @property
    def total(self) -> int:
        return self.backbone + self.prompt + self.heads

    @property
    def share(self) -> float:
        """Trained / total, 0 to 1."""
        return self.trained / self.total


def count_parameters(
    configuration: Configuration, shape: Shape, num_labels: int, num_relations: int = 0
) -> ParameterCounts:
    """Parameters of `network.Model`, computed without building it."""
    strategy = STRATEGIES[configuration.cell.strategy]
    prompt = 0
    if strategy.asks == "vectors":
        prompt = prompt_parameters(
            shape,
            num_labels + num_relations,
            configuration.prompt_length,
            configuration.prompt_depth,
            configuration.first_layer,
            configuration.reparametrisation,
        )
    hidden, width = shape.hidden, configuration.match_width
    if strategy.answers == "spans":  # heads.SpanHeads
        heads = 2 * (hidden + 1) + 2 * hidden * width + width + width + 1 + NUM_LENGTHS
    else:  # heads.TaggingHeads and heads.PairHeads
        heads = 3 * num_labels * (hidden + 1)
        if num_relations:
            heads += (1 + num_relations) * (2 * hidden + 1)
    backbone = shape.num_parameters
    trained = prompt + heads + (backbone if strategy.trains_backbone else 0)
    return ParameterCounts(backbone, prompt, heads, trained)
