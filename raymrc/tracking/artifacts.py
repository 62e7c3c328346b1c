"""Files of a study, such as its report, as artifacts of its MLflow run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from raymrc.errors import RaymrcError
from raymrc.model.backbones import file_digest
from raymrc.tracking.experiment import TrackingPlace, find_runs, open_for
from raymrc.tracking.snapshots import DELETED, KEY_TAG, StudyHeader

ATTACHED_TAG = "raymrc.attached"
"""The attached files as JSON: name -> first 12 digits of the content's SHA-256."""


def attach(paths: Iterable[Path], place: TrackingPlace) -> int:
    """Attach files to the study's run; unchanged ones are not sent again.

    Args:
        paths: files, and folders with everything in them. A file replaces an attached one of the same name.

    Returns:
        How many files were sent.

    Raises:
        RaymrcError: a file does not exist; the study has no run; or MLflow cannot be written.
    """
    files: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise RaymrcError(f"{path}: no such file to attach to MLflow")
        within = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        files |= {p.relative_to(path.parent).as_posix(): p for p in within}
    key = StudyHeader(place.study_name).key
    with open_for("take files", place) as (client, experiment):
        run = find_runs(client, experiment.experiment_id, f"tags.`{KEY_TAG}` = '{key}'").get(key)
        if run is None or run.digest == DELETED:
            raise RaymrcError(
                f"MLflow has no run of study {place.study_name} to attach files to; "
                "'raymrc sync' writes one"
            )
        attached = json.loads(client.get_run(run.run_id).data.tags.get(ATTACHED_TAG, "{}"))
        digests = {name: file_digest(path)[:12] for name, path in files.items()}
        new = [name for name in files if attached.get(name) != digests[name]]
        for name in new:
            folder = name.rpartition("/")[0]
            client.log_artifact(run.run_id, str(files[name]), folder or None)
        if new:
            tag = json.dumps({**attached, **digests}, sort_keys=True)
            # If a tag cannot hold the names of all files, all are sent again the next time.
            client.set_tag(run.run_id, ATTACHED_TAG, tag if len(tag) <= 5000 else "{}")
    return len(new)
