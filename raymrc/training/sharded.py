"""One model over several processes (FSDP2): each keeps its rows of every weight, and a batch's rows are
shared out.

    load_sharded -> ShardedLoaded -> ShardedPool: open, step, close; every process calls the same

Every process runs the same lane with the same seeds, takes the same batches and hears the same losses and
answers, so that all of them decide alike; only a batch's passes are split. Prompt and heads are small:
every process has all of them, and adds their gradients up. The backbone's weights are cut into rows, layer
by layer; a layer is put together for as long as it is used.
"""

# B rows, R rows of this process

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint import _fsspec_filesystem as fsspec_files
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from raymrc.configuration import Backbone, Cell, FoldRun
from raymrc.errors import BackboneError, TrainingError
from raymrc.model.backbones import (
    find_backbone,
    read_shape,
    weight_files,
    weights_fingerprint,
)
from raymrc.model.encoder import Encoder
from raymrc.model.loading import (
    Loaded,
    Weights,
    load_tokenizer,
    stored_parts,
    weight_names,
    write_weights,
)
from raymrc.model.network import local_part
from raymrc.model.precision import precision
from raymrc.model.strategies import STRATEGIES
from raymrc.planning.arithmetic import lane_bytes
from raymrc.reading.rows import Row
from raymrc.training.batching import StudyData, collate, collate_targets
from raymrc.training.lane import Answers, Batch, Lane
from raymrc.training.meter import Meter
from raymrc.training.pool import Pool, keep_freed_memory

NUMBERS_AT_ONCE = 2**22
"""Of a weight, read in one go: what is read is copied into place, and lies in memory twice meanwhile."""

GIVEN_BACK = 2**17
"""Bytes of a block that goes back to the system when it is freed, on a CPU."""

TRAINED_ALONE = StateDictOptions(ignore_frozen_params=True, strict=False)
"""What is frozen is in no checkpoint, and so missed in none."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """The processes that train one model together: all of torch.distributed's default group."""

    mesh: DeviceMesh
    device: torch.device
    saving: dist.ProcessGroup

    @classmethod
    def of_group(cls, device: torch.device | str) -> Ranks:
        """After `init_process_group`."""
        device = torch.device(device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        # Checkpoints are written while training goes on: they talk on a line of their own.
        return cls(mesh, device, cast(dist.ProcessGroup, dist.new_group(backend="gloo")))

    @property
    def rank(self) -> int:
        return dist.get_rank()

    @property
    def size(self) -> int:
        return dist.get_world_size()

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum over all processes; has no gradient."""
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def hear(self, value: Any) -> Any:
        """The first process's value."""
        values = [value]
        dist.broadcast_object_list(values, device=self.device)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in their order."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def share(self, rows: Sequence[Row]) -> slice:
        """This process's rows of a batch; the first processes have one more where it is uneven."""
        each, more = divmod(len(rows), self.size)
        begin = self.rank * each + min(self.rank, more)
        return slice(begin, begin + each + (self.rank < more))


@dataclass(frozen=True)
class ShardedLoaded(Loaded):
    """A backbone that several processes hold together, for one model at a time."""

    weights: Weights

    def copy_to_train(self) -> Encoder:
        """The same encoder with its pretrained weights again: there is no room for two."""
        fill(self.encoder, self.weights)
        return self.encoder


def load_sharded(backbone: Backbone, ranks: Ranks, *, trains: bool = True) -> ShardedLoaded:
    """A backbone, of which this process never holds more than its own part.

    Args:
        trains: kept in fp32, as what an optimiser changes must be; else as `precision` has it.
            Layers are put together in what `precision` says; gradients are added up in fp32.

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
    weights = Weights(weight_files(folder))
    try:
        fill(encoder, weights)
    except BackboneError as error:
        raise BackboneError(f"backbone folder {folder}: {error}") from None
    # FSDP asks once, when a layer is first put together.
    encoder.requires_grad_(trains).eval()
    return ShardedLoaded(
        backbone, encoder, load_tokenizer(folder), shape, weights_fingerprint(folder), weights
    )


def shard(encoder: Encoder, ranks: Ranks, computes_in: torch.dtype) -> None:
    """Every layer by itself, and the rest together."""
    # What a layer takes stays as it is: on one device the sum that layers add to is fp32, too.
    policy = MixedPrecisionPolicy(
        param_dtype=computes_in, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for layer in encoder.layers:
        fully_shard(layer, mesh=ranks.mesh, mp_policy=policy)
        register_fsdp_forward_method(layer, "keys_and_values")
    # Said for the whole, too, which FSDP would leave together after a forward pass: an optimiser that
    # is made then would step on what is thrown away.
    fully_shard(encoder, mesh=ranks.mesh, mp_policy=policy, reshard_after_forward=True)
    register_fsdp_forward_method(encoder, "word_states")


@torch.no_grad()
def fill(encoder: Encoder, weights: Weights) -> None:
    """This process's rows of every weight, read from the checkpoint.

    Raises:
        BackboneError: a weight is missing or has another shape than the config says.
    """
    for parameter, theirs, shapes in stored_parts(encoder, weights.names, weights.shape):
        own, begin = _own_rows(parameter)
        at_once = max(1, NUMBERS_AT_ONCE * len(own) // max(1, own.numel()))
        for part, first, last, at in _overlaps(theirs, shapes, begin, begin + len(own)):
            for row in range(first, last, at_once):
                end = min(row + at_once, last)
                own[at + row - first : at + end - first].copy_(weights.rows(part, row, end))


def _own_rows(parameter: Tensor) -> tuple[Tensor, int]:
    """This process's rows of a parameter, and which is the first; FSDP2 cuts as `torch.chunk` does."""
    assert isinstance(parameter, DTensor)
    own = parameter.to_local()
    mesh = parameter.device_mesh
    each = -(-len(parameter) // mesh.size())
    return own, min(mesh.get_local_rank() * each, len(parameter))


def _overlaps(
    names: Sequence[str], shapes: Sequence[tuple[int, ...]], begin: int, end: int
) -> Iterator[tuple[str, int, int, int]]:
    """(name, first row, last row, place from `begin`) of the stacked parts that rows lie in."""
    before = 0
    for name, (rows, *_) in zip(names, shapes, strict=True):
        first, last = max(begin - before, 0), min(end - before, rows)
        if first < last:
            yield name, first, last, before + first - begin
        before += rows


class ShardedPool(Pool):
    """`Pool` where one model is on several processes: one lane at a time, a pass on all of them.

    Every process makes the same calls in the same order. Events are the same everywhere.

    What fails everywhere alike (a loss that is not a number) ends the lane alone. A pass that fails
    is raised by `step`: it may have failed in one process only, as for want of memory, and leaves the
    others waiting. The caller has to end them all.
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
        self.ranks = ranks
        self.meter = Meter(ranks.device, ranks.size, ranks.size)

    def _set_malloc(self) -> None:
        """Room is what processes come together for, and freed layers leave gaps that the next ones do not
        fit into: at BERT-large's shape a process held 2.5 times what was in use."""
        keep_freed_memory(GIVEN_BACK, GIVEN_BACK)

    def fits(self, fold_run: FoldRun) -> bool:
        return not len(self)

    def open(self, fold_run: FoldRun, state: bytes | None = None) -> None:
        """See `Pool.open`; what it drops out differs from process to process."""
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
        seat.told = len(lane.epochs)

    def save(self, key: str) -> bytes:
        raise NotImplementedError("a sharded lane is saved by `start_saving`")

    def start_saving(self, key: str, place: str) -> Saving:
        """Between two batches; training may go on at once.

        Args:
            place: a new folder, or the URL of one, that every process sees.
        """
        lane = self._seats[key].lane
        saved = io.BytesIO()
        torch.save({"position": lane.position(), "place": place}, saved)
        writing = dcp.async_save(
            _tensors(lane),
            storage_writer=_through(FileSystemWriter(place), place),
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
                storage_reader=_through(FileSystemReader(place), place),
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
            options=TRAINED_ALONE,
        )
        lane.best_state = {
            name: local_part(tensor).to("cpu", copy=True)
            for name, tensor in tensors["best"].items()
        }
        lane.go_to(state["position"])

    def _activations_of(self, fold_run: FoldRun) -> None:
        """Nothing is kept of layers below late prompts: which rows are missing differs from process to
        process, and a layer takes all of them."""

    def _lane_bytes(self, fold_run: FoldRun) -> float:
        configuration = fold_run.configuration
        counts = self._count(configuration)
        small = counts.prompt + counts.heads
        return lane_bytes(small) + lane_bytes(counts.trained - small) / self.ranks.size

    def _groups(self, batches: Sequence[Batch]) -> list[list[Batch]]:
        return [[batch] for batch in batches]

    def _backward(self, group: Sequence[Batch]) -> Tensor:
        (batch,) = group
        lane = batch.lane
        total = torch.zeros((), device=self.device)
        # Each part's gradients are added up at once: kept for later they would be a whole model's.
        for rows in self._cut(batch.rows):
            total += self._backward_part(lane, rows, len(rows) / len(batch.rows))
        # What every process has all of, and the loss, in one go.
        gradients = [
            p.grad for p in lane.trained if p.grad is not None and not isinstance(p, DTensor)
        ]
        summed = self.ranks.add_up(torch.cat([total[None], *(g.flatten() for g in gradients)]))
        means = (summed[1:] / self.ranks.size).split([g.numel() for g in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))
        # Kept for an epoch: as a view it would keep all the gradients, too.
        return summed[:1].clone()

    def _backward_part(self, lane: Lane, rows: Sequence[Row], weight: float) -> Tensor:
        """This process's share of the loss of some rows, which together have this weight."""
        own, counts = self._own(rows)
        inputs = collate(own, lane.pad)
        targets = collate_targets(own, inputs)

        def add_up(number: Tensor) -> Tensor:
            return self.ranks.add_up(number * counts)

        inputs, targets = inputs.to(self.device), targets.to(self.device)
        loss = lane.model.loss(inputs, targets, lane.dropout, add_up) * (counts * weight)
        # FSDP takes the mean of what processes have, and theirs adds up to the loss.
        (loss * self.ranks.size).backward()
        return loss.detach()

    def _clip(self, lanes: Sequence[Lane]) -> None:
        (lane,) = lanes
        own = torch.zeros((), device=self.device)
        everywhere = torch.zeros((), device=self.device)
        gradients = []
        for parameter in lane.trained:
            gradient = parameter.grad
            if gradient is None:
                continue
            if isinstance(gradient, DTensor):
                gradients.append(gradient.to_local())
                own += gradients[-1].float().square().sum()
            else:
                gradients.append(gradient)
                everywhere += gradient.float().square().sum()
        norm = (self.ranks.add_up(own) + everywhere).sqrt()
        scale = (lane.configuration.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, scale)

    def _part(
        self, group: Sequence[Batch], error: Exception, run: Callable[[Sequence[Batch]], None]
    ) -> None:
        raise error

    def _answers(self, group: Sequence[Batch]) -> Sequence[Answers]:
        (batch,) = group
        lane = batch.lane
        own, counts = self._own(batch.rows)
        answers = lane.model.predict(collate(own, lane.pad).to(self.device))
        gathered = self.ranks.gather(answers if counts else [])
        return [[answer for part in gathered for answer in part]]

    def _own(self, rows: Sequence[Row]) -> tuple[Sequence[Row], bool]:
        """This process's rows. One without any passes another's along, because all of them put layers
        together; it counts nothing."""
        own = rows[self.ranks.share(rows)]
        return (own, True) if own else (rows[:1], False)

    def _cut(self, rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
        """A batch in parts of which no process gets more than `pass_pieces`. A part's loss counts by its
        rows, as where gradients of small batches are added up."""
        widest = max(row.length for row in rows)
        most = max(1, self.pass_pieces // widest) * self.ranks.size
        for begin in range(0, len(rows), most):
            yield rows[begin : begin + most]


@dataclass(frozen=True, eq=False)
class Saving:
    """A checkpoint on its way.

    Args:
        state: for `ShardedPool.open`, as soon as it `is_done`.
    """

    writing: Future[Any]
    state: bytes

    @property
    def is_done(self) -> bool:
        return self.writing.done()

    def wait(self) -> None:
        """
        Raises:
            TrainingError: it could not be written.
        """
        try:
            self.writing.result()
        except Exception as error:
            raise TrainingError(
                f"a checkpoint could not be written ({type(error).__name__}); "
                "is there room, and can every node write there?"
            ) from None


_T = TypeVar("_T", FileSystemWriter, FileSystemReader)


def _through(storage: _T, place: str) -> _T:
    """Where the place is a URL, torch's reader or writer goes through pyarrow, as the ledger does."""
    if "://" in place:
        files: Any = _ArrowFiles()
        storage.fs, storage.path = files, files.init_path(place)
    return storage


class _ArrowFiles(fsspec_files.FileSystem):
    def init_path(self, path: Any, **options: Any) -> Any:
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow.fs import FileSystem

        filesystem, inner = FileSystem.from_uri(path)
        self.fs = ArrowFSWrapper(filesystem)
        return inner


def _tensors(lane: Lane) -> dict[str, Any]:
    """All tensors of a lane, sharded as they are: what is trained, the optimiser's state and the state of
    the best epoch so far (the present one's where there is none)."""
    model, optimiser = get_state_dict(lane.model, lane.optimiser, options=TRAINED_ALONE)
    best = {}
    for name, parameter in lane.model.named_parameters():
        if not parameter.requires_grad:
            continue
        own = local_part(parameter).detach() if lane.best_state is None else lane.best_state[name]
        if isinstance(parameter, DTensor):
            own = DTensor.from_local(
                own, parameter.device_mesh, parameter.placements,
                run_check=False, shape=parameter.shape, stride=parameter.stride(),
            )  # fmt: skip
        best[name] = own
    return {"model": model, "optimiser": optimiser, "best": best}


@torch.no_grad()
def export_checkpoint(encoder: Encoder, ranks: Ranks, folder: Path) -> None:
    """The whole encoder's weights as Hugging Face has them, one put together at a time.

    The first process writes safetensors and their index; config and tokenizer are its caller's.
    """
    names = dict(weight_names(encoder.shape))

    def whole() -> Iterator[tuple[str, Tensor]]:
        for ours, parameter in encoder.named_parameters():
            full = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            if ranks.rank == 0:
                theirs = names[ours]
                yield from zip(theirs, full.chunk(len(theirs)), strict=True)

    if ranks.rank == 0:
        write_weights(folder, whole())
    else:
        for _ in whole():
            pass
