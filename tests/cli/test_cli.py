"""Promise: a user's mistake gives one sentence per problem and exit code 2, and leaves nothing half-written.

It would break without anyone noticing: nobody tests with broken input every day.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from raymrc.cli import describe_bug, main
from raymrc.cli.job import prepare_study
from raymrc.configuration import Backbone
from raymrc.corpora.formats import read_corpus
from raymrc.corpora.splits import make_folds, note_marks
from raymrc.ledger.ledger import Ledger
from raymrc.ledger.record import Epoch, Record
from raymrc.model.backbones import weights_fingerprint
from raymrc.planning.fold_runs import fold_run
from raymrc.reading.questions import build_questions
from raymrc.study.load import load_spec
from raymrc.study.notes import read_study_corpus
from tests.commands import STUDY, call, raymrc, write_notes
from tests.model.tiny import tiny_checkpoint
from tests.paths import ROOT
from tests.planning.test_plan import write_prompt
from tests.study.making import plan_of, record

TEXT = "Took aspirin 10 mg daily for pain. No nausea after warfarin.\n"
WARFARIN = f"{TEXT.index('warfarin')} {TEXT.index('warfarin') + len('warfarin')}"
NOTES = {
    f"note{number}": (
        TEXT.replace("10", f"{number}0"),
        f"T1\tDrug 5 12\taspirin\nT2\tDrug {WARFARIN}\twarfarin\n",
    )
    for number in range(1, 7)
}


@pytest.fixture
def place(tmp_path):
    """Return a folder with notes, a backbone's config and a study that uses both."""
    write_notes(tmp_path / "notes", NOTES)
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "config.json").write_text(
        json.dumps(
            {
                "model_type": "bert",
                "num_hidden_layers": 2,
                "hidden_size": 16,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "vocab_size": 60,
                "max_position_embeddings": 64,
            }
        )
    )
    return tmp_path


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


def refused(folder: Path, *arguments: str | Path) -> list[str]:
    """Return the messages of a command that must be refused without writing anything."""
    before = tree(folder)
    run = call(*arguments, folder=folder)
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""
    assert tree(folder) == before
    return run.stderr.splitlines()


def one_sentence(folder: Path, *arguments: str | Path) -> str:
    sentences = refused(folder, *arguments)
    assert len(sentences) == 1, sentences
    return sentences[0]


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# --- messages about wrong input -------------------------------------------------------------------


def test_a_missing_corpus_is_reported(place):
    change(place / "study.yaml", "path: notes", "path: not/there")
    assert one_sentence(place, "run", "study.yaml").startswith("not/there: does not exist")


def test_offsets_past_the_text_are_reported_with_file_and_line(place):
    change(place / "notes" / "note3.ann", f"Drug {WARFARIN}", "Drug 51 162")
    for command in (["run", "study.yaml"], ["plan", "study.yaml"]):
        sentence = one_sentence(place, *command)
        assert sentence.startswith("notes/note3.ann:2: T2 Drug 51-162 reaches past the note's end")
    assert sentence in call("validate", "notes", "--reader", "brat", folder=place).stderr


def test_unknown_labels_in_notes_and_in_a_study_are_reported(place):
    change(place / "notes" / "note3.ann", "T2\tDrug", "T2\tDrg")
    change(place / "study.yaml", "reader: brat", "reader: n2c2-2018")
    sentence = one_sentence(place, "run", "study.yaml")
    assert sentence.startswith("notes/note3.ann:2: T2 has the unknown label Drg")
    assert "'Drug'" in sentence
    sentence = one_sentence(place, "run", "study.yaml", "--set", "corpus.labels=[Drog]")
    assert "'Drug'" in sentence


def test_a_mistyped_field_is_reported_with_its_position_and_the_nearest_name(place):
    change(place / "study.yaml", "learning_rate:", "learning_rates:")
    for command in ("plan", "run", "report", "sync"):
        sentences = refused(place, command, "study.yaml")
        assert sentences[0].startswith("study.yaml:9:24: unknown field 'learning_rates'")
        assert "did you mean 'learning_rate'?" in sentences[0]


def test_a_duplicate_note_id_is_reported(place):
    lines = "1|t|Took aspirin.\n1|a|No pain.\n\n"
    (place / "twice.txt").write_text(lines * 2)
    change(
        place / "study.yaml", "{reader: brat, path: notes}", "{reader: pubtator, path: twice.txt}"
    )
    assert "note id 1 is already used at" in one_sentence(place, "run", "study.yaml")


@pytest.mark.parametrize("length", ["0", "513", "many"])
def test_an_invalid_prompt_length_is_reported(place, length):
    change(place / "study.yaml", "prompt_length: 4", f"prompt_length: {length}")
    for command in ("plan", "run"):
        sentence = one_sentence(place, command, "study.yaml")
        assert sentence.startswith("study.yaml:9:")
        assert "is not a whole number from 1 to 512" in sentence


def test_a_backbone_without_weights_is_reported(place):
    sentence = one_sentence(place, "run", "study.yaml")
    assert "backbone" in sentence and "has no weights" in sentence


def test_truncated_or_misshapen_weights_are_reported_before_ray_starts(place):
    tiny_checkpoint("bert", place / "backbone")
    config = place / "backbone" / "config.json"
    whole = config.read_text()
    config.write_text(json.dumps(json.loads(whole) | {"intermediate_size": 40}))
    sentence = one_sentence(place, "run", "study.yaml")
    assert sentence.startswith("backbone folder backbone: ") and "does not fit the" in sentence
    config.write_text(whole)
    weights = place / "backbone" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "not a readable safetensors file" in one_sentence(place, "run", "study.yaml")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    weights.rename(place / "backbone" / "model-00002-of-00002.safetensors")
    (place / "backbone" / "model.safetensors.index.json").write_text(json.dumps(index))
    sentence = one_sentence(place, "run", "study.yaml")
    assert "its shard model-00001-of-00002.safetensors is missing" in sentence


def test_unwritable_storage_is_reported(place):
    (place / "runs").write_text("a file where a folder is wanted")
    tiny_checkpoint("bert", place / "backbone")
    assert "cannot be written to" in one_sentence(place, "run", "study.yaml")


def test_a_truncated_ledger_record_is_reported_and_left_unchanged(place):
    key = "ab" * 32
    record = place / "runs" / "tiny" / "ledger" / "ab" / f"{key}.json"
    record.parent.mkdir(parents=True)
    record.write_text(f'{{"adapter_bytes": 1234, "key": "{key[:20]}')
    tiny_checkpoint("bert", place / "backbone")
    sentence = one_sentence(place, "run", "study.yaml")
    assert f"{key}.json: is not a whole record" in sentence and "remove it" in sentence
    run = call("report", "study.yaml", "--json", folder=place)
    assert (run.returncode, run.stderr.strip()) == (2, sentence)
    assert json.loads(run.stdout)["done"] == 0


def test_a_question_too_long_for_the_window_is_reported_before_ray_starts(place):
    tiny_checkpoint("bert", place / "backbone")  # it has 64 positions
    change(place / "study.yaml", "frozen_soft_prompt", "hard_prompt")
    change(place / "study.yaml", ", prompt_length: 4", "")
    change(place / "study.yaml", "window: 32", "window: 60")
    sentence = one_sentence(place, "run", "study.yaml")
    assert sentence.startswith("brat/tiny/hard_prompt: a window of 60 pieces, a question of")
    assert "set window to" in sentence


def test_leaking_folds_stop_a_run_before_it_starts(place, monkeypatch, capsys):
    """The check does not trust the folds' source; these folds let a scored note choose the epoch."""
    tiny_checkpoint("bert", place / "backbone")

    def leaking(*arguments):
        folds = make_folds(*arguments)
        scored = folds.split(0).scored[0]
        return replace(folds, validation=((*folds.validation[0], scored), *folds.validation[1:]))

    monkeypatch.setattr("raymrc.study.notes.make_folds", leaking)
    monkeypatch.chdir(place)
    before = tree(place)
    assert main(["run", "study.yaml"]) == 2
    assert "is in validation and scored of fold 0" in capsys.readouterr().err
    assert tree(place) == before


def test_plan_and_run_refuse_too_many_folds(place):
    for command in ("plan", "run"):
        (place / "backbone" / "model.safetensors").write_bytes(b"")
        sentence = one_sentence(place, command, "study.yaml", "--set", "folds.count=9")
        assert "cannot fill 9 folds" in sentence


def count_calls(command: Callable[[], object], *functions: Callable) -> list[int]:
    """Count the calls of each function during a command, whatever name it is imported under."""
    counts = {function.__code__: 0 for function in functions}

    def count(frame, event, _argument):
        if event == "call" and frame.f_code in counts:
            counts[frame.f_code] += 1

    sys.setprofile(count)
    try:
        command()
    finally:
        sys.setprofile(None)
    return [counts[function.__code__] for function in functions]


@pytest.mark.parametrize("command", ["plan", "status", "report", "run"])
def test_a_command_builds_folds_and_questions_once(place, command, monkeypatch):
    tiny_checkpoint("bert", place / "backbone")
    monkeypatch.chdir(place)
    run = {
        "run": lambda: prepare_study(Path("study.yaml"), None),
    }.get(command, lambda: main([command, "study.yaml"]))
    assert count_calls(run, make_folds, build_questions, read_corpus) == [1, 1, 1]


# --- command by command ---------------------------------------------------------------------------


def test_validate_prints_counts_and_lists_problems_as_json(place):
    run = call("validate", "notes", "--reader", "brat", folder=place)
    assert (run.returncode, run.stderr) == (0, "")
    assert "spans  12" in run.stdout
    change(place / "notes" / "note1.ann", "T2\tDrug", "T1\tDrug")
    run = call("validate", "notes", "--reader", "brat", "--json", folder=place)
    assert (run.returncode, run.stderr) == (2, "")
    answer = json.loads(run.stdout)
    assert (answer["notes"], answer["spans"]) == (6, 11)
    assert [problem["line"] for problem in answer["problems"]] == [2]


def test_synthesize_is_deterministic_and_validate_accepts_its_notes(place):
    for scheme in ("n2c2-2018", "n2c2-2022"):
        for out in ("one", "two"):
            run = call("synthesize", scheme, f"{scheme}/{out}", "--notes", "5", folder=place)
            assert run.returncode == 0, run.stderr
        assert tree(place / scheme / "one") == tree(place / scheme / "two")
        run = call("validate", f"{scheme}/one", "--reader", scheme, "--json", folder=place)
        assert json.loads(run.stdout)["problems"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("n2c2-2018", "notes"),  # this folder is not empty
        ("n2c2-2018", "study.yaml"),
        ("n2c2-2018", "study.yaml/out"),
        ("n2c2-2019", "out"),
        ("n2c2-2018", "out", "--notes", "0"),
        ("n2c2-2018", "out", "--site", "c"),
    ],
)
def test_synthesize_refuses_invalid_arguments_in_one_sentence(place, arguments):
    one_sentence(place, "synthesize", *arguments)


def test_plan_prints_a_table_or_json_and_creates_no_storage(place):
    table = call("plan", "study.yaml", folder=place)
    assert table.returncode == 0, table.stderr
    assert "brat/tiny/frozen_soft_prompt" in table.stdout
    answer = json.loads(call("plan", "study.yaml", "--json", folder=place).stdout)
    assert (answer["configurations"], answer["fold_runs"], answer["notes"]) == (1, 2, 6)
    assert not (place / "runs").exists()


def test_plan_estimates_costs_from_local_notes(place):
    answer = json.loads(call("plan", "study.yaml", "--json", folder=place).stdout)
    for part in (answer, *answer["cells"]):
        for name in ("device_seconds", "usd", "peak_memory_bytes"):
            low, high = part[f"{name}_interval"]
            assert 0 < low < part[name] < high
    assert answer["fold_runs_done"] is None
    machines = ("--instances", "c7i.4xlarge=2")
    answer = json.loads(call("plan", "study.yaml", "--json", *machines, folder=place).stdout)
    assert answer["on_cluster"]["cluster"] == "2 x c7i.4xlarge"
    assert answer["on_cluster"]["usd_spot"] < answer["on_cluster"]["usd_on_demand"]


def test_unsuitable_instances_and_missing_price_tables_are_reported(place):
    sentence = one_sentence(place, "plan", "study.yaml", "--instances", "g5.xlage=2")
    assert "no instance type 'g5.xlage'; did you mean 'g5.xlarge'?" in sentence
    sentence = one_sentence(place, "plan", "study.yaml", "--instances", "g5.xlarge=2")
    assert "the study asks for no GPU" in sentence
    sentence = one_sentence(place, "plan", "study.yaml", "--prices", "mine.yaml")
    assert sentence.startswith("mine.yaml: file not found")


def test_a_probe_needs_notes_and_weights(place):
    assert "has no weights" in one_sentence(place, "plan", "study.yaml", "--probe")
    tiny_checkpoint("bert", place / "backbone")
    change(place / "study.yaml", "path: notes", "path: not/there")
    assert "--probe trains on" in one_sentence(place, "plan", "study.yaml", "--probe")


def test_status_writes_nothing(place):
    before = tree(place)
    run = call("status", "study.yaml", "--json", folder=place)
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert (answer["fold_runs"], answer["fold_runs_done"], answer["is_running"]) == (2, 0, False)
    assert answer["budget"] is None and answer["spent"]["device_seconds"] == 0
    run = call("status", "study.yaml", "--set", "budget.wall_hours=2", folder=place)
    assert run.returncode == 0 and "tiny: not started" in run.stdout and "2 h" in run.stdout
    change(place / "study.yaml", "path: notes", "path: not/there")
    run = call("status", "study.yaml", folder=place)
    assert (
        run.returncode == 0
        and "the end is unknown: the notes are not on this machine" in run.stdout
    )
    change(place / "study.yaml", "path: not/there", "path: notes")
    assert tree(place) == before


def test_invalid_budgets_and_truncated_journals_are_reported(place):
    sentence = one_sentence(place, "run", "study.yaml", "--set", "budget.usd=5")
    assert "device time has no price; set prices.device_hour_usd" in sentence
    sentence = one_sentence(place, "plan", "study.yaml", "--set", "budget.gpu_hours=-1")
    assert "gpu_hours: -1 is not a number above 0" in sentence
    spend = place / "runs" / "tiny" / "spend"
    spend.mkdir(parents=True)
    (spend / "ab.json").write_text('{"began": 3')
    sentence = one_sentence(place, "status", "study.yaml")
    assert "ab.json: is not a journal entry" in sentence


def test_plan_remarks_on_costs_above_the_budget(place):
    arguments = ("plan", "study.yaml", "--json", "--set")
    enough = call(*arguments, "budget.gpu_hours=9", folder=place)
    assert "budget" not in " ".join(json.loads(enough.stdout)["remarks"])
    little = call(*arguments, "budget.gpu_hours=0.00001", folder=place)
    assert json.loads(little.stdout)["remarks"][-1].endswith("but the budget is 0.036 s")


def test_report_considers_only_configurations_of_the_current_study(place):
    """Configurations of an earlier version stay in the ledger, but they cannot win."""
    tiny_checkpoint("bert", place / "backbone")
    spec = load_spec(place / "study.yaml", [f"corpus.path={place / 'notes'}"])
    backbone = Backbone("tiny", "backbone")
    weights = {"tiny": weights_fingerprint(place / "backbone")}
    plan = plan_of(spec, read_study_corpus(spec), weights)
    ledger = Ledger(str(place / "runs" / "tiny"))
    (cell,) = plan.cells
    (now,) = cell.configurations
    assert now.cell.backbone == backbone
    for configuration, f1 in ((now, 0.4), (replace(now, epochs=50), 0.9)):
        for fold in (0, 1):
            run = fold_run(configuration, fold, plan.fingerprints)
            ledger.record(Record(key=run.key, fold_run=run, validation_f1=f1))
    answer = json.loads(call("report", "study.yaml", "--json", folder=place).stdout)
    assert answer["done"] == 2
    assert answer["cells"][0]["winner"] == now.id
    assert answer["conclusions"]["equivalence"] == 0.01
    assert [winner["cell"] for winner in answer["conclusions"]["winners"]] == [cell.cell.name]


def test_sync_without_fold_runs_writes_nothing(place):
    before = tree(place)
    run = call("sync", "study.yaml", folder=place)
    assert run.returncode == 0 and "holds no fold-run yet" in run.stderr
    assert tree(place) == before


def test_score_refuses_options_of_the_other_scheme(place):
    for option in (["--labeled-args", "Drug"], ["--criteria", "exact"]):
        sentence = one_sentence(place, "score", "notes", "notes", "--scheme", "n2c2-2018", *option)
        assert "are for n2c2-2022" in sentence


def test_the_set_option_overrides_the_study_file(place):
    lengths = "strategies.frozen_soft_prompt.prompt_length=[4, 8, 16]"
    run = call("plan", "study.yaml", "--json", "--set", lengths, folder=place)
    assert json.loads(run.stdout)["configurations"] == 3
    sentence = one_sentence(place, "plan", "study.yaml", "--set", "folds.cuont=3")
    assert sentence.startswith("--set folds.cuont=3: ") and "'count'" in sentence


def test_a_missing_initial_prompt_stops_a_run_before_it_starts(place):
    starts = "strategies.frozen_soft_prompt.prompt_initialisation=adapter"
    sentence = one_sentence(
        place, "run", "study.yaml", "--set", starts, "--set", "initial_prompt=not/there"
    )
    assert sentence == "not/there: there is no adapter"
    assert not (place / "runs").exists()


def test_an_initial_prompt_trained_on_a_scored_note_stops_a_run_before_it_starts(place):
    tiny_checkpoint("bert", place / "backbone")
    (note, *_) = read_corpus(place / "notes", "brat").notes
    write_prompt(place / "prompt", notes=[*note_marks(note)])
    starts = "strategies.frozen_soft_prompt.prompt_initialisation=adapter"
    sentence = one_sentence(
        place, "run", "study.yaml", "--set", starts, "--set", "initial_prompt=prompt"
    )
    assert (
        f"was trained on 1 of the notes that the study scores, by text or by group ({note.id})"
        in sentence
    )
    assert not (place / "runs").exists()


def test_held_out_notes_that_also_occur_at_a_site_stop_a_run_before_it_starts(place):
    tiny_checkpoint("bert", place / "backbone")
    site = "{synthetic: {scheme: n2c2-2018, notes: 3}, name: there}"
    changes = [f"transfer=[{site}]", f"final_test={{corpus: {site}}}", "corpus.labels=[Drug]"]
    sentence = one_sentence(
        place, "run", "study.yaml", *(part for c in changes for part in ("--set", c))
    )
    assert "3 notes of there are held out for the final test, too" in sentence
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    ("where", "seen_by"),
    [("transfer", "corpus"), ("transfer", "initial prompt"), ("final_test", "initial prompt")],
)
def test_training_on_a_note_of_another_scored_corpus_stops_a_run_before_it_starts(
    place, where, seen_by
):
    """Notes are compared by text: a new name and a new annotator do not make a new note."""
    tiny_checkpoint("bert", place / "backbone")
    text, lines = NOTES["note2"]
    if seen_by == "initial prompt":
        text = f"Seen elsewhere. {text}"
        (note,) = (replace(n, text=text) for n in read_corpus(place / "notes", "brat").notes[:1])
        write_prompt(place / "prompt", notes=[*note_marks(note)])
        lines = "T1\tDrug 21 28\taspirin\n"
    write_notes(place / "there", {"other": (text, lines)})
    site = "{reader: brat, path: there, name: there}"
    changes = [f"transfer=[{site}]" if where == "transfer" else f"final_test={{corpus: {site}}}"]
    if seen_by == "initial prompt":
        changes += [
            "strategies.frozen_soft_prompt.prompt_initialisation=adapter", "initial_prompt=prompt",
        ]  # fmt: skip
    sentence = one_sentence(
        place, "run", "study.yaml", *(part for c in changes for part in ("--set", c))
    )
    messages = {
        "corpus": "1 notes of there are in the study's corpus, too, by text or by group (other)",
        "initial prompt": "was trained on 1 of the notes that the study scores, by text or by group (other)",
    }
    assert messages[seen_by] in sentence
    assert not (place / "runs").exists()


def test_plan_works_without_notes_and_remarks_on_what_is_unknown(place):
    change(place / "study.yaml", "path: notes", "path: not/there")
    run = call("plan", "study.yaml", "--json", folder=place)
    assert run.returncode == 0
    assert json.loads(run.stdout)["remarks"][0].startswith("the corpus was not read")


def test_an_unknown_command_and_a_missing_argument_return_exit_code_2(capsys):
    assert main(["plann"]) == 2
    assert "Did you mean 'plan'?" in capsys.readouterr().err
    assert main(["plan"]) == 2


def test_a_crash_report_shows_code_locations_but_no_values(capsys, monkeypatch):
    def broken(path, overrides):
        text = "MR SECRET TOOK ASPIRIN"
        try:
            raise KeyError(text)
        except KeyError as error:
            raise ValueError(f"could not read {text}") from error

    monkeypatch.setattr("raymrc.study.load.load_spec", broken)
    assert main(["plan", "anything.yaml"]) == 1
    output = capsys.readouterr().err
    assert "SECRET" not in output and "ASPIRIN" not in output
    assert "ValueError" in output and "KeyError" in output and "please report" in output
    assert "test_cli.py" in output


def test_describing_a_cyclic_chain_of_errors_terminates():
    first, second = ValueError("a"), KeyError("b")
    first.__context__, second.__context__ = second, None
    assert describe_bug(first).count("raised through") == 2


def test_an_interrupted_command_returns_exit_code_130(monkeypatch):
    def interrupted(path, overrides):
        raise KeyboardInterrupt

    monkeypatch.setattr("raymrc.study.load.load_spec", interrupted)
    assert main(["plan", "anything.yaml"]) == 130


def test_python_m_raymrc_runs_the_command_line():
    assert "Usage: raymrc" in raymrc("--help", folder=ROOT).stdout


def test_simulate_replays_the_grid_of_a_ledger_and_refuses_an_empty_ledger(tmp_path, capsys):
    assert main(["simulate", str(tmp_path)]) == 2
    assert "nothing can be raced" in capsys.readouterr().err
    ledger = Ledger(str(tmp_path))
    for rate, value in ((1e-4, 0.3), (1e-3, 0.6)):
        for fold in range(2):
            done = record(fold, learning_rate=rate, validation_f1=value)
            ledger.record(replace(done, epochs=(Epoch(1, 0.1, value, 1.0),)))
    assert main(["simulate", str(tmp_path), "--json", "--orders", "2"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [line["same_winner"] for line in answer] == [1.0, 1.0, 1.0]
    assert main(["simulate", str(tmp_path), "--orders", "2"]) == 0
    table = capsys.readouterr().out
    assert "Savings by racing" in table and "winner" in table and "100 %" in table


def test_simulate_can_invent_grids_before_any_training(place, capsys):
    assert main(["simulate", str(place / "study.yaml"), "--made-up", "1"]) == 2
    assert "no cell has two configurations; nothing can be raced" in capsys.readouterr().err
    text = (place / "study.yaml").read_text()
    (place / "study.yaml").write_text(text.replace("2.0e-2", "[0.01, 0.02, 0.04]"))
    assert main(["simulate", str(place / "study.yaml"), "--made-up", "2", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [line["error_rate"] for line in answer] == [0.01, 0.05, 0.2]
    assert all((line["configurations"], line["replays"]) == (3, 8) for line in answer)
    assert all(line["saving"] >= 1.0 for line in answer)
    assert main(["simulate", str(place), "--made-up", "1"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_report_names_the_abandoned_cell_and_how_to_retry_it(place):
    tiny_checkpoint("bert", place / "backbone")
    rates = "strategies.frozen_soft_prompt.learning_rate=[0.01, 0.02, 0.03, 0.04]"
    spec = load_spec(place / "study.yaml", [f"corpus.path={place / 'notes'}", rates])
    weights = {"tiny": weights_fingerprint(place / "backbone")}
    plan = plan_of(spec, read_study_corpus(spec), weights)
    ledger = Ledger(str(place / "runs" / "tiny"))
    for minute, configuration in enumerate(plan.cells[0].configurations[:3]):
        run = fold_run(configuration, 0, plan.fingerprints)
        at = f"2026-01-01T00:0{minute}:00+00:00"
        ledger.record(
            Record(key=run.key, fold_run=run, status="failed", reason="it is ill", started_at=at)
        )
    for most, is_named in (("3", True), ("4", False), ("null", False)):
        options = ("--set", rates, "--set", f"failures.close_cell_after={most}")
        output = call("report", "study.yaml", *options, folder=place).stderr
        assert "3 fold-runs failed: it is ill" in output
        assert ("abandoned after 3 consecutive failing configurations" in output) is is_named
        assert (
            "5 fold-runs were not begun, rerun 'raymrc run' to retry them" in output
        ) is is_named


def test_a_run_names_the_abandoned_cell_at_its_end(place, capsys, monkeypatch):
    from raymrc.cli.run import end_run
    from raymrc.scheduling.state import StudyOutcome

    monkeypatch.setattr("raymrc.tracking.how_to_open", lambda *where: "there")
    outcome = StudyOutcome(
        40, 5, 0, 6, False, 9.0, (("it is ill", 6),), closed=(("notes/x/y", 29),)
    )
    with pytest.raises(typer.Exit) as ended:
        end_run(load_spec(place / "study.yaml"), outcome)
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err.splitlines() == [
        "all runs: there",
        "6 of 40 fold-runs failed: it is ill",
        "notes/x/y: abandoned after 5 consecutive failing configurations (failures.close_cell_after); 29 of "
        "its fold-runs were not begun",
        "the ledger has the other fold-runs; rerun the same command to retry the failed ones",
    ]
