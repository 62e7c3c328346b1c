"""Trains fold-runs: one as a lane, many in a pool of lanes over one backbone, or one over several devices.

It may import every room from costs down; it knows torch, and neither Ray nor MLflow nor pydantic.
Enter at `trainer.Trainer`, which opens pools; `lane.Lane` is the life of one fold-run.
"""
