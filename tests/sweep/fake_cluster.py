"""A cluster in which the test plays the hosts, so that the coordinator runs without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from ray.exceptions import ActorDiedError

from raymrc.scheduling.cluster_survey import ClusterStatus
from raymrc.scheduling.fleet import FleetHost


@dataclass(eq=False)
class FakeHost:
    is_ended: bool = False
    has_died: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> None:
        await self.gone.wait()
        if self.has_died:
            raise ActorDiedError

    def leave(self) -> None:
        self.gone.set()

    def die(self) -> None:
        self.has_died = True
        self.gone.set()

    def end(self) -> None:
        self.is_ended = True
        self.die()

    def had_process(self) -> bool:
        return False


@dataclass(eq=False)
class FakeCluster:
    """
    Args:
        fails: every host dies at once.
        draining: ids of nodes that will be taken away.
    """

    fails: bool = False
    draining: set[str] = field(default_factory=set)
    hosts: dict[str, FakeHost] = field(default_factory=dict)

    def launch(self, host: FleetHost) -> FakeHost:
        launched = self.hosts[host.name] = FakeHost()
        if self.fails:
            launched.die()
        return launched

    @property
    def ended(self) -> list[str]:
        return [name for name, host in self.hosts.items() if host.is_ended]

    def nodes(self) -> dict[str, Mapping[str, float]]:
        return {"node": {"CPU": 8.0}}

    def draining_nodes(self) -> set[str]:
        return self.draining

    def status(self) -> ClusterStatus:
        return ClusterStatus((), can_grow=True)
