"""Promise: an interval of 95 % holds the truth that often, a claim at 5 % is false that seldom, and where the
data do not say, nothing is said.

It would break without anyone noticing: every table looks as before, only surer of itself than it may be.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.selection_peers import best_fold_bias, bootstrap_best
from raymrc.analysis.statistics import (
    GUARDED_CORRELATION,
    Interval,
    TooFewError,
    bootstrap,
    compare_folds,
    compare_on_shared_notes,
    guarded_correlation,
    holm,
    leave_fold_out,
    micro_f1,
    published_correlation,
)
from raymrc.analysis.tradeoffs import (
    cost_per_point,
    fit_sizes,
    pareto,
    parity_size,
)
from raymrc.scoring.counts import Counts, pool

SAME = 1e-8
"""Other programs compute the same in another order."""

DIFFERENCES = st.lists(
    st.integers(-500, 500).map(lambda value: value / 1000), min_size=3, max_size=12
).filter(lambda values: len(set(values)) > 1)


def drawn_folds(seed: int, folds: int = 5) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.random.default_rng(seed).uniform(0.6, 0.9, (2, folds)))


def ends(interval: Interval) -> tuple[float, float]:
    assert interval.low is not None and interval.high is not None
    return interval.low, interval.high


# --- folds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("folds", [2, 5, 10])
def test_without_correlation_it_is_scipy_s_paired_t_test(folds):
    a, b = drawn_folds(folds, folds)
    theirs = stats.ttest_rel(a, b)
    ours = compare_folds(a - b, 0.0)
    assert ours.p_difference == pytest.approx(theirs.pvalue, abs=SAME)
    assert ends(ours.interval(0.9)) == pytest.approx(theirs.confidence_interval(0.9), abs=SAME)


@pytest.mark.parametrize("folds", [3, 5, 10])
def test_at_the_published_correlation_it_is_baycomp_s_correlated_t_test(folds):
    baycomp = pytest.importorskip("baycomp", reason="baycomp is not there to be agreed with")
    a, b = drawn_folds(folds, folds)
    ours = compare_folds(a - b, published_correlation(folds)).probabilities(0.02)
    theirs = baycomp.CorrelatedTTest.probs(b, a, rope=0.02)
    assert (ours.below, ours.within, ours.above) == pytest.approx(theirs, abs=SAME)


def test_two_one_sided_tests_are_statsmodels():
    weightstats = pytest.importorskip(
        "statsmodels.stats.weightstats", reason="statsmodels is not there to be agreed with"
    )
    for seed in range(20):
        a, b = drawn_folds(seed)
        theirs = weightstats.DescrStatsW(a - b).ttost_mean(-0.05, 0.05)[0]
        assert compare_folds(a - b, 0.0).p_equivalence(0.05) == pytest.approx(theirs, abs=SAME)


@given(DIFFERENCES, st.floats(0.001, 0.2), st.floats(0, 0.9))
def test_swapping_the_sides_changes_only_the_sign(differences, margin, correlation):
    plain = compare_folds(differences, correlation)
    swapped = compare_folds([-value for value in differences], correlation)
    assert swapped.difference == pytest.approx(-plain.difference)
    assert swapped.p_difference == pytest.approx(plain.p_difference)
    assert swapped.p_equivalence(margin) == pytest.approx(plain.p_equivalence(margin))
    low, high = ends(plain.interval())
    assert ends(swapped.interval()) == pytest.approx((-high, -low))
    plain_odds, swapped_odds = plain.probabilities(margin), swapped.probabilities(margin)
    assert (swapped_odds.below, swapped_odds.within, swapped_odds.above) == pytest.approx(
        (plain_odds.above, plain_odds.within, plain_odds.below)
    )
    assert plain_odds.below + plain_odds.within + plain_odds.above == pytest.approx(1)


@given(DIFFERENCES, st.floats(0, 0.8), st.permutations(range(12)))
def test_neither_the_order_of_folds_nor_a_shift_of_all_widens_an_interval(
    differences, correlation, order
):
    low, high = ends(compare_folds(differences, correlation).interval())
    shuffled = [differences[place] + 0.1 for place in order if place < len(differences)]
    moved = ends(compare_folds(shuffled, correlation).interval())
    assert moved == pytest.approx((low + 0.1, high + 0.1))


@given(DIFFERENCES, st.floats(0, 0.4), st.floats(0.01, 0.4))
def test_more_correlation_widens_intervals(differences, correlation, more):
    narrow, wide = (compare_folds(differences, r) for r in (correlation, correlation + more))
    assert wide.scale > narrow.scale
    assert wide.p_difference >= narrow.p_difference


@given(DIFFERENCES, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_test_interval_and_posterior_never_contradict_each_other(differences, level):
    comparison = compare_folds(differences)
    low, high = ends(comparison.interval(level))
    assert (comparison.p_difference <= 1 - level) == (low >= 0 or high <= 0)
    edge = max(abs(low), abs(high))
    if edge > 0:
        # The further end of the interval is where the one-sided claim begins.
        assert comparison.p_equivalence(edge) == pytest.approx((1 - level) / 2, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 0.1 + 1e-16])
def test_equal_differences_claim_nothing(value):
    comparison = compare_folds([value, 0.1 if value else 0.0, value])
    assert not comparison.has_spread
    assert comparison.p_difference == comparison.p_equivalence(0.01) == 1.0
    assert comparison.probabilities(0.01) is None
    assert comparison.interval() == Interval(None, None)


@pytest.mark.parametrize("differences", [[], [0.1]])
def test_a_single_fold_is_refused(differences):
    with pytest.raises(TooFewError, match="2 are needed"):
        compare_folds(differences)


def test_invalid_numbers_correlations_and_margins_are_refused():
    with pytest.raises(ValueError, match="not a number"):
        compare_folds([0.1, math.nan])
    for correlation in (-0.1, 1.0):
        with pytest.raises(ValueError, match="0 to below 1"):
            compare_folds([0.1, 0.2], correlation)
    for margin in (0.0, -0.01, math.nan):
        with pytest.raises(ValueError, match="holds nothing"):
            compare_folds([0.1, 0.2]).p_equivalence(margin)
    with pytest.raises(ValueError, match="between 0 and 1"):
        compare_folds([0.1, 0.2]).interval(1.0)


def test_the_guarded_correlation_is_at_least_the_published_one():
    assert [guarded_correlation(folds) for folds in (2, 3, 5, 10)] == [
        1 / 2,
        1 / 3,
        GUARDED_CORRELATION,
        GUARDED_CORRELATION,
    ]
    with pytest.raises(TooFewError):
        guarded_correlation(1)
    assert compare_folds([0.1, 0.2, 0.3, 0.1, 0.2]).correlation == GUARDED_CORRELATION


@pytest.mark.parametrize("folds", [5, 10])
def test_only_the_correction_keeps_false_wins_at_the_stated_rate(
    folds,
):
    generator = np.random.default_rng(folds)
    studies, correlation = 4000, 0.3
    common = generator.standard_normal((studies, 1))
    noise = generator.standard_normal((studies, folds))
    rows = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * noise
    share = {
        r: np.mean([compare_folds(row, r).p_difference <= 0.05 for row in rows])
        for r in (None, 0.0)
    }
    # 0.05 and three standard errors of 4000 studies.
    assert 0.04 < share[None] < 0.061
    assert share[0.0] > 0.15


def test_another_site_s_notes_are_the_same_luck_for_all_folds():
    generator = np.random.default_rng(3)
    wins = {"with": 0, "without": 0}
    for _ in range(2000):
        of_notes = 0.05 * generator.standard_normal(40)
        means = 0.002 * generator.standard_normal(5) + of_notes.mean()
        variance = of_notes.var(ddof=1) / 40
        wins["with"] += compare_on_shared_notes(means, variance, 40).p_difference <= 0.05
        wins["without"] += compare_folds(means).p_difference <= 0.05
    assert wins["with"] / 2000 < 0.065
    assert wins["without"] / 2000 > 0.5


def test_without_note_variance_another_site_is_tested_like_home():
    values = [0.1, 0.2, 0.15]
    away, home = compare_on_shared_notes(values, 0.0, 10), compare_folds(values)
    assert (away.scale, away.degrees) == pytest.approx((home.scale, home.degrees))
    still = compare_on_shared_notes([0.1, 0.1], 0.0, 10)
    assert not still.has_spread
    alone = compare_on_shared_notes([0.1, 0.1], 0.04, 10)
    assert (alone.scale, alone.degrees) == pytest.approx((0.2, 9))
    with pytest.raises(TooFewError):
        compare_on_shared_notes(values, 0.1, 1)
    with pytest.raises(ValueError, match="no variance"):
        compare_on_shared_notes(values, -0.1, 10)


# --- Holm -----------------------------------------------------------------------------------------


P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=10)


@given(P_VALUES)
def test_adjusted_p_values_are_statsmodels(p_values):
    multitest = pytest.importorskip(
        "statsmodels.stats.multitest", reason="statsmodels is not there to be agreed with"
    )
    theirs = multitest.multipletests(p_values, method="holm")[1]
    assert holm(p_values) == pytest.approx(theirs, abs=SAME)


@given(P_VALUES, st.data())
def test_an_adjusted_p_value_is_no_smaller_and_belongs_to_its_hypothesis(p_values, data):
    most = data.draw(st.integers(1, len(p_values)))
    adjusted = holm(p_values, most)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    assert all(a <= full for a, full in zip(adjusted, holm(p_values), strict=True))
    order = data.draw(st.permutations(range(len(p_values))))
    shuffled = holm([p_values[place] for place in order], most)
    assert shuffled == pytest.approx([adjusted[place] for place in order])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert holm([0.01, 0.04, 0.03, 0.9], 2) == pytest.approx((0.02, 0.08, 0.06, 0.9))
    assert holm([]) == ()
    with pytest.raises(ValueError, match="from 0 to 1"):
        holm([0.1, 1.1])


# --- notes ----------------------------------------------------------------------------------------


def drawn_counts(seed: int, systems: int = 2, notes: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).poisson((5, 2, 2), size=(systems, notes, 3))


@given(st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=5))
def test_micro_f1_equals_that_of_counts(rows):
    assert micro_f1(np.sum(rows, axis=0)) == pytest.approx(pool(Counts(*row) for row in rows).f1)
    assert micro_f1(rows) == pytest.approx([Counts(*row).f1 for row in rows])


@pytest.mark.parametrize("weights", [[1, 0], [1, -1]])
def test_the_bca_interval_is_scipy_s(weights):
    counts = drawn_counts(5)

    def value(*columns, axis=-1):
        sums = np.stack([column.sum(axis) for column in columns], axis=-1)
        return micro_f1(sums.reshape(*sums.shape[:-1], 2, 3)) @ np.asarray(weights)

    columns = tuple(system[:, kind] for system in counts for kind in range(3))
    theirs = stats.bootstrap(
        columns, value, paired=True, n_resamples=999, batch=100, method="BCa",
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    ours = bootstrap(counts, draws=999, generator=np.random.default_rng(1))
    assert ends(ours.bca_interval(weights)) == pytest.approx((theirs.low, theirs.high), abs=SAME)
    low, high = ends(ours.interval(weights))
    assert low < theirs.low and theirs.high < high, "few notes ask for more room"


def test_a_resample_is_what_picking_notes_one_by_one_gives():
    counts, draws = drawn_counts(6, notes=7), 20
    ours = bootstrap(counts, draws=draws, generator=np.random.default_rng(2))
    picked = np.random.default_rng(2).integers(7, size=(draws, 7))
    slow = [
        [pool(Counts(*map(int, system[note])) for note in row).f1 for system in counts]
        for row in picked
    ]
    np.testing.assert_allclose(ours.drawn, slow)
    left_out = [
        [
            pool(Counts(*map(int, row)) for n, row in enumerate(system) if n != out).f1
            for system in counts
        ]
        for out in range(7)
    ]
    np.testing.assert_allclose(ours.without, left_out)


def test_notes_of_a_patient_are_drawn_together():
    counts = drawn_counts(7, notes=8)
    groups = ["a", "b", "a", "c", "c", "b", "d", "a"]
    merged = np.stack(
        [counts[:, [n for n, g in enumerate(groups) if g == group]].sum(1) for group in "abcd"],
        axis=1,
    )
    together = bootstrap(counts, groups, 50, generator=np.random.default_rng(3))
    by_hand = bootstrap(merged, draws=50, generator=np.random.default_rng(3))
    np.testing.assert_array_equal(together.drawn, by_hand.drawn)
    assert together.num_groups == 4


def test_duplicated_notes_do_not_narrow_intervals():
    counts = drawn_counts(8, systems=1, notes=50)
    twice = np.repeat(counts, 2, axis=1)
    patients = np.repeat(np.arange(50), 2).tolist()
    once, grouped, alone = (
        ends(bootstrap(c, g, 4000, generator=np.random.default_rng(4)).interval([1]))
        for c, g in ((counts, None), (twice, patients), (twice, None))
    )
    assert grouped == pytest.approx(once)
    assert alone[1] - alone[0] < 0.8 * (once[1] - once[0])


def test_two_systems_that_find_the_same_differ_by_nothing_and_nothing_is_claimed():
    counts = np.repeat(drawn_counts(9, systems=1), 2, axis=0)
    drawn = bootstrap(counts, draws=200, generator=np.random.default_rng(5))
    assert drawn.variance([1, -1]) == 0
    assert drawn.interval([1, -1]) == Interval(None, None)
    nothing = bootstrap(np.zeros((1, 5, 3)), draws=50, generator=np.random.default_rng(5))
    assert nothing.f1[0] == 0 and nothing.interval([1]) == Interval(None, None)


def test_one_note_one_group_or_counts_of_another_shape_are_refused():
    generator = np.random.default_rng(0)
    with pytest.raises(TooFewError, match="2 are needed"):
        bootstrap(np.ones((1, 1, 3)), generator=generator)
    with pytest.raises(TooFewError):
        bootstrap(np.ones((1, 3, 3)), ["a"] * 3, generator=generator)
    with pytest.raises(TooFewError, match="0 group"):
        bootstrap(np.ones((1, 0, 3)), [], generator=generator)
    with pytest.raises(ValueError, match="systems, notes, 3"):
        bootstrap(np.ones((3, 3)), generator=generator)
    with pytest.raises(ValueError, match="3 notes have 2 groups"):
        bootstrap(np.ones((1, 3, 3)), ["a", "b"], generator=generator)


# --- the best of many -----------------------------------------------------------------------------


def test_leaving_a_fold_out_by_hand():
    scored = np.array([[0.9, 0.1, 0.5], [0.5, 0.5, 0.4]])
    found = leave_fold_out(scored, scored)
    # The first wins on all folds and without the second or the third, the other one without the first.
    assert (found.chosen, found.scored) == (0, pytest.approx(0.5))
    # Ahead of the mean of both: the first by 0.2, -0.2 and 0.05, the other one by as much less.
    luck = [((0.2 - 0.05) / 2 + 0.2), ((0.2 + 0.05) / 2 + 0.2), ((0.2 - 0.2) / 2 - 0.05)]
    assert found.optimism == pytest.approx(math.sqrt(2 / 3) * np.mean(luck))
    assert found.optimism == pytest.approx(found.scored - found.corrected)


def test_a_choice_by_validation_is_reported_by_its_score():
    choosing, scored = [[0.9, 0.8], [0.1, 0.2]], [[0.3, 0.4], [0.7, 0.9]]
    found = leave_fold_out(choosing, scored)
    # The first each time: behind the mean of both by 0.2 and 0.25.
    assert (found.chosen, found.scored) == (0, 0.35) and found.optimism == pytest.approx(0)
    # On notes that the second fold does not score, the other one is ahead in the first fold's fold-run.
    elsewhere = np.array([[[0.9, 0.1], [0.8, 0.8]], [[0.1, 0.2], [0.2, 0.2]]])
    found = leave_fold_out(choosing, scored, elsewhere)
    assert (found.chosen, found.scored) == (0, 0.35)
    assert found.optimism == pytest.approx(((-0.25 + 0.2) + (0.2 - 0.25)) / 2)
    with pytest.raises(TooFewError):
        leave_fold_out([[0.1], [0.2]], [[0.1], [0.2]])
    with pytest.raises(ValueError, match="choosing and scored"):
        leave_fold_out([[0.1, 0.2]], [[0.1, 0.2], [0.3, 0.4]])


def test_the_best_of_equals_is_too_good_and_leaving_a_fold_out_takes_that_off():
    generator = np.random.default_rng(6)
    found = [
        leave_fold_out(scored, scored)
        for scored in 0.7 + 0.02 * generator.standard_normal((3000, 20, 5))
    ]
    # 20 equals of 0.9 points: the best is 1.7 points too good; three standard errors are 0.06.
    assert 100 * np.mean([choice.scored for choice in found]) > 71.5
    assert 100 * np.mean([choice.corrected for choice in found]) == pytest.approx(70, abs=0.06)


def test_the_best_fold_bias_by_hand():
    found = best_fold_bias([[0.9, 0.1], [0.2, 0.4]])
    assert (found.chosen, found.optimism) == (0, pytest.approx((0 + 0.3) / 2))


def test_bootstrap_bias_correction_reports_notes_that_did_not_choose():
    generator = np.random.default_rng(7)
    reported, scored = [], []
    for _ in range(150):
        counts = generator.poisson((6, 2, 2), size=(20, 40, 3))
        found, interval = bootstrap_best(counts, draws=100, generator=generator)
        reported.append(found.corrected)
        scored.append(found.scored)
        assert found.corrected in interval
    # All are of F1 0.75; three standard errors of 150 are 0.004.
    assert np.mean(reported) == pytest.approx(0.75, abs=0.004)
    assert np.mean(scored) > 0.77


# --- size and price -------------------------------------------------------------------------------

SIZES = [22e6, 110e6, 345e6, 1.3e9, 3.9e9, 8.9e9]


def test_the_line_is_statsmodels_and_scipy_s():
    y = [0.07, 0.05, 0.045, 0.03, 0.012, 0.009]
    fit = fit_sizes(SIZES, y)
    line = stats.linregress(np.log10(SIZES), y)
    assert (fit.slope, fit.intercept) == pytest.approx((line.slope, line.intercept), abs=SAME)
    assert math.sqrt(fit.slope_variance) == pytest.approx(line.stderr, abs=SAME)
    assert math.sqrt(fit.intercept_variance) == pytest.approx(line.intercept_stderr, abs=SAME)
    sm = pytest.importorskip("statsmodels.api", reason="statsmodels is not there to be agreed with")
    model = sm.OLS(y, sm.add_constant(np.log10(SIZES))).fit()
    assert ends(fit.slope_interval()) == pytest.approx(model.conf_int()[1], abs=SAME)
    theirs = model.get_prediction([[1, 9.0]]).conf_int()[0]
    assert ends(fit.at(1e9)[1]) == pytest.approx(theirs, abs=SAME)


@pytest.mark.parametrize("sizes", [[], [1e8], [1e8, 1e9, 1e10], [1e8, 1e9, 1e10, 1e10]])
def test_too_few_sizes_are_refused(sizes):
    with pytest.raises(TooFewError, match="too few for a line; 4 are needed"):
        fit_sizes(sizes, [0.1] * len(sizes))


def test_invalid_sizes_and_missing_values_are_refused():
    with pytest.raises(ValueError, match="not a number"):
        fit_sizes([0, 1e8, 1e9, 1e10], [0.1] * 4)
    with pytest.raises(ValueError, match="4 sizes have 3 values"):
        fit_sizes([1e7, 1e8, 1e9, 1e10], [0.1] * 3)


def test_the_parity_interval_is_where_the_line_s_interval_contains_the_margin():
    noise = 0.003 * np.random.default_rng(8).standard_normal(6)
    fit = fit_sizes(SIZES, 0.06 - 0.025 * np.log10(np.array(SIZES) / 22e6) + noise)
    found = parity_size(fit, 0.01)
    assert fit.at(found.parameters)[0] == pytest.approx(0.01)
    low, high = ends(found.interval)
    assert low < found.parameters < high
    assert fit.at(low)[1].low == pytest.approx(0.01)
    assert fit.at(high)[1].high == pytest.approx(0.01)
    assert not found.is_extrapolated
    assert parity_size(fit, -0.02).is_extrapolated


def test_parity_has_no_interval_where_the_gap_may_not_fall():
    rising = parity_size(fit_sizes(SIZES, [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]), 0.01)
    assert rising.parameters is None and rising.interval == Interval(None, None)
    unsure = parity_size(fit_sizes(SIZES, [0.05, 0.01, 0.06, 0.02, 0.05, 0.01]), 0.01)
    assert unsure.parameters is not None and unsure.interval == Interval(None, None)
    level = parity_size(fit_sizes(SIZES, [0.05] * 6), 0.01)
    assert level.parameters is None


def test_the_price_of_a_point_is_unbounded_where_there_may_be_no_lead():
    sure = cost_per_point(6.0, Interval(0.01, 0.03), 0.02)
    assert (sure.value, ends(sure.interval)) == (pytest.approx(3), pytest.approx((2, 6)))
    unsure = cost_per_point(6.0, Interval(-0.01, 0.03), 0.01)
    assert (unsure.value, unsure.interval.low, unsure.interval.high) == (6.0, 2.0, None)
    assert cost_per_point(6.0, Interval(-0.03, -0.01), -0.02).value is None
    with pytest.raises(ValueError, match="buys nothing"):
        cost_per_point(0.0, Interval(0.01, 0.03), 0.02)


FIGURES = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=8)


@given(FIGURES)
def test_the_frontier_holds_the_unbeaten(figures):
    def beats(first, second):
        as_good = first[0] >= second[0] and first[1] <= second[1] and first[2] <= second[2]
        return as_good and first != second

    slow = [
        place
        for place, figure in enumerate(figures)
        if not any(beats(other, figure) for other in figures)
    ]
    found = pareto([figure[0] for figure in figures], [figure[1:] for figure in figures])
    assert list(found) == slow and slow


def test_a_missing_number_is_refused():
    with pytest.raises(ValueError, match="not a number"):
        pareto([0.1, math.nan], [[1], [2]])
    pairs = itertools.product([0.5, 0.6], [1.0, 2.0])
    f1, cost = zip(*pairs, strict=True)
    assert pareto(f1, cost) == (2,)
