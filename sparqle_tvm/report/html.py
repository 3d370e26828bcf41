"""A document as one HTML page that needs nothing besides itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from importlib.resources import files

from sparqle_tvm._versions import VERSION
from sparqle_tvm.escaping import CODE, for_html
from sparqle_tvm.report.document import Document, Notice, Part, Picture, Section, Table
from sparqle_tvm.report.pictures import require_matplotlib


def to_html(document: Document, *, progress: Callable[[], None] = lambda: None) -> str:
    """Make the page: style sheet and pictures (SVG) inside, readable on a phone and in the dark.

    `progress` is called after every picture.

    Raises
    ------
    MissingExtraError
        If there are pictures to draw and no matplotlib.
    """
    if document.pictures:
        require_matplotlib()
    style = files("sparqle_tvm.report").joinpath("page.css").read_text(encoding="utf-8")
    links = "\n".join(
        f'<a href="#{_anchor(section)}">{for_html(section.title)}</a>'
        for section in document.sections
    )
    sections = "\n".join(_section(section, progress) for section in document.sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{for_html(document.title)}</title>
<style>
{style.strip()}
</style>
</head>
<body>
<header>
<h1>{for_html(document.title)}</h1>
<p class="subtitle">{_text(document.subtitle)}</p>
{_cards(document)}
<nav aria-label="Sections">
{links}
</nav>
</header>
<main>
{sections}
</main>
<footer>Made by sparqle_tvm {VERSION}.</footer>
</body>
</html>
"""


def _cards(document: Document) -> str:
    cards = "\n".join(
        f'<div class="card"><dt>{for_html(card.label)}</dt>'
        f'<dd class="value">{for_html(card.value)}</dd><dd>{for_html(card.note)}</dd></div>'
        for card in document.cards
    )
    return f'<dl class="cards">\n{cards}\n</dl>'


def _section(section: Section, progress: Callable[[], None]) -> str:
    parts = "\n".join(_part(part, progress) for part in section.parts)
    anchor, title = _anchor(section), for_html(section.title)
    return f'<section>\n<h2 id="{anchor}">{title}</h2>\n{parts}\n</section>'


def _part(part: Part, progress: Callable[[], None]) -> str:
    if isinstance(part, str):
        return f"<p>{_text(part)}</p>"
    if isinstance(part, Notice):
        return f"<p><strong>{_text(part.text)}</strong></p>"
    if isinstance(part, Table):
        return _table(part)
    shown = _figure(part)
    progress()
    return shown


def _figure(picture: Picture) -> str:
    from sparqle_tvm.report.pictures.style import to_svg

    forms = "\n".join(
        f'<div class="{name}">'
        + to_svg(picture.draw(name == "narrow"), f"{picture.name}-{name}", picture.caption)
        + "</div>"
        for name in ("wide", "narrow")
    )
    return f"<figure>\n{forms}\n<figcaption>{_text(picture.caption)}</figcaption>\n</figure>"


def _table(table: Table) -> str:
    def cell(tag: str, column: int, text: str) -> str:
        numeric = ' class="number"' if table.shown[column].numeric else ""
        return f"<{tag}{numeric}>{_text(text)}</{tag}>"

    def row(tag: str, texts: Iterable[str]) -> str:
        return "<tr>" + "".join(cell(tag, i, text) for i, text in enumerate(texts)) + "</tr>"

    head = row("th", (column.title for column in table.shown))
    rows = []
    for heading, group in table.groups():
        if heading:
            rows.append(f'<tr><th colspan="{len(table.shown)}">{_text(heading)}</th></tr>')
        rows += [row("td", texts) for texts in group]
    body = "\n".join(rows)
    # Outside what scrolls, so that a phone shows all of it.
    title = "" if table.folded else f'<p class="caption">{_text(table.title)}</p>\n'
    note = f'<p class="note">{_text(table.note)}</p>' if table.note else ""
    # Focusable, so that the keyboard scrolls what is wider than the window.
    shown = (
        f'{title}<div class="table" tabindex="0" role="group" aria-label="{for_html(table.title)}">'
        f"<table>\n<thead>{head}</thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table></div>\n{note}"
    )
    if table.folded:
        return f"<details><summary>{_text(table.title)}</summary>\n{shown}\n</details>"
    return shown


def _anchor(section: Section) -> str:
    return re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-")


def _text(text: str) -> str:
    """Escape, and set what stands in backquotes as code."""
    return CODE.sub(r"<code>\1</code>", for_html(text))
