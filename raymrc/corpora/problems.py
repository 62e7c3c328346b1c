"""What readers find wrong, as values: `read_corpus` raises the errors, `validate` lists them all.

A message names ids, labels and offsets, never a note's text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from raymrc.corpora.note import Note

ERROR = "error"
WARNING = "warning"


@dataclass(frozen=True, slots=True)
class CorpusProblem:
    """One breach of the data contract.

    Args:
        severity: "error" stops reading, "warning" does not.
        path: the file, as the user would name it.
        line: from 1; None where the whole file is meant.
        message: what is wrong; what to do.
    """

    severity: str
    path: str
    line: int | None
    message: str

    def __str__(self) -> str:
        where = self.path if self.line is None else f"{self.path}:{self.line}"
        return f"{where}: {self.message}"


@dataclass(slots=True)
class Problems:
    """Collects what a reader finds, in the order of the files."""

    found: list[CorpusProblem] = field(default_factory=list)

    def error(self, path: Path, line: int | None, message: str) -> None:
        self.found.append(CorpusProblem(ERROR, str(path), line, message))

    def warn(self, path: Path, line: int | None, message: str) -> None:
        self.found.append(CorpusProblem(WARNING, str(path), line, message))


@dataclass(frozen=True, slots=True)
class NotePlace:
    """Where a note begins: its file, and its line where a file holds many."""

    path: Path
    line: int | None = None


@dataclass(slots=True)
class Reading:
    """What a reader brings back, before anything is decided about it.

    Args:
        notes: those that could be read, in file order.
        places: note id -> where it is.
        problems: in file order.
    """

    notes: list[Note] = field(default_factory=list, repr=False)
    places: dict[str, NotePlace] = field(default_factory=dict, repr=False)
    problems: Problems = field(default_factory=Problems)

    def add(self, note: Note, place: NotePlace, annotations: Path | None = None) -> None:
        """Takes a note in, unless its id is taken: that is an error.

        Args:
            annotations: the file of its spans, where that is not the place's.
        """
        first = self.places.get(note.id)
        if first is not None:
            where = str(first.path) if first.line is None else f"{first.path}:{first.line}"
            self.problems.error(
                place.path,
                place.line,
                f"note id {note.id} is already at {where}; rename one of them or read them apart",
            )
            return
        if not note.text.strip():
            self.problems.warn(place.path, place.line, f"note {note.id} is empty; leave it out")
        seen: dict[object, str] = {}
        for span in note.spans:
            first_id = seen.setdefault((span.label, span.fragments), span.id)
            if first_id != span.id:
                self.problems.warn(
                    annotations or place.path,
                    place.line,
                    f"note {note.id}: {span.id} repeats {first_id} ({span.label} "
                    f"{span.start}-{span.end}); delete one of them",
                )
        self.places[note.id] = place
        self.notes.append(note)


def read_text(path: Path, problems: Problems) -> str | None:
    """The file's characters as they are: UTF-8, no translation of line ends, nothing stripped.

    A byte order mark stays a character, because brat counts it. None, and a problem, where
    the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        problems.error(path, None, f"cannot be read ({error.strerror}); check path and permissions")
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        problems.error(
            path, None, f"byte {error.start} (from 0) is not UTF-8; save the file as UTF-8"
        )
        return None


def read_lines(path: Path, problems: Problems) -> list[str] | None:
    """Lines without their ends (LF or CRLF) and without a byte order mark; None as `read_text`.

    Only LF ends a line: `splitlines` would also cut at characters such as U+2028 or U+0085,
    which occur inside notes.
    """
    text = read_text(path, problems)
    if text is None:
        return None
    return [line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n")]


def read_table(path: Path, column: str, reading: Reading) -> dict[str, str]:
    """A column of a tab-separated file with a header line, by its column `doc_id`.

    Such a file says what a format has no place for: `sites.tsv` (doc_id, site) and `groups.tsv`
    (doc_id, group). Other columns are ignored, and so are ids that are not in the corpus, so
    that a part of a corpus can keep the file of the whole. Notes that it does not name are
    warned of: a patient whose notes fall into two folds is a leak that nobody would see.
    """
    if not path.exists():
        return {}
    problems = reading.problems
    lines = read_lines(path, problems)
    if lines is None:
        return {}
    header = lines[0].split("\t")
    missing = [name for name in ("doc_id", column) if name not in header]
    if missing:
        problems.error(path, 1, f"has no column {missing[0]}; the first line must name the columns")
        return {}
    key, value = header.index("doc_id"), header.index(column)
    table: dict[str, str] = {}
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if not line:
            continue
        if len(cells) != len(header):
            problems.error(
                path, number, f"has {len(cells)} cells, the header {len(header)}; mend the line"
            )
        elif table.get(cells[key], cells[value]) != cells[value]:
            problems.error(
                path, number, f"gives note {cells[key]} a second {column}; delete one of the lines"
            )
        else:
            table[cells[key]] = cells[value]
    unnamed = [note.id for note in reading.notes if note.id not in table]
    if unnamed:
        problems.warn(
            path,
            None,
            f"names no {column} for {len(unnamed)} notes, first {unnamed[0]}; add their lines",
        )
    return table
