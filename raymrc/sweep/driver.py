"""Trains a study: one Tune run whose trials are configurations of all cells.

    search -> Tune trial -> fold-runs on hosts -> record -> ledger -> on_record

Tune keeps nothing that is needed again. The ledger says what is left to do, so running a killed study again
resumes it.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Collection
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from raymrc.errors import LedgerError, RaymrcError, StudyError
from raymrc.ledger.ledger import Ledger
from raymrc.ledger.storage import absolute
from raymrc.model.strategies import STRATEGIES
from raymrc.planning.placement import LANES, PlacementMode
from raymrc.planning.plan import CellPlan, Plan
from raymrc.scheduling.cluster_survey import check_room, count_devices
from raymrc.scheduling.only_run import only_run
from raymrc.scheduling.orders import SINGLE_DEVICE, WorkerRange
from raymrc.scheduling.search import WorkItem
from raymrc.scheduling.spending import Stopped
from raymrc.scheduling.state import StudyOutcome, StudyRun
from raymrc.scheduling.terms import Listeners, RunTerms
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

MIN_FOLD_RUNS_PER_HOST = {"cpu": 1, "gpu": 8}
"""One more host starts for this many fold-runs: an idle core costs nothing, a GPU does."""

MAX_TRIALS = 64
"""Trials in flight. Each is a process of about 100 MB on the head node."""

DEFAULT_MAX_HOSTS = 64
"""On an existing cluster that may grow."""

CLOSE_SECONDS = 12.0
"""Time for ending hosts one by one; afterwards they end with the coordinator."""

SPENT_POLL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Training:
    """How fold-runs are trained, and on what.

    Args:
        open_pool: called in hosts as `open_pool(backbone, data)`; see `hosts.LanePool`.
        data: what every fold-run needs (notes, folds, questions); sent once to each host.
        scheduler: any of Tune's; None: every trial runs to its end. A trial that it stops keeps the fold-runs
            that are done and counts as settled.
    """

    open_pool: OpenPool
    data: Any = None
    resources: HostResources = field(default_factory=HostResources)
    scheduler: TrialScheduler | None = None


def run_study(
    plan: Plan,
    ledger: Ledger,
    training: Training,
    folder: Path,
    terms: RunTerms | None = None,
    listeners: Listeners | None = None,
) -> StudyOutcome:
    """Train what the ledger lacks of a plan.

    Uses the cluster that this process is connected to, or that RAY_ADDRESS names, or starts its own and ends
    it again. Handles Ctrl-C and SIGTERM meanwhile: the first one ends the study in order, the second at once.

    Args:
        plan: with fingerprints.
        folder: on this machine; everything that Ray and Tune write stays below it.

    Raises:
        LedgerError: records or the journal cannot be read, or not be written for longer than the terms allow.
        StudyError: another run is training this study.
        RaymrcError: Ray cannot be started, the cluster is too small, or the coordinator died.
    """
    listeners = listeners or Listeners()
    with (
        only_run(absolute(ledger.storage), listeners.log) as is_lost,
        StudyRun(plan, ledger, terms or RunTerms(), listeners) as study,
    ):
        clear_session_folders(folder)
        if study.has_work and study.spending.may_begin():
            with (
                redirect_stdout(sys.stderr),  # Ray prints to stdout, which is for answers
                catch_interrupt(study.stop) as catch_again,
                make_session_folder(folder) as session_folder,
                study.spending,
            ):
                _run_tune(study, training, session_folder, catch_again, is_lost)
    study.show(now=True)
    if study.error is not None:
        raise study.error
    return study.outcome()


# --- Tune ----------------------------------------------------------------------------------------


class _NotPickled:
    """Tune pickles its parts in order to restore them. Ours are made from the ledger instead."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Search(_NotPickled, Searcher):
    """Gives Tune its trials, at most `max_trials` at a time, and the coordinator their work.

    Work is submitted before the trial's process exists, and withdrawn when the trial ends, however it ends.
    """

    def __init__(self, study: StudyRun, max_trials: int, coordinator: Any) -> None:
        super().__init__()
        self._study = study
        self._max_trials = max_trials
        self._coordinator = coordinator
        self._turn = 0

    def suggest(self, trial_id: str) -> Any:
        if self._study.idle or self._study.num_in_flight >= self._max_trials:
            return None
        work = self._submit_next(trial_id)
        if work is not None:
            return {"work": work}
        # Work of a trial that dies is handed out again.
        return None if self._study.num_in_flight else Searcher.FINISHED

    def continue_races(self) -> None:
        """Give idle trials their next leg: starting a trial takes longer than many an epoch."""
        for trial_id in self._study.idle:
            if self._submit_next(trial_id) is None and not self._study.num_in_flight:
                self._coordinator.withdraw.remote(trial_id)
                self._study.end(trial_id)

    def _submit_next(self, trial_id: str) -> WorkItem | None:
        work = self._study.take(trial_id)
        if work is not None:
            self._turn += 1
            self._coordinator.submit.remote(
                trial_id,
                work.fold_runs,
                work.until,
                self._study.spending.needs(work.fold_runs),
                stays=self._study.races,
                turn=self._turn,
            )
        return work

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        withdrawn = self._coordinator.withdraw.remote(trial_id)
        if error:
            try:
                ray.get(withdrawn)
            except RayError:
                self._study.give_up(
                    RaymrcError(
                        "the coordinator's process died; it may have run out of memory. Run the study "
                        "again to resume; finished fold-runs are kept"
                    )
                )
        self._study.end(trial_id, died=error)

    def save(self, checkpoint_path: str) -> None:
        """The ledger has all that is needed."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a study is resumed from its ledger, not from Tune")


class _Receiver(_NotPickled, tune.Callback):
    """Passes what trials report to the run's state, and watches for what ends the run."""

    def __init__(
        self,
        study: StudyRun,
        search: _Search,
        coordinator: Any,
        metrics: MetricPublisher,
        is_lost: Callable[[], bool],
    ) -> None:
        self._study = study
        self._search = search
        self._coordinator = coordinator
        self._metrics = metrics
        self._is_lost = is_lost
        self._verdict = coordinator.verdict.remote()
        self._stopped = coordinator.stopped.remote()
        self._spent: Any = None
        self._ending: Any = None
        self._asked_at = -math.inf

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._study.receive(trial.trial_id, result)
        result.pop("record", None)  # Tune keeps the last result of every trial

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._poll_spent()
        self._study.report_written()
        for cell in self._study.take_closed_cells():
            self._coordinator.close_cell.remote(cell)
        self._search.continue_races()
        self._study.show()
        if self._metrics.is_due:
            self._metrics.publish_cells(self._study.plan.cells, self._study.cells())
        if self._study.stopping.is_set():
            # Tune would wait ten seconds for trials that wait for results.
            self._ending = self._ending or self._coordinator.end_trials.remote()
            return
        if self._is_lost():
            self._study.give_up(
                StudyError(
                    "another run has taken over this study, because this one could not reach the "
                    "storage; wait for it, or stop it and run this again"
                )
            )
        with suppress(RayError):  # the coordinator has died, which ends every trial
            if ray.wait([self._verdict], timeout=0)[0]:
                self._study.give_up(RaymrcError(ray.get(self._verdict)))
            elif ray.wait([self._stopped], timeout=0)[0]:
                stopped: Stopped = ray.get(self._stopped)
                if stopped.by_budget:
                    self._study.stop()
                else:
                    self._study.give_up(LedgerError(stopped.sentence))

    def _poll_spent(self) -> None:
        """Never waits: the answer is read in a later step."""
        with suppress(RayError):
            if self._spent is not None and ray.wait([self._spent], timeout=0)[0]:
                self._study.spending.spent = ray.get(self._spent)
                self._spent = None
            if self._spent is None and time.monotonic() - self._asked_at >= SPENT_POLL_SECONDS:
                self._asked_at = time.monotonic()
                self._spent = self._coordinator.spent.remote()


class _Stopper(_NotPickled, tune.Stopper):
    def __init__(self, study: StudyRun) -> None:
        self._study = study

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._study.stopping.is_set()


def _run_tune(
    study: StudyRun,
    training: Training,
    session_folder: Path,
    catch_again: Callable[[], None],
    is_lost: Callable[[], bool],
) -> None:
    """`catch_again` takes SIGTERM back from Ray, whose handler would abort this process."""
    resources, plan = training.resources, study.plan
    with cluster(resources, session_folder) as is_ours, study.checkpoints.marker() as marker:
        catch_again()
        metrics_study = plan.study if not is_ours or resources.metrics_port is not None else ""
        metrics = MetricPublisher(metrics_study)
        price = study.spending.budget.device_hour_usd
        study.on_end = partial(metrics.publish_end, device_hour_usd=price)
        terms = HostTerms(
            resources,
            storage=study.checkpoints.storage,
            marker=marker,
            folder=str(Path.cwd()),
            scratch=str(session_folder),
            metrics_study=metrics_study,
        )
        ranges = {cell.cell: _worker_range(cell) for cell in plan.cells}
        grows = not is_ours and read_cluster_status().can_grow
        slots = count_slots(resources, set(ranges.values()), grows=grows)
        max_devices = resources.max_hosts or max(slots, DEFAULT_MAX_HOSTS) if grows else slots
        lanes = 1
        if any(not STRATEGIES[cell.cell.strategy].trains_backbone for cell in plan.cells):
            lanes = resources.lanes or LANES[resources.kind]
        coordinator = open_coordinator(
            training.open_pool,
            training.data,
            terms,
            study.spending.share(),
            lanes=lanes,
            max_devices=max_devices,
            fill=MIN_FOLD_RUNS_PER_HOST[resources.kind],
            worker_ranges={
                cell: WorkerRange(workers.min_devices, min(workers.max_devices, max_devices))
                for cell, workers in ranges.items()
            },
            checkpoints=study.checkpoints.latest,
            allowance=study.spending.allowance(resources.charge(SINGLE_DEVICE)),
        )
        # Each device's lanes, and where a device trains one fold-run at a time, one more that waits, so that
        # the device has no pause between two legs.
        study.race_lanes = max_devices * max(lanes, 2)
        study.lanes_per_fold_run = {
            cell.cell: max(1, lanes // 2) * ranges[cell.cell].min_devices
            for cell in plan.cells
            if STRATEGIES[cell.cell.strategy].trains_backbone or ranges[cell.cell] != SINGLE_DEVICE
        }
        if study.races:  # its trials train single fold-runs for the most part, and end together
            max_trials = busy_trials = min(MAX_TRIALS, study.race_lanes)
        else:
            # One more than hosts need. It gets no process of its own: it takes over the next process that
            # becomes free, where Tune would end two that become free together.
            max_trials = min(MAX_TRIALS, math.ceil(max_devices * lanes / plan.folds) + 1)
            busy_trials = max_trials - 1
        # On a cluster that others use too, leave them half of the head node.
        head_share = 1 / (busy_trials if is_ours else 2 * MAX_TRIALS)
        search = _Search(study, max_trials, coordinator)
        try:
            with environment(TUNE_MAX_PENDING_TRIALS_PG=str(max_trials)):
                tune.Tuner(
                    # Trials only wait and pass on results. On the head node no spot reclaim ends them, and
                    # they leave the cores to hosts. Ray rounds shares to 1e-4.
                    tune.with_resources(
                        tune.with_parameters(run_trial, coordinator=[coordinator]),
                        {"cpu": 0, HEAD_RESOURCE: math.floor(1e4 * head_share) / 1e4},
                    ),
                    tune_config=tune.TuneConfig(
                        search_alg=search,
                        scheduler=training.scheduler,
                        num_samples=-1,
                        reuse_actors=True,
                        trial_dirname_creator=lambda trial: str(trial.trial_id),
                    ),
                    run_config=tune.RunConfig(
                        name="tune",
                        storage_path=str(session_folder),
                        callbacks=[_Receiver(study, search, coordinator, metrics, is_lost)],
                        stop=_Stopper(study),
                        verbose=0,
                    ),
                ).fit()
        finally:
            metrics.publish_cells(plan.cells, study.cells())
            with suppress(RayError):  # it may be dead, and its hosts with it
                study.spending.settle(ray.get(coordinator.close.remote(), timeout=CLOSE_SECONDS))
            ray.kill(coordinator)


def _worker_range(plan: CellPlan) -> WorkerRange:
    placement = plan.placement
    if placement is None or placement.mode != PlacementMode.GROUP:
        return SINGLE_DEVICE
    return WorkerRange(*placement.workers)


def count_slots(resources: HostResources, ranges: Collection[WorkerRange], *, grows: bool) -> int:
    """The number of devices for hosts.

    Args:
        grows: the cluster has an autoscaler, so devices that are missing may come; the answer is at least 1.

    Raises:
        RaymrcError: too few devices for a host, or for the smallest group.
    """
    nodes = alive_nodes().values()
    slots = count_devices(nodes, {"CPU": resources.cpus_per_host, "GPU": resources.gpus_per_host})
    groups = count_devices(nodes, resources.per_device)
    limit = resources.max_hosts
    for workers in ranges:
        if limit is not None and workers.min_devices > limit:
            raise RaymrcError(
                f"a worker group needs at least {workers.min_devices} devices, but resources.max_hosts is "
                f"{limit}; raise max_hosts or lower resources.workers"
            )
        if not grows:
            room = slots if workers == SINGLE_DEVICE else groups
            check_room(workers, resources.per_device, room)
    return max(1, slots) if grows else min(slots, limit or slots)
