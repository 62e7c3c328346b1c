"""What a model is asked about notes that it does not learn from, and what its answers are worth.

    rows -> answers -> (rows about mentions that were found -> answers) -> counts of each note

Every window of every note is asked every question, entity-free text included. Gold annotations are looked at
for the counts, and in the task `relations`, which is about gold mentions, for what is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from raymrc.corpora.note import Note, Span
from raymrc.ledger.record import BOTH_FOUND, Found, NoteCounts
from raymrc.model.heads import SpanAnswer
from raymrc.reading.answers import assemble, decode_spans, decode_tags
from raymrc.reading.relations import Mention, assemble_relations, mentions_of, surest_values
from raymrc.reading.rows import Row, RowBuilder
from raymrc.reading.windows import Pieces, Window, strip_blanks
from raymrc.scoring.counts import Counts
from raymrc.scoring.n2c2_2018 import Mode, score_note, score_relations
from raymrc.scoring.n2c2_2022 import score_events
from raymrc.scoring.subsets import score_subsets

Answer = SpanAnswer | np.ndarray

Triple = tuple[int, Mention, Mention]
"""Index of a relation question, given mention, answer."""


@dataclass(eq=False, repr=False)
class Exam:
    """One pass over the notes that are asked.

    Args:
        builder: of the configuration.
        notes: in the order of their scores.
        rows: by note id, what can be asked before any answer; relations of gold mentions are passed over
            where labels are asked, too.
        windows, pieces: by note id; windows are looked at only where labels are asked.
        counted: labels of spans and relations that count; None: all.
    """

    builder: RowBuilder
    notes: Sequence[Note]
    rows: Mapping[str, Sequence[Row]]
    windows: Mapping[str, list[Window]]
    pieces: Mapping[str, Pieces]
    flat: bool = False
    counted: frozenset[str] | None = None
    _texts: dict[str, str] = field(init=False, repr=False)
    _round: int = 0
    _labelled: dict[str, dict[int, list[tuple[int, int, int]]]] = field(default_factory=dict)
    _related: dict[str, dict[Triple, float]] = field(default_factory=dict)
    _spans: dict[str, tuple[Span, ...]] = field(default_factory=dict)

    def next_round(self) -> list[Row]:
        """Rows to be answered before the next call."""
        assert self.has_more
        self._round += 1
        if self._round == 2:
            return [row for note in self.notes for row in self._rows_about_found(note)]
        is_first = bool(self.builder.asked.labels)
        return [
            row
            for note in self.notes
            for row in self.rows[note.id]
            if not (is_first and row.context is not None)
        ]

    def __post_init__(self) -> None:
        self._texts = {note.id: note.text for note in self.notes}

    @property
    def has_more(self) -> bool:
        """Whether another round follows what has been asked."""
        asked = self.builder.asked
        return self._round < 2 if asked.labels and asked.relations else self._round < 1

    def _rows_about_found(self, note: Note) -> list[Row]:
        bare = replace(note, spans=(), relations=())
        mentions = mentions_of(self._find_spans(note))
        contexts = self.builder.contexts(bare, self.pieces[note.id], mentions)
        return self.builder.relation_rows(bare, contexts)

    def hear(self, row: Row, answer: Answer) -> None:
        """The model's answer to a row of this round."""
        note_id = row.window.note_id
        if row.context is None:
            if spans := read_answer(row, answer, flat=self.flat):
                of_note = self._labelled.setdefault(note_id, {})
                of_note.setdefault(row.window.index, []).extend(spans)
        elif triples := self._read_relations(row, answer):
            self._related.setdefault(note_id, {}).update(triples)

    def found(self, note: Note) -> Found:
        """When all has been asked."""
        asked = self.builder.asked
        if not asked.relations:
            return Found(self._find_spans(note))
        triples = surest_values(self._related.get(note.id, {}), asked.relations)
        mentions = mentions_of(self._find_spans(note) if asked.labels else note.spans)
        return Found(*assemble_relations(triples, asked.relations, mentions))

    def scores(self) -> dict[str, NoteCounts]:
        """Strict and lenient counts of each note against its gold, official 2018 rules: of relations
        where the task asks for them, else of spans, and then of their subsets, too. Of events the official
        2022 counts as well."""
        return {note.id: self._score(note) for note in self.notes}

    def _score(self, note: Note) -> NoteCounts:
        found = self.found(note)

        def count(mode: Mode) -> dict[str, Counts]:
            if self.builder.asked.relations:
                counts = score_relations(
                    note.spans, note.relations, found.spans, found.relations, mode
                )
            else:
                counts = score_note(note.spans, found.spans, mode)
            return {
                label: c
                for label, c in counts.items()
                if c != Counts() and (self.counted is None or label in self.counted)
            }

        return NoteCounts(
            strict=count("strict"),
            lenient=count("lenient"),
            events=self._score_events(note, found),
            subsets={} if self.builder.asked.relations else self._score_subsets(note, found.spans),
            mentions=self._score_mentions(note, found.spans),
        )

    def _score_mentions(self, note: Note, found: Sequence[Span]) -> dict[str, Counts]:
        """Whether mentions or what joins them is missed, only both together tell."""
        asked = self.builder.asked
        if not (asked.labels and asked.relations):
            return {}
        counts = {
            label: c
            for label, c in score_note(note.spans, found, "strict").items()
            if c != Counts() and (self.counted is None or label in self.counted)
        }
        there = {(span.label, span.start, span.end) for span in found}
        hit = {s.id for s in note.spans if (s.label, s.start, s.end) in there}
        relations = [r for r in note.relations if self.counted is None or r.label in self.counted]
        both = sum(r.head in hit and r.tail in hit for r in relations)
        if relations:
            counts[BOTH_FOUND] = Counts(both, 0, len(relations) - both)
        return counts

    def _score_events(self, note: Note, found: Found) -> dict[str, Counts]:
        triggers = self.builder.asked.triggers
        if not triggers:
            return {}
        gold, system = (note.spans, note.relations), (found.spans, found.relations)
        return {
            ".".join(names): counts
            for names, counts in score_events(gold, system, triggers).items()
            if self.counted is None or self.counted.issuperset(names)
        }

    def _score_subsets(self, note: Note, found: Sequence[Span]) -> dict[str, Counts]:
        gold, predicted = (
            [span for span in spans if self.counted is None or span.label in self.counted]
            for spans in (note.spans, found)
        )
        return score_subsets(note.text, gold, predicted)

    def _find_spans(self, note: Note) -> tuple[Span, ...]:
        if note.id not in self._spans:
            labelled = self._labelled.get(note.id, {})
            labels = self.builder.asked.labels
            self._spans[note.id] = assemble(note, self.windows[note.id], labelled, labels)
        return self._spans[note.id]

    def _read_relations(self, row: Row, answer: Answer) -> dict[Triple, float]:
        """All that a row's answer says, and how sure it is of it, in logits."""
        context = row.context
        assert context is not None
        questions = self.builder.asked.relations
        if row.other is not None:
            assert isinstance(answer, np.ndarray)
            other, _ = context.others[row.other]
            kinds = [
                kind
                for kind, question in enumerate(questions, start=1)
                if context.given.label in question.given and other.label in question.answers
            ]
            best = max(kinds, key=lambda kind: answer[kind])
            lead = float(answer[best] - answer[0])
            return {(best - 1, context.given, other): lead} if lead > 0 else {}
        assert not isinstance(answer, np.ndarray)
        index = row.label - len(self.builder.asked.labels)
        of_label = [(m, at) for m, at in context.others if m.label in questions[index].answers]
        places = row.pieces.places
        start, end = answer[0][places], answer[1][places]
        if self.builder.form.chooses:
            # A mention's ends are not in question, so what they say is added up.
            sums = ((m, float(start[first] + end[last])) for m, (first, last) in of_label)
            return {(index, context.given, mention): sure for mention, sure in sums if sure > 0}
        found = {}
        known = {(m.start, m.end): m.label for m, _ in of_label}
        text = self._texts[row.window.note_id]
        for first, last in decode_row(row, answer):
            offsets = row.window.offsets
            start_char, end_char = strip_blanks(text, offsets[first][0], offsets[last][1])
            label = known.get((start_char, end_char), questions[index].answers[0])
            mention = Mention(start_char, end_char, label)
            if start_char < end_char and mention != context.given:
                found[index, context.given, mention] = float(start[first] + end[last])
        return found


def read_answer(row: Row, answer: Answer, *, flat: bool = False) -> list[tuple[int, int, int]]:
    """What a model answered to a row about labels, as (label index, first, last) pieces of its window.

    Args:
        answer: tags (S, L), or (start_S, end_S, pairs_K2, match_K), over the row's positions.
        flat: see `decode_spans`.
    """
    if isinstance(answer, np.ndarray):
        tags = answer[row.pieces.places]
        return [
            (label, first, last)
            for label in range(tags.shape[1])
            for first, last in decode_tags(tags[:, label])
        ]
    return [(row.label, first, last) for first, last in decode_row(row, answer, flat=flat)]


def decode_row(row: Row, answer: SpanAnswer, *, flat: bool = False) -> list[tuple[int, int]]:
    """(first, last) pieces of the window that answer a row's question."""
    start_S, end_S, pairs_K2, match_K = answer
    places = row.pieces.places
    # Answers are only ever where the window is, so every position of a pair is one of its places.
    pairs_K2 = np.searchsorted(places, pairs_K2)
    return decode_spans(start_S[places], end_S[places], pairs_K2, match_K, flat=flat)
