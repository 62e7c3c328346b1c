"""The strip at the top: the decision, the best F1, the gap, the cost, how far the study is."""

from __future__ import annotations

from collections import Counter

from raymrc.analysis.conclusions import Overall, ends
from raymrc.analysis.findings import Findings
from raymrc.analysis.statistics import Interval
from raymrc.quantities import points
from raymrc.report.parts import Fact
from raymrc.report.sections.naming import (
    FREEZE,
    TRAIN,
    UNSURE,
    advice_of,
    cell_names,
    note_intervals,
    shown_gap_name,
    winner_of,
    won,
)


def build_facts(findings: Findings) -> tuple[Fact, ...]:
    """The decision, the best F1, the gap, the cost, how far the study is."""
    summaries = findings.summaries
    gaps = findings.conclusions.gaps
    done, failed, spared = (
        sum(getattr(s, name) for s in summaries)
        for name in ("num_done", "num_failed", "num_spared")
    )
    facts = [_decision(findings)]
    best = max(won(findings), key=lambda s: winner_of(s).validation.mean or 0.0, default=None)
    if best is not None:
        facts.append(
            Fact(
                "Best on validation, strict F1",
                points(winner_of(best).strict.mean),
                f"{_spaced(cell_names(findings)[best.cell])}, "
                + _interval_words("95 % interval", note_intervals(findings)[best.cell.name]),
            )
        )
    best_of_all = _best_of_all(findings)
    if best_of_all is not None or gaps:
        one = gaps[-1] if best_of_all is None else best_of_all.conclusion
        of = (
            "best against best"
            if best_of_all is not None
            else _spaced(shown_gap_name(one, findings))
        )
        interval = _interval_words("95 % interval", one.home.interval)
        facts.append(Fact("Frozen behind by, points", points(one.gap.gap), f"{of}, {interval}"))
    seconds, usd = (
        sum(getattr(s, name) for s in summaries) for name in ("device_seconds", "cost_usd")
    )
    hours = f"{seconds / 3600:,.3g}"
    facts.append(
        Fact("Cost of the study, USD", _money(usd), f"{hours} device hours")
        if usd
        else Fact("Device time of the study", f"{hours} h")
    )
    planned = findings.plan.num_fold_runs
    others = [
        f"{n:,} {word}" for n, word in ((failed, "failed"), (spared, "spared by racing")) if n
    ]
    of_all = f"of {planned:,} planned"
    facts.append(Fact("Fold-runs done", f"{done:,}", ", ".join([of_all, *others])))
    return tuple(facts)


def _best_of_all(findings: Findings) -> Overall | None:
    """Best against best, where it is of all that the study compares: one corpus, and no few examples."""
    overall = findings.conclusions.overall
    shots = {summary.cell.shots for summary in findings.summaries}
    return overall[0] if len(overall) == len(shots) == 1 else None


def _decision(findings: Findings) -> Fact:
    gaps, best_of_all = findings.conclusions.gaps, _best_of_all(findings)
    marks = {FREEZE: "freeze", TRAIN: "train", UNSURE: "unsure"}
    if best_of_all is not None:
        advice = advice_of(best_of_all.conclusion.home)
        more = f"{best_of_all.frozen} frozen against {best_of_all.unfrozen} trained"
        return Fact("Decision", advice.capitalize(), more, marks[advice])
    if not gaps:
        return Fact(
            "Decision", "Nothing to compare yet", "no backbone has a winner on both sides", "unsure"
        )
    said = Counter(advice_of(one.home) for one in gaps)
    if len(said) == 1:
        (advice,) = said
        more = (
            shown_gap_name(gaps[0], findings)
            if len(gaps) == 1
            else f"on all {len(gaps)} that were compared"
        )
        return Fact("Decision", advice.capitalize(), more, marks[advice])
    more = ", ".join(f"{advice} on {times}" for advice, times in said.most_common())
    return Fact("Decision", "It depends", more, marks[UNSURE])


def _spaced(name: str) -> str:
    """Where a tile is narrow, a name has to break somewhere."""
    return name.replace("/", " / ")


def _money(usd: float) -> str:
    return f"{usd:,.0f}" if usd >= 100 else f"{usd:,.2f}" if usd >= 1 else f"{usd:.2g}"


def _interval_words(of: str, interval: Interval) -> str:
    return f"{of} {ends(interval)}" if interval.low is not None else "no interval"
