"""From results to a report."""

from __future__ import annotations

from sparqle_tvm.report.document import Document
from sparqle_tvm.report.run_file import RunFile
from sparqle_tvm.report.run_sections import (
    cards_of,
    cost_section,
    detail_section,
    layer_sections,
    subtitle_of,
    title_of,
)


def build_report(run: RunFile) -> Document:
    """Put together all that a report of a run has.

    Parameters
    ----------
    run : RunFile
        A finished `sparqle run`.
    """
    return Document(
        title=title_of(run),
        subtitle=subtitle_of(run),
        cards=cards_of(run),
        sections=(cost_section(run), *layer_sections(run), detail_section(run)),
    )
