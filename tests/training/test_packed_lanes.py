"""Lanes that share a pass learn the same with and without padding, in fp32 and in bf16.

A bug here would be silent: only a GPU run drops padding, and a lane whose rows see a neighbour's
prompt positions still trains.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from raymrc.model import loading
from raymrc.model.loading import Loaded
from raymrc.training.fused import backward_together, predict_together
from tests.training.test_fused import FORMS, gradients, loaded, make_part

__all__ = ["loaded"]  # this fixture yields a tiny backbone of each kind


@pytest.fixture
def packed(loaded: Loaded) -> Iterator[Loaded]:
    loaded.encoder.packs = True
    yield loaded
    loaded.encoder.packs = None


def losses_and_gradients(kept: Loaded) -> tuple[Tensor, list[dict[str, Tensor]]]:
    parts = [make_part(kept, i, dropout=0.0, **form) for i, form in enumerate(FORMS)]
    losses = backward_together(parts)
    return losses, [gradients(part.model) for part in parts]


def test_packed_lanes_get_the_same_losses_and_gradients_as_padded_lanes(packed: Loaded) -> None:
    losses, found = losses_and_gradients(packed)
    packed.encoder.packs = None
    expected_losses, expected = losses_and_gradients(packed)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(found, expected, strict=True):
        for name, gradient in theirs.items():  # fp32 sums run in a different order
            torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_packed_lanes_on_a_bf16_backbone_learn_nearly_the_same(loaded: Loaded) -> None:
    kept = loading.load_backbone(loaded.backbone, "cpu", dtype=torch.bfloat16)
    kept.encoder.packs = True
    losses, found = losses_and_gradients(kept)
    expected_losses, expected = losses_and_gradients(loaded)
    assert losses.dtype == torch.float32
    # A bf16 number is off by up to 1 part in 256, the initial scale of prompts is read in bf16, and a
    # lane with one row and few pairs averages out little of the error.
    torch.testing.assert_close(losses, expected_losses, rtol=0.05, atol=0)
    for mine, theirs in zip(found, expected, strict=True):
        assert {g.dtype for g in mine.values()} == {torch.float32}
        for owner in ("prompt.", "heads."):
            ours = torch.cat([g.flatten() for n, g in mine.items() if n.startswith(owner)])
            exact = torch.cat([g.flatten() for n, g in theirs.items() if n.startswith(owner)])
            cosine = torch.nn.functional.cosine_similarity(ours, exact, dim=0)
            assert ours.any() and cosine > 0.95, (owner, float(cosine))


def test_packed_rows_give_the_same_answers_as_padded_rows(packed: Loaded) -> None:
    parts = [make_part(packed, i, **form) for i, form in enumerate(FORMS)]
    answers = predict_together(parts)
    packed.encoder.packs = None
    for lane, padded in zip(answers, predict_together(parts), strict=True):
        for mine, theirs in zip(lane, padded, strict=True):
            assert mine[2].tolist() == theirs[2].tolist()
            for k in (0, 1, 3):
                torch.testing.assert_close(
                    torch.from_numpy(mine[k]), torch.from_numpy(theirs[k]), rtol=1e-4, atol=1e-5
                )
