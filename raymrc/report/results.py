"""Tables of a study's results, built once for the terminal and the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raymrc.analysis.comparison import OTHER_NOTES, SAME_FOLDS, SAME_NOTES, StudyComparison
from raymrc.analysis.conclusions import UNKNOWN_INTERVAL, BySize, Conclusion, Conclusions, Judgement
from raymrc.analysis.final import FinalScore
from raymrc.analysis.sentences import (
    advice,
    chance_text,
    interval_text,
    points_text,
    price_of_point,
    unreachable_in_folds,
    unreachable_in_test,
)
from raymrc.analysis.summary import (
    CellSummary,
    ConfigurationSummary,
    differing,
    leaders,
    settings_text,
    winners,
)
from raymrc.configuration import Cell
from raymrc.costs.prices import UTILISATION
from raymrc.ledger.record import BOTH_FOUND
from raymrc.model.strategies import STRATEGIES
from raymrc.quantities import percent, points, short_count, size_of
from raymrc.report.table import Column, Table, numbers, words

CELL_COLUMN = words("cell")

show_count = "{:,}".format
show_seconds = "{:,.0f}".format
show_usd = "{:,.4f}".format
show_p = "{:.2g}".format


def cell_names(summaries: Sequence[CellSummary]) -> dict[Cell, str]:
    return {s.cell: without_corpus(s.cell.name, s.cell.corpus, summaries) for s in summaries}


def without_corpus(name: str, corpus: str, summaries: Sequence[CellSummary]) -> str:
    """A cell's or gap's name, without the corpus if the study has only one."""
    is_only = len({summary.cell.corpus for summary in summaries}) == 1
    return name.removeprefix(f"{corpus}/") if is_only else name


def named_leaders(
    summaries: Sequence[CellSummary],
) -> list[tuple[str, CellSummary, ConfigurationSummary]]:
    """Cells with their names and their winner or, before there is one, their leader."""
    names = cell_names(summaries)
    return [(names[summary.cell], summary, leader) for summary, leader in leaders(summaries)]


def comparisons(
    summaries: Sequence[CellSummary], conclusions: Conclusions
) -> Iterator[tuple[str, Conclusion, str, Judgement]]:
    """(name, conclusion, site, judgement) of each gap at home (site "") and at each other site."""
    for name, conclusion in conclusions.compared:
        shown = without_corpus(name, conclusion.gap.corpus, summaries)
        for site, judged in {"": conclusion.home, **conclusion.away}.items():
            yield shown + (f" at {site}" if site else ""), conclusion, site, judged


def winner_table(summaries: Sequence[CellSummary], conclusions: Conclusions) -> Table:
    names, frontier = cell_names(summaries), set(conclusions.frontier)
    intervals = {winner.cell: winner.interval for winner in conclusions.winners}
    has_events = any(leader.labels_events for _, leader in leaders(summaries))
    columns: list[Column] = [
        *CELL_COLUMN,
        *numbers("strict F1", "sd", show=points),
        *numbers("95 % interval", show=interval_text),
        *numbers("lenient F1", *["events F1"] * has_events, show=points),
        *numbers("steps", "rows", show=show_count),
        *numbers("device time", unit="s", show=show_seconds),
        *numbers("cost", unit="USD", show=show_usd),
        *numbers("energy", unit="kWh", show=show_p),
        *numbers("peak memory", show=size_of),
        *numbers("folds"),
        *words("on the frontier", "winning configuration"),
    ]
    rows: list[Sequence[object]] = []
    for summary in summaries:
        name, leader = summary.cell.name, summary.leader
        failed = f", {summary.num_failed} failed" if summary.num_failed else ""
        if leader is None:
            blank = [None] * (len(columns) - 4)
            rows.append((names[summary.cell], *blank, f"0{failed}", "", "no fold-run done yet"))
            continue
        chosen = settings_text(leader.configuration, differing(summary.configurations))
        strict = (leader.strict.mean, leader.strict.sd, intervals.get(name, UNKNOWN_INTERVAL))
        others = [leader.lenient.mean, *[leader.events.mean] * has_events]
        work = (leader.steps or None, leader.rows or None)
        costs = (leader.device_seconds, leader.cost_usd, leader.energy_kwh or None)
        memory = leader.peak_bytes or None
        folds = f"{len(leader.folds)} of {leader.num_folds}{failed}"
        ahead = "yes" if name in frontier else ""
        shown = chosen if summary.winner else f"leading so far: {chosen}"
        rows.append(
            (names[summary.cell], *strict, *others, *work, *costs, memory, folds, ahead, shown)
        )
    caption = (
        "Winners are chosen on validation notes, never on the scored folds. 95 % bootstrap interval over "
        "notes, all folds pooled, models fixed. Steps and rows (one window with one question, or with all "
        "labels) of training, device time and cost are sums over folds. Energy is estimated: device time at "
        f"{100 * UTILISATION:.0f} % of the device's rated power. {unreachable_in_folds(summaries)}"
    ).rstrip()
    return Table("Winners: F1 in points, mean over folds", columns, rows, caption)


def rising_sentence(summaries: Sequence[CellSummary], margin: float) -> str:
    """A sentence that names the winners that more training may help; "" if no late gain is known.

    Args:
        margin: validation F1 gained in the last third of training from which on it counts, 0 to 1.
    """
    led = named_leaders(summaries)
    gains = [(name, leader.late_gain) for name, _, leader in led if leader.late_gain is not None]
    rising = [f"{name} ({100 * gain:+.1f})" for name, gain in gains if gain > margin]
    if not gains:
        return ""
    if not rising:
        return "Validation F1 had stopped rising in every cell's winner when training ended."
    return (
        f"Validation F1 still rose in the last third of training, so longer training may help: "
        f"{', '.join(rising)}."
    )


def gap_table(summaries: Sequence[CellSummary], conclusions: Conclusions) -> Table:
    """One row per gap and site."""
    within = points_text(conclusions.margin)
    rows = []
    for name, conclusion, site, judged in comparisons(summaries, conclusions):
        test, chances = judged.comparison, judged.probabilities
        f1 = (None, None) if site else (conclusion.gap.frozen_f1, conclusion.gap.unfrozen_f1)
        likely: Sequence[float | None] = [None] * 5
        if chances is not None:
            p_values = (judged.p_difference, judged.p_equivalence)
            likely = (chances.within, chances.above, chances.below, *p_values)
        difference = None if test is None else test.difference
        rows.append((name, advice(judged), *f1, difference, judged.interval, *likely))
    return Table(
        "Frozen vs trained: F1 difference in points, with 95 % intervals",
        [
            *words("backbone", "advice"),
            *numbers("frozen F1", "trained F1", "difference", show=points),
            *numbers("95 % interval", show=interval_text),
            *numbers(f"within {within}", "frozen lower", "frozen higher", show=chance_text),
            *numbers("p (no difference)", f"p (beyond {within})", show=show_p),
        ],
        rows,
        "Difference: trained minus frozen. Three probabilities: the difference is within "
        f"{within}, or frozen is lower or higher by more. Advice holds at an error rate of 5 % over "
        f"{conclusions.num_compared} comparison{'' if conclusions.num_compared == 1 else 's'} (Holm).",
    )


def cost_table(summaries: Sequence[CellSummary], conclusions: Conclusions) -> Table:
    rows = []
    for name, conclusion in conclusions.compared:
        gap, price = conclusion.gap, price_of_point(conclusion)
        unit = "USD" if conclusion.extra_usd else "device s"
        late = [f"{s.strategy} {100 * s.gain:+.1f}" for s in conclusion.still_learning]
        point = f"{price[0]} {unit} ({price[1]})" if price else None
        shares = (gap.device_share, gap.adapter_share)
        shown = (without_corpus(name, gap.corpus, summaries), gap.frozen, gap.unfrozen)
        rows.append((*shown, gap.backbone_parameters, *shares, ", ".join(late) or None, point))
    return Table(
        "What freezing saves, and what the trained winner's lead costs",
        [
            *words("backbone", "frozen", "trained"),
            *numbers("parameters", show=short_count),
            *numbers("device time", "stored per task", show=percent),
            *words("late gain"),
            *numbers("price of a point"),
        ],
        rows,
        "Device time and bytes stored per task: the frozen winner's share of the trained one's. Late gain: "
        "points on validation notes in the last third of training; more epochs may change the result. Price "
        "of a point: extra cost of training / its lead in points, with its 95 % interval.",
    )


def size_table(fitted: BySize, conclusions: Conclusions) -> Table:
    """The gap on each backbone beside the fitted line."""
    rows: list[Sequence[object]] = []
    for conclusion in conclusions.gaps:
        gap, fit = conclusion.gap, fitted.fit
        if gap.corpus_name == fitted.corpus:
            size = gap.backbone_parameters
            line = fit.at(size) if fit is not None and size else (None, None)
            rows.append((gap.backbone, size, gap.gap, conclusion.home.interval, *line))
    return Table(
        f"The gap by size: {fitted.corpus}",
        [
            *words("backbone"),
            *numbers("parameters", show=short_count),
            *numbers("gap", show=points),
            *numbers("95 % interval", show=interval_text),
            *numbers("fitted", show=points),
            *numbers("its interval", show=interval_text),
        ],
        rows,
    )


def kept_table(summaries: Sequence[CellSummary]) -> Table | None:
    """What is trained and stored per cell; None without a finished fold-run."""
    rows = []
    for name, _, leader in named_leaders(summaries):
        if leader.trained_parameters:
            parameters = (leader.trained_parameters, leader.total_parameters, leader.trained_share)
            work = (leader.tokens or None, leader.flops or None)
            rows.append((name, *parameters, leader.adapter_bytes, *work))
    columns = [
        *CELL_COLUMN,
        *numbers("trained", "parameters", show=short_count),
        *numbers("trained share", show=percent),
        *numbers("stored per task", show=size_of),
        *numbers("tokens trained on", show=show_count),
        *numbers("FLOPs", show=show_p),
    ]
    return Table("Trained parameters and stored bytes", columns, rows) if rows else None


def counts_tables(summaries: Sequence[CellSummary]) -> list[Table]:
    """Events by the 2022 scheme; mentions on the way to relations; nested and discontinuous spans."""
    kinds = (
        ("Events by the 2022 scheme (triggers overlap, spans exact, values equal): F1 in points",
         "event", "labels_events", ""),
        ("Mentions found on the way to relations: strict, all folds pooled, in points",
         "mentions", "mentions", ""),
        ("Nested, overlapping and discontinuous spans alone: strict, all folds pooled, in points",
         "spans", "subsets", _about_subsets(summaries)),
    )  # fmt: skip
    tables = []
    for title, what, field, caption in kinds:
        rows = []
        for name, _, leader in named_leaders(summaries):
            for kind, counts in getattr(leader, field).items():
                # Nothing is predicted as such, and only recall has a meaning.
                is_share = kind == BOTH_FOUND
                precision = counts.precision if counts.predicted and not is_share else None
                f1 = None if is_share else counts.f1
                rows.append((name, kind, counts.gold, precision, counts.recall, f1))
        columns = [
            *CELL_COLUMN,
            *words(what),
            *numbers("gold", show=show_count),
            *numbers("precision", "recall", "F1", show=points),
        ]
        if rows:
            tables.append(Table(title, columns, rows, caption))
    return tables


def _about_subsets(summaries: Sequence[CellSummary]) -> str:
    """Which of these spans no answer can match."""
    found = []
    led = leaders(summaries)
    if any("discontinuous" in leader.subsets for _, leader in led):
        found.append(
            "A discontinuous span counts as missed here, since an answer is contiguous; in the other tables "
            "an answer that spans its envelope matches it, as in the 2018 scheme."
        )
    one_alone = set()
    for summary, leader in led:
        strategy = STRATEGIES.get(summary.cell.strategy)
        if strategy is not None and {"nested", "overlapping"} & leader.subsets.keys():
            is_surest = leader.configuration.overlapping_answers == "surest"
            if strategy.answers == "tags" or is_surest:
                one_alone.add(summary.cell.strategy)
    if one_alone:
        found.append(
            f"Of two spans of one label that share characters, {', '.join(sorted(one_alone))} can predict "
            "only one per window."
        )
    return " ".join(found)


def site_tables(summaries: Sequence[CellSummary], conclusions: Conclusions) -> dict[str, Table]:
    """One table per other site, by its name."""
    led = named_leaders(summaries)
    scores = {(score.cell, score.site): score for score in conclusions.sites}
    tables = {}
    for site in sorted({site for _, _, leader in led for site in leader.transfer}):
        rows: list[Sequence[object]] = []
        for name, summary, leader in led:
            if site in leader.transfer:
                found, score = leader.transfer[site], scores.get((summary.cell.name, site))
                home, away, drop = ((s.mean, s.sd) for s in (found.home, found.away, found.drop))
                ends = (score.interval, score.drop_interval) if score else (None, None)
                rows.append((name, *home, *away, ends[0], *drop, ends[1]))
        tables[site] = Table(
            f"Strict F1 at home and at {site}, in points, on labels that both sites have",
            [
                *CELL_COLUMN,
                *numbers("at home", "sd", f"at {site}", "sd", show=points),
                *numbers(f"95 % interval at {site}", show=interval_text),
                *numbers("drop", "sd", show=points),
                *numbers("95 % interval of the drop", show=interval_text),
            ],
            rows,
            f"The interval at {site} is over its notes, models fixed; the drop's is over folds and those "
            "notes, corrected for training notes that folds share.",
        )
    return tables


def race_table(summaries: Sequence[CellSummary]) -> Table | None:
    """What racing saved, per cell; None if no race stopped a configuration."""
    names = cell_names(summaries)
    rows = []
    for summary in summaries:
        configurations = summary.configurations
        stopped = sum(bool(c.stopped) for c in configurations)
        if stopped:
            trained = sum(c.fold_epochs for c in configurations)
            grid = sum(c.configuration.epochs * c.num_folds for c in configurations)
            share = f"{100 * trained / grid:.0f} %"
            searched = (names[summary.cell], len(configurations), stopped)
            rows.append((*searched, trained, share, summary.device_seconds))
    columns = [
        *CELL_COLUMN,
        *numbers("configurations", "stopped"),
        *numbers("fold-epochs", show=show_count),
        *numbers("of the full grid"),
        *numbers("device time", unit="s", show=show_seconds),
    ]
    caption = "A stopped configuration has no scores; 'raymrc report --json' has each one's reason."
    return Table("Configurations that racing stopped", columns, rows, caption) if rows else None


def final_table(finals: Sequence[FinalScore], summaries: Sequence[CellSummary]) -> Table:
    names = cell_names(summaries)
    over_folds = {summary.cell: winner.strict.mean for summary, winner in winners(summaries)}
    has_events = any(score.events.mean is not None for score in finals)
    rows = []
    for score in finals:
        name = names.get(score.cell, score.cell.name)
        strict = (score.strict.mean, score.strict.sd, score.interval)
        others = [score.lenient.mean, *[score.events.mean] * has_events, over_folds.get(score.cell)]
        rows.append((name, *strict, *others, len(score.seeds), score.epochs))
    return Table(
        "Final test: F1 in points on held-out notes, mean over seeds",
        [
            *CELL_COLUMN,
            *numbers("strict F1", "sd", show=points),
            *numbers("95 % interval", show=interval_text),
            *numbers("lenient F1", *["events F1"] * has_events, "over folds", show=points),
            *numbers("seeds", "epochs"),
        ],
        rows,
        "95 % bootstrap interval over held-out notes, models fixed. Over folds: strict F1 in "
        f"cross-validation. {unreachable_in_test(finals)}".rstrip(),
    )


def comparison_tables(found: StudyComparison) -> list[Table]:
    """Cells that both studies have, and settings in which the study files differ."""
    rows: list[Sequence[object]] = []
    for pair in found.both:
        sides = (pair.first, pair.second)
        f1 = [side and side.strict.mean for side in sides]
        costs = [side and side.device_seconds for side in sides]
        costs += [side and side.cost_usd for side in sides]
        test = (pair.difference, pair.interval, pair.p_value)
        rows.append((pair.cell.name, *f1, *test, *costs, pair.paired or "no winner yet"))
    columns = [
        *CELL_COLUMN,
        *numbers("A", "B", "B - A", show=points),
        *numbers("95 % interval", show=interval_text),
        *numbers("p", show=show_p),
        *numbers("A device time", "B device time", unit="s", show=show_seconds),
        *numbers("A cost", "B cost", unit="USD", show=show_usd),
        *words("paired by"),
    ]
    title = f"Winners' strict F1 in points. A: {found.first}, B: {found.second}"
    fields = words("field", found.first, found.second)
    tables = [
        Table(title, columns, rows, _about_pairing(found)),
        Table("Settings in which the study files differ", fields, found.settings),
    ]
    return [table for table in tables if table.rows]


def _about_pairing(found: StudyComparison) -> str:
    tested = sum(pair.p_value is not None for pair in found.both)
    about = {
        SAME_FOLDS: f"Same folds: corrected t-test over folds, p adjusted over {tested} "
        f"cell{'' if tested == 1 else 's'} (Holm).",
        SAME_NOTES: "Same notes: pooled F1, notes resampled, models fixed.",
        OTHER_NOTES: "Other notes: a difference may come from the notes alone.",
    }
    ways = {pair.paired for pair in found.both}
    return " ".join(sentence for way, sentence in about.items() if way in ways)
