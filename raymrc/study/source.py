"""A study file as plain values with their positions in the file.

    text -> node tree -> values + positions (+ overrides)

Scalars follow YAML 1.2. In YAML 1.1 `1e-2` is text, `no` is false, `010` is eight and `1:30` is ninety.
Duplicate keys, tags, tabs and multiple documents are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from raymrc.errors import SpecError, suggest

Steps = tuple[str | int, ...]

# Tags that the parser gives to values without a tag of their own.
_TAGS = (
    "",
    "!",
    *(f"!!{t}" for t in "str int float bool null timestamp merge value seq map".split()),
)

_INT = re.compile(r"[-+]?[0-9][0-9_]*")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf"), float("inf")),
    "-.inf": float("-inf"),
    ".nan": float("nan"),
}


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in the file or in the overrides after it; sorts in reading order."""

    override: int  # 0 for the file, else 1 for the first `--set`
    line: int
    column: int


@dataclass(slots=True)
class StudyFile:
    """The values of a study file, and the position of each.

    Args:
        name: the file as the user named it.
        values: plain dicts, lists and scalars, with overrides applied.
        problems: (position, sentence) for errors in the YAML itself.
    """

    name: str
    values: dict[str, Any]
    problems: list[tuple[Position, str]]
    root: yaml.Node
    overrides: list[tuple[Steps, str]] = field(default_factory=list)

    def position(self, path: Steps, *, of_key: bool = False) -> Position:
        """The position of `path`, or of its closest ancestor that exists."""
        for number, (overridden, _) in reversed(list(enumerate(self.overrides, 1))):
            if path[: len(overridden)] == overridden:
                return Position(number, 0, 0)
        node, mark = self.root, self.root.start_mark
        for step in path:
            child = _child(node, step)
            if child is None:
                for number, (overridden, _) in enumerate(self.overrides, 1):
                    if overridden[: len(path)] == path:
                        return Position(number, 0, 0)
                break
            key, node = child
            mark = node.start_mark if key is None or not of_key else key.start_mark
        return _position(mark)

    def sentences(self, problems: Iterable[tuple[Position, str]]) -> list[str]:
        """All problems in file order, without duplicates, each with its position before it."""
        ordered = sorted(dict.fromkeys(problems), key=lambda problem: problem[0])
        return [f"{self._shown(position)}: {problem}" for position, problem in ordered]

    def error(self, problems: Iterable[tuple[Position, str]]) -> SpecError:
        return SpecError(self.sentences(problems))

    def _shown(self, position: Position) -> str:
        if position.override:
            return f"--set {self.overrides[position.override - 1][1]}"
        return f"{self.name}:{position.line}:{position.column}"


def _position(mark: yaml.Mark) -> Position:
    return Position(0, mark.line + 1, mark.column + 1)


def read_source(path: Path, overrides: Sequence[str] = ()) -> StudyFile:
    """Read a YAML file and apply `key.path=value` overrides.

    Raises:
        SpecError: the file cannot be read, or is not YAML. Errors that allow reading on (a duplicate key, an
            override that fits nowhere) are left in `problems`.
    """
    name = str(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise SpecError(f"{name}: file not found{_neighbours(path)}") from None
    except IsADirectoryError:
        raise SpecError(f"{name}: is a folder, not a study file{_neighbours(path / 'x')}") from None
    except UnicodeDecodeError as error:
        raise SpecError(
            f"{name}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from None
    except OSError as error:
        raise SpecError(f"{name}: cannot be read ({error.strerror})") from None
    root = _compose(name, text)
    problems: list[tuple[Position, str]] = []
    values = _Builder(problems).build(root)
    if values is None:
        raise SpecError(
            f"{name}:1:1: the file is empty; a study needs at least study, task, corpus, "
            "backbones, strategies and storage"
        )
    if not isinstance(values, dict):
        raise SpecError(
            f"{name}:1:1: a study file is a mapping such as 'study: name', not a list or text"
        )
    source = StudyFile(name, values, problems, root)
    for override in overrides:
        _lay_over(source, override)
    return source


def _compose(name: str, text: str) -> yaml.Node:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        line = "".join(text.splitlines()[mark.line : mark.line + 1]) if mark else ""
        lead = line[: len(line) - len(line.lstrip())]
        if "\t" in lead or "'\\t'" in (error.problem or ""):
            raise SpecError(f"{where}: a tab in the indentation; indent with spaces") from None
        if "single document" in (error.context or ""):
            raise SpecError(
                f"{where}: a second YAML document begins here; put each study into its own file"
            ) from None
        reason = " ".join(part for part in (error.context, error.problem) if part)
        raise SpecError(
            f"{where}: invalid YAML ({reason}); quote strings that contain special characters"
        ) from None
    except yaml.YAMLError as error:  # a control character, which has no mark
        raise SpecError(f"{name}: invalid YAML ({' '.join(str(error).split())})") from None
    return root or yaml.ScalarNode("", "", yaml.Mark(name, 0, 0, 0, None, 0), None)


class _Builder:
    """Nodes to values. Each alias becomes a copy, so that an override changes one place only."""

    def __init__(self, problems: list[tuple[Position, str]]) -> None:
        self.problems = problems
        self.open: set[int] = set()

    def build(self, node: yaml.Node) -> Any:
        if id(node) in self.open:
            self._problem(node, "an alias inside the value that it names; write the value out")
            return None
        self.open.add(id(node))
        value = self._value(node)
        self.open.discard(id(node))
        return value

    def _value(self, node: yaml.Node) -> Any:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        if tag not in _TAGS:
            self._problem(node, f"tag '{tag}' is not supported; remove it")
        if isinstance(node, yaml.ScalarNode):
            return read_scalar(node)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item) for item in node.value]
        values: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            value = self.build(value_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, "a field's name cannot be a list or mapping")
            elif (key := key_node.value) == "<<":
                self._problem(key_node, "merging with '<<' is not supported; write the fields out")
            elif key in values:
                sentence = f"'{key}' is given twice, first on line {first[key]}; keep one of them"
                self._problem(key_node, sentence)
            else:
                values[key], first[key] = value, key_node.start_mark.line + 1
        return values

    def _problem(self, node: yaml.Node, sentence: str) -> None:
        self.problems.append((_position(node.start_mark), sentence))


def read_scalar(node: yaml.ScalarNode) -> Any:
    """A scalar by the rules of YAML 1.2: quoted values, `no` and `on` are text; `1e-2` is a number."""
    text = node.value
    if node.style is not None:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text.replace("_", ""))
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    return text


def _child(node: yaml.Node, step: str | int) -> tuple[yaml.Node | None, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == step:
                return key, value
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return None, node.value[step]
    return None


def _lay_over(source: StudyFile, override: str) -> None:
    """Set one value by its dotted path, creating missing parents, which are checked later."""
    name, equals, text = override.partition("=")
    steps = name.strip().split(".")
    source.overrides.append((tuple(steps), override))

    def add(problem: str) -> None:
        source.problems.append((Position(len(source.overrides), 0, 0), problem))

    if not equals or not all(steps):
        return add("use field.field=value, such as training.epochs=2")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return add("the value is invalid YAML; quote it")
    found: list[tuple[Position, str]] = []
    value = _Builder(found).build(node) if node is not None else None
    for _, problem in found:
        add(problem)

    holder: Any = source.values
    path: list[str | int] = []
    for depth, step in enumerate(steps):
        parent = ".".join(steps[:depth])
        at: str | int = step
        if isinstance(holder, list):
            if not step.isdigit() or int(step) >= len(holder):
                places = f"'{step}' is not an index from 0 to {len(holder) - 1}"
                return add(f"{parent} is a list; {places}")
            at = int(step)
        elif not isinstance(holder, dict):
            return add(f"{parent} is a single value and has no field '{step}'")
        path.append(at)
        if depth == len(steps) - 1:
            holder[at] = value
            break
        if isinstance(holder, dict) and holder.get(step) is None:
            holder[step] = {}
        elif isinstance(holder[at], str) and path[0] == "backbones":
            holder[at] = {"name": holder[at]}  # 'minilm' is short for {name: minilm}
        holder = holder[at]
    source.overrides[-1] = (tuple(path), override)


def _neighbours(path: Path) -> str:
    """A hint at existing study files if a name may be misspelt."""
    folder = path.parent if path.parent.is_dir() else Path("studies")
    names = [str(p) for p in sorted(folder.glob("*.y*ml"))] if folder.is_dir() else []
    return suggest(str(path), names)
