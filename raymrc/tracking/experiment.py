"""A study's experiment in MLflow: where it is, which runs it has, and how to open it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymrc.errors import RaymrcError
from raymrc.ledger.storage import absolute, hide_password
from raymrc.study.spec import Spec
from raymrc.tracking.mlflow_internals import EXPERIMENT_TAGS, VIEW_QUERY
from raymrc.tracking.snapshots import DELETED, DIGEST_TAG, KEY_TAG, ExistingRun


@dataclass(frozen=True, slots=True)
class TrackingPlace:
    """Where MLflow shows a study.

    Args:
        tracking_uri: "sqlite:///path", another database's URI, or a server's URL.
        study: name of the study's run; by default the experiment's name.
        artifacts: folder or URL for files if `tracking_uri` is a database other than SQLite. SQLite keeps
            files beside its own, and a server has its own place.
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
        """Kind of the database that we write to directly; "" for a server."""
        found = re.match(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?:", self.tracking_uri)
        return found[1] if found else ""

    @property
    def shown_uri(self) -> str:
        """Without a password."""
        return hide_password(self.tracking_uri)


@contextlib.contextmanager
def quiet_loggers() -> Iterator[None]:
    """Without the INFO lines that MLflow and alembic log when they create a store."""
    before = {name: logging.getLogger(name).level for name in ("mlflow", "alembic")}
    for name in before:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def open_for(action: str, place: TrackingPlace) -> Iterator[tuple[Any, Any]]:
    """Client and experiment, for as long as `action` ("take files") takes.

    Raises:
        RaymrcError: MLflow failed. Its own message stays hidden: it can hold a password, or worse.
    """
    with quiet_loggers():
        try:
            yield open_experiment(place)
        except RaymrcError:
            raise
        except Exception as error:
            raise RaymrcError(
                f"MLflow at {place.shown_uri} cannot {action} ({type(error).__name__}); "
                "is the server running, and may this user write there? 'raymrc sync' tries again"
            ) from None


@quiet_loggers()
def open_experiment(place: TrackingPlace) -> tuple[Any, Any]:
    """Client and experiment, which is created if missing.

    Call it before anybody else opens a new SQLite store: several processes that create one at once break it.

    Raises:
        RaymrcError: the database's driver is not installed.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    # By default MLflow puts artifacts into the folder in which the command was started.
    artifact_location = None
    path = place.tracking_uri.removeprefix("sqlite:///")
    if path != place.tracking_uri:
        folder = Path(path).parent
        folder.mkdir(parents=True, exist_ok=True)
        artifact_location = (folder.resolve() / "mlflow-artifacts").as_uri()
    elif place.dialect and place.artifacts:
        is_url = "://" in place.artifacts
        artifact_location = place.artifacts if is_url else Path(place.artifacts).resolve().as_uri()
    try:
        client = MlflowClient(place.tracking_uri)
    except ModuleNotFoundError as error:
        raise RaymrcError(
            f"{place.dialect} needs the package {error.name}, which is not installed; "
            f"pip install {error.name}"
        ) from None
    experiment = client.get_experiment_by_name(place.experiment)
    if experiment is None:
        # Another driver may create it first; any other failure shows in the next line.
        with contextlib.suppress(MlflowException):
            client.create_experiment(place.experiment, artifact_location=artifact_location)
        experiment = client.get_experiment_by_name(place.experiment)
    assert experiment is not None
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    for key, value in EXPERIMENT_TAGS.items():
        if experiment.tags.get(key) != value:
            client.set_experiment_tag(experiment.experiment_id, key, value)
    return client, experiment


def find_runs(
    client: Any, experiment_id: str, query: str = f"tags.`{KEY_TAG}` != ''"
) -> dict[str, ExistingRun]:
    """Our runs by key, deleted ones included; `query` is in MLflow's search language."""
    from mlflow.entities import ViewType

    runs: dict[str, ExistingRun] = {}
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], query, ViewType.ALL, page_token=token)
        for run in page:
            tags, stage = run.data.tags, run.info.lifecycle_stage
            digest = DELETED if stage == "deleted" else tags.get(DIGEST_TAG, "")
            runs[tags[KEY_TAG]] = ExistingRun(run.info.run_id, digest)
        token = page.token
        if not token:
            return runs


def how_to_open(place: TrackingPlace) -> str:
    """The command and the URL of the runs table: one row per cell, sorted by F1, with its cost."""
    try:
        _, experiment = open_experiment(place)
        page = f"/#/experiments/{experiment.experiment_id}/runs?{VIEW_QUERY}"
    except Exception:  # the server is away, which was reported before
        page = ""
    if not place.dialect:
        return place.shown_uri.rstrip("/") + page
    import sqlalchemy

    uri = sqlalchemy.make_url(place.tracking_uri).render_as_string(hide_password=True)
    # Without an activated environment the program stands beside this interpreter.
    is_on_path = shutil.which("mlflow") is not None
    program = "mlflow" if is_on_path else os.path.relpath(Path(sys.executable).with_name("mlflow"))
    start = f"{program} ui --backend-store-uri {shlex.quote(uri)}"
    return f"{start}    then open http://127.0.0.1:5000{page}"
