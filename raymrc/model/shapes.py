"""Sizes of encoders, prompts and heads, and their parameter counts; no torch, so that plans use it."""

from __future__ import annotations

from dataclasses import dataclass, replace

MAX_CANDIDATES = 1024
"""Candidate pairs per row in one loss. A row of 512 pieces exceeds it only if the model predicts more
than one piece in eleven as a start and as an end."""

NUM_LENGTHS = 32
"""Lengths of spans, in pieces, that the match head tells apart; the last one stands for all longer spans."""

PAIRS_AT_ONCE = 16384
"""Pairs per pass of the match head in prediction: 128 MiB at width 2048."""

REPARAMETRISATION_WIDTH = 512
"""Width of the hidden layer of a reparametrised prompt. Source: arXiv:2101.00190."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The form of an encoder; BERT, RoBERTa and Megatron-BERT differ in these values only.

    Args:
        kind: "bert", "roberta" or "megatron-bert"; decides the weight names of its checkpoint.
        positions: rows of the position table, unused first rows included.
        position_offset: row of the first piece; RoBERTa leaves `padding_idx + 1` rows unused.
        types: number of segment types.
        eps: epsilon of every LayerNorm.
        pre_norm: LayerNorm before attention and feed-forward, and after the last layer, instead of
            after each of them.
        embedding_norm: a LayerNorm follows the embeddings.
        activation: Hugging Face name of the feed-forward layer's activation.
        pad_id: the vocabulary's padding piece.
    """

    kind: str
    num_layers: int
    hidden: int
    num_heads: int
    ffn: int
    vocab: int
    positions: int = 512
    types: int = 2
    eps: float = 1e-12
    pre_norm: bool = False
    embedding_norm: bool = True
    position_offset: int = 0
    activation: str = "gelu"
    pad_id: int = 0

    @property
    def head_size(self) -> int:
        return self.hidden // self.num_heads

    @property
    def max_pieces(self) -> int:
        """Length of the longest row, special pieces included."""
        return self.positions - self.position_offset

    @property
    def layer_parameters(self) -> int:
        attention = 4 * (self.hidden * self.hidden + self.hidden)
        feed_forward = 2 * self.hidden * self.ffn + self.ffn + self.hidden
        return attention + feed_forward + 4 * self.hidden

    @property
    def embedding_parameters(self) -> int:
        rows = self.vocab + self.positions + self.types
        return rows * self.hidden + (2 * self.hidden if self.embedding_norm else 0)

    @property
    def num_parameters(self) -> int:
        """Parameters without pooler and language-model head."""
        final_norm = 2 * self.hidden if self.pre_norm else 0
        return self.embedding_parameters + self.num_layers * self.layer_parameters + final_norm

    def first(self, layers: int | None) -> Shape:
        """The encoder cut after its first `layers`; None for all of them."""
        return self if layers is None else replace(self, num_layers=layers)


def prompt_parameters(
    shape: Shape,
    num_labels: int,
    prompt_length: int,
    depth: str = "deep",
    first_layer: int = 0,
    reparametrisation: str = "none",
) -> int:
    """Parameters of a `SoftPrompt` with these settings, all labels together."""
    hidden, width = shape.hidden, REPARAMETRISATION_WIDTH
    out = hidden if depth == "input" else 2 * (shape.num_layers - first_layer) * hidden
    if reparametrisation == "none":
        return num_labels * prompt_length * out
    table = num_labels * prompt_length * hidden
    made = table + hidden * width + width + width * out + out
    if reparametrisation == "lstm":
        # Two bidirectional layers of half the hidden size; each gate has torch's two biases.
        half = hidden // 2
        made += 2 * 2 * (4 * half * hidden + 4 * half * half + 8 * half)
    return made


_BERT_LARGE = Shape("bert", 24, 1024, 16, 4096, vocab=30522)
_ROBERTA_LARGE = Shape(
    "roberta", 24, 1024, 16, 4096, vocab=50265, positions=514, types=1, eps=1e-5,
    position_offset=2, pad_id=1,
)  # fmt: skip


def _gatortron(num_layers: int, hidden: int, num_heads: int, ffn: int) -> Shape:
    return Shape(
        "megatron-bert", num_layers, hidden, num_heads, ffn,
        vocab=50176, pre_norm=True, embedding_norm=False,
    )  # fmt: skip


SHAPES = {
    "bert-large": _BERT_LARGE,
    "bert-large-mimic": _BERT_LARGE,
    "roberta-large": _ROBERTA_LARGE,
    "roberta-large-mimic": _ROBERTA_LARGE,
    "gatortron-345m": _gatortron(24, 1024, 16, 4096),
    "gatortron-3.9b": _gatortron(48, 2560, 40, 10240),
    "gatortron-8.9b": _gatortron(56, 3584, 56, 14336),
    "minilm": Shape("bert", 6, 384, 12, 1536, vocab=30522),
}
"""Shapes of the backbones known by name, for planning; a loaded backbone uses its config.json."""
