"""Promise: Grafana and Prometheus accept the dashboard, configuration and rules, which use published metrics.

Nobody would notice a failure: Grafana ignores a misspelt option, a renamed metric leaves a panel
empty, and a rule on it never fires. tests/sweep/test_metrics.py checks the panels on a running study.
"""

from __future__ import annotations

import itertools
import json
import re
import runpy
import shutil
import subprocess
from typing import Any

import jsonschema
import pytest
import yaml

from raymrc.sweep.metrics import CELL_LABELS, METRICS
from tests.paths import ROOT

BOARDS = ROOT / "dashboards"
BUILT = runpy.run_path(str(BOARDS / "build.py"))
SCHEMAS = json.loads((ROOT / "tests" / "house" / "grafana-schema.json").read_text("utf-8"))

ray_metric = re.compile(r"\bray_\w+")


@pytest.fixture
def board() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((BOARDS / "grafana" / "raymrc.json").read_text("utf-8"))
    return found


def panels_of(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def expressions_of(board: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in panels_of(board) for target in panel["targets"]]


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((BOARDS / "prometheus" / "rules.yml").read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def check_board(board: dict[str, Any]) -> None:
    """Check a dashboard against Grafana's schemas of dashboards and of each kind of panel."""
    jsonschema.validate(board, SCHEMAS["dashboard"])
    for panel in panels_of(board):
        jsonschema.validate(panel["options"], SCHEMAS[panel["type"]])
        for target in panel["targets"]:
            jsonschema.validate(target, SCHEMAS["query"])
        if panel["type"] == "timeseries":
            custom = panel["fieldConfig"]["defaults"]["custom"]
            jsonschema.validate(custom, SCHEMAS["timeseries_field"])


# --- the dashboard -------------------------------------------------------------------------------------


def test_the_committed_dashboard_equals_the_output_of_its_script():
    for path, text in BUILT["files"]().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run make docs"


def test_the_dashboard_matches_grafanas_schema(board):
    check_board(board)


@pytest.mark.parametrize(
    ("place", "right", "wrong"),
    [
        ((), "refresh", "refreshes"),
        (("panels", 1), "gridPos", "gridPosition"),
        (("panels", 1, "fieldConfig", "defaults"), "unit", "units"),
        (("panels", 1, "options"), "textMode", "text_mode"),
        (("panels", 2, "options", "legend"), "placement", "place"),
        (("panels", 2, "fieldConfig", "defaults", "custom"), "fillOpacity", "opacity"),
        (("panels", 2, "targets", 0), "legendFormat", "legend"),
        (("templating", "list", 1), "includeAll", "all"),
    ],
)
def test_a_misspelt_field_of_the_dashboard_is_refused(board, place, right, wrong):
    check_board(board)
    section: Any = board
    for key in place:
        section = section[key]
    section[wrong] = section.pop(right)
    with pytest.raises(jsonschema.ValidationError):
        check_board(board)


def test_every_panel_has_a_title_a_description_and_a_unit(board):
    units = {metric.unit for metric in METRICS} | {"percent"}
    for panel in panels_of(board):
        assert panel["title"] and panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"] in units
        assert all("{{" in target["legendFormat"] for target in panel["targets"])
    titles = [panel["title"] for panel in board["panels"]]
    assert len(titles) == len(set(titles))
    rows = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    assert rows == ["Study", "Cluster", "Cost"]


def test_a_legend_uses_only_labels_that_its_query_keeps(board):
    for panel in panels_of(board):
        for target in panel["targets"]:
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            kept = {
                label
                for labels in re.findall(r"\bby \(([^)]*)\)", target["expr"])
                for label in labels.split(", ")
            }
            assert named <= kept, panel["title"]


def test_panels_have_unique_ids_and_do_not_overlap(board):
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    places = [panel["gridPos"] for panel in board["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for a, b in itertools.combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        below = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or below, (a, b)


def test_every_query_uses_the_selected_source_studies_and_cells(board):
    names = [variable["name"] for variable in board["templating"]["list"]]
    assert names == ["source", "study", "cell"]
    source = {"type": "prometheus", "uid": "${source}"}
    for panel in panels_of(board):
        assert panel["datasource"] == source
        assert all(target["datasource"] == source for target in panel["targets"])
    of_cells = {
        metric.exported for metric in METRICS if metric.labels[: len(CELL_LABELS)] == CELL_LABELS
    }
    for expression in expressions_of(board):
        for name, matchers in re.findall(r"(ray_raymrc\w+){([^}]*)}", expression):
            assert 'study=~"$study"' in matchers
            assert ('cell=~"$cell"' in matchers) is (name in of_cells)


# --- the metrics ---------------------------------------------------------------------------------------


def test_every_metric_is_shown_or_watched_and_every_queried_metric_is_published(board):
    published = {metric.exported for metric in METRICS}
    queries = [*expressions_of(board), *(rule["expr"] for rule in rules())]
    queries += [variable["query"]["query"] for variable in board["templating"]["list"][1:]]
    queried = set(ray_metric.findall(" ".join(queries)))
    assert {name for name in queried if name.startswith("ray_raymrc")} == published


def test_prometheus_keeps_every_queried_metric(board):
    config = yaml.safe_load((BOARDS / "prometheus" / "prometheus.yml").read_text("utf-8"))
    queries = [*expressions_of(board), *(rule["expr"] for rule in rules())]
    for job in config["scrape_configs"]:
        keep = job["metric_relabel_configs"][0]["regex"]
        names = set(ray_metric.findall(" ".join(queries)))
        assert not [name for name in names if not re.fullmatch(keep, name)]


def test_metrics_have_few_labels_and_unique_names():
    labels = {label for metric in METRICS for label in metric.labels}
    assert labels == {*CELL_LABELS, "state", "status", "kind"}
    for metric in METRICS:
        assert re.fullmatch(r"raymrc_[a-z0-9_]+", metric.name)
        assert not metric.name.endswith("_total"), "Ray adds it"
        assert metric.description.endswith(".")
        assert bool(metric.buckets) is (metric.kind == "histogram")
    assert len({metric.name for metric in METRICS}) == len(METRICS)


# --- files of Prometheus and Grafana -------------------------------------------------------------------


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        pytest.skip("promtool (Debian's package prometheus) is not installed")
    return subprocess.run(
        ["promtool", *arguments], cwd=BOARDS / "prometheus", capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "--lint-fatal", "prometheus.yml"),
        ("check", "rules", "--lint-fatal", "rules.yml"),
        ("test", "rules", "rules_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_accepts_the_configuration_and_rules(arguments):
    checked = promtool(*arguments)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_is_simulated_firing_and_not_firing():
    simulations = yaml.safe_load((BOARDS / "prometheus" / "rules_test.yml").read_text("utf-8"))
    cases = [case for test in simulations["tests"] for case in test["alert_rule_test"]]
    for rule in rules():
        outcomes = [case["exp_alerts"] for case in cases if case["alertname"] == rule["alert"]]
        assert {bool(alerts) for alerts in outcomes} == {True, False}, rule["alert"]


@pytest.mark.parametrize(
    ("threshold", "other"),
    [("> 0.9", "> 0.95"), ("> 0.2", "> 0.5"), ("> 5", "> 7"), (">= 3", ">= 1"), ("[15m]", "[90m]")],
)
def test_the_simulation_notices_a_changed_threshold(tmp_path, threshold, other):
    text = (BOARDS / "prometheus" / "rules.yml").read_text("utf-8")
    assert threshold in text
    (tmp_path / "rules.yml").write_text(text.replace(threshold, other), encoding="utf-8")
    shutil.copy(BOARDS / "prometheus" / "rules_test.yml", tmp_path)
    assert promtool("test", "rules", str(tmp_path / "rules_test.yml")).returncode != 0


def test_grafanas_provisioning_names_prometheus_and_the_dashboard():
    place = BOARDS / "grafana" / "provisioning"
    sources = yaml.safe_load((place / "datasources" / "raymrc.yml").read_text("utf-8"))
    (source,) = sources["datasources"]
    assert source["type"] == "prometheus" and source["url"] == "http://127.0.0.1:9090"
    (provider,) = yaml.safe_load((place / "dashboards" / "raymrc.yml").read_text("utf-8"))[
        "providers"
    ]
    readme = (BOARDS / "README.md").read_text(encoding="utf-8")
    assert f"{provider['options']['path'].removeprefix('$')}=" in readme
