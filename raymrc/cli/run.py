"""Commands that train: run, test."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from raymrc.cli.app import Changes, ExitCode, Study, app, log, print_table
from raymrc.cli.job import prepare_study, register_models, train_study, write_page

if TYPE_CHECKING:
    from raymrc.costs.budget import Spent
    from raymrc.scheduling.state import StudyOutcome
    from raymrc.study.spec import Spec


MetricsPort = Annotated[
    int | None,
    typer.Option(
        min=1, max=65535, help="Export Prometheus metrics on this port (dashboards/README.md)."
    ),
]


@app.command("run")
def run_command(study: Study, changes: Changes = None, metrics_port: MetricsPort = None) -> None:
    """Train what the study's ledger lacks, and show who won."""
    from raymrc.report.terminal import render_findings

    job = prepare_study(study, changes)
    # Hosts never see held-out notes.
    without_test = replace(job, data=replace(job.data, test=None))
    outcome, is_in_mlflow = train_study(without_test, job.plan, metrics_port)
    findings = job.findings(job.ledger.records())
    print_table(render_findings(findings))
    write_page(findings, attaches=is_in_mlflow)
    end_run(job.spec, outcome)


@app.command("test")
def test_command(study: Study, changes: Changes = None, metrics_port: MetricsPort = None) -> None:
    """Train winners on all notes; score held-out notes once."""
    from raymrc.analysis.final import plan_final_test, write_predictions
    from raymrc.errors import SpecError
    from raymrc.report.terminal import render_final

    job = prepare_study(study, changes)
    test = job.data.test
    if test is None:
        raise SpecError(f"{study}: no held-out notes: add `final_test` to the study")
    records = job.ledger.records()
    summaries = job.findings(records).summaries
    final = plan_final_test(job.spec, job.plan, summaries, records, test)
    outcome, is_in_mlflow = train_study(job, final, metrics_port)
    records = job.ledger.records()
    findings = job.findings(records)
    if findings.finals:
        print_table(render_final(findings))
    folder = job.spec.folder / "predictions"
    if write_predictions(records, test, folder, job.study.inputs.asked.triggers):
        log(f"predictions as brat files: {folder}; trained models: {job.spec.storage}/adapters")
    write_page(findings, attaches=is_in_mlflow)
    if is_in_mlflow:
        register_models(job.study, records)
    end_run(job.spec, outcome)


def end_run(spec: Spec, outcome: StudyOutcome) -> None:
    """Log what was done and what was not, and end with the code for it."""
    from raymrc.tracking import TrackingPlace, how_to_open

    log(f"all runs: {how_to_open(TrackingPlace.of(spec))}")
    if outcome.spared:
        log(
            f"racing spared {outcome.spared} of {outcome.total} fold-runs; "
            "'raymrc report' shows which configurations were stopped and why"
        )
    for reason, times in outcome.reasons:
        log(f"{times} of {outcome.total} fold-runs failed: {reason}")
    for cell, left in outcome.closed:
        log(
            f"{cell}: abandoned after {spec.failures.close_cell_after} consecutive failing configurations "
            f"(failures.close_cell_after); {left} of its fold-runs were not begun"
        )
    if outcome.spent is not None:
        log(_spending(spec, outcome.spent, outcome.device_seconds))
    if outcome.out_of_budget:
        log(f"{outcome.out_of_budget}; raise the budget and rerun the same command to resume")
        raise typer.Exit(ExitCode.OUT_OF_BUDGET)
    if outcome.interrupted:
        log(f"study {spec.study} was interrupted; rerun the same command to resume")
        raise typer.Exit(ExitCode.INTERRUPTED)
    if outcome.failed:
        log("the ledger has the other fold-runs; rerun the same command to retry the failed ones")
        raise typer.Exit(ExitCode.SOMETHING_FAILED)


def _spending(spec: Spec, spent: Spent, device_seconds: float) -> str:
    """ "device time: 51 core-seconds this run, 400 in total (0.02 USD, 0.1 of 2 device hours)"."""
    from raymrc.costs.budget import Budget

    unit = "GPU-seconds" if spec.resources.gpus_per_host else "core-seconds"
    usd = f"{spent.usd:.4g} USD" if spent.usd else ""
    details = ", ".join(filter(None, (usd, Budget.of(spec).describe(spent))))
    total = f"{spent.device_seconds:,.0f} in total{f' ({details})' if details else ''}"
    return f"device time: {device_seconds:,.0f} {unit} this run, {total}"
