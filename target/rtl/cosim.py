"""Co-simulation: the array's RTL, compiled to native code by yosys and a C++ compiler."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.errors import SparqleError
from sparqle_tvm.numerics.integers import pack_digits
from sparqle_tvm.target.accelerator import PIPELINE_CYCLES
from sparqle_tvm.target.rtl.array import SplitArray
from sparqle_tvm.target.rtl.shape import ArrayShape
from sparqle_tvm.target.rtl.yosys import read_commands, write_rtlil, yosys

_HARNESS = Path(__file__).with_name("array.cc")
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ArrayTile:
    """What the array works on between two starts.

    Attributes
    ----------
    lsb : uint8 (rows, k)
        Stored low digits. Rows may be fewer than those of the array.
    mask : bool (rows, k)
        Where high digits are stored.
    codes : sequence of uint8 (digits,)
        Codes of the stored digits of each row, in the order of columns.
    weights : uint8 (cols, k)
        Digits of one weight slice, two's complement in k bits if `weights_signed`.
    turn : int or sequence of int
        The code from which on digits are negative, of all rows or of each.
    lsb_signed, weights_signed, zero : bool
        Whether low digits have a bias, the slice is a number's highest, sums begin at 0.
    slice : int
        The slice.
    drain : bool
        Whether the sums are read afterwards.
    """

    lsb: Bytes
    mask: NDArray[np.bool_]
    codes: Sequence[Bytes]
    weights: Bytes
    turn: int | Sequence[int]
    lsb_signed: bool
    weights_signed: bool = True
    zero: bool = True
    slice: int = 0
    drain: bool = True


@dataclass(frozen=True, eq=False)
class ArrayResult:
    """What the array did.

    Attributes
    ----------
    cycles : int
        From the acceptance of the tile to that of the next.
    dense_cycles, sparse_cycles : int
        Of these, of each pass.
    waiting : int
        Sparse cycles of rows that have no digits left, all rows of the array together.
    sums : int32 (array rows, groups, array cols) or None
        Accumulators.
    """

    cycles: int
    dense_cycles: int
    sparse_cycles: int
    waiting: int
    sums: NDArray[np.int32] | None


class ArrayModel:
    """The array of a shape, compiled into a folder; what is there already is used again.

    Raises
    ------
    MissingExtraError
        If amaranth or pyosys is not installed.
    SparqleError
        If there is no C++ compiler (``g++``), or it fails.
    """

    def __init__(self, shape: ArrayShape, folder: Path, optimize: int = 1) -> None:
        self.shape = shape
        compiler = shutil.which("g++")
        if compiler is None:
            raise SparqleError("co-simulation needs a C++ compiler; install g++")
        folder.mkdir(parents=True, exist_ok=True)
        source = folder / "array_model.cc"
        files = write_rtlil(SplitArray(shape, flat=False), folder)
        yosys(read_commands(files) + f"write_cxxrtl -noflatten -g0 {source}\n")
        spec = importlib.util.find_spec("pyosys")
        assert spec is not None and spec.origin is not None
        runtime = Path(spec.origin).parent / "share/include/backends/cxxrtl/runtime"
        sizes = {
            "ROWS": shape.rows,
            "COLS": shape.cols,
            "LANES": shape.lanes,
            "COLUMNS": shape.columns,
            "GROUPS": shape.groups,
            "BITS": shape.digit_bits,
            "DRAIN": PIPELINE_CYCLES,
        }
        self.program = folder / "array_model"
        found = subprocess.run(
            [
                *(compiler, f"-O{optimize}", "-std=c++14", "-w", f"-I{runtime}"),
                *(f"-D{name}={size}" for name, size in sizes.items()),
                *("-include", str(source), str(_HARNESS), "-o", str(self.program)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if found.returncode:
            raise SparqleError(f"g++ failed on the array: {found.stderr.strip()[-500:]}")

    def run(self, tiles: Sequence[ArrayTile]) -> list[ArrayResult]:
        """Run tiles one after the other; sums stay in the array between them."""
        stream = b"".join(self._bytes(tile) for tile in tiles)
        found = subprocess.run([self.program], input=stream, capture_output=True, check=False)
        if found.returncode:
            raise SparqleError(f"the array's model ended with {found.returncode}")
        shape, at, results = self.shape, 0, []
        size = shape.rows * shape.groups * shape.cols
        for tile in tiles:
            cycles, dense, sparse, waiting = np.frombuffer(found.stdout, np.int32, 4, at).tolist()
            at += 16
            sums = None
            if tile.drain:
                sums = np.frombuffer(found.stdout, np.int32, size, at)
                sums = sums.reshape(shape.rows, shape.groups, shape.cols)
                at += 4 * size
            results.append(ArrayResult(cycles, dense, sparse, waiting, sums))
        return results

    def _bytes(self, tile: ArrayTile) -> bytes:
        shape, k = self.shape, self.shape.digit_bits
        rows, columns = tile.lsb.shape
        words = [columns, tile.zero, tile.slice, tile.weights_signed, tile.lsb_signed, tile.drain]
        mask = _padded(tile.mask, shape.rows, shape.columns)
        lsb = _padded(tile.lsb, shape.rows, shape.columns)
        msb = np.zeros_like(lsb)
        for row, codes in enumerate(tile.codes):
            msb[row, : len(codes)] = codes
        weights = _padded(tile.weights, shape.cols, shape.columns)
        turns = np.zeros(shape.rows, dtype=np.int64)
        turns[:rows] = tile.turn
        turn = (turns[:, None] >> np.arange(k + 1)) & 1
        return b"".join(
            (
                np.array(words, dtype=np.int32).tobytes(),
                np.packbits(mask.ravel().astype(bool), bitorder="little").tobytes(),
                np.packbits(turn.ravel().astype(bool), bitorder="little").tobytes(),
                *(self._memory(plane) for plane in (lsb, msb, weights)),
            )
        )

    def _memory(self, digits: Bytes) -> bytes:
        """A word for each step: the digits of its lanes, of all rows or channels."""
        shape = self.shape
        words = digits.reshape(len(digits), shape.steps, shape.lanes).transpose(1, 0, 2)
        return pack_digits(words.reshape(shape.steps, -1), shape.digit_bits).tobytes()


def _padded(a: NDArray[np.generic], rows: int, columns: int) -> Bytes:
    out = np.zeros((rows, columns), dtype=np.uint8)
    out[: a.shape[0], : a.shape[1]] = a
    return out
