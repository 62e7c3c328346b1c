"""The study's question: winners against cost, frozen against trained, by size, by shots, at other sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raymrc.analysis.conclusions import BySize, Conclusion
from raymrc.analysis.findings import Findings
from raymrc.analysis.gaps import backbone_sizes, comparable
from raymrc.analysis.sentences import advice, interval_text, size_verdict
from raymrc.analysis.statistics import Interval
from raymrc.analysis.summary import differing, group_by, leaders, settings_text, winners
from raymrc.quantities import points, short_count
from raymrc.report import figures
from raymrc.report.figures import Mark, in_points
from raymrc.report.parts import PageSection, Plot
from raymrc.report.results import (
    CELL_COLUMN,
    cell_names,
    comparisons,
    cost_table,
    named_leaders,
    rising_sentence,
    site_tables,
    size_table,
    winner_table,
)
from raymrc.report.sections.marks import (
    ABOUT_INTERVALS,
    F1_AXIS,
    F1Curves,
    in_order,
    plus_minus,
    spread_mark,
)
from raymrc.report.table import Table, numbers, words

SIZE_AXIS = "parameters of the backbone"


def winner_section(findings: Findings) -> PageSection | None:
    if not leaders(findings.summaries):
        return None
    finished = winners(findings.summaries)
    has_usd = any(winner.cost_usd for _, winner in finished)
    cost = "USD, all folds" if has_usd else "device seconds, all folds"
    names, frontier = cell_names(findings.summaries), set(findings.conclusions.frontier)
    sizes = backbone_sizes(findings.summaries)
    smallest = min(sizes.values(), default=1) or 1
    marks: dict[str, list[Mark]] = {}
    for summary, winner in finished:
        size = sizes[summary.cell.backbone.name]
        spent = winner.cost_usd if has_usd else winner.device_seconds
        if spent <= 0:
            continue
        text = (
            f"{names[summary.cell]}\nF1 {plus_minus(winner)}\n{spent:.4g} {cost}\n"
            f"backbone {short_count(size)}\n"
            f"{settings_text(winner.configuration, differing(summary.configurations))}"
        )
        width = 11 * min(3.2, (size / smallest) ** 0.25) if size else 11
        mark = spread_mark(winner.strict, text, x=spent)
        mark = replace(mark, size=width, ringed=summary.cell.name in frontier)
        marks.setdefault(summary.cell.strategy, []).append(mark)
    plot = Plot(
        "F1 against cost",
        "Each cell's winner: strict F1 with its sd over folds, against cost over all folds on a logarithmic "
        "axis. Larger marks are larger backbones. Black rings: the frontier, which no other winner of the "
        "corpus beats in F1, money, time, energy, memory and bytes stored together, where known.",
        figures.scatter(in_order(marks), cost, F1_AXIS, log=True),
        460,
    )  # fmt: skip
    table = winner_table(findings.summaries, findings.conclusions)
    return PageSection(
        "winners", "Winners: F1 against cost", (), (plot,) if marks else (), (table,)
    )


def learning(findings: Findings) -> PageSection | None:
    """Validation F1 of each winner, or of the leader so far, while it trained."""
    curves = {
        name: (summary.cell.strategy, leader)
        for name, summary, leader in named_leaders(findings.summaries)
        if leader.curve
    }
    if not curves:
        return None
    marks, rows = dict[str, list[Mark]](), []
    for name, (_, leader) in curves.items():
        marks[name] = [
            Mark(steps, 100 * f1, f"{name}\n{steps:,.0f} steps\nvalidation F1 {points(f1)}", size=6)
            for steps, f1 in leader.curve
        ]
        rose = leader.late_gain
        rows.append((name, leader.steps / len(leader.folds), leader.curve[-1][1], rose))
    plot = Plot(
        "Validation F1 while training",
        "Each cell's winner: strict F1 on validation notes after each epoch, mean over folds, against "
        "optimiser steps. A curve that still rises at its end may gain from longer training.",
        figures.scatter(
            marks, "optimiser steps", "validation F1, points", lines=True,
            looks={name: strategy for name, (strategy, _) in curves.items()},
        ),
        460,
    )  # fmt: skip
    columns = [
        *CELL_COLUMN,
        *numbers("steps of a fold-run", show=lambda steps: f"{steps:,.0f}"),
        *numbers("last validation F1", "late gain", show=points),
    ]
    table = Table(
        "Where training ended", columns, rows,
        "Late gain: points on validation notes in the last third of training.",
    )  # fmt: skip
    return PageSection(
        "learning",
        "Learning curves",
        (rising_sentence(findings.summaries, findings.conclusions.margin),),
        (plot,),
        (table,),
    )


def gaps(findings: Findings) -> PageSection | None:
    found = findings.conclusions
    if not found.compared:
        return None
    names, marks = [], dict[str, list[Mark]]()
    for name, _, _, judged in comparisons(findings.summaries, found):
        if judged.comparison is not None:
            value, what = judged.comparison.difference, advice(judged)
            names.append(name)
            text = f"{name}\n{_gap_text(value, judged.interval)}\n{what}"
            ends = in_points(judged.interval)
            marks.setdefault(what, []).append(Mark(100 * value, name, text, *ends, size=13))
    margin = 100 * found.margin
    plot = Plot(
        "F1 difference with its 95 % interval",
        "Trained winner minus frozen winner, in points of strict F1, with the corrected 95 % interval. "
        f"Shaded: within {margin:g} of each other, which counts as equivalent.",
        figures.dots(marks, names, "trained minus frozen, points", band=margin),
        figures.height_of(len(names)),
    )  # fmt: skip
    table = cost_table(findings.summaries, found)
    return PageSection("gaps", "Frozen vs trained", (), (plot,) if names else (), (table,))


def _gap_text(gap: float, interval: Interval) -> str:
    return f"trained minus frozen {points(gap)}, 95 % {interval_text(interval)}"


def size_section(findings: Findings) -> PageSection | None:
    found = findings.conclusions
    plots, lead = [], []
    for fitted in found.by_size:
        lead.append(str(size_verdict(fitted, found.margin)))
        gaps_here = [c for c in found.gaps if c.gap.corpus_name == fitted.corpus]
        marks = []
        for conclusion in gaps_here:
            gap, interval = conclusion.gap, conclusion.home.interval
            size, ends = gap.backbone_parameters, in_points(interval)
            text = f"{gap.backbone}, {short_count(size)}\n{_gap_text(gap.gap, interval)}"
            marks.append(Mark(size, 100 * gap.gap, text, *ends, size=12))
        plots.append(
            Plot(
                f"The gap by size: {fitted.corpus}",
                "Trained minus frozen, in points, against the backbone's parameters on a logarithmic axis, "
                "with 95 % intervals and, given enough sizes, the fitted line with its own.",
                figures.size_figure(
                    marks, fitted.fit, 100 * found.margin, SIZE_AXIS, "gap, points"
                ),
                400,
                size_table(fitted, found),
                is_wide=fitted.fit is not None,
            )
        )
        plots.append(_f1_by_size(fitted, gaps_here, findings))
    return PageSection("size", "By size", lead, plots) if plots else None


def _f1_by_size(fitted: BySize, gaps_here: Sequence[Conclusion], findings: Findings) -> Plot:
    """Each strategy's winners, with the change per tenfold parameters."""
    sizes = backbone_sizes(findings.summaries)
    same = {comparable(conclusion.gap) for conclusion in gaps_here}
    shown = [
        (summary.cell.strategy, summary.cell.backbone.name, winner)
        for summary, winner in winners(findings.summaries)
        if comparable(summary.cell) in same
    ]
    shown.sort(key=lambda item: sizes[item[1]])
    curves = F1Curves()
    for strategy, members in in_order(group_by(shown, lambda item: item[0])).items():
        fit = fitted.f1.get(strategy)
        slope = (fit.slope, fit.slope_interval()) if fit else (None, None)
        for _, name, winner in members:
            curves.add(strategy, sizes[name], name, winner, (name, sizes[name]), slope)
    title = f"F1 by size: {fitted.corpus}"
    change = numbers("change per tenfold size", show=lambda slope: f"{100 * slope:+.1f}")
    return Plot(
        title,
        "Strict F1 of each strategy's winner against the backbone's parameters on a logarithmic axis, with "
        "95 % intervals over folds.",
        figures.scatter(curves.marks, SIZE_AXIS, F1_AXIS, log=True, lines=True),
        400,
        curves.table(
            title,
            [*words("backbone"), *numbers("parameters", show=short_count)],
            [*change, *numbers("its interval", show=interval_text)],
        ),
        is_wide=fitted.fit is not None,
    )


def few_examples(findings: Findings) -> PageSection | None:
    few = [
        (summary.cell, summary.cell.shots, winner)
        for summary, winner in winners(findings.summaries)
        if summary.cell.shots is not None
    ]
    if not few:
        return None
    groups = group_by(few, lambda item: (item[0].corpus, item[0].backbone.name, item[0].shots_of))
    plots = []
    for (corpus, backbone, unit), group in groups.items():
        group.sort(key=lambda item: item[1])
        curves = F1Curves()
        for strategy, members in in_order(group_by(group, lambda item: item[0].strategy)).items():
            for _, shots, winner in members:
                curves.add(strategy, shots, f"{shots} {unit}", winner, (shots,))
        ticks = sorted({float(shots) for _, shots, _ in group})
        plots.append(
            Plot(
                f"{corpus} / {backbone}",
                f"Strict F1 of each strategy's winner by its number of training {unit}, with 95 % intervals "
                "over folds and draws.",
                figures.scatter(
                    curves.marks, f"training {unit}", F1_AXIS,
                    log=True, lines=True, ticks=ticks,
                ),
                380,
                curves.table(f"Few {unit}: {corpus} / {backbone}", numbers(unit)),
                is_wide=len(groups) == 1,
            )
        )  # fmt: skip
    return PageSection("few-shot", "Few training examples", (ABOUT_INTERVALS,), plots)


def other_sites(findings: Findings) -> PageSection | None:
    plots = []
    for site, table in site_tables(findings.summaries, findings.conclusions).items():
        home: list[Mark] = []
        away: list[Mark] = []
        for name, _, leader in named_leaders(findings.summaries):
            if site not in leader.transfer:
                continue
            found = leader.transfer[site]
            for marks, side, where in ((home, found.home, "home"), (away, found.away, site)):
                text = f"{name}\nat {where} {points(side.mean)}, drop {points(found.drop.mean)}"
                marks.append(spread_mark(side, text, y=name))
        order = [str(mark.y) for mark in home]
        plots.append(
            Plot(
                f"At home and at {site}",
                f"Strict F1 of each winner on its own folds and on the notes of {site}, on labels that both "
                "sites have, with sd over folds.",
                figures.dots({"at home": home, "at the other site": away}, order, F1_AXIS),
                figures.height_of(len(order)),
                table,
            )
        )
    return PageSection("transfer", "At other sites", (), plots) if plots else None
