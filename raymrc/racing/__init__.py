"""Racing: which contenders of a cell can still win, and the replay that proves it.

This room may import `ledger`, `reading`, `model`, `scoring`, `corpora`, `configuration` and `quantities`; it
knows neither Ray nor clocks nor files. Enter at `racing.decide`, which scheduling calls whenever a slot is
free, and at `simulate.replay`, which runs the same decisions on learning curves that are known in full.
"""
