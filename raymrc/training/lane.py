"""One fold-run as a state that advances batch by batch, beside others or alone.

    rows -> training batches -> validation batches -> next epoch ... -> scored fold -> Record

`take` gives the next batch, the caller passes it through the model and reports back with `finish_step` or
`finish_answers`. The scored fold is read once, at the end, in the state of the epoch that did best on the
validation part of the training folds.
"""

from __future__ import annotations

import io
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raymrc.configuration import FoldRun, hash_values
from raymrc.corpora.note import Note
from raymrc.corpora.splits import note_marks
from raymrc.errors import TrainingError
from raymrc.ledger.record import Epoch, Found, NoteCounts, Record, RecordStatus
from raymrc.model.adapter_tensors import write_adapter
from raymrc.model.heads import SpanHeads
from raymrc.model.inputs import Inputs, SpanTargets, Targets
from raymrc.model.loading import Loaded
from raymrc.model.network import Model
from raymrc.model.strategies import STRATEGIES
from raymrc.planning.arithmetic import head_parameters, price, training_flops
from raymrc.reading.relations import mentions_of, unreachable_relations
from raymrc.reading.rows import Row, TrainingOrder, evaluation_batches, steps_per_epoch
from raymrc.reading.targets import Unreachable, unreachable, unreachable_apart, untaggable
from raymrc.scoring.counts import Counts, pool
from raymrc.training.activations import Activations
from raymrc.training.batching import StudyData, collate, collate_targets, prefetch
from raymrc.training.evaluation import Answer, Evaluation
from raymrc.training.fused import BatchPart
from raymrc.training.meter import FoldRunUsage, device_name, hardware, versions

Answers = Sequence[Answer]
"""A model's answers to the rows of a batch, in their order."""

PLAIN_PROGRESS = (
    "best_f1", "best_epoch", "steps", "tokens", "num_rows", "halvings", "started_at",
)  # fmt: skip
"""Attributes of a lane that are saved as they are."""


class Stage(Enum):
    """What a lane does next; `TRANSFER` scores the other sites, one after the other."""

    TRAINING = "training"
    VALIDATION = "validation"
    SCORING = "scoring"
    TRANSFER = "transfer"
    DONE = "done"


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows that a lane needs passed through its model.

    Args:
        inputs: on the lane's device.
        targets: None where the lane needs answers instead of a gradient step.
    """

    lane: Lane
    rows: Sequence[Row]
    inputs: Inputs
    targets: Targets | None

    @property
    def trains(self) -> bool:
        return self.targets is not None

    @property
    def pieces(self) -> int:
        """Pieces, padding included."""
        return self.inputs.input_ids_BS.numel()

    @property
    def part(self) -> BatchPart:
        """Its share of a pass that many lanes make together."""
        assert self.targets is None or isinstance(self.targets, SpanTargets)
        return BatchPart(self.lane.model, self.inputs, self.targets, self.lane.dropout)


class Lane:
    """The trainable state of one fold-run.

    Args:
        device: where the model runs and `loaded.encoder` is.
        evaluation_pieces: padded pieces of a batch that needs answers, at most.
        state: of `save`, to resume from.
        activations: the store of what the frozen backbone computes below this configuration's first layer.

    Raises:
        TrainingError: no training note.
        BackboneError: window and question exceed the backbone's positions.
        PromptError: a prompt does not fit the backbone.
    """

    def __init__(
        self,
        fold_run: FoldRun,
        data: StudyData,
        loaded: Loaded,
        device: torch.device,
        evaluation_pieces: int,
        state: bytes | None = None,
        activations: Activations | None = None,
    ) -> None:
        configuration = fold_run.configuration
        self.fold_run = fold_run
        self.configuration = configuration
        self.device = device
        self.asked = data.asked(configuration.cell.task)
        self.data, self.tokenizer = data, loaded.tokenizer
        self.sites = [] if fold_run.is_test else list(data.transfer)
        self.scores: Mapping[str, NoteCounts] = {}
        self.unreachable: Counter[str] = Counter()
        self.transfer: dict[str, dict[str, NoteCounts]] = {}
        self.predictions: dict[str, Found] = {}
        self.shape = loaded.shape
        self.weights_fingerprint = loaded.fingerprint
        self.strategy = STRATEGIES[configuration.cell.strategy]
        self.evaluation_pieces = evaluation_pieces
        self.activations = activations
        seed = int(hash_values([configuration.seed, fold_run.fold])[:8], 16)
        self.dropout = torch.Generator(device).manual_seed(seed)
        if self.strategy.trains_backbone:
            torch.manual_seed(seed)  # an encoder's dropout draws from torch's own generator

        self.pad = int(loaded.tokenizer.pad_token_id or 0)
        source = configuration.cell.backbone.source
        self.windows = data.windows(
            loaded.tokenizer, source, configuration.window, configuration.overlap
        )
        self.pieces = data.pieces(loaded.tokenizer, source)
        self.builder = data.builder(loaded.tokenizer, loaded.shape, configuration)
        self.flat = configuration.overlapping_answers == "surest"
        self.notes = {note.id: note for note in data.corpus.notes}
        self.note_rows = data.rows(loaded.tokenizer, loaded.shape, configuration)
        self.split = data.split(fold_run)
        self.rows = [row for note_id in self.split.train for row in self.note_rows[note_id]]
        if not self.rows:
            raise TrainingError(
                f"fold {fold_run.fold} has nothing to learn from: no text in its training notes, or, where "
                "relations are asked for, no two mentions within context_sentences that they could join"
            )
        batching = (self.rows, configuration.batch_size, configuration.negative_rate)
        self.order = TrainingOrder(*batching, random.Random(seed))

        self.model = Model(
            configuration,
            loaded,
            len(self.asked.labels),
            len(self.asked.relations),
            data.start(configuration.cell.task),
        )
        if isinstance(self.model.heads, SpanHeads):
            self.model.heads.start_from_pairs(row.spans for row in self.rows)
        self.optimiser = torch.optim.AdamW(
            self.model.parameter_groups(), weight_decay=configuration.weight_decay, fused=True
        )
        self.limit = configuration.limit
        self.total_steps = self.limit.steps(steps_per_epoch(*batching))
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        self.trained = list(self.model.trained_parameters().values())

        self.stage = Stage.TRAINING
        self.steps = 0
        self.tokens = 0
        self.num_rows = 0
        self.epochs: list[Epoch] = []
        self.best_f1, self.best_epoch = -math.inf, 0
        self.best_state: dict[str, Tensor] | None = None
        self.validation: dict[str, Counts] = {}
        self.spent = FoldRunUsage()
        self.halvings = 0
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._epoch_began = 0.0
        self._loss = 0.0
        self._left = 0
        self._steps_of_epoch = 0
        self._ready: Iterator[tuple[list[Row], Inputs, Any]] = iter(())
        self._losses: list[Tensor] = []
        self._evaluation: Evaluation | None = None
        if state is not None:
            self._restore(state)

    @property
    def shares_passes(self) -> bool:
        """Whether other lanes of the same backbone may join its passes."""
        return not self.strategy.trains_backbone

    # --- batch by batch ---------------------------------------------------------------------------

    def take(self) -> Batch | None:
        """The next batch; None when the lane is done. Report its result before taking another."""
        while not self._left:
            if self.stage is Stage.DONE:
                return None
            self._begin_stage()
            if not self._left:  # no text in any of these notes
                self._end_stage()
        rows, inputs, targets = next(self._ready)
        self._left -= 1
        if self.activations is not None:
            # The store reads lengths from the host's copy and sends its states along with the batch.
            inputs = self.activations.fill([row.pieces.key for row in rows], inputs)
            targets = None if targets is None else targets.to(self.device)
        return Batch(self, rows, inputs, targets)

    def decay_rates(self) -> None:
        """Linear decay to zero without warm-up, as in the published runs."""
        left = max(0.0, 1.0 - self._progress)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * left

    @property
    def _progress(self) -> float:
        """The share of training that is done; of epochs, an estimate where negative rows are sampled."""
        if self.total_steps is None:
            return self.spent.device_training / self.limit.amount
        return self.steps / self.total_steps

    @property
    def _is_epoch_over(self) -> bool:
        """Whether this epoch, or this part of a duration, has had its last step."""
        if self.configuration.duration is None:
            return self.order.is_at_end
        return self._progress >= (len(self.epochs) + 1) / self.configuration.epochs

    def finish_step(self, batch: Batch, loss: Tensor) -> None:
        """Reports a gradient step on a batch. After the last step of an epoch, validation follows.

        Raises:
            TrainingError: a loss of this epoch is not a number.
        """
        if self.steps == 0:
            self.model.check_gradients(batch.targets)
        self.optimiser.zero_grad(set_to_none=True)
        self.steps += 1
        self._steps_of_epoch += 1
        self.tokens += sum(row.length for row in batch.rows)
        self.num_rows += len(batch.rows)
        self._losses.append(loss.detach())
        self.order.advance()
        if self._is_epoch_over:
            self._left = 0
            self._end_stage()

    def finish_answers(self, batch: Batch, answers: Answers) -> None:
        """Reports the model's answers to a batch. The last answers of validation end the epoch."""
        assert self._evaluation is not None
        for row, answer in zip(batch.rows, answers, strict=True):
            self._evaluation.add_answer(row, answer)
        if not self._left:
            self._end_stage()

    def _begin_stage(self) -> None:
        configuration = self.configuration
        batches: Iterable[list[Row]]
        if self.stage is Stage.TRAINING:
            if not self._steps_of_epoch:
                self._epoch_began = self.spent.wall
                self._losses = []
            self.model.train()
            batches = self.order.rest()
        else:
            self.model.eval()
            if self._evaluation is None:
                if self.stage is Stage.SCORING and self.best_epoch != configuration.epochs:
                    assert self.best_state is not None
                    self.model.load_trained_state(self.best_state)
                self._evaluation = self._next_evaluation()
            batches = evaluation_batches(self._evaluation.next_round(), self.evaluation_pieces)
        listed = list(batches)
        self._left = len(listed)
        trains = self.stage is Stage.TRAINING
        device = self.device if self.activations is None else torch.device("cpu")
        self._ready = prefetch(_collated(listed, self.pad, trains=trains), device)

    def _next_evaluation(self) -> Evaluation:
        is_scoring, is_elsewhere = self.stage is Stage.SCORING, self.stage is Stage.TRANSFER
        if not is_elsewhere and not (is_scoring and self.fold_run.is_test):
            note_ids = self.split.scored if is_scoring else self.split.validation
            notes = [self.notes[note_id] for note_id in note_ids]
            return Evaluation(
                self.builder, notes, self.note_rows, self.windows, self.pieces, self.flat
            )
        c = self.configuration
        site = self.data.site(self.sites[len(self.transfer)] if is_elsewhere else None, c.cell.task)
        source = c.cell.backbone.source
        return Evaluation(
            self.builder,
            site.corpus.notes,
            site.rows(self.tokenizer, self.shape, c),
            site.windows(self.tokenizer, source, c.window, c.overlap),
            site.pieces(self.tokenizer, source),
            self.flat,
            frozenset((*site.corpus.labels, *site.corpus.relation_labels)),
        )

    def _end_stage(self) -> None:
        if self.stage is Stage.TRAINING:
            self._loss = self._mean_loss()
            self._steps_of_epoch = 0
            self.stage = Stage.VALIDATION
            return
        assert self._evaluation is not None
        if self._evaluation.has_more:
            return
        evaluation, self._evaluation = self._evaluation, None
        scores = evaluation.scores()
        if self.stage is Stage.VALIDATION:
            self._end_epoch({note: pool(c.strict.values()) for note, c in scores.items()})
            is_last = len(self.epochs) == self.configuration.epochs
            self.stage = Stage.SCORING if is_last else Stage.TRAINING
            return
        if self.stage is Stage.SCORING:
            self.scores = scores
            self.unreachable = Counter(
                missed.reason
                for note in evaluation.notes
                for missed in self._unreachable(note, evaluation)
            )
            if self.fold_run.is_test:
                self.predictions = {note.id: evaluation.found(note) for note in evaluation.notes}
        else:
            self.transfer[self.sites[len(self.transfer)]] = scores
        self.stage = Stage.TRANSFER if len(self.transfer) < len(self.sites) else Stage.DONE

    def _end_epoch(self, validation: dict[str, Counts]) -> None:
        number, f1 = len(self.epochs) + 1, pool(validation.values()).f1
        self.epochs.append(Epoch(number, self._loss, f1, self.spent.wall - self._epoch_began))
        # Among equal epochs the later one has seen more.
        if f1 >= self.best_f1:
            self.best_f1, self.best_epoch = f1, number
            self.validation = validation
            self.best_state = self.model.trained_state()

    def _mean_loss(self) -> float:
        # All losses are read at once: reading each would stall a GPU every step.
        losses = self._losses
        values = torch.stack(losses).float().cpu() if losses else torch.zeros(1)
        if not bool(torch.isfinite(values).all()):
            first = int((~torch.isfinite(values)).nonzero()[0]) + 1
            raise TrainingError(
                f"the loss is not a number at step {self.steps - len(losses) + first} "
                f"(learning rate {self.configuration.learning_rate:g}); lower the learning rate"
            )
        return float(values.mean())

    # --- saved state and record -------------------------------------------------------------------

    def save(self) -> bytes:
        """All that a lane needs to resume elsewhere, between two batches."""
        buffer = io.BytesIO()
        torch.save(
            {
                "trained": self.model.trained_state(),
                "optimiser": self.optimiser.state_dict(),
                "best": self.best_state,
                "dropout": self.dropout.get_state(),
                "torch": None if self.shares_passes else _generator_states(self.device),
                "position": self.position(),
            },
            buffer,
        )
        return buffer.getvalue()

    def _restore(self, saved: bytes) -> None:
        state = torch.load(io.BytesIO(saved), weights_only=True, map_location="cpu")
        self.model.load_trained_state(state["trained"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.best_state = state["best"]
        self.dropout.set_state(state["dropout"])
        if state["torch"] is not None:
            _set_generators(self.device, state["torch"])
        self.restore_position(state["position"])

    def position(self) -> dict[str, Any]:
        """How far the lane has got, as plain values: all of a saved lane except its tensors.

        A lane saved while it trains resumes with the next batch; an evaluation starts again.
        """
        is_within = self.stage is Stage.TRAINING and self._steps_of_epoch > 0
        # Scores are not saved: a resumed lane scores again.
        stage = Stage.SCORING if self.stage is Stage.TRANSFER else self.stage
        losses = torch.stack(self._losses).float().tolist() if is_within else []
        return {name: getattr(self, name) for name in PLAIN_PROGRESS} | {
            "validation": {note: [c.tp, c.fp, c.fn] for note, c in self.validation.items()},
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "stage": stage.value,
            "order": self.order.position,
            "learnt": self._steps_of_epoch,
            "losses": losses,
            "loss": self._loss,
            "epoch_wall": self.spent.wall - self._epoch_began,
            "spent": asdict(self.spent),
        }

    def restore_position(self, position: Mapping[str, Any]) -> None:
        for name in PLAIN_PROGRESS:
            setattr(self, name, position[name])
        self.validation = {note: Counts(*c) for note, c in position["validation"].items()}
        self.epochs = [Epoch(**epoch) for epoch in position["epochs"]]
        self.stage = Stage(position["stage"])
        self.order.restore(position["order"])
        self.spent = FoldRunUsage(**position["spent"])
        self._steps_of_epoch, self._loss = position["learnt"], position["loss"]
        self._losses = [torch.tensor(loss, device=self.device) for loss in position["losses"]]
        self._epoch_began = self.spent.wall - position["epoch_wall"]

    def write_adapter(self, folder: Path) -> Path:
        """Writes what the model has learnt, in its best epoch once the lane is done. A sharded lane has only
        a part of it in this process and cannot be written.

        Raises:
            AdapterError: the folder cannot be written to.
        """
        relations = [question.name for question in self.asked.relations]
        seen = (*self.split.train, *self.split.validation)
        notes = {mark for note_id in seen for mark in note_marks(self.notes[note_id])}
        saved = self.data.initial_prompt
        if saved is not None and self.fold_run.configuration.prompt_initialisation == "adapter":
            notes |= saved.notes
        return write_adapter(
            folder, self.model, self.asked.labels, relations, self.weights_fingerprint, notes
        )

    def record(
        self, *, wall_seconds: float, num_devices: float, peak_bytes: int, device_hour_usd: float
    ) -> Record:
        """The record of a lane that is done or pauses."""
        statement = self.model.statement()
        return Record(
            key=self.fold_run.key,
            fold_run=self.fold_run,
            status=RecordStatus.DONE if self.stage is Stage.DONE else RecordStatus.PAUSED,
            notes=self.scores,
            transfer=self.transfer,
            predictions=self.predictions,
            unreachable=self.unreachable.total(),
            unreachable_reasons=dict(sorted(self.unreachable.items())),
            validation_f1=self.best_f1,
            validation=self.validation,
            best_epoch=self.best_epoch,
            epochs=tuple(self.epochs),
            trained=statement.by_kind,
            trained_parameters=statement.trained,
            total_parameters=statement.total,
            adapter_bytes=statement.adapter_bytes,
            device=device_name(self.device),
            num_devices=num_devices,
            device_seconds=self.spent.device,
            wall_seconds=wall_seconds,
            steps=self.steps,
            rows=self.num_rows,
            training_seconds=self.spent.training,
            evaluation_seconds=self.spent.evaluation,
            tokens=self.tokens,
            flops=self._flops,
            peak_bytes=peak_bytes,
            memory_halvings=self.halvings,
            cost_usd=price(self.spent.device, device_hour_usd),
            versions=versions(),
            hardware=hardware(self.device),
            started_at=self.started_at,
        )

    @property
    def _flops(self) -> float:
        """Operations of training so far, without the match head, which sees few pairs."""
        return training_flops(
            self.shape,
            tokens=self.tokens,
            row_length=self.tokens / max(1, self.num_rows),
            trains_backbone=self.strategy.trains_backbone,
            prompt_length=self.configuration.prompt_length,
            prompt_depth=self.configuration.prompt_depth,
            first_layer=self.configuration.first_layer,
            head_parameters=head_parameters(
                self.strategy.answers, len(self.asked.labels), self.shape.hidden
            ),
        )

    def _unreachable(self, note: Note, evaluation: Evaluation) -> list[Unreachable]:
        """Gold spans or relations of a note that no answer can equal."""
        tags, windows = self.strategy.answers == "tags", evaluation.windows[note.id]
        find = untaggable if tags else unreachable_apart if self.flat else unreachable
        spans = find(note, windows) if self.asked.labels else []
        if not self.asked.relations:
            return spans
        # One answer stands for both of two equal spans.
        lost = {span.span_id for span in spans if span.reason != "duplicate"}
        lost_answers = None
        if lost and not tags and not self.builder.form.chooses:
            # An answer that is read from the text does not compete with other spans of its label.
            overlapping = {s.span_id for s in spans if s.reason == "same_label_overlap"}
            lost_answers = lost - overlapping
        contexts = self.builder.contexts(note, evaluation.pieces[note.id], mentions_of(note.spans))
        return unreachable_relations(
            note, contexts, self.asked.relations, lost, lost_answers=lost_answers, one_kind=tags
        )


def _collated(
    batches: Iterable[list[Row]], pad: int, *, trains: bool
) -> Iterator[tuple[list[Row], Inputs, Any]]:
    # Not a method: a lane that holds a generator that holds the lane would keep its model in memory until
    # Python collects cycles.
    for rows in batches:
        inputs = collate(rows, pad)
        yield rows, inputs, collate_targets(rows, inputs) if trains else None


def _generator_states(device: torch.device) -> list[Tensor]:
    """States of torch's own generators, which draw a trained encoder's dropout."""
    states = [torch.get_rng_state()]
    return states if device.type == "cpu" else [*states, torch.cuda.get_rng_state(device)]


def _set_generators(device: torch.device, states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
