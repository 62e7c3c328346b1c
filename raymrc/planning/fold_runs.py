"""From a configuration to a fold-run and its ledger key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raymrc.configuration import Configuration, FoldRun
from raymrc.model.strategies import STRATEGIES


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Hashes of everything but the configuration that decides a result.

    Args:
        corpus: `Corpus.fingerprint`.
        folds: `Folds.fingerprint`.
        questions: hash of the wording.
        weights: `backbones.weights_fingerprint` by name of the backbone.
        transfer: name and `Corpus.fingerprint` of each other site.
        test: `Corpus.fingerprint` of held-out notes in a final test; "" in cross-validation.
        initial_prompt: hash of the adapter file.
    """

    corpus: str
    folds: str
    questions: str
    weights: Mapping[str, str]
    transfer: tuple[str, ...] = ()
    test: str = ""
    initial_prompt: str = ""


def fold_run(configuration: Configuration, fold: int, fingerprints: Fingerprints) -> FoldRun:
    """The fold-run, whose `.key` names its record.

    The wording of questions enters the key only if the strategy asks in words or prompts start from them, and
    an initial prompt only if prompts start from it: other work is not trained again after a change.
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
