"""Promise: a study takes each YAML value as the user wrote it, or a message explains why it cannot.

It would break without anyone noticing: YAML 1.1 silently reads `1e-2` as text and `no` as false, and it keeps
only the last of two equal keys.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymrc.errors import SpecError, suggest
from raymrc.study.source import read_source


def read(folder: Path, text: str, overrides: tuple[str, ...] = ()) -> dict[str, object]:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    source = read_source(path, overrides)
    if source.problems:
        raise source.error(source.problems)
    return source.values


def problem(folder: Path, text: str, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(SpecError) as caught:
        read(folder, text, overrides)
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        ("1e-2", 0.01),
        ("1.0e-2", 0.01),
        ("5E3", 5000.0),
        ("-.5", -0.5),
        ("1_000", 1000),
        ("010", 10),
        ("1:30", "1:30"),
        ("2026-01-31", "2026-01-31"),
        ("no", "no"),
        ("On", "On"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("'1e-2'", "1e-2"),
        ('"no"', "no"),
        ("1e-2x", "1e-2x"),
    ],
)
def test_scalars_are_read_by_the_rules_of_yaml_1_2(tmp_path, written, read_as):
    value = read(tmp_path, f"a: {written}")["a"]
    assert value == read_as
    assert type(value) is type(read_as)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_printed_number_reads_back_unchanged(tmp_path_factory, number):
    assert read(tmp_path_factory.getbasetemp(), f"a: {number!r}")["a"] == number


def test_a_duplicate_key_is_refused_with_both_positions(tmp_path):
    text = "a: 1\nb:\n  c: 1\n  c: 2\na: 3\n"
    assert problem(tmp_path, text).splitlines() == [
        "study.yaml:4:3: 'c' is given twice, first on line 3; keep one of them",
        "study.yaml:5:1: 'a' is given twice, first on line 1; keep one of them",
    ]


@pytest.mark.parametrize("text", ["a:\n\tb: 1\n", "a:\n  b: 1\n\tc: 2\n"])
def test_the_message_names_a_tab_in_the_indentation(tmp_path, text):
    assert "a tab in the indentation" in problem(tmp_path, text)
    assert problem(tmp_path, text).startswith("study.yaml:")


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n"])
def test_the_message_for_an_empty_file_lists_what_a_study_needs(tmp_path, text):
    assert problem(tmp_path, text).startswith("study.yaml:1:1: the file is empty; a study needs")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "study.yaml:1:1: a study file is a mapping"),
        ("a: 1\n---\nb: 2\n", "study.yaml:2:1: a second YAML document begins here"),
        ("a: !!python/name:os.system x\n", "study.yaml:1:4: tag '!!python/name:os.system'"),
        ("a: !thing x\n", "study.yaml:1:4: tag '!thing' is not supported"),
        ("a: &x [*x]\n", "study.yaml:1:4: an alias inside the value that it names"),
        ("? [1, 2]\n: 3\n", "study.yaml:1:3: a field's name cannot be a list or mapping"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "study.yaml:3:3: merging with '<<' is not supported"),
        ("a: [1, 2\n", "study.yaml:2:1: invalid YAML"),
        ("a: 'open\n", "invalid YAML"),
        ("a: \x07\n", "invalid YAML"),
    ],
)
def test_unsupported_yaml_is_refused_in_one_sentence(tmp_path, text, message):
    assert message in problem(tmp_path, text)
    assert "\n" not in problem(tmp_path, text)


def test_the_message_for_invalid_utf_8_names_the_byte(tmp_path):
    (tmp_path / "study.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(SpecError, match="byte 3 is not UTF-8"):
        read_source(tmp_path / "study.yaml")


def test_a_byte_order_mark_and_windows_line_endings_are_ignored(tmp_path):
    (tmp_path / "study.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: x\r\n")
    assert read_source(tmp_path / "study.yaml").values == {"a": 1, "b": "x"}


def test_the_message_for_a_missing_file_suggests_a_similar_name(tmp_path):
    (tmp_path / "demo.yaml").write_text("a: 1")
    with pytest.raises(SpecError, match=r"file not found; did you mean '.*demo\.yaml'"):
        read_source(tmp_path / "dem.yaml")
    with pytest.raises(SpecError, match="is a folder, not a study file"):
        read_source(tmp_path)


def test_overriding_an_alias_changes_only_one_place(tmp_path):
    values = read(tmp_path, "a: &x {n: 1}\nb: *x\n", ("a.n=2",))
    assert values == {"a": {"n": 2}, "b": {"n": 1}}


def test_overrides_apply_in_order_and_create_missing_fields(tmp_path):
    values = read(
        tmp_path, "a: {n: 1}\nl: [1, {m: 2}]\ne:\n", ("a.n=1e-2", "a.n=[1, 2]", "l.1.m=x", "e.f=0")
    )
    assert values == {"a": {"n": [1, 2]}, "l": [1, {"m": "x"}], "e": {"f": 0}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a", "--set a: use field.field=value"),
        (".a=1", "--set .a=1: use field.field=value"),
        ("a=[1", "--set a=[1: the value is invalid YAML"),
        ("l.9=1", "--set l.9=1: l is a list; '9' is not an index from 0 to 1"),
        ("n.x=1", "--set n.x=1: n is a single value and has no field 'x'"),
        ("a={b: 1, b: 2}", "'b' is given twice"),
    ],
)
def test_an_invalid_override_is_refused_with_a_reason(tmp_path, override, message):
    assert message in problem(tmp_path, "a: {b: 1}\nl: [1, 2]\nn: 1\n", (override,))


def test_a_similar_name_is_suggested_and_a_distant_one_is_not():
    assert (
        suggest("learning_rates", ["learning_rate", "epochs"]) == "; did you mean 'learning_rate'?"
    )
    assert suggest("Minilm", ["minilm"]) == "; did you mean 'minilm'?"
    assert suggest("zzz", ["b", "a"]) == "; choose from a, b"
