"""Files of a study: in a folder, or in an object store by its URL.

Names are relative. A write appears whole or not at all.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

from raymrc.errors import LedgerError

PARALLEL_READS = 16
"""Concurrent reads: a store takes a tenth of a second for each file, however small, and pyarrow keeps 25
connections."""

MAX_READ_AHEAD = 4 * PARALLEL_READS
"""Files read in advance; more would only occupy memory."""


class Folder:
    """A folder on this machine or on a network file system.

    Raises:
        OSError: the store refuses; any method may raise it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def place(self, name: str) -> str:
        """The full path or URL, for messages."""
        return str(self.root / name)

    def names(self) -> Iterator[str]:
        """Names of all files, in no order."""
        for folder, _, files in os.walk(self.root, onerror=_refuse):
            base = Path(folder).relative_to(self.root).as_posix()
            for name in files:
                yield name if base == "." else f"{base}/{name}"

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError if the file does not exist."""
        return (self.root / name).read_bytes()

    def read_many(self, names: Iterable[str]) -> Iterator[bytes | OSError]:
        """The content of each file in order, or the error of reading it."""
        return (_content(self, name) for name in names)

    def write(self, name: str, content: bytes, *, replace: bool) -> None:
        """Write all or nothing, whatever happens to this process. Without `replace`, an existing file
        stays."""
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # A temporary file in the same folder, so that the move cannot cross file systems.
        descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                os.replace(temporary, target)
            else:
                _move_if_absent(temporary, target)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
        _sync_folder(target.parent)

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            (self.root / name).unlink()

    def remove_all(self, below: str) -> None:
        """Remove a folder with its files, if it exists."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.root / below)

    def try_to_write(self) -> None:
        """Create the folder, write a file and remove it; leave nothing behind on failure."""
        made = [p for p in (self.root, *self.root.parents) if not p.exists()]
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor, probe = tempfile.mkstemp(prefix=".", suffix=".part", dir=self.root)
            os.close(descriptor)
            os.unlink(probe)
        except OSError:
            for folder in made:  # innermost first
                with suppress(OSError):
                    folder.rmdir()
            raise


def _refuse(error: OSError) -> None:
    """A missing folder counts as empty, an unreadable one does not."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _move_if_absent(temporary: str, target: Path) -> None:
    """A hard link is the only move that fails if the target exists."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not target.exists():
            os.replace(temporary, target)


def _sync_folder(folder: Path) -> None:
    """Make the name survive a power cut, on file systems that can. The content is safe anyway."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _content(files: Files, name: str) -> bytes | OSError:
    try:
        return files.read(name)
    except OSError as error:
        return error


class ObjectStore:
    """A store behind `pyarrow.fs`, such as S3 or GS, with the methods of `Folder`.

    Each request takes a tenth of a second, so files are read in parallel and requests are few.
    """

    def __init__(self, filesystem: Any, root: str, url: str) -> None:
        self.filesystem, self.root, self.url = filesystem, root.rstrip("/"), url.rstrip("/")
        self._has_folders = filesystem.type_name not in ("s3", "gcs", "abfs")

    def place(self, name: str) -> str:
        return f"{self.url}/{name}"

    def names(self) -> Iterator[str]:
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(self.root, recursive=True, allow_not_found=True)
        for info in self.filesystem.get_file_info(selector):
            if info.type == FileType.File:
                yield info.path.removeprefix(self.root).lstrip("/")

    def exists(self, name: str) -> bool:
        # One request; `get_file_info` would send a second one to see whether the name is a folder.
        try:
            self.filesystem.open_input_file(self._path(name)).close()
        except FileNotFoundError:
            return False
        return True

    def read(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(self._path(name)) as stream:
            return bytes(stream.read())

    def read_many(self, names: Iterable[str]) -> Iterator[bytes | OSError]:
        with ThreadPoolExecutor(PARALLEL_READS, "read") as threads:
            under_way: deque[Future[bytes | OSError]] = deque()
            for name in names:
                under_way.append(threads.submit(_content, self, name))
                if len(under_way) > MAX_READ_AHEAD:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()

    def write(self, name: str, content: bytes, *, replace: bool) -> None:
        if not replace and self.exists(name):
            return  # two writers may both pass this check: they write the same fold-run, so either may win
        if self._has_folders:
            self.filesystem.create_dir(self._path(name).rsplit("/", 1)[0], recursive=True)
        with self.filesystem.open_output_stream(self._path(name)) as stream:
            stream.write(content)

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.filesystem.delete_file(self._path(name))

    def remove_all(self, below: str) -> None:
        with suppress(FileNotFoundError):
            self.filesystem.delete_dir(self._path(below))

    def try_to_write(self) -> None:
        self.write(".probe", b"", replace=True)
        self.remove(".probe")

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"


Files: TypeAlias = Folder | ObjectStore


def open_files(storage: str, folder: str) -> Files:
    """The files in one folder of a study's storage, such as "ledger".

    Args:
        storage: a folder or a URL.

    Raises:
        LedgerError: the URL cannot be opened.
    """
    if "://" not in storage:
        return Folder(Path(storage) / folder)
    if storage.startswith("file://"):
        return Folder(Path(unquote(urlsplit(storage).path)) / folder)
    from pyarrow.fs import FileSystem

    url, _, query = storage.partition("?")
    url = url.rstrip("/")
    if url.startswith("s3://") and "allow_delayed_open" not in query:
        # Small files are written in one request instead of three.
        query = "&".join(filter(None, (query, "allow_delayed_open=true")))
    try:
        filesystem, path = FileSystem.from_uri(f"{url}?{query}" if query else url)
    except (OSError, ValueError) as error:
        raise LedgerError(f"{url}: cannot be opened as a store ({error_text(error)})") from None
    return ObjectStore(filesystem, f"{path}/{folder}", f"{url}/{folder}")


def hide_password(text: str) -> str:
    """Remove users and passwords from the URLs in a text."""
    return re.sub(r"//[^/@]*@", "//", text)


def absolute(storage: str) -> str:
    """A storage's path or URL, independent of the working folder."""
    return storage if "://" in storage else str(Path(storage).absolute())


def not_writable(files: Files, error: OSError) -> LedgerError:
    return LedgerError(
        f"{files.place('')}: cannot be written to ({error_text(error)}); set storage to a place that can"
    )


def error_text(error: Exception) -> str:
    """The store's or the system's message in one line."""
    return getattr(error, "strerror", None) or str(error).split("\n")[0]


SAVED = "saved"
"""The folder of a study's storage that holds the checkpoints of lanes, each below its key."""
