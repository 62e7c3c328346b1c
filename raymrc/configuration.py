"""What is trained, as plain values that travel everywhere: driver, trial, host, ledger.

    Cell -> Configuration -> FoldRun

The settings table is the body of `Configuration`: each hyper-parameter is one field with its bounds, default,
the cells where it applies, and its documentation. Study files, their checks and docs, planning and memory
estimates loop over the table; `sweep`, `ledger`, `tracking` and `report` carry configurations unopened.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from enum import Enum
from typing import Any, Literal

RESULT_FORMAT = 2
"""Raise this if the meaning of a recorded number changes: older records are then not reused."""

MAX_PROMPT_LENGTH = 512


@dataclass(frozen=True, slots=True)
class Backbone:
    """A pretrained encoder, by name.

    Args:
        name: shown in tables and MLflow, such as "minilm-l2".
        source: a Hugging Face id or a local folder.
        revision: commit or tag on the hub; "" for a folder or the default.
        layers: keep only the first `layers` layers; None keeps all.
    """

    name: str
    source: str
    revision: str = ""
    layers: int | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """What gets compared: a backbone under a strategy on a task and corpus.

    Args:
        shots: number of training notes, or of gold mentions in them; None trains on all notes of the
            training folds.
        shots_of: what `shots` counts: "notes" or "mentions".
    """

    task: str
    corpus: str
    backbone: Backbone
    strategy: str
    shots: int | None = None
    shots_of: str = "notes"

    @property
    def values(self) -> dict[str, Any]:
        """The fields that name this cell in a hash."""
        return _keyed_cell(asdict(self))

    @property
    def name(self) -> str:
        shots = "" if self.shots is None else f"/{self.shots} {self.shots_of}"
        return f"{self.corpus}/{self.backbone.name}/{self.strategy}{shots}"


# --- the settings table ---------------------------------------------------------------------------

DURATION_PATTERN = (
    r"^([0-9]+(?:\.[0-9]+)?) (epochs|steps|device-seconds)(?:, at least ([0-9]+) steps)?$"
)
"""How a study file writes a `Duration`."""


@dataclass(frozen=True, slots=True)
class Duration:
    """How long a fold-run trains.

    Args:
        at_least: optimiser steps that so many epochs are extended to; 0 if they are not.
    """

    amount: float
    unit: Literal["epochs", "steps", "device-seconds"]
    at_least: int = 0

    def __str__(self) -> str:
        amount = int(self.amount) if self.amount.is_integer() else self.amount
        return f"{amount} {self.unit}" + f", at least {self.at_least} steps" * bool(self.at_least)

    @classmethod
    def read(cls, text: str) -> Duration:
        """
        Raises:
            ValueError: the text is not a duration above 0, has a fraction of an epoch or a step, or extends
                something other than epochs.
        """
        found = re.match(DURATION_PATTERN, text)
        if found is None:
            raise ValueError(text)
        amount, unit, at_least = float(found[1]), found[2], int(found[3] or 0)
        if amount <= 0 or (unit != "device-seconds" and not amount.is_integer()):
            raise ValueError(text)
        if found[3] is not None and (unit != "epochs" or not at_least):
            raise ValueError(text)
        return cls(amount, unit, at_least)  # type: ignore[arg-type]

    def steps(self, per_epoch: float) -> float | None:
        """Optimiser steps, of which an epoch has `per_epoch`; None if device-seconds decide."""
        match self.unit:
            case "epochs":
                return max(self.amount * per_epoch, self.at_least)
            case "steps":
                return self.amount
            case "device-seconds":
                return None

    def times(self, share: float) -> Duration:
        """This share of it, whole where it has to be, and at least one."""
        amount = self.amount * share
        if self.unit == "device-seconds":
            return replace(self, amount=amount)
        whole = float(max(1, round(amount)))
        return replace(self, amount=whole, at_least=round(self.at_least * share))


class Condition(Enum):
    """What a cell must have for a setting to matter. The value is the warning if the cell lacks it."""

    SOFT_PROMPT = "it has no soft prompt"
    SPAN_HEADS = "it classifies pieces and pairs of mentions, and has no match head"
    LABELS = "mentions are given, each in its own window"
    RELATIONS = "the task asks for no relations"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameter:
    """One row of the settings table.

    Args:
        kind: "weights" are three numbers of 0 or more, not all 0; "duration" is read by `Duration`.
        doc: its documentation in the study file.
        low, high: inclusive bounds; `above`: an exclusive lower bound.
        options: the words to choose from.
        optional: None is a value, too.
        needs: in cells without these the setting changes nothing, and configurations leave it at its default.
        planned: the value that planning fills in if the study gives none; None: the field's default.
        planned_needs: where planning fills it in, if not in the cells of `needs`.
        changes: what depends on it: the number of trained parameters (and with them memory), or memory only.
        later: added after the first ledgers were written. At its default it stays out of ledger keys, so that
            existing keys remain valid: every new setting is `later`.
    """

    kind: Literal["whole", "number", "word", "weights", "duration"]
    doc: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    options: tuple[str, ...] = ()
    optional: bool = False
    needs: tuple[Condition, ...] = ()
    planned: Any = None
    planned_needs: tuple[Condition, ...] | None = None
    changes: Literal["parameters", "memory", ""] = ""
    later: bool = False


def _row(default: Any = MISSING, **columns: Any) -> Any:
    return field(default=default, metadata={"row": Hyperparameter(**columns)})


_PROMPT = (Condition.SOFT_PROMPT,)
_SPANS = (Condition.SPAN_HEADS,)


@dataclass(frozen=True, slots=True)
class Configuration:
    """One point of a cell's search space: one Ray Tune trial."""

    cell: Cell
    learning_rate: float = _row(
        kind="number", above=0, high=10,
        doc="Learning rate of the backbone if it is trained, else of prompts and heads. By default all rates "
        "follow strategy and size (docs/results.md). Published: 1e-5 to 5e-5 for a trained backbone, 5e-3 to "
        "6e-2 for a frozen one; small backbones need higher rates.",
    )  # fmt: skip
    prompt_learning_rate: float | None = _row(
        None, kind="number", above=0, high=10, optional=True, needs=_PROMPT,
        doc="Learning rate of soft prompts; null: `learning_rate`.",
    )  # fmt: skip
    head_learning_rate: float | None = _row(
        None, kind="number", above=0, high=10, optional=True,
        doc="Learning rate of the heads; null: `learning_rate`.",
    )  # fmt: skip
    prompt_length: int = _row(
        0, kind="whole", low=1, high=MAX_PROMPT_LENGTH, needs=_PROMPT, planned=32, changes="parameters",
        doc="Trained vectors per label of a soft prompt. Published studies prefer 32 to 64.",
    )  # fmt: skip
    prompt_depth: str = _row(
        "deep", kind="word", options=("input", "deep"), needs=_PROMPT, changes="parameters",
        doc="Where the vectors enter: `deep`, at every layer from `first_layer` on, or `input`, at that "
        "layer only.",
    )  # fmt: skip
    first_layer: int = _row(
        0, kind="whole", low=0, needs=_PROMPT, changes="parameters",
        doc="Layers below this one see no prompt; 0 is the published setting.",
    )  # fmt: skip
    reparametrisation: str = _row(
        "none", kind="word", options=("none", "mlp", "lstm"), needs=_PROMPT, changes="parameters",
        doc="The network that computes the vectors during training: `none`, `mlp` or `lstm`. With a network, "
        "start at about a thirtieth of the learning rate.",
    )  # fmt: skip
    prompt_initialisation: str = _row(
        "random", kind="word", options=("random", "question", "adapter"), needs=_PROMPT, later=True,
        doc="Initial vectors: `random`, at the scale of the backbone's word embeddings; `question`, the "
        "backbone's encoding of the label's question in words; or `adapter`, the label's trained vectors in "
        "`initial_prompt`. The last two require `reparametrisation: none`.",
    )  # fmt: skip
    epochs: int = _row(
        20, kind="whole", low=1,
        doc="Passes over the training examples, each followed by validation. With a `duration` in "
        "steps or device-seconds, or of at least so many steps: the number of equal parts of training, each "
        "followed by validation.",
    )  # fmt: skip
    duration: str | None = _row(
        None, kind="duration", optional=True, later=True,
        doc="How long a fold-run trains: `400 steps`, `90 device-seconds` (without validation) or "
        "`20 epochs`, which is the same as `epochs: 20`. `20 epochs, at least 600 steps` is the default "
        "where `epochs` is not given either. Strategies differ in their steps per epoch, so a fair "
        "comparison gives all of them the same steps or device-seconds. Device-seconds depend on the "
        "machine, and so does the result.",
    )  # fmt: skip
    batch_size: int = _row(
        16, kind="whole", low=1, changes="memory",
        doc="Rows (one window with one question) per optimiser step.",
    )  # fmt: skip
    weight_decay: float = _row(0.05, kind="number", low=0, high=10, doc="Weight decay of AdamW.")
    clip_norm: float = _row(
        1.0,
        kind="number",
        above=0,
        doc="Gradients with a larger norm are scaled down to this norm.",
    )
    negative_rate: float = _row(
        1.0, kind="number", low=0, high=1,
        doc="Share of the training rows without an answer that each epoch samples. Scored notes are always "
        "asked every question.",
    )  # fmt: skip
    window: int = _row(
        384, kind="whole", low=8, changes="memory", doc="Maximum pieces of note text per window."
    )
    overlap: int = _row(
        64, kind="whole", low=0, needs=(Condition.LABELS,),
        doc="Minimum number of pieces that neighbouring windows share.",
    )  # fmt: skip
    context_sentences: int | None = _row(
        None, kind="whole", low=0, needs=(Condition.RELATIONS,), planned=1, later=True,
        doc="Sentences read on each side of a given mention's sentence, where relations are asked for. A "
        "relation that reaches further is missed, and counted as missed.",
    )  # fmt: skip
    relation_answers: str | None = _row(
        None, kind="word", options=("mentions", "spans"), later=True, planned="mentions",
        needs=(Condition.RELATIONS, Condition.SPAN_HEADS), planned_needs=(Condition.RELATIONS,),
        doc="Where a relation's other mention comes from: `mentions` chooses among given or predicted "
        "mentions, `spans` reads it off the text. Pair classification (`fine_tune`) always chooses.",
    )  # fmt: skip
    overlapping_answers: str = _row(
        "all", kind="word", options=("all", "surest"), later=True, planned="surest",
        needs=(Condition.LABELS, Condition.SPAN_HEADS),
        doc="Which answers to one question about a label are kept if they overlap: the `surest`, or `all`, "
        "for labels whose spans nest in themselves. Training does not depend on it, except for the choice "
        "of the epoch. Answers about relations are all kept.",
    )  # fmt: skip
    match_width: int = _row(
        2048, kind="whole", low=1, needs=_SPANS, changes="parameters",
        doc="Width of the hidden layer of the match head, which pairs starts with ends.",
    )  # fmt: skip
    loss_weights: tuple[float, float, float] = _row(
        (1.0, 1.0, 0.1), kind="weights", needs=_SPANS,
        doc="Weights of the start, end and match losses; they are normalised.",
    )  # fmt: skip
    dropout: float = _row(
        0.1, kind="number", low=0, high=0.99, changes="memory",
        doc="Dropout rate of the heads and, if it is trained, of the backbone.",
    )  # fmt: skip
    seed: int = _row(
        13, kind="whole", low=0, doc="Seed of initialisation, order of rows, and dropout."
    )

    @property
    def limit(self) -> Duration:
        """How long training takes."""
        if self.duration is None:
            return Duration(float(self.epochs), "epochs")
        return Duration.read(self.duration)

    @property
    def id(self) -> str:
        """12 hex digits that name this configuration in any study."""
        return hash_values(_keyed(asdict(self)))[:12]

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Configuration:
        """The configuration with these plain values, as written by `asdict` and JSON.

        Raises:
            KeyError, TypeError, ValueError: the values are not those of a configuration.
        """
        cell = dict(values["cell"])
        cell["backbone"] = Backbone(**cell["backbone"])
        weights = tuple(values["loss_weights"])
        return cls(**{**values, "cell": Cell(**cell), "loss_weights": weights})


def shorten(configuration: Configuration, epochs: int) -> Configuration:
    """The configuration that trains for the first `epochs` of its epochs or equal parts."""
    duration = configuration.duration
    if duration is not None:
        duration = str(Duration.read(duration).times(epochs / configuration.epochs))
    return replace(configuration, epochs=epochs, duration=duration)


SETTINGS: dict[str, Hyperparameter] = {
    f.name: f.metadata["row"] for f in fields(Configuration) if f.metadata
}
"""The settings table, by name of the field."""

DEFAULTS: dict[str, Any] = {
    f.name: f.default for f in fields(Configuration) if f.default is not MISSING
}
"""Values of settings that the study file does not give."""

PARAMETER_SETTINGS = tuple(name for name, row in SETTINGS.items() if row.changes == "parameters")
"""Settings that change the number of parameters."""

MEMORY_SETTINGS = tuple(name for name, row in SETTINGS.items() if row.changes)
"""Settings that change how much memory training takes."""


# --- fold-runs ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FoldRun:
    """One configuration trained on all folds but one, and scored on that one.

    Args:
        fold: the scored fold, from 0. If few training notes are drawn several times, later draws continue
            the count: fold + draw * number of folds.
        corpus_fingerprint: `Corpus.fingerprint` of the training corpus.
        folds_fingerprint: `Folds.fingerprint`: which notes are in which fold, and which validate.
        questions_fingerprint: hash of the wording of the questions if hard prompts ask them or soft prompts
            start from them; else "".
        weights_fingerprint: hash of the config and weights in the backbone's source.
        transfer_fingerprints: name and `Corpus.fingerprint` of each other site that it is scored on.
        test_fingerprint: `Corpus.fingerprint` of held-out notes in a final test, which trains on the whole
            corpus and scores these notes once; "" in cross-validation.
        initial_prompt_fingerprint: hash of the adapter file if prompts start from one; else "".
    """

    configuration: Configuration
    fold: int
    corpus_fingerprint: str
    folds_fingerprint: str
    questions_fingerprint: str
    weights_fingerprint: str
    transfer_fingerprints: tuple[str, ...] = ()
    test_fingerprint: str = ""
    initial_prompt_fingerprint: str = ""

    @property
    def is_test(self) -> bool:
        """Whether it scores held-out notes, so that its scores must not choose anything."""
        return bool(self.test_fingerprint)

    @property
    def place(self) -> str:
        """Relative path of a final test's files, below one folder per kind of file."""
        configuration = self.configuration
        return f"{configuration.cell.name}/seed-{configuration.seed}-{self.key[:8]}"

    @property
    def basis(self) -> tuple[str, ...]:
        """Two fold-runs of a cell can be compared only if these are equal."""
        starts_from_words = self.configuration.prompt_initialisation == "question"
        return (
            self.corpus_fingerprint,
            self.folds_fingerprint,
            "" if starts_from_words else self.questions_fingerprint,
            self.weights_fingerprint,
            *self.transfer_fingerprints,
            *([f"test {self.test_fingerprint}"] if self.is_test else ()),
        )

    @property
    def start(self) -> tuple[str, ...]:
        """What its prompts start from. Fold-runs of one configuration must share it; those of one cell may
        differ."""
        starts = {
            "question": self.questions_fingerprint,
            "adapter": self.initial_prompt_fingerprint,
        }
        found = starts.get(self.configuration.prompt_initialisation)
        return () if found is None else (found,)

    @property
    def key(self) -> str:
        """The ledger key, 64 hex digits: a hash of everything that decides the result."""
        values = asdict(self)
        values["configuration"] = _keyed(values["configuration"])
        for name in ("transfer_fingerprints", "test_fingerprint", "initial_prompt_fingerprint"):
            if not values[name]:
                del values[name]
        return hash_values({"format": RESULT_FORMAT, **values})


def _keyed(configuration: dict[str, Any]) -> dict[str, Any]:
    """Drop fields added later that hold their old default, so that existing ledger keys stay valid."""
    unused = {name for name, row in SETTINGS.items() if row.later}
    kept = {k: v for k, v in configuration.items() if k not in unused or v != DEFAULTS[k]}
    return kept | {"cell": _keyed_cell(configuration["cell"])}


def _keyed_cell(cell: dict[str, Any]) -> dict[str, Any]:
    unused = {"shots": None, "shots_of": "notes"}
    return {k: v for k, v in cell.items() if k not in unused or v != unused[k]}


def hash_values(values: object) -> str:
    """SHA-256 of plain values as canonical JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
