"""Decides what a running study does next: the search, races, the work queue, hosts to start, the budget.

The room may import `analysis`, `costs`, `planning`, `racing`, `ledger` and what is below them, and never Ray:
time is passed in, and decisions are returned. Enter at `state.StudyRun` for one run of a study as its driver
sees it, and at `work_queue.WorkQueue` for the assignment of fold-runs to hosts.
"""
