"""Where reports are written: whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from raymrc.errors import StudyError


def put(path: Path, write: Callable[[Path], object]) -> Path:
    """Has a file written beside its place, and then puts it there; an older one gives way.

    Raises:
        StudyError: it cannot be written.
    """
    beside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        os.close(handle)
        beside = Path(name)
        write(beside)
        beside.chmod(0o644)  # mkstemp keeps others out; a report is there to be handed on
        beside.replace(path)
    except OSError as error:
        raise StudyError(
            f"{path}: cannot be written ({error.strerror}); choose a folder that you may write to"
        ) from None
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)
    return path
