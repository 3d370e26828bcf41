"""The array as files: Verilog, a testbench with vectors and what they have to give, a README."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.numerics.slicing import SlicedTensor
from sparqle_tvm.target.accelerator import PIPELINE_CYCLES
from sparqle_tvm.target.rtl.array import SplitArray
from sparqle_tvm.target.rtl.cosim import ArrayTile
from sparqle_tvm.target.rtl.shape import ArrayShape
from sparqle_tvm.target.rtl.yosys import read_commands, write_rtlil, yosys

ARRAY, TESTBENCH = "sparqle_array.v", "testbench.v"
_TESTBENCH = Path(__file__).with_name(TESTBENCH)
_README = Path(__file__).with_name("ports.md")


def verilog(shape: ArrayShape) -> str:
    """The array with all its modules in plain Verilog.

    Raises
    ------
    MissingExtraError
        If amaranth or pyosys is not installed.
    SparqleError
        If yosys fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        blocks = write_rtlil(SplitArray(shape, flat=False), Path(folder))
        plain = Path(folder) / ARRAY
        yosys(f"{read_commands(blocks)}write_verilog -noattr {plain}\n")
        return plain.read_text(encoding="utf-8")


def tiles_of(
    sliced: SlicedTensor, weights: NDArray[np.integer[Any]], slices: int, shape: ArrayShape
) -> list[ArrayTile]:
    """The tiles of a row group and a block of channels: K chunk by chunk, slice by slice.

    Parameters
    ----------
    sliced : SlicedTensor
        Activations (rows, K), at most as many rows as the array has.
    weights : integers of ``slices * k`` bits (channels, K)
        At most as many channels as the array has columns; signed if one is negative.
    slices : int
        Slices of a weight, lowest first.
    shape : ArrayShape
        The array, without weight groups.
    """
    k, columns = sliced.k, sliced.shape[1]
    mask, low = sliced.mask(), sliced.lsb_digits()
    codes, first = sliced.digits.code(sliced.msb_digits()), int(sliced.digits.digit_range[0])
    tiles = []
    for begin in range(0, columns, shape.columns):
        part = slice(begin, begin + shape.columns)
        for index in range(slices):
            tiles.append(
                ArrayTile(
                    lsb=low[:, part],
                    mask=mask[:, part],
                    codes=[c[b] for c, b in zip(codes[:, part], mask[:, part], strict=True)],
                    weights=(weights[:, part] >> k * index & (1 << k) - 1).astype(np.uint8),
                    turn=(1 << k) + min(first, 0),
                    lsb_signed=sliced.window == "signed",
                    weights_signed=index == slices - 1 and bool((weights < 0).any()),
                    zero=begin == 0 and index == 0,
                    slice=index,
                    drain=begin + shape.columns >= columns and index == slices - 1,
                )
            )
    return tiles


def tile_cycles(tile: ArrayTile, shape: ArrayShape) -> int:
    """What a tile has to take: steps of all columns, then those of the row with most digits."""
    most = int(tile.mask.sum(axis=1).max(initial=0))
    return -(-tile.mask.shape[1] // shape.lanes) + -(-most // shape.lanes)


def testbench(
    shape: ArrayShape, tiles: Sequence[ArrayTile], sums: NDArray[np.integer[Any]]
) -> dict[str, str]:
    """The testbench, its vectors and what they have to give: text by name of the file.

    Parameters
    ----------
    shape : ArrayShape
        The array.
    tiles : sequence of ArrayTile
        What runs, one after the other without a gap.
    sums : integers (rows, channels)
        What the accumulators have to hold in the end.
    """
    k, lanes, rows, cols = shape.digit_bits, shape.lanes, shape.rows, shape.cols
    wanted = np.zeros((rows, cols), dtype=np.int64)
    wanted[: sums.shape[0], : sums.shape[1]] = sums

    def words(planes: Iterable[NDArray[Any]], height: int) -> list[int]:
        found = []
        for plane in planes:
            full = np.zeros((height, shape.columns), dtype=np.int64)
            full[: plane.shape[0], : plane.shape[1]] = plane
            for step in range(shape.steps):
                found.append(_word(full[:, step * lanes : (step + 1) * lanes].ravel(), k))
        return found

    def packed(tile: ArrayTile) -> NDArray[np.int64]:
        out = np.zeros(tile.mask.shape, dtype=np.int64)
        for row, codes in enumerate(tile.codes):
            out[row, : len(codes)] = codes
        return out

    def bitmap(tile: ArrayTile) -> int:
        full = np.zeros((rows, shape.columns), dtype=np.int64)
        full[: tile.mask.shape[0], : tile.mask.shape[1]] = tile.mask
        return _word(full.ravel(), 1)

    def turns(tile: ArrayTile) -> int:
        given = np.broadcast_to(tile.turn, len(tile.lsb))
        return _word(given, k + 1)

    control = [
        _word((tile.zero, tile.weights_signed, tile.lsb_signed), 1) | tile.slice << 3
        for tile in tiles
    ]
    vectors = {
        "columns": [tile.mask.shape[1] for tile in tiles],
        "control": control,
        "bitmap": [bitmap(tile) for tile in tiles],
        "turn": [turns(tile) for tile in tiles],
        "lsb": words((tile.lsb for tile in tiles), rows),
        "msb": words((packed(tile) for tile in tiles), rows),
        "weights": words((tile.weights for tile in tiles), cols),
        "cycles": [tile_cycles(tile, shape) for tile in tiles],
        "sums": [_word(row, 32) for row in wanted],
    }
    files = {f"{n}.hex": "".join(f"{line:x}\n" for line in x) for n, x in vectors.items()}
    sizes = {
        "ROWS": rows,
        "COLS": cols,
        "LANES": lanes,
        "BITS": k,
        "COLUMNS": shape.columns,
        "STEPS": shape.steps,
        "COLUMN_BITS": shape.columns.bit_length(),
        "STEP_BITS": shape.step_bits,
        "ROW_BITS": shape.row_bits,
        "GROUP_BITS": shape.group_bits,
        "SLICE_BITS": max((shape.weight_slices - 1).bit_length(), 1),
        "TILES": len(tiles),
        "DRAIN": PIPELINE_CYCLES,
    }
    text = _TESTBENCH.read_text(encoding="utf-8")
    parameters = "".join(f"  localparam {name} = {size};\n" for name, size in sizes.items())
    return {TESTBENCH: text.replace("  // SIZES\n", parameters), **files}


def readme(shape: ArrayShape, source: str) -> str:
    """What the ports and their timing are; `source` says what the vectors are of."""
    text = _README.read_text(encoding="utf-8")
    sizes = {
        "rows": shape.rows,
        "cols": shape.cols,
        "lanes": shape.lanes,
        "bits": shape.digit_bits,
        "columns": shape.columns,
        "drain": PIPELINE_CYCLES,
        "source": source,
    }
    for name, value in sizes.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text


def _word(values: Iterable[Any], bits: int) -> int:
    """Values of so many bits side by side, the first one lowest."""
    mask = (1 << bits) - 1
    return sum((int(value) & mask) << i * bits for i, value in enumerate(values))
