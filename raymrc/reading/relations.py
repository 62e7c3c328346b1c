"""notes -> relation questions -> contexts -> answers -> relations.

A relation is asked about one of its two mentions, the given one: "what is the strength of *this*
medication?". The given mention is marked in its context, the sentences around it, so two mentions of one drug
can have different answers. The other mention is the answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from raymrc.corpora.note import Corpus, Join, Note, Relation, Span, value_attribute
from raymrc.reading.targets import PieceSpan, Unreachable
from raymrc.reading.windows import Pieces, Window, context_bounds, strip_blanks, touched_pieces

T = TypeVar("T")

GIVEN_MARK, OTHER_MARK = " @", " #"
"""Stand before and after a mention: signs that every vocabulary has. Source: the typed markers of Zhou and
Chen 2022, An improved baseline for sentence-level relation extraction, arXiv:2102.01373."""

TYPE_MARKS = {GIVEN_MARK: " *", OTHER_MARK: " ^"}
"""Stand around a mention's label, within the marks."""


@dataclass(frozen=True, slots=True, order=True)
class Mention:
    """A labelled stretch of a note, gold or predicted: characters, half-open, by the envelope."""

    start: int
    end: int
    label: str


@dataclass(frozen=True, slots=True)
class RelationQuestion:
    """A question about a given mention.

    Args:
        relation: the relation's label.
        given: labels of the given mentions that it is asked about.
        answers: labels that the other mention may have, the commonest first.
        from_tail: whether the given mention is the relation's tail, its second argument.
        name: unique among a corpus's questions and labels: the relation's label, after the given label where
            a span label has that name too, and before the value.
        value: of the answer, where it is an argument with a value. Each value has its own question, and the
            surest of those that find the same answer sets its value.
    """

    relation: str
    given: tuple[str, ...]
    answers: tuple[str, ...]
    from_tail: bool
    name: str
    value: str = ""

    def turn(self, first: T, second: T) -> tuple[T, T]:
        """(given, answer) for (head, tail), and (head, tail) for (given, answer)."""
        return (second, first) if self.from_tail else (first, second)


@dataclass(frozen=True, slots=True)
class Asked:
    """All questions of a task, in the order of prompts and heads: labels, then relations."""

    labels: tuple[str, ...] = ()
    relations: tuple[RelationQuestion, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.labels, *(question.name for question in self.relations))

    @property
    def triggers(self) -> frozenset[str]:
        """Labels of the mentions that name events, where all relations are arguments of events; otherwise
        empty."""
        if not all(question.answers == (question.relation,) for question in self.relations):
            return frozenset()
        return frozenset(label for question in self.relations for label in question.given)

    def __len__(self) -> int:
        return len(self.labels) + len(self.relations)


def find_joins(corpus: Corpus) -> list[Join]:
    """What the relations of a corpus join, in the order of its relation labels."""
    joins: list[Join] = []
    for note in corpus.notes:
        by_id = {span.id: span for span in note.spans}
        joins += [
            Join(r.label, by_id[r.head].label, by_id[r.tail].label, by_id[r.tail].value)
            for r in note.relations
            if r.head in by_id and r.tail in by_id
        ]
    rank = {label: place for place, label in enumerate(corpus.relation_labels)}
    return sorted(joins, key=lambda join: rank[join.relation])


def build_relation_questions(
    joins: Iterable[Join], labels: Sequence[str]
) -> tuple[RelationQuestion, ...]:
    """The questions about the relations of a corpus, in the order of each relation's first join.

    Which labels a relation may join is part of an annotation scheme and is read from the whole corpus, so
    every gold relation has its question and no other pair of labels is asked about.

    The given side is the one whose labels more relations share, so that few mentions are asked many
    questions: a drug about its strength, form and dose, and not each of these about its drug. Where every
    relation has the label of its answer, as an event's arguments do, it means something else under another
    trigger: each given label has its own question, and one per value that occurs.
    """
    joined: dict[str, Counter[tuple[str, str]]] = {}
    values: dict[tuple[str, str], set[str]] = {}
    for join in joins:
        joined.setdefault(join.relation, Counter())[join.head, join.tail] += 1
        values.setdefault((join.relation, join.head), set()).add(join.value)
    shared = [
        Counter(s for pairs in joined.values() for s in {p[side] for p in pairs}) for side in (0, 1)
    ]
    are_arguments = bool(joined) and all(
        label == tail for label, pairs in joined.items() for _, tail in pairs
    )

    def breadth(pairs: Counter[tuple[str, str]], side: int) -> float:
        sides = {pair[side] for pair in pairs}
        return sum(shared[side][label] for label in sides) / len(sides)

    questions = []
    for label, pairs in joined.items():
        from_tail = not are_arguments and breadth(pairs, 1) > breadth(pairs, 0)
        by_given: dict[str, Counter[str]] = {}
        for (head, tail), count in pairs.items():
            given, answer = (tail, head) if from_tail else (head, tail)
            by_given.setdefault(given, Counter())[answer] += count
        groups = [(given,) for given in by_given] if are_arguments else [tuple(by_given)]
        for group in sorted(tuple(sorted(group)) for group in groups):
            answers = sum((by_given[given] for given in group), Counter())
            ordered = tuple(sorted(answers, key=lambda answer: (-answers[answer], answer)))
            name = f"{'+'.join(group)}.{label}" if label in labels else label
            answer_values = values[label, group[0]] - {""} if are_arguments else ()
            questions += [
                RelationQuestion(label, group, ordered, from_tail, f"{name}={value}", value)
                for value in sorted(answer_values)
            ] or [RelationQuestion(label, group, ordered, from_tail, name)]
    return tuple(questions)


TASKS = ("concepts", "relations", "end_to_end")
"""`concepts`: labelled spans; `relations`: of gold mentions; `end_to_end`: of predicted mentions."""


def find_asked(task: str, corpus: Corpus) -> Asked:
    """The questions of a task about a corpus."""
    return build_asked(task, corpus.labels, find_joins(corpus) if task != "concepts" else ())


def build_asked(task: str, labels: tuple[str, ...], joins: Iterable[Join]) -> Asked:
    """The questions of a task about a corpus with these labels and relations."""
    assert task in TASKS, task
    relations = build_relation_questions(joins, labels) if task != "concepts" else ()
    return Asked(labels if task != "relations" else (), relations)


def mentions_of(spans: Iterable[Span]) -> tuple[Mention, ...]:
    """Each (stretch, label) once, sorted."""
    return tuple(sorted({_mention(span) for span in spans}))


@dataclass(frozen=True, slots=True)
class Context:
    """A given mention and the text around it.

    Args:
        window: whole sentences around the mention, where they fit.
        pieces: of the given mention, in the window.
        others: other mentions that lie wholly in the window and may be answers, with their pieces.
    """

    window: Window
    given: Mention
    pieces: PieceSpan
    others: tuple[tuple[Mention, PieceSpan], ...] = ()


def build_contexts(
    note: Note,
    pieces: Pieces,
    mentions: Sequence[Mention],
    questions: Sequence[RelationQuestion],
    sentences: int,
    window: int,
) -> list[Context]:
    """A context for each gold or predicted mention with a question, in the order of `mentions`.

    Mentions without a piece, or with more pieces than a window, have none. Of the note only the text is read;
    see `context_bounds` for `sentences` and `window`.
    """
    if not pieces.ids:
        return []
    whole = (pieces.cut(0, 0, len(pieces.ids)),)
    placed = {m: touched_pieces(whole, *strip_blanks(note.text, m.start, m.end)) for m in mentions}
    answer_labels: dict[str, set[str]] = {}
    for question in questions:
        for label in question.given:
            answer_labels.setdefault(label, set()).update(question.answers)
    contexts: list[Context] = []
    for given in mentions:
        touched = placed[given]
        if given.label not in answer_labels or touched is None:
            continue
        first, last = touched
        begin, end = context_bounds(pieces.edges, len(pieces.ids), first, last, sentences, window)
        if not begin <= first <= last < end:
            continue
        others = tuple(
            (other, (at[0] - begin, at[1] - begin))
            for other, at in placed.items()
            if at is not None
            and begin <= at[0] <= at[1] < end
            and other != given
            and other.label in answer_labels[given.label]
        )
        contexts.append(
            Context(
                pieces.cut(len(contexts), begin, end), given, (first - begin, last - begin), others
            )
        )
    return contexts


def gold_answers(
    note: Note, questions: Sequence[RelationQuestion]
) -> dict[tuple[Mention, int], tuple[Mention, ...]]:
    """(given mention, index of the question) -> the mentions that gold relations join it with."""
    by_id = {span.id: span for span in note.spans}
    answers: dict[tuple[Mention, int], dict[Mention, None]] = {}
    for relation in note.relations:
        found = _ask_for(relation, by_id, questions)
        if found is not None:
            index, given, answer = found
            answers.setdefault((given, index), {})[answer] = None
    return {key: tuple(mentions) for key, mentions in answers.items()}


def surest_values(
    found: Mapping[tuple[int, Mention, Mention], float], questions: Sequence[RelationQuestion]
) -> list[tuple[int, Mention, Mention]]:
    """The answers, each with only its surest value; among equally sure values the first question's.

    Args:
        found: (index of the question, given mention, answer) -> confidence.
    """
    best: dict[tuple[str, Mention, Mention], tuple[int, Mention, Mention]] = {}
    for triple in sorted(found, key=lambda triple: (-found[triple], triple[0])):
        best.setdefault((questions[triple[0]].relation, *triple[1:]), triple)
    return list(best.values())


def assemble_relations(
    found: Iterable[tuple[int, Mention, Mention]],
    questions: Sequence[RelationQuestion],
    alone: Iterable[Mention] = (),
) -> tuple[tuple[Span, ...], tuple[Relation, ...]]:
    """Spans T1, T2 ... and relations R1, R2 ..., sorted by start, each once.

    Args:
        found: (index of the question, given mention, answer).
        alone: mentions to include, whether or not a relation joins them.
    """
    triples = sorted(set(found), key=lambda triple: (triple[1], triple[0], triple[2]))
    ends = [
        ((given, ""), (answer, questions[index].value), questions[index])
        for index, given, answer in triples
    ]
    joined = {end for given, answer, _ in ends for end in (given, answer)}
    placed = {mention for mention, _ in joined}
    mentions = sorted({*joined, *((mention, "") for mention in alone if mention not in placed)})
    ids = {mention: f"T{number}" for number, mention in enumerate(mentions, start=1)}
    spans = tuple(
        Span(
            ids[m, value],
            m.label,
            ((m.start, m.end),),
            ((value_attribute(m.label), value),) if value else (),
        )
        for m, value in mentions
    )
    relations = tuple(
        Relation(
            f"R{number}",
            question.relation,
            *question.turn(ids[given], ids[answer]),
        )
        for number, (given, answer, question) in enumerate(ends, start=1)
    )
    return spans, relations


def unreachable_relations(
    note: Note,
    contexts: Sequence[Context],
    questions: Sequence[RelationQuestion],
    lost_spans: Collection[str] = (),
    *,
    lost_answers: Collection[str] | None = None,
    one_kind: bool = False,
) -> list[Unreachable]:
    """Gold relations that no answer of any model can equal, in the note's order.

    The reasons: "no_question" (no question joins its labels and value), "duplicate" (label and both envelopes
    of an earlier relation), "no_mention" (one of its mentions cannot be found), "no_context" (its given
    mention has no piece, or more than a window), "beyond_context" (the answer does not lie wholly in the
    context) and "another_kind" (an earlier question joins its mentions: one about another value or, where
    pairs are told apart, any).

    Args:
        contexts: of the note's gold mentions.
        lost_spans: ids of gold spans that cannot be found, where mentions must be found.
        lost_answers: the same for answers, where they are read from the text; None: `lost_spans`.
        one_kind: at most one question joins a given mention and another one.
    """
    by_id = {span.id: span for span in note.spans}

    def joined(index: int, given: Mention, answer: Mention) -> tuple[str, Mention, Mention]:
        return "" if one_kind else questions[index].relation, given, answer

    first: dict[tuple[str, Mention, Mention], int] = {}
    for (given, index), answers in gold_answers(note, questions).items():
        for answer in answers:
            key = joined(index, given, answer)
            first[key] = min(index, first.get(key, index))
    lost_answers = lost_spans if lost_answers is None else lost_answers
    by_given = {context.given: context for context in contexts}
    seen = set()
    missed = []
    for relation in note.relations:
        found = _ask_for(relation, by_id, questions)
        reason = "" if found is not None else "no_question"
        if found is not None:
            index, given, answer = found
            given_id, answer_id = questions[index].turn(relation.head, relation.tail)
            if found in seen:
                reason = "duplicate"
            elif given_id in lost_spans or answer_id in lost_answers:
                reason = "no_mention"
            elif given not in by_given:
                reason = "no_context"
            elif all(answer != other for other, _ in by_given[given].others):
                reason = "beyond_context"
            elif first[joined(*found)] != index:
                reason = "another_kind"
        seen.add(found)
        if reason:
            missed.append(Unreachable(note.id, relation.id, relation.label, reason))
    return missed


def _ask_for(
    relation: Relation, by_id: Mapping[str, Span], questions: Sequence[RelationQuestion]
) -> tuple[int, Mention, Mention] | None:
    """The index of the question that a relation answers, its given mention and its answer."""
    head, tail = by_id.get(relation.head), by_id.get(relation.tail)
    if head is None or tail is None:
        return None
    for index, question in enumerate(questions):
        given, answer = question.turn(head, tail)
        if (
            question.relation == relation.label
            and given.label in question.given
            and answer.label in question.answers
            and question.value in ("", answer.value)
        ):
            return index, _mention(given), _mention(answer)
    return None


def _mention(span: Span) -> Mention:
    return Mention(span.start, span.end, span.label)
