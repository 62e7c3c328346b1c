"""Errors that the user can fix. The command line prints one sentence and exits with code 2.

A message says what is wrong, where (file and line, or note id and offsets) and what to do. It never
holds a note's text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class RaymrcError(Exception):
    """Base of every error that the user can fix."""


class _ListedProblems(RaymrcError):
    """An error with several problems.

    Args:
        problems: one sentence each, in file order; the message has one line per problem.
    """

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class CorpusError(_ListedProblems):
    """Notes or annotations break the data contract."""


class SpecError(_ListedProblems):
    """A study file cannot be run; the error lists all its problems."""


class StudyError(RaymrcError):
    """The study has not reached the state that the command needs."""


class BackboneError(RaymrcError):
    """A backbone is missing, has no weights, or is of an unsupported kind."""


class AdapterError(RaymrcError):
    """A saved adapter is missing, cannot be read or written, or was trained for something else."""


class PromptError(RaymrcError):
    """A prompt has the wrong length, device or layer, or gets no gradient."""


class LedgerError(RaymrcError):
    """A ledger cannot be read or written."""


class TrainingError(RaymrcError):
    """A fold-run cannot continue, for example because its loss is not a number."""


class MemoryShortage(TrainingError):
    """A fold-run ran out of memory; it may succeed once other fold-runs have ended."""


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the closest known name, else the first twelve."""
    names = sorted(set(known))
    lowered = {candidate.lower(): candidate for candidate in names}
    close = get_close_matches(name.lower(), list(lowered), n=1)
    if close:
        return f"; did you mean '{lowered[close[0]]}'?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"; choose from {shown}" if names else ""


def first_few(names: Sequence[str]) -> str:
    """The first five of many names, for a message."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
