"""Plans: a study's inputs, cells, configurations, fold-runs with their ledger keys, and where they train.

This room may import `study` and all below it; it knows neither torch nor Ray nor rich. Enter at
`loaded.read_study` for a study with its notes, then `plan.plan_study`; `placement.place` decides by memory.
"""
