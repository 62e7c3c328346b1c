"""Promise: two studies are set against each other on what both were scored on, and nothing else is claimed.

It would break without anyone noticing: a difference between two tables of F1 looks the same, whether both
were scored on the same notes or not.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from raymrc.analysis.comparison import (
    OTHER_NOTES,
    SAME_FOLDS,
    SAME_NOTES,
    compare_studies,
)
from raymrc.analysis.findings import Findings
from raymrc.analysis.judging import conclude
from raymrc.analysis.statistics import compare_folds
from raymrc.analysis.summary import summarise
from raymrc.report.terminal import render_comparison
from tests.analysis.test_conclusions import scored
from tests.study.making import STUDY, cell, plan_of, record, spec_of

LEVEL = [0.80, 0.82, 0.79, 0.81, 0.80]
BETTER = [0.88, 0.91, 0.87, 0.88, 0.89]


def study(folder, f1, *, name="a", notes="fold", cell=None, order=range(5), overrides=()):
    """Findings of one cell whose folds have these F1 on these notes."""
    spec = spec_of(folder, overrides=[f"study={name}", *overrides])
    records = [
        replace(record(fold, cell=cell), notes=scored(f1[fold], f"{notes}-{order[fold]}"))
        for fold in range(5)
    ]
    summaries = summarise(records, 5)
    plan = plan_of(spec, places=False)
    return Findings(spec, plan, tuple(records), summaries, conclude(summaries, 0.01))


def test_on_the_same_folds_the_difference_is_tested_fold_by_fold(tmp_path):
    (result,) = compare_studies(study(tmp_path, LEVEL), study(tmp_path, BETTER, name="b")).both
    by_hand = compare_folds([b - a for a, b in zip(LEVEL, BETTER, strict=True)])
    assert result.paired == SAME_FOLDS and result.p_value <= 0.05
    assert result.difference == pytest.approx(by_hand.difference, abs=1e-3)
    assert result.p_value == pytest.approx(by_hand.p_difference, rel=0.05)
    assert result.interval.low > 0
    (back,) = compare_studies(study(tmp_path, BETTER), study(tmp_path, LEVEL, name="b")).both
    assert back.difference == pytest.approx(-result.difference)


def test_the_same_notes_in_other_folds_are_resampled_and_no_claim_is_made(tmp_path):
    """Of five folds of equal notes, one study's first is the other one's second."""
    reordered = study(tmp_path, BETTER, name="b", order=[1, 2, 3, 4, 0])
    (result,) = compare_studies(study(tmp_path, LEVEL), reordered).both
    assert result.paired == SAME_NOTES and result.p_value is None
    assert result.interval.low < result.difference < result.interval.high
    a, b = (sum(values) / 5 for values in (LEVEL, BETTER))
    assert result.difference == pytest.approx(b - a, abs=0.002)


def test_on_other_notes_nothing_is_claimed(tmp_path):
    (result,) = compare_studies(study(tmp_path, LEVEL), study(tmp_path, BETTER, notes="other")).both
    assert result.paired == OTHER_NOTES
    assert result.interval.low is None and result.p_value is None
    assert result.difference == pytest.approx(0.082, abs=1e-3)


def test_p_values_are_adjusted_over_all_cells_of_both(tmp_path):
    def two(f1, name):
        first, second = (
            study(tmp_path, f1, name=name, cell=cell(s)) for s in ("fine_tune", "soft_prompt")
        )
        return replace(first, summaries=(*first.summaries, *second.summaries))

    found = compare_studies(two(LEVEL, "a"), two(BETTER, "b"))
    alone = compare_studies(study(tmp_path, LEVEL), study(tmp_path, BETTER))
    assert [pair.p_value for pair in found.both] == pytest.approx([2 * alone.both[0].p_value] * 2)


def test_cells_in_one_study_only_and_differing_settings_are_listed(tmp_path):
    other = study(
        tmp_path,
        LEVEL,
        name="b",
        cell=cell("soft_prompt"),
        overrides=["folds.count=3", "backbones=[bert-large]"],
    )
    found = compare_studies(study(tmp_path, LEVEL), other)
    assert found.both == ()
    assert [c.strategy for c in (*found.only_first, *found.only_second)] == [
        "fine_tune",
        "soft_prompt",
    ]
    settings = {field: (a, b) for field, a, b in found.settings}
    assert settings["folds.count"] == ("2", "3")
    assert settings["backbones[0].name"] == ("minilm", "bert-large")
    assert "task" not in settings
    text = shown(found)
    assert "No cell is in both" in text and "Only in b: notes/minilm/soft_prompt" in text
    assert json.loads(json.dumps(found.to_json()))["only_a"] == ["notes/minilm/fine_tune"]


def test_a_cell_without_a_winner_is_listed_but_not_compared(tmp_path):
    done = study(tmp_path, LEVEL)
    begun = replace(done, summaries=summarise(done.fold_runs[:2], 5))
    found = compare_studies(done, begun)
    assert found.both[0].difference is None
    assert "no winner yet" in shown(found)
    assert found.to_json()["both"][0]["b"] is None


def test_a_study_against_itself_differs_in_nothing(tmp_path):
    found = compare_studies(study(tmp_path, LEVEL), study(tmp_path, LEVEL))
    assert found.settings == () and found.both[0].difference == 0
    assert found.both[0].p_value is None, "folds that all say the same tell nothing"


def shown(found) -> str:
    console = Console(width=240, record=True, file=io.StringIO())
    console.print(render_comparison(found))
    return console.export_text()


def test_grids_and_ranges_are_shown_as_a_study_file_writes_them(tmp_path):
    text = STUDY.replace("learning_rate: 2.0e-2", "learning_rate: {log_uniform: [1.0e-2, 1.0e-1]}")
    drawn = study(tmp_path, LEVEL, overrides=["search={algorithm: random}"])
    ranged = replace(drawn, spec=spec_of(tmp_path, text, ["search={algorithm: random}"]))
    settings = {field: (a, b) for field, a, b in compare_studies(drawn, ranged).settings}
    assert settings["strategies.frozen_soft_prompt.learning_rate"] == (
        "0.02",
        "log_uniform [0.01, 0.1]",
    )
