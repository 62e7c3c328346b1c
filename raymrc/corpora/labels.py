"""Label maps give corpora with different labels one common set.

    labels: None (unchanged) | a list (keep these) | a mapping (keep and rename) | a name (built-in map)

A built-in map may depend on relations (a Duration counts only if it modifies a medication) and renames
them. Its result has only labels that the corpus annotates, so that unannotated labels are not trained
or scored as absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from raymrc.corpora.note import Corpus, Note, Relation
from raymrc.errors import CorpusError, suggest

Labels = str | Sequence[str] | Mapping[str, str] | None
LabelPair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class LabelRule:
    """Spans with the label `source` get the label `target`.

    Args:
        only_as: (end, relation, other): only if the span is that end ("head" or "tail") of such a relation
            whose other end has the label `other`; None for always.
    """

    source: str
    target: str
    only_as: tuple[str, str, str] | None = None


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A label map for one reader.

    Args:
        rules: the first rule that fits a span gives its label; spans without a rule are dropped.
        links: note -> ids of (attribute, drug) span pairs.
    """

    rules: tuple[LabelRule, ...]
    links: Callable[[Note], Iterable[LabelPair]]


def _as_given(note: Note) -> Iterator[LabelPair]:
    """2018 n2c2: relations already run from the attribute to the drug."""
    return ((relation.head, relation.tail) for relation in note.relations)


def _modified_or_caused(note: Note) -> Iterator[LabelPair]:
    """MACCROBAT: X MODIFY Medication; Medication CAUSE sign, which is reversed."""
    for relation in note.relations:
        if relation.label == "MODIFY":
            yield relation.head, relation.tail
        elif relation.label == "CAUSE":
            yield relation.tail, relation.head


def _under_one_treatment(note: Note) -> Iterator[LabelPair]:
    """PHEE: every X with every Drug of its treatment, every Effect with every Drug of its event.

    If a treatment has several drugs and one dosage, PHEE does not annotate whose dosage it is.
    """
    labels = {span.id: span.label for span in note.spans}
    tails: dict[str, list[str]] = {}
    for relation in note.relations:
        tails.setdefault(relation.head, []).append(relation.tail)

    def find(label: str, head: str) -> list[str]:
        return [tail for tail in tails.get(head, ()) if labels[tail] == label]

    for head in tails:
        if labels[head] == "Treatment":
            yield from product(tails[head], find("Drug", head))
        elif labels[head] == "Adverse_event":
            drugs = [drug for treated in find("Treatment", head) for drug in find("Drug", treated)]
            yield from product(find("Effect", head), drugs)


def _keep(*labels: str) -> tuple[LabelRule, ...]:
    return tuple(LabelRule(label, label) for label in labels)


DRUG_ADE_LABELS = ("Drug", "Dosage", "Route", "Frequency", "Duration", "ADE", "Reason")
"""The common labels; relations are "X-Drug", from X to the drug. Dosage includes strength."""

BUILT_IN_LABEL_MAPS: dict[str, dict[str, BuiltIn]] = {
    "drug-ade": {
        "n2c2-2018": BuiltIn(
            (*_keep(*DRUG_ADE_LABELS), LabelRule("Strength", "Dosage")), _as_given
        ),
        "maccrobat": BuiltIn(
            (
                *_keep("Dosage", "Frequency"),
                LabelRule("Medication", "Drug"),
                LabelRule("Administration", "Route"),
                LabelRule("Duration", "Duration", only_as=("head", "MODIFY", "Medication")),
                LabelRule("Sign_symptom", "ADE", only_as=("tail", "CAUSE", "Medication")),
                LabelRule("Disease_disorder", "ADE", only_as=("tail", "CAUSE", "Medication")),
            ),
            _modified_or_caused,
        ),
        "phee": BuiltIn(
            (
                *_keep("Drug", "Dosage", "Route", "Duration"),
                LabelRule("Freq", "Frequency"),
                LabelRule("Effect", "ADE", only_as=("tail", "Effect", "Adverse_event")),
                LabelRule("Treat-Disorder", "Reason"),
            ),
            _under_one_treatment,
        ),
    }
}


def find_built_in(name: str, reader: str) -> BuiltIn:
    """Raises a CorpusError if there is no such map, or none for this reader."""
    if name not in BUILT_IN_LABEL_MAPS:
        raise CorpusError(
            f"labels: there is no label map {name!r}{suggest(name, BUILT_IN_LABEL_MAPS)}"
        )
    maps = BUILT_IN_LABEL_MAPS[name]
    if reader not in maps:
        raise CorpusError(
            f"labels: the map {name!r} has rules for readers {', '.join(maps)} only, not for {reader}; "
            "give a mapping of labels instead"
        )
    return maps[reader]


def target_labels(labels: Labels, reader: str, source: Sequence[str] | None) -> tuple[str, ...]:
    """Labels after the map, in the order of questions, prompts and heads.

    Args:
        source: the reader's labels; None if not known yet.

    Raises:
        CorpusError: a label or map does not exist.
    """
    if labels is None:
        assert source is not None
        return tuple(source)
    if isinstance(labels, str):
        rules = find_built_in(labels, reader).rules
        return tuple(label for label in DRUG_ADE_LABELS if label in {r.target for r in rules})
    if not labels:
        raise CorpusError("labels: the list is empty; name labels, or leave the field out")
    if source is not None:
        unknown = [label for label in labels if label not in source]
        if unknown:
            raise CorpusError(
                [
                    f"labels: {label!r} is not a label of this corpus (reader {reader})"
                    f"{suggest(str(label), source)}"
                    for label in unknown
                ]
            )
    targets = labels.values() if isinstance(labels, Mapping) else labels
    return tuple(dict.fromkeys(targets))


def apply_labels(note: Note, labels: Labels, reader: str) -> Note:
    """The note with its spans renamed by the map, and the relations between kept spans."""
    if labels is None:
        return note
    if isinstance(labels, str):
        return _apply_built_in(note, find_built_in(labels, reader))
    names = labels if isinstance(labels, Mapping) else {label: label for label in labels}
    spans = tuple(replace(s, label=names[s.label]) for s in note.spans if s.label in names)
    kept = {span.id for span in spans}
    relations = tuple(r for r in note.relations if r.head in kept and r.tail in kept)
    return replace(note, spans=spans, relations=relations)


def common_labels(corpus: Corpus, other: Corpus) -> Corpus:
    """The corpus, reduced to the labels and relations that `other` has too, in the order of `other`."""
    labels = tuple(label for label in other.labels if label in corpus.labels)
    relation_labels = tuple(r for r in other.relation_labels if r in corpus.relation_labels)
    notes = []
    for note in corpus.notes:
        kept = apply_labels(note, labels, "")
        relations = tuple(r for r in kept.relations if r.label in relation_labels)
        notes.append(replace(kept, relations=relations))
    return Corpus(tuple(notes), labels, relation_labels)


def _apply_built_in(note: Note, built_in: BuiltIn) -> Note:
    labels = {span.id: span.label for span in note.spans}
    ends = set()
    for relation in note.relations:
        ends.add((relation.head, "head", relation.label, labels[relation.tail]))
        ends.add((relation.tail, "tail", relation.label, labels[relation.head]))

    names: dict[str, str] = {}
    for span, rule in product(note.spans, built_in.rules):
        is_fit = rule.only_as is None or (span.id, *rule.only_as) in ends
        if rule.source == span.label and is_fit:
            names.setdefault(span.id, rule.target)
    pairs = {
        pair: f"{names[pair[0]]}-Drug"
        for pair in built_in.links(note)
        if names.get(pair[0], "Drug") != "Drug" and names.get(pair[1]) == "Drug"
    }
    return replace(
        note,
        spans=tuple(replace(s, label=names[s.id]) for s in note.spans if s.id in names),
        relations=tuple(
            Relation(f"R{number}", label, *pair)
            for number, (pair, label) in enumerate(pairs.items(), start=1)
        ),
    )
