"""Worker groups: Ray Train's processes that hold one sharded model together and take one fold-run after
another.

    Reception -> start_group (a task beside it) -> Ray Train's controller -> Member on every device
              <------------------ exchange, by the first of them ------------------'

A group stands as long as there is work for it: starting one costs 8 to 16 seconds and the model's load.
Where one of its processes is lost the group ends, and the reception starts another one. Ray Train's own
elasticity is not used: it asks the autoscaler for all groups together at their largest, which refuses them
all where that is too much, and it ends a group that could grow in the middle of an epoch.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import ray

from raymrc.configuration import Backbone
from raymrc.errors import RaymrcError
from raymrc.ledger.record import Epoch, LaneEvent
from raymrc.scheduling.work_queue import HostReport, Order
from raymrc.sweep.hosts import Host, HostTerms, LanePool, OpenPool, Shared
from raymrc.sweep.metrics import LaneMetrics, MetricPublisher

if TYPE_CHECKING:
    from raymrc.training.sharded import Ranks, Saving

SHARDS = ".shards"
"""Behind a saved lane's name, the folder with what each process has written of it."""


def start_group(
    name: str,
    size: int,
    reception: Any,
    shared: Shared,
    terms: HostTerms,
) -> Any:
    """
    Args:
        size: in devices.

    Returns:
        The reference of a task on this machine, which ends when the group does.
    """
    task = ray.remote(_keep_group).options(**on_this_node(), max_retries=0)
    return task.remote(name, size, [reception], shared, terms)


def on_this_node() -> dict[str, Any]:
    """Options of what only waits and passes on: it stays where no spot instance takes it away."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return {"num_cpus": 0, "scheduling_strategy": here}


def end_group(running: Any) -> None:
    """Ray Train is interrupted, so that it gives back what it holds or has asked for."""
    ray.cancel(running)


def _keep_group(
    name: str,
    size: int,
    reception: list[Any],
    shared: Shared,
    terms: HostTerms,
) -> None:
    """One Ray Train run, as long as the group stands."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    no_restarts: Any = {"max_failures": 0, "max_preemption_failures": 0}
    work = {"name": name, "reception": reception, "shared": shared}
    TorchTrainer(
        _be_member,
        train_loop_config={**work, "terms": terms},
        scaling_config=ScalingConfig(
            num_workers=size,
            use_gpu="GPU" in terms.resources,
            resources_per_worker=terms.resources,
            # Near each other: a layer is sent around for every use of it.
            placement_strategy="STRICT_PACK" if terms.together else "PACK",
        ),
        torch_config=TorchConfig(backend="nccl" if terms.device == "cuda" else "gloo"),
        run_config=RunConfig(
            name=f"{name}-{secrets.token_hex(4)}",
            storage_path=terms.scratch,
            failure_config=FailureConfig(**no_restarts),
        ),
    ).fit()


def _be_member(work: dict[str, Any]) -> None:
    """What Ray Train runs in every process of a group."""
    import torch

    from raymrc.training.sharded import Ranks

    terms: HostTerms = work["terms"]
    with suppress(OSError):  # Ray Train has moved it; a node may not have this folder
        os.chdir(terms.folder)
    device = torch.device("cpu")
    if terms.device == "cuda":
        from ray.train.torch import get_device

        device = get_device()
        torch.cuda.set_device(device)
    ranks = Ranks.of_group(device)
    Member(work["shared"], terms, ranks).run(work["name"], work["reception"][0])


class Member(Host):
    """A host that is one of several processes with one model.

    The first of them talks with the reception and looks at the clock; all do what it hears.
    """

    def __init__(self, shared: Shared, terms: HostTerms, ranks: Ranks) -> None:
        super().__init__(shared, terms)
        self._ranks = ranks
        if not self._leads:  # all of them train on the same
            self._lane_metrics = LaneMetrics(MetricPublisher())
        self._writing: tuple[str, str, Saving] | None = None

    @property
    def _leads(self) -> bool:
        return self._ranks.rank == 0

    def _nodes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(n for of in self._ranks.gather(super()._nodes()) for n in of))

    def _sees_storage(self) -> bool:
        return all(self._ranks.gather(super()._sees_storage()))

    def _ask(self, reception: Any, me: tuple[Any, ...], reports: Sequence[HostReport]) -> Order:
        order = None
        if self._leads:
            reports = [*reports, *self._written()]
            order = ray.get(reception.exchange.remote(*me, reports))
        answer: Order = self._ranks.hear(order)
        return answer

    def _goes_on(self, reports: Sequence[HostReport], until: float) -> bool:
        answer: bool = self._ranks.hear(super()._goes_on(reports, until))
        return answer

    def _load(self, open_pool: OpenPool, data: Any, backbone: Backbone) -> LanePool:
        return open_pool(backbone, data, self._ranks)

    def _report(self, event: LaneEvent) -> HostReport:
        if not isinstance(event.what, Epoch):
            self._finish_writing()
        return super()._report(event)

    # --- saving -----------------------------------------------------------------------------------

    def _save(self, key: str) -> str | None:
        """Begins to; that it is whole is reported later."""
        is_free = self._writing is None or self._writing[2].is_done or not self._terms.save_seconds
        if self._ranks.hear(is_free and self._is_due(key)):
            self._finish_writing()
            self._begin_writing(key)
        return None

    def _write(self, key: str) -> str:
        self._finish_writing()
        self._begin_writing(key)
        self._finish_writing()
        if key not in self._saved:
            raise OSError("nothing of it could be written")
        return self._saved[key]

    def _begin_writing(self, key: str) -> None:
        began = time.monotonic()
        name = self._ranks.hear(self._next_name(key))
        pool: Any = self._pool
        self._writing = (key, name, pool.start_saving(key, self._files.place(name + SHARDS)))
        self._saved_at[key] = time.monotonic()
        self._saving_took[key] = self._saved_at[key] - began

    def _written(self) -> list[HostReport]:
        """What is whole by now."""
        if self._writing is None or not self._writing[2].is_done:
            return []
        key = self._writing[0]
        name = self._finish_writing()
        return [] if name is None else [HostReport(key, saved=name)]

    def _finish_writing(self) -> str | None:
        """Waits until all processes have written, and says under which name; None where there is nothing
        to wait for, or it could not be written. That is not missed: the next epoch tries again."""
        if self._writing is None:
            return None
        (key, name, saving), self._writing = self._writing, None
        try:
            saving.wait()
            if self._leads:
                self._files.write(name, saving.state, replace=True)
        except (OSError, RaymrcError):
            return None
        self._replace_saved(key, name)
        return name

    def _drop(self, saved: str) -> None:
        super()._drop(saved)
        self._files.remove_all(saved + SHARDS)
