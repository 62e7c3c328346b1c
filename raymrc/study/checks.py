"""Checks across the sections of a study file, and warnings about settings without effect."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from raymrc.corpora.formats import known_labels
from raymrc.errors import CorpusError, suggest
from raymrc.model.strategies import STRATEGIES
from raymrc.study.sections import BackboneSpec, CorpusSpec, Settings, Strategies
from raymrc.study.source import Steps
from raymrc.study.space import Distribution, Setting, build_space, options, without_effect
from raymrc.study.spec import Spec


class StudyFileProblem(NamedTuple):
    """A sentence about a field's name or value in the study file."""

    path: Steps
    sentence: str
    at_name: bool = False


def across(spec: Spec, bad: Collection[str] = ()) -> Iterator[StudyFileProblem]:
    """Problems between sections.

    Args:
        bad: sections with problems of their own; `spec` holds stand-ins for them.
    """
    if "backbones" not in bad:
        yield from _enough_backbones(spec.backbones)
    if "strategies" not in bad and not spec.strategies.named():
        names = ", ".join(STRATEGIES)
        yield StudyFileProblem(("strategies",), f"strategies: name at least one of {names}")
    if not {"strategies", "backbones", "training"}.intersection(bad):
        yield from _merged(spec)
        if "initial_prompt" not in bad and spec.initial_prompt is None:
            for path, setting in _all_settings(spec):
                if path[-1] == "prompt_initialisation" and "adapter" in options(setting):
                    yield StudyFileProblem(
                        path,
                        "prompt_initialisation: adapter needs a trained prompt; give its file as "
                        "initial_prompt",
                    )
    if "search" not in bad and spec.search.algorithm == "grid":
        for path, setting in _all_settings(spec):
            if isinstance(setting, Distribution):
                yield StudyFileProblem(
                    path,
                    f"{path[-1]}: {setting.kind} is a range and a grid has points; give a list, "
                    "or set search.algorithm to random or tpe",
                )
    if spec.final_test and spec.few_shot:
        sentence = "a final test trains on all notes, and few_shot on few; remove one of them"
        yield StudyFileProblem(("final_test",), sentence, True)
    limits_usd = spec.budget is not None and spec.budget.usd is not None
    if limits_usd and "prices" not in bad and not spec.prices.device_hour_usd:
        sentence = "usd: device time has no price; set prices.device_hour_usd, or limit gpu_hours"
        yield StudyFileProblem(("budget", "usd"), sentence, True)
    if "corpus" not in bad:
        # Names of relation questions depend on the corpus.
        yield from _labels(spec.corpus, spec.questions if spec.task == "concepts" else {})


def no_effect(spec: Spec) -> Iterator[StudyFileProblem]:
    """Settings that change nothing; they are warnings."""
    named = spec.strategies.named()
    for path, _ in _all_settings(spec):
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
        for index, _ in enumerate(spec.backbones)
        for strategy in spec.strategies.named()
        if STRATEGIES[strategy].asks == "vectors"
        for option in build_space(spec.settings(index, strategy)).ends("prompt_initialisation")
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


def _merged(spec: Spec) -> Iterator[StudyFileProblem]:
    """Settings that a cell lacks, or that contradict each other once merged."""
    for index, strategy in product(range(len(spec.backbones)), spec.strategies.named()):
        settings = spec.settings(index, strategy)
        space = build_space(settings)
        # A prompt whose vectors a network computes cannot start from given vectors.
        starts = [start for start in space.ends("prompt_initialisation") if start != "random"]
        networks = [network for network in space.ends("reparametrisation") if network != "none"]
        if STRATEGIES[strategy].asks == "vectors" and starts and networks:
            yield StudyFileProblem(
                spec.place(index, strategy, "prompt_initialisation", "reparametrisation"),
                f"prompt_initialisation: {starts[0]} gives a prompt its vectors, and reparametrisation "
                f"{networks[0]} computes them; remove one of the two",
            )
        in_epochs = [text for text in space.ends("duration") if text and " epochs" in text]
        if in_epochs and "epochs" in settings:
            yield StudyFileProblem(
                spec.place(index, strategy, "duration"),
                f"duration: {in_epochs[0]} also says how many epochs; remove one of duration and epochs",
            )
        window, overlap = min(space.ends("window")), max(space.ends("overlap"))
        if overlap >= window:
            place = spec.place(index, strategy, "overlap", "window")
            yield StudyFileProblem(
                place,
                f"{place[-1]}: an overlap of {overlap} pieces does not fit a window of {window}; "
                "reduce overlap or enlarge window",
            )


def _all_settings(spec: Spec) -> Iterator[tuple[Steps, Setting]]:
    """Every setting in the study file, with its place."""
    groups: list[tuple[Steps, Strategies]] = [(("strategies",), spec.strategies)]
    for index, entry in enumerate(spec.backbones):
        groups.append((("backbones", index, "strategies"), entry.strategies))
    sections: list[tuple[Steps, Settings]] = [(("training",), spec.training)]
    for path, group in groups:
        sections += [((*path, name), settings) for name, settings in group.named().items()]
    for path, settings in sections:
        for name, setting in settings.given().items():
            yield (*path, name), setting


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
