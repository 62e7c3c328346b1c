"""Findings of studies that nobody trained: every score follows from its fold-run."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from raymrc.corpora.note import Corpus
from raymrc.scoring.counts import Counts
from raymrc.study.findings import Findings, find
from raymrc.study.plan import (
    Plan,
    build_study_folds,
    fold_run,
    plan_study,
    read_study_corpus,
    read_transfer,
)
from raymrc.study.record import Epoch, NoteCounts, Record
from raymrc.study.spec import Spec
from tests.study.making import spec_of

RICH = """\
study: rich
task: concepts
corpus:
  name: ward
  synthetic: {scheme: n2c2-2018, notes: 40, site: a, seed: 7}
  labels: [Drug, ADE, Dosage]
transfer:
  - {name: clinic, synthetic: {scheme: n2c2-2018, notes: 20, site: b, seed: 8}, labels: [Drug, ADE, Dosage]}
folds: {count: 5}
backbones:
  - {name: minilm, layers: 1}
  - {name: minilm, layers: 2}
  - {name: minilm, layers: 4}
  - {name: minilm, layers: 6}
strategies:
  fine_tune: {learning_rate: [5.0e-5, 2.0e-4, 1.0e-3]}
  soft_prompt: {learning_rate: [5.0e-5, 2.0e-4, 1.0e-3], prompt_length: [8, 32, 64]}
  frozen_soft_prompt: {learning_rate: [1.0e-3, 1.0e-2, 1.0e-1], prompt_length: [8, 32, 64]}
training: {epochs: 6}
prices: {device_hour_usd: 0.9}
racing: paired
storage: runs/rich
"""

FEW = """\
study: few
task: concepts
corpus:
  name: ward
  synthetic: {scheme: n2c2-2018, notes: 30, site: a, seed: 7}
  labels: [Drug, ADE]
folds: {count: 5}
few_shot: {notes: [5, 10, 20], draws: 2}
backbones: [minilm]
strategies:
  fine_tune: {learning_rate: 2.0e-4}
  frozen_soft_prompt: {learning_rate: 1.0e-2, prompt_length: 16}
storage: runs/few
"""


def make_findings(folder: Path, text: str = RICH, overrides: Sequence[str] = ()) -> Findings:
    """All fold-runs done, but of one configuration that was stopped and one that failed."""
    spec = spec_of(folder, text, overrides)
    corpus = read_study_corpus(spec)
    transfer = read_transfer(spec, corpus)
    weights = {entry.backbone.name: "w" for entry in spec.backbones}
    plan = plan_study(spec, corpus, weights, transfer=transfer)
    records = list(make_records(spec, plan, corpus))
    if len(plan.cells[-1].configurations or ()) > 2:
        stopped, failed = (c for c in (plan.cells[-1].configurations or ())[-2:])
        records = [
            replace(r, status="stopped", reason="2.1 points below <b>the leader</b>", notes={})
            if r.fold_run.configuration == stopped
            else replace(r, status="failed", reason="the loss is not a number at step 3", notes={})
            if r.fold_run.configuration == failed
            else r
            for r in records
        ]
    return find(spec, plan, records, corpus, transfer)


def make_records(spec: Spec, plan: Plan, corpus: Corpus) -> Iterator[Record]:
    assert plan.fingerprints is not None
    folds = build_study_folds(spec, corpus)
    for cell in plan.cells:
        for configuration in cell.configurations or ():
            for fold in range(plan.folds):
                run = fold_run(configuration, fold, plan.fingerprints)
                draw = random.Random(run.key)
                frozen = configuration.cell.strategy.startswith("frozen")
                layers = configuration.cell.backbone.layers or 6
                off = math.log10(configuration.learning_rate / (1e-2 if frozen else 2e-4))
                chance = 0.55 + 0.05 * layers - (0.3 / layers if frozen else 0.0) - 0.08 * off**2
                chance += 0.02 * math.log2((configuration.prompt_length or 8) / 8)
                scored = folds.split(fold % spec.folds.count).scored
                size = 4_000_000 + 1_800_000 * layers
                yield Record(
                    key=run.key,
                    fold_run=run,
                    notes={note: _counts(chance, corpus, draw) for note in scored},
                    transfer={
                        site.display_name: {
                            f"there-{n}": _counts(chance - 0.1, corpus, draw) for n in range(20)
                        }
                        for site in spec.transfer
                    },
                    validation_f1=min(1.0, chance + draw.gauss(0, 0.01)),
                    best_epoch=configuration.epochs,
                    epochs=tuple(
                        Epoch(e, 1 / e, chance * (1 - 0.5**e), 9.5)
                        for e in range(1, configuration.epochs + 1)
                    ),
                    trained_parameters=300_000 if frozen else size,
                    total_parameters=size + 300_000 * frozen,
                    adapter_bytes=1_200_000 if frozen else 4 * size,
                    device_seconds=layers * (30 if frozen else 45) * draw.uniform(0.9, 1.1),
                    cost_usd=layers * (30 if frozen else 45) * 0.9 / 3600,
                    tokens=10**6,
                    flops=1e13,
                    peak_bytes=2**30,
                    versions={"torch": "2.13.0", "raymrc": "0.1.0"},
                    hardware="EPYC, 2 cores",
                    started_at="2026-11-25T00:00:00+00:00",
                )


def _counts(chance: float, corpus: Corpus, draw: random.Random) -> NoteCounts:
    strict = {}
    for label in corpus.labels:
        found = sum(draw.random() < chance for _ in range(10))
        strict[label] = Counts(found, draw.randrange(4), 10 - found)
    return NoteCounts(strict, strict)
