"""A study's figures as tidy tables, for whoever goes on with them elsewhere.

    fold_runs   a row a fold-run: settings, scores, cost, state
    labels      a row a label, scheme and site of each finished fold-run

A row of `labels` is joined to its fold-run by `key`. No note's id and no note's text is in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from raymrc.analysis.findings import Findings
from raymrc.configuration import Cell, Configuration, FoldRun
from raymrc.ledger.record import COUNT_SCHEMES, Record
from raymrc.report.files import put
from raymrc.scoring.counts import Counts

FILE_FORMATS = ("csv", "parquet")

SETTING_TYPES = {f.name: str(f.type) for f in fields(Configuration) if f.name != "cell"}
"""By name, with the type as it is written."""

COSTS = (
    "unreachable", "best_epoch", "trained_parameters", "total_parameters", "adapter_bytes",
    "device", "num_devices", "device_seconds", "failed_device_seconds", "wall_seconds",
    "training_seconds", "evaluation_seconds", "tokens", "flops", "peak_bytes", "cost_usd",
    "hardware", "started_at",
)  # fmt: skip
"""Fields of a record that are a column as they are."""


def write_tables(findings: Findings, folder: Path, kind: str) -> tuple[Path, ...]:
    """`fold_runs` and `labels` as files of a kind, one of `FILE_FORMATS`.

    Raises:
        StudyError: they cannot be written.
    """
    tables = {"fold_runs": fold_run_table(findings), "labels": label_table(findings)}
    return tuple(
        put(folder / f"{name}.{kind}", partial(_write, table, kind))
        for name, table in tables.items()
    )


def fold_run_table(findings: Findings) -> pa.Table:
    """F1, precision, recall and shares run from 0 to 1; what a fold-run that is not done lacks is empty."""
    winners = {s.winner.configuration for s in findings.summaries if s.winner is not None}

    def row(record: Record) -> dict[str, Any]:
        run = record.fold_run
        return {
            **_names(findings, record),
            "status": record.status,
            "reason": record.reason or None,
            "is_winner": run.configuration in winners,
            **_settings(run.configuration),
            **_scores(record),
            "epochs_trained": len(record.epochs),
            "trained_share": record.trained_share,
            **{name: getattr(record, name) for name in COSTS},
            "corpus_fingerprint": run.corpus_fingerprint,
            "folds_fingerprint": run.folds_fingerprint,
            "weights_fingerprint": run.weights_fingerprint,
        }

    return _table(map(row, findings.fold_runs), row(_any_record(findings)))


def label_table(findings: Findings) -> pa.Table:
    """`site` is empty for the scored fold, and the name of the other site where notes are from there."""

    def row(record: Record, site: str, mode: str, label: str, counts: Counts) -> dict[str, Any]:
        said = {"site": site, "scheme": mode, "label": label}
        return {**_names(findings, record), **said, **counts.to_json()}

    rows = (
        row(record, site, mode, label, counts)
        for record in findings.fold_runs
        if record.status == "done"
        for site in ("", *record.transfer)
        for mode in COUNT_SCHEMES
        for label, counts in record.per_label(mode, site).items()
    )
    return _table(rows, row(_any_record(findings), "", "", "", Counts()))


def _any_record(findings: Findings) -> Record:
    """Has a record's fields, for a ledger that holds none."""
    configuration = Configuration(findings.plan.cells[0].cell, learning_rate=0.0)
    return Record("", FoldRun(configuration, 0, "", "", "", ""))


def _names(findings: Findings, record: Record) -> dict[str, Any]:
    """What tells a row from others."""
    run = record.fold_run
    return {
        "key": record.key,
        "study": findings.spec.study,
        "part": "final test" if run.is_test else "cross-validation",
        **_cell(run.configuration.cell),
        "configuration": run.configuration.id,
        "fold": None if run.is_test else run.fold,
    }


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "task": cell.task,
        "corpus": cell.corpus,
        "backbone": cell.backbone.name,
        "strategy": cell.strategy,
        "shots": cell.shots,
        "shots_of": cell.shots_of if cell.shots is not None else None,
    }


def _settings(configuration: Configuration) -> dict[str, Any]:
    values = {name: getattr(configuration, name) for name in SETTING_TYPES}
    return {
        name: " ".join(map(str, value)) if isinstance(value, tuple) else value
        for name, value in values.items()
    }


def _scores(record: Record) -> dict[str, Any]:
    done = record.status == "done"
    columns: dict[str, Any] = {"validation_f1": record.validation_f1 if done else None}
    for mode in COUNT_SCHEMES:
        counts: Counts = getattr(record, mode)
        # The scheme of events is of tasks that ask for them.
        scored = done and (mode != "events" or counts != Counts())
        found = counts.to_json()
        columns |= {f"{mode}_{name}": value if scored else None for name, value in found.items()}
    return columns


def _table(rows: Iterable[Mapping[str, Any]], sample: Mapping[str, Any]) -> pa.Table:
    """
    Args:
        sample: a row like the others, which is not in the table: without rows it has columns all the same.
    """
    columns: dict[str, list[Any]] = {name: [] for name in sample}
    for row in rows:
        for name, value in row.items():
            columns[name].append(value)
    types = {
        name: _type_of(name) or (None if values else pa.array([sample[name]]).type)
        for name, values in columns.items()
    }
    return pa.table({name: pa.array(v, types[name]) for name, v in columns.items()})


def _type_of(name: str) -> pa.DataType | None:
    """Where a whole column may be empty, it is of the type that it would have; else as its values are."""
    if name in SETTING_TYPES:
        written = SETTING_TYPES[name].removesuffix(" | None")
        return {"float": pa.float64(), "int": pa.int64()}.get(written, pa.string())
    if name.endswith(("_f1", "_precision", "_recall")) or name == "num_devices":
        return pa.float64()
    if name in ("shots", "fold") or name.endswith(("_tp", "_fp", "_fn")):
        return pa.int64()
    return pa.string() if name in ("shots_of", "reason") else None


def _write(table: pa.Table, kind: str, path: Path) -> None:
    if kind == "csv":
        from pyarrow import csv

        csv.write_csv(table, path)
    else:
        from pyarrow import parquet

        parquet.write_table(table, path)
