"""Notes as MLflow's datasets show them: which, how many, how many of each label. Never their text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from raymrc.corpora.note import Corpus
from raymrc.corpora.validate import count_notes
from raymrc.study.spec import CorpusSpec, Spec

COUNTED_FIGURES = "notes groups spans relations nested overlapping discontinuous".split()


class Dataset(NamedTuple):
    """A corpus, as MLflow keeps it.

    Args:
        fingerprint: `Corpus.fingerprint`.
        context: what it is there for: "training", "transfer" or "final test".
        source_type, source: where the notes are from, and its details as JSON.
        profile: counts, as JSON.
    """

    name: str
    fingerprint: str
    context: str
    source_type: str
    source: str
    profile: str

    @property
    def digest(self) -> str:
        """MLflow takes 36 characters."""
        return self.fingerprint[:36]


def describe_datasets(
    spec: Spec,
    corpus: Corpus | None,
    transfer: Mapping[str, Corpus] | None = None,
    test: Corpus | None = None,
) -> tuple[Dataset, ...]:
    """The notes of a study.

    Args:
        corpus, transfer, test: as the study reads them; None where they are not at hand.
    """
    sites = {described.display_name: described for described in spec.transfer}
    found = []
    if corpus is not None:
        found.append(describe_dataset(spec.corpus, spec.corpus.display_name, "training", corpus))
    for name, there in (transfer or {}).items():
        found.append(describe_dataset(sites[name], name, "transfer", there))
    if test is not None and spec.final_test is not None:
        described = spec.final_test.corpus or spec.corpus
        found.append(
            describe_dataset(described, f"{described.display_name} held out", "final test", test)
        )
    return tuple(found)


def describe_dataset(described: CorpusSpec, name: str, context: str, corpus: Corpus) -> Dataset:
    """One corpus; `described` says where it is from."""
    counts = count_notes(corpus.notes)
    profile: dict[str, int] = {word: getattr(counts, word) for word in COUNTED_FIGURES}
    profile |= {f"spans: {label}": times for label, times in counts.labels}
    profile |= {f"relations: {label}": times for label, times in counts.relation_labels}
    if described.synthetic is not None:
        source_type, source = "synthetic", described.synthetic.model_dump(mode="json")
    else:
        source_type, source = "local", {"uri": described.path, "reader": described.reader}
    return Dataset(
        name, corpus.fingerprint, context, source_type, json.dumps(source), json.dumps(profile)
    )
