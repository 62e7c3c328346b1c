"""Promise: terminal and page show the same tables, and every number in them is the records' own.

It would break without anyone noticing: a column that slips, or a precision of 0 where nothing was predicted.
"""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from raymrc.analysis.judging import conclude
from raymrc.analysis.summary import summarise
from raymrc.ledger.record import BOTH_FOUND, Epoch, NoteCounts
from raymrc.report import results
from raymrc.report.table import Table, numbers, words
from raymrc.report.terminal import render
from raymrc.scoring.counts import Counts
from tests.analysis.test_summary import four_strategies, with_subsets
from tests.study.making import cell, record

MARGIN = 0.01


def shown(*parts: Table | str, width: int = 160) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render(parts))
    return console.export_text()


def by_heading(table: Table) -> list[dict[str, str]]:
    headings = [column.heading for column in table.columns]
    return [dict(zip(headings, row, strict=True)) for row in table.cells]


def test_winners_gaps_and_cells_without_a_fold_run_are_shown():
    strategies = ("fine_tune", "soft_prompt", "frozen_soft_prompt", "hard_prompt")
    summaries = summarise(four_strategies(), 2, [cell(strategy) for strategy in strategies])
    found = conclude(summaries, MARGIN)
    winners = {row["cell"]: row for row in by_heading(results.winner_table(summaries, found))}
    assert winners["minilm/soft_prompt"]["strict F1"] == "90.00"
    missing = winners["minilm/hard_prompt"]
    assert (missing["strict F1"], missing["winning configuration"]) == ("-", "no fold-run done yet")
    (gap,) = by_heading(results.gap_table(summaries, found))
    assert gap["difference"] == "40.00" and gap["advice"] == "not enough data"
    (cost,) = by_heading(results.cost_table(summaries, found))
    assert (cost["device time"], cost["stored per task"]) == ("10 %", "1 %")


def test_a_leader_that_is_not_complete_is_no_winner_and_failures_are_counted():
    summaries = summarise([record(0), record(1, status="failed")], 2)
    (row,) = by_heading(results.winner_table(summaries, conclude(summaries, MARGIN)))
    assert row["folds"] == "1 of 2, 1 failed"
    assert row["winning configuration"].startswith("leading so far: ")


def test_unreachable_gold_stands_under_the_winners():
    runs = [replace(record(f), unreachable=2, unreachable_reasons={"no_piece": 2}) for f in (0, 1)]
    summaries = summarise(runs, 2)
    caption = results.winner_table(summaries, conclude(summaries, MARGIN)).caption
    assert caption.endswith("no piece 4)") and "counts as missed" in caption


def test_mentions_show_how_many_relations_they_leave_possible():
    mentions = {"Drug": Counts(3, 1, 1), BOTH_FOUND: Counts(1, 0, 3)}
    runs = [replace(record(f), notes={"n": NoteCounts({}, {}, mentions=mentions)}) for f in (0, 1)]
    (table,) = results.counts_tables(summarise(runs, 2))
    assert [row[1:] for row in table.cells] == [
        ["Drug", "8", "75.00", "75.00", "75.00"],
        [BOTH_FOUND, "8", "-", "25.00", "-"],
    ]
    assert results.counts_tables(summarise([record()], 1)) == []


def test_tasks_with_events_show_their_f1_and_counts():
    events = {"Alcohol": Counts(3, 1, 1), "Alcohol.StatusTime": Counts(2, 2, 0)}
    runs = [replace(record(f), notes={"n": NoteCounts({}, {}, events)}) for f in (0, 1)]
    summaries = summarise(runs, 2)
    (row,) = by_heading(results.winner_table(summaries, conclude(summaries, MARGIN)))
    assert row["events F1"] == "71.43"
    (table,) = results.counts_tables(summaries)
    assert "2022 scheme" in table.title and table.cells[0][1:3] == ["Alcohol", "8"]
    assert table.cells[0][-1] == "75.00"


def test_the_drop_at_another_site_is_shown():
    home = {"Drug": Counts(8, 2, 2), "Reason": Counts(0, 9, 9)}
    away = {"n": NoteCounts({"Drug": Counts(3, 2, 2)}, {"Drug": Counts(3, 2, 2)})}
    runs = [replace(record(f, counts=home), transfer={"there": away}) for f in (0, 1)]
    summaries = summarise(runs, 2)
    ((site, table),) = results.site_tables(summaries, conclude(summaries, MARGIN)).items()
    (row,) = by_heading(table)
    assert site == "there"
    assert (row["at home"], row["at there"], row["drop"]) == ("80.00", "60.00", "20.00")


def test_what_racing_stopped_is_counted_in_configurations_and_epochs():
    done = [record(fold, validation_f1=0.5) for fold in (0, 1)]
    epochs = tuple(Epoch(e, 1.0, 0.9, 1.0) for e in (1, 2))
    beaten = replace(
        record(0, learning_rate=0.1), status="stopped", reason="too late", notes={}, epochs=epochs
    )
    (row,) = by_heading(results.race_table(summarise([*done, beaten], 2)))
    assert (row["configurations"], row["stopped"], row["fold-epochs"]) == ("2", "1", "2")
    assert results.race_table(summarise(done, 2)) is None


def test_nested_overlapping_and_discontinuous_spans_have_a_table_with_what_cannot_be_matched():
    subsets = {
        "nested": Counts(3, 1, 1), "overlapping": Counts(0, 2, 0), "discontinuous": Counts(0, 0, 2),
    }  # fmt: skip
    records = [
        with_subsets(record(fold, cell=cell(strategy)), **subsets)
        for strategy in ("fine_tune", "soft_prompt")
        for fold in (0, 1)
    ]
    (table,) = results.counts_tables(summarise(records, 2))
    assert [row[1:] for row in table.cells if row[0].endswith("soft_prompt")] == [
        ["nested", "8", "75.00", "75.00", "75.00"],
        ["discontinuous", "4", "-", "0.00", "0.00"],
    ]
    assert "A discontinuous span counts as missed here" in table.caption
    assert "share characters, fine_tune can predict only one" in table.caption


def test_spans_that_no_gold_span_nests_in_have_no_table():
    records = [with_subsets(record(fold), nested=Counts(0, 2, 0)) for fold in (0, 1)]
    assert results.counts_tables(summarise(records, 2)) == []
    nested = [with_subsets(record(f, cell=cell("soft_prompt")), nested=Counts(1)) for f in (0, 1)]
    (table,) = results.counts_tables(summarise([*records, *nested], 2))
    assert "missed here" not in table.caption and "only one" not in table.caption


def test_the_terminal_shows_every_cell_heading_caption_and_total_as_text():
    """A study's words may hold rich's markup."""
    table = Table(
        "[bold]title", [*words("name"), *numbers("a long heading", unit="s")],
        [("[red]x", 1), ("y", None)], "[i]caption", ("in total", 12),
    )  # fmt: skip
    text = shown("[b]sentence", table, width=60)
    for part in ("[b]sentence", "[bold]title", "[red]x", "[i]caption", "in total", "12", "-"):
        assert part in text
    assert "a long" in text and "heading," in text


def test_a_row_has_as_many_values_as_the_table_has_columns():
    with pytest.raises(AssertionError):
        Table("title", words("a", "b"), [("x",)])
