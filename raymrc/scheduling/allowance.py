"""Which fold-runs may be begun with what is left: what they are expected to want, and what they have had.

Need (before) -> corrected by what hosts were held for (while they train) -> fits?
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from raymrc.configuration import Cell, FoldRun
from raymrc.costs.budget import Need

OVERDUE_FACTOR = 0.1
"""A fold-run that has had all that it was expected to want is taken to want this share of it more."""

REMEMBERED = 20
"""Finished fold-runs of a cell that correct what the next are expected to want."""


@dataclass(eq=False, slots=True)
class _Course:
    """One fold-run.

    Args:
        left: share of it that was still to do when it was handed in, 0 to 1; until it pauses, if it does.
        goal: share of it that is done when it has come as far as it was to.
        had: device-seconds, its share of its hosts' time.
        done: share of it that is done, by its epochs.
        saved: the same, when its lane was last saved.
        saving_seconds: that this took; None before.
    """

    fold_run: FoldRun
    need: Need | None
    left: float = 1.0
    goal: float = 1.0
    had: float = 0.0
    done: float = 0.0
    saved: float = 0.0
    saving_seconds: float | None = None


@dataclass(eq=False)
class Allowance:
    """
    Args:
        unit: devices of a host of one.
        overhead: device-seconds that hosts are held for each that a `Need` names, before any was seen.
        unfinished: of fold-runs that an earlier run left saved, by key, the share still to do, 0 to 1.
    """

    unit: float = 1.0
    overhead: float = 1.0
    unfinished: Mapping[str, float] = field(default_factory=dict)
    device_seconds: float = math.inf
    wall_seconds: float = math.inf
    _courses: dict[str, _Course] = field(default_factory=dict)
    _ratios: dict[Cell, list[float]] = field(default_factory=dict)
    _had: dict[Cell, list[float]] = field(default_factory=dict)
    _factors: dict[Cell, float] = field(default_factory=dict)

    def expect(
        self,
        fold_run: FoldRun,
        need: Need | None,
        *,
        is_saved: bool = False,
        until: int | None = None,
    ) -> None:
        """A fold-run is handed in.

        Args:
            is_saved: it was begun before, and goes on from there.
            until: the epoch at which it is to pause.
        """
        before = self._courses.get(fold_run.key)
        begun = 0.0
        if is_saved:
            begun = before.saved if before else 1.0 - self.unfinished.get(fold_run.key, 1.0)
        goal = 1.0 if until is None else until / fold_run.configuration.epochs
        self._courses[fold_run.key] = _Course(
            fold_run, need, max(0.0, goal - begun), goal, done=begun, saved=begun
        )

    def allow(self, device_seconds: float, wall_seconds: float) -> None:
        """So much is left, for what trains and for what is begun."""
        self.device_seconds, self.wall_seconds = device_seconds, wall_seconds

    # --- what fold-runs do ------------------------------------------------------------------------

    def accrue(self, keys: Iterable[str], device_seconds: float) -> None:
        """A host was held; its open fold-runs share that."""
        courses = [self._courses[key] for key in keys if key in self._courses]
        for course in courses:
            course.had += device_seconds / len(courses)

    def advance(
        self,
        key: str,
        epoch: int | None = None,
        *,
        is_saved: bool = False,
        saving_seconds: float = 0.0,
    ) -> None:
        """What its host says of it."""
        course = self._courses.get(key)
        if course is None:
            return
        if epoch is not None:
            course.done = max(course.done, epoch / course.fold_run.configuration.epochs)
        if is_saved:
            course.saved = self._done(course)
            if saving_seconds:
                course.saving_seconds = saving_seconds

    def settle(self, key: str, *, is_done: bool) -> None:
        """It has its record."""
        course = self._courses.pop(key, None)
        if course is None or not is_done or course.left < 1.0:
            return
        cell = course.fold_run.configuration.cell
        _remember(self._had, cell, course.had)
        if course.need is not None and course.need.value > 0:
            _remember(self._ratios, cell, course.had / course.need.value)
            self._factors.clear()

    def pause(self, key: str) -> None:
        """It is saved where it was to pause, and may go on from there."""
        course = self._courses.pop(key, None)
        if course is None:
            return
        self.unfinished = {**self.unfinished, key: 1.0 - course.goal}
        wanted = course.need.value * course.left if course.need is not None else 0.0
        if wanted > 0:
            _remember(self._ratios, course.fold_run.configuration.cell, course.had / wanted)
            self._factors.clear()

    # --- what they want ---------------------------------------------------------------------------

    def wants(self, key: str, trust: str = "value") -> float:
        """Device-seconds that it still wants.

        Args:
            trust: "value", "low" or "high": which end of a guess is taken.
        """
        course = self._courses.get(key)
        if course is None:
            return 0.0
        whole = self._whole(course, trust)
        mine = max(0.0, whole * course.left - course.had)
        return max(mine, OVERDUE_FACTOR * whole) if course.had else mine

    def _whole(self, course: _Course, trust: str) -> float:
        """Of it, from its beginning."""
        cell = course.fold_run.configuration.cell
        need = course.need
        if need is None:
            # Nothing is known of it: as those that were finished.
            had = self._had.get(cell) or [h for of in self._had.values() for h in of]
            return statistics.fmean(had) if had else 0.0
        # Overhead from before has unfinished fold-runs in it: where a low end will do, it is left out.
        factor = 1.0 if trust == "low" and not self._ratios else self._factor(cell)
        if need.is_guess and cell not in self._ratios:
            return float(getattr(need, trust)) * factor
        return need.value * factor

    def _factor(self, cell: Cell) -> float:
        if cell not in self._factors:
            own = self._ratios.get(cell) or [r for of in self._ratios.values() for r in of]
            self._factors[cell] = statistics.median(own) if own else self.overhead
        return self._factors[cell]

    def _done(self, course: _Course) -> float:
        """Share of it, 0 to 1, also within an epoch."""
        whole = self._whole(course, "value")
        by_time = (course.goal - course.left) + course.had / whole if whole else 0.0
        epochs = course.fold_run.configuration.epochs
        # Not beyond the epoch that it is in.
        return max(course.done, min(by_time, course.done + 0.9 / epochs, 0.99))

    def committed(self, keys: Iterable[str]) -> float:
        """Device-seconds that those which train still want."""
        return sum(self.wants(key) for key in keys)

    def saving_seconds(self, keys: Iterable[str]) -> float:
        """That saving these one after another is expected to take."""
        total = 0.0
        for key in keys:
            course = self._courses.get(key)
            if course is None:
                continue
            guess = course.need.saving_seconds if course.need is not None else 1.0
            total += guess if course.saving_seconds is None else course.saving_seconds
        return total

    def left_saved(self, saved: Collection[str]) -> dict[str, float]:
        """Of those that are saved, the share that is still to do; see `unfinished`."""
        known = {key: 1.0 - self._courses[key].saved for key in saved if key in self._courses}
        before = {key: share for key, share in self.unfinished.items() if key in saved}
        return {key: round(share, 4) for key, share in (before | known).items()}

    def room(self, running: Iterable[str]) -> float:
        """Device-seconds for what is yet to begin, beside those that train."""
        return self.device_seconds - self.committed(running)

    def fits(self, key: str, room: float, *, is_first: bool, host: float, devices: float) -> bool:
        """Whether it may be begun.

        Args:
            room: see `room`.
            is_first: nothing trains. Then a guess's lower end is enough: a guess must not keep a study from
                ever starting, and the cap holds anyway. Else its upper end has to fit.
            host: device-seconds that others on its host still want.
            devices: that this host holds.
        """
        wanted = self.wants(key, "low" if is_first else "high")
        return wanted <= room and (host + wanted) / max(devices, 1e-9) <= self.wall_seconds


def _remember(into: dict[Cell, list[float]], cell: Cell, value: float) -> None:
    kept = into.setdefault(cell, [])
    kept.append(value)
    del kept[:-REMEMBERED]
