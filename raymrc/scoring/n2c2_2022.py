"""The 2022 n2c2 SDoH counts, as `brat_scoring` 0.2.0 takes them.

.ann -> events -> gold and system triggers paired -> arguments matched within pairs -> rows
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from raymrc.corpora.note import Relation, Span
from raymrc.errors import CorpusError, suggest
from raymrc.scoring.annotations import Annotations, pair_folders, say_unpaired
from raymrc.scoring.counts import Counts

LABELED_ARGUMENTS = ("StatusTime", "StatusEmploy", "TypeLiving")
NO_VALUE = "N/A"
TRIGGER = "Trigger"

Key = tuple[str, str, str]  # event, argument, subtype: what a row is about
_Item = TypeVar("_Item")
MatchRule = Literal["exact", "overlap", "label"]


@dataclass(frozen=True, slots=True)
class Criterion:
    """What makes two items equal, beside their type.

    Args:
        trigger, span: "exact" ends, or "overlap" of one character.
        labeled: the same, or "label" for anywhere in the event; and always the same value.
    """

    trigger: MatchRule
    span: MatchRule
    labeled: MatchRule


CRITERIA: Mapping[str, Criterion] = {
    "challenge": Criterion(trigger="overlap", span="exact", labeled="label"),
    "exact": Criterion(trigger="exact", span="exact", labeled="exact"),
    "overlap": Criterion(trigger="overlap", span="overlap", labeled="overlap"),
}


@dataclass(frozen=True, slots=True)
class SocialEvent:
    """A trigger and its arguments, in the order of the event line."""

    trigger: Span
    arguments: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """How often an event's trigger or argument was there, was predicted, was both.

    Args:
        argument: the argument's type, or "Trigger".
        subtype: the argument's value, or "N/A".
    """

    event: str
    argument: str
    subtype: str
    gold: int
    system: int
    matched: int

    @property
    def precision(self) -> float:
        return self.matched / self.system if self.system else 0.0

    @property
    def recall(self) -> float:
        return self.matched / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        return 2 * self.matched / (self.gold + self.system) if self.matched else 0.0


@dataclass(frozen=True, slots=True)
class ScoreReport2022:
    """Scores of a system's folder under one criterion.

    Args:
        rows: by event, argument and subtype.
        missing: gold notes without a system file; all they hold counts as missed.
        unjudged: system files without gold; they are not counted.
    """

    criterion: str
    labeled: tuple[str, ...]
    rows: tuple[ScoreRow, ...]
    missing: tuple[str, ...]
    unjudged: tuple[str, ...]

    @property
    def overall(self) -> ScoreRow:
        """The micro figure over triggers and arguments."""
        gold, system, matched = (
            sum(getattr(row, column) for row in self.rows)
            for column in ("gold", "system", "matched")
        )
        return ScoreRow("OVERALL", "OVERALL", "OVERALL", gold, system, matched)

    def to_json(self) -> dict[str, Any]:
        """`{"rows": [{"event", "argument", "subtype", "gold", "system", "matched"}], "overall"}`.

        Beside them stand "criterion", "labeled_args", "missing" and "unjudged".
        """
        columns = ("event", "argument", "subtype", "gold", "system", "matched")
        overall = self.overall
        return {
            "rows": [{name: getattr(row, name) for name in columns} for row in self.rows],
            "overall": {
                "gold": overall.gold,
                "system": overall.system,
                "matched": overall.matched,
                "precision": overall.precision,
                "recall": overall.recall,
                "f1": overall.f1,
            },
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
    """Scores the events in the .ann files of two folders, paired by name.

    Args:
        criterion: one of `CRITERIA`.
        labeled: argument types that are compared by value; SHAC's three unless told.

    Raises:
        CorpusError: an unknown criterion, folders that do not fit each other, or broken
            T, E and A lines.
    """
    if criterion not in CRITERIA:
        raise CorpusError(f"unknown criterion {criterion!r}{suggest(criterion, CRITERIA)}")
    paired = pair_folders(gold, system, kinds="TEA", judged="TEA")
    in_gold: Counter[Key] = Counter()
    in_system: Counter[Key] = Counter()
    in_both: Counter[Key] = Counter()
    for pair in paired.pairs:
        gold_events, system_events = read_events(pair.gold), read_events(pair.system)
        in_gold += _count_items(gold_events)
        in_system += _count_items(system_events)
        in_both += match_events(gold_events, system_events, CRITERIA[criterion], labeled)
    rows = tuple(
        ScoreRow(*key, in_gold[key], in_system[key], in_both[key])
        for key in sorted({*in_gold, *in_system})
    )
    return ScoreReport2022(criterion, tuple(labeled), rows, paired.missing, paired.unjudged)


def read_events(annotations: Annotations) -> list[SocialEvent]:
    """Events in file order. Types of the spans decide, not the roles on the event line.

    Relations do not serve here: an event without arguments has none. An argument that
    names an event means that event's trigger.
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
    criterion: str = "challenge",
    labeled: Collection[str] = LABELED_ARGUMENTS,
) -> dict[tuple[str, ...], Counts]:
    """One note's counts by event, and by event and argument, whatever the argument's value.

    Args:
        gold, system: spans, and relations that run from triggers to arguments.
        triggers: labels of spans that are events, with arguments or without.
    """
    sides = [_build_events(*side, triggers) for side in (gold, system)]
    in_gold, in_system = (_count_items(events) for events in sides)
    in_both = match_events(sides[0], sides[1], CRITERIA[criterion], labeled)
    counts: dict[tuple[str, ...], Counts] = {}
    for key in sorted({*in_gold, *in_system}):
        event, argument, _ = key
        both = in_both[key]
        name = (event,) if argument == TRIGGER else (event, argument)
        own = Counts(both, in_system[key] - both, in_gold[key] - both)
        counts[name] = counts.get(name, Counts()) + own
    return counts


def _build_events(
    spans: Sequence[Span], relations: Sequence[Relation], triggers: Collection[str]
) -> list[SocialEvent]:
    """By event where relations were read off event lines (`E1.2`), else by head; then those without an
    argument."""
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


def match_events(
    gold: Sequence[SocialEvent],
    system: Sequence[SocialEvent],
    criterion: Criterion,
    labeled: Collection[str],
) -> Counter[Key]:
    """One note's matches, under the gold items' keys.

    Triggers pair one to one, greedily in file order, by type and the criterion's rule.
    Arguments are compared within paired events only, one to one and greedily as well.
    """
    rule = _RULES[criterion.trigger]
    matched: Counter[Key] = Counter()
    paired = _pair_greedily(
        gold, system, lambda a, b: a.trigger.label == b.trigger.label and rule(a.trigger, b.trigger)
    )

    def same(a: Span, b: Span) -> bool:
        if a.label != b.label:
            return False
        if a.label in labeled:
            return _value(a) == _value(b) and _RULES[criterion.labeled](a, b)
        return _RULES[criterion.span](a, b)

    for ours, theirs in paired:
        matched[_trigger_key(ours)] += 1
        for argument, _ in _pair_greedily(ours.arguments, theirs.arguments, same):
            matched[_argument_key(ours, argument)] += 1
    return matched


def render_2022_scores(report: ScoreReport2022) -> str:
    """The report as a text table; shares are in per cent."""
    lines = [
        f"{'event':<28}{'argument':<16}{'subtype':<14}"
        f"{'gold':>7}{'system':>8}{'match':>7}{'P':>8}{'R':>8}{'F1':>8}"
    ]
    for row in (*report.rows, report.overall):
        shares = "".join(f"{100 * x:>8.2f}" for x in (row.precision, row.recall, row.f1))
        lines.append(
            f"{row.event:<28}{row.argument:<16}{row.subtype:<14}"
            f"{row.gold:>7}{row.system:>8}{row.matched:>7}{shares}"
        )
    lines.append(f"criterion {report.criterion}; compared by value: {', '.join(report.labeled)}")
    return "\n".join(lines) + "\n" + say_unpaired(report.missing, report.unjudged)


_RULES: Mapping[str, Callable[[Span, Span], bool]] = {
    "exact": lambda a, b: a.start == b.start and a.end == b.end,
    "overlap": lambda a, b: a.start < b.end and b.start < a.end,
    "label": lambda a, b: True,
}


def _pair_greedily(
    gold: Sequence[_Item], system: Sequence[_Item], same: Callable[[_Item, _Item], bool]
) -> list[tuple[_Item, _Item]]:
    """Each gold item takes the first free system item that equals it."""
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
    """The value of the span's last attribute, as officially; "N/A" without one."""
    return (span.attributes[-1][1] or NO_VALUE) if span.attributes else NO_VALUE


def _trigger_key(event: SocialEvent) -> Key:
    return event.trigger.label, TRIGGER, _value(event.trigger)


def _argument_key(event: SocialEvent, argument: Span) -> Key:
    return event.trigger.label, argument.label, _value(argument)


def _count_items(events: Sequence[SocialEvent]) -> Counter[Key]:
    counts: Counter[Key] = Counter()
    for event in events:
        counts[_trigger_key(event)] += 1
        counts.update(_argument_key(event, argument) for argument in event.arguments)
    return counts
