"""What all commands share: the app that they are added to, options, codes, and how they talk."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

DONE, SOMETHING_FAILED, MUST_CHANGE, OUT_OF_BUDGET, INTERRUPTED = 0, 1, 2, 3, 130

app = typer.Typer(
    help="Fine-tune a language model on clinical notes, or freeze it and train only soft prompts?",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: rich would double the time of --help
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Study = Annotated[Path, typer.Argument(help="The study's YAML file.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one field, such as folds.count=3."),
]


def say(message: str) -> None:
    print(message, file=sys.stderr)


def answer_json(values: object) -> None:
    print(json.dumps(values, indent=2))


def print_table(table: RenderableType, stream: TextIO | None = None) -> None:
    """On stdout, where answers go, unless said otherwise."""
    from rich.console import Console

    stream = stream or sys.stdout
    # A table that goes into a file or a pipe is not cut to the 80 columns of a terminal.
    Console(file=stream, width=None if stream.isatty() else 160).print(table)
