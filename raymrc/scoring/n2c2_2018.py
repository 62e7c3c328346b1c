"""The 2018 n2c2 track 2 (drug-ADE) counts, computed as its official script (version 4) does.

gold and system notes -> equal items -> Counts per note and label -> sums
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from raymrc.corpora.note import Relation, Span
from raymrc.scoring.annotations import describe_unpaired, pair_folders
from raymrc.scoring.counts import SCORE_FIGURES, Counts, pool

Mode = Literal["strict", "lenient"]
_Item = TypeVar("_Item", Span, Relation)

MODES: tuple[Mode, ...] = ("strict", "lenient")


def score_note(gold: Sequence[Span], system: Sequence[Span], mode: Mode) -> dict[str, Counts]:
    """Counts per occurring label of one note's spans, in alphabetical order.

    A discontinuous span counts by its envelope. Ids and attributes are ignored.

    Args:
        gold, system: in file order, which matters if there are duplicates.
        mode: "strict" requires equal start and end, "lenient" one common character.
    """
    return _count_by_label(gold, system, _SAME_PLACE[mode])


def score_relations(
    gold_spans: Sequence[Span],
    gold_relations: Sequence[Relation],
    system_spans: Sequence[Span],
    system_relations: Sequence[Relation],
    mode: Mode,
) -> dict[str, Counts]:
    """Counts per label of one note's relations.

    Heads and tails must match as spans of the same label by the rule of `mode`. A relation that names
    an unknown span matches nothing.
    """
    same_place = _SAME_PLACE[mode]
    gold_by_id = {span.id: span for span in gold_spans}
    system_by_id = {span.id: span for span in system_spans}

    def same_end(gold_id: str, system_id: str) -> bool:
        theirs, ours = gold_by_id.get(gold_id), system_by_id.get(system_id)
        if theirs is None or ours is None:
            return False
        return theirs.label == ours.label and same_place(theirs, ours)

    def same_ends(gold: Relation, system: Relation) -> bool:
        return same_end(gold.head, system.head) and same_end(gold.tail, system.tail)

    return _count_by_label(gold_relations, system_relations, same_ends)


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of every note and label, from which all figures are computed."""

    notes: tuple[Mapping[str, Counts], ...]

    @property
    def micro(self) -> Counts:
        """Pooled over notes and labels."""
        return pool(pool(note.values()) for note in self.notes)

    @property
    def macro(self) -> dict[str, float]:
        """Means over notes; a note without gold items and predictions counts as 0."""
        pooled = [pool(note.values()) for note in self.notes]
        return {
            figure: sum(getattr(counts, figure) for counts in pooled) / len(pooled)
            for figure in SCORE_FIGURES
        }

    @property
    def per_type(self) -> dict[str, Counts]:
        """Pooled over notes, by label in alphabetical order."""
        labels = sorted({label for note in self.notes for label in note})
        return {label: pool(note.get(label, Counts()) for note in self.notes) for label in labels}


@dataclass(frozen=True, slots=True)
class ScoreReport2018:
    """Scores of a system's folder.

    Args:
        tallies: by mode ("strict", "lenient"), then kind ("entities", "relations").
        missing: gold notes without a system file; their items count as missed.
        unjudged: system files without gold; they are not counted.
    """

    tallies: Mapping[str, Mapping[str, Tally]]
    missing: tuple[str, ...]
    unjudged: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """`{"strict": {"entities": {"tp", "fp", "fn", "precision", "recall", "f1"}, ...}, ...}`.

        Further keys are "macro" and "per_type", each by mode and kind, and the lists "missing" and
        "unjudged".
        """
        return {
            **self._by_mode(lambda tally: tally.micro.to_json()),
            "macro": self._by_mode(lambda tally: tally.macro),
            "per_type": self._by_mode(
                lambda tally: {label: c.to_json() for label, c in tally.per_type.items()}
            ),
            "missing": list(self.missing),
            "unjudged": list(self.unjudged),
        }

    def _by_mode(self, read: Callable[[Tally], Any]) -> dict[str, dict[str, Any]]:
        return {
            mode: {kind: read(tally) for kind, tally in kinds.items()}
            for mode, kinds in self.tallies.items()
        }


def score_2018_folders(gold: Path, system: Path) -> ScoreReport2018:
    """Score the .ann files of two folders, paired by name, in both modes.

    Only T and R lines count, as in the official script. An argument that names an event stands for the
    event's trigger (the official script fails there).

    Raises:
        CorpusError: the folders do not fit each other, or T or R lines are broken.
    """
    paired = pair_folders(gold, system, kinds="TRE", judged="TR")
    tallies: dict[str, dict[str, Tally]] = {}
    for mode in MODES:
        entities, relations = [], []
        for pair in paired.pairs:
            # Relations of events, such as "E1.2", are not counted.
            ours, theirs = (
                (side.spans, [r for r in side.relations if r.id.startswith("R")]) for side in pair
            )
            entities.append(score_note(ours[0], theirs[0], mode))
            relations.append(score_relations(*ours, *theirs, mode))
        tallies[mode] = {"entities": Tally(tuple(entities)), "relations": Tally(tuple(relations))}
    return ScoreReport2018(tallies, paired.missing, paired.unjudged)


def render_2018_scores(report: ScoreReport2018) -> str:
    """The report as a text table with percentages."""
    lines = [f"{'':<32}{'TP':>7}{'FP':>7}{'FN':>7}{'P':>8}{'R':>8}{'F1':>8}"]
    for mode, kinds in report.tallies.items():
        for kind, tally in kinds.items():
            lines.append(f"{mode} {kind}")
            for label, counts in tally.per_type.items():
                lines.append(_row(f"  {label}", counts))
            lines.append(_row("  micro", tally.micro))
            macro = "".join(f"{100 * share:>8.2f}" for share in tally.macro.values())
            lines.append(f"{'  macro':<53}{macro}")
    return "\n".join(lines) + "\n" + describe_unpaired(report.missing, report.unjudged)


def _row(name: str, counts: Counts) -> str:
    return f"{name:<32}{counts.tp:>7}{counts.fp:>7}{counts.fn:>7}{counts.percentages}"


def same_envelope(gold: Span, system: Span) -> bool:
    return gold.start == system.start and gold.end == system.end


def overlaps(gold: Span, system: Span) -> bool:
    return gold.start < system.end and system.start < gold.end


_SAME_PLACE = {"strict": same_envelope, "lenient": overlaps}


def _count_by_label(
    gold: Sequence[_Item], system: Sequence[_Item], same: Callable[[_Item, _Item], bool]
) -> dict[str, Counts]:
    # Items of different labels are never equal, so each label can be counted separately.
    sides: dict[str, tuple[list[_Item], list[_Item]]] = {}
    for side, items in enumerate((gold, system)):
        for item in items:
            sides.setdefault(item.label, ([], []))[side].append(item)
    return {label: _count(*sides[label], same) for label in sorted(sides)}


def _count(
    gold: Sequence[_Item], system: Sequence[_Item], same: Callable[[_Item, _Item], bool]
) -> Counts:
    """The official counting, which ignores a system item that matches an already matched gold item.

    Hence duplicate predictions cost nothing, a prediction that covers two gold items finds one of
    them, and the second of two equal gold items is always missed.
    """
    matched = [False] * len(gold)
    tp = fp = 0
    for item in system:
        equal = [index for index, candidate in enumerate(gold) if same(candidate, item)]
        is_ignored = any(matched[index] for index in equal)
        for index in equal:
            matched[index] = True
        if not equal:
            fp += 1
        elif not is_ignored:
            tp += 1
    return Counts(tp, fp, len(gold) - tp)
