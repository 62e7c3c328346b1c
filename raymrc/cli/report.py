"""Commands that read a ledger: report, simulate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raymrc.cli.answers import conclude_plan, print_conclusions, print_final, summarise_plan
from raymrc.cli.app import MUST_CHANGE, AsJson, Changes, Study, answer_json, app, print_table, say
from raymrc.cli.at_hand import (
    corpus_at_hand,
    initial_prompt_at_hand,
    load,
    read_ledger,
    transfer_at_hand,
    weights_at_hand,
)


@app.command()
def report(study: Study, as_json: AsJson = False, changes: Changes = None) -> None:
    """Say who won, and at what cost, from the study's ledger."""
    from raymrc.study.final import final_scores
    from raymrc.study.plan import plan_study
    from raymrc.study.verdict import count_failing, render, to_json

    spec = load(study, changes)
    records, unreadable = read_ledger(spec)
    corpus = corpus_at_hand(spec)
    transfer = transfer_at_hand(spec, corpus)
    planned = plan_study(
        spec,
        corpus,
        weights_at_hand(spec),
        transfer=transfer,
        initial_prompt=initial_prompt_at_hand(spec),
        places=False,
    )
    summaries = summarise_plan(spec, planned, records)
    conclusions = conclude_plan(spec, summaries, corpus, transfer)
    if as_json:
        finals = final_scores(records, [summary.cell for summary in summaries])
        answer_json(
            to_json(summaries)
            | {
                "conclusions": conclusions.to_json(),
                "final_test": [score.to_json() for score in finals],
            }
        )
    else:
        print_table(render(summaries))
        print_conclusions(conclusions)
        print_final(records, summaries)
        for summary in summaries:
            for reason, times in summary.reasons:
                say(f"{summary.cell.name}: {times} fold-runs failed: {reason}")
        failing, most = count_failing(records), spec.failures.close_cell_after
        for summary, cell_plan in zip(summaries, planned.cells, strict=True):
            left = cell_plan.num_fold_runs - summary.num_done - summary.num_failed
            left -= summary.num_spared
            if most is not None and failing.get(summary.cell, 0) >= most and left > 0:
                say(
                    f"{summary.cell.name}: closed, as {most} configurations in a row failed "
                    f"(failures.close_cell_after); {left} of its fold-runs were not begun, and "
                    "'raymrc run' tries it again"
                )
    if unreadable:
        raise typer.Exit(MUST_CHANGE)


@app.command()
def simulate(
    source: Annotated[
        Path, typer.Argument(help="A study's YAML file, or a storage with a ledger.")
    ],
    as_json: AsJson = False,
    orders: Annotated[
        int, typer.Option(help="Replay each cell with the folds in so many orders.")
    ] = 20,
    slots: Annotated[int, typer.Option(help="Fold-runs at a time.")] = 8,
) -> None:
    """Replay a ledger's full grids: what racing would have saved, and whom it would have chosen."""
    from raymrc.errors import LedgerError
    from raymrc.study.ledger import Ledger
    from raymrc.study.simulate import read_tables, render, replay_cells

    spec = load(source, None) if source.is_file() else None
    ledger = Ledger(spec.storage if spec else str(source), write=False)
    records, problems = ledger.read_all()
    for problem in problems:
        say(problem)
    tables = read_tables(records, spec.num_folds if spec else None)
    if not tables:
        raise LedgerError(
            f"{source}: no cell has two configurations with all folds done; nothing can be raced"
        )
    outcomes = replay_cells(tables, orders, slots)
    if as_json:
        answer_json(outcomes)
    else:
        print_table(render(outcomes))
    if problems:
        raise typer.Exit(MUST_CHANGE)
