"""Who wants which fold-runs, who trains them, and what came of it. No Ray here: an actor holds it.

    trial: submit, collect, collect ...            host: exchange(what came of it) -> what to do next

A host has one backbone at a time, and the lanes of fold-runs on it. A worker group is a host of several
devices that hold one model together, one fold-run at a time. What a host had open when it is lost
goes to another one, from where it was last saved.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raymrc.model.strategies import STRATEGIES
from raymrc.study.configuration import Backbone, Cell, FoldRun
from raymrc.study.record import Epoch, Record

DEATHS = 3
"""So many hosts may die under one fold-run, the last of them with nobody else on it, before it
counts as failed."""

EPOCH_SECONDS = 1.0
"""Epochs of one fold-run are passed on no more often than this; each is a round trip to the driver."""


Crew = tuple[int, int]
"""The least and the most devices that a host is of."""

SOLO: Crew = (1, 1)


@dataclass(frozen=True, slots=True)
class Report:
    """What a host says of a fold-run: an epoch, that its lane was saved, or its end; `refused` if its
    lane had no room beside the others.

    Args:
        saved: under which name, in the study's files.
        record: as `Record.to_json` writes it: thousands of counts, which nobody reads on the way.
    """

    key: str
    epoch: Epoch | None = None
    saved: str | None = None
    record: str | None = None
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """What a host is to do: close lanes, open others (from where they were saved), or go.

    Args:
        evacuate: its machine will be taken away: save all that is open, hand it over and go.
    """

    close: tuple[str, ...] = ()
    open: tuple[tuple[FoldRun, str | None], ...] = ()
    leave: bool = False
    evacuate: bool = False

    def __bool__(self) -> bool:
        return bool(self.close or self.open or self.leave or self.evacuate)


@dataclass(eq=False)
class _Wish:
    """A fold-run that a trial wants trained."""

    fold_run: FoldRun
    trial: str
    crew: Crew
    deaths: int = 0
    told_at: float = -math.inf

    @property
    def backbone(self) -> Backbone:
        return self.fold_run.configuration.cell.backbone

    @property
    def is_alone(self) -> bool:
        """Whether it wants a host of its own: it trains the backbone, or hosts die of it."""
        strategy = STRATEGIES[self.fold_run.configuration.cell.strategy]
        return self.crew != SOLO or strategy.trains_backbone or self.deaths >= DEATHS - 1


@dataclass(eq=False)
class _Host:
    crew: Crew = SOLO
    backbone: Backbone | None = None
    wishes: dict[str, _Wish] = field(default_factory=dict)
    closing: set[str] = field(default_factory=set)
    most: int | None = None
    idle_since: float | None = None


class Board:
    """
    Args:
        lanes: open on one host at once, at most.
        max_devices: of all hosts together.
        fill: fold-runs that are worth one more host.
        idle_seconds: a host without work for so long goes.
        crews: of cells that do not train on one device.
        saved: where lanes were saved by an earlier run, by key.
    """

    def __init__(
        self,
        *,
        lanes: int,
        max_devices: int,
        fill: int = 1,
        idle_seconds: float = 5.0,
        crews: Mapping[Cell, Crew] | None = None,
        saved: Mapping[str, str] | None = None,
    ) -> None:
        self.lanes = lanes
        self.max_devices = max_devices
        self.fill = fill
        self.idle_seconds = idle_seconds
        self.crews = crews or {}
        self._saved = dict(saved or {})
        self._queue: list[_Wish] = []
        self._wishes: dict[str, _Wish] = {}
        self._hosts: dict[str, _Host] = {}
        self._results: dict[str, list[dict[str, Any]]] = {}
        self._over: set[str] = set()

    # --- trials -----------------------------------------------------------------------------------

    def submit(self, trial: str, fold_runs: Iterable[FoldRun]) -> None:
        """A trial wants these trained, after all that is wanted already."""
        self._results[trial] = []
        for run in fold_runs:
            wish = _Wish(run, trial, self.crews.get(run.configuration.cell, SOLO))
            self._wishes[run.key] = wish
            self._queue.append(wish)

    def collect(self, trial: str) -> tuple[list[dict[str, Any]], bool]:
        """What is new of a trial's fold-runs, as Tune is told it, and whether that was all."""
        if trial not in self._results:  # over, or not heard of yet
            return [], trial in self._over
        results, self._results[trial] = self._results[trial], []
        is_over = not any(wish.trial == trial for wish in self._wishes.values())
        if is_over:
            self._end(trial)
        return results, is_over

    def withdraw(self, trial: str) -> None:
        """A trial is over: what is left of it is closed and not begun."""
        self._queue = [wish for wish in self._queue if wish.trial != trial]
        for host in self._hosts.values():
            dropped = [key for key, wish in host.wishes.items() if wish.trial == trial]
            for key in dropped:
                del host.wishes[key]
                host.closing.add(key)
        self._wishes = {k: wish for k, wish in self._wishes.items() if wish.trial != trial}
        self._end(trial)

    def close_cell(self, cell: Cell) -> None:
        """What no host has of a cell is not begun; what is under way ends as it would have."""
        for wish in [w for w in self._queue if w.fold_run.configuration.cell == cell]:
            self._queue.remove(wish)
            del self._wishes[wish.fold_run.key]

    def _end(self, trial: str) -> None:
        self._results.pop(trial, None)
        self._over.add(trial)

    # --- hosts ------------------------------------------------------------------------------------

    def wanted(self, there: Mapping[Crew, int]) -> Counter[Crew]:
        """How many hosts of each crew what is wanted and not settled makes worth it.

        Those that are there keep their devices until they go. What is free goes to whoever is first in
        the queue; where that is too little for a group, the group is not asked for: it would hold
        nothing and keep others waiting.

        Args:
            there: hosts that have started or were asked for.
        """
        needs = Counter(wish.crew for wish in self._wishes.values() if wish.is_alone)
        needs[SOLO] += math.ceil(sum(not w.is_alone for w in self._wishes.values()) / self.fill)
        wanted = Counter({crew: min(need, there.get(crew, 0)) for crew, need in needs.items()})
        free = self.max_devices - sum(crew[1] * number for crew, number in there.items())
        for crew in dict.fromkeys(wish.crew for wish in self._queue):
            more = min(needs[crew] - wanted[crew], free // crew[1])
            if more > 0:
                wanted[crew] += more
                free -= more * crew[1]
        return +wanted

    @property
    def queued(self) -> tuple[FoldRun, ...]:
        """What no host has."""
        return tuple(wish.fold_run for wish in self._queue)

    def exchange(
        self, host: str, reports: Sequence[Report], now: float, crew: Crew = SOLO
    ) -> Order:
        """A host says what came of its lanes, and hears what to do.

        Args:
            now: seconds, of any clock that goes on.
        """
        mine = self._hosts.setdefault(host, _Host(crew))
        self.hear(host, reports, now)
        close = tuple(mine.closing)
        mine.closing.clear()
        opened = []
        while (wish := self._next_for(mine)) is not None:
            self._queue.remove(wish)
            mine.backbone = wish.backbone
            mine.wishes[wish.fold_run.key] = wish
            wish.told_at = now
            opened.append((wish.fold_run, self._saved.get(wish.fold_run.key)))
        if mine.wishes:
            mine.idle_since = None
        elif mine.idle_since is None:
            mine.idle_since = now
        leave = (
            mine.idle_since is not None
            and not any(wish.crew == mine.crew for wish in self._queue)
            and now - mine.idle_since >= self.idle_seconds
        )
        if leave:
            del self._hosts[host]
        return Order(close, tuple(opened), leave)

    def is_idle(self, host: str) -> bool:
        return host in self._hosts and not self._hosts[host].wishes

    def release(self, host: str, reports: Sequence[Report], now: float) -> None:
        """A host hands over what it has open, and goes; that is nobody's fault."""
        self.hear(host, reports, now)
        self.lost(host, counts=False)

    def hear(self, host: str, reports: Sequence[Report], now: float) -> None:
        """What came of a host's lanes, by itself."""
        mine = self._hosts.get(host)
        if mine is None:
            return
        for report in reports:
            wish = mine.wishes.get(report.key)
            if wish is not None:  # else it was withdrawn meanwhile
                self._receive(mine, wish, report, now)

    def _receive(self, host: _Host, wish: _Wish, report: Report, now: float) -> None:
        key = report.key
        if report.refused:
            del host.wishes[key]
            host.most = len(host.wishes)
            self._queue.insert(0, wish)
            return
        if report.saved is not None:
            self._saved[key] = report.saved
        fold = wish.fold_run.fold
        if report.record is not None:
            self._settle(wish, report.record)
            del host.wishes[key]
            host.most = None
        elif report.epoch is not None and now - wish.told_at >= EPOCH_SECONDS:
            wish.told_at = now
            epoch = report.epoch
            self._results[wish.trial].append(
                {"fold": fold, "epoch": epoch.epoch, "f1": epoch.validation_f1}
            )

    def _settle(self, wish: _Wish, record: str) -> None:
        key = wish.fold_run.key
        del self._wishes[key]
        self._results[wish.trial].append({"fold": wish.fold_run.fold, "record": record})
        self._saved.pop(key, None)

    def _next_for(self, host: _Host) -> _Wish | None:
        """What this host opens next, beside what it has; its own backbone first."""
        num_open = len(host.wishes)
        mine = [wish for wish in self._queue if wish.crew == host.crew]
        if not num_open:
            own = (wish for wish in mine if wish.backbone == host.backbone)
            return next(own, None) or next(iter(mine), None)
        # At a study's end nobody takes more than an even share.
        shared = sum(not wish.is_alone for wish in self._wishes.values())
        taken = sum(
            h.crew[1]
            for h in self._hosts.values()
            if h.crew != SOLO or any(w.is_alone for w in h.wishes.values())
        )
        hosts = min(self.max_devices - taken, math.ceil(shared / self.fill))
        share = math.ceil(shared / max(1, hosts))
        if num_open >= min(self.lanes, share, self.lanes if host.most is None else host.most):
            return None
        if any(wish.is_alone for wish in host.wishes.values()):
            return None
        fitting = (w for w in mine if w.backbone == host.backbone and not w.is_alone)
        return next(fitting, None)

    def lost(self, host: str, *, counts: bool = True) -> list[FoldRun]:
        """A host is gone; its lanes go back to the head of the queue.

        Args:
            counts: whether one of its lanes may have been the cause; not so if the machine went.

        Returns:
            Fold-runs under which too many hosts died: the caller has to `fail` them.
        """
        gone = self._hosts.pop(host, None)
        if gone is None:
            return []
        hopeless = []
        for wish in reversed(gone.wishes.values()):
            wish.deaths += counts
            self._queue.insert(0, wish)
            if wish.deaths >= DEATHS:
                hopeless.append(wish.fold_run)
        return hopeless

    def fail(self, records: Iterable[Record]) -> None:
        """Settles queued fold-runs without training them."""
        for record in records:
            wish = self._wishes[record.key]
            self._queue.remove(wish)
            self._settle(wish, record.to_json())
