"""PHEE: pharmacovigilance events in sentences, from the authors' JSON lines.

    json/train.json, json/dev.json, sites.tsv -> notes

Both files together are the corpus; folds are drawn over articles. An event becomes a trigger, its
arguments, and relations from the trigger to them; arguments of a treatment or subject get relations
from that. A relation has the label of its tail. Labels are those of PHEE's brat files
(`Treat-Disorder`, `Severity_cue`). A cue's value is an attribute, such as ("Severity", "High"); a
negation has none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raymrc.corpora.note import Note, Relation, Span
from raymrc.corpora.problems import Problems, Reading, read_lines, read_table
from raymrc.errors import suggest

TRIGGERS = ("Adverse_event", "Potential_therapeutic_event", "Combination")

# key in the JSON -> label, of an event's arguments and of an argument's
EVENT_ARGUMENTS = {
    "Treatment": "Treatment",
    "Effect": "Effect",
    "Subject": "Subject",
    "Severity": "Severity_cue",
    "Speculated": "Speculation_cue",
    "Negated": "Negation_cue",
}
SUB_ARGUMENTS = {
    "Treatment": {
        **{key: key for key in ("Drug", "Dosage", "Route", "Freq", "Duration", "Time_elapsed")},
        "Disorder": "Treat-Disorder",
    },
    "Subject": {
        **{key: key for key in ("Age", "Gender", "Race", "Population")},
        "Disorder": "Sub-Disorder",
    },
}

LABELS = tuple(
    dict.fromkeys(
        ["Drug", "Effect", *TRIGGERS, *EVENT_ARGUMENTS.values(),
         *SUB_ARGUMENTS["Treatment"].values(), *SUB_ARGUMENTS["Subject"].values()]
    )
)  # fmt: skip
RELATION_LABELS = tuple(label for label in LABELS if label not in TRIGGERS[:2])


def read_phee(folder: Path) -> Reading:
    """Train and dev as one corpus, in file order; the group is the article, the site from `sites.tsv`."""
    reading = Reading()
    problems = reading.problems
    files = [folder / "json" / name for name in ("train.json", "dev.json")]
    files = [path for path in files if path.exists()]
    if not files:
        problems.error(
            folder, None, "has neither json/train.json nor json/dev.json; give the PHEE folder"
        )
        return reading
    for path in files:
        for number, line in enumerate(read_lines(path, problems) or (), start=1):
            if not line.strip():
                continue
            try:
                document = json.loads(line)
            except ValueError:
                problems.error(path, number, "is not JSON; correct or delete the line")
                continue
            note = _read_document(document, path, number, problems)
            if note is not None:
                reading.add(note, path, number)
    sites = read_table(folder / "sites.tsv", "site", reading)
    reading.notes = [replace(note, site=sites.get(note.id, "")) for note in reading.notes]
    return reading


class _Malformed(Exception):
    """What is wrong with a document."""


@dataclass(slots=True)
class _Parsed:
    text: str
    spans: dict[str, Span] = field(default_factory=dict)
    links: dict[tuple[str, str, str], None] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def link(self, heads: tuple[str, ...], tails: tuple[str, ...]) -> None:
        """Add a relation to each tail from the head that contains it, or from the first head."""
        for tail in tails if heads else ():
            inner = self.spans[tail]
            around = (
                head
                for head in heads
                if self.spans[head].start <= inner.start and inner.end <= self.spans[head].end
            )
            self.links[inner.label, next(around, heads[0]), tail] = None


def _read_document(document: Any, path: Path, line: int, problems: Problems) -> Note | None:
    try:
        note_id, text = document["id"], document["context"]
        if not isinstance(note_id, str) or not isinstance(text, str):
            raise _Malformed("id and context must be strings")
        if re.search("[\ud800-\udfff]", note_id + text):
            raise _Malformed("its text contains half of a surrogate pair")
        parsed = _Parsed(text)
        for annotation in document["annotations"]:
            for event in annotation["events"]:
                _read_event(event, parsed)
    except KeyError as error:
        fault = f"has no field {error.args[0]}; add it or delete the line"
    except (TypeError, AttributeError, ValueError):
        fault = "does not have PHEE's structure; correct or delete the line"
    except _Malformed as error:
        fault = f"{error}; correct or delete the line"
    else:
        for reason in parsed.broken:
            problems.error(path, line, f"note {note_id}: {reason}")
        links = enumerate(parsed.links, start=1)
        relations = tuple(Relation(f"R{number}", *link) for number, link in links)
        article = note_id.partition("_")[0]
        return Note(note_id, text, tuple(parsed.spans.values()), relations, article)
    problems.error(path, line, fault)
    return None


def _read_event(event: Mapping[str, Any], parsed: _Parsed) -> tuple[str, ...]:
    """Add an event's spans and relations, and return the ids of its trigger."""
    kind = event["event_type"]
    if kind not in TRIGGERS:
        raise _Malformed(f"unknown event type {kind}{suggest(str(kind), TRIGGERS)}")
    trigger = _read_spans(event["Trigger"], kind, parsed)
    for key, argument in event.items():
        if key in ("event_id", "event_type", "Trigger"):
            continue
        if key == "Drug" and kind == "Combination":
            parsed.link(trigger, _read_spans(argument, "Drug", parsed))
            continue
        if key not in EVENT_ARGUMENTS:
            raise _Malformed(f"unknown argument {key}{suggest(key, EVENT_ARGUMENTS)}")
        heads = _read_spans(argument, EVENT_ARGUMENTS[key], parsed, attribute=key)
        parsed.link(trigger, heads)
        for sub_key, sub_argument in argument.items():
            if sub_key in ("text", "start", "entity_id", "value"):
                continue
            if sub_key == "Combination":
                for combination in sub_argument:
                    parsed.link(heads, _read_event(combination, parsed))
                continue
            labels = SUB_ARGUMENTS.get(key, {})
            if sub_key not in labels:
                raise _Malformed(f"unknown argument {key}.{sub_key}{suggest(sub_key, labels)}")
            parsed.link(heads, _read_spans(sub_argument, labels[sub_key], parsed))
    return trigger


def _read_spans(
    argument: Mapping[str, Any], label: str, parsed: _Parsed, attribute: str = ""
) -> tuple[str, ...]:
    """Add an argument's spans and return their ids; spans shared by events are added once."""
    value = argument.get("value")
    attributes: tuple[tuple[str, str], ...] = ()
    if value is not None:
        attributes = ((attribute, value if isinstance(value, str) else ""),)
    ids = []
    places = zip(argument["text"], argument["start"], argument["entity_id"], strict=True)
    for texts, starts, span_id in places:
        fragments = []
        for text, start in zip(texts, starts, strict=True):
            end = start + len(text)
            fragments.append((start, end))
            if not text or start < 0 or end > len(parsed.text):
                parsed.broken.append(
                    f"{span_id} {label} {start}-{end} is empty or reaches past the note's end "
                    f"({len(parsed.text)} characters); correct the offsets"
                )
            elif parsed.text[start:end] != text:
                parsed.broken.append(
                    f"{span_id} {label} {start}-{end}: its text differs from the note there; "
                    "correct the offsets or the text"
                )
        span = Span(span_id, label, tuple(sorted(fragments)), attributes)
        if parsed.spans.setdefault(span_id, span) != span:
            parsed.broken.append(f"{span_id} is defined twice, differently; give a new id")
        ids.append(span_id)
    return tuple(ids)
