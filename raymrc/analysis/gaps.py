"""Gaps: on each backbone, the best trained winner's F1 minus the frozen winner's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from raymrc.analysis.summary import CellSummary, group_by, spread, winner_of, winners
from raymrc.configuration import Cell
from raymrc.model.strategies import STRATEGIES

Pair = tuple[CellSummary, CellSummary]
"""A frozen and a trained cell, both with a winner."""


@dataclass(frozen=True)
class FrozenGap:
    """What freezing costs and saves: winner against winner.

    Args:
        backbone: the frozen winner's.
        unfrozen: the strategy with a trained backbone whose winner is best on validation.
        gap_sd: sample standard deviation over folds of the difference, fold by fold.
        backbone_parameters: without prompts and heads.
        device_share: the frozen winner's device-seconds / the trained winner's.
        adapter_share: bytes stored per task, likewise.
    """

    task: str
    corpus: str
    backbone: str
    shots: int | None
    shots_of: str
    frozen: str
    unfrozen: str
    frozen_f1: float
    unfrozen_f1: float
    gap_sd: float | None
    backbone_parameters: int
    device_share: float | None
    adapter_share: float | None

    @property
    def gap(self) -> float:
        """-1 to 1; negative where frozen is ahead."""
        return self.unfrozen_f1 - self.frozen_f1

    @property
    def name(self) -> str:
        """Corpus, backbone and shots."""
        return f"{self.corpus}/{self.backbone}{self._shots}"

    @property
    def corpus_name(self) -> str:
        """Corpus and shots."""
        return f"{self.corpus}{self._shots}"

    @property
    def _shots(self) -> str:
        return f"/{self.shots} {self.shots_of}" if self.shots else ""


def comparable(item: Cell | FrozenGap) -> tuple[str, str, int | None, str]:
    """Cells are compared with each other only where this is equal."""
    return item.task, item.corpus, item.shots, item.shots_of


def frozen_gaps(summaries: Sequence[CellSummary]) -> tuple[FrozenGap, ...]:
    return tuple(frozen_gap(*pair) for pair in frozen_pairs(summaries))


def frozen_pairs(summaries: Sequence[CellSummary]) -> tuple[Pair, ...]:
    """The frozen and the best trained cell of each backbone with a winner on both sides; smallest first."""
    pairs = map(_best_of_sides, _groups(summaries, by_backbone=True))
    return tuple(sorted(filter(None, pairs), key=lambda p: winner_of(p[0]).backbone_parameters))


def best_pairs(summaries: Sequence[CellSummary]) -> tuple[Pair, ...]:
    """The best frozen and the best trained cell of each corpus with several backbones.

    The two may have different backbones: freeze a large one, or train a smaller one?
    """
    groups = _groups(summaries, by_backbone=False)
    several = (group for group in groups if len({s.cell.backbone.name for s in group}) > 1)
    return tuple(filter(None, map(_best_of_sides, several)))


def _groups(summaries: Sequence[CellSummary], *, by_backbone: bool) -> Iterable[list[CellSummary]]:
    """Cells with a winner that may be compared with each other."""
    finished = [summary for summary, _ in winners(summaries) if summary.cell.strategy in STRATEGIES]
    return group_by(
        finished, lambda s: (*comparable(s.cell), s.cell.backbone.name if by_backbone else "")
    ).values()


def _best_of_sides(group: Sequence[CellSummary]) -> Pair | None:
    """The best frozen and the best trained cell by validation F1; None if a side has no winner."""
    trained, frozen = (
        [s for s in group if STRATEGIES[s.cell.strategy].trains_backbone == trains]
        for trains in (True, False)
    )
    if not (trained and frozen):
        return None
    return max(frozen, key=_validation), max(trained, key=_validation)


def frozen_gap(frozen: CellSummary, unfrozen: CellSummary) -> FrozenGap:
    froze, trained, cell = winner_of(frozen), winner_of(unfrozen), frozen.cell
    folds = zip(trained.fold_f1, froze.fold_f1, strict=True)
    return FrozenGap(
        task=cell.task,
        corpus=cell.corpus,
        backbone=cell.backbone.name,
        shots=cell.shots,
        shots_of=cell.shots_of,
        frozen=cell.strategy,
        unfrozen=unfrozen.cell.strategy,
        frozen_f1=froze.strict.mean or 0.0,
        unfrozen_f1=trained.strict.mean or 0.0,
        gap_sd=spread([trained_f1 - frozen_f1 for trained_f1, frozen_f1 in folds]).sd,
        backbone_parameters=froze.backbone_parameters,
        device_share=_ratio(froze.device_seconds, trained.device_seconds),
        adapter_share=_ratio(froze.adapter_bytes, trained.adapter_bytes),
    )


def name_gap(frozen: CellSummary, unfrozen: CellSummary) -> str:
    """The gap's name, with both backbones where they differ."""
    gap, trained = frozen_gap(frozen, unfrozen), unfrozen.cell.backbone.name
    both = gap.backbone if gap.backbone == trained else f"{gap.backbone} frozen, {trained} trained"
    return gap.name.replace(gap.backbone, both, 1)


def backbone_sizes(summaries: Sequence[CellSummary]) -> dict[str, int]:
    """Parameters of each backbone with a winner, by name.

    Where the backbone is frozen somewhere the count is exact; else it includes prompts and heads.
    """
    return {
        summary.cell.backbone.name: winner.backbone_parameters or winner.total_parameters
        for summary, winner in sorted(
            winners(summaries), key=lambda w: not STRATEGIES[w[0].cell.strategy].trains_backbone
        )
    }


def _validation(summary: CellSummary) -> float:
    return winner_of(summary).validation.mean or 0.0


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
