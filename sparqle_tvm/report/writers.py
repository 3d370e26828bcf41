"""A document as Markdown, as CSV files, as PNG files, and on a terminal."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table as RichTable
from rich.text import Text

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.escaping import for_csv, for_markdown, visible
from sparqle_tvm.files import replacing, write_text
from sparqle_tvm.report import formats
from sparqle_tvm.report.document import (
    Column,
    Document,
    Notice,
    OwnMarkdown,
    Picture,
    Section,
    Table,
)
from sparqle_tvm.report.pictures import drawing

MAX_WIDTH_COLUMNS = 100
"""Of what is printed on a terminal."""


def to_markdown(document: Document) -> str:
    """Write texts and tables as Markdown; pictures are left out, their captions too."""
    lines = [f"# {for_markdown(document.title)}", ""]
    for text in document.verdict:
        lines += [f"**{for_markdown(text)}**", ""]
    lines += [for_markdown(document.subtitle), ""]
    for card in document.cards:
        label, value, note = map(for_markdown, (card.label, card.value, card.note))
        lines.append(f"- **{label}: {value}** ({note})")
    for section in document.sections:
        parts = [part for part in section.parts if not isinstance(part, Picture)]
        if not parts:
            continue
        lines += ["", f"#{'#' * section.level} {for_markdown(section.title)}"]
        for part in parts:
            if isinstance(part, Table):
                lines += ["", *markdown_table(part)]
            else:
                notice = isinstance(part, Notice)
                text = part.text if isinstance(part, Notice) else part
                text = text if isinstance(text, OwnMarkdown) else for_markdown(text)
                lines += ["", f"**{text}**" if notice else text]
    return "\n".join(lines) + "\n"


def write_markdown(document: Document, path: str | os.PathLike[str]) -> None:
    """Write it as Markdown, whole or not at all.

    Raises
    ------
    InvalidArgumentError
        If the file cannot be written.
    """
    write_text(path, to_markdown(document))


def markdown_table(table: Table) -> list[str]:
    """Lines of a table with its title and note."""
    lines = [f"**{for_markdown(table.title)}**", ""] if table.title else []
    lines.append(_row(for_markdown(column.title) for column in table.shown))
    lines.append(_row("---:" if column.numeric else "---" for column in table.shown))
    for heading, rows in table.groups():
        if heading:
            lines.append(_row([f"**{for_markdown(heading)}**", *[""] * (len(table.shown) - 1)]))
        lines += [_row(map(for_markdown, texts)) for texts in rows]
    return [*lines, "", for_markdown(table.note)] if table.note else lines


def write_csv(document: Document, folder: str | os.PathLike[str]) -> list[Path]:
    """Write every table as ``NAME.csv``, each whole or not at all; return the files.

    Raises
    ------
    InvalidArgumentError
        If the folder or a file cannot be written.
    """
    place = _folder(folder)
    files = []
    for table in document.tables:
        path = place / f"{table.name}.csv"
        with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, table.keys)
            writer.writeheader()
            writer.writerows({k: for_csv(v) for k, v in row.items()} for row in table.values())
        files.append(path)
    return files


def write_pictures(
    document: Document,
    folder: str | os.PathLike[str],
    *,
    progress: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Write every picture as ``NAME.png``, on white; return the files.

    `progress` is called after each.

    Raises
    ------
    InvalidArgumentError
        If the folder or a file cannot be written.
    MissingExtraError
        If there is no matplotlib.
    """
    style = drawing("style")
    place = _folder(folder)
    files = []
    for picture in document.pictures:
        files.append(place / f"{picture.name}.png")
        style.save_png(picture.draw(False), files[-1])
        progress()
    return files


def print_document(document: Document, console: Console | None = None) -> None:
    """Print it all but pictures, and tables that are folded or too wide."""
    console = console or Console()
    width = min(console.width, MAX_WIDTH_COLUMNS)
    parts: list[RenderableType] = [_text(document.title, style="bold")]
    parts += map(_text, document.verdict)
    if document.subtitle:
        parts.append(_text(document.subtitle, style="dim"))
    if document.cards:
        parts.append(_cards(document))
    for section in document.sections:
        shown = list(_printed(section, width))
        if shown and section.title:
            parts += [Text(), _text(section.title, style="bold cyan")]
        for part in shown:
            parts += [Text(), part]
    console.print(Group(*parts), width=width, highlight=False)


def _printed(section: Section, width: int) -> Iterator[RenderableType]:
    for part in section.parts:
        if isinstance(part, str):
            yield _text(part, style="dim")
        elif isinstance(part, Notice):
            yield _text(part.text, style="yellow")
        elif isinstance(part, Table) and not part.folded:
            pieces = _pieces(part, width)
            yield from (_rich(piece, _widths(piece, width)) for piece in pieces)
            if not pieces:
                yield _too_wide(part)


def _pieces(table: Table, width: int) -> list[Table]:
    """The table, or what it has to be broken into to fit; none if it does not."""
    most = len(table.columns)
    for count in range(most, table.repeated, -1) if table.repeated else [most]:
        pieces = table.pieces(count) if count < most else [table]
        if all(_widths(piece, width) for piece in pieces):
            return pieces
    return []


def _widths(table: Table, width: int) -> list[int]:
    """How wide each column is; none if they do not fit.

    Numbers stay on one line and words whole, a standard error may stand below its number; what
    room there is goes to who needs most.
    """
    rows = [list(map(visible, texts)) for _, group in table.groups() for texts in group]
    widths, wanted = [], []
    for i, column in enumerate(table.shown):
        cells = [row[i] for row in rows]
        if column.numeric:
            parts = [line for cell in cells for line in _stacked(column, cell).splitlines()]
        else:
            parts = [word for cell in cells for word in cell.split()]
        heading = max(map(len, column.title.split()), default=0)
        widths.append(max(heading, *map(len, parts), 0))
        wanted.append(max(map(len, (column.title, *cells))))
    room = width - sum(widths) - 2 * (len(widths) - 1)
    # A table with every column at its least is hard to read.
    if room < 0.05 * sum(widths):
        return []
    for _ in range(min(room, sum(wanted) - sum(widths))):
        widths[max(range(len(widths)), key=lambda i: wanted[i] - widths[i])] += 1
    return widths


def _too_wide(table: Table) -> Text:
    return _text(
        f"{table.title}: too wide to print here; see --html, --markdown or --csv", style="dim"
    )


def _folder(folder: str | os.PathLike[str]) -> Path:
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise InvalidArgumentError(f"{folder} cannot be made a folder: {reason}") from error
    return place


def _cards(document: Document) -> Panel:
    grid = RichTable.grid(padding=(0, 2))
    grid.add_column()
    grid.add_column(style="bold", justify="right")
    grid.add_column(style="dim")
    for card in document.cards:
        grid.add_row(*map(_text, (card.label, card.value, card.note)))
    return Panel(grid, expand=False, box=box.ROUNDED)


def _rich(table: Table, widths: list[int]) -> Group:
    parts: list[RenderableType] = [_text(table.title, style="bold")] if table.title else []
    # No cell can reach over several columns, so every group is a grid of its own.
    parts.append(_grid(table, widths, []))
    for heading, rows in table.groups():
        parts += [_text(heading, style="bold")] if heading else []
        parts.append(_grid(table, widths, rows))
    return Group(*parts, *([_text(table.note, style="dim")] if table.note else []))


def _grid(table: Table, widths: list[int], rows: list[list[str]]) -> RichTable:
    """Some rows, or the headings if there are none."""
    shown = RichTable(
        box=box.SIMPLE_HEAD,
        show_header=not rows,
        header_style="bold",
        pad_edge=False,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column, width in zip(table.shown, widths, strict=True):
        side: Literal["left", "right"] = "right" if column.numeric else "left"
        shown.add_column(_text(column.title), justify=side, width=width)
    for texts in rows:
        shown.add_row(*map(_cell, table.shown, texts, widths))
    return shown


def _stacked(column: Column, text: str) -> str:
    """A cell in as little width as it can be read in."""
    return text.replace(" ±", "\n±") if column.error else text


def _text(text: str, style: str = "") -> Text:
    """Text as it is: rich takes what stands in brackets of a plain string for markup."""
    return Text(visible(text), style=style)


def _cell(column: Column, text: str, width: int) -> Text:
    text = visible(text)
    text = text if len(text) <= width else _stacked(column, text)
    if not column.saving or not text:
        return Text(text)
    return Text(text, style="yellow" if text.startswith((formats.MINUS, "0.0")) else "green")


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
