"""Promise: a saved adapter equals what was trained, and is not mistaken for another.

It could break unnoticed: a prompt on other weights, or with other labels, still gives answers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import raymrc
from raymrc.configuration import Configuration
from raymrc.errors import AdapterError, BackboneError
from raymrc.model import adapter_tensors
from raymrc.model.adapter_tensors import read_state, write_adapter
from raymrc.model.adapters import ADAPTER_FILE, read_adapter
from raymrc.model.loading import Loaded
from raymrc.model.network import Model
from raymrc.model.strategies import STRATEGIES
from tests.model.test_strategies import batch, train
from tests.model.tiny import tiny_configuration
from tests.paths import ROOT

LABELS, RELATIONS = ("Drug", "ADE"), ("ADE-Drug",)


def trained(loaded: Loaded, strategy: str = "frozen_soft_prompt", **fields: object):
    """A model of three questions after two steps."""
    labels = 3 if STRATEGIES[strategy].answers == "tags" else 2
    model = Model(
        tiny_configuration(loaded.backbone, strategy, **fields), loaded, labels, 3 - labels
    )
    train(model, *batch(loaded, strategy), steps=2)
    return model


def written(folder: Path, loaded: Loaded, model) -> Path:
    return write_adapter(folder, model, LABELS, RELATIONS, loaded.fingerprint, ["0a", "0b"])


@pytest.mark.parametrize(
    ("strategy", "reparametrisation"),
    [
        (name, form)
        for name, strategy in STRATEGIES.items()
        for form in (("none", "mlp", "lstm") if strategy.asks == "vectors" else ("none",))
    ],
)
def test_a_fresh_model_with_a_saved_adapter_answers_bit_for_bit_as_the_trained_one(
    tiny: Loaded, tmp_path: Path, strategy: str, reparametrisation: str
):
    model = trained(tiny, strategy, reparametrisation=reparametrisation)
    place = written(tmp_path, tiny, model)
    adapter = read_adapter(place)
    adapter.check_backbone(tiny.fingerprint)
    configuration = Configuration.from_values(adapter.configuration)
    assert configuration == model.configuration
    labels = model.heads.tagging.num_labels if STRATEGIES[strategy].answers == "tags" else 2
    torch.manual_seed(99)
    fresh = Model(configuration, tiny, labels, 3 - labels)
    fresh.load_trained_state(read_state(place))
    inputs, targets = batch(tiny, strategy)
    assert repr(fresh.predict(inputs)) == repr(model.predict(inputs))
    assert torch.equal(fresh.eval().loss(inputs, targets), model.eval().loss(inputs, targets))


def test_an_adapter_knows_what_it_was_trained_for(tiny_bert: Loaded, tmp_path: Path):
    model = trained(tiny_bert, prompt_length=5, first_layer=1)
    adapter = read_adapter(written(tmp_path, tiny_bert, model))
    assert adapter.names == ("Drug", "ADE", "ADE-Drug")
    assert (adapter.labels, adapter.relations) == (LABELS, RELATIONS)
    assert adapter.version == raymrc.__version__ and adapter.notes == {"0a", "0b"}
    assert adapter.weights_fingerprint == tiny_bert.fingerprint
    assert (adapter.backbone, adapter.strategy) == ("tiny", "frozen_soft_prompt")
    assert adapter.configuration["prompt_length"] == 5
    assert adapter.configuration["first_layer"] == 1
    assert adapter.configuration["cell"]["task"] == "concepts"


def test_the_header_holds_names_and_settings_and_nothing_else(tiny_bert: Loaded, tmp_path: Path):
    """A new entry must be listed here, and must not come from a note."""
    place = written(tmp_path, tiny_bert, trained(tiny_bert))
    with safe_open(place, framework="np") as file:
        metadata = file.metadata()
    assert set(metadata) == {"raymrc"}
    header = json.loads(metadata["raymrc"])
    assert set(header) == {
        "format", "version", "weights_fingerprint", "labels", "relations", "configuration",
        "notes",
    }  # fmt: skip


def test_a_folder_names_the_adapter_in_it(tiny_bert: Loaded, tmp_path: Path):
    place = written(tmp_path, tiny_bert, trained(tiny_bert))
    assert place == tmp_path / ADAPTER_FILE
    assert read_adapter(tmp_path) == read_adapter(place)
    assert read_state(tmp_path).keys() == read_state(place).keys()


def test_equal_states_are_equal_files_and_others_have_another_fingerprint(
    tiny_bert: Loaded, tmp_path: Path
):
    model = trained(tiny_bert)
    first = written(tmp_path / "a", tiny_bert, model)
    again = written(tmp_path / "b", tiny_bert, model)
    assert first.read_bytes() == again.read_bytes()
    with torch.no_grad():
        model.prompt.table[0, 0] += 1
    other = written(tmp_path / "c", tiny_bert, model)
    prints = [read_adapter(place).fingerprint for place in (first, again, other)]
    assert prints[0] == prints[1] != prints[2]


def test_a_failed_write_leaves_only_the_earlier_file(
    tiny_bert: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = trained(tiny_bert)
    place = written(tmp_path, tiny_bert, model)
    before = place.read_bytes()

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(adapter_tensors.os, "replace", refuse)
    with pytest.raises(AdapterError, match=r"cannot be written \(No space left on device"):
        written(tmp_path, tiny_bert, model)
    assert [path.name for path in tmp_path.iterdir()] == [ADAPTER_FILE]
    assert place.read_bytes() == before


def test_a_folder_names_the_only_adapter_below_it(tiny_bert: Loaded, tmp_path: Path):
    model = trained(tiny_bert)
    first = written(tmp_path / "cell" / "seed-1", tiny_bert, model)
    assert read_adapter(tmp_path).place == read_adapter(tmp_path / "cell").place == first
    written(tmp_path / "cell" / "seed-2", tiny_bert, model)
    with pytest.raises(
        AdapterError, match=r"2 adapters are below it \(cell/seed-1, cell/seed-2\); name"
    ):
        read_adapter(tmp_path)
    assert read_adapter(tmp_path / "cell" / "seed-1").place == first
    (tmp_path / "none").mkdir()
    with pytest.raises(AdapterError, match="there is no adapter"):
        read_adapter(tmp_path / "none")


def test_a_file_in_place_of_the_folder_gives_one_sentence(tiny_bert: Loaded, tmp_path: Path):
    (tmp_path / "a").write_text("")
    with pytest.raises(AdapterError, match="cannot be written"):
        written(tmp_path / "a", tiny_bert, trained(tiny_bert))


def test_other_weights_are_refused(tiny_bert: Loaded, tmp_path: Path):
    adapter = read_adapter(written(tmp_path, tiny_bert, trained(tiny_bert)))
    with pytest.raises(BackboneError, match=r"trained on tiny with weights .*, not 0000"):
        adapter.check_backbone("0" * 64)


def header_of(place: Path, **changed: object) -> dict[str, str]:
    with safe_open(place, framework="np") as file:
        header = json.loads(file.metadata()["raymrc"])
    return {"raymrc": json.dumps({k: v for k, v in (header | changed).items() if v is not None})}


def test_a_file_that_is_not_an_adapter_is_refused(tiny_bert: Loaded, tmp_path: Path):
    place = written(tmp_path, tiny_bert, trained(tiny_bert))
    state = read_state(place)
    cases = {
        "gone": (None, "there is no adapter"),
        "plain": ({"format": "pt"}, "has no raymrc header"),
        "broken": ({"raymrc": "{"}, "header cannot be read"),
        "bare": (header_of(place, configuration={}), "header cannot be read"),
        "unnamed": (header_of(place, labels=None), "header cannot be read"),
        "newer": (header_of(place, format=2, version="9"), r"newer raymrc \(9\)"),
    }
    for name, (metadata, sentence) in cases.items():
        other = tmp_path / name
        if metadata is not None:
            save_file(state, other, metadata)
        with pytest.raises(AdapterError, match=sentence) as caught:
            read_adapter(other)
        assert str(other) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(tiny_bert: Loaded, tmp_path: Path):
    place = written(tmp_path, tiny_bert, trained(tiny_bert))
    place.write_bytes(place.read_bytes()[:-8])
    for read in (read_adapter, read_state):
        with pytest.raises(AdapterError, match="not a complete safetensors file"):
            read(place)


def test_an_adapter_header_is_read_without_torch(tiny_bert: Loaded, tmp_path: Path):
    place = written(tmp_path, tiny_bert, trained(tiny_bert))
    code = (
        "import sys\nfrom raymrc.model.adapters import read_adapter\n"
        f"assert read_adapter({str(place)!r}).names\n"
        "assert not {'torch', 'transformers', 'pydantic', 'ray'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
