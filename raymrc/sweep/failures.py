"""What goes wrong in a fold-run becomes its failed record.

The text of a foreign exception goes nowhere: it may hold what stood in a note.
"""

from __future__ import annotations

import traceback
from datetime import UTC, datetime
from pathlib import Path

from raymrc.errors import RaymrcError
from raymrc.study.configuration import FoldRun
from raymrc.study.record import Record


def failed_record(fold_run: FoldRun, reason: str, device_seconds: float = 0.0) -> Record:
    """
    Args:
        device_seconds: what it had cost by then.
    """
    return Record(
        key=fold_run.key,
        fold_run=fold_run,
        status="failed",
        reason=reason,
        device_seconds=device_seconds,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
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
