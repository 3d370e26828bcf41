"""What a matrix product is specialised on, and the accumulators of its innermost loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from sparqle_tvm.host.register_tile import HostTile, exact_columns
from sparqle_tvm.tirscript import Array, cast, fixed, int64, loop, scratch, vector, when

# Largest magnitude of the integer types.
INTEGER_LIMITS = {"int8": 128, "uint8": 255}
# A chunk of integers; both operands' chunks should stay in the L1 cache.
_CHUNK = 512


@dataclass(frozen=True)
class MatmulSpec:
    """What distinguishes one matrix product from another: (.., M, K) x (.., K, N).

    Attributes
    ----------
    a_batch, b_batch : tuple of str
        How an operand takes part in each batch dimension of the result: ``"d"`` it has the
        dimension, ``"1"`` it is one there and broadcast, ``""`` it does not have it.
    columns, channels : int or None
        K and N; None if symbolic. M and the batch dimensions always are.
    a_dtype, b_dtype, out_dtype : str
    tile : HostTile
    """

    a_batch: tuple[str, ...]
    b_batch: tuple[str, ...]
    columns: int | None
    channels: int | None
    a_dtype: str
    b_dtype: str
    out_dtype: str
    tile: HostTile

    @property
    def integer(self) -> bool:
        """Whether the operands are integers."""
        return self.out_dtype == "int32"

    @property
    def acc_dtype(self) -> str:
        """Type of the accumulators."""
        return "float32" if self.integer else self.out_dtype

    @property
    def lanes(self) -> int:
        """Accumulators in a vector register."""
        return max(self.tile.lanes // 2, 1) if self.acc_dtype == "float64" else self.tile.lanes

    @property
    def chunk(self) -> int:
        """Columns of an integer chunk."""
        a, b = INTEGER_LIMITS[self.a_dtype], INTEGER_LIMITS[self.b_dtype]
        return min(exact_columns(a, b), _CHUNK)


class MatmulTile:
    """Accumulators for `rows` by ``vectors * lanes`` results."""

    def __init__(self, spec: MatmulSpec, rows: int, vectors: int, lanes: int) -> None:
        self.spec, self.rows, self.lanes = spec, rows, lanes
        self.starts = range(0, vectors * lanes, lanes)
        self.acc = scratch(spec.acc_dtype, rows, vectors * lanes)
        self.result = scratch("int32", rows, vectors * lanes) if spec.integer else self.acc

    def at(self, start: int) -> Any:
        """Index of the vector that starts at column `start`."""
        return vector(start, self.lanes) if self.lanes > 1 else int64(start)

    def multiply(
        self, columns: Any, a: Callable[[int, Any], Any], b: Callable[[Any, int], Any]
    ) -> None:
        """Fill `result`: the sum over i of ``a(row, i) * b(i, start)``."""
        self._clear(self.result)
        if not self.spec.integer:
            self.accumulate(int64(0), columns, a, b)
            return
        chunk = self.spec.chunk
        whole = fixed(columns // chunk)
        with loop(whole) as part:
            self._clear(self.acc)
            self.accumulate(part * chunk, int64(chunk), a, b)
            self._drain()
        done = fixed(whole * chunk)
        with when(done < columns):
            self._clear(self.acc)
            self.accumulate(done, columns - done, a, b)
            self._drain()

    def accumulate(
        self,
        first: Any,
        count: Any,
        a: Callable[[int, Any], Any],
        b: Callable[[Any, int], Any],
    ) -> None:
        """Add the products of `count` columns of a from `first` on to `acc`."""
        with loop(count) as i:
            for r in range(self.rows):
                left = self._spread(a(r, first + i))
                for start in self.starts:
                    at = self.at(start)
                    self.acc[r, at] = self.acc[r, at] + left * b(first + i, start)

    def _clear(self, array: Array) -> None:
        for r in range(self.rows):
            for start in self.starts:
                array[r, self.at(start)] = self._spread(tirx.const(0, array.dtype))

    def _drain(self) -> None:
        for r in range(self.rows):
            for start in self.starts:
                at = self.at(start)
                exact = cast("int32", self.acc[r, at], self.lanes)
                self.result[r, at] = self.result[r, at] + exact

    def _spread(self, value: Any) -> Any:
        return T.broadcast(value, self.lanes) if self.lanes > 1 else value
