"""What the study was made for: winners against cost, frozen against trained, by size, at other sites."""

from __future__ import annotations

from collections.abc import Sequence

from raymrc.analysis.conclusions import (
    UNKNOWN_INTERVAL,
    BySize,
    Conclusion,
    chance,
    ends,
    price_of_point,
)
from raymrc.analysis.findings import Findings
from raymrc.analysis.summary import CellSummary, backbone_sizes
from raymrc.costs.prices import UTILISATION
from raymrc.quantities import percent, points, short_count, size_of
from raymrc.report import figures
from raymrc.report.figures import Mark, in_points
from raymrc.report.parts import Plot, Section, Table
from raymrc.report.sections.naming import (
    ABOUT_INTERVALS,
    CELL_COLUMN,
    advice_of,
    backbone_size,
    cell_names,
    curve_mark,
    curve_row,
    fold_interval,
    has_events,
    in_order,
    note_intervals,
    plus_minus,
    settings_of,
    winner_of,
    without_corpus,
    won,
)


def winners(findings: Findings) -> Section | None:
    finished = won(findings)
    led = [s for s in findings.summaries if s.leader is not None]
    if not led:
        return None
    usd = any(winner_of(s).cost_usd for s in finished)
    cost = "USD, all folds" if usd else "device seconds, all folds"
    names, best = cell_names(findings), set(findings.conclusions.frontier)
    intervals = note_intervals(findings)
    smallest = min((backbone_size(winner_of(s)) for s in finished), default=1) or 1
    marks: dict[str, list[Mark]] = {}
    for summary in finished:
        winner = winner_of(summary)
        spent = winner.cost_usd if usd else winner.device_seconds
        if spent <= 0:
            continue
        f1, sd = 100 * (winner.strict.mean or 0.0), 100 * (winner.strict.sd or 0.0)
        size = backbone_size(winner)
        marks.setdefault(summary.cell.strategy, []).append(
            Mark(
                spent, f1, f"{names[summary.cell]}\nF1 {plus_minus(winner)}\n{spent:.4g} {cost}\n"
                f"backbone {short_count(size)}\n{settings_of(winner, summary)}",
                f1 - sd if sd else None, f1 + sd if sd else None,
                11 * min(3.2, (size / smallest) ** 0.25) if size else 11,
                summary.cell.name in best,
            )
        )  # fmt: skip
    rows = []
    for summary in led:
        leader = summary.leader
        assert leader is not None
        rows.append(
            (
                names[summary.cell],
                points(leader.strict.mean),
                points(leader.strict.sd),
                ends(intervals.get(summary.cell.name, UNKNOWN_INTERVAL)),
                points(leader.lenient.mean),
                *([points(leader.events.mean)] if has_events(findings) else []),
                f"{leader.device_seconds:,.0f}",
                f"{leader.cost_usd:,.4f}",
                f"{leader.energy_kwh:.2g}" if leader.energy_kwh else "-",
                size_of(leader.peak_bytes) if leader.peak_bytes else "-",
                f"{len(leader.folds)} of {leader.num_folds}",
                "yes" if summary.cell.name in best else "",
                settings_of(leader, summary) + ("" if leader.is_complete else " (leading so far)"),
            )
        )
    events = ["events F1"] if has_events(findings) else []
    table = Table(
        "Winners: F1 in points, mean over folds",
        (CELL_COLUMN, "strict F1", "sd", "95 % interval, pooled", "lenient F1", *events, "device s", "USD",
         "kWh", "peak memory", "folds", "on the frontier", "winning configuration"),
        "lrrrr" + "r" * len(events) + "rrrrrll",
        rows,
        "Winners are chosen on validation notes, never on the scored folds. The interval is of all folds "
        "together, were other notes drawn like these; models as trained. Energy is estimated: "
        f"device time at {UTILISATION:.0%} of what such a device draws by its data sheet.",
    )  # fmt: skip
    plot = Plot(
        "Frozen against trained: F1 and what it costs",
        "Each cell's winner by strict F1, sd over folds, and cost, all folds, on a logarithmic "
        "axis. The larger "
        "a mark, the larger the backbone. Ringed in black: no other one of its corpus beats it in F1, money, "
        "time, energy, memory and bytes kept together, as far as these are known of all.",
        figures.scatter(in_order(marks), cost, "strict F1, points", log=True),
        460,
    )
    shown = (plot,) if marks else ()
    return Section("winners", "Winners: F1 against cost", (), shown, (table,))


def gaps(findings: Findings) -> Section | None:
    found = findings.conclusions
    if not found.compared:
        return None
    names, marks, rows, costs = [], dict[str, list[Mark]](), [], []
    margin = 100 * found.margin
    for said, one in found.compared:
        for site, judged in {"": one.home, **one.away}.items():
            name = without_corpus(said, one.gap.corpus, findings)
            name += f" at {site}" if site else ""
            of_gap, likely = judged.comparison, judged.probabilities
            advice = advice_of(judged)
            value = None if of_gap is None else of_gap.difference
            if value is not None:
                names.append(name)
                marks.setdefault(advice, []).append(
                    Mark(
                        100 * value,
                        name,
                        f"{name}\nfrozen behind by {points(value)}, 95 % {ends(judged.interval)}\n{advice}",
                        *in_points(judged.interval),
                        size=13,
                    )
                )
            chances = ["-"] * 5
            if likely is not None:
                each = (likely.within, likely.above, likely.below)
                p = (judged.p_difference, judged.p_equivalence)
                chances = [*map(chance, each), *(f"{value:.2g}" for value in p)]
            rows.append(
                (
                    name, advice,
                    points(one.gap.frozen_f1) if not site else "-",
                    points(one.gap.unfrozen_f1) if not site else "-",
                    points(value), ends(judged.interval), *chances,
                )
            )  # fmt: skip
        share, price = (one.gap.device_share, one.gap.adapter_share), price_of_point(one)
        unit = "USD" if one.extra_usd else "device s"
        costs.append(
            (
                without_corpus(said, one.gap.corpus, findings), one.gap.frozen, one.gap.unfrozen,
                *map(percent, share), f"{price[0]} {unit} ({price[1]})" if price else "-",
            )
        )  # fmt: skip
    table = Table(
        "What a frozen backbone is behind by, in points",
        ("backbone", "advice", "frozen F1", "trained F1", "behind by",
         "95 % interval", f"within {margin:g}", "further behind", "further ahead", "p, no gap",
         f"p, not within {margin:g}"),
        "llrrrrrrrrr",
        rows,
        f"Claims hold at an error rate of 5 % over {found.num_compared} comparisons (Holm).",
    )  # fmt: skip
    cost = Table(
        "What freezing saves, and what the trained one's lead costs",
        ("backbone", "frozen", "trained", "device time", "kept per task", "a point more costs"),
        "lllrrr",
        costs,
        "Device time and what is kept for a task are the frozen winner's share of the trained one's. A point "
        "more costs what training takes beyond freezing, by what it is ahead by (95 % interval).",
    )
    plot = Plot(
        "The gap, and how sure it is",
        "What the frozen winner is behind the best trained one by, in points of strict F1, with "
        "its corrected 95 % "
        f"interval. Shaded: within {margin:g} of each other, which makes no difference in practice.",
        figures.dots(marks, names, "frozen behind by, points", band=margin, zero=True),
        figures.height_of(len(names)),
    )
    return Section("gaps", "Frozen against trained", (), (plot,) if names else (), (table, cost))


def size_section(findings: Findings) -> Section | None:
    found = findings.conclusions
    margin, plots, said = 100 * found.margin, [], []
    for fitted in found.by_size:
        of_corpus = [
            one
            for one in found.gaps
            if one.gap.corpus + (f"/{one.gap.shots} {one.gap.shots_of}" if one.gap.shots else "")
            == fitted.corpus
        ]
        marks, rows = [], []
        for one in of_corpus:
            size, value = one.gap.backbone_parameters, one.gap.gap
            text = (
                f"{one.gap.backbone}, {short_count(size)}\nfrozen behind by {points(value)}, "
                f"95 % {ends(one.home.interval)}"
            )
            marks.append(Mark(size, 100 * value, text, *in_points(one.home.interval), size=12))
            line = fitted.fit.at(size) if fitted.fit is not None and size else None
            rows.append(
                (
                    one.gap.backbone,
                    short_count(size),
                    points(value),
                    ends(one.home.interval),
                    points(line[0]) if line else "-",
                    ends(line[1]) if line else "-",
                )
            )
        if fitted.why:
            said.append(f"{fitted.corpus}: no line is fitted, as {fitted.why}.")
        plots.append(
            Plot(
                f"The gap by size: {fitted.corpus}",
                "What frozen is behind by, in points, against the backbone's parameters on a "
                "logarithmic axis, with "
                "each gap's 95 % interval, and the fitted line with its own where there are sizes enough.",
                figures.size_figure(
                    marks, fitted.fit, margin, "parameters of the backbone", "points behind"
                ),
                400,
                Table(
                    f"The gap by size: {fitted.corpus}",
                    (
                        "backbone",
                        "parameters",
                        "behind by",
                        "95 % interval",
                        "fitted",
                        "its interval",
                    ),
                    "lrrrrr",
                    rows,
                ),
                is_wide=fitted.fit is not None,
            )
        )
        plots.append(_f1_by_size(fitted, of_corpus, findings))
    return Section("size", "By size", said, plots) if plots else None


def _f1_by_size(fitted: BySize, of_corpus: Sequence[Conclusion], findings: Findings) -> Plot:
    """Each strategy's winners, with what a tenfold of parameters changes."""
    size_of = backbone_sizes(findings.summaries)
    same = {(one.gap.task, one.gap.corpus, one.gap.shots, one.gap.shots_of) for one in of_corpus}
    by_strategy: dict[str, list[CellSummary]] = {}
    for summary in won(findings):
        cell = summary.cell
        if (cell.task, cell.corpus, cell.shots, cell.shots_of) in same:
            by_strategy.setdefault(cell.strategy, []).append(summary)
    marks: dict[str, list[Mark]] = {}
    rows = []
    for strategy, members in in_order(by_strategy).items():
        fit = fitted.f1.get(strategy)
        slope = [f"{100 * fit.slope:+.1f}", ends(fit.slope_interval())] if fit else ["-", "-"]
        for summary in sorted(members, key=lambda s: size_of[s.cell.backbone.name]):
            name, winner = summary.cell.backbone.name, winner_of(summary)
            interval = fold_interval(winner)
            marks.setdefault(strategy, []).append(
                curve_mark(size_of[name], f"{strategy}, {name}", winner, interval)
            )
            size = short_count(size_of[name])
            rows.append((strategy, name, size, *curve_row(winner, interval), *slope))
    return Plot(
        f"F1 by size: {fitted.corpus}",
        "Strict F1 of each strategy's winner against the backbone's parameters on a logarithmic axis, with "
        "95 % intervals over folds.",
        figures.scatter(marks, "parameters of the backbone", "strict F1, points", log=True, lines=True),
        400,
        Table(
            f"F1 by size: {fitted.corpus}",
            ("strategy", "backbone", "parameters", "strict F1", "sd", "95 % interval over folds",
             "a tenfold changes", "its interval"),
            "llrrrrrr",
            rows,
        ),
        is_wide=fitted.fit is not None,
    )  # fmt: skip


def few_examples(findings: Findings) -> Section | None:
    groups: dict[tuple[str, str, str], dict[str, list[CellSummary]]] = {}
    for summary in won(findings):
        cell = summary.cell
        if cell.shots is not None:
            group = groups.setdefault((cell.corpus, cell.backbone.name, cell.shots_of), {})
            group.setdefault(cell.strategy, []).append(summary)
    if not groups:
        return None
    plots = []
    for (corpus, backbone, of), by_strategy in groups.items():
        marks: dict[str, list[Mark]] = {}
        rows = []
        for strategy, members in in_order(by_strategy).items():
            for summary in sorted(members, key=lambda s: s.cell.shots or 0):
                winner, shots = winner_of(summary), summary.cell.shots or 0
                interval = fold_interval(winner)
                marks.setdefault(strategy, []).append(
                    curve_mark(shots, f"{strategy}, {shots} {of}", winner, interval)
                )
                rows.append((strategy, str(shots), *curve_row(winner, interval)))
        shots_there = sorted({float(m.x) for of_one in marks.values() for m in of_one})
        plots.append(
            Plot(
                f"{corpus} / {backbone}",
                f"Strict F1 of each strategy's winner by how many {of} it was trained on, with 95 "
                "% intervals over "
                "folds and draws.",
                figures.scatter(
                    marks, f"training {of}", "strict F1, points",
                    log=True, lines=True, ticks=shots_there,
                ),
                380,
                Table(
                    f"Few {of}: {corpus} / {backbone}",
                    ("strategy", of, "strict F1", "sd", "95 % interval over folds"),
                    "lrrrr",
                    rows,
                ),
                is_wide=len(groups) == 1,
            )
        )  # fmt: skip
    return Section("few-shot", "Few training examples", (ABOUT_INTERVALS,), plots)


def other_sites(findings: Findings) -> Section | None:
    led = [(s, s.leader) for s in findings.summaries if s.leader is not None and s.leader.transfer]
    sites = sorted({site for _, leader in led for site in leader.transfer})
    names = cell_names(findings)
    scores = {(score.cell, score.site): score for score in findings.conclusions.sites}
    plots = []
    for site in sites:
        home: list[Mark] = []
        away: list[Mark] = []
        rows, order = [], []
        for summary, leader in led:
            if site not in leader.transfer:
                continue
            of, name = leader.transfer[site], names[summary.cell]
            order.append(name)
            for marks, side, word in ((home, of.home, "at home"), (away, of.away, f"at {site}")):
                f1, sd = 100 * (side.mean or 0.0), 100 * (side.sd or 0.0)
                text = f"{name}\n{word} {points(side.mean)}, drop {points(of.drop.mean)}"
                marks.append(Mark(f1, name, text, f1 - sd if sd else None, f1 + sd if sd else None))
            score = scores.get((summary.cell.name, site))
            rows.append(
                (
                    names[summary.cell],
                    points(of.home.mean),
                    points(of.home.sd),
                    points(of.away.mean),
                    points(of.away.sd),
                    "-" if score is None else ends(score.interval),
                    points(of.drop.mean),
                    points(of.drop.sd),
                    "-" if score is None else ends(score.drop_interval),
                )
            )
        plots.append(
            Plot(
                f"At home and at {site}",
                f"Strict F1 of each winner on its own folds and on the notes of {site}, of labels "
                "that both sites "
                "have; sd over folds.",
                figures.dots(
                    {"at home": home, "at the other site": away}, order, "strict F1, points"
                ),
                figures.height_of(len(order)),
                Table(
                    f"Strict F1 at {site}, and what is lost on the way",
                    (
                        CELL_COLUMN,
                        "at home",
                        "sd",
                        f"at {site}",
                        "sd",
                        "95 % interval",
                        "drop",
                        "sd",
                        "95 % interval",
                    ),
                    "lrrrrrrrr",
                    rows,
                    f"At {site} the interval is over its notes, were others drawn, models as trained; the "
                    "drop's is over folds and those notes, corrected for training notes that folds share.",
                ),
            )
        )
    return Section("transfer", "At other sites", (), plots) if plots else None
