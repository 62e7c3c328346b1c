"""A cell's search space: a fixed value, a grid or a distribution for each setting of `Configuration`."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from raymrc.configuration import DEFAULTS, SETTINGS, Condition
from raymrc.model.strategies import STRATEGIES

DISTRIBUTIONS = {
    "uniform": "[low, high]: any number between, all equally likely",
    "log_uniform": "[low, high], low above 0: any number between, all magnitudes equally likely",
    "int_uniform": "[low, high]: any whole number between, both ends included",
    "choice": "[a, b, ...]: one of these",
}


@dataclass(frozen=True, slots=True)
class Fixed:
    """One value for all configurations."""

    value: Any


@dataclass(frozen=True, slots=True)
class Grid:
    """Every value in turn in a grid search; a random one in other searches."""

    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Distribution:
    """A range to draw from: a kind of `DISTRIBUTIONS`, with its (low, high) or its options."""

    kind: str
    values: tuple[Any, ...]

    def draw(self, generator: random.Random) -> Any:
        if self.kind == "choice":
            return self.values[generator.randrange(len(self.values))]
        low, high = self.values
        if self.kind == "int_uniform":
            return generator.randint(low, high)
        if self.kind == "log_uniform":
            return self.tidy(math.exp(generator.uniform(math.log(low), math.log(high))))
        return self.tidy(generator.uniform(low, high))

    def holds(self, value: Any) -> bool:
        if self.kind == "choice":
            return value in self.values
        return value is not None and self.values[0] <= value <= self.values[1]

    def tidy(self, value: Any) -> Any:
        """The value rounded to four significant digits, but never outside the range."""
        if self.kind not in ("uniform", "log_uniform"):
            return value
        low, high = self.values
        return min(max(float(f"{value:.4g}"), low), high)


Setting = Fixed | Grid | Distribution


def options(setting: Setting) -> tuple[Any, ...]:
    """The values that a setting may take, or the ends of its range."""
    return (setting.value,) if isinstance(setting, Fixed) else setting.values


@dataclass(frozen=True)
class SearchSpace:
    """The settings of one cell, by name; each setting is in one of the three mappings."""

    fixed: Mapping[str, Any]
    grids: Mapping[str, tuple[Any, ...]]
    distributions: Mapping[str, Distribution]

    def ends(self, name: str) -> tuple[Any, ...]:
        """See `options`; a setting that the space lacks has its default."""
        if name in self.grids:
            return self.grids[name]
        if name in self.distributions:
            return self.distributions[name].values
        return (self.fixed.get(name, DEFAULTS[name]),)

    @property
    def size(self) -> int | None:
        """Number of different configurations; None for a continuous range."""
        size = math.prod(len(values) for values in self.grids.values())
        for distribution in self.distributions.values():
            if distribution.kind == "choice":
                size *= len(distribution.values)
            elif distribution.kind == "int_uniform":
                size *= distribution.values[1] - distribution.values[0] + 1
            elif distribution.values[0] < distribution.values[1]:
                return None
        return size

    def grid(self) -> Iterator[dict[str, Any]]:
        """Every combination of the grids; the last field varies fastest."""
        assert not self.distributions, "a grid of distributions has no points"
        for values in product(*self.grids.values()):
            yield dict(zip(self.grids, values, strict=True))

    def draw(self, generator: random.Random) -> dict[str, Any]:
        """One random point: a value for every grid and distribution."""
        values = {
            name: options[generator.randrange(len(options))] for name, options in self.grids.items()
        }
        return values | {
            name: distribution.draw(generator) for name, distribution in self.distributions.items()
        }


def build_space(settings: Mapping[str, Setting]) -> SearchSpace:
    """Settings sorted by kind, in their order."""
    return SearchSpace(
        fixed={k: v.value for k, v in settings.items() if isinstance(v, Fixed)},
        grids={k: v.values for k, v in settings.items() if isinstance(v, Grid)},
        distributions={k: v for k, v in settings.items() if isinstance(v, Distribution)},
    )


def without_effect(strategy: str, task: str) -> dict[str, str]:
    """Settings that change nothing in a cell, each with the reason."""
    met = _met(strategy, task)
    return {
        name: next(condition.value for condition in row.needs if condition not in met)
        for name, row in SETTINGS.items()
        if not met.issuperset(row.needs)
    }


def effective(settings: Mapping[str, Setting], strategy: str, task: str) -> dict[str, Setting]:
    """A cell's settings with planned values filled in, without those that only multiply its grid."""
    idle, met = without_effect(strategy, task), _met(strategy, task)
    planned = {
        name: Fixed(row.planned)
        for name, row in SETTINGS.items()
        if row.planned is not None and met.issuperset(row.planned_needs or row.needs)
    }
    given = {name: setting for name, setting in settings.items() if name not in idle}
    return given | {name: value for name, value in planned.items() if name not in given}


def _met(strategy: str, task: str) -> set[Condition]:
    row = STRATEGIES[strategy]
    holds = {
        Condition.SOFT_PROMPT: row.asks == "vectors",
        Condition.SPAN_HEADS: row.answers == "spans",
        Condition.LABELS: task != "relations",
        Condition.RELATIONS: task != "concepts",
    }
    return {condition for condition, is_met in holds.items() if is_met}
