"""One device as memory planning sees it: its kind and how many bytes of it can be filled."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

GIB = 2**30

GPU_GIB = 80.0
"""Assumed memory of a GPU (A100 or H100) if the study gives no `device_memory`."""

MEMORY_SHARE = 0.8
"""Share of a machine's memory that its hosts may plan with."""

CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")

FILLED = {"cpu": 0.7, "gpu": 0.9}
"""Share of a device's memory that predictions may fill. On a GPU the rest holds CUDA itself (0.5 GiB),
library workspaces, and gaps between blocks. On a CPU malloc leaves gaps of 10 to 50 %, and more if every row
of a frozen lane is full of answers, which is rarer than predictions allow for."""


@dataclass(frozen=True, slots=True)
class Device:
    """The device on which one fold-run, or one part of a model, trains.

    Args:
        kind: "cpu" or "gpu".
    """

    kind: str
    total_bytes: float

    @property
    def usable_bytes(self) -> float:
        return FILLED[self.kind] * self.total_bytes


class DeviceResources(Protocol):
    """The fields of a study's `resources` that describe a device."""

    @property
    def cpus_per_host(self) -> float: ...

    @property
    def gpus_per_host(self) -> float: ...

    @property
    def device_memory(self) -> float | None: ...


def device_of(resources: DeviceResources) -> Device:
    """The GPU, share of a GPU, or group of cores that one host holds."""
    if resources.gpus_per_host:
        gib = GPU_GIB if resources.device_memory is None else resources.device_memory
        return Device("gpu", gib * GIB * min(resources.gpus_per_host, 1.0))
    if resources.device_memory is not None:
        return Device("cpu", resources.device_memory * GIB)
    hosts_at_once = max(1.0, (os.cpu_count() or 1) / max(resources.cpus_per_host, 1.0))
    return Device("cpu", MEMORY_SHARE * machine_bytes() / hosts_at_once)


def machine_bytes() -> float:
    """Memory of this machine, or of the container that this process runs in."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = CONTAINER_LIMIT.read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total
