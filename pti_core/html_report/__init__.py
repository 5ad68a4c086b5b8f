"""The report of a run: `runs/<run>/report/index.html`, a page that opens from disk and needs no network."""

from pti_core.html_report.page import DRAWN, EMBEDDED, PAGE, Report, write_page

__all__ = ["DRAWN", "EMBEDDED", "PAGE", "Report", "write_page"]
