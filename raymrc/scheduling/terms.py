"""What the caller of a run chooses: the terms of spending and failing, and who listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from raymrc.configuration import FoldRun
from raymrc.costs.budget import Budget, Need
from raymrc.ledger.record import Record
from raymrc.scheduling.progress import Snapshot
from raymrc.scheduling.record_writer import OUTAGE_PATIENCE_SECONDS


@dataclass(frozen=True, slots=True)
class RunTerms:
    """
    Args:
        budget: for all runs of the study together.
        expect: the expected cost of a fold-run; None where it is unknown.
        retries: how often a fold-run is retried within a run if its record `may_pass`.
        close_cell_after: number of consecutive failing configurations that close their cell; None: never.
        patience_seconds: how long finished records wait for a storage that refuses them.
    """

    budget: Budget = field(default_factory=Budget)
    expect: Callable[[FoldRun], Need | None] | None = None
    retries: int = 1
    close_cell_after: int | None = 5
    patience_seconds: float = OUTAGE_PATIENCE_SECONDS


@dataclass(frozen=True, slots=True)
class Listeners:
    """
    Args:
        on_record: receives each new record once it is in the ledger, failed ones included.
        on_progress: receives a snapshot at most twice a second.
        log: receives a sentence when the run waits for something.
    """

    on_record: Callable[[Record], object] = lambda record: None
    on_progress: Callable[[Snapshot], object] | None = None
    log: Callable[[str], object] = lambda sentence: None
