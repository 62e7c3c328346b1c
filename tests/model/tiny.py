"""Small checkpoints of every kind, saved by Hugging Face, and batches for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from raymrc.configuration import Backbone, Cell, Configuration
from raymrc.model import loading
from raymrc.model.inputs import Inputs, SpanTargets, TagTargets
from raymrc.model.loading import Loaded

KINDS = ("bert", "roberta", "megatron-bert")

WORDS = (
    "the patient was given took mg daily for pain nausea after aspirin warfarin rash dose of and "
    "with no history smoker alcohol lives alone denies drug use two tablets by mouth every day"
).split()


def tiny_checkpoint(
    kind: str,
    folder: Path,
    *,
    num_layers: int = 3,
    hidden: int = 32,
    num_heads: int = 4,
    ffn: int = 48,
    positions: int = 64,
    with_head: bool = False,
    seed: int = 0,
) -> Path:
    """Save a random checkpoint with config and tokenizer into `folder`, and return it.

    Biases and LayerNorms are random too, because their usual zeros and ones would hide mistakes.

    Args:
        kind: "bert", "roberta" or "megatron-bert".
        positions: longest row; RoBERTa's table gets its two unused rows on top.
        with_head: save it with a language-model head, so that names get the kind's prefix.
    """
    tokenizer = tiny_tokenizer(kind)
    config = tiny_config(
        kind,
        vocab=len(tokenizer),
        num_layers=num_layers,
        hidden=hidden,
        num_heads=num_heads,
        ffn=ffn,
        positions=positions,
    )
    model = tiny_model(config, with_head=with_head, seed=seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_config(
    kind: str,
    *,
    vocab: int = 60,
    num_layers: int = 3,
    hidden: int = 32,
    num_heads: int = 4,
    ffn: int = 48,
    positions: int = 64,
) -> Any:
    """A Hugging Face config of this kind, without dropout."""
    from transformers import BertConfig, MegatronBertConfig, RobertaConfig

    values: dict[str, Any] = {
        "vocab_size": vocab,
        "num_hidden_layers": num_layers,
        "hidden_size": hidden,
        "num_attention_heads": num_heads,
        "intermediate_size": ffn,
        "max_position_embeddings": positions,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if kind == "roberta":
        return RobertaConfig(
            **values | {"max_position_embeddings": positions + 2, "layer_norm_eps": 1e-5},
            pad_token_id=1,
        )
    return {"bert": BertConfig, "megatron-bert": MegatronBertConfig}[kind](**values)


def tiny_model(config: Any, *, with_head: bool = False, seed: int = 0) -> Any:
    """A Hugging Face model with every weight drawn at random, in evaluation mode."""
    from transformers import AutoModel, AutoModelForMaskedLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (AutoModelForMaskedLM if with_head else AutoModel).from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                is_scale = name.endswith("weight") and parameter.dim() == 1
                parameter.normal_(1.0 if is_scale else 0.0, 0.2)
    return model.eval()


def tiny_tokenizer(kind: str) -> Any:
    """A fast word-level tokenizer with the kind's special pieces, over `WORDS` and single characters."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    if kind == "roberta":
        first, pad, last, unknown, mask = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
        specials = [first, pad, last, unknown, mask]
    else:
        first, pad, last, unknown, mask = "[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"
        specials = [pad, unknown, first, last, mask]
    pieces = [*specials, *dict.fromkeys(WORDS), *"abcdefghijklmnopqrstuvwxyz0123456789.,:;-()?"]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"\d|[^\w\s]"), behavior="isolated"),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(first, vocab[first]), (last, vocab[last])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token=first,
        pad_token=pad,
        sep_token=last,
        unk_token=unknown,
        mask_token=mask,
    )


def tiny_backbone(folder: Path, *, layers: int | None = None) -> Backbone:
    """A `Backbone` whose source is a checkpoint's folder."""
    return Backbone("tiny", str(folder), layers=layers)


def tiny_loaded(kind: str, folder: Path, **sizes: Any) -> Loaded:
    """A tiny checkpoint, saved and loaded."""
    return loading.load_backbone(tiny_backbone(tiny_checkpoint(kind, folder, **sizes)), "cpu")


def tiny_configuration(backbone: Backbone, strategy: str, **fields: Any) -> Configuration:
    """Small sizes and no dropout, unless `fields` override them."""
    defaults: dict[str, Any] = {
        "learning_rate": 3e-2 if strategy == "frozen_soft_prompt" else 1e-3,
        "prompt_length": 4 if "soft" in strategy else 0,
        "match_width": 16,
        "dropout": 0.0,
    }
    return Configuration(Cell("concepts", "tiny", backbone, strategy), **defaults | fields)


def random_inputs(
    vocab: int,
    rows: int = 4,
    pieces: int = 20,
    *,
    num_labels: int = 3,
    padded: bool = True,
    pad_id: int = 0,
    types: int = 2,
    seed: int = 0,
) -> Inputs:
    """Random rows; the first four pieces represent a question, the last a special piece."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, vocab, (rows, pieces), generator=draw)
    lengths = torch.full((rows,), pieces)
    if padded:
        lengths[1:] = torch.randint(pieces // 2, pieces, (rows - 1,), generator=draw)
    where = torch.arange(pieces)
    mask = where < lengths[:, None]
    window = (where >= 4) & (where < lengths[:, None] - 1)
    segment = ((where >= 4) & mask).long() if types > 1 else torch.zeros_like(ids)
    label = torch.arange(rows) % num_labels
    return Inputs(ids.masked_fill(~mask, pad_id), segment, mask, window, label)


def shared_inputs(vocab: int, distinct: int = 3, *, pad_id: int = 0, seed: int = 0) -> Inputs:
    """Windows with two consecutive questions each, and a third for the first window."""
    windows = random_inputs(vocab, distinct, pad_id=pad_id, seed=seed)
    of_row = torch.tensor([*range(distinct), *range(distinct), 0])
    label = torch.arange(len(of_row)).div(distinct, rounding_mode="floor")
    return replace(windows.take(of_row), label_B=label, share_B=of_row)


def random_span_targets(inputs: Inputs, per_row: int = 2, seed: int = 0) -> SpanTargets:
    """Answers at random places of each row's window, which may nest or overlap."""
    draw = torch.Generator().manual_seed(seed)
    start = torch.zeros(inputs.mask_BS.shape)
    end = torch.zeros(inputs.mask_BS.shape)
    pairs = []
    for row, window in enumerate(inputs.window_BS):
        places = window.nonzero().squeeze(1)
        for _ in range(per_row):
            two = places[torch.randint(len(places), (2,), generator=draw)].sort().values.tolist()
            pairs.append((row, two[0], two[1]))
            start[row, two[0]] = end[row, two[1]] = 1.0
    return SpanTargets(start, end, torch.tensor(pairs).view(-1, 3))


def random_tag_targets(inputs: Inputs, num_labels: int = 3, seed: int = 0) -> TagTargets:
    draw = torch.Generator().manual_seed(seed)
    tags = torch.randint(3, (*inputs.mask_BS.shape, num_labels), generator=draw)
    return TagTargets(tags * inputs.window_BS[..., None])
