"""All uses of private parts of Ray, one function or constant each.

`tests/sweep/test_ray_internals.py` has a test for each that says what breaks if Ray changes it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray

from raymrc.scheduling.cluster_survey import ClusterStatus

HEAD_RESOURCE = "node:__internal_head__"
"""Ray gives 1.0 of this resource to the head node, and none to others."""

DEATH_SECONDS = 5.0
"""Time for an actor's process to be gone."""


def draining_nodes() -> set[str]:
    """Ids of nodes that will be taken away, for example after a spot instance's notice."""
    return set(ray._private.state.state.get_draining_nodes() or ())


def had_process(actor: Any) -> bool:
    """Whether an actor has ever got a process, even if it is gone by now.

    Args:
        actor: its handle.
    """
    return bool(_row_of(actor).get("Pid"))


def fit_until_cancelled(trainer: Any) -> None:
    """Run a trainer of Ray Train. If it fails, or this task is cancelled, end the run at once and free its
    devices.

    Ray Train's own abort waits for the start of a worker group, and its cleaner learns of the group's
    placement group only then. So a group that is cancelled as it starts would go on starting, and if it is
    then killed, its devices would be held until the driver leaves the cluster.
    """
    controllers: list[Any] = []
    register = trainer._register_sigint_handler

    def note_controller(controller: Any) -> None:
        controllers.append(controller)
        register(controller)

    trainer._register_sigint_handler = note_controller
    try:
        trainer.fit()
    except BaseException:
        for controller in controllers:
            ray.kill(controller)
            until = time.monotonic() + DEATH_SECONDS
            while is_alive(controller) and time.monotonic() < until:
                time.sleep(0.05)
            remove_placement_groups(controller)
        raise


def is_alive(actor: Any) -> bool:
    """Whether an actor's process may still do something.

    Args:
        actor: its handle.
    """
    return _row_of(actor).get("State") != "DEAD"


def _row_of(actor: Any) -> Mapping[str, Any]:
    """What Ray's table of actors says of an actor; empty if it does not know the actor."""
    return ray._private.state.actors(actor._actor_id.hex()) or {}


def remove_placement_groups(actor: Any) -> None:
    """Remove all placement groups that an actor has requested.

    Args:
        actor: its handle.
    """
    from ray.core.generated import gcs_pb2
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    messages: Any = gcs_pb2
    state: Any = ray._private.state.state
    for row in state._connect_and_get_accessor().get_placement_group_table():
        group = messages.PlacementGroupTableData.FromString(row)
        if group.creator_actor_id == actor._actor_id.binary():
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


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
