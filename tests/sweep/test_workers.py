"""Promise: a group of devices trains a model that is too large for one device to the result that one device
would reach, and nothing waits for ever if groups, hosts and trials want more devices than there are.

These tests use real Ray Train with gloo. `test_rehearsal.py` tests the loss of a group.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from raymrc.costs.budget import Budget
from raymrc.costs.journal import Journal
from raymrc.ledger.ledger import Ledger
from raymrc.ledger.record import Record
from raymrc.planning.placement import Placement
from raymrc.planning.plan import Plan
from raymrc.scheduling.terms import RunTerms
from raymrc.sweep.driver import Training, run_study
from raymrc.sweep.session import HostResources
from raymrc.training.trainer import Trainer
from tests.model.tiny import tiny_backbone, tiny_checkpoint
from tests.sweep.making import actors, make_plan
from tests.sweep.ray_warnings import RAY_WARNINGS
from tests.sweep.rehearsal import free_port
from tests.training.test_lane import make_data, make_notes

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.chaos,
    *RAY_WARNINGS,
]

WORKER = "RayTrainWorker"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_backbone(tiny_checkpoint("bert", tmp_path_factory.mktemp("tiny") / "bert"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head without devices, and two machines that declare a GPU they do not have."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
        head = {"num_cpus": 0, "dashboard_port": free_port()}  # another cluster may run beside it
        made = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            made.add_node(num_cpus=1, num_gpus=1)
        ray.init(address=made.address, log_to_driver=False)
        yield made
        ray.shutdown()
        made.shutdown()


def group_plan(backbone: Any, workers: tuple[int, int] = (2, 2), **fields: Any) -> Plan:
    """One cell trains the backbone in groups; the other has frozen fold-runs on hosts."""
    terms: dict[str, Any] = {
        "prompt_length": 4, "match_width": 16, "epochs": 4, "batch_size": 4, "window": 20,
        "overlap": 4, "dropout": 0.0, **fields,
    }  # fmt: skip
    plan = make_plan([0.002, 0.004], ["soft_prompt"], backbone=backbone, **terms)
    frozen = make_plan([0.02], ["frozen_soft_prompt"], backbone=backbone, **terms)
    (group,), (host,) = plan.cells, frozen.cells
    placed = replace(group, placement=Placement("group", workers))
    return replace(plan, cells=(placed, host))


RESOURCES = HostResources(gpus_per_host=1.0, save_seconds=0.0, device="cpu")


def run(
    plan: Plan, folder: Path, scheduler: TrialScheduler | None = None, budget: Budget | None = None
) -> tuple[Any, dict[str, Record]]:
    ledger = Ledger(str(folder))
    training = Training(Trainer().open_pool, make_data(make_notes()), RESOURCES, scheduler)
    outcome = run_study(plan, ledger, training, folder, RunTerms(budget or Budget()))
    return outcome, {record.key: record for record in ledger.records()}


def assert_as_alone(records: dict[str, Record]) -> None:
    """Every fold-run of a group equals the same fold-run trained by one process."""
    from raymrc.model.loading import load_backbone
    from tests.training.fold_runs import train_fold_run

    mine = [r for r in records.values() if r.fold_run.configuration.cell.strategy == "soft_prompt"]
    loaded = load_backbone(mine[0].fold_run.configuration.cell.backbone)
    for record in mine:
        alone = train_fold_run(record.fold_run, make_data(make_notes()), loaded)
        assert record.status == "done" and record.tokens == alone.tokens
        assert len(record.epochs) == len(alone.epochs)
        for ours, theirs in zip(record.epochs, alone.epochs, strict=True):
            assert ours.loss == pytest.approx(theirs.loss, rel=1e-3, abs=1e-4)


class StopOne(FIFOScheduler):
    """Stops the first trial that uses groups after its first fold-run, in the middle of the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped = ""

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        cell = trial.config["work"].configuration.cell
        if not self.stopped and cell.strategy == "soft_prompt" and "epoch" not in result:
            self.stopped = trial.trial_id
            return str(TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE)


def test_groups_and_hosts_take_turns_on_too_few_devices(
    cluster: Any, backbone: Any, tmp_path: Path
) -> None:
    """The group and the hosts want two devices each, twice as many as there are; a trial is stopped."""
    plan = group_plan(backbone)
    scheduler = StopOne()
    outcome, records = run(plan, tmp_path, scheduler=scheduler)
    assert scheduler.stopped and outcome.failed == 0
    by_strategy = Counter(r.fold_run.configuration.cell.strategy for r in records.values())
    assert by_strategy["frozen_soft_prompt"] == 3
    assert 4 <= by_strategy["soft_prompt"] <= 5, "one or two of six were not waited for"
    assert_as_alone(records)
    of_groups = [r for r in records.values() if "frozen" not in r.fold_run.configuration.cell.name]
    assert all(record.num_devices == 2 for record in of_groups)
    assert_no_claims(cluster.address)


def test_the_cap_ends_groups_in_time(cluster: Any, backbone: Any, tmp_path: Path) -> None:
    """The study has more epochs than fit below the cap, which lets a group start."""
    plan, cap = group_plan(backbone, epochs=200), 40.0
    outcome, records = run(plan, tmp_path, budget=Budget(device_hours=cap / 3600))
    assert outcome.out_of_budget and outcome.failed == 0
    assert len(records) < plan.num_fold_runs
    (entry,) = Journal(str(tmp_path)).entries()
    assert entry.has_ended and entry.device_seconds <= 1.01 * cap
    assert_no_claims(cluster.address)


def test_a_group_that_is_killed_as_it_starts_holds_no_devices(
    cluster: Any, backbone: Any, tmp_path: Path
) -> None:
    """Ray Train learns only later, when all processes of a group have started, what it has to give back."""
    from ray.util import placement_group_table

    plan = group_plan(backbone)
    groups = replace(plan, cells=plan.cells[:1])
    interrupt = threading.Thread(target=interrupt_when_devices_are_held)
    interrupt.start()
    outcome, records = run(groups, tmp_path)
    interrupt.join()
    assert outcome.interrupted and not records
    states = {group["state"] for group in placement_group_table().values()}
    assert states == {"REMOVED"}, "Ray Train would remove it later, if at all"
    assert_no_claims(cluster.address)


def interrupt_when_devices_are_held() -> None:
    import ray

    while ray.available_resources().get("GPU", 0.0):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)


def assert_no_claims(address: str) -> None:
    """All devices are free again, and nothing waits for them."""
    import ray
    from ray.util.state import list_placement_groups

    until = time.monotonic() + 60
    while time.monotonic() < until:
        free = ray.available_resources().get("GPU", 0.0)
        left = [g for g in list_placement_groups(address) if g.state != "REMOVED"]
        if free == ray.cluster_resources().get("GPU", 0.0) and not left and not actors(WORKER):
            return
        time.sleep(0.5)
    raise AssertionError(f"{free} GPUs free, placement groups {left}")
