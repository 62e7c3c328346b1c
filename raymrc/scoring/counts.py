"""Counts of matched, spurious and missed items, and the only definition of precision, recall and F1."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SCORE_FIGURES = ("precision", "recall", "f1")


@dataclass(frozen=True, slots=True)
class Counts:
    """Matched, spurious and missed items. Counts are added, and F1 is computed from the sum."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def gold(self) -> int:
        return self.tp + self.fn

    @property
    def predicted(self) -> int:
        return self.tp + self.fp

    @property
    def precision(self) -> float:
        """0 to 1; 0.0 if nothing was predicted."""
        return self.tp / self.predicted if self.tp else 0.0

    @property
    def recall(self) -> float:
        """0 to 1; 0.0 if there is no gold item."""
        return self.tp / self.gold if self.tp else 0.0

    @property
    def f1(self) -> float:
        """0 to 1; 0.0 if there is no gold item and no prediction, as in the official scorers."""
        return 2 * self.tp / (2 * self.tp + self.fp + self.fn) if self.tp else 0.0

    @property
    def percentages(self) -> str:
        """Precision, recall and F1 as three columns of a text table."""
        return "".join(f"{100 * getattr(self, figure):>8.2f}" for figure in SCORE_FIGURES)

    def to_json(self) -> dict[str, float]:
        """Counts, precision, recall and F1, for `--json`."""
        return {name: getattr(self, name) for name in ("tp", "fp", "fn", *SCORE_FIGURES)}


def pool(counts: Iterable[Counts]) -> Counts:
    """Micro pooling: the sum over documents, labels or folds."""
    return sum(counts, Counts())
