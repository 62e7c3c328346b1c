"""A study with everything it works on, read once per command and passed on.

Spec -> corpus, other sites, held-out notes, weights -> folds, questions, fingerprints
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from raymrc.corpora.note import Corpus
from raymrc.corpora.splits import Folds
from raymrc.errors import BackboneError
from raymrc.model.adapters import Adapter, read_adapter
from raymrc.model.backbones import find_backbone, weights_fingerprint
from raymrc.planning.fold_runs import Fingerprints
from raymrc.reading.light_tokenizers import FileTokenizer, RoughTokenizer, read_tokenizer
from raymrc.reading.questions import build_questions, questions_fingerprint
from raymrc.reading.relations import Asked
from raymrc.study.notes import (
    build_study_folds,
    check_held_out,
    check_shots,
    check_unseen,
    read_study_corpus,
    read_test,
    read_transfer,
    study_labels,
    study_questions,
)
from raymrc.study.spec import Spec


class StudyInputs(NamedTuple):
    """What fold-runs are made from."""

    corpus: Corpus
    folds: Folds
    asked: Asked
    questions: dict[str, str]
    transfer: Mapping[str, Corpus]


@dataclass(frozen=True)
class LoadedStudy:
    """A study and its inputs. Folds, questions and fingerprints are built on first use, and once.

    Args:
        corpus, transfer, test, initial_prompt: None if the study has none, or the files are not on this
            machine.
        weights: `weights_fingerprint` of each backbone, by name; None if one is not on this machine.
    """

    spec: Spec
    corpus: Corpus | None = None
    transfer: Mapping[str, Corpus] | None = None
    test: Corpus | None = None
    initial_prompt: Adapter | None = None
    weights: Mapping[str, str] | None = None

    @cached_property
    def labels(self) -> tuple[str, ...] | None:
        """None if they depend on a corpus that is not here."""
        return study_labels(self.spec) if self.corpus is None else self.corpus.labels

    @cached_property
    def asked(self) -> Asked | None:
        """What the task asks for; None if it depends on a corpus that is not here.

        Raises:
            SpecError: the task asks for relations, and the corpus has none.
        """
        return study_questions(self.spec, self.corpus)

    @cached_property
    def questions(self) -> dict[str, str] | None:
        """Label or relation -> question in words.

        Raises:
            SpecError: a question for an unknown label.
        """
        if self.asked is None:
            return None
        return build_questions(self.asked.labels, self.spec.questions, self.asked.relations)

    @cached_property
    def folds(self) -> Folds | None:
        """
        Raises:
            CorpusError: the notes cannot fill the folds.
            SpecError: a fold has fewer training notes than `few_shot` asks for.
        """
        if self.corpus is None:
            return None
        folds = build_study_folds(self.spec, self.corpus)
        check_shots(self.spec, self.corpus, folds)
        return folds

    @property
    def inputs(self) -> StudyInputs:
        """The inputs of a study whose corpus is here."""
        corpus, folds, asked, questions = self.corpus, self.folds, self.asked, self.questions
        assert corpus is not None and folds is not None, "the corpus is not on this machine"
        assert asked is not None and questions is not None
        return StudyInputs(corpus, folds, asked, questions, self.transfer or {})

    @cached_property
    def fingerprints(self) -> Fingerprints | None:
        """None unless corpus, other sites and weights are all here."""
        corpus, folds, questions = self.corpus, self.folds, self.questions
        has_sites = self.transfer is not None or not self.spec.transfer
        if corpus is None or folds is None or questions is None:
            return None
        if self.weights is None or not has_sites:
            return None
        return Fingerprints(
            corpus=corpus.fingerprint,
            folds=folds.fingerprint,
            questions=questions_fingerprint(questions),
            weights=dict(self.weights),
            transfer=tuple(f"{n} {c.fingerprint}" for n, c in (self.transfer or {}).items()),
            initial_prompt=self.initial_prompt.fingerprint if self.initial_prompt else "",
        )


def read_study(spec: Spec) -> LoadedStudy:
    """Read all inputs of a study, downloading weights if necessary.

    Raises:
        CorpusError, AdapterError, BackboneError: an input is missing or broken.
        SpecError: notes that would be trained on and scored, or scored by two sites.
    """
    adapter = None if spec.initial_prompt is None else read_adapter(spec.initial_prompt)
    corpus = read_study_corpus(spec)
    weights = _fingerprint_weights(spec)
    transfer, test = read_transfer(spec, corpus), read_test(spec, corpus)
    check_held_out(spec, test, transfer)
    check_unseen(spec, adapter, corpus, *transfer.values(), test)
    return LoadedStudy(spec, corpus, transfer, test, adapter, weights)


def read_local_study(spec: Spec, *, weights: bool = True, test: bool = False) -> LoadedStudy:
    """Read the inputs that are on this machine; download nothing.

    Args:
        weights: whether to fingerprint weights, which reads all of them.
        test: whether to read held-out notes.
    """
    corpus = read_study_corpus(spec) if _is_local(spec.corpus.path) else None
    transfer = held_out = None
    if corpus is not None and all(_is_local(site.path) for site in spec.transfer):
        transfer = read_transfer(spec, corpus)
    final = spec.final_test
    if test and corpus is not None and final is not None:
        is_local = final.corpus is None or _is_local(final.corpus.path)
        held_out = read_test(spec, corpus) if is_local else None
    prompt = None
    if spec.initial_prompt is not None and _is_local(spec.initial_prompt):
        prompt = read_adapter(spec.initial_prompt)
    local_weights = _local_weights(spec) if weights or prompt is not None else None
    return LoadedStudy(spec, corpus, transfer, held_out, prompt, local_weights)


def _is_local(path: str | None) -> bool:
    """Whether a file or folder is here, or none is needed."""
    return path is None or Path(path).exists()


def _local_weights(spec: Spec) -> dict[str, str] | None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        return _fingerprint_weights(spec)
    except BackboneError:
        return None


def _fingerprint_weights(spec: Spec) -> dict[str, str]:
    backbones = [entry.backbone for entry in spec.backbones]
    return {b.name: weights_fingerprint(find_backbone(b)) for b in backbones}


def local_tokenizers(spec: Spec) -> dict[str, FileTokenizer | RoughTokenizer]:
    """Tokenizers by the backbone's source; a rough one if the backbone's own is not on this machine."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    found = {}
    for entry in spec.backbones:
        try:
            folder = find_backbone(entry.backbone, weights=False)
        except BackboneError:
            folder = None
        found[entry.backbone.source] = read_tokenizer(folder)
    return found
