"""What a fold-run costs, by arithmetic: operations, bytes, dollars."""

from __future__ import annotations

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
        prompt_length: positions that a soft prompt adds to each layer's attention.
        head_parameters: of the heads, each used once per token.
    """
    weights = 4 * shape.hidden * shape.hidden + 2 * shape.hidden * shape.ffn
    per_layer = 2 * weights + 4 * shape.hidden * (row_length + prompt_length)
    return tokens * (shape.num_layers * per_layer + 2 * head_parameters)


def training_flops(
    shape: Shape,
    *,
    tokens: int,
    row_length: float,
    trains_backbone: bool,
    prompt_length: float = 0,
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
        first_layer: where prompts enter; layers below a frozen backbone's need no gradient.
        head_parameters: of the heads, which are always trained.
        others: as in `forward_flops`.

    Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1, with attention written out.
    """
    weights = 4 * shape.hidden * shape.hidden + 2 * shape.hidden * shape.ffn
    attention = 4 * shape.hidden * (row_length + prompt_length)
    forward = forward_flops(
        shape,
        tokens=tokens,
        row_length=row_length,
        prompt_length=prompt_length,
        head_parameters=head_parameters,
    )
    passed = shape.num_layers if trains_backbone else shape.num_layers - first_layer
    trained = shape.num_layers if trains_backbone else 0
    backward = passed * (2 * weights + 2 * attention) + trained * 2 * weights
    return forward + tokens * (backward + 4 * head_parameters)
