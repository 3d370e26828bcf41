"""The instructions of the array and of the STORE engine."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.target.isa.base import Instruction, ceil_div
from sparqle_tvm.target.isa.header import Engine, Header
from sparqle_tvm.target.isa.operands import NEVER, Address, Affine, Condition, Extent


def split_steps(header: Header, k: Any, row_split: Any) -> Any:
    """Steps of `lanes` columns in the longest of `row_split` segments of `k` columns.

    Segment s has the columns ``[s * w, min(k, (s + 1) * w))`` with ``w = lanes *
    ceil(ceil(k / lanes) / row_split)``.
    """
    return ceil_div(ceil_div(k, header.accelerator.lanes), row_split)


def reduction_cycles(header: Header, n: int, row_split: int) -> int:
    """Cycles to add the `row_split` partial sums of every column block."""
    return int(ceil_div(n, header.accelerator.cols)) * (row_split - 1).bit_length()


BURST_BYTES = 32
"""Least that DRAM moves: 16 beats of an LPDDR4 channel (16 bits), 4 of an HBM2 one (64 bits)."""


def burst_bytes(nbytes: Any) -> Any:
    """Bytes that a piece of `nbytes` on its own moves: whole bursts."""
    return ceil_div(nbytes, BURST_BYTES) * BURST_BYTES


def step_spans(header: Header, k: int, row_split: int) -> list[tuple[int, int, int]]:
    """Spans of columns that share no step of a PE: (segment, begin, end), in order.

    A span is a segment (see `split_steps`); if not `accelerator.msb_across_groups`, each weight
    group begins a new span within its segment.
    """
    width = header.accelerator.lanes * int(split_steps(header, k, row_split))
    alone = header.op.group_size and not header.accelerator.msb_across_groups
    group = header.op.group_size if alone else k
    cuts = sorted({*range(0, k, width), *range(0, k, group), k})
    return [(begin // width, begin, end) for begin, end in itertools.pairwise(cuts)]


def dense_span_steps(header: Header, k: int, row_split: int) -> int:
    """Steps of the longest segment if all `k` columns are dense."""
    steps: Counter[int] = Counter()
    for segment, begin, end in step_spans(header, k, row_split):
        steps[segment] += int(ceil_div(end - begin, header.accelerator.lanes))
    return max(steps.values())


@dataclass(frozen=True)
class MmaLsb(Instruction):
    """Multiply the LSB plane with the weights: ``acc[i, j] (+)= sum_c lsb[i, c] * wgt[j, c]``.

    m x n x k digits, all weight slices. Digits of the window ``unsigned`` are read as they lie
    in ACT, 0 to 2^k - 1; those of ``signed``, stored as digit + 2^(k-1), with their top bit
    flipped, which makes them two's complement. Without groups acc is int32. With groups, the int32
    sum of each group times its float16 scale is added to the 64-bit accumulator. Accumulators lie
    row by row, (m, n), `Header.accumulator_bytes` each. If `zero`, they are cleared first.

    Cycles: ``ceil(m / rows) * ceil(n / cols) * ceil(k / lanes)`` per weight slice; if not
    `accelerator.msb_across_groups`, ceil per weight group and summed up. With `row_split` r > 1
    (needs m * r <= rows) the columns are dealt in r segments to r PE rows each:
    ``ceil(n / cols) * split_steps`` per slice, plus `reduction_cycles` once.

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
        blocks = int(ceil_div(n, accelerator.cols)) * header.op.weight_slices
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

    @classmethod
    def cycles(cls, header: Header, bits: NDArray[np.bool_], n: int, row_split: int) -> int:
        """Cycles, see the class; `bits` is the bitmap tile, bool (m, k). The simulator's rule."""
        lanes, rows = header.accelerator.lanes, header.accelerator.rows
        m, k = bits.shape
        segments = np.zeros((m, row_split), dtype=np.int64)
        for segment, begin, end in step_spans(header, k, row_split):
            segments[:, segment] += ceil_div(np.count_nonzero(bits[:, begin:end], axis=1), lanes)
        slowest = np.maximum.reduceat(segments.max(axis=1), np.arange(0, m, rows))
        blocks = int(ceil_div(n, header.accelerator.cols)) * header.op.weight_slices
        return blocks * int(slowest.sum()) + reduction_cycles(header, n, row_split)


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
    with groups ``float32(acc + offset) * row``; offset 0 if not `has_offset`. encoded: the int32
    ``min(max(round(y / out_scale) + out_zero, out_low), out_high)`` with y as for float32, a
    float32 division and ties to even.

    Only a static scale: one per row depends on all N outputs of the row, which a tile does not
    have. Such outputs leave as float32, and the vector unit quantizes them.

    Cycles: ``ceil(m * n / drain_elements_per_cycle)`` on the STORE engine; scaling, quantizing
    and cutting into digits are stages of one pipeline, as wide as that.

    Attributes
    ----------
    acc : Address
        Accumulators (m, n), as the MMAs made them.
    row : Address or None
        Row parameters in ACT as LD.ROW loaded them, scales first; None if not `DenseOp.scaled`.
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

    Moves ``rows * cols * Header.output_bytes`` bytes. Columns are output channels here. With
    `order`, row i goes to the row of OUT that the i-th number says: every row is a piece of its
    own, and moves whole bursts of `BURST_BYTES` (that some rows follow each other in OUT is not
    counted).

    Attributes
    ----------
    acc : Address
        Where DRAIN left them.
    row, col : Affine
        First row and channel.
    rows, cols : Extent
        Rows and channels.
    order : Address or None
        Row parameters in ACT as LD.ROW loaded them for just these rows; None without
        `DenseOp.block_rows`.
    """

    OPCODE: ClassVar[int] = 18
    MNEMONIC: ClassVar[str] = "ST.OUT"
    ENGINE: ClassVar[Engine] = Engine.STORE
    TRACE: ClassVar[tuple[str, ...]] = ("acc", "row", "rows", "col", "cols", "order")

    acc: Address
    row: Affine
    rows: Extent
    col: Affine
    cols: Extent
    order: Address | None = None

    @classmethod
    def dram_bytes(cls, header: Header, rows: Any, cols: Any) -> Any:
        """Bytes moved to DRAM."""
        if not header.op.block_rows:
            return rows * cols * header.output_bytes
        return rows * burst_bytes(cols * header.output_bytes)

    def operands(self) -> str:
        """``OUT[row +rows, col +cols] <- acc``."""
        text = f"OUT[{self.row} : +{self.rows}, {self.col} : +{self.cols}] <- {self.acc}"
        return text if self.order is None else f"{text}, rows by {self.order}"


@dataclass(frozen=True)
class StEnc(Instruction):
    """Store drained outputs (rows, cols) encoded: LSB digits, bitmap, MSB digits, pointers.

    Digits are those of `DenseOp.out_window`. LSB digits and bits go to OUT_LSB and OUT_PBM at
    (row, col). MSB digits that are not zero are appended to OUT_MSB, row by row, each row padded
    to a byte; behind each group of `accelerator.rows` rows the end is noted in OUT_MSB_PTR. So
    tiles come in the order of the stream: chunk by chunk of `out_chunk` columns, which a tile has
    whole, and within a chunk row by row: with several tiles of both, channels are the outer loop.

    Four DMA transfers, one after the other. Moves ``rows * (ceil(cols * k / 8) + ceil(cols / 8))``
    bytes, the digits, which are known at run time, and 4 bytes per row group.

    Attributes
    ----------
    acc : Address
        Where DRAIN left them.
    row, col : Affine
        First row and channel; `row` is a multiple of `accelerator.rows`.
    rows, cols : Extent
        Rows and channels; `rows` is such a multiple too, unless the tile ends at M.
    """

    OPCODE: ClassVar[int] = 19
    MNEMONIC: ClassVar[str] = "ST.ENC"
    ENGINE: ClassVar[Engine] = Engine.STORE
    TRACE: ClassVar[tuple[str, ...]] = ("acc", "row", "rows", "col", "cols")
    TRANSFERS: ClassVar[int] = 4

    acc: Address
    row: Affine
    rows: Extent
    col: Affine
    cols: Extent

    @classmethod
    def lsb_bytes(cls, header: Header, rows: Any, cols: Any) -> Any:
        """Bytes of the LSB digits, and at most those of the MSB digits."""
        return rows * ceil_div(cols * header.op.digit_bits, 8)

    @classmethod
    def pbm_bytes(cls, rows: Any, cols: Any) -> Any:
        """Bytes of the bitmap."""
        return rows * ceil_div(cols, 8)

    @classmethod
    def pointer_bytes(cls, header: Header, rows: Any) -> Any:
        """Bytes of the pointers."""
        return 4 * ceil_div(rows, header.accelerator.rows)

    @classmethod
    def fixed_bytes(cls, header: Header, rows: Any, cols: Any) -> Any:
        """Bytes moved to DRAM but for the MSB digits."""
        planes = cls.lsb_bytes(header, rows, cols) + cls.pbm_bytes(rows, cols)
        return planes + cls.pointer_bytes(header, rows)

    def operands(self) -> str:
        """``OUT_ENC[row +rows, col +cols] <- acc``."""
        return f"OUT_ENC[{self.row} : +{self.rows}, {self.col} : +{self.cols}] <- {self.acc}"


def stream_order(header: Header, m: int, row: Any, rows: Any, col: Any) -> Any:
    """Whether each of the tiles that ST.ENC stores, in program order, is the next of the stream.

    Parameters
    ----------
    header : Header
        Of the program.
    m : int
        Rows in all.
    row, rows, col : ndarray of int64, shape (tiles,)
        First row, rows and first channel of each tile.

    Returns
    -------
    ndarray of bool, shape (tiles,)
    """
    place = col // header.op.out_chunk * m + row
    return (col % header.op.out_chunk == 0) & (np.cumsum(rows) - rows == place)
