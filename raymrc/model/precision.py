"""The dtype in which a backbone is kept and computed.

Prompts, heads, losses and optimiser states are always fp32. A prompt is cast where it enters the
encoder, and the encoder's output is fp32.
"""

from __future__ import annotations

import torch


def precision(device: torch.device | str) -> torch.dtype:
    """bf16 on a CUDA device that supports it, fp32 everywhere else.

    A frozen backbone's weights have this dtype. A trained one is computed in it (autocast) but keeps
    fp32 weights, because bf16 weights are too coarse for small steps.
    """
    device = torch.device(device)
    if device.type == "cuda":
        with torch.cuda.device(device):
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return torch.bfloat16
    return torch.float32
