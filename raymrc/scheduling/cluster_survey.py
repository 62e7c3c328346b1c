"""Decides which hosts lose their machines, and whether requested ones can ever start.

draining nodes, cluster status -> ClusterSurvey -> hosts to drain, the message that ends a hopeless run
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from raymrc.errors import RaymrcError
from raymrc.scheduling.fleet import Fleet
from raymrc.scheduling.orders import WorkerRange

AUTOSCALER_SECONDS, FIXED_SECONDS = 10.0, 60.0
"""After waiting this long, an autoscaler's refusal counts, and a cluster without an autoscaler is not
expected to get the missing devices."""

MAX_REFUSALS = 5
"""Consecutive surveys that have to agree that a request can never start; a single one may be unlucky."""


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """
    Args:
        nodes: total resources of each node.
        can_grow: whether an autoscaler can add nodes.
        refused: resource bundles that the autoscaler says it can never provide.
    """

    nodes: tuple[Mapping[str, float], ...]
    can_grow: bool
    refused: tuple[Mapping[str, float], ...] = ()


class ClusterSurvey:
    """
    Args:
        resources: Ray's resources of one device.
    """

    def __init__(self, fleet: Fleet, resources: Mapping[str, float]) -> None:
        self._fleet = fleet
        self._resources = resources
        self._draining: set[str] = set()
        self._refusals = 0

    def note_draining(self, nodes: Collection[str]) -> bool:
        """Note nodes that will be taken away; True if one is new."""
        is_new = not self._draining.issuperset(nodes)
        self._draining.update(nodes)
        return is_new

    def must_drain(self, nodes: Collection[str]) -> bool:
        """Whether a host on these nodes has to hand over its lanes and leave."""
        return not self._draining.isdisjoint(nodes)

    def longest_wait(self, now: float) -> tuple[int, float] | None:
        """Devices of the smallest request and seconds since the first, if the cluster's status has to judge.

        Worker ranges that have started once wait for a machine to return; while any host is running, its work
        is done first; and groups that may still shrink are given the time.
        """
        hosts = self._fleet.hosts.values()
        waiting = [host for host in hosts if host.workers not in self._fleet.started]
        is_running = any(host.is_running for host in hosts)
        if is_running or any(host.size > host.workers.min_devices for host in waiting):
            return None
        seconds = now - min((host.requested_at for host in waiting), default=now)
        if seconds < AUTOSCALER_SECONDS:
            return None
        return min(host.size for host in waiting), seconds

    def judge(self, wait: tuple[int, float] | None, status: ClusterStatus | None) -> str:
        """The message that ends the run because no request can ever start; "" while one may."""
        message = self._refusal(*wait, status) if wait is not None and status is not None else ""
        self._refusals = self._refusals + 1 if message else 0
        return message if self._refusals >= MAX_REFUSALS else ""

    def _refusal(self, devices: int, seconds: float, status: ClusterStatus) -> str:
        room = count_devices(status.nodes, self._resources)
        if room >= devices:
            return ""  # the devices are in use
        if status.can_grow:
            # The older of Ray's two autoscalers refuses nothing, and is waited for.
            is_hopeless = any(self._is_device(bundle) for bundle in status.refused)
            why = "the cluster's autoscaler says that it can never provide this"
        else:
            is_hopeless = seconds >= FIXED_SECONDS
            why = f"the cluster has room for {room} and no autoscaler"
        return _too_small(devices, self._resources, why) if is_hopeless else ""

    def _is_device(self, bundle: Mapping[str, float]) -> bool:
        """Whether a bundle asks for one of our devices; Ray adds resources of its own as markers."""
        return all(bundle.get(n, 0.0) == self._resources.get(n, 0.0) for n in ("CPU", "GPU"))


def count_devices(nodes: Collection[Mapping[str, float]], resources: Mapping[str, float]) -> int:
    """The number of devices that these nodes have room for. A device is on one node: halves do not add up.

    Args:
        nodes: resources of each node.
        resources: of one device.
    """
    needed = {name: amount for name, amount in resources.items() if amount}
    return sum(
        int(min((node.get(n, 0.0) / amount + 1e-9 for n, amount in needed.items()), default=1))
        for node in nodes
    )


def check_room(workers: WorkerRange, resources: Mapping[str, float], room: int) -> None:
    """
    Args:
        resources: of one device.
        room: the number of devices that a cluster without an autoscaler has.

    Raises:
        RaymrcError: there is no room for the smallest host or group of this worker range.
    """
    if room < workers.min_devices:
        why = f"the cluster has room for {room}"
        raise RaymrcError(_too_small(workers.min_devices, resources, why))


def _too_small(devices: int, resources: Mapping[str, float], why: str) -> str:
    device = " and ".join(f"{amount:g} {name}" for name, amount in resources.items())
    enlarge = "or enlarge the cluster (max_workers in cluster.yaml)"
    needs = f"a host needs {device}"
    lower = "lower resources.cpus_per_host and resources.gpus_per_host"
    if devices > 1:
        needs = f"a worker group needs at least {devices} times {device}"
        lower = "lower resources.workers"
    return f"{needs}, but {why}; {lower}, {enlarge}"
