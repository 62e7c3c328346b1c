"""What MLflow loads of a registered model: the adapter over its backbone, text in, spans out.

    mlflow.pyfunc.load_model("models:/demo-minilm-l2-fine_tune/1").predict({"text": [...]})

The model holds what was trained and not the backbone, which is looked for where raymrc is, under the name
that it was trained by, and has to have the same weights.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymrc.corpora.note import Note, Span
from raymrc.errors import RaymrcError
from raymrc.reading.relations import Asked, RelationQuestion

if TYPE_CHECKING:
    import pandas

    from raymrc.training.predictor import Predictor

ASKED_FILE = "asked.json"
"""Beside the adapter: labels, relation questions and the words of both."""

TEXT, SPANS, FOUND = "text", "spans", "found"
"""Columns: a note; where relations alone are looked for, the spans between which, as JSON; what is found, as
JSON with character offsets."""


class Served:
    """What MLflow calls."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(
        self, model_input: pandas.DataFrame, params: dict[str, Any] | None = None
    ) -> pandas.DataFrame:
        """
        Args:
            model_input: `text`; and in the task `relations` `spans`, a JSON list of objects with `id`,
                `label` and `fragments` ([[start, end], ...], characters, half-open).

        Returns:
            `found`: {"spans": [...], "relations": [{"id", "label", "head", "tail"}, ...]} as JSON, by row.

        Raises:
            RaymrcError: spans cannot be read, or reach past their text.
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


def _read_spans(said: str | None, row: int, length: int) -> tuple[Span, ...]:
    if said is None:
        return ()
    try:
        spans = tuple(
            Span(
                str(span["id"]),
                str(span["label"]),
                tuple((int(start), int(end)) for start, end in span["fragments"]),
            )
            for span in json.loads(said)
        )
        if not all(0 <= start < end <= length for s in spans for start, end in s.fragments):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        # Not `from` it: a parser's message can quote what it read.
        raise RaymrcError(
            f"row {row}: {SPANS} must be a JSON list of objects with id, label and fragments "
            "[[start, end], ...] within the text"
        ) from None
    return spans


def _load_pyfunc(data_path: str) -> Served:
    """MLflow's hook.

    Raises:
        AdapterError: the adapter cannot be read.
        BackboneError: its backbone is not on this machine, or has other weights.
    """
    import torch

    from raymrc.configuration import Configuration
    from raymrc.model.adapters import read_adapter
    from raymrc.model.loading import load_backbone
    from raymrc.training.predictor import Predictor

    folder = Path(data_path)
    said = json.loads((folder / ASKED_FILE).read_text(encoding="utf-8"))
    relations = (
        RelationQuestion(
            **{**question, "given": tuple(question["given"]), "answers": tuple(question["answers"])}
        )
        for question in said["relations"]
    )
    asked = Asked(tuple(said["labels"]), tuple(relations))
    configuration = Configuration.from_values(read_adapter(folder).configuration)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_backbone(configuration.cell.backbone, device)
    return Served(Predictor(folder, loaded, asked, said["questions"]))
