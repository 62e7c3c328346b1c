"""The notes of a study: read, split, checked against each other, and what is asked of them.

    Spec -> corpus, other sites, held-out notes, folds, questions

Anything that would let a scored note train or choose something is refused here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from raymrc.corpora.formats import known_joins, known_labels, read_corpus
from raymrc.corpora.labels import Labels, apply_labels, common_labels, target_labels
from raymrc.corpora.note import Corpus
from raymrc.corpora.splits import (
    Folds,
    count_mentions,
    hold_out,
    make_folds,
    note_marks,
    shared_notes,
    take_subset,
)
from raymrc.corpora.synthetic import synthesize_corpus
from raymrc.errors import first_few
from raymrc.model.adapters import Adapter
from raymrc.reading.relations import Asked, build_asked, find_asked
from raymrc.study.sections import CorpusSpec
from raymrc.study.source import Steps
from raymrc.study.spec import Spec


def read_study_corpus(spec: Spec) -> Corpus:
    """The study's notes, without those that a final test holds out.

    Raises:
        CorpusError: the notes are missing, or break the data contract.
    """
    corpus, final = _read_described(spec.corpus), spec.final_test
    if final is None or final.share is None:
        return corpus
    return hold_out(corpus, final.share, final.seed)[0]


def read_test(spec: Spec, corpus: Corpus) -> Corpus | None:
    """The held-out notes of the final test, with only the labels and relations that `corpus` has, too.

    Returns:
        None if the study has no final test.

    Raises:
        CorpusError: the notes are missing, or break the data contract.
        SpecError: a held-out note, article or patient is in the study's corpus, or no label is common.
    """
    final = spec.final_test
    if final is None:
        return None
    if final.share is not None:
        return hold_out(_read_described(spec.corpus), final.share, final.seed)[1]
    assert final.corpus is not None
    return _read_other(spec, final.corpus, ("final_test", "corpus"), corpus)


def read_transfer(spec: Spec, corpus: Corpus) -> dict[str, Corpus]:
    """The notes of other sites by name, with only the labels and relations that `corpus` has, too.

    Raises:
        CorpusError: notes are missing, or break the data contract.
        SpecError: a site's note, article or patient is in the study's corpus, two corpora have one name, or
            no label is common.
    """
    found: dict[str, Corpus] = {}
    for index, described in enumerate(spec.transfer):
        name, at = described.display_name, ("transfer", index)
        if name in found or name == spec.corpus.display_name:
            raise spec.error(at, f"another corpus is named {name}, too; give this one a name")
        found[name] = _read_other(spec, described, at, corpus)
    return found


def check_held_out(spec: Spec, test: Corpus | None, transfer: Mapping[str, Corpus]) -> None:
    """Refuse held-out notes that every fold-run would score as another site's.

    Raises:
        SpecError: a held-out note, or its article or patient, belongs to a site.
    """
    for index, (name, site) in enumerate(transfer.items()):
        shared = shared_notes(test, site) if test is not None else []
        if shared:
            raise spec.error(
                ("transfer", index),
                f"{len(shared)} notes of {name} are held out for the final test, too, by text or by group "
                f"({first_few(shared)}), and would be scored before it; remove them from one of the two",
            )


def check_unseen(spec: Spec, adapter: Adapter | None, *corpora: Corpus | None) -> None:
    """Refuse an initial prompt that was trained on notes which the study scores, all of them in `corpora`.

    Raises:
        SpecError: the prompt has seen one of these notes, or its article or patient.
    """
    if adapter is None:
        return
    seen = [n.id for c in corpora if c for n in c.notes if note_marks(n) & adapter.notes]
    if seen:
        raise spec.error(
            ("initial_prompt",),
            f"the initial prompt {adapter.place} was trained on {len(seen)} of the notes that the study "
            f"scores, by text or by group ({first_few(seen)}); give a prompt of another corpus",
        )


def _read_other(spec: Spec, described: CorpusSpec, at: Steps, corpus: Corpus) -> Corpus:
    """Notes that are only scored."""
    name = described.display_name
    other = _read_described(described)
    shared = shared_notes(corpus, other)
    if shared:
        raise spec.error(
            at,
            f"{len(shared)} notes of {name} are in the study's corpus, too, by text or by group "
            f"({first_few(shared)}); remove them from one of the two, for example by sites",
        )
    common = common_labels(other, corpus)
    if not common.labels:
        raise spec.error(
            at,
            f"{name} has no label of the study's corpus ({', '.join(corpus.labels)}); "
            "map its labels to them with `labels`",
        )
    return common


def _read_described(described: CorpusSpec) -> Corpus:
    labels, made = described.labels, described.synthetic
    if made is not None:
        corpus = synthesize_corpus(made.scheme, made.notes, made.site, made.seed)
        if labels is not None:
            corpus = _relabelled(corpus, labels, made.scheme)
    else:
        assert described.path is not None and described.reader is not None
        corpus = read_corpus(Path(described.path), described.reader, labels, described.sites)
    if described.subset is not None:
        corpus = take_subset(corpus, described.subset.notes, described.subset.seed)
    return corpus


def _relabelled(corpus: Corpus, labels: Labels, scheme: str) -> Corpus:
    """Synthetic notes under a label map, as `read_corpus` maps notes from files."""
    notes = tuple(apply_labels(note, labels, scheme) for note in corpus.notes)
    present = {relation.label for note in notes for relation in note.relations}
    known = tuple(label for label in corpus.relation_labels if label in present)
    return Corpus(
        notes=notes,
        labels=target_labels(labels, scheme, corpus.labels),
        relation_labels=known + tuple(sorted(present - {*known})),
    )


def study_labels(spec: Spec) -> tuple[str, ...] | None:
    """The labels, if they are known without reading notes."""
    return known_labels(spec.corpus.label_reader, spec.corpus.labels)


def study_questions(spec: Spec, corpus: Corpus | None) -> Asked | None:
    """What the study's task asks for; None if that depends on notes that were not read.

    Raises:
        SpecError: the task asks for relations, and the corpus has none.
    """
    if corpus is None:
        labels = study_labels(spec)
        joins = known_joins(spec.corpus.label_reader, spec.corpus.labels)
        if labels is None or (joins is None and spec.task != "concepts"):
            return None
        return build_asked(spec.task, labels, joins or ())
    asked = find_asked(spec.task, corpus)
    if spec.task != "concepts" and not asked.relations:
        raise spec.error(
            ("task",), f"task {spec.task} needs relations, and {spec.corpus.display_name} has none"
        )
    return asked


def build_study_folds(spec: Spec, corpus: Corpus) -> Folds:
    """The folds that all configurations of a study share."""
    return make_folds(corpus, spec.folds.count, spec.folds.seed, spec.folds.validation_share)


def check_shots(spec: Spec, corpus: Corpus, folds: Folds) -> None:
    """Refuse more training notes or mentions than a fold has.

    Raises:
        SpecError: with the number that the smallest fold has.
    """
    if spec.few_shot is None:
        return
    counted = spec.few_shot.shots_of
    mentions = count_mentions(corpus.notes)
    least = min(
        sum(
            mentions[note_id] if counted == "mentions" else 1 for note_id in folds.split(fold).train
        )
        for fold in range(folds.count)
    )
    for index, shots in enumerate(spec.few_shot.shots):
        if shots > least:
            raise spec.error(
                ("few_shot", counted, index),
                f"{shots} training {counted} are more than a fold has; the smallest has {least}",
            )
