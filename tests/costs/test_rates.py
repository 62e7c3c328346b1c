"""Promise: predictions follow the measurements and state how far they may be off.

It would break without anyone noticing: a plan would still print figures, but they would be wrong.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from raymrc.configuration import Configuration
from raymrc.costs.rates import (
    PARTS,
    SPREADS,
    Job,
    Measured,
    choose_hardware,
    fit_rates,
)
from raymrc.costs.workload import FoldRunWork, Passes
from raymrc.model.shapes import SHAPES
from raymrc.quantities import Estimate
from tests.study.making import cell

MINILM = SHAPES["minilm"]
MACHINE = "EPYC, 2 cores, 1 threads"


def job(strategy: str = "fine_tune", rows: int = 400, epochs: int = 3, **fields) -> Job:
    """Return a job with rows of 100 pieces; each epoch evaluates a third as many rows as it trains."""

    def passes(number: float, per_pass: int) -> Passes:
        return Passes(number / per_pass, number, 100 * number, 105 * number, number, 120)

    return Job(
        Configuration(cell(strategy), 1e-4, epochs=epochs, **fields),
        FoldRunWork(passes(rows * epochs, 16), passes(rows * epochs / 3, 10)),
        MINILM,
        num_labels=3,
    )


def measured(
    work: Job, speed: float = 1.0, source: str = "ledger", hardware: str = MACHINE
) -> Measured:
    seconds = float(work.parts("cpu").sum()) / speed
    return Measured(work, hardware, "cpu", seconds, 2**30, source)


FINE_TUNE = ("minilm", "fine_tune")


def seconds(work: Job, found: list[Measured], like=FINE_TUNE) -> float:
    return fit_rates(like, found, "cpu").seconds(work, "cpu")


def test_the_interval_of_an_estimate_covers_90_percent_of_outcomes():
    generator = random.Random(1)
    inside = 0
    for _ in range(2000):
        truth = generator.lognormvariate(0, 0.2)
        guess = Estimate.of(1.0, 0.2)
        inside += guess.low <= truth <= guess.high
    assert inside / 2000 == pytest.approx(0.9, abs=0.02)


def test_estimates_can_be_added_and_scaled():
    estimate = Estimate(2.0, 1.0, 3.0)
    assert estimate + estimate == estimate.times(2) == Estimate(4.0, 2.0, 6.0)


def test_without_measurements_the_guess_is_within_a_factor_of_four():
    rates = fit_rates(FINE_TUNE, [], "cpu")
    assert (rates.source, rates.measured) == ("guess", 0)
    found = Estimate.of(1.0, rates.spread)
    assert found.low == pytest.approx(0.25, rel=0.05) and found.high == pytest.approx(4, rel=0.05)
    assert rates.seconds(job(), "cpu") == pytest.approx(job().parts("cpu").sum())


def test_a_more_trusted_source_replaces_a_less_trusted_one():
    """The ledger outranks a probe, a probe outranks other cells, and other cells outrank the guess."""
    wanted = job(rows=900)
    truth = float(wanted.parts("cpu").sum())
    others = [measured(job("hard_prompt"), 4.0)]
    probe = [measured(job(rows=20), 2.0, "probe"), measured(job(rows=60), 2.0, "probe")]
    ledger = [measured(job(rows=n), 0.5) for n in (300, 400)]
    assert seconds(wanted, others) == pytest.approx(truth / 4, rel=0.01)
    assert seconds(wanted, others + probe) == pytest.approx(truth / 2, rel=0.01)
    assert seconds(wanted, others + probe + ledger) == pytest.approx(2 * truth, rel=0.01)
    sources = [fit_rates(FINE_TUNE, found, "cpu").source for found in (others, others + probe)]
    assert sources == ["others", "probe"]
    assert fit_rates(FINE_TUNE, others + probe + ledger, "cpu").source == "ledger"


def test_intervals_narrow_with_trust_and_with_agreement():
    spreads = []
    for source in ("guess", "others", "probe", "ledger"):
        found = {
            "guess": [],
            "others": [measured(job("hard_prompt"))],
            "probe": [measured(job(), source="probe")],
            "ledger": [measured(job())],
        }[source]
        spreads.append(fit_rates(FINE_TUNE, found, "cpu").spread)
    assert spreads == sorted(spreads, reverse=True)
    assert spreads == [SPREADS[s] for s in ("guess", "others", "probe", "ledger")]
    agree = [measured(job(rows=n)) for n in (100, 200, 300, 400)]
    differ = [measured(job(rows=n), s) for n, s in ((100, 1.0), (200, 1.5), (300, 0.7), (400, 1.0))]
    assert (
        fit_rates(FINE_TUNE, agree, "cpu").spread
        < SPREADS["ledger"]
        < fit_rates(FINE_TUNE, differ, "cpu").spread
    )


def test_intervals_from_a_synthetic_ledger_cover_most_of_the_next_fold_runs():
    """True rates differ from the guess and carry 5 % noise; at least 48 of 60 intervals hold the truth."""
    generator = np.random.default_rng(3)
    inside = 0
    for _ in range(60):
        truth = generator.uniform(0.4, 2.5, len(PARTS))
        jobs = [
            job(rows=int(n), epochs=int(e), batch_size=8)
            for n, e in zip(
                generator.integers(50, 800, 9), generator.integers(1, 12, 9), strict=True
            )
        ]
        took = [float(truth @ work.parts("cpu")) * generator.lognormal(0, 0.05) for work in jobs]
        found = [
            Measured(work, MACHINE, "cpu", s, 0)
            for work, s in zip(jobs[:-1], took[:-1], strict=True)
        ]
        rates = fit_rates(FINE_TUNE, found, "cpu")
        estimate = Estimate.of(rates.seconds(jobs[-1], "cpu"), rates.spread)
        inside += estimate.low <= took[-1] <= estimate.high
        assert estimate.value == pytest.approx(took[-1], rel=0.3)
    assert inside >= 48


def test_no_fitted_rate_is_negative():
    found = [measured(job(rows=n, epochs=e), s) for n, e, s in ((50, 9, 3.0), (800, 1, 0.3))]
    assert (fit_rates(FINE_TUNE, found, "cpu").multipliers >= 0).all()


def test_doubling_the_epochs_doubles_every_part_except_opening():
    short, long = (job(epochs=n).parts("cpu") for n in (4, 8))
    opening = PARTS.index("opening")
    assert np.delete(long, opening) == pytest.approx(2 * np.delete(short, opening))
    assert long[opening] == short[opening]


def test_lanes_share_the_steps_of_a_gpu_and_not_of_a_cpu():
    alone = job("frozen_soft_prompt", prompt_length=8)
    beside = replace(alone, lanes=8)
    steps = PARTS.index("steps")
    assert beside.parts("gpu")[steps] == pytest.approx(alone.parts("gpu")[steps] / 8)
    assert (beside.parts("cpu") == alone.parts("cpu")).all()
    assert alone.parts("gpu", peak_flops=1e15)[0] < alone.parts("gpu", peak_flops=1e14)[0]


def test_rates_come_from_one_hardware_and_prefer_that_of_the_ledger():
    other_machine = "other, 64 cores, 1 threads"
    found = [measured(job(), hardware=MACHINE)] * 2 + [measured(job(), hardware=other_machine)] * 3
    found += [measured(job(), source="probe", hardware="probed")] * 9
    assert {m.hardware for m in choose_hardware(found, "cpu")} == {other_machine}
    assert {m.hardware for m in choose_hardware(found, "cpu", "EPYC")} == {MACHINE}
    assert {m.hardware for m in choose_hardware(found[5:], "cpu")} == {"probed"}
    assert choose_hardware(found, "gpu") == []


def test_probe_measurements_round_trip_through_their_values():
    probe = measured(job("frozen_soft_prompt", prompt_length=8), source="probe")
    assert Measured.from_values(probe.to_values()) == probe
