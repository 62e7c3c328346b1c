"""Shared fixtures for the training tests: a tiny backbone and notes that a model can memorise."""

from __future__ import annotations

import pytest

from raymrc.model.loading import Loaded
from raymrc.training.batching import StudyData
from tests.model.tiny import tiny_loaded
from tests.training.test_lane import make_data, make_notes


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return tiny_loaded("bert", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data() -> StudyData:
    return make_data(make_notes())
