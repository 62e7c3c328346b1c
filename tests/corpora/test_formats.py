"""Promise: every format gives the same kind of notes, and a label map keeps exactly what it says.

It could break unnoticed: arguments are related to the wrong event, a rule's condition is always true, or a
misspelt label is silently dropped.
"""

from __future__ import annotations

import json
from collections import Counter

import pytest

from raymrc.corpora.formats import READERS, known_labels, read_corpus, read_notes
from raymrc.corpora.note import Note, Relation, Span
from raymrc.errors import CorpusError
from tests.paths import SHARED, needs_shared

CORPORA = SHARED / "corpora"


def spans_by_label(notes):
    return Counter(span.label for note in notes for span in note.spans)


def argument(label_text, start, span_id, **more):
    return {"text": [[label_text]], "start": [[start]], "entity_id": [span_id], **more}


def phee_line(note_id="77_1", **changes):
    document = {
        "id": note_id,
        "context": "Severe rash after 5 mg abacavir for HIV.",
        "annotations": [
            {
                "events": [
                    {
                        "event_id": "E1",
                        "event_type": "Adverse_event",
                        "Trigger": argument("after", 12, "T1"),
                        "Effect": argument("rash", 7, "T2"),
                        "Severity": argument("Severe", 0, "T3", value="High"),
                        "Treatment": argument(
                            "5 mg abacavir",
                            18,
                            "T4",
                            Drug=argument("abacavir", 23, "T5"),
                            Dosage=argument("5 mg", 18, "T6"),
                            Disorder=argument("HIV", 36, "T7"),
                        ),
                    }
                ]
            }
        ],
    }
    return json.dumps({**document, **changes})


@pytest.fixture
def phee(tmp_path):
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "train.json").write_text(phee_line() + "\n")
    (tmp_path / "json" / "dev.json").write_text(phee_line("77_2") + "\n")
    (tmp_path / "sites.tsv").write_text(
        "doc_id\tsplit\tsite\n77_1\ttrain\tade\n77_2\tdev\tphaedra\n"
    )
    return tmp_path


def test_phee_events_become_spans_links_and_values(phee):
    note = read_corpus(phee, "phee").notes[0]
    labels = {span.id: span.label for span in note.spans}
    assert labels == {
        "T1": "Adverse_event",
        "T2": "Effect",
        "T3": "Severity_cue",
        "T4": "Treatment",
        "T5": "Drug",
        "T6": "Dosage",
        "T7": "Treat-Disorder",
    }
    assert {(r.label, r.head, r.tail) for r in note.relations} == {
        ("Effect", "T1", "T2"),
        ("Severity_cue", "T1", "T3"),
        ("Treatment", "T1", "T4"),
        ("Drug", "T4", "T5"),
        ("Dosage", "T4", "T6"),
        ("Treat-Disorder", "T4", "T7"),
    }
    assert note.spans[2].attributes == (("Severity", "High"),)


def test_phee_sentences_of_one_article_share_a_group_and_keep_their_sites(phee):
    notes = read_corpus(phee, "phee").notes
    assert [(n.id, n.group, n.site) for n in notes] == [
        ("77_1", "77", "ade"),
        ("77_2", "77", "phaedra"),
    ]
    assert [n.id for n in read_corpus(phee, "phee", sites=["phaedra"]).notes] == ["77_2"]
    with pytest.raises(CorpusError, match="no note is from site 'fedra'; did you mean 'phaedra'"):
        read_corpus(phee, "phee", sites=["fedra"])


def test_phee_events_give_the_common_labels(phee):
    note = read_corpus(phee, "phee", labels="drug-ade").notes[0]
    assert {s.id: s.label for s in note.spans} == {
        "T2": "ADE",
        "T5": "Drug",
        "T6": "Dosage",
        "T7": "Reason",
    }
    assert {(r.label, r.head, r.tail) for r in note.relations} == {
        ("ADE-Drug", "T2", "T5"),
        ("Dosage-Drug", "T6", "T5"),
        ("Reason-Drug", "T7", "T5"),
    }


def test_a_therapeutic_effect_is_not_an_adverse_effect(phee):
    line = phee_line().replace("Adverse_event", "Potential_therapeutic_event")
    (phee / "json" / "train.json").write_text(line)
    note = read_corpus(phee, "phee", labels="drug-ade").notes[0]
    assert "ADE" not in {span.label for span in note.spans}


def test_all_broken_lines_of_phee_are_reported(phee):
    train = phee / "json" / "train.json"
    broken = phee_line("78_1").replace('"start": [[23]]', '"start": [[99]]')
    moved = phee_line("79_1").replace('"start": [[7]]', '"start": [[8]]')
    unknown = phee_line("80_1").replace('"Effect"', '"Efect"')
    lines = ["{", broken, moved, unknown, '{"id": "81_1"}', "[]", phee_line()]
    train.write_text("\n".join([*lines, phee_line()]))
    with pytest.raises(CorpusError) as raised:
        read_corpus(phee, "phee")
    assert raised.value.problems == (
        f"{train}:1: is not JSON; correct or delete the line",
        f"{train}:2: note 78_1: T5 Drug 99-107 is empty or reaches past the note's end "
        "(40 characters); correct the offsets",
        f"{train}:3: note 79_1: T2 Effect 8-12: its text differs from the note there; "
        "correct the offsets or the text",
        f"{train}:4: unknown argument Efect; did you mean 'Effect'?; correct or delete the line",
        f"{train}:5: has no field context; add it or delete the line",
        f"{train}:6: does not have PHEE's structure; correct or delete the line",
        f"{train}:8: note id 77_1 is already used at {train}:7; rename one of them or read them separately",
    )


PUBTATOR = (
    "12|t|Lithium tremor.\r\n12|a|A case.\r\n12\t0\t7\tLithium\tChemical\tD008094\r\n"
    "12\t8\t14\ttremor\tDisease\tD014202|D009069\ttremor|tremor\r\n12\tCID\tD008094\tD014202\r\n"
)


def test_half_a_surrogate_pair_is_reported_and_not_read(tmp_path):
    """JSON may contain one, but no tokenizer can read it."""
    (tmp_path / "json").mkdir()
    line = '{"id": "1_1", "context": "took \\ud800 aspirin", "annotations": []}'
    (tmp_path / "json" / "train.json").write_text(line + "\n")
    (problem,) = read_notes(tmp_path, "phee").problems.found
    assert (problem.line, problem.severity) == (1, "error")
    assert "surrogate" in problem.message


def test_unknown_shac_values_give_a_warning(tmp_path):
    (tmp_path / "1.txt").write_text("Smokes daily.\n")
    (tmp_path / "1.ann").write_text(
        "T1\tTobacco 0 6\tSmokes\nT2\tStatusTime 7 12\tdaily\nE1\tTobacco:T1 Status:T2\n"
        "A1\tStatusTimeVal T2 curent\nA2\tStatusTimVal T2 current\n"
    )
    reading = read_notes(tmp_path, "n2c2-2022")
    assert len(reading.notes) == 1
    value, name = reading.problems.found
    assert (value.line, value.severity) == (4, "warning")
    assert "A1 StatusTimeVal has an unknown value" in value.message
    assert "curent" not in value.message
    assert "did you mean 'StatusTimeVal'?" in name.message


def test_pubtator_offsets_count_title_blank_and_abstract(tmp_path):
    path = tmp_path / "x.PubTator.txt"
    path.write_bytes(f"{PUBTATOR}\r\n13|t|B|t|b\n13|a|\n".encode())
    first, second = read_corpus(path, "pubtator").notes
    assert first.text == "Lithium tremor. A case."
    assert first.group == "12"
    assert first.spans == (
        Span("T1", "Chemical", ((0, 7),), (("concept", "D008094"),)),
        Span("T2", "Disease", ((8, 14),), (("concept", "D014202|D009069"),)),
    )
    assert first.relations == ()
    assert second.text == "B|t|b "
    assert read_corpus(tmp_path, "pubtator").notes == (first, second)


def test_broken_lines_of_pubtator_are_reported(tmp_path):
    path = tmp_path / "x.PubTator.txt"
    path.write_text(
        "1|t|Title\n1|a|Abstract\n1\t0\t50\tTitle\tDrug\tD1\n1\t0\t4\tTitle\tDrug\tD1\n"
        "2\t0\t5\tTitle\tDrug\tD1\n1\t5\t5\t\tDrug\tD1\nnonsense\n1\tzero\t5\tTitle\tDrug\tD1\n\n"
        "1|t|Title\n1|a|Abstract\n\n3|t|Title\n"
    )
    with pytest.raises(CorpusError) as raised:
        read_corpus(path, "pubtator")
    assert [problem.removeprefix(f"{path}:") for problem in raised.value.problems] == [
        "3: Drug 0-50 reaches past the note's end (14 characters); correct the offsets",
        "4: Drug 0-4: the text column differs from the note there; correct one of them",
        "5: does not belong to document 1; correct the id",
        "6: Drug 5-5 ends before it starts; correct the offsets",
        "7: does not belong to document 1; correct the id",
        "8: is not 'id start end text type concept', tab-separated; correct the line",
        f"10: note id 1 is already used at {path}:1; rename one of them or read them separately",
        "13: needs a title (id|t|...) and an abstract (id|a|...) with the same id",
    ]


def brat(folder, text, annotations):
    (folder / "1.txt").write_text(text)
    (folder / "1.ann").write_text(annotations)


MACCROBAT = (
    "T1\tMedication 0 7\taspirin\nT2\tDuration 8 14\t3 days\nT3\tDuration 15 23\tten days\n"
    "T4\tSign_symptom 24 28\trash\nT5\tSign_symptom 29 33\tpain\n"
    "E1\tMedication:T1\nE2\tDuration:T2\nE3\tSign_symptom:T4\n"
    "R1\tMODIFY Arg1:E2 Arg2:E1\t\nR2\tMODIFY Arg1:T3 Arg2:T5\t\nR3\tCAUSE Arg1:E1 Arg2:E3\t\n"
)


def test_rules_of_the_common_labels_use_relations(tmp_path):
    brat(tmp_path, "aspirin 3 days ten days rash pain", MACCROBAT)
    corpus = read_corpus(tmp_path, "maccrobat", labels="drug-ade")
    (note,) = corpus.notes
    assert {s.id: s.label for s in note.spans} == {"T1": "Drug", "T2": "Duration", "T4": "ADE"}
    assert note.relations == (
        Relation("R1", "Duration-Drug", "T2", "T1"),
        Relation("R2", "ADE-Drug", "T4", "T1"),
    )
    assert corpus.labels == ("Drug", "Dosage", "Route", "Frequency", "Duration", "ADE")
    assert corpus.relation_labels == ("Duration-Drug", "ADE-Drug")


def test_a_list_keeps_labels_and_a_mapping_renames_them(tmp_path):
    brat(tmp_path, "aspirin 3 days ten days rash pain", MACCROBAT)
    kept = read_corpus(tmp_path, "maccrobat", labels=["Medication", "Duration"])
    assert kept.labels == ("Medication", "Duration")
    assert spans_by_label(kept.notes) == {"Medication": 1, "Duration": 2}
    assert [r.id for r in kept.notes[0].relations] == ["R1"]
    renamed = read_corpus(
        tmp_path,
        "maccrobat",
        labels={"Medication": "Drug", "Duration": "Time", "Sign_symptom": "Drug"},
    )
    assert renamed.labels == ("Drug", "Time")
    assert spans_by_label(renamed.notes) == {"Drug": 3, "Time": 2}


def test_an_unknown_label_is_reported_with_the_closest_known_one(tmp_path):
    brat(tmp_path, "aspirin 3 days ten days rash pain", MACCROBAT)
    with pytest.raises(
        CorpusError, match=r"'medicaton' is not a label .* did you mean 'Medication'"
    ):
        read_corpus(tmp_path, "maccrobat", labels=["Duration", "medicaton"])
    with pytest.raises(CorpusError, match="did you mean 'Strength'"):
        known_labels("n2c2-2018", {"Strenght": "Dosage"})
    with pytest.raises(CorpusError, match="did you mean 'drug-ade'"):
        known_labels("phee", "drug_ade")
    with pytest.raises(CorpusError, match="not for pubtator"):
        known_labels("pubtator", "drug-ade")
    with pytest.raises(CorpusError, match="did you mean 'n2c2-2018'"):
        known_labels("n2c2_2018")
    with pytest.raises(CorpusError, match="the list is empty"):
        known_labels("phee", [])


def test_labels_are_known_without_a_file_if_the_format_fixes_them():
    assert len(known_labels("n2c2-2018")) == 9
    assert len(READERS["n2c2-2018"].relation_labels) == 8
    assert len(known_labels("n2c2-2022")) == 14
    assert known_labels("brat") is None
    assert known_labels("brat", ["A", "B"]) == ("A", "B")
    assert known_labels("phee", {"Drug": "Drug", "Freq": "When", "Duration": "When"}) == (
        "Drug",
        "When",
    )
    assert known_labels("n2c2-2018", "drug-ade") == known_labels("phee", "drug-ade")


def test_strength_and_its_relation_become_dosage_in_the_common_set(tmp_path):
    brat(
        tmp_path,
        "aspirin 81 mg tablet",
        "T1\tDrug 0 7\taspirin\nT2\tStrength 8 13\t81 mg\nT3\tForm 14 20\ttablet\n"
        "R1\tStrength-Drug Arg1:T2 Arg2:T1\nR2\tForm-Drug Arg1:T3 Arg2:T1\n",
    )
    corpus = read_corpus(tmp_path, "n2c2-2018", labels="drug-ade")
    assert corpus.notes[0].relations == (Relation("R1", "Dosage-Drug", "T2", "T1"),)
    assert corpus.relation_labels == ("Dosage-Drug",)


def test_a_missing_or_empty_corpus_gives_one_sentence(tmp_path):
    with pytest.raises(CorpusError) as missing:
        read_corpus(tmp_path / "nowhere", "brat")
    assert missing.value.problems == (
        f"{tmp_path}/nowhere: does not exist; correct the path or fetch the corpus",
    )
    for reader in READERS:
        with pytest.raises(CorpusError) as empty:
            read_corpus(tmp_path, reader)
        assert len(empty.value.problems) == 1


def test_an_empty_note_gives_a_warning_and_does_not_stop_reading(tmp_path):
    brat(tmp_path, " \n", "")
    assert [n.id for n in read_corpus(tmp_path, "brat").notes] == ["1"]
    (warning,) = read_notes(tmp_path, "brat").problems.found
    assert warning.severity == "warning"


def test_sites_do_not_change_the_label_set(tmp_path):
    brat(tmp_path, "aspirin 3 days ten days rash pain", MACCROBAT)
    (tmp_path / "2.txt").write_text("x")
    (tmp_path / "2.ann").write_text("T1\tOther 0 1\tx")
    (tmp_path / "sites.tsv").write_text("doc_id\tsite\n1\tnorth\n2\tsouth\n")
    whole = read_corpus(tmp_path, "brat")
    assert read_corpus(tmp_path, "brat", sites=["south"]).labels == whole.labels


@needs_shared
@pytest.mark.parametrize(
    ("reader", "folder", "expected"),
    [
        # Counts from the corpora's own README files.
        (
            "phee",
            "phee",
            {"Dosage": 353, "Route": 454, "Freq": 84, "Duration": 123, "Effect": 3722},
        ),
        ("pubtator", "bc5cdr", {"Chemical": 10550, "Disease": 8426}),
        ("maccrobat", "maccrobat2020", {"Medication": 833, "Dosage": 275, "Occupation": 9}),
    ],
)
def test_real_corpora_are_read_without_errors_and_have_their_published_counts(
    reader, folder, expected
):
    counts = spans_by_label(read_corpus(CORPORA / folder, reader).notes)
    assert {label: counts[label] for label in expected} == expected


@needs_shared
def test_the_real_case_reports_have_as_many_relations_as_their_readme_says():
    corpus = read_corpus(CORPORA / "maccrobat2020", "maccrobat")
    assert sum(len(note.relations) for note in corpus.notes) == 12917
    mapped = read_corpus(CORPORA / "maccrobat2020", "maccrobat", labels="drug-ade")
    relations = Counter(r.label for note in mapped.notes for r in note.relations)
    # The README counts 271 dosages; one pair occurs twice.
    assert relations == {
        "Dosage-Drug": 270,
        "Route-Drug": 143,
        "Frequency-Drug": 17,
        "Duration-Drug": 12,
        "ADE-Drug": 16,
    }


def test_a_note_keeps_its_text_out_of_its_repr():
    assert "secret" not in repr(Note("1", "secret", (Span("T1", "X", ((0, 6),)),)))
