"""Warnings that tests ignore while Ray runs in their process."""

from __future__ import annotations

import pytest

# Ray leaves sockets and processes to the garbage collector, and uses deprecated features of other packages.
RAY_WARNINGS = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]
