"""Winners of the final test as model versions in MLflow's registry.

final-test records + saved adapters -> MLflow model with signature -> version of a registered model

Each cell is a registered model. Its version holds the lowest seed of the final test: choosing a seed by its
score would be choosing by held-out notes.
"""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import raymrc
from raymrc.analysis.final import final_records
from raymrc.configuration import Cell
from raymrc.ledger.record import Record
from raymrc.ledger.storage import open_files
from raymrc.model.adapters import ADAPTER_FILE, ADAPTERS_FOLDER
from raymrc.model.strategies import STRATEGIES
from raymrc.planning.loaded import LoadedStudy
from raymrc.reading.questions import questions_fingerprint
from raymrc.tracking.experiment import TrackingPlace, find_runs, open_for
from raymrc.tracking.serving import ASKED_FILE, FOUND, SPANS, TEXT
from raymrc.tracking.snapshots import DELETED, KEY_TAG


def model_name(study: str, cell: Cell) -> str:
    """A cell's name in the registry, which refuses some characters."""
    shots = [] if cell.shots is None else [str(cell.shots), cell.shots_of]
    name = "-".join([study, cell.backbone.name, cell.strategy, *shots])
    return re.sub("[/:.%\"']", "-", name)


def register(records: Iterable[Record], study: LoadedStudy) -> list[str]:
    """Register the models of a study's final test that the registry lacks. Their runs must be in MLflow.

    Args:
        records: the whole ledger; only final tests of models trained on the study's notes count.
        study: its notes must be on this machine; the model keeps only their labels.

    Returns:
        "name version" of each model registered now.

    Raises:
        RaymrcError: MLflow cannot be written.
    """
    spec, (corpus, _, asked, questions, _) = study.spec, study.inputs
    place, files = TrackingPlace.of(spec), open_files(spec.storage, ADAPTERS_FOLDER)
    asked_json = json.dumps({**asdict(asked), "questions": questions}, indent=2)
    columns = [TEXT] if asked.labels else [TEXT, SPANS]
    registered = []
    with open_for("take models", place) as (client, experiment):
        runs = find_runs(client, experiment.experiment_id, "tags.level = 'fold-run'")
        by_cell = final_records(records)
        for cell in sorted(by_cell, key=lambda cell: cell.name):
            finals = by_cell[cell]
            key, fold_run = finals[0].key, finals[0].fold_run
            run, name = runs.get(key), model_name(spec.study, cell)
            adapter = f"{fold_run.place}/{ADAPTER_FILE}"
            is_trained = STRATEGIES[cell.strategy].trains_backbone
            if (
                run is None
                or run.digest == DELETED
                or (is_trained and spec.mlflow.register_models == "frozen")
                or fold_run.corpus_fingerprint != corpus.fingerprint
                or fold_run.questions_fingerprint not in ("", questions_fingerprint(questions))
                or not files.exists(adapter)
                or client.search_model_versions(f"name = '{name}' and tags.`{KEY_TAG}` = '{key}'")
            ):
                continue
            tags = _version_tags(finals)
            logged = client.create_logged_model(
                experiment.experiment_id, name, run.run_id, tags, model_type="mrc"
            )
            _upload(client, logged, run.run_id, files.read(adapter), asked_json, columns)
            version = _create_version(client, name, logged, run.run_id, tags)
            registered.append(f"{name} {version}")
    return registered


def _version_tags(finals: list[Record]) -> dict[str, str]:
    record = finals[0]
    run, cell = record.fold_run, record.fold_run.configuration.cell
    mean = sum(final.strict.f1 for final in finals) / len(finals)
    return {
        KEY_TAG: record.key,
        "task": cell.task,
        "cell": cell.name,
        "strategy": cell.strategy,
        "backbone": cell.backbone.name,
        "backbone_source": cell.backbone.source,
        "configuration_id": run.configuration.id,
        "seed": str(run.configuration.seed),
        "seeds": str(len(finals)),
        "strict_f1": f"{record.strict.f1:.6f}",
        "mean_strict_f1": f"{mean:.6f}",
        "adapter_bytes": str(record.adapter_bytes),
        "corpus_fingerprint": run.corpus_fingerprint,
        "test_fingerprint": run.test_fingerprint,
        "weights_fingerprint": run.weights_fingerprint,
    }


def _upload(
    client: Any, logged: Any, run_id: str, adapter: bytes, asked_json: str, columns: list[str]
) -> None:
    """Upload a model without a pickle: the module that loads it, and the files that it loads."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # MLflow warns about a missing input example, which would be a note, and about its own modules.
        warnings.simplefilter("ignore", UserWarning)
        from mlflow.models import Model, ModelSignature
        from mlflow.pyfunc import save_model
        from mlflow.types import ColSpec, Schema

        data, model = Path(folder) / "adapter", Path(folder) / "model"
        data.mkdir()
        (data / ADAPTER_FILE).write_bytes(adapter)
        (data / ASKED_FILE).write_text(asked_json, encoding="utf-8")
        save_model(
            model,
            loader_module="raymrc.tracking.serving",
            data_path=data,
            signature=ModelSignature(
                Schema([ColSpec("string", name) for name in columns]),
                Schema([ColSpec("string", FOUND)]),
            ),
            # Otherwise MLflow finds them out by loading the model, which takes seconds.
            pip_requirements=[f"raymrc=={raymrc.__version__}"],
            mlflow_model=Model(
                artifact_path=logged.artifact_location, run_id=run_id, model_id=logged.model_id
            ),
        )
        client.log_model_artifacts(logged.model_id, str(model))
    client.finalize_logged_model(logged.model_id, "READY")


def _create_version(client: Any, name: str, logged: Any, run_id: str, tags: dict[str, str]) -> str:
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        name, logged.artifact_location, run_id, tags, model_id=logged.model_id
    )
    return str(version.version)
