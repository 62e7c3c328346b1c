"""Relation questions per second: raymrc against one padded pass per (mention, relation).

    python -m benchmarks.relations [--quick] [--device cpu|cuda]

In synthetic discharge summaries every drug is asked for its strength, form, dosage, frequency, route,
duration, reason and effect, with MiniLM and the question in words. The peer follows the published code: each
question is a row padded to 512 pieces, through Hugging Face's `AutoModel` and the published match head; and
once more with our factorised head, to show the cost of padding alone. Ours: a row is as long as the sentences
around the mention, and rows of similar lengths share a batch. If answers are chosen among mentions, questions
that no mention in the context can answer are skipped but counted, because their answer is known (`asked` is
the share of the others). If answers are spans, all questions are asked. The same questions as vectors
(`soft_prompt`) are measured, too.

Training is one step (forward, backward, clipping, AdamW); inference includes decoding.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import json_line, read_options, start, time_in_turn
from benchmarks.peft_peer import HEADS, collate_peer
from benchmarks.throughput import load_sides
from raymrc.configuration import Cell, Configuration
from raymrc.corpora.note import Corpus
from raymrc.corpora.synthetic import synthesize_corpus
from raymrc.model.inputs import SpanTargets
from raymrc.model.loading import Loaded
from raymrc.model.network import Model
from raymrc.planning.placement import PASS_PIECES
from raymrc.planning.rows import row_form
from raymrc.reading.questions import build_questions
from raymrc.reading.relations import find_asked, mentions_of
from raymrc.reading.rows import Row, RowBuilder, evaluation_batches, training_batches
from raymrc.reading.windows import read_pieces
from raymrc.training.batching import collate, collate_targets
from raymrc.training.meter import device_kind
from raymrc.training.pool import keep_freed_memory

GOALS = {"published head": 5.0, "factorised head": 1.0}
PADDED, QUICK_PADDED = 512, 64
WINDOW = 384
SENTENCES = 1


def make_rows(
    corpus: Corpus, loaded: Loaded, strategy: str, chooses: bool, is_quick: bool
) -> list[list[Row]]:
    """Rows by given mention, in random order of mentions; the shortest ones first if quick."""
    asked = find_asked("relations", corpus)
    questions = build_questions((), {}, asked.relations)
    configuration = Configuration(
        Cell("relations", "synthetic", loaded.backbone, strategy), 0.0, window=WINDOW,
        context_sentences=SENTENCES, relation_answers="mentions" if chooses else "spans",
    )  # fmt: skip
    form = row_form(configuration, loaded.shape)
    builder = RowBuilder(loaded.tokenizer, form, asked, questions)
    groups = []
    for note in corpus.notes:
        pieces = read_pieces(note, loaded.tokenizer)
        for context in builder.contexts(note, pieces, mentions_of(note.spans)):
            groups.append(builder.relation_rows(note, [context]))
    random.Random(13).shuffle(groups)
    if is_quick:
        groups = sorted(filter(None, groups), key=lambda rows: sum(row.length for row in rows))
    return groups


class Peer(nn.Module):
    """A Hugging Face encoder with heads; the question in words precedes the text."""

    def __init__(self, encoder: nn.Module, hidden: int, head: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = HEADS[head](hidden, 2048, 0.1)

    def forward(
        self, rows: Sequence[Row], pad: int, padded: int, device: str
    ) -> tuple[Tensor, Tensor | None]:
        batch = collate_peer(rows, pad)
        types = collate(rows, pad).type_ids_BS
        missing = padded - types.shape[1]
        assert missing >= 0

        def wide(name: str) -> Tensor:
            return F.pad(batch[name], (0, missing)).to(device)

        hidden = self.encoder(
            input_ids=wide("input_ids"),
            attention_mask=wide("attention_mask"),
            token_type_ids=F.pad(types, (0, missing)).to(device),
        ).last_hidden_state
        targets = SpanTargets(
            wide("start_positions"), wide("end_positions"), batch["pairs"].to(device)
        )
        loss, found = self.heads(hidden, wide("window_mask"), targets, (1.0, 1.0, 0.1))
        return loss, found


def run_peer(
    encoder: nn.Module, hidden: int, head: str, rows: Sequence[Row], size: int, device: str, *,
    padded: int, trains: bool,
) -> Callable[[], None]:  # fmt: skip
    model = Peer(copy.deepcopy(encoder), hidden, head).to(device).train(trains)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def run() -> None:
        for begin in range(0, len(rows), size):
            with torch.set_grad_enabled(trains):
                loss, _ = model(rows[begin : begin + size], 0, padded, device)
            if trains:
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                model.zero_grad()

    return run


def run_ours(
    loaded: Loaded, strategy: str, num_questions: int, rows: Sequence[Row], device: str, *,
    trains: bool,
) -> Callable[[], None]:  # fmt: skip
    configuration = Configuration(
        Cell("relations", "made-up", loaded.backbone, strategy),
        learning_rate=1e-5, prompt_length=16 if strategy == "soft_prompt" else 0,
    )  # fmt: skip
    model = Model(configuration, loaded, 0, num_questions).train()
    optimiser = torch.optim.AdamW(model.parameter_groups(), fused=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    pad = loaded.shape.pad_id
    if trains:
        batches = list(training_batches(rows, 16, 1.0, random.Random(0)))
    else:
        batches = list(evaluation_batches(rows, PASS_PIECES[device_kind(torch.device(device))]))

    def run() -> None:
        for batch in batches:
            inputs = collate(batch, pad)
            if not trains:
                model.predict(inputs.to(device))
                continue
            loss = model.loss(inputs.to(device), collate_targets(batch, inputs).to(device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=True)
            optimiser.step()

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options("relations", __doc__, arguments)
    start(options)
    device, quick = options.device, options.quick
    if device == "cpu":
        keep_freed_memory()  # for both sides
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    corpus = synthesize_corpus("n2c2-2018", 1 if quick else 12, "a", 13)
    loaded, encoder = load_sides("minilm", device, [corpus])
    asked = find_asked("relations", corpus)
    groups = make_rows(corpus, loaded, "hard_prompt", False, quick)
    published = [row for group in groups for row in group]
    for head, number, size in (("published head", 1, 1), ("factorised head", 16, 8)):
        # The published head takes a minute per question, so it is timed once, against one of ours.
        is_slow = head == "published head"
        number = 1 if quick else number
        for trains in (True, False):
            peer = run_peer(
                encoder, loaded.shape.hidden, head, published[:number], size, device,
                padded=QUICK_PADDED if quick else PADDED, trains=trains,
            )  # fmt: skip
            for strategy in ("hard_prompt",) if is_slow else ("hard_prompt", "soft_prompt"):
                for chooses in (True, False):
                    groups = make_rows(corpus, loaded, strategy, chooses, quick)
                    groups = groups[: 1 if quick else 24]
                    rows = [row for group in groups for row in group]
                    pairs = 1 if quick or is_slow else 2
                    seconds, peer_seconds, ratio = time_in_turn(
                        run_ours(loaded, strategy, len(asked), rows, device, trains=trains),
                        peer, pairs, wait, warm_up=pairs > 1,
                    )  # fmt: skip
                    questions = len(groups) * len(asked)
                    json_line(
                        options,
                        f"{'training' if trains else 'inference'}, {strategy}, "
                        f"{'mentions to choose from' if chooses else 'spans'}, peer with the {head}",
                        questions / seconds, number / peer_seconds, "questions/s",
                        ratio * questions / number, GOALS[head],
                        asked=round(len(rows) / questions, 3),
                        mean_pieces=round(sum(row.length for row in rows) / len(rows), 1),
                        questions=questions, peer_questions=number, pairs_timed=pairs,
                        threads=torch.get_num_threads(),
                    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
