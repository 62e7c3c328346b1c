"""What of a study is on this machine: looked at, never fetched or made."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raymrc.cli.app import say

if TYPE_CHECKING:
    from raymrc.analysis.findings import Findings
    from raymrc.corpora.note import Corpus
    from raymrc.costs.rates import Measured
    from raymrc.costs.workload import Workload
    from raymrc.ledger.ledger import Ledger
    from raymrc.ledger.record import Record
    from raymrc.model.adapters import Adapter
    from raymrc.planning.plan import Plan
    from raymrc.reading.light_tokenizers import FileTokenizer, RoughTokenizer
    from raymrc.study.spec import Spec


def load_study(study: Path, changes: list[str] | None) -> Spec:
    """The study, its warnings said."""
    from raymrc.study.load import load_spec

    spec = load_spec(study, changes or ())
    for warning in spec.warnings:
        say(f"warning: {warning}")
    return spec


def read_ledger(spec: Spec) -> tuple[tuple[Record, ...], bool]:
    """The records that can be read, and whether there are others; those are said."""
    from raymrc.ledger.ledger import Ledger

    records, problems = Ledger(spec.storage, write=False).read_all()
    for problem in problems:
        say(problem)
    return records, bool(problems)


@dataclass(frozen=True)
class Known:
    """What a ledger is read against.

    Args:
        corpus, transfer: None where this machine does not have the notes.
    """

    plan: Plan
    corpus: Corpus | None
    transfer: dict[str, Corpus] | None

    def find(self, spec: Spec, records: Sequence[Record]) -> Findings:
        """What the records say."""
        from raymrc.analysis.findings import build_findings

        is_tested = any(record.fold_run.is_test for record in records)
        test = test_at_hand(spec, self.corpus) if is_tested else None
        return build_findings(spec, self.plan, records, self.corpus, self.transfer, test)


def known_at_hand(spec: Spec) -> Known:
    """A study as its ledger is read: by what is here of notes and weights, not by where it would run."""
    from raymrc.planning.plan import plan_study

    corpus, prompt = corpus_at_hand(spec), initial_prompt_at_hand(spec)
    transfer = transfer_at_hand(spec, corpus)
    planned = plan_study(
        spec,
        corpus,
        weights_at_hand(spec),
        transfer=transfer,
        initial_prompt=prompt,
        places=False,
    )
    return Known(planned, corpus, transfer)


def plan_at_hand(spec: Spec) -> tuple[Plan, Workload | None, Ledger | None]:
    """A study's plan by what is on this machine, what its fold-runs have to do where the notes are here, and
    its ledger if there is one. Nothing is fetched or made."""
    from raymrc.planning.plan import plan_study

    corpus, ledger = corpus_at_hand(spec), _ledger_at_hand(spec)
    initial_prompt = initial_prompt_at_hand(spec)
    weights = weights_at_hand(spec) if ledger or initial_prompt else None
    transfer = transfer_at_hand(spec, corpus)
    planned = plan_study(
        spec, corpus, weights, ledger, transfer=transfer, initial_prompt=initial_prompt
    )
    if corpus is None or transfer is None:
        return planned, None, ledger
    return planned, find_workload(spec, planned, corpus, transfer), ledger


def find_workload(
    spec: Spec, planned: Plan, corpus: Corpus, transfer: Mapping[str, Corpus]
) -> Workload:
    """What a plan's fold-runs have to do."""
    from raymrc.costs.forecast import build_workload

    return build_workload(spec, planned, corpus, transfer, _tokenizers_at_hand(spec))


def find_measured(
    spec: Spec, planned: Plan, workload: Workload, records: Sequence[Record]
) -> list[Measured]:
    """What is known of its cost: by the ledger and a probe, if there was one."""
    from raymrc.costs.history import read_history
    from raymrc.costs.probe import read_probe

    return [*read_history(planned, workload, records), *read_probe(spec.storage)]


def corpus_at_hand(spec: Spec) -> Corpus | None:
    """The notes; None where this machine does not have them, which a plan can do without."""
    from raymrc.study.notes import read_study_corpus

    path = spec.corpus.path
    return read_study_corpus(spec) if path is None or Path(path).exists() else None


def transfer_at_hand(spec: Spec, corpus: Corpus | None) -> dict[str, Corpus] | None:
    """The notes of other sites; None where this machine does not have all of them."""
    from raymrc.study.notes import read_transfer

    paths = [described.path for described in spec.transfer]
    if corpus is None or not all(path is None or Path(path).exists() for path in paths):
        return None
    return read_transfer(spec, corpus)


def test_at_hand(spec: Spec, corpus: Corpus | None) -> Corpus | None:
    """The held-out notes; None where there are none, or this machine does not have them."""
    from raymrc.study.notes import read_test

    if corpus is None or spec.final_test is None:
        return None
    path = spec.final_test.corpus.path if spec.final_test.corpus is not None else None
    return read_test(spec, corpus) if path is None or Path(path).exists() else None


def initial_prompt_at_hand(spec: Spec) -> Adapter | None:
    """What the study's initial prompt was trained for; None where this machine does not have it."""
    from raymrc.study.notes import read_initial_prompt

    place = spec.initial_prompt
    return read_initial_prompt(spec) if place is not None and Path(place).exists() else None


def _ledger_at_hand(spec: Spec) -> Ledger | None:
    """The ledger, where it holds something."""
    from raymrc.ledger.ledger import Ledger

    ledger = Ledger(spec.storage, write=False)
    return ledger if ledger.keys() else None


def weights_at_hand(spec: Spec) -> dict[str, str] | None:
    """Fingerprints of all backbones' weights; None where one is not here."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # whoever only looks, fetches nothing

    from raymrc.errors import BackboneError
    from raymrc.model.backbones import find_backbone, weights_fingerprint

    backbones = [entry.backbone for entry in spec.backbones]
    try:
        return {
            backbone.name: weights_fingerprint(find_backbone(backbone)) for backbone in backbones
        }
    except BackboneError:
        return None


def _tokenizers_at_hand(spec: Spec) -> dict[str, FileTokenizer | RoughTokenizer]:
    """By the backbone's source; a rough one where its own is not here."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    from raymrc.errors import BackboneError
    from raymrc.model.backbones import find_backbone
    from raymrc.reading.light_tokenizers import read_tokenizer

    found = {}
    for entry in spec.backbones:
        try:
            folder = find_backbone(entry.backbone, weights=False)
        except BackboneError:
            folder = None
        found[entry.backbone.source] = read_tokenizer(folder)
    return found
