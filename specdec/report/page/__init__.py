"""One file that shows all of a folder of runs in a browser, with no network and no server."""

from specdec.report.page.render import explanation_page, page

__all__ = ["explanation_page", "page"]
