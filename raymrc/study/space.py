"""What a cell searches over: fixed values, grids and distributions by `Configuration` field.

A value in the study file is fixed, a list is a grid, a mapping is a distribution.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from itertools import product
from typing import Any

from raymrc.configuration import Configuration

DEFAULTS: dict[str, Any] = {
    f.name: f.default for f in fields(Configuration) if f.default is not MISSING
}
"""Of the settings that a study file does not give."""

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
    """Every value in turn; one of them at random where the search is not a grid."""

    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Distribution:
    """A range to draw from.

    Args:
        kind: a name in `DISTRIBUTIONS`.
        values: (low, high), or the options of a choice.
    """

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
        """Four significant digits, so that a drawn value can be read, and never outside the range."""
        if self.kind not in ("uniform", "log_uniform"):
            return value
        low, high = self.values
        return min(max(float(f"{value:.4g}"), low), high)


Setting = Fixed | Grid | Distribution


@dataclass(frozen=True)
class SearchSpace:
    """The settings of one cell, by field name of `Configuration`; a field is in one of the three."""

    fixed: Mapping[str, Any]
    grids: Mapping[str, tuple[Any, ...]]
    distributions: Mapping[str, Distribution]

    @property
    def size(self) -> int | None:
        """How many different configurations there are; None for a continuous range."""
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
        """Every combination of the grids, the last field turning fastest."""
        assert not self.distributions, "a grid of distributions has no points"
        for values in product(*self.grids.values()):
            yield dict(zip(self.grids, values, strict=True))

    def draw(self, generator: random.Random) -> dict[str, Any]:
        """One point: a value for every grid and distribution."""
        values = {
            name: options[generator.randrange(len(options))] for name, options in self.grids.items()
        }
        return values | {
            name: distribution.draw(generator) for name, distribution in self.distributions.items()
        }


def build_space(settings: Mapping[str, Setting]) -> SearchSpace:
    """Sort settings by kind, keeping their order."""
    return SearchSpace(
        fixed={k: v.value for k, v in settings.items() if isinstance(v, Fixed)},
        grids={k: v.values for k, v in settings.items() if isinstance(v, Grid)},
        distributions={k: v for k, v in settings.items() if isinstance(v, Distribution)},
    )
