"""Promise: a plan warns of cells that will learn little, with a change to the study that removes the warning.

A failure would go unnoticed: the sweep runs, and a strategy without a chance loses.
"""

from __future__ import annotations

import re

import pytest

from raymrc.costs.learning import MIN_STEPS, learning_warnings
from raymrc.planning import defaults
from raymrc.planning.defaults import default_rates
from tests.costs.test_forecast import Cost
from tests.study.making import STUDY

WITHOUT_RATES = re.sub(r"learning_rate: (\[.*?\]|[0-9.e-]+)(, )?", "", STUDY)


def warnings(folder, *overrides: str, text: str = STUDY) -> list[str]:
    cost = Cost(folder, overrides, text)
    return list(learning_warnings(cost.plan, cost.workload))


def test_too_few_steps_are_named_with_settings_that_help(tmp_path):
    found = warnings(tmp_path, "training.epochs=2", "training.batch_size=16", text=WITHOUT_RATES)
    tagged, asked = [sentence for sentence in found if "steps in a fold-run" in sentence]
    assert "fine_tune" in tagged and f"a tagger needs {MIN_STEPS['tags']} or more" in tagged
    assert "frozen_soft_prompt" in asked and f"prompts need {MIN_STEPS['spans']} or more" in asked
    for sentence, strategy in ((tagged, "fine_tune"), (asked, "frozen_soft_prompt")):
        (epochs,) = re.findall(r"epochs (\d+)", sentence)
        again = warnings(
            tmp_path, f"strategies.{strategy}.epochs={epochs}", "training.epochs=2",
            "training.batch_size=16", text=WITHOUT_RATES,
        )  # fmt: skip
        assert not [s for s in again if "steps in a" in s and f"/{strategy}:" in s]


def test_a_duration_in_steps_is_compared_as_it_is(tmp_path):
    few, many = ("training.duration=50 steps",), ("training.duration=300 steps",)
    assert len(warnings(tmp_path, *few, text=WITHOUT_RATES)) == 2
    assert "set duration 300 steps" in warnings(tmp_path, *few, text=WITHOUT_RATES)[1]
    assert warnings(tmp_path, *many, text=WITHOUT_RATES) == []


def test_a_study_without_epochs_and_duration_gets_enough_steps(tmp_path):
    assert "epochs" not in WITHOUT_RATES
    plan = Cost(tmp_path, text=WITHOUT_RATES).plan
    durations = {c.duration for cell in plan.cells for c in cell.configurations}
    assert durations == {defaults.DURATION}
    assert warnings(tmp_path, text=WITHOUT_RATES) == []
    one_way = Cost(tmp_path, ["training.epochs=3"]).plan.cells[0].configurations[0]
    assert (one_way.epochs, one_way.duration) == (3, None)


def test_only_a_cell_without_any_usable_rate_is_warned_of(tmp_path):
    long = "training.duration=300 steps"
    (found,) = warnings(tmp_path, long, "strategies.fine_tune.learning_rate=[1.0e-5, 3.0e-5]")
    assert "no learning_rate is near 0.0004" in found and "3e-05 is far below it" in found
    assert warnings(tmp_path, long, "strategies.fine_tune.learning_rate=[1.0e-5, 3.0e-4]") == []


def test_rates_fall_with_the_size_of_a_trained_backbone_and_are_used_where_none_is_given(tmp_path):
    rates = [
        default_rates("fine_tune", hidden)["learning_rate"] for hidden in (384, 768, 1024, 2560)
    ]
    assert rates == pytest.approx([4e-4, 1e-4, 6e-5, 9e-6])
    tuned, frozen = Cost(tmp_path, text=WITHOUT_RATES).plan.cells
    assert [c.learning_rate for c in tuned.configurations] == [4e-4]
    wanted = default_rates("frozen_soft_prompt", 384)
    for configuration in frozen.configurations:
        assert {name: getattr(configuration, name) for name in wanted} == wanted
    given = Cost(tmp_path).plan.cells[1].configurations[0]
    assert (given.learning_rate, given.head_learning_rate) == (2e-2, None)
