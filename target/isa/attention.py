"""The instructions of attention programs for LOAD, the array and STORE.

Every one of them names a block of query rows, and a chunk of keys if it works on one; what it
touches follows from those (`AttentionHeader.place`). D = head_dim; slices of keys and values are
`KEY_SLICES`. Layouts on chip: `isa.attention_header`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sparqle_tvm.numerics.kv_cache import CacheName
from sparqle_tvm.target.attention_op import KEY_SLICES
from sparqle_tvm.target.isa.access import Access, Mode, Part, Tensor, Tile, Values, ceil_div
from sparqle_tvm.target.isa.attention_header import (
    FACTOR_BYTES,
    SCALE_BYTES,
    AttentionHeader,
    plane_bytes,
)
from sparqle_tvm.target.isa.base import Instruction, Kind, Pass, Requirement
from sparqle_tvm.target.isa.header import Engine
from sparqle_tvm.target.isa.load import MSB_POINTER_BYTES
from sparqle_tvm.target.isa.operands import Address, Affine, Buffer


def _word(header: Any) -> int:
    return 4


QUERIES = Tile("queries", Buffer.ACT, "m", lambda h, cols: h.query_row_bytes, _word)
KEYS = Tile("keys", Buffer.WGT, "n", lambda h, cols: h.op.head_dim)
VALUES = Tile("values", Buffer.WGT, "n", lambda h, cols: h.op.head_dim)
SCALES = Tile("scales of keys", Buffer.WGT, "n", lambda h, cols: SCALE_BYTES, _word)
SCORES = Tile("scores", Buffer.ACC, "m", lambda h, cols: 4 * cols, _word)
PROBABILITIES = Tile("probabilities", Buffer.ACT, "m", lambda h, cols: 0)
OUT_SCALES = Tile("scales of outputs", Buffer.ACT, "m", lambda h, cols: 4, _word)
OUTPUTS = Tile("outputs", Buffer.ACC, "m", lambda h, cols: 4 * h.op.head_dim, _word)


@dataclass(frozen=True)
class Region(Access):
    """An access to as many bytes as `size` says of header and operands."""

    size: Callable[[Any, Values], Any] = lambda header, values: 0

    def nbytes(self, header: Any, values: Values) -> Any:
        """Bytes on chip, of every step."""
        return self.size(header, values)


def chunks_bytes(chunk_bytes: Any, last_bytes: Any) -> Callable[[Any, Values], Any]:
    """Bytes of all chunks of a block: the last one has as many as its keys need."""

    def size(header: AttentionHeader, values: Values) -> Any:
        before = ceil_div(values["total"], header.key_chunk) - 1
        rest = values["total"] - before * header.key_chunk
        return before * chunk_bytes(header) + last_bytes(header, values, rest)

    return size


def query_sizes(header: AttentionHeader, rows: Any) -> tuple[Any, Any, Any]:
    """Bytes of the factors, the LSB digits and the bitmap of so many query rows."""
    digits, bits = plane_bytes(header.op.head_dim)
    if not header.sparse:
        return rows * FACTOR_BYTES, rows * header.op.head_dim, 0 * rows
    return rows * FACTOR_BYTES, rows * digits, rows * bits


@dataclass(frozen=True)
class AttentionInstruction(Instruction):
    """Base of the instructions of attention programs."""

    SERVES: ClassVar[str] = "attention"
    DERIVED: ClassVar[tuple[str, ...]] = ("row", "rows", "total", "key", "keys", "loaded")
    SPARSE: ClassVar[bool | None] = None
    """Whether it is of programs of scheme ``sparqle``, or of ``dense``; None: of both."""

    @classmethod
    def derive(
        cls, header: AttentionHeader, limits: Mapping[str, int], values: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Rows and keys of its block and chunk."""
        return header.place(limits, values["block"], values.get("chunk", 0))

    @classmethod
    def problem(cls, header: AttentionHeader) -> str | None:
        """A program is of one scheme."""
        if cls.SPARSE in (None, header.sparse):
            return None
        return f"is of another scheme than the program, which is {header.op.scheme}"

    @classmethod
    def requirements(
        cls, header: AttentionHeader, rows: int, values: Values
    ) -> Iterator[Requirement]:
        """Its block exists, and sees its chunk."""
        block = values["block"]
        blocks = header.op.kv_heads * header.head_blocks(rows)
        exists = (block >= 0) & (block < blocks)
        yield Requirement(exists, f"there are {blocks} blocks, not this one", block, block + 1)
        if "chunk" in cls.TRACE:
            # What stays is loaded for other blocks of the head, too.
            keys, chunk = values["loaded" if cls.PARTS else "keys"], values["chunk"]
            seen = (chunk >= 0) & (keys > 0)
            yield Requirement(seen, "its block sees no keys of this chunk", chunk, chunk + 1)

    @classmethod
    def products(cls, header: AttentionHeader, values: Values) -> Mapping[str, Any]:
        """Work of an MMA: ``macs``, ``updates`` of accumulators, ``waiting`` steps of PE rows for
        others, digits or keys ``found`` in bitmaps.
        """
        raise AssertionError(f"{cls.__name__} multiplies nothing")

    def _place(self) -> str:
        chunk = getattr(self, "chunk", None)
        return f"block {self.block}" + (f", chunk {chunk}" if chunk is not None else "")  # type: ignore[attr-defined]


# Loads.


@dataclass(frozen=True)
class LdQry(AttentionInstruction):
    """Load the queries of a block into ACT: one DMA transfer.

    Moved are its bytes in QUERIES, which digits are stored decides how many, and two pointers.
    """

    OPCODE: ClassVar[int] = 33
    MNEMONIC: ClassVar[str] = "LD.QRY"
    ROLE: ClassVar[str] = "activations"
    MEASURED: ClassVar[bool] = True
    ACCESSES: ClassVar[tuple[Access, ...]] = (
        Access("dst", QUERIES, Mode.WRITE, "rows", "", "row"),
    )
    PARTS: ClassVar[tuple[Part, ...]] = (
        Part(Tensor.QUERIES, lambda h, cols: sum(query_sizes(h, 1)), cols=""),
        Part(Tensor.QUERIES, lambda h, cols: plane_bytes(h.op.head_dim)[0], cols="", digits=True),
        Part(
            *(Tensor.QUERY_PTR, lambda h, cols: MSB_POINTER_BYTES, ""),
            pieces=lambda h, rows: 1,
            onchip=False,
        ),
    )

    dst: Address
    block: Affine

    @classmethod
    def dram_bytes(cls, header: AttentionHeader, values: Values) -> Any:
        """Bytes moved, with the digits that are stored."""
        return sum(query_sizes(header, values["rows"])) + values["q_bytes"] + MSB_POINTER_BYTES

    def operands(self) -> str:
        """``dst <- QUERIES[block i0]``."""
        return f"{self.dst} <- QUERIES[{self._place()}]"


@dataclass(frozen=True, eq=False)
class _KeyPart(Part):
    """Bytes of every key that is loaded."""

    def nbytes(self, header: Any, values: Values) -> Any:
        """Bytes of every step, of values the most."""
        return values["loaded"] * self.row_bytes(header, 0)


@dataclass(frozen=True)
class _KeyLoad(AttentionInstruction):
    """Base of the loads of a chunk of keys into WGT: one DMA transfer, a key behind the other."""

    ROLE: ClassVar[str] = "weights"

    dst: Address
    block: Affine
    chunk: Affine

    def operands(self) -> str:
        """``dst <- KEYS[block i0, chunk i1]``."""
        return f"{self.dst} <- {self.PARTS[0].tensor.name}[{self._place()}]"


def _most_bytes(what: CacheName) -> Callable[[Any, Any], Any]:
    """The most bytes that a key, or a value, moves: plain, or in planes with every digit."""

    def size(header: AttentionHeader, cols: Any) -> int:
        op = header.op
        if not any(op.in_planes(what)):
            return op.row_bytes(what)
        digits, bits = plane_bytes(op.head_dim)
        return int(2 * digits + bits + MSB_POINTER_BYTES)

    return size


@dataclass(frozen=True)
class LdKey(_KeyLoad):
    """Load keys: (loaded, D) int8 on chip, whatever they are in the cache.

    Of a head in planes rows are expanded on their way, a step of find-first for each stored MSB
    digit; moved are the rows up to the next pointer, which stands at every eighth token, and two
    pointers. Plain keys of fewer bits are widened.
    """

    OPCODE: ClassVar[int] = 34
    MNEMONIC: ClassVar[str] = "LD.KEY"
    MEASURED: ClassVar[bool] = True
    ACCESSES: ClassVar[tuple[Access, ...]] = (Access("dst", KEYS, Mode.WRITE, "loaded", "", "key"),)
    PARTS: ClassVar[tuple[Part, ...]] = (
        _KeyPart(Tensor.KEYS, _most_bytes("key"), "", digits=True),
    )

    @classmethod
    def dram_bytes(cls, header: AttentionHeader, values: Values) -> Any:
        """Bytes moved, see the class."""
        return values["key_bytes"]

    @classmethod
    def carried(cls, header: AttentionHeader, values: Values, nbytes: Any) -> Any:
        """Expanded: D bytes of every key."""
        return values["loaded"] * header.op.head_dim

    @classmethod
    def events(cls, header: AttentionHeader, values: Values) -> Mapping[str, Any]:
        """Digits that are located in bitmaps."""
        return {"find_first_steps": values["key_digits"]}


@dataclass(frozen=True)
class LdScl(_KeyLoad):
    """Load the scales of keys and their values: (loaded, 2) float32."""

    OPCODE: ClassVar[int] = 35
    MNEMONIC: ClassVar[str] = "LD.SCL"
    ROLE: ClassVar[str] = "parameters"
    ACCESSES: ClassVar[tuple[Access, ...]] = (
        Access("dst", SCALES, Mode.WRITE, "loaded", "", "key"),
    )
    PARTS: ClassVar[tuple[Part, ...]] = (
        _KeyPart(Tensor.KEY_SCALES, lambda h, cols: SCALE_BYTES, ""),
    )


def _gathers(header: AttentionHeader) -> bool:
    """Whether values are loaded for a block alone, so that the map of live keys is known."""
    return header.sparse and not header.stays


@dataclass(frozen=True)
class LdVal(_KeyLoad):
    """Load values: (loaded, D) int8, each in the place of its key.

    If values do not stay (and the program is of scheme ``sparqle``), only those of live keys are
    moved, by `live_map`: a gather, in one transfer, of runs of rows that follow each other,
    whole bursts of `BURST_BYTES` each. What lies in the place of another key does not matter: its
    probability is 0 in every row. Values in planes, or of fewer bits, are expanded as keys are
    (`LdKey`); they have a pointer for every token, and each run of them moves two.

    Attributes
    ----------
    live_map : Address or None
        The probabilities of the chunk in ACT; None if all values are loaded.
    dst, block, chunk
        Where to, and which.
    """

    OPCODE: ClassVar[int] = 36
    MNEMONIC: ClassVar[str] = "LD.VAL"
    MEASURED: ClassVar[bool] = True
    ACCESSES: ClassVar[tuple[Access, ...]] = (
        Access("dst", VALUES, Mode.WRITE, "loaded", "", "key"),
        Region(
            *("live_map", PROBABILITIES, Mode.READ, "rows", "", "row"),
            col="key",
            needed=_gathers,
            read=lambda h, values, nbytes: ceil_div(values["keys"], 8),
            size=lambda h, values: ceil_div(h.key_chunk, 8) + 0 * values["rows"],
        ),
    )
    PARTS: ClassVar[tuple[Part, ...]] = (
        _KeyPart(Tensor.VALUES, _most_bytes("value"), "", digits=True),
    )

    live_map: Address | None = None

    @classmethod
    def dram_bytes(cls, header: AttentionHeader, values: Values) -> Any:
        """Bytes moved: whole bursts for every run of live keys, or all."""
        return values["value_bytes"]

    @classmethod
    def carried(cls, header: AttentionHeader, values: Values, nbytes: Any) -> Any:
        """What is moved, or what that is expanded to."""
        if not header.op.is_stored("value"):
            return nbytes
        return values["live" if _gathers(header) else "loaded"] * header.op.head_dim

    @classmethod
    def events(cls, header: AttentionHeader, values: Values) -> Mapping[str, Any]:
        """Digits that are located in bitmaps."""
        return {"find_first_steps": values["value_digits"]}

    def operands(self) -> str:
        """``dst <- VALUES[block i0, chunk i1], live by ..``."""
        text = super().operands()
        return text if self.live_map is None else f"{text}, live by {self.live_map}"


# The array.


def _columns(header: AttentionHeader, n: Any) -> Any:
    """How often the rows of a tile go through the array: once per block of columns and slice."""
    return ceil_div(n, header.accelerator.cols) * KEY_SLICES


def _row_groups(header: AttentionHeader, rows: Any) -> Any:
    return ceil_div(rows, header.accelerator.rows)


def dense_steps(header: AttentionHeader, k: Any) -> Any:
    """Steps of `lanes` columns in the longest of `row_split` segments of `k` columns."""
    return ceil_div(ceil_div(k, header.accelerator.lanes), header.row_split)


def _reduction(header: AttentionHeader, n: Any, works: Any = 1) -> Any:
    """Cycles to add the partial sums of `row_split` PE rows."""
    steps = (header.row_split - 1).bit_length()
    return ceil_div(n, header.accelerator.cols) * steps * works


@dataclass(frozen=True)
class _Mma(AttentionInstruction):
    """Base of what multiplies."""

    ENGINE: ClassVar[Engine] = Engine.MMA
    KIND: ClassVar[Kind] = Kind.MMA

    def operands(self) -> str:
        """Addresses, then the block and the chunk."""
        names = (name for name in self.TRACE[: -len(self.DERIVED) - 2])
        addresses = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"{addresses}, {self._place()}"


def _scores(mode: Mode) -> Region:
    return Region(
        *("scores", SCORES, mode, "rows", "keys", "row", "key"),
        read=lambda h, values, nbytes: nbytes if mode == Mode.UPDATE else 0,
        size=lambda h, values: 4 * values["rows"] * values["keys"],
    )


def _queries(read: Callable[[AttentionHeader, Values], Any]) -> Access:
    return Access(
        *("queries", QUERIES, Mode.READ, "rows", "", "row"),
        read=lambda h, values, nbytes: read(h, values) * _columns(h, values["keys"]),
    )


_KEYS = Access(
    *("k", KEYS, Mode.READ, "keys", "", "key"),
    read=lambda h, values, nbytes: nbytes * _row_groups(h, values["rows"]),
)


@dataclass(frozen=True)
class _Scores(_Mma):
    """Base of the passes of queries times keys."""

    scores: Address
    queries: Address
    k: Address
    block: Affine
    chunk: Affine

    @classmethod
    def cycles(cls, header: AttentionHeader, values: Values) -> Any:
        """Cycles of a dense plane, see `MmaQkLsb`."""
        steps = _row_groups(header, values["rows"]) * dense_steps(header, header.op.head_dim)
        return steps * _columns(header, values["keys"]) + _reduction(header, values["keys"])

    @classmethod
    def products(cls, header: AttentionHeader, values: Values) -> Mapping[str, Any]:
        """Of a dense plane."""
        pairs = values["rows"] * values["keys"] * KEY_SLICES
        steps = ceil_div(header.op.head_dim, header.accelerator.lanes)
        return {"macs": pairs * header.op.head_dim, "updates": pairs * steps}


@dataclass(frozen=True)
class MmaQkLsb(_Scores):
    """Multiply the LSB plane of the queries with keys.

    ``scores[i, j] = sum_c lsb[i, c] * k[j, c]``, rows x keys int32, cleared first. Digits are
    those of `AttentionOp.window` as they lie in ACT, those of ``signed`` with their top bit
    flipped.

    Cycles: ``ceil(rows / array rows) * ceil(keys / cols) * ceil(D / lanes)`` per slice; with
    `row_split` r > 1 the channels are dealt in r segments, and partial sums are added in
    ``ceil(keys / cols) * ceil(log2 r)``.

    Attributes
    ----------
    scores, queries, k : Address
        Scores of the chunk in ACC, queries of the block in ACT, keys of the chunk in WGT.
    block, chunk : Affine
        Which.
    """

    OPCODE: ClassVar[int] = 37
    MNEMONIC: ClassVar[str] = "QK.LSB"
    ROLE: ClassVar[str] = "LSB pass"
    ACCESSES: ClassVar[tuple[Access, ...]] = (
        _queries(lambda h, values: values["rows"] * plane_bytes(h.op.head_dim)[0]),
        *(_KEYS, _scores(Mode.WRITE)),
    )


@dataclass(frozen=True)
class MmaQkMsb(_Scores):
    """Multiply the stored MSB digits of the queries with keys, and add ``2^k`` times that.

    A digit is two's complement, but for code 0: it is 8, which the window ``signed`` has for the
    largest integers, see `numerics.window`.

    Cycles: ``ceil(keys / cols) * sum over groups of array rows of the max over rows (and segments)
    of ceil(digits / lanes)`` per slice; partial sums as in `MmaQkLsb`.
    """

    OPCODE: ClassVar[int] = 38
    MNEMONIC: ClassVar[str] = "QK.MSB"
    ROLE: ClassVar[str] = "MSB pass"
    PASS: ClassVar[Pass] = Pass.MSB
    MEASURED: ClassVar[bool] = True
    SPARSE: ClassVar[bool | None] = True
    ACCESSES: ClassVar[tuple[Access, ...]] = (
        _queries(
            lambda h, values: values["rows"] * plane_bytes(h.op.head_dim)[1] + values["q_bytes"]
        ),
        *(_KEYS, _scores(Mode.UPDATE)),
    )

    @classmethod
    def cycles(cls, header: AttentionHeader, values: Values) -> Any:
        """Cycles of the digits that are stored."""
        columns = _columns(header, values["keys"])
        return values["q_steps"] * columns + _reduction(header, values["keys"])

    @classmethod
    def products(cls, header: AttentionHeader, values: Values) -> Mapping[str, Any]:
        """Of the digits that are stored."""
        n = values["keys"] * KEY_SLICES
        return {
            "macs": values["q_digits"] * n,
            "updates": values["q_taken"] * n,
            "waiting": values["q_waits"] * n,
            "found": values["q_digits"] * _columns(header, values["keys"]),
        }


@dataclass(frozen=True)
class MmaQkDns(_Scores):
    """Multiply the high digits of all queries with keys, and add ``2^k`` times that (``dense``).

    Cycles as `MmaQkLsb`.
    """

    OPCODE: ClassVar[int] = 39
    MNEMONIC: ClassVar[str] = "QK.DNS"
    ROLE: ClassVar[str] = "MSB pass"
    PASS: ClassVar[Pass] = Pass.MSB
    SPARSE: ClassVar[bool | None] = False
    ACCESSES: ClassVar[tuple[Access, ...]] = (
        _queries(lambda h, values: values["rows"] * plane_bytes(h.op.head_dim)[0]),
        *(_KEYS, _scores(Mode.UPDATE)),
    )


def _mixed(values: Values) -> Any:
    return values["rows"] * values["live"]


def _probabilities(read: Callable[[AttentionHeader, Values], Any]) -> Region:
    return Region(
        *("probs", PROBABILITIES, Mode.READ, "rows", "", "row", "key"),
        read=lambda h, values, nbytes: read(h, values) * _columns(h, h.op.head_dim),
        size=lambda h, values: h.probability_parts[-1] + 0 * values["rows"],
    )


_VALUES = Access(
    *("v", VALUES, Mode.READ, "keys", "", "key"),
    read=lambda h, values, nbytes: values["live"] * h.op.head_dim * _row_groups(h, values["rows"]),
)
_OUTPUTS = Access(
    *("acc", OUTPUTS, Mode.UPDATE, "rows", "", "row"),
    read=lambda h, values, nbytes: nbytes * (values["chunk"] > 0),
)


@dataclass(frozen=True)
class _Mix(_Mma):
    """Base of the passes of probabilities times values."""

    MEASURED: ClassVar[bool] = True

    acc: Address
    probs: Address
    v: Address
    block: Affine
    chunk: Affine

    @classmethod
    def cycles(cls, header: AttentionHeader, values: Values) -> Any:
        """Cycles of a dense plane, see `MmaPvLsb`."""
        steps = _row_groups(header, values["rows"]) * dense_steps(header, values["live"])
        return steps * _columns(header, header.op.head_dim) + _reduction(
            header, header.op.head_dim, values["live"] > 0
        )

    @classmethod
    def products(cls, header: AttentionHeader, values: Values) -> Mapping[str, Any]:
        """Of a dense plane; the sequencer finds live keys once for all rows of the array."""
        width = header.op.head_dim * KEY_SLICES
        steps = ceil_div(values["live"], header.accelerator.lanes)
        found = values["live"] * _columns(header, header.op.head_dim) * header.sparse
        return {
            "macs": _mixed(values) * width,
            "updates": values["rows"] * steps * width,
            "found": found,
        }


@dataclass(frozen=True)
class MmaPvLsb(_Mix):
    """Multiply the LSB plane of probabilities with values.

    ``acc[i, c] (+)= sum_j p[i, j] * v[j, c]``, (rows, D) int32; the first chunk clears them. The
    array walks over live keys only, in order.

    Cycles: ``ceil(rows / array rows) * ceil(D / cols) * ceil(live / lanes)`` per slice; with
    `row_split` r > 1 the live keys are dealt in r segments, and partial sums are added in
    ``ceil(D / cols) * ceil(log2 r)``, if any key is live.

    Attributes
    ----------
    acc, probs, v : Address
        Outputs of the block in ACC, probabilities of the chunk in ACT, its values in WGT.
    block, chunk : Affine
        Which.
    """

    OPCODE: ClassVar[int] = 40
    MNEMONIC: ClassVar[str] = "PV.LSB"
    ROLE: ClassVar[str] = "LSB pass"
    ACCESSES: ClassVar[tuple[Access, ...]] = (
        _probabilities(lambda h, values: values["rows"] * plane_bytes(values["live"])[0]),
        *(_VALUES, _OUTPUTS),
    )


@dataclass(frozen=True)
class MmaPvMsb(_Mix):
    """Multiply the stored MSB digits of probabilities, which have no sign, with values.

    2^k times that is added to acc. Cycles: as `MmaQkMsb`, with ``ceil(D / cols)``.
    """

    OPCODE: ClassVar[int] = 41
    MNEMONIC: ClassVar[str] = "PV.MSB"
    ROLE: ClassVar[str] = "MSB pass"
    PASS: ClassVar[Pass] = Pass.MSB
    SPARSE: ClassVar[bool | None] = True
    ACCESSES: ClassVar[tuple[Access, ...]] = (
        _probabilities(
            lambda h, values: values["rows"] * plane_bytes(values["live"])[1] + values["p_bytes"]
        ),
        *(_VALUES, Access("acc", OUTPUTS, Mode.UPDATE, "rows", "", "row")),
    )

    @classmethod
    def cycles(cls, header: AttentionHeader, values: Values) -> Any:
        """Cycles of the digits that are stored."""
        width = header.op.head_dim
        return values["p_steps"] * _columns(header, width) + _reduction(
            header, width, values["p_digits"] > 0
        )

    @classmethod
    def products(cls, header: AttentionHeader, values: Values) -> Mapping[str, Any]:
        """Of the digits that are stored."""
        width = header.op.head_dim * KEY_SLICES
        return {
            "macs": values["p_digits"] * width,
            "updates": values["p_taken"] * width,
            "waiting": values["p_waits"] * width,
            "found": values["p_digits"] * _columns(header, header.op.head_dim),
        }


@dataclass(frozen=True)
class MmaPvDns(_Mix):
    """Multiply the high digits of all probabilities with values (``dense``); cycles as PV.LSB."""

    OPCODE: ClassVar[int] = 42
    MNEMONIC: ClassVar[str] = "PV.DNS"
    ROLE: ClassVar[str] = "MSB pass"
    PASS: ClassVar[Pass] = Pass.MSB
    SPARSE: ClassVar[bool | None] = False
    ACCESSES: ClassVar[tuple[Access, ...]] = (
        _probabilities(lambda h, values: values["rows"] * plane_bytes(values["live"])[0]),
        *(_VALUES, Access("acc", OUTPUTS, Mode.UPDATE, "rows", "", "row")),
    )


# STORE.


@dataclass(frozen=True)
class DrnOut(AttentionInstruction):
    """Turn the sums of a block into outputs, in place: ``float32(acc) * scale`` of the row.

    Cycles: ``rows * ceil(D / drain_elements_per_cycle)``.

    Attributes
    ----------
    acc : Address
        Sums (rows, D) in ACC, all chunks added.
    scales : Address
        Scales of the rows in ACT, as VEC.SMX left them.
    block : Affine
        Which.
    """

    OPCODE: ClassVar[int] = 43
    MNEMONIC: ClassVar[str] = "DRN.OUT"
    ENGINE: ClassVar[Engine] = Engine.STORE
    KIND: ClassVar[Kind] = Kind.DRAIN
    ROLE: ClassVar[str] = "drain"
    ACCESSES: ClassVar[tuple[Access, ...]] = (
        Access("scales", OUT_SCALES, Mode.READ, "rows", "", "row"),
        Access("acc", OUTPUTS, Mode.UPDATE, "rows", "", "row"),
    )

    acc: Address
    scales: Address
    block: Affine

    @classmethod
    def cycles(cls, header: AttentionHeader, values: Values) -> Any:
        """Cycles, see the class."""
        per_row = ceil_div(header.op.head_dim, header.accelerator.drain_elements_per_cycle)
        return values["rows"] * per_row

    @classmethod
    def events(cls, header: AttentionHeader, values: Values) -> Mapping[str, Any]:
        """Every output is drained."""
        return {"drained_elements": values["rows"] * header.op.head_dim}


@dataclass(frozen=True)
class StAtt(AttentionInstruction):
    """Store the outputs of a block: one DMA transfer of ``rows * D * float_bytes`` bytes.

    Query row i of a key head is the head ``i % group`` of its group in token ``i // group``.
    """

    OPCODE: ClassVar[int] = 44
    MNEMONIC: ClassVar[str] = "ST.ATT"
    ENGINE: ClassVar[Engine] = Engine.STORE
    KIND: ClassVar[Kind] = Kind.STORE
    ROLE: ClassVar[str] = "store"
    DRAM: ClassVar[Mode] = Mode.WRITE
    ACCESSES: ClassVar[tuple[Access, ...]] = (Access("acc", OUTPUTS, Mode.READ, "rows", "", "row"),)
    PARTS: ClassVar[tuple[Part, ...]] = (
        Part(Tensor.OUT, lambda h, cols: h.op.head_dim * h.accelerator.float_bytes, cols=""),
    )

    acc: Address
    block: Affine

    def operands(self) -> str:
        """``OUT[block i0] <- acc``."""
        return f"OUT[{self._place()}] <- {self.acc}"
