"""configuration, shape -> the form of its rows, which training makes and a plan counts."""

from __future__ import annotations

from raymrc.configuration import Configuration
from raymrc.model.shapes import Shape
from raymrc.model.strategies import STRATEGIES
from raymrc.reading.rows import RowForm


def row_form(configuration: Configuration, shape: Shape) -> RowForm:
    strategy = STRATEGIES[configuration.cell.strategy]
    in_words = strategy.asks == "words"
    return RowForm(
        window=configuration.window,
        overlap=configuration.overlap,
        context_sentences=configuration.context_sentences or 0,
        in_words=in_words,
        tags=strategy.answers == "tags",
        chooses=configuration.relation_answers != "spans",
        # RoBERTa puts two separators between a question and its text, and has one segment type.
        separators=2 if shape.kind == "roberta" else 1,
        window_type=1 if in_words and shape.types > 1 else 0,
    )
