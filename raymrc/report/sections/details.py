"""The rest: labels, sizes, the final test, what was stopped or failed, and how to repeat the study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raymrc.analysis.findings import Findings
from raymrc.analysis.sentences import final_sentence
from raymrc.analysis.summary import Spread, differing, settings_text, winners
from raymrc.quantities import points
from raymrc.report import figures
from raymrc.report.parts import PageSection, Plot
from raymrc.report.results import (
    CELL_COLUMN,
    cell_names,
    counts_tables,
    final_table,
    kept_table,
    named_leaders,
    race_table,
    show_count,
)
from raymrc.report.sections.marks import F1_AXIS, spread_mark
from raymrc.report.table import Table, numbers, words
from raymrc.scoring.counts import Counts

MAX_STOPPED = 200
"""Listed with their reasons; the export has all."""


def by_label(findings: Findings) -> PageSection | None:
    led = named_leaders(findings.summaries)
    labels = sorted({label for _, _, leader in led for label in leader.labels_strict})
    if not labels:
        return None
    rows = []
    for label in labels:
        for name, _, leader in led:
            strict = leader.labels_strict.get(label, Counts())
            lenient = leader.labels_lenient.get(label, Counts())
            scores = (strict.precision, strict.recall, strict.f1, lenient.f1)
            rows.append((label, name, strict.gold, *scores))
    heat = _label_heat(
        "Strict F1 by label",
        "Strict F1 of each cell's winner by label, all folds pooled, in points.",
        [(name, leader.labels_strict) for name, _, leader in led],
        labels,
    )
    columns = [
        *words("label"),
        *CELL_COLUMN,
        *numbers("gold", show=show_count),
        *numbers("precision", "recall", "strict F1", "lenient F1", show=points),
    ]
    table = Table("By label, all folds pooled, in points", columns, rows)
    return PageSection("labels", "By label", (), (heat,), (table,))


def _label_heat(
    title: str,
    caption: str,
    rows: Sequence[tuple[str, Mapping[str, Counts]]],
    labels: Sequence[str],
) -> Plot:
    values = [
        [100 * by_label[label].f1 if label in by_label else None for label in labels]
        for _, by_label in rows
    ]
    known = [value for row in values for value in row if value is not None]
    texts = [["" if value is None else f"{value:.1f}" for value in row] for row in values]
    return Plot(
        title,
        caption,
        figures.heat(
            [name for name, _ in rows], labels, values, texts, "", "",
            value_range=(min(known, default=0.0), max(known, default=100.0)), measure="F1",
        ),
        150 + 30 * len(rows),
    )  # fmt: skip


def events_and_subsets(findings: Findings) -> PageSection | None:
    tables = counts_tables(findings.summaries)
    if not tables:
        return None
    led = [(name, leader.labels_events) for name, _, leader in named_leaders(findings.summaries)]
    heat = _label_heat(
        "F1 of events by the 2022 scheme",
        "F1 of triggers and arguments of each cell's winner, all folds pooled, in points.",
        [(name, by_event) for name, by_event in led if by_event],
        sorted({event for _, by_event in led for event in by_event}),
    )
    plots = (heat,) if any(by_event for _, by_event in led) else ()
    return PageSection("kinds", "Events, mentions, nested spans", (), plots, tables)


def trained_and_kept(findings: Findings) -> PageSection | None:
    table = kept_table(findings.summaries)
    return PageSection("kept", table.title, (), (), (table,)) if table is not None else None


def final_test(findings: Findings) -> PageSection | None:
    if not findings.finals:
        return None
    names = cell_names(findings.summaries)
    means = {summary.cell: winner.strict.mean for summary, winner in winners(findings.summaries)}
    tested, folds = [], []
    for score in findings.finals:
        name, mean = names[score.cell], means.get(score.cell)
        text = f"{name}\nheld-out notes {points(score.strict.mean)}"
        tested.append(spread_mark(score.strict, text, y=name))
        if mean is not None:
            text = f"{name}\nover folds {points(mean)}"
            folds.append(spread_mark(Spread(mean), text, y=name))
    order = [names[score.cell] for score in findings.finals]
    plot = Plot(
        "Held-out notes",
        "Strict F1 on held-out notes of each winner, retrained on all notes of the study: mean and sd over "
        "seeds, beside its mean over folds.",
        figures.dots({"over folds": folds, "held-out notes": tested}, order, F1_AXIS),
        figures.height_of(len(order)),
        final_table(findings.finals, findings.summaries),
    )
    lead = [final_sentence(gap) for gap in findings.final_gaps]
    return PageSection("final-test", "Final test", lead, (plot,))


def stopped_early(findings: Findings) -> PageSection | None:
    table, racing = race_table(findings.summaries), findings.plan.racing
    if table is None:
        return None
    names, rows = cell_names(findings.summaries), []
    for summary in findings.summaries:
        varied = differing(summary.configurations)
        for stopped in (c for c in summary.configurations if c.stopped):
            settings = settings_text(stopped.configuration, varied)
            rows.append((names[summary.cell], settings, stopped.fold_epochs, stopped.stopped))
    lead = racing and (
        "Configurations that could no longer win their cell were stopped, at an error rate of "
        f"{100 * racing.error_rate:g} %."
    )
    left = len(rows) - MAX_STOPPED
    reasons = Table(
        "Reasons for stopping",
        [*CELL_COLUMN, *words("configuration"), *numbers("fold-epochs"), *words("reason")],
        rows[:MAX_STOPPED],
        f"'raymrc export' writes the other {left}." if left > 0 else "",
    )
    return PageSection("races", "Stopped early", (lead,) if lead else (), (), (table, reasons))


def failures(findings: Findings) -> PageSection | None:
    names = cell_names(findings.summaries)
    rows = [
        (names[summary.cell], times, reason)
        for summary in findings.summaries
        for reason, times in summary.reasons
    ]
    columns = [*CELL_COLUMN, *numbers("fold-runs"), *words("reason")]
    tables = [
        Table("Reasons of failed fold-runs", columns, rows),
        Table(
            "Abandoned cells",
            [*CELL_COLUMN, *numbers("fold-runs not begun")],
            findings.closed,
            f"{findings.spec.failures.close_cell_after} consecutive configurations failed "
            "(failures.close_cell_after). Rerun 'raymrc run' to retry them.",
        ),
    ]
    shown = [table for table in tables if table.rows]
    return PageSection("failures", "Failures", (), (), shown) if shown else None


def how_to_repeat(findings: Findings) -> PageSection:
    """Inputs with seeds and fingerprints, versions, machines."""
    spec, runs = findings.spec, [r for r in findings.fold_runs if r.is_done]
    starts = sorted(r.started_at[:19].replace("T", " ") for r in runs if r.started_at)
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
        ("first and last fold-run", f"{starts[0]} and {starts[-1]} UTC" if starts else ""),
    ]  # fmt: skip
    tables = [
        Table("Inputs", words("", "value"), [(name, value) for name, value in facts if value])
    ]
    versions = Counter(", ".join(f"{n} {v}" for n, v in r.versions.items()) or "-" for r in runs)
    machines = Counter((r.hardware or "-", r.device) for r in runs)
    fold_runs = numbers("fold-runs", show=show_count)
    if runs:
        tables.append(Table("Versions", [*words("versions"), *fold_runs], versions.most_common()))
        devices = [(*machine, times) for machine, times in machines.most_common()]
        tables.append(Table("Machines", [*words("machine", "device"), *fold_runs], devices))
    return PageSection("repeat", "How to repeat it", (), (), tables)


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in dict.fromkeys(values) if value != "")
