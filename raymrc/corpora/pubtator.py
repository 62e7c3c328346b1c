"""PubTator: abstracts with mentions of concepts, as in BC5CDR.

    PMID|t|title, PMID|a|abstract, PMID<tab>start<tab>end<tab>text<tab>type<tab>concepts

The note's text is title, one blank, abstract; offsets count its characters. A mention's concept ids are
its attribute ("concept", "D014786|D006311"). Relations of this format (CID lines) join concepts of a
whole document, not mentions. Relations between all mentions of two concepts would be pairs that the
text does not state, so they are ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from raymrc.corpora.note import Note, Span
from raymrc.corpora.problems import NotePlace, Problems, Reading, read_lines

FILE_PATTERNS = ("*.PubTator.txt", "*.PubTator", "*.pubtator")


def read_pubtator(path: Path) -> Reading:
    """Read a file, or a folder's files by `FILE_PATTERNS`; a blank line ends a document."""
    reading = Reading()
    files = [path]
    if path.is_dir():
        files = sorted({file for ending in FILE_PATTERNS for file in path.glob(ending)})
        if not files:
            reading.problems.error(path, None, f"has no file named {' or '.join(FILE_PATTERNS)}")
    for file in files:
        document: _Document | None = None
        for number, line in enumerate(read_lines(file, reading.problems) or (), start=1):
            if not line.strip():
                _finish(document, file, reading)
                document = None
                continue
            document = document or _Document(number)
            document.lines.append((number, line))
        _finish(document, file, reading)
    return reading


@dataclass(slots=True)
class _Document:
    first_line: int
    lines: list[tuple[int, str]] = field(default_factory=list)


def _finish(document: _Document | None, path: Path, reading: Reading) -> None:
    if document is None:
        return
    problems = reading.problems
    parts: dict[str, tuple[str, str]] = {}
    rest = []
    for number, line in document.lines:
        match = re.fullmatch(r"([^|\t]+)\|([ta])\|(.*)", line)
        if not match:
            rest.append((number, line))
        elif match[2] in parts:
            problems.error(
                path, number, f"is a second {match[2]} line; separate documents by a blank line"
            )
        else:
            parts[match[2]] = (match[1], match[3])
    if len(parts) < 2 or parts["t"][0] != parts["a"][0]:
        problems.error(
            path,
            document.first_line,
            "needs a title (id|t|...) and an abstract (id|a|...) with the same id",
        )
        return
    note_id = parts["t"][0]
    text = f"{parts['t'][1]} {parts['a'][1]}"
    spans: list[Span] = []
    for number, line in rest:
        cells = line.split("\t")
        if cells[0] != note_id:
            problems.error(path, number, f"does not belong to document {note_id}; correct the id")
        elif len(cells) == 4 and not cells[1].isdigit():
            continue  # a relation between concepts
        else:
            span = _read_mention(cells, f"T{len(spans) + 1}", text, path, number, problems)
            if span is not None:
                spans.append(span)
    reading.add(
        Note(note_id, text, tuple(spans), group=note_id), NotePlace(path, document.first_line)
    )


def _read_mention(
    cells: list[str], span_id: str, text: str, path: Path, line: int, problems: Problems
) -> Span | None:
    if len(cells) < 5 or not (cells[1].isdigit() and cells[2].isdigit()) or not cells[4].strip():
        problems.error(
            path, line, "is not 'id start end text type concept', tab-separated; correct the line"
        )
        return None
    start, end, label = int(cells[1]), int(cells[2]), cells[4]
    where = f"{label} {start}-{end}"
    if start >= end:
        problems.error(path, line, f"{where} ends before it starts; correct the offsets")
    elif end > len(text):
        problems.error(
            path,
            line,
            f"{where} reaches past the note's end ({len(text)} characters); correct the offsets",
        )
    elif text[start:end] != cells[3]:
        problems.error(
            path,
            line,
            f"{where}: the text column differs from the note there; correct one of them",
        )
    else:
        concept = cells[5] if len(cells) > 5 else ""
        return Span(span_id, label, ((start, end),), (("concept", concept),) if concept else ())
    return None
