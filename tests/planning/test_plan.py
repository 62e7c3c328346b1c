"""Promise: a plan lists exactly the cells, configurations and fold-runs that will run, and counts the
finished ones.

It would break without anyone noticing: a plan silently leaves out a cell, extending a study changes its draws
and retrains everything, or a trained share does not match the model.
"""

from __future__ import annotations

import io
import json
import random
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from raymrc.configuration import Backbone, Cell, Configuration, FoldRun
from raymrc.corpora.note import Corpus
from raymrc.corpora.splits import note_marks, shared_notes
from raymrc.costs.plan_json import plan_json
from raymrc.errors import AdapterError, BackboneError, CorpusError, SpecError
from raymrc.ledger.ledger import Ledger
from raymrc.ledger.record import Record
from raymrc.model.adapters import ADAPTER_FILE, HEADER, read_adapter
from raymrc.planning.fold_runs import fold_run
from raymrc.planning.loaded import LoadedStudy
from raymrc.planning.plan import Plan, build_configuration
from raymrc.report.plans import plan_table
from raymrc.report.terminal import render
from raymrc.study.load import load_spec
from raymrc.study.notes import (
    check_held_out,
    check_unseen,
    read_study_corpus,
    read_test,
    read_transfer,
)
from raymrc.study.space import Distribution, Fixed, Grid, build_space
from raymrc.study.spec import Spec
from tests.paths import ROOT
from tests.study.making import STUDY, plan_of, problems_of, spec_of

RANDOM = STUDY.replace(
    "learning_rate: 2.0e-2, prompt_length: [8, 32]",
    "learning_rate: {log_uniform: [5.0e-3, 3.0e-1]}, prompt_length: [8, 32]",
)
WEIGHTS = {"minilm": "w"}


def with_search(search: str, text: str = RANDOM) -> str:
    return f"{text}search: {search}\n"


def finish(plan: Plan, ledger: Ledger, configurations: int, status: str = "done") -> None:
    """Record all folds of the first configurations of every cell."""
    assert plan.fingerprints is not None
    for planned in plan.cells:
        assert planned.configurations is not None
        for configuration in planned.configurations[:configurations]:
            for fold in range(plan.folds):
                run = fold_run(configuration, fold, plan.fingerprints)
                ledger.record(Record(key=run.key, fold_run=run, status=status))


def planned(spec: Spec, ledger: Ledger | None = None, corpus: Corpus | None = None) -> Plan:
    return plan_of(spec, corpus or read_study_corpus(spec), WEIGHTS, ledger)


def test_a_grid_contains_every_combination_of_the_lists(tmp_path):
    plan = plan_of(spec_of(tmp_path))
    tuned, frozen = plan.cells
    assert [c.learning_rate for c in tuned.configurations] == [5e-5, 2e-4]
    assert [(c.learning_rate, c.prompt_length) for c in frozen.configurations] == [
        (2e-2, 8),
        (2e-2, 32),
    ]
    assert (plan.num_configurations, plan.num_fold_runs) == (4, 8)
    assert frozen.cell.name == "synthetic-n2c2-2018/minilm/frozen_soft_prompt"


def test_only_the_named_strategies_are_planned(tmp_path):
    plan = plan_of(spec_of(tmp_path, STUDY.replace("[minilm]", "[minilm, roberta-large]")))
    assert [cell.cell.strategy for cell in plan.cells] == ["fine_tune", "frozen_soft_prompt"] * 2


def test_a_setting_without_effect_leaves_grids_and_keys_unchanged(tmp_path):
    plain = plan_of(spec_of(tmp_path))
    idle = plan_of(
        spec_of(tmp_path, STUDY + "training: {prompt_length: [4, 8], first_layer: [0, 1]}\n")
    )
    assert idle.cells[0].configurations == plain.cells[0].configurations
    assert idle.cells[1].num_configurations == 4


def test_the_default_prompt_length_is_32(tmp_path):
    plan = plan_of(spec_of(tmp_path, STUDY.replace(", prompt_length: [8, 32]", "")))
    assert [c.prompt_length for c in plan.cells[1].configurations] == [32]
    assert [c.prompt_length for c in plan.cells[0].configurations] == [0, 0]


@pytest.mark.parametrize("task", ["concepts", "relations", "end_to_end"])
def test_predicted_spans_do_not_overlap_by_default(tmp_path, task):
    text = STUDY.replace("task: concepts", f"task: {task}")
    tagged, asked = (cell.configurations for cell in plan_of(spec_of(tmp_path, text)).cells)
    # Given mentions keep their overlaps; a tagger's answers cannot overlap.
    assert {c.overlapping_answers for c in tagged} == {"all"}
    wanted = "all" if task == "relations" else "surest"
    assert {c.overlapping_answers for c in asked} == {wanted}
    changed = spec_of(tmp_path, text + "training: {overlapping_answers: all}\n")
    (_, nested) = plan_of(changed).cells
    assert {c.overlapping_answers for c in nested.configurations} == {"all"}


def test_equal_seeds_draw_equal_configurations_and_different_seeds_do_not(tmp_path):
    first, again, other = (
        plan_of(spec_of(tmp_path, with_search(f"{{algorithm: random, seed: {seed}}}")))
        for seed in (1, 1, 2)
    )
    assert first.cells == again.cells
    assert first.cells[1].configurations != other.cells[1].configurations


@given(few=st.integers(1, 6), more=st.integers(0, 6))
def test_a_longer_random_search_extends_a_shorter_one(tmp_path_factory, few, more):
    folder = tmp_path_factory.getbasetemp()
    search = "{{algorithm: random, configurations: {}}}"
    short = plan_of(spec_of(folder, with_search(search.format(few)))).cells[1]
    long = plan_of(spec_of(folder, with_search(search.format(few + more)))).cells[1]
    assert len(set(long.configurations)) == few + more
    assert long.configurations[:few] == short.configurations


def test_adding_a_backbone_keeps_the_draws_of_the_others(tmp_path):
    text = with_search("{algorithm: random}")
    alone = plan_of(spec_of(tmp_path, text)).cells
    joined = plan_of(spec_of(tmp_path, text.replace("[minilm]", "[bert-large, minilm]"))).cells
    assert joined[2:] == alone


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_a_search_never_plans_more_configurations_than_its_space_holds(tmp_path, algorithm):
    search = f"{{algorithm: {algorithm}, configurations: 50}}"
    plan = plan_of(spec_of(tmp_path, with_search(search, STUDY)))
    assert [cell.num_configurations for cell in plan.cells] == [2, 2]


def test_drawing_from_a_narrow_range_terminates(tmp_path):
    narrow = RANDOM.replace("[5.0e-3, 3.0e-1]", "[0.01, 0.0100001]")
    plan = plan_of(
        spec_of(tmp_path, with_search("{algorithm: random, configurations: 50}", narrow))
    )
    assert 1 <= plan.cells[1].num_configurations <= 8


def test_a_tpe_cell_knows_its_number_of_configurations_but_not_their_values(tmp_path):
    plan = plan_of(spec_of(tmp_path, with_search("{algorithm: tpe, configurations: 5}")))
    frozen = plan.cells[1]
    assert frozen.configurations is None
    assert (frozen.num_configurations, frozen.num_fold_runs) == (5, 10)
    configuration = build_configuration(
        frozen.cell, frozen.space, {"learning_rate": 0.0123456, "prompt_length": 8}
    )
    assert (configuration.learning_rate, configuration.prompt_length) == (0.01235, 8)
    assert frozen.parameters is not None


@given(st.floats(1e-3, 1e-1), st.floats(1e-3, 1e-1), st.integers(0, 1000))
def test_a_draw_never_leaves_its_range(a, b, seed):
    low, high = min(a, b), max(a, b) + 1e-9
    for kind in ("uniform", "log_uniform"):
        assert low <= Distribution(kind, (low, high)).draw(random.Random(seed)) <= high


def test_log_uniform_draws_cover_all_magnitudes_equally():
    generator = random.Random(0)
    rates = [Distribution("log_uniform", (1e-4, 1e-1)).draw(generator) for _ in range(3000)]
    shares = [sum(low <= rate < 10 * low for rate in rates) / 3000 for low in (1e-4, 1e-3, 1e-2)]
    # The tolerance is 4.6 standard errors.
    assert all(abs(share - 1 / 3) < 0.04 for share in shares)


def test_the_size_of_a_space_is_the_number_of_its_points():
    settings = {"a": Fixed(1), "b": Grid((1, 2)), "c": Distribution("choice", (1, 2, 3))}
    assert build_space(settings).size == 6
    assert build_space(settings | {"d": Distribution("int_uniform", (1, 4))}).size == 24
    assert build_space(settings | {"d": Distribution("uniform", (0, 1))}).size is None


def test_a_plan_without_corpus_or_weights_lists_what_is_unknown(tmp_path):
    text = STUDY.replace(
        "  synthetic: {scheme: n2c2-2018, notes: 6}\n  labels: [Drug, ADE]\n",
        "  reader: brat\n  path: nowhere\n",
    ).replace("[minilm]", "[{name: own, source: some/where}]")
    plan = plan_of(spec_of(tmp_path, text))
    assert plan.num_fold_runs == 8
    assert plan.labels is None
    assert plan.cells[0].parameters is None
    assert plan.done is None
    assert plan.remarks == (
        "the corpus was not read; labels and trained shares depend on it",
        "the shape of own is unknown until its weights are on this machine",
    )
    assert plan_json(plan)["cells"][0]["trained_share"] is None


def test_the_shape_of_a_backbone_folder_is_read_from_its_config(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    config = {"model_type": "bert", "num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 16,
              "num_attention_heads": 2, "vocab_size": 30, "max_position_embeddings": 64}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    text = STUDY.replace("[minilm]", f"[{{name: own, source: {folder}, layers: 1}}]")
    with pytest.raises(
        SpecError,
        match=r"7:13: a window of 384 pieces does not fit own-l1, which "
        r"reads 64; set window to 62 or less",
    ):
        plan_of(spec_of(tmp_path, text))
    plan = plan_of(spec_of(tmp_path, text + "training: {window: 62, overlap: 8}\n"))
    assert plan.cells[0].shape.num_layers == 1
    with pytest.raises(BackboneError, match="layers: 3 is not from 1 to 2"):
        plan_of(spec_of(tmp_path, text.replace("layers: 1", "layers: 3")))


def test_a_missing_first_layer_is_refused_with_its_position(tmp_path):
    text = STUDY.replace("prompt_length: [8, 32]", "first_layer: [0, 6]")
    with pytest.raises(SpecError, match=r"10:60: minilm has no layer 6; its layers are 0 to 5"):
        plan_of(spec_of(tmp_path, text))


def test_a_question_for_an_unknown_label_is_refused(tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "1.txt").write_text("aspirin")
    (notes / "1.ann").write_text("T1\tDrug 0 7\taspirin\n")
    text = STUDY.replace(
        "  synthetic: {scheme: n2c2-2018, notes: 6}\n  labels: [Drug, ADE]\n",
        f"  reader: brat\n  path: {notes}\n",
    )
    spec = spec_of(tmp_path, text + "questions: {Drugs: Which drugs}\n")
    with pytest.raises(SpecError, match="the corpus has no label 'Drugs'"):
        plan_of(spec, read_study_corpus(spec))


def test_the_trained_share_of_a_cell_comes_from_its_largest_configuration(tmp_path):
    frozen = plan_of(spec_of(tmp_path)).cells[1]
    # The prompt has 2 labels x 32 vectors x keys and values x 6 layers x 384; the heads have width 2048 and a
    # bias for each of 32 lengths.
    prompt, heads = 2 * 32 * 2 * 6 * 384, 2 * 385 + 2 * 384 * 2048 + 2048 + 2049 + 32
    assert frozen.parameters.trained == prompt + heads
    assert frozen.adapter_bytes == 4 * (prompt + heads)
    assert frozen.parameters.share == pytest.approx((prompt + heads) / frozen.parameters.total)
    assert plan_of(spec_of(tmp_path)).cells[0].parameters.share == 1.0


def test_finished_fold_runs_in_the_ledger_count_as_done_and_failed_ones_do_not(tmp_path):
    ledger, spec = Ledger(str(tmp_path)), spec_of(tmp_path)
    before = planned(spec, ledger)
    assert before.done == 0
    finish(before, ledger, 2, status="failed")
    assert planned(spec, ledger).done == 0
    finish(before, ledger, 1)
    after = planned(spec, ledger)
    assert [cell.done for cell in after.cells] == [2, 2]
    assert (after.done, plan_json(after)["done"]) == (4, 4)


def test_changing_notes_folds_or_weights_invalidates_finished_work(tmp_path):
    ledger, spec = Ledger(str(tmp_path)), spec_of(tmp_path)
    finish(planned(spec, ledger), ledger, 2)
    assert planned(spec, ledger).done == 8
    other = spec_of(tmp_path, overrides=["folds.seed=99"])
    assert planned(other, ledger).done == 0
    assert plan_of(spec, read_study_corpus(spec), {"minilm": "x"}, ledger).done == 0
    more = spec_of(tmp_path, overrides=["corpus.synthetic.notes=8"])
    assert planned(more, ledger).done == 0


def test_finished_tpe_configurations_count_up_to_the_planned_number(tmp_path):
    ledger = Ledger(str(tmp_path))
    finish(
        planned(spec_of(tmp_path, with_search("{algorithm: random, configurations: 4}"))), ledger, 3
    )
    tpe = planned(spec_of(tmp_path, with_search("{algorithm: tpe, configurations: 2}")), ledger)
    assert [cell.done for cell in tpe.cells] == [4, 4]


def test_rewording_a_question_retrains_only_hard_prompts(tmp_path):
    spec = spec_of(
        tmp_path, STUDY + "training: {learning_rate: 1e-3}\n", ["strategies.hard_prompt.epochs=1"]
    )
    reworded = spec_of(
        tmp_path,
        STUDY + "training: {learning_rate: 1e-3}\n",
        ["strategies.hard_prompt.epochs=1", "questions.Drug=Which one"],
    )
    ledger = Ledger(str(tmp_path))
    finish(planned(spec), ledger, 2)
    assert [cell.done for cell in planned(spec, ledger).cells] == [4, 2, 4]
    assert [cell.done for cell in planned(reworded, ledger).cells] == [4, 0, 4]


def test_corpus_folds_and_questions_have_different_fingerprints(tmp_path):
    spec = spec_of(tmp_path)
    corpus = read_study_corpus(spec)
    prints = LoadedStudy(spec, corpus, weights=WEIGHTS).fingerprints
    assert len({prints.corpus, prints.folds, prints.questions}) == 3
    assert prints.corpus == corpus.fingerprint


def test_a_synthetic_corpus_keeps_only_the_requested_labels(tmp_path):
    corpus = read_study_corpus(spec_of(tmp_path))
    assert corpus.labels == ("Drug", "ADE")
    assert {span.label for note in corpus.notes for span in note.spans} == {"Drug", "ADE"}
    spans = {note.id: {span.id for span in note.spans} for note in corpus.notes}
    assert all({r.head, r.tail} <= spans[n.id] for n in corpus.notes for r in n.relations)
    assert set(corpus.relation_labels) == {r.label for n in corpus.notes for r in n.relations}


def test_a_subset_is_drawn_after_reading_the_corpus(tmp_path):
    corpus = read_study_corpus(spec_of(tmp_path, overrides=["corpus.subset={notes: 3}"]))
    assert 3 <= len(corpus.notes) < 6


def test_a_plan_converts_to_plain_json_and_to_a_table(tmp_path):
    from rich.console import Console

    plan = plan_of(spec_of(tmp_path))
    values = json.loads(json.dumps(plan_json(plan)))
    assert values["fold_runs"] == sum(cell["fold_runs"] for cell in values["cells"]) == 8
    assert values["cells"][1]["space"]["grids"] == {"prompt_length": [8, 32]}
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(render([plan_table(plan)]))
    shown = console.export_text()
    assert "minilm/frozen_soft_prompt" in shown
    assert "in total" in shown


BILLIONS = """\
study: billions
task: concepts
corpus: {reader: n2c2-2018, path: nowhere}
backbones: [minilm, gatortron-3.9b, gatortron-8.9b]
strategies:
  soft_prompt: {learning_rate: 1.0e-5, prompt_length: 32}
  frozen_soft_prompt: {learning_rate: 1.0e-2, prompt_length: [16, 32]}
resources: {cpus_per_host: 4, gpus_per_host: 1}
storage: runs/billions
"""


def test_a_plan_shows_the_placement_and_memory_of_each_cell(tmp_path):
    from rich.console import Console

    plan = plan_of(spec_of(tmp_path, BILLIONS))
    where = {cell.cell.name.partition("/")[2]: cell.placement for cell in plan.cells}
    assert [found and found.mode for found in where.values()] == [
        "device", "lanes", "device", "lanes", "group", "lanes",
    ]  # fmt: skip
    assert where["gatortron-3.9b/soft_prompt"].checkpoints
    assert plan.remarks[-1] == (
        "assuming GPUs with 80 GiB; set resources.device_memory if they differ"
    )
    nine = json.loads(json.dumps(plan_json(plan)))["cells"][4]["placement"]
    assert nine["mode"] == "group" and nine["workers"] == [2, 2] and nine["lanes"] == 1
    assert nine["checkpoints"] and 66 < nine["peak_bytes"] / 2**30 < 72
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render([plan_table(plan)]))
    shown = console.export_text()
    assert "group of 2" in shown and "recomputes" in shown and "32 lanes" in shown
    assert f"{nine['peak_bytes'] / 2**30:.1f} GiB" in shown


@pytest.mark.parametrize("name", ["n2c2-2018/concepts", "demo"])
def test_the_plan_table_fits_120_columns_without_wrapping_a_cell_name(tmp_path, name):
    from rich.console import Console

    plan = plan_of(load_spec(ROOT / "studies" / f"{name}.yaml"))
    console = Console(width=119, record=True, file=io.StringIO())
    console.print(render([plan_table(plan)]))
    shown = console.export_text()
    assert all(cell.cell.name in shown for cell in plan.cells)


def test_a_plan_remarks_on_assumed_gpu_memory_only_if_none_was_given(tmp_path):
    given = plan_of(spec_of(tmp_path, BILLIONS, ["resources.device_memory=40"]))
    assert not [remark for remark in given.remarks if "GiB" in remark]
    assert given.cells[4].placement.workers[0] > 2
    on_cpus = plan_of(spec_of(tmp_path))
    assert not [remark for remark in on_cpus.remarks if "GiB" in remark]


def test_the_largest_configuration_determines_peak_memory(tmp_path):
    def peaks(text: str, *overrides: str) -> list[float]:
        plan = plan_of(spec_of(tmp_path, text, overrides))
        return [cell.placement.peak_bytes for cell in plan.cells]

    plain = peaks(STUDY)
    assert peaks(STUDY, "training.window=[128, 384]") == plain
    assert peaks(STUDY, "training.window=[384, 500]") > plain
    ranged = [
        "search.algorithm=tpe", "training.batch_size={int_uniform: [2, 16]}",
        "training.dropout={uniform: [0, 0.1]}",
    ]  # fmt: skip
    assert peaks(STUDY, *ranged) == plain


def test_a_cell_that_fits_nowhere_is_refused_at_the_resources_that_limit_it(tmp_path):
    with pytest.raises(SpecError) as caught:
        plan_of(spec_of(tmp_path, BILLIONS, ["resources.workers=2", "resources.device_memory=40"]))
    assert re.match(
        r"--set resources.workers=2: gatortron-8.9b/soft_prompt needs \d+ GiB on each of 2 devices and a "
        r"device has 40, of which 36 can be filled; set resources.workers to \d or more",
        str(caught.value),
    )
    text = BILLIONS.replace("gpus_per_host: 1", "gpus_per_host: 1, device_memory: 1")
    with pytest.raises(
        SpecError, match=r"study.yaml:8:64: gatortron-3.9b/soft_prompt needs .* 64 devices of"
    ):
        plan_of(spec_of(tmp_path, text))
    # A report may be made on another machine, so it places nothing.
    plan = plan_of(spec_of(tmp_path, text), places=False)
    assert [cell.placement for cell in plan.cells] == [None] * 6


def test_resources_set_the_devices_per_model_and_the_lanes_per_host(tmp_path):
    plan = plan_of(spec_of(tmp_path, BILLIONS, ["resources.workers={min: 2, max: 8}"]))
    assert [(c.placement.mode, c.placement.workers) for c in plan.cells[:2]] == [
        ("group", (2, 8)),
        ("lanes", (1, 1)),
    ]
    fewer = plan_of(spec_of(tmp_path, BILLIONS, ["resources.lanes_per_host=3"]))
    assert fewer.cells[1].placement.lanes == 3


def test_a_cell_with_unknown_labels_has_no_placement(tmp_path):
    text = BILLIONS.replace("reader: n2c2-2018", "reader: brat")
    plan = plan_of(spec_of(tmp_path, text))
    assert {cell.placement for cell in plan.cells} == {None}
    assert plan_json(plan)["cells"][0]["placement"] is None


def test_a_plan_loads_neither_torch_nor_ray_nor_mlflow(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    script = f"""
import sys
from raymrc.costs.plan_json import plan_json
from raymrc.planning.loaded import LoadedStudy
from raymrc.planning.plan import plan_study
from raymrc.study.load import load_spec
from raymrc.study.notes import read_study_corpus
import raymrc.analysis.summary, raymrc.planning.arithmetic, raymrc.ledger.ledger
spec = load_spec({str(path)!r})
plan_json(plan_study(LoadedStudy(spec, read_study_corpus(spec))))
heavy = {{"torch", "ray", "mlflow", "transformers", "optuna", "pyarrow", "pandas", "rich"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=60)


@pytest.mark.parametrize("search", ["{algorithm: grid}", "{algorithm: tpe, configurations: 3}"])
def test_a_plan_contains_its_own_configurations_and_none_of_an_earlier_version(tmp_path, search):
    text = with_search(search, STUDY if "grid" in search else RANDOM)
    plan = plan_of(spec_of(tmp_path, text))
    frozen = plan.cells[1]
    rate = 2e-2 if "grid" in search else 1.234e-2
    values = {"learning_rate": rate, "prompt_length": 8}
    mine = build_configuration(frozen.cell, frozen.space, {k: values[k] for k in frozen.space.grids} | {
        k: values[k] for k in frozen.space.distributions
    })  # fmt: skip
    assert frozen.holds(mine) and plan.holds(mine)
    for change in ({"epochs": 50}, {"prompt_length": 16}, {"learning_rate": 9.0}):
        other = replace(mine, **change)
        assert not frozen.holds(other) and not plan.holds(other), change
    assert not plan.holds(replace(mine, cell=replace(mine.cell, corpus="another")))


def test_a_plan_refuses_more_folds_than_groups_of_notes(tmp_path):
    spec = spec_of(tmp_path, overrides=["folds.count=50"])
    with pytest.raises(CorpusError, match="cannot fill 50 folds"):
        plan_of(spec, read_study_corpus(spec))


SITE = "{synthetic: {scheme: n2c2-2018, notes: 5, site: b, seed: 7}, name: there, labels: [ADE]}"


def test_another_site_keeps_only_shared_labels_and_enters_the_key(tmp_path):
    spec = spec_of(tmp_path, overrides=[f"transfer=[{SITE}]"])
    corpus = read_study_corpus(spec)
    transfer = read_transfer(spec, corpus)
    assert transfer["there"].labels == ("ADE",) and len(transfer["there"].notes) == 5
    assert plan_of(spec, corpus, WEIGHTS).fingerprints is None
    prints = plan_of(spec, corpus, WEIGHTS, transfer=transfer).fingerprints
    alone = plan_of(spec_of(tmp_path), corpus, WEIGHTS).fingerprints
    assert prints.transfer == (f"there {transfer['there'].fingerprint}",)
    assert replace(prints, transfer=()) == alone


@pytest.mark.parametrize(
    ("site", "sentence"),
    [
        # A different seed writes different notes; the same seed repeats the same notes and ids.
        ("{synthetic: {scheme: n2c2-2018, notes: 3}, name: there}", "3 notes of there are in"),
        ("{synthetic: {scheme: n2c2-2018, notes: 3, seed: 7}}", "another corpus is named"),
        (
            "{synthetic: {scheme: n2c2-2022, notes: 3, site: b}, labels: [Tobacco]}",
            "has no label of the study's corpus (Drug, ADE)",
        ),
    ],
)
def test_an_unusable_transfer_corpus_is_refused_when_it_is_read(tmp_path, site, sentence):
    spec = spec_of(tmp_path, overrides=[f"transfer=[{site}]"])
    with pytest.raises(SpecError) as caught:
        read_transfer(spec, read_study_corpus(spec))
    assert sentence in str(caught.value)


def test_held_out_notes_that_also_occur_at_a_transfer_site_are_refused(tmp_path):
    site = "{synthetic: {scheme: n2c2-2018, notes: 3, site: b, seed: 7}, name: %s}"
    changes = [f"transfer=[{site % 'there'}]", f"final_test={{corpus: {site % 'test'}}}"]
    spec = spec_of(tmp_path, overrides=changes)
    corpus = read_study_corpus(spec)
    transfer, test = read_transfer(spec, corpus), read_test(spec, corpus)
    with pytest.raises(SpecError, match="3 notes of there are held out for the final test, too"):
        check_held_out(spec, test, transfer)
    check_held_out(spec, None, transfer)
    check_held_out(spec, test, {})


def test_shared_notes_are_found_by_text_and_by_group(tmp_path):
    corpus = read_study_corpus(spec_of(tmp_path))
    copied = replace(corpus.notes[2], id="x", group="y", text=corpus.notes[2].text + " \n")
    other = replace(corpus, notes=(copied, replace(copied, id="z", text="other words")))
    assert shared_notes(corpus, other) == ["x"]
    assert shared_notes(corpus, replace(other, notes=(replace(copied, text="", group=""),))) == []
    # An article number names one article, but note 7 of two hospitals is two notes.
    grouped = replace(copied, id="95811_1", text="other words", group="95811")
    alone = replace(copied, id="95811", text="its abstract", group="95811")
    assert shared_notes(replace(corpus, notes=(grouped,)), replace(corpus, notes=(alone,)))
    assert shared_notes(replace(corpus, notes=(alone,)), replace(corpus, notes=(grouped,)))
    assert not shared_notes(
        replace(corpus, notes=(alone,)), replace(corpus, notes=(replace(alone, text="x"),))
    )


def test_each_number_of_shots_is_its_own_cell_with_one_fold_run_per_fold_and_draw(tmp_path):
    few = "few_shot={notes: [1, 2], draws: 3}"
    spec = spec_of(tmp_path, overrides=[few, "corpus.synthetic.notes=12"])
    corpus = read_study_corpus(spec)
    plan = plan_of(spec, corpus, WEIGHTS)
    whole = plan_of(spec_of(tmp_path), corpus, WEIGHTS)
    assert len(plan.cells) == 2 * len(whole.cells) and plan.folds == 3 * whole.folds
    assert [c.cell.shots for c in plan.cells[:2]] == [1, 2]
    assert plan.cells[0].cell.name.endswith("/1 notes")
    runs = {
        fold_run(c, fold, plan.fingerprints).key
        for cell in plan.cells
        for c in cell.configurations
        for fold in range(plan.folds)
    }
    assert len(runs) == plan.num_fold_runs == 2 * 3 * whole.num_fold_runs
    # Cells without shots keep the names that they had before few-shot cells existed.
    first = whole.cells[0].configurations[0]
    assert "shots" not in first.cell.values and first.id not in {
        c.id for cell in plan.cells for c in cell.configurations
    }


def test_equal_numbers_of_notes_and_mentions_form_different_cells(tmp_path):
    notes, mentions = (
        plan_of(spec_of(tmp_path, overrides=[f"few_shot={{{unit}: 5, draws: 2}}"]))
        for unit in ("notes", "mentions")
    )
    assert {c.cell.name.rsplit("/")[-1] for c in mentions.cells} == {"5 mentions"}
    assert {(c.cell.shots, c.cell.shots_of) for c in mentions.cells} == {(5, "mentions")}
    ids = [{c.id for cell in plan.cells for c in cell.configurations} for plan in (notes, mentions)]
    assert ids[0].isdisjoint(ids[1])
    # A key of result format 2.
    cell = Cell("concepts", "phee", Backbone("minilm", "minilm"), "fine_tune", 5)
    run = FoldRun(Configuration(cell, 5e-4), 7, "corpus", "folds", "", "weights")
    assert run.key == "39983acfbb70c11db37bc8f4e8efe8df3834644433a5528deb986f03fdab7efd"


def test_more_mentions_than_a_fold_holds_are_refused_with_their_position(tmp_path):
    spec = spec_of(tmp_path, STUDY + "few_shot:\n  mentions: [1, 5000]\n")
    with pytest.raises(SpecError, match=r"yaml:13:17: 5000 training mentions are more than a fold"):
        plan_of(spec, read_study_corpus(spec))
    (problem,) = problems_of(tmp_path, STUDY + "few_shot:\n  notes: 5\n  mentions: 5\n")
    sentence = "few_shot: give notes or mentions, not both"
    assert problem == f"study.yaml:14:3: {sentence}"
    (problem,) = problems_of(tmp_path, STUDY + "few_shot: {draws: 2}\n")
    assert problem == "study.yaml:12:11: few_shot: give numbers of notes or mentions"


def test_more_shots_than_training_notes_are_refused(tmp_path):
    spec = spec_of(tmp_path, overrides=["few_shot={notes: [1, 50]}"])
    with pytest.raises(SpecError, match="50 training notes are more than a fold has"):
        plan_of(spec, read_study_corpus(spec))
    assert problems_of(tmp_path, overrides=["few_shot={notes: [5, 5]}"])
    assert problems_of(tmp_path, overrides=["few_shot={notes: [0]}"])


STARTS = STUDY.replace("prompt_length: [8, 32]", "prompt_length: 8")


def starting(*options: str, prompt: object = None) -> list[str]:
    """Return overrides that select how soft prompts are initialised."""
    overrides = [f"strategies.frozen_soft_prompt.prompt_initialisation=[{', '.join(options)}]"]
    return overrides if prompt is None else [*overrides, f"initial_prompt={prompt}"]


def test_prompt_initialisation_forms_a_grid_and_random_keeps_the_old_keys(tmp_path):
    corpus = read_study_corpus(spec_of(tmp_path))
    plain = plan_of(spec_of(tmp_path, STARTS), corpus, WEIGHTS)
    both = plan_of(spec_of(tmp_path, STARTS, starting("random", "question")), corpus, WEIGHTS)
    (before,) = plain.cells[1].configurations
    random, worded = both.cells[1].configurations
    assert (random.prompt_initialisation, worded.prompt_initialisation) == ("random", "question")
    assert random == before and random.id == before.id != worded.id
    keys = [fold_run(c, 0, both.fingerprints).key for c in (random, worded)]
    assert fold_run(before, 0, plain.fingerprints).key == keys[0] != keys[1]
    # The id is from before prompt_initialisation existed, the key is of result format 2.
    old = Configuration(Cell("concepts", "notes", Backbone("minilm", "minilm"), "frozen_soft_prompt"), 2e-2,
                        prompt_length=8)  # fmt: skip
    assert old.id == "2a75c155f20d"
    assert FoldRun(old, 1, "c", "f", "", "w").key == (
        "e84eef9f7d7ed1a900b715094f07bb671d89db29880124ab0c43b9548e475e2a"
    )


def test_rewording_a_question_retrains_only_prompts_that_start_from_it(tmp_path):
    overrides = starting("random", "question")
    spec = spec_of(tmp_path, STARTS, overrides)
    reworded = spec_of(tmp_path, STARTS, [*overrides, "questions.Drug=Which one"])
    assert reworded.warnings == ()
    ledger = Ledger(str(tmp_path))
    finish(planned(spec), ledger, 2)
    assert [cell.done for cell in planned(spec, ledger).cells] == [4, 4]
    assert [cell.done for cell in planned(reworded, ledger).cells] == [4, 2]


def write_prompt(folder, labels=("Drug", "ADE"), weights="w", notes=(), **changed):
    """Write the adapter of another study; the values of its tensors do not matter."""
    cell = {"task": "concepts", "corpus": "elsewhere", "strategy": "frozen_soft_prompt",
            "backbone": {"name": "minilm", "layers": None}}  # fmt: skip
    form = {"prompt_length": 8, "prompt_depth": "deep", "first_layer": 0}
    of_cell = {name: changed.pop(name) for name in [*changed] if name in cell}
    header = {
        "format": 1, "version": "0", "weights_fingerprint": weights, "labels": labels, "relations": [],
        "notes": notes,
        "configuration": {"cell": cell | of_cell, "reparametrisation": "none"} | form | changed,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    save_file({"prompt.table": np.zeros(8)}, folder / ADAPTER_FILE, {HEADER: json.dumps(header)})
    return folder


def planned_from(tmp_path, prompt, *options: str, text: str = STARTS, weights=WEIGHTS) -> Plan:
    spec = spec_of(tmp_path, text, starting(*(options or ("adapter",)), prompt=prompt))
    corpus = read_study_corpus(spec)
    return plan_of(spec, corpus, weights, initial_prompt=read_adapter(spec.initial_prompt))


def test_changing_the_initial_prompt_retrains_only_prompts_that_start_from_it(tmp_path):
    place = write_prompt(tmp_path / "prompt")
    plans = [planned_from(tmp_path, place, "random", "adapter")]
    write_prompt(place, labels=("Drug", "ADE", "Route"))
    plans.append(planned_from(tmp_path, place, "random", "adapter"))
    keys = [
        [fold_run(c, 0, plan.fingerprints).key for c in plan.cells[1].configurations]
        for plan in plans
    ]
    assert keys[0][0] == keys[1][0] and keys[0][1] != keys[1][1]
    tuned = [fold_run(plan.cells[0].configurations[0], 0, plan.fingerprints) for plan in plans]
    assert tuned[0] == tuned[1]
    assert all(not plan.remarks for plan in plans)


def test_a_plan_lists_the_labels_that_an_initial_prompt_lacks(tmp_path):
    lacking = write_prompt(tmp_path / "a", labels=("Route", "ADE"))
    assert planned_from(tmp_path, lacking).remarks == (
        "the initial prompt lacks Drug, which start at random",
    )


def test_a_prompt_trained_on_a_scored_note_is_refused(tmp_path):
    spec = spec_of(tmp_path, STARTS)
    corpus = read_study_corpus(spec)
    first, second = corpus.notes[:2]
    elsewhere = replace(first, id="x", group="", text=f"other words than {first.id}'s")
    unseen = read_adapter(write_prompt(tmp_path / "a", notes=[*note_marks(elsewhere)]))
    check_unseen(spec, None, corpus)
    check_unseen(spec, unseen, corpus, None)
    # One prompt saw this text under another id with other blanks; the other saw a note of the same patient.
    copied = replace(first, id="x", group="", text=f" {first.text}\n\n")
    seen = read_adapter(write_prompt(tmp_path / "b", notes=[*note_marks(copied)]))
    with pytest.raises(SpecError, match=rf"trained on 1 of the notes .* \({first.id}\)"):
        check_unseen(spec, seen, corpus)
    theirs = replace(second, id="y", group="patient 7", text="other words")
    test = replace(corpus, notes=(replace(first, group="patient 7"),))
    of_group = read_adapter(write_prompt(tmp_path / "c", notes=[*note_marks(theirs)]))
    with pytest.raises(SpecError, match="trained on 1 of the notes"):
        check_unseen(spec, of_group, corpus, test)
    check_unseen(spec, of_group, corpus)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"prompt_length": 16}, "prompt_length: 8 differs from 16 of the initial prompt"),
        ({"prompt_depth": "input"}, "prompt_depth: deep differs from input of the initial prompt"),
        ({"first_layer": 2}, "first_layer: 0 differs from 2 of the initial prompt"),
        ({"strategy": "hard_prompt"}, "by hard_prompt, which has no soft prompt"),
        ({"backbone": {"name": "minilm-l2", "layers": 2}}, "on 2 layers of minilm-l2, and minilm has all"),
        ({"weights": "v"}, "trained on minilm with weights v, not w"),
        ({"labels": ("Route",)}, "no prompt would start from it"),
    ],
)  # fmt: skip
def test_an_unsuitable_initial_prompt_is_refused_in_one_sentence(tmp_path, changed, sentence):
    place = write_prompt(tmp_path / "prompt", **changed)
    with pytest.raises((SpecError, BackboneError)) as caught:
        planned_from(tmp_path, place)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_plan_without_the_initial_prompt_file_remarks_on_it(tmp_path):
    spec = spec_of(tmp_path, STARTS, starting("adapter", prompt="not/there"))
    plan = plan_of(spec, read_study_corpus(spec), WEIGHTS)
    assert plan.fingerprints is None
    assert plan.remarks == ("initial_prompt not/there is not on this machine; it was not checked",)
    with pytest.raises(AdapterError, match="there is no adapter"):
        read_adapter(spec.initial_prompt)
