"""What only shows when sections of a study file are seen together, and what has no effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from raymrc.corpora.formats import known_labels
from raymrc.errors import CorpusError, suggest
from raymrc.model.strategies import STRATEGIES
from raymrc.study.source import Steps
from raymrc.study.space import DEFAULTS, Distribution, Fixed, Setting

if TYPE_CHECKING:
    from raymrc.study.spec import (
        BackboneSpec,
        BudgetSpec,
        CorpusSpec,
        Prices,
        Search,
        Settings,
        Spec,
        Strategies,
    )


class StudyFileProblem(NamedTuple):
    """A sentence about a place of the study file: the field's name, or its value."""

    path: Steps
    sentence: str
    at_name: bool = False


_OF_PROMPTS = (
    "prompt_length", "prompt_depth", "first_layer", "reparametrisation", "prompt_initialisation",
)  # fmt: skip


def without_effect(strategy: str, task: str) -> dict[str, str]:
    """Settings that change nothing under a strategy, each with the reason."""
    row = STRATEGIES[strategy]
    reasons: dict[str, str] = {}
    if task == "concepts":
        reasons |= dict.fromkeys(
            ("context_sentences", "relation_answers"), "no relation is asked for"
        )
    if task == "relations":
        reasons["overlap"] = "each given mention has its own window"
        reasons["overlapping_answers"] = "no label's spans are looked for"
    if row.asks != "vectors":
        reasons |= dict.fromkeys((*_OF_PROMPTS, "prompt_learning_rate"), "it has no soft prompt")
    if row.answers == "tags":
        reasons |= dict.fromkeys(
            ("match_width", "loss_weights"), "it tags pieces, without a match head"
        )
        reasons["relation_answers"] = "it tells pairs of mentions apart"
        reasons["overlapping_answers"] = "a tagger's answers to one question never share text"
    return reasons


def across(sections: Mapping[str, Any]) -> Iterator[StudyFileProblem]:
    """What only shows when sections are seen together. A section with problems is left out."""
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
        sentence = "a final test trains on all notes, and few_shot on few; take one of them out"
        yield StudyFileProblem(("final_test",), sentence, True)
    budget: BudgetSpec | None = sections.get("budget")
    prices: Prices | None = sections.get("prices")
    if budget and budget.usd is not None and prices is not None and not prices.device_hour_usd:
        sentence = "usd: device time has no price; set prices.device_hour_usd, or limit gpu_hours"
        yield StudyFileProblem(("budget", "usd"), sentence, True)
    corpus: CorpusSpec | None = sections.get("corpus")
    if corpus is not None:
        # How relations' questions are called, only the corpus can tell.
        is_known = sections.get("task", "concepts") == "concepts"
        yield from _labels(corpus, (sections.get("questions") or {}) if is_known else {})


def no_effect(spec: Spec) -> Iterator[StudyFileProblem]:
    """Settings that change nothing: said, not swallowed."""
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
            "questions have no effect: only hard_prompt asks in words, and no prompt starts from them",
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
        for option in options(
            spec.settings(entry, strategy).get("prompt_initialisation", Fixed("random"))
        )
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
                f"backbone '{name}' is there twice; remove one, or give it a name and its source",
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
            if STRATEGIES[strategy].asks == "vectors":
                yield from _starts(merged, places)
            window = min(_ends(merged, "window", DEFAULTS["window"]))
            overlap = max(_ends(merged, "overlap", DEFAULTS["overlap"]))
            if overlap >= window:
                nearest_place = _nearest(places, "overlap", "window")
                yield StudyFileProblem(
                    nearest_place,
                    f"{nearest_place[-1]}: an overlap of {overlap} pieces is not below a window of {window}; "
                    "give less overlap or a wider window",
                )


def _starts(
    merged: Mapping[str, Setting], places: Sequence[tuple[Steps, dict[str, Setting]]]
) -> Iterator[StudyFileProblem]:
    """A prompt that is computed by a network has no vectors to be given."""
    starts = [
        option
        for option in options(merged.get("prompt_initialisation", Fixed("random")))
        if option != "random"
    ]
    computed = [
        option
        for option in options(merged.get("reparametrisation", Fixed("none")))
        if option != "none"
    ]
    if starts and computed:
        yield StudyFileProblem(
            _nearest(places, "prompt_initialisation", "reparametrisation"),
            f"prompt_initialisation: {starts[0]} gives a prompt its vectors, and reparametrisation "
            f"{computed[0]} computes them; leave one of the two out",
        )


def _nearest(places: Sequence[tuple[Steps, dict[str, Setting]]], *names: str) -> Steps:
    """Where one of these settings was given that holds: of the nearest place the first one."""
    return next(
        (*path, name) for path, given in reversed(places) for name in names if name in given
    )


def options(setting: Setting) -> tuple[Any, ...]:
    """The values that a setting may take, or the ends of its range."""
    return (setting.value,) if isinstance(setting, Fixed) else setting.values


def _ends(settings: Mapping[str, Setting], name: str, default: int) -> tuple[int, ...]:
    """The values that a whole-number setting may take, or the ends of its range."""
    return options(settings.get(name, Fixed(default)))


def _all_settings(
    training: Settings | None, strategies: Strategies | None, backbones: Sequence[BackboneSpec]
) -> Iterator[tuple[Steps, Setting]]:
    """Every setting that was written down, with its place."""
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
    """Labels and questions that the reader's label set does not have, where it is known unread."""
    labels: Any = corpus.labels
    try:
        known = known_labels(corpus.label_reader, labels)
    except CorpusError as error:
        for problem in error.problems:
            # The reader's sentence names the label; its item in the file is where to mend it.
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
            sentence = f"a question for '{label}', which is not a label of this corpus{near}"
            yield StudyFileProblem(("questions", label), sentence, True)
