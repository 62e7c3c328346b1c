"""Trains a single fold-run on its own, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Callable

import torch

from raymrc.configuration import FoldRun
from raymrc.ledger.record import Record
from raymrc.model.loading import Loaded
from raymrc.training.batching import StudyData
from raymrc.training.lane import Lane
from raymrc.training.pool import Pool


def train_fold_run(
    fold_run: FoldRun,
    data: StudyData,
    loaded: Loaded,
    *,
    device: str | torch.device = "cpu",
    device_hour_usd: float = 0.0,
    gpus: float = 1.0,
    on_done: Callable[[Lane], None] | None = None,
) -> Record:
    """Trains the fold-run, picks the best epoch on validation notes and scores the held-out fold.

    Raises:
        Exception: the error that ended the lane.
    """
    pool = Pool(loaded, data, device, device_hour_usd=device_hour_usd, gpus=gpus, on_done=on_done)
    pool.open(fold_run)
    while True:
        for event in pool.step():
            if isinstance(event.what, Record):
                return event.what
            if isinstance(event.what, Exception):
                raise event.what
