"""The race of one cell: which configuration trains on which fold next, and until which epoch.

    proposer -> contenders -> racing.decide -> legs -> (trained elsewhere) -> courses -> racing.decide ...

`racing/racing.py` decides and keeps no state; this module keeps the state between two decisions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from raymrc.configuration import Configuration
from raymrc.racing.racing import Contender, Racing, Run, decide


@dataclass(eq=False)
class _Entry:
    """A configuration in the race.

    Args:
        courses: per fold, validation F1 after each finished epoch.
        running: per fold in training, the epoch until which it trains.
        failed: folds; with any of them the configuration is out of the race.
    """

    configuration: Configuration
    courses: list[Sequence[float]]
    running: dict[int, int] = field(default_factory=dict)
    stopped: bool = False
    failed: set[int] = field(default_factory=set)
    trained_parameters: int = 0


@dataclass(frozen=True, slots=True)
class Stop:
    """A configuration that leaves the race.

    Args:
        reason: a sentence for the record.
        epochs: trained on all folds together.
        reached: best validation F1, averaged over the folds that it began, 0 to 1.
    """

    configuration: Configuration
    reason: str
    epochs: int
    reached: float


class Race:
    """
    Args:
        propose: the next configuration; None when there are no more.
        max_initial: this many contenders enter at once, each further one when those in the race leave
            nothing to run.
    """

    def __init__(
        self,
        racing: Racing,
        num_folds: int,
        propose: Callable[[], Configuration | None],
        *,
        max_initial: float = math.inf,
    ) -> None:
        self._racing = racing
        self._num_folds = num_folds
        self._propose = propose
        self._max_initial = max_initial
        self._entries: dict[str, _Entry] = {}
        self._queue: list[Run] = []
        self._has_news = True
        self._has_more = True
        self._stops: list[Stop] = []

    # --- results --------------------------------------------------------------------------------------

    def enter(self, configuration: Configuration) -> None:
        """Add a contender; one that is in the race already stays as it is."""
        if configuration.id not in self._entries:
            courses: list[Sequence[float]] = [()] * self._num_folds
            self._entries[configuration.id] = _Entry(configuration, courses)
            self._has_news = True

    def holds(self, configuration: Configuration) -> bool:
        return configuration.id in self._entries

    def learn(
        self,
        configuration: Configuration,
        fold: int,
        course: Iterable[float],
        *,
        trained_parameters: int = 0,
        stopped: bool = False,
    ) -> None:
        """Take in how far a fold-run has got. A longer course that is known already stays.

        Args:
            course: validation F1 after each epoch so far.
            stopped: an earlier decision has stopped this configuration.
        """
        entry = self._entries[configuration.id]
        course = tuple(course)
        if len(course) >= len(entry.courses[fold]):
            entry.courses[fold] = course
        if len(course) >= entry.running.get(fold, 0):
            entry.running.pop(fold, None)
        entry.trained_parameters = trained_parameters or entry.trained_parameters
        entry.stopped |= stopped
        self._has_news = True

    def fail(self, configuration: Configuration, fold: int) -> None:
        """A fold-run failed: its configuration cannot win, and is no evidence about the others."""
        entry = self._entries[configuration.id]
        entry.running.pop(fold, None)
        entry.failed.add(fold)
        self._has_news = True

    # --- work and progress ----------------------------------------------------------------------------

    def next(self, slots: int) -> tuple[Configuration, dict[int, int]] | None:
        """What one trial trains next; None when there is nothing now, or nothing any more (`is_over`).

        Args:
            slots: fold-runs that could start now, the next one included.

        Returns:
            A configuration, and the epoch until which to train it by fold.
        """
        if self._has_news:
            self._decide(slots)
        if not self._queue:
            return None
        first = self._queue[0].configuration
        entry = self._entries[first]
        until = {run.fold: run.until for run in self._queue if run.configuration == first}
        entry.running.update(until)
        self._queue = [run for run in self._queue if run.configuration != first]
        return entry.configuration, until

    def take_stops(self) -> list[Stop]:
        """Configurations stopped since the last call."""
        stops, self._stops = self._stops, []
        return stops

    def has_reached(self, configuration: Configuration, fold: int, epoch: int) -> bool:
        return len(self._entries[configuration.id].courses[fold]) >= epoch

    def has_failed(self, configuration: Configuration) -> bool:
        return bool(self._entries[configuration.id].failed)

    @property
    def is_over(self) -> bool:
        """Nothing is left to run, and nothing runs."""
        return not (self._has_news or self._queue or self._has_more or self._running)

    @property
    def stopped(self) -> list[Stop]:
        """All configurations stopped so far."""
        return [_as_stop(entry, "") for entry in self._entries.values() if entry.stopped]

    @property
    def share(self) -> float:
        """Share of the contenders' epochs on all folds that is done or handed out, 0 to 1."""
        given = total = 0
        for entry in self._entries.values():
            total += entry.configuration.epochs * self._num_folds
            for fold, course in enumerate(entry.courses):
                given += max(len(course), entry.running.get(fold, 0))
        return given / max(1, total)

    @property
    def epochs(self) -> tuple[int, int]:
        """Epochs that are done, and the most that may follow."""
        done, left, is_over = 0, 0, self.is_over
        for entry in self._entries.values():
            done += sum(map(len, entry.courses))
            if not (entry.stopped or entry.failed or is_over):
                left += sum(entry.configuration.epochs - len(course) for course in entry.courses)
        return done, left

    @property
    def num_spared(self) -> int:
        """Fold-runs that will not be trained to their end; failed ones do not count."""
        is_over = self.is_over
        return sum(
            len(course) < entry.configuration.epochs and fold not in entry.failed
            for entry in self._entries.values()
            if entry.stopped or entry.failed or is_over
            for fold, course in enumerate(entry.courses)
        )

    @property
    def _running(self) -> list[Run]:
        return [
            Run(name, fold, until)
            for name, entry in self._entries.items()
            if not entry.failed
            for fold, until in entry.running.items()
        ]

    def _decide(self, slots: int) -> None:
        self._has_news = False
        self._queue.clear()
        while len(self._entries) < self._max_initial and self._admit():
            pass
        while True:
            contenders = [
                Contender(
                    name,
                    entry.configuration.epochs,
                    tuple(entry.courses),
                    entry.stopped,
                    entry.trained_parameters,
                )
                for name, entry in self._entries.items()
                if not entry.failed
            ]
            running = self._running
            if contenders:
                decision = decide(contenders, self._racing, slots, running)
                for name, reason in decision.stopped.items():
                    entry = self._entries[name]
                    entry.stopped = True
                    self._stops.append(_as_stop(entry, reason))
                self._queue.extend(decision.run)
            # One more enters when free slots have nothing to run.
            if self._queue or not self._admit():
                return

    def _admit(self) -> bool:
        if not self._has_more:
            return False
        configuration = self._propose()
        if configuration is None:
            self._has_more = False
            return False
        self.enter(configuration)
        self._has_news = False
        return True


def _as_stop(entry: _Entry, reason: str) -> Stop:
    begun = [course for course in entry.courses if course]
    reached = sum(max(course) for course in begun) / max(1, len(begun))
    return Stop(entry.configuration, reason, sum(map(len, begun)), reached)
