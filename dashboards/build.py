"""Write the Grafana dashboard over the metrics that `raymrc.sweep.metrics` declares.

    python dashboards/build.py

`make docs` runs it; a test compares its output with the committed file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymrc.sweep import metrics
from raymrc.sweep.metrics import Metric

GRAFANA = Path(__file__).resolve().parent / "grafana"

GRID_WIDTH, PANEL_HEIGHT = 24, 8

SOURCE = {"type": "prometheus", "uid": "${source}"}


@dataclass(frozen=True, slots=True)
class Panel:
    """
    Args:
        unit: Grafana's name for it.
        queries: PromQL, and the legend of each of its series.
        width: in columns of the grid, which has 24.
        kind: "timeseries", or "stat" for the latest value only.
        stacks: whether to stack the series, because their sum means something.
        max_value: end of the axis, if it is fixed.
        warns_at: the value turns orange from here, and red half way to `max_value`.
    """

    title: str
    description: str
    unit: str
    queries: Sequence[tuple[str, str]]
    width: int = 8
    kind: str = "timeseries"
    stacks: bool = False
    max_value: float | None = None
    warns_at: float | None = None


# --- queries -----------------------------------------------------------------------------------------


def selected(metric: Metric, **labels: str) -> str:
    """A metric of the selected studies, and of the selected cells if it has cells."""
    chosen = {"study": "$study"} | ({"cell": "$cell"} if "cell" in metric.labels else {})
    matchers = [f'{name}=~"{value}"' for name, value in (chosen | labels).items()]
    return f"{metric.exported}{{{', '.join(matchers)}}}"


def rate(metric: Metric, by: str, **labels: str) -> str:
    """Increase per second, summed over processes."""
    return f"sum by ({by}) (rate({selected(metric, **labels)}[$__rate_interval]))"


def total(metric: Metric, by: str) -> str:
    return f"sum by ({by}) ({selected(metric)})"


def largest(metric: Metric, **labels: str) -> str:
    """A metric that every driver of a study publishes in full: a sum would count two drivers twice."""
    return f"max by ({', '.join(metric.labels)}) ({selected(metric, **labels)})"


def share(spent: Metric, budget: Metric) -> str:
    return f"max by (study) ({selected(spent)}) / max by (study) ({selected(budget)})"


def remaining(spent: Metric, budget: Metric) -> str:
    return f"max by (study) ({selected(budget)}) - max by (study) ({selected(spent)})"


# --- panels ------------------------------------------------------------------------------------------

DONE = largest(metrics.FOLD_RUNS, state="done")
TO_DO = largest(metrics.FOLD_RUNS, state="done|left")

ROWS: dict[str, tuple[Panel, ...]] = {
    "Study": (
        Panel(
            "Done", "Share of fold-runs done. Those that racing spares do not count.",
            "percentunit", [(f"sum by (study) ({DONE}) / sum by (study) ({TO_DO})", "{{study}}")],
            width=4, kind="stat", max_value=1.0,
        ),
        Panel(
            "Best F1 so far",
            "Mean validation F1 of each cell's best configuration with all folds done. It selects the "
            "winner; the report compares scored folds (raymrc report).",
            "percentunit", [(largest(metrics.BEST_F1), "{{cell}}")], width=10, max_value=1.0,
        ),
        Panel(
            "Fold-runs by state",
            "All fold-runs of the plan. Closed: their cell was abandoned after failures. Spared: a race "
            "stopped their configuration, because it can no longer win.",
            "short", [(f"sum by (state) ({largest(metrics.FOLD_RUNS)})", "{{state}}")], width=10, stacks=True,
        ),
        Panel(
            "Training loss",
            "Mean loss of the latest epoch of fold-runs in training. It rises when new ones start.",
            "short", [(f"avg by (cell) ({selected(metrics.TRAINING_LOSS)})", "{{cell}}")],
        ),
        Panel(
            "Tokens per second", "Trained pieces without padding, by backbone and strategy.",
            "short", [(rate(metrics.TOKENS, "backbone, strategy"), "{{backbone}} {{strategy}}")],
        ),
        Panel(
            "Attempts ended per minute",
            "Attempts at fold-runs, by how they ended: done, failed, or paused or stopped by a race.",
            "short", [(f"60 * {rate(metrics.ENDED, 'status')}", "{{status}}")],
        ),
        Panel(
            "Duration of fold-runs",
            "Wall-clock time of fold-runs that are done: median and 95th percentile. Estimated from buckets "
            "that are a factor of three wide.",
            "s",
            [
                (
                    f"histogram_quantile({quantile}, "
                    f"sum by (strategy, le) ({selected(metrics.FOLD_RUN_SECONDS)}))",
                    f"{{{{strategy}}}} {name}",
                )
                for quantile, name in ((0.5, "median"), (0.95, "95 %"))
            ],
            width=12,
        ),
        Panel(
            "Retries", "Fold-runs that failed and were retried in this run.",
            "short", [(total(metrics.RETRIES, "strategy"), "{{strategy}}")], width=12,
        ),
    ),
    "Cluster": (
        Panel(
            "Fold-runs in training", "Lanes open on hosts and worker groups.",
            "short", [(total(metrics.LANES_OPEN, "cell"), "{{cell}}")], stacks=True,
        ),
        Panel(
            "Fold-runs waiting", "Submitted fold-runs that no host has taken yet.",
            "short", [(total(metrics.QUEUE, "cell"), "{{cell}}")], stacks=True,
        ),
        Panel(
            "Hosts and worker groups", "Running, or requested and waiting for devices.",
            "short", [(total(metrics.HOSTS, "kind, state"), "{{kind}} {{state}}")],
        ),
        Panel(
            "Losses and evictions",
            "Hosts and worker groups that died, and those that saved their work before their machine was "
            "taken away.",
            "short",
            [
                (total(metrics.HOST_DEATHS, "kind"), "{{kind}} lost"),
                (total(metrics.EVICTIONS, "kind"), "{{kind}} evicted"),
            ],
        ),
        Panel(
            "Machines", "Machines of the cluster, including the head, as counted by Ray.",
            "short", [("max by (SessionName) (ray_cluster_active_nodes)", "{{SessionName}}")],
        ),
        Panel(
            "CPU utilization", "CPU utilization of each machine, as measured by Ray.",
            "percent", [("max by (ip) (ray_node_cpu_utilization)", "{{ip}}")], max_value=100.0,
        ),
        Panel(
            "Memory in use", "Memory in use on each machine, as measured by Ray.",
            "bytes", [("max by (ip) (ray_node_mem_used)", "{{ip}}")],
        ),
        Panel(
            "GPU utilization", "Utilization of each GPU, as measured by Ray. Empty without GPUs.",
            "percent",
            [("max by (ip, GpuIndex) (ray_node_gpus_utilization)", "{{ip}} GPU {{GpuIndex}}")],
            max_value=100.0,
        ),
        Panel(
            "GPU memory",
            "Memory in use on each GPU, as measured by Ray, and the memory that hosts have reserved. Empty "
            "without GPUs.",
            "bytes",
            [
                ("1048576 * max by (ip, GpuIndex) (ray_node_gram_used)", "{{ip}} GPU {{GpuIndex}}"),
                (f"sum by (backbone) ({selected(metrics.GPU_RESERVED_BYTES)})", "hosts of {{backbone}}"),
            ],
        ),
    ),
    "Cost": (
        Panel(
            "Budget used", "Spent share of each cap, over all runs of the study.",
            "percentunit",
            [
                (share(metrics.SPENT_USD, metrics.BUDGET_USD), "{{study}} USD"),
                (
                    share(metrics.SPENT_DEVICE_SECONDS, metrics.BUDGET_DEVICE_SECONDS),
                    "{{study}} devices",
                ),
                (share(metrics.SPENT_WALL_SECONDS, metrics.BUDGET_WALL_SECONDS), "{{study}} wall clock"),
            ],
            kind="stat", max_value=1.0, warns_at=0.8,
        ),
        Panel(
            "Total cost", "Dollars of device time spent in all runs of the study, and the cap.",
            "currencyUSD",
            [
                (largest(metrics.SPENT_USD), "{{study}} spent"),
                (largest(metrics.BUDGET_USD), "{{study}} cap"),
            ],
        ),
        Panel(
            "Cost per hour", "Cost of the hosts that are running, averaged over the last minutes.",
            "currencyUSD",
            [
                (
                    f"3600 * max by (study) (deriv({selected(metrics.SPENT_USD)}[$__rate_interval]))",
                    "{{study}}",
                )
            ],
        ),
        Panel(
            "Budget left", "Device time and wall-clock time left, if the study caps them.",
            "s",
            [
                (remaining(metrics.SPENT_DEVICE_SECONDS, metrics.BUDGET_DEVICE_SECONDS), "{{study}} devices"),
                (remaining(metrics.SPENT_WALL_SECONDS, metrics.BUDGET_WALL_SECONDS), "{{study}} wall clock"),
            ],
        ),
        Panel(
            "Devices held", "Devices that the study is charged for now: GPUs, or CPU cores without GPUs.",
            "short", [(total(metrics.DEVICES_HELD, "study"), "{{study}}")],
        ),
        Panel(
            "Cost by strategy",
            "Cost of the fold-runs that ended in this run, at the study's price. The total spent is higher, "
            "because hosts are held for longer.",
            "currencyUSD", [(total(metrics.COST_USD, "strategy"), "{{strategy}}")], stacks=True,
        ),
        Panel(
            "Device time by cell", "Device-seconds of the fold-runs that ended in this run of the study.",
            "s", [(total(metrics.DEVICE_SECONDS, "cell"), "{{cell}}")], width=24, stacks=True,
        ),
    ),
}  # fmt: skip

NEEDS_GPU = ("GPU utilization", "GPU memory")
"""Panels that are empty without GPUs."""


# --- Grafana's JSON ------------------------------------------------------------------------------------


def dashboard() -> dict[str, Any]:
    return {
        "uid": "raymrc",
        "title": "raymrc",
        "description": "Running studies: progress, cluster and cost.",
        "tags": ["raymrc", "ray"],
        "schemaVersion": 41,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": variables()},
        "panels": list(panels()),
    }


def variables() -> list[dict[str, Any]]:
    runs = metrics.FOLD_RUNS.exported
    source = {
        "name": "source",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
    }
    return [
        source,
        variable("study", f"label_values({runs}, study)"),
        variable("cell", f'label_values({runs}{{study=~"$study"}}, cell)'),
    ]


def variable(name: str, query: str) -> dict[str, Any]:
    """A selector for one, several or all values that Prometheus has of a label."""
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,  # whenever the time range changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def panels() -> Iterator[dict[str, Any]]:
    """The title of each row, then its panels from left to right."""
    number, y = 0, 0
    for title, row in ROWS.items():
        number += 1
        place = {"x": 0, "y": y, "w": GRID_WIDTH, "h": 1}
        yield {
            "id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": [],
        }  # fmt: skip
        x, y = 0, y + 1
        for panel in row:
            number += 1
            if x + panel.width > GRID_WIDTH:
                x, y = 0, y + PANEL_HEIGHT
            yield panel_json(panel, number, x, y)
            x += panel.width
        y += PANEL_HEIGHT


def panel_json(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.max_value is not None:
        defaults["max"] = panel.max_value
    if panel.warns_at is not None:
        defaults["thresholds"] = thresholds(panel.warns_at, panel.max_value or panel.warns_at)
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "fillOpacity": 20 if panel.stacks else 0,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacks else "none", "group": "A"},
        }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": PANEL_HEIGHT},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": OPTIONS[panel.kind],
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "editorMode": "code",
                "expr": expression,
                "legendFormat": legend,
                "range": True,
            }
            for index, (expression, legend) in enumerate(panel.queries)
        ],
    }


def thresholds(warns_at: float, max_value: float) -> dict[str, Any]:
    steps = [("green", None), ("orange", warns_at), ("red", (warns_at + max_value) / 2)]
    return {
        "mode": "absolute",
        "steps": [{"color": color, "value": value} for color, value in steps],
    }


OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {
            "calcs": ["lastNotNull"], "displayMode": "table", "placement": "bottom", "showLegend": True,
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "percentChangeColorMode": "standard",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "showPercentChange": False,
        "textMode": "value_and_name",
        "wideLayout": True,
    },
}  # fmt: skip


def files() -> dict[Path, str]:
    """Path -> text of each generated file."""
    return {GRAFANA / "raymrc.json": json.dumps(dashboard(), indent=1) + "\n"}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
