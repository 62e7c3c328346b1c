"""Checks across the sections of a study file, and warnings about settings without effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from raymrc.corpora.formats import known_labels
from raymrc.errors import CorpusError, suggest
from raymrc.model.strategies import STRATEGIES
from raymrc.study.source import Steps
from raymrc.study.space import (
    Distribution,
    SearchSpace,
    Setting,
    build_space,
    options,
    without_effect,
)

if TYPE_CHECKING:
    from raymrc.study.sections import (
        BackboneSpec,
        BudgetSpec,
        CorpusSpec,
        Prices,
        Search,
        Settings,
        Strategies,
    )
    from raymrc.study.spec import Spec


class StudyFileProblem(NamedTuple):
    """A sentence about a field's name or value in the study file."""

    path: Steps
    sentence: str
    at_name: bool = False


def across(sections: Mapping[str, Any]) -> Iterator[StudyFileProblem]:
    """Problems between sections.

    Args:
        sections: without those that have problems of their own.
    """
    backbones: Sequence[BackboneSpec] | None = sections.get("backbones")
    strategies: Strategies | None = sections.get("strategies")
    training: Settings | None = sections.get("training")
    if backbones is not None:
        yield from _enough_backbones(backbones)
    if strategies is not None and not strategies.named():
        names = ", ".join(STRATEGIES)
        yield StudyFileProblem(("strategies",), f"strategies: name at least one of {names}")
    if strategies is not None and backbones is not None and training is not None:
        yield from _merged(backbones, strategies, training)
        if "initial_prompt" in sections and sections["initial_prompt"] is None:
            for path, setting in _all_settings(training, strategies, backbones):
                if path[-1] == "prompt_initialisation" and "adapter" in options(setting):
                    yield StudyFileProblem(
                        path,
                        "prompt_initialisation: adapter needs a trained prompt; give its file as "
                        "initial_prompt",
                    )
    search: Search | None = sections.get("search")
    if search is not None and search.algorithm == "grid":
        for path, setting in _all_settings(training, strategies, backbones or ()):
            if isinstance(setting, Distribution):
                yield StudyFileProblem(
                    path,
                    f"{path[-1]}: {setting.kind} is a range and a grid has points; give a list, "
                    "or set search.algorithm to random or tpe",
                )
    if sections.get("final_test") and sections.get("few_shot"):
        sentence = "a final test trains on all notes, and few_shot on few; remove one of them"
        yield StudyFileProblem(("final_test",), sentence, True)
    budget: BudgetSpec | None = sections.get("budget")
    prices: Prices | None = sections.get("prices")
    if budget and budget.usd is not None and prices is not None and not prices.device_hour_usd:
        sentence = "usd: device time has no price; set prices.device_hour_usd, or limit gpu_hours"
        yield StudyFileProblem(("budget", "usd"), sentence, True)
    corpus: CorpusSpec | None = sections.get("corpus")
    if corpus is not None:
        # Names of relation questions depend on the corpus.
        asks_labels = sections.get("task", "concepts") == "concepts"
        yield from _labels(corpus, (sections.get("questions") or {}) if asks_labels else {})


def no_effect(spec: Spec) -> Iterator[StudyFileProblem]:
    """Settings that change nothing; they are warnings."""
    named = spec.strategies.named()
    for path, _ in _all_settings(spec.training, spec.strategies, spec.backbones):
        name = str(path[-1])
        if path[0] == "training":
            if all(name in without_effect(strategy, spec.task) for strategy in named):
                yield StudyFileProblem(
                    path, f"{name} has no effect under any strategy of this study", True
                )
            elif all(name in settings.given() for settings in named.values()):
                yield StudyFileProblem(
                    path, f"{name} has no effect: every strategy sets its own", True
                )
        elif (strategy := str(path[-2])) not in named:
            yield StudyFileProblem(path[:-1], f"strategy {strategy} is not run by this study", True)
        elif reason := without_effect(strategy, spec.task).get(name):
            yield StudyFileProblem(path, f"{name} has no effect under {strategy}: {reason}", True)
    if spec.search.algorithm == "grid" and "configurations" in spec.search.model_fields_set:
        sentence = "configurations has no effect: a grid tries every combination"
        yield StudyFileProblem(("search", "configurations"), sentence, True)
    starts = _initialisations(spec)
    if spec.questions and "hard_prompt" not in named and "question" not in starts:
        yield StudyFileProblem(
            ("questions",),
            "questions have no effect: hard_prompt is not run, and no prompt starts from a question",
            True,
        )
    if spec.initial_prompt is not None and "adapter" not in starts:
        yield StudyFileProblem(
            ("initial_prompt",),
            "initial_prompt has no effect: no prompt_initialisation is adapter",
            True,
        )


def _initialisations(spec: Spec) -> set[Any]:
    """What the soft prompts of a study start from."""
    return {
        option
        for entry in spec.backbones
        for strategy in spec.strategies.named()
        if STRATEGIES[strategy].asks == "vectors"
        for option in build_space(spec.settings(entry, strategy)).ends("prompt_initialisation")
    }


def _enough_backbones(backbones: Sequence[BackboneSpec]) -> Iterator[StudyFileProblem]:
    if not backbones:
        yield StudyFileProblem(("backbones",), "backbones: give at least one, such as minilm")
    seen: set[str] = set()
    for index, entry in enumerate(backbones):
        name = entry.backbone.name
        if name in seen:
            yield StudyFileProblem(
                ("backbones", index),
                f"backbone '{name}' is given twice; remove one, or give it a name and its source",
            )
        seen.add(name)


def _merged(
    backbones: Sequence[BackboneSpec], strategies: Strategies, training: Settings
) -> Iterator[StudyFileProblem]:
    """Settings that a cell lacks, or that contradict each other once merged."""
    for index, backbone in enumerate(backbones):
        own = backbone.strategies.named()
        for strategy, settings in strategies.named().items():
            places: list[tuple[Steps, dict[str, Setting]]] = [
                (("training",), training.given()),
                (("strategies", strategy), settings.given()),
            ]
            if strategy in own:
                places.append((("backbones", index, "strategies", strategy), own[strategy].given()))
            merged = {name: value for _, given in places for name, value in given.items()}
            if "learning_rate" not in merged:
                yield StudyFileProblem(
                    ("strategies", strategy),
                    f"strategy {strategy} has no learning_rate; give one here or under training",
                    True,
                )
            space = build_space(merged)
            if STRATEGIES[strategy].asks == "vectors":
                yield from _starts(space, places)
            window, overlap = min(space.ends("window")), max(space.ends("overlap"))
            if overlap >= window:
                place = _nearest(places, "overlap", "window")
                yield StudyFileProblem(
                    place,
                    f"{place[-1]}: an overlap of {overlap} pieces does not fit a window of {window}; "
                    "reduce overlap or enlarge window",
                )


def _starts(
    space: SearchSpace, places: Sequence[tuple[Steps, dict[str, Setting]]]
) -> Iterator[StudyFileProblem]:
    """A prompt whose vectors a network computes cannot start from given vectors."""
    starts = [start for start in space.ends("prompt_initialisation") if start != "random"]
    networks = [network for network in space.ends("reparametrisation") if network != "none"]
    if starts and networks:
        yield StudyFileProblem(
            _nearest(places, "prompt_initialisation", "reparametrisation"),
            f"prompt_initialisation: {starts[0]} gives a prompt its vectors, and reparametrisation "
            f"{networks[0]} computes them; remove one of the two",
        )


def _nearest(places: Sequence[tuple[Steps, dict[str, Setting]]], *names: str) -> Steps:
    """The place that decides these settings: the most specific one that gives any of them."""
    return next(
        (*path, name) for path, given in reversed(places) for name in names if name in given
    )


def _all_settings(
    training: Settings | None, strategies: Strategies | None, backbones: Sequence[BackboneSpec]
) -> Iterator[tuple[Steps, Setting]]:
    """Every setting in the study file, with its place."""
    if training is not None:
        for name, setting in training.given().items():
            yield ("training", name), setting
    groups: list[tuple[Steps, Strategies]] = [(("strategies",), strategies)] if strategies else []
    for index, entry in enumerate(backbones):
        groups.append((("backbones", index, "strategies"), entry.strategies))
    for path, group in groups:
        for strategy, settings in group.named().items():
            for name, setting in settings.given().items():
                yield (*path, strategy, name), setting


def _labels(corpus: CorpusSpec, questions: Mapping[str, str]) -> Iterator[StudyFileProblem]:
    """Labels and questions that the reader's label set lacks, if it is known without reading notes."""
    labels: Any = corpus.labels
    try:
        known = known_labels(corpus.label_reader, labels)
    except CorpusError as error:
        for problem in error.problems:
            # The sentence names the label; its place is the label's item in the file.
            steps = (
                enumerate(labels) if isinstance(labels, tuple) else zip(labels, labels, strict=True)
            )
            at = [step for step, label in steps if f"labels: {label!r} " in problem]
            yield StudyFileProblem(
                ("corpus", "labels", *at[:1]), problem, at_name=isinstance(labels, dict)
            )
        return
    for label in questions:
        if known is not None and label not in known:
            near = suggest(label, known)
            sentence = f"question for '{label}', which is not a label of this corpus{near}"
            yield StudyFileProblem(("questions", label), sentence, True)
