from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from raymrc.scheduling.progress import (
    LINE_SECONDS,
    CellProgress,
    ProgressDisplay,
    Snapshot,
    duration,
    line,
)


def snapshot(done: int, *, reused: int = 0, wall_seconds: float = 60.0) -> Snapshot:
    return Snapshot(
        total=40,
        done=done,
        reused=reused,
        failed=1,
        running=("made-up/tiny/fine_tune fold 2 epoch 3",),
        cells=(
            CellProgress("made-up/tiny/fine_tune", 20, done, 1, "learning_rate=0.001", 0.61),
            CellProgress("made-up/tiny/soft_prompt", 20, 0, 0),
        ),
        wall_seconds=wall_seconds,
    )


def test_a_line_shows_progress_time_left_and_the_best_configuration():
    assert line(snapshot(9)) == (
        "9 of 40 fold-runs, 1 failed, 3 min left, "
        "best on validation 61.0: made-up/tiny/fine_tune learning_rate=0.001"
    )


def test_time_left_is_extrapolated_from_this_run_only():
    assert snapshot(9, reused=0).seconds_left == pytest.approx(180)
    assert snapshot(9, reused=5).seconds_left == pytest.approx(360)


def test_time_left_is_unknown_before_the_first_fold_run():
    nothing = Snapshot(40, 5, 5, 0, (), (), 3.0)
    assert nothing.seconds_left is None
    assert line(nothing) == "5 of 40 fold-runs"


def test_time_left_of_a_race_is_an_upper_bound_from_epochs():
    raced = replace(snapshot(2), raced=(30, 60))
    assert raced.seconds_left == pytest.approx(120)
    assert "2 of 40 fold-runs, 1 failed, at most 2 min left" in line(raced)
    assert replace(raced, raced=(0, 60)).seconds_left is None


def test_a_log_gets_a_line_every_half_minute_and_always_the_last():
    now = 0.0
    out = io.StringIO()
    with ProgressDisplay(Console(file=out, width=200), clock=lambda: now) as show:
        for done in range(1, 8):
            show(snapshot(done))
            now += LINE_SECONDS / 3
    lines = out.getvalue().splitlines()
    assert [int(text.split()[0]) for text in lines] == [1, 4, 7]
    assert "\x1b" not in out.getvalue()


def test_a_terminal_gets_a_table_of_cells():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, color_system=None)
    with ProgressDisplay(console) as show:
        show(snapshot(9, reused=2))
    shown = out.getvalue()
    for words in ("made-up/tiny/fine_tune", "9/20 (1 failed)", "61.0", "learning_rate=0.001"):
        assert words in shown
    assert "9/40 fold-runs in 60 s, 2 from the ledger, about 4 min left" in shown
    assert "fold 2 epoch 3" in shown


def test_durations_are_rounded_for_people():
    assert [duration(s) for s in (8, 89, 90, 600, 7500)] == [
        "8 s", "89 s", "2 min", "10 min", "2 h 05 min",
    ]  # fmt: skip


def test_progress_shows_records_that_wait_and_abandoned_cells():
    ill = snapshot(9)
    cells = (ill.cells[0], replace(ill.cells[1], closed=True))
    ill = replace(ill, cells=cells, waiting=3, trouble="s3://b/x: the store refuses (no route)")
    trouble = (
        "3 finished fold-runs wait for the storage: s3://b/x: the store refuses (no route), "
        "abandoned after failures: made-up/tiny/soft_prompt"
    )
    assert trouble in line(ill)
    out = io.StringIO()
    with ProgressDisplay(
        Console(file=out, force_terminal=True, width=200, color_system=None)
    ) as show:
        show(ill)
    assert all(part in out.getvalue() for part in ("3 finished fold-runs wait", "abandoned after"))
