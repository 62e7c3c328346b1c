"""Counts and problems of a corpus, before anything is trained.

    path -> reader -> notes, problems -> counts

The problems come from the reader, so `validate_corpus` and `read_corpus` cannot disagree.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
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
        labels, relation_labels: (label, count), sorted by label.
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
    labels: tuple[tuple[str, int], ...]
    relation_labels: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Validation:
    """Result of `validate_corpus`; `ok` means that `read_corpus` would succeed."""

    path: str
    reader: str
    counts: ValidationCounts
    problems: tuple[CorpusProblem, ...]

    @property
    def errors(self) -> tuple[CorpusProblem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == ERROR)

    @property
    def warnings(self) -> tuple[CorpusProblem, ...]:
        return tuple(problem for problem in self.problems if problem.severity != ERROR)

    @property
    def ok(self) -> bool:
        return not self.errors

    def to_json(self) -> str:
        """One object: path, reader, ok, every count by name, and the list of problems."""
        counts = asdict(self.counts)
        for name in ("labels", "relation_labels"):
            counts[name] = dict(counts[name])
        return json.dumps(
            {
                "path": self.path,
                "reader": self.reader,
                "ok": self.ok,
                **counts,
                "problems": [asdict(problem) for problem in self.problems],
            },
            indent=2,
        )


def validate_corpus(path: Path, reader: str) -> Validation:
    """Read a corpus and report its problems instead of raising them.

    Unreadable notes and spans are in the problems, not in the counts.

    Raises:
        CorpusError: there is no such reader.
    """
    reading = read_notes(Path(path), reader)
    return Validation(str(path), reader, count_notes(reading.notes), tuple(reading.problems.found))


_SUMS = (
    "nested", "same_extent", "crossing", "overlapping", "discontinuous", "empty_notes",
    "notes_without_spans", "duplicate_spans", "duplicate_texts",
)  # fmt: skip


def count_notes(notes: Iterable[Note]) -> ValidationCounts:
    notes = list(notes)
    sums: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    relation_labels: Counter[str] = Counter()
    texts = set()
    for note in notes:
        sums.update(_count_overlaps(note))
        labels.update(span.label for span in note.spans)
        relation_labels.update(relation.label for relation in note.relations)
        sums["discontinuous"] += sum(span.is_discontinuous for span in note.spans)
        sums["duplicate_spans"] += len(note.spans) - len(
            {(span.label, span.fragments) for span in note.spans}
        )
        sums["notes_without_spans"] += not note.spans
        words = " ".join(note.text.split())
        sums["empty_notes"] += not words
        sums["duplicate_texts"] += bool(words) and words in texts
        texts.add(words)
    return ValidationCounts(
        notes=len(notes),
        groups=len({note.group or note.id for note in notes}),
        spans=labels.total(),
        relations=relation_labels.total(),
        labels=tuple(sorted(labels.items())),
        relation_labels=tuple(sorted(relation_labels.items())),
        **{name: sums[name] for name in _SUMS},
    )


def _count_overlaps(note: Note) -> Counter[str]:
    counts: Counter[str] = Counter()
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
    counts.update(nested=len(nested), overlapping=len(overlapping))
    return counts
