"""The notes that a study is about: read, parted, held against each other, and what is asked of them.

    Spec -> Corpus, other sites, held-out notes, folds, questions

What would let a scored note choose or teach something is refused here, before anything starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raymrc.corpora.formats import known_joins, known_labels, read_corpus
from raymrc.corpora.labels import apply_labels, common_labels, target_labels
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
from raymrc.model.adapters import Adapter, read_adapter
from raymrc.reading.relations import (
    Asked,
    build_relation_questions,
    choose_questions,
    find_asked,
)
from raymrc.study.sections import CorpusSpec, FinalTest
from raymrc.study.source import Steps
from raymrc.study.spec import Spec


def read_study_corpus(spec: Spec) -> Corpus:
    """The notes that a study is about, without those that a final test holds out.

    Raises:
        CorpusError: they are not there, or break the data contract.
    """
    corpus = _read_described(spec.corpus)
    final = spec.final_test
    return corpus if final is None or final.share is None else _parted(corpus, final)[0]


def _parted(corpus: Corpus, final: FinalTest) -> tuple[Corpus, Corpus]:
    assert final.share is not None
    return hold_out(corpus, final.share, final.seed)


def read_test(spec: Spec, corpus: Corpus) -> Corpus | None:
    """The held-out notes of a study's final test, with the labels and relations alone that both have; None
    where it has no final test.

    Raises:
        CorpusError: they are not there, or break the data contract.
        SpecError: a note, an article or a patient of theirs is in the study's corpus, too; or no label in
            common.
    """
    final = spec.final_test
    if final is None:
        return None
    if final.corpus is None:
        return _parted(_read_described(spec.corpus), final)[1]
    return _read_other(spec, final.corpus, ("final_test", "corpus"), corpus)


def read_transfer(spec: Spec, corpus: Corpus) -> dict[str, Corpus]:
    """The notes of other sites by name, with the labels and relations alone that both sides have.

    Raises:
        CorpusError: they are not there, or break the data contract.
        SpecError: a note, an article or a patient of theirs is in the study's corpus, too; two corpora of
            one name; or no label in common.
    """
    found: dict[str, Corpus] = {}
    for index, described in enumerate(spec.transfer):
        name, at = described.display_name, ("transfer", index)
        if name in found or name == spec.corpus.display_name:
            raise spec.error(at, f"there is another corpus named {name}; give this one a name")
        found[name] = _read_other(spec, described, at, corpus)
    return found


def check_held_out(spec: Spec, test: Corpus | None, transfer: Mapping[str, Corpus]) -> None:
    """Refuse held-out notes that every fold-run would score as another site's.

    Raises:
        SpecError: a note of theirs, or of its article or patient, is one of a site.
    """
    for index, (name, site) in enumerate(transfer.items()):
        shared = shared_notes(test, site) if test is not None else []
        if shared:
            raise spec.error(
                ("transfer", index),
                f"{len(shared)} notes of {name} are held out for the final test, too, by text or by group "
                f"({first_few(shared)}), and would be scored before it; take them out of one of them",
            )


def check_unseen(spec: Spec, adapter: Adapter | None, *corpora: Corpus | None) -> None:
    """Refuse an initial prompt that was trained on notes which the study scores.

    Args:
        corpora: all that it scores; None where there is none.

    Raises:
        SpecError: a note of theirs, or of its article or patient, is among them.
    """
    if adapter is None:
        return
    seen = [n.id for c in corpora if c for n in c.notes if note_marks(n) & adapter.notes]
    if seen:
        raise spec.error(
            ("initial_prompt",),
            f"the initial prompt {adapter.place} was trained on {len(seen)} of the notes that are to be "
            f"scored, by text or by group ({first_few(seen)}); give one of another corpus",
        )


def _read_other(spec: Spec, described: CorpusSpec, at: Steps, corpus: Corpus) -> Corpus:
    """Notes that are only ever scored."""
    name = described.display_name
    other = _read_described(described)
    shared = shared_notes(corpus, other)
    if shared:
        raise spec.error(
            at,
            f"{len(shared)} notes of {name} are in the study's corpus, too, by text or by group "
            f"({first_few(shared)}); take them out of one of them, as by sites",
        )
    common = common_labels(other, corpus)
    if not common.labels:
        raise spec.error(
            at,
            f"{name} has no label of the study's corpus ({', '.join(corpus.labels)}); "
            "bring them together by its labels",
        )
    return common


def read_initial_prompt(spec: Spec) -> Adapter | None:
    """What the study's initial prompt was trained for; None where it names none.

    Raises:
        AdapterError: it is not there, or cannot be read.
    """
    return None if spec.initial_prompt is None else read_adapter(spec.initial_prompt)


def _read_described(described: CorpusSpec) -> Corpus:
    labels: Any = described.labels
    if described.synthetic is not None:
        made: Any = described.synthetic
        corpus = synthesize_corpus(made.scheme, made.notes, made.site, made.seed)
        if labels is not None:
            corpus = _relabelled(corpus, labels, made.scheme)
    else:
        assert described.path is not None and described.reader is not None
        corpus = read_corpus(Path(described.path), described.reader, labels, described.sites)
    if described.subset is not None:
        corpus = take_subset(corpus, described.subset.notes, described.subset.seed)
    return corpus


def _relabelled(corpus: Corpus, labels: Any, scheme: str) -> Corpus:
    """Made-up notes under a label map, as `read_corpus` does it with notes from files."""
    notes = tuple(apply_labels(note, labels, scheme) for note in corpus.notes)
    there = {relation.label for note in notes for relation in note.relations}
    known = tuple(label for label in corpus.relation_labels if label in there)
    return Corpus(
        notes=notes,
        labels=target_labels(labels, scheme, corpus.labels),
        relation_labels=known + tuple(sorted(there - {*known})),
    )


def study_labels(spec: Spec) -> tuple[str, ...] | None:
    """The labels, where they are known without reading a file."""
    labels: Any = spec.corpus.labels
    return known_labels(spec.corpus.label_reader, labels)


def study_questions(spec: Spec, corpus: Corpus | None) -> Asked | None:
    """What the study's task asks; None where that is not known before the corpus is read.

    Raises:
        SpecError: a task about relations, of which the corpus has none.
    """
    if corpus is None:
        labels = study_labels(spec)
        given: Any = spec.corpus.labels
        joins = known_joins(spec.corpus.label_reader, given)
        if labels is None or (joins is None and spec.task != "concepts"):
            return None
        return choose_questions(spec.task, labels, build_relation_questions(joins or (), labels))
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
    """Refuse more training notes, or mentions, than a fold has."""
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
                f"{shots} training {counted} are more than a fold has; its training part has {least}",
            )
