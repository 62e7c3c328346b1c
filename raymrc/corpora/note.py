"""A note, its spans and its relations as plain values.

Offsets are half-open and count characters from the start of the note's text. A span may have several
fragments; its envelope runs from the first start to the last end.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Span:
    """A typed stretch of a note.

    Args:
        id: unique within the note, such as "T3".
        label: its type.
        fragments: (start, end) pairs, half-open, ascending; several if discontinuous.
        attributes: (name, value) pairs in file order; value is "" for a flag.
    """

    id: str
    label: str
    fragments: tuple[tuple[int, int], ...]
    attributes: tuple[tuple[str, str], ...] = ()

    @property
    def start(self) -> int:
        return self.fragments[0][0]

    @property
    def end(self) -> int:
        return self.fragments[-1][1]

    @property
    def is_discontinuous(self) -> bool:
        return len(self.fragments) > 1

    @property
    def value(self) -> str:
        """Value of the attribute named after the label, such as StatusTimeVal of a StatusTime, or "".

        Source: SHAC's labelled arguments, Lybarger et al. 2021, J Biomed Inform 113:103631.
        """
        return dict(self.attributes).get(value_attribute(self.label), "")


def value_attribute(label: str) -> str:
    """Name of the attribute that holds a labelled argument's value."""
    return f"{label}Val"


class Join(NamedTuple):
    """What a relation may join: its label, the labels of head and tail, the tail's value."""

    relation: str
    head: str
    tail: str
    value: str = ""


@dataclass(frozen=True, slots=True)
class Relation:
    """A typed, directed pair of spans, named by span id."""

    id: str
    label: str
    head: str
    tail: str


@dataclass(frozen=True, slots=True)
class Note:
    """A document. `repr` leaves out its text, so that it cannot reach a log by accident.

    Args:
        id: unique in its corpus.
        text: the characters that offsets count.
        group: patient or article if known, else the id; notes of one group stay in one fold.
        site: institution or source, "" if unknown.
    """

    id: str
    text: str = field(repr=False)
    spans: tuple[Span, ...] = field(default=(), repr=False)
    relations: tuple[Relation, ...] = field(default=(), repr=False)
    group: str = ""
    site: str = ""

    def __repr__(self) -> str:
        return f"Note(id={self.id!r}, {len(self.text)} characters, {len(self.spans)} spans)"


@dataclass(frozen=True, slots=True)
class Corpus:
    """Notes with one label set.

    Args:
        notes: in a stable order, with unique ids.
        labels: span labels, in the order of questions, prompts and heads.
    """

    notes: tuple[Note, ...] = field(repr=False)
    labels: tuple[str, ...]
    relation_labels: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over labels, texts, spans, relations, groups and sites, 64 hex digits."""
        digest = hashlib.sha256(json.dumps([self.labels, self.relation_labels]).encode())
        for note in self.notes:
            spans = [(s.id, s.label, s.fragments, s.attributes) for s in note.spans]
            relations = [(r.id, r.label, r.head, r.tail) for r in note.relations]
            body = [note.id, note.group, note.site, note.text, spans, relations]
            digest.update(json.dumps(body).encode())
        return digest.hexdigest()
