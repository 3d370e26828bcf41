"""Values of simulated programs against NumPy, for every form of weights, windows and tiles."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator_programs import TINY, dense_program, header_for, random_operands

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics import encode
from sparqle_tvm.target.isa.access import Tensor
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.simulator import (
    SimResult,
    activation_tensors,
    pack_weights,
    simulate,
    simulate_timing,
)
from sparqle_tvm.target.simulator.dram import DramTensors
from sparqle_tvm.threads import core_count, use_threads


@dataclass(frozen=True)
class Case:
    """An op, its tiles, and the options of its header."""

    m: int = 10
    n: int = 12
    k: int = 64
    chunk: int = 32
    rows: int = 8
    cols: int = 8
    digit_bits: int = 4
    split: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def program(self):
        machine = replace(TINY, digit_bits=self.digit_bits)
        header = header_for(machine, self.m, self.n, self.k, self.chunk, **self.options)
        return dense_program(header, self.rows, self.cols, row_split=self.split)


UNSIGNED = {"window": "unsigned"}
DENSE = {"window": "unsigned", "scheme": "dense"}
Q4_1 = {"group_size": 32, "has_min": True, "weight_signed": False}

CASES = {
    "int4": Case(),
    "unsigned window": Case(options=UNSIGNED),
    "offset": Case(options={"has_offset": True}),
    "offset of integers": Case(options={"has_offset": True, "output": "int32", **UNSIGNED}),
    "groups with an offset": Case(options={"has_offset": True, "group_size": 32}),
    "int32 output": Case(options={"output": "int32"}),
    "unsigned weights": Case(options={"weight_signed": False}),
    "groups": Case(options={"group_size": 32}),
    "groups with minima": Case(options=Q4_1),
    "sorted rows": Case(m=19, options={"block_rows": 8}),
    "sorted rows, wide numbers": Case(m=19, options={"block_rows": 16, "m_max": 2**17}),
    "int8 weights": Case(options={"weight_bits": 8}),
    "int8 weights in groups": Case(options={"weight_bits": 8, "group_size": 32}),
    "ternary weights": Case(options={"weight_bits": 2}),
    "2-bit digits, 4 slices": Case(digit_bits=2, options={"weight_bits": 8, **Q4_1}),
    "8-bit digits": Case(digit_bits=8, rows=4, options={"weight_bits": 8}),
    "8-bit digits in groups": Case(digit_bits=8, rows=4, options={"group_size": 16}),
    "dense scheme": Case(options=DENSE),
    "dense scheme, 2-bit digits": Case(digit_bits=2, k=37, chunk=37, options=DENSE),
    "dense scheme, 8-bit digits": Case(digit_bits=8, rows=4, options=DENSE),
    "one chunk of odd size": Case(k=61, chunk=61),
    "odd edges": Case(m=9, n=7, k=61, chunk=24),
    "wide spans": Case(rows=4, cols=4, k=700, chunk=700),
    "groups wider than a span": Case(rows=4, cols=4, k=606, chunk=606, options={"group_size": 303}),
    "groups of 6": Case(k=66, chunk=66, options={"group_size": 6}),
    "one row, split": Case(m=1, n=13, k=160, chunk=80, split=4, options={"group_size": 20}),
    "one tile in all": Case(m=3, n=4, k=16, chunk=32, rows=16, cols=16),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_equal_numpy(case):
    program = case.program()
    operands = random_operands(np.random.default_rng(0), program.header, case.m)
    result = simulate(program, operands.tensors)
    assert result.output is not None
    np.testing.assert_array_equal(result.output, operands.expected, strict=True)
    for time in result.engines.values():
        assert time.busy + time.stalled == result.total_cycles


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_shapes_and_tiles(data):
    draw = data.draw
    forms = ["int4", "groups with minima", "int8 weights", "dense scheme", "sorted rows"]
    form = draw(st.sampled_from(forms))
    group = CASES[form].options.get("group_size", 0)
    k = draw(st.integers(1, 6)) * group if group else draw(st.integers(1, 200))
    case = replace(
        CASES[form],
        m=draw(st.integers(1, 20)),
        n=draw(st.integers(1, 40)),
        k=k,
        chunk=draw(st.sampled_from([32, 64, 96, 224])),
        rows=draw(st.sampled_from([4, 8, 12])),
        cols=draw(st.sampled_from([3, 4, 8, 17, 32])),
    )
    program = case.program()
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = draw(st.integers(1, case.m))
    operands = random_operands(rng, program.header, rows, draw(st.sampled_from([0, 0.2, 1])))
    result = simulate(program, operands.tensors)
    np.testing.assert_array_equal(result.output, operands.expected, strict=True)


def test_one_program_serves_every_number_of_rows():
    program = CASES["groups with minima"].program()
    for rows in range(1, 11):
        operands = random_operands(np.random.default_rng(rows), program.header, rows)
        result = simulate(program, operands.tensors)
        np.testing.assert_array_equal(result.output, operands.expected, strict=True)


def test_extreme_digits_do_not_overflow():
    # All digits at their largest magnitude, over spans of 256 columns.
    case = Case(rows=4, cols=4, k=1024, chunk=512, options={"weight_signed": False, **UNSIGNED})
    program = case.program()
    operands = random_operands(np.random.default_rng(0), program.header, case.m)
    for q in (127, -128):
        full = np.full_like(operands.q, q)
        tensors = {
            **operands.tensors,
            **activation_tensors(program.header, encode(full, window="unsigned")),
            Tensor.WGT: pack_weights(np.full((case.n, case.k), 15, dtype=np.int8), 4),
        }
        tensors[Tensor.ACT_SCALE] = np.ones(case.m, dtype=np.float32)
        tensors[Tensor.W_SCALE] = np.ones(case.n, dtype=np.float32)
        assert (simulate(program, tensors).output == q * 15 * case.k).all()


def test_the_output_may_be_given():
    case = CASES["int4"]
    program = case.program()
    operands = random_operands(np.random.default_rng(0), program.header, case.m)
    out = np.zeros((case.m, case.n), dtype=np.float32)
    result = simulate(program, {**operands.tensors, Tensor.OUT: out})
    assert result.output is out
    np.testing.assert_array_equal(out, operands.expected)


def run_with_threads(count: int, program: Program, tensors: DramTensors) -> SimResult:
    """Simulate in a thread of its own: TVM has a pool of workers per thread."""

    def run() -> SimResult:
        assert use_threads(count) == count
        return simulate(program, tensors)

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(run).result()


@pytest.mark.skipif(core_count() < 2, reason="needs two cores")
def test_threads_and_repetition_change_nothing():
    buffers = ("activation_buffer_bytes", "weight_buffer_bytes", "accumulator_buffer_bytes")
    machine = replace(TINY, **dict.fromkeys(buffers, 65536))
    header = header_for(machine, 64, 96, 512, 256, **Q4_1)
    program = dense_program(header, 16, 32)
    operands = random_operands(np.random.default_rng(0), header, 64)
    results = [run_with_threads(count, program, operands.tensors) for count in (1, 2, 2)]
    for result in results:
        np.testing.assert_array_equal(result.output, operands.expected)
        assert result.total_cycles == results[0].total_cycles
        assert result.counts == results[0].counts
        assert result.engines == results[0].engines
        np.testing.assert_array_equal(result.timing.start, results[0].timing.start)


def test_missing_or_wrong_tensors_are_refused():
    case = CASES["groups with minima"]
    program = case.program()
    tensors = random_operands(np.random.default_rng(0), program.header, case.m).tensors
    for tensor in tensors:
        others = {t: array for t, array in tensors.items() if t != tensor}
        with pytest.raises(InvalidArgumentError, match=tensor.name):
            simulate(program, others)
        if tensor != Tensor.MSB:
            with pytest.raises(InvalidArgumentError):
                simulate(program, {**tensors, tensor: tensors[tensor][:-1]})
        with pytest.raises(InvalidArgumentError):
            simulate(program, {**tensors, tensor: tensors[tensor].astype(np.complex64)})


def test_planes_that_contradict_each_other_are_refused():
    case = Case(k=61, chunk=61)
    program = case.program()
    tensors = random_operands(np.random.default_rng(0), program.header, case.m).tensors
    pointers = tensors[Tensor.MSB_PTR].copy()
    pointers[1] += 1
    with pytest.raises(InvalidArgumentError, match="MSB_PTR does not fit the bitmap"):
        simulate(program, {**tensors, Tensor.MSB_PTR: pointers})
    with pytest.raises(InvalidArgumentError, match="MSB has"):
        simulate(program, {**tensors, Tensor.MSB: tensors[Tensor.MSB][:-1]})
    bitmap = tensors[Tensor.PBM].copy()
    bitmap[0, -1] |= 0x80
    with pytest.raises(InvalidArgumentError, match="behind the last column"):
        simulate(program, {**tensors, Tensor.PBM: bitmap})


def test_timing_needs_the_stored_digits():
    program = CASES["int4"].program()
    with pytest.raises(InvalidArgumentError, match="stored digits of 10 rows, got none"):
        simulate_timing(program, 10)
