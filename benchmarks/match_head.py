"""How much of a whole training step does the factorised, sparse match head save?

Ours: `raymrc.model.heads.SpanHeads`. Peer: the published dense head (an MLP of width 2048 over [h_i; h_j] for
every pair of pieces, with a loss masked by candidates), rewritten by us and also used by the equality tests.
Both have the same encoder of BERT-base's shape (12 x 768), random weights, all trained. A step is forward,
backward and AdamW.

Every row has one answer per 32 pieces, and biases are set so that one piece in twenty is predicted as a start
and as an end, as early in training. One more case predicts everything, which is our head's slowest case.
"""

from __future__ import annotations

import gc
import multiprocessing
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from benchmarks.common import Options, json_line, read_options, start, time_in_turn
from benchmarks.fused_step import TINY
from raymrc.model.encoder import Encoder
from raymrc.model.heads import SpanHeads, find_candidates
from raymrc.model.inputs import Inputs, SpanTargets
from raymrc.model.shapes import Shape
from tests.model.dense_match_head import DenseSpanHeads

BERT_BASE = Shape("bert", 12, 768, 12, 3072, vocab=30522)
WIDTH = 2048
GOALS = {128: 4.0, 256: 8.0, 512: 18.0}
"""Speed-up of a whole step, by pieces per row."""

MEMORY_GOALS = {512: 3.0}
"""The peer's peak bytes relative to ours; with short rows the encoder's memory dominates."""

PREDICTED_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Case:
    """
    Args:
        rows: limited so that the dense head, which keeps rows x pieces^2 x (1536 + 2048) numbers for the
            backward pass, needs about ten GiB.
        pairs: timed steps of each side.
        predicted_share: share of pieces predicted as a start and as an end.
        shape: of the encoder.
    """

    rows: int
    pieces: int
    pairs: int
    predicted_share: float = PREDICTED_SHARE
    shape: Shape = BERT_BASE


CASES = (Case(4, 128, 3), Case(2, 256, 3), Case(1, 512, 3))
QUICK = (Case(1, 48, 1, shape=TINY),)


class Trainee(nn.Module):
    """An encoder with one of the two heads."""

    def __init__(self, encoder: Encoder, heads: SpanHeads | DenseSpanHeads) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = heads

    def loss(self, inputs: Inputs, targets: SpanTargets) -> Tensor:
        return self.heads.loss(self.encoder(inputs), inputs.window_BS, targets)


def build(case: Case, device: str, which: str) -> tuple[Trainee, Inputs, SpanTargets]:
    """Ours or the peer, with equal weights, and a batch."""
    torch.manual_seed(0)
    encoder = Encoder(case.shape)
    for name, parameter in encoder.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02)  # as BERT; torch's default is far larger
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    inputs, targets = build_batch(case)
    hidden_size = case.shape.hidden
    sparse, dense = SpanHeads(hidden_size, WIDTH), DenseSpanHeads(hidden_size, WIDTH)
    with torch.no_grad():
        hidden = encoder(inputs)
        for logits, head in zip(
            sparse.start_and_end(hidden), (sparse.start, sparse.end), strict=True
        ):
            head.bias.sub_(logits.flatten().quantile(1 - case.predicted_share) - 1e-4)
    dense.take(sparse)
    model = Trainee(encoder, sparse if which == "ours" else dense)
    return model.to(device), inputs.to(device), targets.to(device)


def build_batch(case: Case) -> tuple[Inputs, SpanTargets]:
    """Random pieces without padding or question; one answer of three pieces per 32."""
    ids = torch.randint(1000, case.shape.vocab, (case.rows, case.pieces))
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    row = torch.arange(case.rows)
    inputs = Inputs(ids, torch.zeros_like(ids), everywhere, everywhere, row)
    first = torch.arange(8, case.pieces - 4, 32)
    pairs = torch.cartesian_prod(row, first)
    pairs = torch.cat([pairs, pairs[:, 1:] + 2], dim=1)
    start_BS, end_BS = torch.zeros(2, case.rows, case.pieces)
    start_BS[pairs[:, 0], pairs[:, 1]] = 1.0
    end_BS[pairs[:, 0], pairs[:, 2]] = 1.0
    return inputs, SpanTargets(start_BS, end_BS, pairs)


def make_step(model: Trainee, inputs: Inputs, targets: SpanTargets) -> Callable[[], None]:
    # A rate of zero does the same work and keeps the predictions unchanged.
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()  # allocates the moments before the first timed step

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        model.loss(inputs, targets).backward()
        optimiser.step()

    return step


def compare_gradients(
    ours: Trainee, peer: Trainee, inputs: Inputs, targets: SpanTargets
) -> tuple[float, float]:
    """Largest difference between the two sides' gradients, and the largest gradient."""
    for model in (ours, peer):
        model.loss(inputs, targets).backward()
    mine, theirs = gradients_of(ours), gradients_of(peer)
    split = [mine.pop(f"heads.{name}.weight") for name in ("match_start", "match_end")]
    mine["heads.match.0.weight"] = torch.cat(split, dim=1)
    mine["heads.match.0.bias"] = mine.pop("heads.match_start.bias")
    mine["heads.length"] = mine.pop("heads.match_length")
    for end in ("weight", "bias"):
        mine[f"heads.match.2.{end}"] = mine.pop(f"heads.match_out.{end}")
    assert mine.keys() == theirs.keys()
    difference = max(float((mine[name] - theirs[name]).abs().max()) for name in mine)
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    ours.zero_grad(set_to_none=True)
    peer.zero_grad(set_to_none=True)
    return difference, largest


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def count_candidates(model: Trainee, inputs: Inputs, targets: SpanTargets) -> int:
    with torch.no_grad():
        heads = cast(SpanHeads, model.heads)
        start_BS, end_BS = heads.start_and_end(model.encoder(inputs))
        return len(find_candidates(start_BS, end_BS, inputs.window_BS, targets).pairs_K3)


def peak_bytes(case: Case, device: str, which: str) -> int:
    """Peak memory of a step: of a new process on a CPU, of the allocator on a GPU."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure_peak, (case, device, which))


def _measure_peak(case: Case, device: str, which: str) -> int:
    model, inputs, targets = build(case, device, which)
    step = make_step(model, inputs, targets)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step()
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    # getrusage only as a fallback, because a child's figure starts with its parent's.
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run_case(options: Options, case: Case, goal: float, check_gradients: bool = True) -> None:
    name = f"{case.pieces} pieces"
    if case.predicted_share == 1.0:
        name += ", everything predicted"
    ours, inputs, targets = build(case, options.device, "ours")
    peer, *_ = build(case, options.device, "peer")
    more: dict[str, float] = {
        "layers": case.shape.num_layers,
        "rows": case.rows,
        "pairs_timed": case.pairs,
        "threads": torch.get_num_threads(),
        "candidates": count_candidates(ours, inputs, targets),
        "pairs_of_the_dense_head": case.rows * case.pieces**2,
    }
    if check_gradients:
        difference, largest = compare_gradients(ours, peer, inputs, targets)
        if difference > 1e-5:
            print(f"{name}: gradients differ by {difference:.2e}", file=sys.stderr)
        more |= {
            "largest_gradient_difference": float(f"{difference:.2e}"),
            "largest_gradient": float(f"{largest:.2e}"),
        }
    # The comparison was the warm-up; a step of the dense head takes minutes on a CPU.
    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    seconds = time_in_turn(
        make_step(ours, inputs, targets),
        make_step(peer, inputs, targets),
        case.pairs,
        wait,
        warm_up=not check_gradients and options.device == "cuda",
    )
    json_line(options, f"training step, {name}", *seconds[:2], "s", seconds[2], goal, **more)


def run_memory_case(options: Options, case: Case) -> None:
    mine, theirs = (peak_bytes(case, options.device, which) for which in ("ours", "peer"))
    json_line(
        options,
        f"peak memory, {case.pieces} pieces",
        mine,
        theirs,
        "bytes",
        theirs / mine,
        MEMORY_GOALS.get(case.pieces, 1.0),
        rows=case.rows,
    )


def main() -> None:
    options = read_options("match_head", __doc__)
    start(options)
    cases = QUICK if options.quick else CASES
    for case in cases:
        run_memory_case(options, case)
        gc.collect()
        run_case(options, case, GOALS.get(case.pieces, 1.0))
        gc.collect()
    last = cases[-1]
    bound = replace(last, pairs=1, predicted_share=1.0)
    # Above the limit our loss uses fewer pairs than the dense one, so gradients differ.
    run_case(options, bound, 1.0, check_gradients=False)


if __name__ == "__main__":
    main()
