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
"""Where the calendar is asked, and what for. The journal of a budget needs a time that drivers on several
machines share, to place their runs beside each other; `tests/costs/test_budget.py` sets it wrong."""


def asked_of_the_calendar() -> set[tuple[str, str, str]]:
    """(file, call, the name, argument or call that gets the answer)."""
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
            # `from time import time` would pass unseen.
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                assert {a.name for a in node.names} <= {"monotonic", "perf_counter", "process_time"}
    return found


def getter(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> str:
    """Who gets what a call gives, through methods of its answer."""
    above, below = parents[node], node
    while True:
        if isinstance(above, ast.keyword):
            return str(above.arg)
        if isinstance(above, ast.Assign):
            return ast.unparse(above.targets[0]).split(".")[-1]
        if isinstance(above, ast.Call) and below in above.args:
            return ast.unparse(above.func).split(".")[-1]
        above, below = parents[above], above


def test_the_calendar_is_asked_for_nothing_but_when_a_fold_run_began_and_what_drivers_share():
    assert asked_of_the_calendar() == FOR_PEOPLE | OF_THE_JOURNAL
