"""Checkpoints of unfinished fold-runs in the study's storage, and when they are removed."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property

from raymrc.errors import LedgerError
from raymrc.ledger.record import Record
from raymrc.ledger.storage import SAVED, absolute, error_text, not_writable, open_files


class Checkpoints:
    """Checkpoints that hosts write, named `<key>/<number>`.

    Raises:
        LedgerError: the storage cannot be opened, listed (`latest`) or written to (`marker`).
    """

    def __init__(self, storage: str) -> None:
        self.storage = absolute(storage)
        self.files = open_files(self.storage, SAVED)

    @cached_property
    def latest(self) -> dict[str, str]:
        """The name of each key's latest checkpoint from earlier runs."""
        try:
            names = sorted(self.files.names())
        except OSError as error:
            where = self.files.place("")
            raise LedgerError(f"{where}: the store refuses ({error_text(error)})") from None
        latest = {}
        for name in names:
            key, _, number = name.partition("/")
            if number.isdigit():
                latest[key] = name
        return latest

    def drop_after(self, record: Record) -> None:
        """Remove what is not needed once this record is in the ledger."""
        if not record.is_paused:
            self._drop(record.key)

    def _drop(self, key: str) -> None:
        with suppress(OSError):  # a leftover does no harm
            self.files.remove_all(key)

    def tidy(self, finished: Collection[str]) -> None:
        """Remove what a killed driver, or hosts that outlived it, left of finished fold-runs."""
        with suppress(OSError):
            for key in {name.partition("/")[0] for name in self.files.names()}:
                if key in finished:
                    self._drop(key)

    @contextmanager
    def marker(self) -> Iterator[str]:
        """The name of a file that a host finds only where it sees this storage."""
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
