"""TODO: say what this module holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from raymrc.configuration import Configuration, FoldRun
from raymrc.corpora.note import Corpus
from raymrc.corpora.splits import Folds
from raymrc.model.adapters import Adapter
from raymrc.model.strategies import STRATEGIES
from raymrc.reading.questions import build_questions, questions_fingerprint
from raymrc.reading.relations import find_asked
from raymrc.study.spec import Spec

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """What decides a result beside the configuration, as hashes.

    Args:
        corpus: `Corpus.fingerprint`.
        folds: `Folds.fingerprint`.
        questions: of the wording; it enters a key only where a strategy asks in words, or a soft
            prompt starts from them.
        weights: by name of the backbone, `backbones.weights_fingerprint`.
        transfer: of each corpus of another site, `Corpus.fingerprint`, with its name before it.
        test: of held-out notes, in a final test; "" in cross-validation.
        initial_prompt: of the adapter's file; it enters a key only where a soft prompt starts from it.
    """

    corpus: str
    folds: str
    questions: str
    weights: Mapping[str, str]
    transfer: tuple[str, ...] = ()
    test: str = ""
    initial_prompt: str = ""


def build_fingerprints(
    spec: Spec,
    corpus: Corpus,
    folds: Folds,
    weights: Mapping[str, str],
    transfer: Mapping[str, Corpus] = MappingProxyType({}),
    initial_prompt: Adapter | None = None,
) -> Fingerprints:
    asked = find_asked(spec.task, corpus)
    questions = build_questions(asked.labels, spec.questions, asked.relations)
    named = tuple(f"{name} {other.fingerprint}" for name, other in transfer.items())
    return Fingerprints(
        corpus=corpus.fingerprint,
        folds=folds.fingerprint,
        questions=questions_fingerprint(questions),
        weights=dict(weights),
        transfer=named,
        initial_prompt=initial_prompt.fingerprint if initial_prompt is not None else "",
    )


def fold_run(configuration: Configuration, fold: int, fingerprints: Fingerprints) -> FoldRun:
    """The fold-run, whose `.key` names its record.

    The wording of questions enters the key only of strategies that ask in words and of prompts that
    start from them: rewording one trains nothing else again. So it is with an initial prompt.
    """
    cell = configuration.cell
    start = configuration.prompt_initialisation
    in_words = STRATEGIES[cell.strategy].asks == "words" or start == "question"
    return FoldRun(
        configuration=configuration,
        fold=fold,
        corpus_fingerprint=fingerprints.corpus,
        folds_fingerprint=fingerprints.folds,
        questions_fingerprint=fingerprints.questions if in_words else "",
        weights_fingerprint=fingerprints.weights[cell.backbone.name],
        transfer_fingerprints=() if fingerprints.test else fingerprints.transfer,
        test_fingerprint=fingerprints.test,
        initial_prompt_fingerprint=fingerprints.initial_prompt if start == "adapter" else "",
    )
