"""What is concluded, as values and in plain words: what to do, how sure we are, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from raymrc.analysis.statistics import (
    Comparison,
    CostPerPoint,
    Interval,
    ParitySize,
    Probabilities,
    Selection,
    SizeFit,
)
from raymrc.analysis.summary import FrozenGap
from raymrc.quantities import points, short_count

if TYPE_CHECKING:
    from rich.console import RenderableType

UNKNOWN_INTERVAL = Interval(None, None)

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
    interval: Interval = UNKNOWN_INTERVAL
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
class StillLearning:
    """A winner that has not learnt all that it could.

    Args:
        gain: validation F1 that the last third of its epochs still brought, mean over fold-runs, 0 to 1.
    """

    strategy: str
    epochs: int
    gain: float


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
        still_learning: those of the two winners whose last epochs still brought more than the margin.
    """

    gap: FrozenGap
    home: Judgement
    away: Mapping[str, Judgement]
    pooled: Interval
    extra_usd: float
    extra_device_seconds: float
    per_point: CostPerPoint | None
    still_learning: tuple[StillLearning, ...] = ()

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
            "still_learning": [asdict(one) for one in self.still_learning],
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
            one cell it is unsure by more than itself: look at many.
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
class SiteScore:
    """A winner at another site, mean over the models of its folds; of labels that both sites have.

    Args:
        f1, interval: strict micro F1 there, were other notes of that site drawn; models as trained.
        drop, drop_interval: F1 at home less that, over folds and those notes.
    """

    cell: str
    site: str
    f1: float
    interval: Interval
    drop: float
    drop_interval: Interval

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


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
        sites: of each winner, at each other site.
    """

    margin: float
    num_compared: int
    gaps: tuple[Conclusion, ...]
    winners: tuple[WinnerScore, ...]
    by_size: tuple[BySize, ...]
    frontier: tuple[str, ...]
    overall: tuple[Overall, ...] = ()
    sites: tuple[SiteScore, ...] = ()

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
            "sites": [score.to_json() for score in self.sites],
            "by_size": [fitted.to_json() for fitted in self.by_size],
            "frontier": list(self.frontier),
            "sentences": list(sentences(self)),
        }


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
        parts += map(_more_epochs, one.conclusion.still_learning)
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
    parts += map(_more_epochs, one.still_learning)
    parts += _elsewhere(one, gap.unfrozen, all_of_them)
    return " ".join(part for part in parts if part)


def _more_epochs(one: StillLearning) -> str:
    return (
        f"In the last third of its {one.epochs} epochs {one.strategy} still gained {_tenths(one.gain)} "
        "points on validation notes: with more of them this may change."
    )


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
    price = price_of_point(one)
    if price is None:
        return "Training it costs no more than freezing did here."
    unit = "USD" if one.extra_usd else "device seconds"
    extra = one.extra_usd or one.extra_device_seconds
    return (
        f"The lead costs {extra:.3g} {unit} more over all folds, {price[0]} a point ({price[1]})."
    )


def price_of_point(one: Conclusion) -> tuple[str, str] | None:
    """What a point of the trained winner's lead costs, and its interval; None where it is not ahead or
    costs no more."""
    if one.per_point is None or one.per_point.value is None:
        return None
    low, high = one.per_point.interval.low, one.per_point.interval.high
    most = "no upper bound" if high is None else f"{high:.2g}"
    return f"{one.per_point.value:.2g}", f"{'0' if low is None else f'{low:.2g}'} to {most}"


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


def render_conclusions(conclusions: Conclusions) -> RenderableType:
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
