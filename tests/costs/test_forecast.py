"""Promise: the cost of a plan is the sum over its cells, counted from its notes and corrected by its ledger.

It would break without anyone noticing: nobody adds up a study's bill by hand.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from raymrc.costs.budget import Budget, Spent
from raymrc.costs.cell_forecast import FIGURES
from raymrc.costs.forecast import Forecast, build_workload, forecast
from raymrc.costs.history import FoldRunProgress, read_history, read_progress
from raymrc.costs.plan_json import plan_json
from raymrc.costs.prices import read_cluster, read_prices
from raymrc.costs.probe import PROBE_FILE, choose_probed, read_probe, write_probe
from raymrc.costs.rates import Measured
from raymrc.costs.status import over_budget_remark
from raymrc.errors import LedgerError, SpecError
from raymrc.ledger.ledger import Ledger
from raymrc.ledger.record import Epoch, Record
from raymrc.planning.fold_runs import fold_run
from raymrc.planning.loaded import LoadedStudy
from raymrc.quantities import Estimate, format_estimate, in_time
from raymrc.racing.racing import Racing
from raymrc.racing.simulate import expected_share
from raymrc.reading.light_tokenizers import RoughTokenizer
from raymrc.report.plans import plan_table
from raymrc.report.terminal import render
from raymrc.study.load import load_spec
from raymrc.study.notes import read_study_corpus
from tests.paths import ROOT
from tests.study.making import STUDY, plan_of, spec_of

WEIGHTS = {"minilm": "w"}
MACHINE = "EPYC, 2 cores, 1 threads"


class Cost:
    """This class holds the tiny study with its plan and its workload."""

    def __init__(self, folder, overrides=(), text=STUDY, ledger=None):
        self.spec = spec_of(folder, text, overrides)
        self.corpus = read_study_corpus(self.spec)
        self.plan = plan_of(self.spec, self.corpus, WEIGHTS, ledger)
        tokenizers = {e.backbone.source: RoughTokenizer() for e in self.spec.backbones}
        self.workload = build_workload(LoadedStudy(self.spec, self.corpus), self.plan, tokenizers)

    def forecast(self, *measured, **fields) -> Forecast:
        fields.setdefault("table", read_prices())
        return forecast(self.spec, self.plan, self.workload, measured, **fields)

    def records(self, seconds: float = 40.0, folds=(0, 1)) -> list[Record]:
        """Return one record per configuration and fold."""
        return [
            Record(run.key, run, device_seconds=seconds, hardware=MACHINE, peak_bytes=3 * 2**30)
            for cell in self.plan.cells
            for configuration in cell.configurations
            for fold in folds
            for run in [fold_run(configuration, fold, self.plan.fingerprints)]
        ]


def test_totals_are_sums_over_cells_and_peak_memory_is_the_maximum(tmp_path):
    found = Cost(tmp_path).forecast()
    for name in FIGURES:
        values = [getattr(cell, name).value for cell in found.cells]
        wanted = max(values) if name == "peak_memory_bytes" else sum(values)
        assert found.total(name).value == pytest.approx(wanted)
        assert all(
            getattr(c, name).low <= getattr(c, name).value <= getattr(c, name).high
            for c in found.cells
        )
    assert all(value > 0 for value in values)


def test_doubling_epochs_or_configurations_about_doubles_the_cost(tmp_path):
    once = Cost(tmp_path, ["training.epochs=20"]).forecast().total("device_seconds").value
    epochs = Cost(tmp_path, ["training.epochs=40"]).forecast().total("device_seconds").value
    assert epochs == pytest.approx(2 * once, rel=0.1)
    both = ["strategies.fine_tune.learning_rate=[1.0e-5, 2.0e-5, 3.0e-5, 4.0e-5]"]
    cells = Cost(tmp_path, both).forecast().cells
    assert cells[0].device_seconds.value == pytest.approx(
        2 * Cost(tmp_path).forecast().cells[0].device_seconds.value
    )


def test_measured_fold_runs_in_the_ledger_replace_the_guess(tmp_path):
    cost = Cost(tmp_path)
    guessed = cost.forecast()
    history = read_history(cost.plan, cost.workload, cost.records())
    assert len(history) == 8
    found = cost.forecast(*history)
    # All records took equally long despite different work, so the fit meets them only roughly.
    assert found.total("device_seconds").value == pytest.approx(8 * 40, rel=0.1)
    for cell, before in zip(found.cells, guessed.cells, strict=True):
        wide, narrow = (c.device_seconds.high / c.device_seconds.low for c in (before, cell))
        assert narrow < wide
        assert cell.device_seconds.low <= 4 * 40 <= cell.device_seconds.high
        assert (cell.rates.source, cell.rates.measured) == ("ledger", 4)
        assert cell.peak_memory_bytes.value == 3 * 2**30
    assert found.hardware == MACHINE and f"times measured on {MACHINE}" in found.remarks


def test_history_excludes_other_notes_final_tests_and_failures(tmp_path):
    cost = Cost(tmp_path)
    records = cost.records()
    for changes in ({"corpus_fingerprint": "other"}, {"test_fingerprint": "t"}):
        others = [replace(r, fold_run=replace(r.fold_run, **changes)) for r in records]
        assert read_history(cost.plan, cost.workload, others) == []
    assert (
        read_history(cost.plan, cost.workload, [replace(r, status="failed") for r in records]) == []
    )


def test_finished_fold_runs_do_not_count_as_remaining_work(tmp_path):
    ledger = Ledger(str(tmp_path / "runs"))
    for record in Cost(tmp_path).records(folds=(0,)):
        ledger.record(record)
    cost = Cost(tmp_path, ledger=ledger)
    found = cost.forecast(progress=read_progress(cost.plan, ledger.records()))
    assert cost.plan.done == 4
    assert found.total("device_seconds_left").value == pytest.approx(
        found.total("device_seconds").value / 2, rel=0.2
    )
    for record in cost.records():
        ledger.record(record)
    nothing = cost.forecast(progress=read_progress(cost.plan, ledger.records()))
    assert nothing.total("device_seconds_left").value == nothing.wall_seconds.value == 0


def test_fold_runs_stopped_by_a_race_do_not_remain_while_racing_is_on(tmp_path):
    cost = Cost(tmp_path)
    first = cost.records(folds=(0,))[0]
    epochs = first.fold_run.configuration.epochs
    half = tuple(Epoch(e, 1.0, 0.1, 1.0) for e in range(1, epochs // 2 + 1))
    assert 0 < len(half) < epochs
    paused = replace(first, status="paused", epochs=half)
    key = first.key
    share = len(half) / epochs
    assert read_progress(cost.plan, [paused]) == {key: FoldRunProgress(share, 1 - share)}
    stopped = replace(paused, status="stopped", reason="2 points below")
    assert read_progress(cost.plan, [stopped]) == {}, "a full grid trains it, from its beginning"
    racing = replace(cost.plan, racing=Racing())
    both = {
        r.key for r in cost.records() if r.fold_run.configuration == first.fold_run.configuration
    }
    progress = read_progress(racing, [stopped])
    assert progress == {k: FoldRunProgress(share if k == key else 0.0, 0.0) for k in both}
    assert len(both) == 2
    assert read_progress(racing, [stopped, *others_of(cost, key)])[key] == FoldRunProgress(
        share, 0.0
    )
    whole = cost.forecast().cells[0]
    left = (
        cost.forecast(progress=read_progress(racing, [stopped])).cells[0].device_seconds_left.value
    )
    assert left == pytest.approx(
        whole.device_seconds_left.value
        - whole.device_seconds.value / len(cost.plan.cells[0].configurations),
        rel=0.2,
    )


def test_a_race_is_expected_to_train_less_than_the_full_grid(tmp_path):
    cost = Cost(tmp_path, ["strategies.fine_tune.learning_rate=1.0e-4", "prices.device_hour_usd=1"])
    cost_of_all = cost.forecast()
    assert "racing" not in " ".join(cost_of_all.notes)
    cost.plan = replace(cost.plan, racing=Racing())
    alone, pair = (found := cost.forecast()).cells
    assert alone.device_seconds_raced == alone.device_seconds, "a race needs two configurations"
    assert found.races and not cost_of_all.races
    share = expected_share(2, 2, 20, Racing())
    assert 0 < share.low < share.value < share.high <= 1
    assert pair.device_seconds_raced.value == pytest.approx(share.value * pair.device_seconds.value)
    assert (
        pair.device_seconds_raced.high / pair.device_seconds_raced.value
        > pair.device_seconds.high / pair.device_seconds.value
    )
    assert pair.usd_raced.value == pytest.approx(share.value * pair.usd.value)
    left = found.total("device_seconds_raced_left").value
    assert left == pytest.approx(
        alone.device_seconds_left.value + share.value * pair.device_seconds_left.value
    )
    assert found.wall_seconds.value < cost_of_all.wall_seconds.value
    budget = Budget(device_hours=(left + cost_of_all.total("device_seconds_left").value) / 2 / 3600)
    assert over_budget_remark(budget, Spent(), cost_of_all) and not over_budget_remark(
        budget, Spent(), found
    )
    notes = " ".join(found.notes)
    raced = format_estimate(found.total("device_seconds_raced"), in_time, " ")
    assert f"racing is expected to train {raced}" in notes
    assert found.to_json()["device_seconds_raced"] == found.total("device_seconds_raced").value


def test_the_remaining_work_of_a_race_is_its_expected_work_minus_its_trained_work(tmp_path):
    cost = Cost(tmp_path)
    cost.plan = replace(cost.plan, racing=Racing())
    whole = cost.forecast().cells[0]
    key, other = (r.key for r in cost.records() if r.fold_run.fold == 0 and of_first_cell(r))
    some = cost.forecast(progress={key: FoldRunProgress(0.1, 0.9)}).cells[0]
    trained = whole.device_seconds.value - some.device_seconds_left.value
    assert (
        trained == pytest.approx(whole.device_seconds_left.value - some.device_seconds_left.value)
        and trained > 0
    )
    assert some.device_seconds_raced_left.value == pytest.approx(
        whole.device_seconds_raced.value - trained
    )
    # A stopped configuration leaves no work, and a race never expects more work than remains.
    stopped = cost.forecast(progress={key: FoldRunProgress(0.1, 0.0)}).cells[0]
    assert stopped.device_seconds_left.value < some.device_seconds_left.value
    least = min(stopped.device_seconds_left.value, some.device_seconds_raced_left.value)
    assert stopped.device_seconds_raced_left.value == pytest.approx(least)
    # This race has already trained more than expected.
    late = cost.forecast(
        progress={key: FoldRunProgress(1.0, 0.0), other: FoldRunProgress(0.9, 0.1)}
    ).cells[0]
    assert 0 < late.device_seconds_raced_left.value < late.device_seconds_left.value
    assert (
        late.device_seconds_raced_left.low
        <= late.device_seconds_raced_left.value
        <= late.device_seconds_raced_left.high
    )


def of_first_cell(record: Record) -> bool:
    return record.fold_run.configuration.cell.strategy == "fine_tune"


def others_of(cost: Cost, key: str) -> list[Record]:
    """Return records of the same configuration that were stopped before they began."""
    mine = next(r.fold_run.configuration for r in cost.records() if r.key == key)
    return [
        replace(r, status="stopped", reason="2 points below")
        for r in cost.records()
        if r.fold_run.configuration == mine and r.key != key
    ]


def test_costs_include_tpe_proposals_before_they_are_drawn(tmp_path):
    search = ["search={algorithm: tpe, configurations: 4}",
              "strategies.fine_tune.learning_rate={log_uniform: [1.0e-5, 1.0e-3]}"]  # fmt: skip
    cost = Cost(tmp_path, search)
    assert cost.plan.cells[0].configurations is None
    grid_seconds = Cost(tmp_path).forecast().cells[0].device_seconds.value
    assert cost.forecast().cells[0].device_seconds.value == pytest.approx(2 * grid_seconds)


def test_dollars_use_the_price_in_the_study_or_else_the_table(tmp_path):
    given = Cost(tmp_path, ["prices.device_hour_usd=3.6"]).forecast()
    assert given.total("usd").value == pytest.approx(given.total("device_seconds").value / 1000)
    assert "the study's own" in given.prices
    table = read_prices()
    found = Cost(tmp_path).forecast()
    hour = table.instances["c7i.4xlarge"].on_demand / 8
    assert found.total("usd").value == pytest.approx(
        found.total("device_seconds").value * hour / 3600
    )
    assert table.date in found.prices and "c7i.4xlarge" in found.prices


def test_a_cluster_has_a_wall_time_and_two_prices(tmp_path):
    table = read_prices()
    small, large = (
        Cost(tmp_path).forecast(cluster=read_cluster([f"c7i.4xlarge={n}"], table)) for n in (1, 4)
    )
    assert (small.devices, large.devices) == (8, 32)
    assert large.wall_seconds.value <= small.wall_seconds.value
    on_demand, spot = small.cluster_usd
    hours = small.wall_seconds.value / 3600
    assert on_demand.value == pytest.approx(hours * 0.714) and spot.value < on_demand.value
    values = small.to_json()["on_cluster"]
    assert values["usd_on_demand"] == on_demand.value and values["cluster"] == "1 x c7i.4xlarge"


@pytest.mark.parametrize(("gpus", "machine"), [(0, "g5.xlarge"), (1, "c7i.4xlarge")])
def test_instances_without_the_required_kind_of_device_are_refused(tmp_path, gpus, machine):
    table = read_prices()
    cost = Cost(tmp_path, [f"resources.gpus_per_host={gpus}"])
    with pytest.raises(SpecError, match=r"resources\.gpus_per_host") as caught:
        cost.forecast(cluster=read_cluster([machine], table))
    assert "\n" not in str(caught.value)


def test_a_faster_gpu_takes_less_time(tmp_path):
    table = read_prices()
    cost = Cost(tmp_path, ["resources.gpus_per_host=1"])
    slow, fast = (
        cost.forecast(cluster=read_cluster([name], table)).total("device_seconds").value
        for name in ("g4dn.xlarge", "p5.48xlarge")
    )
    assert fast < slow


def test_json_gives_each_figure_with_its_interval_per_cell_and_in_total(tmp_path):
    cost = Cost(tmp_path)
    values = json.loads(json.dumps(plan_json(cost.plan, cost.forecast())))
    names = ("device_seconds", "usd", "peak_memory_bytes", "storage_bytes", "energy_kwh")
    for part in (values, *values["cells"]):
        assert {"configurations", "fold_runs", "fold_runs_done"} <= set(part)
        for name in names:
            low, high = part[f"{name}_interval"]
            assert low < part[name] < high
    assert values["fold_runs"] == 8 and values["wall_seconds"] > 0
    assert [cell["estimated_from"] for cell in values["cells"]] == ["guess", "guess"]


def test_json_without_a_forecast_has_null_costs(tmp_path):
    values = plan_json(plan_of(spec_of(tmp_path)))
    for part in (values, *values["cells"]):
        assert part["device_seconds"] is part["usd"] is part["peak_memory_bytes"] is None


@pytest.mark.parametrize("name", ["demo"])
def test_the_cost_table_fits_120_columns_without_wrapping_a_cell_name(name):
    from rich.console import Console

    spec = load_spec(ROOT / "studies" / f"{name}.yaml")
    corpus = read_study_corpus(spec)
    plan = plan_of(spec, corpus)
    workload = build_workload(LoadedStudy(spec, corpus), plan, {"minilm": RoughTokenizer()})
    costs = forecast(spec, plan, workload, table=read_prices())
    console = Console(width=119, record=True, file=io.StringIO())
    console.print(render([plan_table(plan, costs)]))
    lines = console.export_text()
    assert all(cell.cell.name in lines for cell in plan.cells)
    assert "USD" in lines
    assert "…" not in lines


def test_figures_are_shown_in_one_unit_with_two_digits():
    assert format_estimate(Estimate(6000, 3000, 20000), in_time) == "1.7 h\n(0.83-5.6)"
    assert format_estimate(Estimate(30, 20, 45), in_time, " ") == "30 s (20-45)"
    assert format_estimate(Estimate(), in_time) == "0 s"


# --- probes ---------------------------------------------------------------------------------------


def probed(cost: Cost, seconds: float, hardware: str = MACHINE) -> list[Measured]:
    history = read_history(cost.plan, cost.workload, cost.records())
    return [replace(m, source="probe", device_seconds=seconds, hardware=hardware) for m in history]


def test_probes_are_stored_per_hardware_and_a_later_probe_replaces_its_cells(tmp_path):
    cost, place = Cost(tmp_path), str(tmp_path / "kept")
    assert read_probe(place) == []
    first, second = probed(cost, 10.0), probed(cost, 30.0, "there")
    assert write_probe(place, first) == f"{place}/{PROBE_FILE}"
    write_probe(place, second)
    again = [m for m in probed(cost, 20.0) if m.like == ("minilm", "fine_tune")]
    write_probe(place, again)
    found = read_probe(place)
    assert {m.source for m in found} == {"probe"}
    assert sorted({(m.hardware, *m.like, m.device_seconds) for m in found}) == [
        (MACHINE, "minilm", "fine_tune", 20.0),
        (MACHINE, "minilm", "frozen_soft_prompt", 10.0),
        ("there", "minilm", "fine_tune", 30.0),
        ("there", "minilm", "frozen_soft_prompt", 30.0),
    ]
    assert cost.forecast(*found).cells[0].rates.source == "probe"


def test_a_broken_probe_file_is_reported_in_one_sentence(tmp_path):
    (tmp_path / PROBE_FILE).write_text('{"hardware": {"x": [{}]}}')
    with pytest.raises(LedgerError, match="remove it, and run --probe again"):
        read_probe(str(tmp_path))


def test_each_backbone_and_strategy_is_probed_once_on_all_notes(tmp_path):
    text = STUDY.replace("folds:", "few_shot: {notes: [1, 2], draws: 2}\nfolds:")
    cost = Cost(tmp_path, text=text)
    chosen, left_out = choose_probed(cost.plan)
    assert [planned.cell.strategy for planned in chosen] == ["fine_tune", "frozen_soft_prompt"]
    assert {planned.cell.shots for planned in chosen} == {None} and left_out == []
    first, last = chosen[1].configurations
    assert (first.prompt_length, last.prompt_length) == (8, 32)


def test_a_cell_that_needs_several_devices_is_not_probed(tmp_path):
    cost = Cost(tmp_path, ["backbones=[gatortron-8.9b]", "resources.gpus_per_host=1"])
    chosen, left_out = choose_probed(cost.plan)
    assert [planned.cell.strategy for planned in chosen] == ["frozen_soft_prompt"]
    assert left_out == [f"{cost.plan.cells[0].cell.name} needs several devices and is not probed"]
