"""A whole sweep over one frozen backbone: raymrc against Ray Tune, PEFT and Hugging Face's Trainer.

    python -m benchmarks.sweep_vs_peer [--corpus FOLDER] [--quick]

Eight learning rates on five folds of 40 PHEE sentences: 40 fold-runs of a frozen MiniLM with a prompt of 16
per label, on all cores, one core per trial. Ours: `run_study`, as `raymrc run` calls it, with an empty
ledger. Peer: what a user would write with the same Ray (`benchmarks.peft_peer`): a function trainable in
reused actors, the backbone kept in each process, one PEFT prefix per label, Trainer with dynamic padding,
validation every epoch; the best epoch predicts the fold. Both start and stop Ray, and the same rule scores
both.

The peer runs twice: with the published match head, which scores every pair of pieces, and with our factorised
head. The first is so slow that it gets a smaller sweep, and so do we beside it. Seconds of the whole sweep;
each sweep runs once, because it is long and has many fold-runs.

Rates, batches and epochs are such that both sides learn, and each line has the strict F1 of both: the mean
over all fold-runs, and over the folds of the rate that validation chooses. --quick has one case, which is too
short to learn.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import raymrc.sweep  # noqa: F401  # sets Ray's switches before ray is imported

# isort: split
import ray
from ray import tune

from benchmarks.common import Options, f1_of_both, json_line, read_options, start
from benchmarks.peft_peer import HEADS, PREFIX, PeerRun, run_trial
from raymrc.configuration import Configuration
from raymrc.ledger.ledger import Ledger
from raymrc.model.backbones import find_backbone, weights_fingerprint
from raymrc.planning.loaded import LoadedStudy
from raymrc.planning.plan import Plan, plan_study
from raymrc.scoring.counts import Counts, pool
from raymrc.study.load import load_spec
from raymrc.study.notes import read_study_corpus
from raymrc.sweep.driver import Training, run_study
from raymrc.sweep.session import HostResources, cluster
from raymrc.training.batching import StudyData
from raymrc.training.trainer import Trainer

STUDY = Path(__file__).resolve().parents[1] / "studies" / "phee" / "concepts.yaml"

HEAD_RATE = "1.0e-2"
"""Default of a frozen backbone's heads (`raymrc.planning.defaults`)."""


@dataclass(frozen=True, slots=True)
class Case:
    """
    Args:
        head: the peer's head, a key of `peft_peer.HEADS`.
        notes: number of PHEE notes, drawn by the study's seed.
    """

    head: str
    goal: float
    notes: int
    epochs: int
    match_width: int = 2048
    batch_size: int = 4
    rates: tuple[float, ...] = (1e-2, 1.5e-2, 2e-2, 2.5e-2, 3e-2, 4e-2, 5e-2, 6e-2)
    folds: int = 5


CASES = (
    Case("factorised head", 3.0, notes=40, epochs=10),
    Case("published head", 15.0, notes=40, epochs=10, rates=(2e-2, 3e-2, 5e-2), folds=2),
)
QUICK = (
    Case(
        "factorised head", 3.0, notes=12, epochs=1, match_width=64, rates=(3e-2,), folds=2
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Side:
    """Result of a sweep.

    Args:
        counts: (configuration, fold) -> strict counts of the scored fold.
        validation: (configuration, fold) -> F1 that chose the epoch.
        tokens: trained pieces without padding.
    """

    wall_seconds: float
    counts: dict[tuple[int, int], Counts]
    validation: dict[tuple[int, int], float]
    tokens: int

    @property
    def mean_f1(self) -> float:
        """Mean F1 over all fold-runs."""
        return statistics.mean(counts.f1 for counts in self.counts.values())

    @property
    def chosen_f1(self) -> float:
        """Mean F1 over folds of the configuration that validation chooses."""
        by_rate: dict[int, list[float]] = {}
        for (number, _), f1 in self.validation.items():
            by_rate.setdefault(number, []).append(f1)
        best = max(by_rate, key=lambda number: statistics.mean(by_rate[number]))
        return statistics.mean(c.f1 for (number, _), c in self.counts.items() if number == best)


def plan_case(case: Case, corpus_path: str, folder: Path) -> tuple[Plan, StudyData]:
    rates = ", ".join(f"{rate:.1e}" for rate in case.rates)
    frozen = (
        f"{{learning_rate: [{rates}], head_learning_rate: {HEAD_RATE}, prompt_length: 16, "
        f"epochs: {case.epochs}}}"
    )
    spec = load_spec(
        STUDY,
        [
            f"corpus.path={corpus_path}",
            "corpus.labels=[Drug, Effect]",
            f"corpus.subset.notes={case.notes}",
            f"folds.count={case.folds}",
            f"training.match_width={case.match_width}",
            f"training.batch_size={case.batch_size}",
            f"strategies={{frozen_soft_prompt: {frozen}}}",
            f"storage={folder}",
        ],
    )
    backbones = [entry.backbone for entry in spec.backbones]
    weights = {b.name: weights_fingerprint(find_backbone(b)) for b in backbones}
    study = LoadedStudy(spec, read_study_corpus(spec), weights=weights)
    corpus, folds, _, questions, _ = study.inputs
    return plan_study(study), StudyData(corpus, folds, questions)


def configurations_of(plan: Plan) -> tuple[Configuration, ...]:
    return tuple(c for cell in plan.cells for c in cell.configurations or ())


def run_ours(plan: Plan, data: StudyData, folder: Path) -> Side:
    ledger = Ledger(str(folder))
    began = time.perf_counter()
    outcome = run_study(plan, ledger, Training(Trainer().open_pool, data), folder)
    seconds = time.perf_counter() - began
    assert outcome.done == plan.num_fold_runs, outcome.reasons
    number_of = {c: number for number, c in enumerate(configurations_of(plan))}
    records = {(number_of[r.fold_run.configuration], r.fold_run.fold): r for r in ledger.records()}
    return Side(
        seconds,
        {
            at: pool(pool(note.strict.values()) for note in r.notes.values())
            for at, r in records.items()
        },
        {at: r.validation_f1 or 0.0 for at, r in records.items()},
        sum(r.tokens for r in records.values()),
    )


def run_peer(plan: Plan, data: StudyData, folder: Path, head: str) -> Side:
    configurations = configurations_of(plan)
    began = time.perf_counter()
    with cluster(HostResources(), folder):
        trainable = tune.with_resources(
            tune.with_parameters(run_trial, shared=[ray.put((data, configurations))], head=head),
            {"cpu": 1},
        )
        results = tune.Tuner(
            trainable,
            param_space={
                "configuration": tune.grid_search(list(range(len(configurations)))),
                "fold": tune.grid_search(list(range(plan.folds))),
            },
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(name="peer", storage_path=str(folder), verbose=0),
        ).fit()
    seconds = time.perf_counter() - began
    if results.errors:
        raise SystemExit(f"the peer failed: {type(results.errors[0]).__name__}")
    last = [results[i].metrics or {} for i in range(len(results))]
    runs = [PeerRun(**metrics["run"]) for metrics in last]
    assert len(runs) == plan.num_fold_runs
    return Side(
        seconds,
        {(run.configuration, run.fold): Counts(*run.strict) for run in runs},
        {(run.configuration, run.fold): run.validation_f1 for run in runs},
        sum(run.tokens for run in runs),
    )


def run_case(options: Options, case: Case, corpus_path: str) -> None:
    assert case.head in HEADS
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="raymrc-sweep-") as scratch:
        places = {name: Path(scratch, name) for name in ("ours", "peer")}
        for place in places.values():
            place.mkdir()
        plan, data = plan_case(case, corpus_path, places["ours"])
        ours = run_ours(plan, data, places["ours"])
        peer = run_peer(plan, data, places["peer"], case.head)
    json_line(
        options,
        f"frozen sweep, peer with the {case.head}",
        ours.wall_seconds,
        peer.wall_seconds,
        "s for all fold-runs, with Ray's start and end",
        peer.wall_seconds / ours.wall_seconds,
        case.goal,
        pairs_timed=1,
        fold_runs=plan.num_fold_runs,
        configurations=plan.num_configurations,
        folds=plan.folds,
        trials_at_once=os.cpu_count(),
        notes=len(data.corpus.notes),
        labels=list(data.corpus.labels),
        epochs=case.epochs,
        prompt_length=16,
        match_width=case.match_width,
        batch_size=case.batch_size,
        rates=list(case.rates),
        head_rate=float(HEAD_RATE),
        **f1_of_both(ours.mean_f1, peer.mean_f1),
        chosen_f1=round(ours.chosen_f1, 4),
        peer_chosen_f1=round(peer.chosen_f1, 4),
        tokens=ours.tokens,
        peer_tokens=peer.tokens,
        peer_prefix=f"{PREFIX}, its own start N(0, 1)",
        peer_batches="shuffled, padded to the longest",
        load_average_before=round(load, 1),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options("sweep_vs_peer", __doc__, arguments, reads_phee=True, devices=("cpu",))
    if options.corpus is None:
        return 2
    start(options)
    for case in QUICK if options.quick else CASES:
        run_case(options, case, str(options.corpus))
    return 0


if __name__ == "__main__":
    sys.exit(main())
