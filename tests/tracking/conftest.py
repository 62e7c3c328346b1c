"""Stores for the tests of MLflow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raymrc.tracking import TrackingPlace
from raymrc.tracking.experiment import open_experiment


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to create a database, so tests start from a copy of one."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_experiment(TrackingPlace(f"sqlite:///{path}", "other"))
    return path


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path) -> str:
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture(autouse=True)
def no_folder_for_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MLflow's default folder for artifacts is in the current one."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "mlruns").exists()
