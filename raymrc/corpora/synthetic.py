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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from raymrc.corpora.brat import BratScheme
from raymrc.corpora.formats import N2C2_2018_SCHEME, N2C2_2022, SHAC_TRIGGERS
from raymrc.corpora.note import Corpus, Note, Relation, Span, value_attribute
from raymrc.errors import CorpusError

SyntheticScheme = Literal["n2c2-2018", "n2c2-2022"]
Site = Literal["a", "b"]
_Item = TypeVar("_Item")

MIN_CHARACTERS, MAX_CHARACTERS = 800, 2500  # of a note

_TEXTS: dict[str, Any] = json.loads(
    Path(__file__).with_name("synthetic_texts.json").read_text("utf-8")
)
_UNIT_STEPS = _TEXTS["unit_steps"]


def synthesize_corpus(scheme: SyntheticScheme, notes: int, site: Site, seed: int) -> Corpus:
    """A corpus of synthetic notes; the same arguments give the same bytes on any machine.

    A third of the patients have two notes, which share a group. A longer corpus begins with the notes
    of a shorter one of the same seed.

    Args:
        scheme: "n2c2-2018" for discharge summaries with drugs and their attributes, "n2c2-2022" for
            social histories with triggers and their arguments.
        notes: number of notes, at least 1.
        site: "a" writes full sentences under headings with narrow lines; "b" writes terse lower-case
            lists with abbreviations and more errors. Their label priors differ, too.
        seed: any whole number.

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
    described = _SCHEMES[scheme].scheme
    return Corpus(tuple(written), described.labels or (), described.relation_labels or ())


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


_OPENING = re.compile(r"<(\w+)(?:=(\w+))?(?:@(\w+))?\|")


def _mark_up(markup: str, hubs: Sequence[str], spell: Callable[[str], str]) -> _Block:
    """Convert markup without slots to text, marks and their relations.

    Args:
        hubs: labels to which the other marks of a group are related.
        spell: applied to each stretch of words between two brackets.
    """
    block = _Block()
    opened: list[tuple[_Mark, int]] = []
    position = 0
    while position < len(markup):
        opening = _OPENING.match(markup, position)
        if opening:
            label, value, group = opening.groups(default="")
            mark = _Mark(label, value, group)
            block.marks.append(mark)
            opened.append((mark, len(block.text)))
            position = opening.end()
        elif markup[position] == ">":
            mark, start = opened.pop()
            mark.fragments = [(start, len(block.text))]
            position += 1
        else:
            stop = position
            while stop < len(markup) and markup[stop] not in "<>":
                stop += 1
            block.text += spell(markup[position:stop])
            position = stop
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


def _tenths(dice: _Dice, low: int, high: int) -> str:
    return f"{dice.whole(low, high) / 10:g}"


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
    "tenths": lambda dice, who: _tenths(dice, 6, 52),
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

    def __init__(self, persona: _Persona, dice: _Dice, hubs: Sequence[str]) -> None:
        self.persona, self.dice, self.hubs = persona, dice, hubs
        self.style = persona.style
        self.lower = dice.chance(self.style.lower)
        self.shouts = dice.chance(0.25)  # drug names of this note in capitals
        self.page = _Block()

    def fill(self, template: str, words: Mapping[str, tuple[str, ...]]) -> str:
        def choose(slot: re.Match[str]) -> str:
            capital, name = slot.groups()
            if name in self.persona.words:
                text = self.persona.words[name]
            elif name in words:
                text = self.fill(self.dice.pick(words[name]), words)
            else:
                text = self.fill(_COMPUTED[name](self.dice, self.persona), words)
            if name == "drug" and self.shouts:
                text = text.upper()
            return text[:1].upper() + text[1:] if capital else text

        return _SLOT.sub(choose, template)

    def sentence(self, template: str, words: Mapping[str, tuple[str, ...]]) -> _Block:
        return _mark_up(self.fill(template, words), self.hubs, self.spell)

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


def _prose(sentences: Sequence[_Block]) -> _Block:
    block = _Block()
    for sentence in sentences:
        if block.text:
            block.text += " "
        block.add(sentence)
    return block


def _write_summary(author: _Author, visit_date: str) -> None:
    """A discharge summary: header, allergies, history, course, lists of medications."""
    dice, style = author.dice, author.style
    words, is_a = style.words, style.name == "a"

    def sentence(template: str) -> _Block:
        return author.sentence(template, words)

    def medications(count: int) -> list[_Block]:
        items = []
        for number in range(1, count + 1):
            item = _Block(f"{number}. " if is_a else "- ")
            item.add(sentence(dice.weighted(_TEXTS["listed"][style.name])))
            items.append(item)
        return items

    home = medications(dice.whole(1, 2) if is_a else dice.whole(1, 3))
    discharge = medications(dice.whole(*style.listed))
    if is_a:
        author.head(f"Admission Date: [{visit_date}]    Service: ")
        author.head(dice.pick(words["service"]) + "\n\n")
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
        block = _prose(course[first : first + size])
        if not is_a:
            numbered = _Block("# ")
            numbered.add(block)
            block = numbered
        author.write(block)

    author.head(
        "\nDischarge Medications:\n" if is_a else dice.pick(("dc meds:\n", "D/C MEDS =>\n"))
    )
    for item in discharge:
        author.write(item)
    if is_a:
        author.head("\nFollow up with Dr. " + author.persona.words["surname"].title() + ".\n")


def _write_social(author: _Author, visit_date: str) -> None:
    """A social history between the present illness, the family history and loose sentences."""
    dice, style = author.dice, author.style
    words, is_a = _TEXTS["social_words"], style.name == "a"

    def sentence(template: str) -> _Block:
        return author.sentence(template, words)

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
            line = _Block("* ")
            line.add(event)
            author.write(line)
    else:
        line = _Block()
        for event in events:
            line.text += "; " if line.text else ""
            line.add(event)
        author.write(line)

    author.head("\nFAMILY HISTORY AND OTHER:\n" if is_a else "fh/other\n")
    rest: list[_Block] = []
    target = dice.whole(MIN_CHARACTERS + 60, 1300)
    while decoys and len(author.page.text) + sum(len(x.text) + 1 for x in rest) < target:
        rest.append(decoys.pop())
    author.write(_prose(rest))


_Link = tuple[str, str, str, str]  # label and id of a hub, label and id of a mark related to it


def _drug_relations(links: Sequence[_Link]) -> tuple[Relation, ...]:
    """`ADE-Drug`, from the attribute to the drug."""
    return tuple(
        Relation(f"R{number}", f"{label}-{hub_label}", span, hub)
        for number, (hub_label, hub, label, span) in enumerate(links, start=1)
    )


def _event_relations(links: Sequence[_Link]) -> tuple[Relation, ...]:
    """Relations from trigger to argument, with the ids that brat's event lines give."""
    arguments: dict[str, list[tuple[str, str]]] = {}
    for _, hub, label, span in links:
        arguments.setdefault(hub, []).append((label, span))
    return tuple(
        Relation(f"E{event}.{position}", label, hub, span)
        for event, (hub, group) in enumerate(arguments.items(), start=1)
        for position, (label, span) in enumerate(group, start=1)
    )


@dataclass(frozen=True)
class _Kind:
    """What a scheme annotates, and how its notes are written.

    Args:
        hubs: labels to which the other spans of a sentence are related.
    """

    scheme: BratScheme
    hubs: tuple[str, ...]
    write: Callable[[_Author, str], None]
    name_relations: Callable[[Sequence[_Link]], tuple[Relation, ...]]


_SCHEMES: Mapping[str, _Kind] = {
    "n2c2-2018": _Kind(
        scheme=N2C2_2018_SCHEME,
        hubs=("Drug",),
        write=_write_summary,
        name_relations=_drug_relations,
    ),
    "n2c2-2022": _Kind(
        scheme=N2C2_2022,
        hubs=SHAC_TRIGGERS,
        write=_write_social,
        name_relations=_event_relations,
    ),
}


def _write_note(kind: _Kind, persona: _Persona, dice: _Dice, note_id: str, group: str) -> Note:
    author = _Author(persona, dice, kind.hubs)
    kind.write(author, author.fill("{date}", {}))
    page = author.page
    size = len(page.text)
    assert MIN_CHARACTERS <= size <= MAX_CHARACTERS, f"{note_id}: {size} characters"
    marks = sorted(page.marks, key=lambda mark: (mark.fragments[0][0], -mark.fragments[-1][1]))
    ids = {id(mark): f"T{number}" for number, mark in enumerate(marks, start=1)}
    spans = tuple(
        Span(
            ids[id(mark)],
            mark.label,
            tuple(mark.fragments),
            ((value_attribute(mark.label), mark.value),) if mark.value else (),
        )
        for mark in marks
    )
    relations = kind.name_relations(
        [(hub.label, ids[id(hub)], other.label, ids[id(other)]) for hub, other in page.relations]
    )
    return Note(note_id, page.text, spans, relations, group, persona.style.name)
