"""Promise: what goes wrong in a fold-run is told without a word of a note."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymrc.sweep.trial import explain, train_safely
from tests.sweep.making import MARKER, Script, fold_runs, make_plan, train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "trained").mkdir()
    return tmp_path / "trained"


def test_a_foreign_exception_leaves_its_type_and_place_and_not_its_text(folder):
    run = fold_runs(make_plan([0.1]))[0]
    record = train_safely(train, run, Script(folder, raises=(0.1, 0)), lambda epoch: None)
    assert record.status == "failed"
    assert record.key == run.key
    assert record.reason.startswith("builtins.KeyError at ")
    assert "making.py:" in record.reason and " in train" in record.reason
    assert MARKER not in record.to_json()
    assert record.started_at and record.device_seconds > 0


def test_a_sentence_of_ours_is_kept(folder):
    run = fold_runs(make_plan([0.1]))[0]
    record = train_safely(train, run, Script(folder, mendable=(0.1, 0)), lambda epoch: None)
    assert record.reason == "the loss is not a number at step 12; lower the learning rate"


def test_a_chain_of_causes_adds_no_text():
    try:
        try:
            raise ValueError(MARKER)
        except ValueError as error:
            raise RuntimeError(MARKER) from error
    except RuntimeError as error:
        assert MARKER not in explain(error)


def test_an_end_that_was_asked_for_is_no_failure(folder):
    def end(*args: object, **options: object) -> None:
        raise SystemExit(0)

    with pytest.raises(SystemExit):
        train_safely(end, fold_runs(make_plan())[0], None, lambda epoch: None)  # type: ignore[arg-type]
