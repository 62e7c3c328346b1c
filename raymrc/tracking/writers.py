"""Run snapshots -> MLflow, through its client or straight into its tables.

Both ways leave the same runs behind, and writing a snapshot again changes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from raymrc.tracking.experiment import TrackingPlace, find_runs, open_experiment
from raymrc.tracking.mlflow_internals import DatabaseWriter, log_datasets
from raymrc.tracking.snapshots import DIGEST_TAG, ExistingRun, RunSnapshot

MAX_METRICS_BESIDE_TAGS = 800
"""MLflow's client splits more than 1000 items over several requests, and the first one holds the tags."""


class ClientWriter:
    """Writes through MLflow's client, so to any tracking server, with three calls per run.

    The digest comes last: a run that is cut off before has none, and is written again.
    """

    def __init__(self, client: Any, experiment_id: str) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self._linked: set[str] = set()
        """Keys of the runs whose datasets this writer has logged."""

    def find_runs(self) -> dict[str, ExistingRun]:
        """All our runs of the experiment by key, including those that the user deleted."""
        return find_runs(self.client, self.experiment_id)

    def write(self, snapshots: Sequence[RunSnapshot], existing: dict[str, ExistingRun]) -> None:
        """Write in the given order, and enter every run into `existing`."""
        from mlflow.entities import Metric, Param, RunTag

        for snapshot in snapshots:
            tags = snapshot.all_tags(existing)
            known = existing.get(snapshot.key)
            if known is None:
                run = self.client.create_run(
                    self.experiment_id,
                    start_time=snapshot.start_ms,
                    tags=tags,
                    run_name=snapshot.name,
                )
                run_id, tags = run.info.run_id, {}
                existing[snapshot.key] = ExistingRun(run_id, "")
            else:
                run_id = known.run_id
                self.client.update_run(run_id, name=snapshot.name)
            if snapshot.datasets and snapshot.key not in self._linked:
                log_datasets(self.client, run_id, snapshot.datasets)
                self._linked.add(snapshot.key)
            if snapshot.status == "RUNNING":
                self.client.update_run(run_id, status=snapshot.status)
            else:
                self.client.set_terminated(run_id, snapshot.status, end_time=snapshot.end_ms)
            metrics = [Metric(k, v, ms, step) for k, v, step, ms in snapshot.finite_metrics]
            if len(metrics) > MAX_METRICS_BESIDE_TAGS:
                self.client.log_batch(run_id, metrics)
                metrics = []
            self.client.log_batch(
                run_id,
                metrics,
                [Param(k, v) for k, v in snapshot.params.items()],
                [RunTag(k, v) for k, v in {**tags, DIGEST_TAG: snapshot.digest}.items()],
            )
            existing[snapshot.key] = ExistingRun(run_id, snapshot.digest)


Writer = ClientWriter | DatabaseWriter


def open_writer(place: TrackingPlace) -> Writer:
    """The fastest writer that works for this MLflow."""
    client, experiment = open_experiment(place)
    if place.dialect in ("sqlite", "postgresql"):
        # If MLflow has changed its tables, the client writes to them.
        with contextlib.suppress(LookupError):
            return DatabaseWriter(place.tracking_uri, client, experiment)
    return ClientWriter(client, experiment.experiment_id)
