"""The instructions: meaning, operands, binary form, text and cost of each, in one place.

Three engines execute a program beside each other, each its own instructions in order. LOAD moves
tiles from DRAM into the buffers ACT and WGT. MMA multiplies them into accumulators in ACC. STORE
drains accumulators into outputs and moves those to DRAM. Tokens order the engines.

A tile is (rows, columns) of a tensor in DRAM; "rows" are output channels for weights, "columns"
always count along K. `M` rows, `K` = `in_features`, `N` = `out_features`, k = `digit_bits`, g =
`group_size`. On chip a tile lies row by row, each row padded to a byte.

In the trace (`Program.bind`) a step is one row of int64: opcode, index of the instruction in
`Program.instructions`, engine, then the evaluated operands in the order of the class's `TRACE`.
An `Address` is evaluated to a byte address (-1 for None), a `Condition` to 0 or 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import IntEnum
from types import MappingProxyType
from typing import Any, ClassVar

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.target.header import Engine, Header, Queue
from sparqle_tvm.target.operands import (
    CODECS,
    NEVER,
    Address,
    Affine,
    Condition,
    Extent,
    Limit,
    Reader,
)

TRACE_COLUMNS = 16
TRACE_OPCODE, TRACE_INSTRUCTION, TRACE_ENGINE, TRACE_OPERANDS = 0, 1, 2, 3

MSB_POINTER_BYTES = 8
"""LD.MSB fetches the pointers to the begin and the end of its tile, 4 bytes each."""


class Tensor(IntEnum):
    """Tensors in DRAM.

    LSB (M, ceil(K*k/8)) uint8; PBM (M, ceil(K/8)) uint8, both as in the transport form.
    MSB: digit stream, K chunk by K chunk, within a chunk row by row, each (row, chunk) padded to
    a byte. MSB_PTR: int32 byte offsets into it, one per (chunk, group of `accelerator.rows`
    rows), chunk-major, and one for the end. ACT (M, K) of 2k bits. ACT_SCALE (M,) float32.
    GROUP_SUMS (M, K/g) int16, or int32 if g >= 256. WGT (N, K) packed at `weight_bits`, low
    element first. W_SCALE (N, K/g) float16 or (N,) float32. W_MIN (N, K/g) float16. OFFSET (N,)
    float64 with groups, else int32. OUT (M, N) int32 or float32.
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


def ceil_div(a: Any, b: Any) -> Any:
    """``ceil(a / b)`` of whole numbers or arrays of them."""
    return -(-a // b)


def transfer_cycles(header: Header, nbytes: int) -> int:
    """Cycles of one DMA transfer of `nbytes` > 0 bytes: a descriptor, then the bytes."""
    accelerator = header.accelerator
    fixed = accelerator.dma_descriptor_cycles
    return fixed + int(-(-nbytes // accelerator.dram_bytes_per_cycle))


@dataclass(frozen=True)
class Instruction:
    """Base of all instructions.

    Attributes
    ----------
    OPCODE : int
        Number in the binary form and in the trace.
    MNEMONIC : str
        Name in the listing.
    ENGINE : Engine
        Who executes it (`WAIT` and `SIGNAL`: see `engine`).
    TRACE : tuple of str
        Operands in the order of the trace.
    """

    OPCODE: ClassVar[int] = -1
    MNEMONIC: ClassVar[str] = ""
    ENGINE: ClassVar[Engine] = Engine.LOAD
    TRACE: ClassVar[tuple[str, ...]] = ()

    @property
    def engine(self) -> Engine:
        """The engine that executes it."""
        return self.ENGINE

    @classmethod
    def column(cls, operand: str) -> int:
        """Column of an operand in the trace."""
        return TRACE_OPERANDS + cls.TRACE.index(operand)

    def to_bytes(self) -> bytes:
        """Binary form: the opcode in one byte, then the operands in order of declaration."""
        body = (CODECS[str(f.type)][0](getattr(self, f.name)) for f in fields(self))
        return bytes((self.OPCODE,)) + b"".join(body)

    @classmethod
    def read(cls, reader: Reader) -> Instruction:
        """Read the operands of this class."""
        return cls(*(CODECS[str(f.type)][1](reader) for f in fields(cls)))

    def operands(self) -> str:
        """Text of the operands."""
        return ", ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))

    def __str__(self) -> str:
        """Assembly text in one line."""
        return f"{self.MNEMONIC:<8} {self.operands()}".rstrip()


@dataclass(frozen=True)
class Loop(Instruction):
    """Repeat the instructions up to the matching END, ``ceil(limit / step)`` times.

    Every engine runs the loop on its own instructions. Costs nothing, is not in the trace.

    Attributes
    ----------
    loop : int
        Its variable, unique in the program: 0, 1, 2, ...
    limit : int or "M"
        Extent of what is tiled.
    step : int
        Extent of a tile.
    """

    OPCODE: ClassVar[int] = 0
    MNEMONIC: ClassVar[str] = "LOOP"

    loop: int
    limit: Limit
    step: int

    def operands(self) -> str:
        """``i0 < ceil(M / 64)``."""
        return f"i{self.loop} < n{self.loop} = ceil({self.limit} / {self.step})"


@dataclass(frozen=True)
class End(Instruction):
    """End of the innermost open LOOP. Costs nothing, is not in the trace."""

    OPCODE: ClassVar[int] = 1
    MNEMONIC: ClassVar[str] = "END"


@dataclass(frozen=True)
class Wait(Instruction):
    """The consumer of `queue` waits until it holds a token, and takes it. 0 cycles."""

    OPCODE: ClassVar[int] = 2
    MNEMONIC: ClassVar[str] = "WAIT"
    TRACE: ClassVar[tuple[str, ...]] = ("queue",)

    queue: int

    @property
    def engine(self) -> Engine:
        """The queue's consumer."""
        return Queue(self.queue).consumer

    def operands(self) -> str:
        """``LOAD, ACT_FREE``."""
        return f"{self.engine.name}, {Queue(self.queue).name}"


@dataclass(frozen=True)
class Signal(Instruction):
    """The producer of `queue` puts a token into it, its earlier work being done. 0 cycles."""

    OPCODE: ClassVar[int] = 3
    MNEMONIC: ClassVar[str] = "SIGNAL"
    TRACE: ClassVar[tuple[str, ...]] = ("queue",)

    queue: int

    @property
    def engine(self) -> Engine:
        """The queue's producer."""
        return Queue(self.queue).producer

    def operands(self) -> str:
        """``LOAD, ACT_READY``."""
        return f"{self.engine.name}, {Queue(self.queue).name}"


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
        raise NotImplementedError

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
        return ceil_div(cols * header.digit_bits, 8)


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
        return ceil_div(cols * header.digit_bits, 8)

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
        return ceil_div(cols, max(header.group_size, 1)) * header.sum_bytes


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
        return ceil_div(cols * header.weight_bits, 8)


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
        return ceil_div(cols, max(header.group_size, 1)) * (4 if header.has_min else 2)


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
        return rows * ceil_div(cols * header.digit_bits, 8)

    @classmethod
    def dram_bytes(cls, header: Header, rows: Any, cols: Any) -> Any:
        """Bytes moved from DRAM."""
        return rows * ceil_div(cols * 2 * header.digit_bits, 8)

    def operands(self) -> str:
        """``lsb, msb <- ACT[row +rows, col +cols]``."""
        tile = f"[{self.row} : +{self.rows}, {self.col} : +{self.cols}]"
        return f"{self.lsb}, {self.msb} <- ACT{tile}"


@dataclass(frozen=True)
class LdRow(Instruction):
    """Load activation scales into ACT: `rows` float32 from row `row` on. One DMA transfer."""

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
        return rows * 4

    dram_bytes = onchip_bytes

    def operands(self) -> str:
        """``dst <- ACT_SCALE[row +rows]``."""
        return f"{self.dst} <- ACT_SCALE[{self.row} : +{self.rows}]"


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


def split_steps(header: Header, k: Any, row_split: Any) -> Any:
    """Steps of `lanes` columns in the longest of `row_split` segments of `k` columns.

    Segment s has the columns ``[s * w, min(k, (s + 1) * w))`` with ``w = lanes *
    ceil(ceil(k / lanes) / row_split)``.
    """
    return ceil_div(ceil_div(k, header.accelerator.lanes), row_split)


def reduction_cycles(header: Header, n: int, row_split: int) -> int:
    """Cycles to add the `row_split` partial sums of every column block."""
    return int(ceil_div(n, header.accelerator.cols)) * (row_split - 1).bit_length()


def dense_span_steps(header: Header, k: int, row_split: int) -> int:
    """Steps of a PE row for `k` dense columns, longest segment.

    If not `accelerator.msb_across_groups`, a group begins a new step (segments are then whole
    groups where a group is not a divisor of the segment; see `split_steps` for their width).
    """
    lanes, group = header.accelerator.lanes, header.group_size
    if header.accelerator.msb_across_groups or not group:
        return int(split_steps(header, k, row_split))
    width = lanes * int(split_steps(header, k, row_split))
    longest = 0
    for begin in range(0, k, width):
        end, steps, at = min(k, begin + width), 0, begin
        while at < end:
            after = min(end, (at // group + 1) * group)
            steps += int(ceil_div(after - at, lanes))
            at = after
        longest = max(longest, steps)
    return longest


@dataclass(frozen=True)
class MmaLsb(Instruction):
    """Multiply the LSB plane with the weights: ``acc[i, j] (+)= sum_c lsb[i, c] * wgt[j, c]``.

    m x n x k digits; LSB digits as stored (biased ones are mended by the offset in DRAIN), all
    weight slices. Without groups acc is int32. With groups, the int32 sum of each group times
    its float16 scale is added to the 64-bit accumulator. Accumulators lie row by row, (m, n),
    `Header.accumulator_bytes` each. If `zero`, they are cleared first.

    Cycles: ``ceil(m / rows) * ceil(n / cols) * ceil(k / lanes)`` per weight slice. With
    `row_split` r > 1 (needs m * r <= rows) the columns are dealt in r segments to r PE rows
    each: ``ceil(n / cols) * split_steps`` per slice, plus `reduction_cycles` once.

    Attributes
    ----------
    acc, lsb, wgt : Address
        Tiles in ACC, ACT, WGT. `lsb` holds rows of the tile that was loaded, all its columns.
    grp : Address or None
        Group parameters in WGT, with groups only.
    m, n, k : Extent
        Rows, channels, columns.
    zero : Condition
        When the accumulators begin at zero.
    row_split : int
        PE rows per activation row, >= 1.
    """

    OPCODE: ClassVar[int] = 13
    MNEMONIC: ClassVar[str] = "MMA.LSB"
    ENGINE: ClassVar[Engine] = Engine.MMA
    TRACE: ClassVar[tuple[str, ...]] = (
        "acc",
        "lsb",
        "wgt",
        "grp",
        "m",
        "n",
        "k",
        "zero",
        "row_split",
    )

    acc: Address
    lsb: Address
    wgt: Address
    grp: Address | None
    m: Extent
    n: Extent
    k: Extent
    zero: Condition = NEVER
    row_split: int = 1

    @classmethod
    def cycles(cls, header: Header, m: int, n: int, k: int, row_split: int) -> int:
        """Cycles, see the class."""
        accelerator = header.accelerator
        groups = int(ceil_div(m, accelerator.rows))
        blocks = int(ceil_div(n, accelerator.cols)) * header.weight_slices
        steps = dense_span_steps(header, k, row_split)
        return groups * blocks * steps + reduction_cycles(header, n, row_split)


@dataclass(frozen=True)
class MmaMsb(Instruction):
    """Multiply the stored MSB digits with the weights and add ``2^k`` times that to acc.

    Operands, accumulators and groups as in `MmaLsb`. Digits are two's complement.

    Cycles: ``ceil(n / cols) * sum over groups of `accelerator.rows` rows of the max over their
    rows of ceil(nnz / lanes)`` per weight slice, nnz the set bits of the row in the bitmap tile;
    if not `accelerator.msb_across_groups`, ceil per weight group and summed up. With `row_split`
    r > 1: the max runs over rows and segments (`split_steps`), plus `reduction_cycles` once.

    Attributes
    ----------
    acc, pbm, msb, wgt : Address
        Tiles in ACC, ACT, ACT, WGT. `msb` is a whole tile as it was loaded, `pbm` its bits.
    grp, m, n, k, zero, row_split
        As in `MmaLsb`.
    """

    OPCODE: ClassVar[int] = 14
    MNEMONIC: ClassVar[str] = "MMA.MSB"
    ENGINE: ClassVar[Engine] = Engine.MMA
    TRACE: ClassVar[tuple[str, ...]] = (
        *("acc", "pbm", "msb", "wgt", "grp", "m", "n", "k", "zero", "row_split"),
    )

    acc: Address
    pbm: Address
    msb: Address
    wgt: Address
    grp: Address | None
    m: Extent
    n: Extent
    k: Extent
    zero: Condition = NEVER
    row_split: int = 1


@dataclass(frozen=True)
class MmaDns(Instruction):
    """Multiply a dense MSB plane (scheme ``dense``) and add ``2^k`` times that to acc.

    As `MmaLsb`, in cycles too; digits are two's complement. `msb` is the plane of LD.ACT.
    """

    OPCODE: ClassVar[int] = 15
    MNEMONIC: ClassVar[str] = "MMA.DNS"
    ENGINE: ClassVar[Engine] = Engine.MMA
    TRACE: ClassVar[tuple[str, ...]] = (
        *("acc", "msb", "wgt", "grp", "m", "n", "k", "zero", "row_split"),
    )

    acc: Address
    msb: Address
    wgt: Address
    grp: Address | None
    m: Extent
    n: Extent
    k: Extent
    zero: Condition = NEVER
    row_split: int = 1

    @classmethod
    def cycles(cls, header: Header, m: int, n: int, k: int, row_split: int) -> int:
        """Cycles, as of `MmaLsb`."""
        return MmaLsb.cycles(header, m, n, k, row_split)


@dataclass(frozen=True)
class MmaMin(Instruction):
    """Add ``sum over groups of sum[i, group] * min[j, group]`` to acc (with minima only).

    0 cycles: the scale unit of a PE does it beside the MACs.

    Attributes
    ----------
    acc, sum, grp : Address
        Accumulators in ACC, group sums in ACT, group parameters in WGT.
    m, n, k : Extent
        Rows, channels, columns (``ceil(k / g)`` groups).
    zero : Condition
        When the accumulators begin at zero.
    """

    OPCODE: ClassVar[int] = 16
    MNEMONIC: ClassVar[str] = "MMA.MIN"
    ENGINE: ClassVar[Engine] = Engine.MMA
    TRACE: ClassVar[tuple[str, ...]] = ("acc", "sum", "grp", "m", "n", "k", "zero")

    acc: Address
    sum: Address
    grp: Address
    m: Extent
    n: Extent
    k: Extent
    zero: Condition = NEVER


@dataclass(frozen=True)
class Drain(Instruction):
    """Turn accumulators into outputs, in place: an output takes its accumulator's cell.

    The cell keeps its size (`Header.accumulator_bytes`); the output is its first 4 bytes.
    int32: ``acc + offset``. float32 without groups: ``(float32(acc + offset) * row) * w_scale``;
    with groups ``float32(acc + offset) * row``; offset 0 if not `has_offset`.

    Cycles: ``ceil(m * n / drain_elements_per_cycle)`` on the STORE engine.

    Attributes
    ----------
    acc : Address
        Accumulators (m, n), as the MMAs made them.
    row : Address or None
        Activation scales in ACT of these rows; None for int32.
    chn : Address or None
        Channel parameters in WGT as LD.CHN loaded them; None if `Header.channel_bytes` is 0.
    m, n : Extent
        Rows, channels.
    """

    OPCODE: ClassVar[int] = 17
    MNEMONIC: ClassVar[str] = "DRAIN"
    ENGINE: ClassVar[Engine] = Engine.STORE
    TRACE: ClassVar[tuple[str, ...]] = ("acc", "row", "chn", "m", "n")

    acc: Address
    row: Address | None
    chn: Address | None
    m: Extent
    n: Extent

    @classmethod
    def cycles(cls, header: Header, m: int, n: int) -> int:
        """Cycles, see the class."""
        return int(ceil_div(m * n, header.accelerator.drain_elements_per_cycle))


@dataclass(frozen=True)
class StOut(Instruction):
    """Store drained outputs (rows, cols) to OUT at (row, col): one DMA transfer.

    Moves ``rows * cols * Header.output_bytes`` bytes. Columns are output channels here.

    Attributes
    ----------
    acc : Address
        Where DRAIN left them.
    row, col : Affine
        First row and channel.
    rows, cols : Extent
        Rows and channels.
    """

    OPCODE: ClassVar[int] = 18
    MNEMONIC: ClassVar[str] = "ST.OUT"
    ENGINE: ClassVar[Engine] = Engine.STORE
    TRACE: ClassVar[tuple[str, ...]] = ("acc", "row", "rows", "col", "cols")

    acc: Address
    row: Affine
    rows: Extent
    col: Affine
    cols: Extent

    @classmethod
    def dram_bytes(cls, header: Header, rows: Any, cols: Any) -> Any:
        """Bytes moved to DRAM."""
        return rows * cols * header.output_bytes

    def operands(self) -> str:
        """``OUT[row +rows, col +cols] <- acc``."""
        return f"OUT[{self.row} : +{self.rows}, {self.col} : +{self.cols}] <- {self.acc}"


INSTRUCTIONS: Mapping[int, type[Instruction]] = MappingProxyType(
    {
        cls.OPCODE: cls
        for cls in (
            *(Loop, End, Wait, Signal),
            *(LdLsb, LdPbm, LdMsb, LdSum, LdWgt, LdGrp, LdAct, LdRow, LdChn),
            *(MmaLsb, MmaMsb, MmaDns, MmaMin, Drain, StOut),
        )
    }
)
"""Every instruction class by its opcode."""


def read_instruction(reader: Reader) -> Instruction:
    """Read one instruction.

    Raises
    ------
    ProgramError
        If the opcode is unknown or an operand malformed.
    """
    opcode = reader.take(1)[0]
    if opcode not in INSTRUCTIONS:
        raise ProgramError(f"unknown opcode {opcode}")
    return INSTRUCTIONS[opcode].read(reader)
