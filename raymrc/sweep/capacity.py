"""What a cluster can have: what is there, what its autoscaler says, and what will be taken away.

The autoscaler's state is read as its own tools read it, by a client that Ray does not call public; pinned by
`tests/sweep/test_rehearsal.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import ray

from raymrc.errors import RaymrcError
from raymrc.scheduling.work_queue import WorkerRange

if TYPE_CHECKING:
    from raymrc.sweep.hosts import HostTerms

AUTOSCALER_SECONDS, FIXED_SECONDS = 10.0, 60.0
"""After so long of waiting an autoscaler's verdict counts, and a cluster without one is not expected to
get what it lacks."""


def draining_nodes() -> set[str]:
    """Ids of nodes that will be taken away, as after a spot instance's notice."""
    return set(ray._private.state.state.get_draining_nodes() or ())


def had_process(actor: str) -> bool:
    """Whether an actor was ever given a process, also when it is gone.

    Args:
        actor: its id, in hexadecimal digits.
    """
    return bool((ray._private.state.actors(actor) or {}).get("Pid"))


def can_grow() -> bool:
    """Whether an autoscaler is at work on the cluster that this process is connected to.

    `ray up` and KubeRay give every node a type, from which the autoscaler makes more. On other
    clusters one runs too, and only looks.
    """
    return _grows(_status())


def _grows(status: Any) -> bool:
    return any(node.ray_node_type_name for node in status.cluster_resource_state.node_states)


def why_never(least: int, terms: HostTerms, waited: float) -> str:
    """Why a host or a group, of a kind that has never started, will not; "" while it may.

    Args:
        least: devices that it is of.
        waited: seconds that it has been asked for.
    """
    if waited < AUTOSCALER_SECONDS:
        return ""
    status = _status()
    asked = status.autoscaling_state
    wanted = {name: float(amount) for name, amount in terms.resources.items()}
    totals = [dict(n.total_resources) for n in status.cluster_resource_state.node_states]
    room = count_devices(totals, wanted)
    if room >= least:
        return ""  # others have it now
    if _grows(status):
        # The older of Ray's two autoscalers gives no verdict, and is waited for.
        refused = [dict(r.resources_bundle) for r in asked.infeasible_resource_requests]
        for gang in asked.infeasible_gang_resource_requests:
            refused += [dict(r.resources_bundle) for r in _requests(gang)]
        if any(_is_like(bundle, wanted) for bundle in refused):
            return _sentence(least, terms, "which its autoscaler says it can never have")
        return ""
    if waited < FIXED_SECONDS:
        return ""
    return _sentence(least, terms, f"there is room for {room}, and no autoscaler to add to it")


def _requests(gang: Any) -> list[Any]:
    return [*gang.requests, *(r for s in gang.bundle_selectors for r in s.resource_requests)]


def _is_like(bundle: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    """The same devices; what else a bundle names are Ray's own marks."""
    return all(bundle.get(name, 0.0) == wanted.get(name, 0.0) for name in ("CPU", "GPU"))


def count_devices(nodes: Collection[Mapping[str, float]], wanted: Mapping[str, float]) -> int:
    """How many hosts these nodes have room for. A host is on one node, so halves do not add up."""
    return sum(
        int(
            min(
                (node.get(n, 0.0) / amount + 1e-9 for n, amount in wanted.items() if amount),
                default=1,
            )
        )
        for node in nodes
    )


def check_crew(crew: WorkerRange, terms: HostTerms, room: int) -> None:
    """
    Raises:
        RaymrcError: a host or a group of this crew has no room, and there is no autoscaler to make some.
    """
    if room < crew[0]:
        raise RaymrcError(_sentence(crew[0], terms, f"there is room for {room}"))


def _sentence(least: int, terms: HostTerms, why: str) -> str:
    device = " and ".join(f"{amount:g} {name}" for name, amount in terms.resources.items())
    if least > 1:
        return (
            f"a worker group wants at least {least} times {device} of this cluster: {why}; set "
            "resources.workers to fewer, or give the cluster more (max_workers in cluster.yaml)"
        )
    return (
        f"a host wants {device} of this cluster: {why}; set resources.cpus_per_host and "
        "resources.gpus_per_host to less, or give the cluster more (max_workers in cluster.yaml)"
    )


def _status() -> Any:
    from ray import _raylet
    from ray.core.generated import autoscaler_pb2

    raylet: Any = _raylet
    messages: Any = autoscaler_pb2
    client = raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
    reply = messages.GetClusterStatusReply()
    reply.ParseFromString(client.get_cluster_status(timeout_s=10))
    return reply
