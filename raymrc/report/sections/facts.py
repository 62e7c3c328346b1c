"""The strip of tiles at the top: verdict, best F1, gap, cost, progress."""

from __future__ import annotations

from raymrc.analysis.findings import Findings
from raymrc.analysis.sentences import interval_clause
from raymrc.analysis.summary import winners
from raymrc.quantities import points
from raymrc.report.parts import Fact
from raymrc.report.results import cell_names, without_corpus
from raymrc.report.verdict import best_of_all, study_verdict


def build_facts(findings: Findings) -> tuple[Fact, ...]:
    verdict = study_verdict(findings)
    facts = (
        Fact("Decision", verdict.advice, verdict.about, verdict.mark),
        _best_f1(findings),
        _gap(findings),
        _cost(findings),
        _progress(findings),
    )
    return tuple(fact for fact in facts if fact is not None)


def _best_f1(findings: Findings) -> Fact | None:
    finished = winners(findings.summaries)
    if not finished:
        return None
    best, winner = max(finished, key=lambda pair: pair[1].validation.mean or 0.0)
    intervals = {w.cell: w.interval for w in findings.conclusions.winners}
    name = _spaced(cell_names(findings.summaries)[best.cell])
    about = f"{name}, {interval_clause(intervals[best.cell.name])}"
    return Fact("Best on validation, strict F1", points(winner.strict.mean), about)


def _gap(findings: Findings) -> Fact | None:
    gaps, best = findings.conclusions.gaps, best_of_all(findings)
    if best is None and not gaps:
        return None
    shown = gaps[-1] if best is None else best.conclusion
    name = _spaced(without_corpus(shown.gap.name, shown.gap.corpus, findings.summaries))
    about = f"{name if best is None else 'best vs best'}, {interval_clause(shown.home.interval)}"
    return Fact("Trained minus frozen, points", points(shown.gap.gap), about)


def _cost(findings: Findings) -> Fact:
    usd = sum(summary.cost_usd for summary in findings.summaries)
    hours = f"{sum(summary.device_seconds for summary in findings.summaries) / 3600:,.3g}"
    if not usd:
        return Fact("Device time of the study", f"{hours} h")
    shown = f"{usd:,.0f}" if usd >= 100 else f"{usd:,.2f}" if usd >= 1 else f"{usd:.2g}"
    return Fact("Cost of the study, USD", shown, f"{hours} device hours")


def _progress(findings: Findings) -> Fact:
    done, failed, spared = (
        sum(getattr(summary, name) for summary in findings.summaries)
        for name in ("num_done", "num_failed", "num_spared")
    )
    about = [f"of {findings.plan.num_fold_runs:,} planned"]
    about += [
        f"{n:,} {word}" for n, word in ((failed, "failed"), (spared, "spared by racing")) if n
    ]
    return Fact("Fold-runs done", f"{done:,}", ", ".join(about))


def _spaced(name: str) -> str:
    """Lets a name break in a narrow tile."""
    return name.replace("/", " / ")
