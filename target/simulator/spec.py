"""What the compiled executor works on: formats, how decoded operands lie, memories, actions.

Decoded columns are cut into spans: groups of weights, or parts of them of at most `dot.SPAN`
columns. A span occupies `pitch` columns, a multiple of 4; what its tile does not have is zero in
the activations.

- Activations: row by row, each `spans(k) * pitch` elements.
- Weights: slice by slice, panel by panel (`Dot.channels` output channels), span by span, step by
  step (`Dot.depth` columns): the channels of the panel, `depth` elements each.
- Group parameters: panel by panel, group by group, a float64 per channel; minima behind scales.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm.tirx.script import builder as T

from sparqle_tvm.target.isa.header import Header
from sparqle_tvm.target.simulator.dot import SPAN, Dot, choose_dot
from sparqle_tvm.target.simulator.native import host_features
from sparqle_tvm.tirscript import Array, cast, ceil_div, parameter, size


@dataclass(frozen=True)
class RowZeros:
    """Zero points of rows, as the executor reads them.

    Attributes
    ----------
    nbytes : int
        Bytes of one.
    signed : bool
        Whether it is two's complement.
    low, high : int
        Limits of the centre of a row's digits: 0 and 0 where they have none.
    edge : int
        `DenseOp.edge` of a row with centre 0; any other's is so much less as its centre is more.
    """

    nbytes: int
    signed: bool
    low: int
    high: int
    edge: int

    def read(self, act: Array, address: Any, row: Any) -> Any:
        """The zero point of a row (expression), from the bytes at an address of ACT."""
        at = address + row * self.nbytes
        value: Any = cast("int32", act[at])
        if self.nbytes == 2:
            value = T.bitwise_or(value, T.shift_left(cast("int32", act[at + 1]), T.int32(8)))
        sign = 1 << (8 * self.nbytes - 1) if self.signed else 0
        return T.bitwise_xor(value, T.int32(sign)) - sign

    def centre(self, zero: Any) -> Any:
        """The centre of a row's digits (expression)."""
        return T.max(T.min(zero, T.int32(self.high)), T.int32(self.low))


@dataclass(frozen=True)
class ValueSpec:
    """Formats of an op, and the processor's way to multiply.

    Attributes
    ----------
    k : int
        Bits of a digit.
    weight_bits : int
        Bits of a stored weight.
    weight_signed : bool
        Whether it is two's complement.
    group_size : int
        Weights along K that share a scale, 0: none.
    scale_bytes : int
        Bytes of a group's scale, and of its minimum: float16 or float32.
    has_min : bool
        Whether groups have a minimum.
    sum_bytes : int
        Bytes of a group sum.
    encoded : bool
        Whether outputs are quantized and stored encoded.
    dot : Dot
        The dot product.
    zeros : RowZeros or None
        Zero points of rows, if they have their own.
    adds_shift : bool
        Whether the drain adds what centres differ from zero points by.
    row_centres : bool
        Whether the digits of every row have a centre of their own.
    has_bias, has_mid : bool
        Whether the drain adds a float bias, and brings sums onto a grid before.
    """

    k: int
    weight_bits: int
    weight_signed: bool
    group_size: int
    scale_bytes: int
    has_min: bool
    sum_bytes: int
    encoded: bool
    dot: Dot
    zeros: RowZeros | None = None
    adds_shift: bool = False
    row_centres: bool = False
    has_bias: bool = False
    has_mid: bool = False

    @classmethod
    def of(cls, header: Header) -> ValueSpec:
        """The spec of a program on this processor."""
        op, zeros = header.op, None
        if op.row_zeros:
            low, high = op.digits.centre_range
            zeros = RowZeros(op.zero_bytes, op.act_signed, low, high, op.edge)
        return cls(
            k=header.op.digit_bits,
            weight_bits=header.op.weight_bits,
            weight_signed=header.op.weight_signed,
            group_size=header.op.group_size,
            scale_bytes=header.op.scale_bytes,
            has_min=header.op.has_min,
            sum_bytes=header.sum_bytes if header.op.has_min else 0,
            encoded=header.op.output == "encoded",
            dot=choose_dot(host_features(), header.op.digit_bits),
            zeros=zeros,
            adds_shift=op.adds_shift,
            row_centres=op.scheme == "sparqle" and op.row_centres,
            has_bias=op.has_bias,
            has_mid=op.has_mid,
        )

    @property
    def slices(self) -> int:
        """Weight slices."""
        return math.ceil(self.weight_bits / self.k)

    @property
    def slice_bits(self) -> int:
        """Bits of a weight slice."""
        return min(self.k, self.weight_bits)

    @property
    def grouped(self) -> bool:
        """Whether weights have group scales."""
        return self.group_size > 0

    @property
    def accumulator(self) -> str:
        """Type of an accumulator."""
        return "float64" if self.grouped else "int32"

    @property
    def parts(self) -> int:
        """Spans of a group."""
        return math.ceil(self.group_size / SPAN) if self.grouped else 1

    @property
    def width(self) -> int:
        """Columns of a span; the last of a group or tile may have fewer."""
        return math.ceil(self.group_size / self.parts) if self.grouped else SPAN

    @property
    def pitch(self) -> int:
        """Columns that a span occupies."""
        return math.ceil(self.width / 4) * 4

    @property
    def contiguous(self) -> bool:
        """Whether a decoded column lies at its own number."""
        return self.pitch == self.width and self.parts * self.width in (self.group_size, SPAN)

    @property
    def joins_planes(self) -> bool:
        """Whether both planes of a tile may be multiplied as one, of integers of 2k bits.

        Sums of int32 are the same in any order; those of float64 only within limits.
        """
        return self.dot.variant == "vnni" and not self.grouped

    def slice_is_signed(self, index: int) -> bool:
        """Whether the digits of a weight slice are two's complement."""
        return self.weight_signed and index == self.slices - 1

    def groups(self, k: Any) -> Any:
        """Groups of a tile of `k` columns (a number or an expression)."""
        return _ceil(k, self.group_size)

    def spans(self, k: Any) -> Any:
        """Spans of a tile of `k` columns."""
        return self.groups(k) * self.parts if self.grouped else _ceil(k, SPAN)

    def panels(self, n: Any) -> Any:
        """Panels of `n` channels."""
        return _ceil(n, self.dot.channels)

    def span_begin(self, span: Any) -> Any:
        """First column of a span (expression)."""
        if not self.grouped or self.parts == 1:
            return span * self.width
        group = T.truncdiv(span, T.int64(self.parts))
        return group * self.group_size + T.truncmod(span, T.int64(self.parts)) * self.width

    def span_columns(self, span: Any, k: Any) -> Any:
        """Columns of a span within a tile of `k` columns (expression), at least 0."""
        begin = self.span_begin(span)
        columns = T.min(T.int64(self.width), k - begin)
        if self.parts > 1:
            group = T.truncdiv(span, T.int64(self.parts))
            columns = T.min(columns, (group + 1) * self.group_size - begin)
        return T.max(columns, T.int64(0))


def _ceil(a: Any, b: int) -> Any:
    return math.ceil(a / b) if isinstance(a, int) else ceil_div(a, b)


# Values of `plane`: LSB digits, the same with the top bit flipped (window ``signed``), dense planes
# of MSB digits without and with a sign, MSB digits behind a bitmap.
LSB_PLANE, FLIPPED_PLANE, HIGH_PLANE, MSB_PLANE, SPARSE_PLANE = range(5)

# Pools of decoded tiles, in the order of the entry sizes: activations, their span sums, weights,
# parameters.
_POOLS = ("act", "sums", "wgt", "grp")


class Memory:
    """Arguments of the executor, see `executor.executor`; the table has `columns` columns."""

    def __init__(self, spec: ValueSpec, columns: int) -> None:
        self.actions = size("actions")
        self.table = parameter("table", "int64", self.actions, columns)
        self.act = parameter("act", "uint8", size("act_bytes"))
        self.wgt = parameter("wgt", "uint8", size("wgt_bytes"))
        self.acc = parameter("acc", spec.accumulator, size("cells"))
        self.activations = parameter("activations", spec.dot.activation, size("act_room"))
        self.sums = parameter("sums", "int32", size("sums_room"))
        self.weights = parameter("weights", spec.dot.weight, size("wgt_room"))
        self.parameters = parameter("parameters", "float64", size("grp_room"))
        self.held = {
            pool: parameter(f"{pool}_held", "int64", size(f"{pool}_entries"))
            for pool in ("act", "wgt", "grp")
        }
        self.joined = parameter("joined", "int64", size("act_entries"))
        self.sizes = parameter("sizes", "int64", 4)
        self.offsets = parameter("offsets", "int64", size("rows"))
        self.scratch = parameter("scratch", "float64", size("scratch_room"))
        self.spec = spec

    @property
    def staging(self) -> Array:
        """The scratch memory as bytes."""
        return self.scratch.view("uint8", self.scratch.buffer.shape[0] * 8)

    @property
    def cells(self) -> Array:
        """Accumulators as int32: with groups a cell has two, and its output is the first."""
        return self.acc.view("int32", self.acc.buffer.shape[0] * self.cell_stride)

    @property
    def cell_stride(self) -> int:
        """int32 from one cell to the next."""
        return 2 if self.spec.grouped else 1


class Action:
    """An action of the table, in row `index`: its operands by name, and the memories.

    A row of the table has the number of the kind of action, an address in memory where there is
    one (`dram`), then its operands.
    """

    def __init__(self, memory: Memory, index: Any, operands: tuple[str, ...]) -> None:
        self.memory, self._index, self._operands = memory, index, ("dram", *operands)

    def __getitem__(self, operand: str) -> Any:
        """An operand (expression)."""
        return self.memory.table[self._index, 1 + self._operands.index(operand)]

    def entry(self, pool: str, tile: str = "") -> Any:
        """Where a tile begins in a pool: ``act``, ``sums`` (beside act), ``wgt`` or ``grp``.

        The tile is named as its pool, but ``low`` that of joined low digits.
        """
        number = self[f"{tile or ('act' if pool == 'sums' else pool)}_entry"]
        return number * self.memory.sizes[_POOLS.index(pool)]
