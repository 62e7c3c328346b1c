"""Promise: what is begun is expected to fit in what is left, and a budget that is large enough for anything
does begin something.

It would break without anyone noticing: the cap would still hold, and money go into fold-runs that never end.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from raymrc.configuration import FoldRun
from raymrc.costs.budget import Need
from raymrc.ledger.record import Epoch
from raymrc.scheduling.allowance import OVERDUE_FACTOR, Allowance
from raymrc.scheduling.failures import failed_record
from raymrc.scheduling.work_queue import SINGLE_DEVICE, HostReport, Order, WorkQueue
from tests.sweep.making import fold_runs, make_plan, make_record


def frozen(rates: int = 2) -> list[FoldRun]:
    return fold_runs(make_plan([0.1 * (i + 1) for i in range(rates)], ["frozen_soft_prompt"]))


def trained() -> list[FoldRun]:
    return fold_runs(make_plan([0.1], ["fine_tune"]))


def sure(value: float) -> Need:
    return Need(value, value, value, saving_seconds=0.5)


def guess(value: float) -> Need:
    return Need(value, value / 4, value * 4, is_guess=True)


def make_board(left: float = 1e9, wall: float = 1e9, **terms: Any) -> WorkQueue:
    allowance = terms.pop("allowance", None) or Allowance()
    allowance.allow(left, wall)
    return WorkQueue(**{"lanes": 1, "max_devices": 2, "allowance": allowance, **terms})


def submit(board: WorkQueue, runs: Sequence[FoldRun], *needs: Need, trial: str = "t") -> None:
    each = needs if len(needs) > 1 else needs * len(runs)
    needs = {run.key: need for run, need in zip(runs, each, strict=True)}
    board.submit(trial, runs, needs=needs)


def keys(order: Order) -> list[str]:
    return [run.key for run, _ in order.open]


def done(run: FoldRun) -> HostReport:
    return HostReport(run.key, record=make_record(run).to_json())


# --- what is begun --------------------------------------------------------------------------------


def test_what_trains_counts_for_what_it_still_wants():
    board, runs = make_board(25.0), frozen()
    submit(board, runs, sure(10))
    assert keys(board.exchange("a", (), 0)) == [runs[0].key]
    assert keys(board.exchange("b", (), 0)) == [runs[1].key]
    assert board.committed == 20
    board.allowance.allow(19.0, 1e9)  # six seconds of three hosts
    assert not board.exchange("c", (), 2), "9 + 10 are still wanted"
    board.exchange("a", (), 6)
    assert board.committed == pytest.approx(4 + 10)
    board.allowance.allow(24.0, 1e9)
    assert keys(board.exchange("c", (), 6)) == [runs[2].key]


def test_a_smaller_one_goes_before_one_that_does_not_fit():
    board, runs = make_board(10.0), trained()
    submit(board, runs, sure(50), sure(8), sure(30))
    assert board.wanted({}) == {SINGLE_DEVICE: 1}, "no host for what will not be begun"
    assert keys(board.exchange("a", (), 0)) == [runs[1].key]
    assert board.shortfall() is None, "something trains"
    board.exchange("a", [done(runs[1])], 8)
    board.allowance.allow(2.0, 1e9)
    assert not board.exchange("a", (), 8)
    assert board.shortfall() == 30
    assert board.exchange("a", (), 14).leave, "a host that may begin nothing goes"


def test_hosts_are_asked_for_as_far_as_all_of_them_can_be_paid():
    board, runs = make_board(25.0, max_devices=9), trained()
    submit(board, runs, sure(10))
    assert board.wanted({}) == {SINGLE_DEVICE: 2}
    board.allowance.allow(1e9, 1e9)
    assert board.wanted({}) == {SINGLE_DEVICE: 3}


def test_wall_time_is_shared_by_the_lanes_of_a_host():
    board, runs = make_board(wall=25.0, lanes=8), frozen()
    submit(board, runs, sure(10))
    assert len(keys(board.exchange("a", (), 0))) == 2
    wide = make_board(wall=25.0, lanes=8, allowance=Allowance(unit=4.0))
    submit(wide, runs, sure(10))
    assert len(keys(wide.exchange("a", (), 0))) == 3, "an even share of six on two hosts"


def test_a_guess_never_keeps_a_study_from_starting_and_is_not_trusted_beside_others():
    board, runs = make_board(30.0), trained()
    submit(board, runs, guess(100))
    assert keys(board.exchange("a", (), 0)) == [runs[0].key], "25 at the low end"
    assert not board.exchange("b", (), 0)
    poor = make_board(20.0)
    submit(poor, runs, guess(100))
    assert not poor.exchange("a", (), 0) and poor.shortfall() == 25
    rich = make_board(450.0)
    submit(rich, runs, guess(100))
    assert keys(rich.exchange("a", (), 0)) and not rich.exchange("b", (), 0).open, "100 and 400"


def test_what_is_not_known_at_all_is_begun_and_learnt_from():
    board, runs = make_board(10.0), trained()
    board.submit("t", runs)
    assert keys(board.exchange("a", (), 0)) == [runs[0].key]
    assert keys(board.exchange("a", [done(runs[0])], 8)) == [runs[1].key], "8 fit in 10"
    board.allowance.allow(7.0, 1e9)
    assert not board.exchange("a", [done(runs[1])], 16).open and board.shortfall() == 8


def test_without_a_budget_nothing_is_held_back():
    board, runs = WorkQueue(lanes=1, max_devices=2), trained()
    submit(board, runs, sure(1e12))
    assert keys(board.exchange("a", (), 0)) and board.shortfall() is None
    assert board.committed == 0 and board.left_saved == {}


# --- what is learnt -------------------------------------------------------------------------------


def test_expectations_follow_what_hosts_were_really_held_for():
    board, runs = make_board(), frozen(3)
    submit(board, runs, sure(10))
    board.exchange("a", (), 0)
    board.exchange("a", [done(runs[0])], 30)
    assert board.allowance.wants(runs[2].key) == 30
    other = trained()
    submit(board, other, guess(10), trial="u")
    assert board.allowance.wants(other[0].key, "high") == 120, (
        "of another cell: three times the guess"
    )
    slow = Allowance(overhead=1.5)
    slow.expect(runs[0], sure(10))
    assert slow.wants(runs[0].key) == 15, "before anything was seen: as the study has it"
    assert slow.wants(runs[0].key, "low") == 10, "which must not keep it from starting"


def test_failed_and_resumed_ones_teach_nothing():
    board, runs = make_board(saved={}), frozen(3)
    submit(board, runs, sure(10))
    board.exchange("a", (), 0)
    failed = failed_record(runs[0], "died")
    board.exchange("a", [HostReport(runs[0].key, record=failed.to_json())], 1)
    assert board.allowance.wants(runs[2].key) == 10
    before = Allowance(unfinished={runs[0].key: 0.1})
    resumed = make_board(saved={runs[0].key: "x/000001"}, allowance=before)
    submit(resumed, runs, sure(10))
    assert before.wants(runs[0].key) == pytest.approx(1.0)
    resumed.exchange("a", (), 0)
    resumed.exchange("a", [done(runs[0])], 40)
    assert before.wants(runs[2].key) == 10


def test_a_leg_wants_its_share_and_the_next_one_what_is_between_them():
    run = frozen()[0]
    epochs = run.configuration.epochs
    allowance = Allowance()
    allowance.expect(run, sure(100), until=epochs // 4)
    assert allowance.wants(run.key) == pytest.approx(25)
    allowance.accrue([run.key], 30.0)
    allowance.pause(run.key)
    assert allowance.left_saved([run.key]) == {run.key: 0.75}
    allowance.expect(run, sure(100), is_saved=True, until=epochs // 2)
    # It took 30 where 25 were expected.
    assert allowance.wants(run.key) == pytest.approx(30)
    allowance.pause(run.key)
    allowance.expect(run, sure(100), is_saved=True)
    half = allowance.wants(run.key)
    allowance.expect(run, sure(100))
    assert allowance.wants(run.key) == pytest.approx(2 * half), (
        "where nothing is saved, from the start"
    )


def test_an_overdue_fold_run_is_not_taken_to_be_done():
    allowance, run = Allowance(), frozen()[0]
    allowance.expect(run, sure(10))
    allowance.accrue([run.key], 50.0)
    assert allowance.wants(run.key) == OVERDUE_FACTOR * 10


def test_lanes_of_a_host_share_what_it_is_held_for_and_idle_time_is_nobodys():
    board, runs = make_board(lanes=2, max_devices=1), frozen()
    submit(board, runs[:2], sure(10))
    board.exchange("a", (), 100)  # it was there before
    board.exchange("a", (), 104)
    assert [board.allowance.wants(run.key) for run in runs[:2]] == [8, 8]
    board.exchange("a", [done(run) for run in runs[:2]], 104)
    submit(board, runs[2:4], sure(10), trial="u")
    board.exchange("a", (), 150)
    assert board.committed == pytest.approx(2 + 2), "as the first two had"


def test_what_is_saved_says_how_much_is_left_of_it():
    board, runs = make_board(max_devices=1), frozen()
    epochs = runs[0].configuration.epochs
    submit(board, runs, sure(100))
    board.exchange("a", (), 0)
    half = Epoch(epochs // 2, 1.0, 0.1, 1.0)
    board.exchange(
        "a", [HostReport(runs[0].key, epoch=half, saved="k/000001", saving_seconds=2.5)], 10
    )
    share = 1 - (epochs // 2) / epochs
    assert board.left_saved == {runs[0].key: pytest.approx(share)}
    assert board.saving_seconds("a") == 2.5
    board.release("a", (), 20)
    assert board.allowance.wants(runs[0].key) == pytest.approx(80)
    # A trial that is over leaves that known, and so does an earlier run of the driver.
    board.withdraw("t")
    assert board.left_saved == {runs[0].key: pytest.approx(share)}
    next_one = make_board(
        60.0, saved={runs[0].key: "k/000001"}, allowance=Allowance(unfinished={runs[0].key: share})
    )
    submit(next_one, runs[:2], sure(100))
    assert keys(next_one.exchange("a", (), 0)) == [runs[0].key], (
        "half of it fits, all of it would not"
    )
    assert not next_one.exchange("b", (), 0).open


def test_saving_takes_as_long_as_it_did_or_as_is_guessed():
    board, runs = make_board(lanes=2, max_devices=1), frozen()
    submit(board, runs[:2], sure(10))
    board.exchange("a", (), 0)
    assert board.saving_seconds("a") == 1.0 and board.saving_seconds("b") == 0.0
    board.exchange("a", [HostReport(runs[0].key, saved="k/000001", saving_seconds=4.0)], 1)
    assert board.saving_seconds("a") == 4.5


# --- what is put aside ----------------------------------------------------------------------------


def test_what_does_not_fit_is_put_aside_and_its_trials_hear_that_they_are_over():
    board, runs = make_board(10.0), frozen(3)
    submit(board, runs[:3], sure(50))
    submit(board, runs[3:6], sure(60), trial="u")
    assert board.shortfall() == 50
    assert board.shelve() == 2
    assert board.collect("t") == ([], True) and board.collect("u") == ([], True)
    assert board.queued == () and board.wanted({}) == {}
    submit(board, runs[6:], sure(5), trial="v")
    assert keys(board.exchange("a", (), 0)) == [runs[6].key]


def test_nothing_is_lost_or_doubled_and_nothing_begun_that_does_not_fit():
    """Hosts that come, finish, hand over and die in any order, and a budget that runs down with them."""
    for seed in range(60):
        draw = random.Random(seed)
        runs = [*frozen(3), *trained()]
        cost = {run.key: draw.uniform(1, 9) for run in runs}
        budget = draw.uniform(10, 90)
        board = make_board(budget, lanes=draw.randint(1, 3), max_devices=3)
        submit(board, runs, *(sure(cost[run.key]) for run in runs))
        had = dict.fromkeys(cost, 0.0)
        open_on: dict[str, dict[str, FoldRun]] = {}
        finished: list[str] = []
        spent = 0.0
        for now in range(400):
            for name in "abc":
                held = open_on.setdefault(name, {})
                if held:
                    spent += 1
                for key in held:
                    had[key] += 1 / len(held)
                reports = [done(run) for key, run in held.items() if had[key] >= cost[key]]
                for report in reports:
                    finished.append(report.key)
                    del held[report.key]
                board.allowance.allow(budget - spent, 1e9)
                if held and draw.random() < 0.02:
                    board.release(name, reports, now)
                    del open_on[name]
                    continue
                for run, _ in board.exchange(name, reports, now).open:
                    assert run.key not in finished
                    assert not any(run.key in keys for keys in open_on.values()), "one at a time"
                    held[run.key] = run
            if board.shortfall() is not None:
                break
        assert len(finished) == len(set(finished))
        # Wholes of seconds, and one of each host under way.
        assert spent <= budget + 2 * 3 * len(runs) * 0.5, (seed, spent, budget)
        left = [k for k in cost if k not in finished]
        if left and not any(open_on.values()):
            assert min(cost[k] - had[k] for k in left) > budget - spent - 3


def test_what_was_begun_goes_before_what_was_not():
    board = make_board(saved={(runs := frozen())[4].key: "k/000001"})
    submit(board, runs[:3], sure(10))
    submit(board, runs[3:], sure(10), trial="u")
    assert keys(board.exchange("a", (), 0)) == [runs[4].key]
    assert keys(board.exchange("b", (), 0)) == [runs[0].key]
