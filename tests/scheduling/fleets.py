"""A queue, a fleet and a budget guard that belong together, for tests of decisions without Ray."""

from __future__ import annotations

from typing import Any

from raymrc.configuration import FoldRun
from raymrc.costs.account import Account
from raymrc.costs.budget import Budget, Need
from raymrc.scheduling.allowance import Allowance
from raymrc.scheduling.budget_guard import BudgetGuard
from raymrc.scheduling.fleet import Fleet, Scaling
from raymrc.scheduling.orders import WorkerRange
from raymrc.scheduling.work_queue import WorkQueue
from tests.sweep.making import fold_runs, make_plan

PATIENCE_SECONDS = 60.0


class Decisions:
    """Time begins at 0, and each device is charged as one.

    Args:
        device_seconds: the budget; None for none.
        queue: arguments of `WorkQueue`.
    """

    def __init__(self, device_seconds: float | None = None, **queue: Any) -> None:
        budget = Budget()
        if device_seconds is not None:
            budget = Budget(device_hours=device_seconds / 3600)
            queue = {"allowance": Allowance(), **queue}
        self.account = Account(budget, (), now=0.0, moment=0.0)
        self.queue = WorkQueue(**{"lanes": 1, "max_devices": 2, **queue})
        self.fleet = Fleet(
            self.account, self.queue, lambda workers, size: float(size), PATIENCE_SECONDS
        )
        self.guard = BudgetGuard(self.account, self.queue, self.fleet, "storage", now=0.0)

    def submit(self, runs: list[FoldRun], need: float = 1.0, trial: str = "t") -> None:
        needs = {run.key: Need(need, need, need, saving_seconds=0.5) for run in runs}
        self.queue.submit(trial, runs, needs=needs)

    def scale(self, now: float) -> Scaling:
        return self.fleet.scale(self.guard.may_start, now)

    def lease(self, now: float) -> None:
        """Write a lease, as the journal's task does."""
        self.guard.confirm_lease([self.guard.lease(now, now)])

    def start(self, name: str, now: float) -> None:
        """A requested host makes contact and is charged."""
        self.fleet.charge_from_start(name, 0.0, now)
        self.fleet.contact(name, ("node",), now)


def frozen(rate: float = 0.1) -> list[FoldRun]:
    return fold_runs(make_plan([rate], ["frozen_soft_prompt"]))


def grouped(workers: WorkerRange) -> tuple[list[FoldRun], dict[Any, WorkerRange]]:
    """Three fold-runs that train the backbone in groups, and the argument of `WorkQueue` that says so."""
    runs = fold_runs(make_plan([0.1], ["soft_prompt"]))
    return runs, {runs[0].configuration.cell: workers}
