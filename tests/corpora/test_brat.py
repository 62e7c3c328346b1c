"""Promise: a note has exactly what its brat files say, and is unchanged after writing and reading.

It could break unnoticed: a line end shifts an offset, a fragment, attribute or relation is dropped, or a
reader mistakes a character for a line end.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymrc.corpora.brat import read_brat, write_brat
from raymrc.corpora.formats import N2C2_2022, read_corpus, read_notes, write_corpus
from raymrc.corpora.note import Note, Relation, Span
from raymrc.corpora.problems import ERROR
from raymrc.corpora.splits import take_subset
from raymrc.errors import CorpusError
from tests.paths import SHARED, needs_shared


def write_pair(folder: Path, text: str, annotations: str, name: str = "a") -> None:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / f"{name}.txt").write_bytes(text.encode())
    (folder / f"{name}.ann").write_bytes(annotations.encode())


def read_one(folder: Path, reader: str = "brat") -> Note:
    (note,) = read_corpus(folder, reader).notes
    return note


def errors_of(folder: Path, reader: str = "brat") -> list[str]:
    with pytest.raises(CorpusError) as raised:
        read_corpus(folder, reader)
    return list(raised.value.problems)


def test_nested_overlapping_and_discontinuous_spans_are_read_unchanged(tmp_path):
    write_pair(
        tmp_path,
        "left arm and leg pain",
        "T1\tSign 0 21\tleft arm and leg pain\n"
        "T2\tSite 0 8\tleft arm\n"
        "T3\tSite 0 4;13 16\tleft leg\n"
        "T4\tOther 5 16\tarm and leg\n",
    )
    assert [(s.id, s.label, s.fragments) for s in read_one(tmp_path).spans] == [
        ("T1", "Sign", ((0, 21),)),
        ("T2", "Site", ((0, 8),)),
        ("T3", "Site", ((0, 4), (13, 16))),
        ("T4", "Other", ((5, 16),)),
    ]


def test_fragments_are_sorted_whatever_their_order_in_the_file(tmp_path):
    write_pair(tmp_path, "left arm and leg", "T3\tSite 13 16;0 4\tleg left\n")
    assert read_one(tmp_path).spans[0].fragments == ((0, 4), (13, 16))


def test_an_event_becomes_relations_from_trigger_to_arguments(tmp_path):
    write_pair(
        tmp_path,
        "quit smoking ten years ago",
        "E1\tTobacco:T1 Status:T2 History:T3 \t\n"
        "T1\tTobacco 5 12\tsmoking\nT2\tStatusTime 0 4\tquit\nT3\tHistory 13 26\tten years ago\n"
        "A1\tStatusTimeVal T2 past\nA2\tSure E1\n",
    )
    by_role = read_one(tmp_path, "brat")
    assert by_role.relations == (
        Relation("E1.1", "Status", "T1", "T2"),
        Relation("E1.2", "History", "T1", "T3"),
    )
    by_type = read_one(tmp_path, "n2c2-2022")
    assert [r.label for r in by_type.relations] == ["StatusTime", "History"]
    assert {s.id: s.attributes for s in by_type.spans} == {
        "T1": (("Sure", ""),),
        "T2": (("StatusTimeVal", "past"),),
        "T3": (),
    }


def test_relations_and_attributes_of_events_go_to_their_triggers(tmp_path):
    write_pair(
        tmp_path,
        "aspirin for pain",
        "R1\tMODIFY Arg1:E2 Arg2:E1\t\nA1\tPOLARITY E2 NEG\n*\tOVERLAP E1 E2\n"
        "#1\tAnnotatorNotes E1\tsee text\nN1\tReference T1 RxNorm:1191\taspirin\n"
        "E1\tDrug:T1 \nE2\tSign:T2\t\nT1\tDrug 0 7\taspirin\nT2\tSign 12 16\tpain\n",
    )
    note = read_one(tmp_path)
    assert note.relations == (Relation("R1", "MODIFY", "T2", "T1"),)
    assert note.spans[1].attributes == (("POLARITY", "NEG"),)


def test_crlf_counts_as_two_characters_and_survives(tmp_path):
    text = "Meds:\r\naspirin\r\n"
    write_pair(tmp_path, text, "T1\tDrug 7 14\taspirin\r\nT2\tList 0 14\tMeds:  aspirin\r\n")
    note = read_one(tmp_path)
    assert note.text == text
    assert note.text[note.spans[0].start : note.spans[0].end] == "aspirin"
    write_brat([note], tmp_path / "out")
    assert (tmp_path / "out" / "a.txt").read_bytes() == text.encode()
    assert read_one(tmp_path / "out") == note


def test_offsets_that_count_crlf_as_one_are_refused_with_a_hint(tmp_path):
    write_pair(tmp_path, "Meds:\r\naspirin 81 mg", "T1\tDrug 6 13\taspirin\n")
    (problem,) = errors_of(tmp_path)
    assert problem.startswith(f"{tmp_path}/a.ann:1: T1 Drug 6-13: ")
    assert "store the .txt with LF line ends" in problem


@pytest.mark.parametrize(
    "odd", ["\u2028", "\x85", "\x0b", "\x0c", "\x1e", "\t", "\ufeff", "é", "😀"]
)
def test_odd_characters_do_not_shift_offsets(tmp_path, odd):
    text = f"{odd}pain{odd}relief{odd}{odd}"
    write_pair(tmp_path, text, f"T1\tReason 1 12\tpain{odd}relief\nT2\tSign 6 12\trelief")
    assert [text[s.start : s.end] for s in read_one(tmp_path).spans] == [
        f"pain{odd}relief",
        "relief",
    ]


def test_a_missing_final_newline_loses_no_line(tmp_path):
    write_pair(tmp_path, "pain", "T1\tSign 0 4\tpain")
    assert len(read_one(tmp_path).spans) == 1


def test_all_problems_are_reported_in_file_order(tmp_path):
    write_pair(
        tmp_path,
        "aspirin 81 mg",
        "T1\tDrug 0 70\taspirin\n"
        "T2\tDrugg 0 7\taspirin\n"
        "T3\tDosage 8 10\t82\n"
        "T4\tDosage eight ten\t81\n"
        "T2\tDosage 8 10\t81\n"
        "R1\tDosage-Drug Arg1:T5 Arg2:T2\n"
        "R2\tDosage-Drg Arg1:T6 Arg2:T2\n"
        "T6\tDosage 8 13\t81 mg\n"
        "R3\tDosage-Drug Arg1:T1\n"
        "R4\tDosage-Drug Arg1:T6 Arg2:T1\n"
        "T7\tDosage 9 9\t\n"
        "nonsense\n",
        "b",
    )
    (tmp_path / "a.ann").write_text("T1\tDrug 0 7\taspirin\n")
    (tmp_path / "c.txt").write_text("no annotations")
    (tmp_path / "d.txt").write_bytes(b"caf\xe9")
    (tmp_path / "d.ann").write_bytes(b"")
    where = f"{tmp_path}/b.ann"
    assert errors_of(tmp_path, "n2c2-2018") == [
        f"{tmp_path}/a.ann: has no a.txt beside it; add the note's text",
        f"{where}:1: T1 Drug 0-70 reaches past the note's end (13 characters); correct the offsets",
        f"{where}:2: T2 has the unknown label Drugg; did you mean 'Drug'?",
        f"{where}:3: T3 Dosage 8-10: the text column differs from the note there; "
        "correct the offsets or the text column",
        f"{where}:4: T4 is not 'label start end', tab, text; correct the line",
        f"{where}:5: id T2 is used in line 2; give a new id",
        f"{where}:6: R1 names T5, which does not exist; correct the id",
        f"{where}:7: R2 has the unknown label Dosage-Drg; did you mean 'Dosage-Drug'?",
        f"{where}:9: R3 is not 'label Arg1:id Arg2:id'; correct the line",
        f"{where}:11: T7 Dosage 9-9 ends before it starts; correct the offsets",
        f"{where}:12: is not a brat line; start it with T, R, E, A, M, N, * or #, an id and a tab",
        f"{tmp_path}/c.txt: has no c.ann beside it; add one (empty if nothing is annotated) "
        "or remove the file",
        f"{tmp_path}/d.txt: byte 3 (from 0) is not UTF-8; save the file as UTF-8",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "T1\tDrug 0 99\tPLANTED-MARKER",
        "T1\tDrug 0 7\tPLANTED-MARKER",
        "T1 Drug 0 7 PLANTED-MARKER",
        "PLANTED-MARKER",
        "T1\tPLANTED-MARKER",
        "R1\tPLANTED-MARKER",
        "E1\tPLANTED-MARKER",
        "A1\tPLANTED-MARKER",
    ],
)
def test_problems_never_contain_note_text(tmp_path, line):
    write_pair(tmp_path, "PLANTED-MARKER aspirin", f"{line}\n")
    assert "PLANTED" not in "\n".join(errors_of(tmp_path))
    assert "PLANTED" not in repr(read_notes(tmp_path, "brat"))


def test_notes_of_equal_name_in_two_folders_are_refused(tmp_path):
    for folder in ("x", "y"):
        write_pair(tmp_path / folder, "pain", "", "1")
    (problem,) = errors_of(tmp_path)
    assert problem == (
        f"{tmp_path}/y/1.txt: note id 1 is already used at {tmp_path}/x/1.txt; "
        "rename one of them or read them separately"
    )


def test_subfolders_of_the_2022_corpus_are_sites_and_part_of_the_id(tmp_path):
    for folder in ("train/mimic", "train/uw"):
        write_pair(tmp_path / folder, "smokes", "", "1")
    notes = read_corpus(tmp_path, "n2c2-2022").notes
    assert [(n.id, n.site) for n in notes] == [("train/mimic/1", "mimic"), ("train/uw/1", "uw")]
    write_corpus(read_corpus(tmp_path, "n2c2-2022"), tmp_path / "again", "n2c2-2022")
    assert read_corpus(tmp_path / "again", "n2c2-2022").notes == notes


def test_groups_and_sites_are_read_and_gaps_give_a_warning(tmp_path):
    for name in ("1", "2", "3"):
        write_pair(tmp_path, "pain", "", name)
    (tmp_path / "groups.tsv").write_text("doc_id\tgroup\n1\tann\n2\tann\nelsewhere\tbob\n")
    (tmp_path / "sites.tsv").write_text(
        "doc_id\tsplit\tsite\r\n1\t\tnorth\r\n2\t\t\r\n3\t\tsouth\r\n"
    )
    reading = read_notes(tmp_path, "brat")
    assert [(n.id, n.group, n.site) for n in reading.notes] == [
        ("1", "ann", "north"),
        ("2", "ann", ""),
        ("3", "3", "south"),
    ]
    (warning,) = reading.problems.found
    assert "has no group for 1 notes, first 3" in warning.message
    (tmp_path / "groups.tsv").write_text("doc_id\tgroup\n1\tann\n1\tbob\n2\n")
    assert errors_of(tmp_path) == [
        f"{tmp_path}/groups.tsv:3: gives note 1 a second group; delete one of the lines",
        f"{tmp_path}/groups.tsv:4: has 1 cells, the header 2; correct the line",
    ]


def test_a_social_history_is_written_as_events_that_the_2022_scorer_reads(tmp_path):
    note = Note(
        "1",
        "quit smoking, no alcohol",
        (
            Span("T1", "Tobacco", ((5, 12),)),
            Span("T2", "StatusTime", ((0, 4),), (("StatusTimeVal", "past"),)),
            Span("T3", "Alcohol", ((17, 24),)),
        ),
        (Relation("R1", "StatusTime", "T1", "T2"),),
        "1",
    )
    write_brat([note], tmp_path, N2C2_2022.triggers)
    assert (tmp_path / "1.ann").read_text().splitlines() == [
        "T1\tTobacco 5 12\tsmoking",
        "T2\tStatusTime 0 4\tquit",
        "T3\tAlcohol 17 24\talcohol",
        "E1\tTobacco:T1 StatusTime:T2",
        "E2\tAlcohol:T3",
        "A1\tStatusTimeVal T2 past",
    ]
    assert not read_notes(tmp_path, "n2c2-2022").problems.found


# Everything that brat can represent: any text, spans anywhere in it, attributes and relations.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\r\n\t é\u2028\x85"))
WORDS = st.from_regex(re.compile(r"[A-Za-z][\w.-]{0,8}", re.ASCII), fullmatch=True)
VALUES = st.just("") | WORDS | st.just("two words")


@st.composite
def notes(draw: st.DrawFn, labels: st.SearchStrategy[str] = WORDS) -> Note:
    text = draw(TEXTS)
    spans = []
    places = st.lists(st.integers(0, len(text)), min_size=2, max_size=6, unique=True).map(sorted)
    for number in range(draw(st.integers(0, 6)) if text else 0):
        cuts = draw(places)
        fragments = tuple(zip(cuts[::2], cuts[1::2], strict=False))
        attributes = tuple(draw(st.lists(st.tuples(WORDS, VALUES), max_size=2)))
        spans.append(Span(f"T{2 * number + 1}", draw(labels), fragments, attributes))
    relations = []
    ends = st.sampled_from([span.id for span in spans])
    for number in range(draw(st.integers(0, 3)) if spans else 0):
        head = draw(ends)
        if draw(st.booleans()):
            relations.append(Relation(f"R{number}", draw(WORDS), head, draw(ends)))
            continue
        for position in range(1, draw(st.integers(1, 3)) + 1):
            relations.append(Relation(f"E{number}.{position}", draw(WORDS), head, draw(ends)))
    group, site = draw(st.sampled_from(["n1", "patient 7"])), draw(st.sampled_from(["", "north"]))
    return Note("n1", text, tuple(spans), tuple(relations), group, site)


@given(notes())
@settings(max_examples=200, deadline=None)
def test_any_note_survives_writing_and_reading(note):
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_brat([note], folder)
        reading = read_brat(folder)
        assert (folder / "n1.txt").read_bytes() == note.text.encode()
    assert [p for p in reading.problems.found if p.severity == ERROR] == []
    assert reading.notes == [note]


@given(notes(st.sampled_from(N2C2_2022.labels)))
@settings(max_examples=100, deadline=None)
def test_a_social_history_survives_writing_and_reading(note):
    with TemporaryDirectory() as name:
        folders = [Path(name) / str(number) for number in range(3)]
        # The first reading normalises labels and ids.
        write_brat([note], folders[0], N2C2_2022.triggers)
        first = read_brat(folders[0], N2C2_2022).notes
        for folder in folders[1:]:
            write_brat(first, folder, N2C2_2022.triggers)
            assert read_brat(folder, N2C2_2022).notes == first
    assert [(s.id, s.fragments) for s in first[0].spans] == [
        (s.id, s.fragments) for s in note.spans
    ]
    ends = Counter((r.head, r.tail) for r in note.relations)
    assert Counter((r.head, r.tail) for r in first[0].relations) == ends


@needs_shared
@pytest.mark.parametrize(
    ("reader", "folder"), [("maccrobat", "maccrobat2020"), ("phee", "phee"), ("pubtator", "bc5cdr")]
)
def test_real_corpora_survive_writing_and_reading(tmp_path, reader, folder):
    corpus = take_subset(read_corpus(SHARED / "corpora" / folder, reader), 500, seed=1)
    write_corpus(corpus, tmp_path)
    again = {note.id: note for note in read_corpus(tmp_path, "brat").notes}
    assert again == {note.id: note for note in corpus.notes}


@pytest.mark.parametrize(
    ("note", "reason"),
    [
        (Note("../a", "pain"), "not a file name"),
        (Note("a", "pain", (Span("x", "Sign", ((0, 4),)),)), "not T and a number"),
        (Note("a", "pain", (Span("T1", "Sign", ((0, 5),)),)), "past the note's end"),
        (Note("a", "pain", (Span("T1", "two words", ((0, 4),)),)), "not one word"),
        (Note("a", "pain", relations=(Relation("R1", "Of", "T1", "T2"),)), "does not exist"),
    ],
)
def test_a_note_that_brat_cannot_represent_is_refused_before_anything_is_written(
    tmp_path, note, reason
):
    with pytest.raises(CorpusError, match=reason):
        write_brat([Note("good", "fine"), note], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_notes_are_not_written_beside_other_notes(tmp_path):
    write_brat([Note("old", "pain")], tmp_path)
    with pytest.raises(CorpusError, match="contains another note, old"):
        write_brat([Note("new", "pain")], tmp_path)
    assert not (tmp_path / "new.txt").exists()
