"""Promise: two studies are set against each other by what they share, and where they share nothing, nothing
is claimed.

A paired test over folds that are not the same would look like any other figure.
"""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from raymrc.study.comparison import (
    OTHER_NOTES,
    SAME_FOLDS,
    SAME_NOTES,
    StudyComparison,
    compare,
    render,
)
from raymrc.study.conclusions import over_folds
from tests.report.making import RICH, make_findings

SMALL = RICH.replace("  - {name: minilm, layers: 4}\n  - {name: minilm, layers: 6}\n", "")


def findings_of(folder: Any, *overrides: str, text: str = SMALL) -> Any:
    folder.mkdir(exist_ok=True)
    return make_findings(folder, text, overrides)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return findings_of(tmp_path_factory.mktemp("a"))


def shown(found: StudyComparison) -> str:
    console = Console(file=io.StringIO(), width=220)
    console.print(render(found))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_same_folds_are_paired_fold_by_fold_and_adjusted_over_all_cells(first, tmp_path):
    other = findings_of(tmp_path / "b", "training.epochs=7", "study=longer")
    found = compare(first, other)
    assert [one.cell for one in found.both] == [s.cell for s in first.summaries]
    for one in found.both:
        a, b = one.first, one.second
        assert a is not None and b is not None and one.paired == SAME_FOLDS
        steps = [y - x for x, y in zip(a.fold_f1, b.fold_f1, strict=True)]
        alone = over_folds(b.fold_runs, steps)
        assert one.difference == pytest.approx(alone.difference)
        assert one.interval == alone.interval()
        assert one.p_value is not None and one.p_value >= alone.p_difference
    assert ("training.epochs", "6", "7") in found.settings
    assert "same folds" in shown(found) and "training.epochs" in shown(found)


def test_other_folds_of_the_same_notes_give_an_interval_and_no_p(first, tmp_path):
    found = compare(first, findings_of(tmp_path / "b", "folds.seed=99", "study=other-folds"))
    assert {one.paired for one in found.both} == {SAME_NOTES}
    for one in found.both:
        assert one.p_value is None and not one.is_sure
        assert one.first is not None and one.second is not None
        pooled = one.second.pooled_strict.f1 - one.first.pooled_strict.f1
        assert one.difference == pytest.approx(pooled) and pooled in one.interval


def test_of_other_notes_nothing_is_claimed(first, tmp_path):
    found = compare(first, findings_of(tmp_path / "b", "corpus.synthetic.seed=70", "study=others"))
    for one in found.both:
        assert (one.paired, one.p_value) == (OTHER_NOTES, None)
        assert one.interval.low is None
    assert "nothing says" in shown(found)


def test_cells_that_one_lacks_are_named(first, tmp_path):
    fewer = SMALL.replace("  - {name: minilm, layers: 2}\n", "").replace(
        "study: rich", "study: less"
    )
    found = compare(first, findings_of(tmp_path / "b", text=fewer))
    assert {cell.backbone.name for cell in found.only_first} == {"minilm-l2"}
    assert found.only_second == () and len(found.both) == 3
    values = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert values["only_a"] == [cell.name for cell in found.only_first]
    assert values["both"][0]["a"]["strict_f1"]["mean"] > 0
    assert "only in rich" in shown(found)
