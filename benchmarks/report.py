"""Cost of a study's page: time from the ledger to the file, its size, and time until a browser draws it.

    PYTHONPATH=. python -m benchmarks.report [--quick]

A synthetic study (seven backbones, four strategies, five folds, another site, a final test; eight scored
notes per fold) of 2,520 and of 25,000 fold-runs on local disk. `read` is the ledger's part (see
`benchmarks.ledger`), `draw up` computes cells, tests and bootstraps, `write` writes the page. Then Debian's
Chromium, if installed, opens the file: time until the first plot is drawn, and until all are, each scrolled
into view. `cpu_seconds` do not depend on how busy the machine is.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import Options, json_line, read_options, start
from raymrc.analysis.findings import build_findings
from raymrc.ledger.ledger import ENDING_BY_STATUS, Ledger
from raymrc.planning.loaded import LoadedStudy
from raymrc.report import write
from tests.browser import CHROMIUM, Visit, browser
from tests.report.making import STUDY, make_records

BACKBONES = (
    "[{name: bert-large, layers: 12}, {name: roberta-large, layers: 12}, bert-large, roberta-large, "
    "gatortron-345m, gatortron-3.9b, gatortron-8.9b]"
)
SIZES = {2_520: 18, 25_000: 180}
"""Fold-runs (more with those that a race saves) -> configurations per cell."""
QUICK_SIZES = {140: 1}

BUILD_SECONDS = 30.0
PAGE_BYTES = 8e6
OPEN_SECONDS = 2.0
"""Seconds until a page is open; pages must also be small enough for mail."""


def make_study(configurations: int) -> str:
    """A study file with learning rates, or rates and prompt lengths, per cell."""
    lengths = [8, 32, 64] if configurations % 3 == 0 else [8]
    few = configurations // len(lengths)
    frozen, trained = (
        [float(f"{low * 1.02**i:.5g}") for i in range(configurations)] for low in (5e-3, 1e-5)
    )
    lines = [
        f"  fine_tune: {{learning_rate: {trained}}}",
        f"  hard_prompt: {{learning_rate: {trained}}}",
        f"  soft_prompt: {{learning_rate: {trained[:few]}, prompt_length: {lengths}}}",
        f"  frozen_soft_prompt: {{learning_rate: {frozen[:few]}, prompt_length: {lengths}}}",
    ]
    head, _, rest = STUDY.partition("backbones:")
    strategies = "\n".join(lines)
    tail = rest[rest.index("training:") :]
    return f"{head}backbones: {BACKBONES}\nstrategies:\n{strategies}\n{tail}"


def build(options: Options, size: int, configurations: int, folder: Path) -> Path:
    """Build the page of a study of this size, and print its cases."""
    spec, plan, records = make_records(folder, make_study(configurations))
    ledger = folder / "ledger"
    for record in records:
        place = ledger / record.key[:2] / f"{record.key}{ENDING_BY_STATUS[record.status]}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(record.to_json())
    clock, cpu = [time.perf_counter()], time.process_time()
    read = Ledger(str(folder), write=False).records()
    clock.append(time.perf_counter())
    assert len(read) == len(records)
    findings = build_findings(LoadedStudy(spec), plan, read)
    clock.append(time.perf_counter())
    page = write(findings, folder)
    clock.append(time.perf_counter())
    cpu = float(f"{time.process_time() - cpu:.4g}")
    stages = zip(("read", "draw up", "write"), clock, clock[1:], strict=False)
    seconds = {name: float(f"{later - earlier:.4g}") for name, earlier, later in stages}
    total, name = clock[-1] - clock[0], f"{size:,} fold-runs"
    sizes = {"records": len(records), "cells": len(plan.cells)}
    json_line(
        options, f"{name}: from the ledger to the page", total, None, "s",
        BUILD_SECONDS / total, BUILD_SECONDS, stages=seconds, cpu_seconds=cpu, **sizes,
    )  # fmt: skip
    large = page.stat().st_size
    json_line(
        options, f"{name}: size of the page", large / 1e6, None, "MB",
        PAGE_BYTES / large, PAGE_BYTES / 1e6, **sizes,
    )  # fmt: skip
    return page


def draw(options: Options, size: int, page: Path, visits: int) -> None:
    """Time until a browser has drawn the page, the median of visits."""
    first, every, plots = [], [], 0
    with browser() as chromium:
        for _ in range(visits):
            began = time.perf_counter()
            visit = Visit(chromium, page, 1280)
            visit.page.locator(".plot").first.scroll_into_view_if_needed()
            visit.page.locator("[data-state=drawn]").first.wait_for()
            first.append(time.perf_counter() - began)
            plots = visit.see_all()
            every.append(time.perf_counter() - began)
            assert visit.wrong == [] and visit.overflow == 0
            visit.page.close()
    for what, seconds, goal in (
        ("the first plot is", first, OPEN_SECONDS),
        ("all plots are", every, 5 * OPEN_SECONDS),
    ):
        ours = statistics.median(seconds)
        json_line(
            options, f"{size:,} fold-runs: until {what} drawn", ours, None, "s",
            goal / ours, goal, plots=plots, slowest=float(f"{max(seconds):.4g}"),
        )  # fmt: skip


def main() -> None:
    options = read_options("report", __doc__, devices=("cpu",))
    start(options)
    if CHROMIUM is None:
        print("no chromium: skipping the time to draw a page", file=sys.stderr)
    for size, configurations in (QUICK_SIZES if options.quick else SIZES).items():
        with tempfile.TemporaryDirectory(prefix="report-") as folder:
            page = build(options, size, configurations, Path(folder))
            if CHROMIUM is not None:
                draw(options, size, page, 1 if options.quick else 5)


if __name__ == "__main__":
    main()
