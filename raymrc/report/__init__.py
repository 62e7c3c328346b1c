"""What a study's findings look like to others: a page to read, tables to go on with."""

from raymrc.report.page import write, write_plots
from raymrc.report.tables import write_tables

__all__ = ["write", "write_plots", "write_tables"]
