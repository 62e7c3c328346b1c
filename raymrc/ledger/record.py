"""The record of a fold-run: what the ledger keeps, and from which every report is computed."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from typing import Any

from raymrc.configuration import Configuration, FoldRun
from raymrc.corpora.note import Relation, Span
from raymrc.scoring.counts import Counts, pool

LabelCounts = Mapping[str, Counts]

COUNT_SCHEMES = ("strict", "lenient", "events")
"""Schemes by which labels are counted."""

BOTH_FOUND = "both of a relation"
"""Key among counts of mentions: gold relations with both mentions found, and all others as missed."""

COUNT_KINDS = (*COUNT_SCHEMES, "subsets", "mentions")
"""Kinds of counts of a note."""

REQUIRED_KINDS = ("strict", "lenient")
"""Kinds that stand in every record; the others only where they are not empty."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over the training examples, or one of the equal parts of a duration. `loss` is the mean per
    step, F1 is strict micro, 0 to 1."""

    epoch: int
    loss: float
    validation_f1: float
    wall_seconds: float


@dataclass(frozen=True, slots=True)
class NoteCounts:
    """Counts of one scored note, per label; leaves out labels without items.

    Args:
        strict, lenient: by the 2018 scheme.
        events: by the 2022 scheme, of triggers ("Alcohol") and arguments ("Alcohol.StatusTime"); empty in
            tasks without events.
        subsets: strict counts of nested, overlapping and discontinuous spans, by the names of
            `scoring.subsets`; empty in tasks about relations, and in old records.
        mentions: strict counts of the spans that are found on the way to relations, and `BOTH_FOUND`; empty
            in other tasks, and in old records.
    """

    strict: LabelCounts
    lenient: LabelCounts
    events: LabelCounts = field(default_factory=dict)
    subsets: Mapping[str, Counts] = field(default_factory=dict)
    mentions: LabelCounts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """Predictions for one note."""

    spans: tuple[Span, ...] = ()
    relations: tuple[Relation, ...] = ()


class RecordStatus(StrEnum):
    DONE = "done"
    FAILED = "failed"
    PAUSED = "paused"
    """The fold-run waits at a rung of a race, or was not started, and may resume."""
    STOPPED = "stopped"
    """The configuration can no longer win."""


@dataclass(frozen=True, slots=True)
class Record:
    """A fold-run as the ledger keeps it: ids and numbers, no note text.

    Args:
        key: `fold_run.key`, the ledger key.
        status: only done fold-runs have scores.
        reason: why it failed or was stopped, in a sentence without note text; "" otherwise.
        may_pass: whether a retry of a failed fold-run may succeed although nothing else changes.
        notes: scored note id -> counts.
        predictions: held-out note id -> predictions, by offsets; only in a final test.
        transfer: name of another site -> its notes' counts, as in `notes`, for the labels that both sites
            have.
        unreachable: gold spans or relations of the scored fold that no answer can express; `fn` includes
            them.
        unreachable_reasons: their number by reason (`reading.targets.Unreachable`,
            `reading.relations.unreachable_relations`); empty in old records.
        validation_f1: strict micro F1 of the chosen epoch on the validation part, 0 to 1.
        validation: validation note id -> strict counts of all labels at that epoch; empty in old records.
        best_epoch: the chosen epoch, from 1.
        epochs: one entry per finished epoch.
        trained: (name, number of parameters) of the trained tensors, with equal tensors of all layers under
            one name such as "encoder.layers.*.qkv.weight".
        trained_parameters, total_parameters: parameters that get a gradient; all parameters of the model.
        adapter_bytes: size of the saved trained state, as safetensors.
        device: "cpu" or the accelerator's name.
        num_devices: GPUs held (a share of one that is shared), or CPU cores.
        device_seconds: GPU-seconds held or core-seconds used by the whole fold-run.
        failed_device_seconds: of earlier, failed attempts; no other figure includes them.
        training_seconds, evaluation_seconds: by the clock; its share if fold-runs run together.
        wall_seconds: of the whole fold-run, by the clock.
        steps, rows: optimiser steps of training, and the rows (one window with one question, or with all
            labels) that they saw, repetitions counted; 0 in old records.
        tokens: unpadded pieces that training passed through the encoder, including questions.
        flops: of training, by `costs.workload`.
        peak_bytes: largest memory of the process (CPU) or of the allocator (GPU).
        memory_halvings: how often a shared pass ran out of memory and was halved.
        cost_usd: device_seconds at the study's price.
        versions: package -> version.
        hardware: description in one line.
        started_at: ISO 8601, UTC.
    """

    key: str
    fold_run: FoldRun
    status: RecordStatus = RecordStatus.DONE
    reason: str = ""
    may_pass: bool = False
    notes: Mapping[str, NoteCounts] = field(default_factory=dict, repr=False)
    transfer: Mapping[str, Mapping[str, NoteCounts]] = field(default_factory=dict, repr=False)
    predictions: Mapping[str, Found] = field(default_factory=dict, repr=False)
    unreachable: int = 0
    unreachable_reasons: Mapping[str, int] = field(default_factory=dict)
    validation_f1: float = 0.0
    validation: Mapping[str, Counts] = field(default_factory=dict, repr=False)
    best_epoch: int = 0
    epochs: tuple[Epoch, ...] = ()
    trained: tuple[tuple[str, int], ...] = ()
    trained_parameters: int = 0
    total_parameters: int = 0
    adapter_bytes: int = 0
    device: str = "cpu"
    num_devices: float = 1
    device_seconds: float = 0.0
    failed_device_seconds: float = 0.0
    wall_seconds: float = 0.0
    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    steps: int = 0
    rows: int = 0
    tokens: int = 0
    flops: float = 0.0
    peak_bytes: int = 0
    memory_halvings: int = 0
    cost_usd: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: str = ""
    started_at: str = ""

    @property
    def is_done(self) -> bool:
        return self.status == RecordStatus.DONE

    @property
    def is_failed(self) -> bool:
        return self.status == RecordStatus.FAILED

    @property
    def is_paused(self) -> bool:
        return self.status == RecordStatus.PAUSED

    @property
    def is_stopped(self) -> bool:
        return self.status == RecordStatus.STOPPED

    @property
    def trained_share(self) -> float:
        """Trained / total parameters, 0 to 1."""
        return self.trained_parameters / self.total_parameters if self.total_parameters else 0.0

    @property
    def strict(self) -> Counts:
        return pool(sum_notes(self.notes, "strict").values())

    @property
    def lenient(self) -> Counts:
        return pool(sum_notes(self.notes, "lenient").values())

    @property
    def events(self) -> Counts:
        return pool(sum_notes(self.notes, "events").values())

    def per_label(self, mode: str, site: str = "") -> dict[str, Counts]:
        """Counts pooled over notes, per label.

        Args:
            mode: one of `COUNT_SCHEMES`.
            site: a name in `transfer`; "" for the scored fold.
        """
        return sum_notes(self.transfer[site] if site else self.notes, mode)

    @property
    def subsets(self) -> dict[str, Counts]:
        """Strict counts of the scored fold, pooled over notes, by subset."""
        return sum_notes(self.notes, "subsets")

    @property
    def mentions(self) -> dict[str, Counts]:
        """Counts of mentions on the way to relations in the scored fold, by label."""
        return sum_notes(self.notes, "mentions")

    def to_json(self) -> str:
        """Canonical JSON; `from_json` gives an equal record back."""
        # Without notes: asdict would copy all counts, which are replaced below.
        values = asdict(replace(self, notes={}, transfer={}, predictions={}, validation={}))
        values["notes"] = _write_notes(self.notes)
        values["transfer"] = {name: _write_notes(notes) for name, notes in self.transfer.items()}
        values["predictions"] = {name: asdict(found) for name, found in self.predictions.items()}
        values["validation"] = {note: [c.tp, c.fp, c.fn] for note, c in self.validation.items()}
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes, again: Callable[[], Record] | None = None) -> Record:
        """
        Args:
            again: reads the same record anew. With it, only sums of the notes' counts are kept
                (`SummedNotes`): 100,000 records take a tenth of the memory.

        Raises:
            KeyError, TypeError, ValueError: the text is not a whole record.
        """
        values: dict[str, Any] = json.loads(text)
        run = values.pop("fold_run")
        configuration = _share_configuration(run.pop("configuration"))
        run["transfer_fingerprints"] = tuple(run.get("transfer_fingerprints", ()))
        values["fold_run"] = FoldRun(configuration=configuration, **_share_words(run))
        values["status"] = RecordStatus(values.get("status", RecordStatus.DONE))
        values["trained"] = _share(tuple((n, count) for n, count in values.get("trained", ())))
        values["epochs"] = tuple(Epoch(**epoch) for epoch in values["epochs"])
        notes, transfer = values["notes"], values.get("transfer", {})
        if again is None:
            values["notes"] = _read_notes(notes)
            values["transfer"] = {name: _read_notes(counts) for name, counts in transfer.items()}
        elif notes:
            values["notes"] = SummedNotes(notes, again)
            values["transfer"] = {
                name: SummedNotes(counts, again, name) for name, counts in transfer.items()
            }
        values["predictions"] = {
            name: _read_found(found) for name, found in values.get("predictions", {}).items()
        }
        values["validation"] = NoteTotals(values.get("validation", {}))
        return cls(**_share_words(values))


class NoteTotals(Mapping[str, Counts]):
    """Counts of many notes in little memory.

    Args:
        notes: from JSON: note id -> [tp, fp, fn].

    Raises:
        TypeError, ValueError: they are not counts.
    """

    __slots__ = ("_ids", "_numbers")

    def __init__(self, notes: Mapping[str, Sequence[int]]) -> None:
        self._ids: tuple[str, ...] = _share(tuple(notes))
        self._numbers = array("q", (n for tp, fp, fn in notes.values() for n in (tp, fp, fn)))

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __getitem__(self, note_id: str) -> Counts:
        return dict(self.items())[note_id]

    def values(self) -> Any:
        numbers = iter(self._numbers)
        return [_counts(*three) for three in zip(numbers, numbers, numbers, strict=True)]

    def items(self) -> Any:
        return zip(self._ids, self.values(), strict=True)


class SummedNotes(Mapping[str, NoteCounts]):
    """Counts of many notes that keep only ids and sums in memory and read single notes from the record file.

    Args:
        notes: from JSON.
        again: reads their record anew.
        site: name in `Record.transfer`; "" for the scored fold.

    Raises:
        KeyError, TypeError, ValueError: they are not counts.
    """

    __slots__ = ("_again", "_ids", "_site", "_sums")

    def __init__(
        self, notes: Mapping[str, Any], again: Callable[[], Record], site: str = ""
    ) -> None:
        self._again = again
        self._site = site
        self._ids: tuple[str, ...] = _share(tuple(notes))
        sums: dict[str, dict[str, list[int]]] = {kind: {} for kind in REQUIRED_KINDS}
        for note in notes.values():
            if not note.keys() >= set(REQUIRED_KINDS):
                raise KeyError(REQUIRED_KINDS)
            for kind, by_name in note.items():
                of_kind = sums.setdefault(kind, {})
                for name, (tp, fp, fn) in by_name.items():
                    total = of_kind.setdefault(name, [0, 0, 0])
                    total[0] += tp
                    total[1] += fp
                    total[2] += fn
        self._sums = tuple(
            (_share(kind), tuple((_share(name), *of_kind[name]) for name in sorted(of_kind)))
            for kind, of_kind in sums.items()
        )

    def sums(self, kind: str) -> dict[str, Counts]:
        """Sums over all notes, by name; `kind` is one of `COUNT_KINDS`."""
        return {
            name: _counts(tp, fp, fn)
            for name, tp, fp, fn in next((found for k, found in self._sums if k == kind), ())
        }

    def read(self) -> Mapping[str, NoteCounts]:
        """Counts of each note, from the record file."""
        record = self._again()
        return record.transfer[self._site] if self._site else record.notes

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __getitem__(self, note_id: str) -> NoteCounts:
        return self.read()[note_id]

    # The base class would read the file once per note.
    def values(self) -> Any:
        return self.read().values()

    def items(self) -> Any:
        return self.read().items()

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self.read()),)


def sum_notes(notes: Mapping[str, NoteCounts], kind: str) -> dict[str, Counts]:
    """Counts of a kind pooled over notes, by label or subset."""
    if isinstance(notes, SummedNotes):
        return notes.sums(kind)
    return pool_by_name(getattr(note, kind) for note in notes.values())


@lru_cache(maxsize=2**16)
def _share(value: Hashable) -> Any:
    """One object for all equal values, such as hashes and note ids, which stand in many records."""
    return value


def _share_words(values: dict[str, Any]) -> dict[str, Any]:
    return {k: _share(v) if type(v) is str else v for k, v in values.items()}


_CONFIGURATIONS: dict[str, Configuration] = {}


def _share_configuration(values: Mapping[str, Any]) -> Configuration:
    """One object for all folds of a configuration. Compared as text: 1 and 1.0 are equal but have other
    keys."""
    written = repr(values)
    known = _CONFIGURATIONS.get(written)
    if known is None:
        if len(_CONFIGURATIONS) >= 2**16:
            _CONFIGURATIONS.clear()
        known = _CONFIGURATIONS[written] = Configuration.from_values(values)
    return known


def _read_found(values: Mapping[str, Any]) -> Found:
    spans = (
        Span(
            span["id"],
            span["label"],
            tuple((start, end) for start, end in span["fragments"]),
            tuple((name, value) for name, value in span["attributes"]),
        )
        for span in values["spans"]
    )
    return Found(tuple(spans), tuple(Relation(**relation) for relation in values["relations"]))


def pool_by_name(notes: Iterable[Mapping[str, Counts]]) -> dict[str, Counts]:
    """Sums by name, in alphabetical order."""
    # Adding plain numbers is faster than adding Counts, of which a record has thousands.
    totals: dict[str, list[int]] = {}
    for note in notes:
        for name, counts in note.items():
            total = totals.setdefault(name, [0, 0, 0])
            total[0] += counts.tp
            total[1] += counts.fp
            total[2] += counts.fn
    return {name: Counts(*total) for name, total in sorted(totals.items())}


def _write_notes(notes: Mapping[str, NoteCounts]) -> dict[str, Any]:
    return {
        note_id: {
            kind: {name: [c.tp, c.fp, c.fn] for name, c in getattr(counts, kind).items()}
            for kind in COUNT_KINDS
            if kind in REQUIRED_KINDS or getattr(counts, kind)
        }
        for note_id, counts in notes.items()
    }


def _read_notes(values: Mapping[str, Any]) -> dict[str, NoteCounts]:
    return {
        note_id: NoteCounts(
            **{
                kind: {name: _counts(*c) for name, c in counts[kind].items()}
                for kind in COUNT_KINDS
                if kind in counts
            }
        )
        for note_id, counts in values.items()
    }


@dataclass(frozen=True, slots=True)
class LaneEvent:
    """News of a lane.

    Args:
        key: of its fold-run.
        what: a finished epoch, the final record, or the error that ended the lane.
        device_seconds: cost of a failed lane.
    """

    key: str
    what: Epoch | Record | Exception
    device_seconds: float = 0.0


@lru_cache(maxsize=4096)
def _counts(tp: int, fp: int, fn: int) -> Counts:
    """Shared objects: most counts in a record are equal to one of a few small ones."""
    return Counts(tp, fp, fn)
