"""One model sharded over two processes, against one process: memory, loading time, step time.

    python -m benchmarks.sharded [--quick]

A random checkpoint of BERT-large's shape (335M parameters; --quick: one layer of MiniLM's) is trained with
soft prompts on synthetic discharge summaries through the pools that hosts use: `ShardedPool` over two
processes of one core each, with gloo, and `Pool` in one process on both cores. Memory is a process's private
memory (RssAnon, without mapped files), sampled every 5 ms. The single process keeps a second copy of the
pretrained weights for the next fold-run; the goal applies to its memory without that copy. On a CPU the step
time shows the cost of sharding alone.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Options, json_line, read_options, run_together, start
from benchmarks.throughput import hugging_face_config, make_tokenizer
from raymrc.configuration import Backbone, Cell, Configuration, FoldRun
from raymrc.corpora.splits import make_folds
from raymrc.corpora.synthetic import synthesize_corpus
from raymrc.model.encoder import Encoder
from raymrc.model.loading import (
    load_backbone,
    load_tokenizer,
    weight_names,
)
from raymrc.model.shapes import SHAPES, Shape
from raymrc.reading.questions import build_questions
from raymrc.training.batching import StudyData
from raymrc.training.pool import Pool
from tests.weights import write_weights

MEMORY_GOAL = 0.6
STEPS = 4
PAIRS = 2


class Sampler(threading.Thread):
    """Peak of this process's private memory, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, private_bytes())
            time.sleep(0.005)

    def lap(self) -> int:
        peak, self.peak = max(self.peak, private_bytes()), 0
        return peak


def private_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def make_data() -> StudyData:
    corpus = synthesize_corpus("n2c2-2018", 6, "a", 13)
    folds = make_folds(corpus, 2, seed=13)
    return StudyData(corpus, folds, build_questions(corpus.labels, {}))


def make_checkpoint(folder: Path, shape: Shape) -> None:
    """Random weights under Hugging Face's names."""
    torch.manual_seed(0)
    encoder = Encoder(shape)
    parameters = dict(encoder.named_parameters())

    def tensors() -> Any:
        for ours, theirs in weight_names(shape):
            yield from zip(theirs, parameters[ours].detach().chunk(len(theirs)), strict=True)

    write_weights(folder, tensors())
    hugging_face_config(shape).save_pretrained(folder)
    make_tokenizer([make_data().corpus]).save_pretrained(folder)


def run_process(folder: Path, size: int) -> None:
    """Body of one process of the measurement; the first one prints the result."""
    torch.set_num_threads(1 if size > 1 else os.cpu_count() or 1)
    data = make_data()
    backbone = Backbone("random", str(folder))
    load_tokenizer(folder)  # loads its imports before the clock starts
    sampler = Sampler()
    sampler.start()
    began_with = private_bytes()
    rank = 0
    began = time.perf_counter()
    pool: Pool
    if size > 1:
        import torch.distributed as dist

        from raymrc.training.sharded import Ranks, ShardedPool, load_sharded

        dist.init_process_group("gloo")
        ranks = Ranks.of_group("cpu")
        rank = ranks.rank
        dist.barrier()
        began_with, began = private_bytes(), time.perf_counter()
        sampler.lap()
        pool = ShardedPool(load_sharded(backbone, ranks), data, ranks)
    else:
        pool = Pool(load_backbone(backbone), data, "cpu")
    loading = time.perf_counter() - began
    loading_bytes = sampler.lap() - began_with
    configuration = Configuration(
        Cell("concepts", "made-up", backbone, "soft_prompt"),
        learning_rate=1e-5, prompt_length=16, batch_size=4, window=128, overlap=16,
    )  # fmt: skip
    pool.open(FoldRun(configuration, 0, "", "", "", pool.loaded.fingerprint))
    times = []
    for _ in range(STEPS):
        began = time.perf_counter()
        for event in pool.step():
            if isinstance(event.what, Exception):
                raise event.what
        times.append(time.perf_counter() - began)
    found = {
        "loading_seconds": loading,
        "loading_bytes": loading_bytes,
        "training_bytes": sampler.lap() - began_with,
        "step_seconds": statistics.median(times[1:]),
    }
    if size > 1:
        found = {k: max(each[k] for each in ranks.gather(found)) for k in found}
        dist.destroy_process_group()
    if rank == 0:
        print(json.dumps(found))


def run(folder: Path, size: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.sharded", "--process", str(folder), str(size)]
    return run_together(command, size)


def measure(options: Options, folder: Path, name: str, shape: Shape, pairs: int) -> None:
    make_checkpoint(folder, shape)
    alone: list[dict[str, float]] = []
    shared: list[dict[str, float]] = []
    for pair in range(pairs):
        for size in (1, 2) if pair % 2 else (2, 1):
            (alone if size == 1 else shared).append(run(folder, size))

    def median(runs: list[dict[str, float]], what: str) -> float:
        return statistics.median(run[what] for run in runs)

    weights = 4 * shape.num_parameters
    single, each = median(alone, "training_bytes"), median(shared, "training_bytes")
    json_line(
        options, f"{name}, memory of a process in training", each, single - weights, "bytes",
        (single - weights) / each, 1 / MEMORY_GOAL,
        of_one_process=round(single), weights_once_more=weights, pairs_timed=pairs,
    )  # fmt: skip
    layer = 4 * (shape.num_parameters - shape.vocab * shape.hidden)
    bound = weights / 2 + layer / shape.num_layers
    loading = median(shared, "loading_bytes")
    json_line(
        options, f"{name}, memory of a process while it loads", loading, None, "bytes",
        bound / loading, bound,
        of_one_process=round(median(alone, "loading_bytes")), pairs_timed=pairs,
    )  # fmt: skip
    for what in ("loading", "step"):
        ours, peer = median(shared, f"{what}_seconds"), median(alone, f"{what}_seconds")
        json_line(
            options, f"{name}, {what}, two processes beside one", ours, peer, "s", peer / ours, 0.0,
            pairs_timed=pairs,
        )  # fmt: skip


def main() -> int:
    if "--process" in sys.argv:
        run_process(Path(sys.argv[2]), int(sys.argv[3]))
        return 0
    options = read_options("sharded", __doc__)
    start(options)
    with tempfile.TemporaryDirectory(prefix="raymrc-sharded-") as folder:
        if options.quick:
            measure(options, Path(folder), "minilm-l1", SHAPES["minilm"].first(1), 1)
        else:
            measure(options, Path(folder), "bert-large", SHAPES["bert-large"], PAIRS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
