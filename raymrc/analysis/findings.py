"""Everything a study's ledger shows, as one value; terminal, page, comparison and exports are drawn from it.

spec, plan, records -> the records that count -> cells -> conclusions, final tests
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from raymrc.analysis.conclusions import Conclusions
from raymrc.analysis.final import FinalGap, FinalScore, final_gaps, final_scores
from raymrc.analysis.gaps import frozen_gaps
from raymrc.analysis.judging import conclude
from raymrc.analysis.sentences import verdicts
from raymrc.analysis.summary import CellSummary, choose_records, count_failing, summarise
from raymrc.corpora.note import Corpus
from raymrc.ledger.record import Record
from raymrc.planning.fold_runs import fold_run
from raymrc.planning.loaded import LoadedStudy
from raymrc.planning.plan import Plan
from raymrc.study.spec import Spec


@dataclass(frozen=True)
class Findings:
    """
    Args:
        fold_runs: the records that count: those of planned cells on today's notes, folds and weights, with
            any status; final tests last.
        summaries: in the plan's order of cells.
        closed: (cell, fold-runs not begun) for each abandoned cell.
    """

    spec: Spec
    plan: Plan
    fold_runs: tuple[Record, ...] = field(repr=False)
    summaries: tuple[CellSummary, ...]
    conclusions: Conclusions
    finals: tuple[FinalScore, ...] = ()
    final_gaps: tuple[FinalGap, ...] = ()
    closed: tuple[tuple[str, int], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for `raymrc report --json`."""
        sentences = [str(verdict) for verdict in verdicts(self.conclusions)]
        return {
            **summaries_json(self.summaries),
            "conclusions": {**self.conclusions.to_json(), "sentences": sentences},
            "final_test": [score.to_json() for score in self.finals],
            "final_gaps": [asdict(gap) for gap in self.final_gaps],
        }

    @property
    def remarks(self) -> tuple[str, ...]:
        """One sentence per reason for failed fold-runs and per abandoned cell."""
        failed = [
            f"{summary.cell.name}: {times} fold-runs failed: {reason}"
            for summary in self.summaries
            for reason, times in summary.reasons
        ]
        most = self.spec.failures.close_cell_after
        closed = [
            f"{name}: abandoned after {most} consecutive failing configurations "
            f"(failures.close_cell_after); {left} fold-runs were not begun, rerun 'raymrc run' to retry them"
            for name, left in self.closed
        ]
        return (*failed, *closed)


def summaries_json(summaries: Sequence[CellSummary]) -> dict[str, Any]:
    """Plain values: cells, gaps and totals."""
    totals = ("num_done", "num_failed", "num_spared", "device_seconds", "cost_usd")
    return {
        "cells": [summary.to_json() for summary in summaries],
        "frozen_gaps": [asdict(gap) | {"gap": gap.gap} for gap in frozen_gaps(summaries)],
        **{
            name.removeprefix("num_"): sum(getattr(summary, name) for summary in summaries)
            for name in totals
        },
    }


def build_findings(study: LoadedStudy, plan: Plan, records: Sequence[Record]) -> Findings:
    """
    Args:
        study: if its notes are on this machine, those of one patient or article are resampled together;
            otherwise each note by itself.
        records: the study's whole ledger.
    """
    spec, corpus, test = study.spec, study.corpus, study.test
    cells = [cell_plan.cell for cell_plan in plan.cells]
    planned = [r for r in records if plan.holds(r.fold_run.configuration)]
    same = None
    if plan.fingerprints is not None:
        # The ledger may also hold results on other notes or weights, from before a change.
        same = [
            fold_run(r.fold_run.configuration, r.fold_run.fold, plan.fingerprints) for r in planned
        ]
    kept = [r for chosen in choose_records(planned, cells, same).values() for r in chosen]
    summaries = summarise(kept, spec.num_folds, cells)
    sites = {"": corpus} if corpus is not None else {}
    groups = {name: _groups(site) for name, site in (sites | dict(study.transfer or {})).items()}
    held_out = _groups(test) if test is not None else {}
    tests = [r for r in records if r.fold_run.is_test and r.fold_run.configuration.cell in cells]
    return Findings(
        spec=spec,
        plan=plan,
        fold_runs=(*kept, *tests),
        summaries=summaries,
        conclusions=conclude(summaries, spec.equivalence_points / 100, groups),
        finals=final_scores(records, cells, held_out),
        final_gaps=final_gaps(records, summaries, held_out),
        closed=_closed(spec, plan, records, summaries),
    )


def _groups(corpus: Corpus) -> dict[str, str]:
    return {note.id: note.group or note.id for note in corpus.notes}


def _closed(
    spec: Spec, plan: Plan, records: Sequence[Record], summaries: Sequence[CellSummary]
) -> tuple[tuple[str, int], ...]:
    failing, most = count_failing(records), spec.failures.close_cell_after
    found = []
    for summary, cell_plan in zip(summaries, plan.cells, strict=True):
        left = summary.num_left(cell_plan.num_fold_runs)
        if most is not None and failing.get(summary.cell, 0) >= most and left > 0:
            found.append((summary.cell.name, left))
    return tuple(found)
