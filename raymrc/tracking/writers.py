"""Drawings into MLflow: through its client, or straight into its tables.

Both leave the same behind, and writing the same drawing again changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from raymrc.configuration import hash_values
from raymrc.errors import RaymrcError
from raymrc.ledger.storage import absolute, hide_password
from raymrc.study.spec import Spec
from raymrc.tracking.datasets import Dataset
from raymrc.tracking.drawings import RunSnapshot

KEY_TAG = "raymrc.key"
DRAWN_TAG = "raymrc.drawn"
PARENT_TAG = "mlflow.parentRunId"
NAME_TAG = "mlflow.runName"

VIEW_TAG = "mlflow.sharedViewState.raymrc"
"""Where MLflow's UI keeps a view that was shared; its address names it as `viewStateShareKey`. What
its own "Share" writes; there is no other way to say which columns a table opens with."""

VIEW_METRICS = "cost_usd device_seconds strict_f1 strict_f1_sd trained_share"
VIEW_TAGS = "backbone prompt_length strategy"
VIEW = json.dumps(
    {
        "searchFilter": "tags.level = 'cell'",
        "orderByKey": "metrics.`strict_f1`",
        "orderByAsc": False,
        "selectedColumns": [
            *(f"metrics.`{name}`" for name in VIEW_METRICS.split()),
            *(f"tags.`{name}`" for name in VIEW_TAGS.split()),
        ],
    }
)
"""The runs table that compares frozen with unfrozen: out of the box it shows no metrics. As many columns as
stand beside each other on a screen; the table puts metrics before tags, each by name."""

VIEW_ADDRESS = "viewStateShareKey=raymrc&workflowType=machine_learning"
"""The second half: else MLflow's UI opens on what it has for language models' traces."""

DELETED = "deleted"
"""Stands for the digest of a run that the user has deleted: it is left alone."""


CONTEXT_TAG = "mlflow.data.context"

KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"
"""Else MLflow's UI guesses from what it finds whether it shows training runs, and asks."""


@dataclass(frozen=True, slots=True)
class TrackingPlace:
    """Where a study is shown.

    Args:
        tracking_uri: "sqlite:///path", another database's URI, or a server's URL.
        experiment: its name.
        study: the name of the run above all others; the experiment's where not given.
        artifacts: folder or URL for files, where MLflow is a database; a server has its own. Beside a SQLite
            file where not given.
    """

    tracking_uri: str
    experiment: str
    study: str = ""
    artifacts: str = ""

    @classmethod
    def of(cls, spec: Spec) -> TrackingPlace:
        artifacts = f"{absolute(spec.storage)}/mlflow-artifacts"
        return cls(spec.tracking_uri, spec.experiment, spec.study, artifacts)

    @property
    def study_name(self) -> str:
        return self.study or self.experiment

    @property
    def dialect(self) -> str:
        """Of a database that is written to without a server in between; "" of a server."""
        found = re.match(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?:", self.tracking_uri)
        return found[1] if found else ""


@dataclass(frozen=True, slots=True)
class ExistingRun:
    """A run that MLflow has: its id and the digest of the drawing it was made from."""

    run_id: str
    digest: str


class Writer(Protocol):
    """Writes drawings into one experiment."""

    def standing(self) -> dict[str, ExistingRun]:
        """All our runs of the experiment by key, those that the user deleted included."""
        ...

    def write(self, drawings: Sequence[RunSnapshot], standing: dict[str, ExistingRun]) -> None:
        """Write in the given order, entering every run into `standing`."""
        ...


class ClientWriter:
    """Through MLflow's client: any tracking server. Three requests a run.

    A run cut off between requests has no digest yet, so it is taken up again.
    """

    def __init__(self, client: Any, experiment_id: str) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self._datasets: dict[str, tuple[Dataset, ...]] = {}
        """By run id: those that this writer has written. They never change, and the runs that have
        them change all the time."""

    def standing(self, which: str = f"tags.`{KEY_TAG}` != ''") -> dict[str, ExistingRun]:
        """Our runs by key; `which` picks some in MLflow's search language."""
        from mlflow.entities import ViewType

        found: dict[str, ExistingRun] = {}
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id],
                filter_string=which,
                run_view_type=ViewType.ALL,
                max_results=1000,
                page_token=token,
            )
            for run in page:
                tags = run.data.tags
                gone = run.info.lifecycle_stage == "deleted"
                digest = DELETED if gone else tags.get(DRAWN_TAG, "")
                found[tags[KEY_TAG]] = ExistingRun(run.info.run_id, digest)
            token = page.token
            if not token:
                return found

    def write(self, drawings: Sequence[RunSnapshot], standing: dict[str, ExistingRun]) -> None:
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
                known = standing[drawing.key] = ExistingRun(run.info.run_id, "")
                late_tags = {}
            else:
                self.client.update_run(known.run_id, name=drawing.name)
                late_tags = tags
            metrics = [Metric(k, v, ms, step) for k, v, step, ms in _finite(drawing)]
            for start in range(0, len(metrics), 900):  # a request takes 1000 items
                self.client.log_batch(known.run_id, metrics=metrics[start : start + 900])
            if drawing.datasets and self._datasets.get(known.run_id) != drawing.datasets:
                self.client.log_inputs(known.run_id, _dataset_inputs(drawing.datasets))
                self._datasets[known.run_id] = drawing.datasets
            self.client.log_batch(
                known.run_id,
                params=[Param(k, v) for k, v in drawing.params.items()],
                tags=[RunTag(k, v) for k, v in {**late_tags, DRAWN_TAG: drawing.digest}.items()],
            )
            if drawing.status == "RUNNING":
                self.client.update_run(known.run_id, status=drawing.status)
            else:
                self.client.set_terminated(known.run_id, drawing.status, end_time=drawing.end_ms)
            standing[drawing.key] = ExistingRun(known.run_id, drawing.digest)


def _dataset_inputs(datasets: Sequence[Dataset]) -> list[Any]:
    from mlflow.entities import Dataset as Entity
    from mlflow.entities import DatasetInput, InputTag

    return [
        DatasetInput(
            Entity(d.name, d.digest, d.source_type, d.source, profile=d.profile),
            [InputTag(CONTEXT_TAG, d.context)],
        )
        for d in datasets
    ]


class DatabaseWriter:
    """Straight into the tables of MLflow's SQLite or PostgreSQL store, a batch in one transaction.

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
        "datasets": tuple(
            "dataset_uuid experiment_id name digest dataset_source_type dataset_source "
            "dataset_schema dataset_profile".split()
        ),
        "inputs": tuple(
            "input_uuid source_type source_id destination_type destination_id step".split()
        ),
        "input_tags": ("input_uuid", "name", "value"),
    }

    def __init__(self, tracking_uri: str, experiment_id: str, artifact_location: str) -> None:
        import sqlalchemy

        self.experiment_id = experiment_id
        self.artifact_location = artifact_location
        self.dialect = sqlalchemy.make_url(tracking_uri).get_backend_name()
        self.engine = sqlalchemy.create_engine(
            tracking_uri,
            connect_args={"timeout": 60} if self.dialect == "sqlite" else {},
            # A connection a batch: one that is kept would be dead after a restart of the database.
            poolclass=sqlalchemy.NullPool,
        )
        metadata = sqlalchemy.MetaData()
        try:
            metadata.reflect(self.engine, only=list(self.TABLES))
        except sqlalchemy.exc.InvalidRequestError as error:
            raise LookupError("tables are missing") from error
        for name, columns in self.TABLES.items():
            if set(metadata.tables[name].columns.keys()) != set(columns):
                raise LookupError(f"table {name} has other columns")
        self.tables = metadata.tables

    def standing(self) -> dict[str, ExistingRun]:
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
            found[KEY_TAG]: ExistingRun(run_id, found.get(DRAWN_TAG, ""))
            for run_id, found in by_run.items()
            if KEY_TAG in found
        }

    def write(self, drawings: Sequence[RunSnapshot], standing: dict[str, ExistingRun]) -> None:
        entered = dict(standing)
        rows: dict[str, list[dict[str, Any]]] = {
            name: [] for name in ("runs", "tags", "params", "metrics", "latest_metrics")
        }
        for drawing in drawings:
            known = entered.get(drawing.key)
            run_id = known.run_id if known else hash_values([self.experiment_id, drawing.key])[:32]
            entered[drawing.key] = ExistingRun(run_id, drawing.digest)
            rows["runs"].append(
                {
                    "run_uuid": run_id,
                    "name": drawing.name,
                    "source_type": "UNKNOWN",
                    "source_name": "",
                    "entry_point_name": "",
                    "user_id": "unknown",
                    "status": drawing.status,
                    "start_time": drawing.start_ms,
                    "end_time": None if drawing.status == "RUNNING" else drawing.end_ms,
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
            for drawing in drawings:
                if drawing.datasets:
                    self._write_datasets(connection, entered[drawing.key].run_id, drawing.datasets)
        standing.update(entered)

    def _write_datasets(self, connection: Any, run_id: str, shown: Sequence[Dataset]) -> None:
        """What is there stays, under the ids that it has: somebody may have used a server before."""
        import sqlalchemy

        datasets, inputs = self.tables["datasets"], self.tables["inputs"]
        rows = [
            {
                "dataset_uuid": hash_values([self.experiment_id, d.name, d.digest])[:32],
                "experiment_id": int(self.experiment_id),
                "name": d.name,
                "digest": d.digest,
                "dataset_source_type": d.source_type,
                "dataset_source": d.source,
                "dataset_profile": d.profile,
            }
            for d in shown
        ]
        connection.execute(self._upsert("datasets"), rows)
        of_experiment = sqlalchemy.select(
            datasets.c.name, datasets.c.digest, datasets.c.dataset_uuid
        ).where(datasets.c.experiment_id == int(self.experiment_id))
        ids = {(name, digest): found for name, digest, found in connection.execute(of_experiment)}
        of_run = sqlalchemy.select(inputs.c.source_id).where(inputs.c.destination_id == run_id)
        there = set(connection.execute(of_run).scalars())
        for dataset in shown:
            dataset_id = ids[dataset.name, dataset.digest]
            if dataset_id in there:
                continue
            input_id = hash_values([dataset_id, run_id])[:32]
            edge = {
                "input_uuid": input_id,
                "source_type": "DATASET",
                "source_id": dataset_id,
                "destination_type": "RUN",
                "destination_id": run_id,
            }
            tag = {"input_uuid": input_id, "name": CONTEXT_TAG, "value": dataset.context}
            connection.execute(self._upsert("inputs"), [edge])
            connection.execute(self._upsert("input_tags"), [tag])

    def _upsert(self, name: str) -> Any:
        from sqlalchemy.dialects import postgresql, sqlite

        table = self.tables[name]
        insert = postgresql.insert if self.dialect == "postgresql" else sqlite.insert
        statement: Any = insert(table)
        # A point that is there stays, and a param, and notes.
        if name in ("metrics", "params", "datasets", "inputs", "input_tags"):
            return statement.on_conflict_do_nothing()
        keys = [column.name for column in table.primary_key]
        # What the user did to a run (deleted it, gave it a user) is not ours to undo.
        changing = {"name", "status", "start_time", "end_time", "value", "timestamp", "step"}
        return statement.on_conflict_do_update(
            index_elements=keys,
            set_={c: statement.excluded[c] for c in changing & set(table.columns.keys())},
        )


def _finite(drawing: RunSnapshot) -> Iterator[tuple[str, float, int, int]]:
    return (metric for metric in drawing.metrics if math.isfinite(metric[1]))


def open_writer(place: TrackingPlace) -> Writer:
    """The quickest writer that this MLflow can be written with; finds or makes the experiment."""
    with quiet_loggers():
        client, found = open_experiment(place)
    if place.dialect in ("sqlite", "postgresql"):
        # An MLflow whose tables have changed is written to the slow way.
        with contextlib.suppress(LookupError):
            return DatabaseWriter(place.tracking_uri, found.experiment_id, found.artifact_location)
    return ClientWriter(client, found.experiment_id)


def open_experiment(place: TrackingPlace) -> tuple[Any, Any]:
    """Client and experiment. A SQLite store is created here, before anybody else opens it.

    Raises:
        RaymrcError: there is nothing that the database could be written through.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    artifact_location = None
    path = sqlite_path(place.tracking_uri)
    # Else artifacts would belong in whatever folder the command was started from.
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        artifact_location = (path.parent.resolve() / "mlflow-artifacts").as_uri()
    elif place.dialect and place.artifacts:
        is_url = "://" in place.artifacts
        artifact_location = place.artifacts if is_url else Path(place.artifacts).resolve().as_uri()
    try:
        client = MlflowClient(place.tracking_uri)
    except ModuleNotFoundError as error:
        raise RaymrcError(
            f"{place.dialect} is written through {error.name}, which is not installed; "
            f"pip install {error.name}"
        ) from None
    experiment = client.get_experiment_by_name(place.experiment)
    if experiment is None:
        # Another driver may be quicker; any other trouble shows in the line after.
        with contextlib.suppress(MlflowException):
            client.create_experiment(place.experiment, artifact_location=artifact_location)
        experiment = client.get_experiment_by_name(place.experiment)
    assert experiment is not None
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    for key, value in ((VIEW_TAG, VIEW), (KIND_TAG, KIND)):
        if experiment.tags.get(key) != value:
            client.set_experiment_tag(experiment.experiment_id, key, value)
    return client, experiment


def sqlite_path(tracking_uri: str) -> Path | None:
    """The file of "sqlite:///relative.db" or "sqlite:////absolute.db"; None for a server."""
    prefix = "sqlite:///"
    return Path(tracking_uri[len(prefix) :]) if tracking_uri.startswith(prefix) else None


def how_to_look(place: TrackingPlace) -> str:
    """What the user types and opens to see a row a cell, sorted by F1, with what it cost."""
    with quiet_loggers():
        try:
            _, found = open_experiment(place)
            page = f"/#/experiments/{found.experiment_id}/runs?{VIEW_ADDRESS}"
        except Exception:  # a server that is away; that has been said
            page = ""
    if place.dialect:
        import sqlalchemy

        uri = sqlalchemy.make_url(place.tracking_uri).render_as_string(hide_password=True)
        # Beside this interpreter, where the environment is not an activated one.
        here = shutil.which("mlflow") is not None
        program = "mlflow" if here else os.path.relpath(Path(sys.executable).with_name("mlflow"))
        start = f"{program} ui --backend-store-uri {shlex.quote(uri)}"
        return f"{start}    then open http://127.0.0.1:5000{page}"
    return hide_password(place.tracking_uri).rstrip("/") + page


@contextlib.contextmanager
def quiet_loggers() -> Iterator[None]:
    """Creating a store is told in INFO lines that nobody needs."""
    before = {name: logging.getLogger(name).level for name in ("mlflow", "alembic")}
    for name in before:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
