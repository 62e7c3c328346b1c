"""Synthetic notes with exact annotations, for demos and tests.

    patient -> templates, filled at random -> blocks of text with marks -> wrapped lines -> Note

Templates use a small markup: `<Label|text>` is a span, `<Label=value|text>` a span with a value,
`<Label@2|text>` a span of the second group (a mark is related to the hubs of its group, which are drugs
or triggers). Marks may nest. `{slot}` is filled from the word lists, `{^slot}` with a capital. Offsets
are recorded while the text is written. Words and templates, all written for raymrc, are in
`synthetic_texts.json`; the marks there are the annotation guideline.

The notes are hard on purpose: the same symptom is a Reason, an ADE or neither, and only the verb tells;
drugs in allergy lists, of relatives, or never given are not annotated, nor are durations, frequencies
and amounts of other things; most drug names are invented, and people and hospitals have similar names;
words are misspelt.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from raymrc.corpora.formats import READERS, SHAC_TRIGGERS
from raymrc.corpora.note import Corpus, Note, Relation, Span, value_attribute
from raymrc.errors import CorpusError

_Item = TypeVar("_Item")

MIN_CHARACTERS, MAX_CHARACTERS = 800, 2500  # of a note

_TEXTS: dict[str, Any] = json.loads(
    Path(__file__).with_name("synthetic_texts.json").read_text("utf-8")
)
_UNIT_STEPS = _TEXTS["unit_steps"]


def synthesize_corpus(scheme: str, notes: int, site: str, seed: int) -> Corpus:
    """A corpus of synthetic notes; the same arguments give the same bytes on any machine.

    A third of the patients have two notes, which share a group. A longer corpus begins with the notes
    of a shorter one of the same seed.

    Args:
        scheme: "n2c2-2018" for discharge summaries with drugs and their attributes, "n2c2-2022" for
            social histories with triggers and their arguments.
        site: "a" writes full sentences under headings with narrow lines; "b" writes terse lower-case
            lists with abbreviations and more errors. Their label priors differ, too.

    Raises:
        CorpusError: scheme or site is unknown, or `notes` is below 1.
    """
    if scheme not in _SCHEMES:
        raise CorpusError(f"unknown scheme '{scheme}'; choose one of {', '.join(_SCHEMES)}")
    if site not in _SITES:
        raise CorpusError(f"unknown site '{site}'; choose one of {', '.join(_SITES)}")
    if notes < 1:
        raise CorpusError(f"cannot make {notes} notes; set 1 or more")
    written: list[Note] = []
    patient = 0
    while len(written) < notes:
        patient += 1
        dice = _Dice(f"{scheme}/{site}/{seed}/{patient}")
        persona = _meet(dice, _SITES[site])
        group = f"{site}{patient:04d}"
        for visit in range(2 if dice.chance(1 / 3) else 1):
            if len(written) < notes:
                note_id = f"{group}-{visit + 1}"
                written.append(_write_note(_SCHEMES[scheme], persona, dice, note_id, group))
    reader = READERS[scheme]
    return Corpus(tuple(written), reader.labels or (), reader.relation_labels or ())


class _Dice:
    """Random draws that are equal in every version of Python, which guarantees this of `random()` alone."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def whole(self, low: int, high: int) -> int:
        return low + int(self._random.random() * (high - low + 1))

    def pick(self, items: Sequence[_Item]) -> _Item:
        return items[int(self._random.random() * len(items))]

    def weighted(self, weights: Mapping[str, float]) -> str:
        point = self._random.random() * sum(weights.values())
        for name, weight in weights.items():
            point -= weight
            if point < 0:
                return name
        return name

    def shuffled(self, items: Sequence[_Item]) -> list[_Item]:
        rest = list(items)
        return [rest.pop(self.whole(0, len(rest) - 1)) for _ in range(len(items))]


@dataclass(eq=False)
class _Mark:
    """A span under construction. Marks are compared by identity, because two may be equal in value."""

    label: str
    value: str
    group: str
    fragments: list[tuple[int, int]] = field(default_factory=list)
    id: str = ""  # known when the note is complete


@dataclass
class _Block:
    """A stretch of text and its marks, ordered by start."""

    text: str = ""
    marks: list[_Mark] = field(default_factory=list)
    relations: list[tuple[_Mark, _Mark]] = field(default_factory=list)  # hub, other

    def add(self, other: _Block) -> None:
        shift = len(self.text)
        for mark in other.marks:
            mark.fragments = [(start + shift, end + shift) for start, end in mark.fragments]
        self.text += other.text
        self.marks += other.marks
        self.relations += other.relations


_MARKUP = re.compile(
    r"<(?P<label>\w+)(?:=(?P<value>\w+))?(?:@(?P<group>\w+))?\||(?P<closing>>)|[^<>]+"
)


def _mark_up(markup: str, hubs: Sequence[str], spell: Callable[[str], str]) -> _Block:
    """Convert markup without slots to text, marks and their relations.

    Args:
        hubs: labels to which the other marks of a group are related.
        spell: applied to each stretch of words between two brackets.
    """
    block = _Block()
    opened: list[tuple[_Mark, int]] = []
    for part in _MARKUP.finditer(markup):
        if part["label"]:
            mark = _Mark(part["label"], part["value"] or "", part["group"] or "")
            block.marks.append(mark)
            opened.append((mark, len(block.text)))
        elif part["closing"]:
            mark, start = opened.pop()
            mark.fragments = [(start, len(block.text))]
        else:
            block.text += spell(part[0])
    assert not opened, "a template with an open bracket"
    for hub in block.marks:
        for mark in block.marks:
            if hub.label in hubs and mark.label not in hubs and mark.group == hub.group:
                block.relations.append((hub, mark))
    return block


def _wrap(block: _Block, width: int, hanging: int) -> _Block:
    """Break lines at spaces, and indent later lines by `hanging` characters.

    A span over a break gets one fragment per line, as in brat.
    """
    breaks = []
    line_start, last_space, indent = 0, -1, 0
    for index, character in enumerate(block.text):
        if character == "\n":
            line_start, last_space, indent = index + 1, -1, 0
        elif character == " ":
            last_space = index
        if index - line_start + indent >= width and last_space > line_start:
            breaks.append(last_space)
            line_start, last_space, indent = last_space + 1, -1, hanging
    moved = []
    text = ""
    for index, character in enumerate(block.text):
        moved.append(len(text))
        text += "\n" + " " * hanging if index in breaks else character
    for mark in block.marks:
        pieces = []
        for start, end in mark.fragments:
            for cut in [cut for cut in breaks if start < cut < end] + [end]:
                pieces.append((moved[start], moved[cut - 1] + 1))
                start = cut + 1
        mark.fragments = pieces
    return _Block(text, block.marks, block.relations)


@dataclass(frozen=True)
class _Style:
    """How a site writes.

    Args:
        width, hanging: line length, and the indent of a wrapped line.
        lower: probability that a note's prose is in lower case.
        typo: probability that a word of five or more letters is misspelt.
        familiar: share of real drug names.
        listed: fewest and most discharge medications.
        courses: weight of each kind of hospital-course sentence.
        words: the site's word lists.
    """

    name: str
    width: int
    hanging: int
    lower: float
    typo: float
    familiar: float
    listed: tuple[int, int]
    courses: Mapping[str, float]
    words: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class _Persona:
    """One patient at one site: what their notes have in common."""

    style: _Style
    words: Mapping[str, str]
    drugs: tuple[str, ...]


def _meet(dice: _Dice, style: _Style) -> _Persona:
    she, her, woman = dice.pick((("she", "her", "woman"), ("he", "his", "man")))
    words = {"she": she, "her": her, "woman": woman, "age": str(dice.whole(24, 91))}
    words["surname"] = _coin(dice, _TEXTS["name_ends"])
    drugs = tuple(_drug(dice, style) for _ in range(7))
    return _Persona(style, words, drugs)


def _coin(dice: _Dice, ends: Sequence[str]) -> str:
    middles = "".join(dice.pick(_TEXTS["middles"]) for _ in range(dice.whole(0, 2)))
    return dice.pick(_TEXTS["starts"]) + middles + dice.pick(ends)


def _drug(dice: _Dice, style: _Style) -> str:
    familiar = dice.chance(style.familiar)
    name = dice.pick(style.words["known_drug"]) if familiar else _coin(dice, _TEXTS["drug_ends"])
    if dice.chance(0.2):
        name += " " + dice.pick(_TEXTS["salts"])
    return name


def _amount(dice: _Dice) -> str:
    unit = dice.pick(("mg", "mg", "mg", "mg", "units", "mcg", "g", "mL"))
    space = "" if dice.chance(0.2) else " "
    return f"{dice.pick(_UNIT_STEPS)}{space}{unit}"


def _strength(dice: _Dice) -> str:
    if dice.chance(0.2):
        return f"{dice.pick(_UNIT_STEPS)} mg/{dice.pick(('5 mL', 'mL', '24 hr'))}"
    if dice.chance(0.1):
        return f"{dice.pick(_UNIT_STEPS)}-{dice.pick(_UNIT_STEPS)} mg"
    return f"{dice.pick(_UNIT_STEPS)} {dice.pick(('mg', 'mg', 'mg', 'mcg', '%', 'unit/mL'))}"


def _signature(dice: _Dice) -> str:
    """`10 mg Tablet Sig: One (1) Tablet PO DAILY`, marked up; a form may be inside the dosage."""
    form, counted, route = dice.pick(_TEXTS["forms"])
    word, number = dice.pick(_TEXTS["counts"])
    count = f"{word} ({number})" if word != number else number
    counted = f"<Form|{counted}>" if counted not in ("mL", "Appl", "Puff") else counted
    if dice.chance(0.35) or not counted.startswith("<"):
        dose = f"<Dosage|{count} {counted}>"
    else:
        dose = f"<Dosage|{count}> {counted}"
    return (
        f"<Strength|{_strength(dice)}> <Form|{form}> Sig: {dose} <Route|{route}> "
        "<Frequency|{frequency}>"
    )


_COMPUTED: Mapping[str, Callable[[_Dice, _Persona], str]] = {
    "drug": lambda dice, who: dice.pick(who.drugs) if dice.chance(0.4) else _drug(dice, who.style),
    "name": lambda dice, who: _coin(dice, _TEXTS["name_ends"]),
    "amount": lambda dice, who: _amount(dice),
    "strength": lambda dice, who: _strength(dice),
    "signature": lambda dice, who: _signature(dice),
    "n": lambda dice, who: str(dice.whole(2, 12)),
    "few": lambda dice, who: str(dice.whole(2, 6)),
    "teens": lambda dice, who: str(dice.whole(10, 48)),
    "hundred": lambda dice, who: str(dice.whole(60, 220)),
    "tenths": lambda dice, who: f"{dice.whole(6, 52) / 10:g}",
    "year": lambda dice, who: str(dice.whole(1971, 2019)),
    "date": lambda dice, who: f"{dice.whole(2101, 2189)}-{dice.whole(1, 12)}-{dice.whole(1, 28)}",
}

_SITES: Mapping[str, _Style] = {
    "a": _Style(
        name="a",
        width=68,
        hanging=0,
        lower=0.0,
        typo=0.01,
        familiar=0.45,
        listed=(4, 6),
        courses={"ade": 1.6, "reason": 2, "duration": 0.7, "drug": 2, "decoy": 3},
        words=_TEXTS["words"],
    ),
    "b": _Style(
        name="b",
        width=92,
        hanging=4,
        lower=0.8,
        typo=0.04,
        familiar=0.3,
        listed=(2, 4),
        courses={"ade": 4, "reason": 2.5, "duration": 2.5, "drug": 1.5, "decoy": 3.5},
        words=_TEXTS["terse_words"],
    ),
}


_SLOT = re.compile(r"\{(\^?)(\w+)\}")
_WORD = re.compile(r"[A-Za-z]{5,}")


class _Author:
    """Writes one note: fills slots, misspells, marks up, wraps and joins blocks."""

    def __init__(self, persona: _Persona, dice: _Dice, kind: _Kind) -> None:
        self.persona, self.dice, self.hubs = persona, dice, kind.hubs
        self.style = persona.style
        self.words = kind.words or self.style.words
        self.lower = dice.chance(self.style.lower)
        self.shouts = dice.chance(0.25)  # drug names of this note in capitals
        self.page = _Block()

    def fill(self, template: str) -> str:
        def choose(slot: re.Match[str]) -> str:
            capital, name = slot.groups()
            if name in self.persona.words:
                text = self.persona.words[name]
            elif name in self.words:
                text = self.fill(self.dice.pick(self.words[name]))
            else:
                text = self.fill(_COMPUTED[name](self.dice, self.persona))
            if name == "drug" and self.shouts:
                text = text.upper()
            return text[:1].upper() + text[1:] if capital else text

        return _SLOT.sub(choose, template)

    def sentence(self, template: str) -> _Block:
        return _mark_up(self.fill(template), self.hubs, self.spell)

    def spell(self, text: str) -> str:
        text = text.lower() if self.lower and not self.shouts else text
        return _WORD.sub(self.misspell, text)

    def misspell(self, match: re.Match[str]) -> str:
        word = match.group()
        if not self.dice.chance(self.style.typo):
            return word
        at = self.dice.whole(1, len(word) - 3)
        kind = self.dice.whole(0, 2)
        if kind == 0:
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        if kind == 1:
            return word[:at] + word[at + 1 :]
        return word[:at] + word[at] + word[at:]

    def write(self, block: _Block, end: str = "\n") -> None:
        """Add a paragraph or list item to the page, wrapped."""
        self.page.add(_wrap(block, self.style.width, self.style.hanging))
        self.page.text += end

    def head(self, text: str) -> None:
        self.page.text += text


def _prose(sentences: Iterable[_Block], between: str = " ", start: str = "") -> _Block:
    block = _Block(start)
    for number, sentence in enumerate(sentences):
        block.text += between if number else ""
        block.add(sentence)
    return block


def _write_summary(author: _Author) -> None:
    """A discharge summary: header, allergies, history, course, lists of medications."""
    dice, style, sentence = author.dice, author.style, author.sentence
    visit_date, is_a = author.fill("{date}"), style.name == "a"

    def medications(count: int) -> list[_Block]:
        starts = [f"{number}. " if is_a else "- " for number in range(1, count + 1)]
        listed = _TEXTS["listed"][style.name]
        return [_prose([sentence(dice.weighted(listed))], start=start) for start in starts]

    home = medications(dice.whole(1, 2) if is_a else dice.whole(1, 3))
    discharge = medications(dice.whole(*style.listed))
    if is_a:
        author.head(f"Admission Date: [{visit_date}]    Service: ")
        author.head(dice.pick(author.words["service"]) + "\n\n")
        author.head("Allergies:\n")
        author.write(sentence("{^drug} / {^drug} ({symptom})"), "\n\n")
        author.head("History of Present Illness:\n")
        opening = "{age}-year-old {woman} with {problem} and {problem} who came with "
        opening += "{duration} of {symptom}."
    else:
        author.head(dice.pick(("all: ", "ALLERGIES - ")))
        author.write(sentence("{drug} = {symptom}, {drug}"))
        author.head(dice.pick(("hpi: ", "HPI - ")))
        opening = "{age}yo {woman} w/ {problem}, {problem} p/w {symptom} x {duration}."
    decoys = dice.shuffled(_TEXTS["courses"]["decoy"])
    author.write(_prose([sentence(opening), sentence(decoys.pop())]), "\n\n" if is_a else "\n")
    author.head("Medications on Admission:\n" if is_a else "home meds\n")
    for item in home:
        author.write(item)

    author.head("\nBrief Hospital Course:\n" if is_a else dice.pick(("course:\n", "A/P\n")))
    lists = sum(len(item.text) + 1 + style.hanging * 3 for item in discharge)
    target = dice.whole(1050, 1900)
    decks = {kind: dice.shuffled(templates) for kind, templates in _TEXTS["courses"].items()}
    decks["decoy"] = decoys
    course: list[_Block] = []
    length = len(author.page.text) + lists
    while length < target or len(course) < 2:
        kind = dice.weighted({k: w for k, w in style.courses.items() if decks[k]})
        course.append(sentence(decks[kind].pop()))
        length += len(course[-1].text) + 1
    size = 4 if is_a else dice.whole(1, 3)
    for first in range(0, len(course), size):
        author.write(_prose(course[first : first + size], start="" if is_a else "# "))

    author.head(
        "\nDischarge Medications:\n" if is_a else dice.pick(("dc meds:\n", "D/C MEDS =>\n"))
    )
    for item in discharge:
        author.write(item)
    if is_a:
        author.head("\nFollow up with Dr. " + author.persona.words["surname"].title() + ".\n")


def _write_social(author: _Author) -> None:
    """A social history between the present illness, the family history and loose sentences."""
    dice, style, sentence = author.dice, author.style, author.sentence
    visit_date, is_a = author.fill("{date}"), style.name == "a"
    decoys = [sentence(template) for template in dice.shuffled(_TEXTS["social_decoys"])]
    author.head(f"NOTE [{visit_date}]\n\n" if is_a else f"{visit_date}\n")
    author.head("HISTORY OF PRESENT ILLNESS:\n" if is_a else "cc/hpi - ")
    opening = "{age}-year-old {woman} with {problem} who came for {symptom} of {duration}."
    author.write(_prose([sentence(opening), *[decoys.pop() for _ in range(3)]]))

    templates = _TEXTS["social"][style.name]
    if dice.chance(0.2 if is_a else 0.25):
        kinds = ["all", "Employment", "LivingStatus"]
    else:
        kinds = ["Tobacco", "Alcohol", "Drug", "Employment", "LivingStatus"]
    events = []
    for kind in dice.shuffled(kinds):
        # Site b writes less about work and home.
        if not is_a and kind in ("Employment", "LivingStatus") and dice.chance(0.45):
            continue
        chosen = dice.shuffled(templates[kind])
        events.append(sentence(chosen.pop()))
        if kind != "all" and dice.chance(0.25):
            events.append(sentence(chosen.pop()))
    author.head("\nSOCIAL HISTORY:\n" if is_a else dice.pick(("\nsh:\n", "\nSOC HX\n")))
    if is_a:
        events.insert(dice.whole(1, len(events)), decoys.pop())
        author.write(_prose(events))
    elif dice.chance(0.5):
        for event in events:
            author.write(_prose([event], start="* "))
    else:
        author.write(_prose(events, between="; "))

    author.head("\nFAMILY HISTORY AND OTHER:\n" if is_a else "fh/other\n")
    rest: list[_Block] = []
    target = dice.whole(MIN_CHARACTERS + 60, 1300)
    while decoys and len(author.page.text) + sum(len(x.text) + 1 for x in rest) < target:
        rest.append(decoys.pop())
    author.write(_prose(rest))


def _drug_relations(pairs: Sequence[tuple[_Mark, _Mark]]) -> tuple[Relation, ...]:
    """`ADE-Drug`, from the attribute to the drug."""
    return tuple(
        Relation(f"R{number}", f"{other.label}-{hub.label}", other.id, hub.id)
        for number, (hub, other) in enumerate(pairs, start=1)
    )


def _event_relations(pairs: Sequence[tuple[_Mark, _Mark]]) -> tuple[Relation, ...]:
    """Relations from trigger to argument, with the ids that brat's event lines give."""
    arguments: dict[str, list[_Mark]] = {}
    for hub, other in pairs:
        arguments.setdefault(hub.id, []).append(other)
    return tuple(
        Relation(f"E{event}.{position}", mark.label, hub, mark.id)
        for event, (hub, marks) in enumerate(arguments.items(), start=1)
        for position, mark in enumerate(marks, start=1)
    )


@dataclass(frozen=True)
class _Kind:
    """How the notes of a scheme are written.

    Args:
        hubs: labels to which the other spans of a sentence are related.
        words: word lists; None for the site's.
    """

    hubs: tuple[str, ...]
    write: Callable[[_Author], None]
    name_relations: Callable[[Sequence[tuple[_Mark, _Mark]]], tuple[Relation, ...]]
    words: Mapping[str, tuple[str, ...]] | None = None


_SCHEMES: Mapping[str, _Kind] = {
    "n2c2-2018": _Kind(("Drug",), _write_summary, _drug_relations),
    "n2c2-2022": _Kind(SHAC_TRIGGERS, _write_social, _event_relations, _TEXTS["social_words"]),
}


def _write_note(kind: _Kind, persona: _Persona, dice: _Dice, note_id: str, group: str) -> Note:
    author = _Author(persona, dice, kind)
    kind.write(author)
    page = author.page
    size = len(page.text)
    assert MIN_CHARACTERS <= size <= MAX_CHARACTERS, f"{note_id}: {size} characters"
    spans = []
    marks = sorted(page.marks, key=lambda mark: (mark.fragments[0][0], -mark.fragments[-1][1]))
    for number, mark in enumerate(marks, start=1):
        mark.id = f"T{number}"
        attributes = ((value_attribute(mark.label), mark.value),) if mark.value else ()
        spans.append(Span(mark.id, mark.label, tuple(mark.fragments), attributes))
    relations = kind.name_relations(page.relations)
    return Note(note_id, page.text, tuple(spans), relations, group, persona.style.name)
