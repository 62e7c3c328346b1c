"""Costs: what a study will take and has taken, in device time, dollars, memory, storage and energy.

This room may import `planning` and all below it; it knows neither torch nor Ray nor rich. For what is to
come, enter at `forecast.forecast`; for what was spent, at `budget.Budget`, `journal.Journal` (the files) and
`account.Account` (one run's spending); `status.read_status` joins both.
"""
