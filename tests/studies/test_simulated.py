"""A pass with its dense layers simulated: sums, shared programs, and the formulas beside it."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
from tiny_accelerator import TINY

from sparqle_tvm.errors import TargetError
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.studies.simulated import (
    program_for,
    simulate_op,
    simulated_pass_cost,
)
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.compile.buckets import bucket
from sparqle_tvm.target.compile.codegen import generate
from sparqle_tvm.target.compile.library import ProgramLibrary
from sparqle_tvm.target.compile.schedule import default_decisions, schedule_with
from sparqle_tvm.target.cost.analytical import encoding_costs
from sparqle_tvm.target.cost.baselines import Scheme
from sparqle_tvm.target.cost.model import EncodedActivation, SimulatedOp, Totals, pass_cost
from sparqle_tvm.target.cost.vector import TransformerShape
from sparqle_tvm.target.isa.header import Engine
from sparqle_tvm.target.op import SCHEMES, DenseOp
from sparqle_tvm.target.simulator import simulate_timing

EDGE = PRESETS["sparqle/edge"]
SHAPE = TransformerShape(layers=2, embed=8, ffn=12, heads=2, kv_heads=1, head_dim=4, vocab=20)


def random_nnz(m: int, k: int, share: float = 0.3) -> RowNnz:
    """Stored digits of a bitmap in which this share of bits is set."""
    mask = np.random.default_rng(m * k).random((m, k)) < share
    return RowNnz.from_pbm(np.packbits(mask, axis=1, bitorder="little"), k)


def encodings(m: int, scale: int = 1) -> list[EncodedActivation]:
    """A model of three dense ops on two encodings."""
    k = 64 * scale
    q = DenseOp(m, 32 * scale, k, 4, 32, True, "q")
    v = DenseOp(m, 16 * scale, k, 4, 32, True, "v")
    out = DenseOp(m, 64 * scale, k, 8, label="out")
    return [
        EncodedActivation("x", random_nnz(m, k), "signed", (q, v)),
        EncodedActivation("y", random_nnz(m, k, 0.6), "unsigned", (out,)),
    ]


@functools.cache
def edge_programs() -> ProgramLibrary:
    return ProgramLibrary(EDGE)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_parts_add_up(scheme: Scheme) -> None:
    done: list[None] = []
    options = {"tokens": 20, "past": 3, "scheme": scheme}
    cost = simulated_pass_cost(
        encodings(20),
        SHAPE,
        programs=edge_programs(),
        progress=lambda: done.append(None),
        **options,
    )
    assert [op.label for op in cost.ops] == ["q+v", "out"]
    assert len(done) == 2
    left = ["dense" if why is not None else scheme for why in cost.left]
    assert [op.scheme for op in cost.ops] == [e.scheme for e in cost.encodes] == left
    assert cost.scheme == scheme
    assert cost.dense_layers == Totals.of((*cost.ops, *cost.encodes))
    cycles = sum(part.total_cycles for part in (*cost.ops, *cost.encodes, *cost.vector))
    nbytes = sum(part.dram_bytes for part in (*cost.ops, *cost.encodes, *cost.vector))
    assert (cost.whole_model.cycles, cost.whole_model.dram_bytes) == (cycles, nbytes)
    assert cost.mma_cycles == sum(op.mma_cycles for op in cost.ops)
    for op in cost.ops:
        assert isinstance(op, SimulatedOp)
        assert op.mma_cycles + op.stalled_cycles == op.total_cycles
        assert max(op.mma_cycles, op.dma_cycles) <= op.total_cycles
        assert op.bound == ("compute" if op.mma_cycles >= op.dma_cycles else "memory")
    # Encodings and vector unit are counted, not simulated.
    counted = pass_cost(encodings(20), SHAPE, accelerator=EDGE, **options)
    assert (cost.encodes, cost.vector) == (counted.encodes, counted.vector)
    assert [op.macs for op in cost.ops] == [op.macs for op in counted.ops]


@pytest.mark.parametrize("m", [1, 20])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_op_is_what_its_program_takes(m: int, scheme: Scheme) -> None:
    shape, nnz = DenseOp(m, 48, 64, 4, 32, True, "q"), random_nnz(m, 64)
    op = simulate_op(shape, nnz, scheme, edge_programs())
    # 20 rows run the program of the bucket of 64 rows; the dense baseline has no window.
    spec = DenseOp(
        m=64 if m == 20 else 1,
        n=48,
        k=64,
        group_size=32,
        has_min=True,
        scheme=scheme,
        window="signed" if scheme == "sparqle" else "unsigned",
        label="q",
    )
    decisions = default_decisions(spec, EDGE)
    program = generate(schedule_with(spec, EDGE, decisions), spec, EDGE)
    assert edge_programs().programs[spec, decisions] == program
    result = simulate_timing(program, m, nnz if scheme == "sparqle" else None)
    assert op.total_cycles == result.total_cycles
    assert op.mma_cycles == result.engines[Engine.MMA].busy
    assert op.stalled_cycles == result.engines[Engine.MMA].stalled
    assert op.dram_bytes == result.counts.dram_bytes
    assert (op.label, op.scheme, op.macs) == ("q", scheme, m * 48 * 64)


def test_equal_ops_share_a_program() -> None:
    programs = ProgramLibrary(EDGE)
    shape = DenseOp(20, 16, 64, 4, 32, label="up")
    first = program_for(shape, "sparqle", programs)
    assert first.header.label == "up"
    for same in (replace(shape, label="gate"), replace(shape, m=17), replace(shape, m=64)):
        assert program_for(same, "sparqle", programs) is first
    assert len(programs.programs) == 1
    others = [
        program_for(replace(shape, m=65), "sparqle", programs),
        program_for(replace(shape, window="unsigned"), "sparqle", programs),
        program_for(replace(shape, window="unsigned"), "dense", programs),
    ]
    # A window means nothing to the baseline.
    assert program_for(shape, "dense", programs) is others[-1]
    assert len(programs.programs) == 4


def test_readers_of_one_encoding_share_the_chunk() -> None:
    # Weights of 8 bits leave room for shorter chunks than those of 4 bits, if each has its own.
    machine = replace(
        EDGE, scratchpad=False, weight_buffer_bytes=16384, activation_buffer_bytes=16384
    )
    readers = (DenseOp(64, 256, 2048, 8, label="a"), DenseOp(64, 16, 2048, 4, label="b"))
    cache = ProgramLibrary(machine)
    alone = [program_for(shape, "sparqle", cache) for shape in readers]
    shared = [program_for(shape, "sparqle", cache, readers) for shape in readers]
    assert len({p.header.k_chunk for p in alone}) == 2
    assert len({p.header.k_chunk for p in shared}) == 1
    # The formulas tile them in the same way.
    nnz = random_nnz(64, 2048)
    _, costs = encoding_costs("x", nnz, readers, machine, "sparqle")
    assert [cost.tiling.schedule.k for cost in costs] == [p.header.k_chunk for p in shared]
    passed = simulated_pass_cost(
        [EncodedActivation("x", nnz, "signed", readers)],
        SHAPE,
        tokens=64,
        past=0,
        scheme="sparqle",
        programs=cache,
    )
    ran = [simulate_timing(program, 64, nnz).total_cycles for program in shared]
    assert [op.total_cycles for op in passed.ops] == ran


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("m", "scale"), [(1, 1), (20, 1), (1, 4), (64, 4)])
def test_programs_stay_near_the_formulas(m: int, scale: int, scheme: Scheme) -> None:
    model = encodings(m, scale)
    options = {"tokens": m, "past": 0, "scheme": scheme}
    simulated = simulated_pass_cost(model, SHAPE, programs=edge_programs(), **options)
    counted = pass_cost(
        model, SHAPE, accelerator=EDGE, program_rows=lambda rows: bucket(rows, EDGE.rows), **options
    )
    for op, formula in zip(simulated.ops, counted.ops, strict=True):
        # Rows that stand idle may share K, which makes a pass shorter.
        assert op.mma_cycles <= formula.mma_cycles
        if m >= EDGE.rows:
            assert op.mma_cycles == formula.mma_cycles
        assert 0.99 <= op.dram_bytes / formula.dram_bytes <= 1.01
        # How engines overlap is what the formulas simplify; it shows most in tiny ops.
        assert 0.8 <= op.total_cycles / formula.total_cycles <= 1.3
    assert 0.9 <= simulated.dense_layers.cycles / counted.dense_layers.cycles <= 1.1


def test_sparser_activations_take_less() -> None:
    shape = DenseOp(20, 48, 64, 4, 32, label="q")
    sparse, full = (
        simulate_op(shape, random_nnz(20, 64, share), "sparqle", edge_programs())
        for share in (0.1, 1.0)
    )
    assert sparse.mma_cycles < full.mma_cycles
    assert sparse.dram_bytes < full.dram_bytes
    assert sparse.total_cycles <= full.total_cycles


def test_an_op_that_does_not_fit_is_refused() -> None:
    # One K chunk of 8192 columns in one group: 2 rows have 1024 bytes for it.
    shape = DenseOp(2, 2, 8192, 4, 8192, label="down")
    with pytest.raises(TargetError, match="tiny"):
        simulate_op(shape, random_nnz(2, 8192), "sparqle", ProgramLibrary(TINY))
