"""Promise: an earlier study's learning rates let a race begin where good ones are, and cost nobody the win.

It would break without anyone noticing: a race that listens too much stops the winner and looks cheap.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from raymrc.corpora.note import Corpus, Note
from raymrc.ledger.record import Epoch, NoteCounts, Record
from raymrc.racing.prior import (
    MOST_BELIEVED,
    RatePrior,
    Standings,
    fit_prior,
    learn_rates,
    scored_earlier,
)
from raymrc.racing.racing import Contender, Racing, decide
from raymrc.racing.simulate import WORLDS, generate_related, replay, standings_of
from tests.racing.test_racing import halfway
from tests.study.making import cell, record

RACING = Racing()
WORLD = replace(WORLDS["ordinary"], configurations=(12, 20), epochs=(10, 10))
RATES = (1e-4, 1e-3, 1e-2, 1e-1)


def parabola(best: float, rates: tuple[float, ...] = RATES, weight: float = 1.0) -> Standings:
    """0.8 at the best rate, 0.1 less a decade from it, and the same at every rung."""
    worth = 0.8 - 0.1 * (np.log10(rates) - np.log10(best)) ** 2
    return Standings(np.array(rates), np.repeat(worth[:, None], 4, axis=1), weight)


def best_of(prior: RatePrior | None, rates: tuple[float, ...] = RATES) -> float:
    assert prior is not None
    return max(rates, key=lambda rate: prior.standings(rate)[-1])


def test_ledgers_that_scored_notes_which_may_not_choose_are_known_by_them():
    corpus = Corpus(tuple(Note(f"n{i}", f"words {i}") for i in range(4)), ("Drug",))
    first = replace(record(0), notes={"n0": NoteCounts({}, {}), "x": NoteCounts({}, {})})
    name = first.fold_run.configuration.cell.corpus
    assert scored_earlier([first], name, corpus) == ["n0"]
    # Another corpus numbers its notes alike, until it is most of them.
    assert scored_earlier([first], "elsewhere", corpus) == []
    most = replace(record(1), notes={f"n{i}": NoteCounts({}, {}) for i in (1, 2)})
    assert scored_earlier([first, most], "elsewhere", corpus) == ["n0", "n1", "n2"]
    assert scored_earlier([replace(record(0), notes={"x": NoteCounts({}, {})})], name, corpus) == []


def test_the_best_rate_of_an_earlier_study_is_expected_to_be_the_best():
    between = tuple(10.0**x for x in np.linspace(-4, -1, 31))
    assert best_of(fit_prior([parabola(1e-3)]), between) == pytest.approx(1e-3)
    assert best_of(fit_prior([parabola(1e-2)]), between) == pytest.approx(1e-2)


def test_levels_of_studies_are_not_mixed():
    higher = parabola(1e-3)
    higher = replace(higher, reached=higher.reached + 0.15, rates=np.array(RATES) * 1.0)
    only_ends = Standings(np.array([1e-4, 1e-3, 1e-1]), parabola(1e-3).reached[[0, 1, 3]])
    prior = fit_prior([higher, only_ends])
    assert best_of(prior) == 1e-3
    alone = fit_prior([only_ends])
    assert alone is not None and prior is not None
    half = [p.standings(1e-2)[0] - p.standings(1e-3)[0] for p in (alone, prior)]
    assert all(gap < 0 for gap in half)


def test_more_is_believed_of_more_and_never_all():
    gaps = []
    for count in (1, 3, 200):
        prior = fit_prior([parabola(1e-3)] * count)
        assert prior is not None
        gaps.append(prior.standings(1e-3)[-1] - prior.standings(1e-1)[-1])
    true = 0.1 * 4
    assert gaps == sorted(gaps)
    assert 0 < gaps[0] < gaps[-1] <= MOST_BELIEVED * true


def test_beyond_what_was_tried_the_nearest_counts_and_nothing_opens_upwards():
    prior = fit_prior([parabola(1e-3)])
    assert prior is not None
    assert prior.standings(1e-9) == prior.standings(1e-4)
    valley = parabola(1e-3)
    valley = replace(valley, reached=-valley.reached)
    prior = fit_prior([valley])
    assert prior is not None and not any(prior.bends)
    assert fit_prior([parabola(1e-3, RATES[:2])]) is None, "two rates say nothing"


def trained(fold: int, rate: float, best: float, of: str, size: int) -> Record:
    top = 0.8 - 0.1 * (np.log10(rate) - np.log10(best)) ** 2
    epochs = tuple(Epoch(e, 1.0, float(top * e / 10), 1.0) for e in range(1, 11))
    made = record(fold, of=cell("frozen_soft_prompt", of), learning_rate=rate)
    return replace(made, validation_f1=float(top), epochs=epochs, total_parameters=size)


def test_backbones_of_like_size_count_most_and_other_strategies_not_at_all():
    records = [
        trained(fold, rate, best, of, size)
        for of, size, best in (("small", 20_000_000, 1e-2), ("large", 4_000_000_000, 1e-3))
        for rate in RATES
        for fold in (0, 1)
    ]
    target = cell("frozen_soft_prompt", "new")
    assert best_of(learn_rates(records, target, 2e7, RACING)) == 1e-2
    assert best_of(learn_rates(records, target, 4e9, RACING)) == 1e-3
    assert learn_rates(records, cell("fine_tune", "new"), 2e7, RACING) is None
    unfinished = [replace(r, status="stopped") for r in records]
    assert learn_rates(unfinished, target, 2e7, RACING) is None


# --- in a race ------------------------------------------------------------------------------------


def test_who_is_expected_to_be_good_starts_first():
    contenders = [
        Contender(name, 10, ((), ()), expected=(worth,) * 4)
        for name, worth in (("a", 0.0), ("b", 0.1), ("c", 0.05))
    ]
    assert [run.configuration for run in decide(contenders, RACING, 2).run] == ["b", "c"]


def test_an_expectation_that_is_the_same_for_all_changes_no_decision():
    contenders = halfway(3)
    moved = [replace(c, expected=(0.1, 0.2, 0.0, 0.3)) for c in contenders]
    before, after = decide(contenders, RACING, 4), decide(moved, RACING, 4)
    assert before.run == after.run
    assert [s.configuration for s in before.stopped] == [s.configuration for s in after.stopped]


def test_what_an_earlier_study_knew_saves_fold_epochs():
    cold = warm = 0
    for earlier, now in generate_related(WORLD, 12, 3, 0.1):
        prior = fit_prior([standings_of(earlier, RACING)])
        cold += replay(now, RACING).fold_epochs
        warm += replay(now, RACING, rates=prior).fold_epochs
    assert warm < 0.97 * cold


def test_an_earlier_study_that_was_wrong_by_half_a_decade_does_not_break_the_error_rate():
    """24 studies at 10 %: 7 or more errors have a probability of 1 % if it holds; the seed is fixed."""
    racing, errors = Racing(error_rate=0.1), 0
    for earlier, now in generate_related(WORLD, 24, 7, 0.5):
        prior = fit_prior([standings_of(earlier, racing)])
        errors += not replay(now, racing, rates=prior).is_same
    assert errors <= 6
