"""The rule that chooses a winner, and failure reasons by frequency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def count_reasons(reasons: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """Each reason and its count, most frequent first."""
    return tuple(sorted(Counter(reasons).items(), key=lambda item: (-item[1], item[0])))


def rank(
    num_done: int, validation_f1: float | None, trained_parameters: float, configuration: str
) -> tuple[float, float, float, str]:
    """A sort key whose smallest value wins: most folds done, best validation F1, fewest parameters, id."""
    return (
        -num_done,
        1.0 if validation_f1 is None else -validation_f1,
        trained_parameters,
        configuration,
    )
