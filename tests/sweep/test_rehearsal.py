"""Promise: a cluster may grow, shrink and lose nodes; the ledger ends complete, without duplicates, and equal
to the ledger of an undisturbed study. More kinds of kills are in the recorded run (`tests.sweep.rehearsal`).

Ray's own autoscaler starts the nodes, because hosts and worker groups ask for devices.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from raymrc.ledger.ledger import Ledger
from tests.sweep.making import actors
from tests.sweep.rehearsal import (
    Battle,
    Cloud,
    cloud,
    compare,
    prepare,
    read_log,
    wait_until,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.chaos]


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with cloud(tmp_path_factory.mktemp("cloud"), max_nodes=2) as made:
        yield made


def scrape_metrics(cluster: Cloud) -> str:
    """What Prometheus would scrape, from the targets that the cluster's head lists."""
    written = Path(cluster.session) / "prom_metrics_service_discovery.json"
    targets = [target for group in json.loads(written.read_text()) for target in group["targets"]]
    answers = []
    for target in targets:
        with suppress(OSError):  # a node that has just gone
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
                answers.append(answer.read().decode())
    return "".join(answers)


def test_a_study_that_loses_nodes_ends_like_an_undisturbed_one(
    growing: Cloud, tmp_path: Path
) -> None:
    assert growing.nodes() == {}, "no node exists before a request"
    folder = tmp_path / "study"
    plan = prepare(folder, devices=2, frozen=1, grouped=1, folds=3, epochs=5, workers=(2, 2))
    battle = Battle(growing, folder, ["node"], every=2)
    battle.run()
    assert "ray_raymrc_fold_runs_ended_total" in scrape_metrics(growing), (
        "exported on a cluster without any option"
    )
    records = Ledger(str(folder)).records()
    assert len(records) == len({r.key for r in records}) == plan.num_fold_runs == 6
    assert compare(plan, records) == []
    courses = read_log(folder / "log")
    assert max(course.most_redone for course in courses.values()) <= 1, (
        "at most one epoch is repeated"
    )
    assert battle.most_nodes == 2, "groups of two waited for a second node"
    kept = [path.name for path in (folder / "saved").iterdir() if path.is_dir()]
    assert kept == [], "finished fold-runs keep no checkpoints"
    assert wait_until(lambda: not growing.nodes(), 90), "idle nodes are removed"
    assert actors("Host") == actors("RayTrainWorker") == []


def test_a_group_that_the_cluster_can_never_hold_is_refused(growing: Cloud, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    prepare(folder, devices=3, frozen=0, grouped=1, folds=3, epochs=5, workers=(3, 3))
    battle = Battle(growing, folder, [], every=1)
    output, code = battle.run_once(180)
    assert code == 2
    assert output.startswith(
        "a worker group needs at least 3 times 1 CPU and 1 GPU, but the cluster"
    )
    assert "autoscaler says that it can never provide this" in output
    assert Ledger(str(folder)).records() == ()
