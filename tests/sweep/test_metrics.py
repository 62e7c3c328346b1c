"""Promise: while a study runs, Prometheus has of it what every panel of the dashboard shows, with the right
figures and nothing of any note; where nobody asked, nothing is told.

It would break without anyone noticing: a figure that is told no more is an empty panel, on the day that
somebody looks.

    python -m tests.sweep.test_metrics FOLDER PORT

runs the study in a process of its own.
"""

from __future__ import annotations

import json
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raymrc.costs.budget import Budget
from raymrc.errors import RaymrcError
from raymrc.ledger.ledger import Ledger
from raymrc.ledger.record import Record
from raymrc.sweep.hosts import HostTerms
from raymrc.sweep.metrics import METRICS, LaneMetrics, MetricPublisher, check_port
from tests.paths import ROOT
from tests.sweep.making import MARKER, Script, fold_runs, make_plan, make_record, open_pool
from tests.sweep.rehearsal import free_port

BOARDS = ROOT / "dashboards"
BUDGET = Budget(usd=0.5, device_hours=0.25, wall_hours=1.0, device_hour_usd=2.0)
PLAN = make_plan((0.1, 0.2, 0.3))

OF_RAY = {"instance", "job", "Component", "NodeAddress", "SessionName", "Version", "WorkerId"}
"""Labels that Prometheus and Ray put to every figure."""


def run_a_study(folder: Path, port: int) -> None:
    """Eighteen fold-runs of two cells; of the first three of each one fails at its first try, and the host of
    another dies. The others come after: what is told in a run's last second may not be fetched any more."""
    from raymrc.sweep.driver import run_study
    from raymrc.sweep.session import HostResources

    script = Script(folder / "trained", 0.6, raises_once=(0.1, 0), dies_once=(0.1, 2))
    script.folder.mkdir()
    run_study(
        PLAN, Ledger(str(folder)), open_pool, script, folder=folder, budget=BUDGET,
        resources=HostResources(max_hosts=2, lanes=2, metrics_port=port),
    )  # fmt: skip


@dataclass(frozen=True)
class Watched:
    """A study that Prometheus has seen from its beginning to its end."""

    address: str
    folder: Path
    began: float
    ended: float

    def ask(self, what: str, **parameters: Any) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.address}/api/v1/{what}?{query}", timeout=20) as answer:
            found = json.loads(answer.read())
        assert found["status"] == "success", found
        return found["data"]

    def series(self, expression: str) -> list[list[float]]:
        """Values of each series while the study ran."""
        data = self.ask(
            "query_range", query=expression, start=self.began, end=self.ended, step="1s"
        )
        return [[float(value) for _, value in of["values"]] for of in data["result"]]

    def most(self, expression: str) -> float:
        """Its largest value while the study ran."""
        return max(value for of in self.series(expression) for value in of)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus, of Debian's package of that name, is not installed")
    folder = tmp_path_factory.mktemp("watched")
    (folder / "study").mkdir()
    port, own = free_port(), free_port()
    config = (BOARDS / "prometheus" / "prometheus.yml").read_text("utf-8")
    for here, there in {
        "localhost:9464": f"localhost:{port}",
        "scrape_interval: 5s": "scrape_interval: 500ms",
        "evaluation_interval: 15s": "evaluation_interval: 1s",
        "rules.yml": str(BOARDS / "prometheus" / "rules.yml"),
        "/tmp/ray/": f"{folder}/",  # other clusters on this machine are none of ours
    }.items():
        assert here in config
        config = config.replace(here, there)
    (folder / "prometheus.yml").write_text(config, encoding="utf-8")
    prometheus = subprocess.Popen(
        [
            "prometheus", f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{own}",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    # Read by Ray when it starts, so it is done in a process of its own: figures are out within a second.
    environment = os.environ | {"RAY_metrics_report_interval_ms": "1000", "PYTHONPATH": str(ROOT)}
    began = time.time()
    try:
        run = subprocess.run(
            [sys.executable, "-m", "tests.sweep.test_metrics", str(folder / "study"), str(port)],
            env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        yield Watched(f"http://127.0.0.1:{own}", folder / "study", began, time.time())
    finally:
        prometheus.terminate()
        with suppress(subprocess.TimeoutExpired):
            prometheus.wait(10)
        prometheus.kill()


def records(watched: Watched) -> tuple[Record, ...]:
    return Ledger(str(watched.folder)).records()


def queries() -> list[Any]:
    """Of every panel that needs no GPU, as Grafana would ask with all cells chosen."""
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
def test_prometheus_has_the_figures_that_the_ledger_comes_to(watched):
    done = records(watched)
    means: list[float] = []
    assert len(done) == PLAN.num_fold_runs == 18
    for cell in PLAN.cells:
        of = f'cell="{cell.cell.name}"'
        mine = [r for r in done if r.fold_run.configuration.cell == cell.cell]
        assert watched.most(f'ray_raymrc_fold_runs{{{of}, state="left"}}') == len(mine) == 9
        ended = f'ray_raymrc_fold_runs_ended_total{{{of}, status="%s"}}'
        assert 3 <= watched.most(ended % "done") <= 9
        assert watched.most(ended % "failed") == 1
        assert watched.most(f"ray_raymrc_retries_total{{{of}}}") == 1
        tokens = watched.most(f"sum(ray_raymrc_tokens_total{{{of}}})")
        again = 3 * 1000  # a first try that failed, and what died with its host
        assert 3000 <= tokens <= sum(r.tokens for r in mine) + again
        for configuration in cell.configurations or ():
            f1 = [r.validation_f1 for r in mine if r.fold_run.configuration == configuration]
            means.append(sum(f1) / len(f1))
        assert watched.most(f"ray_raymrc_training_loss{{{of}}}") <= 1.0
    best = watched.most("ray_raymrc_best_f1")
    assert any(best == pytest.approx(mean) for mean in means)
    assert watched.most("sum(ray_raymrc_host_deaths_total)") >= 1
    assert watched.most("ray_raymrc_evictions_total") == 0
    assert watched.most("ray_raymrc_budget_usd") == BUDGET.usd
    assert watched.most("ray_raymrc_budget_device_seconds") == 3600 * (BUDGET.device_hours or 0)
    assert watched.most("ray_raymrc_budget_wall_seconds") == 3600 * (BUDGET.wall_hours or 0)
    held = watched.most("ray_raymrc_spent_device_seconds")
    assert 0 < held <= 2 * (watched.ended - watched.began)
    assert watched.most("ray_raymrc_spent_usd") == pytest.approx(held * 2.0 / 3600)
    assert watched.most("sum(ray_raymrc_hosts)") == 2 >= watched.most("ray_raymrc_devices_held") > 0


@pytest.mark.ray
@pytest.mark.slow
def test_no_series_is_of_a_fold_run_or_a_note(watched):
    found = watched.ask("series", **{"match[]": '{__name__=~"ray_raymrc.*"}'})
    declared = {metric.exported: set(metric.labels) for metric in METRICS}
    sizes: dict[str, int] = {}
    for series in found:
        name = series.pop("__name__").removesuffix("_count").removesuffix("_sum")
        name = name if name in declared else f"{name}_bucket"
        assert series.keys() - OF_RAY <= declared[name] | {"le"}
        sizes[name] = sizes.get(name, 0) + 1
    # Two cells, five states; a host that is started anew has series of its own.
    assert max(of for name, of in sizes.items() if not name.endswith("_bucket")) <= 10
    told = json.dumps(found)
    assert MARKER not in told and "note-" not in told
    assert not [run.key for run in fold_runs(PLAN) if run.key in told]


@pytest.mark.ray
@pytest.mark.slow
def test_prometheus_can_evaluate_every_rule(watched):
    found = [rule for group in watched.ask("rules")["groups"] for rule in group["rules"]]
    assert len(found) == 4
    assert [rule["health"] for rule in found] == ["ok"] * 4
    assert [rule["state"] for rule in found] == ["inactive"] * 4


# --- without Ray ------------------------------------------------------------------------------------


def test_nothing_is_told_unless_it_was_asked_for(monkeypatch):
    """Ray's agent listens on all of a machine's addresses, and says who asks what studies are called."""
    import ray.util.metrics

    monkeypatch.setattr(ray.util.metrics, "Gauge", None)
    monkeypatch.setattr(ray.util.metrics, "Counter", None)
    assert HostTerms(1.0, 0.0, 1, 0.0, "").told == ""
    publisher = MetricPublisher()
    assert not publisher and not publisher.is_due
    lanes, run = LaneMetrics(publisher), fold_runs(PLAN)[0]
    lanes.open(run, 0)
    lanes.set_tokens(run.key, 10)
    lanes.publish(lambda key: 20)
    for metric in METRICS:
        publisher.publish(metric, 1.0, make_record(run).fold_run.configuration.cell)


def test_a_port_that_somebody_has_gets_a_sentence():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RaymrcError, match=f"port {port} is not free .* --metrics-port"):
            check_port(port)


if __name__ == "__main__":
    run_a_study(Path(sys.argv[1]), int(sys.argv[2]))
