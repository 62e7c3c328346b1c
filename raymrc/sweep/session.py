"""The place where a study runs: what hosts hold, Ray, a folder of its own, and the signals that end it."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import raymrc
from raymrc.errors import RaymrcError

# isort: split
import ray

from raymrc.sweep.metrics import check_port
from raymrc.sweep.ray_internals import metrics_port_option

OBJECT_STORE_BYTES = 256 * 2**20
"""Holds the notes and what hosts report; Ray's default of 30 % of memory is for data sets."""


@dataclass(frozen=True, slots=True)
class HostResources:
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
def cluster(resources: HostResources, workplace: Path) -> Iterator[bool]:
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
            **metrics_port_option(resources.metrics_port),
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


@contextmanager
def make_session_folder(folder: Path) -> Iterator[Path]:
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


def clear_session_folders(folder: Path) -> None:
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
