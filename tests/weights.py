"""Checkpoints that tests and benchmarks write."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_weights(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], file_bytes: int = 5 * 10**9
) -> None:
    """Write tensors as one safetensors file, or as shards with an index.

    Existing files of the same names are replaced.

    Args:
        tensors: read one by one; at most one file's tensors are in memory.
        file_bytes: approximate size of a shard.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held: dict[str, Tensor] = {}
    files: list[list[str]] = []
    size = total = 0

    def flush() -> None:
        nonlocal size
        save_file(held, folder / f"part-{len(files)}.safetensors", {"format": "pt"})
        files.append(list(held))
        held.clear()
        size = 0

    for name, tensor in tensors:
        held[name] = tensor.to("cpu", copy=True).contiguous()
        size += held[name].nbytes
        total += held[name].nbytes
        if size >= file_bytes:
            flush()
    if held:
        flush()
    where: dict[str, str] = {}
    for number, names in enumerate(files):
        name = "model.safetensors"
        if len(files) > 1:
            name = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        (folder / f"part-{number}.safetensors").replace(folder / name)
        where |= dict.fromkeys(names, name)
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
