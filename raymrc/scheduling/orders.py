"""What hosts and the coordinator exchange: reports about lanes one way, orders the other.

host -> HostReport -> coordinator -> Order -> host
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from raymrc.configuration import FoldRun
from raymrc.ledger.record import Epoch

SLICE_SECONDS = 0.5
"""A host trains for this long, or until the next event, before it contacts the coordinator."""


class HostKind(StrEnum):
    """Values are labels of metrics."""

    HOST = "host"
    GROUP = "group"


@dataclass(frozen=True, slots=True)
class WorkerRange:
    """The minimum and maximum number of devices of a host; more than one make it a worker group."""

    min_devices: int = 1
    max_devices: int = 1

    @property
    def kind(self) -> HostKind:
        return HostKind.HOST if self == SINGLE_DEVICE else HostKind.GROUP


SINGLE_DEVICE = WorkerRange()


@dataclass(frozen=True, slots=True)
class HostReport:
    """News of one fold-run: an epoch, a checkpoint, or its end.

    Args:
        checkpoint: name of a new checkpoint among the study's files.
        record: `Record.to_json` of the end. It stays text, because nobody on the way reads its counts.
        refused: the lane did not fit beside the host's other lanes.
        pauses: the record belongs to a lane that paused where it was ordered to and may be resumed.
        handed_over: the lane was saved and closed, to be resumed by another host.
        saving_seconds: duration of saving the checkpoint; 0 if unknown.
    """

    key: str
    epoch: Epoch | None = None
    checkpoint: str | None = None
    record: str | None = None
    refused: bool = False
    pauses: bool = False
    handed_over: bool = False
    saving_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Order:
    """What a host has to do next.

    Args:
        close: keys of lanes to close without saving.
        open: fold-runs to open, each with the checkpoint to resume from, if there is one.
        pause_epochs: by key, the epoch after which an opened lane is saved and closed again.
        hand_over: keys of lanes to save at once and close, so that another host can resume them.
        leave: end the process.
        drain: the host has to go: save and hand over all lanes, then leave.
    """

    close: tuple[str, ...] = ()
    open: tuple[tuple[FoldRun, str | None], ...] = ()
    pause_epochs: Mapping[str, int] = field(default_factory=dict)
    hand_over: tuple[str, ...] = ()
    leave: bool = False
    drain: bool = False

    def __bool__(self) -> bool:
        return bool(self.close or self.open or self.hand_over or self.leave or self.drain)
