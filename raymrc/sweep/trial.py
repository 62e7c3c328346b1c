"""One trial: a configuration's missing fold-runs, one after another, in a worker process.

What goes wrong in a fold-run becomes its failed record, and the next one starts. The text
of a foreign exception goes nowhere: it may hold what stood in a note.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune

from raymrc.errors import RaymrcError
from raymrc.study.configuration import FoldRun
from raymrc.study.record import Epoch, Record

EPOCH_SECONDS = 1.0
"""Epochs are reported no more often than this; a report is a round trip to the driver."""


class Train(Protocol):
    """Trains one fold-run. Picklable; what it loads it may keep in its process for the next one."""

    def __call__(
        self, fold_run: FoldRun, data: Any, *, on_epoch: Callable[[Epoch], None]
    ) -> Record: ...


def run_trial(
    config: Mapping[str, Any], *, train: Train, shared: list[ray.ObjectRef[Any]], num_threads: int
) -> None:
    """The function that Tune runs; every finished fold-run is one report with its whole record.

    Args:
        config: "work": the `Work` of this trial.
        shared: holds the reference of the study's data, fetched once per process.
        num_threads: for torch; more than the trial's share would slow its neighbours.
    """
    _set_threads(num_threads)
    data = _fetch(shared[0])
    last = 0.0

    for fold_run in config["work"].fold_runs:

        def tell_epoch(epoch: Epoch, fold: int = fold_run.fold) -> None:
            nonlocal last
            if time.monotonic() - last >= EPOCH_SECONDS:
                last = time.monotonic()
                tune.report({"fold": fold, "epoch": epoch.epoch, "f1": epoch.validation_f1})

        record = train_safely(train, fold_run, data, tell_epoch)
        tune.report({"fold": fold_run.fold, "record": record.to_json()})


def train_safely(
    train: Train, fold_run: FoldRun, data: Any, on_epoch: Callable[[Epoch], None]
) -> Record:
    """Train; whatever it raises becomes a failed record."""
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    began = time.perf_counter()
    try:
        return train(fold_run, data, on_epoch=on_epoch)
    except Exception as error:
        reason = explain(error)
    # Outside the handler, where the exception and with it the frames of the model are gone.
    _free_memory()
    return failed_record(fold_run, reason, started_at, time.perf_counter() - began)


def failed_record(
    fold_run: FoldRun, reason: str, started_at: str = "", device_seconds: float = 0.0
) -> Record:
    return Record(
        key=fold_run.key,
        fold_run=fold_run,
        status="failed",
        reason=reason,
        device_seconds=device_seconds,
        wall_seconds=device_seconds,
        started_at=started_at or datetime.now(UTC).isoformat(timespec="seconds"),
    )


def explain(error: BaseException) -> str:
    """Our own sentence, or the type of a foreign exception and where it was raised."""
    if isinstance(error, RaymrcError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(f.filename).name}:{f.lineno} in {f.name}" for f in frames]
    ours = [p for p, f in zip(places, frames, strict=True) if "raymrc" in Path(f.filename).parts]
    named = dict.fromkeys([*ours[-1:], *places[-1:]])
    return f"{type(error).__module__}.{type(error).__qualname__} at {', '.join(named)}"


def _free_memory() -> None:
    """After a failure that may have been for want of memory."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _set_threads(num_threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(num_threads)  # for a torch that is yet to be imported
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != num_threads:
        torch.set_num_threads(num_threads)


_fetched: dict[str, Any] = {}
"""The study's data in this process, by the hex of its reference; it outlives the trials."""


def _fetch(reference: ray.ObjectRef[Any]) -> Any:
    key = reference.hex()
    if key not in _fetched:
        _fetched.clear()
        _fetched[key] = ray.get(reference)
    return _fetched[key]
