"""Promise: while a study runs, Prometheus has the right value of every metric that the dashboard shows, and
no content of any note. Without a request nothing is published.

A failure would go unnoticed: a metric that is no longer published leaves a panel empty until somebody looks.

    python -m tests.sweep.test_metrics FOLDER PORT

runs the study in a process of its own.
"""

from __future__ import annotations

import json
import math
import os
import runpy
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from raymrc.costs.budget import Budget
from raymrc.errors import RaymrcError
from raymrc.ledger.ledger import Ledger
from raymrc.ledger.record import Record
from raymrc.sweep.hosts import HostTerms
from raymrc.sweep.metrics import (
    METRICS,
    TOKENS,
    TRAINING_LOSS,
    LaneMetrics,
    MetricPublisher,
    check_port,
)
from raymrc.sweep.session import HostResources
from tests.paths import ROOT
from tests.sweep.making import MARKER, Script, fold_runs, make_plan, make_record, train_script
from tests.sweep.rehearsal import free_port

BOARDS = ROOT / "dashboards"
BUDGET = Budget(usd=0.5, device_hours=0.25, wall_hours=1.0, device_hour_usd=2.0)
PLAN = make_plan((0.1, 0.2, 0.3))

LATE = 16
"""Number of trainings after which the study idles. It has at least 20: 18 fold-runs, two of them twice."""

OF_RAY = {"instance", "job", "Component", "NodeAddress", "SessionName", "Version", "WorkerId"}
"""Prometheus and Ray add these labels to every metric."""


def run_a_study(folder: Path, port: int) -> None:
    """Train eighteen fold-runs of two cells. In each cell, one of the first three fails at its first
    try, and the host of another dies. They come first because Prometheus may miss a run's last second."""

    script = Script(folder / "trained", 0.6, raises_once=(0.1, 0), dies_once=(0.1, 2))
    script.folder.mkdir()
    resources = HostResources(max_hosts=2, lanes=2, metrics_port=port)
    train_script(
        PLAN, Ledger(str(folder)), script, folder, max_trials=6, budget=BUDGET, resources=resources
    )


@dataclass(frozen=True)
class Watched:
    """A study that Prometheus has watched from beginning to end."""

    address: str
    folder: Path
    began: float
    ended: float = math.inf

    def query(self, path: str, **parameters: Any) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.address}/api/v1/{path}?{query}", timeout=20) as answer:
            found = json.loads(answer.read())
        assert found["status"] == "success", found
        return found["data"]

    def series(self, expression: str) -> list[list[float]]:
        """The values of each series while the study ran."""
        data = self.query(
            "query_range", query=expression, start=self.began, end=self.ended, step="1s"
        )
        return [[float(value) for _, value in found["values"]] for found in data["result"]]

    def wait_for_metrics(self, study: subprocess.Popen[str]) -> None:
        """Let hosts idle late in the study until Prometheus has counted all records and has each cell's loss:
        where trials start late, a study may end in the second in which the first results arrive."""
        trained, idle = self.folder / "trained", self.folder / "idle"
        while study.poll() is None and not (
            trained.exists() and len(list(trained.iterdir())) >= LATE
        ):
            time.sleep(0.05)
        idle.touch()
        while study.poll() is None:
            records = list((self.folder / "ledger").rglob("*.json"))
            cells = self.value(
                "count(count by (cell) (max_over_time(ray_raymrc_training_loss[1h])))"
            )
            if cells == len(PLAN.cells) and self.value(
                "sum(ray_raymrc_fold_runs_ended_total)"
            ) >= max(1, len(records)):
                break
            time.sleep(0.5)
        idle.unlink()

    def value(self, expression: str) -> float:
        """The value now; 0 if there is none."""
        found = self.query("query", query=expression)["result"]
        return float(found[0]["value"][1]) if found else 0.0

    def max(self, expression: str) -> float:
        """The largest value while the study ran."""
        return max(value for values in self.series(expression) for value in values)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus, of Debian's package of that name, is not installed")
    folder = tmp_path_factory.mktemp("watched")
    (folder / "study").mkdir()
    port, prometheus_port = free_port(), free_port()
    config = (BOARDS / "prometheus" / "prometheus.yml").read_text("utf-8")
    for text, replacement in {
        "localhost:9464": f"localhost:{port}",
        "scrape_interval: 5s": "scrape_interval: 500ms",
        "evaluation_interval: 15s": "evaluation_interval: 1s",
        "rules.yml": str(BOARDS / "prometheus" / "rules.yml"),
        "/tmp/ray/": f"{folder}/",  # other clusters may run on this machine
    }.items():
        assert text in config
        config = config.replace(text, replacement)
    (folder / "prometheus.yml").write_text(config, encoding="utf-8")
    prometheus = subprocess.Popen(
        [
            "prometheus", f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{prometheus_port}",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    # The study runs in its own process, because Ray reads this interval when it starts.
    environment = os.environ | {"RAY_metrics_report_interval_ms": "1000", "PYTHONPATH": str(ROOT)}
    began = time.time()
    study = subprocess.Popen(
        [sys.executable, "-m", "tests.sweep.test_metrics", str(folder / "study"), str(port)],
        env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    watched = Watched(f"http://127.0.0.1:{prometheus_port}", folder / "study", began)
    try:
        watched.wait_for_metrics(study)
        _, errors = study.communicate()
        assert study.returncode == 0, errors
        yield replace(watched, ended=time.time())
    finally:
        study.kill()
        prometheus.terminate()
        with suppress(subprocess.TimeoutExpired):
            prometheus.wait(10)
        prometheus.kill()


class Published(MetricPublisher):
    """Keeps what is published, without Ray, and is always due."""

    is_due = True

    def __init__(self) -> None:
        super().__init__("made-up")
        self.values: dict[str, list[float]] = {}

    def publish(self, metric, value, cell=None, **labels):
        self.values.setdefault(metric.name, []).append(value)


def records(watched: Watched) -> tuple[Record, ...]:
    return Ledger(str(watched.folder)).records()


def queries() -> list[Any]:
    """The queries of every panel that needs no GPU, as Grafana sends them with all cells chosen."""
    needs_gpu = runpy.run_path(str(BOARDS / "build.py"))["NEEDS_GPU"]
    board = json.loads((BOARDS / "grafana" / "raymrc.json").read_text("utf-8"))
    return [
        pytest.param(
            target["expr"]
            .replace("$study", "made-up")
            .replace("$cell", ".*")
            .replace("$__rate_interval", "10s"),
            id=f"{panel['title']}-{target['refId']}",
        )
        for panel in board["panels"]
        if panel["type"] != "row" and panel["title"] not in needs_gpu
        for target in panel["targets"]
    ]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("expression", queries())
def test_every_panel_has_something_to_show_of_a_running_study(watched, expression):
    assert watched.series(expression)


@pytest.mark.ray
@pytest.mark.slow
def test_prometheus_has_the_values_that_follow_from_the_ledger(watched):
    done = records(watched)
    means: list[float] = []
    assert len(done) == PLAN.num_fold_runs == 18
    for cell in PLAN.cells:
        label = f'cell="{cell.cell.name}"'
        mine = [r for r in done if r.fold_run.configuration.cell == cell.cell]
        assert watched.max(f'ray_raymrc_fold_runs{{{label}, state="left"}}') == len(mine) == 9
        ended = f'ray_raymrc_fold_runs_ended_total{{{label}, status="%s"}}'
        assert 3 <= watched.max(ended % "done") <= 9
        assert watched.max(ended % "failed") == 1
        assert watched.max(f"ray_raymrc_retries_total{{{label}}}") == 1
        tokens = watched.max(f"sum(ray_raymrc_tokens_total{{{label}}})")
        again = 3 * 1000  # a failed try, and the lanes of the host that died
        assert 3000 <= tokens <= sum(r.tokens for r in mine) + again
        for configuration in cell.configurations or ():
            f1 = [r.validation_f1 for r in mine if r.fold_run.configuration == configuration]
            means.append(sum(f1) / len(f1))
        assert watched.max(f"ray_raymrc_training_loss{{{label}}}") <= 1.0
    best = watched.max("ray_raymrc_best_f1")
    assert any(best == pytest.approx(mean) for mean in means)
    assert watched.max("sum(ray_raymrc_host_deaths_total)") >= 1
    assert watched.max("ray_raymrc_evictions_total") == 0
    assert watched.max("ray_raymrc_budget_usd") == BUDGET.usd
    assert watched.max("ray_raymrc_budget_device_seconds") == 3600 * (BUDGET.device_hours or 0)
    assert watched.max("ray_raymrc_budget_wall_seconds") == 3600 * (BUDGET.wall_hours or 0)
    held = watched.max("ray_raymrc_spent_device_seconds")
    assert 0 < held <= 2 * (watched.ended - watched.began)
    assert watched.max("ray_raymrc_spent_usd") == pytest.approx(held * 2.0 / 3600)
    assert watched.max("sum(ray_raymrc_hosts)") == 2 >= watched.max("ray_raymrc_devices_held") > 0


@pytest.mark.ray
@pytest.mark.slow
def test_no_series_belongs_to_a_fold_run_or_a_note(watched):
    found = watched.query("series", **{"match[]": '{__name__=~"ray_raymrc.*"}'})
    declared = {metric.exported: set(metric.labels) for metric in METRICS}
    sizes: dict[str, int] = {}
    for series in found:
        name = series.pop("__name__").removesuffix("_count").removesuffix("_sum")
        name = name if name in declared else f"{name}_bucket"
        assert series.keys() - OF_RAY <= declared[name] | {"le"}
        sizes[name] = sizes.get(name, 0) + 1
    # Two cells, five states; each host has series of its own.
    assert max(size for name, size in sizes.items() if not name.endswith("_bucket")) <= 10
    text = json.dumps(found)
    assert MARKER not in text and "note-" not in text
    assert not [run.key for run in fold_runs(PLAN) if run.key in text]


@pytest.mark.ray
@pytest.mark.slow
def test_prometheus_can_evaluate_every_rule(watched):
    found = [rule for group in watched.query("rules")["groups"] for rule in group["rules"]]
    assert len(found) == 4
    assert [rule["health"] for rule in found] == ["ok"] * 4
    assert [rule["state"] for rule in found] == ["inactive"] * 4


# --- without Ray ------------------------------------------------------------------------------------


def test_nothing_is_published_without_a_request(monkeypatch):
    """Ray's agent listens on all of a machine's addresses, and shows the names of studies to anyone."""
    import ray.util.metrics

    monkeypatch.setattr(ray.util.metrics, "Gauge", None)
    monkeypatch.setattr(ray.util.metrics, "Counter", None)
    assert HostTerms(HostResources(), "").metrics_study == ""
    publisher = MetricPublisher()
    assert not publisher and not publisher.is_due
    lanes, run = LaneMetrics(publisher), fold_runs(PLAN)[0]
    lanes.open(run, 0)
    lanes.set_tokens(run.key, 10)
    lanes.publish(lambda key: 20)
    for metric in METRICS:
        publisher.publish(metric, 1.0, make_record(run).fold_run.configuration.cell)


def test_the_loss_of_lanes_that_close_between_two_updates_is_published_once():
    """A frozen lane may train for less than the interval between two updates."""
    publisher = Published()
    lanes, (first, second, *_) = LaneMetrics(publisher), fold_runs(PLAN)
    for run, loss in ((first, 1.0), (second, 2.0)):
        lanes.open(run, 0)
        lanes.set_loss(run.key, loss)
    lanes.close(first.key)
    lanes.publish(lambda key: 20)
    lanes.publish(lambda key: 30)
    assert publisher.values[TRAINING_LOSS.name] == [1.5, 2.0]
    assert publisher.values[TOKENS.name] == [0, 0, 20, 10]


def test_a_taken_port_is_refused_with_a_message():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RaymrcError, match=f"port {port} is not free .* --metrics-port"):
            check_port(port)


if __name__ == "__main__":
    run_a_study(Path(sys.argv[1]), int(sys.argv[2]))
