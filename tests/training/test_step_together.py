"""In a joint step every lane uses its own learning rate, weight decay and step count.

A bug here would be silent: a lane that joins with another lane's step count takes too short first
steps and still learns.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from raymrc.training.fused import step_together
from raymrc.training.torch_private import step_at_once

LANES: tuple[dict[str, float | tuple[float, float]], ...] = (
    {"lr": 1e-1, "weight_decay": 0.0},
    {"lr": 5e-3, "weight_decay": 0.05},
    {"lr": 2e-2, "weight_decay": 0.5, "eps": 1e-3},
    {"lr": 3e-2, "weight_decay": 0.05, "betas": (0.5, 0.9)},
)
JOINS = (0, 0, 7, 12)
"""Each lane comes in at its step."""


def make_lane(number: int, *, fused: bool, device: str = "cpu") -> torch.optim.AdamW:
    """Makes an optimiser with two groups of tensors; the second group has no weight decay."""
    draw = torch.Generator().manual_seed(number)
    tensors = [
        nn.Parameter(torch.randn(shape, generator=draw).to(device))
        for shape in ((7, 5), (3,), (2, 3, 4), ())
    ]
    groups = [{"params": tensors[:2]}, {"params": tensors[2:], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, fused=fused, **LANES[number])


def tensors_of(optimiser: torch.optim.AdamW) -> list[nn.Parameter]:
    return [p for group in optimiser.param_groups for p in group["params"]]


def give_gradients(optimisers: list[torch.optim.AdamW], step: int) -> None:
    for lane, optimiser in enumerate(optimisers):
        draw = torch.Generator().manual_seed(100 * step + lane)
        for place, parameter in enumerate(tensors_of(optimiser)):
            gradient = torch.randn(parameter.shape, generator=draw).to(parameter.device)
            # A tensor may get no gradient for some steps, and its step count must not grow then.
            parameter.grad = None if place == 1 and step % 5 == 2 else gradient
        for group in optimiser.param_groups:
            group["lr"] = group["lr"] * 0.97


def train(lanes: list[torch.optim.AdamW], twins: list[torch.optim.AdamW], steps: range) -> None:
    for step in steps:
        joined = [lane for lane, joins in enumerate(JOINS) if step >= joins]
        for both in (lanes, twins):
            give_gradients([both[i] for i in joined], step)
        step_at_once([lanes[i] for i in joined])
        for i in joined:
            twins[i].step()


def assert_equal(lanes: list[torch.optim.AdamW], twins: list[torch.optim.AdamW]) -> None:
    for lane, twin in zip(lanes, twins, strict=True):
        for ours, theirs in zip(tensors_of(lane), tensors_of(twin), strict=True):
            # Rounding happens in a different order over about twenty steps.
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
            assert lane.state[ours].keys() == twin.state[theirs].keys()
            for name, value in lane.state[ours].items():
                torch.testing.assert_close(value, twin.state[theirs][name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_lanes_with_different_rates_decays_and_ages_step_as_if_alone(fused: bool) -> None:
    lanes = [make_lane(i, fused=fused) for i in range(len(LANES))]
    twins = [make_lane(i, fused=fused) for i in range(len(LANES))]
    before = [p.detach().clone() for p in tensors_of(lanes[0])]
    train(lanes, twins, range(20))
    assert_equal(lanes, twins)
    for parameter, start in zip(tensors_of(lanes[0]), before, strict=True):
        assert (parameter - start).abs().min() > 0.01


def test_a_lane_can_step_alone_for_a_while_and_rejoin() -> None:
    lanes = [make_lane(i, fused=False) for i in range(len(LANES))]
    twins = [make_lane(i, fused=False) for i in range(len(LANES))]
    train(lanes, twins, range(15))
    for both in (lanes, twins):
        give_gradients(both, 15)
        for optimiser in both:
            optimiser.step()
    train(lanes, twins, range(16, 20))
    assert_equal(lanes, twins)


def test_a_saved_state_resumes_in_a_new_optimiser() -> None:
    lanes = [make_lane(i, fused=True) for i in range(len(LANES))]
    twins = [make_lane(i, fused=True) for i in range(len(LANES))]
    train(lanes, twins, range(15))
    restored = [make_lane(i, fused=True) for i in range(len(LANES))]
    for new, old in zip(restored, lanes, strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
        with torch.no_grad():
            for mine, theirs in zip(tensors_of(new), tensors_of(old), strict=True):
                mine.copy_(theirs)
    train(restored, twins, range(15, 20))
    assert_equal(restored, twins)


def test_each_lane_takes_its_own_fused_step_on_a_cpu() -> None:
    lanes = [make_lane(i, fused=True) for i in range(len(LANES))]
    twins = [make_lane(i, fused=True) for i in range(len(LANES))]
    for both in (lanes, twins):
        give_gradients(both, 0)
    step_together(lanes)
    for twin in twins:
        twin.step()
    for lane, twin in zip(lanes, twins, strict=True):
        for ours, theirs in zip(tensors_of(lane), tensors_of(twin), strict=True):
            assert torch.equal(ours, theirs)


def test_a_single_lane_keeps_its_own_kernel_on_any_device(monkeypatch) -> None:
    """A single lane may train a backbone, and copying its moments would be too expensive."""
    monkeypatch.setattr("raymrc.training.fused.step_at_once", None)
    lane = torch.optim.AdamW([nn.Parameter(torch.ones(3, device="meta"))], foreach=False)
    tensors_of(lane)[0].grad = torch.ones(3, device="meta")
    step_together([lane])
    assert lane.state[tensors_of(lane)[0]]["step"].item() == 1


def test_lanes_without_gradients_do_not_change() -> None:
    lane = make_lane(0, fused=True)
    before = [p.detach().clone() for p in tensors_of(lane)]
    step_at_once([lane])
    assert all(torch.equal(p, b) for p, b in zip(tensors_of(lane), before, strict=True))
    assert not lane.state


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU: no step without a wait was tried"
)
@pytest.mark.parametrize("fused", [True, False])
def test_lanes_step_together_on_a_gpu_without_synchronising(fused: bool) -> None:
    lanes = [make_lane(i, fused=fused, device="cuda") for i in range(len(LANES))]
    twins = [make_lane(i, fused=fused, device="cuda") for i in range(len(LANES))]
    for step in range(20):
        for both in (lanes, twins):
            give_gradients(both, step)
        for twin in twins:
            twin.step()
        if step < 3:  # these lanes have trained alone before
            for lane in lanes:
                lane.step()
            continue
        # The first joint step may synchronise to fetch the step count of a fused optimiser from the GPU.
        torch.cuda.set_sync_debug_mode("error" if step > 3 else "default")
        try:
            step_together(lanes)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for lane, twin in zip(lanes, twins, strict=True):
        for ours, theirs in zip(tensors_of(lane), tensors_of(twin), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
