"""The array's RTL against the instructions' cycles and the integers of NumPy, tile by tile."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_cases import TINY, accelerator_for, encoded, random_operands
from msb_sparsity_table import activations
from numpy.typing import NDArray

from sparqle_tvm.calibration.choosable_model import ChoosableModel
from sparqle_tvm.errors import TargetError
from sparqle_tvm.frontend import from_gguf
from sparqle_tvm.frontend.text import builtin_text, load_tokens
from sparqle_tvm.models.builtin import fetch_builtin
from sparqle_tvm.models.quantized import quantizer_levels
from sparqle_tvm.numerics import encode, quantize_per_token
from sparqle_tvm.numerics.integers import bounds, container
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.numerics.slicing import SlicedTensor
from sparqle_tvm.numerics.window import WINDOWS
from sparqle_tvm.target.accelerator import PRESETS, Accelerator
from sparqle_tvm.target.compile.codegen import generate
from sparqle_tvm.target.compile.schedule import default_decisions, schedule_with
from sparqle_tvm.target.isa.access import Tensor
from sparqle_tvm.target.isa.compute import MmaLsb, MmaMsb
from sparqle_tvm.target.isa.header import Header
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.target.rtl.shape import ArrayShape
from sparqle_tvm.target.simulator import activation_tensors, simulate, weight_tensors
from sparqle_tvm.target.simulator.digits import digit_tables

pytest.importorskip("amaranth")
pytest.importorskip("pyosys")
if shutil.which("g++") is None:
    pytest.skip("no C++ compiler", allow_module_level=True)

from sparqle_tvm.target.rtl.cosim import ArrayModel, ArrayResult, ArrayTile
from sparqle_tvm.target.rtl.trace import trace_tile

SMALL = replace(PRESETS["sparqle/edge"], name="small", rows=4, cols=4, lanes=8)


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


def check(model: ArrayModel, accelerator: Accelerator, sliced: SlicedTensor, rng, channels, slices):
    """Integers and cycles of a tile are equal, to the bit and the cycle."""
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
    assert sum(r.cycles for r in found) == cycles
    assert all(r.cycles == r.dense_cycles + r.sparse_cycles for r in found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("array")


@pytest.mark.parametrize(
    ("k", "columns", "group", "sizes", "count"),
    [
        (4, 32, 0, (4, 4, 8), 120),
        (4, 32, 8, (3, 2, 4), 60),
        (2, 24, 12, (2, 3, 8), 40),
        (8, 16, 0, (2, 2, 4), 40),
    ],
)
def test_random_tiles(
    k: int, columns: int, group: int, sizes: tuple[int, int, int], count: int, folder: Path
):
    """Both windows, signed and unsigned activations, any rows, channels and columns."""
    rows, cols, lanes = sizes
    accelerator = replace(SMALL, rows=rows, cols=cols, lanes=lanes, digit_bits=k)
    model = ArrayModel(ArrayShape(rows, cols, lanes, k, columns, group), folder / f"{k}-{group}")
    rng = np.random.default_rng(k + group)
    for _ in range(count):
        window = str(rng.choice(["signed", "unsigned"]))
        m, n = (int(rng.integers(1, 3 * most)) for most in (rows, cols))
        width = int(rng.integers(1, columns + 1 if group else 3 * columns))
        sliced = draw(rng, (m, width), k, window, bool(rng.integers(2)))
        # int32 holds the sums of what the compiler lets through.
        check(model, accelerator, sliced, rng, n, int(rng.integers(1, 3)) if k < 8 else 1)


def test_waiting_rows_are_counted(folder: Path):
    """A row of 9 digits takes 3 steps of 4 lanes; one of 1 digit waits 2, one of none 3."""
    model = ArrayModel(ArrayShape(3, 2, 4, 4, 16), folder / "waiting")
    q = np.zeros((3, 16), dtype=np.int8)
    q[0, :9], q[1, 15] = 100, -100
    sliced = encode(q)
    (found,) = model.run(tiles_of(sliced, np.ones((2, 16), dtype=np.int64), 1, 16))
    assert (found.dense_cycles, found.sparse_cycles, found.waiting) == (4, 3, 5)
    assert found.sums is not None
    np.testing.assert_array_equal(found.sums[:, 0, 0], [900, -100, 0])


def test_a_trace_has_every_cycle():
    """In Amaranth's simulator: passes of the right length, rows that wait, `ready` at the end."""
    rng = np.random.default_rng(5)
    shape = ArrayShape(rows=4, cols=1, lanes=4, columns=24)
    for columns in (3, 16, 23):
        sliced = draw(rng, (3, columns), 4, "signed", True)
        trace, nnz = trace_tile(shape, sliced), sliced.row_nnz()
        dense, steps = -(-columns // 4), -(-nnz // 4)
        order = [False] + [True] * dense + [False] * int(steps.max())
        assert trace.dense.tolist() == order
        assert trace.sparse.tolist() == [False] * (1 + dense) + [True] * int(steps.max())
        assert trace.ready.tolist() == [True] + [False] * (len(order) - 2) + [True]
        assert trace.waiting.sum(axis=1).tolist() == (steps.max() - steps).tolist()
        assert trace.digits.tolist() == nnz.tolist()


PROGRAMS = {
    "signed": DenseOp(m=13, n=10, k=72, output="int32"),
    "unsigned, weights of two slices": DenseOp(
        m=13, n=10, k=72, output="int32", window="unsigned", weight_bits=8
    ),
    "uint8": DenseOp(m=9, n=10, k=64, act_signed=False, centre=117, output="int32"),
    "sorted rows": DenseOp(m=19, n=10, k=64, block_rows=8),
    "digits of 2": DenseOp(m=13, n=6, k=64, digit_bits=2, output="int32"),
    "digits of 8": DenseOp(m=13, n=6, k=40, digit_bits=8, weight_bits=8, output="int32"),
}


@pytest.fixture(scope="module")
def tiny_models(folder: Path) -> dict[int, ArrayModel]:
    """The array of `dense_cases.TINY` for each width of digits."""
    return {
        k: ArrayModel(ArrayShape(TINY.rows, TINY.cols, TINY.lanes, k, 72), folder / f"tiny-{k}")
        for k in (2, 4, 8)
    }


@pytest.mark.parametrize("cut", ["default", "small tiles"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled_programs(name: str, cut: str, tiny_models: dict[int, ArrayModel]):
    """Every MMA of a program takes as long in the RTL as in its run, and gives its integers."""
    spec = PROGRAMS[name]
    accelerator = accelerator_for(spec)
    decisions = default_decisions(spec, accelerator)
    if cut == "small tiles":
        decisions = replace(decisions, m=8, n=8, k=24)
    program = generate(schedule_with(spec, accelerator, decisions), spec, accelerator)
    operands = random_operands(spec, seed=len(name))
    sliced = encoded(spec, operands, spec.m)
    tensors = activation_tensors(program.header, sliced, operands.act_scale)
    tensors |= weight_tensors(program.header, operands.weights, operands.offset)
    run = simulate(program, tensors)
    order = tensors[Tensor.ROW_ORDER] if spec.block_rows else np.arange(spec.m)
    starts, places, tiles = {}, [], []
    for top in range(0, spec.m, decisions.m):
        tile_rows = order[top : top + decisions.m]
        for left, at in itertools.product(
            range(0, spec.n, decisions.n), range(0, len(tile_rows), accelerator.rows)
        ):
            rows = tile_rows[at : at + accelerator.rows]
            part = encode(
                np.ascontiguousarray(operands.q[rows]),
                k=spec.digit_bits,
                window=spec.window,
                zero_point=spec.centre,
            )
            for channel in range(left, min(left + decisions.n, spec.n), accelerator.cols):
                until = min(channel + accelerator.cols, left + decisions.n, spec.n)
                block = operands.weights.values[channel:until].astype(np.int64)
                made = tiles_of(part, block, spec.weight_slices, decisions.k)
                for number, tile in enumerate(made):
                    starts[len(tiles)] = (top, left, number // spec.weight_slices)
                    places.append((rows, channel, until))
                    tiles.append(tile)
    found = tiny_models[spec.digit_bits].run(tiles)
    sums = np.zeros((spec.m, spec.n), dtype=np.int64)
    taken: dict[tuple[int, int, int], NDArray[np.int64]] = {}
    for number, ((rows, channel, until), result) in enumerate(zip(places, found, strict=True)):
        passes = np.array([result.dense_cycles, result.sparse_cycles])
        assert result.cycles == passes.sum()
        taken[starts[number]] = taken.get(starts[number], 0) + passes
        if result.sums is not None:
            sums[rows, channel:until] = result.sums[: len(rows), 0, : until - channel]
    outputs: NDArray[Any] = sums.astype(np.int32)
    if spec.output == "float32":
        outputs = outputs.astype(np.float32) * operands.act_scale[:, None]
        outputs = outputs * operands.weights.scale
    np.testing.assert_array_equal(outputs, run.output)
    for which, cls in enumerate((MmaLsb, MmaMsb)):
        steps = run.bound.of(cls).index
        cycles = (run.timing.end - run.timing.start)[steps]
        assert sorted(cycles.tolist()) == sorted(int(t[which]) for t in taken.values()), cls
    assert cut == "default" or len(taken) >= 4


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"columns": 20}, "multiple of the 8 lanes"),
        ({"columns": 64, "group_size": 24}, "multiple of group_size"),
        ({"columns": 0}, "positive sizes"),
        ({"lanes": 2, "columns": 4, "digit_bits": 2}, "whole bytes"),
        ({"lanes": 12, "columns": 24}, "power of two"),
    ],
)
def test_sizes_that_cannot_be_built(sizes: dict[str, int], words: str):
    with pytest.raises(TargetError, match=words):
        ArrayShape(**{"rows": 4, "cols": 4, "lanes": 8, **sizes})


def test_shape_of_an_accelerator():
    """Columns are rounded up to whole steps; what has no hardware says so."""
    shape = ArrayShape.of(PRESETS["sparqle/edge"], 100)
    assert (shape.rows, shape.cols, shape.lanes, shape.columns) == (16, 16, 16, 112)
    with pytest.raises(TargetError, match="msb_across_groups"):
        ArrayShape.of(replace(SMALL, msb_across_groups=False), 64)


@pytest.fixture(scope="module")
def edge_model(folder: Path) -> ArrayModel:
    """The array of ``sparqle/edge``, with a window of 64 columns."""
    return ArrayModel(ArrayShape.of(PRESETS["sparqle/edge"], 64), folder / "edge")


@pytest.mark.slow
def test_large_tile(edge_model: ArrayModel):
    """64 x 64 x 576, in K chunks as wide as the window."""
    rng = np.random.default_rng(0)
    sliced = draw(rng, (64, 576), 4, "signed", True)
    check(edge_model, PRESETS["sparqle/edge"], sliced, rng, 64, 1)


@pytest.mark.slow
def test_tiles_of_the_real_model(edge_model: ArrayModel):
    """What dense layers of SmolLM2 take, quantized per token: 16 rows, 576 columns of each."""
    imported = from_gguf(fetch_builtin("smollm2"), activations="int8")
    ids = np.asarray(load_tokens(imported.tokenizer, builtin_text(), 32), np.int32)
    rng, layers = np.random.default_rng(1), 0
    for _, x in itertools.islice(activations(ChoosableModel(imported.mod), ids), 26):
        rows = quantize_per_token(np.asarray(x, np.float32), qmax=quantizer_levels(4))[0]
        for window in WINDOWS:
            order = np.arange(len(rows))
            if layers % 2:  # Sorted by stored digits, as the compiler sorts rows.
                order = np.argsort(encode(rows, window=window).row_nnz(), kind="stable")
            sliced = encode(np.ascontiguousarray(rows[order][:16, :576]), window=window)
            check(edge_model, PRESETS["sparqle/edge"], sliced, rng, 16, 1)
        layers += 1
    assert layers == 26
