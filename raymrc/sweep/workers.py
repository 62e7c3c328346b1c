"""Worker groups: Ray Train processes that hold one sharded model together and train one fold-run after
another.

    coordinator -> run_group (a task on its machine) -> Ray Train's controller -> Member on every device
                <------------------- exchange, by the first member -----------------'

A group stays as long as there is work for it, because starting one takes 8 to 16 seconds and the loading of
the model. If one of its processes is lost the group ends, and the coordinator starts another one. Ray Train's
own elasticity is not used: it requests all groups together at their largest size, which the autoscaler
refuses if that is too much, and it ends a group that could grow in the middle of an epoch.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import ray

from raymrc.errors import RaymrcError
from raymrc.ledger.record import Epoch, LaneEvent
from raymrc.scheduling.orders import HostReport, Order
from raymrc.sweep.hosts import Host, HostTerms, Shared
from raymrc.sweep.metrics import LaneMetrics, MetricPublisher
from raymrc.sweep.ray_internals import fit_until_cancelled

if TYPE_CHECKING:
    from raymrc.training.sharded import Ranks, Saving

SHARDS = ".shards"
"""Ending of the folder beside a checkpoint that holds what each process has written of it."""


def on_this_node() -> dict[str, Any]:
    """Options of actors and tasks that only wait and pass on: on this machine no spot notice takes them."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return {"num_cpus": 0, "scheduling_strategy": strategy}


def run_group(
    name: str, size: int, coordinator: list[Any], shared: Shared, terms: HostTerms
) -> None:
    """One run of Ray Train on `size` devices, for as long as the group stays."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = terms.resources
    no_restarts: Any = {"max_failures": 0, "max_preemption_failures": 0}
    work = {"name": name, "coordinator": coordinator, "shared": shared, "terms": terms}
    trainer = TorchTrainer(
        _run_member,
        train_loop_config=work,
        scaling_config=ScalingConfig(
            num_workers=size,
            use_gpu="GPU" in resources.per_device,
            resources_per_worker=resources.per_device,
            # Close together, because a layer is sent around each time it is used.
            placement_strategy="STRICT_PACK" if resources.together else "PACK",
        ),
        torch_config=TorchConfig(backend="nccl" if resources.uses_cuda else "gloo"),
        run_config=RunConfig(
            name=f"{name}-{secrets.token_hex(4)}",
            storage_path=terms.scratch,
            failure_config=FailureConfig(**no_restarts),
        ),
    )
    fit_until_cancelled(trainer)


def _run_member(work: dict[str, Any]) -> None:
    """Ray Train runs this in every process of a group."""
    from ray.train.torch import get_device

    from raymrc.training.sharded import Ranks

    terms: HostTerms = work["terms"]
    with suppress(OSError):  # Ray Train has changed the folder; a node may not have this one
        os.chdir(terms.folder)
    ranks = Ranks.of_group(get_device() if terms.resources.uses_cuda else "cpu")
    Member(work["shared"], terms, ranks).run(work["name"], work["coordinator"][0])


class Member(Host):
    """One of several processes that hold one model together.

    The first one talks to the coordinator and looks at the clock; all of them do what it broadcasts.
    """

    def __init__(self, shared: Shared, terms: HostTerms, ranks: Ranks) -> None:
        super().__init__(shared, terms)
        self._ranks = ranks
        if not self._leads:  # the first one publishes for all
            self._metrics = LaneMetrics(MetricPublisher())
        self._writing: tuple[str, str, Saving] | None = None

    def _nodes(self) -> tuple[str, ...]:
        gathered = self._ranks.gather(super()._nodes())
        return tuple(dict.fromkeys(node for nodes in gathered for node in nodes))

    def _sees_storage(self) -> bool:
        return all(self._ranks.gather(super()._sees_storage()))

    def _exchange(self, contact: Callable[..., Any], reports: list[HostReport]) -> Order:
        order = None
        if self._leads:
            order = super()._exchange(contact, [*reports, *self._written()])
        answer: Order = self._ranks.broadcast(order)
        return answer

    def _goes_on(self, has_time: bool) -> bool:
        answer: bool = self._ranks.broadcast(super()._goes_on(has_time))
        return answer

    def _report(self, event: LaneEvent) -> HostReport:
        if not isinstance(event.what, Epoch):
            self._finish_writing()
        return super()._report(event)

    # --- checkpoints --------------------------------------------------------------------------------

    def _save(self, key: str) -> str | None:
        """Start saving; a complete checkpoint is reported later."""
        is_free = self._writing is None or self._writing[2].is_done or not self._save_seconds
        if self._ranks.broadcast(is_free and self._is_due(self._lanes[key])):
            self._finish_writing()
            self._start_writing(key)
        return None

    def _write(self, key: str) -> str:
        self._finish_writing()
        self._start_writing(key)
        self._finish_writing()
        checkpoint = self._lanes[key].checkpoint
        if checkpoint is None:
            raise OSError("the checkpoint could not be written")
        return checkpoint

    def _start_writing(self, key: str) -> None:
        began, lane = time.monotonic(), self._lanes[key]
        name = self._ranks.broadcast(self._next_name(key))
        pool: Any = self._pool
        self._writing = (key, name, pool.start_saving(key, self._files.place(name + SHARDS)))
        lane.saved_at = time.monotonic()
        lane.saving_seconds = lane.saved_at - began

    def _written(self) -> list[HostReport]:
        """The report of a checkpoint that is complete by now."""
        if self._writing is None or not self._writing[2].is_done:
            return []
        key = self._writing[0]
        name = self._finish_writing()
        return [] if name is None else [HostReport(key, checkpoint=name)]

    def _finish_writing(self) -> str | None:
        """Wait until all processes have written.

        Returns:
            The checkpoint's name; None if nothing was being written, or it could not be: the next epoch
            tries again.
        """
        if self._writing is None:
            return None
        (key, name, saving), self._writing = self._writing, None
        try:
            saving.wait()
            if self._leads:
                self._files.write(name, saving.state, replace=True)
        except (OSError, RaymrcError):
            return None
        if key in self._lanes:
            self._replace_checkpoint(key, name)
        return name

    def _remove(self, checkpoint: str) -> None:
        super()._remove(checkpoint)
        self._files.remove_all(checkpoint + SHARDS)
