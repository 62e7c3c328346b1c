"""The cluster as the coordinator sees it: it starts hosts and worker groups, and has nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray

from raymrc.scheduling.fleet import FleetHost
from raymrc.scheduling.orders import SINGLE_DEVICE
from raymrc.sweep.hosts import Host, HostTerms, Shared
from raymrc.sweep.ray_internals import draining_nodes, had_process, read_cluster_status
from raymrc.sweep.workers import on_this_node, run_group


class RayGroup:
    """A worker group: a task that runs Ray Train."""

    def __init__(self, running: Any) -> None:
        self._running = running

    async def wait(self) -> None:
        """Wait until the host or group has left.

        Raises:
            RayError: it died.
        """
        await self._running

    def end(self) -> None:
        """End it at once; see `fit_until_cancelled`."""
        ray.cancel(self._running)

    def had_process(self) -> bool:
        """Whether it has ever held its devices, as far as that is known; may block."""
        return False


class RayHost(RayGroup):
    """A host on one device: an actor, and its call that runs until it leaves."""

    def __init__(self, actor: Any, running: Any) -> None:
        super().__init__(running)
        self._actor = actor

    async def wait(self) -> None:
        try:
            await super().wait()
        finally:
            # A process with torch takes its time to exit by itself, and holds its device meanwhile.
            self.end()

    def end(self) -> None:
        ray.kill(self._actor)

    def had_process(self) -> bool:
        return had_process(self._actor)


def alive_nodes() -> dict[str, Mapping[str, float]]:
    """Total resources of each node that is alive, by id."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


class RayCluster:
    nodes = staticmethod(alive_nodes)
    draining_nodes = staticmethod(draining_nodes)
    status = staticmethod(read_cluster_status)

    def __init__(self, shared: Shared, terms: HostTerms) -> None:
        self._shared = shared
        self._terms = terms

    def launch(self, host: FleetHost) -> RayGroup:
        """Start a host that will contact the coordinator, whose actor this process is."""
        coordinator = ray.get_runtime_context().current_actor
        if host.workers != SINGLE_DEVICE:
            # A task on this machine, which ends when the group does.
            task = ray.remote(run_group).options(**on_this_node(), max_retries=0)
            work = (host.name, host.size, [coordinator], self._shared, self._terms)
            return RayGroup(task.remote(*work))
        # An actor has a process of its own, in which it can set torch's number of threads.
        resources = self._terms.resources
        options = {"num_cpus": resources.cpus_per_host, "num_gpus": resources.gpus_per_host}
        actor: Any = ray.remote(Host).options(**options).remote(self._shared, self._terms)
        return RayHost(actor, actor.run.remote(host.name, coordinator))
