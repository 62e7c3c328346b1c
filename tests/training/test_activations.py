"""The activation store returns exactly what the backbone computes below a late prompt.

A bug here would be silent: a window that gets another window's hidden states, or its own from the wrong
layer, still trains to a plausible result.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from raymrc.model.encoder import Encoder
from raymrc.model.inputs import Inputs
from raymrc.model.loading import Loaded
from raymrc.model.network import Model
from raymrc.training.activations import Activations
from raymrc.training.fused import BatchPart, backward_together, clip_together, predict_together
from tests.model.tiny import (
    KINDS,
    random_inputs,
    random_span_targets,
    tiny_configuration,
    tiny_loaded,
)

NUM_LABELS = 3
PLENTY = 2**20
TOLERANCE = 1e-5
"""fp32 sums of a few hundred terms in another order differ by about 1e-6."""

late = pytest.mark.parametrize("first_layer", [1, 2])
depths = pytest.mark.parametrize("depth", ["deep", "input"])


@pytest.fixture(scope="module", params=KINDS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return tiny_loaded(request.param, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return tiny_loaded("bert", tmp_path_factory.mktemp("bert"))


class Windows:
    """Holds windows of varied lengths and batches them under any labels."""

    def __init__(self, loaded: Loaded, count: int = 12, *, padded: bool = True) -> None:
        self.inputs = random_inputs(
            loaded.shape.vocab, count, 24, pad_id=loaded.shape.pad_id, padded=padded, seed=7
        )
        self.lengths = self.inputs.mask_BS.sum(1)

    def batch(self, *windows: int, labels: tuple[int, ...] = ()) -> tuple[list[Hashable], Inputs]:
        """Returns keys and rows, padded only to the longest chosen window."""
        index = torch.tensor(windows)
        rows = self.inputs.take(index)
        width = int(self.lengths[index].max())
        inputs = Inputs(
            rows.input_ids_BS[:, :width],
            rows.type_ids_BS[:, :width],
            rows.mask_BS[:, :width],
            rows.window_BS[:, :width],
            torch.tensor(labels) if labels else torch.arange(len(windows)) % NUM_LABELS,
        )
        return [("note", window) for window in windows], inputs

    def alone(self, encoder: Encoder, window: int, first_layer: int) -> Tensor:
        """Returns the hidden states of one unpadded window, (n, D)."""
        _, inputs = self.batch(window)
        assert not inputs.is_padded
        return encoder.below(inputs, first_layer)[0]


@contextmanager
def passes_below(encoder: Encoder) -> Iterator[list[tuple[int, int]]]:
    """Records (rows, pieces) for each pass through the first layer inside the block."""
    seen: list[tuple[int, int]] = []
    hook = encoder.layer(0).register_forward_hook(
        lambda _module, given, _output: seen.append(tuple(given[0].shape[:2]))
    )
    yield seen
    hook.remove()


def make_model(loaded: Loaded, **fields: object) -> Model:
    configuration = tiny_configuration(loaded.backbone, "frozen_soft_prompt", **fields)
    model = Model(configuration, loaded, NUM_LABELS)
    # Zero biases mimic a model that already predicts; otherwise the match head sees only gold pairs.
    torch.nn.init.constant_(model.heads.start.bias, 0.0)
    torch.nn.init.constant_(model.heads.end.bias, 0.0)
    return model.train()


def assert_each_is_its_windows_own(
    filled: Inputs, windows: Windows, chosen: tuple[int, ...], encoder: Encoder, first_layer: int
) -> None:
    assert filled.entry_BSD is not None and filled.entry_layer == first_layer
    for row, window in enumerate(chosen):
        length = int(windows.lengths[window])
        expected = windows.alone(encoder, window, first_layer)
        torch.testing.assert_close(filled.entry_BSD[row, :length], expected, rtol=0, atol=TOLERANCE)
        assert not filled.entry_BSD[row, length:].any()


@late
def test_a_padded_batch_stores_the_same_states_as_each_window_alone(
    loaded: Loaded, first_layer: int
) -> None:
    windows, store = Windows(loaded), Activations(loaded.encoder, first_layer, PLENTY)
    for chosen in ((3, 0, 3, 5), (5, 4, 1), (0, 1, 2, 3, 4, 5)):
        filled = store.fill(*windows.batch(*chosen))
        assert_each_is_its_windows_own(filled, windows, chosen, loaded.encoder, first_layer)
    assert (store.misses, store.hits) == (6, 1 + 5)


@late
@depths
def test_a_model_gives_the_same_hidden_states_with_and_without_the_store(
    loaded: Loaded, depth: str, first_layer: int
) -> None:
    model = make_model(loaded, prompt_depth=depth, first_layer=first_layer)
    windows, store = Windows(loaded), Activations(loaded.encoder, first_layer, PLENTY)
    for chosen in ((0, 1, 2, 0, 1), (2, 7, 7, 0)):
        keys, inputs = windows.batch(*chosen)
        plain = model.hidden(inputs)[inputs.mask_BS]
        for _ in range(2):  # the first fill computes, the second reads the store
            filled = store.fill(keys, inputs)
            nowhere = torch.full_like(inputs.input_ids_BS, -1)  # ids must not be read again
            given = replace(filled, input_ids_BS=nowhere)
            hidden = model.hidden(given)[inputs.mask_BS]
            torch.testing.assert_close(hidden, plain, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("depth", "first_layer", "max_bytes"), [("deep", 1, PLENTY), ("input", 2, 60 * 32 * 4)]
)
def test_lanes_learn_the_same_with_and_without_the_store(
    loaded: Loaded, depth: str, first_layer: int, max_bytes: int
) -> None:
    """Three lanes share one store for five steps each; in one case the store holds only a few windows."""

    def train(store: Activations | None) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        windows, draw = Windows(loaded), random.Random(1)
        models = [
            make_model(loaded, prompt_depth=depth, first_layer=first_layer, seed=s, dropout=0.1)
            for s in range(3)
        ]
        generators = [torch.Generator().manual_seed(s) for s in range(3)]
        optimisers = [torch.optim.SGD(m.parameter_groups(), lr=0.1) for m in models]
        losses = []
        for step in range(5):
            parts = []
            for model, generator in zip(models, generators, strict=True):
                keys, inputs = windows.batch(*draw.choices(range(12), k=5))
                targets = random_span_targets(inputs, seed=step)
                if store is not None:
                    inputs = store.fill(keys, inputs)
                parts.append(BatchPart(model, inputs, targets, generator))
            with passes_below(loaded.encoder) as seen:
                losses.append(backward_together(parts))
            assert bool(seen) == (store is None)
            clip_together(models, [1.0] * 3)
            for optimiser in optimisers:
                optimiser.step()
        grads = [{n: p.grad for n, p in m.named_parameters() if p.grad is not None} for m in models]
        return losses, grads

    store = Activations(loaded.encoder, first_layer, max_bytes)
    losses, grads = train(store)
    plain_losses, plain_grads = train(None)
    torch.testing.assert_close(losses, plain_losses, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(grads, plain_grads, strict=True):
        assert mine.keys() == theirs.keys() and mine
        for name, gradient in theirs.items():
            # five steps amplify fp32 rounding
            torch.testing.assert_close(mine[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    if max_bytes == PLENTY:
        assert store.misses == 12 and store.evictions == 0
    else:
        assert store.evictions


def test_predictions_are_the_same_with_and_without_the_store(loaded: Loaded) -> None:
    windows, store = Windows(loaded), Activations(loaded.encoder, 2, PLENTY)
    models = [make_model(loaded, first_layer=2, seed=seed) for seed in range(2)]
    batches = [windows.batch(0, 0, 0, 1, 1, 1), windows.batch(5, 5, 5, 1, 1, 1)]
    filled = [store.fill(*batch) for batch in batches]
    together = predict_together([BatchPart(m, i) for m, i in zip(models, filled, strict=True)])
    for model, (_, inputs), answers in zip(models, batches, together, strict=True):
        for mine, theirs in zip(answers, model.predict(inputs), strict=True):
            assert mine[2].tolist() == theirs[2].tolist()
            for k in (0, 1, 3):
                torch.testing.assert_close(
                    torch.from_numpy(mine[k]), torch.from_numpy(theirs[k]), rtol=1e-4, atol=1e-5
                )


def test_a_window_passes_the_lower_layers_once_across_labels_epochs_and_lanes(
    bert: Loaded,
) -> None:
    windows, store = Windows(bert), Activations(bert.encoder, 2, PLENTY)
    models = [make_model(bert, first_layer=2, seed=seed) for seed in range(2)]
    draw = random.Random(3)
    with passes_below(bert.encoder) as seen:
        for _epoch in range(3):
            asked = [(w, label) for w in range(12) for label in range(NUM_LABELS)]
            for model in models:
                draw.shuffle(asked)
                for at in range(0, len(asked), 6):
                    chosen, labels = zip(*asked[at : at + 6], strict=True)
                    model.hidden(store.fill(*windows.batch(*chosen, labels=labels)))
    assert sum(rows for rows, _ in seen) == 12 == store.misses == len(store)
    assert store.bytes == int(windows.lengths.sum()) * 32 * 4


def test_a_pass_below_the_prompt_stays_within_its_budget_and_groups_similar_lengths(
    bert: Loaded,
) -> None:
    windows = Windows(bert)
    store = Activations(bert.encoder, 1, PLENTY, build_pieces=60)
    with passes_below(bert.encoder) as seen:
        store.fill(*windows.batch(*range(12)))
    assert sum(rows for rows, _ in seen) == 12
    assert all(rows * pieces <= 60 for rows, pieces in seen)
    assert len(seen) < 12
    assert [pieces for _, pieces in seen] == sorted((p for _, p in seen), reverse=True)
    assert seen[-1][1] < 24
    narrow = Activations(bert.encoder, 1, PLENTY, build_pieces=1)
    with passes_below(bert.encoder) as seen:
        narrow.fill(*windows.batch(*range(12)))
    assert [rows for rows, _ in seen] == [1] * 12


@pytest.mark.parametrize("pieces", [1, 13, 30, 61, 100])
def test_the_store_never_exceeds_its_limit_and_stays_exact_under_eviction(
    bert: Loaded, pieces: int
) -> None:
    windows, draw = Windows(bert), random.Random(4)
    bound = pieces * 32 * 4
    store = Activations(bert.encoder, 2, bound)
    assert store._table_XD.nbytes <= bound
    for _ in range(40):
        chosen = tuple(draw.choices(range(12), k=draw.randint(1, 6)))
        filled = store.fill(*windows.batch(*chosen))
        assert_each_is_its_windows_own(filled, windows, chosen, bert.encoder, 2)
        rows = [int(row) for window_rows in store._rows.values() for row in window_rows]
        assert len(rows) == len(set(rows)) and 0 not in rows
        assert store.bytes == len(rows) * 32 * 4 <= bound
    # Row 0 holds the zeros for padding. A store that fits only the shortest window evicts nothing.
    assert (store.evictions > 0) == (pieces >= 30)
    assert (len(store) > 0) == (pieces > int(windows.lengths.min()))


def test_a_window_larger_than_the_limit_is_computed_and_evicts_nothing(bert: Loaded) -> None:
    windows = Windows(bert)
    long = int(windows.lengths.argmax())
    short = int(windows.lengths.argmin())
    # Row 0 of the table holds the zeros for padding.
    store = Activations(bert.encoder, 1, int(windows.lengths[short] + 1) * 32 * 4)
    store.fill(*windows.batch(short))
    for _ in range(20):
        filled = store.fill(*windows.batch(long))
        assert_each_is_its_windows_own(filled, windows, (long,), bert.encoder, 1)
    assert (len(store), store.evictions, store.misses) == (1, 0, 21)
    store.fill(*windows.batch(short))
    assert store.hits == 1


def test_sequential_epochs_still_hit_stored_windows(bert: Loaded) -> None:
    """Half of the windows fit. LRU would never hit, and evicting on every insert would hit a fifth."""
    windows = Windows(bert, 40, padded=False)
    store = Activations(bert.encoder, 1, (1 + 20 * 24) * 32 * 4)
    for _epoch in range(12):
        for window in range(40):
            store.fill(*windows.batch(window))
    assert store.hits > 0.35 * 11 * 40
    assert store.evictions > 0


def test_evictions_depend_only_on_the_seed(bert: Loaded) -> None:
    windows = Windows(bert)

    def kept(seed: int) -> set[Hashable]:
        store, draw = Activations(bert.encoder, 1, 100 * 32 * 4, seed=seed), random.Random(5)
        for _ in range(60):
            store.fill(*windows.batch(*draw.choices(range(12), k=3)))
        return set(store._rows)

    assert kept(1) == kept(1)
    assert len({frozenset(kept(seed)) for seed in range(8)}) > 1


def test_the_store_takes_no_memory_before_using_it(bert: Loaded) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    store = Activations(bert.encoder, 1, 2**32)
    store.fill(*Windows(bert).batch(0, 1))
    assert store._table_XD.nbytes == 2**32
    assert resident() - before < 2**27


def test_stores_with_different_first_layers_do_not_mix(bert: Loaded) -> None:
    windows = Windows(bert)
    stores = {layer: Activations(bert.encoder, layer, PLENTY) for layer in (1, 2)}
    chosen = (0, 1, 0)
    for _ in range(2):
        for layer, store in stores.items():
            filled = store.fill(*windows.batch(*chosen))
            assert_each_is_its_windows_own(filled, windows, chosen, bert.encoder, layer)
    model = make_model(bert, first_layer=1)
    with pytest.raises(AssertionError, match="another layer"):
        model.hidden(stores[2].fill(*windows.batch(*chosen)))


def test_windows_with_the_same_index_or_the_same_pieces_are_stored_separately(bert: Loaded) -> None:
    """The keys cover two notes, and one note cut two ways; all three windows have index 0."""
    windows, store = Windows(bert), Activations(bert.encoder, 1, PLENTY)
    _, inputs = windows.batch(3, 4, 3)
    keys = [("a", 0, 24, 4), ("a", 0, 12, 4), ("b", 0, 24, 4)]
    for _ in range(2):
        filled = store.fill(keys, inputs)
        assert_each_is_its_windows_own(filled, windows, (3, 4, 3), bert.encoder, 1)
    assert len(store) == 3
    with pytest.raises(AssertionError, match="one key names windows that differ"):
        store.fill(["same", "same"], windows.batch(3, 4)[1])


def test_a_store_requires_a_frozen_backbone_and_a_late_prompt(bert: Loaded) -> None:
    with pytest.raises(AssertionError, match="frozen"):
        Activations(Encoder(bert.shape), 1, PLENTY)
    for layer in (0, 3):
        with pytest.raises(AssertionError):
            Activations(bert.encoder, layer, PLENTY)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: no table was kept on one")
def test_the_table_of_a_gpu_backbone_is_on_the_gpu(tmp_path: Path) -> None:
    loaded = tiny_loaded("bert", tmp_path)
    windows = Windows(loaded)
    expected = Activations(loaded.encoder, 2, PLENTY).fill(*windows.batch(0, 1, 0)).entry_BSD
    store = Activations(loaded.encoder.to("cuda"), 2, PLENTY)
    for _ in range(2):
        filled = store.fill(*windows.batch(0, 1, 0))
        assert filled.entry_BSD.is_cuda and filled.label_B.is_cuda
        torch.testing.assert_close(filled.entry_BSD.cpu(), expected, rtol=0, atol=1e-4)
