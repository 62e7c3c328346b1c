"""What stands behind it: labels, sizes, the final test, how the study went, how to repeat it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raymrc.analysis.conclusions import ends
from raymrc.analysis.final import lost_in_test
from raymrc.analysis.findings import Findings
from raymrc.analysis.summary import counts_row, differing, out_of_reach, say_settings
from raymrc.ledger.record import BOTH_FOUND, Record
from raymrc.quantities import percent, points, short_count, size_of
from raymrc.report import figures
from raymrc.report.figures import Mark
from raymrc.report.parts import Plot, Section, Table
from raymrc.report.sections.naming import (
    CELL_COLUMN,
    cell_names,
    in_order,
)
from raymrc.scoring.counts import Counts

MOST_STOPPED = 200
"""That are listed with their reasons; the export has all."""


def by_label(findings: Findings) -> Section | None:
    led = [(s, s.leader) for s in findings.summaries if s.leader is not None]
    labels = sorted({label for _, leader in led for label in leader.labels_strict})
    if not labels:
        return None
    names = cell_names(findings)
    rows = []
    for label in labels:
        for summary, leader in led:
            strict = leader.labels_strict.get(label, Counts())
            lenient = leader.labels_lenient.get(label, Counts())
            rows.append(
                (label, names[summary.cell], f"{strict.tp + strict.fn:,}", points(strict.precision),
                 points(strict.recall), points(strict.f1), points(lenient.f1))
            )  # fmt: skip
    return Section(
        "labels",
        "By label",
        (),
        (
            _label_heat(
                "Strict F1 by label",
                "Strict F1 of each cell's winner by label, all folds together, in points.",
                [(names[s.cell], leader.labels_strict) for s, leader in led],
                labels,
            ),
        ),
        (
            Table(
                "By label, all folds together, in points",
                ("label", CELL_COLUMN, "gold", "precision", "recall", "strict F1", "lenient F1"),
                "llrrrrr",
                rows,
                out_of_reach(findings.summaries) or "",
            ),
        ),
    )


def _label_heat(
    title: str, says: str, rows: Sequence[tuple[str, Mapping[str, Counts]]], labels: Sequence[str]
) -> Plot:
    values = [[100 * of[label].f1 if label in of else None for label in labels] for _, of in rows]
    known = [value for row in values for value in row if value is not None]
    texts = [["" if value is None else f"{value:.1f}" for value in row] for row in values]
    return Plot(
        title,
        says,
        figures.heat(
            [name for name, _ in rows], labels, values, texts, "", "",
            value_range=(min(known, default=0.0), max(known, default=100.0)), says="F1",
        ),
        150 + 30 * len(rows),
    )  # fmt: skip


def events_and_subsets(findings: Findings) -> Section | None:
    """Events by the 2022 scheme; mentions on the way to relations; spans that nest, overlap, have gaps."""
    led = [(s, s.leader) for s in findings.summaries if s.leader is not None]
    names = cell_names(findings)
    plots, tables = [], []
    events = sorted({name for _, leader in led for name in leader.labels_events})
    if events:
        plots.append(
            _label_heat(
                "F1 of events by the 2022 scheme",
                "F1 of triggers and arguments of each cell's winner, all folds together, in "
                "points: triggers overlap, "
                "spans exact, values equal.",
                [
                    (names[s.cell], leader.labels_events)
                    for s, leader in led
                    if leader.labels_events
                ],
                events,
            )
        )
        tables.append(
            _counts_table("Events by the 2022 scheme, all folds together, in points", "of",
                          [(names[s.cell], leader.labels_events) for s, leader in led])
        )  # fmt: skip
    if any(leader.mentions for _, leader in led):
        tables.append(
            _counts_table("Mentions found on the way to relations: strict, in points",
                          "mentions", [(names[s.cell], leader.mentions) for s, leader in led])
        )  # fmt: skip
    if any(leader.subsets for _, leader in led):
        tables.append(
            _counts_table("Nested, overlapping and discontinuous spans by themselves: strict, in points",
                          "spans", [(names[s.cell], leader.subsets) for s, leader in led])
        )  # fmt: skip
    return Section("kinds", "Events, mentions, nested spans", (), plots, tables) if tables else None


def _counts_table(caption: str, of: str, rows: Iterable[tuple[str, Mapping[str, Counts]]]) -> Table:
    return Table(
        caption,
        (CELL_COLUMN, of, "gold", "precision", "recall", "F1"),
        "llrrrr",
        [
            (name, kind, *counts_row(c, is_share=kind == BOTH_FOUND))
            for name, by_kind in rows
            for kind, c in by_kind.items()
        ],
    )


def trained_and_kept(findings: Findings) -> Section | None:
    led = [(s, s.leader) for s in findings.summaries if s.leader is not None]
    led = [(s, leader) for s, leader in led if leader.trained_parameters]
    if not led:
        return None
    names = cell_names(findings)
    order = [names[s.cell] for s, _ in led]
    shares: dict[str, list[Mark]] = {}
    sizes: dict[str, list[Mark]] = {}
    rows = []
    for summary, leader in led:
        name, strategy = names[summary.cell], summary.cell.strategy
        share = percent(leader.trained_share)
        of_all = (
            f"{short_count(leader.trained_parameters)} of {short_count(leader.total_parameters)}"
        )
        shares.setdefault(strategy, []).append(
            Mark(100 * leader.trained_share, name, f"{name}\n{share}: {of_all}", size=12)
        )
        if leader.adapter_bytes:
            sizes.setdefault(strategy, []).append(
                Mark(leader.adapter_bytes / 2**20, name, f"{name}\n{size_of(leader.adapter_bytes)}", size=12)
            )  # fmt: skip
        rows.append(
            (names[summary.cell], short_count(leader.trained_parameters),
             short_count(leader.total_parameters), share, size_of(leader.adapter_bytes),
             size_of(leader.peak_bytes) if leader.peak_bytes else "-",
             f"{leader.tokens:,}" if leader.tokens else "-",
             f"{leader.flops:.2g}" if leader.flops else "-")
        )  # fmt: skip
    drawn = ((shares, "Trained share of all parameters", "percent of all parameters"),
             (sizes, "Kept for a task", "MiB"))  # fmt: skip
    plots = [
        Plot(
            title,
            f"{title} of each cell's winner, on a logarithmic axis.",
            figures.dots(in_order(marks), order, axis, log=True),
            figures.height_of(len(order)),
            is_wide=False,
        )
        for marks, title, axis in drawn
        if marks
    ]
    table = Table(
        "What is trained and what is kept",
        (CELL_COLUMN, "trained", "parameters", "share", "kept per task", "peak memory", "tokens trained on",
         "FLOPs"),
        "lrrrrrrr",
        rows,
    )  # fmt: skip
    return Section("kept", "What is trained, and what is kept", (), plots, (table,))


def final_test(findings: Findings) -> Section | None:
    if not findings.finals:
        return None
    names = cell_names(findings)
    over = {s.cell: s.winner for s in findings.summaries}
    tested, folds, rows, order = [], [], [], []
    for score in findings.finals:
        name, winner = names[score.cell], over.get(score.cell)
        order.append(name)
        f1, sd = 100 * (score.strict.mean or 0.0), 100 * (score.strict.sd or 0.0)
        tested.append(
            Mark(f1, name, f"{name}\nheld-out notes {f1:.2f}",
                 f1 - sd if sd else None, f1 + sd if sd else None)
        )  # fmt: skip
        validated = winner.strict.mean if winner else None
        if validated is not None:
            folds.append(Mark(100 * validated, name, f"{name}\nover folds {points(validated)}"))
        rows.append(
            (name, points(score.strict.mean), points(score.strict.sd),
             ends(score.interval), points(score.lenient.mean), points(validated),
             str(len(score.seeds)), str(score.configuration.epochs))
        )  # fmt: skip
    plot = Plot(
        "Held-out notes",
        "Strict F1 of each winner, trained anew on all notes of the study, on held-out notes: "
        "mean and sd over seeds, "
        "beside its mean over folds.",
        figures.dots({"over folds": folds, "held-out notes": tested}, order, "strict F1, points"),
        figures.height_of(len(order)),
        Table(
            "Final test: F1 in points on held-out notes, mean over seeds",
            (
                CELL_COLUMN,
                "strict F1",
                "sd",
                "95 % interval, notes",
                "lenient F1",
                "over folds",
                "seeds",
                "epochs",
            ),
            "lrrrrrrr",
            rows,
            lost_in_test(findings.finals),
        ),
    )
    said = [str(gap) for gap in findings.final_gaps]
    return Section("final-test", "Final test", said, (plot,))


def stopped_early(findings: Findings) -> Section | None:
    raced = [s for s in findings.summaries if any(c.stopped for c in s.configurations)]
    if not raced:
        return None
    names, rows, stopped = cell_names(findings), [], []
    for summary in raced:
        of_cell = summary.configurations
        trained = sum(c.fold_epochs for c in of_cell)
        grid = sum(c.configuration.epochs * c.num_folds for c in of_cell)
        varied = differing(of_cell)
        those = [c for c in of_cell if c.stopped]
        rows.append(
            (names[summary.cell], str(len(of_cell)), str(len(those)), f"{trained:,}",
             f"{100 * trained / grid:.0f} %", f"{summary.device_seconds:,.0f}")
        )  # fmt: skip
        stopped += [
            (
                names[summary.cell],
                say_settings(c.configuration, varied),
                str(c.fold_epochs),
                c.stopped,
            )
            for c in those
        ]
    racing = findings.plan.racing
    lead = []
    if racing is not None:
        lead.append(
            f"Configurations that could no longer win their cell were stopped, at an error rate of "
            f"{100 * racing.error_rate:g} %."
        )
    left = len(stopped) - MOST_STOPPED
    return Section(
        "races",
        "Stopped early",
        lead,
        (),
        (
            Table(
                "What racing left out",
                (
                    CELL_COLUMN,
                    "configurations",
                    "stopped",
                    "fold-epochs",
                    "of the full grid",
                    "device s",
                ),
                "lrrrrr",
                rows,
            ),
            Table(
                "Who was stopped, and why",
                (CELL_COLUMN, "configuration", "fold-epochs", "why"),
                "llrl",
                stopped[:MOST_STOPPED],
                f"{left} more are in the table of fold-runs: raymrc export." if left > 0 else "",
            ),
        ),
    )


def failures(findings: Findings) -> Section | None:
    names = cell_names(findings)
    rows = [
        (names[s.cell], str(times), reason)
        for s in findings.summaries
        for reason, times in s.reasons
    ]
    if not rows and not findings.closed:
        return None
    tables = []
    if rows:
        tables.append(Table("Why fold-runs failed", (CELL_COLUMN, "fold-runs", "why"), "lrl", rows))
    if findings.closed:
        tables.append(
            Table(
                "Cells that were given up",
                (CELL_COLUMN, "fold-runs not begun"),
                "lr",
                [(name, str(left)) for name, left in findings.closed],
                f"{findings.spec.failures.close_cell_after} configurations in a row failed "
                "(failures.close_cell_after). 'raymrc run' tries them again.",
            )
        )
    return Section("failures", "Failures", (), (), tables)


def how_to_repeat(findings: Findings) -> Section:
    """Versions, machines, seeds, fingerprints."""
    spec, runs = findings.spec, [r for r in findings.fold_runs if r.status == "done"]
    facts = [
        ("study", spec.study),
        ("study file", spec.path),
        ("task", spec.task),
        ("corpus", findings.plan.corpus),
        *([("notes", f"{findings.plan.num_notes:,}")] if findings.plan.num_notes else []),
        ("folds", f"{spec.folds.count}, seed {spec.folds.seed}"),
        ("search", f"{findings.plan.algorithm}, seed {findings.plan.seed}"),
        ("seeds of training", _listed(r.fold_run.configuration.seed for r in runs)),
        ("margin of practical equivalence", f"{spec.equivalence_points:g} points"),
        ("price", f"{spec.prices.device_hour_usd:g} USD a device hour"),
        ("corpus fingerprint", _listed(r.fold_run.corpus_fingerprint for r in runs)),
        ("folds fingerprint", _listed(r.fold_run.folds_fingerprint for r in runs)),
        *[
            (f"weights of {backbone}", _listed(
                r.fold_run.weights_fingerprint for r in runs
                if r.fold_run.configuration.cell.backbone.name == backbone))
            for backbone in dict.fromkeys(r.fold_run.configuration.cell.backbone.name for r in runs)
        ],
        *[
            (f"other site {number}", fingerprint)
            for number, fingerprint in enumerate(
                dict.fromkeys(f for r in runs for f in r.fold_run.transfer_fingerprints), 1
            )
        ],
        ("held-out notes", _listed(r.fold_run.test_fingerprint for r in runs)),
        ("first and last fold-run", _first_and_last(runs)),
    ]  # fmt: skip
    tables = [
        Table("What it was made from", ("", "value"), "ll", [(n, v) for n, v in facts if v]),
    ]
    versions = Counter(_versions(r) for r in runs)
    machines = Counter((r.hardware or "-", r.device) for r in runs)
    if runs:
        tables.append(
            Table(
                "Versions", ("versions", "fold-runs"), "lr",
                [(words or "-", f"{times:,}") for words, times in versions.most_common()],
            )
        )  # fmt: skip
        tables.append(
            Table(
                "Machines", ("machine", "device", "fold-runs"), "llr",
                [(*names, f"{times:,}") for names, times in machines.most_common()],
            )
        )  # fmt: skip
    return Section("repeat", "How to repeat it", (), (), tables)


def _versions(record: Record) -> str:
    return ", ".join(f"{name} {version}" for name, version in record.versions.items())


def _first_and_last(records: Sequence[Record]) -> str:
    at = sorted(record.started_at[:19].replace("T", " ") for record in records if record.started_at)
    return f"{at[0]} and {at[-1]} UTC" if at else ""


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in dict.fromkeys(values) if value != "")
