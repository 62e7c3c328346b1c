"""What the records say: each configuration over its folds, each cell's winner, what it cost.

    records -> configurations -> cells -> gaps between frozen and trained backbones

A cell's winner is the configuration with the best mean F1 on the validation notes, never on
the scored folds: the best of many scored results is too good by luck (docs/decisions/0007).
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

from raymrc.configuration import Cell, Configuration, FoldRun
from raymrc.costs.prices import energy_kwh, watts_of
from raymrc.ledger.rank import count_reasons, rank
from raymrc.ledger.record import BOTH_FOUND, Record
from raymrc.model.strategies import STRATEGIES
from raymrc.quantities import percent, points, short_count, size_of
from raymrc.scoring.counts import Counts, pool
from raymrc.scoring.subsets import SUBSETS

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation over folds; None where there are too few."""

    mean: float | None = None
    sd: float | None = None


def spread(values: Sequence[float]) -> Spread:
    return Spread(
        mean=statistics.fmean(values) if values else None,
        sd=statistics.stdev(values) if len(values) > 1 else None,
    )


@dataclass(frozen=True, slots=True)
class Transfer:
    """A configuration at another site, over the folds that it finished; of labels that both sites have.

    Args:
        home: strict micro F1 of the scored folds.
        away: of all the other site's notes, by each fold's model.
        drop: home minus away, fold by fold; negative where it does better there.
        fold_drops: of each fold-run.
    """

    home: Spread
    away: Spread
    drop: Spread
    fold_drops: tuple[float, ...]


@dataclass(frozen=True)
class ConfigurationSummary:
    """One configuration over the folds that it finished.

    Args:
        num_folds: how many there are; `folds` are the finished ones, ascending.
        fold_f1: strict micro F1 of each finished fold, in that order.
        best_epochs: the chosen epoch of each, likewise.
        strict, lenient: micro F1 over folds.
        validation: strict micro F1 on the validation notes, over folds; this chooses.
        pooled_strict, pooled_lenient: counts of all finished folds together.
        labels_strict, labels_lenient: the same, by label.
        events: micro F1 of events by the 2022 scheme, over folds; where the task asks for events.
        labels_events: counts of all finished folds together, by event and argument.
        subsets: strict counts of nested, overlapping and discontinuous spans, of all finished folds
            together; only of subsets that gold spans are in.
        mentions: strict counts of those that were found on the way to relations, likewise, by label.
        failures: the reasons of failed folds, by fold.
        stopped: why its race stopped it; "" where it did not.
        fold_epochs: trained on all folds, finished or not.
        device_seconds, cost_usd: of the finished folds, and of what was trained of others before a race let
            them wait or stopped them.
        energy_kwh: that their devices drew, estimated (`prices.energy_kwh`); 0 where a device is not known.
        flops, tokens: of the finished folds together.
        failed_device_seconds: of tries that failed, of all folds.
        peak_bytes: the largest of the folds.
        transfer: by name of the other site.
        fold_runs: the finished ones, in the order of `folds`, with what was counted in each note.
    """

    configuration: Configuration
    num_folds: int
    folds: tuple[int, ...]
    fold_f1: tuple[float, ...]
    strict: Spread
    lenient: Spread
    validation: Spread
    pooled_strict: Counts
    pooled_lenient: Counts
    labels_strict: Mapping[str, Counts] = field(repr=False)
    labels_lenient: Mapping[str, Counts] = field(repr=False)
    best_epochs: tuple[int, ...] = ()
    events: Spread = Spread()
    labels_events: Mapping[str, Counts] = field(default_factory=dict, repr=False)
    subsets: Mapping[str, Counts] = field(default_factory=dict)
    mentions: Mapping[str, Counts] = field(default_factory=dict)
    failures: tuple[tuple[int, str], ...] = ()
    stopped: str = ""
    fold_epochs: int = 0
    unreachable: int = 0
    unreachable_reasons: Mapping[str, int] = field(default_factory=dict)
    device_seconds: float = 0.0
    failed_device_seconds: float = 0.0
    cost_usd: float = 0.0
    energy_kwh: float = 0.0
    flops: float = 0.0
    tokens: int = 0
    peak_bytes: int = 0
    trained_parameters: int = 0
    total_parameters: int = 0
    adapter_bytes: int = 0
    transfer: Mapping[str, Transfer] = field(default_factory=dict)
    fold_runs: tuple[Record, ...] = field(default=(), repr=False)

    @property
    def is_complete(self) -> bool:
        return len(self.folds) == self.num_folds

    @property
    def late_gain(self) -> float | None:
        """Validation F1 that the last third of the epochs still brought, mean over fold-runs, 0 to 1; None
        where there are fewer than three."""
        courses = [[e.validation_f1 for e in record.epochs] for record in self.fold_runs]
        if not courses or min(map(len, courses)) < 3:
            return None
        return statistics.fmean(max(f1) - max(f1[: -(len(f1) // 3)]) for f1 in courses)

    @property
    def num_spared(self) -> int:
        """Fold-runs that are not trained to their end, since its race stopped it."""
        return self.num_folds - len(self.folds) - len(self.failures) if self.stopped else 0

    @property
    def trained_share(self) -> float:
        """0 to 1."""
        return self.trained_parameters / self.total_parameters if self.total_parameters else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values. F1 and shares run from 0 to 1."""
        settings = asdict(self.configuration)
        del settings["cell"]
        return {
            "id": self.configuration.id,
            "settings": settings,
            "complete": self.is_complete,
            "folds_done": len(self.folds),
            "folds": self.num_folds,
            "best_epochs": list(self.best_epochs),
            "fold_f1": dict(zip(map(str, self.folds), self.fold_f1, strict=True)),
            "strict_f1": asdict(self.strict),
            "lenient_f1": asdict(self.lenient),
            "validation_f1": asdict(self.validation),
            "pooled_strict": self.pooled_strict.to_json(),
            "pooled_lenient": self.pooled_lenient.to_json(),
            "labels": {
                label: {
                    "strict": self.labels_strict.get(label, Counts()).to_json(),
                    "lenient": self.labels_lenient.get(label, Counts()).to_json(),
                }
                for label in sorted({*self.labels_strict, *self.labels_lenient})
            },
            "events_f1": asdict(self.events),
            "events": {name: counts.to_json() for name, counts in self.labels_events.items()},
            "subsets": {name: counts.to_json() for name, counts in self.subsets.items()},
            "mentions": {name: counts.to_json() for name, counts in self.mentions.items()},
            "failures": [{"fold": fold, "reason": reason} for fold, reason in self.failures],
            "stopped": self.stopped or None,
            "fold_epochs": self.fold_epochs,
            "unreachable": self.unreachable,
            "unreachable_reasons": dict(self.unreachable_reasons),
            "device_seconds": self.device_seconds,
            "failed_device_seconds": self.failed_device_seconds,
            "cost_usd": self.cost_usd,
            "energy_kwh": self.energy_kwh,
            "flops": self.flops,
            "tokens": self.tokens,
            "peak_bytes": self.peak_bytes,
            "trained_parameters": self.trained_parameters,
            "total_parameters": self.total_parameters,
            "trained_share": self.trained_share,
            "adapter_bytes": self.adapter_bytes,
            "transfer": {name: asdict(transfer) for name, transfer in self.transfer.items()},
        }


@dataclass(frozen=True)
class CellSummary:
    """One cell: its configurations, best on validation first, complete ones before others."""

    cell: Cell
    configurations: tuple[ConfigurationSummary, ...]

    @property
    def winner(self) -> ConfigurationSummary | None:
        """Best mean validation F1 of those with all folds done; None while there is none."""
        leader = self.leader
        return leader if leader is not None and leader.is_complete else None

    @property
    def leader(self) -> ConfigurationSummary | None:
        """The winner or, while no configuration is complete, the best of those that got furthest."""
        first = next(iter(self.configurations), None)
        return first if first is not None and first.folds else None

    @property
    def num_done(self) -> int:
        """Fold-runs."""
        return sum(len(c.folds) for c in self.configurations)

    @property
    def num_failed(self) -> int:
        """Fold-runs."""
        return sum(len(c.failures) for c in self.configurations)

    @property
    def num_spared(self) -> int:
        """Fold-runs that are not trained to their end, since a race stopped their configuration."""
        return sum(c.num_spared for c in self.configurations)

    @property
    def reasons(self) -> tuple[tuple[str, int], ...]:
        """Why fold-runs failed, the commonest first, with how often."""
        return count_reasons(reason for c in self.configurations for _, reason in c.failures)

    @property
    def device_seconds(self) -> float:
        """Of the whole search, winner and others."""
        return sum(c.device_seconds for c in self.configurations)

    @property
    def cost_usd(self) -> float:
        """Of the whole search, winner and others."""
        return sum(c.cost_usd for c in self.configurations)

    def to_json(self) -> dict[str, Any]:
        """Plain values. F1 and shares run from 0 to 1."""
        return {
            "cell": self.cell.name,
            "task": self.cell.task,
            "corpus": self.cell.corpus,
            "backbone": self.cell.backbone.name,
            "strategy": self.cell.strategy,
            "shots": self.cell.shots,
            "shots_of": self.cell.shots_of,
            "winner": self.winner.configuration.id if self.winner else None,
            "done": self.num_done,
            "failed": self.num_failed,
            "spared": self.num_spared,
            "device_seconds": self.device_seconds,
            "cost_usd": self.cost_usd,
            "configurations": [c.to_json() for c in self.configurations],
        }


@dataclass(frozen=True)
class FrozenGap:
    """What freezing costs and saves on one backbone: winner against winner.

    Args:
        unfrozen: the strategy with a trained backbone whose winner is best on validation.
        gap: its mean strict F1 minus that of the frozen winner, 0 to 1; negative where frozen is
            ahead.
        gap_sd: sample standard deviation over folds of the difference, fold by fold.
        backbone_parameters: how large the backbone is, without what is trained beside it.
        device_share: the frozen winner's device-seconds / the unfrozen winner's.
        adapter_share: bytes to keep per task, likewise.
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
        return self.unfrozen_f1 - self.frozen_f1

    @property
    def name(self) -> str:
        """What tables call it: corpus, backbone and shots."""
        shots = f"/{self.shots} {self.shots_of}" if self.shots else ""
        return f"{self.corpus}/{self.backbone}{shots}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "gap": self.gap}


def summarise(
    records: Iterable[Record],
    num_folds: int,
    cells: Sequence[Cell] | None = None,
    same: Iterable[FoldRun] | None = None,
) -> tuple[CellSummary, ...]:
    """Records as cells, in the order of `cells`.

    A ledger may hold results on other notes, folds or weights, from before the study file was
    changed; those are not mixed. Of each cell only one such basis is summarised, and of each
    configuration whose prompts start from words or a file only one wording or file.

    Args:
        num_folds: of the study; a configuration with fewer is not complete.
        cells: those of the plan; all that the records have where not given, by name. A cell
            without records is there too, empty.
        same: any fold-run of each cell as it is planned now, to tell which basis counts; without
            it the one with the latest record does.
    """
    kept = choose_records(records, cells, same)
    return tuple(_summarise_cell(cell, of_cell, num_folds) for cell, of_cell in kept.items())


def choose_records(
    records: Iterable[Record],
    cells: Sequence[Cell] | None = None,
    same: Iterable[FoldRun] | None = None,
) -> dict[Cell, list[Record]]:
    """Those of cross-validation that `summarise` counts, by cell; see there."""
    bases: dict[Cell, dict[tuple[str, ...], list[Record]]] = {}
    for record in records:
        run = record.fold_run
        if run.is_test:
            continue  # scores of held-out notes choose nothing
        bases.setdefault(run.configuration.cell, {}).setdefault(run.basis, []).append(record)
    planned = list(same or ())
    wanted = {run.configuration.cell: run.basis for run in planned}
    starts = {run.configuration: run.start for run in planned}
    if cells is None:
        cells = sorted(bases, key=lambda cell: cell.name)
    chosen = {}
    for cell in cells:
        by_basis = bases.get(cell, {})
        if cell in wanted:
            kept = by_basis.get(wanted[cell], [])
        else:
            kept = max(by_basis.values(), key=_latest, default=[])
        chosen[cell] = _of_one_start(kept, starts)
    return chosen


def frozen_gaps(summaries: Sequence[CellSummary]) -> tuple[FrozenGap, ...]:
    """Frozen against the best trained one, for each backbone with a winner on both sides; by size."""
    return tuple(frozen_gap(*pair) for pair in frozen_pairs(summaries))


def frozen_pairs(summaries: Sequence[CellSummary]) -> tuple[tuple[CellSummary, CellSummary], ...]:
    """The frozen cell and the best trained one of each backbone with a winner on both sides; by size."""
    pairs = (_best_of_sides(of) for of in _together(summaries, by_backbone=True))
    return tuple(sorted(filter(None, pairs), key=lambda pair: _backbone_parameters(pair[0])))


def best_pairs(summaries: Sequence[CellSummary]) -> tuple[tuple[CellSummary, CellSummary], ...]:
    """The best frozen and the best trained cell of each corpus with several backbones, whichever these are
    of: whether to freeze a large one or to train a smaller one."""
    several = (
        of
        for of in _together(summaries, by_backbone=False)
        if len({summary.cell.backbone.name for summary in of}) > 1
    )
    return tuple(filter(None, map(_best_of_sides, several)))


def _together(summaries: Sequence[CellSummary], *, by_backbone: bool) -> list[list[CellSummary]]:
    """Cells with a winner that may be set against each other."""
    found: dict[tuple[Any, ...], list[CellSummary]] = {}
    for summary in summaries:
        cell = summary.cell
        if summary.winner is not None and cell.strategy in STRATEGIES:
            same = (cell.task, cell.corpus, cell.shots, cell.shots_of)
            key = (*same, cell.backbone.name) if by_backbone else same
            found.setdefault(key, []).append(summary)
    return list(found.values())


def _best_of_sides(among: Sequence[CellSummary]) -> tuple[CellSummary, CellSummary] | None:
    """On validation, the best frozen and the best trained one; None where a side has none."""
    trained, frozen = (
        [s for s in among if STRATEGIES[s.cell.strategy].trains_backbone == trains]
        for trains in (True, False)
    )
    if not (trained and frozen):
        return None
    return max(frozen, key=_validation), max(trained, key=_validation)


def frozen_gap(frozen: CellSummary, unfrozen: CellSummary) -> FrozenGap:
    """Winner against winner; both cells have one."""
    assert frozen.winner is not None and unfrozen.winner is not None
    folds = zip(unfrozen.winner.fold_f1, frozen.winner.fold_f1, strict=True)
    cell = frozen.cell
    return FrozenGap(
        task=cell.task,
        corpus=cell.corpus,
        backbone=cell.backbone.name,
        shots=cell.shots,
        shots_of=cell.shots_of,
        frozen=cell.strategy,
        unfrozen=unfrozen.cell.strategy,
        frozen_f1=frozen.winner.strict.mean or 0.0,
        unfrozen_f1=unfrozen.winner.strict.mean or 0.0,
        gap_sd=spread([one - other for one, other in folds]).sd,
        backbone_parameters=_backbone_parameters(frozen),
        device_share=_ratio(frozen.winner.device_seconds, unfrozen.winner.device_seconds),
        adapter_share=_ratio(frozen.winner.adapter_bytes, unfrozen.winner.adapter_bytes),
    )


def name_gap(frozen: CellSummary, unfrozen: CellSummary) -> str:
    """What a gap is called, within a backbone or between two."""
    gap, there = frozen_gap(frozen, unfrozen), unfrozen.cell.backbone.name
    if gap.backbone == there:
        return gap.name
    return gap.name.replace(gap.backbone, f"{gap.backbone} frozen, {there} trained", 1)


def backbone_sizes(summaries: Sequence[CellSummary]) -> dict[str, int]:
    """Parameters of each backbone with a winner. Only where one is frozen they are known without what is
    trained beside it."""
    sizes: dict[str, int] = {}
    for summary in sorted(summaries, key=lambda s: not STRATEGIES[s.cell.strategy].trains_backbone):
        if summary.winner is not None:
            of = summary.winner
            sizes[summary.cell.backbone.name] = _backbone_parameters(summary) or of.total_parameters
    return sizes


def to_json(summaries: Sequence[CellSummary]) -> dict[str, Any]:
    """Plain values for `raymrc report --json`."""
    return {
        "cells": [summary.to_json() for summary in summaries],
        "frozen_gaps": [gap.to_json() for gap in frozen_gaps(summaries)],
        "done": sum(summary.num_done for summary in summaries),
        "failed": sum(summary.num_failed for summary in summaries),
        "spared": sum(summary.num_spared for summary in summaries),
        "device_seconds": sum(summary.device_seconds for summary in summaries),
        "cost_usd": sum(summary.cost_usd for summary in summaries),
    }


def count_failing(records: Iterable[Record]) -> dict[Cell, int]:
    """How many configurations of each cell have failed since a fold-run of it was last done.

    By the clocks of those who trained; a clock that jumps makes it wrong and nothing else.
    """
    done: dict[Cell, float] = {}
    failed: dict[Cell, dict[str, float]] = {}
    for record in records:
        if record.fold_run.is_test or not record.started_at:
            continue
        configuration = record.fold_run.configuration
        cell, at = configuration.cell, datetime.fromisoformat(record.started_at).timestamp()
        if record.status == "done":
            done[cell] = max(done.get(cell, at), at + record.wall_seconds)
        elif record.status == "failed":
            of_cell = failed.setdefault(cell, {})
            of_cell[configuration.id] = max(of_cell.get(configuration.id, at), at)
    return {
        cell: sum(at >= done.get(cell, at) for at in of_cell.values())
        for cell, of_cell in failed.items()
    }


def _of_one_start(
    records: Sequence[Record], wanted: Mapping[Configuration, tuple[str, ...]]
) -> list[Record]:
    """Of each configuration those that started as wanted; as its latest one where that is not known."""
    latest = {
        record.fold_run.configuration: record.fold_run.start
        for record in sorted(records, key=lambda record: record.started_at)
    }
    starts = latest | dict(wanted)
    return [r for r in records if r.fold_run.start == starts[r.fold_run.configuration]]


def _latest(records: Sequence[Record]) -> str:
    return max(record.started_at for record in records)


def _backbone_parameters(summary: CellSummary) -> int:
    winner = summary.winner
    return 0 if winner is None else winner.total_parameters - winner.trained_parameters


def _validation(summary: CellSummary) -> float:
    return (summary.winner.validation.mean if summary.winner else None) or 0.0


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _summarise_cell(cell: Cell, records: Sequence[Record], num_folds: int) -> CellSummary:
    grouped: dict[Configuration, list[Record]] = {}
    for record in records:
        grouped.setdefault(record.fold_run.configuration, []).append(record)
    configurations = [_summarise_configuration(c, runs, num_folds) for c, runs in grouped.items()]
    return CellSummary(cell, tuple(sorted(configurations, key=_rank)))


def _rank(summary: ConfigurationSummary) -> tuple[float, float, float, str]:
    return rank(
        len(summary.folds),
        summary.validation.mean,
        summary.trained_parameters,
        summary.configuration.id,
    )


def _summarise_configuration(
    configuration: Configuration, records: Sequence[Record], num_folds: int
) -> ConfigurationSummary:
    by_fold = sorted(records, key=lambda record: record.fold_run.fold)
    done = [record for record in by_fold if record.status == "done"]
    strict, lenient = [r.strict for r in done], [r.lenient for r in done]
    fold_f1 = tuple(counts.f1 for counts in strict)
    # Sizes are the same on every fold; a configuration that only failed has none.
    first = next(iter(done), None)
    return ConfigurationSummary(
        configuration=configuration,
        num_folds=num_folds,
        folds=tuple(record.fold_run.fold for record in done),
        fold_f1=fold_f1,
        strict=spread(fold_f1),
        lenient=spread([counts.f1 for counts in lenient]),
        validation=spread([record.validation_f1 for record in done]),
        pooled_strict=pool(strict),
        pooled_lenient=pool(lenient),
        labels_strict=_by_label(done, "strict"),
        labels_lenient=_by_label(done, "lenient"),
        best_epochs=tuple(record.best_epoch for record in done),
        events=spread([record.events.f1 for record in done if record.events != Counts()]),
        labels_events=_by_label(done, "events"),
        subsets=_subsets(done),
        # Records from before they were counted have none, and some folds' would pass for all.
        mentions=_pooled([r.mentions for r in done]) if all(r.mentions for r in done) else {},
        failures=tuple((r.fold_run.fold, r.reason) for r in by_fold if r.status == "failed"),
        stopped=next((r.reason for r in by_fold if r.status == "stopped"), ""),
        fold_epochs=sum(len(record.epochs) for record in by_fold),
        unreachable=sum(record.unreachable for record in done),
        unreachable_reasons=dict(sum((Counter(r.unreachable_reasons) for r in done), Counter())),
        device_seconds=sum(r.device_seconds for r in by_fold if r.status != "failed"),
        failed_device_seconds=sum(
            r.failed_device_seconds + (r.device_seconds if r.status == "failed" else 0.0)
            for r in records
        ),
        cost_usd=sum(r.cost_usd for r in by_fold if r.status != "failed"),
        energy_kwh=_energy([r for r in by_fold if r.status != "failed"]),
        flops=sum(record.flops for record in done),
        tokens=sum(record.tokens for record in done),
        peak_bytes=max((record.peak_bytes for record in done), default=0),
        trained_parameters=first.trained_parameters if first else 0,
        total_parameters=first.total_parameters if first else 0,
        adapter_bytes=first.adapter_bytes if first else 0,
        transfer=_transfers(done),
        fold_runs=tuple(done),
    )


def _transfers(records: Sequence[Record]) -> dict[str, Transfer]:
    """Of each site that all these fold-runs were scored on."""
    names = set.intersection(*({*r.transfer} for r in records)) if records else set()
    found = {}
    for name in sorted(names):
        home, away = [], []
        for record in records:
            there = record.per_label("strict", name)
            here = record.per_label("strict")
            # What the other site has no label for, it cannot be held against.
            home.append(pool(c for label, c in here.items() if label in there).f1)
            away.append(pool(there.values()).f1)
        drops = tuple(h - a for h, a in zip(home, away, strict=True))
        found[name] = Transfer(spread(home), spread(away), spread(drops), drops)
    return found


def _energy(records: Sequence[Record]) -> float:
    """Of a part nobody knows how much there is."""
    watts = [watts_of(record.device) for record in records]
    if not all(watts):
        return 0.0
    return sum(energy_kwh(r.device_seconds, w) for r, w in zip(records, watts, strict=True))


def _subsets(records: Sequence[Record]) -> dict[str, Counts]:
    found = [record.subsets for record in records]
    total = {name: pool(of.get(name, Counts()) for of in found) for name in SUBSETS}
    return {name: counts for name, counts in total.items() if counts.tp + counts.fn}


def _by_label(records: Sequence[Record], mode: str) -> dict[str, Counts]:
    return _pooled([record.per_label(mode) for record in records])


def _pooled(of_records: Iterable[Mapping[str, Counts]]) -> dict[str, Counts]:
    total: dict[str, Counts] = {}
    for by_name in of_records:
        for name, counts in by_name.items():
            total[name] = total.get(name, Counts()) + counts
    return dict(sorted(total.items()))


# --- shown ----------------------------------------------------------------------------------------


def render_summaries(summaries: Sequence[CellSummary]) -> RenderableType:
    """Cells with their winners, and under them what freezing costs, as tables for the terminal."""
    from rich.console import Group
    from rich.table import Table

    table = Table(
        title="F1 in points, mean over folds; winners are chosen on validation notes",
        caption=out_of_reach(summaries),
    )
    table.add_column("corpus / backbone / strategy", no_wrap=True)
    for heading in (
        "strict F1", "sd", "lenient F1", "trained", "saved", "device s", "USD", "folds",
    ):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("winning configuration")
    for summary in summaries:
        table.add_row(summary.cell.name, *_row(summary))
    tables = [
        table,
        *_mention_tables(summaries),
        *_subset_tables(summaries),
        *_event_tables(summaries),
        *_transfer_tables(summaries),
        *_race_tables(summaries),
    ]
    gaps = frozen_gaps(summaries)
    if not gaps:
        return Group(*tables)
    under = Table(title="A frozen backbone against the best trained one")
    under.add_column("corpus / backbone", no_wrap=True)
    for heading in (
        "parameters", "frozen F1", "trained F1", "behind by", "sd", "device time", "kept per task",
    ):  # fmt: skip
        under.add_column(heading, justify="right", no_wrap=True)
    under.add_column("trained one")
    for gap in gaps:
        under.add_row(
            gap.name,
            short_count(gap.backbone_parameters),
            points(gap.frozen_f1),
            points(gap.unfrozen_f1),
            points(gap.gap),
            points(gap.gap_sd),
            percent(gap.device_share),
            percent(gap.adapter_share),
            gap.unfrozen,
        )
    return Group(*tables, under)


def _event_tables(summaries: Sequence[CellSummary]) -> list[RenderableType]:
    from rich.table import Table

    leaders = [(s.cell, s.leader) for s in summaries if s.leader and s.leader.labels_events]
    if not leaders:
        return []
    table = Table(
        title="F1 of events by the 2022 scheme (triggers overlap, spans exact, values equal)"
    )
    table.add_column("corpus / backbone / strategy", no_wrap=True)
    for heading in ("all", "sd", "triggers, pooled", "arguments, pooled"):
        table.add_column(heading, justify="right", no_wrap=True)
    for cell, leader in leaders:
        parts = [
            pool(c for name, c in leader.labels_events.items() if ("." in name) is of_arguments)
            for of_arguments in (False, True)
        ]
        table.add_row(
            cell.name,
            points(leader.events.mean),
            points(leader.events.sd),
            *(points(counts.f1) for counts in parts),
        )
    return [table]


def _subset_tables(summaries: Sequence[CellSummary]) -> list[RenderableType]:
    from rich.table import Table

    leaders = [(s.cell, s.leader) for s in summaries if s.leader is not None and s.leader.subsets]
    if not leaders:
        return []
    table = Table(
        title="Nested, overlapping and discontinuous spans by themselves: strict, all folds together",
        caption=_out_of_reach_of_subsets(leaders),
    )
    return [_of_counts(table, "spans", [(cell, leader.subsets) for cell, leader in leaders])]


def _mention_tables(summaries: Sequence[CellSummary]) -> list[RenderableType]:
    from rich.table import Table

    found = [(s.cell, s.leader.mentions) for s in summaries if s.leader and s.leader.mentions]
    if not found:
        return []
    table = Table(title="Mentions found on the way to relations: strict, all folds together")
    return [_of_counts(table, "mentions", found)]


def _of_counts(
    table: Table, of: str, rows: Iterable[tuple[Cell, Mapping[str, Counts]]]
) -> RenderableType:
    table.add_column("corpus / backbone / strategy", no_wrap=True)
    table.add_column(of, no_wrap=True)
    for heading in ("gold", "precision", "recall", "F1"):
        table.add_column(heading, justify="right", no_wrap=True)
    for cell, by_name in rows:
        for name, c in by_name.items():
            table.add_row(cell.name, name, *counts_row(c, is_share=name == BOTH_FOUND))
    return table


def counts_row(counts: Counts, *, is_share: bool = False) -> tuple[str, str, str, str]:
    """Gold, precision, recall and F1 as tables say them.

    Args:
        is_share: nothing is answered, and recall alone means something.
    """
    return (
        f"{counts.tp + counts.fn:,}",
        points(counts.precision if counts.tp + counts.fp and not is_share else None),
        points(counts.recall),
        points(None if is_share else counts.f1),
    )


def _out_of_reach_of_subsets(leaders: Sequence[tuple[Cell, ConfigurationSummary]]) -> str | None:
    """What of them no answer can be, whatever is learnt."""
    said = []
    if any("discontinuous" in leader.subsets for _, leader in leaders):
        said.append(
            "A discontinuous span counts as missed here, since an answer is one stretch; in the "
            "other tables an answer that is its envelope finds it, as in the 2018 scheme."
        )
    apart = {
        cell.strategy
        for cell, leader in leaders
        if {"nested", "overlapping"} & leader.subsets.keys()
        and cell.strategy in STRATEGIES
        and (
            STRATEGIES[cell.strategy].answers == "tags"
            or leader.configuration.overlapping_answers == "surest"
        )
    }
    if apart:
        said.append(
            f"Of two spans of one label that share characters, {', '.join(sorted(apart))} can say "
            "one alone in a window."
        )
    return " ".join(said) or None


def _transfer_tables(summaries: Sequence[CellSummary]) -> list[RenderableType]:
    from rich.table import Table

    leaders = [(s.cell, s.leader) for s in summaries if s.leader is not None]
    names = sorted({name for _, leader in leaders for name in leader.transfer})
    tables: list[RenderableType] = []
    for name in names:
        table = Table(
            title=f"Strict F1 at {name}, of labels that both sites have, and what is lost on the way"
        )
        table.add_column("corpus / backbone / strategy", no_wrap=True)
        for heading in ("at home", "sd", f"at {name}", "sd", "drop", "sd"):
            table.add_column(heading, justify="right", no_wrap=True)
        for cell, leader in leaders:
            if name in leader.transfer:
                t = leader.transfer[name]
                table.add_row(
                    cell.name,
                    *(points(x) for side in (t.home, t.away, t.drop) for x in (side.mean, side.sd)),
                )
        tables.append(table)
    return tables


def _race_tables(summaries: Sequence[CellSummary]) -> list[RenderableType]:
    from rich.table import Table

    raced = [s for s in summaries if any(c.stopped for c in s.configurations)]
    if not raced:
        return []
    table = Table(
        title="What racing left out",
        caption="Why each was stopped: raymrc report --json, stopped. Stopped ones have no scores.",
    )
    table.add_column("corpus / backbone / strategy", no_wrap=True)
    for heading in ("configurations", "stopped", "fold-epochs", "of the full grid", "device s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for summary in raced:
        of_cell = summary.configurations
        trained = sum(c.fold_epochs for c in of_cell)
        grid = sum(c.configuration.epochs * c.num_folds for c in of_cell)
        table.add_row(
            summary.cell.name,
            str(len(of_cell)),
            str(sum(bool(c.stopped) for c in of_cell)),
            str(trained),
            f"{100 * trained / grid:.0f} %",
            f"{summary.device_seconds:.0f}",
        )
    return [table]


def out_of_reach(summaries: Sequence[CellSummary]) -> str | None:
    """What no answer can be, by strategy; of several backbones where it is most."""
    most: dict[str, ConfigurationSummary] = {}
    for summary in summaries:
        leader, strategy = summary.leader, summary.cell.strategy
        if leader is not None and leader.unreachable:
            most[strategy] = max(leader, most.get(strategy, leader), key=lambda c: c.unreachable)
    if not most:
        return None
    said = "; ".join(
        f"{strategy} {say_lost(c.unreachable, c.pooled_strict, c.unreachable_reasons)}"
        for strategy, c in most.items()
    )
    return f"Gold that no answer can be, and that counts as missed: {said}"


def say_lost(lost: int, counts: Counts, reasons: Mapping[str, int]) -> str:
    """Such as "3 of 127 (2.4 %: beyond context 2, no mention 1)".

    Args:
        reasons: of what is lost; said where they account for all of it, which older records do not.
    """
    gold = counts.tp + counts.fn
    reasons = reasons if sum(reasons.values()) == lost else {}
    why = ", ".join(
        f"{reason.replace('_', ' ')} {times}"
        for reason, times in sorted(reasons.items(), key=lambda one: (-one[1], one[0]))
    )
    return f"{lost} of {gold} ({percent(lost / gold)}{': ' if why else ''}{why})"


def _row(summary: CellSummary) -> list[str]:
    leader = summary.leader
    failed = f", {summary.num_failed} failed" if summary.num_failed else ""
    if leader is None:
        return ["-"] * 7 + [f"0{failed}", "nothing done yet"]
    chosen = describe_configuration(leader.configuration, summary.configurations)
    return [
        points(leader.strict.mean),
        points(leader.strict.sd),
        points(leader.lenient.mean),
        percent(leader.trained_share),
        size_of(leader.adapter_bytes),
        f"{leader.device_seconds:.0f}",
        f"{leader.cost_usd:.4f}",
        f"{summary.num_done}{failed}",
        chosen if summary.winner else f"leading so far: {chosen}",
    ]


def describe_configuration(
    configuration: Configuration, among: Sequence[ConfigurationSummary] | None = None
) -> str:
    """The settings that tell a configuration from others of its cell, such as "learning_rate 0.02".

    Args:
        among: its cell's configurations; without others, the learning rate alone.
    """
    return say_settings(configuration, differing(among or ()))


def say_settings(configuration: Configuration, names: Sequence[str]) -> str:
    """These settings with their values; of none of them the learning rate."""
    shown = names or ["learning_rate"]
    return ", ".join(f"{name} {_short(getattr(configuration, name))}" for name in shown)


def differing(among: Sequence[ConfigurationSummary]) -> list[str]:
    """Settings that are not the same in all of these configurations, in the order of fields."""
    configurations = [one.configuration for one in among]
    return [
        name
        for name in (one.name for one in fields(Configuration) if one.name != "cell")
        if len({getattr(configuration, name) for configuration in configurations}) > 1
    ]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
