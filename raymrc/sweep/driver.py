"""A study, start to end: one Tune run whose trials are configurations of all cells.

    search -> Tune trial -> fold-runs on hosts -> record -> ledger -> on_record

Nothing is kept in Tune that is needed again: the ledger says what is left to do, so a
study that was killed anywhere is resumed by running it.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from raymrc.configuration import FoldRun
from raymrc.costs.budget import Budget, Need
from raymrc.errors import LedgerError, RaymrcError
from raymrc.ledger.ledger import Ledger
from raymrc.ledger.record import Record
from raymrc.model.strategies import STRATEGIES
from raymrc.planning.placement import LANES, PlacementMode
from raymrc.planning.plan import CellPlan, Plan
from raymrc.scheduling.progress import Snapshot
from raymrc.scheduling.search import WorkItem

# isort: split
import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raymrc.scheduling.allowance import Allowance
from raymrc.scheduling.checkpoints import Checkpoints
from raymrc.scheduling.cluster_survey import check_room, count_devices
from raymrc.scheduling.failures import FailureTerms
from raymrc.scheduling.only_run import only_run
from raymrc.scheduling.orders import SINGLE_DEVICE, WorkerRange
from raymrc.scheduling.record_writer import OUTAGE_PATIENCE_SECONDS, RecordWriter
from raymrc.scheduling.spending import Spending, Stopped
from raymrc.scheduling.state import Room, StudyOutcome, StudyRun
from raymrc.sweep.coordinator import open_coordinator
from raymrc.sweep.hosts import HostTerms, OpenPool
from raymrc.sweep.metrics import MetricPublisher
from raymrc.sweep.ray_cluster import alive_nodes
from raymrc.sweep.ray_internals import HEAD_RESOURCE, read_cluster_status
from raymrc.sweep.session import (
    HostResources,
    catch_interrupt,
    clear_session_folders,
    cluster,
    environment,
    make_session_folder,
)
from raymrc.sweep.trial import run_trial

FILL = {"cpu": 1, "gpu": 8}
"""Fold-runs that are worth one more host: a core has nothing better to do, a GPU costs money."""

MOST_TRIALS = 64
"""At once: each is a process of about 100 MB on the head node."""

MOST_HOSTS = 64
"""On a cluster that others own, or that may grow, where the study does not say."""

CLOSE_SECONDS = 6.0
"""Hosts are given so long to be ended one by one; then they go with who started them."""

SPENT_SECONDS = 2.0
"""So often it is asked what is spent, to show it."""


def run_study(
    plan: Plan,
    ledger: Ledger,
    open_pool: OpenPool,
    data: Any = None,
    *,
    folder: Path,
    resources: HostResources | None = None,
    scheduler: TrialScheduler | None = None,
    on_record: Callable[[Record], None] | None = None,
    on_progress: Callable[[Snapshot], None] | None = None,
    budget: Budget | None = None,
    expect: Callable[[FoldRun], Need | None] | None = None,
    failures: FailureTerms | None = None,
    say: Callable[[str], None] | None = None,
    patience_seconds: float = OUTAGE_PATIENCE_SECONDS,
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
        on_record: told of every new record, once it is in the ledger, failed ones too.
        on_progress: told now and then.
        budget: what the study may spend, this run and all others together; None: what is spent is only
            written down.
        expect: what a fold-run is expected to cost; None where that is not known.
        failures: what becomes of fold-runs that fail; None: `FailureTerms`' own.
        say: told in a sentence what it waits for before anything starts.
        patience_seconds: finished records wait so long for a storage that refuses; training goes on.

    Raises:
        LedgerError: a record cannot be read, or not be written for so long; or what runs have spent cannot
            be read, or not be written for longer than a budget allows.
        StudyError: another run of the study is at work.
        RaymrcError: Ray cannot be started, or has too little for one host; or the actor that shares
            out the work died.
    """
    with ExitStack() as alone:
        is_alone = False
        while True:
            records, problems = ledger.read_all()
            if problems:
                raise LedgerError("\n".join(problems))
            saved = Checkpoints(ledger.storage)
            spending = Spending(
                Budget() if budget is None else budget,
                saved.storage,
                records,
                expect or (lambda run: None),
            )
            keeper = RecordWriter(ledger.record, saved.drop_of, patience_seconds)
            study = StudyRun(
                plan, ledger, records, on_record, on_progress, saved, spending, keeper, failures,
            )  # fmt: skip
            clear_session_folders(folder)
            try:
                if study.has_work and spending.may_begin():
                    if not is_alone:
                        only = only_run(saved.storage, say or (lambda sentence: None))
                        waited, is_alone = alone.enter_context(only), True
                        if waited:  # another run may have gone on until just now
                            continue
                    # Ray says on stdout, unasked, what its machines are at; stdout is for answers.
                    quiet, catching = redirect_stdout(sys.stderr), catch_interrupt(study.stop)
                    with (
                        quiet,
                        catching as catch,
                        make_session_folder(folder) as workplace,
                        spending,
                    ):
                        _run_tune(
                            study, open_pool, data, resources or HostResources(), scheduler, workplace,
                            catch,
                        )  # fmt: skip
                break
            finally:
                keeper.close(study.show)
                study.tell_kept()
                saved.tidy(study.finished)
                clear_session_folders(folder)  # of one that was killed meanwhile
    study.show(now=True)
    if study.error is not None:
        raise study.error
    return study.outcome()


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

    def __init__(self, study: StudyRun, most: int, reception: Any) -> None:
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

    def _hand_out(self, trial_id: str) -> WorkItem | None:
        work = self._study.take(trial_id)
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

    def __init__(self, study: StudyRun, search: _Search, reception: Any) -> None:
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
    def __init__(self, study: StudyRun) -> None:
        self._study = study

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._study.stopping.is_set()


def _run_tune(
    study: StudyRun,
    open_pool: OpenPool,
    data: Any,
    resources: HostResources,
    scheduler: TrialScheduler | None,
    workplace: Path,
    catch: Callable[[], None],
) -> None:
    """
    Args:
        catch: takes SIGTERM back, which Ray takes where it starts: it would abort this process.
    """
    with cluster(resources, workplace) as is_ours, study.saved.marker() as marker:
        catch()
        told = study.plan.study if not is_ours or resources.metrics_port is not None else ""
        study.metrics = MetricPublisher(told)
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
            metrics_study=told,
        )
        ranges = {plan.cell: _worker_range(plan) for plan in study.plan.cells}
        grows = not is_ours and read_cluster_status().can_grow
        slots = count_slots(resources, terms, set(ranges.values()), grows=grows)
        max_devices = resources.max_hosts or max(slots, MOST_HOSTS) if grows else slots
        lanes = 1
        if any(not STRATEGIES[cell.cell.strategy].trains_backbone for cell in study.plan.cells):
            lanes = resources.lanes or LANES[resources.kind]
        reception = open_coordinator(
            open_pool,
            data,
            terms,
            study.spending.share(),
            lanes=lanes,
            max_devices=max_devices,
            fill=FILL[resources.kind],
            worker_ranges={
                cell: WorkerRange(workers.min_devices, min(workers.max_devices, max_devices))
                for cell, workers in ranges.items()
            },
            checkpoints=study.saved.left,
            allowance=_allowance(study.spending, terms),
        )
        study.room = _room(study.plan, max_devices, lanes)
        # Enough trials that hosts find work, and one more. That one is not to have a process: it takes
        # over the next that gets free, where Tune would end two that get free at once.
        # A race's trials are of single fold-runs, for the most part, and none gets free before the end.
        spare = 0 if study.races else 1
        most = (
            study.room.lanes if study.races else math.ceil(max_devices * lanes / study.plan.folds)
        )
        most = min(MOST_TRIALS, most + spare)
        running = most - spare if is_ours else 2 * MOST_TRIALS  # on a cluster that others use too
        share = math.floor(1e4 / running) / 1e4  # Ray counts in such steps
        search = _Search(study, most, reception)
        try:
            with environment(TUNE_MAX_PENDING_TRIALS_PG=str(most)):
                tune.Tuner(
                    # Trials only wait and pass on. They stay where no spot instance takes them away,
                    # and leave the cores to hosts.
                    tune.with_resources(
                        tune.with_parameters(run_trial, coordinator=[reception]),
                        {"cpu": 0, HEAD_RESOURCE: share},
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


def _allowance(spending: Spending, terms: HostTerms) -> Allowance | None:
    if not spending.budget:
        return None
    return Allowance(terms.charge(SINGLE_DEVICE), spending.overhead, spending.unfinished)


def _room(plan: Plan, devices: int, lanes: int) -> Room:
    """For each device what it trains at once; where that is one fold-run, another that waits, so that it has
    no pause between two legs."""
    whole = max(1, lanes // 2)
    return Room(
        max(devices * lanes, 2 * devices),
        {
            cell.cell: whole * _worker_range(cell).min_devices
            for cell in plan.cells
            if STRATEGIES[cell.cell.strategy].trains_backbone
            or _worker_range(cell) != SINGLE_DEVICE
        },
    )


def _worker_range(plan: CellPlan) -> WorkerRange:
    placement = plan.placement
    if placement is None or placement.mode != PlacementMode.GROUP:
        return SINGLE_DEVICE
    return WorkerRange(*placement.workers)


def count_slots(
    resources: HostResources, terms: HostTerms, ranges: Collection[WorkerRange], *, grows: bool
) -> int:
    """How many devices there are for hosts.

    Args:
        grows: where an autoscaler is at work, what is not there may come; at least one is counted on.

    Raises:
        RaymrcError: too few for a host, or for the smallest group.
    """
    nodes = alive_nodes().values()
    slots = count_devices(nodes, {"CPU": resources.cpus_per_host, "GPU": resources.gpus_per_host})
    groups = count_devices(nodes, terms.resources)
    most = resources.max_hosts
    for workers in ranges:
        if most is not None and workers.min_devices > most:
            raise RaymrcError(
                f"a worker group needs at least {workers.min_devices} devices, but resources.max_hosts is "
                f"{most}; raise max_hosts or lower resources.workers"
            )
    if grows:
        return max(1, slots)
    for workers in ranges:
        room = slots if workers == SINGLE_DEVICE else groups
        check_room(workers, terms.resources, room)
    return min(slots, most or slots)
