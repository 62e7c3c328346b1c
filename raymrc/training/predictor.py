"""A saved adapter that answers: notes in, spans and relations out.

    adapter, backbone, questions -> Predictor; notes -> Found

It asks the same rounds of questions as a final test (`training.evaluation`). Gold annotations of the notes
are read only in the task `relations`, which is about given mentions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from raymrc.configuration import Configuration
from raymrc.corpora.note import Note
from raymrc.errors import AdapterError
from raymrc.ledger.record import Found
from raymrc.model.adapters import read_adapter
from raymrc.model.loading import Loaded, load_backbone
from raymrc.planning.placement import PASS_PIECES
from raymrc.planning.rows import row_form
from raymrc.reading.relations import Asked
from raymrc.reading.rows import RowBuilder, evaluation_batches
from raymrc.reading.windows import cut_windows, read_pieces
from raymrc.training.batching import collate
from raymrc.training.evaluation import Evaluation
from raymrc.training.lane import Answers
from raymrc.training.meter import device_kind
from raymrc.training.trainer import load_adapter


class Predictor:
    """A trained model and its questions.

    Args:
        place: the adapter's file, the folder that holds it, or a folder with no other adapter below it.
        loaded: the backbone that the adapter was trained on.
        asked: what it was trained to answer, in the order of prompts and heads.
        questions: label or name of a relation question -> question in words.

    Raises:
        AdapterError: the adapter cannot be read, or was trained to answer something else.
        BackboneError: the adapter was trained on another backbone.
    """

    def __init__(
        self, place: Path | str, loaded: Loaded, asked: Asked, questions: Mapping[str, str]
    ) -> None:
        self.model, self.adapter = load_adapter(place, loaded)
        if self.adapter.names != asked.names:
            raise AdapterError(
                f"{self.adapter.place}: was trained to answer {', '.join(self.adapter.names)}, and is "
                f"asked {', '.join(asked.names)}; ask what it was trained for"
            )
        self.configuration = c = self.model.configuration
        self.flat = c.overlapping_answers == "surest"
        self.tokenizer = loaded.tokenizer
        self.device = next(self.model.parameters()).device
        form = row_form(c, loaded.shape)
        self.builder = RowBuilder(loaded.tokenizer, form, asked, questions)
        self.builder.check_fits(loaded.shape.max_pieces)

    def find(self, notes: Sequence[Note]) -> dict[str, Found]:
        """Note id -> its predicted spans and relations, by character offsets.

        Args:
            notes: with unique ids; in the task `relations` with the mentions that relations may join.
        """
        c = self.configuration
        pieces = {note.id: read_pieces(note, self.tokenizer) for note in notes}
        windows = {key: cut_windows(p, c.window, c.overlap) for key, p in pieces.items()}
        rows = {n.id: self.builder.gold_rows(n, pieces[n.id], windows[n.id]) for n in notes}
        evaluation = Evaluation(self.builder, notes, rows, windows, pieces, self.flat)
        pad = int(self.tokenizer.pad_token_id or 0)
        max_pieces = PASS_PIECES[device_kind(self.device)]
        while evaluation.has_more:
            for batch in evaluation_batches(evaluation.next_round(), max_pieces):
                answers: Answers = self.model.predict(collate(batch, pad).to(self.device))
                for row, answer in zip(batch, answers, strict=True):
                    evaluation.add_answer(row, answer)
        return {note.id: evaluation.found(note) for note in notes}


def load_predictor(place: Path | str, asked: Asked, questions: Mapping[str, str]) -> Predictor:
    """A predictor on this machine's GPU, or else its CPU, over the backbone that the adapter names.

    Raises:
        AdapterError: the adapter cannot be read.
        BackboneError: the backbone is missing on this machine, or has other weights.
    """
    backbone = Configuration.from_values(read_adapter(place).configuration).cell.backbone
    loaded = load_backbone(backbone, "cuda" if torch.cuda.is_available() else "cpu")
    return Predictor(place, loaded, asked, questions)
