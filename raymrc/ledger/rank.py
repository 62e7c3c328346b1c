"""TODO: say what this module holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def count_reasons(reasons: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """Each with how often, the commonest first."""
    return tuple(sorted(Counter(reasons).items(), key=lambda item: (-item[1], item[0])))


def rank(
    num_done: int, validation_f1: float | None, trained_parameters: float, configuration: str
) -> tuple[float, float, float, str]:
    """The smallest wins: most folds done, then best on validation; equals by size, then by id."""
    return (
        -num_done,
        1.0 if validation_f1 is None else -validation_f1,
        trained_parameters,
        configuration,
    )
