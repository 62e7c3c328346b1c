"""Promise: our 2022 figures equal `brat_scoring`'s in every row, under each criterion.

It could break unnoticed where types and roles disagree, or where a trigger could pair with two others: both
are rare, and the overall figure hides them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raymrc.errors import CorpusError
from raymrc.scoring.n2c2_2022 import CRITERIA, render_2022_scores, score_2022_folders
from tests.paths import SHARED, needs_shared

CASES = SHARED / "scorer_cases" / "n2c2_2022"

GOLD = (
    "T1\tTobacco 0 6\tsmokes\n"
    "T2\tStatusTime 0 6\tsmokes\n"
    "T3\tAmount 7 12\t1 ppd\n"
    "E1\tTobacco:T1 Status:T2 Amount:T3\n"
    "A1\tStatusTimeVal T2 current\n"
)


def rows(folder: Path, gold: str, system: str, criterion: str = "challenge") -> dict:
    for name, lines in (("gold", gold), ("system", system)):
        (folder / name).mkdir()
        (folder / name / "one.ann").write_text(lines)
    report = score_2022_folders(folder / "gold", folder / "system", criterion)
    return {
        (row.event, row.argument, row.subtype): (c.gold, c.predicted, c.tp)
        for row in (*report.rows, report.overall)
        if (c := row.counts)
    }


OVERALL = ("OVERALL", "OVERALL", "OVERALL")


# Official figures: brat_scoring 0.2.0, `score_brat_sdoh` with --labeled-args Severity.
@needs_shared
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_row_is_the_official_one(criterion):
    expected = json.loads((CASES / "expected.json").read_text())
    report = score_2022_folders(
        CASES / "gold", CASES / "system", criterion, labeled=expected["labeled_args"]
    )
    official = {
        (row["event"], row["argument"], row["subtype"]): [
            *(int(row[column]) for column in ("NT", "NP", "TP")),
            *(pytest.approx(float(row[column]), abs=1e-12) for column in ("P", "R", "F1")),
        ]
        for row in expected["criteria"][criterion]
    }
    ours = {
        (row.event, row.argument, row.subtype): [
            c.gold,
            c.predicted,
            c.tp,
            c.precision,
            c.recall,
            c.f1,
        ]
        for row in (*report.rows, report.overall)
        if (c := row.counts)
    }
    assert ours == official


def test_the_json_report_has_rows_and_an_overall_row(tmp_path):
    rows(tmp_path, GOLD, GOLD)
    report = score_2022_folders(tmp_path / "gold", tmp_path / "system")
    answer = report.to_json()
    assert answer["rows"] == [
        {
            "event": "Tobacco",
            "argument": argument,
            "subtype": subtype,
            "gold": 1,
            "system": 1,
            "matched": 1,
        }
        for argument, subtype in (("Amount", "N/A"), ("StatusTime", "current"), ("Trigger", "N/A"))
    ]
    assert answer["overall"] == {
        "gold": 3,
        "system": 3,
        "matched": 3,
        "precision": 1.0,
        "recall": 1.0,
        "f1": 1.0,
    }
    assert "StatusTime" in render_2022_scores(report)
    json.dumps(answer)


def test_a_labelled_argument_matches_by_value_at_any_place(tmp_path):
    moved = GOLD.replace("StatusTime 0 6", "StatusTime 40 46")
    found = rows(tmp_path, GOLD, moved)
    assert found["Tobacco", "StatusTime", "current"] == (1, 1, 1)


def test_a_labelled_argument_with_another_value_does_not_match(tmp_path):
    found = rows(tmp_path, GOLD, GOLD.replace("current", "past"))
    assert found["Tobacco", "StatusTime", "current"] == (1, 0, 0)
    assert found["Tobacco", "StatusTime", "past"] == (0, 1, 0)


@pytest.mark.parametrize(("criterion", "matched"), [("challenge", 2), ("exact", 0), ("overlap", 3)])
def test_the_criterion_decides_whether_shifted_ends_match(tmp_path, criterion, matched):
    # "exact" leaves the trigger unpaired, and its arguments with it.
    shifted = GOLD.replace("Tobacco 0 6", "Tobacco 0 5").replace("Amount 7 12", "Amount 7 9")
    assert rows(tmp_path, GOLD, shifted, criterion)[OVERALL] == (3, 3, matched)


def test_exact_requires_the_ends_of_labelled_arguments_too(tmp_path):
    shifted = GOLD.replace("StatusTime 0 6", "StatusTime 0 5")
    assert rows(tmp_path, GOLD, shifted, "exact")[OVERALL] == (3, 3, 2)


def test_arguments_of_an_unpaired_trigger_are_all_missed_and_all_spurious(tmp_path):
    other = GOLD.replace("Tobacco", "Alcohol")
    assert rows(tmp_path, GOLD, other)[OVERALL] == (3, 3, 0)


def test_duplicate_events_are_false_positives(tmp_path):
    assert rows(tmp_path, GOLD, GOLD + "E2\tTobacco:T1 Amount:T3\n")[OVERALL] == (3, 5, 3)


def test_types_of_spans_count_and_roles_do_not(tmp_path):
    renamed = GOLD.replace("E1\tTobacco:T1 Status:T2 Amount:T3", "E1\tX:T1 Y:T2 Z:T3")
    assert rows(tmp_path, GOLD, renamed)[OVERALL] == (3, 3, 3)


def test_an_event_without_arguments_counts_its_trigger(tmp_path):
    bare = "T1\tTobacco 0 6\tsmokes\nE1\tTobacco:T1\n"
    assert rows(tmp_path, bare, bare)[OVERALL] == (1, 1, 1)


def test_a_span_that_no_event_names_does_not_count(tmp_path):
    assert rows(tmp_path, GOLD, GOLD + "T9\tAlcohol 20 24\tetoh\n")[OVERALL] == (3, 3, 3)


def test_an_attribute_of_an_event_is_not_its_triggers_value(tmp_path):
    found = rows(tmp_path, GOLD, GOLD + "A2\tNegated E1\nA3\tCertainty E1 low\n")
    assert found["Tobacco", "Trigger", "N/A"] == (1, 1, 1)


def test_an_argument_that_names_an_event_stands_for_its_trigger(tmp_path):
    nested = GOLD + "T4\tDrug 20 24\tweed\nE2\tDrug:T4 With:E1\n"
    found = rows(tmp_path, nested, nested)
    assert found["Drug", "Tobacco", "N/A"] == (1, 1, 1)


def test_a_missing_system_file_counts_as_missed_and_is_named(tmp_path):
    rows(tmp_path, GOLD, GOLD)
    (tmp_path / "gold" / "site").mkdir()
    (tmp_path / "gold" / "site" / "two.ann").write_text(GOLD)
    report = score_2022_folders(tmp_path / "gold", tmp_path / "system")
    assert report.missing == ("site/two",)
    assert (report.overall.counts.gold, report.overall.counts.tp) == (6, 3)


def test_an_unknown_criterion_is_refused_with_the_closest_known_one(tmp_path):
    with pytest.raises(CorpusError, match="did you mean 'overlap'"):
        score_2022_folders(tmp_path, tmp_path, "overlaps")
