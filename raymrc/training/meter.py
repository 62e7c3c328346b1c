"""What a fold-run costs: seconds on its devices, and the most memory it held."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("raymrc", "torch", "transformers", "tokenizers", "safetensors", "numpy", "ray")


class Meter:
    """Wall seconds by phase and the peak memory since it was made.

    Memory is the allocator's on a GPU and the process's resident set on a CPU, so a
    CPU figure holds the interpreter and the backbone too.

    Args:
        gpus: how many are held, where the device is one; a share where others hold it too.
    """

    def __init__(self, device: torch.device, gpus: float = 1.0) -> None:
        self.device = device
        self.gpus = gpus
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()
        self._cpu_began = time.process_time()
        _reset_peak(device)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    @property
    def wall_seconds(self) -> float:
        return time.perf_counter() - self._began

    @property
    def device_seconds(self) -> float:
        """The seconds that GPUs were held, all together. On a CPU the core-seconds that this process
        used, which stay the same when neighbours make it wait."""
        if self.device.type == "cuda":
            return self.wall_seconds * self.gpus
        return time.process_time() - self._cpu_began

    @property
    def num_devices(self) -> float:
        """Devices held: GPUs, or as many cores as there are threads."""
        return self.gpus if self.device.type == "cuda" else torch.get_num_threads()

    @property
    def peak_bytes(self) -> int:
        return _read_peak(self.device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:  # Linux: 5 resets the high-water mark of the resident set (proc(5), clear_refs)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def _read_peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def hardware(device: torch.device) -> str:
    """One line that says where a figure was measured."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    model = "cpu"
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Python's version, and of each package that is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
