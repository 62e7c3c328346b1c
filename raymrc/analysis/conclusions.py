"""What a study concludes, as values: gaps with their certainty, winners, sizes, the frontier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from raymrc.analysis.gaps import FrozenGap
from raymrc.analysis.statistics import Comparison, Interval, Probabilities, Selection
from raymrc.analysis.tradeoffs import CostPerPoint, ParitySize, SizeFit

UNKNOWN_INTERVAL = Interval(None, None)

EQUIVALENT, BEHIND, AHEAD, UNSURE = "equivalent", "behind", "ahead", "not enough data"
"""Outcomes: how frozen compares with trained, or that the data do not say."""


@dataclass(frozen=True)
class Judgement:
    """A gap, trained F1 minus frozen F1, and what can be claimed about it.

    Args:
        comparison: None where the gap cannot be tested.
        outcome: a claim holds at an error rate of 5 % over all gaps and sites of the report.
        why: the reason for `UNSURE`, unless the interval is simply too wide.
        probabilities: that frozen is ahead of, within and behind the margin (`below`, `within`, `above`).
        p_difference, p_equivalence: Holm-adjusted.
        published: p-value and interval at Nadeau and Bengio's correlation, for comparison with papers.
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
        test, chances, published = self.comparison, self.probabilities, self.published
        return {
            "outcome": self.outcome,
            "why": self.why or None,
            "gap": test and test.difference,
            "interval": asdict(self.interval),
            "probabilities": chances
            and {
                "frozen_ahead": chances.below,
                "within": chances.within,
                "frozen_behind": chances.above,
            },
            "p_difference": self.p_difference,
            "p_equivalence": self.p_equivalence,
            "assumed_correlation": test and test.correlation,
            "published": published
            and {"p_difference": published[0], "interval": asdict(published[1])},
        }


@dataclass(frozen=True)
class StillLearning:
    """A winner whose validation F1 still rose at the end of training.

    Args:
        gain: validation F1 gained in the last third of its epochs, mean over fold-runs, 0 to 1.
    """

    strategy: str
    epochs: int
    gain: float


@dataclass(frozen=True)
class Conclusion:
    """One gap: a frozen winner against a trained one.

    Args:
        home: on the scored folds.
        away: at each other site.
        pooled: interval of the gap with all folds' counts pooled, notes resampled, models fixed.
        extra_usd, extra_device_seconds: the trained winner's minus the frozen one's, all folds.
        per_point: cost of one point of the trained winner's lead, in USD or, without a price, in device
            seconds.
        still_learning: of the two winners, those that gained more than the margin at the end of training.
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
            "cost_per_point": self.per_point and asdict(self.per_point),
            "still_learning": [asdict(winner) for winner in self.still_learning],
        }


@dataclass(frozen=True)
class Overall:
    """The best frozen winner of all of a corpus's backbones against the best trained one.

    Args:
        num_backbones: backbones with a winner.
        frozen, unfrozen: names of the two winners' backbones, which may be the same.
        usd, device_seconds: of the frozen and of the trained winner, all folds.
    """

    num_backbones: int
    frozen: str
    unfrozen: str
    conclusion: Conclusion
    usd: tuple[float, float]
    device_seconds: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        values = {
            "backbones": self.num_backbones,
            "frozen_backbone": self.frozen,
            "unfrozen_backbone": self.unfrozen,
            **self.conclusion.to_json(),
        }
        del values["backbone"]
        return values


@dataclass(frozen=True)
class WinnerScore:
    """A winner's pooled strict micro F1.

    Args:
        interval: over resampled notes, models fixed.
        num_groups: patients or articles where known, else notes.
        selection: how much of its mean F1 over folds is luck of the choice; None without a choice. For one
            cell the estimate is noisier than the luck itself; look at many cells.
    """

    cell: str
    f1: float
    interval: Interval
    num_groups: int
    selection: Selection | None

    def to_json(self) -> dict[str, Any]:
        selection = self.selection
        return {
            "cell": self.cell,
            "pooled_f1": self.f1,
            "interval": asdict(self.interval),
            "groups": self.num_groups,
            "optimism": selection and selection.optimism,
            "corrected_f1": selection and selection.corrected,
        }


@dataclass(frozen=True)
class SiteScore:
    """A winner at another site, mean over the models of its folds, on labels that both sites have.

    Args:
        f1, interval: strict micro F1 there; interval over that site's notes, models fixed.
        drop, drop_interval: F1 at home minus F1 there; interval over folds and those notes.
    """

    cell: str
    site: str
    f1: float
    interval: Interval
    drop: float
    drop_interval: Interval


@dataclass(frozen=True)
class BySize:
    """A corpus's gaps, and F1 itself, against the backbones' size.

    Args:
        fit, parity: of the gap; None with too few sizes, and then `why` says how many.
        f1: one fit per strategy with enough sizes.
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
            "fit": self.fit and _fit_json(self.fit),
            "parity": self.parity and asdict(self.parity),
            "f1": {strategy: _fit_json(fit) for strategy, fit in self.f1.items()},
            "why": self.why or None,
        }


def _fit_json(fit: SizeFit) -> dict[str, Any]:
    return asdict(fit) | {"slope_interval": asdict(fit.slope_interval())}


@dataclass(frozen=True)
class Conclusions:
    """All that a study concludes.

    Args:
        margin: of practical equivalence, F1 from 0 to 1.
        num_compared: gaps and sites that Holm's adjustment covers.
        frontier: cells whose winner no other winner of the corpus beats in F1, money, time, energy, memory
            and bytes stored together, as far as these are known of all.
        overall: best frozen against best trained, one per corpus with several backbones.
        sites: one per winner and other site.
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
        """All gaps with their names; those between two backbones come first."""
        across = []
        for best in self.overall:
            if best.frozen != best.unfrozen:
                backbones = f"{best.frozen} frozen, {best.unfrozen} trained"
                across.append((f"{best.conclusion.gap.corpus_name}/{backbones}", best.conclusion))
        return (*across, *((conclusion.gap.name, conclusion) for conclusion in self.gaps))

    def to_json(self) -> dict[str, Any]:
        """Plain values. F1, gaps and the margin run from 0 to 1."""
        return {
            "equivalence": self.margin,
            "compared": self.num_compared,
            "overall": [best.to_json() for best in self.overall],
            "gaps": [conclusion.to_json() for conclusion in self.gaps],
            "winners": [winner.to_json() for winner in self.winners],
            "sites": [asdict(score) for score in self.sites],
            "by_size": [fitted.to_json() for fitted in self.by_size],
            "frontier": list(self.frontier),
        }
