"""The one truth on disk: an immutable record for every finished fold-run.

    <storage>/ledger/3f/3f9c....json           done: never trained again, never overwritten
    <storage>/ledger/3f/3f9c....failed.json    failed: a retry replaces it

A name is the fold-run's key, so `has` looks at names only, and whoever writes the same key
wrote the same thing. Records are spread over 256 folders: 100,000 of them list quickly.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from raymrc.errors import LedgerError
from raymrc.study.record import Record

DONE, FAILED = ".json", ".failed.json"


class Files(Protocol):
    """Where a ledger keeps its files. Names are relative, with '/' between folders.

    Raises:
        OSError: from every method, where the store refuses.
    """

    def place(self, name: str) -> str:
        """The full path or URL, for messages."""
        ...

    def names(self) -> Iterator[str]:
        """Every file below, in no order."""
        ...

    def exists(self, name: str) -> bool: ...

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError where there is none."""
        ...

    def write(self, name: str, content: bytes, *, replace: bool) -> None:
        """All of it or nothing, whatever happens to this process; without `replace`, the first one stays."""
        ...

    def remove(self, name: str) -> None: ...

    def try_to_write(self) -> None:
        """Make the folder, write something and take it away again; leave nothing where that fails."""
        ...


class Folder:
    """A folder of this machine, or of a network file system."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def place(self, name: str) -> str:
        return str(self.root / name)

    def names(self) -> Iterator[str]:
        for folder, _, files in os.walk(self.root):
            base = Path(folder).relative_to(self.root).as_posix()
            for name in files:
                yield name if base == "." else f"{base}/{name}"

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def write(self, name: str, content: bytes, *, replace: bool) -> None:
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # In the same folder, so that the move cannot cross file systems.
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

    def try_to_write(self) -> None:
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


def _move_if_absent(temporary: str, target: Path) -> None:
    """A hard link is the one move that fails where the target is already there."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not target.exists():
            os.replace(temporary, target)


def _sync_folder(folder: Path) -> None:
    """The name survives a power cut too. Not every file system can; the content is safe anyway."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class ObjectStore:
    """A store behind `pyarrow.fs`, such as S3 or GS, where one write appears whole or not at all."""

    def __init__(self, filesystem: Any, root: str, url: str) -> None:
        self.filesystem, self.root, self.url = filesystem, root.rstrip("/"), url.rstrip("/")

    def place(self, name: str) -> str:
        return f"{self.url}/{name}"

    def names(self) -> Iterator[str]:
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(self.root, recursive=True, allow_not_found=True)
        for info in self.filesystem.get_file_info(selector):
            if info.type == FileType.File:
                yield info.path.removeprefix(self.root).lstrip("/")

    def exists(self, name: str) -> bool:
        from pyarrow.fs import FileType

        return bool(self.filesystem.get_file_info(self._path(name)).type == FileType.File)

    def read(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(self._path(name)) as stream:
            return bytes(stream.read())

    def write(self, name: str, content: bytes, *, replace: bool) -> None:
        if not replace and self.exists(name):
            return  # two writers at once both get here: the same fold-run, so either record will do
        self.filesystem.create_dir(self._path(name).rsplit("/", 1)[0], recursive=True)
        with self.filesystem.open_output_stream(self._path(name)) as stream:
            stream.write(content)

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.filesystem.delete_file(self._path(name))

    def try_to_write(self) -> None:
        self.write(".probe", b"", replace=True)
        self.remove(".probe")

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"


def open_files(storage: str) -> Files:
    """The files of a ledger below a folder or a URL.

    Raises:
        LedgerError: a URL that cannot be opened.
    """
    if "://" not in storage:
        return Folder(Path(storage) / "ledger")
    if storage.startswith("file://"):
        return Folder(Path(unquote(urlsplit(storage).path)) / "ledger")
    from pyarrow.fs import FileSystem

    try:
        filesystem, path = FileSystem.from_uri(storage.rstrip("/"))
    except (OSError, ValueError) as error:
        raise LedgerError(f"{storage}: cannot be opened as a store ({_said(error)})") from None
    return ObjectStore(filesystem, f"{path}/ledger", f"{storage.rstrip('/')}/ledger")


class Ledger:
    """Records of finished fold-runs, by key.

    Args:
        storage: the study's folder or URL.
        write: False to look only; then a storage that is not there is an empty ledger.
        files: instead of what `storage` names.

    Raises:
        LedgerError: it cannot be written to. Nothing is left half-made.
    """

    def __init__(self, storage: str, *, write: bool = True, files: Files | None = None) -> None:
        self.storage = storage
        self.files = files or open_files(storage)
        if write:
            try:
                self.files.try_to_write()
            except OSError as error:
                raise LedgerError(
                    f"{self.files.place('')}: cannot be written to ({_said(error)}); "
                    "set storage to a place that can"
                ) from None

    def has(self, key: str) -> bool:
        """Is this fold-run done? A failed one is not: it may be tried again."""
        return self._ask(lambda: self.files.exists(_name(key, DONE)), key)

    def get(self, key: str) -> Record | None:
        """The done record, else the failed one, else None.

        Raises:
            LedgerError: there is one and it cannot be read.
        """
        for ending in (DONE, FAILED):
            if self._ask(lambda ending=ending: self.files.exists(_name(key, ending)), key):
                return self._read(_name(key, ending))
        return None

    def record(self, record: Record, text: str | None = None) -> None:
        """Keep a record. A done one that is there stays as it is; a failed one gives way.

        Args:
            text: `record.to_json()`, from where it is at hand; milliseconds to make again.

        Raises:
            LedgerError: the store refuses.
        """
        assert record.key == record.fold_run.key, "a record is kept under its fold-run's key"
        done = record.status == "done"
        name = _name(record.key, DONE if done else FAILED)
        if not done and self.has(record.key):
            return
        content = (record.to_json() if text is None else text).encode()
        self._ask(lambda: self.files.write(name, content, replace=not done), record.key)
        if done:
            self._ask(lambda: self.files.remove(_name(record.key, FAILED)), record.key)

    def keys(self) -> frozenset[str]:
        """Of the fold-runs that are done. Reads names only."""
        return frozenset(key for key, ending, _ in self._entries() if ending == DONE)

    def records(self) -> tuple[Record, ...]:
        """Every readable record, done or failed, by key. See `problems` for the others."""
        return self.read_all()[0]

    def problems(self) -> tuple[str, ...]:
        """A sentence for every record that cannot be read, with what to do."""
        return self.read_all()[1]

    def read_all(self) -> tuple[tuple[Record, ...], tuple[str, ...]]:
        """Readable records and the problems of the others: one bad file loses nothing else."""
        records: dict[str, Record] = {}
        problems: list[str] = []
        # "<key>.failed.json" sorts before "<key>.json": a done record has the last word.
        for key, _, name in sorted(self._entries()):
            try:
                records[key] = self._read(name)
            except LedgerError as error:
                problems.append(str(error))
        return tuple(records.values()), tuple(problems)

    def check(self) -> None:
        """Raises LedgerError, all problems a line each, if any record cannot be read."""
        problems = self.problems()
        if problems:
            raise LedgerError("\n".join(problems))

    def _entries(self) -> list[tuple[str, str, str]]:
        """(key, ending, name) of every record file."""
        entries = []
        for name in self._ask(lambda: list(self.files.names()), ""):
            base = name.rsplit("/", 1)[-1]
            ending = FAILED if base.endswith(FAILED) else DONE
            if base.endswith(ending) and not base.startswith("."):
                entries.append((base.removesuffix(ending), ending, name))
        return entries

    def _read(self, name: str) -> Record:
        place = self.files.place(name)
        again = "remove it, and its fold-run will be trained again"
        try:
            record = Record.from_json(self.files.read(name).decode())
        except OSError as error:
            raise LedgerError(f"{place}: cannot be read ({_said(error)})") from None
        except json.JSONDecodeError:
            raise LedgerError(f"{place}: is not a whole record, as if cut off; {again}") from None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise LedgerError(
                f"{place}: is not a record of this version of raymrc; {again}"
            ) from None
        if _name(record.key, DONE if record.status == "done" else FAILED) != name:
            raise LedgerError(f"{place}: holds another record than its name says; {again}")
        if record.key != record.fold_run.key:
            raise LedgerError(
                f"{place}: was changed by hand, or written by another version of raymrc; {again}"
            )
        return record

    def _ask(self, action: Any, key: str) -> Any:
        """The store's answer, its refusal as a sentence."""
        try:
            return action()
        except OSError as error:
            where = self.files.place(_name(key, DONE) if key else "")
            raise LedgerError(f"{where}: the store refuses ({_said(error)})") from None


def _name(key: str, ending: str) -> str:
    return f"{key[:2]}/{key}{ending}"


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).split("\n")[0]
