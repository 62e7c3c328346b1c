"""The journal: what every run of a driver has spent.

    <storage>/spend/<driver>.json      one file per run, rewritten every few seconds

An entry is written ahead, as a lease: it also charges its driver for the next seconds. So a killed driver
leaves nothing uncounted, and a second driver never sees less than the first one has spent. A driver that ends
in order replaces the charge by what it really spent. Durations come from a monotonic clock; wall clocks label
them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from raymrc.costs.budget import Spent
from raymrc.errors import LedgerError
from raymrc.ledger.storage import Files, error_text, open_files
from raymrc.planning.arithmetic import price

SPEND_FOLDER = "spend"
"""Folder of the journal in a study's storage."""

WRITE_SECONDS = 3.0
"""A driver rewrites its entry, and reads those of others, at this interval."""


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One run of a driver.

    Args:
        driver: name of the run and of its file.
        began: Unix time, moved forward where needed: no run seems to begin before the entries that it has
            read were written. Clocks that were set back then overlap nothing.
        seconds: how long the run has worked on the study.
        device_seconds: device time that its hosts have held.
        ahead, ahead_device_seconds: charged in advance, until the next write; 0 once the run has ended.
        lease: how many seconds that charge is valid; 0 once the run has ended.
        device_hour_usd: price of a device per hour.
        running: number of fold-runs that are training.
        committed: device-seconds that these are still expected to need.
        unfinished: fold-runs whose checkpoints the run left at its end, by key: share that remains, 0 to 1.
        written_at: Unix time; shows whether the lease is valid.
        process: "process 12 on node-a", for people.
    """

    driver: str
    began: float
    seconds: float = 0.0
    device_seconds: float = 0.0
    ahead: float = 0.0
    ahead_device_seconds: float = 0.0
    lease: float = 0.0
    device_hour_usd: float = 0.0
    running: int = 0
    committed: float = 0.0
    unfinished: Mapping[str, float] = field(default_factory=dict)
    written_at: float = 0.0
    process: str = ""

    @property
    def has_ended(self) -> bool:
        return not self.lease

    def is_alive(self, now: float) -> bool:
        """Whether its lease is valid.

        Args:
            now: Unix time; the clocks may differ by less than a lease.
        """
        return not self.has_ended and abs(now - self.written_at) <= self.lease

    @property
    def charged(self) -> float:
        """Device-seconds, including those charged in advance."""
        return self.device_seconds + self.ahead_device_seconds

    @property
    def reserved(self) -> float:
        """Device-seconds that its fold-runs will need beyond the charge."""
        return 0.0 if self.has_ended else max(0.0, self.committed - self.ahead_device_seconds)


class Journal:
    """The entries of all runs of a study.

    Args:
        storage: the study's folder or URL.
        files: used instead of `storage`.
    """

    def __init__(self, storage: str, files: Files | None = None) -> None:
        self.files = files or open_files(storage, SPEND_FOLDER)
        self._ended: dict[str, JournalEntry] = {}

    def entries(self) -> tuple[JournalEntry, ...]:
        """Entries in no order.

        Raises:
            LedgerError: an entry cannot be read. It is not skipped, or its spending would be forgotten.
        """
        try:
            names = [n for n in self.files.names() if n.endswith(".json") and not n.startswith(".")]
        except OSError as error:
            raise self._refused("", error) from None
        return tuple(map(self._read, names))

    def _refused(self, name: str, error: OSError) -> LedgerError:
        return LedgerError(f"{self.files.place(name)}: the store refuses ({error_text(error)})")

    def _read(self, name: str) -> JournalEntry:
        if name in self._ended:
            return self._ended[name]
        place = self.files.place(name)
        try:
            values = json.loads(self.files.read(name))
            entry = JournalEntry(**{**values, "driver": name.removesuffix(".json")})
            numbers = (entry.seconds, entry.device_seconds, entry.ahead, entry.ahead_device_seconds)
            if not all(math.isfinite(number) and number >= 0 for number in numbers):
                raise ValueError
        except OSError as error:
            raise LedgerError(f"{place}: cannot be read ({error_text(error)})") from None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise LedgerError(
                f"{place}: is not a journal entry of this version of raymrc; remove it, and the "
                "spending of that run is not counted"
            ) from None
        if entry.has_ended and not entry.ahead:  # the driver ended in order: the file is final
            self._ended[name] = entry
        return entry

    def write(self, entry: JournalEntry) -> None:
        """Replace this driver's entry.

        Raises:
            LedgerError: the store refuses.
        """
        values = asdict(entry)
        del values["driver"]
        name = f"{entry.driver}.json"
        try:
            self.files.write(name, json.dumps(values, indent=1).encode(), replace=True)
        except OSError as error:
            raise self._refused(name, error) from None

    def mark_dead(self, entry: JournalEntry) -> None:
        """End a run that is gone without a final entry: its charge stays, its reservation goes. If the driver
        is alive after all, its next write restores the entry.

        Raises:
            LedgerError: the store refuses.
        """
        self.write(replace(entry, lease=0.0, running=0, committed=0.0))


def add_up(
    entries: Iterable[JournalEntry], device_hour_usd: float, until: float = math.inf
) -> Spent:
    """Total spending of runs.

    Args:
        device_hour_usd: price for runs without one.
        until: Unix time; wall time after it is not counted.
    """
    seconds = usd = 0.0
    intervals = []
    for entry in entries:
        seconds += entry.charged
        usd += price(entry.charged, entry.device_hour_usd or device_hour_usd)
        intervals.append((entry.began, entry.began + entry.seconds + entry.ahead))
    return Spent(seconds, usd, covered_seconds(intervals, until))


def covered_seconds(intervals: Iterable[tuple[float, float]], until: float = math.inf) -> float:
    """Length of the union of intervals."""
    covered, reached = 0.0, -math.inf
    for start, end in sorted(intervals):
        start, end = max(start, reached), min(end, until)
        if end > start:
            covered += end - start
            reached = end
    return covered


def spent_by(entries: Sequence[JournalEntry], device_hour_usd: float, now: float) -> Spent:
    """Total spending until now, for a process that runs nothing itself.

    Args:
        now: Unix time.
    """
    # Leases count until now. What was really spent counts whatever this clock says.
    latest = max((e.began + e.seconds for e in entries), default=now)
    return add_up(entries, device_hour_usd, max(now, latest))


def unfinished(entries: Iterable[JournalEntry]) -> dict[str, float]:
    """Shares that remain of fold-runs with checkpoints, by key; the latest run counts."""
    shares: dict[str, float] = {}
    for entry in sorted(entries, key=lambda entry: entry.began):
        shares.update(entry.unfinished)
    return shares
