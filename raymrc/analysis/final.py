"""The final test: winners, retrained on all notes of the study, are scored once on held-out notes.

    winners of cross-validation -> plan of one fold-run per seed -> records -> scores, predictions

Nothing is chosen here. Without validation notes, a winner trains for the median of its folds' best epochs,
and its learning rate decays over these.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from raymrc.analysis.conclusions import UNKNOWN_INTERVAL
from raymrc.analysis.gaps import best_pairs, frozen_pairs, name_gap
from raymrc.analysis.judging import over_held_out_notes
from raymrc.analysis.statistics import Interval
from raymrc.analysis.summary import CellSummary, Spread, group_by, spread
from raymrc.configuration import Cell, FoldRun, shorten
from raymrc.corpora.brat import write_brat
from raymrc.corpora.folders import new_folder
from raymrc.corpora.note import Corpus
from raymrc.errors import StudyError
from raymrc.ledger.record import Record
from raymrc.planning.fold_runs import fold_run
from raymrc.planning.plan import Plan
from raymrc.scoring.counts import Counts
from raymrc.study.spec import Spec


def plan_final_test(
    spec: Spec,
    plan: Plan,
    summaries: Sequence[CellSummary],
    records: Iterable[Record],
    test: Corpus,
) -> Plan:
    """A plan with one fold-run per winner and seed.

    Args:
        plan: the study's, with fingerprints.
        summaries: of the plan's cells, in its order.
        records: the study's whole ledger.

    Raises:
        StudyError: cross-validation is not finished, or a cell was scored on the held-out notes before with
            more than the seed different: scoring again would choose by them.
    """
    assert plan.fingerprints is not None and spec.final_test is not None
    fingerprints = replace(plan.fingerprints, test=test.fingerprint)
    scored: dict[Cell, list[FoldRun]] = {}
    for record in records:
        run = record.fold_run
        if run.test_fingerprint == test.fingerprint and record.is_done:
            scored.setdefault(run.configuration.cell, []).append(run)
    cells = []
    for cell, summary in zip(plan.cells, summaries, strict=True):
        missing = summary.num_left(cell.num_fold_runs)
        if missing > 0:
            raise StudyError(
                f"{cell.cell.name}: {missing} of {cell.num_fold_runs} fold-runs are not done; "
                "rerun 'raymrc run' first"
            )
        if summary.winner is None:
            raise StudyError(
                f"{cell.cell.name}: no configuration has all folds done, so there is no winner to test; "
                "rerun 'raymrc run' to retry failed fold-runs, or remove the cell from the study"
            )
        epochs = max(1, round(statistics.median(summary.winner.best_epochs)))
        chosen = shorten(summary.winner.configuration, epochs)
        for run in scored.get(cell.cell, ()):
            same_seed = replace(chosen, seed=run.configuration.seed)
            if run != fold_run(same_seed, run.fold, fingerprints):
                raise StudyError(
                    f"{cell.cell.name}: the held-out notes were already scored with another "
                    "configuration or other notes; a second score would choose by them, so the "
                    "first scores stand (raymrc report)"
                )
        tests = tuple(replace(chosen, seed=seed) for seed in spec.final_test.seeds)
        count = len(tests)
        cells.append(
            replace(cell, configurations=tests, num_configurations=count, num_fold_runs=count)
        )
    return replace(
        plan, folds=1, cells=tuple(cells), fingerprints=fingerprints, racing=None, remarks=()
    )


@dataclass(frozen=True, slots=True)
class FinalScore:
    """A cell's winner on held-out notes, over seeds.

    Args:
        epochs: of its training.
        seeds: those done, ascending.
        strict, lenient, events: micro F1 over seeds; see `ConfigurationSummary`.
        interval: of the mean strict F1; notes resampled, models fixed.
        counts: strict counts of one seed.
        unreachable, unreachable_reasons: held-out gold items that no answer can match.
    """

    cell: Cell
    epochs: int
    seeds: tuple[int, ...]
    strict: Spread
    lenient: Spread
    events: Spread
    unreachable: int
    unreachable_reasons: Mapping[str, int]
    counts: Counts
    interval: Interval = UNKNOWN_INTERVAL

    def to_json(self) -> dict[str, Any]:
        return {
            "cell": self.cell.name,
            "epochs": self.epochs,
            "seeds": list(self.seeds),
            "strict_f1": asdict(self.strict),
            "lenient_f1": asdict(self.lenient),
            "events_f1": asdict(self.events),
            "interval": asdict(self.interval),
            "unreachable": self.unreachable,
            "unreachable_reasons": dict(self.unreachable_reasons),
        }


@dataclass(frozen=True, slots=True)
class FinalGap:
    """A frozen winner against the best trained one on held-out notes, on its backbone or on any.

    Args:
        name: corpus and backbones.
        frozen, unfrozen: strategies.
        gap: mean strict F1 over seeds, trained minus frozen, -1 to 1.
        interval: of the gap; notes resampled, models fixed, so it does not judge the strategies.
    """

    name: str
    frozen: str
    unfrozen: str
    gap: float
    interval: Interval


def final_gaps(
    records: Iterable[Record],
    summaries: Sequence[CellSummary],
    groups: Mapping[str, str] | None = None,
) -> tuple[FinalGap, ...]:
    """Cross-validation's gaps on held-out notes, if both sides were scored on the same notes and seeds.

    Args:
        groups: note id -> patient or article, for held-out notes.
    """
    by_cell = final_records(records)
    pairs = {
        (f.cell, u.cell): (f, u) for f, u in (*best_pairs(summaries), *frozen_pairs(summaries))
    }
    found = []
    for frozen, unfrozen in pairs.values():
        froze, trained = by_cell.get(frozen.cell, []), by_cell.get(unfrozen.cell, [])
        sides = [
            {(r.fold_run.test_fingerprint, r.fold_run.configuration.seed) for r in side}
            for side in (froze, trained)
        ]
        if not froze or sides[0] != sides[1]:
            continue
        f1 = [spread([r.strict.f1 for r in side]).mean or 0.0 for side in (trained, froze)]
        found.append(
            FinalGap(
                name_gap(frozen, unfrozen),
                frozen.cell.strategy,
                unfrozen.cell.strategy,
                f1[0] - f1[1],
                over_held_out_notes(trained, froze, groups),
            )
        )
    return tuple(found)


def final_records(records: Iterable[Record]) -> dict[Cell, list[Record]]:
    """Records of final tests by cell, one per seed, ascending; of several held-out sets, the latest."""
    tests = [record for record in records if record.fold_run.is_test and record.is_done]
    tests.sort(key=lambda record: record.started_at)
    found = {}
    for cell, runs in group_by(tests, lambda record: record.fold_run.configuration.cell).items():
        by_basis = group_by(runs, lambda record: record.fold_run.basis)
        latest = max(by_basis.values(), key=lambda runs: runs[-1].started_at)
        found[cell] = sorted(latest, key=lambda record: record.fold_run.configuration.seed)
    return found


def final_scores(
    records: Iterable[Record], cells: Sequence[Cell], groups: Mapping[str, str] | None = None
) -> tuple[FinalScore, ...]:
    """Scores of final tests, in the order of `cells`; `groups` as in `final_gaps`."""
    by_cell = final_records(records)
    scores = []
    for cell in cells:
        if cell not in by_cell:
            continue
        runs = by_cell[cell]
        any_seed = runs[0]
        scores.append(
            FinalScore(
                cell,
                any_seed.fold_run.configuration.epochs,
                tuple(record.fold_run.configuration.seed for record in runs),
                spread([record.strict.f1 for record in runs]),
                spread([record.lenient.f1 for record in runs]),
                spread([record.events.f1 for record in runs if record.events != Counts()]),
                any_seed.unreachable,
                any_seed.unreachable_reasons,
                any_seed.strict,
                over_held_out_notes(runs, (), groups),
            )
        )
    return tuple(scores)


def write_predictions(
    records: Iterable[Record], test: Corpus, folder: Path, triggers: frozenset[str] = frozenset()
) -> list[Path]:
    """Writes predictions on held-out notes as brat files, one folder per cell and seed.

    Args:
        records: of any kind; final tests on these notes are written.
        test: the held-out notes; the files contain their text.
        folder: parent of the folders; existing ones are left as they are.
        triggers: see `brat.write_brat`.

    Raises:
        CorpusError: the folder cannot be written.
    """
    written = []
    for record in records:
        run = record.fold_run
        if run.test_fingerprint != test.fingerprint or not record.is_done:
            continue
        place = folder / run.place
        if not place.exists():
            found = record.predictions
            notes = (
                replace(note, spans=found[note.id].spans, relations=found[note.id].relations)
                for note in test.notes
            )
            with new_folder(place) as made:
                write_brat(notes, made, triggers)
        written.append(place)
    return written
