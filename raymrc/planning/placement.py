"""Decides by memory where the fold-runs of a cell train.

    configurations, shape -> ways to train them, with their peak memory -> Placement, or why there is none

Memory is predicted by arithmetic that follows `training`; `benchmarks/placement.py` compares it with
measurements. Nothing is loaded.
"""

# T pieces of a pass, B rows, S pieces of a row, P prompt positions, D hidden, F feed-forward, W match width

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from enum import StrEnum
from functools import cached_property, partial
from typing import Any

from raymrc.configuration import MEMORY_SETTINGS, Configuration
from raymrc.model.shapes import MAX_CANDIDATES, PAIRS_AT_ONCE, Shape
from raymrc.model.strategies import STRATEGIES, ParameterCounts, count_parameters
from raymrc.planning.arithmetic import lane_bytes, layer_bytes, pair_bytes
from raymrc.planning.devices import FILLED, GIB, Device

LANES = {"cpu": 4, "gpu": 32}
"""Default number of frozen fold-runs on one host at once. A core gains little from more:
see docs/performance.md."""

PASS_PIECES = {"cpu": 1024, "gpu": 16384}
"""Maximum number of padded pieces per pass, unless one lane's training batch has more. On a CPU larger passes
are not faster: matrix products peak from 128 rows on, and padding grows."""

ACTIVATIONS_SHARE = 0.25
"""Share of a device's usable memory for stored activations of layers below a late prompt."""

SPECIAL_PIECES = 2
"""One special piece before the window and one after it."""

QUESTION_PIECES = 40
"""Approximate pieces of a question in words and its separator; only a tokenizer knows the number."""

MARK_PIECES = 10
"""Approximate maximum number of pieces that mark a given mention and another one, with their labels."""

MAX_DEVICES = 64
"""Default maximum number of devices that hold one model together."""


class PlacementMode(StrEnum):
    LANES = "lanes"
    """Frozen fold-runs side by side on one device."""
    DEVICE = "device"
    """One fold-run on one device, with a copy of the backbone."""
    GROUP = "group"
    """One fold-run on several devices that hold one model together."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the fold-runs of a cell train.

    Args:
        workers: minimum and maximum number of devices that train one model together; (1, 1) unless a group.
        lanes: frozen fold-runs on one device at once; 1 unless "lanes".
        checkpoints: whether layers recompute what a gradient needs instead of keeping it.
        peak_bytes: predicted memory of one device, for the largest configuration with all lanes open.
    """

    mode: PlacementMode
    workers: tuple[int, int] = (1, 1)
    lanes: int = 1
    checkpoints: bool = False
    peak_bytes: float = 0.0

    def __str__(self) -> str:
        """For tables: "4 lanes", "1 device, recomputes", "group of 2 to 8"."""
        if self.mode == PlacementMode.LANES:
            text = "1 lane" if self.lanes == 1 else f"{self.lanes} lanes"
        elif self.mode == PlacementMode.DEVICE:
            text = "1 device"
        else:
            least, most = self.workers
            text = f"group of {least}" if least == most else f"group of {least} to {most}"
        return f"{text}, recomputes" if self.checkpoints else text


class DoesNotFit(Exception):
    """A cell has no place; the message names the change that would give it one."""


# --- memory ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One way to train one configuration.

    Rows are assumed to be as long as a window, and the match head to see its maximum number of pairs, as for
    an early model that predicts answers everywhere.

    Args:
        kind: of the device, "cpu" or "gpu".
        mode, lanes, checkpoints: see `Placement`.
        devices: number of devices that share a group's model.
        sharing: number of lanes whose batches share one pass; None: all lanes, in a full pass, which happens
            if rows are much shorter than a window.
        pass_pieces: maximum number of padded pieces per pass; None: `PASS_PIECES`.
    """

    configuration: Configuration
    shape: Shape
    num_labels: int
    kind: str = "cpu"
    _: KW_ONLY
    mode: PlacementMode = PlacementMode.LANES
    lanes: int = 1
    devices: int = 1
    checkpoints: bool = False
    sharing: int | None = None
    pass_pieces: int | None = None

    def peak_bytes(self) -> float:
        """Peak memory of one device, backbone included.

        The peak is what stays between passes, plus the largest of a training pass, an evaluation pass, and
        saving, where a group saves while it trains.
        """
        passing = max(self.training_bytes(), self.evaluation_bytes())
        saving = self.saving_bytes()
        beside = passing + saving if self.mode == PlacementMode.GROUP else max(passing, saving)
        return self.kept_bytes() + beside

    # --- sizes ------------------------------------------------------------------------------------

    @property
    def trains_backbone(self) -> bool:
        return STRATEGIES[self.configuration.cell.strategy].trains_backbone

    @cached_property
    def counts(self) -> ParameterCounts:
        return count_parameters(self.configuration, self.shape, self.num_labels)

    @property
    def small(self) -> int:
        """Parameters of a lane's prompt and heads."""
        return self.counts.prompt + self.counts.heads

    @property
    def trained_backbone(self) -> float:
        """Parameters of the backbone that one device trains."""
        return self.counts.backbone / self.devices if self.trains_backbone else 0

    @property
    def computed_in(self) -> int:
        """Bytes per number in the layers' computations."""
        return 2 if self.kind == "gpu" else 4

    @property
    def summed_in(self) -> int:
        """Bytes per number in the residual stream."""
        return 4 if self.trains_backbone else self.computed_in

    @property
    def row(self) -> int:
        """Pieces of the longest row."""
        return row_pieces(self.configuration, self.shape)

    @property
    def max_pieces(self) -> int:
        """Padded pieces of a pass, unless one lane's training batch has more."""
        return self.pass_pieces or PASS_PIECES[self.kind]

    @property
    def sharers(self) -> int:
        """Lanes whose batches share one pass."""
        return self.lanes if self.sharing is None else self.sharing

    @property
    def rows(self) -> float:
        """Rows of one training pass on one device."""
        size = self.configuration.batch_size
        if self.mode == PlacementMode.GROUP:
            share = math.ceil(size / self.devices)
            return min(share, max(1.0, self.max_pieces / self.row))
        if self.sharing is None and self.mode == PlacementMode.LANES and self.lanes > 1:
            return max(size, self.max_pieces / self.row)
        return size * self.sharers

    # --- between passes ---------------------------------------------------------------------------

    def kept_bytes(self) -> float:
        """Memory that stays between passes: weights, moments and best epochs."""
        backbone = self.counts.backbone * self.computed_in
        # Gradients belong to the pass: evaluation has none.
        each = lane_bytes(1, self.kind) - 4
        if self.mode == PlacementMode.LANES:
            return backbone + self.lanes * self.small * each
        state = each * (self.small + self.trained_backbone)
        if self.mode == PlacementMode.DEVICE:
            # The pretrained weights are kept for the next fold-run.
            return state + backbone
        return state if self.trains_backbone else state + backbone / self.devices

    def saving_bytes(self) -> float:
        """CPU memory for saving one lane's state.

        Saving copies trained numbers, moments and the best epoch into one buffer, and the trained numbers
        once more on the way. A group copies its shards, and trains while they are written.
        """
        if self.kind == "gpu":
            return 0.0
        if self.mode == PlacementMode.GROUP:
            return 4.0 * 4 * (self.small + self.trained_backbone)
        return 5.0 * 4 * self.counts.trained

    # --- one pass ---------------------------------------------------------------------------------

    def training_bytes(self) -> float:
        """Peak memory of one training pass.

        Activations accumulate layer by layer, then the heads come on top, then gradients replace activations
        evenly, so that the peak is never halfway. It is at one of these moments, in the order of the maximum
        below: the last layer runs; the heads have answered; backward reaches the last layer; backward reaches
        the first layer; all gradients exist.
        """
        configuration, shape = self.configuration, self.shape
        hidden, ffn = shape.hidden, shape.ffn
        c, rows = self.computed_in, self.rows
        pieces = rows * self.row
        prompted = shape.num_layers - configuration.first_layer
        length = configuration.prompt_length
        deep = length if configuration.prompt_depth == "deep" else 0
        passing = pieces + (rows * length if configuration.prompt_depth == "input" else 0)
        positions = rows * deep
        is_dropped = configuration.dropout > 0
        layer = partial(
            layer_bytes, shape, bytes_each=c,
            trains_backbone=self.trains_backbone, drops=is_dropped, kind=self.kind,
        )  # fmt: skip
        kept = layer(passing, positions if deep else None)
        num_below = configuration.first_layer if self.trains_backbone else 0
        if self.checkpoints:
            activations = (prompted + num_below) * (passing * hidden * self.summed_in)
        else:
            activations = prompted * kept + num_below * layer(pieces, None)
        again = kept if self.checkpoints else 0.0
        # Prompts of all rows, for all layers; stacked lanes copy them.
        prompts = positions * 2 * prompted * hidden * 4 * (2 if self.sharers > 1 else 1)
        edge = self.summed_in * passing * hidden * (2 if self.trains_backbone else 1)
        top = pieces * hidden * 4 * (4 if is_dropped else 2)
        wide = passing * (ffn + 2 * hidden) * c
        # A layer that recomputes keeps its prompt until then.
        waiting = prompts if self.checkpoints else 0.0
        # The gradient of each layer's concatenated keys and values is kept for the prompt's gradient.
        joined = (pieces + positions if c == 4 else 2 * positions) * 2 * hidden * c * prompted
        if not deep:
            joined = 0.0
        # A reparametrisation's vectors for all labels, their gradient, and a rearranged copy of it.
        made = 0.0
        if configuration.reparametrisation != "none":
            made = 3.0 * 4 * self.num_labels * deep * 2 * prompted * hidden * self.sharers
        filled = activations + edge
        casts = self._cast_bytes()
        saved = waiting + (0.0 if self.checkpoints else casts)
        last = kept + passing * (ffn + hidden) * c if self.trains_backbone else 0.0
        parts, gradients = self._parts_bytes(), self._gradient_bytes()
        return self._stack_bytes() + max(
            filled + casts + prompts + wide + parts.forward,
            filled + saved + top + self._head_bytes(),
            filled + saved + top + max(again + wide + parts.turning, parts.gathering),
            gradients + joined + edge + waiting + prompts + made + last + parts.backward,
            gradients + parts.ending,
        )

    def evaluation_bytes(self) -> float:
        """Peak memory of one evaluation pass, which keeps no activations."""
        configuration, shape = self.configuration, self.shape
        c = self.computed_in
        in_group = self.mode == PlacementMode.GROUP
        pieces = max(self.max_pieces, self.row) / (self.devices if in_group else 1)
        rows = max(1.0, pieces / self.row)
        positions = rows * configuration.prompt_length
        prompted = shape.num_layers - configuration.first_layer
        layer = (pieces + positions) * (2 * shape.ffn + 4 * shape.hidden) * c
        is_deep = configuration.prompt_depth == "deep"
        prompts = positions * 2 * prompted * shape.hidden * 4 if is_deep else 0.0
        heads = 0.0
        if self._has_pairs:
            pairs = min(PAIRS_AT_ONCE, rows * self.row * (self.row + 1) / 2)
            heads = pair_bytes(pairs, configuration.match_width, asks=True)
        layers = self._cast_bytes() + self._parts_bytes().forward + prompts + layer
        return max(layers, heads)

    # --- parts of a pass --------------------------------------------------------------------------

    @property
    def _has_pairs(self) -> bool:
        return STRATEGIES[self.configuration.cell.strategy].answers == "spans"

    def _head_bytes(self) -> float:
        configuration, rows = self.configuration, self.rows
        if not self._has_pairs:
            return rows * self.row * self.num_labels * (3 * 4 * 3 + 8)
        pairs = rows * min(MAX_CANDIDATES, self.row * (self.row + 1) / 2)
        chosen = pair_bytes(
            pairs, configuration.match_width,
            drops=configuration.dropout > 0, is_stacked=self.sharers > 1,
        )  # fmt: skip
        # All pairs of pieces exist while candidates are chosen.
        return max(chosen, 14.0 * rows * self.row**2)

    def _gradient_bytes(self) -> float:
        """All gradients at the end of a backward pass."""
        if self.mode == PlacementMode.LANES:
            return 4.0 * self.sharers * self.small
        return 4.0 * (self.trained_backbone + self.small)

    def _stack_bytes(self) -> float:
        """Stacked copies of what the lanes of one pass train."""
        is_stacked = self.mode == PlacementMode.LANES and self.sharers > 1
        return 4.0 * self.sharers * self.small if is_stacked else 0.0

    def _cast_bytes(self) -> float:
        """Copies of trained weights in the precision of a GPU's computations."""
        if self.kind == "cpu" or not self.trains_backbone or self.mode == PlacementMode.GROUP:
            return 0.0
        return 2.0 * self.shape.num_layers * self.shape.layer_parameters

    def _parts_bytes(self) -> _Parts:
        """Weights that a group gathers, and their gradients before they are sharded.

        While a layer runs, the embeddings, the layer, and its neighbour in running order are gathered; going
        back, its gradients exist, too, and the sum of another layer's gradients is in flight.
        """
        if self.mode != PlacementMode.GROUP:
            return _Parts()
        layer = self.shape.layer_parameters
        rest = self.shape.num_parameters - self.shape.num_layers * layer
        c = self.computed_in
        both = float(c * (rest + 2 * layer))
        # A norm after the last layer belongs to the rest, which is gathered before any layer then.
        gathering = 2.0 * c * (rest + (0 if self.shape.pre_norm else layer))
        # Gradients of replicated parts are summed in one buffer, out of place.
        adding = 8.0 * self.small
        if not self.trains_backbone:
            return _Parts(both, gathering, both, both, adding)
        return _Parts(
            both, gathering, both + c * layer, both + (c + 4) * layer,
            max(adding, 2 * c * rest + 4 * layer),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Parts:
    """Bytes of gathered weights and gradients of a group's model, by moment of a training pass."""

    forward: float = 0.0
    gathering: float = 0.0
    turning: float = 0.0
    backward: float = 0.0
    ending: float = 0.0


def row_pieces(configuration: Configuration, shape: Shape) -> int:
    """Pieces of the longest row that a configuration makes."""
    asked = QUESTION_PIECES if STRATEGIES[configuration.cell.strategy].asks == "words" else 0
    marks = MARK_PIECES if configuration.context_sentences is not None else 0
    return min(shape.max_pieces, configuration.window + SPECIAL_PIECES + asked + marks)


# --- the decision ---------------------------------------------------------------------------------


def place(
    configurations: Iterable[Configuration],
    shape: Shape,
    num_labels: int,
    device: Device,
    *,
    lanes: int | None = None,
    workers: tuple[int, int] | None = None,
) -> Placement:
    """Where the fold-runs of one cell train.

    Frozen fold-runs train side by side on one device, if it holds the backbone, one lane and a pass. A
    fold-run that trains the backbone gets one device, with recomputation if necessary. Otherwise the fewest
    devices that hold the model train it together.

    Args:
        configurations: of one cell, including the largest.
        lanes: maximum number of frozen fold-runs on one device at once; None: `LANES`.
        workers: the study's minimum and maximum number of devices that train one model together; None: as few
            as possible.

    Raises:
        DoesNotFit: no placement is possible; the message names the change that would make one possible.
    """
    cell = _Cell(_sizes(configurations), shape, num_labels, device)
    found = None
    if not cell.trains_backbone:
        found = cell.lanes(lanes or LANES[device.kind])
    elif workers in (None, (1, 1)):
        found = cell.spread(PlacementMode.DEVICE)
    low, high = workers or (2, MAX_DEVICES)
    if found is None and high > 1:
        least = cell.fewest(low, high)
        if least is not None:
            most = least if workers is None else high
            found = cell.spread(PlacementMode.GROUP, (least, most))
    if found is None:
        raise cell.does_not_fit(high, is_asked=workers is not None)
    return found


@dataclass(frozen=True)
class _Cell:
    """Memory of the ways to train a cell on a device."""

    configurations: tuple[Configuration, ...]
    shape: Shape
    num_labels: int
    device: Device

    @property
    def trains_backbone(self) -> bool:
        return STRATEGIES[self.configurations[0].cell.strategy].trains_backbone

    def peak(
        self,
        mode: PlacementMode,
        *,
        lanes: int = 1,
        devices: int = 1,
        checkpoints: bool = False,
        is_small: bool = False,
    ) -> float:
        """Peak memory of the largest configuration; a small pass holds one lane's batch only."""
        return max(
            Way(
                configuration, self.shape, self.num_labels, self.device.kind,
                mode=mode, lanes=lanes, devices=devices, checkpoints=checkpoints,
                sharing=1 if is_small else None, pass_pieces=1 if is_small else None,
            ).peak_bytes()
            for configuration in self.configurations
        )  # fmt: skip

    def lanes(self, wanted: int) -> Placement | None:
        """As many lanes as fit; None if not even one fits."""
        usable = self.device.usable_bytes
        if any(configuration.first_layer for configuration in self.configurations):
            usable *= 1 - ACTIVATIONS_SHARE
        # Passes with one lane's batch may leave room for more lanes than full passes.
        best: Placement | None = None
        for is_small in (False, True):
            peak = partial(self.peak, PlacementMode.LANES, is_small=is_small)
            count = bisect_right(range(1, wanted + 1), usable, key=lambda n: peak(lanes=n))
            if count > (best.lanes if best else 0):
                best = Placement(PlacementMode.LANES, lanes=count, peak_bytes=peak(lanes=count))
        return best

    def fewest(self, least: int, most: int) -> int | None:
        """The fewest devices in this range that hold one model together; None if `most` do not."""
        usable = self.device.usable_bytes
        return next(
            (
                devices
                for devices in range(least, most + 1)
                if self.peak(PlacementMode.GROUP, devices=devices, checkpoints=True) <= usable
            ),
            None,
        )

    def spread(self, mode: PlacementMode, workers: tuple[int, int] = (1, 1)) -> Placement | None:
        """One fold-run on the minimum of `workers`, recomputing only if necessary; None if it never fits."""
        for checkpoints in (False, True):
            peak = self.peak(mode, devices=workers[0], checkpoints=checkpoints)
            if peak <= self.device.usable_bytes:
                return Placement(mode, workers, checkpoints=checkpoints, peak_bytes=peak)
        return None

    def does_not_fit(self, devices: int, *, is_asked: bool) -> DoesNotFit:
        """`devices` is the largest number tried; `is_asked` says whether the study sets it."""
        cell = self.configurations[0].cell
        if devices > 1:
            peak = self.peak(PlacementMode.GROUP, devices=devices, checkpoints=True)
        else:
            mode = PlacementMode.DEVICE if self.trains_backbone else PlacementMode.LANES
            peak = self.peak(mode, checkpoints=self.trains_backbone)
        total, usable = self.device.total_bytes, self.device.usable_bytes
        has = f"a device has {_gib(total)}"
        if usable < total:
            has += f", of which {_gib(usable)} can be filled"
        each = f"on each of {devices} devices" if devices > 1 else "on one device"
        needs = (
            f"{cell.backbone.name}/{cell.strategy} needs {_gib(peak, up=True)} GiB {each} and {has}"
        )
        more = self.fewest(devices + 1, max(MAX_DEVICES, devices)) if is_asked else None
        if more is not None:
            return DoesNotFit(f"{needs}; set resources.workers to {more} or more")
        most = max(MAX_DEVICES, devices)
        least = self.peak(PlacementMode.GROUP, devices=most, checkpoints=True)
        enough = math.ceil(least / FILLED[self.device.kind] / GIB)
        return DoesNotFit(
            f"{needs}; {most} devices of {enough} GiB each would suffice: reduce batch_size or window, or "
            "set resources.device_memory to what you have"
        )


def _sizes(configurations: Iterable[Configuration]) -> tuple[Configuration, ...]:
    """One configuration for each combination of settings that memory depends on."""

    def size(configuration: Configuration) -> tuple[Any, ...]:
        # Memory depends on whether there is dropout, not on its rate.
        values = {name: getattr(configuration, name) for name in MEMORY_SETTINGS}
        return (*(values | {"dropout": configuration.dropout > 0}).values(),)

    return tuple({size(configuration): configuration for configuration in configurations}.values())


def _gib(size: float, *, up: bool = False) -> str:
    """Whole GiB, or two digits below 10; rounded down, or up."""
    gib = size / GIB
    step = 1.0 if gib >= 10 else 0.1
    return f"{(math.ceil if up else math.floor)(round(gib / step, 6)) * step:.3g}"
