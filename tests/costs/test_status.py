"""Promise: a status agrees with the ledger and the journal, even if the study has not started or runs
elsewhere.

It would break without anyone noticing: people rely on the status to decide whether to wait.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from raymrc.configuration import FoldRun
from raymrc.costs.budget import Budget, Spent
from raymrc.costs.expectations import Expectations
from raymrc.costs.forecast import (
    FIRST_TRAINING_SECONDS,
    Forecast,
    build_workload,
    forecast,
)
from raymrc.costs.history import read_history, read_progress
from raymrc.costs.journal import JournalEntry
from raymrc.costs.rates import Measured
from raymrc.costs.status import Status, over_budget_remark, read_status
from raymrc.ledger.ledger import Ledger
from raymrc.ledger.record import Record
from raymrc.planning.fold_runs import fold_run
from raymrc.planning.loaded import LoadedStudy
from raymrc.reading.light_tokenizers import RoughTokenizer
from raymrc.report.plans import status_parts
from raymrc.report.terminal import render
from raymrc.study.notes import read_study_corpus
from tests.study.making import STUDY, plan_of, spec_of

WEIGHTS = {"minilm": "w"}
NOW = 1_800_000_000.0
BUDGET = Budget(usd=1.0, device_hours=2.0, device_hour_usd=1.0)


class Study:
    """This class holds the tiny study with its plan, its workload and a ledger."""

    def __init__(self, folder, text=STUDY):
        self.spec = spec_of(folder, text)
        self.corpus = read_study_corpus(self.spec)
        self.ledger = Ledger(str(folder / "storage"))
        self.plan = plan_of(self.spec, self.corpus, WEIGHTS)
        tokenizers = {e.backbone.source: RoughTokenizer() for e in self.spec.backbones}
        self.workload = build_workload(LoadedStudy(self.spec, self.corpus), self.plan, tokenizers)

    @property
    def runs(self) -> list[FoldRun]:
        return [
            fold_run(configuration, fold, self.plan.fingerprints)
            for cell in self.plan.cells
            for configuration in cell.configurations
            for fold in range(2)
        ]

    def record(self, run: FoldRun, status: str = "done", seconds: float = 40.0) -> Record:
        record = Record(
            run.key, run, status=status, reason="" if status == "done" else "died",
            device_seconds=seconds, hardware="EPYC",
        )  # fmt: skip
        self.ledger.record(record)
        return record

    def forecast(self) -> Forecast:
        measured = read_history(self.plan, self.workload, self.ledger.records())
        done = read_progress(self.plan, self.ledger.records())
        return forecast(self.spec, self.plan, self.workload, measured, done)

    def status(
        self, *entries: JournalEntry, budget: Budget = BUDGET, costs: Forecast | None = None
    ) -> Status:
        plan = plan_of(self.spec, self.corpus, WEIGHTS, self.ledger)
        return read_status(plan, self.ledger.records(), entries, budget, costs, NOW)


def shown(status: Status) -> str:
    text = io.StringIO()
    Console(file=text, width=160).print(render(status_parts(status)))
    return text.getvalue()


def test_a_new_study_has_spent_nothing_and_all_its_work_remains(tmp_path):
    study = Study(tmp_path)
    costs = study.forecast()
    status = study.status(costs=costs)
    assert (status.total, status.done, status.failed, status.to_do) == (8, 0, 0, 8)
    assert status.spent == Spent() and status.drivers == ()
    assert (
        status.device_seconds_left == costs.total("device_seconds")
        and status.wall_seconds_left == costs.wall_seconds
    )
    assert "tiny: not started" in shown(status)
    assert " if started now" in shown(status)


def test_done_failed_spent_and_committed_come_from_ledger_and_journal(tmp_path):
    study = Study(tmp_path)
    for run in study.runs[:3]:
        study.record(run)
    study.record(study.runs[3], "failed")
    entries = [
        JournalEntry("a", NOW - 5000, 600.0, 900.0, device_hour_usd=1.0),
        JournalEntry(
            "b", NOW - 100, 90.0, 180.0, 30.0, 60.0, 30.0, 1.0,
            running=2, committed=100.0, written_at=NOW - 10,
        ),
    ]  # fmt: skip
    status = study.status(*entries, costs=study.forecast())
    assert (status.done, status.failed, status.to_do, status.running) == (3, 1, 5, 2)
    assert status.spent.device_seconds == 900 + 180 + 60
    assert status.spent.wall_seconds == 600 + 100, "until now, not until the lease ends"
    assert status.left.device_seconds == pytest.approx(3600 - 1140), "dollars are the nearer limit"
    assert status.device_seconds_left.value == pytest.approx(
        study.forecast().total("device_seconds_left").value * 3.0
    )
    assert status.wall_seconds_left.value == pytest.approx(
        study.forecast().wall_seconds.value * 3.0 - FIRST_TRAINING_SECONDS
    )
    text = shown(status)
    assert "tiny: 2 fold-runs are training" in text and "expected end 20" in text
    answer = json.loads(json.dumps(status.to_json()))
    assert answer["is_running"] and answer["fold_runs_left"] == 5
    assert answer["committed"] == {"device_seconds": 100.0, "usd": pytest.approx(100 / 3600)}
    assert answer["budget"] == {"usd": 1.0, "gpu_hours": 2.0, "wall_hours": None}
    assert answer["left"]["usd"] == pytest.approx(1 - 1140 / 3600)
    assert answer["left"]["wall_seconds"] is None
    later = read_status(study.plan, (), entries, BUDGET, None, NOW + 1000)
    assert later.drivers == () and "not running" in shown(later)
    assert later.spent.wall_seconds == 600 + 120, "a driver that was killed is charged its lease"


def test_status_works_without_a_budget_and_without_a_forecast(tmp_path):
    study = Study(tmp_path)
    study.record(study.runs[0])
    status = study.status(JournalEntry("a", NOW - 50, 50.0, 80.0), budget=Budget())
    text = shown(status)
    assert "budget" not in text and "the end is unknown" in text and "80 s" in text
    answer = status.to_json()
    assert answer["budget"] is None and answer["expected_end"] is None
    assert answer["rest"]["device_seconds"] is None and answer["spent"]["device_seconds"] == 80


def test_status_ignores_records_of_an_earlier_version_of_the_study(tmp_path):
    study = Study(tmp_path)
    study.record(study.runs[0])
    other = replace(study.runs[0], configuration=replace(study.runs[0].configuration, epochs=99))
    study.record(other)
    assert study.status().done == 1
    assert read_status(study.plan, study.ledger.records(), (), BUDGET, None, NOW).done == 1


def test_a_finished_study_has_no_remaining_work(tmp_path):
    study = Study(tmp_path)
    for run in study.runs:
        study.record(run)
    status = study.status(costs=study.forecast())
    assert status.to_do == 0 and status.device_seconds_left.value == 0 and status.affordable is None
    assert "tiny: done" in shown(status) and "expected end" not in shown(status)


def test_the_tighter_limit_determines_the_affordable_share(tmp_path):
    study = Study(tmp_path)
    costs = study.forecast()
    rest, wall = costs.total("device_seconds_left").value, costs.wall_seconds.value
    half = Budget(device_hours=rest / 2 / 3600)
    assert study.status(budget=half, costs=costs).affordable == pytest.approx(0.5)
    tenth = replace(half, wall_hours=wall / 10 / 3600)
    assert study.status(budget=tenth, costs=costs).affordable == pytest.approx(0.1)
    assert "expected to cover 10 % of the remaining work" in shown(
        study.status(budget=tenth, costs=costs)
    )


def test_the_over_budget_remark_uses_the_unit_of_the_limit(tmp_path):
    study = Study(tmp_path)
    costs = study.forecast()
    seconds = costs.total("device_seconds_left").value
    assert over_budget_remark(Budget(), Spent(), costs) == ""
    enough = Budget(usd=2 * seconds / 3600, device_hour_usd=1.0)
    assert over_budget_remark(enough, Spent(), costs) == ""
    remark = over_budget_remark(enough, Spent(seconds * 1.5, seconds * 1.5 / 3600), costs)
    assert remark.startswith("remaining work is expected to need ") and remark.endswith(" USD left")
    remark = over_budget_remark(Budget(device_hours=0.001), Spent(), costs)
    assert "of device time, but" in remark and remark.endswith("the budget is 3.6 s")
    remark = over_budget_remark(Budget(wall_hours=0.001), Spent(), costs)
    assert remark.endswith("the budget is 3.6 s")


def test_expected_costs_of_single_fold_runs_add_up_to_the_total_of_the_plan(tmp_path):
    study = Study(tmp_path)
    expect = Expectations(study.spec, study.plan, study.workload)
    needs = [expect.of(run) for run in study.runs]
    assert all(need.is_guess and need.low < need.value < need.high for need in needs)
    assert sum(need.value for need in needs) == pytest.approx(
        study.forecast().total("device_seconds").value
    )
    measured = read_history(
        study.plan, study.workload, [study.record(run) for run in study.runs[:2]]
    )
    assert all(isinstance(measurement, Measured) for measurement in measured)
    known = Expectations(study.spec, study.plan, study.workload, measured)
    assert not known.of(study.runs[0]).is_guess
    assert known.of(study.runs[0]).value == pytest.approx(40, rel=0.1)
    saving = [known.of(run).saving_seconds for run in study.runs]
    assert saving[0] > 3 > saving[-1], "a trained backbone is a whole model to save"
    final = replace(study.runs[0], fold=0, test_fingerprint="t")
    assert known.of(final).value == pytest.approx(2 * known.of(study.runs[0]).value), "no fold out"
    elsewhere = replace(
        study.runs[0].configuration, cell=replace(study.runs[0].configuration.cell, corpus="x")
    )
    assert known.of(replace(study.runs[0], configuration=elsewhere)) is None


def test_fold_runs_skipped_by_a_race_do_not_remain(tmp_path):
    study = Study(tmp_path)
    first, second, *rest = study.runs
    study.record(first, "stopped")
    for run in rest:
        study.record(run)
    status = study.status()
    assert status.total == len(study.runs) - 2 and status.to_do == 0
    assert second.configuration == first.configuration
