"""The study file as typed, checked, frozen objects.

    YAML -> values with positions -> sections (pydantic) -> checks across sections -> Spec

All problems are reported at once, in file order, each with its place and the nearest
right name. The sentence under a field is its documentation: `docs/study-file.md` and
an editor's hints are made from it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from raymrc.corpora.formats import READERS, known_labels
from raymrc.errors import CorpusError, SpecError
from raymrc.model.backbones import BACKBONES
from raymrc.model.shapes import MAX_PROMPT_LENGTH, SHAPES
from raymrc.model.strategies import STRATEGIES
from raymrc.study.configuration import Backbone
from raymrc.study.source import Position, Source, nearest, read_source
from raymrc.study.space import DISTRIBUTIONS, Distribution, Fixed, Grid, Setting

Steps = tuple[str | int, ...]
Found = list[tuple[Position, str]]


_OF_PROMPTS = ("prompt_length", "prompt_depth", "first_layer", "reparametrisation")


def without_effect(strategy: str) -> dict[str, str]:
    """Settings that change nothing under a strategy, each with the reason."""
    row = STRATEGIES[strategy]
    reasons: dict[str, str] = {}
    if row.asks != "vectors":
        reasons |= dict.fromkeys((*_OF_PROMPTS, "prompt_learning_rate"), "it has no soft prompt")
    if row.answers == "tags":
        reasons |= dict.fromkeys(
            ("match_width", "loss_weights"), "it tags pieces, without a match head"
        )
    return reasons


# --- leaves: one value -> a checked value, or a sentence that begins with what is wrong -----------


class _Wrong(ValueError):
    """What is wrong with one value; the field's name is put before it."""


Leaf = Callable[[Any], Any]


def _show(value: Any) -> str:
    """A value as the user would recognise it, cut to a readable length."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "an empty value"
    text = (
        repr(value)
        if isinstance(value, str)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )
    return text if len(text) <= 60 else text[:57] + "..."


def _bounds(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    return (
        f" of {low:g} or more"
        if low is not None
        else f" of {high:g} or less"
        if high is not None
        else ""
    )


def _unquoted(value: Any, what: str) -> None:
    """A number in quotes is text: say so rather than 'not a number'."""
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return
        raise _Wrong(f"{value!r} is text because of its quotes; remove them to make it {what}")


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
            raise _Wrong(f"{_show(value)} is not a whole number{_bounds(low, high)}")
        return value

    return read


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
            raise _Wrong(f"{_show(value)} is not a number{wanted}")
        return float(value)

    return read


def word(*options: str) -> Leaf:
    """One of a few words."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in options:
            shown = "', '".join(options)
            raise _Wrong(f"{_show(value)} is not one of '{shown}'")
        return value

    return read


def text(pattern: str = "", wanted: str = "") -> Leaf:
    """Text that is not empty and, where a pattern is given, fits it."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            quotes = "; put it in quotes" if isinstance(value, int | float) else ""
            raise _Wrong(f"{_show(value)} is not text{quotes}")
        if pattern and not re.fullmatch(pattern, value):
            raise _Wrong(f"{_show(value)} is not {wanted}")
        return value

    return read


def folder(value: Any) -> str:
    """A path with `~` and environment variables filled in."""
    path = os.path.expandvars(os.path.expanduser(text()(value)))
    missing = re.search(r"\$(\w+|\{\w+\})", path)
    if missing:
        name = missing.group(1).strip("{}")
        raise _Wrong(f"the environment variable {name} is not set; set it, or write the path out")
    return path


def storage_place(value: Any) -> str:
    """A folder, or a URL of a store that the ledger can write to."""
    place = folder(value)
    scheme, separator, _ = place.partition("://")
    if separator and scheme not in ("s3", "gs", "gcs", "file", "abfs", "abfss", "hdfs"):
        raise _Wrong(
            f"'{scheme}://' is not a store; give a folder, or a URL such as s3:// or gs://"
        )
    return place


def three_weights(value: Any) -> tuple[float, float, float]:
    """Weights of start, end and match."""
    if not isinstance(value, list) or len(value) != 3:
        raise _Wrong(f"{_show(value)} is not three numbers, for start, end and match")
    read = number(0)
    weights = (read(value[0]), read(value[1]), read(value[2]))
    if sum(weights) == 0:
        raise _Wrong("the three weights are all 0; at least one must be above")
    return weights


def _or_none(leaf: Leaf) -> Leaf:
    return lambda value: None if value is None else leaf(value)


def _checked(leaf: Leaf) -> PlainValidator:
    """A leaf as a pydantic validator."""

    def read(value: Any) -> Any:
        try:
            return leaf(value)
        except _Wrong as wrong:
            raise _problems([((), str(wrong))]) from None

    return PlainValidator(read)


def _problems(found: Sequence[tuple[Steps, str]]) -> PydanticCustomError:
    """Several sentences, each at a place below the validated value, as one pydantic error."""
    return PydanticCustomError("raymrc", "wrong", {"found": list(found)})


def _setting(leaf: Leaf, *, ranges: bool = True) -> PlainValidator:
    """A fixed value, a list as a grid, or a mapping as a distribution over `leaf`'s values."""
    is_list = leaf is three_weights

    def read(value: Any) -> Setting:
        if isinstance(value, dict):
            return _distribution(value, leaf, ranges)
        if isinstance(value, list) and not (
            is_list and not all(isinstance(v, list) for v in value)
        ):
            return Grid(_options(value, leaf, ()))
        try:
            return Fixed(leaf(value))
        except _Wrong as wrong:
            raise _problems([((), str(wrong))]) from None

    return PlainValidator(read)


def _options(values: list[Any], leaf: Leaf, at: Steps) -> tuple[Any, ...]:
    """Every item of a list checked; all wrong ones reported."""
    found: list[tuple[Steps, str]] = []
    good: list[Any] = []
    if not values:
        found.append((at, "an empty list leaves nothing to try; give a value"))
    for index, item in enumerate(values):
        try:
            read = leaf(item)
        except _Wrong as wrong:
            found.append(((*at, index), str(wrong)))
            continue
        if read in good:
            found.append(((*at, index), f"{_show(item)} is in the list twice; remove one"))
        good.append(read)
    if found:
        raise _problems(found)
    return tuple(good)


def _distribution(value: dict[str, Any], leaf: Leaf, ranges: bool) -> Distribution:
    kinds = tuple(DISTRIBUTIONS) if ranges else ("choice",)
    if len(value) != 1 or next(iter(value)) not in kinds:
        unknown = [kind for kind in value if kind not in kinds]
        if unknown:
            raise _problems(
                [((unknown[0],), f"unknown range '{unknown[0]}'{nearest(unknown[0], kinds)}")]
            )
        raise _problems([((), "a range has one kind, such as {log_uniform: [1.0e-3, 6.0e-2]}")])
    (kind, limits), whole_numbers = next(iter(value.items())), leaf in _WHOLE
    if whole_numbers and kind in ("uniform", "log_uniform"):
        raise _problems(
            [((kind,), f"'{kind}' draws fractions and this is a whole number; use int_uniform")]
        )
    if not whole_numbers and kind == "int_uniform":
        raise _problems(
            [((kind,), "'int_uniform' draws whole numbers; use uniform or log_uniform")]
        )
    if not isinstance(limits, list):
        raise _problems([((kind,), f"{_show(limits)} is not a list; {kind} wants {_wants(kind)}")])
    if kind == "choice":
        return Distribution(kind, _options(limits, leaf, (kind,)))
    if len(limits) != 2:
        raise _problems([((kind,), f"{kind} wants {_wants(kind)}")])
    found: list[tuple[Steps, str]] = []
    for index, limit in enumerate(limits):
        try:
            limits[index] = leaf(limit)
        except _Wrong as wrong:
            found.append(((kind, index), str(wrong)))
    if not found and limits[0] >= limits[1]:
        found.append(
            ((kind,), f"{limits[0]:g} is not below {limits[1]:g}; give the lower end first")
        )
    if not found and kind == "log_uniform" and limits[0] <= 0:
        found.append(((kind, 0), "log_uniform has no magnitude 0; start above 0, or use uniform"))
    if found:
        raise _problems(found)
    return Distribution(kind, tuple(limits))


def _wants(kind: str) -> str:
    return DISTRIBUTIONS[kind].split(":")[0]


_prompt_length, _count, _natural, _window = (
    whole(1, MAX_PROMPT_LENGTH),
    whole(1),
    whole(0),
    whole(8, 65536),
)
_WHOLE = {_prompt_length, _count, _natural, _window}

Name = Annotated[
    str,
    _checked(
        text(
            r"[A-Za-z0-9][A-Za-z0-9_.-]*",
            "a plain name: letters, digits, '-', '_' and '.', no spaces",
        )
    ),
]
Text = Annotated[str, _checked(text())]
Folder = Annotated[str, _checked(folder)]
Seed = Annotated[int, _checked(whole(0))]


# --- sections -------------------------------------------------------------------------------------


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, arbitrary_types_allowed=True
    )


def _empty_is_default(value: Any) -> Any:
    """`resources:` with nothing beneath it is a section of defaults."""
    return {} if value is None else value


class Settings(_Section):
    """Hyper-parameters: a value is fixed, a list is a grid, a mapping is a range to draw from."""

    learning_rate: Annotated[Setting | None, _setting(number(above=0, high=10))] = None
    """Of the backbone where it is trained; of prompts and heads where it is frozen. Published: 1e-5 to 5e-5
    for a trained backbone, 5e-3 to 6e-2 for a frozen one; small backbones want more of both. Required,
    here or under a strategy."""
    prompt_learning_rate: Annotated[
        Setting | None, _setting(_or_none(number(above=0, high=10)))
    ] = None
    """Of soft prompts beside a trained backbone; as `learning_rate` where not given."""
    head_learning_rate: Annotated[Setting | None, _setting(_or_none(number(above=0, high=10)))] = (
        None
    )
    """Of the heads beside a trained backbone; as `learning_rate` where not given."""
    prompt_length: Annotated[Setting | None, _setting(_prompt_length)] = None
    """Trained vectors per label, 1 to 512; 32 where not given. Only for soft prompts."""
    prompt_depth: Annotated[Setting | None, _setting(word("input", "deep"), ranges=False)] = None
    """Where the vectors enter: `deep`, at every layer from `first_layer` on, or `input`, at that layer only."""
    first_layer: Annotated[Setting | None, _setting(_natural)] = None
    """Layers below this one see no prompt; 0 is the published setting."""
    reparametrisation: Annotated[
        Setting | None, _setting(word("none", "mlp", "lstm"), ranges=False)
    ] = None
    """What the vectors are computed with while training: `none`, `mlp` or `lstm`."""
    epochs: Annotated[Setting | None, _setting(_count)] = None
    """Passes over the training examples."""
    batch_size: Annotated[Setting | None, _setting(_count)] = None
    """Rows, each a window with one question, per optimiser step."""
    weight_decay: Annotated[Setting | None, _setting(number(0, 10))] = None
    """Of AdamW."""
    clip_norm: Annotated[Setting | None, _setting(number(above=0))] = None
    """The largest gradient norm that a step keeps."""
    negative_rate: Annotated[Setting | None, _setting(number(0, 1))] = None
    """Share, 0 to 1, of the training rows without an answer that each epoch samples. Scored notes are always asked everything."""
    window: Annotated[Setting | None, _setting(_window)] = None
    """Pieces of note text per window, at most."""
    overlap: Annotated[Setting | None, _setting(_natural)] = None
    """Pieces that neighbouring windows share, at least."""
    match_width: Annotated[Setting | None, _setting(_count)] = None
    """Width of the hidden layer of the head that pairs starts with ends."""
    loss_weights: Annotated[Setting | None, _setting(three_weights, ranges=False)] = None
    """Of start, end and match, used normalised."""
    dropout: Annotated[Setting | None, _setting(number(0, 0.99))] = None
    """In the heads and, where it is trained, in the backbone."""
    seed: Annotated[Setting | None, _setting(_natural)] = None
    """Of initialisation, order and dropout."""

    def given(self) -> dict[str, Setting]:
        """The settings that were written down, in the order of this class."""
        return {
            name: value
            for name in type(self).model_fields
            if (value := getattr(self, name)) is not None
        }


StrategySettings = Annotated[Settings | None, BeforeValidator(_empty_is_default)]


class Strategies(_Section):
    """Settings by strategy. At the top of the study only those named here are run."""

    fine_tune: StrategySettings = None
    """No question: the backbone is trained to tag every piece."""
    hard_prompt: StrategySettings = None
    """The question in words before the window; the backbone is trained."""
    soft_prompt: StrategySettings = None
    """The question as trained vectors; the backbone is trained with them."""
    frozen_soft_prompt: StrategySettings = None
    """The question as trained vectors; the backbone stays as it is."""

    def named(self) -> dict[str, Settings]:
        """The strategies that were written down, in the order of the table."""
        return {name: value for name in STRATEGIES if (value := getattr(self, name)) is not None}


class Synthetic(_Section):
    """Notes that raymrc writes itself, the same for the same seed."""

    scheme: Annotated[str, _checked(word("n2c2-2018", "n2c2-2022"))]
    """`n2c2-2018`: discharge summaries with drugs; `n2c2-2022`: social histories."""
    notes: Annotated[int, _checked(whole(1))]
    """How many."""
    site: Annotated[str, _checked(word("a", "b"))] = "a"
    """Style and label prior: `a` or `b`."""
    seed: Seed = 13
    """Another seed gives other notes."""


class Subset(_Section):
    """A part of the corpus, of whole groups (patients, articles)."""

    notes: Annotated[int, _checked(whole(1))]
    """At least so many notes."""
    seed: Seed = 13
    """Which ones."""


Labels = str | tuple[str, ...] | dict[str, str] | None


def _labels(value: Any) -> Labels:
    """A built-in map's name, a list to keep, or a mapping source: target."""
    read = text()
    if isinstance(value, list) and value:
        return tuple(read(item) for item in value)
    if isinstance(value, dict) and value:
        return {str(source): read(target) for source, target in value.items()}
    if isinstance(value, str) and value:
        return value
    raise _Wrong(
        f"{_show(value)} is neither a map's name, a list of labels to keep, nor a mapping source: target"
    )


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise _Wrong(f"{_show(value)} is not a list of names")
    return tuple(text()(item) for item in value)


def _reader(value: Any) -> str:
    name = text()(value)
    if name not in READERS:
        raise _Wrong(f"there is no reader '{name}'{nearest(name, READERS)}")
    return name


class CorpusSpec(_Section):
    """The notes: read from files, or written by raymrc."""

    name: Annotated[
        str | None,
        _checked(text(r"[A-Za-z0-9][A-Za-z0-9_.-]*", "a plain name without spaces or '/'")),
    ] = None
    """What tables call the corpus; the reader's or scheme's name where not given."""
    reader: Annotated[str | None, _checked(_or_none(_reader))] = None
    """The file format: brat, n2c2-2018, n2c2-2022, phee, maccrobat or pubtator."""
    path: Annotated[str | None, _checked(_or_none(folder))] = None
    """Where the files lie, from the current folder; `~` and environment variables are filled in."""
    synthetic: Synthetic | None = None
    """Instead of reader and path: notes that raymrc writes."""
    labels: Annotated[Labels, _checked(_or_none(_labels))] = None
    """A built-in map by name (`drug-ade`), a list of labels to keep, or a mapping source: target that
    renames and keeps only what it names; the reader's own labels where not given."""
    sites: Annotated[tuple[str, ...] | None, _checked(_or_none(_names))] = None
    """Only notes of these sites."""
    subset: Subset | None = None
    """Only a part of the notes, of whole groups."""

    @model_validator(mode="after")
    def _one_source(self) -> CorpusSpec:
        found: list[tuple[Steps, str]] = []
        if self.synthetic and (self.reader or self.path):
            found.append(
                (
                    ("synthetic",),
                    "a corpus is read or synthetic, not both; remove reader and path, or this",
                )
            )
        elif not self.synthetic and not self.reader:
            found.append(((), "a corpus needs reader and path, or synthetic"))
        elif not self.synthetic and not self.path:
            found.append(((), "a corpus with a reader needs a path"))
        if self.synthetic and self.sites:
            found.append((("sites",), "synthetic notes have one site; set it under synthetic"))
        if found:
            raise _problems(found)
        return self

    @property
    def label_reader(self) -> str:
        """The reader whose labels this corpus has."""
        return self.reader or (self.synthetic.scheme if self.synthetic else "")

    @property
    def display_name(self) -> str:
        """What cells, tables and MLflow call it."""
        if self.name:
            return self.name
        return self.reader or f"synthetic-{self.label_reader}"


class Folds(_Section):
    """Cross-validation. Whole groups stay together, and all configurations share the folds."""

    count: Annotated[int, _checked(whole(2, 100))] = 5
    """How many folds; each is scored once."""
    validation_share: Annotated[float, _checked(number(0.01, 0.5))] = 0.15
    """Share of the training folds' notes that chooses epoch and configuration and is not trained on."""
    seed: Seed = 13
    """Who is in which fold."""


class BackboneSpec(_Section):
    """A pretrained encoder: a known name, a Hugging Face id or a folder."""

    name: Text
    """A name that raymrc knows, a Hugging Face id (with a '/') or a folder; with `source`, any name."""
    source: Annotated[str | None, _checked(_or_none(folder))] = None
    """A Hugging Face id or a folder with config, weights and tokenizer."""
    revision: Annotated[str, _checked(text())] = ""
    """Commit or tag on the hub."""
    layers: Annotated[int | None, _checked(_or_none(whole(1, 1000)))] = None
    """Take the first so many layers; all where not given."""
    strategies: Annotated[Strategies, BeforeValidator(_empty_is_default)] = Strategies()
    """Settings for this backbone alone, by strategy; they go before all others."""
    _source: str = PrivateAttr(default="")

    @model_validator(mode="after")
    def _known(self) -> BackboneSpec:
        source = self.source
        if source is None and self.name in BACKBONES:
            source = self.name
            if not BACKBONES[source].hub:
                raise _problems(
                    [
                        (
                            (),
                            f"the weights of {source} were never released; give your folder as source",
                        )
                    ]
                )
        if source is None:
            source = os.path.expandvars(os.path.expanduser(self.name))
            if "/" not in self.name and not Path(source).is_dir():
                near = nearest(self.name, BACKBONES)
                hint = " (or give its source: a folder or a Hugging Face id)"
                raise _problems([(("name",), f"unknown backbone '{self.name}'{near}{hint}")])
        self._source = source
        shape = SHAPES.get(source, SHAPES.get(self.name))
        if shape is not None and self.layers is not None and self.layers > shape.num_layers:
            raise _problems(
                [
                    (
                        ("layers",),
                        f"{self.layers} layers of {self.name}, which has {shape.num_layers}",
                    )
                ]
            )
        return self

    @property
    def known_as(self) -> str:
        """The name in the table of backbones, or that of the folder or id; without layers."""
        return Path(self.name).name

    @property
    def backbone(self) -> Backbone:
        """As cells and the ledger know it."""
        name = self.known_as if self.layers is None else f"{self.known_as}-l{self.layers}"
        return Backbone(name=name, source=self._source, revision=self.revision, layers=self.layers)


def _backbone_entry(value: Any) -> Any:
    """A plain name stands for a mapping with only that name."""
    return {"name": value} if isinstance(value, str) else value


class Search(_Section):
    """How configurations are chosen in each cell."""

    algorithm: Annotated[str, _checked(word("grid", "random", "tpe"))] = "grid"
    """`grid`: every combination of the lists; `random`: drawn; `tpe`: proposed by Optuna from the results so far."""
    configurations: Annotated[int, _checked(whole(1, 100_000))] = 8
    """How many configurations per cell, for random and tpe; fewer where there are not so many."""
    seed: Seed = 13
    """Of random draws and of tpe. More configurations with the same seed extend the earlier ones."""


class Resources(_Section):
    """What one trial (one configuration) holds while it runs."""

    cpus_per_trial: Annotated[float, _checked(number(0))] = 1.0
    """CPU cores."""
    gpus_per_trial: Annotated[float, _checked(number(0))] = 0.0
    """GPUs; a fraction lets several trials share one."""
    concurrent_trials: Annotated[int | None, _checked(_or_none(whole(1)))] = None
    """At most so many trials at once; as many as fit where not given."""


class Prices(_Section):
    """What device time costs."""

    device_hour_usd: Annotated[float, _checked(number(0))] = 0.0
    """US dollars for one device (a GPU, or the CPU host of a trial) for one hour."""
    note: Annotated[str, _checked(lambda value: "" if value is None else text()(value))] = ""
    """Whose price, of which day."""


class MlflowSpec(_Section):
    """Where runs are shown."""

    tracking_uri: Annotated[str | None, _checked(_or_none(folder))] = None
    """A tracking server or database; SQLite in the study's folder where not given."""
    experiment: Annotated[str | None, _checked(_or_none(text()))] = None
    """The experiment's name; the study's where not given."""


class Spec(_Section):
    """A study: which backbones and strategies to compare, on which notes, searched how, kept where."""

    study: Name
    """The study's name; also the name of its MLflow experiment."""
    task: Annotated[Literal["concepts"], _checked(word("concepts"))]
    """What is looked for: `concepts`, the labelled spans of a note."""
    corpus: CorpusSpec
    """The notes."""
    folds: Annotated[Folds, BeforeValidator(_empty_is_default)] = Folds()
    """Cross-validation."""
    backbones: tuple[Annotated[BackboneSpec, BeforeValidator(_backbone_entry)], ...]
    """Names, or mappings with more to say; at least one."""
    strategies: Strategies
    """The strategies to run, each with its own settings; at least one."""
    training: Annotated[Settings, BeforeValidator(_empty_is_default)] = Settings()
    """Settings for all strategies; those of a strategy go before them."""
    search: Annotated[Search, BeforeValidator(_empty_is_default)] = Search()
    """How configurations are chosen."""
    questions: Annotated[dict[str, Text], BeforeValidator(_empty_is_default)] = {}
    """Label: the question that hard prompts ask, instead of the built-in one."""
    resources: Annotated[Resources, BeforeValidator(_empty_is_default)] = Resources()
    """What one trial holds."""
    prices: Annotated[Prices, BeforeValidator(_empty_is_default)] = Prices()
    """What device time costs."""
    storage: Annotated[str, _checked(storage_place)]
    """Where the ledger and all else of the study is kept: a folder, or a URL such as s3://bucket/study."""
    mlflow: Annotated[MlflowSpec, BeforeValidator(_empty_is_default)] = MlflowSpec()
    """Where runs are shown."""

    _read_from: Source = PrivateAttr()
    _warnings: tuple[str, ...] = PrivateAttr(default=())

    @property
    def warnings(self) -> tuple[str, ...]:
        """Settings that will have no effect, a sentence each, in file order."""
        return self._warnings

    @property
    def path(self) -> str:
        """The study file, as it was named."""
        return self._read_from.name

    @property
    def experiment(self) -> str:
        return self.mlflow.experiment or self.study

    @property
    def is_local(self) -> bool:
        """True where storage is a folder of this machine."""
        return "://" not in self.storage

    @property
    def folder(self) -> Path:
        """A local folder for what cannot live in an object store, such as the SQLite of MLflow."""
        return Path(self.storage) if self.is_local else Path("runs") / self.study

    @property
    def tracking_uri(self) -> str:
        return self.mlflow.tracking_uri or f"sqlite:///{self.folder.absolute() / 'mlflow.db'}"

    def settings(self, backbone: BackboneSpec, strategy: str) -> dict[str, Setting]:
        """What holds for a cell: the backbone's own before the strategy's before the study's."""
        own = backbone.strategies.named().get(strategy)
        return {
            **self.training.given(),
            **self.strategies.named()[strategy].given(),
            **(own.given() if own else {}),
        }

    def error(self, path: Steps, sentence: str) -> SpecError:
        """An error at a place of the study file, for what shows only once the plan is made."""
        return self._read_from.error([(self._read_from.position(path), sentence)])


# --- reading --------------------------------------------------------------------------------------


def load_spec(path: Path | str, overrides: Sequence[str] = ()) -> Spec:
    """Read and check a study file.

    Args:
        path: the YAML file.
        overrides: `field.field=value`, the value in YAML, laid over the file in order.

    Raises:
        SpecError: everything that is wrong, in file order.
    """
    source = read_source(Path(path), overrides)
    found: Found = list(source.problems)
    sections: dict[str, Any] = {}
    try:
        spec = Spec.model_validate(source.values)
        sections = {name: getattr(spec, name) for name in Spec.model_fields}
    except ValidationError as error:
        bad = set()
        for item in error.errors(include_url=False):
            bad.add(item["loc"][0] if item["loc"] else "")
            found.extend(_sentences(source, item))
        sections = _good_sections(source.values, bad)
    found.extend(_across(source, sections))
    if found:
        raise source.error(found)
    spec._read_from = source
    warnings = sorted(dict.fromkeys(_no_effect(source, spec)), key=lambda warning: warning[0])
    spec._warnings = tuple(source.sentence(*warning) for warning in warnings)
    return spec


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


def _sentences(source: Source, item: Mapping[str, Any]) -> Iterator[tuple[Position, str]]:
    """Pydantic's error as sentences of ours, with their places."""
    steps: Steps = tuple(item["loc"])
    if item["type"] == "extra_forbidden":
        known, kind = (
            _fields_at(steps[:-1]),
            "strategy" if _names_strategies(steps[:-1]) else "field",
        )
        where = _where(source, steps[:-1])
        place = f" in {where}" if where and kind == "field" else ""
        sentence = f"unknown {kind} '{steps[-1]}'{place}{nearest(str(steps[-1]), known)}"
        yield source.position(steps, of_key=True), sentence
    elif item["type"] == "missing":
        where = _where(source, steps[:-1]) or "the study"
        field = _field(steps)
        about = f": {_first_sentence(field.description)}" if field and field.description else ""
        yield source.position(steps[:-1], of_key=True), f"{where} has no '{steps[-1]}'{about}"
    elif item["type"] == "raymrc":
        for below, sentence in item["ctx"]["found"]:
            yield source.position((*steps, *below)), f"{_named(steps)}{sentence}"
    else:
        said = _PLAIN.get(item["type"], item["msg"][:1].lower() + item["msg"][1:])
        yield source.position(steps), f"{_named(steps)}{_show(item['input'])} {said}"


def _named(steps: Steps) -> str:
    """The field's name before what is wrong with it; a list's item is named by its list."""
    names = [step for step in steps if isinstance(step, str)]
    return f"{names[-1]}: " if names else ""


def _names_strategies(steps: Steps) -> bool:
    return bool(steps) and steps[-1] == "strategies"


def _where(source: Source, steps: Steps) -> str:
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
    "folds": Folds,
    "training": Settings,
    "strategies": Strategies,
    "search": Search,
    "resources": Resources,
    "prices": Prices,
    "mlflow": MlflowSpec,
}


def _section_at(steps: Steps) -> type[_Section]:
    """The class of a section by its path."""
    if not steps:
        return Spec
    last = steps[-1]
    if isinstance(last, int):
        return BackboneSpec
    return _SECTIONS.get(last, Settings)


def _fields_at(steps: Steps) -> list[str]:
    return list(_section_at(steps).model_fields)


def _field(steps: Steps) -> Any:
    return _section_at(steps[:-1]).model_fields.get(str(steps[-1]))


def _first_sentence(text: str) -> str:
    return " ".join(text.split()).split(". ")[0].rstrip(".")


# --- checks across sections -----------------------------------------------------------------------


def _across(source: Source, sections: Mapping[str, Any]) -> Found:
    """What only shows when sections are seen together. A section with problems is left out."""
    found: Found = []
    backbones: tuple[BackboneSpec, ...] | None = sections.get("backbones")
    strategies: Strategies | None = sections.get("strategies")
    training: Settings | None = sections.get("training")
    if backbones is not None:
        if not backbones:
            found.append(
                (source.position(("backbones",)), "backbones: give at least one, such as minilm")
            )
        found.extend(_twice(source, backbones))
    if strategies is not None:
        if not strategies.named():
            known = ", ".join(STRATEGIES)
            found.append(
                (source.position(("strategies",)), f"strategies: name at least one of {known}")
            )
        if training is not None and backbones is not None:
            for strategy, settings in strategies.named().items():
                found.extend(_of_strategy(source, strategy, settings, training, backbones))
    search: Search | None = sections.get("search")
    if search is not None and search.algorithm == "grid":
        for path, setting in _all_settings(training, strategies, backbones):
            if isinstance(setting, Distribution):
                found.append(
                    (
                        source.position(path),
                        f"{path[-1]}: a grid needs a list and '{setting.kind}' is a range; give a list, or set "
                        "search.algorithm to random or tpe",
                    )
                )
    corpus: CorpusSpec | None = sections.get("corpus")
    if corpus is not None:
        found.extend(_of_labels(source, corpus, sections.get("questions") or {}))
    return found


def _twice(source: Source, backbones: Sequence[BackboneSpec]) -> Iterator[tuple[Position, str]]:
    seen: set[str] = set()
    for index, entry in enumerate(backbones):
        name = entry.backbone.name
        if name in seen:
            yield (
                source.position(("backbones", index)),
                f"backbone '{name}' is there twice; remove one, or give it another name and its source",
            )
        seen.add(name)


def _of_strategy(
    source: Source,
    strategy: str,
    settings: Settings,
    training: Settings,
    backbones: Sequence[BackboneSpec],
) -> Iterator[tuple[Position, str]]:
    """Settings that a strategy lacks, or that contradict each other once merged."""
    for index, backbone in enumerate(backbones):
        own = backbone.strategies.named().get(strategy, Settings())
        merged = {**training.given(), **settings.given(), **own.given()}
        if "learning_rate" not in merged:
            yield (
                source.position(("strategies", strategy), of_key=True),
                f"strategy {strategy} has no learning_rate; give one here or under training",
            )
        windows, overlaps = _values(merged, "window", 384), _values(merged, "overlap", 64)
        if max(overlaps) >= min(windows):
            for path in (
                ("backbones", index, "strategies", strategy),
                ("strategies", strategy),
                ("training",),
            ):
                holder = _settings_at(path, training, settings, own)
                name = next((n for n in ("overlap", "window") if n in holder.given()), "")
                if name:
                    yield (
                        source.position((*path, name)),
                        f"an overlap of {max(overlaps)} is not below a window of {min(windows)}; "
                        "give less overlap or a wider window",
                    )
                    break


def _settings_at(path: Steps, training: Settings, settings: Settings, own: Settings) -> Settings:
    return {"backbones": own, "strategies": settings, "training": training}[str(path[0])]


def _values(settings: Mapping[str, Setting], name: str, default: int) -> tuple[int, ...]:
    """The values that a whole-number setting may take, or the ends of its range."""
    setting = settings.get(name, Fixed(default))
    return (setting.value,) if isinstance(setting, Fixed) else setting.values


def _all_settings(
    training: Settings | None,
    strategies: Strategies | None,
    backbones: Sequence[BackboneSpec] | None,
) -> Iterator[tuple[Steps, Setting]]:
    """Every setting that was written down, with its place."""
    if training is not None:
        for name, setting in training.given().items():
            yield ("training", name), setting
    groups: list[tuple[Steps, Strategies]] = [(("strategies",), strategies)] if strategies else []
    groups += [
        (("backbones", i, "strategies"), entry.strategies)
        for i, entry in enumerate(backbones or ())
    ]
    for path, group in groups:
        for strategy, settings in group.named().items():
            for name, setting in settings.given().items():
                yield (*path, strategy, name), setting


def _of_labels(
    source: Source, corpus: CorpusSpec, questions: Mapping[str, str]
) -> Iterator[tuple[Position, str]]:
    """Labels and questions that the reader's label set does not have, as far as it is known unread."""
    labels: Any = corpus.labels
    place = ("corpus", "labels")
    try:
        known = known_labels(corpus.label_reader, labels)
    except CorpusError as error:
        for problem in error.problems:
            # The reader's sentence names the label; its item is where to mend it.
            items = enumerate(labels) if isinstance(labels, tuple) else ((x, x) for x in labels)
            at = next((step for step, label in items if f"labels: {label!r} " in problem), None)
            steps = place if at is None or isinstance(labels, str) else (*place, at)
            yield source.position(steps, of_key=isinstance(labels, dict)), problem
        return
    if known is not None:
        for label in questions:
            if label not in known:
                yield (
                    source.position(("questions", label), of_key=True),
                    f"a question for '{label}', which is not a label of this corpus{nearest(label, known)}",
                )


def _no_effect(source: Source, spec: Spec) -> Iterator[tuple[Position, str]]:
    """Settings that change nothing: said, not swallowed."""
    named = spec.strategies.named()
    for path, _ in _all_settings(spec.training, spec.strategies, spec.backbones):
        name = str(path[-1])
        if path[0] == "training":
            reasons = {without_effect(strategy).get(name) for strategy in named}
            if None not in reasons:
                yield (
                    source.position(path, of_key=True),
                    f"{name} has no effect under any strategy of this study",
                )
            elif all(name in settings.given() for settings in named.values()):
                yield (
                    source.position(path, of_key=True),
                    f"{name} has no effect: every strategy sets its own",
                )
            continue
        strategy = str(path[-2])
        reason = without_effect(strategy).get(name)
        if strategy not in named:
            yield (
                source.position(path[:-1], of_key=True),
                f"strategy {strategy} has no effect here: the study does not run it",
            )
        elif reason:
            yield (
                source.position(path, of_key=True),
                f"{name} has no effect under {strategy}: {reason}",
            )
    if spec.search.algorithm == "grid" and "configurations" in spec.search.model_fields_set:
        yield (
            source.position(("search", "configurations"), of_key=True),
            "configurations has no effect: a grid tries every combination",
        )
    if spec.questions and "hard_prompt" not in named:
        yield (
            source.position(("questions",), of_key=True),
            "questions have no effect: only hard_prompt asks in words, and the study does not run it",
        )
