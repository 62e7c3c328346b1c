"""How long a report takes, how large its page is, and how soon it is drawn.

    PYTHONPATH=. python -m benchmarks.report [--quick]

Records of the made-up grids of `benchmarks.ledger` (cells x learning rates x five folds; five labels, 40
scored notes a fold), in memory: reading them is that benchmark's. `build`: verdict, statistics and page.
`open`: a headless Chromium, from the file's address until every plot is drawn; the issue's goal is 2 s at
2,520 fold-runs. There is no peer: nothing else draws these pages.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from statistics import median

from benchmarks.common import Options, json_line, read_options, start
from benchmarks.ledger import fold_runs, make_plan, make_record
from raymrc.report import write
from raymrc.study.findings import find
from raymrc.study.spec import load_spec

SIZES, QUICK_SIZES = (2_520, 25_000), (100,)
MOST_BUILD_SECONDS = {100: 10.0, 2_520: 30.0, 25_000: 300.0}
MOST_OPEN_SECONDS = 2.0
MOST_MEGABYTES = 10.0
TIMES_OPENED = 5

STUDY = """\
study: made-up
task: concepts
corpus: {name: made-up, synthetic: {scheme: n2c2-2018, notes: 6}, labels: [Drug]}
folds: {count: 5}
backbones: [minilm]
strategies:
  fine_tune: {learning_rate: 1.0e-4}
prices: {device_hour_usd: 0.9}
storage: runs/made-up
"""


def measure(options: Options, num_records: int, place: Path) -> None:
    (place / "study.yaml").write_text(STUDY)
    spec, plan = load_spec(place / "study.yaml"), make_plan(num_records)
    runs = enumerate(islice(fold_runs(plan), num_records))
    records = [make_record(run, number) for number, run in runs]
    began = time.perf_counter()
    page = write(find(spec, plan, records), place)
    built = time.perf_counter() - began
    size = page.stat().st_size / 1e6
    told(options, f"build, {num_records:,} fold-runs", built, MOST_BUILD_SECONDS[num_records], "s")
    told(options, f"page, {num_records:,} fold-runs", size, MOST_MEGABYTES, "MB")
    chromium = shutil.which("chromium")
    if chromium is None:
        print("no chromium here: not opened", file=sys.stderr)
        return
    opened = median(open_page(chromium, page) for _ in range(TIMES_OPENED))
    told(options, f"open, {num_records:,} fold-runs", opened, MOST_OPEN_SECONDS, "s")


def told(options: Options, case: str, ours: float, goal: float, unit: str) -> None:
    json_line(options, case=case, ours=ours, peer=None, unit=unit, ratio=goal / ours, goal=goal)


def open_page(chromium: str, page: Path) -> float:
    """Seconds until every plot is drawn."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        opened = browser.new_page(viewport={"width": 1280, "height": 900})
        began = time.perf_counter()
        opened.goto(page.as_uri())
        opened.wait_for_function(
            "document.documentElement.dataset.drawn === 'all'", timeout=120_000
        )
        seconds = time.perf_counter() - began
        browser.close()
    return seconds


def main() -> None:
    options = read_options("report", __doc__, devices=("cpu",))
    start(options)
    for num_records in QUICK_SIZES if options.quick else SIZES:
        with tempfile.TemporaryDirectory() as place:
            measure(options, num_records, Path(place))


if __name__ == "__main__":
    main()
