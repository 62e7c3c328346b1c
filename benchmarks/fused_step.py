"""How much faster do many lanes train in one pass than one after another?

    python -m benchmarks.fused_step [--quick] [--device cpu|cuda]

Lanes are frozen fold-runs with MiniLM's shape, deep prompts of 16 for five labels, and match heads of the
published width, each with its own optimiser. Ours: `raymrc.training.fused`, in the passes of
`training.pool`. Peer: a loop over the same lanes with forward, backward, clipping and AdamW for each. Rows
have 32 pieces; a step is one batch of every lane.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch

from benchmarks.common import Options, json_line, read_options, start, time_in_turn
from raymrc.configuration import Backbone, Cell, Configuration
from raymrc.model.encoder import Encoder
from raymrc.model.inputs import Inputs, SpanTargets
from raymrc.model.loading import Loaded
from raymrc.model.network import Model
from raymrc.model.shapes import SHAPES, Shape
from raymrc.training.fused import (
    BatchPart,
    backward_together,
    clip_together,
)
from raymrc.training.fused import (
    step_together as step_optimisers,
)
from raymrc.training.pool import keep_freed_memory, share_passes

TINY = Shape("bert", 2, 64, 2, 128, vocab=30522)
"""The shape with --quick."""

LABELS = 5
PIECES = 32
LANES = (1, 4, 16, 64)
BATCHES = (1, 4, 16)
GOALS = {1: 1.8}
"""Goal by rows per lane's batch, from four lanes on; otherwise 1.0 (never slower)."""

MAX_PEER_ROWS = 256
"""Rows per step of the peer on a CPU; more take minutes and show nothing new."""


class NoTokenizer:
    """Stands in for a tokenizer when a prompt is initialised."""

    cls_token_id, sep_token_id = 101, 102

    def get_vocab(self) -> dict[str, int]:
        return {f"word{chr(97 + i % 26)}{chr(97 + i // 26)}": 1000 + i for i in range(676)}


def make_backbone(device: str, name: str = "minilm", shape: Shape = SHAPES["minilm"]) -> Loaded:
    torch.manual_seed(0)
    encoder = Encoder(shape)
    for parameter in encoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    encoder = encoder.requires_grad_(False).eval().to(device)
    backbone = Backbone(name, "random weights")
    return Loaded(backbone, encoder, NoTokenizer(), shape, "")


def make_lanes(loaded: Loaded, count: int, rows: int) -> list[tuple[BatchPart, torch.optim.AdamW]]:
    device = loaded.encoder.word.weight.device
    lanes = []
    for number in range(count):
        configuration = Configuration(
            Cell("concepts", "none", loaded.backbone, "frozen_soft_prompt"),
            learning_rate=1e-2,
            prompt_length=16,
            seed=number,
        )
        model = Model(configuration, loaded, LABELS).train()
        inputs, targets = make_batch(rows, number)
        generator = torch.Generator(device).manual_seed(number)
        part = BatchPart(model, inputs.to(device), targets.to(device), generator)
        # A rate of zero does the same work and keeps the predictions unchanged.
        optimiser = torch.optim.AdamW(model.parameter_groups(), fused=True)
        for group in optimiser.param_groups:
            group["lr"] = 0.0
        lanes.append((part, optimiser))
    return lanes


def make_batch(rows: int, seed: int) -> tuple[Inputs, SpanTargets]:
    """Random pieces, with an answer of three pieces in every row."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(1000, 30522, (rows, PIECES), generator=draw)
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    label = torch.randint(LABELS, (rows,), generator=draw)
    inputs = Inputs(ids, torch.zeros_like(ids), everywhere, everywhere, label)
    start_BS, end_BS = torch.zeros(2, rows, PIECES)
    start_BS[:, 8] = end_BS[:, 10] = 1.0
    pairs = torch.tensor([(row, 8, 10) for row in range(rows)])
    return inputs, SpanTargets(start_BS, end_BS, pairs)


def step_together(parts: Sequence[BatchPart], optimisers: Sequence[torch.optim.AdamW]) -> None:
    """One batch of every lane, as in `training.pool`."""
    inputs = [part.inputs for part in parts]
    for places in share_passes(inputs, inputs[0].label_B.device):
        chosen = [parts[place] for place in places]
        backward_together(chosen)
        clip_together([p.model for p in chosen], [p.model.configuration.clip_norm for p in chosen])
        stepping = [optimisers[place] for place in places]
        step_optimisers(stepping)
        for optimiser in stepping:
            optimiser.zero_grad(set_to_none=True)


def step_alone(lanes: Sequence[tuple[BatchPart, torch.optim.AdamW]]) -> None:
    for part, optimiser in lanes:
        model: Model = part.model
        assert part.targets is not None
        model.loss(part.inputs, part.targets).backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        torch.nn.utils.clip_grad_norm_(trained, model.configuration.clip_norm, foreach=True)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


def run_case(options: Options, loaded: Loaded, count: int, rows: int, pairs: int) -> None:
    lanes = make_lanes(loaded, count, rows)
    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    parts, optimisers = [part for part, _ in lanes], [optimiser for _, optimiser in lanes]
    together: Callable[[], None] = lambda: step_together(parts, optimisers)  # noqa: E731
    alone: Callable[[], None] = lambda: step_alone(lanes)  # noqa: E731
    ours, peer, ratio = time_in_turn(together, alone, pairs, wait)
    tokens = count * rows * PIECES
    goal = GOALS.get(rows, 1.0) if count >= 4 else 1.0
    json_line(
        options,
        f"{count} lanes, batch {rows} x {PIECES}",
        tokens / ours,
        tokens / peer,
        "tokens/s",
        ratio,
        goal,
        pairs_timed=pairs,
        threads=torch.get_num_threads(),
    )


def main() -> int:
    options = read_options("fused_step", __doc__)
    start(options)
    if options.device == "cpu":
        keep_freed_memory()  # for both sides
    loaded = make_backbone(options.device, shape=TINY if options.quick else SHAPES["minilm"])
    for rows in (1,) if options.quick else BATCHES:
        for count in (1, 4) if options.quick else LANES:
            if options.device == "cpu" and count * rows > MAX_PEER_ROWS:
                continue
            run_case(options, loaded, count, rows, pairs=1 if options.quick else 5)
    return 0


if __name__ == "__main__":
    sys.exit(main())
