"""One device as memory planning sees it: its kind and how many bytes of it can be filled."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

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
    """The device, "cpu" or "gpu", on which one fold-run, or one part of a model, trains."""

    kind: str
    total_bytes: float

    @property
    def usable_bytes(self) -> float:
        return FILLED[self.kind] * self.total_bytes


def machine_bytes() -> float:
    """Memory of this machine, or of the container that this process runs in."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = CONTAINER_LIMIT.read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total
