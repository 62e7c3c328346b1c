"""Runs studies one after another on a small cluster and injects faults that a seed determines.

    seed -> Draw (study, strikes, when) -> run to its end -> checks -> Outcome

A strike's time is given in trained epochs, so that a slow machine is struck at the same place of the study.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from raymrc.costs.journal import Journal, JournalEntry, add_up
from raymrc.ledger.ledger import ENDING_BY_STATUS, Ledger
from raymrc.ledger.record import Record
from raymrc.ledger.storage import open_files
from tests.chaos.study import ANSWER, EPOCHS, RATES, Terms, script, true_time
from tests.paths import ROOT
from tests.s3_server import HAS_MOTO, S3Server
from tests.sweep.making import fold_runs, warn_node
from tests.sweep.rehearsal import kill_all, train_alone
from tests.training.test_lane import comparable

STRIKES = (
    "trial", "host", "board", "node", "reclaim", "kill", "terminate", "interrupt", "head", "outage",
    "second",
)  # fmt: skip
"""A strike kills a process of a trial, a host or the coordinator ("board"), takes a machine away without
or with notice, ends the driver by SIGKILL, SIGTERM or SIGINT, kills all machines and the driver, takes the
storage away for some seconds, or starts a second driver."""

OURS = {"trial": "ray::ImplicitFunc", "host": "ray::Host", "board": "ray::Coordinator"}
"""The process names that Ray sets start with these words."""

DISK_BYTES = 8 * 2**20
LOOK_SECONDS = 0.2
MOST_SECONDS = 420.0
MOST_DRIVERS = 20

DONE, FAILED, REFUSED, CAPPED, INTERRUPTED = 0, 1, 2, 3, 130

LEASE_SECONDS = 60.0
"""A killed driver with two devices is overcharged by these device-seconds."""

PROCESS_SECONDS = 0.5
"""Start and end of a process are seen from outside with this error."""


# --- random draws ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Strike:
    """
    Args:
        share: trained share of the study's epochs when it strikes; repeated epochs count.
        delay: further seconds until it strikes.
        seconds: duration of an outage, or length of a notice.
    """

    what: str
    share: float
    delay: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Draw:
    """The study and the strikes of a seed.

    Args:
        storage: "folder", "disk" (its own file system, which an outage fills up) or "s3".
        cap_share: the budget as a share of what an undisturbed study takes; None: no budget.
        goes_on: resumes with a larger budget after the cap.
    """

    seed: int
    is_real: bool
    raced: bool
    seconds: float
    save_seconds: float
    storage: str
    cap_share: float | None
    expects: bool
    goes_on: bool
    clock: tuple[tuple[float, float], ...]
    strikes: tuple[Strike, ...]

    @classmethod
    def from_seed(cls, seed: int, seconds: float, kinds: Sequence[str]) -> Draw:
        draw = random.Random(seed)
        is_real = draw.random() < 0.25
        raced = not is_real and draw.random() < 0.5
        storage = draw.choices(kinds, [8, 2, 2][: len(kinds)])[0]
        cap_share = draw.uniform(0.4, 1.3) if draw.random() < 0.35 else None
        strikes = []
        for _ in range(draw.choice((1, 1, 2, 2, 3, 4))):
            share = draw.choice((0.0, draw.uniform(0.0, 0.9)))
            delay = draw.uniform(0.0, 8.0 if share == 0 else 1.0)
            strikes.append(Strike(draw.choice(STRIKES), share, delay, draw.uniform(2.0, 8.0)))
        odd = (0.0, 0.0, 0.0, -7200.0, 86400.0)
        clock = tuple((draw.choice(odd), draw.choice(odd)) for _ in range(3))
        return cls(
            seed, is_real, raced, seconds, draw.choice((0.0, 5.0)), storage, cap_share,
            draw.random() < 0.5, draw.random() < 0.5, clock,
            tuple(sorted(strikes, key=lambda strike: strike.share)),
        )  # fmt: skip

    @property
    def device_seconds(self) -> float:
        """What the undisturbed study takes, roughly: twelve fold-runs, and the starts of two hosts."""
        return 12 * self.seconds + 10.0

    @property
    def cap(self) -> float | None:
        if self.cap_share is None:
            return None
        lost = sum(strike.what in ("kill", "head") for strike in self.strikes)
        return self.cap_share * self.device_seconds + lost * LEASE_SECONDS


# --- the cluster -----------------------------------------------------------------------------------


class Ground:
    """A head without devices, two machines of one core each, and the process that starts drivers.

    Args:
        folder: holds a tiny backbone and a small disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._cluster: Any = None
        self._s3: S3Server | None = None
        self.codes: dict[int, int] = {}
        self._parents: dict[int, int] = {}
        self._started: list[int] = []
        self._news = threading.Condition()
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.study"],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"
        threading.Thread(target=self._read_server, daemon=True).start()

    def _read_server(self) -> None:
        assert self._server.stdout is not None
        for line in self._server.stdout:
            pid, word = line.split()
            with self._news:
                if word == "started":
                    self._started.append(int(pid))
                else:
                    self.codes[int(pid)] = int(word)
                self._news.notify_all()

    def start_driver(self, folder: Path, number: int) -> int:
        """Returns the process id."""
        assert self._server.stdin is not None
        with self._news:
            self._server.stdin.write(f"{folder} {self.cluster.address} {number}\n")
            self._server.stdin.flush()
            assert self._news.wait_for(lambda: self._started, 30), "no driver can be started"
            return self._started.pop()

    @property
    def cluster(self) -> Any:
        tries = 0
        while self._cluster is None or len(self._cluster.worker_nodes) < 2:
            try:
                self._grow()
            except Exception:  # Ray's own timeout, on a busy machine
                tries += 1
                if tries > 5:
                    raise
                if self._cluster is not None and not self._cluster.worker_nodes:
                    self.lose_all()
        return self._cluster

    def _grow(self) -> None:
        from ray.cluster_utils import Cluster

        if self._cluster is None:
            head = {"num_cpus": 0, "include_dashboard": False, "include_log_monitor": False}
            self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._cluster.add_node(num_cpus=1, include_log_monitor=False)

    @property
    def s3(self) -> S3Server:
        if self._s3 is None:
            self._s3 = S3Server()
        return self._s3

    def raylets(self) -> dict[int, Any]:
        """Machines by the process id of their raylet."""
        if self._cluster is None:
            return {}
        found = {}
        for node in [*self._cluster.worker_nodes, self._cluster.head_node]:
            # A machine that is being lost no longer has a raylet.
            for raylet in node.all_processes.get("raylet", ()) if node is not None else ():
                found[raylet.process.pid] = node
        return found

    def processes(self, what: str) -> list[psutil.Process]:
        """Processes of this cluster's trials, hosts or coordinator."""
        pids = psutil.pids()
        # Called five times a second; parents change only when they die, so each is looked up once.
        for gone in self._parents.keys() - pids:
            self._parents.pop(gone, None)
        raylets = self.raylets()
        found = []
        for pid in pids:
            with suppress(psutil.Error):
                if pid not in self._parents:
                    self._parents[pid] = psutil.Process(pid).ppid()
                if self._parents[pid] in raylets:
                    process = psutil.Process(pid)
                    if process.ppid() in raylets and OURS[what] in " ".join(process.cmdline()[:1]):
                        found.append(process)
        return found

    def lose_node(self, node: Any) -> None:
        """Switch a machine off."""
        for pid, owner in self.raylets().items():
            if owner is node:
                kill_all(psutil.Process(pid))
        self._cluster.remove_node(node, allow_graceful=False)

    def lose_all(self) -> None:
        for node in [*self._cluster.worker_nodes, self._cluster.head_node]:
            with suppress(Exception):  # some machines may be half gone
                self.lose_node(node)
        self._cluster = None

    @cached_property
    def alone(self) -> dict[str, Record]:
        """Records of the real study, trained undisturbed in this process."""
        import torch

        torch.set_num_threads(1)  # as in hosts, so that sums have the same order
        return {record.key: record for record in train_alone(real_terms(self).plan)}

    @cached_property
    def tiny(self) -> Path:
        from tests.model.tiny import tiny_checkpoint

        return Path(tiny_checkpoint("bert", self.folder / "tiny"))

    def close(self) -> None:
        self._server.kill()
        self._server.communicate()
        if self._s3 is not None:
            self._s3.close()
        if self._cluster is not None:
            self._cluster.shutdown()


def real_terms(ground: Ground) -> Terms:
    return Terms("", str(ground.tiny), 0.0, False, 0.0, None, False)


class Disk:
    """A small file system, where this machine allows mounts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)], check=True
        )

    def fill(self) -> None:
        with suppress(OSError), (self.folder / "full").open("wb") as file:
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        (self.folder / "full").unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=False)


def can_mount(folder: Path) -> bool:
    try:
        Disk(folder / "probe").close()
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def kinds_of_storage(folder: Path) -> list[str]:
    kinds = ["folder", *(["disk"] if can_mount(folder) else []), *(["s3"] if HAS_MOTO else [])]
    shutil.rmtree(folder / "probe", ignore_errors=True)
    return kinds


class Watch(threading.Thread):
    """Measures from outside how long hosts hold their devices; each has one core."""

    def __init__(self, ground: Ground) -> None:
        super().__init__(daemon=True)
        self._ground = ground
        self.seen: dict[tuple[int, float], tuple[float, float]] = {}
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(LOOK_SECONDS):
            now = true_time()
            for host in self._ground.processes("host"):
                with suppress(psutil.Error):
                    name = (host.pid, host.create_time())
                    self.seen[name] = (self.seen.get(name, (now, now))[0], now)

    @property
    def device_seconds(self) -> float:
        """Total time for which host processes were seen."""
        return sum(last - first for first, last in self.seen.values())


# --- a run -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    Args:
        wrong: violations, as sentences.
        struck: (seconds after the start, kind of strike).
        held: device-seconds that hosts held.
        useful: device-seconds of the epochs in the ledger, and of their scoring.
        epochs: number of epochs in the ledger.
        trained: number of epochs trained to their end, repeated ones included.
        seen: device-seconds of hosts, measured from outside.
    """

    draw: Draw
    wrong: tuple[str, ...]
    struck: tuple[tuple[float, str], ...]
    codes: tuple[int, ...]
    wall_seconds: float
    held: float
    useful: float
    epochs: int
    trained: int
    seen: float
    capped_at: float | None

    @property
    def goodput(self) -> float:
        return self.useful / self.held if self.held else 1.0

    @property
    def overspend(self) -> float | None:
        """Spending beyond the cap, as a share of the cap; None if no cap was reached."""
        if self.draw.cap is None or self.capped_at is None:
            return None
        return self.capped_at / self.draw.cap - 1.0

    def line(self) -> dict[str, Any]:
        drawn = self.draw
        return {
            "seed": drawn.seed,
            "wrong": list(self.wrong),
            "struck": [[round(at, 1), what] for at, what in self.struck],
            "study": "real" if drawn.is_real else "raced" if drawn.raced else "grid",
            "storage": drawn.storage,
            "save_seconds": drawn.save_seconds,
            "cap": drawn.cap,
            "overspend": self.overspend,
            "clock": [list(pair) for pair in drawn.clock[: len(self.codes)]],
            "codes": list(self.codes),
            "wall_seconds": round(self.wall_seconds, 1),
            "held": round(self.held, 2),
            "seen": round(self.seen, 2),
            "useful": round(self.useful, 2),
            "goodput": round(self.goodput, 4),
            "epochs": self.epochs,
            "trained": self.trained,
        }


@dataclass
class Battle:
    """Runs a study to its end while strikes hit it."""

    ground: Ground
    draw: Draw
    folder: Path
    struck: list[tuple[float, str]] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    _drivers: list[int] = field(default_factory=list)
    _number: int = 0
    _later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    _disk: Disk | None = None
    _log: list[tuple[float, str, str, int, float]] = field(default_factory=list)
    _read: int = 0
    _away: int = 0

    def run(self) -> Outcome:
        self.folder.mkdir(parents=True)
        (self.folder / "trained").mkdir()
        self.terms = self._terms(self.draw.cap)
        self.terms.write(self.folder)
        watch = Watch(self.ground)
        watch.start()
        self._began = true_time()
        capped_at = None
        try:
            self._fight(list(self.draw.strikes))
            if self.codes[-1:] == [CAPPED]:
                self._check_ledger(is_whole=False)
                capped_at = self._check_budget(watch)
                if self.draw.goes_on:
                    self.terms = self._terms(20 * self.draw.device_seconds + 20 * LEASE_SECONDS)
                    self.terms.write(self.folder)
                    self._fight([])
            self._await_end_of_processes()
        finally:
            watch.over.set()
            watch.join()
            self._heal()
            for pid in self._drivers:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        wall = true_time() - self._began
        self._read_log()
        self._check_ledger(is_whole=self.codes[-1:] == [DONE])
        self._check_budget(watch)
        self._check_twice()
        outcome = self._outcome(watch, wall, capped_at)
        if self._disk is not None:
            self._disk.close()
        return outcome

    def _terms(self, cap: float | None) -> Terms:
        if self.draw.storage == "s3":
            storage = self.ground.s3.storage(f"run-{self.draw.seed}-{int(true_time())}")
        else:
            storage = str(self.folder / "storage")
        if hasattr(self, "terms"):
            storage = self.terms.storage
        elif self.draw.storage == "disk":
            self._disk = Disk(self.folder / "storage")
        elif self.draw.storage == "folder":
            (self.folder / "kept").mkdir()
            self._point_storage_at("kept")
        tiny = str(self.ground.tiny) if self.draw.is_real else ""
        return Terms(
            storage, tiny, self.draw.seconds, self.draw.raced, self.draw.save_seconds, cap,
            self.draw.expects, self.draw.clock,
        )  # fmt: skip

    # --- strikes ----------------------------------------------------------------------------------

    def _fight(self, waiting: list[Strike]) -> None:
        """Run drivers until one ends with all work done or at the cap."""
        began = time.monotonic()
        due_at: float | None = None
        while True:
            if time.monotonic() - began > MOST_SECONDS or self._number > MOST_DRIVERS:
                self.wrong.append(f"no end after {self._number} drivers")
                return
            self._reap_drivers()
            if not self._drivers:
                over = self.codes[-1:] in ([DONE], [CAPPED])
                if over and not self._later:
                    return
                if not over:
                    self._start_driver()
            self._read_log()
            for at, action in list(self._later):
                if time.monotonic() >= at:
                    self._later.remove((at, action))
                    action()
            if waiting:
                trained = sum(line[1] == "epoch" for line in self._log)
                if due_at is None and trained >= waiting[0].share * 12 * EPOCHS:
                    due_at = time.monotonic() + waiting[0].delay
                if due_at is not None and time.monotonic() >= due_at:
                    strike = waiting.pop(0)
                    if self._strike(strike):
                        self.struck.append((true_time() - self._began, strike.what))
                    due_at = None
            time.sleep(LOOK_SECONDS)

    def _start_driver(self) -> None:
        self._drivers.append(self.ground.start_driver(self.folder, self._number))
        self._number += 1

    def _reap_drivers(self) -> None:
        for pid in [pid for pid in self._drivers if pid in self.ground.codes]:
            self._drivers.remove(pid)
            code = self.ground.codes.pop(pid)
            self.codes.append(code)
            if code == FAILED:
                self.wrong += [w for w in [self._why_failed()] if w and w not in self.wrong]
            elif code not in (DONE, REFUSED, CAPPED, INTERRUPTED, -signal.SIGKILL, -signal.SIGTERM):
                self.wrong.append(f"a driver ended with code {code}")

    def _why_failed(self) -> str:
        """The last line of an uncaught error; "" for failed fold-runs, which the next driver retries."""
        last = (self.folder / ANSWER).read_text().strip().splitlines()[-1]
        return "" if last.startswith("{") else f"a driver ended with {last[:200]}"

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, action))

    def _strike(self, strike: Strike) -> bool:
        """Carry out a strike; returns False if it finds no victim now."""
        what = strike.what
        draw = random.Random(f"{self.draw.seed} {strike.share}")
        if what in OURS:
            found = self.ground.processes(what)
            if found:
                with suppress(psutil.Error):
                    draw.choice(sorted(found, key=lambda p: p.pid)).kill()
            return bool(found)
        if what in ("node", "reclaim"):
            nodes = sorted(self.ground.cluster.worker_nodes, key=lambda node: str(node.node_id))
            node = draw.choice(nodes)
            if what == "node":
                self._lose(node)
            else:
                warn_node(self.ground.cluster.address, node.node_id, strike.seconds)
                self._after(strike.seconds, lambda: self._lose(node))
            return True
        if what == "outage":
            if self._away:
                return False
            self._take_storage()
            self._after(strike.seconds, self._heal)
            return True
        if what == "second":
            self._start_driver()
            return True
        if what == "head":
            for pid in self._drivers:
                os.kill(pid, signal.SIGKILL)
            self.ground.lose_all()
            return True
        if not self._drivers:
            return False
        number = {
            "kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT,
        }[what]  # fmt: skip
        with suppress(ProcessLookupError):
            os.kill(self._drivers[-1], number)
        return True

    def _lose(self, node: Any) -> None:
        if node in self.ground.cluster.worker_nodes:  # it may have been lost meanwhile
            self.ground.lose_node(node)
            self._after(1.0, lambda: self.ground.cluster)  # adds missing machines

    def _take_storage(self) -> None:
        self._away += 1
        if self.draw.storage == "s3":
            self.ground.s3.pause()
        elif self._disk is not None:
            self._disk.fill()
        else:
            self._point_storage_at("nothing")

    def _heal(self) -> None:
        if self._away:
            self._away -= 1
            if self.draw.storage == "s3":
                self.ground.s3.go_on()
            elif self._disk is not None:
                self._disk.free()
            else:
                self._point_storage_at("kept")

    def _point_storage_at(self, name: str) -> None:
        """Switch the storage atomically. "nothing" is a file, so every access below it fails."""
        (self.folder / "nothing").touch()
        link = self.folder / "link"
        link.symlink_to(self.folder / name)
        link.rename(self.folder / "storage")

    # --- checks -----------------------------------------------------------------------------------

    def _read_log(self) -> None:
        log = self.folder / "log"
        if not log.exists():
            return
        with log.open() as file:
            file.seek(self._read)
            for line in file.read().splitlines():
                at, what, key, epoch, seconds, _ = line.split()
                self._log.append((float(at), what, key, int(epoch), float(seconds)))
            self._read = file.tell()

    def _await_end_of_processes(self) -> None:
        until = time.monotonic() + 60
        while left := [what for what in OURS if self.ground.processes(what)]:
            if time.monotonic() > until:
                self.wrong.append(f"left behind a minute after the end: {', '.join(left)}")
                return
            time.sleep(LOOK_SECONDS)

    @cached_property
    def _alone(self) -> dict[str, Record]:
        """The record of every fold-run, trained undisturbed."""
        if self.draw.is_real:
            return self.ground.alone
        made = script(self.folder, self.draw.seconds)
        return {run.key: made.record(run) for run in fold_runs(self.terms.plan)}

    def _check_ledger(self, *, is_whole: bool) -> None:
        ledger = Ledger(self.terms.storage, write=False)
        records, problems = ledger.read_all()
        self.wrong += problems
        by_key = {record.key: ledger.get(record.key) for record in records}
        for key, record in by_key.items():
            assert record is not None
            why = self._differs(record, self._alone.get(key))
            if why:
                self.wrong.append(f"{key[:8]} {record.status}: {why}")
        if is_whole:
            self._check_whole([record for record in by_key.values() if record is not None])
        names = [*ledger.files.names()]
        endings = tuple(ENDING_BY_STATUS.values())
        self.wrong += [
            f"in the ledger lies {name}"
            for name in names
            if not name.endswith(endings) or "/." in name
        ]
        finished = {record.key for record in records if record.status in ("done", "stopped")}
        saved = [*open_files(self.terms.storage, "saved").names()]
        if is_whole:
            self.wrong += [
                f"a finished fold-run still has saved/{name}"
                for name in saved
                if name.partition("/")[0] in finished or name.endswith(".part")
            ]
            self.wrong += [
                f"left behind in the study's folder: {path.name}"
                for path in (self.folder / "study").glob(".sweep-*")
            ]

    def _check_whole(self, records: Sequence[Record]) -> None:
        """A finished study has all of its records, and a race has the right winner."""
        missing = len(self._alone) - len(records)
        statuses = Counter(record.status for record in records)
        allowed = {"done", "stopped"} if self.draw.raced else {"done"}
        if (missing and not self.draw.raced) or not statuses.keys() <= allowed:
            self.wrong.append(f"{missing} fold-runs are missing, and others are {dict(statuses)}")
        if self.draw.raced:
            best = [
                record
                for record in records
                if record.status == "done"
                and record.fold_run.configuration.learning_rate == RATES[0]
            ]
            if len(best) != 4:
                self.wrong.append(f"of the winners' four fold-runs {len(best)} are done")

    def _differs(self, mine: Record, alone: Record | None) -> str:
        if alone is None:
            return "is not of this study"
        if mine.status == "failed":
            return "" if "host" in mine.reason or "process" in mine.reason else mine.reason
        if self.draw.is_real:
            same = comparable(mine) == comparable(alone)
            return "" if same else _difference(mine, alone)
        if mine.status == "done":
            same = replace(mine, failed_device_seconds=0.0) == alone
            return "" if same else _difference(mine, alone)
        return "" if mine.epochs == alone.epochs[: len(mine.epochs)] else "has another course"

    def _entries(self) -> tuple[JournalEntry, ...]:
        return Journal(self.terms.storage).entries()

    def _check_budget(self, watch: Watch) -> float:
        """Device-seconds that hosts held, by the journal or as seen from outside, whichever is more. The
        overcharge of killed drivers is not included."""
        self._await_end_of_processes()
        charged = add_up(self._entries(), 1.0).device_seconds
        seen = watch.device_seconds
        late = PROCESS_SECONDS * len(watch.seen)
        if seen > charged + late:
            self.wrong.append(f"{charged:.1f} device-seconds are charged, {seen:.1f} were seen")
        spent = max(seen - late, sum(entry.device_seconds for entry in self._entries()))
        cap = self.terms.cap
        if cap is not None and spent > 1.01 * cap:
            self.wrong.append(f"{spent:.1f} of {cap:.1f} device-seconds were spent")
        return spent

    def _check_twice(self) -> None:
        """No fold-run that is in the ledger is trained again."""
        if self.draw.storage == "s3":  # its records have no local times
            return
        for path in Path(self.terms.storage, "ledger").rglob("*.json"):
            key, ending = path.name.split(".", 1)
            kept_at = path.stat().st_mtime
            if ending == "json" and any(
                what == "open" and opened == key and at > kept_at + 1.0
                for at, what, opened, _, _ in self._log
            ):
                self.wrong.append(f"{key[:8]} was begun again after it was done")

    def _outcome(self, watch: Watch, wall: float, capped_at: float | None) -> Outcome:
        records = Ledger(self.terms.storage, write=False).records()
        took: dict[tuple[str, int], float] = {}
        for _, what, key, epoch, seconds in self._log:
            if what in ("epoch", "end"):
                took[key, epoch] = seconds  # the last time it was trained is the one that counts
        useful, epochs = 0.0, 0
        for record in records:
            numbers = [epoch.epoch for epoch in record.epochs]
            epochs += len(numbers)
            ends = [0] if record.status == "done" else []
            useful += sum(took.get((record.key, number), 0.0) for number in (*numbers, *ends))
        held = sum(entry.device_seconds for entry in self._entries())
        return Outcome(
            self.draw, tuple(dict.fromkeys(self.wrong)), tuple(self.struck), tuple(self.codes), wall,
            max(held, watch.device_seconds), useful, epochs,
            sum(line[1] == "epoch" for line in self._log), watch.device_seconds, capped_at,
        )  # fmt: skip


def _difference(mine: Record, alone: Record) -> str:
    """Describe how a record differs from the record of undisturbed training."""
    losses = [
        f"{a.loss:.6f} for {b.loss:.6f}" for a, b in zip(mine.epochs, alone.epochs, strict=False)
    ]
    return (
        f"tokens {mine.tokens} for {alone.tokens}, notes alike: {mine.notes == alone.notes}, "
        f"losses {', '.join(losses)}"
    )
