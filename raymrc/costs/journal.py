"""TODO: say what this module holds."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from raymrc.costs.budget import Entry
from raymrc.errors import LedgerError
from raymrc.ledger.storage import Files, open_files, said

if TYPE_CHECKING:
    pass


ROOM = "spend"
"""Of a study's storage."""


class Journal:
    """The files of all drivers' runs.

    Args:
        storage: the study's folder or URL.
        files: instead of what `storage` names.
    """

    def __init__(self, storage: str, files: Files | None = None) -> None:
        self.files = files or open_files(storage, ROOM)
        self._ended: dict[str, Entry] = {}

    def entries(self) -> tuple[Entry, ...]:
        """Of all runs, in no order.

        Raises:
            LedgerError: one cannot be read. None is left out: what it spent would be forgotten.
        """
        return tuple(self._read(name) for name in self._names())

    def _names(self) -> list[str]:
        try:
            return [n for n in self.files.names() if n.endswith(".json") and not n.startswith(".")]
        except OSError as error:
            raise LedgerError(
                f"{self.files.place('')}: the store refuses ({said(error)})"
            ) from None

    def _read(self, name: str) -> Entry:
        if name in self._ended:
            return self._ended[name]
        place = self.files.place(name)
        try:
            values = json.loads(self.files.read(name))
            entry = Entry(**{**values, "driver": name.removesuffix(".json")})
            numbers = (entry.seconds, entry.device_seconds, entry.ahead, entry.ahead_device_seconds)
            if not all(math.isfinite(number) and number >= 0 for number in numbers):
                raise ValueError
        except OSError as error:
            raise LedgerError(f"{place}: cannot be read ({said(error)})") from None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise LedgerError(
                f"{place}: does not say what a run has spent, as this version of raymrc writes it; "
                "remove it, and what that run has spent is not counted"
            ) from None
        if entry.has_ended and not entry.ahead:  # it said so itself, and nobody writes it again
            self._ended[name] = entry
        return entry

    def write(self, entry: Entry) -> None:
        """Instead of what this driver's file said before.

        Raises:
            LedgerError: the store refuses.
        """
        values = asdict(entry)
        del values["driver"]
        name = f"{entry.driver}.json"
        try:
            self.files.write(name, json.dumps(values, indent=1).encode(), replace=True)
        except OSError as error:
            raise LedgerError(
                f"{self.files.place(name)}: the store refuses ({said(error)})"
            ) from None

    def bury(self, entry: Entry) -> None:
        """A run that is gone and has not said so: it stays charged for what it may have spent, and nothing is
        reserved for it any more. One that is there all the same writes its file again.

        Raises:
            LedgerError: the store refuses.
        """
        self.write(replace(entry, lease=0.0, running=0, committed=0.0))
