"""What is said about the compiled modules, and the numbers, that are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sparqle_tvm.errors import CompileError
from sparqle_tvm.report import formats
from sparqle_tvm.report.document import Column, Document, Section, Table
from sparqle_tvm.runtime.cache import Entry, ExecutableCache


def cache_document(cache: ExecutableCache) -> Document:
    """What `sparqle cache list` prints."""
    columns = (
        Column("key", "key", lambda key: key[:12]),
        Column("title", "compiled module, or numbers"),
        Column("bytes", "size", formats.nbytes, numeric=True),
        Column("used", "last used"),
    )
    rows = tuple(_rows(cache))
    total, most = sum(row["bytes"] for row in rows), formats.nbytes(cache.limit_bytes)
    parts = (Table("cache", "Compiled modules", columns, rows),) if rows else ("Nothing is kept.",)
    return Document(
        title="Compiled modules",
        subtitle=f"{len(rows)} in {cache.folder}, {formats.nbytes(total)} of at most {most}",
        sections=(Section("", parts),),
    )


def cleared_document(folder: str, removed: Sequence[Entry]) -> Document:
    """What `sparqle cache clear` prints."""
    nbytes = sum(entry.nbytes for entry in removed)
    found = f"{len(removed)} removed from {folder}, {formats.nbytes(nbytes)}"
    return Document(title="Compiled modules", subtitle=found)


def _rows(cache: ExecutableCache) -> Iterator[dict[str, Any]]:
    for entry in cache.entries():
        try:
            title = entry.title
        except CompileError:
            title = "cannot be read; it is made again"
        used = datetime.fromtimestamp(entry.used).isoformat(" ", "seconds")
        yield {"key": entry.key, "title": title, "bytes": entry.nbytes, "used": used}
