"""A plan's fold-runs as jobs, and what a ledger says about them: measured costs, and progress."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from raymrc.configuration import Configuration
from raymrc.costs.rates import Job, Measured
from raymrc.costs.workload import Workload
from raymrc.ledger.record import Record
from raymrc.planning.fold_runs import fold_run
from raymrc.planning.plan import CellPlan, Plan


def build_job(workload: Workload, cell: CellPlan, configuration: Configuration, fold: int) -> Job:
    """One fold-run of a cell whose shape is known."""
    assert cell.shape is not None and cell.placement is not None
    return Job(
        configuration,
        workload.of(configuration, fold),
        cell.shape,
        len(workload.asked.labels),
        len(workload.asked.relations),
        cell.placement.lanes,
    )


def read_history(plan: Plan, workload: Workload, records: Iterable[Record]) -> list[Measured]:
    """A ledger's finished fold-runs on the plan's notes and folds, with the work they did."""
    basis = (workload.corpus.fingerprint, workload.folds.fingerprint)
    planned = {cell.cell: cell for cell in plan.cells}
    measured = []
    for record in records:
        run = record.fold_run
        cell = planned.get(run.configuration.cell)
        if (
            record.is_done
            and not run.is_test
            and (run.corpus_fingerprint, run.folds_fingerprint) == basis
            and cell is not None
            and cell.shape is not None
        ):
            job = build_job(workload, cell, run.configuration, run.fold)
            kind = "cpu" if record.device == "cpu" else "gpu"
            measured.append(
                Measured(job, record.hardware, kind, record.device_seconds, record.peak_bytes)
            )
    return measured


@dataclass(frozen=True, slots=True)
class FoldRunProgress:
    """Shares of a fold-run's epochs, 0 to 1: trained so far, and still needed."""

    trained: float = 0.0
    left: float = 1.0


def read_progress(plan: Plan, records: Iterable[Record]) -> dict[str, FoldRunProgress]:
    """Progress of fold-runs by ledger key; leaves out those that have no progress.

    A race trains nothing more of a configuration that it has stopped.
    """
    if plan.fingerprints is None:
        return {}
    progress: dict[str, FoldRunProgress] = {}
    for record in records:
        run = record.fold_run
        if record.is_done:
            progress[record.key] = FoldRunProgress(1.0, 0.0)
            continue
        trained = len(record.epochs) / run.configuration.epochs
        if record.is_paused:
            progress[record.key] = FoldRunProgress(trained, 1.0 - trained)
        elif record.is_stopped and plan.racing is not None:
            for fold in range(plan.folds):
                key = fold_run(run.configuration, fold, plan.fingerprints).key
                progress.setdefault(key, FoldRunProgress(0.0, 0.0))
            progress[record.key] = FoldRunProgress(trained, 0.0)
    return progress
