"""TODO: say what this module holds."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from raymrc.costs.journal import SPEND_FOLDER, Journal, JournalEntry
from raymrc.errors import StudyError
from raymrc.ledger.storage import Folder, open_files

LOST_SECONDS, LOOK_SECONDS = 120.0, 0.5
"""NFS keeps the lock of a machine that is gone for 90 seconds, where nothing else was set."""


WATCH_SECONDS = 30.0
"""A run that trains writes every three seconds what it has spent; one that has not for so long is gone."""


def this_process() -> str:
    return f"process {os.getpid()} on {platform.node()}"


def at_work(storage: str, process: str) -> str:
    """The sentence for a second run."""
    who = f" ({process})" if process else ""
    return f"{storage}: another run of this study is at work{who}"


WHAT_TO_DO = "wait for it, or stop it and run this again"


@contextmanager
def only_run(storage: str, say: Callable[[str], None]) -> Iterator[bool]:
    """The one run of a study that trains: two would train the same fold-runs twice.

    It holds a lock that goes with its process, in the storage, or on this machine where that is a URL. Not
    all machines see it, and some storages have none, so it is also watched who still writes what it spends.

    Args:
        say: told what it waits for: file systems keep the lock of a machine that was lost for a while.

    Gives:
        Whether it had to wait; meanwhile another run may have gone on.

    Raises:
        LedgerError: what runs have spent cannot be read or written.
        StudyError: another run has it.
    """
    files = open_files(storage, SPEND_FOLDER)
    if isinstance(files, Folder):
        place = files.root / ".lock"
    else:
        name = hashlib.sha256(storage.encode()).hexdigest()[:16]
        place = Path(tempfile.gettempdir(), f"raymrc-{os.getuid()}-{name}.lock")
    with ExitStack() as stack:
        is_locked = waited = False
        with suppress(OSError):  # no such folder, a full disk, a file system without locks
            place.parent.mkdir(parents=True, exist_ok=True)
            # In a folder that others may write to, too: not through a link of theirs.
            lock = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            stack.callback(os.close, lock)
            waited = _wait_for_lock(lock, storage, say)
            is_locked = True
            os.ftruncate(lock, 0)
            os.pwrite(lock, this_process().encode(), 0)
        waited |= _see_off_others(storage, say, is_locked=is_locked)
        yield waited


def _wait_for_lock(lock: int, storage: str, say: Callable[[str], None]) -> bool:
    until = time.monotonic() + LOST_SECONDS
    is_said = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return is_said
        except BlockingIOError:
            holder = os.pread(lock, 1000, 0).decode()
        sentence = at_work(storage, holder)
        if _is_here(holder) or time.monotonic() >= until:
            raise StudyError(f"{sentence}; {WHAT_TO_DO}")
        if not is_said:
            say(
                f"{sentence}, or its machine was lost; waiting for {LOST_SECONDS:.0f} seconds at most"
            )
            is_said = True
        time.sleep(LOOK_SECONDS)


def _is_here(process: str) -> bool:
    return process.endswith(f" on {platform.node()}")


def _see_off_others(storage: str, say: Callable[[str], None], *, is_locked: bool) -> bool:
    """Of runs that have not said that they ended: whether one is at work is told by its writing, and by no
    clock. Those that are gone are buried.

    Args:
        is_locked: so that no other one is at work on this machine.
    """
    journal = Journal(storage)
    gone = {entry.driver: entry for entry in journal.entries() if not entry.has_ended}

    def unsure() -> list[JournalEntry]:
        return [entry for entry in gone.values() if not (is_locked and _is_here(entry.process))]

    waits = bool(unsure())
    if waits:
        latest = max(unsure(), key=lambda entry: entry.written_at)
        say(
            f"{at_work(storage, latest.process)}, or has ended without a word; watching for "
            f"{WATCH_SECONDS:.0f} seconds whether it writes"
        )
    until = time.monotonic() + WATCH_SECONDS
    while unsure() and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
        before = gone
        gone = {entry.driver: entry for entry in journal.entries() if not entry.has_ended}
        for entry in unsure():
            if entry != before.get(entry.driver):
                raise StudyError(f"{at_work(storage, entry.process)}; {WHAT_TO_DO}")
    for entry in gone.values():
        journal.mark_dead(entry)
    return waits
