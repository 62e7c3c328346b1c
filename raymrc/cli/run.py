"""Commands that train: run, test."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raymrc.cli.answers import print_final, print_findings
from raymrc.cli.app import (
    INTERRUPTED,
    OUT_OF_BUDGET,
    SOMETHING_FAILED,
    Changes,
    Study,
    app,
    print_table,
    say,
)
from raymrc.cli.local import find_findings, find_measured, find_workload, load_study
from raymrc.cli.track import register_models, write_page

if TYPE_CHECKING:
    from raymrc.analysis.findings import Findings
    from raymrc.costs.budget import Spent
    from raymrc.costs.expectations import Expectations
    from raymrc.ledger.ledger import Ledger
    from raymrc.ledger.record import Record
    from raymrc.planning.loaded import LoadedStudy
    from raymrc.planning.plan import Plan
    from raymrc.scheduling.state import StudyOutcome
    from raymrc.study.spec import Spec
    from raymrc.tracking.datasets import Dataset
    from raymrc.training.batching import StudyData


MetricsPort = Annotated[
    int | None,
    typer.Option(
        min=1, max=65535, help="Tell Prometheus how it goes, at this port (dashboards/README.md)."
    ),
]


@app.command()
def run(study: Study, changes: Changes = None, metrics_port: MetricsPort = None) -> None:
    """Train what the study's ledger lacks, and print who won."""
    job = prepare_study(study, changes)
    # Held-out notes were looked at for what is in both; no host needs to see them.
    job_of_folds = replace(job, data=replace(job.data, test=None))
    outcome, is_in_mlflow = _train(job_of_folds, job.plan, metrics_port)
    findings = job.findings(job.ledger.records())
    print_findings(findings)
    write_page(findings, attaches=is_in_mlflow)
    tell(job.spec, outcome)


@app.command("test")
def final_test(study: Study, changes: Changes = None, metrics_port: MetricsPort = None) -> None:
    """Train each cell's winner on all notes, and score the held-out notes once."""
    from raymrc.analysis.final import plan_final_test, write_predictions
    from raymrc.errors import SpecError

    job = prepare_study(study, changes)
    if job.data.test is None:
        raise SpecError(
            f"{study}: the study holds no notes out; give it a final_test, with a corpus or a share"
        )
    records = job.ledger.records()
    summaries = job.findings(records).summaries
    final = plan_final_test(job.spec, job.plan, summaries, records, job.data.test)
    outcome, is_in_mlflow = _train(job, final, metrics_port)
    records = job.ledger.records()
    findings = job.findings(records)
    print_final(findings)
    folder = job.spec.folder / "predictions"
    if write_predictions(records, job.data.test, folder, job.study.inputs.asked.triggers):
        say(f"what was found, as brat: {folder}; what was trained: {job.spec.storage}/adapters")
    write_page(findings, attaches=is_in_mlflow)
    if is_in_mlflow:
        register_models(job.spec, records, job.data.corpus)
    tell(job.spec, outcome)


@dataclass(frozen=True)
class _Job:
    """A study that is ready to be trained."""

    study: LoadedStudy
    plan: Plan
    data: StudyData
    ledger: Ledger
    datasets: tuple[Dataset, ...]

    @property
    def spec(self) -> Spec:
        return self.study.spec

    def findings(self, records: Sequence[Record]) -> Findings:
        return find_findings(self.study, self.plan, records)


def prepare_study(study: Path, changes: list[str] | None) -> _Job:
    """Read and check everything before anything is written; the ledger comes last."""
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
    from raymrc.tracking import describe_datasets
    from raymrc.training.batching import StudyData
    from raymrc.training.trainer import check_questions_fit

    for entry in spec.backbones:
        check_weights(entry.backbone)
    check_questions_fit(plan, asked, questions)
    starts_from_it = any(cell.starts_from_adapter for cell in plan.cells)
    initial_prompt = read_prompt(adapter) if adapter is not None and starts_from_it else None
    check_folds(folds, corpus)
    ledger = Ledger(spec.storage)
    ledger.check()
    data = StudyData(corpus, folds, questions, transfer, loaded.test, initial_prompt)
    datasets = describe_datasets(spec, corpus, transfer, loaded.test)
    return _Job(loaded, plan, data, ledger, datasets)


def _train(job: _Job, plan: Plan, metrics_port: int | None) -> tuple[StudyOutcome, bool]:
    """What the ledger lacks of a plan; and whether MLflow has all of it."""
    from raymrc.costs.budget import Budget
    from raymrc.ledger.storage import absolute
    from raymrc.report.terminal import render_plan
    from raymrc.training.trainer import Trainer

    spec, ledger = job.spec, job.ledger
    if metrics_port is not None and os.environ.get("RAY_ADDRESS"):
        say("--metrics-port has no effect on a cluster that is there: it exports metrics by itself")
    print_table(render_plan(plan), sys.stderr)  # what each cell trains, and its share

    expect = _expectations(job, plan).of if spec.budget is not None else None

    # And seconds more.
    from raymrc.scheduling.failures import FailureTerms
    from raymrc.scheduling.progress import ProgressDisplay
    from raymrc.scheduling.terms import Listeners, RunTerms
    from raymrc.sweep.driver import Training, run_study
    from raymrc.sweep.session import HostResources
    from raymrc.tracking import MlflowRecorder, TrackingPlace

    with (
        MlflowRecorder(
            TrackingPlace.of(spec),
            records=ledger.records(),
            warn=say,
            may_win=job.plan.holds,
            datasets=job.datasets,
        ) as recorder,
        ProgressDisplay() as show,
    ):
        outcome = run_study(
            plan,
            ledger,
            Training(
                Trainer(
                    "cuda" if spec.resources.gpus_per_host else "cpu",
                    spec.prices.device_hour_usd,
                    spec.resources.gpus_per_host or 1.0,
                    frozenset(
                        cell.cell
                        for cell in plan.cells
                        if cell.placement is not None and cell.placement.checkpoints
                    ),
                    absolute(spec.storage),
                ).open_pool,
                job.data,
                HostResources(
                    spec.resources.cpus_per_host,
                    spec.resources.gpus_per_host,
                    spec.resources.max_hosts,
                    spec.resources.lanes_per_host,
                    together=spec.resources.same_machine,
                    metrics_port=metrics_port,
                ),
            ),
            spec.folder,
            RunTerms(
                Budget.of(spec),
                expect,
                FailureTerms(spec.failures.retries, spec.failures.close_cell_after),
            ),
            Listeners(recorder.record, show, say),
        )
    if recorder.behind:
        say(
            "MLflow lacks some of this study's fold-runs, which are all in the ledger; when it can be "
            f"written again: raymrc sync {spec.arguments}"
        )
    return outcome, not recorder.behind


def _expectations(job: _Job, plan: Plan) -> Expectations:
    """What a plan's fold-runs are expected to cost."""
    from raymrc.costs.expectations import Expectations

    workload = find_workload(job.study, plan)
    measured = find_measured(job.spec, job.plan, workload, job.ledger.records())
    return Expectations(job.spec, plan, workload, measured)


def tell(spec: Spec, outcome: StudyOutcome) -> None:
    """Where to look, and what is not done."""
    from raymrc.tracking import TrackingPlace, how_to_open

    say(f"every run: {how_to_open(TrackingPlace.of(spec))}")
    if outcome.spared:
        say(
            f"racing spared {outcome.spared} of {outcome.total} fold-runs; "
            "'raymrc report' has who was stopped and why"
        )
    for reason, times in outcome.reasons:
        say(f"{times} of {outcome.total} fold-runs failed: {reason}")
    for cell, left in outcome.closed:
        say(
            f"{cell}: closed, as {spec.failures.close_cell_after} configurations in a row failed "
            f"(failures.close_cell_after); {left} of its fold-runs were not begun"
        )
    if outcome.spent is not None:
        say(_spending(spec, outcome.spent, outcome.device_seconds))
    if outcome.out_of_budget:
        say(f"{outcome.out_of_budget}; give study {spec.study} more, and the same command goes on")
        raise typer.Exit(OUT_OF_BUDGET)
    if outcome.interrupted:
        say(f"interrupted; the same command goes on where study {spec.study} stopped")
        raise typer.Exit(INTERRUPTED)
    if outcome.failed:
        say("the rest is in the ledger; the same command tries the failed ones again")
        raise typer.Exit(SOMETHING_FAILED)


def _spending(spec: Spec, spent: Spent, device_seconds: float) -> str:
    """What a run has cost, and the study with it."""
    from raymrc.costs.budget import Budget

    budget = Budget.of(spec)
    word = "GPU-seconds" if spec.resources.gpus_per_host else "core-seconds"
    in_all = f"{spent.device_seconds:,.0f}"
    usd = f" ({spent.usd:.4g} USD)" if spent.usd else ""
    of = f", {budget.describe(spent)}" if budget else ""
    return f"this run held devices for {device_seconds:,.0f} {word}, the study for {in_all}{usd} in all{of}"
