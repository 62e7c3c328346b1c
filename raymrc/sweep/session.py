"""The place where a study runs: what hosts hold, Ray, a folder of its own, and the signals that end it."""

from __future__ import annotations

import fcntl
import gc
import hashlib
import logging
import os
import platform
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import raymrc
from raymrc.costs.budget import ROOM, Entry, Journal
from raymrc.errors import RaymrcError, StudyError
from raymrc.ledger.storage import Folder, open_files

# isort: split
import ray

from raymrc.sweep.metrics import check_port

LOST_SECONDS, LOOK_SECONDS = 120.0, 0.5
"""NFS keeps the lock of a machine that is gone for 90 seconds, where nothing else was set."""

WATCH_SECONDS = 30.0
"""A run that trains writes every three seconds what it has spent; one that has not for so long is gone."""

OBJECT_STORE_BYTES = 256 * 2**20
"""Holds the notes and what hosts report; Ray's default of 30 % of memory is for data sets."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What one host holds while it is there.

    Args:
        max_hosts: at most so many devices at once; None for as many as fit.
        lanes: frozen fold-runs on one host at once, at most; None: see `placement.LANES`.
        save_seconds: an epoch's end within so long of the last one is not saved; what is lost with
            a host is an epoch or this, whichever is longer (or twenty times what saving takes). 0: all
            are, whatever it takes.
        device: what torch computes on; None: "cuda" where a host has a GPU.
        patience_seconds, together: of worker groups; see `hosts.HostTerms`.
        metrics_port: where a cluster of our own exports metrics; None: it tells none. Other clusters have
            ports of their own.
    """

    cpus_per_host: float = 1.0
    gpus_per_host: float = 0.0
    max_hosts: int | None = None
    lanes: int | None = None
    save_seconds: float = 5.0
    device: str | None = None
    patience_seconds: float = 60.0
    together: bool = False
    metrics_port: int | None = None

    @property
    def kind(self) -> str:
        return "gpu" if self.gpus_per_host else "cpu"


@contextmanager
def cluster(resources: Resources, workplace: Path) -> Iterator[bool]:
    """Ray, connected; gives True where it is a cluster of our own, which is ended at the end.

    Raises:
        RaymrcError: Ray cannot be started, or the port for metrics is taken.
    """
    if ray.is_initialized():
        yield False
        return
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"address": address}
    if not address:
        cpus = os.cpu_count() or 1
        if hasattr(os, "sched_getaffinity"):
            cpus = len(os.sched_getaffinity(0))
        most = resources.max_hosts
        if most is not None and resources.cpus_per_host > 0:
            cpus = max(1, min(cpus, int(most * resources.cpus_per_host)))
        if resources.metrics_port is not None:
            check_port(resources.metrics_port)
        spill = workplace / "spill"
        spill.mkdir()
        options = {
            "address": "local",
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            # What does not fit into memory holds notes: it stays in the study's folder.
            "object_spilling_directory": str(spill),
            # Ray's agent, which exports, is there without the dashboard too.
            "_metrics_export_port": resources.metrics_port,
        }
    # Workers import raymrc from where this process has it, installed or not.
    package = str(Path(raymrc.__file__).resolve().parents[1])
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    with environment(PYTHONPATH=os.pathsep.join(dict.fromkeys(paths))):
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:
            ray.shutdown()
            # Of a node that is slow to start Ray raises nothing more telling than an Exception.
            kinds = (ConnectionError, RuntimeError, ValueError, OSError)
            if type(error) is not Exception and not isinstance(error, kinds):
                raise
            where = f"at {address}" if address else "on this machine"
            raise RaymrcError(
                f"Ray cannot be started {where} ({type(error).__name__}); where the machine is busy, "
                "run the study again: what is done is kept"
            ) from None
        try:
            yield not address
        finally:
            _shut_down()


def _shut_down() -> None:
    """End Ray while no other thread can free what belongs to it.

    An object reference that another thread's garbage collection frees while the core worker is
    going down ends the whole process, with code 1 and no exception. Tune leaves such
    references in cycles, and the thread that writes to MLflow allocates enough to trigger one.
    """
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if was_enabled:
            gc.enable()


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
    files = open_files(storage, ROOM)
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

    def unsure() -> list[Entry]:
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
        journal.bury(entry)
    return waits


@contextmanager
def make_workplace(folder: Path) -> Iterator[Path]:
    """A folder below the study's for what Tune and Ray write; it goes with the run.

    Raises:
        RaymrcError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=".sweep-", dir=folder.resolve()))
        lock = (place / "lock").open("w")
    except OSError as error:
        raise RaymrcError(f"{folder}: cannot be written to ({error.strerror})") from None
    with lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


def clear_workplaces(folder: Path) -> None:
    """Takes away what drivers that were killed have left in a study's folder; it may hold notes. Those that
    live hold their locks."""
    for place in folder.glob(".sweep-*"):
        with suppress(OSError), (place / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Variables of this process, for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def catch_interrupt(stop: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """The first Ctrl-C asks for an end, the second is the ordinary one. So does SIGTERM: it is how
    clouds, batch systems and Kubernetes say that a machine will be taken away.

    Yields:
        What catches them again, where somebody else has begun to.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    was_asked = False

    def catch() -> None:
        for number in () if was_asked else before:
            signal.signal(number, interrupt)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal was_asked
        was_asked = True
        stop()
        restore()

    catch()
    try:
        yield catch
    finally:
        restore()
