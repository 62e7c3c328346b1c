"""Promise: the winner is chosen on validation notes among finished configurations, and every figure
is that of the records it is drawn from.

It would break without anyone noticing: choosing by scored folds makes every F1 a little better.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import replace

import pytest

from raymrc.analysis.findings import summaries_json
from raymrc.analysis.gaps import frozen_gaps
from raymrc.analysis.sentences import unreachable_in_folds
from raymrc.analysis.summary import count_failing, differing, settings_text, summarise
from raymrc.configuration import Cell
from raymrc.ledger.record import BOTH_FOUND, Epoch, NoteCounts, Record
from raymrc.scoring.counts import Counts
from tests.study.making import cell, record

GOOD, FAIR = {"Drug": Counts(9, 1, 1)}, {"Drug": Counts(5, 5, 5)}


def test_the_winner_is_chosen_on_validation_notes_and_not_by_its_score():
    records = [
        *(record(f, learning_rate=1e-4, validation_f1=0.7, counts=FAIR) for f in (0, 1)),
        *(record(f, learning_rate=2e-4, validation_f1=0.6, counts=GOOD) for f in (0, 1)),
    ]
    (summary,) = summarise(records, 2)
    assert summary.winner.configuration.learning_rate == 1e-4
    assert summary.winner.strict.mean == 0.5
    assert [c.strict.mean for c in summary.configurations] == pytest.approx([0.5, 0.9])


def test_a_configuration_with_a_fold_missing_cannot_win():
    records = [
        record(0, learning_rate=1e-4, validation_f1=0.9),
        record(1, learning_rate=1e-4, status="failed"),
        *(record(f, learning_rate=2e-4, validation_f1=0.1) for f in (0, 1)),
    ]
    (summary,) = summarise(records, 2)
    assert summary.winner.configuration.learning_rate == 2e-4
    assert summary.num_failed == 1
    assert summary.configurations[1].failures == ((1, "the loss is not a number"),)


def test_while_none_is_finished_there_is_a_leader_and_no_winner():
    records = [
        record(0, learning_rate=1e-4, validation_f1=0.9),
        *(record(f, learning_rate=2e-4, validation_f1=0.2) for f in (0, 1)),
    ]
    (summary,) = summarise(records, 3)
    assert summary.winner is None
    assert summary.leader.configuration.learning_rate == 2e-4


@pytest.mark.parametrize("order", [1, -1])
def test_ties_between_configurations_are_broken_deterministically(order):
    records = [record(0, learning_rate=rate, validation_f1=0.5) for rate in (1e-4, 2e-4, 3e-4)]
    small = record(0, learning_rate=4e-4, validation_f1=0.5, trained_parameters=5)
    (summary,) = summarise([*records, small][::order], 1)
    assert summary.winner.configuration.learning_rate == 4e-4
    ids = [c.configuration.id for c in summary.configurations[1:]]
    assert ids == sorted(ids)


def test_mean_spread_and_pooled_counts_are_those_of_the_folds():
    folds = [Counts(8, 2, 2), Counts(1, 1, 3), Counts(0, 0, 4)]
    records = [record(f, counts={"Drug": c, "ADE": Counts(0, 1, 0)}) for f, c in enumerate(folds)]
    best = summarise(records, 3)[0].winner
    f1 = [16 / 21, 2 / 7, 0.0]
    assert best.fold_f1 == pytest.approx(f1)
    assert best.strict.mean == pytest.approx(statistics.fmean(f1))
    assert best.strict.sd == pytest.approx(statistics.stdev(f1))
    assert best.pooled_strict == Counts(9, 6, 9)
    assert best.labels_strict == {"ADE": Counts(0, 3, 0), "Drug": Counts(9, 3, 9)}


def test_one_fold_has_no_spread():
    best = summarise([record()], 1)[0].winner
    assert best.strict.sd is None


def test_cost_of_a_cell_is_that_of_its_whole_search():
    records = [record(0, learning_rate=rate, device_seconds=30) for rate in (1e-4, 2e-4)]
    (summary,) = summarise(records, 1)
    assert summary.device_seconds == 60
    assert summary.cost_usd == pytest.approx(0.02)
    assert summary.winner.device_seconds == 30


def test_results_on_other_notes_are_not_mixed_in():
    old = [record(f, corpus="old", validation_f1=0.9, started_at="2026-01-01") for f in (0, 1)]
    new = [record(0, corpus="new", validation_f1=0.1, started_at="2026-02-01")]
    (latest,) = summarise([*old, *new], 2)
    assert latest.num_done == 1
    (asked,) = summarise([*old, *new], 2, same=[old[0].fold_run])
    assert asked.num_done == 2
    (neither,) = summarise(old, 2, [cell()], same=[new[0].fold_run])
    assert neither.configurations == ()


def test_cells_come_in_the_plan_s_order_empty_ones_too():
    order = [cell("soft_prompt"), cell("fine_tune")]
    summaries = summarise([record()], 1, order)
    assert [s.cell for s in summaries] == order
    assert summaries[0].leader is None
    assert summarise([], 5) == ()


def four_strategies(backbone="minilm", size=90, frozen_counts=FAIR):
    scores = {
        "fine_tune": (0.5, FAIR),
        "soft_prompt": (0.9, GOOD),
        "frozen_soft_prompt": (0.4, frozen_counts),
    }
    for strategy, (validation_f1, counts) in scores.items():
        frozen = strategy.startswith("frozen")
        for fold in (0, 1):
            made = record(
                fold,
                cell=cell(strategy, backbone),
                validation_f1=validation_f1,
                counts=counts,
                device_seconds=10 if frozen else 100,
                adapter_bytes=4 if frozen else 400,
            )
            yield replace(made, total_parameters=size + made.trained_parameters)


def test_the_gap_is_between_the_frozen_winner_and_the_best_trained_one():
    (gap,) = frozen_gaps(summarise(four_strategies(), 2))
    assert (gap.unfrozen, gap.frozen) == ("soft_prompt", "frozen_soft_prompt")
    assert gap.gap == pytest.approx(0.4)
    assert (gap.device_share, gap.adapter_share) == pytest.approx((0.1, 0.01))


def test_gaps_are_ordered_by_backbone_size():
    records = [*four_strategies("large", 350_000_000, GOOD), *four_strategies("small", 22_600_000)]
    order = [
        cell(strategy, backbone)
        for backbone in ("large", "small")
        for strategy in ("soft_prompt", "frozen_soft_prompt")
    ]
    gaps = frozen_gaps(summarise(records, 2, order))
    assert [(g.backbone, g.backbone_parameters) for g in gaps] == [
        ("small", 22_600_000),
        ("large", 350_000_000),
    ]
    assert [g.gap for g in gaps] == pytest.approx([0.4, 0.0])


def test_the_gap_s_spread_is_that_of_the_differences_on_each_fold():
    uneven = [Counts(9, 1, 1), Counts(5, 5, 5)]
    records = [
        record(fold, cell=cell(strategy), validation_f1=0.5, counts={"Drug": counts})
        for strategy, moved in (("soft_prompt", 0), ("frozen_soft_prompt", 1))
        for fold, counts in enumerate([*uneven[moved:], *uneven[:moved]])
    ]
    (gap,) = frozen_gaps(summarise(records, 2))
    assert gap.gap == pytest.approx(0.0)
    assert gap.gap_sd == pytest.approx(statistics.stdev([0.4, -0.4]))


def test_there_is_no_gap_without_both_sides():
    only_trained = [
        r for r in four_strategies() if "frozen" not in r.fold_run.configuration.cell.strategy
    ]
    assert frozen_gaps(summarise(only_trained, 2)) == ()
    assert frozen_gaps(summarise(four_strategies(), 3)) == ()


def test_the_report_is_plain_json():
    values = json.loads(json.dumps(summaries_json(summarise(four_strategies(), 2))))
    assert (values["done"], values["failed"]) == (6, 0)
    first = values["cells"][0]
    assert first["winner"] == first["configurations"][0]["id"]
    assert first["configurations"][0]["pooled_strict"]["tp"] == 10
    assert "cell" not in first["configurations"][0]["settings"]
    assert values["frozen_gaps"][0]["gap"] == pytest.approx(0.4)


def test_a_configuration_is_described_by_the_settings_that_differ():
    (summary,) = summarise([record(learning_rate=rate) for rate in (1e-4, 2e-4)], 1)
    chosen = summary.configurations[0].configuration
    assert differing(summary.configurations) == ["learning_rate"]
    assert differing(summary.configurations[:1]) == []
    for names in ([], ["learning_rate"]):
        assert settings_text(chosen, names) == f"learning_rate {chosen.learning_rate:g}"


def test_reasons_for_failures_are_counted():
    records = [record(f, status="failed") for f in (0, 1)]
    (summary,) = summarise(records, 2)
    assert summary.reasons == (("the loss is not a number", 2),)


def test_a_stopped_configuration_cannot_win_but_its_cost_and_reason_are_kept():
    done = [record(fold, validation_f1=0.5) for fold in (0, 1)]
    epochs = tuple(Epoch(e, 1.0, 0.9, 1.0) for e in (1, 2))
    beaten = record(0, learning_rate=0.1, validation_f1=0.9, device_seconds=7.0, cost_usd=0.5)
    beaten = replace(beaten, status="stopped", reason="too late", notes={}, epochs=epochs)
    waiting = replace(
        record(0, learning_rate=0.2), status="paused", notes={}, epochs=epochs[:1], cost_usd=0.25
    )
    (summary,) = summarise([*done, beaten, waiting], 2)
    assert summary.winner is not None and summary.winner.configuration.learning_rate == 1e-4
    assert summary.num_failed == 0 and summary.num_spared == 2
    assert summary.cost_usd == pytest.approx(0.02 + 0.75)
    by_rate = {c.configuration.learning_rate: c for c in summary.configurations}
    assert (by_rate[0.1].stopped, by_rate[0.1].fold_epochs) == ("too late", 2)
    assert not by_rate[0.2].stopped, "it may go on"
    found = {c["settings"]["learning_rate"]: c for c in summary.to_json()["configurations"]}
    assert (found[0.1]["stopped"], found[1e-4]["stopped"]) == ("too late", None)


def test_unreachable_gold_is_reported_with_reasons_that_account_for_all_of_it():
    records = [replace(record(f), unreachable=3) for f in (0, 1)]
    gold = sum(r.strict.tp + r.strict.fn for r in records)
    sentence = unreachable_in_folds(summarise(records, 2))
    assert f"counts as missed: fine_tune 6 of {gold} (" in sentence
    known = [
        replace(r, unreachable_reasons={"no_mention": 1 + f, "beyond_context": 2 - f})
        for f, r in enumerate(records)
    ]
    (summary,) = summarise(known, 2)
    assert unreachable_in_folds([summary]).endswith("%: beyond context 3, no mention 3)")
    found = summary.to_json()["configurations"][0]["unreachable_reasons"]
    assert found == {"no_mention": 3, "beyond_context": 3}
    assert Record.from_json(known[0].to_json()) == known[0]
    assert unreachable_in_folds(summarise([record()], 1)) == ""


def test_mentions_on_the_way_to_relations_are_pooled_over_folds():
    mentions = {"Drug": Counts(3, 1, 1), BOTH_FOUND: Counts(1, 0, 3)}
    runs = [replace(record(f), notes={"n": NoteCounts({}, {}, mentions=mentions)}) for f in (0, 1)]
    assert all(Record.from_json(run.to_json()) == run for run in runs)
    (summary,) = summarise(runs, 2)
    (found,) = (values["mentions"] for values in summary.to_json()["configurations"])
    assert (found["Drug"]["tp"], found[BOTH_FOUND]["fn"]) == (6, 6)


def test_event_f1_is_a_mean_over_folds_and_event_counts_are_pooled():
    events = {"Alcohol": Counts(3, 1, 1), "Alcohol.StatusTime": Counts(2, 2, 0)}
    runs = [replace(record(f), notes={"n": NoteCounts({}, {}, events)}) for f in (0, 1)]
    (summary,) = summarise(runs, 2)
    assert summary.winner is not None and summary.winner.events.mean == pytest.approx(10 / 14)
    assert summary.to_json()["configurations"][0]["events"]["Alcohol"]["tp"] == 6


def test_the_drop_at_another_site_counts_labels_that_both_sites_have():
    home = {"Drug": Counts(8, 2, 2), "Reason": Counts(0, 9, 9)}
    away = {"n": NoteCounts({"Drug": Counts(3, 2, 2)}, {"Drug": Counts(3, 2, 2)})}
    records = [replace(record(f, counts=home), transfer={"there": away}) for f in (0, 1)]
    (summary,) = summarise(records, 2)
    assert summary.winner is not None
    transfer = summary.winner.transfer["there"]
    assert transfer.home.mean == pytest.approx(0.8)
    assert transfer.away.mean == pytest.approx(0.6)
    assert transfer.drop.mean == pytest.approx(0.2) and transfer.drop.sd == pytest.approx(0)
    values = summaries_json((summary,))["cells"][0]["configurations"][0]["transfer"]
    assert values["there"]["drop"]["mean"] == pytest.approx(0.2)


def with_subsets(original, **subsets):
    notes = {name: replace(counts, subsets=subsets) for name, counts in original.notes.items()}
    return replace(original, notes=notes)


def test_subsets_of_spans_are_pooled_where_gold_spans_are_in_them():
    records = [
        with_subsets(record(fold), nested=Counts(3, 1, 1), overlapping=Counts(0, 2, 0))
        for fold in (0, 1)
    ]
    values = summaries_json(summarise(records, 2))["cells"][0]["configurations"][0]["subsets"]
    assert values.keys() == {"nested"}, "no gold span overlaps"
    assert (values["nested"]["tp"], values["nested"]["f1"]) == (6, pytest.approx(0.75))


def test_one_wording_counts_per_configuration_that_starts_from_words():
    frozen = cell("frozen_soft_prompt")

    def started(fold: int, wording: str, at: str, f1: float) -> Record:
        plain = record(fold, cell=frozen, started_at=at, validation_f1=f1)
        configuration = replace(plain.fold_run.configuration, prompt_initialisation="question")
        run = replace(plain.fold_run, configuration=configuration, questions_fingerprint=wording)
        return replace(plain, key=run.key, fold_run=run)

    random = [record(fold, cell=frozen) for fold in (0, 1)]
    before = [started(fold, "before", "2026-01-02", 0.9) for fold in (0, 1)]
    now = [started(fold, "now", "2026-01-03", 0.6) for fold in (0, 1)]
    for planned in (None, [r.fold_run for r in (*random, *now)]):
        (summary,) = summarise([*random, *now, *before], 2, same=planned)
        assert summary.num_done == 4
        assert [c.validation.mean for c in summary.configurations] == [0.6, 0.5]
    (summary,) = summarise([*random, *now, *before], 2, same=[r.fold_run for r in before])
    assert [c.validation.mean for c in summary.configurations] == [0.9, 0.5]


def test_failing_configurations_are_counted_since_the_last_finished_fold_run():
    def failed(minute: int, rate: float, fold: int = 0, cell: Cell | None = None) -> Record:
        at = f"2026-01-01T00:{minute:02d}:00+00:00"
        return record(fold, cell=cell, learning_rate=rate, status="failed", started_at=at)

    ill = [failed(2, 0.1), failed(3, 0.1, fold=1), failed(4, 0.2), failed(9, 0.3)]
    assert count_failing(ill) == {cell(): 3}, "a configuration counts once"
    well = replace(record(learning_rate=0.4), wall_seconds=200.0)  # from 00:00 to 00:03:20
    assert count_failing([*ill, well]) == {cell(): 2}, "0.1 failed before that one ended"
    other = cell("soft_prompt")
    assert count_failing([*ill, failed(1, 0.1, cell=other)]) == {cell(): 3, other: 1}


def test_the_cost_of_failed_tries_is_summed_separately():
    mended = replace(record(0), failed_device_seconds=7.0)
    failed = replace(record(1, status="failed"), device_seconds=5.0, failed_device_seconds=4.0)
    ((summary,),) = [s.configurations for s in summarise([mended, failed], 2)]
    assert (summary.device_seconds, summary.failed_device_seconds) == (60.0, 16.0)
    assert summary.to_json()["failed_device_seconds"] == 16.0
