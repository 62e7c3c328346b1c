"""A folder that is there whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raymrc.errors import CorpusError


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into; it takes its place once all is written.

    Whatever goes wrong in between, nothing half-written is left behind.

    Raises:
        CorpusError: `folder` already holds something, or cannot be made.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CorpusError(f"{folder}: is not an empty folder; choose another or empty it first")
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise CorpusError(
            f"{folder}: cannot be made ({error.strerror}); choose a folder that you may write to"
        ) from None
    try:
        yield beside
        beside.chmod(0o755)  # mkdtemp keeps others out; a corpus folder is the user's to share
        beside.replace(folder)
    except OSError as error:
        raise CorpusError(f"{folder}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
