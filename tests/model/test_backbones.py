"""Backbones by name, folder and hub: what is found, and the errors if nothing is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raymrc.configuration import Backbone
from raymrc.errors import BackboneError
from raymrc.model.backbones import (
    BACKBONES,
    find_backbone,
    read_shape,
    shape_of,
    weights_fingerprint,
)
from raymrc.model.loading import load_backbone
from raymrc.model.shapes import SHAPES
from tests.model.tiny import KINDS, random_inputs, tiny_backbone, tiny_checkpoint
from tests.paths import ROOT


@pytest.fixture
def checkpoint(tmp_path):
    return tiny_checkpoint("bert", tmp_path / "checkpoint")


def change_config(folder, **values):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def test_every_backbone_known_by_name_has_a_shape():
    assert set(BACKBONES) == set(SHAPES)


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_gives_the_shape_of_what_is_loaded(kind, tmp_path):
    folder = tiny_checkpoint(kind, tmp_path)
    shape = read_shape(folder)
    loaded = load_backbone(tiny_backbone(folder))
    assert loaded.shape == shape and shape.kind == kind
    assert shape.max_pieces == 64
    assert shape.num_parameters == sum(p.numel() for p in loaded.encoder.parameters())


def test_our_table_agrees_with_minilms_own_config(minilm_folder):
    assert read_shape(minilm_folder) == SHAPES["minilm"]
    assert shape_of(Backbone("m2", "minilm", layers=2)).num_layers == 2


def test_pickled_weights_give_the_same_encoder_as_safetensors(checkpoint):
    first = load_backbone(tiny_backbone(checkpoint))
    from safetensors.torch import load_file

    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    second = load_backbone(tiny_backbone(checkpoint))
    inputs = random_inputs(first.shape.vocab)
    assert torch.equal(first.encoder(inputs), second.encoder(inputs))
    assert first.fingerprint != second.fingerprint


def test_a_pickle_that_would_run_code_is_refused(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    torch.save({"x": subprocess.Popen}, checkpoint / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="not a readable checkpoint"):
        load_backbone(tiny_backbone(checkpoint))


def test_a_sharded_checkpoint_gives_the_same_encoder(checkpoint):
    first = load_backbone(tiny_backbone(checkpoint))
    from safetensors.torch import load_file, save_file

    tensors = load_file(checkpoint / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, checkpoint / shard)
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    (checkpoint / "model.safetensors").unlink()
    second = load_backbone(tiny_backbone(checkpoint))
    inputs = random_inputs(first.shape.vocab)
    assert torch.equal(first.encoder(inputs), second.encoder(inputs))
    (checkpoint / "model-2.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"shard model-2\.safetensors is missing"):
        find_backbone(tiny_backbone(checkpoint))


def test_the_fingerprint_follows_weights_config_and_tokenizer(checkpoint, tmp_path):
    before = weights_fingerprint(checkpoint)
    copied = shutil.copytree(checkpoint, tmp_path / "copy")
    assert weights_fingerprint(copied) == before
    change_config(copied, hidden_act="relu")
    assert weights_fingerprint(copied) != before
    other_weights = tiny_checkpoint("bert", tmp_path / "other", seed=1)
    assert weights_fingerprint(other_weights) != before
    third = shutil.copytree(checkpoint, tmp_path / "third")
    (third / "tokenizer.json").write_text((third / "tokenizer.json").read_text() + " ")
    assert weights_fingerprint(third) != before


def test_a_folder_without_weights_is_one_clear_sentence(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(BackboneError) as error:
        load_backbone(tiny_backbone(checkpoint))
    assert str(error.value) == (
        f"backbone folder {checkpoint} has no weights: "
        "neither model.safetensors nor pytorch_model.bin"
    )


def test_a_folder_without_config_is_refused(checkpoint):
    (checkpoint / "config.json").unlink()
    with pytest.raises(BackboneError, match=r"backbone tiny: folder .* has no config\.json"):
        load_backbone(tiny_backbone(checkpoint))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "t5"}, "model_type 't5' is not one of bert, roberta, megatron-bert"),
        ({"hidden_size": ...}, "field 'hidden_size' is missing"),
        ({"hidden_size": "wide"}, "a size is not a number"),
        ({"num_attention_heads": 5}, "5 heads do not divide a hidden size of 32"),
        ({"hidden_act": "swish"}, "hidden_act 'swish' is not one of"),
        ({"position_embedding_type": "relative_key"}, "only absolute position embeddings"),
        ({"num_hidden_layers": 4}, r"no weight 'encoder\.layer\.3\..*4 layers or more"),
        ({"vocab_size": 99}, r"word_embeddings\.weight' has shape .* does not fit"),
    ],
)
def test_a_config_that_does_not_fit_is_one_clear_sentence(checkpoint, change, message):
    change_config(checkpoint, **change)
    with pytest.raises(BackboneError, match=message) as error:
        load_backbone(tiny_backbone(checkpoint))
    assert str(checkpoint) in str(error.value)


def test_a_torn_config_or_weights_file_is_refused(checkpoint):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(BackboneError, match="not a readable safetensors file"):
        load_backbone(tiny_backbone(checkpoint))
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(BackboneError, match=r"config\.json: not a readable JSON file"):
        load_backbone(tiny_backbone(checkpoint))


@pytest.mark.parametrize("layers", [0, 4])
def test_more_layers_than_the_backbone_has_are_refused(checkpoint, layers):
    with pytest.raises(BackboneError, match=f"layers: {layers} is not from 1 to 3"):
        load_backbone(tiny_backbone(checkpoint, layers=layers))
    with pytest.raises(BackboneError, match="is not from 1 to 24"):
        shape_of(Backbone("b", "bert-large", layers=25))


def test_a_backbone_that_was_never_released_asks_for_a_folder():
    with pytest.raises(BackboneError, match="never released; give the folder that holds yours"):
        find_backbone(Backbone("bert-large-mimic", "bert-large-mimic"))


def test_a_missing_folder_is_not_looked_up_on_the_hub():
    with pytest.raises(BackboneError, match=r"there is no folder \./no-such-folder"):
        find_backbone(Backbone("mine", "./no-such-folder"))


def test_a_hub_that_cannot_be_reached_is_one_clear_sentence(tmp_path):
    """In a new interpreter, because the hub's client reads its settings on import."""
    program = (
        "from raymrc.model.backbones import find_backbone\n"
        "from raymrc.configuration import Backbone\n"
        "from raymrc.errors import BackboneError\n"
        "try: find_backbone(Backbone('mine', 'nobody/no-such-model'))\n"
        "except BackboneError as error: print(error)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout.startswith(
        "backbone mine: nobody/no-such-model is neither a folder nor in the local cache"
    )
    assert done.stdout.count("\n") == 1


def test_finding_a_backbone_and_its_shape_needs_no_torch(checkpoint):
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from raymrc.model import backbones, shapes, strategies\n"
        "from raymrc.configuration import Backbone\n"
        f"folder = backbones.find_backbone(Backbone('tiny', {str(checkpoint)!r}))\n"
        "backbones.read_shape(folder), backbones.weights_fingerprint(folder)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says what is mapped")
def test_processes_of_a_node_share_weights_that_are_mapped_from_their_file(tmp_path):
    """All weights except queries, keys and values, which are stacked."""
    folder = tiny_checkpoint("bert", tmp_path)
    loaded = load_backbone(tiny_backbone(folder))
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(folder / "model.safetensors")):
            begin, end = line.split()[0].split("-")
            mapped.append(range(int(begin, 16), int(end, 16)))
    shared = {
        name
        for name, p in loaded.encoder.named_parameters()
        if any(p.data_ptr() in where for where in mapped)
    }
    everything = {name for name, _ in loaded.encoder.named_parameters()}
    assert {name for name in everything if "qkv" not in name} == shared
