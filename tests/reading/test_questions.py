from __future__ import annotations

import pytest

from raymrc.corpora.formats import READERS, known_labels, read_corpus
from raymrc.corpora.labels import DRUG_ADE_LABELS
from raymrc.errors import RaymrcError
from raymrc.reading.questions import (
    LABEL_QUESTIONS,
    SHAC_ARGUMENT_QUESTIONS,
    build_questions,
    default_questions,
    questions_fingerprint,
)
from tests.paths import SHARED, needs_shared


@pytest.mark.parametrize("reader", [name for name, row in READERS.items() if row.labels])
def test_every_label_of_a_format_has_a_question(reader):
    labels = known_labels(reader)
    assert labels and set(labels) == set(LABEL_QUESTIONS[reader])
    assert default_questions(labels) == {label: LABEL_QUESTIONS[reader][label] for label in labels}


@needs_shared
@pytest.mark.parametrize(
    ("folder", "reader"), [("maccrobat2020", "maccrobat"), ("bc5cdr", "pubtator")]
)
def test_every_label_of_a_public_corpus_has_a_question(folder, reader):
    labels = read_corpus(SHARED / "corpora" / folder, reader).labels
    table = LABEL_QUESTIONS["bc5cdr" if reader == "pubtator" else reader]
    assert set(labels) == set(table)
    assert default_questions(labels) == {label: table[label] for label in labels}


def test_the_common_label_set_uses_the_drug_ade_questions():
    assert default_questions(DRUG_ADE_LABELS) == LABEL_QUESTIONS["drug-ade"]


@pytest.mark.parametrize("table", LABEL_QUESTIONS)
def test_questions_of_a_label_set_are_well_formed_and_all_different(table):
    questions = list(LABEL_QUESTIONS[table].values())
    assert len(set(questions)) == len(questions)
    for question in questions:
        assert question[0].isupper() and question.endswith("?") and 4 <= len(question.split()) <= 25


def test_the_drug_question_depends_on_the_other_labels():
    assert "medications" in default_questions(["Drug", "Strength"])["Drug"]
    assert "illicit" in default_questions(["Drug", "Tobacco"])["Drug"]
    assert "medications" in default_questions(["Drug"])["Drug"]


def test_the_29_trigger_arguments_have_different_questions():
    assert len(SHAC_ARGUMENT_QUESTIONS) == len(set(SHAC_ARGUMENT_QUESTIONS.values())) == 29
    assert {name for pair in SHAC_ARGUMENT_QUESTIONS for name in pair} == set(
        LABEL_QUESTIONS["n2c2-2022"]
    )


@pytest.mark.parametrize(
    ("label", "words"),
    [("Lab_result", "lab result"), ("StatusOfPet", "status of pet"), ("XYZ", "XYZ"), ("---", "---"),
     ("Treatment.Goal2", "treatment goal2")],
)  # fmt: skip
def test_the_question_for_an_unknown_label_uses_its_name(label, words):
    assert default_questions([label, "Drug"])[label] == f"Which words mention {words}?"


def test_questions_of_a_study_override_defaults_and_labels_keep_their_order():
    questions = build_questions(["ADE", "Drug"], {"Drug": "What was taken?"})
    assert list(questions) == ["ADE", "Drug"]
    assert questions["Drug"] == "What was taken?"
    assert questions["ADE"] == default_questions(["ADE", "Drug"])["ADE"]


def test_all_bad_questions_are_reported_in_one_error():
    with pytest.raises(RaymrcError) as error:
        build_questions(["Drug", "ADE"], {"Durg": "What?", "ADE": " "})
    assert str(error.value).splitlines() == [
        "questions: the corpus has no label 'Durg'; did you mean 'Drug'?",
        "questions: the question for 'ADE' is empty; give it some words",
    ]


def test_the_fingerprint_depends_on_the_wording_but_not_on_the_order():
    first, second = {"Drug": "What?", "ADE": "Why?"}, {"ADE": "Why?", "Drug": "What?"}
    assert questions_fingerprint(first) == questions_fingerprint(second)
    assert questions_fingerprint(first) != questions_fingerprint({**first, "ADE": "Why so?"})
    assert len(questions_fingerprint(first)) == 64
