"""The commands: each parses its arguments, calls one function, prints, and returns an exit code.

This room may import every other room; heavy imports sit inside the command that needs them, so that `--help`
and `plan` stay quick. Enter at `main`; `app` holds what all commands share, `local` reads what is on this
machine, `job` prepares and trains a study, and the other modules hold the commands.

Answers go to stdout (with `--json` nothing but JSON), messages to stderr.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence

from raymrc.cli.app import ExitCode, app, log
from raymrc.errors import RaymrcError

# Each module adds its commands to the app, in the order in which `--help` lists them.
# isort: off
from raymrc.cli import notes, plan, run, report, track  # noqa: F401
# isort: on

__all__ = ["app", "describe_bug", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, such as ["plan", "demo.yaml"], by default sys.argv's, and return its exit code."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="raymrc")
    except RaymrcError as error:
        log(str(error))
        return ExitCode.MUST_CHANGE
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else ExitCode.SOMETHING_FAILED
    except Exception as error:
        log(describe_bug(error))
        return ExitCode.SOMETHING_FAILED
    return ExitCode.DONE


def describe_bug(error: BaseException) -> str:
    """The place that an unexpected error came from, without messages or values: those may hold note text."""
    lines = ["internal error in raymrc; please report it with these lines:"]
    cause: BaseException | None = error
    while cause is not None:
        lines.append(f"  {type(cause).__module__}.{type(cause).__qualname__}, raised through")
        for frame in traceback.extract_tb(cause.__traceback__):
            lines.append(f"    {frame.filename}:{frame.lineno} {frame.name}")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\n".join(lines)
