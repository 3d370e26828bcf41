"""The loads, from DRAM into ACT or WGT.

What belongs to a tile lies together in memory: tile by tile (row groups x K chunk) the LSB digits,
bits, stored MSB digits and group sums of activations, and the weights with their group parameters.
So loads of one tile that follow each other are one DMA transfer (`Instruction.PIECE`), into
several places on chip. Pointers, of which a transfer fetches two, say where the pieces of
activations begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sparqle_tvm.target.isa import access
from sparqle_tvm.target.isa.access import Access, Axis, Part, Tensor, Values, groups_of, loads
from sparqle_tvm.target.isa.base import Instruction, Requirement
from sparqle_tvm.target.isa.header import Header
from sparqle_tvm.target.isa.operands import Address, Affine, Extent

MSB_POINTER_BYTES = 8
"""LD.MSB fetches the pointers to the begin and the end of its tile, 4 bytes each."""

_WEIGHTS: Mapping[str, Axis] = {"rows": "n", "cols": "k"}


def whole_chunks(chunk: int, limit: int, values: Values) -> Requirement:
    """Tiles have all columns of a chunk of `limit` columns: ``min(chunk, limit - col)``."""
    col, cols = values["col"], values["cols"]
    whole = (col % chunk == 0) & (cols == np.minimum(chunk, limit - col))
    return Requirement(whole, f"not a whole chunk of {chunk} columns", col, col + cols)


def whole_groups(header: Header, rows: int, values: Values) -> Requirement:
    """Tiles have all rows of row groups, the last of which may be shorter."""
    unit, first = header.accelerator.rows, values["row"]
    last = first + values["rows"]
    whole = (first % unit == 0) & ((last % unit == 0) | (last == rows))
    return Requirement(whole, f"there are tile pointers every {unit} rows only")


@dataclass(frozen=True)
class _ChunkLoad(Instruction):
    """Base of the loads of K chunks, of activations unless it says otherwise."""

    ROLE: ClassVar[str] = "activations"
    PIECE: ClassVar[str] = "activations"
    EXTENTS: ClassVar[Mapping[str, Axis]] = {"rows": "m", "cols": "k"}

    @classmethod
    def requirements(cls, header: Header, rows: int, values: Values) -> Iterator[Requirement]:
        """K chunks are whole."""
        yield from super().requirements(header, rows, values)
        yield whole_chunks(header.k_chunk, header.op.k, values)


@dataclass(frozen=True)
class TileLoad(_ChunkLoad):
    """Base of the loads of a tile: rows [row, row + rows), columns [col, col + cols).

    `col` is a multiple of `Header.k_chunk` and `cols` a whole chunk, ``min(k_chunk, K - col)``.

    Attributes
    ----------
    dst : Address
        Where the tile begins on chip.
    row : Affine
        First row (or output channel).
    rows : Extent
        Rows.
    col : Affine
        First column along K.
    cols : Extent
        Columns along K.
    """

    dst: Address
    row: Affine
    rows: Extent
    col: Affine
    cols: Extent

    def operands(self) -> str:
        """``dst <- LSB[row +rows, col +cols]``."""
        tile = f"[{self.row} : +{self.rows}, {self.col} : +{self.cols}]"
        return f"{self.dst} <- {self.PARTS[0].tensor.name}{tile}"


@dataclass(frozen=True)
class LdLsb(TileLoad):
    """Load LSB digits into ACT, packed as in DRAM: row pitch ``ceil(cols * k / 8)`` bytes."""

    OPCODE: ClassVar[int] = 4
    MNEMONIC: ClassVar[str] = "LD.LSB"
    ACCESSES: ClassVar[tuple[Access, ...]] = (loads("dst", access.LSB),)
    PARTS: ClassVar[tuple[Part, ...]] = (Part(Tensor.LSB, access.LSB.row_bytes),)

    @classmethod
    def problem(cls, header: Header) -> str | None:
        """In scheme ``dense`` LD.ACT makes them."""
        return access.other_scheme("sparqle")(header)


@dataclass(frozen=True)
class LdPbm(TileLoad):
    """Load the precision bitmap into ACT: row pitch ``ceil(cols / 8)`` bytes."""

    OPCODE: ClassVar[int] = 5
    MNEMONIC: ClassVar[str] = "LD.PBM"
    ACCESSES: ClassVar[tuple[Access, ...]] = (loads("dst", access.PBM),)
    PARTS: ClassVar[tuple[Part, ...]] = (Part(Tensor.PBM, access.PBM.row_bytes),)


@dataclass(frozen=True)
class LdMsb(TileLoad):
    """Load the stored MSB digits of a tile into ACT: a contiguous stream, row by row.

    Rows are found by counting the bits of the bitmap. `row` is a multiple of `accelerator.rows`,
    `rows` too unless the tile ends at M: pointers exist only there. On chip it may take what all
    digits take. Moved are its digits, known at run time, and `MSB_POINTER_BYTES`.
    """

    OPCODE: ClassVar[int] = 6
    MNEMONIC: ClassVar[str] = "LD.MSB"
    ACCESSES: ClassVar[tuple[Access, ...]] = (loads("dst", access.MSB),)
    PARTS: ClassVar[tuple[Part, ...]] = (
        Part(Tensor.MSB, access.MSB.row_bytes, digits=True),
        Part(
            Tensor.MSB_PTR,
            lambda header, cols: MSB_POINTER_BYTES,
            pieces=lambda header, rows: 1,
            onchip=False,
        ),
    )

    @classmethod
    def requirements(cls, header: Header, rows: int, values: Values) -> Iterator[Requirement]:
        """There are pointers to the tile."""
        yield from super().requirements(header, rows, values)
        yield whole_groups(header, rows, values)


@dataclass(frozen=True)
class LdSum(TileLoad):
    """Load group sums into ACT: (rows, ceil(cols / g)) of `Header.sum_bytes` bytes each."""

    OPCODE: ClassVar[int] = 7
    MNEMONIC: ClassVar[str] = "LD.SUM"
    ROLE: ClassVar[str] = "parameters"
    ACCESSES: ClassVar[tuple[Access, ...]] = (loads("dst", access.SUM),)
    PARTS: ClassVar[tuple[Part, ...]] = (Part(Tensor.GROUP_SUMS, access.SUM.row_bytes),)


@dataclass(frozen=True)
class LdWgt(TileLoad):
    """Load weights into WGT, packed: row pitch ``ceil(cols * weight_bits / 8)`` bytes.

    Rows are output channels.
    """

    OPCODE: ClassVar[int] = 8
    MNEMONIC: ClassVar[str] = "LD.WGT"
    ROLE: ClassVar[str] = "weights"
    PIECE: ClassVar[str] = "weights"
    EXTENTS: ClassVar[Mapping[str, Axis]] = _WEIGHTS
    ACCESSES: ClassVar[tuple[Access, ...]] = (loads("dst", access.WGT),)
    PARTS: ClassVar[tuple[Part, ...]] = (Part(Tensor.WGT, access.WGT.row_bytes),)


@dataclass(frozen=True)
class LdGrp(TileLoad):
    """Load group parameters of weights into WGT.

    (rows, ceil(cols / g)) scales of `DenseOp.group_dtype`, row by row; if `has_min`,
    (rows, ceil(cols / g)) minima of that type behind all scales. Only with groups. Rows are
    output channels.
    """

    OPCODE: ClassVar[int] = 9
    MNEMONIC: ClassVar[str] = "LD.GRP"
    ROLE: ClassVar[str] = "weights"
    PIECE: ClassVar[str] = "weights"
    EXTENTS: ClassVar[Mapping[str, Axis]] = _WEIGHTS
    ACCESSES: ClassVar[tuple[Access, ...]] = (loads("dst", access.GRP),)
    PARTS: ClassVar[tuple[Part, ...]] = (
        Part(Tensor.W_SCALE, lambda header, cols: header.op.scale_bytes * groups_of(header, cols)),
        Part(
            Tensor.W_MIN,
            lambda header, cols: (
                header.op.scale_bytes * header.op.has_min * groups_of(header, cols)
            ),
        ),
    )


@dataclass(frozen=True)
class LdAct(_ChunkLoad):
    """Load 2k-bit activations into ACT as two planes of k-bit digits (scheme ``dense``).

    ``rows * ceil(cols * 2k / 8)`` bytes. Plane `lsb` gets ``q & (2^k - 1)``,
    plane `msb` ``q >> k`` in two's complement; each is packed as by LD.LSB. Operands as in
    `TileLoad`.

    Attributes
    ----------
    lsb, msb : Address
        Where the planes begin on chip.
    row, rows, col, cols
        The tile.
    """

    OPCODE: ClassVar[int] = 10
    MNEMONIC: ClassVar[str] = "LD.ACT"
    ACCESSES: ClassVar[tuple[Access, ...]] = (
        loads("lsb", access.LSB),
        loads("msb", access.MSB_PLANE),
    )
    PARTS: ClassVar[tuple[Part, ...]] = (
        Part(Tensor.ACT, access.packed(lambda header: 2 * header.op.digit_bits)),
    )

    lsb: Address
    msb: Address
    row: Affine
    rows: Extent
    col: Affine
    cols: Extent

    def operands(self) -> str:
        """``lsb, msb <- ACT[row +rows, col +cols]``."""
        tile = f"[{self.row} : +{self.rows}, {self.col} : +{self.cols}]"
        return f"{self.lsb}, {self.msb} <- ACT{tile}"


@dataclass(frozen=True)
class _VectorLoad(Instruction):
    """Base of the loads of parameters: `rows` rows or channels from `row` on. One DMA transfer."""

    ROLE: ClassVar[str] = "parameters"
    SOURCE: ClassVar[str] = ""

    dst: Address
    row: Affine
    rows: Extent

    def operands(self) -> str:
        """``dst <- ROWS[row +rows]``."""
        return f"{self.dst} <- {self.SOURCE}[{self.row} : +{self.rows}]"


def _element(tensor: Tensor, nbytes: Any) -> Part:
    """A part of `nbytes(header)` bytes per row or channel."""
    return Part(tensor, lambda header, cols: nbytes(header), cols="")


@dataclass(frozen=True)
class LdRow(_VectorLoad):
    """Load what DRAIN and ST.OUT need of `rows` rows from `row` on into ACT.

    (rows,) float32 activation scales if the output is float32; with `block_rows`, behind them
    (rows,) row numbers of `Header.order_bytes` bytes; with `adds_shift`, last, (rows,) zero points.
    Refused where that is nothing (`Header.row_bytes` == 0).
    """

    OPCODE: ClassVar[int] = 11
    MNEMONIC: ClassVar[str] = "LD.ROW"
    SOURCE: ClassVar[str] = "ROWS"
    EXTENTS: ClassVar[Mapping[str, Axis]] = {"rows": "m"}
    ACCESSES: ClassVar[tuple[Access, ...]] = (loads("dst", access.ROW, cols=False),)
    PARTS: ClassVar[tuple[Part, ...]] = (
        _element(Tensor.ACT_SCALE, lambda header: 4 * header.op.scaled),
        _element(Tensor.ROW_ORDER, lambda header: header.order_bytes),
        _element(Tensor.ZERO, lambda header: header.op.shift_bytes),
    )


@dataclass(frozen=True)
class LdZro(_VectorLoad):
    """Load the zero points of `rows` rows from `row` on into ACT, for MMA.MSB.

    Only where digits are centred on them (`DenseOp.row_centres`).
    """

    OPCODE: ClassVar[int] = 20
    MNEMONIC: ClassVar[str] = "LD.ZRO"
    SOURCE: ClassVar[str] = "ZERO"
    PIECE: ClassVar[str] = "activations"
    EXTENTS: ClassVar[Mapping[str, Axis]] = {"rows": "m"}
    ACCESSES: ClassVar[tuple[Access, ...]] = (loads("dst", access.ZRO, cols=False),)
    PARTS: ClassVar[tuple[Part, ...]] = (
        _element(Tensor.ZERO, lambda header: header.op.zero_bytes),
    )


@dataclass(frozen=True)
class LdChn(_VectorLoad):
    """Load what DRAIN needs of `rows` channels from `row` on into WGT.

    Without groups (rows,) float32 weight scales if the output is float32; behind them (rows,)
    offsets if `has_offset`; behind those, with `adds_shift`, (rows,) sums of weights; last, with
    `has_bias`, (rows,) float32 biases. Offsets and sums are int32, float64 with groups. Refused
    where that is nothing: `Header.channel_bytes` is 0.
    """

    OPCODE: ClassVar[int] = 12
    MNEMONIC: ClassVar[str] = "LD.CHN"
    SOURCE: ClassVar[str] = "CHANNELS"
    EXTENTS: ClassVar[Mapping[str, Axis]] = {"rows": "n"}
    ACCESSES: ClassVar[tuple[Access, ...]] = (loads("dst", access.CHN, cols=False),)
    PARTS: ClassVar[tuple[Part, ...]] = (
        _element(
            Tensor.W_SCALE, lambda header: 4 * (header.op.scaled and not header.op.group_size)
        ),
        _element(Tensor.OFFSET, lambda header: header.op.has_offset * header.accumulator_bytes),
        _element(Tensor.W_SUM, lambda header: header.op.adds_shift * header.accumulator_bytes),
        _element(Tensor.BIAS, lambda header: 4 * header.op.has_bias),
    )
