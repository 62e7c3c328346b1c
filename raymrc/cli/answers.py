"""What a study's ledger says, drawn up and printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from raymrc.cli.app import print_table

if TYPE_CHECKING:
    from raymrc.corpora.note import Corpus
    from raymrc.study.conclusions import Conclusions
    from raymrc.study.plan import Plan
    from raymrc.study.record import Record
    from raymrc.study.spec import Spec
    from raymrc.study.verdict import CellSummary


def summarise_plan(spec: Spec, planned: Plan, records: Sequence[Record]) -> tuple[CellSummary, ...]:
    """The cells of the plan, as the ledger has them."""
    from raymrc.study.plan import fold_run
    from raymrc.study.verdict import summarise

    cells = [cell_plan.cell for cell_plan in planned.cells]
    records = [r for r in records if planned.holds(r.fold_run.configuration)]
    same = None
    if planned.fingerprints is not None:
        # The ledger may also hold results on other notes or weights, from before a change.
        same = [
            fold_run(r.fold_run.configuration, r.fold_run.fold, planned.fingerprints)
            for r in records
        ]
    return summarise(records, spec.num_folds, cells, same)


def conclude_plan(
    spec: Spec,
    summaries: Sequence[CellSummary],
    corpus: Corpus | None,
    transfer: Mapping[str, Corpus] | None,
) -> Conclusions:
    """Notes of a patient or article count as one where the notes are at hand, and by themselves where not."""
    from raymrc.study.conclusions import conclude

    sites = {"": corpus} if corpus is not None else {}
    groups = {
        name: {note.id: note.group or note.id for note in of_site.notes}
        for name, of_site in (sites | dict(transfer or {})).items()
    }
    return conclude(summaries, spec.equivalence_points / 100, groups)


def print_conclusions(conclusions: Conclusions) -> None:
    from raymrc.study.conclusions import render

    if conclusions.winners:
        print_table(render(conclusions))


def print_final(records: Sequence[Record], summaries: Sequence[CellSummary]) -> None:
    """The final test's scores, where there are any."""
    from raymrc.study.final import final_scores, render_final

    scores = final_scores(records, [summary.cell for summary in summaries])
    if scores:
        validated = {s.cell: s.winner.strict.mean if s.winner else None for s in summaries}
        print_table(render_final(scores, validated))
