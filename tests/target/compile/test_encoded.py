"""Outputs that leave quantized and encoded: programs, their values, bytes, cycles and faults."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from dense_cases import EDGE, TINY, Operands, encoded, expected, random_operands, run_primfunc
from handmade import Tiles, dense_program, make_header, with_op
from mutations import Mutator
from tie import draw_digits

from sparqle_tvm.errors import CompileError, InvalidArgumentError, ProgramError, SparqleError
from sparqle_tvm.numerics import encode, plane_bytes
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.compile.codegen import generate
from sparqle_tvm.target.compile.library import ProgramLibrary
from sparqle_tvm.target.compile.schedule import schedule_with
from sparqle_tvm.target.compile.tir import split_dense_primfunc
from sparqle_tvm.target.cost.analytical import dense_op_cost
from sparqle_tvm.target.cost.events import simulated_events
from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.target.cost.tiling import choose_drained
from sparqle_tvm.target.isa.access import Tensor
from sparqle_tvm.target.isa.compute import StEnc, StOut
from sparqle_tvm.target.isa.header import Header
from sparqle_tvm.target.isa.operands import Affine, Extent
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.simulator import (
    SimResult,
    activation_tensors,
    simulate,
    simulate_timing,
    tile_order,
    weight_tensors,
)
from sparqle_tvm.target.verify import verify

RELU = {"out_low": -9, "out_zero": -9, "out_high": 127}
FORMS = {
    "relu": DenseOp(m=1, n=1, k=1, output="encoded", out_chunk=8, **RELU),
    "groups": DenseOp(
        m=1,
        n=1,
        k=16,
        group_size=16,
        has_min=True,
        output="encoded",
        out_chunk=8,
        out_window="signed",
        out_low=-127,
        out_high=127,
    ),
    "digits of 2": DenseOp(
        m=1,
        n=1,
        k=1,
        digit_bits=2,
        window="unsigned",
        output="encoded",
        out_chunk=8,
        out_window="signed",
        out_low=-8,
        out_high=7,
    ),
    "digits of 8": DenseOp(
        m=1,
        n=1,
        k=1,
        digit_bits=8,
        output="encoded",
        out_chunk=8,
        out_low=-30000,
        out_high=32767,
        out_zero=77,
    ),
}
FORMS["uint8"] = DenseOp(
    *(1, 1, 1),
    act_signed=False,
    centre=99,
    output="encoded",
    out_chunk=8,
    out_signed=False,
    out_window="signed",
    out_centre=131,
    out_zero=131,
    out_high=255,
)
FORMS["rows"] = replace(FORMS["uint8"], centre=0, row_zeros=True, adds_shift=True)
BIASED = {"has_bias": True, "has_offset": True}
MIDWAY = {"mid_low": 0, "mid_high": 255, "mid_zero": 117}
FORMS["bias"] = replace(FORMS["uint8"], **BIASED)
FORMS["bias and groups"] = replace(FORMS["groups"], **BIASED)
FORMS["bias and rows"] = replace(FORMS["rows"], **BIASED)
FORMS["grid"] = replace(FORMS["relu"], **MIDWAY)
FORMS["grid and bias"] = replace(FORMS["rows"], **BIASED, **MIDWAY)
FORMS["grid, bias and groups"] = replace(FORMS["bias and groups"], **MIDWAY)
OUT_SCALE = np.array([0.7], np.float32)
MID_SCALE = np.array([0.83], np.float32)
CASES = 7


def quantized(spec: DenseOp, operands: Operands, scale: Any = OUT_SCALE) -> Any:
    """What the drain makes of the float outputs: (M, N) int8 or int16, in plain NumPy."""
    y = expected(replace(spec, output="float32", **NO_FORMAT), operands)
    if spec.has_mid:
        steps = np.round(y / MID_SCALE) + np.float32(spec.mid_zero)
        y = (np.clip(steps, spec.mid_low, spec.mid_high) - spec.mid_zero).astype(np.float32)
        y = y * MID_SCALE
    if spec.has_bias:
        y = y + operands.bias
    assert y.dtype == np.float32
    q = np.clip(np.round(y / scale) + np.float32(spec.out_zero), spec.out_low, spec.out_high)
    return q.astype(spec.out_dtype)


NO_FORMAT = {
    **{"out_chunk": 0, "out_window": "unsigned", "out_zero": 0, "out_low": 0, "out_high": 0},
    **{"out_signed": True, "out_centre": 0, "has_bias": False},
    **{"mid_zero": 0, "mid_low": 0, "mid_high": 0},
}


def compiled(spec: DenseOp, decisions: Decisions, accelerator: Accelerator = TINY) -> Program:
    return generate(schedule_with(spec, accelerator, decisions), spec, accelerator)


def run(program: Program, operands: Operands, rows: int) -> SimResult:
    header = program.header
    sliced = encoded(header.op, operands, rows)
    tensors = activation_tensors(header, sliced, operands.act_scale[:rows])
    tensors |= weight_tensors(header, operands.weights, operands.offset)
    drain = {Tensor.OUT_SCALE: OUT_SCALE, Tensor.MID_SCALE: MID_SCALE, Tensor.BIAS: operands.bias}
    return simulate(program, {**tensors, **drain})


def reader(header: Header) -> Header:
    """Header of a program that reads the outputs."""
    return make_header(
        *(header.op.m, 4, header.op.n, header.op.out_chunk, header.accelerator),
        window=header.op.out_window,
        act_signed=header.op.out_signed,
        centre=header.op.out_centre,
        output="int32",
    )


def assert_encodes(result: SimResult, header: Header, q: Any) -> None:
    """The outputs of a run are q as a next program reads it, byte by byte."""
    op = header.op
    sliced = encode(q, k=op.digit_bits, window=op.out_window, zero_point=op.out_centre)
    stream, pointers = tile_order(reader(header), sliced.pbm, sliced.msb, sliced.row_ptr)
    assert result.output is None
    assert result.encoded is not None
    np.testing.assert_array_equal(result.encoded[Tensor.OUT_LSB], sliced.lsb)
    np.testing.assert_array_equal(result.encoded[Tensor.OUT_PBM], sliced.pbm)
    np.testing.assert_array_equal(result.encoded[Tensor.OUT_MSB_PTR], pointers)
    np.testing.assert_array_equal(result.encoded[Tensor.OUT_MSB][: stream.size], stream)
    written = result.counts.dram_write_bytes
    assert written == {
        Tensor.OUT_LSB: sliced.lsb.nbytes,
        Tensor.OUT_PBM: sliced.pbm.nbytes,
        Tensor.OUT_MSB: stream.nbytes,
        Tensor.OUT_MSB_PTR: pointers.nbytes - 4,
    }


def random_case(rng: np.random.Generator, form: DenseOp) -> tuple[DenseOp, Decisions, Any]:
    """An op of a form, a schedule and an array: chunks may end anywhere, rows too."""
    rows, cols, lanes = (int(rng.choice(sizes)) for sizes in ((1, 2, 4), (1, 4, 8), (1, 8)))
    group = form.group_size
    spec = replace(
        form,
        m=int(rng.integers(1, 30)),
        n=int(rng.integers(1, 40)),
        k=int(rng.integers(1, 5)) * group if group else int(rng.integers(1, 100)),
        out_chunk=math.lcm(8, cols, lanes) * int(rng.integers(1, 4)),
    )
    accelerator = replace(
        TINY,
        rows=rows,
        cols=cols,
        lanes=lanes,
        digit_bits=spec.digit_bits,
        activation_buffer_bytes=1 << 16,
        scratchpad=False,
        weight_buffer_bytes=1 << 16,
        accumulator_buffer_bytes=1 << 16,
    )
    decisions = Decisions(
        m=rows * int(rng.integers(1, 6)),
        n=spec.out_chunk,
        k=math.lcm(8, lanes, max(group, 1)) * int(rng.integers(1, 4)),
        rows_outer=False,
        keep_outer=bool(rng.integers(2)),
        accumulator_slots=int(rng.integers(1, 3)),
    )
    return spec, decisions, accelerator


@pytest.mark.parametrize("name", FORMS)
def test_fuzzed_programs_store_what_the_next_op_reads(name: str) -> None:
    rng = np.random.default_rng(sum(map(ord, name)))
    for _ in range(CASES):
        spec, decisions, accelerator = random_case(rng, FORMS[name])
        program = compiled(spec, decisions, accelerator)
        assert Program.from_bytes(program.to_bytes()) == program
        operands = random_operands(spec, seed=int(rng.integers(1 << 30)))
        q = quantized(spec, operands)
        for rows in {spec.m, int(rng.integers(1, spec.m + 1))}:
            result = run(program, operands, rows)
            assert_encodes(result, program.header, q[:rows])
            # Without values, with the digits that the outputs have: the same times and counts.
            nnz = RowNnz.from_pbm(encoded(spec, operands, rows).pbm, spec.k)
            assert result.encoded is not None
            stored = RowNnz.from_pbm(result.encoded[Tensor.OUT_PBM], spec.n)
            timed = simulate_timing(program, rows, nnz, stored)
            assert timed.counts == result.counts
            assert timed.total_cycles == result.total_cycles
            most = simulate_timing(program, rows, nnz)
            assert most.total_cycles >= timed.total_cycles


@pytest.mark.parametrize("name", ["relu", "groups", "grid and bias"])
def test_the_function_computes_the_same(name: str) -> None:
    """The scheduled TIR, compiled for the host without intrinsics."""
    spec = replace(FORMS[name], m=9, n=20, k=32, out_chunk=8)
    operands = random_operands(spec, seed=3)
    decisions = Decisions(m=4, n=8, k=16, rows_outer=False)
    scheduled = schedule_with(spec, TINY, decisions, tensorize=False).mod
    for function, multiple in ((split_dense_primfunc(spec), (1, 1, 1)), (scheduled, (4, 8, 16))):
        found = run_primfunc(function, spec, operands, multiple, OUT_SCALE, MID_SCALE)
        np.testing.assert_array_equal(found, quantized(spec, operands))


def test_ties_and_limits() -> None:
    """One weight of 1 and scales of 1: outputs are the inputs, divided by 2, 4 and a half."""
    spec = replace(FORMS["relu"], m=255, n=8, k=8, out_low=-128, out_zero=0)
    program = compiled(spec, Decisions(m=8, n=8, k=8, rows_outer=False))
    operands = random_operands(spec, seed=0)
    operands.q[...] = 0
    operands.q[:, 0] = np.arange(-127, 128)
    operands.weights.values[...] = 0
    operands.weights.values[:, 0] = 1
    operands.weights.scale[...] = 1
    operands.act_scale[...] = 1
    for scale in (2, 4, 0.5):
        OUT_SCALE[0] = scale
        try:
            result = run(program, operands, spec.m)
        finally:
            OUT_SCALE[0] = np.float32(0.7)
        q = np.clip(np.round(operands.q[:, :1] / scale), -128, 127).astype(np.int8)
        assert_encodes(result, program.header, np.repeat(q, 8, axis=1))


SPEC = replace(FORMS["relu"], m=16, n=24, k=32, out_chunk=16)
PROGRAM_DECISIONS = Decisions(m=8, n=16, k=32, rows_outer=False)
PROGRAM = compiled(SPEC, PROGRAM_DECISIONS)


def test_cycles_of_a_store_by_hand() -> None:
    """The last store ends the run; STORE does nothing but drain and store."""
    operands = random_operands(SPEC, seed=1)
    result = run(PROGRAM, operands, 16)
    header, machine = PROGRAM.header, PROGRAM.header.accelerator
    sliced = encode(quantized(SPEC, operands), k=4, window="unsigned")
    stream = reader(header)
    _, pointers = tile_order(stream, sliced.pbm, sliced.msb, sliced.row_ptr)
    busy = 0
    # Tiles (8 rows, 16 columns) x 2, then (8, 8) x 2; pointers every 4 rows: 2 row groups a tile.
    for cols, low in ((16, 0), (16, 2), (8, 4), (8, 6)):
        digits = int(pointers[low + 2] - pointers[low])
        nbytes = 8 * cols // 2 + 8 * cols // 8 + 2 * 4 + digits
        # One piece of memory: a descriptor, then the bytes.
        busy += machine.dma_descriptor_cycles
        busy += math.ceil(nbytes / machine.dram_bytes_per_cycle)
    engine = next(time for e, time in result.engines.items() if e.name == "STORE")
    assert engine.busy_cycles["ST.ENC"] == busy
    # 8 rows of 16 or 8 outputs, each row a word or more; then what is left of the last word.
    words = [math.ceil(cols / machine.drain_elements_per_cycle) for cols in (16, 16, 8, 8)]
    assert engine.busy_cycles["DRAIN"] == 8 * sum(words) + 4


def test_bytes_and_events_of_a_bias() -> None:
    """A float per channel with every tile of rows; no cycles; operations besides scaling."""
    form = replace(SPEC, n=16, out_chunk=16)
    decisions, operands = Decisions(m=8, n=16, k=32, rows_outer=False), random_operands(form, 1)
    plain = run(compiled(form, decisions), operands, 16)
    for more, operations in ((BIASED, 2), ({**BIASED, **MIDWAY}, 4)):
        spec = replace(form, **{**more, "has_offset": False})
        biased = run(compiled(spec, decisions), random_operands(spec, 1), 16)
        read = biased.counts.dram_read_bytes
        # They stay while the rows walk: once.
        assert read.pop(Tensor.BIAS) == read[Tensor.W_SCALE] == 16 * 4
        assert read == plain.counts.dram_read_bytes
        drains = [
            next(time for e, time in each.engines.items() if e.name == "STORE").busy_cycles["DRAIN"]
            for each in (biased, plain)
        ]
        assert drains[0] == drains[1]
        assert biased.counts.drain_operations == operations * 16 * 16
        assert plain.counts.drain_operations == plain.counts.encoded_elements == 16 * 16


def test_listing(golden: Any) -> None:
    golden("codegen_encoded", PROGRAM.disassemble())
    spec = replace(SPEC, **BIASED, **MIDWAY)
    golden("codegen_biased", compiled(spec, PROGRAM_DECISIONS).disassemble())


def with_stores(change: Any) -> Program:
    code = (change(i) if isinstance(i, StEnc) else i for i in PROGRAM.instructions)
    return Program(PROGRAM.header, tuple(code))


def transposed() -> Program:
    """The same tiles with rows outside: the stream would be out of order."""
    header = make_header(16, 24, 32, 32, output="encoded", out_chunk=16, **RELU)
    return dense_program(header, Tiles(8, 16, rows_outer=True))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (transposed, r"ST\.ENC.*not the next tile of the MSB stream"),
        (lambda: with_stores(lambda s: replace(s, row=Affine(0))), "every 4 rows only"),
        (lambda: with_stores(lambda s: replace(s, col=Affine(0))), "ST.ENC"),
        (lambda: with_stores(lambda s: replace(s, cols=Extent(8))), "chunk of 16"),
        (lambda: with_stores(lambda s: replace(s, rows=Extent(6))), "ST.ENC"),
    ],
)
def test_stores_out_of_order_are_refused(program: Any, message: str) -> None:
    wrong = program()
    with pytest.raises(ProgramError, match=message):
        verify(wrong)
    with pytest.raises(ProgramError, match=r"ST\.ENC"):
        simulate_timing(wrong, 16, RowNnz(np.zeros((16, 4), np.int32), 8, 32))


def test_by_hand_in_the_right_order() -> None:
    header = make_header(16, 24, 32, 16, output="encoded", out_chunk=16, **RELU)
    for tiles in (Tiles(8, 16, rows_outer=False), Tiles(16, 16), Tiles(16, 16, rows_outer=False)):
        verify(dense_program(header, tiles))


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        ({"rows_outer": True}, "channels have to be the outer loop"),
        ({"n": 8}, "no chunk of 16 columns"),
    ],
)
def test_schedules_that_break_the_stream_are_refused(
    decisions: dict[str, Any], message: str
) -> None:
    form = {"m": 8, "n": 16, "k": 32, "rows_outer": False} | decisions
    with pytest.raises(CompileError, match=message):
        schedule_with(SPEC, TINY, Decisions(**form))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"out_low": -129}, r"limits .* must lie in"),
        ({"out_high": 128}, r"limits .*128.* must lie in \[-128, 127\]"),
        ({"out_signed": False}, r"limits .* must lie in \[0, 255\]"),
        ({"out_window": "signed", "out_centre": -121}, r"out_centre = -121 must .* \[-120, 120\]"),
        ({"out_centre": 1}, r"out_centre = 1 must lie in \[0, 0\] with window 'unsigned'"),
        ({"out_low": 5, "out_high": 4}, "limits"),
        ({"out_zero": 128}, "out_zero = 128 must lie in"),
        ({"out_zero": 0.5}, "out_zero = 0.5 must be a whole number"),
        ({"out_window": "odd"}, "out_window"),
        ({"output": "float32"}, "only encoded outputs have a format"),
        ({"has_bias": 1}, "has_bias must be true or false"),
        ({"mid_low": 1}, r"limits \[1, 0\] of the sums' grid"),
        ({"mid_high": 2**16 + 1}, "of the sums' grid are none"),
        ({"block_rows": 8}, "sorted rows need .* output 'float32'"),
    ],
)
def test_formats_that_contradict_themselves(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        replace(PROGRAM.header.op, **fields)


@pytest.mark.parametrize(("chunk", "message"), [(12, "multiple of 8"), (0, "positive")])
def test_streams_have_chunks_of_whole_steps(chunk: int, message: str) -> None:
    with pytest.raises(ProgramError, match=f"out_chunk = {chunk} must be a {message}"):
        with_op(PROGRAM.header, out_chunk=chunk)


def test_each_kind_of_output_has_its_store() -> None:
    def other(store: StEnc) -> StOut:
        return StOut(store.acc, store.row, store.rows, store.col, store.cols)

    with pytest.raises(ProgramError, match="outputs of this program are encoded"):
        with_stores(other)
    header = with_op(PROGRAM.header, output="float32", **NO_FORMAT)
    with pytest.raises(ProgramError, match="outputs of this program are float32"):
        Program(header, PROGRAM.instructions)


def test_tensors_that_do_not_fit() -> None:
    operands = random_operands(SPEC, seed=1)
    sliced = encode(operands.q, k=4, window="signed")
    tensors = activation_tensors(PROGRAM.header, sliced, operands.act_scale)
    tensors |= weight_tensors(PROGRAM.header, operands.weights, operands.offset)
    with pytest.raises(InvalidArgumentError, match="needs the tensor OUT_SCALE"):
        simulate(PROGRAM, tensors)
    tensors[Tensor.OUT_SCALE] = OUT_SCALE
    short = np.zeros(16 * plane_bytes(24, 4) - 1, np.uint8)
    with pytest.raises(InvalidArgumentError, match="OUT_MSB must be"):
        simulate(PROGRAM, {**tensors, Tensor.OUT_MSB: short})
    digits = RowNnz(np.zeros((16, 4), np.int32), 8, 32)
    with pytest.raises(InvalidArgumentError, match="out_nnz is of"):
        simulate_timing(PROGRAM, 16, digits, digits)


def test_damaged_programs_are_refused_or_right() -> None:
    """Never a crash, nor another result than that of the program."""
    spec = replace(SPEC, **BIASED, **MIDWAY)
    whole = compiled(spec, PROGRAM_DECISIONS)
    operands, mutate = random_operands(spec, seed=2), Mutator(5)
    q, refused = quantized(spec, operands), 0
    for _ in range(100):
        try:
            program = mutate(whole)
            found = run(program, operands, 16)
        except SparqleError:
            refused += 1
            continue
        assert_encodes(found, program.header, q)
    assert refused > 50


@pytest.mark.parametrize(
    ("m", "n", "k", "density", "form"),
    [
        (1, 1536, 576, 0.3, {}),
        (64, 1536, 576, 0.1, BIASED),
        (300, 1000, 512, 0.4, {}),
        (512, 3072, 768, 0.3, {**BIASED, **MIDWAY}),
    ],
)
def test_the_formulas_know_encoded_outputs(
    m: int, n: int, k: int, density: float, form: dict[str, Any]
) -> None:
    """Bytes and the array's cycles equal, the time nearly."""
    rng = np.random.default_rng(m)
    reader_shape = DenseOp(m, 576, n)
    digits, outputs = (draw_digits(rng, density, m, columns) for columns in (k, n))
    library = ProgramLibrary(EDGE)
    spec = replace(FORMS["relu"], m=m, n=n, k=k, out_chunk=n, **form)
    reading = DenseOp(m=m, n=reader_shape.n, k=n)
    own = library.default(spec, [spec])
    chosen = choose_drained(spec, own.k, (reader_shape,), EDGE)
    spec, decisions = library.chained(spec, [spec], None, [reading])
    assert (spec.out_chunk, decisions) == (chosen.n, chosen)
    assert library.default(reading, [reading], spec.out_chunk).k == spec.out_chunk
    result = simulate_timing(library.program(spec, decisions), m, digits, outputs)
    cost = dense_op_cost(spec, digits, chosen, EDGE, "sparqle", outputs=outputs)
    array = next(time for e, time in result.engines.items() if e.name == "MMA")
    assert cost.mma_cycles == array.busy
    assert cost.dram_bytes == result.counts.dram_bytes
    assert replace(cost.events, cycles=0) == replace(simulated_events(result), cycles=0)
    assert abs(cost.total_cycles / result.total_cycles - 1) <= 0.1


def test_one_tile_has_no_order() -> None:
    """Rows outside are fine while there is one tile of rows or of channels."""
    for decisions in (Decisions(m=16, n=16, k=32), Decisions(m=8, n=24, k=32)):
        spec = replace(SPEC, out_chunk=decisions.n)
        program = compiled(spec, replace(decisions, rows_outer=True))
        operands = random_operands(spec, seed=4)
        assert_encodes(run(program, operands, 16), program.header, quantized(spec, operands))
