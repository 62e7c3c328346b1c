"""Generate the pages of commands, study file, benchmark results, studies and decisions.

`make docs` runs this module; a test compares its output with the pages in the repository.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path

import typer.main
from pydantic import BaseModel

from raymrc.cli import app, main
from raymrc.planning.loaded import LoadedStudy
from raymrc.planning.plan import plan_study
from raymrc.study.load import load_spec
from raymrc.study.sections import models_in
from raymrc.study.spec import Spec

DOCS = Path(__file__).resolve().parent


def pages() -> dict[Path, str]:
    """Each generated page and its text."""
    return {
        DOCS / "commands.md": commands_page(),
        DOCS / "study-file.md": study_file_page(),
        DOCS / "performance.md": performance_page(),
        DOCS / "studies.md": studies_page(),
        DOCS / "decisions" / "README.md": decisions_page(),
    }


REFERENCE = {
    "concepts": "concepts, by size of the backbone: 0.9118 (2018), 0.8604 (2022)",
    "relations": "none published for given mentions",
    "end-to-end": "end-to-end relations: 0.8332 (2018), 0.7488 (2022)",
    "transfer": "across institutions: frozen 8.9B ahead",
    "few-shot": "few examples: frozen large models need fewer",
    "scaling": "frozen behind trained by size: 4 to 6 points at 345M, near parity in the billions",
    "prompt-length": "prompt length: 1 to 2 points, 32 to 64 preferred",
    "final-test": "the shared tasks report figures of their test sets",
    "racing": "none published: full grids",
    "prompt-shape": "none published: vectors at every layer throughout",
    "prompt-initialisation": "none published: the initialisation is not stated",
    "prompt-from-another-source": "none published: the initialisation is not stated",
    "reparametrisation": "none published: how vectors are computed is not stated",
    "nested": "nested and overlapping concepts motivate MRC; no figure",
}
"""Figures of the reference study, by the name of the study file."""


_TERMS = """\
| | terms | cite |
|---|---|---|
| 2018 n2c2 track 2 | data use agreement | Henry et al., JAMIA 2020, 27(1):3-12 |
| 2022 n2c2 track 2, SHAC | data use agreement | Lybarger et al., JAMIA 2023, 30(8):1367-1378; \
J Biomed Inform 2021, 113:103631 |
| PHEE | MIT | Sun et al., EMNLP 2022 |
| MACCROBAT | CC BY 4.0 | Caufield et al., figshare 2020 |
| BC5CDR | public domain (NCBI) | Li et al., Database 2016, baw068 |
| GatorTron | Apache-2.0, by its page on the hub | Yang et al., npj Digital Medicine 2022, 5:194 |
| MiniLM (the demo's backbone) | Apache-2.0 | Wang et al., NeurIPS 2020; \
Reimers and Gurevych, EMNLP 2019 |

The question and the MRC formulation come from Peng et al., "Model tuning or prompt tuning? A study of
large language models for clinical concept and relation extraction", J Biomed Inform 2024,
153:104630."""


def studies_page() -> str:
    """The table of study files: question, reference figure, size of the grid, cost."""
    expected = json.loads((DOCS / "expected.json").read_text(encoding="utf-8"))
    rows = [
        "| study | question | reference figure, strict F1 | how to run | configurations | fold-runs | cost |",
        "|---|---|---|---|---:|---:|---|",
    ]
    for path in sorted((DOCS.parent / "studies").rglob("*.yaml")):
        name = path.relative_to(DOCS.parent).as_posix()
        question, command = path.read_text(encoding="utf-8").splitlines()[:2]
        when = command.partition("(")[2].rpartition(")")[0]
        how = command.partition("(")[0].removeprefix("#").strip()
        text = path.read_text(encoding="utf-8")
        how = f"`{how}`"
        if "\nfinal_test:" in text:
            how += f", then {how.replace('raymrc run', 'raymrc test')}"
        if "\ninitial_prompt:" in text:
            how += ", after the commands in its header"
        if name.removeprefix("studies/") in expected:
            when += "; " + _expected(expected[name.removeprefix("studies/")])
        plan = plan_study(LoadedStudy(load_spec(path)), places=False)
        rows.append(
            f"| [{name.removeprefix('studies/')}](../{name}) | {question.removeprefix('# ')} "
            f"| {REFERENCE.get(path.stem, '')} | {how} | {plan.num_configurations} | {plan.num_fold_runs} "
            f"| {when} |"
        )
    parts = [
        "# Studies",
        "`make docs` generates this page from `studies/`. There is one study per table or figure\n"
        "of the reference study: for its own corpora, which you provide, and for public ones, of\n"
        "which we ran some ([results](results.md)). `raymrc plan FILE` estimates what a study\n"
        "takes on your machines. Each file states the price of a device hour (`prices`).",
        "\n".join(rows),
        "The costs of the shared tasks' studies are estimates of `raymrc plan` on synthetic notes\n"
        "(`python docs/expected.py`), without measurements, so their intervals reach about four\n"
        "times either way. For 2018 there are 820 such notes, which hold as many mentions as the\n"
        "303 training notes (50,800) in less text; for 2022 there are 1,000, and 400 of another\n"
        "site. Device time grows with the text, and for relations with the mentions. The\n"
        "estimates are for whole grids: start with one backbone and, where the search samples,\n"
        "with `--set search.configurations=2`. Racing and your own machines reduce the cost.",
        "## Corpora and models",
        "raymrc contains no corpus and no weights. What you bring has its own terms.",
        _TERMS,
    ]
    return "\n\n".join(parts) + "\n"


def _expected(plan: dict[str, typing.Any]) -> str:
    def interval(name: str, unit: float) -> str:
        figures = (plan[name], *plan[f"{name}_interval"])
        at, low, high = (f"{float(f'{figure / unit:.2g}'):,g}" for figure in figures)
        return f"{at} ({low} to {high})"

    return (
        f"on synthetic notes {interval('device_seconds', 86400)} GPU days, {interval('usd', 1)} USD"
    )


def commands_page() -> str:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    parts = [
        "# Commands",
        "Generated by `make docs`. Answers go to stdout (with `--json` nothing but JSON), messages to\n"
        "stderr. Exit codes: 0 done; 1 finished, but something failed; 2 you must change something (a\n"
        "sentence says what); 3 stopped by the budget: raise it and rerun the same command to resume;\n"
        "130 interrupted: rerun the same command to resume.",
        _help([]),
        *(f"## raymrc {name}\n\n{_help([name])}" for name in commands),
    ]
    return "\n\n".join(parts) + "\n"


def _help(command: list[str]) -> str:
    text = io.StringIO()
    width = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(text):
            assert main([*command, "--help"]) == 0
    finally:
        os.environ.pop("COLUMNS") if width is None else os.environ.update(COLUMNS=width)
    return (
        "```\n"
        + "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())
        + "\n```"
    )


def study_file_page() -> str:
    parts = [
        "# The study file",
        "Generated by `make docs` from `raymrc/study/` and the settings table in `raymrc/configuration.py`.",
        "A setting's value is fixed; a list is a grid; a mapping is a range to draw from, such as\n"
        "`{log_uniform: [1.0e-3, 6.0e-2]}`. `--set field.field=value` changes a field for one command.\n"
        "`raymrc schema` prints a JSON Schema of this file, which editors use to check and complete it.",
    ]
    for model in dict.fromkeys(_sections(Spec)):
        about = textwrap.fill(_flat(model.__doc__ or ""), 100, break_on_hyphens=False)
        parts.append(f"## {model.__name__}\n\n{about}\n\n{_table(model)}")
    return "\n\n".join(parts) + "\n"


def performance_page() -> str:
    parts = [
        "# Performance",
        "`make docs` generates this page from `benchmarks/results/`. A ratio above 1 is in our\n"
        "favour; without a peer it is the share of the goal that we reach. Cases that fall short\n"
        "of their goal are marked.",
    ]
    for file in sorted((DOCS.parent / "benchmarks" / "results").glob("*.jsonl")):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        where = "; ".join(dict.fromkeys(line["hardware"] for line in lines))
        commands = "\n".join(dict.fromkeys(f"    {line['command']}" for line in lines))
        rows = ["| case | ours | peer | unit | ratio | goal | |", "|---|---|---|---|---|---|---|"]
        for line in lines:
            peer = "" if line["peer"] is None else f"{line['peer']:,g}"
            # Without a peer the goal is a bound on our own figure, and the ratio is to reach 1.
            met = line["ratio"] >= (1.0 if line["peer"] is None else line["goal"])
            rows.append(
                f"| {line['case']} | {line['ours']:,g} | {peer} | {line['unit']} "
                f"| {line['ratio']:.4g} | {line['goal']:g} | {'' if met else 'falls short'} |"
            )
        plot = f"curves/{file.stem}.svg"
        shown = f"![{file.stem}]({plot})\n\n" if (DOCS / plot).exists() else ""
        parts.append(f"## {file.stem}\n\n{where}\n\n{commands}\n\n{shown}" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def decisions_page() -> str:
    rows = ["| | |", "|---|---|"]
    for path in sorted((DOCS / "decisions").glob("[0-9]*.md")):
        title = path.read_text(encoding="utf-8").partition("\n")[0]
        rows.append(f"| [{path.name[:4]}]({path.name}) | {re.sub(r'^# [0-9]+[.:] ', '', title)} |")
    parts = [
        "# Decisions",
        "Each record has half a page: the situation, the choice, its cost, and how we would\n"
        "notice that it was wrong. `make docs` generates this list.",
        "\n".join(rows),
    ]
    return "\n\n".join(parts) + "\n"


def _sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A section, then those inside it, depth first."""
    yield model
    for field in model.model_fields.values():
        for inner in models_in(field.annotation):
            yield from _sections(inner)


def _table(model: type[BaseModel]) -> str:
    rows = ["| field | | what it is |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        inner = next(models_in(field.annotation), None)
        note = "required" if field.is_required() else ""
        if not note and field.default not in (None, "", {}) and inner is None:
            note = f"{field.default}"
        kind = f" See [{inner.__name__}](#{inner.__name__.lower()})." if inner else ""
        rows.append(f"| `{name}` | {note} | {_flat(field.description or '')}{kind} |")
    return "\n".join(rows)


def _flat(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path)
