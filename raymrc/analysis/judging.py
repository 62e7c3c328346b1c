"""Tests gaps, winners and drops, and draws the conclusions.

    winners of a frozen and a trained cell -> differences on folds and notes -> Holm over all -> a conclusion

Where the folds do not decide, the conclusion is "not enough data", never the likelier side
(docs/decisions/0024).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from raymrc.analysis.conclusions import (
    AHEAD,
    BEHIND,
    EQUIVALENT,
    UNKNOWN_INTERVAL,
    UNSURE,
    BySize,
    Conclusion,
    Conclusions,
    Judgement,
    Overall,
    SiteScore,
    StillLearning,
    WinnerScore,
)
from raymrc.analysis.gaps import (
    FrozenGap,
    backbone_sizes,
    best_pairs,
    comparable,
    frozen_gap,
    frozen_pairs,
)
from raymrc.analysis.statistics import (
    LEVEL,
    Array,
    Bootstrap,
    Comparison,
    Interval,
    Selection,
    TooFewError,
    bootstrap,
    compare_folds,
    compare_on_shared_notes,
    holm,
    leave_fold_out,
    micro_f1,
    published_correlation,
)
from raymrc.analysis.summary import CellSummary, ConfigurationSummary, group_by, winner_of, winners
from raymrc.analysis.tradeoffs import SizeFit, cost_per_point, fit_sizes, pareto, parity_size
from raymrc.configuration import Cell
from raymrc.ledger.record import NoteCounts, Record, pool_by_name
from raymrc.scoring.counts import Counts, pool

RESAMPLING_SEED = 20261125
"""Fixed, so that the same ledger gives the same report."""

CellPair = tuple[Cell, Cell]
"""A frozen and a trained cell."""

Groups = Mapping[str, Mapping[str, str]]
"""Per site, "" for the study's own notes: note id -> patient or article. A note without an entry is its own
group."""


def conclude(
    summaries: Sequence[CellSummary], margin: float, groups: Groups | None = None
) -> Conclusions:
    """All conclusions on a study's gaps and winners.

    Args:
        margin: of practical equivalence, F1 from 0 to 1.
        groups: notes of one patient or article are resampled together.
    """
    known = groups or {}
    per_backbone, best = frozen_pairs(summaries), best_pairs(summaries)
    # The best frozen and the best trained winner may share a backbone; then they are compared once.
    pairs = {(f.cell, u.cell): (f, u) for f, u in (*per_backbone, *best)}
    compared: dict[tuple[CellPair, str], Comparison | str] = {}
    for cells, pair in pairs.items():
        frozen, unfrozen = map(winner_of, pair)
        for site in ("", *sorted({*frozen.transfer} & {*unfrozen.transfer})):
            compared[cells, site] = _compare(frozen, unfrozen, site, known.get(site, {}))
    judged = _judge(compared, margin)
    scores, gap_intervals = _resample(summaries, pairs, known.get("", {}))
    conclusions = {}
    for cells, pair in pairs.items():
        frozen, unfrozen = map(winner_of, pair)
        usd = unfrozen.cost_usd - frozen.cost_usd
        seconds = unfrozen.device_seconds - frozen.device_seconds
        home, extra, per_point = judged[cells, ""], usd or seconds, None
        if extra > 0 and home.comparison is not None and home.comparison.has_spread:
            per_point = cost_per_point(extra, home.interval, home.comparison.difference)
        conclusions[cells] = Conclusion(
            gap=frozen_gap(*pair),
            home=home,
            away={site: away for (at, site), away in judged.items() if at == cells and site},
            pooled=gap_intervals[cells],
            extra_usd=usd,
            extra_device_seconds=seconds,
            per_point=per_point,
            still_learning=tuple(_still_learning(pair, margin)),
        )
    gaps = tuple(conclusions[f.cell, u.cell] for f, u in per_backbone)
    backbones = group_by((s.cell for s, _ in winners(summaries)), comparable)
    return Conclusions(
        margin=margin,
        num_compared=sum(judgement.probabilities is not None for judgement in judged.values()),
        gaps=gaps,
        winners=scores,
        by_size=_by_size([conclusion.gap for conclusion in gaps], margin, summaries),
        frontier=_frontier(summaries),
        overall=tuple(
            Overall(
                num_backbones=len({cell.backbone.name for cell in backbones[comparable(f.cell)]}),
                frozen=f.cell.backbone.name,
                unfrozen=u.cell.backbone.name,
                conclusion=conclusions[f.cell, u.cell],
                usd=(winner_of(f).cost_usd, winner_of(u).cost_usd),
                device_seconds=(winner_of(f).device_seconds, winner_of(u).device_seconds),
            )
            for f, u in best
        ),
        sites=tuple(_at_sites(summaries, known)),
    )


def _by_fold(fold_runs: Sequence[Record], values: Sequence[float]) -> Array:
    """Mean per fold: with few training notes, several draws score the same fold."""
    folds: dict[frozenset[str], list[float]] = {}
    for record, value in zip(fold_runs, values, strict=True):
        folds.setdefault(frozenset(record.notes), []).append(value)
    return np.array([math.fsum(of_fold) / len(of_fold) for of_fold in folds.values()])


def over_folds(fold_runs: Sequence[Record], values: Sequence[float]) -> Comparison:
    """A mean over folds with its certainty: of differences, or of F1 itself.

    Args:
        fold_runs, values: one value per fold-run, which says on which notes it was scored.

    Raises:
        TooFewError: fewer than two folds.
    """
    return compare_folds(_by_fold(fold_runs, values))


def over_notes(fold_runs: Sequence[Record], others: Sequence[Record]) -> Interval:
    """Interval of pooled F1 minus that of `others` on the same notes; notes resampled, models fixed.

    Raises:
        TooFewError: fewer than two notes.
    """
    sides = [_pooled_notes(fold_runs), _pooled_notes(others)]
    return _bootstrap(sides, sorted(sides[0]), {}).interval([1.0, -1.0])


def over_held_out_notes(
    runs: Sequence[Record], others: Sequence[Record] = (), groups: Mapping[str, str] | None = None
) -> Interval:
    """Interval of mean F1 minus that of `others`; notes resampled, models fixed. Open with too few notes.

    Args:
        runs, others: all scored the same notes.
        groups: note id -> patient or article.
    """
    try:
        drawn, weights = _draw_shared_notes(runs, others, groups or {})
    except TooFewError:
        return UNKNOWN_INTERVAL
    return drawn.interval(weights)


def _draw_shared_notes(
    runs: Sequence[Record], others: Sequence[Record], groups: Mapping[str, str], site: str = ""
) -> tuple[Bootstrap, list[float]]:
    """Resamples of notes that all of these scored, and the weights of mean(runs) - mean(others).

    Args:
        site: take that site's notes; "": the scored folds.
    """
    systems = [
        _note_counts(record.transfer[site] if site else record.notes) for record in (*runs, *others)
    ]
    weights = [1 / len(runs) for _ in runs] + [-1 / len(others) for _ in others]
    return _bootstrap(systems, sorted(systems[0]), groups), weights


def _still_learning(cells: Iterable[CellSummary], margin: float) -> Iterable[StillLearning]:
    for summary in cells:
        winner = winner_of(summary)
        gain = winner.late_gain
        if gain is not None and gain > margin:
            yield StillLearning(summary.cell.strategy, winner.configuration.epochs, gain)


def _at_sites(summaries: Sequence[CellSummary], groups: Groups) -> Iterable[SiteScore]:
    for summary, winner in winners(summaries):
        runs = winner.fold_runs
        for site, transfer in winner.transfer.items():
            interval = drop_interval = UNKNOWN_INTERVAL
            with suppress(TooFewError):
                drawn, weights = _draw_shared_notes(runs, (), groups.get(site, {}), site)
                interval = drawn.interval(weights)
                # All folds' models read the same notes there, so the notes' luck is in every fold's drop.
                drop_interval = compare_on_shared_notes(
                    _by_fold(runs, transfer.fold_drops), drawn.variance(weights), drawn.num_groups
                ).interval()
            yield SiteScore(
                cell=summary.cell.name,
                site=site,
                f1=transfer.away.mean or 0.0,
                interval=interval,
                drop=transfer.drop.mean or 0.0,
                drop_interval=drop_interval,
            )


def _compare(
    frozen: ConfigurationSummary,
    unfrozen: ConfigurationSummary,
    site: str,
    groups: Mapping[str, str],
) -> Comparison | str:
    """On the scored folds or, where all fold-runs of both read the same notes, at another site."""
    f1 = [
        [pool(record.per_label("strict", site).values()).f1 for record in winner.fold_runs]
        for winner in (unfrozen, frozen)
    ]
    differences = [u - f for u, f in zip(*f1, strict=True)]
    try:
        if not site:
            return over_folds(unfrozen.fold_runs, differences)
        drawn, weights = _draw_shared_notes(unfrozen.fold_runs, frozen.fold_runs, groups, site)
        by_fold = _by_fold(unfrozen.fold_runs, differences)
        return compare_on_shared_notes(by_fold, drawn.variance(weights), drawn.num_groups)
    except TooFewError as error:
        return str(error)


def _judge(
    compared: Mapping[tuple[CellPair, str], Comparison | str], margin: float
) -> dict[tuple[CellPair, str], Judgement]:
    """Holm over all comparisons. "No gap" and "not within the margin" cannot both be true of one gap."""
    tested = {
        key: test
        for key, test in compared.items()
        if isinstance(test, Comparison) and test.has_spread
    }
    p_values = [test.p_difference for test in tested.values()]
    p_values += [test.p_equivalence(margin) for test in tested.values()]
    adjusted = holm(p_values, len(tested))
    of_difference = dict(zip(tested, adjusted[: len(tested)], strict=True))
    of_equivalence = dict(zip(tested, adjusted[len(tested) :], strict=True))
    judged = {}
    for key, test in compared.items():
        if isinstance(test, str):
            judged[key] = Judgement(None, why=test)
        elif not test.has_spread:
            judged[key] = Judgement(test, why="all folds gave the same difference")
        else:
            outcome = UNSURE
            if of_equivalence[key] <= 1 - LEVEL:
                outcome = EQUIVALENT
            elif of_difference[key] <= 1 - LEVEL:
                outcome = BEHIND if test.difference > 0 else AHEAD
            judged[key] = Judgement(
                test,
                outcome,
                interval=test.interval(),
                probabilities=test.probabilities(margin),
                p_difference=of_difference[key],
                p_equivalence=of_equivalence[key],
                published=None if key[1] else _published(test),
            )
    return judged


def _published(test: Comparison) -> tuple[float, Interval]:
    folds = round(test.degrees) + 1
    correlation = published_correlation(folds)
    published_factor, factor = (
        math.sqrt(1 / folds + r / (1 - r)) for r in (correlation, test.correlation)
    )
    scale = test.scale * published_factor / factor
    published = replace(test, scale=scale, correlation=correlation)
    return published.p_difference, published.interval()


def _note_counts(notes: Mapping[str, NoteCounts]) -> dict[str, Counts]:
    return {note: pool(counts.strict.values()) for note, counts in notes.items()}


def _pooled_notes(fold_runs: Iterable[Record]) -> dict[str, Counts]:
    """Counts per note over all folds; a note scored in several draws has their sum."""
    return pool_by_name(_note_counts(record.notes) for record in fold_runs)


def _bootstrap(
    systems: Sequence[Mapping[str, Counts]], ids: Sequence[str], groups: Mapping[str, str]
) -> Bootstrap:
    nothing = Counts()
    counts = [
        [(c.tp, c.fp, c.fn) for c in (system.get(note, nothing) for note in ids)]
        for system in systems
    ]
    shaped = np.array(counts, dtype=np.float64).reshape(len(systems), len(ids), 3)
    # A note's id may equal another note's group.
    units = [("group", groups[note]) if note in groups else ("note", note) for note in ids]
    return bootstrap(shaped, units, generator=np.random.default_rng(RESAMPLING_SEED))


def _resample(
    summaries: Sequence[CellSummary], pairs: Iterable[CellPair], groups: Mapping[str, str]
) -> tuple[tuple[WinnerScore, ...], dict[CellPair, Interval]]:
    """Pooled scores of all winners, and the intervals of the pairs' pooled gaps.

    Winners on the same notes share their resamples, so their differences are paired.
    """
    finished = winners(summaries)
    notes = {summary.cell: _pooled_notes(winner.fold_runs) for summary, winner in finished}
    intervals = dict.fromkeys(notes, UNKNOWN_INTERVAL)
    num_groups = {cell: len(found) for cell, found in notes.items()}
    gap_intervals = dict.fromkeys(pairs, UNKNOWN_INTERVAL)
    for ids, members in group_by(notes, lambda cell: tuple(sorted(notes[cell]))).items():
        try:
            drawn = _bootstrap([notes[cell] for cell in members], ids, groups)
        except TooFewError:
            continue
        unit = dict(zip(members, np.eye(len(members)), strict=True))
        for cell, weights in unit.items():
            intervals[cell] = drawn.interval(weights)
            num_groups[cell] = drawn.num_groups
        for frozen, unfrozen in gap_intervals:
            if frozen in unit and unfrozen in unit:
                gap_intervals[frozen, unfrozen] = drawn.interval(unit[unfrozen] - unit[frozen])
    scores = tuple(
        WinnerScore(
            cell=summary.cell.name,
            f1=winner.pooled_strict.f1,
            interval=intervals[summary.cell],
            num_groups=num_groups[summary.cell],
            selection=_selection(summary),
        )
        for summary, winner in finished
    )
    return scores, gap_intervals


def _selection(summary: CellSummary) -> Selection | None:
    """How much of the winner's F1 is luck of the choice among the complete configurations."""
    complete = [c for c in summary.configurations if c.is_complete]
    if len(complete) < 2:
        return None
    choosing = [
        _by_fold(c.fold_runs, [record.validation_f1 for record in c.fold_runs]) for c in complete
    ]
    scored = [_by_fold(c.fold_runs, c.fold_f1) for c in complete]
    elsewhere = None
    if all(record.validation for c in complete for record in c.fold_runs):
        elsewhere = np.stack([_validated_elsewhere(c.fold_runs) for c in complete])
    try:
        return leave_fold_out(np.stack(choosing), np.stack(scored), elsewhere)
    except TooFewError:
        return None


def _validated_elsewhere(fold_runs: Sequence[Record]) -> Array:
    """[i, j]: validation F1 of fold i's fold-runs on notes that fold j does not score, (F, F)."""
    folds = dict.fromkeys(frozenset(record.notes) for record in fold_runs)
    values = np.empty((len(folds), len(fold_runs)))
    for place, record in enumerate(fold_runs):
        counts = np.array([(c.tp, c.fp, c.fn) for c in record.validation.values()])
        kept = [[note not in scored for note in record.validation] for scored in folds]
        values[:, place] = micro_f1(np.array(kept, dtype=np.float64) @ counts)
    return np.stack([_by_fold(fold_runs, of_fold.tolist()) for of_fold in values], axis=1)


def _by_size(
    gaps: Sequence[FrozenGap], margin: float, summaries: Sequence[CellSummary]
) -> tuple[BySize, ...]:
    sizes_by_name = backbone_sizes(summaries)
    found = []
    for key, members in group_by(gaps, comparable).items():
        if len(members) < 2:
            continue
        where = members[0].corpus_name
        sizes = [gap.backbone_parameters for gap in members]
        try:
            fit = fit_sizes(sizes, [gap.gap for gap in members])
        except ValueError as error:
            found.append(BySize(where, len(set(sizes)), None, None, str(error)))
            continue
        f1: dict[str, list[tuple[int, float]]] = {}
        for summary, winner in winners(summaries):
            cell = summary.cell
            if comparable(cell) == key:
                known = sizes_by_name[cell.backbone.name], winner.strict.mean or 0.0
                f1.setdefault(cell.strategy, []).append(known)
        fits = {name: line for name, known in f1.items() if (line := _fit(known)) is not None}
        found.append(BySize(where, len(set(sizes)), fit, parity_size(fit, margin), f1=fits))
    return tuple(found)


def _fit(known: Sequence[tuple[int, float]]) -> SizeFit | None:
    """F1 against parameters; None with too few sizes."""
    try:
        return fit_sizes([size for size, _ in known], [f1 for _, f1 in known])
    except ValueError:
        return None


def _frontier(summaries: Sequence[CellSummary]) -> tuple[str, ...]:
    found = []
    for members in group_by(winners(summaries), lambda pair: comparable(pair[0].cell)).values():
        costs = [
            (w.cost_usd, w.device_seconds, w.energy_kwh, w.peak_bytes, w.adapter_bytes)
            for _, w in members
        ]
        # A cost that is unknown for one winner decides nothing.
        known = [column for column in zip(*costs, strict=True) if all(column)]
        rows = list(zip(*known, strict=True)) or [()] * len(members)
        best = pareto([winner.strict.mean or 0.0 for _, winner in members], rows)
        found += [members[place][0].cell.name for place in best]
    return tuple(found)
