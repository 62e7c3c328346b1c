"""Promise: racing saves fold-epochs, and stops the true winner no more often than stated.

Nobody would notice a failure: a race always ends with a winner, even if it is not the best one.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymrc.ledger.record import Epoch, Record
from raymrc.racing.racing import Contender, Racing, Run, _fit_covariance, _Residuals, decide
from raymrc.racing.simulate import (
    WORLDS,
    World,
    expected_share,
    generate,
    generate_like,
    read_grids,
    reorder_folds,
    replay,
    replay_all,
)
from tests.study.making import record

SMALL_GRID = replace(WORLDS["ordinary"], configurations=(8, 16), epochs=(6, 10))


def contender(name: str, *courses: list[float], epochs: int = 10) -> Contender:
    return Contender(name, epochs, tuple(tuple(course) for course in courses))


def halfway(seed: int, depth: int = 10) -> list[Contender]:
    """A race in progress: every configuration has begun the first fold, and some are further."""
    table = next(iter(generate(replace(SMALL_GRID, epochs=(10, 10)), 1, seed)))
    generator = random.Random(seed)
    contenders = []
    for name, folds in zip(table.configurations, table.courses, strict=True):
        seen = [generator.choice((1, 3, 6, depth)), generator.choice((0, 1, 3)), 0, 0, 0]
        courses = (course[:n] for course, n in zip(folds, seen, strict=True))
        contenders.append(Contender(name, 10, tuple(courses)))
    return contenders


# --- decisions ------------------------------------------------------------------------------------


def test_every_configuration_starts_on_the_first_fold_and_is_judged_only_after_it():
    decision = decide([contender(name, [], []) for name in "cab"], Racing(), slots=2)
    assert decision.run == (Run("a", 0, 1), Run("b", 0, 1))
    rest = decide([contender(name, [], []) for name in "cab"], Racing(), 8, decision.run)
    assert rest.run == (Run("c", 0, 1),) and not rest.stopped and rest.winner is None


@given(seed=st.integers(0, 200))
@settings(max_examples=15, deadline=None)
def test_a_decision_does_not_depend_on_the_order_of_configurations(seed):
    contenders = halfway(seed)
    shuffled = random.Random(seed).sample(contenders, len(contenders))
    assert decide(contenders, Racing(), 4) == decide(shuffled, Racing(), 4)


@given(seed=st.integers(0, 200), shift=st.floats(-0.2, 0.2))
@settings(max_examples=15, deadline=None)
def test_different_folds_are_never_compared(seed, shift):
    """A gain that all share on one fold changes no decision: a fold's level means nothing."""
    contenders = [
        replace(c, courses=tuple(tuple(0.3 + v / 3 for v in course) for course in c.courses))
        for c in halfway(seed)
    ]
    moved = [
        replace(c, courses=(c.courses[0], tuple(v + shift for v in c.courses[1]), *c.courses[2:]))
        for c in contenders
    ]
    before, after = (decide(group, Racing(), 4) for group in (contenders, moved))
    assert before.run == after.run
    assert list(before.stopped) == list(after.stopped)


def test_slots_that_become_free_one_by_one_do_not_all_go_to_the_current_leader():
    contenders = [contender(name, [0.5 - i / 100], [], []) for i, name in enumerate("abcde")]
    running: list[Run] = []
    for _ in contenders:
        running += decide(contenders, Racing(), 1, running).run
    assert {run.configuration for run in running} == set("abcde")
    assert running[0].configuration == "a", "the likeliest first"


def test_a_running_fold_run_is_not_started_again():
    contenders = halfway(7)
    first = decide(contenders, Racing(), 4).run
    again = decide(contenders, Racing(), 4, first).run
    assert not {(run.configuration, run.fold) for run in first} & {
        (run.configuration, run.fold) for run in again
    }


@pytest.mark.parametrize("seed", range(40))
def test_one_decision_never_starts_a_fold_run_twice(seed):
    """A resumed study is like this: many slots are free, and some configurations have not begun."""
    draw = random.Random(seed)
    contenders = [
        contender(f"{i:02d}", [draw.random()] if draw.random() < 0.5 else [], [], [])
        for i in range(draw.choice((3, 7, 13)))
    ]
    given_out = [(run.configuration, run.fold) for run in decide(contenders, Racing(), 30).run]
    assert len(given_out) == len(set(given_out))


@given(seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_residual_tables_agree_with_the_covariance_at_every_depth(seed):
    """The tables sum precisions over one factor; this test inverts each covariance separately."""
    draw = np.random.default_rng(seed)
    prior = np.cov(draw.normal(size=(4, 9)))
    deviations = draw.normal(size=(30, 4))
    squares = deviations[:, :, None] * deviations[:, None]
    fitted = _fit_covariance(squares, draw.integers(1, 5, 30), prior, 4.0)
    residuals = _Residuals(fitted)
    for depth in range(5):
        inverse = np.linalg.inv(fitted.matrix[:depth, :depth])
        assert np.allclose(residuals.precision[depth][:depth, :depth], inverse)
        assert (
            not residuals.precision[depth][depth:].any()
            and not residuals.precision[depth][:, depth:].any()
        )
        with_end = fitted.matrix[:depth, -1]
        assert np.isclose(
            residuals.variance_left[depth], fitted.matrix[-1, -1] - with_end @ inverse @ with_end
        )
    assert np.allclose(_fit_covariance(squares, np.full(30, 4), prior, 4.0).matrix,
                       (4.0 * prior + squares.sum(0)) / 34)  # fmt: skip


def test_a_stopped_configuration_is_not_trained_again():
    contenders = halfway(5)
    first = decide(contenders, Racing(), 1).run[0].configuration
    stopped = [replace(c, stopped=c.configuration == first) for c in contenders]
    assert first not in {run.configuration for run in decide(stopped, Racing(), 8).run}


@pytest.mark.parametrize("seed", range(6))
def test_a_configuration_that_leads_on_every_fold_at_every_epoch_is_never_stopped(seed):
    table = next(iter(generate(SMALL_GRID, 1, seed)))
    best = tuple(
        tuple(
            min(1.0, max(folds[f][e] for folds in table.courses) + 0.01)
            for e in range(len(table.courses[0][0]))
        )
        for f in range(table.num_folds)
    )
    table = replace(table, courses=(*table.courses[:-1], best))
    assert replay(table, Racing(error_rate=0.2)).winner == table.configurations[-1]


def test_a_stopped_contender_has_a_reason_with_its_gap_and_probability():
    done = [contender(f"far-{i}", [0.1 + i / 100] * 3, []) for i in range(4)]
    stopped = decide([*done, contender("best", [0.8] * 10, [0.7] * 10)], Racing(), 2).stopped
    assert set(stopped) == {f"far-{i}" for i in range(4)}
    reason = next(iter(stopped.values()))
    assert "after 3 epochs on 1 of 2 folds" in reason
    assert "points below best" in reason


def test_ties_are_broken_by_the_rule_that_chooses_a_cells_winner():
    equal = [contender(name, [0.5] * 10, [0.4] * 10) for name in ("b", "a")]
    assert decide(equal, Racing(), 1).winner == "a"
    smaller = [replace(equal[0], trained_parameters=1), replace(equal[1], trained_parameters=2)]
    assert decide(smaller, Racing(), 1).winner == "b"


def test_configurations_of_different_length_are_compared_at_equal_shares_of_training():
    short = contender("short", [0.5] * 5, [0.5] * 5, epochs=5)
    decision = decide([short, contender("long", [0.5], [])], Racing(), 1)
    assert decision.run[0].configuration == "long"


@pytest.mark.parametrize(
    "wrong",
    [
        {"error_rate": 0.0},
        {"rungs": ()},
        {"rungs": (0.5,)},
        {"rungs": (0.5, 0.2, 1.0)},
    ],
)
def test_invalid_settings_are_refused(wrong):
    with pytest.raises(ValueError):
        Racing(**wrong)


# --- by simulation --------------------------------------------------------------------------------


def test_a_replay_is_deterministic():
    table = next(iter(generate(SMALL_GRID, 1, 11)))
    assert replay(table, Racing()) == replay(table, Racing())


def test_the_stated_error_rate_holds():
    """If 10 % holds, 7 or more errors in 24 studies have a probability of 1 %; the seed is fixed."""
    replays = [replay(table, Racing(error_rate=0.1)) for table in generate(SMALL_GRID, 24, 19)]
    assert sum(not result.is_same for result in replays) <= 6


def test_racing_saves_fold_epochs():
    replays = [replay(table, Racing()) for table in generate(SMALL_GRID, 10, 23)]
    assert sum(r.grid_fold_epochs for r in replays) > 2.2 * sum(r.fold_epochs for r in replays)


def test_the_expected_share_is_close_to_the_share_that_races_train():
    expected = expected_share(12, 5, 8, Racing())
    assert expected_share(30, 5, 8, Racing()).value < expected.value
    world = replace(WORLDS["ordinary"], configurations=(12, 12), epochs=(8, 8))
    replays = [replay(table, Racing()) for table in generate(world, 10, 31)]
    trained = sum(r.fold_epochs for r in replays) / sum(r.grid_fold_epochs for r in replays)
    assert expected.low < trained < expected.high


def test_generated_grids_are_equal_for_equal_seeds():
    world = World(configurations=(3, 3), epochs=(2, 2))
    assert list(generate(world, 2, 1)) == list(generate(world, 2, 1))
    assert list(generate(world, 2, 1)) != list(generate(world, 2, 2))


# --- tables from a ledger -------------------------------------------------------------------------


def test_a_ledgers_full_grid_becomes_learning_curves():
    def trained(fold: int, rate: float, *f1: float) -> Record:
        epochs = tuple(Epoch(n, 0.1, value, 1.0) for n, value in enumerate(f1, 1))
        return replace(record(fold, learning_rate=rate, validation_f1=max(f1)), epochs=epochs)

    records = [
        trained(0, 1e-4, 0.1, 0.5),
        trained(1, 1e-4, 0.2, 0.1),
        trained(0, 1e-3, 0.4, 0.6),
        trained(1, 1e-3, 0.1, 0.3),
        trained(0, 1e-2, 0.9, 0.9),  # the grid excludes it: a fold is missing
    ]
    (table,) = read_grids(records)
    assert table.num_folds == 2 and table.fold_epochs == 8
    assert sorted(table.worths) == pytest.approx([0.35, 0.45])
    assert table.winner == records[2].fold_run.configuration.id
    outcomes = replay_all(table.name, reorder_folds(table, 2), slots=2)
    assert outcomes[0]["error_rate"] == 0.01 and outcomes[0]["same_winner"] == 1.0


def test_replays_of_a_study_use_its_own_rungs():
    tables = generate_like(8, 5, 10, 1)
    usual, whole = (
        replay_all("cell", tables, 4, racing) for racing in (None, Racing(rungs=(1.0,)))
    )
    assert usual == replay_all("cell", tables, 4, Racing(error_rate=0.5)), "all but its rate"
    assert whole[1]["saving"] < usual[1]["saving"], "who is not begun in part is begun whole"


def test_a_ledger_without_a_full_grid_gives_no_curves():
    assert read_grids([record(0), record(1)]) == ()
