"""Promise: a wrong study file is refused before anything starts. All its problems are reported at once, each
with its position and the nearest valid name. A correct file means what it says.

It would break without anyone noticing: an ignored field trains the wrong thing for days.
"""

from __future__ import annotations

from dataclasses import fields

import pytest

from raymrc.configuration import Backbone, Configuration
from raymrc.model.strategies import STRATEGIES
from raymrc.planning.plan import build_racing
from raymrc.racing.racing import Racing
from raymrc.study.sections import Settings, Strategies
from raymrc.study.space import Distribution, Fixed, Grid
from raymrc.study.spec import Spec
from tests.study.making import STUDY, problems_of, spec_of


def edited(old: str, new: str) -> str:
    assert old in STUDY
    return STUDY.replace(old, new)


def test_all_problems_are_reported_at_once_in_file_order(tmp_path):
    text = """\
study: demo
study: other
tasks: concepts
corpus:
  reader: phe
  path: $NOT_SET/x
backbones: [minlm, {name: minilm, layers: 7}]
strategies:
  fine_tune: {learning_rates: [5e-5, 2.0e-4], epochs: "3"}
  frozen_soft_prompt: {learning_rate: {log_unifrm: [5.0e-3, 3.0e-1]}, prompt_length: [8, 0, 513, many]}
  frozen: {}
training: {epochs: no, batch_size: 1.5}
search: {algorithm: tpee}
storage: ftp://x
mlflw: 3
"""
    assert problems_of(tmp_path, text, ["training.epochs=0"]) == [
        "study.yaml:2:1: 'study' is given twice, first on line 1; keep one of them",
        "study.yaml:3:1: unknown field 'tasks'; did you mean 'task'?",
        "study.yaml:5:11: reader: there is no reader 'phe'; did you mean 'phee'?",
        "study.yaml:6:9: path: the environment variable NOT_SET is not set; "
        "set it, or write the path out",
        "study.yaml:7:13: backbones: unknown backbone 'minlm'; did you mean 'minilm'? "
        "(or give its source: a folder or a Hugging Face id)",
        "study.yaml:7:35: backbones: minilm has 6 layers, not 7",
        "study.yaml:9:15: unknown field 'learning_rates' in strategy fine_tune; "
        "did you mean 'learning_rate'?",
        "study.yaml:9:55: epochs: '3' is text because of its quotes; remove them to make it a number",
        "study.yaml:10:40: learning_rate: unknown range 'log_unifrm'; did you mean 'log_uniform'?",
        "study.yaml:10:90: prompt_length: 0 is not a whole number from 1 to 512",
        "study.yaml:10:93: prompt_length: 513 is not a whole number from 1 to 512",
        "study.yaml:10:98: prompt_length: 'many' is not a whole number from 1 to 512",
        "study.yaml:11:3: unknown strategy 'frozen'; choose from fine_tune, frozen_soft_prompt, "
        "hard_prompt, soft_prompt",
        "study.yaml:12:36: batch_size: 1.5 is not a whole number of 1 or more",
        "study.yaml:13:21: algorithm: 'tpee' is not one of 'grid', 'random', 'tpe'",
        "study.yaml:14:10: storage: 'ftp://' is not a store; "
        "give a folder, or a URL such as s3:// or gs://",
        "study.yaml:15:1: unknown field 'mlflw'; did you mean 'mlflow'?",
        "--set training.epochs=0: epochs: 0 is not a whole number of 1 or more",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("study: tiny\n", "", "1:1: the study has no 'study'"),
        ("storage: runs/tiny\n", "", "1:1: the study has no 'storage'"),
        ("study: tiny", "study: a b", "1:8: study: 'a b' is not a plain name"),
        ("study: tiny", "study: 12", "1:8: study: 12 is not text; put it in quotes"),
        (
            "task: concepts",
            "task: events",
            "2:7: task: 'events' is not one of 'concepts', 'relations', 'end_to_end'",
        ),
        ("notes: 6", "notes: 6, reader: x", "unknown field 'reader' in corpus.synthetic"),
        ("notes: 6", "note: 6", "unknown field 'note' in corpus.synthetic; did you mean 'notes'?"),
        ("{scheme: n2c2-2018, notes: 6}", "{scheme: n2c2-2018}", "4:3: corpus.synthetic has no 'notes'"),
        ("{scheme: n2c2-2018, notes: 6}", "6", "4:14: synthetic: 6 is not a mapping of fields"),
        ("  synthetic: {scheme: n2c2-2018, notes: 6}\n", "", "needs reader and path, or synthetic"),
        ("synthetic: {scheme: n2c2-2018, notes: 6}", "reader: phee", "with a reader needs a path"),
        ("[Drug, ADE]", "[Drug, AD]", "5:18: labels: 'AD' is not a label of this corpus"),
        ("[Drug, ADE]", "{Drug: Drug, AD: X}", "5:24: labels: 'AD' is not a label of this corpus"),
        ("[Drug, ADE]", "drug-ad", "5:11: labels: there is no label map 'drug-ad'"),
        ("[Drug, ADE]", "3", "5:11: labels: 3 is not a map's name, a list of labels"),
        ("{count: 2}", "{count: 1}", "6:16: count: 1 is not a whole number from 2 to 100"),
        ("{count: 2}", "3", "6:8: folds: 3 is not a mapping of fields"),
        ("{count: 2}", "{validation_share: 0.9}", "0.9 is not a number from 0.01 to 0.5"),
        ("[minilm]", "minilm", "7:12: backbones: 'minilm' is not a list"),
        ("[minilm]", "[]", "7:12: backbones: give at least one"),
        ("[minilm]", "[minilm, minilm]", "7:21: backbone 'minilm' is given twice"),
        ("[minilm]", "[bert-large-mimic]", "7:13: backbones: bert-large-mimic was never released; give"),
        ("[minilm]", "[{name: minilm, layer: 2}]", "unknown field 'layer' in backbone minilm"),
        ("[minilm]", "[{layers: 2}]", "7:13: backbone 1 has no 'name'"),
        ("5.0e-5, 2.0e-4", "5.0e-5, 5e-5", "9:39: learning_rate: 5e-05 is in the list twice"),
        ("[5.0e-5, 2.0e-4]", "[]", "9:30: learning_rate: an empty list leaves nothing to try"),
        ("[5.0e-5, 2.0e-4]", "-1", "9:30: learning_rate: -1 is not a number above 0 and up to 10"),
        ("[5.0e-5, 2.0e-4]", ".nan", "9:30: learning_rate: nan is not a number above 0"),
        ("learning_rate: [5.0e-5, 2.0e-4]", "duration: 20 minutes",
         "duration: '20 minutes' is not a duration such as 400 steps, 90 device-seconds or 20 epochs"),
        ("learning_rate: [5.0e-5, 2.0e-4]", "epochs: 3, duration: 20 epochs",
         "duration: 20 epochs also says how many epochs; remove one of duration and epochs"),
        ("learning_rate: [5.0e-5, 2.0e-4]", "duration: 0 steps", "'0 steps' is not a duration such as"),
        ("learning_rate: [5.0e-5, 2.0e-4]", "duration: 400", "400 is not a duration such as 400 steps"),
        ("[5.0e-5, 2.0e-4]", "{log_uniform: [1e-5, 1e-4]}", "9:30: learning_rate: log_uniform is a range"),
        ("[8, 32]", "{uniform: [8, 32]}", "uniform draws fractions and this is a whole number"),
        ("[8, 32]", "{int_uniform: [32, 8]}", "32 is not below 8; give the lower end first"),
        ("[8, 32]", "{int_uniform: [0, 8]}", "0 is not a whole number from 1 to 512"),
        ("[8, 32]", "{int_uniform: 8}", "8 is not a list; int_uniform wants [low, high]"),
        ("2.0e-2", "{int_uniform: [1, 2]}", "int_uniform draws whole numbers, which this is not"),
        ("2.0e-2", "{log_uniform: [1e-3]}", "log_uniform wants [low, high], low above 0"),
        ("storage:", "training: {window: 48}\nstorage:", "overlap of 64 pieces does not fit"),
        ("storage:", "training: {prompt_depth: deeep}\nstorage:", "is not one of 'input', 'deep'"),
        ("[8, 32]", "8, prompt_initialisation: words", "'words' is not one of 'random', 'question', "
         "'adapter'"),
        ("[8, 32]", "8, prompt_initialisation: [random, adapter]", "10:88: prompt_initialisation: adapter "
         "needs a trained prompt; give its file as initial_prompt"),
        ("[8, 32]", "8, prompt_initialisation: question, reparametrisation: [none, mlp]", "10:88: "
         "prompt_initialisation: question gives a prompt its vectors, and reparametrisation mlp computes"),
        ("storage:", "resources: {worker: 2}\nstorage:", "11:13: unknown field 'worker' in resources; "
         "did you mean 'workers'?"),
        ("storage:", "resources: {workers: many}\nstorage:", "11:22: workers: 'many' is not auto, a whole "
         "number of 1 or more, or a mapping such as {min: 2, max: 8}"),
        ("storage:", "resources: {same_machine: 1}\nstorage:", "11:27: same_machine: 1 is not true or false"),
        ("storage:", "resources: {workers: 0}\nstorage:", "11:22: workers: 0 is not auto, a whole number"),
        ("storage:", "resources: {workers: [2, 8]}\nstorage:", "11:22: workers: a list is not auto"),
        ("storage:", "resources: {workers: {mim: 2, max: 8}}\nstorage:", "11:23: unknown field 'mim' in "
         "resources.workers; did you mean 'min'?"),
        ("storage:", "resources: {workers: {min: 2}}\nstorage:", "resources.workers has no 'max'"),
        ("storage:", "resources: {workers: {min: 4, max: 2}}\nstorage:", "11:23: workers: the minimum "
         "of 4 devices is above the maximum of 2"),
        ("storage:", "resources: {workers: {max: 2.5}}\nstorage:", "11:28: max: 2.5 is not a whole number"),
        ("storage:", "resources: {device_memory: 0}\nstorage:", "11:28: device_memory: 0 is not a number "
         "above 0"),
        ("storage:", "resources: {device_memory: 80GB}\nstorage:", "device_memory: '80GB' is not a number"),
        ("storage:", "resources: {device_memry: 80}\nstorage:", "did you mean 'device_memory'?"),
        ("storage:", "equivalence_points: 0\nstorage:", "11:21: equivalence_points: 0 is not a number above "
         "0 and up to 100"),
        ("storage:", "equivalence: 1\nstorage:", "did you mean 'equivalence_points'?"),
        ("storage:", "training: {loss_weights: [1, 1]}\nstorage:", "is not three numbers"),
        ("storage:", "questions: {Drugs: x}\nstorage:", "11:13: question for 'Drugs', which is not"),
        ("storage:", "questions: {Drug: 3}\nstorage:", "11:19: Drug: 3 is not text"),
        ("  fine_tune: {learning_rate: [5.0e-5, 2.0e-4]}\n  frozen_soft_prompt: {learning_rate: 2.0e-2, "
         "prompt_length: [8, 32]}", "  {}", "strategies: name at least one of fine_tune"),
    ],
)  # fmt: skip
def test_a_wrong_field_gives_one_sentence_with_its_position(tmp_path, old, new, message):
    problems = problems_of(tmp_path, edited(old, new))
    assert len(problems) == 1, problems
    assert message in problems[0]
    assert problems[0].startswith("study.yaml:")


@pytest.mark.parametrize("length", [0, 513, -1, 2.5])
def test_a_prompt_length_outside_1_to_512_is_refused(tmp_path, length):
    problems = problems_of(
        tmp_path, overrides=[f"strategies.frozen_soft_prompt.prompt_length={length}"]
    )
    assert problems == [
        f"--set strategies.frozen_soft_prompt.prompt_length={length}: "
        f"prompt_length: {length} is not a whole number from 1 to 512"
    ]


@pytest.mark.parametrize("length", [1, 512])
def test_prompt_lengths_1_and_512_are_accepted(tmp_path, length):
    override = f"strategies.frozen_soft_prompt.prompt_length={length}"
    named = spec_of(tmp_path, overrides=[override]).strategies.named()
    assert named["frozen_soft_prompt"].prompt_length == Fixed(length)


def test_the_nearest_field_is_suggested_for_an_unknown_override_path(tmp_path):
    assert problems_of(tmp_path, overrides=["trainig.epochs=2", "folds.cont=3"]) == [
        "--set trainig.epochs=2: unknown field 'trainig'; did you mean 'training'?",
        "--set folds.cont=3: unknown field 'cont' in folds; did you mean 'count'?",
    ]


def test_a_value_is_fixed_a_list_is_a_grid_and_a_mapping_is_a_range(tmp_path):
    text = (
        edited(
            "[5.0e-5, 2.0e-4]",
            "{log_uniform: [1e-5, 1e-3]}, epochs: 3, dropout: [0, 0.1], batch_size: {choice: [4, 8]}, "
            "window: {int_uniform: [128, 256]}, loss_weights: [[1, 1, 0], [1, 1, 1]]",
        )
        + "search: {algorithm: random}\ntraining: {loss_weights: [1, 1, 0.1], seed: 1e1}\n"
    )
    spec = spec_of(tmp_path, text)
    assert spec.strategies.named()["fine_tune"].given() == {
        "learning_rate": Distribution("log_uniform", (1e-5, 1e-3)),
        "epochs": Fixed(3),
        "batch_size": Distribution("choice", (4, 8)),
        "window": Distribution("int_uniform", (128, 256)),
        "loss_weights": Grid(((1.0, 1.0, 0.0), (1.0, 1.0, 1.0))),
        "dropout": Grid((0.0, 0.1)),
    }
    assert spec.training.given() == {"loss_weights": Fixed((1.0, 1.0, 0.1)), "seed": Fixed(10)}


@pytest.mark.parametrize("off", ["", "racing: none\n", "racing:\n"])
def test_racing_is_off_unless_requested(off, tmp_path):
    assert spec_of(tmp_path, STUDY + off).racing is None


def test_racing_accepts_a_word_or_a_mapping(tmp_path):
    spec = spec_of(tmp_path, STUDY + "racing: paired\n")
    assert spec.racing is not None and build_racing(spec) == Racing()
    spec = spec_of(tmp_path, STUDY + "racing: {error_rate: 0.1, rungs: [0.5, 1], min_folds: 2}\n")
    assert spec.racing is not None
    assert build_racing(spec) == Racing(0.1, (0.5, 1.0), 2)
    assert spec_of(tmp_path, STUDY + "racing: paired\n", ["racing=none"]).racing is None


@pytest.mark.parametrize(
    ("racing", "sentence"),
    [
        ("fast", "racing: 'fast' is not none, paired, or a mapping such as {error_rate: 0.05}"),
        ("{error_rate: 2}", "error_rate: 2 is not"),
        (
            "{rungs: [0.5, 0.2, 1]}",
            "rungs: give ascending shares of the epochs that end with 1",
        ),
        ("{rungs: [0.5]}", "rungs: give ascending shares of the epochs"),
        ("{rungs: [0, 1]}", "rungs: 0 is not"),
        ("{warm_start: [runs/first]}", "unknown field 'warm_start' in racing"),
        ("{rung: [1]}", "unknown field 'rung' in racing; did you mean 'rungs'?"),
    ],
)
def test_invalid_racing_options_are_refused_in_one_sentence(racing, sentence, tmp_path):
    (problem,) = problems_of(tmp_path, STUDY + f"racing: {racing}\n")
    assert sentence in problem


def test_settings_of_a_backbone_override_those_of_training(tmp_path):
    text = (
        edited(
            "[minilm]", "[minilm, {name: minilm, layers: 2, strategies: {fine_tune: {epochs: 9}}}]"
        )
        + "training: {epochs: 3, dropout: 0}\n"
    )
    spec = spec_of(tmp_path, text)
    whole, cut = 0, 1
    assert spec.settings(whole, "fine_tune")["epochs"] == Fixed(3)
    assert spec.settings(cut, "fine_tune")["epochs"] == Fixed(9)
    assert spec.settings(cut, "frozen_soft_prompt")["epochs"] == Fixed(3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (edited("[5.0e-5, 2.0e-4]", "1e-4, prompt_length: 8"),
         "study.yaml:9:36: prompt_length has no effect under fine_tune: it has no soft prompt"),
        (edited("[5.0e-5, 2.0e-4]", "1e-4, match_width: 8"),
         "study.yaml:9:36: match_width has no effect under fine_tune"),
        (STUDY + "search: {algorithm: grid, configurations: 4}\n",
         "study.yaml:12:27: configurations has no effect: a grid tries every combination"),
        (STUDY + "questions: {Drug: Who}\n",
         "study.yaml:12:1: questions have no effect: hard_prompt is not run"),
        (STUDY + "initial_prompt: x\n",
         "study.yaml:12:1: initial_prompt has no effect: no prompt_initialisation is adapter"),
        (edited("[5.0e-5, 2.0e-4]", "1e-4, prompt_initialisation: question"),
         "study.yaml:9:36: prompt_initialisation has no effect under fine_tune: it has no soft"),
        (STUDY + "training: {learning_rate: 1e-3}\n",
         "study.yaml:12:12: learning_rate has no effect: every strategy sets its own"),
        (edited("[minilm]", "[{name: minilm, strategies: {soft_prompt: {epochs: 1}}}]"),
         "study.yaml:7:41: strategy soft_prompt is not run by this study"),
    ],
)  # fmt: skip
def test_a_setting_without_effect_causes_a_warning_and_no_refusal(tmp_path, text, message):
    (warning,) = spec_of(tmp_path, text).warnings
    assert warning.replace(f"{tmp_path}/", "").startswith(message)


def test_a_study_whose_settings_all_apply_has_no_warnings(tmp_path):
    assert spec_of(tmp_path, STUDY + "training: {prompt_depth: input}\n").warnings == ()


def test_a_backbone_may_be_a_name_an_id_or_a_folder(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODELS", str(tmp_path))
    entries = (
        "[minilm, {name: minilm, layers: 2}, prajjwal1/bert-tiny, own, "
        "{name: x, source: $MODELS/own, revision: abc}, {name: bert-large-mimic, source: no/where/yet}]"
    )
    spec = spec_of(tmp_path, edited("[minilm]", entries))
    assert [entry.backbone for entry in spec.backbones] == [
        Backbone("minilm", "minilm"),
        Backbone("minilm-l2", "minilm", layers=2),
        Backbone("bert-tiny", "prajjwal1/bert-tiny"),
        Backbone("own", "own"),
        Backbone("x", f"{tmp_path}/own", "abc"),
        Backbone("bert-large-mimic", "no/where/yet"),
    ]


def test_paths_expand_the_home_folder_and_environment_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("DATA", "/data")
    text = edited(
        "synthetic: {scheme: n2c2-2018, notes: 6}", "reader: n2c2-2018\n  path: ${DATA}/notes"
    )
    spec = spec_of(tmp_path, text, ["storage=~/runs"])
    assert (spec.corpus.path, spec.storage) == ("/data/notes", "/home/someone/runs")


def test_the_tracking_database_defaults_to_the_study_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert spec_of(tmp_path).tracking_uri == f"sqlite:///{tmp_path}/runs/tiny/mlflow.db"
    far = spec_of(tmp_path, overrides=["storage=s3://bucket/study"])
    assert far.tracking_uri == f"sqlite:///{tmp_path}/runs/tiny/mlflow.db"
    near = spec_of(tmp_path, overrides=["storage=file:///a/b"])
    assert near.tracking_uri == "sqlite:////a/b/mlflow.db"
    overrides = ["mlflow.tracking_uri=http://localhost:5000", "mlflow.experiment=all"]
    spec = spec_of(tmp_path, overrides=overrides)
    assert (spec.tracking_uri, spec.experiment) == ("http://localhost:5000", "all")
    assert spec_of(tmp_path).experiment == "tiny"


def test_an_empty_section_takes_all_defaults(tmp_path):
    text = STUDY + "resources:\nprices:\nmlflow:\nsearch:\ntraining:\nquestions:\n"
    spec = spec_of(
        tmp_path,
        edited("fine_tune: {learning_rate: [5.0e-5, 2.0e-4]}", "fine_tune:").replace(
            "folds: {count: 2}", "folds:"
        )
        + "training: {learning_rate: 1e-4}\n",
    )
    assert spec.folds.count == 5
    assert "fine_tune" in spec.strategies.named()
    assert spec_of(tmp_path, text).resources.cpus_per_host == 1


@pytest.mark.parametrize(
    ("written", "least_and_most"),
    [("auto", None), ("3", (3, 3)), ("{min: 2, max: 8}", (2, 8)), ("{max: 8}", (1, 8)), ("", None)],
)
def test_workers_accept_auto_a_number_or_a_range(tmp_path, written, least_and_most):
    found = spec_of(tmp_path, f"{STUDY}resources: {{workers: {written}}}\n").resources.workers
    assert (None if found is None else (found.min, found.max)) == least_and_most


def test_a_study_can_set_every_hyper_parameter_and_nothing_else():
    names = {field.name for field in fields(Configuration)} - {"cell"}
    assert set(Settings.model_fields) == names


def test_study_files_accept_exactly_the_strategies_of_the_table():
    assert list(Strategies.model_fields) == list(STRATEGIES)


def test_every_section_and_field_has_a_description():
    for model in {Spec, *Settings.__base__.__subclasses__()}:
        assert model.__doc__
        for name, field in model.model_fields.items():
            assert field.description and field.description.endswith("."), (model, name)


def test_messages_truncate_long_values(tmp_path):
    (problem,) = problems_of(tmp_path, edited("[minilm]", "x" * 500))
    assert len(problem) < 200


def test_failure_limits_have_defaults_and_bounds(tmp_path):
    assert (spec_of(tmp_path).failures.retries, spec_of(tmp_path).failures.close_cell_after) == (
        1,
        5,
    )
    never = spec_of(tmp_path, overrides=["failures={retries: 0, close_cell_after: null}"]).failures
    assert (never.retries, never.close_cell_after) == (0, None)
    (found,) = problems_of(tmp_path, overrides=["failures.close_cell_after=0"])
    assert "close_cell_after: 0 is not a whole number of 1 or more" in found
    (found,) = problems_of(tmp_path, overrides=["failures.retry=2"])
    assert "did you mean 'retries'?" in found
