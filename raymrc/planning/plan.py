"""What a study will do, before anything starts: cells, configurations, fold-runs, counts.

    Spec (+ corpus, + weights, + ledger) -> Plan

Planning needs neither torch nor Ray, and neither the corpus nor the weights: what cannot be
known without them is left open, and the plan says so.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from raymrc.configuration import (
    MEMORY_SETTINGS,
    PARAMETER_SETTINGS,
    Backbone,
    Cell,
    Configuration,
)
from raymrc.corpora.note import Corpus
from raymrc.ledger.ledger import Ledger
from raymrc.model.adapters import Adapter
from raymrc.model.backbones import read_shape
from raymrc.model.shapes import SHAPES, Shape
from raymrc.model.strategies import STRATEGIES, ParameterCounts, count_parameters
from raymrc.planning.arithmetic import adapter_bytes
from raymrc.planning.devices import GPU_GIB, device_of
from raymrc.planning.fold_runs import Fingerprints, build_fingerprints, fold_run
from raymrc.planning.placement import (
    SPECIAL_PIECES,
    DoesNotFit,
    Placement,
    place,
)
from raymrc.racing.racing import Racing
from raymrc.reading.questions import build_questions
from raymrc.reading.relations import Asked
from raymrc.study.notes import build_study_folds, check_shots, study_labels, study_questions
from raymrc.study.sections import BackboneSpec
from raymrc.study.source import Steps
from raymrc.study.space import Grid, SearchSpace, build_space, effective
from raymrc.study.spec import Spec

DRAWS_IN_VAIN = 10_000
"""After so many draws in a row that were drawn before, a search space is used up."""


@dataclass(frozen=True)
class CellPlan:
    """One cell: its search space and what it will take.

    Args:
        num_configurations: how many will be tried.
        num_fold_runs: configurations times folds.
        configurations: all of them for grid and random; None for tpe, which proposes as it goes.
        shape: of the backbone; None where it is not known yet.
        num_questions: of the task; None where they are not known before the corpus is read.
        parameters: of the largest configuration; None where shape or labels are not known.
        done: fold-runs that the ledger has; None where it cannot be known yet.
        placement: where its fold-runs train; None where shape or labels are not known.
    """

    cell: Cell
    space: SearchSpace
    num_configurations: int
    num_fold_runs: int
    configurations: tuple[Configuration, ...] | None
    shape: Shape | None = None
    num_questions: int | None = None
    parameters: ParameterCounts | None = None
    done: int | None = None
    placement: Placement | None = None

    def holds(self, configuration: Configuration) -> bool:
        """Is this one of those that are tried, or one that tpe might propose?

        A ledger also holds what an earlier form of the study tried in the same cell.
        """
        if self.configurations is not None:
            return configuration in self._planned
        space = self.space
        values = {
            name: getattr(configuration, name) for name in (*space.grids, *space.distributions)
        }
        return (
            all(values[name] in options for name, options in space.grids.items())
            and all(space.distributions[name].holds(values[name]) for name in space.distributions)
            and build_configuration(self, values) == configuration
        )

    @property
    def starts_from_adapter(self) -> bool:
        """Whether soft prompts of its configurations start from `initial_prompt`."""
        return "adapter" in self.space.ends("prompt_initialisation")

    @property
    def longest_window(self) -> int:
        """Pieces."""
        return int(max(self.space.ends("window")))

    @cached_property
    def _planned(self) -> frozenset[Configuration]:
        return frozenset(self.configurations or ())

    @property
    def trained_parameters(self) -> int | None:
        return self.parameters.trained if self.parameters else None

    @property
    def total_parameters(self) -> int | None:
        return self.parameters.total if self.parameters else None

    @property
    def trained_share(self) -> float | None:
        return self.parameters.share if self.parameters else None

    @property
    def adapter_bytes(self) -> int | None:
        return adapter_bytes(self.parameters.trained) if self.parameters else None


@dataclass(frozen=True)
class Plan:
    """A study, worked out.

    Args:
        folds: how many.
        labels: None where they depend on a corpus that is not there.
        num_notes: None where the corpus is not there.
        fingerprints: None until corpus and weights are there.
        remarks: what is still open, a sentence each.
        racing: how configurations of a cell are raced; None: all are trained.
    """

    study: str
    task: str
    corpus: str
    folds: int
    algorithm: str
    seed: int
    cells: tuple[CellPlan, ...]
    labels: tuple[str, ...] | None = None
    num_notes: int | None = None
    fingerprints: Fingerprints | None = None
    remarks: tuple[str, ...] = ()
    racing: Racing | None = None

    @property
    def num_configurations(self) -> int:
        return sum(cell.num_configurations for cell in self.cells)

    @property
    def num_fold_runs(self) -> int:
        return sum(cell.num_fold_runs for cell in self.cells)

    @property
    def done(self) -> int | None:
        """Fold-runs that the ledger has already; None where it cannot be known yet."""
        counts = [cell.done for cell in self.cells]
        return None if None in counts else sum(count or 0 for count in counts)

    def holds(self, configuration: Configuration) -> bool:
        """Does one of the cells hold it (`CellPlan.holds`)?"""
        return _hold(self.cells, configuration)


def _hold(cells: Sequence[CellPlan], configuration: Configuration) -> bool:
    return any(c.cell == configuration.cell and c.holds(configuration) for c in cells)


def plan_study(
    spec: Spec,
    corpus: Corpus | None = None,
    weights: Mapping[str, str] | None = None,
    ledger: Ledger | None = None,
    *,
    transfer: Mapping[str, Corpus] | None = None,
    initial_prompt: Adapter | None = None,
    places: bool = True,
) -> Plan:
    """Work out a study's cells, configurations and fold-runs.

    Args:
        corpus: as `read_study_corpus` gives it; None where the files are not at hand.
        weights: by name of the backbone, `weights_fingerprint` of what its source holds.
        ledger: counts what is done already; needs corpus and weights, and what transfer is scored on.
        transfer: as `read_transfer` gives it; None where the files are not at hand.
        initial_prompt: as `read_initial_prompt` gives it; None where the file is not at hand.
        places: False: where fold-runs would train is left open, as for a report on another machine.

    Raises:
        CorpusError: notes that cannot fill the folds.
        SpecError: a first layer that the backbone does not have, a window that does not fit it,
            a question for a label that the corpus does not have, an initial prompt of another form
            or of other labels alone, a cell that no number of devices holds or more of them than the
            study allows.
        BackboneError: a backbone's folder whose config cannot be read, or not the one that the initial
            prompt was trained on.
    """
    labels = corpus.labels if corpus is not None else study_labels(spec)
    asked = study_questions(spec, corpus)
    if asked is not None:
        build_questions(asked.labels, spec.questions, asked.relations)
    fingerprints = None
    if corpus is not None:
        folds = build_study_folds(spec, corpus)  # whether they can be made is told in any case
        check_shots(spec, corpus, folds)
        if weights is not None and (transfer is not None or not spec.transfer):
            fingerprints = build_fingerprints(
                spec, corpus, folds, weights, transfer or {}, initial_prompt
            )
    remarks: list[str] = []
    if corpus is None:
        unknown = "" if asked is not None else "; labels and trained shares are not known before"
        remarks.append(f"the corpus was not read{unknown}")
    cells = []
    for index, entry in enumerate(spec.backbones):
        shape = find_shape(entry.backbone)
        if shape is None:
            remarks.append(
                f"the shape of {entry.backbone.name} is not known before its weights are here"
            )
        few: tuple[int | None, ...] = spec.few_shot.shots if spec.few_shot else (None,)
        for strategy, shots in product(spec.strategies.named(), few):
            planned = _plan_cell(spec, index, entry, strategy, shots, shape, asked)
            if initial_prompt is not None and planned.starts_from_adapter:
                _check_initial_prompt(spec, index, planned, initial_prompt, weights or {})
            cells.append(_placed(spec, index, planned) if places else planned)
    if spec.final_test is not None:
        number = len(cells) * len(spec.final_test.seeds)
        remarks.append(f"raymrc test will train {number} more, one a cell and seed, on all notes")
    if spec.racing is not None:
        raced = any(cell.num_configurations > 1 for cell in cells)
        remarks.append(
            "the table has the most that is trained: with racing, who can no longer win is stopped"
            if raced
            else "racing has no effect: no cell has more than one configuration"
        )
    if any(cell.starts_from_adapter for cell in cells):
        remarks += _about_initial_prompt(spec, initial_prompt, asked)
        if initial_prompt is None:
            fingerprints = None
    resources = spec.resources
    if (
        resources.gpus_per_host
        and resources.device_memory is None
        and any(cell.placement for cell in cells)
    ):
        remarks.append(
            f"GPUs are taken to have {GPU_GIB:g} GiB; set resources.device_memory if they do not"
        )
    if fingerprints is not None and ledger is not None:
        cells = _count_done(cells, spec, fingerprints, ledger)
    return Plan(
        study=spec.study,
        task=spec.task,
        corpus=spec.corpus.display_name,
        folds=spec.num_folds,
        algorithm=spec.search.algorithm,
        seed=spec.search.seed,
        cells=tuple(cells),
        labels=labels,
        num_notes=len(corpus.notes) if corpus is not None else None,
        fingerprints=fingerprints,
        remarks=tuple(remarks),
        racing=build_racing(spec),
    )


def build_racing(spec: Spec) -> Racing | None:
    """How the study races the configurations of a cell; None where it trains all of them."""
    race = spec.racing
    return None if race is None else Racing(race.error_rate, race.rungs, race.min_folds)


# --- one cell -------------------------------------------------------------------------------------


def build_configuration(cell_plan: CellPlan, values: Mapping[str, Any]) -> Configuration:
    """One point of a cell's search space.

    Args:
        values: by field name, one for every grid and distribution of the cell; drawn numbers
            are rounded to four significant digits, so that equal ones have equal keys.
    """
    return _configuration(cell_plan.cell, cell_plan.space, values)


def _configuration(cell: Cell, space: SearchSpace, values: Mapping[str, Any]) -> Configuration:
    open_fields = {*space.grids, *space.distributions}
    assert set(values) == open_fields, f"wanted {sorted(open_fields)}, got {sorted(values)}"
    tidied = {
        name: space.distributions[name].tidy(value) if name in space.distributions else value
        for name, value in values.items()
    }
    return Configuration(cell=cell, **space.fixed, **tidied)


def find_shape(backbone: Backbone) -> Shape | None:
    """Layers, hidden size and the rest, where our table or a folder knows them; nothing is fetched."""
    if backbone.source not in SHAPES and (Path(backbone.source) / "config.json").is_file():
        return read_shape(Path(backbone.source), backbone.layers)
    base = backbone.name.removesuffix(f"-l{backbone.layers}")
    known = SHAPES.get(backbone.source, SHAPES.get(base))
    return known.first(backbone.layers) if known is not None else None


def _plan_cell(
    spec: Spec,
    index: int,
    entry: BackboneSpec,
    strategy: str,
    shots: int | None,
    shape: Shape | None,
    asked: Asked | None,
) -> CellPlan:
    counted = spec.few_shot.shots_of if spec.few_shot else "notes"
    cell = Cell(spec.task, spec.corpus.display_name, entry.backbone, strategy, shots, counted)
    space = build_space(effective(spec.settings(entry, strategy), strategy, spec.task))
    if shape is not None:
        _check_fit(spec, index, strategy, space, shape)
    configurations = _configurations(spec, cell, space)
    count = len(configurations) if configurations is not None else _how_many(spec, space)
    parameters = None
    if shape is not None and asked is not None:
        parameters = max(
            (
                count_parameters(c, shape, len(asked.labels), len(asked.relations))
                for c in configurations or _corners(cell, space, PARAMETER_SETTINGS)
            ),
            key=lambda p: p.trained,
        )
    return CellPlan(
        cell=cell,
        space=space,
        num_configurations=count,
        num_fold_runs=count * spec.num_folds,
        configurations=configurations,
        shape=shape,
        num_questions=len(asked) if asked is not None else None,
        parameters=parameters,
    )


def _placed(spec: Spec, index: int, plan: CellPlan) -> CellPlan:
    """With a placement, where enough is known for one."""
    if plan.shape is None or plan.num_questions is None:
        return plan
    resources = spec.resources
    try:
        placement = place(
            plan.configurations or _corners(plan.cell, plan.space, MEMORY_SETTINGS),
            plan.shape,
            plan.num_questions,
            device_of(resources),
            lanes=resources.lanes_per_host,
            workers=(resources.workers.min, resources.workers.max) if resources.workers else None,
        )
    except DoesNotFit as reason:
        given = [name for name in ("workers", "device_memory") if getattr(resources, name)]
        at: Steps = ("resources", given[0]) if given else ("backbones", index)
        raise spec.error(at, str(reason)) from None
    return replace(plan, placement=placement)


def _check_initial_prompt(
    spec: Spec, index: int, plan: CellPlan, adapter: Adapter, weights: Mapping[str, str]
) -> None:
    """Refuse prompts of another form than those of a cell that is to start from them."""
    given = adapter.configuration
    trained_by = STRATEGIES.get(adapter.strategy)
    if trained_by is None or trained_by.asks != "vectors":
        raise spec.error(
            ("initial_prompt",),
            f"initial_prompt: {adapter.place} was trained by {adapter.strategy}, which has no soft "
            "prompt; give an adapter of soft_prompt or frozen_soft_prompt",
        )
    for name in ("prompt_length", "prompt_depth", "first_layer"):
        for wanted in plan.space.ends(name):
            if wanted != given[name]:
                raise spec.error(
                    _place(spec, index, plan.cell.strategy, name),
                    f"{name}: {wanted} is not that of the initial prompt {adapter.place}, "
                    f"{given[name]}",
                )
    backbone = plan.cell.backbone
    layers = given["cell"]["backbone"]["layers"]
    if layers != backbone.layers:
        shown = ["all" if number is None else str(number) for number in (layers, backbone.layers)]
        raise spec.error(
            ("backbones", index),
            f"the initial prompt {adapter.place} was trained on {shown[0]} layers of "
            f"{adapter.backbone}, and {backbone.name} has {shown[1]}",
        )
    if backbone.name in weights:
        adapter.check_backbone(weights[backbone.name])


def _about_initial_prompt(
    spec: Spec, adapter: Adapter | None, asked: Asked | None
) -> Iterator[str]:
    """What whoever starts from a trained prompt should know."""
    if adapter is None:
        yield f"initial_prompt {spec.initial_prompt} is not here; whether it fits was not looked at"
        return
    if asked is not None:
        absent = [name for name in asked.names if name not in adapter.names]
        if len(absent) == len(asked):
            raise spec.error(
                ("initial_prompt",),
                f"initial_prompt: {adapter.place} has prompts for {', '.join(adapter.names)}, and "
                f"the study asks for {', '.join(absent)}; none would start from it",
            )
        if absent:
            yield f"the initial prompt lacks {', '.join(absent)}, which start at random"


REPRESENTATIVES = 12
"""Configurations that stand for those that tpe will propose."""


def representatives(plan: CellPlan, seed: int) -> tuple[Configuration, ...]:
    """All configurations of a cell; where tpe proposes them, some drawn at random.

    Args:
        seed: of the search.
    """
    if plan.configurations is not None:
        return plan.configurations
    generator = random.Random(f"{seed}/{plan.cell.name}")
    return tuple(
        _configuration(plan.cell, plan.space, plan.space.draw(generator))
        for _ in range(REPRESENTATIVES)
    )


def _how_many(spec: Spec, space: SearchSpace) -> int:
    size = space.size
    return spec.search.configurations if size is None else min(spec.search.configurations, size)


def _configurations(spec: Spec, cell: Cell, space: SearchSpace) -> tuple[Configuration, ...] | None:
    if spec.search.algorithm == "grid":
        return tuple(_configuration(cell, space, values) for values in space.grid())
    if spec.search.algorithm == "tpe":
        return None
    # Seeded by the cell's name: a new backbone or a larger search leaves the earlier draws alone.
    generator = random.Random(f"{spec.search.seed}/{cell.name}")
    drawn: dict[Configuration, None] = {}
    wanted, in_vain = _how_many(spec, space), 0
    # A narrow range has fewer different values than it seems, once they are rounded.
    while len(drawn) < wanted and in_vain < DRAWS_IN_VAIN:
        before = len(drawn)
        drawn.setdefault(_configuration(cell, space, space.draw(generator)))
        in_vain = 0 if len(drawn) > before else in_vain + 1
    return tuple(drawn)


def _corners(cell: Cell, space: SearchSpace, sized: Sequence[str]) -> Iterator[Configuration]:
    """Configurations at the ends of the ranges, among them the largest one.

    Args:
        sized: settings that it is large by.
    """
    # Only what changes a count is combined; the rest stays at its first value.
    ends = {
        name: space.ends(name) if name in sized else space.ends(name)[:1]
        for name in (*space.grids, *space.distributions)
    }
    for values in build_space({name: Grid(options) for name, options in ends.items()}).grid():
        yield _configuration(cell, space, values)


def _check_fit(spec: Spec, index: int, strategy: str, space: SearchSpace, shape: Shape) -> None:
    """Refuse what the backbone cannot hold. How long worded questions are, only its tokenizer knows."""
    name = spec.backbones[index].backbone.name
    window = max(space.ends("window"))
    if window + SPECIAL_PIECES > shape.max_pieces:
        most = shape.max_pieces - SPECIAL_PIECES
        raise spec.error(
            _place(spec, index, strategy, "window"),
            f"a window of {window} pieces does not fit {name}, which reads {shape.max_pieces}; "
            f"set window to {most} or less",
        )
    first_layer = max(space.ends("first_layer"))
    if first_layer >= shape.num_layers:
        raise spec.error(
            _place(spec, index, strategy, "first_layer"),
            f"{name} has no layer {first_layer}; its layers are 0 to {shape.num_layers - 1}",
        )


def _place(spec: Spec, index: int, strategy: str, name: str) -> Steps:
    """Where a cell's setting was written down: the nearest of the three places."""
    own = spec.backbones[index].strategies.named().get(strategy)
    if own is not None and name in own.given():
        return ("backbones", index, "strategies", strategy, name)
    if name in spec.strategies.named()[strategy].given():
        return ("strategies", strategy, name)
    return ("training", name) if name in spec.training.given() else ("backbones", index)


# --- against the ledger ---------------------------------------------------------------------------


def _count_done(
    cells: list[CellPlan], spec: Spec, fingerprints: Fingerprints, ledger: Ledger
) -> list[CellPlan]:
    """How many of each cell's fold-runs the ledger has.

    Grid and random know their keys. What tpe will propose is not known, so all that it finished in
    the cell on the same notes, folds and weights counts.
    """
    keys = ledger.keys()
    finished: dict[Cell, int] = {}
    if any(cell.configurations is None for cell in cells):
        for record in ledger.records():
            run = record.fold_run
            cell = run.configuration.cell
            if (
                record.status == "done"
                and _hold(cells, run.configuration)
                and run == fold_run(run.configuration, run.fold, fingerprints)
            ):
                finished[cell] = finished.get(cell, 0) + 1
    counted = []
    for plan in cells:
        if plan.configurations is None:
            done = min(finished.get(plan.cell, 0), plan.num_fold_runs)
        else:
            done = sum(
                fold_run(configuration, fold, fingerprints).key in keys
                for configuration in plan.configurations
                for fold in range(spec.num_folds)
            )
        counted.append(replace(plan, done=done))
    return counted
