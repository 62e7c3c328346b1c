"""The work queue gives every fold-run to one host at a time and loses none, whichever host dies."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from raymrc.configuration import Backbone, FoldRun
from raymrc.costs.budget import Need
from raymrc.ledger.record import Epoch, Record
from raymrc.scheduling.allowance import Allowance
from raymrc.scheduling.orders import SINGLE_DEVICE, HostReport, Order, WorkerRange
from raymrc.scheduling.work_queue import (
    IDLE_SECONDS_BEFORE_HANDOVER,
    MAX_HOST_DEATHS,
    SETTLING_SECONDS,
    WorkQueue,
)
from tests.sweep.making import fold_runs, make_plan, make_record


def frozen(rates: int = 2) -> list[FoldRun]:
    return fold_runs(make_plan([0.1 * (i + 1) for i in range(rates)], ["frozen_soft_prompt"]))


def trained() -> list[FoldRun]:
    return fold_runs(make_plan([0.1], ["soft_prompt"]))


def on_another(run: FoldRun) -> FoldRun:
    configuration = run.configuration
    cell = replace(configuration.cell, backbone=Backbone("other", "elsewhere"))
    return replace(run, configuration=replace(configuration, cell=cell))


def make_queue(**terms: Any) -> WorkQueue:
    return WorkQueue(**{"lanes": 4, "max_devices": 2, **terms})


def keys(order: Order) -> list[str]:
    return [run.key for run, _ in order.open]


def done(run: FoldRun) -> HostReport:
    return HostReport(run.key, record=make_record(run).to_json())


def test_hosts_share_the_queue_and_a_free_lane_is_filled() -> None:
    queue, runs = make_queue(lanes=2), frozen(3)
    queue.submit("t", runs)
    assert keys(queue.exchange("a", (), 0)) == [run.key for run in runs[:2]]
    assert keys(queue.exchange("b", (), 0)) == [run.key for run in runs[2:4]]
    assert not queue.exchange("a", (), 1)
    assert keys(queue.exchange("a", [done(runs[1])], 2)) == [runs[4].key]
    results, is_over = queue.collect("t")
    assert [r["fold"] for r in results] == [runs[1].fold] and not is_over
    assert Record.from_json(results[0]["record"]) == make_record(runs[1])


def test_earlier_submissions_go_first_even_if_their_calls_arrive_later() -> None:
    """Submissions to a starting actor once overtook each other, and finished fold-runs waited half an hour
    for their trial's process."""
    queue, runs = make_queue(lanes=1), frozen(3)
    first, second, third = runs[:2], runs[2:4], runs[4:6]
    queue.submit("c", third, turn=3)
    assert keys(queue.exchange("a", (), 0)) == [third[0].key]
    queue.submit("a", first, turn=1)
    queue.submit("b", second, turn=2)
    wanted = [run.key for run in (*first, *second, third[1])]
    assert [run.key for run in queue.queued] == wanted
    order = queue.exchange("a", [done(third[0])], 1)
    assert keys(order) == wanted[:1]
    queue.submit("d", runs[6:], turn=3)
    assert [run.key for run in queue.queued] == [*wanted[1:], *(run.key for run in runs[6:])]


def test_a_staying_trial_is_told_once_that_it_is_idle_and_may_get_more_work() -> None:
    queue, runs = make_queue(), frozen(1)
    queue.submit("t", runs[:2], stays=True)
    queue.exchange("a", (), 0)
    queue.exchange("a", [done(runs[0])], 1)
    (result,), is_over = queue.collect("t")
    assert "is_idle" not in result and not is_over
    queue.exchange("a", [done(runs[1])], 2)
    (result,), is_over = queue.collect("t")
    assert result["is_idle"] and result["fold"] == runs[1].fold and not is_over
    assert queue.collect("t") == ([], False)
    queue.submit("t", runs[2:], stays=True)
    assert queue.collect("t") == ([], False)
    queue.close_cell(runs[2].configuration.cell)  # so no report of it will come
    assert queue.collect("t") == ([{"is_idle": True}], False)
    queue.withdraw("t")
    assert queue.collect("t") == ([], True)


def test_near_the_end_no_host_takes_more_than_an_even_share() -> None:
    queue, runs = make_queue(lanes=8), frozen(2)
    queue.submit("t", runs)
    assert len(keys(queue.exchange("a", (), 0))) == 3
    assert len(keys(queue.exchange("b", (), 0))) == 3


def test_a_fold_run_that_trains_the_backbone_has_a_host_for_itself() -> None:
    queue, alone, shared = make_queue(), trained(), frozen(1)
    queue.submit("t", [*alone[:1], *shared])
    assert keys(queue.exchange("a", (), 0)) == [alone[0].key]
    assert len(keys(queue.exchange("b", (), 0))) == 3
    queue.submit("u", alone[1:])
    assert not queue.exchange("a", (), 1) and not queue.exchange("b", (), 1)
    order = queue.exchange("b", [done(run) for run in shared], 2)
    assert keys(order) == [alone[1].key]


def test_a_host_keeps_to_its_backbone_while_there_is_work_for_it() -> None:
    queue, runs = make_queue(lanes=1), frozen(2)
    others = [on_another(run) for run in runs[:2]]
    queue.submit("t", [runs[0], *others, runs[1]])
    assert keys(queue.exchange("a", (), 0)) == [runs[0].key]
    assert keys(queue.exchange("a", [done(runs[0])], 0)) == [runs[1].key]
    assert keys(queue.exchange("a", [done(runs[1])], 0)) == [others[0].key]


def test_a_withdrawn_trial_is_closed_and_its_lanes_are_refilled() -> None:
    queue, runs = make_queue(lanes=3, max_devices=1), frozen(2)
    queue.submit("t", runs[:3])
    queue.submit("u", runs[3:])
    queue.exchange("a", (), 0)
    queue.withdraw("t")
    order = queue.exchange("a", [done(runs[0])], 1)
    assert set(order.close) == {run.key for run in runs[:3]}
    assert keys(order) == [run.key for run in runs[3:]]
    assert queue.collect("t") == ([], True)


def test_a_trial_may_listen_before_its_work_is_submitted() -> None:
    queue, runs = make_queue(), frozen(1)
    assert queue.collect("t") == ([], False)
    queue.submit("t", runs)
    assert queue.collect("t") == ([], False)


def test_a_refused_lane_waits_until_another_one_closes() -> None:
    queue, runs = make_queue(lanes=3, max_devices=1), frozen(1)
    queue.submit("t", runs)
    queue.exchange("a", (), 0)
    assert not queue.exchange("a", [HostReport(runs[2].key, refused=True)], 0)
    assert keys(queue.exchange("a", [done(runs[0])], 0)) == [runs[2].key]


def test_lanes_of_a_lost_host_resume_from_their_checkpoints() -> None:
    runs = frozen(1)
    queue = make_queue(checkpoints={runs[2].key: "c/000004"}, max_devices=1)
    queue.submit("t", runs)
    queue.exchange("a", (), 0)
    queue.exchange(
        "a", [HostReport(runs[1].key, epoch=Epoch(1, 0.5, 0.1, 1.0), checkpoint="b/000001")], 1
    )
    assert queue.remove_host("a") == []
    order = queue.exchange("b", (), 2)
    assert order.open == ((runs[0], None), (runs[1], "b/000001"), (runs[2], "c/000004"))


def test_a_paused_fold_run_is_settled_and_resumes_from_its_checkpoint() -> None:
    queue, (run, other, _) = make_queue(max_devices=1), frozen(1)
    queue.submit("t", [run, other], {run.key: 3})
    order = queue.exchange("a", (), 0)
    assert order.pause_epochs == {run.key: 3}, "the other fold-run is trained to its end"
    paused = replace(make_record(run), status="paused")
    report = HostReport(
        run.key, checkpoint=f"{run.key}/000003", record=paused.to_json(), pauses=True
    )
    queue.exchange("a", [report], 1)
    (result,), is_over = queue.collect("t")
    assert Record.from_json(result["record"]) == paused and not is_over
    queue.exchange("a", [done(other)], 2)
    assert queue.collect("t")[1], "a trial is over when its fold-runs pause"
    queue.submit("u", [run], {run.key: 6})
    order = queue.exchange("a", (), 3)
    assert order.open == ((run, f"{run.key}/000003"),) and order.pause_epochs == {run.key: 6}
    queue.remove_host("a")
    order = queue.exchange("b", (), 4)
    assert order.open == ((run, f"{run.key}/000003"),) and order.pause_epochs == {run.key: 6}


def handed_over(run: FoldRun) -> HostReport:
    return HostReport(run.key, checkpoint=f"{run.key}/000001", handed_over=True)


def two_hosts(opened_at: float = 0.0, **terms: Any) -> tuple[WorkQueue, list[FoldRun], float]:
    """Host b has four lanes and host a is idle; at the returned time b may be asked for a handover."""
    queue, (big, *_), shared = make_queue(**terms), trained(), frozen(2)[:4]
    queue.submit("t", [big, *shared], needs={run.key: Need(100.0, 100.0, 100.0) for run in shared})
    workers = queue.worker_ranges.get(big.configuration.cell, SINGLE_DEVICE)
    assert keys(queue.exchange("a", (), 0, workers)) == [big.key]
    assert len(keys(queue.exchange("b", (), opened_at))) == 4
    assert not queue.exchange("b", (), SETTLING_SECONDS).hand_over, "the other host is busy"
    queue.exchange("a", [done(big)], SETTLING_SECONDS, workers)
    return queue, shared, SETTLING_SECONDS + IDLE_SECONDS_BEFORE_HANDOVER


def test_an_idle_host_takes_over_half_of_another_hosts_lanes() -> None:
    """The last four lanes of a study once stayed on one host, and the other core idled for 25 minutes."""
    queue, shared, now = two_hosts()
    assert not queue.exchange("b", (), now - 1).hand_over, "new work may arrive in a moment"
    order = queue.exchange("b", (), now)
    assert order.hand_over == (shared[2].key, shared[3].key) and order
    assert not queue.exchange("a", (), now + 6).leave, "it is about to take over lanes"
    assert not queue.exchange("b", [handed_over(run) for run in shared[2:]], now + 7).open
    assert queue.wanted_hosts({SINGLE_DEVICE: 2}) == {SINGLE_DEVICE: 2}, (
        "no further host is wanted: one waits for the lanes"
    )
    queue.close_cell(shared[2].configuration.cell)
    moved = queue.exchange("a", (), now + 7).open
    assert {(run.key, saved) for run, saved in moved} == {
        (run.key, f"{run.key}/000001") for run in shared[2:]
    }, "lanes between two hosts have started, so closing their cell does not drop them"
    last = now + 7 + SETTLING_SECONDS
    assert not queue.exchange("b", (), last).hand_over, "both hosts have two lanes"
    queue.exchange("a", [done(run) for run in shared[2:]], last)
    last += IDLE_SECONDS_BEFORE_HANDOVER
    assert queue.exchange("b", (), last).hand_over == (shared[1].key,)
    queue.exchange("b", [handed_over(shared[1])], last + 1)
    assert queue.exchange("a", (), last + 1).open
    queue.exchange("b", [done(shared[0])], last + 20)
    assert queue.exchange("b", (), last + 30).leave, "a single lane cannot be shared"


@pytest.mark.parametrize(
    "why", ["a GPU costs money", "just opened", "not affordable", "a group", "a group waits"]
)
def test_lanes_are_not_handed_over_where_it_would_not_pay(why: str) -> None:
    tight, cell = Allowance(), trained()[0].configuration.cell
    terms: dict[str, dict[str, Any]] = {
        "a GPU costs money": {"fill": 8},
        "not affordable": {"allowance": tight},
        "a group": {"worker_ranges": {cell: WorkerRange(1, 2)}, "max_devices": 3},
        "just opened": {"opened_at": IDLE_SECONDS_BEFORE_HANDOVER + 1},
    }
    queue, _, now = two_hosts(**terms.get(why, {}))
    if why == "a group waits":
        grouped = on_another(trained()[1])
        queue.worker_ranges = {grouped.configuration.cell: WorkerRange(2, 2)}
        queue.submit("u", [grouped])
    tight.set_left(384.0, 1e9)
    assert not queue.exchange("b", (), now).hand_over
    tight.set_left(1000.0, 1e9)
    moves = why in ("just opened", "not affordable")
    assert bool(queue.exchange("b", (), now + 1).hand_over) == moves


def test_lanes_that_cannot_be_saved_stay_and_no_host_waits_for_them() -> None:
    queue, _, now = two_hosts()
    assert queue.exchange("b", (), now).hand_over
    assert not queue.exchange("b", (), now + 1).hand_over
    assert not queue.exchange("b", (), now + 2 * SETTLING_SECONDS).hand_over, (
        "and not again for minutes"
    )
    assert queue.exchange("a", (), now + 2 * SETTLING_SECONDS).leave
    assert len(queue.training) == 4


def test_a_handed_over_lane_that_is_refused_returns_to_its_host() -> None:
    queue, shared, now = two_hosts()
    queue.exchange("b", (), now)
    queue.exchange("b", [handed_over(run) for run in shared[2:]], now + 1)
    _, second = queue.exchange("a", (), now + 1).open
    assert not queue.exchange("a", [HostReport(second[0].key, refused=True)], now + 2).open
    assert queue.exchange("b", (), now + 2).open == (second,)
    assert len(queue.training) == 4


def test_another_host_is_wanted_if_the_one_that_lanes_move_to_is_lost() -> None:
    queue, shared, now = two_hosts()
    queue.exchange("b", (), now)
    queue.exchange("b", [handed_over(run) for run in shared[2:]], now + 1)
    queue.remove_host("a")
    assert queue.wanted_hosts({SINGLE_DEVICE: 1}) == {SINGLE_DEVICE: 2}
    assert len(queue.exchange("c", (), now + 3).open) == 2


def test_a_late_report_of_a_lost_host_is_ignored() -> None:
    queue, runs = make_queue(), frozen(1)
    queue.submit("t", runs)
    queue.exchange("a", (), 0)
    queue.remove_host("a")
    queue.exchange("b", (), 1)
    queue.exchange("a", [done(runs[0])], 1)
    results, is_over = queue.collect("t")
    assert results == [] and not is_over


def test_a_fold_run_that_kills_hosts_is_tried_alone_then_failed_and_its_neighbours_are_kept() -> (
    None
):
    queue, runs = make_queue(max_devices=1), frozen(1)
    queue.submit("t", runs)
    bad = runs[1].key
    given_up: list[FoldRun] = []
    deaths = 0
    for number in range(20):
        host = f"h{number}"
        order = queue.exchange(host, (), number)
        while order.open:
            if bad in keys(order):
                deaths += 1
                alone = len(order.open) == 1
                hopeless = queue.remove_host(host)
                given_up += hopeless
                queue.fail(hopeless, "died")
                break
            order = queue.exchange(host, [done(run) for run, _ in order.open], number)
    assert [run.key for run in given_up] == [bad] and alone and deaths == MAX_HOST_DEATHS
    results, is_over = queue.collect("t")
    assert is_over
    status = {r["fold"]: Record.from_json(r["record"]).status for r in results}
    assert status == {run.fold: "failed" if run.key == bad else "done" for run in runs}


def test_the_loss_of_a_machine_is_not_counted_against_fold_runs() -> None:
    queue, runs = make_queue(max_devices=1), frozen(1)
    queue.submit("t", runs)
    for number in range(2 * MAX_HOST_DEATHS):
        assert len(queue.exchange(f"h{number}", (), number).open) == 3
        assert queue.remove_host(f"h{number}", count_death=False) == []


def test_hosts_are_wanted_for_the_length_of_the_queue_and_leave_when_it_is_empty() -> None:
    queue, runs = make_queue(max_devices=4, fill=2, idle_seconds=5.0), frozen(1)
    assert queue.wanted_hosts({})[SINGLE_DEVICE] == 0
    queue.submit("t", runs)
    assert queue.wanted_hosts({})[SINGLE_DEVICE] == 2
    queue.submit("u", frozen(6)[3:])
    assert queue.wanted_hosts({})[SINGLE_DEVICE] == 4
    queue.withdraw("u")
    queue.exchange("a", (), 0)
    queue.exchange("a", [done(run) for run in runs[:2]], 0)
    queue.exchange("a", [done(runs[2])], 1)
    assert not queue.exchange("a", (), 5.9).leave
    assert queue.exchange("a", (), 6.1).leave


def test_each_fold_run_that_trains_the_backbone_justifies_a_host() -> None:
    queue = make_queue(lanes=8, max_devices=9, fill=8)
    queue.submit("t", [*trained(), *frozen(2)])
    assert queue.wanted_hosts({})[SINGLE_DEVICE] == 4
    for number in range(3):
        assert len(keys(queue.exchange(f"h{number}", (), 0))) == 1
    assert len(keys(queue.exchange("h3", (), 0))) == 6


def test_epochs_are_reported_at_most_once_per_interval() -> None:
    queue, runs = make_queue(), frozen(1)
    queue.submit("t", runs)
    queue.exchange("a", (), 0)
    for number in range(1, 9):
        epoch = Epoch(number, 1.0, 0.1 * number, 0.2)
        queue.exchange("a", [HostReport(runs[0].key, epoch=epoch)], 0.3 * number)
    assert [r["epoch"] for r in queue.collect("t")[0]] == [4, 8]


def test_no_fold_run_is_lost_or_doubled_whatever_happens() -> None:
    """Hosts start, finish, refuse, hand over, die and fall silent in any order."""
    moved = 0
    for seed in range(60):
        draw = random.Random(seed)
        grouped, size = trained(), draw.randint(2, 3)
        ranges = (
            {grouped[0].configuration.cell: WorkerRange(1, size)} if draw.random() < 0.5 else {}
        )
        queue = make_queue(lanes=draw.randint(1, 4), max_devices=3, worker_ranges=ranges)
        runs = [*frozen(3), *grouped, *(on_another(run) for run in frozen(1))]
        draw.shuffle(runs)
        for number, cut in enumerate(range(0, len(runs), 4)):
            queue.submit(f"t{number}", runs[cut : cut + 4])
        open_on: dict[str, dict[str, FoldRun]] = {}
        records: list[str] = []
        handing: dict[str, tuple[str, ...]] = {}
        for now in range(2000):
            name = draw.choice("abcg")
            workers = (
                ranges.get(grouped[0].configuration.cell, SINGLE_DEVICE)
                if name == "g"
                else SINGLE_DEVICE
            )
            held = open_on.setdefault(name, {})
            reports = []
            for key, run in list(held.items()):
                luck = draw.random()
                if luck < 0.3:
                    reports.append(done(run))
                    del held[key]
                elif luck < 0.4:
                    reports.append(
                        HostReport(key, Epoch(1, 1.0, 0.0, 1.0), checkpoint=f"{key}/000001")
                    )
            for key in handing.pop(name, ()):
                if key in held and draw.random() < 0.8:
                    reports.append(handed_over(held.pop(key)))
                    moved += 1
            if draw.random() < 0.05:
                queue.fail(queue.remove_host(name), "died")
                del open_on[name]
                continue
            if held and draw.random() < 0.05:  # its machine is drained
                queue.release(name, reports, now)
                del open_on[name]
                continue
            order = queue.exchange(name, reports, 5 * now, workers)
            handing[name] = order.hand_over
            for run, saved in order.open:
                assert saved in (None, f"{run.key}/000001")
                assert ranges.get(run.configuration.cell, SINGLE_DEVICE) == workers
                elsewhere = [h for h, keys in open_on.items() if run.key in keys]
                assert not elsewhere, "one host at a time"
                held[run.key] = run
            for number in range(-(-len(runs) // 4)):
                records += [r["record"] for r in queue.collect(f"t{number}")[0] if "record" in r]
            if len(records) == len(runs):
                break
        found = [Record.from_json(text).key for text in records]
        assert sorted(found) == sorted(run.key for run in runs)
    assert moved


def test_a_group_is_wanted_only_if_it_fits_and_blocks_no_other_host() -> None:
    group = WorkerRange(2, 4)
    runs, alone = frozen(1), trained()
    queue = make_queue(max_devices=6, worker_ranges={alone[0].configuration.cell: group})
    queue.submit("t", alone)
    assert queue.wanted_hosts({}) == {group: 1}, (
        "of six devices the first takes four, and the second does not fit"
    )
    assert queue.wanted_hosts({group: 1}) == {group: 1}
    queue.submit("u", runs)
    assert queue.wanted_hosts({group: 1}) == {group: 1, SINGLE_DEVICE: 2}
    assert queue.wanted_hosts({SINGLE_DEVICE: 3}) == {SINGLE_DEVICE: 3}, (
        "existing hosts stay, and too few devices are left"
    )
    assert (
        queue.exchange("h", (), 0, SINGLE_DEVICE).open[0][0].configuration.cell.strategy
        != "soft_prompt"
    )
    assert keys(queue.exchange("g", (), 0, group)) == [alone[0].key], "one fold-run at a time"
    assert not queue.exchange("g", (), 1, group)
    for now in range(1, 4):
        queue.exchange("h", [done(run) for run in runs], now)
    assert not queue.exchange("h", (), 4).leave
    assert queue.exchange("h", (), 20).leave, "fold-runs that wait for a group do not keep a host"


def test_lanes_of_a_released_host_resume_from_its_last_save() -> None:
    queue, runs = make_queue(), frozen(1)
    queue.submit("t", runs)
    queue.exchange("a", (), 0)
    for _ in range(2 * MAX_HOST_DEATHS):
        queue.release("a", [HostReport(runs[0].key, checkpoint="x/000009")], 1)
        assert queue.exchange("a", (), 2).open[0] == (runs[0], "x/000009")


def test_a_closed_cell_starts_nothing_more_and_its_open_fold_runs_end() -> None:
    queue, runs, others = make_queue(lanes=1, max_devices=1), frozen(2), trained()
    queue.submit("t", runs)
    queue.submit("u", others)
    assert keys(queue.exchange("a", (), 0)) == [runs[0].key]
    queue.close_cell(runs[0].configuration.cell)
    assert queue.collect("t") == ([], False), "one fold-run is open"
    assert keys(queue.exchange("a", [done(runs[0])], 1)) == [others[0].key]
    results, is_over = queue.collect("t")
    assert len(results) == 1 and is_over
    assert queue.queued == tuple(others[1:])
