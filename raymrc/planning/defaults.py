"""Settings that the study file leaves open, by strategy and by size of the backbone.

At 384 hidden units they were measured on PHEE (docs/results.md, "Default settings"); larger backbones follow
published rates.
"""

from __future__ import annotations

from collections.abc import Mapping

from raymrc.model.shapes import Shape
from raymrc.model.strategies import STRATEGIES
from raymrc.study.space import Fixed, Setting

TRAINED_RATE = 1e-4
"""Learning rate of a trained backbone of `REFERENCE_HIDDEN` units. Larger ones want less: it falls with the
square of the hidden size, from 4e-4 (384 units) to 9e-6 (2560)."""

REFERENCE_HIDDEN = 768

FROZEN_RATE = 3e-2
"""Learning rate of prompts before any backbone, frozen or trained."""

HEAD_RATES = {True: 3e-3, False: 1e-2}
"""Learning rate of span heads, by whether the backbone is trained."""

LEARNABLE = 8.0
"""A rate this many times smaller or larger than the default learns little or nothing."""


DURATION = "20 epochs, at least 600 steps"
"""Twenty epochs of a few notes are too few steps for prompts."""


def default_rates(strategy: str, hidden: int) -> dict[str, float]:
    """Learning rates for a backbone with this many hidden units, by setting."""
    row = STRATEGIES[strategy]
    trained = float(f"{TRAINED_RATE * (REFERENCE_HIDDEN / hidden) ** 2:.1g}")
    rates = {"learning_rate": trained if row.trains_backbone else FROZEN_RATE}
    if row.answers == "spans":
        rates["head_learning_rate"] = HEAD_RATES[row.trains_backbone]
    if row.asks == "vectors" and row.trains_backbone:
        rates["prompt_learning_rate"] = FROZEN_RATE
    return rates


def with_defaults(
    settings: Mapping[str, Setting], strategy: str, shape: Shape | None
) -> dict[str, Setting]:
    """A cell's settings with a duration, if they have none, and with learning rates, if they have no
    `learning_rate` and the backbone's shape is known."""
    filled: dict[str, Setting] = {}
    if "epochs" not in settings and "duration" not in settings:
        filled["duration"] = Fixed(DURATION)
    if "learning_rate" not in settings and shape is not None:
        rates = default_rates(strategy, shape.hidden)
        filled |= {name: Fixed(rate) for name, rate in rates.items()}
    return {**filled, **settings}
