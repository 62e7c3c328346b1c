"""Promise: the undocumented parts of MLflow that raymrc uses are as it expects, or a test says what breaks.

Without these tests a new MLflow could open the runs table without F1, or leave half a run behind, unnoticed.
"""

from __future__ import annotations

import inspect
import json
import sqlite3
import urllib.parse
from dataclasses import replace
from functools import cache
from pathlib import Path

import mlflow
import pytest

from raymrc.tracking import TrackingPlace
from raymrc.tracking.experiment import open_experiment
from raymrc.tracking.mlflow_internals import (
    DATASET_CONTEXT_TAG,
    EXPERIMENT_TAGS,
    VIEW_QUERY,
    DatabaseWriter,
    import_machine_monitor,
)
from raymrc.tracking.snapshots import read_figures
from raymrc.tracking.writers import ClientWriter, open_writer
from tests.tracking.test_tracking import (
    RECORDS,
    pytestmark,  # noqa: F401
    read_runs,
    snapshots_of,
    visible,
)


@cache
def ui_scripts() -> str:
    folder = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    return "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.js"))


def test_the_store_has_the_tables_that_the_database_writer_fills(uri):
    client, experiment = open_experiment(TrackingPlace(uri, "made-up"))
    try:
        DatabaseWriter(uri, client, experiment)
    except LookupError as error:
        pytest.fail(f"{error}: runs now go through the client, about 20 times as slow")


def test_the_database_writer_leaves_what_the_client_leaves(uri, tmp_path, empty_store):
    """Otherwise MLflow gives the columns another meaning: `DatabaseWriter` must follow, or go."""
    (tmp_path / "slow.db").write_bytes(empty_store.read_bytes())
    slow_uri = f"sqlite:///{tmp_path / 'slow.db'}"
    failed = replace(RECORDS[0], status="failed", reason="the loss is not a number", epochs=())
    # First with a failed record, then with one that is done in its place, and with more records.
    for records in ([failed, *RECORDS[1:5]], RECORDS[:8]):
        snapshots = snapshots_of([read_figures(record) for record in records])
        slow_client, experiment = open_experiment(TrackingPlace(slow_uri, "made-up"))
        slow = ClientWriter(slow_client, experiment.experiment_id)
        slow.write(snapshots, slow.find_runs())
        client, experiment = open_experiment(TrackingPlace(uri, "made-up"))
        fast = DatabaseWriter(uri, client, experiment)
        fast.write(snapshots, fast.find_runs())
        assert {k: run.digest for k, run in fast.find_runs().items()} == {
            k: run.digest for k, run in slow.find_runs().items()
        }
        ours, theirs = read_runs(uri), read_runs(slow_uri)
        assert visible(ours) == visible(theirs)
    for key, run in ours.items():
        for name in ("loss", "strict_f1", "cost_usd"):
            points = [
                sorted((p.step, p.value, p.timestamp) for p in c.get_metric_history(r, name))
                for c, r in (
                    (client, run.info.run_id),
                    (slow_client, theirs[key].info.run_id),
                )
            ]
            assert points[0] == points[1]


def test_tables_that_mlflow_changed_are_left_to_its_client(uri):
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as connection:
        connection.execute("alter table params add column invented text")
    assert isinstance(open_writer(TrackingPlace(uri, "made-up")), ClientWriter)


def test_the_ui_reads_shared_views_from_the_tag_that_we_write():
    """Otherwise the URL that a run prints opens a table without F1 (docs/mlflow.md has another URL)."""
    assert '"mlflow.sharedViewState."' in ui_scripts()
    view = json.loads(EXPERIMENT_TAGS["mlflow.sharedViewState.raymrc"])
    assert view and all(field in ui_scripts() for field in view)


def test_the_ui_opens_the_view_that_the_url_names():
    """Otherwise the URL opens the page for traces of language models, or a table without F1."""
    query = dict(urllib.parse.parse_qsl(VIEW_QUERY))
    assert query.keys() == {"viewStateShareKey", "workflowType"}
    assert all(f'"{name}"' in ui_scripts() for name in query)
    assert f'"{query["workflowType"]}"' in ui_scripts()


def test_the_ui_reads_an_experiment_s_kind_from_the_tag_that_we_write():
    """Otherwise the UI asks each user what kind of experiment it is."""
    assert '"mlflow.experimentKind"' in ui_scripts()
    assert EXPERIMENT_TAGS["mlflow.experimentKind"] in ui_scripts()


def test_mlflow_names_a_dataset_s_purpose_in_the_tag_that_we_write():
    """Otherwise the UI lists datasets without saying which is for training and which for the final test."""
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    assert DATASET_CONTEXT_TAG == MLFLOW_DATASET_CONTEXT


def test_mlflow_has_the_monitor_that_we_start():
    """Otherwise a study's run shows no processors, memory, disk and network of the driver's machine."""
    import_machine_monitor()
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    parameters = inspect.signature(SystemMetricsMonitor).parameters
    assert {"run_id", "resume_logging", "tracking_uri"} <= set(parameters)
    assert callable(SystemMetricsMonitor.start) and callable(SystemMetricsMonitor.finish)
