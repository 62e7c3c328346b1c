"""Conclusions in plain English: a headline of at most 25 words and at most three short sentences each.

What is concluded is decided in `judging`; this module only words it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from raymrc.analysis.conclusions import (
    AHEAD,
    BEHIND,
    EQUIVALENT,
    UNSURE,
    BySize,
    Conclusion,
    Conclusions,
    Judgement,
    Overall,
    StillLearning,
)
from raymrc.analysis.final import FinalGap, FinalScore
from raymrc.analysis.statistics import Interval
from raymrc.analysis.summary import CellSummary, ConfigurationSummary, leaders
from raymrc.quantities import percent, short_count

MAX_HEADLINE_WORDS, MAX_DETAILS = 25, 3

FREEZE, TRAIN, UNDECIDED = "freeze", "train the backbone", "not enough data"


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    Args:
        headline: the advice, at most `MAX_HEADLINE_WORDS` words.
        details: at most `MAX_DETAILS` sentences on evidence, other sites and cost.
    """

    headline: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.headline, *self.details))


def advice(judged: Judgement) -> str:
    return {EQUIVALENT: FREEZE, AHEAD: FREEZE, BEHIND: TRAIN}.get(judged.outcome, UNDECIDED)


def verdicts(found: Conclusions) -> tuple[Verdict, ...]:
    """One per corpus with several backbones, one per gap, and one per corpus with several sizes."""
    return (
        *(overall_verdict(best, found) for best in found.overall),
        *(gap_verdict(conclusion, found) for conclusion in found.gaps),
        *(size_verdict(fitted, found.margin) for fitted in found.by_size),
    )


def gap_verdict(conclusion: Conclusion, found: Conclusions) -> Verdict:
    gap, home = conclusion.gap, conclusion.home
    price = _price_of_lead if home.outcome == BEHIND else _price_of_freezing
    return Verdict(
        _headline(gap.name, home, gap.frozen, gap.unfrozen, found.margin),
        _details(conclusion, price(conclusion), found.num_compared),
    )


def overall_verdict(best: Overall, found: Conclusions) -> Verdict:
    conclusion, gap = best.conclusion, best.conclusion.gap
    frozen, unfrozen = f"{best.frozen} ({gap.frozen})", f"{best.unfrozen} ({gap.unfrozen})"
    name = f"{gap.corpus_name}, best of {best.num_backbones} backbones"
    return Verdict(
        _headline(name, conclusion.home, frozen, unfrozen, found.margin),
        _details(conclusion, _price_of_both(best), found.num_compared),
    )


def size_verdict(fitted: BySize, margin: float) -> Verdict:
    """How the gap, and F1 itself, change with the backbone's size."""
    name = f"{fitted.corpus}, by size"
    if fitted.fit is None or fitted.parity is None:
        return Verdict(f"{name}: not enough data: {fitted.why}.")
    slopes = [
        f"{100 * fit.slope:+.1f} under {strategy} ({interval_text(fit.slope_interval())})"
        for strategy, fit in fitted.f1.items()
    ]
    parity, within = fitted.parity, points_text(margin)
    where = f"These sizes do not show where the gap shrinks to {within}."
    if parity.parameters and parity.interval.low and parity.interval.high:
        size, low, high = (
            short_count(round(end))
            for end in (parity.parameters, parity.interval.low, parity.interval.high)
        )
        beyond = ", beyond the sizes tried" if parity.is_extrapolated else ""
        where = f"The gap shrinks to {within} at {size} parameters ({low} to {high}){beyond}."
    return Verdict(
        f"{name}: a tenfold larger backbone changes the gap by {100 * fitted.fit.slope:+.1f} points "
        f"(95 % interval {interval_text(fitted.fit.slope_interval())}).",
        (where, *([f"F1 itself changes by {', '.join(slopes)}."] if slopes else [])),
    )


def _headline(name: str, home: Judgement, frozen: str, unfrozen: str, margin: float) -> str:
    return {
        EQUIVALENT: f"{name}: freeze the backbone; {frozen} scores within {points_text(margin)} of "
        f"{unfrozen}.",
        AHEAD: f"{name}: freeze the backbone; {frozen} scores higher than {unfrozen}.",
        BEHIND: f"{name}: train the backbone; {unfrozen} scores higher than {frozen}.",
        UNSURE: f"{name}: not enough data to choose between {frozen} and {unfrozen}.",
    }[home.outcome]


def _details(conclusion: Conclusion, cost: str, num_compared: int) -> tuple[str, ...]:
    """The most important ones; the tables have the rest."""
    home = conclusion.home
    is_unsure = home.outcome == UNSURE and home.comparison is not None
    found = [
        _evidence(home),
        *_site_advice(conclusion),
        f"The interval excludes 0, but not after correction for {num_compared} comparisons."
        if is_unsure and num_compared > 1 and 0.0 not in home.interval
        else "",
        learning_sentence(conclusion.still_learning),
        cost,
        "More notes or more folds are needed to decide." if is_unsure else "",
    ]
    return tuple(filter(None, found))[:MAX_DETAILS]


def _evidence(judged: Judgement) -> str:
    if judged.comparison is None or judged.probabilities is None:
        return f"The difference has no interval: {judged.why}."
    return f"Frozen scored {difference_text(judged.comparison.difference, judged.interval)}."


def _site_advice(conclusion: Conclusion) -> list[str]:
    """What to do at other sites where that is known and differs from what to do at home."""
    at_home = advice(conclusion.home)
    sites: dict[str, list[str]] = {}
    for site, judged in conclusion.away.items():
        if advice(judged) not in (UNDECIDED, at_home):
            sites.setdefault(advice(judged), []).append(site)
    return [f"For notes from {' or '.join(names)}, {what}." for what, names in sites.items()]


def learning_sentence(winners: Iterable[StillLearning]) -> str:
    gains = [f"{winner.strategy} gained {_tenths(winner.gain)}" for winner in winners]
    if not gains:
        return ""
    return (
        f"More epochs may change this: in the last third of training {' and '.join(gains)} "
        "points on validation notes."
    )


def _price_of_lead(conclusion: Conclusion) -> str:
    price = price_of_point(conclusion)
    if price is None:
        return "Training cost no more than freezing."
    unit = "USD" if conclusion.extra_usd else "device seconds"
    extra = conclusion.extra_usd or conclusion.extra_device_seconds
    point, interval = price
    return f"Training cost {extra:.3g} {unit} more over all folds, {point} per point ({interval})."


def price_of_point(conclusion: Conclusion) -> tuple[str, str] | None:
    """Cost of one point of the trained winner's lead, and its interval; None without a lead or extra cost."""
    if conclusion.per_point is None or conclusion.per_point.value is None:
        return None
    low, high = conclusion.per_point.interval.low, conclusion.per_point.interval.high
    most = "no upper bound" if high is None else f"{high:.2g}"
    return f"{conclusion.per_point.value:.2g}", f"{'0' if low is None else f'{low:.2g}'} to {most}"


def _price_of_freezing(conclusion: Conclusion) -> str:
    time, stored = conclusion.gap.device_share, conclusion.gap.adapter_share
    shares = [f"{_percent(time)} of the device time"] if time is not None else []
    shares += [f"{_percent(stored)} of the bytes stored per task"] if stored is not None else []
    return f"Freezing takes {' and '.join(shares)}." if shares else ""


def _price_of_both(best: Overall) -> str:
    unit, (freezing, training) = (
        ("USD", best.usd) if all(best.usd) else ("device seconds", best.device_seconds)
    )
    if not (freezing and training):
        return ""
    share = best.conclusion.gap.adapter_share
    stored = "" if share is None else f"; a frozen task stores {_percent(share)} of the bytes"
    return f"Over all folds freezing cost {freezing:.3g} {unit}, training {training:.3g}{stored}."


def final_sentence(gap: FinalGap) -> str:
    return (
        f"{gap.name}: on held-out notes {gap.frozen} scored {difference_text(gap.gap, gap.interval)} "
        f"than {gap.unfrozen}."
    )


def unreachable_in_folds(summaries: Iterable[CellSummary]) -> str:
    lost = [
        (s.cell.strategy, leader.pooled_strict.gold, leader) for s, leader in leaders(summaries)
    ]
    return _unreachable_sentence("Gold", lost)


def unreachable_in_test(scores: Iterable[FinalScore]) -> str:
    lost = [(score.cell.strategy, score.counts.gold, score) for score in scores]
    return _unreachable_sentence("Held-out gold", lost)


def _unreachable_sentence(
    what: str, cells: Iterable[tuple[str, int, ConfigurationSummary | FinalScore]]
) -> str:
    """Counts by strategy, such as "3 of 127 (2.36 %: beyond context 2, no mention 1)".

    Args:
        cells: (strategy, gold items, result); of several backbones, the one that loses most is shown.
    """
    worst: dict[str, str] = {}
    for strategy, gold, result in sorted(cells, key=lambda cell: cell[2].unreachable):
        lost, reasons = result.unreachable, result.unreachable_reasons
        if not lost:
            continue
        # Older records do not give a reason for every lost item.
        by_count = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        why = ", ".join(f"{reason.replace('_', ' ')} {times}" for reason, times in by_count)
        shown = f": {why}" if sum(reasons.values()) == lost else ""
        worst[strategy] = f"{strategy} {lost} of {gold} ({percent(lost / gold)}{shown})"
    found = "; ".join(worst.values())
    return f"{what} that no answer can match, and that counts as missed: {found}" if found else ""


def difference_text(gap: float, interval: Interval) -> str:
    """How frozen scored, such as "47.7 points lower (95 % interval -5.2 to 100.5)".

    Args:
        gap: F1 of trained minus frozen; the interval is the gap's. Where frozen scored higher, both are
            turned round.
    """
    if gap < 0:
        low, high = interval.low, interval.high
        turned = Interval(None if high is None else -high, None if low is None else -low)
        return f"{_tenths(-gap)} points higher ({interval_clause(turned)})"
    return f"{_tenths(gap)} points lower ({interval_clause(interval)})"


def interval_clause(interval: Interval) -> str:
    is_open = interval.low is None or interval.high is None
    return "no interval" if is_open else f"95 % interval {interval_text(interval)}"


def interval_text(interval: Interval) -> str:
    """In points; "-" where an end is open."""
    if interval.low is None or interval.high is None:
        return "-"
    return f"{_tenths(interval.low)} to {_tenths(interval.high)}"


def chance_text(value: float) -> str:
    if value > 0.99:
        return "over 99 %"
    return "under 1 %" if value < 0.01 else f"{100 * value:.0f} %"


def points_text(margin: float) -> str:
    return f"{100 * margin:g} point{'' if margin == 0.01 else 's'}"


def _tenths(value: float) -> str:
    return f"{100 * value + 0.0:.1f}".replace("-0.0", "0.0")


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 1 else f"{100 * share:.0f} %"
