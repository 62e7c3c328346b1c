"""How much more memory do 64 lanes need than one, and what does the arithmetic predict?

    python -m benchmarks.lane_memory [--quick] [--device cpu|cuda]

Lanes as in `benchmarks.fused_step`, with four rows of 32 pieces per step; each count in a separate process.
Measured is the peak memory of the process (CPU; interpreter, torch and backbone included) or of the
allocator (GPU). Predicted is `planning.arithmetic.lane_bytes` per further lane, best states included.
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from benchmarks.common import json_line, read_options, start
from benchmarks.fused_step import TINY, make_backbone, make_lanes, step_together
from raymrc.model.shapes import SHAPES, Shape
from raymrc.planning.arithmetic import lane_bytes
from raymrc.training.meter import Meter
from raymrc.training.pool import keep_freed_memory

ROWS = 4
MAX_TIMES = 1.5
"""Memory of all lanes relative to one."""


def measure(count: int, device: str, shape: Shape) -> tuple[int, int]:
    """Peak bytes, and trained parameters per lane."""
    torch.set_num_threads(1)
    meter = Meter(torch.device(device))
    if device == "cpu":
        keep_freed_memory()
    lanes = make_lanes(make_backbone(device, shape=shape), count, ROWS)
    parts, optimisers = [part for part, _ in lanes], [optimiser for _, optimiser in lanes]
    best = []
    for _ in range(3):
        step_together(parts, optimisers)
    best = [part.model.trained_state() for part in parts]
    assert len(best) == count
    trained = sum(p.numel() for p in parts[0].model.parameters() if p.requires_grad)
    return meter.peak_bytes, trained


def main() -> int:
    options = read_options("lane_memory", __doc__)
    start(options)
    counts = (1, 4) if options.quick else (1, 16, 64)
    shape = TINY if options.quick else SHAPES["minilm"]
    found = {}
    for count in counts:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            found[count], trained = process.submit(measure, count, options.device, shape).result()
    for count in counts[1:]:
        times = found[count] / found[1]
        json_line(
            options, f"{count} lanes beside one", times, None, "times the memory",
            MAX_TIMES / times, MAX_TIMES,
            bytes_of_one=found[1], bytes_of_all=found[count], trained_parameters=trained,
        )  # fmt: skip
        each = (found[count] - found[1]) / (count - 1)
        predicted = lane_bytes(trained)
        json_line(
            options, f"one of {count} lanes, measured and predicted", each, predicted, "bytes",
            predicted / each, 1.0,
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
