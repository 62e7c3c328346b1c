"""The trained part of a model as one file that says what it was trained for.

    Model -> write_adapter -> adapter.safetensors -> read_adapter (without torch), read_state -> Model

The file holds what `Model.trained_state` has and, as JSON in the safetensors header, names of labels and
settings, and hashes that tell which notes it has seen. No note's text is in it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import raymrc
from raymrc.errors import AdapterError, BackboneError, first_few
from raymrc.model.backbones import file_digest

if TYPE_CHECKING:
    from torch import Tensor

    from raymrc.model.network import Model
    from raymrc.model.prompts import SavedPrompt

ADAPTER_FILE = "adapter.safetensors"

ADAPTER_FORMAT = 1
"""Raised when the header changes in a way that an older raymrc would misread."""

PROMPT = "prompt."
"""How the names of a soft prompt's tensors begin."""

FORM = {"prompt_length", "prompt_depth", "first_layer", "reparametrisation"}
"""Settings without which nobody can tell what the tensors are."""

HEADER = "raymrc"
"""The one entry of the safetensors metadata. Of several the order is left open by safetensors, and one
state would be written as different files."""


@dataclass(frozen=True)
class Adapter:
    """What a saved adapter was trained for.

    Args:
        place: its file.
        fingerprint: SHA-256 of the file, 64 hex digits.
        version: of the raymrc that wrote it.
        weights_fingerprint: of the backbone that it was trained on, `backbones.weights_fingerprint`.
        labels, relations: names of what is asked, in the order of prompts and heads.
        notes: that it was trained on or chosen by, `corpora.splits.note_marks` of each.
        configuration: the fields of `Configuration`, cell and backbone among them, as plain values;
            `Configuration.from_values` makes it one.
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
        """Of all questions: labels, then relation questions."""
        return (*self.labels, *self.relations)

    @property
    def strategy(self) -> str:
        return str(self.configuration["cell"]["strategy"])

    @property
    def backbone(self) -> str:
        """Its name."""
        return str(self.configuration["cell"]["backbone"]["name"])

    def check_backbone(self, fingerprint: str) -> None:
        """
        Args:
            fingerprint: `weights_fingerprint` of the backbone that it is to be used with.

        Raises:
            BackboneError: it was trained on other weights.
        """
        if fingerprint != self.weights_fingerprint:
            raise BackboneError(
                f"{self.place}: was trained on {self.backbone} with weights "
                f"{self.weights_fingerprint[:12]}, and these are {fingerprint[:12]}; "
                "give the backbone that it was trained on"
            )


def write_adapter(
    folder: Path,
    model: Model,
    labels: Sequence[str],
    relations: Sequence[str],
    weights_fingerprint: str,
    notes: Iterable[str],
) -> Path:
    """Keep what a model has learnt: all of the file or nothing, in place of an earlier one.

    Equal states under equal settings are equal files.

    Args:
        folder: made where it is not there.
        model: whole, in this process.
        labels, relations: names of its questions, in the order of prompts and heads.
        weights_fingerprint: of the backbone that it was built on, `Loaded.fingerprint`.
        notes: marks of those that it was trained on or chosen by.

    Returns:
        The file, `adapter.safetensors`.

    Raises:
        AdapterError: the folder cannot be written to.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

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


def read_adapter(place: Path | str) -> Adapter:
    """What a saved adapter was trained for. Reads its header, and all of it for the fingerprint; no torch.

    Args:
        place: the file, the folder that holds it, or one with no other below it.

    Raises:
        AdapterError: it is not there, is not the only one, not whole, or not written by a raymrc that this
            one understands.
    """
    from safetensors import SafetensorError, safe_open

    path = _file_of(place)
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
        fingerprint = file_digest(path)
    except (SafetensorError, OSError):
        raise AdapterError(f"{path}: is not a whole safetensors file") from None
    if HEADER not in metadata:
        raise AdapterError(
            f"{path}: does not say what it was trained for; give a file that raymrc wrote"
        )
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
        raise AdapterError(f"{path}: its header cannot be read; write it again") from None
    if written_as > ADAPTER_FORMAT:
        raise AdapterError(
            f"{path}: was written by a newer raymrc ({adapter.version}); this is {raymrc.__version__}"
        )
    return adapter


def read_state(place: Path | str) -> dict[str, Tensor]:
    """The trained tensors of a saved adapter, on the CPU, for `Model.load_trained_state`.

    Raises:
        AdapterError: see `read_adapter`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _file_of(place)
    try:
        return load_file(path)
    except (SafetensorError, OSError):
        raise AdapterError(f"{path}: is not a whole safetensors file") from None


def read_prompt(adapter: Adapter) -> SavedPrompt:
    """The soft prompt alone; of a trained backbone nothing is read.

    Raises:
        AdapterError: see `read_adapter`; or it has no soft prompt.
    """
    from safetensors import SafetensorError, safe_open

    from raymrc.model.prompts import SavedPrompt

    try:
        with safe_open(adapter.place, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(PROMPT)]  # noqa: SIM118
            state = {name.removeprefix(PROMPT): file.get_tensor(name) for name in names}
    except (SafetensorError, OSError):
        raise AdapterError(f"{adapter.place}: is not a whole safetensors file") from None
    if not state:
        raise AdapterError(f"{adapter.place}: has no soft prompt")
    given = adapter.configuration
    return SavedPrompt(
        adapter.names, given["prompt_length"], given["prompt_depth"], given["first_layer"],
        given["reparametrisation"], state, adapter.notes,
    )  # fmt: skip


def _file_of(place: Path | str) -> Path:
    path = Path(place)
    if path.is_dir():
        held = path / ADAPTER_FILE
        below = [held] if held.is_file() else sorted(path.rglob(ADAPTER_FILE))
        if len(below) > 1:
            names = [str(one.parent.relative_to(path)) for one in below]
            raise AdapterError(
                f"{path}: {len(below)} adapters are below it ({first_few(names)}); name one of them"
            )
        path = below[0] if below else held
    if not path.is_file():
        raise AdapterError(f"{path}: there is no adapter")
    return path
