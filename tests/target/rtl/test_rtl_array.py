"""The array's RTL against the instructions' cycles and the integers of NumPy, tile by tile."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_cases import TINY, accelerator_for, encoded, random_operands

from sparqle_tvm.errors import TargetError
from sparqle_tvm.numerics import encode
from sparqle_tvm.target.accelerator import PIPELINE_CYCLES, PRESETS
from sparqle_tvm.target.compile.codegen import generate
from sparqle_tvm.target.compile.schedule import default_decisions, schedule_with
from sparqle_tvm.target.isa.compute import MmaLsb
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.target.rtl.shape import ArrayShape
from sparqle_tvm.target.simulator import activation_tensors, simulate, weight_tensors

pytest.importorskip("amaranth")
pytest.importorskip("pyosys")
if shutil.which("g++") is None:
    pytest.skip("no C++ compiler", allow_module_level=True)

from cosimulate import (
    CUTTING,
    SMALL,
    Models,
    check,
    check_program,
    draw,
    mma_tiles,
    random_tile,
    real_programs,
    tiles_of,
    turn_of,
)

from sparqle_tvm.target.rtl import array, cosim, pe
from sparqle_tvm.target.rtl.cosim import ArrayModel
from sparqle_tvm.target.rtl.trace import trace_tile


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
    model = ArrayModel(ArrayShape(*sizes, k, columns, group), folder / f"{k}-{group}")
    rng = np.random.default_rng(k + group)
    for _ in range(count):
        random_tile(model, rng)


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
def tiny_models(folder: Path) -> Models:
    """The array of `dense_cases.TINY` for each width of digits."""
    return Models(folder / "tiny", columns=72)


@pytest.mark.parametrize("cut", ["default", "small tiles"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled_programs(name: str, cut: str, tiny_models: Models):
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
    compared = check_program(tiny_models.of(program.header), run, tensors, turn_of(sliced))
    assert compared == len(run.bound.of(MmaLsb)) >= (1 if cut == "default" else 4)


def test_shared_rows_have_no_hardware():
    spec = DenseOp(m=1, n=10, k=72, output="int32")
    decisions = replace(default_decisions(spec, TINY), row_split=2)
    program = generate(schedule_with(spec, TINY, decisions), spec, TINY)
    operands = random_operands(spec, seed=0)
    tensors = activation_tensors(program.header, encoded(spec, operands, 1))
    tensors |= weight_tensors(program.header, operands.weights)
    with pytest.raises(TargetError, match="rows_share_k = false"):
        mma_tiles(simulate(program, tensors), tensors)


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
def test_tiles_of_the_real_model(folder: Path):
    """Programs of SmolLM2's layers: digits of 2, 4, 8 bits, both windows, sorted rows and not."""
    models, compared = Models(folder / "real"), 0
    for _, run, tensors, turn in real_programs(CUTTING, 12):
        compared += check_program(models.of(run.bound.header), run, tensors, turn, most=1)
    assert compared >= 200


MUTANTS = {
    # A digit's code that is negative is taken for the next larger one.
    "one-bit": ("~zero & (code >= turn)", "~zero & (code > turn)", "not equal"),
    # A row whose digits fill whole steps takes one more.
    "one-cycle": ("self.after.eq(left > lanes)", "self.after.eq(left >= lanes)", "cycles differ"),
    # A register more behind the multipliers.
    "one-stage": (
        "m.d.sync += held.eq(self.sums.word_select(group, self.sum_width))",
        "late = Signal(signed(self.sum_width))\n"
        "            m.d.sync += late.eq(self.sums.word_select(group, self.sum_width))\n"
        "            m.d.sync += held.eq(late)",
        "not equal",
    ),
}


@pytest.mark.parametrize("name", [None, *MUTANTS])
def test_a_mutant_of_the_rtl_is_found(
    name: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Random tiles of a copy of the RTL that is wrong by one bit, one cycle, one stage."""
    if name is not None:
        old, new, _ = MUTANTS[name]
        source = Path(pe.__file__).read_text()
        assert source.count(old) == 1
        mutant: dict[str, Any] = {"__name__": "mutant"}
        exec(compile(source.replace(old, new), pe.__file__, "exec"), mutant)
        monkeypatch.setattr(array, "PeRow", mutant["PeRow"])
    model = ArrayModel(ArrayShape(2, 1, 4, 4, 16), folder / f"mutant-{name}")

    def tiles() -> None:
        rng = np.random.default_rng(0)
        for _ in range(20):
            random_tile(model, rng)

    if name is None:
        tiles()
        return
    with pytest.raises(AssertionError, match=MUTANTS[name][2]):
        tiles()


def test_sums_are_not_whole_a_cycle_before(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """What simulator and formulas charge behind an MMA is what the RTL needs, and no more."""
    monkeypatch.setattr(cosim, "PIPELINE_CYCLES", PIPELINE_CYCLES - 1)
    model = ArrayModel(ArrayShape(2, 1, 4, 4, 16), folder / "early")
    with pytest.raises(AssertionError, match="not equal"):
        random_tile(model, np.random.default_rng(0))
