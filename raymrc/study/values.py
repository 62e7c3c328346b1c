"""One value of a study file -> a checked value, or a sentence that begins with what is wrong.

    whole(1, 512) -> checked(...)   a plain field
                  -> setting(...)   a fixed value, a list as a grid, a mapping as a range

Pydantic places the error; the words are ours, so that a user reads the same hand everywhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import PlainValidator
from pydantic_core import PydanticCustomError

from raymrc.errors import suggest
from raymrc.study.source import Steps
from raymrc.study.space import DISTRIBUTIONS, Distribution, Fixed, Grid, Setting


class Wrong(ValueError):
    """What is wrong with one value; the field's name is put before it."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A kind of value.

    Args:
        read: gives the checked value, or raises `Wrong`.
        ranges: the distributions that can be drawn from; a choice is always one.
        is_list: its values are lists themselves, so that a grid is a list of lists.
    """

    read: Callable[[Any], Any]
    ranges: tuple[str, ...] = ()
    is_list: bool = False


FRACTIONS, WHOLE = ("uniform", "log_uniform"), ("int_uniform",)


def show(value: Any) -> str:
    """A value as the user would recognise it, cut to a readable length."""
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


def _bounds(low: float | None, high: float | None) -> str:
    """ " from 1 to 512", " of 1 or more" or nothing."""
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    return f" of {low:g} or more" if low is not None else ""


def _unquoted(value: Any, what: str) -> None:
    """A number in quotes is text: say so rather than 'not a number'."""
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return
        raise Wrong(f"{value!r} is text because of its quotes; remove them to make it {what}")


def whole(low: int | None = None, high: int | None = None) -> Leaf:
    """A whole number between two bounds, both included."""

    def read(value: Any) -> int:
        _unquoted(value, "a number")
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # 1e3 and 4.0 are whole numbers to whoever writes them
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or (low is not None and value < low)
            or (high is not None and value > high)
        ):
            raise Wrong(f"{show(value)} is not a whole number{_bounds(low, high)}")
        return value

    return Leaf(read, WHOLE)


def number(
    low: float | None = None, high: float | None = None, *, above: float | None = None
) -> Leaf:
    """A number between two bounds, both included, or above one."""

    def read(value: Any) -> float:
        _unquoted(value, "a number")
        good = (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) < float("inf")
        )
        if (
            not good
            or (low is not None and value < low)
            or (high is not None and value > high)
            or (above is not None and value <= above)
        ):
            if above is not None:
                wanted = f" above {above:g}" + (f" and up to {high:g}" if high is not None else "")
            else:
                wanted = _bounds(low, high)
            raise Wrong(f"{show(value)} is not a number{wanted}")
        return float(value)

    return Leaf(read, FRACTIONS)


def word(*options: str) -> Leaf:
    """One of a few words."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in options:
            shown = "', '".join(options)
            raise Wrong(f"{show(value)} is not one of '{shown}'")
        return value

    return Leaf(read)


def text(pattern: str = "", wanted: str = "") -> Leaf:
    """Text that is not empty and, where a pattern is given, fits it."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            quotes = "; put it in quotes" if isinstance(value, int | float) else ""
            raise Wrong(f"{show(value)} is not text{quotes}")
        if pattern and not re.fullmatch(pattern, value):
            raise Wrong(f"{show(value)} is not {wanted}")
        return value

    return Leaf(read)


def _read_folder(value: Any) -> str:
    """A path with `~` and environment variables filled in."""
    path = os.path.expandvars(os.path.expanduser(text().read(value)))
    missing = re.search(r"\$(\w+|\{\w+\})", path)
    if missing:
        name = missing.group(1).strip("{}")
        raise Wrong(f"the environment variable {name} is not set; set it, or write the path out")
    return path


def _read_storage(value: Any) -> str:
    """A folder, or a URL of a store that the ledger can write to."""
    place = _read_folder(value)
    scheme, separator, _ = place.partition("://")
    if separator and scheme not in ("s3", "gs", "gcs", "file", "abfs", "abfss", "hdfs"):
        raise Wrong(f"'{scheme}://' is not a store; give a folder, or a URL such as s3:// or gs://")
    return place


def _read_weights(value: Any) -> tuple[float, float, float]:
    """Weights of start, end and match."""
    if not isinstance(value, list) or len(value) != 3:
        raise Wrong(f"{show(value)} is not three numbers, for start, end and match")
    read = number(0).read
    weights = (read(value[0]), read(value[1]), read(value[2]))
    if sum(weights) == 0:
        raise Wrong("the three weights are all 0; at least one must be above")
    return weights


def _read_truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Wrong(f"{show(value)} is not true or false")
    return value


folder = Leaf(_read_folder)
truth = Leaf(_read_truth)
storage_place = Leaf(_read_storage)
three_weights = Leaf(_read_weights, is_list=True)


def or_none(leaf: Leaf) -> Leaf:
    """The same, or an empty value."""
    return Leaf(lambda value: None if value is None else leaf.read(value), leaf.ranges)


def checked(leaf: Leaf) -> PlainValidator:
    """A plain field of this kind."""

    def read(value: Any) -> Any:
        try:
            return leaf.read(value)
        except Wrong as wrong:
            raise problems([((), str(wrong))]) from None

    return PlainValidator(read)


def setting(leaf: Leaf) -> PlainValidator:
    """A fixed value, a list as a grid, or a mapping as a distribution over this kind."""

    def read(value: Any) -> Setting:
        if isinstance(value, dict):
            return _distribution(value, leaf)
        is_grid = isinstance(value, list)
        if is_grid and leaf.is_list:
            is_grid = all(isinstance(item, list) for item in value)
        if is_grid:
            return Grid(_options(value, leaf, ()))
        try:
            return Fixed(leaf.read(value))
        except Wrong as wrong:
            raise problems([((), str(wrong))]) from None

    return PlainValidator(read)


def problems(found: Sequence[tuple[Steps, str]]) -> PydanticCustomError:
    """Several sentences, each at a place below the validated value, as one pydantic error."""
    return PydanticCustomError("raymrc", "wrong", {"found": list(found)})


def _options(values: list[Any], leaf: Leaf, at: Steps) -> tuple[Any, ...]:
    """Every item of a list checked; all wrong ones reported."""
    found: list[tuple[Steps, str]] = []
    good: list[Any] = []
    if not values:
        found.append((at, "an empty list leaves nothing to try; give a value"))
    for index, item in enumerate(values):
        try:
            read = leaf.read(item)
        except Wrong as wrong:
            found.append(((*at, index), str(wrong)))
            continue
        if read in good:
            found.append(((*at, index), f"{show(item)} is in the list twice; remove one"))
        good.append(read)
    if found:
        raise problems(found)
    return tuple(good)


def _distribution(value: dict[str, Any], leaf: Leaf) -> Distribution:
    """The one range of a mapping, its limits checked."""
    kinds = (*leaf.ranges, "choice")
    for kind in value:
        if kind not in kinds:
            raise problems([((kind,), _unknown_range(kind, kinds))])
    if len(value) != 1:
        raise problems([((), "a range has one kind, such as {log_uniform: [1.0e-3, 6.0e-2]}")])
    kind, limits = next(iter(value.items()))
    wants = f"{kind} wants {DISTRIBUTIONS[kind].split(':')[0]}"
    if not isinstance(limits, list):
        raise problems([((kind,), f"{show(limits)} is not a list; {wants}")])
    if kind == "choice":
        return Distribution(kind, _options(limits, leaf, (kind,)))
    if len(limits) != 2:
        raise problems([((kind,), wants)])
    found: list[tuple[Steps, str]] = []
    ends = []
    for index, limit in enumerate(limits):
        try:
            ends.append(leaf.read(limit))
        except Wrong as wrong:
            found.append(((kind, index), str(wrong)))
    if not found and None in ends:
        found.append(((kind,), wants))
    elif not found and ends[0] >= ends[1]:
        found.append(((kind,), f"{ends[0]:g} is not below {ends[1]:g}; give the lower end first"))
    elif not found and kind == "log_uniform" and ends[0] <= 0:
        found.append(((kind, 0), "log_uniform has no magnitude 0; start above 0, or use uniform"))
    if found:
        raise problems(found)
    return Distribution(kind, tuple(ends))


def _unknown_range(kind: str, kinds: Sequence[str]) -> str:
    if kind in WHOLE:
        return "int_uniform draws whole numbers, which this is not; use uniform or log_uniform"
    if kind in FRACTIONS and WHOLE[0] in kinds:
        return f"{kind} draws fractions and this is a whole number; use int_uniform"
    return f"unknown range '{kind}'{suggest(kind, kinds)}"
