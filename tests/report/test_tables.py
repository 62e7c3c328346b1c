"""Promise: exported tables hold the ledger's figures, a row a fold-run and a row a label, and join by key.

A column that is shifted, rounded or of another fold-run would still be read by whoever goes on with it.
"""

from __future__ import annotations

from typing import Any

import pytest
from pyarrow import csv, parquet

from raymrc.report import write_tables
from tests.report.making import make_findings


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_findings(tmp_path_factory.mktemp("rich"))


def test_each_fold_run_has_a_row_and_its_labels_add_up_to_it(findings, tmp_path):
    fold_runs, labels = (parquet.read_table(p) for p in write_tables(findings, tmp_path, "parquet"))
    rows = {row["key"]: row for row in fold_runs.to_pylist()}
    assert rows.keys() == {record.key for record in findings.fold_runs}
    winners = {s.winner.configuration for s in findings.summaries if s.winner}
    for record in findings.fold_runs:
        row, run = rows[record.key], record.fold_run
        assert (row["status"], row["fold"]) == (record.status, run.fold)
        assert row["learning_rate"] == run.configuration.learning_rate
        assert row["prompt_length"] == run.configuration.prompt_length
        assert row["strict_f1"] == (record.strict.f1 if record.status == "done" else None)
        assert (row["device_seconds"], row["cost_usd"]) == (record.device_seconds, record.cost_usd)
        assert row["is_winner"] == (run.configuration in winners)
    sums: dict[str, list[int]] = {}
    sites = set()
    for row in labels.to_pylist():
        sites.add(row["site"])
        if row["scheme"] == "strict" and not row["site"]:
            total = sums.setdefault(row["key"], [0, 0, 0])
            for place, name in enumerate(("tp", "fp", "fn")):
                total[place] += row[name]
    done = [record for record in findings.fold_runs if record.status == "done"]
    assert sums == {r.key: [r.strict.tp, r.strict.fp, r.strict.fn] for r in done}
    assert sites == {"", "clinic"}


def test_csv_says_the_same(findings, tmp_path):
    for one, other in zip(
        write_tables(findings, tmp_path, "csv"),
        write_tables(findings, tmp_path, "parquet"),
        strict=True,
    ):
        table = parquet.read_table(other)
        read = csv.read_csv(one, convert_options=csv.ConvertOptions(column_types=table.schema))
        missing = {name for name in table.column_names if table[name].null_count}
        for name in table.column_names:
            if name not in missing:  # csv has no way to tell nothing from an empty word
                assert read[name].to_pylist() == table[name].to_pylist(), name
