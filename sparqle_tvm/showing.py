"""How objects show themselves: a line in a terminal, a table in a notebook.

Documents for readers are made by `sparqle_tvm.report`; this is for what lies below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from sparqle_tvm.escaping import for_html, visible

MAX_ROWS = 60
"""Rows of a notebook's table; of longer ones the rest is only counted."""

Rows = Iterable[Sequence[Any]]


def text_table(head: Sequence[str], rows: Rows) -> str:
    """Columns flush left under their heads, two spaces apart."""
    lines = [[visible(str(value)) for value in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def html_table(title: str, head: Sequence[str], rows: Rows) -> str:
    """A table for notebooks with a title above it; numbers stand flush right."""
    rows = list(rows)
    body = "".join(_row("td", row) for row in islice(rows, MAX_ROWS))
    if len(rows) > MAX_ROWS:
        left = f"{len(rows) - MAX_ROWS} more rows"
        body += f'<tr><td colspan="{len(head)}">{left}</td></tr>'
    above = f"<thead>{_row('th', head)}</thead>" if rows else ""
    return f"<table><caption>{for_html(title)}</caption>{above}<tbody>{body}</tbody></table>"


def _row(tag: str, values: Sequence[Any]) -> str:
    return f"<tr>{''.join(_cell(tag, value) for value in values)}</tr>"


def _cell(tag: str, value: Any) -> str:
    if isinstance(value, int | float):
        return f'<{tag} style="text-align: right">{for_html(f"{value:,}")}</{tag}>'
    return f'<{tag} style="text-align: left">{for_html(str(value))}</{tag}>'
