"""The study's notes as MLflow datasets: fingerprints, sources and counts per label, never their text."""

from __future__ import annotations

import json
from typing import NamedTuple

from raymrc.corpora.note import Corpus
from raymrc.corpora.validate import count_notes
from raymrc.planning.loaded import LoadedStudy
from raymrc.study.sections import CorpusSpec

COUNTED_FIGURES = "notes groups spans relations nested overlapping discontinuous".split()


class Dataset(NamedTuple):
    """A corpus as MLflow shows it.

    Args:
        fingerprint: `Corpus.fingerprint`.
        context: what its notes are for: "training", "transfer" or "final test".
        source_type, source: kind of source, and its details as JSON.
        profile: counts as JSON.
    """

    name: str
    fingerprint: str
    context: str
    source_type: str
    source: str
    profile: str

    @property
    def digest(self) -> str:
        """MLflow takes at most 36 characters."""
        return self.fingerprint[:36]


def describe_datasets(study: LoadedStudy) -> tuple[Dataset, ...]:
    """The datasets of a study, as far as they are on this machine."""
    spec, datasets = study.spec, []
    if study.corpus is not None:
        name = spec.corpus.display_name
        datasets.append(_describe(spec.corpus, name, "training", study.corpus))
    sites = {site.display_name: site for site in spec.transfer}
    for name, notes in (study.transfer or {}).items():
        datasets.append(_describe(sites[name], name, "transfer", notes))
    if study.test is not None and spec.final_test is not None:
        source = spec.final_test.corpus or spec.corpus
        name = f"{source.display_name} held out"
        datasets.append(_describe(source, name, "final test", study.test))
    return tuple(datasets)


def _describe(spec: CorpusSpec, name: str, context: str, corpus: Corpus) -> Dataset:
    counts = count_notes(corpus.notes)
    profile: dict[str, int] = {field: getattr(counts, field) for field in COUNTED_FIGURES}
    profile |= {f"spans: {label}": count for label, count in counts.labels.items()}
    profile |= {f"relations: {label}": count for label, count in counts.relation_labels.items()}
    if spec.synthetic is not None:
        source_type, source = "synthetic", spec.synthetic.model_dump(mode="json")
    else:
        source_type, source = "local", {"uri": spec.path, "reader": spec.reader}
    return Dataset(
        name, corpus.fingerprint, context, source_type, json.dumps(source), json.dumps(profile)
    )
