"""Generated programs: verified, as listed, and refused where the hardware cannot follow."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from dense_cases import (
    EDGE,
    SPECS,
    TINY,
    accelerator_for,
    expected,
    random_operands,
    simulated,
)
from tvm import IRModule, s_tir

from sparqle_tvm.errors import CompileError, TargetError
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.compile.codegen import generate
from sparqle_tvm.target.compile.schedule import default_schedule, schedule_with
from sparqle_tvm.target.compile.tir import split_dense_primfunc
from sparqle_tvm.target.cost.schedule import Decisions, overflows
from sparqle_tvm.target.isa.base import Loop
from sparqle_tvm.target.isa.compute import Drain, MmaLsb, MmaMsb, StOut
from sparqle_tvm.target.isa.header import Queue
from sparqle_tvm.target.isa.load import LdChn, LdRow, LdWgt
from sparqle_tvm.target.isa.operands import M
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.target.program import Program

FUZZ_BATCHES, FUZZ_CASES = 10, 22


def compiled(spec: DenseOp, decisions: Decisions, accelerator: Accelerator = TINY) -> Program:
    """Program of an op, scheduled as decided; verified."""
    return generate(schedule_with(spec, accelerator, decisions), spec, accelerator)


def only(program: Program, cls: type) -> Any:
    """The one instruction of a class."""
    (found,) = [i for i in program.instructions if isinstance(i, cls)]
    return found


# The simulator compiles kernels per format, so the formats are few; shapes, tiles, loop orders and
# arrays are random.
FORMATS = [
    *SPECS.values(),
    DenseOp(m=1, n=1, k=12, group_size=12, weight_bits=2, has_min=True, has_offset=True),
    DenseOp(m=1, n=1, k=8, group_size=8, weight_bits=8, window="unsigned"),
]


def random_case(rng: np.random.Generator) -> tuple[DenseOp, Decisions, Accelerator]:
    """An op, a schedule that fits, and an array."""

    def pick(*values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    while True:
        form = pick(*FORMATS)
        group = form.group_size
        rows = pick(1, 2, 4, 8)
        spec = replace(
            form,
            block_rows=rows * int(rng.integers(1, 5)) if form.block_rows else 0,
            m=int(rng.integers(1, 40)),
            n=int(rng.integers(1, 40)),
            k=int(rng.integers(1, 9)) * group if group else int(rng.integers(1, 200)),
        )
        accelerator = replace(
            TINY,
            rows=rows,
            cols=pick(1, 3, 4, 8),
            lanes=pick(1, 4, 6, 8, 16),
            digit_bits=spec.digit_bits,
            msb_across_groups=pick(True, False),
            activation_buffer_bytes=1 << 16,
            scratchpad=pick(True, False),
            weight_buffer_bytes=1 << 16,
            accumulator_buffer_bytes=1 << 16,
        )
        decisions = Decisions(
            m=accelerator.rows * int(rng.integers(1, 6)),
            n=accelerator.cols * int(rng.integers(1, 6)),
            k=math.lcm(8, accelerator.lanes, max(group, 1)) * int(rng.integers(1, 4)),
            rows_outer=pick(True, False),
            keep_outer=pick(True, False),
            activation_slots=pick(1, 2, 3),
            weight_slots=pick(1, 2, 3),
            accumulator_slots=pick(1, 2, 3),
            row_split=int(rng.integers(1, max(accelerator.rows // spec.m, 1) + 1)),
        )
        if not overflows(spec, accelerator, decisions):
            return spec, decisions, accelerator


@pytest.mark.parametrize("batch", range(FUZZ_BATCHES))
def test_fuzzed_programs_verify_and_are_exact(batch: int) -> None:
    rng = np.random.default_rng([7, batch])
    for _ in range(FUZZ_CASES):
        spec, decisions, accelerator = random_case(rng)
        case = f"{spec}, {decisions}, {accelerator}"
        program = compiled(spec, decisions, accelerator)
        assert Program.from_bytes(program.to_bytes()) == program, case
        operands = random_operands(spec, seed=int(rng.integers(1 << 30)))
        exact = expected(spec, operands)
        for rows in {spec.m, int(rng.integers(1, spec.m + 1))}:
            out = simulated(program, operands, rows)
            np.testing.assert_array_equal(out, exact[:rows], err_msg=f"{rows} rows of {case}")


LISTED = {
    "prefill": DenseOp(m=512, n=1536, k=576, group_size=32, has_min=True, weight_signed=False),
    "sorted": DenseOp(m=512, n=960, k=576, group_size=32, block_rows=512),
    "decode": DenseOp(m=1, n=576, k=1536, group_size=32, has_min=True, weight_signed=False),
    "large": DenseOp(m=4096, n=11008, k=4096, weight_bits=8),
    "dense": DenseOp(m=256, n=1000, k=2048, scheme="dense", window="unsigned", output="int32"),
}


@pytest.mark.parametrize("name", LISTED)
def test_listing(name: str, golden: Callable[[str, str], None]) -> None:
    spec = replace(LISTED[name], label=name)
    program = generate(default_schedule(spec, EDGE), spec, EDGE)
    golden(f"codegen_{name}", program.disassemble())


def test_program_of_one_tile_has_no_loop() -> None:
    program = compiled(SPECS["minima"], Decisions(m=8, n=12, k=96))
    assert not [i for i in program.instructions if isinstance(i, Loop)]
    assert {a.slots for a in program.header.allocations} == {1}
    assert str(only(program, MmaLsb).zero) == "always"
    assert str(only(program, MmaMsb).zero) == "never"


def test_loops_bind_rows_and_clamp_edges() -> None:
    program = compiled(DenseOp(m=10, n=9, k=40), Decisions(m=4, n=4, k=16))
    loops = [(i.limit, i.step) for i in program.instructions if isinstance(i, Loop)]
    assert loops == [(M, 4), (9, 4), (40, 16)]
    mma = only(program, MmaLsb)
    assert [str(e) for e in (mma.m, mma.n, mma.k)] == [
        *("min(4, M - 4*i0)", "min(4, 9 - 4*i1)", "min(16, 40 - 16*i2)"),
    ]
    assert str(mma.zero) == "i2 == 0"
    store = only(program, StOut)
    assert (str(store.row), str(store.col)) == ("4*i0", "4*i1")


def test_whole_tiles_are_not_clamped() -> None:
    mma = only(compiled(DenseOp(m=8, n=8, k=32), Decisions(m=4, n=4, k=16)), MmaLsb)
    assert [str(e) for e in (mma.m, mma.n, mma.k)] == ["min(4, M - 4*i0)", "4", "16"]


@pytest.mark.parametrize("rows_outer", [True, False])
def test_parameters_are_loaded_with_what_they_belong_to(rows_outer: bool) -> None:
    decisions = Decisions(m=4, n=4, k=16, rows_outer=rows_outer)
    program = compiled(DenseOp(m=8, n=8, k=32), decisions)
    rows, channels, outputs = (only(program, cls).dst for cls in (LdRow, LdChn, LdWgt))
    assert rows.rotate == ((0,) if rows_outer else (0, 1))
    assert channels.rotate == ((0, 1) if rows_outer else (0,))
    assert outputs.rotate == (0, 1, 2)
    assert only(program, Drain).chn == channels


def test_kept_chunks_lie_side_by_side() -> None:
    # Two chunks of 4 x 16 weights, 32 bytes each, in a slot of 64 bytes per column tile.
    decisions = Decisions(m=4, n=4, k=16, rows_outer=False, keep_outer=True)
    program = compiled(DenseOp(m=12, n=8, k=32), decisions)
    weights = next(a for a in program.header.allocations if a.name == "wgt")
    assert (weights.slots, weights.slot_bytes) == (2, 64)
    loaded, used = only(program, LdWgt).dst, only(program, MmaLsb).wgt
    assert loaded.rotate == used.rotate == (0,)
    assert [c for _, c in loaded.offset.terms] == [c for _, c in used.offset.terms] == [32]
    # It is loaded in a loop of its own, before the loop over rows.
    assert loaded.offset.loops != used.offset.loops


def test_tokens_are_slots() -> None:
    decisions = Decisions(m=4, n=4, k=16, activation_slots=3, weight_slots=2, accumulator_slots=1)
    tokens = compiled(DenseOp(m=8, n=8, k=32), decisions).header.tokens
    assert {Queue(i): count for i, count in enumerate(tokens) if count} == {
        Queue.ACT_FREE: 3,
        Queue.WGT_FREE: 2,
        Queue.ACC_FREE: 1,
        Queue.ROW_FREE: 1,
        Queue.CHN_FREE: 1,
    }


def test_one_row_is_split_over_the_array() -> None:
    spec = DenseOp(m=1, n=8, k=256)
    program = generate(default_schedule(spec, EDGE), spec, EDGE)
    # 256 columns, 16 lanes: 16 steps; 8 PE rows need 2 + 3 cycles, 16 need 1 + 4, 4 need 4 + 2.
    assert only(program, MmaLsb).row_split == only(program, MmaMsb).row_split == 8


def test_dram_bytes_of_the_program_are_those_of_the_op() -> None:
    spec = DenseOp(m=10, n=9, k=64, group_size=32, has_min=True)
    program = compiled(spec, Decisions(m=4, n=4, k=32))
    steps = program.bind(10)
    row, col = LdWgt.column("rows"), LdWgt.column("cols")
    loads = steps[steps[:, 0] == LdWgt.OPCODE]
    # Every row tile loads all weights: ceil(10 / 4) times 9 x 64.
    assert (loads[:, row] * loads[:, col]).sum() == 3 * 9 * 64
    stores = steps[steps[:, 0] == StOut.OPCODE]
    assert (stores[:, StOut.column("rows")] * stores[:, StOut.column("cols")]).sum() == 90


@pytest.mark.parametrize("name", SPECS)
def test_default_schedules_verify(name: str) -> None:
    spec, accelerator = replace(SPECS[name], label=name), accelerator_for(SPECS[name])
    program = generate(default_schedule(spec, accelerator), spec, accelerator)
    assert program.header.label == name
    assert program.header.op.m == spec.m


@pytest.mark.parametrize(
    "shape", [(1, 11008, 4096), (64, 4096, 11008), (512, 1536, 576), (4096, 11008, 4096)]
)
@pytest.mark.parametrize("group_size", [0, 32])
def test_model_layers_compile(shape: tuple[int, int, int], group_size: int) -> None:
    m, n, k = shape
    spec = DenseOp(m=m, n=n, k=k, group_size=group_size, has_min=group_size > 0)
    program = generate(default_schedule(spec, EDGE), spec, EDGE)
    assert len(program.instructions) < 60


def test_too_large_tiles_are_refused() -> None:
    # Weights: 4 slots of 64 * 64 / 2 bytes; scale and offset of 64 channels, 2 slots of 512 bytes.
    spec = DenseOp(m=64, n=128, k=128, has_offset=True)
    with pytest.raises(TargetError, match="4 x 64 x 64 take 9216 bytes of the WGT buffer"):
        compiled(spec, Decisions(m=4, n=64, k=64, weight_slots=4))


def test_what_is_no_intrinsic_is_refused() -> None:
    spec = SPECS["int32"]
    with pytest.raises(CompileError, match=r"block 'mma_lsb' is not an intrinsic .* IfThenElse"):
        generate(split_dense_primfunc(spec), spec, TINY)
    plain = schedule_with(spec, TINY, Decisions(m=4, n=4, k=16), tensorize=False)
    with pytest.raises(CompileError, match="block 'mma_lsb_init' is not an intrinsic"):
        generate(plain, spec, TINY)


def test_another_op_is_refused() -> None:
    sch = schedule_with(SPECS["int32"], TINY, Decisions(m=4, n=4, k=16))
    with pytest.raises(CompileError, match="computes 5 x 9 x 40, the op is 5 x 9 x 48"):
        generate(sch, replace(SPECS["int32"], k=48), TINY)
    function = sch.mod["main"]
    with pytest.raises(CompileError, match="the module has 2"):
        generate(IRModule({"a": function, "b": function}), SPECS["int32"], TINY)
    with pytest.raises(CompileError, match=r"no attribute 'sparqle.extent'"):
        generate(function.without_attr("sparqle.extent"), SPECS["int32"], TINY)


def block_loops(sch: s_tir.Schedule, name: str) -> list[Any]:
    """Loops around a block."""
    return sch.get_loops(sch.get_sblock(name))


def test_loops_that_engines_cannot_walk_are_refused() -> None:
    spec, decisions = DenseOp(m=16, n=8, k=32), Decisions(m=4, n=4, k=16)
    sch = schedule_with(spec, TINY, decisions)
    sch.unroll(block_loops(sch, "drain_o")[0])
    with pytest.raises(CompileError, match="not serial"):
        generate(sch, spec, TINY)
    sch = schedule_with(spec, TINY, decisions)
    sch.split(block_loops(sch, "drain_o")[0], [2, None])
    with pytest.raises(CompileError, match="a loop of 2 steps of 8 does not walk along m"):
        generate(sch, spec, TINY)
