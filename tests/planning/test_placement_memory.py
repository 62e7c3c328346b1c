"""Promise: the memory estimate of a placement includes every term.

It would break without anyone noticing: properties such as "more devices never need more" still hold when a
term is missing, and a study then runs out of memory on a real device.

The bytes come from the arithmetic that `benchmarks/placement.py` compared with measured memory. In each case
a different term, or a different moment of a pass, sets the peak: if any one term of `planning/placement.py`
or `planning/arithmetic.py` is removed, at least one case fails. Rerun that benchmark before you change these
bytes.
"""

from __future__ import annotations

from typing import Any

import pytest

from raymrc.model.shapes import Shape
from raymrc.planning.placement import Way
from tests.planning.test_placement import configuration

SHAPES = {
    "wide": Shape("bert", 4, hidden=128, num_heads=2, ffn=512, vocab=1000),
    "pre": Shape(
        "megatron-bert",
        6,
        hidden=256,
        num_heads=4,
        ffn=512,
        vocab=3000,
        pre_norm=True,
        embedding_norm=False,
    ),
    "long": Shape("bert", 12, hidden=64, num_heads=1, ffn=64, vocab=100),
    "vocab": Shape("bert", 1, hidden=64, num_heads=1, ffn=64, vocab=200_000),
}
DEFAULTS = {"window": 64, "batch_size": 4, "match_width": 64}

CASES: list[tuple[int, str, str, int, str, dict[str, Any], dict[str, Any]]] = [
    # A case lists bytes, strategy, shape, labels, kind of device, settings and way.
    (
        73044141.93939394,
        "soft_prompt",
        "long",
        5,
        "cpu",
        {"batch_size": 32, "reparametrisation": "mlp", "prompt_length": 64},
        {"mode": "group", "devices": 2, "checkpoints": True},
    ),
    (
        184338436,
        "frozen_soft_prompt",
        "wide",
        5,
        "gpu",
        {"batch_size": 32, "prompt_depth": "input"},
        {"mode": "lanes", "lanes": 3, "sharing": 2, "pass_pieces": 2000},
    ),
    (
        281365196.6060606,
        "frozen_soft_prompt",
        "pre",
        5,
        "cpu",
        {"prompt_length": 400},
        {"mode": "group", "devices": 2, "checkpoints": True},
    ),
    (
        36221860,
        "hard_prompt",
        "pre",
        5,
        "gpu",
        {"batch_size": 32},
        {"mode": "group", "devices": 4, "checkpoints": True},
    ),
    (
        237020480,
        "fine_tune",
        "long",
        2000,
        "gpu",
        {"batch_size": 32, "dropout": 0.0},
        {"mode": "device"},
    ),
    (
        7162976,
        "frozen_soft_prompt",
        "wide",
        5,
        "cpu",
        {"dropout": 0.0, "first_layer": 2},
        {"mode": "group", "devices": 2, "checkpoints": True, "sharing": 1, "pass_pieces": 1},
    ),
    (
        73862532,
        "frozen_soft_prompt",
        "long",
        5,
        "gpu",
        {"batch_size": 1, "match_width": 1, "prompt_length": 128, "reparametrisation": "mlp"},
        {"mode": "lanes", "lanes": 3, "sharing": 2, "pass_pieces": 2000},
    ),
    (
        52003308,
        "soft_prompt",
        "vocab",
        5,
        "gpu",
        {"window": 8, "batch_size": 1, "match_width": 1, "dropout": 0.0},
        {"mode": "group", "devices": 512, "checkpoints": True, "pass_pieces": 12},
    ),
    (
        165099844,
        "soft_prompt",
        "pre",
        5,
        "gpu",
        {"window": 400, "match_width": 8, "first_layer": 2},
        {"mode": "device"},
    ),
    (
        2769316,
        "frozen_soft_prompt",
        "long",
        5,
        "gpu",
        {"dropout": 0.0, "prompt_depth": "input"},
        {"mode": "group", "devices": 2, "sharing": 1, "pass_pieces": 1},
    ),
    (
        1127393473.4545455,
        "frozen_soft_prompt",
        "pre",
        5,
        "gpu",
        {"batch_size": 1, "match_width": 1, "reparametrisation": "mlp", "prompt_length": 64},
        {"mode": "lanes", "lanes": 3},
    ),
    (
        80488684,
        "soft_prompt",
        "wide",
        5,
        "cpu",
        {"window": 8, "match_width": 4096},
        {"mode": "device", "pass_pieces": 1},
    ),
    (
        2966840,
        "soft_prompt",
        "long",
        5,
        "gpu",
        {"window": 8, "batch_size": 1, "match_width": 1, "dropout": 0.0},
        {"mode": "group", "devices": 512, "checkpoints": True, "pass_pieces": 12},
    ),
    (
        78263855.63636364,
        "soft_prompt",
        "wide",
        5,
        "gpu",
        {"batch_size": 32, "prompt_depth": "input"},
        {"mode": "device", "checkpoints": True},
    ),
    (
        108638768,
        "soft_prompt",
        "wide",
        5,
        "cpu",
        {"window": 16, "match_width": 4096},
        {"mode": "device", "pass_pieces": 1},
    ),
    (
        107854064,
        "fine_tune",
        "wide",
        5,
        "cpu",
        {"context_sentences": 1, "window": 500},
        {"mode": "device"},
    ),
    (
        12653048,
        "fine_tune",
        "pre",
        5,
        "cpu",
        {"window": 8, "batch_size": 1, "match_width": 1},
        {"mode": "group", "devices": 512, "pass_pieces": 12},
    ),
    (
        945408035.3939394,
        "frozen_soft_prompt",
        "pre",
        5,
        "gpu",
        {"dropout": 0.0, "prompt_depth": "input"},
        {"mode": "lanes", "lanes": 3},
    ),
    (
        68956720,
        "soft_prompt",
        "long",
        5,
        "cpu",
        {"batch_size": 32, "prompt_depth": "input", "first_layer": 3},
        {"mode": "device", "checkpoints": True},
    ),
    (
        107854064,
        "fine_tune",
        "wide",
        5,
        "cpu",
        {"context_sentences": 1, "window": 600},
        {"mode": "device"},
    ),
    (
        15804836,
        "soft_prompt",
        "long",
        5,
        "gpu",
        {"dropout": 0.0, "prompt_depth": "input", "first_layer": 3},
        {"mode": "device", "sharing": 1, "pass_pieces": 1},
    ),
    (
        112132844,
        "frozen_soft_prompt",
        "pre",
        5,
        "cpu",
        {"dropout": 0.0, "prompt_length": 128, "reparametrisation": "mlp"},
        {"mode": "group", "devices": 2, "sharing": 1, "pass_pieces": 1},
    ),
    (
        551031904,
        "soft_prompt",
        "long",
        5,
        "cpu",
        {"match_width": 2048, "prompt_depth": "input"},
        {"mode": "group", "devices": 2, "checkpoints": True},
    ),
    (
        48493885.57575758,
        "frozen_soft_prompt",
        "pre",
        5,
        "cpu",
        {"batch_size": 1, "match_width": 1, "first_layer": 2},
        {"mode": "lanes", "lanes": 3, "sharing": 2, "pass_pieces": 2000},
    ),
    (
        83452064,
        "soft_prompt",
        "long",
        5,
        "cpu",
        {
            "batch_size": 64,
            "match_width": 1,
            "window": 16,
            "reparametrisation": "mlp",
            "prompt_length": 64,
        },
        {"mode": "group", "devices": 2},
    ),
    (
        56068308,
        "frozen_soft_prompt",
        "long",
        5,
        "cpu",
        {"window": 400, "match_width": 8, "first_layer": 2},
        {"mode": "lanes", "lanes": 3},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_the_estimated_peak_equals_the_recorded_bytes(case):
    expected, strategy, shape, num_labels, kind, settings, way = case
    prompt = {"prompt_length": 16} if "soft" in strategy else {}
    wanted = configuration("any", strategy, **{**DEFAULTS, **prompt, **settings})
    assert Way(wanted, SHAPES[shape], num_labels, kind, **way).peak_bytes() == pytest.approx(
        expected, rel=1e-9
    )
