"""Matrix products for ``R.matmul``: float32, float64, and 8-bit integers to int32.

Tasks (batch x block of rows x panel of columns) run in parallel. A task walks the rows in tiles
whose accumulators stay in registers. With many rows it first copies its panel of the second matrix
to contiguous scratch; a single row reads it directly, in wider panels. Every element of a float
result is one chain of (fused) multiply-adds in the order of K, so it does not depend on the number
of rows, on the tiling or on the number of threads. Integers are converted to float32, summed
exactly in chunks of K, and the chunks added up in int32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from sparqle_tvm.host.matmul_tile import MatmulSpec, MatmulTile
from sparqle_tvm.tirscript import (
    Array,
    build,
    cast,
    either,
    fixed,
    int64,
    loop,
    parallel,
    scratch,
    vector,
    when,
)

# Rows of a task; more would leave threads without work, fewer copy panels too often.
_BLOCK_ROWS = 240
# Rows from which on a panel is copied, in tiles.
_PACK_TILES = 2
# Vectors side by side for a single row: as many multiply-add chains as hide their latency.
_ROW_VECTORS = 8
# For a single row, b is wide from this number of segments on. A segment is so many panels, and so
# many of its rows are read at a time.
_SEGMENTS, _SEGMENT_PANELS, _SEGMENT_ROWS = 4, 64, 4
# Below this number of multiplications a single row does not wake the thread pool.
_SERIAL_PRODUCTS = 1 << 16


@cache
def matmul_kernel(spec: MatmulSpec) -> tirx.PrimFunc:
    """Build the kernel; parameters a (.., M, K), b (.., K, N), out (.., M, N)."""
    dims = [tirx.Var(f"d{i}", "int64") for i in range(len(spec.a_batch))]
    m = tirx.Var("m", "int64")
    k = tirx.Var("k", "int64") if spec.columns is None else int64(spec.columns)
    n = tirx.Var("n", "int64") if spec.channels is None else int64(spec.channels)
    a_dims, b_dims = _operand_dims(spec.a_batch, dims), _operand_dims(spec.b_batch, dims)
    # Without a batch of its own, b multiplies all rows of a at once.
    shared = all(flag != "d" for flag in spec.b_batch)
    batch = int64(1) if shared else _product(dims)
    rows = _product([*dims, m]) if shared else m

    def body(a: Array, b: Array, out: Array) -> None:
        if shared:
            problem = _Problem(
                spec, a.reshape(1, rows, k), b.reshape(1, k, n), out.reshape(1, rows, n)
            )
        else:
            problem = _Problem(
                spec,
                a.reshape(_product(a_dims), m, k),
                b.reshape(_product(b_dims), k, n),
                out.reshape(batch, m, n),
            )
            problem.a_at = lambda i: _operand_index(spec.a_batch, dims, i)
            problem.b_at = lambda i: _operand_index(spec.b_batch, dims, i)
        either(rows == 1, lambda: problem.one_row(batch), lambda: problem.many_rows(batch))

    parameters = {
        "a": (spec.a_dtype, *a_dims, m, k),
        "b": (spec.b_dtype, *b_dims, k, n),
        "out": (spec.out_dtype, *dims, m, n),
    }
    return build("matmul", parameters, body)


def _operand_dims(flags: tuple[str, ...], dims: list[Any]) -> list[Any]:
    return [dim if flag == "d" else int64(1) for flag, dim in zip(flags, dims, strict=True) if flag]


def _product(dims: list[Any]) -> Any:
    total = int64(1)
    for dim in dims:
        total = total * dim
    return total


def _operand_index(flags: tuple[str, ...], dims: list[Any], index: Any) -> Any:
    """Flat batch index of an operand from that of the result."""
    if all(flag == "d" for flag in flags):
        return index
    position, stride, rest = int64(0), int64(1), index
    for flag, dim in reversed(list(zip(flags, dims, strict=True))):
        if flag == "d":
            position = position + rest % dim * stride
            stride = stride * dim
        rest = rest // dim
    return position


class _Problem:
    """The operands with flat batches, (batch, M, K) x (batch, K, N), and the ways to multiply."""

    def __init__(self, spec: MatmulSpec, a: Array, b: Array, out: Array) -> None:
        self.spec, self.a, self.b, self.out = spec, a, b, out
        self.rows, self.columns = a.buffer.shape[1], a.buffer.shape[2]
        self.channels = b.buffer.shape[2]
        self.a_at: Callable[[Any], Any] = lambda _: int64(0)
        self.b_at: Callable[[Any], Any] = lambda _: int64(0)

    def one_row(self, batch: Any) -> None:
        """Read b in place: by panels of a few vectors, or, if it is wide, by long row segments."""
        panel = _ROW_VECTORS * self.spec.lanes
        segment = panel * _SEGMENT_PANELS

        def run(kind: Callable[[Any], Any], width: int, whole: Callable[[Any, Any], None]) -> None:
            blocks = fixed((self.channels + (width - 1)) // width)
            with kind(batch * blocks) as index:
                at, first = fixed(index // blocks), fixed(index % blocks * width)
                either(
                    first + width <= self.channels,
                    lambda: whole(at, first),
                    lambda: self._leftover(at, first),
                )

        def by_panels(kind: Callable[[Any], Any]) -> None:
            run(
                kind,
                panel,
                lambda at, first: self._single(at, first, _ROW_VECTORS, self.spec.lanes),
            )

        def large() -> None:
            if self.spec.integer:
                by_panels(parallel)
            else:
                wide = self.channels >= segment * _SEGMENTS
                either(
                    wide,
                    lambda: run(parallel, segment, self._segment),
                    lambda: by_panels(parallel),
                )

        products = batch * self.channels * self.columns
        either(products < _SERIAL_PRODUCTS, lambda: by_panels(loop), large)

    def _leftover(self, at: Any, first: Any) -> None:
        """One row times the columns from `first` on: panels, then vectors, then single columns."""
        done = first
        for vectors, lanes in ((_ROW_VECTORS, self.spec.lanes), (1, self.spec.lanes), (1, 1)):
            width = vectors * lanes
            count, start = fixed((self.channels - done) // width), done
            with loop(count) as i:
                self._single(at, fixed(start + i * width), vectors, lanes)
            done = fixed(start + count * width)

    def _segment(self, at: Any, first: Any) -> None:
        """One row times a long segment of b's rows, a few rows at a time; sums stay in `out`.

        Memory is read in long runs, and the order of additions is that of every other way.
        """
        spec, lanes = self.spec, self.spec.lanes
        a_at, b_at = fixed(self.a_at(at)), fixed(self.b_at(at))
        panel = _ROW_VECTORS * lanes
        zero = T.broadcast(tirx.const(0, spec.acc_dtype), lanes)
        with loop(_SEGMENT_PANELS * _ROW_VECTORS) as v:
            self.out[at, 0, vector(first + v * lanes, lanes)] = zero
        with loop((self.columns + (_SEGMENT_ROWS - 1)) // _SEGMENT_ROWS) as block:
            row = fixed(block * _SEGMENT_ROWS)
            count = fixed(T.min(int64(_SEGMENT_ROWS), self.columns - row))
            with loop(_SEGMENT_PANELS) as p:
                start = fixed(first + p * panel)
                tile = MatmulTile(spec, 1, _ROW_VECTORS, lanes)
                for n in tile.starts:
                    tile.acc[0, tile.at(n)] = self.out[at, 0, vector(start + n, lanes)]
                tile.accumulate(
                    row,
                    count,
                    lambda _, i: self.a[a_at, 0, i],
                    lambda i, n: self.b[b_at, i, vector(start + n, lanes)],
                )
                for n in tile.starts:
                    self.out[at, 0, vector(start + n, lanes)] = tile.acc[0, tile.at(n)]

    def many_rows(self, batch: Any) -> None:
        """Tiles of rows; the panel of b is copied if that pays, or if it has to be padded."""
        spec = self.spec
        cols = 2 * spec.lanes
        panels = fixed((self.channels + (cols - 1)) // cols)
        blocks = fixed((self.rows + (_BLOCK_ROWS - 1)) // _BLOCK_ROWS)
        with parallel(batch * blocks * panels) as index:
            at = fixed(index // (blocks * panels))
            first_row = fixed(index // panels % blocks * _BLOCK_ROWS)
            first = fixed(index % panels * cols)
            count = fixed(T.min(int64(_BLOCK_ROWS), self.rows - first_row))
            b_at = fixed(self.b_at(at))

            def tiles(weight: Callable[[Any, Any], Any]) -> None:
                with loop((count + (spec.tile.rows - 1)) // spec.tile.rows) as t:
                    row = fixed(first_row + t * spec.tile.rows)
                    self._tile(at, row, first, weight)

            def packed() -> None:
                panel = self._pack(b_at, first, cols)
                tiles(lambda i, start: panel[i, vector(start, spec.lanes)])

            def direct() -> None:
                tiles(lambda i, start: self.b[b_at, i, vector(first + start, spec.lanes)])

            if spec.integer:
                packed()
            else:
                few = count <= _PACK_TILES * spec.tile.rows
                either(tirx.all(few, first + cols <= self.channels), direct, packed)

    def _pack(self, b_at: Any, first: Any, cols: int) -> Array:
        """Copy (and convert) columns `first` to ``first + cols`` of b, zeros where it has none."""
        spec = self.spec
        panel = scratch(spec.acc_dtype, self.columns, cols)

        def whole(i: Any) -> None:
            for start in range(0, cols, spec.lanes):
                value = self.b[b_at, i, vector(first + start, spec.lanes)]
                panel[i, vector(start, spec.lanes)] = cast(spec.acc_dtype, value, spec.lanes)

        def padded(i: Any) -> None:
            with loop(cols) as c:
                either(
                    first + c < self.channels,
                    lambda: panel.__setitem__(
                        (i, c), cast(spec.acc_dtype, self.b[b_at, i, first + c])
                    ),
                    lambda: panel.__setitem__((i, c), tirx.const(0, spec.acc_dtype)),
                )

        def run(copy: Callable[[Any], None]) -> None:
            with loop(self.columns) as i:
                copy(i)

        either(first + cols <= self.channels, lambda: run(whole), lambda: run(padded))
        return panel

    def _single(self, at: Any, first: Any, vectors: int, lanes: int) -> None:
        """One row times ``vectors * lanes`` columns of b."""
        spec = self.spec
        a_at, b_at = fixed(self.a_at(at)), fixed(self.b_at(at))
        tile = MatmulTile(spec, 1, vectors, lanes)

        def read(i: Any, start: int) -> Any:
            where = vector(first + start, lanes) if lanes > 1 else first + start
            return cast(spec.acc_dtype, self.b[b_at, i, where], lanes)

        tile.multiply(self.columns, lambda r, i: cast(spec.acc_dtype, self.a[a_at, 0, i]), read)
        for start in tile.starts:
            where = vector(first + start, lanes) if lanes > 1 else first + start
            self.out[at, 0, where] = tile.result[0, tile.at(start)]

    def _tile(self, at: Any, row: Any, first: Any, weight: Callable[[Any, Any], Any]) -> None:
        """Rows from `row` on times a panel; rows that do not exist repeat the last one."""
        spec = self.spec
        rows, cols, a_at = spec.tile.rows, 2 * spec.lanes, fixed(self.a_at(at))
        tile = MatmulTile(spec, rows, 2, spec.lanes)
        sources = [fixed(T.min(row + r, self.rows - 1)) for r in range(rows)]
        if spec.integer:
            wide = scratch("float32", rows, self.columns)
            for r in range(rows):
                with loop(self.columns) as i:
                    wide[r, i] = cast("float32", self.a[a_at, sources[r], i])
            tile.multiply(self.columns, lambda r, i: wide[r, i], weight)
        else:
            tile.multiply(self.columns, lambda r, i: self.a[a_at, sources[r], i], weight)

        def full() -> None:
            for r in range(rows):
                with when(row + r < self.rows):
                    for start in tile.starts:
                        column = vector(first + start, spec.lanes)
                        self.out[at, row + r, column] = tile.result[r, tile.at(start)]

        def partial() -> None:
            # A copy: the accumulators themselves would leave the registers if indexed at run time.
            copy = scratch(spec.out_dtype, rows, cols)
            for r in range(rows):
                for start in tile.starts:
                    copy[r, tile.at(start)] = tile.result[r, tile.at(start)]
            with loop(T.min(int64(rows), self.rows - row)) as r, loop(self.channels - first) as c:
                self.out[at, row + r, first + c] = copy[r, c]

        either(first + cols <= self.channels, full, partial)
