"""Promise: what a report advises is sure at the stated rate, and where nothing is, it says so.

It would break without anyone noticing: advice reads the same, whether the folds bear it out or not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from raymrc.analysis.conclusions import AHEAD, BEHIND, EQUIVALENT, UNSURE
from raymrc.analysis.judging import conclude
from raymrc.analysis.sentences import verdicts
from raymrc.analysis.statistics import Interval, compare_folds, published_correlation
from raymrc.analysis.summary import summarise
from raymrc.configuration import Backbone
from raymrc.ledger.record import Epoch, NoteCounts, Record
from raymrc.scoring.counts import Counts
from tests.study.making import cell, record

NOTES, ITEMS = 20, 100
POINT = 0.01


def scored(f1: float, prefix: str) -> dict[str, NoteCounts]:
    """20 notes of 100 items each, with as many spurious as missed: together of this F1."""
    found = round(f1 * NOTES * ITEMS)
    notes = {}
    for note in range(NOTES):
        tp = found // NOTES + (note < found % NOTES)
        # Notes are not all alike, or a bootstrap would have nothing to draw.
        tp += (2, -2)[note % 2] if 2 <= tp <= ITEMS - 2 else 0
        strict = {"Drug": Counts(tp, ITEMS - tp, ITEMS - tp)}
        notes[f"{prefix}-{note}"] = NoteCounts(strict, strict)
    return notes


def ledger(
    trained: Sequence[float],
    frozen: Sequence[float],
    *,
    away: tuple[Sequence[float], Sequence[float]] | None = None,
    backbone: str = "minilm",
    size: int = 1000,
    seconds: tuple[float, float] = (100.0, 10.0),
    usd: tuple[float, float] = (1.0, 0.1),
    of_fold=lambda fold: fold,
):
    """Records of a trained and a frozen cell whose folds have these F1."""
    sides = (("soft_prompt", trained, 0), ("frozen_soft_prompt", frozen, 1))
    for strategy, folds, place in sides:
        for fold, f1 in enumerate(folds):
            made = record(
                fold,
                cell=replace(cell(strategy), backbone=Backbone(backbone, backbone)),
                device_seconds=seconds[place],
                cost_usd=usd[place],
                adapter_bytes=(400, 4)[place],
            )
            transfer = {} if away is None else {"there": scored(away[place][fold], "away")}
            yield replace(
                made,
                notes=scored(f1, f"fold-{of_fold(fold)}"),
                transfer=transfer,
                total_parameters=size + made.trained_parameters,
            )


def concluded(records, folds=5, margin=POINT, **more):
    return conclude(summarise(list(records), folds), margin, **more)


def sentences(found) -> list[str]:
    return [str(verdict) for verdict in verdicts(found)]


LEVEL = [0.80, 0.82, 0.79, 0.81, 0.80]
CLOSE = [f1 - behind for f1, behind in zip(LEVEL, [0.001, 0.002, 0, 0.001, 0.002], strict=True)]
FAR = [f1 - behind for f1, behind in zip(LEVEL, [0.1, 0.11, 0.09, 0.1, 0.105], strict=True)]
ANYWHERE = [f1 - behind for f1, behind in zip(LEVEL, [0.15, -0.04, 0.12, 0.0, 0.05], strict=True)]


def test_a_sure_parity_advises_freezing_and_says_what_it_saves():
    found = concluded(ledger(LEVEL, CLOSE))
    (gap,) = found.gaps
    assert gap.home.outcome == EQUIVALENT
    assert gap.home.probabilities.within > 0.95
    (sentence,) = sentences(found)
    assert sentence.startswith(
        "notes/minilm: freeze the backbone; frozen_soft_prompt scores within 1 point of soft_prompt."
    )
    assert "Freezing takes 10 % of the device time and 1 % of the bytes stored per task" in sentence
    assert "Frozen scored 0.1 points lower (95 % interval " in sentence


def test_a_clear_win_advises_training_and_says_its_price():
    found = concluded(ledger(LEVEL, FAR))
    (gap,) = found.gaps
    assert gap.home.outcome == BEHIND
    (sentence,) = sentences(found)
    assert sentence.startswith(
        "notes/minilm: train the backbone; soft_prompt scores higher than frozen_soft_prompt. "
        "Frozen scored 10.1 points lower (95 % interval "
    )
    # 4.5 USD more over five folds, for 10.1 points.
    assert "Training cost 4.5 USD more over all folds, 0.45 per point (" in sentence
    assert gap.per_point.value == pytest.approx(4.5 / 10.1)
    free = concluded(ledger(LEVEL, FAR, usd=(0, 0)))
    assert "Training cost 450 device seconds more" in sentences(free)[0]
    cheap = concluded(ledger(LEVEL, FAR, usd=(0, 0), seconds=(10, 100)))
    assert "Training cost no more than freezing" in sentences(cheap)[0]


def test_a_large_frozen_backbone_is_compared_with_a_small_trained_one():
    """The question of who may choose: of all backbones, the best to freeze and the best to train."""
    poor = [f1 - 0.05 for f1 in FAR]
    small = list(ledger(LEVEL, poor, backbone="small", usd=(1.0, 0.1)))
    # Too large to be trained: it has no other side of its own.
    large = [
        replace(r, validation_f1=0.6)
        for r in ledger(LEVEL, CLOSE, backbone="large", size=10**6, usd=(9.0, 0.5))
        if "frozen" in r.fold_run.configuration.cell.strategy
    ]
    found = concluded([*small, *large])
    (best,) = found.overall
    assert (best.frozen, best.unfrozen) == ("large", "small")
    assert best.conclusion.home.outcome == EQUIVALENT and found.gaps[0].home.outcome == BEHIND
    assert found.num_compared == 2 and len(found.gaps) == 1
    first, second = sentences(found)
    assert first.startswith(
        "notes, best of 2 backbones: freeze the backbone; large (frozen_soft_prompt) scores within "
        "1 point of small (soft_prompt). Frozen scored 0.1 points lower"
    )
    assert "Over all folds freezing cost 2.5 USD, training 5;" in first
    assert second.startswith("notes/small: train the backbone;")
    assert [name for name, _ in found.compared] == [
        "notes/large frozen, small trained", "notes/small",
    ]  # fmt: skip
    (values,) = json.loads(json.dumps(found.to_json()))["overall"]
    assert (values["frozen_backbone"], values["outcome"]) == ("large", EQUIVALENT)


def test_a_gap_that_is_also_best_against_best_is_tested_once():
    worse = [f1 - 0.2 for f1 in LEVEL]
    records = [
        *ledger(LEVEL, FAR, backbone="good"),
        *(replace(r, validation_f1=0.1) for r in ledger(worse, worse[::-1], backbone="poor")),
    ]
    found = concluded(records)
    (best,) = found.overall
    assert (best.frozen, best.unfrozen) == ("good", "good")
    assert found.num_compared == 2 and best.conclusion in found.gaps
    assert sentences(found)[0].startswith(
        "notes, best of 2 backbones: train the backbone; good (soft_prompt) scores higher than good ("
    )
    assert not concluded(ledger(LEVEL, FAR)).overall


@pytest.mark.parametrize(
    ("course", "gain"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.41, 0.43], 0.03),
        ([0.1, 0.2, 0.3, 0.4, 0.4, 0.4], None),
        ([0.1, 0.2, 0.3, 0.4, 0.405, 0.2], None),
        ([0.1, 0.4], None),
    ],
)
def test_a_winner_still_learning_at_the_end_is_advised_more_epochs(course, gain):
    """A frozen backbone 19 points behind on relations was given ten epochs; twenty brought 15 of them."""
    epochs = tuple(Epoch(n, 1.0, f1, 1.0) for n, f1 in enumerate(course, 1))
    records = [
        replace(r, epochs=epochs) if "frozen" in r.fold_run.configuration.cell.strategy else r
        for r in ledger(LEVEL, FAR)
    ]
    found = concluded(records)
    (sentence,) = sentences(found)
    sentence_start = (
        "in the last third of training frozen_soft_prompt gained 3.0 points on validation notes"
    )
    assert (sentence_start in sentence) == bool(gain)
    (values,) = json.loads(json.dumps(found.to_json()))["gaps"]
    assert [row["gain"] for row in values["still_learning"]] == [pytest.approx(gain)] * bool(gain)
    assert sentence.startswith("notes/minilm: train the backbone")


def test_frozen_ahead_advises_freezing():
    found = concluded(ledger(FAR, LEVEL))
    assert found.gaps[0].home.outcome == AHEAD
    assert found.gaps[0].per_point.value is None, "what is dearer and behind has no price a point"
    assert sentences(found)[0].startswith(
        "notes/minilm: freeze the backbone; frozen_soft_prompt scores higher than soft_prompt. "
        "Frozen scored 10.1 points higher (95 % interval "
    )


def test_a_large_gap_on_folds_that_disagree_is_not_enough_data():
    found = concluded(ledger(LEVEL, ANYWHERE))
    (gap,) = found.gaps
    assert gap.home.comparison.difference == pytest.approx(0.056)
    assert gap.home.outcome == UNSURE
    (sentence,) = sentences(found)
    assert sentence.startswith("notes/minilm: not enough data to choose between")
    assert "freeze" not in sentence and "train the backbone" not in sentence
    assert "More notes or more folds are needed" in sentence


def test_frozen_may_be_ahead_at_another_site_alone():
    found = concluded(ledger(LEVEL, FAR, away=(FAR, LEVEL)))
    (gap,) = found.gaps
    assert (gap.home.outcome, gap.away["there"].outcome) == (BEHIND, AHEAD)
    assert found.num_compared == 2
    (sentence,) = sentences(found)
    assert sentence.startswith("notes/minilm: train the backbone;")
    assert "For notes from there, freeze." in sentence


def test_another_site_s_interval_holds_the_luck_of_its_notes():
    (gap,) = concluded(ledger(LEVEL, FAR, away=(LEVEL, FAR))).gaps
    home, away = gap.home.comparison, gap.away["there"].comparison
    assert away.difference == pytest.approx(home.difference)
    assert away.scale >= home.scale


@pytest.mark.parametrize("margin, outcome", [(0.0015, UNSURE), (0.01, EQUIVALENT)])
def test_the_study_sets_the_margin_of_equivalence(margin, outcome):
    assert concluded(ledger(LEVEL, CLOSE), margin=margin).gaps[0].home.outcome == outcome


def test_a_sure_gap_may_be_unsure_among_many_comparisons():
    close_call = [f1 - b for f1, b in zip(LEVEL, [0.02, 0.06, 0.03, 0.05, 0.04], strict=True)]
    alone = concluded(ledger(LEVEL, close_call))
    assert alone.gaps[0].home.outcome == BEHIND
    among = concluded(
        [
            *ledger(LEVEL, close_call),
            *(r for name in "abcd" for r in ledger(LEVEL, ANYWHERE, backbone=name)),
        ]
    )
    by_name = {conclusion.gap.backbone: conclusion for conclusion in among.gaps}
    assert by_name["minilm"].home.outcome == UNSURE
    assert by_name["minilm"].home.p_difference > alone.gaps[0].home.p_difference
    assert by_name["minilm"].home.interval == alone.gaps[0].home.interval
    sentence = next(s for s in sentences(among) if "minilm" in s)
    assert "excludes 0, but not after correction for 5 comparisons" in sentence


def test_one_fold_or_equal_folds_decide_nothing():
    (gap,) = concluded(ledger(LEVEL[:1], FAR[:1]), 1).gaps
    assert gap.home.outcome == UNSURE and gap.home.comparison is None
    same = concluded(ledger(LEVEL, LEVEL))
    assert same.gaps[0].home.outcome == UNSURE and same.num_compared == 0
    assert "all folds gave the same difference" in sentences(same)[0]
    assert same.gaps[0].pooled == Interval(None, None)


def test_draws_of_one_fold_are_not_taken_for_folds():
    trained, frozen = [0.8, 0.7, 0.75, 0.8], [0.7, 0.68, 0.7, 0.6]
    drawn = list(ledger(trained, frozen, of_fold=lambda fold: fold % 2))
    (gap,) = concluded(drawn, 4).gaps
    assert gap.home.comparison.degrees == 1
    assert gap.home.comparison.difference == pytest.approx(np.mean([0.1, 0.02, 0.05, 0.2]))


def test_the_published_correction_stands_beside_ours():
    (gap,) = concluded(ledger(LEVEL, FAR)).gaps
    differences = np.array(LEVEL) - np.array(FAR)
    by_hand = compare_folds(differences, published_correlation(5))
    p, interval = gap.home.published
    assert p == pytest.approx(by_hand.p_difference)
    assert (interval.low, interval.high) == pytest.approx(
        (by_hand.interval().low, by_hand.interval().high)
    )
    assert gap.home.interval.low < interval.low


@pytest.mark.parametrize(
    "behind, noise, away, home, site",
    [
        (0.0, 0.001, None, EQUIVALENT, None),
        (0.1, 0.01, None, BEHIND, None),
        (0.01, 0.05, None, UNSURE, None),
        (0.1, 0.005, -0.1, BEHIND, AHEAD),
        (0.0, 0.05, -0.1, UNSURE, AHEAD),
    ],
    ids=["parity", "a clear win", "not enough data", "ahead elsewhere", "ahead elsewhere alone"],
)
def test_advice_is_right_on_ledgers_drawn_from_a_known_truth(behind, noise, away, home, site):
    """Twelve each. Folds scatter, each by itself; none may claim what is not so."""
    draw = np.random.default_rng(7)
    outcomes = []
    for _ in range(12):
        level = 0.8 + draw.normal(0, 0.01, 5)
        frozen = level - behind + draw.normal(0, noise, 5)
        elsewhere = (
            None if away is None else (level - 0.1, level - 0.1 - away + draw.normal(0, 0.005, 5))
        )
        (gap,) = concluded(ledger(level, frozen, away=elsewhere)).gaps
        found = (gap.home.outcome, gap.away["there"].outcome if gap.away else None)
        outcomes.append(found)
    right = sum(found == (home, site) for found in outcomes)
    assert right >= 11
    assert set(outcomes) <= {(home, site), (UNSURE, site), (home, UNSURE)}


def test_notes_of_one_patient_are_resampled_together():
    records = list(ledger(LEVEL, FAR))
    ids = sorted({note for r in records for note in r.notes})
    alone = concluded(records).winners[0]
    grouped = concluded(
        records, groups={"": {note: f"patient-{n % 10}" for n, note in enumerate(ids)}}
    ).winners[0]
    assert (alone.num_groups, grouped.num_groups) == (100, 10)
    assert alone.f1 == grouped.f1 and alone.interval != grouped.interval


def test_a_note_s_id_is_not_taken_for_a_patient_of_that_name():
    records = list(ledger(LEVEL, FAR))
    found = concluded(records, groups={"": {"fold-0-0": "fold-0-1"}})
    assert found.winners[0].num_groups == 100


def test_the_luck_of_the_choice_is_computed_among_complete_configurations():
    """The same three configurations are chosen and reported fold by fold, by hand."""
    validation = {1e-4: [0.9, 0.1, 0.6], 2e-4: [0.5, 0.5, 0.5], 3e-4: [0.4, 0.6, 0.4]}
    f1 = {1e-4: [0.8, 0.7, 0.6], 2e-4: [0.5, 0.6, 0.7], 3e-4: [0.3, 0.2, 0.1]}
    records = [
        replace(
            record(fold, learning_rate=rate, validation_f1=validation[rate][fold]),
            notes=scored(f1[rate][fold], f"fold-{fold}"),
        )
        for rate in validation
        for fold in range(3)
    ]
    incomplete = record(0, learning_rate=4e-4, validation_f1=1.0)
    (winner,) = concluded([*records, incomplete], 3).winners
    # Without the first fold the second is best on validation, else the first. By fold, the mean of all
    # three is 0.533, 0.5 and 0.467; nothing is known of single validation notes, so these choose as well.
    luck = [(0.1 + 0.233) / 2 + 0.033, (0.267 + 0.133) / 2 - 0.2, (0.267 + 0.2) / 2 - 0.133]
    assert winner.selection.scored == pytest.approx(0.7)
    assert winner.selection.optimism == pytest.approx((2 / 3) ** 0.5 * sum(luck) / 3, abs=1e-3)


def test_a_fold_s_scored_notes_do_not_help_to_choose_for_that_fold():
    """The first leads only by what it finds in the first fold's note, wherever that validates."""
    good, bad, fair = Counts(9, 1, 1), Counts(1, 9, 9), Counts(4, 6, 6)
    records = []
    for rate, lucky, others in ((1e-4, good, bad), (2e-4, fair, fair)):
        for fold in range(3):
            seen = {f"fold-{n}-0": others if n else lucky for n in range(3) if n != fold}
            base = record(fold, learning_rate=rate, validation_f1=0.9 if rate == 1e-4 else 0.5)
            f1 = (0.75 if fold else 0.9) if rate == 1e-4 else 0.6
            records.append(replace(base, notes=scored(f1, f"fold-{fold}"), validation=seen))
    (winner,) = concluded(records, 3).winners
    assert winner.selection.scored == pytest.approx(0.8)
    # For the first fold the second is chosen; for the others the lucky note speaks for the first. Each is
    # ahead of the mean of both by 0.15 on the first fold and 0.075 on others, or behind by as much.
    luck = [-0.075 + 0.15, (0.15 + 0.075) / 2 - 0.075, (0.15 + 0.075) / 2 - 0.075]
    assert winner.selection.optimism == pytest.approx(sum(luck) / 3)
    unknown = concluded([replace(r, validation={}) for r in records], 3).winners[0].selection
    assert unknown.corrected == pytest.approx(0.8)


def test_the_interval_of_a_drop_includes_the_luck_of_the_other_site_s_notes():
    """All folds' models read the same ten notes there: of their luck the folds' drops say nothing."""
    found = [9, 2, 8, 3, 9, 1, 9, 2, 8, 4]
    counts = {
        f"t-{n}": NoteCounts({"Drug": Counts(tp, 10 - tp, 10 - tp)}, {})
        for n, tp in enumerate(found)
    }
    records = [replace(r, transfer={"there": counts}) for r in ledger(LEVEL, FAR)]
    for score in concluded(records).sites:
        level = FAR if "frozen" in score.cell else LEVEL
        assert (score.site, score.f1) == ("there", pytest.approx(0.55))
        assert score.drop == pytest.approx(np.mean(level) - 0.55)
        of_folds = compare_folds([f1 - 0.55 for f1 in level]).interval()
        assert of_folds.high - of_folds.low < 0.06
        for interval in (score.interval, score.drop_interval):
            assert interval.high - interval.low > 0.3


def test_parity_by_size_needs_enough_sizes():
    def behind(gap):
        return [
            f1 - gap - more for f1, more in zip(LEVEL, [0, 0.001, 0.002, 0, 0.001], strict=True)
        ]

    def sized(sizes):
        return [
            r
            for place, size in enumerate(sizes)
            for r in ledger(
                LEVEL,
                behind(0.06 - 0.02 * place + 0.0005 * (place % 2)),
                backbone=f"b{place}",
                size=size,
            )
        ]

    few = concluded(sized([10**6, 10**7, 10**8]))
    assert few.by_size[0].fit is None
    assert sentences(few)[-1].endswith("3 sizes are too few for a line; 4 are needed.")
    enough = concluded(sized([10**6, 10**7, 10**8, 10**9]))
    (fitted,) = enough.by_size
    assert fitted.fit.slope == pytest.approx(-0.02, abs=0.001)
    assert "a tenfold larger backbone changes the gap by -2.0 points" in sentences(enough)[-1]
    assert "The gap shrinks to 1 point at" in sentences(enough)[-1]
    # The trained one does not change with size, and the frozen one makes up what the gap loses.
    assert fitted.f1["soft_prompt"].slope == pytest.approx(0)
    assert fitted.f1["frozen_soft_prompt"].slope == pytest.approx(0.02, abs=0.001)
    assert sentences(enough)[-1].endswith(
        "F1 itself changes by +2.0 under frozen_soft_prompt (1.9 to 2.1), "
        "+0.0 under soft_prompt (0.0 to 0.0)."
    )
    assert (
        json.loads(json.dumps(fitted.to_json()))["f1"]["frozen_soft_prompt"]["slope_interval"][
            "low"
        ]
        < 0.02
    )
    assert few.by_size[0].f1 == {}
    assert not concluded(sized([10**6])).by_size


def test_beaten_winners_are_not_on_the_frontier():
    beaten = list(ledger([0.3] * 5, [0.2] * 5, backbone="poor"))
    found = concluded([*ledger(LEVEL, FAR), *beaten])
    assert found.frontier == ("notes/minilm/frozen_soft_prompt", "notes/minilm/soft_prompt")


def test_a_winner_that_uses_less_energy_is_on_the_frontier():
    def on(device: str, backbone: str) -> list[Record]:
        made = ledger(LEVEL, LEVEL, backbone=backbone, seconds=(100.0, 100.0), usd=(1.0, 1.0))
        return [replace(r, device=device, adapter_bytes=4) for r in made][:5]

    found = concluded([*on("NVIDIA A100-SXM4-40GB", "one"), *on("NVIDIA A10G", "other")])
    assert found.frontier == ("notes/other/soft_prompt",)


def test_an_unknown_cost_does_not_keep_a_winner_on_the_frontier():
    def records_of(name: str, **changed) -> list[Record]:
        made = ledger(LEVEL, LEVEL, backbone=name, seconds=(100.0, 100.0), usd=(1.0, 1.0))
        return [replace(r, peak_bytes=10**9, adapter_bytes=4, device="cpu") for r in made][:5]

    unknown = [replace(r, device="a new one", device_seconds=200.0) for r in records_of("other")]
    assert concluded([*records_of("one"), *unknown]).frontier == ("notes/one/soft_prompt",)
    lighter = [replace(r, device_seconds=200.0, peak_bytes=10**8) for r in records_of("other")]
    assert len(concluded([*records_of("one"), *lighter]).frontier) == 2, "memory is a reason"


def test_conclusions_are_plain_json_and_the_same_every_time():
    records = list(ledger(LEVEL, FAR, away=(FAR, LEVEL)))
    values = json.loads(json.dumps(concluded(records).to_json(), allow_nan=False))
    assert values == json.loads(json.dumps(concluded(records).to_json()))
    (gap,) = values["gaps"]
    assert (gap["outcome"], gap["transfer"]["there"]["outcome"]) == (BEHIND, AHEAD)
    assert gap["interval"]["low"] < gap["gap"] < gap["interval"]["high"]
    assert gap["assumed_correlation"] == 0.3
    assert values["equivalence"] == POINT
    empty = conclude((), POINT)
    assert (empty.to_json()["gaps"], empty.to_json()["winners"], sentences(empty)) == ([], [], [])
