"""Promise: Grafana takes the dashboard, Prometheus its configuration and rules, and they speak of the figures
that a run tells.

They would break without anyone noticing: a misspelt option is dropped in silence, a renamed figure is an
empty panel, and a rule that asks for it never fires. That panels show something is asked of a
running study, in tests/sweep/test_metrics.py.
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

of_ray = re.compile(r"\bray_\w+")


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
    """Against what Grafana publishes: of the whole, and of what it leaves to each kind of panel."""
    jsonschema.validate(board, SCHEMAS["dashboard"])
    for panel in panels_of(board):
        jsonschema.validate(panel["options"], SCHEMAS[panel["type"]])
        for target in panel["targets"]:
            jsonschema.validate(target, SCHEMAS["query"])
        if panel["type"] == "timeseries":
            custom = panel["fieldConfig"]["defaults"]["custom"]
            jsonschema.validate(custom, SCHEMAS["timeseries_field"])


# --- the dashboard -------------------------------------------------------------------------------------


def test_the_dashboard_is_what_its_script_makes():
    for path, text in BUILT["files"]().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run make docs"


def test_grafana_takes_the_dashboard(board):
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


def test_every_panel_says_what_it_shows_in_which_unit(board):
    units = {metric.unit for metric in METRICS} | {"percent"}
    for panel in panels_of(board):
        assert panel["title"] and panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"] in units
        assert all("{{" in target["legendFormat"] for target in panel["targets"])
    titles = [panel["title"] for panel in board["panels"]]
    assert len(titles) == len(set(titles))
    rows = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    assert rows == ["Study", "Cluster", "Cost"]


def test_a_legend_names_labels_that_its_query_keeps(board):
    for panel in panels_of(board):
        for target in panel["targets"]:
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            kept = {
                label
                for labels in re.findall(r"\bby \(([^)]*)\)", target["expr"])
                for label in labels.split(", ")
            }
            assert named <= kept, panel["title"]


def test_panels_have_ids_of_their_own_and_lie_beside_each_other(board):
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    places = [panel["gridPos"] for panel in board["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for a, b in itertools.combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        below = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or below, (a, b)


def test_every_query_asks_the_source_that_was_chosen_of_the_studies_that_were(board):
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


# --- the figures -----------------------------------------------------------------------------------------


def test_every_figure_is_shown_or_watched_and_none_is_asked_for_that_is_not_told(board):
    told = {metric.exported for metric in METRICS}
    asked = [*expressions_of(board), *(rule["expr"] for rule in rules())]
    asked += [variable["query"]["query"] for variable in board["templating"]["list"][1:]]
    found = set(of_ray.findall(" ".join(asked)))
    assert {name for name in found if name.startswith("ray_raymrc")} == told


def test_prometheus_keeps_what_is_asked_for(board):
    config = yaml.safe_load((BOARDS / "prometheus" / "prometheus.yml").read_text("utf-8"))
    asked = [*expressions_of(board), *(rule["expr"] for rule in rules())]
    for job in config["scrape_configs"]:
        keep = job["metric_relabel_configs"][0]["regex"]
        names = set(of_ray.findall(" ".join(asked)))
        assert not [name for name in names if not re.fullmatch(keep, name)]


def test_names_and_labels_are_few_and_hold_no_text():
    labels = {label for metric in METRICS for label in metric.labels}
    assert labels == {*CELL_LABELS, "state", "status", "kind"}
    for metric in METRICS:
        assert re.fullmatch(r"raymrc_[a-z0-9_]+", metric.name)
        assert not metric.name.endswith("_total"), "Ray puts it there"
        assert metric.description.endswith(".")
        assert bool(metric.buckets) is (metric.kind == "histogram")
    assert len({metric.name for metric in METRICS}) == len(METRICS)


# --- Prometheus and Grafana's own files --------------------------------------------------------------------


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        pytest.skip("promtool, of Debian's package prometheus, is not installed")
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
def test_promtool_finds_nothing_wrong(arguments):
    checked = promtool(*arguments)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_is_played_through_when_it_comes_and_when_it_does_not():
    played = yaml.safe_load((BOARDS / "prometheus" / "rules_test.yml").read_text("utf-8"))
    cases = [case for test in played["tests"] for case in test["alert_rule_test"]]
    for rule in rules():
        mine = [case for case in cases if case["alertname"] == rule["alert"]]
        assert {bool(case["exp_alerts"]) for case in mine} == {True, False}, rule["alert"]


@pytest.mark.parametrize(
    ("threshold", "other"),
    [("> 0.9", "> 0.95"), ("> 0.2", "> 0.5"), ("> 5", "> 7"), (">= 3", ">= 1"), ("[15m]", "[90m]")],
)
def test_playing_the_alerts_through_tells_another_threshold(tmp_path, threshold, other):
    text = (BOARDS / "prometheus" / "rules.yml").read_text("utf-8")
    assert threshold in text
    (tmp_path / "rules.yml").write_text(text.replace(threshold, other), encoding="utf-8")
    shutil.copy(BOARDS / "prometheus" / "rules_test.yml", tmp_path)
    assert promtool("test", "rules", str(tmp_path / "rules_test.yml")).returncode != 0


def test_grafana_is_told_where_prometheus_and_the_dashboard_are():
    place = BOARDS / "grafana" / "provisioning"
    sources = yaml.safe_load((place / "datasources" / "raymrc.yml").read_text("utf-8"))
    (source,) = sources["datasources"]
    assert source["type"] == "prometheus" and source["url"] == "http://127.0.0.1:9090"
    (provider,) = yaml.safe_load((place / "dashboards" / "raymrc.yml").read_text("utf-8"))[
        "providers"
    ]
    readme = (BOARDS / "README.md").read_text(encoding="utf-8")
    assert f"{provider['options']['path'].removeprefix('$')}=" in readme
