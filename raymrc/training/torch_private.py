"""Every use of private parts of torch; `tests/training/test_torch_private.py` says what breaks with them.

torch has kernels that take one launch for a whole list of tensors, and checkpoints on file systems of fsspec,
only behind private names.
"""

# G tensors

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

_Storage = TypeVar("_Storage", bound=Any)


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """The 2-norm of each tensor, (G,)."""
    return torch.stack(torch._foreach_norm(list(tensors)))


def scale(tensors: Sequence[Tensor], factors: Tensor | tuple[Tensor, ...]) -> None:
    """Multiplies tensors in place, by one factor or by one each."""
    torch._foreach_mul_(list(tensors), factors)


@torch.no_grad()
def step_at_once(optimisers: Sequence[torch.optim.AdamW]) -> None:
    """One AdamW step of all lanes in ten launches; what differs between lanes travels as lists of numbers.

    State stays where AdamW keeps it, so `step` and `state_dict` work as before. Only a tensor's age is kept
    on the host, as in an AdamW that is not fused: reading it from a device would make every step wait. A
    fused optimiser is converted when it is first seen here, which waits once.
    """
    parameters: list[Tensor] = []
    gradients: list[Tensor] = []
    means: list[Tensor] = []
    squares: list[Tensor] = []
    ages: list[Tensor] = []
    kept, beta_1, beta_2, eps, size, root = [], [], [], [], [], []
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            assert not (group["amsgrad"] or group["maximize"] or group["capturable"])
            beta, gamma = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = optimiser.state[parameter]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                elif not state["step"].is_cpu:
                    state["step"] = state["step"].cpu()
                if group["fused"] and not parameter.is_cpu:
                    group["fused"] = None
                age = state["step"].item() + 1
                parameters.append(parameter)
                gradients.append(parameter.grad)
                means.append(state["exp_avg"])
                squares.append(state["exp_avg_sq"])
                ages.append(state["step"])
                kept.append(1 - group["lr"] * group["weight_decay"])
                beta_1.append(1 - beta)
                beta_2.append(gamma)
                eps.append(group["eps"])
                size.append(-group["lr"] / (1 - beta**age))
                root.append((1 - gamma**age) ** 0.5)
    if not parameters:
        return
    torch._foreach_add_(ages, 1.0)
    torch._foreach_mul_(parameters, kept)
    torch._foreach_lerp_(means, gradients, beta_1)
    torch._foreach_mul_(squares, beta_2)
    torch._foreach_addcmul_(squares, gradients, gradients, [1 - gamma for gamma in beta_2])
    spread = torch._foreach_sqrt(squares)
    torch._foreach_div_(spread, root)
    torch._foreach_add_(spread, eps)
    torch._foreach_addcdiv_(parameters, means, spread, size)


def through_arrow(storage: _Storage, place: str) -> _Storage:
    """torch's reader or writer of checkpoints; where the place is a URL, it goes through pyarrow, as the
    ledger does."""
    if "://" in place:
        # Imports of seconds, for sharded lanes alone.
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow.fs import FileSystem
        from torch.distributed.checkpoint import _fsspec_filesystem

        files: Any = _fsspec_filesystem.FileSystem()
        filesystem, storage.path = FileSystem.from_uri(place)
        files.fs, storage.fs = ArrowFSWrapper(filesystem), files
    return storage
