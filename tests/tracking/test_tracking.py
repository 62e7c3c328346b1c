"""Promise: MLflow shows the whole ledger once, and never holds up a study.

Doubled or half-written runs would still look like results. The tests write to real SQLite stores and read
them back with MLflow's client.
"""

from __future__ import annotations

import http.server
import json
import os
import re
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raymrc.analysis.summary import summarise
from raymrc.errors import RaymrcError
from raymrc.ledger.record import Record
from raymrc.scoring.counts import Counts
from raymrc.tracking import (
    MlflowRecorder,
    TrackingPlace,
    how_to_open,
    recorder,
    sync_study,
)
from raymrc.tracking.experiment import open_experiment
from raymrc.tracking.snapshots import (
    Figures,
    RunSnapshot,
    StudyHeader,
    build_snapshots,
    read_figures,
)
from tests.sweep.making import fold_runs, make_plan, make_record

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

PLAN = make_plan([0.1, 0.2], folds=3)
RECORDS = [
    make_record(run, started_at=f"2026-01-01T00:0{run.fold}:00+00:00") for run in fold_runs(PLAN)
]
STUDY = StudyHeader("made-up")
SHARED_TAGS = ("strategy", "backbone", "backbone_is", "corpus", "task")
LEVELS = {"study": 1, "cell": 2, "configuration": 4, "fold-run": 12}


def read_runs(uri: str, experiment: str = "made-up") -> dict[str, Any]:
    """All runs by key, as MLflow's client sees them; fails if two runs have one key."""
    client, found = open_experiment(TrackingPlace(uri, experiment))
    runs = client.search_runs([found.experiment_id], max_results=5000)
    keys = Counter(run.data.tags["raymrc.key"] for run in runs)
    assert not [key for key, times in keys.items() if times > 1]
    return {run.data.tags["raymrc.key"]: run for run in runs}


def snapshots_of(figures: list[Figures]) -> list[RunSnapshot]:
    """All runs of a study, its own first."""
    return build_snapshots(figures, {f.key for f in figures}, lambda configuration: True, STUDY)


def count_levels(runs: dict[str, Any]) -> Counter[str]:
    return Counter(run.data.tags["level"] for run in runs.values())


def visible(runs: dict[str, Any]) -> dict[str, Any]:
    """What a user sees of runs, without ids."""
    return {key: _visible(run) for key, run in runs.items()}


def _visible(run: Any) -> Any:
    tags = {k: v for k, v in run.data.tags.items() if k != "mlflow.parentRunId"}
    info = run.info
    return (info.run_name, info.status, info.start_time, info.end_time, info.lifecycle_stage,
            tags, run.data.params, run.data.metrics)  # fmt: skip


def test_runs_nest_from_cell_to_configuration_to_fold_run(uri):
    assert sync_study(RECORDS, TrackingPlace(uri, "made-up")) == sum(LEVELS.values())
    runs = read_runs(uri)
    assert count_levels(runs) == LEVELS
    by_id = {run.info.run_id: run for run in runs.values()}
    for run in runs.values():
        parent = by_id.get(run.data.tags.get("mlflow.parentRunId", ""))
        level = parent.data.tags["level"] if parent else None
        expected = {
            "study": None,
            "cell": "study",
            "configuration": "cell",
            "fold-run": "configuration",
        }
        assert level == expected[run.data.tags["level"]]
        if parent:
            shared = ("corpus", "task") if level == "study" else SHARED_TAGS
            assert [run.data.tags[n] for n in shared] == [parent.data.tags[n] for n in shared]


def test_a_fold_run_shows_its_scores_epochs_and_cost(uri):
    sync_study(RECORDS, TrackingPlace(uri, "made-up"))
    record = RECORDS[1]
    run = read_runs(uri)[record.key]
    metrics, tags = run.data.metrics, run.data.tags
    assert run.info.run_name == "fold 1 · learning_rate=0.1"
    assert metrics["strict_f1"] == pytest.approx(record.strict.f1)
    assert metrics["lenient_recall"] == pytest.approx(record.lenient.recall)
    assert (metrics["strict_tp"], metrics["strict_fn"]) == (record.strict.tp, record.strict.fn)
    assert metrics["strict_f1/A"] == pytest.approx(record.per_label("strict")["A"].f1)
    for name in ("trained_parameters", "adapter_bytes", "device_seconds", "cost_usd", "tokens",
                 "steps", "rows", "peak_bytes", "validation_f1", "trained_share"):  # fmt: skip
        assert metrics[name] == pytest.approx(getattr(record, name))
    assert tags["fold"] == "1"
    assert tags["learning_rate"] == "0.1" and tags["prompt_length"] == "0"
    assert tags["versions"] == "torch 2.13.0"
    assert run.info.end_time - run.info.start_time == 10_000
    client, _ = open_experiment(TrackingPlace(uri, "made-up"))
    course = client.get_metric_history(run.info.run_id, "epoch_validation_f1")
    assert [(p.step, p.value) for p in course] == [
        (e.epoch, e.validation_f1) for e in record.epochs
    ]


def test_configurations_show_means_and_cells_show_the_winner_that_the_report_names(uri):
    sync_study(RECORDS, TrackingPlace(uri, "made-up"))
    runs = read_runs(uri)
    for summary in summarise(RECORDS, 3):
        (cell,) = [
            r for r in runs.values()
            if r.data.tags["level"] == "cell" and r.data.tags["strategy"] == summary.cell.strategy
        ]  # fmt: skip
        winner = summary.winner
        assert winner is not None
        assert cell.data.tags["winner_id"] == winner.configuration.id
        assert cell.data.metrics["strict_f1"] == pytest.approx(winner.strict.mean)
        assert cell.data.metrics["cost_usd"] == pytest.approx(winner.cost_usd)
        assert cell.data.metrics["steps"] == winner.steps
        assert cell.data.metrics["search_cost_usd"] == pytest.approx(summary.cost_usd)
        assert cell.data.metrics["trained_share"] == pytest.approx(winner.trained_share)
        for tried in summary.configurations:
            (run,) = [
                r for r in runs.values()
                if r.data.tags.get("configuration_id") == tried.configuration.id
            ]  # fmt: skip
            assert run.data.metrics["strict_f1"] == pytest.approx(tried.strict.mean)
            assert run.data.metrics["strict_f1_sd"] == pytest.approx(tried.strict.sd)
            assert run.data.metrics["device_seconds"] == pytest.approx(tried.device_seconds)
            assert run.data.metrics["folds_done"] == 3
            assert run.data.params["learning_rate"] == str(tried.configuration.learning_rate)


def test_snapshots_do_not_depend_on_the_order_in_which_fold_runs_end():
    """Otherwise `raymrc sync`, whose order is the ledger's, would write runs again, and a server would refuse
    a changed param for good."""
    run = RECORDS[0].fold_run
    records = [replace(r, cost_usd=0.1 * (i + 1)) for i, r in enumerate(RECORDS)]
    for seed in (4, 5):
        configuration = replace(run.configuration, seed=seed)
        final = replace(run, configuration=configuration, fold=0, test_fingerprint="held out")
        records.append(replace(RECORDS[0], fold_run=final, key=final.key))
    figures = [read_figures(record) for record in records]
    first, second = ({s.key: s for s in snapshots_of(order)} for order in (figures, figures[::-1]))
    assert first == second
    early = {s.key: s for s in snapshots_of(figures[-1:])}
    assert {k: s.params for k, s in early.items()} == {k: first[k].params for k in early}


def test_every_field_of_a_configuration_becomes_a_param():
    (snapshot,) = [
        s for s in snapshots_of([read_figures(RECORDS[0])]) if s.tags["level"] == "configuration"
    ]
    configuration = RECORDS[0].fold_run.configuration
    assert set(snapshot.params) == set(type(configuration).__dataclass_fields__) - {"cell"}


def test_a_second_sync_writes_nothing(uri):
    sync_study(RECORDS, TrackingPlace(uri, "made-up"))
    before = read_runs(uri)
    path = Path(uri.removeprefix("sqlite:///"))
    rows = count_rows(path)
    assert sync_study(RECORDS, TrackingPlace(uri, "made-up")) == 0
    assert read_runs(uri).keys() == before.keys()
    assert count_rows(path) == rows


def count_rows(path: Path) -> dict[str, int]:
    with sqlite3.connect(path) as connection:
        tables = ("runs", "tags", "params", "metrics", "latest_metrics")
        return {t: connection.execute(f"select count(*) from {t}").fetchone()[0] for t in tables}


def test_records_written_one_by_one_end_like_the_whole_ledger_written_at_once(uri, monkeypatch):
    monkeypatch.setattr(recorder, "MAX_RUNS_PER_WRITE", 3)
    with MlflowRecorder(TrackingPlace(uri, "made-up"), records=RECORDS[:2]) as live:
        for record in RECORDS[2:]:
            live.record(record)
            time.sleep(0.05)
    assert not live.behind
    assert sync_study(RECORDS, TrackingPlace(uri, "made-up")) == 0
    sync_study(RECORDS, TrackingPlace(uri, "at once", "made-up"))
    one_by_one, at_once = read_runs(uri), read_runs(uri, "at once")
    assert visible(one_by_one) == visible(at_once)


def test_a_cell_shows_no_winner_that_the_study_file_no_longer_has(uri):
    def winners() -> dict[str, str]:
        cells = (r for r in read_runs(uri).values() if r.data.tags["level"] == "cell")
        return {run.data.tags["strategy"]: run.data.tags["winner"] for run in cells}

    sync_study(RECORDS, TrackingPlace(uri, "made-up"))
    before = winners()
    removed = before["fine_tune"]
    sync_study(
        RECORDS,
        TrackingPlace(uri, "made-up"),
        lambda c: f"learning_rate={c.learning_rate}" != removed,
    )
    assert winners()["fine_tune"] != removed
    assert count_levels(read_runs(uri)) == LEVELS, "its runs stay"
    sync_study(RECORDS, TrackingPlace(uri, "made-up"), lambda c: False)
    assert winners() == before, "if none may win, the best of all is shown"


def test_a_fold_run_that_failed_and_then_succeeded_is_one_run(uri):
    failed = replace(RECORDS[0], status="failed", reason="the loss is not a number", notes={})
    sync_study([failed], TrackingPlace(uri, "made-up"))
    run = read_runs(uri)[failed.key]
    assert run.info.status == "FAILED"
    assert run.data.tags["reason"] == "the loss is not a number"
    assert "strict_f1" not in run.data.metrics
    sync_study([RECORDS[0]], TrackingPlace(uri, "made-up"))
    run = read_runs(uri)[failed.key]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["strict_f1"] == pytest.approx(RECORDS[0].strict.f1)


def test_a_paused_fold_run_has_no_run_and_a_stopped_one_shows_its_epochs_and_reason(uri):
    first, second = RECORDS[:2]
    paused = replace(first, status="paused", notes={})
    stopped = replace(second, status="stopped", reason="it can no longer win", notes={})
    sync_study([paused, stopped], TrackingPlace(uri, "made-up"))
    runs = read_runs(uri)
    assert paused.key not in runs
    run = runs[stopped.key]
    assert run.info.status == "FINISHED"
    assert run.data.tags["stopped"] == "it can no longer win"
    assert "strict_f1" not in run.data.metrics
    assert run.data.metrics["epoch_validation_f1"] == stopped.epochs[-1].validation_f1


def test_a_tag_that_is_too_long_for_mlflow_is_cut(uri):
    long = replace(RECORDS[0], trained=tuple((f"layer.{i}.weight", 10**6) for i in range(2000)))
    sync_study([long], TrackingPlace(uri, "made-up"))
    tag = read_runs(uri)[long.key].data.tags["trained"]
    assert tag.startswith("layer.0.weight 1000000, ") and tag.endswith("…")
    assert len(tag) == 2000


def test_a_run_that_the_user_deleted_stays_deleted(uri):
    sync_study(RECORDS[:3], TrackingPlace(uri, "made-up"))
    client, _ = open_experiment(TrackingPlace(uri, "made-up"))
    gone = read_runs(uri)[RECORDS[0].key].info.run_id
    client.delete_run(gone)
    changed = replace(RECORDS[0], cost_usd=9.0)
    sync_study([changed, *RECORDS[1:3]], TrackingPlace(uri, "made-up"))
    assert client.get_run(gone).info.lifecycle_stage == "deleted"
    assert RECORDS[0].key not in read_runs(uri)
    sync_study([changed, *RECORDS[1:3]], TrackingPlace(uri, "made-up"))


def test_results_on_different_notes_are_not_mixed(uri):
    older = [
        make_record(replace(record.fold_run, corpus_fingerprint="older")) for record in RECORDS
    ]
    sync_study([*RECORDS, *older], TrackingPlace(uri, "made-up"))
    runs = read_runs(uri)
    assert count_levels(runs) == {k: 2 * v for k, v in LEVELS.items()} | {"study": 1}
    runs = {key: run for key, run in runs.items() if run.data.tags["level"] != "study"}
    assert {run.data.metrics.get("folds_done", 3.0) for run in runs.values()} == {3.0}


def test_a_metric_that_is_not_a_number_is_left_out(uri):
    odd = replace(RECORDS[0], epochs=(replace(RECORDS[0].epochs[0], loss=float("nan")),))
    sync_study([odd], TrackingPlace(uri, "made-up"))
    assert "loss" not in read_runs(uri)[odd.key].data.metrics


def test_scores_at_another_site_are_shown(uri):
    transferred = replace(RECORDS[0], transfer={"north": RECORDS[1].notes})
    sync_study([transferred], TrackingPlace(uri, "made-up"))
    metrics = read_runs(uri)[transferred.key].data.metrics
    assert metrics["transfer_strict_f1/north"] == pytest.approx(RECORDS[1].strict.f1)
    assert not any(name.startswith("events") for name in metrics)
    assert metrics["strict_f1"] == pytest.approx(RECORDS[0].strict.f1)


def test_subsets_with_gold_spans_are_shown(uri):
    subsets = {"nested": Counts(1, 1, 1), "overlapping": Counts(0, 3, 0)}
    notes = {name: replace(note, subsets=subsets) for name, note in RECORDS[0].notes.items()}
    sync_study([replace(RECORDS[0], notes=notes)], TrackingPlace(uri, "made-up"))
    metrics = read_runs(uri)[RECORDS[0].key].data.metrics
    assert metrics["subset_strict_f1/nested"] == pytest.approx(0.5)
    assert "subset_strict_f1/overlapping" not in metrics


def test_a_final_test_has_its_own_run_and_does_not_change_the_cells():
    run = RECORDS[0].fold_run
    tested = []
    for seed in (4, 5):
        configuration = replace(run.configuration, seed=seed)
        final = replace(run, configuration=configuration, fold=0, test_fingerprint="held out")
        tested.append(replace(RECORDS[0], fold_run=final, key=final.key, validation_f1=1.0))
    _, *before = snapshots_of([read_figures(record) for record in RECORDS])
    _, *together = snapshots_of([read_figures(record) for record in [*RECORDS, *tested]])
    assert [s for s in together if s in before] == before
    added = [s for s in together if s not in before]
    assert Counter(s.tags["level"] for s in added) == {
        "final test": 1, "configuration": 1, "fold-run": 2,
    }  # fmt: skip
    assert added[0].name.endswith("final test")
    assert {s.name for s in added if s.tags["level"] == "fold-run"} == {"seed 4", "seed 5"}
    metrics = {name: value for name, value, *_ in added[0].metrics}
    assert metrics["strict_f1"] == pytest.approx(RECORDS[0].strict.f1)


def test_without_mlflow_the_study_goes_on_and_sync_catches_up(tmp_path, empty_store):
    folder = tmp_path / "away"
    folder.write_text("a file where the folder should be")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    warnings: list[str] = []
    with MlflowRecorder(TrackingPlace(uri, "made-up"), warn=warnings.append) as live:
        for record in RECORDS:
            live.record(record)
    assert live.behind
    (sentence,) = warnings
    assert "the study goes on, and 'raymrc sync' catches up later" in sentence
    with pytest.raises(RaymrcError, match="cannot be written"):
        sync_study(RECORDS, TrackingPlace(uri, "made-up"))
    folder.unlink()
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    assert sync_study(RECORDS, TrackingPlace(uri, "made-up")) == sum(LEVELS.values())
    assert sync_study(RECORDS, TrackingPlace(uri, "made-up")) == 0
    assert count_levels(read_runs(uri)) == LEVELS


def test_records_of_an_outage_are_written_when_it_ends(tmp_path, empty_store, monkeypatch):
    monkeypatch.setattr(recorder, "RETRY_SECONDS", 0.0)
    store = tmp_path / "store" / "mlflow.db"
    store.parent.mkdir()
    store.write_bytes(empty_store.read_bytes())
    uri, warnings = f"sqlite:///{store}", list[str]()

    def wait_until(condition: Callable[[], bool]) -> None:
        stop = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < stop
            time.sleep(0.05)

    with MlflowRecorder(
        TrackingPlace(uri, "made-up"), records=RECORDS[:2], warn=warnings.append
    ) as live:
        wait_until(lambda: live.written > 0 and not live.behind)
        store.parent.rename(tmp_path / "away")
        for record in RECORDS[2:6]:
            live.record(record)
        wait_until(lambda: live.behind)
        for record in RECORDS[6:]:
            live.record(record)
        (tmp_path / "away").rename(store.parent)
    assert not live.behind and len(warnings) == 1
    assert sync_study(RECORDS, TrackingPlace(uri, "made-up")) == 0
    assert count_levels(read_runs(uri)) == LEVELS


def test_the_driver_does_not_wait_for_a_server_that_hangs(monkeypatch):
    go_on = threading.Event()

    class Broken(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            go_on.wait(60)
            self.send_error(503)

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    warnings: list[str] = []
    place = TrackingPlace(f"http://user:secret@127.0.0.1:{server.server_port}", "made-up")
    with MlflowRecorder(place, warn=warnings.append) as live:
        for record in RECORDS:  # would hang here if it waited for the server
            live.record(record)
        assert warnings == []
        go_on.set()
    server.shutdown()
    server.server_close()
    assert live.behind and len(warnings) == 1
    assert "secret" not in warnings[0]


def test_a_running_study_has_that_status_and_metrics_of_the_machine(uri, monkeypatch):
    """MLflow's monitor writes them, and `raymrc sync` does not take them for a change."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")

    def study_run() -> Any:
        return next(r for r in read_runs(uri).values() if r.data.tags["level"] == "study")

    with MlflowRecorder(TrackingPlace(uri, "made-up"), records=RECORDS[:2]) as live:
        until = time.monotonic() + 60
        while (
            not live.written or "system/cpu_utilization_percentage" not in study_run().data.metrics
        ):
            assert time.monotonic() < until
            time.sleep(0.1)
        assert study_run().info.status == "RUNNING"
        assert study_run().data.metrics["folds_done"] == 2
        live.record(RECORDS[2])
    assert not live.behind
    study = study_run()
    assert study.info.status == "FINISHED" and study.data.metrics["folds_done"] == 3
    assert study.data.metrics["system/device_seconds"] == pytest.approx(30.0)
    assert study.data.metrics["system/peak_memory_megabytes"] == pytest.approx(1000.0)
    assert study.info.end_time == max(
        run.info.end_time for run in read_runs(uri).values() if run is not study
    )
    assert sync_study(RECORDS[:3], TrackingPlace(uri, "made-up")) == 0
    assert not [t for t in threading.enumerate() if t.name == "SystemMetricsMonitor"]


def test_mlflow_sends_no_telemetry():
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_the_view_that_is_printed_shows_one_row_per_cell_with_f1_and_cost(uri, monkeypatch):
    """Every cell's run has all columns of the shared view."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    sync_study(RECORDS, TrackingPlace(uri, "made-up"))
    client, found = open_experiment(TrackingPlace(uri, "made-up"))
    assert how_to_open(TrackingPlace(uri, "made-up")) == (
        f"mlflow ui --backend-store-uri {uri}    then open "
        f"http://127.0.0.1:5000/#/experiments/{found.experiment_id}/runs?viewStateShareKey=raymrc"
        "&workflowType=machine_learning"
    )
    view = json.loads(found.tags["mlflow.sharedViewState.raymrc"])
    rows = client.search_runs(
        [found.experiment_id],
        filter_string=view["searchFilter"],
        order_by=[view["orderByKey"] + " DESC"],
    )
    assert Counter(run.data.tags["level"] for run in rows) == {"cell": LEVELS["cell"]}
    scores = [run.data.metrics["strict_f1"] for run in rows]
    assert scores == sorted(scores, reverse=True)
    for column in view["selectedColumns"]:
        kind, name = re.fullmatch(r"(metrics|tags)\.`(\w+)`", column).groups()
        assert all(name in getattr(run.data, kind) for run in rows), name


def test_the_url_of_a_server_that_is_down_is_shown_without_its_password():
    assert (
        how_to_open(TrackingPlace("http://me:word@127.0.0.1:9/", "made-up")) == "http://127.0.0.1:9"
    )


def test_writing_to_mlflow_leaves_records_unchanged():
    assert [Record.from_json(record.to_json()) for record in RECORDS] == RECORDS
