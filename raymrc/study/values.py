"""Annotations of the study file's fields, and the sentences about values that do not fit.

    whole(1, 512), a row of the settings table ... -> pydantic schema -> checked value or error -> sentence

Pydantic checks the values and derives the JSON Schema. `error_sentences` words all of its errors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from raymrc.configuration import DURATION_PATTERN, Duration, Hyperparameter
from raymrc.errors import suggest
from raymrc.study.source import Steps
from raymrc.study.space import DISTRIBUTIONS, Distribution, Fixed, Grid

TAG = "#"
"""Marks the steps in pydantic's error paths that name a form of a setting instead of a place in the file."""


@dataclass(frozen=True, slots=True, eq=False)  # by identity: schemas are not hashable
class Wanted:
    """Annotation: a value that does not fit is reported as '<value> is not <what>'.

    Args:
        schema: checks the value; None: the schema of the annotated type.
        is_text: whether quotes would help a number.
    """

    what: str
    schema: CoreSchema | None = None
    is_text: bool = False

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return self.around(self.schema or handler(source))

    def around(self, schema: CoreSchema) -> CoreSchema:
        context = {"what": self.what, "is_text": self.is_text}
        return core_schema.custom_error_schema(
            schema, "wanted", custom_error_message="wanted", custom_error_context=context
        )


# --- kinds of values ------------------------------------------------------------------------------


def whole(low: float | None = None, high: float | None = None) -> Wanted:
    """A whole number within inclusive bounds; 4.0 and 1e3 are whole numbers, too."""
    schema = core_schema.int_schema(strict=True, ge=_int(low), le=_int(high))
    return Wanted(
        f"a whole number{_bounds(low, high)}",
        core_schema.no_info_before_validator_function(_as_int, schema),
    )


def number(
    low: float | None = None, high: float | None = None, *, above: float | None = None
) -> Wanted:
    """A finite number within inclusive bounds, or above an exclusive one."""
    schema = core_schema.float_schema(strict=True, ge=low, le=high, gt=above, allow_inf_nan=False)
    bounds = _bounds(low, high)
    if above is not None:
        bounds = f" above {above:g}" + ("" if high is None else f" and up to {high:g}")
    return Wanted(f"a number{bounds}", schema)


def text(pattern: str = r"\S", what: str = "text") -> Wanted:
    return Wanted(what, core_schema.str_schema(strict=True, pattern=pattern), is_text=True)


def _three_weights() -> Wanted:
    def some_above_0(weights: tuple[float, ...]) -> tuple[float, ...]:
        if not sum(weights):
            raise ValueError
        return weights

    weight = core_schema.float_schema(strict=True, ge=0, allow_inf_nan=False)
    three = core_schema.tuple_schema([weight] * 3)
    return Wanted(
        "three numbers of 0 or more, not all 0, for start, end and match",
        core_schema.no_info_after_validator_function(some_above_0, three),
    )


def _duration() -> Wanted:
    text_schema = core_schema.str_schema(strict=True, pattern=DURATION_PATTERN)
    return Wanted(
        "a duration such as 400 steps, 90 device-seconds or 20 epochs",
        core_schema.no_info_after_validator_function(
            lambda value: str(Duration.read(value)), text_schema
        ),
    )


def _bounds(low: float | None, high: float | None) -> str:
    """ " from 1 to 512", " of 1 or more" or ""."""
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    return f" of {low:g} or more" if low is not None else ""


def _int(bound: float | None) -> int | None:
    return None if bound is None else int(bound)


def _as_int(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _expanded(value: str) -> str:
    path = os.path.expandvars(os.path.expanduser(value))
    missing = re.search(r"\$(\w+|\{\w+\})", path)
    if missing:
        name = missing.group(1).strip("{}")
        raise problem(f"the environment variable {name} is not set; set it, or write the path out")
    return path


def _store(place: str) -> str:
    scheme, separator, _ = place.partition("://")
    if separator and scheme not in ("s3", "gs", "gcs", "file", "abfs", "abfss", "hdfs"):
        raise problem(
            f"'{scheme}://' is not a store; give a folder, or a URL such as s3:// or gs://"
        )
    return place


Text = Annotated[str, text()]
Name = Annotated[
    str,
    text(
        r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        "a plain name: letters, digits, '-', '_' and '.', no spaces",
    ),
]
Seed = Annotated[int, whole(0)]
Path = Annotated[str, text(), AfterValidator(_expanded)]
"""A path or id in which `~` and environment variables are expanded."""
Storage = Annotated[Path, AfterValidator(_store)]
"""A folder, or the URL of a store that the ledger can write to."""


# --- settings: a value, a list of values, or a range ----------------------------------------------


@dataclass(frozen=True, slots=True)
class SettingField:
    """Annotation of a hyper-parameter: a value is fixed, a list is a grid, a mapping is a range."""

    row: Hyperparameter

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        row = self.row
        value = handler.generate_schema(Annotated[Any, _wanted(row)])
        either = core_schema.nullable_schema(value) if row.optional else value
        values = core_schema.no_info_wrap_validator_function(
            _distinct, core_schema.tuple_variable_schema(either, min_length=1)
        )
        forms = {"value": _after(Fixed, either), "list": _after(Grid, values)}
        ranges = {"number": ("uniform", "log_uniform"), "whole": ("int_uniform",)}.get(row.kind, ())
        pair = core_schema.tuple_positional_schema([value, value])
        forms |= {kind: _range(kind, pair) for kind in ranges}
        forms["choice"] = _range("choice", values)
        return core_schema.tagged_union_schema(
            {TAG + name: form for name, form in forms.items()},
            _form_of(row.kind == "weights", (*ranges, "choice")),
            custom_error_type="range",
            custom_error_message="range",
            custom_error_context={"ranges": " ".join((*ranges, "choice"))},
        )


def _wanted(row: Hyperparameter) -> Wanted:
    if row.kind == "whole":
        return whole(row.low, row.high)
    if row.kind == "number":
        return number(row.low, row.high, above=row.above)
    if row.kind == "weights":
        return _three_weights()
    if row.kind == "duration":
        return _duration()
    options = ", ".join(map(repr, row.options))
    return Wanted(f"one of {options}", core_schema.literal_schema([*row.options]))


def _form_of(is_list: bool, ranges: Sequence[str]) -> Callable[[Any], str | None]:
    """Which form of a setting a value has; None for a mapping that is no range.

    Args:
        is_list: single values are lists themselves, so that a grid is a list of lists.
    """

    def form(value: Any) -> str | None:
        if isinstance(value, dict):
            kind = next(iter(value), "")
            return TAG + kind if len(value) == 1 and kind in ranges else None
        if isinstance(value, list) and not (
            is_list and not all(isinstance(v, list) for v in value)
        ):
            return TAG + "list"
        return TAG + "value"

    return form


def _after(function: Callable[[Any], Any], schema: CoreSchema) -> CoreSchema:
    return core_schema.no_info_after_validator_function(function, schema)


def _distinct(values: Any, check: Callable[[Any], tuple[Any, ...]]) -> tuple[Any, ...]:
    if values == []:
        raise problem("an empty list leaves nothing to try; give a value")
    checked = check(values)
    twice = [i for i, value in enumerate(checked) if value in checked[:i]]
    if twice:
        raise problems(
            [((i,), f"{show(values[i])} is in the list twice; remove one") for i in twice]
        )
    return checked


def _range(kind: str, limits: CoreSchema) -> CoreSchema:
    wants = f"{kind} wants {DISTRIBUTIONS[kind].split(':')[0]}"

    def check_form(value: Any) -> Any:
        if not isinstance(value, list):
            raise problem(f"{show(value)} is not a list; {wants}")
        if kind != "choice" and len(value) != 2:
            raise problem(wants)
        return value

    def distribution(mapping: Mapping[str, tuple[Any, ...]]) -> Distribution:
        values = mapping[kind]
        if kind != "choice" and values[0] >= values[1]:
            sentence = f"{values[0]:g} is not below {values[1]:g}; give the lower end first"
            raise problems([((kind,), sentence)])
        if kind == "log_uniform" and values[0] <= 0:
            sentence = "log_uniform has no magnitude 0; start above 0, or use uniform"
            raise problems([((kind, 0), sentence)])
        return Distribution(kind, values)

    formed = core_schema.no_info_before_validator_function(check_form, limits)
    return _after(
        distribution,
        core_schema.typed_dict_schema(
            {kind: core_schema.typed_dict_field(formed)}, extra_behavior="forbid"
        ),
    )


# --- errors as sentences --------------------------------------------------------------------------


def problem(sentence: str) -> PydanticCustomError:
    """A sentence about the validated value, as a pydantic error."""
    return problems([((), sentence)])


def problems(found: Sequence[tuple[Steps, str]]) -> PydanticCustomError:
    """Several sentences, each at a place below the validated value, as one pydantic error."""
    return PydanticCustomError("raymrc", "wrong", {"found": list(found)})


_TYPES = {
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping of fields",
    "model_attributes_type": "a mapping of fields",
    "bool_type": "true or false",
}


def error_sentences(item: Mapping[str, Any]) -> list[tuple[Steps, str]]:
    """One of pydantic's errors as our sentences, each with its place below the error's own.

    Args:
        item: of `ValidationError.errors()`; not about a missing or an unknown field.
    """
    value, context = item["input"], item.get("ctx", {})
    kind = item["type"]
    if kind == "raymrc":
        return list(context["found"])
    if kind == "range":
        return _unknown_range(value, context["ranges"].split())
    if kind == "literal_error":
        what = f"one of {context['expected'].replace(' or ', ', ')}"
    elif kind == "wanted":
        what = context["what"]
        if context["is_text"] and not isinstance(value, str):
            quotes = "; put it in quotes" if isinstance(value, int | float) else ""
            return [((), f"{show(value)} is not text{quotes}")]
        if "number" in what and isinstance(value, str) and _is_number(value):
            quotes = "is text because of its quotes; remove them to make it a number"
            return [((), f"{value!r} {quotes}")]
    elif kind in _TYPES:
        what = _TYPES[kind]
    else:
        return [((), f"{show(value)}: {item['msg'][:1].lower()}{item['msg'][1:]}")]
    return [((), f"{show(value)} is not {what}")]


def _unknown_range(value: Mapping[str, Any], ranges: Sequence[str]) -> list[tuple[Steps, str]]:
    for kind in value:
        if kind in ranges:
            continue
        if kind == "int_uniform":
            sentence = (
                "int_uniform draws whole numbers, which this is not; use uniform or log_uniform"
            )
        elif kind in DISTRIBUTIONS and "int_uniform" in ranges:
            sentence = f"{kind} draws fractions and this is a whole number; use int_uniform"
        else:
            sentence = f"unknown range '{kind}'{suggest(kind, ranges)}"
        return [((kind,), sentence)]
    return [((), "a range has one kind, such as {log_uniform: [1.0e-3, 6.0e-2]}")]


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def show(value: Any) -> str:
    """A value as it looks in the file, cut to a readable length."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "an empty value"
    if isinstance(value, bool):
        return str(value).lower()
    shown = repr(value) if isinstance(value, str) else str(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
