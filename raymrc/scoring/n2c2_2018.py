"""The 2018 n2c2 track 2 (drug-ADE) counts, as its official script (version 4) takes them.

gold and system notes -> items that equal each other -> Counts per note and label -> sums
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeVar

from raymrc.corpora.note import Relation, Span
from raymrc.scoring.counts import Counts

Mode = Literal["strict", "lenient"]
Item = TypeVar("Item")

MODES: tuple[Mode, ...] = ("strict", "lenient")


def score_note(gold: Sequence[Span], system: Sequence[Span], mode: Mode) -> dict[str, Counts]:
    """Counts per label of one note's spans. Order matters where spans are duplicated.

    Labels come in alphabetical order; those that neither side holds are absent. A
    discontinuous span is read by its envelope, and the attributes are not looked at.

    Args:
        gold, system: in file order; ids play no part, so a list may hold duplicates.
        mode: "strict" wants the same start and end, "lenient" one character in common.
    """
    same_place = _SAME_PLACE[mode]
    return _count_by_label(gold, system, same_place)


def score_relations(
    gold_spans: Sequence[Span],
    gold_relations: Sequence[Relation],
    system_spans: Sequence[Span],
    system_relations: Sequence[Relation],
    mode: Mode,
) -> dict[str, Counts]:
    """Counts per label of one note's relations.

    Head must match head and tail must match tail, each as a span of the same label by
    the rule of `mode`. A relation that names a span which its side does not hold matches
    nothing: it counts as missed, or as spurious.
    """
    same_place = _SAME_PLACE[mode]
    gold_by_id = {span.id: span for span in gold_spans}
    system_by_id = {span.id: span for span in system_spans}

    def same_ends(gold: Relation, system: Relation) -> bool:
        for end in ("head", "tail"):
            theirs = gold_by_id.get(getattr(gold, end))
            ours = system_by_id.get(getattr(system, end))
            if theirs is None or ours is None:
                return False
            if theirs.label != ours.label or not same_place(theirs, ours):
                return False
        return True

    return _count_by_label(gold_relations, system_relations, same_ends)


def _same_envelope(gold: Span, system: Span) -> bool:
    return gold.start == system.start and gold.end == system.end


def _overlaps(gold: Span, system: Span) -> bool:
    return gold.start < system.end and system.start < gold.end


_SAME_PLACE: Mapping[str, Callable[[Span, Span], bool]] = {
    "strict": _same_envelope,
    "lenient": _overlaps,
}


def _count_by_label(
    gold: Sequence[Item], system: Sequence[Item], same: Callable[[Item, Item], bool]
) -> dict[str, Counts]:
    # Items of different labels never equal each other, so each label can be counted alone.
    gold_by_label = _by_label(gold)
    system_by_label = _by_label(system)
    return {
        label: _count(gold_by_label.get(label, []), system_by_label.get(label, []), same)
        for label in sorted({*gold_by_label, *system_by_label})
    }


def _by_label(items: Iterable[Item]) -> dict[str, list[Item]]:
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)  # type: ignore[attr-defined]
    return groups


def _count(
    gold: Sequence[Item], system: Sequence[Item], same: Callable[[Item, Item], bool]
) -> Counts:
    """The official counting, where a system item that meets a marked gold item is thrown out.

    So duplicate predictions cost nothing, a prediction that covers two gold items finds
    one of them, and the second of two equal gold items is always missed.
    """
    marked = [False] * len(gold)
    tp = fp = 0
    for item in system:
        met = [index for index, candidate in enumerate(gold) if same(candidate, item)]
        thrown_out = any(marked[index] for index in met)
        for index in met:
            marked[index] = True
        if thrown_out:
            continue
        if met:
            tp += 1
        else:
            fp += 1
    return Counts(tp, fp, len(gold) - tp)
