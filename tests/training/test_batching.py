"""Rows place the window and the question correctly, and an epoch skips no row that it must include."""

from __future__ import annotations

import itertools
import pickle
import random

import pytest
import torch

from raymrc.model.inputs import Inputs, SpanTargets, TagTargets
from raymrc.model.loading import Loaded
from raymrc.reading.rows import Row, evaluation_batches, steps_per_epoch, training_batches
from raymrc.training.batching import StudyData, collate, collate_targets, prefetch
from tests.model.tiny import KINDS, tiny_configuration, tiny_loaded
from tests.training.test_lane import LABELS


@pytest.fixture(scope="module", params=KINDS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return tiny_loaded(request.param, tmp_path_factory.mktemp("tiny"))


def build_rows(loaded: Loaded, data: StudyData, strategy: str) -> list[Row]:
    configuration = tiny_configuration(loaded.backbone, strategy, window=8, overlap=4)
    rows = data.rows(loaded.tokenizer, loaded.shape, configuration)
    return [row for of_note in rows.values() for row in of_note]


def test_a_worded_question_precedes_the_window_with_the_tokenizers_special_tokens(
    loaded: Loaded, data: StudyData
) -> None:
    row = build_rows(loaded, data, "hard_prompt")[1]
    tokenizer = loaded.tokenizer
    question = tokenizer(data.questions[LABELS[1]], add_special_tokens=False)["input_ids"]
    middle = [tokenizer.sep_token_id] * (2 if loaded.shape.kind == "roberta" else 1)
    ends = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert row.pieces.ids.tolist() == [ends[0], *question, *middle, *row.window.piece_ids, ends[1]]
    assert row.pieces.ids[row.pieces.places].tolist() == list(row.window.piece_ids)
    if loaded.shape.kind != "roberta":
        assert row.pieces.types.tolist() == [0] * row.pieces.places[0] + [1] * (
            len(row.window.piece_ids) + 1
        )


@pytest.mark.parametrize("strategy", ["hard_prompt", "soft_prompt"])
def test_targets_mark_the_pieces_of_the_gold_spans(
    strategy: str, loaded: Loaded, data: StudyData
) -> None:
    rows = build_rows(loaded, data, strategy)
    notes = {note.id: note for note in data.corpus.notes}
    found = set()
    for batch in evaluation_batches(rows, 200):
        inputs = collate(batch, pad=loaded.shape.pad_id)
        targets = collate_targets(batch, inputs)
        assert isinstance(targets, SpanTargets)
        for b, first, last in targets.pairs_K3.tolist():
            row = batch[b]
            assert inputs.window_BS[b, first] and inputs.window_BS[b, last]
            assert targets.start_BS[b, first] == 1 and targets.end_BS[b, last] == 1
            start = row.window.offsets[first - row.pieces.places[0]][0]
            end = row.window.offsets[last - row.pieces.places[0]][1]
            found.add((row.window.note_id, LABELS[row.label], start, end))
        assert not targets.start_BS[~inputs.window_BS].any()
        assert not targets.end_BS[~inputs.window_BS].any()
    gold = {(n.id, s.label, s.start, s.end) for n in notes.values() for s in n.spans}
    assert found == gold


def test_tags_are_set_only_on_the_windows_pieces(loaded: Loaded, data: StudyData) -> None:
    rows = build_rows(loaded, data, "fine_tune")
    inputs = collate(rows, pad=loaded.shape.pad_id)
    targets = collate_targets(rows, inputs)
    assert isinstance(targets, TagTargets)
    assert not targets.tags_BSL[~inputs.window_BS].any()
    for b, row in enumerate(rows):
        inside = targets.tags_BSL[b, row.pieces.places]
        assert torch.equal(inside, torch.from_numpy(row.tags).long())


def test_padding_is_masked_and_lies_outside_the_window(loaded: Loaded, data: StudyData) -> None:
    rows = build_rows(loaded, data, "hard_prompt")
    inputs = collate(rows, pad=loaded.shape.pad_id)
    for b, row in enumerate(rows):
        assert inputs.mask_BS[b].sum() == row.length
        assert inputs.window_BS[b].sum() == len(row.window.piece_ids)
        assert not (inputs.window_BS[b] & ~inputs.mask_BS[b]).any()


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_an_epoch_has_each_row_with_an_answer_once_and_a_sample_of_the_rest(
    rate: float, loaded: Loaded, data: StudyData
) -> None:
    rows = build_rows(loaded, data, "soft_prompt")
    batches = list(training_batches(rows, 4, rate, random.Random(3)))
    seen = [id(row) for batch in batches for row in batch]
    assert len(seen) == len(set(seen))
    assert {id(row) for row in rows if row.has_answer} <= set(seen)
    without = [row for row in rows if not row.has_answer]
    sampled = sum(id(row) in set(seen) for row in without)
    assert abs(sampled - rate * len(without)) <= 3 * (len(without) * rate * (1 - rate)) ** 0.5
    assert all(len(batch) <= 4 for batch in batches)
    if rate in (0.0, 1.0):
        assert len(batches) == steps_per_epoch(rows, 4, rate)


def test_row_order_differs_between_epochs_and_repeats_with_the_seed(
    loaded: Loaded, data: StudyData
) -> None:
    rows = build_rows(loaded, data, "soft_prompt")
    draw = random.Random(5)
    orders = [
        [id(row) for batch in training_batches(rows, 4, 1.0, g) for row in batch]
        for g in (draw, draw, random.Random(5))
    ]
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]


def test_evaluation_batches_cover_all_rows_within_the_budget(
    loaded: Loaded, data: StudyData
) -> None:
    rows = build_rows(loaded, data, "hard_prompt")
    batches = list(evaluation_batches(rows, 150))
    assert sorted(map(id, rows)) == sorted(id(row) for batch in batches for row in batch)
    assert all(len(b) * max(row.length for row in b) <= 150 for b in batches)
    assert len(batches) > 1


def test_rows_of_one_window_share_a_pass_when_questions_are_vectors(
    loaded: Loaded, data: StudyData
) -> None:
    rows = build_rows(loaded, data, "soft_prompt")
    shuffled = random.Random(1).sample(rows, len(rows))
    inputs = collate(shuffled, pad=loaded.shape.pad_id)
    assert inputs.share_B is not None
    for b, first in enumerate(inputs.share_B.tolist()):
        assert torch.equal(inputs.input_ids_BS[b], inputs.input_ids_BS[first])
        assert inputs.share_B[first] == first <= b
    windows = {(row.window.note_id, row.window.index) for row in rows}
    pieces = {row.window.piece_ids for row in rows}
    assert len(pieces) == len(inputs.share_B.unique()) <= len(windows) < len(rows)


def test_rows_with_different_pieces_share_no_pass(loaded: Loaded, data: StudyData) -> None:
    """With worded questions each row of a window differs; with tags each window has a single row."""
    row = build_rows(loaded, data, "soft_prompt")[0]
    assert collate([row], pad=loaded.shape.pad_id).share_B is None
    asked = build_rows(loaded, data, "hard_prompt")[: len(LABELS)]
    assert len({row.window for row in asked}) == 1
    assert collate(asked, pad=loaded.shape.pad_id).share_B is None
    tagged = {r.window.piece_ids: r for r in build_rows(loaded, data, "fine_tune")}
    assert collate(list(tagged.values()), pad=loaded.shape.pad_id).share_B is None


def test_evaluation_keeps_the_rows_of_a_window_together(loaded: Loaded, data: StudyData) -> None:
    rows = build_rows(loaded, data, "soft_prompt")
    for given in (rows, random.Random(2).sample(rows, len(rows))):
        order = itertools.chain.from_iterable(evaluation_batches(given, 150))
        windows = [key for key, _ in itertools.groupby(order, key=lambda row: row.window)]
        assert len(windows) == len(set(windows)) == len(rows) / len(LABELS)


def test_study_data_is_pickled_without_its_caches(loaded: Loaded, data: StudyData) -> None:
    build_rows(loaded, data, "soft_prompt")
    sent = pickle.loads(pickle.dumps(data))
    assert sent == data
    assert data._cache and not sent._cache


def make_batches(loaded: Loaded, data: StudyData, seen: list[int]):
    """Yields batches in the form that a step takes; `seen` grows as each is collated."""
    rows = build_rows(loaded, data, "soft_prompt")
    for number, part in enumerate((rows[:3], rows[3:4], rows[4:9])):
        seen.append(number)
        inputs = collate(part, 0)
        yield part, inputs, collate_targets(part, inputs)


def test_collated_inputs_carry_the_length_of_each_row(loaded: Loaded, data: StudyData) -> None:
    for rows, inputs, _ in make_batches(loaded, data, []):
        assert inputs.lengths == tuple(row.length for row in rows)
        assert inputs.lengths == tuple(inputs.mask_BS.sum(1).tolist())
        assert inputs.is_padded == (not inputs.mask_BS.all())


def test_prefetching_on_a_cpu_copies_nothing_and_collates_nothing_ahead(
    loaded: Loaded, data: StudyData
) -> None:
    seen: list[int] = []
    given = make_batches(loaded, data, seen)
    for number, (rows, inputs, targets) in enumerate(prefetch(given, torch.device("cpu"))):
        assert seen == list(range(number + 1))
        assert not inputs.input_ids_BS.is_pinned() and not targets.start_BS.is_pinned()
        assert len(rows) == len(inputs.label_B) == len(targets.start_BS)
    batch = next(make_batches(loaded, data, []))
    (sent,) = prefetch([batch], torch.device("cpu"))
    assert sent[1].input_ids_BS.data_ptr() == batch[1].input_ids_BS.data_ptr()


def test_prefetching_to_a_gpu_pins_and_sends_one_batch_ahead(
    loaded: Loaded, data: StudyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is faked: the test checks only the calls made to it."""
    calls: list[str] = []
    for kind in (Inputs, SpanTargets):
        name = kind.__name__
        monkeypatch.setattr(
            kind, "pin_memory", lambda self, n=name: calls.append(f"pin {n}") or self
        )
        monkeypatch.setattr(
            kind, "to", lambda self, device, n=name: calls.append(f"send {n}") or self
        )
    seen: list[int] = []
    got = prefetch(make_batches(loaded, data, seen), torch.device("cuda"))
    sizes = []
    for number, (rows, inputs, _) in enumerate(got):
        assert seen == list(range(min(number + 2, 3)))
        sizes.append((len(rows), len(inputs.label_B)))
    assert sizes == [(3, 3), (1, 1), (5, 5)]
    assert calls == 3 * ["pin Inputs", "send Inputs", "pin SpanTargets", "send SpanTargets"]
    assert list(prefetch([], torch.device("cuda"))) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: nothing was sent to one")
def test_batches_arrive_unchanged_on_a_gpu(loaded: Loaded, data: StudyData) -> None:
    kept = list(make_batches(loaded, data, []))
    sent = list(prefetch(make_batches(loaded, data, []), torch.device("cuda")))
    for (_, inputs, targets), (_, sent_inputs, sent_targets) in zip(kept, sent, strict=True):
        assert sent_inputs.lengths == inputs.lengths
        assert torch.equal(sent_inputs.input_ids_BS.cpu(), inputs.input_ids_BS)
        assert torch.equal(sent_targets.pairs_K3.cpu(), targets.pairs_K3)
