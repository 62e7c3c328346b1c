"""The board hands every fold-run to one host at a time, and forgets none, whoever dies."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raymrc.configuration import Backbone, FoldRun
from raymrc.costs.budget import Need
from raymrc.ledger.record import Epoch, Record
from raymrc.scheduling.allowance import Allowance
from raymrc.scheduling.failures import failed_record
from raymrc.scheduling.work_queue import (
    MAX_HOST_DEATHS,
    SETTLING_SECONDS,
    SINGLE_DEVICE,
    WAITING_SECONDS,
    HostReport,
    Order,
    WorkQueue,
)
from raymrc.sweep.hosts import Host, HostTerms
from tests.sweep.making import BACKBONE, Script, ScriptPool, fold_runs, make_plan, make_record


def frozen(rates: int = 2) -> list[FoldRun]:
    return fold_runs(make_plan([0.1 * (i + 1) for i in range(rates)], ["frozen_soft_prompt"]))


def trained() -> list[FoldRun]:
    return fold_runs(make_plan([0.1], ["soft_prompt"]))


def on_another(run: FoldRun) -> FoldRun:
    configuration = run.configuration
    cell = replace(configuration.cell, backbone=Backbone("other", "elsewhere"))
    return replace(run, configuration=replace(configuration, cell=cell))


def make_board(**terms: Any) -> WorkQueue:
    return WorkQueue(**{"lanes": 4, "max_devices": 2, **terms})


def keys(order: Order) -> list[str]:
    return [run.key for run, _ in order.open]


def done(run: FoldRun) -> HostReport:
    return HostReport(run.key, record=make_record(run).to_json())


def test_hosts_share_what_there_is_and_a_freed_lane_is_filled() -> None:
    board, runs = make_board(lanes=2), frozen(3)
    board.submit("t", runs)
    assert keys(board.exchange("a", (), 0)) == [run.key for run in runs[:2]]
    assert keys(board.exchange("b", (), 0)) == [run.key for run in runs[2:4]]
    assert not board.exchange("a", (), 1)
    assert keys(board.exchange("a", [done(runs[1])], 2)) == [runs[4].key]
    results, is_over = board.collect("t")
    assert [r["fold"] for r in results] == [runs[1].fold] and not is_over
    assert Record.from_json(results[0]["record"]) == make_record(runs[1])


def test_what_was_handed_in_first_goes_first_however_late_the_call_comes() -> None:
    """Submissions to an actor that was still starting overtook each other, and what was finished first waited
    half an hour for its trial's process."""
    board, runs = make_board(lanes=1), frozen(3)
    one, two, three = runs[:2], runs[2:4], runs[4:6]
    board.submit("c", three, turn=3)
    assert keys(board.exchange("a", (), 0)) == [three[0].key]
    board.submit("a", one, turn=1)
    board.submit("b", two, turn=2)
    wanted = [run.key for run in (*one, *two, three[1])]
    assert [run.key for run in board.queued] == wanted
    order = board.exchange("a", [done(three[0])], 1)
    assert keys(order) == wanted[:1]
    board.submit("d", runs[6:], turn=3)
    assert [run.key for run in board.queued] == [*wanted[1:], *(run.key for run in runs[6:])]


def test_a_trial_that_stays_is_told_once_that_it_has_nothing_and_may_have_more() -> None:
    board, runs = make_board(), frozen(1)
    board.submit("t", runs[:2], stays=True)
    board.exchange("a", (), 0)
    board.exchange("a", [done(runs[0])], 1)
    (result,), is_over = board.collect("t")
    assert "is_idle" not in result and not is_over
    board.exchange("a", [done(runs[1])], 2)
    (result,), is_over = board.collect("t")
    assert result["is_idle"] and result["fold"] == runs[1].fold and not is_over
    assert board.collect("t") == ([], False)
    board.submit("t", runs[2:], stays=True)
    assert board.collect("t") == ([], False)
    board.close_cell(runs[2].configuration.cell)  # nothing will be reported of it
    assert board.collect("t") == ([{"is_idle": True}], False)
    board.withdraw("t")
    assert board.collect("t") == ([], True)


def test_at_the_end_nobody_takes_more_than_an_even_share() -> None:
    board, runs = make_board(lanes=8), frozen(2)
    board.submit("t", runs)
    assert len(keys(board.exchange("a", (), 0))) == 3
    assert len(keys(board.exchange("b", (), 0))) == 3


def test_one_that_trains_the_backbone_has_a_host_for_itself() -> None:
    board, alone, shared = make_board(), trained(), frozen(1)
    board.submit("t", [*alone[:1], *shared])
    assert keys(board.exchange("a", (), 0)) == [alone[0].key]
    assert len(keys(board.exchange("b", (), 0))) == 3
    board.submit("u", alone[1:])
    assert not board.exchange("a", (), 1) and not board.exchange("b", (), 1)
    order = board.exchange("b", [done(run) for run in shared], 2)
    assert keys(order) == [alone[1].key]


def test_a_host_keeps_to_its_backbone_while_there_is_work_for_it() -> None:
    board, runs = make_board(lanes=1), frozen(2)
    others = [on_another(run) for run in runs[:2]]
    board.submit("t", [runs[0], *others, runs[1]])
    assert keys(board.exchange("a", (), 0)) == [runs[0].key]
    assert keys(board.exchange("a", [done(runs[0])], 0)) == [runs[1].key]
    assert keys(board.exchange("a", [done(runs[1])], 0)) == [others[0].key]


def test_a_withdrawn_trial_is_closed_and_its_room_filled() -> None:
    board, runs = make_board(lanes=3, max_devices=1), frozen(2)
    board.submit("t", runs[:3])
    board.submit("u", runs[3:])
    board.exchange("a", (), 0)
    board.withdraw("t")
    order = board.exchange("a", [done(runs[0])], 1)
    assert set(order.close) == {run.key for run in runs[:3]}
    assert keys(order) == [run.key for run in runs[3:]]
    assert board.collect("t") == ([], True)


def test_a_trial_may_listen_before_its_work_is_handed_in() -> None:
    board, runs = make_board(), frozen(1)
    assert board.collect("t") == ([], False)
    board.submit("t", runs)
    assert board.collect("t") == ([], False)


def test_what_does_not_fit_waits_until_a_lane_closes() -> None:
    board, runs = make_board(lanes=3, max_devices=1), frozen(1)
    board.submit("t", runs)
    board.exchange("a", (), 0)
    assert not board.exchange("a", [HostReport(runs[2].key, refused=True)], 0)
    assert keys(board.exchange("a", [done(runs[0])], 0)) == [runs[2].key]


def test_lanes_of_a_lost_host_go_on_where_they_were_saved() -> None:
    runs = frozen(1)
    board = make_board(saved={runs[2].key: "c/000004"}, max_devices=1)
    board.submit("t", runs)
    board.exchange("a", (), 0)
    board.exchange(
        "a", [HostReport(runs[1].key, epoch=Epoch(1, 0.5, 0.1, 1.0), saved="b/000001")], 1
    )
    assert board.lost("a") == []
    order = board.exchange("b", (), 2)
    assert order.open == ((runs[0], None), (runs[1], "b/000001"), (runs[2], "c/000004"))


def test_a_fold_run_that_pauses_is_settled_and_goes_on_where_it_was_saved() -> None:
    board, (run, other, _) = make_board(max_devices=1), frozen(1)
    board.submit("t", [run, other], {run.key: 3})
    order = board.exchange("a", (), 0)
    assert order.until == {run.key: 3}, "the other one is trained to its end"
    paused = replace(make_record(run), status="paused")
    report = HostReport(run.key, saved=f"{run.key}/000003", record=paused.to_json(), pauses=True)
    board.exchange("a", [report], 1)
    (result,), is_over = board.collect("t")
    assert Record.from_json(result["record"]) == paused and not is_over
    board.exchange("a", [done(other)], 2)
    assert board.collect("t")[1], "a trial is over when its fold-runs pause"
    board.submit("u", [run], {run.key: 6})
    order = board.exchange("a", (), 3)
    assert order.open == ((run, f"{run.key}/000003"),) and order.until == {run.key: 6}
    board.lost("a")
    order = board.exchange("b", (), 4)
    assert order.open == ((run, f"{run.key}/000003"),) and order.until == {run.key: 6}


def handed_over(run: FoldRun) -> HostReport:
    return HostReport(run.key, saved=f"{run.key}/000001", hands_over=True)


def two_hosts(**terms: Any) -> tuple[WorkQueue, list[FoldRun], float]:
    """Host b has four lanes, a is idle for long enough; and the time at which b may be asked for some."""
    board, (big, *_), shared = make_board(**terms), trained(), frozen(2)[:4]
    board.submit("t", [big, *shared], needs={run.key: Need(100.0, 100.0, 100.0) for run in shared})
    crew = board.crews.get(big.configuration.cell, SINGLE_DEVICE)
    assert keys(board.exchange("a", (), 0, crew)) == [big.key]
    assert len(keys(board.exchange("b", (), 0))) == 4
    assert not board.exchange("b", (), SETTLING_SECONDS).hand_over, "the other one is busy"
    board.exchange("a", [done(big)], SETTLING_SECONDS, crew)
    return board, shared, SETTLING_SECONDS + WAITING_SECONDS


def test_a_host_with_nothing_to_do_is_handed_half_of_anothers_lanes() -> None:
    """At a study's end the last four stayed on one host, and the other core was idle for 25 minutes."""
    board, shared, now = two_hosts()
    assert not board.exchange("b", (), now - 1).hand_over, "new work may come in a moment"
    order = board.exchange("b", (), now)
    assert order.hand_over == (shared[2].key, shared[3].key) and order
    assert not board.exchange("a", (), now + 6).leave, "it is about to be handed some"
    assert not board.exchange("b", [handed_over(run) for run in shared[2:]], now + 7).open
    assert board.wanted({SINGLE_DEVICE: 2}) == {SINGLE_DEVICE: 2}, (
        "nobody is asked for: one waits for them"
    )
    board.close_cell(shared[2].configuration.cell)
    moved = board.exchange("a", (), now + 7).open
    assert {(run.key, saved) for run, saved in moved} == {
        (run.key, f"{run.key}/000001") for run in shared[2:]
    }, "what was under way is, whatever becomes of its cell"
    last = now + 7 + SETTLING_SECONDS
    assert not board.exchange("b", (), last).hand_over, "two each"
    board.exchange("a", [done(run) for run in shared[2:]], last)
    last += WAITING_SECONDS
    assert board.exchange("b", (), last).hand_over == (shared[1].key,)
    board.exchange("b", [handed_over(shared[1])], last + 1)
    assert board.exchange("a", (), last + 1).open
    board.exchange("b", [done(shared[0])], last + 20)
    assert board.exchange("b", (), last + 30).leave, "one lane is nobody's to share"


@pytest.mark.parametrize(
    "why", ["a GPU costs money", "just opened", "not affordable", "a group", "a group waits"]
)
def test_lanes_stay_where_moving_them_would_not_be_worth_it(why: str) -> None:
    tight, cell = Allowance(), trained()[0].configuration.cell
    terms: dict[str, dict[str, Any]] = {
        "a GPU costs money": {"fill": 8},
        "not affordable": {"allowance": tight},
        "a group": {"crews": {cell: (1, 2)}, "max_devices": 3},
    }
    board, _, now = two_hosts(**terms.get(why, {}))
    if why == "a group waits":
        grouped = on_another(trained()[1])
        board.crews = {grouped.configuration.cell: (2, 2)}
        board.submit("u", [grouped])
    tight.allow(384.0, 1e9)
    if why == "just opened":
        board._hosts["b"].keeps_until = now + 1
    assert not board.exchange("b", (), now).hand_over
    tight.allow(1000.0, 1e9)
    moves = why in ("just opened", "not affordable")
    assert bool(board.exchange("b", (), now + 1).hand_over) == moves


def test_lanes_that_cannot_be_saved_stay_and_nobody_waits_for_them() -> None:
    board, _, now = two_hosts()
    assert board.exchange("b", (), now).hand_over
    assert not board.exchange("b", (), now + 1).hand_over
    assert not board.exchange("b", (), now + 2 * SETTLING_SECONDS).hand_over, "nor for minutes"
    assert board.exchange("a", (), now + 2 * SETTLING_SECONDS).leave
    assert len(board.training) == 4


def test_a_lane_that_finds_no_room_goes_back_to_where_it_was() -> None:
    board, shared, now = two_hosts()
    board.exchange("b", (), now)
    board.exchange("b", [handed_over(run) for run in shared[2:]], now + 1)
    _, second = board.exchange("a", (), now + 1).open
    assert not board.exchange("a", [HostReport(second[0].key, refused=True)], now + 2).open
    assert board.exchange("b", (), now + 2).open == (second,)
    assert len(board.training) == 4


def test_lanes_whose_new_host_is_lost_are_worth_another_one() -> None:
    board, shared, now = two_hosts()
    board.exchange("b", (), now)
    board.exchange("b", [handed_over(run) for run in shared[2:]], now + 1)
    board.lost("a")
    assert board.wanted({SINGLE_DEVICE: 1}) == {SINGLE_DEVICE: 2}
    assert len(board.exchange("c", (), now + 3).open) == 2


def test_a_host_saves_and_closes_what_it_hands_over_and_another_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trained").mkdir()
    script = Script(tmp_path / "trained")
    terms = HostTerms(cpus=1, gpus=0, num_threads=1, save_seconds=1e9, storage=str(tmp_path))
    one, other = Host([], terms), Host([], terms)
    pool = ScriptPool(script)
    one._pool, one._backbone = pool, BACKBONE
    other._pool, other._backbone = ScriptPool(script), BACKBONE
    stays, moves, _ = frozen(1)
    one._obey(Order(open=((stays, None), (moves, None))))
    pool.step()
    monkeypatch.setattr(one._files, "write", _full)
    order = Order(hand_over=(moves.key,))
    assert one._obey(order) == [] and len(pool) == 2, "what cannot be written stays"
    monkeypatch.undo()
    (report,) = one._obey(order)
    assert report.hands_over and report.saved is not None and list(pool.courses) == [stays.key]
    assert other._obey(Order(open=((moves, report.saved),))) == []
    assert script.begun_at() == [0, 0, 1]


def _full(*_: Any, **__: Any) -> None:
    raise OSError("no space left on device")


def test_a_late_word_of_a_lost_host_is_not_heard() -> None:
    board, runs = make_board(), frozen(1)
    board.submit("t", runs)
    board.exchange("a", (), 0)
    board.lost("a")
    board.exchange("b", (), 1)
    board.exchange("a", [done(runs[0])], 1)
    results, is_over = board.collect("t")
    assert results == [] and not is_over


def test_a_suspect_is_tried_alone_and_then_given_up_and_its_neighbours_are_not() -> None:
    board, runs = make_board(max_devices=1), frozen(1)
    board.submit("t", runs)
    bad = runs[1].key
    given_up: list[FoldRun] = []
    deaths = 0
    for number in range(20):
        host = f"h{number}"
        order = board.exchange(host, (), number)
        while order.open:
            if bad in keys(order):
                deaths += 1
                alone = len(order.open) == 1
                hopeless = board.lost(host)
                given_up += hopeless
                board.fail(failed_record(run, "died") for run in hopeless)
                break
            order = board.exchange(host, [done(run) for run, _ in order.open], number)
    assert [run.key for run in given_up] == [bad] and alone and deaths == MAX_HOST_DEATHS
    results, is_over = board.collect("t")
    assert is_over
    status = {r["fold"]: Record.from_json(r["record"]).status for r in results}
    assert status == {run.fold: "failed" if run.key == bad else "done" for run in runs}


def test_a_machine_that_goes_is_nobodys_fault() -> None:
    board, runs = make_board(max_devices=1), frozen(1)
    board.submit("t", runs)
    for number in range(2 * MAX_HOST_DEATHS):
        assert len(board.exchange(f"h{number}", (), number).open) == 3
        assert board.lost(f"h{number}", counts=False) == []


def test_hosts_are_wanted_as_the_queue_is_long_and_leave_when_there_is_none() -> None:
    board, runs = make_board(max_devices=4, fill=2, idle_seconds=5.0), frozen(1)
    assert board.wanted({})[SINGLE_DEVICE] == 0
    board.submit("t", runs)
    assert board.wanted({})[SINGLE_DEVICE] == 2
    board.submit("u", frozen(6)[3:])
    assert board.wanted({})[SINGLE_DEVICE] == 4
    board.withdraw("u")
    board.exchange("a", (), 0)
    board.exchange("a", [done(run) for run in runs[:2]], 0)
    board.exchange("a", [done(runs[2])], 1)
    assert not board.exchange("a", (), 5.9).leave
    assert board.exchange("a", (), 6.1).leave


def test_each_that_trains_the_backbone_is_worth_a_host() -> None:
    board = make_board(lanes=8, max_devices=9, fill=8)
    board.submit("t", [*trained(), *frozen(2)])
    assert board.wanted({})[SINGLE_DEVICE] == 4
    for number in range(3):
        assert len(keys(board.exchange(f"h{number}", (), 0))) == 1
    assert len(keys(board.exchange("h3", (), 0))) == 6


def test_epochs_are_passed_on_no_more_often_than_the_driver_can_use() -> None:
    board, runs = make_board(), frozen(1)
    board.submit("t", runs)
    board.exchange("a", (), 0)
    for number in range(1, 9):
        epoch = Epoch(number, 1.0, 0.1 * number, 0.2)
        board.exchange("a", [HostReport(runs[0].key, epoch=epoch)], 0.3 * number)
    assert [r["epoch"] for r in board.collect("t")[0]] == [4, 8]


def test_nothing_is_lost_or_doubled_whatever_happens() -> None:
    """Hosts that come, finish, refuse, hand over, die and fall silent in any order."""
    moved = 0
    for seed in range(60):
        draw = random.Random(seed)
        grouped, size = trained(), draw.randint(2, 3)
        crews = {grouped[0].configuration.cell: (1, size)} if draw.random() < 0.5 else {}
        board = make_board(lanes=draw.randint(1, 4), max_devices=3, crews=crews)
        runs = [*frozen(3), *grouped, *(on_another(run) for run in frozen(1))]
        draw.shuffle(runs)
        for number, cut in enumerate(range(0, len(runs), 4)):
            board.submit(f"t{number}", runs[cut : cut + 4])
        open_on: dict[str, dict[str, FoldRun]] = {}
        told: list[str] = []
        handing: dict[str, tuple[str, ...]] = {}
        for now in range(2000):
            name = draw.choice("abcg")
            crew = (
                crews.get(grouped[0].configuration.cell, SINGLE_DEVICE)
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
                    reports.append(HostReport(key, Epoch(1, 1.0, 0.0, 1.0), saved=f"{key}/000001"))
            for key in handing.pop(name, ()):
                if key in held and draw.random() < 0.8:
                    reports.append(handed_over(held.pop(key)))
                    moved += 1
            if draw.random() < 0.05:
                board.fail(failed_record(run, "died") for run in board.lost(name))
                del open_on[name]
                continue
            if held and draw.random() < 0.05:  # its machine will be taken away
                board.release(name, reports, now)
                del open_on[name]
                continue
            order = board.exchange(name, reports, 5 * now, crew)
            handing[name] = order.hand_over
            for run, saved in order.open:
                assert saved in (None, f"{run.key}/000001")
                assert crews.get(run.configuration.cell, SINGLE_DEVICE) == crew
                elsewhere = [h for h, keys in open_on.items() if run.key in keys]
                assert not elsewhere, "one host at a time"
                held[run.key] = run
            for number in range(-(-len(runs) // 4)):
                told += [r["record"] for r in board.collect(f"t{number}")[0] if "record" in r]
            if len(told) == len(runs):
                break
        found = [Record.from_json(text).key for text in told]
        assert sorted(found) == sorted(run.key for run in runs)
    assert moved


def test_a_group_is_asked_for_where_it_has_room_and_keeps_nothing_from_others() -> None:
    group = (2, 4)
    runs, alone = frozen(1), trained()
    board = make_board(max_devices=6, crews={alone[0].configuration.cell: group})
    board.submit("t", alone)
    assert board.wanted({}) == {group: 1}, (
        "six devices, four for the first and none for half of one"
    )
    assert board.wanted({group: 1}) == {group: 1}
    board.submit("u", runs)
    assert board.wanted({group: 1}) == {group: 1, SINGLE_DEVICE: 2}
    assert board.wanted({SINGLE_DEVICE: 3}) == {SINGLE_DEVICE: 3}, (
        "who is there stays; what is left is too little"
    )
    assert (
        board.exchange("h", (), 0, SINGLE_DEVICE).open[0][0].configuration.cell.strategy
        != "soft_prompt"
    )
    assert keys(board.exchange("g", (), 0, group)) == [alone[0].key], "one at a time"
    assert not board.exchange("g", (), 1, group)
    for now in range(1, 4):
        board.exchange("h", [done(run) for run in runs], now)
    assert not board.exchange("h", (), 4).leave
    assert board.exchange("h", (), 20).leave, "what waits for a group is nothing to a host"


def test_a_released_host_hands_over_what_it_had_saved_to_the_moment() -> None:
    board, runs = make_board(), frozen(1)
    board.submit("t", runs)
    board.exchange("a", (), 0)
    for _ in range(2 * MAX_HOST_DEATHS):
        board.release("a", [HostReport(runs[0].key, saved="x/000009")], 1)
        assert board.exchange("a", (), 2).open[0] == (runs[0], "x/000009")


def test_of_a_closed_cell_nothing_more_is_begun_and_what_is_under_way_ends() -> None:
    board, runs, others = make_board(lanes=1, max_devices=1), frozen(2), trained()
    board.submit("t", runs)
    board.submit("u", others)
    assert keys(board.exchange("a", (), 0)) == [runs[0].key]
    board.close_cell(runs[0].configuration.cell)
    assert board.collect("t") == ([], False), "one is under way"
    assert keys(board.exchange("a", [done(runs[0])], 1)) == [others[0].key]
    results, is_over = board.collect("t")
    assert len(results) == 1 and is_over
    assert board.queued == tuple(others[1:])
