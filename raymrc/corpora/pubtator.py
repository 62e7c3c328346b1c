"""PubTator: abstracts with mentions of concepts, as in BC5CDR.

    PMID|t|title, PMID|a|abstract, PMID<tab>start<tab>end<tab>text<tab>type<tab>concepts

The note's text is title, one blank, abstract; offsets count its characters. A mention's concept ids are
its attribute ("concept", "D014786|D006311"). Relations of this format (CID lines) join concepts of a
whole document, not mentions. Relations between all mentions of two concepts would be pairs that the
text does not state, so they are ignored.
"""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

from raymrc.corpora.note import Note, Span
from raymrc.corpora.problems import Reading, read_lines

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
        lines = enumerate(read_lines(file, reading.problems) or (), start=1)
        for is_document, block in groupby(lines, key=lambda numbered: bool(numbered[1].strip())):
            if is_document:
                _read_document(list(block), file, reading)
    return reading


def _read_document(lines: list[tuple[int, str]], path: Path, reading: Reading) -> None:
    problems, first_line = reading.problems, lines[0][0]
    parts: dict[str, tuple[str, str]] = {}
    rest = []
    for number, line in lines:
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
            first_line,
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
        elif fault := _find_fault(cells, text):
            problems.error(path, number, fault)
        else:
            fragments = ((int(cells[1]), int(cells[2])),)
            attributes = (("concept", cells[5]),) if len(cells) > 5 and cells[5] else ()
            spans.append(Span(f"T{len(spans) + 1}", cells[4], fragments, attributes))
    reading.add(Note(note_id, text, tuple(spans), group=note_id), path, first_line)


def _find_fault(cells: list[str], text: str) -> str:
    """What is wrong with a mention, and what to do; "" if nothing is."""
    if len(cells) < 5 or not (cells[1].isdigit() and cells[2].isdigit()) or not cells[4].strip():
        return "is not 'id start end text type concept', tab-separated; correct the line"
    start, end = int(cells[1]), int(cells[2])
    place = f"{cells[4]} {start}-{end}"
    if start >= end:
        return f"{place} ends before it starts; correct the offsets"
    if end > len(text):
        return f"{place} reaches past the note's end ({len(text)} characters); correct the offsets"
    if text[start:end] != cells[3]:
        return f"{place}: the text column differs from the note there; correct one of them"
    return ""
