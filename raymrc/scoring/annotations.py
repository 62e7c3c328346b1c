"""Gold and system folders of .ann files, paired by name. No .txt is needed, none is looked at."""

from __future__ import annotations

import re
from collections.abc import Iterable
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
    """What one .ann says, in file order."""

    spans: tuple[Span, ...] = ()
    relations: tuple[Relation, ...] = ()
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NotePair:
    """One note's two sides; a side that is missing holds nothing."""

    note_id: str
    gold: Annotations
    system: Annotations


@dataclass(frozen=True, slots=True)
class Pairs:
    """All gold notes, beside what the system made of them.

    Args:
        missing: gold notes without a system file; they are in `pairs`, as missed.
        unjudged: system files without gold; they are not in `pairs`.
    """

    pairs: tuple[NotePair, ...]
    missing: tuple[str, ...]
    unjudged: tuple[str, ...]


def pair_folders(gold: Path, system: Path, kinds: str, judged: str) -> Pairs:
    """Reads both folders, subfolders included; notes come in the order of their ids.

    Args:
        kinds: the first letters of the lines to read, such as "TRE".
        judged: those of them whose errors count; the others only help to resolve ids.

    Raises:
        CorpusError: a folder without .ann files, two folders without a name in common, or
            lines that cannot be read: all of them at once.
    """
    gold_files, system_files = _annotation_files(gold), _annotation_files(system)
    if not gold_files.keys() & system_files.keys():
        raise CorpusError(
            f"{system}: no .ann file here has the name of one in {gold}; give the gold folder "
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


def say_unpaired(missing: Iterable[str], unjudged: Iterable[str]) -> str:
    """One line each for notes that only one side has; "" where there are none."""
    said = ""
    for ids, what in (
        (tuple(missing), "gold notes have no system file and count as missed"),
        (tuple(unjudged), "system files have no gold and are left out"),
    ):
        if ids:
            said += f"{len(ids)} {what}: {first_few(ids)}\n"
    return said


def _annotation_files(folder: Path) -> dict[str, Path]:
    """Path below the folder, without its ending -> file."""
    if not folder.is_dir():
        raise CorpusError(f"{folder}: is not a folder; give a folder of .ann files")
    files = {
        path.relative_to(folder).as_posix().removesuffix(".ann"): path
        for path in folder.rglob("*.ann")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }
    if not files:
        raise CorpusError(f"{folder}: holds no .ann file; give a folder of .ann files")
    return files


def _read(path: Path, kinds: str, judged: str, problems: list[CorpusProblem]) -> Annotations:
    found = Problems()
    lines = read_lines(path, found) or []
    # A line of another kind is blanked, not removed, so that line numbers stay true.
    # Attributes of events are not looked at; the reader would give them to the trigger.
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
    """An id that is used again takes the new content but keeps its first place.

    The official scripts keep lines in a dictionary by id, so this is what they count.
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
