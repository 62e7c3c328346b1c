"""One fold-run: train on all folds but one, choose the epoch on the validation part, score the fold.

    rows -> batches -> steps -> best epoch -> scored notes -> Record

The scored fold is read once, at the end, with the state of the epoch that was best on
the validation part of the training folds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
import torch

from raymrc.corpora.note import Span
from raymrc.errors import TrainingError
from raymrc.model.backbones import Loaded
from raymrc.model.heads import SpanAnswer
from raymrc.model.strategies import STRATEGIES, build
from raymrc.reading.answers import assemble, decode_spans, decode_tags
from raymrc.reading.examples import unreachable, untaggable
from raymrc.scoring.counts import Counts, pool
from raymrc.scoring.n2c2_2018 import score_note
from raymrc.study.configuration import FoldRun, hash_values
from raymrc.study.cost import price, training_flops
from raymrc.study.record import Epoch, NoteCounts, Record
from raymrc.training.batching import (
    Row,
    RowBuilder,
    StudyData,
    collate,
    collate_targets,
    evaluation_batches,
    steps_per_epoch,
    training_batches,
)
from raymrc.training.meter import Meter, device_name, hardware, versions


class Lane:
    """The trainable state of one fold-run.

    Args:
        device: where the model runs; `loaded.encoder` must be there already.

    Raises:
        TrainingError: no training note, or a loss that is not a number.
        BackboneError: window and question exceed the backbone's positions.
        PromptError: a prompt that does not fit the backbone.
    """

    def __init__(
        self, fold_run: FoldRun, data: StudyData, loaded: Loaded, device: torch.device
    ) -> None:
        configuration = fold_run.configuration
        self.configuration = configuration
        self.device = device
        self.labels = data.corpus.labels
        self.shape = loaded.shape
        self.strategy = STRATEGIES[configuration.cell.strategy]
        seed = int(hash_values([configuration.seed, fold_run.fold])[:8], 16)
        self.generator = random.Random(seed)
        torch.manual_seed(seed)

        self.pad = int(loaded.tokenizer.pad_token_id or 0)
        self.windows = data.windows(
            loaded.tokenizer,
            configuration.cell.backbone.source,
            configuration.window,
            configuration.overlap,
        )
        self.builder = RowBuilder(
            loaded.tokenizer,
            loaded.shape,
            self.labels,
            data.questions,
            self.strategy,
            configuration.window,
        )
        self.notes = {note.id: note for note in data.corpus.notes}
        self.split = data.folds.split(fold_run.fold)
        self.rows = self.builder.rows([self.notes[i] for i in self.split.train], self.windows)
        if not self.rows:
            raise TrainingError(f"fold {fold_run.fold} has no training note with text in it")

        self.model = build(configuration, loaded, len(self.labels))
        self.optimiser = torch.optim.AdamW(
            self.model.parameter_groups(), weight_decay=configuration.weight_decay, fused=True
        )
        self.total_steps = configuration.epochs * steps_per_epoch(
            self.rows, configuration.batch_size, configuration.negative_rate
        )
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.steps = 0
        self.tokens = 0
        self.num_rows = 0

    def train_epoch(self) -> float:
        """One pass over the training rows; the mean loss of its steps."""
        self.model.train()
        configuration = self.configuration
        losses: list[torch.Tensor] = []
        for rows in training_batches(
            self.rows, configuration.batch_size, configuration.negative_rate, self.generator
        ):
            inputs = collate(rows, self.pad)
            targets = collate_targets(rows, inputs).to(self.device)
            self.tokens += sum(len(row.ids) for row in rows)
            self.num_rows += len(rows)
            loss = self.model.loss(inputs.to(self.device), targets)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            if self.steps == 0:
                self.model.check_gradients()
            torch.nn.utils.clip_grad_norm_(self.trained, configuration.clip_norm, foreach=True)
            self._decay_rates()
            self.optimiser.step()
            self.steps += 1
            losses.append(loss.detach())
        # One look at all losses: a look at each would stall a GPU every step.
        values = torch.stack(losses).float().cpu() if losses else torch.zeros(1)
        if not bool(torch.isfinite(values).all()):
            first = int((~torch.isfinite(values)).nonzero()[0]) + 1
            raise TrainingError(
                f"the loss is not a number at step {self.steps - len(losses) + first} "
                f"(learning rate {configuration.learning_rate:g}); lower the learning rate"
            )
        return float(values.mean())

    def _decay_rates(self) -> None:
        """Linear decay to zero without warm-up, as the published runs have it."""
        left = max(0.0, 1.0 - self.steps / self.total_steps)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * left

    @torch.no_grad()
    def predict(self, note_ids: Iterable[str]) -> dict[str, tuple[Span, ...]]:
        """Note id -> predicted spans. Every window is asked every question."""
        self.model.eval()
        notes = [self.notes[i] for i in note_ids]
        found: dict[str, dict[int, list[tuple[int, int, int]]]] = {note.id: {} for note in notes}
        rows = self.builder.rows(notes, self.windows)
        for batch in evaluation_batches(rows):
            inputs = collate(batch, self.pad).to(self.device)
            answers: Sequence[SpanAnswer | np.ndarray] = self.model.predict(inputs)
            for row, answer in zip(batch, answers, strict=True):
                spans = read_answer(row, answer)
                if spans:
                    found[row.window.note_id].setdefault(row.window.index, []).extend(spans)
        return {
            note.id: assemble(note, self.windows[note.id], found[note.id], self.labels)
            for note in notes
        }

    def score(self, note_ids: Iterable[str]) -> dict[str, NoteCounts]:
        """Strict and lenient counts of each note against its gold, official 2018 rules."""
        return {
            note_id: NoteCounts(
                strict=_present(score_note(self.notes[note_id].spans, spans, "strict")),
                lenient=_present(score_note(self.notes[note_id].spans, spans, "lenient")),
            )
            for note_id, spans in self.predict(note_ids).items()
        }

    @property
    def flops(self) -> float:
        """Operations that training has needed so far. The match head, which sees few pairs, is left out."""
        per_piece = 3 * len(self.labels) if self.strategy.answers == "tags" else 2
        return training_flops(
            self.shape,
            tokens=self.tokens,
            row_length=self.tokens / max(1, self.num_rows),
            trains_backbone=self.strategy.trains_backbone,
            prompt_length=self.configuration.prompt_length,
            prompt_depth=self.configuration.prompt_depth,
            first_layer=self.configuration.first_layer,
            head_parameters=per_piece * self.shape.hidden,
        )

    def count_unreachable(self, note_ids: Iterable[str]) -> int:
        """Gold spans of these notes that no answer of this strategy can be."""
        find = untaggable if self.strategy.answers == "tags" else unreachable
        return sum(len(find(self.notes[i], self.windows[i])) for i in note_ids)


def read_answer(row: Row, answer: SpanAnswer | np.ndarray) -> list[tuple[int, int, int]]:
    """What a model answered to a row, as (label index, first, last) pieces of the row's window.

    Args:
        answer: tags (S, L), or (start_S, end_S, pairs_K2, match_K), over the row's positions.
    """
    begin, end = row.offset, row.offset + len(row.window.piece_ids)
    if isinstance(answer, np.ndarray):
        return [
            (label, first, last)
            for label in range(answer.shape[1])
            for first, last in decode_tags(answer[begin:end, label])
        ]
    start, stop, pairs, match = answer
    found = decode_spans(start[begin:end], stop[begin:end], pairs - begin, match)
    return [(row.label, first, last) for first, last in found]


def _present(counts: Mapping[str, Counts]) -> dict[str, Counts]:
    return {label: c for label, c in counts.items() if c != Counts()}


def _strict_f1(scores: Mapping[str, NoteCounts]) -> float:
    return pool(pool(note.strict.values()) for note in scores.values()).f1


def train_fold_run(
    fold_run: FoldRun,
    data: StudyData,
    loaded: Loaded,
    *,
    device: str | torch.device = "cpu",
    device_hour_usd: float = 0.0,
    gpus: float = 1.0,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Record:
    """Trains, chooses the epoch on validation, scores the held-out fold.

    Args:
        device_hour_usd: price of one device (a GPU, or a core) for an hour.
        gpus: how much of a GPU is held meanwhile; two that share one pay half each.
        on_epoch: told after each epoch's validation.

    Returns:
        The record; the caller keeps it.
    """
    device = torch.device(device)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    meter = Meter(device, gpus)
    with meter.phase("training"):
        lane = Lane(fold_run, data, loaded, device)
    statement = lane.model.statement()
    epochs: list[Epoch] = []
    best_f1, best_epoch, best_state = -math.inf, 0, None
    for number in range(1, fold_run.configuration.epochs + 1):
        epoch_began = meter.wall_seconds
        with meter.phase("training"):
            loss = lane.train_epoch()
        with meter.phase("evaluation"):
            validation_f1 = _strict_f1(lane.score(lane.split.validation))
        epochs.append(Epoch(number, loss, validation_f1, meter.wall_seconds - epoch_began))
        # Of equal epochs the later one has seen more.
        if validation_f1 >= best_f1:
            best_f1, best_epoch = validation_f1, number
            best_state = lane.model.trained_state()
        if on_epoch is not None:
            on_epoch(epochs[-1])
    if best_epoch != fold_run.configuration.epochs:
        assert best_state is not None
        lane.model.load_trained_state(best_state)
    with meter.phase("evaluation"):
        notes: dict[str, NoteCounts] = lane.score(lane.split.scored)
    device_seconds = meter.device_seconds
    return Record(
        key=fold_run.key,
        fold_run=fold_run,
        notes=notes,
        unreachable=lane.count_unreachable(lane.split.scored),
        validation_f1=best_f1,
        best_epoch=best_epoch,
        epochs=tuple(epochs),
        trained=statement.by_kind,
        trained_parameters=statement.trained,
        total_parameters=statement.total,
        adapter_bytes=statement.adapter_bytes,
        device=device_name(device),
        num_devices=meter.num_devices,
        device_seconds=device_seconds,
        wall_seconds=meter.wall_seconds,
        training_seconds=meter.seconds["training"],
        evaluation_seconds=meter.seconds["evaluation"],
        tokens=lane.tokens,
        flops=lane.flops,
        peak_bytes=meter.peak_bytes,
        cost_usd=price(device_seconds, device_hour_usd),
        versions=versions(),
        hardware=hardware(device),
        started_at=started_at,
    )
