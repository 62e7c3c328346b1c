"""Tokens per second of a training step: raymrc against PEFT and Hugging Face on the same windows.

    python -m benchmarks.throughput [--corpus FOLDER] [--quick] [--device cpu|cuda]

Two mixes of lengths: single sentences of PHEE, and windows of synthetic discharge summaries, most of them
full. A step includes collating a batch, forward, backward, clipping and AdamW; padding costs time but does
not count as tokens.

Ours: batches of similar lengths, our encoder, factorised heads, fused AdamW; four frozen fold-runs together
through `raymrc.training.fused`, and one alone as in `Lane.train_epoch`. Peer: the loop of Hugging Face's
Trainer with shuffled rows padded to the longest of a batch, `AutoModel` with PEFT's prefix, fused AdamW
(Trainer's default). It runs with the published match head and with our factorised head; with the latter also
in batches of similar lengths (Trainer's `group_by_length`, off by default). The peer's attention weights have
no dropout, like ours; the checkpoint's config has some, which would rule out the fused kernel.

With --device cuda the peer uses bf16 autocast, and gatortron-345m's shape with random weights is added.
Without MiniLM's weights its shape gets random weights and a tokenizer with pieces of five letters.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Options, json_line, read_options, start, time_in_turn
from benchmarks.fused_step import step_together
from benchmarks.peft_peer import HEADS, PREFIX, PeerModel, collate_peer
from raymrc.configuration import Backbone, Cell, Configuration
from raymrc.corpora.formats import read_corpus
from raymrc.corpora.note import Corpus
from raymrc.corpora.splits import take_subset
from raymrc.corpora.synthetic import synthesize_corpus
from raymrc.errors import BackboneError
from raymrc.model.backbones import find_backbone
from raymrc.model.inputs import SpanTargets
from raymrc.model.loading import Loaded, Weights, from_hugging_face, load_backbone
from raymrc.model.network import Model
from raymrc.model.precision import precision
from raymrc.model.shapes import SHAPES, Shape
from raymrc.reading.relations import Asked
from raymrc.reading.rows import Row, RowBuilder, RowForm, training_batches
from raymrc.reading.windows import cut_windows, read_pieces
from raymrc.training.batching import collate, collate_targets
from raymrc.training.fused import BatchPart
from raymrc.training.pool import keep_freed_memory, share_passes

GOALS = {"published head": 2.5, "factorised head": 1.0}
"""Goals on a CPU; users of the peer have the published head."""

LANES = 4


@dataclass(frozen=True, slots=True)
class Mix:
    """A corpus cut into windows.

    Args:
        batch_size: of both sides.
        batches: steps of one timed run.
        dense_batch_size, dense_batches: the same with the published head, which keeps
            rows x pieces^2 x (2 D + 3 W) numbers.
    """

    name: str
    window: int
    batch_size: int
    batches: int
    dense_batch_size: int
    dense_batches: int


PHEE = Mix("PHEE sentences", 256, 16, 12, 16, 2)
SUMMARIES = Mix("discharge summaries", 256, 8, 4, 2, 1)


# --- what both sides train on ----------------------------------------------------------------------


def read_rows(mix: Mix, corpus: Corpus, loaded: Loaded) -> list[Row]:
    """Rows of the mix with and without answers, shuffled as in an epoch of the study."""
    builder = RowBuilder(loaded.tokenizer, RowForm(mix.window), Asked(corpus.labels), {})
    windows = {
        note.id: cut_windows(read_pieces(note, loaded.tokenizer), mix.window, 32)
        for note in corpus.notes
    }
    draw = random.Random(13)
    rows = [
        row
        for note in corpus.notes
        for row in builder.label_rows(note, windows[note.id])
        if row.has_answer or draw.random() < 0.3
    ]
    draw.shuffle(rows)
    return rows


def count_tokens(rows: Iterable[Row]) -> int:
    return sum(row.length for row in rows)


def padded_share(batches: Iterable[Sequence[Row]]) -> float:
    """Share of computed positions that are padding."""
    batches = list(batches)
    padded = sum(len(batch) * max(row.length for row in batch) for batch in batches)
    return round(1 - sum(map(count_tokens, batches)) / padded, 3)


def joined(lanes: Sequence[Sequence[Sequence[Row]]]) -> list[list[Row]]:
    """Rows of each pass that combines lanes of several lengths."""
    passes = []
    for step in zip(*lanes, strict=True):
        for places in share_passes([collate(rows, 0) for rows in step], torch.device("cpu")):
            passes.append([row for place in places for row in step[place]])
    return passes


def in_order(rows: Sequence[Row], size: int) -> list[list[Row]]:
    return [list(rows[i : i + size]) for i in range(0, len(rows), size)]


def bucketed(rows: Sequence[Row], size: int, seed: int = 0) -> list[list[Row]]:
    return list(training_batches(rows, size, 1.0, random.Random(seed)))


# --- the two sides ---------------------------------------------------------------------------------


def make_configuration(backbone: Backbone, strategy: str, seed: int = 13) -> Configuration:
    return Configuration(
        Cell("concepts", "none", backbone, strategy),
        learning_rate=3e-2 if strategy == "frozen_soft_prompt" else 3e-4,
        prompt_learning_rate=3e-2,
        head_learning_rate=3e-3,
        prompt_length=16,
        seed=seed,
    )


def autocast(precision: str, device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext()


def run_alone(
    loaded: Loaded,
    num_labels: int,
    strategy: str,
    batches: Sequence[Sequence[Row]],
    device: str,
) -> Callable[[], None]:
    """Ours: one fold-run, with a step as a user would write it."""
    model = Model(make_configuration(loaded.backbone, strategy), loaded, num_labels).train()
    optimiser = torch.optim.AdamW(model.parameter_groups(), fused=True)
    trained = [p for p in model.parameters() if p.requires_grad]

    def run() -> None:
        for rows in batches:
            inputs = collate(rows, loaded.shape.pad_id)
            targets = collate_targets(rows, inputs).to(device)
            loss = model.loss(inputs.to(device), targets)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=True)
            optimiser.step()

    return run


def run_together(
    loaded: Loaded,
    num_labels: int,
    lanes: Sequence[Sequence[Sequence[Row]]],
    device: str,
) -> Callable[[], None]:
    """Ours: frozen fold-runs side by side, each with its order of batches."""
    models, optimisers, generators = [], [], []
    for seed in range(len(lanes)):
        configuration = make_configuration(loaded.backbone, "frozen_soft_prompt", seed)
        models.append(Model(configuration, loaded, num_labels).train())
        optimisers.append(torch.optim.AdamW(models[-1].parameter_groups(), fused=True))
        generators.append(torch.Generator(device).manual_seed(seed))

    def run() -> None:
        for step in zip(*lanes, strict=True):
            parts = []
            for model, generator, rows in zip(models, generators, step, strict=True):
                inputs = collate(rows, loaded.shape.pad_id)
                targets = collate_targets(rows, inputs)
                assert isinstance(targets, SpanTargets)
                parts.append(BatchPart(model, inputs.to(device), targets.to(device), generator))
            step_together(parts, optimisers)

    return run


def run_peer(
    encoder: Any,
    configuration: Configuration,
    num_labels: int,
    head: str,
    batches: Sequence[Sequence[Row]],
    device: str,
    precision: str,
) -> Callable[[], None]:
    """The peer: steps of Trainer's inner loop, without logging."""
    from transformers import get_linear_schedule_with_warmup

    torch.manual_seed(0)
    model = PeerModel(encoder, num_labels, configuration, head).to(device).train()
    optimiser = torch.optim.AdamW(model.parameter_groups(configuration), fused=True)
    schedule = get_linear_schedule_with_warmup(optimiser, 0, 10_000)
    pad = int(encoder.config.pad_token_id or 0)

    def run() -> None:
        for rows in batches:
            batch = {name: tensor.to(device) for name, tensor in collate_peer(rows, pad).items()}
            with autocast(precision, device):
                loss: Tensor = model(**batch)["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            model.zero_grad()

    return run


def load_sides(name: str, device: str, corpora: Sequence[Corpus]) -> tuple[Loaded, Any]:
    """Our and Hugging Face's model with equal weights, random if there are no files."""
    from transformers import AutoModel

    backbone = Backbone(name, name)
    no_dropout = {"attention_probs_dropout_prob": 0.0}
    if name == "minilm":
        try:
            folder = find_backbone(backbone)
        except BackboneError:
            pass
        else:
            hugging_face = AutoModel.from_pretrained(
                folder, add_pooling_layer=False, local_files_only=True, **no_dropout
            )
            return load_backbone(backbone, device, dtype=torch.float32), hugging_face.to(device)
    shape = SHAPES[name]
    torch.manual_seed(0)
    hugging_face = AutoModel.from_config(
        hugging_face_config(shape, **no_dropout), add_pooling_layer=False
    )
    state = {name: weight.clone() for name, weight in hugging_face.state_dict().items()}
    encoder = from_hugging_face(shape, Weights(Path("random"), state))
    tokenizer = make_tokenizer(corpora)
    loaded = Loaded(replace(backbone, source="random"), encoder.to(device), tokenizer, shape, "")
    return loaded, hugging_face.to(device)


def make_tokenizer(corpora: Sequence[Corpus]) -> Any:
    """A tokenizer with pieces of at most five letters, about as many as a trained one gives."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"\w{1,5}|[^\w\s]"), behavior="isolated"),
        ]
    )
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    pieces = {
        piece
        for corpus in corpora
        for note in corpus.notes
        for piece, _ in split.pre_tokenize_str(note.text)
    }
    vocab = {piece: i for i, piece in enumerate([*specials, *sorted(pieces)[:20_000]])}
    made = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = split
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def hugging_face_config(shape: Shape, **values: Any) -> Any:
    from transformers import BertConfig, MegatronBertConfig

    return {"bert": BertConfig, "megatron-bert": MegatronBertConfig}[shape.kind](
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.ffn,
        max_position_embeddings=shape.positions,
        type_vocab_size=shape.types,
        layer_norm_eps=shape.eps,
        hidden_act=shape.activation,
        pad_token_id=shape.pad_id,
        **values,
    )


# --- cases -----------------------------------------------------------------------------------------


def measure(
    options: Options, mix: Mix, corpus: Corpus, sides: tuple[Loaded, Any], pairs: int
) -> None:
    """All cases of one mix with one backbone."""
    loaded, _ = sides
    rows = read_rows(mix, corpus, loaded)
    for strategy in ("frozen_soft_prompt", "soft_prompt"):
        for head in HEADS:
            size, count = mix.batch_size, mix.batches
            if head == "published head":
                size, count = mix.dense_batch_size, mix.dense_batches
            taken = rows[: size * count]
            assert len(taken) == size * count, f"{mix.name} has {len(rows)} rows"
            for grouped in (False,) if head == "published head" else (False, True):
                run_case(options, mix, corpus, sides, strategy, head, grouped, taken, size, pairs)


def run_case(
    options: Options,
    mix: Mix,
    corpus: Corpus,
    sides: tuple[Loaded, Any],
    strategy: str,
    head: str,
    grouped: bool,
    rows: Sequence[Row],
    size: int,
    pairs: int,
) -> None:
    """One peer against ours: one lane, and several if the backbone is frozen."""
    loaded, encoder = sides
    device, num_labels = options.device, len(corpus.labels)
    is_frozen = strategy == "frozen_soft_prompt"
    on_gpu = device == "cuda"
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    held = loaded
    if is_frozen:  # in the dtype that raymrc uses
        encoder_here = copy.deepcopy(loaded.encoder).to(precision(device))
        held = replace(loaded, encoder=encoder_here)
    theirs = bucketed(rows, size) if grouped else in_order(rows, size)
    mine = bucketed(rows, size)
    peer = run_peer(
        encoder if is_frozen else copy.deepcopy(encoder),
        make_configuration(loaded.backbone, strategy),
        num_labels,
        head,
        theirs,
        device,
        "bf16" if on_gpu else "fp32",
    )
    for lanes in (LANES, 1) if is_frozen else (1,):
        if lanes == 1:
            orders = [mine]
            ours = run_alone(held, num_labels, strategy, mine, device)
        else:
            each = max(1, len(mine) // lanes)
            orders = [bucketed(rows, size, seed)[:each] for seed in range(lanes)]
            ours = run_together(held, num_labels, orders, device)
        tokens = sum(count_tokens(batch) for order in orders for batch in order)
        seconds, peer_seconds, ratio = time_in_turn(
            ours, peer, pairs, wait, warm_up=not options.quick
        )
        peer_tokens = count_tokens(rows)
        json_line(
            options,
            f"{mix.name}, {loaded.backbone.name}, {'frozen' if is_frozen else 'unfrozen'}, "
            + (f"{lanes} lanes, " if lanes > 1 else "")
            + f"peer with the {head}{', batches of like lengths' if grouped else ''}",
            tokens / seconds,
            peer_tokens / peer_seconds,
            "real tokens/s",
            ratio * tokens / peer_tokens,
            GOALS[head],
            pairs_timed=pairs,
            batch_size=size,
            batches=len(theirs),
            labels=num_labels,
            padding=padded_share(joined(orders)),
            peer_padding=padded_share(theirs),
            mean_pieces=round(peer_tokens / len(rows), 1),
            peer_prefix=PREFIX,
            peer_precision="bf16" if on_gpu else "fp32",
            threads=torch.get_num_threads(),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options("throughput", __doc__, arguments, reads_phee=True)
    start(options)
    if options.device == "cpu":
        keep_freed_memory()  # for both sides
    corpora: dict[Mix, Corpus] = {}
    if options.corpus is not None:
        labels = ["Drug", "Effect", "Treat-Disorder", "Dosage", "Route"]
        corpora[PHEE] = take_subset(read_corpus(options.corpus, "phee", labels), 200, 13)
    if not (options.quick and corpora):  # one corpus is enough to check the code
        corpora[SUMMARIES] = synthesize_corpus("n2c2-2018", 40, "a", 13)
    names = ("minilm", "gatortron-345m") if options.device == "cuda" else ("minilm",)
    for name in names:
        sides = load_sides(name, options.device, tuple(corpora.values()))
        for mix, corpus in corpora.items():
            if options.quick:
                mix = replace(
                    mix, window=64, batch_size=2, batches=1, dense_batch_size=1, dense_batches=1
                )
            measure(options, mix, corpus, sides, pairs=1 if options.quick else 3)
    return 0


if __name__ == "__main__":
    sys.exit(main())
