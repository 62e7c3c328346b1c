"""The state of one run of a study: what is in flight, and what came of it. Neither Ray nor Tune is asked.

search -> take -> (trained elsewhere) -> receive -> ledger, on_record, on_progress
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from raymrc.configuration import Cell, Configuration, FoldRun
from raymrc.costs.budget import Spent
from raymrc.errors import LedgerError, RaymrcError
from raymrc.ledger.ledger import Ledger
from raymrc.ledger.rank import count_reasons
from raymrc.ledger.record import Record, RecordStatus
from raymrc.planning.plan import CellPlan, Plan
from raymrc.scheduling.checkpoints import Checkpoints
from raymrc.scheduling.failures import FailureTerms, empty_record, failed_record
from raymrc.scheduling.progress import CellProgress, Snapshot
from raymrc.scheduling.record_writer import RecordWriter
from raymrc.scheduling.run_metrics import RunMetrics
from raymrc.scheduling.search import StudySearch, WorkItem
from raymrc.scheduling.spending import Spending

MAX_TRIAL_DEATHS = 2
"""So many trials' processes may die under one fold-run before it counts as failed."""

SNAPSHOT_SECONDS = 0.5

BLIND_SECONDS = 30.0
"""A storage that could not be asked is not asked again for so long: each try may take a minute."""


@dataclass(frozen=True, slots=True)
class StudyOutcome:
    """What a run of a study came to, in fold-runs.

    Args:
        total: of the plan.
        done: trained now.
        reused: in the ledger before, or meanwhile by another driver.
        failed: tried now and failed; running the study again tries them again.
        interrupted: by Ctrl-C or SIGTERM; running the study again goes on.
        reasons: why those failed, the commonest first, with how often.
        spared: need not be trained to their end, since their configurations cannot win any more.
        out_of_budget: why it ended before its work did, as a sentence; a larger budget goes on. "" where it
            did not.
        spent: by the study in all, and device-seconds by this run; None where nothing had to be trained.
        closed: cells that were given up since so much of them failed, with how many fold-runs were not begun.
    """

    total: int
    done: int
    reused: int
    failed: int
    interrupted: bool
    wall_seconds: float
    reasons: tuple[tuple[str, int], ...] = ()
    spared: int = 0
    out_of_budget: str = ""
    spent: Spent | None = None
    device_seconds: float = 0.0
    closed: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Room:
    """How much of races is handed out at once: what waits for a host was decided too early.

    Args:
        lanes: in all.
        takes: of them, by a fold-run of a cell; one where nothing is said.
    """

    lanes: int = 1
    takes: Mapping[Cell, int] = field(default_factory=dict)


class StudyRun:
    """Of one run; the arguments are `driver.run_study`'s and what it has opened."""

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        records: Sequence[Record],
        on_record: Callable[[Record], None] | None,
        on_progress: Callable[[Snapshot], None] | None,
        saved: Checkpoints,
        spending: Spending,
        keeper: RecordWriter,
        failures: FailureTerms | None = None,
    ) -> None:
        self.plan = plan
        self.ledger = ledger
        self.saved = saved
        self.spending = spending
        self.metrics: RunMetrics | None = None
        self.room = Room()
        self.stopping = threading.Event()
        self.error: RaymrcError | None = None
        self._on_record = on_record or (lambda record: None)
        self._on_progress = on_progress
        self._search = StudySearch(plan, records, self._look)
        self._tally = _Tally(plan, self._search, records)
        self._in_flight: dict[str, WorkItem] = {}
        self._idle: set[str] = set()
        self._now: dict[str, str] = {}
        self._deaths: dict[str, int] = {}
        self._trained: set[str] = set()
        self._failed: dict[str, str] = {}
        self._stopped: set[str] = set()
        self._paused = {r.key: r for r in records if r.is_paused}
        self._keeper = keeper
        self._terms = failures or FailureTerms()
        self._blind_until = -math.inf
        self._tries: Counter[str] = Counter()
        self._again: dict[str, Record] = {}
        self._spent_failing = {
            r.key: r.device_seconds + r.failed_device_seconds for r in records if r.is_failed
        }
        self._failing: dict[Cell, set[str]] = {cell.cell: set() for cell in plan.cells}
        self._closed: set[Cell] = set()
        self._newly_closed: list[Cell] = []
        self._began = time.monotonic()
        self._shown_at = 0.0
        self._raced_before = self._search.epochs[0]
        self._next = self._search.next()
        self._finish_stops(records)
        self._keep_stops()

    @property
    def has_work(self) -> bool:
        return self._next is not None

    @property
    def finished(self) -> Collection[str]:
        """Keys of what is done or was stopped by its race, whoever has trained it."""
        return self._search.done.keys() | self._stopped

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    def _look(self, key: str) -> Record | None:
        if time.monotonic() < self._blind_until:
            return None
        try:
            if not self.ledger.has(key):
                return None
        except LedgerError:
            # Were it there, another driver has trained it: then it is trained twice and kept once.
            self._blind_until = time.monotonic() + BLIND_SECONDS
            return None
        try:
            record = self.ledger.get(key)
        except LedgerError as error:
            self.give_up(error)
            return None
        if record is not None:
            self._tally.enter(record)
        return record

    def take(self, trial_id: str) -> WorkItem | None:
        """Work for a new trial; None when there is none now."""
        if self.stopping.is_set():
            return None
        free = self.room.lanes - self._taken
        if self.races and free <= 0:
            return None
        work = self._next or self._search.next(free, self.room.takes)
        self._next = None
        self._keep_stops()
        if work is not None:
            self._idle.discard(trial_id)
            self._in_flight[trial_id] = work
            for run in work.fold_runs:
                self._again.pop(run.key, None)
        return work

    def receive(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """A trial reports an epoch or a finished fold-run."""
        work = self._in_flight.get(trial_id)
        if work is None:  # a late report of a trial that was given up
            return
        text = result.get("record")
        if text is not None:
            self._keep(Record.from_json(text), text)
        at = f" epoch {result['epoch']}" if "epoch" in result else ""
        self._now[trial_id] = f"{work.configuration.cell.name} fold {result.get('fold', 0)}{at}"
        if result.get("is_idle"):
            self._settle_work(trial_id)
            self._idle.add(trial_id)
        self.show()

    @property
    def _taken(self) -> int:
        """Of `room`, by what is handed out and has not come to its end or its rung."""
        return sum(
            self.room.takes.get(work.configuration.cell, 1) * len(self._unsettled(work))
            for work in self._in_flight.values()
        )

    @property
    def idle(self) -> tuple[str, ...]:
        """Trials of races that have no leg to train."""
        return tuple(self._idle)

    def _keep(self, record: Record, text: str | None = None) -> None:
        if self.error is not None:
            return
        spent = self._spent_failing.get(record.key)
        if spent:
            record, text = replace(record, failed_device_seconds=spent), None
        tries_again = record.is_failed and self._tries_again(record)
        price = self.spending.budget.device_hour_usd
        if self.metrics is not None:
            self.metrics.publish_end(record, price, will_retry=tries_again)
        # A failed try is kept too, until the next one takes its place: its cost is not forgotten. So is a
        # pause, which is no end either.
        self._keeper.put(record, text, quietly=tries_again or record.is_paused)
        if not tries_again:
            self._search.learn(record)
            self._settle(record)
        self.tell_kept()

    def _settle(self, record: Record) -> None:
        """A fold-run has come to an end, or pauses."""
        if record.is_paused:
            self._paused[record.key] = record
            return
        self._paused.pop(record.key, None)
        self._tally.enter(record)
        if record.is_done:
            self._trained.add(record.key)
            self._failed.pop(record.key, None)
        elif record.is_failed:
            self._failed[record.key] = record.reason
        if not record.is_stopped:
            self._close_if_hopeless(record)

    def tell_kept(self) -> None:
        """Tells of what has come into the ledger, and ends the run where nothing does any more."""
        for record in self._keeper.written():
            self._on_record(record)
        if self._keeper.error is not None and self.error is None:
            if not isinstance(self._keeper.error, RaymrcError):
                raise self._keeper.error
            self.give_up(self._keeper.error)

    def _tries_again(self, record: Record) -> bool:
        key = record.key
        self._spent_failing[key] = record.device_seconds + record.failed_device_seconds
        is_closed = record.fold_run.configuration.cell in self._closed
        if is_closed or not record.may_pass or self._tries[key] >= self._terms.retries:
            return False
        self._tries[key] += 1
        self._again[key] = record
        return True

    def _close_if_hopeless(self, record: Record) -> None:
        configuration = record.fold_run.configuration
        failing = self._failing[configuration.cell]
        if record.is_done:
            failing.clear()
            return
        failing.add(configuration.id)
        most = self._terms.close_cell_after
        if most is not None and len(failing) >= most and configuration.cell not in self._closed:
            self._closed.add(configuration.cell)
            self._newly_closed.append(configuration.cell)
            self._search.close_cell([*self._failing].index(configuration.cell))
            # What was to be tried again is not: then its failure stands.
            for waiting in list(self._again.values()):
                if waiting.fold_run.configuration.cell == configuration.cell:
                    del self._again[waiting.key]
                    self._keeper.put(waiting)
                    self._tally.enter(waiting)
                    self._failed[waiting.key] = waiting.reason

    def newly_closed(self) -> list[Cell]:
        """Cells of which nothing more is to be begun, since this was last asked."""
        found, self._newly_closed = self._newly_closed, []
        return found

    def _keep_stops(self) -> None:
        """What was trained of those that races have stopped is kept with the reason."""
        for stop in self._search.take_stops():
            runs = self._search.fold_runs(stop.configuration)
            self._stopped |= runs.keys()
            paused = {key: self._paused[key] for key in runs if key in self._paused}
            if not paused:
                # All that it had begun is done. That it was stopped stands with a fold that it never began:
                # else these would be to do for good.
                key = next(key for key in runs if key not in self._search.done)
                paused = {key: empty_record(runs[key])}
            for record in paused.values():
                self._keep(replace(record, status=RecordStatus.STOPPED, reason=stop.reason))

    def _finish_stops(self, records: Sequence[Record]) -> None:
        """A driver that was killed may have kept a stop with some of a configuration's fold-runs alone."""
        if not self.races:
            return
        reasons = {
            key: record.reason
            for record in records
            if record.is_stopped
            for key in self._search.fold_runs(record.fold_run.configuration)
        }
        self._stopped |= reasons.keys()
        for key in self._paused.keys() & reasons.keys():
            self._keep(replace(self._paused[key], status=RecordStatus.STOPPED, reason=reasons[key]))

    def end(self, trial_id: str, died: bool = False) -> None:
        """A trial is over: its work is settled, or given back if its process died."""
        self._idle.discard(trial_id)
        self._settle_work(trial_id, died)

    def _settle_work(self, trial_id: str, died: bool = False) -> None:
        work = self._in_flight.pop(trial_id, None)
        self._now.pop(trial_id, None)
        if work is None or self.stopping.is_set():
            return
        left = tuple(r for r in self._unsettled(work) if died or r.key in self._again)
        if left and died:
            key = left[0].key
            self._deaths[key] = self._deaths.get(key, 0) + 1
            if self._deaths[key] >= MAX_TRIAL_DEATHS:
                self._keep(
                    failed_record(left[0], "its trial's process died, as for want of memory")
                )
                left = self._unsettled(work)
        if left and work.configuration.cell not in self._closed:
            self._search.give_back(replace(work, fold_runs=left))
        else:
            self._search.settle(work)

    def _unsettled(self, work: WorkItem) -> tuple[FoldRun, ...]:
        return tuple(
            run
            for run in work.fold_runs
            if run.key not in self._failed and not self._search.is_settled(work, run)
        )

    def give_up(self, error: RaymrcError) -> None:
        """Ends the run with this error; what is done is kept."""
        self.error = self.error or error
        self.stop()

    def stop(self) -> None:
        self.stopping.set()

    def show(self, *, now: bool = False) -> None:
        moment = time.monotonic()
        if self._on_progress is not None and (now or moment - self._shown_at >= SNAPSHOT_SECONDS):
            self._shown_at = moment
            trouble = self._keeper.trouble
            self._on_progress(
                Snapshot(
                    total=self.plan.num_fold_runs - self._num_spared,
                    done=self._tally.num_done,
                    spared=self._num_spared,
                    reused=self._tally.num_done - len(self._trained),
                    failed=len(self._failed),
                    running=tuple(self._now.values()),
                    cells=self._cells(),
                    wall_seconds=moment - self._began,
                    spent=self.spending.told,
                    waiting=trouble.waiting if trouble else 0,
                    trouble=trouble.reason if trouble else "",
                    raced=self._raced if self.races else None,
                )
            )

    def tell(self, *, now: bool = False) -> None:
        """For dashboards."""
        if self.metrics is not None and (self.metrics.is_due or now):
            self.metrics.publish_cells(self.plan.cells, self._cells())

    def _cells(self) -> tuple[CellProgress, ...]:
        return tuple(
            replace(shown, closed=plan.cell in self._closed)
            for shown, plan in zip(self._tally.cells(), self.plan.cells, strict=True)
        )

    @property
    def _raced(self) -> tuple[int, int]:
        done, left = self._search.epochs
        return done - self._raced_before, left

    def outcome(self) -> StudyOutcome:
        settled = self._tally.num_done + len(self._failed) + self._num_spared
        return StudyOutcome(
            total=self.plan.num_fold_runs,
            done=len(self._trained),
            reused=self._tally.num_done - len(self._trained),
            failed=len(self._failed),
            interrupted=self.stopping.is_set()
            and settled < self.plan.num_fold_runs
            and not self.spending.stopped,
            wall_seconds=time.monotonic() - self._began,
            reasons=count_reasons(self._failed.values()),
            spared=self._num_spared,
            out_of_budget=self.spending.stopped if settled < self.plan.num_fold_runs else "",
            spent=self.spending.spent,
            device_seconds=self.spending.device_seconds,
            closed=tuple(
                (shown.name, left)
                for shown, plan in zip(self._tally.cells(), self.plan.cells, strict=True)
                if plan.cell in self._closed and (left := shown.total - shown.done - shown.failed)
            ),
        )

    @property
    def _num_spared(self) -> int:
        return sum(map(self._search.num_spared, range(len(self.plan.cells))))

    @property
    def races(self) -> bool:
        return self._search.races


class _Tally:
    """Counts by cell, and the best configuration so far; each record costs a look-up."""

    def __init__(self, plan: Plan, search: StudySearch, records: Sequence[Record]) -> None:
        self._plan = plan
        self._search = search
        self._cells = {cell.cell: index for index, cell in enumerate(plan.cells)}
        self._done: list[set[str]] = [set() for _ in plan.cells]
        self._failed: list[set[str]] = [set() for _ in plan.cells]
        self._best: list[tuple[float, Configuration] | None] = [None] * len(plan.cells)
        for record in records:
            if record.is_done:
                self.enter(record)

    @property
    def num_done(self) -> int:
        return sum(len(done) for done in self._done)

    def enter(self, record: Record) -> None:
        configuration = record.fold_run.configuration
        index = self._cells.get(configuration.cell)
        if index is None or record.key not in self._search.fold_runs(configuration):
            return  # on other notes, folds or weights
        if not self._plan.cells[index].holds(configuration):
            return  # of an earlier form of the study
        if not record.is_done:
            if record.is_failed:
                self._failed[index].add(record.key)
            return
        self._failed[index].discard(record.key)
        self._done[index].add(record.key)
        if record.fold_run.is_test:
            return  # there is nothing to choose by
        value = self._search.value(configuration)
        best = self._best[index]
        if value is not None and (best is None or value > best[0]):
            self._best[index] = (value, configuration)

    def cells(self) -> tuple[CellProgress, ...]:
        return tuple(
            CellProgress(
                name=cell.cell.name,
                total=cell.num_fold_runs - self._search.num_spared(index),
                done=len(self._done[index]),
                failed=len(self._failed[index]),
                best=_describe(cell, best[1]) if (best := self._best[index]) else "",
                best_f1=best[0] if best else None,
            )
            for index, cell in enumerate(self._plan.cells)
        )


def _describe(cell: CellPlan, configuration: Configuration) -> str:
    """By the fields that the cell searches over."""
    searched = {*cell.space.grids, *cell.space.distributions}
    return " ".join(
        f"{field.name}={getattr(configuration, field.name)}"
        for field in fields(configuration)
        if field.name in searched
    )
