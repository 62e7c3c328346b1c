"""brat standoff: a folder of .txt and .ann pairs, read and written.

    folder -> pairs -> lines -> spans, relations, attributes -> notes

- T lines become spans. Offsets count the characters of the stored .txt; CRLF counts two, as in brat.
- R lines become relations; an argument that names an event stands for the event's trigger.
- E lines: each argument becomes a relation from trigger to argument, with an id such as "E3.1" (first
  argument of event E3). Its label is the role or, if the scheme's `types_decide`, the argument's type.
- A and M lines become attributes of their span; an event's attributes go to its trigger.
- `*`, `#` and N lines (equivalences, remarks, identifiers) are ignored.
- `groups.tsv` (doc_id, group) and `sites.tsv` (doc_id, site) beside the notes name what brat cannot:
  which notes share a patient or article, and where they come from.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath

from raymrc.corpora.note import Note, Relation, Span
from raymrc.corpora.problems import Problems, Reading, read_lines, read_table, read_text
from raymrc.errors import CorpusError, suggest

Fragments = tuple[tuple[int, int], ...]

EVENT_ARGUMENT = re.compile(r"(E\d\S*)\.(\d+)")
"""Id of a relation from an event line: the event's id and the argument's position."""


@dataclass(frozen=True, slots=True)
class BratScheme:
    """What a brat folder may contain.

    Args:
        labels: span labels; None for any.
        relation_labels: relation labels; None for any.
        triggers: labels of spans that are triggers of events, and are written as such.
        types_decide: label an event argument's relation by the argument's type, not its role.
        paths_are_ids: name notes in subfolders "folder/file", and take the folder as the site.
        attributes: allowed values per attribute; others give a warning. Empty to allow everything.
    """

    labels: tuple[str, ...] | None = None
    relation_labels: tuple[str, ...] | None = None
    triggers: frozenset[str] = frozenset()
    types_decide: bool = False
    paths_are_ids: bool = False
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


ANYTHING = BratScheme()


def read_brat(folder: Path, scheme: BratScheme = ANYTHING) -> Reading:
    """All notes below a folder, in the order of their paths; hidden files are skipped.

    A .txt without an .ann and an .ann without a .txt are errors: a note without annotations has an
    empty .ann.
    """
    reading = Reading()
    problems = reading.problems
    if not folder.is_dir():
        problems.error(folder, None, "is not a folder; give the folder of the .txt and .ann files")
        return reading
    for stem, suffixes in sorted(find_pairs(folder).items()):
        text_path, annotation_path = (folder / f"{stem}{suffix}" for suffix in (".txt", ".ann"))
        if ".ann" not in suffixes:
            remedy = "add one (empty if nothing is annotated) or remove the file"
            problems.error(text_path, None, f"has no {annotation_path.name} beside it; {remedy}")
            continue
        if ".txt" not in suffixes:
            remedy = "add the note's text"
            problems.error(annotation_path, None, f"has no {text_path.name} beside it; {remedy}")
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
        reading.add(note, text_path, annotations=annotation_path)
    groups = read_table(folder / "groups.tsv", "group", reading)
    sites = read_table(folder / "sites.tsv", "site", reading)
    reading.notes = [
        replace(note, group=groups.get(note.id, note.group), site=sites.get(note.id, note.site))
        for note in reading.notes
    ]
    return reading


def find_pairs(folder: Path) -> dict[str, set[str]]:
    """Path below the folder without its suffix -> the suffixes that exist; hidden files are skipped."""
    pairs: dict[str, set[str]] = {}
    for path in folder.rglob("*"):
        below = path.relative_to(folder)
        if path.suffix in (".txt", ".ann") and not any(p.startswith(".") for p in below.parts):
            pairs.setdefault(below.as_posix().removesuffix(path.suffix), set()).add(path.suffix)
    return pairs


def parse_annotations(
    lines: Iterable[str],
    text: str | None,
    path: Path,
    scheme: BratScheme,
    problems: Problems,
) -> tuple[tuple[Span, ...], tuple[Relation, ...]]:
    """Spans and relations of one .ann; unusable lines are reported and left out.

    Args:
        lines: without line ends.
        text: the note's text, to check offsets against; None to skip these checks.
        path: the file, for the reports.
    """
    parser = _AnnotationParser(text, path, scheme)
    parser.read(lines)
    result = parser.resolve()
    parser.problems.found.sort(key=lambda problem: problem.line or 0)
    problems.found.extend(parser.problems.found)
    return result


@dataclass(frozen=True, slots=True)
class _Link:
    """An R or E line.

    Args:
        label: of the relation, or the event's type.
        head: id of the first argument, or of the trigger.
        tails: label and id of each further argument.
    """

    label: str
    head: str
    tails: list[tuple[str, str]]


class _BrokenLine(Exception):
    """What is wrong with a line, and what to do."""


class _AnnotationParser:
    """The lines of one .ann by kind. Ids are resolved at the end, because a line may name later ones."""

    def __init__(self, text: str | None, path: Path, scheme: BratScheme) -> None:
        self.text, self.path, self.scheme = text, path, scheme
        self.problems = Problems()
        self.line_of: dict[str, int] = {}
        self.spans: dict[str, Span] = {}
        self.links: dict[str, _Link] = {}
        self.attributes: list[tuple[str, str, str, str]] = []  # id, name, target, value

    def read(self, lines: Iterable[str]) -> None:
        parsers = {
            "T": self._parse_span,
            "R": self._parse_relation,
            "E": self._parse_event,
            "A": self._parse_attribute,
            "M": self._parse_attribute,
        }
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line[0] in "*#N":
                continue
            name, tab, rest = line.partition("\t")
            name = name.strip()
            problem = ""
            if line[0] not in parsers or not tab or not re.fullmatch(r"[A-Z]\d\S*", name):
                problem = (
                    "is not a brat line; start it with T, R, E, A, M, N, * or #, an id and a tab"
                )
            elif name in self.line_of:
                problem = f"id {name} is used in line {self.line_of[name]}; give a new id"
            else:
                self.line_of[name] = number
                try:
                    parsers[line[0]](name, rest)
                except _BrokenLine as broken:
                    problem = f"{name} {broken}"
            if problem:
                self.problems.error(self.path, number, problem)

    def _parse_span(self, name: str, rest: str) -> None:
        head, tab, covered = rest.partition("\t")
        label, _, places = head.strip().partition(" ")
        if not tab or not re.fullmatch(r"\d+ +\d+( *; *\d+ +\d+)*", places.strip()):
            raise _BrokenLine("is not 'label start end', tab, text; correct the line")
        text = self.text
        fragments: list[tuple[int, int]] = []
        for part in places.split(";"):
            start, end = (int(number) for number in part.split())
            fragments.append((start, end))
            place = f"{label} {start}-{end}"
            if start >= end:
                raise _BrokenLine(f"{place} ends before it starts; correct the offsets")
            if text is not None and end > len(text):
                raise _BrokenLine(
                    f"{place} reaches past the note's end ({len(text)} characters); "
                    "correct the offsets"
                )
        if text is not None and not _same_words(_under(text, fragments), covered):
            unix = text.replace("\r\n", "\n")
            hint = "correct the offsets or the text column"
            if unix != text and _same_words(_under(unix, fragments), covered):
                hint = "the offsets count CRLF as one character: store the .txt with LF line ends"
            place = f"{label} {fragments[0][0]}-{fragments[-1][1]}"
            raise _BrokenLine(f"{place}: the text column differs from the note there; {hint}")
        # A span of an unknown label is kept, so that lines that name it are not reported as well.
        self._check_label(name, label, self.scheme.labels)
        ascending = tuple(sorted(fragments))
        if any(first[1] > second[0] for first, second in pairwise(ascending)):
            self._warn(name, f"{label} has overlapping fragments; join them")
        self.spans[name] = Span(name, label, ascending)

    def _parse_relation(self, name: str, rest: str) -> None:
        label, *arguments = rest.split()
        targets = [argument.partition(":")[2] for argument in arguments]
        if len(targets) != 2 or not all(targets):
            raise _BrokenLine("is not 'label Arg1:id Arg2:id'; correct the line")
        self.links[name] = _Link(label, targets[0], [(label, targets[1])])

    def _parse_event(self, name: str, rest: str) -> None:
        pairs = [part.partition(":") for part in rest.split()]
        if not pairs or not all(role and target for role, _, target in pairs):
            raise _BrokenLine("is not 'type:id role:id ...'; correct the line")
        (kind, trigger), *arguments = [(role, target) for role, _, target in pairs]
        self.links[name] = _Link(kind, trigger, arguments)

    def _parse_attribute(self, name: str, rest: str) -> None:
        label, _, rest = rest.strip().partition(" ")
        target, _, value = rest.strip().partition(" ")
        if not target:
            raise _BrokenLine("is not 'name id value'; correct the line")
        self.attributes.append((name, label, target, value.strip()))

    def resolve(self) -> tuple[tuple[Span, ...], tuple[Relation, ...]]:
        """Replace ids by spans; an event's id stands for its trigger."""
        relations: list[Relation] = []
        for name, link in self.links.items():
            is_event = name.startswith("E")
            head = self._find(link.head, name)
            if is_event:
                self._check_trigger(name, link, head)
            tails = [(label, self._find(target, name)) for label, target in link.tails]
            for position, (label, tail) in enumerate(tails, start=1):
                if head is None or tail is None:
                    continue
                if is_event and self.scheme.types_decide:
                    label = self.spans[tail].label
                relation_id = f"{name}.{position}" if is_event else name
                relations.append(Relation(relation_id, label, head, tail))
                self._check_label(name, label, self.scheme.relation_labels)
        triggers = {link.head for name, link in self.links.items() if name.startswith("E")}
        for name, span in self.spans.items():
            if span.label in self.scheme.triggers and name not in triggers:
                self._warn(name, f"{span.label} is no event's trigger; add an E line")
        attributes = self._resolve_attributes()
        spans = tuple(
            replace(span, attributes=tuple(attributes.get(name, ())))
            for name, span in self.spans.items()
        )
        return spans, tuple(relations)

    def _check_label(self, name: str, label: str, known: tuple[str, ...] | None) -> None:
        if known is not None and label not in known:
            self._error(name, f"has the unknown label {label}{suggest(label, known)}")

    def _check_trigger(self, name: str, event: _Link, trigger: str | None) -> None:
        if event.head.startswith("E") and event.head in self.links:
            self._error(name, f"has the event {event.head} as trigger; name a span")
        elif trigger is not None and self.spans[trigger].label != event.label:
            self._warn(
                name,
                f"is of type {event.label} and its trigger {trigger} of type "
                f"{self.spans[trigger].label}, which is used; make them equal",
            )

    def _resolve_attributes(self) -> dict[str, list[tuple[str, str]]]:
        attributes: dict[str, list[tuple[str, str]]] = {}
        for name, label, target, value in self.attributes:
            if target.startswith("R") and target in self.links:
                self._warn(name, f"belongs to relation {target} and is ignored")
            elif (span := self._find(target, name)) is not None:
                if doubt := _doubt(label, value, self.scheme.attributes):
                    self._warn(name, doubt)
                attributes.setdefault(span, []).append((label, value))
        return attributes

    def _find(self, name: str, referrer: str) -> str | None:
        """The span that an id stands for. None if there is none; the cause is then reported once."""
        if name in self.spans:
            return name
        if name.startswith("E") and name in self.links:
            trigger = self.links[name].head
            return trigger if trigger in self.spans else None
        if name not in self.line_of:
            self._error(referrer, f"names {name}, which does not exist; correct the id")
        elif name[0] not in "TE":
            self._error(referrer, f"names {name}, which is not a span; correct the id")
        return None

    def _error(self, name: str, message: str) -> None:
        self.problems.error(self.path, self.line_of[name], f"{name} {message}")

    def _warn(self, name: str, message: str) -> None:
        self.problems.warn(self.path, self.line_of[name], f"{name} {message}")


def _under(text: str, fragments: Iterable[tuple[int, int]]) -> str:
    return " ".join(text[start:end] for start, end in fragments)


def _same_words(first: str, second: str) -> bool:
    """Equal up to white space, because the text column has blanks for line ends."""
    return first == second or first.split() == second.split()


def _doubt(name: str, value: str, attributes: Mapping[str, tuple[str, ...]]) -> str:
    """Why the scheme does not allow an attribute, or "". The value is note text and is not named."""
    if not attributes:
        return ""
    if name not in attributes:
        return f"is the unknown attribute {name}{suggest(name, attributes)}"
    if value not in attributes[name]:
        return f"{name} has an unknown value; choose from {', '.join(attributes[name])}"
    return ""


def write_brat(notes: Iterable[Note], folder: Path, triggers: Collection[str] = ()) -> None:
    """Write each note as <id>.txt and <id>.ann; reading them returns equal notes.

    Texts are stored unchanged, line ends included. Groups other than the note's id go to
    `groups.tsv`, sites to `sites.tsv`. Relations with event ids become event lines.

    Args:
        folder: created if missing; must not contain other notes.
        triggers: labels of spans that are written as events together with all relations they head;
            those relations are read back with event ids such as "E1.2".

    Raises:
        CorpusError: brat cannot represent a note (span ids must be T and a number), or the folder is
            not usable. All notes are checked before the first is written.
    """
    notes = list(notes)
    files: dict[str, bytes] = {}
    problems: list[str] = []
    for note in notes:
        if f"{note.id}.txt" in files:
            problems.append(f"note {note.id}: the id is used twice; ids must be unique")
            continue
        path = PurePosixPath(note.id)
        is_unsafe = path.is_absolute() or ".." in path.parts or not path.name
        if is_unsafe or re.search(r"[\s\\]", note.id):
            problems.append(f"note {note.id!r}: the id is not a file name; rename the note")
            continue
        broken = _unwritable(note)
        problems += [f"note {note.id}: {reason}" for reason in broken]
        if not broken:
            annotations = "".join(f"{line}\n" for line in _annotation_lines(note, triggers))
            files[f"{note.id}.txt"] = note.text.encode("utf-8")
            files[f"{note.id}.ann"] = annotations.encode("utf-8")
    if folder.is_dir():
        others = sorted(stem for stem in find_pairs(folder) if f"{stem}.txt" not in files)
        if others:
            problems.append(f"{folder}: contains another note, {others[0]}; give an empty folder")
    if problems:
        raise CorpusError(problems)
    groups = {note.id: note.group or note.id for note in notes}
    sites = {note.id: note.site for note in notes}
    needs_groups = any(note_id != group for note_id, group in groups.items())
    needs_sites = any(site or "/" in note_id for note_id, site in sites.items())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for column, values, is_needed in (
            ("group", groups, needs_groups),
            ("site", sites, needs_sites),
        ):
            # An existing table would apply to these notes, so it is replaced.
            if is_needed or (folder / f"{column}s.tsv").exists():
                rows = [("doc_id", column), *values.items()]
                files[f"{column}s.tsv"] = "".join(f"{a}\t{b}\n" for a, b in rows).encode("utf-8")
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    except OSError as error:
        raise CorpusError(
            f"{folder}: cannot be written ({error.strerror}); choose a writable folder"
        ) from None


def _unwritable(note: Note) -> list[str]:
    """Why brat cannot represent a note, one sentence per reason."""
    reasons = []
    span_ids = {span.id for span in note.spans}
    if len(span_ids) < len(note.spans):
        reasons.append("two spans have the same id; ids must be unique")
    for span in note.spans:
        if not re.fullmatch(r"T\d\S*", span.id):
            reasons.append(f"span id {span.id!r} is not T and a number")
        if not re.fullmatch(r"[^\s:]+", span.label):
            reasons.append(f"{span.id}: the label {span.label!r} is not one word")
        fits = all(0 <= start < end <= len(note.text) for start, end in span.fragments)
        if not span.fragments or not fits or list(span.fragments) != sorted(span.fragments):
            reasons.append(f"{span.id}: its fragments are empty, unsorted or past the note's end")
        for name, value in span.attributes:
            is_one_line = not re.search(r"[\r\n]", value) and value == value.strip()
            if not re.fullmatch(r"\S+", name) or not is_one_line:
                reasons.append(f"{span.id}: the attribute {name!r} does not fit on one line")
    relation_ids = set()
    trigger_of: dict[str, str] = {}
    for relation in note.relations:
        event = EVENT_ARGUMENT.fullmatch(relation.id)
        if relation.head not in span_ids or relation.tail not in span_ids:
            reasons.append(f"{relation.id}: names a span that does not exist")
        if not event and not re.fullmatch(r"R\d\S*", relation.id):
            reasons.append(f"relation id {relation.id!r} is neither R and a number nor like E1.2")
        if not re.fullmatch(r"[^\s:]+", relation.label):
            reasons.append(f"{relation.id}: the label {relation.label!r} is not one word")
        if relation.id in relation_ids:
            reasons.append(f"{relation.id}: the id is used twice; ids must be unique")
        relation_ids.add(relation.id)
        if event and trigger_of.setdefault(event[1], relation.head) != relation.head:
            reasons.append(f"{relation.id}: the event has two triggers")
    for column, value in (("group", note.group), ("site", note.site)):
        if re.search(r"[\t\r\n]", value):
            reasons.append(f"the {column} contains a tab or line end")
    return reasons


def _annotation_lines(note: Note, triggers: Collection[str]) -> list[str]:
    spans: list[str] = []
    attributes: list[str] = []
    for span in note.spans:
        places = ";".join(f"{start} {end}" for start, end in span.fragments)
        covered = re.sub(r"[\r\n]", " ", _under(note.text, span.fragments))
        spans.append(f"{span.id}\t{span.label} {places}\t{covered}")
        for name, value in span.attributes:
            number = len(attributes) + 1
            attributes.append(f"A{number}\t{name} {span.id} {value}".rstrip(" "))
    return spans + _relation_lines(note, triggers) + attributes


def _relation_lines(note: Note, triggers: Collection[str]) -> list[str]:
    """R and E lines, in the order of their first relation; then events without arguments."""
    labels = {span.id: span.label for span in note.spans}
    used = {int(match[1]) for r in note.relations if (match := re.match(r"E(\d+)", r.id))}
    following = max(used, default=0) + 1
    groups: dict[str, list[Relation]] = {}  # id of an R or E line -> its relations
    event_of_trigger: dict[str, str] = {}
    for relation in note.relations:
        match = EVENT_ARGUMENT.fullmatch(relation.id)
        if not match and labels[relation.head] not in triggers:
            groups[relation.id] = [relation]
            continue
        event = match[1] if match else event_of_trigger.get(relation.head, f"E{following}")
        following += event == f"E{following}" and event not in groups
        event_of_trigger.setdefault(relation.head, event)
        groups.setdefault(event, []).append(relation)
    lines = []
    for name, links in groups.items():
        head = links[0].head
        if name.startswith("E"):
            arguments = "".join(f" {link.label}:{link.tail}" for link in links)
            lines.append(f"{name}\t{labels[head]}:{head}{arguments}")
        else:
            lines.append(f"{name}\t{links[0].label} Arg1:{head} Arg2:{links[0].tail}")
    for span in note.spans:
        if span.label in triggers and span.id not in event_of_trigger:
            lines.append(f"E{following}\t{span.label}:{span.id}")
            following += 1
    return lines
