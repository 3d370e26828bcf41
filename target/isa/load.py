"""The loads: one DMA transfer each, from DRAM into ACT or WGT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from sparqle_tvm.target.isa.base import Instruction, Tensor, ceil_div
from sparqle_tvm.target.isa.header import Engine, Header
from sparqle_tvm.target.isa.operands import Address, Affine, Extent

MSB_POINTER_BYTES = 8
"""LD.MSB fetches the pointers to the begin and the end of its tile, 4 bytes each."""


@dataclass(frozen=True)
class TileLoad(Instruction):
    """Base of the loads of a tile: rows [row, row + rows), columns [col, col + cols).

    Costs one DMA transfer, `transfer_cycles` of `dram_bytes`. `col` is a multiple of
    `Header.k_chunk` and `cols` a whole chunk, ``min(k_chunk, K - col)``.

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

    ENGINE: ClassVar[Engine] = Engine.LOAD
    TRACE: ClassVar[tuple[str, ...]] = ("dst", "row", "rows", "col", "cols")
    TENSOR: ClassVar[Tensor] = Tensor.LSB

    dst: Address
    row: Affine
    rows: Extent
    col: Affine
    cols: Extent

    @classmethod
    def row_bytes(cls, header: Header, cols: Any) -> Any:
        """Bytes of a row of `cols` columns on chip (number or array)."""
        raise AssertionError(f"{cls.__name__} does not say how long a row is")

    @classmethod
    def onchip_bytes(cls, header: Header, rows: Any, cols: Any) -> Any:
        """Bytes that the tile may occupy on chip."""
        return rows * cls.row_bytes(header, cols)

    @classmethod
    def dram_bytes(cls, header: Header, rows: Any, cols: Any) -> Any:
        """Bytes moved from DRAM."""
        return cls.onchip_bytes(header, rows, cols)

    def operands(self) -> str:
        """``dst <- LSB[row +rows, col +cols]``."""
        tile = f"[{self.row} : +{self.rows}, {self.col} : +{self.cols}]"
        return f"{self.dst} <- {self.TENSOR.name}{tile}"


@dataclass(frozen=True)
class LdLsb(TileLoad):
    """Load LSB digits into ACT, packed as in DRAM: row pitch ``ceil(cols * k / 8)`` bytes."""

    OPCODE: ClassVar[int] = 4
    MNEMONIC: ClassVar[str] = "LD.LSB"
    TENSOR: ClassVar[Tensor] = Tensor.LSB

    @classmethod
    def row_bytes(cls, header: Header, cols: Any) -> Any:
        """``ceil(cols * k / 8)``."""
        return ceil_div(cols * header.op.digit_bits, 8)


@dataclass(frozen=True)
class LdPbm(TileLoad):
    """Load the precision bitmap into ACT: row pitch ``ceil(cols / 8)`` bytes."""

    OPCODE: ClassVar[int] = 5
    MNEMONIC: ClassVar[str] = "LD.PBM"
    TENSOR: ClassVar[Tensor] = Tensor.PBM

    @classmethod
    def row_bytes(cls, header: Header, cols: Any) -> Any:
        """``ceil(cols / 8)``."""
        return ceil_div(cols, 8)


@dataclass(frozen=True)
class LdMsb(TileLoad):
    """Load the stored MSB digits of a tile into ACT: a contiguous stream, row by row.

    Rows are found by counting the bits of the bitmap. `row` is a multiple of `accelerator.rows`,
    `rows` too unless the tile ends at M: pointers exist only there. On chip it may take what all
    digits take (`onchip_bytes`). Moved are its digits, known at run time, and
    `MSB_POINTER_BYTES`, in one transfer.
    """

    OPCODE: ClassVar[int] = 6
    MNEMONIC: ClassVar[str] = "LD.MSB"
    TENSOR: ClassVar[Tensor] = Tensor.MSB

    @classmethod
    def row_bytes(cls, header: Header, cols: Any) -> Any:
        """``ceil(cols * k / 8)``, if all digits are stored."""
        return ceil_div(cols * header.op.digit_bits, 8)

    @classmethod
    def dram_bytes(cls, header: Header, rows: Any, cols: Any) -> Any:
        """At most: all digits and the two pointers."""
        return cls.onchip_bytes(header, rows, cols) + MSB_POINTER_BYTES


@dataclass(frozen=True)
class LdSum(TileLoad):
    """Load group sums into ACT: (rows, ceil(cols / g)) of `Header.sum_bytes` bytes each."""

    OPCODE: ClassVar[int] = 7
    MNEMONIC: ClassVar[str] = "LD.SUM"
    TENSOR: ClassVar[Tensor] = Tensor.GROUP_SUMS

    @classmethod
    def row_bytes(cls, header: Header, cols: Any) -> Any:
        """``ceil(cols / g) * sum_bytes``."""
        return ceil_div(cols, max(header.op.group_size, 1)) * header.sum_bytes


@dataclass(frozen=True)
class LdWgt(TileLoad):
    """Load weights into WGT, packed: row pitch ``ceil(cols * weight_bits / 8)`` bytes.

    Rows are output channels.
    """

    OPCODE: ClassVar[int] = 8
    MNEMONIC: ClassVar[str] = "LD.WGT"
    TENSOR: ClassVar[Tensor] = Tensor.WGT

    @classmethod
    def row_bytes(cls, header: Header, cols: Any) -> Any:
        """``ceil(cols * weight_bits / 8)``."""
        return ceil_div(cols * header.op.weight_bits, 8)


@dataclass(frozen=True)
class LdGrp(TileLoad):
    """Load group parameters of weights into WGT, in one transfer.

    (rows, ceil(cols / g)) float16 scales, row by row; if `has_min`, (rows, ceil(cols / g))
    float16 minima behind all scales. Only with groups. Rows are output channels.
    """

    OPCODE: ClassVar[int] = 9
    MNEMONIC: ClassVar[str] = "LD.GRP"
    TENSOR: ClassVar[Tensor] = Tensor.W_SCALE

    @classmethod
    def row_bytes(cls, header: Header, cols: Any) -> Any:
        """``ceil(cols / g) * 2``, twice with minima."""
        return ceil_div(cols, max(header.op.group_size, 1)) * header.op.group_parameter_bytes


@dataclass(frozen=True)
class LdAct(Instruction):
    """Load 2k-bit activations into ACT as two planes of k-bit digits (scheme ``dense``).

    One DMA transfer of ``rows * ceil(cols * 2k / 8)`` bytes. Plane `lsb` gets ``q & (2^k - 1)``,
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
    ENGINE: ClassVar[Engine] = Engine.LOAD
    TRACE: ClassVar[tuple[str, ...]] = ("lsb", "msb", "row", "rows", "col", "cols")

    lsb: Address
    msb: Address
    row: Affine
    rows: Extent
    col: Affine
    cols: Extent

    @classmethod
    def plane_bytes(cls, header: Header, rows: Any, cols: Any) -> Any:
        """Bytes of one plane on chip."""
        return rows * ceil_div(cols * header.op.digit_bits, 8)

    @classmethod
    def dram_bytes(cls, header: Header, rows: Any, cols: Any) -> Any:
        """Bytes moved from DRAM."""
        return rows * ceil_div(cols * 2 * header.op.digit_bits, 8)

    def operands(self) -> str:
        """``lsb, msb <- ACT[row +rows, col +cols]``."""
        tile = f"[{self.row} : +{self.rows}, {self.col} : +{self.cols}]"
        return f"{self.lsb}, {self.msb} <- ACT{tile}"


@dataclass(frozen=True)
class LdRow(Instruction):
    """Load what DRAIN and ST.OUT need of `rows` rows from `row` on into ACT. One DMA transfer.

    (rows,) float32 activation scales if the output is float32; with `block_rows`, behind them
    (rows,) row numbers of `Header.order_bytes` bytes. Refused where that is nothing
    (`Header.row_bytes` == 0).
    """

    OPCODE: ClassVar[int] = 11
    MNEMONIC: ClassVar[str] = "LD.ROW"
    ENGINE: ClassVar[Engine] = Engine.LOAD
    TRACE: ClassVar[tuple[str, ...]] = ("dst", "row", "rows")

    dst: Address
    row: Affine
    rows: Extent

    @classmethod
    def onchip_bytes(cls, header: Header, rows: Any) -> Any:
        """Bytes on chip and in DRAM."""
        return rows * header.row_bytes

    dram_bytes = onchip_bytes

    def operands(self) -> str:
        """``dst <- ROWS[row +rows]``."""
        return f"{self.dst} <- ROWS[{self.row} : +{self.rows}]"


@dataclass(frozen=True)
class LdChn(Instruction):
    """Load what DRAIN needs of `rows` channels from `row` on into WGT. One DMA transfer.

    Without groups: (rows,) float32 weight scales if the output is float32, behind them (rows,)
    int32 offsets if `has_offset`. With groups: (rows,) float64 offsets if `has_offset`. Refused
    where that is nothing (`Header.channel_bytes` == 0).
    """

    OPCODE: ClassVar[int] = 12
    MNEMONIC: ClassVar[str] = "LD.CHN"
    ENGINE: ClassVar[Engine] = Engine.LOAD
    TRACE: ClassVar[tuple[str, ...]] = ("dst", "row", "rows")

    dst: Address
    row: Affine
    rows: Extent

    @classmethod
    def onchip_bytes(cls, header: Header, rows: Any) -> Any:
        """Bytes on chip and in DRAM."""
        return rows * header.channel_bytes

    dram_bytes = onchip_bytes

    def operands(self) -> str:
        """``dst <- CHANNELS[row +rows]``."""
        return f"{self.dst} <- CHANNELS[{self.row} : +{self.rows}]"
