"""Hourly prices of machines, from a dated table: the built-in one or the user's.

YAML -> PriceTable;  "g5.xlarge=4" -> Cluster;  study + table -> DevicePrice
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymrc.errors import SpecError, suggest
from raymrc.planning.devices import GIB
from raymrc.planning.plan import device_of
from raymrc.study.source import read_source

if TYPE_CHECKING:
    from raymrc.study.spec import Spec

BUILT_IN_PRICES = Path(__file__).with_name("prices.yaml")

UTILISATION = 0.7
"""Assumed share of its watts that a device draws while it trains."""


@dataclass(frozen=True, slots=True)
class DeviceType:
    """A GPU, or a CPU core.

    Args:
        kind: "cpu" or "gpu".
        peak_tflops: 10^12 floating-point operations per second, in the number format of the layers.
        watts: under load.
    """

    kind: str
    peak_tflops: float
    watts: float


@dataclass(frozen=True, slots=True)
class Instance:
    """A type of machine.

    Args:
        device: name of its `DeviceType`.
        devices: number of devices.
        gib: memory of one GPU, or of the whole machine for a CPU type.
        on_demand, spot: US dollars per hour of the machine.
    """

    device: str
    devices: int
    gib: float
    on_demand: float
    spot: float


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Devices and instance types with their prices.

    Args:
        name: path of the file, or "the built-in table".
        date: as written in the file.
    """

    name: str
    date: str
    devices: Mapping[str, DeviceType]
    instances: Mapping[str, Instance]

    def cheapest(self, kind: str, gib: float = 0.0) -> str:
        """Name of the instance type with the lowest price per device, on demand; "" if there is none.

        Args:
            gib: smallest memory of a GPU. If no type has that much, those with most memory qualify.
        """
        of_kind = {n: i for n, i in self.instances.items() if self.devices[i.device].kind == kind}
        largest = max((i.gib for i in of_kind.values()), default=0.0)
        enough = {
            n: i for n, i in of_kind.items() if kind == "cpu" or i.gib >= min(0.95 * gib, largest)
        }
        return min(enough, key=lambda n: enough[n].on_demand / enough[n].devices, default="")


@dataclass(frozen=True, slots=True)
class Cluster:
    """Machines to run a study on.

    Args:
        machines: (name, instance, number of them).
    """

    machines: tuple[tuple[str, Instance, int], ...]

    @property
    def devices(self) -> int:
        return sum(number * instance.devices for _, instance, number in self.machines)

    def hour_usd(self, *, spot: bool = False) -> float:
        """Price of all machines per hour."""
        return sum(n * (i.spot if spot else i.on_demand) for _, i, n in self.machines)

    def __str__(self) -> str:
        return ", ".join(f"{number} x {name}" for name, _, number in self.machines)


def read_prices(path: Path | None = None) -> PriceTable:
    """Read a price table.

    Args:
        path: the user's own table; None reads the built-in one.

    Raises:
        SpecError: the file cannot be read, or an entry is wrong.
    """
    place = path or BUILT_IN_PRICES
    source = read_source(place)
    if source.problems:
        raise source.error(source.problems)
    values = source.values

    def wrong(sentence: str) -> SpecError:
        return SpecError(f"{place}: {sentence}")

    for name in ("devices", "instances"):
        if not isinstance(values.get(name), dict) or not values[name]:
            raise wrong(f"a price table has '{name}', a mapping of names; see {BUILT_IN_PRICES}")
    devices = {n: _entry(DeviceType, n, v, wrong) for n, v in values["devices"].items()}
    instances = {n: _entry(Instance, n, v, wrong) for n, v in values["instances"].items()}
    for name, device in devices.items():
        if device.kind not in ("cpu", "gpu"):
            raise wrong(f"{name}: kind is cpu or gpu, not {device.kind!r}")
    for name, instance in instances.items():
        if instance.device not in devices:
            near = suggest(str(instance.device), devices)
            raise wrong(f"{name}: there is no device '{instance.device}'{near}")
    date = str(values.get("date") or "an unknown day")
    return PriceTable(str(path or "the built-in table"), date, devices, instances)


def _entry(kind: type[Any], name: str, values: Any, wrong: Any) -> Any:
    """One entry of a table as a `DeviceType` or an `Instance`."""
    wanted = {field.name: field.type for field in fields(kind)}
    if not isinstance(values, dict) or set(values) != set(wanted):
        raise wrong(f"{name} has {', '.join(wanted)}, and nothing else")
    for field, value in values.items():
        if wanted[field] == "str":
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_whole = wanted[field] != "int" or isinstance(value, int)
        if not (is_number and is_whole and math.isfinite(value) and value >= 0) or (
            field != "spot" and field != "on_demand" and value == 0
        ):
            raise wrong(f"{name}: {field} is a number above 0, not {value!r}")
    return kind(**values)


def energy_kwh(device_seconds: float, watts: float) -> float:
    """Estimated energy drawn by devices, without the rest of the machine. raymrc does not measure energy."""
    return device_seconds * UTILISATION * watts / 3.6e6


@cache
def watts_of(device: str) -> float:
    """Watts of one device under load by the built-in table; 0 if the table lacks the device.

    Args:
        device: "cpu" (one core), or a GPU's name as its driver reports it.
    """
    devices = read_prices().devices
    if device == "cpu":
        return max(d.watts for d in devices.values() if d.kind == "cpu")
    words = set(re.findall(r"\w+", device))
    return next((d.watts for name, d in devices.items() if name in words), 0.0)


def read_cluster(given: Sequence[str], table: PriceTable) -> Cluster:
    """Read the values of `--instances`.

    Args:
        given: each "TYPE=N", or "TYPE" for one machine.

    Raises:
        SpecError: the table lacks a type, a number is wrong, or device types are mixed.
    """
    machines = []
    for text in given:
        name, equals, number = text.partition("=")
        if name not in table.instances:
            raise SpecError(
                f"--instances {text}: {table.name} has no instance type "
                f"'{name}'{suggest(name, table.instances)}"
            )
        if equals and not (number.isdigit() and int(number) > 0):
            raise SpecError(f"--instances {text}: give TYPE=N with a whole number from 1 on")
        machines.append((name, table.instances[name], int(number) if equals else 1))
    kinds = {instance.device for _, instance, _ in machines}
    if len(kinds) > 1:
        raise SpecError(f"--instances: devices of one type alone, not {', '.join(sorted(kinds))}")
    return Cluster(tuple(machines))


@dataclass(frozen=True, slots=True)
class DevicePrice:
    """Price of one device of a study.

    Args:
        hour_usd: US dollars per hour.
        source: where the price comes from, in words.
        type: its entry in the price table; None without a table.
    """

    hour_usd: float
    source: str
    type: DeviceType | None = None

    @property
    def watts(self) -> float:
        return self.type.watts if self.type is not None else 0.0

    @property
    def peak_flops(self) -> float | None:
        """Operations per second of a GPU; None if unknown."""
        if self.type is None or self.type.kind != "gpu":
            return None
        return self.type.peak_tflops * 1e12


def find_device_price(
    spec: Spec, kind: str, table: PriceTable | None, cluster: Cluster | None = None
) -> DevicePrice:
    """Price of the devices that a study trains on: of the cluster, else the study's, else the cheapest that
    fits.

    Args:
        kind: "cpu" or "gpu".

    Raises:
        SpecError: the cluster has devices of the other kind.
    """
    stated = DevicePrice(spec.prices.device_hour_usd, "the study's own")
    if table is None:
        return stated
    dated = f"{table.name}, of {table.date}"
    if cluster is not None:
        name, instance, _ = cluster.machines[0]
        device = table.devices[instance.device]
        if device.kind != kind:
            wants, has = ("a GPU", "none") if kind == "gpu" else ("no GPU", "them")
            raise spec.error(
                ("resources",),
                f"the study asks for {wants} (resources.gpus_per_host), and {name} is priced for "
                f"{has}; set one or the other",
            )
        return DevicePrice(cluster.hour_usd() / cluster.devices, f"on demand, {dated}", device)
    name = table.cheapest(kind, device_of(spec.resources).total_bytes / GIB)
    if not name:
        return stated
    instance = table.instances[name]
    device = table.devices[instance.device]
    if stated.hour_usd:
        return DevicePrice(stated.hour_usd, "the study's own (prices.device_hour_usd)", device)
    return DevicePrice(instance.on_demand / instance.devices, f"{name} on demand, {dated}", device)
