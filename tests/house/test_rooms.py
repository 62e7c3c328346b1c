"""Promise: rooms and files stay small, a name means one thing, and prose stays readable.

Nobody would notice a failure, because each change adds only a few lines to the nearest file.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGE = ROOT / "raymrc"
MODULES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
MAX_FILE_LINES = 600
MAX_ROOM_LINES = 4000
MAX_PROSE_COLUMNS = 110
MAX_README_LINES = 120
MAX_DECISION_LINES = 35

PAPERS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "dashboards").glob("*.md"), *(ROOT / "docs").rglob("*.md")],
    key=lambda path: path.as_posix(),
)


def count_lines(*paths: Path) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def public_names(path: Path) -> set[str]:
    """Classes, functions and values that a module defines for others."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {
                name.id for t in targets for name in ast.walk(t) if isinstance(name, ast.Name)
            }
    return {name for name in names if not name.startswith("_")}


def test_no_file_is_longer_than_six_hundred_lines():
    lines = {path.relative_to(ROOT).as_posix(): count_lines(path) for path in MODULES}
    assert {name: size for name, size in lines.items() if size > MAX_FILE_LINES} == {}


def test_no_room_is_larger_than_four_thousand_lines():
    lines = {room.name: count_lines(*room.rglob("*.py")) for room in ROOMS}
    assert {name: size for name, size in lines.items() if size > MAX_ROOM_LINES} == {}


def test_a_public_name_is_defined_once_in_the_package():
    homes = defaultdict(list)
    for path in MODULES:
        for name in public_names(path):
            homes[name].append(path.relative_to(ROOT).as_posix())
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_states_its_content_its_imports_and_its_entry_points(room):
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))) or ""
    sentences = re.split(r"[.:]\s+", text)
    assert len(sentences) >= 3, text
    assert "import" in text and "nter" in text, "it says what it may import and where to enter"


def test_the_readme_fits_a_hundred_and_twenty_lines():
    assert count_lines(ROOT / "README.md") <= MAX_README_LINES


@pytest.mark.parametrize(
    "paper", sorted((ROOT / "docs" / "decisions").glob("0*.md")), ids=lambda path: path.stem
)
def test_a_decision_fits_half_a_page(paper):
    assert count_lines(paper) <= MAX_DECISION_LINES


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_prose_has_at_most_a_hundred_and_ten_columns(paper):
    is_code, wide = False, []
    for number, line in enumerate(paper.read_text(encoding="utf-8").splitlines(), start=1):
        is_code ^= line.startswith("```")
        is_prose = (
            not is_code and not line.lstrip().startswith(("|", "!", "<")) and line[:4].strip()
        )
        if is_prose and len(line) > MAX_PROSE_COLUMNS and "](" not in line[-100:]:
            wide.append(number)
    assert wide == []
