"""Commands that read a ledger: report, compare, export, simulate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raymrc.cli.answers import print_final, print_findings
from raymrc.cli.app import MUST_CHANGE, AsJson, Changes, Study, answer_json, app, print_table, say
from raymrc.cli.local import load_study, read_findings

if TYPE_CHECKING:
    from raymrc.racing.simulate import Curves
    from raymrc.study.spec import Spec


@app.command()
def report(
    study: Study,
    as_json: AsJson = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write it as a page, STUDY.html, into this folder."),
    ] = None,
    changes: Changes = None,
) -> None:
    """Say who won, and at what cost, from the study's ledger."""
    findings, unreadable = read_findings(study, changes)
    if html is not None:
        from raymrc.report import write

        say(f"the page: {write(findings, html)}")
    if as_json:
        answer_json(findings.to_json())
    elif html is None:
        print_findings(findings)
        print_final(findings)
        for remark in findings.remarks:
            say(remark)
    if unreadable:
        raise typer.Exit(MUST_CHANGE)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="STUDY_A", help="A study's YAML file.")],
    second: Annotated[Path, typer.Argument(metavar="STUDY_B", help="Another one's.")],
    as_json: AsJson = False,
) -> None:
    """Set two studies' winners against each other, cell by cell."""
    from raymrc.analysis.comparison import compare_studies as set_against
    from raymrc.report.terminal import render_comparison

    (one, some), (other, others) = read_findings(first, None), read_findings(second, None)
    found = set_against(one, other)
    if as_json:
        answer_json(found.to_json())
    else:
        print_table(render_comparison(found))
    if some or others:
        raise typer.Exit(MUST_CHANGE)


@app.command()
def export(
    study: Study,
    csv: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write fold_runs.csv and labels.csv there.")
    ] = None,
    parquet: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write fold_runs.parquet and labels.parquet there."),
    ] = None,
    changes: Changes = None,
) -> None:
    """Write the ledger's figures as tables: a row a fold-run, and a row a label of each."""
    from raymrc.report import write_tables

    wanted = {kind: folder for kind, folder in (("csv", csv), ("parquet", parquet)) if folder}
    if not wanted:
        raise typer.BadParameter("say where to: --csv DIR, --parquet DIR or both")
    findings, unreadable = read_findings(study, changes)
    for kind, folder in wanted.items():
        for path in write_tables(findings, folder, kind):
            say(f"written: {path}")
    if unreadable:
        raise typer.Exit(MUST_CHANGE)


@app.command()
def simulate(
    source: Annotated[
        Path, typer.Argument(help="A study's YAML file, or a storage with a ledger.")
    ],
    as_json: AsJson = False,
    orders: Annotated[
        int, typer.Option(min=1, help="Replay each cell with the folds in so many orders.")
    ] = 20,
    slots: Annotated[int, typer.Option(min=1, help="Fold-runs at a time.")] = 8,
    made_up: Annotated[
        int,
        typer.Option(
            "--made-up", metavar="N", min=0,
            help="Replay made-up grids of the study's size, N of each of four kinds, before anything "
            "is trained.",
        ),
    ] = 0,
) -> None:  # fmt: skip
    """Replay a ledger's full grids, or made-up ones: what racing saves, and whom it chooses."""
    from raymrc.errors import LedgerError
    from raymrc.ledger.ledger import Ledger
    from raymrc.planning.plan import build_racing
    from raymrc.racing.simulate import read_grids, reorder_folds, replay_all
    from raymrc.report.terminal import render_replays

    spec = load_study(source, None) if made_up or source.is_file() else None
    problems: tuple[str, ...] = ()
    if made_up:
        assert spec is not None
        cells = _make_up(spec, made_up)
    else:
        ledger = Ledger(spec.storage if spec else str(source), write=False)
        records, problems = ledger.read_all()
        for problem in problems:
            say(problem)
        grids = read_grids(records, spec.num_folds if spec else None)
        cells = [(grid.name, reorder_folds(grid, orders)) for grid in grids]
    if not cells:
        raise LedgerError(
            f"{source}: no cell has two configurations"
            + ("" if made_up else " with all folds done")
            + "; nothing can be raced"
        )
    racing = build_racing(spec) if spec is not None else None
    outcomes = [one for name, of in cells for one in replay_all(name, of, slots, racing)]
    if as_json:
        answer_json(outcomes)
    else:
        print_table(render_replays(outcomes))
    if problems:
        raise typer.Exit(MUST_CHANGE)


def _make_up(spec: Spec, of_each: int) -> list[tuple[str, list[Curves]]]:
    """Grids like those of a study's cells, with their names. No notes and no weights are asked."""
    from raymrc.planning.loaded import LoadedStudy
    from raymrc.planning.plan import plan_study, representatives
    from raymrc.racing.simulate import generate_like

    planned = plan_study(LoadedStudy(spec), places=False)
    return [
        (
            cell.cell.name,
            generate_like(
                cell.num_configurations, planned.folds,
                representatives(cell, planned.seed)[0].epochs, of_each,
            ),
        )
        for cell in planned.cells
        if cell.num_configurations > 1
    ]  # fmt: skip
