"""Two processes that share a model learn the same as a single process.

A bug here would be silent: a gradient that is halved or counted twice, a mean over one process's rows, or
a layer left as `to_empty` made it still trains to a plausible result.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from raymrc.configuration import FoldRun
from raymrc.errors import BackboneError
from raymrc.model.backbones import weight_files
from raymrc.model.encoder import Encoder
from raymrc.model.inputs import Inputs
from raymrc.model.loading import (
    check_weights,
    load_backbone,
    read_weights,
    weight_names,
)
from raymrc.model.network import local_part
from raymrc.model.strategies import STRATEGIES
from raymrc.training.batching import StudyData, collate, collate_targets
from raymrc.training.lane import Batch
from raymrc.training.pool import Pool
from raymrc.training.sharded import Ranks, ShardedPool, _overlaps, load_sharded
from tests.model.tiny import KINDS, tiny_backbone, tiny_checkpoint, tiny_configuration
from tests.paths import ROOT
from tests.training.test_lane import make_data, make_notes
from tests.training.test_relations import make_relation_data, make_relation_notes
from tests.weights import write_weights

STEPS = 50
TOLERANCE = 2e-5


def make_fold_run(folder: Path, strategy: str, task: str = "concepts", **fields: Any) -> FoldRun:
    rate = 1e-2 if strategy == "frozen_soft_prompt" else 1e-3
    small = {"epochs": 20, "batch_size": 5, "window": 20, "overlap": 4, "learning_rate": rate}
    if task != "concepts":
        small |= {"window": 24, "context_sentences": 1}
    configuration = tiny_configuration(tiny_backbone(folder), strategy, **small | fields)
    configuration = replace(configuration, cell=replace(configuration.cell, task=task))
    return FoldRun(configuration, 0, "corpus", "folds", "questions", "weights")


def data_of(task: str) -> StudyData:
    return (
        make_data(make_notes()) if task == "concepts" else make_relation_data(make_relation_notes())
    )


@torch.no_grad()
def export_weights(encoder: Encoder, ranks: Ranks, folder: Path) -> None:
    """Gathers the encoder's weights one at a time; rank 0 writes them under their Hugging Face names."""
    names = dict(weight_names(encoder.shape))

    def whole() -> Any:
        for ours, parameter in encoder.named_parameters():
            full = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
            if ranks.rank == 0:
                theirs = names[ours]
                yield from zip(theirs, full.chunk(len(theirs)), strict=True)

    if ranks.rank == 0:
        write_weights(folder, whole())
    else:
        for _ in whole():
            pass


def train(
    pool: Pool, fold_run: FoldRun, steps: int, state: bytes | None = None, save_to: str = ""
) -> dict[str, Any]:
    """Runs the first steps of a fold-run; returns losses, final weights and, if it finishes, its record.

    Args:
        state: the saved state to resume from.
        save_to: where to save the lane during the second epoch of this call; training stops there.
    """
    pool.open(fold_run, state)
    lane = pool._seats[fold_run.key].lane
    losses: list[float] = []
    finish_step, begun = lane.finish_step, len(lane.epochs)

    def listen(batch: Any, loss: torch.Tensor) -> None:
        # The lane keeps losses for an epoch; a loss that is a view would keep all gradients in memory.
        assert loss.untyped_storage().nbytes() == loss.element_size()
        losses.append(float(loss))
        finish_step(batch, loss)

    lane.finish_step = listen  # type: ignore[method-assign]
    epochs, record, saved = [], None, None
    while len(pool) and len(losses) < steps and saved is None:
        if save_to and len(lane.epochs) == begun + 1 and lane._steps_of_epoch == 2:
            assert isinstance(pool, ShardedPool)
            saving = pool.start_saving(fold_run.key, save_to)
            saving.wait()
            assert saving.is_done
            saved = saving.state
            break
        for event in pool.step():
            if isinstance(event.what, Exception):
                raise event.what
            if hasattr(event.what, "epoch"):
                epochs.append([event.what.loss, event.what.validation_f1])
            else:
                record = {name: asdict(counts) for name, counts in event.what.notes.items()}
    pool.close(fold_run.key)
    weights = {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for name, p in lane.model.named_parameters()
    }
    return {
        "losses": losses, "epochs": epochs, "weights": weights, "record": record, "saved": saved,
    }  # fmt: skip


class PartsPool(Pool):
    """Takes a batch two rows at a time in one process, like two processes with one row each."""

    def _backward(self, group: Sequence[Batch]) -> torch.Tensor:
        (batch,) = group
        total = torch.zeros(1)
        for begin in range(0, len(batch.rows), 2):
            rows = batch.rows[begin : begin + 2]
            inputs = collate(rows, batch.lane.pad)
            loss = batch.lane.model.loss(inputs, collate_targets(rows, inputs))
            loss = loss * len(rows) / len(batch.rows)
            loss.backward()
            total += loss.detach()
        return total


def be_rank(folder: Path, out: Path, cases: list[dict[str, Any]]) -> None:
    """Runs the cases one after another as one rank of a process group, in its own process."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ranks = Ranks.of_group("cpu")
    pools: dict[tuple[str, bool, bool], ShardedPool] = {}
    for number, case in enumerate(cases):
        task = case["task"]
        fold_run = make_fold_run(folder / case["kind"], case["strategy"], task, **case["fields"])
        held = (case["kind"], case["checkpoints"], task == "concepts")
        cell = fold_run.configuration.cell
        if held not in pools:
            loaded = load_sharded(cell.backbone, ranks)
            recomputes = {cell} if case["checkpoints"] else ()
            pools[held] = ShardedPool(loaded, data_of(task), ranks, recomputes=recomputes)
        assert (cell in pools[held].recomputes) == case["checkpoints"]
        pools[held].pass_pieces = case["pass_pieces"]
        state = Path(case["state"]).read_bytes() if case["state"] else None
        found = train(pools[held], fold_run, case["steps"], state, case["save_to"])
        if case["export_to"]:
            export_weights(pools[held].loaded.encoder, ranks, Path(case["export_to"]))
        if ranks.rank == 0:
            torch.save(found, out / f"{number}.pt")
    dist.destroy_process_group()


def run_ranks(size: int, folder: Path, out: Path, cases: list[dict[str, Any]]) -> list[Any]:
    out.mkdir()
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "tests.training.test_sharded", str(folder), str(out)]
    processes = []
    for rank in range(size):
        place = {"RANK": str(rank), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
        processes.append(
            subprocess.Popen(
                [*command, json.dumps(cases)],
                cwd=ROOT,
                env=os.environ | address | place,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * size, errors[0][-3000:]
    return [torch.load(out / f"{number}.pt") for number in range(len(cases))]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def case(kind: str, strategy: str, **terms: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"steps": STEPS, "checkpoints": False, "pass_pieces": 1024}
    settings |= {"task": "concepts", "fields": {}, "state": "", "save_to": "", "export_to": ""}
    return {"kind": kind, "strategy": strategy, **settings, **terms}


# With these settings models find mentions and relations after four epochs.
QUICKLY = {"epochs": 4, "head_learning_rate": 1e-2}

CASES = [
    *(case(kind, strategy) for kind in KINDS for strategy in STRATEGIES),
    case("bert", "soft_prompt", checkpoints=True),
    case("megatron-bert", "frozen_soft_prompt", checkpoints=True),
    case("bert", "soft_prompt", fields={"prompt_depth": "input", "reparametrisation": "mlp"}),
    case("roberta", "frozen_soft_prompt", fields={"first_layer": 1}),
    case("bert", "soft_prompt", fields={"prompt_initialisation": "question"}),
    case("bert", "soft_prompt", steps=10, pass_pieces=1),
    case("bert", "fine_tune", steps=10_000, fields={"epochs": 4}),
    case("bert", "frozen_soft_prompt", steps=10_000, fields={"epochs": 4}),
    case("roberta", "fine_tune", task="relations"),
    case("bert", "soft_prompt", task="relations"),
    case("bert", "fine_tune", task="end_to_end", steps=10_000, fields=QUICKLY),
]
"""The case of ten steps gives each process part of a row. Those of 10,000 go to their end, with validation
and the scored fold. Pair classification has rows of two marked mentions; end to end they are beside rows
that are tagged, and each batch leaves one of two heads without a gradient."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for kind in KINDS:
        tiny_checkpoint(kind, folder / kind, num_layers=2)
    return folder


@pytest.fixture(scope="module")
def of_two(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_ranks(2, checkpoints, tmp_path_factory.mktemp("out") / "two", CASES)


def assert_same_weights(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compares weights except the key biases. These do not affect attention weights, so their gradient is
    pure rounding, which Adam scales up like any other gradient."""

    def without(weights: dict[str, Any]) -> dict[str, Any]:
        cut = {}
        for name, weight in weights.items():
            if name.endswith("qkv.bias"):
                queries, _, values = weight.chunk(3)
                weight = torch.cat([queries, values])
            cut[name] = weight
        return cut

    torch.testing.assert_close(without(found), without(expected), rtol=1e-3, atol=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CASES)))
def test_two_processes_learn_the_same_as_one(
    number: int, checkpoints: Path, of_two: list[Any]
) -> None:
    this = CASES[number]
    folder, task = checkpoints / this["kind"], this["task"]
    fold_run = make_fold_run(folder, this["strategy"], task, **this["fields"])
    kind = PartsPool if this["pass_pieces"] == 1 else Pool
    pool = kind(load_backbone(fold_run.configuration.cell.backbone), data_of(task), "cpu")
    alone, together = train(pool, fold_run, this["steps"]), of_two[number]
    whole = this["steps"] > STEPS
    assert (
        len(together["losses"]) == len(alone["losses"]) and (alone["record"] is not None) == whole
    )
    assert whole or len(alone["losses"]) == this["steps"]
    torch.testing.assert_close(
        torch.tensor(together["losses"]), torch.tensor(alone["losses"]), rtol=1e-3, atol=TOLERANCE
    )
    assert together["weights"].keys() == alone["weights"].keys()
    assert_same_weights(together["weights"], alone["weights"])
    torch.testing.assert_close(together["epochs"], alone["epochs"], rtol=1e-3, atol=1e-3)
    assert together["record"] == alone["record"]
    if whole and task == "end_to_end":
        found = [counts for note in alone["record"].values() for counts in note["strict"].values()]
        assert any(counts["tp"] for counts in found), "no relation was asked for or found"


@pytest.mark.slow
def test_a_fold_run_resumes_with_a_different_number_of_processes(
    checkpoints: Path, tmp_path: Path
) -> None:
    strategy, sizes = "soft_prompt", (2, 1, 2)
    terms: dict[str, Any] = {"fields": {"epochs": 3}, "steps": 10_000}
    state, losses = "", []
    for number, size in enumerate(sizes):
        save_to = str(tmp_path / f"saved-{number}") if number < len(sizes) - 1 else ""
        if number == 1:
            save_to = f"file://{save_to}"  # a URL goes through pyarrow, like an object store
        this = case("bert", strategy, **terms, state=state, save_to=save_to)
        (found,) = run_ranks(size, checkpoints, tmp_path / f"out-{number}", [this])
        losses += found["losses"]
        if save_to:
            state = str(tmp_path / f"state-{number}")
            Path(state).write_bytes(found["saved"])
    fold_run = make_fold_run(checkpoints / "bert", strategy, **terms["fields"])
    pool = Pool(load_backbone(fold_run.configuration.cell.backbone), make_data(make_notes()), "cpu")
    alone = train(pool, fold_run, terms["steps"])
    torch.testing.assert_close(
        torch.tensor(losses), torch.tensor(alone["losses"]), rtol=1e-3, atol=TOLERANCE
    )
    assert_same_weights(found["weights"], alone["weights"])
    assert found["record"] == alone["record"]


@pytest.mark.slow
def test_hugging_face_loads_an_export_with_the_same_outputs(
    checkpoints: Path, tmp_path: Path
) -> None:
    from transformers import AutoModel

    this = case("megatron-bert", "soft_prompt", steps=3, export_to=str(tmp_path / "exported"))
    (found,) = run_ranks(2, checkpoints, tmp_path / "out", [this])
    folder = tmp_path / "exported"
    shutil.copy(checkpoints / "megatron-bert" / "config.json", folder)
    shutil.copy(checkpoints / "megatron-bert" / "tokenizer.json", folder)
    again = load_backbone(tiny_backbone(folder)).encoder
    for name, weight in again.named_parameters():
        assert torch.equal(weight, found["weights"][f"encoder.{name}"]), name
    ids = torch.arange(5, 25)[None]
    theirs = AutoModel.from_pretrained(folder, add_pooling_layer=False)(ids).last_hidden_state
    mask = torch.ones_like(ids, dtype=torch.bool)
    ours = again(Inputs(ids, torch.zeros_like(ids), mask, mask, ids[:, 0]))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_weights_split_over_several_files_are_read_back(tmp_path: Path) -> None:
    tensors = {f"t{number}": torch.randn(4, 3) for number in range(5)}
    write_weights(tmp_path, tensors.items(), file_bytes=100)
    files = weight_files(tmp_path)
    assert [file.name for file in files] == [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    weights = read_weights(tmp_path)
    assert weights.stored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(weights.read(name), tensor) and weights.shape(name) == (4, 3)
        assert torch.equal(weights.read(name, 1, 3), tensor[1:3])


@pytest.mark.parametrize("break_it", ["cut", "config"])
def test_a_broken_checkpoint_raises_a_clear_error(
    break_it: str, checkpoints: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(checkpoints / "bert", folder)
    if break_it == "cut":
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    for looks in (load_backbone, check_weights):
        with pytest.raises(BackboneError, match=r"not a readable safetensors|does not fit the"):
            looks(tiny_backbone(folder))
    check_weights(tiny_backbone(checkpoints / "bert"))


def test_stacked_rows_map_to_the_right_part_for_every_cut() -> None:
    names, sizes = ("q", "k", "v"), (4, 4, 5)
    rows = [(n, i) for n, size in zip(names, sizes, strict=True) for i in range(size)]
    for begin in range(14):
        for end in range(begin, 14):
            found = {}
            for name, first, last, at in _overlaps(names, [(s, 2) for s in sizes], begin, end):
                for row in range(first, last):
                    found[at + row - first] = (name, row)
            assert found == dict(enumerate(rows[begin:end]))


def test_the_local_part_of_an_unsharded_tensor_is_the_tensor_itself() -> None:
    tensor = torch.ones(3)
    assert local_part(tensor) is tensor


if __name__ == "__main__":
    be_rank(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
