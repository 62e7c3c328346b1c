"""Commands that read a ledger: report, compare, export, simulate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raymrc.cli.app import AsJson, Changes, Study, app, log, print_json, print_table
from raymrc.cli.local import exit_if_unreadable, load_study, read_findings, read_ledger

if TYPE_CHECKING:
    from raymrc.racing.simulate import Curves
    from raymrc.study.spec import Spec


@app.command("report")
def report_command(
    study: Study,
    as_json: AsJson = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write a page, STUDY.html, into this folder."),
    ] = None,
    changes: Changes = None,
) -> None:
    """Show who won, and at what cost, from the study's ledger."""
    from raymrc.report.terminal import render_final, render_findings

    findings, unreadable = read_findings(study, changes)
    if html is not None:
        from raymrc.report import write

        log(f"page written to {write(findings, html)}")
    if as_json:
        print_json(findings.to_json())
    elif html is None:
        print_table(render_findings(findings))
        if findings.finals:
            print_table(render_final(findings))
        for remark in findings.remarks:
            log(remark)
    exit_if_unreadable(unreadable)


@app.command("compare")
def compare_command(
    first: Annotated[Path, typer.Argument(metavar="STUDY_A", help="A study's YAML file.")],
    second: Annotated[Path, typer.Argument(metavar="STUDY_B", help="Another study's YAML file.")],
    as_json: AsJson = False,
) -> None:
    """Compare the winners of two studies, cell by cell."""
    from raymrc.analysis.comparison import compare_studies
    from raymrc.report.terminal import render_comparison

    a, a_is_unreadable = read_findings(first, None)
    b, b_is_unreadable = read_findings(second, None)
    found = compare_studies(a, b)
    if as_json:
        print_json(found.to_json())
    else:
        print_table(render_comparison(found))
    exit_if_unreadable(a_is_unreadable or b_is_unreadable)


@app.command("export")
def export_command(
    study: Study,
    csv: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write fold_runs.csv and labels.csv into this folder."),
    ] = None,
    parquet: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write fold_runs.parquet and labels.parquet into this folder."
        ),
    ] = None,
    changes: Changes = None,
) -> None:
    """Write the ledger as tables.

    One has a row per fold-run, the other a row per label of each fold-run.
    """
    from raymrc.report import write_tables

    wanted = {kind: folder for kind, folder in (("csv", csv), ("parquet", parquet)) if folder}
    if not wanted:
        raise typer.BadParameter("give --csv DIR, --parquet DIR or both")
    findings, unreadable = read_findings(study, changes)
    for kind, folder in wanted.items():
        for path in write_tables(findings, folder, kind):
            log(f"written: {path}")
    exit_if_unreadable(unreadable)


@app.command("simulate")
def simulate_command(
    source: Annotated[
        Path, typer.Argument(help="A study's YAML file, or a storage with a ledger.")
    ],
    as_json: AsJson = False,
    orders: Annotated[
        int, typer.Option(min=1, help="Replay each cell with this many orders of its folds.")
    ] = 20,
    slots: Annotated[int, typer.Option(min=1, help="Fold-runs at a time.")] = 8,
    made_up: Annotated[
        int,
        typer.Option(
            "--made-up", metavar="N", min=0,
            help="Before training: replay synthetic grids of the study's size, N of each of four kinds.",
        ),
    ] = 0,
) -> None:  # fmt: skip
    """Replay races over full grids, recorded or synthetic.

    Shows what racing saves, and which winners it chooses.
    """
    from raymrc.errors import LedgerError
    from raymrc.planning.plan import build_racing
    from raymrc.racing.simulate import read_grids, reorder_folds, replay_all
    from raymrc.report.plans import replay_table
    from raymrc.report.terminal import render

    spec = load_study(source, None) if made_up or source.is_file() else None
    unreadable = False
    if made_up:
        assert spec is not None
        cells = _synthetic_grids(spec, made_up)
    else:
        records, unreadable = read_ledger(spec.storage if spec else str(source))
        grids = read_grids(records, spec.num_folds if spec else None)
        cells = [(grid.name, reorder_folds(grid, orders)) for grid in grids]
    if not cells:
        raise LedgerError(
            f"{source}: no cell has two configurations"
            + ("" if made_up else " with all folds done")
            + "; nothing can be raced"
        )
    racing = build_racing(spec) if spec is not None else None
    outcomes = [replay for name, grid in cells for replay in replay_all(name, grid, slots, racing)]
    if as_json:
        print_json(outcomes)
    else:
        print_table(render([replay_table(outcomes)]))
    exit_if_unreadable(unreadable)


def _synthetic_grids(spec: Spec, num_of_each: int) -> list[tuple[str, list[Curves]]]:
    """Synthetic grids of the size of each cell, with the cell's name. They need no notes and no weights."""
    from raymrc.planning.loaded import LoadedStudy
    from raymrc.planning.plan import plan_study, representatives
    from raymrc.racing.simulate import generate_like

    planned = plan_study(LoadedStudy(spec), places=False)
    return [
        (
            cell.cell.name,
            generate_like(
                cell.num_configurations, planned.folds,
                representatives(cell, planned.seed)[0].epochs, num_of_each,
            ),
        )
        for cell in planned.cells
        if cell.num_configurations > 1
    ]  # fmt: skip
