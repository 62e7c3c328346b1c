"""Promise: whoever goes on with exported figures has those of the ledger, one row each, and no note's id.

It would break without anyone noticing: a column that slips, a failed fold-run that counts as F1 0.
"""

from __future__ import annotations

from dataclasses import replace

import pyarrow.csv
import pyarrow.parquet
import pytest

from raymrc.analysis.summary import summarise
from raymrc.report import write_tables
from raymrc.report.export import SETTING_TYPES
from tests.report.making import STUDY, make_findings


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return make_findings(tmp_path_factory.mktemp("rich"), STUDY)


def read(path):
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path)
    return pyarrow.csv.read_csv(path)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_exports_have_one_row_per_fold_run_and_per_label_with_the_ledger_s_numbers(
    findings, tmp_path, kind
):
    paths = write_tables(findings, tmp_path / "out", kind)
    assert [path.name for path in paths] == [f"fold_runs.{kind}", f"labels.{kind}"]
    rows, labels = (read(path).to_pylist() for path in paths)
    assert len(rows) == len({row["key"] for row in rows}) == len(findings.fold_runs)
    by_key = {record.key: record for record in findings.fold_runs}
    for row in rows:
        record = by_key[row["key"]]
        assert row["status"] == record.status
        if record.status == "done":
            assert row["strict_f1"] == pytest.approx(record.strict.f1)
            assert row["lenient_tp"] == record.lenient.tp
        else:
            assert row["strict_f1"] is None and row["strict_tp"] is None and row["reason"]
        assert row["device_seconds"] == pytest.approx(record.device_seconds)
        assert row["learning_rate"] == record.fold_run.configuration.learning_rate
        assert row["events_f1"] is None, "the task asks for no events"
        assert row.keys() >= SETTING_TYPES.keys()
    for row in labels[:: len(labels) // 50]:
        counts = by_key[row["key"]].per_label(row["scheme"], row["site"] or "")[row["label"]]
        assert (row["tp"], row["fp"], row["fn"]) == (counts.tp, counts.fp, counts.fn)
    assert {row["site"] or "" for row in labels} == {"", "hospital-b"}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_ledger_without_fold_runs_has_all_columns_and_no_row(findings, tmp_path, kind):
    empty = replace(findings, fold_runs=(), summaries=summarise([], 5), finals=())
    for full, none in zip(
        write_tables(findings, tmp_path / "full", kind),
        write_tables(empty, tmp_path / "none", kind),
        strict=True,
    ):
        assert read(none).num_rows == 0 and read(full).num_rows > 0
        assert read(none).column_names == read(full).column_names
        if kind == "parquet":
            assert read(none).schema.types == read(full).schema.types


def test_winners_can_be_recomputed_from_the_exported_rows(findings, tmp_path):
    """The mean over the folds of those marked as winners is the verdict's."""
    path, _ = write_tables(findings, tmp_path, "parquet")
    rows = [
        row
        for row in read(path).to_pylist()
        if row["is_winner"] and row["part"] == "cross-validation"
    ]
    for summary in findings.summaries:
        cell = summary.cell
        f1 = [
            row["strict_f1"]
            for row in rows
            if (row["backbone"], row["strategy"]) == (cell.backbone.name, cell.strategy)
        ]
        assert len(f1) == 5
        assert sum(f1) / 5 == pytest.approx(summary.winner.strict.mean)
    tested = [row for row in read(path).to_pylist() if row["part"] == "final test"]
    assert tested and all(row["fold"] is None for row in tested)


def test_exports_name_no_note(findings, tmp_path):
    for path in write_tables(findings, tmp_path, "csv"):
        assert "note-" not in path.read_text()
