"""In which numbers a backbone is kept and computed: decided here, and nowhere else.

Prompts, heads, losses and what an optimiser keeps are fp32 everywhere; a prompt is cast where it
enters the encoder, and what leaves the encoder is fp32.
"""

from __future__ import annotations

import torch


def precision(device: torch.device | str) -> torch.dtype:
    """bf16 on a CUDA device that has it, fp32 everywhere else.

    A frozen backbone's weights are kept in it. A trained one keeps fp32 weights, as a bf16 weight
    is too coarse for the small steps of training, and is computed in it (autocast).
    """
    device = torch.device(device)
    if device.type == "cuda":
        with torch.cuda.device(device):
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return torch.bfloat16
    return torch.float32
