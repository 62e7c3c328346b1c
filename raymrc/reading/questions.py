"""Label sets and their questions. `questions.json` words them after each corpus's label definitions.

The same label means different things in different sets ("Drug" is a medication in 2018 and substance use in
SHAC), so questions come from the set that knows most of the labels in question, and among several such sets
from the smallest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raymrc.errors import SpecError, suggest
from raymrc.reading.relations import RelationQuestion

_WORDINGS: dict[str, Any] = json.loads(
    Path(__file__).with_name("questions.json").read_text("utf-8")
)

LABEL_QUESTIONS: dict[str, dict[str, str]] = _WORDINGS["labels"]
"""Label set -> label -> question. "drug-ade" holds what MACCROBAT and PHEE share, under the names of 2018."""

SHAC_ARGUMENT_QUESTIONS: dict[tuple[str, str], str] = {
    (trigger, argument): question
    for trigger, questions in _WORDINGS["arguments"].items()
    for argument, question in questions.items()
}
"""The 29 questions about an argument of a given trigger."""

SHAC_VALUE_QUESTIONS: dict[tuple[str, str, str], str] = {
    (trigger, argument, value): question
    for trigger, arguments in _WORDINGS["values"].items()
    for argument, values in arguments.items()
    for value, question in values.items()
}
"""The questions about each value of a labelled argument of a given trigger."""


def default_questions(labels: Sequence[str]) -> dict[str, str]:
    """Label -> question, in the order of `labels`.

    All come from the smallest label set that knows most of `labels`; a label that it lacks
    is looked up in the others, and one that none knows is asked for by its name.
    """
    tables = sorted(
        LABEL_QUESTIONS.values(),
        key=lambda table: (-sum(label in table for label in labels), len(table)),
    )
    questions: dict[str, str] = {}
    for label in labels:
        known = (table[label] for table in tables if label in table)
        questions[label] = next(known, f"Which words mention {in_plain_words(label)}?")
    return questions


def build_questions(
    labels: Sequence[str],
    overrides: Mapping[str, str],
    relations: Sequence[RelationQuestion] = (),
) -> dict[str, str]:
    """The questions of a study, by label and by name of the relation question: its own words where it
    gives some, else ours.

    Raises:
        SpecError: a question for something that the corpus does not have, or an empty one.
    """
    ours = default_questions(labels) | {r.name: _relation_question(r) for r in relations}
    problems = []
    for name, question in overrides.items():
        if name not in ours:
            kind = "label or relation" if relations else "label"
            problems.append(f"questions: the corpus has no {kind} {name!r}{suggest(name, ours)}")
        elif not question.strip():
            problems.append(f"questions: the question for {name!r} is empty; give it some words")
    if problems:
        raise SpecError(problems)
    return ours | dict(overrides)


def _relation_question(question: RelationQuestion) -> str:
    """The given mention is marked in the text, and called so."""
    argument = (question.given[0], question.relation)
    if question.value:
        known = SHAC_VALUE_QUESTIONS.get((*argument, question.value))
    else:
        known = SHAC_ARGUMENT_QUESTIONS.get(argument) if len(question.given) == 1 else None
    if known is not None:
        return known
    given = " or ".join(in_plain_words(label) for label in question.given[:3])
    answers = " or ".join(in_plain_words(label) for label in question.answers[:3])
    if question.value:
        answers += f" with the value {in_plain_words(question.value)}"
    return _WORDINGS["relations"].get(
        question.name, f"Which {answers} belongs to the marked {given}?"
    )


def questions_fingerprint(questions: Mapping[str, str]) -> str:
    """SHA-256 of labels and wording, whatever their order: 64 hex digits."""
    return hashlib.sha256(json.dumps(dict(questions), sort_keys=True).encode()).hexdigest()


def in_plain_words(label: str) -> str:
    """ "StatusTime", "Lab_value" -> "status time", "lab value"; an acronym stays as it is."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W_A-Z]+|[A-Z]+", label)
    return " ".join(part if part.isupper() else part.lower() for part in parts) or label
