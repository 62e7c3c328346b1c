"""Promise: a model that is too large for one device is trained by a group of them, and the group that is
lost, shrinks or is warned costs time, never a digit beyond rounding.

Real Ray Train with gloo; processes are killed and machines taken away under it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raymrc.study.ledger import Ledger
from raymrc.study.placement import Placement
from raymrc.study.plan import Plan
from raymrc.study.record import Record
from raymrc.sweep.driver import Resources, run_study
from raymrc.training.trainer import Trainer
from tests.model.tiny import tiny_backbone, tiny_checkpoint
from tests.sweep.making import actors, fold_runs, make_plan
from tests.training.test_lane import make_data, make_notes

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.chaos,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]

WORKER = "RayTrainWorker"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_backbone(tiny_checkpoint("bert", tmp_path_factory.mktemp("tiny") / "bert"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head without devices, and machines that declare a GPU that they do not have."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "8"
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        made.add_node(num_cpus=1, num_gpus=1)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def group_plan(backbone: Any, workers: tuple[int, int] = (2, 2), **fields: Any) -> Plan:
    """One cell that trains the backbone, in groups, and one of frozen fold-runs on hosts."""
    terms: dict[str, Any] = {
        "prompt_length": 4, "match_width": 16, "epochs": 4, "batch_size": 4, "window": 20,
        "overlap": 4, "dropout": 0.0, **fields,
    }  # fmt: skip
    plan = make_plan([0.002], ["soft_prompt", "frozen_soft_prompt"], backbone=backbone, **terms)
    group, host = plan.cells
    placed = replace(group, placement=Placement("group", workers))
    return replace(plan, cells=(placed, host))


RESOURCES = Resources(gpus_per_host=1.0, save_seconds=0.0, device="cpu")


def run(plan: Plan, folder: Path, **options: Any) -> tuple[Any, dict[str, Record]]:
    ledger = Ledger(str(folder))
    outcome = run_study(
        plan, ledger, Trainer().open_pool, make_data(make_notes()),
        folder=folder, resources=options.pop("resources", RESOURCES), **options,
    )  # fmt: skip
    return outcome, {record.key: record for record in ledger.records()}


def assert_as_alone(plan: Plan, records: dict[str, Record]) -> None:
    """Every fold-run of the groups' cell is what one process makes of it."""
    from raymrc.model.backbones import load
    from raymrc.training.trainer import train_fold_run

    runs = [r for r in fold_runs(plan) if r.configuration.cell.strategy == "soft_prompt"]
    loaded = load(plan.cells[0].cell.backbone)
    for one in runs:
        mine, alone = records[one.key], train_fold_run(one, make_data(make_notes()), loaded)
        assert mine.status == "done" and mine.tokens == alone.tokens
        assert len(mine.epochs) == len(alone.epochs)
        for ours, theirs in zip(mine.epochs, alone.epochs, strict=True):
            assert ours.loss == pytest.approx(theirs.loss, rel=1e-3, abs=1e-4)


def test_groups_and_hosts_take_turns_on_too_few_devices(
    cluster: Any, backbone: Any, tmp_path: Path
) -> None:
    """Twice the devices are wanted that there are: two for the group, two for hosts."""
    plan = group_plan(backbone)
    outcome, records = run(plan, tmp_path)
    assert (outcome.done, outcome.failed) == (6, 0)
    assert_as_alone(plan, records)
    of_groups = [r for r in records.values() if "frozen" not in r.fold_run.configuration.cell.name]
    assert all(record.num_devices == 2 for record in of_groups)
    assert list((tmp_path / "saved").rglob("*.distcp")) == [], "nothing is kept of what is finished"
    assert_no_claims()


def assert_no_claims() -> None:
    """All devices are free again, and nothing waits for them."""
    import ray
    from ray.util.state import list_placement_groups

    until = time.monotonic() + 60
    while time.monotonic() < until:
        free = ray.available_resources().get("GPU", 0.0)
        left = [g for g in list_placement_groups() if g.state != "REMOVED"]
        if free == ray.cluster_resources().get("GPU", 0.0) and not left and not actors(WORKER):
            return
        time.sleep(0.5)
    raise AssertionError(f"{free} GPUs free, placement groups {left}")


def when_saved(folder: Path, then: Any, number: int = 1) -> threading.Thread:
    def wait() -> None:
        until = time.monotonic() + 120
        while len(list(folder.glob("saved/*/0*.shards/.metadata"))) < 1:
            if time.monotonic() > until:
                return
            time.sleep(0.02)
        then()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_a_killed_worker_costs_an_epoch_and_no_result(
    cluster: Any, backbone: Any, tmp_path: Path
) -> None:
    plan = group_plan(backbone, epochs=12)
    plan = replace(plan, cells=plan.cells[:1])
    killed: list[int] = []

    def kill() -> None:
        victim = actors(WORKER)[-1]
        killed.append(victim.pid)
        victim.kill()

    thread = when_saved(tmp_path, kill)
    outcome, records = run(plan, tmp_path)
    thread.join()
    assert killed and (outcome.done, outcome.failed) == (3, 0)
    assert_as_alone(plan, records)
    assert_no_claims()


def test_a_group_goes_on_smaller_where_a_machine_is_gone(
    cluster: Any, backbone: Any, tmp_path: Path
) -> None:
    plan = group_plan(backbone, (1, 2), epochs=12)
    plan = replace(plan, cells=plan.cells[:1])
    thread = when_saved(
        tmp_path,
        lambda: cluster.remove_node(list(cluster.worker_nodes)[-1], allow_graceful=False),
    )
    outcome, records = run(plan, tmp_path)
    thread.join()
    cluster.add_node(num_cpus=1, num_gpus=1)
    assert (outcome.done, outcome.failed) == (3, 0)
    assert_as_alone(plan, records)
    assert {record.num_devices for record in records.values()} >= {1}
