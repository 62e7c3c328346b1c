"""What a page says: findings -> sections of plots and tables. Whatever has nothing to show is left out.

Nothing is reckoned here that `study` has not: figures are chosen, named and put in order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from raymrc.model.strategies import STRATEGIES
from raymrc.report import figures
from raymrc.report.figures import Mark, in_points
from raymrc.report.parts import Fact, Plot, Section, Table
from raymrc.scoring.counts import Counts
from raymrc.study.conclusions import (
    AHEAD,
    BEHIND,
    EQUIVALENT,
    UNKNOWN,
    Conclusion,
    Judgement,
    chance,
    ends,
    over_folds,
)
from raymrc.study.configuration import Cell
from raymrc.study.findings import Findings
from raymrc.study.plan import short_count
from raymrc.study.record import Record
from raymrc.study.statistics import Interval, TooFewError
from raymrc.study.verdict import (
    CellSummary,
    ConfigurationSummary,
    describe,
    percent,
    points,
    size_of,
)

T = TypeVar("T")

CELL = "corpus / backbone / strategy"

FREEZE, TRAIN, UNSURE = "freeze", "train the backbone", "not enough data"
ADVICE = {EQUIVALENT: FREEZE, AHEAD: FREEZE, BEHIND: TRAIN}

MOST_CONFIGURATIONS = 20
"""Of a cell that are listed; the export has all."""
MOST_STOPPED = 200
MOST_VALUES = 12
"""Of a setting along an axis; where a search drew more, its configurations are points."""


def build_sections(findings: Findings) -> tuple[Section, ...]:
    """In the order of the page."""
    makers: tuple[Callable[[Findings], Section | None], ...] = (
        _frontier, _gaps, _sizes, _few_shot, _transfer, _search, _labels, _parts_of_labels, _kept,
        _final_test, _races, _failures, _repeat,
    )  # fmt: skip
    found = (make(findings) for make in makers)
    return tuple(section for section in found if section is not None)


# --- the strip at the top -------------------------------------------------------------------------


def build_facts(findings: Findings) -> tuple[Fact, ...]:
    """The decision, the best F1, the gap, the cost, how far the study is."""
    summaries = findings.summaries
    gaps = findings.conclusions.gaps
    done, failed, spared = (
        sum(getattr(s, name) for s in summaries)
        for name in ("num_done", "num_failed", "num_spared")
    )
    facts = [_decision(gaps)]
    best = max(_won(findings), key=lambda s: _winner(s).validation.mean or 0.0, default=None)
    if best is not None:
        facts.append(
            Fact(
                "Best on validation, strict F1",
                points(_winner(best).strict.mean),
                f"{_names(findings)[best.cell]}, "
                + _interval_words("all folds together", _note_intervals(findings)[best.cell.name]),
            )
        )
    if gaps:
        one = gaps[-1]
        value = one.gap.gap
        facts.append(
            Fact(
                f"Frozen {'behind' if value >= 0 else 'ahead'} by, points",
                points(abs(value)),
                f"{one.gap.name}, {_interval_words('of what it is behind by', one.home.interval)}",
            )
        )
    seconds, usd = (
        sum(getattr(s, name) for s in summaries) for name in ("device_seconds", "cost_usd")
    )
    hours = f"{seconds / 3600:,.1f} device hours"
    facts.append(
        Fact("Cost of all of it", f"{usd:,.4g} USD", hours)
        if usd
        else Fact("Device time of all of it", hours.removesuffix(" device hours") + " h")
    )
    planned = findings.plan.num_fold_runs
    others = [
        f"{n:,} {word}" for n, word in ((failed, "failed"), (spared, "spared by racing")) if n
    ]
    of_all = f"of {planned:,} planned"
    facts.append(Fact("Fold-runs done", f"{done:,}", ", ".join([of_all, *others])))
    return tuple(facts)


def _decision(gaps: Sequence[Conclusion]) -> Fact:
    marks = {FREEZE: "freeze", TRAIN: "train", UNSURE: "unsure"}
    if not gaps:
        return Fact(
            "Decision", "Nothing to compare yet", "no backbone has a winner on both sides", "unsure"
        )
    said = Counter(_advice(one.home) for one in gaps)
    if len(said) == 1:
        (advice,) = said
        more = gaps[0].gap.name if len(gaps) == 1 else f"on all {len(gaps)} that were compared"
        return Fact("Decision", advice.capitalize(), more, marks[advice])
    (most, _), *_ = said.most_common()
    more = ", ".join(f"{advice} on {times}" for advice, times in said.most_common())
    return Fact("Decision", "It depends", more, marks[most])


def _advice(judged: Judgement) -> str:
    return ADVICE.get(judged.outcome, UNSURE)


def _interval_words(of: str, interval: Interval) -> str:
    return f"{of} {ends(interval)}" if interval.low is not None else "no interval"


# --- winners --------------------------------------------------------------------------------------


def _frontier(findings: Findings) -> Section | None:
    won = _won(findings)
    led = [s for s in findings.summaries if s.leader is not None]
    if not led:
        return None
    usd = any(_winner(s).cost_usd for s in won)
    cost = "USD, all folds" if usd else "device seconds, all folds"
    names, best = _names(findings), set(findings.conclusions.frontier)
    intervals = _note_intervals(findings)
    smallest = min((_backbone(_winner(s)) for s in won), default=1) or 1
    marks: dict[str, list[Mark]] = {}
    for summary in won:
        winner = _winner(summary)
        spent = winner.cost_usd if usd else winner.device_seconds
        if spent <= 0:
            continue
        f1, sd = 100 * (winner.strict.mean or 0.0), 100 * (winner.strict.sd or 0.0)
        size = _backbone(winner)
        marks.setdefault(summary.cell.strategy, []).append(
            Mark(
                spent, f1, f"{names[summary.cell]}\nF1 {_plus_minus(winner)}\n{spent:.4g} {cost}\n"
                f"backbone {short_count(size)}\n{_settings_of(winner, summary)}",
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
                summary.cell.name,
                points(leader.strict.mean),
                points(leader.strict.sd),
                ends(intervals.get(summary.cell.name, UNKNOWN)),
                points(leader.lenient.mean),
                *([points(leader.events.mean)] if _has_events(findings) else []),
                f"{leader.device_seconds:,.0f}",
                f"{leader.cost_usd:,.4f}",
                size_of(leader.peak_bytes) if leader.peak_bytes else "-",
                f"{len(leader.folds)} of {leader.num_folds}",
                "yes" if summary.cell.name in best else "",
                _settings_of(leader, summary) + ("" if leader.is_complete else " (leading so far)"),
            )
        )
    events = ["events F1"] if _has_events(findings) else []
    table = Table(
        "Winners: F1 in points, mean over folds",
        (CELL, "strict F1", "sd", "95 % interval, pooled", "lenient F1", *events, "device s", "USD",
         "peak memory", "folds", "on the frontier", "winning configuration"),
        "lrrrr" + "r" * len(events) + "rrrrll",
        rows,
        "Winners are chosen on validation notes, never on the scored folds. The interval is of all folds "
        "together, were other notes drawn like these; models as trained.",
    )  # fmt: skip
    plot = Plot(
        "Frozen against trained: F1 and what it costs",
        "Each cell's winner by strict F1, sd over folds, and cost, all folds, on a "
        "logarithmic axis. The larger "
        "a mark, the larger the backbone. Ringed in black: no other one of its corpus beats it in F1, money, "
        "time, memory and bytes kept together.",
        figures.scatter(_in_order(marks), cost, "strict F1, points", log=True),
        460,
    )
    shown = (plot,) if marks else ()
    return Section("winners", "Winners: F1 against cost", (), shown, (table,))


def _gaps(findings: Findings) -> Section | None:
    found = findings.conclusions
    if not found.gaps:
        return None
    names, marks, rows = [], dict[str, list[Mark]](), []
    margin = 100 * found.margin
    for one in found.gaps:
        for site, judged in {"": one.home, **one.away}.items():
            name = one.gap.name + (f" at {site}" if site else "")
            of_gap, likely = judged.comparison, judged.probabilities
            advice = _advice(judged)
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
            share = (one.gap.device_share, one.gap.adapter_share)
            rows.append(
                (
                    name, advice, one.gap.unfrozen,
                    points(one.gap.frozen_f1) if not site else "-",
                    points(one.gap.unfrozen_f1) if not site else "-",
                    points(value), ends(judged.interval), *chances,
                    *(percent(of) if not site else "-" for of in share),
                )
            )  # fmt: skip
    table = Table(
        "What a frozen backbone is behind by, in points",
        ("corpus / backbone", "advice", "trained one", "frozen F1", "trained F1", "behind by",
         "95 % interval", f"within {margin:g}", "further behind", "further ahead", "p, no gap",
         f"p, not within {margin:g}", "device time", "kept per task"),
        "lllrrrrrrrrrrr",
        rows,
        f"Claims hold at an error rate of 5 % over {found.num_compared} "
        f"comparison{'' if found.num_compared == 1 else 's'} (Holm). Device time and what is kept for a task "
        "are the frozen winner's share of the trained one's.",
    )  # fmt: skip
    plot = Plot(
        "The gap, and how sure it is",
        "What the frozen winner is behind the best trained one by, in points of strict F1, "
        "with its corrected 95 % "
        f"interval. Shaded: within {margin:g} of each other, which makes no difference in practice.",
        figures.dots(marks, names, "points of F1 that frozen is behind by", band=margin, zero=True),
        figures.height_of(len(names)),
    )
    return Section("gaps", "Frozen against trained", (), (plot,) if names else (), (table,))


def _sizes(findings: Findings) -> Section | None:
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
                "What frozen is behind by, in points, against the backbone's parameters on "
                "a logarithmic axis, with "
                "each gap's 95 % interval, and the fitted line with its own where there are sizes enough.",
                figures.by_size(
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
            )
        )
    return Section("size", "By size", said, plots) if plots else None


def _few_shot(findings: Findings) -> Section | None:
    groups: dict[tuple[str, str, str], dict[str, list[CellSummary]]] = {}
    for summary in _won(findings):
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
        for strategy, members in _in_order(by_strategy).items():
            for summary in sorted(members, key=lambda s: s.cell.shots or 0):
                winner, shots = _winner(summary), summary.cell.shots or 0
                interval = _fold_interval(winner)
                marks.setdefault(strategy, []).append(
                    _curve_mark(shots, f"{strategy}, {shots} {of}", winner, interval)
                )
                rows.append((strategy, str(shots), *_curve_row(winner, interval)))
        shots_there = sorted({float(m.x) for of_one in marks.values() for m in of_one})
        plots.append(
            Plot(
                f"{corpus} / {backbone}",
                f"Strict F1 of each strategy's winner by how many {of} it was trained on, "
                "with 95 % intervals over "
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
    return Section("few-shot", "Few training examples", (_ABOUT_INTERVALS,), plots)


_ABOUT_INTERVALS = (
    "Intervals over folds are corrected for the training notes that folds share; with few folds they "
    "are wide."
)


def _transfer(findings: Findings) -> Section | None:
    led = [(s, s.leader) for s in findings.summaries if s.leader is not None and s.leader.transfer]
    sites = sorted({site for _, leader in led for site in leader.transfer})
    names = _names(findings)
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
            rows.append(
                (
                    summary.cell.name,
                    *(
                        points(value)
                        for side in (of.home, of.away, of.drop)
                        for value in (side.mean, side.sd)
                    ),
                )
            )
        plots.append(
            Plot(
                f"At home and at {site}",
                f"Strict F1 of each winner on its own folds and on the notes of {site}, of "
                "labels that both sites "
                "have; sd over folds.",
                figures.dots({"at home": home, "there": away}, order, "strict F1, points"),
                figures.height_of(len(order)),
                Table(
                    f"Strict F1 at {site}, and what is lost on the way",
                    (CELL, "at home", "sd", f"at {site}", "sd", "drop", "sd"),
                    "lrrrrrr",
                    rows,
                ),
            )
        )
    return Section("transfer", "At other sites", (), plots) if plots else None


# --- the search -----------------------------------------------------------------------------------


def _search(findings: Findings) -> Section | None:
    """Heat maps over two settings, curves over each, and the configurations themselves."""
    searched = [s for s in findings.summaries if len(s.configurations) > 1 and s.leader]
    if not searched:
        return None
    done = [c for s in searched for c in s.configurations if c.strict.mean is not None]
    low, high = (100 * of(c.strict.mean or 0.0 for c in done) for of in (min, max))
    span = (max(0.0, low), high)
    names = _names(findings)
    plots = [plot for s in searched if (plot := _field_of(s, names[s.cell], span)) is not None]
    plots += _curves(searched)
    tables = [_configurations(s) for s in searched]
    lead = (
        "Strict F1 in points, mean over folds. Winners are chosen on validation notes, so "
        "the one with the best "
        "score here need not be it. " + _ABOUT_INTERVALS,
    )
    return Section("search", "The search", lead, plots, tables)


def _varied(configurations: Sequence[ConfigurationSummary]) -> dict[str, list[Any]]:
    """Settings in which a cell's configurations differ, with their values, in the order of fields."""
    settings = [asdict(c.configuration) for c in configurations]
    found = {}
    for name in settings[0]:
        values = {_value_key(of[name]): of[name] for of in settings} if name != "cell" else {}
        if len(values) > 1:
            found[name] = [values[key] for key in sorted(values)]
    return found


def _value_key(value: Any) -> tuple[bool, float, str]:
    """By which values of a setting are told apart and sorted: numbers before words."""
    is_number = isinstance(value, int | float)
    return not is_number, float(value) if is_number else 0.0, "" if is_number else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _word(name: str) -> str:
    return name.replace("_", " ")


def _field_of(summary: CellSummary, name: str, span: tuple[float, float]) -> Plot | None:
    """Over two settings; the second is the first whole number, where there is one, such as a length."""
    varied = {
        field: values
        for field, values in _varied(summary.configurations).items()
        if all(map(_is_number, values))
    }
    if len(varied) < 2:
        return None
    y, *others = varied
    x = next((f for f in others if all(isinstance(v, int) for v in varied[f])), others[0])
    if max(len(varied[x]), len(varied[y])) > MOST_VALUES:
        return _points_of(summary, name, x, y, varied, span)
    # Of several at one place, the one that is best on validation: they come in that order.
    best: dict[tuple[Any, Any], ConfigurationSummary] = {}
    for one in summary.configurations:
        place = (getattr(one.configuration, y), getattr(one.configuration, x))
        best.setdefault(place, one)
    cells = [[best.get((row, column)) for column in varied[x]] for row in varied[y]]
    texts = [[_heat_text(one, summary) for one in row] for row in cells]
    rows, columns = ([_short(v) for v in varied[f]] for f in (y, x))
    values = [
        [None if c is None or c.strict.mean is None else 100 * c.strict.mean for c in row]
        for row in cells
    ]
    return Plot(
        name,
        f"Strict F1 by {_word(y)} and {_word(x)}, with sd over folds. ★ marks the winner.",
        figures.heat(rows, columns, values, texts, _word(x), _word(y), value_range=span, says="F1"),
        130 + 44 * len(rows),
        Table(
            f"{name}: F1, sd, by {_word(y)} (down) and {_word(x)} (across)",
            (_word(y), *columns),
            "r" * (1 + len(columns)),
            [(row, *texts_of) for row, texts_of in zip(rows, texts, strict=True)],
        ),
        is_wide=False,
    )


def _heat_text(one: ConfigurationSummary | None, summary: CellSummary) -> str:
    if one is None:
        return ""
    if one.strict.mean is None:
        return "stopped" if one.stopped else "failed" if one.failures else "-"
    star = "★ " if one is summary.winner else ""
    return star + _plus_minus(one)


def _points_of(
    summary: CellSummary,
    name: str,
    x: str,
    y: str,
    varied: Mapping[str, Sequence[Any]],
    span: tuple[float, float],
) -> Plot | None:
    shown = [c for c in summary.configurations if c.strict.mean is not None]
    if len(shown) < 2:
        return None
    marks = [
        Mark(
            getattr(c.configuration, x), getattr(c.configuration, y),
            f"F1 {_plus_minus(c)}\n{_settings_of(c, summary)}", ringed=c is summary.winner,
        )
        for c in shown
    ]  # fmt: skip
    values = [100 * (c.strict.mean or 0.0) for c in shown]
    log = tuple(varied[f][0] > 0 and varied[f][-1] / varied[f][0] > 8 for f in (x, y))
    return Plot(
        name,
        f"Strict F1 by {_word(x)} and {_word(y)}, a point a configuration; the winner is "
        "ringed. The figures are in "
        "the list of configurations.",
        figures.field(marks, values, _word(x), _word(y), (log[0], log[1]), span),
        340,
        is_wide=False,
    )


def _curves(searched: Sequence[CellSummary]) -> list[Plot]:
    """Of each setting that a grid varies: the best on validation at each value, a line a strategy."""
    groups: dict[tuple[str, str], dict[str, list[CellSummary]]] = {}
    for summary in searched:
        cell = summary.cell
        where = _where(cell)
        for name, values in _varied(summary.configurations).items():
            if len(values) <= MOST_VALUES and not isinstance(values[0], tuple):
                groups.setdefault((name, where), {}).setdefault(cell.strategy, []).append(summary)
    plots = []
    for (name, where), by_strategy in groups.items():
        marks: dict[str, list[Mark]] = {}
        rows, there = [], dict[tuple[bool, float, str], Any]()
        for strategy, (summary, *_) in _in_order(by_strategy).items():
            for value in _varied(summary.configurations)[name]:
                best = next(
                    (c for c in summary.configurations
                     if getattr(c.configuration, name) == value and c.folds), None
                )  # fmt: skip
                if best is None:
                    continue
                there[_value_key(value)] = value
                interval = _fold_interval(best)
                at = value if _is_number(value) else str(value)
                text = f"{strategy}, {_word(name)} {_short(value)}"
                marks.setdefault(strategy, []).append(_curve_mark(at, text, best, interval))
                rows.append((strategy, _short(value), *_curve_row(best, interval)))
        values = [there[key] for key in sorted(there)]
        if len(values) < 2:
            continue
        numbers = [v for v in values if _is_number(v)]
        is_words = len(numbers) < len(values)
        if is_words:  # an axis of names, numbers among them
            marks = {s: [_named(m) for m in of] for s, of in marks.items()}
            values = [_short(v) if _is_number(v) else str(v) for v in values]
        plots.append(
            Plot(
                f"By {_word(name)}: {where}",
                f"Strict F1 by {_word(name)}, at each value of the configuration that is "
                "best on validation there, "
                "with 95 % intervals over folds.",
                figures.scatter(
                    marks, _word(name), "strict F1, points", lines=True, ticks=values,
                    log=not is_words and values[0] > 0 and values[-1] / values[0] > 8,
                ),
                380,
                Table(
                    f"By {_word(name)}: {where}",
                    ("strategy", _word(name), "strict F1", "sd", "95 % interval over folds"),
                    "lrrrr",
                    rows,
                ),
                is_wide=False,
            )
        )  # fmt: skip
    return plots


def _named(mark: Mark) -> Mark:
    at = mark.x if isinstance(mark.x, str) else _short(mark.x)
    return Mark(at, mark.y, mark.says, mark.low, mark.high, mark.size, mark.ringed)


def _curve_mark(at: float | str, text: str, one: ConfigurationSummary, interval: Interval) -> Mark:
    said = f"{text}\nF1 {_plus_minus(one)}, 95 % {ends(interval)}"
    return Mark(at, 100 * (one.strict.mean or 0.0), said, *in_points(interval), size=10)


def _curve_row(one: ConfigurationSummary, interval: Interval) -> tuple[str, ...]:
    return points(one.strict.mean), points(one.strict.sd), ends(interval)


def _configurations(summary: CellSummary) -> Table:
    shown = summary.configurations[:MOST_CONFIGURATIONS]
    left = len(summary.configurations) - len(shown)
    return Table(
        f"{summary.cell.name}: configurations, best on validation first",
        (
            "configuration",
            "validation F1",
            "strict F1",
            "sd",
            "lenient F1",
            "folds",
            "device s",
            "",
        ),
        "lrrrrrrl",
        [
            (
                _settings_of(one, summary),
                points(one.validation.mean),
                points(one.strict.mean),
                points(one.strict.sd),
                points(one.lenient.mean),
                f"{len(one.folds)} of {one.num_folds}",
                f"{one.device_seconds:,.0f}",
                _state(one, summary),
            )
            for one in shown
        ],
        f"{left} more are in the table of fold-runs: raymrc export." if left else "",
    )


def _state(one: ConfigurationSummary, summary: CellSummary) -> str:
    if one is summary.winner:
        return "winner"
    if one.stopped:
        return "stopped"
    return "failed" if one.failures else ""


# --- labels, sizes --------------------------------------------------------------------------------


def _labels(findings: Findings) -> Section | None:
    led = [(s, s.leader) for s in findings.summaries if s.leader is not None]
    labels = sorted({label for _, leader in led for label in leader.labels_strict})
    if not labels:
        return None
    names = _names(findings)
    rows = []
    for label in labels:
        for summary, leader in led:
            strict = leader.labels_strict.get(label, Counts())
            lenient = leader.labels_lenient.get(label, Counts())
            rows.append(
                (label, summary.cell.name, f"{strict.tp + strict.fn:,}", points(strict.precision),
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
                ("label", CELL, "gold", "precision", "recall", "strict F1", "lenient F1"),
                "llrrrrr",
                rows,
            ),
        ),
    )


def _label_heat(
    title: str, says: str, rows: Sequence[tuple[str, Mapping[str, Counts]]], labels: Sequence[str]
) -> Plot:
    values = [[100 * of[label].f1 if label in of else None for label in labels] for _, of in rows]
    texts = [["" if value is None else f"{value:.1f}" for value in row] for row in values]
    return Plot(
        title,
        says,
        figures.heat(
            [name for name, _ in rows], labels, values, texts, "", "",
            value_range=(0.0, 100.0), says="F1",
        ),
        150 + 30 * len(rows),
    )  # fmt: skip


def _parts_of_labels(findings: Findings) -> Section | None:
    """Events by the 2022 scheme; nested, overlapping and discontinuous spans."""
    led = [(s, s.leader) for s in findings.summaries if s.leader is not None]
    names = _names(findings)
    plots, tables = [], []
    events = sorted({name for _, leader in led for name in leader.labels_events})
    if events:
        plots.append(
            _label_heat(
                "F1 of events by the 2022 scheme",
                "F1 of triggers and arguments of each cell's winner, all folds together, "
                "in points: triggers overlap, "
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
                          [(s.cell.name, leader.labels_events) for s, leader in led])
        )  # fmt: skip
    if any(leader.subsets for _, leader in led):
        tables.append(
            _counts_table("Nested, overlapping and discontinuous spans by themselves: strict, in points",
                          "spans", [(s.cell.name, leader.subsets) for s, leader in led])
        )  # fmt: skip
    return Section("kinds", "Events and nested spans", (), plots, tables) if tables else None


def _counts_table(caption: str, of: str, rows: Iterable[tuple[str, Mapping[str, Counts]]]) -> Table:
    return Table(
        caption,
        (CELL, of, "gold", "precision", "recall", "F1"),
        "llrrrr",
        [
            (name, kind, f"{c.tp + c.fn:,}", points(c.precision), points(c.recall), points(c.f1))
            for name, by_kind in rows
            for kind, c in by_kind.items()
        ],
    )


def _kept(findings: Findings) -> Section | None:
    led = [(s, s.leader) for s in findings.summaries if s.leader is not None]
    led = [(s, leader) for s, leader in led if leader.trained_parameters]
    if not led:
        return None
    names = _names(findings)
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
            (summary.cell.name, short_count(leader.trained_parameters),
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
            figures.dots(_in_order(marks), order, axis, log=True),
            figures.height_of(len(order)),
            is_wide=False,
        )
        for marks, title, axis in drawn
        if marks
    ]
    table = Table(
        "What is trained and what is kept",
        (CELL, "trained", "parameters", "share", "kept per task", "peak memory", "tokens trained on",
         "FLOPs"),
        "lrrrrrrr",
        rows,
    )  # fmt: skip
    return Section("kept", "What is trained, and what is kept", (), plots, (table,))


# --- how it went ----------------------------------------------------------------------------------


def _final_test(findings: Findings) -> Section | None:
    if not findings.finals:
        return None
    names = _names(findings)
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
            (score.cell.name, points(score.strict.mean), points(score.strict.sd),
             points(score.lenient.mean), points(validated), str(len(score.seeds)),
             str(score.configuration.epochs))
        )  # fmt: skip
    plot = Plot(
        "Held-out notes",
        "Strict F1 of each winner, trained anew on all notes of the study, on held-out "
        "notes: mean and sd over seeds, "
        "beside its mean over folds.",
        figures.dots({"over folds": folds, "there": tested}, order, "strict F1, points"),
        figures.height_of(len(order)),
        Table(
            "Final test: F1 in points on held-out notes, mean over seeds",
            (CELL, "strict F1", "sd", "lenient F1", "over folds", "seeds", "epochs"),
            "lrrrrrr",
            rows,
        ),
    )
    return Section("final-test", "Final test", (), (plot,))


def _races(findings: Findings) -> Section | None:
    raced = [s for s in findings.summaries if any(c.stopped for c in s.configurations)]
    if not raced:
        return None
    rows, stopped = [], []
    for summary in raced:
        of_cell = summary.configurations
        trained = sum(c.fold_epochs for c in of_cell)
        grid = sum(c.configuration.epochs * c.num_folds for c in of_cell)
        those = [c for c in of_cell if c.stopped]
        rows.append(
            (summary.cell.name, str(len(of_cell)), str(len(those)), f"{trained:,}",
             f"{100 * trained / grid:.0f} %", f"{summary.device_seconds:,.0f}")
        )  # fmt: skip
        stopped += [
            (summary.cell.name, _settings_of(c, summary), str(c.fold_epochs), c.stopped)
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
                (CELL, "configurations", "stopped", "fold-epochs", "of the full grid", "device s"),
                "lrrrrr",
                rows,
            ),
            Table(
                "Who was stopped, and why",
                (CELL, "configuration", "fold-epochs", "why"),
                "llrl",
                stopped[:MOST_STOPPED],
                f"{left} more are in the table of fold-runs: raymrc export." if left > 0 else "",
            ),
        ),
    )


def _failures(findings: Findings) -> Section | None:
    rows = [
        (s.cell.name, str(times), reason) for s in findings.summaries for reason, times in s.reasons
    ]
    if not rows and not findings.closed:
        return None
    tables = []
    if rows:
        tables.append(Table("Why fold-runs failed", (CELL, "fold-runs", "why"), "lrl", rows))
    if findings.closed:
        tables.append(
            Table(
                "Cells that were given up",
                (CELL, "fold-runs not begun"),
                "lr",
                [(name, str(left)) for name, left in findings.closed],
                f"{findings.spec.failures.close_cell_after} configurations in a row failed "
                "(failures.close_cell_after). 'raymrc run' tries them again.",
            )
        )
    return Section("failures", "Failures", (), (), tables)


def _repeat(findings: Findings) -> Section:
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


# --- shared ---------------------------------------------------------------------------------------


def _won(findings: Findings) -> list[CellSummary]:
    return [summary for summary in findings.summaries if summary.winner is not None]


def _winner(summary: CellSummary) -> ConfigurationSummary:
    assert summary.winner is not None
    return summary.winner


def _backbone(one: ConfigurationSummary) -> int:
    return one.total_parameters - one.trained_parameters or one.total_parameters


def _has_events(findings: Findings) -> bool:
    return any(s.leader and s.leader.labels_events for s in findings.summaries)


def _note_intervals(findings: Findings) -> dict[str, Interval]:
    return {winner.cell: winner.interval for winner in findings.conclusions.winners}


def _fold_interval(one: ConfigurationSummary) -> Interval:
    try:
        return over_folds(one.fold_runs, one.fold_f1).interval()
    except TooFewError:
        return UNKNOWN


def _settings_of(one: ConfigurationSummary, summary: CellSummary) -> str:
    return describe(one.configuration, summary.configurations)


def _plus_minus(one: ConfigurationSummary) -> str:
    sd = one.strict.sd
    mean = 100 * (one.strict.mean or 0.0)
    return f"{mean:.1f}" if sd is None else f"{mean:.1f} ± {100 * sd:.1f}"


def _where(cell: Cell) -> str:
    shots = f" / {cell.shots} {cell.shots_of}" if cell.shots is not None else ""
    return f"{cell.corpus} / {cell.backbone.name}{shots}"


def _names(findings: Findings) -> dict[Cell, str]:
    """Cells by what tells them apart: the corpus is left out where there is one alone."""
    cells = [summary.cell for summary in findings.summaries]
    many = len({cell.corpus for cell in cells}) > 1
    return {
        cell: cell.name if many else cell.name.removeprefix(f"{cell.corpus}/") for cell in cells
    }


def _in_order(by_strategy: Mapping[str, T]) -> dict[str, T]:
    """As the table of strategies has them, others last."""
    known = [name for name in STRATEGIES if name in by_strategy]
    return {name: by_strategy[name] for name in dict.fromkeys((*known, *by_strategy))}
