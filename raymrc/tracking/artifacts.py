"""Files of a study, such as its report, as artifacts of its run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raymrc.errors import RaymrcError
from raymrc.ledger.storage import hide_password
from raymrc.model.backbones import file_digest
from raymrc.tracking.drawings import StudyHeader
from raymrc.tracking.writers import (
    DELETED,
    KEY_TAG,
    ClientWriter,
    TrackingPlace,
    open_experiment,
    quiet_loggers,
)

ATTACHED_TAG = "raymrc.attached"
"""Which files are there, and what they hold: name -> the first digits of their SHA-256, as JSON."""


def attach(paths: Iterable[Path | str], place: TrackingPlace) -> int:
    """Give files to the study's run, which must be there. What is there already is not sent again.

    Args:
        paths: files, and folders with all that is in them; each is called as it is here, and one of the
            same name is replaced.

    Returns:
        How many files were sent.

    Raises:
        RaymrcError: a file is not there; the study has no run; or MLflow cannot be written.
    """
    files = _named(map(Path, paths))
    with quiet_loggers():
        try:
            client, experiment = open_experiment(place)
            run = study_run(client, experiment.experiment_id, place.study_name)
            if run is None:
                raise RaymrcError(
                    f"MLflow has no run of study {place.study_name} that files could "
                    "be given to; 'raymrc sync' writes one"
                )
            attached = json.loads(run.data.tags.get(ATTACHED_TAG, "{}"))
            digests = {name: file_digest(path)[:12] for name, path in files.items()}
            new = [name for name in files if attached.get(name) != digests[name]]
            for name in new:
                folder = name.rpartition("/")[0]
                client.log_artifact(run.info.run_id, str(files[name]), folder or None)
            if new:
                said = json.dumps({**attached, **digests}, sort_keys=True)
                # Of more files than a tag can name, all are sent again the next time.
                said = said if len(said) <= 5000 else "{}"
                client.set_tag(run.info.run_id, ATTACHED_TAG, said)
        except RaymrcError:
            raise
        except Exception as error:
            raise RaymrcError(
                f"MLflow at {hide_password(place.tracking_uri)} cannot take files "
                f"({type(error).__name__}); is the server running, and may this user write there?"
            ) from None
    return len(new)


def study_run(client: Any, experiment_id: str, name: str) -> Any:
    """The run above all others; None where there is none."""
    key = StudyHeader(name).key
    found = ClientWriter(client, experiment_id).standing(f"tags.`{KEY_TAG}` = '{key}'").get(key)
    return None if found is None or found.digest == DELETED else client.get_run(found.run_id)


def _named(paths: Iterable[Path]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise RaymrcError(f"{path}: there is no such file to give to MLflow")
        within = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        named |= {p.relative_to(path.parent).as_posix(): p for p in within}
    return named
