"""The study's question: winners against cost, frozen against trained, by size, by shots, at other sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raymrc.analysis.conclusions import BySize, Conclusion
from raymrc.analysis.findings import Findings
from raymrc.analysis.gaps import backbone_sizes, comparable
from raymrc.analysis.sentences import advice, interval_text, size_verdict
from raymrc.analysis.summary import CellSummary, differing, settings_text, winner_of
from raymrc.quantities import points, short_count
from raymrc.report import figures
from raymrc.report.figures import Mark, in_points
from raymrc.report.parts import PageSection, Plot
from raymrc.report.results import (
    cell_names,
    comparisons,
    cost_table,
    leaders,
    site_tables,
    size_table,
    winner_table,
)
from raymrc.report.sections.marks import (
    ABOUT_INTERVALS,
    curve_columns,
    curve_mark,
    curve_row,
    in_order,
    plus_minus,
    spread_mark,
    won,
)
from raymrc.report.table import Table, numbers, words


def winners(findings: Findings) -> PageSection | None:
    if not leaders(findings.summaries):
        return None
    finished = won(findings)
    has_usd = any(winner_of(s).cost_usd for s in finished)
    cost = "USD, all folds" if has_usd else "device seconds, all folds"
    names, frontier = cell_names(findings.summaries), set(findings.conclusions.frontier)
    sizes = backbone_sizes(finished)
    smallest = min(sizes.values(), default=1) or 1
    marks: dict[str, list[Mark]] = {}
    for summary in finished:
        winner, size = winner_of(summary), sizes[summary.cell.backbone.name]
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
        figures.scatter(in_order(marks), cost, "strict F1, points", log=True),
        460,
    )  # fmt: skip
    table = winner_table(findings.summaries, findings.conclusions)
    return PageSection(
        "winners", "Winners: F1 against cost", (), (plot,) if marks else (), (table,)
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
            ends, shown = in_points(judged.interval), interval_text(judged.interval)
            text = f"{name}\ntrained minus frozen {points(value)}, 95 % {shown}\n{what}"
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


def size_section(findings: Findings) -> PageSection | None:
    found = findings.conclusions
    plots, lead = [], []
    for fitted in found.by_size:
        lead.append(str(size_verdict(fitted, found.margin)))
        gaps_here = [c for c in found.gaps if c.gap.corpus_name == fitted.corpus]
        marks = []
        for conclusion in gaps_here:
            gap, interval = conclusion.gap, conclusion.home.interval
            text = (
                f"{gap.backbone}, {short_count(gap.backbone_parameters)}\n"
                f"trained minus frozen {points(gap.gap)}, 95 % {interval_text(interval)}"
            )
            ends = in_points(interval)
            marks.append(Mark(gap.backbone_parameters, 100 * gap.gap, text, *ends, size=12))
        plots.append(
            Plot(
                f"The gap by size: {fitted.corpus}",
                "Trained minus frozen, in points, against the backbone's parameters on a logarithmic axis, "
                "with 95 % intervals and, given enough sizes, the fitted line with its own.",
                figures.size_figure(
                    marks,
                    fitted.fit,
                    100 * found.margin,
                    "parameters of the backbone",
                    "gap, points",
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
    by_strategy: dict[str, list[CellSummary]] = {}
    for summary in won(findings):
        if comparable(summary.cell) in same:
            by_strategy.setdefault(summary.cell.strategy, []).append(summary)
    marks: dict[str, list[Mark]] = {}
    rows = []
    for strategy, members in in_order(by_strategy).items():
        fit = fitted.f1.get(strategy)
        slope = (fit.slope, fit.slope_interval()) if fit else (None, None)
        for summary in sorted(members, key=lambda s: sizes[s.cell.backbone.name]):
            name, winner = summary.cell.backbone.name, winner_of(summary)
            mark = curve_mark(sizes[name], f"{strategy}, {name}", winner)
            marks.setdefault(strategy, []).append(mark)
            rows.append((strategy, name, sizes[name], *curve_row(winner), *slope))
    return Plot(
        f"F1 by size: {fitted.corpus}",
        "Strict F1 of each strategy's winner against the backbone's parameters on a logarithmic axis, with "
        "95 % intervals over folds.",
        figures.scatter(marks, "parameters of the backbone", "strict F1, points", log=True, lines=True),
        400,
        Table(
            f"F1 by size: {fitted.corpus}",
            [
                *words("strategy", "backbone"),
                *numbers("parameters", show=short_count),
                *curve_columns(),
                *numbers("change per tenfold size", show=lambda slope: f"{100 * slope:+.1f}"),
                *numbers("its interval", show=interval_text),
            ],
            rows,
        ),
        is_wide=fitted.fit is not None,
    )  # fmt: skip


def few_examples(findings: Findings) -> PageSection | None:
    groups: dict[tuple[str, str, str], dict[str, list[CellSummary]]] = {}
    for summary in won(findings):
        cell = summary.cell
        if cell.shots is not None:
            group = groups.setdefault((cell.corpus, cell.backbone.name, cell.shots_of), {})
            group.setdefault(cell.strategy, []).append(summary)
    if not groups:
        return None
    plots = []
    for (corpus, backbone, unit), by_strategy in groups.items():
        marks: dict[str, list[Mark]] = {}
        rows = []
        for strategy, members in in_order(by_strategy).items():
            for summary in sorted(members, key=lambda s: s.cell.shots or 0):
                winner, shots = winner_of(summary), summary.cell.shots or 0
                mark = curve_mark(shots, f"{strategy}, {shots} {unit}", winner)
                marks.setdefault(strategy, []).append(mark)
                rows.append((strategy, shots, *curve_row(winner)))
        ticks = sorted({float(mark.x) for members in marks.values() for mark in members})
        plots.append(
            Plot(
                f"{corpus} / {backbone}",
                f"Strict F1 of each strategy's winner by its number of training {unit}, with 95 % intervals "
                "over folds and draws.",
                figures.scatter(
                    marks, f"training {unit}", "strict F1, points", log=True, lines=True, ticks=ticks
                ),
                380,
                Table(
                    f"Few {unit}: {corpus} / {backbone}",
                    [*words("strategy"), *numbers(unit), *curve_columns()],
                    rows,
                ),
                is_wide=len(groups) == 1,
            )
        )  # fmt: skip
    return PageSection("few-shot", "Few training examples", (ABOUT_INTERVALS,), plots)


def other_sites(findings: Findings) -> PageSection | None:
    names = cell_names(findings.summaries)
    plots = []
    for site, table in site_tables(findings.summaries, findings.conclusions).items():
        home: list[Mark] = []
        away: list[Mark] = []
        for summary, leader in leaders(findings.summaries):
            if site not in leader.transfer:
                continue
            found, name = leader.transfer[site], names[summary.cell]
            for marks, side, where in ((home, found.home, "home"), (away, found.away, site)):
                text = f"{name}\nat {where} {points(side.mean)}, drop {points(found.drop.mean)}"
                marks.append(spread_mark(side, text, y=name))
        order = [str(mark.y) for mark in home]
        plots.append(
            Plot(
                f"At home and at {site}",
                f"Strict F1 of each winner on its own folds and on the notes of {site}, on labels that both "
                "sites have, with sd over folds.",
                figures.dots(
                    {"at home": home, "at the other site": away}, order, "strict F1, points"
                ),
                figures.height_of(len(order)),
                table,
            )
        )
    return PageSection("transfer", "At other sites", (), plots) if plots else None
