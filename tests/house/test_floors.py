"""Promise: imports go downwards only, Ray stays in `sweep` and MLflow in `tracking`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.paths import ROOT


def test_no_room_imports_a_room_above_it():
    lint_imports = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run([lint_imports], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
