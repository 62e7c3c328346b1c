"""The ledger drawn as MLflow runs; the only room that imports mlflow.

    records -> figures -> drawings -> MLflow        (study > cell > configuration > fold-run)

A drawing is an MLflow run as it should stand, keyed by what it shows. Whatever an outage or
a kill left out is drawn later from the ledger, and nothing is ever drawn twice. One thread
of the driver writes; trouble with MLflow never reaches the study. Beside runs there are the
study's files (`attach`) and, of a final test, models in the registry (`register`).
"""

from __future__ import annotations

import os

# Nothing may leave the machine unasked, and a server that is away must not hold up the study:
# MLflow's own defaults retry for minutes. And stdout is for what commands answer, where MLflow
# would print a link for every run. It reads these when it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from raymrc.tracking.artifacts import attach
from raymrc.tracking.datasets import describe_datasets
from raymrc.tracking.recorder import MlflowRecorder, sync_study
from raymrc.tracking.registry import register
from raymrc.tracking.writers import TrackingPlace, how_to_look

__all__ = [
    "MlflowRecorder",
    "TrackingPlace",
    "attach",
    "describe_datasets",
    "how_to_look",
    "register",
    "sync_study",
]
