"""What an attention program's time depends on beside sizes: stored digits and live keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.numerics.attention import SCALE_BYTES
from sparqle_tvm.numerics.kv_cache import (
    KEY_GROUP,
    POINTER_BYTES,
    CacheName,
    dense_bytes,
    stored_digits,
)
from sparqle_tvm.target.attention_op import DIGIT_BITS, AttentionOp
from sparqle_tvm.target.isa.access import Values, ceil_div
from sparqle_tvm.target.isa.attention_header import AttentionHeader
from sparqle_tvm.target.isa.compute import BURST_BYTES, burst_bytes
from sparqle_tvm.target.isa.load import MSB_POINTER_BYTES
from sparqle_tvm.target.isa.operands import BLOCKS, KEYS, M
from sparqle_tvm.target.program.bound import Int64s, Operands

Bools = NDArray[np.bool_]
CACHE_NAMES: tuple[CacheName, ...] = get_args(CacheName)

QUERY_NAMES = ("q_bytes", "q_digits", "q_steps", "q_taken", "q_waits")
CHUNK_NAMES = (
    *("key_bytes", "key_digits", "live", "value_bytes", "value_digits"),
    *("p_bytes", "p_digits", "p_steps", "p_taken", "p_waits"),
)


@dataclass(frozen=True, eq=False)
class CacheRows:
    """Where the keys, or values, of all key heads lie in memory.

    Attributes
    ----------
    begins : int64 (H, T + 1)
        Where rows begin, and end.
    digits : int64 (H, T + 1)
        Stored MSB digits of the rows before.
    """

    begins: Int64s
    digits: Int64s

    @classmethod
    def read(
        cls, op: AttentionOp, what: CacheName, stream: NDArray[np.uint8], pointers: NDArray[Any]
    ) -> CacheRows:
        """Of keys, or values, as they lie in memory with their pointers (H, T + 1)."""
        begins = pointers.astype(np.int64)
        found = np.zeros_like(begins)
        for head in np.flatnonzero(op.in_planes(what)):
            digits = stored_digits(stream, begins[head], op.head_dim)
            found[head, 1:] = np.cumsum(digits)
        return cls(begins, found)


@dataclass(frozen=True, eq=False)
class MeanRows:
    """Keys, or values, in the cache: what one takes on average, by key head (H,).

    Attributes
    ----------
    bytes : float64 (H,)
        Of a row.
    digits : float64 (H,)
        Stored MSB digits of a row.
    pointers : float64 (H,)
        Bytes of pointers that a load of a piece of memory moves.
    int8 : bool
        Whether all of them are plain int8.
    """

    bytes: NDArray[Any]
    digits: NDArray[Any]
    pointers: NDArray[Any]
    int8: bool

    @classmethod
    def of(cls, op: AttentionOp, what: CacheName, stored: Sequence[float] = (1.0,)) -> MeanRows:
        """As an op stores them, with shares of stored MSB digits by head (or one for all)."""
        planes = np.array(op.in_planes(what))
        share = np.broadcast_to(np.asarray(stored, float), planes.shape)
        digits = np.where(planes, share * op.head_dim, 0.0)
        # A row's digits are padded to a byte: by half a digit, if there are any.
        padded = digits * DIGIT_BITS / 8 + np.where((share > 0) & (share < 1), 0.25, 0)
        size = np.where(planes, dense_bytes(op.head_dim) + padded, op.row_bytes(what))
        return cls(size, digits, MSB_POINTER_BYTES * planes.astype(float), not op.is_stored(what))

    @classmethod
    def read(cls, op: AttentionOp, what: CacheName, cache: CacheRows | None) -> MeanRows:
        """As they lie in memory; None: plain int8."""
        plain = cls.of(op, what)
        if cache is None:
            return plain
        tokens = max(cache.begins.shape[1] - 1, 1)
        nbytes = (cache.begins[:, -1] - cache.begins[:, 0]) / tokens
        return cls(nbytes, cache.digits[:, -1] / tokens, plain.pointers, plain.int8)

    @classmethod
    def mean(cls, layers: Sequence[MeanRows]) -> MeanRows:
        """Of several layers."""
        nbytes, digits, pointers = (
            np.mean([getattr(x, name) for x in layers], axis=0)
            for name in ("bytes", "digits", "pointers")
        )
        return cls(nbytes, digits, pointers, all(x.int8 for x in layers))


@dataclass(frozen=True)
class AttentionCache:
    """What an attention reads: keys that it needs, and what a token takes in its cache.

    Attributes
    ----------
    live_keys : float
        Share of the keys that blocks see whose values they need; 1 if it is left dense.
    key_planes, value_planes : str
        As in `AttentionOp`, a letter per key head; empty: those counted together differ.
    elements : int
        Elements of the keys and values of a token, all heads.
    key_bytes, value_bytes : float
        Of a token, with pointers to rows in planes, without scales.
    plain_bytes : int
        Of the same integers, plain.
    scale_bytes : int
        Of the scales of a token.
    encoded_elements : float
        Elements of a token that are cut into digits.
    """

    live_keys: float
    key_planes: str
    value_planes: str
    elements: int
    key_bytes: float
    value_bytes: float
    plain_bytes: int
    scale_bytes: int
    encoded_elements: float

    @classmethod
    def of(
        cls, op: AttentionOp, rows: Mapping[CacheName, MeanRows], live_keys: float
    ) -> AttentionCache:
        """Of an op whose keys and values take that much."""
        # Of the two pointers that a load moves, one is stored: for so many tokens.
        stored = POINTER_BYTES / MSB_POINTER_BYTES
        shared: dict[CacheName, int] = {"key": KEY_GROUP, "value": 1}
        nbytes = {
            what: float(np.sum(found.bytes + stored * found.pointers / shared[what]))
            for what, found in rows.items()
        }
        pointers = sum(float(np.sum(found.pointers)) for found in rows.values())
        plain = op.row_bytes("key") + op.row_bytes("value")
        return cls(
            live_keys=live_keys,
            key_planes=op.key_planes,
            value_planes=op.value_planes,
            elements=2 * op.kv_heads * op.head_dim,
            key_bytes=nbytes["key"],
            value_bytes=nbytes["value"],
            plain_bytes=op.kv_heads * plain,
            scale_bytes=2 * SCALE_BYTES * op.kv_heads,
            encoded_elements=op.head_dim * pointers / MSB_POINTER_BYTES,
        )


@dataclass(frozen=True, eq=False)
class Work:
    """Tables of int64: of queries by block (blocks,), of probabilities by (blocks, chunks).

    ``bytes`` and ``digits`` are of the stored MSB digits; ``steps`` those of the slowest PE row of
    each group of array rows, added up; ``taken`` those of all PE rows, ``waits`` what they stand
    idle meanwhile. ``live``: keys with a probability. ``key_bytes``, ``value_bytes``: what loads of
    keys and values move, pointers too; ``key_digits``, ``value_digits``: stored MSB digits of those
    in planes.

    `last` has, of a run with values, the query rows of the last token by their number: which
    channels have an MSB digit (D,), and the probabilities uint8 (T,). A decode step would meet the
    same. `cache` says, of a run with values, where those keys and values lie that are not int8.
    """

    tables: Mapping[str, Int64s]
    last: dict[int, tuple[Bools, NDArray[np.uint8]]] = field(default_factory=dict)
    cache: dict[CacheName, CacheRows] = field(default_factory=dict)

    def of(self, operands: Operands) -> Values:
        """The operands of the steps of a class, and these numbers for each of them."""
        return _Joined(operands, self.tables)

    @classmethod
    def empty(cls, header: AttentionHeader, limits: Mapping[str, int]) -> Work:
        """Tables to fill in; they say that no digit is stored, and no key is live."""
        blocks = limits[BLOCKS]
        chunks = ceil_div(limits[KEYS], header.key_chunk)
        tables = {name: np.zeros(blocks, np.int64) for name in QUERY_NAMES}
        tables |= {name: np.zeros((blocks, chunks), np.int64) for name in CHUNK_NAMES}
        place = header.place(limits, np.arange(blocks)[:, None], np.arange(chunks)[None, :])
        tables["key_bytes"] += place["loaded"] * header.op.row_bytes("key")
        return cls(tables)

    @classmethod
    def uniform(
        cls,
        header: AttentionHeader,
        limits: Mapping[str, int],
        queries: float,
        live: float,
        probabilities: float,
        *,
        runs: float | None = None,
        rng: np.random.Generator | None = None,
        stored: Mapping[CacheName, MeanRows] | None = None,
    ) -> Work:
        """The same shares everywhere.

        Parameters
        ----------
        queries, probabilities : float
            Shares of stored MSB digits in queries, and in the probabilities of live keys.
        live : float
            Share of live keys.
        runs : float, optional
            Runs of live keys that follow each other, per key; each moves whole bursts. By default
            every live key is a run of its own, unless all are live.
        rng : numpy.random.Generator, optional
            Draws digits of rows instead (binomial), so that rows wait for each other.
        stored : mapping of {"key", "value"} to MeanRows, optional
            How large keys and values are in the cache; by default planes have all MSB digits.
        """
        blocks = np.arange(limits[BLOCKS])
        chunks = np.arange(ceil_div(limits[KEYS], header.key_chunk))
        place = header.place(limits, blocks[:, None], chunks[None, :])
        rows, keys = place["rows"], place["keys"]
        width, sparse = header.op.head_dim, header.sparse
        found = np.ceil(live * keys).astype(np.int64) if sparse else keys
        moved = found if sparse and not header.stays else place["loaded"]
        tables = dict(cls.empty(header, limits).tables)
        groups = np.where(moved < keys, moved, np.minimum(moved, 1))
        if runs is not None:
            groups = np.clip(np.ceil(runs * keys).astype(np.int64), np.minimum(moved, 1), moved)
        gathers = sparse and not header.stays
        sizes = stored or {what: MeanRows.of(header.op, what) for what in CACHE_NAMES}
        head = (blocks // header.head_blocks(limits[M]))[:, None]
        key, value = (sizes[what] for what in CACHE_NAMES)
        tables |= {
            "live": found,
            "key_bytes": np.rint(key.bytes[head] * place["loaded"]) + key.pointers[head],
            "key_digits": np.rint(key.digits[head] * place["loaded"]),
            "value_bytes": _moved_bytes(value, head, moved, groups if gathers else None),
            "value_digits": np.rint(value.digits[head] * moved),
        }
        if sparse:
            query = _drawn_work(header, rows[:, 0], width + 0 * rows[:, 0], queries, rng)
            mixed = _drawn_work(header, rows, found, probabilities, rng)
            tables |= {f"q_{name}": table for name, table in query.items()}
            tables |= {f"p_{name}": table for name, table in mixed.items()}
        return cls({name: np.asarray(table, np.int64) for name, table in tables.items()})

    def reads(self, header: AttentionHeader, limits: Mapping[str, int]) -> AttentionCache:
        """What keys it met, and where; `limits` are the sizes of its run."""
        live = self.tables["live"]
        blocks, chunks = live.shape
        place = header.place(limits, np.arange(blocks)[:, None], np.arange(chunks)[None, :])
        rows = {w: MeanRows.read(header.op, w, self.cache.get(w)) for w in CACHE_NAMES}
        return AttentionCache.of(header.op, rows, float(live.sum() / place["keys"].sum()))

    def of_last_token(self, header: AttentionHeader, limits: Mapping[str, int]) -> Work:
        """What a program of one token meets that is the last token of this run.

        `header` is that of the program, `limits` the sizes of its run.
        """
        work = Work.empty(header, limits)
        work.note_cache(header, limits, self.cache)
        place = header.place(limits, np.arange(limits[BLOCKS]), 0)
        for block, (row, rows) in enumerate(
            zip(place["row"].tolist(), place["rows"].tolist(), strict=True)
        ):
            found = [self.last[at] for at in range(row, row + rows)]
            work.note_queries(header, block, np.stack([bits for bits, _ in found]))
            p = np.stack([probabilities for _, probabilities in found])
            for chunk, begin in enumerate(range(0, p.shape[1], header.key_chunk)):
                part = p[:, begin : begin + header.key_chunk]
                where = (row // header.op.group, begin)
                work.note_chunk(header, block, chunk, part, part.shape[1], where)
        return work

    def note_cache(
        self,
        header: AttentionHeader,
        limits: Mapping[str, int],
        cache: Mapping[CacheName, CacheRows],
    ) -> None:
        """Note where keys and values lie, and what all loads of keys move."""
        self.cache.update(cache)
        rows = cache.get("key")
        if rows is None:
            return
        blocks, chunks = self.tables["key_bytes"].shape
        place = header.place(limits, np.arange(blocks)[:, None], np.arange(chunks)[None, :])
        head = np.arange(blocks)[:, None] // header.head_blocks(limits[M])
        first = np.minimum(place["key"] - head * limits[KEYS], limits[KEYS])
        last = np.minimum(first + place["loaded"], limits[KEYS])
        to_pointer = np.minimum(ceil_div(last, KEY_GROUP) * KEY_GROUP, limits[KEYS])
        planes = np.array(header.op.in_planes("key"))[head]
        end = np.where(planes & (place["loaded"] > 0), to_pointer, last)
        moved = rows.begins[head, end] - rows.begins[head, first]
        self.tables["key_bytes"][...] = moved + MSB_POINTER_BYTES * planes
        self.tables["key_digits"][...] = rows.digits[head, last] - rows.digits[head, first]

    def note_queries(self, header: AttentionHeader, block: int, stored: Bools) -> None:
        """Note which channels of the queries of a block have an MSB digit, bool (rows, D)."""
        if header.sparse:
            self._note("q", block, digit_work(header, stored))

    def note_chunk(
        self,
        header: AttentionHeader,
        block: int,
        chunk: int,
        p: NDArray[np.uint8],
        loaded: int,
        where: tuple[int, int] = (0, 0),
    ) -> None:
        """Note the probabilities uint8 (rows, keys) of a chunk; so many values are loaded, of the
        key head and from the key on that `where` names.
        """
        at = (block, chunk)
        if not header.sparse:
            self.tables["live"][at] = p.shape[1]
            self.tables["value_bytes"][at] = loaded * header.op.row_bytes("value")
            return
        live: Bools = np.asarray(p.any(axis=0))
        self.tables["live"][at] = np.count_nonzero(live)
        rows, digits = self.cache.get("value"), 0
        if rows is not None:
            wanted: Bools = np.ones(loaded, np.bool_) if header.stays else live
            size, digits = _gathered(header, rows, wanted, where)
        elif header.stays:
            size = loaded * header.op.head_dim
        else:
            size = gather_bytes(live, header.op.head_dim)
        self.tables["value_bytes"][at] = size
        self.tables["value_digits"][at] = digits
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


_SAMPLES = 64
"""Tiles of each size that `_drawn_work` draws."""


def _drawn_work(
    header: AttentionHeader,
    rows: Int64s,
    columns: Int64s,
    share: float,
    rng: np.random.Generator | None,
) -> dict[str, Int64s]:
    """As `digit_work`, of tiles of these sizes with that share of digits: means of some of them.

    Without `rng` rows are all alike.
    """
    machine, split = header.accelerator, header.row_split
    rows, columns = np.broadcast_arrays(rows, columns)
    sizes, which = np.unique(rows.ravel() << 32 | columns.ravel(), return_inverse=True)
    heights, widths = sizes >> 32, sizes & 0xFFFFFFFF
    found = {name: np.zeros(len(sizes)) for name in _WORK_NAMES}
    for height in np.unique(heights).tolist():
        at = heights == height
        width = widths[at][:, None]
        segments = width // split + (np.arange(split) < width % split)
        shape = (len(width), _SAMPLES if rng else 1, height, split)
        wide = np.broadcast_to(segments[:, None, None, :], shape)
        counts = rng.binomial(wide, min(share, 1.0)) if rng else np.round(share * wide)
        steps = ceil_div(counts, machine.lanes)
        starts = np.arange(0, height, machine.rows)
        slowest = np.maximum.reduceat(steps.max(axis=3), starts, axis=2)
        together = np.diff(starts, append=height)
        taken = steps.sum(axis=(2, 3)).mean(axis=1)
        row_bytes = ceil_div(counts.sum(axis=3) * DIGIT_BITS, 8)
        found["bytes"][at] = row_bytes.sum(axis=2).mean(axis=1)
        found["digits"][at] = counts.sum(axis=(2, 3)).mean(axis=1)
        found["steps"][at] = slowest.sum(axis=2).mean(axis=1)
        found["taken"][at] = taken
        found["waits"][at] = (slowest * together).sum(axis=2).mean(axis=1) * split - taken
    return {
        name: np.rint(numbers)[which.reshape(rows.shape)].astype(np.int64)
        for name, numbers in found.items()
    }


_WORK_NAMES = ("bytes", "digits", "steps", "taken", "waits")


def gather_bytes(live: Bools, row_bytes: int) -> int:
    """Bytes that the rows of live keys move: whole bursts for every run of them."""
    edges = np.flatnonzero(np.diff(live, prepend=False, append=False))
    runs = edges[1::2] - edges[::2]
    if row_bytes % BURST_BYTES == 0:
        return int(runs.sum()) * row_bytes
    return int(burst_bytes(runs * row_bytes).sum())


def _gathered(
    header: AttentionHeader, rows: CacheRows, wanted: Bools, where: tuple[int, int]
) -> tuple[int, int]:
    """Bytes that loads of these values move, and stored digits of theirs.

    If not all of a head stay, each run of rows moves the bursts that it touches.
    """
    head, first = where
    edges = first + np.flatnonzero(np.diff(wanted, prepend=False, append=False))
    begins, ends = edges[::2], edges[1::2]
    low, high = rows.begins[head, begins], rows.begins[head, ends]
    if not header.stays:
        low, high = low // BURST_BYTES * BURST_BYTES, burst_bytes(high)
    pointers = MSB_POINTER_BYTES * len(begins) * header.op.in_planes("value")[head]
    digits = rows.digits[head, ends] - rows.digits[head, begins]
    return int((high - low).sum()) + pointers, int(digits.sum())


def _moved_bytes(
    rows: MeanRows, head: Int64s, moved: Int64s, groups: Int64s | None
) -> NDArray[Any]:
    """Bytes of loads of so many values of a head, in so many runs if they are gathered."""
    size, pointers = rows.bytes[head], rows.pointers[head]
    if groups is None:
        return np.asarray(np.rint(moved * size) + pointers)
    if not rows.int8:
        # A run begins and ends anywhere in a burst.
        edges = np.where(groups > 0, BURST_BYTES - 1 + pointers, 0)
        return np.asarray(np.rint(moved * size) + groups * edges)
    if not (size % BURST_BYTES).any():
        return np.asarray(moved * size)
    length = ceil_div(moved, np.maximum(groups, 1))
    return np.asarray(groups * burst_bytes((length * size).astype(np.int64)))
