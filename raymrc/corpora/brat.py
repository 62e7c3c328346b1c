"""brat standoff: a folder of .txt and .ann pairs, read and written.

    folder -> pairs -> lines -> spans, relations, attributes -> notes

What becomes what:

- T lines are spans. Offsets count the characters of the .txt as it is stored: CRLF counts
  two, as in brat itself.
- R lines are relations; an argument that names an event means that event's trigger.
- E lines: the trigger is a span already; each argument becomes a relation from trigger to
  argument, with the id "E3.1" (first argument of event E3). Its label is the role or, for
  schemes where the types of the T lines decide, the argument's type.
- A and M lines are attributes of their span; those of an event belong to its trigger.
- `*`, `#` and N lines (equivalences, remarks, identifiers) have no place in a note: left out.
- `groups.tsv` (doc_id, group) and `sites.tsv` (doc_id, site) beside the notes say what brat
  cannot: which notes share a patient or article, and where they come from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath

from raymrc.corpora.note import Note, Relation, Span
from raymrc.corpora.problems import (
    NotePlace,
    Problems,
    Reading,
    read_lines,
    read_table,
    read_text,
)
from raymrc.errors import CorpusError, suggest

Fragments = tuple[tuple[int, int], ...]

EVENT_ARGUMENT = re.compile(r"(E\d\S*)\.(\d+)")
"""Id of a relation that was read off an event line: event, and position among its arguments."""


@dataclass(frozen=True, slots=True)
class BratScheme:
    """What a brat folder may hold.

    Args:
        labels: span labels; None for any.
        relation_labels: relation labels; None for any.
        triggers: labels of spans that are events' triggers, and are written as such.
        types_decide: an event argument's relation is labelled by the argument's type, not its role.
        paths_are_ids: notes of subfolders are named "folder/file", and the folder is the site.
        attributes: name -> values that it may have; others are warned of. Empty for any.
    """

    labels: tuple[str, ...] | None = None
    relation_labels: tuple[str, ...] | None = None
    triggers: frozenset[str] = frozenset()
    types_decide: bool = False
    paths_are_ids: bool = False
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


ANYTHING = BratScheme()


def read_brat(folder: Path, scheme: BratScheme = ANYTHING) -> Reading:
    """All notes below a folder, in the order of their paths.

    Hidden files are passed over. A .txt without an .ann and an .ann without a .txt are errors: a
    note without annotations has an empty .ann.
    """
    reading = Reading()
    problems = reading.problems
    if not folder.is_dir():
        problems.error(folder, None, "is not a folder; give the folder of the .txt and .ann files")
        return reading
    for stem, suffixes in sorted(_pairs(folder).items()):
        text_path, annotation_path = (folder / f"{stem}{suffix}" for suffix in (".txt", ".ann"))
        if ".ann" not in suffixes:
            problems.error(
                text_path,
                None,
                f"has no {annotation_path.name} beside it; add one (empty where nothing is "
                "annotated) or take the file away",
            )
            continue
        if ".txt" not in suffixes:
            problems.error(
                annotation_path, None, f"has no {text_path.name} beside it; add the note's text"
            )
            continue
        text = read_text(text_path, problems)
        lines = read_lines(annotation_path, problems)
        if text is None or lines is None:
            continue
        spans, relations = parse_annotations(lines, text, annotation_path, scheme, problems)
        path = PurePosixPath(stem)
        note_id = stem if scheme.paths_are_ids else path.name
        site = path.parent.name if scheme.paths_are_ids else ""
        note = Note(note_id, text, spans, relations, note_id, site)
        reading.add(note, NotePlace(text_path), annotation_path)
    groups = read_table(folder / "groups.tsv", "group", reading)
    sites = read_table(folder / "sites.tsv", "site", reading)
    reading.notes = [
        replace(note, group=groups.get(note.id, note.group), site=sites.get(note.id, note.site))
        for note in reading.notes
    ]
    return reading


def _pairs(folder: Path) -> dict[str, set[str]]:
    """Path below the folder without its ending -> the endings that are there."""
    pairs: dict[str, set[str]] = {}
    for path in folder.rglob("*"):
        below = path.relative_to(folder)
        if path.suffix in (".txt", ".ann") and not any(p.startswith(".") for p in below.parts):
            pairs.setdefault(below.as_posix().removesuffix(path.suffix), set()).add(path.suffix)
    return pairs


@dataclass(slots=True)
class _Event:
    line: int
    kind: str
    trigger: str
    arguments: list[tuple[str, str]]


@dataclass(slots=True)
class _Lines:
    """The lines of one .ann by kind, before ids are resolved: they may name later lines."""

    spans: dict[str, tuple[int, str, Fragments]] = field(default_factory=dict)
    events: dict[str, _Event] = field(default_factory=dict)
    relations: dict[str, tuple[int, str, str, str]] = field(default_factory=dict)
    attributes: list[tuple[int, str, str, str, str]] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    """Ids of relations and events in file order."""


class _BrokenLine(Exception):
    """What is wrong with a line, and what to do."""


def parse_annotations(
    lines: Iterable[str],
    text: str | None,
    path: Path,
    scheme: BratScheme,
    problems: Problems,
) -> tuple[tuple[Span, ...], tuple[Relation, ...]]:
    """Spans and relations of one .ann; what cannot be used is left out and reported.

    Args:
        lines: without line ends.
        text: the note's characters, to check offsets against; None where there is no text.
        path: for the reports.
    """
    mine = Problems()
    parsed = _Lines()
    parsers: Mapping[str, Callable[[str, str, int], None]] = {
        "T": lambda name, rest, line: _parse_span(
            parsed, name, rest, line, text, scheme, path, mine
        ),
        "R": lambda name, rest, line: _parse_relation(parsed, name, rest, line),
        "E": lambda name, rest, line: _parse_event(parsed, name, rest, line),
        "A": lambda name, rest, line: _parse_attribute(parsed, name, rest, line),
        "M": lambda name, rest, line: _parse_attribute(parsed, name, rest, line),
    }
    ids: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line[0] in "*#N":
            continue
        name, tab, rest = line.partition("\t")
        name = name.strip()
        if line[0] not in parsers or not tab or not re.fullmatch(r"[A-Z]\d\S*", name):
            mine.error(
                path, number, "is not a brat line (T, R, E, A, M, N, * or #, id, tab); mend it"
            )
            continue
        if name in ids:
            mine.error(path, number, f"id {name} is taken by line {ids[name]}; give a new id")
            continue
        ids[name] = number
        try:
            parsers[line[0]](name, rest, number)
        except _BrokenLine as broken:
            mine.error(path, number, f"{name} {broken}")
    result = _resolve(parsed, ids, path, scheme, mine)
    mine.found.sort(key=lambda problem: problem.line or 0)
    problems.found.extend(mine.found)
    return result


def _parse_span(
    parsed: _Lines,
    name: str,
    rest: str,
    line: int,
    text: str | None,
    scheme: BratScheme,
    path: Path,
    problems: Problems,
) -> None:
    head, tab, covered = rest.partition("\t")
    label, _, places = head.strip().partition(" ")
    numbers = re.fullmatch(r"\d+ +\d+( *; *\d+ +\d+)*", places.strip())
    if not tab or not numbers:
        raise _BrokenLine("is not 'label start end', tab, text; mend the line")
    fragments: list[tuple[int, int]] = []
    for part in places.split(";"):
        start, end = (int(number) for number in part.split())
        fragments.append((start, end))
        if start >= end:
            raise _BrokenLine(f"{label} {start}-{end} ends before it starts; mend the offsets")
        if text is not None and end > len(text):
            raise _BrokenLine(
                f"{label} {start}-{end} reaches past the note's end ({len(text)} characters); "
                "mend the offsets"
            )
    if text is not None and not _same_words(_under(text, fragments), covered):
        unix = text.replace("\r\n", "\n")
        hint = "mend the offsets or the text column"
        if unix != text and _same_words(_under(unix, fragments), covered):
            hint = "the offsets count CRLF as one character: store the .txt with LF line ends"
        start, end = fragments[0][0], fragments[-1][1]
        raise _BrokenLine(
            f"{label} {start}-{end}: the text column is not what stands there; {hint}"
        )
    if scheme.labels is not None and label not in scheme.labels:
        # The span is kept, so that what refers to it is not reported as well.
        problems.error(
            path, line, f"{name} has the unknown label {label}{suggest(label, scheme.labels)}"
        )
    ascending = tuple(sorted(fragments))
    if any(first[1] > second[0] for first, second in pairwise(ascending)):
        problems.warn(path, line, f"{name} {label} has fragments that overlap; join them")
    parsed.spans[name] = (line, label, ascending)


def _under(text: str, fragments: Iterable[tuple[int, int]]) -> str:
    return " ".join(text[start:end] for start, end in fragments)


def _same_words(first: str, second: str) -> bool:
    """Equal but for white space, because the text column has blanks for line ends."""
    return first == second or first.split() == second.split()


def _parse_relation(parsed: _Lines, name: str, rest: str, line: int) -> None:
    label, *arguments = rest.split()
    targets = [argument.partition(":")[2] for argument in arguments]
    if len(targets) != 2 or not all(targets):
        raise _BrokenLine("is not 'label Arg1:id Arg2:id'; mend the line")
    parsed.relations[name] = (line, label, targets[0], targets[1])
    parsed.order.append(name)


def _parse_event(parsed: _Lines, name: str, rest: str, line: int) -> None:
    pairs = [part.partition(":") for part in rest.split()]
    if not pairs or not all(role and target for role, _, target in pairs):
        raise _BrokenLine("is not 'type:id role:id ...'; mend the line")
    trigger, *arguments = [(role, target) for role, _, target in pairs]
    parsed.events[name] = _Event(line, *trigger, arguments)
    parsed.order.append(name)


def _parse_attribute(parsed: _Lines, name: str, rest: str, line: int) -> None:
    label, _, rest = rest.strip().partition(" ")
    target, _, value = rest.strip().partition(" ")
    if not target:
        raise _BrokenLine("is not 'name id value'; mend the line")
    parsed.attributes.append((line, name, label, target, value.strip()))


def _resolve(
    parsed: _Lines, ids: Mapping[str, int], path: Path, scheme: BratScheme, problems: Problems
) -> tuple[tuple[Span, ...], tuple[Relation, ...]]:
    """Ids become spans: an event's id stands for its trigger."""

    def find(name: str, referrer: str, line: int) -> str | None:
        """The span that an id means; None where there is none, which is reported where it stands."""
        if name in parsed.spans:
            return name
        if name in parsed.events:
            trigger = parsed.events[name].trigger
            return trigger if trigger in parsed.spans else None
        if name not in ids:
            problems.error(path, line, f"{referrer} names {name}, which is not there; mend the id")
        elif name[0] not in "TE":
            problems.error(path, line, f"{referrer} names {name}, which is no span; mend the id")
        return None

    relations: list[Relation] = []
    for name in parsed.order:
        if name in parsed.relations:
            line, label, first, second = parsed.relations[name]
            links = [(name, label, find(first, name, line), find(second, name, line))]
        else:
            event = parsed.events[name]
            line, trigger = event.line, find(event.trigger, name, event.line)
            if event.trigger in parsed.events:
                problems.error(
                    path, line, f"{name} has the event {event.trigger} as trigger; name a span"
                )
            elif trigger is not None and parsed.spans[trigger][1] != event.kind:
                problems.warn(
                    path,
                    line,
                    f"{name} is of type {event.kind}, its trigger {trigger} of type "
                    f"{parsed.spans[trigger][1]}, which counts; make them equal",
                )
            links = []
            for position, (role, target) in enumerate(event.arguments, start=1):
                argument = find(target, name, line)
                label = role
                if scheme.types_decide and argument is not None:
                    label = parsed.spans[argument][1]
                links.append((f"{name}.{position}", label, trigger, argument))
        for relation_id, label, head, tail in links:
            if head is None or tail is None:
                continue
            relations.append(Relation(relation_id, label, head, tail))
            if scheme.relation_labels is not None and label not in scheme.relation_labels:
                problems.error(
                    path,
                    line,
                    f"{name} has the unknown label {label}{suggest(label, scheme.relation_labels)}",
                )
    triggers = {event.trigger for event in parsed.events.values()}
    for name, (line, label, _) in parsed.spans.items():
        if label in scheme.triggers and name not in triggers:
            problems.warn(path, line, f"{name} {label} is no event's trigger; add an E line")
    attributes: dict[str, list[tuple[str, str]]] = {}
    for line, name, label, target, value in parsed.attributes:
        if target in parsed.relations:
            problems.warn(path, line, f"{name} belongs to the relation {target} and is not read")
        elif (span := find(target, name, line)) is not None:
            if doubt := _doubt(label, value, scheme.attributes):
                problems.warn(path, line, f"{name} {doubt}")
            attributes.setdefault(span, []).append((label, value))
    spans = tuple(
        Span(name, label, fragments, tuple(attributes.get(name, ())))
        for name, (_, label, fragments) in parsed.spans.items()
    )
    return spans, tuple(relations)


def _doubt(name: str, value: str, attributes: Mapping[str, tuple[str, ...]]) -> str:
    """Why an attribute is not one of the scheme's; "" where it is. Its value is the note's, unsaid."""
    if not attributes:
        return ""
    if name not in attributes:
        return f"is the unknown attribute {name}{suggest(name, attributes)}"
    if value not in attributes[name]:
        return f"{name} has an unknown value; choose from {', '.join(attributes[name])}"
    return ""


def write_brat(notes: Iterable[Note], folder: Path, triggers: Collection[str] = ()) -> None:
    """Writes each note as <id>.txt and <id>.ann; reading them gives equal notes back.

    A text's characters, line ends included, are stored as they are. Groups other than the note's
    own id go to `groups.tsv`, sites to `sites.tsv`.

    Relations that were read off event lines are written as event lines again. The span ids must be
    brat's (T and a number).

    Args:
        folder: made if it is not there; must not hold other notes.
        triggers: labels of spans that are written as events with all relations that they head
            (`Reader.scheme.triggers`); those relations come back with event ids such as "E1.2".

    Raises:
        CorpusError: a note that brat cannot hold, or a folder that cannot take it. All notes
            are checked before the first is written.
    """
    files: dict[str, tuple[bytes, bytes]] = {}
    problems: list[str] = []
    tables: dict[str, list[tuple[str, str]]] = {"group": [], "site": []}
    for note in notes:
        if note.id in files:
            problems.append(f"note {note.id}: the id is taken; ids must be unique")
            continue
        path = PurePosixPath(note.id)
        if (
            path.is_absolute()
            or ".." in path.parts
            or re.search(r"[\s\\]", note.id)
            or not path.name
        ):
            problems.append(f"note {note.id!r}: the id is no file name; rename the note")
            continue
        broken = _unwritable(note)
        problems += [f"note {note.id}: {reason}" for reason in broken]
        if not broken:
            annotations = _annotation_lines(note, frozenset(triggers))
            files[note.id] = (
                note.text.encode("utf-8"),
                "".join(f"{line}\n" for line in annotations).encode("utf-8"),
            )
        tables["group"].append((note.id, note.group or note.id))
        tables["site"].append((note.id, note.site))
    if folder.is_dir():
        others = sorted(stem for stem in _pairs(folder) if stem not in files)
        if others:
            problems.append(f"{folder}: holds another note, {others[0]}; give an empty folder")
    if problems:
        raise CorpusError(problems)
    needed = {
        "group": any(group != note_id for note_id, group in tables["group"]),
        "site": any(site or "/" in note_id for note_id, site in tables["site"]),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for note_id, (text, annotations_bytes) in files.items():
            (folder / note_id).parent.mkdir(parents=True, exist_ok=True)
            (folder / f"{note_id}.txt").write_bytes(text)
            (folder / f"{note_id}.ann").write_bytes(annotations_bytes)
        for column, rows in tables.items():
            table = folder / f"{column}s.tsv"
            # One that is there already would speak of these notes, so it is written anew.
            if needed[column] or table.exists():
                table.write_bytes(
                    "".join(f"{a}\t{b}\n" for a, b in [("doc_id", column), *rows]).encode("utf-8")
                )
    except OSError as error:
        raise CorpusError(
            f"{folder}: cannot be written ({error.strerror}); choose a folder that you may write to"
        ) from None


def _unwritable(note: Note) -> list[str]:
    """Why brat cannot hold a note, a sentence each."""
    reasons = []
    by_id = {span.id: span for span in note.spans}
    if len(by_id) < len(note.spans):
        reasons.append("two spans have one id; ids must be unique")
    for span in note.spans:
        if not re.fullmatch(r"T\d\S*", span.id):
            reasons.append(f"span id {span.id!r} is not T and a number")
        if not re.fullmatch(r"[^\s:]+", span.label):
            reasons.append(f"{span.id}: the label {span.label!r} is not one word")
        fits = all(0 <= start < end <= len(note.text) for start, end in span.fragments)
        if not span.fragments or not fits or list(span.fragments) != sorted(span.fragments):
            reasons.append(f"{span.id}: its fragments are empty, unsorted or past the note's end")
        for name, value in span.attributes:
            if (
                not re.fullmatch(r"\S+", name)
                or re.search(r"[\r\n]", value)
                or value != value.strip()
            ):
                reasons.append(f"{span.id}: the attribute {name!r} does not fit on a line")
    relation_ids = set()
    trigger_of: dict[str, str] = {}
    for relation in note.relations:
        if relation.head not in by_id or relation.tail not in by_id:
            reasons.append(f"{relation.id}: names a span that is not there")
        if not re.fullmatch(r"R\d\S*", relation.id) and not EVENT_ARGUMENT.fullmatch(relation.id):
            reasons.append(f"relation id {relation.id!r} is not R and a number, or such as E1.2")
        if not re.fullmatch(r"[^\s:]+", relation.label):
            reasons.append(f"{relation.id}: the label {relation.label!r} is not one word")
        if relation.id in relation_ids:
            reasons.append(f"{relation.id}: the id is taken; ids must be unique")
        relation_ids.add(relation.id)
        event = EVENT_ARGUMENT.fullmatch(relation.id)
        if event and trigger_of.setdefault(event[1], relation.head) != relation.head:
            reasons.append(f"{relation.id}: the event has two triggers")
    for column, value in (("group", note.group), ("site", note.site)):
        if re.search(r"[\t\r\n]", value):
            reasons.append(f"the {column} has a tab or line end")
    return reasons


def _annotation_lines(note: Note, triggers: frozenset[str]) -> list[str]:
    spans: list[str] = []
    relations: list[str] = []
    attributes: list[str] = []
    for span in note.spans:
        places = ";".join(f"{start} {end}" for start, end in span.fragments)
        covered = re.sub(r"[\r\n]", " ", _under(note.text, span.fragments))
        spans.append(f"{span.id}\t{span.label} {places}\t{covered}")
        for name, value in span.attributes:
            number = len(attributes) + 1
            attributes.append(f"A{number}\t{name} {span.id} {value}".rstrip(" "))

    labels = {span.id: span.label for span in note.spans}
    events: dict[str, list[Relation]] = {}
    event_of_trigger: dict[str, str] = {}
    taken = {int(match[1]) for r in note.relations if (match := re.match(r"E(\d+)", r.id))}
    following = max(taken, default=0) + 1
    order: list[Relation | str] = []
    for relation in note.relations:
        match = EVENT_ARGUMENT.fullmatch(relation.id)
        if match:
            event = match[1]
        elif labels[relation.head] in triggers:
            event = event_of_trigger.get(relation.head, f"E{following}")
        else:
            order.append(relation)
            continue
        if event not in events:
            events[event] = []
            order.append(event)
            following += event == f"E{following}"
        event_of_trigger.setdefault(relation.head, event)
        events[event].append(relation)
    for item in order:
        if isinstance(item, Relation):
            relations.append(f"{item.id}\t{item.label} Arg1:{item.head} Arg2:{item.tail}")
        else:
            relations.append(_event_line(item, events[item], labels))
    for span in note.spans:
        if span.label in triggers and span.id not in event_of_trigger:
            relations.append(f"E{following}\t{span.label}:{span.id}")
            following += 1
    return spans + relations + attributes


def _event_line(event: str, links: list[Relation], labels: Mapping[str, str]) -> str:
    head = links[0].head
    arguments = "".join(f" {link.label}:{link.tail}" for link in links)
    return f"{event}\t{labels[head]}:{head}{arguments}"
