"""Promise: hosts get the order to drain early enough before a cap, late ones are killed, and a run ends if
nothing fits its budget any more.

A failure would go unnoticed: a study that spends a little too much ends like any other.
"""

from __future__ import annotations

import pytest

from raymrc.costs.journal import WRITE_SECONDS
from raymrc.scheduling.budget_guard import (
    KILL_SECONDS,
    MAX_DEFERRED_TRIALS,
    SAVING_MARGIN,
    GuardDecision,
)
from raymrc.scheduling.orders import SINGLE_DEVICE, SLICE_SECONDS, HostKind, HostReport, WorkerRange
from tests.scheduling.fleets import Decisions, frozen, grouped
from tests.sweep.making import make_record

CLOSING_SECONDS = KILL_SECONDS[HostKind.HOST] + SLICE_SECONDS + 0.5 * SAVING_MARGIN
"""A host with one open lane that takes half a second to save closes in this time."""


def running(device_seconds: float, hosts: int = 1) -> Decisions:
    """Hosts that train since moment 0, and a lease of that moment."""
    made = Decisions(device_seconds, max_devices=hosts)
    made.submit(frozen(), need=10.0)
    made.guard.update_allowance(0.0)
    made.scale(0.0)
    made.lease(0.0)
    for host in made.scale(0.0).start:
        made.start(host.name, 0.0)
        assert made.queue.exchange(host.name, (), 0.0).open
    assert len(made.fleet.hosts) == hosts
    return made


def test_hosts_are_drained_before_the_cap_and_killed_at_it():
    made = running(100.0)
    now = 0.0
    while made.guard.stopped is None:
        now += 0.2
        made.lease(now)
        decision = made.guard.check(now)
    assert 100.0 - CLOSING_SECONDS - 0.2 <= now <= 100.0 - CLOSING_SECONDS + 0.2
    assert made.guard.stopped.by_budget
    assert made.guard.stopped.sentence.startswith("the budget is exhausted")
    assert decision == GuardDecision(has_news=True), "the host may save first"
    assert made.guard.check(98.9).kill == ()
    assert made.guard.check(99.1).kill == ("host-1",)
    assert made.fleet.hosts == {} and made.guard.over_at is None, "it still holds its device"
    made.account.end("host-1", 99.3)
    assert made.guard.check(99.4).has_news and made.guard.over_at == 99.4
    assert not made.guard.check(99.6).has_news, "once"


def test_two_hosts_reach_the_cap_in_half_the_time():
    made = running(100.0, hosts=2)
    made.lease(45.0)
    assert made.guard.check(45.0) == GuardDecision()
    made.lease(49.0)
    made.guard.check(49.0)
    assert made.guard.stopped is not None


def test_hosts_that_have_not_made_contact_are_killed_at_once():
    made = running(100.0)
    made.fleet.request(SINGLE_DEVICE, 1, 90.0)
    made.lease(96.0)
    assert made.guard.check(96.0).kill == ("host-2",)
    assert list(made.fleet.hosts) == ["host-1"]


def test_saving_takes_as_long_as_it_did_and_groups_take_longer_to_end():
    made = running(100.0)
    assert made.guard.closing_seconds() == pytest.approx(CLOSING_SECONDS)
    (run,) = made.queue.training
    report = HostReport(run.key, checkpoint=f"{run.key}/000001", saving_seconds=8.0)
    made.queue.handle_reports("host-1", [report], 1.0)
    expected = CLOSING_SECONDS + SAVING_MARGIN * 7.5
    assert made.guard.closing_seconds() == pytest.approx(expected)
    made.queue.remove_host("host-1", count_death=False)
    del made.fleet.hosts["host-1"]
    assert made.guard.closing_seconds() == 0.0
    made.fleet.request(WorkerRange(2, 2), 2, 2.0)
    assert made.guard.closing_seconds() == KILL_SECONDS[HostKind.GROUP] + SLICE_SECONDS


def test_a_lease_that_runs_out_is_renewed_and_ends_hosts_only_if_it_cannot_be():
    made = running(1e6)
    left = made.account.seconds_left(0.0)
    now = left - CLOSING_SECONDS + 0.1
    made.guard.lease(now, now)  # is being written
    decision = made.guard.check(now)
    assert decision.must_write and made.guard.stopped is not None
    assert not made.guard.stopped.by_budget
    assert "could not be written to storage" in made.guard.stopped.sentence


def test_hosts_stay_while_the_lease_was_written_a_moment_ago():
    made = running(1e6)
    now = made.account.seconds_left(0.0)
    made.lease(now - WRITE_SECONDS)
    made.fleet.hosts["host-1"].longest_silence = 1000.0
    assert made.guard.check(now) == GuardDecision(must_write=True)
    assert made.guard.stopped is None, "saving may just take longer than it did"


def test_the_run_ends_if_what_is_left_is_not_worth_starting_a_host():
    made = Decisions(device_seconds=2.0)
    made.submit(frozen(), need=0.5)
    decision = made.guard.check(0.0)
    assert decision.has_news and made.guard.stopped is not None
    assert made.guard.stopped.by_budget and made.guard.over_at == 0.0


def test_trials_that_do_not_fit_are_deferred_until_there_are_too_many():
    made = Decisions(device_seconds=1000.0)
    for number in range(MAX_DEFERRED_TRIALS):
        assert made.guard.stopped is None
        made.submit(frozen(0.01 * (number + 1)), need=5000.0 - number, trial=f"t{number}")
        assert made.guard.check(0.1 * number).has_news
        assert made.queue.collect(f"t{number}") == ([], True)
    assert made.guard.stopped is not None
    assert "but the cheapest fold-run needs about" in made.guard.stopped.sentence


def test_deferred_trials_are_counted_anew_when_something_trains():
    made = Decisions(device_seconds=1000.0)

    def defer(trials: int) -> None:
        for number in range(trials):
            made.submit(frozen(0.01 * (number + 1)), need=5000.0, trial=f"large {number}")
            made.guard.check(0.0)

    defer(MAX_DEFERRED_TRIALS - 1)
    (run, *_) = frozen(0.5)
    made.submit([run], need=1.0, trial="small")
    assert made.queue.exchange("host-1", (), 0.0).open
    made.guard.check(0.0)
    made.queue.exchange("host-1", [HostReport(run.key, record=make_record(run).to_json())], 1.0)
    defer(MAX_DEFERRED_TRIALS - 1)
    assert made.guard.stopped is None
    defer(1)
    assert made.guard.stopped is not None


def test_a_run_that_deferred_work_says_so_at_its_end():
    made = Decisions(device_seconds=1000.0)
    made.submit(frozen(), need=5000.0)
    made.guard.check(0.0)
    last, closing = made.guard.close(5.0, 5.0)
    assert last.has_ended and closing.stopped is not None
    assert "the cheapest fold-run needs about" in closing.stopped.sentence


def test_a_run_that_has_done_its_work_was_not_stopped():
    made = Decisions()
    runs, _ = grouped(SINGLE_DEVICE)
    made.submit(runs)
    made.scale(0.0)
    made.start("host-1", 0.0)
    made.account.end("host-1", 7.0)
    last, closing = made.guard.close(8.0, 8.0)
    assert closing.stopped is None and closing.device_seconds == last.device_seconds == 7.0
