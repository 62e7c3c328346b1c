"""Promise: a plan counts the rows, pieces and steps that training makes.

It would break without anyone noticing: costs would be predicted for work that nobody does.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from raymrc.configuration import Backbone, Cell, Configuration, FoldRun
from raymrc.corpora.note import Corpus, Note
from raymrc.corpora.splits import make_folds
from raymrc.corpora.synthetic import synthesize_corpus
from raymrc.costs.workload import (
    Passes,
    Workload,
    evaluation_passes,
    join_counts,
    shortened,
    training_passes,
)
from raymrc.errors import BackboneError
from raymrc.model.backbones import read_shape
from raymrc.model.inputs import PairTargets, SpanTargets
from raymrc.model.loading import load_tokenizer
from raymrc.model.strategies import STRATEGIES
from raymrc.reading.light_tokenizers import RoughTokenizer, read_tokenizer
from raymrc.reading.questions import build_questions
from raymrc.reading.relations import TASKS, find_asked
from raymrc.reading.rows import evaluation_batches, steps_per_epoch, training_batches
from raymrc.reading.targets import BEGIN
from raymrc.training.batching import StudyData, collate, collate_targets
from tests.model.tiny import tiny_checkpoint

SCHEMES = ("n2c2-2018", "n2c2-2022")


@pytest.fixture(scope="module", params=["bert", "roberta"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_checkpoint(request.param, folder)
    return folder


def build_both(folder: Path, scheme: str, task: str, **fields):
    """Return a workload, the training data, and one configuration per strategy."""
    corpus = synthesize_corpus(scheme, 6, "a", 3)
    transfer = {"there": synthesize_corpus(scheme, 2, "b", 4)}
    folds = make_folds(corpus, 2, 1, 0.2)
    asked = find_asked(task, corpus)
    questions = build_questions(asked.labels, {}, asked.relations)
    source = str(folder)
    workload = Workload(
        corpus, folds, asked, questions, transfer, {source: read_tokenizer(folder)},
        {source: read_shape(folder)},
    )  # fmt: skip
    data = StudyData(corpus, folds, questions, transfer)
    settings = {"learning_rate": 1e-3, "window": 20, "overlap": 4, "batch_size": 3, "epochs": 2}
    if task != "concepts":
        settings |= {"context_sentences": 1, "relation_answers": "mentions"}
    configurations = [
        Configuration(
            Cell(task, "made-up", Backbone("tiny", source), strategy), **{**settings, **fields}
        )
        for strategy in STRATEGIES
    ]
    return workload, data, configurations


def train_rows(
    data: StudyData, folder: Path, configuration: Configuration, site: str | None = None
):
    source = data if site is None else data.site(site, configuration.cell.task)
    # A written question has more pieces than the tiny backbone has positions.
    shape = replace(read_shape(folder), positions=600)
    return source.rows(load_tokenizer(folder), shape, configuration)


WAYS = [
    ("concepts", {}),
    *((task, {"relation_answers": a}) for task in TASKS[1:] for a in ("mentions", "spans")),
]


@pytest.mark.parametrize(("task", "fields"), WAYS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_plan_counts_the_rows_that_training_collates(folder, scheme, task, fields):
    """A plan counts with a light tokenizer; training collates tensors with the backbone's own tokenizer."""
    workload, data, configurations = build_both(folder, scheme, task, **fields)
    for configuration in configurations:
        for site in (None, "there"):
            counted = workload._rows_of(configuration, site)
            for note_id, rows in train_rows(data, folder, configuration, site).items():
                found = counted[note_id]
                inputs = [collate([row], 0) for row in rows]
                targets = [collate_targets([row], i) for row, i in zip(rows, inputs, strict=True)]
                assert found.lengths.tolist() == [i.input_ids_BS.shape[1] for i in inputs]
                for answers, target in zip(found.answers, targets, strict=True):
                    if isinstance(target, SpanTargets):
                        assert answers == len(target.pairs_K3)
                    elif isinstance(target, PairTargets):
                        assert answers == int(target.kind_B > 0)
                    else:  # tags hold one of several overlapping spans of a label
                        begun = int((target.tags_BSL == BEGIN).sum())
                        assert answers >= begun and (answers > 0) == (begun > 0)
                assert found.pairs.tolist() == [isinstance(t, PairTargets) for t in targets]
                assert found.about.tolist() == [row.context is not None for row in rows]


@pytest.mark.parametrize("task", TASKS)
def test_counted_steps_and_passes_equal_those_of_training(folder, task):
    workload, data, configurations = build_both(folder, "n2c2-2018", task)
    for configuration in configurations:
        rows = train_rows(data, folder, configuration)
        split = data.split(FoldRun(configuration, 1, "", "", "", ""))
        train = [row for note_id in split.train for row in rows[note_id]]
        counted = join_counts([workload._rows_of(configuration, None)[n] for n in split.train])
        for rate in (1.0, 0.5, 0.0):
            passes = training_passes(counted, 3, rate, random.Random(0))
            assert passes.passes == steps_per_epoch(train, 3, rate)
        passes = training_passes(counted, 3, 1.0, random.Random(0))
        batches = list(training_batches(train, 3, 1.0, random.Random(0)))
        assert passes.passes == len(batches)
        assert passes.rows == len(train)
        assert passes.pieces == sum(row.length for row in train)
        assert passes.answers == sum(len(row.spans) or row.kind > 0 for row in train) or (
            configuration.cell.strategy == "fine_tune"
        )
        padded = sum(len(batch) * max(row.length for row in batch) for batch in batches)
        # Training draws a different order, so different rows share a batch.
        assert passes.padded == pytest.approx(padded, rel=0.05)

        asked = [row for row in train if row.context is None] or train
        about = [row.length for row in train if row.context is not None]
        counted_asked = (
            counted.chosen(~counted.about) if about and len(about) < len(train) else counted
        )
        batches = list(evaluation_batches(asked, 100))
        passes = evaluation_passes(counted_asked, 100)
        assert passes.passes == len(batches)
        assert passes.padded == sum(len(b) * b[0].length for b in batches)
        assert passes.longest == max(row.length for row in asked)


def test_a_fold_run_validates_every_epoch_and_scores_its_fold_and_each_site_once(folder):
    workload, data, configurations = build_both(folder, "n2c2-2018", "end_to_end")
    configuration = configurations[-1]
    split = data.split(FoldRun(configuration, 1, "", "", "", ""))
    rows = train_rows(data, folder, configuration)
    site_rows = train_rows(data, folder, configuration, "there")
    work = workload.of(configuration, 1)
    sizes = {note_id: len(of_note) for note_id, of_note in rows.items()}
    assert work.training.rows == 2 * sum(sizes[note_id] for note_id in split.train)
    assert work.evaluation.rows == (
        2 * sum(sizes[note_id] for note_id in split.validation)
        + sum(sizes[note_id] for note_id in split.scored)
        + sum(map(len, site_rows.values()))
    )


def test_counted_flops_follow_the_definition_used_in_records(folder):
    """`Lane` counts the same way: it leaves out the match head and counts only real pieces."""
    from raymrc.planning.arithmetic import training_flops

    workload, _, configurations = build_both(folder, "n2c2-2018", "concepts")
    shape = read_shape(folder)
    configuration = configurations[0]
    work = workload.of(configuration, 0)
    trained, asked = work.flops(configuration, shape, 3)
    assert trained == training_flops(
        shape, tokens=int(work.training.pieces),
        row_length=work.training.pieces / work.training.rows, trains_backbone=True,
        head_parameters=9 * shape.hidden,
    )  # fmt: skip
    assert 0 < asked < trained
    assert work.flops(configuration, shape, 3, computed="cpu") >= (trained, asked)


def test_computed_flops_shrink_when_activations_below_a_late_prompt_are_kept(folder):
    workload, _, configurations = build_both(folder, "n2c2-2018", "concepts", prompt_length=2)
    frozen = configurations[-1]
    shape = replace(read_shape(folder), num_layers=4)
    work = workload.of(frozen, 0)
    early = work.flops(frozen, shape, 3, computed="gpu")
    late = work.flops(replace(frozen, first_layer=2), shape, 3, computed="gpu")
    needed = work.flops(replace(frozen, first_layer=2), shape, 3)
    assert all(kept < whole for kept, whole in zip(late, early, strict=True))
    assert all(kept < whole for kept, whole in zip(late, needed, strict=True))


def test_passes_can_be_added_and_scaled():
    first, second = Passes(1, 2, 3, 4, 5, 6), Passes(1, 1, 1, 1, 1, 9)
    assert first + second == Passes(2, 3, 4, 5, 6, 9)
    assert first.times(3) == Passes(3, 6, 9, 12, 15, 6)


def test_few_shots_train_on_fewer_rows(folder):
    workload, _, configurations = build_both(folder, "n2c2-2018", "concepts")
    whole = configurations[0]
    few = replace(whole, cell=replace(whole.cell, shots=1))
    assert workload.of(few, 0).training.rows < workload.of(whole, 0).training.rows


def test_the_light_tokenizer_matches_the_tokenizer_of_the_backbone(folder):
    original, light = load_tokenizer(folder), read_tokenizer(folder)
    for note in synthesize_corpus("n2c2-2022", 4, "a", 1).notes:
        wanted = original(note.text, add_special_tokens=False, return_offsets_mapping=True)
        found = light(note.text)
        assert found["input_ids"] == wanted["input_ids"]
        assert found["offset_mapping"] == wanted["offset_mapping"]


def test_a_rough_tokenizer_replaces_a_missing_one_and_a_broken_one_is_reported(tmp_path):
    assert isinstance(read_tokenizer(tmp_path), RoughTokenizer)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BackboneError, match="not a readable tokenizer"):
        read_tokenizer(tmp_path)


def test_the_rough_tokenizer_estimates_pieces_within_ten_percent():
    from raymrc.model.backbones import BACKBONES, find_backbone

    try:
        exact = read_tokenizer(find_backbone(Backbone("minilm", "minilm")))
    except BackboneError:
        pytest.skip(f"{BACKBONES['minilm'].package} is not installed")
    rough = RoughTokenizer()
    texts = [note.text for s in SCHEMES for note in synthesize_corpus(s, 10, "a", 1).notes]
    pieces = [sum(len(t(text)["input_ids"]) for text in texts) for t in (exact, rough)]
    assert pieces[1] == pytest.approx(pieces[0], rel=0.1)


def test_a_shortened_corpus_keeps_only_spans_that_lie_wholly_in_it():
    corpus = synthesize_corpus("n2c2-2018", 3, "a", 1)
    short = shortened(corpus, 300)
    assert isinstance(short, Corpus)
    for before, after in zip(corpus.notes, short.notes, strict=True):
        assert isinstance(after, Note) and after.text == before.text[:300]
        assert {s.id for s in after.spans} == {s.id for s in before.spans if s.end <= 300}
        ids = {s.id for s in after.spans}
        assert all({r.head, r.tail} <= ids for r in after.relations)
