"""Commands about MLflow: sync."""

from __future__ import annotations

import typer

from raymrc.cli.app import Changes, ExitCode, Study, app, log
from raymrc.cli.job import register_models, write_page
from raymrc.cli.local import exit_if_unreadable, load_study, read_ledger


@app.command("sync")
def sync_command(study: Study, changes: Changes = None) -> None:
    """Write the runs that MLflow lacks, from the study's ledger."""
    from raymrc.analysis.findings import build_findings
    from raymrc.planning.loaded import read_local_study
    from raymrc.planning.plan import plan_study
    from raymrc.tracking import TrackingPlace, describe_datasets, how_to_open, sync_study

    spec = load_study(study, changes)
    records, unreadable = read_ledger(spec.storage)
    if not records:
        log(f"the ledger in {spec.storage} holds no fold-run yet; start with 'raymrc run'")
        raise typer.Exit(ExitCode.MUST_CHANGE if unreadable else ExitCode.DONE)
    local = read_local_study(spec, test=True)
    planned = plan_study(local, places=False)
    datasets = describe_datasets(local)
    written = sync_study(records, TrackingPlace.of(spec), planned.holds, datasets)
    log(f"{written} MLflow runs written or changed; the ledger has {len(records)} fold-runs")
    write_page(build_findings(local, planned, records), attaches=True)
    register_models(local, records)
    log(how_to_open(TrackingPlace.of(spec)))
    exit_if_unreadable(unreadable)
