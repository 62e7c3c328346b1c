"""Many lanes over one frozen backbone, in one forward and one backward pass.

    lanes' batches -> rows -> encoder, each row with its lane's prompt -> each lane's heads -> losses

Rows never mix and every lane's loss is its own mean, so the gradient of the sum of losses is each lane's own
gradient: what a lane learns does not depend on the lanes that share its pass.

The trained parameters of lanes of one form (equal shapes) are stacked and multiplied in one batched product;
lanes of other lengths, labels or widths join through padding and a mask. Lanes whose prompts enter elsewhere
(depth, first layer) take another pass of the same step.
"""

# K lanes, R rows of all lanes, B rows of one lane, S pieces, P prompt positions, D hidden, W match width,
# G gradients, T candidate pairs, V different pieces of pairs, U most of them in a lane, X all pieces

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raymrc.errors import TrainingError
from raymrc.model.encoder import Encoder
from raymrc.model.heads import (
    SpanAnswer,
    SpanHeads,
    draw_kept,
    entropies,
    find_candidates,
    length_places,
)
from raymrc.model.inputs import Inputs, SpanTargets
from raymrc.model.network import Model
from raymrc.model.prompts import SoftPrompt
from raymrc.training.torch_private import norms, scale, step_at_once


@dataclass(frozen=True)
class BatchPart:
    """One lane's share of a pass.

    Args:
        model: with a soft prompt, span heads and the frozen backbone that all parts share.
        inputs: the lane's rows, on the backbone's device.
        targets: None where the pass predicts answers.
        generator: draws the lane's dropout, on the backbone's device; each lane has its own.
    """

    model: Model
    inputs: Inputs
    targets: SpanTargets | None = None
    generator: torch.Generator | None = None


def backward_together(parts: Sequence[BatchPart]) -> Tensor:
    """One forward and backward pass over all parts, which leaves every lane's gradients on its parameters.

    Returns:
        The lanes' losses, (K,), in the order of `parts`, without a gradient. The host does not wait for them.

    Raises:
        TrainingError: the lanes are not of one frozen backbone.
    """
    encoder = _shared_encoder(parts)
    losses: list[Tensor] = [torch.empty(0)] * len(parts)
    for entry in _by_entry(parts):
        chosen = [parts[i] for i in entry]
        if len(entry) == 1:  # nothing to stack
            (part,) = chosen
            assert part.targets is not None
            loss = losses[entry[0]] = part.model.loss(part.inputs, part.targets, part.generator)
            loss.backward()
            continue
        stacks = _stack(chosen)
        hidden = _encode(encoder, chosen, stacks)
        for stack in stacks:
            for place, loss in zip(stack.places, stack.losses(hidden, chosen), strict=True):
                losses[entry[place]] = loss
        torch.stack([losses[i] for i in entry]).sum().backward()
        for stack in stacks:
            stack.hand_out_gradients(chosen)
    return torch.stack([loss.detach() for loss in losses])


@torch.no_grad()
def clip_together(models: Sequence[Model], largest: Sequence[float]) -> None:
    """Scales each lane's gradients to at most its `largest` norm, as `clip_grad_norm_` does for one model."""
    if len(models) == 1:
        torch.nn.utils.clip_grad_norm_(models[0].parameters(), largest[0], foreach=True)
        return
    gradients: list[Tensor] = []
    lanes: list[int] = []
    for lane, model in enumerate(models):
        of_lane = [p.grad for p in model.parameters() if p.grad is not None]
        gradients += of_lane
        lanes += [lane] * len(of_lane)
    device = gradients[0].device
    norm_G = norms(gradients)
    lane_G = torch.tensor(lanes, device=device)
    squares_K = torch.zeros(len(models), device=device).index_add(0, lane_G, norm_G.square())
    scale_K = (torch.tensor(largest, device=device) / (squares_K.sqrt() + 1e-6)).clamp(max=1.0)
    scale(gradients, scale_K[lane_G].unbind())


def step_together(optimisers: Sequence[torch.optim.AdamW]) -> None:
    """One AdamW step of every lane, each by its own rates, decays and age.

    On a CPU, and for a lane alone, each optimiser's own fused kernel steps: a lane's few million numbers keep
    a core busy. On a GPU a launch costs more than a lane's numbers do, so all lanes share the launches of
    `step_at_once`.
    """
    on_cpu = all(p.is_cpu for o in optimisers for group in o.param_groups for p in group["params"])
    if on_cpu or len(optimisers) == 1:
        for optimiser in optimisers:
            optimiser.step()
    else:
        step_at_once(optimisers)


@torch.no_grad()
def predict_together(parts: Sequence[BatchPart]) -> list[list[SpanAnswer]]:
    """Every lane's answers to its rows, as from `Model.predict`, in the order of `parts`."""
    encoder = _shared_encoder(parts)
    answers: list[list[SpanAnswer]] = [[]] * len(parts)
    for entry in _by_entry(parts):
        chosen = [parts[i] for i in entry]
        hidden = _encode(encoder, chosen, _stack(chosen, "prompt."))
        for index, part, hidden_BSD in zip(entry, chosen, hidden, strict=True):
            window_BS, heads = part.inputs.window_BS, part.model.heads
            assert isinstance(heads, SpanHeads)
            answers[index] = heads.predict(hidden_BSD[:, : window_BS.shape[1]], window_BS)
    return answers


def _shared_encoder(parts: Sequence[BatchPart]) -> Encoder:
    encoder = parts[0].model.encoder
    for part in parts:
        if part.model.encoder is not encoder or encoder.is_trained or part.model.prompt is None:
            raise TrainingError(
                "lanes share a pass only over one frozen backbone, with soft prompts"
            )
    return encoder


def _by_entry(parts: Sequence[BatchPart]) -> Iterator[list[int]]:
    """Indices of the parts whose prompts enter the backbone alike."""
    entries: dict[tuple[str, int], list[int]] = {}
    for index, part in enumerate(parts):
        prompt = _prompt(part)
        entries.setdefault((prompt.depth, prompt.first_layer), []).append(index)
    yield from entries.values()


def _prompt(part: BatchPart) -> SoftPrompt:
    prompt = part.model.prompt
    assert prompt is not None
    return prompt


# --- rows of all lanes ----------------------------------------------------------------------------


def _join(parts: Sequence[BatchPart]) -> Inputs:
    """The rows of all parts, part after part, padded to the longest."""
    width = max(part.inputs.input_ids_BS.shape[1] for part in parts)
    counts = [len(part.inputs.label_B) for part in parts]
    ends = torch.tensor(counts).cumsum(0).tolist()
    inputs = [part.inputs for part in parts]
    pads = [width - i.input_ids_BS.shape[1] for i in inputs]
    pad_id = parts[0].model.encoder.shape.pad_id

    def join(name: str, value: float, inner: tuple[int, ...] = ()) -> Tensor:
        padded = [
            F.pad(getattr(i, name), (*inner, 0, pad), value=value) if pad else getattr(i, name)
            for i, pad in zip(inputs, pads, strict=True)
        ]
        return torch.cat(padded)

    share_B = None
    if any(i.share_B is not None for i in inputs):
        share_B = torch.cat(
            [
                (torch.arange(count) if i.share_B is None else i.share_B) + end - count
                for i, count, end in zip(inputs, counts, ends, strict=True)
            ]
        )
    entry_BSD, entry_layer = None, None
    if all(i.entry_BSD is not None for i in inputs):
        entry_layer = inputs[0].entry_layer
        assert all(i.entry_layer == entry_layer for i in inputs)
        entry_BSD = join("entry_BSD", 0, inner=(0, 0))
    return Inputs(
        input_ids_BS=join("input_ids_BS", pad_id),
        type_ids_BS=join("type_ids_BS", 0),
        mask_BS=join("mask_BS", False),
        window_BS=join("window_BS", False),
        label_B=torch.cat([i.label_B for i in inputs]),
        lengths=tuple(length for i in inputs for length in i.lengths),
        share_B=share_B,
        entry_BSD=entry_BSD,
        entry_layer=entry_layer,
    )


def _encode(
    encoder: Encoder, parts: Sequence[BatchPart], stacks: Sequence[_Stack]
) -> Sequence[Tensor]:
    """Hidden states of each part's rows, (B, S, D), each behind its own lane's prompt."""
    prompts = [_prompt(part) for part in parts]
    longest = max(prompt.prompt_length for prompt in prompts)
    made: list[Tensor] = [torch.empty(0)] * len(parts)
    for stack in stacks:
        for place, vectors in stack.prompts(parts, longest):
            made[place] = vectors
    lengths = None
    if any(prompt.prompt_length < longest for prompt in prompts):
        lengths = tuple(
            prompt.prompt_length
            for prompt, part in zip(prompts, parts, strict=True)
            for _ in part.inputs.lengths
        )
    hidden_RSD = encoder(_join(parts), prompts[0].prefix(torch.cat(made), lengths))
    return hidden_RSD.split([len(part.inputs.label_B) for part in parts])


# --- lanes of one form ----------------------------------------------------------------------------


@dataclass(eq=False)
class _Stack:
    """The trained parameters of parts with equal shapes, stacked: one leaf per name, (K, ...).

    Args:
        places: the parts' indices, ascending.
        leaves: parameter name in `Model` -> its values in all lanes.
    """

    places: tuple[int, ...]
    leaves: dict[str, Tensor] = field(repr=False)

    def _named(self, owner: str) -> dict[str, Tensor]:
        """The leaves of the prompt or of the heads, by their names there."""
        return {k.removeprefix(owner): v for k, v in self.leaves.items() if k.startswith(owner)}

    def prompts(self, parts: Sequence[BatchPart], longest: int) -> Iterator[tuple[int, Tensor]]:
        """(part, its rows' prompts), padded to the longest prompt.

        Shapes:
            deep: (B, n * 2, N, P, H); input: (B, P, D)
        """
        first = _prompt(parts[self.places[0]])
        length = first.prompt_length
        leaves = self._named("prompt.")
        if first.reparametrisation == "none":
            vectors_KLX = leaves["table"]
        else:
            each = [
                torch.func.functional_call(
                    _Vectors(first),
                    {f"prompt.{name}": leaf[k] for name, leaf in leaves.items()},
                    (),
                )
                for k in range(len(self.places))
            ]
            vectors_KLX = torch.stack(each)
        num_labels = first.num_labels
        counts = [len(parts[place].inputs.label_B) for place in self.places]
        label = torch.cat(
            [parts[p].inputs.label_B + k * num_labels for k, p in enumerate(self.places)]
        )
        made = first.arrange(F.embedding(label, vectors_KLX.flatten(0, 1)))
        if length < longest:
            made = F.pad(made, (0, 0, 0, longest - length))
        yield from zip(self.places, made.split(counts), strict=True)

    def losses(self, hidden: Sequence[Tensor], parts: Sequence[BatchPart]) -> Tensor:
        """`SpanHeads.loss` of every lane at once, (K,)."""
        mine = [parts[place] for place in self.places]
        hidden_RSD = torch.cat([hidden[place] for place in self.places])
        device, num_lanes = hidden_RSD.device, len(mine)
        counts = [len(part.inputs.label_B) for part in mine]
        lane_R = torch.arange(num_lanes).repeat_interleave(torch.tensor(counts)).to(device)
        window_RS, start_RS, end_RS, pairs_T3 = _join_targets(mine, hidden_RSD.shape[1])
        heads = self._named("heads.")

        hidden_RSD = _drop_rows(hidden_RSD, mine, counts)
        weight_K2D = torch.cat([heads["start.weight"], heads["end.weight"]], dim=1)
        bias_K2 = torch.cat([heads["start.bias"], heads["end.bias"]], dim=1)
        logits_RS2 = torch.bmm(hidden_RSD, weight_K2D[lane_R].mT) + bias_K2[lane_R, None]
        logits_start_RS, logits_end_RS = logits_RS2.unbind(-1)

        def per_lane(values_R: Tensor, lane: Tensor) -> Tensor:
            return torch.zeros(num_lanes, device=device).index_add(0, lane, values_R)

        pieces_K = per_lane(window_RS.sum(1).float(), lane_R).clamp(min=1)
        start_K, end_K = (
            per_lane(entropies(logits_RS, gold_RS, window_RS).sum(1), lane_R) / pieces_K
            for logits_RS, gold_RS in ((logits_start_RS, start_RS), (logits_end_RS, end_RS))
        )
        span_heads = mine[0].model.heads
        assert isinstance(span_heads, SpanHeads)
        found = find_candidates(
            logits_start_RS,
            logits_end_RS,
            window_RS,
            SpanTargets(start_RS, end_RS, pairs_T3),
            span_heads.max_candidates,
        )
        chosen_T3, gold_T = found.pairs_K3, found.gold_K
        lane_T = lane_R[chosen_T3[:, 0]]
        match_T = self._match(hidden_RSD, chosen_T3, lane_R, lane_T, heads, mine)
        entropy_T = F.binary_cross_entropy_with_logits(match_T, gold_T, reduction="none")
        num_pairs_K = per_lane(torch.ones_like(entropy_T), lane_T).clamp(min=1)
        match_K = per_lane(entropy_T, lane_T) / num_pairs_K
        weights_K3 = torch.tensor(
            [part.model.configuration.loss_weights for part in mine], device=device
        )
        weights_K3 = weights_K3 / weights_K3.sum(1, keepdim=True)
        return (weights_K3 * torch.stack([start_K, end_K, match_K], dim=1)).sum(1)

    def _match(
        self,
        hidden_RSD: Tensor,
        pairs_T3: Tensor,
        lane_R: Tensor,
        lane_T: Tensor,
        heads: dict[str, Tensor],
        mine: Sequence[BatchPart],
    ) -> Tensor:
        """Logits of (row, first, last) triples, in the order of rows, (T,)."""
        row_T, first_T, last_T = pairs_T3.unbind(1)
        num_pieces = hidden_RSD.shape[1]
        flat = hidden_RSD.flatten(0, 1)
        starts = _project(
            flat, row_T * num_pieces + first_T, lane_R, num_pieces,
            heads["match_start.weight"], heads["match_start.bias"],
        )  # fmt: skip
        ends = _project(
            flat, row_T * num_pieces + last_T, lane_R, num_pieces, heads["match_end.weight"], None
        )
        hidden_TW = _drop_pairs(F.gelu(starts + ends), mine, lane_T)
        out_TW = heads["match_out.weight"].squeeze(1)[lane_T]
        out_T = (hidden_TW * out_TW).sum(-1) + heads["match_out.bias"].squeeze(1)[lane_T]
        return out_T + heads["match_length"][lane_T, length_places(pairs_T3)]

    def hand_out_gradients(self, parts: Sequence[BatchPart]) -> None:
        """Gives every lane's parameters their gradients, as views of the stack's."""
        for k, place in enumerate(self.places):
            model = parts[place].model
            for name, leaf in self.leaves.items():
                assert leaf.grad is not None, name
                model.get_parameter(name).grad = leaf.grad[k]


class _Vectors(torch.nn.Module):
    """A prompt's `vectors` as the forward of a module, as `functional_call` needs it."""

    def __init__(self, prompt: SoftPrompt) -> None:
        super().__init__()
        self.prompt = prompt

    def forward(self) -> Tensor:
        return self.prompt.vectors()


def _stack(parts: Sequence[BatchPart], owner: str = "") -> list[_Stack]:
    """One stack per form of parts; the lanes' own parameters stay where they are.

    Args:
        owner: "prompt." or "heads." to stack only their parameters.
    """
    forms: dict[object, list[int]] = {}
    trained = [
        {name: p for name, p in part.model.trained_parameters().items() if name.startswith(owner)}
        for part in parts
    ]
    for place, (part, parameters) in enumerate(zip(parts, trained, strict=True)):
        heads = part.model.heads
        assert isinstance(heads, SpanHeads)
        shapes = tuple((name, p.shape) for name, p in parameters.items())
        form = (shapes, _prompt(part).reparametrisation, heads.max_candidates)
        forms.setdefault(form, []).append(place)
    stacks = []
    for places in forms.values():
        leaves = {}
        for name in trained[places[0]]:
            values = [trained[place][name].detach() for place in places]
            # One alone is not copied.
            leaf = torch.stack(values) if len(values) > 1 else values[0][None]
            leaves[name] = leaf.requires_grad_()
        stacks.append(_Stack(tuple(places), leaves))
    return stacks


def _join_targets(parts: Sequence[BatchPart], width: int) -> tuple[Tensor, ...]:
    """window_RS, start_RS, end_RS and pairs_T3 of all parts, with rows numbered through."""
    windows, starts, ends, pairs, before = [], [], [], [], 0
    for part in parts:
        targets = part.targets
        assert targets is not None
        pad = (0, width - targets.start_BS.shape[1])
        windows.append(F.pad(part.inputs.window_BS, pad))
        starts.append(F.pad(targets.start_BS, pad))
        ends.append(F.pad(targets.end_BS, pad))
        shift = torch.tensor([before, 0, 0], device=targets.pairs_K3.device)
        pairs.append(targets.pairs_K3 + shift)
        before += len(targets.start_BS)
    return torch.cat(windows), torch.cat(starts), torch.cat(ends), torch.cat(pairs)


def _project(
    flat_XD: Tensor,
    index_T: Tensor,
    lane_R: Tensor,
    num_pieces: int,
    weight_KWD: Tensor,
    bias_KW: Tensor | None,
) -> Tensor:
    """Pieces through their lane's projection, (T, W); each different piece is projected once.

    Args:
        index_T: into the flattened pieces.
        lane_R: the lane of each row, ascending.
    """
    index_V, back_T = index_T.unique(return_inverse=True)
    lane_V = lane_R[index_V // num_pieces]
    num_lanes = len(weight_KWD)
    # Lanes ascend with rows, so a piece's place in its lane is its distance from the lane's first piece.
    count_K = torch.bincount(lane_V, minlength=num_lanes)
    first_K = count_K.cumsum(0) - count_K
    place_V = torch.arange(len(index_V), device=index_V.device) - first_K[lane_V]
    most = int(count_K.max()) if len(index_V) else 0
    packed_KUD = flat_XD.new_zeros(num_lanes, most, flat_XD.shape[1]).index_put(
        (lane_V, place_V), F.embedding(index_V, flat_XD)
    )
    projected_KUW = _LaneLinear.apply(packed_KUD, weight_KWD)
    if bias_KW is not None:
        projected_KUW = projected_KUW + bias_KW[:, None]
    return projected_KUW[lane_V, place_V][back_T]


class _LaneLinear(torch.autograd.Function):
    """Each lane's rows times its own weights, (K, U, W).

    The derivative of `torch.bmm` gives the weights' gradient transposed, and copying it into their layout
    takes as long as the rest of the match head.
    """

    @staticmethod
    def forward(ctx: Any, input_KUD: Tensor, weight_KWD: Tensor) -> Tensor:
        ctx.save_for_backward(input_KUD, weight_KWD)
        return torch.bmm(input_KUD, weight_KWD.mT)

    @staticmethod
    def backward(ctx: Any, grad_KUW: Tensor) -> tuple[Tensor, Tensor]:
        input_KUD, weight_KWD = ctx.saved_tensors
        return torch.bmm(grad_KUW, weight_KWD), torch.bmm(grad_KUW.mT, input_KUD)


def _drop_rows(hidden_RSD: Tensor, parts: Sequence[BatchPart], counts: Sequence[int]) -> Tensor:
    """Drops out each lane's rows by its own generator, over its own width."""
    if not any(part.model.configuration.dropout for part in parts):
        return hidden_RSD
    keeps = []
    for part, count in zip(parts, counts, strict=True):
        width = part.inputs.input_ids_BS.shape[1]
        shape = (count, width, hidden_RSD.shape[2])
        kept = draw_kept(shape, part.model.configuration.dropout, hidden_RSD, part.generator)
        keeps.append(F.pad(kept, (0, 0, 0, hidden_RSD.shape[1] - width)))
    return hidden_RSD * torch.cat(keeps)


def _drop_pairs(hidden_TW: Tensor, parts: Sequence[BatchPart], lane_T: Tensor) -> Tensor:
    if not any(part.model.configuration.dropout for part in parts):
        return hidden_TW
    counts = torch.bincount(lane_T, minlength=len(parts)).tolist()
    keeps = [
        draw_kept(
            (count, hidden_TW.shape[1]),
            part.model.configuration.dropout,
            hidden_TW,
            part.generator,
        )
        for part, count in zip(parts, counts, strict=True)
    ]
    return hidden_TW * torch.cat(keeps)
