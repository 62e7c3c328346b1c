"""At most one driver trains a study at a time: two would train the same fold-runs twice.

In a folder the driver holds a lock file, which the system frees when the process ends. An object store has no
locks, nor have some file systems. There the driver holds a claim: a file that it renews while it lives.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from raymrc.costs.journal import SPEND_FOLDER
from raymrc.errors import LedgerError, StudyError
from raymrc.ledger.storage import Files, Folder, error_text, hide_password, not_writable, open_files

POLL_SECONDS = 0.5

LOST_MACHINE_SECONDS = 120.0
"""By default, NFS frees the lock of a machine that is gone after 90 seconds."""

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system without locks answers."""

RENEW_SECONDS, LEASE_SECONDS = 3.0, 30.0
"""A claim that nobody renews during a lease belongs to a dead driver."""

CLAIMS = "drivers"
"""The folder of claims in a study's storage."""


def this_process() -> str:
    return f"process {os.getpid()} on {platform.node()}"


@contextmanager
def only_run(storage: str, log: Callable[[str], object]) -> Iterator[Callable[[], bool]]:
    """Hold a study for this driver.

    Read the ledger only after this: until then another driver may have written to it.

    Args:
        log: receives a sentence before a wait for another driver that may be dead.

    Yields:
        A function that tells whether another driver has taken over the study, because this one could not
        renew its claim for too long.

    Raises:
        StudyError: another driver holds the study.
        LedgerError: the storage refuses the lock file or the claim.
    """
    files = open_files(storage, SPEND_FOLDER)
    with ExitStack() as stack:
        if isinstance(files, Folder):
            try:
                lock = _open_lock(files.root / ".lock")
                stack.callback(os.close, lock)
                _take_lock(lock, storage, log)
            except OSError as error:
                # Any other reason may concern this process alone: the holder's lock would go unnoticed.
                if error.errno not in NO_LOCKS:
                    raise not_writable(files, error) from None
            else:
                yield lambda: False
                return
        yield stack.enter_context(_claim(storage, log))


def _refusal(storage: str, process: str) -> StudyError:
    return StudyError(
        f"{hide_password(storage)}: another run is training this study ({process}); "
        "wait for it, or stop it and run this again"
    )


def _open_lock(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Others may write to this folder: do not follow a link of theirs.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def _take_lock(lock: int, storage: str, log: Callable[[str], object]) -> None:
    """Waits for a lock that a lost machine may hold."""
    deadline = time.monotonic() + LOST_MACHINE_SECONDS
    is_logged = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 1000, 0).decode()
        else:
            with suppress(OSError):  # a full disk; the lock holds without its holder's name
                os.ftruncate(lock, 0)
                os.pwrite(lock, this_process().encode(), 0)
            return
        if holder.endswith(f" on {platform.node()}") or time.monotonic() >= deadline:
            raise _refusal(storage, holder)
        if not is_logged:
            log(
                f"{hide_password(storage)}: locked by {holder}; waiting at most "
                f"{LOST_MACHINE_SECONDS:.0f} seconds, in case that machine was lost"
            )
            is_logged = True
        time.sleep(POLL_SECONDS)


@contextmanager
def _claim(storage: str, log: Callable[[str], object]) -> Iterator[Callable[[], bool]]:
    """Each driver writes its claim before it looks for others: of two that start together, one at least sees
    the other and goes."""
    files, name = open_files(storage, CLAIMS), f"{secrets.token_hex(8)}.json"
    ended, lost = threading.Event(), threading.Event()

    def write(renewals: int) -> None:
        claim = {"process": this_process(), "renewals": renewals}
        files.write(name, json.dumps(claim).encode(), replace=True)

    def renew() -> None:
        renewals = 0
        while not ended.wait(RENEW_SECONDS):
            renewals += 1
            with suppress(OSError):  # the storage is away
                if not files.exists(name):
                    lost.set()
                    return
                write(renewals)

    try:
        write(0)
    except OSError as error:
        raise not_writable(files, error) from None
    thread = threading.Thread(target=renew, name="claim", daemon=True)
    thread.start()
    try:
        _outlive_others(files, name, storage, log)
        yield lost.is_set
    finally:
        ended.set()
        thread.join()  # else it might write the claim again
        with suppress(OSError):
            files.remove(name)


def _outlive_others(files: Files, mine: str, storage: str, log: Callable[[str], object]) -> None:
    """Watch all other claims for a lease, and remove those that nobody renews. No clocks are compared."""
    try:
        names = [name for name in files.names() if name.endswith(".json") and name != mine]
        others = {name: _read(files, name) for name in names if not name.startswith(".")}
        others = {name: claim for name, claim in others.items() if claim is not None}
        if others:
            log(
                f"{hide_password(storage)}: another run has not ended, or was killed; watching for "
                f"{LEASE_SECONDS:.0f} seconds whether it renews its claim"
            )
        deadline = time.monotonic() + LEASE_SECONDS
        while others and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            for name, before in list(others.items()):
                claim = _read(files, name)
                if claim is None:
                    del others[name]
                elif claim != before:
                    raise _refusal(storage, json.loads(claim)["process"])
        for name in others:
            files.remove(name)
    except OSError as error:
        raise LedgerError(f"{files.place('')}: the store refuses ({error_text(error)})") from None


def _read(files: Files, name: str) -> bytes | None:
    try:
        return files.read(name)
    except FileNotFoundError:
        return None
