"""A document as one HTML page that needs nothing besides itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from importlib.resources import files
from itertools import chain, count

from sparqle_tvm._versions import VERSION
from sparqle_tvm.escaping import CODE, for_html
from sparqle_tvm.report.document import Document, Notice, Part, Picture, Section, Table
from sparqle_tvm.report.pictures import require_matplotlib

LONG_TEXT = 40
"""Characters of a cell from which on its column is broken into lines."""


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
    anchors = _anchors(document.sections)
    links = [
        f'<a href="#{anchor}">{for_html(section.title)}</a>'
        for anchor, section in zip(anchors, document.sections, strict=True)
        if section.level == 1 and section.title
    ]
    # One section needs no list of sections.
    shown = ['<nav aria-label="Sections">', *links, "</nav>"] if len(links) > 1 else []
    nav = "\n".join(shown)
    sections = "\n".join(
        _section(anchor, section, progress)
        for anchor, section in zip(anchors, document.sections, strict=True)
    )
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
{_verdict(document)}{_subtitle(document)}{_cards(document)}
{nav}
</header>
<main>
{sections}
</main>
<footer>Made by sparqle_tvm {VERSION}.</footer>
</body>
</html>
"""


def _verdict(document: Document) -> str:
    if not document.verdict:
        return ""
    sentences = "\n".join(f"<li>{_led(text)}</li>" for text in document.verdict)
    return f'<ul class="verdict">\n{sentences}\n</ul>\n'


def _subtitle(document: Document) -> str:
    return f'<p class="subtitle">{_text(document.subtitle)}</p>\n' if document.subtitle else ""


def _led(text: str) -> str:
    """A sentence whose words before a colon say what it is about."""
    about, colon, rest = text.partition(": ")
    return f"<strong>{_text(about)}</strong>{colon}{_text(rest)}" if colon else _text(text)


def _cards(document: Document) -> str:
    if not document.cards:
        return ""
    cards = "\n".join(
        f'<div class="card"><dt>{_text(card.label)}</dt>'
        f'<dd class="value">{_text(card.value)}</dd><dd>{_text(card.note)}</dd></div>'
        for card in document.cards
    )
    return f'<dl class="cards">\n{cards}\n</dl>'


def _section(anchor: str, section: Section, progress: Callable[[], None]) -> str:
    parts = "\n".join(_part(part, progress) for part in section.parts)
    heading = f"h{section.level + 1}"
    title = f'<{heading} id="{anchor}">{for_html(section.title)}</{heading}>\n'
    return f"<section>\n{title if section.title else ''}{parts}\n</section>"


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
    long = {
        i
        for i in range(len(table.shown))
        if any(len(texts[i]) > LONG_TEXT for _, group in table.groups() for texts in group)
    }

    def cell(tag: str, column: int, text: str) -> str:
        kind = "number" if table.shown[column].numeric else "long" if column in long else ""
        named = f' class="{kind}"' if kind else ""
        return f"<{tag}{named}>{_text(text)}</{tag}>"

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


def _anchors(sections: Iterable[Section]) -> list[str]:
    """A name for each; titles that are the same are numbered."""
    found: list[str] = []
    for section in sections:
        name = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-")
        numbered = (f"{name}-{i}" for i in count(2))
        found.append(next(one for one in chain([name], numbered) if one not in found))
    return found


def _text(text: str) -> str:
    """Escape, set what stands in backquotes as code, and keep percent signs at their numbers."""
    return CODE.sub(r"<code>\1</code>", for_html(text)).replace(" %", "\N{NO-BREAK SPACE}%")
