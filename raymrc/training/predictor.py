"""A saved adapter that answers: notes in, spans and relations out.

    adapter, backbone, what it is asked -> Predictor; notes -> Found

The same rounds of questions as in a final test (`training.exam`); gold annotations of the notes are looked at
in the task `relations` alone, which is about given mentions.
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
from raymrc.planning.rows import row_form
from raymrc.reading.relations import Asked
from raymrc.reading.rows import RowBuilder, evaluation_batches
from raymrc.reading.windows import cut_windows, read_pieces
from raymrc.training.batching import collate
from raymrc.training.evaluation import Exam
from raymrc.training.lane import Answers
from raymrc.training.pool import PASS_PIECES
from raymrc.training.trainer import load_adapter


class Predictor:
    """A trained model and what it is asked.

    Args:
        place: the adapter's file, the folder that holds it, or one with no other below it.
        loaded: the backbone that it was trained on.
        asked: what it was trained to answer, in the order of prompts and heads.
        questions: label or name of a relation question -> question in words.

    Raises:
        AdapterError: it cannot be read, or was trained to answer something else.
        BackboneError: it was trained on another backbone.
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
        self.tokenizer = loaded.tokenizer
        self.device = next(self.model.parameters()).device
        form = row_form(c, loaded.shape)
        self.builder = RowBuilder(loaded.tokenizer, form, asked, questions)
        self.builder.check_fits(loaded.shape.max_pieces)

    def find(self, notes: Sequence[Note]) -> dict[str, Found]:
        """Note id -> what is found there, by character offsets.

        Args:
            notes: ids unique; in the task `relations` with the spans that relations are looked for between.
        """
        c = self.configuration
        pieces = {note.id: read_pieces(note, self.tokenizer) for note in notes}
        windows = {note_id: cut_windows(of, c.window, c.overlap) for note_id, of in pieces.items()}

        rows = {n.id: self.builder.gold_rows(n, pieces[n.id], windows[n.id]) for n in notes}
        flat = c.overlapping_answers == "surest"
        exam = Exam(self.builder, notes, rows, windows, pieces, flat)
        pad = int(self.tokenizer.pad_token_id or 0)
        while exam.has_more:
            batches = evaluation_batches(exam.next_round(), PASS_PIECES[self.device.type])
            for batch in batches:
                answers: Answers = self.model.predict(collate(batch, pad).to(self.device))
                for row, answer in zip(batch, answers, strict=True):
                    exam.hear(row, answer)
        return {note.id: exam.found(note) for note in notes}


def load_predictor(place: Path | str, asked: Asked, questions: Mapping[str, str]) -> Predictor:
    """A predictor on this machine's GPU, or else its CPU, over the backbone that the adapter names.

    Raises:
        AdapterError: the adapter cannot be read.
        BackboneError: the backbone is missing on this machine, or has other weights.
    """
    backbone = Configuration.from_values(read_adapter(place).configuration).cell.backbone
    loaded = load_backbone(backbone, "cuda" if torch.cuda.is_available() else "cpu")
    return Predictor(place, loaded, asked, questions)
