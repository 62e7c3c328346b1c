"""What to do, how sure we are, and what it costs: each frozen gap in plain words.

    winners of a frozen and a trained cell -> differences on folds and notes -> Holm over all -> a conclusion

Where the folds do not tell, the conclusion is "not enough data" and never the likelier side. The decision
and its figures: docs/decisions/0024.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raymrc.scoring.counts import Counts, pool
from raymrc.study.configuration import Cell
from raymrc.study.quantities import points, short_count
from raymrc.study.record import NoteCounts, Record
from raymrc.study.statistics import (
    LEVEL,
    Bootstrap,
    Comparison,
    CostPerPoint,
    Interval,
    ParitySize,
    Probabilities,
    Selection,
    SizeFit,
    TooFewError,
    bootstrap,
    compare_folds,
    compare_on_shared_notes,
    cost_per_point,
    fit_sizes,
    holm,
    leave_fold_out,
    micro_f1,
    pareto,
    parity_size,
    published_correlation,
)
from raymrc.study.verdict import (
    CellSummary,
    ConfigurationSummary,
    FrozenGap,
    backbone_sizes,
    best_pairs,
    frozen_gap,
    frozen_pairs,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

Array = NDArray[np.float64]

SEED = 20261125
"""Of resamples: the same ledger gives the same report."""

Groups = Mapping[str, Mapping[str, str]]
"""By name of a site, "" for the study's own notes: note id -> patient or article. A note that is not there is
its own group."""

UNKNOWN = Interval(None, None)

EQUIVALENT, BEHIND, AHEAD, UNSURE = "equivalent", "behind", "ahead", "not enough data"


@dataclass(frozen=True)
class Judgement:
    """A gap, trained F1 minus frozen F1, and what can be said of it.

    Args:
        comparison: None where it cannot be made.
        outcome: "equivalent", "behind" and "ahead" are of the frozen one, and claimed at an error rate of 5 %
            over all gaps and sites of the report; else "not enough data".
        why: it is not enough, where the reason is not simply an interval that is too wide.
        probabilities: that frozen is ahead of, within and behind the margin (`below`, `within`, `above`).
        p_difference, p_equivalence: Holm-adjusted.
        published: p-value and interval at Nadeau and Bengio's own correlation, for comparison with papers.
    """

    comparison: Comparison | None
    outcome: str = UNSURE
    why: str = ""
    interval: Interval = UNKNOWN
    probabilities: Probabilities | None = None
    p_difference: float = 1.0
    p_equivalence: float = 1.0
    published: tuple[float, Interval] | None = None

    def to_json(self) -> dict[str, Any]:
        of = self.comparison
        published = None
        if self.published is not None:
            published = {"p_difference": self.published[0], "interval": asdict(self.published[1])}
        return {
            "outcome": self.outcome,
            "why": self.why or None,
            "gap": None if of is None else of.difference,
            "interval": asdict(self.interval),
            "probabilities": None
            if self.probabilities is None
            else {
                "frozen_ahead": self.probabilities.below,
                "within": self.probabilities.within,
                "frozen_behind": self.probabilities.above,
            },
            "p_difference": self.p_difference,
            "p_equivalence": self.p_equivalence,
            "assumed_correlation": None if of is None else of.correlation,
            "published": published,
        }


@dataclass(frozen=True)
class Conclusion:
    """
    Args:
        home: on the scored folds.
        away: at each other site.
        pooled: of the same gap with all folds' counts together, were other notes drawn; models as trained.
        extra_usd, extra_device_seconds: the trained winner's less the frozen one's, all folds.
        per_point: what a point of the trained winner's lead costs, in USD or, where time has no price, in
            device seconds.
    """

    gap: FrozenGap
    home: Judgement
    away: Mapping[str, Judgement]
    pooled: Interval
    extra_usd: float
    extra_device_seconds: float
    per_point: CostPerPoint | None

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.gap.task,
            "corpus": self.gap.corpus,
            "backbone": self.gap.backbone,
            "shots": self.gap.shots,
            "shots_of": self.gap.shots_of,
            "frozen": self.gap.frozen,
            "unfrozen": self.gap.unfrozen,
            **self.home.to_json(),
            "pooled_interval": asdict(self.pooled),
            "transfer": {name: judged.to_json() for name, judged in self.away.items()},
            "extra_usd": self.extra_usd,
            "extra_device_seconds": self.extra_device_seconds,
            "cost_per_point": None if self.per_point is None else asdict(self.per_point),
        }


@dataclass(frozen=True)
class Overall:
    """The best frozen winner of a corpus's backbones against the best trained one.

    Args:
        num_backbones: with a winner.
        frozen, unfrozen: their backbones' names, which may be one.
        usd, device_seconds: of the frozen and of the trained winner, all folds.
    """

    num_backbones: int
    frozen: str
    unfrozen: str
    conclusion: Conclusion
    usd: tuple[float, float]
    device_seconds: tuple[float, float]

    @property
    def name(self) -> str:
        """What it is of: corpus and shots."""
        return self.conclusion.gap.name.replace(f"/{self.conclusion.gap.backbone}", "", 1)

    def to_json(self) -> dict[str, Any]:
        values = self.conclusion.to_json()
        del values["backbone"]
        return {
            "backbones": self.num_backbones,
            "frozen_backbone": self.frozen,
            "unfrozen_backbone": self.unfrozen,
            **values,
        }


@dataclass(frozen=True)
class WinnerScore:
    """A winner's pooled strict micro F1.

    Args:
        interval: were other notes drawn like these; the trained models stay as they are.
        num_groups: notes, or patients and articles where known.
        selection: what its mean F1 over folds owes to having been chosen; None where there was no choice. Of
            one cell it is unsure by more than itself, so it is not in the table: look at many.
    """

    cell: str
    f1: float
    interval: Interval
    num_groups: int
    selection: Selection | None

    def to_json(self) -> dict[str, Any]:
        of = self.selection
        return {
            "cell": self.cell,
            "pooled_f1": self.f1,
            "interval": asdict(self.interval),
            "groups": self.num_groups,
            "optimism": None if of is None else of.optimism,
            "corrected_f1": None if of is None else of.corrected,
        }


@dataclass(frozen=True)
class BySize:
    """Frozen gaps of one corpus, and F1, against the backbones' size.

    Args:
        fit, parity: of the gap; None where sizes are too few; `why` says how many.
        f1: of each strategy's winners; only of strategies with sizes enough.
    """

    corpus: str
    num_sizes: int
    fit: SizeFit | None
    parity: ParitySize | None
    why: str = ""
    f1: Mapping[str, SizeFit] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "corpus": self.corpus,
            "sizes": self.num_sizes,
            "fit": None if self.fit is None else _fit_json(self.fit),
            "parity": None if self.parity is None else asdict(self.parity),
            "f1": {strategy: _fit_json(fit) for strategy, fit in self.f1.items()},
            "why": self.why or None,
        }


def _fit_json(fit: SizeFit) -> dict[str, Any]:
    return asdict(fit) | {"slope_interval": asdict(fit.slope_interval())}


@dataclass(frozen=True)
class Conclusions:
    """
    Args:
        margin: of practical equivalence, F1 from 0 to 1.
        num_compared: gaps and sites that Holm's adjustment is over.
        frontier: cells whose winner no other one of its corpus beats in F1, money, time, energy, memory and
            bytes kept together, as far as these are known of all of them.
        overall: best against best, of each corpus with several backbones.
    """

    margin: float
    num_compared: int
    gaps: tuple[Conclusion, ...]
    winners: tuple[WinnerScore, ...]
    by_size: tuple[BySize, ...]
    frontier: tuple[str, ...]
    overall: tuple[Overall, ...] = ()

    @property
    def compared(self) -> tuple[tuple[str, Conclusion], ...]:
        """All gaps, each with a name: those between two backbones first."""
        across = [
            (f"{one.name}/{one.frozen} frozen, {one.unfrozen} trained", one.conclusion)
            for one in self.overall
            if one.frozen != one.unfrozen
        ]
        return (*across, *((one.gap.name, one) for one in self.gaps))

    def to_json(self) -> dict[str, Any]:
        """Plain values. F1, gaps and the margin run from 0 to 1."""
        return {
            "equivalence": self.margin,
            "compared": self.num_compared,
            "overall": [best.to_json() for best in self.overall],
            "gaps": [conclusion.to_json() for conclusion in self.gaps],
            "winners": [winner.to_json() for winner in self.winners],
            "by_size": [fitted.to_json() for fitted in self.by_size],
            "frontier": list(self.frontier),
            "sentences": list(sentences(self)),
        }


def conclude(
    summaries: Sequence[CellSummary], margin: float, groups: Groups | None = None
) -> Conclusions:
    """All that can be said of a study's frozen gaps and winners.

    Args:
        margin: of practical equivalence, F1 from 0 to 1.
        groups: what was annotated of one patient or article is drawn together; each note by itself where not
            known.
    """
    known = groups or {}
    of_backbones = frozen_pairs(summaries)
    best = best_pairs(summaries)
    # Where the best frozen and the best trained one are of one backbone they are compared once.
    by_cells = {(f.cell, u.cell): (f, u) for f, u in of_backbones}
    by_cells |= {(f.cell, u.cell): (f, u) for f, u in best}
    pairs = list(by_cells.values())
    compared: dict[tuple[int, str], Comparison | str] = {}
    for place, pair in enumerate(pairs):
        frozen, unfrozen = (_winner(of) for of in pair)
        compared[place, ""] = _at_home(frozen, unfrozen)
        for site in sorted({*frozen.transfer} & {*unfrozen.transfer}):
            compared[place, site] = _at_site(frozen, unfrozen, site, known.get(site, {}))
    judged = _judge(compared, margin)
    scores, gap_intervals = _resample(summaries, pairs, known.get("", {}))
    conclusions = []
    for place, (frozen_cell, unfrozen_cell) in enumerate(pairs):
        frozen, unfrozen = _winner(frozen_cell), _winner(unfrozen_cell)
        away = {site: of for (at, site), of in judged.items() if at == place and site}
        usd = unfrozen.cost_usd - frozen.cost_usd
        seconds = unfrozen.device_seconds - frozen.device_seconds
        home, extra = judged[place, ""], usd if usd else seconds
        per_point = None
        if extra > 0 and home.comparison is not None and home.comparison.has_spread:
            per_point = cost_per_point(extra, home.interval, home.comparison.difference)
        conclusions.append(
            Conclusion(
                gap=frozen_gap(frozen_cell, unfrozen_cell),
                home=home,
                away=away,
                pooled=gap_intervals[place],
                extra_usd=usd,
                extra_device_seconds=seconds,
                per_point=per_point,
            )
        )
    gaps = conclusions[: len(of_backbones)]
    by_pair = dict(zip(by_cells, conclusions, strict=True))
    return Conclusions(
        margin=margin,
        num_compared=sum(
            isinstance(one, Comparison) and one.has_spread for one in compared.values()
        ),
        gaps=tuple(gaps),
        winners=scores,
        by_size=_by_size([conclusion.gap for conclusion in gaps], margin, summaries),
        frontier=_frontier(summaries),
        overall=tuple(
            Overall(
                num_backbones=len(
                    {
                        s.cell.backbone.name
                        for s in summaries
                        if s.winner is not None and _same(s.cell) == _same(f.cell)
                    }
                ),
                frozen=f.cell.backbone.name,
                unfrozen=u.cell.backbone.name,
                conclusion=by_pair[f.cell, u.cell],
                usd=(_winner(f).cost_usd, _winner(u).cost_usd),
                device_seconds=(_winner(f).device_seconds, _winner(u).device_seconds),
            )
            for f, u in best
        ),
    )


# --- compared -------------------------------------------------------------------------------------


def _same(cell: Cell) -> tuple[str, str, int | None, str]:
    """What must be equal for cells to be set against each other."""
    return cell.task, cell.corpus, cell.shots, cell.shots_of


def _winner(summary: CellSummary) -> ConfigurationSummary:
    assert summary.winner is not None
    return summary.winner


def _by_fold(fold_runs: Sequence[Record], values: Sequence[float]) -> Array:
    """The mean of each fold's: few notes are drawn several times for the same scored ones."""
    folds: dict[frozenset[str], list[float]] = {}
    for record, value in zip(fold_runs, values, strict=True):
        folds.setdefault(frozenset(record.notes), []).append(value)
    return np.array([math.fsum(of_fold) / len(of_fold) for of_fold in folds.values()])


def over_folds(fold_runs: Sequence[Record], values: Sequence[float]) -> Comparison:
    """A mean over folds and how sure it is: of differences, or of F1 itself, where 0 is none.

    Args:
        fold_runs: who scored which notes.
        values: of each.

    Raises:
        TooFewError: fewer than two folds.
    """
    return compare_folds(_by_fold(fold_runs, values))


def over_notes(fold_runs: Sequence[Record], others: Sequence[Record]) -> Interval:
    """Of pooled F1 less that of others on the same notes, were other notes drawn; models as trained.

    Raises:
        TooFewError: fewer than two notes.
    """
    sides = [_pooled_notes(fold_runs), _pooled_notes(others)]
    return _bootstrap(sides, sorted(sides[0]), {}).interval([1.0, -1.0])


def over_held_out_notes(
    runs: Sequence[Record], others: Sequence[Record] = (), groups: Mapping[str, str] | None = None
) -> Interval:
    """Of mean F1 over runs that scored the same notes, less that of others, were other notes drawn; models as
    trained.

    Args:
        groups: see `Groups`, of these notes.

    Raises:
        TooFewError: fewer than two notes, patients or articles.
    """
    systems = [_note_counts(record.notes) for record in (*runs, *others)]
    weights = [1 / len(runs) for _ in runs] + [-1 / len(others) for _ in others]
    return _bootstrap(systems, sorted(systems[0]), groups or {}).interval(weights)


def _at_home(frozen: ConfigurationSummary, unfrozen: ConfigurationSummary) -> Comparison | str:
    differences = [u - f for u, f in zip(unfrozen.fold_f1, frozen.fold_f1, strict=True)]
    try:
        return over_folds(unfrozen.fold_runs, differences)
    except TooFewError as error:
        return str(error)


def _at_site(
    frozen: ConfigurationSummary,
    unfrozen: ConfigurationSummary,
    site: str,
    groups: Mapping[str, str],
) -> Comparison | str:
    """Every fold-run of both has scored all of the site's notes."""
    sides = [
        [_note_counts(record.transfer[site]) for record in one.fold_runs]
        for one in (unfrozen, frozen)
    ]
    f1 = [[pool(of_run.values()).f1 for of_run in side] for side in sides]
    differences = [u - f for u, f in zip(*f1, strict=True)]
    runs = [*sides[0], *sides[1]]
    ids = sorted({note for run in runs for note in run})
    share = 1 / len(differences)
    weights = np.repeat([share, -share], len(differences))
    try:
        drawn = _bootstrap(runs, ids, groups)
        by_fold = _by_fold(unfrozen.fold_runs, differences)
        return compare_on_shared_notes(by_fold, drawn.variance(weights), drawn.num_groups)
    except TooFewError as error:
        return str(error)


def _judge(
    compared: Mapping[tuple[int, str], Comparison | str], margin: float
) -> dict[tuple[int, str], Judgement]:
    """Holm over all that can be compared; "no gap" and "not within the margin" cannot both be true of one."""
    tested = {
        key: one for key, one in compared.items() if isinstance(one, Comparison) and one.has_spread
    }
    p_values = [one.p_difference for one in tested.values()]
    p_values += [one.p_equivalence(margin) for one in tested.values()]
    adjusted = holm(p_values, len(tested))
    of_difference = dict(zip(tested, adjusted[: len(tested)], strict=True))
    of_equivalence = dict(zip(tested, adjusted[len(tested) :], strict=True))
    judged = {}
    for key, one in compared.items():
        if isinstance(one, str):
            judged[key] = Judgement(None, why=one)
        elif not one.has_spread:
            judged[key] = Judgement(one, why="all folds gave the same difference")
        else:
            outcome = UNSURE
            if of_equivalence[key] <= 1 - LEVEL:
                outcome = EQUIVALENT
            elif of_difference[key] <= 1 - LEVEL:
                outcome = BEHIND if one.difference > 0 else AHEAD
            judged[key] = Judgement(
                one,
                outcome,
                interval=one.interval(),
                probabilities=one.probabilities(margin),
                p_difference=of_difference[key],
                p_equivalence=of_equivalence[key],
                published=None if key[1] else _published(one),
            )
    return judged


def _published(one: Comparison) -> tuple[float, Interval]:
    folds = round(one.degrees) + 1
    there, here = (
        math.sqrt(1 / folds + r / (1 - r)) for r in (published_correlation(folds), one.correlation)
    )
    published = Comparison(
        one.difference, one.scale * there / here, one.degrees, published_correlation(folds)
    )
    return published.p_difference, published.interval()


def _note_counts(notes: Mapping[str, NoteCounts]) -> dict[str, Counts]:
    return {note: pool(counts.strict.values()) for note, counts in notes.items()}


def _pooled_notes(fold_runs: Iterable[Record]) -> dict[str, Counts]:
    """Of all folds; where a note was scored in several draws, all of them together."""
    found: dict[str, Counts] = {}
    for record in fold_runs:
        for note, counts in _note_counts(record.notes).items():
            found[note] = found.get(note, Counts()) + counts
    return found


def _bootstrap(
    systems: Sequence[Mapping[str, Counts]], ids: Sequence[str], groups: Mapping[str, str]
) -> Bootstrap:
    nothing = Counts()
    counts = [
        [(c.tp, c.fp, c.fn) for c in (system.get(note, nothing) for note in ids)]
        for system in systems
    ]
    shaped = np.array(counts, dtype=np.float64).reshape(len(systems), len(ids), 3)
    # A note's own id may be some other note's group.
    of_note = [("group", groups[note]) if note in groups else ("note", note) for note in ids]
    return bootstrap(shaped, of_note, generator=np.random.default_rng(SEED))


def _resample(
    summaries: Sequence[CellSummary],
    pairs: Sequence[tuple[CellSummary, CellSummary]],
    groups: Mapping[str, str],
) -> tuple[tuple[WinnerScore, ...], list[Interval]]:
    """Winners on the same notes share their resamples, so that their differences are paired."""
    cells = [summary for summary in summaries if summary.winner is not None]
    notes = {summary.cell: _pooled_notes(_winner(summary).fold_runs) for summary in cells}
    together: dict[tuple[str, ...], list[CellSummary]] = {}
    for summary in cells:
        together.setdefault(tuple(sorted(notes[summary.cell])), []).append(summary)
    intervals = dict.fromkeys((summary.cell for summary in cells), UNKNOWN)
    of_pairs = [UNKNOWN] * len(pairs)
    num_groups = {summary.cell: len(notes[summary.cell]) for summary in cells}
    for ids, members in together.items():
        try:
            drawn = _bootstrap([notes[summary.cell] for summary in members], ids, groups)
        except TooFewError:
            continue
        unit = {
            summary.cell: row for summary, row in zip(members, np.eye(len(members)), strict=True)
        }
        for cell, weights in unit.items():
            intervals[cell] = drawn.interval(weights)
            num_groups[cell] = drawn.num_groups
        for place, (frozen, unfrozen) in enumerate(pairs):
            if frozen.cell in unit and unfrozen.cell in unit:
                of_pairs[place] = drawn.interval(unit[unfrozen.cell] - unit[frozen.cell])
    scores = tuple(
        WinnerScore(
            cell=summary.cell.name,
            f1=_winner(summary).pooled_strict.f1,
            interval=intervals[summary.cell],
            num_groups=num_groups[summary.cell],
            selection=_selection(summary),
        )
        for summary in cells
    )
    return scores, of_pairs


def _selection(summary: CellSummary) -> Selection | None:
    """Among complete configurations, best on validation first, as the cell has them."""
    complete = [one for one in summary.configurations if one.is_complete]
    if len(complete) < 2:
        return None
    choosing = [
        _by_fold(one.fold_runs, [record.validation_f1 for record in one.fold_runs])
        for one in complete
    ]
    scored = [_by_fold(one.fold_runs, one.fold_f1) for one in complete]
    elsewhere = [_validated_elsewhere(one.fold_runs) for one in complete]
    try:
        return leave_fold_out(np.stack(choosing), np.stack(scored), np.stack(elsewhere))
    except TooFewError:
        return None


def _validated_elsewhere(fold_runs: Sequence[Record]) -> Array:
    """Validation F1 of each fold's fold-runs on the notes that the second fold does not score, (F, F); on
    all of them where the record is from before they were counted by themselves."""
    folds = dict.fromkeys(frozenset(record.notes) for record in fold_runs)
    values = np.empty((len(folds), len(fold_runs)))
    for place, record in enumerate(fold_runs):
        counts = np.array([(c.tp, c.fp, c.fn) for c in record.validation.values()])
        if not len(counts):
            values[:, place] = record.validation_f1
            continue
        kept = [[note not in scored for note in record.validation] for scored in folds]
        values[:, place] = micro_f1(np.array(kept, dtype=np.float64) @ counts)
    return np.stack([_by_fold(fold_runs, of_fold.tolist()) for of_fold in values], axis=1)


def _by_size(
    gaps: Sequence[FrozenGap], margin: float, summaries: Sequence[CellSummary]
) -> tuple[BySize, ...]:
    together: dict[tuple[str, str, int | None, str], list[FrozenGap]] = {}
    size_of = backbone_sizes(summaries)
    for gap in gaps:
        together.setdefault((gap.task, gap.corpus, gap.shots, gap.shots_of), []).append(gap)
    found = []
    for (task, corpus, shots, shots_of), members in together.items():
        if len(members) < 2:
            continue
        f1: dict[str, list[tuple[int, float]]] = {}
        for summary in summaries:
            cell = summary.cell
            if summary.winner is not None and _same(cell) == (task, corpus, shots, shots_of):
                known = size_of[cell.backbone.name], summary.winner.strict.mean or 0.0
                f1.setdefault(cell.strategy, []).append(known)
        fits = {strategy: _fit(known) for strategy, known in f1.items()}
        of_f1 = {strategy: fit for strategy, fit in fits.items() if fit is not None}
        where = corpus + (f"/{shots} {shots_of}" if shots else "")
        sizes = [gap.backbone_parameters for gap in members]
        try:
            fit = fit_sizes(sizes, [gap.gap for gap in members])
        except ValueError as error:
            found.append(BySize(where, len(set(sizes)), None, None, str(error)))
        else:
            parity = parity_size(fit, margin)
            found.append(BySize(where, len(set(sizes)), fit, parity, f1=of_f1))
    return tuple(found)


def _fit(known: Sequence[tuple[int, float]]) -> SizeFit | None:
    """Of F1 against parameters; None where they are too few."""
    try:
        return fit_sizes([size for size, _ in known], [f1 for _, f1 in known])
    except ValueError:
        return None


def _frontier(summaries: Sequence[CellSummary]) -> tuple[str, ...]:
    together: dict[tuple[str, str, int | None, str], list[CellSummary]] = {}
    for summary in summaries:
        if summary.winner is not None:
            together.setdefault(_same(summary.cell), []).append(summary)
    found = []
    for members in together.values():
        winners = [_winner(summary) for summary in members]
        costs = [
            (w.cost_usd, w.device_seconds, w.energy_kwh, w.peak_bytes, w.adapter_bytes)
            for w in winners
        ]
        # What one of them is not known to cost, it must not win by.
        known = [of_all for of_all in zip(*costs, strict=True) if all(of_all)]
        of_each = list(zip(*known, strict=True)) or [()] * len(winners)
        best = pareto([winner.strict.mean or 0.0 for winner in winners], of_each)
        found += [members[place].cell.name for place in best]
    return tuple(found)


# --- said -----------------------------------------------------------------------------------------


def sentences(conclusions: Conclusions) -> tuple[str, ...]:
    """A paragraph for each corpus with several backbones, one a gap, and one a corpus with several sizes."""
    said = [_of_best(one, conclusions) for one in conclusions.overall]
    said += [_of_gap(one, conclusions) for one in conclusions.gaps]
    return (*said, *(_of_size(one, conclusions.margin) for one in conclusions.by_size))


def _of_best(one: Overall, all_of_them: Conclusions) -> str:
    """What to do, how sure it is, and what it costs."""
    gap, home = one.conclusion.gap, one.conclusion.home
    frozen, unfrozen = f"{one.frozen} ({gap.frozen})", f"{one.unfrozen} ({gap.unfrozen})"
    is_across = one.frozen != one.unfrozen
    against = one.unfrozen if is_across else gap.unfrozen
    advice = {
        EQUIVALENT: f"freeze {frozen}.",
        AHEAD: f"freeze {frozen}.",
        BEHIND: f"train {unfrozen}.",
        UNSURE: "not enough data to say.",
    }[home.outcome]
    parts = [
        f"{one.name}, best against best of {one.num_backbones} backbones: {advice}",
        f"The best frozen one is {frozen}, the best trained one {unfrozen}.",
        _evidence(home, against, all_of_them.margin, all_of_them.num_compared),
    ]
    unit, (freezing, training) = (
        ("USD", one.usd) if all(one.usd) else ("device seconds", one.device_seconds)
    )
    if freezing and training:
        parts.append(
            f"Over all folds the frozen one cost {freezing:.3g} {unit}, the trained one {training:.3g}."
        )
    if gap.adapter_share is not None:
        parts.append(f"Freezing keeps {_percent(gap.adapter_share)} of the bytes for a task.")
    if is_across:  # else its backbone's own paragraph has it
        parts += _elsewhere(one.conclusion, against, all_of_them)
    return " ".join(parts)


def _of_gap(one: Conclusion, all_of_them: Conclusions) -> str:
    gap, home, margin = one.gap, one.home, all_of_them.margin
    over = all_of_them.num_compared
    advice = {
        EQUIVALENT: f"freeze ({gap.frozen}).",
        AHEAD: f"freeze ({gap.frozen}).",
        BEHIND: f"train the backbone ({gap.unfrozen}).",
        UNSURE: "not enough data to say.",
    }[home.outcome]
    parts = [f"{gap.name}: {advice}", _evidence(home, gap.unfrozen, margin, over)]
    if home.outcome == BEHIND:
        parts.append(_price_of_lead(one))
    else:
        parts.append(_price_of_freezing(gap))
    parts += _elsewhere(one, gap.unfrozen, all_of_them)
    return " ".join(part for part in parts if part)


def _elsewhere(one: Conclusion, against: str, all_of_them: Conclusions) -> list[str]:
    """At each other site, and what to do there where that is something else."""
    parts = []
    for site, judged in one.away.items():
        evidence = _evidence(judged, against, all_of_them.margin, all_of_them.num_compared)
        only = ""
        if judged.outcome in (AHEAD, EQUIVALENT) and one.home.outcome in (BEHIND, UNSURE):
            only = " For notes from there, freeze."
        if judged.outcome == BEHIND and one.home.outcome != BEHIND:
            only = " For notes from there, train the backbone."
        enough = "not enough data. " if judged.outcome == UNSURE else ""
        parts.append(f"At {site}: {enough}{evidence}{only}")
    return parts


def _evidence(judged: Judgement, unfrozen: str, margin: float, over: int) -> str:
    one = judged.comparison
    within = f"within {100 * margin:g} point{'' if margin == 0.01 else 's'}"
    if one is None or judged.probabilities is None:
        return f"Nothing tells how sure it is: {judged.why}."
    where = (
        f"{_tenths(abs(one.difference))} points {'behind' if one.difference > 0 else 'ahead'}, "
        f"95 % interval of what it is behind by: {ends(judged.interval)}"
    )
    chances, times = judged.probabilities, f"over {over} comparison{'s' if over > 1 else ''}"
    if judged.outcome == EQUIVALENT:
        return (
            f"Frozen is {within} of {unfrozen} with a probability of {chance(chances.within)} ({where}; "
            f"{_p(judged.p_equivalence)} {times})."
        )
    if judged.outcome in (BEHIND, AHEAD):
        further = chances.above if judged.outcome == BEHIND else chances.below
        return (
            f"Frozen is {judged.outcome} ({where}; {_p(judged.p_difference)} {times}), and by more than "
            f"{100 * margin:g} with a probability of {chance(further)}."
        )
    alone = ""
    if over > 1 and 0.0 not in judged.interval:
        alone = f"That the interval holds no 0 is not enough where {over} gaps are looked at. "
    return (
        f"Frozen was {where}: {within} of {unfrozen} with a probability of {chance(chances.within)}, "
        f"further behind {chance(chances.above)}, further ahead {chance(chances.below)}. "
        f"{alone}More notes or more folds would tell."
    )


def _price_of_lead(one: Conclusion) -> str:
    if one.per_point is None or one.per_point.value is None:
        return "Training it costs no more than freezing did here."
    unit = "USD" if one.extra_usd else "device seconds"
    extra = one.extra_usd or one.extra_device_seconds
    low, high = one.per_point.interval.low, one.per_point.interval.high
    most = "no upper bound" if high is None else f"{high:.2g}"
    least = "0" if low is None else f"{low:.2g}"
    return (
        f"The lead costs {extra:.3g} {unit} more over all folds, {one.per_point.value:.2g} a point "
        f"({least} to {most})."
    )


def _price_of_freezing(gap: FrozenGap) -> str:
    shares = [
        f"{_percent(share)} of {what}"
        for share, what in (
            (gap.device_share, "the device time"),
            (gap.adapter_share, "what is kept for a task"),
        )
        if share is not None
    ]
    return f"Freezing takes {' and '.join(shares)}." if shares else ""


def _of_size(one: BySize, margin: float) -> str:
    if one.fit is None or one.parity is None:
        return (
            f"{one.corpus}, by size: not enough data to say how the gap goes with size: {one.why}."
        )
    slope = one.fit.slope_interval()
    said = (
        f"{one.corpus}, by size: over {one.num_sizes} sizes a tenfold of parameters changes what frozen is "
        f"behind by {100 * one.fit.slope:+.1f} points (95 % interval {ends(slope)})."
    )
    changes = [
        f"{100 * fit.slope:+.1f} under {strategy} ({ends(fit.slope_interval())})"
        for strategy, fit in one.f1.items()
    ]
    f1 = f" F1 itself changes by {', '.join(changes)}." if changes else ""
    parity = one.parity
    if parity.parameters is None or parity.interval.low is None or parity.interval.high is None:
        return f"{said} From which size on it is at most {100 * margin:g}, these sizes do not tell.{f1}"
    beyond = ", beyond the sizes that were tried" if parity.is_extrapolated else ""
    low, high = (short_count(round(end)) for end in (parity.interval.low, parity.interval.high))
    return (
        f"{said} It comes down to {100 * margin:g} at {short_count(round(parity.parameters))} parameters "
        f"({low} to {high}){beyond}.{f1}"
    )


def render(conclusions: Conclusions) -> RenderableType:
    """Winners and gaps with their intervals as tables, and under them what to do in words."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown: list[RenderableType] = []
    if conclusions.winners:
        table = Table(title="How sure the winners' F1 is: strict, all folds together, in points")
        table.add_column("corpus / backbone / strategy", no_wrap=True)
        for heading in ("F1", "95 % interval", "notes or groups"):
            table.add_column(heading, justify="right", no_wrap=True)
        for winner in conclusions.winners:
            table.add_row(
                winner.cell, points(winner.f1), ends(winner.interval), str(winner.num_groups)
            )
        shown.append(table)
    if conclusions.compared:
        margin = f"{100 * conclusions.margin:g}"
        table = Table(title="How sure the gaps are: what frozen is behind by, in points")
        table.add_column("corpus / backbone", no_wrap=True)
        for heading in (
            "behind by", "95 % interval", f"within {margin}", "further behind", "further ahead",
            "p, no gap", f"p, not within {margin}",
        ):  # fmt: skip
            table.add_column(heading, justify="right", no_wrap=True)
        for name, one in conclusions.compared:
            for site, judged in {"": one.home, **one.away}.items():
                of_gap, chances = judged.comparison, judged.probabilities
                figures = ["-"] * 5
                if chances is not None:
                    likely = (chances.within, chances.above, chances.below)
                    unlikely = (judged.p_difference, judged.p_equivalence)
                    figures = [*map(chance, likely), *(f"{p:.2g}" for p in unlikely)]
                table.add_row(
                    name + (f" at {site}" if site else ""),
                    points(None if of_gap is None else of_gap.difference),
                    ends(judged.interval),
                    *figures,
                )
        shown.append(table)
    shown += [Text(f"\n{sentence}") for sentence in sentences(conclusions)]
    return Group(*shown)


def ends(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return "-"
    return f"{_tenths(interval.low)} to {_tenths(interval.high)}"


def _tenths(value: float) -> str:
    return f"{100 * value + 0.0:.1f}".replace("-0.0", "0.0")


def chance(value: float) -> str:
    if value > 0.99:
        return "over 99 %"
    return "under 1 %" if value < 0.01 else f"{100 * value:.0f} %"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 1 else f"{100 * share:.0f} %"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"
