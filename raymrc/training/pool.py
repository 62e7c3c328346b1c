"""Fold-runs side by side on one device: lanes open, step and close over one backbone in memory.

    open(fold_run) -> step() -> LaneEvent, LaneEvent ... -> its record

Lanes of frozen strategies share passes; a lane that trains the backbone has its own copy and its own passes.
This module knows no Ray: a host wraps a pool in an actor.
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

from raymrc.configuration import Cell, FoldRun
from raymrc.errors import MemoryShortage, TrainingError
from raymrc.ledger.record import LaneEvent, Record
from raymrc.model.inputs import Inputs
from raymrc.model.loading import Loaded
from raymrc.model.strategies import STRATEGIES, ParameterCounts, count_parameters
from raymrc.planning.arithmetic import lane_bytes, layer_bytes
from raymrc.planning.devices import MEMORY_SHARE, machine_bytes
from raymrc.planning.placement import ACTIVATIONS_SHARE, PASS_PIECES, SPECIAL_PIECES
from raymrc.training.activations import Activations
from raymrc.training.batching import StudyData, share_out
from raymrc.training.fused import backward_together, clip_together, predict_together, step_together
from raymrc.training.lane import Answers, Batch, Lane, Stage
from raymrc.training.meter import Meter, device_kind

SLACK_PIECES = {"cpu": 16.0, "gpu": math.inf}
"""Pieces of padding, of one lane's batch, that sharing a pass is worth. On a CPU a pass of few rows loses
about as much as it takes to compute these; a GPU does not compute padding."""


@dataclass(slots=True)
class _Seat:
    """An open lane.

    Args:
        began: when the lane was opened, less the seconds that it had taken before it was saved.
        reported_epochs: how many of its epochs have been published as events.
    """

    lane: Lane
    began: float
    reported_epochs: int


def keep_freed_memory(block: int = 2**30, unused: int = 2**31 - 1) -> None:
    """On a CPU: makes the C library keep freed blocks of up to 1 GiB for the next step.

    By default it returns large blocks to the system and takes them again, page by page, at every step: a
    third of a step's time where many lanes have a row or two each.

    Args:
        block: bytes above which a freed block is returned at once.
        unused: bytes kept at the heap's end, at most.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        library.mallopt(mmap_threshold, block)
        library.mallopt(trim_threshold, unused)


class Pool:
    """Any number of lanes over one backbone.

    Args:
        loaded: the backbone, on `device`.
        device_hour_usd: price of one device (a GPU, or a core) for an hour.
        gpus: share of a GPU that is held, or number of GPUs.
        memory_bytes: what lanes and their passes may use; None: measured.
        pass_pieces: padded pieces of a pass, at most; None: `placement.PASS_PIECES`.
        recomputes: cells whose lanes recompute activations for the gradient (`encoder.Layer.checkpoints`).
        on_done: called with a lane that is done, in the state of its best epoch, before it is dropped.
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
        self.pass_pieces = pass_pieces or PASS_PIECES[device_kind(self.device)]
        self.meter = Meter(self.device, gpus)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.memory_bytes = memory_bytes or available_bytes(self.device, gpus)
        self.recomputes = frozenset(recomputes)
        self.on_done = on_done or (lambda lane: None)
        self._seats: dict[str, _Seat] = {}
        self._activations: dict[int, Activations] = {}
        self._events: list[LaneEvent] = []

    def __len__(self) -> int:
        return len(self._seats)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the fold-runs whose lanes are open."""
        return tuple(self._seats)

    def fits(self, fold_run: FoldRun) -> bool:
        """Whether memory has room for one more lane."""
        held = sum(self._lane_bytes(seat.lane.fold_run) for seat in self._seats.values())
        return held + self._lane_bytes(fold_run) + self._pass_bytes(fold_run) <= self.memory_bytes

    def open(self, fold_run: FoldRun, state: bytes | None = None) -> None:
        """Opens one more lane.

        Args:
            state: of `save`, to resume from; None: from the beginning.

        Raises:
            TrainingError: the lane does not fit into memory, or its training notes are empty.
            RaymrcError: see `Lane`.
        """
        if not self._seats:
            self.meter.reset_peak()
        # A lane alone is worth trying: its passes may turn out smaller than their bound.
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
        """A lane's state between two steps, for `open`. Where the backbone is trained, it holds a whole
        model, its moments and its best epoch."""
        return self._seats[key].lane.save()

    def epochs(self, key: str) -> int:
        """How many epochs of a lane are done."""
        return len(self._seats[key].lane.epochs)

    def tokens(self, key: str) -> int:
        """Pieces that a lane has trained on, as its record counts them."""
        return self._seats[key].lane.tokens

    def pause(self, key: str) -> Record:
        """Drops a lane that has been saved; returns its results and costs so far."""
        record = self._record(self._seats[key])
        self.close(key)
        return record

    def close(self, key: str) -> None:
        """Drops a lane and what it has learnt."""
        self._seats.pop(key, None)

    def step(self) -> list[LaneEvent]:
        """Passes one batch of every lane. A lane that fails is closed; the others go on."""
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
            self._report(lane)
        if batches:
            self._charge(batches)
        for trains, run in ((True, self._train), (False, self._predict)):
            for group in self._groups([b for b in batches if b.trains == trains]):
                run(group)
        events, self._events = self._events, []
        return events

    def _groups(self, batches: Sequence[Batch]) -> list[list[Batch]]:
        """Batches that share a pass."""
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
            self._split(group, error, self._train)
            return
        lanes = [batch.lane for batch in group]
        self._clip(lanes)
        for lane in lanes:
            lane.decay_rates()
        step_together([lane.optimiser for lane in lanes])
        self._charge(group)
        for batch, loss in zip(group, losses, strict=True):
            self._settle(batch.lane, partial(batch.lane.finish_step, batch, loss))

    def _predict(self, group: Sequence[Batch]) -> None:
        try:
            answers = self._answers(group)
        except Exception as error:
            self._split(group, error, self._predict)
            return
        self._charge(group)
        for batch, given in zip(group, answers, strict=True):
            self._settle(batch.lane, partial(batch.lane.finish_answers, batch, given))

    # --- one pass ---------------------------------------------------------------------------------

    def _backward(self, group: Sequence[Batch]) -> Tensor:
        """Computes the gradients of the lanes' parameters; returns their losses, (K,)."""
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

    # --- results ----------------------------------------------------------------------------------

    def _settle(self, lane: Lane, settle: Callable[[], None]) -> None:
        try:
            settle()
        except Exception as error:
            self._fail(lane, error)
            return
        self._report(lane)

    def _report(self, lane: Lane) -> None:
        """Publishes the lane's new epochs, and its record once it is done."""
        key = lane.fold_run.key
        seat = self._seats[key]
        self._events += [LaneEvent(key, epoch) for epoch in lane.epochs[seat.reported_epochs :]]
        seat.reported_epochs = len(lane.epochs)
        if lane.stage is Stage.DONE:
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

    def _split(
        self, group: Sequence[Batch], error: Exception, run: Callable[[Sequence[Batch]], None]
    ) -> None:
        """Retries the halves of a failed pass, down to the lane that fails."""
        if is_out_of_memory(error):
            # A pass that did not fit once will not fit the next time either.
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
        """Divides the time since the last charge by the pieces of each batch."""
        wall, used = self.meter.lap()
        total = sum(batch.pieces for batch in batches)
        for batch in batches:
            share = batch.pieces / total
            batch.lane.spent.add(share * wall, share * used, evaluates=not batch.trains)

    def _activations_of(self, fold_run: FoldRun) -> Activations | None:
        """The store that all lanes with this first layer share; None where no layer is below the prompt."""
        configuration = fold_run.configuration
        first_layer = configuration.first_layer
        if STRATEGIES[configuration.cell.strategy].trains_backbone or not first_layer:
            return None
        if first_layer not in self._activations:
            encoder = self.loaded.encoder
            rows = self.data.rows(self.loaded.tokenizer, self.loaded.shape, configuration)
            lengths = {r.pieces.key: r.length for of_note in rows.values() for r in of_note}
            pieces = sum(lengths.values())
            wanted = (1 + pieces) * self.loaded.shape.hidden * encoder.word.weight.itemsize
            most = int(min(wanted, ACTIVATIONS_SHARE * self.memory_bytes))
            self._activations[first_layer] = Activations(encoder, first_layer, most)
        return self._activations[first_layer]

    def _lane_bytes(self, fold_run: FoldRun) -> float:
        return lane_bytes(self._count(fold_run).trained)

    def _count(self, fold_run: FoldRun) -> ParameterCounts:
        configuration = fold_run.configuration
        asked = self.data.asked(configuration.cell.task)
        return count_parameters(
            configuration, self.loaded.shape, len(asked.labels), len(asked.relations)
        )

    def _pass_bytes(self, fold_run: FoldRun) -> float:
        """The activations that all layers of a frozen backbone keep, without prompt and heads."""
        configuration, shape = fold_run.configuration, self.loaded.shape
        rows = configuration.batch_size * (configuration.window + SPECIAL_PIECES)
        return shape.num_layers * layer_bytes(shape, max(self.pass_pieces, rows), 0)


def share_passes(
    batches: Sequence[Inputs], device: torch.device, pieces: int | None = None
) -> list[list[int]]:
    """Indices of the batches that share each pass on this kind of device; see `share_out`."""
    kind = device_kind(device)
    sizes = [batch.mask_BS.shape for batch in batches]
    return share_out(sizes, pieces or PASS_PIECES[kind], SLACK_PIECES[kind])


def is_out_of_memory(error: BaseException) -> bool:
    """torch has a type for this error on accelerators and only a message on a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def available_bytes(device: torch.device, gpus: float = 1.0) -> float:
    """Memory that lanes may use beside what is loaded already.

    Args:
        gpus: share of a GPU. A CPU's memory is shared by cores, as torch's threads are.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return min(free, MEMORY_SHARE * total * min(gpus, 1.0))
    share = min(1.0, torch.get_num_threads() / (os.cpu_count() or 1))
    return MEMORY_SHARE * share * machine_bytes()
