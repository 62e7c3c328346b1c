"""What a study's cells cost on this device, measured in about a minute.

    cell -> a process of its own -> a warm-up -> few notes, twice -> Measured

A probe is made of whole fold-runs, only small ones: it measures all that they do, as the ledger has it.
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
"""(Epochs, share of the time) of a cell's fold-runs: in one answers weigh more, in the other training."""

LEAST_NOTES = 6
"""Of a probe: two folds, and something to validate on."""

CHARACTERS = 6
"""Of a piece, roughly: notes are shortened to no less than a window."""

LEAST_PIECES = 32
"""Of a note in the warm-up, roughly."""

PATIENCE = 30.0
"""Seconds after which a fold-run of a probe is given up, where three times what it should take is less."""


@dataclass(frozen=True)
class Probe:
    """What is measured of one cell.

    Args:
        configurations: one for each of `SHARES`.
        lanes: fold-runs side by side, as the plan places them.
        trainer: opens its pool.
        threads: of torch on a CPU, as hosts have them.
        seconds: that it may take, its process's start aside.
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
        """Of device, "cpu" or "gpu"."""
        return "cpu" if self.trainer.device == "cpu" else "gpu"

    @property
    def name(self) -> str:
        cell = self.configurations[0].cell
        return f"{cell.backbone.name}/{cell.strategy}"


def run_probes(probes: Sequence[Probe], say: Callable[[str], None]) -> list[Measured]:
    """Each in a fresh process, so that its memory is its own.

    Args:
        say: told of what is measured, and of what could not be.
    """
    found: list[Measured] = []
    for number, probe in enumerate(probes, start=1):
        say(f"probe {number} of {len(probes)}: {probe.name}")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
            try:
                measured = executor.submit(measure, probe).result()
            except RaymrcError as error:
                say(f"{probe.name} was not measured: {error}")
                continue
        if not measured:
            say(f"{probe.name} was not measured: it would take too long here")
        found += measured
    return found


def measure(probe: Probe) -> list[Measured]:
    """In this process.

    Raises:
        RaymrcError: of what the user can mend.
    """
    torch.set_num_threads(probe.threads)
    patience = max(PATIENCE, 3 * probe.seconds)
    # The first passes load libraries and are slower than all others.
    small = _least(probe)
    begin = time.monotonic()
    first = small.run(probe.configurations[0], 1, begin + patience)
    if not first:
        return []
    rate = (time.monotonic() - begin) / small.guess(probe.configurations[0], 1)
    found: list[Measured] = []
    for configuration, (epochs, share) in zip(probe.configurations, SHARES, strict=True):
        sized = _size(probe, configuration, epochs, share * probe.seconds / rate)
        begin = time.monotonic()
        measured = sized.run(configuration, epochs, begin + patience)
        if measured:
            # The warm-up overstates what comes after it.
            rate = (time.monotonic() - begin) / sized.guess(configuration, epochs)
        found += measured
    return found or first


def _least(probe: Probe) -> _Sized:
    """As little as has something to train on."""
    notes, characters = LEAST_NOTES, CHARACTERS * LEAST_PIECES
    while True:
        sized = _Sized(probe, notes, characters)
        work = sized.job(probe.configurations[0], 1).work
        if work.training.rows or notes >= len(probe.corpus.notes):
            return sized
        notes, characters = 2 * notes, 2 * characters


def _size(probe: Probe, configuration: Configuration, epochs: int, wanted: float) -> _Sized:
    """As many notes as take so many seconds by the first guess, or parts of a few."""
    window = CHARACTERS * configuration.window
    notes, characters = LEAST_NOTES, max(len(note.text) for note in probe.corpus.notes)
    sized = _Sized(probe, notes, characters)
    while characters > window and sized.guess(configuration, epochs) > wanted:
        characters = max(window, characters // 2)
        less = _Sized(probe, notes, characters)
        if not less.job(configuration, epochs).work.training.rows:
            break
        sized = less
    while notes < len(probe.corpus.notes):
        notes *= 2
        more = _Sized(probe, notes, characters)
        if more.guess(configuration, epochs) > wanted:
            break
        sized = more
    return sized


class _Sized:
    """A probe on so many notes, and so many characters of each."""

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
        small = replace(configuration, epochs=epochs)
        return Job(
            small, self.workload.of(small, 0), self.probe.shape, len(self.asked.labels),
            len(self.asked.relations), self.probe.lanes,
        )  # fmt: skip

    def guess(self, configuration: Configuration, epochs: int) -> float:
        """Seconds of all lanes, by the first guess."""
        parts = self.job(configuration, epochs).parts(self.probe.kind)
        return float(parts.sum()) * self.probe.lanes

    def run(self, configuration: Configuration, epochs: int, deadline: float) -> list[Measured]:
        """All lanes to their end; nothing where the deadline comes first."""
        job = self.job(configuration, epochs)
        probe = self.probe
        # The questions are those of all notes, also where these few answer none of them.
        everything = StudyData(probe.corpus, self.folds, probe.questions, test=self.corpus)
        data = everything.site(None, configuration.cell.task)
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
