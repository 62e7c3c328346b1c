"""Promise: every file in studies/ can be read and planned, even without its notes.

Nobody would notice a failure: after a renamed field, the studies that nobody can run here break first.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from raymrc.corpora.formats import write_corpus
from raymrc.corpora.synthetic import synthesize_corpus
from raymrc.model.shapes import SHAPES
from raymrc.model.strategies import STRATEGIES
from raymrc.study.load import load_spec
from raymrc.study.notes import (
    build_study_folds,
    read_study_corpus,
    read_test,
    read_transfer,
    study_labels,
    study_questions,
)
from tests.paths import ROOT, SHARED, needs_shared
from tests.study.making import plan_of

STUDIES = sorted((ROOT / "studies").rglob("*.yaml"))
SEVEN = set(SHAPES) - {"minilm"}


def name_of(path: Path) -> str:
    """ "phee/end-to-end.yaml" -> "phee-end-to-end"."""
    return "-".join(path.relative_to(ROOT / "studies").with_suffix("").parts)


each = pytest.mark.parametrize("path", STUDIES, ids=name_of)


@each
def test_a_study_can_be_planned_completely_without_its_notes(path):
    spec = load_spec(path)
    plan = plan_of(spec)
    assert spec.study == name_of(path)
    assert spec.warnings == ()
    compared = {cell.cell.strategy for cell in plan.cells}
    # A strategy without a prompt has no prompt shape; words do not grow with the backbone.
    partial = ("prompt-", "reparametrisation", "final-test", "scaling", "racing")
    assert compared == set(STRATEGIES) or path.stem.startswith(partial)
    # Only MACCROBAT's notes show how many relations its scheme asks about.
    if study_questions(spec, None) is None:
        assert path == ROOT / "studies" / "maccrobat" / "end-to-end.yaml"
    else:
        assert all(0 < cell.parameters.share <= 1 for cell in plan.cells)
    assert plan.num_fold_runs == plan.num_configurations * spec.num_folds


@each
def test_a_study_begins_with_its_question_its_command_and_the_expected_result(path):
    comment = path.read_text(encoding="utf-8").split("\nstudy:")[0]
    assert "?" in comment.splitlines()[0]
    assert f"raymrc run {path.relative_to(ROOT)}" in comment
    assert "# Expect" in comment


@each
def test_a_study_stores_its_runs_in_its_own_folder(path):
    assert load_spec(path).storage == f"runs/{name_of(path)}"


def test_each_table_of_the_reference_study_has_a_study_and_a_public_twin():
    names = {name_of(path) for path in STUDIES}
    kinds = ("concepts", "relations", "end-to-end", "transfer", "few-shot", "prompt-length")
    assert names >= {f"n2c2-{year}-{kind}" for year in (2018, 2022) for kind in (*kinds, "scaling")}
    assert names >= {f"phee-{kind}" for kind in (*kinds, "scaling", "final-test", "racing")}
    assert names >= {f"maccrobat-{kind}" for kind in kinds[:3]} | {"bc5cdr-concepts", "demo"}


@pytest.mark.parametrize("year", ["2018", "2022"])
def test_the_n2c2_studies_compare_all_seven_backbones(year):
    spec = load_spec(ROOT / "studies" / f"n2c2-{year}" / "concepts.yaml")
    assert {entry.backbone.name for entry in spec.backbones} == SEVEN
    assert spec.search.algorithm == "tpe"
    assert spec.folds.count == 5


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """A folder with the corpora that the n2c2 studies look for, all made-up notes."""
    folder = tmp_path_factory.mktemp("made-up")
    for scheme, name, site, seed in (
        ("n2c2-2018", "n2c2-2018", "a", 13), ("n2c2-2018", "n2c2-2018-test", "b", 99),
        ("n2c2-2018", "ours", "b", 7), ("n2c2-2022", "n2c2-2022/mimic", "a", 13),
        ("n2c2-2022", "n2c2-2022/uw", "b", 5), ("n2c2-2022", "n2c2-2022-test", "b", 99),
    ):  # fmt: skip
        count = 200 if seed == 13 else 8  # few-shot studies need a hundred training notes
        write_corpus(synthesize_corpus(scheme, count, site, seed), folder / "corpora" / name)
    return folder


@pytest.mark.parametrize("path", [p for p in STUDIES if "n2c2" in p.parent.name], ids=name_of)
def test_an_n2c2_study_reads_notes_of_its_scheme_from_its_paths(path, made_up, monkeypatch):
    monkeypatch.chdir(made_up)
    spec = load_spec(path)
    corpus = read_study_corpus(spec)
    transfer, test = read_transfer(spec, corpus), read_test(spec, corpus)
    assert len(corpus.notes) == (208 if "2022" in path.parent.name and not transfer else 200)
    assert corpus.labels == study_labels(spec)
    assert (path.stem == "transfer") == bool(transfer)
    assert all(len(site.notes) == 8 and site.labels for site in transfer.values())
    assert test is None or (len(test.notes) == 8 and test.labels == corpus.labels)
    plan = plan_of(spec, corpus, transfer=transfer)
    assert plan.num_notes == len(corpus.notes)
    asked = study_questions(spec, corpus)
    known = study_questions(spec, None)
    assert set(asked.names) <= set(known.names), "a plan without notes knows all that is asked"


@pytest.mark.parametrize(
    ("folder", "configurations"), [("phee", 24), ("n2c2-2018", 63), ("n2c2-2022", 63)]
)
def test_a_scaling_study_varies_only_the_size(folder, configurations):
    spec = load_spec(ROOT / "studies" / folder / "scaling.yaml")
    plan = plan_of(spec)
    assert (plan.num_configurations, plan.num_fold_runs) == (configurations, 5 * configurations)
    spaces, sizes = {}, {}
    for cell in plan.cells:
        sizes[cell.cell.backbone.name] = cell.parameters.total
        spaces.setdefault(cell.cell.backbone.name, {})[cell.cell.strategy] = cell.space
    compared = {"fine_tune", "soft_prompt", "frozen_soft_prompt"}
    assert all(space == spaces[spec.backbones[0].backbone.name] for space in spaces.values())
    assert all(set(space) == compared for space in spaces.values())
    if folder == "phee":
        assert sorted(sizes, key=sizes.get) == [f"minilm-l{layers}" for layers in (1, 2, 4, 6)]
    else:
        assert set(sizes) == SEVEN and max(sizes, key=sizes.get) == "gatortron-8.9b"


def test_the_demo_gives_all_strategies_the_same_steps_and_notes_to_every_fold():
    spec = load_spec(ROOT / "studies" / "demo.yaml")
    assert set(spec.strategies.named()) == set(STRATEGIES)
    settings = [spec.settings(0, strategy) for strategy in STRATEGIES]
    for name in ("duration", "epochs", "batch_size"):
        assert len({str(given[name]) for given in settings}) == 1, name
    corpus = read_study_corpus(spec)
    assert len(corpus.notes) == spec.corpus.synthetic.notes
    assert {span.label for note in corpus.notes for span in note.spans} == set(corpus.labels)
    folds = build_study_folds(spec, corpus)
    for fold in range(spec.folds.count):
        split = folds.split(fold)
        assert len(split.train) >= 3 and split.validation and split.scored


@needs_shared
@pytest.mark.parametrize(
    ("study", "folder"),
    [
        (path.relative_to(ROOT / "studies").as_posix(), load_spec(path).corpus.path.split("/")[1])
        for path in STUDIES
        if path.parent.name in ("phee", "maccrobat", "bc5cdr")
    ],
)
def test_a_public_study_finds_its_notes_and_folds(study: str, folder: str):
    corpora = SHARED / "corpora"
    path = ROOT / "studies" / study
    sites = enumerate(load_spec(path).transfer)
    changes = [f"transfer.{i}.path={corpora / site.path.split('/')[1]}" for i, site in sites]
    spec = load_spec(path, [f"corpus.path={corpora / folder}", *changes])
    corpus = read_study_corpus(spec)
    transfer = read_transfer(spec, corpus)
    assert len(transfer) == len(changes) and bool(changes) == ("transfer" in study)
    for described, site in zip(spec.transfer, transfer.values(), strict=True):
        assert len(site.notes) >= described.subset.notes
        assert {"Drug", "Dosage"} < {*site.labels} <= {*corpus.labels}
        assert {s.label for note in site.notes for s in note.spans} <= {*site.labels}
    wanted = spec.corpus.subset.notes if spec.corpus.subset else 100
    test = read_test(spec, corpus)
    assert len(corpus.notes) + (len(test.notes) if test else 0) >= wanted
    assert corpus.labels == study_labels(spec)
    assert len(study_questions(spec, corpus)) > 0
    folds = build_study_folds(spec, corpus)
    scored = [note for fold in range(spec.folds.count) for note in folds.split(fold).scored]
    assert sorted(scored) == sorted(note.id for note in corpus.notes)
