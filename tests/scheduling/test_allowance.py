"""Promise: a fold-run starts only if it is expected to fit the rest of the budget, and if the budget is large
enough for any fold-run, one does start.

A failure would go unnoticed: the cap would still hold, and money would go into fold-runs that never end.
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
from raymrc.scheduling.orders import SINGLE_DEVICE, HostReport, Order
from raymrc.scheduling.work_queue import WorkQueue
from tests.sweep.making import fold_runs, make_plan, make_record


def frozen(rates: int = 2) -> list[FoldRun]:
    return fold_runs(make_plan([0.1 * (i + 1) for i in range(rates)], ["frozen_soft_prompt"]))


def trained() -> list[FoldRun]:
    return fold_runs(make_plan([0.1], ["fine_tune"]))


def sure(value: float) -> Need:
    return Need(value, value, value, saving_seconds=0.5)


def guess(value: float) -> Need:
    return Need(value, value / 4, value * 4, is_guess=True)


def make_queue(left: float = 1e9, wall: float = 1e9, **terms: Any) -> WorkQueue:
    allowance = terms.pop("allowance", None) or Allowance()
    allowance.set_left(left, wall)
    return WorkQueue(**{"lanes": 1, "max_devices": 2, "allowance": allowance, **terms})


def submit(queue: WorkQueue, runs: Sequence[FoldRun], *needs: Need, trial: str = "t") -> None:
    each = needs if len(needs) > 1 else needs * len(runs)
    needs = {run.key: need for run, need in zip(runs, each, strict=True)}
    queue.submit(trial, runs, needs=needs)


def keys(order: Order) -> list[str]:
    return [run.key for run, _ in order.open]


def done(run: FoldRun) -> HostReport:
    return HostReport(run.key, record=make_record(run).to_json())


# --- what may start -------------------------------------------------------------------------------


def test_open_fold_runs_count_with_what_they_still_need():
    queue, runs = make_queue(25.0), frozen()
    submit(queue, runs, sure(10))
    assert keys(queue.exchange("a", (), 0)) == [runs[0].key]
    assert keys(queue.exchange("b", (), 0)) == [runs[1].key]
    assert queue.committed == 20
    queue.allowance.set_left(19.0, 1e9)  # two hosts for two seconds
    assert not queue.exchange("c", (), 2), "19 are still needed"
    queue.exchange("a", (), 6)
    assert queue.committed == pytest.approx(4 + 10)
    queue.allowance.set_left(24.0, 1e9)
    assert keys(queue.exchange("c", (), 6)) == [runs[2].key]


def test_a_smaller_fold_run_overtakes_one_that_does_not_fit():
    queue, runs = make_queue(10.0), trained()
    submit(queue, runs, sure(50), sure(8), sure(30))
    assert queue.wanted_hosts({}) == {SINGLE_DEVICE: 1}, (
        "no host is wanted for fold-runs that will not start"
    )
    assert keys(queue.exchange("a", (), 0)) == [runs[1].key]
    assert queue.shortfall() is None, "something is training"
    queue.exchange("a", [done(runs[1])], 8)
    queue.allowance.set_left(2.0, 1e9)
    assert not queue.exchange("a", (), 8)
    assert queue.shortfall() == 30
    assert queue.exchange("a", (), 14).leave, "a host that may start nothing leaves"


def test_only_as_many_hosts_are_wanted_as_the_budget_pays():
    queue, runs = make_queue(25.0, max_devices=9), trained()
    submit(queue, runs, sure(10))
    assert queue.wanted_hosts({}) == {SINGLE_DEVICE: 2}
    queue.allowance.set_left(1e9, 1e9)
    assert queue.wanted_hosts({}) == {SINGLE_DEVICE: 3}


def test_lanes_of_a_host_share_the_wall_time_that_is_left():
    queue, runs = make_queue(wall=25.0, lanes=8), frozen()
    submit(queue, runs, sure(10))
    assert len(keys(queue.exchange("a", (), 0))) == 2
    wide = make_queue(wall=25.0, lanes=8, allowance=Allowance(host_devices=4.0))
    submit(wide, runs, sure(10))
    assert len(keys(wide.exchange("a", (), 0))) == 3, "an even share of six on two hosts"


def test_a_guess_starts_by_its_lower_end_if_nothing_trains_and_by_its_upper_end_otherwise():
    queue, runs = make_queue(30.0), trained()
    submit(queue, runs, guess(100))
    assert keys(queue.exchange("a", (), 0)) == [runs[0].key], "25 at the low end"
    assert not queue.exchange("b", (), 0)
    poor = make_queue(20.0)
    submit(poor, runs, guess(100))
    assert not poor.exchange("a", (), 0) and poor.shortfall() == 25
    rich = make_queue(450.0)
    submit(rich, runs, guess(100))
    assert keys(rich.exchange("a", (), 0)) and not rich.exchange("b", (), 0).open, "100 and 400"


def test_fold_runs_without_an_expectation_start_and_teach_one():
    queue, runs = make_queue(10.0), trained()
    queue.submit("t", runs)
    assert keys(queue.exchange("a", (), 0)) == [runs[0].key]
    assert keys(queue.exchange("a", [done(runs[0])], 8)) == [runs[1].key], "8 fit in 10"
    queue.allowance.set_left(7.0, 1e9)
    assert not queue.exchange("a", [done(runs[1])], 16).open and queue.shortfall() == 8


def test_without_a_budget_every_fold_run_may_start():
    queue, runs = WorkQueue(lanes=1, max_devices=2), trained()
    submit(queue, runs, sure(1e12))
    assert keys(queue.exchange("a", (), 0)) and queue.shortfall() is None
    assert queue.committed == 0 and queue.unfinished_shares == {}


# --- what is learned ------------------------------------------------------------------------------


def test_expectations_follow_the_time_that_hosts_were_really_held():
    queue, runs = make_queue(), frozen(3)
    submit(queue, runs, sure(10))
    queue.exchange("a", (), 0)
    queue.exchange("a", [done(runs[0])], 30)
    assert queue.allowance.remaining(runs[2].key) == 30
    other = trained()
    submit(queue, other, guess(10), trial="u")
    assert queue.allowance.remaining(other[0].key, "high") == 120, (
        "three times the guess, for another cell too"
    )
    slow = Allowance(overhead=1.5)
    slow.expect(runs[0], sure(10))
    assert slow.remaining(runs[0].key) == 15, "before anything has ended, the study's overhead"
    assert slow.remaining(runs[0].key, "low") == 10, "which must not keep a fold-run from starting"


def test_failed_and_resumed_fold_runs_teach_nothing():
    queue, runs = make_queue(checkpoints={}), frozen(3)
    submit(queue, runs, sure(10))
    queue.exchange("a", (), 0)
    failed = failed_record(runs[0], "died")
    queue.exchange("a", [HostReport(runs[0].key, record=failed.to_json())], 1)
    assert queue.allowance.remaining(runs[2].key) == 10
    before = Allowance(unfinished={runs[0].key: 0.1})
    resumed = make_queue(checkpoints={runs[0].key: "x/000001"}, allowance=before)
    submit(resumed, runs, sure(10))
    assert before.remaining(runs[0].key) == pytest.approx(1.0)
    resumed.exchange("a", (), 0)
    resumed.exchange("a", [done(runs[0])], 40)
    assert before.remaining(runs[2].key) == 10


def test_a_leg_needs_its_share_of_a_fold_run_and_the_next_leg_the_difference():
    run = frozen()[0]
    epochs = run.configuration.epochs
    allowance = Allowance()
    allowance.expect(run, sure(100), pause_epoch=epochs // 4)
    assert allowance.remaining(run.key) == pytest.approx(25)
    allowance.accrue([run.key], 30.0)
    allowance.pause(run.key)
    assert allowance.unfinished_shares([run.key]) == {run.key: 0.75}
    allowance.expect(run, sure(100), has_checkpoint=True, pause_epoch=epochs // 2)
    # It took 30 where 25 were expected.
    assert allowance.remaining(run.key) == pytest.approx(30)
    allowance.pause(run.key)
    allowance.expect(run, sure(100), has_checkpoint=True)
    half = allowance.remaining(run.key)
    allowance.expect(run, sure(100))
    assert allowance.remaining(run.key) == pytest.approx(2 * half), (
        "without a checkpoint it starts from the beginning"
    )


def test_an_overdue_fold_run_is_not_considered_done():
    allowance, run = Allowance(), frozen()[0]
    allowance.expect(run, sure(10))
    allowance.accrue([run.key], 50.0)
    assert allowance.remaining(run.key) == OVERDUE_FACTOR * 10


def test_lanes_share_their_hosts_time_and_idle_time_counts_for_none():
    queue, runs = make_queue(lanes=2, max_devices=1), frozen()
    submit(queue, runs[:2], sure(10))
    queue.exchange("a", (), 100)  # the host was there before
    queue.exchange("a", (), 104)
    assert [queue.allowance.remaining(run.key) for run in runs[:2]] == [8, 8]
    queue.exchange("a", [done(run) for run in runs[:2]], 104)
    submit(queue, runs[2:4], sure(10), trial="u")
    queue.exchange("a", (), 150)
    assert queue.committed == pytest.approx(2 + 2), "like the first two"


def test_a_checkpoint_tells_how_much_is_left_to_do():
    queue, runs = make_queue(max_devices=1), frozen()
    epochs = runs[0].configuration.epochs
    submit(queue, runs, sure(100))
    queue.exchange("a", (), 0)
    half = Epoch(epochs // 2, 1.0, 0.1, 1.0)
    queue.exchange(
        "a", [HostReport(runs[0].key, epoch=half, checkpoint="k/000001", saving_seconds=2.5)], 10
    )
    share = 1 - (epochs // 2) / epochs
    assert queue.unfinished_shares == {runs[0].key: pytest.approx(share)}
    assert queue.saving_seconds("a") == 2.5
    queue.release("a", (), 20)
    assert queue.allowance.remaining(runs[0].key) == pytest.approx(80)
    # That is still known when the trial is over, and in the next run of the driver.
    queue.withdraw("t")
    assert queue.unfinished_shares == {runs[0].key: pytest.approx(share)}
    next_run = make_queue(
        60.0,
        checkpoints={runs[0].key: "k/000001"},
        allowance=Allowance(unfinished={runs[0].key: share}),
    )
    submit(next_run, runs[:2], sure(100))
    assert keys(next_run.exchange("a", (), 0)) == [runs[0].key], (
        "the rest fits, the whole would not"
    )
    assert not next_run.exchange("b", (), 0).open


def test_saving_is_expected_to_take_as_long_as_last_time_or_as_guessed():
    queue, runs = make_queue(lanes=2, max_devices=1), frozen()
    submit(queue, runs[:2], sure(10))
    queue.exchange("a", (), 0)
    assert queue.saving_seconds("a") == 1.0 and queue.saving_seconds("b") == 0.0
    queue.exchange("a", [HostReport(runs[0].key, checkpoint="k/000001", saving_seconds=4.0)], 1)
    assert queue.saving_seconds("a") == 4.5


# --- what is deferred ----------------------------------------------------------------------------


def test_fold_runs_that_do_not_fit_are_deferred_and_their_trials_are_over():
    queue, runs = make_queue(10.0), frozen(3)
    submit(queue, runs[:3], sure(50))
    submit(queue, runs[3:6], sure(60), trial="u")
    assert queue.shortfall() == 50
    assert queue.defer() == 2
    assert queue.collect("t") == ([], True) and queue.collect("u") == ([], True)
    assert queue.queued == () and queue.wanted_hosts({}) == {}
    submit(queue, runs[6:], sure(5), trial="v")
    assert keys(queue.exchange("a", (), 0)) == [runs[6].key]


def test_no_fold_run_is_lost_doubled_or_started_without_budget():
    """Hosts start, finish, hand over and die in any order while the budget runs down."""
    for seed in range(60):
        draw = random.Random(seed)
        runs = [*frozen(3), *trained()]
        cost = {run.key: draw.uniform(1, 9) for run in runs}
        budget = draw.uniform(10, 90)
        queue = make_queue(budget, lanes=draw.randint(1, 3), max_devices=3)
        submit(queue, runs, *(sure(cost[run.key]) for run in runs))
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
                queue.allowance.set_left(budget - spent, 1e9)
                if held and draw.random() < 0.02:
                    queue.release(name, reports, now)
                    del open_on[name]
                    continue
                for run, _ in queue.exchange(name, reports, now).open:
                    assert run.key not in finished
                    assert not any(run.key in keys for keys in open_on.values()), "one at a time"
                    held[run.key] = run
            if queue.shortfall() is not None:
                break
        assert len(finished) == len(set(finished))
        # Steps are whole seconds, and each host has one fold-run open.
        assert spent <= budget + 2 * 3 * len(runs) * 0.5, (seed, spent, budget)
        left = [k for k in cost if k not in finished]
        if left and not any(open_on.values()):
            assert min(cost[k] - had[k] for k in left) > budget - spent - 3


def test_started_fold_runs_go_before_new_ones():
    queue = make_queue(checkpoints={(runs := frozen())[4].key: "k/000001"})
    submit(queue, runs[:3], sure(10))
    submit(queue, runs[3:], sure(10), trial="u")
    assert keys(queue.exchange("a", (), 0)) == [runs[4].key]
    assert keys(queue.exchange("b", (), 0)) == [runs[0].key]
