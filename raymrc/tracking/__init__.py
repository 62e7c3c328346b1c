"""MLflow: the ledger's fold-runs, the study's files and its final models; the only room that imports mlflow.

records -> figures -> run snapshots -> MLflow runs        (study > cell > configuration > fold-run)

It may import the rooms below `scheduling`. Enter at `recorder.py` (runs: one thread of the driver writes, and
MLflow's failures never reach the study), `artifacts.py` (files) or `registry.py` (models).
"""

from __future__ import annotations

import os

# MLflow reads these when it is imported. Nothing may leave the machine unasked, a server that is down must
# not hold up a study (by default MLflow retries for minutes), and stdout belongs to the answers of commands.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from raymrc.tracking.artifacts import attach
from raymrc.tracking.datasets import describe_datasets
from raymrc.tracking.experiment import TrackingPlace, how_to_open
from raymrc.tracking.recorder import MlflowRecorder, sync_study
from raymrc.tracking.registry import register

__all__ = [
    "MlflowRecorder",
    "TrackingPlace",
    "attach",
    "describe_datasets",
    "how_to_open",
    "register",
    "sync_study",
]
