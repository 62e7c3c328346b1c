"""Settings that the study file leaves open, by strategy and by size of the backbone.

The rules were fitted to a grid over backbones, strategies and corpora (docs/results.md, "Default settings").
"""

from __future__ import annotations

from collections.abc import Mapping

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


def with_default_rates(
    settings: Mapping[str, Setting], strategy: str, hidden: int
) -> dict[str, Setting]:
    """A cell's settings with learning rates, if they have no `learning_rate`."""
    if "learning_rate" in settings:
        return dict(settings)
    rates = {name: Fixed(rate) for name, rate in default_rates(strategy, hidden).items()}
    return {**rates, **settings}
