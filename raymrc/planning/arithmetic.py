"""What a fold-run costs, by arithmetic: operations, bytes, dollars."""

from __future__ import annotations

from typing import NamedTuple

from raymrc.model.shapes import Shape


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

    Each weight of a layer costs one multiplication and one addition per token. Attention costs, per token,
    layer and attended position, hidden size times two (scores and weighted sum) times two. Embeddings, norms
    and activations are left out (under 1 %).

    Args:
        tokens: pieces that pass the encoder, without padding, over all rows.
        row_length: mean pieces per row, questions and special pieces included.
        prompt_length: positions of a soft prompt, to which layers from `first_layer` on attend.
        prompt_depth: with "input" these positions also pass through those layers, like pieces.
        head_parameters: each is used once per token.
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
    backward, activations         2 x weights + 2 x attention  in layers that a gradient passes
    backward, weights             2 x weights                  in layers whose weights are trained

    A frozen backbone saves the last line in all layers, and the second below the first layer with a prompt.
    Recomputed activations are not counted: this is the work needed, not the work spent.

    Args:
        head_parameters: of the heads, which are always trained; for the others see `forward_flops`.

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
    """Parameters of the heads that every piece passes, without the match head, which sees few pairs.

    Args:
        answers: of the strategy, "tags" or "spans".
    """
    return (3 * num_labels if answers == "tags" else 2) * hidden


def match_flops(hidden: int, match_width: int, pairs: float, *, trains: bool = False) -> float:
    """Floating-point operations of the match head on candidate pairs: a projection each of start and end, and
    the output layer.

    Args:
        trains: whether to include the backward pass, with the gradient of the pieces' vectors.
    """
    return pairs * 2 * (2 * hidden * match_width + match_width) * (3 if trains else 1)


class _Part(NamedTuple):
    """Layers with the same passing and attended positions."""

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
    """The layers below the prompt, and the layers with it."""
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
    """Memory of an open lane: fp32 weights, gradients, Adam's two moments, and on a CPU the best epoch's
    state (kept in CPU memory also if the device is a GPU). `kind` is "cpu" or "gpu".
    """
    return (5.0 if kind == "cpu" else 4.0) * 4 * trained_parameters


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
    """Memory of the activations that one layer keeps until its gradients are computed.

    Per piece, with hidden size D and feed-forward size F: queries, keys and values (3 D); keys and values
    concatenated to a prompt's (2 D); the attention's output (D); the inputs of two norms (2 D); the
    activation function's input (F). Trained weights also need their inputs: the norms' outputs (2 D) and
    the activation function's output (F). Dropout keeps two masks (2 D).

    Args:
        pieces: padded pieces of all rows.
        positions: prompt positions of all rows; None: no prompt is concatenated.
        bytes_each: per number in the layers' computations; the residual stream is fp32 if the backbone is
            trained.
        kind: of the device: masks are numbers on a CPU and bytes on a GPU.
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
    """Peak memory of the match head, in fp32.

    Per pair and unit of the hidden layer: the projections of start and end, their sum, and its activation;
    with dropout also mask and result. Stacked heads of several lanes have output weights for every pair and
    their products in addition.

    Args:
        pairs: of all rows, processed together.
        width: of the hidden layer.
        asks: whether it is evaluation, without gradients.
    """
    each = 4
    if not asks:
        each += (3 if drops else 2) if is_stacked else (2 if drops else 0)
    return 4.0 * each * pairs * width
