"""Counts and problems of a corpus, before anything is trained.

    path -> reader -> notes, problems -> counts

The problems come from the reader, so `validate_corpus` and `read_corpus` cannot disagree.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

from raymrc.corpora.formats import read_notes
from raymrc.corpora.note import Note
from raymrc.corpora.problems import ERROR, CorpusProblem


@dataclass(frozen=True, slots=True)
class ValidationCounts:
    """Counts of notes, spans and relations. A span's extent runs from its first start to its last end.

    Args:
        groups: patients or articles, as far as known.
        nested: spans strictly inside another.
        same_extent: pairs of spans with equal extent and different labels.
        crossing: pairs that overlap without one containing the other.
        overlapping: spans whose extent shares a character with another's.
        discontinuous: spans with several fragments.
        empty_notes: notes of white space only.
        notes_without_spans: empty notes included.
        duplicate_spans: spans that repeat label and fragments of an earlier one.
        duplicate_texts: notes that repeat an earlier note's text, white space ignored.
        labels, relation_labels: count by label, in alphabetical order.
    """

    notes: int
    groups: int
    spans: int
    relations: int
    nested: int
    same_extent: int
    crossing: int
    overlapping: int
    discontinuous: int
    empty_notes: int
    notes_without_spans: int
    duplicate_spans: int
    duplicate_texts: int
    labels: Mapping[str, int]
    relation_labels: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Validation:
    """Result of `validate_corpus`; `ok` means that `read_corpus` would succeed."""

    path: str
    reader: str
    counts: ValidationCounts
    problems: tuple[CorpusProblem, ...]

    @property
    def ok(self) -> bool:
        return not any(problem.severity == ERROR for problem in self.problems)

    def to_json(self) -> str:
        """One object: path, reader, ok, every count by name, and the list of problems."""
        problems = [asdict(problem) for problem in self.problems]
        head = {"path": self.path, "reader": self.reader, "ok": self.ok}
        return json.dumps({**head, **asdict(self.counts), "problems": problems}, indent=2)


def validate_corpus(path: Path, reader: str) -> Validation:
    """Read a corpus and report its problems instead of raising them.

    Unreadable notes and spans are in the problems, not in the counts.

    Raises:
        CorpusError: there is no such reader.
    """
    reading = read_notes(path, reader)
    return Validation(str(path), reader, count_notes(reading.notes), tuple(reading.problems.found))


def count_notes(notes: Sequence[Note]) -> ValidationCounts:
    labels = Counter(span.label for note in notes for span in note.spans)
    relation_labels = Counter(relation.label for note in notes for relation in note.relations)
    texts = Counter(" ".join(note.text.split()) for note in notes)
    empty_notes = texts.pop("", 0)
    distinct_spans = sum(len({(s.label, s.fragments) for s in note.spans}) for note in notes)
    return ValidationCounts(
        notes=len(notes),
        groups=len({note.group or note.id for note in notes}),
        spans=labels.total(),
        relations=relation_labels.total(),
        discontinuous=sum(span.is_discontinuous for note in notes for span in note.spans),
        empty_notes=empty_notes,
        notes_without_spans=sum(not note.spans for note in notes),
        duplicate_spans=labels.total() - distinct_spans,
        duplicate_texts=texts.total() - len(texts),
        labels=dict(sorted(labels.items())),
        relation_labels=dict(sorted(relation_labels.items())),
        **_count_overlaps(notes),
    )


def _count_overlaps(notes: Sequence[Note]) -> dict[str, int]:
    counts = dict.fromkeys(("nested", "same_extent", "crossing", "overlapping"), 0)
    for note in notes:
        nested, overlapping = set(), set()
        for first, second in combinations(sorted(note.spans, key=lambda s: (s.start, -s.end)), 2):
            if second.start >= first.end:
                continue
            overlapping |= {first.id, second.id}
            if (first.start, first.end) == (second.start, second.end):
                counts["same_extent"] += first.label != second.label
            elif second.end <= first.end:
                nested.add(second.id)
            else:
                counts["crossing"] += 1
        counts["nested"] += len(nested)
        counts["overlapping"] += len(overlapping)
    return counts
