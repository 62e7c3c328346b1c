"""Problems that readers find, and reading files in a way that reports them.

`read_corpus` raises the errors, `validate` lists all problems. A message names ids, labels and
offsets, never a note's text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from raymrc.corpora.note import Note

ERROR = "error"
WARNING = "warning"


@dataclass(frozen=True, slots=True)
class CorpusProblem:
    """One violation of the data contract.

    Args:
        severity: ERROR stops reading, WARNING does not.
        line: counted from 1; None for the whole file.
        message: what is wrong and what to do.
    """

    severity: str
    path: str
    line: int | None
    message: str

    def __str__(self) -> str:
        return f"{_place(self.path, self.line)}: {self.message}"


def _place(path: object, line: int | None) -> str:
    return str(path) if line is None else f"{path}:{line}"


@dataclass(slots=True)
class Problems:
    """Collects problems in file order."""

    found: list[CorpusProblem] = field(default_factory=list)

    @property
    def errors(self) -> list[CorpusProblem]:
        return [problem for problem in self.found if problem.severity == ERROR]

    def error(self, path: Path, line: int | None, message: str) -> None:
        self.found.append(CorpusProblem(ERROR, str(path), line, message))

    def warn(self, path: Path, line: int | None, message: str) -> None:
        self.found.append(CorpusProblem(WARNING, str(path), line, message))


@dataclass(slots=True)
class Reading:
    """What a reader returns.

    Args:
        notes: readable notes, in file order.
        places: note id -> the file in which the note begins, and the line if it holds several notes.
        problems: in file order.
    """

    notes: list[Note] = field(default_factory=list, repr=False)
    places: dict[str, str] = field(default_factory=dict, repr=False)
    problems: Problems = field(default_factory=Problems)

    def add(
        self, note: Note, path: Path, line: int | None = None, annotations: Path | None = None
    ) -> None:
        """Add a note, or report an error if its id is used already.

        Args:
            path, line: where the note begins; no line if it is alone in the file.
            annotations: the file of its spans, if not `path`.
        """
        if note.id in self.places:
            self.problems.error(
                path,
                line,
                f"note id {note.id} is already used at {self.places[note.id]}; rename one of them "
                "or read them separately",
            )
            return
        if not note.text.strip():
            self.problems.warn(path, line, f"note {note.id} is empty; remove it")
        seen: dict[object, str] = {}
        for span in note.spans:
            first_id = seen.setdefault((span.label, span.fragments), span.id)
            if first_id != span.id:
                self.problems.warn(
                    annotations or path,
                    line,
                    f"note {note.id}: {span.id} repeats {first_id} ({span.label} "
                    f"{span.start}-{span.end}); delete one of them",
                )
        self.places[note.id] = _place(path, line)
        self.notes.append(note)


def read_text(path: Path, problems: Problems) -> str | None:
    """The file's characters, decoded as UTF-8 without any change to line ends.

    A byte order mark stays a character, because brat counts it. An unreadable file gives None and a problem.
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
    """Lines without their ends (LF or CRLF) and without a byte order mark; None as in `read_text`.

    `splitlines` is not used because it also cuts at characters such as U+2028 or U+0085, which
    occur inside notes.
    """
    text = read_text(path, problems)
    if text is None:
        return None
    return [line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n")]


def read_table(path: Path, column: str, reading: Reading) -> dict[str, str]:
    """A column of a tab-separated file with a header line, by its column `doc_id`.

    `sites.tsv` (doc_id, site) and `groups.tsv` (doc_id, group) hold what a format cannot. Other columns
    and unknown ids are ignored, so that part of a corpus can keep the file of the whole. Notes missing
    from the file give a warning, because a patient whose notes are in two folds is a hidden leak.
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
        problems.error(path, 1, f"has no column {missing[0]}; name the columns in the first line")
        return {}
    key, value = header.index("doc_id"), header.index(column)
    table: dict[str, str] = {}
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if not line:
            continue
        if len(cells) != len(header):
            problems.error(
                path, number, f"has {len(cells)} cells, the header {len(header)}; correct the line"
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
            f"has no {column} for {len(unnamed)} notes, first {unnamed[0]}; add lines for them",
        )
    return table
