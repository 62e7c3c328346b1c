"""What a user can mend: one sentence, exit code 2, no traceback.

A message says what is wrong, where (file and line, or note id and offsets) and what
to do. It never holds a note's text.
"""

from __future__ import annotations

from collections.abc import Sequence


class RaymrcError(Exception):
    """Base of every error that the user can mend. The command line prints it and exits with 2."""


class CorpusError(RaymrcError):
    """Notes or annotations that break the data contract.

    Args:
        problems: one sentence each, in file order; the message is all of them, a line each.
    """

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class SpecError(RaymrcError):
    """A study file that cannot be run; all its problems at once, in file order."""

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class StudyError(RaymrcError):
    """A study that is not at the point where it can do what is asked of it."""


class BackboneError(RaymrcError):
    """A backbone that is not there, has no weights, or is of a kind we do not have."""


class AdapterError(RaymrcError):
    """A saved adapter that is not there, cannot be read or written, or was trained for something else."""


class PromptError(RaymrcError):
    """A prompt of the wrong length, on the wrong device or layer, or one that gets no gradient."""


class LedgerError(RaymrcError):
    """A ledger that cannot be read or written."""


class TrainingError(RaymrcError):
    """A fold-run that cannot go on, such as a loss that is not a number."""


class MemoryShortage(TrainingError):
    """A fold-run that found too little memory; where others have ended, it may find enough."""
