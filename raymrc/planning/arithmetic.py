"""What a fold-run costs, by arithmetic: operations, bytes, dollars."""

from __future__ import annotations

from typing import NamedTuple

from raymrc.model.shapes import Shape


def adapter_bytes(trained_parameters: int, bytes_each: int = 4) -> int:
    """Bytes of the trained numbers when saved, header aside; fp32 unless said otherwise."""
    return trained_parameters * bytes_each


def price(device_seconds: float, device_hour_usd: float) -> float:
    """US dollars."""
    return device_seconds / 3600 * device_hour_usd


def forward_flops(
    shape: Shape,
    *,
    tokens: int,
    row_length: float,
    prompt_length: float = 0,
    prompt_depth: str = "deep",
    first_layer: int = 0,
    head_parameters: int = 0,
) -> float:
    """Floating-point operations of one pass without gradients.

    Each weight of a layer costs a multiplication and an addition per token. Attention costs,
    per token and layer, as much for every position that the token attends to: hidden size
    times two (scores and weighted sum) times two. Embeddings are looked up, norms and
    activations are left out (under 1 %).

    Args:
        tokens: real pieces that pass the encoder, all rows together.
        row_length: mean pieces per row, questions and special pieces included.
        prompt_length: positions of a soft prompt, which layers from `first_layer` on attend to.
        prompt_depth: "input": they also pass through those layers, as pieces do.
        head_parameters: of the heads, each used once per token.
    """
    work = sum(
        part.passing * part.layers * (2 * part.weights + part.attention)
        for part in _parts(shape, tokens, row_length, prompt_length, prompt_depth, first_layer)
    )
    return work + tokens * 2 * head_parameters


def training_flops(
    shape: Shape,
    *,
    tokens: int,
    row_length: float,
    trains_backbone: bool,
    prompt_length: float = 0,
    prompt_depth: str = "deep",
    first_layer: int = 0,
    head_parameters: int = 0,
) -> float:
    """Floating-point operations of training on `tokens`, forward and backward.

    forward                       2 x weights + attention
    backward, activations         2 x weights + 2 x attention  layers that a gradient passes
    backward, weights             2 x weights                  layers whose weights are trained

    A frozen backbone saves the last row everywhere, and the second below the first layer with
    a prompt. Recomputed activations are not counted: this is what is needed, not what is spent.

    Args:
        head_parameters: of the heads, which are always trained.
        others: as in `forward_flops`.

    Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1, with attention written out.
    """
    below, above = _parts(shape, tokens, row_length, prompt_length, prompt_depth, first_layer)
    forward = sum(p.passing * p.layers * (2 * p.weights + p.attention) for p in (below, above))
    backward = sum(
        p.passing * p.layers * ((4 if trains_backbone else 2) * p.weights + 2 * p.attention)
        for p in ((below, above) if trains_backbone else (above,))
    )
    return forward + backward + tokens * 6 * head_parameters


def head_parameters(answers: str, num_labels: int, hidden: int) -> int:
    """Numbers of the heads that every piece passes, for `training_flops`; the match head sees few pairs.

    Args:
        answers: of the strategy, "tags" or "spans".
        num_labels: that are tagged, where it tags.
    """
    return (3 * num_labels if answers == "tags" else 2) * hidden


def match_flops(hidden: int, match_width: int, pairs: float, *, trains: bool = False) -> float:
    """Floating-point operations of the match head on candidate pairs, each with a start and an end of its
    own: two projections, and the product with what weighs them.

    Args:
        trains: forward and backward; the gradient of the pieces' vectors is included.
    """
    return pairs * 2 * (2 * hidden * match_width + match_width) * (3 if trains else 1)


class _Part(NamedTuple):
    """Layers in which the same positions pass and are attended to."""

    layers: int
    passing: float
    weights: int
    attention: float


def _parts(
    shape: Shape,
    tokens: int,
    row_length: float,
    prompt_length: float,
    prompt_depth: str,
    first_layer: int,
) -> tuple[_Part, _Part]:
    """The layers below a prompt, and those from it on."""
    weights = 4 * shape.hidden * shape.hidden + 2 * shape.hidden * shape.ffn
    passing = float(tokens)
    if prompt_depth == "input" and tokens:
        passing += tokens / row_length * prompt_length
    per_position = 4 * shape.hidden
    return (
        _Part(first_layer, tokens, weights, per_position * row_length),
        _Part(
            shape.num_layers - first_layer,
            passing,
            weights,
            per_position * (row_length + prompt_length),
        ),
    )


def lane_bytes(trained_parameters: int, kind: str = "cpu") -> float:
    """Memory that a lane holds as long as it is open: fp32 numbers, gradients and Adam's two moments; and
    the state of its best epoch, which is in the CPU's memory in any case.

    Args:
        kind: of device, "cpu" or "gpu".
    """
    return (5.0 if kind == "cpu" else 4.0) * 4 * trained_parameters


def pass_bytes(shape: Shape, pieces: int, bytes_each: int = 4) -> float:
    """Memory that the layers hold in one pass over a frozen backbone for its backward pass, at most.

    What a prompt and the heads take comes on top; see `placement.peak_bytes` for all of it.

    Args:
        pieces: padded, of all rows.
        bytes_each: of a number that layers compute with.
    """
    return shape.num_layers * layer_bytes(shape, pieces, 0, bytes_each)


def layer_bytes(
    shape: Shape,
    pieces: float,
    positions: float | None,
    bytes_each: int = 4,
    *,
    trains_backbone: bool = False,
    drops: bool = False,
    kind: str = "cpu",
) -> float:
    """Memory that one layer holds in a pass until its gradients are taken.

    Per piece: queries, keys and values (3 D), these two once more behind a prompt's (2 D), what attention
    gave (D), what the two norms took (2 D), and what the activation took (F). Weights that are trained
    also need what they were multiplied with: what the norms gave (2 D) and what the activation gave
    (F); and dropout keeps what it drew, twice (2 D).

    Args:
        pieces: padded, of all rows.
        positions: of prompts, of all rows; None: keys and values have no prompt before them.
        bytes_each: of a number that layers compute with; the sum that they add to is fp32 where the
            backbone is trained.
        kind: of device: on a CPU dropout draws numbers, on a GPU bytes.
    """
    hidden, ffn = shape.hidden, shape.ffn
    numbers = pieces * (4 * hidden + ffn)
    if positions is not None:
        numbers += (pieces + positions) * 2 * hidden
    held = numbers * bytes_each
    held += pieces * 2 * hidden * (4 if trains_backbone else bytes_each)
    if trains_backbone:
        held += pieces * (2 * hidden + ffn) * bytes_each
        if drops:
            held += pieces * 2 * hidden * (4 if kind == "cpu" else 1)
    return held


def pair_bytes(
    pairs: float, width: int, *, drops: bool = False, is_stacked: bool = False, asks: bool = False
) -> float:
    """Memory that the match head holds at its fullest, in fp32.

    Per pair and number of its hidden layer: the start's, the end's, their sum, and its activation;
    with dropout what was drawn and what came of it. Lanes whose heads are stacked have, instead, their own
    weights for every pair and the products with them.

    Args:
        pairs: of all rows, that are looked at together.
        width: of the hidden layer.
        asks: for answers, without gradients.
    """
    each = 4
    if not asks:
        each += (3 if drops else 2) if is_stacked else (2 if drops else 0)
    return 4.0 * each * pairs * width
