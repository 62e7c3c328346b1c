"""The metrics that the run state publishes; `sweep.metrics.MetricPublisher` implements this protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from raymrc.ledger.record import Record
from raymrc.planning.plan import CellPlan
from raymrc.scheduling.progress import CellProgress


class RunMetrics(Protocol):
    @property
    def is_due(self) -> bool:
        """Whether gauges should be set now."""

    def publish_cells(self, plans: Sequence[CellPlan], progress: Sequence[CellProgress]) -> None:
        """Set the gauges of each cell's progress; both sequences are in plan order."""

    def publish_end(self, record: Record, device_hour_usd: float, *, will_retry: bool) -> None:
        """Count one try of a fold-run that has ended."""
