"""One model over several processes (FSDP2): each process keeps its rows of every weight and passes its rows
of every batch.

    load_sharded -> ShardedLoaded -> ShardedPool: open, step, close; every process makes the same calls

Every process runs the same lane with the same seeds, takes the same batches and gets the same losses and
answers, so that all processes decide alike; only the passes of a batch are split. Prompt and heads are small:
every process has all of them and sums their gradients. The backbone's weights are cut into rows, layer by
layer; a layer is gathered for as long as it is used.
"""

# B rows, R rows of this process

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from raymrc.configuration import Backbone, Cell, FoldRun
from raymrc.errors import TrainingError
from raymrc.model.backbones import find_backbone, read_shape, weights_fingerprint
from raymrc.model.encoder import Encoder
from raymrc.model.loading import Loaded, Weights, load_tokenizer, read_weights, stored_parts
from raymrc.model.network import local_part
from raymrc.model.precision import precision
from raymrc.model.strategies import STRATEGIES
from raymrc.planning.arithmetic import lane_bytes
from raymrc.reading.rows import Row
from raymrc.training.batching import StudyData, collate, collate_targets
from raymrc.training.lane import Answers, Batch, Lane
from raymrc.training.meter import Meter
from raymrc.training.pool import Pool, keep_freed_memory
from raymrc.training.torch_private import scale, through_arrow

MAX_READ_NUMBERS = 2**22
"""Numbers of a weight that are read at once: they are copied into place and lie in memory twice meanwhile."""

KEPT_BLOCK_BYTES = 2**17
"""On a CPU, freed blocks above this size go back to the system. Processes share a model to save memory, and
freed layers leave gaps that the next layers do not fit into: at BERT-large's shape a process held 2.5 times
the memory in use."""

TRAINED_ONLY = StateDictOptions(ignore_frozen_params=True, strict=False)
"""Frozen parameters are in no checkpoint."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """The processes that train one model together: all of torch.distributed's default group.

    Args:
        saving: a group of its own for checkpoints, which are written while training goes on.
    """

    mesh: DeviceMesh
    device: torch.device
    saving: dist.ProcessGroup

    @classmethod
    def of_group(cls, device: torch.device | str) -> Ranks:
        """Call it after `init_process_group`."""
        device = torch.device(device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        return cls(mesh, device, cast(dist.ProcessGroup, dist.new_group(backend="gloo")))

    @property
    def rank(self) -> int:
        return dist.get_rank()

    @property
    def size(self) -> int:
        return dist.get_world_size()

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, without a gradient."""
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def broadcast(self, value: Any) -> Any:
        """The first process's value, in every process."""
        values = [value]
        dist.broadcast_object_list(values, device=self.device)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


@dataclass(frozen=True)
class ShardedLoaded(Loaded):
    """A backbone that several processes hold together, for one model at a time.

    Args:
        weights: its checkpoint, from which it is reset.
    """

    weights: Weights

    def copy_to_train(self) -> Encoder:
        """Resets the same encoder to its pretrained weights: there is no room for two."""
        fill(self.encoder, self.weights)
        return self.encoder


def load_sharded(backbone: Backbone, ranks: Ranks, *, trains: bool = True) -> ShardedLoaded:
    """A backbone of which this process never holds more than its own rows and one layer.

    Layers compute in the dtype of `precision`; gradients are summed in fp32.

    Args:
        trains: weights are kept in fp32, which an optimiser needs; otherwise in the dtype of `precision`.

    Raises:
        BackboneError: see `loading.load_backbone`.
    """
    folder = find_backbone(backbone)
    shape = read_shape(folder, backbone.layers)
    computes_in = precision(ranks.device)
    with torch.device("meta"):
        encoder = Encoder(shape)
        if not trains:
            encoder = encoder.to(computes_in)
    shard(encoder, ranks, computes_in)
    encoder.to_empty(device=ranks.device)
    weights = read_weights(folder)
    fill(encoder, weights)
    # FSDP reads this once, when a layer is first gathered.
    encoder.requires_grad_(trains).eval()
    return ShardedLoaded(
        backbone, encoder, load_tokenizer(folder), shape, weights_fingerprint(folder), weights
    )


def shard(encoder: Encoder, ranks: Ranks, computes_in: torch.dtype) -> None:
    """Shards every layer by itself, and the rest together."""
    # Inputs are not cast: the sum that layers add to is fp32, as on one device.
    policy = MixedPrecisionPolicy(
        param_dtype=computes_in, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for layer in encoder.layers:
        fully_shard(layer, mesh=ranks.mesh, mp_policy=policy)
        register_fsdp_forward_method(layer, "keys_and_values")
    # By default FSDP keeps the root gathered after a forward pass; an optimiser made then would step on
    # tensors that are thrown away.
    fully_shard(encoder, mesh=ranks.mesh, mp_policy=policy, reshard_after_forward=True)
    register_fsdp_forward_method(encoder, "word_states")


@torch.no_grad()
def fill(encoder: Encoder, weights: Weights) -> None:
    """Reads this process's rows of every weight from the checkpoint.

    Raises:
        BackboneError: see `stored_parts`.
    """
    for name, theirs, shapes in stored_parts(encoder, weights):
        local, begin = _local_rows(encoder.get_parameter(name))
        at_once = max(1, MAX_READ_NUMBERS * len(local) // max(1, local.numel()))
        for part, first, last, at in _overlaps(theirs, shapes, begin, begin + len(local)):
            for row in range(first, last, at_once):
                end = min(row + at_once, last)
                local[at + row - first : at + end - first].copy_(weights.read(part, row, end))


def _local_rows(parameter: Tensor) -> tuple[Tensor, int]:
    """This process's rows of a parameter and the index of the first; FSDP2 cuts as `torch.chunk` does."""
    assert isinstance(parameter, DTensor)
    mesh = parameter.device_mesh
    each = -(-len(parameter) // mesh.size())
    return parameter.to_local(), min(mesh.get_local_rank() * each, len(parameter))


def _overlaps(
    names: Sequence[str], shapes: Sequence[tuple[int, ...]], begin: int, end: int
) -> Iterator[tuple[str, int, int, int]]:
    """(name, first row, end row, distance from `begin`) of the stacked parts that hold rows `begin` to
    `end`, half-open."""
    before = 0
    for name, (rows, *_) in zip(names, shapes, strict=True):
        first, last = max(begin - before, 0), min(end - before, rows)
        if first < last:
            yield name, first, last, before + first - begin
        before += rows


class ShardedPool(Pool):
    """A `Pool` over several processes: one lane at a time, each pass on all processes.

    Every process makes the same calls in the same order and gets the same events.

    An error that all processes share (a loss that is not a number) ends only the lane. A failed pass is
    raised by `step`: it may have failed in one process, for example for lack of memory, while the others
    wait. The caller must end them all.
    """

    def __init__(
        self,
        loaded: ShardedLoaded,
        data: StudyData,
        ranks: Ranks,
        *,
        device_hour_usd: float = 0.0,
        pass_pieces: int | None = None,
        recomputes: Collection[Cell] = (),
    ) -> None:
        super().__init__(
            loaded, data, ranks.device,
            device_hour_usd=device_hour_usd, gpus=ranks.size, pass_pieces=pass_pieces,
            recomputes=recomputes,
        )  # fmt: skip
        if ranks.device.type == "cpu":
            keep_freed_memory(KEPT_BLOCK_BYTES, KEPT_BLOCK_BYTES)
        self.ranks = ranks
        self.meter = Meter(ranks.device, ranks.size, ranks.size)

    def fits(self, fold_run: FoldRun) -> bool:
        return not len(self)

    def open(self, fold_run: FoldRun, state: bytes | None = None) -> None:
        """See `Pool.open`; each process draws its own dropout."""
        trains = STRATEGIES[fold_run.configuration.cell.strategy].trains_backbone
        if trains != self.loaded.encoder.is_trained:
            self.loaded = load_sharded(self.loaded.backbone, self.ranks, trains=trains)
        super().open(fold_run)
        seat = self._seats[fold_run.key]
        lane = seat.lane
        lane.dropout.manual_seed(lane.dropout.initial_seed() + self.ranks.rank)
        torch.manual_seed(torch.initial_seed() + self.ranks.rank)
        if state is None:
            return
        try:
            self._restore(lane, state)
        except Exception:
            self.close(fold_run.key)
            raise
        seat.began -= lane.spent.wall
        seat.reported_epochs = len(lane.epochs)

    def save(self, key: str) -> bytes:
        raise NotImplementedError("a sharded lane is saved by `start_saving`")

    def start_saving(self, key: str, place: str) -> Saving:
        """Starts a checkpoint between two batches; training may go on at once.

        Args:
            place: path or URL of a new folder that every process can write to.
        """
        lane = self._seats[key].lane
        saved = io.BytesIO()
        torch.save({"position": lane.position(), "place": place}, saved)
        writing = dcp.async_save(
            _tensors(lane),
            storage_writer=through_arrow(FileSystemWriter(place), place),
            process_group=self.ranks.saving,
        )
        return Saving(cast(Future[Any], writing), saved.getvalue())

    def _restore(self, lane: Lane, saved: bytes) -> None:
        state = torch.load(io.BytesIO(saved), weights_only=True)
        place = state["place"]
        tensors = _tensors(lane)
        try:
            dcp.load(
                tensors,
                storage_reader=through_arrow(FileSystemReader(place), place),
                process_group=self.ranks.saving,
            )
        except (CheckpointException, OSError) as error:
            raise TrainingError(
                f"checkpoint {place} cannot be read ({type(error).__name__}); "
                "remove it, and the fold-run starts anew"
            ) from None
        set_state_dict(
            lane.model,
            lane.optimiser,
            model_state_dict=tensors["model"],
            optim_state_dict=tensors["optimiser"],
            options=TRAINED_ONLY,
        )
        lane.best_state = {
            name: local_part(tensor).to("cpu", copy=True)
            for name, tensor in tensors["best"].items()
        }
        lane.restore_position(state["position"])

    def _charge(self, batches: Sequence[Batch]) -> None:
        """Every process has its own clock, and all must end a part of a duration at the same step."""
        super()._charge(batches)
        for lane in (batch.lane for batch in batches if batch.trains):
            if lane.limit.unit == "device-seconds":
                spent = lane.spent
                spent.device_training = self.ranks.broadcast(spent.device_training)

    def _activations_of(self, fold_run: FoldRun) -> None:
        """None: which rows are missing from a store differs between processes, and all of them must gather a
        layer together."""

    def _lane_bytes(self, fold_run: FoldRun) -> float:
        counts = self._count(fold_run)
        small = counts.prompt + counts.heads
        return lane_bytes(small) + lane_bytes(counts.trained - small) / self.ranks.size

    def _groups(self, batches: Sequence[Batch]) -> list[list[Batch]]:
        return [[batch] for batch in batches]

    def _backward(self, group: Sequence[Batch]) -> Tensor:
        (batch,) = group
        lane = batch.lane
        total = torch.zeros((), device=self.device)
        # Each part's gradients are summed at once: kept for later they would take a whole model's memory.
        for rows in self._cut(batch.rows):
            total += self._backward_part(lane, rows, len(rows) / len(batch.rows))
        # The loss and the gradients that every process has whole are summed in one call.
        gradients = [
            p.grad for p in lane.trained if p.grad is not None and not isinstance(p, DTensor)
        ]
        summed = self.ranks.add_up(torch.cat([total[None], *(g.flatten() for g in gradients)]))
        means = (summed[1:] / self.ranks.size).split([g.numel() for g in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))
        # The loss is kept for an epoch; as a view it would keep all gradients in memory.
        return summed[:1].clone()

    def _backward_part(self, lane: Lane, rows: Sequence[Row], weight: float) -> Tensor:
        """This process's share of the loss of some rows, which have this weight in the batch's loss."""
        local, counts = self._local(rows)
        inputs = collate(local, lane.pad)
        targets = collate_targets(local, inputs)

        def add_up(number: Tensor) -> Tensor:
            return self.ranks.add_up(number * counts)

        inputs, targets = inputs.to(self.device), targets.to(self.device)
        loss = lane.model.loss(inputs, targets, lane.dropout, add_up) * (counts * weight)
        # FSDP averages over processes; the processes' losses sum to the loss.
        (loss * self.ranks.size).backward()
        return loss.detach()

    def _clip(self, lanes: Sequence[Lane]) -> None:
        (lane,) = lanes
        local = torch.zeros((), device=self.device)
        replicated = torch.zeros((), device=self.device)
        gradients = []
        for parameter in lane.trained:
            gradient = parameter.grad
            if gradient is None:
                continue
            if isinstance(gradient, DTensor):
                gradients.append(gradient.to_local())
                local += gradients[-1].float().square().sum()
            else:
                gradients.append(gradient)
                replicated += gradient.float().square().sum()
        norm = (self.ranks.add_up(local) + replicated).sqrt()
        scale(gradients, (lane.configuration.clip_norm / (norm + 1e-6)).clamp(max=1.0))

    def _split(
        self, group: Sequence[Batch], error: Exception, run: Callable[[Sequence[Batch]], None]
    ) -> None:
        raise error

    def _answers(self, group: Sequence[Batch]) -> Sequence[Answers]:
        (batch,) = group
        lane = batch.lane
        local, counts = self._local(batch.rows)
        answers = lane.model.predict(collate(local, lane.pad).to(self.device))
        gathered = self.ranks.gather(answers if counts else [])
        return [[answer for part in gathered for answer in part]]

    def _local(self, rows: Sequence[Row]) -> tuple[Sequence[Row], bool]:
        """This process's rows, and whether they count. The first processes take one more where rows do not
        divide. A process without rows passes another's, because all must gather layers together."""
        each, more = divmod(len(rows), self.ranks.size)
        begin = self.ranks.rank * each + min(self.ranks.rank, more)
        local = rows[begin : begin + each + (self.ranks.rank < more)]
        return (local, True) if local else (rows[:1], False)

    def _cut(self, rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
        """A batch in parts of which no process gets more than `pass_pieces`."""
        widest = max(row.length for row in rows)
        most = max(1, self.pass_pieces // widest) * self.ranks.size
        for begin in range(0, len(rows), most):
            yield rows[begin : begin + most]


@dataclass(frozen=True, eq=False)
class Saving:
    """A checkpoint that is being written.

    Args:
        state: for `ShardedPool.open`, once the checkpoint `is_done`.
    """

    writing: Future[Any]
    state: bytes

    @property
    def is_done(self) -> bool:
        return self.writing.done()

    def wait(self) -> None:
        """
        Raises:
            TrainingError: the checkpoint could not be written.
        """
        try:
            self.writing.result()
        except Exception as error:
            raise TrainingError(
                f"a checkpoint could not be written ({type(error).__name__}); "
                "is there room, and can every node write there?"
            ) from None


def _tensors(lane: Lane) -> dict[str, Any]:
    """All tensors of a lane, sharded as they are: what is trained, the optimiser's state and the state of the
    best epoch so far (the current state where there is none)."""
    model, optimiser = get_state_dict(lane.model, lane.optimiser, options=TRAINED_ONLY)
    best = {}
    for name, parameter in lane.model.trained_parameters().items():
        state = lane.best_state
        local = local_part(parameter).detach() if state is None else state[name]
        if isinstance(parameter, DTensor):
            local = DTensor.from_local(
                local, parameter.device_mesh, parameter.placements,
                run_check=False, shape=parameter.shape, stride=parameter.stride(),
            )  # fmt: skip
        best[name] = local
    return {"model": model, "optimiser": optimiser, "best": best}
