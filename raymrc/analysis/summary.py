"""Records summarised: each configuration over its folds, each cell with its winner and its cost.

    records -> configurations -> cells

A cell's winner is the configuration with the best mean F1 on the validation notes, never on the scored
folds: the best of many scored results is too good by luck (docs/decisions/0007).
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from operator import attrgetter
from typing import Any, TypeVar

from raymrc.configuration import Cell, Configuration, FoldRun
from raymrc.costs.prices import energy_kwh, watts_of
from raymrc.ledger.rank import count_reasons, rank
from raymrc.ledger.record import Record, pool_by_name
from raymrc.scoring.counts import Counts, pool
from raymrc.scoring.subsets import SUBSETS

_Item = TypeVar("_Item")
_Key = TypeVar("_Key")

COSTS_AND_SIZES = (
    "device_seconds", "failed_device_seconds", "cost_usd", "energy_kwh", "flops", "tokens", "steps", "rows",
    "peak_bytes", "trained_parameters", "total_parameters", "trained_share", "adapter_bytes",
)  # fmt: skip
"""Attributes of a configuration's summary that `--json` repeats unchanged."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation over folds; None with too few folds."""

    mean: float | None = None
    sd: float | None = None


def spread(values: Sequence[float]) -> Spread:
    return Spread(
        mean=statistics.fmean(values) if values else None,
        sd=statistics.stdev(values) if len(values) > 1 else None,
    )


@dataclass(frozen=True, slots=True)
class Transfer:
    """A configuration at another site, over its finished folds, on labels that both sites have.

    Args:
        home: strict micro F1 on the scored folds.
        away: strict micro F1 of each fold's model on all notes of the other site.
        drop: home minus away, fold by fold; negative where it does better there.
        fold_drops: one per fold-run.
    """

    home: Spread
    away: Spread
    drop: Spread
    fold_drops: tuple[float, ...]


@dataclass(frozen=True)
class ConfigurationSummary:
    """One configuration over its finished folds.

    Args:
        num_folds: folds of the study; `folds` are the finished ones, ascending.
        fold_f1: strict micro F1 of each finished fold, in the order of `folds`.
        best_epochs: the chosen epoch of each finished fold, likewise.
        strict, lenient: micro F1 over folds.
        validation: strict micro F1 on the validation notes, over folds; this chooses the winner.
        pooled_strict, pooled_lenient: counts pooled over the finished folds.
        labels_strict, labels_lenient: pooled counts by label.
        events: micro F1 of events by the 2022 scheme, over folds, if the task has events.
        labels_events: pooled counts by event and argument.
        subsets: pooled strict counts of nested, overlapping and discontinuous spans, for subsets that hold
            gold spans.
        mentions: pooled strict counts of mentions found on the way to relations, by label.
        failures: (fold, reason) of each failed fold.
        stopped: why its race stopped it; "" where it did not.
        fold_epochs: epochs trained on all folds, finished or not.
        device_seconds, cost_usd: of finished folds and of folds that a race paused or stopped.
        energy_kwh: estimated from the devices' power (`prices.energy_kwh`); 0 if a device is unknown.
        steps, rows, tokens, flops: of training, sums over the finished folds; steps and rows are 0 if a
            record is from before they were counted.
        failed_device_seconds: of failed tries, all folds.
        peak_bytes: the largest of the folds.
        transfer: by name of the other site.
        fold_runs: the finished ones in the order of `folds`, with their counts per note.
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
    steps: int = 0
    rows: int = 0
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
        """Validation F1 gained in the last third of the epochs, mean over fold-runs, 0 to 1; None with fewer
        than three epochs."""
        curves = [[e.validation_f1 for e in record.epochs] for record in self.fold_runs]
        if not curves or min(map(len, curves)) < 3:
            return None
        return statistics.fmean(max(f1) - max(f1[: -(len(f1) // 3)]) for f1 in curves)

    @property
    def curve(self) -> tuple[tuple[float, float], ...]:
        """(optimiser steps, strict F1 on validation notes, 0 to 1) after each epoch, means over fold-runs; ()
        where steps are unknown."""
        if not self.steps:
            return ()
        folds = [[epoch.validation_f1 for epoch in record.epochs] for record in self.fold_runs]
        per_epoch = self.steps / sum(map(len, folds))
        return tuple(
            (number * per_epoch, statistics.fmean(f1))
            for number, f1 in enumerate(zip(*folds, strict=False), start=1)
        )

    @property
    def num_spared(self) -> int:
        """Fold-runs cut short because the race stopped the configuration."""
        return self.num_folds - len(self.folds) - len(self.failures) if self.stopped else 0

    @property
    def backbone_parameters(self) -> int:
        """Frozen backbone alone; next to nothing where the backbone is trained (see `backbone_sizes`)."""
        return self.total_parameters - self.trained_parameters

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
            **{name: getattr(self, name) for name in COSTS_AND_SIZES},
            "transfer": {name: asdict(transfer) for name, transfer in self.transfer.items()},
        }


@dataclass(frozen=True)
class CellSummary:
    """One cell with its configurations, complete ones first, then by validation F1, best first.

    Device time and cost are those of the whole search, not only of the winner.
    """

    cell: Cell
    configurations: tuple[ConfigurationSummary, ...]

    @property
    def winner(self) -> ConfigurationSummary | None:
        """The complete configuration with the best mean validation F1; None while none is complete."""
        leader = self.leader
        return leader if leader is not None and leader.is_complete else None

    @property
    def leader(self) -> ConfigurationSummary | None:
        """The winner or, while no configuration is complete, the best of those with most folds done."""
        first = next(iter(self.configurations), None)
        return first if first is not None and first.folds else None

    @property
    def num_done(self) -> int:
        return sum(len(c.folds) for c in self.configurations)

    @property
    def num_failed(self) -> int:
        return sum(len(c.failures) for c in self.configurations)

    @property
    def num_spared(self) -> int:
        """Fold-runs cut short because a race stopped their configuration."""
        return sum(c.num_spared for c in self.configurations)

    def num_left(self, num_planned: int) -> int:
        """Planned fold-runs that are neither done nor failed nor spared."""
        return num_planned - self.num_done - self.num_failed - self.num_spared

    @property
    def reasons(self) -> tuple[tuple[str, int], ...]:
        """(reason, count) of failed fold-runs, most frequent first."""
        return count_reasons(reason for c in self.configurations for _, reason in c.failures)

    @property
    def device_seconds(self) -> float:
        return sum(c.device_seconds for c in self.configurations)

    @property
    def cost_usd(self) -> float:
        return sum(c.cost_usd for c in self.configurations)

    def to_json(self) -> dict[str, Any]:
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


def winner_of(summary: CellSummary) -> ConfigurationSummary:
    """Only for cells that have a winner."""
    assert summary.winner is not None
    return summary.winner


def winners(summaries: Iterable[CellSummary]) -> list[tuple[CellSummary, ConfigurationSummary]]:
    """Cells that have a winner, with it."""
    return [(summary, summary.winner) for summary in summaries if summary.winner is not None]


def leaders(summaries: Iterable[CellSummary]) -> list[tuple[CellSummary, ConfigurationSummary]]:
    """Cells with their winner or, before there is one, their leader."""
    return [(summary, summary.leader) for summary in summaries if summary.leader is not None]


def group_by(items: Iterable[_Item], key: Callable[[_Item], _Key]) -> dict[_Key, list[_Item]]:
    """Groups in the order of their first items."""
    found: dict[_Key, list[_Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def summarise(
    records: Iterable[Record],
    num_folds: int,
    cells: Sequence[Cell] | None = None,
    same: Iterable[FoldRun] | None = None,
) -> tuple[CellSummary, ...]:
    """Records as cells, in the order of `cells`.

    A ledger may hold results on other notes, folds or weights, from before the study file changed. Only one
    such basis per cell is summarised; likewise one wording or file per configuration whose prompts start
    from words or a file.

    Args:
        num_folds: of the study; a configuration with fewer folds is not complete.
        cells: those of the plan, empty ones included; by default all cells of the records, by name.
        same: fold-runs as planned now, at least one per cell; they choose the basis. By default the basis
            with the latest record counts.
    """
    kept = choose_records(records, cells, same)
    return tuple(_summarise_cell(cell, runs, num_folds) for cell, runs in kept.items())


def choose_records(
    records: Iterable[Record],
    cells: Sequence[Cell] | None = None,
    same: Iterable[FoldRun] | None = None,
) -> dict[Cell, list[Record]]:
    """Cross-validation records that count, by cell; arguments as in `summarise`."""
    started_at = attrgetter("started_at")
    # Scores of held-out notes choose nothing.
    validated = (record for record in records if not record.fold_run.is_test)
    by_cell = group_by(validated, lambda record: record.fold_run.configuration.cell)
    planned = list(same or ())
    wanted = {run.configuration.cell: run.basis for run in planned}
    starts = {run.configuration: run.start for run in planned}
    chosen = {}
    for cell in sorted(by_cell, key=lambda cell: cell.name) if cells is None else cells:
        by_basis = group_by(by_cell.get(cell, ()), lambda record: record.fold_run.basis)
        if cell in wanted:
            kept = by_basis.get(wanted[cell], [])
        else:
            kept = max(by_basis.values(), key=lambda runs: max(map(started_at, runs)), default=[])
        # Prompts must start as planned; by default as those of the configuration's latest record.
        latest = {r.fold_run.configuration: r.fold_run.start for r in sorted(kept, key=started_at)}
        expected = latest | {c: starts[c] for c in latest.keys() & starts.keys()}
        chosen[cell] = [r for r in kept if r.fold_run.start == expected[r.fold_run.configuration]]
    return chosen


def count_failing(records: Iterable[Record]) -> dict[Cell, int]:
    """Number of configurations per cell that failed since the cell's last finished fold-run.

    Times are the hosts' own; a clock that jumps makes this count wrong and nothing else.
    """
    done: dict[Cell, float] = {}
    failed: dict[Cell, dict[str, float]] = {}
    for record in records:
        if record.fold_run.is_test or not record.started_at:
            continue
        configuration = record.fold_run.configuration
        cell, at = configuration.cell, datetime.fromisoformat(record.started_at).timestamp()
        if record.is_done:
            done[cell] = max(done.get(cell, at), at + record.wall_seconds)
        elif record.is_failed:
            of_cell = failed.setdefault(cell, {})
            of_cell[configuration.id] = max(of_cell.get(configuration.id, at), at)
    return {
        cell: sum(at >= done.get(cell, at) for at in of_cell.values())
        for cell, of_cell in failed.items()
    }


def _summarise_cell(cell: Cell, records: Sequence[Record], num_folds: int) -> CellSummary:
    grouped = group_by(records, lambda record: record.fold_run.configuration)
    ranked = sorted(
        (_summarise_configuration(c, runs, num_folds) for c, runs in grouped.items()),
        key=lambda c: rank(
            len(c.folds), c.validation.mean, c.trained_parameters, c.configuration.id
        ),
    )
    return CellSummary(cell, tuple(ranked))


def _summarise_configuration(
    configuration: Configuration, records: Sequence[Record], num_folds: int
) -> ConfigurationSummary:
    by_fold = sorted(records, key=lambda record: record.fold_run.fold)
    done = [record for record in by_fold if record.is_done]
    strict, lenient = [r.strict for r in done], [r.lenient for r in done]
    fold_f1 = tuple(counts.f1 for counts in strict)
    are_steps_known = all(record.steps for record in done)
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
        labels_strict=pool_by_name(record.per_label("strict") for record in done),
        labels_lenient=pool_by_name(record.per_label("lenient") for record in done),
        best_epochs=tuple(record.best_epoch for record in done),
        events=spread([record.events.f1 for record in done if record.events != Counts()]),
        labels_events=pool_by_name(record.per_label("events") for record in done),
        subsets=_subsets(done),
        # Older records have no mention counts, and a sum over some folds would pass for all.
        mentions=pool_by_name(r.mentions for r in done) if all(r.mentions for r in done) else {},
        failures=tuple((r.fold_run.fold, r.reason) for r in by_fold if r.is_failed),
        stopped=next((r.reason for r in by_fold if r.is_stopped), ""),
        fold_epochs=sum(len(record.epochs) for record in by_fold),
        unreachable=sum(record.unreachable for record in done),
        unreachable_reasons=dict(sum((Counter(r.unreachable_reasons) for r in done), Counter())),
        device_seconds=sum(r.device_seconds for r in by_fold if not r.is_failed),
        failed_device_seconds=sum(
            r.failed_device_seconds + (r.device_seconds if r.is_failed else 0.0) for r in records
        ),
        cost_usd=sum(r.cost_usd for r in by_fold if not r.is_failed),
        energy_kwh=_energy([r for r in by_fold if not r.is_failed]),
        flops=sum(record.flops for record in done),
        tokens=sum(record.tokens for record in done),
        steps=sum(record.steps for record in done) if are_steps_known else 0,
        rows=sum(record.rows for record in done) if are_steps_known else 0,
        peak_bytes=max((record.peak_bytes for record in done), default=0),
        trained_parameters=first.trained_parameters if first else 0,
        total_parameters=first.total_parameters if first else 0,
        adapter_bytes=first.adapter_bytes if first else 0,
        transfer=_transfers(done),
        fold_runs=tuple(done),
    )


def _transfers(records: Sequence[Record]) -> dict[str, Transfer]:
    """For each site that all these fold-runs were scored on."""
    names = set.intersection(*({*r.transfer} for r in records)) if records else set()
    found = {}
    for name in sorted(names):
        home, away = [], []
        for record in records:
            away_counts = record.per_label("strict", name)
            home_counts = record.per_label("strict")
            # Labels that the other site lacks do not count at home either.
            home.append(pool(c for label, c in home_counts.items() if label in away_counts).f1)
            away.append(pool(away_counts.values()).f1)
        drops = tuple(h - a for h, a in zip(home, away, strict=True))
        found[name] = Transfer(spread(home), spread(away), spread(drops), drops)
    return found


def _energy(records: Sequence[Record]) -> float:
    """0 if any device is unknown: a partial sum would mislead."""
    watts = [watts_of(record.device) for record in records]
    if not all(watts):
        return 0.0
    return sum(energy_kwh(r.device_seconds, w) for r, w in zip(records, watts, strict=True))


def _subsets(records: Sequence[Record]) -> dict[str, Counts]:
    total = pool_by_name(record.subsets for record in records)
    return {name: total[name] for name in SUBSETS if name in total and total[name].gold}


def settings_text(configuration: Configuration, names: Sequence[str]) -> str:
    """These settings, such as "learning_rate 0.02"; without names, the learning rate."""
    shown = names or ["learning_rate"]
    return ", ".join(f"{name} {short_value(getattr(configuration, name))}" for name in shown)


def differing(among: Sequence[ConfigurationSummary]) -> list[str]:
    """Settings whose value differs among these configurations, in the order of fields."""
    return [
        setting.name
        for setting in fields(Configuration)
        if setting.name != "cell"
        and len({getattr(summary.configuration, setting.name) for summary in among}) > 1
    ]


def short_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
