"""TODO: say what this module holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import (
    ValidationError,
)

from raymrc.errors import suggest
from raymrc.study.checks import StudyFileProblem, across, no_effect
from raymrc.study.source import Position, Steps, StudyFile, read_source
from raymrc.study.spec import (
    BackboneSpec,
    BudgetSpec,
    CorpusSpec,
    Failures,
    FewShot,
    FinalTest,
    FoldSpec,
    MlflowSpec,
    Prices,
    RacingSpec,
    Resources,
    Search,
    Settings,
    Spec,
    Strategies,
    Subset,
    Synthetic,
    Workers,
    _Section,
)
from raymrc.study.values import (
    show,
)


def load_spec(path: Path | str, overrides: Sequence[str] = ()) -> Spec:
    """Read and check a study file.

    Args:
        path: the YAML file.
        overrides: `field.field=value`, the value in YAML, laid over the file in order.

    Raises:
        SpecError: everything that is wrong, in file order.
    """
    source = read_source(Path(path), overrides)
    found = list(source.problems)
    sections: dict[str, Any] = {}
    try:
        spec = Spec.model_validate(source.values)
        sections = {name: getattr(spec, name) for name in Spec.model_fields}
    except ValidationError as error:
        items = error.errors(include_url=False)
        for item in items:
            if not _is_misspelt(item, items):
                found.extend(_sentences(source, item))
        sections = _good_sections(source.values, {item["loc"][0] for item in items})
    found.extend(_placed(source, across(sections)))
    if found:
        raise source.error(found)
    spec._read_from = source
    warnings = sorted(dict.fromkeys(_placed(source, no_effect(spec))), key=lambda found: found[0])
    spec._warnings = tuple(source.sentence(*warning) for warning in warnings)
    return spec


def _placed(source: StudyFile, problems: Iterable[StudyFileProblem]) -> list[tuple[Position, str]]:
    return [(source.position(p.path, of_key=p.at_name), p.sentence) for p in problems]


def _is_misspelt(missing: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> bool:
    """A field that is missing only because it was written a little differently: one problem, not two."""
    *parent, name = missing["loc"]
    return missing["type"] == "missing" and any(
        item["type"] == "extra_forbidden"
        and list(item["loc"][:-1]) == parent
        and f"'{name}'" in suggest(str(item["loc"][-1]), _fields_at(tuple(parent)))
        for item in items
    )


def _good_sections(values: Mapping[str, Any], bad: set[Any]) -> dict[str, Any]:
    """The sections without problems of their own, for the checks across sections."""
    stand_ins: dict[str, Any] = {
        "study": "x",
        "task": "concepts",
        "corpus": {"synthetic": {"scheme": "n2c2-2018", "notes": 1}},
        "backbones": [],
        "strategies": {},
        "storage": "x",
    }
    kept = {k: v for k, v in values.items() if k in Spec.model_fields and k not in bad}
    spec = Spec.model_validate(stand_ins | kept)
    return {
        k: getattr(spec, k)
        for k in Spec.model_fields
        if k in kept or (k not in bad and k not in stand_ins)
    }


_PLAIN = {
    "list_type": "is not a list",
    "tuple_type": "is not a list",
    "dict_type": "is not a mapping",
    "model_type": "is not a mapping of fields",
    "model_attributes_type": "is not a mapping of fields",
    "string_type": "is not text",
}


def _sentences(source: StudyFile, item: Mapping[str, Any]) -> Iterator[tuple[Position, str]]:
    """Pydantic's error as sentences of ours, with their places."""
    steps: Steps = tuple(item["loc"])
    if item["type"] == "extra_forbidden":
        known = _fields_at(steps[:-1])
        kind = "strategy" if steps[:-1] and steps[-2] == "strategies" else "field"
        where = _where(source, steps[:-1])
        place = f" in {where}" if where and kind == "field" else ""
        sentence = f"unknown {kind} '{steps[-1]}'{place}{suggest(str(steps[-1]), known)}"
        yield source.position(steps, of_key=True), sentence
    elif item["type"] == "missing":
        where = _where(source, steps[:-1]) or "the study"
        field = _field(steps)
        about = f": {_first_sentence(field.description)}" if field and field.description else ""
        yield source.position(steps[:-1], of_key=True), f"{where} has no '{steps[-1]}'{about}"
    elif item["type"] == "raymrc":
        for below, sentence in item["ctx"]["found"]:
            at_name = bool(below) and isinstance(below[-1], str)
            yield (
                source.position((*steps, *below), of_key=at_name),
                f"{_named(steps)}{sentence}",
            )
    else:
        said = _PLAIN.get(item["type"], item["msg"][:1].lower() + item["msg"][1:])
        yield source.position(steps), f"{_named(steps)}{show(item['input'])} {said}"


def _named(steps: Steps) -> str:
    """The field's name before what is wrong with it; a list's item is named by its list."""
    names = [step for step in steps if isinstance(step, str)]
    return f"{names[-1]}: " if names else ""


def _where(source: StudyFile, steps: Steps) -> str:
    """A section as the user would call it."""
    if not steps:
        return ""
    if len(steps) > 1 and steps[-2] == "strategies":
        return f"strategy {steps[-1]}"
    if steps[0] == "backbones" and len(steps) == 2:
        entry = source.values["backbones"][steps[1]]
        name = entry.get("name") if isinstance(entry, dict) else None
        return f"backbone {name}" if name else f"backbone {int(steps[1]) + 1}"
    return ".".join(str(step) for step in steps)


_SECTIONS: dict[str, type[_Section]] = {
    "corpus": CorpusSpec,
    "synthetic": Synthetic,
    "subset": Subset,
    "folds": FoldSpec,
    "training": Settings,
    "strategies": Strategies,
    "search": Search,
    "racing": RacingSpec,
    "few_shot": FewShot,
    "final_test": FinalTest,
    "resources": Resources,
    "workers": Workers,
    "failures": Failures,
    "prices": Prices,
    "budget": BudgetSpec,
    "mlflow": MlflowSpec,
}


def _section_at(steps: Steps) -> type[_Section]:
    """The class of a section by its path."""
    if not steps:
        return Spec
    last = steps[-1]
    if isinstance(last, int):
        return CorpusSpec if steps[0] == "transfer" else BackboneSpec
    return _SECTIONS.get(last, Settings)


def _fields_at(steps: Steps) -> list[str]:
    return list(_section_at(steps).model_fields)


def _field(steps: Steps) -> Any:
    return _section_at(steps[:-1]).model_fields.get(str(steps[-1]))


def _first_sentence(text: str) -> str:
    return " ".join(text.split()).split(". ")[0].rstrip(".")
