"""What a model is asked about notes that it does not learn from, and how well it answers.

    rows -> answers -> (rows about the mentions found -> answers) -> counts of each note

Every window of every note is asked every question, whether or not it holds an annotation. Gold annotations
are read for the counts and, in the task `relations`, for the questions about gold mentions.
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
from raymrc.reading.targets import PieceSpan
from raymrc.reading.windows import Pieces, Window, answered_characters
from raymrc.scoring.counts import Counts
from raymrc.scoring.n2c2_2018 import Mode, score_note, score_relations
from raymrc.scoring.n2c2_2022 import score_events
from raymrc.scoring.subsets import score_subsets

Answer = SpanAnswer | np.ndarray

Triple = tuple[int, Mention, Mention]
"""Index of a relation question, given mention, answer."""


@dataclass(eq=False, repr=False)
class Evaluation:
    """One pass over some notes: `next_round` gives rows, `add_answer` takes the model's answers.

    Args:
        builder: of the configuration.
        notes: in the order of their scores.
        rows: note id -> all that can be asked before any answer; rows about gold mentions are skipped where
            labels are asked as well.
        windows, pieces: by note id; windows are read only where labels are asked.
        flat: answers to one question about a label never share text; see `decode_spans`.
        counted: labels of spans and relations that count; None: all.
    """

    builder: RowBuilder
    notes: Sequence[Note]
    rows: Mapping[str, Sequence[Row]]
    windows: Mapping[str, list[Window]]
    pieces: Mapping[str, Pieces]
    flat: bool = False
    counted: frozenset[str] | None = None
    _texts: dict[str, str] = field(init=False)
    _round: int = 0
    _labelled: dict[str, dict[int, list[tuple[int, int, int]]]] = field(default_factory=dict)
    _related: dict[str, dict[Triple, float]] = field(default_factory=dict)
    _spans: dict[str, tuple[Span, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._texts = {note.id: note.text for note in self.notes}

    @property
    def has_more(self) -> bool:
        """Whether another round follows."""
        asked = self.builder.asked
        return self._round < (2 if asked.labels and asked.relations else 1)

    def next_round(self) -> list[Row]:
        """The rows whose answers are due before the next call."""
        assert self.has_more
        self._round += 1
        if self._round == 2:
            return [row for note in self.notes for row in self._rows_about_found(note)]
        labels_first = bool(self.builder.asked.labels)
        rows = (row for note in self.notes for row in self.rows[note.id])
        return [row for row in rows if not (labels_first and row.context is not None)]

    def _rows_about_found(self, note: Note) -> list[Row]:
        bare = replace(note, spans=(), relations=())
        mentions = mentions_of(self._find_spans(note))
        contexts = self.builder.contexts(bare, self.pieces[note.id], mentions)
        return self.builder.relation_rows(bare, contexts)

    def add_answer(self, row: Row, answer: Answer) -> None:
        """The model's answer to a row of this round."""
        note_id = row.window.note_id
        if row.context is None:
            if spans := self._read_spans(row, answer):
                by_window = self._labelled.setdefault(note_id, {})
                by_window.setdefault(row.window.index, []).extend(spans)
        elif triples := self._read_relations(row, answer):
            self._related.setdefault(note_id, {}).update(triples)

    # --- results ----------------------------------------------------------------------------------

    def found(self, note: Note) -> Found:
        """The spans and relations of a note, once all rounds are answered."""
        asked = self.builder.asked
        if not asked.relations:
            return Found(self._find_spans(note))
        triples = surest_values(self._related.get(note.id, {}), asked.relations)
        mentions = mentions_of(self._find_spans(note) if asked.labels else note.spans)
        return Found(*assemble_relations(triples, asked.relations, mentions))

    def scores(self) -> dict[str, NoteCounts]:
        """Counts of each note against its gold annotations.

        Strict and lenient counts by the official 2018 rules: of relations where the task asks for them,
        otherwise of spans and their subsets. Events are also counted by the official 2022 rules.
        """
        return {note.id: self._score(note) for note in self.notes}

    def _score(self, note: Note) -> NoteCounts:
        found = self.found(note)
        has_relations = bool(self.builder.asked.relations)

        def count(mode: Mode) -> dict[str, Counts]:
            if not has_relations:
                return self._keep(score_note(note.spans, found.spans, mode))
            gold, predicted = (note.spans, note.relations), (found.spans, found.relations)
            return self._keep(score_relations(*gold, *predicted, mode))

        return NoteCounts(
            strict=count("strict"),
            lenient=count("lenient"),
            events=self._score_events(note, found),
            subsets={} if has_relations else self._score_subsets(note, found.spans),
            mentions=self._score_mentions(note, found.spans),
        )

    def _is_counted(self, label: str) -> bool:
        return self.counted is None or label in self.counted

    def _keep(self, counts: Mapping[str, Counts]) -> dict[str, Counts]:
        return {
            label: c for label, c in counts.items() if c != Counts() and self._is_counted(label)
        }

    def _score_mentions(self, note: Note, found: Sequence[Span]) -> dict[str, Counts]:
        """Tells missed mentions from missed relations between mentions that were found."""
        asked = self.builder.asked
        if not (asked.labels and asked.relations):
            return {}
        counts = self._keep(score_note(note.spans, found, "strict"))
        predicted = {(span.label, span.start, span.end) for span in found}
        hit = {s.id for s in note.spans if (s.label, s.start, s.end) in predicted}
        relations = [r for r in note.relations if self._is_counted(r.label)]
        both = sum(r.head in hit and r.tail in hit for r in relations)
        if relations:
            counts[BOTH_FOUND] = Counts(both, 0, len(relations) - both)
        return counts

    def _score_events(self, note: Note, found: Found) -> dict[str, Counts]:
        triggers = self.builder.asked.triggers
        if not triggers:
            return {}
        gold, predicted = (note.spans, note.relations), (found.spans, found.relations)
        return {
            ".".join(names): counts
            for names, counts in score_events(gold, predicted, triggers).items()
            if all(map(self._is_counted, names))
        }

    def _score_subsets(self, note: Note, found: Sequence[Span]) -> dict[str, Counts]:
        gold, predicted = (
            [span for span in spans if self._is_counted(span.label)]
            for spans in (note.spans, found)
        )
        return score_subsets(note.text, gold, predicted)

    def _find_spans(self, note: Note) -> tuple[Span, ...]:
        if note.id not in self._spans:
            labelled = self._labelled.get(note.id, {})
            labels = self.builder.asked.labels
            self._spans[note.id] = assemble(note, self.windows[note.id], labelled, labels)
        return self._spans[note.id]

    # --- one answer -------------------------------------------------------------------------------

    def _read_spans(self, row: Row, answer: Answer) -> list[tuple[int, int, int]]:
        """(label index, first, last) pieces of the window that answer a row about labels."""
        if not isinstance(answer, np.ndarray):
            return [(row.label, *pieces) for pieces in decode_row(row, answer, flat=self.flat)]
        tags_WL = answer[row.pieces.places]
        return [
            (label, *pieces)
            for label in range(tags_WL.shape[1])
            for pieces in decode_tags(tags_WL[:, label], row.window)
        ]

    def _read_relations(self, row: Row, answer: Answer) -> dict[Triple, float]:
        """The relations in a row's answer, each with its confidence in logits."""
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
        others = [(m, at) for m, at in context.others if m.label in questions[index].answers]
        places = row.pieces.places
        start_W, end_W = answer[0][places], answer[1][places]
        if self.builder.form.chooses:
            # A mention's ends are not in question, so their logits are added.
            sums = ((m, float(start_W[first] + end_W[last])) for m, (first, last) in others)
            return {(index, context.given, mention): sure for mention, sure in sums if sure > 0}
        found = {}
        labels = {(m.start, m.end): m.label for m, _ in others}
        text = self._texts[row.window.note_id]
        for first, last in decode_row(row, answer):
            start, end = answered_characters(text, row.window, first, last)
            label = labels.get((start, end), questions[index].answers[0])
            mention = Mention(start, end, label)
            if start < end and mention != context.given:
                found[index, context.given, mention] = float(start_W[first] + end_W[last])
        return found


def decode_row(row: Row, answer: SpanAnswer, *, flat: bool = False) -> list[PieceSpan]:
    """(first, last) pieces of the window that answer a row's question."""
    start_S, end_S, pairs_K2, match_K = answer
    places = row.pieces.places
    # Answers lie only in the window, so every position of a pair is one of its places.
    pairs_K2 = np.searchsorted(places, pairs_K2)
    return decode_spans(start_S[places], end_S[places], pairs_K2, match_K, flat=flat)
