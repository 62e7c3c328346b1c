"""What all commands share: the app, common options, exit codes, and printing."""

from __future__ import annotations

import json
import sys
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType


class ExitCode(IntEnum):
    """How a command ended. `INTERRUPTED` and `OUT_OF_BUDGET` can be resumed."""

    DONE = 0
    SOMETHING_FAILED = 1
    MUST_CHANGE = 2
    OUT_OF_BUDGET = 3
    INTERRUPTED = 130


app = typer.Typer(
    help="Fine-tune a language model on clinical notes, or freeze it and train only soft prompts?",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: rich would double the time of --help
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print only JSON to stdout.")]
Study = Annotated[Path, typer.Argument(help="The study's YAML file.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one field, such as folds.count=3."),
]


def log(message: str) -> None:
    print(message, file=sys.stderr)


def print_json(values: object) -> None:
    print(json.dumps(values, indent=2))


def print_table(table: RenderableType, stream: TextIO | None = None) -> None:
    from rich.console import Console

    stream = stream or sys.stdout
    # In a file or a pipe, tables are not cut to the 80 columns of a terminal.
    Console(file=stream, width=None if stream.isatty() else 160).print(table)
