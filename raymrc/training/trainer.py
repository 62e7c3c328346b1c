"""Opens pools for a study, loads adapters, and checks that questions fit a backbone."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from raymrc.configuration import Backbone, Cell, Configuration
from raymrc.errors import AdapterError, BackboneError, TrainingError
from raymrc.ledger.storage import open_files
from raymrc.model.adapter_tensors import read_state
from raymrc.model.adapters import ADAPTERS_FOLDER, Adapter, read_adapter
from raymrc.model.backbones import find_backbone, read_shape
from raymrc.model.loading import Loaded, load_backbone, load_tokenizer
from raymrc.model.network import Model
from raymrc.model.strategies import STRATEGIES
from raymrc.planning.rows import row_form
from raymrc.reading.relations import Asked
from raymrc.reading.rows import RowBuilder
from raymrc.training.batching import StudyData
from raymrc.training.lane import Lane
from raymrc.training.pool import Pool

if TYPE_CHECKING:
    from raymrc.training.sharded import Ranks


@dataclass(frozen=True, slots=True)
class Trainer:
    """Opens pools with a study's settings: a plain value that loads weights only where a pool is opened.

    Args:
        device: "cpu" or "cuda".
        device_hour_usd: price of one device (a GPU, or a core) for an hour.
        gpus: share of a GPU, or number of GPUs, that a fold-run holds; on a CPU its cores count instead.
        recomputes: see `Pool`.
        storage: of the study; final tests write their adapters below it, except in worker groups, where each
            process has only a part of a model. "": no adapter is written.
    """

    device: str = "cpu"
    device_hour_usd: float = 0.0
    gpus: float = 1.0
    recomputes: frozenset[Cell] = frozenset()
    storage: str = ""

    def open_pool(self, backbone: Backbone, data: StudyData, ranks: Ranks | None = None) -> Pool:
        """A pool for many fold-runs of one backbone.

        Args:
            ranks: the processes that hold the backbone together; None where this one holds it alone.

        Raises:
            BackboneError: the backbone cannot be loaded.
        """
        if ranks is not None:
            from raymrc.training.sharded import ShardedPool, load_sharded  # seconds of imports

            return ShardedPool(
                load_sharded(backbone, ranks),
                data,
                ranks,
                device_hour_usd=self.device_hour_usd,
                recomputes=self.recomputes,
            )
        return Pool(
            load_backbone(backbone, self.device),
            data,
            self.device,
            device_hour_usd=self.device_hour_usd,
            gpus=self.gpus,
            recomputes=self.recomputes,
            on_done=self._keep,
        )

    def _keep(self, lane: Lane) -> None:
        if not self.storage or not lane.fold_run.is_test:
            return
        with tempfile.TemporaryDirectory() as folder:
            written = lane.write_adapter(Path(folder))
            name = f"{lane.fold_run.place}/{written.name}"
            open_files(self.storage, ADAPTERS_FOLDER).write(
                name, written.read_bytes(), replace=True
            )


def load_adapter(place: Path | str, loaded: Loaded) -> tuple[Model, Adapter]:
    """The model that an adapter was written from, in evaluation mode.

    Raises:
        AdapterError: the adapter cannot be read, or its tensors do not match its configuration.
        BackboneError: the adapter was trained on another backbone.
    """
    adapter = read_adapter(place)
    adapter.check_backbone(loaded.fingerprint)
    try:
        configuration = Configuration.from_values(adapter.configuration)
    except (KeyError, TypeError, ValueError):
        raise AdapterError(
            f"{adapter.place}: its configuration is not one of this raymrc"
        ) from None
    # The tensors that its prompt started from have been trained over.
    fresh = replace(configuration, prompt_initialisation="random")
    model = Model(fresh, loaded, len(adapter.labels), len(adapter.relations))
    model.configuration = configuration
    try:
        model.load_trained_state(read_state(adapter.place))
    except TrainingError as error:
        raise AdapterError(f"{adapter.place}: {error}") from None
    return model.eval(), adapter


def check_questions_fit(
    windows: Mapping[Cell, int], asked: Asked, questions: Mapping[str, str]
) -> None:
    """Checks, with each backbone's tokenizer, that its longest rows fit its positions.

    Args:
        windows: cell -> pieces of its longest window.

    Raises:
        BackboneError: rows do not fit, with the window that would; or there is no tokenizer.
    """
    for cell, window in windows.items():
        if STRATEGIES[cell.strategy].asks == "words" or asked.relations:
            folder = find_backbone(cell.backbone)
            shape = read_shape(folder, cell.backbone.layers)
            tokenizer = load_tokenizer(folder)
            longest = Configuration(cell, learning_rate=0.0, window=window)
            try:
                builder = RowBuilder(tokenizer, row_form(longest, shape), asked, questions)
                builder.check_fits(shape.max_pieces)
            except BackboneError as error:
                raise BackboneError(f"{cell.name}: {error}") from None
