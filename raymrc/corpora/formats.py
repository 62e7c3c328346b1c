"""The corpus formats by name, and reading a corpus.

    path -> reader -> notes, problems -> label map -> sites -> corpus

A format is one row of `READERS`, with a function from a path to a `Reading`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from raymrc.corpora import phee
from raymrc.corpora.brat import BratScheme, read_brat, write_brat
from raymrc.corpora.labels import Labels, apply_labels, target_labels
from raymrc.corpora.note import Corpus, Join, Note, value_attribute
from raymrc.corpora.problems import Reading
from raymrc.corpora.pubtator import read_pubtator
from raymrc.errors import CorpusError, suggest

N2C2_2018_LABELS = (
    "Drug", "Strength", "Form", "Dosage", "Frequency", "Route", "Duration", "Reason", "ADE",
)  # fmt: skip
N2C2_2018_SCHEME = BratScheme(
    labels=N2C2_2018_LABELS,
    relation_labels=tuple(f"{label}-Drug" for label in N2C2_2018_LABELS[1:]),
)

SHAC_TRIGGERS = ("Employment", "LivingStatus", "Alcohol", "Drug", "Tobacco")
SHAC_ARGUMENT_LABELS = (
    "StatusTime", "StatusEmploy", "TypeLiving", "Type", "Method", "Amount", "Frequency",
    "Duration", "History",
)  # fmt: skip
SHAC_VALUE_ATTRIBUTES = {
    "StatusTimeVal": ("none", "current", "past", "future"),
    "StatusEmployVal": (
        "employed", "unemployed", "retired", "on_disability", "student", "homemaker",
    ),
    "TypeLivingVal": ("alone", "with_family", "with_others", "homeless"),
}  # fmt: skip
"""Source: Lybarger et al. 2021, J Biomed Inform 113:103631, as brat writes them."""

_SUBSTANCE = ("StatusTime", "Type", "Method", "Amount", "Frequency", "Duration", "History")
SHAC_JOINS = tuple(
    Join(argument, trigger, argument, value)
    for trigger, arguments in {
        "Employment": ("StatusEmploy", "Type", "Duration", "History"),
        "LivingStatus": ("StatusTime", "TypeLiving", "Duration", "History"),
        **dict.fromkeys(("Alcohol", "Drug", "Tobacco"), _SUBSTANCE),
    }.items()
    for argument in arguments
    for value in SHAC_VALUE_ATTRIBUTES.get(value_attribute(argument), ("",))
)
"""The 29 pairs of event and argument, with the values of each argument."""

N2C2_2022 = BratScheme(
    labels=SHAC_TRIGGERS + SHAC_ARGUMENT_LABELS,
    relation_labels=SHAC_ARGUMENT_LABELS,
    triggers=frozenset(SHAC_TRIGGERS),
    types_decide=True,
    paths_are_ids=True,
    attributes=SHAC_VALUE_ATTRIBUTES,
)


@dataclass(frozen=True, slots=True)
class Reader:
    """A corpus format.

    Args:
        read: path -> notes and problems.
        labels, relation_labels: labels in order; None if they depend on the data.
        triggers: labels of events' triggers, for `write_corpus`.
        joins: what relations can join; None if it depends on the data.
    """

    read: Callable[[Path], Reading]
    labels: tuple[str, ...] | None = None
    relation_labels: tuple[str, ...] | None = None
    triggers: frozenset[str] = frozenset()
    joins: tuple[Join, ...] | None = None


def _read_maccrobat(path: Path) -> Reading:
    """Each file is an article, named by its PubMed id, and a group by itself."""
    return read_brat(path / "brat" if (path / "brat").is_dir() else path)


READERS = {
    "brat": Reader(read_brat),
    # 2018 n2c2 track 2, drugs and adverse events
    "n2c2-2018": Reader(
        partial(read_brat, scheme=N2C2_2018_SCHEME),
        N2C2_2018_SCHEME.labels,
        N2C2_2018_SCHEME.relation_labels,
        joins=tuple(Join(f"{label}-Drug", label, "Drug") for label in N2C2_2018_LABELS[1:]),
    ),
    # 2022 n2c2 track 2 (SHAC), social history; subfolders are sites
    "n2c2-2022": Reader(
        partial(read_brat, scheme=N2C2_2022),
        N2C2_2022.labels,
        N2C2_2022.relation_labels,
        N2C2_2022.triggers,
        SHAC_JOINS,
    ),
    "phee": Reader(phee.read_phee, phee.LABELS, phee.RELATION_LABELS),
    "maccrobat": Reader(_read_maccrobat),
    "pubtator": Reader(read_pubtator, relation_labels=()),
}


def find_reader(name: str) -> Reader:
    """Raises a CorpusError if there is no such reader."""
    if name not in READERS:
        raise CorpusError(f"there is no reader {name!r}{suggest(name, READERS)}")
    return READERS[name]


def read_notes(path: Path, reader: str) -> Reading:
    """Notes and problems; an empty corpus is a problem."""
    row = find_reader(reader)
    if not path.exists():
        reading = Reading()
        reading.problems.error(path, None, "does not exist; correct the path or fetch the corpus")
        return reading
    reading = row.read(path)
    if not reading.notes and not reading.problems.errors:
        reading.problems.error(
            path, None, f"contains no notes for reader {reader}; correct the path or the reader"
        )
    return reading


def known_labels(reader: str, labels: Labels = None) -> tuple[str, ...] | None:
    """The labels that `read_corpus` will return, without reading a file; None if the data decide.

    A list or mapping cannot be checked if the reader's labels depend on the data; `read_corpus` does.

    Raises:
        CorpusError: an unknown reader, label map or label.
    """
    row = find_reader(reader)
    if labels is None:
        return row.labels
    return target_labels(labels, reader, row.labels)


def known_joins(reader: str, labels: Labels = None) -> tuple[Join, ...] | None:
    """What relations can join, without reading a file; None if the data decide.

    Raises:
        CorpusError: an unknown reader, label map or label.
    """
    joins = find_reader(reader).joins
    if isinstance(labels, str):
        targets = target_labels(labels, reader, None)
        return tuple(Join(f"{label}-Drug", label, "Drug") for label in targets if label != "Drug")
    if labels is None or joins is None:
        return joins
    names = labels if isinstance(labels, Mapping) else {label: label for label in labels}
    return tuple(
        join._replace(head=names[join.head], tail=names[join.tail])
        for join in joins
        if join.head in names and join.tail in names
    )


def read_corpus(
    path: Path,
    reader: str,
    labels: Labels = None,
    sites: Sequence[str] | None = None,
) -> Corpus:
    """Read notes and give them one label set.

    Args:
        reader: a name in `READERS`.
        labels: None for the reader's labels; a list keeps these labels; a mapping keeps and renames
            its keys; a name is a built-in map, such as "drug-ade" (`corpora.labels`).
        sites: keep notes of these sites; None for all.

    Raises:
        CorpusError: all errors of the files, in file order; or unknown labels or sites.
    """
    row = find_reader(reader)
    known_labels(reader, labels)  # reports a wrong label before a long read
    reading = read_notes(path, reader)
    if errors := reading.problems.errors:
        raise CorpusError([str(error) for error in errors])
    # Notes of all sites decide, so that two sites have one label set.
    source = row.labels
    if source is None:
        source = tuple(sorted({span.label for note in reading.notes for span in note.spans}))
    targets = target_labels(labels, reader, source)
    notes = tuple(apply_labels(note, labels, reader) for note in reading.notes)
    relation_labels = row.relation_labels
    if relation_labels is None or labels is not None:
        relation_labels = _present(notes, targets, row.relation_labels or ())
    return Corpus(_of_sites(notes, sites, path), targets, relation_labels)


def _present(
    notes: Sequence[Note], targets: Sequence[str], order: Sequence[str]
) -> tuple[str, ...]:
    """Occurring relation labels: in the reader's order, then that of "X-Drug", then by name."""
    names = {relation.label for note in notes for relation in note.relations}
    ranks = {name: rank for rank, name in enumerate([*order, *(f"{t}-Drug" for t in targets)])}
    return tuple(sorted(names, key=lambda name: (ranks.get(name, len(ranks)), name)))


def _of_sites(notes: tuple[Note, ...], sites: Sequence[str] | None, path: Path) -> tuple[Note, ...]:
    if sites is None:
        return notes
    known = sorted({note.site for note in notes if note.site})
    unknown = [site for site in sites if site not in known]
    if unknown:
        raise CorpusError(
            [f"{path}: no note is from site {site!r}{suggest(site, known)}" for site in unknown]
        )
    return tuple(note for note in notes if note.site in sites)


def write_corpus(corpus: Corpus, folder: Path, reader: str = "brat") -> None:
    """Write brat files that the reader reads back; for "n2c2-2022" with event lines.

    Raises:
        CorpusError: see `brat.write_brat`.
    """
    write_brat(corpus.notes, folder, find_reader(reader).triggers)
