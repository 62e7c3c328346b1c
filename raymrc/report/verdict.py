"""The study's verdict, said alike on the page's first tile, in its first section and on the terminal."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from raymrc.analysis.conclusions import Overall
from raymrc.analysis.findings import Findings
from raymrc.analysis.sentences import (
    FREEZE,
    TRAIN,
    UNDECIDED,
    Verdict,
    advice,
    gap_verdict,
    overall_verdict,
)
from raymrc.report.results import without_corpus

MARKS = {FREEZE: "freeze", TRAIN: "train", UNDECIDED: "unsure"}


@dataclass(frozen=True)
class StudyVerdict:
    """
    Args:
        advice, about: the tile's value and the line below it.
        mark: "freeze", "train" or "unsure".
        verdict: the same in sentences.
    """

    advice: str
    about: str
    mark: str
    verdict: Verdict


def study_verdict(findings: Findings) -> StudyVerdict:
    gaps, best = findings.conclusions.gaps, best_of_all(findings)
    if best is not None:
        what = advice(best.conclusion.home)
        about = f"{best.frozen} frozen vs {best.unfrozen} trained"
        verdict = overall_verdict(best, findings.conclusions)
        return StudyVerdict(what.capitalize(), about, MARKS[what], verdict)
    if not gaps:
        missing = "no backbone has both a frozen and a trained winner"
        nothing = "Nothing to compare yet"
        return StudyVerdict(nothing, missing, "unsure", Verdict(f"{nothing}: {missing}."))
    counted = Counter(advice(conclusion.home) for conclusion in gaps)
    if len(counted) > 1:
        about = ", ".join(f"{what} in {times}" for what, times in counted.most_common())
        verdict = Verdict(f"It depends on the comparison: {about}.")
        return StudyVerdict("It depends", about, "unsure", verdict)
    (what,) = counted
    if len(gaps) == 1:
        about = without_corpus(gaps[0].gap.name, gaps[0].gap.corpus, findings.summaries)
        verdict = gap_verdict(gaps[0], findings.conclusions)
    else:
        about = f"in all {len(gaps)} comparisons"
        verdict = Verdict(f"All {len(gaps)} comparisons agree: {what}.")
    return StudyVerdict(what.capitalize(), about, MARKS[what], verdict)


def best_of_all(findings: Findings) -> Overall | None:
    """Best against best, if it covers the whole study: one corpus and one number of shots."""
    overall = findings.conclusions.overall
    shots = {summary.cell.shots for summary in findings.summaries}
    return overall[0] if len(overall) == len(shots) == 1 else None
