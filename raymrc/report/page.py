"""A study's findings as one self-contained HTML page: no network, no server, no other file.

The same findings give the same bytes. Tables are plain HTML; plotly.js, embedded once, draws each plot when
it scrolls into view.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from raymrc.analysis.findings import Findings
from raymrc.analysis.sentences import verdicts
from raymrc.errors import StudyError
from raymrc.report.files import put
from raymrc.report.results import gap_table
from raymrc.report.verdict import study_verdict


def write(findings: Findings, folder: Path) -> Path:
    """Writes the page to `folder`/STUDY.html, replacing an older one.

    Raises:
        StudyError: the page cannot be written.
    """
    return _put(folder / f"{findings.spec.study}.html", build_page(findings))


def write_plots(findings: Findings, folder: Path) -> Path:
    """Writes each plot as Plotly JSON (for `plotly.io.read_json`) to `folder`/plots, replacing older ones.

    Raises:
        StudyError: the plots cannot be written.
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
    """The page as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    from raymrc.report.sections import build_facts, build_sections

    environment = Environment(
        loader=PackageLoader("raymrc.report", "look"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data"] = lambda values: Markup(data(values))
    # A line does not break between a number and its percent sign.
    environment.filters["unbroken"] = lambda text: str(text).replace(" %", "\u00a0%")
    conclusions = findings.conclusions

    def read(name: str) -> Markup:
        return Markup(resources.files("raymrc.report").joinpath("look", name).read_text("utf-8"))

    return environment.get_template("page.html").render(
        study=findings.spec.study,
        question=_question(findings.spec.path),
        facts=build_facts(findings),
        verdict=study_verdict(findings).verdict,
        gap_table=gap_table(findings.summaries, conclusions) if conclusions.compared else None,
        comparisons=verdicts(conclusions),
        sections=build_sections(findings),
        repeat=f"raymrc run {findings.spec.arguments}",
        style=read("page.css"),
        script=read("page.js"),
        plotly=Markup(get_plotlyjs()),
    )


def _put(path: Path, text: str) -> Path:
    return put(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def data(values: Any) -> str:
    """JSON for a script element; no text in it can close the element."""
    # plotly keeps some lists as arrays.
    text = json.dumps(values, allow_nan=False, separators=(",", ":"), default=lambda a: a.tolist())
    return text.replace("<", "\\u003c")


def _question(path: str) -> str:
    """The study file's first line, if it is a comment."""
    try:
        first = Path(path).read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        return ""
    return first.removeprefix("#").strip() if first.startswith("#") else ""
