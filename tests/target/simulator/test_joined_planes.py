"""Both planes of a tile multiplied as one: where that is done, where not, and the same values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from simulator_programs import TINY, dense_program, header_for, integer_header, random_operands
from test_dot import EmulatedVnni

from sparqle_tvm.numerics import encode
from sparqle_tvm.target.isa import access
from sparqle_tvm.target.isa.compute import Drain, MmaLsb, MmaMsb, StOut
from sparqle_tvm.target.isa.header import Queue
from sparqle_tvm.target.isa.load import LdLsb, LdMsb, LdPbm, LdWgt
from sparqle_tvm.target.isa.operands import ALWAYS, Affine, Buffer, Extent
from sparqle_tvm.target.program import Program, ProgramBuilder
from sparqle_tvm.target.simulator import activation_tensors, native, simulate, spec
from sparqle_tvm.target.simulator import values as simulated
from sparqle_tvm.target.simulator.dram import DramTensors

M, N, K = 8, 12, 64
UNWRITTEN = np.iinfo(np.int32).min


@pytest.fixture(autouse=True)
def _vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one variant that joins planes, on every processor."""
    if "avx512vnni" not in native.host_features():
        dot = EmulatedVnni("vnni", lanes=16, depth=4, rows=8)
        monkeypatch.setattr(spec, "choose_dot", lambda _, __: dot)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[NDArray[Any], int, list[bool]]]:
    """Simulate: outputs, how many passes came along with another, and which tiles became one."""
    compiled, seen = simulated.executor, {}

    def watched(formats: spec.ValueSpec) -> Callable[..., None]:
        def execute(table: NDArray[np.int64], *memory: NDArray[Any]) -> None:
            compiled(formats)(table, *memory)
            seen["passes"] = int((table[:, 0] < 0).sum())
            held, joined = memory[7], memory[10]
            seen["joined"] = [bool(j) for h, j in zip(held, joined, strict=True) if h >= 0]

        return execute

    monkeypatch.setattr(simulated, "executor", watched)

    def call(program: Program, tensors: DramTensors) -> tuple[NDArray[Any], int, list[bool]]:
        output = simulate(program, tensors).output
        assert output is not None
        return output, seen["passes"], seen["joined"]

    return call


@pytest.mark.parametrize("scheme", ["sparqle", "dense"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_pair_of_passes_is_one(run: Any, scheme: str, bits: int) -> None:
    header = header_for(
        *(TINY, 19, 41, 700, 352), scheme=scheme, weight_bits=bits, window="unsigned"
    )
    program = dense_program(header, 8, 20)
    operands = random_operands(np.random.default_rng(0), header, 19)
    output, passes, joined = run(program, operands.tensors)
    np.testing.assert_array_equal(output, operands.expected, strict=True)
    tiles = 3 * 2  # of rows, of columns: each is decoded once, for all three panels
    assert passes == 3 * tiles
    assert sum(joined) == tiles


@pytest.mark.parametrize("large", [False, True])
def test_integers_that_int8_does_not_hold_take_two_passes(run: Any, large: bool) -> None:
    header = header_for(TINY, 16, N, K, K, act_signed=False, window="unsigned", output="int32")
    rng = np.random.default_rng(0)
    q = rng.integers(0, 128, (16, K)).astype(np.uint8)
    if large:
        q[9, 5] = 128  # one integer, of the second tile
    weights = random_operands(rng, header, 16)
    tensors = {**weights.tensors, **activation_tensors(header, encode(q, window="unsigned"))}
    output, passes, joined = run(dense_program(header, 8, N), tensors)
    assert passes == 2
    assert sum(joined) == 2 - large
    expected = q.astype(np.int64) @ weights.weights.values.astype(np.int64).T
    np.testing.assert_array_equal(output, expected)


def test_sums_of_groups_keep_their_order(run: Any) -> None:
    header = header_for(TINY, M, N, K, K, group_size=32)
    operands = random_operands(np.random.default_rng(0), header, M)
    output, passes, _ = run(dense_program(header, 8, N), operands.tensors)
    assert passes == 0
    np.testing.assert_array_equal(output, operands.expected, strict=True)


def two_passes(between: str) -> Program:
    """One tile; between its passes the low digits, or the accumulators, are used otherwise."""
    header = integer_header(2 * M, N, K, K)
    b = ProgramBuilder(header)
    tile = (Extent(M), Affine(), Extent(K))
    act = [(kind, kind.nbytes(header, M, K)) for kind in (access.LSB, access.PBM, access.MSB)]
    slots = [b.allocate(str(i), Buffer.ACT, nbytes) for i, (_, nbytes) in enumerate(act)]
    lsb, pbm, msb = (slot.at(()) for slot in slots)
    wgt = b.allocate("wgt", Buffer.WGT, access.WGT.nbytes(header, N, K)).at(())
    acc = b.allocate("acc", Buffer.ACC, M * N * header.accumulator_bytes).at(())
    b.emit(*(load(to, Affine(), *tile) for load, to in ((LdLsb, lsb), (LdPbm, pbm), (LdMsb, msb))))
    b.emit(LdWgt(wgt, Affine(), Extent(N), Affine(), Extent(K)))
    b.signal(Queue.ACT_READY)
    sizes = (Extent(M), Extent(N), Extent(K))
    store = (Drain(acc, None, None, *sizes[:2]), StOut(acc, Affine(), sizes[0], Affine(), sizes[1]))
    b.wait(Queue.ACT_READY)
    b.emit(MmaLsb(acc, lsb, wgt, None, *sizes, ALWAYS))
    if between == "low digits":
        b.signal(Queue.ACT_FREE)
        b.wait(Queue.ACT_FREE)
        b.emit(LdLsb(lsb, Affine(M), *tile))
        b.signal(Queue.ACT_READY)
        b.wait(Queue.ACT_READY)
    if between == "accumulators":
        b.signal(Queue.ACC_READY)
        b.wait(Queue.ACC_READY)
        b.emit(*store)
        b.signal(Queue.ACC_FREE)
        b.wait(Queue.ACC_FREE)
    b.emit(MmaMsb(acc, pbm, msb, None, wgt, None, *sizes))
    if between != "accumulators":
        b.signal(Queue.ACC_READY)
        b.wait(Queue.ACC_READY)
        b.emit(*store)
    return b.build()


@pytest.mark.parametrize("between", ["nothing", "low digits", "accumulators"])
def test_nothing_else_may_lie_between(run: Any, between: str) -> None:
    program = two_passes(between)
    operands = random_operands(np.random.default_rng(0), program.header, 2 * M)
    output, passes, _ = run(program, operands.tensors)
    assert passes == (between == "nothing")
    q, weights = operands.q[:M].astype(np.int64), operands.weights.values.astype(np.int64)
    seen = q & 15 if between == "accumulators" else q
    np.testing.assert_array_equal(output[:M], seen @ weights.T)
    assert (output[M:] == UNWRITTEN).all()
