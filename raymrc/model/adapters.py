"""What a saved adapter was trained for, read without torch.

    adapter.safetensors -> read_adapter -> Adapter

The safetensors header holds, as JSON, names of labels, settings, and hashes of the notes that the adapter
has seen. It holds no note's text. `adapter_tensors` writes the file and reads its tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import raymrc
from raymrc.errors import AdapterError, BackboneError, first_few
from raymrc.model.backbones import file_digest

ADAPTER_FILE = "adapter.safetensors"
ADAPTERS_FOLDER = "adapters"
"""Folder of a study's storage in which final tests save adapters; worker groups save none."""

ADAPTER_FORMAT = 1
"""Increased when the header changes in a way that an older raymrc would misread."""

FORM = {"prompt_length", "prompt_depth", "first_layer", "reparametrisation"}
"""Settings without which the tensors cannot be interpreted."""

HEADER = "raymrc"
"""The only entry of the safetensors metadata. safetensors does not fix the order of several entries, and
equal states would then give different files."""


@dataclass(frozen=True)
class Adapter:
    """What a saved adapter was trained for.

    Args:
        place: its file.
        fingerprint: SHA-256 of the file, 64 hex digits.
        version: the raymrc that wrote it.
        weights_fingerprint: `backbones.weights_fingerprint` of the backbone it was trained on.
        labels, relations: names of its questions, in the order of prompts and heads.
        notes: `corpora.splits.note_marks` of its training and validation notes.
        configuration: the fields of `Configuration`, cell and backbone included, as plain values;
            `Configuration.from_values` rebuilds it.
    """

    place: Path
    fingerprint: str
    version: str
    weights_fingerprint: str
    labels: tuple[str, ...]
    relations: tuple[str, ...]
    notes: frozenset[str]
    configuration: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all questions: labels, then relations."""
        return (*self.labels, *self.relations)

    @property
    def strategy(self) -> str:
        return str(self.configuration["cell"]["strategy"])

    @property
    def backbone(self) -> str:
        """Name of the backbone."""
        return str(self.configuration["cell"]["backbone"]["name"])

    def check_backbone(self, fingerprint: str) -> None:
        """
        Args:
            fingerprint: `weights_fingerprint` of the backbone that shall carry the adapter.

        Raises:
            BackboneError: the adapter was trained on other weights.
        """
        if fingerprint != self.weights_fingerprint:
            raise BackboneError(
                f"{self.place}: was trained on {self.backbone} with weights "
                f"{self.weights_fingerprint[:12]}, not {fingerprint[:12]}; "
                "use the backbone that it was trained on"
            )


def read_adapter(place: Path | str) -> Adapter:
    """Read the header; the whole file is read once for the fingerprint.

    Args:
        place: the adapter's file, its folder, or a folder with exactly one adapter below it.

    Raises:
        AdapterError: there is no adapter or several, or the file is incomplete or was not written by a
            raymrc that this one understands.
    """
    from safetensors import SafetensorError, safe_open

    path = find_adapter(place)
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
        fingerprint = file_digest(path)
    except (SafetensorError, OSError):
        raise AdapterError(f"{path}: not a complete safetensors file") from None
    if HEADER not in metadata:
        raise AdapterError(f"{path}: has no raymrc header; give a file that raymrc wrote")
    try:
        header = json.loads(metadata[HEADER])
        written_as = int(header["format"])
        adapter = Adapter(
            place=path,
            fingerprint=fingerprint,
            version=str(header["version"]),
            weights_fingerprint=str(header["weights_fingerprint"]),
            labels=tuple(map(str, header["labels"])),
            relations=tuple(map(str, header["relations"])),
            notes=frozenset(map(str, header["notes"])),
            configuration=dict(header["configuration"]),
        )
        assert adapter.strategy and adapter.backbone
        assert adapter.configuration.keys() >= FORM
    except (AssertionError, KeyError, TypeError, ValueError):
        raise AdapterError(f"{path}: its header cannot be read; train the adapter again") from None
    if written_as > ADAPTER_FORMAT:
        raise AdapterError(
            f"{path}: was written by a newer raymrc ({adapter.version}); this is {raymrc.__version__}"
        )
    return adapter


def find_adapter(place: Path | str) -> Path:
    """The adapter's file; see `read_adapter` for arguments and errors."""
    path = Path(place)
    if path.is_dir():
        held = path / ADAPTER_FILE
        below = [held] if held.is_file() else sorted(path.rglob(ADAPTER_FILE))
        if len(below) > 1:
            names = [str(file.parent.relative_to(path)) for file in below]
            raise AdapterError(
                f"{path}: {len(below)} adapters are below it ({first_few(names)}); name one of them"
            )
        path = below[0] if below else held
    if not path.is_file():
        raise AdapterError(f"{path}: there is no adapter")
    return path
