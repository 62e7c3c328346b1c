"""Promise: `raymrc schema` accepts the study files that raymrc accepts and refuses the files that it refuses.

It would break without anyone noticing: schema and validation drift apart, and an editor marks correct lines
or passes wrong ones.
"""

from __future__ import annotations

import json

import jsonschema
import pytest

from raymrc.cli import main
from raymrc.configuration import SETTINGS
from raymrc.study.source import read_source
from raymrc.study.spec import study_schema
from tests.paths import ROOT
from tests.study.making import STUDY, problems_of, spec_of, write_study

STUDIES = sorted((ROOT / "studies").rglob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = study_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_study_file_matches_the_schema(path, validator):
    validator.validate(read_source(path).values)


@pytest.mark.parametrize(
    "lines",
    [
        "training: {prompt_length: {int_uniform: [8, 32]}, learning_rate: [1e-3, 1e-2]}\n"
        "search: {algorithm: random}",
        "training: {prompt_learning_rate: [null, 1e-2], loss_weights: [[1, 1, 0], [1, 1, 1]]}",
        "training: {loss_weights: [1, 1, 0.1], window: {choice: [96, 128]}, epochs: 1e1}\n"
        "search: {algorithm: random}",
        "resources: {workers: auto}\nracing: paired",
        "resources: {workers: {max: 8}}\nracing: {rungs: [0.5, 1]}",
        "resources: {workers: 3}\nracing: none\nmlflow:\nprices:",
        "few_shot: {mentions: 3}",
        "transfer: [{name: b, synthetic: {scheme: n2c2-2018, notes: 3, site: b}, labels: {Drug: Drug}}]",
    ],
)
def test_the_schema_accepts_every_form_of_a_value(lines, validator, tmp_path):
    text = f"{STUDY}{lines}\n"
    spec_of(tmp_path, text)
    validator.validate(read_source(write_study(tmp_path, text)).values)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("prompt_length: [8, 32]", "prompt_length: 513"),
        ("prompt_length: [8, 32]", "prompt_length: [8, 0]"),
        ("prompt_length: [8, 32]", "prompt_length: {uniform: [8, 32]}"),
        ("prompt_length: [8, 32]", "prompt_length: {int_uniform: [8]}"),
        ("prompt_length: [8, 32]", "prompt_length: '8'"),
        ("prompt_length: [8, 32]", "prompt_lenght: 8"),
        ("prompt_length: [8, 32]", "prompt_depth: deeep"),
        ("prompt_length: [8, 32]", "prompt_length: []"),
        ("learning_rate: 2.0e-2", "learning_rate: 0"),
        ("learning_rate: 2.0e-2", "learning_rate: null"),
        ("task: concepts", "task: events"),
        ("study: tiny", "study: a b"),
        ("storage: runs/tiny", ""),
        ("{count: 2}", "{count: 1}"),
        ("[minilm]", "minilm"),
        ("[minilm]", "[{layers: 2}]"),
        ("storage:", "racing: fast\nstorage:"),
        ("storage:", "resources: {workers: 0}\nstorage:"),
        ("storage:", "training: {loss_weights: [1, 1]}\nstorage:"),
    ],
)
def test_the_schema_refuses_wrong_values(old, new, validator, tmp_path):
    assert old in STUDY
    text = STUDY.replace(old, new)
    assert problems_of(tmp_path, text)
    assert not validator.is_valid(read_source(write_study(tmp_path, text)).values)


def test_the_schema_command_describes_every_setting(capsys):
    assert main(["schema"]) == 0
    settings = json.loads(capsys.readouterr().out)["$defs"]["Settings"]["properties"]
    assert set(settings) == set(SETTINGS)
    assert all(setting["description"] for setting in settings.values())
    assert settings["prompt_length"]["oneOf"][0] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 512,
    }
