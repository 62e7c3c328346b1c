"""A registered model as MLflow loads it: text -> adapter over its backbone -> spans and relations.

    mlflow.pyfunc.load_model("models:/demo-minilm-l2-fine_tune/1").predict({"text": [...]})

The model holds the adapter only. Its backbone is loaded from the source that the study named, and must have
the same weights.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymrc.corpora.note import Note, Span
from raymrc.errors import RaymrcError
from raymrc.reading.relations import Asked, RelationQuestion

if TYPE_CHECKING:
    import pandas

    from raymrc.training.predictor import Predictor

ASKED_FILE = "asked.json"
"""Beside the adapter: labels, relation questions, and how both are worded."""

TEXT, SPANS, FOUND = "text", "spans", "found"
"""Columns: the note; in the task `relations` its given spans as JSON; predictions as JSON."""


@dataclass(frozen=True)
class ServedModel:
    """A predictor with the interface that MLflow calls."""

    predictor: Predictor

    def predict(
        self, model_input: pandas.DataFrame, params: dict[str, Any] | None = None
    ) -> pandas.DataFrame:
        """
        Args:
            model_input: a column `text`; in the task `relations` also `spans`, a JSON list of objects with
                `id`, `label` and `fragments` ([[start, end], ...], characters, half-open).

        Returns:
            A column `found`: {"spans": [...], "relations": [{"id", "label", "head", "tail"}, ...]} as JSON.

        Raises:
            RaymrcError: spans cannot be read, or reach past the end of their text.
        """
        import pandas

        texts = [str(text) for text in model_input[TEXT]]
        given: list[Any] = list(model_input[SPANS]) if SPANS in model_input else [None] * len(texts)
        notes = [
            Note(str(row), text, _read_spans(spans, row, len(text)))
            for row, (text, spans) in enumerate(zip(texts, given, strict=True))
        ]
        found = self.predictor.find(notes)
        answers = [json.dumps(asdict(found[note.id])) for note in notes]
        return pandas.DataFrame({FOUND: answers}, index=model_input.index)


def _read_spans(given: str | None, row: int, length: int) -> tuple[Span, ...]:
    if given is None:
        return ()
    try:
        spans = tuple(
            Span(
                str(span["id"]),
                str(span["label"]),
                tuple((int(start), int(end)) for start, end in span["fragments"]),
            )
            for span in json.loads(given)
        )
        if not all(0 <= start < end <= length for s in spans for start, end in s.fragments):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        # Not `from error`: a parser's message can quote its input, which is private.
        raise RaymrcError(
            f"row {row}: {SPANS} must be a JSON list of objects with id, label and fragments "
            "[[start, end], ...] within the text"
        ) from None
    return spans


def _load_pyfunc(data_path: str) -> ServedModel:
    """Load a model; MLflow calls it by this name.

    Raises:
        AdapterError: the adapter cannot be read.
        BackboneError: its backbone is missing on this machine, or has other weights.
    """
    from raymrc.training.predictor import load_predictor  # seconds of imports

    folder = Path(data_path)
    saved = json.loads((folder / ASKED_FILE).read_text(encoding="utf-8"))
    relations = (
        RelationQuestion(
            **{**question, "given": tuple(question["given"]), "answers": tuple(question["answers"])}
        )
        for question in saved["relations"]
    )
    asked = Asked(tuple(saved["labels"]), tuple(relations))
    return ServedModel(load_predictor(folder, asked, saved["questions"]))
