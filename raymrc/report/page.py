"""A study's findings as one page that needs nothing beside it: no network, no folder of files.

    findings -> facts, sentences, sections -> page.html (a template) + plotly.js -> STUDY.html

The same ledger gives the same page, byte for byte.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jinja2
import plotly.offline

from raymrc.report.files import put
from raymrc.report.parts import Plot, Section
from raymrc.report.sections import build_facts, build_sections
from raymrc.study.conclusions import sentences
from raymrc.study.findings import Findings

DIGITS = 5
"""Of what is drawn: a pixel is a thousandth of a plot."""


def write(findings: Findings, folder: Path) -> Path:
    """The page, as STUDY.html in a folder that is made where there is none.

    Raises:
        StudyError: it cannot be written.
    """
    text = build_page(findings)
    name = re.sub(r"[^\w.-]", "-", findings.spec.study)
    return put(folder / f"{name}.html", lambda path: path.write_text(text, encoding="utf-8"))


def build_page(findings: Findings) -> str:
    """HTML with all that it needs in it."""
    sections = build_sections(findings)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(
        findings=findings,
        facts=build_facts(findings),
        sentences=sentences(findings.conclusions),
        sections=sections,
        figures=_embedded(sections),
        plotly=plotly.offline.get_plotlyjs() if any(s.plots for s in sections) else "",
    )
    return page


def _embedded(sections: tuple[Section, ...]) -> str:
    """All figures as JSON that may stand in a script: figures by the id of where they are drawn."""
    found = {
        f"{section.id}-{number}": _figure(plot)
        for section in sections
        for number, plot in enumerate(section.plots, start=1)
    }
    text = json.dumps(_rounded(found), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _figure(plot: Plot) -> dict[str, Any]:
    layout = plot.figure["layout"] | {"height": plot.height}
    return {"data": plot.figure["data"], "layout": layout}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(of) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
