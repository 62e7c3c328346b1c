"""Writing a folder atomically."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raymrc.errors import CorpusError


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that replaces it when the block ends without an error.

    Raises:
        CorpusError: `folder` is not empty or cannot be written.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CorpusError(f"{folder}: is not an empty folder; choose another or empty it first")
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise CorpusError(
            f"{folder}: cannot be created ({error.strerror}); choose a writable folder"
        ) from None
    try:
        yield beside
        beside.chmod(0o755)  # mkdtemp creates it with 0700, and users share corpus folders
        beside.replace(folder)
    except OSError as error:
        raise CorpusError(f"{folder}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
