"""The instructions of the array and of the STORE engine."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sparqle_tvm.target.isa import access
from sparqle_tvm.target.isa.access import Access, Axis, Mode, Part, Tensor, Values, ceil_div, each
from sparqle_tvm.target.isa.base import Instruction, Kind, Pass, Requirement
from sparqle_tvm.target.isa.header import Engine, Header
from sparqle_tvm.target.isa.load import whole_chunks, whole_groups
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


def _block_passes(header: Header, values: Values) -> Any:
    """How often the activations of a tile go through the array: once per block and slice."""
    return ceil_div(values["n"], header.accelerator.cols) * header.op.weight_slices


def _activations(operand: str, tile: access.Tile, loaded: bool = False) -> Access:
    """Read once per block of columns and weight slice."""
    return Access(
        *(operand, tile, Mode.READ, "m", "k"),
        loaded=loaded,
        read=lambda header, values, nbytes: nbytes * _block_passes(header, values),
    )


_WEIGHTS = Access(
    *("wgt", access.WGT, Mode.READ, "n", "k"),
    # Once per row group; every slice has its share of the bits.
    read=lambda header, values, nbytes: nbytes * ceil_div(values["m"], header.accelerator.rows),
)
_GROUPS = Access("grp", access.GRP, Mode.READ, "n", "k")
_ADD = Access(
    *("acc", access.ACC, Mode.UPDATE, "m", "n"),
    read=lambda header, values, nbytes: nbytes * (values["zero"] == 0),
)


@dataclass(frozen=True)
class _Mma(Instruction):
    """Base of what adds to accumulators, group by group."""

    ENGINE: ClassVar[Engine] = Engine.MMA
    KIND: ClassVar[Kind] = Kind.MMA
    EXTENTS: ClassVar[Mapping[str, Axis]] = {"m": "m", "n": "n", "k": "k"}

    @classmethod
    def events(cls, header: Header, values: Values) -> Mapping[str, Any]:
        """Partial sums of weight groups are scaled and added."""
        if not header.op.group_size:
            return {}
        groups = access.groups_of(header, values["k"])
        return {"scale_operations": values["m"] * values["n"] * groups}


@dataclass(frozen=True)
class _Multiply(_Mma):
    """Base of what multiplies a plane with the weights."""

    @classmethod
    def requirements(cls, header: Header, rows: int, values: Values) -> Iterator[Requirement]:
        """Each row has `row_split` PE rows."""
        yield from super().requirements(header, rows, values)
        split, array_rows = values["row_split"], header.accelerator.rows
        yield Requirement(
            (split == 1) | (split <= array_rows // values["m"]),
            f"m * row_split is larger than the {array_rows} rows of PEs",
        )

    @classmethod
    def cycles(cls, header: Header, values: Values) -> Any:
        """Cycles of a dense plane, see `MmaLsb`."""
        n, split = values["n"], values["row_split"]
        groups = ceil_div(values["m"], header.accelerator.rows)
        steps = each(lambda k, split: dense_span_steps(header, k, split), values["k"], split)
        reduction = each(lambda n, split: reduction_cycles(header, n, split), n, split)
        return groups * _block_passes(header, values) * steps + reduction


@dataclass(frozen=True)
class MmaLsb(_Multiply):
    """Multiply the LSB plane with the weights: ``acc[i, j] (+)= sum_c lsb[i, c] * wgt[j, c]``.

    m x n x k digits, all weight slices. Digits of the window ``unsigned`` are read as they lie
    in ACT, 0 to 2^k - 1; those of ``signed``, stored as digit + 2^(k-1), with their top bit
    flipped, which makes them two's complement. Without groups acc is int32. With groups, the int32
    sum of each group times its scale is added to the 64-bit accumulator. Accumulators lie
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
    ROLE: ClassVar[str] = "LSB pass"
    ACCESSES: ClassVar[tuple[Access, ...]] = (
        *(_activations("lsb", access.LSB), _WEIGHTS, _GROUPS, _ADD),
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


@dataclass(frozen=True)
class MmaMsb(_Multiply):
    """Multiply the stored MSB digits with the weights and add ``2^k`` times that to acc.

    Operands, accumulators and groups as in `MmaLsb`. What is stored of a digit is its code of k
    bits, see `numerics.window`; the multiplier takes digits of k + 1 bits with a sign: code 0 is
    `DenseOp.turn`, codes from `turn` on are less by 2^k. (int8 around 0: turn 8; codes 1 to 7 are
    themselves, 8 to 15 are -8 to -1, 0 is 8.) With `row_centres` every row has a turn of its own,
    made of its zero point, which is read in each of `passes`.

    Cycles: ``ceil(n / cols) * sum over groups of `accelerator.rows` rows of the max over their
    rows of ceil(nnz / lanes)`` per weight slice, nnz the set bits of the row in the bitmap tile;
    if not `accelerator.msb_across_groups`, ceil per weight group and summed up. With `row_split`
    r > 1: the max runs over rows and segments (`split_steps`), plus `reduction_cycles` once.

    Attributes
    ----------
    acc, pbm, msb, wgt : Address
        Tiles in ACC, ACT, ACT, WGT. `msb` is a whole tile as it was loaded, `pbm` its bits.
    zro : Address or None
        Zero points of its rows; None if all have one centre.
    grp, m, n, k, zero, row_split
        As in `MmaLsb`.
    """

    OPCODE: ClassVar[int] = 14
    MNEMONIC: ClassVar[str] = "MMA.MSB"
    ROLE: ClassVar[str] = "MSB pass"
    PASS: ClassVar[Pass] = Pass.MSB
    BITMAP: ClassVar[str] = "pbm"
    ACCESSES: ClassVar[tuple[Access, ...]] = (
        _activations("pbm", access.PBM, loaded=True),
        _activations("msb", access.MSB, loaded=True),
        Access(
            *("zro", access.ZRO, Mode.READ, "m", ""),
            loaded=True,
            read=lambda header, values, nbytes: nbytes * _block_passes(header, values),
        ),
        *(_WEIGHTS, _GROUPS, _ADD),
    )

    acc: Address
    pbm: Address
    msb: Address
    zro: Address | None
    wgt: Address
    grp: Address | None
    m: Extent
    n: Extent
    k: Extent
    zero: Condition = NEVER
    row_split: int = 1

    @classmethod
    def cycles(cls, header: Header, values: Values) -> Any:
        """Cycles but for the digits: adding up what `row_split` PE rows have."""
        return each(
            lambda n, split: reduction_cycles(header, n, split), values["n"], values["row_split"]
        )

    @classmethod
    def passes(cls, header: Header, values: Values) -> Any:
        """Once per block of columns and weight slice."""
        return _block_passes(header, values)


@dataclass(frozen=True)
class MmaDns(_Multiply):
    """Multiply a dense MSB plane (scheme ``dense``) and add ``2^k`` times that to acc.

    As `MmaLsb`, in cycles too; digits are two's complement. `msb` is the plane of LD.ACT.
    """

    OPCODE: ClassVar[int] = 15
    MNEMONIC: ClassVar[str] = "MMA.DNS"
    ROLE: ClassVar[str] = "MSB pass"
    PASS: ClassVar[Pass] = Pass.MSB
    ACCESSES: ClassVar[tuple[Access, ...]] = (
        *(_activations("msb", access.MSB_PLANE), _WEIGHTS, _GROUPS, _ADD),
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


@dataclass(frozen=True)
class MmaMin(_Mma):
    """Add ``sum over groups of sum[i, group] * min[j, group]`` to acc (with minima only).

    0 cycles: the scale unit of a PE does it beside the MACs.

    Attributes
    ----------
    sum : Address
        Group sums in ACT, ``ceil(k / g)`` per row.
    acc, grp, m, n, k, zero
        As in `MmaLsb`.
    """

    OPCODE: ClassVar[int] = 16
    MNEMONIC: ClassVar[str] = "MMA.MIN"
    ROLE: ClassVar[str] = "parameters"
    PASS: ClassVar[Pass] = Pass.MINIMA
    ACCESSES: ClassVar[tuple[Access, ...]] = (
        Access("sum", access.SUM, Mode.READ, "m", "k"),
        *(_GROUPS, _ADD),
    )

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
    with groups ``float32(acc + offset) * row``; offset 0 if not `has_offset`. With `adds_shift`,
    ``acc + shift * w_sum`` takes the place of acc: shift is what `Digits` says for the row's zero
    point, which a comparison with two constants gives. encoded: the int32 of
    `numerics.requantize` with y as for float32: with `has_mid` y becomes
    ``(min(max(round(y / mid_scale) + mid_zero, mid_low), mid_high) - mid_zero) * mid_scale``, with
    `has_bias` ``y + bias``, and the output is
    ``min(max(round(y / out_scale) + out_zero, out_low), out_high)``. Divisions, products and sums
    are float32, each rounded by itself, ties of `round` go to even.

    Only a static scale: one per row depends on all N outputs of the row, which a tile does not
    have. Such outputs leave as float32, and the vector unit quantizes them.

    Cycles: ``m * ceil(n / drain_elements_per_cycle)`` on the STORE engine, row by row; scaling,
    the grid between, the bias, quantizing and cutting into digits are stages of one pipeline, as
    wide as that: what a bias needs is area and energy (`DenseOp.drain_operations`), and its bytes.
    Encoded: one more cycle, in which the last word of MSB digits leaves.

    Attributes
    ----------
    acc : Address
        Accumulators (m, n), as the MMAs made them.
    row : Address or None
        Row parameters in ACT as LD.ROW loaded them; None if `Header.row_bytes` is 0.
    chn : Address or None
        Channel parameters in WGT as LD.CHN loaded them; None if `Header.channel_bytes` is 0.
    m, n : Extent
        Rows, channels.
    """

    OPCODE: ClassVar[int] = 17
    MNEMONIC: ClassVar[str] = "DRAIN"
    ENGINE: ClassVar[Engine] = Engine.STORE
    KIND: ClassVar[Kind] = Kind.DRAIN
    ROLE: ClassVar[str] = "drain"
    EXTENTS: ClassVar[Mapping[str, Axis]] = {"m": "m", "n": "n"}
    ACCESSES: ClassVar[tuple[Access, ...]] = (
        Access(
            *("row", access.ROW, Mode.READ, "m", ""),
            # The scales and zero points, not the row numbers between them.
            read=lambda header, values, nbytes: (
                (header.row_bytes - header.order_bytes) * values["m"]
            ),
        ),
        Access("chn", access.CHN, Mode.READ, "n", ""),
        Access(
            *("acc", access.ACC, Mode.UPDATE, "m", "n"),
            written=lambda header, values, nbytes: 4 * values["m"] * values["n"],
        ),
    )

    acc: Address
    row: Address | None
    chn: Address | None
    m: Extent
    n: Extent

    @classmethod
    def cycles(cls, header: Header, values: Values) -> Any:
        """Cycles, see the class."""
        words = values["m"] * ceil_div(values["n"], header.accelerator.drain_elements_per_cycle)
        return words + (header.op.output == "encoded")

    @classmethod
    def events(cls, header: Header, values: Values) -> Mapping[str, Any]:
        """Every output is drained."""
        elements = values["m"] * values["n"]
        operations = header.op.drain_operations * elements
        return {"drained_elements": elements, "drain_operations": operations}


@dataclass(frozen=True)
class _Store(Instruction):
    """Base of the stores of drained outputs (rows, cols): columns are output channels."""

    ENGINE: ClassVar[Engine] = Engine.STORE
    KIND: ClassVar[Kind] = Kind.STORE
    DRAM: ClassVar[Mode] = Mode.WRITE
    ROLE: ClassVar[str] = "store"
    EXTENTS: ClassVar[Mapping[str, Axis]] = {"rows": "m", "cols": "n"}
    ENCODED: ClassVar[bool] = False

    @classmethod
    def problem(cls, header: Header) -> str | None:
        """A program makes outputs of one format."""
        output = header.op.output
        fits = (output == "encoded") == cls.ENCODED
        return None if fits else f"outputs of this program are {output}"


_OUTPUTS = Access(
    *("acc", access.ACC, Mode.READ, "rows", "cols", "row", "col"),
    read=lambda header, values, nbytes: 4 * values["rows"] * values["cols"],
)


def _output_bytes(header: Header, cols: Any) -> Any:
    """Bytes of a row of outputs: whole bursts if it is a piece of its own."""
    nbytes = cols * header.output_bytes
    return burst_bytes(nbytes) if header.op.block_rows else nbytes


@dataclass(frozen=True)
class StOut(_Store):
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
    ACCESSES: ClassVar[tuple[Access, ...]] = (
        Access(
            *("order", access.ROW, Mode.READ, "rows", "", "row"),
            needed=lambda header: header.op.block_rows > 0,
            loaded=True,
            # The row numbers, not the scales before them.
            read=lambda header, values, nbytes: header.order_bytes * values["rows"],
        ),
        _OUTPUTS,
    )
    PARTS: ClassVar[tuple[Part, ...]] = (Part(Tensor.OUT, _output_bytes),)

    acc: Address
    row: Affine
    rows: Extent
    col: Affine
    cols: Extent
    order: Address | None = None

    def operands(self) -> str:
        """``OUT[row +rows, col +cols] <- acc``."""
        text = f"OUT[{self.row} : +{self.rows}, {self.col} : +{self.cols}] <- {self.acc}"
        return text if self.order is None else f"{text}, rows by {self.order}"


@dataclass(frozen=True)
class StEnc(_Store):
    """Store drained outputs (rows, cols) encoded: LSB digits, bitmap, MSB digits, pointers.

    Digits are those of `DenseOp.out_window`. LSB digits and bits go to OUT_LSB and OUT_PBM at
    (row, col). MSB digits that are not zero are appended to OUT_MSB, row by row, each row padded
    to a byte; behind each group of `accelerator.rows` rows the end is noted in OUT_MSB_PTR. So
    tiles come in the order of the stream: chunk by chunk of `out_chunk` columns, which a tile has
    whole, and within a chunk row by row: with several tiles of both, channels are the outer loop.

    The parts of a tile lie together in memory: one DMA transfer. Moves ``rows * (ceil(cols * k /
    8) + ceil(cols / 8))`` bytes, the digits, which are known at run time, and 4 bytes per row
    group.

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
    ENCODED: ClassVar[bool] = True
    ACCESSES: ClassVar[tuple[Access, ...]] = (_OUTPUTS,)
    PARTS: ClassVar[tuple[Part, ...]] = (
        Part(Tensor.OUT_LSB, access.digit_bytes),
        Part(Tensor.OUT_PBM, access.bitmap_bytes),
        Part(Tensor.OUT_MSB, access.digit_bytes, digits=True),
        Part(
            Tensor.OUT_MSB_PTR,
            lambda header, cols: 4,
            pieces=lambda header, rows: ceil_div(rows, header.accelerator.rows),
        ),
    )

    acc: Address
    row: Affine
    rows: Extent
    col: Affine
    cols: Extent

    @classmethod
    def events(cls, header: Header, values: Values) -> Mapping[str, Any]:
        """Every output is cut into digits."""
        return {"encoded_elements": values["rows"] * values["cols"]}

    @classmethod
    def requirements(cls, header: Header, rows: int, values: Values) -> Iterator[Requirement]:
        """Tiles are whole chunks of whole row groups, in the order of the stream."""
        yield from super().requirements(header, rows, values)
        yield whole_groups(header, rows, values)
        yield whole_chunks(header.op.out_chunk, header.op.n, values)
        row, count, col = values["row"], values["rows"], values["col"]
        place = col // header.op.out_chunk * rows + row
        yield Requirement(
            np.cumsum(count) - count == place,
            "not the next tile of the MSB stream: chunk by chunk, then by rows",
        )

    def operands(self) -> str:
        """``OUT_ENC[row +rows, col +cols] <- acc``."""
        return f"OUT_ENC[{self.row} : +{self.rows}, {self.col} : +{self.cols}] <- {self.acc}"
