"""A study's findings as one HTML page that needs nothing else: no network, no server, no other file.

The same findings give the same bytes. Tables are in the page as they are; plots are drawn by plotly.js, which
is in it once, when they come into sight.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from raymrc.analysis.findings import Findings
from raymrc.errors import StudyError
from raymrc.report.files import put


def write(findings: Findings, folder: Path) -> Path:
    """The page, STUDY.html in `folder`; an older one gives way.

    Raises:
        StudyError: it cannot be written.
    """
    return _put(folder / f"{findings.spec.study}.html", build_page(findings))


def write_plots(findings: Findings, folder: Path) -> Path:
    """The page's plots one by one, as Plotly's JSON (`plotly.io.read_json` opens it), in `plots` in `folder`,
    which is emptied of older ones.

    Raises:
        StudyError: they cannot be written.
    """
    from raymrc.report.sections import build_sections

    folder = folder / "plots"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.json"):
            old.unlink(missing_ok=True)
    except OSError as error:
        raise StudyError(f"{folder}: cannot be written ({error.strerror})") from None
    for section in build_sections(findings):
        for number, plot in enumerate(section.plots, start=1):
            _put(folder / f"{section.id}-{number}.json", data(plot.figure))
    return folder


def build_page(findings: Findings) -> str:
    """The page's text; see `write`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    from raymrc.analysis.conclusions import sentences
    from raymrc.report.sections import build_facts, build_sections

    environment = Environment(
        loader=PackageLoader("raymrc.report", "look"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data"] = lambda values: Markup(data(values))

    def own(name: str) -> Markup:
        return Markup(resources.files("raymrc.report").joinpath("look", name).read_text("utf-8"))

    return environment.get_template("page.html").render(
        study=findings.spec.study,
        question=_question(findings.spec.path),
        facts=build_facts(findings),
        # A line does not end between a number and its sign.
        decision=[s.replace(" %", "\u00a0%") for s in sentences(findings.conclusions)],
        sections=build_sections(findings),
        repeat=f"raymrc run {findings.spec.arguments}",
        style=own("page.css"),
        script=own("page.js"),
        plotly=Markup(get_plotlyjs()),
    )


def _put(path: Path, text: str) -> Path:
    return put(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def data(values: Any) -> str:
    """JSON for a script element, which nothing in it can end."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":"), default=_plain)
    return text.replace("<", "\\u003c")


def _plain(value: Any) -> Any:
    """plotly keeps some lists as tuples and arrays."""
    return value.tolist()


def _question(path: str) -> str:
    """A study file opens with its question, as a comment."""
    try:
        first = Path(path).read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        return ""
    return first.removeprefix("#").strip() if first.startswith("#") else ""
