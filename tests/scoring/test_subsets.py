"""Promise: nested, overlapping and discontinuous spans are identified by their characters, and counted.

It could break unnoticed, because they are rare: a rule that mistakes a line end for a gap, or a neighbour
for an overlap, changes a figure that nobody can check by eye.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymrc.corpora.formats import read_corpus
from raymrc.corpora.note import Span
from raymrc.corpora.synthetic import synthesize_corpus
from raymrc.scoring.counts import Counts, pool
from raymrc.scoring.n2c2_2018 import score_note
from raymrc.scoring.subsets import SUBSETS, find_subsets, items_of, score_subsets
from tests.paths import SHARED, needs_shared

TEXT = "a rash on arms and legs\nsince the last dose"
"""Single blanks separate the words, and a line end does at 23."""


def span(label: str, *fragments: tuple[int, int], name: str = "T1") -> Span:
    return Span(name, label, fragments)


def subsets_of(*spans: Span) -> dict[str, int]:
    """Sizes of the non-empty subsets."""
    found = find_subsets(items_of(TEXT, spans))
    return {name: len(items) for name, items in found.items() if items}


def test_an_inner_span_and_its_outer_one_are_nested_whatever_their_labels():
    assert subsets_of(span("ADE", (2, 14)), span("Site", (10, 14))) == {"nested": 2, "any": 2}
    assert subsets_of(span("ADE", (2, 14)), span("ADE", (2, 6))) == {"nested": 2, "any": 2}


def test_two_labels_of_one_stretch_are_nested_and_a_repeated_label_is_one_item():
    assert subsets_of(span("ADE", (2, 6)), span("Reason", (2, 6))) == {"nested": 2, "any": 2}
    assert subsets_of(span("ADE", (2, 6)), span("ADE", (2, 6), name="T2")) == {}


def test_spans_overlap_if_each_has_characters_that_the_other_lacks():
    assert subsets_of(span("ADE", (2, 14)), span("Site", (10, 23))) == {"overlapping": 2, "any": 2}
    assert subsets_of(span("ADE", (2, 6)), span("Site", (6, 9))) == {}, "they only touch"


def test_an_item_may_be_in_several_subsets():
    crossed = span("ADE", (2, 14)), span("Site", (10, 23)), span("Site", (10, 14))
    assert subsets_of(*crossed) == {"nested": 3, "overlapping": 2, "any": 3}


def test_a_span_in_the_gap_of_a_discontinuous_span_is_not_nested_in_it():
    apart = span("ADE", (2, 6), (19, 23))
    assert subsets_of(apart, span("Site", (10, 14))) == {"discontinuous": 1, "any": 1}
    assert subsets_of(apart, span("Site", (19, 23))) == {"nested": 2, "discontinuous": 1, "any": 2}
    other = span("ADE", (2, 6), (10, 14))
    assert subsets_of(apart, other) == {"overlapping": 2, "discontinuous": 2, "any": 2}


def test_a_span_over_a_line_end_is_not_discontinuous():
    lines = span("ADE", (10, 23), (24, 29))
    assert subsets_of(lines) == {}
    assert score_subsets(TEXT, [lines, span("Site", (10, 14))], [span("ADE", (10, 29))]) == {
        "nested": Counts(1, 0, 1),
        "any": Counts(1, 0, 1),
    }


def test_the_envelope_of_a_discontinuous_span_is_missed_here_and_found_by_the_2018_scheme():
    gold, answer = [span("ADE", (2, 6), (19, 23))], [span("ADE", (2, 23))]
    assert score_note(gold, answer, "strict") == {"ADE": Counts(1, 0, 0)}
    missed = Counts(0, 0, 1)
    assert score_subsets(TEXT, gold, answer) == {"discontinuous": missed, "any": missed}
    assert score_subsets(TEXT, gold, gold)["discontinuous"] == Counts(1, 0, 0)


def test_a_wrong_nested_prediction_is_spurious_and_a_wrong_flat_one_is_not_counted():
    gold = [span("ADE", (2, 14)), span("Site", (10, 14))]
    wrong = span("Drug", (10, 14))
    assert score_subsets(TEXT, gold, [gold[0], wrong])["nested"] == Counts(1, 1, 1)
    assert score_subsets(TEXT, gold, [wrong])["nested"] == Counts(0, 0, 2)


def test_a_correct_prediction_is_not_spurious_because_of_a_wrong_one_around_it():
    gold = [span("Site", (10, 14))]
    around = span("ADE", (2, 14))
    assert score_subsets(TEXT, gold, [*gold, around])["nested"] == Counts(0, 1, 0)


def test_a_nested_gold_span_is_found_even_if_its_outer_span_is_not():
    gold = [span("ADE", (2, 14)), span("Site", (10, 14))]
    assert score_subsets(TEXT, gold, gold[1:])["nested"] == Counts(1, 0, 1)


def fragments(whole: bool = False) -> st.SearchStrategy[tuple[tuple[int, int], ...]]:
    """Stretches of TEXT that may touch, overlap or be a blank apart; sorted, as readers return them."""
    fragment = st.tuples(st.integers(0, 24), st.integers(1, 12)).map(lambda p: (p[0], p[0] + p[1]))
    return st.lists(fragment, min_size=1, max_size=1 if whole else 3).map(
        lambda f: tuple(sorted(f))
    )


def spans(whole: bool = False) -> st.SearchStrategy[list[Span]]:
    span = st.builds(Span, st.just("T1"), st.sampled_from(["Drug", "ADE"]), fragments(whole))
    return st.lists(span, max_size=8)


def characters(item: tuple[str, tuple[tuple[int, int], ...]]) -> set[int]:
    return {at for start, end in item[1] for at in range(start, end)}


@given(spans())
def test_subsets_agree_with_sets_of_characters(found):
    items = items_of(TEXT, found)
    # The obvious twin: every pair, character by character.
    expected = {name: set() for name in SUBSETS}
    for item in items:
        gaps = [TEXT[end:start] for (_, end), (start, _) in pairwise(item[1])]
        assert all(gap.strip() for gap in gaps), "blanks are no gap"
        if gaps:
            expected["discontinuous"].add(item)
        for other in items - {item}:
            first, second = characters(item), characters(other)
            if first <= second or second <= first:
                expected["nested"].add(item)
            elif first & second:
                expected["overlapping"].add(item)
        if any(item in expected[name] for name in SUBSETS):
            expected["any"].add(item)
    assert find_subsets(items) == expected


@given(spans(), spans(), st.randoms(use_true_random=False))
def test_the_order_of_spans_does_not_matter_and_every_gold_item_is_found_or_missed(
    gold, predicted, draw
):
    counts = score_subsets(TEXT, gold, predicted)
    theirs = find_subsets(items_of(TEXT, gold))
    for name in SUBSETS:
        of_subset = counts.get(name, Counts())
        assert of_subset.tp + of_subset.fn == len(theirs[name])
        assert of_subset.fp <= len(items_of(TEXT, predicted) - items_of(TEXT, gold))
    shuffled = [draw.sample(side, len(side)) for side in (gold, predicted)]
    assert score_subsets(TEXT, *shuffled) == counts
    assert all(c.fp == c.fn == 0 for c in score_subsets(TEXT, gold, gold).values())


@given(spans(), spans(whole=True))
def test_single_stretches_never_find_a_discontinuous_span(gold, predicted):
    counts = score_subsets(TEXT, gold, predicted).get("discontinuous", Counts())
    assert (counts.tp, counts.fp) == (0, 0)


def test_synthetic_notes_have_nested_spans_and_line_ends_are_not_gaps():
    notes = synthesize_corpus("n2c2-2018", 20, "a", 1).notes
    assert any(span.is_discontinuous for note in notes for span in note.spans)
    counts = [score_subsets(note.text, note.spans, note.spans) for note in notes]
    assert pool(subsets.get("nested", Counts()) for subsets in counts).tp > 20
    assert not any("discontinuous" in subsets for subsets in counts)


@needs_shared
@pytest.mark.parametrize(
    ("folder", "reader", "labels", "num_items", "sizes"),
    [
        ("phee", "phee", "drug-ade", 10765, (305, 8, 210, 514)),
        ("phee", "phee", None, 24127, (14816, 142, 503, 15031)),
        ("maccrobat2020", "maccrobat", "drug-ade", 1331, (0, 0, 2, 2)),
        ("maccrobat2020", "maccrobat", None, 19892, (512, 44, 29, 554)),
        ("bc5cdr", "pubtator", None, 18976, (0, 0, 0, 0)),
    ],
)
def test_real_corpora_have_as_many_as_the_results_page_says(
    folder, reader, labels, num_items, sizes
):
    notes = read_corpus(SHARED / "corpora" / folder, reader, labels).notes
    items = [items_of(note.text, note.spans) for note in notes]
    found = [find_subsets(of_note) for of_note in items]
    assert sum(map(len, items)) == num_items
    assert tuple(sum(len(subsets[name]) for subsets in found) for name in SUBSETS) == sizes
