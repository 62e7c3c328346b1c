"""Tables of a study's results, built once for the terminal and the page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

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
from raymrc.analysis.summary import CellSummary, ConfigurationSummary, differing, settings_text
from raymrc.configuration import Cell
from raymrc.costs.prices import UTILISATION
from raymrc.ledger.record import BOTH_FOUND
from raymrc.model.strategies import STRATEGIES
from raymrc.quantities import percent, points, short_count, size_of
from raymrc.report.table import Column, Table, numbers, words
from raymrc.scoring.counts import Counts

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


def leaders(summaries: Iterable[CellSummary]) -> list[tuple[CellSummary, ConfigurationSummary]]:
    """Cells with their winner or, before there is one, their leader."""
    return [(summary, summary.leader) for summary in summaries if summary.leader is not None]


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
        rows.append(
            (
                names[summary.cell],
                leader.strict.mean,
                leader.strict.sd,
                intervals.get(name, UNKNOWN_INTERVAL),
                leader.lenient.mean,
                *[leader.events.mean] * has_events,
                leader.device_seconds,
                leader.cost_usd,
                leader.energy_kwh or None,
                leader.peak_bytes or None,
                f"{len(leader.folds)} of {leader.num_folds}{failed}",
                "yes" if name in frontier else "",
                chosen if summary.winner else f"leading so far: {chosen}",
            )
        )
    caption = _joined(
        "Winners are chosen on validation notes, never on the scored folds. 95 % bootstrap interval over "
        "notes, all folds pooled, models fixed. Energy is estimated: device time at "
        f"{100 * UTILISATION:.0f} % of the device's rated power.",
        unreachable_in_folds(summaries),
    )
    return Table("Winners: F1 in points, mean over folds", columns, rows, caption)


def _joined(*sentences: str) -> str:
    return " ".join(filter(None, sentences))


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
        rows.append(
            (
                without_corpus(name, gap.corpus, summaries),
                gap.frozen,
                gap.unfrozen,
                gap.backbone_parameters,
                gap.device_share,
                gap.adapter_share,
                ", ".join(late) or None,
                f"{price[0]} {unit} ({price[1]})" if price else None,
            )
        )
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
    names = cell_names(summaries)
    rows = [
        (
            names[summary.cell],
            leader.trained_parameters,
            leader.total_parameters,
            leader.trained_share,
            leader.adapter_bytes,
            leader.tokens or None,
            leader.flops or None,
        )
        for summary, leader in leaders(summaries)
        if leader.trained_parameters
    ]
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
    names = cell_names(summaries)
    led = [(names[summary.cell], leader) for summary, leader in leaders(summaries)]
    tables = [
        _counts_table(
            "Events by the 2022 scheme (triggers overlap, spans exact, values equal): F1 in points",
            "event",
            [(name, leader.labels_events) for name, leader in led],
        ),
        _counts_table(
            "Mentions found on the way to relations: strict, all folds pooled, in points",
            "mentions",
            [(name, leader.mentions) for name, leader in led],
        ),
        _counts_table(
            "Nested, overlapping and discontinuous spans alone: strict, all folds pooled, in points",
            "spans",
            [(name, leader.subsets) for name, leader in led],
            _about_subsets(summaries),
        ),
    ]  # fmt: skip
    return [table for table in tables if table.rows]


def _counts_table(
    title: str, what: str, led: Iterable[tuple[str, Mapping[str, Counts]]], caption: str = ""
) -> Table:
    rows = []
    for name, by_kind in led:
        for kind, counts in by_kind.items():
            # Nothing is predicted as such, and only recall has a meaning.
            is_share = kind == BOTH_FOUND
            precision = counts.precision if counts.tp + counts.fp and not is_share else None
            f1 = None if is_share else counts.f1
            rows.append((name, kind, counts.tp + counts.fn, precision, counts.recall, f1))
    columns = [
        *CELL_COLUMN,
        *words(what),
        *numbers("gold", show=show_count),
        *numbers("precision", "recall", "F1", show=points),
    ]
    return Table(title, columns, rows, caption)


def _about_subsets(summaries: Sequence[CellSummary]) -> str:
    """Which of these spans no answer can match."""
    found = []
    led = leaders(summaries)
    if any("discontinuous" in leader.subsets for _, leader in led):
        found.append(
            "A discontinuous span counts as missed here, since an answer is contiguous; in the other tables "
            "an answer that spans its envelope matches it, as in the 2018 scheme."
        )
    one_alone = sorted(
        {
            summary.cell.strategy
            for summary, leader in led
            if {"nested", "overlapping"} & leader.subsets.keys()
            and summary.cell.strategy in STRATEGIES
            and (
                STRATEGIES[summary.cell.strategy].answers == "tags"
                or leader.configuration.overlapping_answers == "surest"
            )
        }
    )
    if one_alone:
        found.append(
            f"Of two spans of one label that share characters, {', '.join(one_alone)} can predict only "
            "one per window."
        )
    return " ".join(found)


def site_tables(summaries: Sequence[CellSummary], conclusions: Conclusions) -> dict[str, Table]:
    """One table per other site, by its name."""
    names, led = cell_names(summaries), leaders(summaries)
    scores = {(score.cell, score.site): score for score in conclusions.sites}
    tables = {}
    for site in sorted({site for _, leader in led for site in leader.transfer}):
        rows: list[Sequence[object]] = []
        for summary, leader in led:
            if site not in leader.transfer:
                continue
            found, score = leader.transfer[site], scores.get((summary.cell.name, site))
            rows.append(
                (
                    names[summary.cell],
                    found.home.mean,
                    found.home.sd,
                    found.away.mean,
                    found.away.sd,
                    score and score.interval,
                    found.drop.mean,
                    found.drop.sd,
                    score and score.drop_interval,
                )
            )
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
            seconds = summary.device_seconds
            rows.append(
                (names[summary.cell], len(configurations), stopped, trained, share, seconds)
            )
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
    over_folds = {s.cell: s.winner.strict.mean for s in summaries if s.winner is not None}
    has_events = any(score.events.mean is not None for score in finals)
    rows = [
        (
            names.get(score.cell, score.cell.name),
            score.strict.mean,
            score.strict.sd,
            score.interval,
            score.lenient.mean,
            *[score.events.mean] * has_events,
            over_folds.get(score.cell),
            len(score.seeds),
            score.epochs,
        )
        for score in finals
    ]
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
        _joined(
            "95 % bootstrap interval over held-out notes, models fixed. Over folds: strict F1 in "
            "cross-validation.",
            unreachable_in_test(finals),
        ),
    )


def comparison_tables(found: StudyComparison) -> list[Table]:
    """Cells that both studies have, and settings in which the study files differ."""
    rows: list[Sequence[object]] = []
    for pair in found.both:
        sides = (pair.first, pair.second)
        rows.append(
            (
                pair.cell.name,
                *(side and side.strict.mean for side in sides),
                pair.difference,
                pair.interval,
                pair.p_value,
                *(side and side.device_seconds for side in sides),
                *(side and side.cost_usd for side in sides),
                pair.paired or "no winner yet",
            )
        )
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
    tables = [
        Table(title, columns, rows, _about_pairing(found)),
        Table(
            "Settings in which the study files differ",
            words("field", found.first, found.second),
            found.settings,
        ),
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
