"""The study file as typed, checked, frozen objects.

    YAML -> values with positions -> sections (pydantic) -> checks across sections -> Spec

All problems are reported at once, in file order, each with its place and the nearest
right name. The sentence under a field is its documentation: `docs/study-file.md` and
an editor's hints are made from it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PrivateAttr,
    model_validator,
)

from raymrc.configuration import Backbone
from raymrc.corpora.formats import READERS
from raymrc.errors import SpecError, suggest
from raymrc.ledger.storage import hide_password
from raymrc.model.backbones import BACKBONES
from raymrc.model.shapes import MAX_PROMPT_LENGTH, SHAPES
from raymrc.model.strategies import STRATEGIES
from raymrc.reading.relations import TASKS
from raymrc.study.source import Steps, StudyFile
from raymrc.study.space import Setting
from raymrc.study.values import (
    Leaf,
    Wrong,
    checked,
    folder,
    number,
    or_none,
    problems,
    setting,
    show,
    storage_place,
    text,
    three_weights,
    truth,
    whole,
    word,
)

PLAIN_NAME = text(
    r"[A-Za-z0-9][A-Za-z0-9_.-]*", "a plain name: letters, digits, '-', '_' and '.', no spaces"
)
Name = Annotated[str, checked(PLAIN_NAME)]
Text = Annotated[str, checked(text())]
Seed = Annotated[int, checked(whole(0))]
_Place = Annotated[str | None, checked(or_none(folder))]


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

    learning_rate: Annotated[Setting | None, setting(number(above=0, high=10))] = None
    """Of the backbone where it is trained; of prompts and heads where it is frozen. Required, here or
    under a strategy. Published: 1e-5 to 5e-5 for a trained backbone, 5e-3 to 6e-2 for a frozen one;
    small backbones want more of both."""
    prompt_learning_rate: Annotated[Setting | None, setting(or_none(number(above=0, high=10)))] = (
        None
    )
    """Of soft prompts; as `learning_rate` where not given."""
    head_learning_rate: Annotated[Setting | None, setting(or_none(number(above=0, high=10)))] = None
    """Of the heads; as `learning_rate` where not given."""
    prompt_length: Annotated[Setting | None, setting(whole(1, MAX_PROMPT_LENGTH))] = None
    """Trained vectors per label, 1 to 512; 32 where not given. Only for soft prompts."""
    prompt_depth: Annotated[Setting | None, setting(word("input", "deep"))] = None
    """Where the vectors enter: `deep`, at every layer from `first_layer` on, or `input`, at that
    layer only."""
    first_layer: Annotated[Setting | None, setting(whole(0))] = None
    """Layers below this one see no prompt; 0 is the published setting."""
    reparametrisation: Annotated[Setting | None, setting(word("none", "mlp", "lstm"))] = None
    """What the vectors are computed with while training: `none`, `mlp` or `lstm`. The last two want a rate of
    about a thirtieth."""
    prompt_initialisation: Annotated[
        Setting | None, setting(word("random", "question", "adapter"))
    ] = None
    """What the vectors start from: `random`, at the scale of the backbone's own words (the default);
    `question`, what the backbone makes of the label's question in words; or `adapter`, the label's trained
    vectors in `initial_prompt`. The last two want `reparametrisation: none`."""
    epochs: Annotated[Setting | None, setting(whole(1))] = None
    """Passes over the training examples."""
    batch_size: Annotated[Setting | None, setting(whole(1))] = None
    """Rows, each a window with one question, per optimiser step."""
    weight_decay: Annotated[Setting | None, setting(number(0, 10))] = None
    """Of AdamW."""
    clip_norm: Annotated[Setting | None, setting(number(above=0))] = None
    """The largest gradient norm that a step keeps."""
    negative_rate: Annotated[Setting | None, setting(number(0, 1))] = None
    """Share, 0 to 1, of the training rows without an answer that each epoch samples. Scored notes are
    always asked everything."""
    window: Annotated[Setting | None, setting(whole(8))] = None
    """Pieces of note text per window, at most."""
    overlap: Annotated[Setting | None, setting(whole(0))] = None
    """Pieces that neighbouring windows share, at least."""
    context_sentences: Annotated[Setting | None, setting(whole(0))] = None
    """Sentences read on each side of a given mention's own, where relations are asked for; 1 where not
    given. A relation that reaches further is missed, and counted."""
    relation_answers: Annotated[Setting | None, setting(word("mentions", "spans"))] = None
    """Where a relation's other mention comes from: `mentions`, chosen among those that are given or were
    found (the default), or `spans`, read off the text. Pair classification (`fine_tune`) always chooses."""
    overlapping_answers: Annotated[Setting | None, setting(word("all", "surest"))] = None
    """What becomes of answers to one question about a label that share text: the `surest` of them that lie
    apart are kept (the default), or `all`, for labels whose spans nest in themselves. It changes nothing that
    is trained, but for the epoch that is chosen. Answers about relations are all kept."""
    match_width: Annotated[Setting | None, setting(whole(1))] = None
    """Width of the hidden layer of the head that pairs starts with ends."""
    loss_weights: Annotated[Setting | None, setting(three_weights)] = None
    """Of start, end and match, used normalised."""
    dropout: Annotated[Setting | None, setting(number(0, 0.99))] = None
    """In the heads and, where it is trained, in the backbone."""
    seed: Annotated[Setting | None, setting(whole(0))] = None
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

    scheme: Annotated[str, checked(word("n2c2-2018", "n2c2-2022"))]
    """`n2c2-2018`: discharge summaries with drugs; `n2c2-2022`: social histories."""
    notes: Annotated[int, checked(whole(1))]
    """How many."""
    site: Annotated[str, checked(word("a", "b"))] = "a"
    """Style and label prior: `a` or `b`."""
    seed: Seed = 13
    """Another seed gives other notes."""


class Subset(_Section):
    """A part of the corpus, of whole groups (patients, articles)."""

    notes: Annotated[int, checked(whole(1))]
    """At least so many notes."""
    seed: Seed = 13
    """Which ones."""


LabelSpec = str | tuple[str, ...] | dict[str, str] | None


def _labels(value: Any) -> LabelSpec:
    """A built-in map's name, a list to keep, or a mapping source: target."""
    read = text().read
    if isinstance(value, list) and value:
        return tuple(read(item) for item in value)
    if isinstance(value, dict) and value:
        return {str(source): read(target) for source, target in value.items()}
    if isinstance(value, str) and value:
        return value
    wanted = "a map's name, a list of labels to keep, or a mapping source: target"
    raise Wrong(f"{show(value)} is not {wanted}")


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise Wrong(f"{show(value)} is not a list of names")
    return tuple(text().read(item) for item in value)


def _each(value: Any, leaf: Leaf) -> tuple[Any, ...]:
    """A list's items; one may stand alone."""
    items = value if isinstance(value, list | tuple) else [value]
    try:
        return tuple(leaf.read(item) for item in items)
    except Wrong as wrong:
        raise problems([((), str(wrong))]) from None


def _numbers(low: int, what: str) -> Callable[[Any], tuple[int, ...]]:
    """Different whole numbers, of at least `low`; one may stand alone."""

    def read(value: Any) -> tuple[int, ...]:
        found = _each(value, whole(low))
        if not found or len(set(found)) < len(found):
            raise problems([((), f"wants different {what}, at least one")])
        return found

    return read


def _reader(value: Any) -> str:
    name = text().read(value)
    if name not in READERS:
        raise Wrong(f"there is no reader '{name}'{suggest(name, READERS)}")
    return name


class CorpusSpec(_Section):
    """The notes: read from files, or written by raymrc."""

    name: Annotated[str | None, checked(or_none(PLAIN_NAME))] = None
    """What tables call the corpus; the reader's or scheme's name where not given."""
    reader: Annotated[str | None, checked(or_none(Leaf(_reader)))] = None
    """The file format: brat, n2c2-2018, n2c2-2022, phee, maccrobat or pubtator."""
    path: Annotated[str | None, checked(or_none(folder))] = None
    """Where the files lie, from the current folder; `~` and environment variables are filled in."""
    synthetic: Synthetic | None = None
    """Instead of reader and path: notes that raymrc writes."""
    labels: Annotated[LabelSpec, checked(or_none(Leaf(_labels)))] = None
    """A built-in map by name (`drug-ade`), a list of labels to keep, or a mapping source: target that
    renames and keeps only what it names; the reader's own labels where not given."""
    sites: Annotated[tuple[str, ...] | None, checked(or_none(Leaf(_names)))] = None
    """Only notes of these sites."""
    subset: Subset | None = None
    """Only a part of the notes, of whole groups."""

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
        """What cells, tables and MLflow call it."""
        if self.name:
            return self.name
        return self.reader or f"synthetic-{self.label_reader}"


class FoldSpec(_Section):
    """Cross-validation. Whole groups stay together, and all configurations share the folds."""

    count: Annotated[int, checked(whole(2, 100))] = 5
    """How many folds; each is scored once."""
    validation_share: Annotated[float, checked(number(0.01, 0.5))] = 0.15
    """Share of the training folds' notes that chooses epoch and configuration and is not trained on."""
    seed: Seed = 13
    """Who is in which fold."""


class FewShot(_Section):
    """Training on few notes, drawn several times: so many notes, or so many mentions."""

    notes: Annotated[tuple[int, ...] | None, BeforeValidator(_numbers(1, "numbers of notes"))] = (
        None
    )
    """How many training notes, each a cell of its own, such as [5, 10, 20]. Validation notes are as many at
    most; scored are all of the fold's."""
    mentions: Annotated[
        tuple[int, ...] | None, BeforeValidator(_numbers(1, "numbers of mentions"))
    ] = None
    """Instead of notes: how many gold spans they hold. Whole notes are drawn until there are at least so
    many; all that the last one holds stays, and notes without any count, too. Validation notes likewise."""
    draws: Annotated[int, checked(whole(1, 100))] = 3
    """How often they are drawn, in each fold. In a draw fewer are part of more."""

    @model_validator(mode="after")
    def _one_of_two(self) -> FewShot:
        if self.notes is None and self.mentions is None:
            raise problems([((), "say how many: notes or mentions")])
        if self.notes is not None and self.mentions is not None:
            both = "notes are counted or mentions, not both; remove one of them"
            raise problems([(("mentions",), both)])
        return self

    @property
    def shots_of(self) -> Literal["notes", "mentions"]:
        """What is counted."""
        return "mentions" if self.notes is None else "notes"

    @property
    def shots(self) -> tuple[int, ...]:
        """How many, each a cell of its own."""
        return self.notes or self.mentions or ()


class FinalTest(_Section):
    """Held-out notes. `raymrc test` scores them once, when all has been chosen."""

    corpus: CorpusSpec | None = None
    """The notes, such as a shared task's test set. None of them may be in the study's corpus."""
    share: Annotated[float | None, checked(or_none(number(0.01, 0.5)))] = None
    """Instead: a share of the study's own notes, whole groups, that no fold sees."""
    seed: Seed = 13
    """Which notes the share holds out."""
    seeds: Annotated[tuple[int, ...], BeforeValidator(_numbers(0, "seeds"))] = (1, 2, 3)
    """Of the models that are trained anew: one for each, on all of the study's notes."""

    @model_validator(mode="after")
    def _one_source(self) -> FinalTest:
        if (self.corpus is None) == (self.share is None):
            raise problems(
                [((), "a final test needs a corpus or a share of the study's own notes")]
            )
        return self


class BackboneSpec(_Section):
    """A pretrained encoder: a known name, a Hugging Face id or a folder."""

    name: Text
    """A name that raymrc knows, a Hugging Face id (with a '/') or a folder; with `source`, any name."""
    source: Annotated[str | None, checked(or_none(folder))] = None
    """A Hugging Face id or a folder with config, weights and tokenizer."""
    revision: Annotated[str, checked(text())] = ""
    """Commit or tag on the hub."""
    layers: Annotated[int | None, checked(or_none(whole(1, 1000)))] = None
    """Take the first so many layers; all where not given."""
    strategies: Annotated[Strategies, BeforeValidator(_empty_is_default)] = Strategies()
    """Settings for this backbone alone, by strategy; they go before all others."""
    _source: str = PrivateAttr(default="")

    @model_validator(mode="after")
    def _is_known(self) -> BackboneSpec:
        problem, field = "", "name"
        source = self.source
        if source is None and self.name in BACKBONES:
            source = self.name
            if not BACKBONES[source].hub:
                problem = f"{source} was never released; give your folder as its source"
        elif source is None:
            source = os.path.expandvars(os.path.expanduser(self.name))
            if "/" not in source and not Path(source).is_dir():
                problem = (
                    f"unknown backbone '{self.name}'{suggest(self.name, BACKBONES)} "
                    "(or give its source: a folder or a Hugging Face id)"
                )
        shape = SHAPES.get(source, SHAPES.get(self.name))
        if shape is not None and self.layers is not None and self.layers > shape.num_layers:
            field = "layers"
            problem = f"{self.name} has {shape.num_layers} layers, not {self.layers}"
        if problem:
            raise problems([((field,), problem)])
        self._source = source
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

    algorithm: Annotated[str, checked(word("grid", "random", "tpe"))] = "grid"
    """`grid`: every combination of the lists; `random`: drawn; `tpe`: proposed by Optuna from the
    results so far."""
    configurations: Annotated[int, checked(whole(1, 100_000))] = 8
    """How many configurations per cell, for random and tpe; fewer where there are not so many."""
    seed: Seed = 13
    """Of random draws and of tpe. More configurations with the same seed extend the earlier ones."""


def _shares(value: Any) -> tuple[float, ...]:
    """Ascending shares of the epochs, of which the last is all."""
    found = _each(value, number(above=0, high=1))
    if not found or found[-1] != 1 or list(found) != sorted(set(found)):
        wanted = "ascending shares of the epochs, the last of them 1, such as [0.1, 0.3, 1]"
        raise problems([((), f"wants {wanted}")])
    return found


class RacingSpec(_Section):
    """Stopping configurations that can no longer win their cell."""

    error_rate: Annotated[float, checked(number(0.0001, 0.5))] = 0.05
    """The configuration that would have won a cell is stopped with at most about this probability. Where
    few notes are scored more are lost than stated; `raymrc simulate` tells on a full grid."""
    rungs: Annotated[tuple[float, ...], BeforeValidator(_shares)] = (0.1, 0.3, 0.6, 1.0)
    """Shares of a fold-run's epochs at which it may pause, to see whether it is worth going on."""
    min_folds: Annotated[int, checked(whole(1))] = 1
    """No configuration is stopped before it has reached the first rung on so many folds."""


def _racing_entry(value: Any) -> Any:
    """`none` for the full grid, `paired` for a section of defaults."""
    if value in (None, "none"):
        return None
    if value == "paired":
        return {}
    if isinstance(value, dict):
        return value
    wanted = "none, paired, or a mapping such as {error_rate: 0.05}"
    raise problems([((), f"{show(value)} is not {wanted}")])


class Workers(_Section):
    """How many devices train one model together."""

    min: Annotated[int, checked(whole(1))] = 1
    """At least so many; more where the model needs more."""
    max: Annotated[int, checked(whole(1))]
    """At most so many, where there is room."""

    @model_validator(mode="after")
    def _in_order(self) -> Workers:
        if self.min > self.max:
            sentence = f"{self.min} devices at least are more than {self.max} at most"
            raise problems([(("min",), sentence)])
        return self


def _workers_entry(value: Any) -> Any:
    """A number stands for a mapping with only that number; `auto` for nothing."""
    if value in (None, "auto"):
        return None
    if isinstance(value, dict):
        return value
    try:
        number_of = whole(1).read(value)
    except Wrong:
        wanted = "auto, a whole number of 1 or more, or a mapping such as {min: 2, max: 8}"
        raise problems([((), f"{show(value)} is not {wanted}")]) from None
    return {"min": number_of, "max": number_of}


class Resources(_Section):
    """What one host holds: a process with a backbone in memory, and the fold-runs that train on it."""

    cpus_per_host: Annotated[float, checked(number(0))] = 1.0
    """CPU cores."""
    gpus_per_host: Annotated[float, checked(number(0))] = 0.0
    """GPUs; a fraction lets several hosts share one."""
    max_hosts: Annotated[int | None, checked(or_none(whole(1)))] = None
    """At most so many hosts at once, each device of a worker group counted; as many as fit where not
    given."""
    lanes_per_host: Annotated[int | None, checked(or_none(whole(1)))] = None
    """At most so many frozen fold-runs on one host at once; 4 on CPUs and 32 on a GPU where not given."""
    workers: Annotated[Workers | None, BeforeValidator(_workers_entry)] = None
    """Devices that train one model together: `auto` (no more than memory asks for), a number, or a mapping
    {min, max}. A device is a GPU, or `cpus_per_host` cores. Frozen backbones that fit one device stay on
    one."""
    device_memory: Annotated[float | None, checked(or_none(number(above=0)))] = None
    """GiB of one device. Where not given: 80 on GPUs, and on CPUs a host's share of 0.8 of this machine's
    memory."""
    same_machine: Annotated[bool, checked(truth)] = False
    """Whether the devices of a worker group have to be of one machine: faster by far where its GPUs are
    wired to each other. Where no machine can have so many, the run says so."""


class Failures(_Section):
    """What becomes of fold-runs that fail, and of cells in which they do."""

    retries: Annotated[int, checked(whole(0, 100))] = 1
    """A failed fold-run is tried again so often within a run, where that may help: after an error of the
    machine or its software, and for want of memory. Not after what stays as it is, such as a loss that is
    not a number or weights that cannot be read, and not where several processes died of it."""
    close_cell_after: Annotated[int | None, checked(or_none(whole(1)))] = 5
    """After so many configurations in a row that failed, with no fold-run of their cell done in between,
    nothing more of the cell is started in this run; null: never."""


class Prices(_Section):
    """What device time costs."""

    device_hour_usd: Annotated[float, checked(number(0))] = 0.0
    """US dollars for one device (a GPU, or a CPU core) for one hour."""
    note: Annotated[str | None, checked(or_none(text()))] = None
    """Whose price, of which day."""


class BudgetSpec(_Section):
    """What the study may spend in all, over every run of it. Work that is not expected to fit in what is left
    is not begun; what trains when a limit comes near is saved, and a larger budget goes on with it."""

    usd: Annotated[float | None, checked(or_none(number(above=0)))] = None
    """US dollars of device time, at `prices.device_hour_usd`."""
    gpu_hours: Annotated[float | None, checked(or_none(number(above=0)))] = None
    """Hours of devices that hosts hold, from a host's start until it is gone, idle or not. Without GPUs a
    device is a CPU core."""
    device_hours: Annotated[float | None, checked(or_none(number(above=0)))] = None
    """Another name for `gpu_hours`."""
    wall_hours: Annotated[float | None, checked(or_none(number(above=0)))] = None
    """Hours in which `raymrc run` or `raymrc test` is at the study; two at once count once."""

    @model_validator(mode="after")
    def _says_something(self) -> BudgetSpec:
        if (self.usd, self.hours, self.wall_hours) == (None, None, None):
            raise problems([((), "say what is limited: usd, gpu_hours or wall_hours")])
        if self.gpu_hours is not None and self.device_hours is not None:
            both = "gpu_hours and device_hours are one limit; remove one of them"
            raise problems([(("device_hours",), both)])
        return self

    @property
    def hours(self) -> float | None:
        """Of devices, by whichever name."""
        return self.device_hours if self.gpu_hours is None else self.gpu_hours


class MlflowSpec(_Section):
    """Where runs are shown."""

    tracking_uri: Annotated[str | None, checked(or_none(folder))] = None
    """A tracking server or database; SQLite in the study's folder where not given."""
    experiment: Annotated[str | None, checked(or_none(text()))] = None
    """The experiment's name; the study's where not given."""
    register_models: Annotated[
        Literal["all", "frozen", "none"], checked(word("all", "frozen", "none"))
    ] = "all"
    """What of a final test goes into the model registry, a version a cell: `all` winners, those on a `frozen`
    backbone, or `none`. A version is a copy of the saved adapter: megabytes where the backbone is frozen, all
    of the backbone where it is trained."""


class Spec(_Section):
    """A study: which backbones and strategies to compare, on which notes, searched how, kept where."""

    study: Name
    """The study's name; also the name of its MLflow experiment."""
    task: Annotated[Literal["concepts", "relations", "end_to_end"], checked(word(*TASKS))]
    """What is looked for: `concepts`, the labelled spans of a note; `relations`, between spans that are
    given; `end_to_end`, relations between spans that are found, too."""
    corpus: CorpusSpec
    """The notes."""
    transfer: tuple[CorpusSpec, ...] = ()
    """Notes of other sites, which every fold-run is scored on, too, when it is done. None of them is trained
    on or chooses anything. Labels are brought together by each corpus's own `labels`."""
    folds: Annotated[FoldSpec, BeforeValidator(_empty_is_default)] = FoldSpec()
    """Cross-validation."""
    few_shot: FewShot | None = None
    """Training on few notes or mentions instead of all of the training folds'."""
    final_test: FinalTest | None = None
    """Held-out notes, which nothing is trained on or chosen by."""
    backbones: tuple[Annotated[BackboneSpec, BeforeValidator(_backbone_entry)], ...]
    """Names, or mappings with more to say; at least one."""
    strategies: Strategies
    """The strategies to run, each with its own settings; at least one."""
    training: Annotated[Settings, BeforeValidator(_empty_is_default)] = Settings()
    """Settings for all strategies; those of a strategy go before them."""
    search: Annotated[Search, BeforeValidator(_empty_is_default)] = Search()
    """How configurations are chosen."""
    racing: Annotated[RacingSpec | None, BeforeValidator(_racing_entry)] = None
    """`none` trains every configuration on every fold, the full grid; `paired`, or a mapping with more to
    say, compares the configurations of each cell while they train, fold by fold and epoch by epoch, and
    stops those that can no longer win."""
    questions: Annotated[dict[str, Text], BeforeValidator(_empty_is_default)] = {}
    """Label: the question that hard prompts ask, and that soft prompts may start from, instead of the
    built-in one."""
    initial_prompt: _Place = None
    """A trained adapter, its file or folder, whose prompts those with `prompt_initialisation: adapter` start
    from, by label. It has to be of the same backbone, and its prompts as long and at the same layers."""
    resources: Annotated[Resources, BeforeValidator(_empty_is_default)] = Resources()
    """What one trial holds."""
    failures: Annotated[Failures, BeforeValidator(_empty_is_default)] = Failures()
    """What becomes of fold-runs that fail."""
    prices: Annotated[Prices, BeforeValidator(_empty_is_default)] = Prices()
    """What device time costs."""
    budget: BudgetSpec | None = None
    """What the study may spend in all; no limit where not given. It changes no result."""
    equivalence_points: Annotated[float, checked(number(above=0, high=100))] = 1.0
    """Points of F1 that make no difference in practice: `raymrc report` says how likely a frozen backbone is
    that close to a trained one."""
    storage: Annotated[str, checked(storage_place)]
    """Where the ledger and all else of the study is kept: a folder, or a URL such as s3://bucket/study."""
    mlflow: Annotated[MlflowSpec, BeforeValidator(_empty_is_default)] = MlflowSpec()
    """Where runs are shown."""

    _read_from: StudyFile = PrivateAttr()
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
    def arguments(self) -> str:
        """What a command is given to mean this very study, quoted for a shell; no password is in it."""
        changes = [hide_password(override) for _, override in self._read_from.overrides]
        return shlex.join([self.path, *(part for change in changes for part in ("--set", change))])

    @property
    def num_folds(self) -> int:
        """Fold-runs of a configuration: folds, times draws where few notes are drawn."""
        return self.folds.count * (self.few_shot.draws if self.few_shot else 1)

    @property
    def experiment(self) -> str:
        return self.mlflow.experiment or self.study

    @property
    def folder(self) -> Path:
        """A local folder, also for what cannot live in an object store, such as MLflow's SQLite."""
        local = self.storage.removeprefix("file://")
        return Path("runs") / self.study if "://" in local else Path(local)

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
