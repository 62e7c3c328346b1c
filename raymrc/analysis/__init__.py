"""From a ledger's records to conclusions: summaries, tests, verdicts in words, final tests, comparisons.

It imports costs, planning, study and the rooms below, and scipy; never Ray, MLflow, torch or rich. Enter at
`findings.build_findings`; `judging` decides what is claimed, and `sentences` words it.
"""
