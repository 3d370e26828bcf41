"""A report as data: sections with texts, tables and pictures, whatever form they end up in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    key : str
        Its name in CSV and JSON, with the unit: ``dense_cycles``.
    title : str
        Its name for readers.
    show : callable
        Writes a value for readers.
    numeric : bool
        Whether it is set flush right.
    missing : str
        What readers see instead of None.
    saving : bool
        Whether more is better than nothing, and less is worse: a terminal shows it in colour.
    error : str
        Key of its standard error, which stands beside it; empty: none.
    """

    key: str
    title: str
    show: Callable[[Any], str] = str
    numeric: bool = False
    missing: str = ""
    saving: bool = False
    error: str = ""

    def text(self, row: Mapping[str, Any]) -> str:
        """Its value in a row, as readers see it."""
        value, error = row.get(self.key), row.get(self.error)
        text = self.missing if value is None else self.show(value)
        return text if error is None else f"{text} ± {self.show(error).lstrip('+')}"


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes
    ----------
    name : str
        Letters, digits and underscores: the name of its CSV file.
    title : str
        What stands above it.
    columns : tuple of Column
        Its columns.
    rows : tuple of dict
        Values by key of the column; a missing one is None.
    note : str
        What stands below it.
    folded : bool
        Whether a page shows it only when asked: long ones.
    group : str
        Key of the column that heads groups of rows instead of standing in each; empty: none.
    repeated : int
        Columns at the left that a terminal shows again if it has to break the others into several
        tables; 0: a table that is too wide is not printed.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Any], ...]
    note: str = ""
    folded: bool = False
    group: str = ""
    repeated: int = 0

    def pieces(self, count: int) -> list[Table]:
        """The same in about equal pieces of at most so many columns, see `repeated`."""
        first, rest = self.columns[: self.repeated], self.columns[self.repeated :]
        room = max(count - len(first), 1)
        size = -(-len(rest) // -(-len(rest) // room))
        parts = [rest[i : i + size] for i in range(0, len(rest), size)]
        return [
            replace(
                self,
                title=self.title if not i else "",
                columns=(*first, *part),
                note=self.note if i == len(parts) - 1 else "",
            )
            for i, part in enumerate(parts)
        ]

    @property
    def shown(self) -> tuple[Column, ...]:
        """The columns that stand in rows."""
        return tuple(column for column in self.columns if column.key != self.group)

    def groups(self) -> Iterator[tuple[str, list[list[str]]]]:
        """Heading and rows of each group, as readers see them; one without a heading if none."""
        heads = {column.key: column for column in self.columns if column.key == self.group}
        for value, rows in groupby(self.rows, lambda row: row.get(self.group)):
            texts = [[column.text(row) for column in self.shown] for row in rows]
            yield heads[self.group].text({self.group: value}) if heads else "", texts

    @property
    def keys(self) -> list[str]:
        """Names of its values, in the order of the columns."""
        return [key for column in self.columns for key in (column.key, column.error) if key]

    def values(self) -> list[dict[str, Any]]:
        """Rows as data: every key."""
        return [{key: row.get(key) for key in self.keys} for row in self.rows]


@dataclass(frozen=True)
class Picture:
    """A picture with a caption below it, under a name of letters, digits and dashes of its own.

    `draw` draws it with matplotlib, for a phone if its argument is true.
    """

    name: str
    caption: str
    draw: Callable[[bool], Figure]


@dataclass(frozen=True)
class Card:
    """A figure that stands out: what it is, the figure, and what it refers to."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Notice:
    """A sentence that one should not miss."""

    text: str


class OwnMarkdown(str):
    """A paragraph that is Markdown already: lists, links. Nothing from outside stands in it."""


Part = str | Notice | Table | Picture


@dataclass(frozen=True)
class Section:
    """A section under its title; texts among its parts are paragraphs.

    `level` is that of its heading: 1, or 2 for what stands within the section of level 1 before it.
    """

    title: str
    parts: Sequence[Part]
    level: int = 1


@dataclass(frozen=True)
class Document:
    """A report: what it is about, the answer in a few sentences, its figures, and the rest."""

    title: str
    subtitle: str
    cards: tuple[Card, ...] = ()
    sections: tuple[Section, ...] = ()
    verdict: tuple[str, ...] = ()

    @property
    def tables(self) -> list[Table]:
        """All tables in order."""
        return [p for section in self.sections for p in section.parts if isinstance(p, Table)]

    @property
    def pictures(self) -> list[Picture]:
        """All pictures in order."""
        return [p for section in self.sections for p in section.parts if isinstance(p, Picture)]

    def to_json(self) -> dict[str, Any]:
        """All tables as data, by name."""
        return {
            "title": self.title,
            "subtitle": self.subtitle,
            "verdict": list(self.verdict),
            "tables": {table.name: table.values() for table in self.tables},
        }
