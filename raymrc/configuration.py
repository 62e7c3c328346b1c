"""What is trained, as values that travel everywhere: driver, trial, host, ledger.

    Cell -> Configuration -> FoldRun

A hyper-parameter is a field of `Configuration`: `sweep`, `ledger`, `tracking` and
`report` carry it unopened (they loop over fields) and never name it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

RESULT_FORMAT = 1
"""Raised when the meaning of a recorded number changes; older records are then not reused."""


LATER: dict[str, Any] = {
    "context_sentences": None,
    "relation_answers": None,
    "prompt_initialisation": "random",
    "overlapping_answers": "all",
}
"""Settings that the first configurations did not have, and what these did."""


@dataclass(frozen=True, slots=True)
class Backbone:
    """A pretrained encoder, by name.

    Args:
        name: what tables and MLflow show, such as "minilm-l2".
        source: a Hugging Face id or a local folder.
        revision: commit or tag on the hub; "" for a folder or the default.
        layers: take the first so many layers; None for all.
    """

    name: str
    source: str
    revision: str = ""
    layers: int | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """What gets compared: a backbone under a strategy on a task and corpus.

    Args:
        shots: how many training notes there are, or gold mentions in them; None for all notes of the
            training folds.
        shots_of: what is counted: "notes" or "mentions".
    """

    task: str
    corpus: str
    backbone: Backbone
    strategy: str
    shots: int | None = None
    shots_of: str = "notes"

    @property
    def values(self) -> dict[str, Any]:
        """What names it for a hash."""
        return _said_of_cell(asdict(self))

    @property
    def name(self) -> str:
        shots = "" if self.shots is None else f"/{self.shots} {self.shots_of}"
        return f"{self.corpus}/{self.backbone.name}/{self.strategy}{shots}"


@dataclass(frozen=True, slots=True)
class Configuration:
    """One point of a cell's search space: one Ray Tune trial.

    Args:
        learning_rate: of the backbone where it is trained; of prompts and heads where it is frozen.
        prompt_learning_rate: of prompts; None: as `learning_rate`.
        head_learning_rate: of heads; None: as `learning_rate`.
        prompt_length: vectors per label, 1 to 512; 0 where the strategy has no prompt.
        prompt_depth: "input" or "deep".
        first_layer: layers below see no prompt; 0 is the paper's setting.
        reparametrisation: "none", "mlp" or "lstm".
        prompt_initialisation: what vectors start from: "random", "question" (in words) or "adapter" (a
            trained prompt).
        epochs: passes over the training examples.
        batch_size: (window, question) rows per optimiser step.
        weight_decay, clip_norm: of AdamW; the largest gradient norm.
        negative_rate: share of training rows without an answer that each epoch samples, 0 to 1.
        window: pieces of note text per window, at most.
        overlap: pieces that neighbouring windows share, at least.
        context_sentences: read on each side of a given mention's own, where relations are asked for; None
            where they are not.
        relation_answers: "mentions", chosen among those that are given or were found, or "spans" of the
            text; None where no relations are asked for.
        overlapping_answers: to one question about a label: "all" are kept, or of those that share text the
            "surest".
        match_width: width of the match head's hidden layer.
        loss_weights: of start, end and match; used normalised.
        dropout: in heads and, where it is trained, in the backbone.
        seed: of initialisation, order and dropout.
    """

    cell: Cell
    learning_rate: float
    prompt_learning_rate: float | None = None
    head_learning_rate: float | None = None
    prompt_length: int = 0
    prompt_depth: str = "deep"
    first_layer: int = 0
    reparametrisation: str = "none"
    prompt_initialisation: str = "random"
    epochs: int = 20
    batch_size: int = 16
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    negative_rate: float = 1.0
    window: int = 384
    overlap: int = 64
    context_sentences: int | None = None
    relation_answers: str | None = None
    overlapping_answers: str = "all"
    match_width: int = 2048
    loss_weights: tuple[float, float, float] = (1.0, 1.0, 0.1)
    dropout: float = 0.1
    seed: int = 13

    @property
    def id(self) -> str:
        """12 hex digits that name this configuration in any study."""
        return hash_values(_said(asdict(self)))[:12]

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Configuration:
        """Of plain values, as `asdict` and JSON have them.

        Raises:
            KeyError, TypeError, ValueError: they are not those of a configuration.
        """
        cell = dict(values["cell"])
        cell["backbone"] = Backbone(**cell["backbone"])
        weights = tuple(values["loss_weights"])
        return cls(**{**values, "cell": Cell(**cell), "loss_weights": weights})


@dataclass(frozen=True, slots=True)
class FoldRun:
    """One configuration trained on all folds but one, and scored on that one.

    Args:
        fold: the scored fold, from 0. Where few training notes are drawn several times, draws come after
            each other: fold + draw * number of folds.
        corpus_fingerprint: `Corpus.fingerprint` of the notes as trained on.
        folds_fingerprint: `Folds.fingerprint`: who is in which fold, who validates.
        questions_fingerprint: hash of the wording of the questions, which decides hard prompts, and soft
            ones that start from it; else "".
        weights_fingerprint: hash of what the backbone's source holds now (config and weights).
        transfer_fingerprints: name and `Corpus.fingerprint` of each other site that it is scored on.
        test_fingerprint: `Corpus.fingerprint` of held-out notes: then it is trained on all of the corpus, and
            scored on these once, after all has been chosen. "" in cross-validation.
        initial_prompt_fingerprint: of the adapter's file, where prompts start from one; else "".
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
        """Whether its scores are of held-out notes, and may choose nothing."""
        return bool(self.test_fingerprint)

    @property
    def place(self) -> str:
        """Where files of a final test lie, below a folder for their kind."""
        configuration = self.configuration
        return f"{configuration.cell.name}/seed-{configuration.seed}-{self.key[:8]}"

    @property
    def basis(self) -> tuple[str, ...]:
        """What must be equal for two fold-runs of a cell to be compared."""
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
        """What must be equal, beside the basis, for two fold-runs to be of one configuration: what its
        prompts start from, in which those of a cell may differ."""
        starts = {
            "question": self.questions_fingerprint,
            "adapter": self.initial_prompt_fingerprint,
        }
        found = starts.get(self.configuration.prompt_initialisation)
        return () if found is None else (found,)

    @property
    def key(self) -> str:
        """The ledger key, 64 hex digits: a hash of all that decides the result."""
        values = asdict(self)
        values["configuration"] = _said(values["configuration"])
        for name in ("transfer_fingerprints", "test_fingerprint", "initial_prompt_fingerprint"):
            if not values[name]:
                del values[name]
        return hash_values({"format": RESULT_FORMAT, **values})


def _said(configuration: dict[str, Any]) -> dict[str, Any]:
    """Without what came later and is not used: it must not change the keys of finished work."""
    said = {k: v for k, v in configuration.items() if k not in LATER or v != LATER[k]}
    return said | {"cell": _said_of_cell(configuration["cell"])}


def _said_of_cell(cell: dict[str, Any]) -> dict[str, Any]:
    unsaid = {"shots": None, "shots_of": "notes"}
    return {k: v for k, v in cell.items() if k not in unsaid or v != unsaid[k]}


def hash_values(values: object) -> str:
    """SHA-256 of plain values as canonical JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
