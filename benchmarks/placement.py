"""How close is the memory that placement predicts to the memory that training needs?

    python -m benchmarks.placement [--quick] [--device cpu|cuda]

A point is a backbone's shape under a strategy, with window, batch, lanes, and whether layers recompute. Each
trains for two epochs in a new process, through the pools that hosts use: random weights, rows as long as the
window, and heads that predict answers everywhere, so that the match head gets its maximum of pairs. `ours` is
|predicted - measured| / measured, and the goal is an upper bound.

Measured is the peak of allocated memory, by torch's allocator on a GPU and by malloc on a CPU (glibc's
mallinfo2, read every millisecond), minus its value before the backbone was built. A tiny model is trained
first, to load libraries. Two processes that share a model load it from a file, and the larger one counts.

On a CPU malloc holds more memory than it hands out, because pools keep freed memory
(`training.pool.keep_freed_memory`) and blocks of other sizes leave gaps. `resident_bytes` is the growth of
the process's private memory (RssAnon), gaps included. Placement leaves room for them (`FILLED`).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import json_line, read_options, run_together, start
from benchmarks.sharded import private_bytes
from raymrc.configuration import Backbone, Cell, Configuration, FoldRun
from raymrc.corpora.note import Corpus, Note, Span
from raymrc.corpora.splits import make_folds
from raymrc.ledger.record import Epoch
from raymrc.model.encoder import Encoder
from raymrc.model.heads import SpanHeads
from raymrc.model.loading import Loaded, weight_names
from raymrc.model.precision import precision
from raymrc.model.shapes import SHAPES, Shape
from raymrc.model.strategies import STRATEGIES
from raymrc.planning.placement import (
    PASS_PIECES,
    QUESTION_PIECES,
    PlacementMode,
    Way,
    row_pieces,
)
from raymrc.training.batching import StudyData
from raymrc.training.pool import Pool
from tests.weights import write_weights

GOALS = {"cpu": 0.10, "cuda": 0.05}

LABELS = ("Drug", "ADE", "Dosage", "Route")

STEPS = 1
"""Minimum of steps per epoch."""


@dataclass(frozen=True, slots=True)
class Point:
    """What is measured.

    Args:
        backbone: a name in `SHAPES`.
        layers: number of first layers; None for all.
        devices: processes that share the model; 1 for a pool on one device.
    """

    backbone: str
    strategy: str
    window: int
    batch_size: int
    layers: int | None = None
    lanes: int = 1
    devices: int = 1
    checkpoints: bool = False
    prompt_length: int = 16
    prompt_depth: str = "deep"
    first_layer: int = 0
    match_width: int = 2048

    @property
    def case(self) -> str:
        parts = [self.backbone if self.layers is None else f"{self.backbone}-l{self.layers}"]
        parts += [self.strategy, f"{self.batch_size} x {self.window} pieces"]
        if self.prompt_depth != "deep" or self.first_layer:
            parts.append(f"{self.prompt_depth} prompt from layer {self.first_layer}")
        if self.devices > 1:
            parts.append(f"group of {self.devices}")
        elif not self.trains_backbone:
            parts.append("1 lane" if self.lanes == 1 else f"{self.lanes} lanes")
        if self.checkpoints:
            parts.append("recomputes")
        return ", ".join(parts)

    @property
    def recomputes(self) -> list[Cell]:
        return [self.configuration().cell] if self.checkpoints else []

    @property
    def trains_backbone(self) -> bool:
        return STRATEGIES[self.strategy].trains_backbone

    @property
    def shape(self) -> Shape:
        return SHAPES[self.backbone].first(self.layers)

    def configuration(self, number: int = 0) -> Configuration:
        """One lane's configuration. Its tiny rate keeps the predictions unchanged."""
        asks = STRATEGIES[self.strategy].asks
        return Configuration(
            Cell("concepts", "made-up", Backbone("random", "random"), self.strategy),
            learning_rate=1e-12, prompt_length=self.prompt_length if asks == "vectors" else 0,
            prompt_depth=self.prompt_depth, first_layer=self.first_layer, epochs=2,
            batch_size=self.batch_size, window=self.window, overlap=0,
            match_width=self.match_width, seed=number,
        )  # fmt: skip

    def predicted(self, device: str, pass_pieces: int | None = None) -> float:
        """Bytes of one device.

        Args:
            pass_pieces: maximum of padded pieces per pass; None for the pool's default.
        """
        kind = "gpu" if device == "cuda" else "cpu"
        configuration = self.configuration()
        pieces = self.batch_size * row_pieces(configuration, self.shape)
        mode = PlacementMode.DEVICE if self.trains_backbone else PlacementMode.LANES
        mode = PlacementMode.GROUP if self.devices > 1 else mode
        return Way(
            configuration, self.shape, len(LABELS), kind, mode=mode, lanes=self.lanes,
            devices=self.devices, checkpoints=self.checkpoints,
            sharing=min(self.lanes, max(1, (pass_pieces or PASS_PIECES[kind]) // pieces)),
            pass_pieces=pass_pieces,
        ).peak_bytes()  # fmt: skip


FROZEN, TRAINED = "frozen_soft_prompt", "soft_prompt"

POINTS = (
    Point("minilm", FROZEN, 384, 16),
    Point("minilm", FROZEN, 62, 4, lanes=4),
    Point("minilm", FROZEN, 62, 1, lanes=16),
    Point("minilm", FROZEN, 126, 8, prompt_depth="input"),
    Point("minilm", FROZEN, 254, 8, first_layer=3),
    Point("bert-large", FROZEN, 126, 2, layers=8, lanes=4),
    Point("bert-large", FROZEN, 384, 4, layers=8, match_width=512),
    Point("minilm", "fine_tune", 384, 8),
    Point("minilm", TRAINED, 126, 16),
    Point("minilm", TRAINED, 126, 16, checkpoints=True),
    Point("bert-large", "fine_tune", 126, 4, layers=12),
    Point("gatortron-345m", "hard_prompt", 214, 4, layers=6),
    Point("gatortron-345m", TRAINED, 384, 4, layers=8),
    Point("gatortron-345m", TRAINED, 384, 4, layers=8, checkpoints=True),
    Point("minilm", TRAINED, 126, 16, devices=2),
    Point("bert-large", TRAINED, 126, 4, layers=12, devices=2),
    Point("gatortron-345m", TRAINED, 384, 4, layers=8, devices=2, checkpoints=True),
    Point("gatortron-345m", FROZEN, 254, 4, layers=8, devices=2),
)

HELD_OUT = (
    Point("minilm", FROZEN, 200, 3, lanes=6, prompt_length=48),
    Point("minilm", "hard_prompt", 254, 8),
    Point("roberta-large", "fine_tune", 254, 4, layers=6),
    Point("bert-large", TRAINED, 190, 6, layers=5, prompt_depth="input", match_width=1024),
    Point("gatortron-345m", FROZEN, 300, 6, layers=10, first_layer=4, prompt_length=64),
    Point("bert-large", TRAINED, 254, 4, layers=6, devices=2),
)
"""Chosen after the arithmetic was finished, and measured once; `POINTS` were used to develop it."""

QUICK = (Point("minilm", FROZEN, 30, 2, layers=1, lanes=2, match_width=64),)
"""Groups start in the quick runs of `benchmarks.sharded`."""

ON_A_GPU = (
    Point("minilm", FROZEN, 126, 16, lanes=8),
    Point("bert-large", FROZEN, 384, 16),
    Point("bert-large", FROZEN, 126, 4, lanes=32),
    Point("bert-large", "fine_tune", 384, 16),
    Point("bert-large", TRAINED, 384, 16),
    Point("bert-large", TRAINED, 384, 16, checkpoints=True),
    Point("bert-large", TRAINED, 126, 64),
    Point("gatortron-345m", FROZEN, 510, 16, lanes=2),
    Point("gatortron-345m", FROZEN, 254, 16, lanes=4, first_layer=12),
    Point("gatortron-345m", "hard_prompt", 384, 16),
    Point("gatortron-3.9b", FROZEN, 384, 16, layers=12, lanes=8),
    Point("gatortron-3.9b", TRAINED, 384, 16, layers=12),
    Point("gatortron-3.9b", TRAINED, 384, 16, layers=12, checkpoints=True),
    Point("gatortron-8.9b", FROZEN, 384, 8, layers=24, lanes=4),
)


# --- what is trained on ---------------------------------------------------------------------------


class PlainTokenizer:
    """A tokenizer with one piece per word, which needs no files."""

    is_fast = True
    pad_token_id, cls_token_id, sep_token_id = 0, 1, 2
    words = tuple(a + b for a in "bcdfghjklm" for b in ("ale", "ire", "ound", "ove", "un"))

    def get_vocab(self) -> dict[str, int]:
        return {word: 3 + number for number, word in enumerate(self.words)}

    def __call__(self, text: str, **_: Any) -> dict[str, Any]:
        ids, offsets, at, vocab = [], [], 0, self.get_vocab()
        for word in text.split(" "):
            ids.append(vocab[word])
            offsets.append((at, at + len(word)))
            at += len(word) + 1
        return {"input_ids": ids, "offset_mapping": offsets}


def make_data(point: Point, steps: int = STEPS) -> StudyData:
    """Notes of one window each, enough for an epoch's steps; one validates, one is scored."""
    per_window = 1 if STRATEGIES[point.strategy].answers == "tags" else len(LABELS)
    trained = max(1, -(-steps * point.batch_size // per_window))
    draw = random.Random(0)
    notes = []
    for number in range(trained + 2):
        words = draw.choices(PlainTokenizer.words, k=point.window)
        spans = tuple(Span(f"T{i}", label, ((0, len(words[0])),)) for i, label in enumerate(LABELS))
        notes.append(Note(f"n{number}", " ".join(words), spans, group=f"g{number}"))
    corpus = Corpus(tuple(notes), LABELS)
    folds = make_folds(corpus, len(notes), seed=1, validation_share=0.01)
    question = " ".join(PlainTokenizer.words[: QUESTION_PIECES - 1])
    return StudyData(corpus, folds, dict.fromkeys(LABELS, question))


@dataclass(frozen=True)
class RandomLoaded(Loaded):
    """A backbone of random weights, without files."""

    def copy_to_train(self) -> Encoder:
        weight = self.encoder.word.weight
        if weight.dtype == torch.float32:
            return super().copy_to_train()
        return make_encoder(self.shape, weight.device, torch.float32)


def make_encoder(
    shape: Shape, device: torch.device | str, dtype: torch.dtype | None = None
) -> Encoder:
    """A frozen encoder with random weights, created on its device."""
    with torch.device("meta"):
        encoder = Encoder(shape).to(dtype or precision(device))
    encoder.to_empty(device=device)
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.Linear | nn.LayerNorm):
            nn.init.zeros_(module.bias)
    return encoder.requires_grad_(False).eval()


def make_loaded(shape: Shape, device: torch.device | str) -> Loaded:
    return RandomLoaded(
        Backbone("random", "random"), make_encoder(shape, device), PlainTokenizer(), shape, ""
    )


def answers_everywhere(model: nn.Module) -> None:
    """Make heads predict every piece as a start and an end, and no match, so that nothing is decoded."""
    heads = model.heads
    if isinstance(heads, SpanHeads):
        with torch.no_grad():
            heads.start.bias.fill_(9.0)
            heads.end.bias.fill_(9.0)
            heads.match_out.bias.fill_(-9.0)


def train(pool: Pool, point: Point, folder: Path | None = None) -> None:
    """Train all lanes to the end and save them after each epoch, as hosts do.

    Args:
        folder: where a group writes.
    """
    for number in range(point.lanes):
        run = FoldRun(point.configuration(number), 0, "", "", "", "")
        pool.open(run)
        answers_everywhere(pool._seats[run.key].lane.model)
    writing: list[Any] = []
    while len(pool):
        for event in pool.step():
            if isinstance(event.what, Exception):
                raise event.what
            if isinstance(event.what, Epoch):
                if folder is None:
                    pool.save(event.key)
                else:
                    place = str(folder / f"saved-{len(writing)}")
                    writing.append(pool.start_saving(event.key, place))  # type: ignore[attr-defined]
    for saving in writing:
        saving.wait()


# --- one process ----------------------------------------------------------------------------------


def measure_here(run: Callable[[], None], device: str) -> dict[str, int]:
    """Peak bytes of `run`.

    Returns:
        "allocated" by the allocator; on a CPU also "resident", private memory.
    """
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run()
        return {"allocated": torch.cuda.max_memory_allocated() - held}
    # Memory that the warm-up freed would be reused and not be counted.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    sampler = Sampler()
    before = sampler.read()
    sampler.start()
    run()
    return {name: peak - before[name] for name, peak in sampler.peaks.items()}


class Sampler(threading.Thread):
    """Peaks of this process's malloc memory and private memory, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._in_use = ctypes.CDLL(None).mallinfo2
        self._in_use.restype = MallocInfo
        self.peaks = self.read()

    def read(self) -> dict[str, int]:
        found = self._in_use()
        return {"allocated": found.uordblks + found.hblkhd, "resident": private_bytes()}

    def run(self) -> None:
        while True:
            for name, size in self.read().items():
                self.peaks[name] = max(self.peaks[name], size)
            time.sleep(0.001)


class MallocInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`; `uordblks` and `hblkhd` (separately mapped blocks) are in use."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def measure_alone(point: Point, device: str) -> dict[str, int]:
    """Peak bytes of a pool on one device."""
    warm_up = small(point)
    train(make_pool(warm_up, device, make_data(warm_up)), warm_up)
    data = make_data(point)
    return measure_here(lambda: train(make_pool(point, device, data), point), device)


def small(point: Point) -> Point:
    """A tiny version of the point, which loads libraries and fills their buffers."""
    return replace(
        point, backbone="minilm", layers=1, window=8, batch_size=2, first_layer=0, match_width=8,
        lanes=min(2, point.lanes),
    )  # fmt: skip


def make_pool(point: Point, device: str, data: StudyData) -> Pool:
    return Pool(
        make_loaded(point.shape, device), data, device,
        memory_bytes=float("inf"), recomputes=point.recomputes,
    )  # fmt: skip


def measure_shared(point: Point, folder: Path) -> dict[str, int]:
    """Peak bytes of the largest process of a group; every process of the group calls this."""
    import torch.distributed as dist

    from raymrc.training import sharded

    dist.init_process_group("gloo")
    ranks = sharded.Ranks.of_group("cpu")
    # These weights have no tokenizer.
    sharded.load_tokenizer = lambda folder: PlainTokenizer()

    def run(point: Point, folder: Path, data: StudyData) -> None:
        backbone = Backbone("random", str(folder))
        loaded = sharded.load_sharded(backbone, ranks, trains=point.trains_backbone)
        pool = sharded.ShardedPool(loaded, data, ranks, recomputes=point.recomputes)
        train(pool, point, folder)

    warm_up = small(point)
    run(warm_up, folder / "warm-up", make_data(warm_up))
    data = make_data(point)
    dist.barrier()
    found = measure_here(lambda: run(point, folder / "backbone", data), "cpu")
    everyone = ranks.gather(found)
    dist.destroy_process_group()
    return {name: max(each[name] for each in everyone) for name in found}


def write_checkpoint(folder: Path, shape: Shape) -> None:
    """Random weights under Hugging Face's names."""
    from benchmarks.throughput import hugging_face_config

    parameters = dict(make_encoder(shape, "cpu").named_parameters())

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for ours, theirs in weight_names(shape):
            yield from zip(theirs, parameters[ours].detach().chunk(len(theirs)), strict=True)

    write_weights(folder, tensors())
    hugging_face_config(shape).save_pretrained(folder)


def run_process(number: int, is_quick: bool, device: str, folder: Path | None) -> None:
    """Body of one process of the measurement."""
    point = points(is_quick, device)[number]
    torch.set_num_threads(1 if point.devices > 1 else os.cpu_count() or 1)
    torch.manual_seed(0)
    found = measure_alone(point, device) if folder is None else measure_shared(point, folder)
    if int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps(found))


# --- all of them ----------------------------------------------------------------------------------


def points(is_quick: bool, device: str) -> tuple[Point, ...]:
    if is_quick:
        return QUICK
    return POINTS + HELD_OUT if device == "cpu" else ON_A_GPU


def measure(number: int, is_quick: bool, device: str) -> dict[str, int]:
    """Measure a point in as many processes as it has; see `measure_here`."""
    point = points(is_quick, device)[number]
    command = [
        sys.executable, "-m", "benchmarks.placement", "--point", str(number), "--device", device,
        *(["--quick"] if is_quick else []),
    ]  # fmt: skip
    if point.devices == 1:
        return run_together(command)
    with tempfile.TemporaryDirectory(prefix="raymrc-placement-") as folder:
        place = Path(folder)
        write_checkpoint(place / "backbone", point.shape)
        write_checkpoint(place / "warm-up", SHAPES["minilm"].first(1))
        return run_together([*command, "--folder", folder], point.devices)


def main() -> int:
    if "--point" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--point", type=int)
        parser.add_argument("--device")
        parser.add_argument("--quick", action="store_true")
        parser.add_argument("--folder", type=Path)
        given = parser.parse_args()
        run_process(given.point, given.quick, given.device, given.folder)
        return 0
    options = read_options("placement", __doc__)
    start(options)
    goal = GOALS[options.device]
    for number, point in enumerate(points(options.quick, options.device)):
        found = measure(number, options.quick, options.device)
        measured, predicted = found["allocated"], point.predicted(options.device)
        error = abs(predicted - measured) / measured
        case = point.case + (", held out" if point in HELD_OUT else "")
        json_line(
            options, case, error, None, "relative error of the predicted memory",
            goal / max(error, 1e-4), goal,
            predicted_bytes=round(predicted), measured_bytes=measured,
            resident_bytes=found.get("resident"),
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
