"""A study ready to be trained: everything is read and checked before anything is written.

study file -> LoadedStudy -> Plan, StudyData, Ledger -> run_study -> StudyOutcome
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raymrc.cli.app import log, print_table
from raymrc.cli.local import (
    find_measured,
    find_workload,
    load_study,
    with_learning_warnings,
)
from raymrc.errors import RaymrcError

if TYPE_CHECKING:
    from raymrc.analysis.findings import Findings
    from raymrc.ledger.ledger import Ledger
    from raymrc.ledger.record import Record
    from raymrc.planning.loaded import LoadedStudy
    from raymrc.planning.plan import Plan
    from raymrc.scheduling.state import StudyOutcome
    from raymrc.study.spec import Spec
    from raymrc.training.batching import StudyData


@dataclass(frozen=True)
class StudyJob:
    study: LoadedStudy
    plan: Plan
    data: StudyData
    ledger: Ledger

    @property
    def spec(self) -> Spec:
        return self.study.spec

    def findings(self, records: Sequence[Record]) -> Findings:
        from raymrc.analysis.findings import build_findings

        return build_findings(self.study, self.plan, records)


def prepare_study(study: Path, changes: list[str] | None) -> StudyJob:
    """Read and check all inputs. The ledger comes last, because its check writes to the storage."""
    from raymrc.corpora.splits import check_folds
    from raymrc.ledger.ledger import Ledger
    from raymrc.model.adapter_tensors import read_prompt
    from raymrc.model.loading import check_weights
    from raymrc.planning.loaded import read_study
    from raymrc.planning.plan import plan_study

    loaded = read_study(load_study(study, changes))
    spec, adapter = loaded.spec, loaded.initial_prompt
    corpus, folds, asked, questions, transfer = loaded.inputs
    plan = plan_study(loaded)
    # These imports take seconds; the errors above should not wait for them.
    from raymrc.training.batching import StudyData
    from raymrc.training.trainer import check_questions_fit

    for entry in spec.backbones:
        check_weights(entry.backbone)
    windows = {cell.cell: max(cell.space.ends("window")) for cell in plan.cells}
    check_questions_fit(windows, asked, questions)
    starts_from_it = any(cell.starts_from_adapter for cell in plan.cells)
    initial_prompt = read_prompt(adapter) if adapter is not None and starts_from_it else None
    check_folds(folds, corpus)
    ledger = Ledger(spec.storage)
    ledger.check()
    data = StudyData(corpus, folds, questions, transfer, loaded.test, initial_prompt)
    return StudyJob(loaded, plan, data, ledger)


def train_study(job: StudyJob, plan: Plan, metrics_port: int | None) -> tuple[StudyOutcome, bool]:
    """Train the fold-runs of a plan that the ledger lacks.

    Args:
        plan: the job's own, or that of its final test.

    Returns:
        The outcome, and whether MLflow has all runs.
    """
    from raymrc.costs.budget import Budget
    from raymrc.costs.expectations import Expectations
    from raymrc.ledger.storage import absolute
    from raymrc.report.plans import plan_table
    from raymrc.report.terminal import render
    from raymrc.training.trainer import Trainer

    spec, ledger, resources = job.spec, job.ledger, job.spec.resources
    if metrics_port is not None and os.environ.get("RAY_ADDRESS"):
        log("--metrics-port has no effect on an existing cluster, which exports metrics by itself")
    shown, expect = plan, None
    if plan is job.plan or spec.budget is not None:
        workload = find_workload(job.study, plan)
        if plan is job.plan:  # a final test would only repeat its warnings
            shown = with_learning_warnings(plan, workload)
        if spec.budget is not None:
            measured = find_measured(spec, job.plan, workload, ledger.records())
            expect = Expectations(spec, plan, workload, measured).of
    print_table(render([plan_table(shown)]), sys.stderr)

    # These imports take seconds more.
    from raymrc.scheduling.progress import ProgressDisplay
    from raymrc.scheduling.terms import Listeners, RunTerms
    from raymrc.sweep.driver import Training, run_study
    from raymrc.sweep.session import HostResources
    from raymrc.tracking import MlflowRecorder, TrackingPlace, describe_datasets

    trainer = Trainer(
        "cuda" if resources.gpus_per_host else "cpu",
        spec.prices.device_hour_usd,
        resources.gpus_per_host or 1.0,
        frozenset(c.cell for c in plan.cells if c.placement and c.placement.checkpoints),
        absolute(spec.storage),
    )
    hosts = HostResources(
        resources.cpus_per_host,
        resources.gpus_per_host,
        resources.max_hosts,
        resources.lanes_per_host,
        together=resources.same_machine,
        metrics_port=metrics_port,
    )
    with (
        MlflowRecorder(
            TrackingPlace.of(spec),
            records=ledger.records(),
            warn=log,
            may_win=job.plan.holds,
            datasets=describe_datasets(job.study),
        ) as recorder,
        ProgressDisplay() as show,
    ):
        outcome = run_study(
            plan,
            ledger,
            Training(trainer.open_pool, job.data, hosts),
            spec.folder,
            RunTerms(
                Budget.of(spec), expect, spec.failures.retries, spec.failures.close_cell_after
            ),
            Listeners(recorder.record, show, log),
        )
    if recorder.behind:
        log(
            "MLflow lacks some of this study's fold-runs; the ledger has all of them. Once MLflow is "
            f"writable, run: raymrc sync {spec.arguments}"
        )
    return outcome, not recorder.behind


def write_page(findings: Findings, *, attaches: bool) -> None:
    """Write the report page into the study's folder; errors are only logged.

    Args:
        attaches: whether to add the page and its plots to the study's run in MLflow, too.
    """
    from raymrc.report import write, write_plots
    from raymrc.tracking import TrackingPlace, attach

    folder = findings.spec.folder / "report"
    try:
        page = write(findings, folder)
        log(f"report page: {page}")
        if attaches:
            attach([page, write_plots(findings, folder)], TrackingPlace.of(findings.spec))
    except RaymrcError as error:
        log(str(error))


def register_models(study: LoadedStudy, records: Sequence[Record]) -> None:
    """Register the models of a final test in MLflow; errors are only logged."""
    wanted = study.spec.mlflow.register_models != "none"
    if not wanted or not any(record.fold_run.is_test for record in records):
        return
    from raymrc.tracking import register

    if study.corpus is None:
        log("no model was registered with MLflow: the study's notes are not on this machine")
        return
    try:
        for version in register(records, study):
            log(f"registered with MLflow: {version}")
    except RaymrcError as error:
        log(str(error))
