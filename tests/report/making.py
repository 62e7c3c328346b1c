"""A large made-up study for the page: all strategies, sizes, another site, a race, failures, a final test.

python -m tests.report.making FOLDER [few-shot]

writes its page. F1 follows from a formula with noise by the fold-run's key, so every run gives the same.
"""

from __future__ import annotations

import math
import random
import sys
from dataclasses import replace
from pathlib import Path

from raymrc.analysis.findings import Findings, build_findings
from raymrc.configuration import Backbone, Configuration, FoldRun
from raymrc.ledger.record import Epoch, NoteCounts, Record, RecordStatus
from raymrc.model.shapes import SHAPES
from raymrc.planning.loaded import LoadedStudy
from raymrc.planning.plan import Plan
from raymrc.scoring.counts import Counts
from raymrc.study.load import load_spec
from raymrc.study.spec import Spec
from tests.study.making import plan_of

STUDY = """\
# Does a frozen clinical model keep up with a trained one, and from which size on?
# raymrc run study.yaml
study: concepts-by-size
task: concepts
corpus:
  synthetic: {scheme: n2c2-2018, notes: 40}
  labels: [Drug, ADE, Dosage, Reason]
folds: {count: 5}
backbones: [bert-large, gatortron-345m, gatortron-3.9b, gatortron-8.9b]
strategies:
  fine_tune: {learning_rate: [1.0e-5, 2.0e-5, 5.0e-5]}
  hard_prompt: {learning_rate: [1.0e-5, 3.0e-5]}
  soft_prompt: {learning_rate: [1.0e-5, 3.0e-5, 1.0e-4], prompt_length: [8, 32, 128]}
  frozen_soft_prompt: {learning_rate: [5.0e-3, 2.0e-2, 1.0e-1], prompt_length: [8, 32, 64, 128]}
training: {epochs: 10}
racing: paired
prices: {device_hour_usd: 2.5}
storage: runs/rich
"""

FEW_SHOT = """\
# How many notes does a frozen model need?
study: few-notes
task: concepts
corpus:
  synthetic: {scheme: n2c2-2018, notes: 40}
  labels: [Drug, ADE]
folds: {count: 5}
few_shot: {notes: [5, 10, 20, 50], draws: 2}
backbones: [bert-large, gatortron-3.9b]
strategies:
  fine_tune: {learning_rate: 2.0e-5}
  soft_prompt: {learning_rate: 2.0e-5, prompt_length: [8, 32]}
  frozen_soft_prompt: {learning_rate: {log_uniform: [5.0e-3, 3.0e-1]}, prompt_length: 32}
search: {algorithm: random, configurations: 4}
storage: runs/few
"""

BEST_RATE = {"frozen_soft_prompt": 2e-2}
BEHIND = {"fine_tune": 0.02, "hard_prompt": 0.015, "soft_prompt": 0.0}
NOTES = 8
WHY = "can no longer win: 0.031 behind on 2 folds, <p> = 0.01"


def make_findings(folder: Path, text: str = STUDY, with_course: bool = True) -> Findings:
    """See `make_records`."""
    spec, plan, records = make_records(folder, text, with_course)
    return build_findings(LoadedStudy(spec), plan, records)


def make_records(
    folder: Path, text: str = STUDY, with_course: bool = True
) -> tuple[Spec, Plan, list[Record]]:
    """
    Args:
        with_course: beside scores a race, failures and a final test.
    """
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    spec = load_spec(path)
    plan = plan_of(spec, places=False)
    return spec, plan, [r for run in _fold_runs(plan) for r in _records(run, with_course)]


def _fold_runs(plan: Plan) -> list[FoldRun]:
    return [
        FoldRun(configuration, fold, "c" * 64, "f" * 64, "", "w" * 64, ("hospital-b " + "t" * 64,))
        for cell in plan.cells
        for configuration in cell.configurations or ()
        for fold in range(plan.folds)
    ]


def _records(run: FoldRun, with_course: bool) -> list[Record]:
    configuration = run.configuration
    f1, cell = _f1(configuration), configuration.cell
    draw = random.Random(run.key)
    frozen = cell.strategy == "frozen_soft_prompt"
    size = _size(cell.backbone)
    trained = size // 200 if frozen else size + 1000
    labels = ("Drug", "ADE", "Dosage", "Reason")
    noise = draw.gauss(0, 0.003) + 0.01 * math.sin(run.fold)
    made = Record(
        key=run.key,
        fold_run=run,
        notes={
            f"note-{run.fold}-{i}": _note(draw, f1 + noise, labels) for i in range(NOTES)
        },
        transfer={
            "hospital-b": {f"t-{i}": _note(draw, f1 + noise - (0.04 if frozen else 0.1), labels[:2])
                      for i in range(NOTES)}
        },
        validation_f1=f1 + draw.gauss(0, 0.004),
        best_epoch=7,
        epochs=tuple(Epoch(e, 1 / e, f1 * (1 - 1 / (1 + e)), 30.0) for e in range(1, 11)),
        trained_parameters=trained,
        total_parameters=size + (trained if frozen else 1000),
        adapter_bytes=4 * trained,
        device="NVIDIA A10G",
        device_seconds=size / 1e6 * (0.4 if frozen else 1.5),
        cost_usd=size / 1e6 * (0.4 if frozen else 1.5) * 2.5 / 3600,
        tokens=10**7,
        flops=size * 6e7,
        peak_bytes=size * (5 if frozen else 16),
        versions={"raymrc": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        hardware="NVIDIA A10G, 24 GiB",
        started_at="2026-03-01T08:00:00+00:00",
    )  # fmt: skip
    if not with_course:
        return [made]
    if _is_beaten(configuration):
        early = replace(
            made, notes={}, transfer={}, epochs=made.epochs[:3], status=RecordStatus.STOPPED
        )
        return [replace(early, reason=WHY)] if run.fold < 2 else []
    if cell.backbone.name == "bert-large" and cell.strategy == "hard_prompt" and run.fold == 4:
        if configuration.learning_rate > 2e-5:
            reason = "the loss is not a number at step 12"
            return [replace(made, notes={}, transfer={}, status=RecordStatus.FAILED, reason=reason)]
    found = [made]
    if cell.backbone.name == "gatortron-345m" and run.fold == 0 and configuration.seed == 13:
        test = replace(run, test_fingerprint="h" * 64)
        found.append(replace(made, key=test.key, fold_run=test, transfer={}))
    return found


def _size(backbone: Backbone) -> int:
    """Parameters."""
    return SHAPES[backbone.name.removesuffix(f"-l{backbone.layers}")].num_parameters // (
        2 if backbone.layers else 1
    )


def _is_beaten(configuration: Configuration) -> bool:
    return configuration.learning_rate in (1e-1, 1e-4)


def _f1(configuration: Configuration) -> float:
    cell = configuration.cell
    size = math.log10(_size(cell.backbone) / 3e8)
    behind = BEHIND.get(cell.strategy, max(0.0, 0.055 - 0.036 * size))
    off = abs(math.log10(configuration.learning_rate / BEST_RATE.get(cell.strategy, 2e-5)))
    short = 0.05 / configuration.prompt_length if configuration.prompt_length else 0.0
    few = 0.5 / math.sqrt(cell.shots) if cell.shots else 0.0
    return 0.86 + 0.02 * size - behind - 0.06 * off - short - few * (0.6 if not behind else 1)


def _note(draw: random.Random, f1: float, labels: tuple[str, ...]) -> NoteCounts:
    strict, lenient = {}, {}
    for place, label in enumerate(labels):
        gold = 40 + draw.randrange(20)
        found = min(gold, round(gold * (f1 - 0.03 * place) + draw.gauss(0, 0.4)))
        strict[label] = Counts(found, gold - found, gold - found)
        lenient[label] = Counts(
            min(gold, found + 1), max(0, gold - found - 1), max(0, gold - found - 1)
        )
    return NoteCounts(strict, lenient, subsets={"nested": Counts(2, 1, 1)})


if __name__ == "__main__":
    from raymrc.report import write

    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    few = sys.argv[2:] == ["few-shot"]
    print(write(make_findings(place, FEW_SHOT if few else STUDY, with_course=not few), place))
