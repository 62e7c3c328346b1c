"""A study file as one typed, checked, frozen object, and its JSON Schema.

values with positions -> sections (pydantic) -> Spec
"""

from __future__ import annotations

import shlex
from pathlib import Path as FolderPath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr

from raymrc.errors import SpecError
from raymrc.ledger.storage import hide_password
from raymrc.study.sections import (
    BackboneEntry,
    BudgetSpec,
    CorpusSpec,
    Failures,
    FewShot,
    FinalTest,
    FoldSpec,
    MlflowSpec,
    Prices,
    RacingSpec,
    Resources,
    Search,
    Section,
    Settings,
    Strategies,
    or_empty,
    racing_entry,
)
from raymrc.study.source import Steps, StudyFile
from raymrc.study.space import Setting
from raymrc.study.values import Name, Path, Storage, Text, number


class Spec(Section):
    """A study: the backbones and strategies to compare, the notes, the search, and the storage."""

    study: Name
    """The study's name, and the default name of its MLflow experiment."""
    task: Literal["concepts", "relations", "end_to_end"]
    """What is extracted: `concepts`, the labelled spans of a note; `relations`, between given spans;
    `end_to_end`, relations between predicted spans."""
    corpus: CorpusSpec
    """The notes."""
    transfer: tuple[CorpusSpec, ...] = ()
    """Notes of other sites. Every finished fold-run is scored on them, too; they train and choose nothing.
    `labels` of each corpus map its labels to the study's."""
    folds: Annotated[FoldSpec, or_empty(FoldSpec)] = FoldSpec()
    """Cross-validation."""
    few_shot: FewShot | None = None
    """Training on few notes or mentions instead of all notes of the training folds."""
    final_test: FinalTest | None = None
    """Held-out notes, which train and choose nothing."""
    backbones: tuple[BackboneEntry, ...]
    """The backbones, each a name or a mapping; at least one."""
    strategies: Strategies
    """The strategies to run, each with its own settings; at least one."""
    training: Annotated[Settings, or_empty(Settings)] = Settings()
    """Settings for all strategies; those of a strategy override them."""
    search: Annotated[Search, or_empty(Search)] = Search()
    """How configurations are chosen."""
    racing: Annotated[
        RacingSpec | None,
        BeforeValidator(racing_entry, Literal["none", "paired"] | RacingSpec | None),
    ] = None
    """`none` trains every configuration on every fold, the full grid. `paired`, or a mapping, compares the
    configurations of each cell while they train, fold by fold and epoch by epoch, and stops those that can no
    longer win."""
    questions: Annotated[dict[str, Text], or_empty(dict[str, Text])] = Field(default={})
    """Mapping label: question. The questions replace the built-in ones that hard prompts ask and that soft
    prompts may start from."""
    initial_prompt: Path | None = None
    """A trained adapter (file or folder), whose vectors, by label, start the prompts with
    `prompt_initialisation: adapter`. Backbone, prompt length and prompt layers must be the same."""
    resources: Annotated[Resources, or_empty(Resources)] = Resources()
    """What one host holds."""
    failures: Annotated[Failures, or_empty(Failures)] = Failures()
    """What happens to fold-runs that fail."""
    prices: Annotated[Prices, or_empty(Prices)] = Prices()
    """The price of device time."""
    budget: BudgetSpec | None = None
    """The limit on what the study may spend. It changes no result. Default: no limit."""
    equivalence_points: Annotated[float, number(above=0, high=100)] = 1.0
    """Difference in F1 points that does not matter in practice: `raymrc report` estimates how likely a frozen
    backbone is this close to a trained one."""
    storage: Storage
    """Where the study keeps its ledger and files: a folder, or a URL such as s3://bucket/study."""
    mlflow: Annotated[MlflowSpec, or_empty(MlflowSpec)] = MlflowSpec()
    """Where MLflow keeps the study's runs."""

    _read_from: StudyFile = PrivateAttr()
    _warnings: tuple[str, ...] = PrivateAttr(default=())

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about settings without effect, in file order."""
        return self._warnings

    @property
    def path(self) -> str:
        """The study file, as the user named it."""
        return self._read_from.name

    @property
    def arguments(self) -> str:
        """Command-line arguments that name this study and its overrides, quoted for a shell, without
        passwords."""
        changes = [hide_password(override) for _, override in self._read_from.overrides]
        return shlex.join([self.path, *(part for change in changes for part in ("--set", change))])

    @property
    def num_folds(self) -> int:
        """Fold-runs per configuration: folds times draws of few-shot notes."""
        return self.folds.count * (self.few_shot.draws if self.few_shot else 1)

    @property
    def experiment(self) -> str:
        return self.mlflow.experiment or self.study

    @property
    def folder(self) -> FolderPath:
        """A local folder, also for files that cannot live in an object store, such as MLflow's SQLite."""
        local = self.storage.removeprefix("file://")
        return FolderPath("runs") / self.study if "://" in local else FolderPath(local)

    @property
    def tracking_uri(self) -> str:
        return self.mlflow.tracking_uri or f"sqlite:///{self.folder.absolute() / 'mlflow.db'}"

    def settings(self, backbone: int, strategy: str) -> dict[str, Setting]:
        """The settings of a cell of the backbone with this index in the study file: the backbone's own
        override the strategy's, which override the study's."""
        places = self._given(backbone, strategy)
        return {name: value for _, given in places for name, value in given.items()}

    def place(self, backbone: int, strategy: str, *names: str) -> Steps:
        """The place that decides a cell's settings: the most specific one that gives any of them."""
        places = reversed(self._given(backbone, strategy))
        given = ((*path, name) for path, given in places for name in names if name in given)
        return next(given, ("backbones", backbone))

    def _given(self, backbone: int, strategy: str) -> list[tuple[Steps, dict[str, Setting]]]:
        """The settings of a cell by their place in the study file, from the least specific place on."""
        places: list[tuple[Steps, Settings]] = [
            (("training",), self.training),
            (("strategies", strategy), self.strategies.named()[strategy]),
        ]
        specific = self.backbones[backbone].strategies.named().get(strategy)
        if specific is not None:
            places.append((("backbones", backbone, "strategies", strategy), specific))
        return [(path, settings.given()) for path, settings in places]

    def error(self, path: Steps, sentence: str) -> SpecError:
        """An error at a place of the study file that shows only after loading."""
        return self._read_from.error([(self._read_from.position(path), sentence)])


def study_schema() -> dict[str, Any]:
    """The JSON Schema of a study file, with types, bounds and descriptions."""
    schema = Spec.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema
