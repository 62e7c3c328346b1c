"""Promise: no duration and no decision hangs on a clock that can be set.

A machine whose clock is put right in the middle of a fold-run would report an hour too much, or
less than nothing, and give up on hosts that are well. When a fold-run began is said by the
calendar, for people to read and as a hint of what came first.
"""

from __future__ import annotations

import ast

from tests.paths import ROOT

SET_BY_OTHERS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today",
                 "date.today", "time.localtime", "time.gmtime", "time.strftime", "time.ctime"}  # fmt: skip

FOR_PEOPLE = {
    ("training/lane.py", "datetime.now"): "started_at",
    ("sweep/failures.py", "datetime.now"): "started_at",
}
"""Where the calendar is asked, and what for."""


def asked_of_the_calendar() -> dict[tuple[str, str], str]:
    """(file, call) -> the name or argument that gets the answer."""
    found: dict[tuple[str, str], str] = {}
    for path in sorted((ROOT / "raymrc").rglob("*.py")):
        tree = ast.parse(path.read_text())
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            named = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if ".".join(named.split(".")[-2:]) in SET_BY_OTHERS:
                above = node
                while not isinstance(above, ast.keyword | ast.Assign):
                    above = parents[above]
                name = (
                    above.arg if isinstance(above, ast.keyword) else ast.unparse(above.targets[0])
                )
                found[path.relative_to(ROOT / "raymrc").as_posix(), named] = str(name).split(".")[
                    -1
                ]
            # `from time import time` would pass unseen.
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                assert {a.name for a in node.names} <= {"monotonic", "perf_counter", "process_time"}
    return found


def test_the_calendar_is_asked_for_nothing_but_when_a_fold_run_began():
    assert asked_of_the_calendar() == FOR_PEOPLE
