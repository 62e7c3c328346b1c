"""Two published corrections for the luck of choosing the best of many, as peers of `leave_fold_out`."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from raymrc.analysis.statistics import LEVEL, Interval, Selection, micro_f1

# C configurations, N notes, F folds


def best_fold_bias(scored: ArrayLike) -> Selection:
    """Takes off the winner by how much the best of each fold leads it there.

    Args:
        scored: F1 that also chooses, (C, F).

    Source: Tibshirani and Tibshirani 2009, Annals of Applied Statistics 3, 822-829.
    """
    values = np.asarray(scored, dtype=np.float64)
    chosen = int(values.mean(1).argmax())
    bias = float((values.max(0) - values[chosen]).mean())
    reported = float(values[chosen].mean())
    return Selection(chosen, reported, reported - bias)


def bootstrap_best(
    counts: ArrayLike, draws: int, *, generator: np.random.Generator
) -> tuple[Selection, Interval]:
    """Chooses by pooled F1 on drawn notes and reports the notes that were not drawn (BBC-CV).

    Args:
        counts: matched, spurious and missed items of each configuration and note, (C, N, 3).

    Returns:
        The selection, and the interval of the corrected F1.

    Source: Tsamardinos, Greasidou and Borboudakis 2018, Machine Learning 107, 1895-1922.
    """
    values = np.asarray(counts, dtype=np.float64)
    num_configurations, num_notes, _ = values.shape
    flat = values.transpose(1, 0, 2).reshape(num_notes, -1)
    picked = generator.integers(num_notes, size=(draws, num_notes))
    weights = np.stack([np.bincount(row, minlength=num_notes) for row in picked])
    outside = weights == 0
    inside = micro_f1((weights @ flat).reshape(-1, num_configurations, 3))
    left = micro_f1((outside @ flat).reshape(-1, num_configurations, 3))
    # A draw of all notes leaves none to report on.
    reported = left[np.arange(draws), inside.argmax(1)][outside.any(1)]
    total = micro_f1(values.sum(1))
    chosen = int(total.argmax())
    low, high = np.quantile(reported, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    selection = Selection(chosen, float(total[chosen]), float(reported.mean()))
    return selection, Interval(float(low), float(high))
