"""Promise: MLflow shows the ledger, whole and once, and never holds up a study.

Doubled or half-drawn runs would still look like results. Real MLflow on SQLite, read back by
its own client.
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
from collections.abc import Callable, Iterator
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
    how_to_look,
    recorder,
    sync_study,
    writers,
)
from raymrc.tracking.drawings import StudyHeader, build_snapshots, read_figures
from raymrc.tracking.writers import ClientWriter, DatabaseWriter, open_experiment
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
SHARED_TAGS = ("strategy", "backbone", "backbone_is", "corpus", "task")
LEVELS = {"study": 1, "cell": 2, "configuration": 4, "fold-run": 12}


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make a database; tests start from a copy of one."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_experiment(TrackingPlace(f"sqlite:///{path}", "other"))
    return path


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path) -> str:
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def read_runs(uri: str, experiment: str = "made-up") -> dict[str, Any]:
    """All runs by key, as MLflow's client sees them; a key that is there twice fails."""
    client, found = open_experiment(TrackingPlace(uri, experiment))
    runs = client.search_runs([found.experiment_id], max_results=5000)
    keys = Counter(run.data.tags["raymrc.key"] for run in runs)
    assert not [key for key, times in keys.items() if times > 1]
    return {run.data.tags["raymrc.key"]: run for run in runs}


def by_level(runs: dict[str, Any]) -> Counter[str]:
    return Counter(run.data.tags["level"] for run in runs.values())


def shown(run: Any) -> Any:
    """What a user sees of a run, without ids."""
    tags = {k: v for k, v in run.data.tags.items() if k != "mlflow.parentRunId"}
    info = run.info
    return (info.run_name, info.status, info.start_time, info.end_time, info.lifecycle_stage,
            tags, run.data.params, run.data.metrics)  # fmt: skip


def test_runs_nest_from_cell_to_configuration_to_fold_run(uri):
    assert sync_study(RECORDS, TrackingPlace(uri, "made-up")) == sum(LEVELS.values())
    runs = read_runs(uri)
    assert by_level(runs) == LEVELS
    by_id = {run.info.run_id: run for run in runs.values()}
    for run in runs.values():
        above = by_id.get(run.data.tags.get("mlflow.parentRunId", ""))
        level = above.data.tags["level"] if above else None
        wanted = {
            "study": None,
            "cell": "study",
            "configuration": "cell",
            "fold-run": "configuration",
        }
        assert level == wanted[run.data.tags["level"]]
        if above:
            shared = ("corpus", "task") if level == "study" else SHARED_TAGS
            assert [run.data.tags[n] for n in shared] == [above.data.tags[n] for n in shared]


def test_a_fold_run_shows_its_scores_its_course_and_its_cost(uri):
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
                 "peak_bytes", "validation_f1", "trained_share"):  # fmt: skip
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


def test_configurations_show_means_and_cells_their_winner_as_the_verdict_has_it(uri):
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
        assert cell.data.metrics["search_cost_usd"] == pytest.approx(summary.cost_usd)
        assert cell.data.metrics["trained_share"] == pytest.approx(winner.trained_share)
        for one in summary.configurations:
            (drawn,) = [
                r for r in runs.values()
                if r.data.tags.get("configuration_id") == one.configuration.id
            ]  # fmt: skip
            assert drawn.data.metrics["strict_f1"] == pytest.approx(one.strict.mean)
            assert drawn.data.metrics["strict_f1_sd"] == pytest.approx(one.strict.sd)
            assert drawn.data.metrics["device_seconds"] == pytest.approx(one.device_seconds)
            assert drawn.data.metrics["folds_done"] == 3
            assert drawn.data.params["learning_rate"] == str(one.configuration.learning_rate)


def test_in_whatever_order_fold_runs_end_the_drawings_are_the_same():
    """Else a ledger, which has another order, would be drawn again, and on a server a changed parameter
    refused for good."""
    run = RECORDS[0].fold_run
    records = [replace(r, cost_usd=0.1 * (i + 1)) for i, r in enumerate(RECORDS)]
    for seed in (4, 5):
        configuration = replace(run.configuration, seed=seed)
        final = replace(run, configuration=configuration, fold=0, test_fingerprint="held out")
        records.append(replace(RECORDS[0], fold_run=final, key=final.key))
    figures = [read_figures(record) for record in records]
    drawn = [build_snapshots(of, study=StudyHeader("made-up")) for of in (figures, figures[::-1])]
    first, second = ({d.key: d for d in drawings} for drawings in drawn)
    assert first == second
    early = {d.key: d for d in build_snapshots(figures[-1:], study=StudyHeader("made-up"))}
    assert {k: d.params for k, d in early.items()} == {k: first[k].params for k in early}


def test_every_field_of_a_configuration_is_shown_without_being_named():
    (drawing,) = [
        d for d in build_snapshots([read_figures(RECORDS[0])]) if d.tags["level"] == "configuration"
    ]
    configuration = RECORDS[0].fold_run.configuration
    assert set(drawing.params) == set(type(configuration).__dataclass_fields__) - {"cell"}


def test_drawing_twice_adds_nothing(uri):
    sync_study(RECORDS, TrackingPlace(uri, "made-up"))
    before = read_runs(uri)
    path = writers.sqlite_path(uri)
    assert path is not None
    rows = count_rows(path)
    assert sync_study(RECORDS, TrackingPlace(uri, "made-up")) == 0
    assert read_runs(uri).keys() == before.keys()
    assert count_rows(path) == rows


def count_rows(path: Path) -> dict[str, int]:
    with sqlite3.connect(path) as connection:
        tables = ("runs", "tags", "params", "metrics", "latest_metrics")
        return {t: connection.execute(f"select count(*) from {t}").fetchone()[0] for t in tables}


def test_records_one_by_one_end_as_the_ledger_drawn_at_once(uri, monkeypatch):
    monkeypatch.setattr(recorder, "BATCH", 3)
    with MlflowRecorder(TrackingPlace(uri, "made-up"), records=RECORDS[:2]) as live:
        for record in RECORDS[2:]:
            live.record(record)
            time.sleep(0.05)
    assert not live.behind
    assert sync_study(RECORDS, TrackingPlace(uri, "made-up")) == 0
    sync_study(RECORDS, TrackingPlace(uri, "at once", "made-up"))
    one_by_one, at_once = read_runs(uri), read_runs(uri, "at once")
    assert {k: shown(r) for k, r in one_by_one.items()} == {k: shown(r) for k, r in at_once.items()}


def test_the_quick_way_into_the_tables_leaves_what_the_client_would(uri, tmp_path, empty_store):
    (tmp_path / "slow.db").write_bytes(empty_store.read_bytes())
    slow_uri = f"sqlite:///{tmp_path / 'slow.db'}"
    failed = replace(RECORDS[0], status="failed", reason="the loss is not a number", epochs=())
    for records in ([failed, *RECORDS[1:5]], RECORDS[:8]):  # then a failed one done, and more of it
        drawings = build_snapshots([read_figures(record) for record in records])
        client, found = open_experiment(TrackingPlace(slow_uri, "made-up"))
        slow = ClientWriter(client, found.experiment_id)
        slow.write(drawings, slow.standing())
        _, found = open_experiment(TrackingPlace(uri, "made-up"))
        quick = DatabaseWriter(uri, found.experiment_id, found.artifact_location)
        quick.write(drawings, quick.standing())
        assert {k: s.digest for k, s in quick.standing().items()} == {
            k: s.digest for k, s in slow.standing().items()
        }
        ours, theirs = read_runs(uri), read_runs(slow_uri)
        assert {k: shown(r) for k, r in ours.items()} == {k: shown(r) for k, r in theirs.items()}
    for key, run in ours.items():
        mine, _ = open_experiment(TrackingPlace(uri, "made-up"))
        for name in ("loss", "strict_f1", "cost_usd"):
            points = [
                sorted((p.step, p.value, p.timestamp) for p in c.get_metric_history(r, name))
                for c, r in ((mine, run.info.run_id), (client, theirs[key].info.run_id))
            ]
            assert points[0] == points[1]


def test_tables_that_are_not_as_we_know_them_are_written_to_through_the_client(uri):
    path = writers.sqlite_path(uri)
    assert path is not None
    with sqlite3.connect(path) as connection:
        connection.execute("alter table params add column invented text")
    writer = writers.open_writer(TrackingPlace(uri, "made-up"))
    assert isinstance(writer, ClientWriter)


def test_a_cell_shows_no_winner_that_the_study_does_not_try_any_more(uri):
    def winners() -> dict[str, str]:
        cells = (r for r in read_runs(uri).values() if r.data.tags["level"] == "cell")
        return {run.data.tags["strategy"]: run.data.tags["winner"] for run in cells}

    sync_study(RECORDS, TrackingPlace(uri, "made-up"))
    before = winners()
    out = before["fine_tune"]
    sync_study(
        RECORDS, TrackingPlace(uri, "made-up"), lambda c: f"learning_rate={c.learning_rate}" != out
    )
    assert winners()["fine_tune"] != out
    assert by_level(read_runs(uri)) == LEVELS, "it is still shown"
    sync_study(RECORDS, TrackingPlace(uri, "made-up"), lambda c: False)
    assert winners() == before, "of nothing that may win, the best is shown"


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


def test_who_pauses_is_no_run_and_who_is_stopped_is_one_with_its_course_and_reason(uri):
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


def test_a_tag_longer_than_mlflow_takes_is_cut(uri):
    long = replace(RECORDS[0], trained=tuple((f"layer.{i}.weight", 10**6) for i in range(2000)))
    sync_study([long], TrackingPlace(uri, "made-up"))
    shown = read_runs(uri)[long.key].data.tags["trained"]
    assert shown.startswith("layer.0.weight 1000000, ") and shown.endswith("…")
    assert len(shown) == 2000


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


def test_results_on_other_notes_are_not_mixed(uri):
    older = [
        make_record(replace(record.fold_run, corpus_fingerprint="older")) for record in RECORDS
    ]
    sync_study([*RECORDS, *older], TrackingPlace(uri, "made-up"))
    runs = read_runs(uri)
    assert by_level(runs) == {k: 2 * v for k, v in LEVELS.items()} | {"study": 1}
    runs = {key: run for key, run in runs.items() if run.data.tags["level"] != "study"}
    assert {run.data.metrics.get("folds_done", 3.0) for run in runs.values()} == {3.0}


def test_a_number_that_is_none_is_left_out(uri):
    odd = replace(RECORDS[0], epochs=(replace(RECORDS[0].epochs[0], loss=float("nan")),))
    sync_study([odd], TrackingPlace(uri, "made-up"))
    assert "loss" not in read_runs(uri)[odd.key].data.metrics


def test_what_another_site_says_is_shown(uri):
    abroad = replace(RECORDS[0], transfer={"there": RECORDS[1].notes})
    sync_study([abroad], TrackingPlace(uri, "made-up"))
    metrics = read_runs(uri)[abroad.key].data.metrics
    assert metrics["transfer_strict_f1/there"] == pytest.approx(RECORDS[1].strict.f1)
    assert not any(name.startswith("events") for name in metrics)
    assert metrics["strict_f1"] == pytest.approx(RECORDS[0].strict.f1)


def test_subsets_are_shown_where_gold_spans_are_in_them(uri):
    subsets = {"nested": Counts(1, 1, 1), "overlapping": Counts(0, 3, 0)}
    notes = {name: replace(note, subsets=subsets) for name, note in RECORDS[0].notes.items()}
    sync_study([replace(RECORDS[0], notes=notes)], TrackingPlace(uri, "made-up"))
    metrics = read_runs(uri)[RECORDS[0].key].data.metrics
    assert metrics["subset_strict_f1/nested"] == pytest.approx(0.5)
    assert "subset_strict_f1/overlapping" not in metrics


def test_a_final_test_is_a_row_of_its_own_and_wins_nothing():
    run = RECORDS[0].fold_run
    tested = []
    for seed in (4, 5):
        configuration = replace(run.configuration, seed=seed)
        final = replace(run, configuration=configuration, fold=0, test_fingerprint="held out")
        tested.append(replace(RECORDS[0], fold_run=final, key=final.key, validation_f1=1.0))
    before = build_snapshots([read_figures(record) for record in RECORDS])
    together = build_snapshots([read_figures(record) for record in [*RECORDS, *tested]])
    assert [d for d in together if d in before] == before
    added = [d for d in together if d not in before]
    assert Counter(d.tags["level"] for d in added) == {
        "final test": 1, "configuration": 1, "fold-run": 2,
    }  # fmt: skip
    assert added[0].name.endswith("final test")
    assert {d.name for d in added if d.tags["level"] == "fold-run"} == {"seed 4", "seed 5"}
    metrics = {name: value for name, value, *_ in added[0].metrics}
    assert metrics["strict_f1"] == pytest.approx(RECORDS[0].strict.f1)


def test_with_mlflow_away_the_study_goes_on_and_sync_catches_up(tmp_path, empty_store):
    folder = tmp_path / "away"
    folder.write_text("a file where the folder should be")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    said: list[str] = []
    with MlflowRecorder(TrackingPlace(uri, "made-up"), say=said.append) as live:
        for record in RECORDS:
            live.record(record)
    assert live.behind
    (sentence,) = said
    assert "the study goes on, and 'raymrc sync' catches up later" in sentence
    with pytest.raises(RaymrcError, match="cannot be written"):
        sync_study(RECORDS, TrackingPlace(uri, "made-up"))
    folder.unlink()
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    assert sync_study(RECORDS, TrackingPlace(uri, "made-up")) == sum(LEVELS.values())
    assert sync_study(RECORDS, TrackingPlace(uri, "made-up")) == 0
    assert by_level(read_runs(uri)) == LEVELS


def test_an_outage_that_ends_leaves_nothing_to_catch_up_with(tmp_path, empty_store, monkeypatch):
    """Hours of it, before and in the middle; the records of that time are drawn when it is back."""
    monkeypatch.setattr(recorder, "RETRY_SECONDS", 0.0)
    store = tmp_path / "there" / "mlflow.db"
    store.parent.mkdir()
    store.write_bytes(empty_store.read_bytes())
    uri, said = f"sqlite:///{store}", list[str]()

    def until(is_so: Callable[[], bool]) -> None:
        stop = time.monotonic() + 60
        while not is_so():
            assert time.monotonic() < stop
            time.sleep(0.05)

    with MlflowRecorder(
        TrackingPlace(uri, "made-up"), records=RECORDS[:2], say=said.append
    ) as live:
        until(lambda: live.written > 0 and not live.behind)
        store.parent.rename(tmp_path / "away")
        for record in RECORDS[2:6]:
            live.record(record)
        until(lambda: live.behind)
        for record in RECORDS[6:]:
            live.record(record)
        (tmp_path / "away").rename(store.parent)
    assert not live.behind and len(said) == 1
    assert sync_study(RECORDS, TrackingPlace(uri, "made-up")) == 0
    assert by_level(read_runs(uri)) == LEVELS


def test_a_server_that_hangs_and_then_fails_is_not_waited_for(monkeypatch):
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
    said: list[str] = []
    live = MlflowRecorder(
        TrackingPlace(f"http://user:secret@127.0.0.1:{server.server_port}", "made-up"),
        say=said.append,
    )
    for record in RECORDS:  # would wait for ever if it waited for the server
        live.record(record)
    assert said == []
    go_on.set()
    live.close()
    server.shutdown()
    server.server_close()
    assert live.behind and len(said) == 1
    assert "secret" not in said[0]


def test_while_a_study_runs_its_run_says_so_and_the_machine_is_watched(uri, monkeypatch):
    """By MLflow's own monitor; what it writes is no change of the run."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")

    def the_study() -> Any:
        return next(r for r in read_runs(uri).values() if r.data.tags["level"] == "study")

    with MlflowRecorder(TrackingPlace(uri, "made-up"), records=RECORDS[:2]) as live:
        until = time.monotonic() + 60
        while (
            not live.written or "system/cpu_utilization_percentage" not in the_study().data.metrics
        ):
            assert time.monotonic() < until
            time.sleep(0.1)
        assert the_study().info.status == "RUNNING"
        assert the_study().data.metrics["folds_done"] == 2
        live.record(RECORDS[2])
    assert not live.behind
    study = the_study()
    assert study.info.status == "FINISHED" and study.data.metrics["folds_done"] == 3
    assert study.data.metrics["system/device_seconds"] == pytest.approx(30.0)
    assert study.data.metrics["system/peak_memory_megabytes"] == pytest.approx(1000.0)
    assert study.info.end_time == max(
        run.info.end_time for run in read_runs(uri).values() if run is not study
    )
    assert sync_study(RECORDS[:3], TrackingPlace(uri, "made-up")) == 0
    assert not [t for t in threading.enumerate() if t.name == "SystemMetricsMonitor"]


def test_nothing_is_said_to_the_makers_of_mlflow():
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_the_view_that_is_told_shows_a_row_a_cell_with_f1_and_cost(uri, monkeypatch):
    """The columns of the shared view are metrics that every cell's run has."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    sync_study(RECORDS, TrackingPlace(uri, "made-up"))
    client, found = open_experiment(TrackingPlace(uri, "made-up"))
    told = how_to_look(TrackingPlace(uri, "made-up"))
    assert told == (
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


def test_a_server_that_is_away_is_named_without_its_password():
    assert (
        how_to_look(TrackingPlace("http://me:word@127.0.0.1:9/", "made-up")) == "http://127.0.0.1:9"
    )


@pytest.fixture(autouse=True)
def no_folder_for_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MLflow's default place for artifacts is the current folder."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "mlruns").exists()


def test_records_are_values_that_mlflow_leaves_alone():
    assert [Record.from_json(record.to_json()) for record in RECORDS] == RECORDS
