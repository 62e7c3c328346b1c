"""What a fold-run costs: seconds on its devices, and the most memory it held."""

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
        training, evaluation: seconds by the clock.
        device: seconds of devices; see `Meter`.
    """

    training: float = 0.0
    evaluation: float = 0.0
    device: float = 0.0

    @property
    def wall(self) -> float:
        return self.training + self.evaluation

    def add(self, wall: float, device: float, *, evaluates: bool = False) -> None:
        """Seconds by the clock and of devices."""
        self.device += device
        if evaluates:
            self.evaluation += wall
        else:
            self.training += wall


class Meter:
    """Seconds since it was last asked, and the peak memory since it was made.

    Memory is the allocator's on a GPU and the process's resident set on a CPU, so a
    CPU figure holds the interpreter and the backbone too.

    Args:
        gpus: how many are held, where the device is one; a share where others hold it too.
        processes: that do the same side by side; what this one uses is taken for what each does.
    """

    def __init__(self, device: torch.device, gpus: float = 1.0, processes: int = 1) -> None:
        self.device = device
        self.gpus = gpus
        self.processes = processes
        self._wall = time.perf_counter()
        self._cpu = time.process_time()
        _reset_peak(device)

    def lap(self) -> tuple[float, float]:
        """Seconds by the clock and of the devices since the last call.

        Of a GPU the seconds that it was held. Of a CPU the core-seconds that this process used, which
        stay the same when neighbours make it wait.
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
        return _read_peak(self.device)

    def reset_peak(self) -> None:
        _reset_peak(self.device)


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
