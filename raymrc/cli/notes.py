"""Commands about notes, without a study: validate, synthesize, score."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from raymrc.cli.app import AsJson, ExitCode, app, log, print_json


@app.command("validate")
def validate_command(
    path: Annotated[Path, typer.Argument(help="The corpus: a folder or a file.")],
    reader: Annotated[str, typer.Option(help="Its format, such as brat or n2c2-2018.")],
    as_json: AsJson = False,
) -> None:
    """Check notes before training on them."""
    from raymrc.corpora.problems import WARNING
    from raymrc.corpora.validate import validate_corpus

    validation = validate_corpus(path, reader)
    if as_json:
        print(validation.to_json())
    else:
        for name, count in asdict(validation.counts).items() if validation.counts.notes else ():
            if name in ("labels", "relation_labels"):
                count = ", ".join(f"{label} {times}" for label, times in count.items()) or "none"
            print(f"{name.replace('_', ' '):>20}  {count}")
        for problem in validation.problems:
            log(f"warning: {problem}" if problem.severity == WARNING else str(problem))
    if not validation.ok:
        raise typer.Exit(ExitCode.MUST_CHANGE)


@app.command("synthesize")
def synthesize_command(
    scheme: Annotated[str, typer.Argument(help="n2c2-2018 (drugs) or n2c2-2022 (social history).")],
    out: Annotated[Path, typer.Argument(help="A new folder for the brat files.")],
    notes: Annotated[int, typer.Option(help="Number of notes.")] = 100,
    site: Annotated[str, typer.Option(help="Style and label prior: a or b.")] = "a",
    seed: Annotated[int, typer.Option(help="The same seed writes the same notes.")] = 13,
) -> None:
    """Write synthetic notes with exact annotations."""
    from raymrc.corpora.folders import new_folder
    from raymrc.corpora.formats import write_corpus
    from raymrc.corpora.synthetic import synthesize_corpus

    corpus = synthesize_corpus(scheme, notes, site, seed)
    with new_folder(out) as folder:
        write_corpus(corpus, folder, scheme)
    log(f"{out}: {len(corpus.notes)} notes; read them with --reader {scheme}")


@app.command("score", context_settings={"allow_extra_args": True})
def score_command(
    context: typer.Context,
    gold: Annotated[Path, typer.Argument(help="Folder of gold .ann files.")],
    system: Annotated[Path, typer.Argument(help="Folder of predicted .ann files, same names.")],
    scheme: Annotated[str, typer.Option(help="n2c2-2018 or n2c2-2022.")],
    criteria: Annotated[
        str, typer.Option(help="For n2c2-2022: challenge, exact or overlap.")
    ] = "challenge",
    labeled_args: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE ...",
            help="For n2c2-2022: argument types compared by value. Default: SHAC's three.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score predicted annotations as the official scorers do."""
    from raymrc.errors import CorpusError
    from raymrc.scoring import n2c2_2018, n2c2_2022

    # Like the official scorer, `--labeled-args A B` takes both; so do A,B and two options.
    labeled = [name for text in labeled_args or () for name in text.split(",")]
    if context.args and labeled_args is None:
        raise typer.BadParameter(f"one folder too many: {context.args[0]}")
    if scheme == "n2c2-2018":
        if labeled or criteria != "challenge":
            raise CorpusError("--criteria and --labeled-args are for n2c2-2022; leave them out")
        drugs = n2c2_2018.score_2018_folders(gold, system)
        answer, text = drugs.to_json(), n2c2_2018.render_2018_scores(drugs)
    elif scheme == "n2c2-2022":
        chosen = (*labeled, *context.args) if labeled_args else n2c2_2022.LABELED_ARGUMENTS
        social = n2c2_2022.score_2022_folders(gold, system, criteria, chosen)
        answer, text = social.to_json(), n2c2_2022.render_2022_scores(social)
    else:
        raise CorpusError(f"there is no scheme '{scheme}'; choose n2c2-2018 or n2c2-2022")
    if as_json:
        print_json(answer)
    else:
        print(text, end="")
