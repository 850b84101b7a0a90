"""A study for people: a table in the terminal, a figure, and a page that opens without a server."""

from typing import TYPE_CHECKING

from .summary import Estimate, Row, summarize

if TYPE_CHECKING:
    from ..study import Study

__all__ = ["Estimate", "Row", "summarize", "write_report"]


def write_report(study: "Study") -> None:
    """Write ``report.html`` and ``report.png`` into the run folder.

    Raises:
        StoreError: they cannot be written.
    """
    from ..files import write_atomic
    from .figure import figure_png
    from .page import page_html

    write_atomic(study.folder.path / "report.html", page_html(study).encode())
    write_atomic(study.folder.path / "report.png", figure_png(study))
