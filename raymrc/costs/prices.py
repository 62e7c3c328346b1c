"""What machines cost by the hour: a dated table, ours or the user's.

YAML -> PriceTable;  "g5.xlarge=4" -> Cluster
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from raymrc.errors import SpecError, suggest
from raymrc.study.source import read_source

BUILT_IN_PRICES = Path(__file__).with_name("prices.yaml")

UTILISATION = 0.7
"""Of a device's watts, while it trains; an assumption."""


@dataclass(frozen=True, slots=True)
class DeviceType:
    """A GPU, or a CPU core.

    Args:
        kind: "cpu" or "gpu".
        peak_tflops: 10^12 floating-point operations a second, in what layers compute with.
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
        devices: how many of them.
        gib: memory of one GPU; of a CPU type, of the machine.
        on_demand, spot: US dollars for one hour of all of it.
    """

    device: str
    devices: int
    gib: float
    on_demand: float
    spot: float


@dataclass(frozen=True, slots=True)
class PriceTable:
    """
    Args:
        name: of the file, or that it is ours.
        date: of the prices, as it is written there.
        source: whose prices.
    """

    name: str
    date: str
    source: str
    devices: Mapping[str, DeviceType]
    instances: Mapping[str, Instance]

    def cheapest(self, kind: str, gib: float = 0.0) -> str:
        """Name of the instance whose devices of a kind cost least, on demand.

        Args:
            gib: that a GPU has, at least; where none has so much, of those with most.
        """
        of_kind = {n: i for n, i in self.instances.items() if self.devices[i.device].kind == kind}
        most = max((i.gib for i in of_kind.values()), default=0.0)
        enough = {
            n: i for n, i in of_kind.items() if kind == "cpu" or i.gib >= min(0.95 * gib, most)
        }
        return min(enough, key=lambda n: enough[n].on_demand / enough[n].devices, default="")


@dataclass(frozen=True, slots=True)
class Cluster:
    """Machines that a study is to run on.

    Args:
        machines: (name, instance, how many).
    """

    machines: tuple[tuple[str, Instance, int], ...]

    @property
    def devices(self) -> int:
        return sum(number * instance.devices for _, instance, number in self.machines)

    def hour_usd(self, *, spot: bool = False) -> float:
        """Of all machines."""
        return sum(n * (i.spot if spot else i.on_demand) for _, i, n in self.machines)

    def __str__(self) -> str:
        return ", ".join(f"{number} x {name}" for name, _, number in self.machines)


def read_prices(path: Path | None = None) -> PriceTable:
    """
    Args:
        path: of the user's own table; None: the one that comes with raymrc.

    Raises:
        SpecError: it cannot be read, or an entry is not one, in one sentence.
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
    return PriceTable(
        str(path or "the built-in table"), date, str(values.get("source") or ""), devices, instances
    )


def _entry(kind: type[Any], name: str, values: Any, wrong: Any) -> Any:
    """One line of a table as an object."""
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
    """What devices draw: an estimate, as nothing here measures it. The rest of a machine is not in it."""
    return device_seconds * UTILISATION * watts / 3.6e6


@cache
def watts_of(device: str) -> float:
    """One device under load, by the built-in table; 0 where it is not there.

    Args:
        device: "cpu" (one core of it), or a GPU's name as its driver says it.
    """
    devices = read_prices().devices
    if device == "cpu":
        return max(d.watts for d in devices.values() if d.kind == "cpu")
    words = set(re.findall(r"\w+", device))
    return next((d.watts for name, d in devices.items() if name in words), 0.0)


def read_cluster(given: Sequence[str], table: PriceTable) -> Cluster:
    """
    Args:
        given: each "TYPE=N", or "TYPE" for one.

    Raises:
        SpecError: a type that the table does not have, or no number of them; or both GPUs and CPUs.
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
