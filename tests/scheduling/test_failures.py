"""Promise: the reason of a failed fold-run never quotes a note."""

from __future__ import annotations

import pytest

from raymrc.errors import BackboneError, CorpusError, MemoryShortage, TrainingError
from raymrc.scheduling.failures import explain, failed_record, may_pass, record_error
from tests.sweep.making import MARKER, fold_runs, make_plan


def caught(error: Exception) -> Exception:
    try:
        raise error
    except Exception as found:
        return found


def test_the_reason_names_a_foreign_exception_and_its_place_without_its_text():
    run = fold_runs(make_plan([0.1]))[0]
    record = failed_record(run, explain(caught(KeyError(MARKER))), device_seconds=3.0)
    assert (record.status, record.key, record.device_seconds) == ("failed", run.key, 3.0)
    assert record.reason.startswith("builtins.KeyError at ")
    assert "test_failures.py:" in record.reason and " in caught" in record.reason
    assert MARKER not in record.to_json() and record.started_at


def test_the_message_of_our_own_error_is_kept():
    assert explain(caught(TrainingError("lower the learning rate"))) == "lower the learning rate"


def test_a_chain_of_causes_adds_no_text():
    try:
        try:
            raise ValueError(MARKER)
        except ValueError as error:
            raise RuntimeError(MARKER) from error
    except RuntimeError as error:
        assert MARKER not in explain(error)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (KeyError(MARKER), True),
        (OSError(5, MARKER), True),
        (MemoryError(), True),
        (MemoryShortage("a batch of 16 rows does not fit into memory"), True),
        (TrainingError("the loss is not a number at step 3; lower the learning rate"), False),
        (BackboneError("there are no weights here"), False),
        (CorpusError("no note has any text"), False),
    ],
)
def test_only_errors_that_may_pass_by_themselves_are_retried(error, again):
    assert may_pass(error) is again
    assert record_error(fold_runs(make_plan([0.1]))[0], error, 2.0).may_pass is again
