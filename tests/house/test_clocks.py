"""Promise: no duration and no decision depends on a clock that can be set.

A machine whose clock is corrected during a fold-run would report an hour too much or a negative duration,
and give up on healthy hosts. The start time of a fold-run comes from the calendar: people read it, and it
hints at the order of fold-runs.
"""

from __future__ import annotations

import ast

from tests.paths import ROOT

SET_BY_OTHERS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today",
                 "date.today", "time.localtime", "time.gmtime", "time.strftime", "time.ctime"}  # fmt: skip

FOR_PEOPLE = {
    ("training/lane.py", "datetime.now", "started_at"),
    ("scheduling/failures.py", "datetime.now", "started_at"),
}
OF_THE_JOURNAL = {
    ("cli/plan.py", "time.time", "spent_by"),
    ("cli/plan.py", "time.time", "read_status"),
    ("scheduling/spending.py", "time.time", "Account"),
    ("scheduling/spending.py", "time.time", "lease"),
    ("scheduling/spending.py", "time.time", "final_entry"),
    ("sweep/coordinator.py", "time.time", "Account"),
    ("sweep/coordinator.py", "time.time", "lease"),
    ("sweep/coordinator.py", "time.time", "close"),
}
"""These places ask the calendar, for these purposes. The journal of a budget needs a time that drivers on
several machines share, to place their runs beside each other; `tests/costs/test_budget.py` sets it wrong."""


def asked_of_the_calendar() -> set[tuple[str, str, str]]:
    """Each use of the calendar: (file, call, the name, argument or call that gets the result)."""
    found = set()
    for path in sorted((ROOT / "raymrc").rglob("*.py")):
        tree = ast.parse(path.read_text())
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            named = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if ".".join(named.split(".")[-2:]) in SET_BY_OTHERS:
                found.add(
                    (path.relative_to(ROOT / "raymrc").as_posix(), named, getter(node, parents))
                )
            # The search above would miss `from time import time`.
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                assert {a.name for a in node.names} <= {"monotonic", "perf_counter", "process_time"}
    return found


def getter(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> str:
    """The name, argument or call that gets a call's result, possibly through methods of the result."""
    above, below = parents[node], node
    while True:
        if isinstance(above, ast.keyword):
            return str(above.arg)
        if isinstance(above, ast.Assign):
            return ast.unparse(above.targets[0]).split(".")[-1]
        if isinstance(above, ast.Call) and below in above.args:
            return ast.unparse(above.func).split(".")[-1]
        above, below = parents[above], above


def test_the_calendar_is_used_only_for_start_times_of_fold_runs_and_the_drivers_shared_journal():
    assert asked_of_the_calendar() == FOR_PEOPLE | OF_THE_JOURNAL
