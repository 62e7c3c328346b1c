"""Draw a study's plot for the results page: F1 over shots, size of the backbone, prompt length, or sites.

    python docs/curves.py studies/phee/few-shot.yaml [--set key=value ...]

reads the study's ledger through `raymrc report --json`, writes `docs/curves/STUDY.json` (the points) and
`docs/curves/STUDY.svg`, and prints the points as a Markdown table. Where several configurations share a
point, the one that validation chose is taken.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CURVES = Path(__file__).resolve().parent / "curves"

# Okabe and Ito's colours, which the colour-blind tell apart; marks and dashes tell the rest.
STYLES = {
    "fine_tune": ("#0072B2", "o", "-"),
    "hard_prompt": ("#E69F00", "s", "--"),
    "soft_prompt": ("#009E73", "^", "-."),
    "frozen_soft_prompt": ("#CC79A7", "D", ":"),
}

AXES = {
    "shots": "training notes or mentions",
    "backbone_parameters": "parameters of the backbone",
    "prompt_length": "vectors of a prompt",
    "site": "scored on",
}
HOME = "at home"


def read_points(report: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """The axis that a study varies, and a point for each strategy and value of it."""
    cells = [cell for cell in report["cells"] if cell["configurations"]]
    if any(cell["shots"] is not None for cell in cells):
        axis = "shots"
    elif len({cell["backbone"] for cell in cells}) > 1:
        axis = "backbone_parameters"
    elif any(entry["transfer"] for cell in cells for entry in cell["configurations"]):
        return "site", [point for cell in cells for point in _read_sites(cell)]
    else:
        axis = "prompt_length"
    sizes = {gap["backbone"]: gap["backbone_parameters"] for gap in report["frozen_gaps"]}
    points: dict[tuple[str, float], dict[str, Any]] = {}
    for cell in cells:
        for entry in cell["configurations"]:
            if not entry["complete"]:
                continue
            where = {
                "shots": cell["shots"],
                "prompt_length": entry["settings"]["prompt_length"],
                "backbone_parameters": sizes.get(cell["backbone"]),
            }[axis]
            if not where:  # no prompt, so no length
                continue
            point = {
                "strategy": cell["strategy"],
                axis: where,
                "strict_f1": entry["strict_f1"]["mean"],
                "sd": entry["strict_f1"]["sd"],
                "validation_f1": entry["validation_f1"]["mean"],
                "fold_runs": entry["folds_done"],
                "device_seconds": entry["device_seconds"] / entry["folds_done"],
            }
            key = (cell["strategy"], where)
            if key not in points or point["validation_f1"] > points[key]["validation_f1"]:
                points[key] = point
    return axis, sorted(points.values(), key=lambda p: (list(STYLES).index(p["strategy"]), p[axis]))


def _read_sites(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """F1 of a cell's winner at home, of all its labels, and on each other site, of those that both have."""
    winner = next(
        (entry for entry in cell["configurations"] if entry["id"] == cell["winner"]), None
    )
    if winner is None:
        return []
    found = {HOME: (winner["strict_f1"], None)}
    found |= {name: (site["away"], site["drop"]) for name, site in winner["transfer"].items()}
    return [
        {
            "strategy": cell["strategy"], "site": name, "strict_f1": f1["mean"], "sd": f1["sd"],
            "drop": drop and drop["mean"], "drop_sd": drop and drop["sd"],
        }
        for name, (f1, drop) in found.items()
    ]  # fmt: skip


def draw(name: str, axis: str, points: Sequence[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = name  # the same points draw the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    strategies = [s for s in STYLES if any(p["strategy"] == s for p in points)]
    is_site = axis == "site"
    values = (
        list(dict.fromkeys(p[axis] for p in points))
        if is_site
        else sorted({p[axis] for p in points})
    )
    places = {v: float(n) if is_site else math.log2(v) for n, v in enumerate(values)}
    width = max(places.values()) - min(places.values())
    for number, strategy in enumerate(strategies):
        curve = [p for p in points if p["strategy"] == strategy]
        colour, mark, line = STYLES[strategy]
        # A little apart, so that bars at one value do not hide each other.
        shift = (0.05 if is_site else 0.01) * width * (number - (len(strategies) - 1) / 2)
        axes.errorbar(
            [places[p[axis]] + shift for p in curve],
            [100 * p["strict_f1"] for p in curve],
            yerr=[100 * (p["sd"] or 0) for p in curve],
            color=colour, marker=mark, linestyle="" if is_site else line, capsize=3, label=strategy,
        )  # fmt: skip
    axes.set_xticks(list(places.values()), [_label(value) for value in values])
    axes.set_xlabel(AXES[axis])
    axes.set_ylabel("strict F1, points")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _label(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value / 1e6:.1f}M" if value > 1e6 else f"{value:g}"


def table(axis: str, points: Sequence[dict[str, Any]]) -> str:
    """A row a value, a column a strategy: mean and spread in points."""
    strategies = [s for s in STYLES if any(p["strategy"] == s for p in points)]
    by_place = {(p["strategy"], p[axis]): p for p in points}
    lines = [
        f"| {AXES[axis]} | " + " | ".join(f"`{s}`" for s in strategies) + " |",
        "|---:" * (1 + len(strategies)) + "|",
    ]
    values = dict.fromkeys(p[axis] for p in points)
    for value in values if axis == "site" else sorted(values):
        row = [value if axis == "site" else f"{value:,}"]
        for strategy in strategies:
            point = by_place.get((strategy, value))
            row.append(
                f"{100 * point['strict_f1']:.1f} ± {100 * point['sd']:.1f}" if point else "-"
            )
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="KEY=VALUE")
    given = parser.parse_args()
    changes = [part for change in given.changes for part in ("--set", change)]
    report = subprocess.run(
        [sys.executable, "-m", "raymrc", "report", given.study, "--json", *changes],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    axis, points = read_points(json.loads(report.stdout))
    name = "-".join(Path(given.study).with_suffix("").parts[-2:])
    CURVES.mkdir(exist_ok=True)
    (CURVES / f"{name}.json").write_text(
        json.dumps({"axis": axis, "points": points}, indent=1) + "\n"
    )
    draw(name, axis, points, CURVES / f"{name}.svg")
    print(table(axis, points))


if __name__ == "__main__":
    main()
