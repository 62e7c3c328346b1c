"""Promise: a note's text never leaves the notes: not into output, MLflow, the ledger or Ray's logs.

Nobody would notice a failure: with one helpful `{text!r}` in a message, or one library that logs its
arguments, everything still works.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from raymrc.model.adapters import read_adapter
from tests.commands import STUDY, raymrc, write_notes
from tests.model.tiny import tiny_checkpoint
from tests.paths import ROOT

MARKER = "Zqxmarkerqxz"
TEXT = f"{MARKER} took aspirin daily for pain. {MARKER}ine was given after warfarin.\n"
LINES = "".join(
    f"T{number}\tDrug {TEXT.index(word)} {TEXT.index(word) + len(word)}\t{word}\n"
    for number, word in enumerate(("aspirin", f"{MARKER}ine", "warfarin"), 1)
)

# The fold-run fails in the worst way: its exception and the exception's cause both contain the text.
LEAKY = """
import sys

import raymrc.training.trainer
from raymrc.cli import main


class LeakyPool:
    def __init__(self, text):
        self.text = text

    def __len__(self):
        return 0

    def tokens(self, key):
        return 0

    def open(self, fold_run, state=None):
        try:
            {}[self.text]
        except KeyError as error:
            raise ValueError(f"cannot read {self.text}") from error


class LeakyTrainer:
    def __init__(self, *settings):
        pass

    def open_pool(self, backbone, data, ranks=None):
        return LeakyPool(data.corpus.notes[0].text)


if __name__ == "__main__":
    import leaky

    raymrc.training.trainer.Trainer = leaky.LeakyTrainer
    sys.exit(main(["run", "study.yaml", "--set", "storage=runs/leaky"]))
"""


def holds_marker(content: bytes) -> bool:
    return MARKER.lower().encode() in content.lower().replace(b"\0", b"")


def files_with_marker(*folders: Path) -> list[str]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if holds_marker(path.read_bytes())]


@pytest.fixture
def place():
    """A short path: Ray puts sockets below it, whose paths may have at most 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="raymrc-privacy-"))
    (folder / "tmp").mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.mark.ray
@pytest.mark.slow
def test_a_study_leaves_no_text_of_its_notes_outside_the_notes(place):
    lines = f"{LINES}R1\tBeside Arg1:T1 Arg2:T2\n"
    notes = {f"note{number}": (f"{TEXT}Visit {number}.\n", lines) for number in range(1, 9)}
    write_notes(place / "notes", notes)
    tiny_checkpoint("bert", place / "backbone", num_layers=2)
    study = STUDY.replace("task: concepts", "task: end_to_end")
    (place / "study.yaml").write_text(f"{study}final_test: {{share: 0.25, seeds: [1]}}\n")
    (place / "leaky.py").write_text(LEAKY)
    environment = {
        "RAY_TMPDIR": str(place / "tmp"),
        "TMPDIR": str(place / "tmp"),
        "PYTHONPATH": f"{place}:{ROOT}",
    }
    assert holds_marker(
        (place / "notes" / "note1.txt").read_bytes()
    )  # otherwise the search below proves nothing

    commands = [
        ["validate", "notes", "--reader", "brat"],
        ["plan", "study.yaml"],
        ["run", "study.yaml"],
        ["test", "study.yaml"],
        ["report", "study.yaml", "--json"],
        ["report", "study.yaml", "--html", "runs/page"],
        ["export", "study.yaml", "--csv", "runs/csv", "--parquet", "runs/parquet"],
        ["sync", "study.yaml"],
    ]
    answers = {}
    for command in commands:
        run = raymrc(*command, folder=place, environment=environment)
        assert run.returncode == 0, (command, run.stderr)
        assert not holds_marker((run.stdout + run.stderr).encode()), command
        answers[" ".join(command)] = run.stdout
    report = json.loads(answers["report study.yaml --json"])
    assert (report["done"], report["failed"]) == (2, 0)
    (tested,) = report["final_test"]
    assert tested["seeds"] == [1]
    # The study exports predictions on held-out notes as brat, and brat contains the text.
    predictions = place / "runs" / "tiny" / "predictions"
    assert len(list(predictions.rglob("note*.txt"))) == 2
    shutil.rmtree(predictions)
    (adapter,) = (place / "runs" / "tiny" / "adapters").rglob("adapter.safetensors")
    assert "Drug" in read_adapter(adapter).labels

    failed = raymrc(folder=place, environment=environment, program=["leaky.py"])
    assert failed.returncode == 1, failed.stderr
    assert "2 of 2 fold-runs failed: builtins.ValueError at" in failed.stderr
    assert not holds_marker((failed.stdout + failed.stderr).encode())

    assert (place / "runs" / "tiny" / "mlflow.db").is_file()
    assert len(list((place / "runs").rglob("ledger/*/*.json"))) == 5
    assert len(list((place / "tmp" / "ray").glob("session_*/logs/worker-*"))) > 2
    assert files_with_marker(place / "runs", place / "tmp") == []


BROKEN = {
    "offsets past the end": (TEXT, "T1\tDrug 0 5000\taspirin\n"),
    "offsets of another word": (TEXT, f"T1\tDrug 0 {len(MARKER)}\taspirin\n"),
    "another text column": (TEXT, f"T1\tDrug 18 25\t{MARKER}\n"),
    "no offsets": (TEXT, f"T1\tDrug {MARKER} 25\taspirin\n"),
    "the note itself": (TEXT, TEXT),
    "no tab": (TEXT, f"T1 Drug 18 25 {MARKER}\n"),
    "an attribute of nothing": (TEXT, f"A1\tStatus T9 {MARKER}\n"),
    "a relation of nothing": (TEXT, LINES + "R1\tDrug-Drug Arg1:T1 Arg2:T9\n"),
    "an event without a role": (TEXT, f"E1\tDrug:T1 {MARKER}\n"),
    "an empty span": (TEXT, "T1\tDrug 18 18\t\n"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_an_error_about_a_broken_note_does_not_quote_it(broken, tmp_path, capsys, monkeypatch):
    from raymrc.cli import main

    monkeypatch.chdir(tmp_path)
    write_notes(tmp_path / "notes", {"note1": BROKEN[broken], "note2": (TEXT, LINES)})
    (tmp_path / "study.yaml").write_text(STUDY)
    for command in (
        ["validate", "notes", "--reader", "brat"],
        ["validate", "notes", "--reader", "brat", "--json"],
        ["plan", "study.yaml"],
        ["run", "study.yaml"],
    ):
        assert main(command) == 2
        output = capsys.readouterr()
        assert "note1.ann" in output.out + output.err
        assert not holds_marker((output.out + output.err).encode())


@pytest.mark.parametrize(
    ("reader", "name", "content"),
    [
        ("pubtator", "notes.txt", f"1|t|{TEXT}1|a|{TEXT}1\t0\t9000\t{MARKER}\tDrug\tD1\n"),
        ("pubtator", "notes.txt", f"1|t|{TEXT}{TEXT}"),
        ("pubtator", "notes.txt", f"1|t|{TEXT}1|a|{TEXT}1\t{MARKER}\t9\taspirin\tDrug\tD1\n"),
        (
            "phee",
            "json/train.json",
            f'{{"id": "1", "context": "{MARKER}", "annotations": [{{}}]}}\n',
        ),
        ("phee", "json/train.json", f'{{"id": "1", "context": "{MARKER} took\n'),
        ("phee", "json/train.json", f'["{MARKER}"]\n'),
        ("brat", "notes.txt", TEXT),
    ],
)
def test_an_error_about_a_broken_file_does_not_quote_it(reader, name, content, tmp_path, capsys):
    from raymrc.cli import main

    path = tmp_path / "corpus" / name
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="utf-8")
    for options in ([], ["--json"]):
        assert main(["validate", str(tmp_path / "corpus"), "--reader", reader, *options]) == 2
        output = capsys.readouterr()
        assert not holds_marker((output.out + output.err).encode())


def test_an_error_about_a_note_that_is_not_utf_8_gives_the_byte_position(tmp_path, capsys):
    from raymrc.cli import main

    write_notes(tmp_path / "notes", {"note1": (TEXT, LINES)})
    (tmp_path / "notes" / "note1.txt").write_bytes(TEXT.encode() + b"\xff" + TEXT.encode())
    assert main(["validate", str(tmp_path / "notes"), "--reader", "brat"]) == 2
    output = capsys.readouterr().err
    assert f"byte {len(TEXT)}" in output
    assert not holds_marker(output.encode())


def test_the_marker_search_detects_an_unguarded_leak(tmp_path):
    """This is the positive control: Python's own traceback of the same failure does quote the note."""
    code = f"text = {TEXT!r}\ntry:\n    {{}}[text]\nexcept KeyError as e:\n    raise ValueError(text) from e"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert holds_marker(run.stderr)
