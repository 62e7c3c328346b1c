"""A study, start to end: one Tune run whose trials are configurations of all cells.

    search -> Tune trial -> fold-runs on hosts -> record -> ledger -> on_record

Nothing is kept in Tune that is needed again: the ledger says what is left to do, so a
study that was killed anywhere is resumed by running it.
"""

from __future__ import annotations

import fcntl
import gc
import logging
import math
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

import raymrc
from raymrc.errors import LedgerError, RaymrcError
from raymrc.model.strategies import STRATEGIES
from raymrc.study.budget import Account, Budget, Journal, Need, Spent, overhead, unfinished
from raymrc.study.configuration import Cell, Configuration, FoldRun
from raymrc.study.earlier import RatePrior
from raymrc.study.files import Files, absolute, not_writable, open_files, said
from raymrc.study.ledger import Ledger
from raymrc.study.placement import LANES
from raymrc.study.plan import CellPlan, Plan
from raymrc.study.record import Record
from raymrc.study.verdict import count_reasons
from raymrc.sweep.progress import CellProgress, Snapshot
from raymrc.sweep.search import StudySearch, Work

# isort: split
import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raymrc.sweep.allowance import Allowance
from raymrc.sweep.board import SOLO, Crew
from raymrc.sweep.capacity import can_grow, check_crew, count_devices
from raymrc.sweep.failures import FailureTerms, failed_record
from raymrc.sweep.hosts import SAVED, HostTerms, OpenPool
from raymrc.sweep.keeping import PATIENCE_SECONDS, Keeper
from raymrc.sweep.metrics import Meters, check_port, tell_cells, tell_end
from raymrc.sweep.reception import Closing, Stopped, open_reception
from raymrc.sweep.trial import run_trial

DEATHS = 2
"""So many trials' processes may die under one fold-run before it counts as failed."""

FILL = {"cpu": 1, "gpu": 8}
"""Fold-runs that are worth one more host: a core has nothing better to do, a GPU costs money."""

MOST_TRIALS = 64
"""At once: each is a process of about 100 MB on the head node."""

HEAD = "node:__internal_head__"
"""A resource that Ray gives to the head node alone, 1.0 of it."""

MOST_HOSTS = 64
"""On a cluster that others own, or that may grow, where the study does not say."""

OBJECT_STORE_BYTES = 256 * 2**20
"""Holds the notes and what hosts report; Ray's default of 30 % of memory is for data sets."""

SNAPSHOT_SECONDS = 0.5

BLIND_SECONDS = 30.0
"""A storage that could not be asked is not asked again for so long: each try may take a minute."""

CLOSE_SECONDS = 6.0
"""Hosts are given so long to be ended one by one; then they go with who started them."""

SPENT_SECONDS = 2.0
"""So often it is asked what is spent, to show it."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What one host holds while it is there.

    Args:
        max_hosts: at most so many devices at once; None for as many as fit.
        lanes: frozen fold-runs on one host at once, at most; None: see `placement.LANES`.
        save_seconds: an epoch's end within so long of the last one is not saved; what is lost with
            a host is an epoch or this, whichever is longer (or twenty times what saving takes). 0: all
            are, whatever it takes.
        device: what torch computes on; None: "cuda" where a host has a GPU.
        patience_seconds, together: of worker groups; see `hosts.HostTerms`.
        metrics_port: where a cluster of our own exports metrics; None: it tells none. Other clusters have
            ports of their own.
    """

    cpus_per_host: float = 1.0
    gpus_per_host: float = 0.0
    max_hosts: int | None = None
    lanes: int | None = None
    save_seconds: float = 5.0
    device: str | None = None
    patience_seconds: float = 60.0
    together: bool = False
    metrics_port: int | None = None

    @property
    def kind(self) -> str:
        return "gpu" if self.gpus_per_host else "cpu"


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


def run_study(
    plan: Plan,
    ledger: Ledger,
    open_pool: OpenPool,
    data: Any = None,
    *,
    folder: Path,
    resources: Resources | None = None,
    scheduler: TrialScheduler | None = None,
    rates: Mapping[Cell, RatePrior] | None = None,
    on_record: Callable[[Record], None] | None = None,
    on_progress: Callable[[Snapshot], None] | None = None,
    budget: Budget | None = None,
    expect: Callable[[FoldRun], Need | None] | None = None,
    failures: FailureTerms | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
) -> StudyOutcome:
    """Train what the ledger lacks of a plan.

    Uses a cluster that this process is connected to, the one that RAY_ADDRESS names, or one
    of its own, which it ends again. Takes Ctrl-C and SIGTERM for the time being: the first one ends the
    study, a second one at once.

    Args:
        plan: with fingerprints.
        open_pool: called in hosts as `open_pool(backbone, data)`; see `hosts.LanePool`.
        data: what every fold-run needs (notes, folds, questions); sent once to each host.
        scheduler: any of Tune's. A trial that it stops counts as settled with the fold-runs it has.
        folder: of the study, on this machine; all that spills to disk stays below it. What hosts save
            of running fold-runs lies in the ledger's storage, below "saved".
        rates: by cell, what earlier studies say of learning rates; only races look at it.
        on_record: told of every new record, once it is in the ledger, failed ones too.
        on_progress: told now and then.
        budget: what the study may spend, this run and all others together; None: what is spent is only
            written down.
        expect: what a fold-run is expected to cost; None where that is not known.
        failures: what becomes of fold-runs that fail; None: `FailureTerms`' own.
        patience_seconds: finished records wait so long for a storage that refuses; training goes on.

    Raises:
        LedgerError: a record cannot be read, or not be written for so long; or what runs have spent cannot
            be read, or not be written for longer than a budget allows.
        RaymrcError: Ray cannot be started, or has too little for one host; or the actor that shares
            out the work died.
    """
    records, problems = ledger.read_all()
    if problems:
        raise LedgerError("\n".join(problems))
    saved = _Saved(ledger.storage)
    spending = _Spending(
        Budget() if budget is None else budget, saved.storage, records, expect or (lambda run: None)
    )
    keeper = Keeper(ledger.record, saved.drop_of, patience_seconds)
    study = _Study(
        plan, ledger, records, on_record, on_progress, saved, spending, keeper, failures, rates
    )
    try:
        if study.has_work and spending.may_begin():
            # Ray says on stdout, unasked, what its machines are at; stdout is for answers.
            quiet, catching = redirect_stdout(sys.stderr), _catch_interrupt(study.stop)
            with quiet, catching as catch, _workplace(folder) as workplace, spending:
                _run_tune(
                    study, open_pool, data, resources or Resources(), scheduler, workplace, catch
                )
    finally:
        keeper.close(study.show)
        study.tell_kept()
        saved.tidy(study.finished)
    study.show(now=True)
    if study.error is not None:
        raise study.error
    return study.outcome()


class _Study:
    """The state of one run: what is in flight, what came of it. Knows nothing of Tune."""

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        records: Sequence[Record],
        on_record: Callable[[Record], None] | None,
        on_progress: Callable[[Snapshot], None] | None,
        saved: _Saved,
        spending: _Spending,
        keeper: Keeper,
        failures: FailureTerms | None = None,
        rates: Mapping[Cell, RatePrior] | None = None,
    ) -> None:
        self.plan = plan
        self.ledger = ledger
        self.saved = saved
        self.spending = spending
        self.meters = Meters()
        self.stopping = threading.Event()
        self.error: RaymrcError | None = None
        self._on_record = on_record or (lambda record: None)
        self._on_progress = on_progress
        self._search = StudySearch(plan, records, self._look, rates)
        self._board = _Board(plan, self._search, records)
        self._in_flight: dict[str, Work] = {}
        self._idle: set[str] = set()
        self._now: dict[str, str] = {}
        self._deaths: dict[str, int] = {}
        self._trained: set[str] = set()
        self._failed: dict[str, str] = {}
        self._paused = {r.key: r for r in records if r.status == "paused"}
        self._keeper = keeper
        self._terms = failures or FailureTerms()
        self._blind_until = -math.inf
        self._tries: Counter[str] = Counter()
        self._again: dict[str, Record] = {}
        self._spent_failing = {
            r.key: r.device_seconds + r.failed_device_seconds
            for r in records
            if r.status == "failed"
        }
        self._failing: dict[Cell, set[str]] = {cell.cell: set() for cell in plan.cells}
        self._closed: set[Cell] = set()
        self._newly_closed: list[Cell] = []
        self._began = time.monotonic()
        self._shown_at = 0.0
        self._raced_before = self._search.epochs[0]
        self._next = self._search.next()

    @property
    def has_work(self) -> bool:
        return self._next is not None

    @property
    def finished(self) -> Collection[str]:
        """Keys of what is done, whoever has trained it."""
        return self._search.done.keys()

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
            self._board.enter(record)
        return record

    def take(self, trial_id: str, slots: int = 1) -> Work | None:
        """Work for a new trial; None when there is none now.

        Args:
            slots: trials that could start now, this one included.
        """
        if self.stopping.is_set():
            return None
        work = self._next or self._search.next(slots)
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
    def idle(self) -> tuple[str, ...]:
        """Trials of races that have no leg to train."""
        return tuple(self._idle)

    def _keep(self, record: Record, text: str | None = None) -> None:
        if self.error is not None:
            return
        spent = self._spent_failing.get(record.key)
        if spent:
            record, text = replace(record, failed_device_seconds=spent), None
        tries_again = record.status == "failed" and self._tries_again(record)
        price = self.spending.budget.device_hour_usd
        tell_end(self.meters, record, price, tries_again=tries_again)
        # A failed try is kept too, until the next one takes its place: its cost is not forgotten. So is a
        # pause, which is no end either.
        self._keeper.put(record, text, quietly=tries_again or record.status == "paused")
        if not tries_again:
            self._search.learn(record)
            self._settle(record)
        self.tell_kept()

    def _settle(self, record: Record) -> None:
        """A fold-run has come to an end, or pauses."""
        if record.status == "paused":
            self._paused[record.key] = record
            return
        self._paused.pop(record.key, None)
        self._board.enter(record)
        if record.status == "done":
            self._trained.add(record.key)
            self._failed.pop(record.key, None)
        elif record.status == "failed":
            self._failed[record.key] = record.reason
        if record.status != "stopped":
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
        if record.status == "done":
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
                    self._board.enter(waiting)
                    self._failed[waiting.key] = waiting.reason

    def newly_closed(self) -> list[Cell]:
        """Cells of which nothing more is to be begun, since this was last asked."""
        found, self._newly_closed = self._newly_closed, []
        return found

    def _keep_stops(self) -> None:
        """What was trained of those that races have stopped is kept with the reason."""
        for stop in self._search.take_stops():
            for key in self._search.fold_runs(stop.configuration):
                paused = self._paused.get(key)
                if paused is not None:
                    self._keep(replace(paused, status="stopped", reason=stop.reason))
                elif key in self.saved.left:  # by a driver that died before it heard of it
                    self.saved.drop(key)

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
            if self._deaths[key] >= DEATHS:
                self._keep(
                    failed_record(left[0], "its trial's process died, as for want of memory")
                )
                left = self._unsettled(work)
        if left and work.configuration.cell not in self._closed:
            self._search.give_back(replace(work, fold_runs=left))
        else:
            self._search.settle(work)

    def _unsettled(self, work: Work) -> tuple[FoldRun, ...]:
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
                    done=self._board.num_done,
                    spared=self._num_spared,
                    reused=self._board.num_done - len(self._trained),
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
        if self.meters.is_due or now:
            tell_cells(self.meters, self.plan.cells, self._cells())

    def _cells(self) -> tuple[CellProgress, ...]:
        return tuple(
            replace(shown, closed=plan.cell in self._closed)
            for shown, plan in zip(self._board.cells(), self.plan.cells, strict=True)
        )

    @property
    def _raced(self) -> tuple[int, int]:
        done, left = self._search.epochs
        return done - self._raced_before, left

    def outcome(self) -> StudyOutcome:
        settled = self._board.num_done + len(self._failed) + self._num_spared
        return StudyOutcome(
            total=self.plan.num_fold_runs,
            done=len(self._trained),
            reused=self._board.num_done - len(self._trained),
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
                for shown, plan in zip(self._board.cells(), self.plan.cells, strict=True)
                if plan.cell in self._closed and (left := shown.total - shown.done - shown.failed)
            ),
        )

    @property
    def _num_spared(self) -> int:
        return sum(map(self._search.num_spared, range(len(self.plan.cells))))

    @property
    def races(self) -> bool:
        return self._search.races


class _Saved:
    """What hosts have saved of fold-runs that are not finished, in the study's storage.

    Raises:
        LedgerError: the storage cannot be opened.
    """

    def __init__(self, storage: str) -> None:
        self.storage = absolute(storage)
        self.files: Files = open_files(self.storage, SAVED)

    @cached_property
    def left(self) -> dict[str, str]:
        """The latest state of each key, as earlier runs have left them."""
        latest: dict[str, str] = {}
        try:
            names = sorted(self.files.names())
        except OSError as error:
            where = self.files.place("")
            raise LedgerError(f"{where}: the store refuses ({said(error)})") from None
        for name in names:
            key, _, rest = name.partition("/")
            if rest.isdigit():
                latest[key] = name
        return latest

    def drop_of(self, record: Record) -> None:
        """What is not needed any more once this is in the ledger."""
        if record.status != "paused":
            self.drop(record.key)

    def drop(self, key: str) -> None:
        with suppress(OSError):  # it is in nobody's way
            self.files.remove_all(key)

    def tidy(self, finished: Collection[str]) -> None:
        """Of what is finished a driver that was killed may have left something, or its hosts after it."""
        with suppress(OSError):
            for key in {name.partition("/")[0] for name in self.files.names()}:
                if key in finished:
                    self.drop(key)

    @contextmanager
    def marker(self) -> Iterator[str]:
        """A file that hosts look for, to see whether they see the storage."""
        name = f".seen-{secrets.token_hex(4)}"
        try:
            self.files.write(name, b"", replace=True)
        except OSError as error:
            raise not_writable(self.files, error) from None
        try:
            yield name
        finally:
            with suppress(OSError):
                self.files.remove(name)


class _Spending:
    """The account of this run, from its beginning to its end.

    Args:
        records: of the ledger.
        expect: what a fold-run is expected to cost.

    Raises:
        LedgerError: what was spent cannot be read.
    """

    def __init__(
        self,
        budget: Budget,
        storage: str,
        records: Sequence[Record],
        expect: Callable[[FoldRun], Need | None],
    ) -> None:
        self.budget = budget
        self.expect = expect
        self.stopped = ""
        self.spent: Spent | None = None
        self.device_seconds = 0.0
        self._journal = Journal(storage)
        entries = self._journal.entries()
        self.account = Account(budget, entries, time.time(), time.monotonic())
        self.unfinished = unfinished(entries)
        held = sum(entry.device_seconds for entry in entries)
        self.overhead = overhead(held, sum(record.device_seconds for record in records))
        self._is_settled = self._is_shared = False

    @property
    def told(self) -> str:
        """What is spent of the budget; "" where there is none."""
        return self.budget.told(self.spent) if self.budget and self.spent is not None else ""

    def may_begin(self) -> bool:
        moment = time.monotonic()
        if self.account.seconds_left_of_budget(moment) > 0:
            return True
        self.spent = self.account.spent(moment)
        self.stopped = self.budget.reached(self.spent)
        return False

    def __enter__(self) -> None:
        """Wall time counts from here on."""
        moment = time.monotonic()
        lease = self.account.lease(time.time(), moment, 0.0)
        self._journal.write(lease)
        self.account.paid(lease, moment, 0.0)

    def share(self) -> Account:
        """For the reception, which from now on writes what is spent."""
        self._is_shared = True
        return self.account

    def settle(self, closing: Closing) -> None:
        """The reception has told what it was, and written it."""
        self.spent, self.device_seconds = closing.spent, closing.device_seconds
        if closing.stopped is not None and closing.stopped.by_budget:
            self.stopped = closing.stopped.sentence

    def __exit__(self, *error: object) -> None:
        if not self._is_shared:  # no host was ever asked for
            with suppress(LedgerError):
                self._journal.write(self.account.last(time.time(), time.monotonic()))

    def needs(self, fold_runs: Sequence[FoldRun]) -> dict[str, Need]:
        """Of those of which something is known, by key."""
        if not self.budget:
            return {}
        found = {run.key: self.expect(run) for run in fold_runs}
        return {key: need for key, need in found.items() if need is not None}


class _Board:
    """Counts by cell, and the best configuration so far; each record costs a look-up."""

    def __init__(self, plan: Plan, search: StudySearch, records: Sequence[Record]) -> None:
        self._plan = plan
        self._search = search
        self._cells = {cell.cell: index for index, cell in enumerate(plan.cells)}
        self._done: list[set[str]] = [set() for _ in plan.cells]
        self._failed: list[set[str]] = [set() for _ in plan.cells]
        self._best: list[tuple[float, Configuration] | None] = [None] * len(plan.cells)
        for record in records:
            if record.status == "done":
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
        if record.status != "done":
            if record.status == "failed":
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


# --- Tune ----------------------------------------------------------------------------------------


class _NotKept:
    """Tune pickles its parts to restore them some day. Ours are made from the ledger instead."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Search(_NotKept, Searcher):
    """Tune asks here for trials.

    Args:
        most: in flight at once.
        reception: the actor. Work is handed in before there is a trial's process to wait for what
            comes of it, and withdrawn when a trial is over, whoever ended it.
    """

    def __init__(self, study: _Study, most: int, reception: Any) -> None:
        super().__init__()
        self._study = study
        self._most = most
        self._reception = reception
        self._turn = 0

    def suggest(self, trial_id: str) -> Any:
        if self._study.idle or self._study.num_in_flight >= self._most:
            return None
        work = self._hand_out(trial_id)
        if work is not None:
            return {"work": work}
        # What a dead trial leaves behind will be handed out again.
        return None if self._study.num_in_flight else Searcher.FINISHED

    def go_on(self) -> None:
        """Trials of races take leg after leg, for as long as there may be one: to start a trial takes
        longer than many an epoch."""
        for trial_id in self._study.idle:
            if self._hand_out(trial_id) is None and not self._study.num_in_flight:
                self._reception.withdraw.remote(trial_id)
                self._study.end(trial_id)

    def _hand_out(self, trial_id: str) -> Work | None:
        work = self._study.take(trial_id, self._most - self._study.num_in_flight)
        if work is not None:
            needs = self._study.spending.needs(work.fold_runs)
            self._turn += 1
            self._reception.submit.remote(
                trial_id,
                work.fold_runs,
                work.until,
                needs,
                stays=self._study.races,
                turn=self._turn,
            )
        return work

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        withdrawn = self._reception.withdraw.remote(trial_id)
        if error:
            try:
                ray.get(withdrawn)
            except RayError:
                self._study.give_up(
                    RaymrcError(
                        "the process that shares out fold-runs has died, as for want of memory; "
                        "run the study again: what is done is kept"
                    )
                )
        self._study.end(trial_id, died=error)

    def save(self, checkpoint_path: str) -> None:
        """The ledger has all that is needed."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a study is resumed from its ledger, not from Tune")


class _InOrder(_NotKept, FIFOScheduler):
    """Every trial to its end."""


class _Receiver(_NotKept, tune.Callback):
    """Tune hands over here what trials report."""

    def __init__(self, study: _Study, search: _Search, reception: Any) -> None:
        self._study = study
        self._search = search
        self._reception = reception
        self._verdict = reception.verdict.remote()
        self._stopped = reception.stopped.remote()
        self._spent: Any = None
        self._asked_at = -math.inf

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._study.receive(trial.trial_id, result)
        result.pop("record", None)  # Tune keeps the last result of every trial

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._look_at_spent()
        self._study.tell_kept()
        for cell in self._study.newly_closed():
            self._reception.close_cell.remote(cell)
        self._search.go_on()
        self._study.show()
        self._study.tell()
        if self._study.stopping.is_set():
            return
        with suppress(RayError):  # the reception has died: every trial says so
            if ray.wait([self._verdict], timeout=0)[0]:
                self._study.give_up(RaymrcError(ray.get(self._verdict)))
            elif ray.wait([self._stopped], timeout=0)[0]:
                stopped: Stopped = ray.get(self._stopped)
                if stopped.by_budget:
                    self._study.stop()
                else:
                    self._study.give_up(LedgerError(stopped.sentence))

    def _look_at_spent(self) -> None:
        """Asked now, read the next time."""
        with suppress(RayError):
            if self._spent is not None and ray.wait([self._spent], timeout=0)[0]:
                self._study.spending.spent = ray.get(self._spent)
                self._spent = None
            if self._spent is None and time.monotonic() - self._asked_at >= SPENT_SECONDS:
                self._asked_at = time.monotonic()
                self._spent = self._reception.spent.remote()


class _Stopper(_NotKept, tune.Stopper):
    def __init__(self, study: _Study) -> None:
        self._study = study

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._study.stopping.is_set()


def _run_tune(
    study: _Study,
    open_pool: OpenPool,
    data: Any,
    resources: Resources,
    scheduler: TrialScheduler | None,
    workplace: Path,
    catch: Callable[[], None],
) -> None:
    """
    Args:
        catch: takes SIGTERM back, which Ray takes where it starts: it would abort this process.
    """
    with _cluster(resources, workplace) as is_ours, study.saved.marker() as marker:
        catch()
        told = study.plan.study if not is_ours or resources.metrics_port is not None else ""
        study.meters = Meters(told)
        terms = HostTerms(
            cpus=resources.cpus_per_host,
            gpus=resources.gpus_per_host,
            num_threads=max(1, int(resources.cpus_per_host)),
            save_seconds=resources.save_seconds,
            storage=study.saved.storage,
            marker=marker,
            device=resources.device or ("cuda" if resources.gpus_per_host else "cpu"),
            folder=str(Path.cwd()),
            scratch=str(workplace),
            patience_seconds=resources.patience_seconds,
            together=resources.together,
            told=told,
        )
        crews = {plan.cell: _crew(plan) for plan in study.plan.cells}
        grows = not is_ours and can_grow()
        slots = count_slots(resources, terms, set(crews.values()), grows=grows)
        max_devices = resources.max_hosts or max(slots, MOST_HOSTS) if grows else slots
        lanes = 1
        if any(not STRATEGIES[cell.cell.strategy].trains_backbone for cell in study.plan.cells):
            lanes = resources.lanes or LANES[resources.kind]
        reception = open_reception(
            open_pool,
            data,
            terms,
            study.spending.share(),
            lanes=lanes,
            max_devices=max_devices,
            fill=FILL[resources.kind],
            crews={cell: (least, min(most, max_devices)) for cell, (least, most) in crews.items()},
            saved=study.saved.left,
            allowance=_allowance(study.spending, terms),
        )
        # Enough trials that hosts find work, and one more. That one is not to have a process: it takes
        # over the next that gets free, where Tune would end two that get free at once.
        # A race's trials are of single fold-runs, for the most part, and none gets free before the end.
        folds, spare = (1, 0) if study.races else (study.plan.folds, 1)
        most = min(MOST_TRIALS, math.ceil(max_devices * lanes / folds) + spare)
        running = most - spare if is_ours else 2 * MOST_TRIALS  # on a cluster that others use too
        share = math.floor(1e4 / running) / 1e4  # Ray counts in such steps
        search = _Search(study, most, reception)
        try:
            with _environment(TUNE_MAX_PENDING_TRIALS_PG=str(most)):
                tune.Tuner(
                    # Trials only wait and pass on. They stay where no spot instance takes them away,
                    # and leave the cores to hosts.
                    tune.with_resources(
                        tune.with_parameters(run_trial, reception=[reception]),
                        {"cpu": 0, HEAD: share},
                    ),
                    tune_config=tune.TuneConfig(
                        search_alg=search,
                        scheduler=scheduler or _InOrder(),
                        num_samples=-1,
                        reuse_actors=True,
                        trial_dirname_creator=lambda trial: str(trial.trial_id),
                    ),
                    run_config=tune.RunConfig(
                        name="tune",
                        storage_path=str(workplace),
                        callbacks=[_Receiver(study, search, reception)],
                        stop=_Stopper(study),
                        verbose=0,
                    ),
                ).fit()
        finally:
            study.tell(now=True)
            with suppress(RayError):  # it may be gone, and its hosts with it
                study.spending.settle(ray.get(reception.close.remote(), timeout=CLOSE_SECONDS))
            ray.kill(reception)


def _allowance(spending: _Spending, terms: HostTerms) -> Allowance | None:
    if not spending.budget:
        return None
    return Allowance(terms.devices(SOLO), spending.overhead, spending.unfinished)


def _crew(plan: CellPlan) -> Crew:
    placement = plan.placement
    return placement.workers if placement and placement.mode == "group" else SOLO


def count_slots(
    resources: Resources, terms: HostTerms, crews: Collection[Crew], *, grows: bool
) -> int:
    """How many devices there are for hosts.

    Args:
        grows: where an autoscaler is at work, what is not there may come; at least one is counted on.

    Raises:
        RaymrcError: too few for a host, or for the smallest group.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    slots = count_devices(nodes, {"CPU": resources.cpus_per_host, "GPU": resources.gpus_per_host})
    groups = count_devices(nodes, terms.resources)
    most = resources.max_hosts
    for crew in crews:
        if most is not None and crew[0] > most:
            raise RaymrcError(
                f"a worker group wants at least {crew[0]} devices and resources.max_hosts is {most}; "
                "set one of them otherwise"
            )
    if grows:
        return max(1, slots)
    for crew in crews:
        check_crew(crew, terms, slots if crew == SOLO else groups)
    return min(slots, most or slots)


# --- the place where it runs -----------------------------------------------------------------------


@contextmanager
def _cluster(resources: Resources, workplace: Path) -> Iterator[bool]:
    """Ray, connected; gives True where it is a cluster of our own, which is ended at the end."""
    if ray.is_initialized():
        yield False
        return
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"address": address}
    if not address:
        cpus = os.cpu_count() or 1
        if hasattr(os, "sched_getaffinity"):
            cpus = len(os.sched_getaffinity(0))
        most = resources.max_hosts
        if most is not None and resources.cpus_per_host > 0:
            cpus = max(1, min(cpus, int(most * resources.cpus_per_host)))
        if resources.metrics_port is not None:
            check_port(resources.metrics_port)
        spill = workplace / "spill"
        spill.mkdir()
        options = {
            "address": "local",
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            # What does not fit into memory holds notes: it stays in the study's folder.
            "object_spilling_directory": str(spill),
            # Ray's agent, which exports, is there without the dashboard too.
            "_metrics_export_port": resources.metrics_port,
        }
    # Workers import raymrc from where this process has it, installed or not.
    package = str(Path(raymrc.__file__).resolve().parents[1])
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    with _environment(PYTHONPATH=os.pathsep.join(dict.fromkeys(paths))):
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:
            ray.shutdown()
            # Of a node that is slow to start Ray raises nothing more telling than an Exception.
            kinds = (ConnectionError, RuntimeError, ValueError, OSError)
            if type(error) is not Exception and not isinstance(error, kinds):
                raise
            where = f"at {address}" if address else "on this machine"
            raise RaymrcError(
                f"Ray cannot be started {where} ({type(error).__name__}); where the machine is busy, "
                "run the study again: what is done is kept"
            ) from None
        try:
            yield not address
        finally:
            _shut_down()


def _shut_down() -> None:
    """End Ray while no other thread can free what belongs to it.

    An object reference that another thread's garbage collection frees while the core worker is
    going down ends the whole process, with code 1 and no exception. Tune leaves such
    references in cycles, and the thread that writes to MLflow allocates enough to trigger one.
    """
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A folder below the study's for what Tune and Ray write; it goes with the run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=".sweep-", dir=folder.resolve()))
        lock = (place / "lock").open("w")
    except OSError as error:
        raise RaymrcError(f"{folder}: cannot be written to ({error.strerror})") from None
    with lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
            _clear_workplaces(place)
        try:
            yield place
        finally:
            _clear_workplaces(place)  # of one that was killed meanwhile
            shutil.rmtree(place, ignore_errors=True)


def _clear_workplaces(mine: Path) -> None:
    """Takes away what drivers that were killed have left beside this one; it may hold notes. Those that live
    hold their locks."""
    for other in mine.parent.glob(".sweep-*"):
        with suppress(OSError), (other / "lock").open("r+") as lock:
            if other != mine:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(other, ignore_errors=True)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _catch_interrupt(stop: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """The first Ctrl-C asks for an end, the second is the ordinary one. So does SIGTERM: it is how
    clouds, batch systems and Kubernetes say that a machine will be taken away.

    Yields:
        What catches them again, where somebody else has begun to.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    was_asked = False

    def catch() -> None:
        for number in () if was_asked else before:
            signal.signal(number, interrupt)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal was_asked
        was_asked = True
        stop()
        restore()

    catch()
    try:
        yield catch
    finally:
        restore()
