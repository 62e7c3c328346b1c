"""The environment of every test: it uses no state of this machine and no model hub."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator

import hypothesis
import pytest

from tests.s3_server import ACCESS, HAS_MOTO, S3Server, s3_server

# Ray, transformers and tokenizers read these at their first import, so they are set before any test.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Ray's workers give way to all other processes (niceness 15), so beside a steady load they would hardly run.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
# Ray keeps a token in HOME that decides how the next cluster authenticates: tests get their own home.
os.environ["HOME"] = tempfile.mkdtemp(prefix="raymrc-home-")
import raymrc.sweep  # noqa: F401  # sets Ray's switches, some of which are read when a test first imports ray

# The duration of an example depends on what else the machine does.
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")

atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files that start Ray first, then slow ones and those that train: a long file that comes last would
    keep one process busy while the others have nothing to do."""
    marked = {
        marker: {item.path for item in items if item.get_closest_marker(marker)}
        for marker in ("ray", "slow")
    }

    def order(item: pytest.Item) -> tuple[bool, bool]:
        is_long = item.path in marked["slow"] or item.path.parent.name == "training"
        return item.path not in marked["ray"], not is_long

    items.sort(key=order)


def pytest_collection_finish() -> None:
    """Exempts what importing all tests has made from garbage collection: a full collection took 0.6 s, and
    some libraries ask for one each time they are called."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """An S3-compatible server on this machine."""
    if not HAS_MOTO:
        pytest.skip("moto, which serves S3 on this machine, is not installed")
    with pytest.MonkeyPatch.context() as patch, s3_server() as server:
        for name, value in ACCESS.items():
            patch.setenv(name, value)
        yield server
