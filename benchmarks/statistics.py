"""Are the error rates of a verdict's statistics as low as stated? Simulations with a known truth.

    python -m benchmarks.statistics [--quick]

20,000 synthetic studies per case, through the functions that verdicts use (`raymrc.analysis.statistics`).

    false wins, coverage
        Gaussian differences over folds with a given correlation. `ours` is what verdicts assume; peers are
        Nadeau and Bengio's published 1/k and the plain paired t-test.
    learners
        Two real learners (nearest centroid, ridge) on drawn items; the folds' correlation comes from shared
        training items and is measured.
    false parity, shared notes, family
        Claims of equivalence when the gap equals the margin; other sites; any false claim about eight gaps.
    bootstrap
        Micro F1 over notes, two per patient, and its difference between two systems.
    best of 20
        The winner's F1 minus its true value, in points, with one fold left out of the choice; peers are the
        uncorrected F1 and two published corrections. Chosen by score, and, as raymrc does, by validation
        notes.
    sizes
        Intervals of a slope and of the size at which parity is reached.
    agreement
        The largest difference from scipy, statsmodels and baycomp where they compute the same.

Goals: at most 6 % false claims at a nominal 5 %; 95 % intervals contain the truth in 93 to 97 %; at most 0.1
points of optimism left; agreement to 1e-8.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Options, json_line, read_options, start, time_in_turn
from benchmarks.selection_peers import best_fold_bias, bootstrap_best
from raymrc.analysis.statistics import (
    bootstrap,
    compare_folds,
    compare_on_shared_notes,
    guarded_correlation,
    holm,
    leave_fold_out,
    micro_f1,
    published_correlation,
)
from raymrc.analysis.tradeoffs import fit_sizes, parity_size

STUDIES, QUICK_STUDIES = 20_000, 10
SEED = 20261125
CORRELATIONS = (0.0, 0.1, 0.2, 0.3)
FOLDS = (5, 10)
MOST_FALSE = 6.0
COVERAGE = (93.0, 97.0)
MOST_OPTIMISM = 0.1
AGREEMENT = 1e-8
POINT = 0.01

Array = NDArray[np.float64]


def at_most(options: Options, case: str, ours: float, goal: float, unit: str, **more: Any) -> None:
    json_line(options, case, ours, None, unit, goal / max(abs(ours), 1e-16), goal, **more)


def covers(options: Options, case: str, ours: float, **more: Any) -> None:
    low, high = COVERAGE
    ratio = min(ours / low, high / max(ours, 1e-9))
    json_line(options, case, ours, None, "% of 95 % intervals hold the truth", ratio, low, **more)


def percent(hits: Any) -> float:
    return float(f"{100 * np.mean(hits):.4g}")


def gaussian_folds(
    studies: int, folds: int, correlation: float, generator: np.random.Generator
) -> Array:
    """Differences around 0 with a standard deviation of one point, (studies, folds)."""
    common = generator.standard_normal((studies, 1))
    noise = generator.standard_normal((studies, folds))
    return POINT * (math.sqrt(correlation) * common + math.sqrt(1 - correlation) * noise)


def assumed(folds: int) -> dict[str, float]:
    return {
        "ours": guarded_correlation(folds),
        "published": published_correlation(folds),
        "plain": 0.0,
    }


def error_rates(differences: Array, folds: int) -> tuple[dict[str, float], dict[str, float]]:
    """False wins and coverage in percent, by assumed correlation; the truth is 0, or 2 points."""
    wins, held = {}, {}
    for name, correlation in assumed(folds).items():
        found = [compare_folds(row, correlation) for row in differences]
        wins[name] = percent([test.p_difference <= 0.05 for test in found])
        moved = (compare_folds(row + 2 * POINT, correlation) for row in differences)
        held[name] = percent([2 * POINT in test.interval() for test in moved])
    return wins, held


def tell_rates(
    options: Options, case: str, wins: dict[str, float], held: dict[str, float], **more: Any
) -> None:
    at_most(
        options, f"false wins: {case}", wins["ours"], MOST_FALSE, "% of studies without a difference",
        published=wins["published"], plain=wins["plain"], **more,
    )  # fmt: skip
    covers(
        options, f"coverage: {case}", held["ours"],
        published=held["published"], plain=held["plain"], **more,
    )  # fmt: skip


def folds_of_gaussians(options: Options, studies: int) -> None:
    for folds in FOLDS:
        for correlation in CORRELATIONS:
            generator = np.random.default_rng([SEED, folds, int(100 * correlation)])
            differences = gaussian_folds(studies, folds, correlation, generator)
            wins, held = error_rates(differences, folds)
            case = f"{folds} folds, correlation {correlation:g}"
            tell_rates(options, case, wins, held, studies=studies)


def folds_of_learners(options: Options, studies: int) -> None:
    """F1 of one of two classes; the true value is the mean over all studies."""
    for folds in FOLDS:
        for items in (100, 400):
            generator = np.random.default_rng([SEED, folds, items])
            parts = []
            for first in range(0, studies, 100):
                size = min(100, studies - first)
                parts.append(learner_differences(size, items, folds, generator))
            found = np.concatenate(parts)
            found -= found.mean()
            covariance = np.cov(found.T)
            off = (covariance.sum() - np.trace(covariance)) / (folds * (folds - 1))
            measured = float(off / (np.trace(covariance) / folds))
            wins, held = error_rates(found, folds)
            case = f"{folds} folds, learners on {items} items"
            tell_rates(
                options, case, wins, held, correlation=float(f"{measured:.3g}"), studies=studies
            )


def learner_differences(
    studies: int, items: int, folds: int, generator: np.random.Generator, width: int = 20
) -> Array:
    """F1 of nearest centroid minus F1 of ridge on each fold, (studies, folds)."""
    y = generator.choice([-1.0, 1.0], size=(studies, items))
    x = generator.standard_normal((studies, items, width))
    x[..., :5] += 0.35 * y[..., None]
    fold = np.arange(items) % folds
    found = []
    for scored in range(folds):
        train, held = fold != scored, fold == scored
        moment = np.einsum("sni,sn->si", x[:, train], y[:, train])
        square = np.einsum("sni,snj->sij", x[:, train], x[:, train]) + np.eye(width)
        f1 = []
        for weights in (moment, np.linalg.solve(square, moment[..., None])[..., 0]):
            guess = np.einsum("sni,si->sn", x[:, held], weights) > 0
            gold = y[:, held] > 0
            counts = [(guess & gold).sum(1), (guess & ~gold).sum(1), (~guess & gold).sum(1)]
            f1.append(micro_f1(np.stack(counts, axis=-1)))
        found.append(f1[0] - f1[1])
    return np.stack(found, axis=1)


def parity(options: Options, studies: int) -> None:
    """The gap equals the margin of one point, so any claim that it is smaller is false."""
    for folds in FOLDS:
        for correlation in CORRELATIONS:
            generator = np.random.default_rng([SEED, 1, folds, int(100 * correlation)])
            differences = gaussian_folds(studies, folds, correlation, generator)
            rates = {
                name: percent(
                    [
                        compare_folds(0.3 * row + POINT, r).p_equivalence(POINT) <= 0.05
                        for row in differences
                    ]
                )
                for name, r in assumed(folds).items()
            }
            at_most(
                options, f"false parity: {folds} folds, correlation {correlation:g}", rates["ours"],
                MOST_FALSE, "% of studies with a gap of the margin",
                published=rates["published"], plain=rates["plain"], studies=studies,
            )  # fmt: skip


def shared_notes(options: Options, studies: int) -> None:
    """Models of all folds on the same 60 notes of another site, which cause half of the variance."""
    folds, notes = 5, 60
    for correlation in CORRELATIONS:
        generator = np.random.default_rng([SEED, 2, int(100 * correlation)])
        models = gaussian_folds(studies, folds, correlation, generator)
        wins, without = [], []
        for row in models:
            of_notes = 0.05 * generator.standard_normal(notes)
            each = row[:, None] + of_notes + 0.02 * generator.standard_normal((folds, notes))
            means = each.mean(1)
            variance = float(each.mean(0).var(ddof=1) / notes)
            wins.append(compare_on_shared_notes(means, variance, notes).p_difference <= 0.05)
            without.append(compare_folds(means).p_difference <= 0.05)
        at_most(
            options, f"false wins: another site's notes, correlation {correlation:g}", percent(wins),
            MOST_FALSE, "% of studies without a difference",
            without_the_notes=percent(without), studies=studies,
        )  # fmt: skip


def family(options: Options, studies: int) -> None:
    """Eight gaps on the same folds, four of 0 and four equal to the margin; any false claim counts."""
    folds, correlation = 5, 0.3
    truths = np.repeat([0.0, POINT], 4)
    generator = np.random.default_rng([SEED, 3])
    adjusted, plain = [], []
    for _ in range(studies):
        common = gaussian_folds(1, folds, correlation, generator)
        noise = gaussian_folds(len(truths), folds, correlation, generator)
        rows = 0.3 * (math.sqrt(0.5) * common + math.sqrt(0.5) * noise) + truths[:, None]
        found = [compare_folds(row) for row in rows]
        p = [test.p_difference for test in found] + [test.p_equivalence(POINT) for test in found]
        false = np.concatenate([truths == 0, truths == POINT])
        adjusted.append(bool((np.array(holm(p, len(truths)))[false] <= 0.05).any()))
        plain.append(bool((np.array(p)[false] <= 0.05).any()))
    at_most(
        options, "family: any false claim of eight gaps", percent(adjusted), MOST_FALSE,
        "% of studies", unadjusted=percent(plain), studies=studies,
    )  # fmt: skip


GOLD, SPURIOUS = 6.0, 1.5


def draw_counts(chance: Array, gold: NDArray[np.int64], generator: np.random.Generator) -> Array:
    """Matched, spurious and missed spans per note, if a gold span is found with this probability."""
    matched = generator.binomial(np.broadcast_to(gold, chance.shape), chance)
    spurious = generator.poisson(SPURIOUS, chance.shape)
    return np.stack([matched, spurious, gold - matched], axis=-1).astype(np.float64)


def sigmoid(value: Array) -> Array:
    return 1 / (1 + np.exp(-value))


def expected_f1(logit: Array, sd: float) -> Array:
    """F1 over infinitely many notes, whose logits have a standard deviation of `sd`."""
    points, weights = np.polynomial.hermite_e.hermegauss(41)
    chance = sigmoid(np.asarray(logit)[..., None] + sd * points) @ (weights / weights.sum())
    matched = (GOLD + 1) * chance
    return 2 * matched / (matched + SPURIOUS + GOLD + 1)


def note_bootstrap(options: Options, studies: int) -> None:
    """Hundreds of studies share resamples, as systems do in a verdict."""
    batch, draws = min(100, studies), 1000
    for patients in (25, 50, 200):
        generator = np.random.default_rng([SEED, 4, patients])
        held: dict[str, list[bool]] = {}
        groups = np.repeat(np.arange(patients), 2).tolist()
        logits = np.array([1.2, 0.9])
        sd = math.sqrt(0.6**2 + 0.5**2 + 0.4**2)
        truth = expected_f1(logits, sd)
        for _ in range(max(1, studies // batch)):
            shape = (batch, 1, patients, 1)
            of_patient = 0.6 * generator.standard_normal(shape)
            of_note = 0.5 * generator.standard_normal((batch, 1, patients, 2))
            noise = 0.4 * generator.standard_normal((batch, 2, patients, 2))
            chance = sigmoid(logits[:, None, None] + of_patient + of_note + noise)
            chance = chance.reshape(batch, 2, -1)
            gold = 1 + generator.poisson(GOLD, (batch, 1, 2 * patients))
            counts = draw_counts(chance, gold, generator).reshape(2 * batch, -1, 3)
            drawn = bootstrap(counts, groups, draws, generator=generator)
            ungrouped = bootstrap(counts, None, draws, generator=generator)
            for study in range(batch):
                first, second = np.zeros((2, 2 * batch))
                first[2 * study] = second[2 * study] = 1
                second[2 * study + 1] = -1
                for what, weights, true in (
                    ("F1", first, truth[0]),
                    ("difference", second, truth[0] - truth[1]),
                ):
                    for name, interval in (
                        ("ours", drawn.interval(weights)),
                        ("bca", drawn.bca_interval(weights)),
                        ("ungrouped", ungrouped.interval(weights)),
                    ):
                        held.setdefault(f"{what} {name}", []).append(true in interval)
        for what in ("F1", "difference"):
            covers(
                options, f"bootstrap: {what}, {patients} patients with two notes",
                percent(held[f"{what} ours"]), bca=percent(held[f"{what} bca"]),
                notes_by_themselves=percent(held[f"{what} ungrouped"]),
                studies=len(held["F1 ours"]), draws=draws,
            )  # fmt: skip


WORLDS = {
    "all alike": (0.0, 0.3, 0.15),
    "near ties": (0.05, 0.3, 0.15),
    "spread": (0.25, 0.3, 0.15),
    "notes differ for each": (0.05, 0.8, 0.0),
    "fold-runs are lucky": (0.05, 0.0, 0.3),
}
"""Standard deviations of logits: of configurations; of a configuration on a note, in all its models; of a
fold-run on all notes. 0.1 is about 1.5 points of F1."""


def best_of(options: Options, studies: int) -> None:
    """20 configurations, five folds of 20 notes; a fold-run validates on 12 notes that others score."""
    configurations, folds, notes, validation = 20, 5, 100, 12
    fold = np.arange(notes) % folds
    for place, (world, (effect_sd, note_sd, luck_sd)) in enumerate(WORLDS.items()):
        generator = np.random.default_rng([SEED, 5, place])
        base, common_sd = 1.2, 0.5
        scatter = math.sqrt(common_sd**2 + note_sd**2 + luck_sd**2)
        left: dict[str, list[float]] = {}
        lost: list[float] = []
        for _ in range(studies):
            effects = effect_sd * generator.standard_normal(configurations)
            truth = expected_f1(base + effects, scatter)
            luck = luck_sd * generator.standard_normal((configurations, folds))
            of_notes = (
                base
                + effects[:, None]
                + common_sd * generator.standard_normal(notes)
                + note_sd * generator.standard_normal((configurations, notes))
            )
            gold = 1 + generator.poisson(GOLD, notes)
            counts = draw_counts(sigmoid(of_notes + luck[:, fold]), gold, generator)
            scored = np.stack([micro_f1(counts[:, fold == f].sum(1)) for f in range(folds)], axis=1)
            choosing = np.empty_like(scored)
            elsewhere = np.empty((configurations, folds, folds))
            for f in range(folds):
                picked = generator.choice(np.flatnonzero(fold != f), validation, replace=False)
                chance = sigmoid(of_notes[:, picked] + luck[:, f : f + 1])
                validated = draw_counts(chance, gold[picked], generator)
                choosing[:, f] = micro_f1(validated.sum(1))
                for left_out in range(folds):
                    kept = validated[:, fold[picked] != left_out]
                    elsewhere[:, f, left_out] = micro_f1(kept.sum(1))
            by_score, by_validation = (
                leave_fold_out(scored, scored),
                leave_fold_out(choosing, scored, elsewhere),
            )
            shared = leave_fold_out(choosing, scored)
            by_pool, _ = bootstrap_best(counts, draws=50, generator=generator)
            of_folds = best_fold_bias(scored)
            # The notes' difficulty and the bias of F1 on few notes are not optimism. Both show in the
            # mean of all configurations, which involves no choice.
            easy = float(scored.mean() - truth.mean())
            easy_pooled = float(micro_f1(counts.sum(1)).mean() - truth.mean())
            for name, value, true in (
                ("score: as it stands", by_score.scored, truth[by_score.chosen]),
                ("score: leave a fold out", by_score.corrected, truth[by_score.chosen]),
                ("score: best-fold bias", of_folds.corrected, truth[of_folds.chosen]),
                ("score: BBC-CV", by_pool.corrected, truth[by_pool.chosen]),
                ("validation: as it stands", by_validation.scored, truth[by_validation.chosen]),
                ("validation: leave a fold out", by_validation.corrected, truth[by_validation.chosen]),
                ("validation: its notes choose too", shared.corrected, truth[shared.chosen]),
            ):  # fmt: skip
                off = easy_pooled if name.endswith("BBC-CV") else easy
                left.setdefault(name, []).append(100 * (value - float(true) - off))
            lost.append(100 * float(truth.max() - truth[by_validation.chosen]))
        for by, ours in (
            ("score", "score: leave a fold out"),
            ("validation", "validation: leave a fold out"),
        ):
            others = {
                name.partition(": ")[2].replace(" ", "_"): float(f"{np.mean(values):.3g}")
                for name, values in left.items()
                if name.startswith(by) and name != ours
            }
            error = float(f"{np.std(left[ours]) / math.sqrt(studies):.2g}")
            at_most(
                options, f"best of 20 by {by}: {world}", float(np.mean(left[ours])), MOST_OPTIMISM,
                "points above the truth", standard_error=error, **others,
                regret_by_validation=float(f"{np.mean(lost):.3g}"), studies=studies,
            )  # fmt: skip


def sizes(options: Options, studies: int) -> None:
    """Gaps of 6 points that fall by 2.5 per factor of ten, with a noise of half a point: parity at 2.2B."""
    parameters = np.array([22e6, 110e6, 345e6, 1.3e9, 3.9e9, 8.9e9])
    slope, margin = -0.025, 0.01
    line = 0.06 + slope * np.log10(parameters / 22e6)
    true = 22e6 * 10 ** ((0.06 - margin) / -slope)
    generator = np.random.default_rng([SEED, 6])
    fits = [
        fit_sizes(parameters, line + 0.005 * generator.standard_normal(len(parameters)))
        for _ in range(studies)
    ]
    slopes = percent([slope in fit.slope_interval() for fit in fits])
    covers(options, "sizes: slope over six", slopes, studies=studies)
    found = [parity_size(fit, margin) for fit in fits]
    covers(
        options, "sizes: where parity is reached", percent([true in parity.interval for parity in found]),
        bounded=percent([parity.interval.low is not None for parity in found]), studies=studies,
    )  # fmt: skip


def agreement(options: Options) -> None:
    try:
        import baycomp
        import statsmodels.api as sm
        from scipy import stats
        from statsmodels.stats.multitest import multipletests
        from statsmodels.stats.weightstats import DescrStatsW
    except ImportError as error:
        print(f"no {error.name}: skipping agreement", file=sys.stderr)
        return
    generator = np.random.default_rng([SEED, 7])
    worst: dict[str, float] = {}

    def compare(peer: str, *pairs: tuple[float, float]) -> None:
        worst[peer] = max(worst.get(peer, 0.0), *(abs(float(a) - float(b)) for a, b in pairs))

    for _ in range(5 if options.quick else 200):
        folds = int(generator.integers(2, 12))
        a, b = generator.uniform(0.6, 0.9, (2, folds))
        plain = compare_folds(a - b, 0.0)
        interval, peer = plain.interval(), stats.ttest_rel(a, b).confidence_interval()
        compare(
            "scipy ttest_rel",
            (plain.p_difference, stats.ttest_rel(a, b).pvalue),
            (interval.low or 0.0, peer.low),
            (interval.high or 0.0, peer.high),
        )
        compare(
            "statsmodels ttost_mean",
            (plain.p_equivalence(0.02), DescrStatsW(a - b).ttost_mean(-0.02, 0.02)[0]),
        )
        theirs = baycomp.CorrelatedTTest.probs(b, a, rope=0.02)
        ours = compare_folds(a - b, published_correlation(folds)).probabilities(0.02)
        assert ours is not None
        compare(
            "baycomp CorrelatedTTest",
            *zip((ours.below, ours.within, ours.above), theirs, strict=True),
        )
        p = generator.uniform(0, 0.2, 8)
        compare(
            "statsmodels multipletests holm",
            *zip(holm(p.tolist()), multipletests(p, method="holm")[1], strict=True),
        )
        parameters = 10 ** generator.uniform(7, 10, 6)
        y = generator.uniform(0, 0.1, 6)
        fit = fit_sizes(parameters, y)
        model = sm.OLS(y, sm.add_constant(np.log10(parameters))).fit()
        ends = fit.slope_interval()
        compare(
            "statsmodels OLS",
            (fit.intercept, model.params[0]),
            (fit.slope, model.params[1]),
            (ends.low or 0.0, model.conf_int()[1][0]),
            (ends.high or 0.0, model.conf_int()[1][1]),
        )
    counts = generator.poisson((5, 2, 2), size=(2, 300, 3))
    ours_drawn = bootstrap(counts, draws=2000, generator=np.random.default_rng(1))
    for weights in ([1, 0], [1, -1]):
        low_high = ours_drawn.bca_interval(weights)
        peers = peer_bootstrap(counts, weights, 2000)
        compare(
            "scipy bootstrap BCa",
            (low_high.low or 0.0, peers.low),
            (low_high.high or 0.0, peers.high),
        )
    for peer_name, difference in worst.items():
        at_most(options, f"agreement: {peer_name}", difference, AGREEMENT, "largest difference")


def peer_bootstrap(counts: Any, weights: Any, draws: int) -> Any:
    """scipy's BCa interval of a weighted sum of systems' F1, from the same resamples as ours."""
    from scipy import stats

    def value(*columns: Array, axis: int = -1) -> Array:
        sums = np.stack([column.sum(axis) for column in columns], axis=-1)
        shaped = sums.reshape(*sums.shape[:-1], len(counts), 3)
        return micro_f1(shaped) @ np.asarray(weights, dtype=np.float64)

    columns = tuple(system[:, kind] for system in counts for kind in range(3))
    return stats.bootstrap(
        columns, value, paired=True, vectorized=True, n_resamples=draws, batch=500,
        method="BCa", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip


def speed(options: Options) -> None:
    counts = np.random.default_rng(SEED).poisson((5, 2, 2), size=(2, 1000, 3))
    ours, peer, ratio = time_in_turn(
        lambda: bootstrap(counts, generator=np.random.default_rng(1)).interval([1, -1]),
        lambda: peer_bootstrap(counts, [1, -1], 10_000),
        pairs=1 if options.quick else 5,
    )
    json_line(
        options, "bootstrap: 10,000 draws of 1,000 notes, a difference, beside scipy's BCa",
        ours, peer, "s", ratio, 1.0,
    )  # fmt: skip


def main() -> None:
    options = read_options("statistics", __doc__, devices=("cpu",))
    start(options)
    studies = QUICK_STUDIES if options.quick else STUDIES
    cases: tuple[Callable[[Options, int], None], ...] = (
        folds_of_gaussians, folds_of_learners, parity, shared_notes, family, note_bootstrap, best_of,
        sizes,
    )  # fmt: skip
    for case in cases:
        case(options, studies)
    agreement(options)
    speed(options)


if __name__ == "__main__":
    main()
