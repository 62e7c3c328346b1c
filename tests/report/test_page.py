"""Promise: a study's page shows all that its ledger says, to whoever opens the one file, wherever that is.

A plot that is not drawn, a request to a network that a hospital's browser refuses, or a table that runs out
of a phone's screen would be seen by readers alone. So a real browser opens the pages of a study that was
trained and of one made up to have something for every section.
"""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raymrc.cli import main
from raymrc.errors import StudyError
from raymrc.report import write
from raymrc.report.page import build_page
from raymrc.report.sections import build_sections
from raymrc.study.conclusions import sentences
from tests.report.making import FEW, make_findings
from tests.test_tracking_server import Made, study  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)

EVERYTHING = {
    "winners", "gaps", "size", "transfer", "search", "labels", "kept", "races", "failures", "repeat",
}  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium here to open pages with (make tools)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=QUIET.split())
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_findings(tmp_path_factory.mktemp("rich"))


def look_at(browser: Any, page: Path, width: int, height: int = 900) -> None:
    """Opens it, and holds it to what every page promises."""
    opened = browser.new_page(viewport={"width": width, "height": height})
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: said.append(request.url))
    opened.goto(page.as_uri())
    opened.wait_for_function("document.documentElement.dataset.drawn === 'all'", timeout=60_000)
    assert [text for text in said if text != page.as_uri() and not text.startswith("data:")] == []
    plots = opened.locator(".plot")
    assert plots.count() >= 3
    for number in range(plots.count()):
        plot = plots.nth(number)
        assert plot.locator("svg.main-svg").count() >= 1, plot.get_attribute("id")
        marks = plot.locator(".scatterlayer path.point, .heatmaplayer image")
        assert marks.count() >= 1, f"{plot.get_attribute('id')} is empty"
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    cut = opened.evaluate(
        """[...document.querySelectorAll("h1, h2, h3, p, dd, .plot")]
            .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
            .map(e => e.id || e.textContent)"""
    )
    assert cut == []
    opened.close()


@pytest.mark.slow
def test_a_real_study_s_page_opens_whole_and_asks_nobody(browser, study: Made, capsys):  # noqa: F811
    folder = study.folder / "page"
    assert main(["report", str(study.spec.path), "--html", str(folder)]) == 0
    assert "the page:" in capsys.readouterr().err
    (page,) = folder.iterdir()
    for width in (1280, 400):
        look_at(browser, page, width)
    text = page.read_text()
    assert "final test" in text.lower()
    for note in study.corpus.notes:
        assert note.text.strip()[:30] not in text


def test_a_page_with_something_in_every_section_is_drawn_at_every_width(browser, rich, tmp_path):
    assert {section.id for section in build_sections(rich)} >= EVERYTHING
    page = write(rich, tmp_path)
    for width in (1280, 400):
        look_at(browser, page, width)
    look_at(browser, write(make_findings(tmp_path, FEW), tmp_path), 1280)


def test_the_page_says_what_the_terminal_says_and_every_winner_s_figures(rich):
    page = build_page(rich)
    for sentence in sentences(rich.conclusions):
        assert html.escape(sentence, quote=True).replace("&#x27;", "&#39;") in page
    for summary in rich.summaries:
        assert summary.cell.name in page
        assert f"{100 * (summary.winner or summary.leader).strict.mean:.2f}" in page
    for shown in ("raymrc run ", "torch 2.13.0", rich.fold_runs[0].fold_run.corpus_fingerprint):
        assert shown in page, shown
    assert "the loss is not a number at step 3" in page
    assert page == build_page(rich), "the same ledger gives the same page"


def test_what_comes_from_a_study_is_words_and_never_markup(rich):
    page = build_page(rich)
    assert "<b>the leader</b>" not in page
    assert "&lt;b&gt;the leader&lt;/b&gt;" in page
    scripts = re.findall(r"<script[^>]*>", page)
    assert len(scripts) == 3 and not any("src" in script for script in scripts)
    assert '<link rel="icon" href="data:,">' in page and page.count("<link") == 1


def test_a_page_that_cannot_be_written_gets_a_sentence_and_leaves_nothing(rich, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="cannot be written"):
        write(rich, tmp_path / "file" / "folder")
    page = write(rich, tmp_path / "new" / "folder")
    assert [path.name for path in page.parent.iterdir()] == ["rich.html"]
