"""What an attention program's time depends on beside sizes: stored digits and live keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.target.attention_op import DIGIT_BITS
from sparqle_tvm.target.isa.access import Values, ceil_div
from sparqle_tvm.target.isa.attention_header import AttentionHeader
from sparqle_tvm.target.isa.compute import BURST_BYTES, burst_bytes
from sparqle_tvm.target.isa.operands import BLOCKS, KEYS
from sparqle_tvm.target.program.bound import Int64s, Operands

Bools = NDArray[np.bool_]

QUERY_NAMES = ("q_bytes", "q_digits", "q_steps", "q_taken", "q_waits")
CHUNK_NAMES = ("live", "value_bytes", "p_bytes", "p_digits", "p_steps", "p_taken", "p_waits")


@dataclass(frozen=True, eq=False)
class Work:
    """Tables of int64: of queries by block (blocks,), of probabilities by (blocks, chunks).

    ``bytes`` and ``digits`` are of the stored MSB digits; ``steps`` those of the slowest PE row of
    each group of array rows, added up; ``taken`` those of all PE rows, ``waits`` what they stand
    idle meanwhile. ``live``: keys with a probability; ``value_bytes``: what their values move.
    """

    tables: Mapping[str, Int64s]

    def of(self, operands: Operands) -> Values:
        """The operands of the steps of a class, and these numbers for each of them."""
        return _Joined(operands, self.tables)

    @classmethod
    def empty(cls, header: AttentionHeader, limits: Mapping[str, int]) -> Work:
        """Tables to fill in; they say that nothing is stored and no key is live."""
        blocks = limits[BLOCKS]
        chunks = ceil_div(limits[KEYS], header.key_chunk)
        tables = {name: np.zeros(blocks, np.int64) for name in QUERY_NAMES}
        tables |= {name: np.zeros((blocks, chunks), np.int64) for name in CHUNK_NAMES}
        return cls(tables)

    @classmethod
    def uniform(
        cls,
        header: AttentionHeader,
        limits: Mapping[str, int],
        queries: float,
        live: float,
        probabilities: float,
    ) -> Work:
        """The same shares everywhere: nothing waits, nothing is drawn.

        Parameters
        ----------
        queries, probabilities : float
            Shares of stored MSB digits in queries, and in the probabilities of live keys.
        live : float
            Share of live keys.
        """
        blocks = np.arange(limits[BLOCKS])
        chunks = np.arange(ceil_div(limits[KEYS], header.key_chunk))
        place = header.place(limits, blocks[:, None], chunks[None, :])
        rows, keys = place["rows"], place["keys"]
        width, sparse = header.op.head_dim, header.sparse
        found = np.ceil(live * keys).astype(np.int64) if sparse else keys
        moved = found if sparse and not header.stays else place["loaded"]
        tables = dict(cls.empty(header, limits).tables)
        tables |= {"live": found, "value_bytes": gather_estimate(header, moved, keys)}
        if sparse:
            query = _even_work(header, rows[:, 0], width, queries)
            mixed = _even_work(header, rows, found, probabilities)
            tables |= {f"q_{name}": table for name, table in query.items()}
            tables |= {f"p_{name}": table for name, table in mixed.items()}
        return cls(tables)

    def note_queries(self, header: AttentionHeader, block: int, stored: Bools) -> None:
        """Note which channels of the queries of a block have an MSB digit, bool (rows, D)."""
        if header.sparse:
            self._note("q", block, digit_work(header, stored))

    def note_chunk(
        self, header: AttentionHeader, block: int, chunk: int, p: NDArray[np.uint8], loaded: int
    ) -> None:
        """Note the probabilities uint8 (rows, keys) of a chunk; so many values are loaded."""
        at = (block, chunk)
        if not header.sparse:
            self.tables["live"][at] = p.shape[1]
            self.tables["value_bytes"][at] = loaded * header.op.head_dim
            return
        live: Bools = np.asarray(p.any(axis=0))
        self.tables["live"][at] = np.count_nonzero(live)
        size = loaded * header.op.head_dim
        if not header.stays:
            size = gather_bytes(live, header.op.head_dim)
        self.tables["value_bytes"][at] = size
        self._note("p", at, digit_work(header, p[:, live] >= 2**DIGIT_BITS))

    def _note(self, what: str, at: Any, found: Mapping[str, int]) -> None:
        for name, number in found.items():
            self.tables[f"{what}_{name}"][at] = number


@dataclass(frozen=True, eq=False)
class _Joined:
    """Operands of steps, and what tables say of their blocks and chunks."""

    operands: Operands
    tables: Mapping[str, Int64s]

    def __getitem__(self, name: str, /) -> Any:
        if name not in self.tables:
            return self.operands[name]
        table, block = self.tables[name], self.operands["block"]
        if table.ndim == 1:
            return table[block]
        if "chunk" not in self.operands.cls.TRACE:
            return table.sum(axis=1)[block]
        return table[block, self.operands["chunk"]]


def digit_work(header: AttentionHeader, stored: Bools) -> dict[str, int]:
    """Bytes, digits and steps of the stored digits bool (rows, columns) of a tile."""
    machine, split = header.accelerator, header.row_split
    rows, columns = stored.shape
    counts = np.count_nonzero(stored, axis=1).reshape(rows, 1)
    row_bytes = ceil_div(counts * DIGIT_BITS, 8)
    if split > 1:
        width = machine.lanes * max(ceil_div(ceil_div(columns, machine.lanes), split), 1)
        edges = range(0, columns, width)
        parts = [np.count_nonzero(stored[:, edge : edge + width], axis=1) for edge in edges]
        counts = np.stack(parts, axis=1) if parts else counts
    steps = ceil_div(counts, machine.lanes)
    starts = np.arange(0, rows, machine.rows)
    slowest = np.maximum.reduceat(steps.max(axis=1), starts)
    heights = np.diff(starts, append=rows)
    taken = int(steps.sum())
    return {
        "bytes": int(row_bytes.sum()),
        "digits": int(counts.sum()),
        "steps": int(slowest.sum()),
        "taken": taken,
        "waits": int((slowest * heights).sum()) * split - taken,
    }


def _even_work(
    header: AttentionHeader, rows: Int64s, columns: Any, share: float
) -> dict[str, Int64s]:
    """As `digit_work`, with the same share of digits in every row and segment."""
    machine, split = header.accelerator, header.row_split
    digits = np.round(share * columns).astype(np.int64) + 0 * rows
    steps = ceil_div(ceil_div(digits, split), machine.lanes)
    return {
        "bytes": rows * ceil_div(digits * DIGIT_BITS, 8),
        "digits": rows * digits,
        "steps": ceil_div(rows, machine.rows) * steps,
        "taken": rows * np.minimum(steps * split, np.maximum(digits, steps)),
        "waits": 0 * rows,
    }


def gather_estimate(header: AttentionHeader, live: Int64s, keys: Int64s) -> Int64s:
    """Bytes that so many live keys of so many move, each a run of its own unless all are live."""
    row = header.op.head_dim
    return np.where(live < keys, live * burst_bytes(row), live * row)


def gather_bytes(live: Bools, row_bytes: int) -> int:
    """Bytes that the rows of live keys move: whole bursts for every run of them."""
    edges = np.flatnonzero(np.diff(live, prepend=False, append=False))
    runs = edges[1::2] - edges[::2]
    if row_bytes % BURST_BYTES == 0:
        return int(runs.sum()) * row_bytes
    return int(burst_bytes(runs * row_bytes).sum())
