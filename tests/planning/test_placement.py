"""Promise: a plan knows before training starts where each cell can train, and refuses cells that fit nowhere.

It would break without anyone noticing: a study runs out of memory hours after its start, or takes several
devices where one would be enough.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymrc.configuration import Backbone, Cell, Configuration
from raymrc.model.shapes import SHAPES, Shape
from raymrc.model.strategies import STRATEGIES
from raymrc.planning import devices, placement
from raymrc.planning.devices import GIB, Device, machine_bytes
from raymrc.planning.placement import (
    DoesNotFit,
    Placement,
    Way,
    place,
    row_pieces,
)
from raymrc.planning.plan import device_of
from raymrc.study.sections import Resources, Workers

H100 = Device("gpu", 80 * GIB)
A100_40 = Device("gpu", 40 * GIB)
NAMES = ("minilm", "bert-large", "gatortron-3.9b", "gatortron-8.9b")
TRAINED = ("fine_tune", "hard_prompt", "soft_prompt")


def configuration(name: str, strategy: str, **fields: object) -> Configuration:
    asks = STRATEGIES[strategy].asks
    values: dict[str, object] = {"prompt_length": 32 if asks == "vectors" else 0, **fields}
    cell = Cell("concepts", "notes", Backbone(name, name), strategy)
    return Configuration(cell, learning_rate=1e-3, **values)  # type: ignore[arg-type]


def placed(name: str, strategy: str, device: Device = H100, **terms: object) -> Placement:
    fields = {
        key: terms.pop(key) for key in ("window", "batch_size", "first_layer") if key in terms
    }
    return place([configuration(name, strategy, **fields)], SHAPES[name], 5, device, **terms)  # type: ignore[arg-type]


def refusal(*arguments: object, **terms: object) -> str:
    with pytest.raises(DoesNotFit) as caught:
        placed(*arguments, **terms)  # type: ignore[arg-type]
    return str(caught.value)


# --- memory figures -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "frozen", "trained"), [("gatortron-3.9b", 7.3, 58), ("gatortron-8.9b", 16.4, 132)]
)
def test_weights_gradients_and_moments_take_the_memory_given_in_the_design(name, frozen, trained):
    """The figures come from section 4 of design.md."""
    shape = SHAPES[name]
    assert 2 * shape.num_parameters / GIB == pytest.approx(frozen, rel=0.01)
    assert 16 * shape.num_parameters / GIB == pytest.approx(trained, rel=0.01)
    # With tiny activations only weights remain; one device also holds the pretrained weights in bf16.
    tiny = {"window": 8, "batch_size": 1, "match_width": 8}
    whole = Way(
        configuration(name, "fine_tune", **tiny), shape, 1, "gpu",
        mode="device", checkpoints=True, pass_pieces=10,
    ).peak_bytes()  # fmt: skip
    assert whole / GIB == pytest.approx(trained + frozen, rel=0.01)
    cut = Way(
        configuration(name, "fine_tune", **tiny), shape, 1, "gpu",
        mode="group", devices=64, checkpoints=True, pass_pieces=10,
    ).peak_bytes()  # fmt: skip
    # Each device holds its share of the model, a few gathered layers and the embeddings.
    together = cut - 16 * shape.num_parameters / 64
    rest = shape.vocab * shape.hidden
    assert 4 * rest < together < 12 * (shape.layer_parameters + rest)


@pytest.mark.parametrize("name", NAMES)
def test_frozen_backbones_train_in_lanes_on_one_large_gpu(name):
    found = placed(name, "frozen_soft_prompt")
    assert (found.mode, found.workers) == ("lanes", (1, 1))
    assert 1 < found.lanes <= 32
    assert found.peak_bytes <= H100.usable_bytes


def test_small_trained_backbones_use_one_device_without_recomputation():
    for name in ("minilm", "bert-large"):
        for strategy in TRAINED:
            found = placed(name, strategy)
            assert (found.mode, found.checkpoints, found.lanes) == ("device", False, 1)


def test_four_billion_parameters_fit_one_large_gpu_with_recomputation_and_nine_do_not():
    assert str(placed("gatortron-3.9b", "soft_prompt")) == "1 device, recomputes"
    nine = placed("gatortron-8.9b", "soft_prompt")
    assert nine.mode == "group"
    assert nine.workers[0] >= 2  # weights, gradients and moments take 132 GiB
    assert nine.workers[0] == nine.workers[1]


def test_a_frozen_backbone_too_large_for_one_device_is_sharded_over_several():
    found = placed("gatortron-8.9b", "frozen_soft_prompt", Device("gpu", 20 * GIB))
    assert (found.mode, found.lanes) == ("group", 1)
    assert found.peak_bytes <= 18 * GIB


def test_a_placement_uses_as_many_lanes_as_fit_up_to_the_limit():
    minilm = Device("cpu", 64 * GIB)
    assert placed("minilm", "frozen_soft_prompt", minilm).lanes == placement.LANES["cpu"]
    assert placed("minilm", "frozen_soft_prompt", minilm, lanes=7).lanes == 7
    assert placed("minilm", "frozen_soft_prompt", minilm, lanes=1).lanes == 1
    few = placed("gatortron-3.9b", "frozen_soft_prompt", A100_40, lanes=1000)
    more = placed("gatortron-3.9b", "frozen_soft_prompt", H100, lanes=1000)
    assert few.lanes < more.lanes < 1000


def test_late_prompts_leave_room_for_the_activations_kept_below_them():
    late = placed("gatortron-3.9b", "frozen_soft_prompt", first_layer=40, lanes=1000)
    assert late.peak_bytes <= (1 - placement.ACTIVATIONS_SHARE) * H100.usable_bytes


def test_requested_devices_form_a_group_but_frozen_backbones_stay_on_one_device():
    asked = placed("minilm", "soft_prompt", workers=(2, 8))
    assert (asked.mode, asked.workers) == ("group", (2, 8))
    assert placed("minilm", "soft_prompt", workers=(1, 1)).mode == "device"
    assert placed("minilm", "frozen_soft_prompt", workers=(2, 8)).mode == "lanes"


def test_a_group_starts_with_the_fewest_devices_that_hold_the_model():
    asked = placed("gatortron-8.9b", "soft_prompt", A100_40, workers=(1, 16))
    least, most = asked.workers
    assert 4 <= least < 16 and most == 16
    assert asked.peak_bytes <= A100_40.usable_bytes
    with pytest.raises(DoesNotFit):
        placed("gatortron-8.9b", "soft_prompt", A100_40, workers=(1, least - 1))


def test_a_placement_prints_as_a_short_phrase():
    assert str(Placement("lanes", lanes=4)) == "4 lanes"
    assert str(Placement("lanes")) == "1 lane"
    assert str(Placement("device", checkpoints=True)) == "1 device, recomputes"
    assert str(Placement("group", (4, 4))) == "group of 4"
    assert str(Placement("group", (2, 8), checkpoints=True)) == "group of 2 to 8, recomputes"


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [(1, 1), (2, 2), (2, 3)])
@pytest.mark.parametrize("strategy", TRAINED)
def test_a_refusal_names_the_smallest_number_of_devices_that_fits(strategy, workers):
    message = refusal("gatortron-8.9b", strategy, A100_40, workers=workers)
    where = "on one device" if workers[1] == 1 else f"on each of {workers[1]} devices"
    assert re.match(
        rf"gatortron-8\.9b/{strategy} needs \d+ GiB {where} and a device has 40, of which 36 can be filled;",
        message,
    )
    enough = int(re.search(r"set resources.workers to (\d+) or more$", message)[1])  # type: ignore[index]
    found = placed("gatortron-8.9b", strategy, A100_40, workers=(enough, enough))
    assert found.peak_bytes <= A100_40.usable_bytes
    with pytest.raises(DoesNotFit):
        placed("gatortron-8.9b", strategy, A100_40, workers=(1, enough - 1))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_refusal_names_the_smallest_device_memory_that_fits(strategy):
    message = refusal("gatortron-8.9b", strategy, Device("gpu", 2 * GIB))
    enough = float(re.search(r"; 64 devices of (\d+) GiB each would suffice", message)[1])  # type: ignore[index]
    assert placed("gatortron-8.9b", strategy, Device("gpu", enough * GIB)).mode == "group"
    with pytest.raises(DoesNotFit):
        placed("gatortron-8.9b", strategy, Device("gpu", (enough - 1) * GIB))


def test_refusing_a_group_suggests_more_devices_or_larger_ones():
    small = Device("gpu", 8 * GIB)
    message = refusal("gatortron-8.9b", "fine_tune", small, workers=(1, 2))
    assert "devices of" in message or "or more" in message


# --- properties -----------------------------------------------------------------------------------

shapes = st.builds(
    lambda pre_norm, layers, heads, ffn: Shape(
        "megatron-bert" if pre_norm else "bert", layers, 64 * heads, heads, ffn * 64 * heads,
        vocab=30_000, pre_norm=pre_norm, embedding_norm=not pre_norm,
    ),
    st.booleans(), st.integers(1, 48), st.integers(1, 40), st.integers(1, 4),
)  # fmt: skip
kinds = st.sampled_from(["cpu", "gpu"])
strategies = st.sampled_from(list(STRATEGIES))
windows = st.integers(8, 510)


@st.composite
def configurations(draw):
    strategy = draw(strategies)
    fields = {
        "window": draw(windows),
        "batch_size": draw(st.integers(1, 32)),
        "match_width": draw(st.sampled_from([1, 256, 2048])),
        "dropout": draw(st.sampled_from([0.0, 0.1])),
    }
    if STRATEGIES[strategy].asks == "vectors":
        fields["prompt_length"] = draw(st.integers(1, 128))
        fields["prompt_depth"] = draw(st.sampled_from(["deep", "input"]))
    return configuration("any", strategy, **fields)


@given(configurations(), shapes, kinds, st.booleans(), st.integers(1, 63))
def test_more_devices_never_need_more_memory_per_device(wanted, shape, kind, checkpoints, devices):
    fewer, more = (
        Way(wanted, shape, 5, kind, mode="group", devices=k, checkpoints=checkpoints).peak_bytes()
        for k in (devices, devices + 1)
    )
    assert more <= fewer


@given(configurations(), shapes, st.booleans(), windows)
def test_longer_windows_never_need_less_memory(wanted, shape, checkpoints, window):
    """The rows stay the same: a full pass would hold fewer of the longer rows, and so fewer prompts."""
    shorter, longer = sorted([wanted.window, window])
    ways = [{"mode": "group", "devices": 32, "checkpoints": checkpoints}]
    if STRATEGIES[wanted.cell.strategy].trains_backbone:
        ways.append({"mode": "device", "checkpoints": checkpoints})
    else:
        ways.append({"mode": "lanes", "lanes": 3, "sharing": 1})
    for way in ways:
        less, more = (
            Way(replace(wanted, window=w), shape, 5, "gpu", pass_pieces=1, **way).peak_bytes()
            for w in (shorter, longer)
        )
        assert less <= more * (1 + 1e-12)


@given(configurations(), shapes, kinds, st.integers(1, 31))
def test_an_additional_lane_always_needs_more_memory(wanted, shape, kind, lanes):
    fewer, more = (Way(wanted, shape, 5, kind, lanes=n).peak_bytes() for n in (lanes, lanes + 1))
    assert fewer < more


@given(configurations(), shapes, kinds, st.sampled_from(["device", "group"]))
def test_larger_batches_wider_heads_and_longer_prompts_never_need_less_memory(
    wanted, shape, kind, mode
):
    before = Way(wanted, shape, 5, kind, mode=mode, devices=2).peak_bytes()
    for change in ({"batch_size": wanted.batch_size + 1}, {"match_width": wanted.match_width + 1},
                   {"prompt_length": wanted.prompt_length and wanted.prompt_length + 1}):  # fmt: skip
        more = Way(replace(wanted, **change), shape, 5, kind, mode=mode, devices=2)
        assert before <= more.peak_bytes()


@given(configurations(), shapes, kinds, st.floats(0.5, 200), st.none() | st.integers(1, 8))
def test_every_placement_fits_and_every_refusal_states_the_memory_it_needs(
    wanted, shape, kind, gib, most
):
    device = Device(kind, gib * GIB)
    workers = None if most is None else (1, most)
    try:
        found = place([wanted], shape, 5, device, workers=workers)
    except DoesNotFit as reason:
        assert re.search(r"needs [\d.]+ GiB on", str(reason))
        return
    assert 0 < found.peak_bytes <= device.usable_bytes
    assert found.mode == "lanes" or found.lanes == 1
    assert (found.mode == "group") or found.workers == (1, 1)
    if workers is not None:
        assert found.workers[1] <= most or found.mode != "group"


# --- devices and machines -------------------------------------------------------------------------


def test_resources_determine_the_device():
    assert device_of(Resources(gpus_per_host=1)) == H100
    assert device_of(Resources(gpus_per_host=0.5)) == Device("gpu", 40 * GIB)
    assert device_of(Resources(gpus_per_host=2, device_memory=24)) == Device("gpu", 24 * GIB)
    assert device_of(Resources(device_memory=3.5)) == Device("cpu", 3.5 * GIB)


def test_a_cpu_host_gets_its_share_of_machine_memory(monkeypatch):
    monkeypatch.setattr(devices.os, "cpu_count", lambda: 8)
    small, large = (device_of(Resources(cpus_per_host=n)).total_bytes for n in (1, 4))
    assert small == 0.8 * machine_bytes() / 8
    assert large == 4 * small
    assert device_of(Resources(cpus_per_host=100)).total_bytes == 8 * small
    assert device_of(Resources(cpus_per_host=0)).total_bytes == small


def test_a_container_limit_caps_machine_memory(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(devices, "CONTAINER_LIMIT", limit)
    whole = machine_bytes()
    limit.write_text("max\n")
    assert machine_bytes() == whole
    limit.write_text(f"{GIB}\n")
    assert machine_bytes() == GIB


def test_a_written_question_lengthens_rows_up_to_the_limit_of_the_backbone():
    shape = SHAPES["minilm"]
    assert row_pieces(configuration("minilm", "soft_prompt", window=100), shape) == 102
    assert 102 < row_pieces(configuration("minilm", "hard_prompt", window=100), shape) < 200
    assert row_pieces(configuration("minilm", "hard_prompt", window=510), shape) == 512


def test_workers_have_a_minimum_and_a_maximum():
    assert Workers(min=2, max=8).max == 8
