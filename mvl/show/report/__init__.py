"""Reports: of a profile, of any folder with runs, and of the study, as static pages."""

from mvl.show.report.page import write_folder_report, write_report, write_site

__all__ = ["write_folder_report", "write_report", "write_site"]
