"""Writes report files atomically."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from raymrc.errors import StudyError


def put(path: Path, write: Callable[[Path], object]) -> Path:
    """Writes to a temporary file in the same folder, then replaces `path` with it.

    Raises:
        StudyError: the file cannot be written.
    """
    beside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        os.close(handle)
        beside = Path(name)
        write(beside)
        beside.chmod(0o644)  # mkstemp allows only the owner; reports are shared
        beside.replace(path)
    except OSError as error:
        raise StudyError(
            f"{path}: cannot be written ({error.strerror}); choose a folder that you may write to"
        ) from None
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)
    return path
