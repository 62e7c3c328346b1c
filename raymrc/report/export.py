"""Exports a study's numbers as tidy tables, CSV or Parquet.

    fold_runs   one row per fold-run: settings, scores, cost, status
    labels      one row per label, scheme and site of each finished fold-run

`key` joins `labels` to `fold_runs`. Neither contains a note's id or text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from raymrc.analysis.findings import Findings
from raymrc.configuration import Configuration, FoldRun
from raymrc.ledger.record import COUNT_SCHEMES, Record
from raymrc.report.files import put
from raymrc.report.table import Column, Table
from raymrc.scoring.counts import Counts

SETTING_TYPES = {f.name: str(f.type) for f in fields(Configuration) if f.name != "cell"}
"""Setting -> its type as written in `Configuration`."""

COSTS = (
    "unreachable", "best_epoch", "trained_parameters", "total_parameters", "adapter_bytes",
    "device", "num_devices", "device_seconds", "failed_device_seconds", "wall_seconds",
    "training_seconds", "evaluation_seconds", "steps", "rows", "tokens", "flops", "peak_bytes", "cost_usd",
    "hardware", "started_at",
)  # fmt: skip
"""Fields of a record that become columns unchanged."""


def write_tables(findings: Findings, folder: Path, kind: str) -> tuple[Path, ...]:
    """Writes `fold_runs` and `labels`; `kind` is "csv" or "parquet".

    Raises:
        StudyError: the files cannot be written.
    """
    return tuple(
        put(folder / f"{table.title}.{kind}", partial(_write, table, kind))
        for table in (fold_run_table(findings), label_table(findings))
    )


def fold_run_table(findings: Findings) -> Table:
    """F1, precision, recall and shares run from 0 to 1. Scores are empty unless the fold-run is done."""
    winners = {s.winner.configuration for s in findings.summaries if s.winner is not None}

    def row(record: Record) -> dict[str, Any]:
        run = record.fold_run
        return {
            **_names(findings, record),
            "status": str(record.status),
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

    return _table("fold_runs", map(row, findings.fold_runs), row(_sample_record(findings)))


def label_table(findings: Findings) -> Table:
    """`site` is empty for the scored fold, else the name of the other site."""

    def row(record: Record, site: str, mode: str, label: str, counts: Counts) -> dict[str, Any]:
        place = {"site": site, "scheme": mode, "label": label}
        return {**_names(findings, record), **place, **counts.to_json()}

    rows = (
        row(record, site, mode, label, counts)
        for record in findings.fold_runs
        if record.is_done
        for site in ("", *record.transfer)
        for mode in COUNT_SCHEMES
        for label, counts in record.per_label(mode, site).items()
    )
    return _table("labels", rows, row(_sample_record(findings), "", "", "", Counts()))


def _sample_record(findings: Findings) -> Record:
    """Shows the columns and their types even if the ledger is empty."""
    configuration = Configuration(findings.plan.cells[0].cell, learning_rate=0.0)
    return Record("", FoldRun(configuration, 0, "", "", "", ""))


def _names(findings: Findings, record: Record) -> dict[str, Any]:
    """Columns that identify a row."""
    run, cell = record.fold_run, record.fold_run.configuration.cell
    return {
        "key": record.key,
        "study": findings.spec.study,
        "part": "final test" if run.is_test else "cross-validation",
        "task": cell.task,
        "corpus": cell.corpus,
        "backbone": cell.backbone.name,
        "strategy": cell.strategy,
        "shots": cell.shots,
        "shots_of": cell.shots_of if cell.shots is not None else None,
        "configuration": run.configuration.id,
        "fold": None if run.is_test else run.fold,
    }


def _settings(configuration: Configuration) -> dict[str, Any]:
    values = {name: getattr(configuration, name) for name in SETTING_TYPES}
    return {
        name: " ".join(map(str, value)) if isinstance(value, tuple) else value
        for name, value in values.items()
    }


def _scores(record: Record) -> dict[str, Any]:
    done = record.is_done
    columns: dict[str, Any] = {"validation_f1": record.validation_f1 if done else None}
    for mode in COUNT_SCHEMES:
        counts: Counts = getattr(record, mode)
        # Only some tasks have events.
        scored = done and (mode != "events" or counts != Counts())
        found = counts.to_json()
        columns |= {f"{mode}_{name}": value if scored else None for name, value in found.items()}
    return columns


def _table(title: str, rows: Iterable[Mapping[str, Any]], sample: Mapping[str, Any]) -> Table:
    """
    Args:
        sample: a row that is not in the table; names its columns, and types those of an empty table.
    """
    values = [tuple(row.values()) for row in rows]
    columns = [
        Column(name, arrow_type=_type_of(name) or (None if values else pa.scalar(value).type))
        for name, value in sample.items()
    ]
    return Table(title, columns, values)


def _type_of(name: str) -> pa.DataType | None:
    """Fixed for columns that may be empty throughout; other columns take the type of their values."""
    if name in SETTING_TYPES:
        written = SETTING_TYPES[name].removesuffix(" | None")
        return {"float": pa.float64(), "int": pa.int64()}.get(written, pa.string())
    if name.endswith(("_f1", "_precision", "_recall")) or name == "num_devices":
        return pa.float64()
    if name in ("shots", "fold") or name.endswith(("_tp", "_fp", "_fn")):
        return pa.int64()
    return pa.string() if name in ("shots_of", "reason") else None


def _write(table: Table, kind: str, path: Path) -> None:
    values = zip(*table.rows, strict=True) if table.rows else [()] * len(table.columns)
    found = pa.table(
        {
            column.name: pa.array(list(cells), column.arrow_type)
            for column, cells in zip(table.columns, values, strict=True)
        }
    )
    if kind == "csv":
        from pyarrow import csv

        csv.write_csv(found, path)
    else:
        from pyarrow import parquet

        parquet.write_table(found, path)
