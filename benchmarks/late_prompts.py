"""What do late prompts save, and what do they cost in F1?

    python -m benchmarks.late_prompts [--corpus FOLDER] [--quick] [--device cpu|cuda]

Cost: 30 configurations train for 3 epochs over one frozen backbone of BERT-base's shape (random weights,
24 windows of 32 pieces, three labels each), five lanes per pass. Ours: prompts from layer 9 of 12 on, with
kept activations below (`raymrc.training.activations`), whose computation counts. Peer: prompts from layer 0
on. Both use `raymrc.training.fused`. The peer does equal work in every pass, so it runs in turn with some of
ours, and its total is ours times the median ratio of those pairs. Takes five minutes on two cores. Nothing is
learned from random pieces, so this case has no F1.

F1: fold-runs of `frozen_soft_prompt` in studies/phee/concepts.yaml with real MiniLM, prompts from layers 0,
2, 3 and 4 of six on. Peer: from layer 0 on, same folds. This measures a trade-off and has no goal. A second
line has the device-seconds of the same fold-runs beside the F1 of both sides; each fold-run computes its own
lower layers, while hosts keep them for all configurations. Takes a quarter of an hour on one core.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.common import Options, f1_of_both, json_line, read_options, start
from benchmarks.fused_step import TINY, make_backbone
from raymrc.configuration import Cell, Configuration, FoldRun
from raymrc.ledger.record import Record
from raymrc.model.inputs import Inputs, SpanTargets
from raymrc.model.loading import Loaded, load_backbone
from raymrc.model.network import Model
from raymrc.model.shapes import Shape
from raymrc.planning.loaded import LoadedStudy
from raymrc.planning.plan import plan_study
from raymrc.reading.questions import build_questions
from raymrc.study.load import load_spec
from raymrc.study.notes import build_study_folds, read_study_corpus
from raymrc.training.activations import Activations
from raymrc.training.batching import StudyData
from raymrc.training.fused import BatchPart, backward_together, clip_together
from raymrc.training.pool import keep_freed_memory
from tests.training.fold_runs import train_fold_run

BERT_BASE = Shape("bert", 12, 768, 12, 3072, vocab=30522)
GOAL = 3.5
"""Nine of twelve layers are saved, so the maximum is 4."""

LABELS = 3
PIECES = 32
LANES_A_PASS = 5
STORE_BYTES = 2**30

STUDY = Path(__file__).parents[1] / "studies" / "phee" / "concepts.yaml"
SHARES, QUICK_SHARES = (0.0, 0.25, 0.5, 0.75), (0.0, 0.5)
FOLDS = 2
NOTES = 100


@dataclass(frozen=True, slots=True)
class Size:
    """How much is trained, in whole passes and batches. Every window is asked for every label."""

    configurations: int
    epochs: int
    windows: int
    batch: int
    shape: Shape = BERT_BASE
    first_layer: int = 9


FULL = Size(configurations=30, epochs=3, windows=24, batch=24)
LITTLE = Size(5, epochs=2, windows=2, batch=3, shape=TINY, first_layer=1)


class Lanes:
    """Configurations with prompts from one layer on, each with its optimiser."""

    def __init__(self, loaded: Loaded, first_layer: int, seeds: Sequence[int]) -> None:
        device = loaded.encoder.word.weight.device
        self.models: list[Model] = []
        for seed in seeds:
            configuration = Configuration(
                Cell("concepts", "none", loaded.backbone, "frozen_soft_prompt"),
                learning_rate=1e-2,
                prompt_length=16,
                first_layer=first_layer,
                seed=seed,
            )
            self.models.append(Model(configuration, loaded, LABELS).train())
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        # A rate of zero does the same work and keeps the predictions unchanged.
        self.optimisers = [
            torch.optim.AdamW(model.parameter_groups(), fused=True) for model in self.models
        ]
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = 0.0

    def step(self, batches: Sequence[Inputs], targets: SpanTargets) -> None:
        """One batch of each lane, all with the same answers."""
        lanes = zip(self.models, batches, self.generators, strict=True)
        backward_together(
            [BatchPart(model, inputs, targets, generator) for model, inputs, generator in lanes]
        )
        clip_together(self.models, [model.configuration.clip_norm for model in self.models])
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)


LaneRows = Sequence[Sequence[tuple[int, int]]]
"""(window, label) of each row of each lane."""


def make_inputs(windows_WS: torch.Tensor, rows: Sequence[tuple[int, int]]) -> Inputs:
    window, label = torch.tensor(rows).unbind(1)
    ids = windows_WS[window]
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    return Inputs(ids, torch.zeros_like(ids), everywhere, everywhere, label)


def make_targets(rows: int) -> SpanTargets:
    """An answer of three pieces in every row."""
    start_BS, end_BS = torch.zeros(2, rows, PIECES)
    start_BS[:, 8] = end_BS[:, 10] = 1.0
    return SpanTargets(start_BS, end_BS, torch.tensor([(row, 8, 10) for row in range(rows)]))


def epoch_of(size: Size, draw: random.Random) -> Iterator[LaneRows]:
    """Rows of a pass's lanes for each step; each lane has its own order."""
    orders = []
    for _lane in range(LANES_A_PASS):
        rows = [(window, label) for window in range(size.windows) for label in range(LABELS)]
        draw.shuffle(rows)
        orders.append(rows)
    for begin in range(0, size.windows * LABELS, size.batch):
        yield [rows[begin : begin + size.batch] for rows in orders]


def measure_cost(options: Options, size: Size) -> None:
    device = options.device
    loaded = make_backbone(device, "bert-base", size.shape)
    draw = random.Random(0)
    windows_WS = torch.randint(
        1000, size.shape.vocab, (size.windows, PIECES), generator=torch.Generator().manual_seed(0)
    )
    targets = make_targets(size.batch).to(device)
    passes = [
        Lanes(loaded, size.first_layer, range(begin, begin + LANES_A_PASS))
        for begin in range(0, size.configurations, LANES_A_PASS)
    ]
    from_the_start = Lanes(loaded, 0, range(LANES_A_PASS))
    store = Activations(loaded.encoder, size.first_layer, STORE_BYTES)

    def fill(rows: LaneRows) -> list[Inputs]:
        return [store.fill([w for w, _ in lane], make_inputs(windows_WS, lane)) for lane in rows]

    def read(rows: LaneRows) -> list[Inputs]:
        return [make_inputs(windows_WS, lane).to(device) for lane in rows]

    # Warm up threads, allocator and optimisers on other inputs, so that no activations are kept yet.
    warm_up = next(epoch_of(size, draw))
    from_the_start.step(read(warm_up), targets)
    made_up = torch.randn(size.batch, PIECES, size.shape.hidden, device=device)
    for lanes in passes:
        lanes.step(
            [replace(i, entry_BSD=made_up, entry_layer=size.first_layer) for i in read(warm_up)],
            targets,
        )

    clock = Clock(device)
    total = building = 0.0
    ours, peer = [], []
    for epoch in range(size.epochs):
        for lanes in passes:
            for rows in epoch_of(size, draw):
                missed = store.misses
                clock.lap()
                filled = fill(rows)
                filling = clock.lap()
                lanes.step(filled, targets)
                seconds = filling + clock.lap()
                total += seconds
                if store.misses > missed:
                    building += filling
                if epoch and lanes is passes[0]:
                    clock.lap()
                    from_the_start.step(read(rows), targets)
                    peer.append(clock.lap())
                    ours.append(seconds)
    assert store.misses == size.windows and not store.evictions
    # The median, as in `time_in_turn`: another process may disturb single pairs.
    ratios = [p / o for o, p in zip(ours, peer, strict=True)]
    peer_total = statistics.median(ratios) * (total - building)
    json_line(
        options,
        f"{size.configurations} configurations x {size.epochs} epochs, prompts from layer "
        f"{size.first_layer} of {size.shape.num_layers}",
        total,
        peer_total,
        "s",
        peer_total / total,
        GOAL,
        building_seconds=round(building, 2),
        store_bytes=store.bytes,
        passes=size.epochs * len(passes) * (size.windows * LABELS // size.batch),
        passes_timed_of_peer=len(peer),
        ratio_of_each_pair=[round(ratio, 2) for ratio in ratios],
        rows=size.configurations * size.epochs * size.windows * LABELS,
        windows=size.windows,
        lanes_a_pass=LANES_A_PASS,
        batch=size.batch,
        pieces=PIECES,
        threads=torch.get_num_threads(),
    )


class Clock:
    """Seconds since the last lap, including work that the device had not finished."""

    def __init__(self, device: str) -> None:
        self._wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        self._last = 0.0

    def lap(self) -> float:
        self._wait()
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


def measure_f1(
    options: Options, changes: Sequence[str], folds: int, shares: Sequence[float] = SHARES
) -> None:
    spec = load_spec(STUDY, changes)
    corpus = read_study_corpus(spec)
    study_folds = build_study_folds(spec, corpus)
    data = StudyData(corpus, study_folds, build_questions(corpus.labels, spec.questions))
    cell = next(
        cell
        for cell in plan_study(LoadedStudy(spec, corpus)).cells
        if cell.cell.strategy == "frozen_soft_prompt"
    )
    assert cell.configurations is not None
    configuration = cell.configurations[0]
    loaded = load_backbone(configuration.cell.backbone, options.device)
    num_layers = loaded.shape.num_layers
    if options.device == "cpu":
        torch.set_num_threads(1)  # core-seconds, as a study on cores counts them
    at_zero: list[Record] = []
    for first_layer in sorted({round(share * num_layers) for share in shares}):
        records = [
            train_fold_run(
                FoldRun(
                    replace(configuration, first_layer=first_layer),
                    fold,
                    corpus.fingerprint,
                    study_folds.fingerprint,
                    "",
                    loaded.fingerprint,
                ),
                data,
                loaded,
                device=options.device,
            )
            for fold in range(folds)
        ]
        at_zero = at_zero or records
        f1, peer_f1 = (statistics.mean(r.strict.f1 for r in runs) for runs in (records, at_zero))
        seconds, peer_seconds = (
            statistics.mean(r.device_seconds for r in runs) for runs in (records, at_zero)
        )
        json_line(
            options,
            f"{spec.study}, prompts from layer {first_layer} of {num_layers}",
            f1,
            peer_f1,
            "strict micro F1, mean over folds",
            f1 / peer_f1 if peer_f1 else 0.0,
            0.0,
            device_seconds_per_fold_run=round(seconds, 1),
            peer_device_seconds_per_fold_run=round(peer_seconds, 1),
            f1_of_each_fold=[round(r.strict.f1, 4) for r in records],
            trained_parameters=records[0].trained_parameters,
            folds=folds,
            epochs=configuration.epochs,
            learning_rate=configuration.learning_rate,
            notes=len(corpus.notes),
        )
        if first_layer:
            json_line(
                options, f"{spec.study}, cost of prompts from layer {first_layer} of {num_layers}",
                seconds, peer_seconds, "device-seconds per fold-run", peer_seconds / seconds, 0.0,
                **f1_of_both(f1, peer_f1), folds=folds, epochs=configuration.epochs,
                learning_rate=configuration.learning_rate, notes=len(corpus.notes),
            )  # fmt: skip


QUICK = (
    "study=made-up-notes",
    "corpus={synthetic: {scheme: n2c2-2018, notes: 6}, labels: [Drug]}",
    "folds.count=2",
    "training={epochs: 1, window: 64, overlap: 8, match_width: 64}",
    "backbones=[{name: minilm, layers: 2}]",
    "strategies={frozen_soft_prompt: {learning_rate: 3.0e-2, prompt_length: 8, epochs: 1}}",
)


def main() -> int:
    options = read_options("late_prompts", __doc__, reads_phee=True)
    start(options)
    if options.device == "cpu":
        keep_freed_memory()  # for both sides
    measure_cost(options, LITTLE if options.quick else FULL)
    if options.quick:
        measure_f1(options, QUICK, 1, QUICK_SHARES)
    elif options.corpus is not None:
        measure_f1(
            options, [f"corpus.path={options.corpus}", f"corpus.subset.notes={NOTES}"], FOLDS
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
