"""Hold the array's RTL to the simulator: integers and cycles of random tiles and of real programs.

    python benchmarks/cosimulate.py [--random 200] [--layers 24] [--target TARGET]

Random tiles have any rows, channels and columns. Programs are those of SmolLM2's layers as the
compiler cuts them, for both windows, rows as they come and sorted, digits of 2, 4 and 8 bits: what
the loads of every MMA bring on chip goes through the RTL. Its cycles have to be those of the MMA,
and its sums, scaled, the outputs of the run. Last a tile of 64 x 64 x 576 is timed. The array is a
small one, on which K chunks are short; building that of a preset takes minutes for each width of
digits. Needs the extra rtl and g++.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.errors import TargetError
from sparqle_tvm.numerics import encode, quantize_per_token
from sparqle_tvm.numerics.integers import bounds, container, unpack_digits
from sparqle_tvm.numerics.quantization import QuantizedWeights
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.numerics.slicing import SlicedTensor
from sparqle_tvm.numerics.window import WINDOWS
from sparqle_tvm.target.accelerator import PRESETS, Accelerator
from sparqle_tvm.target.compile.codegen import generate
from sparqle_tvm.target.compile.schedule import default_decisions, schedule_with
from sparqle_tvm.target.isa import INSTRUCTIONS
from sparqle_tvm.target.isa.access import Tensor
from sparqle_tvm.target.isa.compute import MmaLsb, MmaMsb
from sparqle_tvm.target.isa.header import Header
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.target.rtl.cosim import ArrayModel, ArrayResult, ArrayTile
from sparqle_tvm.target.rtl.shape import ArrayShape
from sparqle_tvm.target.simulator import SimResult, activation_tensors, simulate, weight_tensors
from sparqle_tvm.target.simulator.digits import digit_tables
from sparqle_tvm.target.simulator.ranges import position

SMALL = replace(PRESETS["sparqle/edge"], name="small", rows=4, cols=4, lanes=8)
CUTTING = replace(
    SMALL,
    scratchpad=False,
    activation_buffer_bytes=2048,
    weight_buffer_bytes=1024,
    accumulator_buffer_bytes=4096,
)
"""The small array with buffers that make the compiler cut K into many chunks."""
TOKENS = 16
_OPERANDS = ("lsb", "pbm", "msb", "wgt")


def draw(
    rng: np.random.Generator, shape: tuple[int, int], k: int, window: str, is_signed: bool
) -> SlicedTensor:
    """Integers of 2k bits with a random share of small ones, split by a window."""
    low, high = bounds(k, is_signed)
    zero = int(rng.integers(low, high + 1)) if window == "signed" else 0
    digits = WINDOWS[window].digits(k, signed=is_signed, zero_point=zero)
    small = rng.integers(digits.zero_range[0], digits.zero_range[1] + 1, shape)
    wide = rng.integers(low, high + 1, shape)
    # Rows differ, so that some wait; a few have no digit at all, or all.
    share = rng.choice([0.0, 0.1, 0.4, 1.0], (shape[0], 1))
    q = np.where(rng.random(shape) < share, wide, np.clip(small, low, high))
    q = q.astype(container(k, is_signed))
    return encode(q, k=k, window=window, zero_point=zero)


def turn_of(sliced: SlicedTensor) -> int:
    """The code from which on digits are negative, from the definition of a window's digits."""
    first = int(sliced.digits.digit_range[0])
    return first + (1 << sliced.k) if first < 0 else 1 << sliced.k


def tiles_of(
    sliced: SlicedTensor, weights: NDArray[np.int64], slices: int, chunk: int
) -> list[ArrayTile]:
    """The tiles of one row group and column block: K chunks, then slices of the weights."""
    k, columns = sliced.k, sliced.shape[1]
    mask, low = sliced.mask(), sliced.lsb_digits()
    codes = sliced.digits.code(sliced.msb_digits())
    tiles = []
    for begin in range(0, columns, chunk):
        part = slice(begin, begin + chunk)
        for index in range(slices):
            tiles.append(
                ArrayTile(
                    lsb=low[:, part],
                    mask=mask[:, part],
                    codes=[c[part][b[part]] for c, b in zip(codes, mask, strict=True)],
                    weights=(weights[:, part] >> k * index & (1 << k) - 1).astype(np.uint8),
                    turn=turn_of(sliced),
                    lsb_signed=sliced.window == "signed",
                    weights_signed=index == slices - 1,
                    zero=begin == 0 and index == 0,
                    slice=index,
                    drain=begin + chunk >= columns and index == slices - 1,
                )
            )
    return tiles


def expected_cycles(
    sliced: SlicedTensor, channels: int, slices: int, accelerator: Accelerator, chunk: int
) -> int:
    """MMA cycles of a tile of all rows, by what simulator and instructions say."""
    rows, columns = sliced.shape
    bits = {"weight_bits": slices * sliced.k, "digit_bits": sliced.k}
    op = DenseOp(m=rows, n=channels, k=columns, **bits)
    header = Header(accelerator=accelerator, op=op, k_chunk=chunk)
    tables = digit_tables(RowNnz.from_pbm(sliced.pbm, columns, 1), header, (1,))
    blocks = -(-channels // accelerator.cols) * slices
    cycles = blocks * int(tables.slowest[0][:, -1].sum())
    for begin in range(0, columns, chunk):
        width = min(chunk, columns - begin)
        values = {"m": rows, "n": channels, "k": width, "row_split": 1}
        cycles += int(np.sum(MmaLsb.cycles(header, values)))
    return cycles


def run_tile(
    model: ArrayModel,
    sliced: SlicedTensor,
    weights: NDArray[np.int64],
    slices: int,
    accelerator: Accelerator,
) -> tuple[NDArray[np.int64], list[ArrayResult]]:
    """Run (M, N, K) through the array: sums int64 (M, groups, N), and what every start gave."""
    shape = model.shape
    rows, channels = sliced.shape[0], len(weights)
    places, tiles = [], []
    for top in range(0, rows, accelerator.rows):
        height = min(accelerator.rows, rows - top)
        part = encode(
            sliced.decode()[top : top + height],
            k=sliced.k,
            window=sliced.window,
            zero_point=sliced.zero_point,
        )
        for left in range(0, channels, accelerator.cols):
            block = weights[left : left + accelerator.cols]
            made = tiles_of(part, block, slices, shape.columns)
            tiles += made
            places += [(top, height, left, len(block))] * len(made)
    found = model.run(tiles)
    sums = np.zeros((rows, shape.groups, channels), dtype=np.int64)
    for (top, height, left, width), result in zip(places, found, strict=True):
        if result.sums is not None:
            sums[top : top + height, :, left : left + width] = result.sums[:height, :, :width]
    return sums, found


def check(
    model: ArrayModel,
    accelerator: Accelerator,
    sliced: SlicedTensor,
    rng: np.random.Generator,
    channels: int,
    slices: int,
) -> int:
    """Assert that integers and cycles of a tile are equal; return the cycles."""
    k, columns, shape = sliced.k, sliced.shape[1], model.shape
    half = 1 << (k * slices - 1)
    weights = rng.integers(-half, half, (channels, columns))
    sums, found = run_tile(model, sliced, weights, slices, accelerator)
    # The array leaves out the constant of a channel: the centre times the sum of its weights.
    centred = sliced.decode().astype(np.int64) - sliced.digits.centre
    group = shape.group_size or shape.columns
    if columns <= shape.columns:
        exact = np.stack(
            [
                centred[:, at : at + group] @ weights[:, at : at + group].T
                for at in range(0, shape.columns, group)
            ],
            axis=1,
        )
    else:
        exact = (centred @ weights.T)[:, None]
    np.testing.assert_array_equal(sums, exact)
    cycles = expected_cycles(sliced, channels, slices, accelerator, shape.columns)
    assert sum(r.cycles for r in found) == cycles, "cycles differ"
    assert all(r.cycles == r.dense_cycles + r.sparse_cycles for r in found)
    return cycles


def random_tile(model: ArrayModel, rng: np.random.Generator) -> None:
    """Check a tile of any rows, channels and columns, any window, signed or not."""
    shape, k = model.shape, model.shape.digit_bits
    accelerator = replace(SMALL, rows=shape.rows, cols=shape.cols, lanes=shape.lanes, digit_bits=k)
    window = str(rng.choice(["signed", "unsigned"]))
    m, n = (int(rng.integers(1, 3 * most)) for most in (shape.rows, shape.cols))
    width = int(rng.integers(1, shape.columns + 1 if shape.group_size else 3 * shape.columns))
    sliced = draw(rng, (m, width), k, window, bool(rng.integers(2)))
    # int32 holds the sums of what the compiler lets through.
    check(model, accelerator, sliced, rng, n, int(rng.integers(1, 3)) if k < 8 else 1)


# Programs.


@dataclass(frozen=True, eq=False)
class MmaTile:
    """An MMA.LSB and the MMA.MSB of the same tile, with what their loads brought on chip.

    `lsb` (m, k) stored low digits, `mask` (m, k), `codes` of each row's stored digits, `weights`
    (n, k) integers as their bits. `cycles` are those of both in the run.
    """

    rows: slice
    channels: slice
    columns: slice
    lsb: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    codes: Sequence[NDArray[np.uint8]]
    weights: NDArray[np.int64]
    cycles: tuple[int, int]


def mma_tiles(run: SimResult, tensors: dict[Tensor, NDArray[Any]]) -> list[MmaTile]:
    """All multiplications of a run.

    Raises
    ------
    TargetError
        If PE rows share an activation row (`row_split`), which the RTL has no wires for.
    """
    bound, timing, header = run.bound, run.timing, run.bound.header
    op, k = header.op, header.op.digit_bits
    both: list[Any] = [bound.of(MmaLsb), bound.of(MmaMsb)]
    if any((operands["row_split"] > 1).any() for operands in both):
        raise TargetError(
            "row_split > 1 has no hardware description: PE rows would need weights of their own; "
            "set rows_share_k = false"
        )
    planes = unpack_digits(tensors[Tensor.LSB], k, op.k)
    bitmap = np.unpackbits(tensors[Tensor.PBM], axis=1, count=op.k, bitorder="little").astype(bool)
    weights = unpack_digits(tensors[Tensor.WGT], op.weight_bits, op.k)
    streams = _streams(header, bitmap, tensors[Tensor.MSB])

    def loaded(operands: Any, number: int, operand: str) -> tuple[slice, slice]:
        """Rows and columns that the tile of a step was loaded from."""
        step = operands.index[number]
        load = timing.sources[step, position(operands.cls, header, operand)]
        assert load >= 0
        cls = INSTRUCTIONS[int(bound.opcodes[load])]
        row, rows, col, cols = (
            int(bound.trace[load, cls.column(name)]) for name in ("row", "rows", "col", "cols")
        )
        return slice(row, row + rows), slice(col, col + cols)

    tiles = []
    for number in range(len(both[0])):
        lsb, msb = ({o: loaded(x, number, o) for o in x.cls.TRACE if o in _OPERANDS} for x in both)
        rows, columns = lsb["lsb"]
        channels, depth = lsb["wgt"]
        assert {*map(repr, (lsb["lsb"], msb["pbm"], msb["msb"]))} == {repr((rows, columns))}
        assert msb["wgt"] == (channels, depth)
        assert depth == columns
        extents = [both[0][axis][number] for axis in "mnk"]
        assert extents == [part.stop - part.start for part in (rows, channels, columns)]
        steps = [operands.index[number] for operands in both]
        tiles.append(
            MmaTile(
                rows=rows,
                channels=channels,
                columns=columns,
                lsb=planes[rows, columns],
                mask=bitmap[rows, columns],
                codes=[streams[row, columns.start] for row in range(rows.start, rows.stop)],
                weights=weights[channels, columns].astype(np.int64),
                cycles=tuple(int(timing.end[s] - timing.start[s]) for s in steps),
            )
        )
    return tiles


def _streams(
    header: Header, bitmap: NDArray[np.bool_], stream: NDArray[np.uint8]
) -> dict[tuple[int, int], NDArray[np.uint8]]:
    """Codes of every row and K chunk, as they lie behind each other in the stream."""
    found, at = {}, 0
    for begin in range(0, header.op.k, header.k_chunk):
        for row, bits in enumerate(bitmap[:, begin : begin + header.k_chunk]):
            count = int(bits.sum())
            nbytes = -(-count * header.op.digit_bits // 8)
            found[row, begin] = unpack_digits(stream[at : at + nbytes], header.op.digit_bits, count)
            at += nbytes
    return found


def check_program(
    model: ArrayModel,
    run: SimResult,
    tensors: dict[Tensor, NDArray[Any]],
    turn: int,
    most: int | None = None,
) -> int:
    """Assert that the RTL does what the MMAs of a run did: cycles of each pass, and outputs.

    Only the first `most` tiles of outputs are looked at. Returns how many MMAs that are.
    """
    header, op = run.bound.header, run.bound.header.op
    shape, order = model.shape, tensors.get(Tensor.ROW_ORDER, np.arange(op.m))
    outputs: dict[tuple[int, int], list[MmaTile]] = {}
    for tile in mma_tiles(run, tensors):
        outputs.setdefault((tile.rows.start, tile.channels.start), []).append(tile)
    compared = 0
    for parts in itertools.islice(outputs.values(), most):
        rows, channels = parts[0].rows, parts[0].channels
        sums = [np.zeros((len(p.lsb), shape.groups, len(p.weights)), np.int64) for p in parts]
        cycles = np.zeros((len(parts), 2), np.int64)
        for top, left in itertools.product(
            range(0, len(parts[0].lsb), shape.rows), range(0, len(parts[0].weights), shape.cols)
        ):
            here, there = slice(top, top + shape.rows), slice(left, left + shape.cols)
            made = [(p, s) for p in range(len(parts)) for s in range(op.weight_slices)]
            found = model.run(
                [_array_tile(parts[p], here, there, s, header, turn, p) for p, s in made]
            )
            for (p, _), result in zip(made, found, strict=True):
                assert result.cycles == result.dense_cycles + result.sparse_cycles
                cycles[p] += result.dense_cycles, result.sparse_cycles
                if result.sums is not None:
                    height, width = sums[p][here, :, there].shape[::2]
                    sums[p][here, :, there] = result.sums[:height, :, :width]
        assert cycles.tolist() == [list(p.cycles) for p in parts], "cycles differ"
        assert run.output is not None
        exact = _scaled(parts, sums, tensors, op)
        np.testing.assert_array_equal(exact, run.output[order[rows], channels])
        compared += len(parts)
    return compared


def _array_tile(
    part: MmaTile, rows: slice, channels: slice, index: int, header: Header, turn: int, chunk: int
) -> ArrayTile:
    op, last = header.op, index == header.op.weight_slices - 1
    ends = chunk == -(-op.k // header.k_chunk) - 1
    return ArrayTile(
        lsb=part.lsb[rows],
        mask=part.mask[rows],
        codes=part.codes[rows],
        weights=(part.weights[channels] >> index * op.digit_bits & (1 << op.digit_bits) - 1).astype(
            np.uint8
        ),
        turn=turn,
        lsb_signed=op.window == "signed",
        weights_signed=op.weight_signed and last,
        # Sums of groups leave the PEs after every chunk, to be scaled.
        zero=index == 0 and (chunk == 0 or bool(op.group_size)),
        slice=index,
        drain=last and (ends or bool(op.group_size)),
    )


def _scaled(
    parts: list[MmaTile],
    sums: list[NDArray[np.int64]],
    tensors: dict[Tensor, NDArray[Any]],
    op: DenseOp,
) -> NDArray[Any]:
    """Outputs of the sums of a tile, as the op defines them."""
    rows, channels = parts[0].rows, parts[0].channels
    if not op.group_size:
        total = sums[-1][:, 0].astype(np.int32)
        if op.output == "int32":
            return total
        scaled = total.astype(np.float32) * tensors[Tensor.ACT_SCALE][rows, None]
        return scaled * tensors[Tensor.W_SCALE][channels]
    wide = np.zeros((sums[0].shape[0], sums[0].shape[2]))
    for part, found in zip(parts, sums, strict=True):
        for number, begin in enumerate(range(part.columns.start, part.columns.stop, op.group_size)):
            group = begin // op.group_size
            scale = tensors[Tensor.W_SCALE][channels, group].astype(np.float64)
            wide += found[:, number] * scale
            if op.has_min:
                minimum = tensors[Tensor.W_MIN][channels, group].astype(np.float64)
                wide += tensors[Tensor.GROUP_SUMS][rows, group][:, None] * minimum
    return wide.astype(np.float32) * tensors[Tensor.ACT_SCALE][rows, None]


def real_programs(
    accelerator: Accelerator, layers: int
) -> Iterator[tuple[str, SimResult, dict[Tensor, NDArray[Any]], int]]:
    """Runs of SmolLM2's first layers: name, run, tensors in DRAM, turn of the digits.

    Digits, window and the order of rows take turns from layer to layer.
    """
    from sparqle_tvm.frontend.gguf_file import GGUFFile
    from sparqle_tvm.models.builtin import fetch_builtin
    from sparqle_tvm.models.quantized import quantizer_levels
    from sparqle_tvm.studies.rtl import layer_inputs

    inputs, file = layer_inputs(TOKENS), GGUFFile(fetch_builtin("smollm2"))
    forms = itertools.product((4, 2, 8), ("signed", "unsigned"), (False, True))
    turns = itertools.cycle(forms)
    for (label, x), (k, window, ordered) in zip(
        itertools.islice(inputs.items(), layers), turns, strict=False
    ):
        _, block, kind = label.split("_", 2)
        q, scale = quantize_per_token(x, qmax=quantizer_levels(k), k=k)
        stored = file.first_rows(f"blk.{block}.{kind}.weight", 1 << 16)
        assert stored is not None
        group, channels = stored.values.shape[1:]
        values = stored.values.reshape(-1, channels).T
        bits = max(4, k)
        weights = QuantizedWeights(
            np.ascontiguousarray(values),
            np.ascontiguousarray(stored.scale[:, 0].T),
            None if stored.minimum is None else np.ascontiguousarray(stored.minimum.T),
            bits,
        )
        machine = replace(accelerator, digit_bits=k)
        spec = DenseOp(
            m=len(q),
            n=channels,
            k=q.shape[1],
            digit_bits=k,
            weight_bits=bits,
            group_size=group,
            has_min=stored.minimum is not None,
            weight_signed=bits == 8 or bool((values < 0).any()),
            window=window,
            block_rows=len(q) if ordered else 0,
            label=label,
        )
        decisions = default_decisions(spec, machine)
        program = generate(schedule_with(spec, machine, decisions), spec, machine)
        sliced = encode(np.ascontiguousarray(q), k=k, window=window)
        tensors = activation_tensors(program.header, sliced, scale.reshape(-1))
        tensors |= weight_tensors(program.header, weights)
        name = f"{label}, k = {k}, {window}, {'sorted rows' if ordered else 'rows as they come'}"
        yield name, simulate(program, tensors), tensors, turn_of(sliced)


class Models:
    """Arrays for programs, built when they are needed, for K chunks of at least `columns`."""

    def __init__(self, folder: Path, columns: int = 64) -> None:
        self.folder, self.columns = folder, columns
        self._built: dict[ArrayShape, ArrayModel] = {}

    def of(self, header: Header) -> ArrayModel:
        """The array that a program runs on."""
        op = header.op
        columns = max(self.columns, min(header.k_chunk, op.k))
        shape = ArrayShape.of(header.accelerator, columns, op.group_size)
        if shape not in self._built:
            self._built[shape] = ArrayModel(shape, self.folder / f"{len(self._built)}")
        return self._built[shape]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--random", type=int, default=200, help="random tiles (200)")
    parser.add_argument("--layers", type=int, default=24, help="layers of SmolLM2 (24)")
    parser.add_argument("--target", help="accelerator of the programs; a small one if not given")
    arguments = parser.parse_args()
    accelerator = Accelerator.from_target(arguments.target) if arguments.target else CUTTING
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        model = ArrayModel(ArrayShape(4, 4, 8, 4, 32), Path(folder) / "random")
        for _ in range(arguments.random):
            random_tile(model, rng)
        print(f"{arguments.random} random tiles: integers and cycles equal")
        models, compared = Models(Path(folder)), 0
        for name, run, tensors, turn in real_programs(accelerator, arguments.layers):
            count = check_program(models.of(run.bound.header), run, tensors, turn, most=1)
            compared += count
            print(f"{name}: {count} MMAs of K chunks of {run.bound.header.k_chunk} equal")
        print(f"{compared} tiles of real programs: outputs and cycles equal")
        edge = PRESETS["sparqle/edge"]
        begin = time.perf_counter()
        large = ArrayModel(ArrayShape.of(edge, 64), Path(folder) / "edge")
        built = time.perf_counter()
        cycles = check(large, edge, draw(rng, (64, 576), 4, "signed", True), rng, 64, 1)
        print(
            f"64 x 64 x 576 on {edge.name}: {cycles} cycles in {time.perf_counter() - built:.1f} s "
            f"({built - begin:.1f} s to build the array)"
        )


if __name__ == "__main__":
    main()
