"""What a fold-run costs: seconds on its devices, and its peak memory."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("raymrc", "torch", "transformers", "tokenizers", "safetensors", "numpy", "ray")


@dataclass(slots=True)
class FoldRunUsage:
    """What a fold-run has used of its process: its share, where several run side by side.

    Args:
        training, evaluation: wall-clock seconds.
        device: device-seconds; see `Meter`.
        device_training: those of training alone.
    """

    training: float = 0.0
    evaluation: float = 0.0
    device: float = 0.0
    device_training: float = 0.0

    @property
    def wall(self) -> float:
        return self.training + self.evaluation

    def add(self, wall: float, device: float, *, evaluates: bool = False) -> None:
        """Adds wall-clock seconds and device seconds."""
        self.device += device
        if evaluates:
            self.evaluation += wall
        else:
            self.training += wall
            self.device_training += device


class Meter:
    """Measures seconds since the last call of `lap`, and peak memory since the last reset.

    Memory is the allocator's on a GPU and the process's resident set on a CPU, so a CPU figure includes the
    interpreter and the backbone.

    Args:
        gpus: GPUs held, where the device is one; a share where other processes hold it too.
        processes: how many processes do the same work side by side; each is taken to use as much as this one.
    """

    def __init__(self, device: torch.device, gpus: float = 1.0, processes: int = 1) -> None:
        self.device = device
        self.gpus = gpus
        self.processes = processes
        self._wall = time.perf_counter()
        self._cpu = time.process_time()
        self.reset_peak()

    def lap(self) -> tuple[float, float]:
        """Wall-clock seconds and device seconds since the last call.

        A GPU counts the seconds it was held. A CPU counts the core-seconds this process used, which stay the
        same when neighbours make it wait.
        """
        wall, cpu = time.perf_counter(), time.process_time()
        passed, used = wall - self._wall, cpu - self._cpu
        self._wall, self._cpu = wall, cpu
        if self.device.type == "cuda":
            return passed, passed * self.gpus
        return passed, used * self.processes

    @property
    def num_devices(self) -> float:
        """Devices held: GPUs, or as many cores as there are threads."""
        if self.device.type == "cuda":
            return self.gpus
        return torch.get_num_threads() * self.processes

    @property
    def peak_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if peak := _read_proc("/proc/self/status", "VmHWM:"):
            return int(peak.split()[0]) * 1024
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:  # Linux: 5 resets the high-water mark of the resident set (proc(5), clear_refs)
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass


def _read_proc(path: str, name: str) -> str:
    """The value of the first line that starts with `name`; "" where there is none."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    line = next((line for line in lines if line.startswith(name)), "")
    return line.partition(":")[2].strip()


def device_kind(device: torch.device) -> str:
    """ "gpu" or "cpu", as plans name devices."""
    return "gpu" if device.type == "cuda" else "cpu"


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def hardware(device: torch.device) -> str:
    """The device in one line, as records name it."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    model = _read_proc("/proc/cpuinfo", "model name") or "cpu"
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Versions of Python and of those `PACKAGES` that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
