"""Notes of another site are only scored: training and model selection never use them.

A bug here could be silent: the notes may enter validation, their gold may decide the questions, or a model
may be penalised for a label that only one site has.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from raymrc.configuration import FoldRun
from raymrc.corpora.labels import common_labels
from raymrc.corpora.note import Corpus, Note, Span
from raymrc.corpora.splits import count_mentions
from raymrc.ledger.record import Record
from raymrc.model.loading import Loaded
from raymrc.training.batching import StudyData
from raymrc.training.lane import Stage
from raymrc.training.pool import Pool
from tests.training.fold_runs import train_fold_run
from tests.training.test_lane import comparable
from tests.training.test_relations import make_relation_data, make_relation_notes, make_run

SITES = ("elsewhere", "far away")


@pytest.fixture(scope="module")
def home() -> StudyData:
    return make_relation_data(make_relation_notes())


def with_sites(home: StudyData, notes: tuple[Note, ...]) -> StudyData:
    other = Corpus(notes, ("Drug", "Dosage"), ("Dosage-Drug",))
    other = common_labels(other, home.corpus)
    return StudyData(home.corpus, home.folds, home.questions, dict.fromkeys(SITES, other))


def learnt(loaded: Loaded, task: str, strategy: str) -> FoldRun:
    rate = 3e-2 if strategy == "frozen_soft_prompt" else 1e-3
    return make_run(
        loaded, task, strategy, learning_rate=rate, head_learning_rate=1e-2, epochs=16
    )  # fmt: skip


@pytest.mark.parametrize(
    ("task", "strategy"),
    [
        ("concepts", "frozen_soft_prompt"),
        ("relations", "fine_tune"),
        ("end_to_end", "soft_prompt"),
        ("end_to_end", "fine_tune"),
    ],
)
def test_another_site_leaves_home_results_unchanged_and_its_gold_affects_only_its_score(
    task: str, strategy: str, loaded: Loaded, home: StudyData
) -> None:
    notes = make_relation_notes(12, seed=5)
    run = learnt(loaded, task, strategy)
    alone = train_fold_run(run, home, loaded)
    record = train_fold_run(run, with_sites(home, notes), loaded)
    assert alone.transfer == {} and set(record.transfer) == set(SITES)
    assert comparable(replace(record, transfer={})) == comparable(alone)
    assert record.transfer["elsewhere"] == record.transfer["far away"]
    strict = record.per_label("strict", "elsewhere")
    label = "Drug" if task == "concepts" else "Dosage-Drug"
    gold = sum(len(note.relations) for note in notes if task != "concepts")
    gold = sum(r.label == label for n in notes for r in n.relations) if gold else 24
    assert strict[label].tp + strict[label].fn == gold and strict[label].tp > 0
    assert not any("ADE" in label for label in strict), "the other site has no such label"
    if task != "relations":  # this task is given gold mentions
        bare = tuple(replace(note, spans=(), relations=()) for note in notes)
        blind = train_fold_run(run, with_sites(home, bare), loaded)
        assert comparable(replace(blind, transfer={})) == comparable(alone)
        found = {k: c.tp + c.fp for k, c in blind.per_label("strict", "elsewhere").items()}
        assert found[label] >= strict[label].tp + strict[label].fp > 0


def test_a_lane_moved_while_scoring_sites_ends_with_the_same_record(
    loaded: Loaded, home: StudyData
) -> None:
    data = with_sites(home, make_relation_notes(12, seed=5))
    run = learnt(loaded, "end_to_end", "frozen_soft_prompt")
    whole = train_fold_run(run, data, loaded)
    first = Pool(loaded, data, "cpu", pass_pieces=60)
    first.open(run)
    lane = first._seats[run.key].lane
    while not (lane.stage is Stage.TRANSFER and len(lane.transfer) == 1):
        first.step()
        assert len(first)
    second = Pool(loaded, data, "cpu")
    second.open(run, first.save(run.key))
    records = [e.what for _ in range(100) for e in second.step() if isinstance(e.what, Record)]
    assert comparable(records[0]) == comparable(whole)


def test_a_record_with_other_sites_survives_json_and_has_its_own_key(
    loaded: Loaded, home: StudyData
) -> None:
    run = learnt(loaded, "relations", "fine_tune")
    sited = replace(run, transfer_fingerprints=("elsewhere x",))
    record = train_fold_run(sited, with_sites(home, make_relation_notes(6, seed=5)), loaded)
    assert Record.from_json(record.to_json()) == record
    assert sited.key != run.key


@pytest.mark.parametrize("task", ["concepts", "relations", "end_to_end"])
def test_nested_spans_are_counted_only_for_shared_labels_and_tasks_that_score_spans(
    task: str, loaded: Loaded
) -> None:
    def nest(note: Note) -> Note:
        return replace(note, spans=(*note.spans, Span("N", "ADE", note.spans[0].fragments)))

    home = make_relation_data(tuple(nest(note) for note in make_relation_notes()))
    # The other site has no ADE label, so its gold has no nesting, although the answers there do nest.
    data = with_sites(home, tuple(nest(note) for note in make_relation_notes(12, seed=5)))
    record = train_fold_run(learnt(loaded, task, "fine_tune"), data, loaded)
    if task == "concepts":
        assert record.subsets["nested"].tp > 0
    else:
        assert record.subsets == {}
    assert not any(note.subsets for note in record.transfer["elsewhere"].values())


@pytest.mark.parametrize(("shots", "unit"), [(3, "notes"), (14, "mentions")])
def test_a_few_shot_lane_learns_only_from_its_few_notes(
    shots: int, unit: str, loaded: Loaded, home: StudyData
) -> None:
    run = learnt(loaded, "concepts", "fine_tune")
    cell = replace(run.configuration.cell, shots=shots, shots_of=unit)
    few = replace(run, configuration=replace(run.configuration, cell=cell), fold=3 + 1)
    mentions = count_mentions(home.corpus.notes)
    split = home.folds.few_shot(4, shots, mentions if unit == "mentions" else None)
    assert home.split(few) == split
    assert len(split.train) == 3 and split.scored == home.folds.split(1).scored
    assert unit == "notes" or sum(mentions[note_id] for note_id in split.train) >= shots
    record = train_fold_run(few, home, loaded)
    assert set(record.notes) == set(split.scored)
    kept = {*split.train, *split.validation, *split.scored}
    others = tuple(n if n.id in kept else replace(n, spans=()) for n in home.corpus.notes)
    bare = StudyData(replace(home.corpus, notes=others), home.folds, home.questions)
    assert comparable(train_fold_run(few, bare, loaded)) == comparable(record)
    assert Record.from_json(record.to_json()) == record


def test_notes_with_equal_ids_at_two_sites_do_not_share_stored_activations(
    loaded: Loaded, home: StudyData
) -> None:
    run = learnt(loaded, "concepts", "frozen_soft_prompt")
    late = replace(run, configuration=replace(run.configuration, first_layer=1, epochs=25))
    notes = make_relation_notes(12, seed=5)
    renamed = tuple(replace(n, id=f"x{n.id}", group=f"x{n.group}") for n in notes)
    assert {n.id for n in notes} & {n.id for n in home.corpus.notes}
    same, other = (
        train_fold_run(late, with_sites(home, away_notes), loaded).per_label("strict", "elsewhere")
        for away_notes in (notes, renamed)
    )
    assert same == other and sum(c.tp + c.fp for c in same.values()) > 0
