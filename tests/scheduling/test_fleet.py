"""The fleet requests as many hosts as there is work and budget for, and cancels what it need not start."""

from __future__ import annotations

from raymrc.scheduling.fleet import (
    MAX_FAILED_STARTS,
    MAX_WAITING_GROUPS,
    SILENCE_DECAY,
    Scaling,
)
from raymrc.scheduling.orders import SINGLE_DEVICE, SLICE_SECONDS, WorkerRange
from tests.scheduling.fleets import PATIENCE_SECONDS, Decisions, frozen, grouped


def names(scaling: Scaling) -> list[str]:
    return [host.name for host in scaling.start]


def test_hosts_are_requested_for_work_and_only_once():
    made = Decisions()
    assert made.scale(0.0) == Scaling()
    made.submit(frozen())
    scaling = made.scale(0.0)
    assert names(scaling) == ["host-1", "host-2"] == list(made.fleet.hosts)
    assert made.scale(1.0) == Scaling()


def test_a_request_is_cancelled_when_there_was_no_work_for_a_while():
    made = Decisions(idle_seconds=5.0)
    made.submit(frozen())
    made.scale(0.0)
    made.start("host-1", 1.0)
    made.queue.withdraw("t")
    assert made.scale(10.0).recheck_seconds == 5.0
    assert made.scale(12.0).recheck_seconds == 3.0
    made.submit(frozen(0.2), trial="u")
    assert made.scale(13.0) == Scaling(), "there is work again"
    made.queue.withdraw("u")
    assert made.scale(14.0).recheck_seconds == 5.0
    assert made.scale(19.0).cancel == ("host-2",)
    assert list(made.fleet.hosts) == ["host-1"], "a running host leaves by itself"


def test_few_groups_wait_at_once():
    workers = WorkerRange(2, 2)
    runs, ranges = grouped(workers)
    made = Decisions(max_devices=6, worker_ranges=ranges)
    made.submit(runs)
    assert names(made.scale(0.0)) == ["group-1", "group-2"]
    assert [host.workers for host in made.fleet.hosts.values()] == [workers] * MAX_WAITING_GROUPS
    assert len(runs) > MAX_WAITING_GROUPS
    made.start("group-1", 10.0)
    assert names(made.scale(10.0)) == ["group-3"]


def test_a_group_that_waits_too_long_starts_with_fewer_devices():
    runs, ranges = grouped(WorkerRange(2, 8))
    made = Decisions(max_devices=8, worker_ranges=ranges)
    made.submit(runs[:1])
    made.scale(0.0)
    assert made.fleet.shrink_groups(PATIENCE_SECONDS - 1, lambda: 3) == Scaling()
    scaling = made.fleet.shrink_groups(PATIENCE_SECONDS, lambda: 3)
    assert scaling.cancel == ("group-1",)
    assert [(host.name, host.size, host.devices) for host in scaling.start] == [("group-2", 3, 3.0)]
    scaling = made.fleet.shrink_groups(2 * PATIENCE_SECONDS, lambda: 9)
    assert [host.size for host in scaling.start] == [2], "not larger, and not below the minimum"
    assert made.fleet.shrink_groups(9 * PATIENCE_SECONDS, lambda: 0) == Scaling()


def test_a_running_group_is_not_replaced():
    runs, ranges = grouped(WorkerRange(1, 2))
    made = Decisions(worker_ranges=ranges)
    made.submit(runs)
    made.scale(0.0)
    made.start("group-1", 5.0)
    assert made.fleet.shrink_groups(9 * PATIENCE_SECONDS, lambda: 1) == Scaling()


def test_with_a_budget_no_host_is_requested_before_a_lease_covers_it():
    made = Decisions(device_seconds=10_000.0)
    made.submit(frozen())
    assert made.scale(0.0) == Scaling()
    assert made.guard.wanted_devices == 2.0
    made.lease(0.1)
    assert made.guard.wanted_devices == 0.0
    assert names(made.scale(0.2)) == ["host-1", "host-2"]


# --- the fleet ------------------------------------------------------------------------------------------


def test_only_consecutive_failed_starts_are_counted():
    fleet = Decisions().fleet
    assert not fleet.fail_start("cancelled")
    for round_ in range(2):
        for number in range(1, MAX_FAILED_STARTS + 1):
            host = fleet.request(SINGLE_DEVICE, 1, 0.0)
            assert fleet.fail_start(host.name) == (number == MAX_FAILED_STARTS)
            del fleet.hosts[host.name]
        started = fleet.request(SINGLE_DEVICE, 1, 0.0)
        assert fleet.contact(started.name, ("node",), 1.0), round_
        assert not fleet.fail_start(started.name), "it died later"


def test_the_longest_silence_of_a_host_fades():
    fleet = Decisions().fleet
    host = fleet.request(SINGLE_DEVICE, 1, 0.0)
    assert fleet.contact(host.name, ("node",), 5.0)
    fleet.answer(host.name, 5.0, is_busy=False)
    assert not fleet.contact(host.name, ("node",), 15.0)
    assert host.longest_silence == 10.0
    fleet.answer(host.name, 15.0, is_busy=True)
    fleet.contact(host.name, ("node",), 99.0)
    assert host.longest_silence == 10.0, "it was opening lanes"
    fleet.answer(host.name, 99.0, is_busy=False)
    fleet.contact(host.name, ("node",), 99.1)
    assert host.longest_silence == 10.0 * SILENCE_DECAY > SLICE_SECONDS


def test_a_host_is_charged_from_the_start_of_its_process():
    made = Decisions()
    host = made.fleet.request(SINGLE_DEVICE, 1, 10.0)
    assert made.account.device_seconds(15.0) == 0.0
    made.fleet.charge_from_start(host.name, 3.0, 15.0)
    assert made.account.device_seconds(15.0) == 3.0
    assert made.fleet.devices == 1.0
    del made.fleet.hosts[host.name]
    assert made.fleet.devices == 1.0, "it is charged until it is gone"
