"""What goes wrong in a fold-run becomes its failed record.

The text of a foreign exception goes nowhere: it may hold what stood in a note.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from raymrc.configuration import FoldRun
from raymrc.errors import MemoryShortage, RaymrcError
from raymrc.ledger.record import Record, RecordStatus


@dataclass(frozen=True, slots=True)
class FailureTerms:
    """What the study says of failures.

    Args:
        retries: a fold-run is tried again so often within a run, where its record `may_pass`.
        close_cell_after: so many configurations in a row that failed close their cell; None: never.
    """

    retries: int = 1
    close_cell_after: int | None = 5


def failed_record(
    fold_run: FoldRun, reason: str, device_seconds: float = 0.0, *, may_pass: bool = False
) -> Record:
    """
    Args:
        device_seconds: what it had cost by then.
        may_pass: see `Record`.
    """
    return replace(
        empty_record(fold_run),
        status=RecordStatus.FAILED,
        reason=reason,
        may_pass=may_pass,
        device_seconds=device_seconds,
    )


def empty_record(fold_run: FoldRun) -> Record:
    """Of one that has not begun."""
    return Record(
        key=fold_run.key,
        fold_run=fold_run,
        status=RecordStatus.PAUSED,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def record_error(fold_run: FoldRun, error: BaseException, device_seconds: float = 0.0) -> Record:
    """The failed record of what was raised."""
    return failed_record(fold_run, explain(error), device_seconds, may_pass=may_pass(error))


def may_pass(error: BaseException) -> bool:
    """Whether trying again may help: our own sentences say what has to be changed first, but for memory,
    which others may have held."""
    return isinstance(error, MemoryShortage) or not isinstance(error, RaymrcError)


def explain(error: BaseException) -> str:
    """Our own sentence, or the type of a foreign exception and where it was raised."""
    if isinstance(error, RaymrcError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(f.filename).name}:{f.lineno} in {f.name}" for f in frames]
    ours = [p for p, f in zip(places, frames, strict=True) if "raymrc" in Path(f.filename).parts]
    named = dict.fromkeys([*ours[-1:], *places[-1:]])
    return f"{type(error).__module__}.{type(error).__qualname__} at {', '.join(named)}"
