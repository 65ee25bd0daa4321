"""The report of a run: a folder of results as a static page."""

from mvl.show.report.page import write_report

__all__ = ["write_report"]
