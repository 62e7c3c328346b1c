"""Folds of whole groups, balanced by label: which notes train, validate and are scored.

    corpus -> groups -> folds -> (train, validation) within the training folds of each

Promise: notes of one patient or article, and notes with equal text, are never on two sides of a
split. This could break unnoticed if a corpus names no groups or contains a text twice, so notes with
equal text are joined, whatever their groups.

The order of the notes does not matter; everything is drawn from ids and the seed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from raymrc.corpora.note import Corpus, Note
from raymrc.errors import CorpusError

MAX_PASSES = 20
"""Passes of moving groups between parts; three or four usually suffice."""


@dataclass(frozen=True, slots=True)
class Split:
    """Sorted note ids of one fold-run; the three parts are disjoint.

    Args:
        train: notes that give gradients.
        validation: the part of the training folds that chooses the checkpoint.
        scored: the held-out fold.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    scored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Folds:
    """Folds of a corpus, and the validation notes for each scored fold.

    Args:
        assignment: (note id, fold from 0), sorted by note id.
        validation: per scored fold, the sorted ids of validation notes.
    """

    count: int
    assignment: tuple[tuple[str, int], ...]
    validation: tuple[tuple[str, ...], ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over assignment and validation, 64 hex digits."""
        body = [self.count, self.assignment, self.validation]
        return hashlib.sha256(json.dumps(body).encode()).hexdigest()

    def few_shot(self, fold: int, shots: int, mentions: Mapping[str, int] | None = None) -> Split:
        """A split with `shots` training notes, or mentions in them, and equally few for validation.

        Notes are drawn one by one until the number is reached. Notes stay whole, so there may be a few
        more mentions, and notes without any. If there are too few validation notes, all are kept.
        Within one draw fewer shots are a subset of more.

        Args:
            fold: the scored fold plus draw times the number of folds.
            mentions: mentions per note (`count_mentions`), if shots are mentions.
        """
        draw, fold = divmod(fold, self.count)
        whole = self.split(fold)

        def first(note_ids: tuple[str, ...]) -> tuple[str, ...]:
            drawn = sorted(note_ids, key=lambda note_id: _draw(f"{draw}:shots", note_id))
            held = accumulate(1 if mentions is None else mentions[note_id] for note_id in drawn)
            missing = sum(so_far < shots for so_far in held)
            return tuple(sorted(drawn[: missing + 1]))

        return replace(whole, train=first(whole.train), validation=first(whole.validation))

    def split(self, fold: int) -> Split:
        """The fold-run that is scored on `fold`, from 0."""
        assert 0 <= fold < self.count, f"fold {fold} of {self.count}"
        validation = frozenset(self.validation[fold])
        return Split(
            train=tuple(i for i, f in self.assignment if f != fold and i not in validation),
            validation=self.validation[fold],
            scored=tuple(i for i, f in self.assignment if f == fold),
        )


def choose_split(
    folds: Folds, notes: Sequence[Note], fold: int, shots: int | None, shots_of: str
) -> Split:
    """The split of a fold-run.

    Args:
        fold: with shots, see `Folds.few_shot`.
        shots: number of "notes" or "mentions", as `shots_of` says; None for all notes.
    """
    if shots is None:
        return folds.split(fold)
    return folds.few_shot(fold, shots, count_mentions(notes) if shots_of == "mentions" else None)


def check_folds(folds: Folds, corpus: Corpus) -> None:
    """Check that no note is on two sides of a fold-run by id, text or group.

    `make_folds` ensures this, but nothing else would show a leak.

    Raises:
        CorpusError: a note is on two sides.
    """
    marks = {note.id: (f"id {note.id}", *note_marks(note)) for note in corpus.notes}
    for fold in range(folds.count):
        split = folds.split(fold)
        side_of: dict[str, str] = {}
        for side in ("train", "validation", "scored"):
            for note_id in getattr(split, side):
                for mark in marks[note_id]:
                    if side_of.setdefault(mark, side) != side:
                        raise CorpusError(
                            f"folds: note {note_id} is in {side_of[mark]} and {side} of fold {fold} by "
                            "id, text or group; this is an error in raymrc, please report it"
                        )


def make_folds(corpus: Corpus, count: int, seed: int, validation_share: float = 0.1) -> Folds:
    """Folds of whole groups, with about equal sizes and label counts.

    Args:
        count: number of folds, at least 2.
        seed: another seed draws other folds.
        validation_share: share of the training folds' notes, 0 (no validation part) to below 1.

    Raises:
        CorpusError: there are fewer groups than folds, or too few for validation.
    """
    if count < 2:
        raise CorpusError(f"folds: {count} is too few; set at least 2")
    if not 0 <= validation_share < 1:
        raise CorpusError(f"folds: validation_share {validation_share} is not from 0 to below 1")
    groups = _join_groups(corpus.notes)
    if len(groups) < count:
        raise CorpusError(
            f"folds: {len(groups)} groups of notes cannot fill {count} folds; "
            "use fewer folds or more notes"
        )
    fold_of = _distribute(groups, [1 / count] * count, f"{seed}:folds")
    validation: list[tuple[str, ...]] = []
    for fold in range(count):
        training = [group for group in groups if fold_of[group.name] != fold]
        if validation_share == 0:
            validation.append(())
            continue
        if len(training) < 2:
            raise CorpusError(
                f"folds: {len(groups)} groups of notes in {count} folds leave none for validation; "
                "use more notes, or a validation_share of 0"
            )
        shares = [1 - validation_share, validation_share]
        part_of = _distribute(training, shares, f"{seed}:validation:{fold}")
        chosen = [group for group in training if part_of[group.name] == 1]
        validation.append(tuple(sorted(i for group in chosen for i in group.note_ids)))
    assignment = sorted((i, fold_of[group.name]) for group in groups for i in group.note_ids)
    return Folds(count, tuple(assignment), tuple(validation))


def take_subset(corpus: Corpus, notes: int, seed: int) -> Corpus:
    """Whole groups, drawn by seed, with together at least `notes` notes.

    With one seed a smaller subset is part of a larger one. Labels and the order of notes stay.

    Raises:
        CorpusError: `notes` is below 1.
    """
    if notes < 1:
        raise CorpusError(f"subset: {notes} notes is too few; set at least 1, or remove it")
    chosen: set[str] = set()
    for group in sorted(_join_groups(corpus.notes), key=lambda g: _draw(f"{seed}:subset", g.name)):
        if len(chosen) >= notes:
            break
        chosen.update(group.note_ids)
    return replace(corpus, notes=tuple(note for note in corpus.notes if note.id in chosen))


def hold_out(corpus: Corpus, share: float, seed: int) -> tuple[Corpus, Corpus]:
    """Split the corpus into whole groups, balanced by label: the rest and a held-out part.

    Args:
        share: share of notes that is held out, above 0 and below 1.

    Raises:
        CorpusError: there are fewer than two groups.
    """
    groups = _join_groups(corpus.notes)
    if len(groups) < 2:
        raise CorpusError("final_test: one group of notes cannot be split; use more notes")
    part_of = _distribute(groups, [1 - share, share], f"{seed}:test")
    held = {note_id for g in groups if part_of[g.name] == 1 for note_id in g.note_ids}
    rest, test = (
        replace(corpus, notes=tuple(note for note in corpus.notes if (note.id in held) is is_test))
        for is_test in (False, True)
    )
    return rest, test


def count_mentions(notes: Sequence[Note]) -> dict[str, int]:
    """Gold spans by note id."""
    return {note.id: len(note.spans) for note in notes}


def shared_notes(corpus: Corpus, other: Corpus) -> list[str]:
    """Ids of notes in `other` whose text or group is in `corpus`, too.

    White space is ignored. A group that is only the note's id on both sides does not count, because two
    hospitals may number their notes alike.
    """
    texts = {_words(note) for note in corpus.notes} - {""}
    groups = {note.group for note in corpus.notes} - {""}
    named = groups - {note.id for note in corpus.notes if note.group == note.id}

    def is_shared(note: Note) -> bool:
        known = groups if note.group != note.id else named
        return _words(note) in texts or note.group in known

    return [note.id for note in other.notes if is_shared(note)]


def note_marks(note: Note) -> frozenset[str]:
    """Hashes that identify a note without its text, 16 hex digits each.

    One is of its text, white space ignored, the other of its group unless that is the note's id.
    """
    marks = [f"text {_words(note)}"] if _words(note) else []
    if note.group and note.group != note.id:
        marks.append(f"group {note.group}")
    return frozenset(hashlib.blake2b(mark.encode(), digest_size=8).hexdigest() for mark in marks)


def _words(note: Note) -> str:
    return " ".join(note.text.split())


@dataclass(frozen=True, slots=True)
class _Group:
    """Notes that stay together.

    Args:
        name: the smallest note id, which does not depend on the notes' order.
        amounts: quantity to be balanced -> its amount in this group.
    """

    name: str
    note_ids: tuple[str, ...]
    amounts: Counter[tuple[str, str]]


def _join_groups(notes: Sequence[Note]) -> list[_Group]:
    """Groups sorted by name. Notes are joined by their group and by equal text, unless it is blank."""
    parent = {note.id: note.id for note in notes}

    def root(note_id: str) -> str:
        while parent[note_id] != note_id:
            parent[note_id] = parent[parent[note_id]]
            note_id = parent[note_id]
        return note_id

    first: dict[tuple[str, str], str] = {}
    for note in notes:
        keys = [("group", note.group or note.id)]
        if words := _words(note):
            keys.append(("text", words))
        for key in keys:
            roots = root(first.setdefault(key, note.id)), root(note.id)
            parent[max(roots)] = min(roots)
    members: dict[str, list[Note]] = {}
    for note in notes:
        members.setdefault(root(note.id), []).append(note)
    return [
        _Group(name, tuple(sorted(note.id for note in together)), _amounts(together))
        for name, together in sorted(members.items())
    ]


def _amounts(notes: Sequence[Note]) -> Counter[tuple[str, str]]:
    """Notes, notes per site, spans per label, relations per label."""
    amounts: Counter[tuple[str, str]] = Counter()
    for note in notes:
        amounts["notes", ""] += 1
        amounts["site", note.site] += 1
        amounts.update(("span", span.label) for span in note.spans)
        amounts.update(("relation", relation.label) for relation in note.relations)
    return amounts


def _draw(seed: str, name: str) -> str:
    """A hash to sort by, equal on every machine."""
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


def _distribute(groups: Sequence[_Group], shares: Sequence[float], seed: str) -> dict[str, int]:
    """Group name -> part, such that each part gets its share of every amount.

    Large groups are placed first, each where the sum over amounts of (part's portion)^2 / share grows
    least; that sum is smallest if every portion equals its share. A portion is relative to the whole,
    so rare labels count as much as frequent ones. Then single groups are moved as long as that helps.
    Every part gets at least one group.
    """
    totals: Counter[tuple[str, str]] = Counter()
    for group in groups:
        totals.update(group.amounts)
    portions = {
        group.name: {key: amount / totals[key] for key, amount in group.amounts.items()}
        for group in groups
    }
    sizes = [0] * len(shares)
    filled: list[dict[tuple[str, str], float]] = [dict.fromkeys(totals, 0.0) for _ in shares]

    def growth(name: str, part: int) -> float:
        held = filled[part]
        # An exact sum does not depend on the order of the amounts, which is that of the notes.
        added = (portion * (2 * held[key] + portion) for key, portion in portions[name].items())
        return math.fsum(added) / shares[part]

    def put(name: str, part: int, sign: int) -> None:
        sizes[part] += sign
        held = filled[part]
        for key, portion in portions[name].items():
            held[key] += sign * portion

    # The order is random within a size class: by size alone, nearly all seeds would give one split.
    drawn = sorted(groups, key=lambda group: _draw(seed, group.name))
    by_size = sorted(drawn, key=lambda g: -int(sum(g.amounts.values())).bit_length())
    parts = range(len(shares))
    part_of: dict[str, int] = {}
    for group in by_size:
        part_of[group.name] = min(parts, key=lambda part: growth(group.name, part))
        put(group.name, part_of[group.name], 1)

    def move(name: str, target: int) -> None:
        put(name, part_of[name], -1)
        put(name, target, 1)
        part_of[name] = target

    for part in parts:
        if not sizes[part]:
            donors = [g for g in drawn if sizes[part_of[g.name]] > 1]
            move(min(donors, key=lambda g: growth(g.name, part)).name, part)
    for _ in range(MAX_PASSES):
        moved = False
        for group in drawn:
            name, current = group.name, part_of[group.name]
            if sizes[current] == 1:
                continue
            put(name, current, -1)
            growths = [growth(name, part) for part in parts]
            put(name, current, 1)
            best = min(parts, key=lambda part: growths[part])
            # The margin exceeds rounding errors, so that no group moves back and forth forever.
            if growths[best] < growths[current] - 1e-12:
                move(name, best)
                moved = True
        if not moved:
            break
    return part_of
