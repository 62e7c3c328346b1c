"""All uses of private parts of Ray, one function or constant each.

`tests/sweep/test_ray_internals.py` has a test for each that says what breaks if Ray changes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import ray

from raymrc.scheduling.cluster_survey import ClusterStatus

HEAD_RESOURCE = "node:__internal_head__"
"""Ray gives 1.0 of this resource to the head node, and none to others."""


def draining_nodes() -> set[str]:
    """Ids of nodes that will be taken away, for example after a spot instance's notice."""
    return set(ray._private.state.state.get_draining_nodes() or ())


def had_process(actor: Any) -> bool:
    """Whether an actor has ever got a process, even if it is gone by now.

    Args:
        actor: its handle.
    """
    return bool((ray._private.state.actors(actor._actor_id.hex()) or {}).get("Pid"))


def job_placement_groups() -> set[str]:
    """Ids of the placement groups that this process's job has requested and that still exist."""
    from ray.core.generated import gcs_pb2

    messages: Any = gcs_pb2
    state: Any = ray._private.state.state
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    table = state._connect_and_get_accessor().get_placement_group_table()
    groups = [messages.PlacementGroupTableData.FromString(group) for group in table]
    removed = messages.PlacementGroupTableData.REMOVED
    return {
        group.placement_group_id.hex()
        for group in groups
        if group.creator_job_id == job and group.state != removed
    }


def remove_placement_groups(groups: Iterable[str]) -> None:
    """
    Args:
        groups: ids, as `job_placement_groups` returns them.
    """
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    for group in groups:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))


def job_runs_ray_train() -> bool:
    """Whether a controller of Ray Train, which requests placement groups, lives in this process's job."""
    job = ray.get_runtime_context().get_job_id()
    return any(
        actor["ActorClassName"] == "TrainController" and actor["State"] != "DEAD"
        for actor in ray._private.state.actors().values()
        if actor["JobID"] == job
    )


def read_cluster_status() -> ClusterStatus:
    """The state of the nodes and the autoscaler, read like Ray's own command line tools do."""
    from ray import _raylet
    from ray.core.generated import autoscaler_pb2

    raylet: Any = _raylet
    messages: Any = autoscaler_pb2
    client = raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
    reply = messages.GetClusterStatusReply()
    reply.ParseFromString(client.get_cluster_status(timeout_s=10))
    nodes = reply.cluster_resource_state.node_states
    scaling = reply.autoscaling_state
    refused = list(scaling.infeasible_resource_requests)
    for gang in scaling.infeasible_gang_resource_requests:
        refused += gang.requests
        refused += [r for selector in gang.bundle_selectors for r in selector.resource_requests]
    return ClusterStatus(
        nodes=tuple(dict(node.total_resources) for node in nodes),
        # `ray up` and KubeRay give each node a type, from which the autoscaler starts more. On other
        # clusters an autoscaler may run, too, but it adds nothing.
        can_grow=any(node.ray_node_type_name for node in nodes),
        refused=tuple(dict(request.resources_bundle) for request in refused),
    )


def record_metric(metric: Any, value: float, labels: Mapping[str, str]) -> None:
    """Record a value of a `ray.util.metrics` metric. The public `Counter.inc` refuses 0."""
    metric._record(value, dict(labels))


def metrics_port_option(port: int | None) -> dict[str, Any]:
    """The option of `ray.init` that sets the port at which Ray's agent exports metrics; None: any port."""
    return {"_metrics_export_port": port}
