"""Lanes in a pool end with the result they would reach alone, whatever happens to their neighbours.

A neighbour that fails, joins late, leaves or is reopened elsewhere may cost time, but it must not change
another lane's result.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from raymrc.configuration import FoldRun
from raymrc.errors import TrainingError
from raymrc.ledger.record import Epoch, Record
from raymrc.model.encoder import Encoder
from raymrc.model.inputs import Inputs
from raymrc.model.loading import Loaded
from raymrc.scoring.counts import pool as pool_counts
from raymrc.training import pool as pool_module
from raymrc.training.batching import StudyData
from raymrc.training.fused import BatchPart
from raymrc.training.pool import Pool
from tests.training.fold_runs import train_fold_run
from tests.training.test_lane import make_run


def make_frozen(loaded: Loaded, number: int = 0, **fields: Any) -> FoldRun:
    """Makes a fold-run; each number varies most fields of the configuration."""
    form: dict[str, Any] = {
        "prompt_length": 2 + number % 5,
        "learning_rate": 0.01 * (1 + number % 4),
        "batch_size": 2 + number % 4,
        "epochs": 3,
        "dropout": 0.1,
        "negative_rate": 0.5,
        "first_layer": (0, 0, 2)[number % 3],
        "seed": number,
    }
    return make_run(loaded, "frozen_soft_prompt", number % 3, **form | fields)


def run_out(pool: Pool, found: dict[str, list[Any]] | None = None) -> dict[str, list[Any]]:
    """Steps until no lane is open and returns the events of each key, in order."""
    found = {} if found is None else found
    while len(pool):
        for event in pool.step():
            found.setdefault(event.key, []).append(event.what)
    return found


def assert_same_result(record: Record, alone: Record) -> None:
    """In a shared pass sums run in a different order, so losses may differ in the last digits."""
    assert (record.notes, record.validation) == (alone.notes, alone.validation)
    assert (record.best_epoch, record.validation_f1) == (alone.best_epoch, alone.validation_f1)
    assert record.tokens == alone.tokens
    for mine, theirs in zip(record.epochs, alone.epochs, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-4)


@pytest.mark.parametrize("strategy", ["fine_tune", "soft_prompt", "frozen_soft_prompt"])
def test_an_ended_lane_is_freed_from_memory_immediately(
    strategy: str, loaded: Loaded, data: StudyData
) -> None:
    """A reference cycle would keep its model and moments until the garbage collector runs."""
    pool = Pool(loaded, data)
    gc.collect()
    gc.disable()
    try:
        for steps in (2, None):  # the first lane is closed early, the second finishes
            run = make_run(loaded, strategy, epochs=1, seed=steps or 0)
            pool.open(run)
            lane = weakref.ref(pool._seats[run.key].lane)
            assert lane() is not None
            if steps is None:
                run_out(pool)
            else:
                for _ in range(steps):
                    pool.step()
                pool.close(run.key)
            assert lane() is None
    finally:
        gc.enable()


def test_32_lanes_give_the_results_each_gives_alone(loaded: Loaded, data: StudyData) -> None:
    runs = [make_frozen(loaded, number) for number in range(32)]
    pool = Pool(loaded, data)
    for run in runs:
        pool.open(run)
    found = run_out(pool)
    assert found.keys() == {run.key for run in runs}
    for run in runs[::5]:
        *epochs, record = found[run.key]
        assert tuple(epochs) == record.epochs and len(epochs) == 3
        assert_same_result(record, train_fold_run(run, data, loaded))


def test_lanes_can_join_and_leave_at_any_step(loaded: Loaded, data: StudyData) -> None:
    pool, found = Pool(loaded, data), {}
    runs = [make_frozen(loaded, number) for number in range(6)]
    for number, run in enumerate(runs):
        pool.open(run)
        for _ in range(number):
            for event in pool.step():
                found.setdefault(event.key, []).append(event.what)
    pool.close(runs[2].key)
    run_out(pool, found)
    assert not any(isinstance(what, Record) for what in found.get(runs[2].key, ()))
    for run in (runs[0], runs[4]):
        assert_same_result(found[run.key][-1], train_fold_run(run, data, loaded))


SHARES = (0.1, 0.45, 0.75, 0.97)


@pytest.mark.parametrize(
    ("strategy", "share"),
    [("frozen_soft_prompt", share) for share in SHARES] + [("soft_prompt", 0.4)],
)
def test_a_lane_reopened_elsewhere_gives_a_bit_identical_result(
    strategy: str, share: float, loaded: Loaded, data: StudyData
) -> None:
    """The lane is saved after this share of its steps, during training, validation or scoring."""
    if strategy == "frozen_soft_prompt":
        run = make_frozen(loaded, 4, reparametrisation="mlp")
    else:
        run = make_run(loaded, strategy, epochs=3, dropout=0.1, prompt_length=3, batch_size=4)
    undisturbed = Pool(loaded, data)
    undisturbed.open(run)
    steps, whole = 0, None
    while whole is None:
        steps += 1
        whole = next((e.what for e in undisturbed.step() if isinstance(e.what, Record)), None)
    first = Pool(loaded, data)
    first.open(run)
    events: list[Any] = []
    for _ in range(max(1, int(share * steps))):
        events += [event.what for event in first.step()]
    state = first.save(run.key)
    first.step()  # this step is lost with its host
    torch.rand(3)
    second = Pool(loaded, data)
    second.open(run, state)
    *epochs, record = run_out(second)[run.key]
    assert len(epochs) == 3 - len(events)
    assert record.notes == whole.notes and record.tokens == whole.tokens
    assert [e.loss for e in record.epochs] == [e.loss for e in whole.epochs]
    assert [e.validation_f1 for e in record.epochs] == [e.validation_f1 for e in whole.epochs]
    assert record.device_seconds > sum(e.wall_seconds for e in events) / 4


@pytest.mark.parametrize("strategy", ["frozen_soft_prompt", "fine_tune"])
def test_pausing_at_rungs_does_not_change_the_result_of_a_lane(
    strategy: str, loaded: Loaded, data: StudyData
) -> None:
    """A paused lane reports its validation scores and its cost so far."""
    frozen = strategy == "frozen_soft_prompt"
    more = {"prompt_length": 3} if frozen else {}
    run = make_run(loaded, strategy, epochs=4, dropout=0.1, batch_size=4, **more)
    whole = train_fold_run(run, data, loaded)
    state, paused = None, None
    for until in (1, 3):
        pool = Pool(loaded, data)
        pool.open(run, state)
        while pool.epochs(run.key) < until:
            assert not any(isinstance(event.what, Record) for event in pool.step())
        state, before = pool.save(run.key), paused
        paused = pool.pause(run.key)
        assert not len(pool)
        assert paused.status == "paused" and not paused.notes
        assert [e.validation_f1 for e in paused.epochs] == [
            e.validation_f1 for e in whole.epochs[:until]
        ]
        assert paused.validation_f1 == max(e.validation_f1 for e in paused.epochs)
        assert pool_counts(paused.validation.values()).f1 == paused.validation_f1
        assert paused.trained_parameters == whole.trained_parameters
        assert paused.device_seconds > (before.device_seconds if before else 0.0)
        assert Record.from_json(paused.to_json()) == paused
    pool = Pool(loaded, data)
    pool.open(run, state)
    *_, record = run_out(pool)[run.key]
    assert record.status == "done" and record.notes == whole.notes
    assert [e.loss for e in record.epochs] == [e.loss for e in whole.epochs]
    assert record.device_seconds > paused.device_seconds, "what it cost before is in it"


def test_a_lane_with_a_nan_loss_fails_without_affecting_others(
    loaded: Loaded, data: StudyData
) -> None:
    pool = Pool(loaded, data)
    ill, well = make_frozen(loaded, 1, learning_rate=1e20), make_frozen(loaded, 2)
    pool.open(ill)
    pool.open(well)
    found = run_out(pool)
    assert isinstance(found[ill.key][-1], TrainingError)
    assert "not a number at step" in str(found[ill.key][-1])
    assert_same_result(found[well.key][-1], train_fold_run(well, data, loaded))


def test_a_failing_pass_is_split_until_only_the_faulty_lane_fails(
    loaded: Loaded, data: StudyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_frozen(loaded, number, first_layer=0) for number in range(5)]
    backward = pool_module.backward_together

    def refuse_one(parts: list[BatchPart]) -> torch.Tensor:
        losses = backward(parts)
        if any(part.model.configuration.seed == 3 for part in parts):
            raise ValueError("made up")
        return losses

    monkeypatch.setattr(pool_module, "backward_together", refuse_one)
    pool = Pool(loaded, data)
    for run in runs:
        pool.open(run)
    found = run_out(pool)
    assert isinstance(found[runs[3].key][0], ValueError)
    monkeypatch.undo()
    for run in (runs[0], runs[4]):  # repeating the pass must not draw dropout twice
        assert_same_result(found[run.key][-1], train_fold_run(run, data, loaded))


def test_a_pass_that_runs_out_of_memory_is_halved_and_recorded(
    loaded: Loaded, data: StudyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_frozen(loaded, number, first_layer=0, batch_size=4) for number in range(4)]
    backward = pool_module.backward_together
    passes: list[int] = []

    def too_large(parts: list[BatchPart]) -> torch.Tensor:
        passes.append(sum(part.inputs.input_ids_BS.numel() for part in parts))
        if len(parts) > 2:
            raise torch.OutOfMemoryError("made up")
        return backward(parts)

    monkeypatch.setattr(pool_module, "backward_together", too_large)
    pool = Pool(loaded, data)
    for run in runs:
        pool.open(run)
    budget = pool.pass_pieces
    found = run_out(pool)
    records = [found[run.key][-1] for run in runs]
    assert all(isinstance(record, Record) for record in records)
    assert any(record.memory_halvings for record in records)
    assert pool.pass_pieces < budget
    assert sum(record.memory_halvings for record in records) <= 4 * 3, "it learns from the first"
    monkeypatch.undo()
    for run, record in zip(runs, records, strict=True):
        assert_same_result(record, train_fold_run(run, data, loaded))


def test_an_error_for_a_batch_that_cannot_be_halved_names_the_settings_to_lower(
    loaded: Loaded, data: StudyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(parts: list[BatchPart]) -> torch.Tensor:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough")

    monkeypatch.setattr(pool_module, "backward_together", never)
    with pytest.raises(TrainingError, match="set batch_size or window to less"):
        train_fold_run(make_frozen(loaded), data, loaded)


def test_the_pool_knows_whether_a_lane_fits_before_opening_it(
    loaded: Loaded, data: StudyData
) -> None:
    run = make_frozen(loaded)
    pool = Pool(loaded, data, memory_bytes=1)
    assert not pool.fits(run)
    with pytest.raises(TrainingError, match="set match_width or prompt_length to less"):
        pool.open(run)
    pool = Pool(loaded, data, memory_bytes=8 * 2**20)
    number = 0
    while pool.fits(make_frozen(loaded, number)):
        pool.open(make_frozen(loaded, number))
        number += 1
    assert 2 < number < 2000
    pool.close(make_frozen(loaded, 0).key)
    assert pool.fits(make_frozen(loaded, 0))


def test_device_time_of_the_pool_is_split_fully_among_its_lanes(
    loaded: Loaded, data: StudyData
) -> None:
    small, large = make_frozen(loaded, 1, batch_size=1), make_frozen(loaded, 3, batch_size=8)
    pool = Pool(loaded, data)
    import time

    began = time.process_time()
    pool.open(small)
    pool.open(large)
    found = run_out(pool)
    used = time.process_time() - began
    records: list[Record] = [found[run.key][-1] for run in (small, large)]
    assert 0.7 * used < sum(record.device_seconds for record in records) <= used
    for record in records:
        assert 0 < record.training_seconds + record.evaluation_seconds <= record.wall_seconds


def test_lanes_that_train_the_backbone_can_run_beside_frozen_lanes(
    loaded: Loaded, data: StudyData
) -> None:
    trained, frozen = make_run(loaded, "soft_prompt", dropout=0.0), make_frozen(loaded, 2)
    pool = Pool(loaded, data)
    pool.open(trained)
    pool.open(frozen)
    found = run_out(pool)
    assert_same_result(found[frozen.key][-1], train_fold_run(frozen, data, loaded))
    assert_same_result(found[trained.key][-1], train_fold_run(trained, data, loaded))
    assert isinstance(found[trained.key][0], Epoch)


def test_layers_below_a_late_prompt_run_once_per_window_for_all_lanes(
    loaded: Loaded, data: StudyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds across labels, epochs, folds and configurations."""
    rows: list[int] = []
    below = Encoder.below

    def count(self: Encoder, inputs: Inputs, layer: int) -> torch.Tensor:
        rows.append(len(inputs.label_B))
        return below(self, inputs, layer)

    monkeypatch.setattr(Encoder, "below", count)
    runs = [make_frozen(loaded, number, first_layer=2, negative_rate=1.0) for number in range(5)]
    pool = Pool(loaded, data)
    for run in runs:
        pool.open(run)
    found = run_out(pool)
    windows = data.windows(loaded.tokenizer, loaded.backbone.source, 20, 4)
    assert sum(rows) == sum(map(len, windows.values()))
    monkeypatch.undo()
    pool = Pool(loaded, data)
    monkeypatch.setattr(pool, "_activations_of", lambda fold_run: None)
    pool.open(runs[3])
    assert_same_result(found[runs[3].key][-1], run_out(pool)[runs[3].key][-1])
