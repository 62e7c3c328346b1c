"""What the shared tasks' studies would cost, planned on made-up notes, since we do not hold theirs.

    python docs/expected.py

makes notes (`raymrc synthesize`), asks `raymrc plan --json` of every study in `studies/n2c2-*`, and writes
`docs/expected.json`, which `docs/build.py` puts into `docs/studies.md`. No accelerator is asked: these are
the plan's own guesses of a GPU, within four times either way. About four minutes on one core.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
STUDIES = DOCS.parent / "studies"
EXPECTED = DOCS / "expected.json"

MADE = (
    ("n2c2-2018", "n2c2-2018", 820, "a", 13),
    ("n2c2-2018", "n2c2-2018-test", 20, "a", 99),
    ("n2c2-2018", "ours", 100, "b", 7),
    ("n2c2-2022", "n2c2-2022/mimic", 1000, "a", 13),
    ("n2c2-2022", "n2c2-2022/uw", 400, "b", 5),
    ("n2c2-2022", "n2c2-2022-test", 20, "a", 99),
)
"""Scheme, folder in corpora/, notes, site, seed. The first have as many mentions as the shared task's 303
training notes."""


def main() -> None:
    expected: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for scheme, name, notes, site, seed in MADE:
            place = Path(folder) / "corpora" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            options = ["--notes", str(notes), "--site", site, "--seed", str(seed)]
            raymrc(folder, "synthesize", scheme, str(place), *options)
        for study in sorted(STUDIES.glob("n2c2-*/*.yaml")):
            plan = json.loads(raymrc(folder, "plan", str(study), "--json"))
            name = study.relative_to(STUDIES).as_posix()
            expected[name] = {
                key: plan[key]
                for amount in ("device_seconds", "usd")
                for key in (amount, f"{amount}_interval")
            }
            print(name, round(plan["usd"]), "USD", file=sys.stderr, flush=True)
    EXPECTED.write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


def raymrc(folder: str, *arguments: str) -> str:
    """Its answer, run in a folder; the package is this checkout's."""
    run = subprocess.run(
        [sys.executable, "-m", "raymrc", *arguments],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(DOCS.parent)},
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return run.stdout


if __name__ == "__main__":
    main()
