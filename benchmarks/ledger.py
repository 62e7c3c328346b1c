"""Cost of a large ledger: writing, listing, reading, resuming and reporting.

    PYTHONPATH=. python -m benchmarks.ledger [--quick]

Records of a synthetic grid (cells x configurations x five folds; five labels, 40 scored notes, 10 epochs;
about 10 kB each) are on local disk, and on moto's S3 server in another process on loopback. Steps: durable
writes (`Ledger.record`), names (`keys`), records (`read_all`), a search over all records that hands out
missing ones (`StudySearch`), and the verdict with tables and JSON. Each size runs in a fresh process;
`peak_bytes` is its peak memory, Python and raymrc included.

On S3 at most 3,000 records per size are written; the others are in the server's memory from its start.
`write` is scaled to all records.

Peers on local disk: SQLite with one row and one transaction per record (records arrive one by one and must
survive a power cut), read into the same `Record` values; and MLflow's `search_runs` on its SQLite store,
for as many fold-runs as fit in minutes. Peer on S3: plain pyarrow requests to the same server, one PUT and
one GET per record. moto is a single Python process, whose time per request dominates, and it sorts all
names of a bucket for each page of a listing: only the CPU seconds of `list` are ours.

`growth` lines give the exponent b of seconds ~ n^b between two sizes; 1 is linear, 2 quadratic.
"""

from __future__ import annotations

import json
import math
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.common import Options, json_line, read_options, run_together, start
from raymrc.configuration import Backbone, Cell, FoldRun
from raymrc.ledger.ledger import Ledger
from raymrc.ledger.record import Epoch, NoteCounts, Record
from raymrc.planning.fold_runs import Fingerprints, fold_run
from raymrc.planning.plan import (
    CellPlan,
    Plan,
    build_configuration,
)
from raymrc.scoring.counts import Counts
from raymrc.study.space import Fixed, Grid, build_space
from tests.s3_server import ACCESS, HAS_MOTO, s3_server

FOLDS = 5
STRATEGIES = ("fine_tune", "hard_prompt", "soft_prompt", "frozen_soft_prompt")
LABELS = "Drug Dosage Route Reason ADE".split()
NOTES, EPOCHS = 40, 10
MISSING = 100
"""Planned fold-runs that the ledger lacks and a resumed search must find."""

SIZES, QUICK_SIZES = (1_000, 10_000, 100_000), (10, 20)
MAX_WRITTEN_TO_S3 = 3_000
"""moto takes about 20 ms for a record's three requests, so 100,000 records take over half an hour."""
MAX_WRITTEN_TO_SQLITE = 10_000
"""The peer waits for the disk at every record, too; the largest size is only read from it."""
MLFLOW_SIZE, QUICK_MLFLOW_SIZE = 1_000, 5
MAX_GROWTH = 1.15
"""Exponent that a busy machine may cause; quadratic growth is 2."""

SECONDS_PER_RECORD = 0.001
"""Goal of steps without a peer. Training a fold-run takes at least a minute."""

STEPS = ("write", "list", "read", "resume", "report")


# --- a made-up study --------------------------------------------------------------------------------


def make_plan(num_records: int) -> Plan:
    """A grid with `MISSING` more fold-runs than records."""
    wanted = math.ceil((num_records + MISSING) / FOLDS)
    cells_of_strategy = 2 if num_records < 10_000 else 10
    per_cell = math.ceil(wanted / (cells_of_strategy * len(STRATEGIES)))
    cells = []
    for size in range(cells_of_strategy):
        backbone = Backbone(f"made-up-l{size + 1}", "nowhere", layers=size + 1)
        for strategy in STRATEGIES:
            rates = Grid(tuple(1e-5 * (i + 1) for i in range(per_cell)))
            space = build_space({"learning_rate": rates, "epochs": Fixed(EPOCHS)})
            cell = CellPlan(Cell("concepts", "made-up", backbone, strategy), space, 0, 0, None)
            found = tuple(build_configuration(cell.cell, space, v) for v in space.grid())
            cell = replace(cell, configurations=found, num_configurations=len(found))
            cells.append(replace(cell, num_fold_runs=len(found) * FOLDS))
    weights = {cell.cell.backbone.name: "w" * 64 for cell in cells}
    prints = Fingerprints("c" * 64, "f" * 64, "q" * 64, weights)
    return Plan(
        study="made-up",
        task="concepts",
        corpus="made-up",
        folds=FOLDS,
        algorithm="grid",
        seed=13,
        cells=tuple(cells),
        fingerprints=prints,
    )


def fold_runs(plan: Plan) -> Iterator[FoldRun]:
    """Cells in turn, as a search hands them out."""
    assert plan.fingerprints is not None
    for number in range(max(cell.num_configurations for cell in plan.cells)):
        for cell in plan.cells:
            assert cell.configurations is not None
            for fold in range(FOLDS):
                yield fold_run(cell.configurations[number], fold, plan.fingerprints)


@lru_cache
def _counts(seed: int) -> dict[str, NoteCounts]:
    draw = random.Random(seed)

    def labels() -> dict[str, Counts]:
        return {k: Counts(draw.randrange(12), draw.randrange(4), draw.randrange(4)) for k in LABELS}

    return {f"note-{seed % FOLDS}-{i:04d}": NoteCounts(labels(), labels()) for i in range(NOTES)}


def make_record(run: FoldRun, number: int) -> Record:
    draw = random.Random(number)
    frozen = run.configuration.cell.strategy.startswith("frozen")
    return Record(
        key=run.key,
        fold_run=run,
        notes=_counts(number % 200),
        validation_f1=draw.random(),
        best_epoch=EPOCHS,
        epochs=tuple(Epoch(e + 1, draw.random(), draw.random(), 9.87654321) for e in range(EPOCHS)),
        trained=tuple((f"encoder.layers.*.part-{i}.weight", 10**6) for i in range(20)),
        trained_parameters=10**5 if frozen else 10**7,
        total_parameters=22_713_216,
        adapter_bytes=4 * 10**5,
        device_seconds=60 * draw.random(),
        wall_seconds=123.456,
        tokens=10**6,
        flops=1e15,
        peak_bytes=10**9,
        versions={
            "raymrc": "0.1.0",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "python": "3.11.7",
        },
        hardware="AMD EPYC, 2 cores, 1 threads",
        started_at=f"2026-01-{1 + number // 86400:02d}T{number // 3600 % 24:02d}:"
        f"{number // 60 % 60:02d}:{number % 60:02d}+00:00",
    )


def made_records(num_records: int, first: int = 0) -> Iterator[tuple[str, str, Record]]:
    """(key, JSON, record); creating them is not timed."""
    runs = fold_runs(make_plan(num_records))
    for number, run in islice(enumerate(runs), first, num_records):
        record = make_record(run, number)
        yield record.key, record.to_json(), record


# --- steps, each in a process of its own ------------------------------------------------------------


def peak_bytes() -> int:
    # From /proc, because getrusage reports at least the parent's peak.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not say how much memory a process has had")


def measure(clock_of: dict[str, Any], name: str, action: Callable[[], Any]) -> Any:
    """The action's result; its wall and CPU seconds are added under `name`.

    CPU seconds do not depend on how busy the machine is.
    """
    began, cpu = time.perf_counter(), time.process_time()
    found = action()
    clock_of[name] = clock_of.get(name, 0.0) + time.perf_counter() - began
    clock_of[f"cpu {name}"] = clock_of.get(f"cpu {name}", 0.0) + time.process_time() - cpu
    return found


def write_ours(storage: str, num_records: int, first: int = 0) -> dict[str, Any]:
    """
    Args:
        first: index of the first record to write; earlier ones exist.
    """
    ledger, seconds = Ledger(storage), dict[str, Any]()
    for _, text, record in made_records(num_records, first):
        measure(seconds, "write", partial(ledger.record, record, text))
    return seconds | {"peak_bytes": peak_bytes()}


def use_ours(storage: str, num_records: int) -> dict[str, Any]:
    from rich.console import Console

    from raymrc.analysis.findings import summaries_json
    from raymrc.analysis.judging import conclude
    from raymrc.analysis.summary import summarise
    from raymrc.report.results import winner_table
    from raymrc.report.terminal import render
    from raymrc.scheduling.search import StudySearch

    seconds: dict[str, Any] = {"empty_bytes": peak_bytes()}
    ledger, plan = Ledger(storage, write=False), make_plan(num_records)
    keys = measure(seconds, "list", ledger.keys)
    records, problems = measure(seconds, "read", ledger.read_all)
    assert len(keys) == len(records) == num_records and not problems

    def resume() -> int:
        search = StudySearch(plan, records)
        missing = 0
        while (work := search.next()) is not None:
            missing += len(work.fold_runs)
        return missing

    assert measure(seconds, "resume", resume) == plan.num_fold_runs - num_records
    assert plan.fingerprints is not None
    cells = [cell.cell for cell in plan.cells]

    def report() -> None:
        assert plan.fingerprints is not None
        planned = [r for r in records if plan.holds(r.fold_run.configuration)]
        same = [
            fold_run(r.fold_run.configuration, r.fold_run.fold, plan.fingerprints) for r in planned
        ]
        summaries = summarise(planned, FOLDS, cells, same)
        with Path(os.devnull).open("w") as nowhere:
            Console(file=nowhere, width=160).print(
                render([winner_table(summaries, conclude((), 0.01))])
            )
            json.dump(summaries_json(summaries), nowhere)
        assert sum(summary.num_done for summary in summaries) == num_records

    measure(seconds, "report", report)
    return seconds | {"peak_bytes": peak_bytes()}


def write_sqlite(path: str, num_records: int) -> dict[str, Any]:
    connection, seconds = sqlite3.connect(path), dict[str, Any]()
    # With these settings a commit survives a power cut and waits for the disk once.
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = full")
    connection.execute("create table records (key text primary key, status text, record text)")

    def write(key: str, text: str) -> None:
        with connection:
            connection.execute("insert or ignore into records values (?, 'done', ?)", (key, text))

    for key, text, _ in made_records(num_records):
        measure(seconds, "write", partial(write, key, text))
    return seconds | {"peak_bytes": peak_bytes()}


def fill_sqlite(path: str, storage: str) -> dict[str, Any]:
    """Copy a ledger's records into SQLite without waiting for the disk."""
    connection = sqlite3.connect(path)
    connection.execute("create table records (key text primary key, status text, record text)")
    with connection:
        for place in Path(storage).rglob("*.json"):
            row = (place.stem, place.read_text())
            connection.execute("insert into records values (?, 'done', ?)", row)
    return {}


def use_sqlite(path: str, num_records: int) -> dict[str, Any]:
    connection, seconds = sqlite3.connect(path), dict[str, Any]()

    def ask(what: str) -> Iterator[tuple[str]]:
        return connection.execute(f"select {what} from records order by key")

    def read() -> tuple[Record, ...]:
        return tuple(Record.from_json(text) for (text,) in ask("record"))

    keys = measure(seconds, "list", lambda: frozenset(key for (key,) in ask("key")))
    records = measure(seconds, "read", read)
    assert len(keys) == len(records) == num_records
    return seconds | {"peak_bytes": peak_bytes()}


def ask_plainly(storage: str, num_requests: int) -> dict[str, Any]:
    """Seconds for `num_requests` plain pyarrow requests of each kind, one after another."""
    from raymrc.ledger.storage import ObjectStore, open_files

    files, seconds = open_files(storage, "plain"), dict[str, Any]()
    assert isinstance(files, ObjectStore)
    for number, (_, text, _) in enumerate(made_records(num_requests)):
        content, path = text.encode(), f"{files.root}/{number}.json"

        def put(path: str = path, content: bytes = content) -> None:
            with files.filesystem.open_output_stream(path) as stream:
                stream.write(content)

        def get(path: str = path) -> None:
            with files.filesystem.open_input_stream(path) as stream:
                stream.read()

        measure(seconds, "write", put)
        measure(seconds, "read", get)
    return seconds


def use_mlflow(folder: str, num_records: int) -> dict[str, Any]:
    """The same fold-runs as MLflow runs, read back by its client."""
    from raymrc.tracking import TrackingPlace, sync_study
    from raymrc.tracking.experiment import open_experiment

    place, seconds = TrackingPlace(f"sqlite:///{folder}/mlflow.db", "made-up"), dict[str, Any]()
    records = [record for _, _, record in made_records(num_records)]
    measure(seconds, "write", lambda: sync_study(records, place))
    client, experiment = open_experiment(place)

    def read() -> int:
        found, token = 0, None
        while True:
            page = client.search_runs(
                [experiment.experiment_id],
                filter_string="tags.level = 'fold-run'",
                max_results=1000,
                page_token=token,
            )
            found, token = found + len(page), page.token
            if not token:
                return found

    assert measure(seconds, "read", read) == num_records
    return seconds | {"peak_bytes": peak_bytes()}


# --- the cases ----------------------------------------------------------------------------------------


def run_step(step: Callable[..., dict[str, Any]], *arguments: str | int) -> dict[str, Any]:
    """Run a step in a new process, so that the peak memory is the step's."""
    words = [step.__name__, *map(str, arguments)]
    return run_together([sys.executable, "-m", "benchmarks.ledger", "step", *words])


def print_comparison(
    options: Options,
    where: str,
    num_records: int,
    ours: dict[str, Any],
    peer: dict[str, Any],
    called: str,
    goal: float = 1.0,
) -> None:
    """Print one line per step; `peer` and `called` are the peer's result and name, if there is one."""
    for step in STEPS:
        if step not in ours:
            continue
        seconds, other = ours[step], peer.get(step)
        rate = num_records / seconds
        # Without a peer the goal is one minute for the largest size, and proportionally less for others.
        json_line(
            options,
            f"{where}, {num_records:,} records: {step}" + (f", against {called}" if other else ""),
            seconds,
            other,
            "s",
            other / seconds if other else SECONDS_PER_RECORD * num_records / seconds,
            goal if other else SECONDS_PER_RECORD * num_records,
            records_per_second=float(f"{rate:.4g}"),
            cpu_seconds=float(f"{ours[f'cpu {step}']:.4g}"),
            peak_bytes=ours["peak_bytes"],
            **({"peer_peak_bytes": peer["peak_bytes"]} if other and "peak_bytes" in peer else {}),
        )


def print_growth(options: Options, where: str, by_size: dict[int, dict[str, Any]]) -> None:
    """Growth between the two largest sizes; smaller ones are dominated by start-up."""
    *_, smaller, larger = sorted(by_size)

    def growth(name: str) -> float:
        times = by_size[larger][name] / by_size[smaller][name]
        return math.log(times) / math.log(larger / smaller)

    for step in STEPS:
        exponent = growth(step)
        json_line(
            options,
            f"{where}, {smaller:,} to {larger:,} records: growth of {step}",
            exponent,
            None,
            "exponent b of seconds ~ n^b",
            MAX_GROWTH / max(exponent, 0.01),
            MAX_GROWTH,
            of_cpu_seconds=float(f"{growth(f'cpu {step}'):.4g}"),
        )


def on_disk(options: Options, place: Path) -> None:
    ours = {}
    for size in QUICK_SIZES if options.quick else SIZES:
        storage, path = str(place / str(size) / "study"), str(place / f"{size}.db")
        ours[size] = run_step(write_ours, storage, size)
        if size <= MAX_WRITTEN_TO_SQLITE:
            peer = run_step(write_sqlite, path, size)
        else:
            peer = run_step(fill_sqlite, path, storage)
        ours[size] |= run_step(use_ours, storage, size)
        peer |= run_step(use_sqlite, path, size)
        print_comparison(options, "local disk", size, ours[size], peer, "SQLite")
    print_growth(options, "local disk", ours)


def on_s3(options: Options, place: Path) -> None:
    """The server starts with the records of `on_disk`, except those that will be written."""
    os.environ.update(ACCESS)
    ours = {}
    for size in QUICK_SIZES[:1] if options.quick else SIZES:
        written = min(size, 5 if options.quick else MAX_WRITTEN_TO_S3)
        filled = place / str(size)
        for key, _, _ in made_records(size, size - written):
            (filled / "study" / "ledger" / key[:2] / f"{key}.json").unlink()
        with s3_server(filled) as server:
            storage = server.storage("study")
            ours[size] = run_step(write_ours, storage, size, size - written)
            for name in ("write", "cpu write"):
                ours[size][name] *= size / written
            ours[size] |= run_step(use_ours, storage, size)
            requests = 5 if options.quick else 500
            plain = run_step(ask_plainly, server.storage("plain"), requests)
        peer = {step: seconds * size / requests for step, seconds in plain.items()}
        where = "S3 by moto" + (f" (the last {written:,} written)" if written < size else "")
        print_comparison(options, where, size, ours[size], peer, "bare requests", goal=0.5)
    if len(ours) > 1:
        print_growth(options, "S3 by moto", ours)


def beside_mlflow(options: Options, place: Path) -> None:
    size = QUICK_MLFLOW_SIZE if options.quick else MLFLOW_SIZE
    storage = str(place / "beside-mlflow")
    run_step(write_ours, storage, size)
    ours = run_step(use_ours, storage, size)
    (place / "mlflow").mkdir()
    peer = run_step(use_mlflow, str(place / "mlflow"), size)
    only_read = {name: ours[name] for name in ("read", "cpu read", "peak_bytes")}
    print_comparison(options, "local disk", size, only_read, peer, "MLflow's search_runs")


def main() -> None:
    options = read_options("ledger", __doc__, devices=("cpu",))
    start(options)
    with tempfile.TemporaryDirectory(prefix="ledger-", dir=os.environ.get("TMPDIR")) as folder:
        beside_mlflow(options, Path(folder))
        on_disk(options, Path(folder))
        if HAS_MOTO:
            on_s3(options, Path(folder))
        else:
            print("no moto: skipping the cases on S3", file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:2] == ["step"]:
        name, *words = sys.argv[2:]
        print(json.dumps(globals()[name](*(int(w) if w.isdigit() else w for w in words))))
    else:
        main()
