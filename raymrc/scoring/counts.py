"""The one definition of precision, recall and F1 in the house."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counts:
    """Matched, spurious and missed items. Counts add up; F1 is read off a sum."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def precision(self) -> float:
        """0 to 1; 0.0 where nothing was predicted."""
        return self.tp / (self.tp + self.fp) if self.tp else 0.0

    @property
    def recall(self) -> float:
        """0 to 1; 0.0 where nothing was to be found."""
        return self.tp / (self.tp + self.fn) if self.tp else 0.0

    @property
    def f1(self) -> float:
        """0 to 1; 0.0 where nothing was there and nothing found, as the official scorers have it."""
        return 2 * self.tp / (2 * self.tp + self.fp + self.fn) if self.tp else 0.0

    def to_json(self) -> dict[str, float]:
        """Counts and what is read off them, as `--json` gives them."""
        return {
            "tp": self.tp,
            "fp": self.fp,
            "fn": self.fn,
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
        }


def pool(counts: Iterable[Counts]) -> Counts:
    """Micro pooling: the sum over documents, labels or folds."""
    return sum(counts, Counts())
