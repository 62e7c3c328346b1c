"""Commands about what is to come: plan, status."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raymrc.cli.app import MUST_CHANGE, AsJson, Changes, Study, answer_json, app, print_table, say
from raymrc.cli.local import find_measured, load_study, plan_local_study, read_ledger

if TYPE_CHECKING:
    from raymrc.costs.budget import Spent
    from raymrc.costs.rates import Measured
    from raymrc.costs.workload import Workload
    from raymrc.planning.plan import Plan
    from raymrc.study.spec import Spec


@app.command()
def plan(
    study: Study,
    as_json: AsJson = False,
    prices: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Your own price table, as raymrc/costs/prices.yaml."),
    ] = None,
    instances: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE=N", help="Machines to reckon with, such as g5.xlarge=4."),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Measure on this device first, for about a minute.")
    ] = False,
    changes: Changes = None,
) -> None:
    """Say what a study will train and what it will cost, before anything starts."""
    from raymrc.costs.budget import Budget
    from raymrc.costs.forecast import forecast
    from raymrc.costs.history import read_progress
    from raymrc.costs.plan_json import plan_json
    from raymrc.costs.prices import read_cluster, read_prices
    from raymrc.costs.probe import write_probe
    from raymrc.costs.status import over_budget_remark
    from raymrc.errors import CorpusError
    from raymrc.model.backbones import find_backbone
    from raymrc.report.terminal import render_plan

    spec = load_study(study, changes)
    table = read_prices(prices)
    cluster = read_cluster(instances, table) if instances else None
    for entry in spec.backbones if probe else ():
        find_backbone(entry.backbone)  # fetched where it must be: all else only looks
    planned, workload, ledger = plan_local_study(spec)
    costs = None
    if workload is not None:
        if probe:
            write_probe(spec.storage, [])  # where nothing can be kept, no minute is spent
            place = write_probe(spec.storage, _run_probes(spec, planned, workload))
            say(f"what was measured: {place}")
        records = ledger.records() if ledger is not None else ()
        measured = find_measured(spec, planned, workload, records)
        progress = read_progress(planned, records)
        costs = forecast(spec, planned, workload, measured, progress, table, cluster)
    elif probe:
        raise CorpusError("--probe trains on a few of the study's notes, which are not here")
    if costs is not None and spec.budget is not None:
        said = over_budget_remark(Budget.of(spec), _spent(spec), costs)
        costs = replace(costs, remarks=(*costs.remarks, said)) if said else costs
    if as_json:
        answer_json(plan_json(planned, costs))
    else:
        print_table(render_plan(planned, costs))


def _spent(spec: Spec) -> Spent:
    """By all runs of a study until now."""
    from raymrc.costs.journal import Journal, spent_by

    entries = Journal(spec.storage).entries()
    return spent_by(entries, spec.prices.device_hour_usd, time.time())


def _run_probes(spec: Spec, planned: Plan, workload: Workload) -> list[Measured]:
    """Each backbone under each strategy, once.

    Raises:
        StudyError: nothing could be measured.
    """
    from raymrc.costs.probe import MAX_PROBE_SECONDS, choose_probed
    from raymrc.errors import StudyError
    from raymrc.training.probe import Probe, run_probes
    from raymrc.training.trainer import Trainer

    resources = spec.resources
    chosen, left_out = choose_probed(planned)
    for sentence in left_out:
        say(sentence)
    trainer = Trainer(
        "cuda" if resources.gpus_per_host else "cpu",
        gpus=resources.gpus_per_host or 1.0,
        recomputes=frozenset(one.cell for one in chosen if one.recomputes),
    )
    probes = [
        Probe(
            one.configurations, one.shape, one.lanes, trainer, workload.corpus,
            dict(workload.questions), max(1, int(resources.cpus_per_host)),
            MAX_PROBE_SECONDS / len(chosen),
        )
        for one in chosen
    ]  # fmt: skip
    measured = run_probes(probes, say)
    if not measured:
        raise StudyError("--probe could measure none of the study's cells on this device")
    return measured


@app.command()
def status(study: Study, as_json: AsJson = False, changes: Changes = None) -> None:
    """Say how far a study is, what it has spent, and when it will end."""
    from raymrc.costs.budget import Budget
    from raymrc.costs.forecast import forecast
    from raymrc.costs.history import read_progress
    from raymrc.costs.journal import Journal
    from raymrc.costs.prices import read_prices
    from raymrc.costs.status import read_status
    from raymrc.report.terminal import render_status

    spec = load_study(study, changes)
    records, unreadable = read_ledger(spec)
    planned, workload, _ = plan_local_study(spec)
    costs = None
    if workload is not None:
        measured = find_measured(spec, planned, workload, records)
        costs = forecast(
            spec, planned, workload, measured, read_progress(planned, records), read_prices()
        )
    entries = Journal(spec.storage).entries()
    found = read_status(planned, records, entries, Budget.of(spec), costs, time.time())
    if as_json:
        answer_json(found.to_json())
    else:
        print_table(render_status(found))
    if unreadable:
        raise typer.Exit(MUST_CHANGE)


@app.command()
def schema() -> None:
    """Print a JSON Schema of study files, with types, bounds and descriptions, for editors."""
    from raymrc.study.spec import study_schema

    answer_json(study_schema())
