"""What a run sets up and takes down again: Ray, a folder of its own, and handlers of signals."""

from __future__ import annotations

import fcntl
import gc
import logging
import math
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

import ray

import raymrc
from raymrc.errors import RaymrcError
from raymrc.scheduling.orders import SINGLE_DEVICE, WorkerRange
from raymrc.sweep.metrics import check_port
from raymrc.sweep.ray_internals import metrics_port_option

OBJECT_STORE_BYTES = 256 * 2**20
"""Enough for the notes and what hosts report; Ray's default is 30 % of memory."""

MAX_RAY_STARTS = 3
"""On a busy machine Ray's processes may take longer than Ray waits for them."""


@dataclass(frozen=True, slots=True)
class HostResources:
    """What one host holds.

    Args:
        max_hosts: devices held at a time; None: as many as fit.
        lanes: frozen fold-runs on one host at a time, at most; None: see `placement.LANES`.
        save_seconds: minimum time between two checkpoints, which are written at the end of epochs; 0: save
            each epoch. A lost host costs an epoch or this, whichever is longer; or 20 times a save.
        device: what torch computes on; None: "cuda" where a host has a GPU.
        patience_seconds: a group that has waited this long for all its devices starts with fewer.
        together: whether all devices of a group have to be on one machine.
        metrics_port: where our own cluster exports metrics; None: nowhere. Other clusters have ports of
            their own.
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

    @property
    def uses_cuda(self) -> bool:
        return self.device == "cuda" if self.device else self.kind == "gpu"

    @property
    def per_device(self) -> dict[str, float]:
        """Ray's resources of one device of a worker group, which is always a whole device."""
        resources = {"CPU": self.cpus_per_host, "GPU": math.ceil(self.gpus_per_host)}
        return {name: amount for name, amount in resources.items() if amount}

    def charge(self, workers: WorkerRange, size: int = 1) -> float:
        """The number of GPUs, or of CPU cores without a GPU, that a host of this size is charged for."""
        if workers == SINGLE_DEVICE:
            return self.gpus_per_host or self.cpus_per_host or 1.0
        return size * (math.ceil(self.gpus_per_host) or self.cpus_per_host or 1.0)


@contextmanager
def cluster(resources: HostResources, session_folder: Path) -> Iterator[bool]:
    """Connect to Ray; yields True where the cluster is our own and ends with this context.

    Raises:
        RaymrcError: Ray cannot be started, or the port for metrics is taken.
    """
    if ray.is_initialized():
        yield False
        return
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"address": address}
    if not address:
        if resources.metrics_port is not None:
            check_port(resources.metrics_port)
        spill = session_folder / "spill"
        spill.mkdir()
        options = {
            "address": "local",
            "num_cpus": _num_cpus(resources),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            # Objects hold notes: what does not fit into memory stays in the study's folder.
            "object_spilling_directory": str(spill),
            # Ray's agent, which exports metrics, runs without the dashboard too.
            **metrics_port_option(resources.metrics_port),
        }
    # Workers import raymrc from where this process has it, installed or not.
    package = str(Path(raymrc.__file__).resolve().parents[1])
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    with environment(PYTHONPATH=os.pathsep.join(dict.fromkeys(paths))):
        _start(options)
        try:
            yield not address
        finally:
            _shut_down()


def _num_cpus(resources: HostResources) -> int:
    cpus = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    if resources.max_hosts is not None and resources.cpus_per_host > 0:
        cpus = max(1, min(cpus, int(resources.max_hosts * resources.cpus_per_host)))
    return cpus


def _start(options: dict[str, Any]) -> None:
    is_ours = options["address"] == "local"
    where = "on this machine" if is_ours else f"at {options['address']}"
    for attempt in range(1, MAX_RAY_STARTS + 1):
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
            return
        except Exception as error:
            ray.shutdown()
            # Ray raises a bare Exception for a node that is slow to start.
            kinds = (ConnectionError, RuntimeError, ValueError, OSError)
            if type(error) is not Exception and not isinstance(error, kinds):
                raise
            if attempt == MAX_RAY_STARTS or not is_ours or isinstance(error, ValueError):
                reason = " ".join(str(error).split()) or type(error).__name__
                raise RaymrcError(
                    f"Ray cannot be started {where}: {reason.rstrip('.')}. If the machine is busy, run "
                    "the study again; what is done is kept"
                ) from None


def _shut_down() -> None:
    """End Ray while no other thread can free what belongs to it.

    An object reference that another thread's garbage collection frees while the core worker is going down
    ends the whole process, with code 1 and no exception. Tune leaves such references in cycles, and the
    thread that writes to MLflow allocates enough to trigger a collection.
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
    """A folder below the study's for what Tune and Ray write, removed at the end.

    Raises:
        RaymrcError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        session_folder = Path(tempfile.mkdtemp(prefix=".sweep-", dir=folder.resolve()))
        lock = (session_folder / "lock").open("w")
    except OSError as error:
        raise RaymrcError(f"{folder}: cannot be written to ({error.strerror})") from None
    with lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield session_folder
        finally:
            shutil.rmtree(session_folder, ignore_errors=True)


def clear_session_folders(folder: Path) -> None:
    """Remove what killed drivers left in a study's folder, which may hold notes. Live ones hold a lock."""
    for session_folder in folder.glob(".sweep-*"):
        with suppress(OSError), (session_folder / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(session_folder, ignore_errors=True)


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set variables of this process, and restore them at the end."""
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
    """Call `stop` at the first Ctrl-C or SIGTERM; a second one has its usual effect.

    Clouds, batch systems and Kubernetes send SIGTERM before they take a machine away.

    Yields:
        A function that installs the handlers again after other code has replaced them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    was_asked = False

    def catch() -> None:
        if not was_asked:
            for number in before:
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
