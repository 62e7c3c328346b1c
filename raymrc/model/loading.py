"""A backbone in memory: encoder, tokenizer and shape, read from a checkpoint's folder.

    Backbone -> folder -> Weights -> Loaded (torch, transformers)

`backbones` finds folders and reads configs without torch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from raymrc.configuration import Backbone
from raymrc.errors import BackboneError
from raymrc.model.backbones import find_backbone, read_shape, weight_files, weights_fingerprint
from raymrc.model.encoder import Encoder
from raymrc.model.precision import precision
from raymrc.model.shapes import Shape


@dataclass(frozen=True)
class Loaded:
    """A backbone in memory. Its encoder is frozen, in evaluation mode, and shared by many models.

    Args:
        tokenizer: a fast Hugging Face tokenizer, which gives offsets.
        fingerprint: `weights_fingerprint` of its folder.
    """

    backbone: Backbone
    encoder: Encoder
    tokenizer: Any
    shape: Shape
    fingerprint: str

    def copy_to_train(self) -> Encoder:
        """A copy of the pretrained encoder in fp32, for one model to train.

        An encoder held in bf16 is read from its files again, because rounding lost bits.

        Raises:
            BackboneError: the files are missing or have changed.
        """
        weight = self.encoder.word.weight
        if weight.dtype == torch.float32:
            return copy.deepcopy(self.encoder)
        again = load_backbone(self.backbone, weight.device, dtype=torch.float32)
        if again.fingerprint != self.fingerprint:
            raise BackboneError(
                f"backbone {self.backbone.name}: its files have changed since they were loaded; "
                "restart the run"
            )
        return again.encoder


def load_backbone(
    backbone: Backbone, device: torch.device | str = "cpu", *, dtype: torch.dtype | None = None
) -> Loaded:
    """Load encoder and tokenizer.

    Args:
        dtype: type of the weights; None for `precision(device)`.

    Raises:
        BackboneError: see `find_backbone` and `read_shape`; weights are missing, unreadable or do not
            fit the config; there is no fast tokenizer.
    """
    folder = find_backbone(backbone)
    shape = read_shape(folder, backbone.layers)
    encoder = from_hugging_face(shape, read_weights(folder), dtype or precision(device)).to(device)
    return Loaded(backbone, encoder, load_tokenizer(folder), shape, weights_fingerprint(folder))


def check_weights(backbone: Backbone) -> None:
    """Check from the files' headers that a checkpoint is complete and fits its config.

    Files other than safetensors have no header; they are checked when they are loaded.

    Raises:
        BackboneError: see `load_backbone`.
    """
    folder = find_backbone(backbone)
    if any(file.suffix != ".safetensors" for file in weight_files(folder)):
        return
    with torch.device("meta"):
        encoder = Encoder(read_shape(folder, backbone.layers))
    for _ in stored_parts(encoder, read_weights(folder)):
        pass  # each is checked before it is given


@dataclass(frozen=True)
class Weights:
    """A checkpoint's tensors by name.

    Args:
        stored: tensors, or slices of a safetensors file, which are read on demand.
    """

    folder: Path
    stored: Mapping[str, Any]

    def shape(self, name: str) -> tuple[int, ...]:
        part = self.stored[name]
        return tuple(part.shape if isinstance(part, Tensor) else part.get_shape())

    def read(self, name: str, begin: int = 0, end: int | None = None) -> Tensor:
        """Rows `begin` to `end` (half-open) of the first dimension; None for the last row, too."""
        tensor: Tensor = self.stored[name][begin:end]
        return tensor


def read_weights(folder: Path) -> Weights:
    """Opens safetensors files, and reads other files into memory at once.

    Raises:
        BackboneError: there are no weights; a file cannot be read or is truncated.
    """
    stored: dict[str, Any] = {}
    for file in weight_files(folder):
        stored |= _open(file) if file.suffix == ".safetensors" else _load(file)
    return Weights(folder, stored)


def _open(file: Path) -> dict[str, Any]:
    try:
        opened = safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise BackboneError(f"{file}: not a readable safetensors file ({error})") from None
    return {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118


def _load(file: Path) -> dict[str, Any]:
    try:
        # weights_only: a checkpoint is data and must not run code when it is read.
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # torch.load's own errors have no common class
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BackboneError(f"{file}: not a readable checkpoint ({reason})") from None


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer in a backbone's folder.

    Raises:
        BackboneError: no fast tokenizer can be read.
    """
    from transformers import AutoTokenizer  # takes seconds, and most importers never load one

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BackboneError(f"backbone folder {folder} has no usable tokenizer: {reason}") from None
    if not tokenizer.is_fast:
        raise BackboneError(
            f"backbone folder {folder} has no fast tokenizer; offsets need a tokenizer.json"
        )
    return tokenizer


# Our names on the left, Hugging Face's on the right; several names on the right are stacked into one
# tensor. Pooler and language-model heads are not listed, so they are not read.
EMBEDDING_NAMES = {
    "word.weight": ("embeddings.word_embeddings.weight",),
    "position.weight": ("embeddings.position_embeddings.weight",),
    "segment.weight": ("embeddings.token_type_embeddings.weight",),
}
LAYER_NAMES = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention_out": ("attention.output.dense",),
    "up": ("intermediate.dense",),
    "down": ("output.dense",),
}
POST_NORM_NAMES = {
    "attention_norm": ("attention.output.LayerNorm",),
    "ffn_norm": ("output.LayerNorm",),
}
PRE_NORM_NAMES = {"attention_norm": ("attention.ln",), "ffn_norm": ("ln",)}
PREFIXES = {"bert": "bert.", "roberta": "roberta.", "megatron-bert": "bert."}
"""Prefix of every name in a checkpoint that was saved with a head; others have none."""


def weight_names(shape: Shape) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(our name, the checkpoint's names to be stacked) of every weight of the encoder."""
    yield from EMBEDDING_NAMES.items()
    norms = PRE_NORM_NAMES if shape.pre_norm else POST_NORM_NAMES
    for end in ("weight", "bias"):
        if shape.embedding_norm:
            yield f"embedding_norm.{end}", (f"embeddings.LayerNorm.{end}",)
        if shape.pre_norm:
            yield f"final_norm.{end}", (f"encoder.ln.{end}",)
        for layer in range(shape.num_layers):
            for ours, theirs in (LAYER_NAMES | norms).items():
                yield (
                    f"layers.{layer}.{ours}.{end}",
                    tuple(f"encoder.layer.{layer}.{name}.{end}" for name in theirs),
                )


def from_hugging_face(
    shape: Shape, weights: Weights, dtype: torch.dtype = torch.float32
) -> Encoder:
    """An encoder with a checkpoint's weights, frozen and in evaluation mode; reads one at a time.

    Raises:
        BackboneError: see `stored_parts`.
    """
    with torch.device("meta"):
        encoder = Encoder(shape)
    state = {}
    for name, theirs, _ in stored_parts(encoder, weights):
        parts = [weights.read(part).to(dtype) for part in theirs]
        state[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
    encoder.load_state_dict(state, assign=True)
    return encoder.requires_grad_(False).eval()


def stored_parts(
    encoder: Encoder, weights: Weights
) -> Iterator[tuple[str, Sequence[str], Sequence[tuple[int, ...]]]]:
    """Each parameter's name, the names of its parts in a checkpoint, and their shapes.

    Raises:
        BackboneError: a weight is missing, or its parts, stacked by rows, do not have the shape that
            the config describes.
    """
    shape, where = encoder.shape, f"backbone folder {weights.folder}"
    known = {_modern(name): name for name in weights.stored}
    prefix = PREFIXES[shape.kind]
    if f"{prefix}embeddings.word_embeddings.weight" not in known:
        prefix = ""
    names = dict(weight_names(shape))
    for name in chain.from_iterable(names.values()):
        if prefix + name not in known:
            raise BackboneError(
                f"{where}: the checkpoint has no weight {name!r}; is it a {shape.kind} encoder of "
                f"{shape.num_layers} layers or more?"
            )
    for ours, theirs in names.items():
        parts = [known[prefix + name] for name in theirs]
        shapes = [weights.shape(part) for part in parts]
        expected = tuple(encoder.get_parameter(ours).shape)
        rows = sum(shape[0] for shape in shapes)
        if (rows, *shapes[0][1:]) != expected or len({shape[1:] for shape in shapes}) > 1:
            raise BackboneError(
                f"{where}: weight {parts[0]!r} has shape {shapes[0]}, which does not fit the "
                f"checkpoint's config.json ({ours}: {expected})"
            )
        yield ours, parts, shapes


def _modern(name: str) -> str:
    """The current name of a weight: early checkpoints call a LayerNorm's gamma and beta."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )
