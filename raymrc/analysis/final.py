"""The final test: winners, trained anew on all notes of the study, score held-out notes once.

    winners of cross-validation -> plan of one fold-run a seed -> records -> scores, predictions

Nothing is chosen here. There is no validation part, so a winner trains as many epochs as were best for it,
the median over its folds; its rate decays over these.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymrc.analysis.conclusions import UNKNOWN_INTERVAL, ends
from raymrc.analysis.judging import over_held_out_notes
from raymrc.analysis.statistics import Interval, TooFewError
from raymrc.analysis.summary import (
    CellSummary,
    ConfigurationSummary,
    Spread,
    best_pairs,
    frozen_pairs,
    name_gap,
    say_lost,
    spread,
)
from raymrc.configuration import Cell, Configuration, FoldRun
from raymrc.corpora.brat import write_brat
from raymrc.corpora.folders import new_folder
from raymrc.corpora.note import Corpus
from raymrc.errors import StudyError
from raymrc.ledger.record import Record
from raymrc.planning.fold_runs import fold_run
from raymrc.planning.plan import Plan
from raymrc.quantities import points
from raymrc.scoring.counts import Counts
from raymrc.study.spec import Spec

if TYPE_CHECKING:
    from rich.console import RenderableType


def plan_final_test(
    spec: Spec,
    plan: Plan,
    summaries: Sequence[CellSummary],
    records: Iterable[Record],
    test: Corpus,
) -> Plan:
    """One fold-run a winner and seed.

    Args:
        plan: of the study, with fingerprints.
        summaries: of its cells, in its order.
        records: all of its ledger.
        test: the held-out notes.

    Raises:
        StudyError: cross-validation is not finished; or the held-out notes were scored before by a cell, with
            anything but its seed different: a second look would choose by them.
    """
    assert plan.fingerprints is not None and spec.final_test is not None
    fingerprints = replace(plan.fingerprints, test=test.fingerprint)
    looked: dict[Cell, list[FoldRun]] = {}
    for record in records:
        run = record.fold_run
        if run.test_fingerprint == test.fingerprint and record.status == "done":
            looked.setdefault(run.configuration.cell, []).append(run)
    cells = []
    for cell, summary in zip(plan.cells, summaries, strict=True):
        missing = cell.num_fold_runs - summary.num_done - summary.num_failed - summary.num_spared
        if missing > 0:
            raise StudyError(
                f"{cell.cell.name}: {missing} of {cell.num_fold_runs} fold-runs are still to be done; "
                "'raymrc run' comes first"
            )
        if summary.winner is None:
            raise StudyError(
                f"{cell.cell.name}: no configuration has all of its folds, so there is no winner to "
                "test; 'raymrc run' tries failed fold-runs again, or take the cell out of the study"
            )
        chosen = _refitted(summary.winner)
        for run in looked.get(cell.cell, ()):
            same_seed = replace(chosen, seed=run.configuration.seed)
            if run != fold_run(same_seed, run.fold, fingerprints):
                raise StudyError(
                    f"{cell.cell.name}: the held-out notes were scored before, with another "
                    "configuration or other notes; scoring them again would choose by them, so the "
                    "first scores stand (raymrc report)"
                )
        configurations = tuple(replace(chosen, seed=seed) for seed in spec.final_test.seeds)
        cells.append(
            replace(
                cell,
                configurations=configurations,
                num_configurations=len(configurations),
                num_fold_runs=len(configurations),
            )
        )
    return replace(
        plan,
        folds=1,
        cells=tuple(cells),
        fingerprints=fingerprints,
        racing=None,
        remarks=(),
    )


def _refitted(winner: ConfigurationSummary) -> Configuration:
    epochs = max(1, round(statistics.median(winner.best_epochs)))
    return replace(winner.configuration, epochs=epochs)


def _whatever_seed(configuration: Configuration) -> Configuration:
    return replace(configuration, seed=0)


@dataclass(frozen=True, slots=True)
class FinalScore:
    """A cell's winner on held-out notes, over seeds.

    Args:
        configuration: but for its seed.
        seeds: that are done, ascending.
        strict, lenient, events: micro F1, over seeds; see `ConfigurationSummary`.
        interval: of the mean of strict, were other notes held out; models as trained.
        counts: strict, of one of the seeds.
        unreachable, unreachable_reasons: gold of the held-out notes that no answer can be.
    """

    cell: Cell
    configuration: Configuration
    seeds: tuple[int, ...]
    strict: Spread
    lenient: Spread
    events: Spread
    unreachable: int
    unreachable_reasons: Mapping[str, int]
    counts: Counts
    interval: Interval = UNKNOWN_INTERVAL

    def to_json(self) -> dict[str, Any]:
        """Plain values. F1 runs from 0 to 1."""
        return {
            "cell": self.cell.name,
            "epochs": self.configuration.epochs,
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
    """A frozen winner on held-out notes against the best trained one, of its backbone or of all.

    Args:
        name: corpus and backbones.
        frozen, unfrozen: strategies.
        gap: mean strict F1 over seeds of the trained one minus the frozen one's, 0 to 1.
        interval: of the gap, were other notes held out; models as trained, so it judges no strategy.
    """

    name: str
    frozen: str
    unfrozen: str
    gap: float
    interval: Interval

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        side = "behind" if self.gap > 0 else "ahead of"
        return (
            f"{self.name}: on held-out notes {self.frozen} was {100 * abs(self.gap):.1f} points {side} "
            f"{self.unfrozen} (95 % interval of what it is behind by, were other notes held out: "
            f"{ends(self.interval)})."
        )


def final_gaps(
    records: Iterable[Record],
    summaries: Sequence[CellSummary],
    groups: Mapping[str, str] | None = None,
) -> tuple[FinalGap, ...]:
    """The gaps of cross-validation on held-out notes, where both sides were scored on the same ones with the
    same seeds.

    Args:
        groups: note id -> patient or article, of held-out notes.
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
                _interval(trained, froze, groups),
            )
        )
    return tuple(found)


def _interval(
    runs: Sequence[Record], others: Sequence[Record], groups: Mapping[str, str] | None
) -> Interval:
    try:
        return over_held_out_notes(runs, others, groups)
    except TooFewError:
        return UNKNOWN_INTERVAL


def final_records(records: Iterable[Record]) -> dict[Cell, list[Record]]:
    """What a study's ledger has of final tests, by cell: a record a seed, ascending; of several held-out sets
    those of the latest."""
    by_basis: dict[Cell, dict[tuple[str, ...], list[Record]]] = {}
    for record in sorted(records, key=lambda record: record.started_at):
        run = record.fold_run
        if run.is_test and record.status == "done":
            bases = by_basis.setdefault(run.configuration.cell, {})
            bases.setdefault(run.basis, []).append(record)

    found = {}
    for cell, bases in by_basis.items():
        latest = max(bases.values(), key=lambda runs: runs[-1].started_at)
        found[cell] = sorted(latest, key=lambda record: record.fold_run.configuration.seed)
    return found


def final_scores(
    records: Iterable[Record], cells: Sequence[Cell], groups: Mapping[str, str] | None = None
) -> tuple[FinalScore, ...]:
    """What a study's ledger has of final tests, by cell, in the order of `cells`.

    Args:
        groups: note id -> patient or article, of held-out notes.
    """
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
                _whatever_seed(any_seed.fold_run.configuration),
                tuple(record.fold_run.configuration.seed for record in runs),
                spread([record.strict.f1 for record in runs]),
                spread([record.lenient.f1 for record in runs]),
                spread([record.events.f1 for record in runs if record.events != Counts()]),
                any_seed.unreachable,
                any_seed.unreachable_reasons,
                any_seed.strict,
                _interval(runs, (), groups),
            )
        )
    return tuple(scores)


def write_predictions(
    records: Iterable[Record],
    test: Corpus,
    folder: Path,
    triggers: frozenset[str] = frozenset(),
) -> list[Path]:
    """What was found in held-out notes, as brat files: a folder for each cell and seed.

    Args:
        records: of final tests on these notes; others are left out.
        test: the held-out notes, whose text the files hold.
        folder: gets the folders; what is there already is left as it is.
        triggers: see `brat.write_brat`.

    Raises:
        CorpusError: the folder cannot be written.
    """
    written = []
    for record in records:
        run = record.fold_run
        if run.test_fingerprint != test.fingerprint or record.status != "done":
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


def lost_in_test(scores: Sequence[FinalScore]) -> str:
    """What no answer can be, by strategy; of several backbones where it is most."""
    most: dict[str, FinalScore] = {}
    for score in scores:
        if score.unreachable:
            strategy = score.cell.strategy
            most[strategy] = max(score, most.get(strategy, score), key=lambda s: s.unreachable)
    said = "; ".join(
        f"{strategy} {say_lost(score.unreachable, score.counts, score.unreachable_reasons)}"
        for strategy, score in most.items()
    )
    return f"Held-out gold that no answer can be, and that counts as missed: {said}" if said else ""


def render_final(
    scores: Sequence[FinalScore],
    validated: Mapping[Cell, float | None],
    gaps: Sequence[FinalGap] = (),
) -> RenderableType:
    """The final test as a table for the terminal, and what frozen is behind by there.

    Args:
        validated: mean strict F1 of each cell's winner over the folds.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title="Final test: F1 in points on held-out notes, mean over seeds",
        caption=lost_in_test(scores) or None,
    )
    table.add_column("corpus / backbone / strategy", no_wrap=True)
    with_events = any(score.events.mean is not None for score in scores)
    shown: list[tuple[str, Callable[[FinalScore], str]]] = [
        ("strict F1", lambda score: points(score.strict.mean)),
        ("sd", lambda score: points(score.strict.sd)),
        ("95 % interval", lambda score: ends(score.interval)),
        ("lenient F1", lambda score: points(score.lenient.mean)),
        ("over folds", lambda score: points(validated.get(score.cell))),
        ("seeds", lambda score: str(len(score.seeds))),
        ("epochs", lambda score: str(score.configuration.epochs)),
    ]
    if with_events:
        shown.insert(4, ("events F1", lambda score: points(score.events.mean)))
    for heading, _ in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    for score in scores:
        table.add_row(score.cell.name, *(tell(score) for _, tell in shown))
    return Group(table, *(Text(f"\n{gap}") for gap in gaps))
