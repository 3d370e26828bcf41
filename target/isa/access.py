"""What instructions declare of the memories: kinds of tiles, accesses to them, DRAM transfers.

Everything here is a function of the header and of evaluated operands, which are numbers or arrays
of them, one for each step: verifier, simulator and reports loop over the declarations and never
ask which instruction it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, Protocol

import numpy as np

from sparqle_tvm.target.isa.header import Header
from sparqle_tvm.target.isa.operands import Buffer

Axis = Literal["m", "n", "k"]
"""Rows, output channels and columns of the op."""


class Tensor(IntEnum):
    """Tensors in DRAM.

    LSB (M, ceil(K*k/8)) uint8; PBM (M, ceil(K/8)) uint8, both as in the transport form.
    MSB: stream of the codes of MSB digits (`numerics.window`), K chunk by K chunk, within a chunk
    row by row, each (row, chunk) padded to a byte. MSB_PTR: int32 byte offsets into it, one per
    (chunk, group of `accelerator.rows` rows), chunk-major, and one for the end. ACT (M, K) of 2k
    bits. ACT_SCALE (M,) float32. GROUP_SUMS (M, K/g) int16, or int32 if g > 128. WGT (N, K) packed
    at `weight_bits`, low element first. W_SCALE (N, K/g) float16 or float32, or (N,) float32.
    W_MIN (N, K/g) as W_SCALE. OFFSET (N,) float64 with groups, else int32. OUT (M, N) int32 or
    float32. ROW_ORDER (M,) uint16, or int32 if `DenseOp.m` > 2^16: with `block_rows`, all tensors
    of activations lie in this order, that is their row i is row ROW_ORDER[i] of OUT. ZERO (M,)
    uint8 or int8 (16 bits for k = 8), the type of the activations: zero points of rows. W_SUM (N,)
    int32, float64 with groups: sums of a channel's weights, with groups each times its group's
    scale.

    Encoded outputs (`DenseOp.output`): OUT_LSB, OUT_PBM, OUT_MSB and OUT_MSB_PTR have the formats
    of LSB, PBM, MSB and MSB_PTR with K = N and chunks of `DenseOp.out_chunk`, so that they are the
    inputs of a next program as they are. BIAS (N,) float32 if `DenseOp.has_bias`. OUT_SCALE (1,)
    float32 is no tensor in DRAM but an argument of the launch, as M is: STORE has it in a register,
    and so MID_SCALE (1,) float32, if `DenseOp.has_mid`.

    Of attention (H key heads, T keys, D channels): QUERIES (bytes,) uint8, block behind block, each
    as it lies on chip (`isa.attention_header`); QUERY_PTR (blocks + 1,) int32, where they begin.
    KEYS, VALUES (H, T, D) int8, or, if the cache holds them otherwise, (bytes,) uint8: all heads as
    `numerics.kv_cache.store_rows` lays them out; KEY_PTR, VALUE_PTR (H, T + 1) int32 are where rows
    begin in them, and end (of keys only every eighth is stored). KEY_SCALES (H, T, 2) float32: the
    scale of the key and of the value of a token. OUT (M, heads, D) float32.
    """

    LSB = 0
    PBM = 1
    MSB = 2
    MSB_PTR = 3
    ACT = 4
    ACT_SCALE = 5
    GROUP_SUMS = 6
    WGT = 7
    W_SCALE = 8
    W_MIN = 9
    OFFSET = 10
    OUT = 11
    ROW_ORDER = 12
    OUT_LSB = 13
    OUT_PBM = 14
    OUT_MSB = 15
    OUT_MSB_PTR = 16
    OUT_SCALE = 17
    ZERO = 18
    W_SUM = 19
    QUERIES = 20
    QUERY_PTR = 21
    KEYS = 22
    VALUES = 23
    KEY_SCALES = 24
    KEY_PTR = 25
    VALUE_PTR = 26
    BIAS = 27
    MID_SCALE = 28


class Values(Protocol):
    """Evaluated operands by name: a mapping, or `program.bound.Operands`."""

    def __getitem__(self, operand: str, /) -> Any:
        """A number, or an array with one for each step."""


ByteCount = Callable[[Any, Any], Any]
"""Bytes of a row of so many columns, from the header of the program."""

Traffic = Callable[[Any, Values, Any], Any]
"""Bytes that pass a buffer's port, from the operands and the bytes of the tile."""


def ceil_div(a: Any, b: Any) -> Any:
    """``ceil(a / b)`` of whole numbers or arrays of them."""
    return -(-a // b)


def each(function: Callable[..., int], *columns: Any) -> Any:
    """Apply a function of whole numbers to every step: int64, as long as the columns.

    It is called once for each distinct combination, of which there are few.
    """
    first, *others = (np.atleast_1d(np.asarray(column, dtype=np.int64)) for column in columns)
    keys = first
    for column in others:
        keys = keys * (column.max(initial=0) + 1) + column
    _, at, which = np.unique(keys, return_index=True, return_inverse=True)
    distinct = np.stack([first, *others], axis=1)[at].tolist()
    return np.array([function(*row) for row in distinct], dtype=np.int64)[which.reshape(-1)]


def packed(bits: Callable[[Header], int]) -> ByteCount:
    """Bytes of a row of elements of `bits` bits, padded to a byte."""
    return lambda header, cols: ceil_div(cols * bits(header), 8)


def digit_bytes(header: Header, cols: Any) -> Any:
    """Bytes of a row of k-bit digits: ``ceil(cols * k / 8)``."""
    return ceil_div(cols * header.op.digit_bits, 8)


def bitmap_bytes(header: Header, cols: Any) -> Any:
    """Bytes of a row of bits: ``ceil(cols / 8)``."""
    return ceil_div(cols, 8)


def groups_of(header: Header, cols: Any) -> Any:
    """Weight groups of `cols` columns: ``ceil(cols / g)``."""
    return ceil_div(cols, max(header.op.group_size, 1))


class Mode(IntEnum):
    """How a step touches a tile: reads it, makes it, or changes it in place."""

    READ = 0
    WRITE = 1
    UPDATE = 2


@dataclass(frozen=True, eq=False)
class Tile:
    """A kind of tile on chip: rows of equal length, one behind the other.

    Attributes
    ----------
    name : str
        For people.
    buffer : Buffer
        Where it lies.
    axis : {"m", "n"}
        What its rows are: rows of activations or output channels.
    row_bytes : function of (header, columns)
        Bytes of a row, of a stream at most.
    element_bytes : function of header
        Addresses are multiples of it.
    divisible : function of header
        Whether rows of it may be read alone.
    lacking : function of header
        Why programs with that header have no such tile; None if they have.
    stream : bool
        Whether it has as many bytes as its load found digits, in no rows.
    """

    name: str
    buffer: Buffer
    axis: Axis
    row_bytes: ByteCount
    element_bytes: Callable[[Any], int] = lambda header: 1
    divisible: Callable[[Any], bool] = lambda header: True
    lacking: Callable[[Any], str | None] = lambda header: None
    stream: bool = False

    def nbytes(self, header: Any, rows: Any, cols: Any = 0) -> Any:
        """Bytes that `rows` rows of `cols` columns may occupy on chip."""
        return rows * self.row_bytes(header, cols)


def other_scheme(scheme: str) -> Callable[[Header], str | None]:
    """What is wrong with an instruction of `scheme`, from the header of its program."""
    return lambda header: (
        None
        if header.op.scheme == scheme
        else f"is of scheme {scheme}, the program of {header.op.scheme}"
    )


def _never(header: Header) -> bool:
    return False


LSB = Tile("LSB digits", Buffer.ACT, "m", digit_bytes)
PBM = Tile("bitmap", Buffer.ACT, "m", bitmap_bytes, lacking=other_scheme("sparqle"))
MSB = Tile(
    "stored MSB digits",
    Buffer.ACT,
    "m",
    digit_bytes,
    divisible=_never,
    lacking=other_scheme("sparqle"),
    stream=True,
)
MSB_PLANE = Tile("MSB digits", Buffer.ACT, "m", digit_bytes, lacking=other_scheme("dense"))
SUM = Tile(
    "group sums",
    Buffer.ACT,
    "m",
    lambda header, cols: groups_of(header, cols) * header.sum_bytes,
    lambda header: header.sum_bytes,
    lacking=lambda header: None if header.op.has_min else "the weights have no minima",
)
WGT = Tile("weights", Buffer.WGT, "n", packed(lambda header: header.op.weight_bits))
GRP = Tile(
    "group parameters",
    Buffer.WGT,
    "n",
    lambda header, cols: groups_of(header, cols) * header.op.group_parameter_bytes,
    lambda header: 2,
    _never,
    lambda header: None if header.op.group_size else "the weights have no groups",
)
ROW = Tile(
    "row parameters",
    Buffer.ACT,
    "m",
    lambda header, cols: header.row_bytes,
    lambda header: 4,
    # There may be two or three parts: all scales, all row numbers, all zero points.
    lambda header: not (header.op.block_rows or header.op.adds_shift),
    lambda header: None if header.row_bytes else "the outputs need no parameters per row",
)
ZRO = Tile(
    "zero points",
    Buffer.ACT,
    "m",
    lambda header, cols: header.op.zero_bytes,
    lambda header: header.op.zero_bytes,
    lacking=lambda header: (
        other_scheme("sparqle")(header)
        or (None if header.op.row_centres else "the digits of all rows have one centre")
    ),
)
CHN = Tile(
    "channel parameters",
    Buffer.WGT,
    "n",
    lambda header, cols: header.channel_bytes,
    lambda header: 8 if header.op.group_size else 4,
    _never,
    lambda header: None if header.channel_bytes else "the outputs need no parameters per channel",
)
ACC = Tile(
    "accumulators",
    Buffer.ACC,
    "m",
    lambda header, cols: cols * header.accumulator_bytes,
    lambda header: header.accumulator_bytes,
    _never,
)


@dataclass(frozen=True)
class Access:
    """One tile that an instruction touches.

    Attributes
    ----------
    operand : str
        Its address; None in programs that do not have it.
    tile : Tile
        What lies there.
    mode : Mode
        How (UPDATE is WRITE where the instruction's operand `zero` is set).
    rows, cols : str
        Operands with its extents; "" for no columns.
    row, col : str
        Operands with its place in the tensor; "" where it follows from what lies there.
    needed : function of header or None
        Whether programs have the operand; None: if they have such tiles.
    loaded : bool
        Whether it must be just what one load left there, all of it, of the same rows and columns
        as all others of which that is said.
    read, written : Traffic or None
        Bytes that pass the buffer's ports; None: the tile once, according to `mode`.
    """

    operand: str
    tile: Tile
    mode: Mode = Mode.READ
    rows: str = "rows"
    cols: str = "cols"
    row: str = ""
    col: str = ""
    needed: Callable[[Any], bool] | None = None
    loaded: bool = False
    read: Traffic | None = None
    written: Traffic | None = None

    def exists(self, header: Any) -> bool:
        """Whether programs with this header have it."""
        return self.needed(header) if self.needed else self.tile.lacking(header) is None

    def row_bytes(self, header: Any, values: Values) -> Any:
        """Bytes of a row, of every step."""
        return self.tile.row_bytes(header, values[self.cols] if self.cols else 0)

    def nbytes(self, header: Any, values: Values) -> Any:
        """Bytes on chip, of every step."""
        return values[self.rows] * self.row_bytes(header, values)

    def traffic(self, header: Any, values: Values, nbytes: Any) -> tuple[Any, Any]:
        """Bytes read from and written to the buffer by every step."""
        read = nbytes if self.mode != Mode.WRITE else 0
        written = nbytes if self.mode != Mode.READ else 0
        if self.read:
            read = self.read(header, values, nbytes)
        if self.written:
            written = self.written(header, values, nbytes)
        return read, written


def loads(operand: str, tile: Tile, cols: bool = True) -> Access:
    """A tile that a load makes, of the rows (and columns) that it says."""
    if cols:
        return Access(operand, tile, Mode.WRITE, row="row", col="col")
    return Access(operand, tile, Mode.WRITE, cols="", row="row")


@dataclass(frozen=True)
class Part:
    """What an instruction moves between DRAM and chip from or to one tensor.

    The parts of a load come to lie behind each other on chip.

    Attributes
    ----------
    tensor : Tensor
        The tensor.
    row_bytes : function of (header, columns)
        Bytes of a row, 0 if there is nothing to move.
    cols : str
        Operand with its columns; "" for none.
    pieces : function of (header, rows) or None
        How often that much is moved; None: once for each row.
    digits : bool
        Whether only digits that are stored count: `row_bytes` is the most, the bitmap decides.
    onchip : bool
        Whether it goes to or comes from a buffer.
    """

    tensor: Tensor
    row_bytes: ByteCount
    cols: str = "cols"
    pieces: Callable[[Any, Any], Any] | None = None
    digits: bool = False
    onchip: bool = True

    def in_row(self, header: Any, values: Values) -> tuple[Any, Any]:
        """Where the tile begins in a row of the tensor, and bytes of its rows."""
        if not self.cols:
            return 0, self.row_bytes(header, 0)
        return self.row_bytes(header, values["col"]), self.row_bytes(header, values[self.cols])

    def nbytes(self, header: Any, values: Values) -> Any:
        """Bytes of every step, of digits the most."""
        pieces = self.pieces(header, values["rows"]) if self.pieces else values["rows"]
        return pieces * self.row_bytes(header, values[self.cols] if self.cols else 0)
