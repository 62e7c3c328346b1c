"""Separate counts of nested, overlapping and discontinuous spans.

    gold and predicted spans of a note -> items -> subsets of each side -> Counts per subset

A few such spans among thousands do not show in an overall F1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import compress

from raymrc.corpora.brat import Fragments
from raymrc.corpora.note import Span
from raymrc.scoring.counts import Counts

SUBSETS = ("nested", "overlapping", "discontinuous", "any")


Item = tuple[str, Fragments]
"""Label and fragments; spans with equal label and fragments are one item."""


def items_of(text: str, spans: Iterable[Span]) -> set[Item]:
    """A note's spans as items.

    Fragments separated by white space only are joined, because brat writes a span over a line end as
    two fragments.

    Args:
        text: the note's text.
    """
    return {(span.label, _join(text, span.fragments)) for span in spans}


def find_subsets(items: Iterable[Item]) -> dict[str, set[Item]]:
    """One note's items by subset, whatever their labels; an item may be in several.

    nested: its characters are a subset or superset of another item's; two labels of one stretch are
        both nested.
    overlapping: it shares characters with another item, and each has some that the other lacks.
    discontinuous: it has several fragments.
    any: it is in one of the three.

    Gaps of a discontinuous item do not belong to it, so an item in a gap is not nested in it.
    (`corpora.validate` counts by envelopes.)
    """
    items = set(items)
    labels = Counter(fragments for _, fragments in items)
    # Sorted by start, stretches that share characters are near each other.
    stretches = sorted(labels)
    nested = [labels[stretch] > 1 for stretch in stretches]
    overlapping = [False] * len(stretches)
    for i, first in enumerate(stretches):
        for j in range(i + 1, len(stretches)):
            second = stretches[j]
            if second[0][0] >= first[-1][1]:
                break
            if nested[i] and nested[j] and overlapping[i] and overlapping[j]:
                continue  # saves time on a bad model's thousands of predictions
            if _contains(first, second) or _contains(second, first):
                nested[i] = nested[j] = True
            elif _share(first, second):
                overlapping[i] = overlapping[j] = True
    found = {
        "nested": set(compress(stretches, nested)),
        "overlapping": set(compress(stretches, overlapping)),
        "discontinuous": {stretch for stretch in stretches if len(stretch) > 1},
    }
    found["any"] = set().union(*found.values())
    return {name: {item for item in items if item[1] in found[name]} for name in SUBSETS}


def score_subsets(text: str, gold: Iterable[Span], predicted: Iterable[Span]) -> dict[str, Counts]:
    """Strict counts of one note by subset, in the order of `SUBSETS`; empty subsets are left out.

    Two items are equal if label and fragments are. A gold item of a subset is a true positive if a
    prediction equals it, else a false negative. A prediction that belongs to the subset among the
    predictions is a false positive unless it equals any gold item: a correct answer is not spurious
    because of wrong answers around it.

    A model that answers with single stretches never finds a discontinuous item. The item's envelope,
    a match in the 2018 scheme, is not a match here.

    Args:
        text: the note's text.
        gold, predicted: in any order.

    Source: `nested_metric` of github.com/matirojasg/nestednereval counts nested entities in this way.
    """
    gold_items, predicted_items = items_of(text, gold), items_of(text, predicted)
    gold_subsets, predicted_subsets = find_subsets(gold_items), find_subsets(predicted_items)
    counts = {
        name: Counts(
            tp=len(gold_subsets[name] & predicted_items),
            fp=len(predicted_subsets[name] - gold_items),
            fn=len(gold_subsets[name] - predicted_items),
        )
        for name in SUBSETS
    }
    return {name: c for name, c in counts.items() if c != Counts()}


def _join(text: str, fragments: Fragments) -> Fragments:
    joined = [fragments[0]]
    for start, end in fragments[1:]:
        last_start, last_end = joined[-1]
        if text[last_end:start].strip():
            joined.append((start, end))
        else:
            joined[-1] = last_start, max(last_end, end)
    return tuple(joined)


def _contains(outer: Fragments, inner: Fragments) -> bool:
    # Joined fragments never touch, so each inner fragment must lie within a single outer one.
    return all(any(a <= start and end <= b for a, b in outer) for start, end in inner)


def _share(first: Fragments, second: Fragments) -> bool:
    return any(a < end and start < b for a, b in first for start, end in second)
