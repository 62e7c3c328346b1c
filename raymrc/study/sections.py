"""The sections of a study file as typed, checked, frozen objects.

The sentence under a field is its documentation: `docs/study-file.md`, the JSON Schema (`raymrc schema`) and
error messages use it. Hyper-parameters come from the settings table in `configuration.py`.
"""

from __future__ import annotations

import os
import typing
from collections.abc import Iterator
from pathlib import Path as FolderPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    WithJsonSchema,
    create_model,
    model_validator,
)

from raymrc.configuration import DEFAULTS, SETTINGS, Backbone, Hyperparameter
from raymrc.corpora.formats import READERS
from raymrc.errors import suggest
from raymrc.model.backbones import BACKBONES
from raymrc.model.shapes import SHAPES
from raymrc.model.strategies import STRATEGIES
from raymrc.study.source import Steps
from raymrc.study.space import Setting
from raymrc.study.values import (
    Name,
    Path,
    Seed,
    SettingField,
    Text,
    Wanted,
    number,
    problem,
    problems,
    show,
    whole,
)


class Section(BaseModel):
    """A mapping in the study file."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, arbitrary_types_allowed=True
    )


def models_in(annotation: object) -> Iterator[type[Section]]:
    """The sections in a field's type."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from models_in(argument)


def or_empty(schema: Any) -> BeforeValidator:
    """An annotation: `resources:` with nothing beneath it is a section of defaults."""
    return BeforeValidator(lambda value: {} if value is None else value, schema | None)


def _listed(item: Any) -> BeforeValidator:
    """An annotation: a single item may stand for a list."""
    return BeforeValidator(
        lambda value: value if isinstance(value, list) else [value], item | tuple[item, ...]
    )


# --- settings and strategies ----------------------------------------------------------------------


class _Settings(Section):
    """Hyper-parameters: a value is fixed, a list is a grid, a mapping is a range to draw from."""

    def given(self) -> dict[str, Setting]:
        """The settings that the study file gives, in the order of the settings table."""
        return {name: value for name in SETTINGS if (value := getattr(self, name)) is not None}


def _description(name: str, row: Hyperparameter) -> str:
    default = DEFAULTS.get(name) if row.planned is None else row.planned
    shown = list(default) if isinstance(default, tuple) else default
    return row.doc if default is None else f"{row.doc} Default: {shown}."


if TYPE_CHECKING:
    Settings = _Settings
else:
    Settings = create_model(
        "Settings",
        __base__=_Settings,
        __doc__=_Settings.__doc__,
        __module__=__name__,
        **{
            name: (
                Annotated[Any, SettingField(row)],
                Field(default=None, description=_description(name, row)),
            )
            for name, row in SETTINGS.items()
        },
    )

StrategySettings = Annotated[Settings | None, or_empty(Settings)]


class Strategies(Section):
    """Settings by strategy. The study runs the strategies that are named at its top level."""

    fine_tune: StrategySettings = None
    """Asks no question: the backbone is trained to tag every piece."""
    hard_prompt: StrategySettings = None
    """Puts the question in words before the window, and trains the backbone."""
    soft_prompt: StrategySettings = None
    """Asks with trained vectors, and trains the backbone with them."""
    frozen_soft_prompt: StrategySettings = None
    """Asks with trained vectors, and keeps the backbone as it is."""

    def named(self) -> dict[str, Settings]:
        """The strategies in the study file, in the order of `STRATEGIES`."""
        return {name: value for name in STRATEGIES if (value := getattr(self, name)) is not None}


# --- notes ----------------------------------------------------------------------------------------


class Synthetic(Section):
    """Notes written by raymrc; the same seed gives the same notes."""

    scheme: Literal["n2c2-2018", "n2c2-2022"]
    """`n2c2-2018`: discharge summaries with drugs; `n2c2-2022`: social histories."""
    notes: Annotated[int, whole(1)]
    """Number of notes."""
    site: Literal["a", "b"] = "a"
    """Style and label prior: `a` or `b`."""
    seed: Seed = 13
    """Seed of the notes."""


class Subset(Section):
    """A part of the corpus, made of whole groups (patients, articles)."""

    notes: Annotated[int, whole(1)]
    """Minimum number of notes."""
    seed: Seed = 13
    """Seed of the selection."""


LabelSpec = (
    Text
    | Annotated[tuple[Text, ...], Field(min_length=1)]
    | Annotated[dict[str, Text], Field(min_length=1)]
)


def _known_reader(name: str) -> str:
    if name not in READERS:
        raise problem(f"there is no reader '{name}'{suggest(name, READERS)}")
    return name


class CorpusSpec(Section):
    """The notes: read from files, or written by raymrc."""

    name: Name | None = None
    """The corpus's name in tables. Default: the name of the reader or scheme."""
    reader: (
        Annotated[Text, AfterValidator(_known_reader), WithJsonSchema({"enum": [*READERS]})] | None
    ) = None
    """The file format: brat, n2c2-2018, n2c2-2022, phee, maccrobat or pubtator."""
    path: Path | None = None
    """The folder or file, relative to the current folder; `~` and environment variables are expanded."""
    synthetic: Synthetic | None = None
    """Instead of reader and path: notes written by raymrc."""
    labels: (
        Annotated[
            LabelSpec, Wanted("a map's name, a list of labels to keep, or a mapping source: target")
        ]
        | None
    ) = None
    """A built-in map by name (`drug-ade`), a list of labels to keep, or a mapping source: target that renames
    labels and drops the others. Default: the reader's own labels."""
    sites: Annotated[tuple[Text, ...], Field(min_length=1), Wanted("a list of names")] | None = None
    """Keep only notes of these sites."""
    subset: Subset | None = None
    """Keep only a part of the notes, made of whole groups."""

    @model_validator(mode="after")
    def _one_source(self) -> CorpusSpec:
        found: list[tuple[Steps, str]] = []
        if self.synthetic and (self.reader or self.path):
            both = "a corpus is read or synthetic, not both; remove reader and path, or this"
            found.append((("synthetic",), both))
        elif not self.synthetic and not self.reader:
            found.append(((), "a corpus needs reader and path, or synthetic"))
        elif not self.synthetic and not self.path:
            found.append(((), "a corpus with a reader needs a path"))
        if self.synthetic and self.sites:
            found.append((("sites",), "synthetic notes have one site; set it under synthetic"))
        if found:
            raise problems(found)
        return self

    @property
    def label_reader(self) -> str:
        """The reader whose labels this corpus has."""
        return self.reader or (self.synthetic.scheme if self.synthetic else "")

    @property
    def display_name(self) -> str:
        """The corpus's name in cells, tables and MLflow."""
        return self.name or self.reader or f"synthetic-{self.label_reader}"


class FoldSpec(Section):
    """Cross-validation. Groups stay whole, and all configurations share the folds."""

    count: Annotated[int, whole(2, 100)] = 5
    """Number of folds; each is scored once."""
    validation_share: Annotated[float, number(0.01, 0.5)] = 0.15
    """Share of the training folds' notes that is not trained on, but chooses epoch and configuration."""
    seed: Seed = 13
    """Seed of the assignment of notes to folds."""


def _different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values or len(set(values)) < len(values):
        raise problem("give at least one number, and none of them twice")
    return values


_AtLeast1 = Annotated[int, whole(1)]
ShotCounts = Annotated[tuple[_AtLeast1, ...], _listed(_AtLeast1), AfterValidator(_different)]


class FewShot(Section):
    """Training on a few notes, or on notes with a few mentions, drawn several times."""

    notes: ShotCounts | None = None
    """Numbers of training notes, such as [5, 10, 20]; each is a cell of its own. There are at most as many
    validation notes; all notes of the fold are scored."""
    mentions: ShotCounts | None = None
    """Instead of notes: numbers of gold spans. Whole notes are drawn until they hold at least this many; the
    spans of the last note all stay, and notes without spans stay, too. Validation notes likewise."""
    draws: Annotated[int, whole(1, 100)] = 3
    """Number of draws per fold. Within one draw, larger numbers of notes include smaller ones."""

    @model_validator(mode="after")
    def _one_of_two(self) -> FewShot:
        if self.notes is None and self.mentions is None:
            raise problem("give numbers of notes or mentions")
        if self.notes is not None and self.mentions is not None:
            raise problems([(("mentions",), "give notes or mentions, not both")])
        return self

    @property
    def shots_of(self) -> Literal["notes", "mentions"]:
        """What is counted."""
        return "mentions" if self.notes is None else "notes"

    @property
    def shots(self) -> tuple[int, ...]:
        """The numbers, one per cell."""
        return self.notes or self.mentions or ()


class FinalTest(Section):
    """Held-out notes, which `raymrc test` scores once after everything has been chosen."""

    corpus: CorpusSpec | None = None
    """The notes, such as a shared task's test set. None of them may be in the study's corpus."""
    share: Annotated[float, number(0.01, 0.5)] | None = None
    """Instead of corpus: a share of the study's own notes, made of whole groups, that no fold sees."""
    seed: Seed = 13
    """Seed of the choice of held-out notes."""
    seeds: Annotated[tuple[Seed, ...], _listed(Seed), AfterValidator(_different)] = (1, 2, 3)
    """One model per seed is trained on all of the study's notes."""

    @model_validator(mode="after")
    def _one_source(self) -> FinalTest:
        if (self.corpus is None) == (self.share is None):
            raise problem("a final test needs a corpus or a share of the study's own notes")
        return self


# --- backbones ------------------------------------------------------------------------------------


class BackboneSpec(Section):
    """A pretrained encoder: a known name, a Hugging Face id or a folder."""

    name: Text
    """A name known to raymrc, a Hugging Face id (with a '/') or a folder; any name if `source` is given."""
    source: Path | None = None
    """A Hugging Face id, or a folder with config, weights and tokenizer."""
    revision: Text = ""
    """Commit or tag on the hub."""
    layers: Annotated[int, whole(1, 1000)] | None = None
    """Keep only the first layers, this many. Default: all."""
    strategies: Annotated[Strategies, or_empty(Strategies)] = Strategies()
    """Settings for this backbone, by strategy; they override all others."""
    _source: str = PrivateAttr(default="")

    @model_validator(mode="after")
    def _is_known(self) -> BackboneSpec:
        found, field = "", "name"
        source = self.source
        if source is None and self.name in BACKBONES:
            source = self.name
            if not BACKBONES[source].hub:
                found = f"{source} was never released; give your folder as its source"
        elif source is None:
            source = os.path.expandvars(os.path.expanduser(self.name))
            if "/" not in source and not FolderPath(source).is_dir():
                found = (
                    f"unknown backbone '{self.name}'{suggest(self.name, BACKBONES)} "
                    "(or give its source: a folder or a Hugging Face id)"
                )
        shape = SHAPES.get(source, SHAPES.get(self.name))
        if shape is not None and self.layers is not None and self.layers > shape.num_layers:
            field = "layers"
            found = f"{self.name} has {shape.num_layers} layers, not {self.layers}"
        if found:
            raise problems([((field,), found)])
        self._source = source
        return self

    @property
    def backbone(self) -> Backbone:
        """As cells and the ledger know it."""
        name = FolderPath(self.name).name + ("" if self.layers is None else f"-l{self.layers}")
        return Backbone(name=name, source=self._source, revision=self.revision, layers=self.layers)


BackboneEntry = Annotated[
    BackboneSpec,
    BeforeValidator(
        lambda value: {"name": value} if isinstance(value, str) else value, Text | BackboneSpec
    ),
]


# --- search and racing ----------------------------------------------------------------------------


class Search(Section):
    """How configurations are chosen in each cell."""

    algorithm: Literal["grid", "random", "tpe"] = "grid"
    """`grid`: every combination of the lists; `random`: random draws; `tpe`: proposed by
    Optuna's TPE sampler."""
    configurations: Annotated[int, whole(1, 100_000)] = 8
    """Maximum number of configurations per cell, for random and tpe."""
    seed: Seed = 13
    """Seed of random draws and of tpe. More configurations with the same seed extend the earlier ones."""


def _shares(values: tuple[float, ...]) -> tuple[float, ...]:
    if not values or values[-1] != 1 or list(values) != sorted(set(values)):
        raise problem("give ascending shares of the epochs that end with 1, such as [0.1, 0.3, 1]")
    return values


_Share = Annotated[float, number(above=0, high=1)]


class RacingSpec(Section):
    """Stops configurations that can no longer win their cell."""

    error_rate: Annotated[float, number(0.0001, 0.5)] = 0.05
    """Approximate probability of stopping the configuration that would have won its cell. With few scored
    notes the true rate is higher; `raymrc simulate` measures it on a full grid."""
    rungs: Annotated[tuple[_Share, ...], _listed(_Share), AfterValidator(_shares)] = (
        0.1, 0.3, 0.6, 1.0,
    )  # fmt: skip
    """Shares of a fold-run's epochs at which it may pause until it is worth continuing."""
    min_folds: Annotated[int, whole(1)] = 1
    """A configuration is stopped only after it has reached the first rung on this many folds."""


def racing_entry(value: Any) -> Any:
    if value in (None, "none"):
        return None
    if value == "paired":
        return {}
    if isinstance(value, dict):
        return value
    raise problem(f"{show(value)} is not none, paired, or a mapping such as {{error_rate: 0.05}}")


# --- machines, failures, money --------------------------------------------------------------------


class Workers(Section):
    """How many devices train one model together."""

    min: Annotated[int, whole(1)] = 1
    """Minimum; the number is larger if the model needs more memory."""
    max: Annotated[int, whole(1)]
    """Maximum."""

    @model_validator(mode="after")
    def _in_order(self) -> Workers:
        if self.min > self.max:
            sentence = f"the minimum of {self.min} devices is above the maximum of {self.max}"
            raise problems([(("min",), sentence)])
        return self


def _workers_entry(value: Any) -> Any:
    if value in (None, "auto"):
        return None
    if isinstance(value, dict):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return {"min": value, "max": value}
    wanted = "auto, a whole number of 1 or more, or a mapping such as {min: 2, max: 8}"
    raise problem(f"{show(value)} is not {wanted}")


class Resources(Section):
    """What one host holds: a process with a backbone in memory and the fold-runs that train on it."""

    cpus_per_host: Annotated[float, number(0)] = 1.0
    """CPU cores."""
    gpus_per_host: Annotated[float, number(0)] = 0.0
    """GPUs; with a fraction, several hosts share one."""
    max_hosts: Annotated[int, whole(1)] | None = None
    """Maximum number of hosts at once; each device of a worker group counts. Default: as many as fit."""
    lanes_per_host: Annotated[int, whole(1)] | None = None
    """Maximum number of frozen fold-runs on one host at once. Default: 4 on CPUs, 32 on a GPU."""
    workers: Annotated[
        Workers | None,
        BeforeValidator(_workers_entry, Literal["auto"] | _AtLeast1 | Workers | None),
    ] = None
    """Devices that train one model together: `auto` (as few as memory allows), a number, or a mapping
    {min, max}. A device is a GPU, or `cpus_per_host` cores. A frozen backbone that fits one device stays on
    one."""
    device_memory: Annotated[float, number(above=0)] | None = None
    """GiB of memory per device. Default: 80 on GPUs; on CPUs a host's share of 80 % of this machine's
    memory."""
    same_machine: bool = Field(default=False, strict=True)
    """Whether the devices of a worker group must be on one machine, which is much faster if its GPUs are
    connected directly. If no machine has enough devices, the run says so."""


class Failures(Section):
    """What happens to fold-runs that fail, and to their cells."""

    retries: Annotated[int, whole(0, 100)] = 1
    """Maximum number of retries of a failed fold-run within one run, after errors of the machine or its
    software and after memory shortage. Errors that would recur are not retried, such as a loss that is not a
    number, unreadable weights, or a fold-run that has killed several processes."""
    close_cell_after: Annotated[int, whole(1)] | None = 5
    """After this many consecutive failing configurations, with no finished fold-run of the cell between them,
    the cell is abandoned for this run; null: never."""


class Prices(Section):
    """The price of device time."""

    device_hour_usd: Annotated[float, number(0)] = 0.0
    """US dollars per device (GPU or CPU core) and hour."""
    note: Text | None = None
    """Source and date of the price."""


_Limit = Annotated[float, number(above=0)]


class BudgetSpec(Section):
    """The limit on what all runs of the study may spend together. Work that is not expected to fit is not
    started; near the limit, training is saved, and it resumes under a larger budget."""

    usd: _Limit | None = None
    """US dollars of device time, at `prices.device_hour_usd`."""
    gpu_hours: _Limit | None = None
    """Hours of devices held by hosts, from a host's start to its end, idle or not. Without GPUs a device is a
    CPU core."""
    device_hours: _Limit | None = None
    """Another name for `gpu_hours`."""
    wall_hours: _Limit | None = None
    """Hours during which `raymrc run` or `raymrc test` works on the study; two at once count once."""

    @model_validator(mode="after")
    def _has_a_limit(self) -> BudgetSpec:
        if (self.usd, self.hours, self.wall_hours) == (None, None, None):
            raise problem("a budget needs a limit: usd, gpu_hours or wall_hours")
        if self.gpu_hours is not None and self.device_hours is not None:
            both = "gpu_hours and device_hours are the same limit; remove one of them"
            raise problems([(("device_hours",), both)])
        return self

    @property
    def hours(self) -> float | None:
        """Device hours, under either name."""
        return self.device_hours if self.gpu_hours is None else self.gpu_hours


class MlflowSpec(Section):
    """The MLflow store of the study's runs."""

    tracking_uri: Path | None = None
    """A tracking server or database. Default: SQLite in the study's folder."""
    experiment: Text | None = None
    """The experiment's name. Default: the study's name."""
    register_models: Literal["all", "frozen", "none"] = "all"
    """Which models of a final test go into the model registry, one version per cell: `all` winners, those on
    a `frozen` backbone, or `none`. A version is a copy of the saved adapter: megabytes for a frozen backbone,
    the whole backbone for a trained one."""
