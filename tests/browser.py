"""Debian's Chromium, driven by playwright, for tests of what people look at."""

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
    """A browser of playwright's synchronous kind."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield chromium
        finally:
            chromium.close()


class Visit:
    """A page that is open, with what went wrong there.

    Args:
        wrong: messages of errors and warnings in its console, and addresses that it asked for.
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
        """Scrolls each plot into sight, waits until it is drawn, and counts those that have a drawing."""
        plots, drawn = self.page.locator(".plot"), self.page.locator("[data-state=drawn]")
        for place in range(plots.count()):
            plots.nth(place).scroll_into_view_if_needed()
            # Not `wait_for_function`: the page forbids code from strings.
            plots.nth(place).and_(drawn).wait_for(timeout=60_000)
        return int(self.page.locator(".plot .main-svg:first-of-type").count())

    @property
    def overflow(self) -> int:
        """Pixels that the page is wider than the window."""
        found = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return int(self.page.evaluate(found))
