"""Promise: no spending of a study is lost, even if drivers are killed or clocks are wrong, and the remaining
budget is never overstated.

It would break without anyone noticing: the bill arrives at the end of the month.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from raymrc.costs.account import (
    MAX_LEASE_SECONDS,
    MAX_SILENT_START_SECONDS,
    MIN_LEASE_SECONDS,
    Account,
)
from raymrc.costs.budget import Budget, Left, Spent, overhead
from raymrc.costs.journal import (
    WRITE_SECONDS,
    Journal,
    JournalEntry,
    add_up,
    covered_seconds,
    spent_by,
    unfinished,
)
from raymrc.errors import LedgerError
from tests.study.making import STUDY, plan_of, problems_of, spec_of

NOW = 1_800_000_000.0
HOUR = Budget(device_hours=1.0, device_hour_usd=2.0)


def open_account(journal: Journal, budget: Budget, now: float, moment: float) -> Account:
    """Open an account as a driver does: its first entry holds no device yet."""
    account = Account(budget, journal.entries(), now, moment)
    write(journal, account, now, moment, 0.0)
    return account


def write(
    journal: Journal, account: Account, now: float, moment: float, devices: float | None = None
) -> None:
    wanted = account.devices if devices is None else devices
    entry = account.lease(now, moment, wanted)
    journal.write(entry)
    account.update_others(journal.entries())
    account.confirm(entry, moment, wanted)


class Memory:
    """This store keeps files in memory, because thousands of writes need not reach a disk."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def place(self, name: str) -> str:
        return name

    def names(self, below: str = "") -> list[str]:
        return list(self.kept)

    def read(self, name: str) -> bytes:
        return self.kept[name]

    def write(self, name: str, content: bytes, *, replace: bool) -> None:
        self.kept[name] = content


# --- arithmetic -----------------------------------------------------------------------------------


def test_the_tightest_limit_holds_and_a_price_converts_dollars_to_device_time():
    assert Budget(usd=4.0, device_hour_usd=2.0).device_seconds == 7200
    assert Budget(usd=4.0, device_hours=1.0, device_hour_usd=2.0).device_seconds == 3600
    assert Budget(wall_hours=2.0).left(Spent(1e9, 1e9, 3600)) == Left(math.inf, 3600)
    assert Budget().left(Spent(1e9, 1e9, 1e9)) == Left() and not Budget()
    assert HOUR.left(Spent(5400.0)).device_seconds == -1800


def test_each_run_is_charged_its_own_price_or_else_the_current_price():
    runs = [
        JournalEntry("a", NOW, device_seconds=3600, device_hour_usd=4.0),
        JournalEntry("b", NOW, device_seconds=3600, device_hour_usd=1.0),
        JournalEntry("c", NOW, device_seconds=3600),
    ]
    assert add_up(runs, 3.0).usd == 8.0


def test_overlapping_runs_count_once_in_wall_time():
    assert covered_seconds([(0, 10), (5, 20), (30, 31), (6, 7)]) == 21
    assert covered_seconds([(0, 10), (5, 20)], until=8) == 8
    assert covered_seconds([]) == 0
    draw = random.Random(3)
    for _ in range(50):
        whole = [(a := draw.randrange(60), a + draw.randrange(20)) for _ in range(6)]
        seconds = {s for start, end in whole for s in range(start, end) if s < 50}
        assert covered_seconds(whole, 50) == len(seconds), "second by second"


def test_overhead_is_between_one_and_three():
    assert (overhead(0, 0), overhead(10, 20), overhead(30, 20), overhead(900, 1)) == (1, 1, 1.5, 3)


# --- one run --------------------------------------------------------------------------------------


def test_devices_are_charged_from_host_start_to_host_end_even_when_idle():
    account = Account(HOUR, (), NOW, 100.0)
    account.start("a", 2.0, 110.0)
    account.start("b", 1.0, 120.0)
    account.start("b", 1.0, 125.0)  # this message arrives twice
    account.end("a", 130.0)
    account.end("a", 140.0)
    account.end("never there", 150.0)
    assert account.device_seconds(150.0) == 2 * 20 + 30
    assert account.devices == 1
    spent = account.spent(150.0)
    assert spent == Spent(70.0, pytest.approx(70 / 3600 * 2), 50.0)


def test_a_silent_host_is_charged_if_it_had_a_process():
    account = Account(HOUR, (), NOW, 0.0)
    for host in ("queued", "starting", "late"):
        account.request(host, 2.0, 10.0)
    account.end("queued", 13.0)
    assert account.device_seconds(13.0) == 0
    account.end("starting", 13.0, was_silent=True)
    assert account.device_seconds(13.0) == 2 * 3
    account.end("late", 1e6, was_silent=True)
    assert account.device_seconds(1e6) == 2 * 3 + 2 * MAX_SILENT_START_SECONDS, (
        "as was kept free for it"
    )
    account.request("heard", 2.0, 1e6)
    account.start("heard", 2.0, 1e6 + 1)
    assert account.is_requested("heard") is False
    account.end("heard", 1e6 + 2, was_silent=True)
    assert account.device_seconds(2e6) == 2 * 3 + 2 * MAX_SILENT_START_SECONDS + 2, "once"


def test_held_devices_may_stay_until_the_first_limit_or_the_end_of_the_lease(tmp_path):
    journal = Journal(str(tmp_path))
    account = open_account(journal, replace(HOUR, wall_hours=0.5), NOW, 0.0)
    account.start("a", 4.0, 0.0)
    write(journal, account, NOW, 0.0)
    assert account.seconds_left(0.0) == MIN_LEASE_SECONDS, "1 % of an hour, shared by four, is less"
    write(journal, account, NOW + 890, 890.0)
    assert account.seconds_left(890.0) == pytest.approx(10.0), "3600 / 4"
    longer = open_account(Journal(str(tmp_path / "b")), Budget(wall_hours=0.01), NOW, 0.0)
    assert longer.seconds_left(30.0) == 6.0, "without a host, too"
    free = Account(Budget(), (), NOW, 0.0)
    free.start("a", 4.0, 0.0)
    assert free.seconds_left(1e9) == math.inf and free.may_hold(99, 1e9)


def test_a_lease_allows_only_the_devices_it_was_written_for(tmp_path):
    journal = Journal(str(tmp_path))
    account = open_account(journal, HOUR, NOW, 0.0)
    assert not account.may_hold(1.0, 0.0)
    write(journal, account, NOW, 0.0, devices=2.0)
    assert account.may_hold(2.0, 1.0) and not account.may_hold(2.5, 1.0)
    assert not account.may_hold(2.0, MAX_LEASE_SECONDS + 1), "an old lease covers nothing"


def test_a_slowly_starting_host_is_closed_before_the_limit_even_while_silent(
    tmp_path,
):
    """Its first message adds the charge for its start, which was unknown until then."""
    account = open_account(Journal(str(tmp_path)), Budget(device_hours=60 / 3600), NOW, 0.0)
    account.request("a", 2.0, 0.0)
    assert account.device_seconds(14.0) == 0
    assert account.limit_left(14.0) == pytest.approx((60 - 28) / 2)
    account.start("a", 2.0, 0.0, took=14.0)
    assert account.limit_left(14.0) == pytest.approx((60 - 28) / 2)
    account.request("waits for a machine", 1.0, 14.0)
    account.request("is called off", 1.0, 14.0)
    account.end("is called off", 20.0)
    assert account.limit_left(16.0) == pytest.approx((60 - 32 - 2) / 3)
    account.end("a", 16.0)
    assert account.limit_left(1e6) == pytest.approx(60 - 32 - MAX_SILENT_START_SECONDS)
    account.end("waits for a machine", 1e6)
    assert account.limit_left(1e6) == math.inf
    account.confirm(JournalEntry("d", NOW, lease=60.0, ahead_device_seconds=60.0), 1e6, 2.0)
    assert account.may_hold(2.0, 1e6 + 1), "28 are left"
    account.start("b", 1.0, 1e6, took=14.0)
    account.end("b", 1e6 + 1)
    assert not account.may_hold(2.0, 1e6 + 1), (
        "two more would not have started before they had to go"
    )
    assert account.may_hold(1.0, 1e6 + 1)


def test_a_lease_is_a_hundredth_of_the_budget_within_bounds():
    def lease(hours: float | None, devices: float) -> float:
        return Account(Budget(device_hours=hours), (), NOW, 0.0).lease(NOW, 0.0, devices).lease

    assert lease(0.01, 2) == MIN_LEASE_SECONDS
    assert lease(2.0, 2) == 36.0  # two devices share 72 s
    assert lease(1000.0, 2) == lease(None, 2) == lease(1.0, 0) == MAX_LEASE_SECONDS
    assert MIN_LEASE_SECONDS > 3 * WRITE_SECONDS, "one late write ends nothing"


def test_the_advance_charge_ends_at_the_limit(tmp_path):
    """A live driver closes its hosts at the limit; a journal beyond it would look like overspending."""
    account = Account(HOUR, (), NOW, 0.0)
    account.start("a", 2.0, 0.0)
    entry = account.lease(NOW, 1795.0, 2.0)
    assert entry.device_seconds == 3590 and entry.charged == 3600


# --- kill -9, two drivers, storage outages ----------------------------------------------------------


def test_a_killed_run_stays_charged_for_its_whole_lease(tmp_path):
    journal = Journal(str(tmp_path))
    account = open_account(journal, HOUR, NOW, 0.0)
    account.start("a", 2.0, 4.0)
    write(journal, account, NOW + 10, 10.0)
    # The driver is killed now, and its hosts end a little later.
    after = Journal(str(tmp_path))
    spent = spent_by(after.entries(), 2.0, NOW + 1000)
    ahead = account.lease(NOW, 10.0, 2.0).ahead_device_seconds
    assert spent.device_seconds == 12 + ahead == 12 + 2 * MIN_LEASE_SECONDS
    assert spent.wall_seconds == 10 + MIN_LEASE_SECONDS
    account.end("a", 13.0)
    journal.write(account.final_entry(NOW + 13, 13.0))
    ended = spent_by(after.entries(), 2.0, NOW + 1000)
    assert (ended.device_seconds, ended.wall_seconds) == (18, 13), "in order it is what it was"
    assert spent_by(Journal(str(tmp_path)).entries(), 2.0, NOW + 1000) == ended


def test_a_host_that_may_still_live_keeps_the_final_entry_on_a_lease():
    account = Account(HOUR, (), NOW, 0.0)
    account.start("a", 1.0, 0.0)
    last = account.final_entry(NOW, 10.0, {"k": 0.5})
    assert not last.has_ended and last.charged > 10 and last.unfinished == {"k": 0.5}


def test_two_drivers_together_never_exceed_the_budget():
    """Each driver closes hosts by its own view; leases come late, fail or disagree; drivers are killed."""
    for seed in range(60):
        draw = random.Random(seed)
        files = Journal("", Memory())  # type: ignore[arg-type]
        budget = Budget(device_hours=draw.uniform(0.02, 0.2), device_hour_usd=1.0)
        true, drivers, clocks = 0.0, {}, {}
        for moment in range(400):
            outage = moment % 200 > 160 and seed % 2
            for name in "ab":
                account = drivers.get(name)
                if account is None:
                    if draw.random() < 0.05 and not outage:
                        clocks[name] = draw.uniform(-5000, 5000)  # clocks differ or are reset
                        account = open_account(files, budget, NOW + moment + clocks[name], moment)
                        drivers[name] = account
                    continue
                now = NOW + moment + clocks[name]
                left = account.seconds_left(moment)
                wanted = draw.choice((1.0, 2.0, 4.0))
                if draw.random() < 0.5 and not outage:
                    write(files, account, now, moment, max(wanted, account.devices))
                if left <= 1.0:
                    for host in list(account._held):
                        account.end(host, moment)
                elif draw.random() < 0.1 and account.may_hold(account.devices + 1, moment):
                    account.start(f"h{moment}", 1.0, moment)
                luck = draw.random()
                if luck < 0.01:  # kill -9 ends its hosts, too
                    true -= account.devices * 0.0
                    del drivers[name]
                elif luck < 0.02 and not outage:
                    for host in list(account._held):
                        account.end(host, moment)
                    files.write(account.final_entry(now, moment))
                    del drivers[name]
            true += sum(account.devices for account in drivers.values())
            counted = add_up(files.entries(), 1.0).device_seconds
            assert true <= counted + 1e-6, (seed, moment, "something is forgotten")
        assert true <= budget.device_seconds + 1e-6, seed


def test_hosts_may_stay_for_one_lease_during_a_storage_outage(tmp_path):
    journal = Journal(str(tmp_path))
    account = open_account(journal, HOUR, NOW, 0.0)
    account.start("a", 1.0, 0.0)
    write(journal, account, NOW, 5.0)
    assert account.seconds_left(5.0) == 36.0
    assert account.seconds_left(40.0) == 1.0 and account.seconds_left(41.0) == 0.0
    assert account.seconds_left(42.0) < 0
    write(journal, account, NOW, 40.0)  # the storage works again
    assert account.seconds_left(41.0) == 35.0


def test_a_refusing_store_is_reported_in_one_sentence(tmp_path):
    class Refuses:
        def place(self, name: str) -> str:
            return f"s3://b/spend/{name}"

        def names(self, below: str = "") -> list[str]:
            raise OSError("slow down")

        def write(self, name: str, content: bytes, *, replace: bool) -> None:
            raise OSError("slow down")

    journal = Journal("", Refuses())  # type: ignore[arg-type]
    with pytest.raises(LedgerError, match=r"^s3://b/spend/: the store refuses \(slow down\)$"):
        journal.entries()
    with pytest.raises(LedgerError, match=r"^s3://b/spend/d\.json: the store refuses"):
        journal.write(JournalEntry("d", NOW))


# --- clocks ---------------------------------------------------------------------------------------


def test_a_clock_set_back_between_runs_hides_no_wall_time(tmp_path):
    journal = Journal(str(tmp_path))
    first = open_account(journal, Budget(wall_hours=1.0), NOW, 0.0)
    journal.write(first.final_entry(NOW + 1200, 1200.0))
    second = open_account(journal, Budget(wall_hours=1.0), NOW - 86400 + 600, 0.0)
    assert second.left(600.0).wall_seconds == 3600 - 1200 - 600
    journal.write(second.final_entry(NOW - 86400, 600.0))
    third = open_account(journal, Budget(wall_hours=1.0), NOW + 1e7, 50.0)
    assert third.left(150.0).wall_seconds == 3600 - 1900, (
        "nor does one that was set forward add any"
    )
    assert spent_by(journal.entries(), 0.0, NOW - 1e6).wall_seconds >= 1800


def test_a_clock_jump_during_a_run_changes_no_charge(tmp_path):
    steady, jumping = (Journal(str(tmp_path / name)) for name in "ab")
    for journal, jumps in ((steady, (0, 0, 0)), (jumping, (7200, -7200, 1e6))):
        account = open_account(journal, HOUR, NOW, 0.0)
        account.start("a", 1.0, 1.0)
        for step, jump in enumerate(jumps):
            write(journal, account, NOW + 5 * step + jump, 5.0 * step)
    of_steady, of_jumping = (
        replace(j.entries()[0], driver="", written_at=0.0) for j in (steady, jumping)
    )
    assert of_steady == of_jumping


def test_simultaneous_runs_count_once_in_wall_time_and_twice_in_device_time(tmp_path):
    journal = Journal(str(tmp_path))
    first = open_account(journal, HOUR, NOW, 0.0)
    second = open_account(journal, HOUR, NOW + 100, 100.0)
    for account in (first, second):
        account.start("h", 1.0, 100.0)
        write(journal, account, NOW + 200, 200.0)
    first.update_others(journal.entries())
    assert first.spent(200.0).wall_seconds == second.spent(200.0).wall_seconds == 200
    for account in (first, second):
        account.end("h", 200.0)
        journal.write(account.final_entry(NOW + 200, 200.0))
    assert spent_by(journal.entries(), 2.0, NOW + 999) == Spent(200, pytest.approx(400 / 3600), 200)


def test_a_lease_stays_alive_for_its_duration_even_if_clocks_differ_slightly():
    entry = JournalEntry("a", NOW, lease=30.0, written_at=NOW)
    assert entry.is_alive(NOW + 29) and entry.is_alive(NOW - 29)
    assert not entry.is_alive(NOW + 31) and not entry.is_alive(NOW - 1e6)
    assert not replace(entry, lease=0.0).is_alive(NOW)


# --- the journal ----------------------------------------------------------------------------------


def test_journal_entries_round_trip_through_the_storage(tmp_path):
    journal = Journal(str(tmp_path))
    entry = JournalEntry(
        "d1", NOW, 10.0, 20.0, 15.0, 30.0, 15.0, 0.04, 3, 40.0, {"key": 0.25}, NOW + 1
    )
    journal.write(entry)
    assert Journal(str(tmp_path)).entries() == (entry,)
    assert (tmp_path / "spend" / "d1.json").is_file()
    assert Journal(str(tmp_path / "not-there")).entries() == ()
    assert not (tmp_path / "not-there").exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"began": 1, "seconds": -5}', '{"began": 1, "seconds": "x"}']
)
def test_an_unreadable_entry_is_an_error(tmp_path, text):
    (tmp_path / "spend").mkdir()
    (tmp_path / "spend" / "d1.json").write_text(text)
    with pytest.raises(LedgerError, match=r"d1\.json: is not a journal entry"):
        Journal(str(tmp_path)).entries()


def test_entries_of_ended_runs_are_read_once_and_entries_of_live_runs_every_time(tmp_path):
    journal = Journal(str(tmp_path))
    journal.write(JournalEntry("gone", NOW, device_seconds=5.0))
    journal.write(JournalEntry("here", NOW, device_seconds=5.0, lease=30.0))
    assert sum(e.device_seconds for e in journal.entries()) == 10
    for name in ("gone", "here"):
        path = tmp_path / "spend" / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "device_seconds": 7.0}))
    assert sum(e.device_seconds for e in journal.entries()) == 12


def test_the_latest_run_determines_the_rest_of_an_unfinished_fold_run():
    entries = [
        JournalEntry("b", NOW + 9, unfinished={"x": 0.2}),
        JournalEntry("a", NOW, unfinished={"x": 0.8, "y": 0.5}),
    ]
    assert unfinished(entries) == {"x": 0.2, "y": 0.5}


# --- the study file -------------------------------------------------------------------------------


PRICED = STUDY + "prices: {device_hour_usd: 0.5}\n"


def test_a_study_file_sets_the_budget(tmp_path):
    text = PRICED + "budget: {usd: 2.5, gpu_hours: 8, wall_hours: 1.5}\n"
    assert Budget.of(spec_of(tmp_path, text)) == Budget(2.5, 8.0, 1.5, 0.5)
    same = spec_of(tmp_path, PRICED + "budget: {device_hours: 8}\n")
    assert Budget.of(same) == Budget(device_hours=8.0, device_hour_usd=0.5)
    for none in ("", "budget:\n"):
        assert not Budget.of(spec_of(tmp_path, PRICED + none))
    assert Budget.of(spec_of(tmp_path, PRICED, ["budget.usd=3"])).usd == 3.0


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("{usd: 0}", "budget: usd: 0 is not a number above 0"),
        ("{usd: -1}", "usd: -1 is not a number above 0"),
        ("{gpu_hours: many}", "gpu_hours: 'many' is not a number above 0"),
        ("{wall_hours: .inf}", "wall_hours: inf is not a number above 0"),
        ("{wall_hours: '3'}", "wall_hours: '3' is text because of its quotes"),
        ("{}", "budget: a budget needs a limit: usd, gpu_hours or wall_hours"),
        ("{usd: }", "budget: a budget needs a limit: usd, gpu_hours or wall_hours"),
        ("5", "budget: 5 is not a mapping of fields"),
        (
            "{gpu_hours: 1, device_hours: 2}",
            "gpu_hours and device_hours are the same limit; remove",
        ),
        ("{hours: 2}", "unknown field 'hours' in budget; did you mean"),
    ],
)
def test_a_wrong_budget_is_refused_in_one_sentence(tmp_path, budget, message):
    (problem,) = problems_of(tmp_path, PRICED + f"budget: {budget}\n")
    assert message.removeprefix("budget: ") in problem


def test_a_limit_in_dollars_needs_a_price(tmp_path):
    (problem,) = problems_of(tmp_path, STUDY + "budget: {usd: 3}\n")
    assert problem == (
        "study.yaml:12:10: usd: device time has no price; set prices.device_hour_usd, or limit gpu_hours"
    )


def test_a_budget_changes_no_key(tmp_path):
    from raymrc.study.notes import read_study_corpus

    plans = []
    for text in (PRICED, PRICED + "budget: {usd: 2.5}\n"):
        spec = spec_of(Path(tmp_path), text)
        plans.append(plan_of(spec, read_study_corpus(spec), {"minilm": "w"}))
    assert plans[0] == plans[1]
