"""A study's fields as flat text, to compare two study files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from raymrc.study.sections import Section
from raymrc.study.space import Distribution, Fixed, Grid


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(dotted field name, value as a study file writes it); fields that are not set are left out."""
    if isinstance(value, Section):
        for field in type(value).model_fields:
            yield from flatten(getattr(value, field), f"{name}.{field}" if name else field)
    elif isinstance(value, tuple) and value and isinstance(value[0], Section):
        for place, item in enumerate(value):
            yield from flatten(item, f"{name}[{place}]")
    elif isinstance(value, Fixed):
        yield name, str(value.value)
    elif isinstance(value, Grid):
        yield name, _listed(value.values)
    elif isinstance(value, Distribution):
        yield name, f"{value.kind} {_listed(value.values)}"
    elif value is not None:
        yield name, _listed(value) if isinstance(value, tuple) else str(value)


def _listed(values: Sequence[Any]) -> str:
    return f"[{', '.join(map(str, values))}]"
