"""What a fold-run leaves behind: one immutable record at its end, everything else is drawn from it."""

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
"""Schemes that a note's labels are counted by."""

BOTH_FOUND = "both of a relation"
"""Among counts of mentions: gold relations both of whose mentions were found, and the others as missed."""

COUNT_KINDS = (*COUNT_SCHEMES, "subsets", "mentions")
"""A note's counts. All but the first two are left out of records that have none."""

ALWAYS = ("strict", "lenient")


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over the training examples. `loss` is the mean per step, F1 is strict micro, 0 to 1."""

    epoch: int
    loss: float
    validation_f1: float
    wall_seconds: float


@dataclass(frozen=True, slots=True)
class NoteCounts:
    """Counts of one scored note, per label; labels without items are left out.

    Args:
        strict, lenient: by the 2018 scheme.
        events: by the 2022 scheme, of triggers ("Alcohol") and arguments ("Alcohol.StatusTime"); {} where
            the task asks for no event.
        subsets: strict counts of nested, overlapping and discontinuous spans, by the names of
            `scoring.subsets`; empty where there are none, in the tasks that are about relations,
            and in records from before they were counted.
        mentions: strict counts of spans, where mentions are found on the way to relations, and
            `BOTH_FOUND`; empty in other tasks, and in records from before they were counted.
    """

    strict: LabelCounts
    lenient: LabelCounts
    events: LabelCounts = field(default_factory=dict)
    subsets: Mapping[str, Counts] = field(default_factory=dict)
    mentions: LabelCounts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """What a model made of a note."""

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
    """A fold-run as the ledger keeps it. No note text, only ids and numbers.

    Args:
        key: `fold_run.key`, the ledger key.
        status: "done"; "failed"; "paused", where it waits at a rung of a race and may go on; "stopped", where
            its configuration can no longer win. Only those that are done have scores.
        reason: why it failed or was stopped, in a sentence without note text; "" otherwise.
        may_pass: of a failed one: whether trying again may help as nothing else is changed.
        notes: scored note id -> counts.
        predictions: held-out note id -> what was found there, by offsets; only of a final test.
        transfer: name of another site -> its notes' counts, as in `notes`; of labels alone that both have.
        unreachable: gold spans of the scored fold, or its relations, that no answer can be; they are in `fn`.
        unreachable_reasons: how many for which reason (`reading.examples.Unreachable`,
            `reading.relations.unreachable_relations`); empty in records from before they were kept.
        validation_f1: strict micro F1 of the chosen epoch on the validation part, 0 to 1.
        validation: validation note id -> its strict counts then, all labels together; empty in records from
            before they were kept.
        best_epoch: the chosen epoch, from 1.
        epochs: the course of training.
        trained: (name, numbers) of what gets a gradient, layers' like tensors as one name such as
            "encoder.layers.*.qkv.weight".
        trained_parameters, total_parameters: numbers that get a gradient; all numbers of the model.
        adapter_bytes: of the saved trained state, as safetensors.
        device: "cpu" or the accelerator's name.
        num_devices: devices that were held: GPUs (a share where others hold one too), or a CPU's cores.
        device_seconds: of GPUs the seconds held, of a CPU the core-seconds used; all of a fold-run.
        failed_device_seconds: of earlier tries of this fold-run, which failed; in no other figure.
        training_seconds, evaluation_seconds: by the clock; its share, where fold-runs run together.
        wall_seconds: of the whole fold-run, by the clock.
        tokens: real (unpadded) pieces that training passed through the encoder, questions included.
        flops: of training, by `study.cost`.
        peak_bytes: largest memory of the process (CPU) or of the allocator (GPU).
        memory_halvings: how often a pass that it shared ran out of memory and was halved.
        cost_usd: device_seconds at the study's price.
        versions: package -> version.
        hardware: one line.
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
        """Strict counts of the scored fold pooled over notes, by subset."""
        return sum_notes(self.notes, "subsets")

    @property
    def mentions(self) -> dict[str, Counts]:
        """Of mentions that were found on the way to relations, of the scored fold, by label."""
        return sum_notes(self.notes, "mentions")

    def to_json(self) -> str:
        """Canonical JSON; `from_json` gives an equal record back."""
        # Without notes: asdict would copy every count only to see it replaced below.
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
            again: reads the same record anew, without this. Then counts note by note are not kept but
                summed (`SummedNotes`): a hundred thousand records take a tenth of the memory.

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
            values["transfer"] = {name: _read_notes(there) for name, there in transfer.items()}
        elif notes:
            values["notes"] = SummedNotes(notes, again)
            values["transfer"] = {
                name: SummedNotes(there, again, name) for name, there in transfer.items()
            }
        values["predictions"] = {
            name: _read_found(found) for name, found in values.get("predictions", {}).items()
        }
        values["validation"] = NoteTotals(values.get("validation", {}))
        return cls(**_share_words(values))


class NoteTotals(Mapping[str, Counts]):
    """Counts of many notes in little memory.

    Args:
        notes: as JSON has them: note id -> [tp, fp, fn].

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
        try:
            place = 3 * self._ids.index(note_id)
        except ValueError:
            raise KeyError(note_id) from None
        return _counts(*self._numbers[place : place + 3])

    def values(self) -> Any:
        numbers = iter(self._numbers)
        return [_counts(*three) for three in zip(numbers, numbers, numbers, strict=True)]

    def items(self) -> Any:
        return zip(self._ids, self.values(), strict=True)


class SummedNotes(Mapping[str, NoteCounts]):
    """Counts of many notes, of which only the sums are in memory, and which notes they are; each note's are
    read anew when asked for.

    Args:
        notes: as JSON has them.
        again: reads the record that they are of.
        site: whose notes, in `Record.transfer`; "" for those of the scored fold.

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
        sums: dict[str, dict[str, list[int]]] = {kind: {} for kind in ALWAYS}
        for note in notes.values():
            if not note.keys() >= set(ALWAYS):
                raise KeyError(ALWAYS)
            for kind, by_name in note.items():
                of_kind = sums.setdefault(kind, {})
                for name, (tp, fp, fn) in by_name.items():
                    total = of_kind.get(name)
                    if total is None:
                        of_kind[name] = [tp, fp, fn]
                    else:
                        total[0] += tp
                        total[1] += fp
                        total[2] += fn
        self._sums = tuple(
            (_share(kind), tuple((_share(name), *of_kind[name]) for name in sorted(of_kind)))
            for kind, of_kind in sums.items()
        )

    def sums(self, kind: str) -> dict[str, Counts]:
        """Over all notes, by name; `kind` is one of `COUNT_KINDS`."""
        return {
            name: _counts(tp, fp, fn)
            for name, tp, fp, fn in next((of for k, of in self._sums if k == kind), ())
        }

    def read(self) -> Mapping[str, NoteCounts]:
        """Each note's, from where the record is kept."""
        record = self._again()
        return record.transfer[self._site] if self._site else record.notes

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __getitem__(self, note_id: str) -> NoteCounts:
        return self.read()[note_id]

    # Else each note would be read by itself.
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
    return _pool_by_name(getattr(note, kind) for note in notes.values())


@lru_cache(maxsize=2**16)
def _share(value: Hashable) -> Any:
    """Of equal values, such as a hash that stands in every record or the notes of a fold, one is kept."""
    return value


def _share_words(values: dict[str, Any]) -> dict[str, Any]:
    return {k: _share(v) if type(v) is str else v for k, v in values.items()}


_CONFIGURATIONS: dict[str, Configuration] = {}


def _share_configuration(values: Mapping[str, Any]) -> Configuration:
    """The folds of a configuration share it. By what was written: 1 and 1.0 are equal and have other keys."""
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


def _pool_by_name(notes: Iterable[Mapping[str, Counts]]) -> dict[str, Counts]:
    # Plain numbers, not sums of Counts: a record has thousands of them.
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
            if kind in ALWAYS or getattr(counts, kind)
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
    """Something that a lane came to.

    Args:
        key: of its fold-run.
        what: an epoch, the record of its end, or what ended it without one.
        device_seconds: what it has cost, where it failed.
    """

    key: str
    what: Epoch | Record | Exception
    device_seconds: float = 0.0


@lru_cache(maxsize=4096)
def _counts(tp: int, fp: int, fn: int) -> Counts:
    """Most of the thousands in a record are one of a few small ones, and they never change."""
    return Counts(tp, fp, fn)
