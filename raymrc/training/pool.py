"""Fold-runs side by side on one device: lanes open, step and close over one backbone in memory.

    open(fold_run) -> step() -> Event, Event ... -> the record of its end

Lanes of frozen strategies share passes; a lane that trains the backbone has its own copy, and
passes of its own. No Ray here: a host is this in an actor.
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from raymrc.configuration import Cell, Configuration, FoldRun
from raymrc.errors import MemoryShortage, TrainingError
from raymrc.ledger.record import LaneEvent, Record
from raymrc.model.inputs import Inputs
from raymrc.model.loading import Loaded
from raymrc.model.strategies import STRATEGIES, ParameterCounts, count_parameters
from raymrc.planning import placement
from raymrc.planning.arithmetic import lane_bytes, pass_bytes
from raymrc.planning.devices import MEMORY_SHARE, machine_bytes
from raymrc.planning.placement import ACTIVATIONS_SHARE, SPECIAL_PIECES
from raymrc.training.activations import Activations
from raymrc.training.batching import StudyData
from raymrc.training.fused import (
    backward_together,
    clip_together,
    predict_together,
    share_out,
    step_together,
)
from raymrc.training.lane import DONE, Answers, Batch, Lane
from raymrc.training.meter import Meter

PASS_PIECES = {"cpu": placement.PASS_PIECES["cpu"], "cuda": placement.PASS_PIECES["gpu"]}
"""By torch's name of the device."""

SLACK_PIECES = {"cpu": 16.0, "cuda": math.inf}
"""Padding that sharing a pass is worth, of one lane's batch. On a CPU a pass of few rows loses about as
much as computing so many; a GPU sees no padding."""


@dataclass(slots=True)
class _Seat:
    """An open lane: when it was opened (earlier by what it had spent before), and epochs told of."""

    lane: Lane
    began: float
    told: int


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""From malloc.h."""


def keep_freed_memory(block: int = 2**30, unused: int = 2**31 - 1) -> None:
    """On a CPU: the C library keeps what is freed, in blocks of up to 1 GiB, for the next step.

    It would give large blocks back to the system and take them anew, page by page, at every step:
    a third of a step's time where many lanes have a row or two each.

    Args:
        block: larger ones are given back at once, in bytes.
        unused: kept at the heap's end, at most, in bytes.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc
        for option, value in ((M_MMAP_THRESHOLD, block), (M_TRIM_THRESHOLD, unused)):
            library.mallopt(option, value)


class Pool:
    """Any number of lanes over one backbone.

    Args:
        loaded: the backbone, on `device`.
        device_hour_usd: price of one device (a GPU, or a core) for an hour.
        gpus: how much of a GPU is held meanwhile; two that share one pay half each.
        memory_bytes: what lanes and their passes may use; found out where it is not given.
        pass_pieces: padded pieces of a pass; see `PASS_PIECES`.
        recomputes: cells whose lanes compute again what a gradient needs (`encoder.Layer.checkpoints`).
        on_done: told of a lane that is done, with the state of its best epoch, before it is dropped.
    """

    def __init__(
        self,
        loaded: Loaded,
        data: StudyData,
        device: torch.device | str = "cpu",
        *,
        device_hour_usd: float = 0.0,
        gpus: float = 1.0,
        memory_bytes: float | None = None,
        pass_pieces: int | None = None,
        recomputes: Collection[Cell] = (),
        on_done: Callable[[Lane], None] | None = None,
    ) -> None:
        self.loaded = loaded
        self.data = data
        self.device = torch.device(device)
        self.device_hour_usd = device_hour_usd
        self.pass_pieces = pass_pieces or PASS_PIECES[self.device.type]
        self.meter = Meter(self.device, gpus)
        if self.device.type == "cpu":
            self._set_malloc()
        self.memory_bytes = memory_bytes or available_bytes(self.device, gpus)
        self.recomputes = frozenset(recomputes)
        self.on_done = on_done or (lambda lane: None)
        self._seats: dict[str, _Seat] = {}
        self._activations: dict[int, Activations] = {}
        self._events: list[LaneEvent] = []

    def _set_malloc(self) -> None:
        keep_freed_memory()

    def __len__(self) -> int:
        return len(self._seats)

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the fold-runs whose lanes are open."""
        return tuple(self._seats)

    def fits(self, fold_run: FoldRun) -> bool:
        """Whether one more lane has room in memory beside those that are open."""
        held = sum(self._lane_bytes(seat.lane.fold_run) for seat in self._seats.values())
        return held + self._lane_bytes(fold_run) + self._pass_bytes(fold_run) <= self.memory_bytes

    def open(self, fold_run: FoldRun, state: bytes | None = None) -> None:
        """One more lane, from its beginning or from where it was saved.

        Raises:
            TrainingError: it does not fit into memory; or its training notes are empty.
            RaymrcError: of what the user can mend; see `Lane`.
        """
        if not self._seats:
            self.meter.reset_peak()
        # Alone, its passes may turn out smaller than their bound: then it is worth trying.
        wanted = self._lane_bytes(fold_run)
        if not self.fits(fold_run) and (self._seats or wanted > self.memory_bytes):
            raise TrainingError(
                f"its lane wants {wanted / 2**30:.2f} GiB beside {len(self)} others, and "
                f"there are {self.memory_bytes / 2**30:.2f} GiB for all; set match_width or "
                "prompt_length to less, or fewer lanes"
            )
        began = time.monotonic()
        self.meter.lap()
        lane = Lane(
            fold_run, self.data, self.loaded, self.device, self.pass_pieces, state,
            self._activations_of(fold_run),
        )  # fmt: skip
        recomputes = fold_run.configuration.cell in self.recomputes
        for number in range(self.loaded.shape.num_layers):
            lane.model.encoder.layer(number).checkpoints = recomputes
        before = lane.spent.wall
        lane.spent.add(*self.meter.lap())
        self._seats[fold_run.key] = _Seat(lane, began - before, len(lane.epochs))

    def save(self, key: str) -> bytes:
        """A lane's state between two steps, for `open`. Of one that trains a backbone a whole model's, with
        its moments and its best epoch."""
        return self._seats[key].lane.save()

    def epochs(self, key: str) -> int:
        """How many of a lane are done."""
        return len(self._seats[key].lane.epochs)

    def tokens(self, key: str) -> int:
        """That a lane was trained on, as a record counts them."""
        return self._seats[key].lane.tokens

    def pause(self, key: str) -> Record:
        """Drop a lane that has been saved, with what it has come to and cost so far."""
        record = self._record(self._seats[key])
        self.close(key)
        return record

    def close(self, key: str) -> None:
        """Drop a lane; what it has learnt is lost."""
        self._seats.pop(key, None)

    def step(self) -> list[LaneEvent]:
        """One batch of every lane. A lane that fails ends, the others go on."""
        self.meter.lap()
        batches: list[Batch] = []
        for lane in [seat.lane for seat in self._seats.values()]:
            try:
                batch = lane.take()
            except Exception as error:
                self._fail(lane, error)
                continue
            if batch is not None:
                batches.append(batch)
            self._tell(lane)
        if batches:
            self._charge(batches)
        for trains, run in ((True, self._train), (False, self._ask)):
            for group in self._groups([b for b in batches if b.trains == trains]):
                run(group)
        events, self._events = self._events, []
        return events

    def _groups(self, batches: Sequence[Batch]) -> list[list[Batch]]:
        """Who passes together."""
        alone = [[batch] for batch in batches if not batch.lane.shares_passes]
        shared = [batch for batch in batches if batch.lane.shares_passes]
        places = share_passes([batch.inputs for batch in shared], self.device, self.pass_pieces)
        return [*alone, *([shared[i] for i in group] for group in places)]

    def _train(self, group: Sequence[Batch]) -> None:
        before = [batch.lane.dropout.get_state() for batch in group]
        try:
            losses = self._backward(group)
        except Exception as error:
            for batch, state in zip(group, before, strict=True):
                batch.lane.dropout.set_state(state)
                batch.lane.optimiser.zero_grad(set_to_none=True)
            self._part(group, error, self._train)
            return
        lanes = [batch.lane for batch in group]
        self._clip(lanes)
        for lane in lanes:
            lane.decay_rates()
        step_together([lane.optimiser for lane in lanes])
        self._charge(group)
        for batch, loss in zip(group, losses, strict=True):
            self._settle(batch.lane, partial(batch.lane.learnt, batch, loss))

    def _ask(self, group: Sequence[Batch]) -> None:
        try:
            answers = self._answers(group)
        except Exception as error:
            self._part(group, error, self._ask)
            return
        self._charge(group)
        for batch, heard in zip(group, answers, strict=True):
            self._settle(batch.lane, partial(batch.lane.heard, batch, heard))

    # --- one pass ---------------------------------------------------------------------------------

    def _backward(self, group: Sequence[Batch]) -> Tensor:
        """Losses (K,); the lanes' parameters have their gradients."""
        if group[0].lane.shares_passes:
            return backward_together([batch.part for batch in group])
        (batch,) = group
        assert batch.targets is not None
        loss = batch.lane.model.loss(batch.inputs, batch.targets)
        loss.backward()
        return loss.detach()[None]

    def _clip(self, lanes: Sequence[Lane]) -> None:
        clip_together(
            [lane.model for lane in lanes], [lane.configuration.clip_norm for lane in lanes]
        )

    def _answers(self, group: Sequence[Batch]) -> Sequence[Answers]:
        if group[0].lane.shares_passes:
            return predict_together([batch.part for batch in group])
        (batch,) = group
        return [batch.lane.model.predict(batch.inputs)]

    # --- what comes of it -------------------------------------------------------------------------

    def _settle(self, lane: Lane, settle: Callable[[], None]) -> None:
        try:
            settle()
        except Exception as error:
            self._fail(lane, error)
            return
        self._tell(lane)

    def _tell(self, lane: Lane) -> None:
        """What the lane has come to since it was last asked."""
        key = lane.fold_run.key
        seat = self._seats[key]
        self._events += [LaneEvent(key, epoch) for epoch in lane.epochs[seat.told :]]
        seat.told = len(lane.epochs)
        if lane.stage == DONE:
            record = self._record(seat)
            self.on_done(lane)
            self.close(key)
            self._events.append(LaneEvent(key, record))

    def _record(self, seat: _Seat) -> Record:
        return seat.lane.record(
            wall_seconds=time.monotonic() - seat.began,
            num_devices=self.meter.num_devices,
            peak_bytes=self.meter.peak_bytes,
            device_hour_usd=self.device_hour_usd,
        )

    def _fail(self, lane: Lane, error: Exception) -> None:
        self.close(lane.fold_run.key)
        self._events.append(LaneEvent(lane.fold_run.key, error, lane.spent.device))

    def _part(
        self, group: Sequence[Batch], error: Exception, run: Callable[[Sequence[Batch]], None]
    ) -> None:
        """A pass failed: its halves are tried, down to the lane whose fault it is."""
        if is_out_of_memory(error):
            # What did not fit once will not fit the next time either.
            pieces = sum(batch.pieces for batch in group)
            self.pass_pieces = max(1, min(self.pass_pieces, pieces) // 2)
            for batch in group:
                batch.lane.halvings += 1
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        if len(group) == 1:
            if is_out_of_memory(error):
                error = MemoryShortage(
                    f"a batch of {len(group[0].rows)} rows does not fit into memory; set "
                    "batch_size or window to less"
                )
            self._fail(group[0].lane, error)
            return
        middle = len(group) // 2
        run(group[:middle])
        run(group[middle:])

    def _charge(self, batches: Sequence[Batch]) -> None:
        """The time since the last charge, by what each put into the pass."""
        wall, used = self.meter.lap()
        total = sum(batch.pieces for batch in batches)
        for batch in batches:
            share = batch.pieces / total
            batch.lane.spent.add(share * wall, share * used, evaluates=not batch.trains)

    def _activations_of(self, fold_run: FoldRun) -> Activations | None:
        """What all lanes with this first layer share; None where nothing is below the prompt."""
        configuration = fold_run.configuration
        first_layer = configuration.first_layer
        if STRATEGIES[configuration.cell.strategy].trains_backbone or not first_layer:
            return None
        if first_layer not in self._activations:
            encoder = self.loaded.encoder
            rows = self.data.rows(self.loaded.tokenizer, self.loaded.shape, configuration)
            pieces = sum(
                {row.pieces.key: row.length for of in rows.values() for row in of}.values()
            )
            wanted = (1 + pieces) * self.loaded.shape.hidden * encoder.word.weight.itemsize
            most = int(min(wanted, ACTIVATIONS_SHARE * self.memory_bytes))
            self._activations[first_layer] = Activations(encoder, first_layer, most)
        return self._activations[first_layer]

    def _lane_bytes(self, fold_run: FoldRun) -> float:
        configuration = fold_run.configuration
        return lane_bytes(self._count(configuration).trained)

    def _count(self, configuration: Configuration) -> ParameterCounts:
        asked = self.data.asked(configuration.cell.task)
        return count_parameters(
            configuration, self.loaded.shape, len(asked.labels), len(asked.relations)
        )

    def _pass_bytes(self, fold_run: FoldRun) -> float:
        configuration = fold_run.configuration
        rows = configuration.batch_size * (configuration.window + SPECIAL_PIECES)
        return pass_bytes(self.loaded.shape, max(self.pass_pieces, rows))


def share_passes(
    batches: Sequence[Inputs], device: torch.device, pieces: int | None = None
) -> list[list[int]]:
    """Which of the lanes' batches share a pass on this kind of device; see `fused.share_out`."""
    kind = device.type
    return share_out(batches, pieces or PASS_PIECES[kind], SLACK_PIECES[kind])


def is_out_of_memory(error: BaseException) -> bool:
    """torch has a type for it on accelerators, and on a CPU a sentence."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def available_bytes(device: torch.device, gpus: float = 1.0) -> float:
    """Memory that lanes may count on, beside what is there already.

    Args:
        gpus: share of a GPU. Of a CPU's memory the share is that of the cores, by torch's threads.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return min(free, MEMORY_SHARE * total * min(gpus, 1.0))
    share = min(1.0, torch.get_num_threads() / (os.cpu_count() or 1))
    return MEMORY_SHARE * share * machine_bytes()
