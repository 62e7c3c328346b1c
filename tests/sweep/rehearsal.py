"""A cluster on one machine that grows on demand, shrinks again and loses nodes.

    python -m tests.sweep.rehearsal LOG           sixty fold-runs under six kills, logged in a file
    python -m tests.sweep.rehearsal drive FOLDER  the driver of such a study, which the others start

Nodes are Ray's own processes that declare a GPU they do not have; Ray's autoscaler starts and ends them
through the provider that Ray tests itself with. Training is real, of a tiny backbone on the CPU.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from raymrc.configuration import Backbone
from raymrc.ledger.ledger import Ledger
from raymrc.ledger.record import Epoch, LaneEvent, Record
from raymrc.planning.placement import Placement
from raymrc.planning.plan import Plan
from tests.paths import ROOT
from tests.sweep.making import actors, make_plan

HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
"""Ray's fake node provider expects this id of the head."""

COMMANDS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files",
)  # fmt: skip
"""The autoscaler requires these fields in a configuration; one machine does not need them."""


# --- the cluster -----------------------------------------------------------------------------------


class Cloud:
    """A head without devices, and an autoscaler that adds at most `max_nodes` nodes with one GPU each."""

    def __init__(self, folder: Path, max_nodes: int, idle_seconds: float = 12.0) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"{_own_address()}:{self.port}"
        gpu = {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0}
        head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        config = {
            "cluster_name": "rehearsal",
            "max_workers": max_nodes,
            "idle_timeout_minutes": idle_seconds / 60,
            "provider": {
                "type": "external",
                "module": "ray.autoscaler._private.fake_multi_node.node_provider."
                "FakeMultiNodeProvider",
                "launch_multiple": True,
                "gcs_address": self.address,
                "head_node_id": HEAD_ID,
            },
            "auth": {},
            "available_node_types": {
                "ray.head.default": head,
                "gpu": {**gpu, "max_workers": max_nodes},
            },
            "head_node_type": "ray.head.default",
            "file_mounts": {},
            **{key: [] for key in COMMANDS},
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cluster.json").write_text(json.dumps(config))
        # Ray puts sockets below it, and their paths have to be short.
        self.session = tempfile.mkdtemp(prefix="rr-", dir="/tmp")

    def start(self) -> None:
        command = [
            str(Path(sys.executable).parent / "ray"), "start", "--head", f"--port={self.port}",
            "--num-cpus=0", f"--autoscaling-config={self.folder / 'cluster.json'}",
            f"--temp-dir={self.session}", "--include-dashboard=true",
            f"--dashboard-port={free_port()}", "--object-store-memory=200000000",
            f"--ray-client-server-port={free_port()}",
        ]  # fmt: skip
        subprocess.run(
            command, env=self.environment, check=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, timeout=90,
        )  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the head and of every process that connects to it."""
        return os.environ | {
            "RAY_AUTH_MODE": "disabled",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
            "RAY_NODE_TYPE_NAME": "ray.head.default",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(ROOT),
        }

    def processes(self) -> list[psutil.Process]:
        """All processes of this cluster, whichever process started them."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if any(self.session in word or self.address in word for word in process.cmdline()):
                    found.append(process)
        return found

    def nodes(self) -> dict[str, psutil.Process]:
        """The raylet of every running node except the head, by the node's id."""
        found = {}
        for process in self.processes():
            with suppress(psutil.Error):
                if not process.name().startswith("raylet"):
                    continue
                node = process.environ().get("RAY_OVERRIDE_NODE_ID_FOR_TESTING", "")
                if node and node != HEAD_ID and process.status() != psutil.STATUS_ZOMBIE:
                    found[node] = process
        return found

    def warn(self, node: str, seconds: float) -> None:
        """Send a spot notice, from a process whose Ray needs no token."""
        code = f"from tests.sweep.making import warn_node; warn_node({self.address!r}, {node!r}, {seconds})"
        subprocess.run(
            [sys.executable, "-c", code], env=self.environment, cwd=ROOT, check=True, timeout=60
        )

    def stop(self) -> None:
        for _ in range(2):
            for process in self.processes():
                with suppress(psutil.Error):
                    process.kill()
            time.sleep(0.5)


@contextmanager
def cloud(folder: Path, max_nodes: int) -> Iterator[Cloud]:
    made = Cloud(folder, max_nodes)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def free_port() -> int:
    """A free port outside 10002 to 19999, which Ray keeps for its workers."""
    while True:
        with socket.socket() as listener:
            listener.bind(("", 0))
            port = int(listener.getsockname()[1])
        if not 10002 <= port <= 19999:
            return port


def _own_address() -> str:
    import ray

    return str(ray.util.get_node_ip_address())


# --- the study -------------------------------------------------------------------------------------


def study_plan(
    backbone: Backbone, frozen: int, grouped: int, folds: int, epochs: int, workers: Sequence[int]
) -> Plan:
    """A study of two cells.

    Args:
        frozen: number of frozen configurations, trained on hosts; 0 leaves their cell out.
        grouped: number of configurations that train the backbone in groups.
        workers: the smallest and the largest number of workers of a group.
    """
    terms: dict[str, Any] = {
        "prompt_length": 4, "match_width": 16, "epochs": epochs, "batch_size": 4, "window": 20,
        "overlap": 4, "dropout": 0.0,
    }  # fmt: skip
    rates = [0.01 * (1 + number) for number in range(frozen)]
    hosts = make_plan(rates, ["frozen_soft_prompt"], backbone=backbone, folds=folds, **terms)
    rates = [0.001 * (1 + number) for number in range(grouped)]
    groups = make_plan(rates, ["soft_prompt"], backbone=backbone, folds=folds, **terms)
    placed = replace(groups.cells[0], placement=Placement("group", (workers[0], workers[1])))
    return replace(hosts, cells=(*hosts.cells, placed) if frozen else (placed,))


@dataclass(frozen=True)
class Logged:
    """Opens pools that log every opened lane and every trained epoch."""

    folder: Path

    def __call__(self, backbone: Backbone, data: Any, ranks: Any = None) -> Any:
        from raymrc.training.trainer import Trainer

        pool = Trainer().open_pool(backbone, data, ranks)
        log = self.folder / f"{os.getpid()}-{time.monotonic_ns()}.log"
        leads = ranks is None or ranks.rank == 0

        def note(*words: object) -> None:
            if leads:
                with log.open("a") as file:
                    print(time.time(), *words, file=file)

        opened, stepped = pool.open, pool.step

        def open_lane(fold_run: Any, state: bytes | None = None) -> None:
            opened(fold_run, state)
            lane = pool._seats[fold_run.key].lane
            note("open", fold_run.key, len(lane.epochs), lane._steps_of_epoch)

        def step() -> Sequence[LaneEvent]:
            events: Sequence[LaneEvent] = stepped()
            time.sleep(0.05)  # so that an epoch lasts long enough for a strike within it
            for event in events:
                if isinstance(event.what, Epoch):
                    note("epoch", event.key, event.what.epoch, 0)
            return events

        pool.open, pool.step = open_lane, step
        return pool


@dataclass(frozen=True)
class Course:
    """The training of one fold-run, over all the times that it was opened.

    Args:
        begun: number of openings.
        redone: number of epochs that were trained again.
        most_redone: the largest number of these after one loss.
        within: whether it resumed within an epoch at least once.
    """

    begun: int
    redone: int
    most_redone: int
    within: bool


def read_log(folder: Path) -> dict[str, Course]:
    lines: list[tuple[float, str, str, int, int]] = []
    for log in folder.glob("*.log"):
        for line in log.read_text().splitlines():
            at, what, key, epoch, batch = line.split()
            lines.append((float(at), what, key, int(epoch), int(batch)))
    begun: Counter[str] = Counter()
    redone: Counter[str] = Counter()
    most: Counter[str] = Counter()
    within: set[str] = set()
    reached: dict[str, int] = {}
    for _, what, key, epoch, batch in sorted(lines):
        if what == "open":
            begun[key] += 1
            if batch:
                within.add(key)
            lost = max(0, reached.get(key, 0) - epoch)
            redone[key] += lost
            most[key] = max(most[key], lost)
        else:
            reached[key] = max(reached.get(key, 0), epoch)
    return {key: Course(begun[key], redone[key], most[key], key in within) for key in begun}


def terms_of(folder: Path) -> dict[str, Any]:
    terms: dict[str, Any] = json.loads((folder / "terms.json").read_text())
    return terms


def prepare(folder: Path, *, devices: int, **study: Any) -> Plan:
    from tests.model.tiny import tiny_backbone, tiny_checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log").mkdir()
    backbone = tiny_backbone(tiny_checkpoint("bert", folder / "tiny"))
    terms = {"devices": devices, "study": study}
    (folder / "terms.json").write_text(json.dumps(terms))
    return study_plan(backbone, **study)


def drive(folder: Path) -> int:
    """Run one driver of the study in this process, on the cluster that RAY_ADDRESS names."""
    from raymrc.errors import RaymrcError
    from raymrc.sweep.driver import Training, run_study
    from raymrc.sweep.session import HostResources
    from tests.model.tiny import tiny_backbone
    from tests.training.test_lane import make_data, make_notes

    terms = terms_of(folder)
    plan = study_plan(tiny_backbone(folder / "tiny"), **terms["study"])
    resources = HostResources(
        gpus_per_host=1.0, max_hosts=terms["devices"], lanes=3, save_seconds=0.0, device="cpu",
        patience_seconds=15.0,
    )  # fmt: skip
    try:
        data = make_data(make_notes(), plan.folds)
        training = Training(Logged(folder / "log"), data, resources)
        outcome = run_study(plan, Ledger(str(folder)), training, folder)
    except RaymrcError as error:
        print(error, flush=True)
        return 2
    print(json.dumps([outcome.done, outcome.reused, outcome.failed]), flush=True)
    return 0


# --- under fire ------------------------------------------------------------------------------------


@dataclass
class Strike:
    """One kill and its victim."""

    at: float
    what: str
    whom: str


@dataclass
class Battle:
    """Runs a study to its end while hosts, nodes and drivers are killed.

    Args:
        strikes: "host", "worker", "node", "reclaim" or "driver" each, in order; a strike without a
            victim waits for one.
        every: number of fold-runs that finish between two strikes.
    """

    cloud: Cloud
    folder: Path
    strikes: Sequence[str]
    every: int
    seed: int = 5
    struck: list[Strike] = field(default_factory=list)
    drivers: int = 0
    most_nodes: int = 0
    outputs: list[str] = field(default_factory=list)

    def run(self, limit: float = 900.0) -> None:
        draw = random.Random(self.seed)
        began = time.monotonic()
        waiting = list(self.strikes)
        driver = self._start_driver()
        watched = threading.Event()
        watcher = threading.Thread(target=self._watch_nodes, args=(watched,), daemon=True)
        watcher.start()
        try:
            while driver.poll() is None:
                assert time.monotonic() - began < limit, "the study did not end in time"
                due = self.every * (1 + len(self.strikes) - len(waiting))
                for what in waiting if self.num_done() >= due else ():
                    whom = self._strike(what, draw, driver)
                    if whom:
                        self.struck.append(Strike(time.monotonic() - began, what, whom))
                        waiting.remove(what)
                        if what == "driver":
                            driver.communicate()
                            driver = self._start_driver()
                        break
                time.sleep(0.1)
            self.outputs.append(driver.stdout.read() if driver.stdout else "")
            assert driver.returncode == 0, self.outputs
            assert not waiting, f"{waiting} found nothing to strike"
        finally:
            watched.set()
            watcher.join()
            driver.kill()
            driver.communicate()

    def run_once(self, limit: float) -> tuple[str, int]:
        """Run an undisturbed driver.

        Returns:
            The last line of its output, and its exit code.
        """
        driver = self._start_driver()
        try:
            output, _ = driver.communicate(timeout=limit)
        finally:
            driver.kill()
            driver.wait()
        return output.strip().splitlines()[-1], driver.returncode

    def num_done(self) -> int:
        return len(list((self.folder / "ledger").rglob("*.json")))

    def _start_driver(self) -> subprocess.Popen[str]:
        self.drivers += 1
        environment = self.cloud.environment | {"RAY_ADDRESS": self.cloud.address}
        for name in ("RAY_OVERRIDE_NODE_ID_FOR_TESTING", "RAY_CLOUD_INSTANCE_ID"):
            environment.pop(name)
        return subprocess.Popen(
            [sys.executable, "-m", "tests.sweep.rehearsal", "drive", str(self.folder)],
            env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def _watch_nodes(self, over: threading.Event) -> None:
        while not over.wait(0.5):
            self.most_nodes = max(self.most_nodes, len(self.cloud.nodes()))

    def _strike(self, what: str, draw: random.Random, driver: subprocess.Popen[str]) -> str:
        """Carry out one strike.

        Returns:
            The victim; "" if there is no such victim now.
        """
        if what == "driver":
            driver.send_signal(signal.SIGKILL)
            return f"process {driver.pid}"
        if what in ("host", "worker"):
            found = actors("Host" if what == "host" else "RayTrainWorker")
            if not found:
                return ""
            chosen = draw.choice(found)
            with suppress(psutil.Error):
                chosen.kill()
            return f"process {chosen.pid}"
        nodes = self.cloud.nodes()
        if not nodes:
            return ""
        node = draw.choice(sorted(nodes))
        if what == "reclaim":
            self.cloud.warn(node, 10.0)
            threading.Timer(10.0, lambda: kill_all(nodes[node])).start()
        else:
            kill_all(nodes[node])
        return f"node {node[-6:]}"


def kill_all(process: psutil.Process) -> None:
    """Switch a machine off: kill the raylet and all its child processes."""
    with suppress(psutil.Error):
        below = process.children(recursive=True)
        process.kill()
        for child in below:
            with suppress(psutil.Error):
                child.kill()


def train_alone(plan: Plan) -> list[Record]:
    """The records of undisturbed training in this process, one per fold-run."""
    from raymrc.model.loading import load_backbone
    from tests.sweep.making import fold_runs
    from tests.training.fold_runs import train_fold_run
    from tests.training.test_lane import make_data, make_notes

    data = make_data(make_notes(), plan.folds)
    loaded = load_backbone(plan.cells[0].cell.backbone)
    return [train_fold_run(run, data, loaded) for run in fold_runs(plan)]


def trained_alike(mine: Record, alone: Record) -> bool:
    """Whether a record equals that of undisturbed training, up to the order of sums over processes."""
    trains_backbone = mine.fold_run.configuration.cell.strategy == "soft_prompt"
    return (
        mine.status == "done"
        and mine.tokens == alone.tokens
        and len(mine.epochs) == len(alone.epochs)
        and all(
            abs(a.loss - b.loss) <= 1e-4 + 1e-3 * abs(b.loss)
            for a, b in zip(mine.epochs, alone.epochs, strict=True)
        )
        and (trains_backbone or mine.notes == alone.notes)
    )


def compare(plan: Plan, records: Sequence[Record]) -> list[str]:
    """Keys of fold-runs whose records differ from those of undisturbed training in one process."""
    by_key = {record.key: record for record in records}
    return [
        alone.key
        for alone in train_alone(plan)
        if alone.key not in by_key or not trained_alike(by_key[alone.key], alone)
    ]


def wait_until(true: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if true():
            return True
        time.sleep(0.5)
    return true()


def main(place: Path) -> int:
    """The recorded run."""
    strikes = ["host", "worker", "node", "reclaim", "driver", "node"]
    folder = Path(tempfile.mkdtemp(prefix="raymrc-rehearsal-"))
    plan = prepare(
        folder / "study", devices=3, frozen=8, grouped=4, folds=5, epochs=8, workers=(1, 2)
    )
    began = time.monotonic()
    with cloud(folder / "cloud", max_nodes=3) as made:
        battle = Battle(made, folder / "study", strikes, every=8)
        battle.run()
        took = time.monotonic() - began
        left = wait_until(lambda: not made.nodes(), 120)
    records = Ledger(str(folder / "study")).records()
    courses = read_log(folder / "study" / "log")
    differing = compare(plan, records)
    epochs = sum(len(record.epochs) for record in records)
    again = {key: course for key, course in courses.items() if course.begun > 1}
    lines = [
        f"{plan.num_fold_runs} fold-runs, {epochs} epochs in the ledger, {took:.0f} s, "
        f"at most {battle.most_nodes} nodes at once, {battle.drivers} drivers",
        "",
        "| after | struck | whom |",
        "|---:|---|---|",
        *(f"| {s.at:.0f} s | {s.what} | {s.whom} |" for s in battle.struck),
        "",
        f"records: {len(records)}, {sum(r.status == 'done' for r in records)} of them done, "
        f"{len({r.key for r in records})} different keys",
        f"records that undisturbed training does not give: {len(differing)}",
        f"fold-runs that were begun more than once: {len(again)}",
        f"epochs trained twice: {sum(c.redone for c in again.values())} "
        f"({100 * sum(c.redone for c in again.values()) / max(1, epochs):.1f} % of all), "
        f"at most {max((c.most_redone for c in again.values()), default=0)} of one fold-run by one loss",
        f"fold-runs that went on within an epoch: {sum(c.within for c in again.values())}",
        f"nodes left two minutes after the end: {'none' if left else len(made.nodes())}",
        f"what the last driver said (done now, found done, failed): {battle.outputs[-1].strip()}",
    ]
    place.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0 if not differing and len(records) == plan.num_fold_runs else 1


if __name__ == "__main__":
    if sys.argv[1] == "drive":
        sys.exit(drive(Path(sys.argv[2])))
    sys.exit(main(Path(sys.argv[1])))
