"""What MLflow shows of a study, as values; MLflow itself is not imported here.

records -> figures -> run snapshots        (study > cell > configuration > fold-run)
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime

from raymrc.configuration import SETTINGS, Backbone, Cell, Configuration, hash_values
from raymrc.ledger.rank import rank
from raymrc.ledger.record import BOTH_FOUND, COUNT_SCHEMES, Record, RecordStatus
from raymrc.model.strategies import STRATEGIES
from raymrc.scoring.counts import pool
from raymrc.tracking.datasets import Dataset

KEY_TAG = "raymrc.key"
DIGEST_TAG = "raymrc.drawn"
PARENT_TAG = "mlflow.parentRunId"

DELETED = "deleted"
"""Takes the place of the digest of a run that the user deleted; such a run is never written again."""

SHOWN_ELSEWHERE = ("key", "status", "reason")
"""Text fields of a record that become no tag of their own."""

MAX_TAG_CHARACTERS = 2000
"""MLflow's own stores refuse tags of more than 5000 or 8000."""

SUMMED = (
    "unreachable device_seconds failed_device_seconds wall_seconds training_seconds "
    "evaluation_seconds steps rows tokens flops cost_usd"
).split()
LARGEST = ("peak_bytes",)
"""How a configuration's figure comes from those of its folds. Counts are summed too; all others are means."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What MLflow shows of one fold-run, in a hundredth of its record's memory.

    Args:
        configuration_key, cell_key: the runs above it. They depend on notes, folds and weights, so results on
            other notes go to other runs.
        corpora: fingerprints of the notes that it was trained or scored on; "" stands for none.
        numbers: metric name -> value.
        words: tag -> value.
        course: (metric name, value, epoch, milliseconds since 1970).
        start_ms, end_ms: milliseconds since 1970.
    """

    key: str
    configuration_key: str
    cell_key: str
    corpora: tuple[str, ...]
    configuration: Configuration
    fold: int
    is_test: bool
    status: RecordStatus
    reason: str
    numbers: Mapping[str, float]
    words: Mapping[str, str]
    course: tuple[tuple[str, float, int, int], ...]
    start_ms: int
    end_ms: int


def read_figures(record: Record) -> Figures:
    """A record's scores (per mode, label and subset), cost, size and course."""
    run = record.fold_run
    started = datetime.fromisoformat(record.started_at).timestamp() if record.started_at else 0
    start_ms = int(started * 1000)
    numbers: dict[str, float] = {}
    words = {
        "versions": ", ".join(f"{k} {v}" for k, v in sorted(record.versions.items())),
        "trained": ", ".join(f"{name} {count}" for name, count in record.trained),
    }
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, str) and field.name not in SHOWN_ELSEWHERE:
            words[field.name] = value
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[field.name] = float(value)
    numbers["trained_share"] = record.trained_share
    if record.is_done:
        for mode in COUNT_SCHEMES:
            by_label = record.per_label(mode)
            if mode == "events" and not by_label:
                continue
            counts = pool(by_label.values()).to_json()
            numbers |= {f"{mode}_{name}": float(value) for name, value in counts.items()}
            numbers |= {f"{mode}_f1/{_metric_name(k)}": c.f1 for k, c in by_label.items()}
            for site in record.transfer:
                site_counts = pool(record.per_label(mode, site).values())
                numbers[f"transfer_{mode}_f1/{_metric_name(site)}"] = site_counts.f1
        numbers |= {
            f"subset_strict_f1/{name}": c.f1 for name, c in record.subsets.items() if c.tp + c.fn
        }
        mentions = record.mentions
        if BOTH_FOUND in mentions:
            numbers["relations_with_both_mentions_found"] = mentions.pop(BOTH_FOUND).recall
        numbers |= {f"mention_strict_f1/{_metric_name(k)}": c.f1 for k, c in mentions.items()}
    course: list[tuple[str, float, int, int]] = []
    clock = float(start_ms)
    for epoch in record.epochs:
        clock += epoch.wall_seconds * 1000
        course.append(("loss", epoch.loss, epoch.epoch, int(clock)))
        course.append(("epoch_validation_f1", epoch.validation_f1, epoch.epoch, int(clock)))
    sites = [named.rpartition(" ")[2] for named in run.transfer_fingerprints]
    # The seeds of a final test are its replicates, as folds are those of a configuration.
    replicated = replace(run.configuration, seed=0) if run.is_test else run.configuration
    return Figures(
        key=record.key,
        configuration_key="configuration:"
        + hash_values([replicated.id, run.basis + run.start])[:32],
        cell_key="cell:" + hash_values([run.configuration.cell.values, run.basis])[:32],
        corpora=(run.corpus_fingerprint, run.test_fingerprint, *sites),
        configuration=run.configuration,
        fold=run.fold,
        is_test=run.is_test,
        status=record.status,
        reason=record.reason,
        numbers=numbers,
        words=words,
        course=tuple(course),
        start_ms=start_ms,
        end_ms=start_ms + int(record.wall_seconds * 1000),
    )


def _metric_name(label: str) -> str:
    """MLflow refuses other characters in names of metrics."""
    return re.sub(r"[^\w\-. ]", "_", label, flags=re.ASCII)


@dataclass(frozen=True, slots=True)
class StudyHeader:
    """The study's own run, above all others.

    Args:
        datasets: its notes, as far as they are on this machine.
        is_running: whether a driver is at work on it.
    """

    name: str
    datasets: tuple[Dataset, ...] = ()
    is_running: bool = False

    @property
    def key(self) -> str:
        return "study:" + hash_values([self.name])[:32]


@dataclass(frozen=True, slots=True)
class ExistingRun:
    """A run that MLflow has: its id, and the digest of the snapshot that it shows."""

    run_id: str
    digest: str


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """An MLflow run as it should look now.

    Args:
        key: what it shows; at most one run of an experiment has it.
        parent: key of the run above, which is written first; "" for none.
        status: "RUNNING", "FINISHED" or "FAILED".
        start_ms, end_ms: milliseconds since 1970; the end of a study that runs is its latest known one.
        metrics: (name, value, step, milliseconds since 1970).
        datasets: the notes that it was trained or scored on.
    """

    key: str
    parent: str
    name: str
    status: str
    start_ms: int
    end_ms: int
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: tuple[tuple[str, float, int, int], ...]
    datasets: tuple[Dataset, ...] = ()

    @property
    def digest(self) -> str:
        """Equal snapshots have equal digests, so that an unchanged run is not written again."""
        return hash_values([getattr(self, field.name) for field in fields(self)])[:16]

    @property
    def finite_metrics(self) -> list[tuple[str, float, int, int]]:
        return [metric for metric in self.metrics if math.isfinite(metric[1])]

    def all_tags(self, existing: Mapping[str, ExistingRun]) -> dict[str, str]:
        """Its tags, its key, and the id of the run above, which must exist."""
        above = {PARENT_TAG: existing[self.parent].run_id} if self.parent else {}
        return {**self.tags, KEY_TAG: self.key, **above}


def build_snapshots(
    all_figures: Iterable[Figures],
    changed_keys: Collection[str],
    may_win: Callable[[Configuration], bool],
    study: StudyHeader,
) -> list[RunSnapshot]:
    """The runs of a study, parents before children.

    Args:
        changed_keys: build only these fold-runs and the runs above them.
        may_win: which configurations may be the winner that a cell shows. If none of a cell's configurations
            may win, because the study file has changed since, all of them may.
        study: the run above the cells.
    """
    cells: dict[str, dict[str, list[Figures]]] = {}
    for figures in all_figures:
        configurations = cells.setdefault(figures.cell_key, {})
        configurations.setdefault(figures.configuration_key, []).append(figures)
    for configurations in cells.values():
        for folds in configurations.values():
            # The order in which fold-runs finish must not change a digest.
            folds.sort(key=lambda f: (f.fold, f.configuration.seed))
    snapshots = [_study_snapshot(study, cells)]
    for cell_key, configurations in cells.items():
        names = _name_configurations(configurations)
        below = []
        for key, folds in configurations.items():
            changed = [f for f in folds if f.key in changed_keys]
            if changed:
                below.append(_configuration_snapshot(key, cell_key, names[key], folds))
                below += [_fold_run_snapshot(f, key, names[key]) for f in changed]
        if below:
            snapshots.append(_cell_snapshot(cell_key, configurations, names, may_win, study))
            snapshots += below
    return snapshots


def _texts(values: Backbone | Cell | Configuration, without: str) -> dict[str, str]:
    """A dataclass's fields as text, without the one named."""
    return {f.name: str(getattr(values, f.name)) for f in fields(values) if f.name != without}


def _cell_tags(cell: Cell) -> dict[str, str]:
    backbone = _texts(cell.backbone, "name")
    if cell.backbone.layers is None:
        backbone["layers"] = ""
    return {
        **_texts(cell, "backbone"),
        "backbone": cell.backbone.name,
        **{f"backbone_{name}": text for name, text in backbone.items()},
        "backbone_is": "trained" if STRATEGIES[cell.strategy].trains_backbone else "frozen",
    }


def _name_configurations(configurations: Mapping[str, Sequence[Figures]]) -> dict[str, str]:
    """Named by the fields in which a cell's configurations differ, such as "learning_rate=0.02"."""
    described = {
        key: _texts(folds[0].configuration, "cell") for key, folds in configurations.items()
    }
    varied = [name for name in SETTINGS if len({d[name] for d in described.values()}) > 1]
    varied = varied or ["learning_rate"]
    return {
        key: " ".join(f"{name}={values[name]}" for name in varied)
        for key, values in described.items()
    }


def _pool(folds: Sequence[Figures]) -> dict[str, float]:
    """Several fold-runs together: means and spreads of scores, sums of costs and counts."""
    done = [f.numbers for f in folds if f.status == RecordStatus.DONE] or [f.numbers for f in folds]
    pooled: dict[str, float] = {}
    for name in sorted({name for numbers in done for name in numbers}):
        values = [numbers[name] for numbers in done if name in numbers]
        if name in SUMMED or name.endswith(("_tp", "_fp", "_fn")):
            # Failed fold-runs cost money, too.
            pooled[name] = math.fsum(f.numbers.get(name, 0.0) for f in folds)
        elif name in LARGEST:
            pooled[name] = max(values)
        else:
            pooled[name] = statistics.fmean(values)
        if name in ("strict_f1", "lenient_f1", "validation_f1") and len(values) > 1:
            pooled[f"{name}_sd"] = statistics.stdev(values)
    pooled["folds_done"] = float(sum(f.status == RecordStatus.DONE for f in folds))
    pooled["folds_failed"] = float(sum(f.status == RecordStatus.FAILED for f in folds))
    if stopped := sum(f.status == RecordStatus.STOPPED for f in folds):
        pooled["folds_stopped"] = float(stopped)
    return pooled


def _system_metrics(numbers: Mapping[str, float]) -> dict[str, float]:
    """MLflow's tab "System metrics": the training device, as the records measured it."""
    shown = {"device_seconds": numbers["device_seconds"]}
    if peak := numbers["peak_bytes"]:
        shown["peak_memory_megabytes"] = peak / 1e6
    if seconds := numbers["training_seconds"]:
        shown["tokens_per_second"] = numbers["tokens"] / seconds
        shown["gigaflops_per_second"] = numbers["flops"] / seconds / 1e9
    return {f"system/{name}": value for name, value in shown.items()}


def _fold_run_snapshot(figures: Figures, parent: str, name: str) -> RunSnapshot:
    tags = {
        "level": "fold-run",
        "fold": str(figures.fold),
        **_cell_tags(figures.configuration.cell),
        **_texts(figures.configuration, "cell"),
        **figures.words,
    }
    if figures.reason:
        tags["stopped" if figures.status == RecordStatus.STOPPED else "reason"] = figures.reason
    tags = {
        k: v if len(v) <= MAX_TAG_CHARACTERS else v[: MAX_TAG_CHARACTERS - 1] + "…"
        for k, v in tags.items()
    }
    numbers = {**figures.numbers, **_system_metrics(figures.numbers)}
    metrics = [(name, value, 0, figures.end_ms) for name, value in numbers.items()]
    return RunSnapshot(
        key=figures.key,
        parent=parent,
        name=f"seed {figures.configuration.seed}"
        if figures.is_test
        else f"fold {figures.fold} · {name}",
        status="FAILED" if figures.status == RecordStatus.FAILED else "FINISHED",
        start_ms=figures.start_ms,
        end_ms=figures.end_ms,
        tags=tags,
        params={},
        metrics=(*metrics, *figures.course),
    )


def _configuration_snapshot(
    key: str, parent: str, name: str, folds: Sequence[Figures]
) -> RunSnapshot:
    configuration = folds[0].configuration
    params = _texts(configuration, "cell")
    if folds[0].is_test:
        del params["seed"]  # its fold-runs have different seeds, and a param can never change
    return _group_snapshot(
        key,
        parent,
        name,
        folds,
        tags={
            "level": "configuration",
            "configuration_id": configuration.id,
            **_cell_tags(configuration.cell),
        },
        params=params,
        numbers=_pool(folds),
    )


def _cell_snapshot(
    key: str,
    configurations: Mapping[str, Sequence[Figures]],
    names: Mapping[str, str],
    may_win: Callable[[Configuration], bool],
    study: StudyHeader,
) -> RunSnapshot:
    """A cell shows its winner's figures and settings, so that the runs table compares cells."""
    eligible = {k: v for k, v in configurations.items() if may_win(v[0].configuration)}
    winner = choose_winner(eligible or configurations)
    everything = [f for folds in configurations.values() for f in folds]
    numbers = _pool(configurations[winner])
    searched = _pool(everything)
    numbers |= {f"search_{name}": searched[name] for name in ("device_seconds", "cost_usd")}
    numbers["configurations"] = float(len(configurations))
    chosen = configurations[winner][0].configuration
    cell = chosen.cell
    is_test = everything[0].is_test
    corpora = {fingerprint for figures in everything for fingerprint in figures.corpora}
    return _group_snapshot(
        key,
        study.key,
        f"{cell.backbone.name} · {cell.strategy}"
        + (f" · {cell.shots} {cell.shots_of}" if cell.shots else "")
        + (" · final test" if is_test else ""),
        everything,
        tags={
            "level": "final test" if is_test else "cell",
            "winner": names[winner],
            "winner_id": chosen.id,
            # As tags: a param can never change, and another configuration may win tomorrow.
            **_texts(chosen, "cell"),
            **_cell_tags(cell),
        },
        numbers=numbers,
        datasets=tuple(d for d in study.datasets if d.fingerprint in corpora),
    )


def _study_snapshot(
    study: StudyHeader, cells: Mapping[str, Mapping[str, Sequence[Figures]]]
) -> RunSnapshot:
    """Totals of the whole study, with one point for each fold-run that has ended."""
    configurations = [folds for cell in cells.values() for folds in cell.values()]
    everything = [figures for folds in configurations for figures in folds]
    pooled = _pool(everything)
    kept = {*SUMMED, *LARGEST}
    numbers = {n: v for n, v in pooled.items() if n in kept or n.startswith("folds_")}
    numbers["cells"] = float(len(cells))
    numbers["configurations"] = float(len(configurations))
    return _group_snapshot(
        study.key,
        "",
        study.name,
        everything,
        tags={
            "level": "study",
            "task": ", ".join(sorted({f.configuration.cell.task for f in everything})),
            "corpus": ", ".join(sorted({f.configuration.cell.corpus for f in everything})),
        },
        numbers=numbers,
        datasets=study.datasets,
        is_running=study.is_running,
    )


def choose_winner(configurations: Mapping[str, Sequence[Figures]]) -> str:
    """Key of the configuration that the report names as the winner."""

    def rank_of(key: str) -> tuple[float, float, float, str]:
        done = [f.numbers for f in configurations[key] if f.status == RecordStatus.DONE]
        return rank(
            len(done),
            statistics.fmean(numbers["validation_f1"] for numbers in done) if done else None,
            done[0]["trained_parameters"] if done else 0.0,
            configurations[key][0].configuration.id,
        )

    return min(configurations, key=rank_of)


def _group_snapshot(
    key: str,
    parent: str,
    name: str,
    members: Sequence[Figures],
    *,
    tags: Mapping[str, str],
    numbers: Mapping[str, float],
    params: Mapping[str, str] = {},
    datasets: tuple[Dataset, ...] = (),
    is_running: bool = False,
) -> RunSnapshot:
    numbers = {**numbers, **_system_metrics(numbers)}
    failed = all(f.status == RecordStatus.FAILED for f in members)
    end_ms = max(f.end_ms for f in members)
    step = len(members) + sum(f.status == RecordStatus.DONE for f in members)
    return RunSnapshot(
        key=key,
        parent=parent,
        name=name,
        status="RUNNING" if is_running else "FAILED" if failed else "FINISHED",
        start_ms=min(f.start_ms for f in members),
        end_ms=end_ms,
        tags=tags,
        params=params,
        # MLflow shows the value of the highest step, so the step must grow with what is known: by one
        # for each fold-run below, and by another one when it is done, perhaps after a failure.
        metrics=tuple((k, v, step, end_ms) for k, v in numbers.items()),
        datasets=datasets,
    )
