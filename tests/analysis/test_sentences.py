"""Promise: a verdict is short, says what the tests support, and says so for other sites too.

It would break without anyone noticing: a sentence that is dropped or turned round reads as well as before.
"""

from __future__ import annotations

import pytest

from raymrc.analysis.conclusions import UNKNOWN_INTERVAL
from raymrc.analysis.final import FinalGap
from raymrc.analysis.sentences import (
    FREEZE,
    MAX_DETAILS,
    MAX_HEADLINE_WORDS,
    TRAIN,
    UNDECIDED,
    advice,
    difference_text,
    final_sentence,
    verdicts,
)
from raymrc.analysis.statistics import Interval
from raymrc.report.verdict import study_verdict
from tests.analysis.test_conclusions import ANYWHERE, CLOSE, FAR, LEVEL, concluded, ledger
from tests.report.making import FEW_SHOT, STUDY, make_findings

SIDES = {
    "behind": (LEVEL, FAR),
    "ahead": (FAR, LEVEL),
    "equivalent": (LEVEL, CLOSE),
    "unsure": (LEVEL, ANYWHERE),
    "no spread": (LEVEL, LEVEL),
}


def is_short(verdict) -> bool:
    """One headline sentence of at most 25 words, and at most three more sentences."""
    sentences = [verdict.headline, *verdict.details]
    return (
        len(verdict.headline.split()) <= MAX_HEADLINE_WORDS == 25
        and len(verdict.details) <= MAX_DETAILS == 3
        and all(sentence.endswith(".") and ". " not in sentence for sentence in sentences)
    )


@pytest.mark.parametrize("home", SIDES)
@pytest.mark.parametrize("away", [None, *SIDES])
def test_a_verdict_is_one_sentence_of_25_words_and_at_most_three_more(home, away):
    trained, frozen = SIDES[home]
    sites = None if away is None else SIDES[away]
    others = ledger(LEVEL, FAR, backbone="gatortron-8.9b", away=sites, size=10**9)
    found = concluded([*ledger(trained, frozen, away=sites, usd=(0, 0)), *others])
    assert len(verdicts(found)) == 4, "best against best, two gaps, and by size"
    assert all(map(is_short, verdicts(found)))


@pytest.mark.parametrize("text", [STUDY, FEW_SHOT], ids=["by size", "few notes"])
def test_the_verdict_of_a_whole_study_is_as_short(tmp_path, text):
    findings = make_findings(tmp_path, text, with_course=text is STUDY)
    assert is_short(study_verdict(findings).verdict)
    assert all(map(is_short, verdicts(findings.conclusions)))


SITE = "For notes from there, "


@pytest.mark.parametrize(
    "home, away, sentence",
    [
        ("equivalent", "behind", f"{SITE}train the backbone."),
        ("ahead", "behind", f"{SITE}train the backbone."),
        ("unsure", "behind", f"{SITE}train the backbone."),
        ("behind", "ahead", f"{SITE}freeze."),
        ("behind", "equivalent", f"{SITE}freeze."),
        ("unsure", "equivalent", f"{SITE}freeze."),
        ("behind", "behind", None),
        ("ahead", "equivalent", None),
        ("behind", "unsure", None),
        ("equivalent", "unsure", None),
    ],
)
def test_another_site_gets_its_own_advice_exactly_where_it_differs(home, away, sentence):
    found = concluded(ledger(*SIDES[home], away=SIDES[away]))
    (verdict,) = verdicts(found)
    sites = [detail for detail in verdict.details if detail.startswith("For notes from")]
    assert sites == ([sentence] if sentence else [])


@pytest.mark.parametrize(
    "side, what, start",
    [
        ("behind", TRAIN, "notes/minilm: train the backbone; soft_prompt scores higher than"),
        ("ahead", FREEZE, "notes/minilm: freeze the backbone; frozen_soft_prompt scores higher"),
        ("equivalent", FREEZE, "notes/minilm: freeze the backbone; frozen_soft_prompt scores within"),
        ("unsure", UNDECIDED, "notes/minilm: not enough data to choose"),
    ],
)  # fmt: skip
def test_headline_and_advice_follow_the_outcome(side, what, start):
    found = concluded(ledger(*SIDES[side]))
    assert advice(found.gaps[0].home) == what
    assert verdicts(found)[0].headline.startswith(start)


def test_a_difference_and_its_interval_have_the_same_direction():
    assert difference_text(0.477, Interval(-0.052, 1.005)) == (
        "47.7 points lower (95 % interval -5.2 to 100.5)"
    )
    assert difference_text(-0.1, Interval(-0.12, -0.08)) == (
        "10.0 points higher (95 % interval 8.0 to 12.0)"
    )
    gap = FinalGap("notes/minilm", "frozen_soft_prompt", "fine_tune", 0.032, UNKNOWN_INTERVAL)
    assert final_sentence(gap) == (
        "notes/minilm: on held-out notes frozen_soft_prompt scored 3.2 points lower (no interval) than "
        "fine_tune."
    )
