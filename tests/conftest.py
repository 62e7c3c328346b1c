"""What every test runs under: nothing of the machine's own state, and no model hub."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator

import hypothesis
import pytest

from tests.s3_server import ACCESS, HAS_MOTO, S3Server, s3_server

# Read by Ray, transformers and tokenizers when they are first imported: set before any test is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Ray keeps a token in HOME that changes what the next cluster asks for: a home of the tests' own.
os.environ["HOME"] = tempfile.mkdtemp(prefix="raymrc-home-")
import raymrc.sweep  # noqa: F401  # sets Ray's switches, some of which are read when a test first imports ray

# How long an example takes says what else the machine is at.
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")

atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """An S3-compatible server on this machine, for as long as tests ask for it."""
    if not HAS_MOTO:
        pytest.skip("moto, which serves S3 on this machine, is not installed")
    with pytest.MonkeyPatch.context() as patch, s3_server() as server:
        for name, value in ACCESS.items():
            patch.setenv(name, value)
        yield server
