"""Nested, overlapping and discontinuous spans by themselves: which they are, how many are found.

    gold and predicted spans of a note -> items -> subsets of each side -> Counts per subset

A few such spans among thousands do not show in an overall F1: a model that never finds one looks
as good as one that does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import compress

from raymrc.corpora.note import Span
from raymrc.scoring.counts import Counts

SUBSETS = ("nested", "overlapping", "discontinuous", "any")

Fragments = tuple[tuple[int, int], ...]

Item = tuple[str, Fragments]
"""Label and fragments: spans that have both in common are one item, however often annotated."""


def items_of(text: str, spans: Iterable[Span]) -> set[Item]:
    """A note's spans as items.

    Fragments with nothing but blanks between them are joined: brat writes a span over a line
    end as two.

    Args:
        text: the note's.
    """
    return {(span.label, _join(text, span.fragments)) for span in spans}


def find_subsets(items: Iterable[Item]) -> dict[str, set[Item]]:
    """The items of one note by subset, whatever their labels; an item may be in several.

    nested: all its characters are another item's, or all of another's are its own. So the outer
        one is in it too, and so are two labels of one stretch.
    overlapping: it shares characters with another item, and each has some that the other lacks.
    discontinuous: it has several fragments.
    any: what is in one of the three.

    The gaps of a discontinuous item are not its own: what stands there is not nested in it.
    (`corpora.validate` counts by envelopes.)
    """
    items = set(items)
    labels = Counter(fragments for _, fragments in items)
    # In the order of their starts, stretches that share characters stand near each other.
    stretches = sorted(labels)
    nested = [labels[stretch] > 1 for stretch in stretches]
    overlapping = [False] * len(stretches)
    for i, one in enumerate(stretches):
        for j in range(i + 1, len(stretches)):
            other = stretches[j]
            if other[0][0] >= one[-1][1]:
                break
            if nested[i] and nested[j] and overlapping[i] and overlapping[j]:
                continue  # a model gone astray says thousands, of which most soon are both
            if _holds(one, other) or _holds(other, one):
                nested[i] = nested[j] = True
            elif _share(one, other):
                overlapping[i] = overlapping[j] = True
    found = {
        "nested": set(compress(stretches, nested)),
        "overlapping": set(compress(stretches, overlapping)),
        "discontinuous": {stretch for stretch in stretches if len(stretch) > 1},
    }
    found["any"] = set().union(*found.values())
    return {name: {item for item in items if item[1] in found[name]} for name in SUBSETS}


def score_subsets(text: str, gold: Iterable[Span], predicted: Iterable[Span]) -> dict[str, Counts]:
    """Strict counts of one note by subset, in the order of `SUBSETS`; empty ones are absent.

    Two items are equal if label and fragments are. A gold item of a subset is a true positive if
    a prediction equals it, else a false negative: tp + fn is their number. A prediction that
    belongs to the subset among the predictions is a false positive unless it equals a gold item,
    be that in the subset or not: nothing is held against a right answer for what stands around it.

    A model whose answers are single stretches never finds a discontinuous item. Its envelope,
    which the 2018 scheme takes for a match, is none here.

    Args:
        text: the note's.
        gold, predicted: in any order.

    Source: so `nested_metric` of github.com/matirojasg/nestednereval counts nested entities.
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


def _holds(outer: Fragments, inner: Fragments) -> bool:
    # Joined fragments never touch, so what lies in several of them lies in one.
    return all(any(a <= start and end <= b for a, b in outer) for start, end in inner)


def _share(one: Fragments, other: Fragments) -> bool:
    return any(a < end and start < b for a, b in one for start, end in other)
