"""The commands: parse, call one function, print, return a code.

    app.py       what all of them share: options, codes, and how they talk
    at_hand.py   what of a study is on this machine
    answers.py   what a study's ledger says
    notes.py     validate, synthesize, score
    plan.py      plan, status
    run.py       run, test
    report.py    report, compare, export, simulate
    track.py     sync

Codes: 0 done, 1 finished with something failed, 2 the user must change something,
3 stopped by the budget, 130 interrupted and resumable. What a command answers goes to
stdout (with `--json` nothing but JSON), all talk to stderr. What is heavy is imported
inside the command that needs it, so that `--help` and `plan` stay quick.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence

from raymrc.cli.app import DONE, INTERRUPTED, MUST_CHANGE, SOMETHING_FAILED, app, say
from raymrc.errors import RaymrcError

# Each adds its commands to the app, in the order in which `--help` lists them.
# isort: off
from raymrc.cli import notes, plan, run, report, track  # noqa: F401
# isort: on

__all__ = ["app", "describe_bug", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give back its exit code.

    Args:
        arguments: without the program's name; None takes them from the command line.
    """
    try:
        app(args=None if arguments is None else list(arguments), prog_name="raymrc")
    except RaymrcError as error:
        say(str(error))
        return MUST_CHANGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else SOMETHING_FAILED
    except Exception as error:
        say(describe_bug(error))
        return SOMETHING_FAILED
    return DONE


def describe_bug(error: BaseException) -> str:
    """Where an error of ours came from, without messages or values: those may hold note text."""
    lines = ["an error inside raymrc, not of your making. Please report it with these lines:"]
    cause: BaseException | None = error
    while cause is not None:
        lines.append(f"  {type(cause).__module__}.{type(cause).__qualname__}, raised through")
        for frame in traceback.extract_tb(cause.__traceback__):
            lines.append(f"    {frame.filename}:{frame.lineno} {frame.name}")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\n".join(lines)
