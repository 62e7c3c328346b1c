"""Failed records, made from exceptions.

The text of a foreign exception is never kept, because it may quote a note.
"""

from __future__ import annotations

import traceback
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from raymrc.configuration import FoldRun
from raymrc.errors import MemoryShortage, RaymrcError
from raymrc.ledger.record import Record, RecordStatus


def failed_record(
    fold_run: FoldRun, reason: str, device_seconds: float = 0.0, *, may_pass: bool = False
) -> Record:
    return replace(
        empty_record(fold_run),
        status=RecordStatus.FAILED,
        reason=reason,
        may_pass=may_pass,
        device_seconds=device_seconds,
    )


def empty_record(fold_run: FoldRun) -> Record:
    """The record of a fold-run that has not started."""
    return Record(
        key=fold_run.key,
        fold_run=fold_run,
        status=RecordStatus.PAUSED,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def record_error(fold_run: FoldRun, error: BaseException, device_seconds: float = 0.0) -> Record:
    """The failed record for an exception."""
    return failed_record(fold_run, explain(error), device_seconds, may_pass=may_pass(error))


def may_pass(error: BaseException) -> bool:
    """Whether a retry may help. Our own errors say what has to be changed first, except a lack of memory,
    which other processes may have caused."""
    return isinstance(error, MemoryShortage) or not isinstance(error, RaymrcError)


def explain(error: BaseException) -> str:
    """The message of our own error, or the type of a foreign exception and where it was raised."""
    if isinstance(error, RaymrcError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(f.filename).name}:{f.lineno} in {f.name}" for f in frames]
    ours = [p for p, f in zip(places, frames, strict=True) if "raymrc" in Path(f.filename).parts]
    shown = dict.fromkeys([*ours[-1:], *places[-1:]])
    return f"{type(error).__module__}.{type(error).__qualname__} at {', '.join(shown)}"
