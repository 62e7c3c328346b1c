"""The weights that a fold-run is given."""

from __future__ import annotations

import pytest
import torch

from raymrc.study.configuration import FoldRun
from raymrc.training import trainer
from tests.model.tiny import tiny_configuration, tiny_loaded


def test_a_fold_run_gets_weights_as_its_strategy_needs_them(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen backbone is rounded where the device has bf16; one to be trained never is, nor is the
    one that the fold-run before has left."""
    backbone = tiny_loaded("bert", tmp_path).backbone
    monkeypatch.setattr(trainer, "precision", lambda device: torch.bfloat16)
    trainer._keep_loaded.cache_clear()
    for strategy, dtype in (
        ("frozen_soft_prompt", torch.bfloat16),
        ("soft_prompt", torch.float32),
        ("frozen_soft_prompt", torch.bfloat16),
    ):
        fold_run = FoldRun(tiny_configuration(backbone, strategy), 0, "c", "f", "q", "w")
        encoder = trainer.load_for(fold_run, "cpu").encoder
        assert {p.dtype for p in encoder.parameters()} == {dtype}
    trainer._keep_loaded.cache_clear()
