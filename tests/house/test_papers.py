"""Promise: every link, command and module that the documents name exists.

Nobody would notice a failure, because nobody runs the README.
"""

from __future__ import annotations

import re
import runpy
import subprocess
from pathlib import Path

import pytest
import typer.main

from raymrc.cli import app
from tests.paths import ROOT

PAPERS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "dashboards").glob("*.md"), *(ROOT / "docs").rglob("*.md")],
    key=lambda path: path.as_posix(),
)
STUDIES = sorted((ROOT / "studies").rglob("*.yaml"))
COMMANDS = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))

names = pytest.mark.parametrize("paper", PAPERS, ids=lambda path: path.relative_to(ROOT).as_posix())


def code_of(paper: Path) -> str:
    """The text in backticks, in fences, or indented by four columns."""
    text = paper.read_text(encoding="utf-8")
    fences = re.findall(r"^```.*?^```", text, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`[^`\n]+`", text)
    indented = re.findall(r"^ {4}\S.*", text, flags=re.MULTILINE)
    return "\n".join([*fences, *spans, *indented])


@names
def test_every_local_link_of_a_document_has_a_target(paper):
    for target in re.findall(r"\]\(([^)\s]+)\)", paper.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:|#", target):
            assert (paper.parent / target.partition("#")[0]).exists(), target


@names
def test_every_command_in_a_document_exists(paper):
    code = code_of(paper)
    named = set(re.findall(r"(?:^|[`/\s])raymrc (?!\d)([a-z]\w*)", code))
    assert named <= COMMANDS
    assert set(re.findall(r"\bmake ([a-z]+)", code)) <= TARGETS
    for study in re.findall(r"studies/[\w/-]+\.yaml", code):
        assert (ROOT / study).exists(), study


@names
def test_every_module_that_a_document_names_exists(paper):
    named = re.findall(r"`([\w./-]+/\w+\.py)`", paper.read_text(encoding="utf-8"))
    homes = (ROOT, ROOT / "raymrc", ROOT / "tests", paper.parent)
    missing = [name for name in named if not any((home / name).exists() for home in homes)]
    assert missing == []


def test_the_readme_names_every_command_and_the_list_of_studies_names_every_study():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for name in COMMANDS if f"raymrc {name}" not in readme]
    studies = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    assert not [path for path in STUDIES if str(path.relative_to(ROOT)) not in studies]


def test_the_changelog_has_a_section_for_unreleased_changes():
    assert "\n## Unreleased\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_pages_that_make_docs_writes_are_up_to_date():
    pages = runpy.run_path(str(ROOT / "docs" / "build.py"))["pages"]()
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run make docs"


def test_no_tracked_file_looks_like_a_note_under_a_data_use_agreement():
    """MIMIC, and therefore 2018 n2c2, marks removed text with two stars in brackets."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout, so there are no tracked files to look at")
    blanked = re.compile(rb"\[\*\*[^*\n]{0,80}\*\*\](?!\()")
    found = []
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and blanked.search(path.read_bytes()):
            found.append(name)
    assert not found
