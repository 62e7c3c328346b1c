"""Promise: a duration in steps or device-seconds ends training exactly there, in equal parts, and a lane that
is saved within a part goes on with the next batch.

A failure would go unnoticed: strategies would be compared after unequal work.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from raymrc.configuration import Configuration, Duration, shorten
from raymrc.ledger.record import Record
from raymrc.model.loading import Loaded
from raymrc.reading.rows import Row, TrainingOrder, steps_per_epoch, training_batches
from raymrc.training.batching import StudyData
from raymrc.training.meter import Meter
from raymrc.training.pool import Pool
from tests.training.fold_runs import train_fold_run
from tests.training.test_lane import make_run

STRATEGIES = ("frozen_soft_prompt", "fine_tune")


def run_of(loaded: Loaded, strategy: str, **fields: Any) -> Any:
    more = {"prompt_length": 3} if strategy == "frozen_soft_prompt" else {}
    return make_run(loaded, strategy, dropout=0.1, batch_size=4, **more, **fields)


def rows_of(loaded: Loaded, data: StudyData, run: Any) -> list[Row]:
    by_note = data.rows(loaded.tokenizer, loaded.shape, run.configuration)
    return [row for rows in by_note.values() for row in rows]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("steps", "parts"), [(10, 4), (23, 3), (3, 3)])
def test_training_ends_after_the_given_steps_in_equal_parts(
    strategy: str, steps: int, parts: int, loaded: Loaded, data: StudyData
) -> None:
    run = run_of(loaded, strategy, epochs=parts, duration=f"{steps} steps")
    pool, seen = Pool(loaded, data), []
    pool.open(run)
    lane = pool._seats[run.key].lane
    while True:
        before = len(lane.epochs)
        ended = [e.what for e in pool.step() if isinstance(e.what, Record)]
        if len(lane.epochs) > before:
            seen.append(lane.steps)
        if ended:
            break
    (record,) = ended
    assert seen == [-(-steps * part // parts) for part in range(1, parts + 1)]
    assert record.steps == steps and len(record.epochs) == parts
    assert record.rows <= 4 * steps


def test_epochs_are_extended_to_the_least_number_of_steps(loaded: Loaded, data: StudyData) -> None:
    plain = train_fold_run(run_of(loaded, "fine_tune", epochs=4), data, loaded)
    steps = plain.steps
    for least, wanted in ((steps - 1, steps), (steps + 3, steps + 3)):
        duration = f"4 epochs, at least {least} steps"
        record = train_fold_run(
            run_of(loaded, "fine_tune", epochs=4, duration=duration), data, loaded
        )
        assert (record.steps, len(record.epochs)) == (wanted, 4)
        assert record.rows >= plain.rows
        if wanted == steps:
            assert [e.loss for e in record.epochs] == [e.loss for e in plain.epochs]


def test_every_row_is_seen_before_any_is_seen_again(data: StudyData, loaded: Loaded) -> None:
    run = run_of(loaded, "frozen_soft_prompt")
    rows = rows_of(loaded, data, run)
    order, seen = TrainingOrder(rows, 4, 1.0, random.Random(1)), Counter[int]()
    for _ in range(2 * steps_per_epoch(rows, 4, 1.0)):
        seen.update(map(id, order.rest()[0]))
        assert max(seen.values()) <= 1 + (len(seen) == len(rows))
        order.advance()
    assert set(seen.values()) == {2}


def test_the_order_of_training_is_that_of_its_passes_and_resumes_anywhere(
    data: StudyData, loaded: Loaded
) -> None:
    run = run_of(loaded, "frozen_soft_prompt")
    rows = rows_of(loaded, data, run)
    generator = random.Random(7)
    passes = [batch for _ in range(3) for batch in training_batches(rows, 4, 0.5, generator)]
    order = TrainingOrder(rows, 4, 0.5, random.Random(7))
    for batch in passes:
        resumed = TrainingOrder(rows, 4, 0.5, random.Random(0))
        resumed.restore(order.position)
        assert resumed.rest()[0] == order.rest()[0] == batch
        order.advance()
    assert order.is_at_end


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_lane_saved_within_a_part_gives_the_same_result(
    strategy: str, loaded: Loaded, data: StudyData
) -> None:
    run = run_of(loaded, strategy, epochs=3, duration="20 steps")
    whole = train_fold_run(run, data, loaded)
    for taken in (1, 6, 9, 15):
        first = Pool(loaded, data)
        first.open(run)
        for _ in range(taken):
            first.step()
        state = first.save(run.key)
        first.step()  # this step is lost with its host
        second, events = Pool(loaded, data), []
        second.open(run, state)
        while len(second):
            events += [event.what for event in second.step()]
        record = events[-1]
        assert (record.notes, record.steps, record.tokens) == (
            whole.notes,
            whole.steps,
            whole.tokens,
        )
        assert [e.loss for e in record.epochs] == [e.loss for e in whole.epochs]


def test_a_duration_in_device_seconds_counts_training_alone(
    loaded: Loaded, data: StudyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here each look at the clock finds that half a second has passed: a step is charged twice."""
    monkeypatch.setattr(Meter, "lap", lambda self: (0.5, 0.5))
    run = run_of(loaded, "fine_tune", epochs=4, duration="20 device-seconds")
    record = train_fold_run(run, data, loaded)
    assert len(record.epochs) == 4
    assert record.steps == 20
    assert record.device_seconds > 20, "evaluation costs, too"
    longer = replace(run, configuration=replace(run.configuration, duration="40 device-seconds"))
    assert train_fold_run(longer, data, loaded).steps == 40


def test_the_rate_falls_to_zero_over_the_duration(loaded: Loaded, data: StudyData) -> None:
    run = run_of(loaded, "fine_tune", epochs=2, duration="8 steps")
    pool, rates = Pool(loaded, data), []
    pool.open(run)
    lane = pool._seats[run.key].lane
    while len(pool):
        steps = lane.steps
        pool.step()
        if lane.steps > steps:
            rates.append(lane.optimiser.param_groups[0]["lr"] / lane.rates[0])
    assert rates == pytest.approx([1 - step / 8 for step in range(8)])


def test_durations_are_read_and_shortened(loaded: Loaded) -> None:
    for text in ("400 steps", "20 epochs", "90.5 device-seconds", "20 epochs, at least 600 steps"):
        assert str(Duration.read(text)) == text
    for text in (
        "400", "steps", "0 steps", "1.5 steps", "-1 steps", "10 minutes", "5  steps",
        "400 steps, at least 600 steps", "2 epochs, at least 0 steps",
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            Duration.read(text)
    configuration: Configuration = run_of(
        loaded, "fine_tune", epochs=10, duration="400 steps"
    ).configuration
    assert shorten(configuration, 3).duration == "120 steps"
    assert (
        shorten(replace(configuration, duration="9 device-seconds"), 5).duration
        == "4.5 device-seconds"
    )
    assert shorten(replace(configuration, duration=None), 3) == replace(
        configuration, duration=None, epochs=3
    )
    extended = replace(configuration, duration="10 epochs, at least 50 steps")
    assert shorten(extended, 3).duration == "3 epochs, at least 15 steps"
    assert replace(configuration, duration="401 steps").id != configuration.id
