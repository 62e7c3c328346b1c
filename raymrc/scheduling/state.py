"""The state of one run of a study: what is in flight, and what came of it. Never asks Ray or Tune.

search -> take -> (trained elsewhere) -> receive -> ledger, on_record, on_progress
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from raymrc.configuration import Cell, Configuration, FoldRun
from raymrc.costs.budget import Spent
from raymrc.errors import LedgerError, RaymrcError
from raymrc.ledger.ledger import Ledger
from raymrc.ledger.rank import count_reasons
from raymrc.ledger.record import Record, RecordStatus
from raymrc.planning.plan import CellPlan, Plan
from raymrc.scheduling.checkpoints import Checkpoints
from raymrc.scheduling.failures import empty_record, failed_record
from raymrc.scheduling.progress import CellProgress, Snapshot
from raymrc.scheduling.record_writer import RecordWriter
from raymrc.scheduling.search import StudySearch, WorkItem
from raymrc.scheduling.spending import Spending
from raymrc.scheduling.terms import Listeners, RunTerms

MAX_TRIAL_DEATHS = 2
"""A fold-run fails when this many trial processes died while they waited for it."""

SNAPSHOT_SECONDS = 0.5

LEDGER_RETRY_SECONDS = 30.0
"""After a failed look-up the ledger gets no further one for this long: each may take a minute."""


@dataclass(frozen=True, slots=True)
class StudyOutcome:
    """The result of one run, in fold-runs.

    Args:
        done: trained now.
        reused: in the ledger before, or written meanwhile by another driver.
        failed: failed now; the next run tries them again.
        interrupted: by Ctrl-C or SIGTERM; the next run resumes.
        reasons: why fold-runs failed, with counts, the most common first.
        spared: not trained to their end, because their configurations cannot win any more.
        out_of_budget: a sentence; "" unless the budget ended the run before its work was done.
        spent: by all runs together; None where nothing had to be trained.
        device_seconds: by this run.
        closed: cells abandoned after repeated failures, with the number of their fold-runs not begun.
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


class StudyRun:
    """One run: reads the ledger, hands out what it lacks, and records the results.

    As a context it ends by writing all records that still wait.

    Attributes:
        race_lanes: maximum number of lanes in flight in races: work that waits is decided too early.
        lanes_per_fold_run: by cell; 1 for cells not listed.
        on_end: called as `on_end(record, will_retry=...)` with each try of a fold-run that has ended.

    Raises:
        LedgerError: the ledger or the spending of earlier runs cannot be read.
    """

    def __init__(self, plan: Plan, ledger: Ledger, terms: RunTerms, listeners: Listeners) -> None:
        records = ledger.check()
        self.plan = plan
        self.ledger = ledger
        self.checkpoints = Checkpoints(ledger.storage)
        self.spending = Spending(terms.budget, self.checkpoints.storage, records, terms.expect)
        self.race_lanes = 1
        self.lanes_per_fold_run: Mapping[Cell, int] = {}
        self.on_end: Callable[..., object] = lambda record, will_retry: None
        self.stopping = threading.Event()
        self.error: RaymrcError | None = None
        self._terms = terms
        self._listeners = listeners
        self._search = StudySearch(plan, records, self._look_up)
        self._tally = _Tally(plan, self._search, records)
        self._in_flight: dict[str, WorkItem] = {}
        self._idle: set[str] = set()
        self._now: dict[str, str] = {}
        self._deaths: Counter[str] = Counter()
        self._trained: set[str] = set()
        self._failed: dict[str, str] = {}
        self._stopped: set[str] = set()
        self._paused = {r.key: r for r in records if r.is_paused}
        self._no_look_up_until = -math.inf
        self._retries: Counter[str] = Counter()
        self._to_retry: dict[str, Record] = {}
        self._spent_failing = {
            r.key: r.device_seconds + r.failed_device_seconds for r in records if r.is_failed
        }
        self._failing: dict[Cell, set[str]] = {cell.cell: set() for cell in plan.cells}
        self._closed: set[Cell] = set()
        self._newly_closed: list[Cell] = []
        self._began = time.monotonic()
        self._shown_at = 0.0
        self._raced_before = self._search.epochs[0]
        self._writer = RecordWriter(
            ledger.record, self.checkpoints.drop_after, terms.patience_seconds
        )
        self._next = self._search.next()
        self._finish_stops(records)
        self._record_stops()

    def __enter__(self) -> StudyRun:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close(self.show)
        self.report_written()
        self.checkpoints.tidy(self._search.done.keys() | self._stopped)

    @property
    def has_work(self) -> bool:
        return self._next is not None

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def races(self) -> bool:
        return self._search.races

    @property
    def idle(self) -> tuple[str, ...]:
        """Trials of races that have no leg to train."""
        return tuple(self._idle)

    def _look_up(self, key: str) -> Record | None:
        if time.monotonic() < self._no_look_up_until:
            return None
        try:
            if not self.ledger.has(key):
                return None
        except LedgerError:
            # If another driver has trained it, it is trained twice and recorded once.
            self._no_look_up_until = time.monotonic() + LEDGER_RETRY_SECONDS
            return None
        try:
            record = self.ledger.get(key)
        except LedgerError as error:
            self.give_up(error)
            return None
        if record is not None:
            self._tally.count(record)
        return record

    def take(self, trial_id: str) -> WorkItem | None:
        """Work for a trial; None when there is none now."""
        if self.stopping.is_set():
            return None
        free = self.race_lanes - self._lanes_in_flight
        if self.races and free <= 0:
            return None
        work = self._next or self._search.next(free, self.lanes_per_fold_run)
        self._next = None
        self._record_stops()
        if work is not None:
            self._idle.discard(trial_id)
            self._in_flight[trial_id] = work
            for run in work.fold_runs:
                self._to_retry.pop(run.key, None)
        return work

    @property
    def _lanes_in_flight(self) -> int:
        """Lanes of the fold-runs in flight that have not reached their end or their rung."""
        return sum(
            self.lanes_per_fold_run.get(work.configuration.cell, 1) * len(self._unsettled(work))
            for work in self._in_flight.values()
        )

    def receive(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """A trial reports an epoch or a finished fold-run."""
        work = self._in_flight.get(trial_id)
        if work is None:  # a late report of a trial that has ended
            return
        text = result.get("record")
        if text is not None:
            self._record(Record.from_json(text), text)
        epoch = f" epoch {result['epoch']}" if "epoch" in result else ""
        self._now[trial_id] = f"{work.configuration.cell.name} fold {result.get('fold', 0)}{epoch}"
        if result.get("is_idle"):
            self._settle_work(trial_id)
            self._idle.add(trial_id)
        self.show()

    def end(self, trial_id: str, died: bool = False) -> None:
        """A trial is over. Work that a dead one leaves is handed out again."""
        self._idle.discard(trial_id)
        self._settle_work(trial_id, died)

    def _settle_work(self, trial_id: str, died: bool = False) -> None:
        work = self._in_flight.pop(trial_id, None)
        self._now.pop(trial_id, None)
        if work is None or self.stopping.is_set():
            return
        left = tuple(r for r in self._unsettled(work) if died or r.key in self._to_retry)
        if left and died:
            self._deaths[left[0].key] += 1
            if self._deaths[left[0].key] >= MAX_TRIAL_DEATHS:
                self._record(
                    failed_record(
                        left[0], "its trial's process died; it may have run out of memory"
                    )
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

    def _record(self, record: Record, text: str | None = None) -> None:
        if self.error is not None:
            return
        spent = self._spent_failing.get(record.key)
        if spent:
            record, text = replace(record, failed_device_seconds=spent), None
        will_retry = record.is_failed and self._will_retry(record)
        self.on_end(record, will_retry=will_retry)
        # A failed try goes into the ledger too until the next one replaces it, so that its cost counts.
        self._writer.put(record, text, quietly=will_retry or record.is_paused)
        if not will_retry:
            self._search.learn(record)
            self._settle(record)
        self.report_written()

    def _settle(self, record: Record) -> None:
        """A fold-run has ended, or pauses."""
        if record.is_paused:
            self._paused[record.key] = record
            return
        self._paused.pop(record.key, None)
        self._tally.count(record)
        if record.is_done:
            self._trained.add(record.key)
            self._failed.pop(record.key, None)
        elif record.is_failed:
            self._failed[record.key] = record.reason
        if not record.is_stopped:
            self._close_if_hopeless(record)

    def report_written(self) -> None:
        """Pass on the records that reached the ledger, and end the run if the ledger takes no more."""
        for record in self._writer.written():
            self._listeners.on_record(record)
        if self._writer.error is not None and self.error is None:
            if not isinstance(self._writer.error, RaymrcError):
                raise self._writer.error
            self.give_up(self._writer.error)

    def _will_retry(self, record: Record) -> bool:
        key = record.key
        self._spent_failing[key] = record.device_seconds + record.failed_device_seconds
        is_closed = record.fold_run.configuration.cell in self._closed
        if is_closed or not record.may_pass or self._retries[key] >= self._terms.retries:
            return False
        self._retries[key] += 1
        self._to_retry[key] = record
        return True

    def _close_if_hopeless(self, record: Record) -> None:
        configuration = record.fold_run.configuration
        failing = self._failing[configuration.cell]
        if record.is_done:
            failing.clear()
            return
        failing.add(configuration.id)
        limit = self._terms.close_cell_after
        if limit is not None and len(failing) >= limit and configuration.cell not in self._closed:
            self._closed.add(configuration.cell)
            self._newly_closed.append(configuration.cell)
            self._search.close_cell([*self._failing].index(configuration.cell))
            # Retries of this cell are cancelled, so their failures are final.
            for waiting in list(self._to_retry.values()):
                if waiting.fold_run.configuration.cell == configuration.cell:
                    del self._to_retry[waiting.key]
                    self._writer.put(waiting)
                    self._tally.count(waiting)
                    self._failed[waiting.key] = waiting.reason

    def take_closed_cells(self) -> list[Cell]:
        """Cells abandoned since the last call."""
        found, self._newly_closed = self._newly_closed, []
        return found

    def _record_stops(self) -> None:
        """Record the paused fold-runs of configurations that races have just stopped."""
        for stop in self._search.take_stops():
            runs = self._search.fold_runs(stop.configuration)
            self._stopped |= runs.keys()
            paused = {key: self._paused[key] for key in runs if key in self._paused}
            if not paused:
                # Every fold it started is finished. Mark one unstarted fold as stopped; otherwise the rest
                # stays pending forever.
                key = next(key for key in runs if key not in self._search.done)
                paused = {key: empty_record(runs[key])}
            for record in paused.values():
                self._record(replace(record, status=RecordStatus.STOPPED, reason=stop.reason))

    def _finish_stops(self, records: Sequence[Record]) -> None:
        """A killed driver may have recorded a stop for some of a configuration's fold-runs only."""
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
            self._record(
                replace(self._paused[key], status=RecordStatus.STOPPED, reason=reasons[key])
            )

    def give_up(self, error: RaymrcError) -> None:
        """End the run with this error; what is done is kept."""
        self.error = self.error or error
        self.stop()

    def stop(self) -> None:
        self.stopping.set()

    def show(self, *, now: bool = False) -> None:
        """Pass on a snapshot, at most one per `SNAPSHOT_SECONDS` unless `now`."""
        moment = time.monotonic()
        if self._listeners.on_progress is None:
            return
        if now or moment - self._shown_at >= SNAPSHOT_SECONDS:
            self._shown_at = moment
            waiting, trouble = self._writer.trouble
            raced, to_race = self._search.epochs
            self._listeners.on_progress(
                Snapshot(
                    total=self.plan.num_fold_runs - self._num_spared,
                    done=self._tally.num_done,
                    spared=self._num_spared,
                    reused=self._tally.num_done - len(self._trained),
                    failed=len(self._failed),
                    running=tuple(self._now.values()),
                    cells=self.cells(),
                    wall_seconds=moment - self._began,
                    spent=self.spending.text,
                    waiting=waiting,
                    trouble=trouble,
                    raced=(raced - self._raced_before, to_race) if self.races else None,
                )
            )

    def cells(self) -> tuple[CellProgress, ...]:
        """The progress of each cell, in plan order."""
        return self._tally.cells(self._closed)

    def outcome(self) -> StudyOutcome:
        settled = self._tally.num_done + len(self._failed) + self._num_spared
        is_unfinished = settled < self.plan.num_fold_runs
        return StudyOutcome(
            total=self.plan.num_fold_runs,
            done=len(self._trained),
            reused=self._tally.num_done - len(self._trained),
            failed=len(self._failed),
            interrupted=self.stopping.is_set() and is_unfinished and not self.spending.stopped,
            wall_seconds=time.monotonic() - self._began,
            reasons=count_reasons(self._failed.values()),
            spared=self._num_spared,
            out_of_budget=self.spending.stopped if is_unfinished else "",
            spent=self.spending.spent,
            device_seconds=self.spending.device_seconds,
            closed=tuple(
                (cell.name, left)
                for cell in self.cells()
                if cell.closed and (left := cell.total - cell.done - cell.failed)
            ),
        )

    @property
    def _num_spared(self) -> int:
        return sum(map(self._search.num_spared, range(len(self.plan.cells))))


class _Tally:
    """Counts per cell and the best configuration so far; a record costs one look-up."""

    def __init__(self, plan: Plan, search: StudySearch, records: Sequence[Record]) -> None:
        self._plan = plan
        self._search = search
        self._cells = {cell.cell: index for index, cell in enumerate(plan.cells)}
        self._done: list[set[str]] = [set() for _ in plan.cells]
        self._failed: list[set[str]] = [set() for _ in plan.cells]
        self._best: list[tuple[float, Configuration] | None] = [None] * len(plan.cells)
        for record in records:
            if record.is_done:
                self.count(record)

    @property
    def num_done(self) -> int:
        return sum(len(done) for done in self._done)

    def count(self, record: Record) -> None:
        configuration = record.fold_run.configuration
        index = self._cells.get(configuration.cell)
        if index is None or record.key not in self._search.fold_runs(configuration):
            return  # on other notes, folds or weights
        if not self._plan.cells[index].holds(configuration):
            return  # of an earlier version of the study
        if not record.is_done:
            if record.is_failed:
                self._failed[index].add(record.key)
            return
        self._failed[index].discard(record.key)
        self._done[index].add(record.key)
        if record.fold_run.is_test:
            return  # a final test chooses nothing
        value = self._search.value(configuration)
        best = self._best[index]
        if value is not None and (best is None or value > best[0]):
            self._best[index] = (value, configuration)

    def cells(self, closed: Collection[Cell]) -> tuple[CellProgress, ...]:
        return tuple(
            CellProgress(
                name=cell.cell.name,
                total=cell.num_fold_runs - self._search.num_spared(index),
                done=len(self._done[index]),
                failed=len(self._failed[index]),
                best=_describe(cell, best[1]) if (best := self._best[index]) else "",
                best_f1=best[0] if best else None,
                closed=cell.cell in closed,
            )
            for index, cell in enumerate(self._plan.cells)
        )


def _describe(cell: CellPlan, configuration: Configuration) -> str:
    """The fields that the cell searches over."""
    searched = {*cell.space.grids, *cell.space.distributions}
    return " ".join(
        f"{field.name}={getattr(configuration, field.name)}"
        for field in fields(configuration)
        if field.name in searched
    )
