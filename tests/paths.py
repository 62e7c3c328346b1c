"""The folders of the public corpora and scorer cases, if they exist."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

needs_shared = pytest.mark.skipif(
    not (SHARED / "corpora").is_dir(),
    reason="the public corpora and scorer cases are not beside the project",
)
