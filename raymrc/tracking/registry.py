"""Winners of a final test as versions of models in MLflow's registry.

    records of final tests, saved adapters -> model with signature -> version

A cell is a registered model. Of the seeds of its final test the lowest becomes a version: to choose one by
its score would be to choose by held-out notes.
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
from raymrc.configuration import Cell, FoldRun
from raymrc.corpora.note import Corpus
from raymrc.errors import RaymrcError
from raymrc.ledger.record import Record
from raymrc.ledger.storage import Files, hide_password, open_files
from raymrc.model.adapters import ADAPTER_FILE
from raymrc.model.strategies import STRATEGIES
from raymrc.reading.questions import build_questions, questions_fingerprint
from raymrc.reading.relations import Asked, find_asked
from raymrc.study.spec import Spec
from raymrc.tracking.serving import ASKED_FILE, FOUND, SPANS, TEXT
from raymrc.tracking.writers import (
    DELETED,
    KEY_TAG,
    ClientWriter,
    TrackingPlace,
    open_experiment,
    quiet_loggers,
)

ADAPTERS = "adapters"
"""Where `raymrc test` leaves what it trained; of fold-runs on worker groups there is none."""


def model_name(study: str, cell: Cell) -> str:
    """What the registry calls a cell's model; it does not take every character."""
    shots = [] if cell.shots is None else [str(cell.shots), cell.shots_of]
    name = "-".join([study, cell.backbone.name, cell.strategy, *shots])
    return re.sub("[/:.%\"']", "-", name)


def register(records: Iterable[Record], spec: Spec, corpus: Corpus) -> list[str]:
    """Give the registry what it lacks of a study's final tests. Their runs must be in MLflow.

    Args:
        records: all of the ledger; those of a final test on these notes are looked at.
        corpus: the study's notes, of which only the labels are kept.

    Returns:
        "name version" of what was registered now; nothing where all was there.

    Raises:
        RaymrcError: MLflow cannot be written.
    """
    place, files = TrackingPlace.of(spec), open_files(spec.storage, ADAPTERS)
    asked = find_asked(spec.task, corpus)
    questions = build_questions(asked.labels, spec.questions, asked.relations)
    registered = []
    with quiet_loggers():
        try:
            client, experiment = open_experiment(place)
            runs = ClientWriter(client, experiment.experiment_id).standing(
                "tags.level = 'fold-run'"
            )
            by_cell = final_records(records)
            for finals in (by_cell[cell] for cell in sorted(by_cell, key=lambda cell: cell.name)):
                record = finals[0]
                run = runs.get(record.key)
                if (
                    run is None
                    or run.digest == DELETED
                    or not _may_be_registered(record.fold_run, spec, corpus, questions, files)
                ):
                    continue
                model = model_name(spec.study, record.fold_run.configuration.cell)
                if _is_registered(client, model, record.key):
                    continue
                version = _register(
                    client,
                    experiment.experiment_id,
                    run.run_id,
                    model,
                    finals,
                    files,
                    asked,
                    questions,
                )
                registered.append(f"{model} {version}")
        except RaymrcError:
            raise
        except Exception as error:
            raise RaymrcError(
                f"MLflow at {hide_password(place.tracking_uri)} cannot take models "
                f"({type(error).__name__}); is the server running, and may this user write there? "
                "'raymrc sync' tries again"
            ) from None
    return registered


def _may_be_registered(
    run: FoldRun, spec: Spec, corpus: Corpus, questions: dict[str, str], files: Files
) -> bool:
    """Whether it is wanted, was asked what the study asks now, and has been saved."""
    trained = STRATEGIES[run.configuration.cell.strategy].trains_backbone
    return (
        not (trained and spec.mlflow.register_models == "frozen")
        and run.corpus_fingerprint == corpus.fingerprint
        and run.questions_fingerprint in ("", questions_fingerprint(questions))
        and files.exists(f"{run.place}/{ADAPTER_FILE}")
    )


def _is_registered(client: Any, model: str, key: str) -> bool:
    found = client.search_model_versions(f"name = '{model}' and tags.`{KEY_TAG}` = '{key}'")
    return len(found) > 0


def _register(
    client: Any,
    experiment_id: str,
    run_id: str,
    model: str,
    finals: list[Record],
    files: Files,
    asked: Asked,
    questions: dict[str, str],
) -> str:
    """A new version of a registered model, which is made where it is not there."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException, RestException

    record = finals[0]
    tags = _describe(finals)
    logged = client.create_logged_model(
        experiment_id, name=model, source_run_id=run_id, tags=tags, model_type="mrc"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = folder / "adapter"
        data.mkdir()
        (data / ADAPTER_FILE).write_bytes(files.read(f"{record.fold_run.place}/{ADAPTER_FILE}"))
        (data / ASKED_FILE).write_text(
            json.dumps({**asdict(asked), "questions": questions}, indent=2), encoding="utf-8"
        )
        _save_model(folder / "model", data, logged, run_id, asked)
        client.log_model_artifacts(logged.model_id, str(folder / "model"))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    try:
        client.create_registered_model(model)
    except (MlflowException, RestException) as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        model, logged.artifact_location, run_id, tags, model_id=logged.model_id
    )
    return str(version.version)


def _describe(finals: list[Record]) -> dict[str, str]:
    """Tags of a version."""
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


def _save_model(target: Path, data: Path, logged: Any, run_id: str, asked: Asked) -> None:
    """An MLflow model without a pickle: a module that loads, and what it loads."""
    given = [TEXT] if asked.labels else [TEXT, SPANS]
    with warnings.catch_warnings():
        # That it has no example: that would be a note. And MLflow warns of its own modules.
        warnings.simplefilter("ignore", UserWarning)
        from mlflow.models import Model, ModelSignature
        from mlflow.pyfunc import save_model
        from mlflow.types import ColSpec, Schema

        save_model(
            target,
            loader_module="raymrc.tracking.serving",
            data_path=data,
            signature=ModelSignature(
                Schema([ColSpec("string", name) for name in given]),
                Schema([ColSpec("string", FOUND)]),
            ),
            # Not found out by loading it, which would take seconds a model.
            pip_requirements=[f"raymrc=={raymrc.__version__}"],
            mlflow_model=Model(
                artifact_path=logged.artifact_location, run_id=run_id, model_id=logged.model_id
            ),
        )
