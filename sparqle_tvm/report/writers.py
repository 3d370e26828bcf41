"""A document as Markdown, as CSV files, as PNG files, and on a terminal."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table as RichTable
from rich.text import Text

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.files import replacing
from sparqle_tvm.report.document import Document, Picture, Table
from sparqle_tvm.report.pictures import require_matplotlib
from sparqle_tvm.report.tables import MAX_WIDTH_COLUMNS


def to_markdown(document: Document) -> str:
    """Write texts and tables as Markdown; pictures are left out, their captions too."""
    lines = [f"# {document.title}", "", document.subtitle, ""]
    for card in document.cards:
        lines.append(f"- **{card.label}: {card.value}** ({card.note})")
    for section in document.sections:
        parts = [part for part in section.parts if not isinstance(part, Picture)]
        if not parts:
            continue
        lines += ["", f"## {section.title}"]
        for part in parts:
            lines += ["", *([part] if isinstance(part, str) else markdown_table(part))]
    return "\n".join(lines) + "\n"


def write_markdown(document: Document, path: str | os.PathLike[str]) -> None:
    """Write it as Markdown, whole or not at all.

    Raises
    ------
    InvalidArgumentError
        If the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(to_markdown(document), encoding="utf-8")


def markdown_table(table: Table) -> list[str]:
    """Lines of a table with its title and note."""
    lines = [f"**{table.title}**", ""] if table.title else []
    lines.append(_row(column.title for column in table.columns))
    lines.append(_row("---:" if column.numeric else "---" for column in table.columns))
    lines += [_row(texts) for texts in table.texts()]
    return [*lines, "", table.note] if table.note else lines


def write_csv(document: Document, folder: str | os.PathLike[str]) -> list[Path]:
    """Write every table as ``NAME.csv``, each whole or not at all.

    Returns
    -------
    list of Path
        The files.

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
            writer = csv.DictWriter(f, [column.key for column in table.columns])
            writer.writeheader()
            writer.writerows(table.values())
        files.append(path)
    return files


def write_pictures(
    document: Document,
    folder: str | os.PathLike[str],
    *,
    progress: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Write every picture as ``NAME.png``, on white; `progress` is called after each.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    InvalidArgumentError
        If the folder or a file cannot be written.
    MissingExtraError
        If there is no matplotlib.
    """
    require_matplotlib()
    from sparqle_tvm.report.pictures.style import save_png

    place = _folder(folder)
    files = []
    for picture in document.pictures:
        files.append(place / f"{picture.name}.png")
        save_png(picture.draw(False), files[-1])
        progress()
    return files


def print_document(document: Document, console: Console | None = None) -> None:
    """Print title, cards and the tables that are not folded and not too wide."""
    console = console or Console()
    width = min(console.width, MAX_WIDTH_COLUMNS)
    parts: list[RenderableType] = [
        Text(document.title, style="bold"),
        Text(document.subtitle, style="dim"),
        _cards(document),
    ]
    shown = [table for table in document.tables if not table.folded]
    for table in shown:
        # Cells of words wrap where a little is missing.
        fits = _width_on_one_line(table) <= 1.25 * width
        parts += [Text(), _rich(table) if fits else _too_wide(table)]
    console.print(Group(*parts), width=width)


def _width_on_one_line(table: Table) -> int:
    """Columns that a table takes with every cell on one line; headings may wrap."""
    rows = list(table.texts())
    cells = [max((len(row[i]) for row in rows), default=0) for i in range(len(table.columns))]
    words = [max(map(len, column.title.split()), default=0) for column in table.columns]
    return sum(max(pair) + 3 for pair in zip(cells, words, strict=True)) + 1


def _too_wide(table: Table) -> Text:
    return Text(f"{table.title}: too wide to print here; see --html, --markdown or --csv", "dim")


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
        grid.add_row(card.label, card.value, card.note)
    return Panel(grid, expand=False, box=box.ROUNDED)


def _rich(table: Table) -> RichTable:
    shown = RichTable(
        title=table.title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        caption=table.note or None,
        caption_justify="left",
    )
    rows = list(table.texts())
    for i, column in enumerate(table.columns):
        words = [
            word for text in (column.title, *(row[i] for row in rows)) for word in text.split()
        ]
        shown.add_column(
            column.title,
            justify="right" if column.numeric else "left",
            min_width=max(map(len, words), default=0),  # only whole words wrap
        )
    for texts in rows:
        shown.add_row(*texts)
    return shown


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
