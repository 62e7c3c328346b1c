"""Who wants which fold-runs, who trains them, and what came of it. No Ray here: an actor holds it.

    trial: submit, collect, collect ...            host: exchange(what came of it) -> what to do next

A host has one backbone at a time, and the lanes of fold-runs on it. A worker group is a host of several
devices that hold one model together, one fold-run at a time. What a host had open when it is lost
goes to another one, from where it was last saved. One that has nothing to do is handed lanes by one that
has more than its share.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raymrc.configuration import Backbone, Cell, FoldRun
from raymrc.costs.budget import Need
from raymrc.ledger.record import Epoch, Record
from raymrc.model.strategies import STRATEGIES
from raymrc.scheduling.allowance import Allowance

MAX_HOST_DEATHS = 3
"""So many hosts may die under one fold-run, the last of them with nobody else on it, before it
counts as failed."""

EPOCH_SECONDS = 1.0
"""Epochs of one fold-run are passed on no more often than this; each is a round trip to the driver."""

SETTLING_SECONDS = 10.0
"""A host that has opened or handed over lanes is asked for none so long: each costs a save and a start."""

WAITING_SECONDS = 2.0
"""A host has had nothing for so long before it is handed lanes: for a moment it is so between two trials."""

CHECKPOINT_SECONDS = 300.0
"""A host that could not save what it was asked for keeps it, and is not asked again for so long."""


WorkerRange = tuple[int, int]
"""The least and the most devices that a host is of."""

SINGLE_DEVICE: WorkerRange = (1, 1)


@dataclass(frozen=True, slots=True)
class HostReport:
    """What a host says of a fold-run: an epoch, that its lane was saved, or its end; `refused` if its
    lane had no room beside the others.

    Args:
        saved: under which name, in the study's files.
        record: as `Record.to_json` writes it: thousands of counts, which nobody reads on the way.
        pauses: the record is of a lane that pauses where it was ordered to, and may go on later.
        hands_over: it was saved and closed for another host to go on with.
        saving_seconds: that saving took; 0 where that is not known.
    """

    key: str
    epoch: Epoch | None = None
    saved: str | None = None
    record: str | None = None
    refused: bool = False
    pauses: bool = False
    hands_over: bool = False
    saving_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Order:
    """What a host is to do: close lanes, open others (from where they were saved), or go.

    Args:
        hand_over: lanes to save, within an epoch too, and close: another host will have them.
        until: by key, the epoch at which a lane that is opened is to be saved and closed again.
        evacuate: its machine will be taken away: save all that is open, hand it over and go.
    """

    close: tuple[str, ...] = ()
    open: tuple[tuple[FoldRun, str | None], ...] = ()
    until: Mapping[str, int] = field(default_factory=dict)
    hand_over: tuple[str, ...] = ()
    leave: bool = False
    evacuate: bool = False

    def __bool__(self) -> bool:
        return bool(self.close or self.open or self.hand_over or self.leave or self.evacuate)


@dataclass(eq=False)
class _Wish:
    """A fold-run that a trial wants trained.

    Args:
        is_back: it was handed over to a host that had no room for it.
    """

    fold_run: FoldRun
    trial: str
    crew: WorkerRange
    until: int | None = None
    turn: int = 0
    deaths: int = 0
    is_back: bool = False
    told_at: float = -math.inf
    key: str = ""

    def __post_init__(self) -> None:
        self.key = self.fold_run.key  # hashed once

    @property
    def backbone(self) -> Backbone:
        return self.fold_run.configuration.cell.backbone

    @property
    def is_alone(self) -> bool:
        """Whether it wants a host of its own: it trains the backbone, or hosts die of it."""
        strategy = STRATEGIES[self.fold_run.configuration.cell.strategy]
        return (
            self.crew != SINGLE_DEVICE
            or strategy.trains_backbone
            or self.deaths >= MAX_HOST_DEATHS - 1
        )


@dataclass(eq=False)
class _Host:
    crew: WorkerRange = SINGLE_DEVICE
    backbone: Backbone | None = None
    wishes: dict[str, _Wish] = field(default_factory=dict)
    closing: set[str] = field(default_factory=set)
    most: int | None = None
    idle_since: float | None = None
    heard_at: float | None = None
    asked_for: tuple[str, ...] = ()
    keeps_until: float = -math.inf

    @property
    def shares(self) -> bool:
        """Whether it has lanes beside each other, or may have."""
        return self.crew == SINGLE_DEVICE and not any(
            wish.is_alone for wish in self.wishes.values()
        )


@dataclass(eq=False, slots=True)
class _Paying:
    """What is left while fold-runs are given out, one after another.

    Args:
        room: device-seconds for what is yet to begin.
        beside: device-seconds that what the host has still wants.
        is_first: nothing trains.
        is_host: whether all is for one host.
    """

    allowance: Allowance
    room: float
    beside: float
    is_first: bool
    is_host: bool

    def is_enough_for(self, wish: _Wish) -> bool:
        return self.allowance.fits(
            wish.key,
            self.room,
            is_first=self.is_first,
            host=self.beside,
            devices=wish.crew[1] * self.allowance.unit,
        )

    def take(self, wish: _Wish) -> None:
        wants = self.allowance.wants(wish.key)
        self.room -= wants
        self.beside += wants if self.is_host else 0.0
        self.is_first = False


class WorkQueue:
    """
    Args:
        lanes: open on one host at once, at most.
        max_devices: of all hosts together.
        fill: fold-runs that are worth one more host.
        idle_seconds: a host without work for so long goes.
        crews: of cells that do not train on one device.
        saved: where lanes were saved by an earlier run, by key.
        allowance: where the study has a budget.
    """

    def __init__(
        self,
        *,
        lanes: int,
        max_devices: int,
        fill: int = 1,
        idle_seconds: float = 5.0,
        crews: Mapping[Cell, WorkerRange] | None = None,
        saved: Mapping[str, str] | None = None,
        allowance: Allowance | None = None,
    ) -> None:
        self.lanes = lanes
        self.max_devices = max_devices
        self.fill = fill
        self.idle_seconds = idle_seconds
        self.crews = crews or {}
        self.allowance = allowance
        self._saved = dict(saved or {})
        self._queue: list[_Wish] = []
        self._wishes: dict[str, _Wish] = {}
        self._hosts: dict[str, _Host] = {}
        self._results: dict[str, list[dict[str, Any]]] = {}
        self._over: set[str] = set()
        self._staying: set[str] = set()
        self._idle: set[str] = set()
        # Between two hosts: as good as under way, though they may be in the queue for a moment.
        self._moving: set[str] = set()

    # --- trials -----------------------------------------------------------------------------------

    def submit(
        self,
        trial: str,
        fold_runs: Iterable[FoldRun],
        until: Mapping[str, int] | None = None,
        needs: Mapping[str, Need] | None = None,
        *,
        stays: bool = False,
        turn: int = 0,
    ) -> None:
        """A trial wants these trained, after all that was wanted in an earlier turn, or in this one.

        Args:
            until: by key, the epoch at which to pause; others are trained to their end.
            needs: what they are expected to cost from beginning to end, by key, as far as it is known.
            stays: whether the trial may be back for more, and is over only when it is withdrawn.
            turn: counts what the driver hands in. Calls of an actor may overtake each other, and of what was
                handed in last a trial's process may be yet to come: finished fold-runs would wait for it.
        """
        self._results.setdefault(trial, [])
        self._idle.discard(trial)
        if stays:
            self._staying.add(trial)
        first = next((i for i, w in enumerate(self._queue) if w.turn > turn), len(self._queue))
        for place, run in enumerate(fold_runs, first):
            crew = self.crews.get(run.configuration.cell, SINGLE_DEVICE)
            wish = _Wish(run, trial, crew, (until or {}).get(run.key), turn)
            self._wishes[run.key] = wish
            self._queue.insert(place, wish)
            if self.allowance is not None:
                need = (needs or {}).get(run.key)
                is_saved = run.key in self._saved
                self.allowance.expect(run, need, is_saved=is_saved, until=wish.until)
        if self.allowance is not None:  # what was begun goes before what was not
            self._queue.sort(key=lambda wish: wish.key not in self._saved)

    def collect(self, trial: str) -> tuple[list[dict[str, Any]], bool]:
        """What is new of a trial's fold-runs, as Tune is told it, and whether that was all.

        One that stays is not over then: the last that it is told says `is_idle`.
        """
        if trial not in self._results:  # over, or not heard of yet
            return [], trial in self._over
        results, self._results[trial] = self._results[trial], []
        if any(wish.trial == trial for wish in self._wishes.values()) or trial in self._idle:
            return results, False
        if trial in self._staying:
            self._idle.add(trial)
            *before, last = results or [{}]
            return [*before, {**last, "is_idle": True}], False
        self._end(trial)
        return results, True

    def withdraw(self, trial: str) -> None:
        """A trial is over: what is left of it is closed and not begun."""
        self._queue = [wish for wish in self._queue if wish.trial != trial]
        for host in self._hosts.values():
            dropped = [key for key, wish in host.wishes.items() if wish.trial == trial]
            for key in dropped:
                del host.wishes[key]
                host.closing.add(key)
        self._wishes = {k: wish for k, wish in self._wishes.items() if wish.trial != trial}
        self._moving &= self._wishes.keys()
        self._end(trial)

    def close_cell(self, cell: Cell) -> None:
        """What no host has of a cell is not begun; what is under way ends as it would have."""
        of_cell = [w for w in self._queue if w.fold_run.configuration.cell == cell]
        for wish in [w for w in of_cell if w.key not in self._moving]:
            self._queue.remove(wish)
            del self._wishes[wish.fold_run.key]

    def _end(self, trial: str) -> None:
        self._results.pop(trial, None)
        self._staying.discard(trial)
        self._idle.discard(trial)
        self._over.add(trial)

    # --- hosts ------------------------------------------------------------------------------------

    def wanted(self, there: Mapping[WorkerRange, int]) -> Counter[WorkerRange]:
        """How many hosts of each crew what is wanted and not settled makes worth it.

        Those that are there keep their devices until they go. What is free goes to whoever is first in
        the queue; where that is too little for a group, the group is not asked for: it would hold
        nothing and keep others waiting.

        Args:
            there: hosts that have started or were asked for.
        """
        queue = self._affordable()
        wishes = [*self._open.values(), *queue]
        needs = Counter(wish.crew for wish in wishes if wish.is_alone)
        needs[SINGLE_DEVICE] += math.ceil(sum(not wish.is_alone for wish in wishes) / self.fill)
        wanted = Counter({crew: min(need, there.get(crew, 0)) for crew, need in needs.items()})
        free = self.max_devices - sum(crew[1] * number for crew, number in there.items())
        # For what is between two hosts there is one that waits for it.
        new = [wish for wish in queue if wish.key not in self._moving]
        for crew in dict.fromkeys(wish.crew for wish in new):
            more = min(needs[crew] - wanted[crew], free // crew[1])
            if more > 0:
                wanted[crew] += more
                free -= more * crew[1]
        return +wanted

    @property
    def queued(self) -> tuple[FoldRun, ...]:
        """What no host has."""
        return tuple(wish.fold_run for wish in self._queue)

    @property
    def training(self) -> tuple[FoldRun, ...]:
        """What hosts have."""
        return tuple(wish.fold_run for wish in self._open.values())

    def exchange(
        self,
        host: str,
        reports: Sequence[HostReport],
        now: float,
        crew: WorkerRange = SINGLE_DEVICE,
    ) -> Order:
        """A host says what came of its lanes, and hears what to do.

        Args:
            now: seconds, of any clock that goes on.
        """
        mine = self._hosts.setdefault(host, _Host(crew))
        self.hear(host, reports, now)
        if kept := [key for key in mine.asked_for if key in mine.wishes]:
            mine.keeps_until = now + CHECKPOINT_SECONDS
            self._moving.difference_update(kept)
        mine.asked_for = ()
        close = tuple(mine.closing)
        mine.closing.clear()
        opened, until = [], {}
        paying = self._pay(mine)
        while (wish := self._next_for(mine, paying)) is not None:
            if paying is not None:
                paying.take(wish)
            self._queue.remove(wish)
            self._moving.discard(wish.key)
            wish.is_back = False
            mine.backbone = wish.backbone
            mine.wishes[wish.fold_run.key] = wish
            wish.told_at = now
            opened.append((wish.fold_run, self._saved.get(wish.fold_run.key)))
            if wish.until is not None:
                until[wish.fold_run.key] = wish.until
        if mine.wishes:
            mine.idle_since = None
        elif mine.idle_since is None:
            mine.idle_since = now
        if not opened and now >= mine.keeps_until:
            mine.asked_for = self._surplus(mine, now)
            self._moving.update(mine.asked_for)
        if opened or mine.asked_for:
            mine.keeps_until = max(mine.keeps_until, now + SETTLING_SECONDS)
        leave = (
            mine.idle_since is not None
            and now - mine.idle_since >= self.idle_seconds
            and not (mine.crew == SINGLE_DEVICE and self._moving)
            and not any(wish.crew == mine.crew for wish in self._affordable())
        )
        if leave:
            del self._hosts[host]
        return Order(close, tuple(opened), until, mine.asked_for, leave)

    def is_idle(self, host: str) -> bool:
        return host in self._hosts and not self._hosts[host].wishes

    def release(self, host: str, reports: Sequence[HostReport], now: float) -> None:
        """A host hands over what it has open, and goes; that is nobody's fault."""
        self.hear(host, reports, now)
        self.lost(host, counts=False)

    def hear(self, host: str, reports: Sequence[HostReport], now: float) -> None:
        """What came of a host's lanes, by itself."""
        mine = self._hosts.get(host)
        if mine is None:
            return
        if self.allowance is not None and mine.heard_at is not None:
            held = (now - mine.heard_at) * mine.crew[1] * self.allowance.unit
            self.allowance.accrue(mine.wishes, held)
        mine.heard_at = now
        for report in reports:
            wish = mine.wishes.get(report.key)
            if wish is not None:  # else it was withdrawn meanwhile
                self._receive(mine, wish, report, now)

    def _receive(self, host: _Host, wish: _Wish, report: HostReport, now: float) -> None:
        key = report.key
        if report.refused:
            del host.wishes[key]
            host.most = len(host.wishes)
            wish.is_back = report.key in self._saved
            self._queue.insert(0, wish)
            return
        if report.saved is not None:
            self._saved[key] = report.saved
        if report.hands_over:
            del host.wishes[key]
            self._queue.insert(0, wish)
        if self.allowance is not None:
            self.allowance.advance(
                key,
                report.epoch.epoch if report.epoch is not None else None,
                is_saved=report.saved is not None,
                saving_seconds=report.saving_seconds,
            )
        fold = wish.fold_run.fold
        if report.record is not None:
            self._settle(wish, report.record, pauses=report.pauses)
            del host.wishes[key]
            host.most = None
        elif report.epoch is not None and now - wish.told_at >= EPOCH_SECONDS:
            wish.told_at = now
            epoch = report.epoch
            self._results[wish.trial].append(
                {"fold": fold, "epoch": epoch.epoch, "f1": epoch.validation_f1}
            )

    def _settle(self, wish: _Wish, record: str, *, pauses: bool = False) -> None:
        key = wish.fold_run.key
        del self._wishes[key]
        self._moving.discard(key)
        self._results[wish.trial].append({"fold": wish.fold_run.fold, "record": record})
        if not pauses:
            self._saved.pop(key, None)
        if self.allowance is not None and pauses:
            self.allowance.pause(key)
        elif self.allowance is not None:
            self.allowance.settle(key, is_done=json.loads(record)["status"] == "done")

    def _next_for(self, host: _Host, paying: _Paying | None = None) -> _Wish | None:
        """What this host opens next, beside what it has; its own backbone first."""
        num_open = len(host.wishes)
        mine = (
            wish
            for wish in self._queue
            if wish.crew == host.crew and (paying is None or paying.is_enough_for(wish))
        )
        if not num_open:
            first = next(mine, None)
            if first is None or first.backbone == host.backbone:
                return first
            own = (wish for wish in mine if wish.backbone == host.backbone)
            return next(own, first)
        # At a study's end nobody takes more than an even share.
        shared = sum(not wish.is_alone for wish in self._wishes.values())
        taken = sum(
            h.crew[1]
            for h in self._hosts.values()
            if h.crew != SINGLE_DEVICE or any(w.is_alone for w in h.wishes.values())
        )
        hosts = min(self.max_devices - taken, math.ceil(shared / self.fill))
        share = math.ceil(shared / max(1, hosts)) + sum(wish.is_back for wish in self._queue)
        if num_open >= min(self.lanes, share, self.lanes if host.most is None else host.most):
            return None
        if any(wish.is_alone for wish in host.wishes.values()):
            return None
        fitting = (w for w in mine if w.backbone == host.backbone and not w.is_alone)
        return next(fitting, None)

    def _surplus(self, host: _Host, now: float) -> tuple[str, ...]:
        """Lanes that this host has beyond an even share while another one has nothing to do.

        A study's end would otherwise keep all but one device waiting: who is alone on the board
        while the others train a backbone takes all lanes that there are.
        """
        if len(host.wishes) < 2 or not host.shares:
            return ()
        hosts = [h for h in self._hosts.values() if h.shares]
        waits = any(
            h.idle_since is not None and now - h.idle_since >= WAITING_SECONDS for h in hosts
        )
        # What waits, a group too, has a claim on the device of a host that has nothing.
        if not waits or self._affordable():
            return ()
        shared = sum(len(h.wishes) for h in hosts)
        share = math.ceil(shared / min(len(hosts), math.ceil(shared / self.fill)))
        # The last that were opened, which have most left to do.
        return tuple(key for key in list(host.wishes)[share:] if self._may_move(key))

    def _may_move(self, key: str) -> bool:
        """Whether it could be begun again with what is left, if it had stopped."""
        if self.allowance is None:
            return True
        room = self.allowance.room(k for k in self._open if k != key)
        return self.allowance.fits(key, room, is_first=False, host=0.0, devices=self.allowance.unit)

    # --- what is left of a budget -------------------------------------------------------------------

    @property
    def _open(self) -> dict[str, _Wish]:
        """What hosts have, by key."""
        return {key: wish for host in self._hosts.values() for key, wish in host.wishes.items()}

    @property
    def num_open(self) -> int:
        return sum(len(host.wishes) for host in self._hosts.values())

    @property
    def committed(self) -> float:
        """Device-seconds that what hosts have is still expected to want; 0 without a budget."""
        return 0.0 if self.allowance is None else self.allowance.committed(self._open)

    def saving_seconds(self, host: str) -> float:
        """That a host is expected to take to save all that it has open."""
        mine = self._hosts.get(host)
        if mine is None or self.allowance is None:
            return 0.0
        return self.allowance.saving_seconds(mine.wishes)

    @property
    def left_saved(self) -> dict[str, float]:
        """Of fold-runs that are saved and not finished, by key, the share that is still to do, 0 to 1."""
        return {} if self.allowance is None else self.allowance.left_saved(self._saved)

    def _pay(self, host: _Host | None = None) -> _Paying | None:
        """What is left for what is yet to begin; None without a budget."""
        if self.allowance is None:
            return None
        there = self._open
        beside = self.allowance.committed(host.wishes) if host is not None else 0.0
        return _Paying(
            self.allowance, self.allowance.room(there), beside, not there, is_host=host is not None
        )

    def _affordable(self) -> list[_Wish]:
        """Of the queue, those that what is left is enough for, in order and all of them together."""
        paying = self._pay()
        if paying is None:
            return self._queue
        found = []
        for wish in self._queue:
            if paying.is_enough_for(wish):
                paying.take(wish)
                found.append(wish)
        return found

    def shortfall(self) -> float | None:
        """Device-seconds that the cheapest of the queue wants, where nothing trains and nothing fits in what
        is left; else None."""
        if self.allowance is None or not self._queue or self._open or self._affordable():
            return None
        return min(self.allowance.wants(wish.key, "low") for wish in self._queue)

    def shelve(self) -> int:
        """Takes all that no host has from the queue, for another run; their trials hear that they are over.

        Returns:
            How many trials have nothing left here.
        """
        trials = {wish.trial for wish in self._queue}
        for wish in self._queue:
            del self._wishes[wish.key]
        self._moving &= self._wishes.keys()
        self._queue = []
        return len(trials - {wish.trial for wish in self._wishes.values()})

    # --- losses -------------------------------------------------------------------------------------

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
        # It may have been the one that lanes were for.
        self._moving &= self._open.keys() - gone.wishes.keys()
        hopeless = []
        for wish in reversed(gone.wishes.values()):
            wish.deaths += counts
            self._queue.insert(0, wish)
            if wish.deaths >= MAX_HOST_DEATHS:
                hopeless.append(wish.fold_run)
        return hopeless

    def fail(self, records: Iterable[Record]) -> None:
        """Settles queued fold-runs without training them."""
        for record in records:
            wish = self._wishes[record.key]
            self._queue.remove(wish)
            self._settle(wish, record.to_json())
