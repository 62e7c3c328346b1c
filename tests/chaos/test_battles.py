"""Promise: whatever faults hit a study, its ledger ends as if there had been none.

A fold-run that is lost, duplicated or trained differently after a kill would be one figure among many. Each
seed determines the faults of a small study: a lost trial, host, machine or driver, a second driver, a cap.
`python -m tests.chaos` runs as many seeds as there is time for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.battle import Battle, Draw, Ground

pytestmark = [
    pytest.mark.ray,
    pytest.mark.chaos,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

SEEDS = (5, 45)
"""The first seed loses three machines, on a separate disk where one can be mounted. The second runs a race to
its cap, continues with a larger one, and starts a second driver beside it."""


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    # The path of pytest's folder is too long for Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="rr-", dir="/tmp") as folder:
        made = Ground(Path(folder) / "ground")
        yield made
        made.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_study_under_faults_ends_like_an_undisturbed_one(seed, ground):
    with tempfile.TemporaryDirectory(prefix="rr-", dir="/tmp") as folder:
        outcome = Battle(ground, Draw.from_seed(seed, 1.0, ("folder",)), Path(folder) / "run").run()
    assert not outcome.wrong, (outcome.wrong, outcome.struck, outcome.codes)
    assert outcome.struck, "nothing was struck"
