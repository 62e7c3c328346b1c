"""Commands about MLflow: sync."""

from __future__ import annotations

import typer

from raymrc.cli.app import DONE, MUST_CHANGE, Changes, Study, app, say
from raymrc.cli.at_hand import corpus_at_hand, load, read_ledger


@app.command()
def sync(study: Study, changes: Changes = None) -> None:
    """Write into MLflow what it lacks of the study's ledger."""
    from raymrc.study.plan import plan_study
    from raymrc.tracking import how_to_look
    from raymrc.tracking import sync as catch_up

    spec = load(study, changes)
    records, unreadable = read_ledger(spec)
    if not records:
        say(f"the ledger in {spec.storage} holds no fold-run yet; 'raymrc run' comes first")
        raise typer.Exit(MUST_CHANGE if unreadable else DONE)
    planned = plan_study(spec, corpus_at_hand(spec), places=False)
    written = catch_up(records, spec.tracking_uri, spec.experiment, planned.holds)
    say(f"{written} MLflow runs written or changed, of {len(records)} fold-runs in the ledger")
    say(how_to_look(spec.tracking_uri, spec.experiment))
    if unreadable:
        raise typer.Exit(MUST_CHANGE)
