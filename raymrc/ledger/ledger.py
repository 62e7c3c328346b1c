"""The ledger: an immutable record for every finished fold-run, and the progress of others.

    <storage>/ledger/3f/3f9c....json           done: never trained again, never overwritten
    <storage>/ledger/3f/3f9c....failed.json    failed: a retry replaces it
    <storage>/ledger/3f/3f9c....paused.json    paused at a rung of a race, or stopped: resuming replaces it

A file is named for the fold-run's key, so `has` reads names only, and two writers of one key write the same
result. 256 folders share the records, so that 100,000 of them list quickly.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from raymrc.errors import LedgerError
from raymrc.ledger.record import Record, RecordStatus
from raymrc.ledger.storage import Files, error_text, not_writable, open_files

DONE, FAILED, PAUSED = ".json", ".failed.json", ".paused.json"
ENDING_BY_STATUS = {
    RecordStatus.DONE: DONE,
    RecordStatus.FAILED: FAILED,
    RecordStatus.PAUSED: PAUSED,
    RecordStatus.STOPPED: PAUSED,
}
ENDINGS_BY_RANK = (PAUSED, FAILED, DONE)
"""If a key has several files, the last in this order counts."""


class Ledger:
    """Records of fold-runs, by key.

    Args:
        storage: the study's folder or URL.
        write: False only reads; a storage that does not exist is then an empty ledger.
        files: used instead of `storage`.

    Raises:
        LedgerError: the storage cannot be written to. No partial file is left behind.
    """

    def __init__(self, storage: str, *, write: bool = True, files: Files | None = None) -> None:
        self.storage = storage
        self.files = files or open_files(storage, "ledger")
        self._seen: dict[str, Record] = {}
        if write:
            try:
                self.files.try_to_write()
            except OSError as error:
                raise not_writable(self.files, error) from None

    def has(self, key: str) -> bool:
        """Whether this fold-run is done. A failed one is not: it may be retried."""
        return self._ask(lambda: self.files.exists(_name(key, DONE)), key)

    def get(self, key: str) -> Record | None:
        """The done record, else the failed one, else the paused one, else None.

        Raises:
            LedgerError: the record exists and cannot be read.
        """
        for ending in reversed(ENDINGS_BY_RANK):
            if self._ask(lambda ending=ending: self.files.exists(_name(key, ending)), key):
                return self._read(_name(key, ending))
        return None

    def record(self, record: Record, text: str | None = None) -> None:
        """Save a record. An existing done record stays as it is; others are replaced.

        Args:
            text: `record.to_json()` if the caller has it, which saves milliseconds.

        Raises:
            LedgerError: the store refuses.
        """
        assert record.key == record.fold_run.key, "a record is kept under its fold-run's key"
        if not record.is_done and self.has(record.key):
            return
        ending = ENDING_BY_STATUS[record.status]
        content = (record.to_json() if text is None else text).encode()
        name = _name(record.key, ending)
        self._ask(lambda: self.files.write(name, content, replace=not record.is_done), record.key)
        for other in {PAUSED, FAILED} - {ending}:
            self._ask(lambda other=other: self.files.remove(_name(record.key, other)), record.key)

    def keys(self) -> frozenset[str]:
        """Keys of the fold-runs that are done. Reads names only."""
        return frozenset(key for key, ending, _ in self._entries() if ending == DONE)

    def records(self) -> tuple[Record, ...]:
        """Every readable record, one per key, whatever its status."""
        return self.read_all()[0]

    def read_all(self) -> tuple[tuple[Record, ...], tuple[str, ...]]:
        """All readable records, and for each other one a sentence with the problem and its remedy.

        Keeps only sums of the notes' counts (`SummedNotes`). Does not read a done record again, because it
        never changes.
        """
        records: dict[str, Record] = {}
        problems: list[str] = []
        entries = sorted(self._entries(), key=lambda e: (e[0], ENDINGS_BY_RANK.index(e[1])))
        unread = [name for _, _, name in entries if name not in self._seen]
        contents = self.files.read_many(unread)
        seen: dict[str, Record] = {}
        for key, ending, name in entries:
            try:
                record = self._seen.get(name) or self._parse(name, next(contents), keep=False)
            except LedgerError as error:
                problems.append(str(error))
                continue
            records[key] = record
            if ending == DONE:
                seen[name] = record
        self._seen = seen
        return tuple(records.values()), tuple(problems)

    def check(self) -> tuple[Record, ...]:
        """All records; raises LedgerError with one line per problem if any cannot be read."""
        records, problems = self.read_all()
        if problems:
            raise LedgerError("\n".join(problems))
        return records

    def _entries(self) -> list[tuple[str, str, str]]:
        """(key, ending, name) of every record file."""
        entries = []
        for name in self._ask(lambda: list(self.files.names()), ""):
            base = name.rsplit("/", 1)[-1]
            ending = next(e for e in ENDINGS_BY_RANK if base.endswith(e) or e == DONE)
            if base.endswith(ending) and not base.startswith("."):
                entries.append((base.removesuffix(ending), ending, name))
        return entries

    def _read(self, name: str) -> Record:
        (content,) = self.files.read_many([name])
        return self._parse(name, content)

    def _parse(self, name: str, content: bytes | OSError, *, keep: bool = True) -> Record:
        """
        Args:
            keep: keep the counts of each note instead of their sums.
        """
        place = self.files.place(name)
        remedy = "remove it, and its fold-run will be trained again"
        if isinstance(content, OSError):
            raise LedgerError(f"{place}: cannot be read ({error_text(content)})")
        try:
            record = Record.from_json(content.decode(), None if keep else partial(self._read, name))
        except json.JSONDecodeError:
            raise LedgerError(f"{place}: is not a whole record, as if cut off; {remedy}") from None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise LedgerError(
                f"{place}: is not a record of this version of raymrc; {remedy}"
            ) from None
        if _name(record.key, ENDING_BY_STATUS[record.status]) != name:
            raise LedgerError(f"{place}: holds another record than its name says; {remedy}")
        if record.key != record.fold_run.key:
            raise LedgerError(
                f"{place}: was changed by hand, or written by another version of raymrc; {remedy}"
            )
        return record

    def _ask(self, action: Any, key: str) -> Any:
        """Run an action of the store; raise its refusal as a LedgerError."""
        try:
            return action()
        except OSError as error:
            where = self.files.place(_name(key, DONE) if key else "")
            raise LedgerError(f"{where}: the store refuses ({error_text(error)})") from None


def _name(key: str, ending: str) -> str:
    return f"{key[:2]}/{key}{ending}"
