"""Fold-runs one after another in one process, with the backbone kept between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from raymrc.model.backbones import Loaded, load
from raymrc.study.configuration import Backbone, FoldRun
from raymrc.study.record import Epoch, Record
from raymrc.training.batching import StudyData
from raymrc.training.lane import train_fold_run


@dataclass(frozen=True, slots=True)
class Trainer:
    """Trains any fold-run of a study. Travels as a plain value; weights stay where they are loaded.

    Args:
        device: "cpu" or "cuda".
        device_hour_usd: price of one device (a GPU, or a core) for an hour.
    """

    device: str = "cpu"
    device_hour_usd: float = 0.0

    def __call__(
        self,
        fold_run: FoldRun,
        data: StudyData,
        *,
        on_epoch: Callable[[Epoch], None] | None = None,
    ) -> Record:
        """
        Raises:
            RaymrcError: of what the user can mend; see `train_fold_run`.
        """
        return train_fold_run(
            fold_run,
            data,
            _keep_loaded(fold_run.configuration.cell.backbone, self.device),
            device=self.device,
            device_hour_usd=self.device_hour_usd,
            on_epoch=on_epoch,
        )


@lru_cache(maxsize=1)
def _keep_loaded(backbone: Backbone, device: str) -> Loaded:
    """The backbone of the fold-run before, if it is the same: loading costs seconds to minutes."""
    return load(backbone, device)
