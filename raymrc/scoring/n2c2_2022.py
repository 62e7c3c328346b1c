"""The 2022 n2c2 SDoH counts, computed as `brat_scoring` 0.2.0 does.

.ann -> events -> gold and system triggers paired -> arguments matched within pairs -> rows
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from raymrc.corpora.note import Relation, Span
from raymrc.errors import CorpusError, suggest
from raymrc.scoring.annotations import Annotations, describe_unpaired, pair_folders
from raymrc.scoring.counts import SCORE_FIGURES, Counts, pool
from raymrc.scoring.n2c2_2018 import overlaps, same_envelope

LABELED_ARGUMENTS = ("StatusTime", "StatusEmploy", "TypeLiving")
NO_VALUE = "N/A"
TRIGGER = "Trigger"

Key = tuple[str, str, str]
"""Event, argument and subtype of a row."""

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Criterion:
    """What makes two items of a type equal.

    Args:
        trigger, span: compares the places of two triggers, or of two arguments without a value.
        labeled: compares the places of two arguments with a value; the values must always be equal.
    """

    trigger: Callable[[Span, Span], bool]
    span: Callable[[Span, Span], bool]
    labeled: Callable[[Span, Span], bool]


CRITERIA: Mapping[str, Criterion] = {
    "challenge": Criterion(trigger=overlaps, span=same_envelope, labeled=lambda a, b: True),
    "exact": Criterion(trigger=same_envelope, span=same_envelope, labeled=same_envelope),
    "overlap": Criterion(trigger=overlaps, span=overlaps, labeled=overlaps),
}


@dataclass(frozen=True, slots=True)
class SocialEvent:
    """A trigger and its arguments, in the order of the event line."""

    trigger: Span
    arguments: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """Counts of one kind of trigger or argument.

    Args:
        argument: the argument's type, or "Trigger".
        subtype: the argument's value, or "N/A".
    """

    event: str
    argument: str
    subtype: str
    counts: Counts

    @property
    def sizes(self) -> dict[str, float]:
        return {
            "gold": self.counts.gold,
            "system": self.counts.predicted,
            "matched": self.counts.tp,
        }


@dataclass(frozen=True, slots=True)
class ScoreReport2022:
    """Scores of a system's folder under one criterion.

    Args:
        rows: by event, argument and subtype.
        missing: gold notes without a system file; their items count as missed.
        unjudged: system files without gold; they are not counted.
    """

    criterion: str
    labeled: tuple[str, ...]
    rows: tuple[ScoreRow, ...]
    missing: tuple[str, ...]
    unjudged: tuple[str, ...]

    @property
    def overall(self) -> ScoreRow:
        """Micro counts over triggers and arguments."""
        return ScoreRow("OVERALL", "OVERALL", "OVERALL", pool(row.counts for row in self.rows))

    def to_json(self) -> dict[str, Any]:
        """`{"rows": [{"event", "argument", "subtype", "gold", "system", "matched"}], "overall", ...}`."""
        total = self.overall
        return {
            "rows": [
                {"event": row.event, "argument": row.argument, "subtype": row.subtype, **row.sizes}
                for row in self.rows
            ],
            "overall": total.sizes | {name: getattr(total.counts, name) for name in SCORE_FIGURES},
            "criterion": self.criterion,
            "labeled_args": list(self.labeled),
            "missing": list(self.missing),
            "unjudged": list(self.unjudged),
        }


def score_2022_folders(
    gold: Path,
    system: Path,
    criterion: str = "challenge",
    labeled: Sequence[str] = LABELED_ARGUMENTS,
) -> ScoreReport2022:
    """Score the events in the .ann files of two folders, paired by name.

    Args:
        criterion: a key of `CRITERIA`.
        labeled: argument types that are compared by value; SHAC's three by default.

    Raises:
        CorpusError: the criterion is unknown, the folders do not fit each other, or T, E or A lines
            are broken.
    """
    if criterion not in CRITERIA:
        raise CorpusError(f"unknown criterion {criterion!r}{suggest(criterion, CRITERIA)}")
    paired = pair_folders(gold, system, kinds="TEA", judged="TEA")
    counts: dict[Key, Counts] = {}
    for pair in paired.pairs:
        ours, theirs = map(read_events, pair)
        for key, found in count_events(ours, theirs, CRITERIA[criterion], labeled).items():
            counts[key] = counts.get(key, Counts()) + found
    rows = tuple(ScoreRow(*key, counts[key]) for key in sorted(counts))
    return ScoreReport2022(criterion, tuple(labeled), rows, paired.missing, paired.unjudged)


def read_events(annotations: Annotations) -> list[SocialEvent]:
    """Events in file order, typed by their spans and not by the roles on the event line.

    They are read from the lines, because an event without arguments has no relation. An argument that
    names an event stands for that event's trigger.
    """
    spans = {span.id: span for span in annotations.spans}
    named = {
        line.partition("\t")[0].strip(): [part.partition(":")[2] for part in line.split()[1:]]
        for line in annotations.lines
        if line.startswith("E")
    }
    trigger_of = {event: ids[0] for event, ids in named.items()}
    events = []
    for trigger, *arguments in named.values():
        items = tuple(spans[trigger_of.get(name, name)] for name in arguments)
        events.append(SocialEvent(spans[trigger_of.get(trigger, trigger)], items))
    return events


def score_events(
    gold: tuple[Sequence[Span], Sequence[Relation]],
    system: tuple[Sequence[Span], Sequence[Relation]],
    triggers: Collection[str],
) -> dict[tuple[str, ...], Counts]:
    """One note's counts by event, and by event and argument, by the challenge's criterion.

    Args:
        gold, system: spans, and relations that run from triggers to arguments.
        triggers: labels of spans that are events, with or without arguments.
    """
    ours, theirs = _build_events(*gold, triggers), _build_events(*system, triggers)
    by_key = count_events(ours, theirs, CRITERIA["challenge"], LABELED_ARGUMENTS)
    counts: dict[tuple[str, ...], Counts] = {}
    for (event, argument, _), found in sorted(by_key.items()):
        name = (event,) if argument == TRIGGER else (event, argument)
        counts[name] = counts.get(name, Counts()) + found
    return counts


def _build_events(
    spans: Sequence[Span], relations: Sequence[Relation], triggers: Collection[str]
) -> list[SocialEvent]:
    """Events by the event id of their relations (`E1.2`) or else by head; then those without arguments."""
    by_id = {span.id: span for span in spans}
    named: dict[str, tuple[Span, list[Span]]] = {}
    for relation in relations:
        event, dot, _ = relation.id.partition(".")
        name = event if dot else relation.head
        _, arguments = named.setdefault(name, (by_id[relation.head], []))
        arguments.append(by_id[relation.tail])
    heads = {relation.head for relation in relations}
    alone = [span for span in spans if span.label in triggers and span.id not in heads]
    events = [SocialEvent(trigger, tuple(arguments)) for trigger, arguments in named.values()]
    return events + [SocialEvent(span) for span in alone]


def count_events(
    gold: Sequence[SocialEvent],
    system: Sequence[SocialEvent],
    criterion: Criterion,
    labeled: Collection[str],
) -> dict[Key, Counts]:
    """One note's counts by key; a match has the gold item's key.

    Triggers pair one to one, greedily in file order, by type and the criterion's rule. Arguments are
    compared within paired events only, likewise one to one and greedily.
    """

    def same_trigger(a: SocialEvent, b: SocialEvent) -> bool:
        return a.trigger.label == b.trigger.label and criterion.trigger(a.trigger, b.trigger)

    def same_argument(a: Span, b: Span) -> bool:
        if a.label != b.label:
            return False
        if a.label in labeled:
            return _value(a) == _value(b) and criterion.labeled(a, b)
        return criterion.span(a, b)

    matched: Counter[Key] = Counter()
    for ours, theirs in _pair_greedily(gold, system, same_trigger):
        matched[_trigger_key(ours)] += 1
        for argument, _ in _pair_greedily(ours.arguments, theirs.arguments, same_argument):
            matched[_argument_key(ours, argument)] += 1
    in_gold, in_system = _count_items(gold), _count_items(system)
    return {
        key: Counts(matched[key], in_system[key] - matched[key], in_gold[key] - matched[key])
        for key in {*in_gold, *in_system}
    }


def render_2022_scores(report: ScoreReport2022) -> str:
    """The report as a text table with percentages."""
    lines = [
        f"{'event':<28}{'argument':<16}{'subtype':<14}"
        f"{'gold':>7}{'system':>8}{'match':>7}{'P':>8}{'R':>8}{'F1':>8}"
    ]
    for row in (*report.rows, report.overall):
        counts = row.counts
        lines.append(
            f"{row.event:<28}{row.argument:<16}{row.subtype:<14}"
            f"{counts.gold:>7}{counts.predicted:>8}{counts.tp:>7}{counts.percentages}"
        )
    lines.append(f"criterion {report.criterion}; compared by value: {', '.join(report.labeled)}")
    return "\n".join(lines) + "\n" + describe_unpaired(report.missing, report.unjudged)


def _pair_greedily(
    gold: Sequence[_Item], system: Sequence[_Item], same: Callable[[_Item, _Item], bool]
) -> list[tuple[_Item, _Item]]:
    """Pair each gold item with the first unpaired system item that equals it."""
    free = list(system)
    pairs = []
    for item in gold:
        for index, candidate in enumerate(free):
            if same(item, candidate):
                pairs.append((item, candidate))
                del free[index]
                break
    return pairs


def _value(span: Span) -> str:
    """The value of the span's last attribute, as in the official scorer, or "N/A"."""
    return (span.attributes[-1][1] or NO_VALUE) if span.attributes else NO_VALUE


def _trigger_key(event: SocialEvent) -> Key:
    return event.trigger.label, TRIGGER, _value(event.trigger)


def _argument_key(event: SocialEvent, argument: Span) -> Key:
    return event.trigger.label, argument.label, _value(argument)


def _count_items(events: Sequence[SocialEvent]) -> Counter[Key]:
    counts = Counter(_trigger_key(event) for event in events)
    counts.update(_argument_key(event, item) for event in events for item in event.arguments)
    return counts
