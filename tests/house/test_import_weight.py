"""Promise: the help and a plan import none of torch, Ray, MLflow and transformers.

Nobody would notice a failure: with one import in the wrong place everything still works, only slower.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.paths import ROOT

HEAVY = {"torch", "ray", "mlflow", "transformers", "optuna", "scipy", "pandas", "sklearn"}


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running `code`."""
    script = f"{code}\nimport sys\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return {name.partition(".")[0] for name in run.stderr.split()}


def test_help_loads_neither_training_nor_validation_packages():
    loaded = modules_after("from raymrc.cli import main\nassert main(['--help']) == 0")
    assert not loaded & (HEAVY | {"pydantic", "yaml", "numpy", "rich"})


@pytest.mark.parametrize(
    "room",
    [
        "cli",
        "study.load",
        "planning.plan",
        "ledger.ledger",
        "costs.budget",
        "costs.forecast",
        "costs.status",
        "racing.racing",
        "analysis.summary",
        "analysis.statistics",
        "analysis.judging",
    ],
)
def test_a_room_above_the_model_loads_nothing_heavy(room):
    assert not modules_after(f"import raymrc.{room}") & HEAVY


@pytest.mark.parametrize("room", ["corpora.formats", "reading.windows", "scoring.n2c2_2022"])
def test_a_room_below_the_model_loads_nothing_for_models_or_studies(room):
    assert not modules_after(f"import raymrc.{room}") & (HEAVY | {"pydantic", "typer"})


def test_scheduling_decides_without_ray():
    names = ("state", "search", "race", "spending", "checkpoints", "record_writer", "only_run")
    imports = "\n".join(f"import raymrc.scheduling.{name}" for name in (*names, "work_queue"))
    assert "ray" not in modules_after(imports)


@pytest.mark.parametrize("command", ["plan", "status"])
def test_a_plan_and_a_status_are_made_without_torch(command, tmp_path):
    """They run without a ledger, because scipy fits the measurements in a ledger."""
    given = [command, "studies/demo.yaml", "--json", "--set", f"storage={tmp_path / 'none'}"]
    loaded = modules_after(f"from raymrc.cli import main\nassert main({given}) == 0")
    assert not loaded & HEAVY
