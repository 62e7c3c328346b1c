"""Reading a study file: every problem at once, in file order, each with its place and what to do.

YAML -> StudyFile -> sections (pydantic) -> checks across sections -> Spec
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raymrc.errors import suggest
from raymrc.study.checks import StudyFileProblem, across, no_effect
from raymrc.study.sections import Section, models_in
from raymrc.study.source import Position, Steps, StudyFile, read_source
from raymrc.study.spec import Spec
from raymrc.study.values import TAG, error_sentences


def load_spec(path: Path | str, overrides: Sequence[str] = ()) -> Spec:
    """Read and check a study file.

    Args:
        overrides: `field.field=value`, the value in YAML; they replace the file's values, in order.

    Raises:
        SpecError: all problems, in file order.
    """
    source = read_source(Path(path), overrides)
    found = list(source.problems)
    bad: set[Any] = set()
    try:
        spec = Spec.model_validate(source.values)
    except ValidationError as error:
        items = error.errors(include_url=False)
        for item in items:
            if not _is_misspelt(item, items):
                found.extend(_placed(source, _problems(source, item)))
        bad = {item["loc"][0] for item in items}
        spec = _with_stand_ins(source.values, bad)
    found.extend(_placed(source, across(spec, bad)))
    if found:
        raise source.error(found)
    spec._read_from = source
    spec._warnings = tuple(source.sentences(_placed(source, no_effect(spec))))
    return spec


def _placed(source: StudyFile, problems: Iterable[StudyFileProblem]) -> list[tuple[Position, str]]:
    return [(source.position(p.path, of_key=p.at_name), p.sentence) for p in problems]


def _is_misspelt(missing: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a field is missing only because its name is misspelt: that is one problem, not two."""
    *parent, name = missing["loc"]
    known = _section_at(tuple(parent)).model_fields
    return missing["type"] == "missing" and any(
        item["type"] == "extra_forbidden"
        and list(item["loc"][:-1]) == parent
        and f"'{name}'" in suggest(str(item["loc"][-1]), known)
        for item in items
    )


def _with_stand_ins(values: Mapping[str, Any], bad: set[Any]) -> Spec:
    """The study with stand-ins for sections that have problems, for the checks across sections."""
    stand_ins: dict[str, Any] = {
        "study": "x",
        "task": "concepts",
        "corpus": {"synthetic": {"scheme": "n2c2-2018", "notes": 1}},
        "backbones": [],
        "strategies": {},
        "storage": "x",
    }
    kept = {k: v for k, v in values.items() if k in Spec.model_fields and k not in bad}
    return Spec.model_validate(stand_ins | kept)


def _problems(source: StudyFile, item: Mapping[str, Any]) -> Iterator[StudyFileProblem]:
    """One of pydantic's errors as our sentences, with their places."""
    steps: Steps = tuple(step for step in item["loc"] if not str(step).startswith(TAG))
    *_, name = steps
    parent = steps[:-1]
    section = _section_at(parent)
    where = _where(source, parent)
    if item["type"] == "extra_forbidden":
        kind = "strategy" if parent and parent[-1] == "strategies" else "field"
        place = f" in {where}" if where and kind == "field" else ""
        hint = suggest(str(name), section.model_fields)
        yield StudyFileProblem(steps, f"unknown {kind} '{name}'{place}{hint}", at_name=True)
    elif item["type"] == "missing":
        field = section.model_fields.get(str(name))
        about = f": {_first_sentence(field.description)}" if field and field.description else ""
        yield StudyFileProblem(parent, f"{where or 'the study'} has no '{name}'{about}", True)
    else:
        # A list's item is named by its list.
        names = [step for step in steps if isinstance(step, str)]
        for below, sentence in error_sentences(item):
            at_name = bool(below) and isinstance(below[-1], str)
            prefix = f"{names[-1]}: " if names else ""
            yield StudyFileProblem((*steps, *below), prefix + sentence, at_name)


def _where(source: StudyFile, steps: Steps) -> str:
    """A section as the user would call it."""
    if len(steps) > 1 and steps[-2] == "strategies":
        return f"strategy {steps[-1]}"
    if len(steps) == 2 and steps[0] == "backbones":
        entry = source.values["backbones"][steps[1]]
        name = entry.get("name") if isinstance(entry, dict) else None
        return f"backbone {name}" if name else f"backbone {int(steps[1]) + 1}"
    return ".".join(str(step) for step in steps)


def _section_at(steps: Steps) -> type[Section]:
    section: type[Section] = Spec
    for step in steps:
        field = section.model_fields.get(str(step))
        section = next(models_in(field.annotation), section) if field else section
    return section


def _first_sentence(text: str) -> str:
    return " ".join(text.split()).split(". ")[0].rstrip(".")
