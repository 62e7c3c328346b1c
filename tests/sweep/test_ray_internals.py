"""Promise: the private parts of Ray that we use still do what we use them for. Each test says what breaks
otherwise."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from raymrc.sweep.ray_internals import (
    HEAD_RESOURCE,
    draining_nodes,
    fit_until_cancelled,
    had_process,
    is_alive,
    metrics_port_option,
    read_cluster_status,
    record_metric,
)
from tests.sweep.making import warn_node
from tests.sweep.ray_warnings import RAY_WARNINGS
from tests.sweep.rehearsal import free_port

pytestmark = [pytest.mark.ray, *RAY_WARNINGS]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head with one core, and a machine with two."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "dashboard_port": free_port()}  # another cluster may run beside it
    made = Cluster(initialize_head=True, head_node_args=head)
    made.add_node(num_cpus=2)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def holds(is_true: Callable[[], bool], seconds: float = 60.0) -> bool:
    until = time.monotonic() + seconds
    while not is_true() and time.monotonic() < until:
        time.sleep(0.1)
    return is_true()


def test_an_actor_has_had_a_process_if_it_was_ever_scheduled(cluster):
    """Otherwise hosts that are killed before their first contact would be charged wrongly."""
    import ray

    @ray.remote
    class Actor:
        pass

    placed = Actor.options(num_cpus=1).remote()
    waiting = Actor.options(num_cpus=99).remote()
    assert holds(lambda: had_process(placed))
    assert not had_process(waiting)
    ray.kill(placed)
    assert had_process(placed), "it is gone, and it had one"


def test_a_cancelled_trainer_leaves_no_controller_and_no_placement_group(cluster):
    """Otherwise a worker group that is cancelled as it starts would hold its devices."""
    import ray
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    from ray.util.placement_group import placement_group

    assert list(inspect.signature(DataParallelTrainer._register_sigint_handler).parameters) == [
        "self",
        "controller",
    ]

    @ray.remote
    class Controller:
        def request(self) -> str:
            groups = placement_group([{"CPU": 1}]), placement_group([{"CPU": 99}])
            assert groups[0].wait(60)
            return str([group.id.hex() for group in groups])

    class Trainer:
        def _register_sigint_handler(self, controller: Any) -> None:
            self.registered = controller

        def fit(self) -> None:
            controller = Controller.remote()
            self._register_sigint_handler(controller)
            self.requested = ray.get(controller.request.remote())
            raise KeyboardInterrupt

    other = placement_group([{"CPU": 1}])
    assert other.wait(60)
    trainer = Trainer()
    with pytest.raises(KeyboardInterrupt):
        fit_until_cancelled(trainer)
    assert not is_alive(trainer.registered)
    table = ray.util.placement_group_table()
    for group, row in table.items():
        assert (row["state"] == "REMOVED") == (group in trainer.requested), row
    assert len(table) == 3
    ray.util.remove_placement_group(other)
    assert holds(lambda: ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"])


def test_the_status_names_the_resources_of_each_node(cluster):
    """Otherwise a study on a cluster that is too small would wait for ever, without a message."""
    status = read_cluster_status()
    assert sorted(node["CPU"] for node in status.nodes) == [1.0, 2.0]
    assert not status.can_grow and status.refused == ()


def test_the_status_says_what_an_autoscaler_refuses(cluster, monkeypatch):
    """Otherwise a study would wait for ever for devices that a growing cluster can never have."""
    from ray import _raylet
    from ray.core.generated import autoscaler_pb2

    reply = autoscaler_pb2.GetClusterStatusReply()
    reply.cluster_resource_state.node_states.add(ray_node_type_name="worker")
    request = reply.autoscaling_state.infeasible_resource_requests.add()
    request.resources_bundle["GPU"] = 1.0
    gang = reply.autoscaling_state.infeasible_gang_resource_requests.add()
    gang.requests.add().resources_bundle["GPU"] = 2.0
    selector = gang.bundle_selectors.add()
    selector.resource_requests.add().resources_bundle["GPU"] = 3.0

    class Client:
        def __init__(self, address: str) -> None:
            assert address

        def get_cluster_status(self, timeout_s: float) -> bytes:
            return bytes(reply.SerializeToString())

    monkeypatch.setattr(_raylet, "GcsClient", Client)
    status = read_cluster_status()
    assert status.can_grow
    assert status.refused == ({"GPU": 1.0}, {"GPU": 2.0}, {"GPU": 3.0})


def test_only_the_head_has_the_head_resource(cluster):
    """Otherwise trials would be scheduled nowhere, or on machines that a spot notice takes away."""
    import ray

    nodes = [node["Resources"].get(HEAD_RESOURCE) for node in ray.nodes()]
    assert sorted(nodes, key=bool) == [None, 1.0]


def test_a_metric_accepts_zero(cluster):
    """Otherwise counters would not start at 0, and Prometheus would miss their first increase."""
    from ray.util.metrics import Counter, Gauge, Histogram

    for metric in (
        Counter("contract_counter", "", ("study",)),
        Gauge("contract_gauge", "", ("study",)),
        Histogram("contract_histogram", "", [1.0], ("study",)),
    ):
        record_metric(metric, 0, {"study": "s"})
    with pytest.raises(ValueError, match="must be >0"):
        Counter("contract_counter", "", ("study",)).inc(0, {"study": "s"})


def test_ray_accepts_the_option_for_the_metrics_port():
    """Otherwise `--metrics-port` would have no effect."""
    import ray

    (name,) = metrics_port_option(9464)
    assert f'"{name}"' in inspect.getsource(inspect.unwrap(ray.init))


def test_a_node_with_a_spot_notice_is_draining(cluster):
    """Otherwise hosts on spot instances would lose their lanes' progress since the last epoch."""
    import ray

    @ray.remote(num_cpus=2)
    class Busy:
        def node(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    assert draining_nodes() == set()
    busy = Busy.remote()  # an idle node would be gone at once
    node = next(iter(cluster.worker_nodes)).node_id
    assert ray.get(busy.node.remote()) == node
    warn_node(cluster.address, node, 300.0)
    assert holds(lambda: draining_nodes() == {node})
