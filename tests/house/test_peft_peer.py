"""Promise: the benchmarks' peer does the same work as our model, only in its own way.

Nobody would notice if a prefix shifted positions, a mask hid it, or keys and values were swapped: the peer
would still train, and its speed would be compared with the speed of a different model.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks.peft_peer import HEADS, NOTHING, STRIDE, PeerModel, pack
from raymrc.model.network import Model
from tests.model.tiny import random_inputs, random_span_targets, tiny_configuration, tiny_loaded

LABELS = 3

pytestmark = pytest.mark.skipif(
    find_spec("peft") is None, reason="peft is not installed (the benchmarks extra)"
)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["bert", "megatron-bert"])
def test_the_peer_has_our_loss_and_our_gradients_at_equal_weights(
    kind: str, head: str, tmp_path: Path
) -> None:
    from transformers import AutoModel

    loaded = tiny_loaded(kind, tmp_path)
    configuration = tiny_configuration(loaded.backbone, "frozen_soft_prompt")
    ours = Model(configuration, loaded, LABELS).train()
    with torch.no_grad():
        ours.heads.start.bias.zero_()  # so that some spans are predicted
        ours.heads.end.bias.zero_()
    encoder = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    peer = PeerModel(encoder, LABELS, configuration, head)
    peer.take(ours)
    peer.train()

    inputs = random_inputs(loaded.shape.vocab, num_labels=LABELS, types=1)
    targets = random_span_targets(inputs)
    our_loss = ours.loss(inputs, targets)
    peer_loss = peer(
        inputs.input_ids_BS,
        inputs.mask_BS.long(),
        inputs.window_BS,
        inputs.label_B,
        targets.start_BS,
        targets.end_BS,
        targets.pairs_K3,
    )["loss"]
    torch.testing.assert_close(peer_loss, our_loss, rtol=1e-5, atol=1e-6)

    our_loss.backward()
    peer_loss.backward()
    assert all(p.grad is None for p in encoder.parameters())
    norms = [
        torch.linalg.vector_norm(
            torch.stack([p.grad.norm() for p in parameters if p.requires_grad])
        )
        for parameters in (list(ours.prompt.parameters()), list(peer.prefix.parameters()))
    ]
    # The peer sums fp32 numbers in another order.
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-4, atol=1e-7)


def test_the_peers_spans_survive_packing() -> None:
    found = [torch.tensor([[3, 5], [0, 511]]), torch.empty(0, 2, dtype=torch.long)]
    packed = pack(found)
    assert packed.tolist() == [[3 * STRIDE + 5, 511], [NOTHING, NOTHING]]
