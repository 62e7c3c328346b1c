"""The private parts of torch that `training.torch_private` uses behave as our code expects.

If a torch version renames or changes them, a test here fails by name before training goes wrong.
"""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter

import raymrc
from raymrc.training import torch_private

KERNELS = ("add_", "mul_", "lerp_", "addcmul_", "sqrt", "div_", "addcdiv_", "norm")
"""One AdamW step of many lanes, and clipping, call these `torch._foreach_*`."""


def test_torch_has_every_foreach_kernel_that_is_used_and_no_other_is_used():
    used = set(re.findall(r"torch\._foreach_(\w+)", inspect.getsource(torch_private)))
    assert used == set(KERNELS)
    assert [name for name in KERNELS if not hasattr(torch, f"_foreach_{name}")] == []


def test_private_names_of_torch_are_used_in_only_one_file():
    pattern = re.compile(r"torch(\.\w+)*\._[a-z]|from torch\S* import .*\b_[a-z]")
    root = Path(raymrc.__file__).parent
    found = {p.name for p in root.rglob("*.py") if pattern.search(p.read_text())}
    assert found == {"torch_private.py"}


def test_norms_and_scaling_apply_to_each_tensor_separately():
    tensors = [torch.tensor([3.0, 4.0]), torch.tensor([[1.0], [2.0]]), torch.tensor(2.0)]
    assert torch_private.norms(tensors).tolist() == pytest.approx([5.0, 5**0.5, 2.0])
    first = tensors[0]
    torch_private.scale(tensors, torch.tensor([2.0, 3.0, 0.5]).unbind())
    assert [t.tolist() for t in tensors] == [[6.0, 8.0], [[3.0], [6.0]], 1.0]
    assert tensors[0] is first, "in place"
    torch_private.scale(tensors, torch.tensor(0.5))
    assert [t.tolist() for t in tensors] == [[3.0, 4.0], [[1.5], [3.0]], 0.5]


def test_a_joint_step_of_many_tensors_equals_adamws_step():
    def make() -> torch.optim.AdamW:
        draw = torch.Generator().manual_seed(1)
        tensors = [torch.nn.Parameter(torch.randn(n, generator=draw)) for n in (3, 5)]
        for tensor in tensors:
            tensor.grad = torch.randn(tensor.shape, generator=draw)
        return torch.optim.AdamW(tensors, lr=0.1, weight_decay=0.05, betas=(0.8, 0.99), eps=1e-6)

    ours, theirs = make(), make()
    for _ in range(3):
        torch_private.step_at_once([ours])
        theirs.step()
    for mine, other in zip(
        ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)
        assert ours.state[mine].keys() == theirs.state[other].keys(), "AdamW's names of its state"


# This test deliberately runs in one process without torch.distributed.
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("as_url", [False, True])
def test_a_checkpoint_round_trips_at_a_path_and_through_pyarrow_at_a_url(tmp_path, as_url):
    place = f"file://{tmp_path}/saved" if as_url else f"{tmp_path}/saved"
    written = {"weight": torch.arange(6.0).reshape(2, 3)}
    writer = torch_private.through_arrow(FileSystemWriter(place), place)
    assert (
        "pyarrow" in repr(vars(writer.fs)).lower() or "Arrow" in repr(vars(writer.fs))
    ) == as_url
    dcp.save(written, storage_writer=writer, no_dist=True)
    assert {".metadata"} < set(os.listdir(tmp_path / "saved"))
    read = {"weight": torch.zeros(2, 3)}
    reader = torch_private.through_arrow(FileSystemReader(place), place)
    dcp.load(read, storage_reader=reader, no_dist=True)
    assert torch.equal(read["weight"], written["weight"])
