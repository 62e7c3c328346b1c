"""Commands about MLflow: sync."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from raymrc.cli.app import DONE, MUST_CHANGE, Changes, Study, app, say
from raymrc.cli.local import find_findings, load_study, read_ledger
from raymrc.errors import RaymrcError

if TYPE_CHECKING:
    from raymrc.analysis.findings import Findings
    from raymrc.corpora.note import Corpus
    from raymrc.ledger.record import Record
    from raymrc.study.spec import Spec


@app.command()
def sync(study: Study, changes: Changes = None) -> None:
    """Write into MLflow what it lacks of the study's ledger."""
    from raymrc.planning.loaded import read_local_study
    from raymrc.planning.plan import plan_study
    from raymrc.tracking import TrackingPlace, describe_datasets, how_to_open
    from raymrc.tracking import sync_study as catch_up

    spec = load_study(study, changes)
    records, unreadable = read_ledger(spec)
    if not records:
        say(f"the ledger in {spec.storage} holds no fold-run yet; 'raymrc run' comes first")
        raise typer.Exit(MUST_CHANGE if unreadable else DONE)
    local = read_local_study(spec, test=True)
    planned = plan_study(local, places=False)
    datasets = describe_datasets(spec, local.corpus, local.transfer, local.test)
    written = catch_up(records, TrackingPlace.of(spec), planned.holds, datasets)
    say(f"{written} MLflow runs written or changed, of {len(records)} fold-runs in the ledger")
    write_page(find_findings(local, planned, records), attaches=True)
    register_models(spec, records, local.corpus)
    say(how_to_open(TrackingPlace.of(spec)))
    if unreadable:
        raise typer.Exit(MUST_CHANGE)


def write_page(findings: Findings, *, attaches: bool) -> None:
    """The report's page, in the study's folder. Trouble is said, and is no end.

    Args:
        attaches: gives it and its plots to the study's run in MLflow, too; not where MLflow was just waited
            for in vain.
    """
    from raymrc.report import write, write_plots
    from raymrc.tracking import TrackingPlace, attach

    folder = findings.spec.folder / "report"
    try:
        page = write(findings, folder)
        say(f"the report as a page: {page}")
        if attaches:
            attach([page, write_plots(findings, folder)], TrackingPlace.of(findings.spec))
    except RaymrcError as error:
        say(str(error))


def register_models(spec: Spec, records: Sequence[Record], corpus: Corpus | None) -> None:
    """What a final test has trained, as models in MLflow's registry. Trouble is said, and is no end."""
    if spec.mlflow.register_models == "none" or not any(r.fold_run.is_test for r in records):
        return
    from raymrc.tracking import register

    if corpus is None:
        say("no model is registered with MLflow where the study's notes are not at hand")
        return
    try:
        for version in register(records, spec, corpus):
            say(f"registered with MLflow: {version}")
    except RaymrcError as error:
        say(str(error))
