"""How long a ledger takes to appear in MLflow: straight into the tables, and through MLflow's client.

    PYTHONPATH=. python -m benchmarks.mlflow_sync [--quick]

The same made-up records as in `benchmarks.ledger` (five labels, 10 epochs) become the same run snapshots,
which `DatabaseWriter` (ours) and `ClientWriter` (the peer) write into new SQLite stores in turn. The
client makes three calls per run, one of them a `log_batch` with all metrics, params and tags; MLflow's
public API has nothing that writes more than one run per call. `DatabaseWriter` stays in the product
only while it is more than three times faster: that is the goal.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.common import Options, json_line, read_options, start
from benchmarks.ledger import made_records
from raymrc.tracking import TrackingPlace
from raymrc.tracking.experiment import open_experiment
from raymrc.tracking.mlflow_internals import DatabaseWriter
from raymrc.tracking.recorder import MAX_RUNS_PER_WRITE
from raymrc.tracking.snapshots import RunSnapshot, StudyHeader, build_snapshots, read_figures
from raymrc.tracking.writers import ClientWriter, Writer

MIN_SPEED_UP = 3.0
PAIRS_BY_RECORDS = {1_000: 3, 10_000: 1}
QUICK_PAIRS_BY_RECORDS = {5: 1}


def time_writer(kind: type[Writer], snapshots: list[RunSnapshot]) -> tuple[float, float]:
    """Wall seconds and CPU seconds; the empty store and its experiment exist before the clock starts."""
    with tempfile.TemporaryDirectory(prefix="mlflow-sync-") as folder:
        place = TrackingPlace(f"sqlite:///{Path(folder) / 'mlflow.db'}", "made-up")
        client, experiment = open_experiment(place)
        began, cpu_began = time.perf_counter(), time.process_time()
        writer: Writer
        if kind is DatabaseWriter:
            writer = DatabaseWriter(place.tracking_uri, client, experiment)
        else:
            writer = ClientWriter(client, experiment.experiment_id)
        existing = writer.find_runs()
        for first in range(0, len(snapshots), MAX_RUNS_PER_WRITE):
            writer.write(snapshots[first : first + MAX_RUNS_PER_WRITE], existing)
        return time.perf_counter() - began, time.process_time() - cpu_began


def measure(options: Options, num_records: int, pairs: int) -> None:
    figures = [read_figures(record) for _, _, record in made_records(num_records)]
    all_keys = {f.key for f in figures}
    snapshots = build_snapshots(figures, all_keys, lambda c: True, StudyHeader("made-up"))
    times: dict[type[Writer], list[tuple[float, float]]] = {DatabaseWriter: [], ClientWriter: []}
    for pair in range(pairs):
        for kind in sorted(times, key=lambda k: (k is ClientWriter) ^ (pair % 2)):
            times[kind].append(time_writer(kind, snapshots))
    (ours, ours_cpu), (peer, peer_cpu) = (
        [statistics.median(column) for column in zip(*times[kind], strict=True)]
        for kind in (DatabaseWriter, ClientWriter)
    )
    json_line(
        options,
        f"sync {num_records:,} fold-runs into SQLite, against MLflow's client",
        ours,
        peer,
        "s",
        statistics.median(
            p[0] / o[0] for o, p in zip(times[DatabaseWriter], times[ClientWriter], strict=True)
        ),
        MIN_SPEED_UP,
        mlflow_runs=len(snapshots),
        pairs=pairs,
        cpu_seconds=round(ours_cpu, 1),
        peer_cpu_seconds=round(peer_cpu, 1),
    )


def main() -> None:
    options = read_options("mlflow_sync", __doc__, devices=("cpu",))
    start(options)
    for num_records, pairs in (
        QUICK_PAIRS_BY_RECORDS if options.quick else PAIRS_BY_RECORDS
    ).items():
        measure(options, num_records, pairs)


if __name__ == "__main__":
    main()
