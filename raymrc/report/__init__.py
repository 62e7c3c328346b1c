"""A study's results for people: one HTML page, tables on the terminal, CSV and Parquet exports.

It may import every room below, plotly and rich; it knows neither Ray nor MLflow. Enter at `write` (page),
`write_tables` (exports) and `terminal` (what commands print); `results` builds the tables that all share.
"""

from raymrc.report.export import write_tables
from raymrc.report.page import write, write_plots

__all__ = ["write", "write_plots", "write_tables"]
