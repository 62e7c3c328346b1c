"""The one truth on disk: an immutable record for every finished fold-run, and how far others have got.

    <storage>/ledger/3f/3f9c....json           done: never trained again, never overwritten
    <storage>/ledger/3f/3f9c....failed.json    failed: a retry replaces it
    <storage>/ledger/3f/3f9c....paused.json    paused at a rung of a race, or stopped: going on replaces it

A name is the fold-run's key, so `has` looks at names only, and whoever writes the same key
wrote the same thing. Records are spread over 256 folders: 100,000 of them list quickly.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from raymrc.errors import LedgerError
from raymrc.ledger.record import Record
from raymrc.ledger.storage import Files, not_writable, open_files, said

DONE, FAILED, PAUSED = ".json", ".failed.json", ".paused.json"
RANKED_STATUS = {"done": DONE, "failed": FAILED, "paused": PAUSED, "stopped": PAUSED}
"""By a record's status."""
LAST_WORD = (PAUSED, FAILED, DONE)
"""Of several that a key has the later one in this order counts."""


class Ledger:
    """Records of fold-runs, by key.

    Args:
        storage: the study's folder or URL.
        write: False to look only; then a storage that is not there is an empty ledger.
        files: instead of what `storage` names.

    Raises:
        LedgerError: it cannot be written to. Nothing is left half-made.
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
        """Is this fold-run done? A failed one is not: it may be tried again."""
        return self._ask(lambda: self.files.exists(_name(key, DONE)), key)

    def get(self, key: str) -> Record | None:
        """The done record, else the failed one, else that of a pause, else None.

        Raises:
            LedgerError: there is one and it cannot be read.
        """
        for ending in reversed(LAST_WORD):
            if self._ask(lambda ending=ending: self.files.exists(_name(key, ending)), key):
                return self._read(_name(key, ending))
        return None

    def record(self, record: Record, text: str | None = None) -> None:
        """Keep a record. A done one that is there stays as it is; others give way.

        Args:
            text: `record.to_json()`, from where it is at hand; milliseconds to make again.

        Raises:
            LedgerError: the store refuses.
        """
        assert record.key == record.fold_run.key, "a record is kept under its fold-run's key"
        own = RANKED_STATUS[record.status]
        done = own == DONE
        if not done and self.has(record.key):
            return
        content = (record.to_json() if text is None else text).encode()
        name = _name(record.key, own)
        self._ask(lambda: self.files.write(name, content, replace=not done), record.key)
        for ending in LAST_WORD:
            if ending not in (own, DONE):
                self._ask(
                    lambda ending=ending: self.files.remove(_name(record.key, ending)), record.key
                )

    def keys(self) -> frozenset[str]:
        """Of the fold-runs that are done. Reads names only."""
        return frozenset(key for key, ending, _ in self._entries() if ending == DONE)

    def records(self) -> tuple[Record, ...]:
        """Every readable record, one a key, whatever its status. See `problems` for the others."""
        return self.read_all()[0]

    def problems(self) -> tuple[str, ...]:
        """A sentence for every record that cannot be read, with what to do."""
        return self.read_all()[1]

    def read_all(self) -> tuple[tuple[Record, ...], tuple[str, ...]]:
        """Readable records and the problems of the others: one bad file loses nothing else.

        Their notes' counts are summed and not kept (`SummedNotes`). A done record that this ledger has
        read before is not read again: it never changes, and its name says that it is there.
        """
        records: dict[str, Record] = {}
        problems: list[str] = []
        entries = sorted(self._entries(), key=lambda e: (e[0], LAST_WORD.index(e[1])))
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
            ending = next(one for one in LAST_WORD if base.endswith(one) or one == DONE)
            if base.endswith(ending) and not base.startswith("."):
                entries.append((base.removesuffix(ending), ending, name))
        return entries

    def _read(self, name: str) -> Record:
        (content,) = self.files.read_many([name])
        return self._parse(name, content)

    def _parse(self, name: str, content: bytes | OSError, *, keep: bool = True) -> Record:
        """
        Args:
            keep: counts note by note.
        """
        place = self.files.place(name)
        again = "remove it, and its fold-run will be trained again"
        if isinstance(content, OSError):
            raise LedgerError(f"{place}: cannot be read ({said(content)})")
        try:
            record = Record.from_json(content.decode(), None if keep else partial(self._read, name))
        except json.JSONDecodeError:
            raise LedgerError(f"{place}: is not a whole record, as if cut off; {again}") from None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise LedgerError(
                f"{place}: is not a record of this version of raymrc; {again}"
            ) from None
        if _name(record.key, RANKED_STATUS.get(record.status, "")) != name:
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
            raise LedgerError(f"{where}: the store refuses ({said(error)})") from None


def _name(key: str, ending: str) -> str:
    return f"{key[:2]}/{key}{ending}"
