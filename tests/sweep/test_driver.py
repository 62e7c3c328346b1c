"""Promise: a fold-run is trained once, whatever is killed, and only its record counts.

A sweep that trains a fold-run twice, forgets a failure or leaves processes behind would still print a table.
Tests use real Ray; those that do not end the driver share one cluster.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from raymrc.errors import LedgerError, RaymrcError
from raymrc.ledger.ledger import Ledger
from raymrc.ledger.record import Record
from raymrc.ledger.storage import Folder
from raymrc.planning.placement import Placement
from raymrc.planning.plan import Plan
from raymrc.scheduling.progress import Snapshot
from raymrc.scheduling.state import StudyOutcome
from raymrc.sweep import driver, session
from raymrc.sweep.coordinator import open_coordinator
from raymrc.sweep.hosts import HostTerms
from raymrc.sweep.session import HostResources
from tests.paths import ROOT
from tests.sweep.making import (
    DEVICE_SECONDS,
    MARKER,
    Script,
    actors,
    fold_runs,
    make_plan,
    make_race,
    make_record,
    open_pool,
    train_script,
)
from tests.sweep.ray_warnings import RAY_WARNINGS

pytestmark = [pytest.mark.ray, *RAY_WARNINGS]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster of two cores; yields its session folder, which holds its logs."""
    import ray

    with session.cluster(HostResources(max_hosts=2), tmp_path_factory.mktemp("cluster")) as is_ours:
        assert is_ours
        node = ray._private.worker._global_node
        assert node is not None
        yield Path(node.get_session_dir_path())


@pytest.fixture
def script(tmp_path: Path) -> Script:
    (tmp_path / "trained").mkdir()
    return Script(tmp_path / "trained")


def run(
    plan: Plan, folder: Path, script: Script, **options: object
) -> tuple[StudyOutcome, dict[str, Record]]:
    ledger = Ledger(str(folder))
    outcome = train_script(plan, ledger, script, folder, **options)
    return outcome, {record.key: record for record in ledger.records()}


def test_a_study_is_trained_once_and_an_extended_study_trains_only_what_is_new(
    cluster, tmp_path, script, capfd
):
    plan = make_plan([0.1, 0.2])
    reported: list[Record] = []
    shown: list[Snapshot] = []
    outcome, records = run(
        plan, tmp_path, script, on_record=reported.append, on_progress=shown.append, max_trials=4
    )
    wanted = {r.key: make_record(r) for r in fold_runs(plan)}
    assert records == wanted
    assert sorted(script.trained()) == sorted(wanted)
    assert {record.key: record for record in reported} == wanted
    assert (outcome.total, outcome.done, outcome.reused, outcome.failed) == (12, 12, 0, 0)
    assert not outcome.interrupted
    assert (shown[-1].done, shown[-1].total) == (12, 12)
    best = max(
        (sum(wanted[r.key].validation_f1 for r in fold_runs(make_plan([rate]))[:3]) / 3, rate)
        for rate in (0.1, 0.2)
    )
    assert shown[-1].cells[0].best_f1 == pytest.approx(best[0])
    assert shown[-1].cells[0].best == f"learning_rate={best[1]}"
    # Two at a time; one that had no work for seconds has left.
    assert len(script.processes()) < 4, "workers are kept over trials and cells"

    outcome, _ = run(plan, tmp_path, script)
    assert (outcome.done, outcome.reused) == (0, 12)
    wider = make_plan([0.1, 0.2, 0.3])
    outcome, records = run(wider, tmp_path, script)
    assert (outcome.done, outcome.reused) == (6, 12)
    assert sorted(script.trained()) == sorted(r.key for r in fold_runs(wider)) == sorted(records)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert capfd.readouterr().out == "", "stdout is for what commands answer"


def test_a_failed_fold_run_is_recorded_and_the_next_run_retries_it(cluster, tmp_path, script):
    plan = make_plan([0.1, 0.2])
    reported: list[Record] = []
    bad = replace(script, raises=(0.1, 1), mendable=(0.2, 0))
    outcome, records = run(plan, tmp_path, bad, on_record=reported.append)
    assert (outcome.done, outcome.failed) == (8, 4)
    assert [times for _, times in outcome.reasons] == [2, 2]
    failed = {r.reason.split(" ")[0] for r in records.values() if r.status == "failed"}
    assert failed == {"builtins.KeyError", "the"}
    assert sum(record.status == "failed" for record in reported) == 4
    assert MARKER not in " ".join(record.to_json() for record in records.values())
    for log in (cluster / "logs").rglob("*"):
        if log.is_file():
            assert MARKER not in log.read_text(errors="replace"), log.name

    outcome, records = run(plan, tmp_path, script)
    assert (outcome.done, outcome.reused, outcome.failed) == (4, 8, 0)
    spent = {(0.1, 1): 2 * DEVICE_SECONDS, (0.2, 0): DEVICE_SECONDS}
    assert records == {
        r.key: replace(
            make_record(r),
            failed_device_seconds=spent.get((r.configuration.learning_rate, r.fold), 0.0),
        )
        for r in fold_runs(plan)
    }


def test_a_host_that_dies_loses_only_its_current_fold_run(cluster, tmp_path, script):
    plan = make_plan([0.1, 0.2], ["fine_tune"])
    outcome, records = run(plan, tmp_path, replace(script, dies_once=(0.1, 1)))
    assert (outcome.done, outcome.failed) == (6, 0)
    assert len(script.trained()) == 7
    assert records == {r.key: make_record(r) for r in fold_runs(plan)}


def test_a_fold_run_that_kills_every_host_fails_alone(cluster, tmp_path, script):
    plan = make_plan([0.1, 0.2], ["fine_tune"])
    outcome, records = run(plan, tmp_path, replace(script, dies=(0.1, 1)))
    assert (outcome.done, outcome.failed) == (5, 1)
    (reason,) = [r.reason for r in records.values() if r.status == "failed"]
    assert "host died" in reason


def test_a_tpe_study_is_resumed_from_the_ledger(cluster, tmp_path, script):
    from raymrc.study.space import Distribution

    rates = Distribution("log_uniform", (1e-4, 1e-1))
    outcome, _ = run(make_plan(rates, ["fine_tune"], tpe=3), tmp_path, script)
    assert outcome.done == 9
    outcome, records = run(make_plan(rates, ["fine_tune"], tpe=5), tmp_path, script)
    assert (outcome.done, outcome.reused) == (6, 9)
    assert len(records) == len(set(script.trained())) == len(script.trained()) == 15


def check_race(script: Script, records: dict[str, Record], folder: Path) -> int:
    """The best rate has all of its folds, and the others were stopped. Returns the trained fold-epochs."""
    done = [record for record in records.values() if record.status == "done"]
    best = [record for record in done if record.fold_run.configuration.learning_rate == 0.1]
    assert len(best) == 2
    assert all(record == script.record(record.fold_run) for record in done)
    stopped = [record for record in records.values() if record.status == "stopped"]
    assert stopped and all("points below" in record.reason for record in stopped)
    assert {record.status for record in records.values()} == {"done", "stopped"}
    saved = [path.name for path in (folder / "saved").rglob("*") if path.is_file()]
    assert [name for name in saved if not name.startswith(".")] == []
    return sum(len(record.epochs) for record in records.values())


def test_a_race_is_trained_once_and_not_repeated(cluster, tmp_path, script, monkeypatch):
    plan, raced = make_race(), replace(script, raced=True)
    trials, suggest = [], driver._Search.suggest

    def count(search: Any, trial_id: str) -> Any:
        suggested = suggest(search, trial_id)
        trials.extend([trial_id] if isinstance(suggested, dict) else [])
        return suggested

    monkeypatch.setattr(driver._Search, "suggest", count)
    reported: list[Record] = []
    shown: list[Snapshot] = []
    few = HostResources(lanes=1)  # with one lane per fold-run, none would wait
    outcome, records = run(
        plan, tmp_path, raced, on_record=reported.append, on_progress=shown.append, resources=few
    )
    assert check_race(raced, records, tmp_path) < 0.8 * 5 * 2 * 10
    assert {record.key: record for record in reported} == records, "pauses are not reported"
    done = sum(record.status == "done" for record in records.values())
    assert (outcome.done, outcome.spared, outcome.failed) == (done, 10 - done, 0)
    assert not outcome.interrupted
    assert (shown[-1].done, shown[-1].total, shown[-1].spared) == (done, done, 10 - done)
    assert len(trials) <= 4 < len(raced.trained()), "a trial takes leg after leg"

    begun = len(raced.trained())
    outcome, again = run(plan, tmp_path, raced)
    assert (outcome.done, outcome.reused, again) == (0, done, records)
    assert len(raced.trained()) == begun, "nothing was trained again"
    outcome, whole = run(replace(plan, racing=None), tmp_path, raced)
    assert outcome.done == 10 - done, "without racing the rest of the grid is trained"
    assert whole == {r.key: raced.record(r) for r in fold_runs(plan)}


def test_a_study_never_uses_more_hosts_than_max_hosts(cluster, tmp_path, script):
    plan = make_plan([0.1, 0.2, 0.3, 0.4], ["fine_tune"], folds=2)
    outcome, _ = run(plan, tmp_path, script, resources=HostResources(max_hosts=1))
    assert outcome.done == 8
    assert len(script.processes()) == 1
    assert script.most_beside() == 0, "a fold-run that trains the backbone has a host to itself"


def test_frozen_fold_runs_share_a_host_as_far_as_memory_allows(cluster, tmp_path, script):
    plan = make_plan([0.1, 0.2, 0.3, 0.4], ["frozen_soft_prompt"])
    resources = HostResources(max_hosts=1, lanes=4)
    outcome, records = run(plan, tmp_path, replace(script, nap=0.3), resources=resources)
    assert outcome.done == 12 and records == {r.key: make_record(r) for r in fold_runs(plan)}
    assert script.most_beside() == 3
    for path in script.folder.iterdir():
        path.unlink()
    outcome, _ = run(plan, tmp_path / "tight", replace(script, room=2), resources=resources)
    assert outcome.done == 12 and script.most_beside() == 1


def test_a_study_whose_coordinator_dies_ends_and_can_be_resumed(cluster, tmp_path, script):
    plan = make_plan([0.1, 0.2, 0.3])

    def kill_coordinator(record: Record) -> None:
        for process in actors("Coordinator"):
            process.kill()

    with pytest.raises(RaymrcError, match="the coordinator's process died"):
        run(plan, tmp_path, replace(script, nap=0.3), on_record=kill_coordinator)
    done = len(Ledger(str(tmp_path)).keys())
    assert 1 <= done < 18
    outcome, records = run(plan, tmp_path, script)
    assert (outcome.done, outcome.reused, outcome.failed) == (18 - done, done, 0)
    assert records == {r.key: make_record(r) for r in fold_runs(plan)}


def test_a_backbone_that_no_host_can_load_fails_each_fold_run_once(cluster, tmp_path, script):
    outcome, _ = run(make_plan([0.1]), tmp_path, replace(script, unloadable=True))
    assert (outcome.done, outcome.failed) == (0, 6)
    assert outcome.reasons == (("there are no weights here", 6),)


def test_a_trial_that_tunes_scheduler_stops_makes_room_for_others(cluster, tmp_path, script):
    from ray.tune.schedulers import FIFOScheduler

    class StopsOne(FIFOScheduler):
        def on_trial_result(self, controller, trial, result):
            is_beaten = trial.config["work"].configuration.learning_rate == 0.1
            return self.STOP if is_beaten else self.CONTINUE

    plan = make_plan([0.1, 0.2, 0.3], ["frozen_soft_prompt"])
    outcome, records = run(
        plan, tmp_path, replace(script, nap=2.0),
        scheduler=StopsOne(), resources=HostResources(max_hosts=1, lanes=3),
    )  # fmt: skip
    assert {r.fold_run.configuration.learning_rate for r in records.values()} == {0.2, 0.3}
    assert (outcome.done, outcome.failed, outcome.interrupted) == (6, 0, False)
    assert sorted(script.trained()) == sorted({r.key for r in fold_runs(plan)}), "each once"


def test_a_storage_that_hosts_do_not_see_ends_the_run_with_a_message(cluster, tmp_path, script):
    """The storage may be a folder that only the driver's machine has."""
    import ray

    terms = HostTerms(HostResources(), str(tmp_path), marker=".not-there")
    coordinator = open_coordinator(open_pool, script, terms, lanes=1, max_devices=1)
    coordinator.submit.remote("t", fold_runs(make_plan([0.1])))
    sentence = ray.get(coordinator.verdict.remote(), timeout=60)
    ray.get(coordinator.close.remote())
    ray.kill(coordinator)
    assert sentence.startswith(f"{tmp_path} cannot be seen on node ")
    assert sentence.endswith("such as s3://bucket/study") and script.trained() == []


def test_work_is_numbered_in_the_order_of_submission():
    turns = []
    coordinator = SimpleNamespace(
        submit=SimpleNamespace(remote=lambda *given, turn, **options: turns.append(turn))
    )
    study: Any = SimpleNamespace(
        idle=(),
        num_in_flight=0,
        races=False,
        spending=SimpleNamespace(needs=lambda fold_runs: {}),
        take=lambda trial_id: SimpleNamespace(fold_runs=(), until=None),
    )
    search = driver._Search(study, 4, coordinator)
    for trial_id in ("a", "b", "c"):
        search.suggest(trial_id)
    assert turns == [1, 2, 3]


def test_the_coordinators_verdict_ends_the_study_and_keeps_finished_fold_runs(
    cluster, tmp_path, script, monkeypatch
):
    slow = replace(script, nap=0.5)

    def give_up_soon(receiver, iteration, trials, **info):
        import ray

        if len(receiver._study._trained) > 1:
            receiver._verdict = ray.put("there will never be enough")
        ended(receiver, iteration, trials, **info)

    ended = driver._Receiver.on_step_end
    monkeypatch.setattr(driver._Receiver, "on_step_end", give_up_soon)
    with pytest.raises(RaymrcError, match="there will never be enough"):
        run(make_plan([0.1, 0.2, 0.3]), tmp_path, slow)
    kept = Ledger(str(tmp_path)).keys()
    assert 0 < len(kept) < 18
    monkeypatch.undo()
    outcome, _ = run(make_plan([0.1, 0.2, 0.3]), tmp_path, script)
    assert (outcome.reused, outcome.done) == (len(kept), 18 - len(kept))


def test_a_ledger_that_cannot_be_written_ends_the_study(cluster, tmp_path, script):
    class Full(Ledger):
        def record(self, record: Record, text: str | None = None) -> None:
            raise LedgerError("the store refuses (No space left on device)")

    message = "No space left on device.; finished fold-runs could not be written for 0 minutes"
    with pytest.raises(LedgerError, match=message):
        train_script(make_plan(), Full(str(tmp_path)), script, tmp_path, patience_seconds=1.0)


def test_training_continues_while_the_storage_is_unavailable_and_no_record_is_lost(
    cluster, tmp_path, script
):
    """The storage refuses reads and writes from the third record on, until five wait."""
    plan = make_plan([0.1, 0.2])
    wanted = {r.key: make_record(r) for r in fold_runs(plan)}
    shown: list[Snapshot] = []
    reported: list[Record] = []

    class Away(Ledger):
        def _check(self) -> None:
            if len(list(tmp_path.rglob("ledger/*/*.json"))) >= 2 and not self.is_back:
                raise LedgerError("the store refuses (Connection refused)")

        @property
        def is_back(self) -> bool:
            return any(snapshot.waiting >= 5 for snapshot in shown)

        def has(self, key: str) -> bool:
            self._check()
            return super().has(key)

        def record(self, record: Record, text: str | None = None) -> None:
            self._check()
            super().record(record, text)

    outcome = train_script(
        plan, Away(str(tmp_path)), replace(script, nap=0.2), tmp_path,
        on_record=reported.append, on_progress=shown.append,
    )  # fmt: skip
    assert (outcome.done, outcome.failed) == (12, 0)
    assert {r.key: r for r in Ledger(str(tmp_path)).records()} == wanted
    assert {r.key: r for r in reported} == wanted and len(reported) == 12
    assert sorted(script.trained()) == sorted(wanted), "each once"
    assert {s.trouble for s in shown} == {"", "the store refuses (Connection refused)"}
    assert not shown[-1].trouble


def test_a_transient_failure_is_retried_and_its_cost_counts(cluster, tmp_path, script):
    plan = make_plan([0.1, 0.2], ["fine_tune"])
    reported: list[Record] = []
    ill = replace(script, raises_once=(0.1, 1), mendable=(0.2, 0))
    outcome, records = run(plan, tmp_path, ill, on_record=reported.append)
    assert (outcome.done, outcome.failed) == (5, 1)
    begun = Counter(script.trained())
    by_place = {
        (r.fold_run.configuration.learning_rate, r.fold_run.fold): r for r in records.values()
    }
    assert begun[by_place[0.1, 1].key] == 2, "an error that may be transient"
    assert begun[by_place[0.2, 0].key] == 1, "an error that the user must fix"
    assert len(reported) == 6, "a try that is followed by another is not reported"
    assert by_place[0.1, 1].failed_device_seconds == DEVICE_SECONDS
    assert by_place[0.2, 0].device_seconds == DEVICE_SECONDS

    outcome, records = run(plan, tmp_path, script)
    assert (outcome.done, outcome.failed) == (1, 0)
    mended = records[by_place[0.2, 0].key]
    assert (mended.status, mended.failed_device_seconds) == ("done", DEVICE_SECONDS)


def test_a_fold_run_that_keeps_failing_is_retried_up_to_the_limit(cluster, tmp_path, script):
    plan = make_plan([0.1], ["fine_tune"])
    outcome, records = run(plan, tmp_path, replace(script, raises=(0.1, 1)), retries=3)
    assert (outcome.done, outcome.failed) == (2, 1)
    (failed,) = [r for r in records.values() if r.status == "failed"]
    assert Counter(script.trained())[failed.key] == 4
    assert failed.device_seconds + failed.failed_device_seconds == 4 * DEVICE_SECONDS


def test_a_cell_whose_configurations_fail_is_abandoned_and_the_others_continue(
    cluster, tmp_path, script
):
    rates = [0.1 * (i + 1) for i in range(8)]
    plan = make_plan(rates, ["fine_tune", "frozen_soft_prompt"])
    # In the first cell only the first configuration can be trained.
    cells = (plan.cells[0], make_plan([0.01 * (i + 1) for i in range(8)], ["soft_prompt"]).cells[0])
    shown: list[Snapshot] = []
    outcome, records = run(
        replace(plan, cells=cells), tmp_path, replace(script, hopeless=0.2, nap=0.1),
        close_cell_after=3, resources=HostResources(max_hosts=1),
        on_progress=shown.append,
    )  # fmt: skip
    ((name, left),) = outcome.closed
    assert name == cells[0].cell.name and not outcome.interrupted
    of_first = [r for r in records.values() if r.fold_run.configuration.cell == cells[0].cell]
    failed = {r.fold_run.configuration.id for r in of_first if r.status == "failed"}
    assert len(failed) in (3, 4), "three, and one that was in flight"
    assert left == 24 - len(of_first) > 0
    assert outcome.done == 24 + 3, "the other cell, and the first configuration"
    assert [cell.closed for cell in shown[-1].cells] == [True, False]

    outcome, _ = run(replace(plan, cells=cells), tmp_path, script)
    assert (outcome.done, outcome.failed, outcome.closed) == (21, 0, ()), (
        "the next run tries it again"
    )


def test_a_host_larger_than_the_cluster_is_refused(cluster, tmp_path, script):
    with pytest.raises(
        RaymrcError, match="a host needs 1 CPU and 1 GPU, but the cluster has room for 0; lower"
    ):
        run(make_plan(), tmp_path, script, resources=HostResources(gpus_per_host=1.0))


def test_a_worker_group_larger_than_the_cluster_is_refused_before_anything_starts(
    cluster, tmp_path, script
):
    plan = make_plan([0.1], ["soft_prompt"])
    cells = (replace(plan.cells[0], placement=Placement("group", (3, 4))),)
    wanted = "a worker group needs at least 3 times 1 CPU, but the cluster has room for 2; lower"
    with pytest.raises(RaymrcError, match=wanted):
        run(replace(plan, cells=cells), tmp_path, script)
    assert script.trained() == []


def test_a_truncated_record_stops_the_study_before_ray_starts(tmp_path, script):
    ledger = Ledger(str(tmp_path))
    record = make_record(fold_runs(make_plan())[0])
    ledger.record(record)
    (path,) = (tmp_path / "ledger").rglob("*.json")
    path.write_text(path.read_text()[:100])
    with pytest.raises(LedgerError, match="as if cut off"):
        run(make_plan(), tmp_path, script)
    assert script.trained() == []


# --- the driver itself ends ----------------------------------------------------------------------


def wait_until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)


class Process:
    """A driver in its own process, with all the processes that it starts."""

    def __init__(self, folder: Path, nap: float, *more: str) -> None:
        self.mark = uuid.uuid4().hex
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.sweep.making", str(folder), str(nap), *more],
            cwd=ROOT,
            env={**os.environ, "RAYMRC_TEST_MARK": self.mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for_hold(self, records: int) -> None:
        """Wait until training holds and the ledger has this many records."""
        until = time.monotonic() + 240
        hold, ledger = self.folder / "hold", self.folder / "ledger"
        while not (hold.exists() and len(list(ledger.rglob("*.json"))) >= records):
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < until, "the study makes no progress"
            time.sleep(0.05)

    def lose_machine(self) -> None:
        """Kill the driver and all its processes."""
        self.process.kill()
        self.process.communicate()
        while others := [p for p in psutil.process_iter() if self._is_ours(p)]:
            for process in others:
                with suppress(psutil.Error):
                    process.kill()
            time.sleep(0.1)

    def left_behind(self) -> list[str]:
        """Processes that outlive the driver by minutes."""
        until = time.monotonic() + 240
        while found := [p.name() for p in psutil.process_iter() if self._is_ours(p)]:
            if time.monotonic() > until:
                return found
            time.sleep(0.2)
        return []

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return (
                process.pid != self.process.pid
                and process.status() != psutil.STATUS_ZOMBIE
                and process.environ().get("RAYMRC_TEST_MARK") == self.mark
            )
        except psutil.Error:
            return False


@pytest.mark.chaos
@pytest.mark.parametrize("how", ["killed", "interrupted", "terminated"])
def test_a_study_whose_driver_was_ended_is_resumed_without_loss_or_repetition(
    how, cluster, tmp_path, script
):
    ended = Process(
        tmp_path, 0.3, "hold-3"
    )  # a busy machine might finish the study before the signal
    ended.wait_for_hold(records=3)
    if how == "killed":
        ended.process.kill()
        ended.process.communicate()
    else:
        if how == "interrupted":
            # Ctrl-C in a terminal also signals the whole process group.
            os.killpg(ended.process.pid, signal.SIGINT)
        else:
            # Clouds, batch systems and Kubernetes also signal only the process that they started.
            ended.process.terminate()
        out, _ = ended.process.communicate(timeout=240)
        assert ended.process.returncode == 130
        assert out.startswith("in the ledger ")
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert ended.left_behind() == []
    before = Ledger(str(tmp_path)).keys()
    assert 3 <= len(before) < 12
    if how == "killed":  # like a host that outlives its driver by a moment
        for key in before:
            Folder(tmp_path / "saved").write(f"{key}/000009", b"late", replace=True)

    script.hold.unlink()
    plan = make_plan()
    outcome, records = run(plan, tmp_path, script)
    assert (outcome.reused, outcome.done) == (len(before), 12 - len(before))
    assert records == {r.key: make_record(r) for r in fold_runs(plan)}
    again = [key for key in script.trained() if key in before]
    assert sorted(again) == sorted(before), "fold-runs in the ledger were not trained again"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == [], (
        "session folders may hold notes"
    )
    assert [p for p in (tmp_path / "saved").rglob("*") if p.is_file() and p.name[0] != "."] == []


@pytest.mark.chaos
def test_a_race_whose_machine_is_lost_resumes_from_its_rungs(cluster, tmp_path, script):
    ended = Process(tmp_path, 0.3, "race", "hold-2")
    ended.wait_for_hold(records=2)
    ended.lose_machine()
    script.hold.unlink()
    kept = {record.key: record for record in Ledger(str(tmp_path)).records()}
    paused = [record for record in kept.values() if record.status == "paused"]
    assert paused

    raced = replace(script, raced=True)
    _, records = run(make_race(3), tmp_path, raced, resources=HostResources(lanes=1))
    check_race(raced, records, tmp_path)
    assert all(len(records[key].epochs) >= len(record.epochs) for key, record in kept.items())
    begun_anew = raced.begun_at().count(0)
    assert begun_anew <= len(records) + 2, "except those that were open at that moment"


@pytest.mark.chaos
def test_a_second_driver_is_refused_and_a_driver_that_does_not_look_leaves_the_ledger_intact(
    tmp_path, script
):
    """Two drivers look for others; a third one does not. All run on the same machine."""
    script.hold.touch()
    drivers = [Process(tmp_path, 0.2) for _ in range(2)]
    wait_until(lambda: any(driver.process.poll() is not None for driver in drivers))
    drivers.append(Process(tmp_path, 0.2, "blind"))
    wait_until(lambda: max(Counter(script.trained()).values(), default=0) == 2)
    script.hold.unlink()
    outputs = [driver.process.communicate(timeout=240) for driver in drivers]
    codes = [driver.process.returncode for driver in drivers]
    assert sorted(codes) == [0, 0, 2] and codes[2] == 0, outputs
    refused = codes.index(2)
    other = drivers[1 - refused].process.pid
    assert f"another run is training this study (process {other} on " in outputs[refused][0]
    assert {out for (out, _), code in zip(outputs, codes, strict=True) if code == 0} == {
        "in the ledger 12\n"
    }
    assert [driver.left_behind() for driver in drivers] == [[], [], []]
    plan = make_plan()
    ledger = Ledger(str(tmp_path))
    assert {r.key: r for r in ledger.records()} == {r.key: make_record(r) for r in fold_runs(plan)}
    assert ledger.read_all()[1] == ()
    files = [path.name for path in (tmp_path / "ledger").rglob("*") if path.is_file()]
    assert sorted(files) == sorted(f"{r.key}.json" for r in fold_runs(plan)), "nothing half-written"
    begun = Counter(script.trained())
    assert set(begun.values()) <= {1, 2}, "each driver trains it once at most"


@pytest.mark.chaos
def test_without_file_locks_the_first_drivers_claim_refuses_a_second_driver(tmp_path, script):
    script.hold.touch()
    first = Process(tmp_path, 0.0, "lockless")
    wait_until(script.trained)
    second = Process(tmp_path, 0.0, "lockless")
    output, _ = second.process.communicate(timeout=240)
    assert second.process.returncode == 2
    assert f"another run is training this study (process {first.process.pid} on " in output
    script.hold.unlink()
    assert first.process.communicate(timeout=240)[0] == "in the ledger 12\n"
    assert [driver.left_behind() for driver in (first, second)] == [[], []]
    assert set(Counter(script.trained()).values()) == {1}
