"""Draw what racing saves against what it loses, ours and its peers', from the benchmark's results.

    python docs/racing.py     (make docs does)

reads `benchmarks/results/racing.jsonl` and writes `docs/curves/racing.svg`: a panel a world or recorded grid,
a line a method, a mark a setting. Further right and further down is better; what is shaded is the goal.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS.parent / "benchmarks" / "results" / "racing.jsonl"

# Okabe and Ito's colours, as in curves.py.
STYLES = {
    "paired": ("#0072B2", "o", "ours"),
    "asha-folds": ("#E69F00", "s", "ASHA over folds"),
    "asha-epochs": ("#009E73", "^", "ASHA over epochs"),
    "asha-both": ("#CC79A7", "D", "ASHA over both"),
    "median": ("#56B4E9", "v", "median stopping"),
    "escv-aggressive": ("#D55E00", "P", "early-stopped CV, aggressive"),
    "escv-forgiving": ("#000000", "X", "early-stopped CV, forgiving"),
}

SAVING, REGRET = 6.0, 0.1
"""The goal: at least so many times fewer fold-epochs, at most so many points lost on average."""

Panels = dict[str, dict[str, list[tuple[float, float]]]]


def read_panels(lines: Sequence[dict[str, Any]]) -> Panels:
    """By world and method: saving and mean regret in points, a pair a setting, the least saving first."""
    found: Panels = {}
    for line in lines:
        world, _, label = line["case"].partition(": ")
        method = label.partition(" ")[0]
        if method in STYLES and "mean_regret_points" in line:
            point = (line["ours"], line["mean_regret_points"])
            found.setdefault(world, {}).setdefault(method, []).append(point)
    return {
        world: {m: sorted(points) for m, points in methods.items()}
        for world, methods in found.items()
    }


def draw(panels: Panels, path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "racing"  # the same points draw the same file
    from matplotlib import pyplot

    columns = 3
    points = [pair for methods in panels.values() for pairs in methods.values() for pair in pairs]
    furthest, worst = (max(values) for values in zip(*points, strict=True))
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3.1 * columns, 2.6 * rows + 0.8), sharex=True, sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    # Regrets from a hundredth of a point to several, and none at all.
    axes[0, 0].set_yscale("symlog", linthresh=0.1, linscale=1.0)
    axes[0, 0].set_ylim(-0.02, max(8.0, 1.2 * worst))
    ticks = [0.0, 0.1, 1.0, 5.0]
    axes[0, 0].set_yticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes[0, 0].yaxis.minorticks_off()
    for panel, (world, methods) in zip(axes.flat, panels.items(), strict=False):
        panel.fill_between(
            [SAVING, 1.0 + furthest], -0.02, REGRET, color="#009E73", alpha=0.12, linewidth=0
        )
        for method, (colour, mark, label) in STYLES.items():
            settings = methods.get(method, [])
            panel.plot(
                [saving for saving, _ in settings], [regret for _, regret in settings],
                color=colour, marker=mark, markersize=5, label=label,
                linewidth=2.0 if method == "paired" else 1.0,
            )  # fmt: skip
        panel.set_xlim(1.0, 1.0 + furthest)
        panel.tick_params(labelbottom=True)
        panel.set_title(world, fontsize="medium")
        panel.grid(alpha=0.3)
    for spare in axes.flat[len(panels) :]:
        spare.set_axis_off()
    figure.supxlabel("times fewer fold-epochs than the full grid", fontsize="medium")
    figure.supylabel("mean regret, F1 points", fontsize="medium")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4,
        frameon=False, fontsize="small",
    )  # fmt: skip
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    draw(read_panels(lines), DOCS / "curves" / "racing.svg")


if __name__ == "__main__":
    main()
