"""These helpers write study files and build plans and records for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from raymrc.configuration import Backbone, Cell, Configuration, FoldRun
from raymrc.corpora.note import Corpus
from raymrc.errors import SpecError
from raymrc.ledger.ledger import Ledger
from raymrc.ledger.record import NoteCounts, Record, RecordStatus
from raymrc.model.adapters import Adapter
from raymrc.planning.loaded import LoadedStudy
from raymrc.planning.plan import Plan, plan_study
from raymrc.scoring.counts import Counts
from raymrc.study.load import load_spec
from raymrc.study.spec import Spec

STUDY = """\
study: tiny
task: concepts
corpus:
  synthetic: {scheme: n2c2-2018, notes: 6}
  labels: [Drug, ADE]
folds: {count: 2}
backbones: [minilm]
strategies:
  fine_tune: {learning_rate: [5.0e-5, 2.0e-4]}
  frozen_soft_prompt: {learning_rate: 2.0e-2, prompt_length: [8, 32]}
storage: runs/tiny
"""


def write_study(folder: Path, text: str = STUDY) -> Path:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def spec_of(folder: Path, text: str = STUDY, overrides: Sequence[str] = ()) -> Spec:
    return load_spec(write_study(folder, text), overrides)


def plan_of(
    spec: Spec,
    corpus: Corpus | None = None,
    weights: Mapping[str, str] | None = None,
    ledger: Ledger | None = None,
    *,
    transfer: Mapping[str, Corpus] | None = None,
    initial_prompt: Adapter | None = None,
    places: bool = True,
) -> Plan:
    """Plan a study from these inputs alone."""
    study = LoadedStudy(spec, corpus, transfer, None, initial_prompt, weights)
    return plan_study(study, ledger, places=places)


def problems_of(folder: Path, text: str = STUDY, overrides: Sequence[str] = ()) -> list[str]:
    """Return the problems of a study file, with its folder removed from each message."""
    with pytest.raises(SpecError) as caught:
        spec_of(folder, text, overrides)
    return [problem.replace(f"{folder}/", "") for problem in caught.value.problems]


def cell(strategy: str = "fine_tune", backbone: str = "minilm") -> Cell:
    return Cell("concepts", "notes", Backbone(backbone, backbone), strategy)


FINE_TUNED = cell()


def record(
    fold: int = 0,
    *,
    cell: Cell | None = None,
    learning_rate: float = 1e-4,
    validation_f1: float = 0.5,
    counts: Mapping[str, Counts] | None = None,
    status: str = "done",
    corpus: str = "c",
    started_at: str = "2026-01-01T00:00:00+00:00",
    device_seconds: float = 60.0,
    cost_usd: float = 0.01,
    trained_parameters: int = 10,
    adapter_bytes: int = 40,
) -> Record:
    """Return the record of a fold-run whose counts all belong to one note."""
    run = FoldRun(
        configuration=Configuration(cell or FINE_TUNED, learning_rate),
        fold=fold,
        corpus_fingerprint=corpus,
        folds_fingerprint="f",
        questions_fingerprint="",
        weights_fingerprint="w",
    )
    strict = counts if counts is not None else {"Drug": Counts(1, 1, 1)}
    done = status == "done"
    return Record(
        key=run.key,
        fold_run=run,
        status=RecordStatus(status),
        reason="" if done else "the loss is not a number",
        notes={f"note-{fold}": NoteCounts(strict=strict, lenient=strict)} if done else {},
        validation_f1=validation_f1 if done else 0.0,
        started_at=started_at,
        device_seconds=device_seconds,
        cost_usd=cost_usd,
        trained_parameters=trained_parameters,
        total_parameters=100,
        adapter_bytes=adapter_bytes,
    )
