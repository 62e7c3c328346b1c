"""Debian's Chromium, driven by playwright, for tests of HTML pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not here (make tools)")


@contextmanager
def browser() -> Iterator[Any]:
    """A browser of playwright's synchronous API."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield chromium
        finally:
            chromium.close()


class Visit:
    """An open page and what went wrong on it.

    Args:
        wrong: errors and warnings in its console, and URLs that it requested.
    """

    def __init__(self, chromium: Any, path: Path, width: int, height: int = 900) -> None:
        self.page = chromium.new_page(viewport={"width": width, "height": height})
        self.wrong: list[str] = []
        self.page.on("console", lambda m: self.wrong.append(m.text) if m.type != "log" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", self._asked)
        self.page.goto(path.as_uri())

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.wrong.append(request.url)

    def see_all(self) -> int:
        """Scroll each plot into view, wait until it is drawn, and count the plots that have a drawing."""
        plots, drawn = self.page.locator(".plot"), self.page.locator("[data-state=drawn]")
        for place in range(plots.count()):
            plots.nth(place).scroll_into_view_if_needed()
            # `wait_for_function` does not work: the page forbids code from strings.
            plots.nth(place).and_(drawn).wait_for(timeout=60_000)
        return int(self.page.locator(".plot .main-svg:first-of-type").count())

    @property
    def overflow(self) -> int:
        """The number of pixels by which the page is wider than the window."""
        found = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return int(self.page.evaluate(found))
