"""A study file, its ledger, plan and findings, from what is on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from raymrc.cli.app import ExitCode, log

if TYPE_CHECKING:
    from raymrc.analysis.findings import Findings
    from raymrc.costs.rates import Measured
    from raymrc.costs.workload import Workload
    from raymrc.ledger.ledger import Ledger
    from raymrc.ledger.record import Record
    from raymrc.planning.loaded import LoadedStudy
    from raymrc.planning.plan import Plan
    from raymrc.study.spec import Spec


def load_study(study: Path, changes: list[str] | None) -> Spec:
    """The checked study file. Its warnings are logged."""
    from raymrc.study.load import load_spec

    spec = load_spec(study, changes or ())
    for warning in spec.warnings:
        log(f"warning: {warning}")
    return spec


def read_ledger(place: str) -> tuple[tuple[Record, ...], bool]:
    """The readable records, and whether there are unreadable ones, which are logged."""
    from raymrc.ledger.ledger import Ledger

    records, problems = Ledger(place, write=False).read_all()
    for problem in problems:
        log(problem)
    return records, bool(problems)


def exit_if_unreadable(unreadable: bool) -> None:
    """End with code 2 if a ledger has unreadable records."""
    if unreadable:
        raise typer.Exit(ExitCode.MUST_CHANGE)


def plan_local_study(spec: Spec) -> tuple[Plan, Workload | None, Ledger | None]:
    """The plan, its workload if the notes are on this machine, and the ledger unless it is empty."""
    from raymrc.ledger.ledger import Ledger
    from raymrc.planning.loaded import read_local_study
    from raymrc.planning.plan import plan_study

    found = Ledger(spec.storage, write=False)
    ledger = found if found.keys() else None
    study = read_local_study(spec, weights=ledger is not None)
    planned = plan_study(study, ledger)
    if study.corpus is None or study.transfer is None:
        return planned, None, ledger
    return planned, find_workload(study, planned), ledger


def find_workload(study: LoadedStudy, planned: Plan) -> Workload:
    from raymrc.costs.forecast import build_workload
    from raymrc.planning.loaded import local_tokenizers

    return build_workload(study, planned, local_tokenizers(study.spec))


def with_learning_warnings(planned: Plan, workload: Workload) -> Plan:
    """The plan with remarks about cells that will learn little."""
    from raymrc.costs.learning import learning_warnings

    return replace(planned, remarks=(*planned.remarks, *learning_warnings(planned, workload)))


def find_measured(
    spec: Spec, planned: Plan, workload: Workload, records: Sequence[Record]
) -> list[Measured]:
    """Measured costs: of the ledger's fold-runs, and of a probe if there was one."""
    from raymrc.costs.history import read_history
    from raymrc.costs.probe import read_probe

    return [*read_history(planned, workload, records), *read_probe(spec.storage)]


def read_findings(study: Path, changes: list[str] | None) -> tuple[Findings, bool]:
    """A study's findings, and whether there are unreadable records, which are logged."""
    from raymrc.analysis.findings import build_findings
    from raymrc.planning.loaded import read_local_study
    from raymrc.planning.plan import plan_study

    spec = load_study(study, changes)
    records, unreadable = read_ledger(spec.storage)
    local = read_local_study(spec, test=any(record.fold_run.is_test for record in records))
    return build_findings(local, plan_study(local, places=False), records), unreadable
