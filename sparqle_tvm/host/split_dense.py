"""Kernels of the split-precision dense ops: both planes times int8 weights, exact.

Rows are worked on in blocks that stay in cache. Phase 1 expands a block's planes to float32, in
parallel over rows. Phase 2 runs in parallel over panels of output channels: it widens the panel's
weights to float32 once, then multiplies tile after tile. A tile has an LSB and an MSB accumulator
row for every activation row; after a chunk of K, within which float32 is exact, they are added up
in int32 (one scale per channel) or, times the group's scale, in float64. A single row takes the
weights straight from memory. Weights of at most 4 bits lie there two in a byte (`panels`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from sparqle_tvm.host.planes import Encoding, SplitForm, decode_row
from sparqle_tvm.host.register_tile import (
    SERIAL_ROWS,
    HostTile,
    block_rows,
    largest_divisor,
    plane_chunk,
)
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.tirscript import (
    Array,
    build,
    cast,
    either,
    for_rows,
    int64,
    lead_dims,
    loop,
    parallel,
    scratch,
    vector,
    when,
)


@dataclass(frozen=True)
class DenseKernel:
    """A dense op and what a host kernel adds to it.

    Attributes
    ----------
    op : DenseOp
        The op. Rows and all of the window are left at their defaults: one kernel serves any number
        of rows, and what a window adds lies in the constants of the channels.
    form : SplitForm
        What stored digits stand for.
    lead : int
        Number of leading dimensions of the activation; they are symbolic in the kernel.
    scale_shape : tuple of int, or None
        None: activation scale (.., 1), one per row. A tuple: one scale in all, of that shape.
    tile : HostTile
        Register tile; its `cols` is the width of the weights' panels.
    """

    op: DenseOp
    form: SplitForm
    lead: int
    scale_shape: tuple[int, ...] | None
    tile: HostTile

    @property
    def panels(self) -> int:
        """P, the number of panels of output channels."""
        return -(-self.op.n // self.tile.cols)

    @property
    def nibbles(self) -> bool:
        """Whether weights lie two in a byte, as `nibble_panel_kernel` arranges them."""
        return self.op.weight_bits <= 4

    @property
    def weight(self) -> tuple[Any, ...]:
        """Dtype and shape of the arranged weights."""
        if self.nibbles:
            return ("uint8", self.panels, self.op.k + 1, self.tile.lanes)
        return ("int8", self.panels, self.op.k, self.tile.cols)

    @property
    def exact(self) -> tuple[int, bool]:
        """Columns whose products are summed exactly, and whether both sums may be added."""
        return plane_chunk(self.form.k, self.op.weight_bits, self.form.largest_digit)

    @property
    def chunk(self) -> int:
        """Columns per float32 accumulation; divides the group size, if there are groups."""
        exact, _ = self.exact
        if self.op.group_size:
            return largest_divisor(self.op.group_size, exact)
        return min(self.op.k, exact)


@dataclass(frozen=True)
class _Operands:
    """Parameters of the kernel besides the encoding; None where the op does not have them."""

    act_scale: Array | None
    weight: Array
    w_scale: Array | None
    offset: Array
    w_min: Array | None
    sums: Array | None
    out: Array


@cache
def split_dense_kernel(spec: DenseKernel) -> tirx.PrimFunc:
    """Build the kernel of ``split_dense`` or ``split_dense_scaled``.

    Parameters of the PrimFunc, in order; those that the op does not have are left out. P is the
    number of panels of ``spec.tile.cols`` channels, G of groups.

    lsb, pbm, msb, row_ptr
        The encoding.
    zero_points : (.., 1) or (1,) of the dtype of q
        If the form has some.
    act_scale : float32 (.., 1) or ``spec.scale_shape``
        Unless the output is int32.
    weight : ``spec.weight``
        int8 (P, K, cols), or uint8 (P, K + 1, cols / 2) if weights have at most 4 bits.
    w_scale : float32 (P, cols), or (P, G, cols) with groups
        Unless the output is int32.
    offset : int32 (P, cols), or float64 with groups
    w_min : float32 (P, G, cols)
        Only with a minimum.
    group_sums : int32 (.., G)
        Only with a minimum.
    out : int32 or float32 (.., N)
    """
    dims, rows = lead_dims(spec.lead)
    tile_rows = spec.tile.rows // 2
    block = block_rows(8 * spec.op.k, tile_rows)

    def body(**arrays: Any) -> None:
        encoding, operands = _flatten(spec, rows, arrays)
        planes = scratch("float32", block * 2, spec.op.k)
        block_sums = scratch("float64", block, spec.op.groups) if spec.op.has_min else None

        def prepare(first: Any, row: Any) -> None:
            decode_row(encoding, first + row, planes, row * 2)
            if block_sums and operands.sums:
                with loop(spec.op.groups) as group:
                    block_sums[row, group] = cast("float64", operands.sums[first + row, group])

        def one_row() -> None:
            prepare(int64(0), int64(0))
            with parallel(spec.panels) as panel:
                tile = _Tile(spec, 1, operands, planes, block_sums, panel)
                tile.multiply(0, tile.narrow_weight)
                tile.store(int64(0), int64(1))

        def blocks_of_rows() -> None:
            with loop((rows + (block - 1)) // block) as b:
                first = b * block
                count = T.min(int64(block), rows - first)
                for_rows(count, SERIAL_ROWS, lambda row: prepare(first, row))
                with parallel(spec.panels) as panel:
                    tile = _Tile(spec, tile_rows, operands, planes, block_sums, panel)
                    wide = tile.widen()
                    with loop((count + (tile_rows - 1)) // tile_rows) as t:
                        tile.multiply(t * tile_rows, tile.read(wide))
                        tile.store(first + t * tile_rows, first + count)

        either(rows == 1, one_row, blocks_of_rows)

    name = "split_dense_scaled" if spec.op.scaled else "split_dense"
    return build(name, _parameters(spec, dims, rows), body)


def _parameters(spec: DenseKernel, dims: list[Any], rows: Any) -> dict[str, tuple[Any, ...] | None]:
    cols, panels, groups = spec.tile.cols, spec.panels, spec.op.groups
    scaled, grouped = spec.op.scaled, spec.op.group_size > 0
    scale_shape = (*dims, 1) if spec.scale_shape is None else spec.scale_shape
    w_scale_shape = (panels, groups, cols) if grouped else (panels, cols)
    return {
        "lsb": ("uint8", *dims, -(-spec.op.k * spec.op.digit_bits // 8)),
        "pbm": ("uint8", *dims, -(-spec.op.k // 8)),
        "msb": ("uint8", tirx.Var("capacity", "int64")),
        "row_ptr": ("int32", rows + 1),
        "zero_points": spec.form.parameter(dims),
        "act_scale": ("float32", *scale_shape) if scaled else None,
        "weight": spec.weight,
        "w_scale": ("float32", *w_scale_shape) if scaled else None,
        "offset": (spec.op.accumulator_dtype, panels, cols),
        "w_min": ("float32", panels, groups, cols) if spec.op.has_min else None,
        "group_sums": ("int32", *dims, groups) if spec.op.has_min else None,
        "out": (spec.op.out_dtype, *dims, spec.op.n),
    }


def _flatten(spec: DenseKernel, rows: Any, arrays: dict[str, Any]) -> tuple[Encoding, _Operands]:
    """Views of the parameters with the leading dimensions flattened to M."""
    act_scale, sums, zeros = (arrays[n] for n in ("act_scale", "group_sums", "zero_points"))
    encoding = Encoding(
        lsb=arrays["lsb"].reshape(rows, -(-spec.op.k * spec.op.digit_bits // 8)),
        pbm=arrays["pbm"].reshape(rows, -(-spec.op.k // 8)),
        msb=arrays["msb"],
        row_ptr=arrays["row_ptr"],
        columns=spec.op.k,
        form=spec.form,
        zeros=spec.form.flat(zeros, rows),
    )
    operands = _Operands(
        act_scale=act_scale.reshape(rows if spec.scale_shape is None else 1) if act_scale else None,
        weight=arrays["weight"],
        w_scale=arrays["w_scale"],
        offset=arrays["offset"],
        w_min=arrays["w_min"],
        sums=sums.reshape(rows, spec.op.groups) if sums else None,
        out=arrays["out"].reshape(rows, spec.op.n),
    )
    return encoding, operands


class _Tile:
    """A tile of `rows` activation rows by one panel of output channels, in registers."""

    def __init__(
        self,
        spec: DenseKernel,
        rows: int,
        operands: _Operands,
        planes: Array,
        block_sums: Array | None,
        panel: Any,
    ) -> None:
        self.spec, self.rows, self.operands = spec, rows, operands
        self.planes, self.block_sums, self.panel = planes, block_sums, panel
        self.lanes = spec.tile.lanes
        self.starts = range(0, spec.tile.cols, self.lanes)
        self.merge = spec.exact[1]
        # A single row alone would wait for each sum before the next: it has two sets of them.
        self.sets = 2 if rows == 1 else 1
        self.acc = scratch("float32", self.sets * rows * 2, spec.tile.cols)
        self.total = scratch(spec.op.accumulator_dtype, rows, spec.tile.cols)

    def narrow_weight(self, column: Any, start: int) -> Any:
        """A vector of weights, from channel `start` of the panel on, converted from integers."""
        weight, at = self.operands.weight, vector(0, self.lanes)
        if not self.spec.nibbles:
            found = weight[self.panel, column, vector(start, self.lanes)]
            return cast("float32", found, self.lanes)
        both = cast("int32", weight[self.panel, column, at], self.lanes)
        shift = cast("int32", weight[self.panel, self.spec.op.k, at], self.lanes)
        four, mask = (T.broadcast(T.int32(n), self.lanes) for n in (4, 15))
        found = T.shift_right(both, four) if start else T.bitwise_and(both, mask)
        return cast("float32", found - shift, self.lanes)

    def widen(self) -> Array:
        """The panel's weights as float32."""
        wide = scratch("float32", self.spec.op.k, self.spec.tile.cols)
        with loop(self.spec.op.k) as column:
            for start in self.starts:
                wide[column, vector(start, self.lanes)] = self.narrow_weight(column, start)
        return wide

    def read(self, wide: Array) -> Callable[[Any, int], Any]:
        """How `multiply` gets a vector of widened weights."""
        return lambda column, start: wide[column, vector(start, self.lanes)]

    def multiply(self, row: Any, weight: Callable[[Any, int], Any]) -> None:
        """Fill `total` for the rows of `planes` from `row` on."""
        spec, chunk = self.spec, self.spec.chunk
        self._each(lambda r, at: self._set_total(r, at, self.operands.offset[self.panel, at]))
        if spec.op.group_size:
            parts = spec.op.group_size // chunk
            with loop(spec.op.groups) as group:
                with loop(parts) as part:
                    self._accumulate(row, weight, (group * parts + part) * chunk, chunk)
                    self._each(lambda r, at: self._add_group(group, r, at))
                self._each(lambda r, at: self._add_minimum(row, group, r, at))
            return
        whole = spec.op.k // chunk
        with loop(whole) as part:
            self._accumulate(row, weight, part * chunk, chunk)
            self._each(self._add_chunk)
        if spec.op.k % chunk:
            self._accumulate(row, weight, int64(whole * chunk), spec.op.k % chunk)
            self._each(self._add_chunk)

    def store(self, first: Any, limit: Any) -> None:
        """Write the result's rows from `first` on, those below `limit`."""
        spec, cols = self.spec, self.spec.tile.cols
        tail = spec.op.n % cols

        def store_row(r: int) -> None:
            def full() -> None:
                for start in self.starts:
                    at = vector(start, self.lanes)
                    column = vector(self.panel * cols + start, self.lanes)
                    self.operands.out[first + r, column] = self._result(first, r, at, self.lanes)

            def partial() -> None:
                for n in range(tail):
                    value = self._result(first, r, int64(n), 1)
                    self.operands.out[first + r, self.panel * cols + n] = value

            if tail:
                either(self.panel < spec.panels - 1, full, partial)
            else:
                full()

        for r in range(self.rows):
            with when(first + r < limit):
                store_row(r)

    def _each(self, work: Callable[[int, Any], None]) -> None:
        """Call ``work(row, vector index)`` for every vector of the tile."""
        for r in range(self.rows):
            for start in self.starts:
                work(r, vector(start, self.lanes))

    def _accumulate(
        self, row: Any, weight: Callable[[Any, int], Any], start: Any, count: int
    ) -> None:
        """Set the accumulators to the products of `count` columns: LSB and MSB rows alternate."""
        rows, zero = self.rows * 2, T.broadcast(T.float32(0), self.lanes)
        sets = self.sets if count % self.sets == 0 else 1
        cells = [(r, vector(n, self.lanes), n) for r in range(rows) for n in self.starts]
        for each in range(sets):
            for r, at, _ in cells:
                self.acc[each * rows + r, at] = zero
        with loop(count // sets) as i:
            for each in range(sets):
                column = start + (i * sets + each)
                for r, at, n in cells:
                    digit = T.broadcast(self.planes[row * 2 + r, column], self.lanes)
                    sums = self.acc[each * rows + r, at]
                    self.acc[each * rows + r, at] = sums + digit * weight(column, n)
        for r, at, _ in cells if sets > 1 else []:
            self.acc[r, at] = self.acc[r, at] + self.acc[rows + r, at]

    def _partial_sum(self, r: int, at: Any) -> Any:
        dtype = self.spec.op.accumulator_dtype
        lsb, msb = self.acc[r * 2, at], self.acc[r * 2 + 1, at]
        if self.merge:
            return cast(dtype, lsb + msb, self.lanes)
        return cast(dtype, lsb, self.lanes) + cast(dtype, msb, self.lanes)

    def _set_total(self, r: int, at: Any, value: Any) -> None:
        self.total[r, at] = value

    def _add_chunk(self, r: int, at: Any) -> None:
        self.total[r, at] = self.total[r, at] + self._partial_sum(r, at)

    def _add_group(self, group: Any, r: int, at: Any) -> None:
        assert self.operands.w_scale is not None
        scale = cast("float64", self.operands.w_scale[self.panel, group, at], self.lanes)
        self.total[r, at] = self.total[r, at] + self._partial_sum(r, at) * scale

    def _add_minimum(self, row: Any, group: Any, r: int, at: Any) -> None:
        if self.operands.w_min is None or self.block_sums is None:
            return
        minimum = cast("float64", self.operands.w_min[self.panel, group, at], self.lanes)
        sigma = T.broadcast(self.block_sums[row + r, group], self.lanes)
        self.total[r, at] = self.total[r, at] + minimum * sigma

    def _result(self, first: Any, r: int, at: Any, lanes: int) -> Any:
        """The op's result; the order of the products is part of its definition."""
        total = self.total[r, at]
        if self.operands.act_scale is None:
            return total
        step = self.operands.act_scale[first + r if self.spec.scale_shape is None else 0]
        scaled = cast("float32", total, lanes) * (T.broadcast(step, lanes) if lanes > 1 else step)
        if self.spec.op.group_size or self.operands.w_scale is None:
            return scaled
        return scaled * self.operands.w_scale[self.panel, at]
