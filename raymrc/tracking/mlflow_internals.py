"""Every use of a part of MLflow that its documentation does not promise.

`tests/tracking/test_mlflow_internals.py` has a test for each, which says what breaks when MLflow changes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from raymrc.configuration import hash_values
from raymrc.tracking.datasets import Dataset
from raymrc.tracking.snapshots import DELETED, DIGEST_TAG, KEY_TAG, ExistingRun, RunSnapshot

NAME_TAG = "mlflow.runName"

DATASET_CONTEXT_TAG = "mlflow.data.context"
"""Input tag by which the UI names what a dataset is for."""

VIEW_METRICS = "cost_usd device_seconds strict_f1 strict_f1_sd trained_share"
VIEW_TAGS = "backbone prompt_length strategy"
"""The view has as many columns as fit on a screen; the table shows metrics before tags, sorted by name."""

EXPERIMENT_TAGS = {
    # Without it the UI guesses whether to show training runs, and asks.
    "mlflow.experimentKind": "custom_model_development",
    # The UI's "Share" button writes a view into such a tag; nothing documented selects a table's columns.
    "mlflow.sharedViewState.raymrc": json.dumps(
        {
            "searchFilter": "tags.level = 'cell'",
            "orderByKey": "metrics.`strict_f1`",
            "orderByAsc": False,
            "selectedColumns": [
                *(f"metrics.`{name}`" for name in VIEW_METRICS.split()),
                *(f"tags.`{name}`" for name in VIEW_TAGS.split()),
            ],
        }
    ),
}

VIEW_QUERY = "viewStateShareKey=raymrc&workflowType=machine_learning"
"""Opens that view. Without the second half the UI opens its page for traces of language models."""


def log_datasets(client: Any, run_id: str, datasets: Sequence[Dataset]) -> None:
    """Link datasets to a run; those that are linked already stay as they are."""
    from mlflow import entities

    inputs = [
        entities.DatasetInput(
            entities.Dataset(d.name, d.digest, d.source_type, d.source, profile=d.profile),
            [entities.InputTag(DATASET_CONTEXT_TAG, d.context)],
        )
        for d in datasets
    ]
    client.log_inputs(run_id, inputs)


def import_machine_monitor() -> Callable[..., Any]:
    """MLflow's monitor of this machine: once started, it writes into a run until its `finish` is called."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    return partial(SystemMetricsMonitor, resume_logging=True)


class DatabaseWriter:
    """Writes run snapshots into the tables of MLflow's SQLite or PostgreSQL store.

    A batch is one transaction, so a run is written whole or not at all, in a small part of the time that the
    client takes (`benchmarks/mlflow_sync.py`). Datasets, which few runs have, follow through the client. Run
    ids are hashes of keys: even two drivers at once cannot write a run twice.

    Raises:
        LookupError: the store's tables differ from `TABLES`; use `ClientWriter`.
    """

    TABLES: Mapping[str, str] = {
        "runs": "run_uuid name source_type source_name entry_point_name user_id status start_time "
        "end_time deleted_time source_version lifecycle_stage artifact_uri experiment_id",
        "tags": "key value run_uuid",
        "params": "key value run_uuid",
        "metrics": "key value timestamp run_uuid step is_nan",
        "latest_metrics": "key value timestamp step is_nan run_uuid",
    }

    def __init__(self, tracking_uri: str, client: Any, experiment: Any) -> None:
        import sqlalchemy

        self.client = client
        self.experiment_id = int(experiment.experiment_id)
        self.artifact_location = experiment.artifact_location
        self._linked: set[str] = set()
        """Keys of the runs whose datasets this writer has logged."""
        self.dialect = sqlalchemy.make_url(tracking_uri).get_backend_name()
        self.engine = sqlalchemy.create_engine(
            tracking_uri,
            connect_args={"timeout": 60} if self.dialect == "sqlite" else {},
            # One connection per batch: a pooled one would be dead after a restart of the database.
            poolclass=sqlalchemy.NullPool,
        )
        metadata = sqlalchemy.MetaData()
        try:
            metadata.reflect(self.engine, only=list(self.TABLES))
        except sqlalchemy.exc.InvalidRequestError as error:
            raise LookupError("tables are missing") from error
        for name, columns in self.TABLES.items():
            if set(metadata.tables[name].columns.keys()) != set(columns.split()):
                raise LookupError(f"table {name} has other columns")
        self.tables = metadata.tables

    def find_runs(self) -> dict[str, ExistingRun]:
        import sqlalchemy

        query = f"""
            SELECT keys.value, runs.run_uuid, runs.lifecycle_stage, digests.value FROM runs
            JOIN tags AS keys ON keys.run_uuid = runs.run_uuid AND keys.key = '{KEY_TAG}'
            LEFT JOIN tags AS digests ON digests.run_uuid = runs.run_uuid AND digests.key = '{DIGEST_TAG}'
            WHERE runs.experiment_id = {self.experiment_id}
        """
        with self.engine.connect() as connection:
            return {
                key: ExistingRun(run_id, DELETED if stage == "deleted" else digest or "")
                for key, run_id, stage, digest in connection.execute(sqlalchemy.text(query))
            }

    def write(self, snapshots: Sequence[RunSnapshot], existing: dict[str, ExistingRun]) -> None:
        entered = dict(existing)
        unlinked = {s.key: s for s in snapshots if s.datasets and s.key not in self._linked}
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in self.TABLES}
        for snapshot in snapshots:
            known = entered.get(snapshot.key)
            run_id = (
                known.run_id if known else hash_values([str(self.experiment_id), snapshot.key])[:32]
            )
            entered[snapshot.key] = ExistingRun(run_id, snapshot.digest)
            rows["runs"].append(self._run_row(run_id, snapshot))
            tags = {
                **snapshot.all_tags(entered),
                DIGEST_TAG: "" if snapshot.key in unlinked else snapshot.digest,
                NAME_TAG: snapshot.name,
            }
            row = {"run_uuid": run_id}
            for table, values in (("tags", tags), ("params", snapshot.params)):
                rows[table] += [{**row, "key": k, "value": v} for k, v in values.items()]
            points: list[dict[str, Any]] = [
                {**row, "key": name, "value": value, "step": step, "timestamp": ms, "is_nan": False}
                for name, value, step, ms in snapshot.finite_metrics
            ]
            rows["metrics"] += points
            points.sort(key=lambda p: (p["step"], p["timestamp"], p["value"]))
            rows["latest_metrics"] += {point["key"]: point for point in points}.values()
        with self.engine.begin() as connection:
            for name, entries in rows.items():
                if entries:
                    connection.execute(self._upsert(name), entries)
        for key, snapshot in unlinked.items():
            log_datasets(self.client, entered[key].run_id, snapshot.datasets)
            self.client.set_tag(entered[key].run_id, DIGEST_TAG, snapshot.digest)
            self._linked.add(key)
        existing.update(entered)

    def _run_row(self, run_id: str, snapshot: RunSnapshot) -> dict[str, Any]:
        return {
            "run_uuid": run_id,
            "name": snapshot.name,
            "source_type": "UNKNOWN",
            "source_name": "",
            "entry_point_name": "",
            "user_id": "unknown",
            "status": snapshot.status,
            "start_time": snapshot.start_ms,
            "end_time": None if snapshot.status == "RUNNING" else snapshot.end_ms,
            "deleted_time": None,
            "source_version": "",
            "lifecycle_stage": "active",
            "artifact_uri": f"{self.artifact_location}/{run_id}/artifacts",
            "experiment_id": self.experiment_id,
        }

    def _upsert(self, name: str) -> Any:
        from sqlalchemy.dialects import postgresql, sqlite

        table = self.tables[name]
        insert = postgresql.insert if self.dialect == "postgresql" else sqlite.insert
        statement: Any = insert(table)
        if name in ("metrics", "params"):
            return statement.on_conflict_do_nothing()
        # Only these columns: users may delete a run or give it an owner, and that stays.
        changing = {"name", "status", "start_time", "end_time", "value", "timestamp", "step"}
        return statement.on_conflict_do_update(
            index_elements=[column.name for column in table.primary_key],
            set_={c: statement.excluded[c] for c in changing & set(table.columns.keys())},
        )
