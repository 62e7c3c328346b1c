"""Promise: finished work keeps its ledger keys when a configuration gains fields.

It would break without anyone noticing: a new setting, a new default or a reordered field changes the key of
every fold-run, and finished studies train again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace

import pytest

from raymrc.planning.fold_runs import fold_run
from raymrc.planning.loaded import LoadedStudy
from raymrc.planning.plan import representatives
from raymrc.study.load import load_spec
from raymrc.study.notes import read_study_corpus, read_transfer
from tests.paths import ROOT
from tests.study.making import plan_of, spec_of

KEYS = ROOT / "tests" / "golden" / "ledger_keys.json"
"""Written when `RESULT_FORMAT` became 2: `python -m tests.planning.test_keys`."""

STUDIES = sorted((ROOT / "studies").rglob("*.yaml"))

EVERYTHING = """\
study: keys
task: TASK
corpus:
  synthetic: {scheme: n2c2-2018, notes: 12}
transfer:
  - {name: elsewhere, synthetic: {scheme: n2c2-2018, notes: 3, site: b}}
folds: {count: 2}
backbones: [minilm, {name: bert-large, layers: 12}]
strategies:
  fine_tune: {learning_rate: 5.0e-5, loss_weights: [1, 2, 3], match_width: 64}
  hard_prompt: {learning_rate: 5.0e-5, overlapping_answers: [all, surest], head_learning_rate: 1.0e-3}
  soft_prompt: {learning_rate: 5.0e-5, prompt_initialisation: [random, question]}
  frozen_soft_prompt:
    learning_rate: 2.0e-2
    prompt_length: [8, 32]
    prompt_depth: [deep, input]
    first_layer: [0, 2]
    prompt_learning_rate: [null, 1.0e-2]
training:
  context_sentences: [0, 1]
  relation_answers: [mentions, spans]
  epochs: 2
  window: 128
  overlap: 16
  negative_rate: 0.5
  seed: [13, 14]
FEW_SHOT
storage: runs/keys
"""


def digest(keys: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(keys).encode()).hexdigest()[:16]


def ids_of_study(name: str) -> dict[str, str]:
    """Return one hash of configuration ids per cell."""
    plan = plan_of(load_spec(ROOT / name), places=False)
    found = {}
    for cell in plan.cells:
        ids = [configuration.id for configuration in representatives(cell, plan.seed)]
        found[cell.cell.name] = digest(ids)
    return found


def keys_of_everything(folder, task: str, few_shot: str) -> dict[str, str]:
    """Return one hash per cell. It covers configuration ids and the keys of fold-runs in cross-validation, in
    a final test, and with prompts that start from an adapter."""
    text = EVERYTHING.replace("TASK", task).replace("FEW_SHOT", few_shot)
    spec = spec_of(folder, text)
    corpus = read_study_corpus(spec)
    transfer = read_transfer(spec, corpus)
    weights = {"minilm": "w", "bert-large-l12": "v"}
    fingerprints = LoadedStudy(spec, corpus, transfer, weights=weights).fingerprints
    held_out = replace(fingerprints, test="t", initial_prompt="p")
    found = {}
    for cell in plan_of(spec, corpus, places=False).cells:
        first, *_, last = cell.configurations or ()
        from_adapter = replace(last, prompt_initialisation="adapter")
        keys = [
            *(c.id for c in cell.configurations or ()),
            *(fold_run(c, fold, fingerprints).key for c in (first, last) for fold in range(2)),
            fold_run(first, 0, held_out).key,
            fold_run(from_adapter, 1, held_out).key,
        ]
        found[cell.cell.name] = digest(keys)
    return found


CASES = [
    (task, few_shot)
    for task in ("concepts", "relations", "end_to_end")
    for few_shot in ("", "few_shot: {notes: [2, 4], draws: 2}", "few_shot: {mentions: 5}")
]


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, object]]:
    return json.loads(KEYS.read_text())


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_configurations_of_every_study_keep_their_ids(path, golden):
    name = path.relative_to(ROOT).as_posix()
    assert ids_of_study(name) == golden["studies"][name]


@pytest.mark.parametrize(("task", "few_shot"), CASES)
def test_fold_runs_of_every_strategy_and_task_keep_their_keys(task, few_shot, golden, tmp_path):
    assert (
        keys_of_everything(tmp_path, task, few_shot) == golden["everything"][f"{task} {few_shot}"]
    )


if __name__ == "__main__":
    import tempfile
    from pathlib import Path

    names = [path.relative_to(ROOT).as_posix() for path in STUDIES]
    with tempfile.TemporaryDirectory() as folder:
        written = {
            "studies": {name: ids_of_study(name) for name in names},
            "everything": {
                f"{task} {few_shot}": keys_of_everything(Path(folder), task, few_shot)
                for task, few_shot in CASES
            },
        }
    KEYS.write_text(json.dumps(written, indent=1) + "\n")
