"""Measures in about a minute what a study's cells cost on this device.

    cell -> a process of its own -> a warm-up -> fold-runs on few notes, twice -> Measured

A probe runs whole fold-runs, only small ones, so it measures all that a record measures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context

import torch

from raymrc.configuration import Configuration, FoldRun
from raymrc.corpora.note import Corpus
from raymrc.corpora.splits import make_folds, take_subset
from raymrc.costs.rates import Job, Measured
from raymrc.costs.workload import Workload, shortened
from raymrc.errors import CorpusError, RaymrcError
from raymrc.ledger.record import Record
from raymrc.model.backbones import find_backbone
from raymrc.model.shapes import Shape
from raymrc.reading.light_tokenizers import read_tokenizer
from raymrc.reading.relations import find_asked
from raymrc.training.batching import StudyData
from raymrc.training.pool import Pool
from raymrc.training.trainer import Trainer

SHARES = ((1, 0.35), (3, 0.65))
"""(Epochs, share of the time) of a cell's two fold-runs: the first weighs evaluation, the second training."""

MIN_NOTES = 6
"""Notes of a probe, at least: enough for two folds and a validation part."""

CHARACTERS_PER_PIECE = 6
"""Rough: notes are shortened to no less than a window."""

MIN_PIECES = 32
"""Rough length of a note in the warm-up."""

MIN_TIMEOUT_SECONDS = 30.0
"""A fold-run of a probe may take this long, or three times what the probe should take."""


@dataclass(frozen=True)
class Probe:
    """How to measure one cell.

    Args:
        configurations: one for each of `SHARES`.
        lanes: fold-runs side by side, as the plan places them.
        trainer: opens the probe's pool.
        threads: of torch on a CPU, as hosts have them.
        seconds: that the probe may take, without the start of its process.
    """

    configurations: tuple[Configuration, ...]
    shape: Shape
    lanes: int
    trainer: Trainer
    corpus: Corpus
    questions: dict[str, str]
    threads: int
    seconds: float

    @property
    def kind(self) -> str:
        return "cpu" if self.trainer.device == "cpu" else "gpu"

    @property
    def name(self) -> str:
        cell = self.configurations[0].cell
        return f"{cell.backbone.name}/{cell.strategy}"


def run_probes(probes: Sequence[Probe], log: Callable[[str], None]) -> list[Measured]:
    """Runs each probe in a fresh process, so that its peak memory is its own.

    Args:
        log: called with a sentence per probe, and with one per probe that failed.
    """
    found: list[Measured] = []
    for number, probe in enumerate(probes, start=1):
        log(f"probe {number} of {len(probes)}: {probe.name}")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
            try:
                measured = executor.submit(measure, probe).result()
            except RaymrcError as error:
                log(f"{probe.name} was not measured: {error}")
                continue
        if not measured:
            log(f"{probe.name} was not measured: it would take too long here")
        found += measured
    return found


def measure(probe: Probe) -> list[Measured]:
    """Runs a probe in this process; an empty list where it would take too long.

    Raises:
        RaymrcError: the user has to change something.
    """
    torch.set_num_threads(probe.threads)
    timeout = max(MIN_TIMEOUT_SECONDS, 3 * probe.seconds)
    # The first passes load libraries and are slower than later ones.
    small = _smallest(probe)
    begin = time.monotonic()
    first = small.run(probe.configurations[0], 1, begin + timeout)
    if not first:
        return []
    rate = (time.monotonic() - begin) / small.guess(probe.configurations[0], 1)
    found: list[Measured] = []
    for configuration, (epochs, share) in zip(probe.configurations, SHARES, strict=True):
        sized = _size(probe, configuration, epochs, share * probe.seconds / rate)
        begin = time.monotonic()
        measured = sized.run(configuration, epochs, begin + timeout)
        if measured:
            # The warm-up overstates what comes after it.
            rate = (time.monotonic() - begin) / sized.guess(configuration, epochs)
        found += measured
    return found or first


def _smallest(probe: Probe) -> _Sized:
    """As little as leaves something to train on."""
    notes, characters = MIN_NOTES, CHARACTERS_PER_PIECE * MIN_PIECES
    while True:
        sized = _Sized(probe, notes, characters)
        work = sized.job(probe.configurations[0], 1).work
        if work.training.rows or notes >= len(probe.corpus.notes):
            return sized
        notes, characters = 2 * notes, 2 * characters


def _size(probe: Probe, configuration: Configuration, epochs: int, seconds: float) -> _Sized:
    """As many notes as take up to `seconds` by the first guess, or the beginnings of `MIN_NOTES`."""
    window = CHARACTERS_PER_PIECE * configuration.window
    notes, characters = MIN_NOTES, max(len(note.text) for note in probe.corpus.notes)
    sized = _Sized(probe, notes, characters)
    while characters > window and sized.guess(configuration, epochs) > seconds:
        characters = max(window, characters // 2)
        less = _Sized(probe, notes, characters)
        if not less.job(configuration, epochs).work.training.rows:
            break
        sized = less
    while notes < len(probe.corpus.notes):
        notes *= 2
        more = _Sized(probe, notes, characters)
        if more.guess(configuration, epochs) > seconds:
            break
        sized = more
    return sized


class _Sized:
    """A probe on some notes, each shortened.

    Args:
        notes: how many, at least.
        characters: of each note, at most.
    """

    def __init__(self, probe: Probe, notes: int, characters: int) -> None:
        self.probe = probe
        while True:
            self.corpus = shortened(take_subset(probe.corpus, notes, 1), characters)
            try:
                self.folds = make_folds(self.corpus, 2, 1, 0.2)
                break
            except CorpusError:  # too few groups
                if len(self.corpus.notes) == len(probe.corpus.notes):
                    raise
                notes *= 2
        backbone = probe.configurations[0].cell.backbone
        self.asked = find_asked(probe.configurations[0].cell.task, probe.corpus)
        self.workload = Workload(
            self.corpus, self.folds, self.asked, probe.questions, {},
            {backbone.source: read_tokenizer(find_backbone(backbone))}, {backbone.source: probe.shape},
            probe.kind,
        )  # fmt: skip

    def job(self, configuration: Configuration, epochs: int) -> Job:
        small = replace(configuration, epochs=epochs, duration=None)
        return Job(
            small, self.workload.of(small, 0), self.probe.shape, len(self.asked.labels),
            len(self.asked.relations), self.probe.lanes,
        )  # fmt: skip

    def guess(self, configuration: Configuration, epochs: int) -> float:
        """Seconds of all lanes before anything was measured."""
        parts = self.job(configuration, epochs).parts(self.probe.kind)
        return float(parts.sum()) * self.probe.lanes

    def run(self, configuration: Configuration, epochs: int, deadline: float) -> list[Measured]:
        """Trains all lanes to their end; an empty list where the deadline passes first."""
        job = self.job(configuration, epochs)
        probe = self.probe
        # Ask the questions of all notes, even where these few answer none of them.
        whole = StudyData(probe.corpus, self.folds, probe.questions, test=self.corpus)
        data = whole.site(None, configuration.cell.task)
        pool = probe.trainer.open_pool(configuration.cell.backbone, data)
        for number in range(probe.lanes):
            pool.open(FoldRun(replace(job.configuration, seed=number), 0, "", "", "", ""))
        return [
            Measured(
                job, record.hardware, probe.kind, record.device_seconds, record.peak_bytes, "probe"
            )
            for record in _records(pool, deadline)
        ]


def _records(pool: Pool, deadline: float) -> list[Record]:
    found: list[Record] = []
    while len(pool):
        for event in pool.step():
            if isinstance(event.what, Exception):
                raise event.what
            if isinstance(event.what, Record):
                found.append(event.what)
        if len(pool) and time.monotonic() > deadline:
            return []
    return found
