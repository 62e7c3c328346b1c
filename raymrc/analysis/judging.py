"""Tests gaps, winners and drops, and draws the conclusions.

    winners of a frozen and a trained cell -> differences on folds and notes -> Holm over all -> a conclusion

Where the folds do not decide, the conclusion is "not enough data", never the likelier side
(docs/decisions/0024).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

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
from raymrc.analysis.summary import CellSummary, ConfigurationSummary, winner_of
from raymrc.analysis.tradeoffs import SizeFit, cost_per_point, fit_sizes, pareto, parity_size
from raymrc.ledger.record import NoteCounts, Record
from raymrc.scoring.counts import Counts, pool

RESAMPLING_SEED = 20261125
"""Fixed, so that the same ledger gives the same report."""

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
    per_backbone = frozen_pairs(summaries)
    best = best_pairs(summaries)
    # The best frozen and the best trained winner may share a backbone; then they are compared once.
    by_cells = {(f.cell, u.cell): (f, u) for f, u in per_backbone}
    by_cells |= {(f.cell, u.cell): (f, u) for f, u in best}
    pairs = list(by_cells.values())
    compared: dict[tuple[int, str], Comparison | str] = {}
    for place, pair in enumerate(pairs):
        frozen, unfrozen = map(winner_of, pair)
        compared[place, ""] = _at_home(frozen, unfrozen)
        for site in sorted({*frozen.transfer} & {*unfrozen.transfer}):
            compared[place, site] = _at_site(frozen, unfrozen, site, known.get(site, {}))
    judged = _judge(compared, margin)
    scores, gap_intervals = _resample(summaries, pairs, known.get("", {}))
    conclusions = []
    for place, (frozen_cell, unfrozen_cell) in enumerate(pairs):
        frozen, unfrozen = winner_of(frozen_cell), winner_of(unfrozen_cell)
        away = {site: judgement for (at, site), judgement in judged.items() if at == place and site}
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
                still_learning=tuple(_still_learning((frozen_cell, unfrozen_cell), margin)),
            )
        )
    gaps = conclusions[: len(per_backbone)]
    by_pair = dict(zip(by_cells, conclusions, strict=True))
    return Conclusions(
        margin=margin,
        num_compared=sum(
            isinstance(test, Comparison) and test.has_spread for test in compared.values()
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
                        if s.winner is not None and comparable(s.cell) == comparable(f.cell)
                    }
                ),
                frozen=f.cell.backbone.name,
                unfrozen=u.cell.backbone.name,
                conclusion=by_pair[f.cell, u.cell],
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
        fold_runs: say which notes each value was scored on.
        values: one per fold-run.

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
    """Interval of mean F1 minus that of `others`; notes resampled, models fixed.

    Args:
        runs, others: all scored the same notes.
        groups: note id -> patient or article.

    Raises:
        TooFewError: fewer than two notes, patients or articles.
    """
    drawn, weights = _draw_shared_notes(runs, others, groups or {})
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
    for summary in summaries:
        if summary.winner is None:
            continue
        runs = summary.winner.fold_runs
        for site, transfer in summary.winner.transfer.items():
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
    """All fold-runs of both scored all of the site's notes."""
    f1 = [
        [pool(_note_counts(record.transfer[site]).values()).f1 for record in winner.fold_runs]
        for winner in (unfrozen, frozen)
    ]
    differences = [u - f for u, f in zip(*f1, strict=True)]
    try:
        drawn, weights = _draw_shared_notes(unfrozen.fold_runs, frozen.fold_runs, groups, site)
        by_fold = _by_fold(unfrozen.fold_runs, differences)
        return compare_on_shared_notes(by_fold, drawn.variance(weights), drawn.num_groups)
    except TooFewError as error:
        return str(error)


def _judge(
    compared: Mapping[tuple[int, str], Comparison | str], margin: float
) -> dict[tuple[int, str], Judgement]:
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
    published = Comparison(test.difference, scale, test.degrees, correlation)
    return published.p_difference, published.interval()


def _note_counts(notes: Mapping[str, NoteCounts]) -> dict[str, Counts]:
    return {note: pool(counts.strict.values()) for note, counts in notes.items()}


def _pooled_notes(fold_runs: Iterable[Record]) -> dict[str, Counts]:
    """Counts per note over all folds; a note scored in several draws has their sum."""
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
    # A note's id may equal another note's group.
    units = [("group", groups[note]) if note in groups else ("note", note) for note in ids]
    return bootstrap(shaped, units, generator=np.random.default_rng(RESAMPLING_SEED))


def _resample(
    summaries: Sequence[CellSummary],
    pairs: Sequence[tuple[CellSummary, CellSummary]],
    groups: Mapping[str, str],
) -> tuple[tuple[WinnerScore, ...], list[Interval]]:
    """Pooled scores of all winners, and the intervals of the pairs' pooled gaps.

    Winners on the same notes share their resamples, so their differences are paired.
    """
    cells = [summary for summary in summaries if summary.winner is not None]
    notes = {summary.cell: _pooled_notes(winner_of(summary).fold_runs) for summary in cells}
    together: dict[tuple[str, ...], list[CellSummary]] = {}
    for summary in cells:
        together.setdefault(tuple(sorted(notes[summary.cell])), []).append(summary)
    intervals = dict.fromkeys((summary.cell for summary in cells), UNKNOWN_INTERVAL)
    gap_intervals = [UNKNOWN_INTERVAL] * len(pairs)
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
                gap_intervals[place] = drawn.interval(unit[unfrozen.cell] - unit[frozen.cell])
    scores = tuple(
        WinnerScore(
            cell=summary.cell.name,
            f1=winner_of(summary).pooled_strict.f1,
            interval=intervals[summary.cell],
            num_groups=num_groups[summary.cell],
            selection=_selection(summary),
        )
        for summary in cells
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
    together: dict[tuple[str, str, int | None, str], list[FrozenGap]] = {}
    sizes_by_name = backbone_sizes(summaries)
    for gap in gaps:
        together.setdefault(comparable(gap), []).append(gap)
    found = []
    for key, members in together.items():
        if len(members) < 2:
            continue
        f1: dict[str, list[tuple[int, float]]] = {}
        for summary in summaries:
            cell = summary.cell
            if summary.winner is not None and comparable(cell) == key:
                known = sizes_by_name[cell.backbone.name], summary.winner.strict.mean or 0.0
                f1.setdefault(cell.strategy, []).append(known)
        fits = {strategy: _fit(known) for strategy, known in f1.items()}
        f1_fits = {strategy: fit for strategy, fit in fits.items() if fit is not None}
        where = members[0].corpus_name
        sizes = [gap.backbone_parameters for gap in members]
        try:
            fit = fit_sizes(sizes, [gap.gap for gap in members])
        except ValueError as error:
            found.append(BySize(where, len(set(sizes)), None, None, str(error)))
        else:
            parity = parity_size(fit, margin)
            found.append(BySize(where, len(set(sizes)), fit, parity, f1=f1_fits))
    return tuple(found)


def _fit(known: Sequence[tuple[int, float]]) -> SizeFit | None:
    """F1 against parameters; None with too few sizes."""
    try:
        return fit_sizes([size for size, _ in known], [f1 for _, f1 in known])
    except ValueError:
        return None


def _frontier(summaries: Sequence[CellSummary]) -> tuple[str, ...]:
    together: dict[tuple[str, str, int | None, str], list[CellSummary]] = {}
    for summary in summaries:
        if summary.winner is not None:
            together.setdefault(comparable(summary.cell), []).append(summary)
    found = []
    for members in together.values():
        winners = [winner_of(summary) for summary in members]
        costs = [
            (w.cost_usd, w.device_seconds, w.energy_kwh, w.peak_bytes, w.adapter_bytes)
            for w in winners
        ]
        # A cost that is unknown for one winner decides nothing.
        known = [column for column in zip(*costs, strict=True) if all(column)]
        rows = list(zip(*known, strict=True)) or [()] * len(winners)
        best = pareto([winner.strict.mean or 0.0 for winner in winners], rows)
        found += [members[place].cell.name for place in best]
    return tuple(found)
