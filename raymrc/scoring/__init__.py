"""Counts and F1 as the official n2c2 scorers compute them, and counts of nested or discontinuous spans.

May import `corpora` and `errors`. Enter at `counts.Counts`, `n2c2_2018.score_note` and
`n2c2_2022.score_events`.
"""
