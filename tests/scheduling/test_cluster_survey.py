"""A run ends with a message if its requests can never start, and waits if they may."""

from __future__ import annotations

import pytest

from raymrc.errors import RaymrcError
from raymrc.scheduling.cluster_survey import (
    AUTOSCALER_SECONDS,
    FIXED_SECONDS,
    MAX_REFUSALS,
    ClusterStatus,
    ClusterSurvey,
    check_room,
    count_devices,
)
from raymrc.scheduling.orders import SINGLE_DEVICE, WorkerRange
from tests.scheduling.fleets import Decisions

DEVICE = {"CPU": 2.0, "GPU": 1.0}
SMALL = ({"CPU": 8.0},)
GROUP = WorkerRange(2, 4)


def make_survey() -> tuple[ClusterSurvey, Decisions]:
    made = Decisions()
    return ClusterSurvey(made.fleet, DEVICE), made


def test_hosts_on_nodes_that_are_taken_away_are_drained():
    survey, _ = make_survey()
    assert not survey.note_draining(set()) and not survey.must_drain(["a"])
    assert survey.note_draining({"a"})
    assert not survey.note_draining({"a"}), "nothing new"
    assert survey.must_drain(["b", "a"]) and not survey.must_drain(["b"])
    survey.note_draining({"b"})
    assert survey.must_drain(["a"]), "a node that is gone from the list stays noted"


def test_only_requests_that_wait_for_a_while_are_judged():
    survey, made = make_survey()
    assert survey.longest_wait(1e6) is None
    made.fleet.request(SINGLE_DEVICE, 1, 0.0)
    assert survey.longest_wait(AUTOSCALER_SECONDS - 1) is None
    assert survey.longest_wait(AUTOSCALER_SECONDS) == (1, AUTOSCALER_SECONDS)
    made.start("host-1", 11.0)
    made.fleet.request(GROUP, 2, 11.0)
    assert survey.longest_wait(99.0) is None, "a running host's work is done first"
    del made.fleet.hosts["host-1"]
    made.fleet.request(SINGLE_DEVICE, 1, 12.0)
    assert survey.longest_wait(99.0) == (2, 88.0), "a host has started before, a group has not"


def test_a_group_that_may_still_shrink_is_not_judged():
    survey, made = make_survey()
    made.fleet.request(GROUP, 4, 0.0)
    assert survey.longest_wait(99.0) is None
    del made.fleet.hosts["group-1"]
    made.fleet.request(GROUP, 2, 99.0)
    assert survey.longest_wait(120.0) == (2, 21.0)


def test_a_refusal_has_to_be_repeated():
    survey, _ = make_survey()
    wait, status = (1, FIXED_SECONDS), ClusterStatus(SMALL, can_grow=False)
    for _ in range(MAX_REFUSALS - 1):
        assert survey.judge(wait, status) == ""
    assert survey.judge(None, None) == "", "it starts counting again"
    for _ in range(MAX_REFUSALS - 1):
        assert survey.judge(wait, status) == ""
    message = survey.judge(wait, status)
    assert message.startswith(
        "a host needs 2 CPU and 1 GPU, but the cluster has room for 0 and no autoscaler; lower "
    )


def refusal(wait: tuple[int, float], status: ClusterStatus) -> str:
    survey, _ = make_survey()
    return [survey.judge(wait, status) for _ in range(MAX_REFUSALS)][-1]


def test_a_cluster_without_an_autoscaler_is_given_time():
    status = ClusterStatus(SMALL, can_grow=False)
    assert refusal((2, FIXED_SECONDS - 1), status) == ""
    assert refusal((2, FIXED_SECONDS), status).startswith("a worker group needs at least 2 times")


def test_an_autoscaler_is_waited_for_until_it_refuses_our_devices():
    others = {"CPU": 9.0}, {"CPU": 2.0}
    assert refusal((1, 1e6), ClusterStatus(SMALL, True, refused=others)) == ""
    ours = {**DEVICE, "bundle_group_1": 0.001}
    message = refusal((1, AUTOSCALER_SECONDS), ClusterStatus(SMALL, True, refused=(ours,)))
    assert "autoscaler says that it can never provide this" in message


def test_devices_that_exist_are_waited_for():
    status = ClusterStatus(({"CPU": 4.0, "GPU": 2.0},), can_grow=False, refused=(DEVICE,))
    assert refusal((2, 1e6), status) == ""
    assert refusal((3, 1e6), status)


@pytest.mark.parametrize(
    ("nodes", "count"),
    [
        ([], 0),
        ([{"CPU": 2.0, "GPU": 1.0}], 1),
        ([{"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0}], 0),
        ([{"CPU": 9.0, "GPU": 3.0}, {"CPU": 2.0, "GPU": 8.0}], 4),
    ],
)
def test_a_device_is_on_one_node(nodes, count):
    assert count_devices(nodes, DEVICE) == count


def test_fractions_of_devices_add_up_exactly():
    assert count_devices([{"CPU": 0.3}], {"CPU": 0.1}) == 3
    assert count_devices([{"CPU": 1.0}, {}], {"GPU": 0.0}) == 2, "nothing is needed of them"


def test_too_little_room_is_refused_with_what_is_needed_and_what_there_is():
    check_room(GROUP, DEVICE, 2)
    with pytest.raises(
        RaymrcError, match=r"at least 2 times 2 CPU and 1 GPU, .* room for 1; lower"
    ):
        check_room(GROUP, DEVICE, 1)
