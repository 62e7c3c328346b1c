"""Promise: our 2018 figures equal the official script's, to the last count.

It could break unnoticed, because duplicates and overlaps are rare: a scorer that counts them differently is
off by a few items in thousands, and still looks right.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymrc.corpora.note import Relation, Span
from raymrc.errors import CorpusError
from raymrc.scoring.counts import Counts, pool
from raymrc.scoring.n2c2_2018 import (
    MODES,
    render_2018_scores,
    score_2018_folders,
    score_note,
    score_relations,
)
from tests.paths import SHARED, needs_shared

CASES = SHARED / "scorer_cases" / "n2c2_2018"
MARKER = "zebrafinch"


def span(label: str, *fragments: tuple[int, int], name: str = "T1") -> Span:
    return Span(name, label, fragments)


def write(folder: Path, **notes: str) -> Path:
    folder.mkdir()
    for name, lines in notes.items():
        (folder / f"{name}.ann").write_text(lines)
    return folder


# --- the official script's figures: 2018 n2c2 track 2 evaluation script, version 4 ----------


@needs_shared
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["entities", "relations"])
def test_every_overall_figure_is_the_official_one(mode, kind):
    official = json.loads((CASES / "expected.json").read_text())["overall"][mode][kind]
    ours = score_2018_folders(CASES / "gold", CASES / "system").to_json()
    counts = {name: official[name] for name in ("tp", "fp", "fn")}
    assert {name: ours[mode][kind][name] for name in counts} == counts
    # 1e-12 because sums are in another order.
    micro = {name: ours[mode][kind][name] for name in official["micro"]}
    assert micro == pytest.approx(official["micro"], abs=1e-12)
    assert ours["macro"][mode][kind] == pytest.approx(official["macro"], abs=1e-12)


@needs_shared
def test_every_count_per_type_is_the_official_one():
    official = json.loads((CASES / "expected.json").read_text())["per_entity_type"]
    ours = score_2018_folders(CASES / "gold", CASES / "system").to_json()["per_type"]
    none = {"tp": 0, "fp": 0, "fn": 0}
    for label, modes in official.items():
        for mode, counts in modes.items():
            found = ours[mode]["entities"].get(label, none)
            assert {name: found[name] for name in none} == counts, (label, mode)
    assert ours["strict"]["entities"].keys() <= official.keys()


@needs_shared
def test_relations_between_events_are_resolved_where_the_official_script_stops():
    gold = SHARED / "corpora" / "maccrobat2020" / "brat"
    micro = score_2018_folders(gold, gold).tallies["strict"]["relations"].micro
    lines = [line for path in gold.glob("*.ann") for line in path.read_text().splitlines()]
    relations = sum(line.startswith("R") for line in lines)
    # Repeated relations of a note are ignored after a match, so not all are true positives.
    assert micro.tp + micro.fn == relations
    assert micro.fp == 0
    assert micro.f1 > 0.99


# --- the rules, one by one ------------------------------------------------------------------


def test_strict_needs_both_ends_and_lenient_one_common_character():
    gold = [span("Drug", (10, 20))]
    for system, strict, lenient in (
        ((10, 20), Counts(1, 0, 0), Counts(1, 0, 0)),
        ((19, 30), Counts(0, 1, 1), Counts(1, 0, 0)),
        ((20, 30), Counts(0, 1, 1), Counts(0, 1, 1)),
    ):
        assert score_note(gold, [span("Drug", system)], "strict") == {"Drug": strict}
        assert score_note(gold, [span("Drug", system)], "lenient") == {"Drug": lenient}


def test_a_wrong_label_is_one_spurious_and_one_missed_item():
    counts = score_note([span("ADE", (0, 5))], [span("Reason", (0, 5))], "lenient")
    assert counts == {"ADE": Counts(0, 0, 1), "Reason": Counts(0, 1, 0)}


def test_a_discontinuous_span_counts_by_its_envelope():
    gold, system = [span("ADE", (0, 4), (9, 12))], [span("ADE", (0, 12))]
    assert score_note(gold, system, "strict") == {"ADE": Counts(1, 0, 0)}


def test_a_repeated_prediction_costs_nothing():
    twice = [span("Drug", (0, 5)), span("Drug", (0, 5), name="T2")]
    assert score_note(twice[:1], twice, "strict") == {"Drug": Counts(1, 0, 0)}


def test_a_gold_span_annotated_twice_is_found_once_at_most():
    twice = [span("Drug", (0, 5)), span("Drug", (0, 5), name="T2")]
    assert score_note(twice, twice, "strict") == {"Drug": Counts(1, 0, 1)}


def test_a_wide_prediction_matches_one_of_the_spans_it_covers_and_blocks_the_others():
    gold = [span("Drug", (0, 5)), span("Drug", (6, 9))]
    wide, second = span("Drug", (0, 9)), span("Drug", (6, 9))
    assert score_note(gold, [wide, second], "lenient") == {"Drug": Counts(1, 0, 1)}
    assert score_note(gold, [second, wide], "lenient") == {"Drug": Counts(1, 0, 1)}


def test_a_note_without_spans_has_no_counts():
    assert score_note([], [], "strict") == {}


def test_swapped_arguments_do_not_match_and_ids_do_not_matter():
    gold_spans = [span("ADE", (0, 5), name="T1"), span("Drug", (8, 12), name="T2")]
    system_spans = [span("Drug", (8, 12), name="T7"), span("ADE", (0, 5), name="T9")]
    gold = [Relation("R1", "ADE-Drug", "T1", "T2")]
    for head, tail, counts in (("T9", "T7", Counts(1, 0, 0)), ("T7", "T9", Counts(0, 1, 1))):
        system = [Relation("R4", "ADE-Drug", head, tail)]
        found = score_relations(gold_spans, gold, system_spans, system, "strict")
        assert found == {"ADE-Drug": counts}


def test_a_relation_needs_its_arguments_labels():
    gold_spans = [span("ADE", (0, 5), name="T1"), span("Drug", (8, 12), name="T2")]
    wrong = [span("Reason", (0, 5), name="T1"), gold_spans[1]]
    relation = [Relation("R1", "ADE-Drug", "T1", "T2")]
    found = score_relations(gold_spans, relation, wrong, relation, "lenient")
    assert found == {"ADE-Drug": Counts(0, 1, 1)}


SPANS = st.lists(
    st.builds(
        lambda label, start, length: span(label, (start, start + length)),
        st.sampled_from(["Drug", "ADE"]),
        st.integers(0, 12),
        st.integers(1, 5),
    ),
    max_size=8,
)


@given(SPANS, SPANS, st.sampled_from(MODES))
def test_counting_each_label_alone_equals_counting_all_together(gold, system, mode):
    def equal(a: Span, b: Span) -> bool:
        if mode == "strict":
            return (a.label, a.start, a.end) == (b.label, b.start, b.end)
        return a.label == b.label and max(a.start, b.start) < min(a.end, b.end)

    # The obvious twin: the rule of the case folder's README, on whole notes.
    marked: set[int] = set()
    remaining = list(range(len(system)))
    for number, item in enumerate(system):
        for index, candidate in enumerate(gold):
            if equal(candidate, item):
                if index not in marked:
                    marked.add(index)
                elif number in remaining:
                    remaining.remove(number)
    tp = sum(any(equal(g, system[number]) for g in gold) for number in remaining)
    expected = Counts(tp, len(remaining) - tp, len(gold) - tp)
    assert pool(score_note(gold, system, mode).values()) == expected


# --- folders --------------------------------------------------------------------------------

GOLD = "T1\tDrug 0 5\taspir\nT2\tADE 8 12\trash\nR1\tADE-Drug Arg1:T2 Arg2:T1\n"


def test_a_gold_note_without_a_system_file_counts_as_missed_and_is_named(tmp_path):
    gold = write(tmp_path / "gold", one=GOLD, two=GOLD)
    system = write(tmp_path / "system", one=GOLD, three=GOLD)
    report = score_2018_folders(gold, system)
    assert (report.missing, report.unjudged) == (("two",), ("three",))
    answer = report.to_json()
    assert answer["strict"]["entities"] == {
        "tp": 2,
        "fp": 0,
        "fn": 2,
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
    }
    assert answer["strict"]["relations"]["fn"] == 1
    assert answer["macro"]["strict"]["entities"]["f1"] == 0.5
    assert answer["missing"] == ["two"]
    assert "1 gold notes have no system file and count as missed: two" in render_2018_scores(report)
    json.dumps(answer)


def test_other_lines_and_the_text_column_do_not_count(tmp_path):
    gold = write(tmp_path / "gold", one=GOLD)
    noisy = (
        GOLD.replace("aspir", "other") + "E1\tDrug:T1 Role:T99\nA1\tNegated T2\n#1\tNote T1\tx\n"
    )
    system = write(tmp_path / "system", one=noisy)
    report = score_2018_folders(gold, system)
    assert all(kinds["entities"].micro == Counts(2, 0, 0) for kinds in report.tallies.values())


def test_the_last_line_of_an_id_counts_in_place_of_its_first(tmp_path):
    gold = write(tmp_path / "gold", one=GOLD)
    system = write(tmp_path / "system", one="T1\tForm 0 5\tx\n" + GOLD)
    assert score_2018_folders(gold, system).tallies["strict"]["entities"].micro == Counts(2, 0, 0)


@pytest.mark.parametrize(
    ("lines", "place"),
    [
        (f"T1\tDrug 0 5\t{MARKER}\nT2\tDrug five 9\t{MARKER}\n", "one.ann:2"),
        (f"T1\tDrug 0 5\t{MARKER}\nR1\tADE-Drug Arg1:T1 Arg2:T8\n", "one.ann:2"),
    ],
)
def test_a_broken_line_is_named_and_its_text_is_not(tmp_path, lines, place):
    gold = write(tmp_path / "gold", one=GOLD)
    system = write(tmp_path / "system", one=lines)
    with pytest.raises(CorpusError) as raised:
        score_2018_folders(gold, system)
    assert place in str(raised.value)
    assert MARKER not in str(raised.value)


def test_folders_that_share_no_name_are_refused(tmp_path):
    gold, system = write(tmp_path / "gold", one=GOLD), write(tmp_path / "system", two=GOLD)
    with pytest.raises(CorpusError, match=r"has no \.ann file of the same name"):
        score_2018_folders(gold, system)
    with pytest.raises(CorpusError, match="is not a folder"):
        score_2018_folders(tmp_path / "nowhere", system)


def test_the_table_shows_both_modes(tmp_path):
    gold = write(tmp_path / "gold", one=GOLD)
    table = render_2018_scores(score_2018_folders(gold, gold))
    for heading in ("strict entities", "strict relations", "lenient entities", "ADE-Drug", "macro"):
        assert heading in table
