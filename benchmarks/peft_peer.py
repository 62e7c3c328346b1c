"""A peer that a user would write for the same task: PEFT's prefix with Hugging Face's Trainer.

    rows -> collate -> PeerModel (AutoModel, PrefixEncoder, heads) -> Trainer -> spans -> counts

Windows, rows, folds, rates, decay, clipping and losses are ours; only the computation differs. Ray's workers
import this module. Without `peft` the prefix is the `nn.Embedding` inside `peft.PrefixEncoder`.
"""

# B rows, S pieces, P prompt positions, N heads, H head size, D hidden, X numbers of all layers,
# W match width, K pairs

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymrc.configuration import Backbone, Configuration, hash_values
from raymrc.corpora.note import Note
from raymrc.model.backbones import find_backbone, read_shape
from raymrc.model.heads import SpanHeads
from raymrc.model.inputs import SpanTargets
from raymrc.model.loading import load_tokenizer
from raymrc.model.network import Model
from raymrc.model.strategies import STRATEGIES
from raymrc.planning.rows import row_form
from raymrc.reading.answers import assemble
from raymrc.reading.relations import Asked
from raymrc.reading.rows import Row, RowBuilder
from raymrc.scoring.counts import Counts, pool
from raymrc.scoring.n2c2_2018 import score_note
from raymrc.training.batching import StudyData, collate, collate_targets

if TYPE_CHECKING:
    from raymrc.model.shapes import Shape

# --- the model ------------------------------------------------------------------------------------


STRIDE = 1024
NOTHING = -100
"""Trainer's padding where it joins batches, which it does along one dimension only."""


def pack(found: Sequence[Tensor]) -> Tensor:
    """Encode each row's spans, (first, last) pieces, as first * STRIDE + last, padded with NOTHING."""
    codes = [pairs_K2[:, 0] * STRIDE + pairs_K2[:, 1] for pairs_K2 in found]
    return nn.utils.rnn.pad_sequence(codes, batch_first=True, padding_value=NOTHING)


class DenseHeads(nn.Module):
    """Start, end and match heads as published: an MLP over [h_i; h_j] for every pair (i, j).

    Source: Li et al. 2020, A unified MRC framework for named entity recognition, arXiv:1910.11476.
    """

    def __init__(self, hidden: int, match_width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.start = nn.Linear(hidden, 1)
        self.end = nn.Linear(hidden, 1)
        self.first = nn.Linear(2 * hidden, match_width)
        self.last = nn.Linear(match_width, 1)
        # As in ours, training begins by predicting nothing.
        nn.init.constant_(self.start.bias, -3.0)
        nn.init.constant_(self.end.bias, -3.0)

    def forward(
        self,
        hidden_BSD: Tensor,
        window_BS: Tensor,
        targets: SpanTargets,
        weights: Sequence[float],
    ) -> tuple[Tensor, Tensor | None]:
        """The loss and, in evaluation, the packed spans of each row."""
        hidden_BSD = self.drop(hidden_BSD)
        start_BS = self.start(hidden_BSD).squeeze(-1)
        end_BS = self.end(hidden_BSD).squeeze(-1)
        num_pieces = hidden_BSD.shape[1]
        starts = hidden_BSD[:, :, None].expand(-1, -1, num_pieces, -1)
        ends = hidden_BSD[:, None].expand(-1, num_pieces, -1, -1)
        match_BSSW = self.drop(F.gelu(self.first(torch.cat([starts, ends], dim=-1))))
        match_BSS = self.last(match_BSSW).squeeze(-1)

        inside_BSS = torch.triu(window_BS[:, :, None] & window_BS[:, None, :])
        may_start = (start_BS > 0) | (targets.start_BS > 0)
        may_end = (end_BS > 0) | (targets.end_BS > 0)
        candidates = inside_BSS & may_start[:, :, None] & may_end[:, None, :]
        gold_BSS = torch.zeros_like(match_BSS, dtype=torch.float32)
        gold_BSS[tuple(targets.pairs_K3.unbind(1))] = 1.0
        losses = (
            _mean_entropy(start_BS, targets.start_BS, window_BS),
            _mean_entropy(end_BS, targets.end_BS, window_BS),
            _mean_entropy(match_BSS, gold_BSS, candidates),
        )
        loss = sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)
        assert isinstance(loss, Tensor)
        if self.training:
            return loss, None
        found_BSS = (start_BS > 0)[:, :, None] & (end_BS > 0)[:, None, :] & (match_BSS > 0)
        return loss, pack([row.nonzero() for row in found_BSS & inside_BSS])


def _mean_entropy(logits: Tensor, gold: Tensor, mask: Tensor) -> Tensor:
    losses = F.binary_cross_entropy_with_logits(logits, gold, reduction="none")
    return (losses * mask).sum() / mask.sum().clamp(min=1)


class FactorisedHeads(SpanHeads):
    """Our heads in the peer's interface."""

    def forward(
        self,
        hidden_BSD: Tensor,
        window_BS: Tensor,
        targets: SpanTargets,
        weights: Sequence[float],
    ) -> tuple[Tensor, Tensor | None]:
        """As `DenseHeads.forward`."""
        w = (weights[0], weights[1], weights[2])
        loss = self.loss(hidden_BSD, window_BS, targets, w)
        if self.training:
            return loss, None
        answers = self.predict(hidden_BSD, window_BS)
        return loss, pack([torch.from_numpy(pairs[match > 0]) for _, _, pairs, match in answers])


HEADS: dict[str, type[DenseHeads] | type[FactorisedHeads]] = {
    "published head": DenseHeads,
    "factorised head": FactorisedHeads,
}


PREFIX = (
    "peft.PrefixEncoder" if find_spec("peft") else "nn.Embedding, as peft.PrefixEncoder holds one"
)


def make_prefix(config: Any, num_virtual_tokens: int) -> nn.Module:
    """PEFT's prefix encoder: ids of virtual tokens (B, P) -> keys and values (B, P, X)."""
    if not find_spec("peft"):
        return nn.Embedding(num_virtual_tokens, 2 * config.num_hidden_layers * config.hidden_size)
    from peft import PrefixEncoder, PrefixTuningConfig

    prefix: nn.Module = PrefixEncoder(
        PrefixTuningConfig(
            task_type="FEATURE_EXTRACTION",
            num_virtual_tokens=num_virtual_tokens,
            token_dim=config.hidden_size,
            num_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            encoder_hidden_size=config.hidden_size,
        )
    )
    return prefix


class PeerModel(nn.Module):
    """A Hugging Face encoder with one PEFT prefix per label and heads, trained by Trainer.

    Args:
        encoder: from `AutoModel`. A frozen one is shared and has no dropout.
        head: a key of `HEADS`.
        prefix_std: standard deviation of the prefix's initial values; PEFT's default is 1.0. On one fold
            (60 PHEE notes, 6 epochs at 2e-1), 1.0 gave a strict F1 of 0.50, 0.02 gave 0.12, ours 0.46.
    """

    def __init__(
        self,
        encoder: Any,
        num_labels: int,
        configuration: Configuration,
        head: str,
        prefix_std: float = 1.0,
    ) -> None:
        super().__init__()
        c = configuration
        self.trains_backbone = STRATEGIES[c.cell.strategy].trains_backbone
        self.encoder = encoder.requires_grad_(self.trains_backbone)
        self.config = encoder.config
        self.weights = c.loss_weights
        self.prompt_length = c.prompt_length
        self.prefix = make_prefix(encoder.config, num_labels * c.prompt_length)
        nn.init.normal_(self._table, std=prefix_std)
        self.heads = HEADS[head](encoder.config.hidden_size, c.match_width, c.dropout)

    @property
    def _table(self) -> Tensor:
        """One row per virtual token, (labels * P, X)."""
        table = self.get_parameter(
            "prefix.weight" if isinstance(self.prefix, nn.Embedding) else "prefix.embedding.weight"
        )
        return table

    def train(self, mode: bool = True) -> PeerModel:
        super().train(mode)
        if not self.trains_backbone:
            self.encoder.eval()  # dropout only slows down a frozen backbone
        return self

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        window_mask: Tensor,
        label: Tensor,
        start_positions: Tensor,
        end_positions: Tensor,
        pairs: Tensor,
    ) -> dict[str, Tensor]:
        hidden_BSD = self.hidden(input_ids, attention_mask, label)
        targets = SpanTargets(start_positions, end_positions, pairs)
        loss, found = self.heads(hidden_BSD, window_mask, targets, self.weights)
        return {"loss": loss} if found is None else {"loss": loss, "found": found}

    def hidden(self, input_ids: Tensor, attention_mask: Tensor, label: Tensor) -> Tensor:
        """The encoder's output with each row's prefix, (B, S, D)."""
        from transformers import DynamicCache

        config, length = self.config, self.prompt_length
        B, S = input_ids.shape
        steps = torch.arange(max(S, length), device=label.device)
        made_BPX = self.prefix(label[:, None] * length + steps[:length])
        # As PeftModel.get_prompt, except that positions do not shift.
        head_size = config.hidden_size // config.num_attention_heads
        made = made_BPX.view(
            B, length, 2 * config.num_hidden_layers, config.num_attention_heads, head_size
        )
        cache = DynamicCache(made.permute(2, 0, 3, 1, 4).split(2))
        mask = torch.cat([attention_mask.new_ones(B, length), attention_mask], dim=1)
        out = self.encoder(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=steps[:S].expand(B, -1),
            past_key_values=cache,
        )
        return out.last_hidden_state

    def parameter_groups(self, configuration: Configuration) -> list[dict[str, Any]]:
        """As ours: rates for backbone, prefix and heads, and decay of matrices except the prefix."""
        c = configuration
        rates = {
            "encoder": c.learning_rate,
            "prefix": c.prompt_learning_rate or c.learning_rate,
            "heads": c.head_learning_rate or c.learning_rate,
        }
        groups: list[dict[str, Any]] = []
        for name, rate in rates.items():
            trained = [p for p in getattr(self, name).parameters() if p.requires_grad]
            for decays in (True, False):
                chosen = [p for p in trained if (p.dim() > 1 and name != "prefix") == decays]
                decay = c.weight_decay if decays else 0.0
                if chosen:
                    groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
        return groups

    @torch.no_grad()
    def take(self, model: Model) -> None:
        """Copy prompt and heads from one of our models; `tests/house/test_peft_peer.py` needs it."""
        prompt, heads = model.prompt, model.heads
        assert prompt is not None and isinstance(heads, SpanHeads)
        shape, length = prompt.shape, prompt.prompt_length
        table = prompt.vectors().view(
            prompt.num_labels, -1, shape.num_heads, length, shape.head_size
        )
        self._table.copy_(table.permute(0, 3, 1, 2, 4).reshape(self._table.shape))
        if isinstance(self.heads, FactorisedHeads):
            self.heads.load_state_dict(heads.state_dict())
            return
        dense: Any = self.heads
        dense.start.load_state_dict(heads.start.state_dict())
        dense.end.load_state_dict(heads.end.state_dict())
        both = [heads.match_start.weight, heads.match_end.weight]
        dense.first.weight.copy_(torch.cat(both, dim=1))
        dense.first.bias.copy_(heads.match_start.bias)
        dense.last.load_state_dict(heads.match_out.state_dict())


def collate_peer(rows: Sequence[Row], pad: int = 0) -> dict[str, Tensor]:
    """Dynamic padding to the longest row of the batch."""
    inputs = collate(rows, pad)
    targets = collate_targets(rows, inputs)
    assert isinstance(targets, SpanTargets)
    return {
        "input_ids": inputs.input_ids_BS,
        "attention_mask": inputs.mask_BS.long(),
        "window_mask": inputs.window_BS,
        "label": inputs.label_B,
        "start_positions": targets.start_BS,
        "end_positions": targets.end_BS,
        "pairs": targets.pairs_K3,
    }


# --- one fold-run ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class PeerRun:
    """One fold-run of the peer.

    Args:
        strict: counts of the scored fold, strict rule.
        tokens: trained pieces without padding.
    """

    configuration: int
    fold: int
    strict: tuple[int, int, int]
    validation_f1: float
    tokens: int


class Sampled(torch.utils.data.Dataset[Row]):
    """Every row with an answer, and a new draw of as many others as our epochs have on average."""

    def __init__(self, rows: Sequence[Row], negative_rate: float, seed: int) -> None:
        self.answered = [row for row in rows if row.has_answer]
        self.others = [row for row in rows if not row.has_answer]
        self.count = round(negative_rate * len(self.others))
        self.generator = random.Random(seed)
        self.tokens = 0
        self.draw()

    def draw(self) -> None:
        self.rows = self.answered + self.generator.sample(self.others, self.count)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        self.tokens += self.rows[index].length
        return self.rows[index]


_kept: dict[Backbone, tuple[Any, Any, Shape]] = {}
"""Model, tokenizer and shape; this process keeps them across trials."""


def keep_loaded(backbone: Backbone) -> tuple[Any, Any, Shape]:
    if backbone not in _kept:
        from transformers import AutoModel

        folder = find_backbone(backbone)
        model = AutoModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True)
        _kept[backbone] = model, load_tokenizer(folder), read_shape(folder, backbone.layers)
    return _kept[backbone]


def train_peer(
    configuration: Configuration,
    fold: int,
    data: StudyData,
    head: str,
    number: int = 0,
) -> PeerRun:
    """Trainer, dynamic padding, validation every epoch, the best epoch predicts the fold at the end.

    Args:
        number: index of the configuration in the sweep.
    """
    from transformers import (
        PrinterCallback,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        get_linear_schedule_with_warmup,
    )
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    c = configuration
    labels = data.corpus.labels
    encoder, tokenizer, shape = keep_loaded(c.cell.backbone)
    windows = data.windows(tokenizer, c.cell.backbone.source, c.window, c.overlap)
    builder = RowBuilder(tokenizer, row_form(c, shape), Asked(labels), data.questions)
    notes = {note.id: note for note in data.corpus.notes}
    split = data.folds.split(fold)
    train, validation, scored = (
        [row for i in ids for row in builder.label_rows(notes[i], windows[i])]
        for ids in (split.train, split.validation, split.scored)
    )
    seed = int(hash_values([c.seed, fold])[:8], 16) % 2**31
    torch.manual_seed(seed)
    model = PeerModel(encoder, len(labels), c, head)
    sampled = Sampled(train, c.negative_rate, seed)
    pad = int(tokenizer.pad_token_id or 0)

    def count(found: np.ndarray, rows: Sequence[Row], ids: Sequence[str]) -> Counts:
        return score(found, rows, [notes[i] for i in ids], windows, labels)

    def metrics(prediction: Any) -> dict[str, float]:
        return {"f1": count(prediction.predictions, validation, split.validation).f1}

    class Keep(TrainerCallback):
        """Keeps the trained parameters of the best epoch in memory; the later of equal epochs."""

        f1 = -1.0
        state: Mapping[str, Tensor] = {}

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            sampled.draw()

        def on_evaluate(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            f1 = rest["metrics"]["eval_f1"]
            if f1 >= self.f1:
                self.f1 = f1
                parameters = model.named_parameters()
                self.state = {n: p.detach().clone() for n, p in parameters if p.requires_grad}

    steps = c.epochs * -(-len(sampled) // c.batch_size)
    optimiser = torch.optim.AdamW(model.parameter_groups(c), fused=True)
    keep = Keep()
    with tempfile.TemporaryDirectory() as scratch:
        trainer: Any = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                num_train_epochs=c.epochs,
                per_device_train_batch_size=c.batch_size,
                # The dense head's pairs leave no memory for larger batches.
                per_device_eval_batch_size=64 if head == "factorised head" else 16,
                max_grad_norm=c.clip_norm,
                eval_strategy="epoch",
                save_strategy="no",
                label_names=["start_positions"],
                remove_unused_columns=False,
                dataloader_pin_memory=False,
                seed=seed,
                report_to=[],
                disable_tqdm=True,
                logging_strategy="no",
                use_cpu=True,
            ),
            train_dataset=sampled,
            eval_dataset=validation,
            data_collator=partial(collate_peer, pad=pad),
            compute_metrics=metrics,
            optimizers=(optimiser, get_linear_schedule_with_warmup(optimiser, 0, steps)),
            callbacks=[keep],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        model.load_state_dict(keep.state, strict=False)
        trainer.compute_metrics = None
        found = trainer.predict(scored).predictions
    result = count(found, scored, split.scored)
    return PeerRun(number, fold, (result.tp, result.fp, result.fn), keep.f1, sampled.tokens)


def score(
    found_RK: np.ndarray,
    rows: Sequence[Row],
    notes: Sequence[Note],
    windows: Mapping[str, Sequence[Any]],
    labels: Sequence[str],
) -> Counts:
    """Convert predictions of every row to spans and strict counts of all notes."""
    spans: dict[str, dict[int, list[tuple[int, int, int]]]] = {note.id: {} for note in notes}
    for row, place in np.argwhere(found_RK != NOTHING).tolist():
        at = rows[row]
        first, last = divmod(int(found_RK[row, place]), STRIDE)
        answers = spans[at.window.note_id].setdefault(at.window.index, [])
        begin = int(at.pieces.places[0])
        answers.append((at.label, first - begin, last - begin))
    return pool(
        counts
        for note in notes
        for counts in score_note(
            note.spans, assemble(note, windows[note.id], spans[note.id], labels), "strict"
        ).values()
    )


# --- the sweep ------------------------------------------------------------------------------------

_fetched: dict[str, Any] = {}
"""Notes fetched by this process, by the hex of their reference."""


def run_trial(config: Mapping[str, Any], *, shared: list[Any], head: str) -> None:
    """The function that Tune runs: one configuration on one fold."""
    import ray
    from ray import tune

    torch.set_num_threads(1)
    key = shared[0].hex()
    if key not in _fetched:
        _fetched[key] = ray.get(shared[0])
    data, configurations = _fetched[key]
    number, fold = config["configuration"], config["fold"]
    run = train_peer(configurations[number], fold, data, head, number)
    tune.report({"run": asdict(run)})
