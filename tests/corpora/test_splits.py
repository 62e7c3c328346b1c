"""Promise: no patient, article or text is on two sides, and each note is scored exactly once.

It could break unnoticed, because scores get better when it does.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymrc.corpora.formats import read_corpus
from raymrc.corpora.note import Corpus, Note, Span
from raymrc.corpora.splits import (
    check_folds,
    count_mentions,
    hold_out,
    make_folds,
    shared_notes,
    take_subset,
)
from raymrc.corpora.synthetic import synthesize_corpus
from raymrc.errors import CorpusError
from tests.paths import SHARED, needs_shared

LABELS = ("Drug", "ADE")


def make_note(number: int, group: str, labels: list[str], text: str | None = None) -> Note:
    spans = tuple(Span(f"T{i}", label, ((i, i + 1),)) for i, label in enumerate(labels))
    return Note(f"n{number}", text or f"note {number} of this corpus", spans, (), group)


@st.composite
def corpora(draw: st.DrawFn) -> Corpus:
    count = draw(st.integers(8, 40))
    groups = [f"g{i}" for i in range(8)]
    texts = st.sampled_from([None, None, None, "Denies any use.", " Denies any  use. "])
    notes = [
        make_note(
            number,
            # The first eight notes ensure that there are eight groups.
            groups[number] if number < 8 else draw(st.sampled_from(groups)),
            draw(st.lists(st.sampled_from(LABELS), max_size=5)),
            None if number < 8 else draw(texts),
        )
        for number in range(count)
    ]
    return Corpus(tuple(notes), LABELS)


def groups_of(corpus: Corpus, ids) -> set[str]:
    ids = set(ids)
    return {note.group for note in corpus.notes if note.id in ids}


def texts_of(corpus: Corpus, ids) -> set[str]:
    ids = set(ids)
    return {" ".join(note.text.split()) for note in corpus.notes if note.id in ids}


@given(corpora(), st.integers(2, 4), st.integers(0, 3), st.sampled_from([0.0, 0.1, 0.5]))
@settings(max_examples=60, deadline=None)
def test_sides_share_no_note_group_or_text_and_every_note_is_scored_once(
    corpus, count, seed, share
):
    try:
        folds = make_folds(corpus, count, seed, share)
    except CorpusError:
        return  # too many equal texts leave too few groups
    scored = Counter()
    for fold in range(count):
        split = folds.split(fold)
        sides = (split.train, split.validation, split.scored)
        assert sorted(i for side in sides for i in side) == sorted(n.id for n in corpus.notes)
        for collect in (groups_of, texts_of):
            train, validation, held_out = (collect(corpus, side) for side in sides)
            assert not train & validation
            assert not train & held_out
            assert not validation & held_out
        assert split.train
        assert split.scored
        assert bool(split.validation) == (share > 0)
        scored.update(split.scored)
    assert scored == {note.id: 1 for note in corpus.notes}


def test_folds_with_a_note_on_two_sides_are_refused():
    notes = tuple(Note(f"n{i}", f"words of note {i}", group=f"p{i}") for i in range(6))
    corpus = Corpus(notes, ("Drug",))
    folds = make_folds(corpus, 3, 0, 0.3)
    check_folds(folds, corpus)
    scored = folds.split(0).scored[0]
    leaks = replace(folds, validation=((*folds.validation[0], scored), *folds.validation[1:]))
    with pytest.raises(CorpusError, match=f"note {scored} is in validation and scored of fold 0"):
        check_folds(leaks, corpus)
    # The same words, or the same patient, in another fold.
    other = next(note for note in notes if note.id in folds.split(0).train)
    for twin in (replace(other, id=scored, group="p9"), replace(other, id=scored, text="others")):
        twins = tuple(twin if note.id == scored else note for note in notes)
        with pytest.raises(CorpusError, match="by id, text or group"):
            check_folds(folds, replace(corpus, notes=twins))


@given(corpora(), st.integers(0, 3), st.sampled_from([0.1, 0.3, 0.5]))
@settings(max_examples=40, deadline=None)
def test_held_out_notes_share_no_group_or_text_with_the_rest(corpus, seed, share):
    try:
        rest, held = hold_out(corpus, share, seed)
    except CorpusError:
        return  # one group
    ids = [[note.id for note in part.notes] for part in (rest, held)]
    assert all(ids) and sorted(ids[0] + ids[1]) == sorted(note.id for note in corpus.notes)
    assert not groups_of(corpus, ids[0]) & groups_of(corpus, ids[1])
    assert not texts_of(corpus, ids[0]) & texts_of(corpus, ids[1])
    assert not shared_notes(rest, held)
    assert rest.labels == held.labels == corpus.labels


@given(corpora(), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_notes_does_not_matter(corpus, dice):
    shuffled = list(corpus.notes)
    dice.shuffle(shuffled)
    permuted = replace(corpus, notes=tuple(shuffled))
    assert outcome(permuted) == outcome(corpus)
    drawn = take_subset(corpus, 10, seed=5).notes
    assert {n.id for n in take_subset(permuted, 10, seed=5).notes} == {n.id for n in drawn}


def test_rounding_does_not_bring_in_the_order_of_the_notes():
    """Here two validation parts are equally good; sums of floats in the notes' order chose between them."""
    dice = random.Random(1319)
    notes = [
        make_note(i, f"g{i % 8}", dice.choices(LABELS, k=dice.randrange(4))) for i in range(20)
    ]
    folds = make_folds(Corpus(tuple(notes), LABELS), 3, 5, 0.2)
    dice.shuffle(notes)
    assert make_folds(Corpus(tuple(notes), LABELS), 3, 5, 0.2) == folds


def outcome(corpus):
    try:
        return make_folds(corpus, 3, seed=5, validation_share=0.2)
    except CorpusError as error:
        return str(error)


def test_equal_seeds_give_equal_folds_and_other_seeds_others():
    corpus = Corpus(tuple(make_note(i, f"g{i}", ["Drug"]) for i in range(50)), LABELS)
    first, again, other = (make_folds(corpus, 5, seed, 0.1) for seed in (1, 1, 2))
    assert first == again
    assert first.fingerprint == again.fingerprint
    assert first.assignment != other.assignment
    assert first.fingerprint != other.fingerprint
    assert first.fingerprint != make_folds(corpus, 5, 1, 0.2).fingerprint


def test_notes_of_equal_size_fill_folds_equally():
    corpus = Corpus(tuple(make_note(i, f"g{i}", ["Drug"]) for i in range(50)), LABELS)
    folds = make_folds(corpus, 5, seed=1, validation_share=0.1)
    assert Counter(fold for _, fold in folds.assignment) == dict.fromkeys(range(5), 10)
    assert [len(ids) for ids in folds.validation] == [4] * 5


def test_copies_of_a_note_stay_together_whatever_their_groups():
    notes = [make_note(i, f"g{i}", ["Drug"], f"text {i % 6}") for i in range(24)]
    folds = make_folds(Corpus(tuple(notes), LABELS), 3, seed=1)
    fold_of = dict(folds.assignment)
    for note in notes:
        twins = [other for other in notes if other.text == note.text]
        assert len({fold_of[twin.id] for twin in twins}) == 1


def test_blank_notes_are_not_treated_as_copies():
    notes = [make_note(i, f"g{i}", [], " " * (i + 1)) for i in range(10)]
    assert make_folds(Corpus(tuple(notes), LABELS), 5, seed=1).count == 5


@pytest.mark.parametrize(
    ("groups", "count", "share", "reason"),
    [
        (4, 5, 0.1, "4 groups of notes cannot fill 5 folds"),
        (2, 2, 0.1, "leave none for validation"),
        (4, 1, 0.1, "set at least 2"),
        (4, 2, 1.0, "is not from 0 to below 1"),
    ],
)
def test_impossible_folds_are_refused(groups, count, share, reason):
    notes = [make_note(i, f"g{i % groups}", ["Drug"]) for i in range(20)]
    with pytest.raises(CorpusError, match=reason):
        make_folds(Corpus(tuple(notes), LABELS), count, 1, share)


def test_a_small_subset_is_part_of_a_large_one_and_has_whole_groups():
    notes = [make_note(i, f"g{i // 3}", ["Drug"]) for i in range(60)]
    corpus = Corpus(tuple(notes), LABELS, ("Of",))
    small, large = (take_subset(corpus, size, seed=7) for size in (10, 30))
    assert len(small.notes) == 12
    assert set(small.notes) <= set(large.notes)
    assert list(large.notes) == [note for note in notes if note in large.notes]
    assert len(groups_of(corpus, (note.id for note in small.notes))) == 4
    assert (small.labels, small.relation_labels) == (corpus.labels, corpus.relation_labels)
    assert take_subset(corpus, 1000, seed=7) == corpus
    with pytest.raises(CorpusError, match="set at least 1"):
        take_subset(corpus, 0, seed=7)


@needs_shared
@pytest.mark.parametrize("seed", [1, 2])
def test_phee_s_labels_are_spread_evenly_over_folds_and_validation(seed):
    corpus = read_corpus(SHARED / "corpora" / "phee", "phee")
    folds = make_folds(corpus, 5, seed, validation_share=0.1)
    notes = {note.id: note for note in corpus.notes}

    def count(ids):
        return Counter(span.label for i in ids for span in notes[i].spans)

    total = count(notes)
    for fold in range(5):
        split = folds.split(fold)
        scored, validation = count(split.scored), count(split.validation)
        assert len(split.scored) / len(notes) == pytest.approx(0.2, abs=0.01)
        for label in corpus.labels:
            # Whole articles have several spans of a rare label, so shares can be off by a few spans:
            # half a point for labels with at least 200 spans, two points for the rarest (56).
            tolerance = 0.005 if total[label] >= 200 else 0.02
            assert scored[label] / total[label] == pytest.approx(0.2, abs=tolerance)
            training = total[label] - scored[label]
            assert validation[label] / training == pytest.approx(0.1, abs=tolerance)


@needs_shared
def test_phee_s_folds_do_not_depend_on_the_order_of_its_lines():
    corpus = read_corpus(SHARED / "corpora" / "phee", "phee", labels="drug-ade")
    notes = list(corpus.notes)
    random.Random(3).shuffle(notes)
    assert make_folds(replace(corpus, notes=tuple(notes)), 5, seed=1) == make_folds(
        corpus, 5, seed=1
    )


def test_few_notes_are_nested_within_a_draw_and_come_from_the_training_folds():
    corpus = synthesize_corpus("n2c2-2018", 40, "a", 13)
    folds = make_folds(corpus, 4, seed=1, validation_share=0.2)
    for fold in range(4):
        whole = folds.split(fold)
        draws = []
        for draw in range(3):
            splits = [folds.few_shot(fold + 4 * draw, shots) for shots in (2, 5, 12)]
            for fewer, more in pairwise(splits):
                assert {*fewer.train} < {*more.train} and {*fewer.validation} <= {*more.validation}
            for shots, split in zip((2, 5, 12), splits, strict=True):
                assert len(split.train) == shots and len(split.validation) <= shots
                assert {*split.train} <= {*whole.train}
                assert {*split.validation} <= {*whole.validation}
                assert split.scored == whole.scored
            draws.append(splits[1].train)
        assert len(set(draws)) == 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=8, max_size=30), st.data())
def test_few_mentions_are_the_fewest_notes_of_a_draw_that_contain_them(held, data):
    notes = tuple(make_note(i, f"g{i}", ["Drug"] * number) for i, number in enumerate(held))
    folds = make_folds(Corpus(notes, LABELS), 2, seed=1, validation_share=0.3)
    mentions = count_mentions(notes)
    assert list(mentions.values()) == held
    fold, draw = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 3))
    whole = folds.split(fold)
    before = None
    for shots in sorted(data.draw(st.sets(st.integers(1, 60), min_size=2, max_size=5))):
        split = folds.few_shot(fold + 2 * draw, shots, mentions)
        assert split.scored == whole.scored
        for part in ("train", "validation"):
            few, all_of_it = getattr(split, part), getattr(whole, part)
            assert {*few} <= {*all_of_it}
            assert sum(mentions[i] for i in few) >= shots or few == all_of_it
            # The first notes of the draw; with one note less there are too few mentions.
            assert few == getattr(folds.few_shot(fold + 2 * draw, len(few)), part)
            if len(few) > 1:
                fewer = getattr(folds.few_shot(fold + 2 * draw, len(few) - 1), part)
                assert sum(mentions[i] for i in fewer) < shots
            assert before is None or {*getattr(before, part)} <= {*few}
        before = split


def test_draws_of_few_mentions_differ():
    corpus = synthesize_corpus("n2c2-2018", 40, "a", 13)
    folds = make_folds(corpus, 4, seed=1, validation_share=0.2)
    mentions = count_mentions(corpus.notes)
    assert len({folds.few_shot(4 * draw, 100, mentions).train for draw in range(3)}) == 3
