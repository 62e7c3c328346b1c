"""The tensors of a saved adapter: written by training, read back into a model.

    Model -> write_adapter -> adapter.safetensors -> read_state, read_prompt -> Model

The file holds `Model.trained_state`. Its header (see `adapters`) says what the adapter was trained for.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import raymrc
from raymrc.errors import AdapterError
from raymrc.model.adapters import ADAPTER_FILE, ADAPTER_FORMAT, HEADER, Adapter, find_adapter
from raymrc.model.network import Model
from raymrc.model.prompts import SavedPrompt


def write_adapter(
    folder: Path,
    model: Model,
    labels: Sequence[str],
    relations: Sequence[str],
    weights_fingerprint: str,
    notes: Iterable[str],
) -> Path:
    """Write a model's trained state atomically, replacing an earlier adapter, and return the file.

    Equal states under equal settings give equal files.

    Args:
        folder: created if missing.
        model: all of its parameters must be in this process.
        labels, relations: names of its questions, in the order of prompts and heads.
        weights_fingerprint: `Loaded.fingerprint` of its backbone.
        notes: `corpora.splits.note_marks` of the training and validation notes.

    Raises:
        AdapterError: the folder cannot be written to.
    """
    header = {
        "format": ADAPTER_FORMAT,
        "version": raymrc.__version__,
        "weights_fingerprint": weights_fingerprint,
        "labels": list(labels),
        "relations": list(relations),
        "notes": sorted(notes),
        "configuration": asdict(model.configuration),
    }
    target = folder / ADAPTER_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # In the same folder, so that the move cannot cross file systems.
        descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=folder)
        os.close(descriptor)
        try:
            save_file(model.trained_state(), temporary, {HEADER: json.dumps(header)})
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AdapterError(f"{target}: cannot be written ({reason})") from None
    return target


def read_state(place: Path | str) -> dict[str, Tensor]:
    """The trained tensors of a saved adapter, on the CPU, for `Model.load_trained_state`.

    Raises:
        AdapterError: see `read_adapter`.
    """
    path = find_adapter(place)
    try:
        return load_file(path)
    except (SafetensorError, OSError):
        raise AdapterError(f"{path}: not a complete safetensors file") from None


def read_prompt(adapter: Adapter) -> SavedPrompt:
    """The soft prompt alone; weights of a trained backbone are not read.

    Raises:
        AdapterError: see `read_adapter`; or the adapter has no soft prompt.
    """
    try:
        with safe_open(adapter.place, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith("prompt.")]  # noqa: SIM118
            state = {name.removeprefix("prompt."): file.get_tensor(name) for name in names}
    except (SafetensorError, OSError):
        raise AdapterError(f"{adapter.place}: not a complete safetensors file") from None
    if not state:
        raise AdapterError(f"{adapter.place}: has no soft prompt")
    given = adapter.configuration
    return SavedPrompt(
        adapter.names, given["prompt_length"], given["prompt_depth"], given["first_layer"],
        given["reparametrisation"], state, adapter.notes,
    )  # fmt: skip
