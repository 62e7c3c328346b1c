"""Promise: a real study works with MLflow's server, UI and registry, and with PostgreSQL.

Each can fail while the others look fine: a column that sorts as text, a dataset that is linked to no run, a
model that loads and predicts something else. One small study is really trained for all tests; the servers are
MLflow's and PostgreSQL's own.
"""

from __future__ import annotations

import gc
import glob
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas
import pytest
import sqlalchemy

from raymrc.analysis.final import final_records, plan_final_test
from raymrc.analysis.summary import summarise
from raymrc.corpora.brat import write_brat
from raymrc.corpora.note import Corpus
from raymrc.errors import BackboneError, RaymrcError
from raymrc.ledger.ledger import Ledger
from raymrc.ledger.record import Record
from raymrc.model.adapters import ADAPTER_FILE
from raymrc.model.backbones import weights_fingerprint
from raymrc.model.loading import load_backbone
from raymrc.planning.loaded import LoadedStudy
from raymrc.planning.plan import Plan
from raymrc.reading.questions import build_questions
from raymrc.study.load import load_spec
from raymrc.study.notes import build_study_folds, read_study_corpus, read_test
from raymrc.study.spec import Spec
from raymrc.tracking import (
    TrackingPlace,
    attach,
    describe_datasets,
    how_to_open,
    register,
    sync_study,
)
from raymrc.tracking.experiment import open_experiment
from raymrc.tracking.mlflow_internals import DatabaseWriter
from raymrc.tracking.serving import ASKED_FILE
from raymrc.tracking.writers import open_writer
from raymrc.training.batching import StudyData
from raymrc.training.trainer import Trainer
from tests.browser import browser, needs_chromium
from tests.model.tiny import tiny_checkpoint
from tests.study.making import plan_of
from tests.sweep.making import fold_runs
from tests.tracking.test_tracking import read_runs, visible
from tests.training.fold_runs import train_fold_run
from tests.training.test_relations import make_relation_notes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

STUDY = """
study: small
task: concepts
corpus: {{name: ward, reader: brat, path: {folder}/notes}}
folds: {{count: 2, validation_share: 0.2}}
final_test: {{share: 0.3, seeds: [4, 5]}}
backbones:
  - {{name: tiny, source: {folder}/backbone}}
strategies:
  fine_tune: {{learning_rate: [1.0e-5, 1.0e-3], head_learning_rate: 1.0e-2}}
  frozen_soft_prompt: {{learning_rate: 3.0e-2, head_learning_rate: 1.0e-2, prompt_length: 4}}
training: {{epochs: 8, window: 32, overlap: 8, match_width: 16, dropout: 0.0}}
prices: {{device_hour_usd: 0.04}}
storage: {folder}/runs
"""


@dataclass(frozen=True)
class Made:
    """A trained study with its final test and adapters."""

    spec: Spec
    corpus: Corpus
    test: Corpus
    records: tuple[Record, ...]
    folder: Path

    @property
    def first(self) -> list[Record]:
        return sorted(self.records, key=lambda record: record.started_at)[:4]

    @property
    def loaded(self) -> LoadedStudy:
        return LoadedStudy(self.spec, self.corpus, {}, self.test)

    @property
    def datasets(self) -> Any:
        return describe_datasets(self.loaded)

    def tracked_at(self, uri: str) -> Made:
        mlflow = self.spec.mlflow.model_copy(update={"tracking_uri": uri})
        return replace(self, spec=self.spec.model_copy(update={"mlflow": mlflow}))

    @property
    def place(self) -> TrackingPlace:
        return TrackingPlace.of(self.spec)

    def sync(self) -> int:
        return sync_study(self.records, self.place, datasets=self.datasets)

    def register(self) -> list[str]:
        return register(self.records, self.loaded)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("study")
    tiny_checkpoint("bert", folder / "backbone", num_layers=2)
    (folder / "notes").mkdir()
    write_brat((replace(n, relations=()) for n in make_relation_notes(28)), folder / "notes")
    (folder / "study.yaml").write_text(STUDY.format(folder=folder))
    spec = load_spec(folder / "study.yaml")
    corpus = read_study_corpus(spec)
    test = read_test(spec, corpus)
    assert test is not None
    weights = {"tiny": weights_fingerprint(folder / "backbone")}
    plan = plan_of(spec, corpus, weights)
    data = StudyData(
        corpus, build_study_folds(spec, corpus), build_questions(corpus.labels, {}), {}, test
    )
    loaded = load_backbone(spec.backbones[0].backbone, "cpu")
    trainer, ledger = Trainer("cpu", 0.04, storage=spec.storage), Ledger(spec.storage)

    def train(plan: Plan) -> None:
        for run in fold_runs(plan):
            record = train_fold_run(run, data, loaded, device_hour_usd=0.04, on_done=trainer._keep)
            ledger.record(record)

    train(plan)
    records = ledger.records()
    summaries = summarise(records, spec.num_folds, [cell.cell for cell in plan.cells])
    train(plan_final_test(spec, plan, summaries, records, test))
    return Made(spec, corpus, test, ledger.records(), folder)


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tracking server that also takes artifacts, as teams use it."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port),
         "--backend-store-uri", f"sqlite:///{folder / 'server.db'}",
         "--artifacts-destination", str(folder / "artifacts")],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < until
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


@pytest.fixture(scope="module")
def on_server(study: Made, server_url: str) -> Made:
    """The study on the server, written by two syncs; a third one has nothing to do."""
    made = study.tracked_at(server_url)
    assert sync_study(made.first, made.place, datasets=made.datasets) > 0
    assert made.sync() > 0
    assert made.sync() == 0
    return made


def ask(server_url: str, path: str, **body: Any) -> dict[str, Any]:
    """MLflow's REST API, without its client."""
    request = urllib.request.Request(
        f"{server_url}/api/2.0/mlflow/{path}",
        json.dumps(body).encode() if body else None,
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return dict(json.load(answer))


def values_of(run: dict[str, Any], kind: str) -> dict[str, Any]:
    return {entry["key"]: entry["value"] for entry in run["data"].get(kind, [])}


def test_the_runs_on_a_server_say_whether_to_freeze(on_server: Made, server_url: str) -> None:
    """As a user looks for it: cells sorted by F1, then down to the winner's folds."""
    found = ask(server_url, "experiments/get-by-name?experiment_name=small")["experiment"]
    experiment = [found["experiment_id"]]

    def search(filter: str, order: str = "metrics.strict_f1 DESC") -> list[dict[str, Any]]:
        runs = ask(
            server_url, "runs/search", experiment_ids=experiment, filter=filter, order_by=[order]
        )
        return list(runs["runs"])

    rows = search("tags.level = 'cell'")
    summaries = summarise(
        [r for r in on_server.records if not r.fold_run.is_test], on_server.spec.num_folds
    )
    best_first = sorted(summaries, key=lambda s: -s.winner.strict.mean)
    assert len(rows) == 2
    for row, summary in zip(rows, best_first, strict=True):
        metrics, tags, winner = values_of(row, "metrics"), values_of(row, "tags"), summary.winner
        assert winner is not None
        assert metrics["strict_f1"] == pytest.approx(winner.strict.mean)
        assert metrics["cost_usd"] == pytest.approx(winner.cost_usd) and metrics["cost_usd"] > 0
        assert metrics["trained_share"] == pytest.approx(winner.trained_share)
        frozen = summary.cell.strategy == "frozen_soft_prompt"
        assert (tags["strategy"], tags["backbone"]) == (summary.cell.strategy, "tiny")
        assert tags["backbone_is"] == ("frozen" if frozen else "trained")
        assert tags["prompt_length"] == ("4" if frozen else "0")
        assert tags["learning_rate"] == str(winner.configuration.learning_rate)
        assert (metrics["trained_share"] < 1) is frozen

    (study,) = search("tags.level = 'study'")
    study_id = study["info"]["run_id"]
    below = search(f"tags.`mlflow.parentRunId` = '{study_id}'")
    assert {values_of(run, "tags")["level"] for run in below} == {"cell", "final test"}
    (chosen,) = search(
        f"tags.`mlflow.parentRunId` = '{rows[0]['info']['run_id']}' and "
        f"tags.configuration_id = '{values_of(rows[0], 'tags')['winner_id']}'"
    )
    folds = search(f"tags.`mlflow.parentRunId` = '{chosen['info']['run_id']}'")
    assert {values_of(run, "tags")["fold"] for run in folds} == {"0", "1"}
    run_id = folds[0]["info"]["run_id"]
    history = ask(server_url, f"metrics/get-history?run_id={run_id}&metric_key=epoch_validation_f1")
    assert [point["step"] for point in history["metrics"]] == list(range(1, 9))
    metrics = values_of(folds[0], "metrics")
    assert metrics["system/peak_memory_megabytes"] > 1
    assert metrics["system/tokens_per_second"] == pytest.approx(
        metrics["tokens"] / metrics["training_seconds"]
    )
    total = values_of(study, "metrics")["cost_usd"]
    assert total == pytest.approx(sum(record.cost_usd for record in on_server.records))


def test_a_server_has_datasets_with_counts_and_fingerprints(
    on_server: Made, server_url: str
) -> None:
    runs = read_runs(server_url, "small").values()
    for run in runs:
        level = run.data.tags["level"]
        inputs = {i.tags[0].value: i.dataset for i in run.inputs.dataset_inputs}
        expected = {"study": 2, "cell": 1, "final test": 2}.get(level, 0)
        assert len(inputs) == expected, level
        if "training" in inputs:
            assert inputs["training"].digest == on_server.corpus.fingerprint[:36]
            profile = json.loads(inputs["training"].profile)
            assert profile["notes"] == len(on_server.corpus.notes)
            spans = [span for note in on_server.corpus.notes for span in note.spans]
            assert profile["spans"] == len(spans)
            assert profile["spans: Drug"] == sum(span.label == "Drug" for span in spans)
        if "final test" in inputs:
            assert inputs["final test"].digest == on_server.test.fingerprint[:36]


def test_a_server_shows_what_a_database_shows(
    on_server: Made, study: Made, server_url: str
) -> None:
    """`study` is in SQLite beside its ledger, written by `DatabaseWriter`."""
    assert study.sync() > 0 and study.sync() == 0
    assert isinstance(open_writer(study.place), DatabaseWriter)
    theirs, ours = read_runs(server_url, "small"), read_runs(study.place.tracking_uri, "small")
    assert visible(theirs) == visible(ours)
    for key, run in theirs.items():
        assert run.inputs.to_dictionary() == ours[key].inputs.to_dictionary()


def test_files_are_attached_to_the_study_s_run_once(
    on_server: Made, server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, plots = tmp_path / "report.html", tmp_path / "plots"
    plots.mkdir()
    page.write_text("<h1>small</h1>")
    (plots / "f1.svg").write_text("<svg/>")
    assert attach([page, plots], on_server.place) == 2
    assert attach([page, plots], on_server.place) == 0
    page.write_text("<h1>small, again</h1>")
    assert attach([page, plots], on_server.place) == 1
    client, experiment = open_experiment(on_server.place)
    (run,) = client.search_runs([experiment.experiment_id], "tags.level = 'study'")
    fetched = client.download_artifacts(run.info.run_id, "report.html", str(tmp_path / "plots"))
    assert Path(fetched).read_text() == "<h1>small, again</h1>"
    assert [f.path for f in client.list_artifacts(run.info.run_id, "plots")] == ["plots/f1.svg"]
    assert on_server.sync() == 0, "attaching files does not change the run"
    with pytest.raises(RaymrcError, match="no such file to attach"):
        attach([tmp_path / "nowhere.html"], on_server.place)
    with pytest.raises(RaymrcError, match="has no run of study others"):
        attach([page], replace(on_server.place, study="others"))


def fetch_model(name: str, server_url: str, folder: Path) -> Path:
    import mlflow

    mlflow.set_tracking_uri(server_url)
    try:
        return Path(mlflow.artifacts.download_artifacts(f"models:/{name}/1", dst_path=str(folder)))
    finally:
        mlflow.set_tracking_uri(None)


def test_winners_are_registered_once_and_predict_what_their_final_test_recorded(
    on_server: Made, server_url: str, tmp_path: Path
) -> None:
    import mlflow

    assert on_server.register() == ["small-tiny-fine_tune 1", "small-tiny-frozen_soft_prompt 1"]
    assert on_server.register() == []
    assert on_server.sync() == 0
    text = pandas.DataFrame({"text": [note.text for note in on_server.test.notes]})
    all_found = 0
    for cell, finals in final_records(on_server.records).items():
        name, record = f"small-tiny-{cell.strategy}", finals[0]
        version = ask(server_url, f"model-versions/get?name={name}&version=1")["model_version"]
        tags = {tag["key"]: tag["value"] for tag in version["tags"]}
        assert tags["raymrc.key"] == record.key and record.fold_run.configuration.seed == 4
        assert float(tags["strict_f1"]) == pytest.approx(record.strict.f1, abs=1e-6)
        assert version["run_id"] == read_runs(server_url, "small")[record.key].info.run_id
        local = fetch_model(name, server_url, tmp_path / name)
        saved = on_server.folder / "runs" / "adapters" / record.fold_run.place / ADAPTER_FILE
        assert next(local.rglob(ADAPTER_FILE)).read_bytes() == saved.read_bytes()
        model = mlflow.pyfunc.load_model(str(local))
        assert model.metadata.get_input_schema().input_names() == ["text"]
        found = [json.loads(row) for row in model.predict(text)["found"]]
        expected = [asdict(record.predictions[note.id]) for note in on_server.test.notes]
        assert found == json.loads(json.dumps(expected))
        all_found += sum(len(row["spans"]) for row in found)
    assert all_found, "a test with models that find nothing proves nothing"
    # A model holds no text of a note, and refuses another backbone.
    a_text = on_server.corpus.notes[0].text.encode()
    assert not any(a_text in path.read_bytes() for path in local.rglob("*") if path.is_file())
    asked = json.loads(next(local.rglob(ASKED_FILE)).read_text())
    assert set(asked) == {"labels", "relations", "questions"}
    backbone = on_server.folder / "backbone"
    backbone.rename(on_server.folder / "moved")
    tiny_checkpoint("bert", backbone, num_layers=2, seed=9)
    try:
        with pytest.raises(BackboneError, match="was trained on tiny with weights"):
            mlflow.pyfunc.load_model(str(local))
    finally:
        shutil.rmtree(backbone)
        (on_server.folder / "moved").rename(backbone)


def test_a_study_file_selects_what_is_registered(study: Made, server_url: str) -> None:
    made = study.tracked_at(server_url)
    changes = {"register_models": "frozen", "experiment": "other"}
    section = made.spec.mlflow.model_copy(update=changes)
    other = made.spec.model_copy(update={"mlflow": section, "study": "other"})
    loaded = LoadedStudy(other, study.corpus)
    assert register(study.records, loaded) == [], "their runs are not in MLflow yet"
    sync_study(study.records, TrackingPlace.of(other))
    assert register(study.records, loaded) == ["other-tiny-frozen_soft_prompt 1"]
    fewer = replace(study.corpus, notes=study.corpus.notes[1:])
    nothing = other.model_copy(update={"study": "another"})
    assert register(study.records, LoadedStudy(nothing, fewer)) == [], (
        "it was trained on other notes"
    )


@needs_chromium
def test_the_ui_opens_with_one_row_per_cell_sorted_by_f1(on_server: Made, server_url: str) -> None:
    """MLflow does not document how its UI stores a view, so only a browser shows whether it reads ours."""
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 1900, "height": 700})
        page.goto(how_to_open(on_server.place))
        page.get_by_text("2 matching runs").wait_for(timeout=60_000)
        page.get_by_text("prompt_length").first.wait_for(timeout=20_000)
        text = page.locator(".ag-root").first.inner_text()
    for column in ("strict_f1", "cost_usd", "trained_share", "strategy", "backbone"):
        assert column in text
    rows = [c for c in ("tiny · fine_tune", "tiny · frozen_soft_prompt") if c in text]
    assert len(rows) == 2 and "seed 4" not in text


@needs_chromium
def test_the_ui_plots_a_fold_run_s_loss_by_epoch(on_server: Made, server_url: str) -> None:
    found = ask(server_url, "experiments/get-by-name?experiment_name=small")["experiment"]
    (run, *_) = ask(
        server_url, "runs/search", experiment_ids=[found["experiment_id"]],
        filter="tags.level = 'fold-run' and tags.strategy = 'frozen_soft_prompt'",
    )["runs"]  # fmt: skip
    run_id = run["info"]["run_id"]
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 1600, "height": 1400})
        page.goto(
            f"{server_url}/#/experiments/{found['experiment_id']}/runs/{run_id}/model-metrics"
        )
        page.get_by_placeholder("Search metric charts").fill("^loss$")
        page.get_by_text("loss", exact=True).first.wait_for(timeout=60_000)
        line = page.locator(".js-plotly-plot .scatterlayer path.js-line").first
        line.wait_for(state="attached", timeout=30_000)
        drawn = line.get_attribute("d")
    heights = [float(point.split(",")[1]) for point in re.findall(r"[\d.]+,[\d.]+", drawn or "")]
    history = ask(server_url, f"metrics/get-history?run_id={run_id}&metric_key=loss")
    losses = [point["value"] for point in history["metrics"]]
    assert len(heights) == len(losses) == 8
    order = sorted(range(8), key=losses.__getitem__)
    assert sorted(range(8), key=lambda place: -heights[place]) == order, (
        "a larger loss is drawn higher, so at a smaller y"
    )


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """A private PostgreSQL on a socket in a private folder. It refuses to run as root."""
    places = os.pathsep.join([os.environ["PATH"], *glob.glob("/usr/lib/postgresql/*/bin")])
    programs = [shutil.which(name, path=places) for name in ("initdb", "postgres")]
    if None in programs:
        pytest.skip("PostgreSQL is not installed (Debian's package is postgresql)")
    initdb, postgres = map(str, programs)
    pytest.importorskip("psycopg")
    # Not pytest's folder: other users cannot enter it, and the path of a socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="raymrc-pg-"))
    become: list[str] = []
    if os.geteuid() == 0:
        names = {entry.pw_name: entry for entry in pwd.getpwall()}
        user = names.get("postgres") or names["nobody"]
        if shutil.which("setpriv") is None:
            pytest.skip("PostgreSQL refuses root, and setpriv, which changes the user, is missing")
        become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        os.chown(folder, user.pw_uid, user.pw_gid)
    data = str(folder / "data")
    subprocess.run(
        [*become, initdb, "-D", data, "-A", "trust", "-U", "raymrc", "--no-sync"],
        check=True, cwd=folder, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    server = subprocess.Popen(
        [*become, postgres, "-D", data, "-k", str(folder), "-c", "listen_addresses=", "-F"],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until = time.monotonic() + 60
        while not (folder / ".s.PGSQL.5432").exists():
            assert server.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        yield f"postgresql://raymrc@/postgres?host={folder}"
    finally:
        for engine in [each for each in gc.get_objects() if isinstance(each, sqlalchemy.Engine)]:
            if engine.dialect.name == "postgresql":  # MLflow keeps its engines for good
                engine.dispose()
        server.send_signal(signal.SIGINT)
        server.wait()
        shutil.rmtree(folder)


def test_postgresql_shows_what_sqlite_shows(
    study: Made, postgresql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = study.tracked_at(postgresql)
    assert isinstance(open_writer(made.place), DatabaseWriter)
    assert sync_study(made.first, made.place, datasets=made.datasets) > 0
    assert made.sync() > 0 and made.sync() == 0
    study.sync()
    in_postgresql = read_runs(postgresql, "small")
    in_sqlite = read_runs(study.place.tracking_uri, "small")
    assert visible(in_postgresql) == visible(in_sqlite)
    for key, run in in_postgresql.items():
        assert run.inputs.to_dictionary() == in_sqlite[key].inputs.to_dictionary()
    page = study.folder / "report.html"
    page.write_text("<h1>small</h1>")
    assert attach([page], made.place) == 1 and attach([page], made.place) == 0
    stored = study.folder / "runs" / "mlflow-artifacts"
    assert [path.read_text() for path in stored.rglob("report.html")] == ["<h1>small</h1>"]
    assert made.register() == ["small-tiny-fine_tune 1", "small-tiny-frozen_soft_prompt 1"]
    assert made.register() == []
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    assert how_to_open(made.place).startswith(
        "mlflow ui --backend-store-uri 'postgresql://raymrc@/postgres?host="
    )
    secret = postgresql.replace("raymrc@", "raymrc:secret@")
    assert "secret" not in how_to_open(replace(made.place, tracking_uri=secret))
