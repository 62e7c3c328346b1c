"""A price table is dated, a user's table replaces the built-in one, and a table with a mistake is refused in
one sentence.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from raymrc.costs.prices import BUILT_IN_PRICES, energy_kwh, read_cluster, read_prices, watts_of
from raymrc.errors import SpecError

TABLE = """\
date: 2026-02-03
source: us
devices:
  big: {kind: gpu, peak_tflops: 100, watts: 300}
  core: {kind: cpu, peak_tflops: 0.1, watts: 5}
instances:
  box: {device: big, devices: 4, gib: 40, on_demand: 8, spot: 2.0}
  desk: {device: core, devices: 16, gib: 64, on_demand: 0.8, spot: 0}
"""


def write_prices(folder: Path, text: str = TABLE) -> Path:
    path = folder / "prices.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_built_in_table_is_dated_lists_gpus_and_cpus_and_asks_to_be_checked():
    table = read_prices()
    assert date.fromisoformat(table.date)
    assert {table.devices[i.device].kind for i in table.instances.values()} == {"cpu", "gpu"}
    assert all(0 < i.spot < i.on_demand for i in table.instances.values())
    assert "Check it before you rely on it" in BUILT_IN_PRICES.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("cpu", "core"),
    ],
)
def test_device_names_reported_by_drivers_match_the_table(device, name):
    assert watts_of(device) == read_prices().devices[name].watts


def test_energy_uses_a_share_of_the_rated_watts_and_unknown_devices_have_zero_watts():
    assert energy_kwh(3600, 1000) == pytest.approx(0.7)
    assert watts_of("Somebody's XA1000") == 0


def test_a_cluster_counts_its_machines_and_devices(tmp_path):
    table = read_prices(write_prices(tmp_path))
    cluster = read_cluster(["box=3", "box"], table)
    assert cluster.devices == 16
    assert (cluster.hour_usd(), cluster.hour_usd(spot=True)) == (32.0, 8.0)
    assert str(cluster) == "3 x box, 1 x box"


def test_the_cheapest_instance_with_enough_memory_is_chosen(tmp_path):
    assert read_prices(write_prices(tmp_path)).cheapest("gpu", 24) == "box"
    assert read_prices(write_prices(tmp_path)).cheapest("cpu") == "desk"
    assert read_prices().cheapest("gpu", 10) == "g4dn.xlarge"
    assert read_prices().cheapest("gpu", 80) == "p4de.24xlarge"
    assert read_prices().cheapest("gpu", 5000) == "p5en.48xlarge"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["g5.xlage=2"], "has no instance type 'g5.xlage'; did you mean 'g5.xlarge'?"),
        (["g5.xlarge=0"], "a whole number from 1 on"),
        (["g5.xlarge=many"], "a whole number from 1 on"),
        (["g5.xlarge=1", "c7i.4xlarge=1"], "devices of one type alone, not A10G, core"),
    ],
)
def test_impossible_machines_are_refused_in_one_sentence(given, sentence):
    with pytest.raises(SpecError) as caught:
        read_cluster(given, read_prices())
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("device: big", "device: bag", "box: there is no device 'bag'; did you mean 'big'?"),
        ("kind: gpu", "kind: tpu", "big: kind is cpu or gpu, not 'tpu'"),
        ("spot: 2.0", "spot: cheap", "box: spot is a number above 0, not 'cheap'"),
        ("devices: 4", "devices: 1.5", "box: devices is a number above 0, not 1.5"),
        (", watts: 300", "", "big has kind, peak_tflops, watts, and nothing else"),
        ("instances:", "machines:", "a price table has 'instances', a mapping of names"),
    ],
)
def test_a_table_with_a_mistake_is_refused_in_one_sentence(tmp_path, before, after, sentence):
    with pytest.raises(SpecError) as caught:
        read_prices(write_prices(tmp_path, TABLE.replace(before, after)))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(SpecError, match="file not found"):
        read_prices(tmp_path / "none.yaml")
