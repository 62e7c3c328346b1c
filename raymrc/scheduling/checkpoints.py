"""What is left in the storage of fold-runs that are not finished, and when it goes."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property

from raymrc.errors import LedgerError
from raymrc.ledger.record import Record
from raymrc.ledger.storage import SAVED, Files, absolute, not_writable, open_files, said


class Checkpoints:
    """What hosts have saved of fold-runs that are not finished, in the study's storage.

    Raises:
        LedgerError: the storage cannot be opened, listed (`left`) or written (`marker`).
    """

    def __init__(self, storage: str) -> None:
        self.storage = absolute(storage)
        self.files: Files = open_files(self.storage, SAVED)

    @cached_property
    def left(self) -> dict[str, str]:
        """The latest state of each key, as earlier runs have left them."""
        latest: dict[str, str] = {}
        try:
            names = sorted(self.files.names())
        except OSError as error:
            where = self.files.place("")
            raise LedgerError(f"{where}: the store refuses ({said(error)})") from None
        for name in names:
            key, _, rest = name.partition("/")
            if rest.isdigit():
                latest[key] = name
        return latest

    def drop_of(self, record: Record) -> None:
        """What is not needed any more once this is in the ledger."""
        if not record.is_paused:
            self.drop(record.key)

    def drop(self, key: str) -> None:
        with suppress(OSError):  # it is in nobody's way
            self.files.remove_all(key)

    def tidy(self, finished: Collection[str]) -> None:
        """Of what is finished a driver that was killed may have left something, or its hosts after it."""
        with suppress(OSError):
            for key in {name.partition("/")[0] for name in self.files.names()}:
                if key in finished:
                    self.drop(key)

    @contextmanager
    def marker(self) -> Iterator[str]:
        """A file that hosts look for, to see whether they see the storage."""
        name = f".seen-{secrets.token_hex(4)}"
        try:
            self.files.write(name, b"", replace=True)
        except OSError as error:
            raise not_writable(self.files, error) from None
        try:
            yield name
        finally:
            with suppress(OSError):
                self.files.remove(name)
