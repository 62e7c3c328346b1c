"""A probe runs smaller versions of the study's fold-runs and measures their time and memory.

A bug here would be silent: the plan would be calibrated on a different kind of work.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from raymrc.configuration import Backbone, Cell, Configuration
from raymrc.corpora.synthetic import synthesize_corpus
from raymrc.costs.rates import fit_rates
from raymrc.errors import BackboneError
from raymrc.model.backbones import read_shape
from raymrc.reading.questions import build_questions
from raymrc.reading.relations import find_asked
from raymrc.training import probe as rooms
from raymrc.training.probe import SHARES, Probe, measure, run_probes
from raymrc.training.trainer import Trainer
from tests.model.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint("bert", tmp_path_factory.mktemp("tiny"))


def make(folder, strategy="frozen_soft_prompt", task="concepts", lanes=2, seconds=2.0) -> Probe:
    corpus = synthesize_corpus("n2c2-2018", 16, "a", 3)
    asked = find_asked(task, corpus)
    configuration = Configuration(
        Cell(task, "made-up", Backbone("tiny", str(folder)), strategy), 1e-3,
        prompt_length=4 if "soft" in strategy else 0, window=20, overlap=4, match_width=16,
        context_sentences=None if task == "concepts" else 1,
        relation_answers=None if task == "concepts" else "mentions",
    )  # fmt: skip
    return Probe(
        (configuration, replace(configuration, batch_size=4)), read_shape(folder), lanes, Trainer(),
        corpus, build_questions(asked.labels, {}, asked.relations), 1, seconds,
    )  # fmt: skip


@pytest.mark.parametrize("task", ["concepts", "relations"])
def test_a_probe_measures_the_lanes_of_both_shapes_with_their_work(folder, task):
    probe = make(folder, task=task)
    found = measure(probe)
    assert len(found) == 2 * len(SHARES)
    assert {m.source for m in found} == {"probe"} and {m.kind for m in found} == {"cpu"}
    assert all(m.device_seconds > 0 and m.peak_bytes > 0 and m.job.lanes == 2 for m in found)
    shapes = {(m.job.configuration.epochs, m.job.configuration.batch_size) for m in found}
    assert shapes == {(1, 16), (3, 4)}
    assert all(m.job.work.training.rows > 0 for m in found)
    rates = fit_rates(("tiny", "frozen_soft_prompt"), found, "cpu")
    assert rates.source == "probe"


def test_a_probe_that_takes_too_long_is_abandoned(folder, monkeypatch):
    monkeypatch.setattr(rooms, "MIN_TIMEOUT_SECONDS", 0.0)
    assert measure(make(folder, "fine_tune", lanes=1, seconds=0.0)) == []


def test_a_longer_probe_uses_more_notes(folder):
    few, many = (
        rooms._size(make(folder), make(folder).configurations[0], 1, wanted)
        for wanted in (0.0, 1e9)
    )
    assert len(few.corpus.notes) < len(many.corpus.notes) == 16
    assert max(len(n.text) for n in few.corpus.notes) < max(len(n.text) for n in many.corpus.notes)


def test_a_failing_probe_is_reported_and_the_others_are_still_measured(folder, tmp_path):
    messages: list[str] = []
    missing = make(folder, "fine_tune", lanes=1)
    gone = Backbone("gone", str(tmp_path))
    wrong = tuple(replace(c, cell=replace(c.cell, backbone=gone)) for c in missing.configurations)
    found = run_probes(
        [replace(missing, configurations=wrong), make(folder, "fine_tune", lanes=1, seconds=1.0)],
        messages.append,
    )
    assert {m.like for m in found} == {("tiny", "fine_tune")}
    assert messages[1].startswith("gone/fine_tune was not measured: backbone gone")
    with pytest.raises(BackboneError):
        measure(replace(missing, configurations=wrong))
