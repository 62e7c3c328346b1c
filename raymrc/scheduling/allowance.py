"""Decides which fold-runs may start on the rest of a budget.

expected need -> corrected by the device time that hosts really took -> does it fit?
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Literal, TypeAlias

from raymrc.configuration import Cell, FoldRun
from raymrc.costs.budget import Need
from raymrc.scheduling.orders import HostReport

OVERDUE_FACTOR = 0.1
"""A fold-run that has used up its expected need is expected to need this share of it in addition."""

MAX_REMEMBERED = 20
"""Number of a cell's latest fold-runs that correct the expectation for the next ones."""

_LatestByCell: TypeAlias = defaultdict[Cell, deque[float]]


def _latest_by_cell() -> _LatestByCell:
    return defaultdict(partial(deque, maxlen=MAX_REMEMBERED))


@dataclass(eq=False, slots=True)
class _Progress:
    """Progress of one fold-run. Shares run from 0 to 1 and refer to the whole fold-run.

    Args:
        goal: the share that is done at its end, or at the epoch at which it pauses.
        left: the share that was to do when it was submitted, up to its goal.
        done: the share that is done, by its epochs.
        saved: the share that was done at its last checkpoint.
        used: device-seconds, its part of its hosts' time since it was submitted.
        saving_seconds: duration of its last save; None before the first.
    """

    fold_run: FoldRun
    need: Need | None
    goal: float
    left: float
    done: float
    saved: float
    used: float = 0.0
    saving_seconds: float | None = None

    @property
    def cell(self) -> Cell:
        return self.fold_run.configuration.cell


@dataclass(eq=False)
class Allowance:
    """What is left of a budget, and what submitted fold-runs are expected to need of it.

    Args:
        host_devices: devices of a single-device host, in the unit that the budget counts.
        overhead: device-seconds that hosts are held per device-second of a `Need`; used until the first
            fold-run ends.
        unfinished: share still to do of each fold-run that an earlier run left with a checkpoint, by key.
    """

    host_devices: float = 1.0
    overhead: float = 1.0
    unfinished: Mapping[str, float] = field(default_factory=dict)
    device_seconds: float = math.inf
    wall_seconds: float = math.inf
    _progress: dict[str, _Progress] = field(default_factory=dict)
    _ratios: _LatestByCell = field(default_factory=_latest_by_cell)
    _used: _LatestByCell = field(default_factory=_latest_by_cell)
    _factors: dict[Cell, float] = field(default_factory=dict)

    def set_left(self, device_seconds: float, wall_seconds: float) -> None:
        """Set what is left for running fold-runs and new ones together."""
        self.device_seconds, self.wall_seconds = device_seconds, wall_seconds

    def expect(
        self,
        fold_run: FoldRun,
        need: Need | None,
        *,
        has_checkpoint: bool = False,
        pause_epoch: int | None = None,
    ) -> None:
        """Add a submitted fold-run."""
        key, done = fold_run.key, 0.0
        if has_checkpoint:
            before = self._progress.get(key)
            done = before.saved if before else 1.0 - self.unfinished.get(key, 1.0)
        goal = 1.0 if pause_epoch is None else pause_epoch / fold_run.configuration.epochs
        left = max(0.0, goal - done)
        self._progress[key] = _Progress(fold_run, need, goal, left, done, saved=done)

    # --- progress of fold-runs ----------------------------------------------------------------------

    def accrue(self, keys: Iterable[str], device_seconds: float) -> None:
        """Divide a host's time among its open fold-runs."""
        sharing = [self._progress[key] for key in keys if key in self._progress]
        for progress in sharing:
            progress.used += device_seconds / len(sharing)

    def advance(self, report: HostReport) -> None:
        """Note what a host reports about an open fold-run."""
        progress = self._progress.get(report.key)
        if progress is None:
            return
        if report.epoch is not None:
            done = report.epoch.epoch / progress.fold_run.configuration.epochs
            progress.done = max(progress.done, done)
        if report.checkpoint is not None:
            progress.saved = self._done(progress)
            if report.saving_seconds:
                progress.saving_seconds = report.saving_seconds

    def settle(self, key: str, *, is_done: bool) -> None:
        """Remove a fold-run that has ended, and learn from it if it was trained from its beginning."""
        progress = self._progress.pop(key, None)
        if progress is None or not is_done or progress.left < 1.0:
            return
        self._used[progress.cell].append(progress.used)
        self._learn(progress, progress.need.value if progress.need is not None else 0.0)

    def pause(self, key: str) -> None:
        """Remove a fold-run that has paused at its goal, and learn from it."""
        progress = self._progress.pop(key, None)
        if progress is None:
            return
        self.unfinished = {**self.unfinished, key: 1.0 - progress.goal}
        self._learn(progress, progress.need.value * progress.left if progress.need else 0.0)

    def _learn(self, progress: _Progress, expected: float) -> None:
        if expected > 0:
            self._ratios[progress.cell].append(progress.used / expected)
            self._factors.clear()

    # --- what fold-runs need ------------------------------------------------------------------------

    def remaining(self, key: str, bound: Literal["value", "low", "high"] = "value") -> float:
        """Device-seconds that a fold-run still needs.

        Args:
            bound: the end of a guess's interval to assume.
        """
        progress = self._progress.get(key)
        if progress is None:
            return 0.0
        whole = self._whole(progress, bound)
        remaining = max(0.0, whole * progress.left - progress.used)
        return max(remaining, OVERDUE_FACTOR * whole) if progress.used else remaining

    def _whole(self, progress: _Progress, bound: str) -> float:
        """Device-seconds of the whole fold-run."""
        need = progress.need
        if need is None:  # assume the mean of what has ended
            used = self._used.get(progress.cell) or [*chain(*self._used.values())]
            return statistics.fmean(used) if used else 0.0
        # An earlier run's overhead includes its unfinished fold-runs, so a lower bound ignores it.
        factor = 1.0 if bound == "low" and not self._ratios else self._factor(progress.cell)
        if need.is_guess and progress.cell not in self._ratios:
            return float(getattr(need, bound)) * factor
        return need.value * factor

    def _factor(self, cell: Cell) -> float:
        if cell not in self._factors:
            ratios = self._ratios.get(cell) or [*chain(*self._ratios.values())]
            self._factors[cell] = statistics.median(ratios) if ratios else self.overhead
        return self._factors[cell]

    def _done(self, progress: _Progress) -> float:
        """The share that is done, also within an epoch."""
        whole = self._whole(progress, "value")
        by_time = (progress.goal - progress.left) + progress.used / whole if whole else 0.0
        epochs = progress.fold_run.configuration.epochs
        # Not beyond the current epoch.
        return max(progress.done, min(by_time, progress.done + 0.9 / epochs, 0.99))

    def committed(self, keys: Iterable[str]) -> float:
        """Device-seconds that these fold-runs still need together."""
        return sum(self.remaining(key) for key in keys)

    def saving_seconds(self, keys: Iterable[str]) -> float:
        """Expected duration of saving these fold-runs one after another."""
        total = 0.0
        for key in keys:
            progress = self._progress.get(key)
            if progress is None:
                continue
            guess = progress.need.saving_seconds if progress.need is not None else 1.0
            total += guess if progress.saving_seconds is None else progress.saving_seconds
        return total

    def unfinished_shares(self, saved: Collection[str]) -> dict[str, float]:
        """Share still to do of each fold-run with a checkpoint, by key; see `unfinished`."""
        known = {key: 1.0 - self._progress[key].saved for key in saved if key in self._progress}
        before = {key: share for key, share in self.unfinished.items() if key in saved}
        return {key: round(share, 4) for key, share in (before | known).items()}

    def purse(self, running: Collection[str], on_host: Collection[str] | None = None) -> Purse:
        """What is left for new fold-runs.

        Args:
            running: keys of all open fold-runs.
            on_host: keys of those on the host that takes the new ones; None if they go to different hosts.
        """
        room = self.device_seconds - self.committed(running)
        host_seconds = None if on_host is None else self.committed(on_host)
        return Purse(self, room, host_seconds, is_first=not running)


@dataclass(eq=False, slots=True)
class Purse:
    """Device-seconds that are left while fold-runs are picked one after another.

    Args:
        host_seconds: what the open fold-runs of the host that takes them still need.
        is_first: nothing is training. Then the lower end of a guess has to fit, so that a guess cannot keep a
            study from starting at all; the cap holds anyway. Otherwise the upper end has to fit.
    """

    allowance: Allowance
    room: float
    host_seconds: float | None
    is_first: bool

    def pays_for(self, key: str, devices: int) -> bool:
        """Whether a fold-run may start on a host of this many devices."""
        needed = self.allowance.remaining(key, "low" if self.is_first else "high")
        seconds = (needed + (self.host_seconds or 0.0)) / (devices * self.allowance.host_devices)
        return needed <= self.room and seconds <= self.allowance.wall_seconds

    def take(self, key: str) -> None:
        needed = self.allowance.remaining(key)
        self.room -= needed
        if self.host_seconds is not None:
            self.host_seconds += needed
        self.is_first = False
