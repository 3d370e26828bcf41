"""Several documents as one: all answers and figures first, then a chapter for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from sparqle_tvm.report.document import Document, Part, Picture, Section, Table


def together(documents: Sequence[Document]) -> Document:
    """Put documents together; one alone remains as it is.

    Answers, figures, tables and pictures get the number of their chapter. A table that stood in
    an earlier chapter already is left out.
    """
    if len(documents) == 1:
        return documents[0]
    heads = {document.title.partition(": ")[0] for document in documents}
    shared = heads.pop() if len(heads) == 1 else ""
    seen: list[Table] = []
    return Document(
        title=f"{shared}: what split precision saves" if shared else "What split precision saves",
        subtitle=f"{len(documents)} results of sparqle in one page.",
        cards=tuple(
            replace(card, label=f"{number}. {card.label}")
            for number, document in enumerate(documents, 1)
            for card in document.cards
        ),
        sections=tuple(
            section
            for number, document in enumerate(documents, 1)
            for section in _chapter(number, document, shared, seen)
        ),
        verdict=tuple(
            f"{number}. {text}"
            for number, document in enumerate(documents, 1)
            for text in document.verdict
        ),
    )


def _chapter(number: int, document: Document, shared: str, seen: list[Table]) -> Iterator[Section]:
    title = document.title.removeprefix(f"{shared}: ") if shared else document.title
    yield Section(f"{number}. {title[0].upper()}{title[1:]}", (document.subtitle,))
    for section in document.sections:
        parts = [_numbered(part, number) for part in section.parts if part not in seen]
        seen += [part for part in section.parts if isinstance(part, Table)]
        if parts:
            yield replace(section, parts=parts, level=2)


def _numbered(part: Part, number: int) -> Part:
    if isinstance(part, Table):
        return replace(part, name=f"{number}_{part.name}")
    if isinstance(part, Picture):
        return replace(part, name=f"{number}-{part.name}")
    return part
