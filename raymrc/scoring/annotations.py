"""Gold and system folders of .ann files, paired by name. Their .txt files are not read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raymrc.corpora.brat import ANYTHING, parse_annotations
from raymrc.corpora.note import Relation, Span
from raymrc.corpora.problems import (
    ERROR,
    CorpusProblem,
    Problems,
    read_lines,
)
from raymrc.errors import CorpusError, first_few

_EVENT_ATTRIBUTE = re.compile(r"A\S*\s+\S+\s+E\d")


@dataclass(frozen=True, slots=True)
class Annotations:
    """Content of one .ann, in file order."""

    spans: tuple[Span, ...] = ()
    relations: tuple[Relation, ...] = ()
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NotePair:
    """A note's gold and system annotations; a missing side is empty."""

    note_id: str
    gold: Annotations
    system: Annotations


@dataclass(frozen=True, slots=True)
class Pairs:
    """All gold notes with the system's annotations.

    Args:
        missing: gold notes without a system file; they are in `pairs` with an empty system side.
        unjudged: system files without gold; they are not in `pairs`.
    """

    pairs: tuple[NotePair, ...]
    missing: tuple[str, ...]
    unjudged: tuple[str, ...]


def pair_folders(gold: Path, system: Path, kinds: str, judged: str) -> Pairs:
    """Read both folders, subfolders included; notes are ordered by id.

    Args:
        kinds: first letters of the lines to read, such as "TRE".
        judged: those kinds whose errors are reported; the others only help to resolve ids.

    Raises:
        CorpusError: a folder has no .ann files, the folders have no name in common, or lines are
            broken (all are listed).
    """
    gold_files, system_files = _annotation_files(gold), _annotation_files(system)
    if not gold_files.keys() & system_files.keys():
        raise CorpusError(
            f"{system}: has no .ann file of the same name as one in {gold}; give the gold folder "
            "first, then the system's folder for the same notes"
        )
    problems: list[CorpusProblem] = []

    def read(files: dict[str, Path], note_id: str) -> Annotations:
        if note_id not in files:
            return Annotations()
        return _read(files[note_id], kinds, judged, problems)

    pairs = tuple(
        NotePair(note_id, read(gold_files, note_id), read(system_files, note_id))
        for note_id in sorted(gold_files)
    )
    if problems:
        raise CorpusError([str(problem) for problem in problems])
    return Pairs(
        pairs,
        missing=tuple(sorted(gold_files.keys() - system_files.keys())),
        unjudged=tuple(sorted(system_files.keys() - gold_files.keys())),
    )


def describe_unpaired(missing: Sequence[str], unjudged: Sequence[str]) -> str:
    """One line each for missing and unjudged notes, "" without any."""
    sides = (
        (missing, "gold notes have no system file and count as missed"),
        (unjudged, "system files have no gold and are ignored"),
    )
    return "".join(f"{len(ids)} {what}: {first_few(ids)}\n" for ids, what in sides if ids)


def _annotation_files(folder: Path) -> dict[str, Path]:
    """Path below the folder without its suffix -> file."""
    if not folder.is_dir():
        raise CorpusError(f"{folder}: is not a folder; give a folder of .ann files")
    files = {
        path.relative_to(folder).as_posix().removesuffix(".ann"): path
        for path in folder.rglob("*.ann")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }
    if not files:
        raise CorpusError(f"{folder}: has no .ann file; give a folder of .ann files")
    return files


def _read(path: Path, kinds: str, judged: str, problems: list[CorpusProblem]) -> Annotations:
    found = Problems()
    lines = read_lines(path, found) or []
    # Lines of other kinds are blanked, not removed, so that line numbers stay correct.
    # Attributes of events are ignored; the reader would give them to the trigger.
    kept = [
        line if line[:1] and line[0] in kinds and not _EVENT_ATTRIBUTE.match(line) else ""
        for line in lines
    ]
    kept = _last_of_each_id(kept)
    spans, relations = parse_annotations(kept, None, path, ANYTHING, found)
    problems += [
        problem
        for problem in found.found
        if problem.severity == ERROR
        and (problem.line is None or lines[problem.line - 1][0] in judged)
    ]
    return Annotations(spans, relations, tuple(kept))


def _last_of_each_id(lines: list[str]) -> list[str]:
    """Replace the first line of a repeated id by the last one.

    The official scripts do the same by keeping lines in a dictionary by id.
    """
    first: dict[str, int] = {}
    kept = list(lines)
    for number, line in enumerate(lines):
        name, tab, _ = line.partition("\t")
        if not tab:
            continue
        if name in first:
            kept[first[name]], kept[number] = line, ""
        else:
            first[name] = number
    return kept
