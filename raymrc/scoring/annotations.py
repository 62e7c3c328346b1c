"""Gold and system folders of .ann files, paired by name. Their .txt files are not read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from raymrc.corpora.brat import ANYTHING, find_pairs, parse_annotations
from raymrc.corpora.note import Relation, Span
from raymrc.corpora.problems import CorpusProblem, Problems, read_lines
from raymrc.errors import CorpusError, first_few

_EVENT_ATTRIBUTE = re.compile(r"A\S*\s+\S+\s+E\d")


@dataclass(frozen=True, slots=True)
class Annotations:
    """Content of one .ann, in file order."""

    spans: tuple[Span, ...] = ()
    relations: tuple[Relation, ...] = ()
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pairs:
    """All gold notes with the system's annotations.

    Args:
        pairs: gold and system side of each note, by note id.
        missing: gold notes without a system file; they are in `pairs` with an empty system side.
        unjudged: system files without gold; they are not in `pairs`.
    """

    pairs: tuple[tuple[Annotations, Annotations], ...]
    missing: tuple[str, ...]
    unjudged: tuple[str, ...]


def pair_folders(gold: Path, system: Path, kinds: str, judged: str) -> Pairs:
    """Read both folders, subfolders included.

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

    def read(path: Path | None) -> Annotations:
        return Annotations() if path is None else _read(path, kinds, judged, problems)

    pairs = tuple(
        (read(gold_files[note_id]), read(system_files.get(note_id)))
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
    pairs = find_pairs(folder)
    files = {stem: folder / f"{stem}.ann" for stem in pairs if ".ann" in pairs[stem]}
    if not files:
        raise CorpusError(f"{folder}: has no .ann file; give a folder of .ann files")
    return files


def _read(path: Path, kinds: str, judged: str, problems: list[CorpusProblem]) -> Annotations:
    found = Problems()
    lines = read_lines(path, found) or []
    # Lines of other kinds are blanked, not removed, so that line numbers stay correct.
    # Attributes of events are ignored; the reader would give them to the trigger.
    kept = _last_of_each_id(
        line if line.startswith(tuple(kinds)) and not _EVENT_ATTRIBUTE.match(line) else ""
        for line in lines
    )
    spans, relations = parse_annotations(kept, None, path, ANYTHING, found)
    problems += [
        problem
        for problem in found.errors
        if problem.line is None or lines[problem.line - 1][0] in judged
    ]
    return Annotations(spans, relations, tuple(kept))


def _last_of_each_id(lines: Iterable[str]) -> list[str]:
    """Replace the first line of a repeated id by the last one, and blank the others.

    The official scripts do the same by keeping lines in a dictionary by id.
    """
    named = [(line.partition("\t")[0] if "\t" in line else "", line) for line in lines]
    last = dict(named)
    return [last.pop(name, "") if name else line for name, line in named]
