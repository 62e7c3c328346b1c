"""Promise: the benchmarks of memory and of billion-parameter models report what they measured.

Nobody would notice a failure, because they run on machines that we seldom have.
"""

from __future__ import annotations

import pytest

from benchmarks import billions, placement

torch = pytest.importorskip("torch")


def test_a_sampler_sees_memory_that_malloc_has_allocated():
    before = placement.Sampler().read()
    held = torch.ones(30_000_000)
    during = placement.Sampler().read()
    assert during["allocated"] - before["allocated"] == pytest.approx(held.nbytes, rel=0.01)
    del held
    assert placement.Sampler().read()["allocated"] - before["allocated"] < 10_000_000


@pytest.mark.parametrize(
    "points", [placement.POINTS + placement.HELD_OUT, placement.QUICK, placement.ON_A_GPU]
)
def test_every_point_has_a_prediction_and_a_unique_name(points):
    assert len({point.case for point in points}) == len(points)
    for point in points:
        assert point.predicted("cpu") > 4 * point.shape.num_parameters / point.devices
        assert point.predicted("cuda") > 0


@pytest.mark.parametrize(
    "strategy", ["fine_tune", "hard_prompt", "soft_prompt", "frozen_soft_prompt"]
)
def test_rows_have_the_predicted_length(strategy):
    point = placement.Point("minilm", strategy, 20, 4, layers=1, match_width=8)
    data = placement.make_data(point)
    rows = data.rows(placement.PlainTokenizer(), point.shape, point.configuration())
    lengths = {row.length for of_note in rows.values() for row in of_note}
    assert lengths == {placement.row_pieces(point.configuration(), point.shape)}
    split = data.folds.split(0)
    assert sum(len(rows[note]) for note in split.train) >= point.batch_size
    assert len(split.validation) == len(split.scored) == 1


@pytest.mark.parametrize("case", [billions.CASES[0], billions.CASES[3]])
def test_the_benchmark_of_billions_runs_a_tiny_backbone_on_a_cpu(case):
    found = billions.run(case, case.at(is_quick=True), "cpu")
    point = case.at(is_quick=True)
    assert found["tokens"] == point.lanes * point.batch_size * (point.window + 2)
    assert found["seconds"] > 0 and found["operations"] > 0 and found["matrix_rate"] > 0


def test_without_a_gpu_the_benchmark_of_billions_prints_its_predictions(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["billions"])
    assert billions.main() == 0
    shown = capsys.readouterr()
    assert not shown.out
    assert len(shown.err.splitlines()) == 1 + len(billions.CASES)
    assert "gatortron-3.9b" in shown.err and "fits H100 80 GB" in shown.err
