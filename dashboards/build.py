"""Write the Grafana dashboard: what is shown of the figures that `raymrc.sweep.metrics` declares.

    python dashboards/build.py

`make docs` runs it; a test compares what it would write with what is there.
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

WIDTH, HEIGHT = 24, 8
"""Of Grafana's grid; of a panel."""

SOURCE = {"type": "prometheus", "uid": "${source}"}


@dataclass(frozen=True, slots=True)
class Panel:
    """
    Args:
        unit: as Grafana names it.
        queries: PromQL, and what a series of it is called.
        width: of 24.
        kind: "timeseries", or "stat" for the latest value alone.
        stacks: whether the series add up to something.
        most: the axis's end, where there is one.
        warns_at: from here on it is orange, and red half way to `most`.
    """

    title: str
    description: str
    unit: str
    queries: Sequence[tuple[str, str]]
    width: int = 8
    kind: str = "timeseries"
    stacks: bool = False
    most: float | None = None
    warns_at: float | None = None


# --- what is asked -----------------------------------------------------------------------------------


def of(metric: Metric, **labels: str) -> str:
    """A figure of the chosen studies, and of the chosen cells where it has cells."""
    chosen = {"study": "$study"} | ({"cell": "$cell"} if "cell" in metric.labels else {})
    matchers = [f'{name}=~"{value}"' for name, value in (chosen | labels).items()]
    return f"{metric.exported}{{{', '.join(matchers)}}}"


def rate(metric: Metric, by: str, **labels: str) -> str:
    """A second, added up over processes."""
    return f"sum by ({by}) (rate({of(metric, **labels)}[$__rate_interval]))"


def in_all(metric: Metric, by: str) -> str:
    return f"sum by ({by}) ({of(metric)})"


def seen(metric: Metric, **labels: str) -> str:
    """Of what each driver of a study sees whole, once: two of them would count it twice."""
    labels_of = ", ".join(name for name in metric.labels)
    return f"max by ({labels_of}) ({of(metric, **labels)})"


def share(spent: Metric, budget: Metric) -> str:
    return f"max by (study) ({of(spent)}) / max by (study) ({of(budget)})"


def left(spent: Metric, budget: Metric) -> str:
    return f"max by (study) ({of(budget)}) - max by (study) ({of(spent)})"


# --- what is shown -----------------------------------------------------------------------------------

DONE = seen(metrics.FOLD_RUNS, state="done")
TO_DO = seen(metrics.FOLD_RUNS, state="done|left")

ROWS: dict[str, tuple[Panel, ...]] = {
    "Study": (
        Panel(
            "Done", "Share of the fold-runs to do that are done; those that racing spares are not to do.",
            "percentunit", [(f"sum by (study) ({DONE}) / sum by (study) ({TO_DO})", "{{study}}")],
            width=4, kind="stat", most=1.0,
        ),
        Panel(
            "Best F1 so far",
            "Mean validation F1 of each cell's best configuration whose folds are all done. It chooses; "
            "the verdict is of the scored folds (raymrc report).",
            "percentunit", [(seen(metrics.BEST_F1), "{{cell}}")], width=10, most=1.0,
        ),
        Panel(
            "Fold-runs by state",
            "Of the plan. Closed ones are of cells that were given up after failures; racing spares those "
            "whose configuration cannot win any more.",
            "short", [(f"sum by (state) ({seen(metrics.FOLD_RUNS)})", "{{state}}")], width=10, stacks=True,
        ),
        Panel(
            "Training loss",
            "Mean loss of the latest epoch of the fold-runs that are open. It rises where new ones begin.",
            "short", [(f"avg by (cell) ({of(metrics.TRAINING_LOSS)})", "{{cell}}")],
        ),
        Panel(
            "Tokens trained a second", "Real pieces through the encoder, by backbone and strategy.",
            "short", [(rate(metrics.TOKENS, "backbone, strategy"), "{{backbone}} {{strategy}}")],
        ),
        Panel(
            "Tries that ended, a minute",
            "Done, failed, paused at a rung of a race, or stopped by it.",
            "short", [(f"60 * {rate(metrics.ENDED, 'status')}", "{{status}}")],
        ),
        Panel(
            "How long a fold-run takes",
            "By the clock, of those that are done: half of them are quicker, and 95 %. Read from buckets "
            "that are a factor of three wide.",
            "s",
            [
                (
                    f"histogram_quantile({quantile}, "
                    f"sum by (strategy, le) ({of(metrics.FOLD_RUN_SECONDS)}))",
                    f"{{{{strategy}}}} {name}",
                )
                for quantile, name in ((0.5, "half"), (0.95, "95 %"))
            ],
            width=12,
        ),
        Panel(
            "Tried again", "Fold-runs that failed and were given another try in this run.",
            "short", [(in_all(metrics.RETRIES, "strategy"), "{{strategy}}")], width=12,
        ),
    ),
    "Cluster": (
        Panel(
            "Fold-runs that train", "Lanes that are open on hosts and worker groups.",
            "short", [(in_all(metrics.LANES_OPEN, "cell"), "{{cell}}")], stacks=True,
        ),
        Panel(
            "Fold-runs that wait", "Handed in, and no host has them yet.",
            "short", [(in_all(metrics.QUEUE, "cell"), "{{cell}}")], stacks=True,
        ),
        Panel(
            "Hosts and worker groups", "There, or asked for: those wait for devices.",
            "short", [(in_all(metrics.HOSTS, "kind, state"), "{{kind}} {{state}}")],
        ),
        Panel(
            "Losses and evictions",
            "Hosts and groups that were lost without a word, and those that saved what they had before "
            "their machine was taken away.",
            "short",
            [
                (in_all(metrics.HOST_DEATHS, "kind"), "{{kind}} lost"),
                (in_all(metrics.EVICTIONS, "kind"), "{{kind}} evicted"),
            ],
        ),
        Panel(
            "Machines", "Of the cluster, the head among them, as Ray counts them.",
            "short", [("max by (SessionName) (ray_cluster_active_nodes)", "{{SessionName}}")],
        ),
        Panel(
            "CPU use", "Of each machine of the cluster, as Ray measures it.",
            "percent", [("max by (ip) (ray_node_cpu_utilization)", "{{ip}}")], most=100.0,
        ),
        Panel(
            "Memory in use", "Of each machine of the cluster, as Ray measures it.",
            "bytes", [("max by (ip) (ray_node_mem_used)", "{{ip}}")],
        ),
        Panel(
            "GPU use", "Of each GPU, as Ray measures it. Nothing where there is none.",
            "percent",
            [("max by (ip, GpuIndex) (ray_node_gpus_utilization)", "{{ip}} GPU {{GpuIndex}}")],
            most=100.0,
        ),
        Panel(
            "GPU memory",
            "In use on each GPU, as Ray measures it, and what hosts' processes have taken of it. Nothing "
            "where there is none.",
            "bytes",
            [
                ("1048576 * max by (ip, GpuIndex) (ray_node_gram_used)", "{{ip}} GPU {{GpuIndex}}"),
                (f"sum by (backbone) ({of(metrics.GPU_RESERVED_BYTES)})", "hosts of {{backbone}}"),
            ],
        ),
    ),
    "Cost": (
        Panel(
            "Share of the budget", "Spent of each cap that the study has, in all its runs.",
            "percentunit",
            [
                (share(metrics.SPENT_USD, metrics.BUDGET_USD), "{{study}} USD"),
                (
                    share(metrics.SPENT_DEVICE_SECONDS, metrics.BUDGET_DEVICE_SECONDS),
                    "{{study}} devices",
                ),
                (share(metrics.SPENT_WALL_SECONDS, metrics.BUDGET_WALL_SECONDS), "{{study}} clock"),
            ],
            kind="stat", most=1.0, warns_at=0.8,
        ),
        Panel(
            "Money", "Dollars of device time: spent in all runs of the study, and its cap.",
            "currencyUSD",
            [
                (seen(metrics.SPENT_USD), "{{study}} spent"),
                (seen(metrics.BUDGET_USD), "{{study}} cap"),
            ],
        ),
        Panel(
            "Money an hour", "What the hosts that are there cost, over the latest minutes.",
            "currencyUSD",
            [
                (
                    f"3600 * max by (study) (deriv({of(metrics.SPENT_USD)}[$__rate_interval]))",
                    "{{study}}",
                )
            ],
        ),
        Panel(
            "Budget left", "Device time and time by the clock, where the study caps them.",
            "s",
            [
                (left(metrics.SPENT_DEVICE_SECONDS, metrics.BUDGET_DEVICE_SECONDS), "{{study}} devices"),
                (left(metrics.SPENT_WALL_SECONDS, metrics.BUDGET_WALL_SECONDS), "{{study}} clock"),
            ],
        ),
        Panel(
            "Devices held", "What the study is charged for now: GPUs, else a CPU's cores.",
            "short", [(in_all(metrics.DEVICES_HELD, "study"), "{{study}}")],
        ),
        Panel(
            "Money by strategy",
            "What finished fold-runs used in this run of the study, at its price. Hosts are held for longer "
            "than that, so it is less than what is spent.",
            "currencyUSD", [(in_all(metrics.COST_USD, "strategy"), "{{strategy}}")], stacks=True,
        ),
        Panel(
            "Device time by cell", "What finished fold-runs used in this run of the study.",
            "s", [(in_all(metrics.DEVICE_SECONDS, "cell"), "{{cell}}")], width=24, stacks=True,
        ),
    ),
}  # fmt: skip

NEEDS_GPU = ("GPU use", "GPU memory")
"""Panels that show nothing where there is no GPU."""


# --- as Grafana has it ---------------------------------------------------------------------------------


def dashboard() -> dict[str, Any]:
    return {
        "uid": "raymrc",
        "title": "raymrc",
        "description": "Studies that run: how far they are, on what, and what they spend.",
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
    """To choose one, several or all of the values that Prometheus has of a label."""
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,  # whenever the range of time changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def panels() -> Iterator[dict[str, Any]]:
    """Each row's title, and its panels from left to right."""
    number, y = 0, 0
    for title, row in ROWS.items():
        number += 1
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        yield {
            "id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": [],
        }  # fmt: skip
        x, y = 0, y + 1
        for panel in row:
            number += 1
            if x + panel.width > WIDTH:
                x, y = 0, y + HEIGHT
            yield drawn(panel, number, x, y)
            x += panel.width
        y += HEIGHT


def drawn(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.warns_at is not None:
        defaults["thresholds"] = thresholds(panel.warns_at, panel.most or panel.warns_at)
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
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": HEIGHT},
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


def thresholds(warns_at: float, most: float) -> dict[str, Any]:
    steps = [("green", None), ("orange", warns_at), ("red", (warns_at + most) / 2)]
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
    """What is made, and its text."""
    return {GRAFANA / "raymrc.json": json.dumps(dashboard(), indent=1) + "\n"}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
