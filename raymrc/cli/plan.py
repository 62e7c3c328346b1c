"""Commands about the study file and what training it takes: plan, status, schema."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raymrc.cli.app import AsJson, Changes, Study, app, log, print_json, print_table
from raymrc.cli.local import (
    exit_if_unreadable,
    find_measured,
    load_study,
    plan_local_study,
    read_ledger,
    with_learning_warnings,
)

if TYPE_CHECKING:
    from raymrc.costs.rates import Measured
    from raymrc.costs.workload import Workload
    from raymrc.planning.plan import Plan
    from raymrc.study.spec import Spec


@app.command("plan")
def plan_command(
    study: Study,
    as_json: AsJson = False,
    prices: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Your own price table, like raymrc/costs/prices.yaml."),
    ] = None,
    instances: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE=N", help="Estimate cost and time on these instances, e.g. g5.xlarge=4."
        ),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Measure on this device first; takes about a minute.")
    ] = False,
    changes: Changes = None,
) -> None:
    """Show what a study will train and cost. Nothing starts."""
    from raymrc.costs.budget import Budget
    from raymrc.costs.forecast import forecast
    from raymrc.costs.history import read_progress
    from raymrc.costs.journal import Journal, spent_by
    from raymrc.costs.plan_json import plan_json
    from raymrc.costs.prices import read_cluster, read_prices
    from raymrc.costs.probe import write_probe
    from raymrc.costs.status import over_budget_remark
    from raymrc.errors import CorpusError
    from raymrc.model.backbones import find_backbone
    from raymrc.report.plans import plan_table
    from raymrc.report.terminal import render

    spec = load_study(study, changes)
    table = read_prices(prices)
    cluster = read_cluster(instances, table) if instances else None
    for entry in spec.backbones if probe else ():
        find_backbone(entry.backbone)  # downloads missing weights; everything below is offline
    planned, workload, ledger = plan_local_study(spec)
    costs = None
    if workload is not None:
        planned = with_learning_warnings(planned, workload)
        if probe:
            # Fails now, not after a minute, if the storage is not writable.
            write_probe(spec.storage, [])
            place = write_probe(spec.storage, _run_probes(spec, planned, workload))
            log(f"measurements written to {place}")
        records = ledger.records() if ledger is not None else ()
        measured = find_measured(spec, planned, workload, records)
        progress = read_progress(planned, records)
        costs = forecast(spec, planned, workload, measured, progress, table, cluster)
    elif probe:
        raise CorpusError(
            "--probe trains on a few of the study's notes, which are not on this machine"
        )
    if costs is not None and spec.budget is not None:
        entries = Journal(spec.storage).entries()
        spent = spent_by(entries, spec.prices.device_hour_usd, time.time())
        remark = over_budget_remark(Budget.of(spec), spent, costs)
        costs = replace(costs, remarks=(*costs.remarks, remark)) if remark else costs
    if as_json:
        print_json(plan_json(planned, costs))
    else:
        print_table(render([plan_table(planned, costs)]))


def _run_probes(spec: Spec, planned: Plan, workload: Workload) -> list[Measured]:
    from raymrc.costs.probe import MAX_PROBE_SECONDS, choose_probed
    from raymrc.errors import StudyError
    from raymrc.training.probe import Probe, run_probes
    from raymrc.training.trainer import Trainer

    resources = spec.resources
    chosen, left_out = choose_probed(planned)
    for sentence in left_out:
        log(sentence)
    trainer = Trainer(
        "cuda" if resources.gpus_per_host else "cpu",
        gpus=resources.gpus_per_host or 1.0,
        recomputes=frozenset(cell.cell for cell in chosen if cell.recomputes),
    )
    probes = [
        Probe(
            cell.configurations, cell.shape, cell.lanes, trainer, workload.corpus,
            dict(workload.questions), max(1, int(resources.cpus_per_host)),
            MAX_PROBE_SECONDS / len(chosen),
        )
        for cell in chosen
    ]  # fmt: skip
    measured = run_probes(probes, log)
    if not measured:
        raise StudyError("--probe could not measure any of the study's cells on this device")
    return measured


@app.command("status")
def status_command(study: Study, as_json: AsJson = False, changes: Changes = None) -> None:
    """Show a study's progress, spending and expected end."""
    from raymrc.costs.budget import Budget
    from raymrc.costs.forecast import forecast
    from raymrc.costs.history import read_progress
    from raymrc.costs.journal import Journal
    from raymrc.costs.prices import read_prices
    from raymrc.costs.status import read_status
    from raymrc.report.plans import status_parts
    from raymrc.report.terminal import render

    spec = load_study(study, changes)
    records, unreadable = read_ledger(spec.storage)
    planned, workload, _ = plan_local_study(spec)
    costs = None
    if workload is not None:
        measured = find_measured(spec, planned, workload, records)
        progress = read_progress(planned, records)
        costs = forecast(spec, planned, workload, measured, progress, read_prices())
    entries = Journal(spec.storage).entries()
    found = read_status(planned, records, entries, Budget.of(spec), costs, time.time())
    if as_json:
        print_json(found.to_json())
    else:
        print_table(render(status_parts(found)))
    exit_if_unreadable(unreadable)


@app.command("schema")
def schema_command() -> None:
    """Print a JSON Schema of study files. Editors use it to check and complete them."""
    from raymrc.study.spec import study_schema

    print_json(study_schema())
