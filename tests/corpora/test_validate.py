"""Promise: `validate_corpus` reports what would stop reading, and other problems as warnings.

It could break unnoticed if its rules differed from the readers', so it is compared with `read_corpus`.
"""

from __future__ import annotations

import json

import pytest

from raymrc.corpora.formats import read_corpus
from raymrc.corpora.problems import ERROR, WARNING
from raymrc.corpora.validate import validate_corpus
from raymrc.errors import CorpusError
from tests.paths import SHARED, needs_shared


def write_pair(folder, name, text, annotations):
    (folder / f"{name}.txt").write_text(text)
    (folder / f"{name}.ann").write_text(annotations)


def test_nested_crossing_equal_and_discontinuous_spans_are_counted_separately(tmp_path):
    write_pair(
        tmp_path,
        "1",
        "left arm and leg pain",
        "T1\tA 0 16\tleft arm and leg\nT2\tB 0 8\tleft arm\nT3\tC 0 8\tleft arm\n"
        "T4\tB 5 21\tarm and leg pain\nT5\tD 5 8;13 16\tarm leg\nT6\tE 17 21\tpain\n"
        "R1\tOf Arg1:T1 Arg2:T2\n",
    )
    write_pair(tmp_path, "2", "pain", "")
    counts = validate_corpus(tmp_path, "brat").counts
    assert (counts.notes, counts.spans, counts.relations) == (2, 6, 1)
    # T2, T3 and T5 in T1, T5 and T6 in T4
    assert counts.nested == 4
    assert counts.same_extent == 1
    # T1 with T4; T2 and T3 with T4 and with T5
    assert counts.crossing == 5
    assert counts.overlapping == 6
    assert counts.discontinuous == 1
    assert counts.notes_without_spans == 1
    assert counts.labels == {"A": 1, "B": 2, "C": 1, "D": 1, "E": 1}


def test_problems_that_stop_reading_are_errors_and_others_warnings(tmp_path):
    write_pair(tmp_path, "1", "aspirin", "T1\tDrug 0 7\taspirin\nT2\tDrug 0 7\taspirin\n")
    write_pair(tmp_path, "2", "", "")
    write_pair(tmp_path, "3", " aspirin\n", "")
    write_pair(tmp_path, "4", "aspirin", "")
    found = validate_corpus(tmp_path, "n2c2-2018")
    assert found.ok
    assert [p.severity for p in found.problems] == ["warning", "warning"]
    assert len(read_corpus(tmp_path, "n2c2-2018").notes) == 4
    assert (found.counts.duplicate_spans, found.counts.empty_notes) == (1, 1)
    assert found.counts.duplicate_texts == 2
    write_pair(tmp_path, "3", "aspirin", "T1\tDrug 0 8\taspirin\n")
    broken = validate_corpus(tmp_path, "n2c2-2018")
    assert not broken.ok
    with pytest.raises(CorpusError) as raised:
        read_corpus(tmp_path, "n2c2-2018")
    assert raised.value.problems == tuple(str(p) for p in broken.problems if p.severity == ERROR)
    assert len(broken.problems) == 3


def test_json_has_every_count_and_every_problem(tmp_path):
    write_pair(tmp_path, "1", "aspirin", "T1\tDrugs 0 7\taspirin\n")
    values = json.loads(validate_corpus(tmp_path, "n2c2-2018").to_json())
    assert {name: values[name] for name in ("notes", "spans", "relations", "nested")} == {
        "notes": 1,
        "spans": 1,
        "relations": 0,
        "nested": 0,
    }
    assert values["ok"] is False
    assert values["problems"] == [
        {
            "severity": "error",
            "path": f"{tmp_path}/1.ann",
            "line": 1,
            "message": "T1 has the unknown label Drugs; did you mean 'Drug'?",
        }
    ]


def test_a_missing_corpus_is_reported_as_a_problem(tmp_path):
    found = validate_corpus(tmp_path / "nowhere", "phee")
    assert found.counts.notes == 0
    assert [p.severity for p in found.problems] == ["error"]
    with pytest.raises(CorpusError, match="there is no reader 'bratt'"):
        validate_corpus(tmp_path, "bratt")


@needs_shared
@pytest.mark.parametrize(
    ("reader", "folder", "notes", "spans", "discontinuous", "warnings"),
    [
        ("phee", "phee", 3859, 18044 + 6098, 380 + 123, 15),
        ("maccrobat", "maccrobat2020", 160, 19892, 30, 0),
        ("pubtator", "bc5cdr", 1000, 18976, 0, 0),
    ],
)
def test_real_corpora_are_valid(reader, folder, notes, spans, discontinuous, warnings):
    found = validate_corpus(SHARED / "corpora" / folder, reader)
    assert found.ok
    counts = found.counts
    assert (counts.notes, counts.spans, counts.discontinuous) == (notes, spans, discontinuous)
    assert [p.severity for p in found.problems] == [WARNING] * warnings
    assert warnings == counts.duplicate_spans


@needs_shared
def test_the_case_reports_are_nested_as_their_readme_says():
    counts = validate_corpus(SHARED / "corpora" / "maccrobat2020", "maccrobat").counts
    assert (counts.nested, counts.same_extent) == (265, 91)
