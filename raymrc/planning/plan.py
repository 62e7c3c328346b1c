"""What a study will do before anything starts: cells, configurations, fold-runs, counts.

    LoadedStudy (+ ledger) -> Plan

Planning needs neither torch nor Ray. What depends on a corpus or weights that are not on this machine stays
open, and the plan's remarks say so.
"""

from __future__ import annotations

import os
import random
from collections import Counter
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
from raymrc.ledger.ledger import Ledger
from raymrc.model.adapters import Adapter
from raymrc.model.backbones import read_shape
from raymrc.model.shapes import SHAPES, Shape
from raymrc.model.strategies import STRATEGIES, ParameterCounts, count_parameters
from raymrc.planning.defaults import with_defaults
from raymrc.planning.devices import GIB, GPU_GIB, MEMORY_SHARE, Device, machine_bytes
from raymrc.planning.fold_runs import Fingerprints, fold_run
from raymrc.planning.loaded import LoadedStudy
from raymrc.planning.placement import SPECIAL_PIECES, DoesNotFit, Placement, place
from raymrc.racing.racing import Racing
from raymrc.study.sections import Resources
from raymrc.study.source import Steps
from raymrc.study.space import Grid, SearchSpace, build_space, effective
from raymrc.study.spec import Spec

MAX_REPEATED_DRAWS = 10_000
"""A search space is exhausted after this many consecutive draws that repeat earlier ones."""

NUM_REPRESENTATIVES = 12
"""Random configurations that stand for those that tpe will propose."""


@dataclass(frozen=True)
class CellPlan:
    """One cell: its search space and what training it takes.

    Args:
        num_fold_runs: configurations times folds.
        configurations: all of them for grid and random; None for tpe, which proposes them one by one.
        shape: of the backbone; None if unknown.
        num_questions: of the task; None if they depend on a corpus that is not here.
        parameters: of the largest configuration; None if shape or labels are unknown.
        done: fold-runs in the ledger; None if keys are unknown.
        placement: where its fold-runs train; None if shape or labels are unknown.
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
        """Whether the cell tries this configuration, or tpe could propose it.

        A ledger also holds configurations of earlier versions of the study file.
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
            and build_configuration(self.cell, space, values) == configuration
        )

    @property
    def starts_from_adapter(self) -> bool:
        """Whether soft prompts of its configurations start from `initial_prompt`."""
        return "adapter" in self.space.ends("prompt_initialisation")

    @cached_property
    def _planned(self) -> frozenset[Configuration]:
        return frozenset(self.configurations or ())

    @property
    def adapter_bytes(self) -> int | None:
        """Size of the trained numbers in fp32, without the file's header."""
        return 4 * self.parameters.trained if self.parameters else None


@dataclass(frozen=True)
class Plan:
    """The plan of a study.

    Args:
        folds: fold-runs per configuration.
        labels: None if they depend on a corpus that is not here.
        num_notes: None if the corpus is not here.
        fingerprints: None unless corpus, other sites, weights and initial prompt are here.
        remarks: sentences about what is still open.
        racing: how configurations of a cell are raced; None trains all of them.
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
        """Fold-runs in the ledger; None if keys are unknown."""
        counts = [cell.done for cell in self.cells]
        return None if None in counts else sum(count or 0 for count in counts)

    def holds(self, configuration: Configuration) -> bool:
        """Whether one of the cells tries this configuration; see `CellPlan.holds`."""
        return any(c.cell == configuration.cell and c.holds(configuration) for c in self.cells)


def plan_study(study: LoadedStudy, ledger: Ledger | None = None, *, places: bool = True) -> Plan:
    """Work out a study's cells, configurations and fold-runs.

    Args:
        ledger: to count finished fold-runs in.
        places: whether to decide where fold-runs train; a report on another machine does not need it.

    Raises:
        CorpusError: the notes cannot fill the folds.
        SpecError: the study contradicts its inputs: a layer that the backbone lacks, a window that does not
            fit it, a question for an unknown label, an initial prompt of another form or for other labels, a
            cell that does not fit the devices that the study allows.
        BackboneError: the config in a backbone's folder cannot be read, or is of another backbone than the
            initial prompt's.
    """
    spec, questions, fingerprints = study.spec, study.questions, study.fingerprints
    remarks: list[str] = []
    if study.corpus is None:
        unknown = "" if questions is not None else "; labels and trained shares depend on it"
        remarks.append(f"the corpus was not read{unknown}")
    cells = []
    shots: tuple[int | None, ...] = spec.few_shot.shots if spec.few_shot else (None,)
    for index, entry in enumerate(spec.backbones):
        shape = find_shape(entry.backbone)
        if shape is None:
            name = entry.backbone.name
            remarks.append(f"the shape of {name} is unknown until its weights are on this machine")
        for strategy, number in product(spec.strategies.named(), shots):
            planned = _plan_cell(study, index, strategy, number, shape)
            if study.initial_prompt is not None and planned.starts_from_adapter:
                _check_initial_prompt(study, index, planned, study.initial_prompt)
            cells.append(_placed(spec, index, planned) if places else planned)
    remarks += _remarks(study, cells)
    if study.initial_prompt is None and any(cell.starts_from_adapter for cell in cells):
        fingerprints = None
    plan = Plan(
        study=spec.study,
        task=spec.task,
        corpus=spec.corpus.display_name,
        folds=spec.num_folds,
        algorithm=spec.search.algorithm,
        seed=spec.search.seed,
        cells=tuple(cells),
        labels=study.labels,
        num_notes=len(study.corpus.notes) if study.corpus is not None else None,
        fingerprints=fingerprints,
        remarks=tuple(remarks),
        racing=build_racing(spec),
    )
    if fingerprints is None or ledger is None:
        return plan
    return replace(plan, cells=_count_done(plan, fingerprints, ledger))


def build_racing(spec: Spec) -> Racing | None:
    """How the study races the configurations of a cell; None if it trains all of them."""
    race = spec.racing
    return None if race is None else Racing(race.error_rate, race.rungs, race.min_folds)


def _remarks(study: LoadedStudy, cells: Sequence[CellPlan]) -> Iterator[str]:
    spec, resources = study.spec, study.spec.resources
    if spec.final_test is not None:
        number = len(cells) * len(spec.final_test.seeds)
        yield f"raymrc test will train {number} more fold-runs, one per cell and seed, on all notes"
    if spec.racing is not None:
        yield (
            "the table shows the maximum: racing stops configurations that can no longer win"
            if any(cell.num_configurations > 1 for cell in cells)
            else "racing has no effect: no cell has more than one configuration"
        )
    if any(cell.starts_from_adapter for cell in cells):
        yield from _about_initial_prompt(study)
    if (
        resources.gpus_per_host
        and resources.device_memory is None
        and any(cell.placement for cell in cells)
    ):
        yield f"assuming GPUs with {GPU_GIB:g} GiB; set resources.device_memory if they differ"


# --- one cell -------------------------------------------------------------------------------------


def build_configuration(cell: Cell, space: SearchSpace, values: Mapping[str, Any]) -> Configuration:
    """One point of a cell's search space.

    Args:
        values: one for every grid and distribution of the space, by name. Drawn numbers are rounded to four
            significant digits, so that equal configurations have equal keys.
    """
    open_fields = {*space.grids, *space.distributions}
    assert set(values) == open_fields, f"wanted {sorted(open_fields)}, got {sorted(values)}"
    tidied = {
        name: space.distributions[name].tidy(value) if name in space.distributions else value
        for name, value in values.items()
    }
    return _in_parts(Configuration(cell=cell, **space.fixed, **tidied))


def _in_parts(configuration: Configuration) -> Configuration:
    """The configuration with a duration's epochs as its `epochs`, and with at most one part per step."""
    limit = configuration.limit
    if limit.unit == "epochs":
        duration = str(limit) if limit.at_least else None
        return replace(configuration, epochs=int(limit.amount), duration=duration)
    if limit.unit == "steps":
        return replace(configuration, epochs=min(configuration.epochs, int(limit.amount)))
    return configuration


def find_shape(backbone: Backbone) -> Shape | None:
    """The backbone's shape, if our table or a local folder has it; nothing is downloaded."""
    if backbone.source not in SHAPES and (Path(backbone.source) / "config.json").is_file():
        return read_shape(Path(backbone.source), backbone.layers)
    base = backbone.name.removesuffix(f"-l{backbone.layers}")
    known = SHAPES.get(backbone.source, SHAPES.get(base))
    return known.first(backbone.layers) if known is not None else None


def _plan_cell(
    study: LoadedStudy, index: int, strategy: str, shots: int | None, shape: Shape | None
) -> CellPlan:
    spec, asked, entry = study.spec, study.asked, study.spec.backbones[index]
    counted = spec.few_shot.shots_of if spec.few_shot else "notes"
    cell = Cell(spec.task, spec.corpus.display_name, entry.backbone, strategy, shots, counted)
    settings = spec.settings(index, strategy)
    settings = with_defaults(settings, strategy, shape)
    if "learning_rate" not in settings:
        raise spec.error(
            ("strategies", strategy),
            f"strategy {strategy} has no learning_rate, and the size of {entry.backbone.name} is unknown "
            "until its weights are on this machine; give a rate here or under training",
        )
    space = build_space(effective(settings, strategy, spec.task))
    if shape is not None:
        _check_fit(spec, index, strategy, space, shape)
    configurations = _configurations(spec, cell, space)
    count = len(configurations) if configurations is not None else _max_configurations(spec, space)
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
    """The cell with its placement, if shape and questions are known."""
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


def device_of(resources: Resources) -> Device:
    """The GPU, share of a GPU, or group of cores that one host holds."""
    if resources.gpus_per_host:
        gib = GPU_GIB if resources.device_memory is None else resources.device_memory
        return Device("gpu", gib * GIB * min(resources.gpus_per_host, 1.0))
    if resources.device_memory is not None:
        return Device("cpu", resources.device_memory * GIB)
    hosts_at_once = max(1.0, (os.cpu_count() or 1) / max(resources.cpus_per_host, 1.0))
    return Device("cpu", MEMORY_SHARE * machine_bytes() / hosts_at_once)


def _configurations(spec: Spec, cell: Cell, space: SearchSpace) -> tuple[Configuration, ...] | None:
    if spec.search.algorithm == "grid":
        return tuple(build_configuration(cell, space, values) for values in space.grid())
    if spec.search.algorithm == "tpe":
        return None
    # Seeded by the cell's name: a new backbone or a larger search does not change earlier draws.
    generator = random.Random(f"{spec.search.seed}/{cell.name}")
    drawn: dict[Configuration, None] = {}
    wanted, repeated = _max_configurations(spec, space), 0
    # After rounding, a narrow range has fewer values than its size says.
    while len(drawn) < wanted and repeated < MAX_REPEATED_DRAWS:
        before = len(drawn)
        drawn.setdefault(build_configuration(cell, space, space.draw(generator)))
        repeated = 0 if len(drawn) > before else repeated + 1
    return tuple(drawn)


def _max_configurations(spec: Spec, space: SearchSpace) -> int:
    size = space.size
    return spec.search.configurations if size is None else min(spec.search.configurations, size)


def representatives(plan: CellPlan, seed: int) -> tuple[Configuration, ...]:
    """All configurations of a cell, or random ones if tpe proposes them; `seed` is the search's."""
    if plan.configurations is not None:
        return plan.configurations
    generator = random.Random(f"{seed}/{plan.cell.name}")
    return tuple(
        build_configuration(plan.cell, plan.space, plan.space.draw(generator))
        for _ in range(NUM_REPRESENTATIVES)
    )


def _corners(cell: Cell, space: SearchSpace, sized: Sequence[str]) -> Iterator[Configuration]:
    """Configurations at the ends of the ranges of `sized` settings, among them the largest one."""
    ends = {
        name: space.ends(name) if name in sized else space.ends(name)[:1]
        for name in (*space.grids, *space.distributions)
    }
    for values in build_space({name: Grid(options) for name, options in ends.items()}).grid():
        yield build_configuration(cell, space, values)


def _check_fit(spec: Spec, index: int, strategy: str, space: SearchSpace, shape: Shape) -> None:
    """Refuse windows and layers that the backbone does not have.

    Only a tokenizer knows the length of questions in words; training checks it.
    """
    name = spec.backbones[index].backbone.name
    window = max(space.ends("window"))
    if window + SPECIAL_PIECES > shape.max_pieces:
        most = shape.max_pieces - SPECIAL_PIECES
        raise spec.error(
            spec.place(index, strategy, "window"),
            f"a window of {window} pieces does not fit {name}, which reads {shape.max_pieces}; "
            f"set window to {most} or less",
        )
    first_layer = max(space.ends("first_layer"))
    if first_layer >= shape.num_layers:
        raise spec.error(
            spec.place(index, strategy, "first_layer"),
            f"{name} has no layer {first_layer}; its layers are 0 to {shape.num_layers - 1}",
        )


# --- prompts that start from an adapter -----------------------------------------------------------


def _check_initial_prompt(study: LoadedStudy, index: int, plan: CellPlan, adapter: Adapter) -> None:
    """Refuse an adapter whose prompts have another form than the cell's."""
    spec, given = study.spec, adapter.configuration
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
                    spec.place(index, plan.cell.strategy, name),
                    f"{name}: {wanted} differs from {given[name]} of the initial prompt {adapter.place}",
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
    if study.weights and backbone.name in study.weights:
        adapter.check_backbone(study.weights[backbone.name])


def _about_initial_prompt(study: LoadedStudy) -> Iterator[str]:
    adapter, asked, place = study.initial_prompt, study.asked, study.spec.initial_prompt
    if adapter is None:
        yield f"initial_prompt {place} is not on this machine; it was not checked"
    elif asked is not None:
        absent = [name for name in asked.names if name not in adapter.names]
        if len(absent) == len(asked):
            raise study.spec.error(
                ("initial_prompt",),
                f"initial_prompt: {adapter.place} has prompts for {', '.join(adapter.names)}, but "
                f"the study asks for {', '.join(absent)}; no prompt would start from it",
            )
        if absent:
            yield f"the initial prompt lacks {', '.join(absent)}, which start at random"


# --- against the ledger ---------------------------------------------------------------------------


def _count_done(plan: Plan, fingerprints: Fingerprints, ledger: Ledger) -> tuple[CellPlan, ...]:
    """The cells with their finished fold-runs.

    Grid and random know their keys. For tpe, every finished fold-run of the cell on the same notes, folds and
    weights counts.
    """
    keys = ledger.keys()
    finished: Counter[Cell] = Counter()
    if any(cell.configurations is None for cell in plan.cells):
        runs = [record.fold_run for record in ledger.records() if record.is_done]
        finished.update(
            run.configuration.cell
            for run in runs
            if plan.holds(run.configuration)
            and run == fold_run(run.configuration, run.fold, fingerprints)
        )

    def count(cell: CellPlan) -> int:
        if cell.configurations is None:
            return min(finished[cell.cell], cell.num_fold_runs)
        return sum(
            fold_run(configuration, fold, fingerprints).key in keys
            for configuration, fold in product(cell.configurations, range(plan.folds))
        )

    return tuple(replace(cell, done=count(cell)) for cell in plan.cells)
