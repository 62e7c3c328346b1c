"""Promise: synthetic notes are the same bytes on every machine, and their offsets are exact.

Offsets could drift by one where a line is wrapped, and no score would show it, because gold and prediction
would be wrong together.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymrc.corpora.formats import read_corpus, write_corpus
from raymrc.corpora.note import Corpus, Note
from raymrc.corpora.synthetic import (
    MAX_CHARACTERS,
    MIN_CHARACTERS,
    _mark_up,
    _wrap,
    synthesize_corpus,
)
from raymrc.errors import CorpusError
from raymrc.scoring.counts import pool
from raymrc.scoring.n2c2_2018 import MODES, score_2018_folders, score_note
from raymrc.scoring.n2c2_2022 import score_2022_folders as score_events

SCHEMES = ("n2c2-2018", "n2c2-2022")
EACH = [(scheme, site) for scheme in SCHEMES for site in "ab"]


@pytest.fixture(scope="module")
def corpora() -> dict[tuple[str, str], Corpus]:
    return {(scheme, site): synthesize_corpus(scheme, 40, site, 7) for scheme, site in EACH}


def label_shares(corpus: Corpus) -> dict[str, float]:
    counts = Counter(span.label for note in corpus.notes for span in note.spans)
    return {label: counts[label] / counts.total() for label in corpus.labels}


WORDS = st.text("abcde", min_size=1, max_size=9)


@given(st.lists(st.tuples(WORDS, st.booleans()), min_size=1), st.integers(1, 30), st.integers(0, 4))
def test_marks_keep_their_text_when_lines_are_wrapped(words, width, hanging):
    marked = [f"<Drug|<Form|{word}> {word}>" if mark else word for word, mark in words]
    block = _wrap(_mark_up(" ".join(marked), ["Drug"], str), width, hanging)
    found = [
        (mark.label, " ".join(block.text[start:end] for start, end in mark.fragments))
        for mark in block.marks
    ]
    expected = [
        item
        for word, mark in words
        if mark
        for item in (("Drug", f"{word} {word}"), ("Form", word))
    ]
    assert found == expected
    assert (
        block.text.split() == " ".join(marked).replace("<Drug|<Form|", "").replace(">", "").split()
    )


def test_marks_are_related_to_the_hubs_of_their_group():
    block = _mark_up("<ADE|rash> <Reason@2|x> <Drug|a> then <Drug@2|b> <Route@2|iv>", ["Drug"], str)
    pairs = [(hub.group, other.label) for hub, other in block.relations]
    assert pairs == [("", "ADE"), ("2", "Reason"), ("2", "Route")]


def test_spans_have_no_outer_white_space_and_no_line_ends(corpora):
    for corpus in corpora.values():
        for note in corpus.notes:
            for span in note.spans:
                for start, end in span.fragments:
                    under = note.text[start:end]
                    assert under == under.strip() and under and "\n" not in under


def test_dosages_contain_numbers(corpora):
    for site in "ab":
        for note in corpora["n2c2-2018", site].notes:
            for span in note.spans:
                if span.label in ("Dosage", "Strength"):
                    assert any(c.isdigit() for c in note.text[span.start : span.end])


@pytest.mark.parametrize(("scheme", "site"), EACH)
def test_every_label_and_every_relation_label_occurs_in_forty_notes(corpora, scheme, site):
    corpus = corpora[scheme, site]
    assert {span.label for note in corpus.notes for span in note.spans} == set(corpus.labels)
    relations = {relation.label for note in corpus.notes for relation in note.relations}
    assert relations == set(corpus.relation_labels)


@pytest.mark.parametrize(("scheme", "site"), EACH)
def test_notes_are_neither_short_nor_long(corpora, scheme, site):
    assert all(
        MIN_CHARACTERS <= len(note.text) <= MAX_CHARACTERS for note in corpora[scheme, site].notes
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_sites_differ_in_label_prior(corpora, scheme):
    a, b = (label_shares(corpora[scheme, site]) for site in "ab")
    # Total variation between two samples of one site is about 0.05.
    assert sum(abs(a[label] - b[label]) for label in a) / 2 > 0.1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_sites_differ_in_style(corpora, scheme):
    def capitals(note: Note) -> float:
        return sum(c.isupper() for c in note.text) / len(note.text)

    a, b = ([capitals(note) for note in corpora[scheme, site].notes] for site in "ab")
    assert sum(a) / len(a) > 1.5 * sum(b) / len(b)


def test_notes_have_nested_spans_and_spans_over_line_ends(corpora):
    for corpus in (corpora["n2c2-2018", "a"], corpora["n2c2-2018", "b"]):
        spans = [(note.id, span) for note in corpus.notes for span in note.spans]
        assert any(span.is_discontinuous for _, span in spans)
        assert any(
            outer.label != inner.label and outer.start <= inner.start and inner.end <= outer.end
            for name, outer in spans
            for again, inner in spans
            if name == again and outer is not inner
        )


def test_a_symptom_is_sometimes_a_reason_and_sometimes_an_adverse_effect(corpora):
    words: dict[str, set[str]] = {}
    for note in corpora["n2c2-2018", "a"].notes + corpora["n2c2-2018", "b"].notes:
        for span in note.spans:
            words.setdefault(note.text[span.start : span.end].lower(), set()).add(span.label)
    assert sum({"ADE", "Reason"} <= labels for labels in words.values()) >= 10


def test_some_patients_have_two_notes_and_share_a_group(corpora):
    for corpus in corpora.values():
        sizes = Counter(note.group for note in corpus.notes)
        assert set(sizes.values()) == {1, 2}
        assert all(note.id.startswith(note.group) for note in corpus.notes)


def test_a_longer_corpus_begins_with_the_shorter_one():
    short, long = (
        synthesize_corpus("n2c2-2018", 5, "a", 3),
        synthesize_corpus("n2c2-2018", 9, "a", 3),
    )
    assert long.notes[:5] == short.notes


def test_another_seed_writes_other_notes():
    assert (
        synthesize_corpus("n2c2-2022", 1, "b", 1).notes
        != synthesize_corpus("n2c2-2022", 1, "b", 2).notes
    )


def test_a_fresh_interpreter_with_another_hash_seed_writes_the_same_bytes():
    program = (
        "from raymrc.corpora.synthetic import synthesize_corpus\n"
        f"print(*(synthesize_corpus(x, 6, y, 11).fingerprint for x, y in {EACH!r}))"
    )
    expected = [synthesize_corpus(scheme, 6, site, 11).fingerprint for scheme, site in EACH]
    for hash_seed in ("0", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True
        )
        assert done.stdout.split() == expected, done.stderr


@pytest.mark.parametrize(("scheme", "site"), EACH)
def test_synthetic_notes_survive_writing_and_reading(corpora, scheme, site, tmp_path):
    write_corpus(corpora[scheme, site], tmp_path / "notes", scheme)
    assert read_corpus(tmp_path / "notes", scheme).fingerprint == corpora[scheme, site].fingerprint


@pytest.mark.parametrize("site", "ab")
def test_gold_against_gold_is_perfect(corpora, site, tmp_path):
    corpus = corpora["n2c2-2018", site]
    for mode in MODES:
        assert pool(pool(score_note(n.spans, n.spans, mode).values()) for n in corpus.notes).f1 == 1
    write_corpus(corpus, tmp_path / "drugs", "n2c2-2018")
    tallies = score_2018_folders(tmp_path / "drugs", tmp_path / "drugs").tallies
    assert all(tally.micro.f1 == 1 for kinds in tallies.values() for tally in kinds.values())
    write_corpus(corpora["n2c2-2022", site], tmp_path / "social", "n2c2-2022")
    assert score_events(tmp_path / "social", tmp_path / "social").overall.counts.f1 == 1


@pytest.mark.parametrize(
    ("scheme", "notes", "site", "message"),
    [
        ("n2c2-2019", 3, "a", "unknown scheme 'n2c2-2019'"),
        ("n2c2-2018", 3, "c", "unknown site 'c'"),
        ("n2c2-2018", 0, "a", "cannot make 0 notes"),
    ],
)
def test_impossible_arguments_are_refused(scheme, notes, site, message):
    with pytest.raises(CorpusError, match=message):
        synthesize_corpus(scheme, notes, site, 1)
