"""Drawings into MLflow: through its client, or straight into its SQLite tables.

Both leave the same behind, and writing the same drawing again changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from raymrc.study.configuration import hash_values
from raymrc.tracking.drawings import Drawing

KEY_TAG = "raymrc.key"
DRAWN_TAG = "raymrc.drawn"
PARENT_TAG = "mlflow.parentRunId"
NAME_TAG = "mlflow.runName"

VIEW_TAG = "mlflow.sharedViewState.raymrc"
"""Where MLflow's UI keeps a view that was shared; its address names it as `viewStateShareKey`."""

VIEW_COLUMNS = (
    "adapter_bytes", "cost_usd", "device_seconds", "strict_f1", "strict_f1_sd", "trained_share",
)  # fmt: skip
VIEW = json.dumps(
    {
        "searchFilter": "tags.level = 'cell'",
        "orderByKey": "metrics.`strict_f1`",
        "orderByAsc": False,
        "selectedColumns": [f"metrics.`{name}`" for name in VIEW_COLUMNS],
    }
)
"""The runs table that compares frozen with unfrozen: out of the box it shows no metrics."""

DELETED = "deleted"
"""Stands for the digest of a run that the user has deleted: it is left alone."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A run that MLflow has: its id and the digest of the drawing it was made from."""

    run_id: str
    digest: str


class Writer(Protocol):
    """Writes drawings into one experiment."""

    def standing(self) -> dict[str, Standing]:
        """All our runs of the experiment by key, those that the user deleted included."""
        ...

    def write(self, drawings: Sequence[Drawing], standing: dict[str, Standing]) -> None:
        """Write in the given order, entering every run into `standing`."""
        ...


class ClientWriter:
    """Through MLflow's client: any tracking server. Three requests a run.

    A run cut off between requests has no digest yet, so it is taken up again.
    """

    def __init__(self, client: Any, experiment_id: str) -> None:
        self.client = client
        self.experiment_id = experiment_id

    def standing(self) -> dict[str, Standing]:
        from mlflow.entities import ViewType

        found: dict[str, Standing] = {}
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id],
                filter_string=f"tags.`{KEY_TAG}` != ''",
                run_view_type=ViewType.ALL,
                max_results=1000,
                page_token=token,
            )
            for run in page:
                tags = run.data.tags
                gone = run.info.lifecycle_stage == "deleted"
                digest = DELETED if gone else tags.get(DRAWN_TAG, "")
                found[tags[KEY_TAG]] = Standing(run.info.run_id, digest)
            token = page.token
            if not token:
                return found

    def write(self, drawings: Sequence[Drawing], standing: dict[str, Standing]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        for drawing in drawings:
            tags = {KEY_TAG: drawing.key, **drawing.tags}
            if drawing.parent:
                tags[PARENT_TAG] = standing[drawing.parent].run_id
            known = standing.get(drawing.key)
            if known is None:
                run = self.client.create_run(
                    self.experiment_id,
                    start_time=drawing.start_ms,
                    tags=tags,
                    run_name=drawing.name,
                )
                known = standing[drawing.key] = Standing(run.info.run_id, "")
                late_tags = {}
            else:
                self.client.update_run(known.run_id, name=drawing.name)
                late_tags = tags
            metrics = [Metric(k, v, ms, step) for k, v, step, ms in _finite(drawing)]
            for start in range(0, len(metrics), 900):  # a request takes 1000 items
                self.client.log_batch(known.run_id, metrics=metrics[start : start + 900])
            self.client.log_batch(
                known.run_id,
                params=[Param(k, v) for k, v in drawing.params.items()],
                tags=[RunTag(k, v) for k, v in {**late_tags, DRAWN_TAG: drawing.digest}.items()],
            )
            self.client.set_terminated(known.run_id, _status(drawing), end_time=drawing.end_ms)
            standing[drawing.key] = Standing(known.run_id, drawing.digest)


class DatabaseWriter:
    """Straight into the tables of MLflow's SQLite store, a batch in one transaction.

    A run appears whole or not at all, and costs 1 ms where the client takes 40. Run ids are
    hashes of keys, so that not even two drivers at once can draw a run twice.

    Raises:
        LookupError: the tables are not as we know them; use `ClientWriter`.
    """

    TABLES: Mapping[str, tuple[str, ...]] = {
        "runs": tuple(
            "run_uuid name source_type source_name entry_point_name user_id status start_time "
            "end_time deleted_time source_version lifecycle_stage artifact_uri experiment_id".split()
        ),
        "tags": ("key", "value", "run_uuid"),
        "params": ("key", "value", "run_uuid"),
        "metrics": ("key", "value", "timestamp", "run_uuid", "step", "is_nan"),
        "latest_metrics": ("key", "value", "timestamp", "step", "is_nan", "run_uuid"),
    }

    def __init__(self, tracking_uri: str, experiment_id: str, artifact_location: str) -> None:
        import sqlalchemy

        self.experiment_id = experiment_id
        self.artifact_location = artifact_location
        self.engine = sqlalchemy.create_engine(tracking_uri, connect_args={"timeout": 60})
        metadata = sqlalchemy.MetaData()
        try:
            metadata.reflect(self.engine, only=list(self.TABLES))
        except sqlalchemy.exc.InvalidRequestError as error:
            raise LookupError("tables are missing") from error
        for name, columns in self.TABLES.items():
            if set(metadata.tables[name].columns.keys()) != set(columns):
                raise LookupError(f"table {name} has other columns")
        self.tables = metadata.tables

    def standing(self) -> dict[str, Standing]:
        import sqlalchemy

        runs, tags = self.tables["runs"], self.tables["tags"]
        query = (
            sqlalchemy.select(tags.c.run_uuid, tags.c.key, tags.c.value, runs.c.lifecycle_stage)
            .join(runs, runs.c.run_uuid == tags.c.run_uuid)
            .where(runs.c.experiment_id == int(self.experiment_id))
            .where(tags.c.key.in_((KEY_TAG, DRAWN_TAG)))
        )
        by_run: dict[str, dict[str, str]] = {}
        with self.engine.connect() as connection:
            for run_id, key, value, stage in connection.execute(query):
                found = by_run.setdefault(run_id, {})
                found[key] = DELETED if (key, stage) == (DRAWN_TAG, "deleted") else value
        return {
            found[KEY_TAG]: Standing(run_id, found.get(DRAWN_TAG, ""))
            for run_id, found in by_run.items()
            if KEY_TAG in found
        }

    def write(self, drawings: Sequence[Drawing], standing: dict[str, Standing]) -> None:
        entered = dict(standing)
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in self.TABLES}
        for drawing in drawings:
            known = entered.get(drawing.key)
            run_id = known.run_id if known else hash_values([self.experiment_id, drawing.key])[:32]
            entered[drawing.key] = Standing(run_id, drawing.digest)
            rows["runs"].append(
                {
                    "run_uuid": run_id,
                    "name": drawing.name,
                    "source_type": "UNKNOWN",
                    "source_name": "",
                    "entry_point_name": "",
                    "user_id": "unknown",
                    "status": _status(drawing),
                    "start_time": drawing.start_ms,
                    "end_time": drawing.end_ms,
                    "deleted_time": None,
                    "source_version": "",
                    "lifecycle_stage": "active",
                    "artifact_uri": f"{self.artifact_location}/{run_id}/artifacts",
                    "experiment_id": int(self.experiment_id),
                }
            )
            tags = {KEY_TAG: drawing.key, DRAWN_TAG: drawing.digest, NAME_TAG: drawing.name}
            if drawing.parent:
                tags[PARENT_TAG] = entered[drawing.parent].run_id
            words: dict[str, Mapping[str, str]] = {
                "tags": {**drawing.tags, **tags},
                "params": drawing.params,
            }
            for table, values in words.items():
                rows[table] += [
                    {"key": k, "value": v, "run_uuid": run_id} for k, v in values.items()
                ]
            points: list[dict[str, Any]] = [
                {
                    "key": name,
                    "value": value,
                    "timestamp": ms,
                    "step": step,
                    "is_nan": False,
                    "run_uuid": run_id,
                }
                for name, value, step, ms in _finite(drawing)
            ]
            rows["metrics"] += points
            latest: dict[str, dict[str, Any]] = {}
            for point in sorted(points, key=lambda p: (p["step"], p["timestamp"], p["value"])):
                latest[point["key"]] = point
            rows["latest_metrics"] += latest.values()
        with self.engine.begin() as connection:
            for name, entries in rows.items():
                if entries:
                    connection.execute(self._upsert(name), entries)
        standing.update(entered)

    def _upsert(self, name: str) -> Any:
        from sqlalchemy.dialects.sqlite import insert

        table = self.tables[name]
        statement = insert(table)
        if name in ("metrics", "params"):  # a point that is there, and a param, stay
            return statement.on_conflict_do_nothing()
        keys = [column.name for column in table.primary_key]
        # What the user did to a run (deleted it, gave it a user) is not ours to undo.
        changing = {"name", "status", "start_time", "end_time", "value", "timestamp", "step"}
        return statement.on_conflict_do_update(
            index_elements=keys,
            set_={c: statement.excluded[c] for c in changing & set(table.columns.keys())},
        )


def _finite(drawing: Drawing) -> Iterator[tuple[str, float, int, int]]:
    return (metric for metric in drawing.metrics if math.isfinite(metric[1]))


def _status(drawing: Drawing) -> str:
    return "FAILED" if drawing.failed else "FINISHED"


def open_writer(tracking_uri: str, experiment: str) -> Writer:
    """The quickest writer that this MLflow can be written with; finds or makes the experiment."""
    with _quiet_loggers("mlflow", "alembic"):
        client, found = open_experiment(tracking_uri, experiment)
    if sqlite_path(tracking_uri) is not None:
        # An MLflow whose tables have changed is written to the slow way.
        with contextlib.suppress(LookupError):
            return DatabaseWriter(tracking_uri, found.experiment_id, found.artifact_location)
    return ClientWriter(client, found.experiment_id)


def open_experiment(tracking_uri: str, name: str) -> tuple[Any, Any]:
    """Client and experiment. A SQLite store is created here, before anybody else opens it."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    artifact_location = None
    path = sqlite_path(tracking_uri)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Else artifacts would belong in whatever folder the command was started from.
        artifact_location = (path.parent.resolve() / "mlflow-artifacts").as_uri()
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # Another driver may be quicker; any other trouble shows in the line after.
        with contextlib.suppress(MlflowException):
            client.create_experiment(name, artifact_location=artifact_location)
        experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    if experiment.tags.get(VIEW_TAG) != VIEW:
        client.set_experiment_tag(experiment.experiment_id, VIEW_TAG, VIEW)
    return client, experiment


def sqlite_path(tracking_uri: str) -> Path | None:
    """The file of "sqlite:///relative.db" or "sqlite:////absolute.db"; None for a server."""
    prefix = "sqlite:///"
    return Path(tracking_uri[len(prefix) :]) if tracking_uri.startswith(prefix) else None


def how_to_look(tracking_uri: str, experiment: str) -> str:
    """What the user types and opens to see a row a cell, sorted by F1, with what it cost."""
    with _quiet_loggers("mlflow", "alembic"):
        try:
            _, found = open_experiment(tracking_uri, experiment)
            page = f"/#/experiments/{found.experiment_id}/runs?viewStateShareKey=raymrc"
        except Exception:  # a server that is away; that has been said
            page = ""
    if sqlite_path(tracking_uri) is not None:
        # Beside this interpreter, where the environment is not an activated one.
        here = shutil.which("mlflow") is not None
        program = "mlflow" if here else os.path.relpath(Path(sys.executable).with_name("mlflow"))
        start = f"{program} ui --backend-store-uri {tracking_uri}"
        return f"{start}    then open http://127.0.0.1:5000{page}"
    return hide_password(tracking_uri).rstrip("/") + page


def hide_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)


@contextlib.contextmanager
def _quiet_loggers(*names: str) -> Iterator[None]:
    """Creating a store is told in INFO lines that nobody needs."""
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
